//! Opening: locks, formats, copies, rollbacks; and what is not a commit.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use consort_core::model::Commit;
use consort_core::store::{Cursor, Epoch, Sequence, View};
use consort_core::{Dot, Timestamp, VersionVector};
use consort_store::{Body, DiskStore, OpenError, Transaction};

use crate::support::{DATASET, PEER, assert_clean, key, local, store, write};

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("reads") {
        let entry = entry.expect("reads");
        let to = to.join(entry.file_name());
        if entry.file_type().expect("has a type").is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).expect("copies");
        }
    }
}

#[test]
fn a_store_is_opened_once_at_a_time() {
    let (directory, store) = store();
    let second = DiskStore::open(directory.path());
    assert!(matches!(second, Err(OpenError::Locked(_))), "{second:?}");
    assert!(DiskStore::is_open(directory.path()));
    let view = store.view(DATASET).expect("views");
    let author = store.author();
    drop(store);
    let second = DiskStore::open(directory.path());
    assert!(matches!(second, Err(OpenError::Locked(_))), "a view still reads: {second:?}");
    drop(view);
    assert!(!DiskStore::is_open(directory.path()));
    assert!(!DiskStore::is_open(&directory.path().join("nowhere")));
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(store.author(), author);
}

#[test]
fn what_was_written_before_a_store_was_closed_is_not_in_a_journal_that_has_to_be_read_again() {
    let (directory, mut store) = store();
    let journal_bytes = || -> u64 {
        let files = fs::read_dir(directory.path().join("rows")).expect("reads");
        let files = files.map(|file| file.expect("reads"));
        let journals = files.filter(|file| file.path().extension().is_some_and(|e| e == "jnl"));
        journals.map(|file| file.metadata().expect("is there").len()).sum()
    };
    for round in 1..=3 {
        for part in 0..8 {
            let name = |number| format!("{round}/{part}/{number:04}");
            let writes = (0..1000).map(|number| write(&name(number), &[7; 100])).collect();
            store.commit(local(writes)).expect("commits");
        }
        let summary = store.view(DATASET).expect("views").summary();
        assert_ne!(journal_bytes(), 0);
        drop(store);
        assert_eq!(journal_bytes(), 0);
        store = DiskStore::open(directory.path()).expect("opens");
        assert_eq!(store.view(DATASET).expect("views").summary(), summary);
        assert_eq!(summary.digest.count, round * 8000);
    }
    assert_clean(&store);
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let (directory, store) = store();
    drop(store);
    for (text, newer) in [("consort store 6\n", true), ("consort store\n", false)] {
        fs::write(directory.path().join("FORMAT"), text).expect("writes");
        match DiskStore::open(directory.path()) {
            Err(OpenError::NewerFormat { found: 6, known: 5 }) => assert!(newer),
            Err(OpenError::Damaged(_)) => assert!(!newer),
            other => panic!("{other:?}"),
        }
        assert_eq!(fs::read(directory.path().join("FORMAT")).expect("reads"), text.as_bytes());
    }
}

#[test]
fn a_copied_store_writes_under_another_author() {
    let (directory, store) = store();
    store.commit(local(vec![write("a", b"a")])).expect("commits");
    let (author, epoch) = (store.author(), store.epoch());
    let summary = store.view(DATASET).expect("views").summary();
    drop(store);
    let backup = tempfile::tempdir().expect("a directory");
    copy(directory.path(), backup.path());

    let copied = DiskStore::open(backup.path()).expect("opens");
    assert_ne!((copied.author(), copied.epoch()), (author, epoch));
    let held = copied.view(DATASET).expect("views").summary();
    assert_eq!(held.digest, summary.digest);
    assert_ne!(held.head.epoch, summary.head.epoch);
    let new_author = copied.author();
    drop(copied);
    let copied = DiskStore::open(backup.path()).expect("opens");
    assert_eq!(copied.author(), new_author, "one new author is enough");

    let moved = directory.path().join("moved");
    fs::create_dir(&moved).expect("a directory");
    for name in ["FORMAT", "LOCK", "STAMP", "rows", "packs"] {
        fs::rename(directory.path().join(name), moved.join(name)).expect("moves");
    }
    // Renaming files changes their change time on most file systems; renaming their directory does not.
    let author = DiskStore::open(&moved).expect("opens").author();
    let again = directory.path().join("again");
    fs::rename(&moved, &again).expect("moves");
    assert_eq!(DiskStore::open(&again).expect("opens").author(), author);
}

#[test]
fn a_store_that_meets_its_own_future_writes_under_another_author() {
    let (directory, store) = store();
    let applied = store.commit(local(vec![write("a", b"a")])).expect("commits");
    let (author, epoch) = (store.author(), store.epoch());
    let from_peer = |entry| {
        let commit = Commit { entries: vec![entry] };
        let cursor = Some(Cursor { epoch: Epoch(1), sequence: Sequence(1) });
        Transaction::new(DATASET, Body::Remote { peer: PEER, commit, cursor })
    };
    let cursor = |store: &DiskStore| store.view(DATASET).expect("views").cursor(PEER);
    let mut entry = applied.added[0].0.clone();
    store.commit(from_peer(entry.clone())).expect("commits");
    assert_eq!(store.author(), author, "its own past is nothing new");
    assert!(cursor(&store).expect("reads").is_some());

    let lost = Timestamp(entry.version.dot.time.0 + 1);
    entry.version.seen = VersionVector::new();
    entry.version.dot = Dot { author, time: lost };
    entry.key = key("lost");
    store.commit(from_peer(entry)).expect("commits");
    assert_ne!((store.author(), store.epoch()), (author, epoch));
    assert_eq!(
        cursor(&store),
        Ok(None),
        "how far it had applied the feeds of others is not certain"
    );
    let applied = store.commit(local(vec![write("lost", b"b")])).expect("commits");
    assert_eq!(applied.added[0].0.version.dot.author, store.author());
    let author = store.author();
    drop(store);
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(store.author(), author);
    assert_clean(&store);
}

#[test]
fn settings_and_datasets_are_there_when_it_is_opened_again() {
    let (directory, store) = store();
    store.set_setting("listen", Some(b"127.0.0.1:1".to_vec())).expect("sets");
    store.set_setting("other", Some(Vec::new())).expect("sets");
    store.set_setting("other", None).expect("sets");
    store.set_linked(DATASET, true).expect("links");
    let datasets = store.datasets();
    drop(store);
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(store.setting("listen").expect("reads").as_deref(), Some(&b"127.0.0.1:1"[..]));
    assert_eq!(store.setting("other").expect("reads"), None);
    assert_eq!(store.datasets(), datasets);
    assert!(store.is_linked(DATASET).expect("is there"));
}

#[test]
fn many_submitters_are_answered_each_in_its_order() {
    let (_directory, store) = store();
    let answered = Arc::new(Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for submitter in 0..8 {
            let (store, answered) = (&store, &answered);
            scope.spawn(move || {
                for number in 0..50 {
                    let name = format!("{submitter}/{number}");
                    let answered = Arc::clone(answered);
                    store.submit(
                        local(vec![write(&name, b"x"), write("all", b"y")]),
                        move |done| {
                            let sequence = done.expect("commits").summary.head.sequence;
                            answered.lock().expect("no panic").push((submitter, number, sequence));
                        },
                    );
                }
            });
        }
    });
    // What comes last is answered last.
    store.commit(Transaction::new(DATASET, Body::Nothing)).expect("commits");
    let answered = answered.lock().expect("no panic");
    assert_eq!(answered.len(), 400);
    assert!(answered.is_sorted_by_key(|(_, _, sequence)| *sequence));
    for submitter in 0..8 {
        let own = answered.iter().filter(|(of, _, _)| *of == submitter);
        assert!(own.map(|(_, number, _)| *number).eq(0..50));
    }
    assert_eq!(store.view(DATASET).expect("views").summary().digest.count, 401);
    assert_clean(&store);
}
