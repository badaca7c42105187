//! What goes out: this side's feed from where the peer is, what it wanted, what it lacks; all within windows.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Ask, Link, LinkError, State, peer};
use crate::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS};
use crate::model::canonical;
use crate::model::fingerprint::Fingerprint;
use crate::model::version::Entry;
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::store::{FeedRow, StoreError, View};

impl Link {
    /// This side's feed grew, or there is room in the window: sends what there is to send.
    pub(crate) fn pump(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        while !self.giving.is_empty() && self.given_in_flight.has_room() {
            let entries = take_entries(&mut self.giving, view)?;
            let message = Message::Given { entries, more: !self.giving.is_empty() };
            self.given_in_flight.add(&message);
            to.push(Ask::Send(message));
        }
        // What the peer wanted comes before what it will have to wait with anyway.
        while self.giving.is_empty() && self.in_flight.has_room() {
            if !self.offering.is_empty() {
                let entries = take_entries(&mut self.offering, view)?;
                self.send_counted(Message::Versions { entries, through: None }, to);
                if self.offering.is_empty() {
                    self.advance_comparison(view, to)?;
                }
            } else if !self.pump_feed(view, to)? {
                break;
            }
        }
        Ok(())
    }

    /// Sends the next commit of our feed, if the peer lacks it. Returns whether there may be more.
    fn pump_feed(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<bool, LinkError> {
        let head = view.summary().head.sequence;
        if !matches!(self.state, State::Live) || head <= self.sent {
            return Ok(false);
        }
        if self.ends.ours == Access::Read {
            self.sent = head;
            return Ok(false);
        }
        // Twice a commit's bound, so that at least one is whole.
        let rows = view.feed(self.sent, 2 * MAX_COMMIT_BYTES)?;
        let mut silent_through = None;
        for commit in rows.chunk_by(|a, b| a.commit_end == b.commit_end) {
            let end = commit[0].commit_end;
            let last_read = commit.last().map(|row| row.sequence);
            // The last commit may be cut off by the limit. It is not if nothing came before it: then either its end
            // is there, or the versions at its end were replaced since.
            let cut_off = last_read != Some(end)
                && last_read == rows.last().map(|row| row.sequence)
                && commit.len() != rows.len();
            if cut_off {
                break;
            }
            let lacking =
                |row: &&FeedRow| row.via != Some(self.ends.peer) || row.sequence <= self.resent;
            let lacked: Vec<&FeedRow> = commit.iter().filter(lacking).collect();
            self.sent = end;
            if lacked.is_empty() {
                silent_through = Some(end);
                continue;
            }
            silent_through = None;
            let message = if self.lazy {
                let key = &self.ends.fingerprint_key;
                let fingerprints = lacked.iter().map(|row| Fingerprint::of(&row.entry, key));
                Message::Have { fingerprints: fingerprints.collect(), through: end }
            } else {
                let entries = lacked.into_iter().map(|row| row.entry.clone()).collect();
                Message::Versions { entries, through: Some(end) }
            };
            self.send_counted(message, to);
            if !self.in_flight.has_room() {
                return Ok(false);
            }
        }
        if rows.is_empty() {
            // All that came after was replaced by versions that the peer has.
            self.sent = head;
            silent_through = Some(head);
        }
        if let Some(through) = silent_through {
            self.send_counted(Message::Have { fingerprints: Vec::new(), through }, to);
        }
        Ok(true)
    }

    pub(super) fn send_counted(&mut self, message: Message, to: &mut Vec<Ask>) {
        self.in_flight.add(&message);
        to.push(Ask::Send(message));
    }

    pub(super) fn on_ack(
        &mut self,
        count: u64,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let news = count.checked_sub(self.acknowledged);
        let news = news.and_then(|news| usize::try_from(news).ok());
        let in_flight = self.in_flight.len() + self.given_in_flight.len();
        let Some(news) = news.filter(|news| *news <= in_flight) else {
            return Err(peer("it acknowledges what it was not sent".into()));
        };
        self.acknowledged = count;
        let news = self.given_in_flight.take_off(news);
        self.in_flight.take_off(news);
        self.pump(view, to)
    }

    pub(super) fn on_want(
        &mut self,
        fingerprints: Vec<Fingerprint>,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if !self.giving.is_empty() || fingerprints.is_empty() {
            return Err(peer("it wants more before it was given what it wanted".into()));
        }
        self.lazy = false;
        let fingerprints = match self.state {
            State::Offering { .. } => self.bury(fingerprints, view, to)?,
            _ => fingerprints,
        };
        if fingerprints.is_empty() {
            // A Want is answered, also with nothing.
            let message = Message::Given { entries: Vec::new(), more: false };
            self.given_in_flight.add(&message);
            to.push(Ask::Send(message));
        }
        self.giving = fingerprints.into();
        self.pump(view, to)
    }
}

/// Takes fingerprints off the front and looks up their versions, as many as fit into a commit.
fn take_entries(
    fingerprints: &mut VecDeque<Fingerprint>,
    view: &impl View,
) -> Result<Vec<Entry>, StoreError> {
    let mut entries = Vec::new();
    let mut bytes = Vec::new();
    while entries.len() < MAX_COMMIT_VERSIONS
        && let Some(&fingerprint) = fingerprints.front()
    {
        if let Some(entry) = view.by_fingerprint(fingerprint)? {
            canonical::encode_entry(&entry, &mut bytes);
            if MAX_COMMIT_BYTES < bytes.len() {
                break;
            }
            entries.push(entry);
        }
        fingerprints.pop_front();
    }
    Ok(entries)
}
