//! Comparing all fingerprints in rising order: 16 bytes for each version that the offering side holds, whatever the
//! difference. That is the shortest way if the sets are small or share little.
//!
//! The describing side lists its set batch by batch ([`Batch::above`]); the other compares each batch with its own
//! set ([`Comparison`]) and learns what only the other side has and what only it has. It asks for one batch after the
//! other, so neither side holds more than one.

use alloc::vec::Vec;

use crate::limits::MAX_BATCH_FINGERPRINTS;
use crate::model::fingerprint::Fingerprint;
use crate::reconcile::Fingerprints;
use crate::store::StoreError;

/// A part of a set: all fingerprints of the describing side from where the last batch ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In rising order.
    pub fingerprints: Vec<Fingerprint>,
    /// Whether nothing lies above them.
    pub last: bool,
}

impl Batch {
    /// What lies above `after`, as much as may be sent at once. The set may change between batches: what is added then
    /// flows by the feed.
    pub fn above(after: Option<Fingerprint>, set: &impl Fingerprints) -> Result<Self, StoreError> {
        let fingerprints = set.above(after, MAX_BATCH_FINGERPRINTS)?;
        let last = fingerprints.len() < MAX_BATCH_FINGERPRINTS;
        Ok(Self { fingerprints, last })
    }
}

/// What a batch showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// What only the describing side has.
    pub theirs: Vec<Fingerprint>,
    /// What only this side has.
    pub ours: Vec<Fingerprint>,
}

/// Why a batch was refused: the peer does not keep to the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfOrder;

/// The side that compares.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    after: Option<Fingerprint>,
}

impl Comparison {
    /// A comparison of what lies above `after`.
    pub fn after(after: Option<Fingerprint>) -> Self {
        Self { after }
    }

    /// Whether `batch` continues where the last one ended.
    pub fn accepts(&self, batch: &Batch) -> Result<(), OutOfOrder> {
        let first = batch.fingerprints.first().copied();
        let follows = first.is_none() || self.after < first;
        let progresses = batch.last || first.is_some();
        let rising = batch.fingerprints.is_sorted_by(|a, b| a < b);
        if follows && progresses && rising { Ok(()) } else { Err(OutOfOrder) }
    }

    /// Compares a batch that was [accepted](Self::accepts) with this side's set.
    pub fn compare(
        &mut self,
        batch: &Batch,
        set: &impl Fingerprints,
    ) -> Result<Differences, StoreError> {
        let end = if batch.last { None } else { batch.fingerprints.last().copied() };
        let mut differences = Differences::default();
        let mut theirs = batch.fingerprints.iter().copied().peekable();
        let within = |fingerprint: &Fingerprint| end.is_none_or(|end| *fingerprint <= end);
        loop {
            let ours = set.above(self.after, MAX_BATCH_FINGERPRINTS)?;
            let full = ours.len() == MAX_BATCH_FINGERPRINTS;
            let mut beyond = false;
            for own in ours {
                if !within(&own) {
                    beyond = true;
                    break;
                }
                while let Some(other) = theirs.next_if(|other| *other < own) {
                    differences.theirs.push(other);
                }
                if theirs.next_if_eq(&own).is_none() {
                    differences.ours.push(own);
                }
                self.after = Some(own);
            }
            if beyond || !full {
                break;
            }
        }
        differences.theirs.extend(theirs);
        self.after = end.or(self.after);
        Ok(differences)
    }
}
