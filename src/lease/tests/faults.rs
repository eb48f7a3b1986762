//! A store that someone else has written to is never believed.

use super::{
    suite::{happened, over_both},
    *,
};

over_both![
    an_edited_record_is_in_doubt,
    a_record_under_another_key_is_in_doubt,
    a_record_that_changed_under_way_is_in_doubt,
    one_bad_record_does_not_hide_the_others,
    a_forged_renewal_is_in_doubt,
    a_forged_end_denies,
    a_spoilt_task_can_be_ended,
    a_spoilt_counter_does_not_keep_a_task_alive,
    another_generation_is_dead,
    brokers_with_another_key_do_not_start,
    a_store_that_was_swapped_is_noticed,
    a_timeline_tells_nothing_that_no_broker_told,
];

/// The record with the first occurrence of a word in its body replaced.
fn edited(record: &str) -> String {
    let edited = record.replacen("example.com", "example.org", 1);
    assert_ne!(edited, record);
    edited
}

async fn an_edited_record_is_in_doubt(world: World) {
    let (task, lease_of) = declared(&world.ledger, &root()).await;
    let (child, of_child) = declared(&world.ledger, &task.id.child().unwrap()).await;
    let keys =
        [Key::Lease(child.id.clone(), of_child.id.clone()), Key::Task(child.id.clone()), Key::Task(task.id.clone())];
    for key in &keys {
        let record = world.raw(key).await.unwrap();
        world.tamper(key, Some(&edited(&record))).await;
        let cold = world.another(7).await.unwrap();
        for ledger in [&world.ledger, &cold] {
            assert!(ledger.live(&child.id, &of_child.id, "a key").await.is_err(), "{key:?}");
        }
        if matches!(key, Key::Task(_)) {
            for ledger in [&world.another(7).await.unwrap(), &world.ledger] {
                assert!(ledger.mint(&child, &[lease(&child.id)]).await.is_err(), "{key:?}");
            }
        }
        world.tamper(key, Some(&record)).await;
        assert!(lives(&world.ledger, &of_child).await && lives(&world.ledger, &lease_of).await);
    }
    world.tamper(&keys[1], Some("")).await;
    assert!(world.another(7).await.unwrap().declared(&child.id).await.is_err());
    // Even so it can be ended.
    let stopped = revoke(&world.another(7).await.unwrap(), &child.id).await;
    assert_eq!(stopped.task, None);
}

async fn a_record_under_another_key_is_in_doubt(world: World) {
    let (strong, of_strong) = declared(&world.ledger, &root()).await;
    let (weak, of_weak) = declared(&world.ledger, &root()).await;
    let cold = world.another(7).await.unwrap();
    let record = world.raw(&Key::Task(strong.id.clone())).await.unwrap();
    world.tamper(&Key::Task(weak.id.clone()), Some(&record)).await;
    for ledger in [&cold, &world.ledger] {
        assert!(ledger.live(&weak.id, &of_weak.id, "a key").await.is_err());
    }
    let record = world.raw(&Key::Lease(strong.id.clone(), of_strong.id.clone())).await.unwrap();
    let fresh = LeaseId::random().unwrap();
    world.tamper(&Key::Lease(strong.id.clone(), fresh.clone()), Some(&record)).await;
    assert!(world.ledger.live(&strong.id, &fresh, "a key").await.is_err());
    assert!(world.ledger.leases(&strong.id, &[fresh]).await.is_err());
}

async fn a_record_that_changed_under_way_is_in_doubt(world: World) {
    let (task, _) = declared(&world.ledger, &root()).await;
    let key = Key::Task(task.id.clone());
    let mut wider = Task::clone(&task);
    wider.owner = "mallory@example.com".into();
    let resealed: Sealed = Sealer::new(&StoreKey::for_test(7), 1, now()).seal(&key, &wider).unwrap();
    world.tamper(&key, Some(&resealed.0)).await;
    assert!(world.ledger.mint(&task, &[lease(&task.id)]).await.is_err(), "not what was remembered");
    assert!(world.another(7).await.unwrap().mint(&task, &[lease(&task.id)]).await.is_err(), "not what was decided on");
}

async fn one_bad_record_does_not_hide_the_others(world: World) {
    let (bad, _) = declared(&world.ledger, &root()).await;
    let (good, _) = declared(&world.ledger, &root()).await;
    let key = Key::Task(bad.id.clone());
    let record = world.raw(&key).await.unwrap();
    world.tamper(&key, Some(&edited(&record))).await;
    let (listed, _) = world.another(7).await.unwrap().tasks(None, 10).await.unwrap();
    assert_eq!(listed.iter().map(|held| &held.task.id).collect::<Vec<_>>(), [&good.id]);
    assert!(world.another(7).await.unwrap().task(&bad.id).await.is_err());
}

/// Whoever writes to the store can shorten the life of a task, and that is all.
async fn a_forged_renewal_is_in_doubt(world: World) {
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let (other, _) = declared(&world.ledger, &root()).await;
    let wanted = after(now(), 3600).unwrap();
    world.ledger.renew(&other, now(), wanted).await.unwrap();
    let borrowed = world.raw(&Key::Renewal(other.id.clone())).await.unwrap();
    let key = Key::Renewal(task.id.clone());
    for record in ["forged", &borrowed] {
        world.tamper(&key, Some(record)).await;
        let cold = world.another(7).await.unwrap();
        for ledger in [&world.ledger, &cold] {
            assert!(ledger.deadline(&task, wanted).await.is_err());
            assert!(ledger.task(&task.id).await.is_err());
            assert!(ledger.live(&task.id, &of_task.id, "a key").await.is_err());
            assert!(ledger.renew(&task, now(), wanted).await.is_err());
        }
    }
    // Put back to an older one: nothing lives longer than a broker once granted.
    world.tamper(&key, None).await;
    world.ledger.renew(&task, now(), after(now(), 1200).unwrap()).await.unwrap();
    let older = world.raw(&key).await.unwrap();
    world.ledger.renew(&task, now(), wanted).await.unwrap();
    world.tamper(&key, Some(&older)).await;
    let cold = world.another(7).await.unwrap();
    assert!(cold.deadline(&task, wanted).await.unwrap() < wanted);
    // And it can be ended, whatever stands there.
    world.tamper(&key, Some("forged")).await;
    let stopped = revoke(&cold, &task.id).await;
    assert_eq!((stopped.task.is_some(), stopped.expires_at), (true, None));
}

async fn a_forged_end_denies(world: World) {
    let (task, of_task) = declared(&world.ledger, &root()).await;
    world.tamper(&Key::End(task.id.clone()), Some("forged")).await;
    assert!(world.ledger.live(&task.id, &of_task.id, "a key").await.is_err());
    assert!(world.ledger.mint(&task, &[lease(&task.id)]).await.is_err());
    assert!(world.ledger.end(&end_of(&task.id, State::Revoked), tomorrow(), false).await.is_err());
    assert!(world.ledger.task(&task.id).await.is_err());
    // Nor does it keep a certificate off its list.
    let ends = world.ledger.ends(std::slice::from_ref(&task.id)).await.unwrap();
    assert_eq!(ends[0].map(|(state, _)| state), Some(State::Revoked));
}

async fn a_spoilt_task_can_be_ended(world: World) {
    for spoilt in 0..4 {
        let (task, of_task) = declared(&world.ledger, &root()).await;
        let (_, of_child) = declared(&world.ledger, &task.id.child().unwrap()).await;
        let key = Key::Task(task.id.clone());
        let record = match spoilt {
            0 => edited(&world.raw(&key).await.unwrap()),
            1 => "junk".to_owned(),
            2 => world.raw(&Key::Marker).await.unwrap(),
            _ => Sealer::new(&StoreKey::for_test(7), 2, now()).seal(&key, task.as_ref()).unwrap().0,
        };
        world.tamper(&key, Some(&record)).await;
        let stopped = revoke(&world.ledger, &task.id).await;
        assert_eq!((stopped.task, stopped.tally.ended_tasks, stopped.tally.credentials), (None, 2, 2), "{record}");
        let again = revoke(&world.another(7).await.unwrap(), &task.id).await;
        assert_eq!((again.end, again.effective_at), (stopped.end, stopped.effective_at));
        assert!(!lives(&world.ledger, &of_task).await && !lives(&world.ledger, &of_child).await);
    }
}

async fn a_spoilt_counter_does_not_keep_a_task_alive(world: World) {
    let ledger = &world.ledger;
    let (root, of_root) = declared(ledger, &root()).await;
    let (child, of_child) = declared(ledger, &root.id.child().unwrap()).await;
    world.spoil_counters(&root.id).await;
    world.spoil_counters(&child.id).await;
    let before = now();
    let of_root_end = revoke(ledger, &root.id).await;
    assert!(before <= of_root_end.effective_at && of_root_end.effective_at <= now());
    assert!(!lives(ledger, &of_root).await && !lives(ledger, &of_child).await);
    // Nor does one that was spoilt afterwards keep the answer from being repeated, with an instant that is not too early.
    world.spoil_counters(&root.id).await;
    let again = revoke(ledger, &child.id).await;
    assert_eq!((&again.end, again.task.as_ref()), (&of_root_end.end, Some(&child)));
    assert!(of_root_end.effective_at <= again.effective_at && again.effective_at <= now());
    let third = revoke(&world.another(7).await.unwrap(), &root.id).await;
    assert_eq!(third.effective_at, again.effective_at);
}

async fn another_generation_is_dead(world: World) {
    let (task, of_task) = declared(&world.ledger, &root()).await;
    let old = Sealer::new(&StoreKey::for_test(7), 0, now());
    let lease_key = Key::Lease(task.id.clone(), of_task.id.clone());
    let record = world.raw(&lease_key).await.unwrap();
    world.tamper(&lease_key, Some(&old.seal(&lease_key, &of_task).unwrap().0)).await;
    assert!(!lives(&world.ledger, &of_task).await);
    world.tamper(&lease_key, Some(&record)).await;
    let task_key = Key::Task(task.id.clone());
    world.tamper(&task_key, Some(&old.seal(&task_key, task.as_ref()).unwrap().0)).await;
    let cold = world.another(7).await.unwrap();
    assert!(!lives(&cold, &of_task).await);
    assert!(matches!(cold.mint(&task, &[lease(&task.id)]).await.unwrap(), Written::Missing));
    let mut older = Task::clone(&task);
    older.generation = 0;
    assert!(cold.declare(&Arc::new(older), &[]).await.is_err());
    // An end is one in every generation.
    let end = end_of(&task.id, State::Revoked);
    let end_key = Key::End(task.id.clone());
    world.tamper(&end_key, Some(&old.seal(&end_key, &end).unwrap().0)).await;
    assert!(matches!(cold.mint(&task, &[]).await.unwrap(), Written::Ended(found) if found == end));
}

async fn brokers_with_another_key_do_not_start(world: World) {
    let refused = world.another(8).await.err().expect("refused");
    assert!(refused.to_string().contains("another store.key"), "{refused}");
    world.tamper(&Key::Marker, Some("1 0 0 AAAA {}")).await;
    assert!(world.another(7).await.is_err());
}

async fn a_store_that_was_swapped_is_noticed(world: World) {
    let key = Key::Marker;
    let record = world.raw(&key).await.unwrap();
    let other = Sealer::new(&StoreKey::for_test(7), 0, now());
    let other = other.seal(&key, &json!({"store": "another", "generation": 1})).unwrap();
    for swapped in [Some(other.0.as_str()), None] {
        world.tamper(&key, swapped).await;
        assert!(world.ledger.check().await.is_err());
        world.tamper(&key, Some(&record)).await;
        world.ledger.check().await.unwrap();
    }
}

async fn a_timeline_tells_nothing_that_no_broker_told(world: World) {
    let (task, other, ledger) = (root(), root(), &world.ledger);
    let declared = happened(&task, "a", 1, None, "task_declared");
    ledger.tell(&task, std::slice::from_ref(&declared)).await.unwrap();
    ledger.tell(&other, &[happened(&other, "a", 2, None, "task_declared")]).await.unwrap();
    let own = world.timeline(&task).await.remove(0);
    // Twice the same is once.
    world.put_on_timeline(&task, &own).await;
    let timeline = ledger.timeline(&task).await.unwrap();
    assert_eq!((timeline.events, timeline.unverified, timeline.complete), (vec![declared.clone()], 0, true));
    // Made up, another tree's, edited, another kind of record, of another generation, by another key.
    let moved = world.timeline(&other).await.remove(0);
    let (key, event) = (Key::Timeline(task.clone()), happened(&task, "a", 9, None, "task_ended"));
    let sealed = |key: &Key, of: u8, generation| {
        Sealer::new(&StoreKey::for_test(of), generation, now()).seal(key, &event).unwrap().0
    };
    let forged = [
        serde_json::to_string(&event).unwrap(),
        moved,
        own.replacen("task_declared", "task_renewed", 1),
        sealed(&Key::Task(task.clone()), 7, 1),
        sealed(&key, 7, 2),
        sealed(&key, 8, 1),
        String::new(),
    ];
    for (at, forged) in forged.iter().enumerate() {
        world.put_on_timeline(&task, forged).await;
        let timeline = ledger.timeline(&task).await.unwrap();
        assert_eq!((timeline.events, timeline.unverified), (vec![declared.clone()], at as u64 + 1), "{forged}");
        assert!(!timeline.complete);
    }
    world.put_on_timeline(&task, &sealed(&key, 7, 1)).await;
    assert_eq!(ledger.timeline(&task).await.unwrap().events, [declared, event], "a forgery that no one could tell");
}
