//! A process that is killed while it writes.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use consort_core::store::View;
use consort_core::{ChunkHash, Content};
use consort_store::{Basis, DiskStore, OpenError, RecordChange};

use crate::support::{DATASET, assert_clean, key, local, parameters, record, write};

const DIRECTORY: &str = "CONSORT_STORE_CRASH_TEST";
const WRITERS: usize = 4;

/// Does nothing when it runs as a test; it is the process that the other test starts and kills.
#[test]
fn a_process_writes_until_it_is_killed() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let store = DiskStore::open(Path::new(&directory)).expect("opens");
    store.open_dataset(parameters(DATASET)).expect("opens");
    store.set_linked(DATASET, true).expect("links");
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let store = &store;
            scope.spawn(move || write_for_ever(store, writer));
        }
    });
}

fn name(writer: usize, number: usize) -> String {
    format!("{writer}/{number:08}")
}

fn chunk(writer: usize, number: usize) -> Vec<u8> {
    name(writer, number).into_bytes().repeat(50)
}

fn write_for_ever(store: &DiskStore, writer: usize) {
    let known = store.view(DATASET).expect("views").scan(&format!("{writer}/"), None, usize::MAX);
    for number in known.expect("scans").len().. {
        let chunk = chunk(writer, number);
        let place = store.pack(&chunk).expect("packs");
        let name = name(writer, number);
        let writes = vec![write(&name, name.as_bytes()), write("shared", name.as_bytes())];
        let mut transaction = local(writes);
        transaction.records.push(RecordChange::Put {
            path: key(&name),
            record: record(number as u64),
            version: Basis::Write(0),
        });
        transaction.places.push((ChunkHash::of(&chunk), place));
        store.commit(transaction).expect("commits");
        // Not by `print!`, which tests capture.
        let line = format!("{writer} {number}\n");
        std::io::stderr().write_all(line.as_bytes()).expect("the parent listens");
    }
}

fn start(directory: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "crash::a_process_writes_until_it_is_killed", "--test-threads=1"])
        .env(DIRECTORY, directory)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts")
}

#[test]
fn what_was_acknowledged_before_a_crash_is_there_after_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut acknowledged = [0; WRITERS];
    for wanted in [1, 57, 130, 400] {
        let mut child = start(directory.path());
        let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        for (count, line) in (1..).zip(lines) {
            let line = line.expect("reads");
            let (writer, number) = line.split_once(' ').expect("two numbers");
            let writer: usize = writer.parse().expect("a number");
            acknowledged[writer] = number.parse::<usize>().expect("a number") + 1;
            if count == wanted {
                let open = DiskStore::open(directory.path());
                assert!(matches!(open, Err(OpenError::Locked(_))), "{open:?}");
                child.kill().expect("is killed");
            }
        }
        child.wait().expect("is gone");
        verify(&DiskStore::open(directory.path()).expect("opens"), &acknowledged);
    }
}

fn verify(store: &DiskStore, acknowledged: &[usize; WRITERS]) {
    assert_clean(store);
    let view = store.view(DATASET).expect("views");
    for (writer, &count) in acknowledged.iter().enumerate() {
        for number in 0..count {
            let name = name(writer, number);
            let held = view.siblings(&key(&name)).expect("reads");
            let content = Content::Inline(name.as_bytes().into());
            assert_eq!(held[0].version.content, content, "{name}");
            let record = view.record(&key(&name)).expect("reads").expect("is there");
            assert_eq!((record.dot, record.size), (held[0].version.dot, number as u64));
            let bytes = chunk(writer, number);
            let hash = ChunkHash::of(&bytes);
            let places = store.locate(hash).expect("reads");
            assert_eq!(store.read_packed(&places[0], hash).expect("reads"), bytes);
        }
    }
    assert!(view.record_count() >= acknowledged.iter().sum::<usize>() as u64);
}
