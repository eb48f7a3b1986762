//! Locks on every store: whoever writes for a task sees those that stood before, and nobody takes one away.

use super::{each::redis, suite::over_both, *};
use crate::{
    id::LockId,
    lease::Expansion,
    notice::{Notice, tests::lock},
};

over_both![
    a_lock_is_seen_in_the_step_that_writes,
    the_later_state_stands_and_released_is_for_good,
    what_is_missing_or_forged_is_put_back,
    how_far_a_lock_has_come_is_shown_to_all,
];

fn new() -> (LockId, Notice) {
    let id = LockId::new(now()).unwrap();
    (id.clone(), lock(&id, 1, false, now(), tomorrow()))
}

/// What a broker does that sees another mark than it knew.
async fn settle(ledger: &Ledger) -> Vec<Notice> {
    let read = ledger.locks().await.unwrap();
    ledger.know_locks(&read);
    assert!(ledger.knows_locks());
    read.locks
}

async fn a_lock_is_seen_in_the_step_that_writes(world: World) {
    let other = world.another(7).await.unwrap();
    let (task, of_task) = declared(&world.ledger, &root()).await;
    assert!(world.ledger.knows_locks(), "there is none");
    for round in 0..5 {
        let (_, notice) = new();
        assert_eq!(other.keep_lock(&notice, now()).await.unwrap(), notice);
        assert!(world.ledger.knows_locks(), "nobody has looked");
        match round {
            0 => drop(world.ledger.mint(&task, &[lease(&task.id)]).await.unwrap()),
            1 => drop(declared(&world.ledger, &root()).await),
            2 => drop(world.ledger.renew(&task, now(), task.expires_at).await.unwrap()),
            3 => drop(world.ledger.live(&task.id, &of_task.id, "a key").await.unwrap()),
            _ => world.ledger.check().await.unwrap(),
        }
        assert!(!world.ledger.knows_locks(), "{round}");
        let known = settle(&world.ledger).await;
        assert!(known.len() == round + 1 && known.contains(&notice));
        world.ledger.mint(&task, &[lease(&task.id)]).await.unwrap();
        assert!(world.ledger.knows_locks(), "there is nothing new");
    }
}

async fn the_later_state_stands_and_released_is_for_good(world: World) {
    let (id, notice) = new();
    let state = |revision, released| lock(&id, revision, released, now(), tomorrow());
    let ledger = &world.ledger;
    ledger.keep_lock(&notice, now()).await.unwrap();
    let extended = state(2, false);
    assert_eq!(ledger.keep_lock(&extended, now()).await.unwrap(), extended);
    assert_eq!(ledger.keep_lock(&notice, now()).await.unwrap(), extended);
    let released = state(3, true);
    assert_eq!(ledger.keep_lock(&released, now()).await.unwrap(), released);
    assert_eq!(ledger.keep_lock(&state(4, false), now()).await.unwrap(), released);
    assert_eq!(settle(&world.another(7).await.unwrap()).await, [released]);
}

async fn what_is_missing_or_forged_is_put_back(world: World) {
    let (id, notice) = new();
    let ledger = &world.ledger;
    let keys = [Key::Lock(id), Key::Locks, Key::LocksChanged];
    ledger.keep_lock(&notice, now()).await.unwrap();
    for junk in [None, Some(""), Some("1 1 1 AAAA {}")] {
        for key in &keys {
            world.tamper(key, junk).await;
            assert!(settle(ledger).await.len() <= 1);
            ledger.keep_lock(&notice, now()).await.unwrap();
            assert_eq!(settle(&world.another(7).await.unwrap()).await, std::slice::from_ref(&notice), "{key:?}");
        }
    }
    // A record of another lock is none of this one.
    let (_, other) = new();
    ledger.keep_lock(&other, now()).await.unwrap();
    let Some(foreign) = world.raw(&Key::Locks).await else { panic!("a list") };
    world.tamper(&keys[0], Some(&foreign)).await;
    assert_eq!(settle(ledger).await, [other]);
    // Whoever counts more changes than the store says so.
    let before = ledger.locks().await.unwrap().changes;
    ledger.mark_locks(before + 10).await.unwrap();
    assert_eq!(ledger.locks().await.unwrap().changes, before + 11);
}

async fn how_far_a_lock_has_come_is_shown_to_all(world: World) {
    let (id, _) = new();
    let (other, _) = new();
    let expansion = Expansion { matched: 3, revoked: 2, done_at: None, at: now(), broker: "broker_a".into() };
    world.ledger.show_expansion(&id, &expansion).await.unwrap();
    let cold = world.another(7).await.unwrap();
    assert_eq!(cold.expansions(&[other, id]).await.unwrap(), [None, Some(expansion)]);
}

/// A Redis without memory still locks out.
#[tokio::test]
async fn without_memory_a_lock_is_still_put_on_record() {
    let world = World::redis().await;
    let mut connection = redis(&world).connect().await;
    ::redis::cmd("CONFIG").arg("SET").arg("maxmemory").arg(1).exec_async(&mut connection).await.unwrap();
    let (_, notice) = new();
    world.ledger.keep_lock(&notice, now()).await.unwrap();
    assert_eq!(settle(&world.ledger).await, [notice]);
}
