//! Chunks in files that are staged and not recorded yet. From the arrival of a chunk to the record of its file the
//! store does not know where it is; whoever wants it in that time, another file or a peer, has it from here instead of
//! having it sent again. Known in memory only: what is left of a file when its process ends is looked through again
//! (`folder/place/partial.rs`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::{ChunkHash, ChunkRef};

use crate::folder::Peek;

/// Chunks that are known at a time: 16 GiB of them at their average length. Each takes up to 60 bytes. What comes
/// beyond may be fetched again.
const MAX_CHUNKS: usize = 256 * 1024;

/// The staged chunks of all linked directories.
#[derive(Debug, Default)]
pub struct StagedChunks(Mutex<HashMap<u64, Place>>);

/// Where a chunk is. What is read there is verified, so a hash that begins like another does no harm.
type Place = (Arc<Peek>, u64);

/// The chunks of one staged file. They are known until this is dropped, which is to be when the file is recorded, or
/// given up.
#[derive(Debug)]
pub struct StagedFile {
    all: Arc<StagedChunks>,
    file: Arc<Peek>,
    chunks: Vec<u64>,
}

impl StagedChunks {
    /// Begins with a file of which no chunk is known yet.
    pub fn begin(self: &Arc<Self>, file: Peek) -> StagedFile {
        StagedFile { all: Arc::clone(self), file: Arc::new(file), chunks: Vec::new() }
    }

    /// Reads a chunk into `to` and verifies it. If it is not here, the result is false, and `to` holds anything.
    ///
    /// # Panics
    /// If `to` does not have the chunk's length.
    pub fn read(&self, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        assert_eq!(to.len(), chunk.length as usize, "the buffer is not as long as the chunk");
        let place = self.lock().get(&short(chunk.hash)).cloned();
        place.is_some_and(|(file, offset)| file.read_at(to, offset).is_ok() && chunk.is(to))
    }

    /// Whether a chunk is known to be in one of the files.
    pub fn has(&self, chunk: &ChunkRef) -> bool {
        self.lock().contains_key(&short(chunk.hash))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Place>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StagedFile {
    /// A chunk stands at this offset now. Another file that has it already stays the one that is asked, and when it goes
    /// the chunk is not known any more, though it is here: at the worst it is fetched again.
    pub fn add(&mut self, hash: ChunkHash, offset: u64) {
        let mut known = self.all.lock();
        if known.len() < MAX_CHUNKS && !known.contains_key(&short(hash)) {
            known.insert(short(hash), (Arc::clone(&self.file), offset));
            self.chunks.push(short(hash));
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        let mut known = self.all.lock();
        for chunk in &self.chunks {
            known.remove(chunk);
        }
        // What one large transfer took is not kept for good.
        if known.is_empty() {
            known.shrink_to_fit();
        }
    }
}

/// The first bytes of a hash.
fn short(hash: ChunkHash) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = hash.0;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
