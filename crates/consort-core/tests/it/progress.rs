//! No link waits for ever, and what has to wait is not lost.

use std::time::Duration;

use consort_core::limits::{
    MAX_CLOCK_SKEW_MS, MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS, TURN_BYTES, WINDOW_MESSAGES,
};
use consort_core::model::attributes::Attributes;
use consort_core::model::merge::Saw;
use consort_core::protocol::Message;
use consort_core::protocol::event::{Access, Effect, Event};
use consort_core::protocol::link::Phase;
use consort_core::store::{LocalWrite, Store, View};
use consort_core::{
    AuthorId, Commit, Content, Dot, Entry, Timestamp, Version, VersionVector, WallTime,
};

use crate::world::{DATASET, Job, World, id, key};

fn holds(world: &World, node: usize, name: &str) -> bool {
    let view = world.nodes[node].store.view(DATASET).unwrap();
    !view.siblings(&key(name)).unwrap().is_empty()
}

#[test]
fn more_announcements_than_a_window_holds_are_worked_off() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    // The peer says that it gets everything elsewhere, so it is only told; but it has nothing of this.
    world.inject(1, 0, Message::Lazy { lazy: true });
    for n in 0..=WINDOW_MESSAGES {
        world.put(0, &format!("{n}"), "value");
    }
    world.run();
    world.assert_converged();
}

#[test]
fn a_node_that_lost_its_disk_gets_back_what_it_wrote_itself() {
    let mut world = World::new(2, 2);
    for n in 0..10 {
        world.put(n % 2, &format!("{n}"), "value");
    }
    world.connect(0, 1);
    world.settle();
    world.wipe(1);
    world.connect(0, 1);
    world.run();
    world.assert_converged();
}

fn wiped_while_its_last_is_on_its_way_to_another_disk(seed: u64) -> World {
    let mut world = World::new(2, seed);
    world.put(1, "before", "value");
    world.connect(0, 1);
    world.settle();
    world.put(1, "last", "value");
    while world.nodes[0].committing.is_empty() {
        world.deliver_one();
    }
    world.wipe(1);
    world.connect(0, 1);
    world
}

#[test]
fn a_node_that_lost_its_disk_gets_back_what_was_on_its_way_to_another_ones_disk_as_well() {
    // One of these orders is this: the other says Hello, its disk has the version, and it hears that this one has nothing.
    for seed in 0..40 {
        let mut world = wiped_while_its_last_is_on_its_way_to_another_disk(seed);
        world.run();
        assert!(holds(&world, 1, "last"), "seed {seed}");
    }
}

#[test]
fn a_node_that_lost_its_disk_gets_back_what_becomes_durable_together_with_something_else() {
    let mut world = wiped_while_its_last_is_on_its_way_to_another_disk(0);
    while world.deliver_one() {}
    let Some(Job::Commit { peer, entries, cursor }) = world.nodes[0].committing.pop_front() else {
        panic!("it is on its way to the disk");
    };
    let store = &mut world.nodes[0].store;
    let applied = store.apply_remote(DATASET, peer, Commit { entries }, cursor).unwrap();
    // Something else is reported first, when the view shows this already.
    world.event(0, Event::Grew);
    world.event(0, Event::Committed { peer, stale: applied.stale });
    world.event(0, Event::Grew);
    world.run();
    assert!(holds(&world, 1, "last"));
}

#[test]
fn a_node_that_lost_its_disk_gets_back_what_it_wrote_itself_although_it_is_interrupted() {
    for seed in 0..40 {
        let mut world = World::new(2, seed);
        world.connect(0, 1);
        for n in 0..100 {
            world.put(1, &format!("{n:02}"), "value");
        }
        world.settle();
        world.wipe(1);
        world.connect(0, 1);
        while world.summary(1).digest.count == 0 {
            assert!(world.step(), "seed {seed}");
        }
        // Once the other one has a cursor of the new feed, both could go on from where they were.
        world.put(1, "since", "value");
        while !holds(&world, 0, "since") {
            assert!(world.step(), "seed {seed}");
        }
        assert!(!holds(&world, 1, "99"), "seed {seed}");
        world.crash(1);
        if seed % 2 == 0 {
            world.crash(0);
        }
        world.connect(0, 1);
        world.run();
        assert!(holds(&world, 1, "99"), "seed {seed}");
    }
}

#[test]
fn what_an_ended_conversation_still_brings_is_not_sent_back_to_who_has_it() {
    let mut world = World::new(2, 0);
    world.connect(0, 1);
    world.settle();
    world.put(0, "key", "value");
    while world.deliver_one() {}
    world.connect(0, 1);
    // It is sent once more, while it is still on its way to the disk.
    while world.deliver_one() {}
    world.sent.clear();
    world.run();
    assert!(holds(&world, 1, "key"));
    assert!(!world.sent.iter().any(|message| matches!(message, Message::Versions { .. })));
}

#[test]
fn versions_from_a_clock_far_ahead_wait_and_are_not_lost() {
    // Pushed along the feed; and wanted, after a comparison.
    for both_hold_something in [false, true] {
        let mut world = World::new(2, 3);
        world.nodes[0].clock_ahead_ms = 2 * MAX_CLOCK_SKEW_MS;
        world.put(0, "early", "1");
        if both_hold_something {
            world.put(1, "other", "2");
        }
        world.connect(0, 1);
        world.run();
        assert!(!holds(&world, 1, "early"));
        assert_eq!(world.link(1).phase, Phase::Waiting);
        world.pass(Duration::from_millis(MAX_CLOCK_SKEW_MS / 2));
        assert!(!holds(&world, 1, "early"));
        world.pass(Duration::from_millis(MAX_CLOCK_SKEW_MS));
        world.assert_converged();
        assert_eq!(world.link(1).phase, Phase::Live);
    }
}

#[test]
fn a_barrier_is_answered_although_the_link_begins_anew() {
    let mut world = World::new(2, 4);
    world.connect(0, 1);
    world.settle();
    world.inject(1, 0, Message::Restart { reconcile: true });
    world.barrier(0, 1);
    world.barrier(1, 2);
    world.settle();
    assert_eq!((world.nodes[0].reached.len(), world.nodes[1].reached.len()), (1, 1));
}

#[test]
fn nobody_waits_for_the_feed_of_a_reader() {
    let mut world = World::with_access(&[Access::Write, Access::Read], 5);
    world.connect(0, 1);
    world.settle();
    world.put(0, "a", "1");
    world.settle();
    world.barrier(0, 1);
    world.settle();
    let [Effect::BarrierReached { head, .. }] = world.nodes[0].reached[..] else {
        panic!("one barrier was reached")
    };
    assert!(head <= world.link(0).applied);
}

#[test]
fn a_write_that_is_too_large_for_one_commit_travels_as_several() {
    let mut world = World::new(2, 6);
    let write = |n| LocalWrite {
        key: key(&format!("{n}")),
        saw: Saw::Winner,
        content: Content::Inline([7; 1000].into()),
        attributes: Attributes::default(),
    };
    let writes = (0..3 * MAX_COMMIT_VERSIONS).map(write).collect();
    let now = WallTime(1_700_000_000_000);
    world.nodes[0].store.apply_local(DATASET, writes, now).unwrap();
    world.connect(0, 1);
    world.run();
    world.assert_converged();
    assert_eq!(world.summary(1).digest.count, 3 * MAX_COMMIT_VERSIONS as u64);
}

#[test]
fn a_write_is_not_lost_to_a_peer_that_claims_to_have_seen_it() {
    let mut world = World::new(2, 7);
    world.connect(0, 1);
    world.settle();
    // Node 1 says that it has seen what node 0 will write within the next minutes.
    let author = AuthorId(id(0).0);
    let now = Timestamp::at(world.now.wall);
    let mut seen = VersionVector::new();
    seen.advance(Dot { author, time: Timestamp(now.0 + ((4 * 60_000) << 16)) });
    let dot = Dot { author: AuthorId([9; 16]), time: now };
    let (content, attributes) = (Content::Inline([1].into()), Attributes::default());
    let version = Version { dot, seen, content, attributes };
    let entries = [Entry { key: key("a"), version }].into();
    world.inject(1, 0, Message::Versions { entries, through: None });
    world.run();
    assert!(holds(&world, 0, "a"));
    world.put(0, "a", "mine");
    let held = world.nodes[0].store.view(DATASET).unwrap().siblings(&key("a")).unwrap();
    assert_eq!(held[0].version.content, Content::Inline((*b"mine").into()));
    assert_eq!(held.len(), 1);
}

#[test]
fn a_peer_that_loads_much_has_its_turns_and_changes_go_out_between_them() {
    let mut world = World::new(3, 9);
    let write = |n| LocalWrite::new(key(&format!("{n}")), Content::Inline([7; 4000].into()));
    for n in 0..4000 {
        let wall = world.now.wall;
        world.nodes[0].store.apply_local(DATASET, vec![write(n)], wall).unwrap();
    }
    world.connect(0, 1);
    world.run();
    world.connect(0, 2);
    let (end, mut changes, mut turns) = (world.now.instant + Duration::from_secs(5), 0, 0);
    while world.summary(2).digest.count < 4000 {
        let before = world.sent_bytes;
        assert!(world.go_on(end), "it stops before everything is there");
        // A turn ends with the message that fills it. Node 2 answers in a few bytes.
        let bytes = world.sent_bytes - before;
        assert!(bytes <= TURN_BYTES + MAX_COMMIT_BYTES, "{bytes} bytes in one turn");
        turns += 1;
        if turns % 100 == 0 {
            let before = world.sent.len();
            let name = format!("live/{changes}");
            world.put(0, &name, "value");
            changes += 1;
            let is_it = |message: &Message| match message {
                Message::Versions { entries, .. } => entries[0].key == key(&name),
                _ => false,
            };
            assert!(world.sent[before..].iter().any(is_it), "a change waits for a peer that loads");
        }
    }
    assert!(2 <= changes, "{turns} turns");
    world.run();
    world.assert_converged();
}

/// What it could not look at is neither acknowledged nor passed over; and its other links are not held up.
#[test]
fn a_link_that_cannot_read_its_store_ends_and_the_others_go_on() {
    let mut world = World::new(3, 8);
    for other in [1, 2] {
        world.connect(0, other);
    }
    world.settle();
    // The first link that looks at what is new.
    world.nodes[0].reads_before_a_failure = Some(0);
    world.put(0, "a", "1");
    world.run();
    assert_eq!(world.nodes[0].disconnected.len(), 1);
    assert!(!world.connected(0, 1) && world.connected(0, 2));
    assert!(holds(&world, 2, "a") && !holds(&world, 1, "a"));
    world.connect(0, 1);
    world.settle();
    world.assert_converged();
}
