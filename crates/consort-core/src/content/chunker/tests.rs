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
