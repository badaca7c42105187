//! More nodes than can all be linked with each other: few neighbours each, and yet everything reaches everybody.

use std::fs;

use serde_json::Value;

use crate::cluster::{Cluster, DATASET, Node, array, text, until};

/// More than are kept in the version itself.
const LARGE: usize = 100_000;

/// More than are fully linked.
const MANY: usize = 12;

/// The names of a node's neighbours.
fn neighbours(node: &Node) -> Vec<String> {
    let status = node.status();
    let neighbours = array(&status, "peers").iter().filter(|peer| peer["neighbour"] == true);
    neighbours.map(|peer| text(&peer["name"]).to_owned()).collect()
}

fn peer<'s>(status: &'s Value, name: &str) -> &'s Value {
    array(status, "peers").iter().find(|peer| peer["name"] == name).expect("a member")
}

#[test]
fn a_dozen_nodes_have_few_neighbours_each_and_everything_reaches_everybody() {
    let mut cluster = Cluster::linked(MANY);
    for node in &cluster.nodes {
        until(&format!("{} to have few neighbours", node.name), || {
            (3..=8).contains(&neighbours(node).len())
        });
    }

    // A wait includes what was just written by somebody who is no neighbour.
    let reader = &cluster.nodes[MANY - 1];
    for round in 0..3 {
        let near = neighbours(reader);
        let far = cluster.nodes.iter().rfind(|node| {
            node.name != reader.name && node.name != "a" && !near.contains(&node.name)
        });
        let far = far.expect("not all are neighbours");
        fs::write(far.path(&format!("from afar {round}")), &far.name).expect("a new file");
        reader.wait();
        let found = fs::read_to_string(reader.path(&format!("from afar {round}")));
        assert_eq!(found.expect("it was waited for"), far.name);
    }
    cluster.settle();

    // Every node shows all others, and that they hold the same.
    for node in &cluster.nodes {
        until(&format!("{} to see all in sync", node.name), || {
            let status = node.status();
            let is_right = |peer: &Value| {
                let dataset = array(peer, "datasets").iter().find(|d| d["name"] == DATASET);
                peer["presence"] == "alive" && dataset.is_some_and(|d| d["in_sync"] == true)
            };
            array(&status, "peers").len() == MANY - 1
                && array(&status, "peers").iter().all(is_right)
        });
    }

    // Content that only its writer has is found by those who are no neighbours of it.
    let content: Vec<u8> = (0..300_000u32).flat_map(|n| n.to_le_bytes()).collect();
    cluster.nodes[0].run(["dataset", "create", "loose"]).expect_done();
    until("the dataset to be known", || {
        cluster.nodes[5].run(["dataset", "show", "loose"]).status.success()
    });
    cluster.nodes[5].run_with_input(["put", "loose", "key", "-"], &content).expect_done();
    for node in &cluster.nodes {
        until(&format!("{} to get what one has", node.name), || {
            node.run(["get", "loose", "key"]).stdout == content
        });
    }

    // Who is killed is noticed by all, and replaced.
    cluster.nodes[7].kill();
    let killed = cluster.nodes[7].name.clone();
    for node in cluster.nodes.iter().filter(|node| node.is_running()) {
        until(&format!("{} to miss the one that was killed", node.name), || {
            peer(&node.status(), &killed)["presence"] == "gone"
        });
        // It held the same when it was heard of last; nobody knows what it holds now.
        let status = node.status();
        let datasets = array(peer(&status, &killed), "datasets");
        assert!(datasets.iter().all(|dataset| dataset["in_sync"] == false), "{status}");
        until(&format!("{} to have neighbours", node.name), || {
            let neighbours = neighbours(node);
            3 <= neighbours.len() && !neighbours.contains(&killed)
        });
    }
    fs::write(cluster.nodes[3].path("after"), "the loss").expect("a new file");
    cluster.settle();
    cluster.nodes[7].start();
    cluster.settle();
    assert!(cluster.nodes[7].path("after").exists());
    cluster.stop_and_check();
}

#[test]
fn a_directory_gets_what_only_one_has_who_is_no_neighbour() {
    let cluster = Cluster::new(MANY);
    let (first, others) = cluster.nodes.split_first().expect("there are nodes");
    first.run(["dataset", "create", DATASET]).expect_done();
    first.link();
    let content = |node: &Node| node.name.repeat(LARGE).into_bytes();
    for node in others {
        until(&format!("{} to know the dataset", node.name), || {
            node.run(["dataset", "show", DATASET]).status.success()
        });
        node.put(&node.name, &content(node)).expect_done();
    }
    first.wait();
    for node in others {
        let there = fs::read(first.path(&node.name)).expect("it was waited for");
        assert!(there == content(node), "what {} wrote", node.name);
    }
}
