//! Files that wait for something that nobody has. Those that do so stay open with what has come of them, as long as that
//! leaves room to others; whether it does, and what becomes of those that cannot, is decided in `apply/files.rs`.

use std::collections::BTreeSet;

/// Files that wait for something that nobody has, and stay open whatever others want: each wants one chunk, which is half of
/// `MAX_WANTED_BYTES` if all are of the greatest length.
const MAX_STALLED: usize = 128;

/// Which files wait.
#[derive(Debug, Default)]
pub(super) struct Stalled {
    files: BTreeSet<u64>,
    /// A file was given up since the last pass began, as something could not be had.
    missing: bool,
}

impl Stalled {
    /// What could not be had may be there now.
    pub(super) fn begin_pass(&mut self) {
        self.missing = false;
    }

    /// Whether something cannot be had, or could not be since [`begin_pass`](Self::begin_pass).
    pub(super) fn are_missing(&self) -> bool {
        self.missing || !self.files.is_empty()
    }

    /// Whether another file may wait whatever others want.
    pub(super) fn have_room(&self) -> bool {
        self.files.len() < MAX_STALLED
    }

    /// The files that wait.
    pub(super) fn files(&self) -> &BTreeSet<u64> {
        &self.files
    }

    /// Whether a file waits.
    pub(super) fn has(&self, id: u64) -> bool {
        self.files.contains(&id)
    }

    /// A file waits: no more of it is looked for before something comes.
    pub(super) fn wait(&mut self, id: u64) {
        self.files.insert(id);
    }

    /// A file waits no more, since something came or it is given up. Whether it did.
    pub(super) fn go_on(&mut self, id: u64) -> bool {
        self.files.remove(&id)
    }

    /// A file that cannot wait is given up.
    pub(super) fn give_up(&mut self) {
        self.missing = true;
    }
}
