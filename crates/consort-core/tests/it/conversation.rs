//! What a link says in the common cases, and how little it is.

use consort_core::protocol::Message;

use crate::world::World;

fn synced(nodes: usize, keys: usize) -> World {
    let mut world = World::new(nodes, 42);
    for n in 0..keys {
        world.put(0, &format!("key/{n}"), "value");
    }
    for a in 0..nodes {
        for b in 0..a {
            world.connect(b, a);
        }
    }
    world.settle();
    world.assert_converged();
    world.sent.clear();
    world.sent_bytes = 0;
    world
}

fn versions_sent(world: &World) -> usize {
    let count = |message: &Message| match message {
        Message::Versions { entries, .. } | Message::Given { entries, .. } => entries.len(),
        _ => 0,
    };
    world.sent.iter().map(count).sum()
}

#[test]
fn equal_replicas_exchange_a_constant_number_of_small_messages() {
    for keys in [1, 1000] {
        let mut world = synced(2, keys);
        world.connect(0, 1);
        world.settle();
        assert_eq!(versions_sent(&world), 0);
        assert!(world.sent.len() <= 16 && world.sent_bytes < 1200, "{:?}", world.sent);
    }
}

#[test]
fn an_interrupted_link_resumes_without_reconciling() {
    let mut world = synced(2, 500);
    world.disconnect(0, 1);
    world.put(0, "new", "1");
    world.put(1, "other", "2");
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
    assert_eq!(versions_sent(&world), 2);
    assert!(!world.sent.iter().any(|message| matches!(message, Message::Description(_))));
}

#[test]
fn a_replica_that_has_nothing_gets_everything_without_reconciling() {
    let mut world = World::new(2, 3);
    for n in 0..500 {
        world.put(0, &format!("key/{n}"), "value");
    }
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
    assert_eq!(versions_sent(&world), 500);
    assert!(!world.sent.iter().any(|message| matches!(message, Message::Description(_))));
}

#[test]
fn what_two_peers_would_push_alike_is_announced_by_one() {
    let mut world = synced(3, 1);
    for n in 0..50 {
        world.put(0, &format!("live/{n}"), "value");
        world.settle();
    }
    world.assert_converged();
    // 50 changes to two nodes are 100 versions. If everybody pushed to everybody it would be 200.
    let sent = versions_sent(&world);
    // One in four decides anew which links push, so all do, since much time passes between two.
    assert!((100..150).contains(&sent), "{sent} versions were sent");
}

#[test]
fn who_loses_the_link_by_which_changes_came_gets_them_by_another() {
    let mut world = synced(4, 1);
    for n in 0..20 {
        world.put(0, &format!("live/{n}"), "value");
        world.settle();
    }
    world.disconnect(0, 1);
    world.disconnect(0, 2);
    world.sent.clear();
    for n in 0..20 {
        world.put(0, &format!("later/{n}"), "value");
        world.settle();
    }
    world.assert_converged();
    let sent = versions_sent(&world);
    assert!((60..70).contains(&sent), "{sent} versions were sent");
}

#[test]
fn announcements_and_acknowledgements_are_said_together() {
    let mut world = synced(2, 1);
    // The peer says that it gets everything elsewhere.
    world.inject(1, 0, Message::Lazy { lazy: true });
    for n in 0..500 {
        world.put(0, &format!("live/{n}"), "value");
    }
    // The first announcement goes out at once, and the others are put off.
    assert_eq!(world.sent.len(), 1);
    world.settle();
    world.assert_converged();
    assert_eq!(versions_sent(&world), 500);
    let is_ack = |message: &&Message| matches!(message, Message::Ack { .. });
    let acknowledgements = world.sent.iter().filter(is_ack).count();
    assert!(acknowledgements < 20, "{acknowledgements} acknowledgements");
}

#[test]
fn a_version_is_not_sent_back_to_where_it_came_from() {
    let mut world = synced(2, 1);
    for n in 0..20 {
        world.put(n % 2, &format!("live/{n}"), "value");
        world.settle();
    }
    assert_eq!(versions_sent(&world), 20);
}
