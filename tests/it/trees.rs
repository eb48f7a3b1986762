//! Trees of tasks: whatever ends a task ends all that is below it, however deep and however many, and nothing beside or above it.
//!
//! Nothing delegates over HTTP yet, so the tests write the tasks below a declared one to the store themselves, as a broker would. All the
//! rest goes through the front door.

use chrono::DateTime;
use futures_util::future::{join_all, try_join_all};
use remit::{
    clock::{Clock as _, SystemClock},
    id::MAX_DEPTH,
    lease::{Config, Ledger, StoreKey, Written},
    metrics::Metrics,
    task::Task,
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::{collections::HashSet, sync::Arc};

use crate::{
    both,
    certificates::Certified,
    followers::{Service, becomes_revoked, entries},
    revoke::{command_counts, cost_the_same},
    status_list::{bits, is_set, status},
    support::{
        APPROVER, Answer, GIT, KEYTOOL_CSR, OWNER, RESPONDER, Server, Stand, Store, VIEWER, people, settled, text,
        time, wait_for,
    },
};

/// The ledger of a stand's store, which nobody else may hold open where that is a file.
async fn ledger(stand: &Stand) -> Ledger {
    let dir = stand.dir.path();
    let embedded = || format!("redb:{}", dir.join("remit.redb").display());
    let url = stand.redis.as_ref().map_or_else(embedded, crate::support::Redis::url);
    let config = Config { url, mac_key_file: dir.join("store.key"), broker_gone_after: Config::BROKER_GONE_AFTER };
    let key = StoreKey::load(&config.mac_key_file).expect("the key of the store");
    Ledger::open(&config, key, Arc::new(SystemClock), Metrics::new(""), false).await.expect("the store")
}

/// Declares tasks below `top`, each below one that stands by then: that of the tree (`top` is its first) whose place is given, with other
/// words than those of `top`. Yields all of the tree, `top` first.
async fn grow(stand: &mut Stand, top: &str, parents: &[usize], words: impl Fn(usize, &mut Task)) -> Vec<Arc<Task>> {
    if stand.redis.is_none() {
        stand.broker.stop().await;
    }
    let ledger = ledger(stand).await;
    let top = ledger.declared(&top.parse().expect("an id")).await.expect("the store").expect("a task");
    let mut tree = vec![top.clone()];
    for (number, parent) in parents.iter().enumerate() {
        let id = tree[*parent].id.child().expect("an id");
        let status = ledger.status_index().await.expect("the store");
        let mut task = Task { id, status, created_at: SystemClock.now(), leases: Vec::new(), ..Task::clone(&top) };
        words(number + 1, &mut task);
        tree.push(Arc::new(task));
    }
    for depth in top.id.depth() + 1..=MAX_DEPTH {
        let level: Vec<_> = tree.iter().filter(|task| task.id.depth() == depth).collect();
        for some in level.chunks(64) {
            let written = try_join_all(some.iter().map(|task| ledger.declare(task, &[]))).await.expect("the store");
            assert!(written.iter().all(|written| matches!(written, Written::Done)), "{written:?}");
        }
    }
    drop(ledger);
    if stand.redis.is_none() {
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
    }
    tree
}

/// So many tasks below one: a chain as deep as there can be, and from then on one more below each of those that may have one, in turns.
fn deep_and_broad(below: usize) -> Vec<usize> {
    let (mut parents, mut depths) = (Vec::new(), vec![0]);
    for number in 1..=below {
        let wanted = number - if number <= MAX_DEPTH { 1 } else { MAX_DEPTH + 1 };
        let parent = if depths[wanted] < MAX_DEPTH { wanted } else { 0 };
        depths.push(depths[parent] + 1);
        parents.push(parent);
    }
    parents
}

fn as_it_is(_: usize, _: &mut Task) {}

fn id(task: &Task) -> &str {
    task.id.as_str()
}

async fn mint(stand: &Stand, task: &str, bearer: &str, form: &str) -> Answer {
    let body = json!({"credentials": [{"resource": GIT, "privilege": "read", "type": form}]});
    stand.post(&format!("/v1/tasks/{task}/credentials"), bearer, body).await
}

async fn minted(stand: &Stand, task: &Task) -> String {
    let answer = mint(stand, id(task), &stand.evidence(), "access_token").await.expect(StatusCode::OK);
    text(&answer["credentials"][0], "access_token")
}

/// A token of each.
async fn all_minted(stand: &Stand, tasks: &[Arc<Task>]) -> Vec<String> {
    let mut tokens = Vec::new();
    for some in tasks.chunks(16) {
        tokens.extend(join_all(some.iter().map(|task| minted(stand, task))).await);
    }
    tokens
}

async fn certify(stand: &Stand, task: &str) -> Answer {
    stand.post(&format!("/v1/tasks/{task}/certificate"), &stand.evidence(), json!({"csr": KEYTOOL_CSR})).await
}

async fn renew(stand: &Stand, task: &str) -> Answer {
    stand.post(&format!("/v1/tasks/{task}/renew"), &stand.evidence(), json!({"ttl": 600})).await
}

async fn is_active(stand: &Stand, token: &str) -> bool {
    stand.introspect(token).await["active"] == true
}

/// Whether the list says of all these tasks that they have ended.
async fn all_listed(stand: &Stand, tasks: &[Arc<Task>]) -> bool {
    listed_at(stand, &stand.broker, tasks).await
}

async fn listed_at(stand: &Stand, at: &Server, tasks: &[Arc<Task>]) -> bool {
    let octets = bits(stand, at).await;
    tasks.iter().all(|task| task.status.list == 0 && is_set(&octets, task.status.index.into()))
}

/// How many places of list 0 say that something has ended.
async fn listed(stand: &Stand) -> usize {
    bits(stand, &stand.broker).await.iter().map(|octet| octet.count_ones() as usize).sum()
}

/// The tasks that the feed names.
async fn told(stand: &Stand) -> Vec<String> {
    let entries = entries(stand, &stand.broker, "task").await;
    entries.iter().map(|entry| text(entry, "task")).collect()
}

/// The answer of a revoke, whichever task of a tree was asked for.
fn of_any(mut answer: Value) -> Value {
    answer.as_object_mut().expect("an answer").remove("task");
    settled(answer)
}

both! {
    async fn an_end_of_the_root_is_the_end_of_every_level(mut stand) {
        let (root, first) = stand.task_with_token().await;
        let tree = grow(&mut stand, &root, &deep_and_broad(23), as_it_is).await;
        let depths: HashSet<_> = tree.iter().map(|task| task.id.depth()).collect();
        assert_eq!((tree.len(), depths.len()), (24, MAX_DEPTH + 1));
        let mut tokens = all_minted(&stand, &tree[1..]).await;
        tokens.push(first);
        let places: HashSet<_> = tokens.iter().map(|token| status(token)).collect();
        assert_eq!(places.len(), 24, "each task has a place of its own");
        let below = tree.iter().find(|task| task.id.depth() == 2).unwrap();
        let svid = mint(&stand, id(below), &stand.evidence(), "jwt").await.expect(StatusCode::OK);
        let svid = text(&svid["credentials"][0], "access_token");
        let certificate = Certified::of(certify(&stand, id(below)).await.expect(StatusCode::OK));
        let service = Service::of(&stand.broker).await;
        for token in &tokens {
            assert!(is_active(&stand, token).await);
            service.says(token).unwrap();
        }
        service.says(&svid).unwrap();
        service.says_of_certificate(&certificate.der).unwrap();
        assert_eq!((told(&stand).await.len(), listed(&stand).await), (0, 0));

        let revoked = stand.revoke(&root).await.expect(StatusCode::OK);
        assert_eq!((&revoked["ended_tasks"], &revoked["credentials"]), (&json!(24), &json!(26)));
        for token in tokens.iter().chain([&svid]) {
            assert_eq!(stand.introspect(token).await, json!({"active": false}));
            becomes_revoked(|| service.says(token)).await;
        }
        becomes_revoked(|| service.says_of_certificate(&certificate.der)).await;
        assert_eq!(told(&stand).await, [&*root], "one entry is all that it takes");
        assert!(all_listed(&stand, &tree).await, "at once, where it was revoked");
        assert_eq!(listed(&stand).await, 24);
        certificate.is_revoked_soon(&stand, &stand.broker).await;

        // Nothing of it goes on.
        for task in &tree {
            mint(&stand, id(task), &stand.evidence(), "access_token").await.refused(409, "task_not_active");
            renew(&stand, id(task)).await.refused(409, "task_not_active");
            let shown = stand.get(&format!("/v1/tasks/{}", task.id), VIEWER).await.expect(StatusCode::OK);
            assert_eq!((&shown["state"], &shown["reason"]), (&json!("revoked"), &json!("a test says so")));
        }
        certify(&stand, id(below)).await.refused(409, "task_not_active");
        // Whoever looks where it has arrived, or asks for it again, gets the root's instants.
        let reach = stand.get(&format!("/v1/tasks/{}/reach", below.id), VIEWER).await.expect(StatusCode::OK);
        assert_eq!((&reach["task"], &reach["state"]), (&json!(below.id), &json!("revoked")));
        assert_eq!(time(&reach, "effective_by"), time(&revoked, "effective_by"));
        let again = stand.revoke(id(below)).await.expect(StatusCode::OK);
        assert_eq!(again["task"], json!(below.id));
        assert_eq!(of_any(again), of_any(revoked));
        // What is done stays how it ended.
        let path = format!("/v1/tasks/{}/complete", below.id);
        let done = stand.post(&path, &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        assert_eq!((&done["state"], &done["reason"]), (&json!("revoked"), &json!("a test says so")));
    }

    async fn an_end_below_takes_nothing_above_or_beside(mut stand) {
        let (root, first) = stand.task_with_token().await;
        // A child with a child, and a sibling of that.
        let tree = grow(&mut stand, &root, &[0, 1, 0], as_it_is).await;
        let tokens = all_minted(&stand, &tree[1..]).await;
        let service = Service::of(&stand.broker).await;
        let revoked = stand.revoke(id(&tree[1])).await.expect(StatusCode::OK);
        assert_eq!((&revoked["ended_tasks"], &revoked["credentials"]), (&json!(2), &json!(2)));
        for dead in &tokens[..2] {
            assert!(!is_active(&stand, dead).await);
            becomes_revoked(|| service.says(dead)).await;
        }
        assert!(all_listed(&stand, &tree[1..3]).await);
        assert_eq!(listed(&stand).await, 2);
        for alive in [&first, &tokens[2]] {
            assert!(is_active(&stand, alive).await);
            service.says(alive).unwrap();
        }
        for task in &tree[1..3] {
            mint(&stand, id(task), &stand.evidence(), "access_token").await.refused(409, "task_not_active");
        }
        for task in [&tree[0], &tree[3]] {
            minted(&stand, task).await;
            renew(&stand, id(task)).await.expect(StatusCode::OK);
        }
        assert_eq!(told(&stand).await, [id(&tree[1])]);
        // What a completed task has below it ends with it too.
        let path = format!("/v1/tasks/{root}/complete");
        stand.post(&path, &stand.evidence(), json!({})).await.expect(StatusCode::OK);
        for dead in [&first, &tokens[2]] {
            assert!(!is_active(&stand, dead).await);
            becomes_revoked(|| service.says(dead)).await;
        }
        assert!(all_listed(&stand, &tree).await);
        // That it was revoked before is how the first of them ended.
        let state = async |task: &Task| text(&stand.get(&format!("/v1/tasks/{}", task.id), VIEWER).await.json(), "state");
        let states = [state(&tree[0]).await, state(&tree[1]).await, state(&tree[2]).await, state(&tree[3]).await];
        assert_eq!(states, ["completed", "revoked", "revoked", "completed"]);
    }

    /// A task below is another instance's. Whoever holds the one above may end it, and nobody below ends what is above.
    async fn each_instance_ends_what_is_its_own_and_below(mut stand) {
        let (root, first) = stand.task_with_token().await;
        let tree = grow(&mut stand, &root, &[0, 1, 0], |_, task| task.instance = "2.1".to_owned()).await;
        let (parent, child) = (stand.evidence(), stand.other_instance());
        for task in &tree[1..] {
            mint(&stand, id(task), &child, "access_token").await.expect(StatusCode::OK);
            mint(&stand, id(task), &parent, "access_token").await.refused(404, "not_found");
        }
        let revoke = async |task: &str, bearer: &str| {
            stand.post(&format!("/v1/tasks/{task}/revoke"), bearer, json!({"reason": "r"})).await
        };
        revoke(&root, &child).await.refused(404, "not_found");
        assert!(is_active(&stand, &first).await);
        assert_eq!(revoke(id(&tree[2]), &parent).await.expect(StatusCode::OK)["ended_tasks"], 1);
        assert_eq!(revoke(id(&tree[1]), &child).await.expect(StatusCode::OK)["ended_tasks"], 1);
        assert_eq!(revoke(&root, &parent).await.expect(StatusCode::OK)["ended_tasks"], 2);
    }

    /// What has ended is in the journal and in the store, and what is below is found again.
    async fn a_restart_forgets_nothing_of_a_tree(mut stand) {
        let (root, first) = stand.task_with_token().await;
        let tree = grow(&mut stand, &root, &deep_and_broad(11), as_it_is).await;
        let mut tokens = all_minted(&stand, &tree[1..]).await;
        tokens.push(first);
        let below = tree.last().unwrap();
        let certificate = Certified::of(certify(&stand, id(below)).await.expect(StatusCode::OK));
        stand.revoke(&root).await.expect(StatusCode::OK);
        stand.restart_broker().await;
        assert!(all_listed(&stand, &tree).await);
        let service = Service::of(&stand.broker).await;
        for token in &tokens {
            assert!(!is_active(&stand, token).await && service.says(token).is_err());
        }
        certificate.is_revoked_soon(&stand, &stand.broker).await;
        mint(&stand, id(below), &stand.evidence(), "access_token").await.refused(409, "task_not_active");
    }
}

/// What one broker ends, another one denies: at every level, to whoever asks, and in what it tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_broker_hears_of_a_tree() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (root, _) = stand.task_with_token().await;
    let tree = grow(&mut stand, &root, &deep_and_broad(11), as_it_is).await;
    let tokens = all_minted(&stand, &tree[1..]).await;
    let service = Service::of(&stand.broker).await;
    let path = format!("/v1/tasks/{root}/revoke");
    let revoked = stand.call_at(&second, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "r"}))).await;
    assert_eq!(revoked.expect(StatusCode::OK)["ended_tasks"], 12);
    for token in &tokens {
        assert_eq!(stand.introspect(token).await, json!({"active": false}));
    }
    for token in &tokens {
        wait_for("the feed", || async { service.says(token).is_err() }).await;
    }
    assert_eq!(told(&stand).await, [root]);
    for broker in [&second, &stand.broker] {
        wait_for("the list", || async { listed_at(&stand, broker, &tree).await }).await;
    }
}

mod locked_out {
    use super::*;

    const LOCKS: &str = "/v1/locks";

    /// Locks, and waits until everything that it matches has ended: after a dry run has counted so many tasks.
    async fn lock(stand: &Stand, lock: Value, tasks: usize) -> String {
        let counted = stand.post(&format!("{LOCKS}?dry_run=true"), RESPONDER, lock.clone()).await;
        assert_eq!(counted.expect(StatusCode::OK)["active"], tasks);
        let id = text(&stand.post(LOCKS, RESPONDER, lock).await.expect(StatusCode::CREATED), "lock");
        let show =
            async || stand.get(&format!("{LOCKS}/{id}"), VIEWER).await.expect(StatusCode::OK)["progress"].clone();
        wait_for("the lock to be expanded", || async { show().await["done"] == true }).await;
        let progress = show().await;
        assert_eq!((&progress["matched"], &progress["revoked"]), (&json!(tasks), &json!(tasks)), "{progress}");
        id
    }

    async fn release(stand: &Stand, lock: &str) {
        let path = format!("{LOCKS}/{lock}/release");
        stand.post(&path, APPROVER, json!({"reason": "it was a drill"})).await.expect(StatusCode::OK);
    }

    both! {
        crate::support::people();

        async fn with_everything_below(mut stand) {
            for matches in [
                json!({"owner": OWNER}),
                json!({"sandbox": "sb-7f3"}),
                json!({"workload": "spiffe://example.com/ci/*"}),
            ] {
                let (root, first) = stand.task_with_token().await;
                let tree = grow(&mut stand, &root, &deep_and_broad(11), as_it_is).await;
                let mut tokens = all_minted(&stand, &tree[1..]).await;
                tokens.push(first);
                let before = told(&stand).await;
                let locked = lock(&stand, json!({"match": matches, "reason": "a drill"}), 12).await;
                for token in &tokens {
                    assert!(!is_active(&stand, token).await, "{matches}");
                }
                for task in &tree {
                    mint(&stand, id(task), &stand.evidence(), "access_token").await.refused(403, "locked");
                    renew(&stand, id(task)).await.refused(403, "locked");
                }
                let mut now = told(&stand).await;
                now.retain(|task| !before.contains(task));
                assert_eq!(now, [root], "one end for all of the tree");
                assert!(all_listed(&stand, &tree).await);
                release(&stand, &locked).await;
                for (task, token) in tree.iter().zip(&tokens) {
                    mint(&stand, id(task), &stand.evidence(), "access_token").await.refused(409, "task_not_active");
                    assert!(!is_active(&stand, token).await);
                }
            }
        }

        /// A certificate says neither whose it is nor in which sandbox: the end of the task at the top does it.
        async fn with_the_certificates_below(mut stand) {
            let (root, _) = stand.task_with_token().await;
            let tree = grow(&mut stand, &root, &[0, 1], as_it_is).await;
            let below = id(&tree[2]);
            let certificate = Certified::of(certify(&stand, below).await.expect(StatusCode::OK));
            let service = Service::of(&stand.broker).await;
            service.says_of_certificate(&certificate.der).unwrap();
            lock(&stand, json!({"match": {"owner": OWNER}, "reason": "r"}), 3).await;
            becomes_revoked(|| service.says_of_certificate(&certificate.der)).await;
            certificate.is_revoked_soon(&stand, &stand.broker).await;
            certify(&stand, below).await.refused(403, "locked");
        }

        /// What is below one that is matched is whosever it says it is, and ends all the same; what is above one lives on.
        async fn where_it_is_matched(mut stand) {
            let (root, first) = stand.task_with_token().await;
            let words = |number: usize, task: &mut Task| {
                let (owner, sandbox) = [(OWNER, "a"), (OWNER, "b"), ("other@example.com", "c"), (OWNER, "b")][number - 1];
                (task.owner, task.sandbox) = (owner.to_owned(), Some(sandbox.to_owned()));
            };
            // A child, and below it one that is matched, with another below, which is not; and a sibling that is.
            let tree = grow(&mut stand, &root, &[0, 1, 2, 1], words).await;
            let tokens = all_minted(&stand, &tree[1..]).await;
            lock(&stand, json!({"match": {"sandbox": "b"}, "reason": "r"}), 3).await;
            let mut alive = Vec::new();
            for token in [&first].into_iter().chain(&tokens) {
                alive.push(is_active(&stand, token).await);
            }
            assert_eq!(alive, [true, true, false, false, false]);
            mint(&stand, id(&tree[3]), &stand.evidence(), "access_token").await.refused(403, "locked");
            minted(&stand, &tree[1]).await;
            let (mut ended, mut expected) = (told(&stand).await, vec![id(&tree[2]), id(&tree[4])]);
            ended.sort_unstable();
            expected.sort_unstable();
            assert_eq!(ended, expected);
        }

        /// What was delegated since a moment goes, and what was there before stays.
        async fn since_a_moment(mut stand) {
            let (root, first) = stand.task_with_token().await;
            let before = grow(&mut stand, &root, &[0], as_it_is).await;
            let old = minted(&stand, &before[1]).await;
            let since = DateTime::from_timestamp(SystemClock.now().timestamp() + 1, 0).unwrap();
            wait_for("the next second", || async { SystemClock.now() >= since }).await;
            let after = grow(&mut stand, id(&before[1]), &[0, 1, 1, 0], as_it_is).await;
            let new = all_minted(&stand, &after[1..]).await;
            let window = json!({"match": {"all": true}, "declared_after": since, "reason": "since then"});
            lock(&stand, window, 4).await;
            for token in &new {
                assert!(!is_active(&stand, token).await);
            }
            for token in [&first, &old] {
                assert!(is_active(&stand, token).await);
            }
            minted(&stand, &before[1]).await;
            assert_eq!(told(&stand).await.len(), 2, "of the two that were declared below what stays");
        }
    }

    /// More tasks than are looked at in one step.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thousand_tasks_of_a_tree() {
        let mut stand = Stand::with(Store::Redis, &people()).await;
        let (root, _) = stand.task_with_token().await;
        let tree = grow(&mut stand, &root, &deep_and_broad(999), as_it_is).await;
        let deepest = minted(&stand, tree.iter().max_by_key(|task| task.id.depth()).unwrap()).await;
        lock(&stand, json!({"match": {"owner": OWNER}, "reason": "r"}), 1000).await;
        assert!(!is_active(&stand, &deepest).await);
        assert_eq!(told(&stand).await, [root]);
        assert!(all_listed(&stand, &tree).await);
    }
}

/// The number of store operations does not depend on the number of tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoke_costs_the_same_for_one_task_and_a_tree_of_a_thousand() {
    let mut stand = Stand::new(Store::Redis).await;
    // The first revoke of a Redis loads the script.
    stand.revoke(&stand.task_with_token().await.0).await.expect(StatusCode::OK);
    cost_the_same(async |many| {
        let tasks = if many { 1000 } else { 1 };
        let (root, _) = stand.task_with_token().await;
        let tree = grow(&mut stand, &root, &deep_and_broad(tasks - 1), as_it_is).await;
        let deepest = minted(&stand, tree.iter().max_by_key(|task| task.id.depth()).unwrap()).await;
        let redis = stand.redis.as_ref().unwrap();
        redis.cli(&["config", "resetstat"]).await;
        let answer = stand.revoke(&root).await.expect(StatusCode::OK);
        let counted = command_counts(&redis.cli(&["info", "commandstats"]).await);
        assert_eq!((&answer["ended_tasks"], &answer["credentials"]), (&json!(tasks), &json!(2)));
        assert!(!is_active(&stand, &deepest).await);
        assert!(all_listed(&stand, &tree).await);
        counted
    })
    .await;
}
