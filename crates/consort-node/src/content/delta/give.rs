//! Says how to make a content from pieces that a peer has: the side that has the content. Reads it once, from its beginning to
//! the end of what is wanted, and keeps nothing of it afterwards.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consort_core::content::delta::{Codec, Instruction, PIECE_HASH_BYTES, Request, Stream};
use consort_core::content::manifest::{Step, Walk};
use consort_core::limits::{MAX_PAGE_HEAD_BYTES, MAX_PLAIN_PAGE_BYTES, MAX_WAITING_PAGES};
use consort_core::{ChunkRef, Content};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::base::Opener;
use super::codec::Packer;
use super::page::{Apart, put_together};
use super::pieces::{Cutter, PieceHash, hash};
use super::{PageAt, Source, first_page, page_at};
use crate::content::compression::{Pace, Packed};
use crate::content::local::LocalContent;
use crate::net::network::{ContentReader, ContentWriter};

/// Instructions are sent when they have so many bytes, or so many bytes of the content were gone through: whoever waits for
/// them has something to do, and sees that there is somebody.
const MESSAGE_BYTES: usize = 256 << 10;
const MESSAGE_SPAN: u64 = 1 << 20;

/// Messages that wait to be written.
const WAITING_MESSAGES: usize = 4;

/// A peer that does not send or take anything for so long is given up.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Chunks of a content of which a delta is given: a place of 48 bytes for each.
const MAX_CHUNKS: usize = 256 * 1024;

/// Whether a codec gives the bytes of a page is tried until it did so many times, and then with one of a few pages: it takes
/// longer than all else, and what is wrong is found by whoever makes the page.
const TRIED_FIRST: u32 = 16;
const TRIED_LATER: u32 = 8;

/// Gives a delta on a connection that begins with `request`, and counts its bytes. If it cannot be given, the connection ends
/// sooner.
pub(in crate::content) async fn serve(
    local: &Arc<LocalContent>,
    request: Request,
    mut reader: ContentReader,
    mut writer: ContentWriter,
    permit: OwnedSemaphorePermit,
    delta_bytes: &AtomicU64,
) -> io::Result<()> {
    let (asked, here) = (request.clone(), Arc::clone(local));
    let has_all = move || {
        let content = Verified::of(&here, &asked.content)?;
        content.has(&asked.wanted).then_some(())
    };
    // Who asks goes on with others at once.
    if spawn_blocking(has_all).await?.is_none() {
        return Ok(());
    }
    let known = Known::receive(request.known, &mut reader).await?;
    let (to, mut messages) = mpsc::channel::<(Vec<u8>, Packed)>(WAITING_MESSAGES);
    let local = Arc::clone(local);
    let give = spawn_blocking(move || {
        // For as long as the work takes, whatever became of the connection.
        let _permit = permit;
        let Some(mut content) = Verified::of(&local, &request.content) else { return Ok(()) };
        let mut send = |instructions: Vec<u8>| {
            if to.is_closed() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            if instructions.is_empty() {
                return Ok(());
            }
            // It stands for what is compressed in the content, and is short as a rule.
            let packed = Packed::of(0, &instructions, Pace::SLOW);
            to.blocking_send((instructions, packed)).map_err(|_| io::ErrorKind::BrokenPipe.into())
        };
        Giver::new(&mut content, &request.wanted, &known, &mut send).give()
    });
    while let Some((instructions, packed)) = messages.recv().await {
        let parts = packed.parts(&instructions);
        let sent = async {
            writer.write_parts(&parts).await?;
            writer.flush().await
        };
        timeout(TIMEOUT, sent).await.map_err(|_| io::ErrorKind::TimedOut)??;
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        delta_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
    give.await??;
    writer.shutdown().await
}

/// The pieces that the peer has.
#[derive(Debug, Default)]
pub(super) struct Known {
    hashes: [Vec<PieceHash>; 2],
    numbers: [HashMap<PieceHash, u32>; 2],
}

impl Known {
    /// Takes in messages of hashes until there are so many of each stream.
    async fn receive(counts: [usize; 2], reader: &mut ContentReader) -> io::Result<Self> {
        let total: usize = counts.iter().sum();
        let mut all = Vec::new();
        while all.len() < total {
            let frame =
                timeout(TIMEOUT, reader.read()).await.map_err(|_| io::ErrorKind::TimedOut)?;
            let frame = frame.map_err(io::Error::other)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let (hashes, rest) = frame.as_chunks::<PIECE_HASH_BYTES>();
            if !rest.is_empty() || total < all.len() + hashes.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            all.extend(hashes.iter().copied().map(PieceHash::from_le_bytes));
        }
        let values = all.split_off(counts[Stream::Levels as usize]);
        Ok(Self::new([all, values]))
    }

    pub(super) fn new(hashes: [Vec<PieceHash>; 2]) -> Self {
        let numbers = [0, 1].map(|stream: usize| {
            let mut numbers = HashMap::with_capacity(hashes[stream].len());
            for (number, &hash) in (0..).zip(&hashes[stream]) {
                // Of those that are the same, the first.
                numbers.entry(hash).or_insert(number);
            }
            numbers
        });
        Self { hashes, numbers }
    }

    /// The number of a piece, the next after another one if that is it.
    fn find(&self, stream: usize, piece: PieceHash, after: u32) -> Option<u32> {
        match self.hashes[stream].get(after as usize) {
            Some(next) if *next == piece => Some(after),
            _ => self.numbers[stream].get(&piece).copied(),
        }
    }
}

/// A content as it is on this machine, each chunk verified.
struct Verified<'a> {
    local: &'a LocalContent,
    chunks: Vec<(u64, ChunkRef)>,
    size: u64,
    /// The chunks that were read last, the newest last: what is read next is in one of them, or behind.
    read: [Option<(u64, Vec<u8>)>; 2],
}

impl<'a> Verified<'a> {
    /// Nothing if it is not here, or too long.
    fn of(local: &'a LocalContent, content: &Content) -> Option<Self> {
        let mut chunks = Vec::new();
        let mut walk = Walk::new(content);
        loop {
            match walk.step() {
                Step::End => break,
                Step::Chunk(..) if chunks.len() == MAX_CHUNKS => return None,
                Step::Chunk(offset, chunk) => chunks.push((offset, chunk)),
                Step::Needs(node) => walk.enter(&local.read_early(&node).ok()??).ok()?,
            }
        }
        Some(Self { local, chunks, size: content.size(), read: [None, None] })
    }

    /// Whether all chunks in these stretches are here, as far as is known without reading them.
    fn has(&self, wanted: &[Range<u64>]) -> bool {
        let mut wanted = wanted.iter().peekable();
        self.chunks.iter().all(|(start, chunk)| {
            let end = start + u64::from(chunk.length);
            while wanted.next_if(|stretch| stretch.end <= *start).is_some() {}
            wanted.peek().is_none_or(|stretch| end <= stretch.start) || self.local.may_have(chunk)
        })
    }

    fn chunk(&mut self, at: u64) -> io::Result<&(u64, Vec<u8>)> {
        let holds = |read: &Option<(u64, Vec<u8>)>| {
            read.as_ref()
                .is_some_and(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&at))
        };
        if holds(&self.read[0]) {
            self.read.swap(0, 1);
        } else if !holds(&self.read[1]) {
            let number = self.chunks.partition_point(|(start, _)| *start <= at);
            let chunk = number.checked_sub(1).and_then(|number| self.chunks.get(number));
            let (start, chunk) = chunk.ok_or(io::ErrorKind::UnexpectedEof)?;
            let bytes = self.local.read_early(chunk).map_err(io::Error::other)?;
            self.read.swap(0, 1);
            self.read[1] = Some((*start, bytes.ok_or(io::ErrorKind::NotFound)?));
        }
        let read = self.read[1].as_ref().filter(|(start, bytes)| at < start + bytes.len() as u64);
        read.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Source for Verified<'_> {
    fn read_at(&mut self, mut offset: u64, mut to: &mut [u8]) -> io::Result<()> {
        while !to.is_empty() {
            let (start, bytes) = self.chunk(offset)?;
            let from = usize::try_from(offset - start).expect("within a chunk");
            let length = (bytes.len() - from).min(to.len());
            let (head, rest) = to.split_at_mut(length);
            head.copy_from_slice(&bytes[from..from + length]);
            (to, offset) = (rest, offset + length as u64);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }
}

/// Goes through a content and says how to make it.
pub(super) struct Giver<'a, S> {
    source: &'a mut S,
    /// In order.
    wanted: &'a [Range<u64>],
    known: &'a Known,
    /// Given nothing, it only says whether somebody still listens.
    send: &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    message: Vec<u8>,
    /// Where in the content the next message begins.
    message_start: u64,
    cutters: [Cutter; 2],
    /// Known pieces that follow each other and were not said yet: the first and how many.
    copies: [(u32, u32); 2],
    /// Bytes in them, and pages that were said since there was nothing left in the cutters.
    unsaid: usize,
    waiting: usize,
    skipped: u64,
    opener: Opener,
    /// The dictionary before, if it was not said.
    unsaid_dictionary: Option<PageAt>,
    packer: Packer,
    codec: Codec,
    /// How often in a row the codec gave the bytes of a page.
    right: u32,
}

impl<'a, S: Source> Giver<'a, S> {
    pub(super) fn new(
        source: &'a mut S,
        wanted: &'a [Range<u64>],
        known: &'a Known,
        send: &'a mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    ) -> Self {
        Self {
            source,
            wanted,
            known,
            send,
            message: Vec::new(),
            message_start: 0,
            cutters: [Cutter::new(), Cutter::new()],
            copies: [(0, 0); 2],
            unsaid: 0,
            waiting: 0,
            skipped: 0,
            opener: Opener::default(),
            unsaid_dictionary: None,
            packer: Packer::default(),
            codec: Codec::Stored,
            right: 0,
        }
    }

    pub(super) fn give(mut self) -> io::Result<()> {
        // What is no such file is not worth it.
        let Some(mut at) = first_page(self.source)? else { return Ok(()) };
        let end = self.wanted.last().map_or(0, |last| last.end).min(self.source.size());
        let mut bytes = Vec::new();
        self.raw(0..at, &mut bytes)?;
        while at < end
            && let Some(page) = page_at(self.source, at)?
        {
            if self.wants(at, page.end()) {
                self.page(&page, &mut bytes)?;
            } else {
                if page.is_dictionary() {
                    self.unsaid_dictionary = Some(page);
                }
                self.skip(page.end() - at)?;
            }
            at = page.end();
            self.send_if_enough(at)?;
        }
        while at < end {
            let next = end.min(at + MAX_PAGE_HEAD_BYTES as u64);
            self.raw(at..next, &mut bytes)?;
            at = next;
            self.send_if_enough(at)?;
        }
        self.flush()?;
        self.say(&Instruction::End);
        (self.send)(self.message)
    }

    fn wants(&self, start: u64, end: u64) -> bool {
        let next = self.wanted.partition_point(|stretch| stretch.end <= start);
        self.wanted.get(next).is_some_and(|stretch| stretch.start < end)
    }

    /// Says how to make a page; if nothing else helps, what is in it.
    fn page(&mut self, page: &PageAt, bytes: &mut Vec<u8>) -> io::Result<()> {
        if page.is_dictionary() {
            self.unsaid_dictionary = Some(*page);
        } else {
            self.dictionary()?;
        }
        let apart = self.opener.take_apart(self.source, page, bytes)?;
        let codec = apart.as_ref().and_then(|apart| self.find_codec(apart, bytes));
        let (Some(apart), Some(codec)) = (apart, codec) else {
            let mut at = page.offset;
            while at < page.end() {
                let next = page.end().min(at + MAX_PAGE_HEAD_BYTES as u64);
                self.raw(at..next, bytes)?;
                at = next;
            }
            return Ok(());
        };
        self.say_skipped();
        self.say(&Instruction::Page(apart.form(bytes, codec)));
        if page.is_dictionary() {
            self.unsaid_dictionary = None;
        }
        self.push(&apart)
    }

    /// Says the dictionary before the page that is next, if it was not said.
    fn dictionary(&mut self) -> io::Result<()> {
        let Some(page) = self.unsaid_dictionary.take() else { return Ok(()) };
        let apart = self.opener.take_apart(self.source, &page, &mut Vec::new())?;
        if let Some(apart) = apart
            && let Some((form, _)) = apart.dictionary()
        {
            self.say_skipped();
            self.say(&Instruction::Dictionary(form));
            self.push(&apart)?;
        }
        Ok(())
    }

    /// What a page adds to the streams.
    fn push(&mut self, apart: &Apart) -> io::Result<()> {
        for (stream, bytes) in apart.streams.iter().enumerate() {
            self.cutters[stream].push(bytes);
            self.unsaid += bytes.len();
        }
        self.cut(false)?;
        self.waiting += 1;
        if self.waiting == MAX_WAITING_PAGES {
            self.flush()?;
        }
        if MAX_PLAIN_PAGE_BYTES <= self.unsaid {
            self.say_copies();
        }
        Ok(())
    }

    /// The codec that gives a page again.
    fn find_codec(&mut self, apart: &Apart, page: &[u8]) -> Option<Codec> {
        let is_likely = apart.codecs().contains(&self.codec);
        if is_likely && TRIED_FIRST <= self.right && !self.right.is_multiple_of(TRIED_LATER) {
            self.right += 1;
            return Some(self.codec);
        }
        let [levels, values] = &apart.streams;
        let mut gives = |codec: &Codec| {
            let form = apart.form(page, *codec);
            let known = self.opener.dictionary();
            let body = put_together(&form, levels, values, known, &mut self.packer);
            body.is_some_and(|body| body == page[form.head.len()..])
        };
        let found: Vec<Codec> =
            apart.codecs().iter().copied().filter(|codec| gives(codec)).collect();
        match found[..] {
            [] => self.right = 0,
            [codec] if codec == self.codec => self.right += 1,
            [codec] => (self.codec, self.right) = (codec, 0),
            // A page that several give says nothing of the next one.
            _ => {}
        }
        found.first().copied()
    }

    /// Says pieces as they are found.
    fn cut(&mut self, at_end: bool) -> io::Result<()> {
        for stream in [Stream::Levels, Stream::Values] {
            let number = stream as usize;
            while let Some(piece) = self.cutters[number].next(at_end) {
                let (first, count) = self.copies[number];
                let found = self.known.find(number, hash(piece), first + count);
                match found {
                    Some(found) if count != 0 && found == first + count => {
                        self.copies[number].1 += 1;
                    }
                    Some(found) => {
                        say_copies(&mut self.message, stream, &mut self.copies[number]);
                        self.copies[number] = (found, 1);
                    }
                    None => {
                        say_copies(&mut self.message, stream, &mut self.copies[number]);
                        Instruction::Add(stream, piece).encode(&mut self.message);
                        if MESSAGE_BYTES <= self.message.len() {
                            (self.send)(std::mem::take(&mut self.message))?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves nothing in the streams.
    fn flush(&mut self) -> io::Result<()> {
        self.cut(true)?;
        self.say_copies();
        self.waiting = 0;
        self.say_skipped();
        Ok(())
    }

    /// Says bytes as they are, if they are wanted.
    fn raw(&mut self, range: Range<u64>, bytes: &mut Vec<u8>) -> io::Result<()> {
        let length =
            usize::try_from(range.end - range.start).expect("as many as may be said at once");
        if !self.wants(range.start, range.end) {
            return self.skip(length as u64);
        }
        bytes.resize(length, 0);
        self.source.read_at(range.start, bytes)?;
        self.flush()?;
        self.say(&Instruction::Raw(bytes));
        self.send_if_enough(range.end)
    }

    fn skip(&mut self, length: u64) -> io::Result<()> {
        if self.skipped == 0 {
            self.flush()?;
        }
        self.skipped += length;
        Ok(())
    }

    fn say_skipped(&mut self) {
        if self.skipped != 0 {
            let skipped = std::mem::take(&mut self.skipped);
            self.say(&Instruction::Skip(skipped));
        }
    }

    fn say_copies(&mut self) {
        for stream in [Stream::Levels, Stream::Values] {
            say_copies(&mut self.message, stream, &mut self.copies[stream as usize]);
        }
        self.unsaid = 0;
    }

    fn say(&mut self, instruction: &Instruction<'_>) {
        instruction.encode(&mut self.message);
    }

    fn send_if_enough(&mut self, at: u64) -> io::Result<()> {
        if self.message.len() < MESSAGE_BYTES && at < self.message_start + MESSAGE_SPAN {
            return Ok(());
        }
        self.say_copies();
        self.message_start = at;
        (self.send)(std::mem::take(&mut self.message))
    }
}

/// Says what is known and follows each other. The place in it is kept: the next piece may be the next of them.
fn say_copies(message: &mut Vec<u8>, stream: Stream, copies: &mut (u32, u32)) {
    let (first, count) = *copies;
    if count != 0 {
        Instruction::Copy(stream, first, count).encode(message);
    }
    *copies = (first + count, 0);
}
