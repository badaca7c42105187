//! Runs the real protocol on machines that do not exist, and looks for what goes wrong.
//!
//! Everything that [`consort_core`] asks of the outside is simulated here by one thread and from one seed: time, clocks,
//! the network, disks, crashes, writers. So a run takes milliseconds, is the same each time, and can be made to go as
//! badly as no test on real machines could. `docs/simulator.md` says how to read a run that failed.
//!
//! In reading order: [`scenario`] (what runs are made of), `script` (what will happen to one run), `world` (the loop),
//! `node` and `driver` (one machine, and what the real node's loop does there), `network`, `disk`, `clock`, `topology`
//! (the parts that fail), `members` (a world of its own, in which membership is at work and nothing is written), `history` (what really happened), `checkers` (what must hold), [`shrink`] (shorter runs that
//! fail as well).
//!
//! [`plan`] is the other use of it: how a deployment of thousands of nodes would fare, measured (`meter`), not checked.

mod checkers;
mod clock;
mod disk;
mod driver;
mod faults;
mod history;
mod members;
mod meter;
mod network;
mod node;
pub mod plan;
pub mod scenario;
mod schedule;
mod script;
pub mod shrink;
mod topology;
mod trace;
mod workload;
mod world;

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};

pub use checkers::{Checker, Violation};
pub use members::MembersOutcome;
pub use network::Conditions;
pub use scenario::Scenario;
pub use script::Script;
pub use trace::Trace;
pub use world::Outcome;

use world::World;

/// The commit that this was built from.
pub const COMMIT: &str = env!("CONSORT_COMMIT");

/// How a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A checker found something.
    Violated(Violation),
    /// The code panicked, with these words.
    Crashed(String),
}

impl Failure {
    /// Whether both are of one kind, so that they may have one cause.
    pub fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Violated(one), Self::Violated(other)) => one.checker == other.checker,
            (Self::Crashed(one), Self::Crashed(other)) => one == other,
            _ => false,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violated(violation) => violation.fmt(f),
            Self::Crashed(words) => write!(f, "crashed: {words}"),
        }
    }
}

thread_local! {
    static PANIC: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps the words of panics for [`Failure::Crashed`] instead of printing them. For programs that do nothing else.
pub fn keep_panics() {
    panic::set_hook(Box::new(|info| PANIC.set(info.to_string())));
}

/// Runs membership alone, with so many nodes to begin with, or as many as the seed says.
pub fn examine_members(
    seed: u64,
    nodes: Option<u32>,
    trace: Trace<'_>,
) -> Result<MembersOutcome, Failure> {
    let run = AssertUnwindSafe(|| members::run(seed, nodes, trace));
    match panic::catch_unwind(run) {
        Ok(outcome) => outcome.map_err(Failure::Violated),
        Err(_) => Err(Failure::Crashed(PANIC.take())),
    }
}

/// Runs a script of a scenario.
pub fn examine(scenario: &Scenario, script: &Script, trace: Trace<'_>) -> Result<Outcome, Failure> {
    let run = AssertUnwindSafe(|| World::new(scenario, script, trace).run());
    match panic::catch_unwind(run) {
        Ok(outcome) => outcome.map_err(Failure::Violated),
        Err(_) => Err(Failure::Crashed(PANIC.take())),
    }
}
