//! Nodes that are not always all there, and writers who do not know of each other.

use std::fs;
use std::path::Path;

use crate::cluster::{Cluster, DATASET, number, text};
use crate::tree;

#[test]
fn a_node_that_was_down_catches_up_and_brings_what_it_wrote() {
    let mut cluster = Cluster::linked(3);
    fs::write(cluster.nodes[0].path("deleted-meanwhile"), "old").expect("a new file");
    fs::write(cluster.nodes[0].path("edited-meanwhile"), "old").expect("a new file");
    cluster.settle();
    cluster.nodes[2].stop();
    fs::remove_file(cluster.nodes[0].path("deleted-meanwhile")).expect("it is there");
    fs::write(cluster.nodes[1].path("edited-meanwhile"), "new").expect("writable");
    fs::write(cluster.nodes[2].path("written-while-down"), "mine").expect("a new file");
    cluster.settle();
    cluster.nodes[2].start();
    cluster.settle();

    let node = &cluster.nodes[2];
    assert!(!node.path("deleted-meanwhile").exists());
    assert_eq!(fs::read_to_string(node.path("edited-meanwhile")).expect("it is there"), "new");
    let elsewhere = fs::read_to_string(cluster.nodes[0].path("written-while-down"));
    assert_eq!(elsewhere.expect("it arrived"), "mine");
}

#[test]
fn a_change_travels_along_a_chain_of_nodes_that_never_meet_all_at_once() {
    let mut cluster = Cluster::linked(3);
    cluster.nodes[2].stop();
    fs::write(cluster.nodes[0].path("news"), "from a").expect("a new file");
    cluster.nodes[1].wait();
    cluster.nodes[0].stop();
    cluster.nodes[2].start();
    cluster.expect_connected();
    cluster.nodes[2].wait();
    assert_eq!(fs::read_to_string(cluster.nodes[2].path("news")).expect("via b"), "from a");

    fs::write(cluster.nodes[2].path("answer"), "from c").expect("a new file");
    cluster.nodes[1].wait();
    cluster.nodes[2].stop();
    cluster.nodes[0].start();
    cluster.expect_connected();
    cluster.nodes[0].wait();
    assert_eq!(fs::read_to_string(cluster.nodes[0].path("answer")).expect("via b"), "from c");
}

#[test]
fn two_nodes_that_write_the_same_path_keep_both_versions() {
    let mut cluster = Cluster::linked(2);
    cluster.nodes[1].stop();
    fs::write(cluster.nodes[0].path("report.txt"), "as a sees it").expect("a new file");
    cluster.nodes[0].wait();
    cluster.nodes[0].stop();
    cluster.nodes[1].start();
    fs::write(cluster.nodes[1].path("report.txt"), "as b sees it").expect("a new file");
    cluster.nodes[1].wait();
    cluster.nodes[0].start();
    cluster.settle();

    let node = &cluster.nodes[0];
    let copies = conflict_copies(&node.dir, "report.conflict-", ".txt");
    let [copy] = &copies[..] else { panic!("one conflict copy is expected: {copies:?}") };
    let mut both =
        [fs::read_to_string(node.path("report.txt")), fs::read_to_string(node.path(copy))]
            .map(|content| content.expect("a file"));
    both.sort();
    assert_eq!(both, ["as a sees it", "as b sees it"]);
    // Its name says whose it is: AUTHOR is how the identity of a member begins.
    let author = copy.trim_start_matches("report.conflict-").split('-').next().expect("a part");
    let members = node.run(["member", "list", "--json"]).expect_done().json();
    let mut members = members.as_array().expect("a list").iter();
    assert!(members.any(|member| text(&member["node"]).starts_with(author)), "{copy}");
    assert!(node.run(["status"]).expect_done().text().contains(author), "{copy}");
    assert_eq!(number(&node.dataset()["conflicts"]), 1);
    let stat = node.run(["stat", DATASET, "report.txt", "--json"]).expect_done().json();
    assert_eq!(number(&stat["conflicts"]), 1, "{stat}");

    // Deleting the copy settles the conflict, everywhere.
    fs::remove_file(node.path(copy)).expect("it is there");
    cluster.settle();
    for node in &cluster.nodes {
        assert!(!node.path(copy).exists());
        assert_eq!(number(&node.dataset()["conflicts"]), 0);
        assert!(node.path("report.txt").exists());
    }
}

#[test]
fn an_edit_wins_over_a_deletion_that_did_not_know_of_it() {
    let mut cluster = Cluster::linked(2);
    fs::write(cluster.nodes[0].path("plan"), "first").expect("a new file");
    cluster.settle();
    cluster.nodes[1].stop();
    fs::remove_file(cluster.nodes[0].path("plan")).expect("it is there");
    fs::write(cluster.nodes[1].path("plan"), "better").expect("writable");
    cluster.nodes[0].wait();
    cluster.nodes[1].start();
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(fs::read_to_string(node.path("plan")).expect("it stays"), "better");
    }
}

#[test]
fn equal_content_written_on_both_sides_is_no_conflict() {
    let mut cluster = Cluster::linked(2);
    cluster.nodes[1].stop();
    fs::write(cluster.nodes[0].path("same"), "the same").expect("a new file");
    fs::write(cluster.nodes[1].path("same"), "the same").expect("a new file");
    for node in &cluster.nodes {
        tree::utimes(&node.path("same"), 1_700_000_000, 5);
    }
    cluster.nodes[1].start();
    cluster.settle();
    let names: Vec<_> = tree::read(&cluster.nodes[0].dir).into_keys().collect();
    assert_eq!(names, [Path::new("same")]);
}

#[test]
fn a_file_against_a_directory_of_the_same_name_loses_nothing() {
    let mut cluster = Cluster::linked(2);
    cluster.nodes[1].stop();
    fs::write(cluster.nodes[0].path("thing"), "a file").expect("a new file");
    fs::create_dir(cluster.nodes[1].path("thing")).expect("a new directory");
    fs::write(cluster.nodes[1].path("thing/inside"), "in a directory").expect("a new file");
    cluster.nodes[1].start();
    cluster.settle();
    for node in &cluster.nodes {
        let contents: Vec<String> = tree::read(&node.dir)
            .into_keys()
            .filter_map(|path| fs::read_to_string(node.dir.join(path)).ok())
            .collect();
        assert!(contents.contains(&"in a directory".to_string()), "{contents:?}");
        let shown = contents.contains(&"a file".to_string());
        assert!(shown || node.get("thing").expect_done().stdout == b"a file", "{contents:?}");
    }
}

fn conflict_copies(dir: &Path, prefix: &str, suffix: &str) -> Vec<String> {
    let names = tree::read(dir).into_keys().map(|path| path.to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(prefix) && name.ends_with(suffix)).collect()
}
