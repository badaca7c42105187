//! What `check` finds, and that damage is told and not served.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use consort_core::store::{StoreError, View};
use consort_store::{Basis, Body, DiskStore, Finding, RecordChange, Transaction};
use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::support::{DATASET, assert_clean, key, local, record, store, write};

/// A store with something in every table.
fn full() -> tempfile::TempDir {
    let (directory, store) = store();
    store.set_linked(DATASET, true).expect("links");
    let place = store.pack(b"a chunk").expect("packs");
    let mut transaction = local(vec![write("a", b"a"), write("b", b"b")]);
    transaction.records.push(RecordChange::Put {
        path: key("a"),
        record: record(1),
        version: Basis::Write(0),
    });
    transaction.places.push((consort_core::ChunkHash::of(b"a chunk"), place));
    store.commit(transaction).expect("commits");
    assert_clean(&store);
    directory
}

/// Changes a table's first row behind the store's back.
fn tamper(directory: &Path, table: &str, change: impl FnOnce(&Keyspace, Vec<u8>, Vec<u8>)) {
    let database = Database::builder(directory.join("rows")).open().expect("opens");
    let table = database.keyspace(table, KeyspaceCreateOptions::default).expect("opens");
    let (row, value) = table.first_key_value().expect("has rows").into_inner().expect("reads");
    change(&table, row.to_vec(), value.to_vec());
    database.persist(fjall::PersistMode::SyncAll).expect("is durable");
}

fn findings(directory: &Path) -> Vec<Finding> {
    let store = DiskStore::open(directory).expect("opens");
    let report = store.check(|_| {});
    assert_eq!(report.problems, report.findings.len() as u64);
    assert!(!report.to_string().is_empty());
    report.findings
}

#[test]
fn a_missing_row_is_found_in_every_table() {
    for (table, expected) in [
        ("versions", 3),
        ("feed", 2),
        ("fingerprints", 2),
        ("records", 1),
        ("pending", 1),
        ("chunks", 1),
    ] {
        let directory = full();
        tamper(directory.path(), table, |table, row, _| table.remove(row).expect("removes"));
        let found = findings(directory.path());
        assert_eq!(found.len(), expected, "{table}: {found:?}");
    }
}

#[test]
fn a_row_that_does_not_decode_is_found_in_every_table() {
    for name in ["versions", "feed", "fingerprints", "records", "pending", "chunks"] {
        let directory = full();
        tamper(directory.path(), name, |table, row, _| table.insert(row, [0xff]).expect("writes"));
        let found = findings(directory.path());
        let malformed = |finding: &Finding| matches!(finding, Finding::Malformed { table, .. } if *table == name);
        // The versions' own check reads the feed and the fingerprints, and cannot go on without them.
        let unreadable = |finding: &Finding| matches!(finding, Finding::Unreadable { .. });
        assert!(found.iter().any(|f| malformed(f) || unreadable(f)), "{name}: {found:?}");
    }
}

#[test]
fn a_row_of_no_dataset_is_found() {
    for name in ["versions", "feed", "fingerprints", "records", "pending"] {
        let directory = full();
        tamper(directory.path(), name, |table, mut row, value| {
            row[0] = 1;
            table.insert(row, value).expect("writes");
        });
        let found = findings(directory.path());
        assert_eq!(found, [Finding::Stray { table: name }], "{name}");
    }
}

#[test]
fn a_changed_version_is_found() {
    let directory = full();
    tamper(directory.path(), "versions", |table, row, mut value| {
        // The last byte of the inline content: canonical, but another fingerprint.
        let place = value.iter().rposition(|byte| *byte == b'a').expect("the content");
        value[place] = b'z';
        table.insert(row, value).expect("writes");
    });
    let found = findings(directory.path());
    let what = "are not among the fingerprints";
    assert!(found.contains(&Finding::Versions { dataset: DATASET, key: key("a"), what }));
    assert!(found.contains(&Finding::Digest { dataset: DATASET }));
}

#[test]
fn a_damaged_row_is_told_and_stops_nothing_else() {
    let directory = full();
    tamper(directory.path(), "versions", |table, row, _| table.insert(row, [0]).expect("writes"));
    let store = DiskStore::open(directory.path()).expect("opens");
    let damaged = store.view(DATASET).expect("views").siblings(&key("a"));
    assert!(matches!(damaged, Err(StoreError::Damaged(_))), "{damaged:?}");
    let damaged = store.commit(local(vec![write("c", b"c"), write("a", b"2")]));
    assert!(matches!(damaged, Err(StoreError::Damaged(_))), "{damaged:?}");
    store.commit(local(vec![write("b", b"2")])).expect("commits");
    let held = store.view(DATASET).expect("views").siblings(&key("c"));
    assert_eq!(held, Ok(Vec::new()), "the commit that failed left nothing");
}

#[test]
fn a_damaged_or_missing_pack_is_found() {
    let directory = full();
    let pack = directory.path().join("packs/0000000000000000.pack");
    let whole = fs::read(&pack).expect("reads");
    let file = OpenOptions::new().write(true).open(&pack).expect("opens");
    file.write_all_at(b"X", whole.len() as u64 - 1).expect("writes");
    assert_eq!(findings(directory.path()), [Finding::Chunk { pack: 0, offset: 16 + 36 }]);

    file.set_len(whole.len() as u64 - 1).expect("cuts");
    let found = findings(directory.path());
    assert!(found.contains(&Finding::Pack { pack: 0, offset: 16 }), "{found:?}");
    // What is packed since must not come to lie where rows point already.
    let store = DiskStore::open(directory.path()).expect("opens");
    let place = store.pack(b"another chunk").expect("packs");
    assert!(matches!(place, consort_store::Place::Packed { pack: 1, .. }), "{place:?}");
    drop(store);

    fs::remove_file(&pack).expect("removes");
    let found = findings(directory.path());
    assert!(found.contains(&Finding::NoSuchPlace { pack: 0, offset: 16 + 36 }), "{found:?}");
}

/// Or reading an old chunk would find a new one there, and nobody would learn that the old one is lost.
#[test]
fn a_pack_that_is_gone_is_not_begun_again() {
    let directory = full();
    fs::remove_file(directory.path().join("packs/0000000000000000.pack")).expect("removes");
    let store = DiskStore::open(directory.path()).expect("opens");
    let place = store.pack(b"b chunk").expect("packs");
    assert!(matches!(place, consort_store::Place::Packed { pack: 1, .. }), "{place:?}");
    store.commit(Transaction::new(DATASET, Body::Nothing)).expect("commits");
    drop(store);
    let found = findings(directory.path());
    assert_eq!(found, [Finding::NoSuchPlace { pack: 0, offset: 16 + 36 }]);
}

#[test]
fn nothing_is_wrong_with_a_store_that_is_in_use() {
    let directory = full();
    let store = DiskStore::open(directory.path()).expect("opens");
    let mut seen = Vec::new();
    let report = store.check(|progress| seen.push(progress));
    assert_eq!((report.problems, report.chunks), (0, 1));
    store.pack(b"not durable yet").expect("packs");
    assert_clean(&store);
    store.commit(Transaction::new(DATASET, Body::Nothing)).expect("commits");
    assert_clean(&store);
}
