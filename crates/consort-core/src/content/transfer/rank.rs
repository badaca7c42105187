//! Who of the nodes that fetch the same fetches a chunk from where it is complete: the one of highest random weight
//! (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998), by the names of chunk and node. The
//! others get it from that one, so that the source sends it once. Nobody has to agree on anything: whoever knows other
//! nodes, or learns that one will not have the chunk, takes the next in this order.
//!
//! Nodes never wait for each other in a circle: a node waits for one that fetches the chunk from where it is complete
//! (a direct promise), or for one that waits itself (an indirect one), but then only if that has more weight than it has.

use alloc::collections::BTreeMap;
use core::time::Duration;

use super::doubled;
use super::provider::Provider;
use crate::content::ChunkRef;
use crate::content::exchange::Promise;
use crate::model::NodeId;
use crate::random::Random;
use crate::time::Instant;

/// A provider that says that a chunk is coming is waited for at most so long.
pub const COMING_AT_MOST: Duration = Duration::from_secs(10);
/// And if it gives nothing at all, for so long.
pub const QUIET_AT_MOST: Duration = Duration::from_secs(2);

/// How long a provider that does not have a chunk and is not getting it, or did not keep a promise, is passed over first: it may
/// be behind this node. Doubled each time: where several are asked one after another, over a long way, the first of them would
/// be asked again before the last has answered, and whoever has everything would never be.
pub const PASSED_OVER_FOR: Duration = Duration::from_millis(500);
/// The longest time that it is passed over for.
pub const PASSED_OVER_AT_MOST: Duration = Duration::from_secs(30);

/// That a provider did not have a chunk when it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lack {
    pub(super) peer: NodeId,
    pub(super) at: Instant,
    /// It was just getting it.
    pub(super) coming: Option<Promise>,
    /// How often before.
    pub(super) times: u32,
}

/// Whom to ask for a chunk, as things stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// One that fetches the same; or (none) those that seem to have everything.
    pub(super) of: Option<NodeId>,
    /// That one is just getting it.
    pub(super) waits: bool,
    /// Others that fetch the same would come first, but do not have it.
    pub(super) passed_over: bool,
    /// When that may be otherwise.
    pub(super) until: Option<Instant>,
}

/// The nodes that fetch the same, as one of them sees them.
#[derive(Debug)]
pub(super) struct Fetchers {
    node: NodeId,
}

/// What a provider's answer is worth, some time later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// Its promise holds until then.
    Promised(Promise, Instant),
    /// It is not asked until then: it did not have the chunk, or did not keep its promise.
    PassedOver(Instant),
    /// It may have the chunk by now.
    Over,
}

impl Lack {
    pub(super) fn word(&self, now: Instant, provider: &Provider) -> Word {
        let mut since = self.at;
        if let Some(promise) = self.coming.filter(|_| provider.is_trusted()) {
            let quiet = self.at.max(provider.gave()) + QUIET_AT_MOST;
            let until = quiet.min(self.at + COMING_AT_MOST);
            if now < until {
                return Word::Promised(promise, until);
            }
            since = until;
        }
        let until = since + doubled(PASSED_OVER_FOR, self.times, PASSED_OVER_AT_MOST);
        if now < until { Word::PassedOver(until) } else { Word::Over }
    }
}

impl Fetchers {
    pub(super) fn new(node: NodeId) -> Self {
        Self { node }
    }

    /// Whom to ask for a chunk first. If this node does not share it, that is who has everything, if there is such.
    pub(super) fn whom_to_ask(
        &self,
        now: Instant,
        chunk: &ChunkRef,
        shares: bool,
        lacking: &[Lack],
        providers: &BTreeMap<NodeId, Provider>,
    ) -> Turn {
        let is_somewhere = providers.values().any(|p| !p.rests() && !p.is_partial());
        // Where nobody has everything, anybody may have this one.
        let own = weight(chunk, self.node);
        let mut turn = Turn { of: None, waits: false, passed_over: false, until: None };
        let mut heaviest = is_somewhere.then_some(own);
        let may_have = |p: &Provider| !is_somewhere || (shares && p.may_fetch(now));
        let is_asked = |p: &Provider| !p.rests() && p.is_partial() && may_have(p);
        for (peer, provider) in providers.iter().filter(|(_, p)| is_asked(p)) {
            let weight = Some(weight(chunk, *peer));
            if weight < heaviest {
                continue;
            }
            let lack = lacking.iter().find(|lack| lack.peer == *peer);
            let (is_coming, until) = match lack.map_or(Word::Over, |l| l.word(now, provider)) {
                Word::Over => (false, None),
                Word::Promised(promise, until)
                    if promise == Promise::Direct || Some(own) <= weight =>
                {
                    (true, Some(until))
                }
                // The second waits itself, perhaps for this node.
                Word::PassedOver(until) | Word::Promised(_, until) => {
                    turn.passed_over = true;
                    if turn.of.is_none() {
                        turn.until = turn.until.map_or(Some(until), |at| Some(at.min(until)));
                    }
                    continue;
                }
            };
            heaviest = weight;
            (turn.of, turn.waits, turn.until) = (Some(*peer), is_coming, until);
        }
        if turn.of.is_none() {
            // One that seems to have everything may have been asked before, and is to be asked again.
            let complete = providers.iter().filter(|(_, p)| !p.rests() && !p.is_partial());
            for (peer, provider) in complete {
                let lack = lacking.iter().find(|lack| lack.peer == *peer);
                if let Some(Word::PassedOver(until) | Word::Promised(_, until)) =
                    lack.map(|lack| lack.word(now, provider))
                {
                    turn.until = turn.until.map_or(Some(until), |at| Some(at.min(until)));
                }
            }
        }
        turn
    }
}

/// No two nodes have the same.
fn weight(chunk: &ChunkRef, node: NodeId) -> (u64, NodeId) {
    let mut mixed = 0;
    for part in chunk.hash.0[..8].chunks(8).chain(node.0.chunks(8)) {
        let part = part.try_into().map_or(0, u64::from_le_bytes);
        mixed = Random::new(mixed ^ part).next_u64();
    }
    (mixed, node)
}
