//! What is gone from the directory: when that is believed, and what follows from it.
//!
//! Before a mass deletion is passed on, somebody is asked, so it has to be seen as what it is before much of it is
//! believed. One deletion tells nothing of what follows it. So only a part of the directory that is small by any
//! measure is believed at once; what exceeds that waits until no more comes, and is then judged as a whole. Whoever
//! deletes everything by mistake loses that small part elsewhere before the question comes, and whoever deletes single
//! files among many never waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::Key;
use consort_core::model::merge::Saw;
use consort_core::store::StoreError;

use super::{Engine, Exit, deletion};
use crate::folder::RemovedDirectory;
use crate::folder::status::Trouble;

/// So many deletions within [`TOGETHER`] are believed at once, however small the directory is: half of what makes a
/// mass deletion.
const FEW_DELETIONS: u64 = 16;
/// In a larger directory, this part of it is believed at once, too: the hundredth part.
const FEW_OF: u64 = 100;
/// But never more than so many: in a directory of millions, a hundredth is a lot to get back.
const MANY_DELETIONS: u64 = 256;
/// More deletions than few are believed when no other was seen for so long.
const DELETIONS_SETTLE: Duration = Duration::from_millis(100);
/// Deletions belong together if no more than this lies between two of them.
const TOGETHER: Duration = Duration::from_secs(5);
/// Deleting more than half of a directory of at least so many entries asks first.
const MASS_DELETE_FROM: u64 = 32;

const _: () = assert!(2 * FEW_DELETIONS <= MASS_DELETE_FROM && FEW_DELETIONS < MANY_DELETIONS);

/// Recorded paths that are gone and have not been dealt with.
#[derive(Debug)]
pub(super) struct Deletions {
    gone: BTreeSet<Key>,
    last: Instant,
    /// How many records there were before the first of those that belong together.
    before: u64,
    /// How many were believed since `lately`, which is renewed when [`TOGETHER`] has passed: deletions that trickle in
    /// for hours are few at any time.
    believed: u64,
    lately: Instant,
    /// All of these may go, however many they are.
    allowed: bool,
    /// So many were gone when it was asked.
    asked: Option<usize>,
}

impl Deletions {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let (gone, allowed, asked) = (BTreeSet::new(), false, None);
        Self { gone, last: now, before: 0, believed: 0, lately: now, allowed, asked }
    }

    pub(super) fn len(&self) -> usize {
        self.gone.len()
    }

    pub(super) fn contains(&self, path: &Key) -> bool {
        self.gone.contains(path)
    }

    /// It is there, or was dealt with.
    pub(super) fn forget(&mut self, path: &Key) {
        self.gone.remove(path);
    }

    /// Lets those go that are gone now.
    pub(super) fn allow(&mut self) {
        (self.allowed, self.asked) = (true, None);
    }

    /// Whether nothing is left to do about them, or nothing before somebody has answered.
    pub(super) fn are_settled(&self) -> bool {
        self.gone.is_empty() || self.asked == Some(self.gone.len())
    }

    /// When they have settled.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.are_settled()).then(|| self.last + DELETIONS_SETTLE)
    }

    fn add(&mut self, path: Key, records: u64, now: Instant) {
        if self.gone.is_empty() && (self.before == 0 || TOGETHER <= now.duration_since(self.last)) {
            self.before = records;
        }
        if self.gone.insert(path) {
            self.last = now;
        }
    }

    /// Whether they are so few, with those that were believed lately, that they need not settle.
    fn are_few(&mut self, now: Instant) -> bool {
        if TOGETHER <= now.duration_since(self.lately) {
            (self.lately, self.believed) = (now, 0);
        }
        let few = (self.before / FEW_OF).clamp(FEW_DELETIONS, MANY_DELETIONS);
        self.believed + self.gone.len() as u64 <= few
    }
}

impl Engine<'_> {
    /// Nothing stands at a path.
    pub(super) fn on_missing(&mut self, path: Key) -> Result<(), StoreError> {
        self.progress.set_problem(&path, None);
        self.settle_path(&path)?;
        let view = self.view()?;
        let Some(record) = view.record(&path)? else { return Ok(()) };
        if self.is_ignored(&path, record.kind == consort_core::Kind::Directory) {
            self.let_alone(path)?;
        } else if self.is_refused(&path, None) {
            self.progress.set_problem(&path, Some("its deletion cannot be written".to_owned()));
        } else {
            self.deletions.add(path, view.record_count(), Instant::now());
        }
        Ok(())
    }

    /// What is ignored is as if it had never been known here: it is not deleted elsewhere when it goes, nor replaced
    /// when it changes, also if all that is found when it is ignored no more. What others have appears again then.
    pub(super) fn let_alone(&mut self, path: Key) -> Result<(), StoreError> {
        self.settle_path(&path)?;
        self.gather_removal(path);
        self.submit_if_full();
        Ok(())
    }

    /// A directory that exists only because of what is in it goes with the last of that.
    pub(super) fn drop_if_empty(&mut self, path: Key) -> Result<(), StoreError> {
        if !matches!(self.root.remove_directory(&path), Ok(RemovedDirectory::Removed)) {
            return Ok(());
        }
        // Were it back after a crash, without a record, it would be taken for a new one.
        if let Err(error) = self.root.sync_entries([path.as_str()]) {
            self.progress.set_problem(&path, Some(error.to_string()));
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.mark(parent, Duration::ZERO);
        }
        self.settle_path(&path)?;
        self.gather_removal(path);
        self.submit_if_full();
        Ok(())
    }

    /// Takes deletions in once it is clear that they are not half of a rename, and not a mistake.
    pub(super) fn believe_deletions(&mut self) -> Result<bool, StoreError> {
        if self.scanning || !self.scans.is_empty() || !self.indexing.is_empty() {
            return Ok(false);
        }
        if self.deletions.gone.is_empty() {
            self.deletions.allowed = false;
            if self.deletions.asked.take().is_some() {
                self.progress.set_trouble("deletions", None);
            }
            return Ok(false);
        }
        let settled = self.deletions.are_few(Instant::now())
            || self.is_flushing()
            || DELETIONS_SETTLE <= self.deletions.last.elapsed();
        if !settled || self.deletions.are_settled() {
            return Ok(false);
        }
        // What appears is taken in before what goes: a moved file finds its bytes at its new place.
        self.settle_commits()?;
        if !self.root.is_present() {
            self.end(Exit::RootGone);
            return Ok(true);
        }
        let root = Arc::clone(&self.root);
        self.deletions.gone.retain(|path| matches!(root.stat(path), Ok(None)));
        if self.context.read_only {
            return self.restore_deleted();
        }
        if !self.deletions.allowed && self.ask_about_deletions()? {
            return Ok(false);
        }
        self.progress.set_trouble("deletions", None);
        (self.deletions.allowed, self.deletions.asked) = (false, None);
        self.deletions.believed += self.deletions.gone.len() as u64;
        let view = self.view()?;
        let mut parents: BTreeSet<Key> = BTreeSet::new();
        for path in std::mem::take(&mut self.deletions.gone) {
            let Some(record) = view.record(&path)? else { continue };
            parents.extend(path.parent().and_then(|parent| Key::new(parent).ok()));
            self.gather_for(&path)?;
            if record.key.is_some() {
                self.progress.count_conflict(false);
            }
            if !record.implicit {
                let key = record.key.unwrap_or_else(|| path.clone());
                self.gather_write(deletion(key, Saw::Version(record.dot)));
            }
            self.sync_first(path.clone());
            self.gather_removal(path);
            self.submit_if_full();
        }
        self.submit();
        for parent in parents {
            if view.record(&parent)?.is_some_and(|record| record.implicit) {
                self.mark(&parent, Duration::ZERO);
            }
        }
        Ok(true)
    }

    /// Asks if too much is gone at a time. Whether it did.
    fn ask_about_deletions(&mut self) -> Result<bool, StoreError> {
        let gone = self.deletions.gone.len();
        let before = self.deletions.before;
        let after = self.view()?.record_count().saturating_sub(gone as u64);
        let count = before.saturating_sub(after);
        if count < MASS_DELETE_FROM || before <= 2 * after || gone == 0 {
            return Ok(false);
        }
        let text = format!(
            "{count} of {before} entries were deleted here; to delete them everywhere, run `consort link {} {} \
             --allow-mass-delete`; to get them back, unlink the directory and link it again",
            self.context.name,
            self.context.dir.display()
        );
        self.progress.set_trouble("deletions", Some(Trouble::Paused(text)));
        self.deletions.asked = Some(gone);
        Ok(true)
    }

    /// What was deleted in a read-only directory comes back: nothing is overwritten by that.
    fn restore_deleted(&mut self) -> Result<bool, StoreError> {
        let view = self.view()?;
        let mut keys = Vec::new();
        for path in std::mem::take(&mut self.deletions.gone) {
            let record = view.record(&path)?;
            keys.push(record.and_then(|record| record.key).unwrap_or_else(|| path.clone()));
            self.gather_removal(path);
            self.submit_if_full();
        }
        self.settle_commits()?;
        self.stager.look_at(keys);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `count` deletions that come one at a time, a millisecond apart, are believed at once in a directory
    /// of `records` entries.
    fn believed_at_once(records: u64, count: u64) -> u64 {
        let mut deletions = Deletions::new();
        let start = deletions.lately;
        for number in 0..count {
            let now = start + Duration::from_millis(number);
            deletions.add(key(number), records - deletions.believed, now);
            if deletions.are_few(now) {
                deletions.believed += deletions.gone.len() as u64;
                deletions.gone.clear();
            }
        }
        deletions.believed
    }

    fn key(number: u64) -> Key {
        Key::new(format!("file-{number}")).expect("a key")
    }

    #[test]
    fn of_a_mass_deletion_no_more_than_a_small_part_is_believed_before_it_is_seen() {
        for (records, believed) in
            [(32, 16), (60, 16), (1600, 16), (5000, 50), (25_600, 256), (1_000_000, 256)]
        {
            let all = records.min(4000);
            assert_eq!(believed_at_once(records, all), believed, "of {records}");
        }
    }

    #[test]
    fn deletions_that_trickle_in_never_wait() {
        let mut deletions = Deletions::new();
        let mut now = deletions.lately;
        for number in 0..1000 {
            now += TOGETHER / 15;
            deletions.add(key(number), 2000 - number, now);
            assert!(deletions.are_few(now), "deletion {number}");
            deletions.believed += 1;
            deletions.gone.clear();
        }
    }
}
