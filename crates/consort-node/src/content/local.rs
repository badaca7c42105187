//! Chunks that this machine has: in files of linked directories and in the packs of the store. The
//! store's places are hints; what is read has the hash that was asked for, or is not here.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError, RwLock};

use consort_core::store::StoreError;
use consort_core::{ChunkHash, ChunkRef, DatasetId, Key};
use consort_store::{Body, DiskStore, Place, ReadError, Transaction};

use crate::content::parked::Parked;
use crate::content::staged::StagedChunks;
use crate::folder::{EntryKind, Root, recorded_meta};

/// Places that turned out wrong and are forgotten in one transaction: a changed file loses all its
/// chunks at once.
const FORGET_TOGETHER: usize = 256;

/// The linked directories. The engine of each enters it here while it runs.
#[derive(Debug, Default)]
pub struct Roots(RwLock<BTreeMap<DatasetId, Arc<Root>>>);

impl Roots {
    /// The dataset is linked to this directory from now on.
    pub fn insert(&self, dataset: DatasetId, root: Arc<Root>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(dataset, root);
    }

    /// The dataset is linked no more. Files that are open for reading are closed soon after.
    pub fn remove(&self, dataset: DatasetId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&dataset);
    }

    /// The directory of a dataset, if it has one.
    pub fn get(&self, dataset: DatasetId) -> Option<Arc<Root>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&dataset).map(Arc::clone)
    }
}

/// What this machine has. Its methods read files, so they block.
pub struct LocalContent {
    store: DiskStore,
    roots: Arc<Roots>,
    staged: Arc<StagedChunks>,
    parked: Arc<Parked>,
}

impl fmt::Debug for LocalContent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalContent").field("roots", &self.roots).finish_non_exhaustive()
    }
}

impl LocalContent {
    /// Reads where `store` says, in the directories of `roots`.
    pub fn new(store: DiskStore, roots: Arc<Roots>) -> Self {
        Self { store, roots, staged: Arc::default(), parked: Arc::default() }
    }

    /// The linked directories in which chunks are looked for.
    pub fn roots(&self) -> &Roots {
        &self.roots
    }

    /// The chunks of files that are staged and not recorded yet.
    pub fn staged(&self) -> &Arc<StagedChunks> {
        &self.staged
    }

    /// Who waits for chunks that are still to arrive.
    pub fn parked(&self) -> &Arc<Parked> {
        &self.parked
    }

    /// The store that knows the places.
    pub fn store(&self) -> &DiskStore {
        &self.store
    }

    /// The verified bytes of a chunk; `None` if they are not here (any more).
    pub fn read(&self, chunk: &ChunkRef) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = vec![0; chunk.length as usize];
        Ok(self.reader().read(chunk, &mut bytes)?.then_some(bytes))
    }

    /// Like [`read`](Self::read), but also from files that are staged. Those may be given up at any time: the bytes are
    /// good to be copied or sent, but that they were here does not say that they stay.
    pub fn read_early(&self, chunk: &ChunkRef) -> Result<Option<Vec<u8>>, StoreError> {
        let mut bytes = vec![0; chunk.length as usize];
        let is_here = self.reader().read(chunk, &mut bytes)? || self.staged.read(chunk, &mut bytes);
        Ok(is_here.then_some(bytes))
    }

    /// Whether a chunk is here, as far as the places say.
    pub fn may_have(&self, chunk: &ChunkRef) -> bool {
        self.staged.has(chunk)
            || self.store.locate(chunk.hash).is_ok_and(|places| !places.is_empty())
    }

    /// A reader for many chunks. Keep it for one batch and no longer: it holds a file open, and
    /// forgets wrong places when it is dropped.
    pub fn reader(&self) -> Reader<'_> {
        Reader { local: self, open: None, gone: Vec::new() }
    }

    /// Tells the store where chunks are no longer, without waiting for it.
    fn forget(&self, mut gone: Vec<(DatasetId, ChunkHash, Place)>) {
        gone.retain(|(dataset, hash, place)| self.is_stale(*dataset, *hash, place));
        let mut transactions = BTreeMap::<DatasetId, Transaction>::new();
        for (dataset, hash, place) in gone {
            let new = || Transaction::new(dataset, Body::Nothing);
            transactions.entry(dataset).or_insert_with(new).gone.push((hash, place));
        }
        for (dataset, transaction) in transactions {
            // A disk that is not mounted comes back with all its files.
            if self.roots.get(dataset).is_some_and(|root| root.is_present()) {
                self.store.submit(transaction, |result| {
                    if let Err(error) = result {
                        tracing::debug!(%error, "wrong places of chunks were not forgotten");
                    }
                });
            }
        }
    }
}

impl LocalContent {
    /// Whether a place that was found wrong is wrong for good: nothing is recorded or to be found at its path, or the
    /// very file that is recorded there, or one of which nothing is recorded, has other bytes. A path that does not hold what is recorded of it may hold it
    /// again the next moment (its directory may have been moved away and back), and nobody would enter its chunks
    /// anew then. So it is looked at once more, and not believed that what failed before would fail again.
    fn is_stale(&self, dataset: DatasetId, hash: ChunkHash, place: &Place) -> bool {
        let Place::InFile { path, offset, length, .. } = place else { return false };
        let Some(root) = self.roots.get(dataset) else { return false };
        let record = self.store.view(dataset).and_then(|view| view.record(path));
        let Ok(record) = record else { return false };
        let Ok((file, found)) = root.open_file(path) else {
            return match (root.stat(path), record) {
                (Ok(found), None) => found.is_none(),
                // A directory or a symlink, as it is recorded.
                (Ok(Some(found)), Some(record)) => {
                    let recorded = recorded_meta(&record);
                    found.kind == recorded.kind && found.kind != EntryKind::File
                }
                _ => false,
            };
        };
        let mut bytes = vec![0; *length as usize];
        let holds = match file.read_exact_at(&mut bytes, *offset) {
            Ok(()) => ChunkHash::of(&bytes) == hash,
            Err(error) if is_elsewhere(&error) => false,
            Err(_) => return false,
        };
        !holds && record.is_none_or(|record| found.same_file_state(&recorded_meta(&record)))
    }
}

/// The file that was read from last.
#[derive(Debug)]
struct Open {
    dataset: DatasetId,
    path: Key,
    file: File,
    /// Where the last chunk in it ended.
    end: u64,
    /// The next one is expected there. As long as that is right, its place need not be looked up.
    in_order: bool,
}

/// Reads chunks, those of one file with one opening of it.
#[derive(Debug)]
pub struct Reader<'a> {
    local: &'a LocalContent,
    open: Option<Open>,
    gone: Vec<(DatasetId, ChunkHash, Place)>,
}

impl Reader<'_> {
    /// Reads a chunk into `to` and verifies it. If it is not here, the result is false, and `to`
    /// holds anything.
    ///
    /// # Panics
    /// If `to` does not have the chunk's length.
    pub fn read(&mut self, chunk: &ChunkRef, to: &mut [u8]) -> Result<bool, StoreError> {
        assert_eq!(to.len(), chunk.length as usize, "the buffer is not as long as the chunk");
        if self.read_next(chunk, to) {
            return Ok(true);
        }
        let places = self.local.store.locate(chunk.hash)?;
        let there_may_be_more = !places.is_empty();
        if self.read_from(places, chunk, to) {
            return Ok(true);
        }
        Ok(there_may_be_more
            && self.read_from(self.local.store.locate_further(chunk.hash)?, chunk, to))
    }

    /// Reads a chunk if it is the one that is expected.
    fn read_next(&mut self, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        let Some(open) = self.open.as_mut().filter(|open| open.in_order) else { return false };
        open.in_order = open.file.read_exact_at(to, open.end).is_ok() && chunk.is(to);
        if open.in_order {
            open.end += u64::from(chunk.length);
        }
        open.in_order
    }

    fn read_from(&mut self, places: Vec<Place>, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        places.into_iter().any(|place| match &place {
            Place::Packed { .. } => self.read_packed(&place, chunk, to),
            Place::InFile { .. } => self.read_in_file(place, chunk, to),
        })
    }

    fn read_packed(&self, place: &Place, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        match self.local.store.read_packed(place, chunk.hash) {
            Ok(bytes) if bytes.len() == to.len() => {
                to.copy_from_slice(&bytes);
                true
            }
            // The hash is right and the length is not: whoever asks has a wrong reference.
            Ok(_) => false,
            Err(error @ ReadError::NotPacked) => unreachable!("the place is in a pack: {error}"),
            Err(error) => {
                tracing::warn!(%error, "a chunk could not be read");
                false
            }
        }
    }

    fn read_in_file(&mut self, place: Place, chunk: &ChunkRef, to: &mut [u8]) -> bool {
        let Place::InFile { dataset, path, offset, length } = &place else { return false };
        if *length != chunk.length {
            return false;
        }
        let Some(root) = self.local.roots.get(*dataset) else { return false };
        let is_open =
            self.open.as_ref().is_some_and(|open| (&open.dataset, &open.path) == (dataset, path));
        let opened = match is_open {
            true => Ok(()),
            false => root.open_file(path).map(|(file, _)| {
                let (dataset, path) = (*dataset, path.clone());
                self.open = Some(Open { dataset, path, file, end: *offset, in_order: true });
            }),
        };
        let read = opened.and_then(|()| {
            let open = self.open.as_mut().expect("it was opened above");
            open.in_order = open.end == *offset;
            open.file.read_exact_at(to, *offset)?;
            open.end = offset + u64::from(*length);
            Ok(())
        });
        match read {
            Ok(()) if chunk.is(to) => return true,
            Ok(()) => self.on_wrong(*dataset, chunk.hash, place),
            Err(error) if is_elsewhere(&error) => self.on_wrong(*dataset, chunk.hash, place),
            Err(error) => {
                tracing::warn!(directory = %root.path().display(), %path, %error, "a file could not be read");
            }
        }
        false
    }

    fn on_wrong(&mut self, dataset: DatasetId, hash: ChunkHash, place: Place) {
        self.gone.push((dataset, hash, place));
        if FORGET_TOGETHER <= self.gone.len() {
            self.local.forget(std::mem::take(&mut self.gone));
        }
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.local.forget(std::mem::take(&mut self.gone));
    }
}

/// Whether the error says that what was looked for is not there, rather than that looking failed.
fn is_elsewhere(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, NotADirectory, NotFound, UnexpectedEof};
    // A symlink in the place of a file has no kind of its own in the standard library yet.
    let is_symlink = rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::LOOP);
    is_symlink || matches!(error.kind(), InvalidInput | NotADirectory | NotFound | UnexpectedEof)
}
