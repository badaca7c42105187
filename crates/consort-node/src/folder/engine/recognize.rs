//! What a file that is found tells beyond its bytes: whether it is one that was put in place and not recorded, a
//! conflict copy, or still what its writer said about it. Reads the store, changes nothing.

use consort_core::store::{StoreError, View};
use consort_core::{Attributes, Content, Dot, Key, Kind, OnConflict, Version};
use consort_store::{DiskView, Record};

use crate::folder::project::{conflict_path, conflict_prefix, copied_key};

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
    let found =
        |version: &&Version| version.dot != record.dot && is_version(content, attributes, version);
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

/// The key and the dot of the version that stands at a path without a record, if an engine before this one put it there: nobody
/// wrote it here, whatever others have made of that version since. `left` is the store as that engine left it.
pub(super) fn left_unrecorded(
    left: &DiskView,
    path: &Key,
    policy: OnConflict,
    (content, attributes): (&Content, &Attributes),
) -> Result<Option<(Key, Dot)>, StoreError> {
    if let Some(copy) = copy_of(left, path, content, attributes)? {
        return Ok(Some(copy));
    }
    let siblings: Vec<Version> = left.siblings(path)?.into_iter().map(|s| s.version).collect();
    let winner = policy.winner(&siblings).filter(|winner| !winner.is_deleted());
    let found = winner.filter(|winner| is_version(content, attributes, winner));
    Ok(found.map(|winner| (path.clone(), winner.dot)))
}

/// Whether what is found is this version, to the modification time if it has one.
fn is_version(content: &Content, attributes: &Attributes, version: &Version) -> bool {
    let Attributes { kind, mode, modified_ns, .. } = version.attributes;
    version.content.same_bytes(content)
        && kind == attributes.kind
        && mode == attributes.mode
        && (kind == Kind::Directory || modified_ns == attributes.modified_ns)
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
