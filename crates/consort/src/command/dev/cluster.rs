//! The nodes of `consort dev`: processes of this very program, each with a home of its own. None outlives us: each
//! stops when the pipe to it closes, whatever happens here.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::BufReader;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::command::dev::mark;
use crate::command::dev::place::Place;
use crate::command::dev::sample;
use crate::command::path_text;
use crate::control::wire::{self, Request};
use crate::control::{Client, check_home, client};
use crate::error::{Error, Kind};
use crate::json::{self, DatasetState};
use crate::text::{counted, plain};
use crate::ui::Ui;

/// How long a node may take to start, and a dataset to be known everywhere.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one wait of a node may take: longer than any first copy that somebody tries here.
const WAIT_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
/// How often nodes are asked again while they are not equal.
const POLL: Duration = Duration::from_millis(50);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(200);
/// The length of a dataset's name.
const NAME_BYTES: std::ops::RangeInclusive<usize> = 3..=63;
/// What is shown of the log of a node that did not start, in bytes.
const LOG_TAIL_BYTES: usize = 2000;

/// The cluster, running or not yet.
#[derive(Debug)]
pub(crate) struct Cluster {
    place: Place,
    /// Made for us; to be removed too if it is empty in the end.
    made_parent: Option<PathBuf>,
    dataset: String,
    /// The user's directory; otherwise an example is made.
    dir: Option<PathBuf>,
    /// Whether the user's directory is linked, or may be.
    keeps_dir: bool,
    nodes: Vec<Running>,
}

/// A running node.
#[derive(Debug)]
pub(crate) struct Running {
    /// `node-1` and so on.
    pub(crate) name: String,
    /// Its home.
    pub(crate) home: PathBuf,
    /// The directory that it keeps.
    pub(crate) dir: PathBuf,
    /// Where it listens for the others.
    pub(crate) listen: SocketAddr,
    /// How to talk to it.
    pub(crate) client: Client,
    child: Child,
    /// Held: the node stops when it closes.
    _stdin: Option<ChildStdin>,
    /// Held, so that the node never fails to write.
    _stdout: BufReader<ChildStdout>,
}

impl Cluster {
    /// A cluster that keeps `dir`, with everything else in a new directory under `parent`.
    pub(crate) fn new(parent: &Path, dir: Option<PathBuf>) -> Result<Self, Error> {
        // What does not exist yet is inside the directory if the nearest that exists is.
        let nearest = parent.ancestors().find_map(|path| path.canonicalize().ok());
        if let (Some(dir), Some(nearest)) = (&dir, nearest)
            && nearest.starts_with(dir)
        {
            let message = format!("the nodes' homes would be inside {}", dir.display());
            return Err(Error::usage(message).hint("name a place outside of it with --home"));
        }
        let made_parent = (!parent.exists()).then(|| parent.to_path_buf());
        fs::create_dir_all(parent).map_err(|error| Error::io("make", parent, &error))?;
        let parent = parent.canonicalize().map_err(|error| Error::io("use", parent, &error))?;
        let dataset = match &dir {
            Some(dir) => dataset_name(&dir.file_name().unwrap_or_default().to_string_lossy()),
            None => "example".to_string(),
        };
        let place = Place::make(&parent)?;
        Ok(Self { place, made_parent, dataset, dir, keeps_dir: false, nodes: Vec::new() })
    }

    /// Where everything is that will be removed.
    pub(crate) fn root(&self) -> &Path {
        self.place.root()
    }

    /// The dataset's name.
    pub(crate) fn dataset(&self) -> &str {
        &self.dataset
    }

    /// The nodes that run, the one that began first.
    pub(crate) fn nodes(&self) -> &[Running] {
        &self.nodes
    }

    /// Starts so many nodes, as one cluster with one dataset.
    pub(crate) async fn start(&mut self, number: u32, ui: &Ui) -> Result<(), Error> {
        let nodes = counted(number.into(), "node", "nodes");
        ui.say(format_args!(
            "Starting {nodes} under {}",
            plain(&self.root().display().to_string())
        ));
        if let Some(dir) = &self.dir {
            ui.say(format_args!(
                "node-1 works on {} itself, not on a copy: what changes in any node's directory changes there.",
                plain(&dir.display().to_string())
            ));
        }
        self.start_node(1, None).await?;
        let first = self.nodes[0].client.clone();
        let name = self.dataset.clone();
        let _: json::Dataset = first
            .one(Request::CreateDataset {
                name,
                mode: json::Mode::Mesh,
                authority: None,
                on_conflict: json::OnConflict::KeepBoth,
            })
            .await?;
        for number in 2..=number {
            let expires_ms = u64::try_from(START_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
            let invite = Request::Invite { role: json::Role::Writer, expires_ms, uses: 1 };
            let json::Ticket { ticket } = first.one(invite).await?;
            self.start_node(number, Some(&ticket)).await?;
        }
        Ok(())
    }

    /// Links each node's directory.
    pub(crate) async fn link(&mut self) -> Result<(), Error> {
        for node in &self.nodes {
            let known = tokio::time::timeout(START_TIMEOUT, self.knows_dataset(node)).await;
            known.map_err(|_| {
                let message = format!("{} does not hear of the dataset", node.name);
                Error::new(Kind::TimedOut, message)
                    .hint("the machine may be too busy; use fewer --nodes")
            })??;
            let request = Request::Link {
                name: self.dataset.clone(),
                dir: path_text(&node.dir)?,
                read_only: false,
                allow_mass_delete: false,
            };
            let is_users = self.dir.as_ref() == Some(&node.dir);
            // Somebody may interrupt us before the answer has come.
            self.keeps_dir |= is_users;
            let linked: Result<json::Linked, Error> = node.client.one(request).await;
            if is_users {
                self.keeps_dir = linked.is_ok();
            }
            linked?;
            if is_users {
                mark::set(&node.dir)?;
            }
        }
        Ok(())
    }

    /// Returns when all nodes hold the same and their directories show it.
    pub(crate) async fn converge(&self, ui: &Ui) -> Result<(), Error> {
        let mut progress = ui.progress("converging");
        let mut tick = tokio::time::interval(TICK);
        let equal = self.become_equal();
        tokio::pin!(equal);
        loop {
            tokio::select! {
                equal = &mut equal => return equal,
                _ = tick.tick() => {}
            }
            let mut left = (0, 0);
            for node in &self.nodes {
                let dataset = self.status(node).await?;
                left = (left.0 + dataset.pending, left.1 + dataset.pending_bytes);
            }
            progress.set_left(left.0, left.1, "");
        }
    }

    /// Ends all nodes and removes what was made for them; the user's directory stays.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        if let Some(first) = self.nodes.first().filter(|_| self.keeps_dir) {
            // What the link left in the user's directory goes with it. If the node does not answer any more, the
            // directory keeps that, and the next link takes it over.
            let request = Request::Unlink { name: self.dataset.clone() };
            let unlink = first.client.one::<json::Unlinked>(request);
            if !matches!(tokio::time::timeout(STOP_TIMEOUT, unlink).await, Ok(Ok(_))) {
                tracing::warn!("the directory is still marked as linked");
            }
        }
        for node in &self.nodes {
            node.terminate();
        }
        for node in &mut self.nodes {
            if tokio::time::timeout(STOP_TIMEOUT, node.child.wait()).await.is_err() {
                tracing::warn!(node = node.name, "killed, as it did not stop in time");
                node.child.kill().await.map_err(|error| {
                    Error::failed(format!("cannot end {}: {error}", node.name))
                        .hint(format!("end it, then remove {}", self.place.root().display()))
                })?;
            }
        }
        self.nodes.clear();
        let root = self.root();
        fs::remove_dir_all(root).map_err(|error| Error::io("remove", root, &error))?;
        if let Some(parent) = &self.made_parent {
            // Somebody else may have begun to use it.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }

    async fn start_node(&mut self, number: u32, ticket: Option<&str>) -> Result<(), Error> {
        let name = format!("node-{number}");
        let place = self.root().join(&name);
        let home = place.join("home");
        let dir = match &self.dir {
            Some(dir) if number == 1 => dir.clone(),
            _ => place.join(&self.dataset),
        };
        check_home(&home)?;
        fs::create_dir_all(&dir).map_err(|error| Error::io("make", &dir, &error))?;
        if number == 1 && self.dir.is_none() {
            sample::make(&dir).map_err(|error| Error::io("make", &dir, &error))?;
        }
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        match ticket {
            None => drop(consort_node::init(&home, Some(&name))?),
            Some(ticket) => {
                drop(consort_node::join(&home, ticket, Some(&name), Some(listen)).await?);
            }
        }
        let node = Running::spawn(name, home, dir, &place.join("log.txt"), listen).await?;
        self.nodes.push(node);
        Ok(())
    }

    async fn knows_dataset(&self, node: &Running) -> Result<(), Error> {
        loop {
            let datasets: Vec<json::Dataset> = node.client.all(Request::Datasets).await?;
            if datasets.iter().any(|dataset| dataset.name == self.dataset) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn become_equal(&self) -> Result<(), Error> {
        let timeout_ms = u64::try_from(WAIT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        loop {
            for node in &self.nodes {
                let request = Request::Wait { name: self.dataset.clone(), timeout_ms };
                let _: json::Waited = node.client.one(request).await?;
            }
            let mut digests = Vec::new();
            for node in &self.nodes {
                let dataset = self.status(node).await?;
                if dataset.state == DatasetState::Paused {
                    let reason = dataset.reason.unwrap_or_default();
                    return Err(Error::failed(format!("{} has paused: {reason}", node.name))
                        .hint("mend that, and call `consort dev` again"));
                }
                digests.push((dataset.versions, dataset.digest, dataset.pending));
            }
            let settled = digests.iter().all(|(_, _, pending)| *pending == 0);
            if settled && digests.windows(2).all(|pair| pair[0] == pair[1]) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// What the nodes have sent each other so far.
    pub(crate) async fn sent_bytes(&self) -> Result<u64, Error> {
        let mut bytes = 0;
        for node in &self.nodes {
            let request = Request::Status { name: None, watch: false };
            bytes += node.client.one::<json::Status>(request).await?.sent_bytes;
        }
        Ok(bytes)
    }

    async fn status(&self, node: &Running) -> Result<json::DatasetStatus, Error> {
        let request = Request::Status { name: Some(self.dataset.clone()), watch: false };
        let mut status: json::Status = node.client.one(request).await?;
        status.datasets.pop().ok_or_else(|| client::broken(&"it does not have the dataset"))
    }
}

impl Running {
    async fn spawn(
        name: String,
        home: PathBuf,
        dir: PathBuf,
        log: &Path,
        listen: SocketAddr,
    ) -> Result<Self, Error> {
        let failed = |error: &io::Error| {
            Error::failed(format!("cannot start {name}: {error}"))
                .hint("see how many processes and open files this user may have (`ulimit -a`)")
        };
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let stderr = fs::File::create(log).map_err(|error| failed(&error))?;
        let mut child = Command::new(program)
            .arg("--home")
            .arg(&home)
            .args(["--json", "up", "--exit-with-parent", "--listen"])
            .arg(listen.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Out of our process group: Ctrl-C is for us to hear, and then we end the nodes in good order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(&error))?;
        let stdin = child.stdin.take();
        let mut stdout =
            BufReader::new(child.stdout.take().expect("stdout is a pipe, as asked for above"));
        let mut line = Vec::new();
        let announced = wire::read_line(&mut stdout, &mut line, wire::MAX_ANSWER_BYTES);
        let announced = tokio::time::timeout(START_TIMEOUT, announced).await;
        let up: Option<json::Up> = match announced {
            Ok(Ok(true)) => serde_json::from_slice(&line).ok(),
            _ => None,
        };
        let Some(up) = up else {
            let log = fs::read(log).unwrap_or_default();
            let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
            let tail = String::from_utf8_lossy(tail).trim().to_string();
            return Err(Error::failed(format!("{name} did not start; it said:\n{tail}"))
                .hint("mend that, and call `consort dev` again"));
        };
        let client = Client::new(&home);
        Ok(Self {
            name,
            home,
            dir,
            listen: up.listen,
            client,
            child,
            _stdin: stdin,
            _stdout: stdout,
        })
    }

    /// Asks the process to stop.
    fn terminate(&self) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself, which is as good.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// A dataset's name that is as close to a directory's as datasets' names may be.
fn dataset_name(dir: &str) -> String {
    let mut name = String::new();
    for c in dir.chars() {
        match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9') => name.push(c),
            _ if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            _ => {}
        }
    }
    name.truncate(*NAME_BYTES.end());
    match name.trim_end_matches('-') {
        "" => "dev".to_string(),
        short if short.len() < *NAME_BYTES.start() => format!("{short}-dev"),
        name => name.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dataset_is_named_after_its_directory_as_far_as_possible() {
        for (dir, name) in [
            ("photos", "photos"),
            ("My Photos (2026)", "my-photos-2026"),
            ("--x--", "x-dev"),
            ("日本", "dev"),
            ("", "dev"),
            ("ab", "ab-dev"),
        ] {
            assert_eq!(dataset_name(dir), name, "{dir}");
        }
        assert_eq!(dataset_name(&"x".repeat(100)).len(), 63);
    }
}
