use alloc::vec::Vec;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::content::ChunkHash;

/// Bytes without a pattern, always the same for a seed.
pub(super) fn noise(length: usize, seed: u32) -> Vec<u8> {
    let mut bytes = alloc::vec![0; length];
    let mut hasher = blake3::Hasher::new();
    if seed != 0 {
        hasher.update(&seed.to_le_bytes());
    }
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn cut(bytes: &[u8]) -> Vec<&[u8]> {
    Chunker::default().chunks(bytes).collect()
}

fn lengths(bytes: &[u8]) -> Vec<usize> {
    cut(bytes).into_iter().map(<[u8]>::len).collect()
}

fn names(bytes: &[u8]) -> BTreeSet<ChunkHash> {
    cut(bytes).into_iter().map(ChunkHash::of).collect()
}

/// The bytes of `after` that whoever has `before` lacks.
fn new_bytes(before: &[u8], after: &[u8]) -> usize {
    let known = names(before);
    cut(after)
        .into_iter()
        .filter(|chunk| !known.contains(&ChunkHash::of(chunk)))
        .map(<[u8]>::len)
        .sum()
}

/// The lengths of members or tensors: short, in between, and long.
const SIZES: [usize; 12] =
    [2_000, 150_000, 700, 40_000, 0, 3_000, 500_001, 90_000, 16_384, 130_000, 1_234, 300_000];

/// Bodies of these lengths.
fn bodies(sizes: &[usize]) -> Vec<Vec<u8>> {
    (1..).zip(sizes).map(|(seed, size)| noise(*size, seed)).collect()
}

/// A file of each format with these bodies.
pub(super) fn files(bodies: &[Vec<u8>]) -> [Vec<u8>; 4] {
    let name = |n: usize| alloc::format!("member-{n}");
    let numbered = || bodies.iter().enumerate();
    let mut tar: Vec<u8> =
        numbered().flat_map(|(n, body)| tar::tests::member(&name(n), body)).collect();
    tar.extend([0; 1024]);
    let refs: Vec<&[u8]> = bodies.iter().map(|body| &body[..]).collect();
    let model = safetensors::tests::model(&refs);
    let mut zip: Vec<u8> =
        numbered().flat_map(|(n, body)| zip::tests::member(&name(n), body)).collect();
    zip.extend(b"PK\x01\x02");
    zip.extend(noise(1_000, 99));
    let mut parquet = b"PAR1".to_vec();
    parquet.extend((1..).zip(bodies).flat_map(|(rows, body)| parquet::tests::page(rows, body)));
    parquet.extend(parquet::tests::FOOTER);
    [tar, model, zip, parquet]
}

/// Cuts what comes in pieces of these lengths, as a reader does that holds no more than it must.
fn cut_in_pieces(bytes: &[u8], pieces: &[usize]) -> Vec<usize> {
    let mut chunker = Chunker::default();
    let mut lengths = Vec::new();
    let (mut at, mut end) = (0, 0);
    let mut pieces = pieces.iter().cycle();
    while at < bytes.len() {
        if end < bytes.len() && end - at < MAX_CHUNK_BYTES {
            end = bytes.len().min(end + pieces.next().expect("it never ends"));
            continue;
        }
        let length = chunker.next(&bytes[at..end]);
        lengths.push(length);
        at += length;
    }
    lengths
}

#[test]
fn chunks_put_together_are_the_content_and_keep_their_bounds() {
    let bytes = noise(3_000_000, 0);
    let chunks = cut(&bytes);
    assert_eq!(chunks.concat(), bytes);
    let (last, others) = chunks.split_last().expect("there are chunks");
    assert!(last.len() <= MAX_CHUNK_BYTES);
    assert!(others.iter().all(|chunk| (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&chunk.len())));
}

#[test]
fn an_insertion_changes_only_the_chunks_around_it() {
    let before = noise(4_000_000, 0);
    let mut after = before.clone();
    after.splice(0..0, noise(1024, 1));
    let new = names(&after).difference(&names(&before)).count();
    assert!(new <= 2, "boundaries did not fall back into step");
}

#[test]
fn a_member_in_an_archive_has_the_chunks_that_it_has_alone() {
    let [tar, model, zip, _] = files(&bodies(&SIZES));
    for (seed, size) in (1..).zip(SIZES) {
        if LONG_STRETCH_BYTES <= size as u64 {
            let alone = names(&noise(size, seed));
            assert!([&tar, &model, &zip].into_iter().all(|file| alone.is_subset(&names(file))));
        }
    }
}

#[test]
fn a_header_may_be_longer_than_what_is_seen_at_a_time() {
    let long = noise(300_000, 1);
    let mut tensors = alloc::vec![&[1; 10][..]; 6_000];
    tensors.push(&long);
    let model = safetensors::tests::model(&tensors);
    assert!(MAX_CHUNK_BYTES < model.len() - long.len() - 60_000);
    assert!(names(&long).is_subset(&names(&model)));
}

#[test]
fn a_long_member_that_changes_moves_itself_and_what_is_short_before_it() {
    let [tar, model, zip, parquet] = files(&bodies(&SIZES));
    let mut bodies = bodies(&SIZES);
    let length = 500_200;
    bodies[6] = noise(length, 100);
    let [tar_after, model_after, zip_after, parquet_after] = files(&bodies);
    // A header is in the chunk of the short ones before it, or, in a model, in the header of all. In a tar the zeros behind
    // the body are in the chunk of what comes next.
    for (before, after) in
        [(&tar, &tar_after), (&model, &model_after), (&zip, &zip_after), (&parquet, &parquet_after)]
    {
        let new = new_bytes(before, after);
        assert!((length..length + 128 * 1024).contains(&new), "{new} bytes are new");
    }
}

/// All are of the same length, so only what is in them can bring boundaries back into step.
#[test]
fn a_short_member_that_is_inserted_moves_a_group() {
    let [before, ..] = files(&bodies(&[1_500; 3_000]));
    let mut after = before.clone();
    after.splice(2048 * 1_500..2048 * 1_500, tar::tests::member("new", &noise(1_500, 200)));
    let new = new_bytes(&before, &after);
    assert!(new <= 128 * 1024, "{new} bytes are new");
    assert!(cut(&before).len() <= before.len() / (32 * 1024), "too many chunks");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn boundaries_do_not_depend_on_how_the_content_is_read(
        sizes in prop::collection::vec(
            prop_oneof![0usize..3_000, 3_000usize..200_000, 120_000usize..600_000], 1..12),
        pieces in prop::collection::vec(1usize..400_000, 1..5),
        length in 0usize..2_000_000,
    ) {
        for file in files(&bodies(&sizes)) {
            prop_assert_eq!(cut_in_pieces(&file, &pieces), lengths(&file));
            // The same for one that is not complete.
            let part = &file[..length.min(file.len())];
            prop_assert_eq!(cut_in_pieces(part, &pieces), lengths(part));
        }
    }

    #[test]
    fn a_damaged_file_is_cut_within_bounds(
        sizes in prop::collection::vec(prop_oneof![0usize..300, 0usize..200_000], 1..20),
        damages in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        near_start in any::<bool>(),
    ) {
        for mut file in files(&bodies(&sizes)) {
            let among = if near_start { file.len().min(2_000) } else { file.len() };
            for (place, byte) in &damages {
                file[place.index(among)] = *byte;
            }
            prop_assert_eq!(cut(&file).concat(), &file[..]);
            prop_assert!(lengths(&file).iter().all(|length| *length <= MAX_CHUNK_BYTES));
        }
    }
}

/// Replicas that cut differently would no longer share chunks: these boundaries are part of the format.
#[test]
fn boundaries_never_change_between_versions() {
    assert_eq!(lengths(&noise(1_000_000, 0)), LENGTHS);
    assert_eq!(files(&bodies(&SIZES)).map(|file| lengths(&file)), FORMATS);
}

const LENGTHS: [usize; 13] =
    [32798, 100912, 40249, 68411, 152004, 75528, 61313, 86054, 69684, 80169, 58517, 51479, 122882];
/// Of a tar, a model, a zip and a Parquet file.
const FORMATS: [&[usize]; 4] = [
    &[
        3072, 72479, 77521, 42512, 4608, 75873, 87289, 63707, 112140, 39816, 69093, 40871, 11212,
        74675, 33068, 101481, 31639, 44142, 78458, 88663, 70095, 18642, 1056,
    ],
    &[
        2934, 72479, 77521, 43700, 75873, 87289, 63707, 112140, 39816, 69093, 40871, 11212, 73940,
        32444, 100969, 30265, 44142, 78458, 88663, 70095, 18642,
    ],
    &[
        2076, 72479, 77521, 43890, 75873, 87289, 63707, 112140, 39816, 69093, 40871, 11212, 73978,
        32482, 101007, 30343, 44142, 78458, 88663, 70095, 18642, 1004,
    ],
    &[
        2066, 72479, 77521, 43852, 75873, 87289, 63707, 112140, 39816, 69093, 40871, 11212, 73972,
        32476, 101001, 30327, 44142, 78458, 88663, 70095, 18642, 8,
    ],
];
