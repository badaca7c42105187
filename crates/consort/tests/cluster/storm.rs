//! Thousands of random operations on three nodes at once, on the directories and through the command line, also while
//! nodes are killed. What has to hold afterwards is told in [`crate::ledger`]; besides, everything that `put`
//! acknowledged is there, and the stores are in order.
//!
//! `README.md` beside this file names the environment variables for longer runs and for other seeds.

use std::fs;
use std::path::Path;

use crate::cluster::Cluster;
use crate::operations::Operations;
use crate::random::from_environment;
use crate::tree;

/// What a run with nothing set does: enough to find most mistakes, in a few seconds without optimization.
const OPERATIONS: u64 = 300;
const KILLS: u64 = 4;
const SEED: u64 = 1;

#[test]
fn random_operations_on_three_nodes_at_once_converge_and_lose_nothing() {
    let mut storm = Storm::new("random operations");
    while !storm.is_over() {
        storm.burst();
    }
    storm.finish();
}

#[test]
fn random_operations_while_nodes_are_killed_converge_and_lose_nothing() {
    let kills = from_environment("CONSORT_TEST_KILLS", KILLS);
    let mut storm = Storm::new("random operations and kills");
    let between = (storm.operations / (kills + 1)).max(1);
    for kill in 1..=kills {
        while (storm.done.performed() as u64) < kill * between {
            storm.burst();
        }
        storm.kill_one();
    }
    while !storm.is_over() {
        storm.burst();
    }
    storm.finish();
}

#[derive(Debug)]
struct Storm {
    cluster: Cluster,
    done: Operations,
    operations: u64,
    /// What `put` acknowledged: each key is written once.
    acknowledged: Vec<(String, Vec<u8>)>,
}

impl Storm {
    fn new(what: &str) -> Self {
        let seed = from_environment("CONSORT_TEST_SEED", SEED);
        let operations = from_environment("CONSORT_TEST_OPERATIONS", OPERATIONS);
        println!("{what}: CONSORT_TEST_SEED={seed} CONSORT_TEST_OPERATIONS={operations}");
        let cluster = Cluster::linked(3);
        let directories = cluster.nodes.iter().map(|node| node.dir.clone()).collect();
        let done = Operations::new(seed, directories, cluster.beside("attic"));
        cluster.settle();
        Self { cluster, done, operations, acknowledged: Vec::new() }
    }

    fn is_over(&self) -> bool {
        self.done.performed() as u64 >= self.operations
    }

    /// Some operations without a pause, then something that gives the cluster more or less time.
    fn burst(&mut self) {
        for _ in 0..1 + self.done.random().below(25) {
            if !self.is_over() {
                self.done.step();
            }
        }
        let node = self.done.random().below(self.cluster.nodes.len());
        match self.done.random().below(8) {
            0 | 1 => self.put(node),
            2 => drop(self.cluster.nodes[node].status()),
            3 => self.cluster.nodes[node].wait(),
            4 => self.cluster.settle(),
            _ => {}
        }
    }

    fn put(&mut self, node: usize) {
        let key = format!("put/{}", self.acknowledged.len());
        let length = self.done.random().below(60_000);
        let content = self.done.random().bytes(length);
        self.cluster.nodes[node].put(&key, &content).expect_done();
        self.acknowledged.push((key, content));
    }

    /// Kills a node in the middle of a burst, goes on with its directory while it is down, and starts it again.
    fn kill_one(&mut self) {
        let node = self.done.random().below(self.cluster.nodes.len());
        for _ in 0..self.done.random().below(20) {
            self.done.step();
        }
        // An acknowledgement is worth most just before the power fails.
        self.put(node);
        self.cluster.nodes[node].kill();
        for _ in 0..self.done.random().below(10) {
            self.done.step();
        }
        self.cluster.nodes[node].start();
    }

    fn finish(mut self) {
        self.cluster.settle();
        let first = &self.cluster.nodes[0];
        self.done.ledger().check(&first.dir, |path| self.what_the_store_has(path));
        for node in &self.cluster.nodes {
            for (key, content) in &self.acknowledged {
                let there = fs::read(node.path(key));
                assert!(
                    there.as_ref().is_ok_and(|bytes| bytes == content),
                    "{key} was acknowledged; in the directory of {} it is not as it was put",
                    node.name
                );
            }
        }
        for (key, content) in self.acknowledged.iter().take(3) {
            assert_eq!(&first.get(key).expect_done().stdout, content, "{key}");
        }
        let files = tree::read(&first.dir).len();
        println!(
            "{} operations, {} values, {} puts; {files} entries in the end",
            self.done.performed(),
            self.done.ledger().written(),
            self.acknowledged.len()
        );
        self.cluster.stop_and_check();
    }

    /// A path whose place in the directory is taken, such as a file where others made a directory, is still readable.
    fn what_the_store_has(&self, path: &Path) -> Vec<Vec<u8>> {
        let key = path.to_str().expect("the operations use UTF-8 only");
        let got = self.cluster.nodes[0].get(key);
        if got.status.success() { vec![got.stdout] } else { Vec::new() }
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what was done:\n{}", self.done.ledger().journal().join("\n"));
        }
    }
}
