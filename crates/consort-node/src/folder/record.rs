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

/// Whether a file system that counts time in coarse steps may make one of the other.
pub(super) fn is_same_time(found: i64, wanted: i64) -> bool {
    let steps = [1, 100, 1_000, 1_000_000, 1_000_000_000, 2_000_000_000];
    steps
        .into_iter()
        .any(|step: i64| found % step == 0 && found.abs_diff(wanted) < step.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_same_when_a_file_system_could_not_keep_more_of_it() {
        assert!(is_same_time(1_234_567_891, 1_234_567_891));
        assert!(is_same_time(1_234_567_800, 1_234_567_891));
        assert!(is_same_time(1_000_000_000, 1_234_567_891));
        assert!(!is_same_time(1_234_567_890, 1_234_567_891));
        assert!(!is_same_time(1_000_000_000, 4_234_567_891));
    }
}
