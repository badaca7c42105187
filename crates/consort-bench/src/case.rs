//! What is measured: one file per kind of work. Here is what they share: the measurements of a run, and the table that
//! is made of several.

mod changes;
mod copy;
mod formats;
mod latency;
mod reconcile;
mod unchanged;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;

use crate::consort::Spent;
use crate::failure::Failure;
use crate::rsync::Copied;
use crate::table::{Cell, Table, median};
use crate::verify;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// The first copy of 2 GiB in 8 files
    Copy,
    /// The first copy of 50,000 files of 4 KiB
    SmallFiles,
    /// Both nodes start again, and nothing has changed
    Unchanged,
    /// 1 KiB is inserted at the head of 1 GiB
    Insert,
    /// A directory of 25,000 files is renamed
    Rename,
    /// One small change among 50,000 files, until it is complete on the other side
    Latency,
    /// The first copy of 1,000,000 small files
    Memory,
    /// 1 to 100,000 differences among 1,000,000 versions are found, in memory
    Reconcile,
    /// Members of archives, tensors and lines change within 256 MiB, in memory
    Formats,
}

/// How and where to measure.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The program `consort`.
    pub(crate) binary: PathBuf,
    /// A directory for the data.
    pub(crate) place: PathBuf,
    pub(crate) against_rsync: bool,
    /// How often, if that was asked.
    pub(crate) runs: Option<usize>,
    /// How many files, if that was asked.
    pub(crate) files: Option<usize>,
}

/// What one run of one tool took.
#[derive(Clone, Copy, Debug)]
struct Run {
    wall: Duration,
    cpu: Duration,
    wire: u64,
    /// Peaks of the side that has the data, and of the side that gets it.
    memory: (u64, u64),
    read: Option<u64>,
    verified: bool,
}

/// The runs of one tool.
#[derive(Debug)]
struct Runs {
    tool: &'static str,
    runs: Vec<Run>,
}

impl Bench {
    pub(crate) fn run(&self, case: Case) -> Result<Table, Failure> {
        match case {
            Case::Copy => copy::large_files(self),
            Case::SmallFiles => copy::small_files(self),
            Case::Memory => copy::a_million_files(self),
            Case::Unchanged => unchanged::unchanged(self),
            Case::Insert => changes::insert(self),
            Case::Rename => changes::rename(self),
            Case::Latency => latency::latency(self),
            Case::Reconcile => reconcile::reconcile(self),
            Case::Formats => formats::formats(self),
        }
    }

    /// A new directory for the data.
    fn dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.place.join(name);
        fs::create_dir_all(&dir).map_err(|error| Failure::io("make a directory", error))?;
        Ok(dir)
    }

    fn tools(&self) -> Vec<Runs> {
        let names: &[_] =
            if self.against_rsync { &["consort", "rsync", "rsync + sync"] } else { &["consort"] };
        names.iter().map(|tool| Runs { tool, runs: Vec::new() }).collect()
    }
}

impl Run {
    fn of_consort(wall: Duration, spent: Spent, verified: bool) -> Self {
        let Spent { cpu, wire, memory, read } = spent;
        Self { wall, cpu, wire, memory, read: Some(read), verified }
    }

    /// Two results: rsync ends before the disk has everything, and Consort after.
    fn of_rsync(copied: Copied, verified: bool) -> [Self; 2] {
        let Copied { wall, wall_synced, cpu, wire, memory } = copied;
        [wall, wall_synced].map(|wall| Self { wall, cpu, wire, memory, read: None, verified })
    }
}

/// Adds a run of Consort, and both results of rsync.
fn add(tools: &mut [Runs], consort: Run, rsync: Option<[Run; 2]>) {
    let runs = [consort].into_iter().chain(rsync.into_iter().flatten());
    for (tool, run) in tools.iter_mut().zip(runs) {
        tool.runs.push(run);
    }
}

/// One row for each tool, with medians.
fn table(title: String, tools: &[Runs]) -> Table {
    let mut table = Table::new(
        title,
        &[
            "tool",
            "runs",
            "wall",
            "fastest",
            "slowest",
            "cpu",
            "wire",
            "memory source",
            "memory target",
            "read",
            "wall vs rsync",
            "verified",
        ],
    );
    let walls = |runs: &Runs| median(runs.runs.iter().map(|run| run.wall));
    let rsync = tools.iter().find(|runs| runs.tool == "rsync").and_then(walls);
    for runs in tools {
        let all = &runs.runs;
        let time = |time: Option<Duration>| time.map_or(Cell::Nothing, Cell::Seconds);
        let bytes = |bytes: Option<u64>| bytes.map_or(Cell::Nothing, Cell::Bytes);
        let ratio =
            walls(runs).zip(rsync).map(|(ours, rsync)| ours.as_secs_f64() / rsync.as_secs_f64());
        table.row(vec![
            Cell::Text(runs.tool.to_string()),
            Cell::Count(all.len()),
            time(walls(runs)),
            time(all.iter().map(|run| run.wall).min()),
            time(all.iter().map(|run| run.wall).max()),
            time(median(all.iter().map(|run| run.cpu))),
            bytes(median(all.iter().map(|run| run.wire))),
            bytes(median(all.iter().map(|run| run.memory.0))),
            bytes(median(all.iter().map(|run| run.memory.1))),
            bytes(median(all.iter().filter_map(|run| run.read))),
            ratio.map_or(Cell::Nothing, Cell::Ratio),
            Cell::Verified(all.iter().all(|run| run.verified)),
        ]);
    }
    table.note(
        "Medians. Wire: bytes at the socket, both ways. Memory: peak resident, of all processes of that side. \
         Read: from files, pipes and sockets, cached or not. The times of consort include that everything is on \
         the disk; so do those of \"rsync + sync\". Verified: both directories were read and compared.",
    );
    table
}

/// Whether two directories are equal; says what differs.
fn is_equal(source: &Path, target: &Path) -> Result<bool, Failure> {
    let found = verify::difference(source, target)
        .map_err(|error| Failure::io("read both directories", error))?;
    if let Some(found) = &found {
        eprintln!("not equal: {found}");
    }
    Ok(found.is_none())
}

/// Writes out what others have left to be written, so that nobody waits for somebody else's data.
fn settle_disk() {
    rustix::fs::sync();
}

/// Removes a directory that is not needed any more, with all that is in it.
fn remove(dir: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}
