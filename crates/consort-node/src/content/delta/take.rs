//! Makes chunks by instructions, from pieces of the file that is here: the side that lacks them. What is made is a chunk if it
//! has its hash.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::{Builder, available_parallelism};
use std::time::Instant;

use consort_core::ChunkRef;
use consort_core::content::delta::{self, Instruction, Page, Stream, Values};
use consort_core::encoding::{DecodeError, Reader};
use consort_core::limits::{MAX_CHUNK_BYTES, MAX_PLAIN_PAGE_BYTES, MAX_WAITING_PAGES};

use super::base::Base;
use super::codec::Packer;
use super::dictionary::Dictionary;
use super::page::put_together;

/// What a stream may hold before a page takes it: what its other stream waits for, and what goes to the pages behind it.
const MAX_STREAM_BYTES: usize = 4 * MAX_PLAIN_PAGE_BYTES;

/// So many chunks that turn out wrong, and no more right ones, end a delta.
const MAX_WRONG: u32 = 16;

/// Pages are put together when they have so many bytes in plain form, or their message ends, by as many threads at the most.
const READY_BYTES: usize = MAX_PLAIN_PAGE_BYTES;
const MAX_THREADS: usize = 4;

/// Why a delta is given up. What was made until then is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Bad(#[from] DecodeError),
    #[error("an instruction does not fit what was said before")]
    Unfit,
    #[error("what is made by it is not what is wanted")]
    Wrong,
    #[error("to fetch it takes no longer")]
    Late,
    #[error("the system lets no thread begin")]
    NoThread,
}

/// Follows instructions.
pub(super) struct Taker<'a, D> {
    base: Base<'a>,
    waiting: VecDeque<Waiting>,
    dictionary: Option<Arc<Dictionary>>,
    streams: [Vec<u8>; 2],
    /// Pages that have what they take, and its bytes.
    ready: Vec<Ready>,
    ready_bytes: usize,
    /// One for each thread.
    packers: Vec<Packer>,
    made: Made<D>,
    /// When it is given up.
    until: Instant,
    ended: bool,
}

/// A page with what it takes.
struct Ready {
    page: Page<'static>,
    streams: [Vec<u8>; 2],
    /// Where its values are tags.
    dictionary: Option<Arc<Dictionary>>,
}

/// What waits for its bytes.
enum Waiting {
    Page(Page<'static>),
    Dictionary(delta::Dictionary),
}

impl Waiting {
    fn takes(&self, stream: Stream) -> usize {
        match (self, stream) {
            (Self::Page(page), _) => page.takes(stream),
            (Self::Dictionary(_), Stream::Levels) => 0,
            (Self::Dictionary(dictionary), Stream::Values) => dictionary.length as usize,
        }
    }
}

/// The bytes that were made, as chunks.
struct Made<D> {
    /// Where in the content we are.
    at: u64,
    /// What is wanted and not made yet, in order.
    wanted: VecDeque<(u64, ChunkRef)>,
    /// The beginning of the first of these.
    begun: Vec<u8>,
    right: u32,
    wrong: u32,
    done: D,
}

impl<'a, D: FnMut(u64, ChunkRef, Option<&[u8]>)> Taker<'a, D> {
    /// Tells `done` of each wanted chunk in order, with its verified bytes or without any; not of those at the end that it
    /// did not come to. The chunks come with their places and in order.
    pub(super) fn new(
        base: Base<'a>,
        wanted: Vec<(u64, ChunkRef)>,
        until: Instant,
        done: D,
    ) -> Self {
        let made = Made {
            at: 0,
            wanted: wanted.into(),
            begun: Vec::with_capacity(MAX_CHUNK_BYTES),
            right: 0,
            wrong: 0,
            done,
        };
        let (waiting, streams) = (VecDeque::new(), Default::default());
        let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        Self {
            base,
            waiting,
            dictionary: None,
            streams,
            ready: Vec::new(),
            ready_bytes: 0,
            packers: std::iter::repeat_with(Packer::default).take(threads).collect(),
            made,
            until,
            ended: false,
        }
    }

    /// Follows the instructions of a message.
    pub(super) fn follow(&mut self, message: &[u8]) -> Result<(), Failed> {
        let mut from = Reader::new(message);
        // What comes when nothing is wanted any more is not looked at.
        while !from.is_empty() && !self.is_ended() {
            self.step(Instruction::decode(&mut from)?)?;
        }
        self.put_together()?;
        if MAX_WRONG < self.made.wrong.saturating_sub(self.made.right) {
            return Err(Failed::Wrong);
        }
        Ok(())
    }

    /// Whether all was said, or all was made.
    pub(super) fn is_ended(&self) -> bool {
        self.ended || self.made.wanted.is_empty()
    }

    fn step(&mut self, instruction: Instruction<'_>) -> Result<(), Failed> {
        match instruction {
            Instruction::Copy(stream, first, count) => {
                for number in (first as usize..).take(count as usize) {
                    let to = &mut self.streams[stream as usize];
                    if !self.base.read(stream, number, 1, to) {
                        return Err(Failed::Unfit);
                    }
                    self.fill(stream)?;
                }
            }
            Instruction::Add(stream, bytes) => {
                self.streams[stream as usize].extend_from_slice(bytes);
                self.fill(stream)?;
            }
            Instruction::Page(page) => self.wait(Waiting::Page(page.into_owned()))?,
            Instruction::Dictionary(dictionary) => self.wait(Waiting::Dictionary(dictionary))?,
            Instruction::Skip(length) => {
                self.expect_nothing_left()?;
                self.put_together()?;
                self.made.at = self.made.at.checked_add(length).ok_or(Failed::Unfit)?;
            }
            Instruction::Raw(bytes) => {
                self.expect_nothing_left()?;
                self.put_together()?;
                self.made.add(bytes);
            }
            Instruction::End => {
                self.expect_nothing_left()?;
                self.ended = true;
            }
        }
        Ok(())
    }

    fn wait(&mut self, next: Waiting) -> Result<(), Failed> {
        if self.waiting.len() == MAX_WAITING_PAGES {
            return Err(Failed::Unfit);
        }
        self.waiting.push_back(next);
        self.fill(Stream::Values)
    }

    fn expect_nothing_left(&self) -> Result<(), Failed> {
        let is_empty = self.waiting.is_empty() && self.streams.iter().all(Vec::is_empty);
        if is_empty { Ok(()) } else { Err(Failed::Unfit) }
    }

    /// Gives the pages what they take, as far as it is there, after something came for a stream.
    fn fill(&mut self, stream: Stream) -> Result<(), Failed> {
        let mut used = [0; 2];
        while let Some(next) = self.waiting.front() {
            let takes = [Stream::Levels, Stream::Values].map(|stream| next.takes(stream));
            let end = [used[0] + takes[0], used[1] + takes[1]];
            let (Some(levels), Some(values)) =
                (self.streams[0].get(used[0]..end[0]), self.streams[1].get(used[1]..end[1]))
            else {
                break;
            };
            let dictionary = match next {
                Waiting::Dictionary(dictionary) => Some(*dictionary),
                Waiting::Page(Page { values: Values::Dictionary(dictionary), .. }) => {
                    Some(*dictionary)
                }
                Waiting::Page(_) => None,
            };
            let streams = [levels.to_vec(), values.to_vec()];
            let next = self.waiting.pop_front();
            if let Some(form) = dictionary {
                // One is held at a time, whatever waits for a thread.
                self.put_together()?;
                let values = &streams[Stream::Values as usize];
                self.dictionary = Dictionary::of(values, form.count as usize).map(Arc::new);
            }
            if let Some(Waiting::Page(page)) = next {
                let has_tags = matches!(page.values, Values::Tags(_));
                let dictionary = self.dictionary.clone().filter(|_| has_tags);
                self.ready.push(Ready { page, streams, dictionary });
                self.ready_bytes += takes[0] + takes[1];
            }
            used = end;
        }
        for (stream, used) in self.streams.iter_mut().zip(used) {
            if used != 0 {
                stream.drain(..used);
            }
        }
        let left = self.streams[stream as usize].len();
        // A page is said before what it takes.
        let most = if self.waiting.is_empty() { 0 } else { MAX_STREAM_BYTES };
        if most < left {
            return Err(Failed::Unfit);
        }
        if READY_BYTES <= self.ready_bytes { self.put_together() } else { Ok(()) }
    }

    /// Puts together the pages that are ready.
    fn put_together(&mut self) -> Result<(), Failed> {
        let ready = std::mem::take(&mut self.ready);
        self.ready_bytes = 0;
        if self.until <= Instant::now() {
            return Err(Failed::Late);
        }
        if ready.is_empty() {
            return Ok(());
        }
        let share = ready.len().div_ceil(self.packers.len());
        let bodies = std::thread::scope(|scope| {
            let put_together = |(ready, packer): (&[Ready], &mut Packer)| {
                let body = |Ready { page, streams: [levels, values], dictionary }: &Ready| {
                    put_together(page, levels, values, dictionary.as_deref(), packer)
                };
                ready.iter().map(body).collect::<Option<Vec<_>>>()
            };
            let mut shares = ready.chunks(share).zip(&mut self.packers);
            let own = shares.next();
            let others =
                shares.map(|share| Builder::new().spawn_scoped(scope, move || put_together(share)));
            let Ok(others) = others.collect::<io::Result<Vec<_>>>() else {
                return Err(Failed::NoThread);
            };
            let own = own.and_then(put_together);
            // A panic was reported.
            let others = others.into_iter().map(|other| other.join().ok().flatten());
            let bodies = std::iter::once(own).chain(others).collect::<Option<Vec<_>>>();
            bodies.ok_or(Failed::Unfit)
        })?;
        for (Ready { page, .. }, body) in ready.iter().zip(bodies.iter().flatten()) {
            self.made.add(&page.head);
            self.made.add(body);
        }
        Ok(())
    }
}

impl<D: FnMut(u64, ChunkRef, Option<&[u8]>)> Made<D> {
    /// Goes on with these bytes.
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(&(offset, chunk)) = self.wanted.front()
        {
            let needed = offset.saturating_add(self.begun.len() as u64);
            if needed < self.at {
                // It was skipped, or a part of it.
                self.end_first(offset, chunk, false);
                continue;
            }
            let before = usize::try_from(needed - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let left = chunk.length as usize - self.begun.len();
            let (part, rest) = bytes[before..].split_at(left.min(bytes.len() - before));
            self.begun.extend_from_slice(part);
            self.at = self.at.saturating_add((before + part.len()) as u64);
            bytes = rest;
            if self.begun.len() == chunk.length as usize {
                self.end_first(offset, chunk, chunk.is(&self.begun));
            }
        }
        self.at = self.at.saturating_add(bytes.len() as u64);
    }

    fn end_first(&mut self, offset: u64, chunk: ChunkRef, is_right: bool) {
        self.wanted.pop_front();
        if is_right {
            self.right += 1;
            (self.done)(offset, chunk, Some(&self.begun));
        } else {
            self.wrong += 1;
            (self.done)(offset, chunk, None);
        }
        self.begun.clear();
    }
}
