//! What the store records of an entry, and what a look at it shows: each made of the other.

use consort_core::{Content, Dot, Kind};
use consort_store::Record;

use super::{EntryKind, Meta};

/// What a record says of an entry, to be compared with a look at it.
pub(crate) fn recorded_meta(record: &Record) -> Meta {
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
        dot: Dot::default(),
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
        plain: false,
    }
}
