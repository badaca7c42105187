//! The messages of a content connection. Who opened it sends a [`Request`]; the other side answers each with one
//! [`Response`], in the order of the requests. What to ask whom for is decided in [`transfer`](super::transfer).
//!
//! ```text
//!   request   id (4), count, count × (hash (32), length)
//!   response  id (4), count, count × (0: missing, 1 or 2: coming, or else its length + 2), the chunks one after another
//!   late      2³² - 1 (4), count, count × (hash (32), length), the chunks one after another
//! ```
//!
//! A chunk that is coming is one that the sender is just getting, from where everything is (1) or from somebody who is
//! just getting it (2): when it is there, it is sent *late*, between two responses.
//!
//! Chunks come last, so that a sender writes them from where it read them and a receiver uses them where they arrived:
//! neither copies. A response says nothing about which chunks it holds; only their hashes do.

use alloc::vec::Vec;

use crate::content::ChunkRef;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::{MAX_CHUNK_BYTES, MAX_CONTENT_MESSAGE_BYTES, MAX_REQUEST_CHUNKS};
use crate::model::canonical::{decode_chunk, encode_chunk};

/// The fewest bytes of a reference: a hash and a length.
const LEAST_CHUNK_BYTES: usize = 33;

/// Asks for chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the response will be told by; never [`LATE`].
    pub id: u32,
    /// What is asked for: 1 to [`MAX_REQUEST_CHUNKS`], of [`MAX_CONTENT_MESSAGE_BYTES`] in sum at the most.
    pub chunks: Vec<ChunkRef>,
}

impl Request {
    /// Appends its bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.id.to_le_bytes());
        let mut to = Writer(to);
        to.count(self.chunks.len());
        self.chunks.iter().for_each(|chunk| encode_chunk(chunk, &mut to));
    }

    /// Reads a whole request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let id = u32::from_le_bytes(from.array("request")?);
        if id == LATE {
            return Err(DecodeError::Invalid { what: "id of a request" });
        }
        let chunks = decode_chunks(&mut from)?;
        from.finish()?;
        Ok(Self { id, chunks })
    }

    /// The bytes of all its chunks.
    pub fn payload_bytes(&self) -> usize {
        payload_bytes(&self.chunks)
    }
}

/// How a chunk comes to a sender that does not have it yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It gets it from where everything seems to be.
    Direct,
    /// It waits for somebody who promised it.
    Indirect,
}

/// What a sender says of a chunk that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// It does not have it.
    Missing,
    /// It does not have it yet, and will send it late.
    Coming(Promise),
    /// It has it: the bytes, not verified, or their length.
    Chunk(T),
}

/// What comes back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// The answers to the oldest request that has none yet.
    Response(Response<'a>),
    /// Chunks that were coming, with their bytes, not verified.
    Late(Vec<(ChunkRef, &'a [u8])>),
}

/// The answers to a request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request; never [`LATE`].
    pub id: u32,
    /// One for each chunk that was asked for.
    pub answers: Vec<Answer<&'a [u8]>>,
}

/// Stands where a response has its id, so no request has it.
pub const LATE: u32 = u32::MAX;

/// Appends what comes before the chunks of a response. `answers` has one element for each chunk that was asked for; the
/// chunks with these lengths must follow, in this order.
pub fn encode_response(
    id: u32,
    answers: impl ExactSizeIterator<Item = Answer<u32>>,
    to: &mut Vec<u8>,
) {
    to.extend_from_slice(&id.to_le_bytes());
    let mut to = Writer(to);
    to.count(answers.len());
    answers.for_each(|answer| {
        to.varint(match answer {
            Answer::Missing => 0,
            Answer::Coming(Promise::Direct) => 1,
            Answer::Coming(Promise::Indirect) => 2,
            Answer::Chunk(length) => u64::from(length) + 2,
        });
    });
}

/// Appends what comes before chunks that are late; they must follow, in this order.
pub fn encode_late(chunks: &[ChunkRef], to: &mut Vec<u8>) {
    Request { id: LATE, chunks: chunks.to_vec() }.encode(to);
}

impl<'a> Reply<'a> {
    /// Whether it answers no request.
    pub fn is_late(bytes: &[u8]) -> bool {
        bytes.starts_with(&LATE.to_le_bytes())
    }

    /// Reads all that came at once. The chunks stay where they are in `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        match u32::from_le_bytes(from.array("response")?) {
            LATE => Self::decode_late(from),
            id => Self::decode_response(id, from),
        }
    }

    fn decode_response(id: u32, mut from: Reader<'a>) -> Result<Self, DecodeError> {
        let count = from.count(1, MAX_REQUEST_CHUNKS, "answers")?;
        let mut lengths = from.clone();
        for _ in 0..count {
            from.varint("length of an answer")?;
        }
        let answers = (0..count).map(|_| {
            let limit = MAX_CHUNK_BYTES;
            match lengths.varint("length of an answer")? {
                0 => Ok(Answer::Missing),
                1 => Ok(Answer::Coming(Promise::Direct)),
                2 => Ok(Answer::Coming(Promise::Indirect)),
                number => match usize::try_from(number - 2) {
                    Ok(length) if length <= limit => from.raw(length, "answer").map(Answer::Chunk),
                    _ => Err(DecodeError::TooLarge { what: "length of an answer", limit }),
                },
            }
        });
        let answers = answers.collect::<Result<Vec<_>, _>>()?;
        from.finish()?;
        Ok(Self::Response(Response { id, answers }))
    }

    fn decode_late(mut from: Reader<'a>) -> Result<Self, DecodeError> {
        let chunks = decode_chunks(&mut from)?;
        let with_bytes = chunks.into_iter().map(|chunk| {
            let bytes = from.raw(chunk.length as usize, "chunk that is late")?;
            Ok((chunk, bytes))
        });
        let chunks = with_bytes.collect::<Result<Vec<_>, _>>()?;
        from.finish()?;
        Ok(Self::Late(chunks))
    }
}

/// Reads references to chunks, no more than a message holds.
fn decode_chunks(from: &mut Reader<'_>) -> Result<Vec<ChunkRef>, DecodeError> {
    let count = from.count(LEAST_CHUNK_BYTES, MAX_REQUEST_CHUNKS, "chunks of a message")?;
    if count == 0 {
        return Err(DecodeError::Invalid { what: "chunks of a message" });
    }
    let chunks = (0..count).map(|_| decode_chunk(from)).collect::<Result<Vec<_>, _>>()?;
    if MAX_CONTENT_MESSAGE_BYTES < payload_bytes(&chunks) {
        let limit = MAX_CONTENT_MESSAGE_BYTES;
        return Err(DecodeError::TooLarge { what: "the sum of a message's chunks", limit });
    }
    Ok(chunks)
}

/// The bytes of all these chunks.
pub fn payload_bytes(chunks: &[ChunkRef]) -> usize {
    chunks.iter().map(|chunk| chunk.length as usize).sum()
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::content::ChunkHash;
    use crate::limits::MAX_CONTENT_OVERHEAD_BYTES;

    fn encoded(request: &Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        bytes
    }

    fn with<'a, T, U>(answer: &'a Answer<T>, map: impl FnOnce(&'a T) -> U) -> Answer<U> {
        match answer {
            Answer::Missing => Answer::Missing,
            Answer::Coming(promise) => Answer::Coming(*promise),
            Answer::Chunk(chunk) => Answer::Chunk(map(chunk)),
        }
    }

    fn chunk(length: usize) -> ChunkRef {
        ChunkRef { hash: ChunkHash([7; 32]), length: u32::try_from(length).expect("short") }
    }

    proptest! {
        #[test]
        fn requests_come_back(id in 0..LATE, seeds in proptest::collection::vec(any::<[u8; 32]>(), 1..40)) {
            let chunks = seeds.iter().map(|seed| ChunkRef {
                hash: ChunkHash(*seed),
                length: 1 + u32::from(u16::from_le_bytes([seed[0], seed[1]]) >> 2),
            });
            let request = Request { id, chunks: chunks.collect() };
            prop_assert_eq!(Request::decode(&encoded(&request)), Ok(request));
        }

        #[test]
        fn responses_come_back(
            id in 0..LATE,
            present in proptest::collection::vec(0u8..4, 0..60),
            fill: u8,
        ) {
            let payloads: Vec<Answer<Vec<u8>>> = present
                .iter()
                .enumerate()
                .map(|(at, present)| match present {
                    0 => Answer::Missing,
                    1 => Answer::Coming(Promise::Direct),
                    2 => Answer::Coming(Promise::Indirect),
                    _ => Answer::Chunk(vec![fill; 1 + at * 37]),
                })
                .collect();
            let mut bytes = Vec::new();
            encode_response(id, payloads.iter().map(|payload| with(payload, |p| u32::try_from(p.len()).unwrap())), &mut bytes);
            for payload in &payloads {
                if let Answer::Chunk(payload) = payload {
                    bytes.extend_from_slice(payload);
                }
            }
            let answers = payloads.iter().map(|payload| with(payload, |p| &p[..])).collect();
            let expected = Reply::Response(Response { id, answers });
            prop_assert_eq!(Reply::decode(&bytes), Ok(expected));
            bytes.push(0);
            prop_assert_eq!(Reply::decode(&bytes), Err(DecodeError::Trailing { count: 1 }));
        }

        #[test]
        fn what_is_late_comes_back(lengths in proptest::collection::vec(1usize..3000, 1..40)) {
            let payloads: Vec<Vec<u8>> = lengths.into_iter().map(|length| vec![7; length]).collect();
            let chunks: Vec<ChunkRef> = payloads.iter().map(|bytes| ChunkRef::to(bytes)).collect();
            let mut bytes = Vec::new();
            encode_late(&chunks, &mut bytes);
            payloads.iter().for_each(|payload| bytes.extend_from_slice(payload));
            let late = chunks.into_iter().zip(payloads.iter().map(|payload| &payload[..])).collect();
            prop_assert_eq!(Reply::decode(&bytes), Ok(Reply::Late(late)));
            bytes.pop();
            prop_assert!(Reply::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (Request::decode(&bytes), Reply::decode(&bytes));
        }
    }

    #[test]
    fn a_request_for_more_than_a_message_holds_is_refused() {
        let count = MAX_CONTENT_MESSAGE_BYTES / MAX_CHUNK_BYTES;
        let mut request = Request { id: 1, chunks: vec![chunk(MAX_CHUNK_BYTES); count] };
        assert_eq!(Request::decode(&encoded(&request)).as_ref(), Ok(&request));
        request.chunks.push(chunk(1));
        let refused = Request::decode(&encoded(&request));
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
        request.chunks.clear();
        assert!(Request::decode(&encoded(&request)).is_err());
    }

    #[test]
    fn the_overhead_is_within_its_bound() {
        let lengths = [chunk(1024); MAX_REQUEST_CHUNKS];
        let request = encoded(&Request { id: 0, chunks: lengths.to_vec() });
        let mut header = Vec::new();
        encode_response(0, lengths.iter().map(|c| Answer::Chunk(c.length)), &mut header);
        assert!(request.len().max(header.len()) <= MAX_CONTENT_OVERHEAD_BYTES);
    }
}
