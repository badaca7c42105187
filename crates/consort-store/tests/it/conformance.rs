//! The core's suite.

use std::collections::BTreeMap;

use consort_core::AuthorId;
use consort_core::store::conformance;
use consort_store::DiskStore;
use tempfile::TempDir;

use crate::support::assert_clean;

#[test]
fn the_store_on_disk_conforms_also_when_it_is_opened_again() {
    for seed in 0..6 {
        let mut directories: BTreeMap<AuthorId, TempDir> = BTreeMap::new();
        let made = std::cell::RefCell::new(&mut directories);
        let make = || {
            let directory = tempfile::tempdir().expect("a directory");
            let store = DiskStore::open(directory.path()).expect("opens");
            made.borrow_mut().insert(store.author(), directory);
            store
        };
        let between = |store: DiskStore, random: u64| {
            if !random.is_multiple_of(4) {
                return store;
            }
            let path = made.borrow()[&store.author()].path().to_owned();
            drop(store);
            let store = DiskStore::open(&path).expect("opens");
            assert_clean(&store);
            store
        };
        conformance::run(seed, make, between);
    }
}

#[test]
fn the_store_on_disk_collects_many_tombstones_in_steps() {
    for collects in [conformance::collects_many_in_steps, conformance::collects_many_of_one_dot] {
        let directory = tempfile::tempdir().expect("a directory");
        let store = DiskStore::open(directory.path()).expect("opens");
        collects(store.clone());
        assert_clean(&store);
    }
}
