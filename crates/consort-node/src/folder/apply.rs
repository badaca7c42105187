//! Bringing remote changes to a linked directory, up to the point where they are put in place: a thread reads which
//! keys are pending, works out what the directory should show, and stages the files for it, from chunks that are on
//! this machine already or are fetched. It changes no entry of the directory: `engine.rs` puts in place what is
//! staged, in batches, since only there it is known that nothing unseen is overwritten.
//!
//! The pending keys are gone through in passes. In the first half of a pass everything that appears or changes is
//! staged, in the second everything that goes is taken away, so that a renamed or copied file finds its bytes on this
//! machine. A key whose content is nowhere to be had is left for a later pass; one whose content is long on its way
//! does not keep others waiting.

use std::collections::{BTreeMap, HashMap};
use std::mem;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use consort_core::model::merge;
use consort_core::store::{Sequence, StoreError, View};
use consort_core::{ChunkHash, ChunkRef, Content, DatasetId, Key, Kind, Version};
use consort_store::{DiskStore, DiskView, Record};
use crossbeam_channel::{Receiver, Sender, bounded, select, unbounded};

use super::project::{conflict_prefix, project};
use super::status::Progress;
use super::{Ignores, PlaceError, Root, Staged, Staging};
use crate::content::{Chunks, Contents, Fetched};

/// Chunks that are wanted from peers at a time, for one directory, and their bytes. This bounds the memory of a
/// transfer; it covers 100 ms at 5 Gbit/s.
const MAX_WANTED_CHUNKS: usize = 4096;
const MAX_WANTED_BYTES: u64 = 64 << 20;
/// Keys that are worked on at a time.
const MAX_OPEN_JOBS: usize = 4096;
/// A batch is handed on when it has so many keys or bytes: each batch costs two syncs.
const BATCH_KEYS: usize = 2048;
const BATCH_BYTES: u64 = 256 << 20;
/// Batches that may wait for the engine.
const MAX_WAITING_BATCHES: usize = 2;
/// Pending keys that are read from the store at once.
const PAGE: usize = 512;
/// How long after a pass that left something another one follows, when nothing else causes one: at first, and at the
/// most, each time twice the last.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const RETRY_AFTER_AT_MOST: Duration = Duration::from_secs(15);
/// How long a manifest node may take to be fetched.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long removals wait for jobs that may still copy from what is removed.
const REMOVALS_WAIT: Duration = Duration::from_millis(500);

/// Something that has to be done to one path.
#[derive(Debug)]
pub(super) enum Op {
    /// Put a staged file there.
    Place {
        path: Key,
        /// Taken out when it is synced.
        staged: Option<Staged>,
        version: Arc<Version>,
    },
    /// Make it a symlink.
    Symlink { path: Key, version: Arc<Version> },
    /// Make it a directory.
    Directory { path: Key, version: Arc<Version> },
    /// The bytes are right; only mode or modification time may not be.
    Attributes { path: Key, version: Arc<Version> },
    /// Nothing of this key is to be shown there any more.
    Remove { path: Key },
}

/// What a key needs, losers first.
#[derive(Debug)]
pub(super) struct Work {
    /// The key.
    pub(super) key: Key,
    /// How new the change is that this does.
    pub(super) sequence: Sequence,
    /// What to do.
    pub(super) ops: Vec<Op>,
    /// Afterwards the directory shows all of the key, and nothing else of it.
    pub(super) complete: bool,
}

/// The stager's thread, from outside. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Stager {
    orders: Sender<Order>,
    batches: Receiver<Vec<Work>>,
}

#[derive(Debug)]
enum Order {
    Wake,
    Everything,
    Done { keys: Vec<Key>, left: bool },
}

impl Stager {
    /// Starts the thread. It does nothing before it is [woken](Self::wake).
    pub(super) fn start(
        dataset: DatasetId,
        root: Arc<Root>,
        ignores: Arc<RwLock<Ignores>>,
        store: DiskStore,
        contents: Arc<Contents>,
        progress: Arc<Progress>,
    ) -> std::io::Result<Self> {
        // As many orders as batches, and as many wakes as the engine cares to give: it is woken once per event.
        let (orders, inbox) = unbounded();
        let (outbox, batches) = bounded(MAX_WAITING_BATCHES);
        // Half of it is for news of what nobody has.
        let (sink, fetched) = bounded(2 * MAX_WANTED_CHUNKS + 2);
        let thread = Thread {
            dataset,
            root,
            ignores,
            store,
            contents,
            progress,
            orders: inbox,
            batches: outbox,
            sink,
            fetched,
            wanted: HashMap::new(),
            wanted_bytes: 0,
            files: HashMap::new(),
            jobs: BTreeMap::new(),
            active: HashMap::new(),
            next_id: 0,
            enumerating: None,
            ready: Vec::new(),
            ready_bytes: 0,
            handed_on: 0,
            pass: None,
            again: None,
            extra: Vec::new(),
            left: false,
            retry_at: None,
            retry_after: RETRY_AFTER,
        };
        std::thread::Builder::new().name("apply".into()).spawn(move || thread.run())?;
        Ok(Self { orders, batches })
    }

    /// Something is pending, or can be had now.
    pub(super) fn wake(&self) {
        if self.orders.is_empty() {
            let _ = self.orders.send(Order::Wake);
        }
    }

    /// Compare every key with the directory, pending or not: the ignore patterns changed.
    pub(super) fn wake_for_everything(&self) {
        let _ = self.orders.send(Order::Everything);
    }

    /// What is ready to be put in place. Each batch has to be answered with [`done`](Self::done).
    pub(super) fn batches(&self) -> &Receiver<Vec<Work>> {
        &self.batches
    }

    /// A batch was dealt with; `left` says that some of it could not be done now.
    pub(super) fn done(&self, keys: Vec<Key>, left: bool) {
        let _ = self.orders.send(Order::Done { keys, left });
    }
}

/// What is being made for one key.
#[derive(Debug)]
struct Job {
    key: Key,
    sequence: Sequence,
    /// In order; a file that is not staged yet leaves its place empty.
    ops: Vec<Option<Op>>,
    open_files: usize,
    complete: bool,
    bytes: u64,
}

/// A file that is being staged.
#[derive(Debug)]
struct FileJob {
    job: u64,
    slot: usize,
    path: Key,
    version: Arc<Version>,
    staging: Option<Staging>,
    /// Chunks that are wanted and have not arrived.
    outstanding: usize,
    /// All chunks were looked for.
    enumerated: bool,
}

/// Which keys are gone through, and how far.
#[derive(Debug)]
struct Pass {
    everything: bool,
    removing: bool,
    after: Option<Key>,
    page: std::vec::IntoIter<(Key, Sequence)>,
    /// The first half is over since.
    staged_since: Option<Instant>,
    /// The directory above which was looked last: neighbours share it.
    looked_above: Option<String>,
}

#[derive(Debug)]
struct Thread {
    dataset: DatasetId,
    root: Arc<Root>,
    ignores: Arc<RwLock<Ignores>>,
    store: DiskStore,
    contents: Arc<Contents>,
    progress: Arc<Progress>,
    orders: Receiver<Order>,
    batches: Sender<Vec<Work>>,
    sink: Sender<Fetched>,
    fetched: Receiver<Fetched>,
    /// Which files want a chunk, and where it goes.
    wanted: HashMap<ChunkHash, (ChunkRef, Vec<(u64, u64)>)>,
    wanted_bytes: u64,
    files: HashMap<u64, FileJob>,
    jobs: BTreeMap<u64, Job>,
    /// Keys that are worked on here (with their job) or in the engine.
    active: HashMap<Key, (Sequence, Option<u64>)>,
    next_id: u64,
    /// The file whose chunks are being looked for, and those that are left.
    enumerating: Option<(u64, Chunks)>,
    ready: Vec<Work>,
    ready_bytes: u64,
    /// Batches that the engine has not answered.
    handed_on: usize,
    pass: Option<Pass>,
    /// Another pass is due after this one; of everything, if so.
    again: Option<bool>,
    /// Keys that are not pending but have to be looked at, since others beneath them came or went.
    extra: Vec<Key>,
    left: bool,
    retry_at: Option<Instant>,
    retry_after: Duration,
}

/// The engine is gone.
struct Ended;

impl Thread {
    fn run(mut self) {
        while self.turn().is_ok() {}
        let wanted: Vec<ChunkRef> = self.wanted.values().map(|(chunk, _)| *chunk).collect();
        self.contents.fetcher().cancel(&wanted, &self.sink);
    }

    /// Does what can be done, then waits for something to happen.
    fn turn(&mut self) -> Result<(), Ended> {
        let mut progress = false;
        while let Ok(order) = self.orders.try_recv() {
            self.on_order(order);
            progress = true;
        }
        while let Ok(fetched) = self.fetched.try_recv() {
            self.on_fetched(fetched);
            progress = true;
        }
        match self.advance() {
            Ok(advanced) => progress |= advanced,
            Err(error) => self.on_store_error(&error),
        }
        let full = BATCH_KEYS <= self.ready.len() || BATCH_BYTES <= self.ready_bytes;
        if full || (!progress && self.handed_on == 0) {
            progress |= self.hand_on()?;
        }
        if progress { Ok(()) } else { self.wait() }
    }

    fn wait(&mut self) -> Result<(), Ended> {
        let removals = self.pass.as_ref().and_then(|pass| pass.staged_since);
        let wake_at = match removals.map(|since| since + REMOVALS_WAIT) {
            Some(at) => Some(self.retry_at.map_or(at, |retry| retry.min(at))),
            None => self.retry_at,
        };
        let timeout = wake_at
            .map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        select! {
            recv(self.orders) -> order => self.on_order(order.map_err(|_| Ended)?),
            recv(self.fetched) -> fetched => {
                if let Ok(fetched) = fetched {
                    self.on_fetched(fetched);
                }
            }
            default(timeout) => {
                if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                    self.retry_at = None;
                    self.again = self.again.or(Some(false));
                }
            }
        }
        Ok(())
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Wake => {
                self.again = self.again.or(Some(false));
                self.retry_after = RETRY_AFTER;
            }
            Order::Everything => self.again = Some(true),
            Order::Done { keys, left } => {
                self.handed_on -= 1;
                self.left |= left;
                for key in keys {
                    self.active.remove(&key);
                }
                // What the batch made possible, or what came for its keys meanwhile, is seen by another pass.
                if !left {
                    self.retry_after = RETRY_AFTER;
                    self.again = self.again.or(Some(false));
                }
            }
        }
    }

    /// Looks for more chunks of the current file, or opens the next key. False if nothing can be done right now.
    fn advance(&mut self) -> Result<bool, StoreError> {
        if MAX_WANTED_CHUNKS <= self.wanted.len() || MAX_WANTED_BYTES <= self.wanted_bytes {
            return Ok(false);
        }
        if self.enumerating.is_some() {
            self.enumerate();
            return Ok(true);
        }
        if MAX_OPEN_JOBS <= self.jobs.len() + self.ready.len() {
            return Ok(false);
        }
        if let Some(key) = self.extra.pop() {
            self.open_unlisted(key)?;
            return Ok(true);
        }
        let Some(pass) = &mut self.pass else { return Ok(self.begin_pass()) };
        if let Some((key, sequence)) = pass.page.next() {
            let removing = pass.removing;
            self.open(key, sequence, removing)?;
            return Ok(true);
        }
        self.next_page()
    }

    fn begin_pass(&mut self) -> bool {
        let Some(everything) = self.again.take() else { return false };
        self.left = false;
        self.retry_at = None;
        self.pass = Some(Pass {
            everything,
            removing: false,
            after: None,
            page: Vec::new().into_iter(),
            staged_since: None,
            looked_above: None,
        });
        true
    }

    fn next_page(&mut self) -> Result<bool, StoreError> {
        let view = self.store.view(self.dataset)?;
        let idle = self.jobs.is_empty();
        let Some(pass) = &mut self.pass else { return Ok(false) };
        if pass.staged_since.is_none() {
            let after = pass.after.as_ref();
            let page = if pass.everything {
                let newest = |held: &Vec<consort_core::store::Stored>| {
                    held.iter().map(|stored| stored.sequence).max().unwrap_or_default()
                };
                let keys = view.scan("", after, PAGE)?;
                keys.into_iter()
                    .map(|(key, held)| {
                        let n = newest(&held);
                        (key, n)
                    })
                    .collect()
            } else {
                view.pending(after, PAGE)?
            };
            if let Some((last, _)) = page.last() {
                pass.after = Some(last.clone());
                pass.page = page.into_iter();
                return Ok(true);
            }
            if pass.removing {
                self.end_pass();
                return Ok(true);
            }
            pass.staged_since = Some(Instant::now());
        }
        let waited = pass.staged_since.is_some_and(|since| REMOVALS_WAIT <= since.elapsed());
        if idle || waited {
            (pass.removing, pass.after, pass.staged_since) = (true, None, None);
            pass.looked_above = None;
            return Ok(true);
        }
        Ok(false)
    }

    fn end_pass(&mut self) {
        self.pass = None;
        self.progress.set_waiting(self.left);
        if self.left {
            self.retry_at = Some(Instant::now() + self.retry_after);
            self.retry_after = (2 * self.retry_after).min(RETRY_AFTER_AT_MOST);
        }
    }

    /// Works out what a key needs and begins with it.
    fn open(&mut self, key: Key, sequence: Sequence, removing: bool) -> Result<(), StoreError> {
        match self.active.get(&key) {
            None => {}
            // Something newer came while its content was on its way: begin again.
            Some(&(older, Some(job))) if older < sequence && !removing => self.abandon(job),
            Some(_) => return Ok(()),
        }
        let view = self.store.view(self.dataset)?;
        let plan = plan(&view, &key, &self.ignores)?;
        self.look_above(&view, &key)?;
        if removing {
            if !plan.removals.is_empty() {
                let ops = plan.removals.into_iter().map(|path| Some(Op::Remove { path })).collect();
                let complete = plan.shows.is_empty();
                let (open_files, bytes) = (0, 0);
                self.add_job(Job { key, sequence, ops, open_files, complete, bytes });
            }
            return Ok(());
        }
        if plan.shows.is_empty() && !plan.removals.is_empty() {
            return Ok(());
        }
        let complete = plan.removals.is_empty();
        let (ops, open_files, bytes) = (Vec::new(), 0, 0);
        let id = self.add_job(Job { key, sequence, ops, open_files, complete, bytes });
        for (path, version, same_bytes) in plan.shows {
            self.prepare(id, path, Arc::new(version), same_bytes);
        }
        self.finish_if_complete(id);
        Ok(())
    }

    /// Looks at a key that nothing says is pending.
    fn open_unlisted(&mut self, key: Key) -> Result<(), StoreError> {
        let view = self.store.view(self.dataset)?;
        let newest = view.siblings(&key)?.iter().map(|stored| stored.sequence).max();
        self.open(key.clone(), newest.unwrap_or_default(), false)?;
        self.open(key, newest.unwrap_or_default(), true)
    }

    /// A file above a live key has to make way, and may come back when the last one is gone.
    fn look_above(&mut self, view: &DiskView, key: &Key) -> Result<(), StoreError> {
        if let (Some(pass), Some(parent)) = (&mut self.pass, key.parent()) {
            if pass.looked_above.as_deref() == Some(parent) {
                return Ok(());
            }
            pass.looked_above = Some(parent.to_owned());
        }
        for above in key.ancestors() {
            let above = Key::new(above).expect("a part of a key is a key");
            if self.active.contains_key(&above) {
                continue;
            }
            let siblings = versions(view, &above)?;
            let is_file = |winner: &Version| {
                !winner.is_deleted() && winner.attributes.kind != Kind::Directory
            };
            if merge::winner(&siblings).is_some_and(is_file) {
                self.extra.push(above);
            }
        }
        Ok(())
    }

    fn add_job(&mut self, job: Job) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.active.insert(job.key.clone(), (job.sequence, Some(id)));
        let ready = job.open_files == 0 && !job.ops.is_empty();
        self.jobs.insert(id, job);
        if ready {
            self.finish_if_complete(id);
        }
        id
    }

    /// Adds what a path needs to a job.
    fn prepare(&mut self, id: u64, path: Key, version: Arc<Version>, same_bytes: bool) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let op = match version.attributes.kind {
            Kind::Directory => Op::Directory { path, version },
            Kind::Symlink => Op::Symlink { path, version },
            Kind::File if same_bytes => Op::Attributes { path, version },
            Kind::File => {
                let slot = job.ops.len();
                job.ops.push(None);
                job.open_files += 1;
                let file = self.next_id;
                self.next_id += 1;
                let stream = self.contents.chunks_of(&version.content, MANIFEST_TIMEOUT);
                let (staging, outstanding, enumerated) = (None, 0, false);
                let job =
                    FileJob { job: id, slot, path, version, staging, outstanding, enumerated };
                self.files.insert(file, job);
                // A second file of the same key is looked at when the first is through.
                while self.enumerating.is_some() {
                    self.enumerate();
                }
                self.enumerating = Some((file, stream));
                return;
            }
        };
        job.ops.push(Some(op));
    }

    /// Looks for the next chunk of the current file: here first, then at peers.
    fn enumerate(&mut self) {
        let Some((file, mut stream)) = self.enumerating.take() else { return };
        let next = match self.files.get(&file).map(|job| &job.version.content) {
            None => return,
            Some(Content::Inline(bytes)) => {
                let bytes = bytes.clone();
                if !bytes.is_empty() && !self.write(file, 0, &bytes) {
                    return;
                }
                None
            }
            Some(_) => match stream.next().transpose() {
                Ok(next) => next,
                Err(error) => {
                    tracing::debug!(%error, "a manifest cannot be had");
                    return self.fail(file);
                }
            },
        };
        let Some((offset, chunk)) = next else {
            if let Some(job) = self.files.get_mut(&file) {
                job.enumerated = true;
            }
            return self.finish_file_if_complete(file);
        };
        match self.contents.local().read(&chunk) {
            Ok(Some(bytes)) => {
                if !self.write(file, offset, &bytes) {
                    return;
                }
            }
            Ok(None) if self.want(file, chunk, offset) => {}
            Ok(None) => return self.fail(file),
            Err(error) => {
                tracing::warn!(%error, "chunks cannot be read");
                return self.fail(file);
            }
        }
        self.enumerating = Some((file, stream));
    }

    /// Wants a chunk from peers. False if they are asked for too much already.
    fn want(&mut self, file: u64, chunk: ChunkRef, offset: u64) -> bool {
        let known = self.wanted.contains_key(&chunk.hash);
        if !known && self.contents.fetcher().want(&[chunk], &self.sink).is_err() {
            return false;
        }
        if let Some(job) = self.files.get_mut(&file) {
            job.outstanding += 1;
        }
        let (_, takers) = self.wanted.entry(chunk.hash).or_insert_with(|| (chunk, Vec::new()));
        takers.push((file, offset));
        if !known {
            self.wanted_bytes += u64::from(chunk.length);
        }
        true
    }

    fn on_fetched(&mut self, fetched: Fetched) {
        match fetched.bytes {
            Ok(bytes) => {
                let Some((chunk, takers)) = self.wanted.remove(&fetched.chunk.hash) else { return };
                self.wanted_bytes -= u64::from(chunk.length);
                self.progress.add_received(bytes.len() as u64);
                for (file, offset) in takers {
                    if self.write(file, offset, &bytes) {
                        if let Some(job) = self.files.get_mut(&file) {
                            job.outstanding -= 1;
                        }
                        self.finish_file_if_complete(file);
                    }
                }
            }
            Err(reason) => {
                tracing::debug!(chunk = %fetched.chunk.hash, %reason, "a chunk cannot be had");
                let takers = self.wanted.get(&fetched.chunk.hash).map(|(_, takers)| takers.clone());
                for (file, _) in takers.unwrap_or_default() {
                    self.fail(file);
                }
            }
        }
    }

    /// Writes to a file that is being staged. False if that failed, and the file was given up.
    fn write(&mut self, file: u64, offset: u64, bytes: &[u8]) -> bool {
        let Some(job) = self.files.get_mut(&file) else { return false };
        let written = (|| -> Result<(), PlaceError> {
            if job.staging.is_none() {
                job.staging = Some(self.root.stage()?);
            }
            let staging = job.staging.as_mut().expect("it was made just now");
            staging.write_at(offset, bytes)
        })();
        if let Err(error) = written {
            self.on_place_error(&error);
            self.fail(file);
            return false;
        }
        true
    }

    fn finish_file_if_complete(&mut self, file: u64) {
        let complete = |job: &FileJob| job.enumerated && job.outstanding == 0;
        if !self.files.get(&file).is_some_and(complete) {
            return;
        }
        let Some(mut done) = self.files.remove(&file) else { return };
        let staging = done.staging.take().map_or_else(|| self.root.stage(), Ok);
        let attributes = &done.version.attributes;
        let size = done.version.content.size();
        let staged = staging
            .and_then(|s| s.finish(size, u32::from(attributes.mode), attributes.modified_ns));
        match staged {
            Ok(staged) => {
                let Some(job) = self.jobs.get_mut(&done.job) else { return };
                job.bytes += size;
                job.open_files -= 1;
                let (path, version) = (done.path, done.version);
                job.ops[done.slot] = Some(Op::Place { path, staged: Some(staged), version });
                self.finish_if_complete(done.job);
            }
            Err(error) => {
                self.on_place_error(&error);
                self.abandon(done.job);
                self.left = true;
            }
        }
    }

    fn finish_if_complete(&mut self, id: u64) {
        if self.jobs.get(&id).is_none_or(|job| job.open_files != 0) {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some((_, at)) = self.active.get_mut(&job.key) {
            *at = None;
        }
        self.ready_bytes += job.bytes;
        let ops = job.ops.into_iter().flatten().collect();
        let Job { key, sequence, complete, .. } = job;
        self.ready.push(Work { key, sequence, ops, complete });
    }

    /// Gives a file up for this pass, and with it its key.
    fn fail(&mut self, file: u64) {
        self.left = true;
        if let Some(job) = self.files.get(&file).map(|file| file.job) {
            self.abandon(job);
        }
    }

    fn abandon(&mut self, id: u64) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.active.remove(&job.key);
        let files: Vec<u64> =
            self.files.iter().filter(|(_, file)| file.job == id).map(|(&id, _)| id).collect();
        if self.enumerating.as_ref().is_some_and(|(file, _)| files.contains(file)) {
            self.enumerating = None;
        }
        let mut unwanted = Vec::new();
        self.wanted.retain(|_, (chunk, takers)| {
            takers.retain(|(file, _)| !files.contains(file));
            if takers.is_empty() {
                self.wanted_bytes -= u64::from(chunk.length);
                unwanted.push(*chunk);
            }
            !takers.is_empty()
        });
        self.contents.fetcher().cancel(&unwanted, &self.sink);
        for file in files {
            self.files.remove(&file);
        }
    }

    fn hand_on(&mut self) -> Result<bool, Ended> {
        if self.ready.is_empty() {
            return Ok(false);
        }
        self.ready_bytes = 0;
        self.handed_on += 1;
        self.batches.send(mem::take(&mut self.ready)).map_err(|_| Ended)?;
        Ok(true)
    }

    fn on_place_error(&mut self, error: &PlaceError) {
        self.progress.report_place_error(error);
    }

    fn on_store_error(&mut self, error: &StoreError) {
        self.progress.fail(error.to_string());
        (self.pass, self.enumerating) = (None, None);
        self.left = true;
        self.end_pass();
    }
}

/// What a directory lacks of a key, and what it has too much of it.
struct Plan {
    /// Paths that show something else, or nothing; and whether just the attributes differ.
    shows: Vec<(Key, Version, bool)>,
    removals: Vec<Key>,
}

fn plan(view: &DiskView, key: &Key, ignores: &RwLock<Ignores>) -> Result<Plan, StoreError> {
    let siblings = versions(view, key)?;
    let ignored = {
        let ignores = ignores.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_dir = merge::winner(&siblings).is_some_and(|w| w.attributes.kind == Kind::Directory);
        ignores.is_ignored(key, is_dir)
    };
    if ignored {
        return Ok(Plan { shows: Vec::new(), removals: Vec::new() });
    }
    let live_file =
        |winner: &Version| !winner.is_deleted() && winner.attributes.kind != Kind::Directory;
    let displaced = merge::winner(&siblings).is_some_and(live_file) && any_live_beneath(view, key)?;
    let mut shown = project(key, &siblings, displaced);
    // A real key of that name comes first.
    let mut taken = Ok(false);
    shown.retain(|shown| {
        let other = shown.path != *key && {
            taken = versions(view, &shown.path)
                .map(|held| merge::winner(&held).is_some_and(|winner| !winner.is_deleted()));
            *taken.as_ref().unwrap_or(&true)
        };
        !other
    });
    taken?;

    let at_key = view.record(key)?;
    let mut removals = Vec::new();
    if at_key.is_some() || 1 < siblings.len() {
        let mut after = None;
        loop {
            let page = view.records(&conflict_prefix(key), after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let copies = page.into_iter().filter(|(_, record)| record.key.as_ref() == Some(key));
            removals.extend(copies.map(|(path, _)| path));
        }
    }
    if at_key.as_ref().is_some_and(|record| record.key.is_none() && !record.implicit) {
        removals.push(key.clone());
    }
    removals.retain(|path| shown.iter().all(|shown| shown.path != *path));
    if displaced {
        // A directory is wanted at the key itself; making it takes the file away.
        removals.retain(|path| {
            path != key || at_key.as_ref().is_some_and(|r| r.kind != Kind::Directory)
        });
    }

    let mut shows = Vec::new();
    for show in shown {
        let record = if show.path == *key { at_key.clone() } else { view.record(&show.path)? };
        if record.as_ref().is_some_and(|r| r.dot == show.version.dot && !r.implicit) {
            continue;
        }
        let same = record.is_some_and(|record| same_bytes(&record, show.version));
        shows.push((show.path, show.version.clone(), same));
    }
    Ok(Plan { shows, removals })
}

fn same_bytes(record: &Record, version: &Version) -> bool {
    record.kind == version.attributes.kind && record.content == version.content.id()
}

fn any_live_beneath(view: &DiskView, key: &Key) -> Result<bool, StoreError> {
    let prefix = format!("{key}/");
    let mut after: Option<Key> = None;
    loop {
        let page = view.scan(&prefix, after.as_ref(), PAGE)?;
        let live =
            page.iter().any(|(_, held)| held.iter().any(|stored| !stored.version.is_deleted()));
        if live || page.is_empty() {
            return Ok(live);
        }
        after = page.into_iter().next_back().map(|(key, _)| key);
    }
}

fn versions(view: &DiskView, key: &Key) -> Result<Vec<Version>, StoreError> {
    Ok(view.siblings(key)?.into_iter().map(|stored| stored.version).collect())
}
