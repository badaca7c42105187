//! The same path written on nodes that do not know of each other, under each policy, and somebody who chooses.

use std::fs;

use serde_json::Value;

use crate::cluster::{Cluster, DATASET, Node, array, number, text};
use crate::tree;

const KEY: &str = "report.txt";

/// Two nodes that were apart while each put something under [`KEY`], `b` first; `origins` are theirs, `b` first.
fn apart(policy: &str, origins: [&str; 2]) -> Cluster {
    let mut cluster = Cluster::linked_under(2, policy);
    cluster.nodes[0].stop();
    put(&cluster.nodes[1], "of b", origins[0]);
    cluster.nodes[1].wait();
    cluster.nodes[1].stop();
    cluster.nodes[0].start();
    put(&cluster.nodes[0], "of a", origins[1]);
    cluster.nodes[0].wait();
    cluster.nodes[1].start();
    cluster.settle();
    cluster
}

fn put(node: &Node, content: &str, origin: &str) {
    let command = ["put", DATASET, KEY, "-", "--origin", origin];
    node.run_with_input(command, content.as_bytes()).expect_done();
}

fn conflicts(node: &Node) -> Value {
    node.run(["conflicts", DATASET, "--json"]).expect_done().json()
}

/// Every file of the directory, and what it holds.
fn files(node: &Node) -> Vec<(String, String)> {
    let paths = tree::read(&node.dir).into_keys();
    let file = |path: std::path::PathBuf| {
        let content = fs::read_to_string(node.dir.join(&path)).expect("a file");
        (path.to_string_lossy().into_owned(), content)
    };
    paths.map(file).collect()
}

#[test]
fn both_are_kept_until_somebody_chooses_on_any_node() {
    let mut cluster = apart("keep-both", ["real", "synthetic"]);
    let mut listed = Vec::new();
    for node in &cluster.nodes {
        assert_eq!(files(node).len(), 2);
        let conflicts = conflicts(node);
        let [conflict] = &conflicts.as_array().expect("a list")[..] else { panic!("{conflicts}") };
        assert_eq!(text(&conflict["key"]), KEY);
        let winner = &conflict["winner"];
        assert_eq!((text(&winner["author"]), text(&winner["origin"])), ("a", "synthetic"));
        assert_eq!(text(&winner["path"]), KEY);
        let [loser] = array(conflict, "losers") else { panic!("{conflict}") };
        assert_eq!((text(&loser["author"]), text(&loser["origin"])), ("b", "real"));
        let copy = fs::read_to_string(node.path(text(&loser["path"]))).expect("a copy");
        assert_eq!(copy, "of b");
        let version = text(&loser["version"]);
        let got = node.run(["get", DATASET, KEY, "--version", version]).expect_done();
        assert_eq!(got.stdout, b"of b");
        let stat = node.run(["stat", DATASET, KEY, "--version", version, "--json"]);
        assert_eq!(number(&stat.expect_done().json()["size"]), 4);
        let status = node.dataset();
        assert_eq!((number(&status["conflicts"]), number(&status["conflict_copies"])), (1, 1));
        let shown = node.run(["conflicts", DATASET]).expect_done();
        assert!(shown.text().contains(version) && shown.stderr.contains("resolve"), "{shown}");
        assert!(node.run(["doctor"]).expect_done().text().contains("consort conflicts"));
        listed.push(version.to_string());
    }
    let [version, at_b] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!(version, at_b);

    let resolve = ["conflicts", "resolve", DATASET, KEY, "--keep", version];
    cluster.nodes[0].run(resolve).expect_done();
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(files(node), [(KEY.to_string(), "of b".to_string())]);
        assert_eq!(conflicts(node), Value::Array(Vec::new()));
        assert_eq!(number(&node.dataset()["conflicts"]), 0);
        node.run(resolve).expect_failure(4, &["replaced", "consort conflicts"]);
    }
    cluster.stop_and_check();
}

#[test]
fn the_latest_stands_alone_on_all_nodes() {
    let cluster = apart("latest", ["real", "synthetic"]);
    for node in &cluster.nodes {
        assert_eq!(files(node), [(KEY.to_string(), "of a".to_string())]);
        assert_eq!(conflicts(node), Value::Array(Vec::new()));
        assert_eq!(number(&node.dataset()["conflicts"]), 0);
        assert_eq!(number(&node.dataset()["versions"]), 2, "the other is still there");
        let shown = node.run(["dataset", "show", DATASET, "--json"]).expect_done().json();
        assert_eq!(text(&shown["on_conflict"]), "latest");
    }
    fs::write(cluster.nodes[1].path(KEY), "next").expect("writable");
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(files(node), [(KEY.to_string(), "next".to_string())]);
        assert_eq!(number(&node.dataset()["versions"]), 1, "the next write replaces it");
    }
}

#[test]
fn a_real_one_stands_alone_where_it_is_preferred_and_real_ones_are_in_conflict() {
    let mut cluster = apart("prefer-real", ["real", "synthetic"]);
    for node in &cluster.nodes {
        assert_eq!(files(node), [(KEY.to_string(), "of b".to_string())]);
        assert_eq!(conflicts(node), Value::Array(Vec::new()));
    }
    cluster.nodes[1].stop();
    fs::write(cluster.nodes[0].path(KEY), "seen by a").expect("writable");
    cluster.nodes[0].wait();
    fs::write(cluster.nodes[1].path(KEY), "seen by b").expect("writable");
    cluster.nodes[1].start();
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(files(node).len(), 2);
        assert_eq!(number(&node.dataset()["conflicts"]), 1);
    }
    let winner = conflicts(&cluster.nodes[1])[0]["winner"]["version"].clone();
    let resolve = ["conflicts", "resolve", DATASET, KEY, "--keep", text(&winner)];
    cluster.nodes[1].run(resolve).expect_done();
    cluster.settle();
    for node in &cluster.nodes {
        assert_eq!(files(node).len(), 1);
        assert_eq!(number(&node.dataset()["versions"]), 1);
    }
}
