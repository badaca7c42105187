//! Whether two sides that should hold the same do: what convergence rests on.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Ask, Link, LinkError, State};
use crate::model::hlc::Timestamp;
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::store::{Lesson, Sequence, Summary, View};

/// How long a quiet link waits before it checks that both sides hold the same: at least, and how much is random.
const CHECK_AFTER: Duration = Duration::from_secs(15);
const CHECK_JITTER: Duration = Duration::from_secs(30);
/// How soon a link that is busy is looked at again.
pub(super) const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The first check of a link comes soon, since what a crash left behind shows then.
pub(super) const FIRST_CHECK_AFTER: Duration = Duration::from_secs(1);

impl Link {
    /// Says what this side holds, for the peer to compare, if the link is quiet; otherwise looks again soon, since one that
    /// is seldom quiet has to be checked as well.
    pub(super) fn check(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let summary = view.summary();
        let after = if self.is_quiet(&summary) {
            self.acknowledge(true, to);
            self.say_what_is_held(view, to);
            let jitter = u64::try_from(CHECK_JITTER.as_micros()).expect("it is seconds");
            CHECK_AFTER + Duration::from_micros(self.random.below(jitter))
        } else {
            LOOK_AGAIN_AFTER
        };
        self.check_at = Some(self.now.instant + after);
        if self.cursor_is_stale && self.outstanding.is_empty() && !self.held && !self.unsettled {
            self.commit(Vec::new(), Some(self.applied.sequence), false, None, to);
        }
        // As long as there is something to forget, somebody waits for what was missed.
        if view.tombstones().count != 0 && !self.is_adopting() && self.can_make_up() {
            self.missed = Timestamp(0);
            self.begin_again(false, view, to)?;
        }
        Ok(())
    }

    /// Says what this side holds, and how far its feed goes.
    pub(super) fn say_what_is_held(&self, view: &impl View, to: &mut Vec<Ask>) {
        let (summary, applied) = (view.summary(), self.applied.sequence);
        to.push(Ask::Send(Message::Check { summary, applied }));
    }

    /// Whether nothing is on its way in either direction, as far as this side knows.
    fn is_quiet(&self, summary: &Summary) -> bool {
        self.is_delivered(summary)
            && self.inbox.is_empty()
            // Commits of cursors alone, and lessons, change nothing that is compared.
            && self.outstanding_bytes == 0
            && self.wanting.is_none()
            && self.announced.is_none()
            && self.unsaid.is_none()
    }

    /// Whether the peer has taken in all that this side has to send.
    pub(super) fn is_delivered(&self, summary: &Summary) -> bool {
        matches!(self.state, State::Live)
            // What is known is said apart from what is held.
            && self.in_flight.about_versions() == 0
            && self.given_in_flight.len() == 0
            && self.giving.is_empty()
            && summary.head.sequence <= self.sent
    }

    pub(super) fn on_check(
        &mut self,
        theirs: Summary,
        applied: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let their_feed_counts = self.ends.theirs != Access::Read;
        let is_live = matches!(self.state, State::Live);
        if is_live && their_feed_counts && theirs.head.epoch != self.applied.epoch {
            // Its store noticed that it had been rolled back. What was applied of the old feed says nothing of this one.
            return self.begin_again(false, view, to);
        }
        let ours = view.summary();
        self.known = self.known.max(theirs.head.sequence);
        self.conclude_at(theirs.head.sequence, to);
        if theirs.frontier != ours.frontier {
            // Not the same is held by who has collected more; both sides have told, or will.
            return Ok(());
        }
        let we_have_theirs = !their_feed_counts || theirs.head == self.applied;
        let they_have_ours = self.ends.ours == Access::Read || applied == ours.head.sequence;
        let caught_up = self.is_quiet(&ours) && we_have_theirs && they_have_ours;
        let is_the_same = theirs.digest == ours.digest && their_feed_counts && !self.held;
        if is_the_same && ours.unburied && !theirs.unburied && self.outstanding.is_empty() {
            let buried = Some(ours.frontier);
            self.learn(Lesson { buried, ..Lesson::default() }, false, to);
        }
        if !caught_up || theirs.digest == ours.digest || self.has_to_differ(&theirs, &ours) {
            return Ok(());
        }
        // If comparing did not help a moment ago, it will not now: whoever has to differ does that in peace.
        if self.now.instant.since(self.live_since) < FIRST_CHECK_AFTER {
            return Ok(());
        }
        self.begin_again(true, view, to)
    }

    pub(super) fn begin_again(
        &mut self,
        reconcile: bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        if self.ends.opener {
            return self.on_restart(reconcile, view, to);
        }
        to.push(Ask::Send(Message::Restart { reconcile }));
        // What comes until the Hello belongs to what is over.
        self.forget_conversation();
        Ok(())
    }

    /// Whether comparing would show what is known. Nobody takes what a reader has, so a comparison with one may leave a
    /// difference, and as long as that stays the same, nothing has come to it. Two writers never have to differ.
    fn has_to_differ(&self, theirs: &Summary, ours: &Summary) -> bool {
        match (self.ends.theirs, self.ends.ours) {
            (Access::Write, Access::Write) => false,
            (Access::Read, Access::Read) => true,
            _ => self.compared == Some(theirs.digest.minus(&ours.digest)),
        }
    }
}
