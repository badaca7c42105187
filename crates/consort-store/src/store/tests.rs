//! What was under way when a store was closed goes on when it is opened.

use consort_core::model::merge::Saw;
use consort_core::store::View;
use consort_core::{Attributes, Content, FingerprintKey, Key};

use super::*;

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

#[test]
fn dropping_goes_on_after_a_crash() {
    let (_directory, store) = interrupted(State::Dropping);
    assert!(store.datasets().is_empty());
    let own = ["identity", "clock", "next number"];
    assert_eq!(store.check(|_| {}).rows, own.len() as u64);
}
