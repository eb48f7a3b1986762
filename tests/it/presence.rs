//! Keys of a broker that is gone go after it; one that was only away, or is taken for gone, loses nothing that is valid.

use chrono::TimeDelta;
use reqwest::StatusCode;
use serde_json::{Value, json};
use std::{collections::BTreeSet, time::Duration};

use crate::{
    rotation::{in_state, kids},
    rs256,
    support::{Answer, Frozen, GIT_TOKEN, Redis, VIEWER, audit_of, client, declaration, part, text, time, wait_for},
};

/// Long enough for a broker to have looked around once.
const A_LOOK: Duration = Duration::from_millis(2500);

fn signing(list: &Value) -> BTreeSet<String> {
    kids(&in_state(list, "signing"))
}

fn retired(list: &Value) -> BTreeSet<String> {
    kids(&in_state(list, "retired"))
}

async fn is_ready(broker: &Frozen) -> bool {
    client().get(broker.at("/readyz")).send().await.unwrap().status() == StatusCode::OK
}

/// Waits until nothing of what was published in the past keeps a broker from signing.
async fn ready(broker: &Frozen) {
    broker.clock.advance(TimeDelta::seconds(1));
    wait_for("the broker", || is_ready(broker)).await;
}

/// A broker on a Redis, and another with the same name and keys of its own.
async fn two_on(redis: &Redis) -> [Frozen; 2] {
    let on_redis = |text: &str| text.replace("redb:remit.redb", &redis.url());
    let first = Frozen::start(on_redis).await;
    let key = first.dir.path().join("store.key");
    let issuer = first.running.broker.issuer().to_owned();
    let second = Frozen::start_in(tempfile::tempdir().unwrap(), |dir, text| {
        std::fs::copy(&key, dir.join("store.key")).unwrap();
        let own = text.split('"').nth(1).unwrap().to_owned();
        on_redis(text).replacen(&own, &issuer, 1)
    });
    let second = second.await;
    ready(&second).await;
    [first, second]
}

impl Frozen {
    /// Where it listens: brokers that share a name do not share that.
    fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.http.unwrap())
    }

    async fn show(&self, path: &str) -> Value {
        let request = client().get(self.at(path)).bearer_auth(VIEWER);
        Answer::of(request.send().await.unwrap()).await.expect(StatusCode::OK)
    }

    async fn shows(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for path in ["/jwks", "/spiffe/bundle", "/ssf/v1/jwks", "/v1/revocations/jwks"] {
            found.extend(kids(self.show(path).await["keys"].as_array().unwrap()));
        }
        found
    }
}

/// The keys that were there before the directory was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_nobody_has_any_more_go() {
    let mut broker = Frozen::start(str::to_owned).await;
    let lost = signing(&broker.show("/v1/keys").await);
    let keys = broker.dir.path().join("broker-keys");
    let aside = broker.dir.path().join("aside");
    broker = broker.restart(|| std::fs::rename(&keys, &aside).unwrap()).await;
    ready(&broker).await;
    let shown = broker.show("/v1/keys").await;
    let own = signing(&shown);
    assert!(own.is_disjoint(&lost) && kids(&in_state(&shown, "published")) == lost);
    // Not seen for nearly ten minutes.
    tokio::time::sleep(A_LOOK).await;
    broker.clock.advance(TimeDelta::minutes(9));
    tokio::time::sleep(A_LOOK).await;
    assert_eq!(retired(&broker.show("/v1/keys").await), BTreeSet::new());
    retires(&broker, &lost).await;
    // What they may have signed is still valid somewhere.
    let shown = broker.show("/v1/keys").await;
    let at = |member: &str| time(&in_state(&shown, "retired")[0], member);
    assert_eq!(at("published_until"), at("retired_at") + TimeDelta::hours(48));
    assert_eq!(broker.shows().await, &own | &lost);
    assert_eq!(signing(&shown), own);
    broker.clock.advance(TimeDelta::hours(48));
    assert_eq!(broker.shows().await, own);
    tokio::time::sleep(A_LOOK).await;
    assert_eq!(signing(&broker.show("/v1/keys").await), own, "a broker that is there keeps its keys");
    let audit = audit_of(&broker.dir.path().join("broker-audit"));
    let abandoned = audit.iter().filter(|line| line["event"] == "key_abandoned");
    assert_eq!(abandoned.map(|line| text(line, "kid")).collect::<BTreeSet<_>>(), lost);
    // They come back, and sign nothing.
    broker = broker
        .restart(|| {
            std::fs::remove_dir_all(&keys).unwrap();
            std::fs::rename(&aside, &keys).unwrap();
        })
        .await;
    let new = signing(&broker.show("/v1/keys").await);
    assert!(new.is_disjoint(&lost) && new.is_disjoint(&own));
    assert!(broker.shows().await.is_disjoint(&lost));
    broker.running.stop().await;
}

/// The key that a broker has imported is in use as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_imported_key_of_a_broker_that_is_there_stays() {
    let broker = Frozen::start(str::to_owned).await;
    rs256::make(&broker.dir.path().join("broker-keys").join(rs256::KEY), 2048);
    let prepared = async || in_state(&broker.show("/v1/keys").await, "prepared").len() == 1;
    wait_for("the imported key", prepared).await;
    broker.clock.advance(TimeDelta::seconds(1));
    let own = signing(&broker.show("/v1/keys").await);
    assert_eq!(own.len(), 7);
    for _ in 0..3 {
        broker.clock.advance(TimeDelta::minutes(11));
        tokio::time::sleep(A_LOOK).await;
    }
    let shown = broker.show("/v1/keys").await;
    assert_eq!((signing(&shown), retired(&shown)), (own, BTreeSet::new()));
    broker.running.stop().await;
}

/// A broker that is there is seen, however far apart the clocks are; and one that is taken for gone changes its keys, while what it
/// signs is valid all the time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_taken_for_gone_changes_its_keys() {
    let redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let [first, second] = two_on(&redis).await;
    let of_first = signing(&first.show("/v1/keys").await);
    for _ in 0..2 {
        tokio::time::sleep(A_LOOK).await;
        second.clock.advance(TimeDelta::hours(12));
    }
    tokio::time::sleep(A_LOOK).await;
    assert_eq!(retired(&second.show("/v1/keys").await), BTreeSet::new());
    // What the first one has shown is lost, and it does not show it again: its clock stands still.
    forget(&redis, &of_first).await;
    retires(&second, &of_first).await;
    let token = minted(&first).await;
    let kid = text(&part(&token, 0), "kid");
    assert!(of_first.contains(&kid) && is_active(&first, &token).await);
    // The first one learns of it when it looks around, and changes them as old ones.
    first.clock.advance(TimeDelta::minutes(1));
    wait_for("the next keys", async || in_state(&first.show("/v1/keys").await, "prepared").len() == 6).await;
    assert_eq!(first.shows().await, second.shows().await);
    assert!(is_ready(&first).await && of_first.is_subset(&second.shows().await));
    first.clock.advance(TimeDelta::seconds(1));
    wait_for("the change", async || changed(&first, &of_first).await).await;
    assert!(is_active(&first, &token).await && second.shows().await.contains(&kid));
    for broker in [first, second] {
        broker.running.stop().await;
    }
}

/// A broker that was cut off until its keys were published no more comes back with new ones, and waits until they are known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_away_for_long_joins_again() {
    let redis = Redis::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let [first, second] = two_on(&redis).await;
    let of_first = signing(&first.show("/v1/keys").await);
    forget(&redis, &of_first).await;
    retires(&second, &of_first).await;
    first.clock.advance(TimeDelta::hours(49));
    wait_for("the new keys", async || changed(&first, &of_first).await).await;
    let new = signing(&first.show("/v1/keys").await);
    assert!(!is_ready(&first).await, "not everybody can know them");
    assert!(new.len() == 6 && new.is_subset(&second.shows().await) && first.shows().await.is_disjoint(&of_first));
    ready(&first).await;
    for broker in [first, second] {
        broker.running.stop().await;
    }
}

async fn changed(broker: &Frozen, before: &BTreeSet<String>) -> bool {
    let now = signing(&broker.show("/v1/keys").await);
    now.len() == 6 && now.is_disjoint(before)
}

/// What was shown of these keys is lost, once it was shown.
async fn forget(redis: &Redis, kids: &BTreeSet<String>) {
    for kid in kids {
        let record = format!("remit:presence:{kid}");
        wait_for("the presence", async || redis.cli(&["DEL", &record]).await.trim() == "1").await;
    }
}

/// Minutes pass for a broker until it has retired these keys, and no others.
async fn retires(broker: &Frozen, kids: &BTreeSet<String>) {
    for _ in 0..40 {
        if retired(&broker.show("/v1/keys").await) == *kids {
            return;
        }
        broker.clock.advance(TimeDelta::minutes(1));
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    panic!("they are still published");
}

/// A token that a broker minted just now, by its own clock.
async fn minted(broker: &Frozen) -> String {
    let (from, until) = (broker.now(), broker.now() + 300);
    let times = json!({"iat": from, "nbf": from, "exp": until});
    let evidence = broker.issuer.evidence(broker.running.broker.issuer(), times);
    let request = client().post(broker.at("/v1/tasks")).bearer_auth(evidence).json(&declaration());
    let declared = Answer::of(request.send().await.unwrap()).await.expect(StatusCode::CREATED);
    text(&declared["credentials"][0], "access_token")
}

async fn is_active(broker: &Frozen, token: &str) -> bool {
    let request = client().post(broker.at("/oauth2/introspect")).bearer_auth(GIT_TOKEN);
    let answer = Answer::of(request.form(&[("token", token)]).send().await.unwrap()).await;
    answer.expect(StatusCode::OK)["active"] == true
}
