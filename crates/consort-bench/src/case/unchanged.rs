//! Nothing has changed: how long it takes to know that, and what it costs.

use crate::case::{Bench, Case, Runs, measure, table};
use crate::failure::Failure;
use crate::table::Table;
use crate::workload::Files;

/// What runs all the time is asked; the others are called again.
pub(crate) fn unchanged(bench: &Bench) -> Result<Table, Failure> {
    run(bench, false)
}

/// What remembers the directories while it runs starts anew, so that nothing is remembered but what is stored; the others
/// are called again.
pub(crate) fn restart(bench: &Bench) -> Result<Table, Failure> {
    run(bench, true)
}

fn run(bench: &Bench, restarts: bool) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 };
    let mut tools = Vec::new();
    for tool in bench.tools(Case::Unchanged) {
        let mut pair = bench.pair(tool, |source| files.make(source, 1))?;
        pair.link()?;
        pair.until_equal()?;
        tools.push((Runs::of(tool), pair));
    }
    for _ in 0..bench.runs.unwrap_or(3) {
        for (runs, pair) in &mut tools {
            if restarts {
                pair.stop()?;
            }
            runs.runs.push(measure(pair, |pair| {
                if restarts {
                    pair.start_again()?;
                }
                pair.until_equal()
            })?);
        }
    }
    let tools: Vec<Runs> = tools.into_iter().map(|(runs, _)| runs).collect();
    let title = format!("Nothing changed: {} files of {} bytes", files.count, files.size);
    let mut table = table(title, &tools);
    let what = match restarts {
        true => "from the start of both processes until they say that they hold everything",
        false => {
            "both run all the time, and watch; they are asked, and say that they hold everything"
        }
    };
    table.note(format!(
        "consort, syncthing: {what}. The contents are {} bytes on each side; what is read beside them is the program itself \
         and what it has stored.",
        files.bytes()
    ));
    Ok(table)
}
