//! The thread that decides about one linked directory: what a change in it means, and what may be put in place.
//!
//! It alone turns looks at the directory into writes, and staged files into entries, one after the other. So it never
//! meets an entry that is half put in place, and nothing is overwritten that was not taken in before: whatever stands
//! at a path has to be what the path's record says, or the path is looked at first.
//!
//! The scan finds the truth; the watcher only says where to look. Reading files is left to the [`Indexer`], getting
//! content to the [`Stager`]; how entries are swapped safely stands in `place.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use consort_core::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS};
use consort_core::model::merge::Saw;
use consort_core::store::{Applied, LocalWrite, StoreError};
use consort_core::{Attributes, ChunkHash, Content, Key, Kind, WallTime};
use consort_store::{Basis, Body, DiskStore, Place, Record, RecordChange, Transaction};
use crossbeam_channel::{Receiver, Sender, after, never, select, unbounded};

use super::apply::Stager;
use super::index::{self, IndexError, Indexed, Indexer, MAX_QUEUED_FILES};
use super::link::{Input, LinkContext};
use super::status::{Progress, Trouble};
use super::{
    CookieName, EntryKind, Ignores, Meta, Root, Walk, WalkEntry, WalkProblem, WalkProblemKind,
    WatchEvent, Watcher,
};

/// Paths that wait to be looked at. Beyond that a scan costs less.
const MAX_DIRTY: usize = 100_000;
/// Entries of a scan between two looks at everything else.
const SCAN_SLICE: usize = 512;
/// Records that are read from the store at once.
const RECORDS_PAGE: usize = 1024;
/// A file that is open for writing is looked at when it has been quiet for so long.
const QUIET: Duration = Duration::from_millis(200);
/// How often a file that keeps changing is tried before it is reported.
const TRIES_BEFORE_REPORT: u32 = 25;
/// How soon a file whose times would not show a change is read again.
const RACY_AGAIN_AFTER: Duration = Duration::from_millis(30);
/// Files up to this size are read at once if nothing else is to do: a change of them is on its way sooner.
const READ_AT_ONCE: u64 = 256 << 10;
/// So many deletions at a time are believed at once; of more, all have to be seen before the first is believed.
const FEW_DELETIONS: usize = 16;
/// More deletions than few are believed when no other was seen for so long.
const DELETIONS_SETTLE: Duration = Duration::from_millis(100);
/// Deleting more than half of a directory of at least so many entries asks first.
const MASS_DELETE_FROM: u64 = 32;
/// Transactions on their way to the disk.
const MAX_OUTSTANDING: usize = 4;
/// Room that is left in a commit for what its bytes are estimated too low.
const COMMIT_BYTES: usize = MAX_COMMIT_BYTES / 2;
/// A directory that cannot be watched in full is scanned so often.
const RESCAN_EVERY: Duration = Duration::from_secs(60);
/// How soon a paused directory is looked at again.
const PAUSED_LOOK: Duration = Duration::from_secs(1);
/// How soon records whose times have become trustworthy are written.
const CLEAR_RACY_AFTER: Duration = Duration::from_secs(1);

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

#[derive(Clone, Copy, Debug)]
struct Dirty {
    due: Instant,
    tries: u32,
}

/// What is gathered for one transaction.
#[derive(Debug, Default)]
struct Gathered {
    writes: Vec<LocalWrite>,
    records: Vec<RecordChange>,
    places: Vec<(ChunkHash, Place)>,
    bytes: usize,
}

/// Somebody waits for everything that was changed so far to be taken in.
struct Flush {
    cookie: Option<CookieName>,
    done: Box<dyn FnOnce() + Send>,
}

pub(super) struct Engine<'c> {
    pub(super) context: &'c LinkContext,
    pub(super) root: Arc<Root>,
    pub(super) progress: Arc<Progress>,
    pub(super) stager: Stager,
    ignores: Arc<RwLock<Ignores>>,
    watcher: Option<Watcher>,
    events: Receiver<WatchEvent>,
    indexer: Indexer,
    inputs: &'c Receiver<Input>,
    committed: (Sender<Result<Applied, StoreError>>, Receiver<Result<Applied, StoreError>>),

    dirty: BTreeMap<Key, Dirty>,
    /// Being read by a worker; true if it changed since.
    indexing: HashMap<Key, bool>,
    scans: Vec<Option<Key>>,
    scanning: bool,
    gathered: Gathered,
    /// Paths whose records are being changed by what is gathered or on its way to the disk.
    touched: HashSet<Key>,
    outstanding: usize,
    deleted: BTreeSet<Key>,
    last_deletion: Instant,
    mass_delete_allowed: bool,
    mass_delete_paused: Option<Instant>,
    /// Files that were found unchanged after their racy time, to be recorded so.
    settled_racy: BTreeMap<Key, Record>,
    flushes: Vec<Flush>,
    rescan_at: Option<Instant>,
    exit: Option<Exit>,
    buffer: Vec<u8>,
}

impl<'c> Engine<'c> {
    /// Prepares everything for a directory that is held open. The first scan comes with [`run`](Self::run).
    pub(super) fn new(
        context: &'c LinkContext,
        root: Arc<Root>,
        ignores: Ignores,
        progress: Arc<Progress>,
        inputs: &'c Receiver<Input>,
    ) -> std::io::Result<Self> {
        for problem in ignores.problems() {
            let text = format!("line {} is not a pattern: {}", problem.line, problem.message);
            progress.set_problem(".consortignore", Some(text));
        }
        let (watcher, events) = match Watcher::start(&root, ignores.clone()) {
            Ok((watcher, events)) => (Some(watcher), events),
            Err(error) => {
                let text = format!("{error}; scanning every {} s instead", RESCAN_EVERY.as_secs());
                progress.set_trouble("watch", Some(Trouble::Degraded(text)));
                (None, never())
            }
        };
        let rescan_at = watcher.is_none().then(|| Instant::now() + RESCAN_EVERY);
        let ignores = Arc::new(RwLock::new(ignores));
        let (store, dataset) = (&context.store, context.dataset);
        let indexer = Indexer::start(&root, store, dataset, context.workers)?;
        let stager = Stager::start(
            dataset,
            Arc::clone(&root),
            Arc::clone(&ignores),
            store.clone(),
            Arc::clone(&context.contents),
            Arc::clone(&progress),
        )?;
        Ok(Self {
            context,
            root,
            progress,
            stager,
            ignores,
            watcher,
            events,
            indexer,
            inputs,
            committed: unbounded(),
            dirty: BTreeMap::new(),
            indexing: HashMap::new(),
            scans: vec![None],
            scanning: false,
            gathered: Gathered::default(),
            touched: HashSet::new(),
            outstanding: 0,
            deleted: BTreeSet::new(),
            last_deletion: Instant::now(),
            mass_delete_allowed: false,
            mass_delete_paused: None,
            settled_racy: BTreeMap::new(),
            flushes: Vec::new(),
            rescan_at,
            exit: None,
            buffer: Vec::new(),
        })
    }

    /// Scans, then does whatever is to do until there is a reason to end.
    pub(super) fn run(mut self, everything: bool) -> Exit {
        loop {
            if let Some(exit) = self.exit {
                self.submit();
                while self.outstanding != 0 {
                    self.await_commit();
                }
                return exit;
            }
            let outcome = match self.scans.pop() {
                Some(start) => {
                    let first = start.is_none();
                    self.scan(start.as_ref()).inspect(|()| {
                        if first && everything {
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
        while let Ok(input) = self.inputs.recv() {
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
        while let Ok(result) = self.committed.1.try_recv() {
            self.on_committed(result)?;
            busy = true;
        }
        while let Ok(input) = self.inputs.try_recv() {
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
            busy |= self.settle_racy();
            self.answer_flushes();
        }
        self.progress.set_unsettled((self.dirty.len() + self.indexing.len()) as u64);
        if wait && !busy && self.exit.is_none() && self.scans.is_empty() {
            self.wait()
        } else {
            Ok(())
        }
    }

    fn wait(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let dirty = self.dirty.values().map(|dirty| dirty.due).min();
        let deletions = (!self.deleted.is_empty()).then(|| match self.mass_delete_paused {
            Some(since) => since + PAUSED_LOOK,
            None => self.last_deletion + DELETIONS_SETTLE,
        });
        let racy = (!self.settled_racy.is_empty()).then(|| now + CLEAR_RACY_AFTER);
        let next = [dirty, deletions, racy, self.rescan_at].into_iter().flatten().min();
        let timer = next.map_or(never(), |at| after(at.saturating_duration_since(now)));
        select! {
            recv(self.committed.1) -> result => self.on_committed(result.unwrap_or_else(|_| unreachable!("we hold a sender")))?,
            recv(self.inputs) -> input => match input {
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
                    self.scans = vec![None];
                }
            }
        }
        Ok(())
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::Wake => self.stager.wake(),
            Input::Flush(done) => {
                let cookie = self.watcher.as_ref().and_then(|watcher| watcher.cookie().ok());
                if cookie.is_none() && !self.scans.contains(&None) {
                    self.scans.push(None);
                }
                self.flushes.push(Flush { cookie, done });
            }
            Input::AllowMassDelete => {
                self.mass_delete_allowed = true;
                self.mass_delete_paused = None;
            }
            Input::Stop => self.exit = Some(Exit::Stopped),
        }
    }

    fn on_watch(&mut self, event: WatchEvent) {
        match event {
            WatchEvent::Changed { key } => {
                if key == super::ignores::IGNORE_FILE && self.ignores_changed() {
                    self.exit = Some(Exit::IgnoresChanged);
                }
                self.mark(&key, Duration::ZERO);
            }
            WatchEvent::Writing { key } => self.mark(&key, QUIET),
            WatchEvent::Subtree { key } => {
                let start = Key::new(key).ok();
                if !self.scans.contains(&start) {
                    self.scans.push(start);
                }
            }
            WatchEvent::Overflow => {
                let text = "more changed at once than could be followed; rescanning".to_owned();
                self.progress.set_trouble("overflow", Some(Trouble::Degraded(text)));
                self.scans = vec![None];
            }
            WatchEvent::Exhausted { watched, .. } => {
                let text = format!(
                    "only {watched} directories can be watched; raise fs.inotify.max_user_watches; \
                     scanning every {} s meanwhile",
                    RESCAN_EVERY.as_secs()
                );
                self.progress.set_trouble("watch", Some(Trouble::Degraded(text)));
                self.rescan_at.get_or_insert(Instant::now() + RESCAN_EVERY);
            }
            WatchEvent::RootGone => self.exit = Some(Exit::RootGone),
            WatchEvent::Cookie { name } => {
                for flush in &mut self.flushes {
                    if flush.cookie.as_ref() == Some(&name) {
                        flush.cookie = None;
                    }
                }
            }
        }
    }

    fn on_watcher_end(&mut self) {
        self.watcher = None;
        self.events = never();
        self.exit.get_or_insert(Exit::RootGone);
    }

    fn ignores_changed(&self) -> bool {
        let ignores = self.ignores.read().unwrap_or_else(PoisonError::into_inner);
        ignores.changed(&self.root).unwrap_or(true)
    }

    fn is_ignored(&self, key: &str, is_dir: bool) -> bool {
        self.ignores.read().unwrap_or_else(PoisonError::into_inner).is_ignored(key, is_dir)
    }

    fn mark(&mut self, key: &str, delay: Duration) {
        let Ok(key) = Key::new(key) else { return };
        if MAX_DIRTY <= self.dirty.len() {
            self.dirty.clear();
            self.scans = vec![None];
            return;
        }
        let due = Instant::now() + delay;
        self.dirty.insert(key, Dirty { due, tries: 0 });
    }

    // ---- Looking ----

    /// Looks at the paths whose time has come. While somebody waits, that is now.
    fn look_at_dirty(&mut self) -> Result<bool, StoreError> {
        let now = Instant::now();
        let flushing = self.flushes.iter().any(|flush| flush.cookie.is_none());
        let due = |dirty: &Dirty| dirty.due <= now || (flushing && dirty.tries == 0);
        let paths: Vec<(Key, u32)> = self
            .dirty
            .iter()
            .filter(|(_, dirty)| due(dirty))
            .map(|(path, dirty)| (path.clone(), dirty.tries))
            .take(MAX_QUEUED_FILES)
            .collect();
        let alone = paths.len() == 1 && self.indexing.is_empty();
        let busy = !paths.is_empty();
        for (path, tries) in paths {
            self.dirty.remove(&path);
            if let Some(again) = self.indexing.get_mut(&path) {
                *again = true;
                continue;
            }
            if self.touched.contains(&path) {
                self.settle_commits()?;
            }
            match self.root.stat(&path) {
                Ok(Some(meta)) if !self.is_ignored(&path, meta.kind == EntryKind::Directory) => {
                    let record = self.view()?.record(&path)?;
                    self.compare(path, meta, record, alone, tries)?;
                }
                Ok(Some(_)) => {}
                Ok(None) => self.on_missing(path)?,
                Err(error) => self.progress.set_problem(&path, Some(error.to_string())),
            }
        }
        Ok(busy)
    }

    fn on_missing(&mut self, path: Key) -> Result<(), StoreError> {
        self.progress.set_problem(&path, None);
        if self.view()?.record(&path)?.is_some() && !self.is_ignored(&path, false) {
            self.deleted.insert(path);
            self.last_deletion = Instant::now();
        }
        Ok(())
    }

    /// Compares what stands at a path with what is recorded of it.
    fn compare(
        &mut self,
        path: Key,
        meta: Meta,
        record: Option<Record>,
        alone: bool,
        tries: u32,
    ) -> Result<(), StoreError> {
        self.deleted.remove(&path);
        if let Some(record) = &record {
            let implicit = record.implicit && meta.kind == EntryKind::Directory;
            let same = meta.same_file_state(&recorded_meta(record));
            if implicit || (same && !record.racy) {
                return Ok(());
            }
        }
        if self.context.read_only {
            let text =
                "it was changed here, but the link is read-only; move it away, and it is restored";
            self.progress.set_problem(&path, Some(text.to_owned()));
            return Ok(());
        }
        match meta.kind {
            EntryKind::Other => {
                let text = "it is not a file, directory or symlink; it is left alone";
                self.progress.set_problem(&path, Some(text.to_owned()));
                Ok(())
            }
            EntryKind::Directory => {
                let content = Content::Inline(Box::default());
                self.take_in(path, meta, content, Vec::new(), false)
            }
            EntryKind::File | EntryKind::Symlink if alone && meta.size <= READ_AT_ONCE => {
                let mut buffer = std::mem::take(&mut self.buffer);
                let (store, dataset) = (&self.context.store, self.context.dataset);
                let indexed = index::index(&self.root, store, dataset, path, meta, &mut buffer);
                self.buffer = buffer;
                self.on_read(indexed, tries)
            }
            EntryKind::File | EntryKind::Symlink => {
                while MAX_QUEUED_FILES <= self.indexing.len() {
                    let Ok(indexed) = self.indexer.results().recv() else { return Ok(()) };
                    self.on_indexed(indexed)?;
                }
                self.indexing.insert(path.clone(), false);
                self.indexer.submit(path, meta);
                Ok(())
            }
        }
    }

    fn on_indexed(&mut self, indexed: Indexed) -> Result<(), StoreError> {
        if self.indexing.remove(&indexed.path) == Some(true) {
            self.mark(&indexed.path, Duration::ZERO);
            return Ok(());
        }
        self.on_read(indexed, 0)
    }

    fn on_read(&mut self, indexed: Indexed, tries: u32) -> Result<(), StoreError> {
        let Indexed { path, meta, outcome, places, racy } = indexed;
        match outcome {
            Ok(content) => {
                self.progress.set_problem(&path, None);
                // What was put in place since it was read is not what was read.
                match self.root.stat(&path) {
                    Ok(Some(now)) if now.same_file_state(&meta) => {}
                    _ => {
                        self.mark(&path, Duration::ZERO);
                        return Ok(());
                    }
                }
                if racy {
                    self.mark(&path, RACY_AGAIN_AFTER);
                }
                self.take_in(path, meta, content, places, racy)
            }
            Err(IndexError::Unstable) => {
                if tries == TRIES_BEFORE_REPORT {
                    let text = "it keeps changing; it is taken in when it has come to rest";
                    self.progress.set_problem(&path, Some(text.to_owned()));
                }
                let due = Instant::now() + QUIET;
                self.dirty.insert(path, Dirty { due, tries: tries + 1 });
                Ok(())
            }
            Err(IndexError::Unfit(reason)) => {
                self.progress.set_problem(&path, Some(reason));
                Ok(())
            }
            Err(IndexError::Unreadable(error)) => {
                let text = format!("it cannot be read ({error}); check its permissions");
                self.progress.set_problem(&path, Some(text));
                Ok(())
            }
            Err(IndexError::Store(error)) => Err(error),
        }
    }

    /// Makes what was found at a path a write, or only a newer record if it is what was recorded.
    fn take_in(
        &mut self,
        path: Key,
        meta: Meta,
        content: Content,
        places: Vec<(ChunkHash, Place)>,
        racy: bool,
    ) -> Result<(), StoreError> {
        if self.touched.contains(&path) {
            self.settle_commits()?;
        }
        let before = self.view()?.record(&path)?;
        let found = record_of(&meta, &content, racy);
        if let Some(before) = &before
            && before.content == found.content
            && before.kind == found.kind
            && before.mode == found.mode
            && before.modified_ns == found.modified_ns
            && !before.implicit
        {
            let record = Record { dot: before.dot, key: before.key.clone(), ..found };
            if record != *before {
                self.settled_racy.insert(path, record);
            }
            return Ok(());
        }
        self.settled_racy.remove(&path);
        let attributes = Attributes {
            kind: found.kind,
            mode: found.mode,
            modified_ns: if found.kind == Kind::Directory { 0 } else { found.modified_ns },
            ..Attributes::default()
        };
        let mut saw = Saw::Nothing;
        match &before {
            // A conflict copy that was edited is a file of its own from now on, and the loser is dealt with.
            Some(Record { key: Some(key), dot, .. }) => {
                let (key, saw) = (key.clone(), Saw::Version(*dot));
                self.gather_write(deletion(key, saw));
                self.progress.count_conflict(false);
            }
            Some(record) if !record.implicit => saw = Saw::Version(record.dot),
            _ => {}
        }
        let write = self.gather_write(LocalWrite { key: path.clone(), saw, content, attributes });
        self.gather_record(path, found, Basis::Write(write));
        self.gathered.places.extend(places);
        self.submit_if_full();
        Ok(())
    }

    // ---- Scanning ----

    /// Goes through the directory, or what is at and beneath `start`, side by side with the records.
    fn scan(&mut self, start: Option<&Key>) -> Result<(), StoreError> {
        if !self.root.is_present() {
            self.exit = Some(Exit::RootGone);
            return Ok(());
        }
        self.scanning = true;
        if start.is_none() {
            self.progress.set_scanning(true);
            self.progress.clear_problems();
        }
        let (root, ignores) = (
            Arc::clone(&self.root),
            self.ignores.read().unwrap_or_else(PoisonError::into_inner).clone(),
        );
        let mut records = Records::new(start);
        let mut unknown: Vec<String> = Vec::new();
        let mut walked = 0;
        for entry in Walk::new(&root, &ignores, start.map(Key::as_str)) {
            match entry {
                Ok(WalkEntry { key, meta }) => {
                    let Ok(key) = Key::new(key) else { continue };
                    let record = self.missing_before(&mut records, Some(&key), &unknown)?;
                    self.compare(key, meta, record, false, 0)?;
                }
                Err(problem) => self.on_walk_problem(problem, &mut unknown),
            }
            walked += 1;
            if walked % SCAN_SLICE == 0 {
                self.progress.add_scanned(SCAN_SLICE as u64);
                self.serve(false)?;
                if self.exit.is_some() {
                    break;
                }
            }
        }
        if self.exit.is_none() {
            self.missing_before(&mut records, None, &unknown)?;
        }
        self.progress.add_scanned((walked % SCAN_SLICE) as u64);
        self.scanning = false;
        if start.is_none() && self.exit.is_none() {
            self.progress.set_scanning(false);
            self.progress.set_conflicts(records.conflicts);
            self.progress.set_trouble("overflow", None);
        }
        Ok(())
    }

    /// Passes the records before `key` (all, if none): what they name was not found. Returns the record of `key`.
    fn missing_before(
        &mut self,
        records: &mut Records,
        key: Option<&Key>,
        unknown: &[String],
    ) -> Result<Option<Record>, StoreError> {
        loop {
            let Some((path, record)) = records.next_upto(&self.context.store, self.context, key)?
            else {
                return Ok(None);
            };
            if key == Some(&path) {
                return Ok(Some(record));
            }
            let is_unknown = unknown.iter().any(|top| {
                top.is_empty()
                    || path.as_str() == top
                    || path.strip_prefix(top.as_str()).is_some_and(|rest| rest.starts_with('/'))
            });
            // It may have appeared after the walk had passed it.
            if !is_unknown && matches!(self.root.stat(&path), Ok(None)) {
                self.on_missing(path)?;
            }
        }
    }

    fn on_walk_problem(&mut self, problem: WalkProblem, unknown: &mut Vec<String>) {
        if matches!(problem.kind, WalkProblemKind::Unreadable(_) | WalkProblemKind::OtherDevice) {
            unknown.push(problem.path.clone());
        }
        self.progress.set_problem(&problem.path, Some(problem.kind.to_string()));
    }

    // ---- Deletions ----

    /// Takes deletions in once it is clear that they are not half of a rename, and not a mistake.
    fn believe_deletions(&mut self) -> Result<bool, StoreError> {
        if self.deleted.is_empty() || self.scanning || !self.scans.is_empty() {
            return Ok(false);
        }
        let flushing = self.flushes.iter().any(|flush| flush.cookie.is_none());
        let settled = self.deleted.len() <= FEW_DELETIONS
            || flushing
            || DELETIONS_SETTLE <= self.last_deletion.elapsed();
        let paused = self.mass_delete_paused.is_some_and(|since| since.elapsed() < PAUSED_LOOK);
        if !settled || paused || !self.indexing.is_empty() {
            return Ok(false);
        }
        // What appears is taken in before what goes: a moved file finds its bytes at its new place.
        self.settle_commits()?;
        if !self.root.is_present() {
            self.exit = Some(Exit::RootGone);
            return Ok(true);
        }
        let root = Arc::clone(&self.root);
        self.deleted.retain(|path| matches!(root.stat(path), Ok(None)));
        let view = self.view()?;
        let (count, total) = (self.deleted.len() as u64, view.record_count());
        if MASS_DELETE_FROM <= count && total < 2 * count && !self.mass_delete_allowed {
            let text = format!(
                "{count} of {total} entries were deleted here; to delete them everywhere, run `consort link {} {} \
                 --allow-mass-delete`; to get them back, unlink the directory and link it again",
                self.context.name,
                self.context.dir.display()
            );
            self.progress.set_trouble("deletions", Some(Trouble::Paused(text)));
            self.mass_delete_paused = Some(Instant::now());
            return Ok(false);
        }
        self.progress.set_trouble("deletions", None);
        (self.mass_delete_allowed, self.mass_delete_paused) = (false, None);
        for path in std::mem::take(&mut self.deleted) {
            let Some(record) = view.record(&path)? else { continue };
            if self.context.read_only {
                let text =
                    "it was deleted here, but the link is read-only; link again to restore it";
                self.progress.set_problem(&path, Some(text.to_owned()));
                continue;
            }
            if record.key.is_some() {
                self.progress.count_conflict(false);
            }
            if !record.implicit {
                let key = record.key.unwrap_or_else(|| path.clone());
                self.gather_write(deletion(key, Saw::Version(record.dot)));
            }
            self.touched.insert(path.clone());
            self.gathered.records.push(RecordChange::Remove { path });
            self.submit_if_full();
        }
        self.submit();
        Ok(true)
    }

    // ---- Committing ----

    fn gather_write(&mut self, write: LocalWrite) -> usize {
        let content = match &write.content {
            Content::Inline(bytes) => bytes.len(),
            Content::Chunks(chunks) => chunks.len() * 36,
            Content::Tree { nodes, .. } => nodes.len() * 48,
            Content::Deleted => 0,
        };
        self.gathered.bytes += 256 + write.key.len() + content;
        self.gathered.writes.push(write);
        self.gathered.writes.len() - 1
    }

    fn gather_record(&mut self, path: Key, record: Record, version: Basis) {
        self.touched.insert(path.clone());
        self.gathered.records.push(RecordChange::Put { path, record, version });
    }

    fn submit_if_full(&mut self) {
        // One entry may need two writes.
        let writes = MAX_COMMIT_VERSIONS - 2 <= self.gathered.writes.len();
        if writes
            || COMMIT_BYTES <= self.gathered.bytes
            || MAX_COMMIT_VERSIONS <= self.gathered.records.len()
        {
            self.submit();
        }
    }

    /// Hands what is gathered to the store. False if there is nothing.
    fn submit(&mut self) -> bool {
        let Gathered { writes, records, places, .. } = std::mem::take(&mut self.gathered);
        if writes.is_empty() && records.is_empty() {
            return false;
        }
        while MAX_OUTSTANDING <= self.outstanding {
            self.await_commit();
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = WallTime(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        let body = if writes.is_empty() { Body::Nothing } else { Body::Local { writes, now } };
        let mut transaction = Transaction::new(self.context.dataset, body);
        (transaction.records, transaction.places) = (records, places);
        let done = self.committed.0.clone();
        self.outstanding += 1;
        self.context.store.submit(transaction, move |result| {
            // The engine may have ended meanwhile.
            let _ = done.send(result);
        });
        true
    }

    fn on_committed(&mut self, result: Result<Applied, StoreError>) -> Result<(), StoreError> {
        self.outstanding -= 1;
        if self.outstanding == 0 && self.gathered.records.is_empty() {
            self.touched.clear();
        }
        let applied = result?;
        if !applied.added.is_empty() {
            (self.context.on_written)();
            self.stager.wake();
        }
        Ok(())
    }

    fn await_commit(&mut self) {
        if let Ok(result) = self.committed.1.recv()
            && let Err(error) = self.on_committed(result)
        {
            self.progress.fail(error.to_string());
        }
    }

    /// Waits until everything that was gathered is durable, so that the records say what was found.
    pub(super) fn settle_commits(&mut self) -> Result<(), StoreError> {
        self.submit();
        while self.outstanding != 0 {
            let result =
                self.committed.1.recv().unwrap_or_else(|_| unreachable!("we hold a sender"));
            self.on_committed(result)?;
        }
        Ok(())
    }

    /// Records files as they are now that turned out to be what was recorded.
    fn settle_racy(&mut self) -> bool {
        if self.settled_racy.is_empty() || !self.dirty.is_empty() || !self.indexing.is_empty() {
            return false;
        }
        for (path, record) in std::mem::take(&mut self.settled_racy) {
            let basis = Basis::Dot(record.dot);
            self.gather_record(path, record, basis);
            self.submit_if_full();
        }
        self.submit()
    }

    fn answer_flushes(&mut self) {
        let at_rest = self.scans.is_empty()
            && !self.scanning
            && self.indexing.is_empty()
            && self.outstanding == 0
            && self.gathered.records.is_empty()
            && self.dirty.values().all(|dirty| dirty.tries != 0)
            && (self.deleted.is_empty() || self.mass_delete_paused.is_some());
        if !at_rest {
            return;
        }
        let (answered, waiting) =
            std::mem::take(&mut self.flushes).into_iter().partition(|flush| flush.cookie.is_none());
        self.flushes = waiting;
        let answered: Vec<Flush> = answered;
        for flush in answered {
            (flush.done)();
        }
    }

    pub(super) fn view(&self) -> Result<consort_store::DiskView, StoreError> {
        self.context.store.view(self.context.dataset)
    }

    /// Looks at a path soon, since it is not what it was taken for.
    pub(super) fn look_again(&mut self, path: &Key) {
        self.mark(path, Duration::ZERO);
    }

    /// Whether a path changed and was not taken in yet.
    pub(super) fn is_unsettled(&self, path: &Key) -> bool {
        self.dirty.get(path).is_some_and(|dirty| dirty.tries != 0 || dirty.due <= Instant::now())
            || self.indexing.contains_key(path)
            || self.deleted.contains(path)
    }
}

/// The records in key order, page by page, as of when each page is read.
struct Records {
    prefix: String,
    /// The record of the start itself comes before those beneath it.
    first: Option<Key>,
    after: Option<Key>,
    page: std::vec::IntoIter<(Key, Record)>,
    next: Option<(Key, Record)>,
    ended: bool,
    /// Conflict copies among those that were passed.
    conflicts: u64,
}

impl Records {
    fn new(start: Option<&Key>) -> Self {
        let prefix = start.map_or_else(String::new, |start| format!("{start}/"));
        let (after, next, page) = (None, None, Vec::new().into_iter());
        Self { prefix, first: start.cloned(), after, page, next, ended: false, conflicts: 0 }
    }

    /// The next record if it is not after `limit`.
    fn next_upto(
        &mut self,
        store: &DiskStore,
        context: &LinkContext,
        limit: Option<&Key>,
    ) -> Result<Option<(Key, Record)>, StoreError> {
        if let Some(first) = self.first.take()
            && let Some(record) = store.view(context.dataset)?.record(&first)?
        {
            self.next = Some((first, record));
        }
        if self.next.is_none() {
            self.next = self.page.next();
        }
        if self.next.is_none() && !self.ended {
            let view = store.view(context.dataset)?;
            let page = view.records(&self.prefix, self.after.as_ref(), RECORDS_PAGE)?;
            self.ended = page.len() < RECORDS_PAGE;
            self.after = page.last().map(|(path, _)| path.clone()).or(self.after.take());
            self.page = page.into_iter();
            self.next = self.page.next();
        }
        let within = |(path, _): &mut (Key, Record)| limit.is_none_or(|limit| &*path <= limit);
        let next = self.next.take_if(within);
        self.conflicts += u64::from(next.as_ref().is_some_and(|(_, record)| record.key.is_some()));
        Ok(next)
    }
}

fn deletion(key: Key, saw: Saw) -> LocalWrite {
    LocalWrite { key, saw, content: Content::Deleted, attributes: Attributes::default() }
}

/// What a record says of an entry, to be compared with a look at it.
pub(super) fn recorded_meta(record: &Record) -> Meta {
    Meta {
        kind: match record.kind {
            Kind::File => EntryKind::File,
            Kind::Directory => EntryKind::Directory,
            Kind::Symlink => EntryKind::Symlink,
        },
        size: record.size,
        mode: u32::from(record.mode),
        mtime_ns: record.modified_ns,
        ctime_ns: record.changed_ns,
        inode: record.inode,
        device: 0,
        blocks: 0,
    }
}

/// A look at an entry, to be recorded. Its version is filled in by the store.
pub(super) fn record_of(meta: &Meta, content: &Content, racy: bool) -> Record {
    Record {
        dot: consort_core::Dot::default(),
        key: None,
        kind: match meta.kind {
            EntryKind::Directory => Kind::Directory,
            EntryKind::Symlink => Kind::Symlink,
            EntryKind::File | EntryKind::Other => Kind::File,
        },
        size: meta.size,
        mode: u16::try_from(meta.mode & 0o777).expect("nine bits"),
        modified_ns: meta.mtime_ns,
        changed_ns: meta.ctime_ns,
        inode: meta.inode,
        content: content.id(),
        implicit: false,
        racy,
    }
}
