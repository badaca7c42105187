//! What a directory lacks of a key, and what it has too much of it: the difference between what the key's current
//! versions ask for (`project.rs`) and what the records say is there. Reads the store, changes nothing.

use consort_core::store::{Sequence, StoreError, View};
use consort_core::{Key, Kind, OnConflict, Version};
use consort_store::{DiskView, Record};

use crate::folder::ignores::{IGNORE_FILE, MAX_IGNORE_FILE_BYTES};
use crate::folder::project::{conflict_prefix, project};
use crate::folder::record::is_same_time;
use crate::folder::{Ignores, PRIVATE_DIR, is_private};

/// Keys and records that are read from the store at once.
const PAGE: usize = 256;
/// The longest name that the file systems we run on can hold, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// What is to be done about a key.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The place in the feed of the newest version that this was worked out from: while it is the newest, so is this.
    pub(super) newest: Sequence,
    /// What has to appear or to change, losers first.
    pub(super) shows: Vec<Show>,
    /// Paths at which nothing of the key is to stand any more.
    pub(super) removals: Vec<Key>,
    /// A path of the key that cannot be, and why. The key is never done then.
    pub(super) impossible: Option<(Key, String)>,
}

/// A version that a path has to show and does not.
#[derive(Debug)]
pub(super) struct Show {
    /// Where.
    pub(super) path: Key,
    /// What.
    pub(super) version: Version,
    /// What is recorded to be there.
    pub(super) record: Option<Record>,
}

impl Show {
    /// Whether only mode or modification time may be wrong.
    pub(super) fn same_bytes(&self) -> bool {
        self.record.as_ref().is_some_and(|record| {
            record.kind == self.version.attributes.kind
                && record.content == self.version.content.id()
        })
    }
}

impl Plan {
    /// Whether the directory shows all of the key, and nothing else of it.
    pub(super) fn is_empty(&self) -> bool {
        self.shows.is_empty() && self.removals.is_empty() && self.impossible.is_none()
    }

    /// Works out what is to be done about a key.
    pub(super) fn of(
        view: &DiskView,
        key: &Key,
        policy: OnConflict,
        ignores: &Ignores,
    ) -> Result<Self, StoreError> {
        let held = view.siblings(key)?;
        let newest = held.iter().map(|stored| stored.sequence).max().unwrap_or_default();
        let siblings: Vec<Version> = held.into_iter().map(|stored| stored.version).collect();
        let winner = policy.winner(&siblings).filter(|winner| !winner.is_deleted());
        let mut plan = Self { newest, ..Self::default() };
        if is_private(key) {
            let reason = format!(
                "{PRIVATE_DIR} is reserved, and no directory shows what has that name; remove the entry with `consort rm`"
            );
            plan.impossible = winner.map(|_| (key.clone(), reason));
            return Ok(plan);
        }
        let is_dir = winner.is_some_and(|w| w.attributes.kind == Kind::Directory);
        if ignores.is_ignored(key, is_dir) {
            return Ok(plan);
        }
        let displaced = winner.is_some_and(|w| w.attributes.kind != Kind::Directory)
            && any_live_beneath(view, key)?;
        let mut wanted = project(key, &siblings, policy, displaced);
        let mut taken = Ok(());
        wanted.retain(|shown| {
            shown.path == *key
                || (!ignores.is_ignored(&shown.path, false)
                    && !is_taken(view, &shown.path).unwrap_or_else(|error| {
                        taken = Err(error);
                        true
                    }))
        });
        taken?;

        let at_key = view.record(key)?;
        plan.find_removals(view, key, at_key.as_ref(), &siblings)?;
        plan.removals.retain(|path| wanted.iter().all(|shown| shown.path != *path));
        for shown in wanted {
            if let Some(reason) = unusable(&shown.path, shown.version) {
                plan.impossible = Some((shown.path, reason));
                continue;
            }
            let record =
                if shown.path == *key { at_key.clone() } else { view.record(&shown.path)? };
            if record.as_ref().is_none_or(|record| !shows(record, shown.version)) {
                let version = shown.version.clone();
                plan.shows.push(Show { path: shown.path, version, record });
            }
        }
        Ok(plan)
    }

    /// Everything of the key that stands in the directory.
    fn find_removals(
        &mut self,
        view: &DiskView,
        key: &Key,
        at_key: Option<&Record>,
        siblings: &[Version],
    ) -> Result<(), StoreError> {
        // A key that never had a second version has no copy of one.
        let is_first = matches!(siblings, [only] if only.seen.is_empty());
        if at_key.is_some() || !is_first {
            let mut after = None;
            loop {
                let page = view.records(&conflict_prefix(key), after.as_ref(), PAGE)?;
                let Some((last, _)) = page.last() else { break };
                after = Some(last.clone());
                let copies =
                    page.into_iter().filter(|(_, record)| record.key.as_ref() == Some(key));
                self.removals.extend(copies.map(|(path, _)| path));
            }
        }
        if at_key.is_some_and(|record| record.key.is_none() && !record.implicit) {
            self.removals.push(key.clone());
        }
        Ok(())
    }
}

/// Whether what is recorded is the version to the last attribute. A file that was found to have a version's bytes
/// already stands for it, whatever its times are, until they are put right.
fn shows(record: &Record, version: &Version) -> bool {
    let attributes = &version.attributes;
    let times = attributes.kind == Kind::Directory
        || is_same_time(record.modified_ns, attributes.modified_ns);
    record.dot == version.dot && !record.implicit && times
}

/// Why a version cannot stand at a path, whatever else is there.
fn unusable(path: &Key, version: &Version) -> Option<String> {
    if path.split('/').any(|name| MAX_NAME_BYTES < name.len()) {
        let text = "its name is too long for a file system; rename or remove it where it was written (`consort rm`)";
        return Some(text.to_owned());
    }
    let is_file = version.attributes.kind == Kind::File;
    if path.as_str() == IGNORE_FILE && (!is_file || MAX_IGNORE_FILE_BYTES < version.content.size())
    {
        let text =
            "somebody made it something that cannot be used; the patterns that are here stay";
        return Some(text.to_owned());
    }
    None
}

/// Whether something has to stand at a path, or beneath it, that is no conflict copy.
fn is_taken(view: &DiskView, path: &Key) -> Result<bool, StoreError> {
    let is_live = view.siblings(path)?.iter().any(|stored| !stored.version.is_deleted());
    Ok(is_live || any_live_beneath(view, path)?)
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
