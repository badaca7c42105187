//! What is deleted in a linked directory, here or by others: when it is believed, when it is asked about, and which
//! directories go with it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::{Site, Stands, content_of, is_paused};

#[test]
fn deleting_most_of_a_directory_asks_first_however_slowly_it_goes() {
    let mut site = Site::new();
    let files = 400;
    for number in 0..files {
        site.write(&format!("f{number:03}"), format!("{number}"));
    }
    site.settle();
    for number in 0..files {
        fs::remove_file(site.at(&format!("f{number:03}"))).unwrap();
        // Whoever waits for the directory does not make it forget what went before.
        if number % 40 == 0 {
            site.flush();
        }
    }
    site.until("it asks", is_paused);
    site.flush();
    let left = |site: &Site| {
        (0..files).filter(|number| site.winner(&format!("f{number:03}")).is_some()).count()
    };
    assert!(files / 2 - 1 <= left(&site), "only {} are left", left(&site));
    // Meanwhile life goes on.
    site.remote("other", Stands::After, b"other");
    site.until("others' changes arrive", |site| site.at("other").exists());
    // Restarting is no way around it.
    site.stop();
    site.start();
    site.until("it asks again", is_paused);
    assert!(files / 2 - 1 <= left(&site));
    site.folder().allow_mass_delete();
    site.until("they are deleted", |site| left(site) == 0);
    site.settle();
    assert!(!is_paused(&site));
}

#[test]
fn a_small_directory_that_was_filled_just_now_is_protected_as_well() {
    let site = Site::new();
    for number in 0..12 {
        site.write(&format!("f{number}"), format!("{number}"));
    }
    site.settle();
    for number in 0..12 {
        fs::remove_file(site.at(&format!("f{number}"))).unwrap();
    }
    site.flush();
    assert!(is_paused(&site));
    let left = (0..12).filter(|number| site.winner(&format!("f{number}")).is_some()).count();
    assert!(6 <= left, "{left} are left");
}

#[test]
fn a_directory_that_is_renamed_again_and_again_is_not_asked_about() {
    let site = Site::new();
    for number in 0..100 {
        site.write(&format!("dir0/f{number}"), format!("{number}"));
    }
    site.settle();
    for round in 0..5 {
        fs::rename(site.at(&format!("dir{round}")), site.at(&format!("dir{}", round + 1))).unwrap();
        site.settle();
        assert!(!is_paused(&site));
        assert!(
            (0..100)
                .all(|number| { site.winner(&format!("dir{}/f{number}", round + 1)).is_some() })
        );
    }
    site.check();
}

#[test]
fn what_comes_back_ends_the_pause_after_a_mass_deletion() {
    let site = Site::new();
    for number in 0..100 {
        site.write(&format!("dir/f{number}"), format!("{number}"));
    }
    site.settle();
    fs::rename(site.at("dir"), site.home.path().join("aside/dir")).unwrap();
    site.until("it asks", is_paused);
    fs::rename(site.home.path().join("aside/dir"), site.at("dir")).unwrap();
    site.until("it goes on", |site| !is_paused(site));
    site.settle();
    assert!((0..100).all(|number| site.winner(&format!("dir/f{number}")).is_some()));
    site.check();
}

#[test]
fn a_directory_that_is_deleted_as_a_whole_deletes_nothing_elsewhere() {
    let site = Site::new();
    for number in 0..100 {
        site.write(&format!("f{number}"), format!("{number}"));
    }
    site.settle();
    fs::rename(site.at(""), site.home.path().join("aside/data")).unwrap();
    fs::remove_dir_all(site.home.path().join("aside/data")).unwrap();
    site.until("it is missed", is_paused);
    let left = (0..100).filter(|number| site.winner(&format!("f{number}")).is_some()).count();
    assert_eq!(left, 100);
}

#[test]
fn what_is_ignored_was_not_deleted() {
    let site = Site::new();
    (0..30).for_each(|number| site.write(&format!("build/f{number}"), format!("{number}")));
    (0..20).for_each(|number| site.write(&format!("f{number}"), format!("{number}")));
    site.settle();
    site.write(".consortignore", "build/\n");
    site.settle();
    fs::remove_file(site.at("f0")).unwrap();
    site.flush();
    assert!(!is_paused(&site), "{:?}", site.folder().progress().trouble());
}

#[test]
fn ignoring_what_was_asked_about_ends_the_pause() {
    let site = Site::new();
    (0..30).for_each(|number| site.write(&format!("build/f{number}"), format!("{number}")));
    site.write("kept", "kept");
    site.settle();
    fs::remove_dir_all(site.at("build")).unwrap();
    site.until("it asks", is_paused);
    site.write(".consortignore", "build/\n");
    site.until("it goes on", |site| !is_paused(site));
    site.flush();
    assert!(!is_paused(&site), "{:?}", site.folder().progress().trouble());
}

#[test]
fn a_question_is_over_when_others_deleted_the_same() {
    let mut site = Site::new();
    let names: Vec<String> = (0..30).map(|number| format!("f{number}")).collect();
    names.iter().for_each(|name| site.write(name, name));
    site.settle();
    // All are found gone at once.
    site.stop();
    names.iter().for_each(|name| fs::remove_file(site.at(name)).unwrap());
    site.start();
    site.until("it asks", is_paused);
    for name in &names {
        if site.winner(name).is_some() {
            site.remote_deletion(name);
        }
    }
    site.until("it goes on", |site| !is_paused(site));
    site.settle();
    site.check();
}

#[test]
fn what_was_deleted_here_is_not_brought_back_because_it_has_to_make_way() {
    let mut site = Site::new();
    for number in 0..12 {
        site.write(&format!("f{number}"), format!("{number}"));
    }
    // The bytes of the one that has to make way can be had, so that a copy of it is put in place.
    site.write("same", "0");
    site.write("taken-away", "later than f0");
    site.settle();
    site.stop();
    (0..12).for_each(|number| fs::remove_file(site.at(&format!("f{number}"))).unwrap());
    site.start();
    site.until("it asks", is_paused);
    site.remote("f0", Stands::Beside, b"theirs");
    site.remote("f0/beneath", Stands::After, b"beneath");
    site.until("it was to make way", |site| site.copies().len() == 2);
    // Removals go key by key: when the later one is done, that of `f0` was tried, twice at least.
    for _ in 0..2 {
        site.remote_deletion("taken-away");
        site.until("what comes after it is taken away", |site| !site.at("taken-away").exists());
        site.remote("taken-away", Stands::After, b"again");
        site.until("and is there again", |site| site.at("taken-away").exists());
    }
    site.folder().allow_mass_delete();
    site.settle();
    assert_eq!(site.live("f0"), 1, "what was deleted is back");
    assert_eq!(site.winner("f0").unwrap().content, content_of(b"theirs"));
    site.check();
}

#[test]
fn a_directory_that_others_deleted_goes_with_what_kept_it_here_also_if_that_was_no_entry() {
    let mut site = Site::new();
    site.remote_directory("d");
    site.settle();
    let socket = std::os::unix::net::UnixListener::bind(site.at("d/socket")).unwrap();
    site.remote_deletion("d");
    site.settle();
    assert!(site.at("d/socket").exists(), "what is in a directory is not deleted with it");
    drop(socket);
    fs::remove_file(site.at("d/socket")).unwrap();
    site.until("the directory is gone", |site| !site.at("d").exists());
    site.check();
}

#[test]
fn directories_that_were_made_for_what_is_in_them_go_with_it() {
    let mut site = Site::new();
    site.remote("a/b/c", Stands::After, b"c");
    site.remote("a/b/d", Stands::After, b"d");
    site.settle();
    assert!(site.winner("a").is_none() && site.winner("a/b").is_none());
    site.remote_directory("a");
    site.settle();
    site.check();
    site.remote_deletion("a/b/c");
    site.remote_deletion("a/b/d");
    site.settle();
    assert!(!site.at("a/b").exists() && site.at("a").is_dir());
    site.check();
}

#[test]
fn a_removal_that_comes_to_nothing_is_tried_again() {
    let mut site = Site::new();
    site.write("dir/f", "old");
    site.settle();
    // Nobody may change the directory, not even this node (root may: then there is nothing to see).
    fs::set_permissions(site.at("dir"), fs::Permissions::from_mode(0o555)).unwrap();
    site.flush();
    site.remote_deletion("dir/f");
    site.flush();
    fs::set_permissions(site.at("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    site.settle();
    assert_eq!(site.read("dir/f"), None);
    site.check();
}
