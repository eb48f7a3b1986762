//! Records on standard output: the lines of the log and nothing else, and nobody waits for whoever reads them.

use reqwest::StatusCode;
use serde_json::Value;
use std::{collections::BTreeSet, fs, path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::ChildStdout,
    time::timeout,
};

use remit::audit::segment::Segment;

use crate::{
    both,
    support::{Server, Stand, Store, VIEWER, declaration, text, wait_for},
};

const STDOUT: &str = "[audit]\nstdout = true\n";

/// The log as it stands in its files.
fn log(dir: &Path) -> String {
    let segments = Segment::list(&dir.join("broker-audit")).unwrap();
    segments.iter().map(|segment| fs::read_to_string(&segment.path).unwrap()).collect()
}

async fn dropped(stand: &Stand) -> usize {
    let metrics = stand.client.get(stand.url("/metrics")).send().await.unwrap().text().await.unwrap();
    let name = "remit_audit_stdout_total{outcome=\"dropped\"} ";
    metrics.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or_default()
}

/// Lines until there are none for a while.
async fn read(lines: &mut Lines<BufReader<ChildStdout>>) -> Vec<String> {
    let mut read = Vec::new();
    while let Ok(Ok(Some(line))) = timeout(Duration::from_secs(2), lines.next_line()).await {
        read.push(line);
    }
    read
}

both! {
    super::STDOUT;
    /// Every record from the first one on, to the octet; over a restart too.
    async fn standard_output_is_the_log(stand) {
        let mut stand = stand;
        let (task, token) = stand.task_with_token().await;
        stand.mint(&task).await.expect(StatusCode::OK);
        stand.introspect(&token).await;
        stand.get("/v1/tasks", "nobody-knows-this-token").await;
        stand.restart_broker().await;
        stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
        stand.revoke(&task).await.expect(StatusCode::OK);
        stand.broker.stop().await;
        let said = fs::read_to_string(stand.broker.config.with_extension("stdout")).unwrap();
        assert_eq!(said, log(stand.dir.path()));
        let events: BTreeSet<_> =
            said.lines().map(|line| text(&serde_json::from_str::<Value>(line).unwrap(), "event")).collect();
        for event in ["segment_opened", "task_declared", "credential_minted", "evidence_refused", "task_ended"] {
            assert!(events.contains(event), "{event}");
        }
        // What people read is where they look for it.
        let aside = fs::read_to_string(stand.broker.config.with_extension("stderr")).unwrap();
        assert_eq!(aside.matches("remit is ready\n").count(), 2);
    }
}

/// Where nobody reads, the log goes on and a task is revoked; and whoever reads again gets whole lines, and can count what is missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_whoever_reads() {
    let mut stand = Stand::with(Store::Embedded, STDOUT).await;
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    let before = log(stand.dir.path()).lines().count();
    let (server, pipe) = Server::start_piped(&config).await;
    stand.broker = server;
    let mut long = declaration();
    long["environment"] = "production".into();
    long["purpose"] = "x".repeat(900).into();
    let flood = async || {
        futures_util::future::join_all((0..64).map(|_| stand.declare(long.clone()))).await;
    };
    for round in 0.. {
        flood().await;
        if dropped(&stand).await > 0 {
            break;
        }
        assert!(round < 500, "whatever is not read waits");
    }
    let (task, token) = stand.task_with_token().await;
    stand.revoke(&task).await.expect(StatusCode::OK);
    assert_eq!(stand.introspect(&token).await["active"], false);
    assert!(stand.audit().iter().any(|line| line["event"] == "task_ended" && line["task"] == *task));
    let said = || fs::read_to_string(config.with_extension("stderr")).unwrap();
    wait_for("a word of it", || async { said().contains("records are left out of standard output") }).await;

    let mut lines = BufReader::new(pipe).lines();
    let mut got = read(&mut lines).await;
    let lost = dropped(&stand).await;
    let (after, _) = stand.task_with_token().await;
    got.extend(read(&mut lines).await);
    assert!(got.iter().any(|line| line.contains("task_declared") && line.contains(&after)), "it goes on");
    let whole = log(stand.dir.path());
    let whole: Vec<_> = whole.lines().skip(before).collect();
    assert_eq!((got.len() + lost, dropped(&stand).await), (whole.len(), lost));
    let mut rest = whole.iter();
    assert!(got.iter().all(|line| rest.any(|recorded| recorded == line)), "not the records, or not in order");

    // Nor does the end of the broker wait for long.
    flood().await;
    let took = stand.broker.stop().await;
    assert!(took < Duration::from_secs(12), "{took:?}");
    drop(lines);
}
