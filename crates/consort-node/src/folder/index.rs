//! Reading what stands in a linked directory: from an entry to the content that names its bytes. Runs on worker
//! threads; what an entry means is decided in `engine.rs`.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consort_core::content::chunker::Follower;
use consort_core::content::manifest::ManifestBuilder;
use consort_core::limits::{MAX_CHUNK_BYTES, MAX_SYMLINK_BYTES};
use consort_core::store::StoreError;
use consort_core::{ChunkHash, ChunkRef, Content, DatasetId, Key};
use consort_store::{Body, DiskStore, Place, Transaction};
use crossbeam_channel::{Receiver, Sender, bounded};

use super::earlier::{Earlier, earlier};
use super::root::meta_of;
use super::{EntryKind, Meta, Root};

/// Files that wait for a worker. More would only wait in memory instead of in the directory.
pub(super) const MAX_QUEUED_FILES: usize = 256;

/// Chunk places of one file that are gathered before they are written to the store.
const PLACES_PER_TRANSACTION: usize = 4096;

/// Bytes that are read at once: several chunks, so that the chunker always sees a whole one.
const READ_BYTES: usize = 1 << 20;

/// A file of so many bytes is hashed by a second thread, while the first one reads and cuts, if a worker has nothing to do.
const LARGE_BYTES: u64 = 16 << 20;

/// What was cut and waits to be hashed, and what is being hashed: buffers of a megabyte.
const MAX_CUTS: usize = 3;

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
    /// They show no format: see [`Record::plain`](consort_store::Record::plain).
    pub(super) plain: bool,
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
        let idle = Arc::new(AtomicUsize::new(workers));
        let mut indexer = Self { jobs: Some(jobs), results, stopped, threads };
        for number in 0..workers {
            let (queue, done) = (queue.clone(), done.clone());
            let (root, store) = (Arc::clone(root), store.clone());
            let (stopped, idle) = (Arc::clone(&indexer.stopped), Arc::clone(&idle));
            let name = format!("index-{number}");
            let thread = std::thread::Builder::new().name(name).spawn(move || {
                let mut buffer = Cut::default();
                for (path, meta) in queue {
                    let idle_before = idle.fetch_sub(1, Ordering::Relaxed);
                    let is_alone = 1 < workers && idle_before == workers;
                    let (root, store, stopped) = (&root, &store, &stopped);
                    let reading = Reading { root, store, dataset, stopped, is_alone };
                    let indexed = index(&reading, path, meta, &mut buffer);
                    idle.fetch_add(1, Ordering::Relaxed);
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
    /// Other workers have nothing to do.
    pub(super) is_alone: bool,
}

/// Reads one entry.
pub(super) fn index(reading: &Reading<'_>, path: Key, meta: Meta, buffer: &mut Cut) -> Indexed {
    let mut racy = racy_for(&meta);
    if !is_coarse(&meta) && LARGE_BYTES <= meta.size {
        // It is better read a little later than twice.
        racy.take().into_iter().for_each(std::thread::sleep);
    }
    let (mut places, mut plain) = (Vec::new(), false);
    let outcome = match meta.kind {
        EntryKind::File => read_file(reading, &path, &meta, buffer, &mut places).map(|read| {
            plain = read.1;
            read.0
        }),
        EntryKind::Symlink => read_symlink(reading.root, &path, &meta),
        EntryKind::Directory => Ok(Content::Inline([].into())),
        EntryKind::Other => Err(IndexError::Unstable),
    };
    Indexed { path, meta, outcome, plain, places, racy }
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

/// What the bytes of a file are, and whether they are plain.
fn read_file(
    reading: &Reading<'_>,
    path: &Key,
    meta: &Meta,
    buffer: &mut Cut,
    places: &mut Vec<(ChunkHash, Place)>,
) -> Result<(Content, bool), IndexError> {
    let (file, before) = reading.root.open_file(path).map_err(unreadable)?;
    if !before.same_file_state(meta) {
        return Err(IndexError::Unstable);
    }
    let mut taking = Taking {
        store: reading.store,
        dataset: reading.dataset,
        path,
        manifest: ManifestBuilder::default(),
        places,
        offset: 0,
    };
    let follower = Follower::new(earlier(reading, path, &before)?);
    let mut cutter = Cutter { file: &file, stopped: reading.stopped, follower };
    if reading.is_alone && LARGE_BYTES <= before.size {
        cut_and_hash(&mut cutter, &mut taking)?;
    } else {
        *buffer = cutter.cut(std::mem::take(buffer), |cut| taking.take(&cut).map(|()| cut))?;
    }
    let plain = cutter.follower.is_plain();
    let (content, size) = taking.finish()?;
    // Whether the path still leads to this file, the engine asks.
    match meta_of(&file) {
        Ok(after) if after.same_file_state(&before) && after.size == size => Ok((content, plain)),
        _ => Err(IndexError::Unstable),
    }
}

/// Hashes on another thread what this one has cut, and not hashed to find the boundaries.
fn cut_and_hash(cutter: &mut Cutter<'_>, taking: &mut Taking<'_>) -> Result<(), IndexError> {
    let (to_hash, cuts) = bounded::<Cut>(MAX_CUTS);
    let (hashed, spare) = bounded::<Cut>(MAX_CUTS);
    std::thread::scope(|scope| {
        for _ in 1..MAX_CUTS {
            let _ = hashed.send(Cut::default());
        }
        let hashing = scope.spawn(move || {
            cuts.into_iter().try_for_each(|cut| {
                taking.take(&cut)?;
                // When all is cut, nobody needs it any more.
                let _ = hashed.send(cut);
                Ok(())
            })
        });
        let cut = cutter.cut(Cut::default(), |cut| {
            let _ = to_hash.send(cut);
            // If that thread has ended, it says why.
            spare.recv().map_err(|_| IndexError::Unstable)
        });
        drop(to_hash);
        let hashed = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        hashed.and(cut.map(drop))
    })
}

/// Chunks that follow each other in a file.
#[derive(Debug, Default)]
pub(super) struct Cut {
    /// More than what was cut.
    bytes: Vec<u8>,
    /// Where in it each chunk ends, and its hash, if that is known.
    ends: Vec<(usize, Option<ChunkHash>)>,
}

/// Reads a file and cuts it.
struct Cutter<'f> {
    file: &'f File,
    stopped: &'f AtomicBool,
    follower: Follower<Earlier<'f>>,
}

impl Cutter<'_> {
    /// Gives what was cut to `take`, which gives back something to go on with. Returns the last of that.
    fn cut(
        &mut self,
        mut cut: Cut,
        mut take: impl FnMut(Cut) -> Result<Cut, IndexError>,
    ) -> Result<Cut, IndexError> {
        let mut at_end = false;
        // What was read and not cut yet.
        let mut rest = Vec::new();
        while !at_end || !rest.is_empty() {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(IndexError::Unstable);
            }
            let Cut { bytes, ends } = &mut cut;
            bytes.resize(READ_BYTES, 0);
            let mut held = rest.len();
            bytes[..held].copy_from_slice(&rest);
            while !at_end && held < READ_BYTES {
                match self.file.read(&mut bytes[held..]) {
                    Ok(0) => at_end = true,
                    Ok(read) => held += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(unreadable(error)),
                }
            }
            ends.clear();
            let mut used = 0;
            while used < held && (at_end || MAX_CHUNK_BYTES <= held - used) {
                let (length, hash) = self.follower.next(&bytes[used..held]);
                used += length;
                ends.push((used, hash));
            }
            rest.clear();
            rest.extend_from_slice(&bytes[used..held]);
            cut = take(cut)?;
        }
        Ok(cut)
    }
}

/// Takes in the chunks of a file: hashes them, and notes where they are.
struct Taking<'t> {
    store: &'t DiskStore,
    dataset: DatasetId,
    path: &'t Key,
    manifest: ManifestBuilder,
    places: &'t mut Vec<(ChunkHash, Place)>,
    /// Where in the file the next chunk begins.
    offset: u64,
}

impl Taking<'_> {
    fn take(&mut self, cut: &Cut) -> Result<(), IndexError> {
        let (store, dataset) = (self.store, self.dataset);
        let mut packing = Ok(());
        let mut start = 0;
        for &(end, hash) in &cut.ends {
            let bytes = &cut.bytes[start..end];
            let hash = hash.unwrap_or_else(|| ChunkHash::of(bytes));
            let length = u32::try_from(bytes.len()).expect("a chunk is shorter than 4 GiB");
            let chunk = ChunkRef { hash, length };
            self.manifest.push(chunk, &mut emit_to(store, &mut packing));
            let (offset, path) = (self.offset, self.path.clone());
            self.places.push((hash, Place::InFile { dataset, path, offset, length }));
            self.offset += u64::from(length);
            start = end;
        }
        packing.map_err(IndexError::Store)?;
        if PLACES_PER_TRANSACTION <= self.places.len() {
            let mut transaction = Transaction::new(dataset, Body::Nothing);
            transaction.places = std::mem::take(self.places);
            store.commit(transaction).map_err(IndexError::Store)?;
        }
        Ok(())
    }

    /// The content of the whole file, and its size.
    fn finish(self) -> Result<(Content, u64), IndexError> {
        let mut packing = Ok(());
        let content = self.manifest.finish(&mut emit_to(self.store, &mut packing));
        packing.map_err(IndexError::Store)?;
        let content = content.map_err(|error| IndexError::Unfit(error.to_string()))?;
        Ok((content, self.offset))
    }
}

/// Keeps the nodes of a manifest in packs, until that fails.
fn emit_to<'e>(
    store: &'e DiskStore,
    packing: &'e mut Result<(), StoreError>,
) -> impl FnMut(ChunkRef, &[u8]) + use<'e> {
    move |_, node| {
        if packing.is_ok() {
            *packing = store.pack(node).map(drop);
        }
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
pub(super) mod tests {
    use consort_core::store::DatasetParameters;

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

    pub(in crate::folder) const DATASET: DatasetId = DatasetId([1; 16]);

    /// An empty directory `root`, and the store of a node in which it is linked.
    pub(in crate::folder) fn linked() -> (tempfile::TempDir, Root, DiskStore) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let store = DiskStore::open(&dir.path().join("store")).unwrap();
        let fingerprint_key = consort_core::FingerprintKey([2; 32]);
        store.open_dataset(DatasetParameters { id: DATASET, fingerprint_key }).unwrap();
        store.set_linked(DATASET, true).unwrap();
        (dir, root, store)
    }

    pub(in crate::folder) fn noise(bytes: u64, seed: u64) -> Vec<u8> {
        let mut random = consort_core::random::Random::new(seed);
        (0..bytes / 8).flat_map(|_| random.next_u64().to_le_bytes()).collect()
    }

    #[test]
    fn a_large_file_is_the_same_content_whoever_hashes_it() {
        let (dir, root, store) = linked();
        std::fs::write(dir.path().join("root/f"), noise(LARGE_BYTES + 8000, 7)).unwrap();
        let key = Key::new("f").unwrap();
        let meta = root.stat("f").unwrap().unwrap();
        let stopped = AtomicBool::new(false);
        let read = |is_alone| {
            let reading = Reading {
                root: &root,
                store: &store,
                dataset: DATASET,
                stopped: &stopped,
                is_alone,
            };
            let indexed = index(&reading, key.clone(), meta, &mut Cut::default());
            (indexed.outcome.unwrap(), indexed.places)
        };
        let (alone, helped) = (read(false), read(true));
        assert_eq!(alone, helped);
        assert!(100 < alone.1.len());
        stopped.store(true, Ordering::Relaxed);
        let reading = Reading {
            root: &root,
            store: &store,
            dataset: DATASET,
            stopped: &stopped,
            is_alone: true,
        };
        let indexed = index(&reading, key.clone(), meta, &mut Cut::default());
        assert!(matches!(indexed.outcome, Err(IndexError::Unstable)));
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
