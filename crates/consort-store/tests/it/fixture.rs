//! A store of each format, as the version that knew no later one wrote it: `tests/fixtures/format-N`. Every later
//! version must open it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use consort_core::model::conflict::Losers;
use consort_core::model::merge::Saw;
use consort_core::store::{Cursor, Epoch, LocalWrite, Sequence, View};
use consort_core::{ChunkHash, Content, Key};
use consort_store::{Basis, Body, DiskStore, Place, Record, RecordChange};

use crate::open::copy;
use crate::support::{DATASET, PEER, assert_clean, key, local, parameters, record, write};

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}"))
}

/// Makes the fixture of the latest format anew. Only for a new format, which then gets a directory of its own.
#[test]
#[ignore = "writes into the source tree; run by hand for a new format"]
fn make_the_fixture() {
    let directory = fixture(5);
    fs::create_dir_all(directory.parent().expect("has one")).expect("a directory");
    let store = DiskStore::open(&directory).expect("opens");
    store.open_dataset(parameters(DATASET)).expect("opens");
    store.set_linked(DATASET, true).expect("links");
    store.set_setting("listen", Some(b"127.0.0.1:1".to_vec())).expect("sets");
    let place = store.pack(b"a chunk").expect("packs");
    let mut transaction = local(vec![write("a/b", b"one"), write("a/c", b"two")]);
    transaction.records.push(RecordChange::Put {
        path: key("a/b"),
        record: Record { plain: true, ..record(3) },
        version: Basis::Write(0),
    });
    transaction.places.push((ChunkHash::of(b"a chunk"), place));
    transaction.places.push((ChunkHash::of(b"one"), in_file()));
    let applied = store.commit(transaction).expect("commits");
    let entries = vec![applied.added[0].0.clone()];
    let body = Body::Remote {
        peer: PEER,
        commit: consort_core::Commit { entries },
        cursor: Some(Cursor { epoch: Epoch(3), sequence: Sequence(4) }),
    };
    store.commit(consort_store::Transaction::new(DATASET, body)).expect("commits");
    let beside = LocalWrite { saw: Saw::Nothing, ..write("a/b", b"beside") };
    let deleted = LocalWrite::new(key("a/d"), Content::Deleted);
    store.commit(local(vec![beside, write("a/d", b"three")])).expect("commits");
    store.commit(local(vec![deleted])).expect("commits");
    drop(store);
    // The journal is allocated ahead; only what was written is worth keeping.
    for file in fs::read_dir(directory.join("rows")).expect("reads") {
        let path = file.expect("reads").path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let bytes = fs::read(&path).expect("reads");
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let journal = OpenOptions::new().write(true).open(&path).expect("opens");
            journal.set_len(end as u64).expect("cuts");
        }
    }
}

fn in_file() -> Place {
    Place::InFile { dataset: DATASET, path: key("a/b"), offset: 0, length: 3 }
}

#[test]
fn a_store_of_format_1_is_read() {
    // It did not count the bytes of what is pending.
    is_read(1, 0);
}

#[test]
fn a_store_of_format_2_is_read() {
    is_read(2, 3);
}

#[test]
fn a_store_of_format_3_is_read() {
    let (_directory, store) = opened(3);
    assert_clean(&store);
    let view = store.view(DATASET).expect("views");
    assert_eq!(view.losers(), Losers { keep_both: 1, prefer_real: 1 });
    assert_eq!(view.contested(None, 9), Ok(vec![key("a/b")]));
    assert_eq!(view.siblings(&key("a/b")).expect("reads").len(), 2);
}

#[test]
fn a_store_of_format_4_is_read() {
    let (_directory, store) = opened(4);
    assert_clean(&store);
    let view = store.view(DATASET).expect("views");
    let deleted = view.tombstones_after(None, 9).expect("reads");
    let keys: Vec<Key> = deleted.into_iter().map(|(_, key)| key).collect();
    assert_eq!((view.tombstones().count, keys), (1, vec![key("a/d")]));
}

#[test]
fn a_store_of_format_5_is_read() {
    let (_directory, store) = opened(5);
    assert_clean(&store);
    let shown = |path: &str| store.view(DATASET).expect("views").record(&key(path)).expect("reads");
    assert!(shown("a/b").is_some_and(|record| record.plain));
}

fn opened(format: u32) -> (tempfile::TempDir, DiskStore) {
    let directory = tempfile::tempdir().expect("a directory");
    copy(&fixture(format), directory.path());
    // Version control keeps no empty directories.
    for keyspace in fs::read_dir(directory.path().join("rows/keyspaces")).expect("reads") {
        let tables = keyspace.expect("reads").path().join("tables");
        fs::create_dir_all(tables).expect("a directory");
    }
    let store = DiskStore::open(directory.path()).expect("opens");
    (directory, store)
}

fn is_read(format: u32, pending_bytes: u64) {
    let (_directory, store) = opened(format);
    assert_clean(&store);
    assert_eq!(store.view(DATASET).expect("views").losers(), Losers::default());
    assert_eq!(store.setting("listen").expect("reads").as_deref(), Some(&b"127.0.0.1:1"[..]));
    assert_eq!(store.datasets(), [parameters(DATASET)]);
    assert!(store.is_linked(DATASET).expect("is there"));

    let view = store.view(DATASET).expect("views");
    assert_eq!((view.summary().digest.count, view.summary().head.sequence), (2, Sequence(2)));
    let rows = view.feed(Sequence(0), usize::MAX).expect("reads");
    let contents: Vec<_> = rows.iter().map(|row| row.entry.version.content.clone()).collect();
    assert_eq!(contents, [b"one", b"two"].map(|bytes| Content::Inline(bytes[..].into())));
    assert_eq!((rows[0].commit_end, rows[0].via), (Sequence(2), None));
    // The fixture is a copy, which does not trust in how far it has applied others' feeds.
    assert_eq!(view.cursor(PEER), Ok(None));
    let held = view.record(&key("a/b")).expect("reads").expect("is there");
    let dot = rows[0].entry.version.dot;
    assert_eq!(held, Record { dot, ..record(3) });
    assert_eq!(view.record_count(), 1);
    assert_eq!(view.pending(None, 9), Ok(vec![(key("a/c"), Sequence(2))]));
    assert_eq!(view.pending_bytes(), pending_bytes);

    let hash = ChunkHash::of(b"a chunk");
    let places = store.locate(hash).expect("reads");
    assert_eq!(store.read_packed(&places[0], hash).expect("reads"), b"a chunk");
    assert_eq!(store.locate(ChunkHash::of(b"one")).expect("reads"), [in_file()]);
}
