//! Trees of tasks. Nothing delegates over HTTP yet, so what stands below a declared task is written to Redis beside the broker, as a broker
//! would write it; its credentials are minted over HTTP.

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use remit::{
    clock::{Clock as _, SystemClock},
    id::MAX_DEPTH,
    lease::{Config, Ledger, StoreKey, Written},
    metrics::Metrics,
    task::Task,
};
use serde_json::Value;
use std::sync::Arc;

use crate::stand::{Result, Stand};

/// How many tasks are written, or given a credential, at a time.
const AT_ONCE: usize = 64;

/// A tree of so many tasks, and so many credentials of the deepest of them, one each: the root, and a token of the deepest.
pub(crate) async fn tree(stand: &Stand, tasks: usize, credentials: usize) -> Result<(String, String)> {
    let root = stand.declare().await?;
    let tree = grown(&ledger(stand).await?, &root, tasks).await?;
    let token = async |task: &Arc<Task>| {
        let minted = stand.mint(task.id.as_str(), 1).send().await?.error_for_status()?;
        let minted: Value = minted.json().await?;
        Result::Ok(minted["credentials"][0]["access_token"].as_str().ok_or("no token")?.to_owned())
    };
    let mut tokens = stream::iter(tree.iter().take(credentials)).map(token).buffered(AT_ONCE);
    let deepest = tokens.try_next().await?.ok_or("no credentials")?;
    while tokens.try_next().await?.is_some() {}
    drop(tokens);
    Ok((root, deepest))
}

/// The store of the broker, open beside it.
async fn ledger(stand: &Stand) -> Result<Ledger> {
    let url = stand.redis.as_ref().ok_or("trees are on Redis")?.url.clone();
    let mac_key_file = stand.dir.path().join("keys/store.key");
    let config = Config { url, mac_key_file, broker_gone_after: Config::BROKER_GONE_AFTER };
    let key = StoreKey::load(&config.mac_key_file)?;
    Ok(Ledger::open(&config, key, Arc::new(SystemClock), Metrics::new(""), false)
        .await
        .map_err(|why| why.to_string())?)
}

/// A chain as deep as there can be, and from then on one more below each of those that may have one, in turns; the deepest first.
async fn grown(ledger: &Ledger, root: &str, tasks: usize) -> Result<Vec<Arc<Task>>> {
    let root = ledger.declared(&root.parse()?).await.map_err(|why| why.to_string())?.ok_or("no task")?;
    let mut tree = vec![root.clone()];
    for number in 1..tasks {
        let wanted = number - if number <= MAX_DEPTH { 1 } else { MAX_DEPTH + 1 };
        let parent = if tree[wanted].id.depth() < MAX_DEPTH { &tree[wanted] } else { &root };
        let status = ledger.status_index().await.map_err(|why| why.to_string())?;
        let below = Task { id: parent.id.child()?, status, created_at: SystemClock.now(), ..Task::clone(&root) };
        tree.push(Arc::new(below));
    }
    // What is above stands first.
    tree.sort_by_key(|task| task.id.depth());
    for depth in 1..=MAX_DEPTH {
        let level = tree.iter().filter(|task| task.id.depth() == depth);
        let declare = async |task| ledger.declare(task, &[]).await.map_err(|why| why.to_string());
        let mut written = stream::iter(level).map(declare).buffer_unordered(AT_ONCE);
        while let Some(written) = written.try_next().await? {
            if !matches!(written, Written::Done) {
                return Err(format!("a task of a tree: {written:?}").into());
            }
        }
    }
    tree.reverse();
    Ok(tree)
}
