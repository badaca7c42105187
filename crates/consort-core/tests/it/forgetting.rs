//! Deletions are forgotten in the end: not before all registered replicas have heard of them, and nothing comes back.

use std::collections::BTreeMap;
use std::time::Duration;

use consort_core::limits::{MAX_COLLECTED, MAX_COMMIT_VERSIONS, MAX_DEAD_BYTES, MAX_KEY_BYTES};
use consort_core::model::Frontier;
use consort_core::model::frontier::Mark;
use consort_core::model::merge::Saw;
use consort_core::protocol::event::Access;
use consort_core::protocol::garbage::Published;
use consort_core::protocol::link::Phase;
use consort_core::protocol::message::{Hello, PROTOCOL_VERSION};
use consort_core::protocol::{Event, Message};
use consort_core::random::Random;
use consort_core::store::{Epoch, Lesson, LocalWrite, Sequence, Store, Summary, View};
use consort_core::{
    AuthorId, Commit, Content, Digest, Entry, Fingerprint, Key, OnConflict, Timestamp, WallTime,
};

use crate::world::{DATASET, World, id, key};

fn tombstones(world: &World, node: usize) -> u64 {
    world.nodes[node].store.view(DATASET).expect("it is open").tombstones().count
}

fn reads(world: &World, node: usize, name: &str) -> Option<Content> {
    let view = world.nodes[node].store.view(DATASET).expect("it is open");
    let held = view.siblings(&key(name)).expect("memory does not fail");
    let versions: Vec<_> = held.into_iter().map(|stored| stored.version).collect();
    let winner = OnConflict::KeepBoth.winner(&versions).filter(|version| !version.is_deleted());
    winner.map(|version| version.content.clone())
}

/// All that can be read of a node.
fn shown(world: &World, node: usize) -> BTreeMap<Key, Vec<Content>> {
    let view = world.nodes[node].store.view(DATASET).expect("it is open");
    let rows = view.scan("", None, usize::MAX).expect("memory does not fail");
    let live = rows.into_iter().map(|(key, held)| {
        let live = held.into_iter().map(|stored| stored.version).filter(|v| !v.is_deleted());
        (key, live.map(|version| version.content).collect::<Vec<_>>())
    });
    live.filter(|(_, live)| !live.is_empty()).collect()
}

fn delete(world: &mut World, node: usize, name: &str) {
    world.write(node, name, Saw::Winner, Content::Deleted);
}

/// Long enough for everything to be said, heard, and collected.
fn settle(world: &mut World) {
    for _ in 0..4 {
        world.settle();
    }
}

fn chain(nodes: usize, seed: u64) -> World {
    let mut world = World::new(nodes, seed);
    for n in 1..nodes {
        world.connect(n - 1, n);
    }
    world
}

#[test]
fn what_everybody_has_heard_of_is_forgotten_everywhere() {
    let mut world = chain(4, 1);
    world.register(&[0, 1, 2, 3]);
    world.put(0, "a", "1");
    world.put(3, "b", "2");
    settle(&mut world);
    delete(&mut world, 3, "a");
    delete(&mut world, 1, "b");
    world.put(2, "c", "3");
    settle(&mut world);
    for node in 0..4 {
        assert_eq!(tombstones(&world, node), 0, "node {node}");
        assert_eq!(world.summary(node).digest.count, 1, "node {node}");
        assert_eq!(world.summary(node).frontier, world.summary(0).frontier);
    }
    // And then there is rest.
    world.settle();
    world.sent.clear();
    world.settle();
    assert!(
        world.sent.iter().all(|message| matches!(message, Message::Check { .. })),
        "{:?}",
        world.sent
    );
    // What was forgotten can be written again.
    world.put(0, "a", "again");
    settle(&mut world);
    assert_eq!(reads(&world, 3, "a"), Some(Content::Inline(b"again"[..].into())));
}

#[test]
fn nothing_is_forgotten_while_a_registered_replica_has_not_heard() {
    let mut world = chain(3, 2);
    world.register(&[0, 1, 2]);
    world.put(2, "a", "1");
    settle(&mut world);
    world.disconnect(1, 2);
    delete(&mut world, 0, "a");
    settle(&mut world);
    assert_eq!((tombstones(&world, 0), tombstones(&world, 1)), (1, 1));
    let view = world.nodes[0].store.view(DATASET).expect("it is open");
    let holdup = world.nodes[0].replica.holdup(&view).expect("it waits");
    assert_eq!(holdup.author, world.nodes[2].store.author());
    world.connect(1, 2);
    settle(&mut world);
    for node in 0..3 {
        assert_eq!((tombstones(&world, node), reads(&world, node, "a")), (0, None));
    }
}

#[test]
fn who_was_away_while_a_deletion_was_forgotten_brings_nothing_back_and_keeps_its_own() {
    for seed in 0..40 {
        for meets in [0, 1] {
            let mut world = chain(3, seed);
            world.register(&[0, 1, 2]);
            for name in ["a", "b", "c", "d"] {
                world.put(2, name, "1");
            }
            settle(&mut world);
            world.disconnect(1, 2);
            // Not waited for any longer.
            world.register(&[0, 1]);
            delete(&mut world, 0, "a");
            delete(&mut world, 1, "b");
            delete(&mut world, 1, "c");
            world.put(0, "d", "2");
            settle(&mut world);
            assert_eq!((tombstones(&world, 0), tombstones(&world, 1)), (0, 0));

            world.put(2, "own", "3");
            world.put(2, "b", "edited meanwhile");
            world.put(2, "d", "edited meanwhile");
            world.connect(meets, 2);
            settle(&mut world);
            world.register(&[0, 1, 2]);
            settle(&mut world);
            let text = |text: &str| Some(Content::Inline(text.as_bytes().into()));
            for node in 0..3 {
                assert_eq!(reads(&world, node, "a"), None, "node {node}, seed {seed}");
                assert_eq!(reads(&world, node, "c"), None, "node {node}, seed {seed}");
                assert_eq!(reads(&world, node, "own"), text("3"));
                assert_eq!(reads(&world, node, "b"), text("edited meanwhile"));
                assert_eq!(shown(&world, node), shown(&world, 0));
                assert_eq!(shown(&world, node)[&key("d")].len(), 2);
                assert_eq!(world.summary(node).digest, world.summary(0).digest);
            }
        }
    }
}

#[test]
fn a_reader_that_was_away_brings_nothing_back() {
    for reader in [0, 1] {
        let mut access = [Access::Write; 2];
        access[reader] = Access::Read;
        let writer = 1 - reader;
        let mut world = World::with_access(&access, 5);
        world.connect(0, 1);
        world.put(writer, "a", "1");
        settle(&mut world);
        world.disconnect(0, 1);
        world.register(&[writer]);
        delete(&mut world, writer, "a");
        settle(&mut world);
        assert_eq!(tombstones(&world, writer), 0);
        world.connect(0, 1);
        settle(&mut world);
        assert_eq!(reads(&world, reader, "a"), None);
        assert_eq!(world.summary(0).digest, world.summary(1).digest);
        // A registered reader is waited for.
        world.put(writer, "b", "1");
        settle(&mut world);
        world.disconnect(0, 1);
        world.register(&[0, 1]);
        delete(&mut world, writer, "b");
        settle(&mut world);
        assert_eq!(tombstones(&world, writer), 1);
        world.connect(0, 1);
        settle(&mut world);
        assert_eq!((tombstones(&world, 0), tombstones(&world, 1)), (0, 0));
    }
}

#[test]
fn a_restored_store_and_an_empty_one_become_like_the_others() {
    for seed in 0..40 {
        let mut world = chain(3, seed);
        world.register(&[0, 1, 2]);
        world.put(2, "a", "1");
        world.put(1, "b", "1");
        settle(&mut world);
        let backup = world.nodes[2].store.clone();
        delete(&mut world, 2, "a");
        world.put(2, "after", "2");
        settle(&mut world);
        assert_eq!(tombstones(&world, 0), 0);
        world.restore(2, backup);
        world.wipe(0);
        world.put(2, "b", "3");
        world.connect(1, 2);
        world.connect(0, 2);
        settle(&mut world);
        world.register(&[0, 1, 2]);
        settle(&mut world);
        for node in 0..3 {
            assert_eq!(reads(&world, node, "a"), None, "node {node}, seed {seed}");
            assert_eq!(reads(&world, node, "after"), Some(Content::Inline(b"2"[..].into())));
            assert_eq!(reads(&world, node, "b"), Some(Content::Inline(b"3"[..].into())));
            assert_eq!(world.summary(node).digest, world.summary(0).digest);
            let frontiers = [node, 0].map(|node| world.summary(node).frontier);
            assert_eq!(frontiers[0], frontiers[1], "node {node}, seed {seed}");
        }
    }
}

/// Two nodes: `away` has not heard of what `ahead` deleted and forgot. Both hold `kept` in the end, and are linked.
/// Returns the version that was forgotten.
fn ahead_and_away(world: &mut World, ahead: usize, away: usize) -> Entry {
    world.register(&[ahead]);
    world.put(ahead, "kept", "1");
    world.put(ahead, "gone", "1");
    let view = world.nodes[ahead].store.view(DATASET).expect("it is open");
    let held = view.siblings(&key("gone")).expect("memory does not fail");
    let entry = Entry { key: key("gone"), version: held[0].version.clone() };
    delete(world, ahead, "gone");
    settle(world);
    assert_eq!(tombstones(world, ahead), 0);
    world.connect(ahead, away);
    world.run();
    entry
}

#[test]
fn what_is_dead_can_be_read_until_what_replaced_it_is_here() {
    for (ahead, away) in [(0, 1), (1, 0)] {
        for seed in 0..40 {
            let mut world = World::new(2, seed);
            world.register(&[ahead]);
            for name in ["a", "b", "c", "gone"] {
                world.put(ahead, name, "1");
            }
            world.connect(ahead, away);
            settle(&mut world);
            world.disconnect(ahead, away);
            delete(&mut world, ahead, "gone");
            settle(&mut world);
            assert_eq!(tombstones(&world, ahead), 0);
            world.connect(ahead, away);
            world.sent.clear();
            let is_frontier = |sent: &Message| matches!(sent, Message::Frontier { .. });
            let (mut written, end) = (false, world.now.instant + Duration::from_secs(60));
            while world.go_on(end) {
                // Behind the frontier, so the comparison has to find it.
                if !written && world.sent.iter().any(is_frontier) {
                    written = true;
                    ["a", "b", "c"].iter().for_each(|name| world.put(ahead, name, "2"));
                }
                for name in ["a", "b", "c"] {
                    assert!(reads(&world, away, name).is_some(), "{name}, seed {seed}");
                }
            }
            settle(&mut world);
            assert_eq!(reads(&world, away, "gone"), None);
            assert_eq!(world.summary(0).digest, world.summary(1).digest);
        }
    }
}

/// What a node holds of a key, and its fingerprint.
fn held(world: &World, node: usize, name: &str) -> (Entry, Fingerprint) {
    let view = world.nodes[node].store.view(DATASET).expect("it is open");
    let all = view.fingerprints(None, usize::MAX).expect("memory does not fail");
    let entries = all.into_iter().map(|fingerprint| {
        let entry = view.by_fingerprint(fingerprint).expect("memory does not fail");
        (entry.expect("it is held"), fingerprint)
    });
    let mut entries = entries.filter(|(entry, _)| entry.key == key(name));
    entries.next().expect("the key is held")
}

/// The peer is one of which only the test speaks: it says that it has replaced what it replaced while the sides compared.
#[test]
fn what_is_dead_can_be_read_until_the_feed_brings_what_replaced_it_meanwhile() {
    let mut world = World::new(2, 1);
    world.register(&[0, 1]);
    world.put(1, "a", "1");
    world.put(1, "gone", "1");
    let (replaced, gone) = (held(&world, 1, "a"), held(&world, 1, "gone"));
    let upto = replaced.0.version.dot.time.max(gone.0.version.dot.time);
    let commit = Commit { entries: vec![replaced.0, gone.0] };
    let applied = world.nodes[0].store.apply_remote(DATASET, id(1), commit, None);
    applied.expect("memory does not fail");
    let before = world.summary(1);
    let author = world.nodes[1].store.author();
    world.put(1, "a", "2");
    let (replacing, _) = held(&world, 1, "a");

    let peer = id(1);
    world.event(0, Event::Connected { peer, access: Access::Write, opener: true, standing: true });
    let greet = |world: &mut World, frontier: Mark| {
        let said = |sent: &Message| match sent {
            Message::Hello(hello) => Some(hello.conversation),
            _ => None,
        };
        let conversation = world.sent.iter().rev().find_map(said).expect("it said Hello");
        let digest = Digest { count: 1, ..Digest::default() };
        let hello = Hello {
            version: PROTOCOL_VERSION,
            features: 0,
            conversation,
            summary: Summary { digest, frontier, ..before },
            cursor: None,
            reconcile: false,
            announce: false,
        };
        world.inject(1, 0, Message::Hello(hello));
        world.run();
    };
    greet(&mut world, Mark(5));
    world.inject(1, 0, Message::Reconciled { taken: true, given: true });
    world.run();
    let times = [(author, upto)].into_iter().collect();
    world.inject(1, 0, Message::Frontier { times });
    world.run();
    let compare = |world: &mut World, lacks: Vec<Fingerprint>| {
        world.inject(1, 0, Message::Unwanted { fingerprints: lacks });
        world.inject(1, 0, Message::Reconciled { taken: true, given: true });
        world.inject(1, 0, Message::Check { summary: world.summary(1), applied: Sequence(0) });
        world.run();
    };
    let frontier = |world: &World| {
        let view = world.nodes[0].store.view(DATASET).expect("it is open");
        view.knowledge().expect("memory does not fail").frontier.of(author)
    };
    let text = |text: &str| Some(Content::Inline(text.as_bytes().into()));
    let through = Some(world.summary(1).head.sequence);
    // It takes the peer's frontier.
    greet(&mut world, Mark(5));
    compare(&mut world, vec![replaced.1, gone.1]);
    assert!(frontier(&world) < upto);
    world.inject(1, 0, Message::Versions { entries: vec![replacing.clone()], through });
    world.run();
    assert_eq!(frontier(&world), upto);
    assert_eq!(reads(&world, 0, "gone"), text("1"));
    // It drops what is dead. The peer writes once more meanwhile.
    let (latest, frontier) = (held(&world, 0, "a"), world.summary(0).frontier);
    world.put(1, "a", "3");
    let through = Some(world.summary(1).head.sequence);
    let (replacing, _) = held(&world, 1, "a");
    greet(&mut world, frontier);
    compare(&mut world, vec![latest.1, gone.1]);
    assert_eq!((reads(&world, 0, "a"), reads(&world, 0, "gone")), (text("2"), text("1")));
    world.inject(1, 0, Message::Versions { entries: vec![replacing], through });
    world.run();
    assert_eq!((reads(&world, 0, "a"), reads(&world, 0, "gone")), (text("3"), None));
    assert!(!world.summary(0).unburied);
}

/// More versions than a side takes note of are dead: it compares more than once, and knows as long that there are more.
#[test]
fn however_much_is_dead_it_all_goes() {
    // What is remembered beside the keys makes it too many. All of them would be dropped at once.
    const MANY: usize = MAX_DEAD_BYTES / MAX_KEY_BYTES;
    const _: () = assert!(MANY <= MAX_COLLECTED);
    let keys: Vec<Key> = (0..MANY).map(|n| key(&format!("{n:0MAX_KEY_BYTES$}"))).collect();
    for (ahead, away) in [(0, 1), (1, 0)] {
        let mut world = World::new(2, 1);
        world.register(&[ahead]);
        world.put(ahead, "kept", "1");
        let write_all = |world: &mut World, content: Content| {
            for keys in keys.chunks(MAX_COMMIT_VERSIONS) {
                let writes = keys.iter().map(|key| LocalWrite::new(key.clone(), content.clone()));
                let (writes, wall) = (writes.collect(), world.now.wall);
                let applied = world.nodes[ahead].store.apply_local(DATASET, writes, wall);
                applied.expect("memory does not fail");
                world.event(ahead, Event::Grew);
            }
        };
        write_all(&mut world, Content::Inline([1].into()));
        world.connect(ahead, away);
        settle(&mut world);
        world.disconnect(ahead, away);
        write_all(&mut world, Content::Deleted);
        settle(&mut world);
        assert_eq!((tombstones(&world, ahead), world.summary(ahead).digest.count), (0, 1));
        assert_eq!(world.summary(away).digest.count, 1 + MANY as u64);

        world.connect(ahead, away);
        let (mut held, end) = (Vec::new(), world.now.instant + Duration::from_secs(60));
        while world.go_on(end) {
            let Summary { digest, frontier, unburied, .. } = world.summary(away);
            if held.last() != Some(&digest.count) {
                held.push(digest.count);
            }
            assert!(digest.count == 1 || unburied || frontier != world.summary(ahead).frontier);
        }
        assert_eq!(held.len(), 3, "{held:?}");
        settle(&mut world);
        assert_eq!(world.summary(0).digest, world.summary(1).digest);
        assert_eq!(world.summary(0).frontier, world.summary(1).frontier);
        assert!(reads(&world, away, "kept").is_some());
    }
}

#[test]
fn what_other_links_had_in_flight_when_a_state_was_taken_does_not_come_back() {
    for (ahead, away) in [(0, 2), (2, 0)] {
        for seed in 0..40 {
            let mut world = World::new(3, seed);
            let forgotten = ahead_and_away(&mut world, ahead, away);
            world.connect(1, away);
            world.pass(Duration::from_secs(3));
            // On its way to the disk when the frontier comes.
            let commit = Commit { entries: vec![forgotten] };
            let held = world.nodes[1].store.apply_remote(DATASET, id(7), commit, None);
            held.expect("memory does not fail");
            world.event(1, Event::Grew);
            world.sent.clear();
            world.pass_while_disks_stand_still(Duration::from_secs(4));
            assert!(world.sent.iter().any(|sent| matches!(sent, Message::Frontier { .. })));
            settle(&mut world);
            for node in 0..3 {
                assert_eq!(reads(&world, node, "gone"), None, "node {node}, seed {seed}");
                assert_eq!(world.summary(node).digest, world.summary(0).digest, "seed {seed}");
            }
        }
    }
}

#[test]
fn what_is_written_here_is_never_dead() {
    let mut world = World::new(1, 1);
    let author = AuthorId([9; 16]);
    let times: Frontier = [(author, Timestamp::at(WallTime(1 << 45)))].into_iter().collect();
    let lesson = Lesson { known: times.clone(), frontier: times, ..Lesson::default() };
    let store = &mut world.nodes[0].store;
    store.learn(DATASET, lesson).expect("memory does not fail");
    *store = store.clone().restored(author, Epoch(1));
    world.put(0, "a", "1");
    assert!(reads(&world, 0, "a").is_some());
}

/// A peer of which only the test speaks; the link to it is live, and both hold the same.
fn stranger(world: &mut World, node: usize, peer: usize) {
    stranger_that(Access::Write, world, node, peer);
}

fn stranger_that(access: Access, world: &mut World, node: usize, peer: usize) {
    let connected = Event::Connected { peer: id(peer), access, opener: false, standing: false };
    world.event(node, connected);
    let hello = Hello {
        version: PROTOCOL_VERSION,
        features: 0,
        conversation: 1,
        summary: world.summary(node),
        cursor: None,
        reconcile: false,
        announce: false,
    };
    world.inject(peer, node, Message::Hello(hello));
}

#[test]
fn times_that_lie_ahead_of_our_clock_are_not_taken() {
    let mut world = World::new(2, 1);
    world.register(&[0, 1]);
    world.put(0, "a", "1");
    stranger(&mut world, 0, 1);
    let ours = world.nodes[0].store.author();
    for author in [ours, AuthorId([9; 16])] {
        let times: Frontier = [(author, Timestamp(u64::MAX))].into_iter().collect();
        let known = Message::Known { times: times.clone(), published: Vec::new() };
        world.inject(1, 0, known);
        world.run();
        world.inject(1, 0, Message::Frontier { times });
        world.run();
        let view = world.nodes[0].store.view(DATASET).expect("it is open");
        let knowledge = view.knowledge().expect("memory does not fail");
        assert!(!knowledge.known.of(author).is_ahead_of(world.now.wall));
        assert!(knowledge.frontier.is_empty());
        assert_eq!(world.link(0).phase, Phase::Waiting);
        stranger(&mut world, 0, 1);
    }
    world.put(0, "a", "2");
    assert_eq!(reads(&world, 0, "a"), Some(Content::Inline(b"2"[..].into())));
}

/// What a replica of a node might publish, to be known again by its mark.
fn says(author: AuthorId, node: usize, serial: Timestamp) -> Published {
    Published { author, node: id(node), serial, set: 0, known: Timestamp(1), others: Mark(7) }
}

/// The stranger tells node 0 what was published.
fn tell(world: &mut World, published: Vec<Published>) {
    world.inject(1, 0, Message::Known { times: Frontier::new(), published });
}

#[test]
fn nobody_publishes_for_this_replica_or_later_than_now() {
    let mut world = World::new(2, 1);
    world.register(&[0, 1]);
    world.put(0, "a", "1");
    delete(&mut world, 0, "a");
    stranger(&mut world, 0, 1);
    let own = world.nodes[0].store.author();
    let now = Timestamp(Timestamp::at(world.now.wall).0 + 9);
    let says = |author: AuthorId, serial: Timestamp| says(author, 1, serial);
    let (heard, ahead) = (AuthorId([8; 16]), AuthorId([9; 16]));
    let published = vec![says(own, now), says(heard, now), says(ahead, Timestamp(u64::MAX))];
    tell(&mut world, published);
    world.run();
    let published: Vec<AuthorId> = world.nodes[0]
        .replica
        .published()
        .filter(|said| said.others == Mark(7))
        .map(|said| said.author)
        .collect();
    assert_eq!(published, [heard]);
    // What it says itself is later than what others make of it.
    let serial = |world: &World| {
        let mut published = world.nodes[0].replica.published();
        published.find(|said| said.author == own).map(|said| said.serial)
    };
    assert!(Some(now) < serial(&world), "{:?}", serial(&world));
}

#[test]
fn what_lay_ahead_of_our_clock_is_asked_for_again_once_it_does_not() {
    let mut world = World::new(2, 1);
    world.register(&[0, 1]);
    world.put(0, "a", "1");
    delete(&mut world, 0, "a");
    stranger(&mut world, 0, 1);
    let ahead = Timestamp::at(WallTime(world.now.wall.0 + 10 * 60 * 1000));
    tell(&mut world, vec![says(AuthorId([8; 16]), 1, ahead)]);
    let asked_in_minutes = |world: &mut World, minutes: u32| {
        world.sent.clear();
        (0..minutes * 4).for_each(|_| world.pass(Duration::from_secs(15)));
        world.sent.iter().filter(|sent| matches!(sent, Message::Restart { .. })).count()
    };
    assert_eq!(asked_in_minutes(&mut world, 4), 0);
    assert_eq!(asked_in_minutes(&mut world, 4), 1);
}

#[test]
fn a_reader_is_heard_of_itself_only_and_a_writer_of_all() {
    let (own, other) = (AuthorId([8; 16]), AuthorId([9; 16]));
    for (access, expected) in [(Access::Read, vec![own]), (Access::Write, vec![own, other])] {
        let mut world = World::new(2, 1);
        world.register(&[0, 1]);
        world.put(0, "a", "1");
        stranger_that(access, &mut world, 0, 1);
        tell(&mut world, vec![says(own, 1, Timestamp(1)), says(other, 2, Timestamp(1))]);
        world.run();
        let heard = world.nodes[0].replica.published().filter(|said| said.others == Mark(7));
        assert_eq!(heard.map(|said| said.author).collect::<Vec<_>>(), expected, "{access:?}");
    }
}

#[test]
fn who_does_not_acknowledge_what_is_known_is_told_no_more() {
    let mut world = World::new(2, 1);
    world.register(&[0, 1]);
    world.put(0, "a", "1");
    stranger(&mut world, 0, 1);
    for serial in 1..6 {
        tell(&mut world, vec![says(AuthorId([8; 16]), 1, Timestamp(serial))]);
        world.pass(Duration::from_secs(7));
    }
    let told = |world: &World| {
        let said = world.sent.iter().filter_map(|sent| match sent {
            Message::Known { published, .. } => Some(published.clone()),
            _ => None,
        });
        said.collect::<Vec<_>>()
    };
    assert_eq!(told(&world).len(), 1);
    // When it does, it is told once what there is to say by then.
    world.inject(1, 0, Message::Ack { count: 1 });
    world.pass(Duration::from_secs(7));
    let told = told(&world);
    assert_eq!(told.len(), 2);
    let serials: Vec<Timestamp> = told[1].iter().map(|said| said.serial).collect();
    assert_eq!(serials, [Timestamp(5)]);
}

#[test]
fn a_peer_that_does_not_give_its_state_holds_the_others_up_for_a_minute_only() {
    let mut world = World::new(3, 1);
    world.register(&[0, 1, 2]);
    world.put(0, "a", "1");
    world.connect(0, 2);
    settle(&mut world);
    for (name, waits) in [("b", true), ("c", false)] {
        stranger(&mut world, 0, 1);
        let times = [(AuthorId([9; 16]), Timestamp::at(world.now.wall))].into_iter().collect();
        world.inject(1, 0, Message::Frontier { times });
        world.pass(Duration::from_secs(2));
        world.put(2, name, "1");
        world.pass(Duration::from_secs(10));
        assert_eq!(reads(&world, 0, name).is_none(), waits, "{name}");
        for _ in 0..12 {
            world.pass(Duration::from_secs(5));
        }
        assert!(reads(&world, 0, name).is_some(), "{name}");
    }
}

/// The even nodes are one half and the odd ones the other. The halves have given each other up, and have forgotten and
/// written what the other does not know of.
fn two_halves(nodes: usize, seed: u64) -> World {
    let mut world = chain(nodes, seed);
    for node in [0, 1] {
        world.put(node, &format!("gone{node}"), "1");
    }
    settle(&mut world);
    (1..nodes).for_each(|n| world.disconnect(n - 1, n));
    for first in [0, 1] {
        let half: Vec<usize> = (first..nodes).step_by(2).collect();
        world.register(&half);
        half.windows(2).for_each(|pair| world.connect(pair[0], pair[1]));
        world.put(first, &format!("kept{first}"), "1");
        delete(&mut world, first, &format!("gone{first}"));
        settle(&mut world);
        assert!(half.iter().all(|node| tombstones(&world, *node) == 0));
        half.windows(2).for_each(|pair| world.disconnect(pair[0], pair[1]));
    }
    world
}

/// Each may take the state of the next one, all around the ring.
#[test]
fn nodes_that_take_each_others_states_do_not_wait_for_each_other() {
    for (nodes, seeds) in [(4, 40), (6, 20)] {
        for seed in 0..seeds {
            let mut world = two_halves(nodes, seed);
            world.register(&(0..nodes).collect::<Vec<_>>());
            (0..nodes).for_each(|n| world.connect(n, (n + 1) % nodes));
            (0..200).for_each(|_| world.pass(Duration::from_millis(100)));
            for node in 0..nodes {
                let what = format!("node {node} of {nodes}, seed {seed}");
                assert_eq!(world.summary(node).digest, world.summary(0).digest, "{what}");
                assert_eq!(shown(&world, node).len(), 2, "{what}");
            }
        }
    }
}

/// A deleted what B and C hold within their frontiers, and has forgotten it. B takes A's state, crashes, and A is gone.
#[test]
fn a_crash_while_a_state_is_taken_leaves_nobody_different_for_good() {
    let is_taken =
        |world: &World, a: usize, b: usize| world.summary(a).frontier == world.summary(b).frontier;
    let is_dropped = |world: &World, _: usize, b: usize| reads(world, b, "v").is_none();
    let moments: [fn(&World, usize, usize) -> bool; 2] = [is_taken, is_dropped];
    for ((a, b), crashes) in [(0, 1), (1, 0)].into_iter().zip(moments.into_iter().cycle()) {
        let c = 2;
        let mut world = World::new(3, 7);
        world.register(&[b, c]);
        world.put(b, "v", "1");
        world.put(b, "x", "1");
        world.connect(b, c);
        world.connect(a, b);
        settle(&mut world);
        delete(&mut world, b, "x");
        settle(&mut world);
        assert!((0..3).all(|node| tombstones(&world, node) == 0));
        world.disconnect(a, b);
        world.disconnect(b, c);
        world.register(&[a]);
        delete(&mut world, a, "v");
        settle(&mut world);
        world.connect(a, b);
        let end = world.now.instant + Duration::from_secs(60);
        while !crashes(&world, a, b) {
            assert!(world.go_on(end));
        }
        world.crash(b);
        world.connect(b, c);
        world.register(&[b, c]);
        settle(&mut world);
        assert_eq!(world.summary(b).digest, world.summary(c).digest);
        assert_eq!(world.summary(b).frontier, world.summary(c).frontier);
        // When A is there again, what it deleted is gone everywhere.
        world.connect(a, c);
        settle(&mut world);
        assert!((0..3).all(|node| shown(&world, node).is_empty()));
        assert!((0..3).all(|node| !world.summary(node).unburied));
    }
}

/// Whoever takes a state sends nothing before it has it, and nobody believes to have read that.
#[test]
fn what_is_withheld_while_a_state_is_taken_is_not_taken_for_read() {
    for (ahead, away) in [(0, 1), (1, 0)] {
        let mut world = World::new(2, 1);
        ahead_and_away(&mut world, ahead, away);
        world.sent.clear();
        let begins = |sent: &Message| matches!(sent, Message::Hello(hello) if hello.reconcile);
        let (mut written, end) = (false, world.now.instant + Duration::from_secs(30));
        while world.go_on(end) {
            if !written && world.sent.iter().any(begins) {
                written = true;
                world.put(away, "own", "1");
            }
            let views = [ahead, away].map(|n| world.nodes[n].store.view(DATASET).expect("open"));
            let cursor = views[0].cursor(id(away)).expect("memory does not fail");
            let feed = views[1].feed(Sequence(0), usize::MAX).expect("memory does not fail");
            let applied = cursor.map_or(Sequence(0), |cursor| cursor.sequence);
            let is_read = feed.iter().any(|r| r.entry.key == key("own") && r.sequence <= applied);
            assert!(!is_read || reads(&world, ahead, "own").is_some());
        }
        assert!(written);
        settle(&mut world);
        assert!(reads(&world, ahead, "own").is_some());
    }
}

/// Two that cannot agree, since one of them lies about its digest, compare once in a while.
#[test]
fn a_difference_that_stays_is_not_compared_all_the_time() {
    let mut world = World::new(2, 1);
    world.put(0, "a", "1");
    world.put(1, "a", "2");
    world.connect(0, 1);
    world.settle();
    world.sent.clear();
    let begin = world.now.instant;
    for _ in 0..60 {
        let mut summary = world.summary(0);
        summary.digest.sum ^= 1;
        let applied = world.summary(1).head.sequence;
        world.inject(0, 1, Message::Check { summary, applied });
        world.pass(Duration::from_millis(100));
    }
    let hellos = world.sent.iter().filter(|sent| matches!(sent, Message::Hello(_))).count();
    let seconds = world.now.instant.since(begin).as_secs();
    assert!(0 < hellos && hellos as u64 <= 2 * seconds, "{hellos} in {seconds} s");
}

/// Nodes come and go, write and delete, and are waited for or not, as a seed wants it.
#[test]
fn whoever_is_waited_for_all_end_up_the_same() {
    const NODES: usize = 4;
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).expect("few");
        let mut world = World::new(NODES, seed);
        for step in 0..60 {
            let (a, b) = (below(NODES), below(NODES));
            match below(12) {
                0..4 => world.put(a, ["x", "y", "z"][below(3)], &format!("{step}")),
                4..6 => delete(&mut world, a, ["x", "y", "z"][below(3)]),
                6 | 7 if a != b => world.connect(a, b),
                8 if a != b => world.disconnect(a, b),
                9 => {
                    let all: Vec<usize> = (0..NODES).filter(|_| below(3) != 0).collect();
                    world.register(&all);
                }
                10 => world.crash(a),
                _ => world.settle(),
            }
        }
        for n in 1..NODES {
            world.connect(n - 1, n);
        }
        world.register(&[0, 1, 2, 3]);
        settle(&mut world);
        for node in 0..NODES {
            assert_eq!(shown(&world, node), shown(&world, 0), "node {node}, seed {seed}");
            assert_eq!(
                world.summary(node).digest,
                world.summary(0).digest,
                "node {node}, seed {seed}"
            );
            assert_eq!(tombstones(&world, node), 0, "node {node}, seed {seed}");
            assert!(
                world.nodes[node].disconnected.is_empty(),
                "{:?}",
                world.nodes[node].disconnected
            );
        }
    }
}
