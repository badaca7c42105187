//! Single situations of a linked directory, each with the end it has to come to.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use consort_core::content::chunker::Chunker;
use consort_core::limits::{MAX_TOP_REFS, MAX_VECTOR_AUTHORS};
use consort_core::{
    Attributes, AuthorId, ChunkHash, ChunkRef, Content, Dot, Kind, OnConflict, Timestamp, Version,
    VersionVector,
};
use consort_node::folder::Root;
use crossbeam_channel::bounded;

use super::{Site, Stands, content_of, file_attributes, is_paused, key, noise, placing};

#[test]
fn what_others_wrote_appears_and_what_is_written_here_is_known() {
    let mut site = Site::new();
    site.remote("dir/a", Stands::After, b"a");
    site.remote("large", Stands::After, &noise(3_000_000, 1));
    site.remote_directory("empty");
    let target = Content::Inline((*b"../nowhere").into());
    let symlink = Attributes { kind: Kind::Symlink, mode: 0o777, ..Attributes::default() };
    site.remote_version("link", Stands::After, target, symlink);
    site.write("here/b", "b");
    site.settle();
    assert_eq!(site.read("dir/a").as_deref(), Some("a"));
    assert!(site.winner("here/b").is_some() && site.winner("here").is_some());
    site.check();
}

#[test]
fn the_later_of_two_edits_wins_and_the_other_stands_beside_it() {
    let mut site = Site::new();
    site.write("f.txt", "mine");
    site.settle();
    site.remote("f.txt", Stands::Over, b"theirs");
    site.settle();
    assert_eq!(site.read("f.txt").as_deref(), Some("theirs"));
    let copies = site.copies();
    assert_eq!(copies.len(), 1);
    assert_eq!(site.read(&copies[0]).as_deref(), Some("mine"));
    site.check();
}

#[test]
fn a_directory_that_leaves_while_it_is_taken_in_is_gone() {
    let site = Site::new();
    // The moments in which it leaves lie before, in and after its commit.
    for round in 0..60 {
        let path = format!("d{round}");
        site.write(&format!("{path}/beneath"), "x");
        std::thread::sleep(Duration::from_micros(100 * round));
        let aside = site.home.path().join("aside").join(&path);
        fs::rename(site.at(&path), &aside).unwrap();
    }
    site.until("nothing is asked any more", |site| {
        site.folder().allow_mass_delete();
        site.flush();
        !is_paused(site)
    });
    site.check();
    assert!(site.records().is_empty());
}

#[test]
fn a_copy_of_what_was_edited_meanwhile_goes_though_the_directory_was_closed_in_between() {
    let mut site = Site::new();
    for round in 0..10 {
        let path = format!("f{round}");
        site.write(&path, "first");
        site.settle();
        // Something beneath its name displaces it: first a copy is made, then it goes.
        site.remote(&format!("{path}/beneath"), Stands::After, b"beneath");
        site.until("there is a copy", |site| {
            site.copies().iter().any(|copy| copy.starts_with(&path))
        });
        let edited = site.home.path().join("aside").join(&path);
        fs::write(&edited, "second").unwrap();
        let _ = fs::rename(edited, site.at(&path));
        site.flush();
        site.stop();
        site.start();
    }
    site.settle();
    site.check();
}

#[test]
fn bytes_are_found_however_many_places_do_not_hold_them_any_more() {
    let site = Site::new();
    let all: Vec<String> = (0..30).map(|number| format!("f{number:02}")).collect();
    all.iter().for_each(|path| site.write(path, "the same"));
    site.settle();
    for (number, path) in all[..29].iter().enumerate() {
        fs::remove_file(site.at(path)).unwrap();
        match number % 3 {
            0 => site.write(path, "another"),
            1 => fs::create_dir(site.at(path)).unwrap(),
            _ => {}
        }
    }
    site.until("nothing is asked any more", |site| {
        site.folder().allow_mass_delete();
        site.flush();
        !is_paused(site)
    });
    let chunk = ChunkRef { hash: ChunkHash::of(b"the same"), length: 8 };
    assert!(site.contents.local().read(&chunk).unwrap().is_some());
    // Those places are forgotten.
    site.until("the right place is the only one", |site| {
        site.store.locate(chunk.hash).unwrap().len() == 1
    });
}

#[test]
fn a_conflict_copy_makes_way_for_a_key_of_its_name_and_comes_back() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    let copy = site.copies().remove(0);
    site.remote(&copy, Stands::After, b"a file of that name");
    site.settle();
    assert_eq!(site.read(&copy).as_deref(), Some("a file of that name"));
    site.check();
    site.remote_deletion(&copy);
    site.settle();
    assert_eq!(site.read(&copy).as_deref(), Some("mine"));
    site.check();
}

#[test]
fn a_conflict_copy_makes_way_for_what_lies_beneath_its_name_and_comes_back() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    let copy = site.copies().remove(0);
    let beneath = format!("{copy}/x");
    site.remote(&beneath, Stands::After, b"beneath");
    site.settle();
    assert_eq!(site.read(&beneath).as_deref(), Some("beneath"));
    site.check();
    site.remote_deletion(&beneath);
    site.settle();
    assert_eq!(site.read(&copy).as_deref(), Some("mine"));
    site.check();
}

#[test]
fn a_file_makes_way_for_what_lies_beneath_it_and_comes_back() {
    let mut site = Site::new();
    site.write("x", "a file");
    site.settle();
    site.remote("x/y", Stands::After, b"beneath");
    site.settle();
    assert_eq!(site.read("x/y").as_deref(), Some("beneath"));
    assert_eq!(site.copies().len(), 1);
    site.check();
    site.remote_deletion("x/y");
    site.settle();
    assert_eq!(site.read("x").as_deref(), Some("a file"));
    site.check();
}

#[test]
fn a_file_becomes_a_directory_and_a_file_again() {
    let mut site = Site::new();
    site.write("x", "a file");
    site.settle();
    site.remote_directory("x");
    site.remote("x/y", Stands::After, b"beneath");
    site.settle();
    assert_eq!(site.read("x/y").as_deref(), Some("beneath"));
    site.remote_deletion("x/y");
    site.remote("x", Stands::After, b"a file again");
    site.settle();
    assert_eq!(site.read("x").as_deref(), Some("a file again"));
    fs::remove_file(site.at("x")).unwrap();
    site.write("x/z", "here");
    site.settle();
    assert_eq!(site.winner("x").unwrap().attributes.kind, Kind::Directory);
    site.check();
}

#[test]
fn what_nobody_has_now_is_asked_for_again_without_being_told() {
    let mut site = Site::new();
    let bytes = noise(500_000, 2);
    site.remote_version("late", Stands::After, content_of(&bytes), file_attributes());
    site.remote("soon", Stands::After, b"soon");
    site.until("the other file is there", |site| site.at("soon").exists());
    site.until("something is missing", |site| site.folder().progress().is_waiting());
    site.keep(&bytes);
    site.settle();
    site.check();
}

#[test]
fn what_had_arrived_of_a_large_file_is_gone_on_with_once_and_the_rest_is_taken_from_wherever_it_comes()
 {
    let mut site = Site::new();
    site.flush();
    site.stop();
    let bytes = noise(3 << 20, 5);
    let chunks = Chunker::default().chunks(&bytes).take(MAX_TOP_REFS).map(ChunkRef::to);
    let content = Content::Chunks(chunks.collect());
    let hex: String = content.id().iter().map(|byte| format!("{byte:02x}")).collect();
    let temp = site.at(".consort/tmp");
    fs::write(temp.join(format!("arrived-{hex}")), &bytes[..2 << 20]).unwrap();
    site.remote_version("late", Stands::After, content, file_attributes());
    site.start();
    site.until("something is missing", |site| site.folder().progress().is_waiting());
    let partial = || fs::metadata(temp.join(format!("partial-{hex}"))).ok();
    let is_copied = |meta: Metadata| (1_800 << 10..=2 << 20).contains(&meta.len());
    site.until("what had arrived is found", |_| partial().is_some_and(is_copied));
    // Who holds it keeps its number from being given to another one.
    let held = fs::File::open(temp.join(format!("partial-{hex}"))).unwrap();
    let before = held.metadata().unwrap().ino();
    for number in 0..3 {
        let name = format!("small-{number}");
        site.remote(&name, Stands::After, b"small");
        site.until("it is there", |site| site.at(&name).exists());
    }
    assert_eq!(partial().map(|meta| meta.ino()), Some(before), "it was begun again");
    site.keep(&bytes);
    site.folder().wake();
    site.settle();
    site.check();
    site.until("nothing is left", |_| fs::read_dir(&temp).unwrap().count() == 0);
}

#[test]
fn a_file_from_the_future_is_taken_in_and_replaced_like_any_other() {
    let mut site = Site::new();
    site.write("f", "mine");
    let future = SystemTime::now() + Duration::from_secs(3600);
    fs::File::options().write(true).open(site.at("f")).unwrap().set_modified(future).unwrap();
    site.settle();
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("theirs"));
    site.check();
}

#[test]
fn a_file_whose_time_was_put_right_is_read_once_more() {
    let mut site = Site::new();
    site.write("f", "same");
    site.settle();
    let mut version = site.winner("f").unwrap();
    version.attributes.modified_ns -= 5_000_000_000;
    site.remote_version("f", Stands::After, version.content, version.attributes);
    site.settle();
    site.until("it is read again", |site| {
        site.view().record(&key("f")).unwrap().is_some_and(|record| !record.racy)
    });
    assert_eq!(site.read("f").as_deref(), Some("same"));
    site.check();
}

#[test]
fn a_flush_waits_while_the_directory_is_away_and_ends_with_the_link() {
    let mut site = Site::new();
    site.write("f", "before");
    site.settle();
    fs::rename(site.at(""), site.home.path().join("away")).unwrap();
    site.until("it is missed", is_paused);
    let flush = |site: &Site| {
        let (done, flushed) = bounded(1);
        site.folder().flush(move || {
            let _ = done.send(());
        });
        flushed
    };
    let flushed = flush(&site);
    fs::write(site.home.path().join("away/f"), "after").unwrap();
    fs::rename(site.home.path().join("away"), site.at("")).unwrap();
    flushed.recv_timeout(super::BOUND).expect("it is flushed when the directory is back");
    site.settle();
    assert_eq!(site.winner("f").unwrap().content, content_of(b"after"));
    site.check();

    fs::rename(site.at(""), site.home.path().join("away")).unwrap();
    site.until("it is missed", is_paused);
    let flushed = flush(&site);
    site.stop();
    flushed.recv_timeout(super::BOUND).expect_err("it ends with the link");
}

/// A version that has seen so many authors that nobody can write after it.
fn too_well_read() -> Version {
    let mut seen = VersionVector::new();
    for number in 0..u32::try_from(MAX_VECTOR_AUTHORS).unwrap() {
        let mut author = [1; 16];
        author[..4].copy_from_slice(&number.to_be_bytes());
        seen.advance(Dot { author: AuthorId(author), time: Timestamp(1) });
    }
    let dot = Dot { author: AuthorId([0xee; 16]), time: Timestamp(5 << 16) };
    Version { dot, seen, content: content_of(b"theirs"), attributes: file_attributes() }
}

#[test]
fn an_entry_that_cannot_be_written_does_not_hold_up_the_others() {
    let site = Site::new();
    site.keep(b"theirs");
    site.commit("bad", too_well_read());
    site.settle();
    site.write("bad", "mine");
    for number in 0..20 {
        site.write(&format!("good{number}"), format!("{number}"));
    }
    site.flush();
    site.until("the others are known", |site| {
        (0..20).all(|number| site.winner(&format!("good{number}")).is_some())
    });
    site.until("the bad one is reported", |site| {
        site.folder().progress().problems().iter().any(|problem| problem.starts_with("bad"))
    });
    assert_eq!(site.read("bad").as_deref(), Some("mine"));
    fs::remove_file(site.at("bad")).unwrap();
    site.write("last", "last");
    site.flush();
    site.until("work goes on", |site| site.winner("last").is_some());
}

#[test]
fn a_read_only_link_reports_and_restores_and_never_sends() {
    let mut site = Site::read_only();
    site.remote("changed", Stands::After, b"theirs");
    site.remote("deleted", Stands::After, b"theirs too");
    site.settle();
    site.write("changed", "mine");
    site.write("new", "new");
    fs::remove_file(site.at("deleted")).unwrap();
    site.flush();
    site.until("what was deleted is back", |site| site.at("deleted").exists());
    assert_eq!(site.read("changed").as_deref(), Some("mine"));
    assert_eq!(site.folder().progress().problems().len(), 2);
    let difference = site.folder().progress().difference().expect("it is not what was received");
    assert!(difference.starts_with("changed: ") && !difference.contains("more"), "{difference}");
    site.remote("changed", Stands::After, b"newer");
    site.remote("new", Stands::After, b"theirs");
    site.flush();
    assert_eq!(site.read("changed").as_deref(), Some("mine"));
    for path in ["changed", "new"] {
        fs::rename(site.at(path), site.home.path().join("aside").join(path)).unwrap();
    }
    site.settle();
    assert_eq!(site.read("changed").as_deref(), Some("newer"));
    assert_eq!(site.read("new").as_deref(), Some("theirs"));
    assert_eq!(site.folder().progress().difference(), None);
    assert_eq!(site.siblings("changed").len(), 1);
    site.check();
}

/// Puts something at a path that is to the last attribute what a version would be whose bytes are those.
fn put(site: &Site, path: &str, bytes: &str, version: &Version) {
    site.write(path, bytes);
    let modified_ns = u64::try_from(version.attributes.modified_ns).unwrap();
    let file = fs::File::options().write(true).open(site.at(path)).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_nanos(modified_ns)).unwrap();
    let mode = fs::Permissions::from_mode(version.attributes.mode.into());
    file.set_permissions(mode).unwrap();
}

#[test]
fn what_a_killed_node_left_in_a_read_only_directory_is_what_was_received() {
    let mut site = Site::read_only();
    site.remote("replaced", Stands::After, b"theirs");
    site.settle();
    site.stop();
    // What the engine would have done, but for the records. The last is somebody's, by its bytes.
    site.remote_directory("dir");
    for path in ["new", "dir/new", "replaced", "changed later"] {
        let version = site.remote(path, Stands::After, path.as_bytes());
        put(&site, path, path, &version);
    }
    let version = site.remote("mine", Stands::After, b"mine");
    put(&site, "mine", "mine!", &version);
    site.start();
    site.remote("changed later", Stands::After, b"newer");
    site.until("only what is somebody's is left", |site| {
        site.view().pending(None, 10).unwrap().len() == 1 && site.is_pending("mine")
    });
    assert_eq!(site.read("mine").as_deref(), Some("mine!"));
    assert_eq!(site.folder().progress().problems().len(), 1);
    fs::remove_file(site.at("mine")).unwrap();
    site.settle();
    assert_eq!(site.read("changed later").as_deref(), Some("newer"));
    site.check();
}

#[test]
fn what_a_killed_node_was_putting_in_place_is_known_whatever_others_made_of_it_since() {
    for read_only in [false, true] {
        let mut site = Site::stopped();
        site.read_only = read_only;
        site.start();
        for path in ["replaced", "replaced and deleted", "same bytes"] {
            site.remote(path, Stands::After, b"first");
        }
        site.settle();
        site.stop();
        let paths = ["new", "new and deleted", "replaced", "replaced and deleted", "deleted later"];
        let mut placed: Vec<_> =
            paths.map(|path| (path, "second", site.remote(path, Stands::After, b"second"))).into();
        let attributes = Attributes { mode: 0o600, ..file_attributes() };
        let same = content_of(b"first");
        let same = site.remote_version("same bytes", Stands::After, same, attributes);
        placed.push(("same bytes", "first", same));
        let root = Root::open(&site.at("")).unwrap();
        let all: Vec<_> = placed.iter().map(|(path, _, version)| placing(path, version)).collect();
        drop(root.begin_placing(&all, false).unwrap());
        for (path, bytes, version) in &placed {
            put(&site, path, bytes, version);
        }
        root.unlock();
        site.id = Some(root.id());
        drop(root);
        // It is killed again before it knew what it had.
        for path in ["new", "replaced", "same bytes"] {
            site.remote(path, Stands::After, b"third");
        }
        for path in ["new and deleted", "replaced and deleted"] {
            site.remote_deletion(path);
        }
        site.start();
        site.remote_deletion("deleted later");
        site.settle();
        for path in ["new", "replaced", "same bytes"] {
            assert_eq!(site.read(path).as_deref(), Some("third"));
            assert_eq!(site.siblings(path).len(), 1, "{path}");
        }
        for path in ["new and deleted", "replaced and deleted", "deleted later"] {
            assert_eq!((site.read(path), site.live(path)), (None, 0), "{path}");
        }
        assert_eq!(site.copies(), Vec::<String>::new());
        site.check();
        // What was deleted and is there again is somebody's.
        if !read_only {
            let (path, bytes, version) = &placed[1];
            put(&site, path, bytes, version);
            site.settle();
            assert_eq!(site.live(path), 1, "{path}");
        }
        // When all is recorded, the notes go.
        let temp = || fs::read_dir(site.at(".consort/tmp")).unwrap().count();
        site.until("it is at rest", |_| temp() == 0);
    }
}

#[test]
fn a_read_only_link_knows_what_stood_there_when_it_was_linked_before() {
    let mut site = Site::new();
    site.write("dir/f", "mine");
    site.write("g", "g");
    site.settle();
    site.remote("dir/f", Stands::Over, b"theirs");
    site.settle();
    site.stop();
    site.store.set_linked(super::DATASET, false).unwrap();
    site.store.set_linked(super::DATASET, true).unwrap();
    site.read_only = true;
    site.start();
    site.settle();
    assert_eq!((site.live("dir/f"), site.copies().len()), (2, 1));
    site.check();
}

#[test]
fn a_read_only_link_restores_what_was_deleted_while_the_node_was_down() {
    let mut site = Site::read_only();
    site.remote("dir/f", Stands::After, b"theirs");
    site.settle();
    site.stop();
    fs::remove_dir_all(site.at("dir")).unwrap();
    site.start();
    site.until("it is back", |site| site.at("dir/f").exists());
    site.settle();
    site.check();
}

#[test]
fn what_stands_in_the_way_of_a_read_only_link_keeps_nothing_else_from_being_recorded() {
    let mut site = Site::read_only();
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    site.stop();
    site.write("f", "mine");
    site.remote("f", Stands::After, b"newer");
    site.start();
    site.until("it is told", |site| site.folder().progress().difference().is_some());
    for number in 0..20 {
        let path = format!("g{number}");
        site.remote(&path, Stands::After, b"theirs");
        site.until("it is recorded", |site| !site.is_pending(&path));
    }
    assert_eq!(site.read("f").as_deref(), Some("mine"));
    site.expect_few_batches();
}

#[test]
fn a_file_that_cannot_move_yet_is_not_tried_without_end() {
    let mut site = Site::new();
    for number in 0..30 {
        site.write(&format!("d/f{number}"), "f");
    }
    site.write("a", "a");
    site.until("their times tell every change", |site| {
        site.flush();
        !site.records().values().any(|record| record.racy)
    });
    fs::remove_dir_all(site.at("d")).unwrap();
    site.flush();
    site.until("it is asked about", is_paused);
    let (content, attributes) = (content_of(b"a"), site.winner("a").unwrap().attributes);
    site.keep(b"a");
    site.remote_version("d/a", Stands::After, content, attributes);
    site.remote_deletion("a");
    site.expect_few_batches();
    site.folder().allow_mass_delete();
    site.settle();
    assert_eq!((site.read("d/a").as_deref(), site.read("a")), (Some("a"), None));
    site.check();
}

#[test]
fn a_read_only_directory_goes_with_the_last_of_what_was_changed_in_it() {
    let mut site = Site::read_only();
    site.remote_directory("dir");
    site.remote("dir/f", Stands::After, b"theirs");
    site.settle();
    site.write("dir/f", "mine");
    site.flush();
    site.remote_deletion("dir/f");
    site.remote_deletion("dir");
    site.until("it is told", |site| site.folder().progress().difference().is_some());
    site.flush();
    assert_eq!(site.read("dir/f").as_deref(), Some("mine"));
    fs::rename(site.at("dir/f"), site.home.path().join("aside/f")).unwrap();
    site.until("the directory goes, too", |site| !site.at("dir").exists());
    site.settle();
    site.check();
}

#[test]
fn what_comes_back_to_a_read_only_directory_as_it_was_received_is_that() {
    let mut site = Site::read_only();
    for path in ["away", "ignored"] {
        site.remote(path, Stands::After, b"theirs");
    }
    site.settle();
    fs::rename(site.at("away"), site.home.path().join("aside/away")).unwrap();
    site.until("it is restored", |site| site.at("away").exists());
    site.settle();
    fs::rename(site.home.path().join("aside/away"), site.at("away")).unwrap();
    site.settle();
    // What is ignored is known no more, until it is not.
    fs::write(site.at(".consortignore"), "ignored\n").unwrap();
    site.until("it is forgotten", |site| !site.records().contains_key(&key("ignored")));
    fs::remove_file(site.at(".consortignore")).unwrap();
    site.until("it is known again", |site| site.records().contains_key(&key("ignored")));
    site.settle();
    site.check();
}

#[test]
fn a_crash_after_the_files_were_placed_and_before_they_were_recorded_costs_nothing() {
    let mut site = Site::new();
    site.write("f.txt", "mine");
    site.settle();
    let mine = site.winner("f.txt").unwrap();
    // What the engine would have done, but for the record.
    site.remote("other.txt", Stands::After, b"theirs");
    site.settle();
    site.stop();
    let theirs = site.remote("f.txt", Stands::Over, b"theirs");
    let mut twin = Site::new();
    twin.commit("f.txt", mine.clone());
    twin.keep(b"mine");
    twin.settle();
    twin.commit("f.txt", theirs.clone());
    twin.keep(b"theirs");
    twin.settle();
    let copy = twin.copies().remove(0);
    fs::rename(site.at("f.txt"), site.at(&copy)).unwrap();
    fs::rename(site.at("other.txt"), site.at("f.txt")).unwrap();
    site.remote_deletion("other.txt");
    site.start();
    site.settle();
    let mut current = site.siblings("f.txt");
    current.retain(|version| version.dot != mine.dot && version.dot != theirs.dot);
    assert_eq!(current, [], "no version was written");
    assert_eq!(site.siblings("f.txt").len(), 2);
    assert!(site.winner(&copy).is_none(), "the copy was taken for a file");
    site.check();
    drop(twin.folder.take());
}

#[test]
fn conflict_copies_are_known_again_when_a_directory_is_linked_anew() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    site.stop();
    site.store.set_linked(super::DATASET, false).unwrap();
    site.store.set_linked(super::DATASET, true).unwrap();
    site.start();
    site.settle();
    assert_eq!((site.live("f"), site.copies().len()), (2, 1));
    assert!(site.winner(&site.copies()[0]).is_none());
    site.check();
}

#[test]
fn a_name_that_is_too_long_is_reported_and_holds_nothing_up() {
    let mut site = Site::new();
    let long = "x".repeat(300);
    site.remote(&long, Stands::After, b"long");
    site.remote("short", Stands::After, b"short");
    site.until("the other is there", |site| site.at("short").exists());
    site.until("it is reported", |site| {
        site.folder().progress().problems().iter().any(|problem| problem.starts_with(&long))
    });
    site.stop();
    site.start();
    site.flush();
    assert!(site.is_pending(&long), "it is not in the directory, so it is not done");
    site.until("it is reported again", |site| !site.folder().progress().problems().is_empty());
    site.remote_deletion(&long);
    site.settle();
    site.check();
}

#[test]
fn a_file_that_is_written_all_the_time_is_taken_in_now_and_then() {
    let site = Site::new();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            use std::io::Write;
            let mut file = fs::File::create(site.at("log")).unwrap();
            while !ended.load(Ordering::Relaxed) {
                file.write_all(b"another line\n").unwrap();
                // A pause is what this is about: shorter than what counts as quiet.
                std::thread::park_timeout(Duration::from_millis(50));
            }
        });
        site.until("it is known", |site| site.winner("log").is_some());
        ended.store(true, Ordering::Relaxed);
    });
    site.settle();
    site.check();
}

#[test]
fn a_problem_is_over_when_the_entry_is_as_it_was() {
    let mut site = Site::read_only();
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    fs::set_permissions(site.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    site.until("it is reported", |site| !site.folder().progress().problems().is_empty());
    let file = fs::File::options().write(true).open(site.at("f")).unwrap();
    fs::set_permissions(site.at("f"), fs::Permissions::from_mode(0o644)).unwrap();
    drop(file);
    site.remote("f", Stands::After, b"newer");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("newer"));
    site.check();
}

#[test]
fn touching_a_file_keeps_what_its_writer_said_about_it() {
    let mut site = Site::new();
    site.keep(b"made up");
    let attributes = Attributes {
        origin: consort_core::Origin::Synthetic,
        media_type: Some("text/plain".into()),
        ..file_attributes()
    };
    site.remote_version("f", Stands::After, content_of(b"made up"), attributes);
    site.settle();
    fs::set_permissions(site.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    site.settle();
    let attributes = site.winner("f").unwrap().attributes;
    assert_eq!(attributes.mode, 0o600);
    assert_eq!(attributes.origin, consort_core::Origin::Synthetic);
    assert_eq!(attributes.media_type.as_deref(), Some("text/plain"));
}

#[test]
fn bytes_that_came_back_to_their_place_can_be_read_again() {
    let site = Site::new();
    let bytes = noise(100_000, 3);
    site.write("f", &bytes);
    site.settle();
    let Content::Chunks(chunks) = site.winner("f").unwrap().content else { panic!() };
    let times = fs::File::open(site.at("f")).unwrap().metadata().unwrap().modified().unwrap();
    fs::rename(site.at("f"), site.home.path().join("aside/f")).unwrap();
    assert_eq!(site.contents.local().read(&chunks[0]).unwrap(), None);
    // The place is forgotten by now, or will be before this is durable.
    site.keep(b"something else");
    fs::rename(site.home.path().join("aside/f"), site.at("f")).unwrap();
    let file = fs::File::options().write(true).open(site.at("f")).unwrap();
    file.set_modified(times).unwrap();
    drop(file);
    site.settle();
    site.until("it can be read", |site| {
        site.contents.local().read(&chunks[0]).unwrap().is_some() && site.winner("f").is_some()
    });
    assert_eq!(site.live("f"), 1);
}

#[test]
fn a_directory_that_is_let_go_while_its_patterns_change_is_let_go() {
    let mut site = Site::new();
    for round in 0..20 {
        for number in 0..200 {
            site.write(&format!("{round}/{number}"), "");
        }
        site.write(".consortignore", format!("{round}\n"));
        let folder = site.folder.take().expect("the engine runs");
        let (done, stopped) = bounded(1);
        std::thread::spawn(move || {
            folder.stop();
            let _ = done.send(());
        });
        stopped.recv_timeout(super::BOUND).expect("it ends");
        site.start();
    }
    site.settle();
}

#[test]
fn what_others_replaced_is_no_entry_more() {
    let mut site = Site::under(OnConflict::Latest);
    let name = |number: u32| format!("f{number}");
    (0..40).for_each(|number| site.write(&name(number), format!("{number}")));
    site.settle();
    for number in 0..40 {
        site.remote(&name(number), Stands::Over, format!("theirs {number}").as_bytes());
    }
    site.settle();
    assert_eq!(site.view().record_count(), 40);
    fs::remove_file(site.at("f0")).unwrap();
    site.flush();
    assert!(!is_paused(&site), "{:?}", site.folder().progress().trouble());
}

#[test]
fn a_special_file_is_no_difference_for_the_watcher_nor_for_a_scan() {
    let mut site = Site::new();
    let _socket = std::os::unix::net::UnixListener::bind(site.at("socket")).unwrap();
    site.until("it is told", |site| !site.folder().progress().problems().is_empty());
    assert_eq!(site.folder().progress().difference(), None);
    site.stop();
    site.start();
    site.flush();
    assert_eq!(site.folder().progress().problems().len(), 1);
    assert_eq!(site.folder().progress().difference(), None);
}

#[test]
fn a_problem_goes_with_its_directory() {
    let site = Site::new();
    site.write("a/ok", "ok");
    site.write("a/bad\u{1}name", "bad");
    site.until("it is told", |site| site.folder().progress().difference().is_some());
    fs::rename(site.at("a"), site.home.path().join("aside/a")).unwrap();
    site.until("it is over", |site| site.folder().progress().difference().is_none());
    site.settle();
}

#[test]
fn a_difference_is_told_whatever_else_there_is_to_say() {
    let mut site = Site::new();
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    site.stop();
    site.read_only = true;
    site.start();
    (0..150).for_each(|number| site.write(&format!("a{number}"), "mine"));
    site.flush();
    assert_eq!(site.folder().progress().difference(), None);
    site.write("f", "changed");
    site.flush();
    assert!(site.folder().progress().difference().is_some());
}

/// Does something to a directory again and again while `site` is flushed.
fn flush_under(change: impl Fn(&std::path::Path, u64) + Send + 'static) {
    let site = Site::new();
    fs::create_dir(site.at("busy")).unwrap();
    site.settle();
    let (dir, stop) = (site.at("busy"), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let busy = std::thread::spawn(move || {
        let mut number = 0;
        while !stopped.load(Ordering::Relaxed) {
            change(&dir, number);
            number += 1;
        }
    });
    site.write("before", "before");
    site.flush();
    let is_known = site.winner("before").is_some();
    stop.store(true, Ordering::Relaxed);
    busy.join().unwrap();
    assert!(is_known);
}

#[test]
fn a_flush_ends_while_files_come_as_fast_as_they_can() {
    flush_under(|dir, number| {
        fs::write(dir.join(format!("f{}", number % 50_000)), format!("{number}")).unwrap();
    });
}

#[test]
fn a_flush_ends_while_files_come_and_go() {
    flush_under(|dir, number| {
        fs::write(dir.join(format!("f{number}")), format!("{number}")).unwrap();
        if let Some(old) = number.checked_sub(3) {
            fs::remove_file(dir.join(format!("f{old}"))).unwrap();
        }
        std::thread::sleep(Duration::from_millis(50));
    });
}
