//! [`DiskStore`]: opening, and the handle by which everything else is asked for.

mod opening;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc,
};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fmt, fs, io};

use consort_core::limits::MAX_CHUNK_BYTES;
use consort_core::model::{Clock, Commit};
use consort_core::store::{
    Applied, Cursor, DatasetParameters, Epoch, Lesson, LocalWrite, Sealer, Store, StoreError,
};
use consort_core::{AuthorId, ChunkHash, DatasetId, NodeId, WallTime};

use crate::check::{self, CheckProgress, CheckReport};
use crate::chunks::{self, Chunks};
use crate::committer::{self, Done, Job};
use crate::edit::{Edit, Outcome};
use crate::layout::{self, DatasetRow, Extent, Identity, Site, State, Table};
use crate::live::LiveIndexes;
use crate::lsm::{Lock, Rows, Tables};
use crate::packs::{Packed, Packs, ReadError, sync_directory};
use crate::queue::Queue;
use crate::transaction::{Body, Place, Transaction};
use crate::upgrade;
use crate::view::DiskView;

pub use opening::{DAMAGED_HINT, OpenError};
use opening::{Found, lock, stamp, unreadable};
pub(crate) use opening::{draw_identity, half};

/// The places of one chunk that [`DiskStore::locate`] returns at most: nearly always the first one is right.
pub const MAX_PLACES: usize = 8;
/// The further ones that [`DiskStore::locate_further`] returns at most: who was told so many wrong ones, and has them
/// forgotten, asks again.
pub const MAX_FURTHER_PLACES: usize = 64;
/// The bytes of a setting at most: settings are for what configures a node, not for data.
pub const MAX_SETTING_BYTES: usize = 64 * 1024;

/// A store on disk: a handle that is cheap to clone. When the last one is dropped, what was submitted is committed, and
/// the store is closed; views of it keep its lock.
#[derive(Clone)]
pub struct DiskStore(Arc<Handle>);

struct Handle {
    shared: Arc<Shared>,
    /// Held while a dataset is linked, unlinked or dropped: each takes many steps, and two at once would undo each other.
    changing: Mutex<()>,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Ends when the store's lock is released.
    held: Arc<Mutex<mpsc::Receiver<Infallible>>>,
}

/// What the handles and the committer share.
pub(crate) struct Shared {
    pub(crate) tables: Arc<Tables>,
    pub(crate) packs: Packs,
    pub(crate) indexes: LiveIndexes,
    pub(crate) queue: Queue<Job>,
    identity: RwLock<Identity>,
    datasets: RwLock<BTreeMap<DatasetId, DatasetRow>>,
}

impl DiskStore {
    /// Opens the store in `directory`, which is made if it does not exist. Finishes what a crash interrupted.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_for(directory, None)
    }

    /// Whether somebody has the store in this directory open. Whoever opens it in this very moment may find it locked
    /// for an instant.
    pub fn is_open(directory: &Path) -> bool {
        opening::is_locked(&directory.join("LOCK"))
    }

    /// Opens the store of a node: an author that is drawn for it begins as the node's identity does, so that people can
    /// tell from a version, and from the name of a conflict copy, whose it is. Otherwise like [`open`](Self::open).
    pub fn open_for(directory: &Path, node: Option<NodeId>) -> Result<Self, OpenError> {
        let failed = |name: &str| {
            let path = directory.join(name);
            move |source: io::Error| OpenError::Io { path, source }
        };
        fs::create_dir_all(directory).map_err(failed(""))?;
        let (sender, held) = mpsc::channel();
        let lock = Lock { _file: lock(&directory.join("LOCK"))?, _held: sender };
        let held = Arc::new(Mutex::new(held));
        let format = upgrade::read(directory)?;
        let tables =
            Arc::new(Tables::open(&directory.join("rows"), lock).map_err(|error| match error {
                fjall::Error::Io(source) => failed("rows")(source),
                other => OpenError::Damaged(other.to_string()),
            })?);
        upgrade::upgrade(directory, format, &tables)?;
        let stamp = stamp(directory).map_err(failed("STAMP"))?;
        let found = Found::read(&tables).map_err(unreadable)?;
        let (packs, synced) =
            Packs::open(directory.join("packs"), found.pack_tail).map_err(failed("packs"))?;
        // The names of what was made just now are durable before anything is acknowledged.
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.into_iter().chain([directory]).try_for_each(sync_directory).map_err(failed(""))?;

        let mut rows = Rows::default();
        let identity = match found.identity {
            Some(identity) if identity.stamp == stamp => identity,
            _ => {
                let begins = node.map(|node| half(node.0));
                let identity = draw_identity(stamp, begins).map_err(unreadable)?;
                rows.put(Table::Node, layout::IDENTITY, layout::encode_identity(&identity));
                committer::begin_anew(&tables.moment(), found.datasets.values(), &mut rows)
                    .map_err(unreadable)?;
                identity
            }
        };
        if synced.tail != found.pack_tail {
            let moment = tables.moment();
            let mut chunks = Chunks::new(&moment);
            committer::index(&synced, &mut chunks, &mut rows).map_err(unreadable)?;
        }
        let indexes = LiveIndexes::open(&tables.moment(), &found.datasets, &mut rows);
        let indexes = indexes.map_err(unreadable)?;
        rows.commit(&tables).map_err(unreadable)?;

        let shared = Arc::new(Shared {
            tables,
            packs,
            indexes,
            queue: Queue::default(),
            identity: RwLock::new(identity),
            datasets: RwLock::new(found.datasets),
        });
        let committer =
            committer::spawn(Arc::clone(&shared), Clock::after(found.clock)).map_err(failed(""))?;
        let committer = Mutex::new(Some(committer));
        let store = Self(Arc::new(Handle { shared, changing: Mutex::new(()), committer, held }));
        store.finish_interrupted().map_err(unreadable)?;
        Ok(store)
    }

    /// Who writes here. Another one after the store was found to be a copy, or rolled back.
    pub fn author(&self) -> AuthorId {
        self.shared().identity().author
    }

    /// The epoch that the feeds' epochs come from; it changes when the author does.
    pub fn epoch(&self) -> Epoch {
        self.shared().identity().epoch
    }

    /// The datasets, ordered by identity.
    pub fn datasets(&self) -> Vec<DatasetParameters> {
        let parameters = |(id, row): (&DatasetId, &DatasetRow)| DatasetParameters {
            id: *id,
            fingerprint_key: row.fingerprint_key,
        };
        self.shared().datasets().iter().map(parameters).collect()
    }

    /// Makes a dataset known; does nothing for one that is. Durable when it returns.
    pub fn open_dataset(&self, dataset: DatasetParameters) -> Result<(), StoreError> {
        self.edit(Edit::Open(dataset)).map(drop)
    }

    /// Removes a dataset and all its rows. It is gone at once, and durably; the rows go in steps, until this returns.
    pub fn drop_dataset(&self, dataset: DatasetId) -> Result<(), StoreError> {
        let _alone = self.alone();
        let row = self.dataset(dataset)?;
        self.edit(Edit::Enter { dataset, state: State::Dropping })?;
        self.finish_dropping(dataset, row)
    }

    /// Says whether the dataset is linked to a directory. While it is, keys that change are pending until they are
    /// settled. Linking marks every key pending; unlinking removes the directory's records, pending rows and places.
    /// Durable when it returns.
    pub fn set_linked(&self, dataset: DatasetId, linked: bool) -> Result<(), StoreError> {
        let _alone = self.alone();
        let row = self.dataset(dataset)?;
        match (row.state, linked) {
            (State::Plain, true) => {
                self.edit(Edit::Enter { dataset, state: State::Linking })?;
                self.finish_linking(dataset, row)
            }
            (State::Linked | State::Linking, false) => {
                self.edit(Edit::Enter { dataset, state: State::Unlinking })?;
                self.finish_unlinking(dataset, row)
            }
            _ => Ok(()),
        }
    }

    /// Whether the dataset is linked to a directory.
    pub fn is_linked(&self, dataset: DatasetId) -> Result<bool, StoreError> {
        Ok(matches!(self.dataset(dataset)?.state, State::Linked | State::Linking))
    }

    /// The dataset as it is now.
    pub fn view(&self, dataset: DatasetId) -> Result<DiskView, StoreError> {
        let number = self.dataset(dataset)?.number;
        let (epoch, known) = (self.epoch(), self.shared().indexes.known());
        DiskView::new(self.shared().tables.moment(), number, epoch, &known)
    }

    /// Commits a transaction, together with others that wait. `done` is called on the committer's thread when all of
    /// it is durable, or has failed; it must be short and must not wait for another commit. Waits while the queue
    /// is full.
    ///
    /// # Panics
    /// If a record refers to a write that the transaction does not have.
    pub fn submit(
        &self,
        transaction: Transaction,
        done: impl FnOnce(Result<Applied, StoreError>) + Send + 'static,
    ) {
        assert!(transaction.is_consistent(), "a record refers to a write that is not there");
        let weight = transaction.weight();
        self.put(Job::Commit(Box::new(transaction), Box::new(done)), weight);
    }

    /// Commits a transaction and waits until it is durable.
    ///
    /// # Panics
    /// Like [`submit`](Self::submit).
    pub fn commit(&self, transaction: Transaction) -> Result<Applied, StoreError> {
        waited(|done| self.submit(transaction, done))
    }

    /// Keeps a chunk in a pack, if it is not in one already, and says where. It is durable after the next commit.
    /// May wait for a commit itself, so `done` of [`submit`](Self::submit) must not call it.
    ///
    /// # Panics
    /// If it is no chunk: if it is empty or longer than [`MAX_CHUNK_BYTES`].
    pub fn pack(&self, bytes: &[u8]) -> Result<Place, StoreError> {
        assert!((1..=MAX_CHUNK_BYTES).contains(&bytes.len()), "{} bytes are no chunk", bytes.len());
        let hash = ChunkHash::of(bytes);
        let places = self.places(hash, 0, MAX_PLACES)?;
        if let Some(place) = places.into_iter().find(|place| matches!(place, Place::Packed { .. }))
        {
            return Ok(place);
        }
        if self.shared().packs.is_full() {
            self.edit(Edit::Nothing)?;
        }
        Ok(self.shared().packs.append(hash, bytes)?.into())
    }

    /// Reads a packed chunk and verifies it.
    pub fn read_packed(&self, place: &Place, hash: ChunkHash) -> Result<Vec<u8>, ReadError> {
        match *place {
            Place::Packed { pack, offset, length } => {
                self.shared().packs.read(Packed { pack, offset, length }, hash)
            }
            Place::InFile { .. } => Err(ReadError::NotPacked),
        }
    }

    /// Where a chunk may be: packs first, at most [`MAX_PLACES`]. What was packed and is not yet durable is not among
    /// them.
    pub fn locate(&self, hash: ChunkHash) -> Result<Vec<Place>, StoreError> {
        self.places(hash, 0, MAX_PLACES)
    }

    /// Where else a chunk may be, if it is nowhere where [`locate`](Self::locate) says: at most [`MAX_FURTHER_PLACES`].
    pub fn locate_further(&self, hash: ChunkHash) -> Result<Vec<Place>, StoreError> {
        self.places(hash, MAX_PLACES, MAX_FURTHER_PLACES)
    }

    /// A setting of the node.
    pub fn setting(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.shared().tables.moment().get(Table::Node, &layout::setting_key(name))?;
        Ok(row.map(|row| row.to_vec()))
    }

    /// Sets a setting, or removes it. Durable when it returns.
    ///
    /// # Panics
    /// If the value is longer than [`MAX_SETTING_BYTES`].
    pub fn set_setting(&self, name: &str, value: Option<Vec<u8>>) -> Result<(), StoreError> {
        let length = value.as_ref().map_or(0, Vec::len);
        assert!(length <= MAX_SETTING_BYTES, "a setting of {length} bytes is too long");
        self.edit(Edit::Setting { name: name.to_owned(), value }).map(drop)
    }

    /// Reads everything, trusts nothing, changes nothing. Commits may go on meanwhile; what they change is not looked at.
    pub fn check(&self, progress: impl FnMut(CheckProgress)) -> CheckReport {
        check::check(self.shared(), progress)
    }

    /// Gives this handle up, and waits until the store is closed and may be opened again: until the other handles and
    /// all views are gone as well, but no longer than `patience`. Whether it is closed. Blocks.
    pub fn close(self, patience: Duration) -> bool {
        let held = Arc::clone(&self.0.held);
        drop(self);
        let held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Disconnected)
    }

    fn places(&self, hash: ChunkHash, skip: usize, most: usize) -> Result<Vec<Place>, StoreError> {
        let found = chunks::places(&self.shared().tables.moment(), hash, skip + most)?;
        let datasets = self.shared().datasets();
        let id_of =
            |number| datasets.iter().find(|(_, row)| row.number == number).map(|(id, _)| *id);
        let place = |(site, extent)| {
            let Extent { offset, length } = extent;
            match site {
                Site::Pack(pack) => Some(Place::Packed { pack, offset, length }),
                // Rows of a dataset that is being dropped are as good as gone.
                Site::File(number, path) => {
                    Some(Place::InFile { dataset: id_of(number)?, path, offset, length })
                }
            }
        };
        let mut places: Vec<Place> = found.into_iter().skip(skip).filter_map(place).collect();
        places.sort_by_key(|place| matches!(place, Place::InFile { .. }));
        Ok(places)
    }

    /// Goes on with what was under way when the store was last closed.
    fn finish_interrupted(&self) -> Result<(), StoreError> {
        let datasets = self.shared().datasets().clone();
        for (dataset, row) in datasets {
            match row.state {
                State::Plain | State::Linked => {}
                State::Linking => self.finish_linking(dataset, row)?,
                State::Unlinking => self.finish_unlinking(dataset, row)?,
                State::Dropping => self.finish_dropping(dataset, row)?,
            }
        }
        Ok(())
    }

    fn finish_linking(&self, dataset: DatasetId, row: DatasetRow) -> Result<(), StoreError> {
        self.in_steps(|from| Edit::Mark { number: row.number, from })?;
        self.edit(Edit::Enter { dataset, state: State::Linked }).map(drop)
    }

    fn finish_unlinking(&self, dataset: DatasetId, row: DatasetRow) -> Result<(), StoreError> {
        self.clear(row, &[Table::Records, Table::Pending, Table::Chunks])?;
        self.edit(Edit::Enter { dataset, state: State::Plain }).map(drop)
    }

    fn finish_dropping(&self, dataset: DatasetId, row: DatasetRow) -> Result<(), StoreError> {
        self.clear(row, &Table::ALL)?;
        self.edit(Edit::Forget { dataset }).map(drop)
    }

    fn clear(&self, row: DatasetRow, tables: &[Table]) -> Result<(), StoreError> {
        tables.iter().try_for_each(|&table| {
            self.in_steps(|from| Edit::Clear { number: row.number, table, from })
        })
    }

    fn in_steps(&self, edit: impl Fn(Option<Vec<u8>>) -> Edit) -> Result<(), StoreError> {
        let mut from = None;
        loop {
            match self.edit(edit(from))?.next {
                None => return Ok(()),
                next => from = next,
            }
        }
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.0.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn edit(&self, edit: Edit) -> Result<Outcome, StoreError> {
        waited(|done| self.put(Job::Edit(edit, Box::new(done)), 0))
    }

    fn put(&self, job: Job, weight: usize) {
        if let Err(job) = self.shared().queue.put(job, weight) {
            job.refuse(closed());
        }
    }

    fn dataset(&self, dataset: DatasetId) -> Result<DatasetRow, StoreError> {
        let row = self.shared().datasets().get(&dataset).copied();
        row.ok_or(StoreError::UnknownDataset(dataset))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0.shared
    }
}

impl Store for DiskStore {
    type View = DiskView;

    fn author(&self) -> AuthorId {
        Self::author(self)
    }

    fn open_dataset(&mut self, dataset: DatasetParameters) -> Result<(), StoreError> {
        Self::open_dataset(self, dataset)
    }

    fn view(&self, dataset: DatasetId) -> Result<DiskView, StoreError> {
        Self::view(self, dataset)
    }

    fn apply_remote(
        &mut self,
        dataset: DatasetId,
        peer: NodeId,
        commit: Commit,
        cursor: Option<Cursor>,
    ) -> Result<Applied, StoreError> {
        self.commit(Transaction::new(dataset, Body::Remote { peer, commit, cursor }))
    }

    fn learn(&mut self, dataset: DatasetId, lesson: Lesson) -> Result<Applied, StoreError> {
        self.commit(Transaction::new(dataset, Body::Learn(lesson)))
    }

    fn apply_sealed(
        &mut self,
        dataset: DatasetId,
        writes: Vec<LocalWrite>,
        now: WallTime,
        sealer: Option<Arc<dyn Sealer>>,
    ) -> Result<Applied, StoreError> {
        let body = Body::Local { writes, now };
        self.commit(Transaction { sealer, ..Transaction::new(dataset, body) })
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskStore").field("author", &self.author()).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.queue.close();
        let committer = self.committer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may have been held by a callback: then this is the committer's own thread.
        if let Some(committer) = committer.filter(|c| c.thread().id() != thread::current().id()) {
            // Its panic was reported where it happened.
            let _ = committer.join();
        }
    }
}

impl Shared {
    /// Who writes here.
    pub(crate) fn identity(&self) -> Identity {
        *self.identity.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the committer when another identity is durable.
    pub(crate) fn set_identity(&self, identity: Identity) {
        *self.identity.write().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// The datasets that are there.
    pub(crate) fn datasets(&self) -> RwLockReadGuard<'_, BTreeMap<DatasetId, DatasetRow>> {
        self.datasets.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// For the committer, when a change of a dataset's row is durable.
    pub(crate) fn datasets_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<DatasetId, DatasetRow>> {
        self.datasets.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn waited<T: Send + 'static>(
    submit: impl FnOnce(Box<dyn FnOnce(Result<T, StoreError>) + Send>),
) -> Result<T, StoreError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    let done: Done<T> = Box::new(move |outcome| {
        // Whoever waited may be gone.
        let _ = sender.send(outcome);
    });
    submit(done);
    receiver.recv().unwrap_or_else(|_| Err(closed()))
}

fn closed() -> StoreError {
    StoreError::Failed("the store was closed".to_owned())
}
