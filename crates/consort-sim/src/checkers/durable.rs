//! What was acknowledged is there, or was replaced by somebody who saw it: on the node that acknowledged it, however
//! often that crashes; on a node that waited for it; and in the end everywhere.

use consort_core::model::Frontier;
use consort_core::store::memory::MemoryView;
use consort_core::store::{StoreError, View};

use super::causal::held;
use super::{Checked, Checker};
use crate::history::{History, VersionIndex};
use crate::node::NodeIndex;

/// Whether a replica holds a version, or something that replaced it.
pub(crate) fn accounts_for(
    history: &History,
    view: &MemoryView,
    version: VersionIndex,
) -> Checked<bool> {
    let held = held(history, view, &history.known(version).key)?;
    if history.accounts_for(&held, version) {
        return Ok(true);
    }
    let knowledge = view.knowledge().map_err(|e| Checker::Durable.finds(e.to_string()))?;
    Ok(history.may_be_forgotten(&knowledge.frontier, version))
}

/// Whether one of these replicas does.
pub(crate) fn is_anywhere(
    history: &History,
    views: &[MemoryView],
    version: VersionIndex,
) -> Checked<bool> {
    for view in views {
        if accounts_for(history, view, version)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A node waited until it had what a peer held: it has. But what was replaced at the peer meanwhile is not in its feed
/// any more, and what replaced it may lie behind the place that was waited for. What lies within `frontier`, and was deleted, is
/// dead.
pub(crate) fn waited(
    history: &History,
    (node, view): (NodeIndex, &MemoryView),
    peer: &MemoryView,
    (promised, frontier): (&MemoryView, &Frontier),
) -> Checked {
    if view.summary().digest == peer.summary().digest {
        return Ok(());
    }
    let damaged = |error: StoreError| Checker::Durable.finds(error.to_string());
    for (key, _) in promised.scan("", None, usize::MAX).map_err(damaged)? {
        let (here, there) = (held(history, view, &key)?, held(history, peer, &key)?);
        let promised = held(history, promised, &key)?;
        let mut current = promised.iter().filter(|version| there.contains(version));
        let is_lost = |version: &&VersionIndex| {
            !history.accounts_for(&here, **version)
                && !history.may_be_forgotten(frontier, **version)
        };
        if let Some(lost) = current.find(is_lost) {
            let dot = history.known(*lost).dot;
            let what = format!("{node} was told that it has all, and lacks {key} {dot:?}");
            return Err(Checker::Durable.finds(what));
        }
    }
    Ok(())
}

/// All that was acknowledged is accounted for, but for what only a disk had that is gone.
pub(crate) fn everything(history: &History, node: NodeIndex, view: &MemoryView) -> Checked {
    for version in history.all() {
        let known = history.known(version);
        if known.acknowledged && !known.excused && !accounts_for(history, view, version)? {
            let what =
                format!("{node} lacks {} {:?}, which was acknowledged", known.key, known.dot);
            return Err(Checker::Durable.finds(what));
        }
    }
    Ok(())
}
