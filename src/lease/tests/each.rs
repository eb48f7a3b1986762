//! What only one of the stores can get wrong.

use super::*;
use crate::{
    clock::ManualClock,
    lease::{Index, LeaseEnd, Tally},
};
use std::time::Instant;

async fn calls(server: &Server) -> u64 {
    let stats: String =
        ::redis::cmd("INFO").arg("commandstats").query_async(&mut server.connect().await).await.unwrap();
    let counted = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        // What the test's own connections do.
        let own = ["info", "client|setinfo", "client|setname", "hello", "select"].contains(&name);
        (!own).then(|| rest.split(',').next()?.parse::<u64>().ok()).flatten()
    };
    stats.lines().filter_map(counted).sum()
}

pub(super) fn redis(world: &World) -> &Server {
    match &world.place {
        Place::Redis(server) => server,
        Place::Redb(_) => panic!("not on redis"),
    }
}

#[tokio::test]
async fn an_end_costs_the_same_for_one_credential_and_a_thousand() {
    let world = World::redis().await;
    let mut costs = Vec::new();
    for leases in [1, 1000] {
        let (task, _) = declared(&world.ledger, &root()).await;
        let more: Vec<Lease> = (1..leases).map(|_| lease(&task.id)).collect();
        for batch in more.chunks(32) {
            assert!(matches!(world.ledger.mint(&task, batch).await.unwrap(), Written::Done));
        }
        let before = calls(redis(&world)).await;
        let stopped = revoke(&world.ledger, &task.id).await;
        assert_eq!(stopped.tally.credentials, leases);
        costs.push(calls(redis(&world)).await - before);
    }
    assert!(costs[0] > 1, "{costs:?}");
    // The first run loads the three scripts, and asks for each in vain before.
    assert_eq!(costs[0] - 6, costs[1], "{costs:?}");
}

#[tokio::test]
async fn a_mint_is_one_round_trip() {
    let world = World::redis().await;
    let (task, _) = declared(&world.ledger, &root()).await;
    let stats = async || -> u64 {
        let mut connection = redis(&world).connect().await;
        let stats: String = ::redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await.unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")).unwrap();
        line.split(',').next().unwrap().parse().unwrap()
    };
    let before = stats().await;
    for _ in 0..10 {
        world.ledger.mint(&task, &[lease(&task.id), lease(&task.id)]).await.unwrap();
    }
    assert_eq!(stats().await - before, 10);
}

/// A Redis whose clock is ahead by more than the time to keep forgets at once, and so knows nobody again.
#[tokio::test]
async fn nothing_serves_once_where_redis_is_ahead_of_its_time() {
    let world = World::redis().await;
    for ahead in [TimeDelta::seconds(1), TimeDelta::hours(24)] {
        for _ in 0..2 {
            assert!(world.ledger.spend("a proof", now() - ahead).await.is_err());
        }
    }
    assert!(world.ledger.spend("a proof", now() + TimeDelta::minutes(1)).await.unwrap());
}

#[tokio::test]
async fn a_script_that_redis_forgot_is_loaded_again() {
    let world = World::redis().await;
    let (task, _) = declared(&world.ledger, &root()).await;
    for flushes in 0..3 {
        ::redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut redis(&world).connect().await).await.unwrap();
        match flushes {
            0 => drop(world.ledger.mint(&task, &[lease(&task.id)]).await.unwrap()),
            1 => drop(declared(&world.ledger, &root()).await),
            _ => drop(revoke(&world.ledger, &task.id).await),
        }
    }
}

#[tokio::test]
async fn without_memory_an_end_still_works_and_a_mint_does_not() {
    let world = World::redis().await;
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let mut connection = redis(&world).connect().await;
    ::redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).exec_async(&mut connection).await.unwrap();
    let doubt = world.ledger.mint(&task, &[lease(&task.id)]).await.unwrap_err();
    assert!(doubt.to_string().contains("OOM"), "{doubt}");
    assert!(world.ledger.declare(&super::task(&root()), &[]).await.is_err());
    let (id, dead) = (task.id.clone(), of_task.id.clone());
    let end = LeaseEnd { task: id, lease: dead, at: now(), reason: None, by: "alice".into() };
    world.ledger.end_lease(&end, tomorrow(), None).await.unwrap();
    assert!(!lives(&world.ledger, &of_task).await);
    revoke(&world.ledger, &task.id).await;
    assert!(listed(&world.ledger, &task).await);
}

#[tokio::test]
async fn a_status_list_that_is_none_is_in_doubt_and_keeps_no_task_alive() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    let long = "x".repeat(8193);
    for spoilt in [&["RPUSH", "remit:status-list:0", "x"][..], &["SET", "remit:status-list:0", &long]] {
        let (task, of_task) = declared(&world.ledger, &root()).await;
        let mut spoil = ::redis::cmd(spoilt[0]);
        ::redis::cmd("DEL").arg("remit:status-list:0").exec_async(&mut connection).await.unwrap();
        spoil.arg(&spoilt[1..]).exec_async(&mut connection).await.unwrap();
        assert!(world.ledger.status_list(0).await.is_err());
        revoke(&world.ledger, &task.id).await;
        assert!(!lives(&world.ledger, &of_task).await);
        if spoilt[0] == "RPUSH" {
            assert!(listed(&world.ledger, &task).await);
        }
    }
    for junk in ["junk", "-1", "1.5", "99999999999999999999"] {
        ::redis::cmd("SET").arg("remit:status-list:tasks").arg(junk).exec_async(&mut connection).await.unwrap();
        assert!(world.ledger.status_list(1).await.is_err(), "{junk}");
        assert!(world.ledger.status_index().await.is_err(), "{junk}");
    }
}

#[tokio::test]
async fn a_status_list_is_kept_as_long_as_the_latest_end_in_it() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    for (hours, expected) in [(24, 24), (48, 48), (1, 48)] {
        let (task, _) = declared(&world.ledger, &root()).await;
        let until = now() + TimeDelta::hours(hours);
        world.ledger.end(&end_of(&task.id, State::Revoked), until, false).await.unwrap().unwrap();
        let kept: i64 =
            ::redis::cmd("EXPIRETIME").arg("remit:status-list:0").query_async(&mut connection).await.unwrap();
        assert!((kept - now().timestamp() - expected * 3600).abs() < 10, "{hours}: {kept}");
    }
}

/// Whoever sets the counter back gets two tasks one place, at most on different brokers; and a bit that is set stays set.
#[tokio::test]
async fn a_counter_that_went_back_gives_no_place_again() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    let mut places = std::collections::HashSet::new();
    for _ in 0..300 {
        assert!(places.insert(world.ledger.status_index().await.unwrap()));
    }
    for counter in ["0", "100", "319"] {
        ::redis::cmd("SET").arg("remit:status-list:tasks").arg(counter).exec_async(&mut connection).await.unwrap();
        for _ in 0..100 {
            assert!(places.insert(world.ledger.status_index().await.unwrap()), "{counter}");
        }
    }
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let mut same = Task::clone(&self::task(&root()));
    same.status = task.status;
    let same = Arc::new(same);
    let of_same = lease(&same.id);
    world.ledger.declare(&same, std::slice::from_ref(&of_same)).await.unwrap();
    revoke(&world.ledger, &task.id).await;
    assert!(!lives(&world.ledger, &of_task).await && lives(&world.ledger, &of_same).await);
    assert!(listed(&world.ledger, &same).await, "one too many is denied, and never one too few");
    revoke(&world.ledger, &same.id).await;
    assert!(listed(&world.ledger, &task).await);
}

#[tokio::test]
async fn a_counter_that_is_none_does_not_keep_a_task_alive() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    for spoilt in [&["tally"][..], &["ended"], &["tree"], &["tally", "ended", "tree"]] {
        let (task, of_task) = declared(&world.ledger, &root()).await;
        let mut spoil = async || {
            for part in spoilt {
                let name = format!("{}:{part}", tree(&task.id));
                ::redis::cmd("SET").arg(name).arg("junk").exec_async(&mut connection).await.unwrap();
            }
        };
        spoil().await;
        let first = revoke(&world.ledger, &task.id).await;
        assert!(!lives(&world.ledger, &of_task).await);
        let again = revoke(&world.ledger, &task.id).await;
        assert_eq!((again.tally, again.effective_at), (first.tally, first.effective_at), "{spoilt:?}");
        spoil().await;
        assert!(revoke(&world.ledger, &task.id).await.effective_at >= first.effective_at);
        // What is noted anew is collected all the same.
        let ended = format!("{}:ended", tree(&task.id));
        let until: i64 = ::redis::cmd("EXPIRETIME").arg(ended).query_async(&mut connection).await.unwrap();
        assert!(until > now().timestamp(), "{until}");
    }
}

#[tokio::test]
async fn numbers_that_nothing_counted_are_no_numbers() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    for junk in ["junk", "", "-1", "nan", "inf", "-inf", "1e300", "99999999999999999999"] {
        let (task, of_task) = declared(&world.ledger, &root()).await;
        let (ended, tally) = (format!("{}:ended", tree(&task.id)), format!("{}:tally", tree(&task.id)));
        for field in ["minted", "expiry"] {
            let mut set = ::redis::cmd("HSET");
            set.arg(&tally).arg(format!("{field}:{}", task.id)).arg(junk).exec_async(&mut connection).await.unwrap();
        }
        let stopped = revoke(&world.ledger, &task.id).await;
        assert!(!lives(&world.ledger, &of_task).await);
        assert_eq!(stopped.tally, Tally { ended_tasks: 1, ..Tally::default() }, "{junk}");
        let mut set = ::redis::cmd("HSET");
        set.arg(&ended).arg(task.id.as_str()).arg(junk).arg(format!("seen:{}", task.id)).arg(junk);
        set.exec_async(&mut connection).await.unwrap();
        let again = revoke(&world.ledger, &task.id).await;
        assert_eq!((again.end, again.tally), (stopped.end, Tally::default()), "{junk}");
        assert!(stopped.effective_at <= again.effective_at && again.effective_at <= now(), "{junk}");
    }
}

#[tokio::test]
async fn an_instant_is_not_inherited_from_an_end_that_was_collected() {
    let world = World::redis().await;
    let (task, _) = declared(&world.ledger, &root()).await;
    let first = revoke(&world.ledger, &task.id).await;
    world.tamper(&Key::End(task.id.clone()), None).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let before = now();
    let second = revoke(&world.ledger, &task.id).await;
    assert!(first.effective_at < before && before <= second.effective_at);
}

#[tokio::test]
async fn a_declaration_sweeps_the_index() {
    let world = World::redis().await;
    let clock = Arc::new(ManualClock::at(now()));
    let store = RedisStore::open(&redis(&world).url(), clock.clone(), true).await.unwrap();
    let ledger = Ledger::over(Arc::new(store), &StoreKey::for_test(7), clock.clone()).await.unwrap();
    let mut connection = redis(&world).connect().await;
    let mut left = async || -> Vec<String> {
        let mut range = ::redis::cmd("ZRANGE");
        range.arg("remit:tasks").arg(0).arg(-1).query_async(&mut connection).await.unwrap()
    };
    let (old, _) = declared(&ledger, &TaskId::root(clock.now()).unwrap()).await;
    let (child, _) = declared(&ledger, &old.id.child().unwrap()).await;
    clock.advance(TimeDelta::hours(73));
    let (new, _) = declared(&ledger, &TaskId::root(clock.now()).unwrap()).await;
    assert_eq!(left().await, [&old.id, &child.id, &new.id].map(TaskId::as_str));
    clock.advance(TimeDelta::hours(24));
    // Nothing but a declaration sweeps.
    ledger.mint(&new, &[lease(&new.id)]).await.unwrap();
    assert_eq!(left().await.len(), 3);
    let (newest, _) = declared(&ledger, &TaskId::root(clock.now()).unwrap()).await;
    assert_eq!(left().await, [&new.id, &newest.id].map(TaskId::as_str));
}

#[tokio::test]
async fn a_redis_that_is_down_is_in_doubt_soon_and_comes_back() {
    let mut world = World::redis().await;
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let Place::Redis(server) = &mut world.place else { panic!("not on redis") };
    server.process.kill().unwrap();
    server.process.wait().unwrap();
    for _ in 0..3 {
        let start = Instant::now();
        assert!(world.ledger.live(&task.id, &of_task.id, "a key").await.is_err());
        assert!(world.ledger.mint(&task, &[lease(&task.id)]).await.is_err());
        assert!(world.ledger.check().await.is_err());
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    }
    *server = Server::start_on(server.port, world.directory.path(), &["--save", "", "--appendonly", "yes"]);
    let start = Instant::now();
    while world.ledger.check().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(lives(&world.ledger, &of_task).await);
}

#[tokio::test]
async fn a_redis_that_hangs_is_in_doubt_soon() {
    let world = World::redis().await;
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(redis(&world).process.id()).unwrap());
    let signal = |signal: &str| Command::new("kill").args([signal, &pid.to_string()]).status().unwrap();
    signal("-STOP");
    let start = Instant::now();
    assert!(world.ledger.live(&task.id, &of_task.id, "a key").await.is_err());
    assert!(start.elapsed() < Duration::from_secs(5));
    signal("-CONT");
    assert!(lives(&world.ledger, &of_task).await);
}

#[tokio::test]
async fn a_redis_that_could_forget_is_refused() {
    for (arguments, strict, word) in [
        (&["--appendonly", "yes", "--maxmemory-policy", "volatile-lru"][..], false, "noeviction"),
        (&["--save", "", "--appendonly", "no"], false, "keeps nothing on disk"),
        (&["--save", "60 1", "--appendonly", "no"], true, "append-only"),
        (&["--appendonly", "yes", "--replicaof", "127.0.0.1 1"], false, "replica"),
        (&["--appendonly", "yes", "--cluster-enabled", "yes"], false, "cluster"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let server = Server::start(directory.path(), arguments);
        let refused = server.open(strict).await.err().expect("refused").to_string();
        assert!(refused.contains(word), "{refused}");
    }
    let directory = tempfile::tempdir().unwrap();
    Server::start(directory.path(), &["--save", "60 1", "--appendonly", "no"]).open(false).await.unwrap();
}

#[tokio::test]
async fn a_password_never_shows() {
    for url in ["redis://user:hunter2@127.0.0.1:1/0", "rediss://:hunter2@127.0.0.1:1", "hunter2://x", "redis:hunter2"] {
        let refused = open_url(url.to_owned(), 7, false).await.err().expect("refused").to_string();
        assert!(!refused.contains("hunter2"), "{refused}");
    }
}

#[tokio::test]
async fn names_of_what_was_collected_are_dropped() {
    let world = World::redis().await;
    let (recent, _) = declared(&world.ledger, &root()).await;
    let old = TaskId::root(now() - TimeDelta::hours(72)).unwrap();
    let (kept, _) = declared(&world.ledger, &TaskId::root(now() - TimeDelta::hours(96)).unwrap()).await;
    let mut connection = redis(&world).connect().await;
    for name in [old.as_str(), "task_0", "aaa", "zzz"] {
        ::redis::cmd("ZADD").arg("remit:tasks").arg(0).arg(name).exec_async(&mut connection).await.unwrap();
    }
    let store = RedisStore::open(&redis(&world).url(), Arc::new(SystemClock), true).await.unwrap();
    assert_eq!(store.list(Index::Tasks, None, 2).await.unwrap(), [recent.id.as_str(), kept.id.as_str()]);
    assert_eq!(store.list(Index::Tasks, Some(kept.id.as_str()), 2).await.unwrap(), Vec::<String>::new());
    let left: u64 = ::redis::cmd("ZCARD").arg("remit:tasks").query_async(&mut connection).await.unwrap();
    assert_eq!(left, 2);
}

#[tokio::test]
async fn a_file_is_closed_to_others_and_to_a_second_broker() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("data/store.redb");
    let store = RedbStore::open(&path, Arc::new(SystemClock)).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let refused = RedbStore::open(&path, Arc::new(SystemClock)).err().expect("refused");
    assert!(refused.to_string().contains("in use by another broker"), "{refused}");
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let refused = RedbStore::open(&path, Arc::new(SystemClock)).err().expect("refused");
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

#[tokio::test]
async fn a_file_is_swept_of_what_has_run_out() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(now()));
    let store = Arc::new(RedbStore::open(&directory.path().join("store.redb"), clock.clone()).unwrap());
    let ledger = Ledger::over(store.clone(), &StoreKey::for_test(7), clock.clone()).await.unwrap();
    let (old, of_old) = declared(&ledger, &root()).await;
    revoke(&ledger, &old.id).await;
    clock.advance(TimeDelta::hours(23));
    declared(&ledger, &root()).await;
    assert!(ledger.task(&old.id).await.unwrap().unwrap().end.is_some());
    clock.advance(TimeDelta::hours(3));
    declared(&ledger, &root()).await;
    assert!(ledger.task(&old.id).await.unwrap().is_none());
    assert_eq!(ledger.leases(&old.id, &[of_old.id]).await.unwrap(), [None]);
    assert_eq!(store.read(&[Key::End(old.id.clone()), Key::Marker]).await.unwrap().iter().flatten().count(), 1);
    clock.advance(TimeDelta::hours(26));
    ledger
        .remember("digest", super::super::Remembered { task: root(), body: String::new() }, tomorrow())
        .await
        .unwrap();
    assert_eq!(store.list(Index::Tasks, None, 10).await.unwrap(), Vec::<String>::new());
    ledger.check().await.unwrap();
}

#[tokio::test]
async fn a_timeline_goes_two_days_after_its_last_event() {
    let directory = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(now()));
    let store = Arc::new(RedbStore::open(&directory.path().join("store.redb"), clock.clone()).unwrap());
    let ledger = Ledger::over(store.clone(), &StoreKey::for_test(7), clock.clone()).await.unwrap();
    let (task, event) = (root(), |at| super::suite::happened(&root(), "a", at, None, "looked"));
    ledger.tell(&task, &[event(1)]).await.unwrap();
    for (hours, left) in [(47, 2), (47, 3), (49, 0)] {
        clock.advance(TimeDelta::hours(hours));
        // Whoever writes sweeps.
        declared(&ledger, &root()).await;
        if left > 0 {
            ledger.tell(&task, &[event(left)]).await.unwrap();
        }
        assert_eq!(store.told(&task).await.unwrap().len() as u64, left, "{hours}");
    }

    let world = World::redis().await;
    let (key, mut connection) = (Key::Timeline(task.clone()).name(), redis(&world).connect().await);
    // What is in its place and is no timeline makes room.
    ::redis::cmd("SET").arg(&key).arg("x").exec_async(&mut connection).await.unwrap();
    assert!(world.ledger.timeline(&task).await.is_err());
    world.ledger.tell(&task, &[event(1)]).await.unwrap();
    assert_eq!(world.timeline(&task).await.len(), 1);
    let ttl: i64 = ::redis::cmd("TTL").arg(&key).query_async(&mut connection).await.unwrap();
    assert!((172_700..=172_800).contains(&ttl), "{ttl}");
}
