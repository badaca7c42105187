//! Reconciling: the opener describes what it holds, the answerer compares. How that is done is the affair of
//! [`reconcile`](crate::reconcile); here its requests and answers become messages, and what it finds is wanted or sent.
//!
//! # While writes go on
//!
//! Each side's feed goes on from where its Hello said. So the comparison has to find what a side held *then* and still
//! holds: what was replaced since is gone, and what replaced it is in the feed. It may look at any moment from the Hello
//! on, on either side, and at another one for each range. What came meanwhile may be found as well, and is not wanted
//! if it is here.

use alloc::vec::Vec;

use super::{Ask, Begin, Link, LinkError, State, peer};
use crate::model::fingerprint::Fingerprint;
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::reconcile::describer::DescribeError;
use crate::reconcile::finder::FindError;
use crate::reconcile::{Answer, Differences, Request, Step};
use crate::store::{Sequence, StoreError, View};

impl From<DescribeError> for LinkError {
    fn from(error: DescribeError) -> Self {
        match error {
            DescribeError::OutOfOrder => peer("it asks for what it compared already".into()),
            DescribeError::Store(error) => Self::Store(error),
        }
    }
}

impl From<FindError> for LinkError {
    fn from(error: FindError) -> Self {
        match error {
            FindError::Unfit(what) => peer(what.into()),
            FindError::Store(error) => Self::Store(error),
        }
    }
}

impl Link {
    pub(super) fn on_describe(
        &mut self,
        request: Request,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Describing { describer, .. } = &mut self.state else {
            return Err(peer("it asks for a description outside of a reconciliation".into()));
        };
        let answer = describer.answer(request, view, view.index())?;
        to.push(Ask::Send(Message::Description(answer)));
        Ok(())
    }

    pub(super) fn on_description(
        &mut self,
        answer: Answer,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Comparing { finder, asked: asked @ true, .. } = &mut self.state else {
            return Err(peer("it describes what it holds, and nobody asked".into()));
        };
        *asked = false;
        finder.take(answer, view)?;
        self.advance_comparison(view, to)
    }

    pub(super) fn on_reconciled(
        &mut self,
        taken: bool,
        given: bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Describing { begin, .. } = self.state else {
            return Err(peer("it ends a reconciliation that nobody began".into()));
        };
        self.lacks_ours = !taken;
        self.finish_reconciliation(begin, given && !self.held, view, to)
    }

    /// Goes on with a comparison once everything that was found so far is here and on its way: to the next request, or,
    /// when all of it is durable, to the end.
    pub(super) fn advance_comparison(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        while self.wanting.is_none() && self.offering.is_empty() && !self.unsettled {
            let State::Comparing { finder, asked: asked @ false, begin } = &mut self.state else {
                break;
            };
            match finder.step() {
                Step::Ask(request) => {
                    *asked = true;
                    to.push(Ask::Send(Message::Describe(request)));
                }
                Step::Found(differences) => self.on_found(differences, view, to)?,
                Step::Done if self.outstanding.is_empty() => {
                    let (begin, taken, given) = (*begin, !self.held, !self.lacks_ours);
                    to.push(Ask::Send(Message::Reconciled { taken, given }));
                    self.finish_reconciliation(begin, taken, view, to)?;
                }
                Step::Done => break,
            }
        }
        Ok(())
    }

    /// Wants what only the peer has, and sends what only this side has.
    fn on_found(
        &mut self,
        Differences { theirs, ours }: Differences,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let fingerprints = lacking(theirs, view)?;
        if !fingerprints.is_empty() {
            if self.ends.theirs == Access::Write && !self.held {
                self.want(fingerprints, None, to);
            } else {
                to.push(Ask::Send(Message::Unwanted { fingerprints }));
            }
        }
        let alive = self.sort_out(ours, view)?;
        if self.ends.ours == Access::Read {
            return Ok(());
        }
        if self.is_adopting() {
            // The peer may take in nothing, and this side must not wait for it. It compares once more afterwards.
            self.lacks_ours |= !alive.is_empty();
            return Ok(());
        }
        self.offering = alive.into();
        self.pump(view, to)
    }

    /// Changes flow from here on. If this side does not have what the peer had, no place in the peer's feed is applied.
    fn finish_reconciliation(
        &mut self,
        Begin { head, difference }: Begin,
        has_theirs: bool,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.compared = Some(difference);
        if has_theirs {
            self.go_live(self.sent, head);
            self.commit(Vec::new(), Some(head), false, None, to);
        } else {
            self.go_live(self.sent, Sequence(0));
        }
        // If the peer takes this side's state by difference, it waits for what was written here meanwhile.
        self.say_what_is_held(view, to);
        self.pump(view, to)
    }
}

/// Those of the fingerprints that no current version has.
fn lacking(
    fingerprints: Vec<Fingerprint>,
    view: &impl View,
) -> Result<Vec<Fingerprint>, StoreError> {
    let mut lacking = Vec::new();
    for fingerprint in fingerprints {
        if !view.has(fingerprint)? {
            lacking.push(fingerprint);
        }
    }
    Ok(lacking)
}
