//! The messages of a content connection. Who opened it sends a [`Request`]; the other side answers each with one
//! [`Response`], in the order of the requests. What to ask whom for is decided in [`transfer`](super::transfer).
//!
//! ```text
//!   request   id (4), count, count × (hash (32), length)
//!   response  id (4), count, count × (0 if the chunk is missing, else its length), the chunks one after another
//! ```
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
    /// What the response will be told by.
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
        let count = from.count(LEAST_CHUNK_BYTES, MAX_REQUEST_CHUNKS, "chunks of a request")?;
        if count == 0 {
            return Err(DecodeError::Invalid { what: "chunks of a request" });
        }
        let chunks = (0..count).map(|_| decode_chunk(&mut from)).collect::<Result<Vec<_>, _>>()?;
        from.finish()?;
        let request = Self { id, chunks };
        if MAX_CONTENT_MESSAGE_BYTES < request.payload_bytes() {
            let limit = MAX_CONTENT_MESSAGE_BYTES;
            return Err(DecodeError::TooLarge { what: "the sum of a request's chunks", limit });
        }
        Ok(request)
    }

    /// The bytes of all its chunks.
    pub fn payload_bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.length as usize).sum()
    }
}

/// The answers to a request, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// The id of the request.
    pub id: u32,
    /// For each chunk that was asked for its bytes, unverified, or `None` if the sender does not have it.
    pub answers: Vec<Option<&'a [u8]>>,
}

impl<'a> Response<'a> {
    /// Appends what comes before the chunks. `lengths` has one element for each chunk that was asked for, `None` if it
    /// is missing; the chunks that are not missing must follow, in this order.
    pub fn encode_header(
        id: u32,
        lengths: impl ExactSizeIterator<Item = Option<u32>>,
        to: &mut Vec<u8>,
    ) {
        to.extend_from_slice(&id.to_le_bytes());
        let mut to = Writer(to);
        to.count(lengths.len());
        lengths.for_each(|length| to.varint(u64::from(length.unwrap_or(0))));
    }

    /// Reads a whole response. The chunks stay where they are in `bytes`.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        let id = u32::from_le_bytes(from.array("response")?);
        let count = from.count(1, MAX_REQUEST_CHUNKS, "answers")?;
        let mut lengths = from.clone();
        for _ in 0..count {
            from.varint("length of an answer")?;
        }
        let answers = (0..count).map(|_| {
            let limit = MAX_CHUNK_BYTES;
            let length =
                usize::try_from(lengths.varint("length of an answer")?).unwrap_or(usize::MAX);
            match length {
                0 => Ok(None),
                _ if limit < length => {
                    Err(DecodeError::TooLarge { what: "length of an answer", limit })
                }
                _ => from.raw(length, "answer").map(Some),
            }
        });
        let answers = answers.collect::<Result<Vec<_>, _>>()?;
        from.finish()?;
        Ok(Self { id, answers })
    }
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

    fn chunk(length: usize) -> ChunkRef {
        ChunkRef { hash: ChunkHash([7; 32]), length: u32::try_from(length).expect("short") }
    }

    proptest! {
        #[test]
        fn requests_come_back(id: u32, seeds in proptest::collection::vec(any::<[u8; 32]>(), 1..40)) {
            let chunks = seeds.iter().map(|seed| ChunkRef {
                hash: ChunkHash(*seed),
                length: 1 + u32::from(u16::from_le_bytes([seed[0], seed[1]]) >> 2),
            });
            let request = Request { id, chunks: chunks.collect() };
            prop_assert_eq!(Request::decode(&encoded(&request)), Ok(request));
        }

        #[test]
        fn responses_come_back(
            id: u32,
            present in proptest::collection::vec(any::<bool>(), 0..60),
            fill: u8,
        ) {
            let payloads: Vec<Option<Vec<u8>>> = present
                .iter()
                .enumerate()
                .map(|(at, present)| present.then(|| vec![fill; 1 + at * 37]))
                .collect();
            let mut bytes = Vec::new();
            let length = |p: &Option<Vec<u8>>| p.as_ref().map(|p| u32::try_from(p.len()).unwrap());
            Response::encode_header(id, payloads.iter().map(length), &mut bytes);
            payloads.iter().flatten().for_each(|payload| bytes.extend_from_slice(payload));
            let expected = Response { id, answers: payloads.iter().map(|p| p.as_deref()).collect() };
            prop_assert_eq!(Response::decode(&bytes), Ok(expected));
            bytes.push(0);
            prop_assert_eq!(Response::decode(&bytes), Err(DecodeError::Trailing { count: 1 }));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = (Request::decode(&bytes), Response::decode(&bytes));
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
        let request = encoded(&Request { id: u32::MAX, chunks: lengths.to_vec() });
        let mut header = Vec::new();
        Response::encode_header(u32::MAX, lengths.iter().map(|c| Some(c.length)), &mut header);
        assert!(request.len().max(header.len()) <= MAX_CONTENT_OVERHEAD_BYTES);
    }
}
