//! A run: nodes, what lies between them, and the one loop in which everything happens. First an eventful part, in which
//! writers write and faults happen as the [`script`](crate::script) says; then everything is mended, and all must become
//! the same and come to rest.

use std::fmt;
use std::time::Duration;

use consort_core::model::Frontier;
use consort_core::model::attributes::Attributes;
use consort_core::model::merge::Saw;
use consort_core::protocol::Event;
use consort_core::protocol::event::Access;
use consort_core::protocol::garbage::Registered;
use consort_core::random::Random;
use consort_core::store::memory::MemoryView;
use consort_core::store::{LocalWrite, Store, View};
use consort_core::{Content, Instant, Key};

use crate::checkers::cursors::Cursors;
use crate::checkers::no_resurrection::NoResurrection;
use crate::checkers::{Checked, bounded, causal, converged, durable, forgotten, live, minimal};
use crate::faults;
use crate::history::{History, VersionIndex};
use crate::meter::Meter;
use crate::network::{Network, Pair, SILENCE_LIMIT};
use crate::node::{DATASET, Job, Node, NodeIndex};
use crate::scenario::Scenario;
use crate::schedule::{Happening, Schedule};
use crate::script::{Action, Script, Sees, Write};
use crate::topology::{self, Topology};
use crate::trace::Trace;

/// How often cursors are looked at while things happen, and how often all are compared when they are mended.
const AUDIT_EVERY: Duration = Duration::from_secs(1);
const COMPARE_EVERY: Duration = Duration::from_millis(200);
/// How long after everything is mended something may still be on its way from a machine that left: what only a node that
/// reads has got then is taken by nobody.
const ARRIVED_WITHIN: Duration = Duration::from_secs(20);
/// How long a process may take to open its dataset, in microseconds.
const OPENS_WITHIN_US: u64 = 1_000_000;
/// How long news of who is registered may take to reach a node, in microseconds.
const NEWS_WITHIN_US: u64 = 10_000_000;
/// How far clocks are off when they are mended, in milliseconds.
const MENDED_CLOCK_MS: u64 = 50;

/// What was sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Traffic {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
}

/// What a run that went well was like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Nodes in the end.
    pub nodes: usize,
    /// Everything that was ever scheduled.
    pub events: u64,
    /// Messages sent until all were the same.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes of every version once to every other node.
    pub lower_limit: u64,
    /// How long it took until all were the same, after everything was mended.
    pub converged_after: Duration,
}

/// A run.
pub(crate) struct World<'s, 't> {
    scenario: &'s Scenario,
    script: &'s Script,
    /// The next of the script's actions.
    next_action: usize,
    pub(crate) schedule: Schedule,
    pub(crate) random: Random,
    pub(crate) nodes: Vec<Node>,
    pub(crate) topology: Topology,
    pub(crate) network: Network,
    pub(crate) history: History,
    pub(crate) no_resurrection: NoResurrection,
    cursors: Cursors,
    pub(crate) next_wait: u64,
    pub(crate) traffic: Traffic,
    /// When somebody last had something to say of what is known or forgotten.
    pub(crate) told_at: Instant,
    /// If this is there, what happens is measured, and not checked: a plan is larger than checkers can follow.
    pub(crate) meter: Option<Meter>,
    pub(crate) trace: Trace<'t>,
}

impl<'s, 't> World<'s, 't> {
    pub(crate) fn new(scenario: &'s Scenario, script: &'s Script, trace: Trace<'t>) -> Self {
        let mut random = Random::new(script.seed);
        Self {
            scenario,
            script,
            next_action: 0,
            schedule: Schedule::default(),
            network: Network::new(scenario.network, random.next_u64()),
            random,
            nodes: Vec::new(),
            topology: Topology::new(topology::DEGREE),
            history: History::new(DATASET.fingerprint_key),
            no_resurrection: NoResurrection::default(),
            cursors: Cursors::default(),
            next_wait: 0,
            traffic: Traffic::default(),
            told_at: Instant(0),
            meter: None,
            trace,
        }
    }

    /// Lets everything happen.
    pub(crate) fn run(mut self) -> Checked<Outcome> {
        for n in 0..self.script.nodes {
            let reads_only = n != 0
                && self.scenario.reader_in != 0
                && self.random.below(u64::from(self.scenario.reader_in)) == 0;
            self.join(reads_only);
        }
        self.connect_neighbours();
        self.schedule_action();
        let end = Instant(0) + self.scenario.eventful;
        while self.schedule.now() < end {
            let pause = end.min(self.schedule.now() + AUDIT_EVERY);
            self.run_until(pause)?;
            self.audit()?;
        }
        self.mend_everything()?;
        let converged_after = self.converge()?;
        let links = self.topology.edges().len() as u64;
        let lower_limit = self.history.bytes() * (self.nodes.len() as u64 - 1);
        self.forget_what_was_deleted()?;
        let Traffic { messages, bytes } = self.traffic;
        minimal::check(self.scenario, bytes, lower_limit, links)?;
        self.rest(links)?;
        let (nodes, events) = (self.members().count(), self.schedule.scheduled());
        Ok(Outcome { nodes, events, messages, bytes, lower_limit, converged_after })
    }

    pub(crate) fn node(&self, n: NodeIndex) -> &Node {
        &self.nodes[n.0 as usize]
    }

    pub(crate) fn node_mut(&mut self, n: NodeIndex) -> &mut Node {
        &mut self.nodes[n.0 as usize]
    }

    pub(crate) fn note(&mut self, node: Option<NodeIndex>, what: fmt::Arguments<'_>) {
        self.trace.line(self.schedule.now(), node, what);
    }

    // ---- The parts of a run ----

    fn run_until(&mut self, until: Instant) -> Checked {
        while let Some(happening) = self.schedule.next(until) {
            self.happen(happening)?;
            live::has_an_end(self.schedule.scheduled(), self.nodes.len())?;
        }
        Ok(())
    }

    pub(crate) fn happen(&mut self, happening: Happening) -> Checked {
        match happening {
            Happening::Act => {
                let script = self.script;
                let (_, action) = &script.actions[self.next_action];
                self.next_action += 1;
                self.schedule_action();
                self.act(action)
            }
            Happening::Dial(pair) => {
                self.on_dial(pair);
                Ok(())
            }
            Happening::Connected { pair, number, side } => self.on_connected(pair, number, side),
            Happening::Arrived { pair, number, to } => self.on_arrived(pair, number, to),
            Happening::Silent { pair, number, side } => self.on_silent(pair, number, side),
            Happening::Opened { node, process } => self.on_opened(node, process),
            Happening::Synced { node, process } => self.on_synced(node, process),
            Happening::Wake { node, process } => self.on_wake(node, process),
            Happening::Heard { node } => {
                self.node_mut(node).heard = self.registered();
                self.tell_registered(node)
            }
            Happening::Flushed { node, process, peer, id } => {
                self.on_flushed(node, process, peer, id)
            }
            Happening::AskAgain { node, process, id, after } => {
                self.on_ask_again(node, process, id, after)
            }
        }
    }

    pub(crate) fn schedule_action(&mut self) {
        if let Some((at, _)) = self.script.actions.get(self.next_action) {
            self.schedule.at(*at, Happening::Act);
        }
    }

    /// Looks at what can be looked at in the middle of everything.
    fn audit(&mut self) -> Checked {
        for (a, b) in self.topology.edges() {
            for (n, peer) in [(a, b), (b, a)] {
                let (node, peer) = (self.node(n).view(), self.node(peer));
                if peer.access == Access::Write {
                    let peer = (peer.id, &peer.view());
                    self.cursors.check(&self.history, (n, &node), peer)?;
                }
            }
        }
        Ok(())
    }

    fn mend_everything(&mut self) -> Checked {
        self.note(None, format_args!("everything is mended"));
        self.network.mend_all(&mut self.schedule);
        for n in self.members().collect::<Vec<_>>() {
            let ahead = i64::try_from(self.random.below(MENDED_CLOCK_MS)).expect("milliseconds");
            let sync_us = self.scenario.sync_us;
            let node = self.node_mut(n);
            (node.sync_us, node.clock.ahead_ms, node.clock.drift_ppm) = (sync_us, ahead, 0);
            if self.is_stranded(n)? {
                self.wipe(n)?;
            }
            self.node_mut(n).is_registered = true;
            self.start(n);
        }
        self.spread_the_news();
        Ok(())
    }

    /// Whether a node that only reads has what no writer has any more, or has forgotten what no writer has for certain.
    /// Nobody takes that from it, so it will never be like the others.
    fn is_stranded(&self, n: NodeIndex) -> Checked<bool> {
        let node = self.node(n);
        if node.access == Access::Write {
            return Ok(false);
        }
        let writers = self.writers_but(n);
        let frontier = |view: &MemoryView| {
            let knowledge = view.knowledge();
            knowledge.map(|knowledge| knowledge.frontier.clone()).expect("memory does not fail")
        };
        let mut forgotten = Frontier::new();
        let certain = writers.iter().filter(|writer| !writer.summary().unburied);
        certain.for_each(|writer| forgotten.join(&frontier(writer)));
        if !frontier(&node.view()).is_within(&forgotten) {
            return Ok(true);
        }
        let is_current = |version: &VersionIndex| {
            let key = &self.history.known(*version).key;
            causal::held(&self.history, &node.view(), key).is_ok_and(|held| held.contains(version))
        };
        for version in self.history.all().filter(is_current) {
            if !durable::is_anywhere(&self.history, &writers, version)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The replicas from which others take what they hold, but for one.
    fn writers_but(&self, gone: NodeIndex) -> Vec<MemoryView> {
        let others = self.members().filter(|n| *n != gone).map(|n| self.node(n));
        others.filter(|node| node.access == Access::Write).map(Node::view).collect()
    }

    /// Waits until all are the same; how long that took.
    fn converge(&mut self) -> Checked<Duration> {
        let mended = self.schedule.now();
        let deadline = mended + self.scenario.converges_within;
        let mut looked_again = false;
        while !self.all_done() {
            if !looked_again && mended + ARRIVED_WITHIN <= self.schedule.now() {
                looked_again = true;
                for n in self.members().collect::<Vec<_>>() {
                    if self.is_stranded(n)? {
                        self.wipe(n)?;
                        self.start(n);
                    }
                }
            }
            if deadline <= self.schedule.now() {
                return self.say_what_is_stuck().map(|()| Duration::ZERO);
            }
            self.run_until(self.schedule.now() + COMPARE_EVERY)?;
        }
        self.note(None, format_args!("all are the same"));
        let replicas = self.members().map(|n| (n, self.node(n).view()));
        converged::check(&self.history, replicas)?;
        for n in self.members() {
            durable::everything(&self.history, n, &self.node(n).view())?;
        }
        self.audit()?;
        Ok(self.schedule.now().since(mended))
    }

    fn all_done(&self) -> bool {
        let is_done = |n| {
            let node = self.node(n);
            let head = node.view().summary().head.sequence;
            let mut links = node.process.iter().flat_map(|process| process.replica.links(head));
            node.disk.is_idle() && links.all(live::is_done)
        };
        self.members().all(is_done)
            && converged::say_the_same(self.members().map(|n| self.node(n).view()))
    }

    fn say_what_is_stuck(&self) -> Checked {
        let digests = self.members().map(|n| {
            let node = self.node(n);
            let (view, idle) = (node.view(), node.disk.is_idle());
            let head = view.summary().head.sequence;
            let links = node.process.iter().flat_map(|process| process.replica.links(head));
            let links: Vec<String> = links
                .map(|link| {
                    let peer = crate::node::index_of(link.peer);
                    format!("{peer} {:?} behind {} lacks {}", link.phase, link.behind, link.lacks)
                })
                .collect();
            let digest = view.summary().digest;
            let mark = view.summary().frontier;
            format!(
                "{n} holds {} ({:032x}, {mark:?}), idle {idle}, {links:?}",
                digest.count, digest.sum
            )
        });
        let digests: Vec<String> = digests.collect();
        live::stuck(
            self.scenario.converges_within,
            &format!("not all are the same: {}", digests.join("; ")),
        )
    }

    /// Waits until what was deleted is forgotten everywhere.
    fn forget_what_was_deleted(&mut self) -> Checked {
        let deadline = self.schedule.now() + forgotten::WITHIN;
        loop {
            let registered = self.registered();
            let views = self.members().map(|n| (n, self.node(n).view()));
            let left = forgotten::left(&registered, views)?;
            if left.is_none() && self.all_done() {
                break;
            }
            let what = left.unwrap_or_else(|| "not all have forgotten the same".to_owned());
            if deadline <= self.schedule.now() {
                return live::stuck(forgotten::WITHIN, &what);
            }
            self.run_until(self.schedule.now() + COMPARE_EVERY)?;
        }
        self.note(None, format_args!("what was deleted is forgotten"));
        let replicas = self.members().map(|n| (n, self.node(n).view()));
        converged::check(&self.history, replicas)?;
        for n in self.members() {
            durable::everything(&self.history, n, &self.node(n).view())?;
        }
        Ok(())
    }

    /// Waits until nobody has anything new to say of what is known.
    fn hear_the_last(&mut self) -> Checked {
        let deadline = self.schedule.now() + forgotten::WITHIN;
        while self.schedule.now() < self.told_at + forgotten::SILENCE {
            if deadline <= self.schedule.now() {
                return live::stuck(forgotten::WITHIN, "what is known is still being told");
            }
            self.run_until(self.schedule.now() + COMPARE_EVERY)?;
        }
        Ok(())
    }

    /// Everybody is told that all is there; then nothing is said any more.
    fn rest(&mut self, links: u64) -> Checked {
        let members: Vec<NodeIndex> = self.members().collect();
        members.iter().try_for_each(|n| self.wait(*n))?;
        // Whoever lost power is asked until it is given up, which takes a time of its own.
        let given_up = self.schedule.now() + SILENCE_LIMIT;
        while self.somebody_is_silent() && self.schedule.now() < given_up {
            self.run_until(self.schedule.now() + COMPARE_EVERY)?;
        }
        self.hear_the_last()?;
        self.run_until(self.schedule.now() + live::CALMING)?;
        let before = self.traffic.messages;
        self.run_until(self.schedule.now() + live::REST)?;
        live::at_rest(self.traffic.messages - before, links)?;
        for n in members {
            let node = self.node(n);
            let Some(process) = &node.process else { continue };
            if !process.waits.is_empty() {
                return live::stuck(live::REST, &format!("{n} waits for what is there"));
            }
            let head = node.view().summary().head.sequence;
            process.replica.links(head).try_for_each(|report| live::link(n, report))?;
        }
        let replicas = self.members().map(|n| (n, self.node(n).view()));
        converged::check(&self.history, replicas)
    }

    // ---- What happens from outside ----

    fn act(&mut self, action: &Action) -> Checked {
        let members: Vec<NodeIndex> = self.members().collect();
        let member = |node: u32| members[node as usize % members.len()];
        match action {
            Action::Write { node, writes } => return self.commit(member(*node), writes),
            Action::Wait { node } => return self.wait(member(*node)),
            Action::Crash { node, power } => return self.crash(member(*node), *power),
            Action::Wipe { node } => return self.wipe(member(*node)),
            Action::Start { node } => self.start(member(*node)),
            Action::Cut { neighbours } => {
                let edges = self.topology.edges();
                if !edges.is_empty() {
                    let (a, b) = edges[*neighbours as usize % edges.len()];
                    self.note(Some(a), format_args!("cut from {b}"));
                    self.network.cut(Pair::of(a, b), &mut self.schedule);
                }
            }
            Action::Split { id, inside, stops } => {
                let inside = (0..self.nodes.len()).map(|n| inside >> (n % 64) & 1 != 0).collect();
                self.note(None, format_args!("split {id}: {stops:?} {inside:?}"));
                self.network.split(*id, inside, *stops, &mut self.schedule);
            }
            Action::Mend { id } => {
                self.note(None, format_args!("mend {id}"));
                self.network.mend(*id, &mut self.schedule);
            }
            Action::Jump { node, ms } => {
                let n = member(*node);
                self.note(Some(n), format_args!("its clock is set {ms} ms ahead"));
                self.node_mut(n).clock.ahead_ms = *ms;
            }
            Action::SlowDisk { node, times } => {
                let (least, most) = self.scenario.sync_us;
                self.node_mut(member(*node)).sync_us = (least * times, most * times);
            }
            Action::UsualDisk { node } => {
                self.node_mut(member(*node)).sync_us = self.scenario.sync_us;
            }
            Action::Evict { node } => self.register(member(*node), false),
            Action::Return { node } => self.register(member(*node), true),
            Action::Save { node } => {
                let node = self.node_mut(member(*node));
                node.backup = Some(node.store.clone());
            }
            Action::Restore { node } => return self.restore(member(*node)),
            Action::Join { reads_only } => {
                self.join(*reads_only);
                self.connect_neighbours();
            }
            Action::Leave { node } => return self.leave(member(*node)),
        }
        Ok(())
    }

    fn commit(&mut self, n: NodeIndex, writes: &[Write]) -> Checked {
        let node = self.node(n);
        if node.process.as_ref().is_none_or(|p| !p.is_open) || node.access == Access::Read {
            return Ok(());
        }
        if bounded::WRITTEN < node.disk.unsynced_bytes() {
            return Ok(());
        }
        let now = node.clock.read(self.schedule.now()).wall;
        let writes: Vec<LocalWrite> = writes.iter().map(|write| self.local(n, write)).collect();
        self.note(Some(n), format_args!("writes {}", writes.len()));
        self.write(n, Job::Local { writes, now })
    }

    fn local(&self, n: NodeIndex, write: &Write) -> LocalWrite {
        let key = Key::new(format!("k{}", write.key)).expect("a valid key");
        let current = || {
            let siblings = self.node(n).view().siblings(&key).unwrap_or_default();
            siblings.iter().map(|stored| stored.version.dot).collect()
        };
        let one_of = |dots: Vec<_>, which: u32| match dots.len() {
            0 => Saw::Nothing,
            len => Saw::Version(dots[which as usize % len]),
        };
        let saw = match write.sees {
            Sees::Winner => Saw::Winner,
            Sees::Nothing => Saw::Nothing,
            Sees::Current(which) => one_of(current(), which),
            Sees::Any(which) => {
                let all = self.history.of_key(&key);
                one_of(all.iter().map(|version| self.history.known(*version).dot).collect(), which)
            }
        };
        let content = match write.content {
            None => Content::Deleted,
            Some((value, length)) => {
                let mut bytes = vec![0; length as usize];
                bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
                Content::Inline(bytes.into())
            }
        };
        LocalWrite { key, saw, content, attributes: Attributes::default() }
    }

    fn crash(&mut self, n: NodeIndex, power: bool) -> Checked {
        if self.node(n).process.is_none() {
            return Ok(());
        }
        let how = if power { "loses power" } else { "is killed" };
        self.note(Some(n), format_args!("{how}"));
        let Self { nodes, random, .. } = self;
        let node = &mut nodes[n.0 as usize];
        node.process = None;
        let found = node.disk.crash(random);
        self.network.stop(n, !power, &mut self.schedule);
        self.recover(n, found)
    }

    fn wipe(&mut self, n: NodeIndex) -> Checked {
        self.crash(n, true)?;
        self.note(Some(n), format_args!("gets an empty disk"));
        self.excuse(n)?;
        let Self { nodes, random, .. } = self;
        nodes[n.0 as usize].wipe(random);
        self.no_resurrection.wiped(n);
        self.spread_the_news();
        Ok(())
    }

    fn restore(&mut self, n: NodeIndex) -> Checked {
        if self.node(n).backup.is_none() {
            return Ok(());
        }
        self.crash(n, true)?;
        self.note(Some(n), format_args!("gets the store of its backup"));
        self.excuse(n)?;
        let Self { nodes, random, .. } = self;
        nodes[n.0 as usize].restore(random);
        self.no_resurrection.wiped(n);
        self.spread_the_news();
        Ok(())
    }

    /// From now on, a node is waited for before deletions are forgotten, or is not.
    fn register(&mut self, n: NodeIndex, is_registered: bool) {
        let what = if is_registered { "is registered" } else { "is evicted" };
        self.note(Some(n), format_args!("{what}"));
        self.node_mut(n).is_registered = is_registered;
        self.spread_the_news();
    }

    /// Which replicas are registered now.
    fn registered(&self) -> Vec<Registered> {
        let registered = self.members().map(|n| self.node(n)).filter(|node| node.is_registered);
        registered
            .map(|node| Registered {
                author: node.store.author(),
                writes: node.access == Access::Write,
            })
            .collect()
    }

    /// Everybody hears which replicas are registered, sooner or later.
    fn spread_the_news(&mut self) {
        self.told_at = self.schedule.now();
        for node in self.members().collect::<Vec<_>>() {
            let delay = Duration::from_micros(self.random.below(NEWS_WITHIN_US));
            self.schedule.after(delay, Happening::Heard { node });
        }
    }

    pub(crate) fn tell_registered(&mut self, n: NodeIndex) -> Checked {
        let (node, replicas) = (self.node(n).id, self.node(n).heard.clone());
        self.event(n, Event::Registered { node, replicas })
    }

    /// What only this node has may be lost with it.
    fn excuse(&mut self, gone: NodeIndex) -> Checked {
        let others = self.writers_but(gone);
        for version in self.history.all() {
            let elsewhere = durable::is_anywhere(&self.history, &others, version)?;
            self.history.known_mut(version).excused |= !elsewhere;
        }
        Ok(())
    }

    fn start(&mut self, n: NodeIndex) {
        let Self { nodes, random, schedule, .. } = self;
        let node = &mut nodes[n.0 as usize];
        if node.process.is_some() || !node.is_member {
            return;
        }
        node.start(schedule.now(), random);
        let process = node.processes;
        // Sometimes connections stand before the dataset is open.
        let delay = if random.below(4) == 0 { random.below(OPENS_WITHIN_US) } else { 0 };
        schedule.after(Duration::from_micros(delay), Happening::Opened { node: n, process });
        self.note(Some(n), format_args!("starts"));
        for neighbour in self.topology.neighbours(n).collect::<Vec<_>>() {
            self.redial(Pair::of(n, neighbour));
        }
    }

    /// So many nodes are there from the beginning and hear of all at once: of one after the other, each of them
    /// would hear as often as there are nodes.
    pub(crate) fn found(&mut self, nodes: u32) {
        let founders: Vec<NodeIndex> = (0..nodes).map(|_| self.admit(false)).collect();
        self.spread_the_news();
        founders.into_iter().for_each(|n| self.start(n));
        self.connect_neighbours();
    }

    fn join(&mut self, reads_only: bool) {
        let n = self.admit(reads_only);
        self.spread_the_news();
        self.start(n);
    }

    fn admit(&mut self, reads_only: bool) -> NodeIndex {
        let n = NodeIndex(u32::try_from(self.nodes.len()).expect("few nodes"));
        let access = if reads_only { Access::Read } else { Access::Write };
        let mut node = Node::new(n, access, self.scenario.sync_us, &mut self.random);
        let drift = self.scenario.drift_ppm;
        let drifts = self.random.below(2 * u64::from(drift.unsigned_abs()) + 1);
        node.clock.drift_ppm = i32::try_from(drifts).expect("millionths") - drift;
        node.clock.ahead_ms = faults::wrong_by(self.scenario, &mut self.random);
        self.nodes.push(node);
        self.topology.join(n, !reads_only);
        self.note(Some(n), format_args!("joins, {access:?}"));
        n
    }

    fn leave(&mut self, n: NodeIndex) -> Checked {
        let writes = |other: &NodeIndex| *other != n && self.node(*other).access == Access::Write;
        if !self.members().any(|other| writes(&other)) {
            return Ok(());
        }
        self.note(Some(n), format_args!("leaves"));
        self.excuse(n)?;
        self.crash(n, false)?;
        self.node_mut(n).is_member = false;
        self.topology.leave(n);
        self.spread_the_news();
        self.connect_neighbours();
        Ok(())
    }

    fn connect_neighbours(&mut self) {
        for (a, b) in self.topology.mend(&mut self.random) {
            self.redial(Pair::of(a, b));
        }
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = NodeIndex> {
        (0..).map(NodeIndex).zip(&self.nodes).filter(|(_, node)| node.is_member).map(|(n, _)| n)
    }
}
