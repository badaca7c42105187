//! What is left of large files that were given up: which of it is kept, and for how long. Whatever wants one of its chunks
//! next finds it there: the same content when it is begun again, another version of the file, or another key after a
//! rename. How it lies on the disk is in `place/partial.rs`, how a chunk of it is found in `content/staged.rs`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::Key;

use crate::content::staged::StagedFile;
use crate::folder::{Root, Staging};

/// Contents of which something is left at a time: as many as large files may be begun.
const MAX_LEFT: usize = super::files::MAX_LARGE;
/// Chunks of leftovers that are known, in one directory: room is left to what is on its way. Beyond that, what is left longest is
/// found only by whoever wants its whole content.
const MAX_KNOWN_CHUNKS: usize = 64 * 1024;
/// How long something stays that nothing pending is known to want. What wants it may be yet to come: the new name of a file
/// comes after the deletion of the old one.
const UNWANTED_FOR: Duration = Duration::from_secs(60);

/// All that is left in one directory.
#[derive(Debug)]
pub(super) struct Leftovers {
    root: Arc<Root>,
    left: HashMap<[u8; 16], Left>,
}

/// What is left of one content.
#[derive(Debug)]
struct Left {
    /// Who wanted it last. `None` if it was left by a process before this one.
    path: Option<Key>,
    /// Where its chunks are known. `None` if it was left by a process before this one, or there are too many.
    chunks: Option<StagedFile>,
    /// That path, or whatever is pending, may still want it.
    is_wanted: bool,
    /// When it was left, or has become unwanted, or was last looked whether something was read from it.
    since: Instant,
}

impl Leftovers {
    /// Those of the processes before this one.
    pub(super) fn new(root: Arc<Root>) -> Self {
        root.keep_partial();
        let since = Instant::now();
        let left = |content| (content, Left { path: None, chunks: None, is_wanted: true, since });
        let left = root.all_arrived().into_iter().map(left).collect();
        let mut leftovers = Self { root, left };
        leftovers.keep_to_bound();
        leftovers
    }

    /// A file was given up. Of two times that its content was left, what is longer stays; of the contents that were left for
    /// its path before, one that is longer: a version may be given up before it has taken from there what it can.
    pub(super) fn leave(
        &mut self,
        path: &Key,
        content: [u8; 16],
        staging: Staging,
        mut chunks: StagedFile,
        now: Instant,
    ) {
        if self.root.keep_arrived(staging) {
            chunks.move_to(self.root.peek_arrived(content));
            let path = Some(path.clone());
            let left = Left { path, chunks: Some(chunks), is_wanted: true, since: now };
            self.left.insert(content, left);
        } else {
            drop(chunks);
            if !self.left.contains_key(&content) {
                return;
            }
            self.begin(path, content);
        }
        let blocks = |content: &[u8; 16]| self.root.arrived_blocks(*content);
        let before = self.of(path).into_iter().filter(|other| *other != content);
        let longest = before.max_by_key(blocks).filter(|other| blocks(&content) < blocks(other));
        for other in self.of(path) {
            if other != content && Some(other) != longest {
                self.forget(other);
            }
        }
        self.keep_to_bound();
        // What is left now may have been known in what went.
        for content in self.of(path) {
            self.left.get(&content).into_iter().for_each(Left::tell_again);
        }
    }

    /// A file is begun, which wants what is left of its content, and of what was to be at its path before.
    pub(super) fn begin(&mut self, path: &Key, content: [u8; 16]) {
        if let Some(left) = self.left.get_mut(&content) {
            left.path = Some(path.clone());
        }
        for left in self.left.values_mut().filter(|left| left.path.as_ref() == Some(path)) {
            left.is_wanted = true;
        }
    }

    /// A file is complete, with all of what was left for it that it can use.
    pub(super) fn complete(&mut self, path: &Key, content: [u8; 16]) {
        if self.left.is_empty() {
            return;
        }
        let mut done = self.of(path);
        done.extend(self.left.contains_key(&content).then_some(content));
        done.into_iter().for_each(|content| self.forget(content));
    }

    /// Nothing is to be at this path any more. What was left for it stays for a while: it may come back under another name.
    pub(super) fn release(&mut self, path: &Key, now: Instant) {
        for left in self.left.values_mut().filter(|left| left.path.as_ref() == Some(path)) {
            left.release(now);
        }
    }

    /// Nothing is pending.
    pub(super) fn release_all(&mut self, now: Instant) {
        self.left.values_mut().for_each(|left| left.release(now));
    }

    /// Forgets what was not wanted for a while, nor read. When to look again, if there is more.
    pub(super) fn forget_unwanted(&mut self, now: Instant) -> Option<Instant> {
        let mut over = Vec::new();
        for (content, left) in &mut self.left {
            if left.is_wanted || now < left.since + UNWANTED_FOR {
                continue;
            }
            if left.chunks.as_ref().is_some_and(StagedFile::was_read) {
                left.since = now;
            } else {
                over.push(*content);
            }
        }
        if !over.is_empty() {
            over.into_iter().for_each(|content| self.forget(content));
            self.left.values().for_each(Left::tell_again);
        }
        let unwanted = self.left.values().filter(|left| !left.is_wanted);
        unwanted.map(|left| left.since + UNWANTED_FOR).min()
    }

    /// There is no room for any of it.
    pub(super) fn forget_all(&mut self) {
        self.left.clear();
        self.root.forget_all_arrived();
    }

    /// The contents that were left for a path.
    fn of(&self, path: &Key) -> Vec<[u8; 16]> {
        let left = self.left.iter().filter(|(_, left)| left.path.as_ref() == Some(path));
        left.map(|(content, _)| *content).collect()
    }

    /// The oldest goes, or is not known any more, what is not wanted before all else.
    fn keep_to_bound(&mut self) {
        while MAX_LEFT < self.left.len()
            && let Some((&oldest, _)) =
                self.left.iter().min_by_key(|(_, left)| (left.is_wanted, left.since))
        {
            self.forget(oldest);
        }
        let count = |left: &Left| left.chunks.as_ref().map_or(0, StagedFile::count);
        let mut known: usize = self.left.values().map(count).sum();
        while MAX_KNOWN_CHUNKS < known
            && let Some(oldest) = self
                .left
                .values_mut()
                .filter(|left| left.chunks.is_some())
                .min_by_key(|left| (left.is_wanted, left.since))
        {
            known -= count(oldest);
            oldest.chunks = None;
        }
    }

    fn forget(&mut self, content: [u8; 16]) {
        self.left.remove(&content);
        self.root.forget_arrived(content);
    }
}

impl Left {
    fn tell_again(&self) {
        self.chunks.iter().for_each(StagedFile::tell_again);
    }

    fn release(&mut self, now: Instant) {
        if std::mem::take(&mut self.is_wanted) {
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use consort_core::{ChunkHash, ChunkRef};

    use super::*;
    use crate::content::staged::StagedChunks;

    struct Fixture {
        dir: tempfile::TempDir,
        root: Arc<Root>,
        staged: Arc<StagedChunks>,
        leftovers: Leftovers,
        now: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Arc::new(Root::open(dir.path()).unwrap());
            let leftovers = Leftovers::new(Arc::clone(&root));
            Self { dir, root, staged: Arc::default(), leftovers, now: Instant::now() }
        }

        /// Gives a file up of which one chunk of so many bytes has come.
        fn leave(&mut self, path: &str, content: u8, bytes: usize) {
            let staging = self.root.stage_large([content; 16], 0o644).unwrap();
            let chunk = vec![content; bytes];
            staging.target(0).write(&chunk).unwrap();
            let mut chunks = self.staged.begin(staging.peek(&self.root, path));
            chunks.add(ChunkHash::of(&chunk), 0);
            self.leftovers.leave(&key(path), [content; 16], staging, chunks, self.now);
        }

        /// The same of one of which so many chunks are known besides.
        fn leave_many(&mut self, path: &str, content: u8, chunks: usize) {
            let staging = self.root.stage_large([content; 16], 0o644).unwrap();
            let bytes = [content; 1000];
            staging.target(0).write(&bytes).unwrap();
            let mut staged = self.staged.begin(staging.peek(&self.root, path));
            staged.add(ChunkHash::of(&bytes), 0);
            for number in 0..chunks {
                staged.add(ChunkHash::of(&[&[content][..], &number.to_be_bytes()].concat()), 0);
            }
            self.leftovers.leave(&key(path), [content; 16], staging, staged, self.now);
        }

        fn finds(&self, content: u8, bytes: usize) -> bool {
            let chunk = vec![content; bytes];
            let (hash, length) = (ChunkHash::of(&chunk), u32::try_from(bytes).unwrap());
            self.staged.read(&ChunkRef { hash, length }, &mut vec![0; bytes])
        }

        fn later(&mut self, by: Duration) -> Option<Instant> {
            self.now += by;
            self.leftovers.forget_unwanted(self.now)
        }

        fn count(&self) -> usize {
            fs::read_dir(self.dir.path().join(".consort/tmp")).unwrap().count()
        }
    }

    fn key(path: &str) -> Key {
        Key::new(path).unwrap()
    }

    #[test]
    fn what_is_left_is_found_by_its_chunks_and_verified() {
        let mut all = Fixture::new();
        all.leave("a", 1, 100_000);
        assert!(all.finds(1, 100_000) && !all.finds(2, 100_000));
        let name = format!("arrived-{}", "01".repeat(16));
        fs::write(all.dir.path().join(".consort/tmp").join(name), [7; 100_000]).unwrap();
        assert!(!all.finds(1, 100_000), "what was written over is believed");
        all.leftovers.forget_all();
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn what_nothing_wants_is_kept_for_a_while_and_longer_if_it_is_read() {
        let mut all = Fixture::new();
        all.leave("deleted", 1, 100_000);
        all.leave("pending", 2, 100_000);
        assert_eq!(all.later(10 * UNWANTED_FOR), None, "both are wanted");
        all.leftovers.release(&key("deleted"), all.now);
        assert_eq!(all.later(UNWANTED_FOR / 2), Some(all.now + UNWANTED_FOR / 2));
        assert!(all.finds(1, 100_000));
        assert_eq!(all.later(UNWANTED_FOR / 2), Some(all.now + UNWANTED_FOR), "it was read");
        assert_eq!((all.later(UNWANTED_FOR), all.count()), (None, 1));
        assert!(!all.finds(1, 100_000) && all.finds(2, 100_000));
        // A file that wants it has begun.
        all.leftovers.release_all(all.now);
        all.leftovers.begin(&key("renamed"), [2; 16]);
        assert_eq!((all.later(10 * UNWANTED_FOR), all.count()), (None, 1));
        all.leftovers.complete(&key("renamed"), [2; 16]);
        assert_eq!(all.count(), 0);
    }

    #[test]
    fn what_a_process_before_left_is_kept_until_nothing_has_wanted_it_for_a_while() {
        let mut all = Fixture::new();
        all.leave("a", 1, 100_000);
        all.leftovers = Leftovers::new(Arc::clone(&all.root));
        assert_eq!((all.later(10 * UNWANTED_FOR), all.count()), (None, 1));
        all.leftovers.release_all(all.now);
        all.leftovers.release_all(all.now + UNWANTED_FOR / 2);
        assert_eq!((all.later(UNWANTED_FOR), all.count()), (None, 0));
    }

    #[test]
    fn of_the_versions_of_a_file_the_last_stays_and_a_longer_one_before_it() {
        let mut all = Fixture::new();
        all.leave("a", 1, 50_000);
        all.leave("other", 9, 100_000);
        all.leave("a", 2, 100_000);
        assert_eq!((all.finds(1, 50_000), all.finds(2, 100_000)), (false, true));
        all.leave("a", 3, 20_000);
        all.leave("a", 4, 10_000);
        assert_eq!((all.finds(2, 100_000), all.finds(3, 20_000)), (true, false));
        assert!(all.finds(4, 10_000) && all.finds(9, 100_000));
        all.leftovers.complete(&key("a"), [5; 16]);
        assert_eq!(all.count(), 1);
    }

    #[test]
    fn what_a_newer_version_took_is_known_to_be_there_when_the_older_one_goes() {
        let mut all = Fixture::new();
        all.leave("a", 1, 50_000);
        let staging = all.root.stage_large([2; 16], 0o644).unwrap();
        staging.target(0).write(&[2; 100_000]).unwrap();
        staging.target(100_000).write(&[1; 50_000]).unwrap();
        let mut chunks = all.staged.begin(staging.peek(&all.root, "a"));
        chunks.add(ChunkHash::of(&[1; 50_000]), 100_000);
        all.leftovers.leave(&key("a"), [2; 16], staging, chunks, all.now);
        assert!(all.finds(1, 50_000) && all.count() == 1);
    }

    #[test]
    fn of_too_many_chunks_those_of_the_oldest_are_known_no_more_and_stay_on_the_disk() {
        let mut all = Fixture::new();
        all.leave_many("a", 1, MAX_KNOWN_CHUNKS / 3 * 2);
        all.now += Duration::from_millis(1);
        assert!(all.finds(1, 1000));
        all.leave_many("b", 2, MAX_KNOWN_CHUNKS / 3 * 2);
        assert!(!all.finds(1, 1000) && all.finds(2, 1000));
        assert_eq!(all.count(), 2);
        all.leftovers.complete(&key("a"), [1; 16]);
        assert_eq!(all.count(), 1);
    }

    #[test]
    fn a_chunk_that_repeats_counts_once_also_if_another_file_has_it() {
        let all = Fixture::new();
        let staging = all.root.stage_large([1; 16], 0o644).unwrap();
        let [mut one, mut other] = [0; 2].map(|_| all.staged.begin(staging.peek(&all.root, "a")));
        let zeroes = ChunkHash::of(&[0; 1000]);
        for offset in (0..10_000).step_by(1000) {
            one.add(zeroes, offset);
            other.add(zeroes, offset);
        }
        assert_eq!((one.count(), other.count()), (1, 1));
    }

    #[test]
    fn if_there_are_too_many_the_oldest_goes_and_what_is_not_wanted_before_it() {
        let mut all = Fixture::new();
        for number in 0..MAX_LEFT {
            let content = u128::try_from(number).unwrap().to_be_bytes();
            let staging = all.root.stage_large(content, 0o644).unwrap();
            staging.target(0).write(b"x").unwrap();
            let chunks = all.staged.begin(staging.peek(&all.root, "x"));
            let path = key(&number.to_string());
            all.now += Duration::from_millis(1);
            all.leftovers.leave(&path, content, staging, chunks, all.now);
        }
        let is_left =
            |all: &Fixture, number: u128| all.root.arrived_blocks(number.to_be_bytes()) != 0;
        all.leftovers.release(&key("7"), all.now);
        all.leave("more", 0xff, 100);
        assert!(is_left(&all, 0) && !is_left(&all, 7));
        all.leave("still-more", 0xfe, 100);
        assert!(!is_left(&all, 0) && is_left(&all, 1));
        assert_eq!(all.count(), MAX_LEFT);
    }
}
