//! Two sides that do not know each other's feeds find what only one of them holds, whatever happens meanwhile.

use std::collections::BTreeSet;

use consort_core::model::merge::Saw;
use consort_core::protocol::link::Phase;
use consort_core::protocol::{Event, Message};
use consort_core::reconcile::{Index, Method, Request};
use consort_core::store::{Epoch, Sequence, Store, View};
use consort_core::{Commit, Content, Dot};
use proptest::prelude::*;

use crate::world::{DATASET, World, id};

/// Two nodes that hold `shared` versions, and some of their own, and whose cursors tell nothing.
fn strangers(shared: usize, own: [usize; 2], seed: u64) -> World {
    let mut world = World::new(2, seed);
    for n in 0..shared {
        world.put(0, &format!("shared/{n}"), "value");
    }
    world.connect(0, 1);
    world.settle();
    world.disconnect(0, 1);
    for (node, own) in own.into_iter().enumerate() {
        for n in 0..own {
            world.put(node, &format!("own/{node}/{n}"), "value");
        }
        world.nodes[node].epoch = Some(Epoch(seed ^ 77));
    }
    world.sent.clear();
    world.sent_bytes = 0;
    world
}

fn versions_sent(world: &World) -> Vec<Dot> {
    let dots = |message: &Message| -> Vec<Dot> {
        match message {
            Message::Versions { entries, .. } | Message::Given { entries, .. } => {
                entries.iter().map(|entry| entry.version.dot).collect()
            }
            _ => Vec::new(),
        }
    };
    world.sent.iter().flat_map(dots).collect()
}

/// The methods of both sides of a comparison, as they are shown, in order.
fn methods(world: &mut World) -> [Vec<Method>; 2] {
    let mut shown = [Vec::new(), Vec::new()];
    while world.step() {
        for (node, shown) in shown.iter_mut().enumerate() {
            let link = world.link(node);
            assert!(link.method.is_none() || link.phase == Phase::Reconciling);
            shown.extend(link.method.filter(|method| shown.last() != Some(method)));
        }
    }
    shown
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_differs_is_found_and_sent_once(
        shared in 1usize..400,
        own in [0usize..300, 0usize..300],
        seed: u64,
    ) {
        let mut world = strangers(shared, own, seed);
        world.connect(0, 1);
        world.run();
        world.assert_converged();
        let sent = versions_sent(&world);
        prop_assert_eq!(sent.len(), own[0] + own[1]);
        prop_assert_eq!(sent.into_iter().collect::<BTreeSet<_>>().len(), own[0] + own[1]);
    }

    #[test]
    fn writes_that_go_on_meanwhile_are_neither_lost_nor_in_the_way(
        shared in 1usize..400,
        own in [0usize..300, 0usize..300],
        steps_between in 1u64..6,
        seed: u64,
    ) {
        let mut world = strangers(shared, own, seed);
        world.connect(0, 1);
        let (mut step, mut compared) = (0, false);
        while world.step() {
            step += 1;
            compared |= world.link(0).phase == Phase::Reconciling;
            // Also once it is over, so that its end is among what happens.
            if step < 200 && world.random.below(steps_between) == 0 {
                let node = usize::try_from(world.random.below(2)).unwrap();
                let name = match world.random.below(3) {
                    // Versions that the comparison will find, or has found.
                    0 => format!("shared/{}", world.random.below(shared as u64)),
                    1 => format!("own/{node}/{}", world.random.below(10)),
                    _ => format!("new/{}", world.random.below(20)),
                };
                if world.random.below(4) == 0 {
                    world.write(node, &name, Saw::Winner, Content::Deleted);
                } else {
                    world.put(node, &name, &format!("{step}"));
                }
            }
        }
        prop_assert!(compared);
        prop_assert!(world.nodes.iter().all(|node| node.disconnected.is_empty()));
        // Without another look.
        world.assert_converged();
        prop_assert!(!world.sent.iter().any(|m| matches!(m, Message::Hello(hello) if hello.reconcile)));
    }

    #[test]
    fn a_live_index_is_that_of_what_is_held(
        writes in prop::collection::vec((0usize..40, any::<bool>()), 1..60),
        before in prop_oneof![Just(0usize), Just(2040usize)],
    ) {
        let mut world = World::new(1, 1);
        for n in 0..before {
            world.put(0, &format!("before/{n}"), "value");
        }
        for (n, delete) in writes {
            let content = if delete { Content::Deleted } else { Content::Inline([1].into()) };
            world.write(0, &format!("{n}"), Saw::Winner, content);
        }
        let view = world.nodes[0].store.view(DATASET).unwrap();
        let all = view.fingerprints(None, usize::MAX).unwrap();
        let count = view.summary().digest.count;
        let again = Index::of_set(count, all);
        prop_assert!(again.symbols() <= view.index().symbols());
        prop_assert!(again.iter().zip(view.index().iter()).all(|(a, b)| a == b));
        prop_assert_eq!(view.index().digest(), view.summary().digest);
    }
}

#[test]
fn the_method_is_chosen_and_shown() {
    for (shared, own, expected) in [
        (10, [5, 5], vec![Method::Sorted]),
        (600, [5, 5], vec![Method::Prefix]),
        (1500, [200, 200], vec![Method::Prefix, Method::Ranges]),
        (1500, [5, 400], vec![Method::Ranges]),
        (100, [200, 200], vec![Method::Prefix, Method::Sorted]),
    ] {
        let mut world = strangers(shared, own, 1);
        world.connect(0, 1);
        assert_eq!(methods(&mut world), [expected.clone(), expected], "{shared}, {own:?}");
        world.assert_converged();
    }
}

#[test]
fn a_few_differences_among_many_versions_cost_a_kilobyte_and_one_request() {
    let mut world = strangers(2000, [0, 3], 1);
    world.connect(0, 1);
    world.run();
    world.assert_converged();
    let requests: Vec<&Request> = world
        .sent
        .iter()
        .filter_map(|message| match message {
            Message::Describe(request) => Some(request),
            _ => None,
        })
        .collect();
    assert_eq!(requests, [&Request::Prefix { symbols: 32 }]);
    assert!(world.sent_bytes < 1500, "{}", world.sent_bytes);
}

#[test]
fn what_was_brought_otherwise_meanwhile_is_not_wanted_any_more() {
    let mut world = strangers(100, [60, 5], 2);
    world.connect(0, 1);
    while world.link(1).method.is_none() {
        assert!(world.step());
    }
    let rows = world.nodes[0].store.view(DATASET).unwrap().feed(Sequence(0), usize::MAX).unwrap();
    let commit = Commit { entries: rows.into_iter().map(|row| row.entry).collect() };
    world.nodes[1].store.apply_remote(DATASET, id(2), commit, None).unwrap();
    world.event(1, Event::Grew);
    world.run();
    world.assert_converged();
    assert!(!world.sent.iter().any(|message| matches!(message, Message::Want { .. })));
}
