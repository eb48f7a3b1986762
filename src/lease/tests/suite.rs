//! What every store does.

use super::*;
use crate::{
    lease::{
        CertificateLease, LeaseEnd, PostedCrl, Remembered, Retirement, StandingKey, Taint, Tally, Timeline,
        TimelineEvent,
    },
    task::STATUS_LIST_ENTRIES,
};
use std::collections::HashSet;

/// Runs every scenario over every store.
macro_rules! over_both {
    ($($scenario:ident),* $(,)?) => {
        mod redis { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $scenario() {
            super::$scenario(super::World::redis().await).await;
        })* }
        mod redb { $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)] async fn $scenario() {
            super::$scenario(super::World::redb().await).await;
        })* }
    };
}
pub(super) use over_both;

over_both![
    a_task_lives_until_it_ends,
    a_task_is_declared_once,
    nothing_is_minted_for_a_task_that_is_not_there,
    a_renewal_moves_the_deadline_and_never_back,
    an_end_takes_the_subtree_and_nothing_above,
    a_completed_child_stays_completed,
    an_end_may_overtake_the_declaration,
    an_end_is_recorded_once,
    an_end_is_effective_once_it_is_recorded,
    no_mint_survives_the_end_it_raced,
    tasks_are_listed_newest_first,
    a_retry_finds_the_first_answer,
    what_serves_once_serves_one,
    evidence_serves_the_first_key,
    keys_are_published_once,
    a_taint_stands_and_needs_no_other_record,
    a_dead_lease_takes_no_other_with_it,
    a_restart_forgets_nothing,
    no_two_tasks_have_one_place,
    a_full_status_list_is_followed_by_another,
    an_end_stands_in_the_status_list,
    an_end_of_nothing_known_stands_nowhere,
    the_places_of_a_tree_are_found,
    a_certificate_is_listed_until_it_ends,
    a_list_of_one_broker_is_had_from_another,
    a_timeline_is_of_a_tree_and_all_brokers,
    a_timeline_holds_its_beginning_and_what_is_newest,
];

async fn a_task_lives_until_it_ends(world: World) {
    let ledger = &world.ledger;
    assert_eq!(ledger.generation(), 1);
    ledger.check().await.unwrap();
    let (task, first) = declared(ledger, &root()).await;
    let second = lease(&task.id);
    assert!(matches!(ledger.mint(&task, std::slice::from_ref(&second)).await.unwrap(), Written::Done));

    let cold = world.another(7).await.unwrap();
    for ledger in [ledger, &cold] {
        let (lease, held) = ledger.live(&task.id, &first.id, "a key").await.unwrap().expect("alive");
        assert_eq!((lease, held.task, held.expires_at), (first.clone(), task.clone(), task.expires_at));
        assert!(lives(ledger, &second).await);
        assert!(ledger.live(&task.id, &LeaseId::random().unwrap(), "a key").await.unwrap().is_none());
        assert_eq!(ledger.declared(&task.id).await.unwrap(), Some(task.clone()));
        assert!(ledger.task(&task.id).await.unwrap().unwrap().end.is_none());
    }

    let stopped = revoke(ledger, &task.id).await;
    assert_eq!(stopped.task, Some(task.clone()));
    let latest_expiry = first.expires_at.max(second.expires_at).timestamp();
    assert_eq!(stopped.tally, Tally { ended_tasks: 1, credentials: 2, latest_expiry });
    for ledger in [ledger, &cold] {
        assert!(!lives(ledger, &first).await && !lives(ledger, &second).await);
        let refused = ledger.mint(&task, &[lease(&task.id)]).await.unwrap();
        assert!(matches!(refused, Written::Ended(end) if end == stopped.end));
        assert_eq!(ledger.task(&task.id).await.unwrap().unwrap().end, Some(stopped.end.clone()));
        let found = ledger.leases(&task.id, &[first.id.clone(), LeaseId::random().unwrap()]).await.unwrap();
        assert_eq!(found, [Some(first.clone()), None]);
    }
}

async fn a_task_is_declared_once(world: World) {
    let (declared, _) = declared(&world.ledger, &root()).await;
    let again = lease(&declared.id);
    let written = world.ledger.declare(&task(&declared.id), std::slice::from_ref(&again)).await.unwrap();
    assert!(matches!(written, Written::Exists));
    assert!(!lives(&world.ledger, &again).await);
    assert_eq!(world.ledger.task(&declared.id).await.unwrap().unwrap().task, declared);
}

async fn nothing_is_minted_for_a_task_that_is_not_there(world: World) {
    let (ledger, unknown) = (&world.ledger, root());
    assert!(matches!(ledger.mint(&task(&unknown), &[lease(&unknown)]).await.unwrap(), Written::Missing));
    let orphan = unknown.child().unwrap();
    assert!(matches!(ledger.declare(&task(&orphan), &[]).await.unwrap(), Written::Missing));
    assert!(ledger.task(&orphan).await.unwrap().is_none());
    assert!(ledger.declared(&unknown).await.unwrap().is_none());
    assert!(ledger.end(&end_of(&unknown, State::Revoked), tomorrow(), false).await.unwrap().is_none());

    let (task, of_task) = declared(ledger, &root()).await;
    world.tamper(&Key::Task(task.id.clone()), None).await;
    assert!(matches!(ledger.mint(&task, &[lease(&task.id)]).await.unwrap(), Written::Missing));
    assert!(!lives(ledger, &of_task).await);
}

async fn a_renewal_moves_the_deadline_and_never_back(world: World) {
    let ledger = &world.ledger;
    let cold = world.another(7).await.unwrap();
    let (task, first) = declared(ledger, &root()).await;
    let longest = after(now(), 3600).unwrap();
    assert_eq!(ledger.deadline(&task, longest).await.unwrap(), task.expires_at);
    let renew = async |ledger: &Ledger, seconds: u32| {
        let (written, stands) = ledger.renew(&task, now(), after(now(), seconds).unwrap()).await.unwrap();
        assert!(matches!(written, Written::Done));
        stands
    };
    assert_eq!(renew(ledger, 60).await, task.expires_at, "earlier than it was");
    let later = renew(ledger, 1800).await;
    assert!(later > task.expires_at);
    assert_eq!(renew(&cold, 1000).await, later, "another broker knows of it");
    for ledger in [ledger, &cold] {
        assert_eq!(ledger.deadline(&task, longest).await.unwrap(), later);
        assert_eq!(ledger.task(&task.id).await.unwrap().unwrap().expires_at, later);
        assert_eq!(ledger.live(&task.id, &first.id, "a key").await.unwrap().unwrap().1.expires_at, later);
        let (listed, _) = ledger.tasks(None, 10).await.unwrap();
        assert_eq!(listed.iter().map(|held| held.expires_at).collect::<Vec<_>>(), [later]);
    }
    // Two at once: the later of both stands, whoever is first.
    let (one, other) = tokio::join!(renew(ledger, 2400), renew(&cold, 2500));
    let stands = ledger.task(&task.id).await.unwrap().unwrap().expires_at;
    assert_eq!(stands, one.max(other));
    let stopped = revoke(ledger, &task.id).await;
    assert_eq!(stopped.expires_at, Some(stands));
    let (written, _) = cold.renew(&task, now(), after(now(), 3000).unwrap()).await.unwrap();
    assert!(matches!(written, Written::Ended(end) if end == stopped.end));
    let missing = super::task(&root());
    assert!(matches!(ledger.renew(&missing, now(), longest).await.unwrap(), (Written::Missing, _)));
}

async fn an_end_takes_the_subtree_and_nothing_above(world: World) {
    let ledger = &world.ledger;
    let (root, of_root) = declared(ledger, &root()).await;
    let (child, of_child) = declared(ledger, &root.id.child().unwrap()).await;
    let (grandchild, of_grandchild) = declared(ledger, &child.id.child().unwrap()).await;
    let (_, of_sibling) = declared(ledger, &root.id.child().unwrap()).await;

    let stopped = revoke(ledger, &child.id).await;
    assert_eq!((stopped.tally.ended_tasks, stopped.tally.credentials), (2, 2));
    assert!(lives(ledger, &of_root).await && lives(ledger, &of_sibling).await);
    assert!(!lives(ledger, &of_child).await && !lives(ledger, &of_grandchild).await);
    let refused = ledger.mint(&grandchild, &[lease(&grandchild.id)]).await.unwrap();
    assert!(matches!(refused, Written::Ended(end) if end.task == child.id));
    let late = grandchild.id.child().unwrap();
    assert!(matches!(ledger.declare(&task(&late), &[]).await.unwrap(), Written::Ended(_)));

    let stopped = revoke(ledger, &root.id).await;
    assert_eq!((stopped.tally.ended_tasks, stopped.tally.credentials), (2, 4));
    assert!(!lives(ledger, &of_root).await && !lives(ledger, &of_sibling).await);
}

async fn a_completed_child_stays_completed(world: World) {
    let ledger = &world.ledger;
    let (root, _) = declared(ledger, &root()).await;
    let (child, _) = declared(ledger, &root.id.child().unwrap()).await;
    let completed = ledger.end(&end_of(&child.id, State::Completed), tomorrow(), false).await.unwrap().unwrap();
    let revoked = revoke(ledger, &root.id).await;
    let held = ledger.task(&child.id).await.unwrap().unwrap();
    assert_eq!(held.end, Some(completed.end.clone()));
    let again = revoke(ledger, &child.id).await;
    assert_eq!((again.end, again.tally), (completed.end, completed.tally));
    let again = revoke(ledger, &root.id).await;
    assert_eq!((again.end, again.tally.ended_tasks), (revoked.end, 1));
}

async fn an_end_may_overtake_the_declaration(world: World) {
    let (ledger, id) = (&world.ledger, root());
    let stopped = ledger.end(&end_of(&id, State::Revoked), tomorrow(), true).await.unwrap().unwrap();
    assert_eq!((stopped.task, stopped.tally), (None, Tally::default()));
    let refused = ledger.declare(&task(&id), &[lease(&id)]).await.unwrap();
    assert!(matches!(refused, Written::Ended(end) if end == stopped.end));
    let refused = ledger.declare(&task(&id.child().unwrap()), &[]).await.unwrap();
    assert!(matches!(refused, Written::Ended(end) if end == stopped.end));
    assert!(ledger.task(&id).await.unwrap().is_none());
}

async fn an_end_is_recorded_once(world: World) {
    let ledger = &world.ledger;
    let (task, _) = declared(ledger, &root()).await;
    let first = revoke(ledger, &task.id).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    let again = revoke(ledger, &task.id).await;
    assert_eq!((again.end, again.tally, again.task), (first.end, first.tally, first.task));
}

async fn an_end_is_effective_once_it_is_recorded(world: World) {
    let ledger = &world.ledger;
    let later = || tokio::time::sleep(Duration::from_millis(5));
    let (root, _) = declared(ledger, &root()).await;
    let (child, _) = declared(ledger, &root.id.child().unwrap()).await;
    let (other, of_other) = declared(ledger, &root.id.child().unwrap()).await;

    // What was asked for a while before it was recorded was not effective in between.
    let asked = End { at: now() - TimeDelta::seconds(3), ..end_of(&child.id, State::Revoked) };
    let before = now();
    let of_child = ledger.end(&asked, tomorrow(), false).await.unwrap().unwrap();
    assert_eq!(of_child.end.at, asked.at);
    assert!(before <= of_child.effective_at && of_child.effective_at <= now());
    later().await;
    let before = now();
    let of_root = revoke(ledger, &root.id).await;
    assert!(of_root.end.at <= of_root.effective_at && before <= of_root.effective_at);
    assert!(!lives(ledger, &of_other).await);
    later().await;

    // A second call repeats the first one's instant, whoever asks: the child's own, and its root's for what had none.
    let cold = world.another(7).await.unwrap();
    for ledger in [ledger, &cold] {
        for (id, first) in [(&child.id, &of_child), (&root.id, &of_root), (&other.id, &of_root)] {
            let again = revoke(ledger, id).await;
            assert_eq!((&again.end, again.effective_at), (&first.end, first.effective_at));
        }
    }
    drop(cold);
    let world = world.restart().await;
    assert_eq!(revoke(&world.ledger, &other.id).await.effective_at, of_root.effective_at);
}

async fn no_mint_survives_the_end_it_raced(world: World) {
    let ledger = world.ledger.clone();
    let (task, _) = declared(&ledger, &root()).await;
    let racing = (0..64).map(|_| {
        let (ledger, task) = (ledger.clone(), task.clone());
        async move {
            let mut minted = Vec::new();
            for _ in 0..100 {
                let lease = lease(&task.id);
                match ledger.mint(&task, std::slice::from_ref(&lease)).await.unwrap() {
                    Written::Done => minted.push(lease),
                    Written::Ended(_) => break,
                    Written::Exists | Written::Missing => panic!("the task was declared"),
                }
            }
            minted
        }
    });
    let ending = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let stopped = revoke(&ledger, &task.id).await;
        assert!(matches!(ledger.mint(&task, &[lease(&task.id)]).await.unwrap(), Written::Ended(_)));
        stopped
    };
    let (minted, stopped) = tokio::join!(futures_util::future::join_all(racing), ending);
    let minted: Vec<Lease> = minted.into_iter().flatten().collect();
    assert_eq!(stopped.tally.credentials, 1 + minted.len() as u64);
    for lease in &minted {
        assert!(!lives(&ledger, lease).await);
    }
}

async fn tasks_are_listed_newest_first(world: World) {
    let ledger = &world.ledger;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(declared(ledger, &root()).await.0.id.clone());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ids.push(declared(ledger, &ids[4].child().unwrap()).await.0.id.clone());
    ids.reverse();
    revoke(ledger, &ids[1]).await;
    let (mut listed, mut before) = (Vec::new(), None);
    for page in 0.. {
        assert!(page < 4);
        let (held, next) = ledger.tasks(before.as_ref(), 2).await.unwrap();
        listed.extend(held);
        before = next;
        if before.is_none() {
            break;
        }
    }
    assert_eq!(listed.iter().map(|held| held.task.id.clone()).collect::<Vec<_>>(), ids);
    let ended: Vec<bool> = listed.iter().map(|held| held.end.is_some()).collect();
    assert_eq!(ended, [true, true, false, false, false, false]);
}

async fn a_retry_finds_the_first_answer(world: World) {
    let first = Remembered { task: root(), body: "a".into() };
    let other = Remembered { task: root(), body: "b".into() };
    for remembered in [&first, &other] {
        assert_eq!(world.ledger.remember("digest", remembered.clone(), tomorrow()).await.unwrap(), first);
    }
    assert_eq!(world.ledger.remember("another", other.clone(), tomorrow()).await.unwrap(), other);
}

async fn what_serves_once_serves_one(world: World) {
    let others = [world.another(7).await.unwrap(), world.another(7).await.unwrap()];
    let all = [&world.ledger, &others[0], &others[1]];
    for digest in ["a", "b", "c"] {
        let at_once = (0..12).map(|n| all[n % 3].spend(digest, tomorrow()));
        let spent: Vec<bool> = futures_util::future::try_join_all(at_once).await.unwrap();
        assert_eq!(spent.iter().filter(|first| **first).count(), 1);
    }
    world.tamper(&Key::Spent("a".into()), Some("1 1 1 x {}")).await;
    assert!(world.ledger.spend("a", tomorrow()).await.is_err(), "what cannot be told is not the first time");
    // A nonce is every broker's, and nobody else's.
    let nonce = world.ledger.nonce(now());
    assert!(all.iter().all(|ledger| ledger.is_fresh(&nonce, now())));
    assert!(!world.ledger.is_fresh(&nonce, now() + TimeDelta::minutes(6)));
    assert!(!world.ledger.is_fresh(&nonce, now() - TimeDelta::minutes(1)), "from the future");
    for foreign in ["", "AAAAAAAAAAAA", &nonce[1..], &format!("{nonce}A")] {
        assert!(!world.ledger.is_fresh(foreign, now()), "{foreign}");
    }
}

async fn evidence_serves_the_first_key(world: World) {
    let thumbprint = || {
        let document = crate::jose::SigningKey::generate().unwrap();
        let jwk = serde_json::to_value(crate::jose::SigningKey::from_pkcs8(&document).unwrap().public()).unwrap();
        crate::jose::Thumbprint::of(&jwk).unwrap()
    };
    let (first, second, other) = (thumbprint(), thumbprint(), world.another(7).await.unwrap());
    assert_eq!(other.key_of_evidence("digest").await.unwrap(), None);
    assert_eq!(world.ledger.bind_evidence("digest", &first, tomorrow()).await.unwrap(), first);
    assert_eq!(other.bind_evidence("digest", &second, tomorrow()).await.unwrap(), first);
    assert_eq!(other.key_of_evidence("digest").await.unwrap(), Some(first));
    assert_eq!(world.ledger.bind_evidence("another", &second, tomorrow()).await.unwrap(), second);
    world.tamper(&Key::Evidence("digest".into()), Some("1 1 1 x {}")).await;
    assert!(other.key_of_evidence("digest").await.is_err());
}

fn published() -> crate::lease::PublishedKey {
    let document = crate::jose::SigningKey::generate().unwrap();
    let jwk = crate::jose::SigningKey::from_pkcs8(&document).unwrap().public().clone();
    let purpose = crate::lease::Use::AccessToken;
    crate::lease::PublishedKey { purpose, jwk, certificate: None, vouched: None, published_at: now() }
}

async fn keys_are_published_once(world: World) {
    let key = published();
    assert_eq!(world.ledger.keys().await.unwrap(), []);
    let standing = |retirement| [StandingKey { retirement, ..StandingKey::new(key.clone()) }];
    for ledger in [&world.ledger, &world.another(7).await.unwrap()] {
        ledger.publish(&key).await.unwrap();
        assert_eq!(ledger.keys().await.unwrap(), standing(None));
    }
    let retirement = Retirement { retired_at: now(), published_until: now() + TimeDelta::minutes(5) };
    let later = Retirement { published_until: tomorrow(), ..retirement };
    for (ledger, retire) in [(&world.ledger, retirement), (&world.another(7).await.unwrap(), later)] {
        assert_eq!(ledger.retire(&key.jwk.kid, retire).await.unwrap(), retirement);
        assert_eq!(ledger.keys().await.unwrap(), standing(Some(retirement)));
    }
    world.tamper(&Key::Retirement(key.jwk.kid.clone()), Some("1 1 1 x {}")).await;
    assert!(world.ledger.keys().await.is_err());
    let other = crate::lease::PublishedKey { purpose: crate::lease::Use::JwtSvid, ..key };
    assert!(world.ledger.publish(&other).await.is_err());
}

async fn a_taint_stands_and_needs_no_other_record(world: World) {
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let key = published();
    let kid = key.jwk.kid.as_str();
    let other = world.another(7).await.unwrap();
    world.ledger.publish(&key).await.unwrap();
    let alive = async |ledger: &Ledger| ledger.live(&task.id, &of_task.id, kid).await.unwrap().is_some();
    assert!(!other.is_barred(&task.id, &of_task.id, kid).await.unwrap() && alive(&other).await);
    let first = Taint { key: key.clone(), tainted_at: now() };
    let later = Taint { tainted_at: tomorrow(), ..first.clone() };
    for (ledger, taint) in [(&world.ledger, &first), (&other, &later)] {
        assert_eq!(ledger.taint(taint).await.unwrap(), first);
    }
    let standing = [StandingKey::from(first.clone())];
    for ledger in [&world.ledger, &other] {
        assert_eq!(ledger.keys().await.unwrap(), standing);
        assert!(
            ledger.is_barred(&task.id, &of_task.id, kid).await.unwrap()
                && !alive(ledger).await
                && lives(ledger, &of_task).await
        );
    }
    // Published anew, and where the key itself was lost.
    other.publish(&key).await.unwrap();
    assert_eq!(other.keys().await.unwrap(), standing);
    world.tamper(&Key::SigningKey(kid.to_owned()), None).await;
    assert_eq!(other.keys().await.unwrap(), standing);
    // What nobody sealed is no key, and nothing is alive because of it.
    world.tamper(&Key::Taint(kid.to_owned()), Some("1 1 1 x {}")).await;
    assert!(other.keys().await.is_err() && other.taint(&first).await.is_err() && !alive(&other).await);
}

async fn a_dead_lease_takes_no_other_with_it(world: World) {
    let (task, dead) = declared(&world.ledger, &root()).await;
    let good = lease(&task.id);
    assert!(matches!(world.ledger.mint(&task, std::slice::from_ref(&good)).await.unwrap(), Written::Done));
    let other = world.another(7).await.unwrap();
    let of = |at| LeaseEnd { task: task.id.clone(), lease: dead.id.clone(), at, reason: None, by: "alice".into() };
    let asked = [(task.id.clone(), dead.id.clone())];
    assert_eq!(other.leases_not_ended(&asked).await.unwrap(), std::slice::from_ref(&dead.id));
    let first = world.ledger.end_lease(&of(now()), tomorrow(), None).await.unwrap();
    assert!(first.0.at <= first.1);
    for ledger in [&world.ledger, &other] {
        assert!(!lives(ledger, &dead).await && lives(ledger, &good).await);
        let both = [dead.id.clone(), good.id.clone()];
        assert_eq!(ledger.leases(&task.id, &both).await.unwrap(), [None, Some(good.clone())]);
        assert!(ledger.leases_not_ended(&asked).await.unwrap().is_empty());
        assert!(ledger.is_barred(&task.id, &dead.id, "k").await.unwrap());
        assert!(!ledger.is_barred(&task.id, &good.id, "k").await.unwrap());
        // Once more, by another broker: since when it is dead does not change.
        assert_eq!(ledger.end_lease(&of(tomorrow()), tomorrow(), None).await.unwrap(), first);
    }
    // What nobody sealed keeps nothing alive, and is told again.
    world.tamper(&Key::LeaseEnd(task.id.clone(), dead.id.clone()), Some("1 1 1 x {}")).await;
    assert!(!lives(&other, &dead).await);
    assert_eq!(other.leases_not_ended(&asked).await.unwrap(), std::slice::from_ref(&dead.id));
}

async fn a_restart_forgets_nothing(world: World) {
    let (alive, of_alive) = declared(&world.ledger, &root()).await;
    let (dead, of_dead) = declared(&world.ledger, &root()).await;
    let stopped = revoke(&world.ledger, &dead.id).await;
    let world = world.restart().await;
    world.ledger.check().await.unwrap();
    assert!(lives(&world.ledger, &of_alive).await && !lives(&world.ledger, &of_dead).await);
    let again = revoke(&world.ledger, &dead.id).await;
    assert_eq!((again.end, again.tally), (stopped.end, stopped.tally));
    assert!(matches!(world.ledger.mint(&alive, &[lease(&alive.id)]).await.unwrap(), Written::Done));
    assert_eq!(world.ledger.tasks(None, 10).await.unwrap().0.len(), 2);
}

async fn no_two_tasks_have_one_place(world: World) {
    let other = world.another(7).await.unwrap();
    let mut places = HashSet::new();
    for _ in 0..100 {
        for ledger in [&world.ledger, &other] {
            let place = ledger.status_index().await.unwrap();
            assert!(place.list == 0 && place.index < STATUS_LIST_ENTRIES && places.insert(place), "{place:?}");
        }
    }
    let many = futures_util::future::join_all((0..100).map(|_| world.ledger.status_index())).await;
    assert!(many.into_iter().all(|place| places.insert(place.unwrap())));
    drop(other);
    let world = world.restart().await;
    for _ in 0..100 {
        assert!(places.insert(world.ledger.status_index().await.unwrap()));
    }
}

async fn a_full_status_list_is_followed_by_another(world: World) {
    let ledger = &world.ledger;
    assert!(!ledger.status_list(0).await.unwrap().begun);
    world.count_tasks(u64::from(STATUS_LIST_ENTRIES) - 1).await;
    assert!(ledger.status_list(0).await.unwrap().begun && !ledger.status_list(1).await.unwrap().begun);
    let (last, first) = (ledger.status_index().await.unwrap(), ledger.status_index().await.unwrap());
    assert_eq!((last.list, first.list), (0, 1));
    assert!(ledger.status_list(1).await.unwrap().begun && !ledger.status_list(2).await.unwrap().begun);
    let mut next = Task::clone(&task(&root()));
    next.status = first;
    let next = Arc::new(next);
    ledger.declare(&next, &[]).await.unwrap();
    revoke(ledger, &next.id).await;
    assert!(listed(ledger, &next).await);
    assert_eq!(ledger.status_list(0).await.unwrap().octets, vec![0; 8192]);
}

async fn an_end_stands_in_the_status_list(world: World) {
    let ledger = &world.ledger;
    let (alive, _) = declared(ledger, &root()).await;
    let (revoked, _) = declared(ledger, &root()).await;
    let (completed, _) = declared(ledger, &root()).await;
    let cold = world.another(7).await.unwrap();
    let stopped = revoke(&cold, &revoked.id).await;
    assert_eq!(stopped.status, Some(revoked.status));
    assert!(listed(ledger, &revoked).await && !listed(ledger, &alive).await && !listed(&cold, &completed).await);
    ledger.end(&end_of(&completed.id, State::Completed), tomorrow(), false).await.unwrap().unwrap();
    assert!(listed(ledger, &completed).await && listed(&cold, &completed).await);
    drop(cold);
    let world = world.restart().await;
    let ledger = &world.ledger;
    assert!(listed(ledger, &revoked).await && listed(ledger, &completed).await && !listed(ledger, &alive).await);
    // Which place is whose has not changed either.
    assert_eq!(ledger.declared(&alive.id).await.unwrap().unwrap().status, alive.status);
    revoke(ledger, &alive.id).await;
    let octets = ledger.status_list(0).await.unwrap().octets;
    assert_eq!(octets.iter().map(|octet| octet.count_ones()).sum::<u32>(), 3);
}

async fn an_end_of_nothing_known_stands_nowhere(world: World) {
    let ledger = &world.ledger;
    let unseen = ledger.end(&end_of(&root(), State::Revoked), tomorrow(), true).await.unwrap().unwrap();
    assert_eq!(unseen.status, None);
    // Nobody who cannot believe the record knows the place, until they can.
    let (task, _) = declared(ledger, &root()).await;
    let (key, cold) = (Key::Task(task.id.clone()), world.another(7).await.unwrap());
    let record = world.raw(&key).await.unwrap();
    let place = format!("\"index\":{}", task.status.index);
    let moved = record.replace(&place, "\"index\":65535");
    assert_ne!(moved, record);
    world.tamper(&key, Some(&moved)).await;
    assert_eq!(revoke(&cold, &task.id).await.status, None);
    assert_eq!(ledger.status_list(0).await.unwrap().octets, vec![0; 8192]);
    world.tamper(&key, Some(&record)).await;
    assert_eq!(revoke(&cold, &task.id).await.status, Some(task.status));
    assert!(listed(ledger, &task).await);
}

async fn the_places_of_a_tree_are_found(world: World) {
    let ledger = &world.ledger;
    let (root, _) = declared(ledger, &root()).await;
    let (child, _) = declared(ledger, &root.id.child().unwrap()).await;
    let (below, _) = declared(ledger, &child.id.child().unwrap()).await;
    // Before and after it in the list, and none of it.
    let (first, last) = (TaskId::root(now() - TimeDelta::hours(1)), TaskId::root(now() + TimeDelta::hours(1)));
    for other in [first.unwrap(), last.unwrap()] {
        let (other, _) = declared(ledger, &other).await;
        declared(ledger, &other.id.child().unwrap()).await;
    }
    let mut siblings = Vec::new();
    for _ in 0..40 {
        siblings.push(declared(ledger, &root.id.child().unwrap()).await.0.status);
    }
    let found =
        async |task: &Task| world.ledger.places_below(&task.id).await.unwrap().into_iter().collect::<HashSet<_>>();
    let of_root: HashSet<_> = siblings.into_iter().chain([child.status, below.status]).collect();
    assert_eq!(found(&root).await, of_root, "more than are asked for at first");
    assert_eq!(found(&child).await, HashSet::from([below.status]));
    assert_eq!(found(&below).await, HashSet::new());
    // A record that is not to be believed hides no other.
    let (key, cold) = (Key::Task(child.id.clone()), world.another(7).await.unwrap());
    let record = world.raw(&key).await.unwrap();
    world.tamper(&key, Some(&record.replace("sb-1", "sb-2"))).await;
    assert_eq!(cold.places_below(&root.id).await.unwrap().len(), of_root.len() - 1);
}

const AUTHORITY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn certificate(task: &TaskId, seconds: u32) -> CertificateLease {
    CertificateLease {
        id: LeaseId::serial(1).unwrap(),
        task: task.clone(),
        authority: AUTHORITY.to_owned(),
        key: "00".repeat(32),
        issued_at: whole_second(now()),
        expires_at: after(now(), seconds).unwrap(),
    }
}

/// What a revocation list is made of: the names of certificates, and the ends of their tasks.
async fn a_certificate_is_listed_until_it_ends(world: World) {
    let ledger = &world.ledger;
    let (root, _) = declared(ledger, &root()).await;
    let (child, _) = declared(ledger, &root.id.child().unwrap()).await;
    let (long, short) = (certificate(&root.id, 600), certificate(&child.id, 300));
    for (task, lease) in [(&root, &long), (&child, &short)] {
        assert!(matches!(ledger.certify(task, lease).await.unwrap(), Written::Done));
    }
    assert!(ledger.certify(&root, &short).await.is_err(), "a lease of another task");
    let cold = world.another(7).await.unwrap();
    let listed = async |at| {
        let all = cold.certificates(at).await.unwrap();
        all.into_iter().map(|one| (one.serial, one.task, one.authority, one.expires_at)).collect::<Vec<_>>()
    };
    let row = |lease: &CertificateLease| (lease.id.clone(), lease.task.clone(), AUTHORITY.to_owned(), lease.expires_at);
    assert_eq!(listed(now()).await, [row(&long), row(&short)]);
    assert_eq!(listed(short.expires_at).await, [row(&long)]);
    assert_eq!(listed(long.expires_at).await, []);

    let tasks = [child.id.clone(), root.id.clone()];
    assert_eq!(cold.ends(&tasks).await.unwrap(), [None, None]);
    let end = end_of(&child.id, State::Completed);
    ledger.end(&end, tomorrow(), false).await.unwrap().unwrap();
    assert_eq!(cold.ends(&tasks).await.unwrap(), [Some((State::Completed, end.at)), None]);
    assert!(matches!(ledger.certify(&child, &certificate(&child.id, 60)).await.unwrap(), Written::Ended(_)));
    let stopped = revoke(ledger, &root.id).await;
    assert_eq!(stopped.tally.credentials, 4, "certificates count");
    let ends = cold.ends(&tasks).await.unwrap();
    assert_eq!(ends.iter().map(|end| end.unwrap().0).collect::<Vec<_>>(), [State::Completed, State::Revoked]);
}

async fn a_list_of_one_broker_is_had_from_another(world: World) {
    let ids: Vec<_> = crate::id::CrlId::all(AUTHORITY).collect();
    let list = |number: u64| {
        let id = ids[usize::try_from(number).unwrap() % 2].clone();
        PostedCrl { id, number, next_update: after(now(), 10).unwrap(), der: vec![7; 3].into() }
    };
    let other = world.another(7).await.unwrap();
    assert_eq!(other.crl(&ids[0]).await.unwrap(), None);
    world.ledger.post_crls(&[list(2), list(3)]).await.unwrap();
    assert_eq!(other.crl(&ids[0]).await.unwrap(), Some(list(2)));
    world.ledger.post_crls(&[list(4)]).await.unwrap();
    assert_eq!((other.crl(&ids[0]).await.unwrap(), other.crl(&ids[1]).await.unwrap()), (Some(list(4)), Some(list(3))));
}

/// Something that happened to a task, from a log.
pub(super) fn happened(task: &TaskId, log: &str, sequence: u64, after: Option<u64>, event: &str) -> TimelineEvent {
    let serde_json::Value::Object(said) = json!({"event": event, "actor": {"as": "broker"}}) else {
        panic!("an object")
    };
    TimelineEvent { time: now(), task: task.clone(), log: log.to_owned(), sequence: Some(sequence), after, said }
}

fn numbers(events: &[TimelineEvent]) -> Vec<(&str, u64)> {
    events.iter().map(|event| (&*event.log, event.sequence.unwrap())).collect()
}

async fn a_timeline_is_of_a_tree_and_all_brokers(world: World) {
    let (here, there) = (&world.ledger, world.another(7).await.unwrap());
    let (root, other) = (root(), root());
    let child = root.child().unwrap();
    assert_eq!(here.timeline(&root).await.unwrap(), Timeline::default());
    here.tell(&root, &[happened(&root, "a", 3, None, "task_declared")]).await.unwrap();
    there.tell(&root, &[happened(&child, "b", 4, None, "task_declared")]).await.unwrap();
    here.tell(&other, &[happened(&other, "a", 4, None, "task_declared")]).await.unwrap();
    let more = [happened(&child, "a", 5, Some(3), "looked"), happened(&root, "a", 8, Some(5), "looked")];
    here.tell(&child, &more).await.unwrap();
    for ledger in [here, &there] {
        let whole = ledger.timeline(&root).await.unwrap();
        assert_eq!(numbers(&whole.events), [("a", 3), ("b", 4), ("a", 5), ("a", 8)]);
        let below = ledger.timeline(&child).await.unwrap();
        assert_eq!(numbers(&below.events), [("b", 4), ("a", 5)]);
        assert!(whole.complete && below.complete && whole.unverified == 0);
        assert_eq!(numbers(&ledger.timeline(&other).await.unwrap().events), [("a", 4)]);
    }
    // A broker that got no answer tells again.
    let again = [happened(&root, "a", 12, Some(8), "looked")];
    for _ in 0..2 {
        here.tell(&root, &again).await.unwrap();
    }
    let timeline = here.timeline(&root).await.unwrap();
    assert!(timeline.complete && timeline.events.len() == 5);
    // One that never came, and one that does not know what was before it.
    here.tell(&root, &[happened(&root, "a", 20, Some(15), "looked")]).await.unwrap();
    assert!(!here.timeline(&root).await.unwrap().complete);
    there
        .tell(&other, &[happened(&other, "b", 9, None, "looked"), happened(&other, "b", 11, None, "looked")])
        .await
        .unwrap();
    assert!(!here.timeline(&other).await.unwrap().complete);
}

async fn a_timeline_holds_its_beginning_and_what_is_newest(world: World) {
    let task = root();
    let all: Vec<_> = (0..2000_u64)
        .map(|at| happened(&task, "a", at, at.checked_sub(1), if at == 0 { "task_declared" } else { "looked" }))
        .collect();
    for some in all.chunks(250) {
        world.ledger.tell(&task, some).await.unwrap();
    }
    let timeline = world.ledger.timeline(&task).await.unwrap();
    assert_eq!(numbers(&timeline.events), numbers(&[&all[..100], &all[1100..]].concat()));
    assert!(!timeline.complete && timeline.unverified == 0);
}
