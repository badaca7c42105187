//! Reconciling: the opener describes what it holds, the answerer compares, batch by batch. What a batch is made of is
//! the affair of [`reconcile`](crate::reconcile).

use alloc::vec::Vec;

use super::{Ask, Link, LinkError, State, peer};
use crate::protocol::message::Message;
use crate::store::{Sequence, View};

impl Link {
    pub(super) fn on_more(&mut self, view: &impl View, to: &mut Vec<Ask>) -> Result<(), LinkError> {
        let State::Offering { offer, .. } = &mut self.state else {
            return Err(peer("it asks for fingerprints outside of a reconciliation".into()));
        };
        to.push(Ask::Send(Message::Fingerprints(offer.next(view)?)));
        Ok(())
    }

    /// Goes on with a comparison once everything that the last batch showed is here: to the next batch, or, when all
    /// of it is durable, to the end.
    pub(super) fn advance_comparison(
        &mut self,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        let State::Comparing { batch_is_last, asked, theirs, .. } = &mut self.state else {
            return Ok(());
        };
        if *asked || self.wanting.is_some() || !self.offering.is_empty() {
            return Ok(());
        }
        if !*batch_is_last {
            *asked = true;
            to.push(Ask::Send(Message::More));
        } else if self.outstanding.is_empty() {
            let applied = theirs.summary.head.sequence;
            to.push(Ask::Send(Message::Reconciled));
            self.finish_reconciliation(applied, view, to)?;
        }
        Ok(())
    }

    pub(super) fn finish_reconciliation(
        &mut self,
        applied: Sequence,
        view: &impl View,
        to: &mut Vec<Ask>,
    ) -> Result<(), LinkError> {
        self.go_live(self.sent, applied);
        self.commit(Vec::new(), Some(applied), false, None, to);
        self.pump(view, to)
    }
}
