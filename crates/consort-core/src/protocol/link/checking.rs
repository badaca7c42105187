//! Whether two sides that should hold the same do: what convergence rests on.

use alloc::vec::Vec;
use core::time::Duration;

use super::{Ask, Link, LinkError, State};
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::store::{Sequence, Summary, View};

/// How long a quiet link waits before it checks that both sides hold the same: at least, and how much is random.
const CHECK_AFTER: Duration = Duration::from_secs(15);
const CHECK_JITTER: Duration = Duration::from_secs(30);
/// The first check of a link comes soon, since what a crash left behind shows then.
pub(super) const FIRST_CHECK_AFTER: Duration = Duration::from_secs(1);

impl Link {
    pub(super) fn schedule_check(&mut self) {
        let jitter = u64::try_from(CHECK_JITTER.as_micros()).expect("it is seconds");
        let jitter = Duration::from_micros(self.random.below(jitter));
        self.check_at = Some(self.now.instant + CHECK_AFTER + jitter);
    }

    /// Whether nothing is on its way in either direction, as far as this side knows.
    pub(super) fn is_quiet(&self, summary: &Summary) -> bool {
        matches!(self.state, State::Live)
            && self.inbox.is_empty()
            && self.outstanding.is_empty()
            && self.in_flight.len() == 0
            && self.given_in_flight.len() == 0
            && self.wanting.is_none()
            && summary.head.sequence <= self.sent
    }

    pub(super) fn on_check(
        &mut self,
        theirs: Summary,
        applied: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let ours = view.summary();
        self.known = self.known.max(theirs.head.sequence);
        let we_have_theirs = self.ends.theirs == Access::Read || theirs.head == self.applied;
        let they_have_ours = self.ends.ours == Access::Read || applied == ours.head.sequence;
        let caught_up = self.is_quiet(&ours) && we_have_theirs && they_have_ours;
        if !caught_up || theirs.digest == ours.digest || self.has_to_differ(&theirs, &ours) {
            return Ok(());
        }
        if self.ends.opener {
            self.distrust = true;
            self.say_hello(view, to)
        } else {
            to.push(Ask::Send(Message::Restart { reconcile: true }));
            Ok(())
        }
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
