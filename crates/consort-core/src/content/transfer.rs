//! Which chunk from whom, next: the decisions of content transfer, without the transfer.
//!
//! Somebody [`want`](Transfer::want)s chunks; providers, the peers that could have them, come and go. After each call
//! the driver does what [`poll`](Transfer::poll) says until it says nothing more, and calls
//! [`on_deadline`](Transfer::on_deadline) when [`deadline`](Transfer::deadline) has passed. Bytes never pass through
//! here: the driver verifies them and reports an [`Outcome`] for each chunk.
//!
//! - Chunks are asked for in batches, of all providers at once, and each chunk of one provider at a time: in the order
//!   in which they were wanted or, where several could have them, by chance among neighbours; what is urgent first.
//! - A provider has as many bytes under way as its window allows: what it sends in about half a second (`provider.rs`).
//!   Of several, one that is new or was not asked for a while is asked for one chunk first.
//! - Nodes that fetch the same share the work: each chunk is fetched from where it is complete by one of them, and by
//!   the others from that one (`rank.rs`), so that the source sends it once.
//! - A provider that keeps no promise while one of them expires is not waited for again before it has kept one.
//! - A provider that fails rests: what it was asked for is asked of others, and after a while it is asked again. What one
//!   is asked for that has become quiet is asked of others, too.
//! - A chunk that every provider lacks is reported, asked for again after a delay, and at once of a provider that is new.

mod provider;
mod rank;

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Bound;
use core::time::Duration;

use self::provider::Provider;
use self::rank::{Fetchers, Lack, Word};
use crate::content::ChunkRef;
use crate::content::exchange::{LATE, Promise};
use crate::limits::MAX_REQUEST_CHUNKS;
use crate::model::NodeId;
use crate::random::Random;
use crate::time::Instant;

pub use self::provider::{
    ANSWER_TIMEOUT, FAST_ANSWER, FETCHES_FOR, FIRST_REST, FIRST_WINDOW_BYTES, KNOWN_FOR, LAST_REST,
    LEAST_WINDOW_BYTES, MAX_REQUESTS, MAX_WINDOW_BYTES, QUIET_AFTER, REST_AFTER_WRONG, SLOW_ANSWER,
};
pub use self::rank::{COMING_AT_MOST, PASSED_OVER_AT_MOST, PASSED_OVER_FOR, QUIET_AT_MOST};

/// Chunks that may be wanted at a time: a gigabyte of them at their average length, which is far more than all windows
/// hold. Each takes about 200 bytes, and 32 for each provider that lacks it.
pub const MAX_WANTS: usize = 16 * 1024;

/// Where several providers could have them, so many chunks are asked for in an order of chance, another one on each
/// node: nodes that begin with different chunks have something to give each other.
pub const SHUFFLED: u64 = 1024;

/// When a chunk that nobody has is asked for again, first: its holders may just be receiving it. Doubled each time.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest time after which a chunk that nobody has is asked for again.
pub const LAST_RETRY: Duration = Duration::from_secs(15);

/// What is asked for first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Somebody waits for this chunk, or does not know what else to want before it is here. Few and small: each is
    /// fetched from where everything is, rather than shared with other nodes.
    #[default]
    Now,
    /// A small content, complete soon.
    Soon,
    /// A part of a large content.
    Later,
}

/// What became of one chunk of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its bytes came, and their hash is right.
    Arrived,
    /// The provider does not have it.
    Missing,
    /// The provider is just getting it, and sends it then without being asked again.
    Coming(Promise),
    /// Bytes came that are not those of the chunk.
    Wrong,
}

/// What the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send a request, and report its end by [`answered`](Transfer::answered) or [`failed`](Transfer::failed).
    Request {
        /// To whom.
        peer: NodeId,
        /// Its id, never used again for any peer before four billion others.
        id: u32,
        /// What to ask for, within the bounds of a [`Request`](super::exchange::Request).
        chunks: Vec<ChunkRef>,
    },
    /// Forget all requests to a provider, and close the connection that they were sent on.
    Drop {
        /// To whom.
        peer: NodeId,
        /// What it did.
        fault: Fault,
    },
    /// Tell whoever wants the chunk that nobody has it now. The want stays until it is cancelled.
    Unavailable {
        /// Which chunk.
        chunk: ChunkRef,
        /// How many providers said that they lack it. The others rest after a failure.
        lacking: usize,
    },
}

/// What a provider did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It sent bytes that are not those of the chunk that was asked for.
    WrongBytes,
    /// It sent nothing for [`ANSWER_TIMEOUT`].
    TimedOut,
}

/// The wants of one node, and whom it asks.
///
/// Wants are bounded by [`MAX_WANTS`], which the caller keeps to; providers by the caller's connections.
#[derive(Debug)]
pub struct Transfer {
    /// By name and length: somebody who names a chunk with a wrong length keeps nobody else from it.
    wants: BTreeMap<ChunkRef, Want>,
    /// What can be asked for now: of one provider, or (none) of those that seem to have everything.
    queue: BTreeMap<(Option<NodeId>, Order), ChunkRef>,
    next_number: u64,
    /// What may have to be asked of somebody else, or of somebody again, by time.
    later: BTreeSet<(Instant, ChunkRef)>,
    /// What nobody has, by the time when it is asked for again.
    retries: BTreeSet<(Instant, ChunkRef)>,
    fetchers: Fetchers,
    providers: BTreeMap<NodeId, Provider>,
    /// Who was asked last: the next one is next.
    turn: NodeId,
    next_id: u32,
    effects: VecDeque<Effect>,
    random: Random,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Order {
    urgency: Urgency,
    /// Others were to be asked first, and did not have it.
    passed_over: bool,
    group: u64,
    chance: u64,
    number: u64,
}

#[derive(Debug)]
struct Want {
    order: Order,
    state: State,
    /// When it is looked whom to ask again.
    later: Option<Instant>,
    /// Who said in this round not to have it.
    lacking: Vec<Lack>,
    /// When the next round begins, if it was reported that nobody has it.
    retry: Option<Instant>,
    rounds: u32,
}

/// What is done about a want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is in the queue of this provider, or of those that seem to have everything.
    Queued(Option<NodeId>),
    /// This provider was asked for it.
    Asked(NodeId),
    /// This provider is just getting it, and sends it then.
    Coming(NodeId),
}

impl Transfer {
    /// Nothing is wanted, and nobody is there. `node` is this one; `seed` spreads the choice of whom to ask first over a
    /// cluster.
    pub fn new(node: NodeId, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut turn = [0; 16];
        turn[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        Self {
            wants: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_number: 0,
            later: BTreeSet::new(),
            retries: BTreeSet::new(),
            fetchers: Fetchers::new(node),
            providers: BTreeMap::new(),
            turn: NodeId(turn),
            next_id: 0,
            effects: VecDeque::new(),
            random,
        }
    }

    /// How many chunks are wanted.
    pub fn wanted(&self) -> usize {
        self.wants.len()
    }

    /// Wants a chunk. A chunk that is wanted already is not asked for twice, but it may become more urgent.
    ///
    /// # Panics
    /// If more than [`MAX_WANTS`] chunks would be wanted: the caller bounds them.
    pub fn want(&mut self, now: Instant, chunk: ChunkRef, urgency: Urgency) {
        if let Some(want) = self.wants.get(&chunk) {
            if urgency < want.order.urgency {
                self.hurry(now, chunk, urgency);
            }
            return;
        }
        assert!(self.wants.len() < MAX_WANTS, "more than {MAX_WANTS} chunks are wanted");
        let (number, lacking) = (self.next_number, Vec::new());
        self.next_number += 1;
        let chance = if 1 < self.providers.len() { self.random.next_u64() } else { 0 };
        let group = number / SHUFFLED;
        let order = Order { urgency, passed_over: false, group, chance, number };
        let state = State::Queued(None);
        self.wants
            .insert(chunk, Want { order, state, later: None, lacking, retry: None, rounds: 0 });
        self.enqueue(now, chunk);
    }

    fn hurry(&mut self, now: Instant, chunk: ChunkRef, urgency: Urgency) {
        self.dequeue(chunk);
        let Some(want) = self.wants.get_mut(&chunk) else { return };
        want.order.urgency = urgency;
        if !matches!(want.state, State::Asked(_)) {
            self.enqueue(now, chunk);
        }
    }

    /// Wants a chunk no longer. What is under way is let come, and counts in its provider's window.
    pub fn cancel(&mut self, chunk: ChunkRef) {
        self.dequeue(chunk);
        if let Some(want) = self.wants.remove(&chunk)
            && let Some(retry) = want.retry
        {
            self.retries.remove(&(retry, chunk));
        }
    }

    /// A peer can be asked from now on.
    pub fn provider_up(&mut self, now: Instant, peer: NodeId) {
        if let Entry::Vacant(entry) = self.providers.entry(peer) {
            entry.insert(Provider::new(now));
            self.assign_anew(now);
        }
    }

    /// A peer is gone, and with it all requests to it.
    pub fn provider_down(&mut self, now: Instant, peer: NodeId) {
        if let Some(mut provider) = self.providers.remove(&peer) {
            let asked = provider.abandon();
            self.wants.values_mut().for_each(|want| want.lacking.retain(|lack| lack.peer != peer));
            self.release(now, peer, asked);
            self.assign_anew(now);
        }
    }

    /// A request was answered. `outcomes` has one element for each of its chunks, in its order. An answer to a request
    /// that was dropped changes nothing.
    pub fn answered(&mut self, now: Instant, peer: NodeId, id: u32, outcomes: &[Outcome]) {
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        let was = provider.standing();
        let Some(chunks) = provider.answered(now, id, outcomes) else { return };
        let is_as_before = provider.standing() == was;
        for (&chunk, outcome) in chunks.iter().zip(outcomes) {
            match outcome {
                Outcome::Arrived => self.cancel(chunk),
                Outcome::Missing => self.on_missing(now, peer, chunk, None),
                Outcome::Coming(promise) => self.on_missing(now, peer, chunk, Some(*promise)),
                Outcome::Wrong => self.release(now, peer, [chunk]),
            }
        }
        if outcomes.contains(&Outcome::Wrong) {
            self.effects.push_back(Effect::Drop { peer, fault: Fault::WrongBytes });
            self.rest(now, peer, REST_AFTER_WRONG);
        } else if !is_as_before {
            self.assign_anew(now);
        }
    }

    /// A chunk came that the provider was getting when it was asked for it. Its bytes are right.
    pub fn arrived_late(&mut self, now: Instant, peer: NodeId, chunk: ChunkRef) {
        self.cancel(chunk);
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        let was = provider.standing();
        provider.keeps_promise(now);
        if provider.standing() != was {
            self.assign_anew(now);
        }
    }

    /// Bytes came for a chunk that was coming, and they are not those of the chunk.
    pub fn wrong_late(&mut self, now: Instant, peer: NodeId) {
        if self.providers.contains_key(&peer) {
            self.effects.push_back(Effect::Drop { peer, fault: Fault::WrongBytes });
            self.rest(now, peer, REST_AFTER_WRONG);
        }
    }

    /// A part of an answer came. However long the rest takes, the provider is there.
    pub fn heard(&mut self, now: Instant, peer: NodeId) {
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        if provider.heard(now) {
            self.assign_anew(now);
        }
    }

    /// The requests to a provider came to nothing: it could not be reached, or the connection broke or was dropped by
    /// the driver. It is asked again after a rest.
    pub fn failed(&mut self, now: Instant, peer: NodeId) {
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        let rest = doubled(FIRST_REST, provider.failed(), LAST_REST);
        self.rest(now, peer, rest);
    }

    /// Whether a provider owes an answer.
    pub fn is_asked(&self, peer: NodeId) -> bool {
        self.providers.get(&peer).is_some_and(Provider::is_asked)
    }

    /// What can be promised of a chunk that another node asks for, and that is not here: that it is on its way here, from
    /// somebody else.
    pub fn promise(&self, chunk: &ChunkRef, asker: NodeId) -> Option<Promise> {
        let want = self.wants.get(chunk)?;
        let seems_complete =
            |(peer, p): (&NodeId, &Provider)| *peer != asker && !p.rests() && !p.is_partial();
        let is_direct = match want.state {
            State::Coming(peer) => return (peer != asker).then_some(Promise::Indirect),
            State::Asked(peer) => self.providers.get_key_value(&peer).is_some_and(seems_complete),
            State::Queued(None) => self.providers.iter().any(seems_complete),
            State::Queued(Some(_)) => false,
        };
        is_direct.then_some(Promise::Direct)
    }

    /// Whether there are chunks that nobody has now.
    pub fn is_lacking(&self) -> bool {
        !self.retries.is_empty()
    }

    /// Whether there are such, and a provider has said of each of them that it does not have it.
    pub fn is_lacked_by(&self, peer: NodeId) -> bool {
        let lacks = |(_, chunk): &(Instant, ChunkRef)| self.wants[chunk].lack_of(peer).is_some();
        self.is_lacking() && self.retries.iter().all(lacks)
    }

    /// When [`on_deadline`](Self::on_deadline) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let providers = self.providers.values().filter_map(Provider::deadline);
        let chunks = [self.retries.first(), self.later.first()].into_iter().flatten();
        providers.chain(chunks.map(|(at, _)| *at)).min()
    }

    /// Does what time alone brings about.
    pub fn on_deadline(&mut self, now: Instant) {
        let due = |provider: &Provider| provider.deadline().is_some_and(|at| at <= now);
        let peers: Vec<_> =
            self.providers.iter().filter(|(_, p)| due(p)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            let provider = self.providers.get_mut(&peer).expect("it was found above");
            match provider.on_deadline(now) {
                provider::Due::Rested => self.assign_anew(now),
                provider::Due::Quiet(asked) => {
                    self.release(now, peer, asked);
                    self.assign_anew(now);
                }
                provider::Due::TimedOut => {
                    self.effects.push_back(Effect::Drop { peer, fault: Fault::TimedOut });
                    self.failed(now, peer);
                }
            }
        }
        self.judge_promises(now);
        while let Some(&(at, chunk)) = self.later.first()
            && at <= now
        {
            self.dequeue(chunk);
            self.enqueue(now, chunk);
        }
        while let Some(&(at, chunk)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            let want = self.wants.get_mut(&chunk).expect("what is retried is wanted");
            want.retry = None;
            want.lacking.clear();
            if let State::Queued(_) = want.state {
                self.dequeue(chunk);
                self.enqueue(now, chunk);
            }
        }
    }

    /// Who keeps no promise is not waited for any more, whatever else it promised: else it could hold up each chunk anew.
    fn judge_promises(&mut self, now: Instant) {
        let is_due = |(at, _): &&(Instant, ChunkRef)| *at <= now;
        let mut was_trusted = false;
        for (_, chunk) in self.later.iter().take_while(is_due) {
            let want = &self.wants[chunk];
            if let State::Coming(peer) = want.state
                && let Some(lack) = want.lack_of(peer)
                && let Some(provider) = self.providers.get_mut(&peer)
                && provider.is_trusted()
                && !matches!(lack.word(now, provider), Word::Promised(..))
            {
                provider.breaks_promise_of(lack.at);
                was_trusted |= !provider.is_trusted();
            }
        }
        if was_trusted {
            self.assign_anew(now);
        }
    }

    /// The next thing to do. Nothing, until something else is called.
    pub fn poll(&mut self, now: Instant) -> Option<Effect> {
        if let Some(effect) = self.effects.pop_front() {
            return Some(effect);
        }
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let peers: Vec<_> = (self.providers.range(after))
            .chain(self.providers.range(..=self.turn))
            .filter(|(_, provider)| provider.has_room())
            .map(|(peer, _)| *peer)
            .collect();
        peers.into_iter().find_map(|peer| self.ask(now, peer))
    }

    fn ask(&mut self, now: Instant, peer: NodeId) -> Option<Effect> {
        let is_alone = self.providers.len() == 1;
        let provider = self.providers.get_mut(&peer)?;
        provider.is_asked_again(now, is_alone);
        let of = provider.is_partial().then_some(peer);
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        'parts: for (first, last) in Order::PARTS {
            for (_, chunk) in self.queue.range((of, first)..=(of, last)) {
                let lack = self.wants[chunk].lack_of(peer);
                let lacks = lack.is_some_and(|lack| lack.word(now, provider) != Word::Over);
                if lacks || provider.has_asked(chunk) {
                    continue;
                }
                let length = chunk.length as usize;
                let fits = bytes + length <= provider.batch_bytes() || chunks.is_empty();
                if !fits || chunks.len() == MAX_REQUEST_CHUNKS {
                    break 'parts;
                }
                // Or those who are ahead of the others would take the provider's time from them.
                let is_spare = first.passed_over && first.urgency == Urgency::Later;
                if is_spare && of.is_none() && provider.is_in_use(bytes) {
                    continue 'parts;
                }
                bytes += length;
                chunks.push(*chunk);
            }
        }
        if chunks.is_empty() {
            return None;
        }
        let id = self.next_id;
        self.next_id = (self.next_id + 1) % LATE;
        self.turn = peer;
        provider.ask(now, id, &chunks);
        for chunk in &chunks {
            self.dequeue(*chunk);
            self.wants.get_mut(chunk).expect("what is in the queue is wanted").state =
                State::Asked(peer);
        }
        Some(Effect::Request { peer, id, chunks })
    }

    fn on_missing(
        &mut self,
        now: Instant,
        peer: NodeId,
        chunk: ChunkRef,
        promise: Option<Promise>,
    ) {
        let Some(want) = self.wants.get_mut(&chunk) else { return };
        let times = want.lack_of(peer).map_or(0, |before| before.times.saturating_add(1));
        want.lacking.retain(|lack| lack.peer != peer);
        want.lacking.push(Lack { peer, at: now, coming: promise, times });
        match want.state {
            // It is under way from somebody else.
            State::Asked(other) if other != peer => {}
            _ => {
                self.dequeue(chunk);
                self.enqueue(now, chunk);
            }
        }
    }

    /// Puts back into the queue what `peer` was asked for.
    fn release(&mut self, now: Instant, peer: NodeId, chunks: impl IntoIterator<Item = ChunkRef>) {
        for chunk in chunks {
            if self.wants.get(&chunk).is_some_and(|want| want.state == State::Asked(peer)) {
                self.enqueue(now, chunk);
            }
        }
    }

    /// Puts a want where it can be asked for, or lets it wait for whoever is getting it, or reports that nobody has it.
    fn enqueue(&mut self, now: Instant, chunk: ChunkRef) {
        let want = self.wants.get_mut(&chunk).expect("it is wanted");
        let shares = want.order.urgency != Urgency::Now;
        let turn = self.fetchers.whom_to_ask(now, &chunk, shares, &want.lacking, &self.providers);
        want.later = turn.until;
        self.later.extend(turn.until.map(|until| (until, chunk)));
        if let Some(peer) = turn.of.filter(|_| turn.waits) {
            want.state = State::Coming(peer);
            return;
        }
        want.order.passed_over = turn.passed_over;
        want.state = State::Queued(turn.of);
        self.queue.insert((turn.of, want.order), chunk);
        let may_have = |(peer, provider): (&NodeId, &Provider)| {
            let lack = want.lack_of(*peer);
            !provider.rests() && lack.is_none_or(|lack| lack.coming.is_some())
        };
        if want.retry.is_some() || self.providers.iter().any(may_have) {
            return;
        }
        let retry = now + doubled(FIRST_RETRY, want.rounds, LAST_RETRY);
        want.retry = Some(retry);
        want.rounds = want.rounds.saturating_add(1);
        self.retries.insert((retry, chunk));
        self.effects.push_back(Effect::Unavailable { chunk, lacking: want.lacking.len() });
    }

    /// Takes a want away from where it waits.
    fn dequeue(&mut self, chunk: ChunkRef) {
        let Some(want) = self.wants.get_mut(&chunk) else { return };
        if let Some(later) = want.later.take() {
            self.later.remove(&(later, chunk));
        }
        if let State::Queued(of) = want.state {
            self.queue.remove(&(of, want.order));
        }
    }

    /// Providers are others than before, or stand otherwise: what waits may have to wait for somebody else.
    fn assign_anew(&mut self, now: Instant) {
        let waiting = |(chunk, want): (&ChunkRef, &Want)| match want.state {
            State::Asked(_) => None,
            State::Queued(_) | State::Coming(_) => Some(*chunk),
        };
        let waiting: Vec<ChunkRef> = self.wants.iter().filter_map(waiting).collect();
        for chunk in waiting {
            self.dequeue(chunk);
            self.enqueue(now, chunk);
        }
    }

    fn rest(&mut self, now: Instant, peer: NodeId, rest: Duration) {
        let provider = self.providers.get_mut(&peer).expect("the caller knows it");
        // Half of it by chance, so that nodes that lost the same peer do not return in step.
        let half = u64::try_from(rest.as_micros() / 2).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.random.below(half + 1));
        let asked = provider.rest_until(now + rest / 2 + jitter);
        // What it promised, it promised on a connection that is gone.
        let is_void = |lack: &Lack| lack.peer == peer && lack.coming.is_some();
        self.wants.values_mut().for_each(|want| want.lacking.retain(|lack| !is_void(lack)));
        self.release(now, peer, asked);
        self.assign_anew(now);
    }
}

impl Order {
    /// The first and the last place of each part of the queue, in order.
    const PARTS: [(Self, Self); 6] = [
        Self::part(Urgency::Now, false),
        Self::part(Urgency::Now, true),
        Self::part(Urgency::Soon, false),
        Self::part(Urgency::Soon, true),
        Self::part(Urgency::Later, false),
        Self::part(Urgency::Later, true),
    ];

    const fn part(urgency: Urgency, passed_over: bool) -> (Self, Self) {
        let first = Self { urgency, passed_over, group: 0, chance: 0, number: 0 };
        (first, Self { group: u64::MAX, chance: u64::MAX, number: u64::MAX, ..first })
    }
}

impl Want {
    fn lack_of(&self, peer: NodeId) -> Option<Lack> {
        self.lacking.iter().find(|lack| lack.peer == peer).copied()
    }
}

fn doubled(first: Duration, times: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(last)
}

#[cfg(test)]
mod swarm;
#[cfg(test)]
mod tests;
