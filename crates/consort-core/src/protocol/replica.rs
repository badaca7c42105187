//! All links of one dataset's replica. Routes what happens to the link that it concerns, and adds the peer to what the
//! links ask for; the decisions are in [`link`](super::link). A barrier concerns more than one link: it is passed on to the
//! others before it is answered (`wave`).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::mem;

use crate::model::fingerprint::FingerprintKey;
use crate::model::id::NodeId;
use crate::protocol::event::{Access, Effect, Event, Now};
use crate::protocol::garbage::{Garbage, Holdup, Published};
use crate::protocol::link::{Ask, Ends, Link, LinkError, Outstanding, Phase};
use crate::protocol::message::Message;
use crate::protocol::news::{Elsewhere, News};
use crate::protocol::wave::{Asked, Waves};
use crate::random::Random;
use crate::reconcile::Method;
use crate::store::{Sequence, StoreError, View};
use crate::time::Instant;

/// A replica of one dataset among its peers: a pure machine, driven by [`handle`](Self::handle).
///
/// # How to drive it
/// - Pass every event to `handle` with a view that is at least as new as the event, and carry out the effects in order.
/// - After each event, wait for the next one until [`deadline`](Self::deadline), then pass
///   [`Event::DeadlinePassed`].
/// - Time never goes back: an [`Instant`] passed in is no earlier than the one before.
#[derive(Debug)]
pub struct Replica {
    fingerprint_key: FingerprintKey,
    access: Access,
    random: Random,
    links: BTreeMap<NodeId, Link>,
    /// What the links share.
    news: News,
    /// Commits that links asked for which are gone since, still to be reported.
    orphans: BTreeMap<NodeId, VecDeque<Outstanding>>,
    waves: Waves,
    garbage: Garbage,
    /// The peer whose state is being taken by difference. From nobody else is anything taken meanwhile.
    adopts_from: Option<NodeId>,
    /// Peers that did not give their state when it was to be taken, and until when they are not asked again.
    resting: BTreeMap<NodeId, Instant>,
    /// Something was learnt or heard that may move the frontier.
    look: bool,
}

/// How one link stands, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkReport {
    /// The other end.
    pub peer: NodeId,
    /// How far it has come.
    pub phase: Phase,
    /// How the two compare what they hold, while they do and once it is decided.
    pub method: Option<Method>,
    /// About how many versions the peer has not confirmed.
    pub behind: u64,
    /// How many places of the peer's feed are known of and not applied here yet.
    pub lacks: u64,
    /// How far the peer's feed has been applied here.
    pub applied: Sequence,
}

impl Replica {
    /// A replica without links. `access` is what this node may do to the dataset; `seed` decides all randomness.
    pub fn new(fingerprint_key: FingerprintKey, access: Access, seed: u64) -> Self {
        let (links, news, orphans, waves, garbage, resting) = Default::default();
        Self {
            fingerprint_key,
            access,
            random: Random::new(seed),
            links,
            news,
            orphans,
            waves,
            garbage,
            adopts_from: None,
            resting,
            look: false,
        }
    }

    /// Handles one event and appends what should happen to `effects`.
    ///
    /// Fails only if the store cannot be read. A link that could not is gone then, so that it neither acknowledges nor
    /// passes over what it could not look at, and its connection is to be ended ([`Effect::Disconnect`]): it is made
    /// again with the next one. The other links have taken in the event. The effects are to be carried out in any case.
    pub fn handle(
        &mut self,
        event: Event,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let adopted_from = self.adopts_from;
        let mut outcome = self.take(event, now, view, effects);
        if adopted_from.is_some_and(|peer| self.adopts_from != Some(peer)) {
            let begins = |link: &mut Link, to: &mut Vec<Ask>| link.begin_anew(view, to);
            outcome = outcome.and(self.with_each_link(now, effects, begins));
        }
        if mem::take(&mut self.look) {
            outcome = outcome.and(self.look(now, view, effects));
        }
        if self.waves.is_empty() {
            return outcome;
        }
        outcome.and(self.tend_waves(now, view, effects))
    }

    fn look(
        &mut self,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let (lesson, publishes) = self.garbage.look(now, view, self.access == Access::Write)?;
        effects.extend(lesson.map(|lesson| Effect::Learn { peer: None, lesson }));
        if publishes {
            self.links.values_mut().for_each(Link::tell_soon);
        }
        Ok(())
    }

    fn take(
        &mut self,
        event: Event,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        match event {
            Event::Connected { peer, access, opener, standing } => {
                self.forget(peer, now.instant);
                let ends = Ends {
                    peer,
                    theirs: access,
                    ours: self.access,
                    opener,
                    fingerprint_key: self.fingerprint_key,
                };
                let mut link = Link::new(ends, self.random.next_u64());
                link.inherit(self.orphans.remove(&peer).unwrap_or_default());
                link.rest_until(self.resting.remove(&peer));
                self.links.insert(peer, link);
                self.with_link(peer, now, effects, |link, to| link.begin(standing, view, to))
            }
            Event::Disconnected { peer } => {
                self.forget(peer, now.instant);
                Ok(())
            }
            Event::Received { peer, message: Message::Flush { id } } => {
                self.on_flush(peer, id, now, view, effects)
            }
            Event::Received { peer, message } => {
                self.with_link(peer, now, effects, |link, to| link.on_message(message, view, to))
            }
            Event::Committed { peer, stale } => self.committed(peer, stale, now, view, effects),
            Event::Learned { peer } => {
                self.look = true;
                match peer {
                    Some(peer) => self.committed(peer, 0, now, view, effects)?,
                    None => self.garbage.moved(),
                }
                self.with_each_link(now, effects, |link, to| link.on_learned(view, to))
            }
            Event::Registered { node, replicas } => {
                let was_on = self.garbage.is_on();
                self.garbage.set_registered(node, &replicas);
                self.garbage.grew(now, view, &mut self.random);
                self.look = true;
                self.with_each_link(now, effects, |link, to| {
                    // What it was told before was in the wind.
                    if was_on { link.on_learned(view, to) } else { link.begin_anew(view, to) }
                })
            }
            Event::Grew => {
                self.garbage.grew(now, view, &mut self.random);
                self.with_each_link(now, effects, |link, to| link.on_grew(view, to))
            }
            Event::DeadlinePassed => {
                let (promise, look) = self.garbage.on_deadline(now, view)?;
                self.look |= look;
                effects.extend(promise.map(|lesson| Effect::Learn { peer: None, lesson }));
                let told = self.garbage.to_tell(view);
                self.with_each_link(now, effects, |link, to| link.on_deadline(&told, view, to))
            }
            Event::DirectoryFlushed { id, .. } => {
                let mut outcome = Ok(());
                for (barrier, askers) in self.waves.on_flushed(id) {
                    for peer in askers {
                        let own = self.answer(peer, barrier, now, view, effects);
                        outcome = outcome.and(own);
                    }
                }
                outcome
            }
            Event::BarrierWanted { peer, id } => {
                self.waves.begin(id);
                if self.links.contains_key(&peer) {
                    effects.push(Effect::Send { peer, message: Message::Flush { id } });
                }
                Ok(())
            }
        }
    }

    /// When the next [`Event::DeadlinePassed`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        let links = self.links.values().filter_map(Link::deadline);
        links.chain(self.waves.deadline()).chain(self.garbage.deadline()).min()
    }

    /// What all replicas published of themselves, as far as it is known here.
    pub fn published(&self) -> impl Iterator<Item = &Published> {
        self.garbage.published()
    }

    /// Whom forgetting deletions waits for, if there are any.
    pub fn holdup(&self, view: &impl View) -> Option<Holdup> {
        self.garbage.holdup(view)
    }

    /// How each link stands, ordered by peer. `head` is the end of this replica's feed.
    pub fn links(&self, head: Sequence) -> impl Iterator<Item = LinkReport> {
        self.links.iter().map(move |(&peer, link)| LinkReport {
            peer,
            phase: link.phase(head),
            method: link.method(),
            behind: link.behind(head),
            lacks: link.lacks(),
            applied: link.applied(),
        })
    }

    fn committed(
        &mut self,
        peer: NodeId,
        stale: usize,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        if !self.links.contains_key(&peer) {
            if let Some(orphans) = self.orphans.get_mut(&peer) {
                orphans.pop_front();
            }
            return Ok(());
        }
        self.with_link(peer, now, effects, |link, to| link.on_committed(stale, view, to))
    }

    fn with_link(
        &mut self,
        peer: NodeId,
        now: Now,
        effects: &mut Vec<Effect>,
        act: impl FnOnce(&mut Link, &mut Vec<Ask>) -> Result<(), LinkError>,
    ) -> Result<(), StoreError> {
        let others = self.links.iter().filter(|(other, _)| **other != peer);
        let elsewhere = others.map(|(_, link)| link.does(now.instant)).max().unwrap_or_default();
        // What arrives for a link that was ended meanwhile concerns nobody.
        let Some(link) = self.links.get_mut(&peer) else { return Ok(()) };
        let mut asks = Vec::new();
        link.lend(now, elsewhere, mem::take(&mut self.news));
        let held = self.adopts_from.is_some_and(|adopts_from| adopts_from != peer);
        link.hold(held, self.garbage.is_on());
        let outcome = act(link, &mut asks);
        self.news = link.take_back();
        if link.is_adopting() {
            self.adopts_from = Some(peer);
        } else if self.adopts_from == Some(peer) {
            self.adopts_from = None;
        }
        for ask in asks {
            match ask {
                Ask::Collect { frontier } => {
                    self.garbage.aim(&frontier);
                    self.look = true;
                }
                Ask::Hear { author, published } => {
                    if self.garbage.hear(&published, author, now) {
                        self.look = true;
                        self.links.values_mut().for_each(Link::tell_soon);
                    }
                }
                ask => effects.extend(effect(peer, ask, &mut self.waves)),
            }
        }
        match outcome {
            Ok(()) => Ok(()),
            Err(LinkError::Store(error)) => {
                self.forget(peer, now.instant);
                effects.push(Effect::Disconnect { peer, reason: error.to_string() });
                Err(error)
            }
            Err(LinkError::Peer(reason)) => {
                self.forget(peer, now.instant);
                let message = Message::Reject { reason: reason.clone() };
                effects.push(Effect::Send { peer, message });
                effects.push(Effect::Disconnect { peer, reason });
                Ok(())
            }
        }
    }

    fn with_each_link(
        &mut self,
        now: Now,
        effects: &mut Vec<Effect>,
        mut act: impl FnMut(&mut Link, &mut Vec<Ask>) -> Result<(), LinkError>,
    ) -> Result<(), StoreError> {
        let peers: Vec<NodeId> = self.links.keys().copied().collect();
        let mut outcome = Ok(());
        for peer in peers {
            // One that fails keeps the others from nothing.
            let own = self.with_link(peer, now, effects, &mut act);
            outcome = outcome.and(own);
        }
        outcome
    }

    // ---- Barriers ----

    /// A peer wants everything that was changed before now, here and behind.
    fn on_flush(
        &mut self,
        peer: NodeId,
        id: u64,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        if !self.links.contains_key(&peer) {
            return Ok(());
        }
        match self.waves.on_asked(peer, id, now.instant) {
            Asked::Spread { flush } => {
                effects.push(Effect::FlushDirectory { peer, id: flush });
                // Nobody takes what a reader has from others.
                let passes_on = self.access == Access::Write;
                let others = self.links.iter().filter(|(other, link)| {
                    passes_on && **other != peer && link.takes() && !link.is_greeting()
                });
                if let Some(wave) = self.waves.get_mut(id) {
                    for (&other, _) in others {
                        wave.passed.insert(other, None);
                        effects.push(Effect::Send { peer: other, message: Message::Flush { id } });
                    }
                }
            }
            Asked::Flush { flush } => effects.push(Effect::FlushDirectory { peer, id: flush }),
            Asked::Answer => return self.answer(peer, id, now, view, effects),
            Asked::Wait => {}
        }
        Ok(())
    }

    /// Answers the barriers that wait for nothing any more, and asks again who has not answered.
    fn tend_waves(
        &mut self,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        let mut reached = Vec::new();
        self.waves.forget_old(now.instant);
        for (id, wave) in self.waves.iter_mut() {
            let links = &self.links;
            let is_here = |(peer, head): (&NodeId, &Option<Sequence>)| match links.get(peer) {
                Some(link) => head.is_some_and(|head| link.has_applied(head)),
                None => true,
            };
            if wave.flushed && wave.passed.iter().all(is_here) {
                reached.push((id, wave.parent));
            } else if wave.asks_again(now.instant) {
                for (&peer, _) in wave.passed.iter().filter(|(_, head)| head.is_none()) {
                    effects.push(Effect::Send { peer, message: Message::Flush { id } });
                }
            }
        }
        let mut outcome = Ok(());
        for (id, parent) in reached {
            self.waves.end(id);
            if let Some(parent) = parent {
                let own = self.answer(parent, id, now, view, effects);
                outcome = outcome.and(own);
            }
        }
        outcome
    }

    fn answer(
        &mut self,
        peer: NodeId,
        id: u64,
        now: Now,
        view: &impl View,
        effects: &mut Vec<Effect>,
    ) -> Result<(), StoreError> {
        self.with_link(peer, now, effects, |link, to| link.answer_barrier(id, view, to))
    }

    fn forget(&mut self, peer: NodeId, now: Instant) {
        self.waves.on_gone(peer);
        self.adopts_from = self.adopts_from.filter(|adopts_from| *adopts_from != peer);
        if let Some(mut link) = self.links.remove(&peer) {
            self.news.forget(peer);
            if Elsewhere::Pushing <= link.does(now) {
                self.news.lost_a_link(now);
            }
            if let Some(until) = link.rests_until() {
                self.resting.insert(peer, until);
            }
            let orphans = link.take_outstanding();
            if !orphans.is_empty() {
                self.orphans.insert(peer, orphans);
            }
        }
    }
}

/// What an ask means outside. What answers a barrier that was passed on means nothing there.
fn effect(peer: NodeId, ask: Ask, waves: &mut Waves) -> Option<Effect> {
    match ask {
        Ask::Send(message) => Some(Effect::Send { peer, message }),
        Ask::Commit { entries, cursor } => Some(Effect::Commit { peer, entries, cursor }),
        Ask::Learn { lesson } => Some(Effect::Learn { peer: Some(peer), lesson }),
        Ask::BarrierReached { id, head } => {
            let concerns_others = waves.on_answered(peer, id, head);
            (!concerns_others).then_some(Effect::BarrierReached { id, peer, head })
        }
        Ask::Collect { .. } | Ask::Hear { .. } => None,
    }
}
