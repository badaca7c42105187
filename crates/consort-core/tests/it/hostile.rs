//! A peer that says anything at all: it is cut off or ignored, and nothing else happens to anybody.

use consort_core::limits::WINDOW_MESSAGES;
use consort_core::protocol::Message;
use consort_core::protocol::message::{Hello, PROTOCOL_VERSION};
use consort_core::reconcile::Batch;
use consort_core::store::{Sequence, Summary};
use consort_core::{Content, Dot, Entry, Fingerprint, Version, VersionVector};
use proptest::prelude::*;

use crate::world::{World, key};

const OVERRUN: &str = "it sends without waiting for acknowledgements";

fn any_message() -> impl Strategy<Value = Message> {
    let hello = any::<(u32, bool, bool)>().prop_map(|(conversation, reconcile, announce)| {
        let summary = Summary::default();
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
            (0u64..9).prop_map(|n| {
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
        Just(Message::Lazy),
        Just(Message::More),
        (fingerprints(), any::<bool>())
            .prop_map(|(fingerprints, last)| Message::Fingerprints(Batch { fingerprints, last })),
        Just(Message::Reconciled),
        any::<u64>().prop_map(|applied| Message::Check {
            summary: Summary::default(),
            applied: Sequence(applied)
        }),
        any::<u64>().prop_map(|id| Message::Flush { id }),
        any::<(u64, u64)>().prop_map(|(id, head)| Message::Flushed { id, head: Sequence(head) }),
    ]
}

proptest! {
    #[test]
    fn any_sequence_of_messages_harms_nobody_else(
        seed: u64,
        messages in prop::collection::vec((any_message(), 0u8..4), 0..40),
    ) {
        let mut world = World::new(3, seed);
        world.put(0, "good", "1");
        world.connect(0, 1);
        // Node 2 is the hostile one: what it really says is replaced by the messages.
        world.connect(0, 2);
        for (message, steps) in messages {
            world.inject(2, 0, message);
            for _ in 0..steps {
                world.step();
            }
        }
        world.disconnect(0, 2);
        world.put(1, "other", "2");
        world.settle();
        prop_assert_eq!(world.summary(0).digest, world.summary(1).digest);
        prop_assert!(world.connected(0, 1));
    }
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
