//! A change of a directory that both sides hold already: what moves, and how long it takes. Consort's nodes run all the
//! time, as they do for its users; the time begins with the change. That of rsync begins with its call.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::case::{Bench, Run, add, is_equal, remove, settle_disk, table};
use crate::consort::Pair;
use crate::failure::Failure;
use crate::rsync::Daemon;
use crate::table::Table;
use crate::workload::{Files, Random, insert_at_head};

pub(crate) fn insert(bench: &Bench) -> Result<Table, Failure> {
    let size = 1 << 30;
    let source = bench.dir("source")?;
    Files { count: 1, size }.make(&source, 1)?;
    let file = source.join("0000/0000000.bin");
    let new = bench.place.join("new");
    let mut random = Random::new(2);
    let title = format!("1 KiB inserted at the head of {size} bytes");
    changes(bench, title, &source, 5, |_| {
        insert_at_head(&new, &file, 1024, &mut random)?;
        // Replaced in one step, as programs do that care for their files.
        Ok((new.clone(), file.clone()))
    })
}

pub(crate) fn rename(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(25_000), size: 4 << 10 };
    let source = bench.dir("source")?;
    files.make(&source.join("name-0"), 1)?;
    let title = format!("A directory of {} files of {} bytes renamed", files.count, files.size);
    changes(bench, title, &source, 3, |run| {
        Ok((source.join(format!("name-{run}")), source.join(format!("name-{}", run + 1))))
    })
}

/// Measures changes, each of which is a rename after some preparation.
fn changes(
    bench: &Bench,
    title: String,
    source: &Path,
    default_runs: usize,
    mut prepare: impl FnMut(usize) -> Result<(PathBuf, PathBuf), Failure>,
) -> Result<Table, Failure> {
    let (target, rsync_target) = (bench.dir("target")?, bench.dir("rsync-target")?);
    let pair = Pair::start(&bench.binary, &bench.place.join("homes"))?;
    pair.link(source, &target)?;
    pair.wait()?;
    let daemon = if bench.against_rsync {
        let daemon = Daemon::start(source, &bench.place.join("daemon"))?;
        daemon.copy_to(&rsync_target)?;
        Some(daemon)
    } else {
        None
    };
    let mut tools = bench.tools();
    for run in 0..bench.runs.unwrap_or(default_runs) {
        let (from, to) = prepare(run)?;
        settle_disk();
        let before = pair.spent()?;
        let started = Instant::now();
        fs::rename(&from, &to).map_err(|error| Failure::io("make the change", error))?;
        pair.b.wait()?;
        let wall = started.elapsed();
        let spent = pair.spent()?.since(before);
        let consort = Run::of_consort(wall, spent, is_equal(source, &target)?);
        let rsync = match &daemon {
            Some(daemon) => {
                settle_disk();
                let copied = daemon.copy_to(&rsync_target)?;
                Some(Run::of_rsync(copied, is_equal(source, &rsync_target)?))
            }
            None => None,
        };
        add(&mut tools, consort, rsync);
    }
    drop(pair);
    remove(&target)?;
    Ok(table(title, &tools))
}
