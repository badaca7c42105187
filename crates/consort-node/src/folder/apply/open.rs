//! What is done about one key: its plan made into a job, together with what hangs together with it. When which key is
//! looked at is decided in `apply.rs`.

use std::sync::Arc;
use std::time::Instant;

use consort_core::content::manifest::{Step, Walk};
use consort_core::store::{Sequence, StoreError, View};
use consort_core::{ChunkRef, Content, Key, Kind, Version};
use consort_store::{DiskView, Place};

use super::file::is_large;
use super::plan::{Plan, Show};
use super::{Job, MAX_UNMOVABLE, Op, Thread};
use crate::folder::project::copied_key;
use crate::folder::record::recorded_meta;
use crate::folder::status::Underway;
use crate::folder::{EntryKind, split_key};

/// What a key is looked at for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Showing,
    Removing,
    /// Whatever comes first, since nothing else makes it come up.
    Both,
}

/// What stands where something is to be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    /// What is recorded, and it can be replaced.
    Free,
    /// A directory that is not empty, where none is wanted.
    Occupied,
    /// Something else than what is recorded.
    Unknown,
}

impl Thread {
    pub(super) fn open_on_view(
        &mut self,
        key: Key,
        sequence: Option<Sequence>,
        half: Half,
    ) -> Result<bool, StoreError> {
        let view = match self.view.take() {
            Some(view) => view,
            None => self.store.view(self.dataset)?,
        };
        self.open(&view, key, sequence, half)?;
        self.view = Some(view);
        Ok(true)
    }

    /// Works out what a key needs and begins with it. `sequence` says how new its pending change is.
    fn open(
        &mut self,
        view: &DiskView,
        key: Key,
        sequence: Option<Sequence>,
        half: Half,
    ) -> Result<(), StoreError> {
        if let Some(&(older, at)) = self.active.get(&key) {
            let is_outdated = older != newest_of(view, &key)?;
            match at {
                // Something newer came while its content was on its way, or it is dead: begin again.
                Some(job) if is_outdated && half == Half::Showing => self.abandon(job, true),
                _ => {
                    self.missed |= at.is_none() && is_outdated;
                    return Ok(());
                }
            }
        }
        // Of what was deleted, nothing is to be shown.
        if half == Half::Showing
            && view.siblings(&key)?.iter().all(|stored| stored.version.is_deleted())
        {
            self.files.leftovers().release(&key, Instant::now());
            return Ok(());
        }
        let plan = Plan::of(view, &key, self.policy, &self.ignores)?;
        // What is dead has no version any more.
        let newest = plan.newest.max(sequence.unwrap_or_default());
        if half == Half::Removing && self.is_kept(&key, newest) {
            return Ok(());
        }
        let around = self.look_above(view, &key)? & self.look_beside(view, &key)?;
        if let Some((path, reason)) = &plan.impossible {
            self.progress.set_problem(path, Some(reason.clone()));
            self.left = true;
        }
        if plan.is_empty() {
            self.unlisted.remove(&key);
        } else if let Some(pass) = &mut self.pass {
            pass.idle = false;
        }
        let possible = around && plan.impossible.is_none();
        let Plan { newest, shows, removals, .. } = plan;
        if half == Half::Showing && shows.iter().all(|show| show.path != key) {
            self.files.leftovers().release(&key, Instant::now());
        }
        let showing = half != Half::Removing && !shows.is_empty();
        let removing = half != Half::Showing && !showing && !removals.is_empty();
        let rest = if showing { removals.is_empty() } else { shows.is_empty() };
        let complete = possible && rest && (showing || removing || removals.is_empty());
        if !possible {
            self.leave();
        }
        // What was not pending has nothing to settle.
        let settles = complete && sequence.is_some();
        if !(showing || removing || settles) {
            return Ok(());
        }
        let sequence = sequence.unwrap_or_default();
        let (ops, open_files, written) = (Vec::new(), 0, Underway::new(&self.progress));
        let fresh = Vec::new();
        let mut job = Job { key, sequence, newest, ops, open_files, complete, written, fresh };
        let id = self.next_id;
        self.next_id += 1;
        let mut put_off = false;
        if showing {
            for show in shows {
                put_off |= !self.prepare(view, id, &mut job, show, half)?;
            }
        } else if removing {
            job.ops = removals.into_iter().map(|path| Some(Op::Remove { path })).collect();
        }
        self.active.insert(job.key.clone(), (newest, Some(id)));
        self.jobs.insert(id, job);
        if put_off {
            self.abandon(id, true);
        } else {
            self.finish_if_complete(id);
        }
        Ok(())
    }

    /// Whether what is to go stays for this pass, in case the file is one that moves: its new name was not looked at, or it
    /// was to move and did not. `newest` says how new the change is by which it goes.
    fn is_kept(&mut self, key: &Key, newest: Sequence) -> bool {
        let was_to_move = self.kept.contains(key);
        if was_to_move {
            self.leave();
        }
        let upto = self.pass.as_ref().and_then(|pass| pass.upto);
        let is_newer = upto.is_some_and(|upto| upto < newest);
        self.again |= is_newer;
        was_to_move || is_newer
    }

    /// A file above a live key has to make way, and comes back when the last one is gone. Nothing says that it is
    /// pending, so a key beneath is not done before it is. Whether all is well above.
    fn look_above(&mut self, view: &DiskView, key: &Key) -> Result<bool, StoreError> {
        let Some(parent) = key.parent() else { return Ok(true) };
        if let Some(pass) = &self.pass
            && let Some((above, well)) = &pass.looked_above
            && above == parent
        {
            return Ok(*well);
        }
        let mut well = true;
        for above in key.ancestors() {
            let above = Key::new(above).expect("a part of a key is a key");
            well &= self.look_beside(view, &above)?;
            let siblings = view.siblings(&above)?;
            let siblings: Vec<Version> = siblings.into_iter().map(|s| s.version).collect();
            let is_file = |winner: &Version| {
                !winner.is_deleted() && winner.attributes.kind != Kind::Directory
            };
            if !self.policy.winner(&siblings).is_some_and(is_file) {
                continue;
            }
            well &= self.is_well(view, above)?;
        }
        if let Some(pass) = &mut self.pass {
            pass.looked_above = Some((parent.to_owned(), well));
        }
        Ok(well)
    }

    /// A conflict copy makes way for a live key of its name, and comes back when that is gone. Whether all is well
    /// with the key whose copy this one would be by its name.
    fn look_beside(&mut self, view: &DiskView, key: &Key) -> Result<bool, StoreError> {
        copied_key(key).map_or(Ok(true), |copied| self.is_well(view, copied))
    }

    /// Whether nothing is to do for a key that nothing says is pending. If something is, it is done.
    fn is_well(&mut self, view: &DiskView, key: Key) -> Result<bool, StoreError> {
        if self.active.contains_key(&key) {
            return Ok(false);
        }
        if Plan::of(view, &key, self.policy, &self.ignores)?.is_empty() {
            return Ok(true);
        }
        if self.unlisted.insert(key.clone()) {
            self.extra.push(key);
        }
        Ok(false)
    }

    /// Adds what a path needs to a job. Nothing is staged for a path at which it could not be put in place. False if the
    /// key has to be put off.
    fn prepare(
        &mut self,
        view: &DiskView,
        id: u64,
        job: &mut Job,
        show: Show,
        half: Half,
    ) -> Result<bool, StoreError> {
        let same_bytes = show.same_bytes();
        let there = self.look(view, &show)?;
        let (path, version) = (show.path, Arc::new(show.version));
        let op = match version.attributes.kind {
            _ if there == There::Unknown => Op::Look { path },
            _ if there == There::Occupied => Op::Wait { path },
            Kind::Directory => Op::Directory { path, version },
            Kind::Symlink => Op::Symlink { path, version },
            Kind::File if same_bytes => Op::Attributes { path, version },
            Kind::File
                if show.record.is_none()
                    && let Some(from) = self.find_moved(view, &version)? =>
            {
                self.active.insert(from.clone(), (newest_of(view, &from)?, None));
                Op::Move { from, path, version }
            }
            Kind::File
                if is_large(&version)
                    && let (room, listed) = (self.files.takes_large(), half != Half::Both)
                    && !self.turns.take(&job.key, room, listed) =>
            {
                return Ok(false);
            }
            Kind::File => {
                // What may not be written to any more could not be completed after a crash.
                let is_writable = version.attributes.mode & 0o200 != 0;
                let may_grow = path == job.key && is_writable;
                let replaces = show.record.filter(|record| may_grow && record.kind == Kind::File);
                let replaces = replaces.as_ref().map(recorded_meta);
                self.files.begin(id, job.ops.len(), path, version, replaces);
                job.ops.push(None);
                job.open_files += 1;
                return Ok(true);
            }
        };
        job.ops.push(Some(op));
        Ok(true)
    }

    /// The first chunk of a content, if its manifest is on this machine: otherwise no file here has that content.
    fn first_chunk(&self, content: &Content) -> Result<Option<ChunkRef>, StoreError> {
        let mut walk = Walk::new(content);
        loop {
            match walk.step() {
                Step::Chunk(_, first) => return Ok(Some(first)),
                Step::End => return Ok(None),
                Step::Needs(node) => match self.contents.local().read(&node)? {
                    Some(bytes) if walk.enter(&bytes).is_ok() => {}
                    _ => return Ok(None),
                },
            }
        }
    }

    /// A file that is to go, and is what this version is to the last attribute: as a rule, somebody renamed it.
    fn find_moved(&self, view: &DiskView, version: &Version) -> Result<Option<Key>, StoreError> {
        if MAX_UNMOVABLE <= self.unmovable.len() {
            return Ok(None);
        }
        let (content, attributes) = (&version.content, &version.attributes);
        let Some(first) = self.first_chunk(content)? else { return Ok(None) };
        for place in self.store.locate(first.hash)? {
            let Place::InFile { dataset, path: from, offset: 0, .. } = place else { continue };
            if dataset != self.dataset || self.active.contains_key(&from) {
                continue;
            }
            if self.unmovable.contains(split_key(&from).0) {
                continue;
            }
            let Some(record) = view.record(&from)? else { continue };
            let is_same = record.content == content.id()
                && record.kind == attributes.kind
                && record.mode == attributes.mode
                && record.modified_ns == attributes.modified_ns;
            if !is_same || record.key.is_some() || self.ignores.is_ignored(&from, false) {
                continue;
            }
            if view.siblings(&from)?.iter().any(|stored| !stored.version.is_deleted()) {
                continue;
            }
            let found = self.root.stat(&from).ok().flatten();
            if !record.racy && found.is_some_and(|at| at.same_file_state(&recorded_meta(&record))) {
                return Ok(Some(from));
            }
        }
        Ok(None)
    }

    /// What stands where something is to be shown, compared with what is recorded.
    fn look(&self, view: &DiskView, show: &Show) -> Result<There, StoreError> {
        let wants_directory = show.version.attributes.kind == Kind::Directory;
        let Ok(found) = self.root.stat(&show.path) else { return Ok(There::Unknown) };
        let known = match (&show.record, &found) {
            (None, None) => true,
            (None, Some(meta)) => wants_directory && meta.kind == EntryKind::Directory,
            (Some(record), None) => record.kind == Kind::Directory,
            (Some(record), Some(meta)) if record.kind == Kind::Directory => {
                meta.kind == EntryKind::Directory
            }
            (Some(record), Some(meta)) => {
                !record.racy && meta.same_file_state(&recorded_meta(record))
            }
        };
        if !known {
            return Ok(There::Unknown);
        }
        let is_directory = found.is_some_and(|meta| meta.kind == EntryKind::Directory);
        let beneath = format!("{}/", show.path);
        let occupied = is_directory
            && !wants_directory
            && (!view.records(&beneath, None, 1)?.is_empty()
                || !self.root.list(&show.path).is_ok_and(|names| names.is_empty()));
        Ok(if occupied { There::Occupied } else { There::Free })
    }
}

/// How new the newest version of a key is.
fn newest_of(view: &DiskView, key: &Key) -> Result<Sequence, StoreError> {
    let siblings = view.siblings(key)?;
    Ok(siblings.iter().map(|stored| stored.sequence).max().unwrap_or_default())
}
