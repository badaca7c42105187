//! What goes out: this side's feed from where the peer is, what it wanted, what it lacks; all within windows.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Ask, Link, LinkError, State, peer};
use crate::limits::{MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS, TURN_BYTES};
use crate::model::canonical;
use crate::model::fingerprint::Fingerprint;
use crate::model::version::Entry;
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::store::{FeedRow, Sequence, StoreError, View};

/// How often a link announces, and tells how far the peer has our feed. What is pushed does not wait.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(100);

/// What is about to be announced. No more than a commit holds: what the peer then wants comes as one.
#[derive(Default)]
struct Announcement {
    fingerprints: Vec<Fingerprint>,
    bytes: usize,
    through: Sequence,
}

impl Link {
    /// This side's feed grew, or there is room in the window: sends what there is to send, or as much as one turn may.
    pub(crate) fn pump(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        // Whatever the last turn left comes now.
        let mut announce = self.go_on_at.take().is_some();
        // What every link pushes does not wait either.
        announce |= self.flooded != self.news.flood();
        let mut done = 0;
        while !self.giving.is_empty() && self.given_in_flight.has_room() {
            if TURN_BYTES <= done {
                self.go_on_at = Some(self.now.instant);
                return Ok(());
            }
            let entries = take_entries(&mut self.giving, view)?;
            let message = Message::Given { entries, more: !self.giving.is_empty() };
            done += self.given_in_flight.add(&message);
            to.push(Ask::Send(message));
        }
        // What the peer wanted comes before what it will have to wait with anyway.
        while self.giving.is_empty() && self.in_flight.has_room() {
            if TURN_BYTES <= done {
                self.go_on_at = Some(self.now.instant);
                return Ok(());
            }
            if !self.offering.is_empty() {
                let entries = take_entries(&mut self.offering, view)?;
                done += self.send_counted(Message::Versions { entries, through: None }, to);
                if self.offering.is_empty() {
                    self.advance_comparison(view, to)?;
                }
            } else if let Some(read) = self.pump_feed(&mut announce, view, to)? {
                done += read;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Sends or announces the next commits of our feed that the peer lacks. Returns how many bytes of it were read; nothing
    /// if there is no more, or it has to wait. If it need not wait with announcements, `announce` is set.
    fn pump_feed(
        &mut self,
        announce: &mut bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<Option<usize>, LinkError> {
        let head = view.summary().head.sequence;
        if !matches!(self.state, State::Live) || self.lacks_ours {
            return Ok(None);
        }
        if self.ends.ours == Access::Read {
            self.sent = head;
            return Ok(None);
        }
        let has_more = self.sent < head;
        if !has_more && self.unsaid.is_none() {
            return Ok(None);
        }
        if self.announces() || !has_more {
            *announce = *announce || self.announcing.may(self.now.instant, ANNOUNCE_EVERY);
            if !*announce {
                return Ok(None);
            }
        }
        // Twice a commit's bound, so that at least one is whole.
        let rows = view.feed(self.sent, 2 * MAX_COMMIT_BYTES)?;
        let mut announcement = Announcement::default();
        let (mut canonical, mut read) = (Vec::new(), 0);
        let may_be_lost = self.awaits_what_may_be_lost();
        for commit in rows.chunk_by(|a, b| a.commit_end == b.commit_end) {
            let end = commit[0].commit_end;
            let last_read = commit.last().map(|row| row.sequence);
            // The last commit may be cut off by the limit. It is not if nothing came before it: then either its end
            // is there, or the versions at its end were replaced since.
            let cut_off = last_read != Some(end)
                && last_read == rows.last().map(|row| row.sequence)
                && commit.len() != rows.len();
            if cut_off || !self.in_flight.has_room() {
                break;
            }
            // What came from here is decided about as what came from elsewhere.
            for row in commit.iter().filter(|row| row.via.is_none()) {
                self.news.decides(row.entry.version.dot, self.now.instant);
            }
            let flood = self.news.flood();
            let floods =
                flood.is_some() && commit.iter().any(|row| Some(row.entry.version.dot) == flood);
            if floods {
                self.flooded = flood;
            }
            let announces = self.announces() && !floods;
            let lacking = |row: &&FeedRow| {
                row.via != Some(self.ends.peer) || row.sequence <= self.resent || may_be_lost
            };
            let lacked: Vec<&FeedRow> = commit.iter().filter(lacking).collect();
            self.sent = end;
            read += commit.iter().map(|row| row.entry.weight()).sum::<usize>();
            if lacked.is_empty() {
                self.unsaid = Some(end);
            } else if announces {
                let mut fingerprints = Vec::with_capacity(lacked.len());
                let mut bytes = 0;
                for row in lacked {
                    canonical.clear();
                    canonical::encode_entry(&row.entry, &mut canonical);
                    bytes += canonical.len();
                    let key = &self.ends.fingerprint_key;
                    fingerprints.push(Fingerprint::of_canonical(&canonical, key));
                }
                if !announcement.takes(fingerprints.len(), bytes) {
                    self.announce(core::mem::take(&mut announcement), to);
                }
                announcement.fingerprints.append(&mut fingerprints);
                announcement.bytes += bytes;
                announcement.through = end;
            } else {
                self.announce(core::mem::take(&mut announcement), to);
                let entries = lacked.into_iter().map(|row| row.entry.clone()).collect();
                self.unsaid = None;
                self.send_counted(Message::Versions { entries, through: Some(end) }, to);
            }
        }
        if rows.is_empty() && has_more {
            // All that came after was replaced by versions that the peer has.
            self.sent = head;
            self.unsaid = Some(head);
        }
        self.announce(announcement, to);
        if self.unsaid.is_some() && self.sent == head {
            *announce = *announce || self.announcing.may(self.now.instant, ANNOUNCE_EVERY);
            if let Some(through) = self.unsaid.take_if(|_| *announce) {
                self.send_counted(Message::Have { fingerprints: Vec::new(), through }, to);
            }
        }
        Ok(Some(read))
    }

    /// Whether the next commit is announced, and not pushed.
    fn announces(&self) -> bool {
        self.lazy || self.sent < self.backlog
    }

    fn announce(&mut self, announcement: Announcement, to: &mut Vec<Ask>) {
        let Announcement { fingerprints, through, .. } = announcement;
        if !fingerprints.is_empty() {
            let through = self.unsaid.take().map_or(through, |unsaid| unsaid.max(through));
            self.send_counted(Message::Have { fingerprints, through }, to);
        }
    }

    /// Returns what the message weighs.
    pub(super) fn send_counted(&mut self, message: Message, to: &mut Vec<Ask>) -> usize {
        let weight = self.in_flight.add(&message);
        to.push(Ask::Send(message));
        weight
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
        (self.lazy, self.backlog) = (false, Sequence(0));
        let fingerprints = match self.state {
            State::Describing { .. } => self.sort_out(fingerprints, view)?,
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

impl Announcement {
    /// Whether so many more versions of so many bytes fit into it.
    fn takes(&self, versions: usize, bytes: usize) -> bool {
        self.fingerprints.len() + versions <= MAX_COMMIT_VERSIONS
            && self.bytes + bytes <= MAX_COMMIT_BYTES
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
