//! Membership in a small world: nodes that do nothing but find each other, datagrams and connections as timed queues.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consort_core::protocol::membership::{
    DatasetNews, Effect, Event, GREATEST_DEGREE, LEAST_DEGREE, Liveness, MAX_DATAGRAM_BYTES,
    Member, Membership, News, Word,
};
use consort_core::random::Random;
use consort_core::{Instant, NodeId};

const LATENCY: Duration = Duration::from_millis(10);
/// How long an attempt to connect with somebody who is not there takes.
const REFUSAL: Duration = Duration::from_millis(500);
/// How long silence lasts before a connection is taken for dead.
const SILENCE: Duration = Duration::from_secs(15);

#[derive(Debug)]
enum Happening {
    Deadline { node: usize },
    Event { node: usize, process: u32, event: Event },
    Told { from: usize, to: usize, connection: u64, word: Word },
    Dial { from: usize, to: usize },
    Broken { a: usize, b: usize, connection: u64 },
}

struct Node {
    machine: Option<Membership>,
    process: u32,
    role: Role,
    dials: BTreeSet<usize>,
    /// With whom it shares links, as the effects said.
    links: BTreeSet<usize>,
    sent: u64,
    sent_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Writer,
    Reader,
}

struct World {
    now: Instant,
    random: Random,
    nodes: Vec<Node>,
    queue: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    /// The lower node first; the number of the connection.
    connections: BTreeMap<(usize, usize), u64>,
    /// Which side of the split each node is on.
    split: Vec<u8>,
    loss_percent: u64,
    datagrams_pass: bool,
    /// Nobody knows where any other than this one can be reached.
    first_alone: Option<usize>,
}

fn id(n: usize) -> NodeId {
    NodeId((n as u128 + 1).to_be_bytes())
}

fn index(node: NodeId) -> usize {
    u128::from_be_bytes(node.0) as usize - 1
}

impl World {
    /// A world with so many nodes of these roles, all of which know that all belong to the cluster.
    fn new(roles: &[Role], seed: u64) -> Self {
        Self::with_addresses(roles, None, seed)
    }

    fn with_addresses(roles: &[Role], first_alone: Option<usize>, seed: u64) -> Self {
        let mut world = Self {
            now: Instant(1_000_000),
            random: Random::new(seed),
            nodes: Vec::new(),
            queue: BTreeMap::new(),
            next: 0,
            connections: BTreeMap::new(),
            split: vec![0; roles.len()],
            loss_percent: 0,
            datagrams_pass: true,
            first_alone,
        };
        for &role in roles {
            let (dials, links) = (BTreeSet::new(), BTreeSet::new());
            let node =
                Node { machine: None, process: 0, role, dials, links, sent: 0, sent_bytes: 0 };
            world.nodes.push(node);
        }
        for node in 0..roles.len() {
            world.start(node);
        }
        world
    }

    fn member(&self, n: usize) -> Member {
        let role = self.nodes[n].role;
        Member { node: id(n), passes_on: role != Role::Reader, dialable: self.dialable(n) }
    }

    fn dialable(&self, n: usize) -> bool {
        self.first_alone.is_none_or(|first| first == n)
    }

    fn start(&mut self, n: usize) {
        let seed = self.random.next_u64();
        let member = self.member(n);
        let members = (0..self.nodes.len()).map(|n| self.member(n)).collect();
        let node = &mut self.nodes[n];
        node.process += 1;
        node.machine = Some(Membership::new(member, node.process, seed, self.now));
        self.event(n, Event::Members { members });
    }

    fn crash(&mut self, n: usize) {
        self.nodes[n].machine = None;
        self.nodes[n].dials.clear();
        self.nodes[n].links.clear();
        for (a, b) in self.connections.keys().copied().collect::<Vec<_>>() {
            if a == n || b == n {
                self.disconnect(a, b, n);
            }
        }
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.queue.insert((self.now + delay, self.next), happening);
        self.next += 1;
    }

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.split[a] == self.split[b]
    }

    fn event(&mut self, n: usize, event: Event) {
        let Some(machine) = &mut self.nodes[n].machine else { return };
        let mut effects = Vec::new();
        machine.handle(event, self.now, &mut effects);
        let deadline = machine.deadline();
        self.queue.insert((deadline.max(self.now), self.next), Happening::Deadline { node: n });
        self.next += 1;
        for effect in effects {
            self.carry_out(n, effect);
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Send { to, datagram } => {
                assert!(datagram.len() <= MAX_DATAGRAM_BYTES);
                let to = index(to);
                self.nodes[n].sent += 1;
                self.nodes[n].sent_bytes += datagram.len() as u64;
                let lost = self.random.below(100) < self.loss_percent;
                let connected = self.connections.contains_key(&(n.min(to), n.max(to)));
                if self.reaches(n, to) && !lost && (self.datagrams_pass || connected) {
                    let process = self.nodes[to].process;
                    let event = Event::Received { from: id(n), datagram };
                    self.after(LATENCY, Happening::Event { node: to, process, event });
                }
            }
            Effect::Tell { peer, word } => {
                let to = index(peer);
                let Some(&connection) = self.connections.get(&(n.min(to), n.max(to))) else {
                    return;
                };
                self.after(LATENCY, Happening::Told { from: n, to, connection, word });
            }
            Effect::Connect { peer } => {
                if self.nodes[n].dials.insert(index(peer)) {
                    self.after(LATENCY, Happening::Dial { from: n, to: index(peer) });
                }
            }
            Effect::Disconnect { peer } => {
                let peer = index(peer);
                self.nodes[n].dials.remove(&peer);
                self.disconnect(n, peer, n);
            }
            Effect::Open { peer } => assert!(self.nodes[n].links.insert(index(peer))),
            Effect::Close { peer } => assert!(self.nodes[n].links.remove(&index(peer))),
            Effect::Report => {
                let dataset =
                    DatasetNews { dataset: 1, digest: n as u64, ..DatasetNews::default() };
                let news = News { datasets: vec![dataset], ..News::default() };
                let process = self.nodes[n].process;
                let event = Event::Standing { news };
                self.after(Duration::ZERO, Happening::Event { node: n, process, event });
            }
        }
    }

    /// Ends a connection; `by` knows.
    fn disconnect(&mut self, a: usize, b: usize, by: usize) {
        if self.connections.remove(&(a.min(b), a.max(b))).is_some() {
            let other = if by == a { b } else { a };
            let process = self.nodes[other].process;
            let event = Event::Disconnected { peer: id(by) };
            self.after(LATENCY, Happening::Event { node: other, process, event });
        }
    }

    fn dial(&mut self, from: usize, to: usize) {
        if self.nodes[from].machine.is_none() || !self.nodes[from].dials.contains(&to) {
            return;
        }
        let pair = (from.min(to), from.max(to));
        if self.connections.contains_key(&pair) {
            return;
        }
        if self.nodes[to].machine.is_some() && self.reaches(from, to) && self.dialable(to) {
            self.connections.insert(pair, self.next);
            let (a, b) = (self.member(from), self.member(to));
            self.event(to, Event::Connected { peer: a, dialed: false });
            self.event(from, Event::Connected { peer: b, dialed: true });
        } else {
            self.after(REFUSAL, Happening::Dial { from, to });
            self.event(from, Event::Unreachable { peer: id(to) });
        }
    }

    /// Splits the nodes by `side`, or heals; connections across break after a while.
    fn split_by(&mut self, side: impl Fn(usize) -> u8) {
        self.split = (0..self.nodes.len()).map(side).collect();
        for (&(a, b), &connection) in &self.connections.clone() {
            if !self.reaches(a, b) {
                self.after(SILENCE, Happening::Broken { a, b, connection });
            }
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            self.now = entry.key().0;
            match entry.remove() {
                Happening::Deadline { node } => {
                    let is_due = |machine: &Membership| machine.deadline() <= self.now;
                    if self.nodes[node].machine.as_ref().is_some_and(is_due) {
                        self.event(node, Event::DeadlinePassed);
                    }
                }
                Happening::Event { node, process, event } => {
                    if self.nodes[node].process == process {
                        if let Event::Disconnected { peer } = &event {
                            // Who still wants it dials again.
                            let peer = index(*peer);
                            self.after(LATENCY, Happening::Dial { from: node, to: peer });
                            if self.connections.contains_key(&(node.min(peer), node.max(peer))) {
                                continue;
                            }
                        }
                        self.event(node, event);
                    }
                }
                Happening::Told { from, to, connection, word } => {
                    let pair = (from.min(to), from.max(to));
                    if self.connections.get(&pair) == Some(&connection) {
                        self.event(to, Event::Told { peer: id(from), word });
                    }
                }
                Happening::Dial { from, to } => self.dial(from, to),
                Happening::Broken { a, b, connection } => {
                    if !self.reaches(a, b) && self.connections.get(&(a, b)) == Some(&connection) {
                        self.connections.remove(&(a, b));
                        for (node, peer) in [(a, b), (b, a)] {
                            self.event(node, Event::Disconnected { peer: id(peer) });
                            self.after(LATENCY, Happening::Dial { from: node, to: peer });
                        }
                    }
                }
            }
        }
        self.now = end;
    }

    fn there(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&n| self.nodes[n].machine.is_some()).collect()
    }

    /// How those that are there are seen by those that are there.
    fn seen_as(&self, liveness: Liveness, there: bool) -> usize {
        let see = |n: usize| {
            let machine = self.nodes[n].machine.as_ref().expect("it is there");
            machine
                .members()
                .filter(|m| m.liveness == liveness)
                .filter(|m| self.nodes[index(m.node)].machine.is_some() == there)
                .count()
        };
        self.there().into_iter().map(see).sum()
    }

    /// Whether what anybody writes reaches everybody: through those who pass on.
    fn is_connected(&self) -> bool {
        let there = self.there();
        let passes_on = |n: usize| self.nodes[n].role != Role::Reader;
        let Some(&first) = there.iter().find(|n| passes_on(**n)) else { return false };
        let (mut reached, mut open) = (BTreeSet::from([first]), vec![first]);
        while let Some(n) = open.pop() {
            for &other in self.nodes[n].links.iter().filter(|_| passes_on(n)) {
                if self.nodes[other].links.contains(&n) && reached.insert(other) {
                    open.push(other);
                }
            }
        }
        there.iter().all(|n| reached.contains(n))
    }

    fn degrees(&self) -> (usize, usize) {
        let degrees: Vec<usize> = self.there().iter().map(|n| self.nodes[*n].links.len()).collect();
        (degrees.iter().copied().min().unwrap(), degrees.iter().copied().max().unwrap())
    }

    /// Checks what must hold whenever nothing is on its way.
    #[track_caller]
    fn assert_healthy(&mut self) {
        let on_its_way = |happening: &Happening| match happening {
            Happening::Told { .. } => true,
            Happening::Event { event, .. } => matches!(event, Event::Disconnected { .. }),
            _ => false,
        };
        while self.queue.values().any(on_its_way) {
            self.run_for(LATENCY);
        }
        for n in self.there() {
            let machine = self.nodes[n].machine.as_ref().unwrap();
            let open: BTreeSet<usize> = machine.neighbours().map(index).collect();
            assert_eq!(open, self.nodes[n].links, "node {n}");
            for &other in &self.nodes[n].links {
                assert!(self.nodes[other].links.contains(&n), "{n} and {other} disagree");
            }
        }
        assert!(self.is_connected());
    }
}

fn writers(n: usize) -> Vec<Role> {
    vec![Role::Writer; n]
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn up_to_nine_members_are_all_linked_with_each_other() {
    for n in [2, 3, 9] {
        let mut world = World::new(&writers(n), 1);
        world.run_for(seconds(5));
        assert_eq!(world.degrees(), (n - 1, n - 1));
        world.assert_healthy();
        assert_eq!(world.seen_as(Liveness::Alive, true), n * (n - 1));
    }
}

#[test]
fn who_has_all_its_neighbours_knows_that_at_once() {
    let mut world = World::new(&writers(3), 1);
    world.run_for(20 * LATENCY);
    for node in &world.nodes {
        assert!(node.machine.as_ref().is_some_and(Membership::is_settled));
    }
}

#[test]
fn a_hundred_members_have_few_neighbours_each_and_nobody_is_cut_off() {
    for seed in 0..3 {
        let mut world = World::new(&writers(100), seed);
        world.run_for(seconds(60));
        world.assert_healthy();
        let (least, most) = world.degrees();
        assert!(LEAST_DEGREE <= least && most <= GREATEST_DEGREE, "{least} to {most}");
        assert_eq!(world.seen_as(Liveness::Alive, true), 100 * 99);
    }
}

#[test]
fn readers_are_served_by_few_writers_and_those_by_each_other() {
    let mut roles = vec![Role::Reader; 60];
    roles[..4].fill(Role::Writer);
    let mut world = World::new(&roles, 5);
    world.run_for(seconds(90));
    world.assert_healthy();
}

#[test]
fn who_was_heard_of_before_the_facts_name_it_is_seen_when_they_do() {
    let mut world = World::new(&writers(12), 3);
    world.run_for(seconds(20));
    let all: Vec<Member> = (0..12).map(|n| world.member(n)).collect();
    world.event(0, Event::Members { members: all[..6].to_vec() });
    world.run_for(seconds(2));
    world.event(0, Event::Members { members: all });
    world.run_for(seconds(1));
    let mut seen = world.nodes[0].machine.as_ref().unwrap().members();
    assert!(seen.all(|member| member.liveness == Liveness::Alive));
}

#[test]
fn those_who_crash_are_noticed_and_replaced_and_welcome_when_they_return() {
    let mut world = World::new(&writers(60), 3);
    world.run_for(seconds(40));
    for n in [3, 17, 22, 40, 41, 59] {
        world.crash(n);
    }
    world.run_for(seconds(30));
    assert_eq!(world.seen_as(Liveness::Gone, false), 54 * 6);
    assert_eq!(world.seen_as(Liveness::Alive, true), 54 * 53);
    world.assert_healthy();
    assert!(LEAST_DEGREE <= world.degrees().0);
    for n in [3, 17, 22, 40, 41, 59] {
        world.start(n);
    }
    world.run_for(seconds(30));
    assert_eq!(world.seen_as(Liveness::Alive, true), 60 * 59);
    world.assert_healthy();
}

#[test]
fn the_halves_of_a_cluster_find_each_other_again_after_each_took_the_other_for_gone() {
    for seed in 0..3 {
        let mut world = World::new(&writers(40), seed);
        world.run_for(seconds(40));
        world.split_by(|n| u8::from(n % 2 == 0));
        world.run_for(seconds(60));
        assert_eq!(world.seen_as(Liveness::Gone, true), 40 * 20);
        assert!(!world.is_connected());
        world.split_by(|_| 0);
        world.run_for(seconds(45));
        assert_eq!(world.seen_as(Liveness::Gone, true), 0);
        world.assert_healthy();
    }
}

#[test]
fn losing_one_datagram_in_ten_makes_nobody_gone() {
    let mut world = World::new(&writers(40), 3);
    world.loss_percent = 10;
    world.run_for(seconds(30));
    for _ in 0..60 {
        world.run_for(seconds(1));
        assert_eq!(world.seen_as(Liveness::Gone, true), 0);
    }
    world.assert_healthy();
}

#[test]
fn where_no_datagram_passes_neighbours_are_found_and_kept() {
    for n in [6, 20] {
        let mut world = World::new(&writers(n), 3);
        world.datagrams_pass = false;
        world.run_for(seconds(120));
        world.assert_healthy();
    }
}

#[test]
fn where_only_one_can_be_dialed_all_are_its_neighbours() {
    let mut world = World::with_addresses(&writers(20), Some(4), 3);
    world.run_for(seconds(60));
    world.assert_healthy();
}

#[test]
fn what_each_tells_of_itself_is_known_to_all() {
    let mut world = World::new(&writers(50), 3);
    world.run_for(seconds(45));
    for n in world.there() {
        for member in world.nodes[n].machine.as_ref().unwrap().members() {
            let (at, news) = member.news.expect("everybody told something");
            assert_eq!(news.datasets[0].digest, index(member.node) as u64);
            assert!(world.now.since(at) < seconds(40));
        }
    }
}

/// What a node sends does not depend on how many there are.
#[test]
fn a_member_of_five_hundred_sends_no_more_than_one_of_fifty_may() {
    let rate = |n: usize, settle: u64| {
        let mut world = World::new(&writers(n), 2);
        world.run_for(seconds(settle));
        let before: u64 = world.nodes.iter().map(|node| node.sent).sum();
        world.run_for(seconds(3));
        world.assert_healthy();
        let (least, most) = world.degrees();
        assert!(LEAST_DEGREE <= least && most <= GREATEST_DEGREE, "{least} to {most}");
        let after: u64 = world.nodes.iter().map(|node| node.sent).sum();
        (after - before) as f64 / n as f64 / 3.0
    };
    let (few, many) = (rate(50, 10), rate(500, 4));
    println!("datagrams a second and node: {few:.1} of 50, {many:.1} of 500");
    // A probe and its answer, six gossips, and now and then a call.
    assert!(few < 12.0 && many < 12.0, "{few} of 50, {many} of 500");
}
