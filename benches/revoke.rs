//! What a revoke costs for 1, 1,000 and 100,000 credentials, over HTTP, on both stores.
//!
//! `cargo bench --bench revoke`. Needs `redis-server`. Figures are medians; compare them within one run only. Beside every task
//! of many credentials a task of one is revoked, on the same store at the same moment: the ratio of the two, of which the median is
//! shown, is free of what a larger file or a busier disk costs everybody. A bare request on the same connection is the limit.

mod stand;

use remit::id::sha256_hex;
use serde_json::json;
use std::time::Instant;

use stand::{Result, Stand, Store, is_trial};

const RESPONDER: &str = "responder";
/// Credentials in one task, and how many such tasks are revoked.
const ROUNDS: [(usize, usize); 3] = [(1, 20), (1_000, 20), (100_000, 6)];
/// Credentials in one call.
const BATCH: usize = 32;

#[tokio::main]
async fn main() -> Result<()> {
    let responder = format!(
        "[[operator]]\nname = \"bench\"\nroles = [\"responder\"]\ntoken_sha256 = \"{}\"\n",
        sha256_hex(RESPONDER.as_bytes())
    );
    println!(
        "{:<10}{:>12}{:>12}{:>15}{:>10}{:>15}{:>16}",
        "store", "credentials", "revoke", "of one beside", "ratio", "bare request", "store commands"
    );
    for store in [Store::Embedded, Store::Redis] {
        let stand = Stand::start(store, &responder).await?;
        bench(store, &stand).await?;
        stand.stop().await?;
    }
    Ok(())
}

async fn bench(store: Store, stand: &Stand) -> Result<()> {
    // The first revoke loads the script and opens the connection.
    revoke(stand, &task(stand, 1).await?).await?;
    for (credentials, rounds) in if is_trial() { &ROUNDS[..1] } else { &ROUNDS[..] } {
        let (mut times, mut controls, mut commands) = (Vec::new(), Vec::new(), None::<u64>);
        for round in 0..*rounds {
            let (one, many) = (task(stand, 1).await?, task(stand, *credentials).await?);
            // Whoever comes first pays for what the mints left to do, so they take turns.
            if round % 2 == 0 {
                controls.push(revoke(stand, &one).await?);
            }
            let before = count(stand).await?;
            times.push(revoke(stand, &many).await?);
            // The broker looks at its store once a second; the round with the fewest commands is without such a look.
            let spent = count(stand).await?.zip(before).map(|(after, before)| after - before);
            commands = commands.into_iter().chain(spent).min();
            if round % 2 == 1 {
                controls.push(revoke(stand, &one).await?);
            }
        }
        let floor = round_trip(stand).await?;
        let ratio = median(times.iter().zip(&controls).map(|(time, control)| time / control).collect());
        let (time, control) = (median(times), median(controls));
        let commands = commands.map_or_else(|| "-".to_owned(), |commands| commands.to_string());
        println!(
            "{store:<10}{credentials:>12}{time:>9.2} ms{control:>12.2} ms{ratio:>9.2}x{floor:>12.2} ms{commands:>16}"
        );
    }
    Ok(())
}

/// A task with that many credentials.
async fn task(stand: &Stand, credentials: usize) -> Result<String> {
    let task = stand.declare().await?;
    let mut left = credentials;
    while left > 0 {
        let batch = left.min(BATCH);
        stand.mint(&task, batch).send().await?.error_for_status()?.bytes().await?;
        left -= batch;
    }
    Ok(task)
}

/// Revokes, and how long that took, in milliseconds.
async fn revoke(stand: &Stand, task: &str) -> Result<f64> {
    let begun = Instant::now();
    let request = stand.client.post(stand.url(&format!("/v1/tasks/{task}/revoke"))).bearer_auth(RESPONDER);
    request.json(&json!({"reason": "bench"})).send().await?.error_for_status()?.bytes().await?;
    Ok(ms(begun))
}

/// The same connection, and nothing done.
async fn round_trip(stand: &Stand) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        stand.client.get(stand.url("/healthz")).send().await?.bytes().await?;
        times.push(ms(begun));
    }
    Ok(median(times))
}

/// Commands that Redis has run so far, those inside scripts included.
async fn count(stand: &Stand) -> Result<Option<u64>> {
    let Some(redis) = &stand.redis else { return Ok(None) };
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis.connection.clone()).await?;
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        (name != "info").then(|| rest.split(',').next()?.parse::<u64>().ok()).flatten()
    };
    Ok(Some(stats.lines().filter_map(calls).sum()))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
