//! Cuts the streams of values where they say so, so that what is the same in two files has the same pieces: FastCDC, as for
//! chunks, in shorter lengths. Other than with chunks, who cuts otherwise only finds fewer pieces again.

use consort_core::limits::MAX_PIECE_BYTES;
use fastcdc::v2020::{self, Normalization};
use xxhash_rust::xxh3::xxh3_64;

const AVERAGE_PIECE_BYTES: usize = 4 * 1024;
const MIN_PIECE_BYTES: usize = 1024;

/// What the front of a stream may hold that is cut already, before it is given up.
const SPENT_BYTES: usize = 1 << 20;

/// The name of a piece. Somebody could make two pieces with the same one: he would see what is made of them fetched.
pub(super) type PieceHash = u64;

/// XXH3 with 64 bits: many times as fast as what cannot be deceived.
pub(super) fn hash(piece: &[u8]) -> PieceHash {
    xxh3_64(piece)
}

/// Cuts one stream.
#[derive(Debug)]
pub(super) struct Cutter {
    bytes: Vec<u8>,
    /// So many of them are cut.
    spent: usize,
    masks: [u64; 2],
}

impl Cutter {
    pub(super) fn new() -> Self {
        let (small, large) = v2020::select_masks(AVERAGE_PIECE_BYTES, Normalization::Level1);
        Self { bytes: Vec::new(), spent: 0, masks: [small, large] }
    }

    /// Appends to the stream.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if SPENT_BYTES <= self.spent {
            self.bytes.drain(..self.spent);
            self.spent = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next piece. Nothing before its end is certain; at the end of the stream, all that is left is one.
    pub(super) fn next(&mut self, at_end: bool) -> Option<&[u8]> {
        let rest = &self.bytes[self.spent..];
        if rest.is_empty() || (!at_end && rest.len() < MAX_PIECE_BYTES) {
            return None;
        }
        let window = &rest[..rest.len().min(MAX_PIECE_BYTES)];
        let length = match window.len() {
            ..=MIN_PIECE_BYTES => window.len(),
            _ => {
                let [small, large] = self.masks;
                let (min, max) = (MIN_PIECE_BYTES, MAX_PIECE_BYTES);
                let average = AVERAGE_PIECE_BYTES;
                v2020::cut(window, min, average, max, small, large, small << 1, large << 1).1
            }
        };
        self.spent += length;
        Some(&rest[..length])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(parts: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::new();
        let mut pieces = Vec::new();
        for part in parts {
            cutter.push(part);
            while let Some(piece) = cutter.next(false) {
                pieces.push(piece.to_vec());
            }
        }
        while let Some(piece) = cutter.next(true) {
            pieces.push(piece.to_vec());
        }
        pieces
    }

    #[test]
    fn pieces_do_not_depend_on_how_the_stream_comes_and_an_insertion_changes_few() {
        let mut stream = vec![0; 3 << 20];
        blake3::Hasher::new().finalize_xof().fill(&mut stream);
        let whole = pieces(&[&stream]);
        assert_eq!(whole.concat(), stream);
        let parts: Vec<&[u8]> = stream.chunks(77_777).collect();
        assert_eq!(pieces(&parts), whole);
        let changed = pieces(&[&stream[..1_000_000], b"new", &stream[1_000_000..]]);
        assert_eq!(changed.iter().filter(|piece| !whole.contains(piece)).count(), 1);
    }
}
