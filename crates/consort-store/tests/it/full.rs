//! A disk that is full: a small file system in memory, which only root can mount. Others skip these tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use consort_core::ChunkHash;
use consort_core::store::{StoreError, View};
use consort_store::{Body, DiskStore, Transaction};

use crate::support::{DATASET, assert_clean, key, local, parameters, write};

/// What the file system holds, in bytes: a few dozen of the commits below, but not of the tables' files.
const DISK_BYTES: u64 = 24 << 20;
/// What of it something else takes, until room is made.
const BALLAST_BYTES: usize = 12 << 20;
/// More commits than fit.
const COMMITS: usize = 100_000;

/// A small file system, until it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={DISK_BYTES}"), "none"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => {
                let disk = Self(directory);
                fs::write(disk.ballast(), vec![1; BALLAST_BYTES]).expect("fits");
                Some(disk)
            }
            other => {
                eprintln!("skipped: no small file system can be mounted here: {other:?}");
                None
            }
        }
    }

    fn store(&self) -> DiskStore {
        let store = DiskStore::open(&self.0.path().join("store")).expect("opens");
        store.open_dataset(parameters(DATASET)).expect("opens");
        store
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn make_room(&self) {
        fs::remove_file(self.ballast()).expect("removes");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.path()).status();
        let unmounted = unmounted.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "it is in use");
    }
}

fn name(number: usize) -> String {
    format!("file {number:06}")
}

/// What does not compress, so that it takes room wherever it goes.
fn noise(number: usize, length: usize) -> Vec<u8> {
    let hash = |part: usize| ChunkHash::of(format!("{number} {part}").as_bytes()).0;
    (0..length.div_ceil(32)).flat_map(hash).collect()
}

fn assert_says_that_the_disk_is_full(error: &StoreError) {
    assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
    assert!(error.to_string().contains("make room"), "{error}");
}

#[test]
fn commits_fail_on_a_full_disk_and_what_was_acknowledged_is_there_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = disk.store();
    let commit = |number: usize| {
        let writes =
            (0..64).map(|part| write(&format!("{}/{part}", name(number)), &noise(number, 1024)));
        store.commit(local(writes.collect()))
    };
    let (acknowledged, error) = (0..COMMITS)
        .find_map(|number| commit(number).err().map(|error| (number, error)))
        .expect("the disk is too small");
    assert_says_that_the_disk_is_full(&error);
    assert!(0 < acknowledged);
    assert!(commit(0).is_err(), "nothing is written until the store is opened again");
    let view = store.view(DATASET).expect("views");
    assert_eq!(view.summary().digest.count, 64 * acknowledged as u64);
    drop(view);
    drop(store);

    disk.make_room();
    let store = disk.store();
    assert_clean(&store);
    let view = store.view(DATASET).expect("views");
    for number in 0..acknowledged {
        let held = view.siblings(&key(&format!("{}/63", name(number)))).expect("reads");
        let content = consort_core::Content::Inline(noise(number, 1024).into());
        assert_eq!(held[0].version.content, content, "{number}");
    }
    store.commit(local(vec![write("after", b"after")])).expect("commits");
    assert_clean(&store);
}

#[test]
fn packing_fails_on_a_full_disk_and_goes_on_when_there_is_room_again() {
    let Some(disk) = SmallDisk::mount() else { return };
    let store = disk.store();
    let chunk = |number: usize| noise(number, 256 * 1024);
    let packed = |store: &DiskStore, number: usize| {
        let place = store.pack(&chunk(number))?;
        store.commit(Transaction::new(DATASET, Body::Nothing)).map(|_| place)
    };
    let mut places = Vec::new();
    let error = loop {
        match packed(&store, places.len()) {
            Ok(place) => places.push(place),
            Err(error) => break error,
        }
        assert!(places.len() < COMMITS, "the disk is too small");
    };
    assert_says_that_the_disk_is_full(&error);
    drop(store);

    disk.make_room();
    let store = disk.store();
    assert_clean(&store);
    places.push(packed(&store, places.len()).expect("there is room"));
    for (number, place) in places.iter().enumerate() {
        let chunk = chunk(number);
        let hash = ChunkHash::of(&chunk);
        assert_eq!(store.locate(hash).expect("reads"), std::slice::from_ref(place));
        assert_eq!(store.read_packed(place, hash).expect("reads"), chunk);
    }
    assert_clean(&store);
}
