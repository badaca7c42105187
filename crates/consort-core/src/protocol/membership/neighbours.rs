//! Whom to be connected with, and why.
//!
//! In a cluster of up to [`MAX_FULL_MESH`] members everybody is everybody's neighbour. In a larger one each chooses
//! [`LEAST_DEGREE`] at random among those who pass on what they receive, and accepts others until it has
//! [`GREATEST_DEGREE`]. A graph in which each node has chosen three neighbours at random is connected, except with a
//! probability that falls with its size; and it stays random, since each exchanges one of its choice for another now and then.
//!
//! So that the two ends never pull in different directions:
//! - Who chose a neighbour keeps it, and exchanges it only when it has lasted a while. Who was chosen ends it only while it has too
//!   many, and only if the other gets along without.
//! - Who was refused, left, or could not connect, does not come back before a while, which grows.
//! - Who has nobody that passes on anything to it is accepted in excess ([`GREATEST_NEEDY_DEGREE`]).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Effect, Liveness, Member, News, Word};
use crate::model::id::NodeId;
use crate::random::Random;
use crate::time::Instant;

/// The most members, this one among them, that are all linked with each other.
pub const MAX_FULL_MESH: usize = 9;
/// How many neighbours a member of a larger cluster chooses.
pub const LEAST_DEGREE: usize = 3;
/// How many it has at the most, of its own choice and others'.
pub const GREATEST_DEGREE: usize = 8;
/// And with those that would have nobody otherwise: readers pass on nothing, so few writers may have to serve many.
pub const GREATEST_NEEDY_DEGREE: usize = 128;
/// Neighbours who pass on what they receive that a member is left with when others leave it.
const SOURCES_WANTED: usize = 2;

/// How long a neighbour stays before it is exchanged, or left since there are too many.
const LAST_AT_LEAST: Duration = Duration::from_secs(20);
/// How often a neighbour is exchanged: at least and at most.
const EXCHANGE_AFTER: Duration = Duration::from_secs(60);
/// See [`EXCHANGE_AFTER`].
const EXCHANGE_WITHIN: Duration = Duration::from_secs(120);
/// When somebody is back who was gone, one is exchanged within this time: the cluster may have been split, and each half is
/// a graph of its own.
const EXCHANGE_ON_RETURN: Duration = Duration::from_secs(10);
/// Who is back is preferred for so long.
const PREFER_RETURNED: Duration = Duration::from_secs(60);
/// How often a superfluous neighbour is left.
const SHED_EVERY: Duration = Duration::from_secs(2);
/// How long an attempt to connect, or a question, may take before another member is chosen.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long one that could not be had is not asked; doubled each time.
const AVOID_FIRST: Duration = Duration::from_secs(10);
/// The longest such time.
const AVOID_LAST: Duration = Duration::from_secs(300);

const _: () = assert!(LEAST_DEGREE < GREATEST_DEGREE && MAX_FULL_MESH <= GREATEST_DEGREE + 1);

/// What is known of the members: what their certificates or the facts say, and whether they are there.
pub(super) trait Lookup: Fn(NodeId) -> Option<(Member, Liveness)> {}
impl<F: Fn(NodeId) -> Option<(Member, Liveness)>> Lookup for F {}

#[derive(Debug)]
pub(super) struct Neighbours {
    own: Member,
    random: Random,
    peers: BTreeMap<NodeId, Peer>,
    avoided: BTreeMap<NodeId, Avoided>,
    returned: BTreeMap<NodeId, Instant>,
    exchange_at: Instant,
    shed_at: Instant,
    /// Everybody is linked with everybody.
    full: bool,
    /// Somebody had no room for us since anybody passed on anything to us.
    refused: bool,
    settled: bool,
}

/// Somebody we are connected with, or want to be.
#[derive(Clone, Copy, Debug)]
struct Peer {
    member: Member,
    /// It is to be our neighbour by our choice.
    chosen: bool,
    /// It is our neighbour by its choice.
    chose_us: bool,
    /// Since when it is being dialed.
    dialing: Option<Instant>,
    /// We made the connection that there is.
    connected: Option<bool>,
    /// It has not answered a question of then.
    asked: Option<Instant>,
    /// It is our neighbour since then.
    open: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Avoided {
    until: Instant,
    times: u32,
}

impl Neighbours {
    pub(super) fn new(own: Member, seed: u64, now: Instant) -> Self {
        let mut random = Random::new(seed);
        let exchange_at = now + between(EXCHANGE_AFTER, EXCHANGE_WITHIN, &mut random);
        Self {
            own,
            random,
            peers: BTreeMap::new(),
            avoided: BTreeMap::new(),
            returned: BTreeMap::new(),
            exchange_at,
            shed_at: now,
            full: true,
            refused: false,
            settled: false,
        }
    }

    pub(super) fn open(&self) -> impl Iterator<Item = NodeId> {
        self.peers.iter().filter(|(_, peer)| peer.open.is_some()).map(|(node, _)| *node)
    }

    pub(super) fn is_open(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.open.is_some())
    }

    pub(super) fn is_connected(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.connected.is_some())
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled
    }

    /// How many neighbours pass on what they receive.
    pub(super) fn sources(&self) -> usize {
        self.peers.values().filter(|peer| peer.is_source()).count()
    }

    pub(super) fn on_connected(
        &mut self,
        member: Member,
        dialed: bool,
        now: Instant,
        to: &mut Vec<Effect>,
    ) {
        let peer = self.peers.entry(member.node).or_insert(Peer::new(member));
        peer.member = member;
        peer.dialing = None;
        peer.connected = Some(dialed);
        if peer.chosen {
            self.ask(member.node, now, to);
        }
        self.release(member.node, to);
    }

    pub(super) fn on_disconnected(&mut self, node: NodeId, now: Instant, to: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.connected = None;
        peer.asked = None;
        peer.chose_us = false;
        if peer.open.take().is_some() {
            to.push(Effect::Close { peer: node });
        }
        if peer.chosen {
            // It may have been the connection, not the peer. If not, an attempt to connect will tell.
            if peer.dialing.is_none() {
                peer.dialing = Some(now);
                to.push(Effect::Connect { peer: node });
            }
        } else {
            self.peers.remove(&node);
        }
    }

    pub(super) fn on_unreachable(&mut self, node: NodeId, now: Instant, to: &mut Vec<Effect>) {
        // Whoever is linked with all goes on trying.
        if !self.full && self.peers.get(&node).is_some_and(|peer| peer.connected.is_none()) {
            self.give_up(node, now, to);
        }
    }

    /// It is there, so it is worth a try.
    pub(super) fn on_found(&mut self, node: NodeId) {
        self.avoided.remove(&node);
    }

    pub(super) fn on_returned(&mut self, node: NodeId, now: Instant) {
        self.returned.insert(node, now);
        let soon = now + between(Duration::ZERO, EXCHANGE_ON_RETURN, &mut self.random);
        self.exchange_at = self.exchange_at.min(soon);
    }

    pub(super) fn on_word(&mut self, node: NodeId, word: Word, now: Instant, to: &mut Vec<Effect>) {
        let accepts = self.accepts(node, matches!(word, Word::Ask { needy: true }));
        let Some(peer) = self.peers.get_mut(&node).filter(|peer| peer.connected.is_some()) else {
            return;
        };
        match word {
            Word::Ask { .. } if accepts => {
                peer.chose_us = true;
                to.push(Effect::Tell { peer: node, word: Word::Accept });
                peer.be_open(now, to);
            }
            Word::Ask { .. } => to.push(Effect::Tell { peer: node, word: Word::Refuse }),
            Word::Accept if peer.chosen => {
                peer.asked = None;
                peer.be_open(now, to);
                self.avoided.remove(&node);
            }
            // It was asked for too long ago.
            Word::Accept => {
                if !peer.chose_us {
                    to.push(Effect::Tell { peer: node, word: Word::End });
                }
            }
            Word::Refuse => {
                self.refused = true;
                peer.asked = None;
                peer.chosen = false;
                self.avoid(node, now);
                self.release(node, to);
            }
            Word::End => {
                peer.asked = None;
                peer.chosen = false;
                peer.chose_us = false;
                if peer.open.take().is_some() {
                    to.push(Effect::Close { peer: node });
                }
                self.avoid(node, now);
                self.release(node, to);
            }
        }
    }

    /// Looks over who there is, and acts on it. `all` are the members but this one.
    pub(super) fn look<'n>(
        &mut self,
        all: impl Iterator<Item = NodeId>,
        known: impl Lookup,
        news: impl Fn(NodeId) -> Option<&'n News>,
        now: Instant,
        to: &mut Vec<Effect>,
    ) {
        let all: Vec<NodeId> = all.collect();
        self.full = all.len() < MAX_FULL_MESH;
        self.avoided.retain(|_, avoided| now < avoided.until + AVOID_LAST);
        self.returned.retain(|_, at| now < *at + PREFER_RETURNED);
        self.leave_strangers(&known, to);
        self.give_up_the_slow(now, to);
        if self.full {
            for &node in &all {
                let is_avoided = self.avoided.get(&node).is_some_and(|a| now < a.until);
                if let Some((member, _)) = known(node).filter(|_| !is_avoided) {
                    self.choose(member, now, to);
                }
            }
        } else {
            self.choose_some(&all, &known, &news, now, to);
            self.shed(&news, now, to);
        }
        let pending = |peer: &&Peer| peer.chosen && peer.open.is_none();
        let waits = self.peers.values().filter(pending).any(|peer| {
            known(peer.member.node).is_some_and(|(_, liveness)| liveness != Liveness::Gone)
        });
        self.settled = !waits && !all.is_empty();
    }

    // ---- Choosing ----

    /// Chooses as many as are missing, and now and then one more in exchange for another.
    fn choose_some<'n>(
        &mut self,
        all: &[NodeId],
        known: &impl Lookup,
        news: &impl Fn(NodeId) -> Option<&'n News>,
        now: Instant,
        to: &mut Vec<Effect>,
    ) {
        let open = |peers: &BTreeMap<NodeId, Peer>| {
            peers.values().filter(|peer| peer.open.is_some() || peer.chosen).count()
        };
        while self.chosen() < LEAST_DEGREE {
            let is_needy = self.sources() == 0;
            if GREATEST_DEGREE <= open(&self.peers) && !is_needy {
                break;
            }
            let Some(member) = self.candidate(all, known, news, now) else { break };
            self.choose(member, now, to);
        }
        if self.exchange_at <= now {
            self.exchange_at = now + between(EXCHANGE_AFTER, EXCHANGE_WITHIN, &mut self.random);
            if self.chosen() <= LEAST_DEGREE
                && open(&self.peers) < GREATEST_DEGREE
                && let Some(member) = self.candidate(all, known, news, now)
            {
                self.choose(member, now, to);
            }
        }
    }

    /// A random member to be a neighbour of: one that is there and passes on what it receives, if there is such a one. Those who
    /// are back are preferred; those who are known to have no room are not asked.
    fn candidate<'n>(
        &mut self,
        all: &[NodeId],
        known: &impl Lookup,
        news: &impl Fn(NodeId) -> Option<&'n News>,
        now: Instant,
    ) -> Option<Member> {
        let possible = |node: &NodeId| {
            let (member, liveness) = known(*node)?;
            let is_avoided = self.avoided.get(node).is_some_and(|avoided| now < avoided.until);
            let peer = self.peers.get(node);
            let is_ours = peer.is_some_and(|peer| peer.chosen);
            let can_be_had = member.dialable || peer.is_some_and(|peer| peer.connected.is_some());
            (!is_avoided && !is_ours && can_be_had && member.passes_on)
                .then_some((member, liveness))
        };
        let possible: Vec<(Member, Liveness)> = all.iter().filter_map(possible).collect();
        // The lower the better.
        let rank = |member: &Member, liveness: Liveness| {
            let is_there = matches!(liveness, Liveness::Alive | Liveness::Suspected)
                || self.is_connected(member.node);
            let links = news(member.node).map_or(0, |news| usize::from(news.links));
            match (!self.is_open(member.node), is_there, links < GREATEST_DEGREE) {
                (true, true, true) if self.returned.contains_key(&member.node) => 0,
                (true, true, true) => 1,
                (true, true, false) => 2,
                // Perhaps it is there all the same: no datagram may get through, or nothing has been heard yet.
                (true, false, _) => 3,
                (false, ..) => 4,
            }
        };
        let ranked: Vec<(u8, Member)> =
            possible.iter().map(|(member, live)| (rank(member, *live), *member)).collect();
        let best = ranked.iter().map(|(rank, _)| *rank).min()?;
        let best: Vec<&Member> =
            ranked.iter().filter(|(rank, _)| *rank == best).map(|(_, member)| member).collect();
        let choice = self.random.below(best.len() as u64);
        best.get(usize::try_from(choice).unwrap_or(0)).map(|member| **member)
    }

    fn choose(&mut self, member: Member, now: Instant, to: &mut Vec<Effect>) {
        let peer = self.peers.entry(member.node).or_insert(Peer::new(member));
        if peer.chosen {
            return;
        }
        peer.chosen = true;
        if peer.connected.is_some() {
            self.ask(member.node, now, to);
        } else if peer.dialing.is_none() {
            peer.dialing = Some(now);
            to.push(Effect::Connect { peer: member.node });
        }
    }

    fn ask(&mut self, node: NodeId, now: Instant, to: &mut Vec<Effect>) {
        let has_none = self.sources() == 0;
        self.refused &= has_none;
        let needy = self.refused;
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.asked = Some(now);
            to.push(Effect::Tell { peer: node, word: Word::Ask { needy } });
        }
    }

    /// Whether one that asks for it becomes a neighbour.
    fn accepts(&self, node: NodeId, needy: bool) -> bool {
        let Some(asking) = self.peers.get(&node) else { return false };
        // Whom we have asked ourselves there is room for.
        let is_counted = |peer: &&Peer| peer.open.is_some() || peer.chosen;
        let count = self.peers.values().filter(is_counted).count();
        let sources = self.peers.values().filter(|peer| peer.is_source()).count();
        is_counted(&asking)
            || self.full
            || count < GREATEST_DEGREE
            || count < GREATEST_NEEDY_DEGREE
                && (needy || asking.member.passes_on && sources < LEAST_DEGREE)
    }

    // ---- Leaving ----

    /// Leaves one of those that are too many, if that leaves nobody without.
    fn shed<'n>(
        &mut self,
        news: &impl Fn(NodeId) -> Option<&'n News>,
        now: Instant,
        to: &mut Vec<Effect>,
    ) {
        if now < self.shed_at {
            return;
        }
        let lasted = |peer: &Peer| peer.open.is_some_and(|since| since + LAST_AT_LEAST <= now);
        let open = self.peers.values().filter(|peer| peer.open.is_some());
        let settled = open.clone().filter(|peer| peer.chosen).count();
        // Of our choice: one that was exchanged, or that comes from when everybody was linked with everybody.
        let of_ours = LEAST_DEGREE < settled;
        let of_theirs = GREATEST_DEGREE < open.count();
        let gets_along = |node: NodeId| {
            news(node).is_some_and(|news| {
                let sources =
                    usize::from(news.sources).saturating_sub(usize::from(self.own.passes_on));
                SOURCES_WANTED.min(LEAST_DEGREE) <= sources
                    && LEAST_DEGREE < usize::from(news.links)
            })
        };
        let may_go = |peer: &Peer| {
            lasted(peer)
                && (of_ours && peer.chosen
                    || of_theirs && !peer.chosen && gets_along(peer.member.node))
        };
        let going: Vec<NodeId> =
            self.peers.values().filter(|peer| may_go(peer)).map(|peer| peer.member.node).collect();
        if going.is_empty() {
            return;
        }
        self.shed_at = now + SHED_EVERY;
        let choice = self.random.below(going.len() as u64);
        let node = going[usize::try_from(choice).unwrap_or(0)];
        self.end(node, now, to);
    }

    /// Ends being neighbours.
    fn end(&mut self, node: NodeId, now: Instant, to: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        (peer.chosen, peer.chose_us, peer.asked) = (false, false, None);
        if peer.connected.is_some() {
            to.push(Effect::Tell { peer: node, word: Word::End });
        }
        if peer.open.take().is_some() {
            to.push(Effect::Close { peer: node });
        }
        self.avoid(node, now);
        self.release(node, to);
    }

    /// Leaves those who are members no more.
    fn leave_strangers(&mut self, known: &impl Lookup, to: &mut Vec<Effect>) {
        let strangers: Vec<NodeId> =
            self.peers.keys().copied().filter(|node| known(*node).is_none()).collect();
        for node in strangers {
            self.forget(node, to);
        }
    }

    /// Chooses others instead of those who do not connect or answer.
    fn give_up_the_slow(&mut self, now: Instant, to: &mut Vec<Effect>) {
        let is_slow = |since: Option<Instant>| since.is_some_and(|at| at + ANSWER_WITHIN <= now);
        let slow = |peer: &&Peer| is_slow(peer.dialing) && !self.full || is_slow(peer.asked);
        let slow: Vec<NodeId> =
            self.peers.values().filter(slow).map(|peer| peer.member.node).collect();
        for node in slow {
            if self.is_connected(node) {
                self.end(node, now, to);
            } else {
                self.give_up(node, now, to);
            }
        }
    }

    /// One that cannot be connected with.
    fn give_up(&mut self, node: NodeId, now: Instant, to: &mut Vec<Effect>) {
        self.avoid(node, now);
        self.forget(node, to);
    }

    fn forget(&mut self, node: NodeId, to: &mut Vec<Effect>) {
        let Some(peer) = self.peers.remove(&node) else { return };
        if peer.open.is_some() {
            to.push(Effect::Close { peer: node });
        }
        if peer.connected.is_some() || peer.dialing.is_some() {
            to.push(Effect::Disconnect { peer: node });
        }
    }

    /// Ends a connection of ours that is of no use any more. One that the other side made is its own to end.
    fn release(&mut self, node: NodeId, to: &mut Vec<Effect>) {
        let Some(peer) = self.peers.get(&node) else { return };
        let is_of_use = peer.chosen || peer.chose_us;
        if !is_of_use && peer.connected != Some(false) {
            self.forget(node, to);
        }
    }

    fn avoid(&mut self, node: NodeId, now: Instant) {
        let avoided = self.avoided.entry(node).or_insert(Avoided { until: now, times: 0 });
        let pause = AVOID_FIRST.saturating_mul(1 << avoided.times.min(16)).min(AVOID_LAST);
        avoided.until = now + between(pause / 2, pause, &mut self.random);
        avoided.times += 1;
    }

    fn chosen(&self) -> usize {
        self.peers.values().filter(|peer| peer.chosen).count()
    }
}

impl Peer {
    fn new(member: Member) -> Self {
        Self {
            member,
            chosen: false,
            chose_us: false,
            dialing: None,
            connected: None,
            asked: None,
            open: None,
        }
    }

    fn is_source(&self) -> bool {
        self.open.is_some() && self.member.passes_on
    }

    fn be_open(&mut self, now: Instant, to: &mut Vec<Effect>) {
        if self.open.is_none() {
            self.open = Some(now);
            to.push(Effect::Open { peer: self.member.node });
        }
    }
}

fn between(least: Duration, most: Duration, random: &mut Random) -> Duration {
    let span = u64::try_from((most - least).as_micros()).unwrap_or(u64::MAX).max(1);
    least + Duration::from_micros(random.below(span))
}
