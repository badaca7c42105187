//! What a node's process does: hands events to the replica and carries out its effects, as the real node's loop does,
//! message by message through the codec. It decides nothing about the protocol.

use std::time::Duration;

use consort_core::model::Frontier;
use consort_core::protocol::event::Access;
use consort_core::protocol::link::Phase;
use consort_core::protocol::{Effect, Envelope, Event, Message, codec};
use consort_core::store::{LocalWrite, Store, View};
use consort_core::{Key, NodeId};

use crate::checkers::{Checked, Checker, Violation, bounded, causal, durable};
use crate::history::VersionIndex;
use crate::network::{Frame, Pair, Side};
use crate::node::{DATASET, Job, NodeIndex, Process, Wait, index_of};
use crate::schedule::Happening;
use crate::trace::Brief;
use crate::world::World;

/// How soon whoever waits asks again those who have not answered.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest such time: those who pass a barrier on forget it if nobody asks for 15 seconds.
const ASK_AGAIN_AT_LEAST_EVERY: Duration = Duration::from_secs(8);
/// How long a node takes to look at its linked directory.
const FLUSH: Duration = Duration::from_millis(1);

/// Whom a durable commit came from, how much of it was stale, and whether the feed grew.
struct Durable {
    from: Option<(NodeId, usize)>,
    grew: bool,
    /// It was a lesson, of this peer's link or of the replica itself.
    learned: Option<Option<NodeId>>,
}

impl World<'_, '_> {
    /// Hands an event to a node's replica and carries out what that asks for.
    pub(crate) fn event(&mut self, n: NodeIndex, event: Event) -> Checked {
        let now = self.schedule.now();
        let node = self.node_mut(n);
        let (now, view) = (node.clock.read(now), node.view());
        let Some(process) = node.process.as_mut().filter(|process| process.is_open) else {
            return Ok(());
        };
        let mut effects = Vec::new();
        let outcome = process.replica.handle(event, now, &view, &mut effects);
        drop(view);
        outcome.map_err(|error| Checker::Durable.finds(format!("{n}: {error}")))?;
        for effect in effects {
            self.carry_out(n, effect)?;
        }
        self.look_at_waits(n)?;
        self.set_alarm(n);
        Ok(())
    }

    fn carry_out(&mut self, n: NodeIndex, effect: Effect) -> Checked {
        match effect {
            Effect::Send { peer, message } => {
                let peer = index_of(peer);
                let connections = self.node(n).process.as_ref().map(|process| &process.connections);
                let Some(&number) = connections.and_then(|known| known.get(&peer)) else {
                    return Ok(());
                };
                let now = self.schedule.now();
                self.trace.line(now, Some(n), format_args!("-> {peer:<6} {}", Brief(&message)));
                let tells = matches!(message, Message::Frontier { .. } | Message::Known { .. });
                if tells {
                    self.told_at = now;
                }
                let mut bytes = Vec::new();
                codec::encode(&Envelope { dataset: DATASET.id, message }, &mut bytes);
                self.traffic.messages += 1;
                // What is known is told of replicas, not of versions.
                if !tells {
                    self.traffic.bytes += bytes.len() as u64;
                }
                if let Some(meter) = &mut self.meter {
                    meter.sent(n, bytes.len());
                }
                let frame = Frame::Bytes(bytes);
                self.network.send(n, peer, number, frame, &mut self.schedule);
                bounded::pipe(self.network.fullest_pipe())
            }
            Effect::Commit { peer, entries, cursor } => {
                self.write(n, Job::Remote { peer, entries, cursor })
            }
            Effect::Learn { peer, lesson } => self.write(n, Job::Learn { peer, lesson }),
            Effect::FlushDirectory { peer, id } => {
                if let Some(Process { number: process, .. }) = self.node(n).process {
                    self.schedule.after(FLUSH, Happening::Flushed { node: n, process, peer, id });
                }
                Ok(())
            }
            Effect::BarrierReached { id, peer, head } => {
                let waits = self.node_mut(n).process.iter_mut().flat_map(|p| &mut p.waits);
                let asked = |wait: &&mut Wait| wait.id == id && wait.peer == index_of(peer);
                waits.filter(asked).for_each(|wait| wait.head = Some(head));
                Ok(())
            }
            Effect::Disconnect { peer, reason } => {
                let what = format!("{n} accuses {}: {reason}", index_of(peer));
                Err(Checker::Blameless.finds(what))
            }
        }
    }

    // ---- Connections ----

    pub(crate) fn on_dial(&mut self, pair: Pair) {
        let (low, high) = (pair.node(Side::Low), pair.node(Side::High));
        let number = |of: NodeIndex, to: NodeIndex| {
            let process = self.node(of).process.as_ref()?;
            process.connections.get(&to).filter(|number| self.network.stands(pair, **number))
        };
        let runs = |n| self.node(n).process.is_some();
        let connected = number(low, high).is_some() && number(low, high) == number(high, low);
        let possible =
            !connected && runs(low) && runs(high) && self.topology.are_neighbours(low, high);
        self.network.dial(pair, possible, &mut self.schedule);
    }

    pub(crate) fn on_connected(&mut self, pair: Pair, number: u32, side: Side) -> Checked {
        let (n, peer) = (pair.node(side), pair.node(side.other()));
        let peer_runs = self.node(peer).process.is_some();
        let is_good = self.network.can_be_taken(pair, number);
        let Some(process) = self.node_mut(n).process.as_mut().filter(|_| peer_runs && is_good)
        else {
            // It came to nothing; but the one before it is gone as well.
            let before = self.connection(n, peer);
            if before.is_some_and(|before| !self.network.stands(pair, before)) {
                return self.close(n, peer, "it is gone");
            }
            return Ok(());
        };
        // The end of the old connection is told before the new one.
        if process.connections.remove(&peer).is_some() {
            self.forget(n, peer)?;
        }
        if let Some(process) = &mut self.node_mut(n).process {
            process.connections.insert(peer, number);
        }
        self.note(Some(n), format_args!("connected to {peer} ({number})"));
        self.link(n, peer, false)
    }

    pub(crate) fn on_opened(&mut self, n: NodeIndex, number: u32) -> Checked {
        let process = self.node_mut(n).process.as_mut();
        let Some(process) = process.filter(|process| process.number == number) else {
            return Ok(());
        };
        process.is_open = true;
        self.tell_registered(n)?;
        let Some(process) = &self.node(n).process else { return Ok(()) };
        let peers: Vec<NodeIndex> = process.connections.keys().copied().collect();
        peers.into_iter().try_for_each(|peer| self.link(n, peer, true))
    }

    fn link(&mut self, n: NodeIndex, peer: NodeIndex, standing: bool) -> Checked {
        let (peer, access) = (self.node(peer).id, self.node(peer).access);
        let opener = self.node(n).id < peer;
        self.event(n, Event::Connected { peer, access, opener, standing })
    }

    pub(crate) fn on_arrived(&mut self, pair: Pair, number: u32, to: Side) -> Checked {
        let Some(frame) = self.network.receive(pair, number, to, &mut self.schedule) else {
            return Ok(());
        };
        let (n, from) = (pair.node(to), pair.node(to.other()));
        let known = self.connection(n, from);
        match frame {
            Frame::Bytes(bytes) if known == Some(number) => {
                let decoded = codec::decode(&bytes);
                let wrong = |error| Checker::Blameless.finds(format!("{n} from {from}: {error}"));
                let mut message = decoded.map_err(wrong)?.message;
                if let Some(meter) = &mut self.meter {
                    meter.received(n, bytes.len(), &mut message);
                }
                let peer = self.node(from).id;
                self.event(n, Event::Received { peer, message })
            }
            Frame::End if known == Some(number) => self.close(n, from, "it is closed"),
            Frame::Bytes(_) => Ok(()),
            // It ended before it began here, or after this process ended. If the other end still has it, that one hears
            // of its end by what is on its way there.
            Frame::End => {
                if self.connection(from, n) != Some(number) {
                    self.network.give_up(pair, number);
                }
                self.redial(pair);
                Ok(())
            }
        }
    }

    pub(crate) fn on_silent(&mut self, pair: Pair, number: u32, side: Side) -> Checked {
        let (n, peer) = (pair.node(side), pair.node(side.other()));
        let gone = self.network.is_blocked(pair, side) || self.connection(peer, n) != Some(number);
        if gone && self.connection(n, peer) == Some(number) {
            return self.close(n, peer, "it is silent");
        }
        Ok(())
    }

    fn close(&mut self, n: NodeIndex, peer: NodeIndex, why: &str) -> Checked {
        self.note(Some(n), format_args!("disconnected from {peer}: {why}"));
        if let Some(process) = &mut self.node_mut(n).process
            && let Some(number) = process.connections.remove(&peer)
        {
            self.network.send(n, peer, number, Frame::End, &mut self.schedule);
        }
        self.redial(Pair::of(n, peer));
        self.forget(n, peer)
    }

    fn forget(&mut self, n: NodeIndex, peer: NodeIndex) -> Checked {
        if let Some(process) = &mut self.node_mut(n).process {
            process.waits.retain(|wait| wait.peer != peer);
        }
        let peer = self.node(peer).id;
        self.event(n, Event::Disconnected { peer })
    }

    /// Whether a process has a connection whose other end is gone without a word.
    pub(crate) fn somebody_is_silent(&self) -> bool {
        self.members().any(|n| {
            let connections = self.node(n).process.iter().flat_map(|process| &process.connections);
            connections.into_iter().any(|(peer, number)| self.connection(*peer, n) != Some(*number))
        })
    }

    fn connection(&self, n: NodeIndex, peer: NodeIndex) -> Option<u32> {
        self.node(n).process.as_ref()?.connections.get(&peer).copied()
    }

    /// Has two neighbours try to connect.
    pub(crate) fn redial(&mut self, pair: Pair) {
        if self.topology.are_neighbours(pair.node(Side::Low), pair.node(Side::High)) {
            self.network.redial(pair, &mut self.schedule);
        }
    }

    // ---- The disk ----

    /// Gives a commit to the disk.
    pub(crate) fn write(&mut self, n: NodeIndex, job: Job) -> Checked {
        let bytes = job.bytes();
        let peers = self.topology.neighbours(n).count();
        if self.node_mut(n).disk.write(job, bytes) {
            self.sync(n);
        }
        bounded::disk(n, self.node(n), peers)
    }

    fn sync(&mut self, n: NodeIndex) {
        let node = &mut self.nodes[n.0 as usize];
        node.disk.begin_sync();
        let (took, process) = (node.sync_time(&mut self.random), node.processes);
        self.schedule.after(took, Happening::Synced { node: n, process });
    }

    pub(crate) fn on_synced(&mut self, n: NodeIndex, process: u32) -> Checked {
        let node = self.node_mut(n);
        if node.process.as_ref().is_none_or(|running| running.number != process) {
            return Ok(());
        }
        let (jobs, more) = node.disk.end_sync();
        if more {
            self.sync(n);
        }
        let done: Vec<Durable> =
            jobs.into_iter().map(|job| self.apply(n, job, true)).collect::<Checked<_>>()?;
        for Durable { from, grew, learned } in done {
            if let Some(peer) = learned {
                self.event(n, Event::Learned { peer })?;
            }
            if let Some((peer, stale)) = from {
                self.event(n, Event::Committed { peer, stale })?;
            }
            if grew {
                self.event(n, Event::Grew)?;
            }
        }
        Ok(())
    }

    /// What a crash left on the disk is found there; nobody was told of it.
    pub(crate) fn recover(&mut self, n: NodeIndex, found: Vec<Job>) -> Checked {
        found.into_iter().try_for_each(|job| self.apply(n, job, false).map(drop))
    }

    /// A commit is durable: it gets into the store, and is looked at.
    fn apply(&mut self, n: NodeIndex, job: Job, acknowledged: bool) -> Checked<Durable> {
        let now = self.schedule.now();
        let Self { history, nodes, meter, .. } = self;
        let node = &mut nodes[n.0 as usize];
        let failed = |error| Checker::Durable.finds(format!("{n}: {error}"));
        if let Some(meter) = meter {
            let from = job.peer();
            let learned = match &job {
                Job::Learn { peer, .. } => Some(*peer),
                Job::Remote { .. } | Job::Local { .. } => None,
            };
            let applied = node.apply(job).map_err(failed)?;
            meter.durable(n, from.map(index_of), &applied.added, now);
            let from = from.map(|peer| (peer, applied.stale));
            return Ok(Durable { from, grew: !applied.added.is_empty(), learned });
        }
        let (keys, before, applied, from) = match job {
            Job::Learn { peer, lesson } => {
                for (key, dot) in &lesson.dead {
                    let is_over = |version: &VersionIndex| {
                        history.known(*version).deleted || history.is_replaced(*version)
                    };
                    let version = history.find(*dot).filter(is_over);
                    if version.is_none() {
                        let what = format!("{n} drops {key} {dot:?}, which nobody replaced");
                        return Err(Checker::Durable.finds(what));
                    }
                }
                node.store.learn(DATASET.id, lesson).map_err(failed)?;
                return Ok(Durable { from: None, grew: false, learned: Some(peer) });
            }
            Job::Remote { peer, entries, cursor } => {
                let dots: Vec<_> =
                    entries.iter().map(|entry| (entry.key.clone(), entry.version.dot)).collect();
                let keys = dots.iter().map(|(key, _)| key);
                let before = causal::held_by(history, &node.view(), keys.clone())?;
                let knowledge = node.view().knowledge().map_err(failed)?;
                let job = Job::Remote { peer, entries, cursor };
                let applied = node.apply(job).map_err(failed)?;
                let frontier = &knowledge.frontier;
                causal::remote(history, &before, frontier, &dots, &applied, &node.view())
                    .map_err(|violation| at(n, violation))?;
                let keys: Vec<Key> = keys.cloned().collect();
                (keys, before, applied, Some(peer))
            }
            Job::Local { writes, now } => {
                let keys = writes.iter().map(|write: &LocalWrite| &write.key);
                let before = causal::held_by(history, &node.view(), keys.clone())?;
                let job = Job::Local { writes: writes.clone(), now };
                let applied = node.apply(job).map_err(failed)?;
                let view = node.view();
                let written = causal::local(history, &before, &writes, &applied, &view)
                    .map_err(|violation| at(n, violation))?;
                for version in written.into_iter().filter(|_| acknowledged) {
                    let known = history.known_mut(version);
                    (known.acknowledged, known.excused) = (true, false);
                }
                let keys: Vec<Key> = keys.cloned().collect();
                (keys, before, applied, None)
            }
        };
        let after = causal::held_by(history, &node.view(), keys.iter())?;
        self.no_resurrection.changed(history, n, &before, &after)?;
        let (added, stale) = (applied.added.len(), applied.stale);
        let head = applied.summary.head.sequence.0;
        self.note(Some(n), format_args!("durable: {added} new, {stale} known, head {head}"));
        Ok(Durable { from: from.map(|peer| (peer, stale)), grew: added != 0, learned: None })
    }

    // ---- Time ----

    fn set_alarm(&mut self, n: NodeIndex) {
        let node = &mut self.nodes[n.0 as usize];
        let Some(process) = &mut node.process else { return };
        let Some(deadline) = process.replica.deadline() else { return };
        let at = node.clock.world_time_of(deadline);
        if process.wake_at.is_none_or(|set| at < set) {
            process.wake_at = Some(at);
            self.schedule.at(at, Happening::Wake { node: n, process: process.number });
        }
    }

    pub(crate) fn on_wake(&mut self, n: NodeIndex, number: u32) -> Checked {
        let now = self.schedule.now();
        let node = &mut self.nodes[n.0 as usize];
        let local = node.clock.read(now).instant;
        let Some(process) = node.process.as_mut().filter(|process| process.number == number) else {
            return Ok(());
        };
        // One that was set before an earlier one.
        if process.wake_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        process.wake_at = None;
        if process.replica.deadline().is_some_and(|at| at <= local) {
            return self.event(n, Event::DeadlinePassed);
        }
        self.set_alarm(n);
        Ok(())
    }

    // ---- Waiting until everything is there ----

    /// Somebody at `n` waits until it has what its peers hold now.
    pub(crate) fn wait(&mut self, n: NodeIndex) -> Checked {
        let node = self.node(n);
        let Some(process) = &node.process else { return Ok(()) };
        let head = node.view().summary().head.sequence;
        let greeted: Vec<NodeIndex> = process
            .replica
            .links(head)
            .filter(|link| link.phase != Phase::Greeting)
            .map(|link| index_of(link.peer))
            .collect();
        self.next_wait += 1;
        let id = self.next_wait;
        for peer in greeted {
            let Some(connection) = self.connection(n, peer) else { continue };
            let node = self.node(peer);
            // Nobody waits for what a node has that only reads.
            let of = if node.access == Access::Write { node } else { self.node(n) };
            let promised = of.view();
            let wait = Wait { id, peer, connection, promised, head: None };
            let peer = node.id;
            if let Some(process) = &mut self.node_mut(n).process {
                process.waits.push(wait);
            }
            self.event(n, Event::BarrierWanted { peer, id })?;
        }
        self.ask_again_after(ASK_AGAIN_AFTER, n, id);
        Ok(())
    }

    fn ask_again_after(&mut self, after: Duration, node: NodeIndex, id: u64) {
        if let Some(Process { number: process, .. }) = self.node(node).process {
            self.schedule.after(after, Happening::AskAgain { node, process, id, after });
        }
    }

    pub(crate) fn on_ask_again(
        &mut self,
        n: NodeIndex,
        number: u32,
        id: u64,
        after: Duration,
    ) -> Checked {
        let process = self.node(n).process.as_ref().filter(|process| process.number == number);
        let waits = process.into_iter().flat_map(|process| &process.waits);
        let unanswered = waits.filter(|wait| wait.id == id && wait.head.is_none());
        let peers: Vec<NodeIndex> = unanswered.map(|wait| wait.peer).collect();
        if !peers.is_empty() {
            self.ask_again_after((2 * after).min(ASK_AGAIN_AT_LEAST_EVERY), n, id);
        }
        peers.into_iter().try_for_each(|peer| {
            let peer = self.node(peer).id;
            self.event(n, Event::BarrierWanted { peer, id })
        })
    }

    pub(crate) fn on_flushed(
        &mut self,
        n: NodeIndex,
        process: u32,
        peer: NodeId,
        id: u64,
    ) -> Checked {
        let same = self.node(n).process.as_ref().is_some_and(|running| running.number == process);
        if same { self.event(n, Event::DirectoryFlushed { peer, id }) } else { Ok(()) }
    }

    /// Whoever was told to have everything has it.
    fn look_at_waits(&mut self, n: NodeIndex) -> Checked {
        let node = &mut self.nodes[n.0 as usize];
        let Some(process) = node.process.as_mut().filter(|process| !process.waits.is_empty())
        else {
            return Ok(());
        };
        let view = node.store.view(DATASET.id).expect("every store has it open");
        let links: Vec<_> = process.replica.links(view.summary().head.sequence).collect();
        let is_over = |wait: &Wait| {
            let link = links.iter().find(|link| index_of(link.peer) == wait.peer);
            let stands = process.connections.get(&wait.peer) == Some(&wait.connection);
            stands && link.zip(wait.head).is_some_and(|(link, head)| head <= link.applied)
        };
        let (over, waits) = std::mem::take(&mut process.waits).into_iter().partition(is_over);
        process.waits = waits;
        let over: Vec<Wait> = over;
        if over.is_empty() {
            return Ok(());
        }
        // Whoever is about to take a peer's state has dropped what is dead by a frontier that it does not have yet.
        let mut frontier = Frontier::new();
        for node in &self.nodes {
            if let Ok(knowledge) = node.view().knowledge() {
                frontier.join(&knowledge.frontier);
            }
        }
        over.iter().try_for_each(|wait| {
            let peer = self.node(wait.peer).view();
            durable::waited(&self.history, (n, &view), &peer, (&wait.promised, &frontier))
        })
    }
}

fn at(n: NodeIndex, violation: Violation) -> Violation {
    Violation { what: format!("{n} {}", violation.what), ..violation }
}
