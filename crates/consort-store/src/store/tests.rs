//! What was under way when a store was closed goes on when it is opened.

use consort_core::model::conflict::Losers;
use consort_core::model::merge::Saw;
use consort_core::store::{Tombstones, View};
use consort_core::{
    Attributes, AuthorId, Commit, Content, Dot, Entry, FingerprintKey, Key, NodeId, Timestamp,
};

use super::*;
use crate::layout::ReplicaRow;

const DATASET: DatasetParameters =
    DatasetParameters { id: DatasetId([1; 16]), fingerprint_key: FingerprintKey([2; 32]) };

/// A store with two keys that a crash stopped right after a dataset entered `state`.
fn interrupted(state: State) -> (tempfile::TempDir, DiskStore) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = DiskStore::open(directory.path()).expect("opens");
    store.open_dataset(DATASET).expect("opens");
    if state == State::Unlinking {
        store.set_linked(DATASET.id, true).expect("links");
    }
    let write = |name: &str| LocalWrite {
        key: Key::new(name).expect("a valid key"),
        saw: Saw::Nothing,
        content: Content::Inline([1].into()),
        attributes: Attributes::default(),
    };
    let body = Body::Local { writes: vec![write("a"), write("b")], now: WallTime(1) };
    store.commit(Transaction::new(DATASET.id, body)).expect("commits");
    store.edit(Edit::Enter { dataset: DATASET.id, state }).expect("enters");
    drop(store);
    let store = DiskStore::open(directory.path()).expect("opens");
    (directory, store)
}

#[test]
fn linking_goes_on_after_a_crash() {
    let (_directory, store) = interrupted(State::Linking);
    assert!(store.is_linked(DATASET.id).expect("is there"));
    let view = store.view(DATASET.id).expect("views");
    assert_eq!(view.pending(None, 9).expect("reads").len(), 2);
    assert_eq!(view.pending_count(), 2);
    assert!(store.check(|_| {}).is_clean());
}

#[test]
fn linking_counts_a_key_once_that_was_marked_before_the_crash() {
    let (directory, store) = interrupted(State::Linking);
    store.edit(Edit::Enter { dataset: DATASET.id, state: State::Linking }).expect("enters");
    drop(store);
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(store.view(DATASET.id).expect("views").pending_count(), 2);
    assert!(store.check(|_| {}).is_clean());
}

#[test]
fn unlinking_goes_on_after_a_crash() {
    let (_directory, store) = interrupted(State::Unlinking);
    assert!(!store.is_linked(DATASET.id).expect("is there"));
    let view = store.view(DATASET.id).expect("views");
    assert_eq!(view.pending(None, 9).expect("reads").len(), 0);
    assert_eq!(view.pending_count(), 0);
    assert!(store.check(|_| {}).is_clean());
    assert_eq!(view.summary().digest.count, 2);
}

/// Format 2 did not count losers.
#[test]
fn the_losers_of_an_older_store_are_counted_when_it_is_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = DiskStore::open(directory.path()).expect("opens");
    store.open_dataset(DATASET).expect("opens");
    let write = |name: &str, byte| LocalWrite {
        key: Key::new(name).expect("a valid key"),
        saw: Saw::Nothing,
        content: Content::Inline([byte].into()),
        attributes: Attributes::default(),
    };
    let writes = vec![write("a", 1), write("b", 1), write("b", 2), write("b", 3)];
    let body = Body::Local { writes, now: WallTime(1) };
    store.commit(Transaction::new(DATASET.id, body)).expect("commits");
    let losers = store.view(DATASET.id).expect("views").losers();
    assert_eq!(losers.keep_both, 2);

    let number = layout::Number(0);
    let mut rows = Rows::default();
    let counted = *store.view(DATASET.id).expect("views").replica();
    let replica = ReplicaRow { losers: Losers::default(), ..counted };
    rows.put(Table::Node, layout::replica_key(number), layout::encode_replica(&replica));
    rows.remove(Table::Conflicts, layout::name_key(number, "b"));
    // Left by an upgrade that was not completed.
    rows.put(Table::Conflicts, layout::name_key(number, "a"), layout::encode_losers(losers));
    rows.commit(&store.shared().tables).expect("commits");
    drop(store);
    fs::write(directory.path().join("FORMAT"), "consort store 2\n").expect("writes");

    // Once by the upgrade, and once as any other store.
    for _ in 0..2 {
        let store = DiskStore::open(directory.path()).expect("opens");
        let view = store.view(DATASET.id).expect("views");
        assert_eq!(view.losers(), losers);
        assert_eq!(view.contested(None, 9), Ok(vec![Key::new("b").expect("a valid key")]));
        let report = store.check(|_| {});
        assert!(report.is_clean(), "{report}");
        let format = fs::read_to_string(directory.path().join("FORMAT")).expect("reads");
        assert_eq!(format, "consort store 5\n");
    }
}

/// Format 3 did not index tombstones.
#[test]
fn the_tombstones_of_an_older_store_are_indexed_when_it_is_opened() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = DiskStore::open(directory.path()).expect("opens");
    store.open_dataset(DATASET).expect("opens");
    let key = |name: &str| Key::new(name).expect("a valid key");
    for content in [Content::Inline([1].into()), Content::Deleted] {
        let write = |name: &str| LocalWrite::new(key(name), content.clone());
        let body = Body::Local { writes: vec![write("a"), write("b")], now: WallTime(1) };
        store.commit(Transaction::new(DATASET.id, body)).expect("commits");
    }
    // A forger may give two one dot.
    let mut version = store.view(DATASET.id).expect("views").siblings(&key("a")).expect("reads")[0]
        .version
        .clone();
    version.dot = Dot { author: AuthorId([6; 16]), time: Timestamp(9) };
    let forged = ["x", "y"].map(|name| Entry { key: key(name), version: version.clone() });
    let commit = Commit { entries: forged.into() };
    let body = Body::Remote { peer: NodeId([6; 16]), commit, cursor: None };
    store.commit(Transaction::new(DATASET.id, body)).expect("commits");
    let view = store.view(DATASET.id).expect("views");
    let (counted, indexed) = (view.tombstones(), view.tombstones_after(None, 9));
    assert_eq!((counted.count, indexed.as_ref().expect("reads").len()), (4, 4));
    let report = store.check(|_| {});
    assert!(report.is_clean(), "{report}");

    let number = layout::Number(0);
    let mut rows = Rows::default();
    let replica = ReplicaRow { tombstones: Tombstones::default(), ..*view.replica() };
    rows.put(Table::Node, layout::replica_key(number), layout::encode_replica(&replica));
    let (dot, name) = indexed.as_ref().expect("reads")[1].clone();
    rows.remove(Table::Tombstones, layout::tombstone_key(number, dot, &name));
    // Left by an upgrade that was not completed.
    let gone = Dot { time: Timestamp(1), ..dot };
    rows.put(Table::Tombstones, layout::tombstone_key(number, gone, &key("c")), []);
    rows.commit(&store.shared().tables).expect("commits");
    drop(view);
    drop(store);
    fs::write(directory.path().join("FORMAT"), "consort store 3\n").expect("writes");

    // Once by the upgrade, and once as any other store.
    for _ in 0..2 {
        let store = DiskStore::open(directory.path()).expect("opens");
        let view = store.view(DATASET.id).expect("views");
        assert_eq!((view.tombstones(), view.tombstones_after(None, 9)), (counted, indexed.clone()));
        let report = store.check(|_| {});
        assert!(report.is_clean(), "{report}");
    }
}

#[test]
fn dropping_goes_on_after_a_crash() {
    let (_directory, store) = interrupted(State::Dropping);
    assert!(store.datasets().is_empty());
    let own = ["identity", "clock", "next number"];
    assert_eq!(store.check(|_| {}).rows, own.len() as u64);
}
