//! All links of one dataset's replica. Routes what happens to the link that it concerns, and adds the peer to what the
//! links ask for; the decisions are in [`link`](super::link).

use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::mem;

use crate::model::fingerprint::FingerprintKey;
use crate::model::id::NodeId;
use crate::protocol::event::{Access, Effect, Event, Now};
use crate::protocol::link::{Ask, Ends, Link, LinkError, Outstanding, Phase};
use crate::protocol::message::Message;
use crate::protocol::news::{Elsewhere, News};
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
        let random = Random::new(seed);
        let (links, news, orphans) = Default::default();
        Self { fingerprint_key, access, random, links, news, orphans }
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
                self.links.insert(peer, link);
                self.with_link(peer, now, effects, |link, to| link.begin(standing, view, to))
            }
            Event::Disconnected { peer } => {
                self.forget(peer, now.instant);
                Ok(())
            }
            Event::Received { peer, message } => {
                self.with_link(peer, now, effects, |link, to| link.on_message(message, view, to))
            }
            Event::Committed { peer, stale } => {
                if !self.links.contains_key(&peer) {
                    if let Some(orphans) = self.orphans.get_mut(&peer) {
                        orphans.pop_front();
                    }
                    return Ok(());
                }
                self.with_link(peer, now, effects, |link, to| link.on_committed(stale, view, to))
            }
            Event::Grew => self.with_each_link(now, effects, |link, to| link.on_grew(view, to)),
            Event::DeadlinePassed => {
                self.with_each_link(now, effects, |link, to| link.on_deadline(view, to))
            }
            Event::DirectoryFlushed { peer, id } => {
                self.with_link(peer, now, effects, |link, to| {
                    link.on_directory_flushed(id, view, to)
                })
            }
            Event::BarrierWanted { peer, id } => self.with_link(peer, now, effects, |_, to| {
                to.push(Ask::Send(Message::Flush { id }));
                Ok(())
            }),
        }
    }

    /// When the next [`Event::DeadlinePassed`] is due.
    pub fn deadline(&self) -> Option<Instant> {
        self.links.values().filter_map(Link::deadline).min()
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
        let outcome = act(link, &mut asks);
        self.news = link.take_back();
        effects.extend(asks.into_iter().map(|ask| effect(peer, ask)));
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

    fn forget(&mut self, peer: NodeId, now: Instant) {
        if let Some(mut link) = self.links.remove(&peer) {
            self.news.forget(peer);
            if Elsewhere::Pushing <= link.does(now) {
                self.news.lost_a_link(now);
            }
            let orphans = link.take_outstanding();
            if !orphans.is_empty() {
                self.orphans.insert(peer, orphans);
            }
        }
    }
}

fn effect(peer: NodeId, ask: Ask) -> Effect {
    match ask {
        Ask::Send(message) => Effect::Send { peer, message },
        Ask::Commit { entries, cursor } => Effect::Commit { peer, entries, cursor },
        Ask::FlushDirectory { id } => Effect::FlushDirectory { peer, id },
        Ask::BarrierReached { id, head } => Effect::BarrierReached { id, peer, head },
    }
}
