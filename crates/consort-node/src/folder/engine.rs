//! The thread that decides about one linked directory: what a change in it means, and what may be put in place.
//!
//! It alone turns looks at the directory into writes, and staged files into entries, one after the other. So it never
//! meets an entry that is half put in place, and nothing is overwritten that was not taken in before: whatever stands
//! at a path has to be what the path's record says, or the path is looked at first.
//!
//! The scan finds the truth; the watcher only says where to look. Reading files is left to the [`Indexer`], getting
//! content to the [`Stager`]; how entries are swapped safely stands in `place.rs`.

mod commits;
mod deletions;
mod look;
mod recognize;
mod scan;
mod syncer;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::model::merge::Saw;
use consort_core::store::{LocalWrite, StoreError};
use consort_core::{Attributes, Content, Key};
use consort_store::DiskView;
use crossbeam_channel::{Receiver, after, never, select};

use self::commits::Commits;
use self::deletions::Deletions;
use self::look::{Dirty, Indexing, MAX_DIRTY, QUIET, Refused};
pub(super) use self::recognize::Unrecorded;
use super::apply::Stager;
use super::context::{Inbox, Input, LinkContext, OnFlushed};
use super::ignores::IGNORE_FILE;
use super::index::{Cut, Indexer};
use super::status::{Progress, Trouble};
use super::{CookieName, Ignores, Journal, PRIVATE_DIR, Root, WatchEvent, Watcher};

/// A directory that cannot be watched in full is scanned so often.
const RESCAN_EVERY: Duration = Duration::from_secs(60);

/// Why the engine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// It was told to.
    Stopped,
    /// The directory is not there any more.
    RootGone,
    /// The ignore patterns are others now.
    IgnoresChanged,
}

/// Somebody waits for everything that was changed so far to be taken in.
struct Flush {
    /// Comes back when all events of before have come.
    cookie: Option<CookieName>,
    /// Everything that had changed before is taken in, and durable with the transactions before this.
    upto: Option<u64>,
    done: OnFlushed,
}

impl Flush {
    /// All that had changed before is known to have, and may not be on its way to the store yet.
    fn is_to_submit(&self) -> bool {
        self.cookie.is_none() && self.upto.is_none()
    }
}

pub(super) struct Engine<'c> {
    pub(super) context: &'c LinkContext,
    pub(super) root: Arc<Root>,
    pub(super) progress: Arc<Progress>,
    pub(super) stager: Stager,
    ignores: Ignores,
    watcher: Option<Watcher>,
    events: Receiver<WatchEvent>,
    indexer: Indexer,
    inbox: &'c Inbox,
    commits: Commits,
    dirty: BTreeMap<Key, Dirty>,
    /// Counts the flushes, from 1: what had changed before the last one began is what it waits for.
    round: u64,
    /// Being read by a worker.
    indexing: HashMap<Key, Indexing>,
    refused: Refused,
    deletions: Deletions,
    /// The store as whoever ran before left it, until the first scan has ended.
    left: &'c mut Option<DiskView>,
    /// What may be in place without being recorded, until that is durable or it was found to be something else.
    pub(super) unrecorded: BTreeMap<Key, Vec<Unrecorded>>,
    /// The notes of that.
    pub(super) journal: Journal,
    /// What is to be scanned: everything, or what is at and beneath a path. In the order of events: where a directory was is
    /// looked at before where it is, so that what is found there can be known to have moved.
    scans: VecDeque<Option<Key>>,
    scanning: bool,
    /// How many entries the watcher found at first.
    listed: u64,
    rescan_at: Option<Instant>,
    flushes: Vec<Flush>,
    exit: Option<Exit>,
    buffer: Cut,
}

impl<'c> Engine<'c> {
    /// Prepares everything for a directory that is held open. The first scan comes with [`run`](Self::run).
    pub(super) fn new(
        context: &'c LinkContext,
        root: Arc<Root>,
        ignores: Ignores,
        progress: Arc<Progress>,
        inbox: &'c Inbox,
        flushes: &mut Vec<OnFlushed>,
        left: &'c mut Option<DiskView>,
    ) -> std::io::Result<Self> {
        let (journal, placing) = root.left_placing().map_err(|error| {
            let text = format!("the notes in {PRIVATE_DIR}/tmp cannot be read: {error}");
            std::io::Error::new(error.kind(), text)
        })?;
        progress.begin_scan(None);
        let (watcher, events) = match Watcher::start(&root, ignores.clone()) {
            Ok((watcher, events)) => {
                progress.set_trouble("watch", None);
                (Some(watcher), events)
            }
            Err(error) => {
                let text = format!("{error}; scanning every {} s instead", RESCAN_EVERY.as_secs());
                progress.set_trouble("watch", Some(Trouble::Degraded(text)));
                (None, never())
            }
        };
        // If there is something to ask about, it is found again.
        progress.set_trouble("deletions", None);
        let listed = watcher.as_ref().map_or(0, Watcher::listed);
        let shared = root.shared_file_system();
        progress.set_trouble(
            "shared",
            shared.map(|kind| {
                let every = RESCAN_EVERY.as_secs();
                Trouble::Degraded(format!(
                    "the directory is on {kind}: what is changed there from elsewhere is found by scanning, every \
                     {every} s; link a directory on a local disk if that is too slow"
                ))
            }),
        );
        let unwatched = watcher.is_none() || shared.is_some();
        let rescan_at = unwatched.then(|| Instant::now() + RESCAN_EVERY);
        let (store, dataset) = (&context.store, context.dataset);
        let indexer = Indexer::start(&root, store, dataset, context.workers)?;
        let commits = Commits::start(&root, store)?;
        // If the store cannot be read, the first scan says so.
        let records = store.view(dataset).map_or(0, |view| view.record_count());
        let stager =
            Stager::start(context, Arc::clone(&root), ignores.clone(), Arc::clone(&progress))?;
        // The first scan is what those wait for who came while no engine ran.
        let flushes =
            flushes.drain(..).map(|done| Flush { cookie: None, upto: None, done }).collect();
        let mut engine = Self {
            context,
            root,
            progress,
            stager,
            ignores,
            watcher,
            events,
            indexer,
            inbox,
            commits,
            dirty: BTreeMap::new(),
            round: 1,
            indexing: HashMap::new(),
            refused: Refused::default(),
            deletions: Deletions::new(records),
            left,
            unrecorded: BTreeMap::new(),
            journal,
            scans: VecDeque::from([None]),
            scanning: false,
            listed,
            rescan_at,
            flushes,
            exit: None,
            buffer: Cut::default(),
        };
        engine.may_be_unrecorded(placing);
        Ok(engine)
    }

    /// Scans, then does whatever is to do until there is a reason to end. Those who still wait for a flush are given
    /// back.
    pub(super) fn run(mut self) -> (Exit, Vec<OnFlushed>) {
        // Keys that are not pending may have to appear.
        let mut everything = self.context.read_only
            || !self.ignores.are_remembered(&self.context.store, self.context.dataset);
        loop {
            if let Some(exit) = self.exit {
                match self.settle_commits() {
                    Ok(()) => self.forget_unrecorded(),
                    Err(error) => self.progress.fail(error.to_string()),
                }
                let flushes = std::mem::take(&mut self.flushes);
                return (exit, flushes.into_iter().map(|flush| flush.done).collect());
            }
            let outcome = match self.scans.pop_front() {
                Some(start) => {
                    let first = start.is_none();
                    self.scan(start.as_ref()).inspect(|()| {
                        if first && std::mem::take(&mut everything) {
                            self.stager.wake_for_everything();
                        } else if first {
                            self.stager.wake();
                        }
                    })
                }
                None => self.serve(true),
            };
            if let Err(error) = outcome {
                self.progress.fail(error.to_string());
                self.wait_for_stop();
            }
        }
    }

    fn wait_for_stop(&mut self) {
        while let Ok(input) = self.inbox.receiver.recv() {
            if matches!(input, Input::Stop) {
                break;
            }
        }
        self.exit = Some(Exit::Stopped);
    }

    // ---- Whatever comes ----

    /// Handles everything that has come; with `wait`, waits for more if there was nothing.
    fn serve(&mut self, wait: bool) -> Result<(), StoreError> {
        let mut busy = false;
        while let Ok(result) = self.commits.results.try_recv() {
            self.on_committed(result)?;
            busy = true;
        }
        while let Ok(input) = self.inbox.receiver.try_recv() {
            self.on_input(input);
            busy = true;
        }
        while self.dirty.len() < MAX_DIRTY
            && let Ok(event) = self.events.try_recv()
        {
            self.on_watch(event);
            busy = true;
        }
        while let Ok(indexed) = self.indexer.results().try_recv() {
            self.on_indexed(indexed)?;
            busy = true;
        }
        busy |= self.look_at_dirty()?;
        if !self.scanning
            && let Ok(batch) = self.stager.batches().try_recv()
        {
            self.settle_commits()?;
            self.put_in_place(batch)?;
            busy = true;
        }
        if !busy {
            busy |= self.submit();
            busy |= self.believe_deletions()?;
            busy |= self.record_refreshed(self.dirty.is_empty() && self.indexing.is_empty());
            if self.is_at_rest() {
                self.note_rest()?;
                if self.progress.lost_sight() {
                    self.rescan();
                }
            }
        } else {
            self.record_refreshed(false);
        }
        self.forget_unrecorded();
        self.answer_flushes()?;
        self.progress.set_unsettled(self.unsettled());
        if wait && !busy && self.exit.is_none() && self.scans.is_empty() {
            self.wait()
        } else {
            Ok(())
        }
    }

    /// What is known to have changed and is not in the store, at least.
    fn unsettled(&self) -> u64 {
        let looks = self.dirty.len() + self.indexing.len() + self.scans.len();
        (looks + self.deletions.len() + self.commits.len()) as u64
    }

    fn wait(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let dirty = self.dirty.values().map(|dirty| dirty.due).min();
        let deletions = self.deletions.due().filter(|_| self.indexing.is_empty());
        let others = [deletions, self.commits.refresh_at(), self.rescan_at];
        let next = others.into_iter().flatten().chain(dirty).min();
        let timer = next.map_or(never(), |at| after(at.saturating_duration_since(now)));
        select! {
            recv(self.commits.results) -> result => self.on_committed(result.unwrap_or_else(|_| unreachable!("we hold a sender")))?,
            recv(self.inbox.receiver) -> input => match input {
                Ok(input) => self.on_input(input),
                Err(_) => self.exit = Some(Exit::Stopped),
            },
            recv(self.events) -> event => match event {
                Ok(event) => self.on_watch(event),
                Err(_) => self.on_watcher_end(),
            },
            recv(self.indexer.results()) -> indexed => {
                if let Ok(indexed) = indexed {
                    self.on_indexed(indexed)?;
                }
            }
            recv(self.stager.batches()) -> batch => {
                if let Ok(batch) = batch {
                    self.settle_commits()?;
                    self.put_in_place(batch)?;
                }
            }
            recv(timer) -> _ => {
                if self.rescan_at.is_some_and(|at| at <= Instant::now()) {
                    self.rescan_at = Some(Instant::now() + RESCAN_EVERY);
                    self.rescan();
                }
            }
        }
        Ok(())
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Wake => {
                self.inbox.on_wake();
                self.stager.wake();
            }
            Input::Flush(done) => {
                // Where not everything is watched, no event tells that all was seen.
                let watcher = self.watcher.as_ref().filter(|_| self.rescan_at.is_none());
                let cookie = watcher.and_then(|watcher| watcher.cookie().ok());
                if cookie.is_none() {
                    self.round += 1;
                    self.rescan();
                }
                self.flushes.push(Flush { cookie, upto: None, done });
            }
            Input::AllowMassDelete => {
                self.deletions.allow();
            }
            Input::Stop => self.exit = Some(Exit::Stopped),
        }
    }

    fn on_watch(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Changed { key } => {
                self.check_ignores(&key);
                self.mark(&key, Duration::ZERO);
            }
            WatchEvent::Writing { key } => {
                self.check_ignores(&key);
                // What was put in place just now looks like a file that somebody begins to write.
                if !self.is_as_recorded(&key) {
                    self.mark(&key, QUIET);
                }
            }
            WatchEvent::Unfit { path, problem } => self.progress.set_problem(&path, problem),
            WatchEvent::Subtree { key } => {
                let start = Key::new(key).ok();
                if !self.scans.contains(&start) {
                    self.scans.push_back(start);
                }
            }
            WatchEvent::Overflow => {
                let text = "more changed at once than could be followed; rescanning".to_owned();
                self.progress.set_trouble("overflow", Some(Trouble::Degraded(text)));
                self.rescan();
            }
            WatchEvent::Complete => {
                self.progress.set_trouble("watch", None);
                self.rescan_at =
                    self.rescan_at.filter(|_| self.root.shared_file_system().is_some());
            }
            WatchEvent::Exhausted { watched, reason } => {
                let text = format!(
                    "not all directories can be watched, only {watched}: {reason}; scanning every {} s meanwhile",
                    RESCAN_EVERY.as_secs()
                );
                self.progress.set_trouble("watch", Some(Trouble::Degraded(text)));
                self.rescan_at.get_or_insert(Instant::now() + RESCAN_EVERY);
            }
            WatchEvent::RootGone => self.end(Exit::RootGone),
            WatchEvent::Cookie { name } => {
                for flush in &mut self.flushes {
                    if flush.cookie.as_ref() == Some(&name) {
                        flush.cookie = None;
                        self.round += 1;
                    }
                }
            }
        }
    }

    /// Ends this engine, unless it ends already: whoever told it to waits for that, and does not say it twice.
    fn end(&mut self, exit: Exit) {
        self.exit.get_or_insert(exit);
    }

    fn on_watcher_end(&mut self) {
        self.watcher = None;
        self.events = never();
        self.end(Exit::RootGone);
    }

    /// Ends this engine if the ignore patterns are others now.
    pub(super) fn check_ignores(&mut self, key: &str) {
        if key == IGNORE_FILE && self.ignores.changed(&self.root).unwrap_or(true) {
            self.end(Exit::IgnoresChanged);
        }
    }

    fn is_ignored(&self, key: &str, is_dir: bool) -> bool {
        self.ignores.is_ignored(key, is_dir)
    }

    /// Scans everything, soon.
    pub(super) fn rescan(&mut self) {
        self.scans = VecDeque::from([None]);
    }

    fn is_flushing(&self) -> bool {
        self.flushes.iter().any(|flush| flush.cookie.is_none())
    }

    /// Whether everything that was found is taken in, up to what somebody is asked about.
    fn is_at_rest(&self) -> bool {
        self.scans.is_empty()
            && !self.scanning
            && self.indexing.is_empty()
            && self.commits.are_done()
            && self.dirty.values().all(Dirty::is_taken_in)
            && self.deletions.are_settled()
    }

    /// What may be in place and not recorded was looked at, and what of it was found is durable: whatever comes there now is
    /// somebody's.
    fn forget_unrecorded(&mut self) {
        let is_looked_at = |path: &Key| {
            self.dirty.get(path).is_none_or(Dirty::is_taken_in) && !self.indexing.contains_key(path)
        };
        if self.scans.is_empty()
            && !self.scanning
            && self.commits.are_done()
            && self.unrecorded.keys().all(is_looked_at)
        {
            self.unrecorded.clear();
            std::mem::take(&mut self.journal).forget();
        }
    }

    /// Answers those who wait for what had changed before, whatever changes all the time since.
    fn answer_flushes(&mut self) -> Result<(), StoreError> {
        if !self.is_flushing() {
            return Ok(());
        }
        let is_taken_in = self.scans.is_empty()
            && !self.scanning
            && self.dirty.values().all(|dirty| dirty.is_known(self.round))
            && self.indexing.values().all(|indexing| indexing.is_known(self.round))
            && self.deletions.are_settled();
        if is_taken_in && self.flushes.iter().any(Flush::is_to_submit) {
            self.submit();
            let next = self.commits.next();
            for flush in self.flushes.iter_mut().filter(|flush| flush.is_to_submit()) {
                flush.upto = Some(next);
            }
        }
        let (answered, waiting) = std::mem::take(&mut self.flushes)
            .into_iter()
            .partition(|flush| flush.upto.is_some_and(|upto| self.commits.are_done_before(upto)));
        self.flushes = waiting;
        let answered: Vec<Flush> = answered;
        if !answered.is_empty() && self.commits.are_done() {
            self.note_rest()?;
        }
        for flush in answered {
            (flush.done)();
        }
        Ok(())
    }

    pub(super) fn view(&self) -> Result<consort_store::DiskView, StoreError> {
        self.context.store.view(self.context.dataset)
    }
}

fn deletion(key: Key, saw: Saw) -> LocalWrite {
    LocalWrite { key, saw, content: Content::Deleted, attributes: Attributes::default() }
}
