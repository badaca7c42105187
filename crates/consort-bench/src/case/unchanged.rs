//! Nothing has changed: how long it takes to know that, and what it costs.

use std::time::Instant;

use crate::case::{Bench, Run, add, is_equal, settle_disk, table};
use crate::consort::Pair;
use crate::failure::Failure;
use crate::rsync::Daemon;
use crate::table::Table;
use crate::workload::Files;

/// Both processes of Consort start anew, so that nothing is remembered but what their stores hold; rsync copies again.
pub(crate) fn unchanged(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(50_000), size: 4 << 10 };
    let (source, target) = (bench.dir("source")?, bench.dir("target")?);
    let rsync_target = bench.dir("rsync-target")?;
    files.make(&source, 1)?;
    let mut pair = Pair::start(&bench.binary, &bench.place.join("homes"))?;
    pair.link(&source, &target)?;
    pair.wait()?;
    let daemon = if bench.against_rsync {
        let daemon = Daemon::start(&source, &bench.place.join("daemon"))?;
        daemon.copy_to(&rsync_target)?;
        Some(daemon)
    } else {
        None
    };
    let mut tools = bench.tools();
    for _ in 0..bench.runs.unwrap_or(3) {
        pair.stop()?;
        settle_disk();
        let started = Instant::now();
        pair.start_again()?;
        pair.wait()?;
        let wall = started.elapsed();
        let spent = pair.spent()?;
        let consort = Run::of_consort(wall, spent, is_equal(&source, &target)?);
        let rsync = match &daemon {
            Some(daemon) => {
                settle_disk();
                let copied = daemon.copy_to(&rsync_target)?;
                Some(Run::of_rsync(copied, is_equal(&source, &rsync_target)?))
            }
            None => None,
        };
        add(&mut tools, consort, rsync);
    }
    let title = format!("Nothing changed: {} files of {} bytes", files.count, files.size);
    let mut table = table(title, &tools);
    table.note(format!(
        "consort: from the start of both processes until both say that they hold everything. The contents are {} bytes \
         on each side; what is read beside them is the program itself and the store.",
        files.bytes()
    ));
    Ok(table)
}
