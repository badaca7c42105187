//! An index is that of the fingerprints, at every moment and after every opening, and is not made of them each time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use consort_core::model::merge::Saw;
use consort_core::reconcile::index::LEAST_INDEX_SYMBOLS;
use consort_core::store::{DatasetParameters, LocalWrite};
use consort_core::{Attributes, Content, Fingerprint, FingerprintKey, Key, WallTime};

use super::*;
use crate::transaction::{Body, Transaction};
use crate::{DiskStore, Finding};

const DATASET: DatasetParameters =
    DatasetParameters { id: DatasetId([1; 16]), fingerprint_key: FingerprintKey([2; 32]) };
const NUMBER: Number = Number(0);

fn open(directory: &Path) -> DiskStore {
    let store = DiskStore::open(directory).expect("opens");
    store.open_dataset(DATASET).expect("opens");
    store
}

/// Writes keys of these numbers, as one commit.
fn write(store: &DiskStore, keys: std::ops::Range<usize>, byte: u8) {
    let write = |n: usize| LocalWrite {
        key: Key::new(format!("{n}")).expect("a valid key"),
        saw: Saw::Winner,
        content: Content::Inline([byte].into()),
        attributes: Attributes::default(),
    };
    let body = Body::Local { writes: keys.map(write).collect(), now: WallTime(1) };
    store.commit(Transaction::new(DATASET.id, body)).expect("commits");
}

fn view(store: &DiskStore) -> DiskView {
    store.view(DATASET.id).expect("views")
}

fn assert_is_whole(store: &DiskStore) {
    let view = view(store);
    let mut expected = Index::with_symbols(view.index().symbols());
    let all = view.fingerprints(None, usize::MAX).expect("reads");
    all.into_iter().for_each(|fingerprint| expected.add(fingerprint));
    assert!(*view.index() == expected);
    assert_eq!(view.index().digest(), view.summary().digest);
}

fn rows_of_the_index(store: &DiskStore) -> usize {
    store.shared().tables.moment().rows(Table::Index, &[], Vec::new()).count()
}

/// Changes rows behind the store's back.
fn change(store: &DiskStore, change: impl FnOnce(&mut Rows)) {
    let mut rows = Rows::default();
    change(&mut rows);
    rows.commit(&store.shared().tables).expect("writes");
}

#[test]
fn opening_reads_the_index_and_not_the_fingerprints() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    for commit in 0..30 {
        write(&store, 10 * commit..10 * commit + 20, u8::try_from(commit).expect("few"));
    }
    let index = view(&store).index().clone();
    // Would it look at them, it would find none.
    let fingerprints = view(&store).fingerprints(None, usize::MAX).expect("reads");
    change(&store, |rows| {
        for fingerprint in fingerprints {
            rows.remove(Table::Fingerprints, layout::fingerprint_key(NUMBER, fingerprint));
        }
    });
    drop(store);
    assert!(*view(&open(directory.path())).index() == index);
}

#[test]
fn what_opening_has_to_catch_up_with_is_bounded() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let per_commit = 16;
    for commit in 0..50 {
        write(&store, 0..per_commit, commit);
        let bound = LEAST_INDEX_SYMBOLS / per_commit + 2;
        assert!(rows_of_the_index(&store) <= bound, "{}", rows_of_the_index(&store));
    }
    drop(store);
    let store = open(directory.path());
    assert_is_whole(&store);
    assert!(store.check(|_| {}).is_clean());
}

#[test]
fn an_index_grows_with_its_dataset() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    write(&store, 0..8 * LEAST_INDEX_SYMBOLS + 1, 1);
    assert_eq!(view(&store).index().symbols(), LEAST_INDEX_SYMBOLS);
    write(&store, 0..9, 2);
    assert_eq!(view(&store).index().symbols(), 16 * LEAST_INDEX_SYMBOLS);
    assert_is_whole(&store);
    drop(store);
    let store = open(directory.path());
    assert_eq!(view(&store).index().symbols(), 16 * LEAST_INDEX_SYMBOLS);
    assert_is_whole(&store);
    assert!(store.check(|_| {}).is_clean());
}

#[test]
fn an_index_that_is_missing_or_damaged_is_made_anew() {
    let key = || layout::index_key(NUMBER);
    let first = || layout::index_change_key(NUMBER, 0);
    let foreign = || {
        let mut index = Index::new();
        index.add(Fingerprint(5));
        layout::encode_index(Sequence(1), &index)
    };
    let damages: [&dyn Fn(&mut Rows); 5] = [
        &|rows| rows.remove(Table::Index, first()),
        &|rows| rows.put(Table::Index, first(), [1, 2, 3]),
        &|rows| rows.put(Table::Index, first(), []),
        &|rows| rows.put(Table::Index, key(), [1, 2, 3]),
        &|rows| rows.put(Table::Index, key(), foreign()),
    ];
    for damage in damages {
        let directory = tempfile::tempdir().expect("a directory");
        let store = open(directory.path());
        write(&store, 0..9, 1);
        write(&store, 5..20, 2);
        change(&store, damage);
        let found = store.check(|_| {}).findings;
        assert!(found.iter().any(|finding| matches!(finding, Finding::Index { .. })), "{found:?}");
        drop(store);
        let store = open(directory.path());
        assert_is_whole(&store);
        assert!(store.check(|_| {}).is_clean());
        write(&store, 0..9, 3);
        assert_is_whole(&store);
        drop(store);
        assert_is_whole(&open(directory.path()));
    }
}

#[test]
fn an_index_whose_symbols_were_changed_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    write(&store, 0..9, 1);
    // Two others with the same sum.
    let view = view(&store);
    let mut index = view.index().clone();
    let two = view.fingerprints(None, 2).expect("reads");
    two.iter().for_each(|fingerprint| index.remove(*fingerprint));
    index.add(Fingerprint(two[0].0 + 1));
    index.add(Fingerprint(two[1].0 - 1));
    assert_eq!(index.digest(), view.summary().digest);
    let value = layout::encode_index(view.summary().head.sequence, &index);
    change(&store, |rows| rows.put(Table::Index, layout::index_key(NUMBER), value));
    let found = store.check(|_| {}).findings;
    assert!(matches!(found[..], [Finding::Index { .. }]), "{found:?}");
}

#[test]
fn every_view_has_the_index_of_its_moment() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let view = view(&store);
                    assert_eq!(view.index().digest(), view.summary().digest);
                }
            });
        }
        let before = view(&store);
        for commit in 0..100 {
            write(&store, 0..usize::from(commit) + 1, commit);
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(before.index().digest().count, 0);
    });
    assert_is_whole(&store);
}

#[test]
fn a_dataset_that_is_dropped_and_opened_again_begins_with_an_empty_index() {
    let directory = tempfile::tempdir().expect("a directory");
    let store = open(directory.path());
    write(&store, 0..9, 1);
    store.drop_dataset(DATASET.id).expect("drops");
    assert_eq!(rows_of_the_index(&store), 0);
    store.open_dataset(DATASET).expect("opens");
    assert!(*view(&store).index() == Index::new());
    write(&store, 0..3, 1);
    assert_is_whole(&store);
}
