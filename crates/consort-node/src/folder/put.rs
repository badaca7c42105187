//! Putting in place what is staged, a batch at a time: sync the staged files, swap them in one by one, sync again,
//! and only then record them. A crash before the second sync leaves entries without a record, which the next scan
//! finds to be what they should be; a crash after it leaves nothing to do.
//!
//! An entry is only replaced if it is what its record says, and if its bytes are not the only ones of a version that
//! somebody may want back.

use std::collections::HashSet;
use std::time::Duration;

use consort_core::model::merge;
use consort_core::store::{StoreError, View};
use consort_core::{Content, Dot, Key, Kind, Version};
use consort_store::{Basis, Body, DiskView, Place, Record, RecordChange, Transaction};

use super::apply::{Op, Work};
use super::engine::{Engine, record_of, recorded_meta};
use super::project::conflict_prefix;
use super::{Expected, PlaceError, Placed, RemovedDirectory, Staged};

/// Places of chunks in one transaction.
const PLACES_PER_TRANSACTION: usize = 4096;
/// How long a manifest node may take to be fetched. All of them are here as a rule.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Records that are read from the store at once.
const PAGE: usize = 256;

/// What a batch has changed in the directory and not recorded yet.
#[derive(Debug, Default)]
struct Changes {
    records: Vec<RecordChange>,
    /// Keys whose directories have to be synced.
    synced: Vec<String>,
    /// What is at its path now, and which files' chunks have to be entered as being there.
    placed: HashSet<Dot>,
    files: Vec<(Key, Content)>,
}

/// Why an operation was not done.
enum Skipped {
    /// Try again later.
    Later,
    /// It cannot be done here, and trying again does not help.
    Never,
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
        let keys: Vec<Key> = batch.iter().map(|work| work.key.clone()).collect();
        let (batch, staged) = take_staged(batch);
        if let Err(error) = self.root.sync_staged(&staged) {
            self.progress.report_place_error(&PlaceError::from(error));
            self.stager.done(keys, true);
            return Ok(());
        }
        let view = self.view()?;
        let mut staged = staged.into_iter();
        let mut changes = Changes::default();
        let mut settled = Vec::new();
        let mut left = false;
        for work in batch {
            let mut done = true;
            for op in work.ops {
                let file = matches!(op, Op::Place { .. }).then(|| staged.next()).flatten();
                match self.put(&view, &work.key, op, file, &mut changes) {
                    Ok(()) | Err(Skipped::Never) => {}
                    Err(Skipped::Later) => done = false,
                    Err(Skipped::Store(error)) => return Err(error),
                }
            }
            left |= !done;
            if done && work.complete {
                settled.push((work.key, work.sequence));
            }
        }
        let synced = changes.synced.iter().map(String::as_str);
        if let Err(error) = self.root.sync_entries(synced) {
            self.progress.report_place_error(&PlaceError::from(error));
            self.stager.done(keys, true);
            return Ok(());
        }
        self.record(changes, settled)?;
        if !left {
            self.progress.set_trouble("disk", None);
        }
        self.stager.done(keys, left);
        (self.context.on_applied)();
        Ok(())
    }

    fn put(
        &mut self,
        view: &DiskView,
        key: &Key,
        op: Op,
        staged: Option<Staged>,
        changes: &mut Changes,
    ) -> Result<(), Skipped> {
        let path = match &op {
            Op::Place { path, .. }
            | Op::Symlink { path, .. }
            | Op::Directory { path, .. }
            | Op::Attributes { path, .. }
            | Op::Remove { path } => path.clone(),
        };
        if self.is_unsettled(&path) {
            return Err(Skipped::Later);
        }
        let record = view.record(&path)?;
        let outcome = match op {
            Op::Remove { .. } => match record {
                Some(record) => self.remove(&path, &record, view, changes),
                None => Ok(()),
            },
            Op::Place { version, .. } => {
                let Some(staged) = staged else { return Err(Skipped::Later) };
                self.replace(
                    view,
                    key,
                    &path,
                    record.as_ref(),
                    &version,
                    changes,
                    |engine, expected| engine.root.place_file(staged, &path, expected),
                )
            }
            Op::Symlink { version, .. } => {
                let Content::Inline(target) = &version.content else { return Err(Skipped::Never) };
                let Ok(target) = std::str::from_utf8(target).map(str::to_owned) else {
                    let text = "the target of this symlink is not UTF-8".to_owned();
                    self.progress.set_problem(&path, Some(text));
                    return Err(Skipped::Never);
                };
                let modified = version.attributes.modified_ns;
                self.replace(
                    view,
                    key,
                    &path,
                    record.as_ref(),
                    &version,
                    changes,
                    |engine, expected| {
                        engine.root.place_symlink(target.as_ref(), &path, expected, modified)
                    },
                )
            }
            Op::Directory { version, .. } => {
                self.make_directory(view, key, &path, record.as_ref(), &version, changes)
            }
            Op::Attributes { version, .. } => {
                let Some(record) = record else { return Err(Skipped::Later) };
                self.set_attributes(key, &path, &record, &version, changes)
            }
        };
        outcome.map_err(|error| self.on_failure(&path, error))
    }

    fn replace(
        &mut self,
        view: &DiskView,
        key: &Key,
        path: &Key,
        record: Option<&Record>,
        version: &Version,
        changes: &mut Changes,
        place: impl FnOnce(&Self, Expected) -> Result<Placed, PlaceError>,
    ) -> Result<(), Failure> {
        let expected = match record {
            None => Expected::Absent,
            Some(record) if record.kind == Kind::Directory => {
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
        let placed = place(self, expected)?;
        changes.note_created(&placed.created);
        changes.synced.push(path.to_string());
        changes.placed.insert(version.dot);
        let was_copy = record.is_some_and(|record| record.key.is_some());
        let mut record = record_of(&placed.meta, &version.content, false);
        record.key = (path != key).then(|| key.clone());
        if record.key.is_some() && !was_copy {
            self.progress.count_conflict(true);
        }
        changes.put(path, record, version.dot);
        if version.attributes.kind == Kind::File {
            changes.files.push((path.clone(), version.content.clone()));
        }
        Ok(())
    }

    fn make_directory(
        &mut self,
        view: &DiskView,
        key: &Key,
        path: &Key,
        record: Option<&Record>,
        version: &Version,
        changes: &mut Changes,
    ) -> Result<(), Failure> {
        if let Some(record) = record
            && record.kind != Kind::Directory
        {
            self.keep_bytes(view, path, record, None, changes)?;
            self.root.remove_file(path, &recorded_meta(record))?;
        }
        let mode = u32::from(version.attributes.mode);
        let mut placed = self.root.place_directory(path, mode)?;
        if placed.meta.mode != mode {
            placed.meta = self.root.set_attributes(path, &placed.meta, mode, 0)?;
        }
        let above = placed.created.iter().filter(|created| *created != path.as_str());
        changes.note_created(&above.cloned().collect::<Vec<_>>());
        changes.synced.push(path.to_string());
        let mut record = record_of(&placed.meta, &version.content, false);
        record.key = (path != key).then(|| key.clone());
        changes.put(path, record, version.dot);
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
        changes.placed.insert(version.dot);
        let mut record = record_of(&meta, &version.content, record.racy);
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
        // Directories that only existed for what was in them go with the last of it.
        for above in path.ancestors() {
            let above = Key::new(above).expect("a part of a key is a key");
            let implicit = match changes.latest(&above) {
                Some(RecordChange::Put { record, .. }) => record.implicit,
                Some(RecordChange::Remove { .. }) => false,
                None => view.record(&above)?.is_some_and(|record| record.implicit),
            };
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

    /// Before what stands at a path is replaced: if it is a current version whose bytes are nowhere else shown, they
    /// go into a pack, so that the version stays readable.
    fn keep_bytes(
        &self,
        view: &DiskView,
        path: &Key,
        record: &Record,
        instead: Option<&Version>,
        changes: &Changes,
    ) -> Result<(), Failure> {
        let key = record.key.as_ref().unwrap_or(path);
        let siblings = view.siblings(key)?;
        let held = siblings.iter().map(|stored| &stored.version).find(|v| v.dot == record.dot);
        let Some(version) = held.filter(|version| !version.is_deleted()) else { return Ok(()) };
        if instead.is_some_and(|instead| instead.content.same_bytes(&version.content)) {
            return Ok(());
        }
        if changes.placed.contains(&version.dot) || shown_elsewhere(view, key, path, version)? {
            return Ok(());
        }
        for chunk in self.context.contents.chunks_of(&version.content, MANIFEST_TIMEOUT) {
            let (_, chunk) = chunk.map_err(|_| Failure::Later)?;
            let bytes = self.context.contents.local().read(&chunk).map_err(|_| Failure::Later)?;
            let Some(bytes) = bytes else { return Err(Failure::Later) };
            self.context.store.pack(&bytes)?;
        }
        Ok(())
    }

    fn on_failure(&mut self, path: &Key, failure: Failure) -> Skipped {
        let error = match failure {
            Failure::Store(error) => return Skipped::Store(error),
            Failure::Later => return Skipped::Later,
            Failure::Place(error) => error,
        };
        tracing::debug!(%path, %error, "an entry is not put in place");
        match &error {
            PlaceError::Changed => self.look_again(path),
            PlaceError::Blocked { at } => {
                if let Ok(at) = Key::new(at.as_str()) {
                    self.look_again(&at);
                }
            }
            PlaceError::DiskFull => self.progress.report_place_error(&error),
            PlaceError::Unrepresentable(_) => {
                self.progress.set_problem(path, Some(error.to_string()));
                return Skipped::Never;
            }
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
        (transaction.records, transaction.settled) = (changes.records, settled);
        for (path, content) in changes.files {
            let chunks = self.context.contents.chunks_of(&content, MANIFEST_TIMEOUT);
            // The manifest was read when the file was staged; should a node be gone since, only places are missing.
            for (offset, chunk) in chunks.map_while(Result::ok) {
                let place =
                    Place::InFile { dataset, path: path.clone(), offset, length: chunk.length };
                transaction.places.push((chunk.hash, place));
                if PLACES_PER_TRANSACTION <= transaction.places.len() {
                    let mut places = Transaction::new(dataset, Body::Nothing);
                    places.places = std::mem::take(&mut transaction.places);
                    self.context.store.submit(places, drop);
                }
            }
        }
        self.context.store.commit(transaction).map(drop)
    }
}

impl Changes {
    fn put(&mut self, path: &Key, record: Record, dot: Dot) {
        let (path, version) = (path.clone(), Basis::Dot(dot));
        self.records.push(RecordChange::Put { path, record: Record { dot, ..record }, version });
    }

    fn remove(&mut self, path: &Key) {
        self.records.push(RecordChange::Remove { path: path.clone() });
    }

    /// Directories that were made on the way to an entry exist only because of it.
    fn note_created(&mut self, created: &[String]) {
        for path in created {
            self.synced.push(path.clone());
            let Ok(path) = Key::new(path.as_str()) else { continue };
            let record = Record {
                dot: Dot::default(),
                key: None,
                kind: Kind::Directory,
                size: 0,
                mode: 0o755,
                modified_ns: 0,
                changed_ns: 0,
                inode: 0,
                content: Content::Inline(Box::default()).id(),
                implicit: true,
                racy: false,
            };
            self.put(&path, record, Dot::default());
        }
    }

    fn latest(&self, path: &Key) -> Option<&RecordChange> {
        self.records.iter().rev().find(|change| match change {
            RecordChange::Put { path: changed, .. } | RecordChange::Remove { path: changed } => {
                changed == path
            }
        })
    }
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

/// Whether another path shows a version that is about to be replaced at `path`.
fn shown_elsewhere(
    view: &DiskView,
    key: &Key,
    path: &Key,
    version: &Version,
) -> Result<bool, StoreError> {
    let shows = |record: &Record| record.dot == version.dot;
    if path != key && view.record(key)?.as_ref().is_some_and(shows) {
        return Ok(true);
    }
    // A winner that is replaced had nothing beside it.
    let siblings: Vec<Version> = view.siblings(key)?.into_iter().map(|s| s.version).collect();
    if merge::losers(&siblings).is_empty() {
        return Ok(false);
    }
    let mut after = None;
    loop {
        let page = view.records(&conflict_prefix(key), after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(false) };
        after = Some(last.clone());
        if page.iter().any(|(other, record)| other != path && shows(record)) {
            return Ok(true);
        }
    }
}
