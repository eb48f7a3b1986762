//! What a revoke costs for 1, 1,000 and 100,000 credentials, over HTTP, on both stores.
//!
//! `cargo bench --bench revoke`. Needs `redis-server`. Figures are medians; compare them within one run only. Beside every task
//! of many credentials a task of one is revoked, on the same store at the same moment: the ratio is between the two, and so
//! free of what a larger file or a busier disk costs everybody. A bare request on the same connection is the limit.

use remit::{
    clock::SystemClock,
    config::{Config, Development},
    serve::{Running, start},
};
use serde_json::{Value, json};
use std::{path::Path, process::Stdio, sync::Arc, time::Duration};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SERVICE: &str = "http://127.0.0.1:9000";
/// Credentials in one task, and how many such tasks are revoked.
const ROUNDS: [(usize, usize); 3] = [(1, 20), (1_000, 20), (100_000, 6)];
/// Credentials in one call.
const BATCH: usize = 32;

/// What `cargo test` passes to every target: then one small round shows that the bench still runs.
fn is_trial() -> bool {
    std::env::args().any(|argument| argument == "--test")
}

#[tokio::main]
async fn main() -> Result<()> {
    // The HTTP client brings no crypto provider of its own; there is one in the tree.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = tempfile::tempdir()?;
    println!(
        "{:<10}{:>12}{:>12}{:>15}{:>10}{:>15}{:>16}",
        "store", "credentials", "revoke", "of one beside", "ratio", "bare request", "store commands"
    );
    embedded(dir.path()).await?;
    redis(dir.path()).await
}

async fn embedded(dir: &Path) -> Result<()> {
    let data = dir.join("embedded");
    let running = broker(&data, None).await?;
    bench("embedded", &running, &data, None).await?;
    running.stop().await;
    Ok(())
}

async fn redis(dir: &Path) -> Result<()> {
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut server: Child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let url = format!("redis://127.0.0.1:{port}");
    let client = redis::Client::open(url.as_str())?;
    let mut connection = loop {
        match client.get_multiplexed_async_connection().await {
            Ok(connection) => break connection,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let data = dir.join("redis");
    let running = broker(&data, Some(url)).await?;
    bench("redis", &running, &data, Some(&mut connection)).await?;
    running.stop().await;
    server.kill().await?;
    Ok(())
}

async fn broker(data: &Path, store: Option<String>) -> Result<Running> {
    let listen = "127.0.0.1:0".parse()?;
    let config = Config::development(Development { data: data.to_owned(), keys: None, listen, store })?;
    Ok(start(config, Arc::new(SystemClock)).await?)
}

async fn bench(
    name: &str,
    running: &Running,
    data: &Path,
    mut store: Option<&mut redis::aio::MultiplexedConnection>,
) -> Result<()> {
    let agent = reqwest::Client::builder().unix_socket(data.join("remit.sock")).build()?;
    let operator = reqwest::Client::new();
    let token = std::fs::read_to_string(data.join("operator.token"))?;
    let base = format!("http://{}", running.http);
    // The first revoke loads the script and opens the connection.
    revoke(&operator, &base, token.trim(), &task(&agent, 1).await?).await?;
    for (credentials, rounds) in if is_trial() { &ROUNDS[..1] } else { &ROUNDS[..] } {
        let (mut times, mut controls, mut commands) = (Vec::new(), Vec::new(), None::<u64>);
        for round in 0..*rounds {
            let (one, many) = (task(&agent, 1).await?, task(&agent, *credentials).await?);
            // Whoever comes first pays for what the mints left to do, so they take turns.
            if round % 2 == 0 {
                controls.push(revoke(&operator, &base, token.trim(), &one).await?);
            }
            let before = count(&mut store).await?;
            times.push(revoke(&operator, &base, token.trim(), &many).await?);
            // The broker looks at its store once a second; the round with the fewest commands is without such a look.
            let spent = count(&mut store).await?.zip(before).map(|(after, before)| after - before);
            commands = commands.into_iter().chain(spent).min();
            if round % 2 == 1 {
                controls.push(revoke(&operator, &base, token.trim(), &one).await?);
            }
        }
        let floor = ms(round_trip(&operator, &base).await?);
        let (time, control) = (ms(median(times)), ms(median(controls)));
        let ratio = time / control;
        let commands = commands.map_or_else(|| "-".to_owned(), |commands| commands.to_string());
        println!(
            "{name:<10}{credentials:>12}{time:>9.2} ms{control:>12.2} ms{ratio:>9.2}x{floor:>12.2} ms{commands:>16}"
        );
    }
    Ok(())
}

/// A task with that many credentials.
async fn task(agent: &reqwest::Client, credentials: usize) -> Result<String> {
    let details = json!([{"type": "remit:access", "locations": [SERVICE], "privileges": ["read"]}]);
    let declaration = json!({"purpose": "bench", "owner": "bench", "authorization_details": details});
    let declared: Value =
        agent.post("http://localhost/v1/tasks").json(&declaration).send().await?.error_for_status()?.json().await?;
    let task = declared["task"].as_str().ok_or("no task")?.to_owned();
    let mut left = credentials;
    while left > 0 {
        let batch = left.min(BATCH);
        let body = json!({"credentials": vec![json!({"resource": SERVICE, "privilege": "read"}); batch]});
        agent
            .post(format!("http://localhost/v1/tasks/{task}/credentials"))
            .json(&body)
            .send()
            .await?
            .error_for_status()?;
        left -= batch;
    }
    Ok(task)
}

/// Revokes, and how long that took.
async fn revoke(operator: &reqwest::Client, base: &str, token: &str, task: &str) -> Result<Duration> {
    let begun = Instant::now();
    let request =
        operator.post(format!("{base}/v1/tasks/{task}/revoke")).bearer_auth(token).json(&json!({"reason": "bench"}));
    request.send().await?.error_for_status()?.bytes().await?;
    Ok(begun.elapsed())
}

/// The same connection, and nothing done.
async fn round_trip(operator: &reqwest::Client, base: &str) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        operator.get(format!("{base}/healthz")).send().await?.bytes().await?;
        times.push(begun.elapsed());
    }
    Ok(median(times))
}

/// Commands that Redis has run so far, those inside scripts included.
async fn count(store: &mut Option<&mut redis::aio::MultiplexedConnection>) -> Result<Option<u64>> {
    let Some(connection) = store else { return Ok(None) };
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(*connection).await?;
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        (name != "info").then(|| rest.split(',').next()?.parse::<u64>().ok()).flatten()
    };
    Ok(Some(stats.lines().filter_map(calls).sum()))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
