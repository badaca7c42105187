//! The first copy of a directory to a place that has nothing of it, hashing and indexing included.

use crate::case::{Bench, Case, Runs, measure, remove, table};
use crate::failure::Failure;
use crate::table::Table;
use crate::tool::Pair;
use crate::verify::PRIVATE;
use crate::workload::Files;

/// Files are large from here on: a target of such is removed when it was looked at, because of its size.
const LARGE: usize = 1 << 20;

pub(crate) fn large_files(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(8), size: 256 << 20 };
    first_copy(bench, Case::Copy, files, 3)
}

pub(crate) fn small_files(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 };
    first_copy(bench, Case::SmallFiles, files, 3)
}

pub(crate) fn a_million_files(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(1_000_000), size: 256 };
    first_copy(bench, Case::Memory, files, 1)
}

fn first_copy(
    bench: &Bench,
    case: Case,
    files: Files,
    default_runs: usize,
) -> Result<Table, Failure> {
    let source = bench.dir("source")?;
    files.make(&source, 1)?;
    let mut tools: Vec<Runs> = bench.tools(case).into_iter().map(Runs::of).collect();
    for run in 0..bench.runs.unwrap_or(default_runs) {
        for Runs { tool, runs } in &mut tools {
            // Many files are not removed before all is measured: some file systems pass inodes by that were freed a
            // moment ago, and take many times as long to make files then.
            let place = bench.dir(&format!("{}-{run}", tool.name()))?;
            let target = place.join("target");
            std::fs::create_dir(&target).map_err(|error| Failure::io("make a directory", error))?;
            let mut pair = Pair::start(bench, *tool, &place, [&source, &target])?;
            runs.push(measure(&mut pair, |pair| {
                pair.link()?;
                pair.until_equal()
            })?);
            drop(pair);
            PRIVATE.iter().try_for_each(|private| remove(&source.join(private)))?;
            if files.size >= LARGE {
                remove(&place)?;
            }
        }
    }
    let title = format!("First copy: {} files of {} bytes", files.count, files.size);
    Ok(table(title, &tools))
}
