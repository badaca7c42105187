//! Chunks in packs.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use consort_core::ChunkHash;
use consort_store::{Body, DiskStore, Place, ReadError, Transaction};

use crate::support::{DATASET, assert_clean, key, store};

fn first_pack(directory: &Path) -> PathBuf {
    directory.join("packs/0000000000000000.pack")
}

fn make_durable(store: &DiskStore) {
    store.commit(Transaction::new(DATASET, Body::Nothing)).expect("commits");
}

fn chunk(number: u8) -> (ChunkHash, Vec<u8>) {
    let bytes = vec![number; 1000 + usize::from(number)];
    (ChunkHash::of(&bytes), bytes)
}

#[test]
fn a_chunk_is_packed_once() {
    let (directory, store) = store();
    let (hash, bytes) = chunk(1);
    let place = store.pack(&bytes).expect("packs");
    assert_eq!(store.pack(&bytes).expect("packs"), place);
    assert_eq!(store.read_packed(&place, hash).expect("reads"), bytes);
    make_durable(&store);
    assert_eq!(store.locate(hash).expect("reads"), std::slice::from_ref(&place));
    assert_eq!(store.pack(&bytes).expect("packs"), place);
    drop(store);
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(store.pack(&bytes).expect("packs"), place);
    assert_clean(&store);
}

#[test]
fn a_chunk_that_is_not_what_was_asked_for_is_refused() {
    let (_directory, store) = store();
    let (hash, bytes) = chunk(1);
    let place = store.pack(&bytes).expect("packs");
    let other = store.read_packed(&place, ChunkHash::of(b"other"));
    assert!(matches!(other, Err(ReadError::Damaged { pack: 0, .. })), "{other:?}");
    let Place::Packed { pack, offset, length } = place else { panic!("it was packed") };
    let beyond = Place::Packed { pack, offset: offset + 1, length };
    assert!(matches!(store.read_packed(&beyond, hash), Err(ReadError::Missing { .. })));
    let absent = Place::Packed { pack: 77, offset, length };
    assert!(matches!(store.read_packed(&absent, hash), Err(ReadError::Missing { .. })));
    let huge = Place::Packed { pack, offset, length: u32::MAX };
    assert!(matches!(store.read_packed(&huge, hash), Err(ReadError::Damaged { .. })));
    let file = Place::InFile { dataset: DATASET, path: key("a"), offset: 0, length: 1 };
    assert!(matches!(store.read_packed(&file, hash), Err(ReadError::NotPacked)));
}

#[test]
fn a_torn_tail_is_cut_and_whole_chunks_before_it_are_kept() {
    let (durable, durable_bytes) = chunk(1);
    let (whole, whole_bytes) = chunk(2);
    let (torn, torn_bytes) = chunk(3);
    for cut in [1, 500, 1002, 1003, 1030, 1038] {
        let (directory, store) = store();
        store.pack(&durable_bytes).expect("packs");
        make_durable(&store);
        store.pack(&whole_bytes).expect("packs");
        store.pack(&torn_bytes).expect("packs");
        drop(store);
        let pack = first_pack(directory.path());
        let length = fs::metadata(&pack).expect("is there").len();
        let file = OpenOptions::new().write(true).open(&pack).expect("opens");
        file.set_len(length - cut).expect("cuts");

        let store = DiskStore::open(directory.path()).expect("opens");
        assert_eq!(store.locate(durable).expect("reads").len(), 1);
        assert_eq!(store.locate(whole).expect("reads").len(), 1);
        assert_eq!(store.locate(torn).expect("reads").len(), 0, "{cut} bytes less");
        let place = store.pack(&torn_bytes).expect("packs");
        make_durable(&store);
        assert_eq!(store.read_packed(&place, torn).expect("reads"), torn_bytes);
        assert_clean(&store);
    }
}

#[test]
fn what_a_crash_wrote_behind_the_end_is_cut() {
    let (directory, store) = store();
    let (hash, bytes) = chunk(1);
    store.pack(&bytes).expect("packs");
    make_durable(&store);
    drop(store);
    let pack = first_pack(directory.path());
    let length = fs::metadata(&pack).expect("is there").len();
    let mut file = OpenOptions::new().append(true).open(&pack).expect("opens");
    file.write_all(&[0; 4096]).expect("writes");
    let store = DiskStore::open(directory.path()).expect("opens");
    assert_eq!(fs::metadata(&pack).expect("is there").len(), length);
    assert_eq!(store.locate(hash).expect("reads").len(), 1);
    assert_clean(&store);
}
