//! What arrives, and what it costs: a real tree, an insertion, a rename, a restart.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::cluster::{Cluster, DATASET, Node, array, text, until};
use crate::random::{Random, from_environment};
use crate::tree::{self, Entry};

/// What a small change may cost on the wire beside its content: handshakes, acknowledgements, keep-alives.
const SMALL_TALK_BYTES: u64 = 64 * 1024;

#[test]
fn a_real_tree_arrives_completely() {
    let cluster = Cluster::linked(3);
    let first = &cluster.nodes[0];
    if let Some(path) = std::env::var_os("CONSORT_TEST_TREE") {
        copy(&PathBuf::from(path), &first.dir);
    }
    let files = from_environment("CONSORT_TEST_FILES", 250);
    tree::make(&first.dir, usize::try_from(files).expect("a count"), 1);
    fs::write(first.path("large"), Random::new(4).bytes(large_file_bytes())).expect("a new file");
    let source = tree::read(&first.dir);
    cluster.settle();

    // Nothing may have happened to the original while it was copied.
    let differences = tree::differences(&source, &tree::read(&first.dir));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    for node in &cluster.nodes {
        let sparse = fs::metadata(node.path("rarities/sparse")).expect("it arrived");
        assert!(
            tree::allocated(&sparse) < sparse.len() / 2,
            "{} has no holes in a sparse file: {} bytes on disk",
            node.name,
            tree::allocated(&sparse)
        );
        let status = node.dataset();
        assert!(array(&status, "problems").is_empty(), "{status}");
    }
}

#[test]
fn what_is_small_and_new_does_not_wait_for_what_is_large_and_slow() {
    let mut cluster = Cluster::linked(2);
    let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.home.join("config.toml"), "[limits]\nup = \"20Mbit/s\"\n").expect("a new file");
    a.stop();
    a.start();
    fs::write(a.path("large"), Random::new(5).bytes(64 << 20)).expect("a new file");
    let before = b.traffic();
    until("the large file is under way", || b.traffic() - before > 1 << 20);
    fs::write(a.path("small"), Random::new(6).bytes(100_000)).expect("a new file");
    until("the small file arrives", || b.path("small").exists());
    assert!(!b.path("large").exists(), "the large one was there before");
}

#[test]
fn no_time_is_left_where_nothing_can_come() {
    let mut cluster = Cluster::linked(2);
    let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.home.join("config.toml"), "[limits]\nup = \"20Mbit/s\"\n").expect("a new file");
    a.stop();
    a.start();
    fs::write(a.path("large"), Random::new(9).bytes(64 << 20)).expect("a new file");
    until("it to be known how fast it comes", || b.dataset()["rate_bytes"] != 0);
    assert!(b.run(["status"]).expect_done().text().contains(" left"));
    a.kill();
    let status = b.until_state("waiting");
    assert!(status["pending"] == 1 && status["pending_bytes"] != 0, "{status}");
    assert_eq!(status["rate_bytes"], 0, "{status}");
    let shown = b.run(["status"]).expect_done();
    assert!(shown.text().contains("to come") && !shown.text().contains(" left"), "{shown}");
}

#[test]
fn what_arrived_of_a_large_file_is_not_fetched_again_after_a_kill_nor_after_a_stop() {
    let mut cluster = Cluster::linked(2);
    let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
    // So slow that it is under way for a while.
    fs::write(a.home.join("config.toml"), "[limits]\nup = \"400Mbit/s\"\n").expect("a new file");
    a.stop();
    a.start();
    // What was written is written out after 64 MiB.
    fs::write(a.path("large"), Random::new(8).bytes(96 << 20)).expect("a new file");
    let arrived = |node: &Node, before, least| {
        until("enough of it to be there", || node.traffic() - before > least);
    };
    arrived(b, b.traffic(), 70 << 20);
    b.kill_and_start();
    arrived(b, 0, 10 << 20);
    b.stop();
    b.start();
    cluster.settle();
    let b = &cluster.nodes[1];
    assert!(b.traffic() < 48 << 20, "{} bytes came again", b.traffic());
    let left = fs::read_dir(b.path(".consort/tmp")).expect("it is there").count();
    assert_eq!(left, 0, "something is left of what was under way");
}

#[test]
fn what_arrived_of_a_large_file_is_not_fetched_again_when_its_only_source_goes_and_comes_back() {
    let mut cluster = Cluster::linked(2);
    let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.home.join("config.toml"), "[limits]\nup = \"400Mbit/s\"\n").expect("a new file");
    a.stop();
    a.start();
    // So much of it is wanted at a time that it leaves no room to others.
    let size = 144 << 20;
    fs::write(a.path("large"), Random::new(12).bytes(size)).expect("a new file");
    for round in 1..=2 {
        until("more of it to be there", || b.traffic() > round * (40 << 20));
        a.kill();
        b.until_state("waiting");
        a.start();
    }
    cluster.settle();
    let b = &cluster.nodes[1];
    let again = b.traffic() - size as u64;
    assert!(again < 24 << 20, "{again} bytes came again");
    let left = fs::read_dir(b.path(".consort/tmp")).expect("it is there").count();
    assert_eq!(left, 0, "something is left of what was under way");
}

#[test]
fn what_arrived_of_a_large_file_is_not_fetched_again_when_it_is_renamed_meanwhile() {
    let again = bytes_that_come_again(|path| {
        fs::rename(path, path.with_file_name("renamed")).expect("renamed");
    });
    assert!(again < 24 << 20, "{again} bytes came again");
}

#[test]
fn what_arrived_of_a_large_file_is_not_fetched_again_when_it_is_edited_meanwhile() {
    let again = bytes_that_come_again(|path| {
        let file = File::options().write(true).open(path).expect("it is there");
        file.write_all_at(&Random::new(14).bytes(1024), 48 << 20).expect("writable");
    });
    assert!(again < 24 << 20, "{again} bytes came again");
}

/// How much more than its size a node receives of a large file that is changed at its source when half of it has come. What
/// was asked for and is on its way at that moment may be lost: 16 MiB at the most.
fn bytes_that_come_again(change: impl FnOnce(&Path)) -> u64 {
    let mut cluster = Cluster::linked(2);
    let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.home.join("config.toml"), "[limits]\nup = \"400Mbit/s\"\n").expect("a new file");
    a.stop();
    a.start();
    let size = 96 << 20;
    let before = b.traffic();
    fs::write(a.path("large"), Random::new(13).bytes(size)).expect("a new file");
    until("half of it to be there", || b.traffic() - before > size as u64 / 2);
    change(&a.path("large"));
    cluster.settle();
    let b = &cluster.nodes[1];
    let again = (b.traffic() - before).saturating_sub(size as u64);
    println!("{again} bytes came again");
    until("nothing to be left of what was under way", || {
        fs::read_dir(b.path(".consort/tmp")).expect("it is there").count() == 0
    });
    again
}

#[test]
fn directories_that_both_hold_something_are_merged() {
    let cluster = Cluster::new(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    for (node, name, content) in [
        (a, "only-a", "a"),
        (b, "only-b", "b"),
        (a, "equal", "the same"),
        (b, "equal", "the same"),
        (a, "different.txt", "from a"),
        (b, "different.txt", "from b"),
    ] {
        fs::write(node.path(name), content).expect("a new file");
    }
    a.run(["dataset", "create", crate::cluster::DATASET]).expect_done();
    a.link();
    b.link();
    cluster.settle();

    assert_eq!(values(&a.dir, "only-"), ["a", "b"]);
    assert_eq!(values(&a.dir, "equal"), ["the same"]);
    assert_eq!(values(&a.dir, "different"), ["from a", "from b"]);
}

#[test]
fn a_change_made_before_wait_is_included_in_it() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    for round in 0..10 {
        let content = format!("round {round}");
        fs::write(a.path("changing"), &content).expect("writable");
        b.wait();
        let arrived = fs::read_to_string(b.path("changing")).unwrap_or_default();
        assert_eq!(arrived, content);
    }
}

#[test]
fn a_renamed_directory_moves_no_content() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let mut random = Random::new(1);
    fs::create_dir(a.path("before")).expect("a new directory");
    for number in 0..64 {
        fs::write(a.path(&format!("before/{number}")), random.bytes(64 * 1024)).expect("a file");
    }
    cluster.settle();
    let before = a.traffic();
    fs::rename(a.path("before"), a.path("after")).expect("renamed");
    cluster.settle();

    let moved = a.traffic() - before;
    assert!(b.path("after/63").exists() && !b.path("before").exists());
    assert!(moved < 64 * 1024 + SMALL_TALK_BYTES, "{moved} bytes for the rename of 4 MiB");
}

#[test]
fn a_kibibyte_inserted_at_the_head_moves_little() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let mut random = Random::new(2);
    let old = random.bytes(large_file_bytes());
    fs::write(a.path("large"), &old).expect("a new file");
    cluster.settle();

    let mut moved = [0; 5];
    for moved in &mut moved {
        let before = a.traffic();
        let new = cluster.beside("new");
        let mut file = File::create(&new).expect("a new file");
        file.write_all(&random.bytes(1024)).expect("writable");
        file.write_all(&old).expect("writable");
        drop(file);
        fs::rename(&new, a.path("large")).expect("replaced");
        cluster.settle();
        *moved = a.traffic() - before;
    }
    moved.sort_unstable();
    println!("1 KiB inserted into {} bytes, five times: {moved:?} bytes moved", old.len());
    assert!(moved[2] < 256 * 1024, "{moved:?}");
    assert_eq!(fs::metadata(b.path("large")).expect("it is there").len(), old.len() as u64 + 1024);
}

#[test]
fn files_that_grow_while_a_node_is_killed_again_and_again_become_what_was_appended() {
    let seed = from_environment("CONSORT_TEST_SEED", 1);
    println!("repeat with CONSORT_TEST_SEED={seed}");
    let mut random = Random::new(seed);
    let mut cluster = Cluster::linked(2);
    let mut files: Vec<Vec<u8>> = (0..3).map(|_| random.bytes(5 << 20)).collect();
    let name = |number| format!("grows-{number}");
    for (number, bytes) in files.iter().enumerate() {
        fs::write(cluster.nodes[0].path(&name(number)), bytes).expect("a new file");
    }
    cluster.settle();
    let inode = |node: &Node| fs::metadata(node.path(&name(0))).expect("it is there").ino();
    let before = inode(&cluster.nodes[1]);
    let mut append = |node: &Node, random: &mut Random| {
        for (number, bytes) in files.iter_mut().enumerate() {
            let length = 1 + random.below(1 << 20);
            let more = random.bytes(length);
            let file = File::options().append(true).open(node.path(&name(number)));
            file.and_then(|mut file| file.write_all(&more)).expect("appended");
            bytes.extend(more);
        }
    };
    append(&cluster.nodes[0], &mut random);
    cluster.settle();
    assert_eq!(inode(&cluster.nodes[1]), before, "it did not grow where it stands");
    for _ in 0..6 {
        append(&cluster.nodes[0], &mut random);
        // Nothing is waited for: it is killed at any moment of what follows.
        thread::sleep(Duration::from_millis(random.next() % 800));
        cluster.nodes[1].kill_and_start();
        // This may come before the node has looked at what it left.
        append(&cluster.nodes[0], &mut random);
        cluster.settle();
    }
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    for (number, bytes) in files.iter().enumerate() {
        for node in [a, b] {
            assert!(
                fs::read(node.path(&name(number))).is_ok_and(|found| found == *bytes),
                "{number}"
            );
        }
    }
    let entries = fs::read_dir(&b.dir).expect("readable").count();
    assert_eq!(entries, files.len() + 1, "somebody else's version beside them");
    cluster.stop_and_check();
}

#[test]
fn a_node_that_is_killed_again_and_again_brings_nothing_back() {
    let seed = from_environment("CONSORT_TEST_SEED", 1);
    println!("repeat with CONSORT_TEST_SEED={seed}");
    for read_only in [false, true] {
        let mut random = Random::new(seed);
        let mut cluster = Cluster::linked(2);
        let [a, b] = &mut cluster.nodes[..] else { unreachable!("two nodes") };
        if read_only {
            b.run(["unlink", DATASET]).expect_done();
            let link = [OsStr::new("link"), OsStr::new(DATASET), b.dir.as_os_str()];
            b.run(link.into_iter().chain([OsStr::new("--read-only")])).expect_done();
        }
        let name = |number: u64| format!("d{}/f{number}", number % 5);
        for directory in 0..5 {
            fs::create_dir(a.path(&format!("d{directory}"))).expect("a new directory");
        }
        let (mut names, mut next) = (Vec::new(), 0);
        for _ in 0..4 {
            // Written, written anew, renamed and deleted, while what came before is still on its way.
            let before = b.traffic();
            for _ in 0..1 + random.below(14) {
                for _ in 0..100 {
                    let at = random.below(names.len() + 40);
                    match (names.get(at).copied(), random.below(4)) {
                        (Some(old), 0) => {
                            fs::remove_file(a.path(&name(old))).expect("removed");
                            names.swap_remove(at);
                        }
                        (Some(old), 1) => {
                            next += 1;
                            fs::rename(a.path(&name(old)), a.path(&name(next))).expect("renamed");
                            names[at] = next;
                        }
                        (Some(old), _) => {
                            let bytes = random.bytes(3000);
                            fs::write(a.path(&name(old)), bytes).expect("written");
                        }
                        (None, _) => {
                            next += 1;
                            names.push(next);
                            fs::write(a.path(&name(next)), random.bytes(3000)).expect("written");
                        }
                    }
                }
            }
            // A part of that is on its way, or in place, when it is killed.
            let part = before + 1 + random.next() % 50_000;
            until("it receives", || part <= b.traffic());
            b.kill_and_start();
        }
        let expected = tree::read(&a.dir);
        cluster.settle();
        let differences = tree::differences(&expected, &tree::read(&cluster.nodes[0].dir));
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        cluster.stop_and_check();
    }
}

#[test]
fn a_restart_with_nothing_changed_says_little_and_reads_no_contents() {
    let mut cluster = Cluster::linked(2);
    let mut random = Random::new(3);
    for number in 0..200 {
        let path = cluster.nodes[0].path(&format!("file-{number}"));
        fs::write(path, random.bytes(100 * 1024)).expect("a new file");
    }
    cluster.settle();
    for node in &mut cluster.nodes {
        node.stop();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.expect_connected();
    for node in &cluster.nodes {
        node.wait();
        node.until_state("in-sync");
        let (traffic, read) = (node.traffic(), bytes_read(node.pid()));
        assert!(traffic < SMALL_TALK_BYTES, "{} moved {traffic} bytes", node.name);
        // What a store of 200 files reads to open is far below their 20 MB.
        assert!(read < 10_000_000, "{} read {read} bytes", node.name);
    }
}

#[test]
fn an_entry_goes_in_and_out_through_the_command_line() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let content = Random::new(4).bytes(700_000);
    a.put("some/where/large.bin", &content).expect_done();
    a.put("empty", b"").expect_done();
    cluster.settle();
    assert_eq!(b.get("some/where/large.bin").expect_done().stdout, content);
    assert_eq!(fs::read(b.path("some/where/large.bin")).expect("it is in the directory"), content);
    assert_eq!(fs::read(a.path("empty")).expect("it is in the directory"), b"");

    b.run(["rm", crate::cluster::DATASET, "empty"]).expect_done();
    cluster.settle();
    assert!(!a.path("empty").exists() && !b.path("empty").exists());
    a.get("empty").expect_failure(1, &["empty"]);
    for key in ["../up", "a//b", "/etc/passwd", "a/./b", "tab\there", &"k".repeat(1025)] {
        let refused = a.put(key, b"hostile");
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{key:?}: {refused}");
    }
    let changes = a.run(["feed", crate::cluster::DATASET, "--json"]).expect_done();
    let lines: Vec<serde_json::Value> =
        changes.text().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(
        lines.iter().any(|change| text(&change["key"]) == "empty" && change["deleted"] == true)
    );
}

#[test]
fn changes_flow_both_ways_while_files_are_being_written() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    // A file that never rests for long must not stop the others, and arrives when it does.
    let mut log = File::create(a.path("log")).expect("a new file");
    for round in 0..20 {
        log.write_all(&Random::new(round).bytes(10_000)).expect("writable");
        let node = if round % 2 == 0 { a } else { b };
        fs::write(node.path(&format!("other-{round}")), "x").expect("a new file");
    }
    let other = if 19 % 2 == 0 { b } else { a };
    until("a file beside the one that is written", || other.path("other-19").exists());
    drop(log);
    cluster.settle();
    assert_eq!(fs::metadata(b.path("log")).expect("it arrived").len(), 200_000);
}

/// The contents of the files whose names begin with `prefix`, sorted.
fn values(dir: &Path, prefix: &str) -> Vec<String> {
    let named = |path: &Path| path.to_string_lossy().starts_with(prefix);
    let mut found: Vec<String> = tree::read(dir)
        .into_iter()
        .filter(|(path, entry)| named(path) && matches!(entry, Entry::File { .. }))
        .map(|(path, _)| fs::read_to_string(dir.join(path)).expect("text"))
        .collect();
    found.sort();
    found
}

/// Bytes that a process has read so far, from files, pipes and sockets.
fn bytes_read(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).expect("our own child");
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).expect("Linux says so");
    line.parse().expect("a number")
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "cannot copy {}", from.display());
}

/// The size of a file that counts as large.
fn large_file_bytes() -> usize {
    usize::try_from(from_environment("CONSORT_TEST_LARGE_MIB", 48) << 20).expect("it fits")
}
