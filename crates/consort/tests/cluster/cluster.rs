//! Nodes as child processes: each has a home, a directory, an address and a log of its own below one temporary
//! directory. They end with the test, whatever happens to it, and a test that fails shows the ends of their logs.
//!
//! Nothing here sleeps for a fixed time: [`until`] polls a condition, with a bound.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::network::{Network, Place};
use crate::random::from_environment;
use crate::tree;

/// How many seconds anything may take before the test gives up. Far beyond what it takes: a slow machine is no failure.
const PATIENCE_SECONDS: u64 = 60;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Bytes of each log that a failing test shows.
const LOG_TAIL_BYTES: usize = 4096;

/// What nodes log: what tests wait for, too.
const LOG: &str = "info,consort_node::folder::apply=debug";

/// The most nodes that are all connected with each other.
const MAX_FULL_MESH: usize = 9;

/// The dataset of the tests that need only one.
pub(crate) const DATASET: &str = "photos";

/// Some nodes of one cluster. The first one is the one that made it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    temp: TempDir,
}

/// One node: its home and directory stay when its process ends.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    /// Its linked directory, if it has one.
    pub(crate) dir: PathBuf,
    /// Where others reach it: chosen at the first start, kept from then on.
    pub(crate) listen: SocketAddr,
    /// Where it runs, if that is not simply on this machine.
    place: Option<Place>,
    log: PathBuf,
    process: Option<Child>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    command: String,
}

impl Cluster {
    /// A cluster of `count` running nodes, connected with each other, without a dataset.
    pub(crate) fn new(count: usize) -> Self {
        let mut cluster = Self::empty();
        let first = cluster.add_node();
        first.run(["init", "--name", &first.name]).expect_done();
        first.start();
        for _ in 1..count {
            cluster.join_another("writer");
        }
        cluster.expect_connected();
        cluster
    }

    /// A cluster with a running node in each place of a network, without a dataset.
    pub(crate) fn across(network: &Network) -> Self {
        let mut cluster = Self::empty();
        for place in &network.places {
            let node = cluster.add_node();
            node.listen = place.listen;
            node.place = Some(place.clone());
        }
        let (first, others) = cluster.nodes.split_first_mut().expect("places");
        first.run(["init", "--name", &first.name]).expect_done();
        first.start();
        let ticket = first.invite(&["--uses", &others.len().to_string()]);
        for node in others {
            let listen = node.listen.to_string();
            node.run(["join", &ticket, "--name", &node.name, "--listen", &listen]).expect_done();
            node.start();
        }
        cluster.expect_connected();
        cluster
    }

    fn empty() -> Self {
        let temp =
            tempfile::Builder::new().prefix("consort-").tempdir().expect("a temporary place");
        Self { nodes: Vec::new(), temp }
    }

    /// A cluster of `count` nodes whose directories are linked to [`DATASET`]; they are empty.
    pub(crate) fn linked(count: usize) -> Self {
        Self::linked_under(count, "keep-both")
    }

    /// The same with a conflict policy.
    pub(crate) fn linked_under(count: usize, policy: &str) -> Self {
        let cluster = Self::new(count);
        let create = ["dataset", "create", DATASET, "--on-conflict", policy];
        cluster.nodes[0].run(create).expect_done();
        for node in &cluster.nodes {
            node.link();
        }
        cluster.settle();
        cluster
    }

    /// Adds a node that has neither identity nor store yet.
    pub(crate) fn add_node(&mut self) -> &mut Node {
        let name = name_of(self.nodes.len());
        let place = self.temp.path().join(&name);
        let dir = place.join("dir");
        fs::create_dir_all(&dir).expect("a directory for the node");
        self.nodes.push(Node {
            home: place.join("home"),
            log: place.join("log"),
            dir,
            name,
            listen: own_address(),
            place: None,
            process: None,
        });
        self.nodes.last_mut().expect("just added")
    }

    /// Invites, joins and starts one more node, and returns its place in `nodes`.
    pub(crate) fn join_another(&mut self, role: &str) -> usize {
        let ticket = self.nodes[0].invite(&["--role", role]);
        let node = self.add_node();
        node.run(["join", &ticket, "--name", &node.name]).expect_done();
        node.start();
        self.nodes.len() - 1
    }

    /// A place beside the homes and directories, on the same file system.
    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Waits until every running node is connected with every other one; if there are too many for that, until each sees
    /// that the others are there.
    pub(crate) fn expect_connected(&self) {
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let is_full = self.nodes.len() <= MAX_FULL_MESH;
        for node in &running {
            until(&format!("{} to be connected with all others", node.name), || {
                let status = node.status();
                let connected = |name: &str| {
                    array(&status, "peers").iter().find(|peer| peer["name"] == name).is_some_and(
                        |peer| match is_full {
                            true => peer["neighbour"] == true,
                            false => peer["presence"] == "alive",
                        },
                    )
                };
                running.iter().all(|other| other.name == node.name || connected(&other.name))
            });
        }
    }

    /// Waits until all linked directories of running nodes are equal and every node says that it is in sync.
    /// Equality is judged by reading the directories, not by asking.
    pub(crate) fn settle(&self) {
        self.expect_connected();
        let running: Vec<&Node> = self.nodes.iter().filter(|node| node.is_running()).collect();
        let started = Instant::now();
        loop {
            for node in &running {
                node.wait();
            }
            let differences = differences_between(&running);
            let unsettled = running.iter().find(|node| node.dataset()["state"] != "in-sync");
            match (differences.is_empty(), unsettled) {
                (true, None) => return,
                (true, Some(node)) if started.elapsed() > patience() => {
                    panic!("all directories are equal, but {} says {}", node.name, node.dataset());
                }
                (false, _) if started.elapsed() > patience() => {
                    panic!("the directories do not become equal:\n{}", differences.join("\n"));
                }
                _ => thread::sleep(POLL),
            }
        }
    }

    /// Stops all nodes in good order and verifies their stores.
    pub(crate) fn stop_and_check(&mut self) {
        for node in &mut self.nodes {
            node.stop();
        }
        for node in &self.nodes {
            node.run(["doctor", "--deep"]).expect_done();
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if thread::panicking() {
            if std::env::var_os("CONSORT_TEST_KEEP").is_some() {
                self.temp.disable_cleanup(true);
                eprintln!("--- homes and directories are kept in {}", self.temp.path().display());
            }
            for node in &self.nodes {
                eprintln!("--- the end of the log of {}:\n{}", node.name, tail(&node.log));
            }
        }
    }
}

impl Node {
    /// Runs `consort` with this node's home until it ends.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Outcome {
        self.run_with_input(args, b"")
    }

    /// Runs `consort` with this node's home and `input` on stdin until it ends.
    pub(crate) fn run_with_input<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Outcome {
        let mut command = self.command();
        command.args(args);
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("piped");
        let input = input.to_vec();
        // A command that does not read its input closes it early, which is no failure of the command.
        let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
        let pid = child.id();
        let ended = thread::spawn(move || child.wait_with_output());
        let started = Instant::now();
        while !ended.is_finished() {
            if started.elapsed() > 2 * patience() {
                signal(pid, Signal::KILL);
                panic!("{shown} did not end");
            }
            thread::sleep(Duration::from_millis(1));
        }
        feeder.join().expect("it only writes");
        let output = ended.join().expect("it only waits").expect("it can be waited for");
        Outcome {
            status: output.status,
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command: shown,
        }
    }

    /// Starts the node and waits until it says that it is up.
    pub(crate) fn start(&mut self) {
        if let Err(outcome) = self.try_start() {
            panic!("{} did not start: {}", self.name, outcome);
        }
    }

    /// Starts the node; if its process ends instead, the end of its log says why.
    pub(crate) fn try_start(&mut self) -> Result<(), String> {
        self.launch();
        let child = self.process.as_mut().expect("it was just launched");
        let announced = self.home.with_extension("up");
        let up = until("a node to be up", || {
            if let Some(status) = child.try_wait().expect("it can be waited for") {
                return Some(Err(status));
            }
            let text = fs::read_to_string(&announced).unwrap_or_default();
            text.ends_with('\n').then(|| Ok(serde_json::from_str::<Value>(&text).expect("JSON")))
        });
        match up {
            Ok(up) => {
                self.listen = text(&up["listen"]).parse().expect("an address");
                Ok(())
            }
            Err(status) => {
                self.process = None;
                Err(format!("{status}\n{}", tail(&self.log)))
            }
        }
    }

    /// Starts the node, and does not wait for anything.
    pub(crate) fn launch(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let announced = self.home.with_extension("up");
        let log = File::options().create(true).append(true).open(&self.log).expect("a log");
        let child = self
            .command()
            // The node ends when this process does, even if that is killed.
            .args(["--json", "--log", LOG, "up", "--exit-with-parent", "--listen"])
            .arg(self.listen.to_string())
            .stdin(Stdio::piped())
            .stdout(File::create(&announced).expect("a file for what the node announces"))
            .stderr(log)
            .spawn()
            .expect("the binary runs");
        self.process = Some(child);
    }

    /// Ends the node as its user would.
    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.process.take() else { return };
        signal(child.id(), Signal::TERM);
        let started = Instant::now();
        let status = loop {
            match child.try_wait().expect("it can be waited for") {
                Some(status) => break status,
                None if started.elapsed() > patience() => {
                    // The process is put back so that it is killed with the others.
                    self.process = Some(child);
                    panic!("{} does not stop", self.name);
                }
                None => thread::sleep(POLL),
            }
        };
        assert!(status.success(), "{} stopped with {status}\n{}", self.name, tail(&self.log));
    }

    /// Ends the node as a power failure of its process would (`kill -9`).
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.process.take() {
            // It may have ended by itself; then there is nothing left to do.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills the node and starts it again before the system may have put away what the killed process had.
    pub(crate) fn kill_and_start(&mut self) {
        let mut killed = self.process.take().expect("it runs");
        killed.kill().expect("it can be killed");
        self.start();
        killed.wait().expect("it can be waited for");
    }

    pub(crate) fn is_running(&self) -> bool {
        self.process.is_some()
    }

    /// The process, while it runs.
    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// Links this node's directory to [`DATASET`], as soon as the node knows of it.
    pub(crate) fn link(&self) {
        until(&format!("{} to know the dataset", self.name), || {
            self.run(["dataset", "show", DATASET]).status.success()
        });
        self.run([OsStr::new("link"), OsStr::new(DATASET), self.dir.as_os_str()]).expect_done();
    }

    /// A ticket.
    pub(crate) fn invite(&self, args: &[&str]) -> String {
        let words = ["invite"].iter().chain(args);
        self.run(words).expect_done().text().trim().to_string()
    }

    /// Stores `content`; it is durable when this returns.
    pub(crate) fn put(&self, key: &str, content: &[u8]) -> Outcome {
        self.run_with_input(["put", DATASET, key, "-"], content)
    }

    /// What `key` holds.
    pub(crate) fn get(&self, key: &str) -> Outcome {
        self.run(["get", DATASET, key])
    }

    /// Waits until this node and its directory hold all that reachable peers hold.
    pub(crate) fn wait(&self) {
        let timeout = format!("{}s", patience().as_secs());
        self.run(["wait", DATASET, "--timeout", &timeout]).expect_done();
    }

    pub(crate) fn status(&self) -> Value {
        self.run(["status", "--json"]).expect_done().json()
    }

    /// How [`DATASET`] stands on this node.
    pub(crate) fn dataset(&self) -> Value {
        let status = self.status();
        let found = array(&status, "datasets").iter().find(|dataset| dataset["name"] == DATASET);
        found.unwrap_or_else(|| panic!("{} has no dataset: {status}", self.name)).clone()
    }

    /// Waits until the state of [`DATASET`] is `state`, and returns its whole status.
    pub(crate) fn until_state(&self, state: &str) -> Value {
        let mut last = Value::Null;
        until(&format!("{} to be {state}", self.name), || {
            last = self.dataset();
            last["state"] == state
        });
        last
    }

    /// Bytes at the sockets of this process, both ways.
    pub(crate) fn traffic(&self) -> u64 {
        let status = self.status();
        number(&status["sent_bytes"]) + number(&status["received_bytes"])
    }

    /// What it has logged since its home was made.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("a log")).into_owned()
    }

    /// A path in the linked directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn command(&self) -> Command {
        let program = env!("CARGO_BIN_EXE_consort");
        let mut command = match &self.place {
            Some(place) => place.command(program),
            None => Command::new(program),
        };
        command.arg("--home").arg(&self.home).env_remove("CONSORT_HOME").env_remove("CONSORT_LOG");
        command
    }
}

impl Outcome {
    /// The command did what it was asked.
    pub(crate) fn expect_done(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// The command failed with this exit code and an error that says all of `words`, and what to do.
    pub(crate) fn expect_failure(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        let is_told = self.stderr.contains("error:");
        assert!(!is_told || self.stderr.contains("hint:"), "it does not say what to do: {self}");
        for word in words {
            assert!(self.stderr.to_lowercase().contains(word), "it does not say {word:?}: {self}");
        }
        self
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.stdout).expect("text")
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, stdout, stderr, command } = self;
        write!(f, "{command}\nended with {status}\n{}{stderr}", String::from_utf8_lossy(stdout))
    }
}

/// What a condition answers: `bool`, or `Option` with something found.
pub(crate) trait Answer {
    type Found;

    fn found(self) -> Option<Self::Found>;
}

impl Answer for bool {
    type Found = ();

    fn found(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Answer for Option<T> {
    type Found = T;

    fn found(self) -> Self {
        self
    }
}

/// How long anything may take before the test gives up.
pub(crate) fn patience() -> Duration {
    Duration::from_secs(from_environment("CONSORT_TEST_PATIENCE", PATIENCE_SECONDS))
}

/// Waits until `condition` holds.
pub(crate) fn until<A: Answer>(what: &str, condition: impl FnMut() -> A) -> A::Found {
    within(patience(), what, condition)
}

/// The same for what takes its time.
pub(crate) fn within<A: Answer>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> A,
) -> A::Found {
    let started = Instant::now();
    loop {
        if let Some(found) = condition().found() {
            return found;
        }
        assert!(started.elapsed() < patience, "waited too long for {what}");
        thread::sleep(POLL);
    }
}

/// A list in a JSON document, empty if there is none.
pub(crate) fn array<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().map_or(&[], Vec::as_slice)
}

/// A number in a JSON document.
pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}

/// A string in a JSON document.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a text"))
}

/// The differences between the directories of these nodes, all compared with the first.
fn differences_between(nodes: &[&Node]) -> Vec<String> {
    let Some((first, others)) = nodes.split_first() else { return Vec::new() };
    let expected = tree::read(&first.dir);
    others
        .iter()
        .flat_map(|node| {
            let found = tree::differences(&expected, &tree::read(&node.dir));
            found.into_iter().map(|line| format!("{} and {}: {line}", first.name, node.name))
        })
        .collect()
}

/// `a` to `z`, then `aa` and so on.
fn name_of(number: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(number % 26).expect("below 26"));
    match number / 26 {
        0 => letter.to_string(),
        more => format!("{}{letter}", name_of(more - 1)),
    }
}

/// A loopback address of this node's own, so that no connection of anybody else takes its port while it is down.
fn own_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let [high, low] = NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let process = std::process::id().to_le_bytes()[0];
    SocketAddr::from(([127, process.max(1), high, low], 0))
}

fn signal(pid: u32, signal: Signal) {
    // A process that has ended meanwhile needs no signal.
    let _ = kill_process(process_id(pid), signal);
}

/// The same in the system's terms.
pub(crate) fn process_id(pid: u32) -> Pid {
    i32::try_from(pid).ok().and_then(Pid::from_raw).expect("a process id")
}

fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LOG_TAIL_BYTES)..]).into_owned()
}
