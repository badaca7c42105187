//! The first copy of a directory to a place that has nothing of it, hashing and indexing included.

use std::time::Instant;

use crate::case::{Bench, Run, add, is_equal, remove, settle_disk, table};
use crate::consort::Pair;
use crate::failure::Failure;
use crate::rsync::Daemon;
use crate::table::Table;
use crate::verify::PRIVATE;
use crate::workload::Files;

pub(crate) fn large_files(bench: &Bench) -> Result<Table, Failure> {
    first_copy(bench, Files { count: bench.files.unwrap_or(8), size: 256 << 20 }, 3)
}

pub(crate) fn small_files(bench: &Bench) -> Result<Table, Failure> {
    first_copy(bench, Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 }, 3)
}

pub(crate) fn a_million_files(bench: &Bench) -> Result<Table, Failure> {
    first_copy(bench, Files { count: bench.files.unwrap_or(1_000_000), size: 256 }, 1)
}

fn first_copy(bench: &Bench, files: Files, default_runs: usize) -> Result<Table, Failure> {
    let source = bench.dir("source")?;
    files.make(&source, 1)?;
    let mut tools = bench.tools();
    for run in 0..bench.runs.unwrap_or(default_runs) {
        // Nothing is removed before all is measured: some file systems pass inodes by that were freed a moment ago, and
        // take many times as long to make files then.
        let target = bench.dir(&format!("target-{run}"))?;
        let mut pair = Pair::start(&bench.binary, &bench.place.join(format!("homes-{run}")))?;
        settle_disk();
        let before = pair.spent()?;
        let started = Instant::now();
        pair.link(&source, &target)?;
        pair.b.wait()?;
        let wall = started.elapsed();
        let spent = pair.spent()?.since(before);
        let verified = is_equal(&source, &target)?;
        pair.stop()?;
        let consort = Run::of_consort(wall, spent, verified);
        remove(&source.join(PRIVATE))?;
        let rsync = if bench.against_rsync {
            let target = bench.dir(&format!("rsync-{run}"))?;
            let daemon = Daemon::start(&source, &bench.place.join("daemon"))?;
            settle_disk();
            let copied = daemon.copy_to(&target)?;
            let verified = is_equal(&source, &target)?;
            Some(Run::of_rsync(copied, verified))
        } else {
            None
        };
        add(&mut tools, consort, rsync);
    }
    let title = format!("First copy: {} files of {} bytes", files.count, files.size);
    Ok(table(title, &tools))
}
