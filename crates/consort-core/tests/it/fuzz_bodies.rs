//! What the fuzz targets in `fuzz/` do with their bytes. Here so that a test drives them with a bounded number of
//! random inputs on every compiler; finding more than that is the fuzzer's work.

use consort_core::content::chunker::Chunker;
use consort_core::content::delta::{self, Instruction};
use consort_core::content::exchange::{Answer, Reply, Request};
use consort_core::content::manifest;
use consort_core::content::{ChunkRef, NodeRef};
use consort_core::encoding::Reader;
use consort_core::limits::MAX_CHUNK_BYTES;
use consort_core::model::canonical;
use consort_core::protocol::event::Access;
use consort_core::protocol::membership::{self, MAX_DATAGRAM_BYTES, Member, Membership, Word};
use consort_core::protocol::{Effect, Envelope, Event, Message, Now, Replica, codec};
use consort_core::store::memory::MemoryStore;
use consort_core::store::{DatasetParameters, Epoch, LocalWrite, Store};
use consort_core::{
    AuthorId, Commit, Content, DatasetId, FingerprintKey, Instant, Key, NodeId, WallTime,
};

/// What is a message has one encoding.
pub(crate) fn message(bytes: &[u8]) {
    if let Ok(envelope) = codec::decode(bytes) {
        let mut again = Vec::new();
        codec::encode(&envelope, &mut again);
        assert_eq!(again, bytes);
    }
}

/// What is an entry has one encoding.
pub(crate) fn entry(bytes: &[u8]) {
    let mut reader = Reader::new(bytes);
    if let Ok(entry) = canonical::decode_entry(&mut reader) {
        let mut again = Vec::new();
        canonical::encode_entry(&entry, &mut again);
        assert_eq!(again, &bytes[..bytes.len() - reader.remaining()]);
    }
}

/// A node is refused or as long as its reference says.
pub(crate) fn manifest(bytes: &[u8]) {
    let [level, span, node @ ..] = bytes else { return };
    let chunk = ChunkRef::to(&node[..node.len().min(1024)]);
    let reference = NodeRef { chunk, span: u64::from(*span) };
    let _ = manifest::decode(node, 1 + level % 4, &reference);
}

/// Any content is cut into chunks of bounded length, the same ones if no more of it is seen at a time than must be.
pub(crate) fn chunker(bytes: &[u8]) {
    // Longer than what the fuzzer makes, or all would be one chunk: the bytes begin it, and come again later.
    let content = [bytes, &[7; MAX_CHUNK_BYTES], bytes, bytes].concat();
    let mut chunker = Chunker::default();
    let mut rest = &content[..];
    for chunk in Chunker::default().chunks(&content) {
        assert!(chunk.len() <= MAX_CHUNK_BYTES);
        assert_eq!(chunker.next(&rest[..rest.len().min(MAX_CHUNK_BYTES)]), chunk.len());
        rest = &rest[chunk.len()..];
    }
    assert!(rest.is_empty());
}

/// What is a request for chunks has one encoding; of a reply, nothing is longer than what it is in.
pub(crate) fn exchange(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let length = match Reply::decode(bytes) {
        Ok(Reply::Response(response)) => {
            let length = |answer: Answer<&[u8]>| match answer {
                Answer::Chunk(chunk) => chunk.len(),
                Answer::Missing | Answer::Coming(_) => 0,
            };
            response.answers.into_iter().map(length).sum()
        }
        Ok(Reply::Late(chunks)) => chunks.into_iter().map(|(_, chunk)| chunk.len()).sum(),
        Err(_) => 0,
    };
    assert!(length <= bytes.len());
}

/// What is an instruction of a delta has one encoding, and so has a request for one.
pub(crate) fn delta(bytes: &[u8]) {
    if let Ok(request) = delta::Request::decode(bytes) {
        let mut again = Vec::new();
        request.encode(&mut again);
        assert_eq!(again, bytes);
    }
    let (mut from, mut again) = (Reader::new(bytes), Vec::new());
    while let Ok(instruction) = Instruction::decode(&mut from) {
        instruction.encode(&mut again);
        assert!(bytes.starts_with(&again));
    }
}

/// A word has one encoding, and a member takes any datagram of another: it answers within the bounds of datagrams.
pub(crate) fn datagram(bytes: &[u8]) {
    if let Ok(word) = Word::decode(bytes) {
        assert_eq!(&[word.encode()][..], bytes);
    }
    let member = |id| Member { node: NodeId([id; 16]), passes_on: true, dialable: true };
    let mut now = Instant(0);
    let mut own = Membership::new(member(0), 1, 0, now);
    let members = (0..4).map(member).collect();
    let received = membership::Event::Received { from: NodeId([1; 16]), datagram: bytes.to_vec() };
    let events = [
        membership::Event::Members { members },
        received.clone(),
        membership::Event::DeadlinePassed,
        received,
    ];
    for event in events {
        let mut effects = Vec::new();
        own.handle(event, now, &mut effects);
        for effect in effects {
            if let membership::Effect::Send { datagram, .. } = effect {
                assert!(datagram.len() <= MAX_DATAGRAM_BYTES);
            }
        }
        now = own.deadline();
    }
}

/// A link that is up takes any messages: it carries on or ends, and asks for nothing without bounds.
pub(crate) fn link(mut bytes: &[u8]) {
    let dataset =
        DatasetParameters { id: DatasetId([0; 16]), fingerprint_key: FingerprintKey([0; 32]) };
    let peer = NodeId([1; 16]);
    let mut now = Now { instant: Instant(0), wall: WallTime(1_700_000_000_000) };
    let mut store = MemoryStore::new(AuthorId([0; 16]), Epoch(0));
    store.open_dataset(dataset).expect("memory does not fail");
    let key = Key::new("key").expect("a valid key");
    let write = LocalWrite::new(key, Content::Inline([7].into()));
    store.apply_local(dataset.id, vec![write], now.wall).expect("memory does not fail");
    let opener = bytes.first().is_some_and(|first| first % 2 == 0);
    let access = Access::Write;
    let mut replica = Replica::new(dataset.fingerprint_key, access, 0);
    let mut events = vec![Event::Connected { peer, access, opener, standing: true }];
    let mut sent = None;
    loop {
        while let Some(event) = events.pop() {
            let view = store.view(dataset.id).expect("it is open");
            let mut effects = Vec::new();
            replica.handle(event, now, &view, &mut effects).expect("memory does not fail");
            for effect in effects {
                match effect {
                    Effect::Send { message, .. } => sent = Some(message),
                    Effect::Commit { peer, entries, cursor } => {
                        let applied =
                            store.apply_remote(dataset.id, peer, Commit { entries }, cursor);
                        let stale = applied.expect("memory does not fail").stale;
                        events.splice(0..0, [Event::Grew, Event::Committed { peer, stale }]);
                    }
                    Effect::Learn { peer, lesson } => {
                        store.learn(dataset.id, lesson).expect("memory does not fail");
                        events.insert(0, Event::Learned { peer });
                    }
                    Effect::Disconnect { .. } => return,
                    Effect::FlushDirectory { .. } | Effect::BarrierReached { .. } => {}
                }
            }
        }
        now.instant.0 += 1_000_000;
        let Some(([length], rest)) = bytes.split_first_chunk() else { return };
        let (message, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        bytes = rest;
        events.push(match codec::decode(&[&dataset.id.0, message].concat()) {
            Ok(Envelope { message, .. }) => Event::Received { peer, message },
            // An answer to its Hello is what it could not guess.
            Err(_) => match sent.take() {
                Some(Message::Hello(hello)) => {
                    Event::Received { peer, message: Message::Hello(hello) }
                }
                _ => Event::DeadlinePassed,
            },
        });
    }
}

#[cfg(test)]
mod bounded {
    use proptest::prelude::*;

    /// What contents of known formats begin with. (A tar has a checksum.)
    const BEGINNINGS: &[&[u8]] = &[b"PAR1", b"PK\x03\x04", b"\x40\0\0\0\0\0\0\0{\""];

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            super::message(&bytes);
            super::entry(&bytes);
            super::manifest(&bytes);
            super::chunker(&bytes);
            super::exchange(&bytes);
            super::delta(&bytes);
            super::datagram(&bytes);
            super::link(&bytes);
        }

        #[test]
        fn what_begins_like_a_format_does_no_harm(
            magic in prop::sample::select(BEGINNINGS),
            fields in prop::collection::vec(prop_oneof![0u8..64, any::<u8>()], 0..300),
        ) {
            super::chunker(&[magic, &fields].concat());
        }

        #[test]
        fn what_almost_is_a_datagram_does_no_harm(
            swim in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..100),
            news in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..100),
        ) {
            // What a member looks into has to be cut well, and to say that it comes from where it does.
            let swim = [&[1; 16], &swim[..]].concat();
            let length = u16::try_from(swim.len()).expect("short").to_le_bytes();
            super::datagram(&[&length[..], &swim, &news].concat());
        }

        #[test]
        fn short_messages_of_all_kinds_do_no_harm_to_a_link(
            messages in prop::collection::vec((1u8..16, prop::collection::vec(0u8..4, 0..6)), 0..30),
        ) {
            let mut bytes = Vec::new();
            for (kind, fields) in messages {
                bytes.push(u8::try_from(fields.len() + 1).expect("short"));
                bytes.push(kind);
                bytes.extend(fields);
            }
            super::link(&bytes);
        }
    }
}
