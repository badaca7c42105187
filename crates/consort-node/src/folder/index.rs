//! Reading what stands in a linked directory: from an entry to the content that names its bytes. Runs on worker
//! threads; what an entry means is decided in `engine.rs`.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consort_core::content::chunker::Chunker;
use consort_core::content::manifest::ManifestBuilder;
use consort_core::limits::{MAX_CHUNK_BYTES, MAX_SYMLINK_BYTES};
use consort_core::store::StoreError;
use consort_core::{ChunkHash, ChunkRef, Content, DatasetId, Key};
use consort_store::{Body, DiskStore, Place, Transaction};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::root::meta_of;
use super::{EntryKind, Meta, Root};

/// Files that wait for a worker. More would only wait in memory instead of in the directory.
pub(super) const MAX_QUEUED_FILES: usize = 256;

/// Chunk places of one file that are gathered before they are written to the store.
const PLACES_PER_TRANSACTION: usize = 4096;

/// Bytes that are read at once: several chunks, so that the chunker always sees a whole one.
const READ_BYTES: usize = 1 << 20;

/// The coarsest steps in which kernels advance file times: a file that was read so shortly after it was modified may
/// change again without showing it.
const RACY_WINDOW: Duration = Duration::from_millis(20);

/// The same where times are whole seconds: the steps of some file systems, such as FAT, are two of them.
const COARSE_RACY_WINDOW: Duration = Duration::from_millis(2100);

/// What was found at a path.
#[derive(Debug)]
pub(super) struct Indexed {
    /// Where.
    pub(super) path: Key,
    /// What stood there, before and after it was read.
    pub(super) meta: Meta,
    /// What its bytes are.
    pub(super) outcome: Result<Content, IndexError>,
    /// The places of the chunks that were not written to the store yet.
    pub(super) places: Vec<(ChunkHash, Place)>,
    /// Its times would not show another change before so much time has passed.
    pub(super) racy: Option<Duration>,
}

/// Why an entry could not be read.
#[derive(Debug)]
pub(super) enum IndexError {
    /// It changed while it was read, or is gone: look again.
    Unstable,
    /// It cannot be an entry, for the reason that is given.
    Unfit(String),
    /// It cannot be read.
    Unreadable(io::Error),
    /// The store failed.
    Store(StoreError),
}

/// Threads that read files of one linked directory.
#[derive(Debug)]
pub(super) struct Indexer {
    jobs: Option<Sender<(Key, Meta)>>,
    results: Receiver<Indexed>,
    stopped: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Indexer {
    /// Starts `workers` threads. They end when the indexer is dropped, which waits for them.
    pub(super) fn start(
        root: &Arc<Root>,
        store: &DiskStore,
        dataset: DatasetId,
        workers: usize,
    ) -> io::Result<Self> {
        let (jobs, queue) = bounded::<(Key, Meta)>(MAX_QUEUED_FILES);
        let (done, results) = bounded(2 * MAX_QUEUED_FILES);
        let (stopped, threads) = (Arc::new(AtomicBool::new(false)), Vec::new());
        let mut indexer = Self { jobs: Some(jobs), results, stopped, threads };
        for number in 0..workers {
            let (queue, done) = (queue.clone(), done.clone());
            let (root, store) = (Arc::clone(root), store.clone());
            let stopped = Arc::clone(&indexer.stopped);
            let name = format!("index-{number}");
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                let mut buffer = Vec::new();
                for (path, meta) in queue {
                    let reading =
                        Reading { root: &root, store: &store, dataset, stopped: &stopped };
                    let indexed = index(&reading, path, meta, &mut buffer);
                    if stopped.load(Ordering::Relaxed) || done.send(indexed).is_err() {
                        break;
                    }
                }
            })?;
            indexer.threads.push(thread);
        }
        Ok(indexer)
    }

    /// Hands over an entry. Waits if many are queued already, so the caller keeps the number below
    /// [`MAX_QUEUED_FILES`] and takes [`results`](Self::results) in between.
    pub(super) fn submit(&self, path: Key, meta: Meta) {
        // The workers live as long as this does.
        let _ = self.jobs.as_ref().map(|jobs| jobs.send((path, meta)));
    }

    /// What was read, in no particular order.
    pub(super) fn results(&self) -> &Receiver<Indexed> {
        &self.results
    }

    /// Set when the indexer is dropped.
    pub(super) fn stopped(&self) -> &AtomicBool {
        &self.stopped
    }
}

impl Drop for Indexer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.jobs = None;
        self.results = crossbeam_channel::never();
        for thread in self.threads.drain(..) {
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Where entries are read, and where that leaves its traces.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading<'r> {
    pub(super) root: &'r Root,
    pub(super) store: &'r DiskStore,
    pub(super) dataset: DatasetId,
    /// Nobody waits for what is read any more.
    pub(super) stopped: &'r AtomicBool,
}

/// Reads one entry.
pub(super) fn index(reading: &Reading<'_>, path: Key, meta: Meta, buffer: &mut Vec<u8>) -> Indexed {
    let racy = racy_for(&meta);
    let mut places = Vec::new();
    let outcome = match meta.kind {
        EntryKind::File => read_file(reading, &path, &meta, buffer, &mut places),
        EntryKind::Symlink => read_symlink(reading.root, &path, &meta),
        EntryKind::Directory => Ok(Content::Inline([].into())),
        EntryKind::Other => Err(IndexError::Unstable),
    };
    Indexed { path, meta, outcome, places, racy }
}

/// Whether another change of what was just put in place might not show, since its file system counts time in seconds.
pub(super) fn is_racy_and_coarse(meta: &Meta) -> bool {
    is_coarse(meta) && racy_for(meta).is_some()
}

/// Whether the file system may count time in whole seconds, or coarser.
fn is_coarse(meta: &Meta) -> bool {
    meta.mtime_ns % 1_000_000_000 == 0
}

/// For how long an entry may change without its times showing it.
fn racy_for(meta: &Meta) -> Option<Duration> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    racy_at(meta, i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

fn racy_at(meta: &Meta, now_ns: i64) -> Option<Duration> {
    let window = if is_coarse(meta) { COARSE_RACY_WINDOW } else { RACY_WINDOW };
    // A change sets the time to that of the change: far from now, also in the future, it shows.
    let is_near = meta.mtime_ns.abs_diff(now_ns) < u64::try_from(window.as_nanos()).ok()?;
    let over = meta.mtime_ns.saturating_add(i64::try_from(window.as_nanos()).ok()?);
    is_near.then(|| Duration::from_nanos(over.abs_diff(now_ns)))
}

fn read_file(
    reading: &Reading<'_>,
    path: &Key,
    meta: &Meta,
    buffer: &mut Vec<u8>,
    places: &mut Vec<(ChunkHash, Place)>,
) -> Result<Content, IndexError> {
    let &Reading { root, store, dataset, stopped } = reading;
    let (mut file, before) = root.open_file(path).map_err(unreadable)?;
    if !before.same_file_state(meta) {
        return Err(IndexError::Unstable);
    }
    let mut chunker = Chunker::default();
    let mut manifest = ManifestBuilder::default();
    let mut packing = Ok(());
    let mut emit = |_: ChunkRef, node: &[u8]| {
        if packing.is_ok() {
            packing = store.pack(node).map(drop);
        }
    };
    let mut offset = 0;
    let mut at_end = false;
    // What was read and not cut yet is at the front of the buffer.
    buffer.resize(READ_BYTES, 0);
    let mut held = 0;
    while !at_end || held != 0 {
        if stopped.load(Ordering::Relaxed) {
            return Err(IndexError::Unstable);
        }
        while !at_end && held < READ_BYTES {
            match file.read(&mut buffer[held..]) {
                Ok(0) => at_end = true,
                Ok(read) => held += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(unreadable(error)),
            }
        }
        let mut used = 0;
        while used < held && (at_end || MAX_CHUNK_BYTES <= held - used) {
            let rest = &buffer[used..held];
            let bytes = &rest[..chunker.next(rest)];
            let chunk = ChunkRef::to(bytes);
            manifest.push(chunk, &mut emit);
            let length = chunk.length;
            places
                .push((chunk.hash, Place::InFile { dataset, path: path.clone(), offset, length }));
            offset += u64::from(length);
            used += bytes.len();
        }
        buffer.copy_within(used..held, 0);
        held -= used;
        if PLACES_PER_TRANSACTION <= places.len() {
            let mut transaction = Transaction::new(dataset, Body::Nothing);
            transaction.places = std::mem::take(places);
            store.commit(transaction).map_err(IndexError::Store)?;
        }
    }
    let content = manifest.finish(&mut emit);
    packing.map_err(IndexError::Store)?;
    let content = content.map_err(|error| IndexError::Unfit(error.to_string()))?;
    // Whether the path still leads to this file, the engine asks.
    match meta_of(&file) {
        Ok(after) if after.same_file_state(&before) && after.size == offset => Ok(content),
        _ => Err(IndexError::Unstable),
    }
}

fn read_symlink(root: &Root, path: &Key, meta: &Meta) -> Result<Content, IndexError> {
    let target = root.read_link(path).map_err(unreadable)?;
    let stable = root.stat(path).is_ok_and(|after| after.is_some_and(|a| a.same_file_state(meta)));
    if !stable {
        return Err(IndexError::Unstable);
    }
    let target = target.into_encoded_bytes();
    if target.is_empty() || MAX_SYMLINK_BYTES < target.len() {
        return Err(IndexError::Unfit("its target is too long".to_owned()));
    }
    Ok(Content::Inline(target.into()))
}

fn unreadable(error: io::Error) -> IndexError {
    match error.kind() {
        // Gone, or something else since: the next look will tell.
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput => IndexError::Unstable,
        _ if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            IndexError::Unstable
        }
        _ => IndexError::Unreadable(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;
    const MS: i64 = 1_000_000;

    fn racy(mtime_ns: i64, now_ns: i64) -> Option<Duration> {
        let (kind, size, mode, inode, device, blocks) = (EntryKind::File, 1, 0o644, 1, 1, 8);
        let ctime_ns = mtime_ns;
        let meta = Meta { kind, size, mode, mtime_ns, ctime_ns, inode, device, blocks };
        racy_at(&meta, now_ns)
    }

    #[test]
    fn a_file_is_read_again_when_its_time_could_not_tell_another_change() {
        let modified = 1_700_000_000 * SECOND + 123_456_789;
        assert_eq!(racy(modified, modified + 5 * MS), Some(Duration::from_millis(15)));
        assert_eq!(racy(modified, modified + 21 * MS), None);
    }

    #[test]
    fn a_time_in_the_future_tells_every_change() {
        let now = 1_700_000_000 * SECOND;
        assert_eq!(racy(now + 3600 * SECOND + 1, now), None);
        assert_eq!(racy(now + 3600 * SECOND, now), None);
    }

    #[test]
    fn where_times_are_whole_seconds_it_takes_longer_until_they_tell() {
        let modified = 1_700_000_000 * SECOND;
        assert_eq!(racy(modified, modified + 1900 * MS), Some(Duration::from_millis(200)));
        assert_eq!(racy(modified, modified + 2200 * MS), None);
    }
}
