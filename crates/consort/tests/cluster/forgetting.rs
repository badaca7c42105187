//! Deletions are forgotten when everybody has heard of them who is waited for, and nothing comes back.

use std::fs;

use crate::cluster::{Cluster, Node, number, patience, until, within};

/// Files of which nothing becomes, so that a few deletions are nothing to ask about.
const OTHERS: usize = 12;

#[test]
fn who_was_evicted_and_returns_brings_nothing_back_and_keeps_what_it_wrote() {
    let mut cluster = Cluster::linked(3);
    let write = |node: &Node, name: &str, text: &str| {
        fs::write(node.path(name), text).expect("it can be written");
    };
    for name in ["deleted", "deleted-too", "deleted-here-edited-there", "deleted-there"] {
        write(&cluster.nodes[0], name, "old");
    }
    for n in 0..OTHERS {
        write(&cluster.nodes[0], &format!("kept-{n}"), "kept");
    }
    cluster.settle();
    let away = cluster.nodes[2].name.clone();
    let is_waited_for = |node: &Node| {
        let members = node.run(["member", "list", "--json"]).expect_done().json();
        let member = members.as_array().expect("a list").iter().find(|m| m["name"] == *away);
        member.expect("it is a member")["waited_for"] == true
    };
    until("all to be registered", || cluster.nodes.iter().all(is_waited_for));

    cluster.nodes[2].kill();
    for name in ["deleted", "deleted-too", "deleted-here-edited-there"] {
        fs::remove_file(cluster.nodes[0].path(name)).expect("it is there");
    }
    write(&cluster.nodes[1], "written-here", "news");
    cluster.settle();
    for node in &cluster.nodes[..2] {
        assert_eq!(number(&node.dataset()["tombstones"]), 3);
        until("the deletions to wait for who is away", || {
            node.dataset()["tombstones_wait_for"] == *away
        });
    }
    cluster.nodes[0].run(["member", "evict", &away]).expect_done();
    until("nobody to wait for it", || !cluster.nodes[..2].iter().any(is_waited_for));
    until_forgotten(&cluster.nodes[..2]);

    // All of that it does alone.
    cluster.nodes[0].stop();
    cluster.nodes[1].stop();
    write(&cluster.nodes[2], "deleted-here-edited-there", "edited");
    write(&cluster.nodes[2], "written-there", "mine");
    cluster.nodes[2].start();
    cluster.nodes[2].put("put-there", b"mine, too").expect_done();
    fs::remove_file(cluster.nodes[2].path("deleted-there")).expect("it is there");
    cluster.nodes[2].wait();
    assert!(cluster.nodes[2].path("deleted").exists());

    cluster.nodes[0].start();
    cluster.nodes[1].start();
    cluster.settle();
    until("what was deleted to be gone from all directories", || {
        let mut nodes = cluster.nodes.iter();
        nodes.all(|node| !node.path("deleted").exists() && !node.path("deleted-there").exists())
    });
    cluster.settle();
    for node in &cluster.nodes {
        for name in ["deleted", "deleted-too", "deleted-there"] {
            assert!(!node.path(name).exists(), "{name} is back on {}", node.name);
            assert!(!node.get(name).status.success(), "{name} can be read on {}", node.name);
        }
        let read = |name: &str| fs::read_to_string(node.path(name)).expect("it is there");
        assert_eq!(read("deleted-here-edited-there"), "edited");
        assert_eq!(read("written-there"), "mine");
        assert_eq!(read("put-there"), "mine, too");
        assert_eq!(read("written-here"), "news");
        assert!((0..OTHERS).all(|n| read(&format!("kept-{n}")) == "kept"));
    }
    until("it to be waited for again", || cluster.nodes.iter().all(is_waited_for));
    until_forgotten(&cluster.nodes);
    cluster.settle();
    cluster.stop_and_check();
}

/// Waits until no deletion is remembered any more. That begins some time after a deletion, so that many share the effort.
fn until_forgotten(nodes: &[Node]) {
    within(3 * patience(), "the deletions to be forgotten", || {
        nodes.iter().all(|node| number(&node.dataset()["tombstones"]) == 0)
    });
}
