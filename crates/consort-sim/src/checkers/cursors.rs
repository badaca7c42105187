//! What a cursor says was applied is there: a link that resumes from it passes nothing over. Reconciliation would heal
//! that later, so only looking at the cursors themselves shows it.

use std::collections::BTreeMap;

use consort_core::NodeId;
use consort_core::store::memory::MemoryView;
use consort_core::store::{Cursor, Sequence, StoreError, View};

use super::causal::held;
use super::{Checked, Checker};
use crate::history::History;
use crate::node::{NodeIndex, index_of};

/// Up to where each node's cursor for each peer was looked at. What was there then is accounted for ever after.
#[derive(Debug, Default)]
pub(crate) struct Cursors {
    checked: BTreeMap<(NodeIndex, NodeId), Cursor>,
}

impl Cursors {
    /// Looks at how far `node` says to have applied the feed of `peer`, and at what that holds.
    pub(crate) fn check(
        &mut self,
        history: &History,
        (node, view): (NodeIndex, &MemoryView),
        (peer, feed): (NodeId, &MemoryView),
    ) -> Checked {
        let damaged = |error: StoreError| Checker::Cursors.finds(error.to_string());
        let head = feed.summary().head;
        let cursor = view.cursor(peer).map_err(damaged)?;
        let Some(cursor) = cursor.filter(|cursor| cursor.epoch == head.epoch) else {
            self.checked.remove(&(node, peer));
            return Ok(());
        };
        let name = index_of(peer);
        if head.sequence < cursor.sequence {
            let what = format!("{node} has applied {cursor:?} of {name}, which ends at {head:?}");
            return Err(Checker::Cursors.finds(what));
        }
        let checked = self.checked.insert((node, peer), cursor);
        let after = checked.filter(|checked| checked.epoch == cursor.epoch);
        let after = after.map_or(Sequence(0), |checked| checked.sequence);
        if cursor.sequence <= after {
            return Ok(());
        }
        for row in feed.feed(after, usize::MAX).map_err(damaged)? {
            if cursor.sequence < row.sequence {
                break;
            }
            let (key, dot) = (&row.entry.key, row.entry.version.dot);
            let Some(version) = history.find(dot) else { continue };
            let knowledge = view.knowledge().map_err(damaged)?;
            let forgotten = history.may_be_forgotten(&knowledge.frontier, version);
            if !forgotten && !history.accounts_for(&held(history, view, key)?, version) {
                let (at, said) = (row.sequence.0, cursor.sequence.0);
                let what = format!(
                    "{node} has applied the feed of {name} up to {said}, but not {key} {dot:?} at {at}"
                );
                return Err(Checker::Cursors.finds(what));
            }
        }
        Ok(())
    }
}
