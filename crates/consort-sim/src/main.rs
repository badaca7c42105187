//! The simulator as a program: which seeds to run, what to print, and what the exit code says.

use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use clap::Parser;
use consort_sim::shrink::shrink;
use consort_sim::{
    COMMIT, Checker, Failure, MembersOutcome, Outcome, Scenario, Script, Trace, examine,
    examine_members, keep_panics, scenario,
};

/// Run the real protocol on simulated machines.
///
/// Exit codes: 0 nothing found, 1 a wrong result, 2 wrong usage, 3 no progress, 4 a crash.
#[derive(Debug, Parser)]
#[command(name = "consort-sim", version)]
struct Args {
    /// Run these seeds: FROM..TO
    #[arg(long, value_parser = parse_range, default_value = "0..1000", value_name = "FROM..TO")]
    seeds: Range<u64>,

    /// Run this seed alone
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,

    /// Run this scenario [default: each seed draws one]
    #[arg(long, value_parser = parse_scenario)]
    scenario: Option<&'static Scenario>,

    /// Run membership alone: nodes join, leave, crash and are split, and find each other again
    #[arg(long, conflicts_with_all = ["scenario", "shrink"])]
    members: bool,

    /// Begin with so many nodes [default: what the scenario says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    nodes: Option<u32>,

    /// Print a line for each thing that happens
    #[arg(long, requires = "seed")]
    trace: bool,

    /// Make a run that fails shorter first
    #[arg(long)]
    shrink: bool,

    /// Go on after a run that failed
    #[arg(long)]
    keep_going: bool,

    /// Runs at the same time [default: one for each processor]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: Option<u16>,

    /// Print the scenarios
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    keep_panics();
    // A closed pipe is nobody's fault.
    run(&args).unwrap_or(ExitCode::SUCCESS)
}

fn run(args: &Args) -> io::Result<ExitCode> {
    let mut out = BufWriter::new(io::stdout());
    if args.list {
        for scenario in scenario::ALL {
            writeln!(out, "{:<10} {}", scenario.name, scenario.about)?;
        }
        out.flush()?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.seed {
        Some(seed) if args.members => one_of_members(args, seed, &mut out),
        Some(seed) => one(args, seed, &mut out),
        None => many(args, &mut out),
    }
}

/// One seed, in detail.
fn one(args: &Args, seed: u64, out: &mut impl Write) -> io::Result<ExitCode> {
    let (scenario, mut script) = draw(args, seed);
    let (nodes, actions) = script.size();
    let name = scenario.name;
    writeln!(out, "seed {seed} commit {COMMIT} scenario {name}: {nodes} nodes, {actions} actions")?;
    out.flush()?;
    if args.shrink
        && let Err(failure) = examine(scenario, &script, Trace::off())
    {
        (script, _) = shrink(scenario, script, failure);
        let (nodes, actions) = script.size();
        writeln!(out, "shrunk to {nodes} nodes, {actions} actions")?;
    }
    let trace = if args.trace { Trace::to(out) } else { Trace::off() };
    let result = examine(scenario, &script, trace);
    match &result {
        Ok(outcome) => report(outcome, out)?,
        Err(failure) => writeln!(out, "{failure}")?,
    }
    out.flush()?;
    Ok(result.err().map_or(ExitCode::SUCCESS, |failure| code(&failure)))
}

/// One seed of membership alone.
fn one_of_members(args: &Args, seed: u64, out: &mut impl Write) -> io::Result<ExitCode> {
    writeln!(out, "seed {seed} commit {COMMIT} members")?;
    let trace = if args.trace { Trace::to(out) } else { Trace::off() };
    let result = examine_members(seed, args.nodes, trace);
    match &result {
        Ok(outcome) => writeln!(out, "fine: {outcome:?}")?,
        Err(failure) => writeln!(out, "{failure}")?,
    }
    out.flush()?;
    Ok(result.err().map_or(ExitCode::SUCCESS, |failure| code(&failure)))
}

fn report(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let Outcome { nodes, events, messages, bytes, lower_limit, converged_after } = outcome;
    writeln!(out, "fine: {nodes} nodes, {events} events, {messages} messages, {bytes} bytes")?;
    writeln!(out, "lower limit {lower_limit} bytes, converged after {converged_after:?}")
}

/// What many seeds come to.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    events: u64,
    bytes: u64,
    lower_limit: u64,
    failures: Vec<(u64, Failure)>,
}

/// Many seeds, as many at once as there are processors.
fn many(args: &Args, out: &mut (impl Write + Send)) -> io::Result<ExitCode> {
    let Range { start, end } = args.seeds;
    writeln!(out, "seeds {start}..{end} commit {COMMIT}")?;
    out.flush()?;
    let jobs = args
        .jobs
        .map_or_else(|| thread::available_parallelism().map_or(1, usize::from), usize::from);
    let (next, stop) = (AtomicU64::new(start), AtomicBool::new(false));
    let shared = Mutex::new((Total::default(), &mut *out));
    #[expect(clippy::disallowed_types, reason = "how long the runs took is no part of them")]
    let begun = std::time::Instant::now();
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if end <= seed {
                        break;
                    }
                    let (name, result) = if args.members {
                        let result = examine_members(seed, args.nodes, Trace::off());
                        let count = |outcome: MembersOutcome| Outcome {
                            nodes: outcome.nodes,
                            events: outcome.events,
                            messages: outcome.datagrams,
                            bytes: outcome.bytes,
                            lower_limit: 0,
                            converged_after: outcome.mended_after,
                        };
                        ("members", result.map(count))
                    } else {
                        let (scenario, script) = draw(args, seed);
                        (scenario.name, examine(scenario, &script, Trace::off()))
                    };
                    let mut shared = shared.lock().expect("nobody panics while it is held");
                    let (total, out) = &mut *shared;
                    total.runs += 1;
                    match result {
                        Ok(outcome) => {
                            total.events += outcome.events;
                            total.bytes += outcome.bytes;
                            total.lower_limit += outcome.lower_limit;
                        }
                        Err(failure) => {
                            // At once, since a long run may be interrupted. What cannot be printed now is counted.
                            let _ = writeln!(out, "seed {seed} scenario {name}: {failure}");
                            let _ = out.flush();
                            total.failures.push((seed, failure));
                            stop.store(!args.keep_going, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
    });
    let (mut total, _) = shared.into_inner().expect("nobody panicked while it was held");
    let seconds = begun.elapsed().as_secs_f64();
    total.failures.sort_by_key(|(seed, _)| *seed);
    for (seed, failure) in total.failures.iter().filter(|_| args.shrink) {
        let (scenario, script) = draw(args, *seed);
        let (script, failure) = shrink(scenario, script, failure.clone());
        let (nodes, actions) = script.size();
        writeln!(out, "seed {seed} shrunk to {nodes} nodes, {actions} actions: {failure}")?;
    }
    let Total { runs, events, bytes, lower_limit, failures } = &total;
    writeln!(out, "{runs} seeds, {} failed, {events} events in {seconds:.1} s", failures.len())?;
    writeln!(out, "{bytes} bytes sent where {lower_limit} had to be")?;
    writeln!(out, "{:.0} seeds per hour", *runs as f64 * 3600.0 / seconds)?;
    out.flush()?;
    Ok(failures.first().map_or(ExitCode::SUCCESS, |(_, failure)| code(failure)))
}

fn draw(args: &Args, seed: u64) -> (&'static Scenario, Script) {
    let scenario = args.scenario.unwrap_or_else(|| scenario::drawn_by(seed));
    let script = Script::draw(seed, scenario);
    let script = match args.nodes {
        Some(nodes) => script.with_nodes(nodes),
        None => script,
    };
    (scenario, script)
}

fn code(failure: &Failure) -> ExitCode {
    match failure {
        Failure::Violated(violation) if violation.checker == Checker::Live => ExitCode::from(3),
        Failure::Violated(_) => ExitCode::from(1),
        Failure::Crashed(_) => ExitCode::from(4),
    }
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let usage = || "two numbers with `..` between them, as in 0..1000".to_owned();
    let (from, to) = text.split_once("..").ok_or_else(usage)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| usage());
    Ok(number(from)?..number(to)?)
}

fn parse_scenario(name: &str) -> Result<&'static Scenario, String> {
    scenario::named(name).ok_or_else(|| "there is none of this name: see --list".to_owned())
}
