//! One provider: what it is asked for, how much of that may be under way, and what it is known for.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::time::Duration;

use super::Outcome;
use crate::content::ChunkRef;
use crate::limits::{MAX_CHUNK_BYTES, MAX_CONTENT_MESSAGE_BYTES};
use crate::time::Instant;

/// The window of a provider of which nothing is known: enough for 1 Gbit/s at 30 ms.
pub const FIRST_WINDOW_BYTES: usize = 4 << 20;
/// The window of a provider that did not answer in time: one chunk.
pub const LEAST_WINDOW_BYTES: usize = MAX_CHUNK_BYTES;
/// The window of a provider that answers fast: enough for 1 Gbit/s at 130 ms. It also bounds what a receiver that has
/// become slow is still sent.
pub const MAX_WINDOW_BYTES: usize = 16 << 20;
/// Requests under way to a provider; reached only with small chunks.
pub const MAX_REQUESTS: usize = 16;

/// Who is asked and gives nothing for so long does not fetch the same. While others have everything, it is asked again after the
/// same time, and not with each chunk.
pub const FETCHES_FOR: Duration = Duration::from_secs(5);

/// An answer that comes within this time lets the window grow.
pub const FAST_ANSWER: Duration = Duration::from_millis(500);
/// An answer that takes longer than this lets the window shrink to what comes in this time, so that what becomes urgent
/// never waits long behind what is not.
pub const SLOW_ANSWER: Duration = Duration::from_millis(600);
/// What a provider is asked for is asked of others, too, when it has sent nothing for this long.
pub const QUIET_AFTER: Duration = Duration::from_secs(2);
/// A provider that is asked for something and sends nothing for this long is given up for a while.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a provider rests after its first failure; doubled by each further one.
pub const FIRST_REST: Duration = Duration::from_millis(250);
/// The longest rest after failures.
pub const LAST_REST: Duration = Duration::from_secs(30);
/// The rest of a provider that sent wrong bytes. It is damaged or hostile: others are better, but it may be the only
/// one, and what it sends right is right.
pub const REST_AFTER_WRONG: Duration = Duration::from_secs(60);

/// Who was not asked for anything for so long may have other chunks by now.
pub const KNOWN_FOR: Duration = Duration::from_secs(1);
/// A window is in use when this part of it is under way: half.
const IN_USE: usize = 2;

/// A provider that lacked something seems to have everything again when it had so many chunks one after another.
const COMPLETE_AFTER: usize = 512;

const _: () = assert!(MAX_CHUNK_BYTES <= LEAST_WINDOW_BYTES);
const _: () = assert!(LEAST_WINDOW_BYTES <= FIRST_WINDOW_BYTES);
const _: () = assert!(MAX_CONTENT_MESSAGE_BYTES <= FIRST_WINDOW_BYTES);

/// A provider.
#[derive(Debug)]
pub(super) struct Provider {
    window: usize,
    /// It has answered since it was last asked after a pause. Before, it is asked for one chunk: what it says to that shows
    /// whether it has everything.
    is_known: bool,
    /// Bytes under way.
    pending: usize,
    requests: BTreeMap<u32, Sent>,
    /// The chunks of all its requests, also those that nobody wants any more.
    asked: BTreeSet<ChunkRef>,
    /// When it last sent something, or began to have something to answer.
    progress: Instant,
    /// When it last answered.
    answered: Instant,
    /// When it last gave a chunk.
    gave: Instant,
    /// It has sent nothing for [`QUIET_AFTER`].
    quiet: bool,
    /// It rests until then.
    rests: Option<Instant>,
    /// Failures since it last answered well.
    failures: u32,
    /// It lacked something, and since then gave so many chunks one after another.
    lacked: Option<usize>,
    /// When it last kept a promise.
    kept: Option<Instant>,
    /// It did not keep a promise, and has kept no other since it gave that one.
    breaks_promises: bool,
}

#[derive(Debug)]
struct Sent {
    at: Instant,
    chunks: Vec<ChunkRef>,
}

/// What is due at a provider.
pub(super) enum Due {
    /// It can be asked again.
    Rested,
    /// It has become quiet; this is what it was asked for.
    Quiet(BTreeSet<ChunkRef>),
    /// It is to be given up for a while.
    TimedOut,
}

impl Provider {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            window: FIRST_WINDOW_BYTES,
            is_known: false,
            pending: 0,
            requests: BTreeMap::new(),
            asked: BTreeSet::new(),
            progress: now,
            answered: now,
            gave: now,
            quiet: false,
            rests: None,
            failures: 0,
            lacked: None,
            kept: None,
            breaks_promises: false,
        }
    }

    /// Whether it lacks some of what it is asked for: it is a node that fetches the same, perhaps.
    pub(super) fn is_partial(&self) -> bool {
        self.lacked.is_some()
    }

    /// Whether it is not asked now, since it failed or says nothing.
    pub(super) fn rests(&self) -> bool {
        self.rests.is_some() || self.quiet
    }

    /// When it last gave a chunk.
    pub(super) fn gave(&self) -> Instant {
        self.gave
    }

    /// Whether it is waited for when it promises something.
    pub(super) fn is_trusted(&self) -> bool {
        !self.breaks_promises
    }

    /// It did not keep a promise in time that it gave then. Where it keeps others meanwhile, the link may just be slow.
    pub(super) fn breaks_promise_of(&mut self, then: Instant) {
        self.breaks_promises |= self.kept.is_none_or(|kept| kept < then);
    }

    /// What decides which chunks are asked of it.
    pub(super) fn standing(&self) -> (bool, bool, bool) {
        (self.is_partial(), self.rests(), self.is_trusted())
    }

    pub(super) fn is_asked(&self) -> bool {
        !self.requests.is_empty()
    }

    pub(super) fn has_asked(&self, chunk: &ChunkRef) -> bool {
        self.asked.contains(chunk)
    }

    /// What one request may ask for, if that is more than one chunk: a quarter of the window, so that the next is there
    /// before the last is answered, and at most a message.
    pub(super) fn batch_bytes(&self) -> usize {
        if self.is_known { (self.window / 4).min(MAX_CONTENT_MESSAGE_BYTES) } else { 0 }
    }

    pub(super) fn has_room(&self) -> bool {
        let most = if self.is_known { MAX_REQUESTS } else { 1 };
        let fits = self.pending + self.batch_bytes() <= self.window;
        !self.rests() && self.requests.len() < most && fits
    }

    /// Whether its window is in use, with so many bytes more.
    pub(super) fn is_in_use(&self, more: usize) -> bool {
        self.window / IN_USE <= self.pending + more
    }

    /// It is about to be asked for something. What it was known for may be long ago; where nobody else can be asked, that
    /// does not matter.
    pub(super) fn is_asked_again(&mut self, now: Instant, is_alone: bool) {
        if self.requests.is_empty() && KNOWN_FOR <= now.since(self.answered) {
            self.is_known = false;
            self.window = self.window.min(FIRST_WINDOW_BYTES);
        }
        self.is_known |= is_alone;
    }

    /// It is asked for these.
    pub(super) fn ask(&mut self, now: Instant, id: u32, chunks: &[ChunkRef]) {
        if self.requests.is_empty() {
            self.progress = now;
        }
        self.asked.extend(chunks);
        self.pending += chunks.iter().map(|chunk| chunk.length as usize).sum::<usize>();
        self.requests.insert(id, Sent { at: now, chunks: chunks.to_vec() });
    }

    /// It answered a request; the chunks of that, if it is still waited for.
    pub(super) fn answered(
        &mut self,
        now: Instant,
        id: u32,
        outcomes: &[Outcome],
    ) -> Option<Vec<ChunkRef>> {
        let sent = self.requests.remove(&id)?;
        let was_in_use = self.is_in_use(0);
        debug_assert_eq!(sent.chunks.len(), outcomes.len(), "an answer does not fit its request");
        for chunk in &sent.chunks {
            self.asked.remove(chunk);
            self.pending -= chunk.length as usize;
        }
        let came = |outcome: &Outcome| matches!(outcome, Outcome::Arrived | Outcome::Wrong);
        let arrived = sent.chunks.iter().zip(outcomes).filter(|(_, outcome)| came(outcome));
        let bytes: usize = arrived.map(|(chunk, _)| chunk.length as usize).sum();
        self.measure(now, sent.at, bytes, was_in_use);
        self.is_known = true;
        self.failures = 0;
        self.quiet = false;
        self.gave = if bytes == 0 { self.gave } else { now };
        (self.progress, self.answered) = (now, now);
        self.lacked = match self.lacked {
            _ if !outcomes.iter().all(came) => Some(0),
            Some(gave) => Some(gave + outcomes.len()).filter(|gave| *gave < COMPLETE_AFTER),
            None => None,
        };
        Some(sent.chunks)
    }

    /// An answer with so many bytes of chunks came: the window becomes what such answers fill in time. It grows by what
    /// came in time, so that it doubles when all of it did; but not if it was not in use.
    fn measure(&mut self, now: Instant, asked_at: Instant, bytes: usize, was_in_use: bool) {
        let took = now.since(asked_at);
        if took <= FAST_ANSWER && was_in_use {
            self.window = (self.window + bytes).min(MAX_WINDOW_BYTES);
        } else if SLOW_ANSWER < took && bytes != 0 {
            // Before the answer before it was there, nothing of it came.
            let came_in = now.since(asked_at.max(self.answered)).max(Duration::from_micros(1));
            let in_time = bytes as u128 * SLOW_ANSWER.as_micros() / came_in.as_micros();
            let in_time = usize::try_from(in_time).unwrap_or(MAX_WINDOW_BYTES);
            self.window = in_time.clamp(self.window / 2, self.window).max(LEAST_WINDOW_BYTES);
        }
    }

    /// Whether it may be one that fetches the same: it gave something lately, or has not been asked for a while.
    pub(super) fn may_fetch(&self, now: Instant) -> bool {
        now.since(self.gave) < FETCHES_FOR || FETCHES_FOR <= now.since(self.answered)
    }

    /// It gave a chunk that it was getting when it was asked for it.
    pub(super) fn keeps_promise(&mut self, now: Instant) {
        self.gave = now;
        (self.kept, self.breaks_promises) = (Some(now), false);
        self.heard(now);
    }

    /// A part of an answer came. Whether it had become quiet.
    pub(super) fn heard(&mut self, now: Instant) -> bool {
        self.progress = now;
        core::mem::take(&mut self.quiet)
    }

    /// It failed; how often before, since it last answered well.
    pub(super) fn failed(&mut self) -> u32 {
        self.failures = self.failures.saturating_add(1);
        self.failures - 1
    }

    /// It is not asked before then. What it was asked for is given back.
    pub(super) fn rest_until(&mut self, until: Instant) -> BTreeSet<ChunkRef> {
        self.rests = Some(until);
        self.abandon()
    }

    /// Forgets all requests, and returns what they asked for.
    pub(super) fn abandon(&mut self) -> BTreeSet<ChunkRef> {
        self.requests.clear();
        self.pending = 0;
        self.quiet = false;
        core::mem::take(&mut self.asked)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let patience = if self.quiet { ANSWER_TIMEOUT } else { QUIET_AFTER };
        self.rests.or_else(|| self.is_asked().then(|| self.progress + patience))
    }

    /// What is due, when the deadline has passed.
    pub(super) fn on_deadline(&mut self, now: Instant) -> Due {
        if self.rests.take().is_some() {
            self.progress = now;
            return Due::Rested;
        }
        if !self.quiet {
            self.quiet = true;
            return Due::Quiet(self.asked.clone());
        }
        self.window = (self.window / 4).max(LEAST_WINDOW_BYTES);
        Due::TimedOut
    }

    #[cfg(test)]
    pub(super) fn window(&self) -> usize {
        self.window
    }

    #[cfg(test)]
    pub(super) fn check(&self) {
        let chunks = || self.requests.values().flat_map(|sent| &sent.chunks);
        assert_eq!(chunks().count(), self.asked.len());
        let pending: usize = chunks().map(|chunk| chunk.length as usize).sum();
        assert_eq!(self.pending, pending);
        assert!(pending <= MAX_WINDOW_BYTES + MAX_CONTENT_MESSAGE_BYTES);
    }
}
