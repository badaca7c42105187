//! What is gone from the directory: when that is believed, and what follows from it.
//!
//! Before a mass deletion is passed on, somebody is asked, so it has to be seen as what it is before much of it is
//! believed. One deletion tells nothing of what follows it. So only a part of the directory that is small by any
//! measure is believed at once; what exceeds that waits until no more comes, and is then judged as a whole. Whoever
//! deletes everything by mistake loses that small part elsewhere before the question comes, and whoever deletes single
//! files among many never waits.
//!
//! What goes so slowly that it settles in between is believed piece by piece, until half of what was there minutes ago is
//! gone: then it is asked, too. What is emptied over hours is never asked about.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::model::merge::Saw;
use consort_core::store::StoreError;
use consort_core::{Key, Kind};
use consort_store::DiskView;

use super::{Engine, Exit, deletion};
use crate::folder::RemovedDirectory;
use crate::folder::status::Trouble;

/// So many deletions within [`TOGETHER`] are believed at once, however small the directory is: half of what makes a
/// mass deletion.
const FEW_DELETIONS: u64 = 5;
/// In a larger directory, this part of it is believed at once, too: the hundredth part.
const FEW_OF: u64 = 100;
/// But never more than so many: in a directory of millions, a hundredth is a lot to get back.
const MANY_DELETIONS: u64 = 256;
/// Few deletions are few within so long.
const TOGETHER: Duration = Duration::from_secs(5);
/// More deletions than few are believed when no other was seen for so long, whoever waits for them.
const DELETIONS_SETTLE: Duration = Duration::from_millis(250);
/// Or when they have not come to an end for so long: something is deleted in there all the time.
const DELETIONS_SETTLE_AT_MOST: Duration = Duration::from_secs(20);
/// Deleting at least so many entries, and more than half of the directory, asks first.
const MASS_DELETE_FROM: u64 = 10;
/// Half of what was there at any time in so long: in this half of the window, and in the one before it.
const HALF_WINDOW: Duration = Duration::from_secs(150);

const _: () = assert!(2 * FEW_DELETIONS <= MASS_DELETE_FROM && FEW_DELETIONS < MANY_DELETIONS);

/// Recorded paths that are gone and have not been dealt with.
#[derive(Debug)]
pub(super) struct Deletions {
    gone: BTreeSet<Key>,
    /// Which file each inode was, of those that went since there were none; also of some that do not count as gone any more.
    inodes: HashMap<u64, Key>,
    /// When the first of them was seen, and the last.
    first: Instant,
    last: Instant,
    /// How many records there were the last time when nothing was left to take in: while something is moved, it is
    /// counted twice.
    at_rest: u64,
    /// The most that this was in the half of the window before, and in the one that is on.
    most: [u64; 2],
    /// When the half began that is on.
    half: Instant,
    /// How many records there were since `lately`, at the most; it is renewed when [`TOGETHER`] has passed, as deletions that
    /// trickle in for hours are few at any time.
    recent: u64,
    lately: Instant,
    /// All of these may go, however many they are.
    allowed: bool,
    /// So many were gone when it was asked.
    asked: Option<usize>,
}

impl Deletions {
    /// None, in a directory of so many records.
    pub(super) fn new(records: u64) -> Self {
        let now = Instant::now();
        Self {
            gone: BTreeSet::new(),
            inodes: HashMap::new(),
            first: now,
            last: now,
            at_rest: records,
            most: [records; 2],
            half: now,
            recent: records,
            lately: now,
            allowed: false,
            asked: None,
        }
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

    /// Which of them this inode was.
    pub(super) fn of_inode(&self, inode: u64) -> Option<&Key> {
        self.inodes.get(&inode).filter(|path| self.gone.contains(*path))
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
        let due = (self.last + DELETIONS_SETTLE).min(self.first + DELETIONS_SETTLE_AT_MOST);
        (!self.are_settled()).then_some(due)
    }

    /// Everything is taken in, and there are so many records.
    pub(super) fn on_rest(&mut self, records: u64, now: Instant) {
        if self.gone.is_empty() {
            self.turn(now);
            self.at_rest = records;
            self.most[1] = self.most[1].max(records);
            self.recent = self.recent.max(records);
        }
    }

    /// There are so many records more or less, and not because of what appeared or was deleted here: nothing that was is
    /// judged by that.
    fn on_records_changed(&mut self, before: u64, after: u64) {
        for records in self.most.iter_mut().chain([&mut self.at_rest, &mut self.recent]) {
            *records = (*records + after).saturating_sub(before);
        }
    }

    /// Begins another half of the window, if it is time.
    fn turn(&mut self, now: Instant) {
        let passed = now.duration_since(self.half);
        if HALF_WINDOW <= passed {
            let before = if passed < 2 * HALF_WINDOW { self.most[1] } else { self.at_rest };
            (self.most, self.half) = ([before, self.at_rest], now);
        }
    }

    fn add(&mut self, path: Key, inode: Option<u64>, now: Instant) {
        // What waits is judged by what there was before it.
        if self.gone.is_empty() {
            self.inodes.clear();
            self.turn(now);
            self.first = now;
        }
        if let Some(inode) = inode {
            self.inodes.insert(inode, path.clone());
        }
        if self.gone.insert(path) {
            self.last = now;
        }
    }

    /// Whether they are so few, with those that were believed lately, that they need not settle. What was moved, or made
    /// room for something new, is not missing. `records` are those of now.
    fn are_few(&mut self, records: u64, now: Instant) -> bool {
        if TOGETHER <= now.duration_since(self.lately) {
            (self.lately, self.recent) = (now, records);
        }
        let few = (self.before() / FEW_OF).clamp(FEW_DELETIONS, MANY_DELETIONS);
        self.recent.saturating_sub(records.saturating_sub(self.gone.len() as u64)) <= few
    }

    /// How many records there were at most.
    fn before(&self) -> u64 {
        self.most[0].max(self.most[1])
    }

    /// How many are gone of how many, if that is too much to be believed unasked. `records` are those of now.
    fn mass(&self, records: u64) -> Option<(u64, u64)> {
        let before = self.before();
        let after = records.saturating_sub(self.gone.len() as u64);
        let count = before.saturating_sub(after);
        let is_mass = MASS_DELETE_FROM <= count && 2 * after < before;
        (is_mass && !self.allowed && !self.gone.is_empty()).then_some((count, before))
    }

    /// They are believed. `records` are those of now, among them these.
    fn believe(&mut self, records: u64) -> BTreeSet<Key> {
        let gone = std::mem::take(&mut self.gone);
        // What appeared meanwhile counts once all is at rest: some of it may be what goes, moved.
        self.at_rest = self.at_rest.min(records.saturating_sub(gone.len() as u64));
        if std::mem::take(&mut self.allowed) {
            // Whoever allowed that is not asked about the same again.
            self.most = [self.at_rest; 2];
        }
        self.asked = None;
        gone
    }
}

impl Engine<'_> {
    /// What others did was put in place. There were so many records before it.
    pub(in crate::folder) fn count_put_in_place(&mut self, before: u64) -> Result<(), StoreError> {
        let after = self.view()?.record_count();
        self.deletions.on_records_changed(before, after);
        Ok(())
    }

    /// Everything is taken in.
    pub(super) fn note_rest(&mut self) -> Result<(), StoreError> {
        let records = self.view()?.record_count();
        self.deletions.on_rest(records, Instant::now());
        Ok(())
    }

    /// Whether a deletion waits that was seen here, and holds. It waits no more then: others deleted the same.
    pub(in crate::folder) fn take_gone(&mut self, path: &Key) -> bool {
        let is_gone = self.deletions.contains(path) && matches!(self.root.stat(path), Ok(None));
        if is_gone {
            self.deletions.forget(path);
        }
        is_gone
    }

    /// Nothing stands at a path.
    pub(super) fn on_missing(&mut self, path: Key) -> Result<(), StoreError> {
        self.progress.set_problem(&path, None);
        self.unrecorded.remove(&path);
        self.settle_path(&path)?;
        let view = self.view()?;
        let Some(record) = view.record(&path)? else {
            // What was not taken in yet may have been all that kept a directory.
            return self.look_at_emptied(&view, &path);
        };
        if self.is_ignored(&path, record.kind == Kind::Directory) {
            self.let_alone(path)?;
        } else if self.is_refused(&path, None) {
            self.progress.set_problem(&path, Some("its deletion cannot be written".to_owned()));
        } else {
            let inode = (record.kind == Kind::File).then_some(record.inode);
            self.deletions.add(path, inode, Instant::now());
        }
        Ok(())
    }

    /// What is ignored is as if it had never been known here: it is not deleted elsewhere when it goes, nor replaced
    /// when it changes, also if all that is found when it is ignored no more. What others have appears again then.
    pub(super) fn let_alone(&mut self, path: Key) -> Result<(), StoreError> {
        self.settle_path(&path)?;
        if self.view()?.record(&path)?.is_some() {
            self.deletions.on_records_changed(1, 0);
        }
        self.gather_removal(path);
        self.submit_if_full();
        Ok(())
    }

    /// Looks at the directory from which something has gone, if it exists only because of what is in it.
    pub(super) fn look_at_emptied(
        &mut self,
        view: &DiskView,
        path: &Key,
    ) -> Result<(), StoreError> {
        if let Some(parent) = path.parent().and_then(|parent| Key::new(parent).ok())
            && view.record(&parent)?.is_some_and(|record| record.implicit)
        {
            self.mark(&parent, Duration::ZERO);
        }
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
            let allowed = std::mem::take(&mut self.deletions.allowed);
            // Those that somebody was asked about are not gone any more, whatever the answer was.
            if self.deletions.asked.take().is_some() || allowed {
                self.progress.set_trouble("deletions", None);
            }
            return Ok(false);
        }
        if self.deletions.are_settled() {
            return Ok(false);
        }
        // While records are on their way to the store, it cannot be told how many are missing.
        let now = Instant::now();
        let settled = self.deletions.due().is_some_and(|due| due <= now)
            || (self.commits.are_done()
                && self.deletions.are_few(self.view()?.record_count(), now));
        if !settled {
            return Ok(false);
        }
        // What appears is taken in before what goes: a moved file finds its bytes at its new place.
        self.settle_commits()?;
        if !self.root.is_present() {
            self.end(Exit::RootGone);
            return Ok(true);
        }
        let (root, view) = (Arc::clone(&self.root), self.view()?);
        for path in std::mem::take(&mut self.deletions.gone) {
            if matches!(root.stat(&path), Ok(None)) && view.record(&path)?.is_some() {
                self.deletions.gone.insert(path);
            } else {
                // Others may have deleted it, too.
                self.look_at_emptied(&view, &path)?;
            }
        }
        if self.context.read_only {
            return self.restore_deleted();
        }
        if let Some((count, before)) = self.deletions.mass(view.record_count()) {
            self.ask_about_deletions(count, before);
            return Ok(false);
        }
        self.progress.set_trouble("deletions", None);
        let mut parents: BTreeSet<Key> = BTreeSet::new();
        for path in self.deletions.believe(view.record_count()) {
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

    fn ask_about_deletions(&mut self, count: u64, before: u64) {
        let text = format!(
            "{count} of {before} entries were deleted here within minutes, and {} of these deletions wait; to delete them \
             everywhere, run `consort link {} {} --allow-mass-delete`; to get them back, unlink the directory and link it \
             again",
            self.deletions.gone.len(),
            self.context.name,
            self.context.dir.display()
        );
        self.progress.set_trouble("deletions", Some(Trouble::Paused(text)));
        self.deletions.asked = Some(self.deletions.gone.len());
    }

    /// What was deleted in a read-only directory comes back: nothing is overwritten by that.
    fn restore_deleted(&mut self) -> Result<bool, StoreError> {
        let view = self.view()?;
        let mut keys = Vec::new();
        let gone = std::mem::take(&mut self.deletions.gone);
        for path in gone.clone() {
            let record = view.record(&path)?;
            keys.push(record.and_then(|record| record.key).unwrap_or_else(|| path.clone()));
            self.gather_removal(path);
            self.submit_if_full();
        }
        self.settle_commits()?;
        self.stager.look_at(keys);
        // What others deleted, too, may have been all that kept a directory.
        for path in gone {
            self.look_at_emptied(&view, &path)?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory in which files are deleted.
    struct Directory {
        deletions: Deletions,
        now: Instant,
        records: u64,
        deleted: u64,
    }

    impl Directory {
        fn of(records: u64) -> Self {
            let deletions = Deletions::new(records);
            Self { now: deletions.lately, deletions, records, deleted: 0 }
        }

        /// Time passes, and what settles in it is believed. False if it is asked.
        fn pass(&mut self, time: Duration) -> bool {
            self.now += time;
            let settled = self.deletions.due().is_some_and(|due| due <= self.now);
            let may_go = !settled || self.judge();
            self.deletions.on_rest(self.records, self.now);
            may_go
        }

        /// Deletes a file. False if it is asked.
        fn delete(&mut self) -> bool {
            let path = Key::new(format!("file-{}", self.deleted)).expect("a key");
            self.deleted += 1;
            self.deletions.add(path, None, self.now);
            !self.deletions.are_few(self.records, self.now) || self.judge()
        }

        fn judge(&mut self) -> bool {
            let may_go = self.deletions.mass(self.records).is_none();
            if may_go {
                self.records -= self.deletions.believe(self.records).len() as u64;
            }
            may_go
        }
    }

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn of_a_mass_deletion_no_more_than_a_small_part_is_believed_before_it_is_seen() {
        for (records, believed) in
            [(10, 5), (60, 5), (500, 5), (5000, 50), (25_600, 256), (1_000_000, 256)]
        {
            let mut directory = Directory::of(records);
            for _ in 0..records.min(4000) {
                assert!(directory.pass(MS) && directory.delete());
            }
            assert_eq!(records - directory.records, believed, "of {records}");
        }
    }

    #[test]
    fn single_deletions_among_many_never_wait() {
        let mut directory = Directory::of(100_000);
        for number in 0..1000 {
            assert!(directory.pass(TOGETHER / 5) && directory.delete());
            assert!(directory.deletions.gone.is_empty(), "deletion {number} waits");
        }
    }

    #[test]
    fn what_empties_a_directory_in_minutes_is_asked_about_when_half_is_gone() {
        for (records, pause) in [(20, 1000), (20, 300), (100, 300), (150, 200), (150, 1600)] {
            let mut directory = Directory::of(records);
            while directory.pass(pause * MS) && directory.delete() {
                assert!(directory.deleted < records, "{records} are gone, {pause} ms apart");
            }
            assert!(records / 2 <= directory.records, "{} of {records}", directory.records);
            // Whoever allows that is not asked about the next one.
            directory.deletions.allow();
            assert!(directory.pass(pause * MS) && directory.delete());
            assert!(directory.pass(DELETIONS_SETTLE) && directory.deletions.gone.is_empty());
        }
    }

    #[test]
    fn what_never_ends_is_believed_piece_by_piece() {
        let mut directory = Directory::of(1000);
        while directory.deleted < 300 {
            assert!(directory.pass(120 * MS) && directory.delete());
        }
        assert!(directory.deletions.gone.len() < 200, "{} wait", directory.deletions.gone.len());
    }

    #[test]
    fn what_makes_room_for_something_new_never_waits() {
        let mut directory = Directory::of(100);
        for _ in 0..1000 {
            directory.records += 1;
            assert!(directory.pass(50 * MS) && directory.delete());
            assert!(directory.deletions.gone.is_empty());
        }
    }

    #[test]
    fn what_came_to_rest_just_before_is_asked_about_as_well() {
        let mut directory = Directory::of(0);
        directory.records = 100;
        assert!(directory.pass(MS));
        (0..100).for_each(|_| assert!(directory.delete()));
        assert!(!directory.pass(DELETIONS_SETTLE));
    }

    #[test]
    fn what_is_moved_is_not_counted_twice() {
        let mut directory = Directory::of(100);
        assert!(directory.delete() && directory.pass(MS));
        for _ in 0..10 {
            // Everything gets another name, and is found there before it is missed.
            directory.records += 99;
            (0..99).for_each(|_| assert!(directory.delete()));
            assert!(directory.pass(DELETIONS_SETTLE));
            assert_eq!(directory.records, 99);
        }
    }

    #[test]
    fn what_others_deleted_was_not_deleted_here() {
        let mut directory = Directory::of(100);
        directory.records = 40;
        directory.deletions.on_records_changed(100, 40);
        assert!(directory.pass(MS));
        (0..10).for_each(|_| assert!(directory.delete()));
        assert!(directory.pass(DELETIONS_SETTLE));
        assert_eq!(directory.records, 30);
    }

    #[test]
    fn what_empties_a_directory_in_hours_is_never_asked_about() {
        let mut directory = Directory::of(1000);
        for number in 0..900 {
            assert!(directory.pass(HALF_WINDOW / 20) && directory.delete(), "asked at {number}");
        }
        assert_eq!(directory.records, 100);
    }
}
