//! Bytes to messages and back. Every count is checked against the bytes that are left before anything is allocated,
//! and every message has exactly one encoding. `docs/protocol.md` states it, and a recorded conversation in the tests
//! notices if it moves.

use alloc::vec::Vec;

use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::{
    MAX_BATCH_FINGERPRINTS, MAX_COMMIT_VERSIONS, MAX_FRONTIER_AUTHORS, MAX_REASON_BYTES,
};
use crate::model::canonical::{self, LEAST_ENTRY_BYTES};
use crate::model::fingerprint::{Digest, Fingerprint};
use crate::model::frontier::{Frontier, Mark};
use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, DatasetId, NodeId};
use crate::model::version::Entry;
use crate::protocol::garbage::Published;
use crate::protocol::message::{Envelope, Hello, Message};
use crate::reconcile::{Answer, Request};
use crate::store::{Cursor, Epoch, Sequence, Summary};

const HELLO: u8 = 1;
const RESTART: u8 = 2;
const VERSIONS: u8 = 3;
const HAVE: u8 = 4;
const WANT: u8 = 5;
const GIVEN: u8 = 6;
const ACK: u8 = 7;
const LAZY: u8 = 8;
const DESCRIBE: u8 = 9;
const DESCRIPTION: u8 = 10;
const RECONCILED: u8 = 11;
const CHECK: u8 = 12;
const FLUSH: u8 = 13;
const FLUSHED: u8 = 14;
const REJECT: u8 = 15;
const FRONTIER: u8 = 16;
const KNOWN: u8 = 17;
const UNWANTED: u8 = 18;

/// Appends the bytes of a message.
pub fn encode(envelope: &Envelope, to: &mut Vec<u8>) {
    to.extend_from_slice(&envelope.dataset.0);
    match &envelope.message {
        Message::Hello(hello) => {
            to.push(HELLO);
            encode_hello(hello, to);
        }
        Message::Restart { reconcile } => to.extend_from_slice(&[RESTART, u8::from(*reconcile)]),
        Message::Versions { entries, through } => {
            to.push(VERSIONS);
            // Places begin with 1, so zero stands for none.
            Writer(to).varint(through.map_or(0, |through| through.0));
            encode_entries(entries, to);
        }
        Message::Have { fingerprints, through } => {
            to.push(HAVE);
            Writer(to).varint(through.0);
            encode_fingerprints(fingerprints, to);
        }
        Message::Want { fingerprints } => {
            to.push(WANT);
            encode_fingerprints(fingerprints, to);
        }
        Message::Given { entries, more } => {
            to.extend_from_slice(&[GIVEN, u8::from(*more)]);
            encode_entries(entries, to);
        }
        Message::Frontier { times } => {
            to.push(FRONTIER);
            canonical::encode_frontier(times, to);
        }
        Message::Known { times, published } => {
            to.push(KNOWN);
            canonical::encode_frontier(times, to);
            encode_published(published, to);
        }
        Message::Unwanted { fingerprints } => {
            to.push(UNWANTED);
            encode_fingerprints(fingerprints, to);
        }
        Message::Ack { count } => {
            to.push(ACK);
            Writer(to).varint(*count);
        }
        Message::Lazy { lazy } => to.extend_from_slice(&[LAZY, u8::from(*lazy)]),
        Message::Describe(request) => {
            to.push(DESCRIBE);
            request.encode(to);
        }
        Message::Description(answer) => {
            to.push(DESCRIPTION);
            answer.encode(to);
        }
        Message::Reconciled { taken, given } => {
            to.extend_from_slice(&[RECONCILED, u8::from(*taken), u8::from(*given)]);
        }
        Message::Check { summary, applied } => {
            to.push(CHECK);
            encode_summary(summary, to);
            Writer(to).varint(applied.0);
        }
        Message::Flush { id } => {
            to.push(FLUSH);
            Writer(to).varint(*id);
        }
        Message::Flushed { id, head } => {
            to.push(FLUSHED);
            Writer(to).varint(*id);
            Writer(to).varint(head.0);
        }
        Message::Reject { reason } => {
            to.push(REJECT);
            let end = reason.floor_char_boundary(MAX_REASON_BYTES);
            Writer(to).bytes(&reason.as_bytes()[..end]);
        }
    }
}

/// Reads a whole message.
pub fn decode(bytes: &[u8]) -> Result<Envelope, DecodeError> {
    let mut from = Reader::new(bytes);
    let dataset = DatasetId(from.array("dataset")?);
    let message = decode_message(&mut from)?;
    from.finish()?;
    Ok(Envelope { dataset, message })
}

fn decode_message(from: &mut Reader<'_>) -> Result<Message, DecodeError> {
    Ok(match from.u8("message")? {
        HELLO => Message::Hello(decode_hello(from)?),
        RESTART => Message::Restart { reconcile: flag(from, "restart")? },
        VERSIONS => {
            let through = Some(from.varint("place in the feed")?).filter(|place| *place != 0);
            Message::Versions { through: through.map(Sequence), entries: decode_entries(from)? }
        }
        HAVE => {
            let through = Sequence(from.varint("place in the feed")?);
            Message::Have { through, fingerprints: decode_fingerprints(from)? }
        }
        WANT => Message::Want { fingerprints: decode_fingerprints(from)? },
        GIVEN => Message::Given { more: flag(from, "given")?, entries: decode_entries(from)? },
        FRONTIER => Message::Frontier { times: decode_frontier(from)? },
        KNOWN => {
            let times = decode_frontier(from)?;
            Message::Known { times, published: decode_published(from)? }
        }
        UNWANTED => Message::Unwanted { fingerprints: decode_fingerprints(from)? },
        ACK => Message::Ack { count: from.varint("acknowledgement")? },
        LAZY => Message::Lazy { lazy: flag(from, "lazy")? },
        DESCRIBE => Message::Describe(Request::decode(from)?),
        DESCRIPTION => Message::Description(Answer::decode(from)?),
        RECONCILED => Message::Reconciled {
            taken: flag(from, "reconciled")?,
            given: flag(from, "reconciled")?,
        },
        CHECK => {
            let summary = decode_summary(from)?;
            Message::Check { summary, applied: Sequence(from.varint("place in the feed")?) }
        }
        FLUSH => Message::Flush { id: from.varint("flush")? },
        FLUSHED => {
            let id = from.varint("flush")?;
            Message::Flushed { id, head: Sequence(from.varint("place in the feed")?) }
        }
        REJECT => Message::Reject { reason: from.text(MAX_REASON_BYTES, "reason")?.into() },
        _ => return Err(DecodeError::Invalid { what: "message" }),
    })
}

fn encode_hello(hello: &Hello, to: &mut Vec<u8>) {
    to.extend_from_slice(&hello.version.to_le_bytes());
    to.extend_from_slice(&hello.features.to_le_bytes());
    to.extend_from_slice(&hello.conversation.to_le_bytes());
    encode_summary(&hello.summary, to);
    let flags = [hello.cursor.is_some(), hello.reconcile, hello.announce];
    to.push(flags.iter().rev().fold(0, |bits, flag| bits << 1 | u8::from(*flag)));
    if let Some(cursor) = hello.cursor {
        encode_cursor(cursor, to);
    }
}

fn decode_hello(from: &mut Reader<'_>) -> Result<Hello, DecodeError> {
    let version = u16::from_le_bytes(from.array("protocol version")?);
    let features = from.u64("features")?;
    let conversation = u32::from_le_bytes(from.array("conversation")?);
    let summary = decode_summary(from)?;
    let flags = from.u8("hello")?;
    if flags & !7 != 0 {
        return Err(DecodeError::Invalid { what: "hello" });
    }
    let cursor = if flags & 1 == 0 { None } else { Some(decode_cursor(from)?) };
    let (reconcile, announce) = (flags & 2 != 0, flags & 4 != 0);
    Ok(Hello { version, features, conversation, summary, cursor, reconcile, announce })
}

fn encode_summary(summary: &Summary, to: &mut Vec<u8>) {
    Writer(to).u128(summary.digest.sum);
    Writer(to).varint(summary.digest.count);
    encode_cursor(summary.head, to);
    Writer(to).u64(summary.frontier.0);
    Writer(to).u8(u8::from(summary.unburied));
}

fn decode_summary(from: &mut Reader<'_>) -> Result<Summary, DecodeError> {
    let digest = Digest { sum: from.u128("digest")?, count: from.varint("digest")? };
    let head = decode_cursor(from)?;
    let frontier = Mark(from.u64("frontier")?);
    Ok(Summary { digest, head, frontier, unburied: flag(from, "unburied")? })
}

fn encode_cursor(cursor: Cursor, to: &mut Vec<u8>) {
    Writer(to).u64(cursor.epoch.0);
    Writer(to).varint(cursor.sequence.0);
}

fn decode_cursor(from: &mut Reader<'_>) -> Result<Cursor, DecodeError> {
    let epoch = Epoch(from.u64("epoch")?);
    Ok(Cursor { epoch, sequence: Sequence(from.varint("place in the feed")?) })
}

fn encode_entries(entries: &[Entry], to: &mut Vec<u8>) {
    Writer(to).count(entries.len());
    entries.iter().for_each(|entry| canonical::encode_entry(entry, to));
}

fn decode_entries(from: &mut Reader<'_>) -> Result<Vec<Entry>, DecodeError> {
    let count = from.count(LEAST_ENTRY_BYTES, MAX_COMMIT_VERSIONS, "versions of a commit")?;
    // No capacity up front: an entry in memory is larger than its fewest bytes on the wire.
    let mut entries = Vec::new();
    for _ in 0..count {
        entries.push(canonical::decode_entry(from)?);
    }
    Ok(entries)
}

fn encode_fingerprints(fingerprints: &[Fingerprint], to: &mut Vec<u8>) {
    Writer(to).count(fingerprints.len());
    fingerprints.iter().for_each(|fingerprint| Writer(to).u128(fingerprint.0));
}

fn decode_fingerprints(from: &mut Reader<'_>) -> Result<Vec<Fingerprint>, DecodeError> {
    let count = from.count(16, MAX_BATCH_FINGERPRINTS, "fingerprints")?;
    (0..count).map(|_| from.u128("fingerprint").map(Fingerprint)).collect()
}

fn decode_frontier(from: &mut Reader<'_>) -> Result<Frontier, DecodeError> {
    canonical::decode_frontier(from, MAX_FRONTIER_AUTHORS)
}

fn encode_published(published: &[Published], to: &mut Vec<u8>) {
    let mut to = Writer(to);
    to.count(published.len());
    for Published { author, node, serial, set, known, others } in published {
        to.raw(&author.0);
        to.raw(&node.0);
        to.u64(serial.0);
        to.u64(*set);
        to.u64(known.0);
        to.u64(others.0);
    }
}

fn decode_published(from: &mut Reader<'_>) -> Result<Vec<Published>, DecodeError> {
    let count = from.count(64, MAX_FRONTIER_AUTHORS, "published")?;
    let published = (0..count).map(|_| {
        Ok(Published {
            author: AuthorId(from.array("author")?),
            node: NodeId(from.array("node")?),
            serial: Timestamp(from.u64("serial")?),
            set: from.u64("set")?,
            known: Timestamp(from.u64("time")?),
            others: Mark(from.u64("others")?),
        })
    });
    published.collect()
}

fn flag(from: &mut Reader<'_>, what: &'static str) -> Result<bool, DecodeError> {
    match from.u8(what)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::Invalid { what }),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::model::generators::any_entry;
    use crate::reconcile::generators::{any_answer, any_request};

    fn any_cursor() -> impl Strategy<Value = Cursor> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(epoch, place)| Cursor { epoch: Epoch(epoch), sequence: Sequence(place) })
    }

    fn any_summary() -> impl Strategy<Value = Summary> {
        (any::<u128>(), any::<u64>(), any_cursor(), any::<u64>(), any::<bool>()).prop_map(
            |(sum, count, head, mark, unburied)| Summary {
                digest: Digest { sum, count },
                head,
                frontier: Mark(mark),
                unburied,
            },
        )
    }

    fn any_fingerprints() -> impl Strategy<Value = Vec<Fingerprint>> {
        prop::collection::vec(any::<u128>().prop_map(Fingerprint), 0..5)
    }

    fn any_frontier() -> impl Strategy<Value = Frontier> {
        let time = (any::<[u8; 16]>(), 1u64..);
        let times = prop::collection::vec(time, 0..4);
        times.prop_map(|times| {
            times.into_iter().map(|(author, time)| (AuthorId(author), Timestamp(time))).collect()
        })
    }

    fn any_published() -> impl Strategy<Value = Published> {
        any::<([u8; 16], [u8; 16], u64, u64, u64, u64)>().prop_map(
            |(author, node, serial, set, known, others)| Published {
                author: AuthorId(author),
                node: NodeId(node),
                serial: Timestamp(serial),
                set,
                known: Timestamp(known),
                others: Mark(others),
            },
        )
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let entries = || prop::collection::vec(any_entry(), 0..4);
        let place = || any::<u64>().prop_map(Sequence);
        let hello =
            (any_summary(), prop::option::of(any_cursor()), any::<(u16, u64, u32, bool, bool)>());
        let hello = hello.prop_map(|(summary, cursor, others)| {
            let (version, features, conversation, reconcile, announce) = others;
            Hello { version, features, conversation, summary, cursor, reconcile, announce }
        });
        prop_oneof![
            hello.prop_map(Message::Hello),
            any::<bool>().prop_map(|reconcile| Message::Restart { reconcile }),
            (entries(), prop::option::of((1u64..).prop_map(Sequence)))
                .prop_map(|(entries, through)| Message::Versions { entries, through }),
            (any_fingerprints(), place())
                .prop_map(|(fingerprints, through)| Message::Have { fingerprints, through }),
            any_fingerprints().prop_map(|fingerprints| Message::Want { fingerprints }),
            (entries(), any::<bool>()).prop_map(|(entries, more)| Message::Given { entries, more }),
            any_frontier().prop_map(|times| Message::Frontier { times }),
            (any_frontier(), prop::collection::vec(any_published(), 0..3))
                .prop_map(|(times, published)| Message::Known { times, published }),
            any_fingerprints().prop_map(|fingerprints| Message::Unwanted { fingerprints }),
            any::<u64>().prop_map(|count| Message::Ack { count }),
            any::<bool>().prop_map(|lazy| Message::Lazy { lazy }),
            any_request().prop_map(Message::Describe),
            any_answer().prop_map(Message::Description),
            any::<(bool, bool)>().prop_map(|(taken, given)| Message::Reconciled { taken, given }),
            (any_summary(), place())
                .prop_map(|(summary, applied)| Message::Check { summary, applied }),
            any::<u64>().prop_map(|id| Message::Flush { id }),
            (any::<u64>(), place()).prop_map(|(id, head)| Message::Flushed { id, head }),
            ".{0,20}".prop_map(|reason| Message::Reject { reason }),
        ]
    }

    fn encoded(envelope: &Envelope) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(envelope, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn a_message_comes_back_from_its_bytes(message in any_message(), dataset: [u8; 16]) {
            let envelope = Envelope { dataset: DatasetId(dataset), message };
            prop_assert_eq!(decode(&encoded(&envelope)), Ok(envelope));
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            message in any_message(),
            place in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let mut bytes = encoded(&Envelope { dataset: DatasetId([0; 16]), message });
            let place = place.index(bytes.len());
            bytes[place] = value;
            if let Ok(other) = decode(&bytes) {
                prop_assert_eq!(encoded(&other), bytes);
            }
        }

        #[test]
        fn a_message_that_is_cut_off_is_refused(
            message in any_message(),
            place in any::<prop::sample::Index>(),
        ) {
            let bytes = encoded(&Envelope { dataset: DatasetId([0; 16]), message });
            prop_assert!(decode(&bytes[..place.index(bytes.len())]).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
