//! What a cursor says was applied is there: a link that resumes from it passes nothing over. Reconciliation would heal
//! that later, so only looking at the cursors themselves shows it.

use consort_core::store::memory::MemoryView;
use consort_core::store::{Sequence, View};

use super::causal::held;
use super::{Checked, Checker};
use crate::history::History;
use crate::node::{NodeIndex, index_of};
use consort_core::NodeId;

/// Looks at how far `node` says to have applied the feed of `peer`, and at what that holds.
pub(crate) fn check(
    history: &History,
    node: (NodeIndex, &MemoryView),
    peer: (NodeId, &MemoryView),
) -> Checked {
    let (index, view) = node;
    let (peer, feed) = peer;
    let damaged = |error: consort_core::store::StoreError| Checker::Cursors.finds(error.to_string());
    let Some(cursor) = view.cursor(peer).map_err(damaged)? else { return Ok(()) };
    let head = feed.summary().head;
    if cursor.epoch != head.epoch {
        return Ok(());
    }
    if head.sequence < cursor.sequence {
        let peer = index_of(peer);
        let what = format!("{index} says to have applied {cursor:?} of {peer}, which ends at {head:?}");
        return Err(Checker::Cursors.finds(what));
    }
    for row in feed.feed(Sequence(0), usize::MAX).map_err(damaged)? {
        if cursor.sequence < row.sequence {
            break;
        }
        let (key, dot) = (&row.entry.key, row.entry.version.dot);
        let Some(version) = history.find(dot) else { continue };
        if !history.accounts_for(&held(history, view, key)?, version) {
            let (peer, at, said) = (index_of(peer), row.sequence.0, cursor.sequence.0);
            let what = format!("{index} has applied the feed of {peer} up to {said}, but not {key} {dot:?} at {at}");
            return Err(Checker::Cursors.finds(what));
        }
    }
    Ok(())
}
