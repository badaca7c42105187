//! Reconciling: the opener describes what it holds, the answerer compares, batch by batch. What a batch is made of is
//! the affair of [`reconcile`](crate::reconcile).

use alloc::vec::Vec;

use super::{Ask, Begin, Link, LinkError, State, peer};
use crate::protocol::event::Access;
use crate::protocol::message::Message;
use crate::reconcile::Batch;
use crate::store::View;

impl Link {
    pub(super) fn on_more(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let State::Offering { offer, .. } = &mut self.state else {
            return Err(peer("it asks for fingerprints outside of a reconciliation".into()));
        };
        to.push(Ask::Send(Message::Fingerprints(offer.next(view)?)));
        Ok(())
    }

    pub(super) fn on_fingerprints(
        &mut self,
        batch: &Batch,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Comparing { comparison, batch_is_last, asked: asked @ true, .. } =
            &mut self.state
        else {
            return Err(peer("it sends fingerprints that nobody asked for".into()));
        };
        *asked = false;
        *batch_is_last = batch.last;
        comparison.accepts(batch).map_err(|_| peer("its fingerprints are out of order".into()))?;
        let differences = comparison.compare(batch, view)?;
        if !differences.theirs.is_empty() {
            let fingerprints = differences.theirs;
            to.push(Ask::Send(if self.ends.theirs == Access::Write {
                self.wanting = Some(None);
                Message::Want { fingerprints }
            } else {
                Message::Unwanted { fingerprints }
            }));
        }
        let alive = self.bury(differences.ours, view, to)?;
        if self.ends.ours == Access::Write {
            self.offering = alive.into();
            self.pump(view, to)?;
        }
        self.advance_comparison(view, to)
    }

    pub(super) fn on_reconciled(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Offering { begin, .. } = self.state else {
            return Err(peer("it ends a reconciliation that nobody began".into()));
        };
        self.finish_reconciliation(begin, view, to)
    }

    /// Goes on with a comparison once everything that the last batch showed is here: to the next batch, or, when all
    /// of it is durable, to the end.
    pub(super) fn advance_comparison(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Comparing { batch_is_last, asked, begin, .. } = &mut self.state else {
            return Ok(());
        };
        if *asked || self.wanting.is_some() || !self.offering.is_empty() {
            return Ok(());
        }
        if !*batch_is_last {
            *asked = true;
            to.push(Ask::Send(Message::More));
        } else if self.outstanding.is_empty() {
            let begin = *begin;
            to.push(Ask::Send(Message::Reconciled));
            self.finish_reconciliation(begin, view, to)?;
        }
        Ok(())
    }

    fn finish_reconciliation(
        &mut self,
        Begin { head, difference }: Begin,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.compared = Some(difference);
        self.go_live(self.sent, head);
        self.commit(Vec::new(), Some(head), false, None, to);
        self.adopt(to);
        self.pump(view, to)
    }
}
