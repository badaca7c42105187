//! Frontiers: for some authors, a time each, and with it every version that the author wrote up to that time.
//!
//! A replica keeps two of them. Up to *known* it accounts for every version: it holds it, or something that covers it,
//! or it has collected what covered it. Up to the *frontier*, which never passes *known*, it has collected: a tombstone
//! that lies within it with everything that it replaces is gone, and a version that lies within it and is not held is
//! dead, since what covers it may be gone. The two rules need each other, and neither needs anybody else: whatever was
//! replaced by a tombstone that is gone lies within the frontier, so it is known for dead when it arrives. What other
//! replicas have heard decides only when collecting is worth it (see `protocol/garbage.rs`); docs/decisions/0009 has the
//! whole argument, and the property tests below the laws.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use crate::model::hlc::Timestamp;
use crate::model::id::AuthorId;
use crate::model::vector::{Dot, VersionVector};
use crate::model::version::Version;
use crate::time::WallTime;

/// For some authors, a time each, not zero. An author that is not listed has the time zero: nothing of it is within.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Frontier(BTreeMap<AuthorId, Timestamp>);

/// What a replica accounts for, and how far it has collected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// Up to here every version is accounted for. What the own author wrote is, beyond this, up to its clock.
    pub known: Frontier,
    /// Up to here tombstones are collected. Never beyond what is known.
    pub frontier: Frontier,
}

/// Stands for a frontier where two are compared: equal frontiers have equal marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mark(pub u64);

impl Frontier {
    /// The frontier that nothing is within.
    pub const fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// The time of an author.
    pub fn of(&self, author: AuthorId) -> Timestamp {
        self.0.get(&author).copied().unwrap_or_default()
    }

    /// Every author with its time, in order.
    pub fn times(&self) -> impl ExactSizeIterator<Item = (AuthorId, Timestamp)> {
        self.0.iter().map(|(author, time)| (*author, *time))
    }

    /// Whether no author is listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many authors are listed.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether a version with this dot is within.
    pub fn contains(&self, dot: Dot) -> bool {
        dot.time <= self.of(dot.author)
    }

    /// Whether everything in `seen` is within.
    pub fn contains_all(&self, seen: &VersionVector) -> bool {
        seen.authors().iter().all(|(author, time)| *time <= self.of(*author))
    }

    /// Whether a version is a tombstone that need not be kept: it is within, and so is everything that it replaces.
    pub fn collects(&self, version: &Version) -> bool {
        version.is_deleted() && self.contains(version.dot) && self.contains_all(&version.seen)
    }

    /// Whether all that is within this is within `other`.
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|(author, time)| *time <= other.of(*author))
    }

    /// The latest time of any author.
    pub fn latest(&self) -> Timestamp {
        self.0.values().copied().max().unwrap_or_default()
    }

    /// Whether a time lies further ahead of `now` than clocks may differ.
    pub fn is_ahead_of(&self, now: WallTime) -> bool {
        self.latest().is_ahead_of(now)
    }

    /// Moves an author's time forward.
    pub fn raise(&mut self, author: AuthorId, time: Timestamp) {
        if self.of(author) < time {
            self.0.insert(author, time);
        }
    }

    /// Adds what is within `other`: the later time of each author.
    pub fn join(&mut self, other: &Self) {
        other.0.iter().for_each(|(author, time)| self.raise(*author, *time));
    }

    /// What is within both.
    pub fn meet(&self, other: &Self) -> Self {
        let both = self.0.iter().map(|(author, time)| (*author, *time.min(&other.of(*author))));
        both.collect()
    }

    /// The same, but with no time after `latest`.
    pub fn until(&self, latest: Timestamp) -> Self {
        self.0.iter().map(|(author, time)| (*author, *time.min(&latest))).collect()
    }

    /// The authors that have a later time here than in `other`.
    pub fn news_for(&self, other: &Self) -> Self {
        self.times().filter(|(author, time)| other.of(*author) < *time).collect()
    }

    /// Stands for it where it is compared.
    pub fn mark(&self) -> Mark {
        if self.is_empty() {
            return Mark::default();
        }
        let mut hasher = blake3::Hasher::new();
        for (author, time) in self.times() {
            hasher.update(&author.0);
            hasher.update(&time.0.to_le_bytes());
        }
        let hash = hasher.finalize();
        let (front, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Mark(u64::from_le_bytes(*front))
    }
}

impl FromIterator<(AuthorId, Timestamp)> for Frontier {
    fn from_iter<I: IntoIterator<Item = (AuthorId, Timestamp)>>(times: I) -> Self {
        let mut frontier = Self::new();
        times.into_iter().for_each(|(author, time)| frontier.raise(author, time));
        frontier
    }
}

impl fmt::Debug for Frontier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |(author, time): (&AuthorId, &Timestamp)| (author.0[0], time.0);
        let times: Vec<_> = self.0.iter().map(short).collect();
        f.debug_tuple("Frontier").field(&times).finish()
    }
}

#[cfg(test)]
mod tests;
