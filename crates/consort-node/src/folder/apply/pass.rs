//! The passes through the pending keys, or through all: which key comes next, and when what goes may be taken away.

use std::mem;
use std::time::{Duration, Instant};

use consort_core::Key;
use consort_core::store::{Sequence, StoreError, View as _};

use super::Thread;
use super::full::{Full, pending_bytes};

/// Pending keys that are read from the store at once.
const PAGE: usize = 512;
/// How long removals wait for jobs that may still copy from what is removed: since all was begun, and since a chunk
/// was last found here. Chunks that come over a slow link do not keep them.
pub(super) const REMOVALS_WAIT: Duration = Duration::from_millis(500);

/// Which keys are gone through, and how far.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) everything: bool,
    pub(super) removing: bool,
    pub(super) after: Option<Key>,
    pub(super) page: std::vec::IntoIter<(Key, Sequence)>,
    /// All of them were read, for this half.
    pub(super) listed: bool,
    /// How new the newest change was when the first half began: what goes by a newer one goes in the next pass.
    pub(super) upto: Option<Sequence>,
    /// Everything was begun, for the first half, and nothing was found here since then.
    pub(super) begun_since: Option<Instant>,
    /// The directory above which was looked last, and whether all was well there: neighbours share it.
    pub(super) looked_above: Option<(String, bool)>,
    /// Nothing was found to do.
    pub(super) idle: bool,
}

impl Thread {
    /// Begins a pass if one is due. False if none is, or the disk is still full.
    pub(super) fn begin_pass(&mut self) -> bool {
        let (store, dataset) = (&self.store, self.dataset);
        let pending = || pending_bytes(store, dataset);
        let is_full = |full: &mut Full| !full.is_over(&self.root, pending);
        if !self.again || self.full.as_mut().is_some_and(is_full) {
            return false;
        }
        self.again = false;
        (self.left, self.retry_at, self.full) = (false, None, None);
        if self.jobs.is_empty() {
            self.room = self.root.room();
        }
        self.files.begin_pass();
        self.kept.clear();
        self.extra = self.unlisted.iter().cloned().collect();
        let everything = self.everything && !mem::take(&mut self.pending_next);
        self.pass = Some(Pass {
            everything,
            removing: false,
            after: None,
            page: Vec::new().into_iter(),
            listed: false,
            upto: None,
            begun_since: None,
            looked_above: None,
            idle: true,
        });
        true
    }

    /// Reads the next keys of the pass, goes on to its second half, or ends it. False if the second half has to wait for what
    /// is under way.
    pub(super) fn next_page(&mut self) -> Result<bool, StoreError> {
        let idle = self.jobs.is_empty();
        let Some(pass) = &mut self.pass else { return Ok(false) };
        if !pass.listed {
            let view = self.store.view(self.dataset)?;
            self.view = None;
            pass.upto.get_or_insert(view.summary().head.sequence);
            let after = pass.after.as_ref();
            let page: Vec<(Key, Sequence)> = if pass.everything {
                let keys = view.scan("", after, PAGE)?;
                keys.into_iter().map(|(key, _)| (key, Sequence::default())).collect()
            } else {
                view.pending(after, PAGE)?
            };
            if let Some((last, _)) = page.last() {
                pass.after = Some(last.clone());
                pass.page = page.into_iter();
                return Ok(true);
            }
            pass.listed = true;
        }
        if pass.removing {
            self.end_pass();
            return Ok(true);
        }
        let waited = pass.begun_since.get_or_insert_with(Instant::now).elapsed();
        if idle || REMOVALS_WAIT <= waited {
            (pass.removing, pass.listed, pass.after) = (true, false, None);
            (pass.begun_since, pass.looked_above) = (None, None);
            return Ok(true);
        }
        // What has become pending since does not wait for what is large.
        if !pass.everything && !self.everything && mem::take(&mut self.again) {
            (pass.listed, pass.after) = (false, None);
            self.files.look_again();
            self.extra = self.unlisted.iter().cloned().collect();
            return Ok(true);
        }
        Ok(false)
    }

    /// Ends it, and tells how things stand.
    pub(super) fn end_pass(&mut self) {
        let Some(pass) = self.pass.take() else { return };
        if pass.idle && !self.left && self.active.is_empty() {
            self.files.leftovers().release_all(Instant::now());
        }
        if pass.everything {
            if pass.idle && !self.left && self.active.is_empty() {
                self.everything = false;
                self.ignores.remember(&self.store, self.dataset);
            }
            // Pending keys that need nothing are still to be settled.
            (self.pending_next, self.again) = (true, true);
        }
        self.progress.set_waiting(self.files.are_missing());
        if self.full.is_none() {
            self.progress.set_trouble("disk", None);
        }
        if self.left {
            self.leave();
        }
    }
}
