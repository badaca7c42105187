//! Rows that are not as they must be, one kind of damage after the other. Packs and missing rows: `tests/it/damage.rs`.

use consort_core::model::merge::Saw;
use consort_core::store::{DatasetParameters, LocalWrite, View};
use consort_core::{Attributes, ChunkHash, Content, Dot, FingerprintKey, Key, WallTime};

use super::*;
use crate::lsm::Rows;
use crate::transaction::{Basis, Body, Place, Record, RecordChange, Transaction};
use crate::{DiskStore, DiskView};

const DATASET: DatasetId = DatasetId([1; 16]);
const OTHER: DatasetId = DatasetId([2; 16]);
const NUMBER: Number = Number(0);
const NOBODY: Number = Number(9);

fn key(text: &str) -> Key {
    Key::new(text).expect("a valid key")
}

/// What a store with something in every table is found to be after its rows were changed behind its back: `a` holds
/// the places 1 and 2 of the feed, `b` holds 3, all of one commit; a chunk is at 52 of pack 0.
fn damaged(damage: impl FnOnce(&DiskView, &mut Rows)) -> Vec<Finding> {
    let directory = tempfile::tempdir().expect("a directory");
    let store = DiskStore::open(directory.path()).expect("opens");
    for id in [DATASET, OTHER] {
        let fingerprint_key = FingerprintKey([3; 32]);
        store.open_dataset(DatasetParameters { id, fingerprint_key }).expect("opens");
    }
    store.set_linked(DATASET, true).expect("links");
    let place = store.pack(b"a chunk").expect("packs");
    let write = |name: &str, byte| LocalWrite {
        key: key(name),
        saw: Saw::Nothing,
        content: Content::Inline([byte].into()),
        attributes: Attributes::default(),
    };
    let writes = vec![write("a", 1), write("a", 2), write("b", 3)];
    let mut transaction = Transaction::new(DATASET, Body::Local { writes, now: WallTime(1) });
    let (dot, content) = (Dot::default(), [0; 16]);
    transaction.records.push(RecordChange::Put {
        path: key("a"),
        version: Basis::Write(0),
        record: Record {
            dot,
            key: None,
            kind: consort_core::Kind::File,
            size: 1,
            mode: 0o644,
            modified_ns: 0,
            changed_ns: 0,
            inode: 1,
            content,
            implicit: false,
            plain: false,
            racy: false,
        },
    });
    transaction.places.push((ChunkHash::of(b"a chunk"), place));
    let in_file = Place::InFile { dataset: DATASET, path: key("a"), offset: 0, length: 1 };
    transaction.places.push((ChunkHash::of(&[1]), in_file));
    store.commit(transaction).expect("commits");
    assert_eq!(store.check(|_| {}).findings, []);

    let mut rows = Rows::default();
    damage(&store.view(DATASET).expect("views"), &mut rows);
    rows.commit(&store.shared().tables).expect("writes");
    let report = store.check(|_| {});
    assert_eq!(report.problems, report.findings.len() as u64);
    report.findings
}

/// What is found after the versions of `a` were changed.
fn with_versions(change: impl FnOnce(&mut Vec<Stored>)) -> Vec<Finding> {
    damaged(|view, rows| {
        let mut siblings = view.siblings(&key("a")).expect("reads");
        change(&mut siblings);
        let value = layout::encode_siblings(&siblings);
        rows.put(Table::Versions, layout::name_key(NUMBER, "a"), value);
    })
}

#[test]
fn versions_that_do_not_fit_together_are_found() {
    let told = |found: Vec<Finding>, expected: &str| {
        let is = |finding: &Finding| matches!(finding, Finding::Versions { what, .. } if *what == expected);
        assert!(found.iter().any(is), "not {expected}: {found:?}");
    };
    told(with_versions(Vec::clear), "are none");
    told(with_versions(|a| a.swap(0, 1)), "are not ordered by dot");
    let beyond = "have a place beyond the end of the feed";
    told(with_versions(|a| a[0].sequence = Sequence(4)), beyond);
    told(with_versions(|a| a[0].sequence = Sequence(0)), beyond);
    told(with_versions(|a| a[0].sequence = a[1].sequence), "share a place in the feed");
    told(with_versions(|a| a[1].version.seen = a[0].version.closure()), "cover each other");
    told(
        with_versions(|a| a[1].version.content = Content::Deleted),
        "are not among the fingerprints",
    );
    let found = damaged(|_, rows| {
        let value = layout::encode_feed(Sequence(1), Sequence(3), None, &key("b"));
        rows.put(Table::Feed, layout::feed_key(NUMBER, Sequence(1)), value);
    });
    told(found, "are not in the feed");
    let found = damaged(|_, rows| {
        rows.put(Table::Node, layout::CLOCK, layout::encode_clock(Timestamp(1)));
    });
    told(found, "are later than the clock that gave them out");
}

#[test]
fn a_commit_that_ends_within_another_is_found() {
    let found = damaged(|_, rows| {
        let value = layout::encode_feed(Sequence(1), Sequence(2), None, &key("a"));
        rows.put(Table::Feed, layout::feed_key(NUMBER, Sequence(1)), value);
    });
    assert_eq!(found, [Finding::CommitEnd { dataset: DATASET }]);
}

#[test]
fn rows_that_nothing_belongs_to_are_found() {
    let found = damaged(|_, rows| {
        let fingerprint = layout::fingerprint_key(NUMBER, Fingerprint(7));
        rows.put(Table::Fingerprints, fingerprint, layout::encode_varint(2));
    });
    let unequal = |table, rows| Finding::Unequal { dataset: DATASET, versions: 3, table, rows };
    assert_eq!(found, [unequal("fingerprints", 4)]);

    let found = damaged(|_, rows| {
        let value = layout::encode_feed(Sequence(4), Sequence(4), None, &key("b"));
        rows.put(Table::Feed, layout::feed_key(NUMBER, Sequence(4)), value);
    });
    let beyond = |table| Finding::BeyondHead { dataset: DATASET, table };
    assert_eq!(found, [beyond("feed"), unequal("feed", 4)]);

    let found = damaged(|_, rows| {
        let row = layout::tombstone_key(NUMBER, Dot::default(), &key("a"));
        rows.put(Table::Tombstones, row, []);
    });
    assert_eq!(found, [Finding::Tombstones { dataset: DATASET, deleted: 0 }]);
    let found = damaged(|_, rows| {
        let row = layout::tombstone_key(NOBODY, Dot::default(), &key("a"));
        rows.put(Table::Tombstones, row, []);
    });
    assert_eq!(found, [Finding::Stray { table: "tombstones" }]);

    for row in [layout::replica_key(NOBODY), layout::cursors_prefix(NOBODY), vec![99]] {
        let found = damaged(|_, rows| rows.put(Table::Node, row, []));
        assert_eq!(found, [Finding::Stray { table: "node" }]);
    }
    let found = damaged(|_, rows| {
        let place = Some((Site::File(NOBODY, key("a")), Extent { offset: 0, length: 1 }));
        let row = layout::encode_chunk(&ChunkRow { place, more: false });
        rows.put(Table::Chunks, [7; 32], row);
    });
    assert_eq!(found, [Finding::Stray { table: "chunks" }]);
}

#[test]
fn what_is_counted_wrong_is_found() {
    let with = |change: fn(&mut ReplicaRow)| {
        damaged(|view, rows| {
            let mut row = *view.replica();
            change(&mut row);
            rows.put(Table::Node, layout::replica_key(NUMBER), layout::encode_replica(&row));
        })
    };
    let dataset = DATASET;
    assert_eq!(with(|row| row.digest.sum += 1), [Finding::Digest { dataset }]);
    let deleted = 0;
    assert_eq!(with(|row| row.tombstones.count = 1), [Finding::Tombstones { dataset, deleted }]);
    assert_eq!(
        with(|row| row.records = 5),
        [Finding::RecordCount { dataset, counted: 5, found: 1 }]
    );
    assert_eq!(
        with(|row| row.pending = 5),
        [Finding::PendingCount { dataset, counted: 5, found: 2 }]
    );
    assert_eq!(
        with(|row| row.pending_bytes = 5),
        [Finding::PendingBytes { dataset, counted: 5, found: 2 }]
    );
    assert_eq!(with(|row| row.losers.prefer_real += 1), [Finding::Conflicts { dataset }]);
    let found = with(|row| row.head = Sequence(2));
    let told = |table| found.contains(&Finding::BeyondHead { dataset, table });
    assert!(told("feed") && told("fingerprints") && told("pending"), "{found:?}");
}

#[test]
fn conflicts_that_are_not_those_of_the_versions_are_found() {
    let row = |name: &str| layout::name_key(NUMBER, name);
    let found = damaged(|_, rows| rows.remove(Table::Conflicts, row("a")));
    let what = "are not counted among the conflicts";
    let uncounted = Finding::Versions { dataset: DATASET, key: key("a"), what };
    assert!(found.contains(&uncounted), "{found:?}");

    let found = damaged(|view, rows| {
        rows.put(Table::Conflicts, row("b"), layout::encode_losers(view.losers()));
    });
    assert_eq!(found, [Finding::Conflicts { dataset: DATASET }]);
}

#[test]
fn a_number_that_two_datasets_have_or_will_have_is_found() {
    let found = damaged(|_, rows| {
        rows.put(Table::Node, layout::NEXT_NUMBER, layout::encode_varint(1));
    });
    assert_eq!(found, [Finding::Number { dataset: OTHER }]);
    let found = damaged(|_, rows| {
        let (state, fingerprint_key) = (layout::State::Plain, FingerprintKey([0; 32]));
        let row = DatasetRow { number: NUMBER, state, fingerprint_key };
        rows.put(Table::Node, layout::dataset_key(OTHER), layout::encode_dataset(&row));
    });
    assert!(found.contains(&Finding::Number { dataset: OTHER }), "{found:?}");
}

#[test]
fn an_index_that_does_not_fit_the_packs_is_found() {
    let packed = |pack, offset, length| {
        move |_: &DiskView, rows: &mut Rows| {
            let place = Some((Site::Pack(pack), Extent { offset, length }));
            let row = layout::encode_chunk(&ChunkRow { place, more: false });
            rows.put(Table::Chunks, ChunkHash::of(b"a chunk").0, row);
        }
    };
    for (pack, offset, length) in [(0, 51, 7), (0, 52, 6), (0, 1 << 40, 7), (0, 3, 7), (1, 52, 7)] {
        let found = damaged(packed(pack, offset, length));
        assert_eq!(found, [Finding::NoSuchPlace { pack, offset }]);
    }
    assert_eq!(damaged(packed(0, 52, 7)), []);

    let unindexed = Finding::Unindexed { pack: 0, offset: 52 };
    let hash = ChunkHash::of(b"a chunk");
    assert_eq!(
        damaged(|_, rows| rows.remove(Table::Chunks, hash.0)),
        std::slice::from_ref(&unindexed)
    );
    let site = Site::File(NUMBER, key("b"));
    let extent = layout::encode_extent(Extent { offset: 0, length: 7 });
    let further = layout::place_key(hash, &site);
    let found = damaged(|_, rows| rows.put(Table::Chunks, further.clone(), extent.clone()));
    assert_eq!(found, [Finding::HiddenPlace]);
    // There is a place, but not the one in the pack.
    let found = damaged(|_, rows| {
        let row = ChunkRow { place: None, more: true };
        rows.put(Table::Chunks, hash.0, layout::encode_chunk(&row));
        rows.put(Table::Chunks, further, extent);
    });
    assert_eq!(found, [unindexed]);
}

#[test]
fn a_row_of_the_node_that_does_not_decode_is_found() {
    for row in [
        layout::IDENTITY.to_vec(),
        layout::CLOCK.to_vec(),
        layout::NEXT_NUMBER.to_vec(),
        layout::PACK_TAIL.to_vec(),
        layout::dataset_key(DATASET),
        layout::replica_key(NUMBER),
        layout::cursor_key(NUMBER, consort_core::NodeId([1; 16])),
    ] {
        let found = damaged(|_, rows| rows.put(Table::Node, &row, []));
        let malformed = |f: &Finding| matches!(f, Finding::Malformed { table: "node", .. });
        assert_eq!(found.iter().filter(|f| malformed(f)).count(), 1, "{row:?}: {found:?}");
    }
}
