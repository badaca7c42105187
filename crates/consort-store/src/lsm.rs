//! The database under the store: its tables and how they are tuned, moments to read and batches to write. What rows
//! mean stands in `layout.rs`; who writes them, in `committer.rs`.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use consort_core::encoding::DecodeError;
use consort_core::store::StoreError;
use fjall::compaction::Leveled;
use fjall::config::{
    BloomConstructionPolicy, CompressionPolicy, FilterPolicy, FilterPolicyEntry, PinningPolicy,
};
use fjall::{
    CompressionType, Database, Keyspace, KeyspaceCreateOptions, LsmError, OwnedWriteBatch,
    PersistMode, Readable, Slice, Snapshot,
};

use crate::layout::{Table, after_prefix};
use crate::pending::{FewPending, PendingRows};

/// Blocks of tables that are kept in memory, in bytes, for all tables together. A scan of a million files needs each
/// block once, and lookups of what is not there end at the filters; more buys little and counts against 150 MB a node.
const BLOCK_CACHE_BYTES: u64 = 12 << 20;
/// The journals together, in bytes: the least that the database allows.
const JOURNAL_BYTES: u64 = 64 << 20;
/// Journals are read again at every start, for up to a second. From so many bytes on it is worth to write out what only
/// they have when the database is closed, so that nothing is left to be read.
const JOURNAL_WORTH_READING: u64 = 1 << 20;
/// How long that may take. Otherwise the next start reads them.
const WRITE_OUT_TIME: Duration = Duration::from_secs(3);
/// Threads that write tables out and compact them. With more than one, the database keeps one of them free of
/// compactions by spinning while there is one to do, which costs more than a commit that waits now and then.
const WORKERS: usize = 1;
/// The length of a table's files, in bytes: what one compaction reads and writes at a time, and how long what waits to
/// be written out has to wait for it. Committing a million files takes 10 MB less and less time than with 64 MiB.
const TABLE_FILE_BYTES: u64 = 16 << 20;
/// Tables' files that are kept open: all of a node with a few million files.
const OPEN_FILES: usize = 128;
/// Bits per row of a Bloom filter: one lookup in a hundred of what is not there reads a block in vain.
const FILTER_BITS: f32 = 10.0;

/// Recent rows of a table that are kept in memory until they are written out, in bytes. Up to five such lots may
/// wait in the worst case. The larger, the fewer times a row is merged; the tables that get a row for each file
/// share what a node can spare by the size of their rows.
const fn memtable_bytes(table: Table) -> u64 {
    match table {
        Table::Versions | Table::Chunks | Table::Records | Table::Index => 2 << 20,
        Table::Feed | Table::Fingerprints => 1 << 20,
        Table::Pending | Table::Node | Table::Conflicts | Table::Tombstones => 1 << 20,
    }
}

/// The open database.
pub(crate) struct Tables {
    database: Database,
    keyspaces: Vec<Keyspace>,
    pending: FewPending,
    /// What the last commit left. The database shows a part of a commit that is under way to whoever takes a snapshot when
    /// a table has just been written out or merged: that makes visible what has a later number than the commit.
    committed: RwLock<Snapshot>,
    /// After the database, which works with it.
    journal: Journal,
    /// Held as long as anything can still read or write. The last field, so that it is released last.
    _lock: Lock,
}

/// The lock of the store's directory. The channel ends after the file is let go: so somebody can wait for that.
pub(crate) struct Lock {
    pub(crate) _file: File,
    pub(crate) _held: mpsc::Sender<Infallible>,
}

/// The database's journals.
struct Journal {
    directory: PathBuf,
    /// What they hold, at most.
    bytes: AtomicU64,
    /// A batch failed, so that nobody knows what they hold.
    is_in_doubt: AtomicBool,
    /// The tables have all that they hold.
    is_written_out: bool,
}

/// All tables at one moment.
#[derive(Clone)]
pub(crate) struct Moment {
    tables: Arc<Tables>,
    snapshot: Snapshot,
}

/// Changes of rows that are written together. The last change of a row counts.
#[derive(Default)]
pub(crate) struct Rows {
    /// Those of each table, as they came: many come in order, and stay so.
    changes: [Vec<Change>; Table::ALL.len()],
    /// The keys and values of all changes: one growing piece of memory instead of two small ones a row.
    bytes: Vec<u8>,
}

/// A change of one row: where its key and its value are in the bytes. No value: the row goes.
struct Change {
    key: Range<usize>,
    value: Option<Range<usize>>,
}

impl Tables {
    /// Opens the database in `directory`, which is made if need be.
    pub(crate) fn open(directory: &Path, lock: Lock) -> Result<Self, fjall::Error> {
        let journal = Journal::find(directory)?;
        let database = Database::builder(directory)
            .cache_size(BLOCK_CACHE_BYTES)
            .max_journaling_size(JOURNAL_BYTES)
            .worker_threads(WORKERS)
            .max_cached_files(Some(OPEN_FILES))
            .open()?;
        let keyspaces = Table::ALL
            .map(|table| database.keyspace(table.name(), || options(table)))
            .into_iter()
            .collect::<Result<_, _>>()?;
        let (pending, committed) = (FewPending::default(), RwLock::new(database.snapshot()));
        Ok(Self { database, keyspaces, pending, committed, journal, _lock: lock })
    }

    /// All tables as the last commit left them.
    pub(crate) fn moment(self: &Arc<Self>) -> Moment {
        let committed = self.committed.read().unwrap_or_else(PoisonError::into_inner);
        Moment { tables: Arc::clone(self), snapshot: committed.clone() }
    }

    /// A commit is done, and none is under way.
    fn settle(&self) {
        let now = self.database.snapshot();
        *self.committed.write().unwrap_or_else(PoisonError::into_inner) = now;
    }

    fn keyspace(&self, table: Table) -> &Keyspace {
        &self.keyspaces[table as usize]
    }

    /// Writes out what is only in memory and in the journals. Whether that was done.
    fn write_out(&self) -> bool {
        if self.keyspaces.iter().any(|keyspace| keyspace.rotate_memtable().is_err()) {
            return false;
        }
        let end = Instant::now() + WRITE_OUT_TIME;
        while self.keyspaces.iter().any(|keyspace| keyspace.sealed_memtable_count() != 0) {
            if end <= Instant::now() {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // Nobody can commit any more.
        let is_worth_it = JOURNAL_WORTH_READING <= *self.journal.bytes.get_mut();
        if is_worth_it && !*self.journal.is_in_doubt.get_mut() {
            self.journal.is_written_out = self.write_out();
        }
    }
}

impl Journal {
    fn find(directory: &Path) -> io::Result<Self> {
        let directory = directory.to_owned();
        let (bytes, is_in_doubt, is_written_out) = (0.into(), false.into(), false);
        let mut journal = Self { directory, bytes, is_in_doubt, is_written_out };
        for file in journal.files()? {
            *journal.bytes.get_mut() += fs::metadata(file)?.len();
        }
        Ok(journal)
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        let is_journal = |path: &PathBuf| path.extension().is_some_and(|found| found == "jnl");
        paths.filter(|path| path.as_ref().map_or(true, is_journal)).collect()
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        if !self.is_written_out {
            return;
        }
        // They stay as empty files: where there is none, the database does not look for the number of the last batch. If
        // one cannot be emptied, it is read again, to no harm.
        let emptied = self.files().and_then(|files| {
            let empty = |file| OpenOptions::new().write(true).truncate(true).open(file);
            files.into_iter().try_for_each(|file| empty(file).map(drop))
        });
        if let Err(error) = emptied {
            tracing::warn!(%error, "a journal that is done with cannot be emptied");
        }
    }
}

impl Moment {
    /// The value of a row.
    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, StoreError> {
        self.snapshot.get(self.tables.keyspace(table), key).map_err(failed)
    }

    /// Whether a row is there.
    pub(crate) fn has(&self, table: Table, key: &[u8]) -> Result<bool, StoreError> {
        self.snapshot.contains_key(self.tables.keyspace(table), key).map_err(failed)
    }

    /// The rows from `from` on whose keys begin with `prefix`, in order. `from` must not be below `prefix`.
    pub(crate) fn rows(
        &self,
        table: Table,
        prefix: &[u8],
        from: Vec<u8>,
    ) -> impl Iterator<Item = Result<(Slice, Slice), StoreError>> + use<> {
        debug_assert!(prefix <= &from[..]);
        let keyspace = self.tables.keyspace(table);
        let iter = match after_prefix(prefix) {
            // A range that ends before it begins is an error to the database; to us it is empty.
            Some(end) if end <= from => None,
            Some(end) => Some(self.snapshot.range(keyspace, from..end)),
            None => Some(self.snapshot.range(keyspace, from..)),
        };
        iter.into_iter().flatten().map(|row| row.into_inner().map_err(failed))
    }

    /// All pending rows as they are now, if there are few: perhaps a commit later than this moment.
    pub(crate) fn few_pending(&self) -> Result<Option<Arc<PendingRows>>, StoreError> {
        self.tables.pending.rows(|most| {
            let rows = self.tables.moment().rows(Table::Pending, &[], Vec::new()).take(most);
            rows.map(|row| row.map(|(key, value)| ((*key).into(), (*value).into()))).collect()
        })
    }
}

impl Rows {
    /// Writes a row.
    pub(crate) fn put(&mut self, table: Table, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (key, value) = (self.keep(key.as_ref()), self.keep(value.as_ref()));
        self.changes[table as usize].push(Change { key, value: Some(value) });
    }

    /// Removes a row, if it is there.
    pub(crate) fn remove(&mut self, table: Table, key: impl AsRef<[u8]>) {
        let key = self.keep(key.as_ref());
        self.changes[table as usize].push(Change { key, value: None });
    }

    /// Makes all changes at once; they are on stable storage when this returns. No other commit may be under way.
    pub(crate) fn commit(self, tables: &Tables) -> Result<(), StoreError> {
        let Self { mut changes, bytes } = self;
        let key = |change: &Change| &bytes[change.key.clone()];
        let count = changes.iter().map(Vec::len).sum();
        let mut batch = OwnedWriteBatch::with_capacity(tables.database.clone(), count)
            .durability(Some(PersistMode::SyncAll));
        for (table, changes) in Table::ALL.into_iter().zip(&mut changes) {
            let keyspace = tables.keyspace(table);
            // In order, neighbours are found faster; and the database takes one change of a row in a batch.
            changes.sort_by(|a, b| key(a).cmp(key(b)));
            for (place, change) in changes.iter().enumerate() {
                if changes.get(place + 1).is_some_and(|next| key(next) == key(change)) {
                    continue;
                }
                match &change.value {
                    Some(value) => batch.insert(keyspace, key(change), &bytes[value.clone()]),
                    None => batch.remove(keyspace, key(change)),
                }
            }
        }
        tables.journal.bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        batch.commit().map_err(|error| {
            tables.journal.is_in_doubt.store(true, Ordering::Relaxed);
            failed(error)
        })?;
        let value = |change: &Change| Some(&bytes[change.value.clone()?]);
        let pending = changes[Table::Pending as usize].iter();
        let pending = pending.map(|change| (key(change), value(change)));
        tables.pending.follow(pending, || tables.settle());
        Ok(())
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<usize> {
        let from = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        from..self.bytes.len()
    }
}

/// What to tell about a row that does not decode.
pub(crate) fn damaged(table: Table, error: DecodeError) -> StoreError {
    StoreError::Damaged(format!("a row of `{}`: {error}", table.name()))
}

/// What to tell about a failure of the database.
pub(crate) fn failed(error: fjall::Error) -> StoreError {
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(LsmError::Io(error)) => {
            StoreError::Failed(describe(&error))
        }
        fjall::Error::Poisoned => StoreError::Failed(
            "an earlier write failed, and nothing is written since; make room on its disk if that is full, and restart the node"
                .to_owned(),
        ),
        other => StoreError::Damaged(other.to_string()),
    }
}

/// An error of the medium in words.
pub(crate) fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "no space is left on its disk; make room and restart the node".to_owned()
        }
        _ => error.to_string(),
    }
}

fn options(table: Table) -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(memtable_bytes(table))
        .compaction_strategy(Arc::new(Leveled::default().with_table_target_size(TABLE_FILE_BYTES)))
        .filter_policy(FilterPolicy::all(FilterPolicyEntry::Bloom(
            BloomConstructionPolicy::BitsPerKey(FILTER_BITS),
        )))
        // What is pinned is not counted by the cache's bound.
        .filter_block_pinning_policy(PinningPolicy::all(false))
        .index_block_pinning_policy(PinningPolicy::all(false))
        .data_block_compression_policy(CompressionPolicy::all(CompressionType::Lz4))
}
