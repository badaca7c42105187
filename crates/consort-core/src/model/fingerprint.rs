//! Fingerprints of entries, and digests of whole replicas: what two replicas compare instead of their contents.

use alloc::vec::Vec;
use core::fmt;

use crate::model::canonical;
use crate::model::version::Entry;

/// The secret of a dataset that keys its fingerprints. Sums of hashes can be forged by whoever can choose the hashed
/// values and compute the hashes; outsiders lack the key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FingerprintKey(pub [u8; 32]);

impl fmt::Debug for FingerprintKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FingerprintKey(secret)")
    }
}

/// 128 bits that stand for one entry: the front half of the keyed BLAKE3 hash of its canonical bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub u128);

impl Fingerprint {
    /// The fingerprint of an entry.
    pub fn of(entry: &Entry, key: &FingerprintKey) -> Self {
        let mut bytes = Vec::with_capacity(256);
        canonical::encode_entry(entry, &mut bytes);
        Self::of_canonical(&bytes, key)
    }

    /// The fingerprint of an entry whose canonical bytes are at hand.
    pub fn of_canonical(bytes: &[u8], key: &FingerprintKey) -> Self {
        let hash = blake3::keyed_hash(&key.0, bytes);
        let (half, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
        Self(u128::from_le_bytes(*half))
    }
}

/// What a replica holds, in 24 bytes: the sum of its current versions' fingerprints modulo 2¹²⁸, and their count.
/// Kept up to date by every change, so comparing two replicas needs no scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Digest {
    /// The sum of the fingerprints, modulo 2¹²⁸.
    pub sum: u128,
    /// How many there are.
    pub count: u64,
}

impl Digest {
    /// Takes in a version that became current.
    pub fn add(&mut self, fingerprint: Fingerprint) {
        self.sum = self.sum.wrapping_add(fingerprint.0);
        self.count += 1;
    }

    /// What has to be added to `other` to get this: equal for equal differences of two sets.
    pub fn minus(&self, other: &Self) -> Self {
        let count = self.count.wrapping_sub(other.count);
        Self { sum: self.sum.wrapping_sub(other.sum), count }
    }

    /// Takes out a version that was replaced.
    pub fn remove(&mut self, fingerprint: Fingerprint) {
        self.sum = self.sum.wrapping_sub(fingerprint.0);
        self.count -= 1;
    }
}
