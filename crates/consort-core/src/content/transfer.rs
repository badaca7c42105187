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

    /// Whether there are chunks that nobody has now.
    pub fn is_lacking(&self) -> bool {
        !self.retries.is_empty()
    }

    /// Whether there are such, and a provider has said of each of them that it does not have it.
    pub fn is_lacked_by(&self, peer: NodeId) -> bool {
        let lacks = |(_, chunk): &(Instant, ChunkRef)| self.wants[chunk].lacking.contains(&peer);
        self.is_lacking() && self.retries.iter().all(lacks)
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
mod tests;
