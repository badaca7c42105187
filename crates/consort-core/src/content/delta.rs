//! The messages by which a node makes chunks from what it has, where the same values stand in other bytes: a Parquet file
//! of which it has another version. It says which pieces of plain form it knows, by their hashes, and gets instructions that
//! build the new bytes from these and what is new. This saves bytes and decides nothing: what is built is a chunk if it has its
//! hash, and is fetched if not. How pages are taken apart and put together is not in here.
//!
//! A connection for content that begins with a [`Request`] belongs to that one delta.
//!
//! ```text
//!   request       2³² - 1 (4), 1, content, count × (gap before, length), known pieces of levels, of values
//!   known         messages of hashes (8 each), one after another: first those of levels
//!   instructions  messages of instructions, until one is 0
//!
//!   instruction   0                            end
//!                 1, length                    bytes that were not asked for
//!                 2, bytes                     bytes as they are
//!                 3, head, codec, levels, values    a page
//!                 4, stream, first, count      pieces that are known, one after another, for a stream
//!                 5, stream, bytes             new bytes for a stream
//!                 6, length, count             a dictionary that is known here and not made: so many bytes of the values
//!
//!   codec         0: none, 1: Snappy, 1 + n: Zstandard at level n
//!   levels        0, bytes: as they are; or how many sections (1 or 2), each as runs
//!   values        0, length: so many bytes; 1, length, count: a dictionary; 2, runs: indices; 3, runs: tags
//!   runs          width (1 to 32), count
//! ```
//!
//! The instructions go through the content from its beginning to its end. A page takes its levels and its values from two
//! streams, which run through all pages; what goes to a page is said behind it, and may be behind others too. Before bytes as they
//! are, bytes that were not asked for, and the end, nothing is left in either stream.
//!
//! Tags stand for indices: a row that comes or goes changes which index a value has in a dictionary, and never its tag. They
//! are those of the last dictionary before.

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::ops::Range;

use super::Content;
use super::exchange::LATE;
use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::{
    MAX_DELTA_PIECES, MAX_DELTA_STRETCHES, MAX_DICTIONARY_VALUES, MAX_PAGE_HEAD_BYTES,
    MAX_PIECE_BYTES, MAX_PLAIN_PAGE_BYTES,
};
use crate::model::canonical::{decode_content, encode_content};

/// What stands behind [`LATE`] in a request: no request for chunks begins like that.
const DELTA: u8 = 1;

/// The bytes of a piece's hash (XXH3). Two pieces that are taken for each other cost a chunk that is fetched.
pub const PIECE_HASH_BYTES: usize = 8;

/// Asks for a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Of what.
    pub content: Content,
    /// Which bytes of it, in order: 1 to [`MAX_DELTA_STRETCHES`] stretches that do not touch.
    pub wanted: Vec<Range<u64>>,
    /// How many pieces of each stream are known, at most [`MAX_DELTA_PIECES`]. Their hashes follow.
    pub known: [usize; 2],
}

/// What a page is made of runs through all pages as two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Which values there are, and how they are nested.
    Levels,
    /// The values themselves.
    Values,
}

/// What compressed a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// Nothing.
    Stored,
    /// Snappy, as Google's library does it.
    Snappy,
    /// Zstandard at this level, 1 to 22.
    Zstd(u8),
}

/// Numbers in runs and groups of bits: the encoding of levels and of indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// The bits of a number, 1 to 32.
    pub width: u8,
    /// How many numbers.
    pub count: u32,
}

impl Runs {
    /// The bytes of a number in a stream.
    pub fn number_bytes(&self) -> usize {
        match self.width {
            ..=8 => 1,
            9..=16 => 2,
            17.. => 4,
        }
    }

    /// What the numbers take of a stream.
    pub fn stream_bytes(&self) -> usize {
        self.number_bytes() * self.count as usize
    }
}

/// How the levels of a page come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Levels<'a> {
    /// As they are, since they are short, or there are none.
    Plain(Cow<'a, [u8]>),
    /// From the stream: one or two sections, each with its length before it.
    Runs(Vec<Runs>),
}

/// How the values of a page come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Values {
    /// So many bytes of the stream.
    Plain(u32),
    /// A dictionary: what the indices of the pages behind it mean.
    Dictionary(Dictionary),
    /// Indices, before which stands their width.
    Indices(Runs),
    /// The same, by the tags of what they mean: four bytes each.
    Tags(Runs),
}

/// How a dictionary comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dictionary {
    /// So many bytes of the stream.
    pub length: u32,
    /// How many values are in them, at most [`MAX_DICTIONARY_VALUES`].
    pub count: u32,
}

/// The bytes of a tag.
pub const TAG_BYTES: usize = 4;

/// How a page is put together: the head, then the compressed levels and values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<'a> {
    /// What stands before what is compressed.
    pub head: Cow<'a, [u8]>,
    /// How the rest is compressed.
    pub codec: Codec,
    /// The levels.
    pub levels: Levels<'a>,
    /// The values.
    pub values: Values,
}

impl Page<'_> {
    /// The same, with bytes of its own.
    pub fn into_owned(self) -> Page<'static> {
        let levels = match self.levels {
            Levels::Plain(bytes) => Levels::Plain(bytes.into_owned().into()),
            Levels::Runs(runs) => Levels::Runs(runs),
        };
        let (codec, values) = (self.codec, self.values);
        Page { head: self.head.into_owned().into(), codec, levels, values }
    }

    /// What it takes of a stream.
    pub fn takes(&self, stream: Stream) -> usize {
        match (stream, &self.levels, self.values) {
            (Stream::Levels, Levels::Plain(_), _) => 0,
            (Stream::Levels, Levels::Runs(runs), _) => runs.iter().map(Runs::stream_bytes).sum(),
            (Stream::Values, _, Values::Plain(bytes)) => bytes as usize,
            (Stream::Values, _, Values::Dictionary(dictionary)) => dictionary.length as usize,
            (Stream::Values, _, Values::Indices(runs)) => runs.stream_bytes(),
            (Stream::Values, _, Values::Tags(runs)) => runs.count as usize * TAG_BYTES,
        }
    }
}

/// One step of a delta.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Instruction<'a> {
    /// All was said.
    End,
    /// So many bytes were not asked for.
    Skip(u64),
    /// Bytes as they are, at most [`MAX_PAGE_HEAD_BYTES`].
    Raw(&'a [u8]),
    /// A page.
    Page(Page<'a>),
    /// Known pieces, by the number of the first and how many.
    Copy(Stream, u32, u32),
    /// A piece that is new, at most [`MAX_PIECE_BYTES`].
    Add(Stream, &'a [u8]),
    /// A dictionary of which no page is to be made. It takes its bytes as a page does.
    Dictionary(Dictionary),
}

const END: u8 = 0;
const SKIP: u8 = 1;
const RAW: u8 = 2;
const PAGE: u8 = 3;
const COPY: u8 = 4;
const ADD: u8 = 5;
const DICTIONARY: u8 = 6;

/// The number of the codec before Zstandard's first level.
const SNAPPY: u8 = 1;
/// Writers use low levels by default; at the highest ones, a page could cost a quarter of a gigabyte.
const MAX_ZSTD_LEVEL: u8 = 3;

impl Request {
    /// Whether a message is one.
    pub fn is(bytes: &[u8]) -> bool {
        bytes.starts_with(&LATE.to_le_bytes())
    }

    /// Appends its bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&LATE.to_le_bytes());
        to.push(DELTA);
        encode_content(&self.content, to);
        let mut to = Writer(to);
        to.count(self.wanted.len());
        let mut end = 0;
        for stretch in &self.wanted {
            to.varint(stretch.start - end);
            to.varint(stretch.end - stretch.start);
            end = stretch.end;
        }
        self.known.iter().for_each(|&count| to.count(count));
    }

    /// Reads a whole request.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut from = Reader::new(bytes);
        if from.array("request")? != LATE.to_le_bytes() || from.u8("request")? != DELTA {
            return Err(DecodeError::Invalid { what: "kind of a request" });
        }
        let content = decode_content(&mut from)?;
        let count = from.count(2, MAX_DELTA_STRETCHES, "stretches of a delta")?;
        let mut end = 0_u64;
        let wanted = (0..count).map(|number| {
            let (gap, length) = (from.varint("gap")?, from.varint("length of a stretch")?);
            let start = end.checked_add(gap);
            let range = start.and_then(|start| Some(start..start.checked_add(length)?));
            match range {
                Some(range) if length != 0 && (gap != 0 || number == 0) => {
                    end = range.end;
                    Ok(range)
                }
                _ => Err(DecodeError::Invalid { what: "stretch of a delta" }),
            }
        });
        let wanted = wanted.collect::<Result<Vec<_>, _>>()?;
        if wanted.is_empty() || content.size() < end {
            return Err(DecodeError::Invalid { what: "stretches of a delta" });
        }
        let mut known = [0; 2];
        for count in &mut known {
            // The hashes are in other messages.
            let claimed = usize::try_from(from.varint("known pieces")?);
            let limit = MAX_DELTA_PIECES;
            *count = claimed
                .ok()
                .filter(|&count| count <= limit)
                .ok_or(DecodeError::TooLarge { what: "known pieces", limit })?;
        }
        from.finish()?;
        Ok(Self { content, wanted, known })
    }
}

impl<'a> Instruction<'a> {
    /// Appends its bytes.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let mut to = Writer(to);
        match self {
            Self::End => to.u8(END),
            Self::Skip(length) => {
                to.u8(SKIP);
                to.varint(*length);
            }
            Self::Raw(bytes) => {
                to.u8(RAW);
                to.bytes(bytes);
            }
            Self::Page(page) => {
                to.u8(PAGE);
                page.encode(&mut to);
            }
            Self::Copy(stream, first, count) => {
                to.u8(COPY);
                to.u8(*stream as u8);
                to.varint(u64::from(*first));
                to.varint(u64::from(*count));
            }
            Self::Add(stream, bytes) => {
                to.u8(ADD);
                to.u8(*stream as u8);
                to.bytes(bytes);
            }
            Self::Dictionary(dictionary) => {
                to.u8(DICTIONARY);
                dictionary.encode(&mut to);
            }
        }
    }

    /// Reads the next one.
    pub fn decode(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        match from.u8("instruction")? {
            END => Ok(Self::End),
            SKIP => Ok(Self::Skip(from.varint("bytes to skip")?)),
            RAW => Ok(Self::Raw(from.bytes(MAX_PAGE_HEAD_BYTES, "raw bytes")?)),
            PAGE => Ok(Self::Page(Page::decode(from)?)),
            COPY => {
                let stream = Stream::decode(from)?;
                let mut number = || {
                    let number = u32::try_from(from.varint("known pieces")?);
                    number.map_err(|_| DecodeError::Invalid { what: "known pieces" })
                };
                Ok(Self::Copy(stream, number()?, number()?))
            }
            ADD => Ok(Self::Add(Stream::decode(from)?, from.bytes(MAX_PIECE_BYTES, "a piece")?)),
            DICTIONARY => Ok(Self::Dictionary(Dictionary::decode(from)?)),
            _ => Err(DecodeError::Invalid { what: "instruction" }),
        }
    }
}

impl Stream {
    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match from.u8("stream")? {
            0 => Ok(Self::Levels),
            1 => Ok(Self::Values),
            _ => Err(DecodeError::Invalid { what: "stream" }),
        }
    }
}

impl Runs {
    fn encode(self, to: &mut Writer<'_>) {
        to.u8(self.width);
        to.varint(u64::from(self.count));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (width, count) = (from.u8("width")?, from.varint("numbers of a page")?);
        match u32::try_from(count) {
            Ok(count) if (1..=32).contains(&width) => Ok(Self { width, count }),
            _ => Err(DecodeError::Invalid { what: "numbers of a page" }),
        }
    }
}

impl Dictionary {
    fn encode(self, to: &mut Writer<'_>) {
        to.varint(u64::from(self.length));
        to.varint(u64::from(self.count));
    }

    fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut bounded = |limit: usize| {
            let number = u32::try_from(from.varint("dictionary")?).ok();
            let fits = number.filter(|&number| number as usize <= limit);
            fits.ok_or(DecodeError::TooLarge { what: "dictionary", limit })
        };
        let (length, count) = (bounded(MAX_PLAIN_PAGE_BYTES)?, bounded(MAX_DICTIONARY_VALUES)?);
        Ok(Self { length, count })
    }
}

impl<'a> Page<'a> {
    fn encode(&self, to: &mut Writer<'_>) {
        to.bytes(&self.head);
        to.u8(match self.codec {
            Codec::Stored => 0,
            Codec::Snappy => SNAPPY,
            Codec::Zstd(level) => SNAPPY + level,
        });
        match &self.levels {
            Levels::Plain(bytes) => {
                to.u8(0);
                to.bytes(bytes);
            }
            Levels::Runs(runs) => {
                to.count(runs.len());
                runs.iter().for_each(|runs| runs.encode(to));
            }
        }
        match self.values {
            Values::Plain(bytes) => {
                to.u8(0);
                to.varint(u64::from(bytes));
            }
            Values::Dictionary(dictionary) => {
                to.u8(1);
                dictionary.encode(to);
            }
            Values::Indices(runs) => {
                to.u8(2);
                runs.encode(to);
            }
            Values::Tags(runs) => {
                to.u8(3);
                runs.encode(to);
            }
        }
    }

    fn decode(from: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let head = from.bytes(MAX_PAGE_HEAD_BYTES, "head of a page")?.into();
        let codec = match from.u8("codec")? {
            0 => Codec::Stored,
            SNAPPY => Codec::Snappy,
            number if number <= SNAPPY + MAX_ZSTD_LEVEL => Codec::Zstd(number - SNAPPY),
            _ => return Err(DecodeError::Invalid { what: "codec" }),
        };
        let levels = match from.u8("levels")? {
            0 => Levels::Plain(from.bytes(MAX_PAGE_HEAD_BYTES, "levels")?.into()),
            count @ 1..=2 => {
                let runs = (0..count).map(|_| Runs::decode(from));
                Levels::Runs(runs.collect::<Result<_, _>>()?)
            }
            _ => return Err(DecodeError::Invalid { what: "levels" }),
        };
        let values = match from.u8("values")? {
            0 => {
                let bytes = u32::try_from(from.varint("bytes of a page")?);
                Values::Plain(bytes.map_err(|_| DecodeError::Invalid { what: "bytes of a page" })?)
            }
            1 => Values::Dictionary(Dictionary::decode(from)?),
            2 => Values::Indices(Runs::decode(from)?),
            3 => Values::Tags(Runs::decode(from)?),
            _ => return Err(DecodeError::Invalid { what: "values" }),
        };
        let page = Self { head, codec, levels, values };
        let limit = MAX_PLAIN_PAGE_BYTES;
        if limit < page.takes(Stream::Levels) || limit < page.takes(Stream::Values) {
            return Err(DecodeError::TooLarge { what: "plain form of a page", limit });
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::content::ChunkRef;

    fn runs() -> impl Strategy<Value = Runs> {
        (1_u8..=32, 0_u32..1_000_000).prop_map(|(width, count)| Runs { width, count })
    }

    proptest! {
        #[test]
        fn requests_come_back(
            stretches in proptest::collection::vec((1_u64..1000, 1_u64..1000), 1..20),
            known in [0..=MAX_DELTA_PIECES, 0..=MAX_DELTA_PIECES],
        ) {
            let mut end = 0;
            let wanted = stretches.into_iter().map(|(gap, length)| {
                let start = end + gap;
                end = start + length;
                start..end
            });
            let chunk = ChunkRef { length: 200_000, ..ChunkRef::to(b"chunk") };
            let content = Content::Chunks(vec![chunk].into());
            let request = Request { content, wanted: wanted.collect(), known };
            let mut bytes = Vec::new();
            request.encode(&mut bytes);
            prop_assert!(Request::is(&bytes));
            prop_assert_eq!(Request::decode(&bytes), Ok(request));
            prop_assert!(crate::content::exchange::Request::decode(&bytes).is_err());
        }

        #[test]
        fn instructions_come_back(
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
            (a, b, c) in (runs(), runs(), runs()),
            numbers: (u64, u32, u32),
            level in 1..=MAX_ZSTD_LEVEL,
        ) {
            let plain = Page {
                head: (&bytes).into(),
                codec: Codec::Zstd(level),
                levels: Levels::Plain((&bytes).into()),
                values: Values::Plain(1000),
            };
            let coded = Page {
                head: (&bytes).into(),
                codec: Codec::Snappy,
                levels: Levels::Runs(vec![a, b]),
                values: Values::Indices(c),
            };
            let dictionary = Dictionary { length: a.count, count: b.count };
            let [mut tagged, mut entries] = [coded.clone(), coded.clone()];
            (tagged.values, entries.values) = (Values::Tags(c), Values::Dictionary(dictionary));
            let all = [
                Instruction::Page(tagged),
                Instruction::Page(entries),
                Instruction::Dictionary(dictionary),
                Instruction::Page(plain),
                Instruction::Page(coded),
                Instruction::Skip(numbers.0),
                Instruction::Raw(&bytes),
                Instruction::Copy(Stream::Levels, numbers.1, numbers.2),
                Instruction::Add(Stream::Values, &bytes),
                Instruction::End,
            ];
            let mut encoded = Vec::new();
            all.iter().for_each(|instruction| instruction.encode(&mut encoded));
            let mut from = Reader::new(&encoded);
            for instruction in all {
                prop_assert_eq!(Instruction::decode(&mut from), Ok(instruction));
            }
            prop_assert!(from.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Request::decode(&[&LATE.to_le_bytes()[..], &[DELTA], &bytes].concat());
            let mut from = Reader::new(&bytes);
            while Instruction::decode(&mut from).is_ok() {}
        }
    }

    #[test]
    fn a_page_that_claims_more_than_a_page_holds_is_refused() {
        let huge = Runs { width: 32, count: u32::MAX };
        let values = Values::Indices(huge);
        let levels = Levels::Plain(b"".into());
        let page = Page { head: b"".into(), codec: Codec::Stored, levels, values };
        let mut bytes = Vec::new();
        Instruction::Page(page).encode(&mut bytes);
        let refused = Instruction::decode(&mut Reader::new(&bytes));
        assert!(matches!(refused, Err(DecodeError::TooLarge { .. })), "{refused:?}");
    }
}
