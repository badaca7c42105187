//! The live index: the first symbols of a replica's set, kept in step with every commit.
//!
//! A version that comes or goes changes about 2 ln(symbols) of them: 16 of 4,096, 21 of 65,536. How many there are
//! follows the set ([`Index::length_for`]); it grows twice, by a scan of the set.
//!
//! A clone is a moment of the set at next to no cost: pages are shared until one of the two changes. So a
//! comparison keeps the index it began with, and commits go on meanwhile.
//!
//! Whoever persists an index ([`Index::encode`]) and finds it older than the replica can bring it up to date by adding
//! and removing what changed since; its digest must be that of the replica then.

use alloc::sync::Arc;
use alloc::vec::Vec;

use thiserror::Error;

use crate::encoding::{DecodeError, Reader};
use crate::model::fingerprint::{Digest, Fingerprint};
use crate::reconcile::MAX_SYMBOLS;
use crate::reconcile::encoder::Block;
use crate::reconcile::mapping::Indexes;
use crate::reconcile::symbol::{self, Run, Symbol};

/// The symbols of the smallest index: 8 KiB.
pub const LEAST_INDEX_SYMBOLS: usize = 1 << 8;
/// How many times as many symbols the next larger index has.
const GROWTH: usize = 1 << 4;

const _: () = assert!(LEAST_INDEX_SYMBOLS * GROWTH * GROWTH == MAX_SYMBOLS);

/// The symbols of a page, which is copied when it changes while somebody else still reads it: 4 KiB.
const PAGE_SYMBOLS: usize = 128;

/// The bytes of the hash that ends a persisted index.
const HASH_BYTES: usize = 16;

/// The first symbols of a set that changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// All full but the last.
    pages: Vec<Arc<[Symbol]>>,
    symbols: usize,
}

/// Bytes are not those of an index. It can be made anew from the fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the bytes of the index are damaged; it is to be made anew from the fingerprints")]
pub struct Damaged;

impl From<DecodeError> for Damaged {
    fn from(_: DecodeError) -> Self {
        Self
    }
}

impl Index {
    /// The index of an empty set.
    pub fn new() -> Self {
        Self::with_symbols(LEAST_INDEX_SYMBOLS)
    }

    /// The index of an empty set, with so many symbols, one at least and [`MAX_SYMBOLS`] at the most.
    pub fn with_symbols(symbols: usize) -> Self {
        Self::of(Block::new(0..symbols.max(1)))
    }

    /// The index of the set that a block of the symbols from 0 on was made of.
    ///
    /// # Panics
    /// If the block begins elsewhere, or is empty.
    pub fn of(block: Block) -> Self {
        assert!(block.start() == 0, "an index begins with the first symbol");
        Self::of_symbols(&block.into_symbols())
    }

    /// The index of a set, from one pass over it; `count` says about how many it has.
    pub fn of_set(count: u64, set: impl IntoIterator<Item = Fingerprint>) -> Self {
        let mut block = Block::new(0..Self::length_for(count));
        block.extend(set);
        Self::of(block)
    }

    /// How many symbols suit a set of so many: 256, 4,096 or 65,536, and up to that at least an eighth of it, since
    /// with more differences than a fifteenth, a scan matters little beside what they cost. So it is made anew twice in
    /// its life, by a scan that is short.
    pub fn length_for(count: u64) -> usize {
        let mut length = LEAST_INDEX_SYMBOLS;
        while length < MAX_SYMBOLS && (length as u64) < count.div_ceil(8) {
            length *= GROWTH;
        }
        length
    }

    /// How many symbols there are.
    pub fn symbols(&self) -> usize {
        self.symbols
    }

    /// The digest of the set.
    pub fn digest(&self) -> Digest {
        self.pages[0][0].digest()
    }

    /// Takes in a version that became current.
    pub fn add(&mut self, fingerprint: Fingerprint) {
        self.change(fingerprint, Symbol::of(fingerprint));
    }

    /// Takes out a version that was replaced.
    pub fn remove(&mut self, fingerprint: Fingerprint) {
        self.change(fingerprint, -Symbol::of(fingerprint));
    }

    /// Whether the set has outgrown it: then it is to be made anew, [of the set](Self::of_set).
    pub fn is_short(&self) -> bool {
        self.symbols < Self::length_for(self.digest().count)
    }

    /// The symbols.
    pub fn iter(&self) -> impl Iterator<Item = &Symbol> + Clone + use<'_> {
        self.from(0, self.symbols)
    }

    /// The symbols from `start` on, at most `limit`, as they are sent.
    pub fn run(&self, start: usize, limit: usize) -> Run {
        let symbols = self.from(start, limit).copied().collect();
        Run { total: self.digest().count, start, symbols }
    }

    /// Appends the bytes to persist: a [`Run`] of all symbols and the front of its BLAKE3 hash.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let start = to.len();
        let symbols: Vec<&Symbol> = self.iter().collect();
        symbol::encode_run(self.digest().count, 0, symbols.into_iter(), to);
        let hash = blake3::hash(&to[start..]);
        to.extend_from_slice(&hash.as_bytes()[..HASH_BYTES]);
    }

    /// Reads them back, if they are whole. Whether they are of the set in question, its digest tells.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damaged> {
        let end = bytes.len().checked_sub(HASH_BYTES).ok_or(Damaged)?;
        let (bytes, hash) = bytes.split_at(end);
        if blake3::hash(bytes).as_bytes()[..HASH_BYTES] != *hash {
            return Err(Damaged);
        }
        let mut from = Reader::new(bytes);
        let run = symbol::decode_run(&mut from, MAX_SYMBOLS)?;
        from.finish()?;
        if run.start != 0 || run.symbols.is_empty() {
            return Err(Damaged);
        }
        Ok(Self::of_symbols(&run.symbols))
    }

    /// The symbols from `start` on, at most `limit`.
    pub(crate) fn from(
        &self,
        start: usize,
        limit: usize,
    ) -> impl Iterator<Item = &Symbol> + Clone + use<'_> {
        let pages = self.pages.iter().skip(start / PAGE_SYMBOLS);
        pages.flat_map(|page| page.iter()).skip(start % PAGE_SYMBOLS).take(limit)
    }

    fn of_symbols(symbols: &[Symbol]) -> Self {
        assert!(!symbols.is_empty(), "symbol 0 tells what the set is");
        Self {
            pages: symbols.chunks(PAGE_SYMBOLS).map(Arc::from).collect(),
            symbols: symbols.len(),
        }
    }

    fn change(&mut self, fingerprint: Fingerprint, by: Symbol) {
        let mut indexes = Indexes::of(fingerprint);
        while let Some(index) = indexes.next_below(self.symbols) {
            let page = Arc::make_mut(&mut self.pages[index / PAGE_SYMBOLS]);
            page[index % PAGE_SYMBOLS] += by;
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::random::Random;
    use crate::reconcile::model;

    fn fingerprints(count: usize, seed: u64) -> Vec<Fingerprint> {
        let mut random = Random::new(seed);
        let mut half = || u128::from(random.next_u64());
        (0..count).map(|_| Fingerprint(half() << 64 | half())).collect()
    }

    fn index_of(set: &[Fingerprint]) -> Index {
        let mut index = Index::new();
        set.iter().for_each(|fingerprint| index.add(*fingerprint));
        index
    }

    fn encoded(index: &Index) -> Vec<u8> {
        let mut bytes = Vec::new();
        index.encode(&mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_index_in_step_is_the_index_of_the_set(
            changes in prop::collection::vec((0usize..30, any::<bool>()), 0..60),
        ) {
            let all = fingerprints(30, 1);
            let (mut index, mut set) = (Index::new(), BTreeSet::new());
            for (place, add) in changes {
                let fingerprint = all[place];
                if add && set.insert(fingerprint) {
                    index.add(fingerprint);
                } else if !add && set.remove(&fingerprint) {
                    index.remove(fingerprint);
                }
            }
            let set: Vec<Fingerprint> = set.into_iter().collect();
            prop_assert_eq!(&index, &index_of(&set));
            prop_assert_eq!(index.digest(), model::digest(&set));
            let run = index.run(100, 50);
            let symbols: Vec<Symbol> = (100..150).map(|index| model::symbol(&set, index)).collect();
            prop_assert_eq!(run, Run { total: set.len() as u64, start: 100, symbols });
        }

        #[test]
        fn an_index_that_was_changed_on_its_way_is_refused(
            place in any::<prop::sample::Index>(),
            by in 1u8..,
        ) {
            let index = index_of(&fingerprints(9, 1));
            let mut bytes = encoded(&index);
            let place = place.index(bytes.len());
            bytes[place] ^= by;
            prop_assert_eq!(Index::decode(&bytes), Err(Damaged));
            prop_assert_eq!(Index::decode(&bytes[..place]), Err(Damaged));
        }
    }

    #[test]
    fn an_index_comes_back_from_its_bytes() {
        let index = index_of(&fingerprints(100, 1));
        let bytes = encoded(&index);
        assert_eq!(Index::decode(&bytes), Ok(index));
        assert!(bytes.len() < 26 * LEAST_INDEX_SYMBOLS, "{}", bytes.len());
    }

    #[test]
    fn an_index_that_its_set_has_outgrown_is_short_until_it_is_made_anew() {
        let set = fingerprints(LEAST_INDEX_SYMBOLS * 8 + 1, 1);
        let mut index = index_of(&set[..set.len() - 1]);
        assert!(!index.is_short());
        index.add(*set.last().expect("there are thousands"));
        assert!(index.is_short());
        let longer = Index::of_set(set.len() as u64, set.iter().copied());
        assert!(!longer.is_short());
        assert_eq!(longer.run(0, LEAST_INDEX_SYMBOLS), index.run(0, LEAST_INDEX_SYMBOLS));
        // One that is longer than it has to be is as good.
        let fewer = Index::of_set(set.len() as u64, set[..9].iter().copied());
        assert!(!fewer.is_short());
    }

    #[test]
    fn a_clone_stays_the_moment_that_it_was_made_in() {
        let set = fingerprints(50, 1);
        let mut index = index_of(&set[..40]);
        let moment = index.clone();
        set[40..].iter().for_each(|fingerprint| index.add(*fingerprint));
        assert_eq!(moment, index_of(&set[..40]));
        assert_eq!(index, index_of(&set));
    }

    #[test]
    fn a_version_changes_some_twenty_symbols() {
        let set = fingerprints(1000, 1);
        let changes = |symbols| {
            let all = set.iter().map(|fingerprint| {
                let mut indexes = Indexes::of(*fingerprint);
                core::iter::from_fn(|| indexes.next_below(symbols)).count()
            });
            all.sum::<usize>()
        };
        // 2 / 2 + 2 / 3 + 2 / 4 + ... is 10.3 and 21.3.
        assert!((10_100..10_500).contains(&changes(LEAST_INDEX_SYMBOLS)));
        assert!((21_000..21_600).contains(&changes(MAX_SYMBOLS)));
    }

    #[test]
    fn lengths_follow_the_set_within_bounds() {
        for (count, symbols) in [
            (0, 256),
            (2048, 256),
            (2049, 4096),
            (32_768, 4096),
            (32_769, 65_536),
            (1_000_000, 65_536),
            (u64::MAX, 65_536),
        ] {
            assert_eq!(Index::length_for(count), symbols, "{count}");
        }
    }
}
