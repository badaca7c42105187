//! Two sides that should hold the same find out when they do not, and say little otherwise.

use std::time::Duration;

use consort_core::limits::MAX_CLOCK_SKEW_MS;
use consort_core::protocol::Message;
use consort_core::protocol::event::Access;
use consort_core::store::{Epoch, Store, View};

use crate::world::{DATASET, World, key};

const BOTH: [Access; 2] = [Access::Write, Access::Write];
const READER: [Access; 2] = [Access::Write, Access::Read];
const READERS: [Access; 2] = [Access::Read, Access::Read];

/// Longer than a quiet link waits before it checks.
const A_CHECK: Duration = Duration::from_secs(50);

fn holds(world: &World, node: usize, name: &str) -> bool {
    let view = world.nodes[node].store.view(DATASET).unwrap();
    !view.siblings(&key(name)).unwrap().is_empty()
}

/// Two nodes of which the second lacks `lost` of the first, and both believe otherwise.
fn diverged(access: &[Access]) -> World {
    let mut world = World::with_access(access, 1);
    world.put(0, "lost", "1");
    world.put(1, "own", "2");
    world.pretend_to_have_applied(1, 0);
    world.pretend_to_have_applied(0, 1);
    world.connect(0, 1);
    world.run();
    assert!(!holds(&world, 1, "lost"));
    world.sent.clear();
    world
}

fn comparisons(world: &mut World) -> usize {
    let hellos = |message: &Message| matches!(message, Message::Hello(hello) if hello.reconcile);
    world.sent.drain(..).filter(hellos).count()
}

#[test]
fn what_no_cursor_tells_is_found() {
    for access in [BOTH, READER] {
        let mut world = diverged(&access);
        world.pass(A_CHECK);
        assert!(holds(&world, 1, "lost"));
    }
}

/// A writer does not take what a reader has, so they never hold the same.
#[test]
fn a_difference_that_has_to_be_is_not_looked_for_again() {
    let mut world = diverged(&READER);
    for _ in 0..4 {
        world.pass(A_CHECK);
    }
    // One that mends, and one that shows what is left; each is begun by whoever notices, at the most by both.
    assert!((1..=4).contains(&comparisons(&mut world)));
    for n in 0..10 {
        world.put(0, "changes", &format!("{n}"));
        world.pass(A_CHECK);
    }
    assert_eq!(comparisons(&mut world), 0);
    // Another difference is another matter.
    world.put(1, "own too", "3");
    world.pass(A_CHECK);
    world.pass(A_CHECK);
    assert!((1..=2).contains(&comparisons(&mut world)));
    assert!(!holds(&world, 0, "own"));
}

#[test]
fn readers_do_not_compare_what_neither_would_take() {
    let mut world = diverged(&READERS);
    for _ in 0..4 {
        world.pass(A_CHECK);
    }
    assert_eq!(comparisons(&mut world), 0);
}

#[test]
fn while_versions_wait_nothing_is_compared() {
    let mut world = World::new(2, 3);
    world.put(1, "other", "2");
    world.connect(0, 1);
    world.settle();
    world.nodes[0].clock_ahead_ms = 2 * MAX_CLOCK_SKEW_MS;
    world.put(0, "early", "1");
    world.run();
    world.sent.clear();
    for _ in 0..5 {
        world.pass(A_CHECK);
    }
    assert!(!holds(&world, 1, "early"));
    assert_eq!(comparisons(&mut world), 0);
}

#[test]
fn a_link_that_is_hardly_ever_quiet_is_checked_all_the_same() {
    let mut world = diverged(&BOTH);
    for n in 0..20 {
        // Each tells the other how far it is; so the cursors of both have to be written.
        world.put(0, "a", &format!("{n}"));
        world.put(1, "b", &format!("{n}"));
        world.run();
        world.pass(Duration::from_secs(10));
    }
    assert!(holds(&world, 1, "lost"));
}

#[test]
fn a_feed_that_becomes_another_one_does_not_end_the_checking() {
    let mut world = diverged(&BOTH);
    for node in &mut world.nodes {
        node.epoch = Some(Epoch(77));
    }
    world.pass(A_CHECK);
    world.pass(A_CHECK);
    world.assert_converged();
}
