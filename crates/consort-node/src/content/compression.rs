//! Content messages on the wire: as they are, or with their chunks compressed, where that pays. What compressing costs is
//! time, and what it saves is time on the link: so it pays if a sample of the chunks shrinks so much that it is faster to
//! compress and send them than to send them as they are, at the speed at which the peer took what was sent before.
//!
//! ```text
//!   header, chunks, 0                                                  as they are
//!   header, zstd of the chunks, their length (4), header's length (4), 1
//! ```
//!
//! The kind comes last, so that it comes off without moving the rest. What is in a message is described in
//! [`consort_core::content::exchange`].

use std::time::Duration;

use zstd::bulk::{Compressor, Decompressor};

use crate::net::frame::MAX_CONTENT_FRAME_BYTES;

const PLAIN: u8 = 0;
const COMPRESSED: u8 = 1;

/// The level of zstd: the fastest of those that shrink text to less than half.
const LEVEL: i32 = 1;

/// How fast one core compresses at that level, at the least, in bytes a second. Decompressing is several times as fast.
const COMPRESSED_PER_SECOND: f64 = 300e6;

/// Messages below this are sent as they are: there is hardly anything to save.
const LEAST_BYTES: usize = 1 << 10;

/// A sample: so many pieces of so many bytes, from all over the chunks.
const SAMPLES: usize = 4;
const SAMPLE_BYTES: usize = 4 << 10;

/// How fast a peer is thought to take what it is sent before that is known, in bytes a second: a link of 1 Gbit/s.
const FIRST_RATE: f64 = 125e6;
/// So many bytes count for the rate at the most, so that what was before soon does not count.
const RATE_BYTES: f64 = (8 << 20) as f64;

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    #[error("its compression is unknown")]
    Kind,
    #[error("what is compressed in it is damaged or too long")]
    Compressed,
}

/// How fast a peer takes what it is sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    bytes: f64,
    seconds: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { bytes: RATE_BYTES, seconds: RATE_BYTES / FIRST_RATE }
    }
}

impl Pace {
    /// A link on which all pays that shrinks.
    pub(super) const SLOW: Self = Self { bytes: 1e6, seconds: 1.0 };

    /// It took so much in this time.
    pub(super) fn add(&mut self, bytes: usize, took: Duration) {
        self.bytes += bytes as f64;
        self.seconds += took.as_secs_f64();
        let keep = (RATE_BYTES / self.bytes).min(1.0);
        (self.bytes, self.seconds) = (self.bytes * keep, self.seconds * keep);
    }

    /// Whether it is faster to compress a message and send the rest of it, if this part of it is left.
    fn pays(&self, left: f64) -> bool {
        let seconds_per_byte = self.seconds / self.bytes;
        1.0 / COMPRESSED_PER_SECOND + left * seconds_per_byte < seconds_per_byte
    }
}

/// The chunks of one message as they are sent. Where they are compressed, the link is slow, and fresh memory costs little
/// beside it: so none is kept from message to message, and what is there is no longer than the chunks.
pub(super) struct Packed {
    compressed: Option<Vec<u8>>,
    trailer: Vec<u8>,
}

impl Packed {
    /// Of the chunks of a message, before which come `header` bytes.
    pub(super) fn of(header: usize, chunks: &[u8], pace: Pace) -> Self {
        let compressed = if chunks.len() < LEAST_BYTES { None } else { compress(chunks, pace) };
        let mut trailer = Vec::new();
        if compressed.is_some() {
            for length in [chunks.len(), header] {
                let length = u32::try_from(length).expect("a message is shorter");
                trailer.extend_from_slice(&length.to_le_bytes());
            }
        }
        trailer.push(if compressed.is_some() { COMPRESSED } else { PLAIN });
        Self { compressed, trailer }
    }

    /// What is sent behind the header, of the chunks that were packed.
    pub(super) fn parts<'a>(&'a self, chunks: &'a [u8]) -> [&'a [u8]; 2] {
        [self.compressed.as_deref().unwrap_or(chunks), &self.trailer]
    }
}

/// The chunks compressed, if that pays.
fn compress(chunks: &[u8], pace: Pace) -> Option<Vec<u8>> {
    if !pace.pays(0.0) {
        return None;
    }
    let mut zstd = Compressor::new(LEVEL).ok()?;
    let mut compressed = |bytes: &[u8]| {
        // What does not fit is not worth it.
        let mut compressed = Vec::with_capacity(bytes.len());
        zstd.compress_to_buffer(bytes, &mut compressed).ok()?;
        (compressed.len() < bytes.len()).then_some(compressed)
    };
    let mut sample = Vec::with_capacity(SAMPLES * SAMPLE_BYTES);
    for number in 0..SAMPLES {
        let start = chunks.len() / SAMPLES * number;
        sample.extend_from_slice(&chunks[start..chunks.len().min(start + SAMPLE_BYTES)]);
    }
    let left = compressed(&sample)?.len() as f64 / sample.len() as f64;
    if pace.pays(left) { compressed(chunks) } else { None }
}

/// Whether a message as it came is compressed.
pub(super) fn is_compressed(message: &[u8]) -> bool {
    message.last() == Some(&COMPRESSED)
}

/// Takes a message as it came, and returns it as it was before it was packed.
pub(super) fn unpack(mut message: Vec<u8>) -> Result<Vec<u8>, BadMessage> {
    match message.pop() {
        Some(PLAIN) => Ok(message),
        Some(COMPRESSED) => decompress(&message),
        _ => Err(BadMessage::Kind),
    }
}

fn decompress(message: &[u8]) -> Result<Vec<u8>, BadMessage> {
    let (rest, header) = length_at_end(message)?;
    let (rest, length) = length_at_end(rest)?;
    let (header, packed) = rest.split_at_checked(header).ok_or(BadMessage::Compressed)?;
    if MAX_CONTENT_FRAME_BYTES < header.len() + length {
        return Err(BadMessage::Compressed);
    }
    let mut unpacked = Vec::with_capacity(header.len() + length);
    unpacked.extend_from_slice(header);
    unpacked.resize(header.len() + length, 0);
    let mut zstd = Decompressor::new().map_err(|_| BadMessage::Compressed)?;
    match zstd.decompress_to_buffer(packed, &mut unpacked[header.len()..]) {
        Ok(decompressed) if decompressed == length => Ok(unpacked),
        _ => Err(BadMessage::Compressed),
    }
}

fn length_at_end(bytes: &[u8]) -> Result<(&[u8], usize), BadMessage> {
    let (rest, length) = bytes.split_last_chunk().ok_or(BadMessage::Compressed)?;
    Ok((rest, u32::from_le_bytes(*length) as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SLOW: Pace = Pace::SLOW;
    const FAST: Pace = Pace { bytes: 1e9, seconds: 1.0 };

    fn text(bytes: usize) -> Vec<u8> {
        (0..)
            .flat_map(|n: u32| format!("line {n}, as of many others\n").into_bytes())
            .take(bytes)
            .collect()
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut all = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut all);
        all
    }

    fn packed(header: &[u8], chunks: &[u8], pace: Pace) -> Vec<u8> {
        let packed = Packed::of(header.len(), chunks, pace);
        let [chunks, trailer] = packed.parts(chunks);
        [header, chunks, trailer].concat()
    }

    #[test]
    fn what_shrinks_is_compressed_on_a_slow_link_and_nothing_on_a_fast_one() {
        let (text, noise) = (text(1 << 20), noise(1 << 20));
        assert!(packed(b"header", &text, SLOW).len() < text.len() / 2);
        assert_eq!(packed(b"header", &noise, SLOW).len(), 6 + noise.len() + 1);
        assert_eq!(packed(b"header", &text, FAST).len(), 6 + text.len() + 1);
    }

    #[test]
    fn a_peer_that_becomes_slow_is_soon_known_to_be() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.add(1 << 20, Duration::from_micros(500));
        }
        assert!(!pace.pays(0.1));
        for _ in 0..8 {
            pace.add(1 << 20, Duration::from_millis(50));
        }
        assert!(pace.pays(0.5));
    }

    #[test]
    fn what_is_longer_than_it_says_or_than_may_be_is_refused() {
        let mut whole = packed(b"header", &text(100_000), SLOW);
        let end = whole.len();
        let mut claim = |length: u32| {
            whole[end - 9..end - 5].copy_from_slice(&length.to_le_bytes());
            unpack(whole.clone())
        };
        assert!(claim(100_000).is_ok());
        for length in [0, 99_999, 100_001, 1 << 30, u32::MAX] {
            assert_eq!(claim(length), Err(BadMessage::Compressed));
        }
        assert_eq!(unpack(vec![7]), Err(BadMessage::Kind));
        assert_eq!(unpack(Vec::new()), Err(BadMessage::Kind));
    }

    proptest! {
        #[test]
        fn messages_come_back(
            header in proptest::collection::vec(any::<u8>(), 1..100),
            length in 0_usize..300_000,
            shrinks: bool,
            slow: bool,
        ) {
            let chunks = if shrinks { text(length) } else { noise(length) };
            let message = packed(&header, &chunks, if slow { SLOW } else { FAST });
            prop_assert_eq!(unpack(message), Ok([header, chunks].concat()));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, kind in 0_u8..3) {
            let _ = unpack([bytes, vec![kind]].concat());
        }
    }
}
