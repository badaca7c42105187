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
use crate::folder::{PlaceError, Target, WriteOut};

/// Chunks that may be looked for at a time.
pub(super) const MAX_LOOKED_FOR: usize = 64;
/// More threads than this only wait for the disk.
const MAX_THREADS: usize = 4;

/// A chunk that may be here, and where it is to be written.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) file: u64,
    pub(super) offset: u64,
    pub(super) chunk: ChunkRef,
    pub(super) into: Target,
    /// What had arrived of the whole content before: it is looked at first.
    pub(super) arrived: Option<Arc<File>>,
}

/// What became of it.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) file: u64,
    pub(super) offset: u64,
    pub(super) chunk: ChunkRef,
    /// It was in what had arrived of this content or of another one, and is recorded nowhere.
    pub(super) was_staged: bool,
    /// Whether it could be written. None: it is not here.
    pub(super) written: Result<Option<Result<(), PlaceError>>, StoreError>,
}

/// The threads. They end when this is dropped. That waits for those that copy, each for one chunk at the most, but not for
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

    /// Looks for a chunk. No more than [`MAX_LOOKED_FOR`] may be under way.
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
    let mut buffer = vec![0; MAX_CHUNK_BYTES];
    while let Ok(first) = queue.recv() {
        // Neighbours are often in the same file, which stays open as long as there is something to do.
        let mut reader = local.reader();
        for copy in std::iter::once(first).chain(queue.try_iter()) {
            let Copy { file, offset, chunk, into, arrived } = copy;
            let bytes = &mut buffer[..chunk.length as usize];
            let had_arrived = arrived
                .is_some_and(|file| file.read_exact_at(bytes, offset).is_ok() && chunk.is(bytes));
            let is_recorded = if had_arrived { Ok(false) } else { reader.read(&chunk, bytes) };
            let was_staged = had_arrived
                || (matches!(is_recorded, Ok(false)) && local.staged().read(&chunk, bytes));
            let found = is_recorded.map(|is_recorded| is_recorded || was_staged);
            let written = found.map(|is_here| is_here.then(|| into.write(bytes)));
            // Before it is told: with the last of these the file is complete.
            drop(into);
            if done.send(Copied { file, offset, chunk, was_staged, written }).is_err() {
                return;
            }
        }
    }
}
