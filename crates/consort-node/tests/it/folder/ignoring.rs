//! What `.consortignore` names is left alone: it stays where it is, and is nobody else's.

use std::fs;

use super::{Site, Stands};

#[test]
fn a_directory_that_is_deleted_keeps_what_is_ignored_in_it() {
    let mut site = Site::new();
    site.write(".consortignore", "*.tmp\n");
    site.flush();
    site.write("dir/a", "a");
    site.write("dir/b.tmp", "b");
    site.settle();
    site.remote_deletion("dir/a");
    site.remote_deletion("dir");
    site.settle();
    assert_eq!((site.read("dir/a"), site.read("dir/b.tmp").as_deref()), (None, Some("b")));
    assert!(site.winner("dir").is_none(), "the deletion has come back");
}

#[test]
fn patterns_that_arrive_hold_at_once_and_what_they_let_go_appears() {
    let mut site = Site::new();
    site.remote(".consortignore", Stands::After, b"*.log\n");
    site.settle();
    site.remote("a.log", Stands::After, b"theirs");
    site.remote("a.txt", Stands::After, b"a");
    site.settle();
    site.write("b.log", "mine");
    site.flush();
    assert!(!site.at("a.log").exists() && site.winner("b.log").is_none());
    site.remote(".consortignore", Stands::After, b"*.other\n");
    site.until("what was ignored is there", |site| site.at("a.log").exists());
    site.until("and known", |site| site.winner("b.log").is_some());
    site.settle();
    site.check();
}

#[test]
fn patterns_that_come_while_the_engine_starts_hold() {
    for _ in 0..20 {
        let site = Site::new();
        site.write(".consortignore", "*.log\n");
        site.flush();
        site.write("a.log", "mine");
        site.write("b", "mine");
        site.flush();
        assert!(site.winner("a.log").is_none() && site.winner("b").is_some());
    }
}

#[test]
fn patterns_that_change_while_the_node_is_down_count_when_it_is_up() {
    let mut site = Site::new();
    site.write(".consortignore", "*.log\n");
    site.flush();
    site.remote("a.log", Stands::After, b"theirs");
    site.settle();
    site.stop();
    fs::remove_file(site.at(".consortignore")).unwrap();
    site.start();
    site.until("what was ignored is there", |site| site.at("a.log").exists());
    site.settle();
    site.check();
}

#[test]
fn patterns_that_arrive_and_cannot_be_used_stop_nothing() {
    let mut site = Site::new();
    site.remote(".consortignore", Stands::After, &b"pattern\n".repeat(20_000));
    site.remote("f", Stands::After, b"f");
    site.until("the rest goes on", |site| site.at("f").exists());
    site.flush();
    assert!(!site.folder().progress().problems().is_empty());
    site.remote(".consortignore", Stands::After, b"*.log\n");
    site.settle();
    site.check();
}

#[test]
fn a_pattern_that_arrives_and_is_nested_too_deep_pauses_nothing() {
    let mut site = Site::new();
    let deep = format!("{}b{}", "{a,".repeat(300), "}".repeat(300));
    site.remote(".consortignore", Stands::After, format!("{deep}\n*.log\n").as_bytes());
    site.settle();
    site.write("a.log", "mine");
    site.write("a", "mine");
    site.settle();
    assert!(site.winner("a").is_some() && site.winner("a.log").is_none());
    let problems = site.folder().progress().problems();
    assert!(problems[0].starts_with(".consortignore, line 1: "), "{problems:?}");
}

#[test]
fn what_is_deleted_while_it_is_ignored_is_deleted_nowhere_else_and_comes_back() {
    for down in [false, true] {
        let mut site = Site::new();
        for path in ["f.log", "dir/f", "kept"] {
            site.keep(path.as_bytes());
            site.write(path, path);
        }
        site.settle();
        site.write(".consortignore", "*.log\ndir/\n");
        site.flush();
        fs::remove_file(site.at("f.log")).unwrap();
        fs::remove_dir_all(site.at("dir")).unwrap();
        site.flush();
        if down {
            site.stop();
        }
        fs::remove_file(site.at(".consortignore")).unwrap();
        if down {
            site.start();
        }
        site.until("it is back", |site| site.at("f.log").exists() && site.at("dir/f").exists());
        site.settle();
        assert!(site.winner("f.log").is_some() && site.winner("dir/f").is_some());
        site.check();
    }
}

#[test]
fn what_is_changed_while_it_is_ignored_is_kept_beside_what_it_was() {
    let mut site = Site::new();
    site.keep(b"before");
    site.write("f", "before");
    site.settle();
    site.write(".consortignore", "f\n");
    site.flush();
    site.write("f", "after");
    site.remote("f", Stands::After, b"theirs");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("after"));
    fs::remove_file(site.at(".consortignore")).unwrap();
    site.until("it is known", |site| site.live("f") == 2);
    site.settle();
    site.check();
}

#[test]
fn what_a_peer_calls_like_our_own_directory_is_told_of_and_touches_nothing() {
    let mut site = Site::new();
    site.flush();
    let own = site.read(".consort/id");
    for key in [".consort/id", "dir/.consort", "dir/.consort/x"] {
        site.remote(key, Stands::After, b"theirs");
    }
    site.remote("dir/f", Stands::After, b"f");
    let told = |site: &Site, key: &str| {
        let problems = site.folder().progress().problems();
        problems.iter().any(|problem| problem.starts_with(key) && problem.contains("consort rm"))
    };
    for key in [".consort/id: ", "dir/.consort: ", "dir/.consort/x: "] {
        site.until("it is told", |site| told(site, key));
    }
    site.until("the rest goes on", |site| site.read("dir/f").is_some());
    assert!(site.is_pending(".consort/id"), "what nothing shows is not in sync");
    assert_eq!(site.read(".consort/id"), own);
    assert!(!site.at("dir/.consort").exists());
    for key in [".consort/id", "dir/.consort", "dir/.consort/x"] {
        site.remote_deletion(key);
    }
    site.settle();
    assert_eq!(site.folder().progress().problems(), Vec::<String>::new());
}
