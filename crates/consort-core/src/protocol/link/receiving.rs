//! What comes in: the inbox, worked off in order, commits, and what is said about them.

use alloc::vec::Vec;
use core::time::Duration;

use super::knowing::is_believed;
use super::{Ask, Link, LinkError, Outstanding, State, peer};
use crate::limits::{MAX_COMMIT_VERSIONS, WINDOW_BYTES, WINDOW_MESSAGES};
use crate::model::fingerprint::Fingerprint;
use crate::model::version::Entry;
use crate::protocol::event::Access;
use crate::protocol::garbage::account;
use crate::protocol::message::Message;
use crate::protocol::news::Elsewhere;
use crate::protocol::window;
use crate::store::{Cursor, Sequence, View};
use crate::time::{Instant, WallTime};

/// How often versions that lie too far ahead are looked at again.
const RETRY_AHEAD: Duration = Duration::from_secs(1);
/// How long what was announced may take to come from a peer that pushes, before it is asked for: longer than a version takes
/// through the whole mesh, since else much would come twice.
const COMES_WITHIN: Duration = Duration::from_millis(1500);
/// How long what a peer announces was on its way before it heard that it should push.
const CHOSEN: Duration = Duration::from_millis(500);
/// How often a link acknowledges, unless so much waits for it: a part of the sender's window.
const ACKNOWLEDGE_EVERY: Duration = Duration::from_millis(100);
const ACKNOWLEDGE_MESSAGES: u64 = WINDOW_MESSAGES as u64 / 16;
const ACKNOWLEDGE_BYTES: usize = WINDOW_BYTES / 16;

/// What the peer has announced, and is not all here.
#[derive(Debug)]
pub(super) struct Announced {
    lacking: Vec<Fingerprint>,
    /// Once it is, the peer's feed is applied up to here.
    through: Sequence,
    arrived: Instant,
}

impl Link {
    /// Does what the messages in the inbox ask for, in order, as far as possible.
    pub(super) fn work_off(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if self.held {
            return self.serve(view, to);
        }
        loop {
            if self.unsettled {
                return Ok(());
            }
            let nothing_wanted = self.wanting.is_none() && self.given.is_empty();
            if nothing_wanted && self.announced.is_some() {
                // What is on its way to the disk may be what was announced.
                if !self.outstanding.is_empty() || !self.look_for_announced(view, to)? {
                    return Ok(());
                }
                continue;
            }
            if nothing_wanted
                && let Some(Message::Frontier { times }) = self.inbox.front()
                && let Some(until) = self.rests(times, view)?
            {
                self.retry_at = Some(until);
                return Ok(());
            }
            let waiting = if nothing_wanted { &mut self.inbox } else { &mut self.given };
            match waiting.front() {
                None => break,
                Some(Message::Versions { entries, .. } | Message::Given { entries, .. }) => {
                    self.ahead = are_ahead(entries, self.now.wall);
                    if self.ahead {
                        self.retry_at = Some(self.now.instant + RETRY_AHEAD);
                        return Ok(());
                    }
                    // The peer does not wait for acknowledgements, or the store is busy with what came before.
                    if window::KEPT_BYTES < self.outstanding_bytes
                        || window::KEPT_MESSAGES < self.outstanding.len()
                    {
                        return Ok(());
                    }
                }
                // These look at what is in the store, so everything before them must be.
                _ if !self.outstanding.is_empty() => return Ok(()),
                Some(Message::Frontier { times }) => {
                    // It waits as versions do: all that is written until then would be dead. What this side accounts
                    // for it has believed before, by a clock that was ahead as well.
                    self.ahead =
                        times.is_ahead_of(self.now.wall) && !times.is_within(&account(view)?);
                    if self.ahead {
                        self.retry_at = Some(self.now.instant + RETRY_AHEAD);
                        return Ok(());
                    }
                }
                Some(Message::Known { .. }) if !is_believed(&self.their_frontier, view)? => {
                    return Ok(());
                }
                _ => {}
            }
            let Some((message, arrived)) = waiting.pop() else { break };
            match message {
                Message::Versions { entries, through } => self.on_versions(entries, through, to)?,
                Message::Given { entries, more } => self.on_given(entries, more, to)?,
                Message::Have { fingerprints, through } => {
                    self.on_have(fingerprints, through, arrived)?;
                }
                Message::Description(answer) => self.on_description(answer, view, to)?,
                Message::Reconciled { taken, given } => {
                    self.on_reconciled(taken, given, view, to)?;
                }
                Message::Frontier { times } => self.on_frontier(&times, view, to)?,
                Message::Known { times, published } => {
                    self.on_known(&times, published, view, to)?;
                }
                _ => unreachable!("only these are put into an inbox"),
            }
        }
        self.advance_comparison(view, to)
    }

    fn on_versions(
        &mut self,
        entries: Vec<Entry>,
        through: Option<Sequence>,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.check_access()?;
        if through.is_some() && !matches!(self.state, State::Live) {
            return Err(peer("it sends its feed before the reconciliation has ended".into()));
        }
        let now = self.now.instant;
        let mut decides = None;
        for entry in entries.iter().filter(|_| through.is_some()) {
            if self.news.decides(entry.version.dot, now) {
                decides = Some(entries.len());
            }
        }
        self.commit(entries, through, true, decides, to);
        Ok(())
    }

    fn on_have(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        through: Sequence,
        arrived: Instant,
    ) -> Result<(), LinkError> {
        self.check_access()?;
        if !matches!(self.state, State::Live) {
            return Err(peer("it announces before the reconciliation has ended".into()));
        }
        self.announced = Some(Announced { lacking: fingerprints, through, arrived });
        Ok(())
    }

    /// Looks whether what was announced is here, and asks for it unless it may still come from elsewhere. Returns whether
    /// there is something else to do now.
    fn look_for_announced(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<bool, LinkError> {
        let Some(Announced { mut lacking, through, arrived }) = self.announced.take() else {
            return Ok(true);
        };
        // While one is not here, it does not matter which others are not.
        while let Some(fingerprint) = lacking.last()
            && view.has(*fingerprint)?
        {
            lacking.pop();
        }
        if lacking.is_empty() {
            self.applied.sequence = self.applied.sequence.max(through);
            self.applying = self.applying.max(through);
            self.cursor_is_stale = true;
            self.take(0);
            self.conclude(to);
            return Ok(true);
        }
        if let Some(until) = self.waits_until(arrived) {
            self.ask_at = Some(until);
            self.announced = Some(Announced { lacking, through, arrived });
            return Ok(false);
        }
        let (mut wanted, mut others) = (Vec::new(), Vec::new());
        let now = self.now.instant;
        for fingerprint in lacking {
            if view.has(fingerprint)? {
                continue;
            }
            match self.news.asked_elsewhere(fingerprint, self.ends.peer, now) {
                None => wanted.push(fingerprint),
                Some(until) => {
                    others.push(fingerprint);
                    self.ask_at = Some(self.ask_at.map_or(until, |at| at.min(until)));
                }
            }
        }
        if !others.is_empty() {
            self.announced = Some(Announced { lacking: others, through, arrived });
        }
        if wanted.is_empty() {
            return Ok(self.announced.is_none());
        }
        let all = self.announced.is_none();
        self.want(wanted, all.then_some(through), to);
        Ok(true)
    }

    /// Until when what was announced at `arrived` may still come from elsewhere; nothing if it is to be asked for.
    fn waits_until(&self, arrived: Instant) -> Option<Instant> {
        let now = self.now.instant;
        // The peer was the first to push something, and has just been asked to go on so: this was on its way.
        if self.chosen_at.is_some_and(|at| now.since(at) < CHOSEN) {
            return None;
        }
        match self.elsewhere {
            Elsewhere::Nobody | Elsewhere::Somebody => None,
            Elsewhere::Pushing if self.news.is_mending(now) => None,
            Elsewhere::Pushing => Some(arrived + COMES_WITHIN).filter(|until| now < *until),
            Elsewhere::CatchingUp => Some(now + COMES_WITHIN),
        }
    }

    /// Asks for versions; when they are here, the peer's feed is applied up to `through`.
    pub(super) fn want(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        through: Option<Sequence>,
        to: &mut Vec<Ask>,
    ) {
        // Who had something first will have the next one first.
        self.lazy = false;
        self.wanting = Some(through);
        self.ungiven = fingerprints.len();
        self.news.ask(self.ends.peer, &fingerprints, self.now.instant);
        to.push(Ask::Send(Message::Want { fingerprints }));
    }

    fn on_given(
        &mut self,
        entries: Vec<Entry>,
        more: bool,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let Some(through) = self.wanting else {
            return Err(peer("it gives what nobody wanted".into()));
        };
        self.check_access()?;
        self.ungiven = self.ungiven.saturating_sub(entries.len());
        if more {
            self.commit(entries, None, true, None, to);
            return Ok(());
        }
        self.wanting = None;
        if self.ungiven != 0 {
            // What it does not have any more, another one may have.
            self.news.forget(self.ends.peer);
        }
        self.commit(entries, through, true, None, to);
        if through.is_some() {
            // The announcement that led to the Want is done with as well.
            self.commit(Vec::new(), None, true, None, to);
        }
        Ok(())
    }

    pub(super) fn check_access(&self) -> Result<(), LinkError> {
        match self.ends.theirs {
            Access::Write => Ok(()),
            Access::Read => Err(peer("it is a reader of this dataset, and sends versions".into())),
        }
    }

    pub(super) fn commit(
        &mut self,
        entries: Vec<Entry>,
        through: Option<Sequence>,
        counts: bool,
        decides: Option<usize>,
        to: &mut Vec<Ask>,
    ) {
        debug_assert!(entries.len() <= MAX_COMMIT_VERSIONS, "the codec bounds them");
        if let Some(through) = through {
            self.applying = self.applying.max(through);
            self.cursor_is_stale = false;
        }
        let cursor = Cursor { epoch: self.applied.epoch, sequence: self.applying };
        let cursor = through.map(|_| cursor).filter(|cursor| self.kept_from <= cursor.sequence);
        let bytes = window::weight_of(&entries);
        self.outstanding_bytes += bytes;
        let commit = Outstanding { bytes, counts, decides, through, ..Outstanding::default() };
        self.outstanding.push_back(commit);
        to.push(Ask::Commit { entries, cursor });
    }

    /// Counts a stream message as done with, which weighs so much.
    pub(super) fn take(&mut self, bytes: usize) {
        self.taken += 1;
        self.unsaid_bytes += bytes;
    }

    /// Tells the peer what is done with: all that came lately, unless it waits for that with a part of its window.
    pub(super) fn acknowledge(&mut self, at_once: bool, to: &mut Vec<Ask>) {
        let unsaid = self.taken - self.said_taken;
        let much = ACKNOWLEDGE_MESSAGES <= unsaid || ACKNOWLEDGE_BYTES <= self.unsaid_bytes;
        if unsaid != 0
            && (at_once || much || self.acknowledging.may(self.now.instant, ACKNOWLEDGE_EVERY))
        {
            (self.said_taken, self.unsaid_bytes) = (self.taken, 0);
            to.push(Ask::Send(Message::Ack { count: self.taken }));
        }
    }
}

/// Whether a version, or one that it claims to have seen, lies in the future of our clock.
fn are_ahead(entries: &[Entry], now: WallTime) -> bool {
    entries.iter().any(|Entry { version, .. }| {
        let seen = version.seen.authors().iter().map(|(_, time)| *time);
        seen.chain([version.dot.time]).any(|time| time.is_ahead_of(now))
    })
}
