//! What was deleted is forgotten in the end: no tombstone is left of which all that it replaces was written by replicas
//! that are registered.

use std::time::Duration;

use consort_core::protocol::garbage::Registered;
use consort_core::store::memory::MemoryView;
use consort_core::store::{StoreError, View};

use super::{Checked, Checker};
use crate::node::NodeIndex;

/// How long that may take once all are the same and everybody is there.
pub(crate) const WITHIN: Duration = Duration::from_secs(1_800);

/// If nobody has said for so long what it knows, nobody has anything to say: news of who is registered have reached all
/// by then, and all have promised what a tombstone that is left may wait for.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// A tombstone that is left, if there is one.
pub(crate) fn left(
    registered: &[Registered],
    views: impl Iterator<Item = (NodeIndex, MemoryView)>,
) -> Checked<Option<String>> {
    let damaged = |error: StoreError| Checker::Live.finds(error.to_string());
    let is_registered = |author| registered.iter().any(|replica| replica.author == author);
    for (node, view) in views {
        for (dot, key) in view.tombstones_after(None, usize::MAX).map_err(damaged)? {
            let held = view.siblings(&key).map_err(damaged)?;
            let version = held.iter().map(|stored| &stored.version).find(|held| held.dot == dot);
            let Some(version) = version else {
                let what = format!("{node} indexes a tombstone of {key} that it does not hold");
                return Err(Checker::Live.finds(what));
            };
            let mut seen = version.seen.authors().iter().map(|(author, _)| *author);
            if is_registered(dot.author) && seen.all(is_registered) {
                return Ok(Some(format!("{node} still holds the tombstone {dot:?} of {key}")));
            }
        }
    }
    Ok(None)
}
