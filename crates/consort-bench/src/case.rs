//! What is measured: one file per kind of work, written once for all tools. Here is what they share: the measurements
//! of a run, and the table that is made of several.

mod changes;
mod copy;
mod fan_out;
mod formats;
mod latency;
mod reconcile;
mod unchanged;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::failure::Failure;
use crate::machine::Spent;
use crate::table::{Bar, Cell, Table, median};
use crate::tool::{Pair, Tool};
use crate::verify;

/// How much memory is made ready before a run, if so much is free: twice what the cases write.
const TOUCHED_BYTES: usize = 4 << 30;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// The first copy of 2 GiB in 8 files
    Copy,
    /// The first copy of 50,000 files of 4 KiB
    SmallFiles,
    /// Nothing has changed
    Unchanged,
    /// Both sides start again, and nothing has changed
    Restart,
    /// 100 of 50,000 files of 4 KiB are changed
    Changed,
    /// 1 KiB is inserted at the head of 1 GiB
    Insert,
    /// 1 MiB is appended to each of 8 files of 256 MiB
    Append,
    /// A directory of 25,000 files is renamed
    Rename,
    /// A file becomes another version of it: those of --versions, in turn
    Replaced,
    /// One small change among 50,000 files, until it is complete on the other side
    Latency,
    /// The first copy of 1,000,000 small files
    Memory,
    /// The first copy of 512 MiB to 1 to 8 nodes, with every link at 200 Mbit/s; one of them is killed
    FanOut,
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
    /// What else to measure.
    pub(crate) against: Vec<Tool>,
    /// How often, if that was asked.
    pub(crate) runs: Option<usize>,
    /// How many files, if that was asked.
    pub(crate) files: Option<usize>,
    /// The versions of a file, if they were given.
    pub(crate) versions: Vec<PathBuf>,
    /// Mbit/s of every link, if it is limited.
    pub(crate) rate: Option<u32>,
}

/// What one run of one tool took.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Until the tool said that it was done.
    wall: Duration,
    /// Until what it had written was on the disk as well.
    on_disk: Duration,
    spent: Spent,
    /// Peaks of the side that has the data, and of the side that gets it.
    memory: (u64, u64),
    verified: bool,
}

/// The runs of one tool.
#[derive(Debug)]
struct Runs {
    tool: Tool,
    runs: Vec<Run>,
}

impl Bench {
    pub(crate) fn run(&self, case: Case) -> Result<Table, Failure> {
        let mut table = match case {
            Case::Copy => copy::large_files(self),
            Case::SmallFiles => copy::small_files(self),
            Case::Memory => copy::a_million_files(self),
            Case::FanOut => fan_out::fan_out(self),
            Case::Unchanged => unchanged::unchanged(self),
            Case::Restart => unchanged::restart(self),
            Case::Changed => changes::changed(self),
            Case::Insert => changes::insert(self),
            Case::Append => changes::append(self),
            Case::Rename => changes::rename(self),
            Case::Replaced => changes::replaced(self),
            Case::Latency => latency::latency(self),
            Case::Reconcile => reconcile::reconcile(self),
            Case::Formats => formats::formats(self),
        }?;
        for tool in &self.against {
            if let Some(why) = tool.unfit(case) {
                table.note(format!("{} {why}.", tool.name()));
            }
        }
        if !matches!(case, Case::Reconcile | Case::Formats) {
            let tools = self.tools(case).into_iter();
            let versions =
                tools.map(|tool| tool.version(&self.binary)).collect::<Result<Vec<_>, _>>()?;
            let rate = self.rate.or((case == Case::FanOut).then_some(fan_out::RATE));
            let rate = rate.map_or("not limited".to_string(), |rate| format!("{rate} Mbit/s"));
            table.note(format!("Measured: {}. Link: {rate}.", versions.join(", ")));
        }
        Ok(table)
    }

    /// What a case measures, in this order, over and over.
    fn tools(&self, case: Case) -> Vec<Tool> {
        let fit = self.against.iter().copied().filter(|tool| tool.unfit(case).is_none());
        [Tool::Consort].into_iter().chain(fit).collect()
    }

    /// A new directory for the data.
    fn dir(&self, name: &str) -> Result<PathBuf, Failure> {
        let dir = self.place.join(name);
        fs::create_dir_all(&dir).map_err(|error| Failure::io("make a directory", error))?;
        Ok(dir)
    }

    /// Starts a tool with directories of its own: the source as `make` makes it, and an empty target.
    fn pair(
        &self,
        tool: Tool,
        make: impl FnOnce(&Path) -> Result<(), Failure>,
    ) -> Result<Pair, Failure> {
        let [source, target] = ["source", "target"].map(|name| format!("{}/{name}", tool.name()));
        let (source, target) = (self.dir(&source)?, self.dir(&target)?);
        make(&source)?;
        Pair::start(self, tool, &self.place.join(tool.name()).join("homes"), [&source, &target])
    }
}

impl Runs {
    fn of(tool: Tool) -> Self {
        Self { tool, runs: Vec::new() }
    }
}

/// Measures some work of one tool, and whether the target is equal after it.
fn measure(
    pair: &mut Pair,
    work: impl FnOnce(&mut Pair) -> Result<(), Failure>,
) -> Result<Run, Failure> {
    // So that nobody waits for somebody else's data.
    rustix::fs::sync();
    touch_free_memory();
    let before = pair.machines.spent()?;
    let memory = (pair.machines.a.peak_memory(), pair.machines.b.peak_memory());
    let started = Instant::now();
    let worked = work(pair);
    let wall = started.elapsed();
    let synced = worked.and_then(|()| sync(&pair.machines.b.dir));
    let on_disk = started.elapsed();
    let memory = (memory.0.finish(), memory.1.finish());
    synced?;
    let spent = pair.machines.spent()?.since(before);
    let verified = is_equal(&pair.machines.a.dir, &pair.machines.b.dir)?;
    Ok(Run { wall, on_disk, spent, memory, verified })
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
            "synced",
            "cpu",
            "wire",
            "memory source",
            "memory target",
            "read",
            "wall vs rsync",
            "synced vs rsync",
            "verified",
        ],
    );
    let of = |runs: &Runs, value: fn(&Run) -> Duration| median(runs.runs.iter().map(value));
    let rsync = tools.iter().find(|runs| runs.tool == Tool::Rsync);
    for runs in tools {
        let all = &runs.runs;
        let time = |time: Option<Duration>| time.map_or(Cell::Nothing, Cell::Seconds);
        let bytes = |value: fn(&Run) -> u64| {
            median(all.iter().map(value)).map_or(Cell::Nothing, Cell::Bytes)
        };
        let ratio = |value: fn(&Run) -> Duration| {
            let times = of(runs, value).zip(rsync.and_then(|rsync| of(rsync, value)));
            times.map_or(Cell::Nothing, |(own, rsync)| {
                Cell::Ratio(own.as_secs_f64() / rsync.as_secs_f64())
            })
        };
        table.row(vec![
            Cell::Text(runs.tool.name().to_string()),
            Cell::Count(all.len()),
            time(of(runs, |run| run.wall)),
            time(all.iter().map(|run| run.wall).min()),
            time(all.iter().map(|run| run.wall).max()),
            time(of(runs, |run| run.on_disk)),
            time(of(runs, |run| run.spent.cpu)),
            bytes(|run| run.spent.wire),
            bytes(|run| run.memory.0),
            bytes(|run| run.memory.1),
            bytes(|run| run.spent.read),
            ratio(|run| run.wall),
            ratio(|run| run.on_disk),
            Cell::Verified(all.iter().all(|run| run.verified)),
        ]);
        if let Some((wall, on_disk)) = of(runs, |run| run.wall).zip(of(runs, |run| run.on_disk)) {
            table.bar(Bar { name: runs.tool.name(), time: wall, whole: on_disk });
        }
    }
    table.note(
        "Medians. Wall: until the tool says that it is done; synced: and all of it is on the disk. CPU: of all processes \
         of both sides. Wire: bytes on the link, both ways, with all headers. Memory: peak resident, of all processes of \
         that side. Read: from files, pipes and sockets, cached or not. Verified: both directories were read and \
         compared.",
    );
    table
}

/// Uses memory for a moment that is free. A virtual machine has it from its host only since then, which takes several times
/// as long as to use it again, and would be at the expense of who comes first.
fn touch_free_memory() {
    let free = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = free.lines().find_map(|line| line.strip_prefix("MemFree:")?.strip_suffix("kB"));
    let free = free.and_then(|free| free.trim().parse().ok()).unwrap_or(0usize) << 10;
    std::hint::black_box(vec![1_u8; (free / 2).min(TOUCHED_BYTES)]);
}

/// Writes out what is not on the disk yet of the file system of `path`.
fn sync(path: &Path) -> Result<(), Failure> {
    let dir = File::open(path).map_err(|error| Failure::io("open the target", error))?;
    rustix::fs::syncfs(dir).map_err(|error| Failure::io("sync", error))
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

/// Removes a directory that is not needed any more, with all that is in it.
fn remove(dir: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", dir.display()), error))
        }
        _ => Ok(()),
    }
}
