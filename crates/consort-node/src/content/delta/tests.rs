//! Deltas as a whole, without a network: what one side says makes the other's bytes.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::time::{Duration, Instant};

use consort_core::ChunkRef;
use consort_core::content::chunker::Chunker;
use consort_core::content::delta::{Codec, Instruction, Stream};
use proptest::prelude::*;

use super::Source;
use super::base::Base;
use super::give::{Giver, Known};
use super::page::tests::{codecs, writer};
use super::take::{Failed, Taker};
use crate::net::frame::MAX_CONTENT_FRAME_BYTES;

impl Source for &[u8] {
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(from..).and_then(|rest| rest.get(..to.len()));
        to.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("it is written");
    file
}

fn known(base: Option<&Base<'_>>) -> Known {
    let hashes = |stream| base.map_or(Vec::new(), |base| base.hashes(stream).to_vec());
    Known::new([hashes(Stream::Levels), hashes(Stream::Values)])
}

/// What is said of `wanted` of a content.
fn instructions(content: &[u8], known: &Known, wanted: &[Range<u64>]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut send = |message| {
        messages.push(message);
        Ok(())
    };
    Giver::new(&mut &*content, wanted, known, &mut send).give().expect("it can be read");
    messages
}

fn chunks(content: &[u8]) -> Vec<(u64, ChunkRef)> {
    let mut offset = 0;
    let chunks = Chunker::default().chunks(content).map(|chunk| {
        offset += chunk.len() as u64;
        (offset - chunk.len() as u64, ChunkRef::to(chunk))
    });
    chunks.collect()
}

/// How many chunks are made, and whether all went well.
fn take(
    base: Base<'_>,
    wanted: Vec<(u64, ChunkRef)>,
    messages: &[Vec<u8>],
) -> (usize, Result<(), Failed>) {
    let mut made = 0;
    let until = Instant::now() + Duration::from_secs(60);
    let mut taker = Taker::new(base, wanted, until, |_, chunk: ChunkRef, bytes: Option<&[u8]>| {
        made += usize::from(bytes.is_some_and(|bytes| chunk.is(bytes)));
    });
    let mut result = Ok(());
    for message in messages {
        result = taker.follow(message);
        if result.is_err() {
            break;
        }
    }
    (made, result)
}

/// The rows of a table: a number of which most are different, a number that may be none, and one of some texts.
type Row = (u64, Option<u64>, usize);

/// Rows that follow from these numbers.
fn rows(numbers: Range<u64>) -> Vec<Row> {
    let row = |n: u64| {
        let mixed = n
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let text = usize::try_from(mixed >> 57).expect("seven bits");
        (1_700_000_000_000 + 1000 * n + mixed % 997, (mixed & 7 != 0).then_some(mixed >> 20), text)
    };
    numbers.map(row).collect()
}

/// A file of these rows, column by column.
fn file(rows: &[Row], codec: Codec) -> Vec<u8> {
    const ROWS_OF_A_PAGE: usize = 2000;
    let mut file = b"PAR1".to_vec();
    for page in rows.chunks(ROWS_OF_A_PAGE) {
        file.extend(writer::plain(&page.iter().map(|row| Some(row.0)).collect::<Vec<_>>(), codec));
    }
    for page in rows.chunks(ROWS_OF_A_PAGE) {
        file.extend(writer::plain(&page.iter().map(|row| row.1).collect::<Vec<_>>(), codec));
    }
    // In the order in which they appear first.
    let mut meant = Vec::new();
    let mut index = |row: &Row| {
        let at = meant.iter().position(|text| *text == row.2).unwrap_or_else(|| {
            meant.push(row.2);
            meant.len() - 1
        });
        Some(u32::try_from(at).expect("few"))
    };
    let indices: Vec<_> = rows.iter().map(&mut index).collect();
    let texts: Vec<String> = meant.iter().map(|number| format!("text {number}")).collect();
    file.extend(writer::dictionary(&texts.iter().map(String::as_str).collect::<Vec<_>>(), codec));
    for page in indices.chunks(ROWS_OF_A_PAGE) {
        file.extend(writer::indices(page, 7, codec));
    }
    file.extend(b"the footer, and its length");
    file
}

fn base(file: &File) -> Base<'_> {
    Base::of(file).expect("it can be read").expect("it has pages")
}

fn whole(content: &[u8]) -> Vec<Range<u64>> {
    std::iter::once(0..content.len() as u64).collect()
}

/// How many bytes of a content are not said by pieces that are known, and whether all of it is made.
fn said(old: &[u8], new: &[u8]) -> usize {
    let old = on_disk(old);
    let messages = instructions(new, &known(Some(&base(&old))), &whole(new));
    let wanted = chunks(new);
    let count = wanted.len();
    assert_eq!(take(base(&old), wanted, &messages), (count, Ok(())));
    messages.iter().map(Vec::len).sum()
}

#[test]
fn rows_that_come_or_go_are_nearly_all_that_is_said() {
    for codec in [Codec::Stored, Codec::Snappy, Codec::Zstd(1), Codec::Zstd(3)] {
        let old = rows(0..120_000);
        let inserted = [&old[..500], &rows(1_000_000..1_000_300), &old[500..]].concat();
        let deleted = [&old[..500], &old[800..]].concat();
        let [old, inserted, deleted] = [old, inserted, deleted].map(|rows| file(&rows, codec));
        for new in [inserted, deleted] {
            let said = said(&old, &new);
            assert!(said < new.len() / 5, "{codec:?}: {said} of {}", new.len());
        }
    }
}

#[test]
fn what_is_wanted_is_made_without_the_rest_also_behind_a_dictionary_that_is_not() {
    let old = rows(0..40_000);
    let new = [&old[..30_000], &rows(1_000_000..1_000_300), &old[30_000..]].concat();
    let [old, new] = [old, new].map(|rows| file(&rows, Codec::Snappy));
    let all = chunks(&new);
    let old = on_disk(&old);
    // Those of the last pages of all, and some in the middle.
    let (third, last) = (all.len() / 3, all.len() - 2);
    let wanted = [&all[third..=third], &all[last..]].concat();
    let stretches: Vec<_> = [third..third + 1, last..all.len()]
        .map(|range| {
            let (end, chunk) = all[range.end - 1];
            all[range.start].0..end + u64::from(chunk.length)
        })
        .into();
    let messages = instructions(&new, &known(Some(&base(&old))), &stretches);
    assert_eq!(take(base(&old), wanted, &messages), (3, Ok(())));
}

#[test]
fn a_codec_that_does_not_give_the_bytes_leaves_pages_as_they_are() {
    let values: Vec<_> = (0..2000).map(|n| Some(n * n)).collect();
    let page = |codec| writer::plain(&values, codec);
    let new = [b"PAR1".to_vec(), page(Codec::Zstd(9)), page(Codec::Zstd(1))].concat();
    assert_ne!(page(Codec::Zstd(9)), page(Codec::Zstd(1)));
    said(&file(&rows(0..2000), Codec::Snappy), &new);
}

#[test]
fn a_file_that_changes_while_pieces_are_taken_from_it_costs_chunks_and_no_more() {
    let old = rows(0..40_000);
    let new = [&rows(1_000_000..1_000_300), &old[..]].concat();
    let [old, new] = [old, new].map(|rows| file(&rows, Codec::Snappy));
    let on_disk = on_disk(&old);
    let taken = base(&on_disk);
    let messages = instructions(&new, &known(Some(&taken)), &whole(&new));
    on_disk.set_len(old.len() as u64 / 2).expect("it is cut off");
    let wanted = chunks(&new);
    let count = wanted.len();
    let (made, result) = take(taken, wanted, &messages);
    assert_eq!(result, Err(Failed::Unfit));
    assert!(made < count, "{made} of {count}");
}

#[test]
fn a_page_of_much_that_is_new_is_said_in_messages_that_can_be_sent() {
    let values: Vec<_> =
        (0..500_000_u64).map(|n| Some(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let new = [b"PAR1".to_vec(), writer::plain(&values, Codec::Snappy)].concat();
    let messages = instructions(&new, &known(None), &whole(&new));
    assert!(new.len() / 2 < messages.iter().map(Vec::len).sum());
    assert!(messages.iter().all(|message| message.len() < MAX_CONTENT_FRAME_BYTES / 2));
}

#[test]
fn what_is_said_to_be_anywhere_is_nowhere() {
    let old = on_disk(&file(&rows(0..9000), Codec::Snappy));
    let mut message = Vec::new();
    Instruction::Skip(u64::MAX - 1).encode(&mut message);
    Instruction::Raw(b"more than that").encode(&mut message);
    let wanted = vec![(0, ChunkRef::to(b"x"))];
    assert_eq!(take(base(&old), wanted, &[message]), (0, Ok(())));
}

#[test]
fn what_takes_too_long_is_given_up() {
    let old = on_disk(&file(&rows(0..9000), Codec::Snappy));
    let wanted = vec![(0, ChunkRef::to(b"x"))];
    let mut taker =
        Taker::new(base(&old), wanted, Instant::now(), |_, _: ChunkRef, _: Option<&[u8]>| {});
    assert_eq!(taker.follow(&[]), Err(Failed::Late));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_version_is_made_from_any_other(
        keep in proptest::collection::vec((0_u64..9000, 1_u64..4000), 1..5),
        codec in codecs(),
    ) {
        let new: Vec<Row> = keep.into_iter().flat_map(|(from, count)| rows(from..from + count)).collect();
        said(&file(&rows(0..9000), codec), &file(&new, codec));
    }

    #[test]
    fn files_that_are_broken_anywhere_never_fail(
        codec in codecs(),
        flips in proptest::collection::vec((0..=u16::MAX, any::<u8>()), 0..40),
        cut in 0..=u16::MAX,
        old_is_broken: bool,
    ) {
        let mut broken = file(&rows(5..9000), codec);
        let at = |place: u16, length: usize| usize::from(place) * length / (usize::from(u16::MAX) + 1);
        for (place, value) in flips {
            let place = at(place, broken.len());
            broken[place] = value;
        }
        broken.truncate(at(cut, 2 * broken.len()));
        let good = file(&rows(0..9000), codec);
        let (old, new) = if old_is_broken { (broken, good) } else { (good, broken) };
        let old = on_disk(&old);
        let Some(taken) = Base::of(&old).expect("it can be read") else { return Ok(()) };
        let messages = instructions(&new, &known(Some(&taken)), &whole(&new));
        let wanted = chunks(&new);
        let (_, result) = take(taken, wanted, &messages);
        prop_assert_eq!(result, Ok(()));
    }

    #[test]
    fn arbitrary_bytes_are_no_file_that_fails(bytes: Vec<u8>) {
        let bytes = [b"PAR1", &bytes[..]].concat();
        let old = on_disk(&bytes);
        let _ = Base::of(&old).expect("it can be read");
        instructions(&bytes, &known(None), &whole(&bytes));
    }

    #[test]
    fn instructions_that_lie_make_nothing_wrong_and_never_panic(
        flips in proptest::collection::vec((0..=u16::MAX, any::<u8>()), 1..20),
        noise: Vec<u8>,
    ) {
        let new = file(&rows(100..9000), Codec::Snappy);
        let old = on_disk(&file(&rows(0..9000), Codec::Snappy));
        let mut messages = instructions(&new, &known(Some(&base(&old))), &whole(&new));
        for (place, value) in flips {
            let number = usize::from(place) % messages.len();
            let message = &mut messages[number];
            let place = usize::from(place) * message.len() / (usize::from(u16::MAX) + 1);
            message[place] = value;
        }
        messages.push(noise);
        let wanted = chunks(&new);
        // What is made was verified in there.
        let _ = take(base(&old), wanted, &messages);
    }
}
