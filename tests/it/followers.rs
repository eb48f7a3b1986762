//! A service that embeds `remit::verify` and follows a broker as it is: it denies what an entry of the feed names, whatever keys it still
//! holds, and accepts what stands beside it.

use remit::{
    clock::Moment,
    verify::{Denial, FollowTerms, Follower, Following, Rejected, Verifier},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

use crate::{
    both,
    certificates::certified,
    feed::snapshot,
    rotation::{in_state, list, signer},
    support::{GIT, Server, Stand, Store, text, wait_for},
    taint::{taint, taint_at},
};

/// A verifier, and what keeps it up to date.
pub(crate) struct Service {
    verifier: Verifier<Following>,
    _following: JoinSet<()>,
}

impl Service {
    pub(crate) async fn of(at: &Server) -> Self {
        let follower = Follower::new(&FollowTerms::of(&at.url)).unwrap();
        let feed = follower.feed();
        let mut following = JoinSet::new();
        following.spawn(follower.run());
        tokio::time::timeout(Duration::from_secs(10), feed.ready()).await.expect("a first state");
        Self { verifier: Verifier::following(feed, GIT.parse().unwrap()), _following: following }
    }

    pub(crate) fn says(&self, token: &str) -> Result<(), Rejected> {
        self.verifier.verify(token, &Moment::now()).map(|_| ())
    }

    pub(crate) fn says_of_certificate(&self, der: &[u8]) -> Result<(), Rejected> {
        self.verifier.verify_certificate(der, &Moment::now()).map(|_| ())
    }
}

/// Waits until it is told apart from what it was, which is within a second: no heartbeat is waited for, and no set of keys.
pub(crate) async fn becomes_revoked(mut says: impl FnMut() -> Result<(), Rejected>) {
    let begun = Instant::now();
    loop {
        match says() {
            Err(Rejected::Denied(Denial::Revoked)) => return,
            Ok(()) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "still accepted");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The entries of this kind in a whole state.
pub(crate) async fn entries(stand: &Stand, at: &Server, kind: &str) -> Vec<Value> {
    let state = snapshot(stand, at, "n").await;
    state["entries"].as_array().unwrap().iter().filter(|entry| entry.get(kind).is_some()).cloned().collect()
}

both! {
    async fn a_tainted_key_is_dead_while_its_set_is_still_held(stand) {
        let (task, token) = stand.task_with_token().await;
        let service = Service::of(&stand.broker).await;
        service.says(&token).unwrap();
        let kid = signer(&stand).await;
        taint(&stand, &kid).await;
        becomes_revoked(|| service.says(&token)).await;
        let told = entries(&stand, &stand.broker, "key").await;
        let lasts = told[0]["until"].as_f64().unwrap() - told[0]["at"].as_f64().unwrap();
        assert_eq!((told.len(), &told[0]["key"], lasts), (1, &json!(kid), 172_800.0));
        // Nothing more is told when it is asked for again, and another key is another matter.
        taint(&stand, &kid).await;
        assert_eq!(entries(&stand, &stand.broker, "key").await, told);
        let again = text(&stand.mint(&task).await.expect(StatusCode::OK)["credentials"][0], "access_token");
        let late = Service::of(&stand.broker).await;
        late.says(&again).unwrap();
        assert!(late.says(&token).is_err());
    }

    async fn a_tainted_authority_takes_its_certificates_with_it(stand) {
        let (_, certificate) = certified(&stand).await;
        let (_, token) = stand.task_with_token().await;
        let service = Service::of(&stand.broker).await;
        service.says_of_certificate(&certificate.der).unwrap();
        let authorities = in_state(&list(&stand).await, "signing");
        let authority = text(authorities.iter().find(|key| key["use"] == "x509_svid").unwrap(), "kid");
        taint(&stand, &authority).await;
        becomes_revoked(|| service.says_of_certificate(&certificate.der)).await;
        service.says(&token).unwrap();
    }

    /// Whoever follows goes on with the next key of the feed, and with nobody who still has the old one.
    async fn a_tainted_key_of_the_feed_is_followed_no_more(stand) {
        let (_, token) = stand.task_with_token().await;
        let service = Service::of(&stand.broker).await;
        let states = in_state(&list(&stand).await, "signing");
        taint(&stand, &text(states.iter().find(|key| key["use"] == "revocations").unwrap(), "kid")).await;
        assert_eq!(entries(&stand, &stand.broker, "key").await.len(), 1);
        wait_for("the next key", || async { service.says(&token).is_ok() }).await;
    }

    async fn a_restart_tells_of_a_tainted_key_again(mut stand) {
        let kid = signer(&stand).await;
        taint(&stand, &kid).await;
        let told = entries(&stand, &stand.broker, "key").await;
        stand.restart_broker().await;
        assert_eq!(entries(&stand, &stand.broker, "key").await, told);
        // A broker that lost its journal finds the taint on record.
        stand.broker.stop().await;
        std::fs::remove_file(stand.dir.path().join("broker-journal/revocations")).unwrap();
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        wait_for("the entry", || async { entries(&stand, &stand.broker, "key").await == told }).await;
    }
}

/// Every broker on a store tells of it, and one that knows tells a store that has lost it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_broker_tells_of_a_tainted_key() {
    let mut stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let (_, token) = stand.task_with_token().await;
    let kid = signer(&stand).await;
    taint_at(&stand, &stand.broker, &kid).await.expect(StatusCode::OK);
    wait_for("the other broker", || async { entries(&stand, &second, "key").await.len() == 1 }).await;
    assert_eq!(entries(&stand, &second, "key").await, entries(&stand, &stand.broker, "key").await);
    stand.broker.stop().await;
    let redis = stand.redis.as_mut().unwrap();
    redis.cli(&["DEL", "remit:ends", &format!("remit:taint:{kid}")]).await;
    redis.kill().await;
    redis.start_again().await;
    wait_for("the log and the record", || async {
        let redis = stand.redis.as_ref().unwrap();
        redis.cli(&["XLEN", "remit:ends"]).await.trim() == "1"
            && redis.cli(&["EXISTS", &format!("remit:taint:{kid}")]).await.trim() == "1"
    })
    .await;
    let asked = stand.introspect_at(&second, crate::support::GIT_TOKEN, &token).await;
    assert_eq!(asked, json!({"active": false}));
    stand.call_at(&second, Method::GET, "/readyz", None, None).await.expect(StatusCode::OK);
}
