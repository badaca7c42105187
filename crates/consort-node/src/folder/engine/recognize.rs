//! What a file that is found tells beyond its bytes: whether it is one that was put in place and not recorded, a
//! conflict copy, or still what its writer said about it. Reads the store, changes nothing.

use consort_core::store::{StoreError, View};
use consort_core::{Attributes, Content, Dot, Key, Kind, OnConflict, Version};
use consort_store::{DiskView, Record};

use crate::folder::Placing;
use crate::folder::project::{conflict_path, conflict_prefix, copied_key};
use crate::folder::record::is_same_time;

/// Conflict copies that are read from the store at once.
const PAGE: usize = 256;

/// What a file's writer said about its bytes still holds while they are the same.
pub(super) fn with_declared(
    view: &DiskView,
    path: &Key,
    before: Option<&Record>,
    found: &Record,
    attributes: Attributes,
) -> Result<Attributes, StoreError> {
    let Some(before) = before.filter(|before| {
        before.key.is_none() && before.content == found.content && before.kind == found.kind
    }) else {
        return Ok(attributes);
    };
    let siblings = view.siblings(path)?;
    let shown = siblings.into_iter().find(|stored| stored.version.dot == before.dot);
    Ok(shown.map_or(attributes.clone(), |shown| {
        let Attributes { kind, mode, modified_ns, .. } = attributes;
        Attributes { kind, mode, modified_ns, ..shown.version.attributes }
    }))
}

/// Whether what is found at a path is a current version that no path is recorded to show: then it was put in place,
/// and the node ended before that was recorded. What the record says was there is not replaced by it.
pub(super) fn is_unrecorded(
    view: &DiskView,
    path: &Key,
    record: &Record,
    policy: OnConflict,
    (content, attributes): (&Content, &Attributes),
) -> Result<bool, StoreError> {
    let siblings: Vec<Version> = view.siblings(path)?.into_iter().map(|s| s.version).collect();
    let found = |version: &&Version| {
        version.dot != record.dot
            && version.content.same_bytes(content)
            && version.attributes.kind == attributes.kind
            && version.attributes.mode == attributes.mode
            && version.attributes.modified_ns == attributes.modified_ns
    };
    let Some(version) = policy.winner(&siblings).filter(found) else { return Ok(false) };
    let mut after = None;
    loop {
        let page = view.records(&conflict_prefix(path), after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(true) };
        after = Some(last.clone());
        if page.iter().any(|(_, record)| record.dot == version.dot) {
            return Ok(false);
        }
    }
}

/// What whoever ran before put at a path and did not record, by all that is seen without reading it. It is that if it has this
/// content; nobody wrote it here, whatever others have made of that version since.
#[derive(Clone, Debug)]
pub(in crate::folder) struct Unrecorded {
    pub(super) key: Key,
    pub(super) dot: Dot,
    content: [u8; 16],
    attributes: Attributes,
}

impl Unrecorded {
    /// What was about to be put in place.
    pub(super) fn of(placing: Placing) -> Self {
        let Placing { key, dot, content, kind, mode, modified_ns, .. } = placing;
        let attributes = Attributes { kind, mode, modified_ns, ..Attributes::default() };
        Self { key, dot, content, attributes }
    }

    /// Whether it is this.
    pub(super) fn is(&self, found: &Record) -> bool {
        self.content == found.content && self.is_like(found)
    }

    /// Whether it may be.
    pub(super) fn is_like(&self, found: &Record) -> bool {
        let Attributes { kind, mode, modified_ns, .. } = self.attributes;
        is_like((kind, mode, modified_ns), found)
    }
}

/// Whether what is found is what is recorded, as far as that shows without reading it.
pub(super) fn looks_recorded(record: &Record, found: &Record) -> bool {
    is_like((record.kind, record.mode, record.modified_ns), found)
}

/// The times of a directory follow from its entries.
fn is_like((kind, mode, modified_ns): (Kind, u16, i64), found: &Record) -> bool {
    let is_directory = kind == Kind::Directory;
    let is_then = is_directory || is_same_time(found.modified_ns, modified_ns);
    kind == found.kind && mode == found.mode && is_then
}

/// Whether what is found at a path, and is not what is recorded there, may be what was put there of something that is in `left`,
/// the store as it was left; with `pending`, of something that is still pending there. Of `found`, the content is not looked at.
pub(super) fn unrecorded(
    left: &DiskView,
    path: &Key,
    policy: OnConflict,
    found: &Record,
    pending: bool,
) -> Result<Option<Unrecorded>, StoreError> {
    let key = copied_key(path).unwrap_or_else(|| path.clone());
    for key in [path.clone(), key] {
        if pending && !left.is_pending(&key)? {
            continue;
        }
        let siblings: Vec<Version> = left.siblings(&key)?.into_iter().map(|s| s.version).collect();
        let is_at_path = |version: &&Version| match key == *path {
            true => policy.winner(&siblings).is_some_and(|winner| winner.dot == version.dot),
            false => conflict_path(&key, version.dot).as_ref() == Some(path),
        };
        let live = siblings.iter().filter(is_at_path).filter(|version| !version.is_deleted());
        let mut versions = live.map(|version| Unrecorded {
            key: key.clone(),
            dot: version.dot,
            content: version.content.id(),
            attributes: version.attributes.clone(),
        });
        if let Some(version) = versions.find(|version| version.is_like(found)) {
            return Ok(Some(version));
        }
    }
    Ok(None)
}

/// Whether conflict copies of a key stand in the directory.
pub(super) fn has_copies(view: &DiskView, key: &Key) -> Result<bool, StoreError> {
    let mut after = None;
    loop {
        let page = view.records(&conflict_prefix(key), after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(false) };
        after = Some(last.clone());
        if page.iter().any(|(_, record)| record.key.as_ref() == Some(key)) {
            return Ok(true);
        }
    }
}

/// The loser that a file without a record is the copy of: it was put in place and not recorded, or the directory was
/// linked before.
pub(super) fn copy_of(
    view: &DiskView,
    path: &Key,
    content: &Content,
    attributes: &Attributes,
) -> Result<Option<(Key, Dot)>, StoreError> {
    let Some(key) = copied_key(path) else { return Ok(None) };
    if !view.siblings(path)?.is_empty() {
        return Ok(None);
    }
    let siblings: Vec<Version> = view.siblings(&key)?.into_iter().map(|s| s.version).collect();
    let is_copy = |version: &&Version| {
        conflict_path(&key, version.dot).as_ref() == Some(path)
            && version.content.same_bytes(content)
            && version.attributes.kind == attributes.kind
            && version.attributes.mode == attributes.mode
    };
    let found = siblings.iter().find(is_copy).map(|version| version.dot);
    Ok(found.map(|dot| (key, dot)))
}
