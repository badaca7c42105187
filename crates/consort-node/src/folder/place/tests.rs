//! Putting in place and taking away as it should go, and with a user who is at work in the same directory.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use super::*;

const MTIME: i64 = 1_234_567_890_123_456_789;

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub(super) root: Root,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        Self { dir, root }
    }

    /// Opens the directory again, as after a crash.
    pub(super) fn reopen(&mut self) {
        self.root.unlock();
        self.root = Root::open(self.dir.path()).unwrap();
    }

    pub(super) fn at(&self, key: &str) -> PathBuf {
        self.dir.path().join(key)
    }

    fn staged(&self, content: &str) -> Staged {
        let staging = self.root.stage(0o640).unwrap();
        staging.target(0).write(content.as_bytes()).unwrap();
        staging.finish(content.len() as u64, 0o640, MTIME).unwrap()
    }

    /// As where files without a name cannot be had.
    fn named(&self, content: &str) -> TempName {
        let staging = self.root.stage_named().unwrap();
        staging.target(0).write(content.as_bytes()).unwrap();
        let staged = staging.finish(content.len() as u64, 0o640, MTIME).unwrap();
        let Form::Whole(Whole { origin: Origin::Named(temp), .. }) = staged.0 else {
            panic!("it was given a name")
        };
        temp
    }

    pub(super) fn place(
        &self,
        content: &str,
        key: &str,
        expected: Expected,
    ) -> Result<Placed, PlaceError> {
        self.root.place_file(self.staged(content), key, expected)
    }

    pub(super) fn stat(&self, key: &str) -> Meta {
        self.root.stat(key).unwrap().unwrap()
    }

    pub(super) fn temp_is_empty(&self) -> bool {
        fs::read_dir(self.at(".consort/tmp")).unwrap().next().is_none()
    }
}

pub(super) fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn what_is_staged_can_be_read_on_its_whole_way_to_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let root = Arc::new(Root::open(dir.path()).unwrap());
    let stagings = [root.stage(0o640).unwrap(), root.stage_named().unwrap()];
    for (staging, key) in stagings.into_iter().zip(["unnamed", "named"]) {
        staging.target(0).write(b"content").unwrap();
        let peek = staging.peek(&root, key);
        let reads = |expected: bool| {
            let mut bytes = [0; 4];
            let read = peek.read_at(&mut bytes, 3);
            assert_eq!(read.is_ok() && bytes == *b"tent", expected, "{key}");
        };
        reads(true);
        // Zeroes beyond the end are not written.
        staging.target(9).write(&[0; 4]).unwrap();
        let mut bytes = [1; 4];
        peek.read_at(&mut bytes, 9).unwrap();
        assert_eq!(bytes, [0; 4]);
        let staged = staging.finish(7, 0o640, MTIME).unwrap();
        reads(true);
        root.place_file(staged, key, Expected::Absent).unwrap();
        reads(true);
        fs::remove_file(dir.path().join(key)).unwrap();
        reads(false);
    }
}

#[test]
fn a_file_is_not_finished_while_somebody_may_still_write_to_it() {
    let fixture = Fixture::new();
    let staging = fixture.root.stage(0o640).unwrap();
    let target = staging.target(0);
    target.write(b"content").unwrap();
    assert!(staging.is_held());
    assert!(matches!(staging.finish(7, 0o640, MTIME), Err(PlaceError::Io(_))));

    let staging = fixture.root.stage(0o640).unwrap();
    staging.target(0).write(b"content").unwrap();
    assert!(!staging.is_held());
    assert!(staging.finish(7, 0o640, MTIME).is_ok());
}

#[test]
fn a_placed_file_has_its_content_mode_and_time_to_the_nanosecond() {
    let fixture = Fixture::new();
    let key = format!("Ünïcode/目录/{}", "x".repeat(255));
    let staged = [fixture.staged("content")];
    fixture.root.sync_staged(&staged).unwrap();
    let [staged] = staged;
    let placed = fixture.root.place_file(staged, &key, Expected::Absent).unwrap();
    assert_eq!(placed.created, ["Ünïcode", "Ünïcode/目录"]);
    assert_eq!(read(fixture.at(&key)), "content");
    assert_eq!((placed.meta.mode, placed.meta.mtime_ns), (0o640, MTIME));
    assert!(placed.meta.same_file_state(&fixture.stat(&key)));
    let keys = placed.created.iter().map(String::as_str).chain([&*key]);
    fixture.root.sync_entries(keys).unwrap();
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_file_replaces_exactly_what_was_expected() {
    let fixture = Fixture::new();
    let first = fixture.place("one", "f", Expected::Absent).unwrap().meta;
    let second = fixture.place("two", "f", Expected::Present(first)).unwrap().meta;
    assert_eq!(read(fixture.at("f")), "two");
    let stale = fixture.place("three", "f", Expected::Present(first));
    assert!(matches!(stale, Err(PlaceError::Changed)), "{stale:?}");
    assert_eq!(fixture.stat("f"), second);
    let taken = fixture.place("three", "f", Expected::Absent);
    assert!(matches!(taken, Err(PlaceError::Changed)), "{taken:?}");
    fs::remove_file(fixture.at("f")).unwrap();
    let gone = fixture.place("three", "f", Expected::Present(second));
    assert!(matches!(gone, Err(PlaceError::Changed)), "{gone:?}");
    assert!(fixture.temp_is_empty());
}

#[test]
fn bytes_that_the_user_wrote_meanwhile_stay_where_they_are() {
    let fixture = Fixture::new();
    let known = fixture.place("known", "f", Expected::Absent).unwrap().meta;
    fs::write(fixture.at("f"), "users").unwrap();
    let placed = fixture.place("remote", "f", Expected::Present(known));
    assert!(matches!(placed, Err(PlaceError::Changed)), "{placed:?}");
    let removed = fixture.root.remove_file("f", &known);
    assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
    let touched = fixture.root.set_attributes("f", &known, 0o600, 1);
    assert!(matches!(touched, Err(PlaceError::Changed)), "{touched:?}");
    assert_eq!(read(fixture.at("f")), "users");
    assert!(fixture.temp_is_empty());
}

#[test]
fn what_was_swapped_out_goes_back_and_a_newer_entry_keeps_its_place() {
    let fixture = Fixture::new();
    let (parent, name) = fixture.root.open_parent("f").unwrap();
    let temp = fixture.at(".consort/tmp/out-x");
    // The ordinary case: ours is in place, the user's is out.
    fixture.place("ours", "f", Expected::Absent).unwrap();
    fs::write(&temp, "users").unwrap();
    fixture.root.put_back("out-x", &parent, name, &fixture.stat("f")).unwrap();
    assert_eq!(read(fixture.at("f")), "users");
    assert!(fixture.temp_is_empty());
    // The user has put another file in place of ours since.
    let ours = fixture.place("ours", "g", Expected::Absent).unwrap().meta;
    fs::write(&temp, "swapped out").unwrap();
    fixture.root.put_back("out-x", &parent, name, &ours).unwrap();
    assert_eq!(read(fixture.at("f")), "users");
    assert_eq!(read(fixture.at(".consort/rescued/file-0")), "swapped out");
    // The user has removed ours since.
    fs::remove_file(fixture.at("f")).unwrap();
    fs::write(&temp, "swapped out").unwrap();
    fixture.root.put_back("out-x", &parent, name, &ours).unwrap();
    assert_eq!(read(fixture.at("f")), "swapped out");
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_directory_that_is_renamed_while_it_is_open_keeps_what_is_in_it() {
    let fixture = Fixture::new();
    let known = fixture.place("known", "old/f", Expected::Absent).unwrap().meta;
    let (parent, name) = fixture.root.open_parent("old/f").unwrap();
    fs::rename(fixture.at("old"), fixture.at("new")).unwrap();
    let removed = fixture.root.remove_from(&parent, name, "old/f", &known);
    assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
    let staged = fixture.staged("remote");
    let Form::Whole(staged) = staged.0 else { panic!("it is a whole file") };
    let replaced = fixture.root.replace(staged, &parent, name, "old/f", &known);
    assert!(matches!(replaced, Err(PlaceError::Changed)), "{replaced:?}");
    assert_eq!(read(fixture.at("new/f")), "known");
    // Another directory under the old name is another one.
    fs::create_dir(fixture.at("old")).unwrap();
    let removed = fixture.root.remove_from(&parent, name, "old/f", &known);
    assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
    assert_eq!(read(fixture.at("new/f")), "known");
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_file_system_that_cannot_swap_is_still_checked() {
    let fixture = Fixture::new();
    let old = fixture.place("old", "f", Expected::Absent).unwrap().meta;
    let (parent, name) = fixture.root.open_parent("f").unwrap();
    replace_unswapped(fixture.named("new"), &parent, name, "f", &old).unwrap();
    assert_eq!(read(fixture.at("f")), "new");
    let stale = replace_unswapped(fixture.named("newer"), &parent, name, "f", &old);
    assert!(matches!(stale, Err(PlaceError::Changed)), "{stale:?}");
    assert_eq!(read(fixture.at("f")), "new");
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_staged_file_with_a_name_is_placed_like_one_without() {
    let fixture = Fixture::new();
    let stage = |content: &str| {
        let staging = fixture.root.stage_named().unwrap();
        staging.target(0).write(content.as_bytes()).unwrap();
        staging.finish(content.len() as u64, 0o640, MTIME).unwrap()
    };
    let first = fixture.root.place_file(stage("one"), "f", Expected::Absent).unwrap();
    let second = fixture.root.place_file(stage("two"), "f", Expected::Absent);
    assert!(matches!(second, Err(PlaceError::Changed)), "{second:?}");
    fixture.root.place_file(stage("three"), "f", Expected::Present(first.meta)).unwrap();
    assert_eq!(read(fixture.at("f")), "three");
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_parent_that_became_a_symlink_never_leads_outside() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let known = fixture.place("inside", "a/f", Expected::Absent).unwrap().meta;
    fs::write(outside.path().join("f"), "outside").unwrap();
    fs::rename(fixture.at("a"), fixture.at("moved")).unwrap();
    symlink(outside.path(), fixture.at("a")).unwrap();
    for (key, expected) in [
        ("a/new", Expected::Absent),
        ("a/b/c", Expected::Absent),
        ("a/f", Expected::Present(known)),
    ] {
        let placed = fixture.place("remote", key, expected);
        assert!(matches!(&placed, Err(PlaceError::Blocked { at }) if at == "a"), "{placed:?}");
    }
    let made = fixture.root.place_directory("a/d", 0o755);
    assert!(matches!(made, Err(PlaceError::Blocked { .. })), "{made:?}");
    assert!(fixture.root.remove_file("a/f", &known).is_err());
    assert!(fixture.root.set_attributes("a/f", &known, 0o777, 0).is_err());
    let removed = fixture.root.remove_directory("a/f").unwrap();
    assert_eq!(removed, RemovedDirectory::NotADirectory);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert_eq!(read(outside.path().join("f")), "outside");
}

#[test]
fn a_target_that_became_a_symlink_is_not_written_through() {
    let fixture = Fixture::new();
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "outside").unwrap();
    let known = fixture.place("inside", "f", Expected::Absent).unwrap().meta;
    fs::remove_file(fixture.at("f")).unwrap();
    symlink(&victim, fixture.at("f")).unwrap();
    assert!(fixture.place("remote", "f", Expected::Present(known)).is_err());
    assert!(fixture.place("remote", "f", Expected::Absent).is_err());
    assert!(fixture.root.place_directory("f", 0o777).is_err());
    let link = fixture.stat("f");
    fixture.root.set_attributes("f", &link, 0o777, MTIME).unwrap();
    assert_eq!(fixture.stat("f").mtime_ns, MTIME);
    fixture.place("remote", "f", Expected::Present(fixture.stat("f"))).unwrap();
    assert_eq!(read(fixture.at("f")), "remote");
    assert_eq!(read(&victim), "outside");
    assert!(fs::metadata(&victim).unwrap().mtime() > MTIME / 1_000_000_000);
}

#[test]
fn holes_stay_holes_and_blocks_written_again_as_zeroes_are_zero() {
    let fixture = Fixture::new();
    let staging = fixture.root.stage(0o640).unwrap();
    let size = 8 << 20;
    staging.target(0).write(&vec![0; 4 << 20]).unwrap();
    staging.target(5_000_000).write(b"data").unwrap();
    staging.target(100).write(&[7; 20_000]).unwrap();
    staging.target(10).write(&[0; 19_000]).unwrap();
    let staged = staging.finish(size, 0o644, 0).unwrap();
    let meta = fixture.root.place_file(staged, "sparse", Expected::Absent).unwrap().meta;
    assert!(meta.blocks * 512 < 256 * 1024, "{meta:?}");
    let mut model = vec![0; usize::try_from(size).unwrap()];
    model[5_000_000..5_000_004].copy_from_slice(b"data");
    model[19_010..20_100].fill(7);
    assert!(fs::read(fixture.at("sparse")).unwrap() == model);
}

#[test]
fn a_long_hole_takes_no_room_wherever_its_chunks_begin() {
    let fixture = Fixture::new();
    let staging = fixture.root.stage(0o640).unwrap();
    let (chunk, count) = (256 << 10, 64);
    let size = 100 + count * chunk + 100;
    // The end is there first, so that the chunks do not lie beyond all that was written.
    staging.target(size - 100).write(&[1; 100]).unwrap();
    staging.target(0).write(&[1; 100]).unwrap();
    let zeroes = vec![0; usize::try_from(chunk).unwrap()];
    (0..count).for_each(|n| staging.target(100 + n * chunk).write(&zeroes).unwrap());
    let staged = staging.finish(size, 0o640, MTIME).unwrap();
    let meta = fixture.root.place_file(staged, "f", Expected::Absent).unwrap().meta;
    assert!(meta.blocks * 512 <= 16 << 10, "{meta:?}");
    let bytes = fs::read(fixture.at("f")).unwrap();
    let ones: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let last = usize::try_from(size - 100).unwrap();
    assert_eq!(ones, (0..100).chain(last..last + 100).collect::<Vec<_>>());
}

#[test]
fn a_failed_place_leaves_no_directories_behind() {
    let fixture = Fixture::new();
    let key = format!("a/b/{}", "x".repeat(256));
    let placed = fixture.place("content", &key, Expected::Absent);
    assert!(matches!(placed, Err(PlaceError::Unrepresentable(_))), "{placed:?}");
    assert_eq!(fixture.root.list("").unwrap(), Vec::<std::ffi::OsString>::new());
    fixture.place("file", "a", Expected::Absent).unwrap();
    let below = fixture.place("content", "a/b/c", Expected::Absent);
    assert!(matches!(&below, Err(PlaceError::Blocked { at }) if at == "a"), "{below:?}");
}

#[test]
fn symlinks_and_directories_are_placed_and_removed() {
    let fixture = Fixture::new();
    let link = fixture.root.place_symlink(b"../any/where", "d/l", Expected::Absent, MTIME).unwrap();
    assert_eq!((link.meta.kind, link.meta.mtime_ns), (EntryKind::Symlink, MTIME));
    assert_eq!(fixture.root.read_link("d/l").unwrap(), "../any/where");
    let made = fixture.root.place_directory("d/e", 0o700).unwrap();
    assert_eq!((made.meta.mode, made.created), (0o700, vec!["d/e".to_owned()]));
    let again = fixture.root.place_directory("d/e", 0o755).unwrap();
    assert_eq!((again.meta.mode, again.created), (0o700, vec![]));
    let changed = fixture.root.set_attributes("d/e", &again.meta, 0o750, 0).unwrap();
    assert_eq!(changed.mode, 0o750);
    assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::NotEmpty);
    fixture.root.remove_file("d/l", &link.meta).unwrap();
    assert_eq!(fixture.root.remove_directory("d/e").unwrap(), RemovedDirectory::Removed);
    assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::Removed);
    assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::Absent);
    assert!(fixture.temp_is_empty());
}

#[test]
fn a_staged_file_that_is_not_placed_is_removed() {
    let fixture = Fixture::new();
    let named = fixture.named("never placed");
    assert!(!fixture.temp_is_empty());
    drop(named);
    assert!(fixture.temp_is_empty());
    drop(fixture.root.stage_named().unwrap());
    assert!(fixture.temp_is_empty());
}

#[test]
fn large_batches_are_synced_too() {
    let fixture = Fixture::new();
    let staged: Vec<_> = (0..20).map(|number| fixture.staged(&number.to_string())).collect();
    fixture.root.sync_staged(&staged).unwrap();
    let keys: Vec<_> = (0..20).map(|number| format!("f{number}")).collect();
    for (staged, key) in staged.into_iter().zip(&keys) {
        fixture.root.place_file(staged, key, Expected::Absent).unwrap();
    }
    fixture.root.sync_entries(keys.iter().map(String::as_str)).unwrap();
    assert_eq!(fixture.root.list("").unwrap().len(), 20);
}

/// Whether this process still has something open that it took out of this directory and removed.
fn is_taking_room(fixture: &Fixture) -> bool {
    let removed = format!("{}/", fixture.at(".consort/tmp").display());
    let open = fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .any(|target| target.to_string_lossy().starts_with(&removed))
}

#[test]
fn the_room_of_a_large_file_that_was_replaced_or_removed_is_given_back() {
    let fixture = Fixture::new();
    let large = "x".repeat(5 << 20);
    fixture.place(&large, "a", Expected::Absent).unwrap();
    fixture.place(&large, "b", Expected::Absent).unwrap();
    fixture.place("new", "a", Expected::Present(fixture.stat("a"))).unwrap();
    fixture.root.remove_file("b", &fixture.stat("b")).unwrap();
    assert_eq!(read(fixture.at("a")), "new");
    assert!(!fixture.at("b").exists());
    assert!(fixture.temp_is_empty());
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while is_taking_room(&fixture) {
        assert!(std::time::Instant::now() < deadline, "a file without a name stays open");
        std::thread::yield_now();
    }
}
