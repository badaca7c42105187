//! Scenarios are data: one table of numbers. A seed draws from them what a run consists of.

use std::time::Duration;

use consort_core::random::Random;

use crate::network::Conditions;

/// What runs of a kind have in common. Counts of faults and of what is written are the most that a run has; each run
/// draws its own, so that some kinds of fault are rare in one run and frequent in another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scenario {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// How often seeds draw it, in proportion to the others: seldom if its runs are long.
    pub weight: u32,
    /// The fewest and the most nodes to begin with.
    pub nodes: (u32, u32),
    /// One in so many nodes only reads; none if zero.
    pub reader_in: u32,
    /// How long writers write and faults happen. Then everything is mended.
    pub eventful: Duration,
    /// How long nothing fails in the beginning.
    pub calm: Duration,

    /// Commits of writers.
    pub writes: u32,
    /// Versions that one node writes at the very beginning, each to a key of its own.
    pub preloaded: u32,
    /// The keys that writers choose from.
    pub keys: u32,
    /// Writes of one commit.
    pub batch: u32,
    /// The longest content, in bytes.
    pub content_bytes: u32,
    /// How often somebody waits until everything is there.
    pub waits: u32,

    /// The ways between nodes.
    pub network: Conditions,
    /// How long a sync takes, in microseconds: at least, at most.
    pub sync_us: (u64, u64),
    /// How far wall clocks are off in the beginning, in milliseconds, and by how much they jump.
    pub clock_ms: i64,
    /// How fast clocks run wrong, in millionths.
    pub drift_ppm: i32,

    /// Processes that are killed, and machines that lose power.
    pub crashes: u32,
    /// Disks that are replaced by empty ones.
    pub wipes: u32,
    /// Connections that are cut.
    pub cuts: u32,
    /// Splits of the network, one way or both.
    pub splits: u32,
    /// Wall clocks that are set.
    pub jumps: u32,
    /// Disks that are slow for a while.
    pub slow_disks: u32,
    /// Machines that are not waited for any longer, for a while.
    pub evictions: u32,
    /// Stores that are restored from a backup.
    pub restores: u32,
    /// Machines that join.
    pub joins: u32,
    /// Machines that leave for good.
    pub leaves: u32,

    /// How soon all must be the same after everything is mended.
    pub converges_within: Duration,
    /// How many times the bytes of all versions that were written each node may send, at most, in hundredths; and how
    /// much it may send for each of its links besides, in bytes.
    pub traffic_percent: u64,
    /// See [`traffic_percent`](Self::traffic_percent).
    pub traffic_per_link: u64,
}

const DATA_CENTRE: Conditions =
    Conditions { latency_us: (100, 2_000), bytes_per_second: 100_000_000, loss_ppm: 10 };
const WORLD: Conditions =
    Conditions { latency_us: (500, 120_000), bytes_per_second: 2_000_000, loss_ppm: 2_000 };

/// A few nodes that nothing happens to.
pub(crate) const CALM: Scenario = Scenario {
    name: "calm",
    about: "nothing fails",
    weight: 3,
    nodes: (2, 8),
    reader_in: 0,
    eventful: Duration::from_secs(20),
    calm: Duration::ZERO,
    writes: 120,
    preloaded: 0,
    keys: 60,
    batch: 6,
    content_bytes: 400,
    waits: 6,
    network: DATA_CENTRE,
    sync_us: (200, 4_000),
    clock_ms: 0,
    drift_ppm: 0,
    crashes: 0,
    wipes: 0,
    cuts: 0,
    splits: 0,
    jumps: 0,
    slow_disks: 0,
    evictions: 0,
    restores: 0,
    joins: 0,
    leaves: 0,
    converges_within: Duration::from_secs(60),
    traffic_percent: 300,
    traffic_per_link: 6_000,
};

/// All scenarios.
pub const ALL: &[Scenario] = &[
    CALM,
    Scenario {
        name: "all",
        about: "everything at once",
        weight: 10,
        nodes: (2, 7),
        reader_in: 6,
        network: WORLD,
        clock_ms: 1_000,
        drift_ppm: 500,
        crashes: 6,
        wipes: 1,
        cuts: 12,
        splits: 4,
        jumps: 3,
        slow_disks: 3,
        evictions: 2,
        restores: 1,
        joins: 2,
        leaves: 2,
        converges_within: Duration::from_secs(120),
        traffic_percent: 500,
        traffic_per_link: 20_000,
        ..CALM
    },
    Scenario {
        name: "crashes",
        about: "processes are killed and machines lose power, while their disks are slow",
        nodes: (2, 5),
        sync_us: (1_000, 60_000),
        crashes: 20,
        slow_disks: 4,
        traffic_percent: 500,
        traffic_per_link: 20_000,
        ..CALM
    },
    Scenario {
        name: "splits",
        about: "the network falls apart, one way or both; connections are cut",
        nodes: (3, 8),
        reader_in: 8,
        network: WORLD,
        cuts: 25,
        splits: 8,
        converges_within: Duration::from_secs(120),
        traffic_percent: 500,
        traffic_per_link: 20_000,
        ..CALM
    },
    Scenario {
        name: "conflicts",
        about: "everybody writes to the same few keys",
        nodes: (2, 5),
        keys: 3,
        content_bytes: 16,
        batch: 3,
        network: WORLD,
        crashes: 3,
        cuts: 8,
        splits: 4,
        clock_ms: 60_000,
        traffic_percent: 500,
        traffic_per_link: 20_000,
        converges_within: Duration::from_secs(120),
        ..CALM
    },
    Scenario {
        name: "clocks",
        about: "clocks are wrong by minutes, run fast or slow, and are set",
        nodes: (2, 4),
        writes: 40,
        clock_ms: 11 * 60_000,
        drift_ppm: 20_000,
        jumps: 6,
        crashes: 2,
        cuts: 3,
        converges_within: Duration::from_secs(30 * 60),
        traffic_percent: 600,
        traffic_per_link: 40_000,
        ..CALM
    },
    Scenario {
        name: "churn",
        about: "machines join, leave, and lose their disks",
        nodes: (3, 6),
        reader_in: 7,
        crashes: 4,
        wipes: 4,
        cuts: 4,
        joins: 5,
        leaves: 4,
        traffic_percent: 600,
        traffic_per_link: 40_000,
        ..CALM
    },
    Scenario {
        name: "flaky",
        about: "a large dataset, a little news, and connections that do not last: links resume where they were",
        weight: 1,
        nodes: (2, 4),
        eventful: Duration::from_secs(30),
        calm: Duration::from_secs(5),
        writes: 400,
        preloaded: 4_000,
        content_bytes: 60,
        network: WORLD,
        cuts: 100,
        traffic_percent: 350,
        traffic_per_link: 20_000,
        ..CALM
    },
    Scenario {
        name: "flood",
        about: "more than windows hold, towards slow disks and over connections that do not last",
        weight: 1,
        nodes: (2, 3),
        writes: 700,
        keys: 2_000,
        batch: 40,
        content_bytes: 16_384,
        eventful: Duration::from_secs(8),
        network: Conditions {
            latency_us: (100, 20_000),
            bytes_per_second: 5_000_000,
            loss_ppm: 100,
        },
        sync_us: (5_000, 200_000),
        cuts: 15,
        slow_disks: 4,
        waits: 2,
        converges_within: Duration::from_secs(120),
        traffic_percent: 500,
        traffic_per_link: 1_000_000,
        ..CALM
    },
    Scenario {
        name: "strangers",
        about: "neighbours that never met compare large datasets of which much has changed, while writers go on",
        weight: 1,
        nodes: (4, 7),
        eventful: Duration::from_secs(30),
        calm: Duration::from_secs(3),
        writes: 500,
        preloaded: 3_000,
        keys: 3_000,
        batch: 40,
        content_bytes: 24,
        network: WORLD,
        crashes: 3,
        wipes: 1,
        cuts: 6,
        splits: 6,
        joins: 6,
        leaves: 6,
        waits: 3,
        converges_within: Duration::from_secs(120),
        traffic_percent: 500,
        traffic_per_link: 200_000,
        ..CALM
    },
    Scenario {
        name: "forgetting",
        about: "deletions are forgotten while machines are away, given up, return, and are restored",
        weight: 4,
        nodes: (2, 6),
        reader_in: 8,
        eventful: Duration::from_secs(240),
        writes: 200,
        keys: 30,
        network: WORLD,
        clock_ms: 2_000,
        crashes: 6,
        wipes: 2,
        cuts: 10,
        splits: 4,
        evictions: 5,
        restores: 2,
        joins: 2,
        leaves: 1,
        converges_within: Duration::from_secs(180),
        traffic_percent: 800,
        traffic_per_link: 100_000,
        ..CALM
    },
    Scenario {
        name: "mesh",
        about: "a hundred nodes, some of which fail",
        weight: 1,
        nodes: (60, 100),
        writes: 60,
        network: WORLD,
        crashes: 6,
        cuts: 20,
        splits: 1,
        waits: 2,
        converges_within: Duration::from_secs(120),
        traffic_percent: 350,
        traffic_per_link: 6_000,
        ..CALM
    },
];

/// The scenario of this name.
pub fn named(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

/// The scenario that a seed draws.
pub fn drawn_by(seed: u64) -> &'static Scenario {
    let all: u32 = ALL.iter().map(|scenario| scenario.weight).sum();
    let mut left = Random::new(seed).below(u64::from(all));
    let is_drawn = |scenario: &&Scenario| {
        let drawn = left < u64::from(scenario.weight);
        left = left.saturating_sub(u64::from(scenario.weight));
        drawn
    };
    ALL.iter().find(is_drawn).expect("it is below the sum of all weights")
}
