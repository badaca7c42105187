//! What was replaced on a replica, by an edit or by a deletion, is never current there again, whatever crashes between.

use std::collections::{BTreeMap, BTreeSet};

use super::{Checked, Checker, Held};
use crate::history::{History, VersionIndex};
use crate::node::NodeIndex;

/// What was replaced where.
#[derive(Debug, Default)]
pub(crate) struct NoResurrection {
    replaced: BTreeMap<NodeIndex, BTreeSet<VersionIndex>>,
}

impl NoResurrection {
    /// A commit changed what a node holds.
    pub(crate) fn changed(
        &mut self,
        history: &History,
        node: NodeIndex,
        before: &Held,
        after: &Held,
    ) -> Checked {
        let replaced = self.replaced.entry(node).or_default();
        for (key, after) in after {
            let before = before.get(key).map_or(&[][..], |before| before);
            replaced.extend(before.iter().filter(|version| !after.contains(version)));
            if let Some(risen) = after.iter().find(|version| replaced.contains(version)) {
                let dot = history.known(*risen).dot;
                let what = format!("{node} {key}: {dot:?} was replaced, and is back");
                return Err(Checker::NoResurrection.finds(what));
            }
        }
        Ok(())
    }

    /// A node's disk was replaced, so that it remembers nothing either.
    pub(crate) fn wiped(&mut self, node: NodeIndex) {
        self.replaced.remove(&node);
    }
}
