//! Consort as its users run it: two nodes as processes with their own homes, driven through the command line.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;

use crate::failure::Failure;
use crate::process::{self, Usage};

/// The dataset of all cases.
const DATASET: &str = "bench";

/// How long nodes may take to start, to meet and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the work of a case may take.
const WAIT: &str = "24h";

/// How often a condition is looked at that is not part of what is measured.
const POLL: Duration = Duration::from_millis(2);

/// Two nodes of one cluster. Their processes end with this.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) a: Node,
    pub(crate) b: Node,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    binary: PathBuf,
    home: PathBuf,
    listen: SocketAddr,
    process: Option<Child>,
}

/// What both nodes have used, or used in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Processor time of both nodes. That of the commands that ask them does not count.
    pub(crate) cpu: Duration,
    /// Bytes that both nodes have sent, which are all that went over the wire.
    pub(crate) wire: u64,
    /// The peak of each node, in bytes.
    pub(crate) memory: (u64, u64),
    /// Bytes that both nodes have read from files, pipes and sockets.
    pub(crate) read: u64,
}

impl Spent {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            wire: self.wire - before.wire,
            read: self.read.saturating_sub(before.read),
            memory: self.memory,
        }
    }
}

/// The program that is measured: as asked, or else built beside this one, if cargo runs us, so that it is never old.
pub(crate) fn binary(asked: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = asked {
        return fs::canonicalize(path)
            .map_err(|error| Failure::io(format!("use {}", path.display()), error));
    }
    if let Some(cargo) = std::env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.args(["build", "--quiet", "--package", "consort", "--bin", "consort"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let status = build.status().map_err(|error| Failure::io("run cargo", error))?;
        if !status.success() {
            return Err(Failure::new("consort cannot be built; cargo says why above"));
        }
    }
    let program = std::env::current_exe().map_err(|error| Failure::io("find myself", error))?;
    let beside = program.with_file_name("consort");
    if !beside.is_file() {
        return Err(Failure::new(format!(
            "there is no {}; run `cargo build --release -p consort`, or name it with --consort",
            beside.display()
        )));
    }
    Ok(beside)
}

impl Pair {
    /// Two connected nodes with an empty dataset and no directories, which keep their homes below `place`.
    pub(crate) fn start(binary: &Path, place: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(place).map_err(|error| Failure::io("make the homes", error))?;
        let mut pair =
            Self { a: Node::new(binary, &place.join("a")), b: Node::new(binary, &place.join("b")) };
        pair.a.run(&["init", "--name", "a"])?;
        pair.a.start()?;
        let ticket = pair.a.run(&["invite"])?;
        pair.b.run(&["join", ticket.trim(), "--name", "b"])?;
        pair.b.start()?;
        pair.a.run(&["dataset", "create", DATASET])?;
        until("b to know the dataset", || Ok(pair.b.run(&["dataset", "show", DATASET]).is_ok()))?;
        pair.meet()?;
        Ok(pair)
    }

    /// Links a directory on each node.
    pub(crate) fn link(&self, a: &Path, b: &Path) -> Result<(), Failure> {
        self.a.link(a)?;
        self.b.link(b)
    }

    /// Returns when both nodes hold everything and their directories show it.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        self.b.wait()?;
        self.a.wait()
    }

    /// Ends both processes in good order, and starts them again; returns when they are connected.
    pub(crate) fn start_again(&mut self) -> Result<(), Failure> {
        self.a.start()?;
        self.b.start()?;
        self.meet()
    }

    /// Ends both processes in good order.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        self.a.stop()?;
        self.b.stop()
    }

    /// What both nodes have used since they were started.
    pub(crate) fn spent(&self) -> Result<Spent, Failure> {
        let (a, b) = (self.a.usage()?, self.b.usage()?);
        Ok(Spent {
            cpu: a.cpu + b.cpu,
            wire: self.a.sent()? + self.b.sent()?,
            memory: (a.peak_memory, b.peak_memory),
            read: a.read + b.read,
        })
    }

    fn meet(&self) -> Result<(), Failure> {
        until("the nodes to meet", || {
            let (a, b) = (self.a.status()?, self.b.status()?);
            Ok([a, b].iter().all(|status| status.peers.iter().any(|peer| peer.connected)))
        })
    }
}

impl Node {
    fn new(binary: &Path, home: &Path) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { binary: binary.to_path_buf(), home: home.to_path_buf(), listen, process: None }
    }

    /// Returns when this node holds everything that the other holds and its directory shows it.
    pub(crate) fn wait(&self) -> Result<(), Failure> {
        self.run(&["wait", DATASET, "--timeout", WAIT]).map(drop)
    }

    fn link(&self, dir: &Path) -> Result<(), Failure> {
        let dir = dir.to_str().ok_or_else(|| Failure::new("the path of --dir is not UTF-8"))?;
        self.run(&["link", DATASET, dir]).map(drop)
    }

    fn start(&mut self) -> Result<(), Failure> {
        let announced = self.home.with_extension("up");
        let log_path = self.home.with_extension("log");
        let make =
            |path: &Path| File::create(path).map_err(|error| Failure::io("make a log", error));
        let child = self
            .command()
            // The node ends when this process does, even if that is killed.
            .args(["--json", "up", "--exit-with-parent", "--listen"])
            .arg(self.listen.to_string())
            .stdin(Stdio::piped())
            .stdout(make(&announced)?)
            .stderr(make(&log_path)?)
            .spawn()
            .map_err(|error| Failure::io("start consort", error))?;
        let child = self.process.insert(child);
        let mut text = String::new();
        until("a node to be up", || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = fs::read_to_string(&log_path).unwrap_or_default();
                return Err(Failure::new(format!("consort up ended with {status}: {log}")));
            }
            text = fs::read_to_string(&announced).unwrap_or_default();
            Ok(text.ends_with('\n'))
        })?;
        let up: Up = parse(&text)?;
        self.listen = up.listen;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Failure> {
        let Some(child) = &mut self.process else { return Ok(()) };
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| Failure::new("a process without an id"))?;
        kill_process(pid, Signal::TERM).map_err(|error| Failure::io("stop a node", error))?;
        until("a node to stop", || {
            child
                .try_wait()
                .map(|status| status.is_some())
                .map_err(|error| Failure::io("wait", error))
        })?;
        self.process = None;
        Ok(())
    }

    fn usage(&self) -> Result<Usage, Failure> {
        let process = self.process.as_ref().ok_or_else(|| Failure::new("a node does not run"))?;
        process::usage(process.id())
    }

    fn sent(&self) -> Result<u64, Failure> {
        Ok(self.status()?.sent_bytes)
    }

    fn status(&self) -> Result<Status, Failure> {
        parse(&self.run(&["status", "--json"])?)
    }

    fn run(&self, args: &[&str]) -> Result<String, Failure> {
        let mut child = self
            .command()
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::io("run consort", error))?;
        let mut text = String::new();
        let mut stdout = child.stdout.take().expect("piped");
        stdout.read_to_string(&mut text).map_err(|error| Failure::io("read an answer", error))?;
        let output = child.wait_with_output().map_err(|error| Failure::io("wait", error))?;
        if output.status.success() {
            return Ok(text);
        }
        let errors = String::from_utf8_lossy(&output.stderr);
        Err(Failure::new(format!("consort {} failed: {errors}", args.join(" "))))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--home").arg(&self.home).env_remove("CONSORT_LOG");
        command
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // It may have ended by itself.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// What of its JSON is used here.
#[derive(Deserialize)]
struct Up {
    listen: SocketAddr,
}

#[derive(Deserialize)]
struct Status {
    sent_bytes: u64,
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    connected: bool,
}

fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::new(format!("{error} in {text}")))
}

fn until(what: &str, mut condition: impl FnMut() -> Result<bool, Failure>) -> Result<(), Failure> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > PATIENCE {
            return Err(Failure::new(format!("waited too long for {what}")));
        }
        thread::sleep(POLL);
    }
    Ok(())
}
