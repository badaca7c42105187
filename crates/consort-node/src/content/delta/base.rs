//! The file that is here, of which pieces are taken: which there are, and what they hold.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::thread::{Builder, available_parallelism};

use consort_core::content::delta::Stream;
use consort_core::limits::MAX_DELTA_PIECES;

use super::dictionary::Dictionary;
use super::page::Apart;
use super::pieces::{Cutter, PieceHash, hash};
use super::{OnDisk, PageAt, Source, first_page, page_at};

/// Pages of one file, at the most: about 160 bytes each while the file is taken apart.
const MAX_PAGES: usize = 256 * 1024;

/// What the pages of a file may hold in plain form, together: more would make more pieces than may be known.
const MAX_PLAIN_BYTES: u64 = 4 << 30;

/// Pages that were taken apart last and are kept: those of a few columns at a time.
const MAX_KEPT_PAGES: usize = 4;

/// A file is taken apart by no more threads than that.
const MAX_THREADS: usize = 4;

/// The pieces of a file.
#[derive(Debug)]
pub(super) struct Base<'a> {
    file: OnDisk<'a>,
    pages: Vec<Placed>,
    streams: [Pieces; 2],
    /// The newest last.
    kept: VecDeque<(usize, [Vec<u8>; 2])>,
    /// The number of its page, and what it means.
    dictionary: Option<(usize, Opener)>,
}

/// A page, and where in the streams what it holds begins and ends.
#[derive(Debug)]
struct Placed {
    page: PageAt,
    starts: [u64; 2],
    ends: [u64; 2],
}

/// The pieces of a stream, in order.
#[derive(Debug, Default)]
struct Pieces {
    hashes: Vec<PieceHash>,
    /// Where each ends.
    ends: Vec<u64>,
}

/// Some of the pages of a file, taken apart.
#[derive(Debug, Default)]
struct Part {
    pages: Vec<Placed>,
    streams: [Pieces; 2],
}

impl<'a> Base<'a> {
    /// Takes a file apart. Nothing if there is nothing to be had from it, or too much.
    pub(super) fn of(file: &'a File) -> io::Result<Option<Self>> {
        let mut on_disk = OnDisk::new(file)?;
        let Some(mut at) = first_page(&mut on_disk)? else { return Ok(None) };
        let (mut pages, mut plain) = (Vec::new(), 0_u64);
        while let Some(page) = page_at(&mut on_disk, at)? {
            plain = plain.saturating_add(page.header.plain_size);
            if pages.len() == MAX_PAGES || MAX_PLAIN_BYTES < plain {
                return Ok(None);
            }
            pages.push(page);
            at = page.end();
        }
        // Each thread begins anew with its pages: that costs a piece or two.
        let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let share = pages.len().div_ceil(threads).max(1);
        let pages = &pages[..];
        let parts = std::thread::scope(|scope| {
            let shares = (0..pages.len()).step_by(share).map(|start| {
                let mut source = OnDisk { file, size: on_disk.size };
                Builder::new().spawn_scoped(scope, move || {
                    let opener = Opener::behind(&mut source, pages[..start].iter())?;
                    let end = pages.len().min(start + share);
                    Part::of(&mut source, &pages[start..end], opener)
                })
            });
            let running = shares.collect::<io::Result<Vec<_>>>()?;
            let joined = running.into_iter().map(|thread| thread.join());
            // A panic was reported.
            joined.collect::<Result<Vec<_>, _>>().map_err(|_| io::Error::other("a thread panicked"))
        })?;
        let mut base = Self {
            file: on_disk,
            pages: Vec::with_capacity(pages.len()),
            streams: Default::default(),
            kept: VecDeque::new(),
            dictionary: None,
        };
        for part in parts {
            base.append(part?);
        }
        let known = base.streams.iter().all(|stream| stream.ends.len() <= MAX_DELTA_PIECES);
        Ok((known && !base.streams.iter().all(|s| s.ends.is_empty())).then_some(base))
    }

    /// The hashes of the pieces of a stream.
    pub(super) fn hashes(&self, stream: Stream) -> &[PieceHash] {
        &self.streams[stream as usize].hashes
    }

    /// Appends pieces that follow each other. False if they are not there: the file may be another one by now, but that is
    /// for others to find out.
    pub(super) fn read(
        &mut self,
        stream: Stream,
        first: usize,
        count: usize,
        to: &mut Vec<u8>,
    ) -> bool {
        let ends = &self.streams[stream as usize].ends;
        let last = first.checked_add(count).and_then(|end| end.checked_sub(1));
        let Some(&end) = last.and_then(|last| ends.get(last)) else { return false };
        let start = first.checked_sub(1).map_or(0, |before| ends[before]);
        self.read_stream(stream as usize, start, end, to).is_some()
    }

    fn read_stream(&mut self, stream: usize, start: u64, end: u64, to: &mut Vec<u8>) -> Option<()> {
        let mut at = start;
        let mut number = self.pages.partition_point(|page| page.ends[stream] <= start);
        while at < end {
            let Placed { starts, ends, .. } = self.pages.get(number)?;
            let (page_start, page_end) = (starts[stream], ends[stream].min(end));
            let range = usize::try_from(at - page_start).ok()?
                ..usize::try_from(page_end.checked_sub(page_start)?).ok()?;
            to.extend_from_slice(self.page(number)?[stream].get(range)?);
            at = at.max(page_end);
            number += 1;
        }
        Some(())
    }

    /// What a page adds to the streams.
    fn page(&mut self, number: usize) -> Option<&[Vec<u8>; 2]> {
        if let Some(at) = self.kept.iter().position(|(other, _)| *other == number) {
            let kept = self.kept.remove(at)?;
            self.kept.push_back(kept);
        } else {
            let before = self.pages[..=number].iter().rposition(|page| page.page.is_dictionary());
            let mut opener = match (before, self.dictionary.take()) {
                (Some(before), Some((known, opener))) if before == known => opener,
                (Some(before), _) => {
                    let pages = self.pages[before..number].iter().take(1);
                    Opener::behind(&mut self.file, pages.map(|page| &page.page)).ok()?
                }
                _ => Opener::default(),
            };
            let apart =
                opener.take_apart(&mut self.file, &self.pages[number].page, &mut Vec::new());
            self.dictionary = before.map(|before| (before, opener));
            if self.kept.len() == MAX_KEPT_PAGES {
                self.kept.pop_front();
            }
            self.kept.push_back((number, apart.ok()??.streams));
        }
        self.kept.back().map(|(_, streams)| streams)
    }

    /// Appends what follows in the file.
    fn append(&mut self, part: Part) {
        let before = [0, 1].map(|stream| self.streams[stream].ends.last().copied().unwrap_or(0));
        let place = |places: [u64; 2]| [before[0] + places[0], before[1] + places[1]];
        self.pages.extend(part.pages.into_iter().map(|Placed { page, starts, ends }| Placed {
            page,
            starts: place(starts),
            ends: place(ends),
        }));
        for ((stream, more), before) in self.streams.iter_mut().zip(part.streams).zip(before) {
            stream.hashes.extend(more.hashes);
            stream.ends.extend(more.ends.into_iter().map(|end| before + end));
        }
    }
}

impl Part {
    fn of(source: &mut OnDisk<'_>, pages: &[PageAt], mut opener: Opener) -> io::Result<Self> {
        let mut part = Self::default();
        let mut cutters = [Cutter::new(), Cutter::new()];
        let (mut ends, mut bytes) = ([0; 2], Vec::new());
        for page in pages {
            let starts = ends;
            if let Some(apart) = opener.take_apart(source, page, &mut bytes)? {
                for (stream, bytes) in apart.streams.iter().enumerate() {
                    ends[stream] += bytes.len() as u64;
                    cutters[stream].push(bytes);
                }
                part.cut(&mut cutters, false);
            }
            part.pages.push(Placed { page: *page, starts, ends });
            if part.streams.iter().any(|stream| MAX_DELTA_PIECES < stream.ends.len()) {
                return Ok(part);
            }
        }
        part.cut(&mut cutters, true);
        Ok(part)
    }

    fn cut(&mut self, cutters: &mut [Cutter; 2], at_end: bool) {
        for (pieces, cutter) in self.streams.iter_mut().zip(cutters) {
            while let Some(piece) = cutter.next(at_end) {
                let end = pieces.ends.last().copied().unwrap_or(0);
                pieces.ends.push(end + piece.len() as u64);
                pieces.hashes.push(hash(piece));
            }
        }
    }
}

/// Takes pages apart, one behind the other: what their indices mean stands before them.
#[derive(Debug, Default)]
pub(super) struct Opener {
    dictionary: Option<Dictionary>,
}

impl Opener {
    /// For the pages behind these.
    fn behind<'a>(
        source: &mut impl Source,
        pages: impl DoubleEndedIterator<Item = &'a PageAt>,
    ) -> io::Result<Self> {
        let mut opener = Self::default();
        if let Some(page) = pages.rev().find(|page| page.is_dictionary()) {
            opener.take_apart(source, page, &mut Vec::new())?;
        }
        Ok(opener)
    }

    /// Reads a page into `bytes` and takes it apart, if that is possible.
    pub(super) fn take_apart(
        &mut self,
        source: &mut impl Source,
        page: &PageAt,
        bytes: &mut Vec<u8>,
    ) -> io::Result<Option<Apart>> {
        if page.is_dictionary() {
            self.dictionary = None;
        }
        // What is longer than its plain form may be is of no use. It is there: a page ends within its file.
        let length = page.end() - page.offset;
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= MAX_PAGE) else {
            return Ok(None);
        };
        bytes.resize(length, 0);
        source.read_at(page.offset, bytes)?;
        let apart = Apart::take(&page.header, bytes, self.dictionary.as_ref());
        if let Some((form, plain)) = apart.as_ref().and_then(Apart::dictionary) {
            self.dictionary = Dictionary::of(plain, form.count as usize);
        }
        Ok(apart)
    }

    /// What the indices of the page that is next mean.
    pub(super) fn dictionary(&self) -> Option<&Dictionary> {
        self.dictionary.as_ref()
    }
}

/// The longest page that is taken apart, with its head.
const MAX_PAGE: usize = 2 * consort_core::limits::MAX_PLAIN_PAGE_BYTES;
