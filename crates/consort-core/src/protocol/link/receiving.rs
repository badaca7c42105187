//! What comes in: the inbox, worked off in order, commits, and what is said about them.

use alloc::vec::Vec;
use core::time::Duration;

use super::checking::LOOK_AGAIN_AFTER;
use super::knowing::is_believed;
use super::{Ask, Link, LinkError, Outstanding, State, peer};
use crate::limits::MAX_COMMIT_VERSIONS;
use crate::model::fingerprint::Fingerprint;
use crate::model::version::Entry;
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::protocol::window;
use crate::store::{Cursor, Sequence, View};
use crate::time::WallTime;

/// How often versions that lie too far ahead are looked at again.
const RETRY_AHEAD: Duration = Duration::from_secs(1);

impl Link {
    /// Does what the messages in the inbox ask for, in order, as far as possible.
    pub(super) fn work_off(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if self.held {
            // Until another link has its peer's state, nothing is taken in; then this one begins anew.
            self.retry_at = Some(self.now.instant + LOOK_AGAIN_AFTER);
            return Ok(());
        }
        loop {
            let nothing_wanted = self.wanting.is_none() && self.given.is_empty();
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
                Some(Message::Known { .. }) if !is_believed(&self.their_frontier, view)? => {
                    return Ok(());
                }
                _ => {}
            }
            let Some(message) = waiting.pop() else { break };
            match message {
                Message::Versions { entries, through } => self.on_versions(entries, through, to)?,
                Message::Given { entries, more } => self.on_given(entries, more, to)?,
                Message::Have { fingerprints, through } => {
                    self.on_have(fingerprints, through, view, to)?;
                }
                Message::Fingerprints(batch) => self.on_fingerprints(&batch, view, to)?,
                Message::Reconciled => self.on_reconciled(view, to)?,
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
        let pushed = through.map(|_| entries.len());
        self.commit(entries, through, true, pushed, to);
        Ok(())
    }

    fn on_have(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        through: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.check_access()?;
        if !matches!(self.state, State::Live) {
            return Err(peer("it announces before the reconciliation has ended".into()));
        }
        let mut lacking = Vec::new();
        for fingerprint in fingerprints {
            if !view.has(fingerprint)? {
                lacking.push(fingerprint);
            }
        }
        if lacking.is_empty() {
            self.applied.sequence = self.applied.sequence.max(through);
            self.applying = self.applying.max(through);
            self.cursor_is_stale = true;
            self.take(to);
        } else {
            self.wanting = Some(Some(through));
            to.push(Ask::Send(Message::Want { fingerprints: lacking }));
        }
        Ok(())
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
        if more {
            self.commit(entries, None, true, None, to);
            return Ok(());
        }
        self.wanting = None;
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
        pushed: Option<usize>,
        to: &mut Vec<Ask>,
    ) {
        debug_assert!(entries.len() <= MAX_COMMIT_VERSIONS, "the codec bounds them");
        if let Some(through) = through {
            self.applying = self.applying.max(through);
            self.cursor_is_stale = false;
        }
        let cursor = through.map(|_| Cursor { epoch: self.applied.epoch, sequence: self.applying });
        let bytes = window::weight_of(&entries);
        self.outstanding_bytes += bytes;
        self.outstanding.push_back(Outstanding { bytes, counts, pushed, through, adopts: false });
        to.push(Ask::Commit { entries, cursor });
    }

    /// Counts a stream message as done with.
    pub(super) fn take(&mut self, to: &mut Vec<Ask>) {
        self.taken += 1;
        to.push(Ask::Send(Message::Ack { count: self.taken }));
    }
}

/// Whether a version, or one that it claims to have seen, lies in the future of our clock.
fn are_ahead(entries: &[Entry], now: WallTime) -> bool {
    entries.iter().any(|Entry { version, .. }| {
        let seen = version.seen.authors().iter().map(|(_, time)| *time);
        seen.chain([version.dot.time]).any(|time| time.is_ahead_of(now))
    })
}
