//! One small change on A, until it is complete on B: seen from outside, in B's directory, by whoever waits for it.
//!
//! The time begins just before the system call that makes the change, and ends when the whole of it is read on the other
//! side. Changes come one at a time, at irregular intervals, so that they do not fall in step with any timer.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

use crate::case::{Bench, Case, is_equal};
use crate::failure::Failure;
use crate::machine::Spent;
use crate::table::{Bar, Cell, Table, percentile};
use crate::tool::{Pair, Tool};
use crate::workload::{Files, Random};

/// Changes of each kind that are made before it counts.
const WARM_UP: usize = 2;

/// A tool whose changes have taken so long makes no more of them: by then, it is known how slow it is.
const ENOUGH: Duration = Duration::from_secs(120);

/// Changes of each kind that are measured, if nothing else is asked.
const REPETITIONS: usize = 200;

/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// Milliseconds between two changes: at least, and about as much again by chance.
const PAUSE_MS: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A new file, renamed over the old one.
    Replaced,
    /// Written in place.
    Written,
    Deleted,
}

/// A tool that is measured, and what it took so far.
struct Measured {
    tool: Tool,
    pair: Pair,
    watch: Watch,
    times: Vec<(Kind, Duration)>,
    /// How long its changes took in all.
    taken: Duration,
    before: Spent,
}

pub(crate) fn latency(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 };
    let mut tools = Vec::new();
    for tool in bench.tools(Case::Latency) {
        let mut pair = bench.pair(tool, |source| {
            files.make(source, 1)?;
            fs::create_dir(source.join("probe"))
                .map_err(|error| Failure::io("make a directory", error))
        })?;
        pair.link()?;
        pair.until_equal()?;
        let watch = Watch::new(&pair.machines.b.dir.join("probe"))?;
        let before = pair.machines.spent()?;
        let (times, taken) = (Vec::new(), Duration::ZERO);
        tools.push(Measured { tool, pair, watch, times, taken, before });
    }

    let mut random = Random::new(3);
    for repetition in 0..WARM_UP + bench.runs.unwrap_or(REPETITIONS) {
        for measured in &mut tools {
            if measured.taken < ENOUGH {
                measured.change_all(repetition, &mut random)?;
            }
        }
    }

    let mut table = Table::new(
        format!(
            "One change of 1 KiB among {} files, until it is complete on the other side",
            files.count
        ),
        &[
            "tool", "change", "times", "median", "90 %", "99 %", "slowest", "cpu", "wire",
            "verified",
        ],
    );
    for measured in &mut tools {
        measured.rows(&mut table)?;
    }
    table.note(
        "CPU and wire: of both sides, for each change. Changes come one at a time, after pauses of 10 to 30 ms. \
         Verified: both directories were read and compared after the last.",
    );
    Ok(table)
}

impl Measured {
    /// Makes one change of each kind, and waits for it.
    fn change_all(&mut self, repetition: usize, random: &mut Random) -> Result<(), Failure> {
        let machines = &self.pair.machines;
        let (here, there) = (machines.a.dir.join("probe/file"), machines.b.dir.join("probe/file"));
        let new = machines.a.dir.with_file_name("new");
        for kind in [Kind::Written, Kind::Replaced, Kind::Deleted] {
            thread::sleep(Duration::from_millis(PAUSE_MS + random.next() % (2 * PAUSE_MS)));
            let content = random.bytes(1024);
            let expected = (kind != Kind::Deleted).then_some(&content[..]);
            if repetition == WARM_UP && self.times.is_empty() {
                self.before = machines.spent()?;
            }
            let started = Instant::now();
            change(kind, &here, &new, &content)
                .map_err(|error| Failure::io("make a change", error))?;
            self.watch.until(&there, expected)?;
            let took = started.elapsed();
            self.taken += took;
            if repetition >= WARM_UP {
                self.times.push((kind, took));
            }
        }
        Ok(())
    }

    fn rows(&mut self, table: &mut Table) -> Result<(), Failure> {
        let spent = self.pair.machines.spent()?.since(self.before);
        let changes = u32::try_from(self.times.len()).unwrap_or(u32::MAX).max(1);
        self.pair.until_equal()?;
        let verified = is_equal(&self.pair.machines.a.dir, &self.pair.machines.b.dir)?;
        let kinds = [
            ("all", None),
            ("written in place", Some(Kind::Written)),
            ("replaced by rename", Some(Kind::Replaced)),
            ("deleted", Some(Kind::Deleted)),
        ];
        for (name, kind) in kinds {
            let of_kind =
                self.times.iter().filter(|(other, _)| kind.is_none_or(|kind| kind == *other));
            let times: Vec<Duration> = of_kind.map(|(_, time)| *time).collect();
            let at = |percent| {
                let time = percentile(times.iter().copied(), percent);
                time.map_or(Cell::Nothing, Cell::Milliseconds)
            };
            let (cpu, wire) = match kind {
                None => (
                    Cell::Milliseconds(spent.cpu / changes),
                    Cell::Bytes(spent.wire / u64::from(changes)),
                ),
                Some(_) => (Cell::Nothing, Cell::Nothing),
            };
            table.row(vec![
                Cell::Text(self.tool.name().to_string()),
                Cell::Text(name.to_string()),
                Cell::Count(times.len()),
                at(50),
                at(90),
                at(99),
                at(100),
                cpu,
                wire,
                Cell::Verified(verified),
            ]);
        }
        if let Some(time) = percentile(self.times.iter().map(|(_, time)| *time), 50) {
            table.bar(Bar { name: self.tool.name(), time, whole: time });
        }
        Ok(())
    }
}

fn change(kind: Kind, path: &Path, new: &Path, content: &[u8]) -> io::Result<()> {
    match kind {
        Kind::Written => File::create(path)?.write_all(content),
        Kind::Replaced => {
            fs::write(new, content)?;
            fs::rename(new, path)
        }
        Kind::Deleted => fs::remove_file(path),
    }
}

/// Tells when a directory changes, so that waiting takes no processor time from what is measured.
struct Watch(OwnedFd);

impl Watch {
    fn new(dir: &Path) -> Result<Self, Failure> {
        let failed = |error| Failure::io(format!("watch {}", dir.display()), error);
        let inotify =
            inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(failed)?;
        let events = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::MOVE
            | WatchFlags::DELETE;
        inotify::add_watch(&inotify, dir, events).map_err(failed)?;
        Ok(Self(inotify))
    }

    /// Returns when `path` holds `expected`, or when it is gone if nothing is expected.
    fn until(&self, path: &Path, expected: Option<&[u8]>) -> Result<(), Failure> {
        let started = Instant::now();
        loop {
            let found = fs::read(path).ok();
            if found.as_deref() == expected {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(Failure::new(format!("{} did not change in time", path.display())));
            }
            self.next_events()?;
        }
    }

    /// Waits for events and forgets them; a second at the most, as one may have come before it was waited for.
    fn next_events(&self) -> Result<(), Failure> {
        let failed = |error| Failure::io("watch", error);
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&second)).map_err(failed)?;
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(self.0.as_fd(), &mut buffer);
        while events.next().is_ok() {
            if events.is_buffer_empty() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_seen_when_they_are_complete() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("file"), dir.path().join("new"));
        let watch = Watch::new(dir.path()).unwrap();
        thread::scope(|scope| {
            for (kind, content) in
                [(Kind::Written, b"one"), (Kind::Replaced, b"two"), (Kind::Deleted, b"---")]
            {
                let (path, new) = (&path, &new);
                let changed = scope.spawn(move || change(kind, path, new, content).unwrap());
                watch.until(path, (kind != Kind::Deleted).then_some(&content[..])).unwrap();
                changed.join().unwrap();
            }
        });
    }
}
