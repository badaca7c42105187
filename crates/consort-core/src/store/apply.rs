//! How a commit changes a replica, decided once for all stores.
//!
//! An [`Application`] reads the replica through a [`View`], keeps what it changed on top of that, and yields a
//! [`Batch`] of row changes that the store must apply whole. Several commits may go through one application, so that
//! a store can make them durable together.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem;

use crate::limits::{
    MAX_COLLECTED, MAX_COMMIT_BYTES, MAX_COMMIT_VERSIONS, MAX_SEAL_BYTES, MAX_VECTOR_EXCEPTIONS,
};
use crate::model::canonical;
use crate::model::conflict::{Losers, OnConflict};
use crate::model::fingerprint::{Fingerprint, FingerprintKey};
use crate::model::frontier::{Frontier, Knowledge};
use crate::model::hlc::{Clock, Timestamp};
use crate::model::id::{AuthorId, NodeId};
use crate::model::key::Key;
use crate::model::merge::{self, Merged};
use crate::model::vector::Dot;
use crate::model::version::{Entry, Version};
use crate::store::{
    Applied, Lesson, LocalWrite, Sealer, Sequence, StoreError, Stored, Summary, Tombstones, View,
    Written,
};
use crate::time::WallTime;

/// A version that became current.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// The key.
    pub key: Key,
    /// The version.
    pub dot: Dot,
    /// Whether it is a tombstone.
    pub deleted: bool,
    /// The length of its canonical encoding in bytes.
    pub bytes: usize,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// Its place in the feed.
    pub sequence: Sequence,
    /// Where its commit ends in the feed.
    pub commit_end: Sequence,
    /// The peer that it came from.
    pub via: Option<NodeId>,
}

/// A version that was replaced or collected, and whose rows go: the version, its feed row, its fingerprint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// The key.
    pub key: Key,
    /// The version.
    pub dot: Dot,
    /// Whether it was a tombstone.
    pub deleted: bool,
    /// Its place in the feed.
    pub sequence: Sequence,
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
}

/// The row changes of one or more commits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Rows to write.
    pub added: Vec<Added>,
    /// Rows to remove; none of them is among those to write.
    pub removed: Vec<Removed>,
    /// The keys that changed, in order, each with its current versions as they are after it, ordered by dot. A key of
    /// which there are none any more has no row.
    pub keys: Vec<(Key, Vec<Stored>)>,
    /// The keys whose losers are others than before, in order, each with how many it has now.
    pub contested: Vec<(Key, Losers)>,
    /// The losers of the replica after it.
    pub losers: Losers,
    /// The cursors of all peers' feeds go.
    pub anew: bool,
    /// What the replica knows, if that changed.
    pub knowledge: Option<Arc<Knowledge>>,
    /// The tombstones after it.
    pub tombstones: Tombstones,
    /// The replica after it.
    pub summary: Summary,
}

/// A key that was looked at.
#[derive(Debug)]
struct Touched {
    /// Its current versions, ordered by dot.
    siblings: Vec<Stored>,
    /// How many of those that the view has are losers.
    lost: Losers,
    /// Whether a commit changed them.
    changed: bool,
}

/// A tombstone that can go.
#[derive(Debug)]
struct Due {
    key: Key,
    place: usize,
    dot: Dot,
}

/// Commits on their way into a replica.
#[derive(Debug)]
pub struct Application<'v, V> {
    view: &'v V,
    fingerprint_key: FingerprintKey,
    summary: Summary,
    knowledge: Arc<Knowledge>,
    learnt: bool,
    anew: bool,
    tombstones: Tombstones,
    /// Every key that was looked at, with its place in `touched`.
    places: BTreeMap<Key, usize>,
    touched: Vec<Touched>,
    added: Vec<Added>,
    removed: Vec<Removed>,
    /// The canonical bytes of one entry after the other.
    canonical: Vec<u8>,
}

impl<'v, V: View> Application<'v, V> {
    /// Begins on top of `view`.
    pub fn new(view: &'v V, fingerprint_key: FingerprintKey) -> Result<Self, StoreError> {
        let (places, touched, added, removed) = Default::default();
        Ok(Self {
            view,
            fingerprint_key,
            summary: view.summary(),
            knowledge: view.knowledge()?,
            learnt: false,
            anew: false,
            tombstones: view.tombstones(),
            places,
            touched,
            added,
            removed,
            canonical: Vec::with_capacity(256),
        })
    }

    /// The current versions of a key that an earlier commit touched, ordered by dot.
    pub fn touched(&self, key: &Key) -> &[Stored] {
        self.places.get(key).map_or(&[], |place| &self.touched[*place].siblings)
    }

    /// Merges versions that a peer sent, as one commit. If it fails, nothing has changed.
    pub fn remote(&mut self, entries: Vec<Entry>, via: NodeId) -> Result<Applied, StoreError> {
        let places = self.read(entries.iter().map(|entry| &entry.key))?;
        let mut applied = Applied::default();
        let from = self.added.len();
        for (entry, place) in entries.into_iter().zip(places) {
            self.merge(entry, place, Some(via), &mut applied);
        }
        self.end_commit(from, &mut applied);
        Ok(applied)
    }

    /// Makes versions of this author's writes, as one commit, and has them sealed. `policy` says what their writers were
    /// shown. If it fails, nothing has changed.
    pub fn local(
        &mut self,
        writes: Vec<LocalWrite>,
        policy: OnConflict,
        author: AuthorId,
        clock: &mut Clock,
        now: WallTime,
        sealer: Option<&dyn Sealer>,
    ) -> Result<Applied, StoreError> {
        let places = self.read(writes.iter().map(|write| &write.key))?;
        let mut applied = Applied::default();
        let from = self.added.len();
        for (write, place) in writes.iter().zip(&places) {
            self.check(write, *place, policy, author)?;
        }
        for (write, place) in writes.into_iter().zip(places) {
            let by = (author, &mut *clock, now);
            let written = self.write(write, place, policy, by, sealer, &mut applied);
            applied.written.push(written);
        }
        self.end_commit(from, &mut applied);
        Ok(applied)
    }

    /// The row changes of all commits. A version that one commit added and a later one replaced leaves none.
    pub fn finish(mut self) -> Batch {
        let removed_before_written: Vec<Sequence> = {
            let first = self.added.first().map(|added| added.sequence);
            let within = |removed: &&Removed| first.is_some_and(|first| first <= removed.sequence);
            self.removed.iter().filter(within).map(|removed| removed.sequence).collect()
        };
        if !removed_before_written.is_empty() {
            let mut passing = removed_before_written;
            passing.sort_unstable();
            self.added.retain(|added| passing.binary_search(&added.sequence).is_err());
            self.removed.retain(|removed| passing.binary_search(&removed.sequence).is_err());
        }
        let Self { added, removed, places, mut touched, anew, tombstones, summary, .. } = self;
        let knowledge = self.learnt.then_some(self.knowledge);
        let (mut keys, mut contested) = (Vec::new(), Vec::new());
        let mut losers = self.view.losers();
        for (key, place) in places {
            let Touched { siblings, changed, lost, .. } = &mut touched[place];
            if !*changed {
                continue;
            }
            let siblings = mem::take(siblings);
            let loses = Losers::of(siblings.iter().map(|stored| &stored.version));
            if loses != *lost {
                losers = losers - *lost + loses;
                contested.push((key.clone(), loses));
            }
            keys.push((key, siblings));
        }
        Batch { added, removed, keys, contested, losers, anew, knowledge, tombstones, summary }
    }

    /// Reads all that a commit will look at before it changes anything, since only reading can fail. The places of
    /// the keys among those that were looked at.
    fn read<'k>(&mut self, keys: impl Iterator<Item = &'k Key>) -> Result<Vec<usize>, StoreError> {
        keys.map(|key| self.touch(key)).collect()
    }

    /// Refuses what would be written and then read by nobody.
    fn check(
        &self,
        write: &LocalWrite,
        place: usize,
        policy: OnConflict,
        author: AuthorId,
    ) -> Result<(), StoreError> {
        let siblings = self.siblings(place);
        let replaced = merge::replaced_by_writer(&siblings, &write.saw, policy);
        let seen = merge::seen_by_successor(&siblings, &replaced, author);
        if MAX_VECTOR_EXCEPTIONS < seen.exceptions().len() {
            let versions = siblings.len();
            return Err(StoreError::Crowded { key: write.key.clone(), versions });
        }
        let refused = |reason| StoreError::Refused { key: write.key.clone(), reason };
        write.check(seen).map_err(refused)
    }

    fn write(
        &mut self,
        write: LocalWrite,
        place: usize,
        policy: OnConflict,
        (author, clock, now): (AuthorId, &mut Clock, WallTime),
        sealer: Option<&dyn Sealer>,
        applied: &mut Applied,
    ) -> Written {
        let LocalWrite { key, saw, content, mut attributes } = write;
        attributes.seal = None;
        let siblings = self.siblings(place);
        let mut replaced = merge::replaced_by_writer(&siblings, &saw, policy);
        let seen = merge::seen_by_successor(&siblings, &replaced, author);
        for sibling in &siblings {
            clock.observe(sibling.dot.time, now);
        }
        let mut version =
            Version { dot: Dot { author, time: clock.last() }, seen, content, attributes };
        let live = |dot: &Dot| siblings.iter().any(|s| s.dot == *dot && !s.is_deleted());
        if version.is_deleted() && !replaced.iter().any(live) {
            return Written::Nothing;
        }
        // Whatever is like the new version is replaced with it, or stands for it if nothing else is replaced.
        let like: Vec<&Version> = siblings.iter().filter(|held| held.alike(&version)).collect();
        if let Some(same) =
            policy.winner(&siblings).filter(|w| w.alike(&version)).or(like.first().copied())
        {
            let only_alike = replaced.iter().all(|dot| like.iter().any(|held| held.dot == *dot));
            let touched = replaced.contains(&same.dot)
                && same.attributes.modified_ns != version.attributes.modified_ns;
            if only_alike && !touched {
                return Written::Same(same.dot);
            }
            replaced.extend(like.iter().map(|held| held.dot));
            version.seen = merge::seen_by_successor(&siblings, &replaced, author);
        }
        // Nobody has seen what is not written yet. Whoever claims so must not make this write look like an old one.
        let claimed = version.seen.authors().iter().find(|(seen, _)| *seen == author);
        let claimed = claimed.map(|(_, time)| *time).unwrap_or_default();
        // Nor is it dead: what is within the frontier would be.
        let collected = self.knowledge.frontier.of(author);
        *clock = Clock::after(clock.last().max(claimed).max(collected));
        version.dot.time = clock.tick(now);
        let dot = version.dot;
        let mut entry = Entry { key, version };
        if let Some(sealer) = sealer {
            let seal = sealer.seal(&entry);
            debug_assert!(seal.len() <= MAX_SEAL_BYTES, "a seal keeps its bound");
            entry.version.attributes.seal = Some(seal);
        }
        self.merge(entry, place, None, applied);
        Written::New(dot)
    }

    fn merge(&mut self, entry: Entry, place: usize, via: Option<NodeId>, applied: &mut Applied) {
        let held = self.touched[place].siblings.iter().map(|stored| &stored.version);
        let merged = merge::merge(held, &entry.version);
        // What is within the frontier and not held is dead: what covers it may be gone.
        let is_dead = self.knowledge.frontier.contains(entry.version.dot);
        let replaced = match merged {
            Merged::Added { replaced } if !is_dead => replaced,
            _ => {
                applied.stale += 1;
                return;
            }
        };
        self.canonical.clear();
        canonical::encode_entry(&entry, &mut self.canonical);
        let fingerprint = Fingerprint::of_canonical(&self.canonical, &self.fingerprint_key);
        let sequence = Sequence(self.summary.head.sequence.0 + 1);
        self.summary.head.sequence = sequence;
        self.summary.digest.add(fingerprint);

        let touched = &mut self.touched[place];
        touched.changed = true;
        let held = &mut touched.siblings;
        let mut gone = Vec::with_capacity(replaced.len());
        for place in replaced.into_iter().rev() {
            gone.push(held.remove(place));
        }
        let place = held.partition_point(|stored| stored.version.dot < entry.version.dot);
        // Few keys ever hold more than one.
        held.reserve_exact(1);
        held.insert(place, Stored { version: entry.version.clone(), sequence });
        gone.into_iter().for_each(|stored| self.remove(entry.key.clone(), stored));
        let deleted = entry.version.is_deleted();
        self.tombstones.add(&entry.version);
        let (key, dot, bytes) = (entry.key.clone(), entry.version.dot, self.canonical.len());
        let commit_end = sequence;
        self.added.push(Added { key, dot, deleted, bytes, fingerprint, sequence, commit_end, via });
        applied.added.push((entry, sequence));
    }

    /// A version that was current is so no more.
    fn remove(&mut self, key: Key, Stored { version, sequence }: Stored) {
        let (dot, deleted) = (version.dot, version.is_deleted());
        let entry = Entry { key, version };
        let fingerprint = Fingerprint::of(&entry, &self.fingerprint_key);
        self.summary.digest.remove(fingerprint);
        self.tombstones.count -= u64::from(deleted);
        self.removed.push(Removed { key: entry.key, dot, deleted, sequence, fingerprint });
    }

    // ---- What is learnt ----

    /// Takes note of what the replica learnt, as one commit. If it fails, nothing has changed.
    pub fn learn(
        &mut self,
        lesson: Lesson,
        author: AuthorId,
        clock: &mut Clock,
    ) -> Result<Applied, StoreError> {
        let Lesson { known, frontier, dead, unburied, buried, anew, promise } = lesson;
        let dead_at = self.read(dead.iter().map(|(key, _)| key))?;
        let mut reading = *clock;
        if let Some(now) = promise {
            reading.observe(self.tombstones.latest, now);
            reading.tick(now);
        }
        let before = Arc::clone(&self.knowledge);
        let mut after = (*before).clone();
        if anew {
            after.known = after.frontier.clone();
        }
        // Nobody knows better than this store what it wrote.
        after.known.join(&known.times().filter(|(of, _)| *of != author).collect());
        after.known.raise(author, reading.last());
        let mut target = frontier.meet(&after.known);
        target.join(&before.frontier);
        let collected = self.collectable(&mut target, &before.frontier)?;
        after.frontier = target;

        *clock = reading;
        self.anew |= anew;
        let is_buried = buried == Some(before.frontier.mark());
        self.summary.unburied = unburied || self.summary.unburied && !is_buried;
        let digest = self.summary.digest;
        for ((key, dot), place) in dead.into_iter().zip(dead_at) {
            self.forget(key, place, dot);
        }
        for Due { key, place, dot } in collected {
            self.forget(key, place, dot);
        }
        if self.summary.digest != digest {
            // A place of which nothing is left: no two states of a replica have one head.
            self.summary.head.sequence.0 += 1;
        }
        if after != *before {
            self.summary.frontier = after.frontier.mark();
            self.knowledge = Arc::new(after);
            self.learnt = true;
        }
        Ok(Applied { summary: self.summary, ..Applied::default() })
    }

    /// The tombstones that `frontier` collects. If they are too many for one step, the frontier is moved back, though
    /// not behind `before`.
    fn collectable(
        &mut self,
        frontier: &mut Frontier,
        before: &Frontier,
    ) -> Result<Vec<Due>, StoreError> {
        if frontier == before {
            return Ok(Vec::new());
        }
        let (latest, latest_before) = (Some(frontier.latest()), Some(before.latest()));
        // What came with commits before in the same batch is in no view.
        let recent = self.added.iter().filter(|added| added.deleted);
        let mut recent: BTreeSet<(Timestamp, AuthorId, Key)> =
            recent.map(|added| (added.dot.time, added.dot.author, added.key.clone())).collect();
        let mut found: Vec<Due> = Vec::new();
        let mut after = None;
        'pages: loop {
            let page = self.view.tombstones_after(after.as_ref(), MAX_COLLECTED)?;
            after = page.last().cloned();
            let mut due: BTreeSet<(Timestamp, AuthorId, Key)> =
                page.into_iter().map(|(dot, key)| (dot.time, dot.author, key)).collect();
            let later = match &after {
                Some((last, key)) => recent.split_off(&(last.time, last.author, key.clone())),
                None => BTreeSet::new(),
            };
            due.append(&mut mem::replace(&mut recent, later));
            for (time, author, key) in due {
                // A shorter frontier collects nothing that is later than its last, and than all that was within before.
                let last = found.get(MAX_COLLECTED - 1).map(|due| due.dot.time);
                if last.is_some() && last.max(latest_before) < Some(time) {
                    break 'pages;
                }
                let dot = Dot { author, time };
                if last.is_some_and(|last| last < time) && !before.contains(dot) {
                    continue;
                }
                if frontier.contains(dot) && self.collects(frontier, &key, dot)? {
                    let place = self.touch(&key)?;
                    found.push(Due { key, place, dot });
                }
            }
            let last = after.as_ref().map(|(last, _)| last.time);
            if last.is_none() || latest < last {
                break;
            }
        }
        let Some(last) = found.get(MAX_COLLECTED - 1) else { return Ok(found) };
        *frontier = frontier.until(last.dot.time);
        frontier.join(before);
        let mut within = Vec::with_capacity(found.len());
        for due in found {
            if self.collects(frontier, &due.key, due.dot)? {
                within.push(due);
            }
        }
        Ok(within)
    }

    /// Whether the version with this dot is current, and `frontier` collects it.
    fn collects(&self, frontier: &Frontier, key: &Key, dot: Dot) -> Result<bool, StoreError> {
        let collects = |held: &[Stored]| {
            let versions = held.iter().map(|stored| &stored.version);
            versions.into_iter().any(|held| held.dot == dot && frontier.collects(held))
        };
        match self.places.get(key) {
            Some(place) => Ok(collects(&self.touched[*place].siblings)),
            None => Ok(collects(&self.view.siblings(key)?)),
        }
    }

    /// Drops a version, if it is current.
    fn forget(&mut self, key: Key, place: usize, dot: Dot) {
        let touched = &mut self.touched[place];
        if let Some(at) = touched.siblings.iter().position(|stored| stored.version.dot == dot) {
            touched.changed = true;
            let stored = touched.siblings.remove(at);
            self.remove(key, stored);
        }
    }

    /// Says where the commit that began at `from` ends in the feed. It is applied whole here, but one that is too
    /// large to be sent is several for everybody else.
    fn end_commit(&mut self, from: usize, applied: &mut Applied) {
        let mut bytes = 0;
        let mut parts: Vec<usize> = Vec::new();
        let mut part = from;
        for (place, added) in (from..).zip(&self.added[from..]) {
            bytes += added.bytes;
            if MAX_COMMIT_VERSIONS == place - part || MAX_COMMIT_BYTES < bytes {
                parts.push(place);
                (part, bytes) = (place, added.bytes);
            }
        }
        parts.push(self.added.len());
        let mut part = from;
        for next in parts {
            if let Some(end) = self.added[part..next].last().map(|added| added.sequence) {
                self.added[part..next].iter_mut().for_each(|added| added.commit_end = end);
            }
            part = next;
        }
        applied.summary = self.summary;
    }

    /// The current versions of a key that was looked at.
    fn siblings(&self, place: usize) -> Vec<Version> {
        self.touched[place].siblings.iter().map(|stored| stored.version.clone()).collect()
    }

    /// Looks at a key, on disk only once; the place of what was found.
    fn touch(&mut self, key: &Key) -> Result<usize, StoreError> {
        if let Some(&place) = self.places.get(key) {
            return Ok(place);
        }
        let siblings = self.view.siblings(key)?;
        let place = self.touched.len();
        let lost = Losers::of(siblings.iter().map(|stored| &stored.version));
        self.touched.push(Touched { lost, changed: false, siblings });
        self.places.insert(key.clone(), place);
        Ok(place)
    }
}
