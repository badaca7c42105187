//! A disk: what is written is durable when it is synced. A crash loses what was not, or leaves a part of it.
//!
//! The disk takes whole jobs in order, as a store's journal does. What it was given while it synced goes with the next
//! sync, together: group commit. A crash cuts the journal somewhere within what was being synced; a job that is cut is
//! torn, and a store recognises that and drops it (how, is tested on the real store). Jobs before the cut survive, though
//! nobody was told that they would.

use std::collections::VecDeque;

use consort_core::random::Random;

/// A journal of jobs, each with its length in bytes.
#[derive(Debug)]
pub(crate) struct Disk<J> {
    waiting: VecDeque<(J, usize)>,
    syncing: VecDeque<(J, usize)>,
    bytes: usize,
}

impl<J> Default for Disk<J> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), syncing: VecDeque::new(), bytes: 0 }
    }
}

impl<J> Disk<J> {
    /// Writes a job. Returns whether a sync has to be begun for it.
    pub(crate) fn write(&mut self, job: J, bytes: usize) -> bool {
        self.waiting.push_back((job, bytes));
        self.bytes += bytes;
        self.syncing.is_empty() && self.waiting.len() == 1
    }

    /// Begins to sync everything that was written.
    pub(crate) fn begin_sync(&mut self) {
        debug_assert!(self.syncing.is_empty(), "one sync at a time");
        self.syncing = std::mem::take(&mut self.waiting);
    }

    /// The sync is done: what is durable now, in order, and whether another has to be begun.
    pub(crate) fn end_sync(&mut self) -> (Vec<J>, bool) {
        self.bytes -= self.syncing.iter().map(|(_, bytes)| bytes).sum::<usize>();
        let durable = self.syncing.drain(..).map(|(job, _)| job).collect();
        (durable, !self.waiting.is_empty())
    }

    /// The machine stops. What is found when it starts again: a part of what was being synced.
    pub(crate) fn crash(&mut self, random: &mut Random) -> Vec<J> {
        let syncing: usize = self.syncing.iter().map(|(_, bytes)| bytes).sum();
        let mut left = usize::try_from(random.below(syncing as u64 + 1)).expect("below a usize");
        let whole = |(_, bytes): &(J, usize)| {
            let fits = *bytes <= left;
            left = left.saturating_sub(*bytes);
            fits
        };
        let mut found = Vec::new();
        let mut whole = whole;
        while let Some(job) = self.syncing.pop_front().filter(&mut whole) {
            found.push(job.0);
        }
        *self = Self::default();
        found
    }

    /// The bytes that are written and not durable.
    pub(crate) fn unsynced_bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.syncing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_keeps_what_was_synced_and_a_prefix_of_what_was_being_synced() {
        let mut lengths = [0; 4];
        for seed in 0..200 {
            let mut disk = Disk::default();
            assert!(disk.write('a', 10));
            disk.begin_sync();
            assert!(!disk.write('b', 10) && !disk.write('c', 1) && !disk.write('d', 10));
            assert_eq!(disk.end_sync(), (vec!['a'], true));
            disk.begin_sync();
            disk.write('e', 10);
            let found = disk.crash(&mut Random::new(seed));
            assert!(['b', 'c', 'd'].starts_with(&found));
            lengths[found.len()] += 1;
            assert!(disk.is_idle());
        }
        assert!(lengths.iter().all(|count| *count != 0), "{lengths:?}");
    }
}
