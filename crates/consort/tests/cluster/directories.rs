//! What can happen to a linked directory, and what must not happen because of it.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Resource, Rlimit, prlimit};

use crate::cluster::{Cluster, DATASET, Node, array, process_id, text, until};
use crate::random::Random;
use crate::tree;

#[test]
fn the_deletion_of_most_of_a_directory_waits_until_it_is_allowed() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let files = 60;
    for number in 0..files {
        fs::write(a.path(&format!("file-{number}")), format!("{number}")).expect("a new file");
    }
    cluster.settle();
    for number in 0..files - 5 {
        fs::remove_file(a.path(&format!("file-{number}"))).expect("it is there");
    }
    let status = a.until_state("paused");
    let reason = text(&status["reason"]);
    assert!(reason.contains("--allow-mass-delete"), "it does not say what to do: {reason}");
    // The first few may have gone before it was seen that they are many.
    let left = tree::read(&b.dir).len();
    assert!(left > files / 2, "only {left} of {files} are left elsewhere");
    // Why nothing moves is a finding, and what to do about it.
    a.run(["doctor"]).expect_failure(1, &[]);
    // Whoever wants to read what is there must not take this for it.
    a.run(["wait", DATASET]).expect_failure(1, &["paused", "--allow-mass-delete"]);

    let args = [OsStr::new("link"), OsStr::new(DATASET), a.dir.as_os_str()];
    let linked = a.run(args).expect_done();
    assert!(linked.stderr.contains(&format!("paused: {reason}")), "{linked}");
    assert!(!linked.stderr.contains("identical"), "{linked}");
    let allowed = a.run(args.into_iter().chain([OsStr::new("--allow-mass-delete")])).expect_done();
    assert!(allowed.stderr.contains("identical from now on"), "{allowed}");
    cluster.settle();
    assert_eq!(tree::read(&b.dir).len(), 5);
}

#[test]
fn a_directory_is_made_where_its_parent_is_and_nowhere_else() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    node.run(["dataset", "create", DATASET]).expect_done();
    let (missing, file) = (cluster.beside("misspelt"), cluster.beside("file"));
    fs::write(&file, "").expect("a new file");
    let link = |dir: &Path| {
        node.run([OsStr::new("--json"), OsStr::new("link"), OsStr::new(DATASET), dir.as_os_str()])
    };
    link(&missing.join("deep/photos")).expect_failure(2, &["/misspelt does not exist"]);
    link(&file.join("photos")).expect_failure(2, &["/file is not a directory"]);
    link(&file).expect_failure(2, &["is not a directory"]);
    assert!(!missing.exists());

    let new = cluster.beside("new");
    let made = link(&new).expect_done();
    assert!(made.stderr.contains("it was made"), "{made}");
    assert_eq!(made.json()["created"], true);
    assert!(new.is_dir());
    let again = link(&new).expect_done();
    assert_eq!(again.json()["created"], false);
    assert!(!again.stderr.contains("it was made"), "{again}");
}

#[test]
fn a_read_only_reader_that_cannot_look_into_its_directory_holds_up_nobody() {
    let mut cluster = Cluster::linked(1);
    cluster.join_another("reader");
    cluster.expect_connected();
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    until("the reader to know the dataset", || {
        b.run(["dataset", "show", DATASET]).status.success()
    });
    let args = [OsStr::new("link"), OsStr::new(DATASET), b.dir.as_os_str()];
    b.run(args.into_iter().chain([OsStr::new("--read-only")])).expect_done();
    b.wait();
    let away = cluster.beside("away");
    fs::rename(&b.dir, &away).expect("renamed");
    b.until_state("paused");
    fs::write(a.path("more"), "more").expect("a new file");
    a.wait();
    fs::rename(&away, &b.dir).expect("renamed back");
    b.wait();
    assert!(b.path("more").exists());
}

#[test]
fn what_is_in_sync_without_a_directory_says_so() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    node.run(["dataset", "create", DATASET]).expect_done();
    let status = node.until_state("in-sync");
    assert_eq!(status["metadata_only"], true);
    let shown = node.run(["status"]).expect_done();
    assert!(
        shown.text().contains("in sync (not linked here: contents are fetched when read)"),
        "{shown}"
    );
    let waited = node.run(["--json", "wait", DATASET]).expect_done();
    assert!(waited.stderr.contains("fetched when they are read"), "{waited}");
    // With nobody to be waited for, what others hold is not claimed.
    assert!(waited.stderr.contains("no other node is reachable"), "{waited}");
    assert_eq!(waited.json()["peers"], 0);
    node.link();
    node.wait();
    assert_eq!(node.until_state("in-sync")["metadata_only"], false);
    assert!(!node.run(["status"]).expect_done().text().contains("not linked"));
}

#[test]
fn what_consortignore_names_stays_at_home() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.path(".consortignore"), "*.tmp\nbuild/\n!keep.tmp\n").expect("a new file");
    a.wait();
    for name in ["build/deep/output", "notes.tmp", "keep.tmp", "notes.txt", "sub/other.tmp"] {
        fs::create_dir_all(a.path(name).parent().expect("it has one")).expect("a directory");
        fs::write(a.path(name), name).expect("a new file");
    }
    b.wait();
    let arrived: Vec<PathBuf> = tree::read(&b.dir).into_keys().collect();
    let expected = [".consortignore", "keep.tmp", "notes.txt", "sub"].map(PathBuf::from);
    assert_eq!(arrived, expected);
    // And stays there when its directory goes elsewhere.
    fs::remove_dir(b.path("sub")).expect("it is empty");
    a.wait();
    assert!(a.path("sub/other.tmp").exists() && a.path("build/deep/output").exists());
}

#[test]
fn names_that_are_not_utf8_are_reported_and_do_no_harm() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let strange = a.dir.join(OsStr::from_bytes(b"caf\xe9.txt"));
    if let Err(error) = fs::write(&strange, "latin-1") {
        println!("skipped: this file system holds UTF-8 names only ({error})");
        return;
    }
    let inside = a.dir.join(OsStr::from_bytes(b"dir-\xff"));
    fs::create_dir(&inside).expect("a new directory");
    fs::write(inside.join("child"), "unreachable").expect("a new file");
    for name in ["line\nbreak", "bell\u{7}"] {
        fs::write(a.path(name), "a control character").expect("a new file");
    }
    fs::write(a.path("ordinary"), "ordinary").expect("a new file");
    b.wait();
    let arrived: Vec<PathBuf> = tree::read(&b.dir).into_keys().collect();
    assert_eq!(arrived, [PathBuf::from("ordinary")]);
    let status = a.dataset();
    let problems = array(&status, "problems");
    for part in ["caf", "dir-", "line", "bell"] {
        let is_told = problems.iter().any(|problem| text(problem).contains(part));
        assert!(is_told, "{part} is not reported: {status}");
    }
    assert_eq!(fs::read(&strange).expect("untouched"), b"latin-1");
}

#[test]
fn a_name_that_no_directory_can_hold_is_reported_with_what_to_do() {
    let cluster = Cluster::linked(1);
    let node = &cluster.nodes[0];
    let key = "x".repeat(300);
    node.put(&key, b"kept").expect_done();
    let is_told = || {
        let status = node.dataset();
        array(&status, "problems").iter().any(|problem| text(problem).contains("`consort rm`"))
    };
    until("it to be told what to do", is_told);
    node.run(["rm", DATASET, &key]).expect_done();
    node.wait();
    node.until_state("in-sync");
}

#[test]
fn a_directory_that_vanishes_deletes_nothing_and_may_come_back() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    for number in 0..20 {
        fs::write(a.path(&format!("file-{number}")), "here").expect("a new file");
    }
    cluster.settle();
    let away = cluster.beside("away");
    fs::rename(&a.dir, &away).expect("renamed");
    fs::write(b.path("meanwhile"), "new").expect("a new file");
    let status = until("a to notice that its directory is gone", || {
        let status = a.dataset();
        ["paused", "degraded"].contains(&text(&status["state"])).then_some(status)
    });
    // A new one would be another directory.
    let reason = text(&status["reason"]);
    assert!(
        reason.contains("or move it back; to go on with a new one, `consort unlink`"),
        "{reason}"
    );
    assert!(
        !a.dir.exists(),
        "the directory is made again, although it may be a mount that is gone"
    );
    assert!(b.path("file-19").exists());

    fs::rename(&away, &a.dir).expect("renamed back");
    cluster.settle();
    assert!(a.path("meanwhile").exists() && b.path("file-19").exists());
}

#[test]
fn a_disk_that_is_not_mounted_at_the_start_deletes_nothing_and_may_come_back() {
    let mut cluster = Cluster::linked(2);
    for number in 0..20 {
        fs::write(cluster.nodes[0].path(&format!("file-{number}")), "here").expect("a new file");
    }
    cluster.settle();
    cluster.nodes[0].stop();
    let (dir, disk) = (cluster.nodes[0].dir.clone(), cluster.beside("disk"));
    fs::rename(&dir, &disk).expect("renamed");
    // What a disk is mounted on is there without it, too.
    fs::create_dir(&dir).expect("a new directory");
    cluster.nodes[0].start();
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let reason = text(&a.until_state("paused")["reason"]).to_owned();
    assert!(reason.contains("mount") && reason.contains("consort unlink"), "{reason}");
    cluster.expect_connected();
    fs::write(b.path("meanwhile"), "new").expect("a new file");
    until("a to hear of what changed meanwhile", || {
        a.dataset()["pending"].as_u64().is_some_and(|pending| 0 < pending)
    });
    assert!(fs::read_dir(&dir).expect("it is there").next().is_none(), "something is put there");
    assert_eq!(tree::read(&b.dir).len(), 21);

    fs::remove_dir(&dir).expect("it is empty");
    fs::rename(&disk, &dir).expect("renamed back");
    cluster.settle();
    assert!(a.path("meanwhile").exists());
    assert_eq!(tree::read(&b.dir).len(), 21);
}

#[test]
fn linked_directories_that_are_swapped_while_the_node_is_down_are_not_mixed() {
    const OTHER: &str = "music";
    let mut cluster = Cluster::linked(2);
    cluster.nodes[0].run(["dataset", "create", OTHER]).expect_done();
    let others = [cluster.beside("music-a"), cluster.beside("music-b")];
    for (node, other) in cluster.nodes.iter().zip(&others) {
        until("the dataset to be known", || node.run(["dataset", "show", OTHER]).status.success());
        let args = [OsStr::new("link"), OsStr::new(OTHER), other.as_os_str()];
        node.run(args).expect_done();
    }
    fs::write(cluster.nodes[0].path("photo"), "photo").expect("a new file");
    fs::write(others[0].join("song"), "song").expect("a new file");
    let wait = |node: &Node| node.run(["wait", OTHER, "--timeout", "60s"]).expect_done();
    cluster.settle();
    wait(&cluster.nodes[1]);
    cluster.nodes[0].stop();
    let dir = cluster.nodes[0].dir.clone();
    let swap = || renameat_with(CWD, &dir, CWD, &others[0], RenameFlags::EXCHANGE);
    swap().expect("swapped");
    cluster.nodes[0].start();
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let reason = text(&a.until_state("paused")["reason"]).to_owned();
    assert!(reason.contains("another directory"), "{reason}");
    // The link that is ended does not take the other one's identity along.
    a.run(["unlink", OTHER]).expect_done();
    assert!(dir.join(".consort/id").exists() && others[0].join(".consort/id").exists());
    swap().expect("swapped back");
    let args = [OsStr::new("link"), OsStr::new(OTHER), others[0].as_os_str()];
    a.run(args).expect_done();
    cluster.settle();
    wait(a);
    wait(b);
    for (dir, names) in
        [(&a.dir, ["photo"]), (&b.dir, ["photo"]), (&others[0], ["song"]), (&others[1], ["song"])]
    {
        let found: Vec<PathBuf> = tree::read(dir).into_keys().collect();
        assert_eq!(found, names.map(PathBuf::from));
    }
}

#[test]
fn a_symlink_swapped_in_never_leads_outside() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let outside = cluster.beside("outside");
    fs::create_dir(&outside).expect("a new directory");
    fs::write(outside.join("secret"), "not for the cluster").expect("a new file");
    fs::create_dir(a.path("dir")).expect("a new directory");
    fs::write(a.path("dir/0"), "0").expect("a new file");
    cluster.settle();

    // On b the directory is exchanged with a symlink to outside, again and again, while a fills it.
    let trap = cluster.beside("trap");
    symlink(&outside, &trap).expect("a new symlink");
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for _ in 0..2 {
                    // Twice, so that the directory is back in the end. It fails while the engine has it in hand.
                    while exchange(&trap, &b.path("dir")).is_err() && !stop.load(Ordering::Relaxed)
                    {
                        thread::yield_now();
                    }
                }
            }
        });
        for number in 1..200 {
            fs::write(a.path(&format!("dir/{number}")), format!("{number}")).expect("a new file");
            if number % 50 == 0 {
                // However it ends: the directory may never rest long enough.
                b.run(["wait", DATASET, "--timeout", "1s"]);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let is_trap = |path: &Path| path.is_symlink();
    if is_trap(&b.path("dir")) {
        exchange(&trap, &b.path("dir")).expect("exchanged back");
    }
    let names: Vec<_> = tree::read(&outside).into_keys().collect();
    assert_eq!(names, [PathBuf::from("secret")], "the engine wrote outside of its directory");
    cluster.settle();
    let names: Vec<_> = tree::read(&outside).into_keys().collect();
    assert_eq!(names, [PathBuf::from("secret")], "the engine wrote outside of its directory");
    for node in &cluster.nodes {
        let leaked = tree::read(&node.dir).into_keys().any(|path| path.ends_with("secret"));
        assert!(!leaked, "what is outside was taken into the dataset");
    }
}

#[test]
fn a_full_disk_pauses_and_goes_on_when_there_is_room() {
    let Some((cluster, _small)) = linked_with_a_small_disk() else { return };
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(b.path("filler"), vec![0; 3 * 1024 * 1024]).expect("there is room");
    cluster.settle();
    let before = b.traffic();
    let size = 6 * 1024 * 1024;
    fs::write(a.path("large"), Random::new(1).bytes(size)).expect("a new file");
    let status = b.until_state("paused");
    let reason = text(&status["reason"]).to_lowercase();
    assert!(reason.contains("full") || reason.contains("room"), "{reason}");
    assert!(!b.path("large").exists(), "a file appears whole or not at all");
    b.run(["doctor"]).expect_failure(1, &[]);
    // As long as there is no more room, it is not fetched again, however often that is looked at.
    until("b to look for more room in vain", || {
        2 <= b.log().matches("there is no more room yet").count()
    });
    let moved = b.traffic() - before;
    assert!(moved < size as u64 + 1024 * 1024, "{moved} bytes for a file that does not fit");

    fs::remove_file(b.path("filler")).expect("it is there");
    until("the file to arrive", || b.path("large").exists());
    cluster.settle();
}

#[test]
fn a_full_disk_is_no_pause_any_more_when_what_did_not_fit_is_gone() {
    let Some((cluster, _small)) = linked_with_a_small_disk() else { return };
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    fs::write(a.path("old"), "to be deleted").expect("a new file");
    fs::write(b.path("filler"), vec![0; 3 * 1024 * 1024]).expect("there is room");
    cluster.settle();
    fs::write(a.path("large"), Random::new(1).bytes(6 * 1024 * 1024)).expect("a new file");
    b.until_state("paused");
    for gone in ["large", "old"] {
        fs::remove_file(a.path(gone)).expect("it is there");
    }
    fs::write(a.path("small"), "fits").expect("a new file");
    until("the small one to arrive", || b.path("small").exists() && !b.path("old").exists());
    cluster.settle();
}

#[test]
fn a_full_disk_pauses_what_is_copied_on_the_machine_as_well() {
    let Some((cluster, _small)) = linked_with_a_small_disk() else { return };
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let bytes = Random::new(2).bytes(3 * 1024 * 1024);
    fs::write(a.path("first"), &bytes).expect("a new file");
    fs::write(b.path("filler"), vec![0; 3 * 1024 * 1024]).expect("there is room");
    cluster.settle();

    // Its bytes are there already, and are written by those who find them.
    fs::write(a.path("second"), &bytes).expect("a new file");
    b.until_state("paused");
    assert!(!b.path("second").exists(), "a file appears whole or not at all");

    fs::remove_file(b.path("filler")).expect("it is there");
    until("the file to arrive", || b.path("second").exists());
    cluster.settle();
}

/// Two nodes with linked directories, of which the second one's is a small file system of its own. None if that is not
/// possible here.
fn linked_with_a_small_disk() -> Option<(Cluster, Mount)> {
    let cluster = Cluster::new(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let small = Mount::small(&b.dir)?;
    a.run(["dataset", "create", DATASET]).expect_done();
    a.link();
    b.link();
    cluster.settle();
    Some((cluster, small))
}

#[test]
fn a_read_only_link_takes_nothing_over() {
    let cluster = Cluster::new(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    a.run(["dataset", "create", DATASET]).expect_done();
    a.link();
    until("b to know the dataset", || b.run(["dataset", "show", DATASET]).status.success());
    let args = [OsStr::new("link"), OsStr::new(DATASET), b.dir.as_os_str()];
    b.run(args.into_iter().chain([OsStr::new("--read-only")])).expect_done();
    fs::write(a.path("given"), "from a").expect("a new file");
    b.wait();
    fs::write(b.path("own"), "from b").expect("a new file");
    b.wait();
    a.wait();
    assert_eq!(fs::read_to_string(b.path("given")).expect("it arrived"), "from a");
    assert!(!a.path("own").exists() && b.path("own").exists());
}

#[test]
fn directories_that_overlap_or_do_not_exist_are_refused() {
    let cluster = Cluster::linked(1);
    let node = &cluster.nodes[0];
    node.run(["dataset", "create", "second"]).expect_done();
    let link = |dir: &Path| node.run([OsStr::new("link"), OsStr::new("second"), dir.as_os_str()]);
    fs::create_dir(node.path("inside")).expect("a new directory");
    for dir in
        [node.path("inside"), node.dir.clone(), node.dir.parent().expect("it has one").into()]
    {
        let refused = link(&dir);
        assert!(!refused.status.success(), "{refused}");
    }
    let refused = link(&cluster.beside("nowhere/at/all"));
    assert!(!refused.status.success() || cluster.beside("nowhere/at/all").is_dir(), "{refused}");
    let file = cluster.beside("file");
    fs::write(&file, "not a directory").expect("a new file");
    assert!(!link(&file).status.success());
    assert_eq!(fs::read(&file).expect("untouched"), b"not a directory");
}

#[test]
fn a_directory_within_one_that_another_node_keeps_is_refused() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    a.run(["dataset", "create", "second"]).expect_done();
    b.wait();
    let link = |dir: &Path| b.run([OsStr::new("link"), OsStr::new("second"), dir.as_os_str()]);
    let kept = a.dir.display().to_string().to_lowercase();
    fs::create_dir(a.path("inside")).expect("a new directory");
    for dir in [a.path("inside"), a.path("inside/new")] {
        link(&dir).expect_failure(4, &[&kept, "unlink", ".consort/id"]);
    }
    assert!(!a.path("inside/.consort").exists() && !a.path("inside/new").exists());
    a.run(["unlink", DATASET]).expect_done();
    link(&a.path("inside")).expect_done();
}

fn exchange(left: &Path, right: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, left, CWD, right, RenameFlags::EXCHANGE)?)
}

/// A small file system of its own, as long as this lives.
struct Mount(PathBuf);

impl Mount {
    /// Mounts 8 MiB of memory at `path`; says why if that is not possible here.
    fn small(path: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=8m,mode=755", "tmpfs"]).arg(path);
        match mount.output() {
            Ok(output) if output.status.success() => Some(Self(path.to_owned())),
            Ok(output) => {
                println!("skipped: {}", String::from_utf8_lossy(&output.stderr).trim());
                None
            }
            Err(error) => {
                println!("skipped: cannot run mount: {error}");
                None
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily, as the node may still have files open there.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

#[test]
fn many_files_arrive_where_few_may_be_open() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let limit = Some(400);
    for node in [a, b] {
        let limit = Rlimit { current: limit, maximum: limit };
        prlimit(Some(process_id(node.pid())), Resource::Nofile, limit).expect("it may be lowered");
    }
    let mut random = Random::new(7);
    for number in 0..1500 {
        let path = a.path(&format!("file-{number}"));
        fs::write(path, random.bytes(20_000)).expect("a new file");
    }
    cluster.settle();
    for node in [a, b] {
        let status = node.dataset();
        assert!(array(&status, "problems").is_empty(), "{status}");
    }
}
