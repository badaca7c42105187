//! Whatever happens, in whatever order: when it is over, all replicas are the same and nothing is lost.

use consort_core::Content;
use consort_core::model::merge::Saw;
use consort_core::protocol::Message;
use consort_core::protocol::event::Access;
use consort_core::store::{Store, View};
use proptest::prelude::*;

use crate::world::{DATASET, World, key};

/// Writes, deletions, edits of losers, cuts and reconnections at random, with messages and commits in between; with
/// faults also crashes, and stores that cannot be read.
fn turbulence(world: &mut World, steps: usize, with_faults: bool) {
    let nodes = world.nodes.len() as u64;
    let pick = |world: &mut World, below: u64| usize::try_from(world.random.below(below)).unwrap();
    for step in 0..steps {
        let node = pick(world, nodes);
        let name = format!("dir/{}", pick(world, 6));
        // The faults are the last kinds of step.
        match pick(world, if with_faults { 14 } else { 12 }) {
            0..4 => world.put(node, &name, &format!("{step}")),
            4 => {
                world.write(node, &name, Saw::Winner, Content::Deleted);
            }
            5 => {
                let view = world.nodes[node].store.view(DATASET).unwrap();
                let held = view.siblings(&key(&name)).unwrap();
                if let Some(loser) = held.first() {
                    let saw = Saw::Version(loser.version.dot);
                    world.write(
                        node,
                        &name,
                        saw,
                        Content::Inline(format!("l{step}").as_bytes().into()),
                    );
                }
            }
            6 => {
                let other = pick(world, nodes);
                if other != node {
                    world.connect(node, other);
                }
            }
            7 => {
                let other = pick(world, nodes);
                world.disconnect(node, other);
            }
            8 => {
                // Some are told only of what changed, and ask for it.
                let other = pick(world, nodes);
                if world.connected(node, other) {
                    world.inject(node, other, Message::Lazy { lazy: true });
                }
            }
            12 => world.nodes[node].reads_before_a_failure = Some(world.random.below(20)),
            13 => world.crash(node),
            _ => {
                for _ in 0..pick(world, 10) {
                    world.step();
                }
            }
        }
    }
}

fn heal(world: &mut World) {
    world.nodes.iter_mut().for_each(|node| node.reads_before_a_failure = None);
    for a in 0..world.nodes.len() {
        for b in 0..a {
            if !world.connected(a, b) {
                world.connect(b, a);
            }
        }
    }
    world.settle();
}

proptest! {
    #[test]
    fn replicas_converge_and_nothing_is_lost(seed: u64, nodes in 2usize..5, steps in 1usize..200) {
        let mut world = World::new(nodes, seed);
        turbulence(&mut world, steps, false);
        heal(&mut world);
        prop_assert!(world.nodes.iter().all(|node| node.disconnected.is_empty()));
        world.assert_converged();
    }

    #[test]
    fn faults_end_links_and_lose_nothing(seed: u64, nodes in 2usize..5, steps in 1usize..200) {
        let mut world = World::new(nodes, seed);
        turbulence(&mut world, steps, true);
        heal(&mut world);
        let ends = world.nodes.iter().flat_map(|node| &node.disconnected);
        prop_assert!(ends.into_iter().all(|reason| reason.contains("a fault")));
        world.assert_converged();
    }

    #[test]
    fn a_chain_of_nodes_converges_too(seed: u64, steps in 1usize..100) {
        let mut world = World::new(4, seed);
        for node in 0..3 {
            world.connect(node, node + 1);
        }
        for step in 0..steps {
            let node = usize::try_from(world.random.below(4)).unwrap();
            world.put(node, &format!("{}", step % 7), &format!("{step}"));
            world.step();
        }
        world.settle();
        world.assert_converged();
    }
}

#[test]
fn a_reader_receives_and_is_not_believed() {
    let mut world = World::with_access(&[Access::Write, Access::Read], 1);
    world.put(0, "a", "1");
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
    // What a reader's own store holds by mistake goes nowhere.
    world.put(1, "b", "2");
    world.settle();
    let view = world.nodes[0].store.view(DATASET).unwrap();
    assert!(view.siblings(&key("b")).unwrap().is_empty());
}

#[test]
fn stores_that_know_nothing_of_each_others_feeds_reconcile() {
    let mut world = World::new(2, 5);
    for n in 0..300 {
        world.put(n % 2, &format!("k{n}"), "v");
    }
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
}

#[test]
fn a_barrier_tells_how_far_to_wait() {
    let mut world = World::new(2, 9);
    world.connect(0, 1);
    world.settle();
    world.put(0, "late", "value");
    world.barrier(1, 77);
    world.settle();
    assert_eq!(world.nodes[1].reached.len(), 1);
    world.assert_converged();
}
