//! A disk that is full: when it is worth another try.

use std::time::{Duration, Instant};

use consort_core::DatasetId;
use consort_store::DiskStore;

use crate::folder::Root;

/// How often it is looked whether there is more room on a full disk. Only then it is tried again, since each try may cost
/// a transfer; or after a longer time, since not all that limits a user shows.
const FULL_LOOK_AFTER: Duration = Duration::from_secs(2);
const FULL_AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// So much more room is worth another try, in bytes: a little comes and goes on any disk.
const MORE_ROOM: u64 = 64 << 10;

/// A full disk.
#[derive(Debug)]
pub(super) struct Full {
    since: Instant,
    /// When it is looked again.
    pub(super) look_at: Instant,
    /// With so much room, it was not enough.
    room: u64,
    /// So many bytes were to come.
    pending: u64,
}

impl Full {
    /// With so much room, a file did not fit, while so many bytes were to come.
    pub(super) fn begin(room: u64, pending: u64) -> Self {
        let since = Instant::now();
        Self { since, look_at: since + FULL_LOOK_AFTER, room, pending }
    }

    /// Whether it is to be tried again. `pending` says how many bytes are to come.
    pub(super) fn is_over(&mut self, root: &Root, pending: impl FnOnce() -> u64) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return false;
        }
        self.look_at = now + FULL_LOOK_AFTER;
        let room = root.room();
        let has_more = self.room.saturating_add(MORE_ROOM) < room;
        // What was put in place before it was full takes room for good.
        self.room = self.room.min(room);
        // What did not fit may be gone, or shorter.
        let is_less = pending() < self.pending;
        let is_over = has_more || is_less || self.since + FULL_AGAIN_AT_MOST <= now;
        if !is_over {
            tracing::debug!(room, "the disk is full, and there is no more room yet");
        }
        is_over
    }
}

/// The bytes that are to come.
pub(super) fn pending_bytes(store: &DiskStore, dataset: DatasetId) -> u64 {
    // Whoever reads on says what is wrong with the store.
    store.view(dataset).map_or(0, |view| view.pending_bytes())
}
