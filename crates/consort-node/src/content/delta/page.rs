//! One page: taken apart into levels and values in plain form, and put together again to the bit. Both sides have to
//! take the same page apart in the same way, or they would not find each other's pieces.
//!
//! Values that are indices, and levels, are numbers in [`runs`]: their plain form is the numbers themselves, since a row that comes
//! or goes moves all bits behind it; and of indices, the tags of what they mean. The levels are apart from the values: in a file they stand before the values of their
//! page, so those of two pages would not follow each other.

use std::borrow::Cow;

use consort_core::content::delta::{self, Codec, Levels, Page, Runs, Stream, Values};
use consort_core::content::parquet::{PageHeader, PageKind};
use consort_core::limits::{MAX_DICTIONARY_VALUES, MAX_PAGE_HEAD_BYTES, MAX_PLAIN_PAGE_BYTES};

use super::codec::{Packer, decompress};
use super::dictionary::Dictionary;
use super::runs;

/// Levels of at most so many bytes are sent as they are: one run, as a rule, which says that all values are there.
const SHORT_LEVELS: usize = 32;

/// The most bits of a level that are tried: three lists in each other.
const MAX_LEVEL_BITS: u8 = 3;

/// A page that was taken apart.
#[derive(Debug)]
pub(super) struct Apart {
    /// The bytes before what is compressed.
    head: usize,
    codecs: &'static [Codec],
    /// Levels that are as they were.
    plain_levels: Vec<u8>,
    levels: Vec<Runs>,
    values: Values,
    /// What the page adds to the streams.
    pub(super) streams: [Vec<u8>; 2],
}

impl Apart {
    /// Takes apart what begins with its header. `dictionary` is the one before it. Nothing if it is not possible, or the page
    /// is too long.
    pub(super) fn take(
        header: &PageHeader,
        page: &[u8],
        dictionary: Option<&Dictionary>,
    ) -> Option<Self> {
        let plain_size = usize::try_from(header.plain_size).ok()?;
        if MAX_PLAIN_PAGE_BYTES < plain_size {
            return None;
        }
        let (mut head, mut plain_size) = (header.length, plain_size);
        let (mut indices, mut has_levels, mut present, mut compressed) =
            (false, false, header.values, true);
        match header.kind {
            PageKind::Data { indices: are } => (indices, has_levels) = (are, true),
            PageKind::DataV2 { indices: are, levels, nulls, compressed: is } => {
                let levels = usize::try_from(levels).ok()?;
                head = head.checked_add(levels)?;
                plain_size = plain_size.checked_sub(levels)?;
                (indices, present, compressed) = (are, present.checked_sub(nulls)?, is);
            }
            PageKind::Dictionary => {}
            PageKind::Other => return None,
        }
        let (_, body) = page.split_at_checked(head)?;
        if MAX_PAGE_HEAD_BYTES < head {
            return None;
        }
        let (plain, codecs) = match compressed {
            true => decompress(body, plain_size)?,
            false => (body.to_vec(), &[Codec::Stored][..]),
        };
        let mut apart = Self {
            head,
            codecs,
            plain_levels: Vec::new(),
            levels: Vec::new(),
            values: Values::Plain(0),
            streams: Default::default(),
        };
        let mut rest = &plain[..];
        if has_levels {
            let (behind, of_them) = apart.take_levels(rest, header.values);
            let levels = &rest[..rest.len() - behind.len()];
            if levels.len() <= SHORT_LEVELS {
                apart.plain_levels = levels.to_vec();
                (apart.levels, apart.streams) = Default::default();
            }
            (rest, present) = (behind, of_them);
        }
        if !(indices && apart.take_indices(rest, present, dictionary).is_some()) {
            let start = plain.len() - rest.len();
            let length = u32::try_from(rest.len()).ok()?;
            let count = u32::try_from(header.values).ok();
            let count = count.filter(|&count| count as usize <= MAX_DICTIONARY_VALUES);
            apart.values = match (header.kind, count) {
                (PageKind::Dictionary, Some(count)) => {
                    Values::Dictionary(delta::Dictionary { length, count })
                }
                _ => Values::Plain(length),
            };
            let mut values = plain;
            values.drain(..start);
            apart.streams[Stream::Values as usize] = values;
        }
        Some(apart)
    }

    /// How the page that was taken apart is put together by one of its codecs.
    pub(super) fn form<'a>(&'a self, page: &'a [u8], codec: Codec) -> Page<'a> {
        let levels = match &self.levels[..] {
            [] => Levels::Plain(Cow::Borrowed(&self.plain_levels)),
            levels => Levels::Runs(levels.to_vec()),
        };
        Page { head: page[..self.head].into(), codec, levels, values: self.values }
    }

    /// What the indices of the pages behind it mean, if it is a dictionary.
    pub(super) fn dictionary(&self) -> Option<(delta::Dictionary, &[u8])> {
        match self.values {
            Values::Dictionary(form) => Some((form, &self.streams[Stream::Values as usize])),
            _ => None,
        }
    }

    /// The codecs that may have compressed it.
    pub(super) fn codecs(&self) -> &'static [Codec] {
        self.codecs
    }

    /// Takes up to two sections of levels off the front of a page's plain form. Returns the rest, and how many of the values are
    /// there, as far as the levels say.
    ///
    /// Whether there are levels is said at the end of the file only. A section gives itself away: it has as many numbers
    /// as the page has values. What only looks like one comes back all the same.
    fn take_levels<'a>(&mut self, plain: &'a [u8], values: i64) -> (&'a [u8], i64) {
        let (mut rest, mut present) = (plain, values);
        while self.levels.len() < 2
            && let Some((runs, numbers, behind)) = level_section(rest, values)
        {
            let most = numbers.iter().max().copied().unwrap_or(0);
            present = numbers.iter().filter(|&&number| number == most).count() as i64;
            append(&mut self.streams[Stream::Levels as usize], runs, &numbers);
            self.levels.push(runs);
            rest = behind;
        }
        (rest, present)
    }

    /// Takes indices, if their encoding comes back.
    fn take_indices(
        &mut self,
        bytes: &[u8],
        present: i64,
        dictionary: Option<&Dictionary>,
    ) -> Option<()> {
        let (&width, bytes) = bytes.split_first()?;
        let runs = bounded(width, present)?;
        let numbers = runs::decode(bytes, runs)?;
        if runs::encode(&numbers, width) != bytes {
            return None;
        }
        let values = &mut self.streams[Stream::Values as usize];
        let tagged = Runs { width: 32, ..runs };
        let tags = dictionary.filter(|_| tagged.stream_bytes() <= MAX_PLAIN_PAGE_BYTES);
        let tags = tags.and_then(|dictionary| {
            numbers.iter().map(|&index| dictionary.tag(index)).collect::<Option<Vec<_>>>()
        });
        if let Some(tags) = tags {
            append(values, tagged, &tags);
            self.values = Values::Tags(runs);
        } else {
            append(values, runs, &numbers);
            self.values = Values::Indices(runs);
        }
        Some(())
    }
}

/// The section of levels with which the plain form of a page begins, its numbers, and what is behind it.
fn level_section(plain: &[u8], values: i64) -> Option<(Runs, Vec<u32>, &[u8])> {
    let (length, rest) = plain.split_first_chunk()?;
    let (section, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    (1..=MAX_LEVEL_BITS).find_map(|width| {
        let runs = bounded(width, values)?;
        let numbers = runs::decode(section, runs)?;
        (runs::encode(&numbers, width) == section).then_some((runs, numbers, rest))
    })
}

/// So many numbers, if a page can have them.
fn bounded(width: u8, count: i64) -> Option<Runs> {
    let runs = Runs { width, count: u32::try_from(count).ok()? };
    let fits = (1..=32).contains(&width) && runs.stream_bytes() <= MAX_PLAIN_PAGE_BYTES;
    fits.then_some(runs)
}

/// Appends numbers to a stream.
fn append(stream: &mut Vec<u8>, runs: Runs, numbers: &[u32]) {
    stream.reserve(runs.stream_bytes());
    match runs.number_bytes() {
        1 => stream.extend(numbers.iter().map(|number| number.to_le_bytes()[0])),
        2 => stream.extend(numbers.iter().flat_map(|number| {
            let [low, high, ..] = number.to_le_bytes();
            [low, high]
        })),
        _ => stream.extend(numbers.iter().flat_map(|number| number.to_le_bytes())),
    }
}

/// Takes numbers off the front of what a stream gives.
fn numbers(stream: &mut &[u8], runs: Runs) -> Option<Vec<u32>> {
    let (bytes, rest) = stream.split_at_checked(runs.stream_bytes())?;
    *stream = rest;
    let number = |bytes: &[u8]| {
        let mut number = [0; 4];
        number[..bytes.len()].copy_from_slice(bytes);
        u32::from_le_bytes(number)
    };
    Some(bytes.chunks_exact(runs.number_bytes()).map(number).collect())
}

/// What stands behind the head of a page. `levels` and `values` are what it takes of the streams, to the byte.
pub(super) fn put_together(
    page: &Page<'_>,
    mut levels: &[u8],
    mut values: &[u8],
    dictionary: Option<&Dictionary>,
    packer: &mut Packer,
) -> Option<Vec<u8>> {
    let mut plain = Vec::with_capacity(levels.len() + values.len() + MAX_PAGE_HEAD_BYTES);
    match &page.levels {
        Levels::Plain(bytes) => plain.extend_from_slice(bytes),
        Levels::Runs(sections) => {
            for runs in sections {
                let section = runs::encode(&numbers(&mut levels, *runs)?, runs.width);
                plain.extend_from_slice(&u32::try_from(section.len()).ok()?.to_le_bytes());
                plain.extend_from_slice(&section);
            }
        }
    }
    match page.values {
        Values::Plain(_) | Values::Dictionary(_) => {
            plain.extend_from_slice(std::mem::take(&mut values));
        }
        Values::Tags(runs) => {
            let tags = numbers(&mut values, Runs { width: 32, ..runs })?;
            let indices = tags.into_iter().map(|tag| dictionary?.index(tag));
            plain.push(runs.width);
            plain.extend(runs::encode(&indices.collect::<Option<Vec<_>>>()?, runs.width));
        }
        Values::Indices(runs) => {
            plain.push(runs.width);
            plain.extend(runs::encode(&numbers(&mut values, runs)?, runs.width));
        }
    }
    if !levels.is_empty() || !values.is_empty() {
        return None;
    }
    packer.pack(page.codec, plain)
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pages as a writer makes them, to be changed and read again in tests.
    pub(in super::super) mod writer {
        use consort_core::content::parquet::writer::header;

        use super::*;

        fn page(
            dictionary: bool,
            plain: Vec<u8>,
            values: usize,
            encoding: u8,
            codec: Codec,
        ) -> Vec<u8> {
            let length = plain.len();
            let packed = Packer::default().pack(codec, plain).expect("it can be packed");
            let (values, size) = (values as u64, packed.len() as u64);
            let mut bytes = header(dictionary, length as u64, size, values, encoding);
            bytes.extend(packed);
            bytes
        }

        fn levels(levels: &[u32]) -> Vec<u8> {
            let section = runs::encode(levels, 1);
            let length = u32::try_from(section.len()).expect("short").to_le_bytes();
            [&length[..], &section].concat()
        }

        /// Numbers of 64 bits, as they are.
        pub(in super::super::super) fn plain(values: &[Option<u64>], codec: Codec) -> Vec<u8> {
            let mut bytes =
                levels(&values.iter().map(|v| u32::from(v.is_some())).collect::<Vec<_>>());
            bytes.extend(values.iter().flatten().flat_map(|value| value.to_le_bytes()));
            page(false, bytes, values.len(), 0, codec)
        }

        /// Indices into a dictionary.
        pub(in super::super::super) fn indices(
            values: &[Option<u32>],
            width: u8,
            codec: Codec,
        ) -> Vec<u8> {
            let mut bytes =
                levels(&values.iter().map(|v| u32::from(v.is_some())).collect::<Vec<_>>());
            bytes.push(width);
            let present: Vec<u32> = values.iter().flatten().copied().collect();
            bytes.extend(runs::encode(&present, width));
            page(false, bytes, values.len(), 8, codec)
        }

        /// A dictionary of texts.
        pub(in super::super::super) fn dictionary(texts: &[&str], codec: Codec) -> Vec<u8> {
            let length = |text: &str| u32::try_from(text.len()).expect("short").to_le_bytes();
            let bytes = texts.iter().flat_map(|text| [&length(text), text.as_bytes()].concat());
            page(true, bytes.collect(), texts.len(), 0, codec)
        }
    }

    fn comes_back(bytes: &[u8], dictionary: Option<&Dictionary>) -> Apart {
        let header = PageHeader::read(bytes).expect("a header");
        let apart = Apart::take(&header, bytes, dictionary).expect("it is a page");
        let [levels, values] = &apart.streams;
        let gives = |codec: &&Codec| {
            let form = apart.form(bytes, **codec);
            assert_eq!(form.takes(Stream::Levels), levels.len());
            assert_eq!(form.takes(Stream::Values), values.len());
            let body = put_together(&form, levels, values, dictionary, &mut Packer::default());
            body.is_some_and(|body| [&form.head, &body[..]].concat() == bytes)
        };
        assert!(apart.codecs().iter().any(|codec| gives(&codec)), "no codec gives it again");
        apart
    }

    pub(in super::super) fn codecs() -> impl Strategy<Value = Codec> {
        prop_oneof![
            Just(Codec::Stored),
            Just(Codec::Snappy),
            Just(Codec::Zstd(1)),
            Just(Codec::Zstd(3)),
        ]
    }

    proptest! {
        #[test]
        fn pages_come_back_whatever_is_in_them(
            values in proptest::collection::vec(proptest::option::of(0_u32..1000), 0..3000),
            codec in codecs(),
        ) {
            let meant: Vec<u8> = (0_u32..990).flat_map(u32::to_le_bytes).collect();
            let dictionary = Dictionary::of(&meant, 990);
            comes_back(&writer::indices(&values, 10, codec), dictionary.as_ref());
            let wide: Vec<_> = values.iter().map(|value| value.map(u64::from)).collect();
            comes_back(&writer::plain(&wide, codec), None);
        }

        #[test]
        fn arbitrary_bytes_in_a_page_never_panic(
            body: Vec<u8>,
            plain_size in 0_u64..2_000_000_000,
            values: i64,
            levels: u64,
            nulls: i64,
            (indices, compressed) in any::<(bool, bool)>(),
        ) {
            let kinds = [
                PageKind::Data { indices },
                PageKind::DataV2 { indices, levels, nulls, compressed },
                PageKind::Dictionary,
                PageKind::Other,
            ];
            for kind in kinds {
                for plain_size in [plain_size, body.len() as u64] {
                    let size = body.len() as u64;
                    let header = PageHeader { length: 0, kind, size, plain_size, values };
                    let _ = Apart::take(&header, &body, None);
                }
            }
        }
    }

    #[test]
    fn indices_and_levels_are_numbers_in_their_streams() {
        let values: Vec<Option<u32>> = (0..1000).map(|n| (n % 3 != 0).then_some(n % 7)).collect();
        let apart = comes_back(&writer::indices(&values, 3, Codec::Snappy), None);
        let present: Vec<u8> =
            values.iter().flatten().map(|value| value.to_le_bytes()[0]).collect();
        assert_eq!(apart.streams[1], present);
        assert_eq!(apart.streams[0].len(), 1000);
        let all: Vec<Option<u32>> = (0..1000).map(|n| Some(n % 7)).collect();
        assert!(comes_back(&writer::indices(&all, 3, Codec::Snappy), None).streams[0].is_empty());
        comes_back(&writer::dictionary(&["one", "two", "three"], Codec::Zstd(1)), None);
    }
}
