//! Barriers over several hops: who has waited for one holds what anybody held who can be reached.

use consort_core::protocol::event::{Access, Effect};
use consort_core::store::{Store, View};

use crate::world::{DATASET, World, key};

/// Lets things happen until the barriers of `node` are reached, and what their answers speak of is applied.
fn wait(world: &mut World, node: usize, peers: usize) {
    loop {
        let here = world.summary(node).head.sequence;
        let reached = &world.nodes[node].reached;
        let applied = |effect: &Effect| {
            let Effect::BarrierReached { peer, head, .. } = effect else { return false };
            let mut links = world.nodes[node].replica.links(here);
            links.any(|link| link.peer == *peer && *head <= link.applied)
        };
        if reached.len() == peers && reached.iter().all(applied) {
            return;
        }
        assert!(world.step(), "a barrier is never answered");
    }
}

fn holds(world: &World, node: usize, name: &str) -> bool {
    let view = world.nodes[node].store.view(DATASET).unwrap();
    !view.siblings(&key(name)).unwrap().is_empty()
}

#[test]
fn what_was_written_four_hops_away_is_here_when_the_wait_ends() {
    for seed in 0..50 {
        let mut world = World::new(5, seed);
        for n in 0..4 {
            world.connect(n, n + 1);
        }
        world.settle();
        world.put(4, "far", "1");
        world.put(2, "near", "2");
        world.barrier(0, 77);
        wait(&mut world, 0, 1);
        assert!(holds(&world, 0, "far") && holds(&world, 0, "near"), "seed {seed}");
    }
}

#[test]
fn barriers_in_a_graph_with_circles_end_and_miss_nothing() {
    for seed in 0..50 {
        let mut world = World::new(6, seed);
        for (a, b) in [(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 1), (4, 5), (5, 3)] {
            world.connect(a, b);
        }
        world.settle();
        for n in 1..6 {
            world.put(n, &format!("of {n}"), "1");
        }
        // Two wait at once.
        world.barrier(0, 77);
        world.barrier(5, 78);
        wait(&mut world, 0, 2);
        for n in 1..6 {
            assert!(holds(&world, 0, &format!("of {n}")), "seed {seed}, {n}");
        }
        wait(&mut world, 5, 2);
        world.settle();
        world.assert_converged();
    }
}

#[test]
fn nothing_is_waited_for_behind_a_reader_since_it_passes_on_nothing() {
    let mut world = World::with_access(&[Access::Write, Access::Read, Access::Write], 5);
    world.connect(0, 1);
    world.connect(1, 2);
    world.settle();
    world.put(2, "behind", "1");
    world.barrier(0, 77);
    wait(&mut world, 0, 1);
    assert!(!holds(&world, 0, "behind"));
}

#[test]
fn a_barrier_does_not_wait_for_one_that_is_gone() {
    let mut world = World::new(3, 5);
    world.connect(0, 1);
    world.connect(1, 2);
    world.settle();
    world.barrier(0, 77);
    world.disconnect(1, 2);
    wait(&mut world, 0, 1);
}
