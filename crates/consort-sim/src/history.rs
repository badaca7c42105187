//! What really happened: every version that was ever written, and which others it replaced. The simulator's own account
//! of the model, kept with plain sets instead of version vectors, and by reading the promises rather than the code. Only
//! what an author forgot that it had seen is told by its vectors.
//! The checkers compare the replicas with it.

use std::collections::BTreeMap;

use consort_core::model::merge::Saw;
use consort_core::model::{Frontier, VersionVector};
use consort_core::store::LocalWrite;
use consort_core::{Content, Dot, Entry, Fingerprint, FingerprintKey, Key};

/// A version, by its place among all that were ever written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VersionIndex(u32);

/// A set of versions of one key, by their places among that key's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past(Vec<u64>);

/// A version that was written.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) key: Key,
    pub(crate) dot: Dot,
    pub(crate) fingerprint: Fingerprint,
    pub(crate) deleted: bool,
    /// Stands for the bytes.
    content: [u8; 16],
    place: u32,
    past: Past,
    seen: VersionVector,
    /// What its writer had forgotten that it was replaced, though not what that had replaced.
    forgotten: Past,
    /// Its writer was told that it is safe.
    pub(crate) acknowledged: bool,
    /// The only replicas that held it are gone for good, so it may be gone too.
    pub(crate) excused: bool,
}

/// Everything that was written.
#[derive(Debug)]
pub(crate) struct History {
    fingerprint_key: FingerprintKey,
    versions: Vec<Known>,
    by_dot: BTreeMap<Dot, VersionIndex>,
    by_key: BTreeMap<Key, Vec<VersionIndex>>,
    bytes: u64,
}

/// What must become of a write.
#[derive(Debug)]
pub(crate) enum Expected {
    Nothing,
    /// One of these stands for it.
    Same(Vec<VersionIndex>),
    /// A new version, which replaces all current ones but these.
    New {
        beside: Vec<VersionIndex>,
        past: Past,
    },
}

impl History {
    pub(crate) fn new(fingerprint_key: FingerprintKey) -> Self {
        let (versions, by_dot, by_key) = Default::default();
        Self { fingerprint_key, versions, by_dot, by_key, bytes: 0 }
    }

    pub(crate) fn known(&self, version: VersionIndex) -> &Known {
        &self.versions[version.0 as usize]
    }

    pub(crate) fn known_mut(&mut self, version: VersionIndex) -> &mut Known {
        &mut self.versions[version.0 as usize]
    }

    pub(crate) fn find(&self, dot: Dot) -> Option<VersionIndex> {
        self.by_dot.get(&dot).copied()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = VersionIndex> + use<> {
        (0..u32::try_from(self.versions.len()).expect("runs are short")).map(VersionIndex)
    }

    pub(crate) fn of_key(&self, key: &Key) -> &[VersionIndex] {
        self.by_key.get(key).map_or(&[], |versions| versions)
    }

    /// The canonical bytes of all versions together: what every replica has to be sent once.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether `later` replaced `earlier`, directly or through others. They are of the same key.
    pub(crate) fn covers(&self, later: VersionIndex, earlier: VersionIndex) -> bool {
        self.known(later).past.contains(self.known(earlier).place)
    }

    /// Whether who wrote `later` had forgotten that `earlier` was replaced, though not what that had replaced.
    pub(crate) fn has_forgotten(&self, later: VersionIndex, earlier: VersionIndex) -> bool {
        self.known(later).forgotten.contains(self.known(earlier).place)
    }

    /// Whether a key that holds these versions has nothing of `version` to tell any more: it is there, or was replaced.
    pub(crate) fn accounts_for(&self, held: &[VersionIndex], version: VersionIndex) -> bool {
        held.iter().any(|&held| held == version || self.covers(held, version))
    }

    /// Whether a replica that has collected up to `frontier` may hold nothing of `version`: it is a deletion, or was
    /// replaced by one, directly or through others, and lies within.
    pub(crate) fn may_be_forgotten(&self, frontier: &Frontier, version: VersionIndex) -> bool {
        let known = self.known(version);
        let deletes =
            |other: &VersionIndex| self.known(*other).deleted && self.covers(*other, version);
        frontier.contains(known.dot)
            && (known.deleted || self.of_key(&known.key).iter().any(deletes))
    }

    /// Whether somebody replaced a version, anywhere.
    pub(crate) fn is_replaced(&self, version: VersionIndex) -> bool {
        let of_key = self.of_key(&self.known(version).key);
        of_key.iter().any(|other| self.covers(*other, version))
    }

    /// The version that a reader gets: an edit rather than a deletion, the later one, that of the greater author.
    pub(crate) fn winner(&self, held: &[VersionIndex]) -> Option<VersionIndex> {
        held.iter().copied().max_by_key(|version| {
            let Known { deleted, dot, .. } = self.known(*version);
            (!deleted, dot.time, dot.author)
        })
    }

    /// What must become of a write to a key that holds these versions.
    pub(crate) fn foresee(&self, held: &[VersionIndex], write: &LocalWrite) -> Expected {
        let deletes = write.content == Content::Deleted;
        let content = write.content.id();
        let alike = |a: VersionIndex, deleted: bool, content: [u8; 16]| {
            let a = self.known(a);
            a.deleted == deleted && (deleted || a.content == content)
        };
        let saw = match write.saw {
            Saw::Winner => self.winner(held),
            Saw::Nothing => None,
            Saw::Version(dot) => self.find(dot).filter(|version| held.contains(version)),
            Saw::Versions(_) => unreachable!("nobody in a run chooses between several"),
        };
        let replaces = |version: VersionIndex| {
            let as_seen = |saw| {
                let saw: &Known = self.known(saw);
                alike(version, saw.deleted, saw.content)
            };
            self.known(version).deleted || saw.is_some_and(as_seen)
        };
        let replaced: Vec<VersionIndex> = held.iter().copied().filter(|v| replaces(*v)).collect();
        if deletes && replaced.iter().all(|version| self.known(*version).deleted) {
            return Expected::Nothing;
        }
        let is_like = |version: &VersionIndex| alike(*version, deletes, content);
        let like: Vec<VersionIndex> = held.iter().copied().filter(is_like).collect();
        if !like.is_empty() && replaced.iter().all(|version| like.contains(version)) {
            return Expected::Same(like);
        }
        let goes = |version: &VersionIndex| replaced.contains(version) || like.contains(version);
        // What somebody replaced whose version is replaced now does not stay either.
        let is_over = |version: &VersionIndex| {
            held.iter().filter(|held| goes(held)).any(|held| self.has_forgotten(*held, *version))
        };
        let stays = |version: &VersionIndex| !goes(version) && !is_over(version);
        let beside: Vec<VersionIndex> = held.iter().copied().filter(stays).collect();
        let mut past = Past::default();
        for version in held {
            let Known { place, past: before, .. } = self.known(*version);
            past.union(before);
            if !beside.contains(version) {
                past.insert(*place);
            }
        }
        Expected::New { beside, past }
    }

    /// Takes down a version that was written. Nothing if there is one with its dot already.
    pub(crate) fn write(
        &mut self,
        entry: &Entry,
        bytes: usize,
        mut past: Past,
    ) -> Option<VersionIndex> {
        let Entry { key, version } = entry;
        // An author is taken to have seen what it wrote to the key before, also what was deleted and forgotten since;
        // but for what that replaced and it has forgotten as well.
        let mut forgotten = Past::default();
        for other in self.of_key(key) {
            let is_over = self.known(*other).deleted || self.is_replaced(*other);
            let Known { dot, place, seen, .. } = self.known(*other);
            if version.seen.contains(*dot) && is_over {
                let has_seen_all = version.seen.contains_all(seen);
                if has_seen_all { &mut past } else { &mut forgotten }.insert(*place);
            }
        }
        let index = VersionIndex(u32::try_from(self.versions.len()).expect("runs are short"));
        if self.by_dot.contains_key(&version.dot) {
            return None;
        }
        self.by_dot.insert(version.dot, index);
        let of_key = self.by_key.entry(key.clone()).or_default();
        self.versions.push(Known {
            key: key.clone(),
            dot: version.dot,
            fingerprint: Fingerprint::of(entry, &self.fingerprint_key),
            deleted: version.is_deleted(),
            content: version.content.id(),
            place: u32::try_from(of_key.len()).expect("runs are short"),
            past,
            seen: version.seen.clone(),
            forgotten,
            acknowledged: false,
            excused: false,
        });
        of_key.push(index);
        self.bytes += bytes as u64;
        Some(index)
    }

    /// What a key holds after one more version arrived; false if it changes nothing.
    pub(crate) fn merge(&self, held: &mut Vec<VersionIndex>, incoming: VersionIndex) -> bool {
        if self.accounts_for(held, incoming) {
            return false;
        }
        held.retain(|version| !self.covers(incoming, *version));
        held.push(incoming);
        true
    }

    /// The fingerprint that an entry must have.
    pub(crate) fn fingerprint(&self, entry: &Entry) -> Fingerprint {
        Fingerprint::of(entry, &self.fingerprint_key)
    }
}

impl Past {
    fn contains(&self, place: u32) -> bool {
        let word = self.0.get(place as usize / 64).copied().unwrap_or(0);
        word >> (place % 64) & 1 != 0
    }

    fn insert(&mut self, place: u32) {
        let word = place as usize / 64;
        self.0.resize(self.0.len().max(word + 1), 0);
        self.0[word] |= 1 << (place % 64);
    }

    fn union(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }
}
