//! From what was found to what is durable: writes and records are gathered, and handed to the store in transactions,
//! of which a few are on their way at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consort_core::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS};
use consort_core::store::{Applied, LocalWrite, StoreError, Written};
use consort_core::{ChunkHash, Content, Key, WallTime};
use consort_store::{Basis, Body, DiskStore, Place, Record, RecordChange, Transaction};
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::Engine;
use super::syncer::{CommitError, Syncer};
use crate::folder::Root;
use crate::folder::status::Trouble;

/// Transactions on their way to the disk.
const MAX_OUTSTANDING: usize = 4;
/// Room that is left in a commit for what its bytes are estimated too low.
const COMMIT_BYTES: usize = MAX_COMMIT_BYTES / 2;
/// Records that only say that a file is what was recorded wait for so long, or for so many others.
const REFRESH_AFTER: Duration = Duration::from_secs(1);
const MAX_REFRESHED: usize = MAX_COMMIT_VERSIONS;
/// How soon entries are looked at again that could not be made durable.
const UNSYNCED_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// A transaction's number, and what became of it.
pub(super) type Done = (u64, Result<Applied, CommitError>);

/// What is gathered, and what is on its way.
#[derive(Debug)]
pub(super) struct Commits {
    syncer: Syncer,
    done: Sender<Done>,
    pub(super) results: Receiver<Done>,
    gathered: Gathered,
    /// The paths that each transaction on its way is about.
    outstanding: BTreeMap<u64, BTreeSet<Key>>,
    /// The keys that each of them leaves pending.
    unsettled: BTreeMap<u64, Vec<Key>>,
    next: u64,
    /// Records of files that were found to be what was recorded, and since when the first one waits.
    refreshed: BTreeMap<Key, Record>,
    refreshed_since: Option<Instant>,
}

/// What is gathered for one transaction.
#[derive(Debug, Default)]
struct Gathered {
    writes: Vec<LocalWrite>,
    records: Vec<RecordChange>,
    places: Vec<(ChunkHash, Place)>,
    gone: Vec<(ChunkHash, Place)>,
    unsettled: Vec<Key>,
    paths: BTreeSet<Key>,
    /// Those of them that were looked at, and have to be as durable as what is made of it.
    unsynced: Vec<Key>,
    bytes: usize,
    /// Nothing is to be added.
    alone: bool,
}

impl Commits {
    pub(super) fn start(root: &Arc<Root>, store: &DiskStore) -> io::Result<Self> {
        let root = Arc::clone(root);
        let sync = move |paths: &[Key]| root.sync_entries(paths.iter().map(Key::as_str));
        let syncer = Syncer::start(store.clone(), sync)?;
        let (done, results) = unbounded();
        let (gathered, outstanding) = (Gathered::default(), BTreeMap::new());
        let (refreshed, refreshed_since) = (BTreeMap::new(), None);
        let (next, unsettled) = (0, BTreeMap::new());
        Ok(Self {
            syncer,
            done,
            results,
            gathered,
            outstanding,
            unsettled,
            next,
            refreshed,
            refreshed_since,
        })
    }

    /// How many paths were gathered and are not durable.
    pub(super) fn len(&self) -> usize {
        self.gathered.paths.len() + self.outstanding.values().map(BTreeSet::len).sum::<usize>()
    }

    /// Whether everything that was gathered is durable.
    pub(super) fn are_done(&self) -> bool {
        self.outstanding.is_empty() && self.gathered.paths.is_empty()
    }

    /// The number that the next transaction gets.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether all transactions before the one of this number are durable.
    pub(super) fn are_done_before(&self, number: u64) -> bool {
        self.outstanding.keys().next().is_none_or(|oldest| number <= *oldest)
    }

    /// What the store shows now, if nothing is on its way to it; for [`are_as_of`](Self::are_as_of).
    pub(super) fn as_of(&self) -> Option<u64> {
        self.are_done().then_some(self.next)
    }

    /// Whether nothing was changed since.
    pub(super) fn are_as_of(&self, as_of: Option<u64>) -> bool {
        as_of.is_some() && as_of == self.as_of()
    }

    /// When records that were refreshed are due.
    pub(super) fn refresh_at(&self) -> Option<Instant> {
        self.refreshed_since.map(|since| since + REFRESH_AFTER)
    }

    /// Paths at and beneath this one (all, if none) that are gathered or on their way: the store does not show them yet.
    pub(super) fn on_their_way(&self, start: Option<&Key>) -> Vec<Key> {
        let at = start.map_or("", Key::as_str);
        let beneath = if at.is_empty() { String::new() } else { format!("{at}/") };
        let outstanding = self.outstanding.values();
        std::iter::once(&self.gathered.paths)
            .chain(outstanding)
            .flat_map(|paths| {
                let from = (Bound::Included(beneath.as_str()), Bound::Unbounded);
                let within = paths.range::<str, _>(from);
                paths
                    .get(at)
                    .into_iter()
                    .chain(within.take_while(|path| path.starts_with(&beneath)))
            })
            .cloned()
            .collect()
    }

    fn is_touched(&self, path: &Key) -> bool {
        self.gathered.paths.contains(path)
            || self.refreshed.contains_key(path)
            || self.outstanding.values().any(|paths| paths.contains(path))
    }
}

impl Engine<'_> {
    /// What is gathered about this path next goes alone if something of it was refused.
    pub(super) fn gather_for(&mut self, path: &Key) -> Result<(), StoreError> {
        self.settle_path(path)?;
        if self.is_suspect(path) {
            self.submit();
            self.commits.gathered.alone = true;
        }
        Ok(())
    }

    /// Adds a write, and returns its place among those of the transaction. What belongs together has to be gathered
    /// before the next [`submit_if_full`](Self::submit_if_full).
    pub(super) fn gather_write(&mut self, write: LocalWrite) -> usize {
        let content = match &write.content {
            Content::Inline(bytes) => bytes.len(),
            Content::Chunks(chunks) => chunks.len() * 36,
            Content::Tree { nodes, .. } => nodes.len() * 48,
            Content::Deleted => 0,
        };
        let gathered = &mut self.commits.gathered;
        gathered.bytes += 256 + write.key.len() + content;
        gathered.writes.push(write);
        gathered.writes.len() - 1
    }

    /// Adds a record.
    pub(super) fn gather_record(&mut self, path: Key, record: Record, version: Basis) {
        self.commits.refreshed.remove(&path);
        let gathered = &mut self.commits.gathered;
        gathered.paths.insert(path.clone());
        gathered.records.push(RecordChange::Put { path, record, version });
    }

    /// Adds that nothing stands at a path any more.
    pub(super) fn gather_removal(&mut self, path: Key) {
        self.commits.refreshed.remove(&path);
        let gathered = &mut self.commits.gathered;
        gathered.paths.insert(path.clone());
        gathered.records.push(RecordChange::Remove { path });
    }

    /// What is gathered of a path is what was found there, or that nothing was: that has to be durable first.
    pub(super) fn sync_first(&mut self, path: Key) {
        self.commits.gathered.unsynced.push(path);
    }

    /// Something else of a key that is written or recorded stands there, too, or something else is to stand there: it is pending.
    pub(super) fn gather_unsettled(&mut self, key: Key) {
        self.commits.gathered.unsettled.push(key);
    }

    /// Adds where chunks are.
    pub(super) fn gather_places(&mut self, places: Vec<(ChunkHash, Place)>) {
        self.commits.gathered.places.extend(places);
    }

    /// Adds where chunks no longer are.
    pub(super) fn gather_gone(&mut self, gone: Vec<(ChunkHash, Place)>) {
        self.commits.gathered.gone.extend(gone);
    }

    /// Notes that a file is what was recorded, although it looked different. That is recorded in good time.
    pub(super) fn refresh_record(&mut self, path: Key, record: Record) {
        self.commits.refreshed.insert(path, record);
        self.commits.refreshed_since.get_or_insert_with(Instant::now);
    }

    /// Records refreshed records, if it is time. With `idle`, it is.
    pub(super) fn record_refreshed(&mut self, idle: bool) -> bool {
        let commits = &mut self.commits;
        let due = commits.refresh_at().is_some_and(|at| at <= Instant::now());
        if commits.refreshed.is_empty() {
            commits.refreshed_since = None;
            return false;
        }
        if !due && !idle && commits.refreshed.len() < MAX_REFRESHED {
            return false;
        }
        commits.refreshed_since = None;
        for (path, record) in std::mem::take(&mut commits.refreshed) {
            let basis = Basis::Dot(record.dot);
            self.gather_record(path, record, basis);
            self.submit_if_full();
        }
        self.submit()
    }

    /// Hands what is gathered to the store if it is as much as one commit can hold.
    pub(super) fn submit_if_full(&mut self) {
        let gathered = &self.commits.gathered;
        // One entry may need two writes.
        if MAX_COMMIT_VERSIONS - 2 <= gathered.writes.len()
            || COMMIT_BYTES <= gathered.bytes
            || MAX_COMMIT_VERSIONS <= gathered.records.len()
            || gathered.alone
        {
            self.submit();
        }
    }

    /// Hands what is gathered to the store. False if there is nothing.
    pub(super) fn submit(&mut self) -> bool {
        let gathered = std::mem::take(&mut self.commits.gathered);
        let Gathered { writes, records, places, gone, unsettled, paths, unsynced, .. } = gathered;
        if writes.is_empty() && records.is_empty() && places.is_empty() {
            return false;
        }
        while MAX_OUTSTANDING <= self.commits.outstanding.len() {
            self.await_commit();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = WallTime(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let body = if writes.is_empty() { Body::Nothing } else { Body::Local { writes, now } };
        let mut transaction = Transaction::new(self.context.dataset, body);
        transaction.on_conflict = self.context.on_conflict;
        (transaction.records, transaction.unsettled) = (records, unsettled);
        (transaction.places, transaction.gone) = (places, gone);
        let (done, number) = (self.commits.done.clone(), self.commits.next);
        self.commits.next += 1;
        self.commits.outstanding.insert(number, paths);
        self.commits.unsettled.insert(number, transaction.unsettled.clone());
        let done = Box::new(move |result| {
            // The engine may have ended meanwhile.
            let _ = done.send((number, result));
        });
        self.commits.syncer.submit(unsynced, transaction, done);
        true
    }

    pub(super) fn on_committed(&mut self, (number, result): Done) -> Result<(), StoreError> {
        let paths = self.commits.outstanding.remove(&number).unwrap_or_default();
        // What the stager has worked out before may settle them.
        let mut looks = self.commits.unsettled.remove(&number).unwrap_or_default();
        let applied = match result {
            Ok(applied) => applied,
            Err(CommitError::Unsynced(error)) => {
                let text = format!(
                    "the file system cannot make what changed durable ({error}), so it is not sent yet; look at the \
                     disk and at the system's log"
                );
                self.progress.set_trouble("sync", Some(Trouble::Degraded(text)));
                for path in &paths {
                    let text = format!("it cannot be made durable ({error}), and is not sent yet");
                    self.progress.set_problem(path, Some(text));
                    self.mark(path, UNSYNCED_AGAIN_AFTER);
                }
                return Ok(());
            }
            Err(CommitError::Store(StoreError::Refused { key, reason })) => {
                tracing::warn!(%key, %reason, "an entry is refused");
                self.on_refused(paths, &format!("it cannot be written: {reason}"));
                return Ok(());
            }
            Err(CommitError::Store(error @ StoreError::Crowded { .. })) => {
                tracing::warn!(%error, "a change is refused");
                self.on_refused(paths, &format!("its change cannot be written: {error}"));
                return Ok(());
            }
            Err(CommitError::Store(error)) => return Err(error),
        };
        self.progress.set_trouble("sync", None);
        paths.iter().for_each(|path| drop(self.unrecorded.remove(path)));
        if !applied.added.is_empty() {
            (self.context.on_written)();
        }
        if applied.written.iter().any(|written| matches!(written, Written::Same(_))) {
            // What is like a version already may still have another modification time.
            looks.extend(paths);
        }
        if !looks.is_empty() {
            self.stager.look_at(looks);
        }
        // Others may have waited for these records.
        self.stager.wake();
        Ok(())
    }

    fn await_commit(&mut self) {
        if let Ok(done) = self.commits.results.recv()
            && let Err(error) = self.on_committed(done)
        {
            self.progress.fail(error.to_string());
        }
    }

    /// Waits until everything that was gathered is durable, so that the records say what was found.
    pub(in crate::folder) fn settle_commits(&mut self) -> Result<(), StoreError> {
        self.record_refreshed(true);
        self.submit();
        while !self.commits.outstanding.is_empty() {
            let done =
                self.commits.results.recv().unwrap_or_else(|_| unreachable!("we hold a sender"));
            self.on_committed(done)?;
        }
        Ok(())
    }

    /// Waits for what is on its way if it is about this path.
    pub(super) fn settle_path(&mut self, path: &Key) -> Result<(), StoreError> {
        if self.commits.is_touched(path) { self.settle_commits() } else { Ok(()) }
    }
}
