//! How a deployment would fare: a run of the real protocol with as many nodes, writes and failures as somebody has in
//! mind, measured instead of checked.
//!
//! ```
//! use consort_sim::plan::{Deployment, simulate};
//!
//! let deployment = Deployment { nodes: 20, ..Deployment::default() };
//! let forecast = simulate(&deployment, &mut |_| {}).expect("every node converges");
//! assert!(forecast.convergence.last.as_secs() < 20);
//! ```

use std::time::Duration;

use consort_core::Instant;
use consort_core::limits::MAX_INLINE_BYTES;
use consort_core::random::Random;
use consort_core::store::View;
use thiserror::Error;

use crate::checkers::Violation;
use crate::meter::{Load, Meter};
use crate::network::Conditions;
use crate::node::NodeIndex;
use crate::scenario::{self, Scenario};
use crate::script::{Action, Script, Sees, Write};
use crate::topology::{self, Topology};
use crate::trace::Trace;
use crate::world::World;

/// How long nodes connect before anything is written; and how long they write before anything is measured, since links find
/// out by what is written which of them push.
const CONNECTING: Duration = Duration::from_secs(3);
const WARMING_UP: Duration = Duration::from_secs(5);
/// How long a node that failed is away: at least, and how much is random.
const DOWN_FOR: Duration = Duration::from_secs(1);
const DOWN_JITTER: Duration = Duration::from_secs(4);
/// How often progress is told, and all nodes are compared, in the world's time.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long all may take to become the same.
const CONVERGES_WITHIN: Duration = Duration::from_secs(300);
/// How much slower and faster than the mean latency a way may be, in percent.
const LATENCY_SPREAD_PERCENT: u64 = 50;

/// The most nodes of a plan, and the most bytes of one write: larger contents travel as chunks, which are not simulated.
pub const MAX_NODES: u32 = 100_000;
/// See [`MAX_NODES`].
pub const MAX_SIZE: u32 = 16 * 1024;
const _: () = assert!(MAX_SIZE as usize <= MAX_INLINE_BYTES);

/// What somebody has in mind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deployment {
    /// Nodes, 2 to [`MAX_NODES`].
    pub nodes: u32,
    /// How many of them write; more than there are nodes are as many as there are.
    pub writers: u32,
    /// Writes of all writers together in a second.
    pub writes_per_second: f64,
    /// The bytes of a write, at most [`MAX_SIZE`].
    pub size: u32,
    /// How long they write.
    pub duration: Duration,
    /// A node's uplink, in bytes per second.
    pub bytes_per_second: u64,
    /// How long a packet is under way, on average. Every two nodes have their own: half to one and a half of this.
    pub latency: Duration,
    /// Packets that are lost, of each million.
    pub loss_ppm: u64,
    /// Nodes that fail while others write, and start again some seconds later, of each million.
    pub failures_ppm: u64,
    /// How many neighbours a node has: at least, and at most.
    pub degree: (usize, usize),
    /// Decides everything that is random.
    pub seed: u64,
}

impl Default for Deployment {
    fn default() -> Self {
        Self {
            nodes: 50,
            writers: 10,
            writes_per_second: 20.0,
            size: 2048,
            duration: Duration::from_secs(10),
            bytes_per_second: 125_000_000,
            latency: Duration::from_millis(20),
            loss_ppm: 10_000,
            failures_ppm: 10_000,
            degree: topology::DEGREE,
            seed: 1,
        }
    }
}

/// How it would fare.
#[derive(Clone, Debug, PartialEq)]
pub struct Forecast {
    /// Nodes.
    pub nodes: u32,
    /// Links between them.
    pub links: usize,
    /// What was written: versions, and their bytes as they are stored and sent.
    pub versions: u64,
    /// See [`versions`](Self::versions).
    pub version_bytes: u64,
    /// Nodes that failed meanwhile.
    pub failures: u32,
    /// From when a version is acknowledged to its writer to when it is durable on another node; of all versions and nodes,
    /// also of those that were away.
    pub convergence: Spread<Duration>,
    /// The same, for each whole percent of versions and nodes from 0 to 100: that many were there so soon.
    pub arrivals: Vec<Duration>,
    /// Over how many links a version came to a node.
    pub hops: Spread<u32>,
    /// The mean of it.
    pub mean_hops: f64,
    /// From the last write until all nodes were the same.
    pub settled_after: Duration,
    /// How long traffic was measured: from the first write until all nodes were the same.
    pub measured: Duration,
    /// What a node received.
    pub received: Traffic,
    /// What a node sent.
    pub sent: Traffic,
    /// How often a node was sent each version, on average: once is the least.
    pub copies: f64,
    /// Bytes that the busiest node received beyond one and a half times the versions' own, in a second: none if negative.
    pub beyond: f64,
    /// The part of its uplink that the busiest node used, on average.
    pub busiest_uplink: f64,
    /// What was simulated: everything that happened.
    pub events: u64,
}

/// The middle, the value that all but one in a hundred keep to, and the greatest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spread<T> {
    /// Half are at most this.
    pub p50: T,
    /// All but one in a hundred are.
    pub p99: T,
    /// All are.
    pub last: T,
}

/// Traffic of a node while it was measured: frames of the control connection with their TLS records.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of a node, on average.
    pub mean_bytes: f64,
    /// Messages of a node, on average.
    pub mean_messages: f64,
    /// Bytes of the busiest node.
    pub most_bytes: u64,
    /// Messages of the busiest one.
    pub most_messages: u64,
}

/// How far a simulation has come, in its own time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// So much has passed.
    pub done: Duration,
    /// Of so much; the end may be a little later.
    pub total: Duration,
}

/// Why there is no forecast.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A number makes no sense.
    #[error("{0}")]
    Unfit(&'static str),
    /// The nodes did not become the same: a mistake of the protocol, or a deployment that cannot carry what is written.
    #[error("after {} s, {different} of {nodes} nodes still lack something", within.as_secs())]
    NotConverged {
        /// How long was waited.
        within: Duration,
        /// Nodes that lack something.
        different: usize,
        /// All nodes.
        nodes: usize,
    },
    /// The protocol did what it must not.
    #[error("the protocol did what it must not: {0}")]
    Broken(String),
}

impl From<Violation> for PlanError {
    fn from(violation: Violation) -> Self {
        Self::Broken(violation.to_string())
    }
}

/// Runs the deployment. `tell` hears how far it is, some times for each simulated second.
pub fn simulate(
    deployment: &Deployment,
    tell: &mut dyn FnMut(Progress),
) -> Result<Forecast, PlanError> {
    deployment.check()?;
    let (scenario, script) = (deployment.scenario(), deployment.script());
    let mut world = World::new(&scenario, &script, Trace::off());
    world.topology = Topology::new(deployment.degree);
    world.meter = Some(Meter::new(deployment.nodes as usize));
    let (warm, all) = (CONNECTING + WARMING_UP, CONNECTING + WARMING_UP + deployment.duration);
    let mut run = |world: &mut World<'_, '_>, until: Instant| -> Result<(), PlanError> {
        while world.schedule.now() < until {
            let next = until.min(world.schedule.now() + LOOK_EVERY);
            while let Some(happening) = world.schedule.next(next) {
                world.happen(happening)?;
            }
            let passed = world.schedule.now().since(Instant(0));
            tell(Progress { done: passed, total: all.max(passed) });
        }
        Ok(())
    };
    world.found(deployment.nodes);
    world.schedule_action();
    run(&mut world, Instant(0) + warm)?;
    measured(&mut world).begin(Instant(0) + warm);
    run(&mut world, Instant(0) + all)?;
    let deadline = world.schedule.now() + CONVERGES_WITHIN;
    loop {
        let different = world.different();
        if different == 0 {
            return Ok(deployment.forecast(&mut world));
        }
        if deadline <= world.schedule.now() {
            let (within, nodes) = (CONVERGES_WITHIN, world.nodes.len());
            return Err(PlanError::NotConverged { within, different, nodes });
        }
        let next = world.schedule.now() + LOOK_EVERY;
        run(&mut world, next)?;
    }
}

impl Deployment {
    fn check(&self) -> Result<(), PlanError> {
        let unfit = |what| Err(PlanError::Unfit(what));
        let (least, most) = self.degree;
        match self {
            _ if !(2..=MAX_NODES).contains(&self.nodes) => unfit("there are 2 to 100000 nodes"),
            Self { writers: 0, .. } => unfit("somebody has to write"),
            _ if self.writes(self.duration) == 0 => unfit("nothing is written"),
            _ if MAX_SIZE < self.size => unfit("a write has at most 16 KiB"),
            _ if least == 0 || most < least => unfit("a node has one neighbour or more"),
            Self { bytes_per_second: 0, .. } => unfit("nothing gets over a link of no speed"),
            _ if 500_000 < self.loss_ppm => unfit("at most half of the packets are lost"),
            _ if 1_000_000 < self.failures_ppm => unfit("at most every node fails"),
            _ => Ok(()),
        }
    }

    /// What the ways and the disks are like.
    fn scenario(&self) -> Scenario {
        let mean = u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX);
        let spread = mean / 100 * LATENCY_SPREAD_PERCENT;
        let network = Conditions {
            latency_us: (mean - spread, mean + spread),
            bytes_per_second: self.bytes_per_second,
            loss_ppm: self.loss_ppm,
        };
        Scenario { network, ..scenario::CALM }
    }

    /// Who writes when, and who fails.
    fn script(&self) -> Script {
        let random = &mut Random::new(self.seed);
        let mut moment = |within: Duration| {
            let within = u64::try_from(within.as_micros()).unwrap_or(u64::MAX).max(1);
            Duration::from_micros(random.below(within))
        };
        let writers = self.writers.min(self.nodes);
        let (connected, warm) = (Instant(0) + CONNECTING, Instant(0) + CONNECTING + WARMING_UP);
        let mut actions = Vec::new();
        let mut keys = 0..;
        for (begin, duration) in [(connected, WARMING_UP), (warm, self.duration)] {
            for key in keys.by_ref().take(self.writes(duration)) {
                let content = Some((u64::from(key), self.size));
                let writes = vec![Write { key, sees: Sees::Nothing, content }];
                let action = Action::Write { node: key % writers, writes };
                actions.push((begin + moment(duration), action));
            }
        }
        for place in 0..self.failures() {
            let at = warm + moment(self.duration);
            let node = self.failing(place);
            actions.push((at, Action::Crash { node, power: place % 2 == 0 }));
            actions.push((at + DOWN_FOR + moment(DOWN_JITTER), Action::Start { node }));
        }
        actions.sort_by_key(|(at, _)| *at);
        Script { seed: self.seed, nodes: self.nodes, actions }
    }

    /// How often somebody writes in so much time.
    fn writes(&self, duration: Duration) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded")]
        let writes = (self.writes_per_second * duration.as_secs_f64()).round() as usize;
        writes
    }

    fn failures(&self) -> u32 {
        let failures = u64::from(self.nodes) * self.failures_ppm / 1_000_000;
        u32::try_from(failures).expect("no more than there are nodes")
    }

    /// Those that fail stand evenly among the others, who have no order anyway.
    fn failing(&self, place: u32) -> u32 {
        let node = u64::from(place) * u64::from(self.nodes) / u64::from(self.failures());
        u32::try_from(node).expect("a node")
    }

    fn forecast(&self, world: &mut World<'_, '_>) -> Forecast {
        let events = world.schedule.scheduled();
        let links = world.topology.edges().len();
        let meter = measured(world);
        meter.delays_us.sort_unstable();
        let warm = Instant(0) + CONNECTING + WARMING_UP;
        let last_write = warm + self.duration;
        let measured = meter.last.max(last_write).since(warm);
        let beyond = |load: &Load| {
            let bytes = load.received_bytes as f64 - 1.5 * meter.version_bytes as f64;
            bytes / measured.as_secs_f64()
        };
        let sent = traffic(meter.loads.iter().map(|load| (load.sent_bytes, load.sent_messages)));
        let received: u64 = meter.loads.iter().map(|load| load.received_versions).sum();
        let arrived = |percent: usize| {
            let place = meter.delays_us.len() * percent / 100;
            let delay = meter.delays_us.get(place).or(meter.delays_us.last());
            Duration::from_micros(delay.map_or(0, |delay| u64::from(*delay)))
        };
        let hops = || (0u32..).zip(meter.hops);
        let count = meter.delays_us.len() as f64;
        Forecast {
            nodes: self.nodes,
            links,
            versions: meter.counted as u64,
            version_bytes: meter.version_bytes,
            failures: self.failures(),
            convergence: Spread::of(arrived),
            arrivals: (0..=100).map(arrived).collect(),
            hops: Spread::of(|rank| {
                let mut left = meter.delays_us.len() as u64 * rank as u64 / 100;
                for (hops, count) in hops() {
                    match left.checked_sub(count) {
                        Some(rest) if rest != 0 || rank < 100 => left = rest,
                        _ => return hops,
                    }
                }
                0
            }),
            mean_hops: hops().map(|(hops, n)| f64::from(hops) * n as f64).sum::<f64>() / count,
            settled_after: meter.last.since(last_write),
            measured,
            received: traffic(
                meter.loads.iter().map(|load| (load.received_bytes, load.received_messages)),
            ),
            sent,
            copies: received as f64 / count,
            beyond: meter.loads.iter().map(beyond).fold(f64::NEG_INFINITY, f64::max),
            busiest_uplink: sent.most_bytes as f64
                / measured.as_secs_f64()
                / self.bytes_per_second as f64,
            events,
        }
    }
}

impl<T> Spread<T> {
    /// From the value that so many in a hundred keep to.
    fn of(mut value: impl FnMut(usize) -> T) -> Self {
        Self { p50: value(50), p99: value(99), last: value(100) }
    }
}

fn traffic(loads: impl Iterator<Item = (u64, u64)> + Clone) -> Traffic {
    let nodes = loads.clone().count() as f64;
    let (bytes, messages) =
        loads.clone().fold((0, 0), |sum, load| (sum.0 + load.0, sum.1 + load.1));
    Traffic {
        mean_bytes: bytes as f64 / nodes,
        mean_messages: messages as f64 / nodes,
        most_bytes: loads.clone().map(|load| load.0).max().unwrap_or(0),
        most_messages: loads.map(|load| load.1).max().unwrap_or(0),
    }
}

fn measured<'w>(world: &'w mut World<'_, '_>) -> &'w mut Meter {
    world.meter.as_mut().expect("a plan measures")
}

impl World<'_, '_> {
    /// How many nodes do not hold all that was written.
    fn different(&self) -> usize {
        let versions = self.meter.as_ref().map_or(0, |meter| meter.versions() as u64);
        let lacks = |n: &NodeIndex| {
            let node = self.node(*n);
            node.process.is_none() || node.view().summary().digest.count != versions
        };
        self.members().filter(lacks).count()
    }
}
