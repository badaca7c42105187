//! The definitions, in the slowest and plainest way, to compare everything else with. Shares no code with it.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::ops::Bound::{Excluded, Unbounded};

use crate::model::fingerprint::{Digest, Fingerprint};
use crate::reconcile::{Differences, Fingerprints, MAX_SYMBOLS, Symbol};
use crate::store::StoreError;

/// The symbol at `index` of a set.
pub(super) fn symbol(set: &[Fingerprint], index: usize) -> Symbol {
    let inside =
        set.iter().filter(|fingerprint| indexes(**fingerprint, index + 1).contains(&index));
    inside.fold(Symbol::ZERO, |symbol, fingerprint| Symbol {
        sum: symbol.sum.wrapping_add(fingerprint.0),
        check: symbol.check.wrapping_add(hash(*fingerprint)),
        count: symbol.count + 1,
    })
}

/// The indexes of a fingerprint that are below `bound`.
pub(super) fn indexes(fingerprint: Fingerprint, bound: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut index, mut step) = (0, 0);
    while index < bound.min(MAX_SYMBOLS) {
        found.push(index);
        step += 1;
        let draw = split_mix(halves(fingerprint)[1], step) >> 33;
        let passed = |j: usize| (j as u128 + 1) * (j as u128 + 2) * (u128::from(draw) + 1);
        let start = ((index as u128 + 1) * (index as u128 + 2)) << 31;
        index += 1;
        while index < MAX_SYMBOLS && passed(index) <= start {
            index += 1;
        }
    }
    found
}

pub(super) fn digest(set: &[Fingerprint]) -> Digest {
    let sum = set.iter().fold(0u128, |sum, fingerprint| sum.wrapping_add(fingerprint.0));
    Digest { sum, count: set.len() as u64 }
}

/// What only one of two sets has.
pub(super) fn differences(
    theirs: &BTreeSet<Fingerprint>,
    ours: &BTreeSet<Fingerprint>,
) -> Differences {
    Differences {
        theirs: theirs.difference(ours).copied().collect(),
        ours: ours.difference(theirs).copied().collect(),
    }
}

impl Fingerprints for BTreeSet<Fingerprint> {
    fn above(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.range((from, Unbounded)).take(limit).copied().collect())
    }
}

fn hash(fingerprint: Fingerprint) -> u64 {
    let [back, front] = halves(fingerprint);
    split_mix(split_mix(back, 1) ^ front, 1)
}

/// The lower 64 bits, and the upper ones.
fn halves(fingerprint: Fingerprint) -> [u64; 2] {
    let bytes = fingerprint.0.to_le_bytes();
    [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("these are eight")))
}

/// The `step`th output of SplitMix64, as its authors give it.
fn split_mix(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
