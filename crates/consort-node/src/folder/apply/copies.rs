//! Work on large files that are being staged, by threads of their own: chunks that are on this machine already are found,
//! verified and copied, several at a time; and what was written of a file is written out before it is complete, so that
//! little is left when it is synced.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread::{JoinHandle, available_parallelism};

use consort_core::ChunkRef;
use consort_core::limits::MAX_CHUNK_BYTES;
use consort_core::store::StoreError;
use crossbeam_channel::{Receiver, Sender, bounded};

use crate::content::LocalContent;
use crate::content::local::Reader;
use crate::folder::{PlaceError, Target, WriteOut};

/// Chunks that may be looked for at a time. Those that are not here are wanted then, beyond what was wanted before.
pub(super) const MAX_LOOKED_FOR: usize = 64;
/// Chunks that follow each other are looked for together, up to so many bytes: to write them at once costs the kernel a third
/// less.
const TOGETHER_BYTES: usize = 1 << 20;
/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 4;

/// Chunks of a file that follow each other and may be here, and where they are to be written.
#[derive(Debug)]
pub(super) struct Copy {
    file: u64,
    /// Where the first of them begins.
    offset: u64,
    into: Target,
    chunks: Vec<ChunkRef>,
    bytes: usize,
    sources: Sources,
}

/// Where the chunks of a file are looked for before all that this machine has.
#[derive(Clone, Debug, Default)]
pub(super) struct Sources {
    /// What had arrived of the whole content before.
    pub(super) arrived: Option<Arc<File>>,
    /// What is to grow into the file, and its length: up to there, its chunks have to stand there already.
    pub(super) growing: Option<(Arc<File>, u64)>,
}

/// What became of each of them.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) file: u64,
    pub(super) chunks: Vec<(u64, ChunkRef, Found)>,
}

/// What became of a chunk that was looked for.
#[derive(Debug)]
pub(super) enum Found {
    /// It is written.
    Written {
        /// It was in what had arrived of this content or of another one, and is recorded nowhere.
        was_staged: bool,
    },
    /// It stands where it belongs, in the file that grows.
    Standing,
    /// That file holds something else there.
    Different,
    /// It is not here.
    Absent,
    /// It is here, and could not be written.
    Unwritten(PlaceError),
    /// The store could not be read.
    Unknown(StoreError),
}

impl Copy {
    /// None yet, of a file, from `offset` on. `into` is the place there.
    pub(super) fn new(file: u64, offset: u64, into: Target, sources: Sources) -> Self {
        Self { file, offset, into, chunks: Vec::new(), bytes: 0, sources }
    }

    /// Whether a chunk of a file that begins at `offset` can be added, if it is not [full](Self::is_full).
    pub(super) fn is_before(&self, file: u64, offset: u64) -> bool {
        self.file == file && self.offset + self.bytes as u64 == offset
    }

    pub(super) fn add(&mut self, chunk: ChunkRef) {
        self.chunks.push(chunk);
        self.bytes += chunk.length as usize;
    }

    /// Whether it is enough.
    pub(super) fn is_full(&self) -> bool {
        TOGETHER_BYTES <= self.bytes
    }
}

/// The threads. They end when this is dropped. That waits for those that copy, each for a megabyte at the most, but not for
/// the one that writes out: a slow disk takes long for that, and nothing depends on it.
#[derive(Debug)]
pub(super) struct Copier {
    copies: Option<Sender<Copy>>,
    written: Option<Sender<WriteOut>>,
    copying: Vec<JoinHandle<()>>,
}

impl Copier {
    /// Starts them. What becomes of each copy arrives at the receiver.
    pub(super) fn start(local: &Arc<LocalContent>) -> io::Result<(Self, Receiver<Copied>)> {
        let (copies, queue) = bounded::<Copy>(MAX_LOOKED_FOR);
        let (done, copied) = bounded(MAX_LOOKED_FOR);
        let (written, write_outs) = bounded::<WriteOut>(1);
        let (copies, written) = (Some(copies), Some(written));
        let mut copier = Self { copies, written, copying: Vec::new() };
        let threads = available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        for number in 0..threads {
            let (local, queue, done) = (Arc::clone(local), queue.clone(), done.clone());
            let name = format!("copy-{number}");
            let thread = std::thread::Builder::new().name(name);
            copier.copying.push(thread.spawn(move || copy_all(&local, &queue, &done))?);
        }
        let write_out = move || write_outs.into_iter().for_each(|file| file.run());
        let thread = std::thread::Builder::new().name("write-out".into());
        thread.spawn(write_out)?;
        Ok((copier, copied))
    }

    /// Looks for chunks. No more than [`MAX_LOOKED_FOR`] may be under way.
    pub(super) fn copy(&self, copy: Copy) {
        // The threads live as long as this does.
        let _ = self.copies.as_ref().map(|copies| copies.send(copy));
    }

    /// Has what was written of a file written out, unless that is being done for another one. Whether it is.
    pub(super) fn write_out(&self, file: WriteOut) -> bool {
        self.written.as_ref().is_some_and(|written| written.try_send(file).is_ok())
    }
}

impl Drop for Copier {
    fn drop(&mut self) {
        (self.copies, self.written) = (None, None);
        for thread in self.copying.drain(..) {
            // If it has ended, it was because of a panic, which was reported.
            let _ = thread.join();
        }
    }
}

fn copy_all(local: &LocalContent, queue: &Receiver<Copy>, done: &Sender<Copied>) {
    let mut buffer = vec![0; TOGETHER_BYTES + MAX_CHUNK_BYTES];
    while let Ok(first) = queue.recv() {
        // Neighbours are often in the same file, which stays open as long as there is something to do.
        let mut reader = local.reader();
        for copy in std::iter::once(first).chain(queue.try_iter()) {
            if done.send(copy.run(local, &mut reader, &mut buffer)).is_err() {
                return;
            }
        }
    }
}

impl Copy {
    /// The place is given back before it is told what became of it: with the last of these the file is complete.
    fn run(self, local: &LocalContent, reader: &mut Reader<'_>, buffer: &mut [u8]) -> Copied {
        let Self { file, offset, into, chunks, sources, .. } = self;
        let Sources { arrived, growing } = sources;
        let mut looked_for = Vec::with_capacity(chunks.len());
        let mut end = 0;
        for chunk in chunks {
            let start = end;
            end += chunk.length as usize;
            let (at, bytes) = (offset + start as u64, &mut buffer[start..end]);
            let mut has = |file: &File| file.read_exact_at(bytes, at).is_ok() && chunk.is(bytes);
            let is_within = |(_, size): &&(_, u64)| at + u64::from(chunk.length) <= *size;
            let found = if let Some((growing, _)) = growing.as_ref().filter(is_within) {
                if has(growing) { Found::Standing } else { Found::Different }
            } else if arrived.as_deref().is_some_and(has) {
                Found::Written { was_staged: true }
            } else {
                match reader.read(&chunk, bytes) {
                    Ok(true) => Found::Written { was_staged: false },
                    Ok(false) if local.staged().read(&chunk, bytes) => {
                        Found::Written { was_staged: true }
                    }
                    Ok(false) => Found::Absent,
                    Err(error) => Found::Unknown(error),
                }
            };
            looked_for.push((at, chunk, found));
        }
        let is_here = |found: &Found| matches!(found, Found::Written { .. });
        let mut start = 0;
        for run in looked_for.chunk_by_mut(|(.., a), (.., b)| is_here(a) == is_here(b)) {
            let bytes = run.iter().map(|(_, chunk, _)| chunk.length as usize).sum::<usize>();
            if is_here(&run[0].2) {
                write(&into.after(start), &buffer[start..start + bytes], run);
            }
            start += bytes;
        }
        Copied { file, chunks: looked_for }
    }
}

/// Writes chunks that follow each other. Should that fail, it says of which.
fn write(into: &Target, bytes: &[u8], chunks: &mut [(u64, ChunkRef, Found)]) {
    if into.write(bytes).is_ok() {
        return;
    }
    let mut start = 0;
    for (_, chunk, found) in chunks {
        let end = start + chunk.length as usize;
        if let Err(error) = into.after(start).write(&bytes[start..end]) {
            *found = Found::Unwritten(error);
        }
        start = end;
    }
}
