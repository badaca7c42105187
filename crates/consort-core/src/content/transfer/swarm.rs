//! Nodes that fetch the same from one source and from each other, over links of a fixed speed, in virtual time: how long
//! it takes, and what the source sends.

use alloc::vec;

use super::*;
use crate::content::ChunkHash;
use crate::content::exchange::Promise;

/// What passes a node's link in a microsecond, in each direction: 200 Mbit/s.
const BYTES_PER_US: u64 = 25;
/// How long a message takes, if nothing else is said.
const LATENCY_US: u64 = 1_000;
const CHUNK_BYTES: u32 = 64 << 10;
const CHUNKS: usize = 4096;
/// What a node wants at a time.
const WANTS_BYTES: usize = 64 << 20;
/// A connection that is broken is noticed after this.
const NOTICED_AFTER_US: u64 = 10_000;
/// What came later than it was asked for has no number.
const LATE: Option<u32> = None;

/// What one node alone takes.
const ALONE_US: u64 = CHUNKS as u64 * CHUNK_BYTES as u64 / BYTES_PER_US;

fn chunk(number: usize) -> ChunkRef {
    ChunkRef { hash: ChunkHash::of(&(number as u64).to_le_bytes()), length: CHUNK_BYTES }
}

fn id(node: usize) -> NodeId {
    NodeId([u8::try_from(node).expect("few nodes"); 16])
}

enum Event {
    Asked { at: usize, by: usize, id: u32, chunks: Vec<usize> },
    Sent { by: usize },
    Answered { at: usize, by: usize, id: Option<u32>, chunks: Vec<(usize, Outcome)> },
    Due { at: usize },
    Begins { at: usize },
    Killed { node: usize },
    Gone { at: usize, node: usize },
}

struct Node {
    transfer: Transfer,
    has: Vec<bool>,
    /// The next chunk to want, and how many are missing.
    next: usize,
    missing: usize,
    /// What each other node asks of it, and whose turn it is.
    asked: Vec<VecDeque<(Option<u32>, Vec<usize>)>>,
    turn: usize,
    /// Who waits for what it is just getting.
    parked: BTreeMap<usize, Vec<usize>>,
    is_sending: bool,
    /// It does not want anything before.
    begins: u64,
    receives_until: u64,
    is_alive: bool,
    /// It promises all that it does not have, and gets none of it.
    lies: bool,
    sent_bytes: u64,
}

struct Swarm {
    now: u64,
    serial: u64,
    events: BTreeMap<(u64, u64), Event>,
    nodes: Vec<Node>,
    /// Chunks that a node wants at a time.
    wants: usize,
    /// How long a message takes.
    latency: u64,
    numbers: BTreeMap<ChunkRef, usize>,
}

impl Swarm {
    /// The first node has everything. `are_linked` says who knows whom.
    fn new(nodes: usize, are_linked: impl Fn(usize, usize) -> bool) -> Self {
        let node = |n: usize| {
            let mut transfer = Transfer::new(id(n), n as u64);
            for other in (0..nodes).filter(|other| *other != n && are_linked(n, *other)) {
                transfer.provider_up(Instant(0), id(other));
            }
            let is_source = n == 0;
            Node {
                transfer,
                has: vec![is_source; CHUNKS],
                next: if is_source { CHUNKS } else { 0 },
                missing: if is_source { 0 } else { CHUNKS },
                asked: vec![VecDeque::new(); nodes],
                turn: 0,
                parked: BTreeMap::new(),
                is_sending: false,
                begins: 0,
                receives_until: 0,
                is_alive: true,
                lies: false,
                sent_bytes: 0,
            }
        };
        let numbers = (0..CHUNKS).map(|number| (chunk(number), number)).collect();
        let (now, serial, events) = (0, 0, BTreeMap::new());
        let wants = WANTS_BYTES / CHUNK_BYTES as usize;
        let (nodes, latency) = ((0..nodes).map(node).collect(), LATENCY_US);
        Self { now, serial, events, nodes, wants, latency, numbers }
    }

    fn after(&mut self, delay_us: u64, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay_us, self.serial), event);
    }

    /// Lets a node want and ask for more.
    fn pump(&mut self, at: usize) {
        let now = Instant(self.now);
        let node = &mut self.nodes[at];
        while node.begins <= self.now && node.next < CHUNKS && node.transfer.wanted() < self.wants {
            node.transfer.want(now, chunk(node.next), Urgency::Later);
            node.next += 1;
        }
        while let Some(effect) = self.nodes[at].transfer.poll(now) {
            if let Effect::Request { peer, id, chunks } = effect {
                let chunks = chunks.iter().map(|chunk| self.numbers[chunk]).collect();
                let to = usize::from(peer.0[0]);
                self.after(self.latency, Event::Asked { at: to, by: at, id, chunks });
            }
        }
        if let Some(due) = self.nodes[at].transfer.deadline() {
            self.after(due.0.saturating_sub(self.now), Event::Due { at });
        }
    }

    /// Sends the next answer; those who asked take turns.
    fn send(&mut self, by: usize) {
        let count = self.nodes.len();
        let node = &mut self.nodes[by];
        let mut others = (1..=count).map(|n| (node.turn + n) % count);
        let Some(to) = others.find(|to| !node.asked[*to].is_empty()) else { return };
        if node.is_sending || !node.is_alive {
            return;
        }
        node.turn = to;
        let (number, chunks) = node.asked[to].pop_front().expect("it is not empty");
        let mut outcomes = Vec::new();
        for n in chunks {
            let promise = match node.has[n] {
                true => None,
                false if node.lies => Some(Promise::Direct),
                false => node.transfer.promise(&chunk(n), id(to)),
            };
            if promise.is_some() {
                node.parked.entry(n).or_default().push(to);
            }
            let missing = promise.map_or(Outcome::Missing, Outcome::Coming);
            outcomes.push((n, if node.has[n] { Outcome::Arrived } else { missing }));
        }
        let came = outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Arrived).count();
        let bytes = came as u64 * u64::from(CHUNK_BYTES) + 100;
        node.sent_bytes += bytes;
        node.is_sending = true;
        let takes = bytes / BYTES_PER_US;
        let receiver = &mut self.nodes[to];
        let arrives = (self.now + takes + self.latency).max(receiver.receives_until + takes);
        receiver.receives_until = arrives;
        self.after(takes, Event::Sent { by });
        let answered = Event::Answered { at: to, by, id: number, chunks: outcomes };
        self.after(arrives - self.now, answered);
    }

    fn on_answered(
        &mut self,
        at: usize,
        by: usize,
        number: Option<u32>,
        chunks: &[(usize, Outcome)],
    ) {
        let node = &mut self.nodes[at];
        let now = Instant(self.now);
        for (n, _) in chunks.iter().filter(|(_, outcome)| *outcome == Outcome::Arrived) {
            node.missing -= usize::from(!core::mem::replace(&mut node.has[*n], true));
            for asker in node.parked.remove(n).unwrap_or_default() {
                node.asked[asker].push_back((LATE, vec![*n]));
            }
            if number == LATE {
                node.transfer.arrived_late(now, id(by), chunk(*n));
            }
        }
        if let Some(number) = number {
            let outcomes: Vec<Outcome> = chunks.iter().map(|(_, outcome)| *outcome).collect();
            node.transfer.answered(now, id(by), number, &outcomes);
        }
        self.pump(at);
        self.send(at);
    }

    /// Runs until all that are alive have everything.
    fn run(mut self) -> Self {
        for at in 0..self.nodes.len() {
            self.pump(at);
            self.after(self.nodes[at].begins, Event::Begins { at });
        }
        while self.nodes.iter().any(|node| node.is_alive && node.missing != 0) {
            let ((now, _), event) = self.events.pop_first().expect("something is still to come");
            self.now = now;
            assert!(now < 20 * ALONE_US, "it does not come to an end");
            let (Event::Asked { at: node, .. }
            | Event::Sent { by: node }
            | Event::Answered { at: node, .. }
            | Event::Due { at: node }
            | Event::Begins { at: node }
            | Event::Killed { node }
            | Event::Gone { at: node, .. }) = event;
            if !self.nodes[node].is_alive {
                continue;
            }
            match event {
                Event::Asked { at, by, id, chunks } => {
                    self.nodes[at].asked[by].push_back((Some(id), chunks));
                    self.send(at);
                }
                Event::Sent { by } => {
                    self.nodes[by].is_sending = false;
                    self.send(by);
                }
                Event::Answered { at, by, id, chunks } => self.on_answered(at, by, id, &chunks),
                Event::Due { at } => {
                    let transfer = &mut self.nodes[at].transfer;
                    if transfer.deadline().is_some_and(|due| due.0 <= now) {
                        transfer.on_deadline(Instant(now));
                        self.pump(at);
                    }
                }
                Event::Begins { at } => self.pump(at),
                Event::Killed { node } => {
                    self.nodes[node].is_alive = false;
                    for at in 0..self.nodes.len() {
                        self.after(NOTICED_AFTER_US, Event::Gone { at, node });
                    }
                }
                Event::Gone { at, node } => {
                    self.nodes[at].transfer.provider_down(Instant(now), id(node));
                    self.nodes[at].asked[node].clear();
                    self.pump(at);
                }
            }
        }
        self
    }

    /// How often the source sent everything.
    fn copies(&self) -> f64 {
        self.nodes[0].sent_bytes as f64 / (CHUNKS as f64 * f64::from(CHUNK_BYTES))
    }

    /// How long it took, as a multiple of what one alone takes.
    fn time(&self) -> f64 {
        self.now as f64 / ALONE_US as f64
    }
}

#[test]
fn many_take_little_longer_than_one_and_the_source_sends_little_more_than_one_copy() {
    for (nodes, longest, most) in
        [(2, 1.01, 1.01), (3, 1.05, 1.02), (5, 1.15, 1.03), (9, 1.35, 1.05)]
    {
        let swarm = Swarm::new(nodes, |_, _| true).run();
        let (time, copies) = (swarm.time(), swarm.copies());
        assert!(time < longest && copies < most, "{nodes} nodes: time {time}, copies {copies}");
    }
}

#[test]
fn nodes_that_begin_one_after_the_other_get_from_those_before_them_what_these_have() {
    let mut swarm = Swarm::new(9, |_, _| true);
    for (number, node) in swarm.nodes.iter_mut().enumerate() {
        node.begins = 300_000 * number as u64;
    }
    let swarm = swarm.run();
    let (time, copies) = (swarm.time(), swarm.copies());
    assert!(time < 1.6 && copies < 1.3, "time {time}, copies {copies}");
}

#[test]
fn nodes_far_away_that_want_nothing_keep_nobody_from_the_source() {
    let mut swarm = Swarm::new(6, |_, _| true);
    swarm.latency = 150_000;
    for node in &mut swarm.nodes[2..] {
        (node.next, node.missing) = (CHUNKS, 0);
    }
    let time = swarm.run().time();
    assert!(time < 1.5, "it takes {time}");
}

#[test]
fn what_goes_from_one_to_the_next_is_on_all_links_at_once() {
    let swarm = Swarm::new(5, |a, b| a.abs_diff(b) == 1).run();
    assert!(swarm.time() < 1.3, "it takes {}", swarm.time());
    // Everybody knows two others on each side.
    let swarm = Swarm::new(12, |a, b| [1, 2, 10, 11].contains(&a.abs_diff(b))).run();
    assert!(swarm.copies() < 2.0, "the source sends {}", swarm.copies());
}

#[test]
fn a_promise_that_is_not_kept_holds_nobody_up_for_ever() {
    let (asker, giver) = (id(1), id(2));
    let mut transfer = Transfer::new(asker, 1);
    let mut now = Instant(0);
    transfer.provider_up(now, giver);
    transfer.want(now, chunk(0), Urgency::Later);
    let ask = |transfer: &mut Transfer, now: Instant| {
        let Some(Effect::Request { id, .. }) = transfer.poll(now) else {
            panic!("it is not asked for again");
        };
        transfer.answered(now, giver, id, &[Outcome::Coming(Promise::Direct)]);
        assert_eq!(transfer.poll(now), None);
    };
    for _ in 0..3 {
        ask(&mut transfer, now);
        let asked = now;
        while !transfer.queue.contains_key(&(Some(giver), transfer.wants[&chunk(0)].order)) {
            now = transfer.deadline().expect("it is looked at again");
            transfer.on_deadline(now);
        }
        assert!(now <= asked + COMING_AT_MOST + PASSED_OVER_FOR);
    }
    // Nor one that was given on a connection that is gone.
    ask(&mut transfer, now);
    transfer.failed(now, giver);
    let failed = now;
    loop {
        match transfer.poll(now) {
            Some(Effect::Request { .. }) => break,
            Some(_) => {}
            None => {
                now = transfer.deadline().expect("it is looked at again");
                transfer.on_deadline(now);
            }
        }
    }
    assert!(now <= failed + FIRST_REST + FIRST_RETRY);
}

#[test]
fn one_that_promises_everything_and_keeps_nothing_delays_the_whole_by_one_wait() {
    let honest = Swarm::new(2, |_, _| true).run();
    // One that gives nothing at all is waited for less than one that gives something now and then.
    for (has, wait) in [(usize::MAX, QUIET_AT_MOST), (64, COMING_AT_MOST)] {
        let mut swarm = Swarm::new(3, |_, _| true);
        // It wants so little at a time that each wait would stop it.
        swarm.wants = 128;
        let liar = &mut swarm.nodes[1];
        (liar.lies, liar.next, liar.missing) = (true, CHUNKS, 0);
        liar.has.iter_mut().step_by(has).for_each(|has| *has = true);
        let delay = swarm.run().now - honest.now;
        let wait = u64::try_from(wait.as_micros()).expect("short");
        assert!(delay < wait + 1_000_000, "{delay} µs where one wait is {wait} µs");
    }
}

#[test]
fn a_node_that_is_killed_in_the_middle_delays_the_others_little() {
    let before = Swarm::new(5, |_, _| true).run();
    let mut swarm = Swarm::new(5, |_, _| true);
    swarm.after(ALONE_US / 2, Event::Killed { node: 2 });
    let after = swarm.run();
    assert!(after.now < before.now + 1_000_000, "{} instead of {} µs", after.now, before.now);
}
