//! Putting in place what is staged, a batch at a time: sync the staged files, swap them in one by one, sync again,
//! and only then record them. A crash before the second sync leaves entries without a record, which the next scan
//! finds to be what they should be; a crash after it leaves nothing to do.
//!
//! An entry is only replaced if it is what its record says, and if its bytes are not the only ones of a version that
//! somebody may want back.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use consort_core::store::{StoreError, Stored, View};
use consort_core::{Attributes, Content, Dot, Key, Kind, Version};
use consort_store::{Basis, Body, DiskView, Place, Record, RecordChange, Transaction};

use super::apply::{Op, Outcome, Work};
use super::engine::Engine;
use super::index::is_racy_and_coarse;
use super::project::conflict_prefix;
use super::record::{record_of, recorded_meta};
use super::{
    EntryKind, Expected, Grown, Journal, PlaceError, Placed, Placing, RemovedDirectory, Root,
    Staged, split_key,
};

/// Places of chunks in one transaction.
const PLACES_PER_TRANSACTION: usize = 4096;
/// How long a manifest node may take to be fetched. All of them are here as a rule.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Records that are read from the store at once.
const PAGE: usize = 256;

/// What a batch has changed in the directory and not recorded yet.
#[derive(Debug, Default)]
struct Changes {
    /// What to record, by path; nothing, if nothing stands there any more.
    records: BTreeMap<Key, Option<Record>>,
    /// Keys whose directories have to be synced.
    synced: Vec<String>,
    /// Directories that can be made, or are there, as they are recorded.
    above: HashSet<String>,
    /// What is to be looked at afterwards: until then it would stand in the way of the rest of the batch.
    looks: Vec<Key>,
    /// Files whose chunks have to be entered as being there.
    files: Vec<(Key, Content)>,
    /// Files that moved away, whose chunks are there no more.
    moved: Vec<(Key, Content)>,
    /// Directories out of which a file could not be moved, and cannot be later.
    unmovable: Vec<String>,
    /// Files that could not grow where they stand.
    ungrown: Vec<Key>,
    /// By what files have grown.
    grown: Vec<Grown>,
    /// What is put in place is noted.
    is_noted: bool,
}

/// An operation was not done, and is to be tried again later.
enum Skipped {
    Later,
    Store(StoreError),
}

impl From<StoreError> for Skipped {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Engine<'_> {
    /// Puts a batch in place and answers the stager. Everything that was gathered before is durable by now.
    pub(super) fn put_in_place(&mut self, batch: Vec<Work>) -> Result<(), StoreError> {
        let mut keys: Vec<Key> = batch.iter().map(|work| work.key.clone()).collect();
        let moving = batch.iter().flat_map(|work| &work.ops).filter_map(Op::moves_from);
        let unmoved: BTreeSet<Key> = moving.cloned().collect();
        keys.extend(unmoved.iter().cloned());
        let (batch, staged) = take_staged(batch);
        let (changed, left, unmovable, ungrown) = (false, false, Vec::new(), Vec::new());
        let mut outcome = Outcome { keys, changed, left, unmoved, unmovable, ungrown };
        if let Err(error) = self.root.sync_staged(&staged) {
            self.on_batch_error(outcome, error.into());
            return Ok(());
        }
        let view = self.view()?;
        let grows = staged.iter().any(Staged::is_tail);
        let mut staged = staged.into_iter();
        let mut changes = Changes::default();
        let (mut settled, mut failed) = (Vec::new(), BTreeSet::new());
        let mut placing = placing_of(&batch);
        let journal = self.begin_journal(&placing, grows);
        changes.is_noted = journal.is_some();
        let mut journal = journal.unwrap_or_default();
        // What was written counts, and its chunks are had from where they are staged, until it is recorded.
        let mut unrecorded = Vec::new();
        for work in batch {
            unrecorded.push((work.written, work.fresh));
            let newest = view.siblings(&work.key)?.iter().map(|stored| stored.sequence).max();
            // It was worked out from what is not so any more: what was wanted then may undo what somebody did since.
            let outdated = newest.unwrap_or_default() != work.newest;
            let mut done = !outdated;
            for op in work.ops {
                let file = matches!(op, Op::Place { .. }).then(|| staged.next()).flatten();
                if outdated {
                    continue;
                }
                let moving = op.moves_from().cloned();
                let noted = op.version().map(|_| op.path().clone());
                match self.put(&view, &work.key, op, file, &mut changes) {
                    Ok(changed) => {
                        outcome.changed |= changed;
                        if let Some(from) = &moving {
                            outcome.unmoved.remove(from);
                        }
                    }
                    Err(Skipped::Later) => {
                        done = false;
                        failed.extend(noted);
                    }
                    Err(Skipped::Store(error)) => return Err(error),
                }
            }
            outcome.changed |= outdated;
            outcome.left |= !done && !outdated;
            if done && work.complete {
                outcome.changed = true;
                self.progress.set_problem(&work.key, None);
                settled.push((work.key, work.sequence));
            }
        }
        changes.grown.drain(..).for_each(|tail| journal.keep(tail));
        let synced = changes.synced.iter().map(String::as_str);
        if let Err(error) = self.root.sync_entries(synced) {
            // What is in place is known for what it is.
            self.journal.join(journal);
            self.may_be_unrecorded(placing);
            self.on_batch_error(outcome, error.into());
            return Ok(());
        }
        outcome.unmovable = std::mem::take(&mut changes.unmovable);
        outcome.ungrown = std::mem::take(&mut changes.ungrown);
        let looks = std::mem::take(&mut changes.looks);
        changes.records.keys().for_each(|path| drop(self.unrecorded.remove(path)));
        self.record(changes, settled)?;
        if failed.is_empty() {
            journal.forget();
        } else {
            // Some of that may be in place all the same.
            self.journal.join(journal);
            placing.retain(|placing| failed.contains(&placing.path));
            self.may_be_unrecorded(placing);
            failed.iter().for_each(|path| self.look_again(path));
        }
        self.count_put_in_place(view.record_count())?;
        looks.iter().for_each(|path| self.look_again(path));
        self.stager.done(outcome);
        (self.context.on_applied)();
        Ok(())
    }

    /// Notes what is about to be put in place. If it cannot be noted, after a crash only the store tells of it, and no file grows.
    fn begin_journal(&self, placing: &[Placing], durable: bool) -> Option<Journal> {
        let noted = self.root.begin_placing(placing, durable);
        noted
            .inspect_err(|error| tracing::warn!(%error, "what is put in place cannot be noted"))
            .ok()
    }

    /// Nothing of a batch is recorded. What of it was put in place is found by looking.
    fn on_batch_error(&mut self, outcome: Outcome, error: PlaceError) {
        tracing::warn!(%error, "a batch is not put in place");
        self.progress.report_place_error(&error);
        self.stager.done(Outcome { changed: false, left: true, ..outcome });
        self.rescan();
    }

    /// Whether anything is different since.
    fn put(
        &mut self,
        view: &DiskView,
        key: &Key,
        op: Op,
        staged: Option<Staged>,
        changes: &mut Changes,
    ) -> Result<bool, Skipped> {
        let path = op.path().clone();
        let record = changes.record(view, &path)?;
        let shows = record.as_ref().map(|record| record.key.as_ref().unwrap_or(&path) == key);
        // What is current only has to make way here: nobody else deleted it, and its deletion is still to be written.
        if matches!(op, Op::Remove { .. })
            && shows == Some(true)
            && !is_current(view, key, record.as_ref())?
            && self.take_gone(&path)
        {
            // It was deleted here as well.
            if record.is_some_and(|record| record.key.is_some()) {
                self.progress.count_conflict(false);
            }
            changes.remove(&path);
            changes.synced.push(path.to_string());
            return Ok(true);
        }
        if matches!(op, Op::Look { .. }) || record.as_ref().is_some_and(|record| record.racy) {
            changes.looks.push(path);
            return Err(Skipped::Later);
        }
        if self.is_unsettled(&path) || !self.is_known_above(view, &path, changes)? {
            return Err(Skipped::Later);
        }
        let outcome = match op {
            // Something of another key stands there by now.
            Op::Remove { .. } if shows != Some(true) => return Ok(false),
            _ if path != *key && shows == Some(false) => return Err(Skipped::Later),
            Op::Look { .. } | Op::Wait { .. } => return Err(Skipped::Later),
            Op::Remove { .. } => match &record {
                Some(record) => self.remove(&path, record, view, changes),
                None => return Ok(false),
            },
            Op::Place { version, .. } => {
                let Some(staged) = staged else { return Err(Skipped::Later) };
                if staged.is_tail() && !changes.is_noted {
                    changes.ungrown.push(path);
                    return Err(Skipped::Later);
                }
                let put =
                    Put { view, key, path: &path, record: record.as_ref(), version: &version };
                self.replace(&put, changes, |root, expected| {
                    root.place_file(staged, &path, expected)
                })
            }
            Op::Move { from, version, .. } => {
                let put =
                    Put { view, key, path: &path, record: record.as_ref(), version: &version };
                self.move_from(&from, &put, changes)
            }
            Op::Symlink { version, .. } => {
                let target: &[u8] = match &version.content {
                    Content::Inline(target) => target,
                    _ => &[],
                };
                let modified = version.attributes.modified_ns;
                let put =
                    Put { view, key, path: &path, record: record.as_ref(), version: &version };
                self.replace(&put, changes, |root, expected| {
                    root.place_symlink(target, &path, expected, modified)
                })
            }
            Op::Directory { version, .. } => {
                let put =
                    Put { view, key, path: &path, record: record.as_ref(), version: &version };
                self.make_directory(&put, changes)
            }
            Op::Attributes { version, .. } => {
                let Some(record) = &record else { return Err(Skipped::Later) };
                self.set_attributes(key, &path, record, &version, changes)
            }
        };
        match outcome {
            Ok(()) => {
                self.progress.set_problem(&path, None);
                // What a file system cannot keep is not tried for ever.
                let without_change_time = |record: Option<Record>| {
                    record.map(|record| Record { changed_ns: 0, ..record })
                };
                let after = changes.record(view, &path)?;
                Ok(without_change_time(record) != without_change_time(after))
            }
            Err(error) => Err(self.on_failure(&path, error, changes)),
        }
    }

    /// Whether what stands above a path is what is recorded, so that making directories there hides no change: where
    /// a file was, or a directory that somebody took away, there is something to be taken in first.
    fn is_known_above(
        &self,
        view: &DiskView,
        path: &Key,
        changes: &mut Changes,
    ) -> Result<bool, StoreError> {
        let Some(parent) = path.parent() else { return Ok(true) };
        if changes.above.contains(parent) {
            return Ok(true);
        }
        for above in path.ancestors() {
            let above = Key::new(above).expect("a part of a key is a key");
            if self.is_unsettled(&above) {
                return Ok(false);
            }
            let Some(record) = changes.record(view, &above)? else { continue };
            let found = self.root.stat(&above).ok().flatten();
            if record.kind == Kind::Directory && (record.implicit || found.is_some()) {
                continue;
            }
            // A file that is as it is recorded goes when its key's turn comes.
            if !found.is_some_and(|found| found.same_file_state(&recorded_meta(&record))) {
                changes.looks.push(above);
            }
            return Ok(false);
        }
        changes.above.insert(parent.to_owned());
        Ok(true)
    }

    fn replace(
        &mut self,
        put: &Put<'_>,
        changes: &mut Changes,
        place: impl FnOnce(&Root, Expected) -> Result<Placed, PlaceError>,
    ) -> Result<(), Failure> {
        let &Put { view, path, record, version, .. } = put;
        let expected = match record {
            None => Expected::Absent,
            Some(record) if record.kind == Kind::Directory => {
                self.forget_directory(view, path, record, changes)?;
                match self.root.remove_directory(path)? {
                    RemovedDirectory::Removed | RemovedDirectory::Absent => Expected::Absent,
                    // What is in it goes first, or is taken in first.
                    _ => return Err(Failure::Later),
                }
            }
            Some(record) => {
                self.keep_bytes(view, path, record, Some(version), changes)?;
                Expected::Present(recorded_meta(record))
            }
        };
        let mut placed = place(&self.root, expected)?;
        changes.grown.extend(placed.grown.take());
        self.note_placed(put, &placed, changes)
    }

    /// Gives a file that is to go another path. Of its own path nothing is live, so nobody wants it back there.
    fn move_from(
        &mut self,
        from: &Key,
        put: &Put<'_>,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let &Put { view, record, version, .. } = put;
        let Some(old) = changes.record(view, from)? else { return Err(Failure::Later) };
        let is_wanted = view.siblings(from)?.iter().any(|stored| !stored.version.is_deleted());
        let is_this = old.key.is_none() && old.content == version.content.id();
        if record.is_some() || is_wanted || !is_this || old.racy || self.is_unsettled(from) {
            return Err(Failure::Later);
        }
        let placed = match self.root.move_file(from, &recorded_meta(&old), put.path) {
            // One of both paths is not what it was taken for.
            Err(error @ PlaceError::Changed) => {
                changes.looks.push(from.clone());
                return Err(error.into());
            }
            Err(error) => {
                if matches!(error, PlaceError::Unmovable(_)) {
                    changes.unmovable.push(split_key(from).0.to_owned());
                }
                return Err(error.into());
            }
            Ok(placed) => placed,
        };
        changes.synced.push(from.to_string());
        changes.remove(from);
        changes.moved.push((from.clone(), version.content.clone()));
        self.remove_emptied_above(view, from, changes)?;
        self.note_placed(put, &placed, changes)
    }

    /// Notes what was put in place, to be recorded.
    fn note_placed(
        &self,
        put: &Put<'_>,
        placed: &Placed,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let &Put { view, key, path, record, version } = put;
        self.note_created(view, &placed.created, changes)?;
        changes.synced.push(path.to_string());
        let was_copy = record.is_some_and(|record| record.key.is_some());
        // Where times are that coarse, the next change may look the same.
        let racy = version.attributes.kind == Kind::File && is_racy_and_coarse(&placed.meta);
        if racy {
            changes.looks.push(path.clone());
        }
        let mut record = record_of(&placed.meta, &version.content, racy);
        record.key = (path != key).then(|| key.clone());
        if record.key.is_some() != was_copy {
            self.progress.count_conflict(!was_copy);
        }
        changes.put(path, record, version.dot);
        if version.attributes.kind == Kind::File {
            changes.files.push((path.clone(), version.content.clone()));
        }
        Ok(())
    }

    fn make_directory(&mut self, put: &Put<'_>, changes: &mut Changes) -> Result<(), Failure> {
        let &Put { view, key, path, record, version } = put;
        let before = record.filter(|record| record.kind == Kind::Directory);
        if let Some(record) = record.filter(|record| record.kind != Kind::Directory) {
            self.keep_bytes(view, path, record, None, changes)?;
            self.root.remove_file(path, &recorded_meta(record))?;
            if record.key.is_some() {
                self.progress.count_conflict(false);
            }
            changes.synced.push(path.to_string());
            changes.remove(path);
        }
        let mode = u32::from(version.attributes.mode);
        let mut placed = self.root.place_directory(path, mode)?;
        let made = placed.created.iter().any(|created| created == path.as_str());
        if placed.meta.mode != mode {
            // Somebody else's mode, unless it is the one that is recorded, or nobody's.
            let known = before.is_some_and(|r| r.implicit || u32::from(r.mode) == placed.meta.mode);
            if !made && !known {
                return Err(PlaceError::Changed.into());
            }
            placed.meta = self.root.set_attributes(path, &placed.meta, mode, 0)?;
        }
        placed.created.retain(|created| created != path.as_str());
        self.note_created(view, &placed.created, changes)?;
        changes.synced.push(path.to_string());
        let mut record = record_of(&placed.meta, &version.content, false);
        record.key = (path != key).then(|| key.clone());
        changes.put(path, record, version.dot);
        Ok(())
    }

    /// Directories that were made on the way to an entry exist only because of it, unless they are entries themselves.
    fn note_created(
        &self,
        view: &DiskView,
        created: &[String],
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        for path in created {
            changes.synced.push(path.clone());
            let Ok(path) = Key::new(path.as_str()) else { continue };
            let siblings: Vec<Version> =
                view.siblings(&path)?.into_iter().map(|stored| stored.version).collect();
            let is_directory =
                |w: &&Version| !w.is_deleted() && w.attributes.kind == Kind::Directory;
            let winner = self.context.on_conflict.winner(&siblings).filter(is_directory);
            let found = self.root.stat(&path).map_err(PlaceError::from)?;
            // What its user put there since is to be taken in, not to be recorded as if it were this directory.
            let Some(mut meta) = found.filter(|meta| meta.kind == EntryKind::Directory) else {
                changes.looks.push(path);
                continue;
            };
            if let Some(winner) = winner {
                let mode = u32::from(winner.attributes.mode);
                meta = self.root.set_attributes(&path, &meta, mode, 0)?;
            }
            let content = Content::Inline([].into());
            let mut record = record_of(&meta, &content, false);
            record.implicit = winner.is_none();
            changes.put(&path, record, winner.map(|winner| winner.dot).unwrap_or_default());
        }
        Ok(())
    }

    fn set_attributes(
        &mut self,
        key: &Key,
        path: &Key,
        record: &Record,
        version: &Version,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let attributes = &version.attributes;
        let before = recorded_meta(record);
        let (mode, modified) = (u32::from(attributes.mode), attributes.modified_ns);
        let meta = self.root.set_attributes(path, &before, mode, modified)?;
        changes.synced.push(path.to_string());
        // A write may have come before the time was set.
        let racy = meta.kind == EntryKind::File && meta.mtime_ns != before.mtime_ns;
        if racy {
            changes.looks.push(path.clone());
        }
        let mut record = record_of(&meta, &version.content, racy);
        record.key = (path != key).then(|| key.clone());
        changes.put(path, record, version.dot);
        Ok(())
    }

    fn remove(
        &mut self,
        path: &Key,
        record: &Record,
        view: &DiskView,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        changes.synced.push(path.to_string());
        if record.kind == Kind::Directory {
            self.forget_directory(view, path, record, changes)?;
            match self.root.remove_directory(path)? {
                RemovedDirectory::Removed | RemovedDirectory::Absent => changes.remove(path),
                // What else is in it keeps it, but nothing says any more that it should be there.
                RemovedDirectory::NotEmpty => {
                    let (dot, record) = (record.dot, Record { implicit: true, ..record.clone() });
                    changes.put(path, record, dot);
                    return Ok(());
                }
                RemovedDirectory::NotADirectory => return Err(PlaceError::Changed.into()),
            }
        } else {
            self.keep_bytes(view, path, record, None, changes)?;
            self.root.remove_file(path, &recorded_meta(record))?;
            if record.key.is_some() {
                self.progress.count_conflict(false);
            }
            changes.remove(path);
        }
        self.remove_emptied_above(view, path, changes)
    }

    /// Directories that only existed for what was in them go with the last of it.
    fn remove_emptied_above(
        &self,
        view: &DiskView,
        path: &Key,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        for above in path.ancestors() {
            let above = Key::new(above).expect("a part of a key is a key");
            let implicit = changes.record(view, &above)?.is_some_and(|record| record.implicit);
            if !implicit
                || !matches!(self.root.remove_directory(&above)?, RemovedDirectory::Removed)
            {
                break;
            }
            changes.synced.push(above.to_string());
            changes.remove(&above);
        }
        Ok(())
    }

    /// Before what stands at a path is replaced or taken away: if it is a current version, its record goes first, and
    /// durably. A crash in between would else look as if somebody here had replaced or deleted that version; without
    /// a record, whatever is found is only compared with what there is. If its bytes are nowhere else shown, they go
    /// into a pack, so that the version stays readable. So do the bytes of a version that was replaced by one of the
    /// same bytes, as when a loser was chosen, and that is not in place yet.
    fn keep_bytes(
        &self,
        view: &DiskView,
        path: &Key,
        record: &Record,
        instead: Option<&Version>,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let key = record.key.as_ref().unwrap_or(path);
        let siblings = view.siblings(key)?;
        let live = siblings.iter().map(|stored| &stored.version).filter(|v| !v.is_deleted());
        let of_bytes = |version: &&Version| version.content.id() == record.content;
        let held = live.clone().find(|version| version.dot == record.dot);
        let Some(version) = held.or_else(|| live.clone().find(of_bytes)) else { return Ok(()) };
        if instead.is_some_and(|instead| instead.content.same_bytes(&version.content)) {
            return Ok(());
        }
        if !self.is_elsewhere(view, key, path, version, &siblings, changes)? {
            for chunk in self.context.contents.chunks_of(&version.content, MANIFEST_TIMEOUT) {
                let (_, chunk) = chunk.map_err(|_| Failure::Later)?;
                let bytes =
                    self.context.contents.local().read(&chunk).map_err(|_| Failure::Later)?;
                let Some(bytes) = bytes else { return Err(Failure::Later) };
                self.context.store.pack(&bytes)?;
            }
        }
        if version.dot != record.dot {
            return Ok(());
        }
        let mut transaction = Transaction::new(self.context.dataset, Body::Nothing);
        transaction.records.push(RecordChange::Remove { path: path.clone() });
        self.context.store.commit(transaction)?;
        // Should it stay there after all, it is recorded again.
        changes.looks.push(path.clone());
        Ok(())
    }

    /// The same for a directory, if it is empty: one that is not stays, and so does its record.
    fn forget_directory(
        &self,
        view: &DiskView,
        path: &Key,
        record: &Record,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        let is_empty = self.root.list(path).is_ok_and(|names| names.is_empty());
        if record.implicit || !is_empty {
            return Ok(());
        }
        self.keep_bytes(view, path, record, None, changes)
    }

    /// Whether another path of the key shows the version whose bytes are about to go at `path`, or one that stands for it,
    /// as things stand at this moment. Others may have the same bytes, but whoever edits them keeps this version.
    fn is_elsewhere(
        &self,
        view: &DiskView,
        key: &Key,
        path: &Key,
        version: &Version,
        siblings: &[Stored],
        changes: &Changes,
    ) -> Result<bool, StoreError> {
        let stands_for = |dot: Dot| {
            let shown = siblings.iter().find(|stored| stored.version.dot == dot);
            shown.is_some_and(|shown| shown.version.alike(version))
        };
        let is_there = |other: &Key, record: &Record| {
            let found = || self.root.stat(other).ok().flatten();
            other != path
                && record.kind == Kind::File
                && stands_for(record.dot)
                && found().is_some_and(|found| found.same_file_state(&recorded_meta(record)))
        };
        let placed =
            changes.records.iter().filter_map(|(path, record)| Some((path, record.as_ref()?)));
        if placed.into_iter().any(|(other, record)| is_there(other, record)) {
            return Ok(true);
        }
        let is_recorded = |other: &Key, record: &Record| {
            !changes.records.contains_key(other) && is_there(other, record)
        };
        if view.record(key)?.is_some_and(|record| is_recorded(key, &record)) {
            return Ok(true);
        }
        let mut after = None;
        loop {
            let page = view.records(&conflict_prefix(key), after.as_ref(), PAGE)?;
            let Some((last, _)) = page.last() else { return Ok(false) };
            after = Some(last.clone());
            if page.iter().any(|(other, record)| is_recorded(other, record)) {
                return Ok(true);
            }
        }
    }

    fn on_failure(&self, path: &Key, failure: Failure, changes: &mut Changes) -> Skipped {
        let error = match failure {
            Failure::Store(error) => return Skipped::Store(error),
            Failure::Later => return Skipped::Later,
            Failure::Place(error) => error,
        };
        tracing::debug!(%path, %error, "an entry is not put in place");
        match &error {
            PlaceError::Changed => changes.looks.push(path.clone()),
            PlaceError::Blocked { at } => {
                changes.looks.extend(Key::new(at.as_str()));
            }
            PlaceError::DiskFull => self.progress.report_place_error(&error),
            PlaceError::Ungrown(_) => changes.ungrown.push(path.clone()),
            _ => self.progress.set_problem(path, Some(error.to_string())),
        }
        Skipped::Later
    }

    /// Records what was put in place, and where its chunks are now.
    fn record(
        &mut self,
        changes: Changes,
        settled: Vec<(Key, consort_core::store::Sequence)>,
    ) -> Result<(), StoreError> {
        let dataset = self.context.dataset;
        let mut transaction = Transaction::new(dataset, Body::Nothing);
        transaction.settled = settled;
        let records = changes.records.into_iter().map(|(path, record)| match record {
            Some(record) => RecordChange::Put { version: Basis::Dot(record.dot), path, record },
            None => RecordChange::Remove { path },
        });
        transaction.records = records.collect();
        let files = changes.files.into_iter().map(|file| (file, true));
        let moved = changes.moved.into_iter().map(|file| (file, false));
        for ((path, content), is_there) in files.chain(moved) {
            let chunks = self.context.contents.chunks_of(&content, MANIFEST_TIMEOUT);
            // The manifest was read when the file was staged; should a node be gone since, only places are missing.
            for (offset, chunk) in chunks.map_while(Result::ok) {
                let place =
                    Place::InFile { dataset, path: path.clone(), offset, length: chunk.length };
                let places = if is_there { &mut transaction.places } else { &mut transaction.gone };
                places.push((chunk.hash, place));
                if PLACES_PER_TRANSACTION <= transaction.places.len() + transaction.gone.len() {
                    let mut places = Transaction::new(dataset, Body::Nothing);
                    places.places = std::mem::take(&mut transaction.places);
                    places.gone = std::mem::take(&mut transaction.gone);
                    self.context.store.submit(places, drop);
                }
            }
        }
        self.context.store.commit(transaction).map(drop)
    }
}

impl Changes {
    fn put(&mut self, path: &Key, record: Record, dot: Dot) {
        self.records.insert(path.clone(), Some(Record { dot, ..record }));
    }

    fn remove(&mut self, path: &Key) {
        self.records.insert(path.clone(), None);
    }

    /// What stands at a path, as far as is known.
    fn record(&self, view: &DiskView, path: &Key) -> Result<Option<Record>, StoreError> {
        match self.records.get(path) {
            Some(record) => Ok(record.clone()),
            None => view.record(path),
        }
    }
}

/// A version that goes to a path, and what is recorded to be there.
#[derive(Clone, Copy)]
struct Put<'p> {
    view: &'p DiskView,
    key: &'p Key,
    path: &'p Key,
    record: Option<&'p Record>,
    version: &'p Version,
}

/// Why something could not be put in place.
enum Failure {
    Place(PlaceError),
    Store(StoreError),
    Later,
}

impl From<PlaceError> for Failure {
    fn from(error: PlaceError) -> Self {
        Self::Place(error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Whether what is recorded to be at a path is a version of the key that nothing has replaced.
fn is_current(view: &DiskView, key: &Key, record: Option<&Record>) -> Result<bool, StoreError> {
    let Some(record) = record else { return Ok(false) };
    Ok(view.siblings(key)?.iter().any(|stored| stored.version.dot == record.dot))
}

/// What is to stand where after a batch.
fn placing_of(batch: &[Work]) -> Vec<Placing> {
    let ops = batch.iter().flat_map(|work| work.ops.iter().map(|op| (&work.key, op)));
    let shown = ops.filter_map(|(key, op)| Some((key, op.path(), op.version()?)));
    let placing = shown.map(|(key, path, version)| {
        let (path, key, dot, content) =
            (path.clone(), key.clone(), version.dot, version.content.id());
        let Attributes { kind, mode, modified_ns, .. } = version.attributes;
        Placing { path, key, dot, content, kind, mode, modified_ns }
    });
    placing.collect()
}

/// Takes the staged files out of a batch, so that they can be synced together. They stay in order.
fn take_staged(mut batch: Vec<Work>) -> (Vec<Work>, Vec<Staged>) {
    let mut staged = Vec::new();
    for op in batch.iter_mut().flat_map(|work| &mut work.ops) {
        if let Op::Place { staged: file, .. } = op {
            staged.extend(file.take());
        }
    }
    (batch, staged)
}
