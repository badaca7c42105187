//! Connections between nodes, as TCP makes them: each direction is an ordered pipe that loses nothing until it is cut,
//! and then loses its tail. Nothing is duplicated or reordered within a connection; between a connection and the one
//! that replaces it, anything is.
//!
//! A frame waits for its sender's uplink, then takes the way's latency; a lost packet delays it and all behind it. A
//! split stops frames, one way or both; they go on when it ends, unless an end has given up the silent connection by
//! then. Who wants to be connected to whom is in [`topology`](crate::topology).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use consort_core::Instant;
use consort_core::random::Random;

use crate::node::NodeIndex;
use crate::schedule::{Happening, Schedule};

/// How long an end waits for a sign of life. These are the real network's times.
pub(crate) const SILENCE_LIMIT: Duration = Duration::from_secs(15);
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(15);
/// A lost packet is sent again after this and a round trip.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// The bytes of a packet.
const PACKET: u64 = 1400;
/// One in so many.
const MILLION: u64 = 1_000_000;

/// What the ways between nodes are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// The least and the greatest latency of a way, in microseconds. Each pair of nodes has its own.
    pub latency_us: (u64, u64),
    /// A node's uplink, in bytes per second.
    pub bytes_per_second: u64,
    /// Packets lost in a million.
    pub loss_ppm: u64,
}

/// Two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pair {
    low: NodeIndex,
    high: NodeIndex,
}

/// One of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Low,
    High,
}

impl Pair {
    pub(crate) fn of(a: NodeIndex, b: NodeIndex) -> Self {
        Self { low: a.min(b), high: a.max(b) }
    }

    pub(crate) fn node(self, side: Side) -> NodeIndex {
        match side {
            Side::Low => self.low,
            Side::High => self.high,
        }
    }

    /// The side of `node`, which is one of them.
    pub(crate) fn side(self, node: NodeIndex) -> Side {
        if node == self.low { Side::Low } else { Side::High }
    }
}

impl Side {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Low => Self::High,
            Self::High => Self::Low,
        }
    }
}

/// What arrives.
#[derive(Debug)]
pub(crate) enum Frame {
    Bytes(Vec<u8>),
    /// The other end has closed the connection, or it was cut.
    End,
}

/// Which frames a split stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stops {
    Both,
    Into,
    OutOf,
}

#[derive(Debug)]
struct Split {
    /// By node; later ones are outside.
    inside: Vec<bool>,
    stops: Stops,
}

#[derive(Debug, Default)]
struct Way {
    dialing: bool,
    backoff: Duration,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    number: u32,
    /// To the low side, and to the high one.
    pipes: [Pipe; 2],
    /// A process at one of its ends is gone: one that starts there does not get it.
    orphaned: bool,
}

#[derive(Debug, Default)]
struct Pipe {
    frames: VecDeque<(Instant, Frame)>,
    bytes: usize,
    /// When the last frame arrives.
    last: Instant,
    /// Whether the arrival of the first frame is scheduled. It is not while a split stops it.
    moving: bool,
    /// Nothing more gets in.
    ended: bool,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    conditions: Conditions,
    random: Random,
    ways: BTreeMap<Pair, Way>,
    splits: BTreeMap<u32, Split>,
    /// By node: when its uplink is free again.
    uplinks: BTreeMap<NodeIndex, Instant>,
    connections: u32,
    /// The most bytes that ever waited in one pipe.
    fullest_pipe: usize,
}

impl Network {
    pub(crate) fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            random: Random::new(seed),
            ways: BTreeMap::new(),
            splits: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            connections: 0,
            fullest_pipe: 0,
        }
    }

    /// The most bytes that ever waited in one pipe.
    pub(crate) fn fullest_pipe(&self) -> usize {
        self.fullest_pipe
    }

    /// Has the pair try to connect soon, if it does not already.
    pub(crate) fn redial(&mut self, pair: Pair, schedule: &mut Schedule) {
        let way = self.ways.entry(pair).or_default();
        way.backoff = FIRST_BACKOFF;
        if !way.dialing {
            way.dialing = true;
            let delay = up_to(&mut self.random, 2 * FIRST_BACKOFF);
            schedule.after(delay, Happening::Dial(pair));
        }
    }

    /// One of a pair tries to connect. `possible` unless one of them does not run; then nobody tries again until it is
    /// asked to.
    pub(crate) fn dial(&mut self, pair: Pair, possible: bool, schedule: &mut Schedule) {
        let blocked = self.is_blocked(pair, Side::Low) || self.is_blocked(pair, Side::High);
        let latency = self.latency(pair);
        let Some(way) = self.ways.get_mut(&pair) else { return };
        way.dialing = false;
        if !possible {
            return;
        }
        if blocked {
            let delay = way.backoff / 2 + up_to(&mut self.random, way.backoff);
            way.dialing = true;
            way.backoff = LAST_BACKOFF.min(2 * way.backoff);
            return schedule.after(delay, Happening::Dial(pair));
        }
        self.connections += 1;
        let number = self.connections;
        way.connection = Some(Connection { number, pipes: Default::default(), orphaned: false });
        // A handshake takes a round trip and a half; the one who is dialed is done last.
        let (first, second) = if self.random.below(2) == 0 {
            (Side::Low, Side::High)
        } else {
            (Side::High, Side::Low)
        };
        schedule.after(3 * latency, Happening::Connected { pair, number, side: first });
        schedule.after(4 * latency, Happening::Connected { pair, number, side: second });
    }

    /// Whether this is the pair's connection now.
    pub(crate) fn stands(&self, pair: Pair, number: u32) -> bool {
        let connection = self.ways.get(&pair).and_then(|way| way.connection.as_ref());
        connection.is_some_and(|connection| connection.number == number)
    }

    /// Whether an end of this connection may still take it.
    pub(crate) fn can_be_taken(&self, pair: Pair, number: u32) -> bool {
        let connection = self.ways.get(&pair).and_then(|way| way.connection.as_ref());
        connection.is_some_and(|c| c.number == number && !c.orphaned)
    }

    /// A connection came to nothing.
    pub(crate) fn give_up(&mut self, pair: Pair, number: u32) {
        if let Some(way) = self.ways.get_mut(&pair)
            && way.connection.as_ref().is_some_and(|connection| connection.number == number)
        {
            way.connection = None;
        }
    }

    /// Sends a frame. It is dropped if the connection is gone.
    pub(crate) fn send(
        &mut self,
        from: NodeIndex,
        to: NodeIndex,
        number: u32,
        frame: Frame,
        schedule: &mut Schedule,
    ) {
        let pair = Pair::of(from, to);
        let to = pair.side(to);
        let blocked = self.is_blocked(pair, to);
        let bytes = if let Frame::Bytes(bytes) = &frame { bytes.len() } else { 0 };
        let now = schedule.now();
        let uplink = self.uplinks.entry(from).or_default();
        let sending = bytes as u64 * MILLION / self.conditions.bytes_per_second;
        *uplink = now.max(*uplink) + Duration::from_micros(sending);
        let mut arrival = *uplink + latency(self.conditions, pair);
        let packets = bytes as u64 / PACKET + 1;
        if self.random.below(MILLION) < self.conditions.loss_ppm * packets {
            arrival = arrival + RETRANSMISSION + 2 * latency(self.conditions, pair);
        }
        let Some(pipe) = self.pipe(pair, number, to).filter(|pipe| !pipe.ended) else { return };
        pipe.last = pipe.last.max(arrival);
        pipe.ended = matches!(frame, Frame::End);
        pipe.bytes += bytes;
        let (arrival, waiting) = (pipe.last, pipe.bytes);
        pipe.frames.push_back((arrival, frame));
        if !pipe.moving && !blocked {
            pipe.moving = true;
            schedule.at(arrival, Happening::Arrived { pair, number, to });
        }
        self.fullest_pipe = self.fullest_pipe.max(waiting);
    }

    /// Takes what arrives out of a pipe; nothing if it was lost, or a split stops it.
    pub(crate) fn receive(
        &mut self,
        pair: Pair,
        number: u32,
        to: Side,
        schedule: &mut Schedule,
    ) -> Option<Frame> {
        let blocked = self.is_blocked(pair, to);
        let now = schedule.now();
        let pipe = self.pipe(pair, number, to)?;
        pipe.moving = false;
        // What it was scheduled for was cut off, and something later is in its place.
        let is_due = pipe.frames.front().is_some_and(|(at, _)| *at <= now);
        let arrived = if is_due && !blocked { pipe.frames.pop_front() } else { None };
        if let Some((_, Frame::Bytes(bytes))) = &arrived {
            pipe.bytes -= bytes.len();
        }
        if let Some((at, _)) = pipe.frames.front().filter(|_| !blocked) {
            pipe.moving = true;
            schedule.at(*at, Happening::Arrived { pair, number, to });
        }
        arrived.map(|(_, frame)| frame)
    }

    /// Cuts a connection for both ends: each loses a part of what was on its way to it, and hears that it is over.
    pub(crate) fn cut(&mut self, pair: Pair, schedule: &mut Schedule) {
        let Some(number) = self.number(pair) else { return };
        for to in [Side::Low, Side::High] {
            self.lose_tail(pair, number, to);
            self.send(pair.node(to.other()), pair.node(to), number, Frame::End, schedule);
        }
    }

    /// A node has stopped: what it was sending is cut. Its peers hear of it if its machine still runs; else they notice
    /// the silence.
    pub(crate) fn stop(&mut self, node: NodeIndex, machine_runs: bool, schedule: &mut Schedule) {
        let ways = self.ways.iter().filter(|(pair, _)| pair.low == node || pair.high == node);
        let pairs: Vec<(Pair, u32)> =
            ways.filter_map(|(pair, way)| Some((*pair, way.connection.as_ref()?.number))).collect();
        for (pair, number) in pairs {
            let to = pair.side(node).other();
            self.lose_tail(pair, number, to);
            if let Some(connection) =
                self.ways.get_mut(&pair).and_then(|way| way.connection.as_mut())
            {
                connection.orphaned = true;
            }
            if machine_runs {
                self.send(node, pair.node(to), number, Frame::End, schedule);
            } else {
                self.expect_silence(pair, number, to, schedule);
            }
        }
    }

    /// Separates the nodes that are `inside` from all others.
    pub(crate) fn split(
        &mut self,
        id: u32,
        inside: Vec<bool>,
        stops: Stops,
        schedule: &mut Schedule,
    ) {
        self.splits.insert(id, Split { inside, stops });
        let ways = self
            .ways
            .iter()
            .filter_map(|(pair, way)| Some((*pair, way.connection.as_ref()?.number)));
        let connections: Vec<(Pair, u32)> = ways.collect();
        for (pair, number) in connections {
            for side in [Side::Low, Side::High] {
                if self.is_blocked(pair, side) {
                    self.expect_silence(pair, number, side, schedule);
                }
            }
        }
    }

    /// Ends a split: what it stopped goes on.
    pub(crate) fn mend(&mut self, id: u32, schedule: &mut Schedule) {
        self.splits.remove(&id);
        let pairs: Vec<Pair> = self.ways.keys().copied().collect();
        for (pair, to) in pairs.into_iter().flat_map(|pair| [(pair, Side::Low), (pair, Side::High)])
        {
            if self.is_blocked(pair, to) {
                continue;
            }
            let Some(number) = self.number(pair) else { continue };
            let delay = self.latency(pair);
            let Some(pipe) = self.pipe(pair, number, to) else { continue };
            if let Some((at, _)) = pipe.frames.front().filter(|_| !pipe.moving) {
                let at = (*at).max(schedule.now() + delay);
                pipe.moving = true;
                schedule.at(at, Happening::Arrived { pair, number, to });
            }
        }
    }

    /// Ends all splits.
    pub(crate) fn mend_all(&mut self, schedule: &mut Schedule) {
        for id in self.splits.keys().copied().collect::<Vec<_>>() {
            self.mend(id, schedule);
        }
    }

    /// Whether frames to this side are stopped.
    pub(crate) fn is_blocked(&self, pair: Pair, to: Side) -> bool {
        let inside = |split: &Split, node: NodeIndex| {
            split.inside.get(node.0 as usize).copied().unwrap_or(false)
        };
        self.splits.values().any(|split| {
            let (from, to) = (inside(split, pair.node(to.other())), inside(split, pair.node(to)));
            match split.stops {
                Stops::Both => from != to,
                Stops::Into => !from && to,
                Stops::OutOf => from && !to,
            }
        })
    }

    fn expect_silence(&self, pair: Pair, number: u32, side: Side, schedule: &mut Schedule) {
        schedule.after(SILENCE_LIMIT, Happening::Silent { pair, number, side });
    }

    fn lose_tail(&mut self, pair: Pair, number: u32, to: Side) {
        let kept = self.random.next_u64();
        let Some(pipe) = self.pipe(pair, number, to).filter(|pipe| !pipe.ended) else { return };
        let kept = usize::try_from(kept % (pipe.frames.len() as u64 + 1)).expect("few frames");
        for (_, frame) in pipe.frames.drain(kept..) {
            if let Frame::Bytes(bytes) = frame {
                pipe.bytes -= bytes.len();
            }
        }
    }

    fn number(&self, pair: Pair) -> Option<u32> {
        Some(self.ways.get(&pair)?.connection.as_ref()?.number)
    }

    fn pipe(&mut self, pair: Pair, number: u32, to: Side) -> Option<&mut Pipe> {
        let connection = self.ways.get_mut(&pair)?.connection.as_mut()?;
        (connection.number == number).then(|| &mut connection.pipes[to as usize])
    }

    fn latency(&self, pair: Pair) -> Duration {
        latency(self.conditions, pair)
    }
}

fn up_to(random: &mut Random, most: Duration) -> Duration {
    let most = u64::try_from(most.as_micros()).expect("it is seconds");
    Duration::from_micros(random.below(most + 1))
}

/// The latency of the way between two nodes, which is always the same.
fn latency(conditions: Conditions, pair: Pair) -> Duration {
    let (least, greatest) = conditions.latency_us;
    let mut random = Random::new(u64::from(pair.low.0) << 32 | u64::from(pair.high.0));
    Duration::from_micros(least + random.below(greatest - least + 1))
}
