//! What will happen to a run from outside, drawn from a scenario by a seed before it begins: the same for every run of
//! that seed, and something that can be shortened.

use std::time::Duration;

use consort_core::Instant;
use consort_core::random::Random;

use crate::network::Stops;
use crate::scenario::Scenario;
use crate::{faults, workload};

/// A run's nodes and everything that happens to it.
#[derive(Clone, Debug)]
pub struct Script {
    pub(crate) seed: u64,
    pub(crate) nodes: u32,
    /// In the order in which they happen.
    pub(crate) actions: Vec<(Instant, Action)>,
}

/// Something that happens to a run. A node is given by any number: the remainder by the number of nodes counts, so that
/// an action means something also when there are fewer.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Somebody commits.
    Write { node: u32, writes: Vec<Write> },
    /// Somebody waits until everything is there that its peers hold.
    Wait { node: u32 },
    /// A process is killed, or its machine loses power. In an empty cluster nobody does.
    Crash { node: u32, power: bool },
    /// A process is killed, and its disk is replaced by an empty one.
    Wipe { node: u32 },
    /// A machine that was stopped starts.
    Start { node: u32 },
    /// The connection of two neighbours is cut.
    Cut { neighbours: u32 },
    /// Some nodes, as their bits in `inside` say, are separated from the others.
    Split { id: u32, inside: u64, stops: Stops },
    /// A split ends.
    Mend { id: u32 },
    /// A wall clock is set.
    Jump { node: u32, ms: i64 },
    /// A disk becomes so many times slower.
    SlowDisk { node: u32, times: u64 },
    /// A disk is as it was.
    UsualDisk { node: u32 },
    /// A machine is not waited for any longer before deletions are forgotten.
    Evict { node: u32 },
    /// It is again.
    Return { node: u32 },
    /// A backup of a machine's store is made.
    Save { node: u32 },
    /// A machine's store is replaced by its backup.
    Restore { node: u32 },
    /// A new machine joins.
    Join { reads_only: bool },
    /// A machine leaves for good.
    Leave { node: u32 },
}

/// One write of a commit.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: u32,
    pub(crate) sees: Sees,
    /// What stands for the content, and its length in bytes; nothing for a deletion.
    pub(crate) content: Option<(u64, u32)>,
}

/// What the writer has in front of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sees {
    Winner,
    Nothing,
    /// One of those that are current.
    Current(u32),
    /// One of all that were ever written to the key.
    Any(u32),
}

impl Script {
    /// Draws a run.
    pub fn draw(seed: u64, scenario: &Scenario) -> Self {
        let random = &mut Random::new(seed ^ 0x5c71_9700);
        let (fewest, most) = scenario.nodes;
        let nodes = fewest + below(random, most - fewest + 1);
        let mut actions = Vec::new();
        workload::draw(scenario, nodes, random, &mut actions);
        faults::draw(scenario, random, &mut actions);
        // Whatever would end later is ended with everything else.
        let end = Instant(0) + scenario.eventful;
        actions.retain(|(at, _)| *at < end);
        actions.sort_by_key(|(at, _)| *at);
        Self { seed, nodes, actions }
    }

    /// The same with another number of nodes to begin with.
    pub fn with_nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many nodes it begins with, and how many actions it has.
    pub fn size(&self) -> (u32, usize) {
        (self.nodes, self.actions.len())
    }
}

/// A moment of the eventful part of a run.
pub(crate) fn moment(scenario: &Scenario, random: &mut Random) -> Instant {
    moment_after(Duration::ZERO, scenario, random)
}

/// A moment of the eventful part of a run, some time after its beginning.
pub(crate) fn moment_after(after: Duration, scenario: &Scenario, random: &mut Random) -> Instant {
    let left = scenario.eventful.saturating_sub(after).as_micros();
    Instant(random.below(u64::try_from(left).expect("it is seconds"))) + after
}

/// A number below `bound`, which is not zero.
pub(crate) fn below(random: &mut Random, bound: u32) -> u32 {
    u32::try_from(random.below(u64::from(bound))).expect("it is below a u32")
}

/// Any number up to `most`.
pub(crate) fn up_to(random: &mut Random, most: u32) -> u32 {
    below(random, most + 1)
}
