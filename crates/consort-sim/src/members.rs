//! Membership alone: machines that join, leave, crash and are cut off from each other, and do nothing but find each other. The
//! real machine decides ([`Membership`]); datagrams are lost, doubled and overtake each other, connections are ordered until they break.
//!
//! What else happens to replicas is in [`world`](crate::world), whose neighbours are given to them; here nothing is written, so
//! that hundreds of members can be run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use consort_core::protocol::membership::{
    Effect, Event, GREATEST_DEGREE, GREATEST_NEEDY_DEGREE, LEAST_DEGREE, Liveness, MAX_FULL_MESH,
    Member, Membership, News, Word,
};
use consort_core::random::Random;
use consort_core::{Instant, NodeId};

use crate::checkers::{Checked, Checker};
use crate::node::{NodeIndex, id, index_of};
use crate::trace::Trace;

/// How long machines fail, one after another.
const EVENTFUL: Duration = Duration::from_secs(240);
/// How soon after that all must be well again, and how long it must stay so.
const MENDED_WITHIN: Duration = Duration::from_secs(90);
const STAYS_WELL: Duration = Duration::from_secs(60);
/// How long one that could be reached all the time may be taken for gone.
const BELIEVED_WITHIN: Duration = Duration::from_secs(60);
/// When an end of a connection notices that nothing comes any more.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);
/// How long an attempt to connect with one that does not answer takes.
const REFUSAL: Duration = Duration::from_millis(700);
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long what is on its way may make two ends disagree.
const AGREE_WITHIN: Duration = Duration::from_secs(2);

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MembersOutcome {
    /// Machines in the end.
    pub nodes: usize,
    /// Things that happened.
    pub events: u64,
    /// Datagrams that were sent.
    pub datagrams: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took until all was well after everything was mended.
    pub mended_after: Duration,
}

#[derive(Debug)]
enum Happening {
    Act,
    Look,
    Deadline { node: usize },
    Event { node: usize, process: u32, event: Event },
    Word { to: usize, from: usize, connection: u64, word: Word },
    Ended { node: usize, peer: usize, connection: u64 },
    Dial { from: usize, to: usize },
    Silent { pair: (usize, usize), connection: u64 },
    Restart { node: usize },
    Heal { split: u64 },
}

#[derive(Debug)]
struct Machine {
    member: Member,
    process: u32,
    running: Option<Membership>,
    /// It belongs to the cluster.
    belongs: bool,
    dials: BTreeSet<usize>,
    links: BTreeSet<usize>,
    /// With whom the process knows to be connected.
    connected: BTreeMap<usize, u64>,
}

struct Run<'t> {
    now: Instant,
    random: Random,
    machines: Vec<Machine>,
    queue: BTreeMap<(Instant, u64), Happening>,
    next: u64,
    connections: BTreeMap<(usize, usize), u64>,
    splits: BTreeMap<u64, Vec<bool>>,
    loss_ppm: u64,
    eventful: bool,
    /// Since when one that could be reached is taken for gone, and by whom.
    wronged: BTreeMap<(usize, usize), Instant>,
    /// Since when two ends disagree.
    disagree: BTreeMap<(usize, usize), Instant>,
    outcome: MembersOutcome,
    trace: Trace<'t>,
}

/// Runs a seed with so many machines to begin with, or as many as the seed says.
pub(crate) fn run(seed: u64, nodes: Option<u32>, trace: Trace<'_>) -> Checked<MembersOutcome> {
    let mut random = Random::new(seed);
    let count = nodes.map_or_else(|| 2 + random.below(60), u64::from);
    let readers = random.below(3) == 0;
    let loss_ppm = match random.below(3) {
        0 => 0,
        1 => 1_000,
        _ => 30_000,
    };
    let mut run = Run {
        now: Instant(1_000_000),
        random,
        machines: Vec::new(),
        queue: BTreeMap::new(),
        next: 0,
        connections: BTreeMap::new(),
        splits: BTreeMap::new(),
        loss_ppm,
        eventful: true,
        wronged: BTreeMap::new(),
        disagree: BTreeMap::new(),
        outcome: MembersOutcome::default(),
        trace,
    };
    for n in 0..count {
        let passes_on = n == 0 || !readers || run.random.below(4) != 0;
        run.add(passes_on);
    }
    run.tell_facts();
    for n in 0..run.machines.len() {
        run.start(n);
    }
    run.play()
}

impl Run<'_> {
    fn play(mut self) -> Checked<MembersOutcome> {
        let first = self.now + Duration::from_secs(20);
        self.schedule_at(first, Happening::Act);
        self.after(LOOK_EVERY, Happening::Look);
        self.until(self.now + EVENTFUL)?;
        self.mend();
        let mended = self.now;
        let mut trouble = self.trouble();
        while let Some(what) = trouble {
            if MENDED_WITHIN <= self.now.since(mended) {
                return Err(Checker::Linked.finds(what));
            }
            self.until(self.now + LOOK_EVERY)?;
            trouble = self.trouble();
        }
        self.outcome.mended_after = self.now.since(mended);
        let end = self.now + STAYS_WELL;
        while self.now < end {
            self.until(self.now + LOOK_EVERY)?;
            // While a neighbour is exchanged, somebody may have one less.
            if let Some(what) = self.cut_off() {
                return Err(Checker::Linked.finds(what));
            }
        }
        self.outcome.nodes = self.there().count();
        Ok(self.outcome)
    }

    // ---- What happens to machines ----

    fn add(&mut self, passes_on: bool) -> usize {
        let n = self.machines.len();
        let member = Member { node: id_of(n), passes_on, dialable: true };
        self.machines.push(Machine {
            member,
            process: 0,
            running: None,
            belongs: true,
            dials: BTreeSet::new(),
            links: BTreeSet::new(),
            connected: BTreeMap::new(),
        });
        n
    }

    fn facts(&self) -> Vec<Member> {
        self.machines.iter().filter(|m| m.belongs).map(|m| m.member).collect()
    }

    fn tell_facts(&mut self) {
        for node in 0..self.machines.len() {
            let delay = Duration::from_millis(self.random.below(3_000));
            let process = self.machines[node].process;
            let event = Event::Members { members: self.facts() };
            self.after(delay, Happening::Event { node, process, event });
        }
    }

    fn start(&mut self, n: usize) {
        if self.machines[n].running.is_some() || !self.machines[n].belongs {
            return;
        }
        self.note(n, "starts");
        let (seed, members) = (self.random.next_u64(), self.facts());
        let machine = &mut self.machines[n];
        machine.process += 1;
        let started = machine.process;
        machine.running = Some(Membership::new(machine.member, started, seed, self.now));
        self.event(n, Event::Members { members });
    }

    /// Its process is killed; whoever is connected with it hears that, or not, if the machine is off.
    fn stop(&mut self, n: usize, heard: bool) {
        if self.machines[n].running.take().is_none() {
            return;
        }
        self.note(n, if heard { "is killed" } else { "loses power" });
        let machine = &mut self.machines[n];
        machine.dials.clear();
        machine.links.clear();
        let connected = std::mem::take(&mut machine.connected);
        for (peer, connection) in connected {
            self.connections.remove(&pair(n, peer));
            let delay = if heard { self.latency() } else { SILENCE_LIMIT };
            self.after(delay, Happening::Ended { node: peer, peer: n, connection });
        }
        self.wronged.retain(|(a, b), _| *a != n && *b != n);
    }

    fn act(&mut self) {
        let count = self.machines.len() as u64;
        let n = usize::try_from(self.random.below(count)).expect("few machines");
        match self.random.below(10) {
            0..=3 => {
                let heard = self.random.below(2) == 0;
                self.stop(n, heard);
                let away = Duration::from_millis(self.random.below(60_000));
                self.after(away, Happening::Restart { node: n });
            }
            4 | 5 => {
                let passes_on = self.random.below(4) != 0;
                let n = self.add(passes_on);
                self.tell_facts();
                self.start(n);
            }
            6 if n != 0 && 3 < self.there().count() => {
                self.note(n, "leaves");
                self.machines[n].belongs = false;
                self.stop(n, true);
                self.tell_facts();
            }
            7 | 8 => {
                let inside = (0..2 * count).map(|_| self.random.below(2) == 0).collect();
                let split = self.next;
                self.note(0, format_args!("a split begins: {split}"));
                self.splits.insert(split, inside);
                for (&pair, &connection) in &self.connections.clone() {
                    if !self.reaches(pair.0, pair.1) {
                        self.after(SILENCE_LIMIT, Happening::Silent { pair, connection });
                    }
                }
                let length = Duration::from_millis(1_000 + self.random.below(60_000));
                self.after(length, Happening::Heal { split });
            }
            _ => {}
        }
        let pause = Duration::from_millis(500 + self.random.below(15_000));
        self.after(pause, Happening::Act);
    }

    fn mend(&mut self) {
        self.eventful = false;
        self.splits.clear();
        self.note(0, "everything is mended");
        for n in 0..self.machines.len() {
            self.start(n);
        }
    }

    // ---- The loop ----

    fn until(&mut self, end: Instant) -> Checked {
        while let Some(entry) = self.queue.first_entry()
            && entry.key().0 <= end
        {
            self.now = entry.key().0;
            self.outcome.events += 1;
            let happening = entry.remove();
            self.happen(happening)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Checked {
        match happening {
            Happening::Act => {
                if self.eventful {
                    self.act();
                }
            }
            Happening::Look => {
                self.after(LOOK_EVERY, Happening::Look);
                self.look()?;
            }
            Happening::Deadline { node } => {
                let due = |running: &Membership| running.deadline() <= self.now;
                if self.machines[node].running.as_ref().is_some_and(due) {
                    self.event(node, Event::DeadlinePassed);
                }
            }
            Happening::Event { node, process, event } => {
                if self.machines[node].process == process {
                    self.event(node, event);
                }
            }
            Happening::Word { to, from, connection, word } => {
                if self.machines[to].connected.get(&from) == Some(&connection) {
                    self.event(to, Event::Told { peer: id_of(from), word });
                }
            }
            Happening::Ended { node, peer, connection } => self.ended(node, peer, connection),
            Happening::Dial { from, to } => self.dial(from, to),
            Happening::Silent { pair, connection } => {
                if !self.reaches(pair.0, pair.1) && self.connections.get(&pair) == Some(&connection)
                {
                    self.connections.remove(&pair);
                    self.ended(pair.0, pair.1, connection);
                    self.ended(pair.1, pair.0, connection);
                }
            }
            Happening::Restart { node } => self.start(node),
            Happening::Heal { split } => {
                self.note(0, format_args!("a split ends: {split}"));
                self.splits.remove(&split);
            }
        }
        Ok(())
    }

    fn event(&mut self, n: usize, event: Event) {
        let Some(running) = &mut self.machines[n].running else { return };
        let mut effects = Vec::new();
        running.handle(event, self.now, &mut effects);
        let deadline = running.deadline();
        self.schedule_at(deadline, Happening::Deadline { node: n });
        for effect in effects {
            self.carry_out(n, effect);
        }
    }

    fn carry_out(&mut self, n: usize, effect: Effect) {
        match effect {
            Effect::Send { to, datagram } => self.send(n, of(to), &datagram),
            Effect::Tell { peer, word } => {
                let to = of(peer);
                self.note(n, format_args!("says {word:?} to n{to}"));
                if let Some(&connection) = self.machines[n].connected.get(&to) {
                    let delay = self.way(n, to);
                    self.after(delay, Happening::Word { to, from: n, connection, word });
                }
            }
            Effect::Connect { peer } => {
                let to = of(peer);
                if self.machines[n].dials.insert(to) {
                    let delay = self.latency();
                    self.after(delay, Happening::Dial { from: n, to });
                }
            }
            Effect::Disconnect { peer } => {
                let peer = of(peer);
                self.machines[n].dials.remove(&peer);
                if let Some(connection) = self.machines[n].connected.remove(&peer) {
                    self.connections.remove(&pair(n, peer));
                    let delay = self.way(n, peer);
                    self.after(delay, Happening::Ended { node: peer, peer: n, connection });
                }
            }
            Effect::Open { peer } => {
                self.note(n, format_args!("opens to n{}", of(peer)));
                self.machines[n].links.insert(of(peer));
            }
            Effect::Close { peer } => {
                self.note(n, format_args!("closes to n{}", of(peer)));
                self.machines[n].links.remove(&of(peer));
            }
            Effect::Report => {
                let process = self.machines[n].process;
                let event = Event::Standing { news: News::default() };
                self.after(Duration::ZERO, Happening::Event { node: n, process, event });
            }
        }
    }

    // ---- The network ----

    fn reaches(&self, a: usize, b: usize) -> bool {
        self.splits.values().all(|inside| inside.get(a) == inside.get(b))
    }

    fn send(&mut self, from: usize, to: usize, datagram: &[u8]) {
        self.outcome.datagrams += 1;
        self.outcome.bytes += datagram.len() as u64;
        let copies = 1 + u64::from(self.random.below(100) == 0);
        for _ in 0..copies {
            if self.random.below(1_000_000) < self.loss_ppm || !self.reaches(from, to) {
                continue;
            }
            let (delay, process) = (self.latency(), self.machines[to].process);
            let event = Event::Received { from: id_of(from), datagram: datagram.to_vec() };
            self.after(delay, Happening::Event { node: to, process, event });
        }
    }

    /// Anything between half a millisecond and a tenth of a second, so datagrams overtake each other.
    fn latency(&mut self) -> Duration {
        Duration::from_micros(500 + self.random.below(100_000))
    }

    /// The latency of a connection, which keeps its order.
    fn way(&self, a: usize, b: usize) -> Duration {
        let (a, b) = pair(a, b);
        Duration::from_micros(500 + (a as u64 * 7_919 + b as u64 * 104_729) % 80_000)
    }

    fn dial(&mut self, from: usize, to: usize) {
        let dialing = &self.machines[from];
        let wants = dialing.running.is_some() && dialing.dials.contains(&to);
        if !wants || dialing.connected.contains_key(&to) {
            return;
        }
        let answers = self.machines[to].running.is_some()
            && self.reaches(from, to)
            && !self.connections.contains_key(&pair(from, to));
        if !answers {
            self.after(REFUSAL, Happening::Dial { from, to });
            if !self.connections.contains_key(&pair(from, to)) {
                self.event(from, Event::Unreachable { peer: id_of(to) });
            }
            return;
        }
        let connection = self.next;
        self.connections.insert(pair(from, to), connection);
        for (node, peer, dialed) in [(to, from, false), (from, to, true)] {
            // The end of an earlier one, of which nothing was heard yet, comes first.
            if let Some(&earlier) = self.machines[node].connected.get(&peer) {
                self.ended(node, peer, earlier);
            }
            self.machines[node].connected.insert(peer, connection);
            let peer = self.machines[peer].member;
            self.event(node, Event::Connected { peer, dialed });
        }
    }

    /// An end hears that a connection is gone.
    fn ended(&mut self, node: usize, peer: usize, connection: u64) {
        if self.machines[node].connected.get(&peer) == Some(&connection) {
            self.machines[node].connected.remove(&peer);
            self.event(node, Event::Disconnected { peer: id_of(peer) });
            let delay = self.latency();
            self.after(delay, Happening::Dial { from: node, to: peer });
        }
    }

    fn after(&mut self, delay: Duration, happening: Happening) {
        self.schedule_at(self.now + delay, happening);
    }

    fn schedule_at(&mut self, at: Instant, happening: Happening) {
        self.queue.insert((at.max(self.now), self.next), happening);
        self.next += 1;
    }

    fn note(&mut self, n: usize, what: impl std::fmt::Display) {
        let index = NodeIndex(u32::try_from(n).expect("few machines"));
        self.trace.line(self.now, Some(index), format_args!("{what}"));
    }

    // ---- What must hold ----

    fn there(&self) -> impl Iterator<Item = (usize, &Machine, &Membership)> {
        let there = self.machines.iter().enumerate();
        there.filter_map(|(n, machine)| {
            machine.running.as_ref().map(|running| (n, machine, running))
        })
    }

    /// What must hold at any time.
    fn look(&mut self) -> Checked {
        let (mut wronged, mut disagree) = (Vec::new(), Vec::new());
        for (n, machine, running) in self.there() {
            let degree = machine.links.len();
            if GREATEST_NEEDY_DEGREE < degree {
                return Err(Checker::Bounded.finds(format!("n{n} has {degree} neighbours")));
            }
            if running.neighbours().map(of).collect::<BTreeSet<_>>() != machine.links {
                return Err(Checker::Linked.finds(format!("n{n} opened other links than it has")));
            }
            let gone = running.members().filter(|member| member.liveness == Liveness::Gone);
            let gone = gone.map(|member| of(member.node));
            wronged.extend(gone.filter(|&m| self.is_there_for(n, m)).map(|m| (n, m)));
            let one_sided = machine.links.iter().filter(|&&m| {
                self.machines[m].running.is_some() && !self.machines[m].links.contains(&n)
            });
            disagree.extend(one_sided.filter(|&&m| self.reaches(n, m)).map(|&m| (n, m)));
        }
        let now = self.now;
        let carry = |old: &mut BTreeMap<(usize, usize), Instant>, new: Vec<(usize, usize)>| {
            let kept = new.into_iter().map(|pair| (pair, old.get(&pair).copied().unwrap_or(now)));
            *old = kept.collect();
            old.iter()
                .min_by_key(|(_, since)| **since)
                .map(|(pair, since)| (*pair, now.since(*since)))
        };
        let longest = carry(&mut self.wronged, wronged);
        if let Some(((by, who), long)) = longest.filter(|(_, long)| BELIEVED_WITHIN < *long) {
            let what = format!("n{by} takes n{who} for gone, which is there, for {long:?}");
            return Err(Checker::Believed.finds(what));
        }
        let longest = carry(&mut self.disagree, disagree);
        // A machine that lost power is missed only after a while.
        if let Some(((a, b), long)) = longest
            && SILENCE_LIMIT + AGREE_WITHIN < long
        {
            let what = format!("n{a} and n{b} disagree whether they are neighbours, for {long:?}");
            return Err(Checker::Linked.finds(what));
        }
        Ok(())
    }

    fn is_there_for(&self, n: usize, other: usize) -> bool {
        let machine = &self.machines[other];
        machine.running.is_some() && machine.belongs && self.reaches(n, other)
    }

    /// What is not well, when nothing fails any more.
    fn trouble(&self) -> Option<String> {
        let members = self.there().count();
        let sources = self.there().filter(|(_, machine, _)| machine.member.passes_on).count();
        for (n, machine, running) in self.there() {
            for member in running.members() {
                let is_seen = matches!(member.liveness, Liveness::Alive | Liveness::Suspected);
                if self.is_there_for(n, of(member.node)) && !is_seen {
                    let (m, live) = (of(member.node), member.liveness);
                    return Some(format!("n{n} takes n{m} for {live:?}"));
                }
            }
            let degree = machine.links.len();
            let least = match members {
                0..=MAX_FULL_MESH => members - 1,
                _ if members == sources => LEAST_DEGREE,
                _ => 1,
            };
            if degree < least {
                return Some(format!("n{n} has {degree} neighbours of {members}"));
            }
            // Few who pass on have to serve many who do not.
            if members == sources && MAX_FULL_MESH < members && GREATEST_DEGREE < degree {
                return Some(format!("n{n} has {degree} neighbours of {members}"));
            }
        }
        self.cut_off()
    }

    /// Somebody whom not everything reaches that others write.
    fn cut_off(&self) -> Option<String> {
        let passes_on = |n: usize| self.machines[n].member.passes_on;
        let first = self.there().map(|(n, ..)| n).find(|&n| passes_on(n))?;
        let (mut reached, mut open) = (BTreeSet::from([first]), vec![first]);
        while let Some(n) = open.pop() {
            if passes_on(n) {
                let links = self.machines[n].links.iter().copied();
                open.extend(
                    links.filter(|m| self.machines[*m].links.contains(&n) && reached.insert(*m)),
                );
            }
        }
        let lost = self.there().map(|(n, ..)| n).find(|n| !reached.contains(n))?;
        Some(format!("n{lost} is cut off from n{first}"))
    }
}

fn pair(a: usize, b: usize) -> (usize, usize) {
    (a.min(b), a.max(b))
}

fn id_of(n: usize) -> NodeId {
    id(NodeIndex(u32::try_from(n).expect("few machines")))
}

fn of(node: NodeId) -> usize {
    index_of(node).0 as usize
}
