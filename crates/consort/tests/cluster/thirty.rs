//! A cluster whose network breaks in two and heals, and whose nodes are killed: nothing that was written is lost,
//! everything that was written twice is there twice, and `status` says all the time how it is. In the end, what a node
//! costs that has nothing to do.
//!
//! Six nodes unless `README.md` beside this file is followed; thirty is what is promised. Times and processor time are
//! printed, not judged: they are the machine's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::cluster::{Cluster, DATASET, Node, array, number, patience, process_id, text, until};
use crate::network::Network;
use crate::random::{Random, from_environment};
use crate::tree;

const NODES: u64 = 6;
const QUIET_SECONDS: u64 = 2;
const SEED: u64 = 1;

/// Every so-many-th node has a directory; the others hold the dataset only.
const LINKED_EVERY: usize = 5;
/// What each node writes at a time that nobody else does.
const OWN_KEYS: usize = 3;
/// What a node may manage to write before it is killed.
const LAST_KEYS: usize = 8;
/// The most memory that a node with nothing to do may hold.
const MOST_MEMORY_BYTES: u64 = 60_000_000;
/// A processor's time is counted in these, for every program, since long ago.
const TICKS_PER_SECOND: u32 = 100;
/// Between two looks at all nodes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[test]
fn a_cluster_that_was_split_and_whose_nodes_were_killed_is_equal_again_and_keeps_everything() {
    let count = u8::try_from(from_environment("CONSORT_TEST_NODES", NODES)).expect("few nodes");
    let seed = from_environment("CONSORT_TEST_SEED", SEED);
    let Some(network) = Network::new(count) else { return };
    println!("a split network and kills: CONSORT_TEST_SEED={seed} CONSORT_TEST_NODES={count}");
    let mut storm = Split::new(network, seed);
    let all: Vec<usize> = (0..storm.cluster.nodes.len()).collect();

    storm.write_own(&all);
    storm.until_equal_again(&all, "after the first writes");

    storm.split_and_heal();
    storm.check_conflicts();
    storm.kill_and_restart(all.len() / 3);
    storm.check_conflicts();
    storm.check_written();

    storm.measure_quiet();
    storm.cluster.stop_and_check();
}

/// The fields are dropped in this order: no network is taken away from processes that run in it.
#[derive(Debug)]
struct Split {
    cluster: Cluster,
    network: Network,
    random: Random,
    /// What was acknowledged, and written only once.
    written: BTreeMap<String, Vec<u8>>,
    /// What was written on both sides of the cut.
    twice: BTreeMap<String, BTreeSet<Vec<u8>>>,
    /// Who wrote something since all were equal last: perhaps nobody else has its content yet.
    writers: BTreeSet<usize>,
    next: usize,
}

/// Something that a node is to write.
#[derive(Clone, Debug)]
struct Write {
    node: usize,
    key: String,
    content: Vec<u8>,
    /// By way of the linked directory.
    as_file: bool,
}

impl Split {
    fn new(network: Network, seed: u64) -> Self {
        let cluster = Cluster::across(&network);
        cluster.nodes[0].run(["dataset", "create", DATASET]).expect_done();
        let split = Self {
            cluster,
            network,
            random: Random::new(seed),
            written: BTreeMap::new(),
            twice: BTreeMap::new(),
            writers: BTreeSet::new(),
            next: 0,
        };
        for node in split.linked() {
            node.link();
        }
        split
    }

    fn linked(&self) -> impl Iterator<Item = &Node> {
        self.cluster.nodes.iter().step_by(LINKED_EVERY)
    }

    // ---- What happens ----

    fn split_and_heal(&mut self) {
        let [left, right] = self.network.sides();
        self.network.cut();
        let cut = Instant::now();
        // For a while only one side writes: the other must not believe that all is as it was.
        self.write_own(&right);
        let [first, second] = [&left, &right].map(|side| self.until_right(side, "half a cluster"));
        println!("each side knew who was away {:.1} s after the cut", cut.elapsed().as_secs_f64());
        assert_ne!(first, second, "one side wrote, and the other holds the same");
        self.expect_text_to_tell(&left, &right);

        self.write_own(&left);
        self.write_twice();
        let digests = [&left, &right].map(|side| self.until_right(side, "the split with writes"));
        assert_ne!(digests[0], digests[1]);

        self.network.mend();
        let all: Vec<usize> = left.into_iter().chain(right).collect();
        self.until_equal_again(&all, "after the heal");
    }

    fn kill_and_restart(&mut self, kills: usize) {
        let mut up: Vec<usize> = (0..self.cluster.nodes.len()).collect();
        let mut down = Vec::new();
        for kill in 0..kills {
            let victim = up.remove(self.random.below(up.len()));
            self.kill_while_it_writes(victim);
            let other = up[self.random.below(up.len())];
            let write = self.new_write(other, "meanwhile");
            self.write(vec![write]);
            // At least one is away for long enough to be missed.
            if kill != 0 && self.random.once_in(2) {
                self.cluster.nodes[victim].start();
                up.push(victim);
            } else {
                down.push(victim);
            }
        }
        self.until_right(&up, "those that were not killed know who was");
        while !down.is_empty() {
            let back = down.swap_remove(self.random.below(down.len()));
            self.cluster.nodes[back].start();
            up.push(back);
        }
        self.until_equal_again(&up, &format!("after {kills} kills"));
    }

    /// Kills a node at some moment while it is given things to write.
    fn kill_while_it_writes(&mut self, victim: usize) {
        let writes: Vec<Write> = (0..LAST_KEYS).map(|_| self.new_write(victim, "last")).collect();
        let pause = Duration::from_millis(self.random.below(200) as u64);
        let node = &self.cluster.nodes[victim];
        let pid = process_id(node.pid());
        let acknowledged = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let puts = writes.into_iter();
                puts.take_while(|put| node.put(&put.key, &put.content).status.success())
                    .map(|put| (put.key, put.content))
                    .collect::<Vec<_>>()
            });
            thread::sleep(pause);
            kill_process(pid, Signal::KILL).expect("it runs");
            writer.join().expect("it only writes")
        });
        self.written.extend(acknowledged);
        self.cluster.nodes[victim].kill();
    }

    // ---- Writing ----

    /// Each of these nodes writes keys that nobody else writes.
    fn write_own(&mut self, nodes: &[usize]) {
        let mut writes = Vec::new();
        for &node in nodes {
            writes.extend((0..OWN_KEYS).map(|_| self.new_write(node, "own")));
        }
        self.write(writes);
    }

    /// For each node, a key is written by a random node of either side.
    fn write_twice(&mut self) {
        let sides = self.network.sides();
        let mut writes = Vec::new();
        for number in 0..self.cluster.nodes.len() {
            let key = format!("twice/{number}.bin");
            for side in &sides {
                let node = *self.random.pick(side);
                let write = Write { key: key.clone(), ..self.new_write(node, "twice") };
                self.twice.entry(key.clone()).or_default().insert(write.content.clone());
                writes.push(write);
            }
        }
        self.carry_out(&writes);
    }

    fn new_write(&mut self, node: usize, what: &str) -> Write {
        self.next += 1;
        self.writers.insert(node);
        // Inline, or in a chunk that has to be fetched by whoever wants to read it.
        let length = if self.random.once_in(5) { 100_000 } else { 2_000 };
        let length = 1 + self.random.below(length);
        let is_linked = node.is_multiple_of(LINKED_EVERY);
        Write {
            node,
            key: format!("{what}/{}.bin", self.next),
            // The number makes every content another one.
            content: [self.random.bytes(length), self.next.to_le_bytes().to_vec()].concat(),
            as_file: is_linked && self.random.once_in(2),
        }
    }

    fn write(&mut self, writes: Vec<Write>) {
        self.carry_out(&writes);
        self.written.extend(writes.into_iter().map(|write| (write.key, write.content)));
    }

    /// All nodes at once, each one thing after another.
    fn carry_out(&self, writes: &[Write]) {
        thread::scope(|scope| {
            for (number, node) in self.cluster.nodes.iter().enumerate() {
                let own: Vec<&Write> = writes.iter().filter(|w| w.node == number).collect();
                scope.spawn(move || {
                    for Write { key, content, as_file, .. } in own {
                        if *as_file {
                            let path = node.path(key);
                            fs::create_dir_all(path.parent().expect("it has one")).expect("new");
                            fs::write(path, content).expect("a new file");
                        } else {
                            node.put(key, content).expect_done();
                        }
                    }
                });
            }
        });
    }

    // ---- What has to hold ----

    /// Asks these nodes, all at once, and lets none of them claim anything of somebody who is away.
    fn statuses(&self, nodes: &[usize]) -> Vec<Value> {
        let statuses = self.each(nodes, Node::status);
        for (status, peer) in
            statuses.iter().flat_map(|s| array(s, "peers").iter().map(move |p| (s, p)))
        {
            let is_away = peer["presence"] == "gone" || peer["presence"] == "unheard";
            let claims = array(peer, "datasets").iter().any(|dataset| dataset["in_sync"] == true);
            assert!(!is_away || !claims, "{} claims to know of one away: {peer}", status["name"]);
        }
        statuses
    }

    /// Waits until these nodes hold the same, and the status of each is exactly that they are there, in sync, and nobody
    /// else is. Returns the digest.
    fn until_right(&self, there: &[usize], what: &str) -> String {
        let started = Instant::now();
        loop {
            let statuses = self.statuses(there);
            let wrong: Vec<String> =
                statuses.iter().flat_map(|status| self.what_is_wrong(status, there)).collect();
            let digests: BTreeSet<&str> =
                statuses.iter().map(|status| text(&dataset(status)["digest"])).collect();
            if wrong.is_empty() && digests.len() == 1 {
                return digests.into_iter().map(str::to_owned).collect();
            }
            assert!(
                started.elapsed() < patience(),
                "{what}: {} digests, and status is not right:\n{}",
                digests.len(),
                wrong.join("\n")
            );
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// In what a status differs from the truth, when these nodes are there and have had the time to find out. If one that
    /// is away wrote last, a directory may lack what only that one has, and then says so.
    fn what_is_wrong(&self, status: &Value, there: &[usize]) -> Vec<String> {
        let may_lack = self.writers.iter().any(|writer| !there.contains(writer));
        let there: BTreeSet<&str> =
            there.iter().map(|&number| self.cluster.nodes[number].name.as_str()).collect();
        let mut wrong = Vec::new();
        let state = dataset(status);
        let is_lacking = |pending: &Value| may_lack && *pending != 0;
        let is_waiting = state["state"] == "waiting"
            && is_lacking(&state["pending"])
            && text(&state["reason"]).contains("content is missing");
        if state["state"] != "in-sync" && !is_waiting {
            wrong.push(format!("the dataset is {}: {}", state["state"], state["links"]));
        }
        for link in array(state, "links") {
            if !there.contains(text(&link["name"])) || link["phase"] != "live" {
                wrong.push(format!("a link: {link}"));
            }
        }
        let peers = array(status, "peers");
        if peers.len() + 1 != self.cluster.nodes.len() {
            wrong.push(format!("{} peers", peers.len()));
        }
        for peer in peers {
            let told = array(peer, "datasets").iter().find(|d| d["name"] == DATASET);
            let is_right = if there.contains(text(&peer["name"])) {
                let is_equal = |told: &Value| {
                    told["in_sync"] == true || told["behind"] == 0 && is_lacking(&told["pending"])
                };
                peer["presence"] == "alive" && told.is_some_and(is_equal)
            } else {
                peer["presence"] == "gone"
                    && peer["connected"] == false
                    && peer["neighbour"] == false
            };
            if !is_right {
                wrong.push(format!(
                    "{} is {}, connected {}, {:?}",
                    peer["name"], peer["presence"], peer["connected"], told
                ));
            }
        }
        wrong.into_iter().map(|wrong| format!("{} says: {wrong}", status["name"])).collect()
    }

    /// What people read says the same as what programs read.
    fn expect_text_to_tell(&self, side: &[usize], away: &[usize]) {
        let there = format!("{} of {} others alive", side.len() - 1, self.cluster.nodes.len() - 1);
        for shown in self.each(side, |node| node.run(["status"]).expect_done()) {
            assert!(shown.text().contains(&there), "{shown}");
            assert_eq!(shown.text().matches("gone for ").count(), away.len(), "{shown}");
            let in_sync = format!(
                "in sync with those that are there; {} of {} are not",
                away.len(),
                self.cluster.nodes.len() - 1
            );
            assert!(shown.text().contains(&in_sync), "{shown}");
        }
    }

    /// Waits until all hold the same and show the same, and says how long that took from now on.
    fn until_equal_again(&mut self, all: &[usize], what: &str) {
        let started = Instant::now();
        until(&format!("all nodes to hold the same {what}"), || {
            let statuses = self.statuses(all);
            let digests: BTreeSet<&str> =
                statuses.iter().map(|s| text(&dataset(s)["digest"])).collect();
            digests.len() == 1
        });
        let held = started.elapsed().as_secs_f64();
        until(&format!("all directories to be equal {what}"), || {
            let mut directories = self.linked().map(|node| tree::read(&node.dir));
            let first = directories.next().expect("some are linked");
            directories.all(|other| tree::differences(&first, &other).is_empty())
        });
        let shown = started.elapsed().as_secs_f64();
        self.until_right(all, what);
        let told = started.elapsed().as_secs_f64();
        self.writers.clear();
        println!(
            "{what}: all hold the same after {held:.1} s, all directories are equal after {shown:.1} s, all say so of all after {told:.1} s"
        );
    }

    /// Every node lists everything that was written twice, and gives both.
    fn check_conflicts(&self) {
        let all: Vec<usize> = (0..self.cluster.nodes.len()).collect();
        let lists = self.each(&all, |node| {
            let conflicts = node.run(["conflicts", DATASET, "--json"]).expect_done().json();
            let conflicts = conflicts.as_array().expect("a list");
            let mut found = BTreeMap::new();
            for conflict in conflicts {
                let key = text(&conflict["key"]).to_owned();
                let losers = array(conflict, "losers");
                let versions = std::iter::once(&conflict["winner"]).chain(losers);
                let contents = versions.map(|candidate| {
                    let version = text(&candidate["version"]);
                    node.run(["get", DATASET, &key, "--version", version]).expect_done().stdout
                });
                found.insert(key.clone(), contents.collect::<BTreeSet<_>>());
            }
            assert!(found == self.twice, "{} lacks versions: {conflicts:?}", node.name);
            assert_eq!(number(&node.dataset()["conflicts"]), self.twice.len() as u64);
            found.len()
        });
        println!("{} conflicts, each with both versions, on {} nodes", lists[0], lists.len());
    }

    /// What was acknowledged is there, whichever node is asked, and in the directories.
    fn check_written(&mut self) {
        for (key, content) in &self.written {
            let node = self.random.pick(&self.cluster.nodes);
            assert!(node.get(key).expect_done().stdout == *content, "{key} on {}", node.name);
            for node in self.linked() {
                let there = fs::read(node.path(key)).expect("it was acknowledged");
                assert!(there == *content, "{key} in the directory of {}", node.name);
            }
        }
        println!("{} acknowledged writes are there", self.written.len());
    }

    /// What the nodes need while nothing happens.
    fn measure_quiet(&self) {
        let quiet = Duration::from_secs(from_environment("CONSORT_TEST_QUIET", QUIET_SECONDS));
        let ticks = || self.cluster.nodes.iter().map(|node| ticks(node.pid())).collect::<Vec<_>>();
        let before = ticks();
        let started = Instant::now();
        thread::sleep(quiet);
        let (after, elapsed) = (ticks(), started.elapsed());
        let mut shares: Vec<f64> = before
            .iter()
            .zip(&after)
            .map(|(before, after)| {
                let spent = Duration::from_secs(after - before) / TICKS_PER_SECOND;
                spent.as_secs_f64() / elapsed.as_secs_f64() * 100.0
            })
            .collect();
        shares.sort_by(f64::total_cmp);
        let mut memory: Vec<u64> =
            self.cluster.nodes.iter().map(|node| resident_bytes(node.pid())).collect();
        memory.sort_unstable();
        let (middle, last) = (shares.len() / 2, shares.len() - 1);
        println!(
            "quiet for {:.0} s: {:.2} % of a core (median), {:.2} % (most); {} KB of memory (median), {} KB (most)",
            elapsed.as_secs_f64(),
            shares[middle],
            shares[last],
            memory[middle] / 1000,
            memory[last] / 1000
        );
        assert!(memory[last] <= MOST_MEMORY_BYTES, "a node holds {} bytes", memory[last]);
    }

    /// Does something with each of these nodes, with all at once.
    fn each<T: Send>(&self, nodes: &[usize], act: impl Fn(&Node) -> T + Sync) -> Vec<T> {
        let act = &act;
        thread::scope(|scope| {
            let threads: Vec<_> = nodes
                .iter()
                .map(|&number| scope.spawn(move || act(&self.cluster.nodes[number])))
                .collect();
            let results = threads.into_iter().map(|thread| thread.join());
            results.map(|result| result.expect("it is told above why not")).collect()
        })
    }
}

/// The dataset in a status.
fn dataset(status: &Value) -> &Value {
    let found = array(status, "datasets").iter().find(|dataset| dataset["name"] == DATASET);
    found.unwrap_or_else(|| panic!("no dataset: {status}"))
}

/// The processor time of a process so far, its own and the kernel's for it.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name of the program, in parentheses, may hold anything.
    let (_, fields) = stat.rsplit_once(')').expect("a name");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    [fields[11], fields[12]].map(|ticks| ticks.parse::<u64>().expect("a count")).iter().sum()
}

fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
    let kib = line.trim().trim_end_matches(" kB").parse::<u64>().expect("a count");
    kib * 1024
}
