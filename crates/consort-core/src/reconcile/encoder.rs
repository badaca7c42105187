//! Symbols of a set from one pass over it: any stretch of them, in memory that does not depend on the set.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use crate::model::fingerprint::{Digest, Fingerprint};
use crate::reconcile::MAX_SYMBOLS;
use crate::reconcile::mapping::Indexes;
use crate::reconcile::symbol::Symbol;

/// A stretch of the symbols of a set, while the set is gone through.
#[derive(Clone, Debug)]
pub struct Block {
    start: usize,
    symbols: Vec<Symbol>,
    digest: Digest,
}

impl Block {
    /// The symbols with these indexes, of an empty set. Takes 32 bytes for each, [`MAX_SYMBOLS`] at the most.
    pub fn new(indexes: Range<usize>) -> Self {
        let end = indexes.end.min(MAX_SYMBOLS);
        let symbols = vec![Symbol::ZERO; end.saturating_sub(indexes.start)];
        Self { start: indexes.start, symbols, digest: Digest::default() }
    }

    /// Takes in a fingerprint of the set.
    pub fn add(&mut self, fingerprint: Fingerprint) {
        self.digest.add(fingerprint);
        let alone = Symbol::of(fingerprint);
        let mut indexes = Indexes::of(fingerprint);
        while let Some(index) = indexes.next_below(self.start + self.symbols.len()) {
            if self.start <= index {
                self.symbols[index - self.start] += alone;
            }
        }
    }

    /// The digest of what was taken in.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The index of the first symbol.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The symbols.
    pub fn into_symbols(self) -> Vec<Symbol> {
        self.symbols
    }
}

impl Extend<Fingerprint> for Block {
    fn extend<T: IntoIterator<Item = Fingerprint>>(&mut self, fingerprints: T) {
        fingerprints.into_iter().for_each(|fingerprint| self.add(fingerprint));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::model;

    proptest! {
        #[test]
        fn a_block_is_a_stretch_of_the_symbols_of_its_set(
            set in prop::collection::vec(any::<u128>().prop_map(Fingerprint), 0..40),
            start in 0usize..100,
            length in 0usize..100,
        ) {
            let mut block = Block::new(start..start + length);
            block.extend(set.iter().copied());
            prop_assert_eq!(block.start(), start);
            prop_assert_eq!(block.digest(), model::digest(&set));
            let symbols = (start..start + length).map(|index| model::symbol(&set, index));
            prop_assert_eq!(block.into_symbols(), symbols.collect::<Vec<_>>());
        }
    }

    #[test]
    fn no_block_goes_beyond_the_last_symbol() {
        assert_eq!(Block::new(MAX_SYMBOLS - 1..usize::MAX).into_symbols().len(), 1);
        assert!(Block::new(MAX_SYMBOLS + 1..MAX_SYMBOLS + 9).into_symbols().is_empty());
    }
}
