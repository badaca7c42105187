//! Files and directories that get another name, here or at others: nothing of them is made anew, and nothing is lost.

use std::fs;
use std::os::unix::fs::MetadataExt;

use consort_core::model::Commit;
use consort_core::{
    Attributes, AuthorId, ChunkHash, Content, Dot, Entry, NodeId, Timestamp, Version, VersionVector,
};
use consort_node::folder::Folder;
use consort_store::{Body, Transaction};

use super::{DATASET, Site, Stands, is_paused, key};

#[test]
fn a_directory_of_many_files_is_renamed_while_others_write_into_it() {
    let mut site = Site::new();
    for number in 0..300 {
        site.write(&format!("old/f{number}"), format!("{number}"));
    }
    site.settle();
    for number in 0..20 {
        site.remote(&format!("old/f{number}"), Stands::After, b"theirs");
    }
    fs::rename(site.at("old"), site.at("new")).unwrap();
    for number in 300..320 {
        site.remote(&format!("old/f{number}"), Stands::After, b"theirs");
    }
    site.until("it was renamed", |site| {
        site.flush();
        if is_paused(site) {
            site.folder().allow_mass_delete();
        }
        site.winner("old/f299").is_none() && site.winner("new/f299").is_some()
    });
    site.settle();
    for number in 0..20 {
        let theirs = [format!("old/f{number}"), format!("new/f{number}")];
        let kept = theirs.iter().any(|path| site.read(path).as_deref() == Some("theirs"));
        assert!(kept, "what others wrote to f{number} is gone");
    }
    site.check();
}

#[test]
fn a_directory_that_is_renamed_takes_its_files_along() {
    let mut site = Site::new();
    let name = |number| format!("dir{}/f{number}", number % 3);
    for number in 0..30 {
        site.write(&format!("old/{}", name(number)), format!("{number}"));
    }
    site.until("their times tell every change", |site| {
        site.flush();
        !site.records().values().any(|record| record.racy)
    });
    fs::rename(site.at("old"), site.at("new")).unwrap();
    site.until("it was renamed", |site| {
        site.flush();
        (0..30).all(|number| site.winner(&format!("new/{}", name(number))).is_some())
            && site.winner("old").is_none()
    });
    for number in 0..30 {
        let places = site.store.locate(ChunkHash::of(number.to_string().as_bytes())).unwrap();
        let [consort_store::Place::InFile { path, .. }] = &places[..] else { panic!("{places:?}") };
        assert_eq!(path.as_str(), format!("new/{}", name(number)));
    }
    site.check();
    // As if nothing had happened, also to those who come later.
    site.stop();
    site.start();
    site.settle();
    site.check();
}

#[test]
fn a_file_that_others_renamed_moves() {
    let mut site = Site::new();
    site.remote("old/f", Stands::After, b"theirs");
    site.settle();
    let inode = fs::metadata(site.at("old/f")).unwrap().ino();
    site.stop();
    site.remote("new/g", Stands::After, b"theirs");
    // There is only one to be moved.
    site.remote("new/h", Stands::After, b"theirs");
    site.remote_deletion("old/f");
    site.start();
    site.settle();
    let moved = ["new/g", "new/h"].map(|path| fs::metadata(site.at(path)).unwrap().ino() == inode);
    assert!(moved[0] ^ moved[1]);
    assert!(!site.at("old").exists());
    site.check();
}

#[test]
fn what_somebody_changed_does_not_move_when_others_rename_it() {
    let mut site = Site::read_only();
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    site.write("f", "mine");
    site.until("it is reported", |site| !site.folder().progress().problems().is_empty());
    site.stop();
    site.remote("g", Stands::After, b"theirs");
    site.remote_deletion("f");
    site.start();
    site.until("it is there", |site| site.read("g").as_deref() == Some("theirs"));
    assert_eq!(site.read("f").as_deref(), Some("mine"));
}

/// Others write these, in one commit.
fn others_commit(site: &Site, entries: Vec<Entry>) {
    let body = Body::Remote { peer: NodeId([7; 16]), commit: Commit { entries }, cursor: None };
    site.store.commit(Transaction::new(DATASET, body)).unwrap();
    site.folder.iter().for_each(Folder::wake);
}

/// Others delete these, in one commit.
fn others_delete(site: &Site, paths: impl Iterator<Item = String>) {
    let entry = |path: String| {
        let before = site.winner(&path).expect("it is there");
        let dot = Dot { author: AuthorId([8; 16]), time: Timestamp(before.dot.time.0 + 1) };
        let (seen, content) = (before.closure(), Content::Deleted);
        let version = Version { dot, seen, content, attributes: Attributes::default() };
        Entry { key: key(&path), version }
    };
    others_commit(site, paths.map(entry).collect());
}

#[test]
fn what_a_crash_left_unrecorded_goes_if_others_deleted_it_since() {
    let mut site = Site::new();
    let names = |directory| (0..300).map(move |number| format!("{directory}/f{number}"));
    for name in names("old") {
        site.remote(&name, Stands::After, name.as_bytes());
    }
    site.settle();
    site.stop();
    // Others renamed the directory, which was done here, but for the records.
    for (old, new) in names("old").zip(names("new")) {
        site.remote(&new, Stands::After, old.as_bytes());
    }
    others_delete(&site, names("old"));
    fs::rename(site.at("old"), site.at("new")).unwrap();
    site.start();
    // As soon as it is back, the node hears of that.
    others_delete(&site, names("new"));
    site.settle();
    let back: Vec<String> = names("new").filter(|name| site.winner(name).is_some()).collect();
    assert_eq!(back, [""; 0], "what was deleted came back");
    site.check();
}

/// Others give a file another name, in one commit.
fn others_rename(site: &Site, from: &str, to: &str) {
    let before = site.winner(from).expect("it is there");
    // Nobody else replaces this version, nor writes at its time.
    let dot = |author| {
        let time = Timestamp(before.dot.time.0 + 1);
        Dot { author: AuthorId([author; 16]), time }
    };
    let (seen, content, attributes) = (before.closure(), Content::Deleted, Attributes::default());
    let gone = Version { dot: dot(8), seen, content, attributes };
    let there = Version { dot: dot(9), seen: VersionVector::new(), ..before };
    let entry = |path, version| Entry { key: key(path), version };
    others_commit(site, vec![entry(to, there), entry(from, gone)]);
}

#[test]
fn files_that_others_rename_one_after_the_other_all_move() {
    let site = Site::new();
    let numbers = 0..400;
    let name = |directory, number| format!("{directory}/f{number:03}");
    for number in numbers.clone() {
        site.write(&name("old", number), format!("{number}"));
    }
    site.until("their times tell every change", |site| {
        site.flush();
        !site.records().values().any(|record| record.racy)
    });
    let inode = |path: &str| fs::metadata(site.at(path)).unwrap().ino();
    let before: Vec<u64> = numbers.clone().map(|number| inode(&name("old", number))).collect();
    for number in numbers.clone() {
        others_rename(&site, &name("old", number), &name("new", number));
    }
    // Nobody else has their bytes.
    site.settle();
    let after: Vec<u64> = numbers.map(|number| inode(&name("new", number))).collect();
    assert!(before == after);
    site.check();
}

#[test]
fn a_directory_that_moves_on_while_it_is_taken_in_leaves_nothing_behind() {
    let site = Site::new();
    for round in 0..40 {
        let name = |step: u64| site.at(&format!("d{round}-{step}"));
        for file in 0..40 {
            site.write(&format!("d{round}-0/f{file}"), format!("{file}"));
        }
        for step in 1..6 {
            // More and less of it is taken in when it moves on.
            for file in 0..(round * step) % 23 {
                fs::write(name(step - 1).join(format!("n{step}-{file}")), "new").unwrap();
            }
            fs::rename(name(step - 1), name(step)).unwrap();
        }
    }
    site.settle();
    site.check();
}
