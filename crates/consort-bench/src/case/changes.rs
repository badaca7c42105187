//! A change of a directory that both sides hold already: what moves, and how long it takes. What watches runs all the
//! time, as it does for its users; the other tools are called when the change is made. The time begins with the change.

use std::fs;
use std::io;
use std::path::Path;

use crate::case::{Bench, Case, Runs, measure, table};
use crate::failure::Failure;
use crate::table::Table;
use crate::workload::{self, Files, Random};

/// What is done to the source, when all is ready for it.
type Change = Box<dyn FnOnce() -> io::Result<()>>;

pub(crate) fn changed(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 };
    let count = files.count.div_ceil(500);
    let title = format!("{count} of {} files of {} bytes changed", files.count, files.size);
    let make = |source: &Path| files.make(source, 1);
    changes(bench, Case::Changed, title, 3, make, |source, change| {
        let mut random = random(change);
        let paths = files.some(source, count, &mut random);
        let contents: Vec<_> = paths.iter().map(|_| random.bytes(files.size)).collect();
        Ok(Box::new(move || {
            let all = paths.iter().zip(contents);
            all.into_iter().try_for_each(|(path, new)| workload::overwrite(path, &new, change))
        }))
    })
}

pub(crate) fn insert(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: 1, size: 1 << 30 };
    let title = format!("1 KiB inserted at the head of {} bytes", files.size);
    let make = |source: &Path| files.make(source, 1);
    changes(bench, Case::Insert, title, 5, make, |source, change| {
        let file = source.join("0000/0000000.bin");
        let new = source.with_file_name("new");
        workload::insert_at_head(&new, &file, &random(change).bytes(1024), change)?;
        // Replaced in one step, as programs do that care for their files.
        Ok(Box::new(move || fs::rename(new, file)))
    })
}

pub(crate) fn append(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(8), size: 256 << 20 };
    let title = format!("1 MiB appended to each of {} files of {} bytes", files.count, files.size);
    let make = |source: &Path| files.make(source, 1);
    changes(bench, Case::Append, title, 3, make, |source, change| {
        let mut random = random(change);
        let paths = files.some(source, files.count, &mut random);
        let contents: Vec<_> = paths.iter().map(|_| random.bytes(1 << 20)).collect();
        Ok(Box::new(move || {
            let all = paths.iter().zip(contents);
            all.into_iter().try_for_each(|(path, new)| workload::append(path, &new, change))
        }))
    })
}

pub(crate) fn rename(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(25_000), size: 4 << 10 };
    let title = format!("A directory of {} files of {} bytes renamed", files.count, files.size);
    let make = |source: &Path| files.make(&source.join("name-0"), 1);
    changes(bench, Case::Rename, title, 3, make, |source, change| {
        let [from, to] = [change - 1, change].map(|number| source.join(format!("name-{number}")));
        Ok(Box::new(move || fs::rename(from, to)))
    })
}

pub(crate) fn replaced(bench: &Bench) -> Result<Table, Failure> {
    let versions = &bench.versions;
    let title = format!("{} replaced by the next version", versions[0].display());
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to)
            .map(drop)
            .map_err(|error| Failure::io(format!("copy {}", from.display()), error))
    };
    let make = |source: &Path| copy(&versions[0], &source.join("file"));
    changes(bench, Case::Replaced, title, versions.len() - 1, make, |source, change| {
        // Beside the directory, which is watched.
        let (new, file) = (source.with_file_name("new"), source.join("file"));
        copy(&versions[change % versions.len()], &new)?;
        Ok(Box::new(move || fs::rename(new, file)))
    })
}

/// Measures changes, which are numbered from one and the same for all tools.
fn changes(
    bench: &Bench,
    case: Case,
    title: String,
    default_runs: usize,
    make: impl Fn(&Path) -> Result<(), Failure>,
    prepare: impl Fn(&Path, usize) -> Result<Change, Failure>,
) -> Result<Table, Failure> {
    let mut tools = Vec::new();
    for tool in bench.tools(case) {
        let mut pair = bench.pair(tool, &make)?;
        pair.link()?;
        pair.until_equal()?;
        tools.push((Runs::of(tool), pair));
    }
    for number in 1..=bench.runs.unwrap_or(default_runs) {
        for (runs, pair) in &mut tools {
            let change = prepare(&pair.machines.a.dir, number)?;
            runs.runs.push(measure(pair, |pair| {
                change().map_err(|error| Failure::io("make the change", error))?;
                pair.until_equal()
            })?);
        }
    }
    let tools: Vec<Runs> = tools.into_iter().map(|(runs, _)| runs).collect();
    Ok(table(title, &tools))
}

/// What is by chance in a change.
fn random(change: usize) -> Random {
    Random::new(1000 + change as u64)
}
