//! Chunks in files that are staged and not recorded yet, and in what is left of those that were given up. From the arrival
//! of a chunk to the record of its file the store does not know where it is; whoever wants it in that time, another file or
//! a peer, has it from here instead of having it sent again. Known in memory only: what is left of a file when its process
//! ends is looked through again (`folder/place/partial.rs`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::{ChunkHash, ChunkRef};

use crate::folder::Peek;

/// Chunks that are known at a time, in all files together: 16 GiB of them at their average length. Each takes up to 70
/// bytes. What comes beyond may be fetched again.
const MAX_CHUNKS: usize = 256 * 1024;

/// The staged chunks of all linked directories.
#[derive(Debug, Default)]
pub struct StagedChunks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Where each of them is. What is read there is verified, so a hash that begins like another does no harm.
    known: HashMap<u64, (Arc<Place>, u64)>,
    /// How many the files hold, each counted in each.
    held: usize,
}

/// A file with chunks.
#[derive(Debug)]
struct Place {
    peek: Peek,
    /// Something was found there.
    was_read: AtomicBool,
}

/// The chunks of one staged file. They are known until this is dropped, which is to be when the file is recorded, or
/// nothing is left of it.
#[derive(Debug)]
pub struct StagedFile {
    all: Arc<StagedChunks>,
    place: Arc<Place>,
    /// With where they stand: also those that are known to be in another file as long as that is there.
    chunks: Vec<(u64, u64)>,
}

impl StagedChunks {
    /// Begins with a file of which no chunk is known yet.
    pub fn begin(self: &Arc<Self>, file: Peek) -> StagedFile {
        StagedFile { all: Arc::clone(self), place: Place::new(file), chunks: Vec::new() }
    }

    /// Reads a chunk into `to` and verifies it. If it is not here, the result is false, and `to` holds anything.
    ///
    /// # Panics
    /// If `to` does not have the chunk's length.
    pub fn read(&self, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        assert_eq!(to.len(), chunk.length as usize, "the buffer is not as long as the chunk");
        let Some((place, offset)) = self.lock().known.get(&short(chunk.hash)).cloned() else {
            return false;
        };
        let is_here = place.peek.read_at(to, offset).is_ok() && chunk.is(to);
        if is_here {
            place.was_read.store(true, Ordering::Relaxed);
        }
        is_here
    }

    /// Whether a chunk is known to be in one of the files.
    pub fn has(&self, chunk: &ChunkRef) -> bool {
        self.lock().known.contains_key(&short(chunk.hash))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new(peek: Peek) -> Arc<Self> {
        Arc::new(Self { peek, was_read: AtomicBool::new(false) })
    }
}

impl StagedFile {
    /// A chunk stands at this offset now. Another file that has it already stays the one that is asked; when that goes, the
    /// chunk is not known before this is [told again](Self::tell_again), though it is here: at the worst it is fetched again.
    pub fn add(&mut self, hash: ChunkHash, offset: u64) {
        let mut all = self.all.lock();
        if MAX_CHUNKS <= all.held {
            return;
        }
        match all.known.entry(short(hash)) {
            // It repeats.
            Entry::Occupied(known) if Arc::ptr_eq(&known.get().0, &self.place) => return,
            // It repeats there, too.
            Entry::Occupied(_)
                if self.chunks.last().is_some_and(|(last, _)| *last == short(hash)) =>
            {
                return;
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(entry) => {
                entry.insert((Arc::clone(&self.place), offset));
            }
        }
        all.held += 1;
        self.chunks.push((short(hash), offset));
    }

    /// How many chunks it has.
    pub fn count(&self) -> usize {
        self.chunks.len()
    }

    /// Its chunks are known again, where that is because of no other file.
    pub fn tell_again(&self) {
        let mut all = self.all.lock();
        for &(chunk, offset) in &self.chunks {
            all.known.entry(chunk).or_insert_with(|| (Arc::clone(&self.place), offset));
        }
    }

    /// The file is to be found there from now on.
    pub fn move_to(&mut self, file: Peek) {
        let place = Place::new(file);
        let mut all = self.all.lock();
        for &(chunk, offset) in &self.chunks {
            let known = all.known.entry(chunk).or_insert_with(|| (Arc::clone(&place), offset));
            if Arc::ptr_eq(&known.0, &self.place) {
                known.0 = Arc::clone(&place);
            }
        }
        drop(all);
        self.place = place;
    }

    /// Whether something was found in it since this was asked last, or it moved.
    pub fn was_read(&self) -> bool {
        self.place.was_read.swap(false, Ordering::Relaxed)
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let mut all = self.all.lock();
        all.held -= self.chunks.len();
        for (chunk, _) in &self.chunks {
            if let Entry::Occupied(known) = all.known.entry(*chunk)
                && Arc::ptr_eq(&known.get().0, &self.place)
            {
                known.remove();
            }
        }
        // What one large transfer took is not kept for good.
        if all.known.is_empty() {
            all.known.shrink_to_fit();
        }
    }
}

/// The first bytes of a hash.
fn short(hash: ChunkHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
