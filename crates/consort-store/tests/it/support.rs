//! What the tests share.

use consort_core::model::merge::Saw;
use consort_core::store::{DatasetParameters, LocalWrite};
use consort_core::{
    Attributes, Content, DatasetId, Dot, FingerprintKey, Key, Kind, NodeId, WallTime,
};
use consort_store::{Body, DiskStore, Record, Transaction};

pub(crate) const DATASET: DatasetId = DatasetId([5; 16]);
pub(crate) const PEER: NodeId = NodeId([6; 16]);

pub(crate) fn parameters(id: DatasetId) -> DatasetParameters {
    DatasetParameters { id, fingerprint_key: FingerprintKey([1; 32]) }
}

/// A store in a directory of its own, with one dataset.
pub(crate) fn store() -> (tempfile::TempDir, DiskStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = DiskStore::open(directory.path()).expect("opens");
    store.open_dataset(parameters(DATASET)).expect("opens");
    (directory, store)
}

pub(crate) fn key(text: &str) -> Key {
    Key::new(text).expect("a valid key")
}

pub(crate) fn write(name: &str, bytes: &[u8]) -> LocalWrite {
    LocalWrite {
        key: key(name),
        saw: Saw::Winner,
        content: Content::Inline(bytes.into()),
        attributes: Attributes::default(),
    }
}

pub(crate) fn local(writes: Vec<LocalWrite>) -> Transaction {
    Transaction::new(DATASET, Body::Local { writes, now: WallTime(1_000) })
}

/// What a directory might hold.
pub(crate) fn record(size: u64) -> Record {
    Record {
        dot: Dot::default(),
        key: None,
        kind: Kind::File,
        size,
        mode: 0o644,
        modified_ns: -5,
        changed_ns: 1_700_000_000_000_000_000,
        inode: 77,
        implicit: false,
        plain: false,
        content: [7; 16],
        racy: true,
    }
}

pub(crate) fn assert_clean(store: &DiskStore) {
    let report = store.check(|_| {});
    assert!(report.is_clean(), "{report}");
}
