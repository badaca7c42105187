//! Consort as its users run it: two nodes as processes with their own homes, driven through the command line.
//!
//! Nothing is configured but names and addresses. The commands that ask the nodes do not count as what the nodes use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::failure::Failure;
use crate::machine::{Machine, Machines, ask};
use crate::tool::Driver;

/// The dataset of all cases.
const DATASET: &str = "bench";

const PORT: u16 = 7700;

/// How long the work of a case may take.
const WAIT: &str = "24h";

#[derive(Debug)]
pub(crate) struct Consort {
    binary: PathBuf,
}

impl Driver for Consort {
    /// Two connected nodes with an empty dataset and no directories.
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        self.make_cluster(&mut [&mut machines.a, &mut machines.b])?;
        self.until_met(machines)
    }

    fn link(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        [&machines.a, &machines.b].into_iter().try_for_each(|machine| self.link_one(machine))
    }

    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        self.wait(&machines.b)
    }

    fn stop(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        machines.stop()
    }

    /// Returns when the nodes have met again and the source, too, has found that it holds everything.
    fn start_again(&mut self, machines: &mut Machines) -> Result<(), Failure> {
        self.up(&mut machines.a)?;
        self.up(&mut machines.b)?;
        self.until_met(machines)?;
        self.wait(&machines.a)
    }
}

impl Consort {
    pub(crate) fn new(binary: &Path) -> Self {
        Self { binary: binary.to_path_buf() }
    }

    /// Nodes with an empty dataset and no directories. The first has invited the others.
    pub(crate) fn make_cluster(&self, machines: &mut [&mut Machine]) -> Result<(), Failure> {
        let Some((first, others)) = machines.split_first_mut() else { return Ok(()) };
        self.ask(first, &["init", "--name", &first.name])?;
        self.up(first)?;
        self.ask(first, &["dataset", "create", DATASET])?;
        for other in others {
            let ticket = self.ask(first, &["invite"])?;
            self.ask(other, &["join", ticket.trim(), "--name", &other.name])?;
            self.up(other)?;
            other.until("a node to know the dataset", |other| {
                Ok(self.ask(other, &["dataset", "show", DATASET]).is_ok())
            })?;
        }
        Ok(())
    }

    /// Tells one of them its directory.
    pub(crate) fn link_one(&self, machine: &Machine) -> Result<(), Failure> {
        self.ask(machine, &["link", DATASET, machine.dir_text()?]).map(drop)
    }

    /// Returns when a node knows so many others, and is connected to them.
    pub(crate) fn until_connected(
        &self,
        machine: &mut Machine,
        others: usize,
    ) -> Result<(), Failure> {
        machine.until("the nodes to meet", |machine| {
            let peers = self.status(machine)?.peers;
            Ok(peers.iter().filter(|peer| peer.connected).count() >= others)
        })
    }

    fn up(&self, machine: &mut Machine) -> Result<(), Failure> {
        let mut up = self.command(machine);
        up.args(["up", "--listen", &format!("{}:{PORT}", machine.address())]);
        machine.start("consort", up)?;
        machine.until("a node to be up", |machine| Ok(self.status(machine).is_ok()))
    }

    fn until_met(&self, machines: &mut Machines) -> Result<(), Failure> {
        self.until_connected(&mut machines.a, 1)?;
        self.until_connected(&mut machines.b, 1)
    }

    /// Returns when this node holds everything that the others hold, and its directory shows it.
    pub(crate) fn wait(&self, machine: &Machine) -> Result<(), Failure> {
        self.ask(machine, &["wait", DATASET, "--timeout", WAIT]).map(drop)
    }

    fn status(&self, machine: &Machine) -> Result<Status, Failure> {
        let text = self.ask(machine, &["status", "--json"])?;
        serde_json::from_str(&text).map_err(|error| Failure::new(format!("{error} in {text}")))
    }

    fn ask(&self, machine: &Machine, args: &[&str]) -> Result<String, Failure> {
        let mut command = self.command(machine);
        command.args(args);
        ask(command)
    }

    fn command(&self, machine: &Machine) -> Command {
        let mut command = machine.command(&self.binary);
        command.arg("--home").arg(machine.home.join("consort"));
        command
    }
}

/// What of its JSON is used here.
#[derive(Deserialize)]
struct Status {
    peers: Vec<Peer>,
}

#[derive(Deserialize)]
struct Peer {
    connected: bool,
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
