//! The connection to Redis, and what a Redis must be before leases are trusted to it.

use ::redis::{
    Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, ProtocolVersion, RedisError,
    RedisResult, Value,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cmd,
    io::tcp::TcpSettings,
};
use std::{collections::HashMap, fmt::Display, net::IpAddr, time::Duration};

use super::super::InDoubt;

/// No call takes longer, whatever the connection goes through.
const DEADLINE: Duration = Duration::from_secs(4);

/// Connects, and refuses a Redis that could forget what it was told, or that others could read or write.
///
/// # Errors
/// A sentence that says what to change. It never holds the URL, which may hold a password.
pub(super) async fn connect(url: &str, strict: bool) -> Result<ConnectionManager, InDoubt> {
    parse(url).map_err(InDoubt)?;
    let mut connection = again(url).await?;
    check(&mut connection, strict).await?;
    Ok(connection)
}

/// Connects to a Redis that was found to be good.
///
/// # Errors
/// When it does not answer.
pub(super) async fn again(url: &str) -> Result<ConnectionManager, InDoubt> {
    // rustls is built with ring alone, but a process default has to be named; another one of the same process will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(1)))
        .set_response_timeout(Some(Duration::from_secs(2)))
        .set_number_of_retries(2)
        .set_min_delay(Duration::from_millis(50))
        .set_max_delay(Duration::from_millis(500))
        .set_pipeline_buffer_size(1024);
    let client = info(url, ProtocolVersion::RESP2).and_then(Client::open).map_err(|error| doubt(&error))?;
    within(ConnectionManager::new_with_config(client, config)).await
}

/// How to connect to a Redis whose URL was found to be good.
pub(super) fn info(url: &str, protocol: ProtocolVersion) -> RedisResult<ConnectionInfo> {
    // A peer that is gone without a word would otherwise be waited for until TCP gives up, a quarter of an hour later.
    let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(Duration::from_secs(3));
    let info = url.into_connection_info()?;
    let settings = info.redis_settings().clone().set_protocol(protocol);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

/// Waits for an answer of Redis, but not for long. What times out may have been carried out.
pub(super) async fn within<T>(call: impl Future<Output = RedisResult<T>>) -> Result<T, InDoubt> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map_err(|error| doubt(&error)),
        Err(_) => Err(InDoubt("redis did not answer in time".into())),
    }
}

/// The error in words that hold neither secrets nor what was stored.
fn doubt(error: &RedisError) -> InDoubt {
    let server = error.clone().into_server_errors();
    let text = match (server.as_ref().and_then(|errors| errors.first()), error.kind()) {
        (Some((_, server)), _) => format!("{} {}", server.code(), server.details().unwrap_or_default()),
        (None, ErrorKind::Io) => error.to_string(),
        (None, _) => error.category().to_owned(),
    };
    InDoubt(format!("redis: {}", text.chars().take_while(|c| !c.is_control()).take(160).collect::<String>()))
}

pub(super) fn parse(url: &str) -> Result<ConnectionInfo, String> {
    let parsed = url::Url::parse(url).map_err(|_| "`store.url` is no URL".to_owned())?;
    if parsed.fragment().is_some() || parsed.query().is_some() {
        return Err("`store.url` takes no `?…` and no `#…`: a certificate is always checked".into());
    }
    let info = parsed.into_connection_info().map_err(|_| {
        "`store.url` has to be redis://[USER:PASSWORD@]HOST[:PORT][/DB] or the same with rediss://".to_owned()
    })?;
    let (host, tls) = if let ConnectionAddr::Tcp(host, _) = info.addr() {
        (host, false)
    } else if let ConnectionAddr::TcpTls { host, .. } = info.addr() {
        (host, true)
    } else {
        return Err("`store.url` has to name a host".into());
    };
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !loopback && !tls {
        return Err(
            "`store.url` names another machine: use rediss://, so that nobody on the way can write to it".into()
        );
    }
    if !loopback && info.redis_settings().password().is_none_or(str::is_empty) {
        return Err("`store.url` names another machine: give Redis a user with a password, and name them in it".into());
    }
    Ok(info)
}

async fn check(connection: &mut ConnectionManager, strict: bool) -> Result<(), InDoubt> {
    let info: String = within(cmd("INFO").query_async(connection)).await?;
    let facts: HashMap<&str, &str> = info.lines().filter_map(|line| line.trim_end().split_once(':')).collect();
    // A user without `CONFIG GET` is a sensible one. What then cannot be told is not assumed.
    let snapshots = setting(connection, "save").await.map(|points| !points.is_empty());
    if setting(connection, "appendfsync").await.is_some_and(|when| when != "always") {
        tracing::warn!(
            "this Redis syncs its append-only file now and then, so a crash can undo a revoke that was answered; set `appendfsync always`"
        );
    }
    judge(&|name| facts.get(name).copied().unwrap_or_default(), snapshots, strict).map_err(InDoubt)
}

/// A setting, if this user may ask for it.
async fn setting(connection: &mut ConnectionManager, name: &str) -> Option<String> {
    let answer: Value = within(cmd("CONFIG").arg("GET").arg(name).query_async(connection)).await.ok()?;
    let pair: Vec<String> = redis::from_redis_value(answer).ok()?;
    pair.into_iter().nth(1)
}

/// Whether a Redis that says this of itself may hold leases; `snapshots`: whether it has save points, if that can be told.
fn judge<'a>(fact: &impl Fn(&str) -> &'a str, snapshots: Option<bool>, strict: bool) -> Result<(), String> {
    let refuse = |why: &dyn Display| Err(format!("this Redis {why}"));
    if fact("redis_version").split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|major| major < 7)
    {
        return refuse(&"is older than 7.0: its scripts cannot say what they need; update it");
    }
    if fact("cluster_enabled") != "0" {
        return refuse(&"is a cluster, which is not supported yet: use one primary, with replicas if you like");
    }
    if fact("role") != "master" {
        return refuse(&"is a replica: point `store.url` at the primary");
    }
    if fact("loading") != "0" {
        return refuse(&"is still loading its data: try again in a moment");
    }
    if fact("maxmemory_policy") != "noeviction" {
        return refuse(&"may evict leases and revocations: set `maxmemory-policy noeviction`");
    }
    match (fact("aof_enabled"), snapshots) {
        ("1", _) => Ok(()),
        (_, Some(false)) => refuse(&"keeps nothing on disk: set `appendonly yes`"),
        _ if strict => refuse(&"has no append-only file, so a crash loses minutes: set `appendonly yes`"),
        (_, None) => {
            refuse(&"has no append-only file, and whether it keeps snapshots cannot be told: set `appendonly yes`")
        }
        (_, Some(true)) => {
            tracing::warn!("this Redis keeps snapshots only, so a crash loses minutes; set `appendonly yes`");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [(&str, &str); 6] = [
        ("redis_version", "7.0.15"),
        ("cluster_enabled", "0"),
        ("role", "master"),
        ("loading", "0"),
        ("maxmemory_policy", "noeviction"),
        ("aof_enabled", "1"),
    ];

    fn judged(change: (&'static str, &'static str), snapshots: Option<bool>, strict: bool) -> Result<(), String> {
        let fact = |name: &str| {
            let changed = Some(change).into_iter().chain(GOOD).find(|(known, _)| *known == name);
            changed.map_or("", |(_, value)| value)
        };
        judge(&fact, snapshots, strict)
    }

    #[test]
    fn a_redis_that_could_forget_is_refused() {
        judged(("", ""), None, true).unwrap();
        for (change, word) in [
            (("redis_version", "6.2.1"), "7.0"),
            (("redis_version", ""), "7.0"),
            (("cluster_enabled", "1"), "cluster"),
            (("role", "slave"), "replica"),
            (("loading", "1"), "loading"),
            (("maxmemory_policy", "volatile-lru"), "noeviction"),
            (("maxmemory_policy", ""), "noeviction"),
            (("aof_enabled", "0"), "appendonly"),
        ] {
            let refused = judged(change, None, true).unwrap_err();
            assert!(refused.contains(word), "{refused}");
        }
    }

    #[test]
    fn snapshots_alone_will_do_for_a_trial_only() {
        let off = ("aof_enabled", "0");
        assert!(judged(off, Some(true), true).is_err());
        assert!(judged(off, Some(true), false).is_ok());
        assert!(judged(off, Some(false), false).unwrap_err().contains("keeps nothing on disk"));
        assert!(judged(off, None, false).is_err());
    }

    #[test]
    fn another_machine_is_reached_by_tls_and_password_alone() {
        for good in [
            "redis://127.0.0.1:6379",
            "redis://localhost",
            "redis://[::1]:6379/2",
            "rediss://:secret@redis.example.com",
        ] {
            parse(good).unwrap();
        }
        for bad in [
            "redis://redis.example.com",
            "redis://:secret@redis.example.com",
            "rediss://redis.example.com",
            "rediss://user:@redis.example.com",
            "rediss://:secret@redis.example.com/#insecure",
            "redis://127.0.0.1?protocol=resp3",
            "unix:///run/redis.sock",
            "redis://",
        ] {
            let refused = parse(bad).unwrap_err();
            assert!(!refused.contains("secret"), "{refused}");
        }
    }
}
