use alloc::vec::Vec;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::content::ChunkHash;

/// Bytes without a pattern, always the same for a seed.
fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut bytes = alloc::vec![0; length];
    let mut hasher = blake3::Hasher::new();
    if seed != 0 {
        hasher.update(&[seed]);
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

/// Files of each format with a body of each of these lengths.
fn files(sizes: &[usize]) -> [Vec<u8>; 4] {
    let bodies: Vec<Vec<u8>> = (1..).zip(sizes).map(|(seed, size)| noise(*size, seed)).collect();
    let name = |n: usize| alloc::format!("member-{n}");
    let numbered = || bodies.iter().enumerate();
    let mut tar: Vec<u8> = numbered().flat_map(|(n, b)| tar::tests::member(&name(n), b)).collect();
    tar.extend([0; 1024]);
    let refs: Vec<&[u8]> = bodies.iter().map(|body| &body[..]).collect();
    let model = safetensors::tests::model(&refs);
    let mut zip: Vec<u8> = numbered().flat_map(|(n, b)| zip::tests::member(&name(n), b)).collect();
    zip.extend(b"PK\x01\x02");
    zip.extend(noise(1_000, 99));
    let mut parquet = b"PAR1".to_vec();
    parquet.extend((1..).zip(&bodies).flat_map(|(rows, body)| parquet::tests::page(rows, body)));
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
    let [tar, model, zip, _] = files(&SIZES);
    for (seed, size) in (1..).zip(SIZES) {
        if LONG_STRETCH_BYTES <= size as u64 {
            let alone = names(&noise(size, seed));
            assert!([&tar, &model, &zip].into_iter().all(|file| alone.is_subset(&names(file))));
        }
    }
}

#[test]
fn a_long_member_that_changes_moves_itself_and_what_is_short_before_it() {
    let [tar, model, zip, parquet] = files(&SIZES);
    let mut sizes = SIZES;
    sizes[6] += 7;
    let [tar_after, model_after, zip_after, parquet_after] = files(&sizes);
    // A tar and a zip have its header in the chunk of the short ones before it; a model has all headers in one place.
    for (before, after) in
        [(&tar, &tar_after), (&model, &model_after), (&zip, &zip_after), (&parquet, &parquet_after)]
    {
        let new = new_bytes(before, after);
        assert!((sizes[6]..sizes[6] + 64 * 1024).contains(&new), "{new} bytes are new");
    }
}

/// All are of the same length, so only what is in them can bring boundaries back into step.
#[test]
fn a_short_member_that_is_inserted_moves_a_group() {
    let sizes = [1_500; 3_000];
    let [before, ..] = files(&sizes);
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
        for file in files(&sizes) {
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
        for mut file in files(&sizes) {
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
    let [tar, model, zip, parquet] = files(&SIZES);
    assert_eq!(lengths(&tar), TAR_LENGTHS);
    assert_eq!(lengths(&model), SAFETENSORS_LENGTHS);
    assert_eq!(lengths(&zip), ZIP_LENGTHS);
    assert_eq!(lengths(&parquet), PARQUET_LENGTHS);
}

const LENGTHS: [usize; 13] =
    [32798, 100912, 40249, 68411, 152004, 75528, 61313, 86054, 69684, 80169, 58517, 51479, 122882];
const TAR_LENGTHS: [usize; 0] = [];
const SAFETENSORS_LENGTHS: [usize; 0] = [];
const ZIP_LENGTHS: [usize; 0] = [];
const PARQUET_LENGTHS: [usize; 0] = [];
