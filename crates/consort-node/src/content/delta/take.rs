//! Makes chunks by instructions, from pieces of the file that is here: the side that lacks them. What is made is a chunk if it
//! has its hash.

use std::collections::VecDeque;

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

/// Why a delta is given up. What was made until then is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failed {
    #[error(transparent)]
    Bad(#[from] DecodeError),
    #[error("an instruction does not fit what was said before")]
    Unfit,
    #[error("what is made by it is not what is wanted")]
    Wrong,
}

/// Follows instructions.
pub(super) struct Taker<'a, D> {
    base: Base<'a>,
    waiting: VecDeque<Waiting>,
    dictionary: Option<Dictionary>,
    streams: [Vec<u8>; 2],
    packer: Packer,
    made: Made<D>,
    ended: bool,
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
    /// Tells `done` of each wanted chunk, with its verified bytes or without any. The chunks come with their places and in order.
    pub(super) fn new(base: Base<'a>, wanted: Vec<(u64, ChunkRef)>, done: D) -> Self {
        let made = Made {
            at: 0,
            wanted: wanted.into(),
            begun: Vec::with_capacity(MAX_CHUNK_BYTES),
            right: 0,
            wrong: 0,
            done,
        };
        let (waiting, streams) = (VecDeque::new(), Default::default());
        Self { base, waiting, dictionary: None, streams, packer: Packer::default(), made, ended: false }
    }

    /// Follows the instructions of a message.
    pub(super) fn follow(&mut self, message: &[u8]) -> Result<(), Failed> {
        let mut from = Reader::new(message);
        while !from.is_empty() {
            if self.ended {
                return Err(Failed::Unfit);
            }
            self.step(Instruction::decode(&mut from)?)?;
            if MAX_WRONG < self.made.wrong.saturating_sub(self.made.right) {
                return Err(Failed::Wrong);
            }
        }
        Ok(())
    }

    /// Whether all was said.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Tells of what was not made.
    pub(super) fn finish(mut self) {
        while let Some((offset, chunk)) = self.made.wanted.pop_front() {
            (self.made.done)(offset, chunk, None);
        }
    }

    fn step(&mut self, instruction: Instruction<'_>) -> Result<(), Failed> {
        match instruction {
            Instruction::Copy(stream, first, count) => {
                for number in (first as usize..).take(count as usize) {
                    let to = &mut self.streams[stream as usize];
                    if !self.base.read(stream, number, 1, to) {
                        return Err(Failed::Unfit);
                    }
                    self.put_together(stream)?;
                }
            }
            Instruction::Add(stream, bytes) => {
                self.streams[stream as usize].extend_from_slice(bytes);
                self.put_together(stream)?;
            }
            Instruction::Page(page) => self.wait(Waiting::Page(page.into_owned()))?,
            Instruction::Dictionary(dictionary) => self.wait(Waiting::Dictionary(dictionary))?,
            Instruction::Skip(length) => {
                self.expect_nothing_left()?;
                self.made.at = self.made.at.checked_add(length).ok_or(Failed::Unfit)?;
            }
            Instruction::Raw(bytes) => {
                self.expect_nothing_left()?;
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
        self.put_together(Stream::Values)
    }

    fn expect_nothing_left(&self) -> Result<(), Failed> {
        let is_empty = self.waiting.is_empty() && self.streams.iter().all(Vec::is_empty);
        if is_empty { Ok(()) } else { Err(Failed::Unfit) }
    }

    /// Puts together the pages for which there is enough, after something came for a stream.
    fn put_together(&mut self, stream: Stream) -> Result<(), Failed> {
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
                Waiting::Page(page) => {
                    let known = self.dictionary.as_ref();
                    let body = put_together(page, levels, values, known, &mut self.packer);
                    self.made.add(&page.head);
                    self.made.add(&body.ok_or(Failed::Unfit)?);
                    match page.values {
                        Values::Dictionary(dictionary) => Some(dictionary),
                        _ => None,
                    }
                }
                Waiting::Dictionary(dictionary) => Some(*dictionary),
            };
            if let Some(form) = dictionary {
                self.dictionary = Dictionary::of(values, form.count as usize);
            }
            self.waiting.pop_front();
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
        if most < left { Err(Failed::Unfit) } else { Ok(()) }
    }
}

impl<D: FnMut(u64, ChunkRef, Option<&[u8]>)> Made<D> {
    /// Goes on with these bytes.
    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty()
            && let Some(&(offset, chunk)) = self.wanted.front()
        {
            let needed = offset + self.begun.len() as u64;
            if needed < self.at {
                // It was skipped, or a part of it.
                self.end_first(offset, chunk, false);
                continue;
            }
            let before = usize::try_from(needed - self.at).unwrap_or(usize::MAX).min(bytes.len());
            let left = chunk.length as usize - self.begun.len();
            let (part, rest) = bytes[before..].split_at(left.min(bytes.len() - before));
            self.begun.extend_from_slice(part);
            self.at += (before + part.len()) as u64;
            bytes = rest;
            if self.begun.len() == chunk.length as usize {
                self.end_first(offset, chunk, chunk.is(&self.begun));
            }
        }
        self.at += bytes.len() as u64;
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
