//! A peer that says anything at all: it is cut off or ignored, and nothing else happens to anybody.

use consort_core::limits::WINDOW_MESSAGES;
use consort_core::protocol::Message;
use consort_core::protocol::link::Phase;
use consort_core::protocol::message::{Hello, PROTOCOL_VERSION};
use consort_core::reconcile::method::FIRST_SYMBOLS;
use consort_core::reconcile::{Answer, Batch, MAX_RUN_SYMBOLS, Request, Run, Symbol};
use consort_core::store::{Sequence, Summary};
use consort_core::{Content, Digest, Dot, Entry, Fingerprint, Version, VersionVector};
use proptest::prelude::*;

use crate::world::{World, key};

const OVERRUN: &str = "it sends without waiting for acknowledgements";

fn any_message() -> impl Strategy<Value = Message> {
    let counts = prop_oneof![Just(0), 1u64..200, Just(100_000), any::<u64>()];
    let hello = any::<(u32, bool, bool)>()
        .prop_flat_map(move |(conversation, reconcile, announce)| {
            (Just((conversation, reconcile, announce)), counts.clone())
        })
        .prop_map(|((conversation, reconcile, announce), count)| {
            let digest = Digest { sum: 5, count };
            let summary = Summary { digest, ..Summary::default() };
            Message::Hello(Hello {
                version: PROTOCOL_VERSION,
                features: !0,
                conversation,
                summary,
                cursor: None,
                reconcile,
                announce,
            })
        });
    let fingerprints = || prop::collection::vec((0u128..9).prop_map(Fingerprint), 0..4);
    let entries = || {
        prop::collection::vec(
            (1u64..10).prop_map(|n| {
                let dot = Dot { time: consort_core::Timestamp(n << 16), ..Dot::default() };
                let (seen, attributes) = (VersionVector::new(), Default::default());
                let version = Version { dot, seen, content: Content::Deleted, attributes };
                Entry { key: key("hostile"), version }
            }),
            0..3,
        )
    };
    prop_oneof![
        hello,
        any::<bool>().prop_map(|reconcile| Message::Restart { reconcile }),
        (entries(), any::<Option<u64>>()).prop_map(|(entries, through)| Message::Versions {
            entries,
            through: through.map(Sequence)
        }),
        (fingerprints(), any::<u64>()).prop_map(|(fingerprints, through)| Message::Have {
            fingerprints,
            through: Sequence(through)
        }),
        fingerprints().prop_map(|fingerprints| Message::Want { fingerprints }),
        (entries(), any::<bool>()).prop_map(|(entries, more)| Message::Given { entries, more }),
        (0u64..9).prop_map(|count| Message::Ack { count }),
        any::<bool>().prop_map(|lazy| Message::Lazy { lazy }),
        any_request().prop_map(Message::Describe),
        any_answer().prop_map(Message::Description),
        any::<(bool, bool)>().prop_map(|(taken, given)| Message::Reconciled { taken, given }),
        any::<u64>().prop_map(|applied| Message::Check {
            summary: Summary::default(),
            applied: Sequence(applied)
        }),
        any::<u64>().prop_map(|id| Message::Flush { id }),
        any::<(u64, u64)>().prop_map(|(id, head)| Message::Flushed { id, head: Sequence(head) }),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let after = || prop::option::of((0u128..9).prop_map(|n| Fingerprint(n << 124)));
    let symbols = || prop_oneof![1usize..50, Just(MAX_RUN_SYMBOLS)];
    prop_oneof![
        symbols().prop_map(|symbols| Request::Prefix { symbols }),
        symbols().prop_map(|symbols| Request::Further { symbols }),
        (after(), 1usize..99, symbols()).prop_map(|(after, width, symbols)| Request::Range {
            after,
            width,
            symbols
        }),
        after().prop_map(|after| Request::Sorted { after }),
    ]
}

/// Answers that are often as long as what was asked for.
fn any_answer() -> impl Strategy<Value = Answer> {
    let fingerprint = || (0u128..9).prop_map(|n| Fingerprint(n << 120 | n));
    let symbol = prop_oneof![
        1 => fingerprint().prop_map(Symbol::of),
        3 => Just(Symbol::ZERO),
        1 => (0i64..9).prop_map(|count| Symbol { count, ..Symbol::of(Fingerprint(7)) }),
    ];
    let count = prop_oneof![1 => 0usize..100, 4 => Just(FIRST_SYMBOLS)];
    let symbols = count.prop_flat_map(move |count| prop::collection::vec(symbol.clone(), count));
    let starts = prop_oneof![4 => Just(0), 1 => 0usize..100];
    let ends = prop::option::weighted(0.3, fingerprint());
    prop_oneof![
        3 => (symbols, starts, ends, 9u64..99).prop_map(|(symbols, start, end, total)| {
            Answer::Symbols { run: Run { total, start, symbols }, end }
        }),
        1 => (prop::collection::btree_set(fingerprint(), 0..9), any::<bool>()).prop_map(
            |(fingerprints, last)| {
                let fingerprints = fingerprints.into_iter().collect();
                Answer::Sorted(Batch { fingerprints, last })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_messages_harms_nobody_else(
        seed: u64,
        hostile in prop_oneof![Just(0), Just(2)],
        messages in prop::collection::vec((any_message(), 0u8..4), 0..40),
    ) {
        let victim = 2 - hostile;
        let mut world = World::new(3, seed);
        for n in 0..60 {
            world.put(victim, &format!("good/{n}"), "1");
        }
        world.connect(victim, 1);
        // What the hostile one really says is replaced by the messages.
        world.connect(victim, hostile);
        for (message, steps) in messages {
            world.inject(hostile, victim, message);
            for _ in 0..steps {
                world.step();
            }
        }
        world.disconnect(victim, hostile);
        world.put(1, "other", "2");
        world.settle();
        prop_assert_eq!(world.summary(victim).digest, world.summary(1).digest);
        prop_assert!(world.connected(victim, 1));
    }
}

#[test]
fn comparing_out_of_turn_ends_the_link() {
    let asked = "it asks for a description outside of a reconciliation";
    let described = "it describes what it holds, and nobody asked";
    let batch = Batch { fingerprints: Vec::new(), last: true };
    for (message, reason) in [
        (Message::Describe(Request::Sorted { after: None }), asked),
        (Message::Description(Answer::Sorted(batch)), described),
    ] {
        let mut world = World::new(2, 1);
        world.connect(0, 1);
        world.settle();
        world.inject(1, 0, message);
        assert_eq!(world.nodes[0].disconnected, [reason]);
    }
}

#[test]
fn asking_for_the_same_again_ends_the_link() {
    let mut world = World::new(2, 1);
    world.put(0, "a", "1");
    world.put(1, "b", "2");
    world.connect(0, 1);
    // Whatever else node 1 says: both have something, so node 0 describes.
    while world.link(0).phase != Phase::Reconciling {
        assert!(world.step());
    }
    for _ in 0..2 {
        world.inject(1, 0, Message::Describe(Request::Prefix { symbols: 5 }));
    }
    assert_eq!(world.nodes[0].disconnected, ["it asks for what it compared already"]);
}

#[test]
fn acknowledging_what_was_not_sent_ends_the_link() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    world.inject(1, 0, Message::Ack { count: 1_000_000 });
    assert_eq!(world.nodes[0].disconnected, ["it acknowledges what it was not sent"]);
}

#[test]
fn commits_of_nothing_do_not_pile_up() {
    let mut world = World::new(2, 1);
    world.connect(0, 1);
    world.settle();
    // The disk is slow, and the peer waits for nothing, not even for its next connection.
    for _ in 0..4 {
        for _ in 0..4 * WINDOW_MESSAGES {
            world.inject(1, 0, Message::Versions { entries: Vec::new(), through: None });
        }
        assert_eq!(world.nodes[0].disconnected.pop().as_deref(), Some(OVERRUN));
        assert!(world.nodes[0].committing.len() <= 2 * WINDOW_MESSAGES);
        world.connect(0, 1);
        while world.deliver_one() {}
    }
    world.settle();
    world.assert_converged();
}
