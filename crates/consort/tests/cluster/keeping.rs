//! Contents that are in one directory only, or in none: a node that knows of versions does not say that it can give what is
//! in them.

use std::fs;

use serde_json::Value;

use crate::cluster::{Cluster, DATASET, Node, array, number, text, until};
use crate::random::Random;

/// Too long to be in a version.
const LENGTH: usize = 300_000;

/// So long that a version names a manifest, which its writer keeps without the directory.
const GREAT_LENGTH: usize = 16 << 20;

#[test]
fn who_unlinks_the_only_directory_with_the_contents_hears_of_it_and_so_do_others() {
    let mut cluster = Cluster::new(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    a.run(["dataset", "create", DATASET]).expect_done();
    a.link();
    let precious = Random::new(7).bytes(GREAT_LENGTH);
    fs::write(a.path("precious"), &precious).expect("a new file");
    a.wait();
    b.wait();
    until_complete_peers(b, 1);
    assert!(b.run(["status"]).expect_done().text().contains("fetched when read"));
    assert_eq!(unavailable(b), None);
    until_complete_peers(a, 0);

    let unlinked = a.run(["unlink", DATASET, "--json"]).expect_done();
    let told = unlinked.json();
    assert_eq!(told["done"], true, "{unlinked}");
    assert_eq!(text(&told["dir"]), a.dir.to_str().expect("UTF-8"), "{unlinked}");
    assert_eq!(told["pending"], 0, "{unlinked}");
    assert_eq!(told["lacking"]["key"], "precious", "{unlinked}");
    for word in ["warning", "precious", "no other member that is there", "link photos"] {
        assert!(unlinked.stderr.contains(word), "it does not say {word:?}: {unlinked}");
    }

    until_complete_peers(b, 0);
    for node in [a, b] {
        let shown = node.run(["status"]).expect_done();
        assert!(shown.text().contains("metadata only: neither here nor"), "{shown}");
        let waited = node.run(["wait", DATASET, "--json"]).expect_done();
        assert_eq!(waited.json()["complete_peers"], 0, "{waited}");
        assert!(waited.stderr.contains("`consort doctor` finds out"), "{waited}");
        let finding = unavailable(node).expect("it is told that nobody has the content");
        assert_eq!(finding["severity"], "warning");
        assert!(text(&finding["what"]).ends_with("such as that of precious"), "{finding}");
        assert!(text(&finding["todo"]).contains("consort link photos"), "{finding}");
    }

    // Who waits for it is told what to do, too.
    b.link();
    until("it to wait for contents", || {
        let dataset = b.dataset();
        dataset["state"] == "waiting" && text(&dataset["reason"]).contains("no reachable node has")
    });
    b.run(["wait", DATASET, "--timeout", "1s"])
        .expect_failure(3, &["precious", "no reachable node has", "`consort doctor`"]);
    // A directory in which nothing has arrived promises nothing.
    let shown = a.run(["status"]).expect_done();
    assert!(shown.text().contains("metadata only: neither here nor"), "{shown}");
    let finding = finding(b, "content is missing that no reachable node has").expect("it waits");
    assert!(text(&finding["todo"]).contains("consort link photos"), "{finding}");

    a.link();
    cluster.settle();
    assert_eq!(fs::read(cluster.nodes[1].path("precious")).expect("a file"), precious);
    cluster.stop_and_check();
}

#[test]
fn contents_that_somebody_has_in_another_directory_or_was_given_are_not_said_to_be_missing() {
    let mut cluster = Cluster::linked(2);
    let third = cluster.join_another("reader");
    cluster.expect_connected();
    let [a, b, c] = &cluster.nodes[..] else { unreachable!("three nodes") };
    fs::write(a.path("shared"), vec![7; LENGTH]).expect("a new file");
    cluster.nodes[third].wait();
    b.wait();
    let shows_the_same = |peer: &&Value| {
        array(peer, "datasets").iter().any(|told| told["linked"] == true && told["in_sync"] == true)
    };
    until("both to have told that they hold the same", || {
        let (status, other) = (a.status(), c.status());
        array(&status, "peers").iter().any(|peer| shows_the_same(&peer))
            && array(&other, "peers").iter().filter(shows_the_same).count() == 2
    });
    let unlinked = a.run(["unlink", DATASET, "--json"]).expect_done();
    assert!(unlinked.json()["lacking"].is_null(), "{unlinked}");
    assert!(!unlinked.stderr.contains("warning"), "{unlinked}");
    until_complete_peers(c, 1);
    for node in [a, c] {
        assert_eq!(unavailable(node), None);
    }

    // What was put is on the node where that was done, without any directory.
    a.run(["dataset", "create", "others"]).expect_done();
    let large = b.path("shared");
    a.run(["put", "others", "large", large.to_str().expect("UTF-8")]).expect_done();
    c.run(["wait", "others"]).expect_done();
    assert_eq!(unavailable(c), None);
    cluster.stop_and_check();
}

#[test]
fn who_unlinks_before_all_has_arrived_hears_how_much_has_not() {
    let mut cluster = Cluster::new(2);
    cluster.nodes[0].run(["dataset", "create", DATASET]).expect_done();
    cluster.nodes[0].link();
    fs::write(cluster.nodes[0].path("late"), vec![7; LENGTH]).expect("a new file");
    cluster.nodes[0].wait();
    cluster.nodes[1].wait();
    until_complete_peers(&cluster.nodes[1], 1);
    cluster.nodes[0].stop();
    let b = &cluster.nodes[1];
    b.link();
    until("it to know what is to come", || number(&b.dataset()["pending"]) == 1);
    b.run(["wait", DATASET, "--timeout", "1s"])
        .expect_failure(3, &["no other node can be reached", "consort doctor"]);
    until("the other to be gone", || array(&b.status(), "peers")[0]["presence"] == "gone");
    // What it told last is no news of what it does now.
    assert_eq!(array(&b.status(), "peers")[0]["rate_bytes"], 0);

    let unlinked = b.run(["unlink", DATASET, "--json"]).expect_done();
    assert_eq!(unlinked.json()["pending"], 1, "{unlinked}");
    assert!(unlinked.stderr.contains("1 change of the dataset had not arrived"), "{unlinked}");
    // It had nothing that others could want.
    assert!(unlinked.json()["lacking"].is_null(), "{unlinked}");
    let finding = unavailable(b).expect("it is told that nobody has the content");
    assert!(text(&finding["what"]).ends_with("such as that of late"), "{finding}");
    cluster.stop_and_check();
}

/// Waits until a node knows in how many directories of others nothing of [`DATASET`] is missing.
fn until_complete_peers(node: &Node, number: u64) {
    until(&format!("{} to hear of {number} directories", node.name), || {
        node.dataset()["complete_peers"] == number
    });
}

/// What `doctor` says of contents that cannot be had.
fn unavailable(node: &Node) -> Option<Value> {
    finding(node, "no node ")
}

/// What `doctor` says that has these words.
fn finding(node: &Node, words: &str) -> Option<Value> {
    let findings = node.run(["doctor", "--json"]).expect_done().json();
    let found = findings.as_array().expect("a list").iter();
    found.clone().find(|finding| text(&finding["what"]).contains(words)).cloned()
}
