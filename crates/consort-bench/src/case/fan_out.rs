//! The first copy of a directory to many nodes at once, over slow links: how much longer it takes than to one, and what
//! the source sends.

use std::time::{Duration, Instant};

use crate::case::{Bench, is_equal, remove};
use crate::failure::Failure;
use crate::machine::{self, Machine};
use crate::table::{Cell, Table, median};
use crate::tool::Consort;
use crate::workload::Files;

/// Mbit/s of every link, if no other rate is asked for.
pub(super) const RATE: u32 = 200;

/// To how many nodes.
const RECEIVERS: [usize; 4] = [1, 2, 4, 8];

/// One run.
#[derive(Clone, Copy, Debug)]
struct Run {
    first: Duration,
    last: Duration,
    sent: u64,
    verified: bool,
}

pub(crate) fn fan_out(bench: &Bench) -> Result<Table, Failure> {
    let files = Files { count: bench.files.unwrap_or(8), size: 64 << 20 };
    let title = format!(
        "First copy to many nodes: {} files of {} bytes, all links at {} Mbit/s",
        files.count,
        files.size,
        bench.rate.unwrap_or(RATE)
    );
    let mut table = Table::new(
        title,
        &["targets", "killed", "runs", "first", "last", "last vs one", "copies sent", "verified"],
    );
    let mut one = Duration::ZERO;
    for receivers in RECEIVERS {
        let mut whole = Duration::ZERO;
        for killed in [false, true] {
            // There has to be one in the middle.
            if killed && receivers < 3 {
                continue;
            }
            // Half of the time is a time when most of it is under way.
            let kill_after = killed.then_some(whole / 2);
            let runs = (0..bench.runs.unwrap_or(1))
                .map(|_| run(bench, files, receivers, kill_after))
                .collect::<Result<Vec<_>, _>>()?;
            let last = median(runs.iter().map(|run| run.last)).unwrap_or_default();
            if receivers == 1 {
                one = last;
            }
            whole = last;
            let first = median(runs.iter().map(|run| run.first)).unwrap_or_default();
            let sent = median(runs.iter().map(|run| run.sent)).unwrap_or_default();
            table.row(vec![
                Cell::Count(receivers),
                Cell::Count(usize::from(killed)),
                Cell::Count(runs.len()),
                Cell::Seconds(first),
                Cell::Seconds(last),
                Cell::Ratio(last.as_secs_f64() / one.as_secs_f64()),
                Cell::Ratio(sent as f64 / files.bytes() as f64),
                Cell::Verified(runs.iter().all(|run| run.verified)),
            ]);
        }
    }
    table.note(
        "Medians. First and last: until the first and the last of the targets says that it holds everything, indexing at the \
         source included. Copies: bytes that the source has sent, with all headers, over the size of the data. Killed: one \
         target is ended by force at half of the time, and does not count. Verified: all other directories were read and \
         compared with the source.",
    );
    Ok(table)
}

fn run(
    bench: &Bench,
    files: Files,
    receivers: usize,
    kill_after: Option<Duration>,
) -> Result<Run, Failure> {
    let consort = Consort::new(&bench.binary);
    let place = bench.dir("nodes")?;
    let rate = bench.rate.or(Some(RATE));
    let (mut machines, _switch) = machine::many(&place, receivers + 1, rate)?;
    consort.make_cluster(&mut machines.iter_mut().collect::<Vec<_>>())?;
    for machine in &mut machines {
        consort.until_connected(machine, receivers)?;
    }
    let (source, targets) = machines.split_first_mut().expect("there are at least two");
    files.make(&source.dir, 1)?;
    for target in &*targets {
        consort.link_one(target)?;
    }
    rustix::fs::sync();
    let before = source.sent()?;
    let started = Instant::now();
    consort.link_one(source)?;
    let middle = kill_after.map(|_| receivers / 2);
    let times = until_equal(&consort, targets, started, middle.zip(kill_after))?;
    let sent = source.sent()? - before;
    let mut verified = true;
    for (number, target) in targets.iter().enumerate() {
        verified &= Some(number) == middle || is_equal(&source.dir, &target.dir)?;
    }
    let (first, last) = (times.iter().min(), times.iter().max());
    let (first, last) = (first.copied().unwrap_or_default(), last.copied().unwrap_or_default());
    drop(machines);
    remove(&place)?;
    Ok(Run { first, last, sent, verified })
}

/// When each of the targets held everything; without the one that is killed.
fn until_equal(
    consort: &Consort,
    targets: &mut [Machine],
    started: Instant,
    kill: Option<(usize, Duration)>,
) -> Result<Vec<Duration>, Failure> {
    let (mut killed, mut others) = (None, Vec::new());
    for (number, target) in targets.iter_mut().enumerate() {
        match kill {
            Some((middle, after)) if middle == number => killed = Some((target, after)),
            _ => others.push(&*target),
        }
    }
    std::thread::scope(|scope| {
        let wait = |target| scope.spawn(move || consort.wait(target).map(|()| started.elapsed()));
        let waiting: Vec<_> = others.into_iter().map(wait).collect();
        if let Some((target, after)) = killed {
            std::thread::sleep(after.saturating_sub(started.elapsed()));
            target.kill();
        }
        waiting.into_iter().map(|thread| thread.join().expect("it does not panic")).collect()
    })
}
