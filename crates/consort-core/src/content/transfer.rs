//! Which chunk from whom, next: the decisions of content transfer, without the transfer.
//!
//! Somebody [`want`](Transfer::want)s chunks; providers, the peers that could have them, come and go. After each call
//! the driver does what [`poll`](Transfer::poll) says until it says nothing more, and calls
//! [`on_deadline`](Transfer::on_deadline) when [`deadline`](Transfer::deadline) has passed. Bytes never pass through
//! here: the driver verifies them and reports an [`Outcome`] for each chunk.
//!
//! - Chunks are asked for in the order in which they were wanted, in batches, of all providers at once, and each chunk
//!   of one provider at a time.
//! - A provider has as many bytes under way as its window allows. The window grows while answers come fast, and shrinks
//!   when one does not come in time; so a slow provider is asked for less.
//! - A provider that fails rests: what it was asked for is asked of others, and after a while it is asked again.
//! - A chunk that every provider lacks is reported, asked for again after a delay, and at once of a provider that is new.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};
use alloc::vec::Vec;
use core::ops::Bound;
use core::time::Duration;

use crate::content::ChunkRef;
use crate::limits::{MAX_CHUNK_BYTES, MAX_CONTENT_MESSAGE_BYTES, MAX_REQUEST_CHUNKS};
use crate::model::NodeId;
use crate::random::Random;
use crate::time::Instant;

/// Chunks that may be wanted at a time: a gigabyte of them at their average length, which is far more than all windows
/// hold. Each takes about 200 bytes, and 16 for each provider that lacks it.
pub const MAX_WANTS: usize = 16 * 1024;

/// Bytes of chunks that a provider is asked for at first before it has answered: enough for 1 Gbit/s at 30 ms.
pub const FIRST_WINDOW_BYTES: usize = 4 << 20;
/// The window of a provider that did not answer in time: one chunk.
pub const LEAST_WINDOW_BYTES: usize = MAX_CHUNK_BYTES;
/// The window of a provider that answers fast: enough for 1 Gbit/s at 130 ms. It also bounds what a receiver that has
/// become slow is still sent.
pub const MAX_WINDOW_BYTES: usize = 16 << 20;
/// Requests under way to a provider; reached only with small chunks.
pub const MAX_REQUESTS: usize = 16;

/// A provider that is asked for something and answers nothing for this long is given up for a while.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// An answer that comes within this time lets the window grow.
pub const FAST_ANSWER: Duration = Duration::from_millis(500);
/// How long a provider rests after its first failure; doubled by each further one.
pub const FIRST_REST: Duration = Duration::from_millis(250);
/// The longest rest after failures.
pub const LAST_REST: Duration = Duration::from_secs(30);
/// The rest of a provider that sent wrong bytes. It is damaged or hostile: others are better, but it may be the only
/// one, and what it sends right is right.
pub const REST_AFTER_WRONG: Duration = Duration::from_secs(60);
/// When a chunk that nobody has is asked for again, first: its holders may just be receiving it. Doubled each time.
pub const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The longest time after which a chunk that nobody has is asked for again.
pub const LAST_RETRY: Duration = Duration::from_secs(15);

const _: () = assert!(MAX_CHUNK_BYTES <= LEAST_WINDOW_BYTES);
const _: () = assert!(LEAST_WINDOW_BYTES <= FIRST_WINDOW_BYTES);
const _: () = assert!(MAX_CONTENT_MESSAGE_BYTES <= FIRST_WINDOW_BYTES);

/// What became of one chunk of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its bytes came, and their hash is right.
    Arrived,
    /// The provider does not have it.
    Missing,
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
    /// It answered nothing for [`ANSWER_TIMEOUT`].
    TimedOut,
}

/// The wants of one node, and whom it asks.
///
/// Wants are bounded by [`MAX_WANTS`], which the caller keeps to; providers by the caller's connections.
#[derive(Debug)]
pub struct Transfer {
    /// By name and length: somebody who names a chunk with a wrong length keeps nobody else from it.
    wants: BTreeMap<ChunkRef, Want>,
    /// What is wanted and not under way, in order.
    queue: BTreeMap<u64, ChunkRef>,
    next_order: u64,
    /// What nobody has, by the time when it is asked for again.
    retries: BTreeSet<(Instant, ChunkRef)>,
    providers: BTreeMap<NodeId, Provider>,
    /// Who was asked last: the next one is next.
    turn: NodeId,
    next_id: u32,
    effects: VecDeque<Effect>,
    random: Random,
}

#[derive(Debug)]
struct Want {
    order: u64,
    /// Who is asked for it; nobody while it is in the queue.
    asked: Option<NodeId>,
    /// Who said in this round not to have it.
    lacking: Vec<NodeId>,
    /// When the next round begins, if it was reported that nobody has it.
    retry: Option<Instant>,
    rounds: u32,
}

#[derive(Debug)]
struct Provider {
    window: usize,
    /// Bytes under way.
    pending: usize,
    requests: BTreeMap<u32, Sent>,
    /// The chunks of all its requests, also those that nobody wants any more.
    asked: BTreeSet<ChunkRef>,
    /// When it last answered, or began to have something to answer.
    progress: Instant,
    /// It rests until then.
    rests: Option<Instant>,
    /// Failures since it last answered well.
    failures: u32,
    /// Nothing before this place in the queue can be asked of it.
    from: u64,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    chunks: Vec<ChunkRef>,
}

impl Transfer {
    /// Nothing is wanted, and nobody is there. `seed` spreads the choice of whom to ask first over a cluster.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut turn = [0; 16];
        turn[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        Self {
            wants: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_order: 0,
            retries: BTreeSet::new(),
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

    /// Wants a chunk. A chunk that is wanted already is not asked for twice.
    ///
    /// # Panics
    /// If more than [`MAX_WANTS`] chunks would be wanted: the caller bounds them.
    pub fn want(&mut self, now: Instant, chunk: ChunkRef) {
        if self.wants.contains_key(&chunk) {
            return;
        }
        assert!(self.wants.len() < MAX_WANTS, "more than {MAX_WANTS} chunks are wanted");
        let order = self.next_order;
        self.next_order += 1;
        let lacking = Vec::new();
        self.wants.insert(chunk, Want { order, asked: None, lacking, retry: None, rounds: 0 });
        self.queue.insert(order, chunk);
        self.report_if_unavailable(now, chunk);
    }

    /// Wants a chunk no longer. What is under way is let come, and counts in its provider's window.
    pub fn cancel(&mut self, chunk: ChunkRef) {
        if let Some(want) = self.wants.remove(&chunk) {
            self.queue.remove(&want.order);
            if let Some(retry) = want.retry {
                self.retries.remove(&(retry, chunk));
            }
        }
    }

    /// A peer can be asked from now on.
    pub fn provider_up(&mut self, now: Instant, peer: NodeId) {
        self.providers.entry(peer).or_insert(Provider {
            window: FIRST_WINDOW_BYTES,
            pending: 0,
            requests: BTreeMap::new(),
            asked: BTreeSet::new(),
            progress: now,
            rests: None,
            failures: 0,
            from: 0,
        });
    }

    /// A peer is gone, and with it all requests to it.
    pub fn provider_down(&mut self, now: Instant, peer: NodeId) {
        if let Some(mut provider) = self.providers.remove(&peer) {
            self.release(peer, provider.abandon());
            self.wants.values_mut().for_each(|want| want.lacking.retain(|lacks| *lacks != peer));
            self.report_all_unavailable(now);
        }
    }

    /// A request was answered. `outcomes` has one element for each of its chunks, in its order. An answer to a request
    /// that was dropped changes nothing.
    pub fn answered(&mut self, now: Instant, peer: NodeId, id: u32, outcomes: &[Outcome]) {
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        let Some(sent) = provider.requests.remove(&id) else { return };
        debug_assert_eq!(sent.chunks.len(), outcomes.len(), "an answer does not fit its request");
        provider.progress = now;
        provider.failures = 0;
        if now.since(sent.at) <= FAST_ANSWER {
            provider.window = (provider.window * 2).min(MAX_WINDOW_BYTES);
        }
        for chunk in &sent.chunks {
            provider.asked.remove(chunk);
            provider.pending -= chunk.length as usize;
        }
        for (&chunk, outcome) in sent.chunks.iter().zip(outcomes) {
            match outcome {
                Outcome::Arrived => self.cancel(chunk),
                Outcome::Missing => self.on_missing(now, peer, chunk),
                Outcome::Wrong => self.release(peer, [chunk]),
            }
        }
        if outcomes.contains(&Outcome::Wrong) {
            self.effects.push_back(Effect::Drop { peer, fault: Fault::WrongBytes });
            self.rest(now, peer, REST_AFTER_WRONG);
        }
    }

    /// The requests to a provider came to nothing: it could not be reached, or the connection broke or was dropped by
    /// the driver. It is asked again after a rest.
    pub fn failed(&mut self, now: Instant, peer: NodeId) {
        let Some(provider) = self.providers.get_mut(&peer) else { return };
        let rest = doubled(FIRST_REST, provider.failures, LAST_REST);
        provider.failures = provider.failures.saturating_add(1);
        self.rest(now, peer, rest);
    }

    /// Whether a provider owes an answer.
    pub fn is_asked(&self, peer: NodeId) -> bool {
        self.providers.get(&peer).is_some_and(|provider| !provider.requests.is_empty())
    }

    /// When [`on_deadline`](Self::on_deadline) has something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let providers = self.providers.values().filter_map(Provider::deadline);
        providers.chain(self.retries.first().map(|(at, _)| *at)).min()
    }

    /// Does what time alone brings about.
    pub fn on_deadline(&mut self, now: Instant) {
        let due = |provider: &Provider| provider.deadline().is_some_and(|at| at <= now);
        let peers: Vec<_> =
            self.providers.iter().filter(|(_, p)| due(p)).map(|(peer, _)| *peer).collect();
        for peer in peers {
            let provider = self.providers.get_mut(&peer).expect("it was found above");
            if provider.rests.take().is_some() {
                (provider.from, provider.progress) = (0, now);
            } else {
                provider.window = (provider.window / 4).max(LEAST_WINDOW_BYTES);
                self.effects.push_back(Effect::Drop { peer, fault: Fault::TimedOut });
                self.failed(now, peer);
            }
        }
        while let Some(&(at, chunk)) = self.retries.first()
            && at <= now
        {
            self.retries.pop_first();
            let want = self.wants.get_mut(&chunk).expect("what is retried is wanted");
            want.retry = None;
            want.lacking.clear();
            if want.asked.is_none() {
                let order = want.order;
                self.rewind(order);
                self.report_if_unavailable(now, chunk);
            }
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
        let provider = self.providers.get_mut(&peer)?;
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        for (&order, chunk) in self.queue.range(provider.from..) {
            let want = &self.wants[chunk];
            provider.from = order + 1;
            if want.lacking.contains(&peer) || provider.asked.contains(chunk) {
                continue;
            }
            let length = chunk.length as usize;
            let fits = bytes + length <= provider.batch_bytes() || chunks.is_empty();
            if !fits || chunks.len() == MAX_REQUEST_CHUNKS {
                provider.from = order;
                break;
            }
            bytes += length;
            chunks.push(*chunk);
        }
        if chunks.is_empty() {
            return None;
        }
        for chunk in &chunks {
            let want = self.wants.get_mut(chunk).expect("what is in the queue is wanted");
            want.asked = Some(peer);
            self.queue.remove(&want.order);
            provider.asked.insert(*chunk);
        }
        if provider.requests.is_empty() {
            provider.progress = now;
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.turn = peer;
        provider.pending += bytes;
        provider.requests.insert(id, Sent { at: now, chunks: chunks.clone() });
        Some(Effect::Request { peer, id, chunks })
    }

    fn on_missing(&mut self, now: Instant, peer: NodeId, chunk: ChunkRef) {
        if let Some(want) = self.wants.get_mut(&chunk) {
            want.lacking.push(peer);
            self.release(peer, [chunk]);
            self.report_if_unavailable(now, chunk);
        }
    }

    /// Puts back into the queue what `peer` was asked for.
    fn release(&mut self, peer: NodeId, chunks: impl IntoIterator<Item = ChunkRef>) {
        let mut first = u64::MAX;
        for chunk in chunks {
            if let Some(want) = self.wants.get_mut(&chunk)
                && want.asked == Some(peer)
            {
                want.asked = None;
                self.queue.insert(want.order, chunk);
                first = first.min(want.order);
            }
        }
        self.rewind(first);
    }

    /// Lets all providers look at the queue from `order` on again.
    fn rewind(&mut self, order: u64) {
        for provider in self.providers.values_mut() {
            provider.from = provider.from.min(order);
        }
    }

    fn rest(&mut self, now: Instant, peer: NodeId, rest: Duration) {
        let provider = self.providers.get_mut(&peer).expect("the caller knows it");
        // Half of it by chance, so that nodes that lost the same peer do not return in step.
        let half = u64::try_from(rest.as_micros() / 2).unwrap_or(u64::MAX);
        let jitter = Duration::from_micros(self.random.below(half + 1));
        provider.rests = Some(now + rest / 2 + jitter);
        let asked = provider.abandon();
        self.release(peer, asked);
        self.report_all_unavailable(now);
    }

    fn report_all_unavailable(&mut self, now: Instant) {
        let queued: Vec<_> = self.queue.values().copied().collect();
        queued.into_iter().for_each(|chunk| self.report_if_unavailable(now, chunk));
    }

    fn report_if_unavailable(&mut self, now: Instant, chunk: ChunkRef) {
        let Some(want) = self.wants.get_mut(&chunk) else { return };
        let may_have = |(peer, provider): (&NodeId, &Provider)| {
            provider.rests.is_none() && !want.lacking.contains(peer)
        };
        if want.asked.is_some() || want.retry.is_some() || self.providers.iter().any(may_have) {
            return;
        }
        let retry = now + doubled(FIRST_RETRY, want.rounds, LAST_RETRY);
        want.retry = Some(retry);
        want.rounds = want.rounds.saturating_add(1);
        self.retries.insert((retry, chunk));
        self.effects.push_back(Effect::Unavailable { chunk, lacking: want.lacking.len() });
    }
}

impl Provider {
    /// A quarter of the window, so that the next request is there before the last is answered; at most a message.
    fn batch_bytes(&self) -> usize {
        (self.window / 4).min(MAX_CONTENT_MESSAGE_BYTES)
    }

    fn has_room(&self) -> bool {
        let fits = self.pending + self.batch_bytes() <= self.window;
        self.rests.is_none() && self.requests.len() < MAX_REQUESTS && fits
    }

    fn deadline(&self) -> Option<Instant> {
        let answer = || (!self.requests.is_empty()).then(|| self.progress + ANSWER_TIMEOUT);
        self.rests.or_else(answer)
    }

    /// Forgets all requests, and returns what they asked for.
    fn abandon(&mut self) -> BTreeSet<ChunkRef> {
        self.requests.clear();
        self.pending = 0;
        core::mem::take(&mut self.asked)
    }
}

fn doubled(first: Duration, times: u32, last: Duration) -> Duration {
    first.saturating_mul(1 << times.min(16)).min(last)
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::content::ChunkHash;

    /// Providers that answer as they are told to, and everything that is checked on the way.
    struct World {
        now: Instant,
        transfer: Transfer,
        random: Random,
        peers: BTreeMap<NodeId, Peer>,
        wanted: BTreeSet<ChunkRef>,
        arrived: BTreeSet<ChunkRef>,
        unavailable: Vec<ChunkRef>,
        faults: Vec<(NodeId, Fault)>,
    }

    #[derive(Default)]
    struct Peer {
        up: bool,
        has: BTreeSet<ChunkRef>,
        lies: bool,
        stalls: bool,
        /// Forgets chunks and goes away.
        fickle: bool,
        requests: VecDeque<(u32, Vec<ChunkRef>)>,
    }

    fn chunk(n: u64) -> ChunkRef {
        let length = 1 + u32::try_from(n * 7919 % MAX_CHUNK_BYTES as u64).expect("below");
        ChunkRef { hash: ChunkHash::of(&n.to_le_bytes()), length }
    }

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    impl World {
        fn new(seed: u64, peers: impl IntoIterator<Item = Peer>) -> Self {
            let mut world = Self {
                now: Instant(1),
                transfer: Transfer::new(seed),
                random: Random::new(seed),
                peers: (0..).map(node).zip(peers).collect(),
                wanted: BTreeSet::new(),
                arrived: BTreeSet::new(),
                unavailable: Vec::new(),
                faults: Vec::new(),
            };
            let peers: Vec<_> = world.peers.keys().copied().collect();
            peers.into_iter().for_each(|peer| world.set_up(peer, true));
            world
        }

        fn set_up(&mut self, id: NodeId, up: bool) {
            let peer = self.peers.get_mut(&id).expect("it exists");
            peer.up = up;
            peer.requests.clear();
            if up {
                self.transfer.provider_up(self.now, id);
            } else {
                self.transfer.provider_down(self.now, id);
            }
            self.pump();
        }

        fn want(&mut self, chunks: impl IntoIterator<Item = ChunkRef>) {
            for chunk in chunks {
                self.wanted.insert(chunk);
                self.transfer.want(self.now, chunk);
            }
            self.pump();
        }

        fn pump(&mut self) {
            while let Some(effect) = self.transfer.poll(self.now) {
                match effect {
                    Effect::Request { peer, id, chunks } => {
                        let peer = self.peers.get_mut(&peer).expect("it exists");
                        assert!(peer.up, "a peer is asked that is not there");
                        let sum: usize = chunks.iter().map(|chunk| chunk.length as usize).sum();
                        assert!(!chunks.is_empty() && chunks.len() <= MAX_REQUEST_CHUNKS);
                        assert!(sum <= MAX_CONTENT_MESSAGE_BYTES);
                        let mut asked = BTreeSet::new();
                        peer.requests.push_back((id, chunks));
                        for chunk in peer.requests.iter().flat_map(|(_, chunks)| chunks) {
                            assert!(asked.insert(*chunk), "a peer is asked twice at a time");
                        }
                    }
                    Effect::Drop { peer, fault } => {
                        self.peers.get_mut(&peer).expect("it exists").requests.clear();
                        self.faults.push((peer, fault));
                    }
                    Effect::Unavailable { chunk, .. } => self.unavailable.push(chunk),
                }
            }
        }

        /// One peer answers its oldest request.
        fn answer(&mut self, id: NodeId) {
            let peer = self.peers.get_mut(&id).expect("it exists");
            if peer.stalls {
                return;
            }
            let Some((request, chunks)) = peer.requests.pop_front() else { return };
            let mut outcomes = Vec::new();
            for chunk in &chunks {
                outcomes.push(match peer.has.contains(chunk) {
                    _ if peer.lies && self.random.below(4) == 0 => Outcome::Wrong,
                    true => Outcome::Arrived,
                    false => Outcome::Missing,
                });
                if outcomes.last() == Some(&Outcome::Arrived) && self.wanted.contains(chunk) {
                    self.arrived.insert(*chunk);
                }
            }
            self.transfer.answered(self.now, id, request, &outcomes);
            self.pump();
        }

        /// Anything that can happen.
        fn step(&mut self) {
            self.now = self.now + Duration::from_micros(self.random.below(200_000));
            let at = usize::try_from(self.random.below(self.peers.len() as u64)).expect("small");
            let (&id, peer) = self.peers.iter_mut().nth(at).expect("it is in range");
            let fickle = peer.fickle && self.random.below(4) == 0;
            match self.random.below(16) {
                0 if fickle => {
                    let up = !peer.up;
                    self.set_up(id, up);
                }
                1 if fickle => drop(peer.has.pop_first()),
                2 if fickle && peer.up => {
                    peer.requests.clear();
                    self.transfer.failed(self.now, id);
                }
                3 if self.random.below(8) == 0 => {
                    if let Some(at) = self.transfer.deadline() {
                        self.now = self.now.max(at);
                    }
                }
                4 => {
                    // Somebody changes their mind, and back.
                    if let Some(chunk) = self.transfer.wants.keys().next().copied() {
                        self.transfer.cancel(chunk);
                        self.transfer.want(self.now, chunk);
                    }
                }
                _ => self.answer(id),
            }
            if self.transfer.deadline().is_some_and(|at| at <= self.now) {
                self.transfer.on_deadline(self.now);
            }
            self.pump();
            self.check();
        }

        fn check(&self) {
            let transfer = &self.transfer;
            for (order, chunk) in &transfer.queue {
                assert_eq!(transfer.wants[chunk].order, *order);
                assert_eq!(transfer.wants[chunk].asked, None);
            }
            for (chunk, want) in &transfer.wants {
                assert!(want.asked.is_some() || transfer.queue.contains_key(&want.order));
                let asked =
                    want.asked.is_none_or(|peer| transfer.providers[&peer].asked.contains(chunk));
                assert!(asked, "a chunk waits for somebody who was not asked for it");
            }
            for provider in transfer.providers.values() {
                let chunks = || provider.requests.values().flat_map(|sent| &sent.chunks);
                assert_eq!(chunks().count(), provider.asked.len());
                let pending: usize = chunks().map(|chunk| chunk.length as usize).sum();
                assert_eq!(provider.pending, pending);
                assert!(pending <= MAX_WINDOW_BYTES + MAX_CONTENT_MESSAGE_BYTES);
            }
        }

        fn is_done(&self) -> bool {
            self.transfer.wanted() == 0 && self.arrived == self.wanted
        }
    }

    fn holder(count: u64) -> Peer {
        Peer { has: (0..count).map(chunk).collect(), ..Peer::default() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]
        #[test]
        fn what_somebody_keeps_arrives_however_the_others_behave(
            seed: u64,
            count in 1u64..200,
            others in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<bool>()), 0..5),
        ) {
            let mut random = Random::new(seed);
            let mut peers = vec![holder(count)];
            for (lies, stalls, fickle) in others {
                let mut peer = Peer { lies, stalls, fickle, ..holder(count) };
                peer.has.retain(|_| random.below(3) != 0);
                peers.push(peer);
            }
            let mut world = World::new(seed, peers);
            world.want((0..count).map(chunk));
            let mut steps = 0;
            while !world.is_done() {
                world.step();
                steps += 1;
                prop_assert!(steps < 100_000, "{} of {count} arrived", world.arrived.len());
            }
        }
    }

    #[test]
    fn several_providers_are_asked_at_once() {
        let mut world = World::new(3, [holder(400), holder(400), holder(400)]);
        world.want((0..400).map(chunk));
        assert!(world.peers.values().all(|peer| peer.requests.len() >= 3));
    }

    #[test]
    fn what_nobody_has_is_reported_once_a_round_and_asked_of_whoever_comes() {
        let mut world = World::new(1, [holder(0)]);
        world.want([chunk(0)]);
        world.answer(node(0));
        assert_eq!(world.unavailable, [chunk(0)]);
        world.now = world.transfer.deadline().expect("it will be asked for again");
        world.transfer.on_deadline(world.now);
        world.pump();
        assert_eq!(world.unavailable.len(), 1);
        world.answer(node(0));
        assert_eq!(world.unavailable.len(), 2);
        world.peers.insert(node(1), holder(1));
        world.set_up(node(1), true);
        world.answer(node(1));
        assert!(world.is_done() && world.transfer.deadline().is_none());
    }

    #[test]
    fn what_is_wanted_while_nobody_is_there_is_reported_and_asked_of_the_first_to_come() {
        let mut world = World::new(1, []);
        world.want([chunk(0)]);
        assert_eq!(world.unavailable, [chunk(0)]);
        world.peers.insert(node(1), holder(1));
        world.set_up(node(1), true);
        world.answer(node(1));
        assert!(world.is_done());
    }

    #[test]
    fn a_provider_that_does_not_answer_in_time_is_dropped_and_asked_for_less() {
        let mut world = World::new(1, [Peer { stalls: true, ..holder(100) }]);
        world.want((0..100).map(chunk));
        world.peers.insert(node(1), holder(100));
        world.set_up(node(1), true);
        while !world.peers[&node(1)].requests.is_empty() {
            world.answer(node(1));
        }
        assert!(!world.is_done());
        world.now = world.transfer.deadline().expect("somebody owes an answer");
        world.transfer.on_deadline(world.now);
        world.pump();
        assert_eq!(world.faults, [(node(0), Fault::TimedOut)]);
        assert!(world.transfer.providers[&node(0)].window < FIRST_WINDOW_BYTES);
        while !world.peers[&node(1)].requests.is_empty() {
            world.answer(node(1));
        }
        assert!(world.is_done());
    }

    #[test]
    fn a_provider_of_wrong_bytes_is_dropped_and_another_one_used() {
        let mut world = World::new(9, [holder(64), holder(64)]);
        world.want((0..64).map(chunk));
        let (id, chunks) = world.peers.get_mut(&node(0)).unwrap().requests.pop_front().unwrap();
        world.transfer.answered(world.now, node(0), id, &vec![Outcome::Wrong; chunks.len()]);
        world.pump();
        assert_eq!(world.faults, [(node(0), Fault::WrongBytes)]);
        assert!(world.peers[&node(0)].requests.is_empty());
        while !world.peers[&node(1)].requests.is_empty() {
            world.answer(node(1));
        }
        assert!(world.is_done());
    }
}
