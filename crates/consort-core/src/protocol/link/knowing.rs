//! What is said about what is accounted for, and about what was collected: see [`garbage`](crate::protocol::garbage).
//!
//! A side says what it accounts for when the peer has all that it sent, so whoever takes in what came before accounts
//! for it as well. If the peer has collected what this side may not have heard of, then a deletion may be missing here
//! that nobody will ever send again: this side takes the peer's state by difference, from this peer alone. When it holds
//! all that the peer holds, it accounts for what the peer accounts for, and takes its frontier.
//!
//! What it holds within that frontier, and the peer does not, is dead, and goes in a second comparison, with this peer or
//! with another one that has the same frontier. So a crash at any moment leaves a replica that accounts for what it says;
//! until then it may hold more than it should, and knows that.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::checking::{FIRST_CHECK_AFTER, LOOK_AGAIN_AFTER};
use super::{Ask, Link, LinkError, Outstanding, State};
use crate::limits::{MAX_COLLECTED, MAX_DEAD_BYTES, MAX_FRONTIER_AUTHORS};
use crate::model::fingerprint::Fingerprint;
use crate::model::frontier::{Frontier, Knowledge};
use crate::model::hlc::Timestamp;
use crate::model::id::AuthorId;
use crate::protocol::event::Access;
use crate::protocol::garbage::{Published, Table, ToTell, account};
use crate::protocol::message::Message;
use crate::store::{Lesson, Sequence, StoreError, Summary, View};
use crate::time::Instant;

/// How long after something changed the peer is told: much of it shares a message.
const TELL_AFTER: Duration = Duration::from_secs(5);
/// How long a peer whose state is being taken may say nothing of it, and how long it then waits for another turn.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);
const RESTS_FOR: Duration = Duration::from_secs(300);
/// What a dead version counts while it is remembered, in bytes, beside its key.
const DEAD: usize = 64;

/// What the peer was told in this conversation.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The one whose frontier it was told, and the one of which it was told what is known.
    frontier: Arc<Knowledge>,
    known: Arc<Knowledge>,
    own: Timestamp,
    /// What was published by all replicas, and by those that were not registered.
    published: Arc<Table>,
    strangers: Arc<Table>,
}

impl Link {
    /// A conversation begins. If the frontiers are not equal, each side tells its own when it is live.
    pub(super) fn begin_telling(
        &mut self,
        ours: &Summary,
        theirs: &Summary,
        view: &impl View,
    ) -> Result<(), LinkError> {
        self.told = Told::default();
        self.their_frontier = Frontier::new();
        // Since our Hello, ours may have moved.
        if ours.frontier == theirs.frontier && ours.frontier == view.summary().frontier {
            let knowledge = view.knowledge()?;
            self.their_frontier = knowledge.frontier.clone();
            self.told.frontier = knowledge;
            self.buries = ours.unburied && self.ends.theirs == Access::Write;
            self.doubts = theirs.unburied;
        }
        Ok(())
    }

    /// Something may have changed that the peer should know.
    pub(crate) fn tell_soon(&mut self) {
        if self.forgets && matches!(self.state, State::Live) {
            self.tell_at.get_or_insert(self.now.instant + TELL_AFTER);
        }
    }

    /// Tells what changed, if the peer has all that was sent; otherwise looks again soon.
    pub(super) fn tell(
        &mut self,
        ToTell { table, all }: &ToTell,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.tell_at = None;
        if !matches!(self.state, State::Live) {
            return Ok(());
        }
        // What was said before has to be heard first: a peer that does not listen would be told without end.
        let is_heard = self.is_delivered(&view.summary()) && self.in_flight.len() == 0;
        if !is_heard || self.is_adopting() || self.held {
            self.tell_at = Some(self.now.instant + LOOK_AGAIN_AFTER);
            return Ok(());
        }
        let knowledge = view.knowledge()?;
        let (author, own) = view.own()?;
        let mut known = Frontier::new();
        if self.ends.ours == Access::Write {
            let news = knowledge.frontier.news_for(&self.told.frontier.frontier);
            for times in parts(news.times().collect()) {
                self.send_counted(Message::Frontier { times }, to);
            }
            // What others wrote matters only as long as there is something to forget.
            if view.tombstones().count != 0 {
                known = knowledge.known.news_for(&self.told.known.known);
                self.told.known = Arc::clone(&knowledge);
            }
            if self.told.own < own {
                known.raise(author, own);
            }
            self.told.own = own;
        }
        self.told.frontier = knowledge;
        let told = if *all { &mut self.told.published } else { &mut self.told.strangers };
        let told = core::mem::replace(told, Arc::clone(table));
        let is_news = |said: &&Published| told.get(&said.author) != Some(*said);
        let mut published: Vec<Published> = if Arc::ptr_eq(&told, table) {
            Vec::new()
        } else {
            table.values().filter(is_news).copied().collect()
        };
        for times in parts(known.times().collect()) {
            let rest = published.split_off(published.len().min(MAX_FRONTIER_AUTHORS));
            self.send_counted(Message::Known { times, published }, to);
            published = rest;
        }
        while !published.is_empty() {
            let rest = published.split_off(published.len().min(MAX_FRONTIER_AUTHORS));
            self.send_counted(Message::Known { times: Frontier::new(), published }, to);
            published = rest;
        }
        Ok(())
    }

    pub(super) fn on_unwanted(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        view: &impl View,
    ) -> Result<(), LinkError> {
        match self.state {
            State::Describing { .. } => self.sort_out(fingerprints, view).map(drop),
            _ => Ok(()),
        }
    }

    pub(super) fn on_frontier(
        &mut self,
        times: &Frontier,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.take(0);
        if self.ends.theirs == Access::Read || !self.forgets {
            return Ok(());
        }
        self.their_frontier.join(times);
        self.check_soon_what_is_dead(view);
        if times.is_within(&account(view)?) {
            to.push(Ask::Collect { frontier: self.their_frontier.clone() });
            return Ok(());
        }
        // What other links asked for comes before this lesson. When that is durable, a comparison sees all of it.
        self.learn(Lesson { anew: true, ..Lesson::default() }, false, to);
        self.adopting = Some(self.their_frontier.clone());
        self.unsettled = true;
        self.came_on_at = self.now.instant;
        Ok(())
    }

    pub(super) fn on_known(
        &mut self,
        times: &Frontier,
        mut published: Vec<Published>,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if !self.forgets {
            self.take(0);
            return Ok(());
        }
        if self.ends.theirs == Access::Read {
            // Of others it may say what it likes. One that writes can do worse.
            published.retain(|said| said.node == self.ends.peer);
        }
        let said_ahead = published.iter().map(|said| said.serial);
        self.miss(said_ahead.max().unwrap_or_default());
        if !published.is_empty() {
            let (author, _) = view.own()?;
            to.push(Ask::Hear { author, published });
        }
        // A time that lies ahead of our clock would call dead what is written until then. Up to now it is true as well.
        self.miss(times.latest());
        let times = times.until(Timestamp::latest(self.now.wall));
        let known = times.news_for(&account(view)?);
        // Nothing of what a reader has was applied.
        if known.is_empty() || self.ends.theirs == Access::Read {
            self.take(0);
        } else {
            self.learn(Lesson { known, ..Lesson::default() }, true, to);
        }
        Ok(())
    }

    /// What came with this time was not taken, if the time lies ahead of our clock.
    fn miss(&mut self, time: Timestamp) {
        if time.is_ahead_of(self.now.wall) {
            self.missed = self.missed.max(time);
        }
    }

    /// Whether what lay ahead of our clock does so no more. The peer tells it once more in a new conversation.
    pub(super) fn can_make_up(&self) -> bool {
        self.missed != Timestamp(0) && !self.missed.is_ahead_of(self.now.wall)
    }

    pub(super) fn learn(&mut self, lesson: Lesson, counts: bool, to: &mut Vec<Ask>) {
        self.outstanding.push_back(Outstanding { counts, ..Outstanding::default() });
        to.push(Ask::Learn { lesson });
    }

    // ---- The peer's state, by difference ----

    /// Whether this side takes the peer's state by difference. No other link takes anything in until that is done.
    pub(crate) fn is_adopting(&self) -> bool {
        self.adopting.is_some()
    }

    /// When a peer whose state is being taken has said nothing of it for too long. Nobody else is listened to meanwhile.
    pub(super) fn gives_up_at(&self) -> Option<Instant> {
        let waits = self.is_adopting() && self.outstanding.is_empty();
        waits.then(|| self.came_on_at + GIVES_UP_AFTER)
    }

    /// Does not take the peer's state after all, nor for a while: others have their turn.
    pub(super) fn give_up(&mut self) {
        (self.adopting, self.unsettled) = (None, false);
        self.rests_until = Some(self.now.instant + RESTS_FOR);
    }

    /// Until when the peer's state is not taken: a new link to it goes on with that.
    pub(crate) fn rest_until(&mut self, until: Option<Instant>) {
        self.rests_until = until;
    }

    /// See [`rest_until`](Self::rest_until).
    pub(crate) fn rests_until(&self) -> Option<Instant> {
        self.rests_until.filter(|until| self.now.instant < *until)
    }

    /// Until when the peer's frontier is not looked at, since its state would have to be taken.
    pub(super) fn rests(
        &self,
        times: &Frontier,
        view: &impl View,
    ) -> Result<Option<Instant>, StoreError> {
        let until = self.rests_until();
        Ok(if until.is_some() && times.is_within(&account(view)?) { None } else { until })
    }

    /// While another link takes its peer's state by difference, this one takes nothing in. If the replica does not
    /// `forget` at all, nobody tells it what is dead.
    pub(crate) fn hold(&mut self, held: bool, forgets: bool) {
        (self.held, self.forgets) = (held, forgets);
    }

    /// Works off the inbox of a link that takes nothing in: when it may again, it begins anew. Until then the peer may take
    /// this side's state, as this side takes another's, so what the sides compare goes on; nodes that wait for each other
    /// in a circle would do so for ever.
    pub(super) fn serve(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        if !self.outstanding.is_empty() {
            return Ok(());
        }
        (self.wanting, self.announced) = (None, None);
        while self.given.pop().is_some() {}
        while let Some((message, _)) = self.inbox.pop() {
            match message {
                Message::Description(answer) => self.on_description(answer, view, to)?,
                Message::Reconciled { taken, given } => {
                    self.on_reconciled(taken, given, view, to)?;
                }
                _ => {}
            }
        }
        self.advance_comparison(view, to)
    }

    /// A link of this replica took its peer's state by difference, or gave that up. What this one has taken in before may
    /// be gone, and what came meanwhile was not taken in.
    pub(crate) fn begin_anew(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        match self.state {
            State::Greeting { said: None } => Ok(()),
            _ => self.begin_again(true, view, to),
        }
    }

    /// Frontiers moved, and may be the same now: whoever may hold what is dead by his finds that out, before those are gone
    /// who know.
    pub(super) fn check_soon_what_is_dead(&mut self, view: &impl View) {
        if view.summary().unburied {
            let soon = self.now.instant + FIRST_CHECK_AFTER;
            self.check_at = self.check_at.map(|at| at.min(soon));
        }
    }

    /// Of versions that the peer does not hold, returns those that are to be sent to it, and takes note of those that are
    /// dead.
    pub(super) fn sort_out(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        view: &impl View,
    ) -> Result<Vec<Fingerprint>, LinkError> {
        let buries = self.buries.then_some(&self.their_frontier);
        let Some(frontier) = self.adopting.as_ref().or(buries) else { return Ok(fingerprints) };
        let mut alive = Vec::new();
        for fingerprint in fingerprints {
            match view.by_fingerprint(fingerprint)? {
                Some(entry) if frontier.contains(entry.version.dot) => {
                    if self.adopting.is_none() && self.dead_bytes < MAX_DEAD_BYTES {
                        self.dead_bytes += DEAD + entry.key.len();
                        self.dead.push((entry.key, entry.version.dot));
                    }
                }
                _ => alive.push(fingerprint),
            }
        }
        Ok(alive)
    }

    /// The peer's feed goes this far, now that the sides have compared, or are about to.
    pub(super) fn conclude_at(&mut self, head: Sequence, to: &mut Vec<Ask>) {
        let adopts = self.is_adopting() && self.outstanding.iter().all(|asked| !asked.adopts);
        if adopts || self.buries {
            self.concludes_at.get_or_insert(head);
            self.conclude(to);
        }
    }

    /// Once this side holds what the peer held, it takes the peer's frontier, or drops what is dead by it.
    pub(super) fn conclude(&mut self, to: &mut Vec<Ask>) {
        let applied = self.applied.sequence;
        let is_time = matches!(self.state, State::Live) && !self.unsettled && !self.held;
        if !is_time || self.concludes_at.is_none_or(|head| applied < head) {
            return;
        }
        if let Some(frontier) = self.adopting.clone() {
            self.concludes_at = None;
            let known = frontier.clone();
            let lesson = Lesson { known, frontier, unburied: true, ..Lesson::default() };
            self.outstanding.push_back(Outstanding { adopts: true, ..Outstanding::default() });
            to.push(Ask::Learn { lesson });
        } else if core::mem::take(&mut self.buries) {
            let dead = core::mem::take(&mut self.dead);
            for dead in dead.chunks(MAX_COLLECTED) {
                self.learn(Lesson { dead: dead.to_vec(), ..Lesson::default() }, false, to);
            }
            if MAX_DEAD_BYTES <= self.dead_bytes {
                // There may be more.
                self.unsettled = true;
            } else if !self.doubts {
                let buried = Some(self.their_frontier.mark());
                self.learn(Lesson { buried, ..Lesson::default() }, false, to);
            }
        }
    }
}

/// Whether a peer that has collected this far can be believed what it accounts for: only if this side has, too.
pub(super) fn is_believed(their_frontier: &Frontier, view: &impl View) -> Result<bool, StoreError> {
    Ok(their_frontier.is_within(&view.knowledge()?.frontier))
}

/// Times in parts that fit into a message.
fn parts(times: Vec<(AuthorId, Timestamp)>) -> impl Iterator<Item = Frontier> {
    let parts: Vec<Frontier> =
        times.chunks(MAX_FRONTIER_AUTHORS).map(|part| part.iter().copied().collect()).collect();
    parts.into_iter()
}
