//! Bringing remote changes to a linked directory, up to the point where they are put in place: a thread reads which
//! keys are pending, works out what the directory should show (`apply/plan.rs`, `apply/open.rs`), and stages the files for it
//! (`apply/files.rs`), from chunks that are on this machine already or are fetched. It changes no entry of the
//! directory: `put.rs` puts in place what is staged, in batches, since only there it is known that nothing unseen is
//! overwritten.
//!
//! The pending keys are gone through in passes (`apply/pass.rs`). In the first half of a pass everything that appears or
//! changes is staged, in the second everything that goes is taken away, so that a renamed or copied file finds its bytes on
//! this machine: only what was to go when the pass began, since the first half may have passed the new name of anything
//! else. A file that is to go and is what another key lacks is not even copied: it moves there. A key stays pending until
//! nothing is left to do for it. What cannot be done now is left for a later pass: one follows when something has
//! changed, or else after a while.

mod copies;
mod file;
mod files;
mod full;
mod leftovers;
mod open;
mod pass;
mod plan;
mod stalled;
mod turns;
mod wants;
mod work;

pub(super) use self::work::{Op, Outcome, Work};

use std::collections::{BTreeSet, HashMap};
use std::mem;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort_core::store::{Sequence, StoreError};
use consort_core::{DatasetId, Key, OnConflict};
use consort_store::{DiskStore, DiskView};
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select, unbounded};

use self::copies::{Copied, Found};
use self::files::{Files, News};
use self::full::{Full, pending_bytes};
use self::open::Half;
use self::pass::{Pass, REMOVALS_WAIT};
use self::turns::{Next, Turns};
use super::context::LinkContext;
use super::status::{Progress, Underway};
use super::{Ignores, Root};
use crate::content::delta::Rebuilt;
use crate::content::staged::StagedFile;
use crate::content::{Contents, Fetched};

/// Keys that are worked on at a time.
const MAX_OPEN_JOBS: usize = 4096;
/// A batch is handed on when it has so many keys or bytes: each batch costs two syncs.
const BATCH_KEYS: usize = 2048;
const BATCH_BYTES: u64 = 256 << 20;
/// A batch is handed on when its first key has waited for so long, however busy everything is.
const BATCH_AGE: Duration = Duration::from_millis(100);
/// Batches that may wait for the engine.
const MAX_WAITING_BATCHES: usize = 2;
/// How long after something was left another pass follows, when nothing else causes one: at first, and at the most,
/// each time twice the last.
const RETRY_AFTER: Duration = Duration::from_millis(250);
const RETRY_AFTER_AT_MOST: Duration = Duration::from_secs(15);
/// How soon a file that somebody may still write to is looked at again.
const HELD_AGAIN_AFTER: Duration = Duration::from_millis(10);
/// Keys that are looked at although they are not pending. Beyond that all keys are.
const MAX_UNLISTED: usize = 10_000;
/// Files that stay for a pass because they were to move and did not. What goes beyond that may have to be fetched again.
const MAX_KEPT: usize = 10_000;
/// Directories that are known to let no file be moved out of them. If there are so many, none is moved at all.
const MAX_UNMOVABLE: usize = 1024;

/// The stager's thread, from outside. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Stager {
    orders: Option<Sender<Order>>,
    batches: Receiver<Vec<Work>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Order {
    Wake,
    Everything,
    Look(Vec<Key>),
    Done(Outcome),
}

impl Stager {
    /// Starts the thread. It does nothing before it is [woken](Self::wake).
    pub(super) fn start(
        context: &LinkContext,
        root: Arc<Root>,
        ignores: Ignores,
        progress: Arc<Progress>,
    ) -> std::io::Result<Self> {
        let contents = Arc::clone(&context.contents);
        // As many orders as batches, and as many wakes as the engine cares to give: it is woken once per event.
        let (orders, inbox) = unbounded();
        let (outbox, batches) = bounded(MAX_WAITING_BATCHES);
        let (files, News { fetched, copied, rebuilt }) =
            Files::new(Arc::clone(&root), Arc::clone(&contents), Arc::clone(&progress))?;
        let thread = Thread {
            dataset: context.dataset,
            policy: context.on_conflict,
            root,
            ignores,
            store: context.store.clone(),
            contents,
            progress,
            orders: inbox,
            batches: outbox,
            fetched,
            copied,
            rebuilt,
            files,
            jobs: HashMap::new(),
            active: HashMap::new(),
            next_id: 0,
            ready: Vec::new(),
            ready_bytes: 0,
            ready_since: None,
            handed_on: 0,
            pass: None,
            again: false,
            everything: false,
            pending_next: false,
            extra: Vec::new(),
            unlisted: BTreeSet::new(),
            missed: false,
            view: None,
            left: false,
            retry_at: None,
            retry_after: RETRY_AFTER,
            room: 0,
            full: None,
            kept: BTreeSet::new(),
            unmovable: BTreeSet::new(),
            turns: Turns::default(),
        };
        let thread =
            std::thread::Builder::new().name("apply".into()).spawn(move || thread.run())?;
        Ok(Self { orders: Some(orders), batches, thread: Some(thread) })
    }

    /// Something is pending, or can be had now.
    pub(super) fn wake(&self) {
        self.order(Order::Wake);
    }

    /// Compare every key with the directory, pending or not: other keys may be ignored than before.
    pub(super) fn wake_for_everything(&self) {
        self.order(Order::Everything);
    }

    /// Compare these keys with the directory, pending or not.
    pub(super) fn look_at(&self, keys: Vec<Key>) {
        self.order(Order::Look(keys));
    }

    /// What is ready to be put in place. Each batch has to be answered with [`done`](Self::done).
    pub(super) fn batches(&self) -> &Receiver<Vec<Work>> {
        &self.batches
    }

    /// A batch was dealt with.
    pub(super) fn done(&self, outcome: Outcome) {
        self.order(Order::Done(outcome));
    }

    fn order(&self, order: Order) {
        // If the thread has ended, it was because of a panic, which was reported.
        let _ = self.orders.as_ref().map(|orders| orders.send(order));
    }
}

impl Drop for Stager {
    fn drop(&mut self) {
        // A batch that was handed on and not taken stays staged no longer; its keys are still pending.
        self.orders = None;
        self.batches = crossbeam_channel::never();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What is being made for one key.
#[derive(Debug)]
struct Job {
    key: Key,
    sequence: Sequence,
    newest: Sequence,
    /// In order; a file that is not staged yet leaves its place empty.
    ops: Vec<Option<Op>>,
    open_files: usize,
    complete: bool,
    written: Underway,
    fresh: Vec<StagedFile>,
}

#[derive(Debug)]
struct Thread {
    dataset: DatasetId,
    policy: OnConflict,
    root: Arc<Root>,
    ignores: Ignores,
    store: DiskStore,
    contents: Arc<Contents>,
    progress: Arc<Progress>,
    orders: Receiver<Order>,
    batches: Sender<Vec<Work>>,
    fetched: Receiver<Fetched>,
    /// Before the files, so that those who copy find it gone, and end, when all is dropped.
    copied: Receiver<Copied>,
    rebuilt: Receiver<Rebuilt>,
    files: Files,
    jobs: HashMap<u64, Job>,
    /// Keys that are worked on here (with their job) or in the engine, and those whose files are on their way to others: how new
    /// the newest version was that this was worked out from.
    active: HashMap<Key, (Sequence, Option<u64>)>,
    next_id: u64,
    ready: Vec<Work>,
    ready_bytes: u64,
    ready_since: Option<Instant>,
    /// Batches that the engine has not answered.
    handed_on: usize,
    pass: Option<Pass>,
    /// Another pass is due after this one.
    again: bool,
    /// Passes are to go through all keys, until one finds nothing to do.
    everything: bool,
    /// The next pass goes through the pending keys in any case.
    pending_next: bool,
    /// Keys of this pass that are not pending.
    extra: Vec<Key>,
    /// Keys that are not pending and have to be looked at until nothing is to do.
    unlisted: BTreeSet<Key>,
    /// A key changed while the engine had it.
    missed: bool,
    /// What keys are looked at with, until something has changed or there is nothing to look at.
    view: Option<DiskView>,
    /// Something could not be done.
    left: bool,
    retry_at: Option<Instant>,
    retry_after: Duration,
    /// How much room there was when a pass last began with nothing staged.
    room: u64,
    /// The disk was full, and nothing is tried.
    full: Option<Full>,
    /// Files that were to move in this pass and did not yet: they do not go before they are tried again.
    kept: BTreeSet<Key>,
    /// Directories out of which files cannot be moved (across mounts or quotas, or from what may only be read): they
    /// are copied.
    unmovable: BTreeSet<String>,
    /// Which large files are begun.
    turns: Turns,
}

/// The engine is gone.
struct Ended;

impl Thread {
    fn run(mut self) {
        while self.turn().is_ok() {}
    }

    /// Does what can be done, then waits for something to happen.
    fn turn(&mut self) -> Result<(), Ended> {
        let mut progress = false;
        loop {
            match self.orders.try_recv() {
                Ok(order) => self.on_order(order),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Err(Ended),
            }
            progress = true;
        }
        while let Ok(fetched) = self.fetched.try_recv() {
            self.files.on_fetched(fetched);
            progress = true;
        }
        while let Ok(copied) = self.copied.try_recv() {
            self.on_copied(copied);
            progress = true;
        }
        while let Ok(rebuilt) = self.rebuilt.try_recv() {
            self.files.on_rebuilt(rebuilt);
            progress = true;
        }
        if self.files.has_room_for_large() {
            match self.turns.next() {
                None => {}
                // Those that cannot be had are not tried without end.
                Some(Next::Again) if self.left => self.leave(),
                Some(Next::More | Next::Again) => self.again = true,
            }
        }
        match self.advance() {
            Ok(advanced) => progress |= advanced,
            Err(error) => self.on_store_error(&error),
        }
        if !progress {
            self.files.ask();
        }
        progress |= self.take_files();
        let full = BATCH_KEYS <= self.ready.len() || BATCH_BYTES <= self.ready_bytes;
        let old = self.ready_since.is_some_and(|since| BATCH_AGE <= since.elapsed());
        if full || (self.handed_on == 0 && (old || !progress)) {
            progress |= self.hand_on()?;
        }
        if progress { Ok(()) } else { self.wait() }
    }

    fn wait(&mut self) -> Result<(), Ended> {
        self.view = None;
        // When there is room again, something else has happened before.
        let removals = self.pass.as_ref().filter(|_| !self.is_full());
        let removals = removals.and_then(|pass| pass.begun_since);
        let full = self.full.as_ref().filter(|_| self.again).map(|full| full.look_at);
        let removals = removals.map(|since| since + REMOVALS_WAIT);
        let held = self.files.are_held().then(|| Instant::now() + HELD_AGAIN_AFTER);
        let left = self.files.leftovers().forget_unwanted(Instant::now());
        let wake_at = [self.retry_at, full, removals, held, left].into_iter().flatten().min();
        let timeout = wake_at
            .map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()));
        select! {
            recv(self.orders) -> order => self.on_order(order.map_err(|_| Ended)?),
            recv(self.fetched) -> fetched => {
                if let Ok(fetched) = fetched {
                    self.files.on_fetched(fetched);
                }
            }
            recv(self.copied) -> copied => {
                if let Ok(copied) = copied {
                    self.on_copied(copied);
                }
            }
            recv(self.rebuilt) -> rebuilt => {
                if let Ok(rebuilt) = rebuilt {
                    self.files.on_rebuilt(rebuilt);
                }
            }
            default(timeout) => {
                if self.retry_at.is_some_and(|at| at <= Instant::now()) {
                    self.retry_at = None;
                    self.again = true;
                }
            }
        }
        Ok(())
    }

    fn on_copied(&mut self, copied: Copied) {
        let is_here = |found: &Found| matches!(found, Found::Written { .. } | Found::Standing);
        let is_here = copied.chunks.iter().any(|(.., found)| is_here(found));
        if let Some(since) = self.pass.as_mut().and_then(|pass| pass.begun_since.as_mut())
            && is_here
        {
            *since = Instant::now();
        }
        self.files.on_copied(copied);
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Wake => {
                self.again = true;
                self.retry_after = RETRY_AFTER;
            }
            Order::Everything => (self.everything, self.again) = (true, true),
            Order::Look(keys) => {
                // What they are looked at for may be newer than what was seen so far.
                self.view = None;
                self.unlisted.extend(keys);
                if MAX_UNLISTED < self.unlisted.len() {
                    self.unlisted.clear();
                    self.everything = true;
                }
                self.again = true;
            }
            Order::Done(Outcome { keys, changed, left, unmoved, unmovable, ungrown }) => {
                let room = MAX_UNMOVABLE.saturating_sub(self.unmovable.len());
                self.unmovable.extend(unmovable.into_iter().take(room));
                self.keep(unmoved);
                self.files.replace_whole(ungrown);
                self.handed_on -= 1;
                self.view = None;
                for key in keys {
                    self.active.remove(&key);
                }
                if left {
                    self.leave();
                }
                // A pass that finds the same again must not follow at once, or there would be no end to it.
                if changed {
                    self.retry_after = RETRY_AFTER;
                }
                self.again |= changed || mem::take(&mut self.missed);
            }
        }
    }

    /// Looks for more chunks of a file, or opens the next key. False if nothing can be done right now.
    fn advance(&mut self) -> Result<bool, StoreError> {
        if self.files.is_small_next() && self.files.advance() {
            return Ok(true);
        }
        Ok(self.open_next()? || self.files.advance())
    }

    /// Opens the next key, if there is one and room for it.
    fn open_next(&mut self) -> Result<bool, StoreError> {
        if self.is_full() {
            return Ok(false);
        }
        if let Some(key) = self.extra.pop() {
            return self.open_on_view(key, None, Half::Both);
        }
        let Some(pass) = &mut self.pass else { return Ok(self.begin_pass()) };
        if let Some((key, sequence)) = pass.page.next() {
            let half = if pass.removing { Half::Removing } else { Half::Showing };
            let sequence = (!pass.everything).then_some(sequence);
            return self.open_on_view(key, sequence, half);
        }
        self.next_page()
    }

    /// Whether no key is opened now.
    fn is_full(&self) -> bool {
        self.files.is_full() || MAX_OPEN_JOBS <= self.jobs.len() + self.ready.len()
    }

    /// Something is left to do. Unless something happens before, it is tried again after a while.
    fn leave(&mut self) {
        self.left = true;
        // A pass may last as long as chunks of large files are found here.
        let may_last = self.pass.is_none() || self.files.are_searching();
        if may_last && self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + self.retry_after);
            self.retry_after = (2 * self.retry_after).min(RETRY_AFTER_AT_MOST);
        }
        if self.files.are_missing() {
            self.progress.set_waiting(true);
        }
    }

    /// Takes over what came of files. False if nothing did.
    fn take_files(&mut self) -> bool {
        let ended = self.files.take_ended();
        let any = !ended.is_empty();
        for file in ended {
            match file.staged {
                Ok(staged) => {
                    let Some(job) = self.jobs.get_mut(&file.job) else { continue };
                    job.written.join(file.written);
                    job.fresh.extend(file.fresh);
                    job.open_files -= 1;
                    let (path, version) = (file.path, file.version);
                    job.ops[file.slot] = Some(Op::Place { path, staged: Some(staged), version });
                    self.finish_if_complete(file.job);
                }
                Err(full) => {
                    self.abandon(file.job, !full);
                    if full {
                        self.on_full();
                    }
                    self.leave();
                }
            }
        }
        any
    }

    /// Everything waits until there may be room again, and nothing is transferred in vain meanwhile.
    fn on_full(&mut self) {
        let with_files = |(&id, job): (&u64, &Job)| (job.open_files != 0).then_some(id);
        let waiting: Vec<u64> = self.jobs.iter().filter_map(with_files).collect();
        self.files.leftovers().forget_all();
        for job in waiting {
            self.abandon(job, false);
        }
        self.full = Some(Full::begin(self.room, pending_bytes(&self.store, self.dataset)));
        self.left = true;
        self.extra.clear();
        self.end_pass();
    }

    fn finish_if_complete(&mut self, id: u64) {
        if self.jobs.get(&id).is_none_or(|job| job.open_files != 0) {
            return;
        }
        let Some(job) = self.jobs.remove(&id) else { return };
        if let Some((_, at)) = self.active.get_mut(&job.key) {
            *at = None;
        }
        self.ready_bytes += job.written.bytes();
        self.ready_since.get_or_insert_with(Instant::now);
        let ops = job.ops.into_iter().flatten().collect();
        let Job { key, sequence, newest, complete, written, fresh, .. } = job;
        self.ready.push(Work { key, sequence, newest, ops, complete, written, fresh });
    }

    /// Gives a key up for this pass. What arrived for it is left on the disk if the same is begun again.
    fn abandon(&mut self, id: u64, again: bool) {
        let Some(job) = self.jobs.remove(&id) else { return };
        self.active.remove(&job.key);
        let unmoved: BTreeSet<Key> =
            job.ops.iter().flatten().filter_map(Op::moves_from).cloned().collect();
        for from in &unmoved {
            self.active.remove(from);
        }
        self.keep(unmoved);
        if job.open_files != 0 {
            self.files.cancel(id, again);
        }
    }

    /// Files that were to move did not.
    fn keep(&mut self, unmoved: BTreeSet<Key>) {
        let room = MAX_KEPT.saturating_sub(self.kept.len());
        self.kept.extend(unmoved.into_iter().take(room));
    }

    fn hand_on(&mut self) -> Result<bool, Ended> {
        if self.ready.is_empty() {
            return Ok(false);
        }
        // The engine may be busy for a while.
        self.files.ask();
        (self.ready_bytes, self.ready_since) = (0, None);
        self.handed_on += 1;
        self.batches.send(mem::take(&mut self.ready)).map_err(|_| Ended)?;
        Ok(true)
    }

    /// The store could not be read. Everything that was begun is begun again later.
    fn on_store_error(&mut self, error: &StoreError) {
        self.progress.fail(error.to_string());
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            self.abandon(job, true);
        }
        self.extra.clear();
        self.left = true;
        self.end_pass();
        self.leave();
    }
}
