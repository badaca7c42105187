//! Records, pending keys and places of a linked directory.

use consort_core::model::Commit;
use consort_core::store::{Applied, Lesson, Sequence, View, Written};
use consort_core::{
    Attributes, AuthorId, ChunkHash, Content, DatasetId, Dot, Entry, Key, Timestamp, Version,
    VersionVector,
};
use consort_store::{Basis, Body, DiskStore, Place, RecordChange, Transaction};

use crate::support::{DATASET, PEER, assert_clean, key, local, parameters, record, store, write};

fn put(path: &str, write: usize) -> RecordChange {
    RecordChange::Put { path: key(path), record: record(1), version: Basis::Write(write) }
}

fn remote(names: &[&str], time: u64) -> Transaction {
    let dot = Dot { author: AuthorId([9; 16]), time: Timestamp(time) };
    let version = |name: &str| Version {
        dot,
        seen: VersionVector::new(),
        content: Content::Inline(name.as_bytes().into()),
        attributes: Attributes::default(),
    };
    let entries = names.iter().map(|name| Entry { key: key(name), version: version(name) });
    let commit = Commit { entries: entries.collect() };
    Transaction::new(DATASET, Body::Remote { peer: PEER, commit, cursor: None })
}

fn pending(store: &DiskStore) -> Vec<(String, u64)> {
    let view = store.view(DATASET).expect("views");
    let rows = view.pending(None, usize::MAX).expect("reads");
    assert_eq!(view.pending_count(), rows.len() as u64);
    let size = |(key, sequence): &(Key, Sequence)| {
        let held = view.siblings(key).expect("reads");
        held.iter().find(|stored| stored.sequence == *sequence).map(|s| s.version.content.size())
    };
    assert_eq!(Some(view.pending_bytes()), rows.iter().map(size).sum());
    rows.into_iter().map(|(key, sequence)| (key.to_string(), sequence.0)).collect()
}

fn settle(store: &DiskStore, name: &str, sequence: u64) -> Applied {
    let mut transaction = Transaction::new(DATASET, Body::Nothing);
    transaction.settled.push((key(name), Sequence(sequence)));
    store.commit(transaction).expect("commits")
}

#[test]
fn what_changes_is_pending_unless_the_directory_shows_it() {
    let (_directory, store) = store();
    store.commit(remote(&["before"], 1)).expect("commits");
    assert_eq!(pending(&store), []);
    store.set_linked(DATASET, true).expect("links");
    assert_eq!(pending(&store), [("before".to_owned(), 1)]);
    settle(&store, "before", 1);

    store.commit(remote(&["a", "b"], 2)).expect("commits");
    // Found in the directory, but in conflict with what came: the directory does not show both.
    let mut found = local(vec![write("c", b"c"), write("a", b"mine"), write("d", b"d")]);
    if let Body::Local { writes, .. } = &mut found.body {
        writes[1].saw = consort_core::model::merge::Saw::Nothing;
    }
    found.records.extend([put("c", 0), put("a", 1)]);
    store.commit(found).expect("commits");
    let expected = [("a".to_owned(), 5), ("b".to_owned(), 3), ("d".to_owned(), 6)];
    assert_eq!(pending(&store), expected);

    settle(&store, "a", 4);
    assert_eq!(pending(&store), expected, "a newer change is not settled with an older one");
    settle(&store, "a", 5);
    settle(&store, "c", 100);
    assert_eq!(pending(&store), expected[1..]);
    assert_clean(&store);

    store.set_linked(DATASET, false).expect("unlinks");
    assert_eq!(pending(&store), []);
    assert_clean(&store);
}

#[test]
fn what_the_directory_shows_is_pending_if_it_shows_more_of_that_key() {
    let (_directory, store) = store();
    store.set_linked(DATASET, true).expect("links");
    let mut found = local(vec![write("a", b"a"), write("b", b"b")]);
    found.records.extend([put("a", 0), put("b", 1)]);
    found.unsettled.push(key("b"));
    store.commit(found).expect("commits");
    assert_eq!(pending(&store), [("b".to_owned(), 2)]);
    settle(&store, "b", 2);
    assert_eq!(pending(&store), []);
    assert_clean(&store);
}

#[test]
fn a_key_that_died_and_is_written_again_is_pending_once() {
    let (_directory, store) = store();
    store.set_linked(DATASET, true).expect("links");
    store.commit(remote(&["a", "b"], 1)).expect("commits");
    settle(&store, "a", 1);
    let dot = Dot { author: AuthorId([9; 16]), time: Timestamp(1) };
    let lesson = Lesson { dead: vec![(key("a"), dot)], ..Lesson::default() };
    store.commit(Transaction::new(DATASET, Body::Learn(lesson))).expect("commits");
    let count = || store.view(DATASET).expect("views").pending_count();
    assert_eq!(count(), 2, "the directory still shows what is dead");
    let sequence = store.commit(remote(&["a"], 2)).expect("commits").added[0].1;
    assert_eq!(count(), 2);
    settle(&store, "a", sequence.0);
    settle(&store, "b", 2);
    assert_eq!(pending(&store), []);
    assert_clean(&store);
}

#[test]
fn a_record_shows_the_version_that_its_write_became() {
    let (_directory, store) = store();
    store.set_linked(DATASET, true).expect("links");
    let mut transaction = local(vec![write("a", b"a"), write("b", b"b")]);
    transaction.records.extend([put("a", 0), put("b", 1)]);
    transaction.records.push(RecordChange::Put {
        path: key("a.conflict"),
        record: consort_store::Record { key: Some(key("a")), implicit: true, ..record(3) },
        version: Basis::Dot(Dot::default()),
    });
    let applied = store.commit(transaction.clone()).expect("commits");
    let dots: Vec<Dot> = applied.added.iter().map(|(entry, _)| entry.version.dot).collect();
    let again = store.commit(transaction).expect("commits");
    assert_eq!(again.written, [Written::Same(dots[0]), Written::Same(dots[1])]);

    let view = store.view(DATASET).expect("views");
    assert_eq!(view.record_count(), 3);
    let records = view.records("", None, 10).expect("reads");
    let shown: Vec<_> = records.iter().map(|(path, record)| (&**path, record.dot)).collect();
    assert_eq!(shown, [("a", dots[0]), ("a.conflict", Dot::default()), ("b", dots[1])]);
    assert_eq!(records[1].1.key, Some(key("a")));
    assert_eq!(records[0].1, consort_store::Record { dot: dots[0], ..record(1) });
    assert_eq!(view.records("a", Some(&key("a")), 10).expect("reads").len(), 1);
    assert_eq!(view.record(&key("nothing")).expect("reads"), None);

    // A deletion of what is not there is nothing, and there is nothing to record.
    let mut gone = local(vec![write("never", b"")]);
    if let Body::Local { writes, .. } = &mut gone.body {
        writes[0].content = Content::Deleted;
    }
    gone.records.extend([put("b", 0), RecordChange::Remove { path: key("a.conflict") }]);
    gone.records.push(RecordChange::Remove { path: key("never") });
    assert_eq!(store.commit(gone).expect("commits").written, [Written::Nothing]);
    assert_eq!(store.view(DATASET).expect("views").record_count(), 1);
    assert_eq!(view.record_count(), 3, "a view does not change");
    assert_clean(&store);
}

#[test]
fn a_chunk_has_as_many_places_as_files_hold_it() {
    let (_directory, store) = store();
    let hash = ChunkHash::of(b"chunk");
    let place = |path: &str, offset| {
        (hash, Place::InFile { dataset: DATASET, path: key(path), offset, length: 5 })
    };
    let mut transaction = Transaction::new(DATASET, Body::Nothing);
    transaction.places.extend([place("a", 1), place("b", 2)]);
    store.commit(transaction).expect("commits");
    assert_eq!(store.locate(hash).expect("reads"), [place("a", 1).1, place("b", 2).1]);

    let mut moved = Transaction::new(DATASET, Body::Nothing);
    moved.gone.extend([place("a", 1), place("b", 2)]);
    moved.places.push(place("b", 7));
    store.commit(moved).expect("commits");
    assert_eq!(store.locate(hash).expect("reads"), [place("b", 7).1]);
    assert_eq!(store.locate(ChunkHash::of(b"other")).expect("reads"), []);

    store.set_linked(DATASET, true).expect("links");
    store.set_linked(DATASET, false).expect("unlinks");
    assert_eq!(store.locate(hash).expect("reads"), []);
}

#[test]
fn the_places_of_a_chunk_come_and_go_in_any_order() {
    const OTHER: DatasetId = DatasetId([9; 16]);
    let (_directory, store) = store();
    store.open_dataset(parameters(OTHER)).expect("opens");
    let hash = ChunkHash::of(b"chunk");
    let file = |dataset, path: &str, offset| {
        (hash, Place::InFile { dataset, path: key(path), offset, length: 5 })
    };
    let change = |places: &[(ChunkHash, Place)], gone: &[(ChunkHash, Place)]| {
        let mut transaction = Transaction::new(DATASET, Body::Nothing);
        transaction.places.extend_from_slice(places);
        transaction.gone.extend_from_slice(gone);
        store.commit(transaction).expect("commits");
        assert_clean(&store);
        store.locate(hash).expect("reads")
    };
    let (a, b, c) = (file(DATASET, "a", 1), file(DATASET, "b", 2), file(OTHER, "c", 3));
    assert_eq!(change(std::slice::from_ref(&a), &[]), std::slice::from_ref(&a.1));
    assert_eq!(change(&[b.clone(), c.clone()], &[]), [&a, &b, &c].map(|place| place.1.clone()));
    assert_eq!(change(&[], std::slice::from_ref(&a)), [&b, &c].map(|place| place.1.clone()));
    // The one that comes takes the place of the one that went, and is not there twice.
    let b_moved = file(DATASET, "b", 7);
    let moved = change(std::slice::from_ref(&b_moved), &[]);
    assert_eq!(moved, [&b_moved, &c].map(|place| place.1.clone()));
    assert_eq!(change(&[], std::slice::from_ref(&b)), std::slice::from_ref(&c.1));
    let packed = store.pack(b"chunk").expect("packs");
    let all = change(&[a.clone(), b.clone()], &[]);
    assert_eq!((all.len(), &all[0]), (4, &packed), "packs first");

    store.set_linked(DATASET, true).expect("links");
    store.set_linked(DATASET, false).expect("unlinks");
    assert_eq!(store.locate(hash).expect("reads"), [packed, c.1.clone()]);
    store.drop_dataset(OTHER).expect("drops");
    assert_eq!(store.locate(hash).expect("reads").len(), 1);
    assert_clean(&store);
}

#[test]
fn a_dropped_dataset_leaves_no_rows_and_begins_another_feed_when_it_comes_back() {
    let (_directory, store) = store();
    store.set_linked(DATASET, true).expect("links");
    // More than one step takes.
    for part in 0..5 {
        let writes = (0..1000).map(|n| write(&format!("{part}/{n}"), b"x")).collect();
        let mut transaction = local(writes);
        transaction.records.push(put(&format!("{part}/0"), 0));
        store.commit(transaction).expect("commits");
    }
    let before = store.view(DATASET).expect("views").summary();
    assert_eq!(before.digest.count, 5000);
    store.drop_dataset(DATASET).expect("drops");
    assert!(store.view(DATASET).is_err());
    assert!(store.datasets().is_empty());
    let own = ["identity", "clock", "next number"];
    assert_eq!(store.check(|_| {}).rows, own.len() as u64);

    store.open_dataset(parameters(DATASET)).expect("opens");
    let after = store.view(DATASET).expect("views").summary();
    assert_eq!(after.digest.count, 0);
    assert_ne!(after.head.epoch, before.head.epoch);
    assert!(!store.is_linked(DATASET).expect("is there"));
    assert_clean(&store);
}

#[test]
fn linking_and_unlinking_at_once_are_one_after_the_other() {
    const KEYS: u64 = 10_000;
    let (_directory, store) = store();
    for part in 0..KEYS / 1000 {
        let writes = (0..1000).map(|n| write(&format!("{part}/{n}"), b"x")).collect();
        store.commit(local(writes)).expect("commits");
    }
    for _ in 0..4 {
        store.set_linked(DATASET, true).expect("links");
        std::thread::scope(|scope| {
            let unlinking = scope.spawn(|| store.set_linked(DATASET, false).expect("unlinks"));
            while !unlinking.is_finished() && store.is_linked(DATASET).expect("is there") {
                std::thread::yield_now();
            }
            store.set_linked(DATASET, true).expect("links");
        });
        assert!(store.is_linked(DATASET).expect("is there"));
        assert_eq!(store.view(DATASET).expect("views").pending_count(), KEYS);
        assert_clean(&store);
    }
}
