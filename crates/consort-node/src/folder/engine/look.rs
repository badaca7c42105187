//! Looking at single paths: when, what is found there compared with what is recorded, and what that makes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use consort_core::model::merge::Saw;
use consort_core::store::{LocalWrite, StoreError, View};
use consort_core::{Attributes, ChunkHash, ChunkRef, Content, Key, Kind};
use consort_store::{Basis, DiskView, Place, Record};
use crossbeam_channel::select;

use super::recognize::{
    Unrecorded, copy_of, has_copies, is_unrecorded, looks_recorded, unrecorded, with_declared,
};
use super::{Engine, deletion};
use crate::folder::context::Input;
use crate::folder::index::{self, IndexError, Indexed, MAX_QUEUED_FILES, Reading};
use crate::folder::project::{conflict_path, copied_key};
use crate::folder::record::{record_of, recorded_meta};
use crate::folder::{EntryKind, Meta, Placing};

/// Paths that are looked at in one go. What is put in place next waits for them, so they are many; with more to come,
/// it does not wait.
const LOOKS_AT_ONCE: usize = 4096;
/// Paths that wait to be looked at. Beyond that a scan costs less.
pub(super) const MAX_DIRTY: usize = 100_000;
/// A file that is open for writing is looked at when it has been quiet for so long, or when it has not been for so
/// much longer.
pub(super) const QUIET: Duration = Duration::from_millis(200);
const NEVER_QUIET: Duration = Duration::from_secs(5);
/// A file that changes while it is read is tried again, after twice the time of the last try, up to this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(30);
/// How often a file that keeps changing is tried before it is reported.
const TRIES_BEFORE_REPORT: u32 = 6;
/// How soon a file whose times would not show a change is read again, at the soonest.
const RACY_AGAIN_AFTER: Duration = Duration::from_millis(30);
/// Files up to this size are read at once if nothing else is to do: a change of them is on its way sooner.
const READ_AT_ONCE: u64 = 256 << 10;
/// Chunks of a file that moved, at most: what has more is read like any other.
const PLACES_AT_MOST: usize = 4096;
/// Refused paths that are remembered.
const MAX_REFUSED: usize = 1000;

/// A path that is to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    pub(super) due: Instant,
    since: Instant,
    /// How often it changed while it was read.
    tries: u32,
    /// The round of flushes in which it was found to have changed first.
    round: u64,
    /// It was taken in; only another change that its times would not show is looked for.
    again: bool,
}

impl Dirty {
    /// Whether it was taken in, as far as its times show.
    pub(super) fn is_taken_in(&self) -> bool {
        self.again
    }

    /// Whether those who wait for a flush in this round do not wait for it: it changed since, or does not come to rest.
    pub(super) fn is_known(&self, round: u64) -> bool {
        self.again || self.round == round || TRIES_BEFORE_REPORT <= self.tries
    }
}

/// Why and how a path is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    /// Nothing else is to be looked at.
    pub(super) alone: bool,
    /// How often it changed while it was read.
    pub(super) tries: u32,
    /// The round of flushes in which it was found to have changed first.
    pub(super) round: u64,
}

impl Look {
    /// A scan comes by. Everybody waits for what it finds.
    pub(super) const SCAN: Self = Self { alone: false, tries: 0, round: 0 };
}

/// A path that a worker reads.
#[derive(Clone, Debug)]
pub(super) struct Indexing {
    meta: Meta,
    tries: u32,
    round: u64,
    /// It changed since.
    again: bool,
}

impl Indexing {
    /// See [`Dirty::is_known`].
    pub(super) fn is_known(&self, round: u64) -> bool {
        self.round == round || TRIES_BEFORE_REPORT <= self.tries
    }
}

/// Paths whose writes the store does not take.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// To be written one by one, so that it shows which is to blame.
    suspects: BTreeSet<Key>,
    /// What stood there (nothing, if it was deleted), and why it is not taken.
    paths: BTreeMap<Key, (Option<Meta>, String)>,
}

impl Engine<'_> {
    /// Notes that a path is to be looked at, soon or when it was quiet for `delay`.
    pub(super) fn mark(&mut self, key: &str, delay: Duration) {
        let Ok(key) = Key::new(key) else { return };
        if MAX_DIRTY <= self.dirty.len() {
            self.dirty.clear();
            self.rescan();
            return;
        }
        let now = Instant::now();
        let before = self.dirty.get(&key).filter(|dirty| !dirty.again).copied();
        let since = before.map_or(now, |dirty| dirty.since);
        // What was written to the end deserves another look, however often it changed before.
        let most = if delay.is_zero() { TRIES_BEFORE_REPORT - 1 } else { u32::MAX };
        let tries = before.map_or(0, |dirty| dirty.tries.min(most));
        let round = before.map_or(self.round, |dirty| dirty.round);
        // What changed while it was read is given a moment.
        let delay = if tries == 0 { delay } else { QUIET };
        let due = (now + delay).min(since + NEVER_QUIET);
        let due = before.filter(|dirty| dirty.tries != 0).map_or(due, |dirty| due.min(dirty.due));
        self.dirty.insert(key, Dirty { due, since, tries, round, again: false });
    }

    /// Looks at a path soon, since it is not what it was taken for. What was refused is tried again: there may be other
    /// versions of it by now.
    pub(in crate::folder) fn look_again(&mut self, path: &Key) {
        self.refused.paths.remove(path);
        self.mark(path, Duration::ZERO);
    }

    /// Whether what stands at a path is what its record says.
    pub(super) fn is_as_recorded(&self, path: &str) -> bool {
        let (Ok(path), Ok(view)) = (Key::new(path), self.view()) else { return false };
        let Ok(Some(record)) = view.record(&path) else { return false };
        let found = self.root.stat(&path).ok().flatten();
        !record.racy && found.is_some_and(|meta| meta.same_file_state(&recorded_meta(&record)))
    }

    /// Whether a path changed and was not taken in yet.
    pub(in crate::folder) fn is_unsettled(&self, path: &Key) -> bool {
        self.dirty.contains_key(path)
            || self.indexing.contains_key(path)
            || self.deletions.contains(path)
    }

    /// Looks at the paths whose time has come. While somebody waits, that is now.
    pub(super) fn look_at_dirty(&mut self) -> Result<bool, StoreError> {
        let now = Instant::now();
        let flushing = self.is_flushing();
        let round = self.round;
        let due = |dirty: &Dirty| dirty.due <= now || (flushing && !dirty.is_known(round));
        let paths: Vec<(Key, Dirty)> = self
            .dirty
            .iter()
            .filter(|(_, dirty)| due(dirty))
            .map(|(path, dirty)| (path.clone(), *dirty))
            .take(LOOKS_AT_ONCE)
            .collect();
        let alone = paths.len() == 1 && self.indexing.is_empty();
        let busy = !paths.is_empty();
        for (path, Dirty { tries, round, .. }) in paths {
            self.dirty.remove(&path);
            if let Some(indexing) = self.indexing.get_mut(&path) {
                indexing.again = true;
                indexing.round = indexing.round.min(round);
                continue;
            }
            self.settle_path(&path)?;
            match self.root.stat(&path) {
                Ok(Some(meta)) if !self.is_ignored(&path, meta.kind == EntryKind::Directory) => {
                    let record = self.view()?.record(&path)?;
                    self.compare(path, meta, record, Look { alone, tries, round })?;
                }
                Ok(Some(_)) => {}
                Ok(None) => self.on_missing(path)?,
                Err(error) => self.progress.set_problem(&path, Some(error.to_string())),
            }
        }
        Ok(busy)
    }

    /// Compares what stands at a path with what is recorded of it.
    pub(super) fn compare(
        &mut self,
        path: Key,
        meta: Meta,
        record: Option<Record>,
        look: Look,
    ) -> Result<(), StoreError> {
        let Look { alone, tries, round } = look;
        self.deletions.forget(&path);
        if let Some(record) = &record {
            let implicit = record.implicit && meta.kind == EntryKind::Directory;
            let same = meta.same_file_state(&recorded_meta(record));
            if implicit || (same && !record.racy) {
                self.unrecorded.remove(&path);
                self.progress.set_problem(&path, None);
                return if implicit { self.drop_if_empty(path) } else { Ok(()) };
            }
        }
        let found = record_of(&meta, &Content::Deleted, false);
        // Where nothing is written, what is the same as what others have can be taken for that at any time.
        let now = if self.context.read_only { Some(self.view()?) } else { None };
        let left = self.left.iter().map(|view| (view, true));
        for (view, pending) in left.chain(now.iter().map(|view| (view, false))) {
            let policy = self.context.on_conflict;
            if let Some(version) = unrecorded(view, &path, policy, &found, pending)? {
                let known = self.unrecorded.entry(path.clone()).or_default();
                if known.iter().all(|other| other.dot != version.dot) {
                    known.push(version);
                }
            }
        }
        // What cannot be what was received need not be read.
        let is_other = meta.kind == EntryKind::Other;
        let mut unrecorded = self.unrecorded.get(&path).into_iter().flatten();
        if self.context.read_only
            && !is_other
            && !unrecorded.any(|version| version.is_like(&found))
            && !record.as_ref().is_some_and(|record| looks_recorded(record, &found))
        {
            return self.report_foreign(&path, record.is_some());
        }
        if self.is_refused(&path, Some(&meta)) {
            return Ok(());
        }
        match meta.kind {
            EntryKind::Other => {
                let text = "it is not a file, directory or symlink; it is left alone";
                match record {
                    Some(_) => self.progress.set_problem(&path, Some(text.to_owned())),
                    None => self.progress.set_note(&path, text.to_owned()),
                }
                Ok(())
            }
            EntryKind::Directory => {
                let content = Content::Inline([].into());
                let found = record_of(&meta, &content, false);
                self.take_in(path, found, content, Vec::new())
            }
            EntryKind::File
                if record.is_none()
                    && !self.context.read_only
                    && self.take_in_moved(&path, &meta)? =>
            {
                Ok(())
            }
            EntryKind::File | EntryKind::Symlink if alone && meta.size <= READ_AT_ONCE => {
                let mut buffer = std::mem::take(&mut self.buffer);
                let reading = Reading {
                    root: &self.root,
                    store: &self.context.store,
                    dataset: self.context.dataset,
                    stopped: self.indexer.stopped(),
                    is_alone: false,
                };
                let indexed = index::index(&reading, path, meta, &mut buffer);
                self.buffer = buffer;
                self.on_read(indexed, tries, round)
            }
            EntryKind::File | EntryKind::Symlink => {
                while MAX_QUEUED_FILES <= self.indexing.len() {
                    select! {
                        recv(self.indexer.results()) -> indexed => match indexed {
                            Ok(indexed) => self.on_indexed(indexed)?,
                            Err(_) => return Ok(()),
                        },
                        recv(self.inbox.receiver) -> input => self.on_input(input.unwrap_or(Input::Stop)),
                    }
                    if self.exit.is_some() {
                        return Ok(());
                    }
                }
                if let Some(indexing) = self.indexing.get_mut(&path) {
                    indexing.again |= !meta.same_file_state(&indexing.meta);
                    indexing.round = indexing.round.min(round);
                    return Ok(());
                }
                let indexing = Indexing { meta, tries, round, again: false };
                self.indexing.insert(path.clone(), indexing);
                self.indexer.submit(path, meta);
                Ok(())
            }
        }
    }

    /// Takes what a worker has read.
    pub(super) fn on_indexed(&mut self, indexed: Indexed) -> Result<(), StoreError> {
        let Some(indexing) = self.indexing.remove(&indexed.path) else { return Ok(()) };
        let Indexing { tries, round, again, .. } = indexing;
        if again {
            // It has changed since, so this is not what is there.
            self.try_again(indexed.path, tries, round);
            return Ok(());
        }
        self.on_read(indexed, tries, round)
    }

    fn on_read(&mut self, indexed: Indexed, tries: u32, round: u64) -> Result<(), StoreError> {
        let Indexed { path, meta, outcome, plain, places, racy } = indexed;
        match outcome {
            Ok(content) => {
                self.progress.set_problem(&path, None);
                // What was put in place since it was read is not what was read.
                match self.root.stat(&path) {
                    Ok(Some(now)) if now.same_file_state(&meta) => {}
                    _ => {
                        self.try_again(path, tries, round);
                        return Ok(());
                    }
                }
                if let Some(racy) = racy {
                    let since = Instant::now();
                    let due = since + racy.max(RACY_AGAIN_AFTER);
                    let again = Dirty { due, since, tries: 0, round, again: true };
                    self.dirty.entry(path.clone()).or_insert(again);
                }
                let found = Record { plain, ..record_of(&meta, &content, racy.is_some()) };
                return self.take_in(path, found, content, places);
            }
            Err(IndexError::Unstable) => self.try_again(path, tries, round),
            Err(IndexError::Unfit(reason)) => self.progress.set_problem(&path, Some(reason)),
            Err(IndexError::Unreadable(error)) => {
                let text = format!("it cannot be read ({error}); check its permissions");
                self.progress.set_problem(&path, Some(text));
            }
            Err(IndexError::Store(error)) => return Err(error),
        }
        Ok(())
    }

    /// Looks again at a path that changed while it was read.
    fn try_again(&mut self, path: Key, tries: u32, round: u64) {
        if tries + 1 == TRIES_BEFORE_REPORT {
            let text = "it keeps changing; it is taken in when it has come to rest";
            self.progress.set_problem(&path, Some(text.to_owned()));
        }
        let since = Instant::now();
        let due = since + (QUIET * (1 << tries.min(8))).min(AGAIN_AT_MOST);
        self.dirty.insert(path, Dirty { due, since, tries: tries + 1, round, again: false });
    }

    /// What was noted of what was to be put in place may be there, without being recorded.
    pub(in crate::folder) fn may_be_unrecorded(&mut self, placing: Vec<Placing>) {
        for placing in placing {
            let path = placing.path.clone();
            let known = self.unrecorded.entry(path).or_default();
            if known.iter().all(|other| other.dot != placing.dot) {
                known.push(Unrecorded::of(placing));
            }
        }
    }

    /// Makes what was found at a path a write, or only a newer record if it is what was recorded.
    fn take_in(
        &mut self,
        path: Key,
        mut found: Record,
        content: Content,
        places: Vec<(ChunkHash, Place)>,
    ) -> Result<(), StoreError> {
        self.gather_for(&path)?;
        let view = self.view()?;
        let before = view.record(&path)?;
        if let Some(before) = &before
            && before.content == found.content
            && before.kind == found.kind
            && before.mode == found.mode
            && before.modified_ns == found.modified_ns
            && !before.implicit
        {
            self.unrecorded.remove(&path);
            // Whoever looked for its bytes while they were not there has forgotten the place.
            if !before.racy || before.inode != found.inode {
                self.gather_places(places);
            }
            let record = Record { dot: before.dot, key: before.key.clone(), ..found };
            if record != *before {
                self.refresh_record(path, record);
            }
            return Ok(());
        }
        let attributes = Attributes {
            kind: found.kind,
            mode: found.mode,
            modified_ns: if found.kind == Kind::Directory { 0 } else { found.modified_ns },
            ..Attributes::default()
        };
        let attributes = with_declared(&view, &path, before.as_ref(), &found, attributes)?;
        let (mut saw, policy) = (Saw::Nothing, self.context.on_conflict);
        // What it replaced, if there was something, was shown of the same key.
        let is_it = |version: &&Unrecorded| {
            let shown = before.as_ref().map(|before| before.key.as_ref().unwrap_or(&path));
            version.is(&found) && shown.is_none_or(|shown| *shown == version.key)
        };
        // It stays until that is recorded. What is replaced in a read-only directory makes no write.
        let unrecorded = self.unrecorded.get(&path).into_iter().flatten().find(is_it).cloned();
        let is_kept = match &before {
            Some(before) if unrecorded.is_some() && !self.context.read_only => {
                self.is_kept(&view, &path, before)?
            }
            _ => true,
        };
        if let Some(Unrecorded { key, dot, .. }) = unrecorded.filter(|_| is_kept) {
            if key != path {
                found.key = Some(key.clone());
                if before.is_none() {
                    self.progress.count_conflict(true);
                }
            }
            self.sync_first(path.clone());
            self.gather_record(path, found, Basis::Dot(dot));
            self.gather_places(places);
            // It may have to go, or to change.
            self.gather_unsettled(key);
            self.submit_if_full();
            return Ok(());
        }
        if self.context.read_only {
            return self.report_foreign(&path, before.is_some());
        }
        match &before {
            None => {
                if let Some((key, dot)) = copy_of(&view, &path, &content, &attributes)? {
                    found.key = Some(key);
                    self.sync_first(path.clone());
                    self.gather_record(path, found, Basis::Dot(dot));
                    self.gather_places(places);
                    self.progress.count_conflict(true);
                    self.submit_if_full();
                    return Ok(());
                }
            }
            // A conflict copy that was edited is a file of its own from now on, and the loser is dealt with.
            Some(Record { key: Some(key), dot, .. }) => {
                let (key, saw) = (key.clone(), Saw::Version(*dot));
                self.gather_write(deletion(key, saw));
                self.progress.count_conflict(false);
            }
            Some(record) if record.implicit => {}
            // The file of a version that was put in place and not recorded, since something broke in between.
            Some(record)
                if is_unrecorded(&view, &path, record, policy, (&content, &attributes))?
                    && self.is_kept(&view, &path, record)? => {}
            Some(record) => saw = Saw::Version(record.dot),
        }
        let has_copies = before.is_some() && has_copies(&view, &path)?;
        let write = self.gather_write(LocalWrite { key: path.clone(), saw, content, attributes });
        self.sync_first(path.clone());
        self.gather_record(path.clone(), found, Basis::Write(write));
        self.gather_places(places);
        if has_copies {
            // One of them may be of the version that is replaced, if that was about to make way.
            self.gather_unsettled(path);
        }
        self.submit_if_full();
        Ok(())
    }

    /// Takes in a file that moved along with a directory, if this is one: nothing is recorded at its path, and to the inode
    /// and all its times it is what is gone from another. Its bytes are known, and both paths change in one transaction, so
    /// that others can move it, too.
    fn take_in_moved(&mut self, path: &Key, meta: &Meta) -> Result<bool, StoreError> {
        let Some(from) = self.deletions.of_inode(meta.inode).cloned() else { return Ok(false) };
        if self.refused.suspects.contains(path) || copied_key(path).is_some() {
            return Ok(false);
        }
        self.settle_path(path)?;
        self.settle_path(&from)?;
        let view = self.view()?;
        let Some(before) = view.record(&from)? else { return Ok(false) };
        let is_it = !before.racy
            && before.key.is_none()
            && meta.same_file_state(&recorded_meta(&before))
            && matches!(self.root.stat(&from), Ok(None));
        let siblings = view.siblings(&from)?;
        let [only] = &siblings[..] else { return Ok(false) };
        let version = &only.version;
        if !is_it || version.dot != before.dot || view.record(path)?.is_some() {
            return Ok(false);
        }
        let (mut places, mut gone) = (Vec::new(), Vec::new());
        for chunk in self.context.contents.chunks_of(&version.content, Duration::ZERO) {
            let Ok((offset, ChunkRef { hash, length })) = chunk else { return Ok(false) };
            let at = |path: &Key| {
                let (dataset, path) = (self.context.dataset, path.clone());
                (hash, Place::InFile { dataset, path, offset, length })
            };
            places.push(at(path));
            gone.push(at(&from));
            if PLACES_AT_MOST < places.len() {
                return Ok(false);
            }
        }
        let found = Record { plain: before.plain, ..record_of(meta, &version.content, false) };
        let (kind, mode, modified_ns) = (found.kind, found.mode, found.modified_ns);
        let attributes = Attributes { kind, mode, modified_ns, ..Attributes::default() };
        let content = version.content.clone();
        let (key, saw) = (path.clone(), Saw::Nothing);
        let write = self.gather_write(LocalWrite { key, saw, content, attributes });
        self.gather_write(deletion(from.clone(), Saw::Version(before.dot)));
        self.sync_first(path.clone());
        self.sync_first(from.clone());
        self.gather_record(path.clone(), found, Basis::Write(write));
        self.gather_removal(from.clone());
        self.gather_places(places);
        self.gather_gone(gone);
        self.deletions.forget(&from);
        self.progress.set_problem(path, None);
        self.submit_if_full();
        self.look_at_emptied(&view, &from)?;
        Ok(true)
    }

    /// What is found in a read-only directory and was not put there.
    fn report_foreign(&self, path: &Key, was_put: bool) -> Result<(), StoreError> {
        let siblings = self.view()?.siblings(path)?;
        if !was_put && siblings.iter().all(|stored| stored.version.is_deleted()) {
            let text = "nothing was received for it, and the link is read-only: it is left alone, and not sent";
            self.progress.set_note(path, text.to_owned());
        } else {
            let text = "it is not what was received, and the link is read-only: it is neither sent nor replaced; \
                        move it away, and what was received takes its place";
            self.progress.set_problem(path, Some(text.to_owned()));
        }
        Ok(())
    }

    /// Whether the bytes of the version that a path is recorded to show are still to be had, although something else
    /// stands there.
    fn is_kept(&self, view: &DiskView, path: &Key, record: &Record) -> Result<bool, StoreError> {
        let siblings = view.siblings(path)?;
        let Some(shown) = siblings.iter().find(|stored| stored.version.dot == record.dot) else {
            return Ok(true);
        };
        let content = &shown.version.content;
        let copy = conflict_path(path, record.dot).map(|copy| self.root.stat(&copy));
        if let Some(Ok(Some(meta))) = copy
            && meta.size == content.size()
        {
            return Ok(true);
        }
        for chunk in self.context.contents.chunks_of(content, Duration::ZERO) {
            match chunk {
                Ok((_, chunk)) if self.context.contents.local().read(&chunk)?.is_some() => {}
                _ => return Ok(false),
            }
        }
        Ok(true)
    }

    // ---- What the store does not take ----

    /// Finds out which of these paths is to blame for a transaction that was refused, and does the others again.
    pub(super) fn on_refused(&mut self, paths: impl IntoIterator<Item = Key>, reason: &str) {
        let paths: Vec<Key> = paths.into_iter().collect();
        if let [path] = &paths[..] {
            let found = self.root.stat(path).ok().flatten();
            self.refused.suspects.remove(path);
            if self.refused.paths.len() < MAX_REFUSED {
                self.refused.paths.insert(path.clone(), (found, reason.to_owned()));
            }
            self.progress.set_problem(path, Some(reason.to_owned()));
            return;
        }
        for path in paths {
            self.look_again(&path);
            self.refused.suspects.insert(path);
        }
    }

    /// Whether what stands at a path was refused.
    pub(super) fn is_refused(&mut self, path: &Key, found: Option<&Meta>) -> bool {
        let Some((before, reason)) = self.refused.paths.get(path) else { return false };
        let same = match (before, found) {
            (None, None) => true,
            (Some(before), Some(found)) => found.same_file_state(before),
            _ => false,
        };
        if same {
            self.progress.set_problem(path, Some(reason.clone()));
        } else {
            self.refused.paths.remove(path);
        }
        same
    }

    /// Whether what is gathered is about a path that has to be written alone.
    pub(super) fn is_suspect(&mut self, path: &Key) -> bool {
        self.refused.suspects.remove(path)
    }
}
