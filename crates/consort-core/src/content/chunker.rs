//! Cuts bytes into chunks where the content says so, so that an insertion moves the boundaries around it and no
//! others: FastCDC in its 2020 form (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", 2020), normalization level 1. The parameters are part of the format: the
//! same bytes must give the same chunks on every node.

use fastcdc::v2020::{self, Normalization};

use crate::limits::{AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};

/// Finds the boundaries of chunks.
#[derive(Clone, Copy, Debug)]
pub struct Chunker {
    mask_small: u64,
    mask_large: u64,
}

impl Default for Chunker {
    fn default() -> Self {
        let (mask_small, mask_large) =
            v2020::select_masks(AVERAGE_CHUNK_BYTES, Normalization::Level1);
        Self { mask_small, mask_large }
    }
}

impl Chunker {
    /// The length of the first chunk of `bytes`, which are either all that is left of a content or at least
    /// [`MAX_CHUNK_BYTES`] of it. Zero only for no bytes.
    pub fn first(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= MIN_CHUNK_BYTES {
            return bytes.len();
        }
        let (_, length) = v2020::cut(
            bytes,
            MIN_CHUNK_BYTES,
            AVERAGE_CHUNK_BYTES,
            MAX_CHUNK_BYTES,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
        );
        length
    }

    /// The chunks of a whole content that is at hand.
    pub fn chunks<'a>(&self, mut bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let chunker = *self;
        core::iter::from_fn(move || {
            let (chunk, rest) = bytes.split_at(chunker.first(bytes));
            bytes = rest;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;
    use std::collections::BTreeSet;

    use super::*;
    use crate::content::ChunkHash;

    /// Bytes without a pattern, always the same.
    fn noise(length: usize) -> Vec<u8> {
        let mut bytes = alloc::vec![0; length];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn chunks_put_together_are_the_content_and_keep_their_bounds() {
        let bytes = noise(3_000_000);
        let chunks: Vec<&[u8]> = Chunker::default().chunks(&bytes).collect();
        assert_eq!(chunks.concat(), bytes);
        let (last, others) = chunks.split_last().expect("there are chunks");
        assert!(last.len() <= MAX_CHUNK_BYTES);
        assert!(
            others.iter().all(|chunk| (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk.len()))
        );
    }

    #[test]
    fn an_insertion_changes_only_the_chunks_around_it() {
        let before = noise(4_000_000);
        let mut after = before.clone();
        after.splice(0..0, noise(1024).into_iter().rev());
        let names = |bytes: &[u8]| -> BTreeSet<ChunkHash> {
            Chunker::default().chunks(bytes).map(ChunkHash::of).collect()
        };
        let (before, after) = (names(&before), names(&after));
        assert!(after.difference(&before).count() <= 2, "boundaries did not fall back into step");
    }

    /// Replicas that cut differently would no longer share chunks: these boundaries are part of the format.
    #[test]
    fn boundaries_never_change_between_versions() {
        let bytes = noise(1_000_000);
        let lengths: Vec<usize> = Chunker::default().chunks(&bytes).map(<[u8]>::len).collect();
        assert_eq!(lengths, LENGTHS);
    }

    const LENGTHS: [usize; 13] = [
        32798, 100912, 40249, 68411, 152004, 75528, 61313, 86054, 69684, 80169, 58517, 51479,
        122882,
    ];
}
