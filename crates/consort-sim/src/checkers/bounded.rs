//! Queues keep to their bounds, however slow a disk is and however often a connection breaks.

use consort_core::limits::{MAX_COMMIT_BYTES, MAX_MESSAGE_BYTES, WINDOW_BYTES};

use super::{Checked, Checker};
use crate::node::{Node, NodeIndex};

/// What one side may have sent without being acknowledged: a window of its feed and one of what was wanted, each
/// overshot by a commit, and a little that is not counted.
const ON_THE_WAY: usize = 2 * (WINDOW_BYTES + MAX_COMMIT_BYTES) + 4 * MAX_MESSAGE_BYTES;
/// What may be on its way to the disk for one peer, also if it connects again and again. A link asks for no more once
/// this much is; the last message may overshoot it.
const UNSYNCED: usize = WINDOW_BYTES + 16 * MAX_COMMIT_BYTES + MAX_MESSAGE_BYTES;
/// What writers may have on its way to the disk: then they wait.
pub(crate) const WRITTEN: usize = 4 * MAX_MESSAGE_BYTES;

/// A pipe holds so many bytes at the most.
pub(crate) fn pipe(bytes: usize) -> Checked {
    if bytes <= ON_THE_WAY {
        return Ok(());
    }
    Err(Checker::Bounded
        .finds(format!("{bytes} bytes are on their way to a peer, over {ON_THE_WAY}")))
}

/// So many bytes wait for a node's disk, and come from so many peers.
pub(crate) fn disk(index: NodeIndex, node: &Node, peers: usize) -> Checked {
    let (bytes, most) = (node.disk.unsynced_bytes(), UNSYNCED * peers + 2 * WRITTEN);
    if bytes <= most {
        return Ok(());
    }
    Err(Checker::Bounded.finds(format!("{bytes} bytes wait for the disk of {index}, over {most}")))
}
