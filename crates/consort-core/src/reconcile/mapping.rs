//! Which symbols a fingerprint is in: a pseudo-random sequence that the fingerprint alone decides, with each index *i*
//! in it with probability 2/(i+2), independently of the others.
//!
//! # From one index to the next, exactly and in integers
//!
//! If *i* is in the sequence, all of *i*+1 to *j* are left out with probability
//! (i+1)/(i+3) · (i+2)/(i+4) · … · j/(j+2), which telescopes to (i+1)(i+2) / ((j+1)(j+2)). So for a number *r* drawn
//! uniformly from 1 to 2³¹, the next index is the least *j* for which that falls below r/2³¹:
//! (j+1)(j+2) > N where N = ⌊2³¹ (i+1)(i+2) / r⌋. The least such *j* is the greatest *j* with j(j+1) ≤ N, and
//! that is (⌊√(4N+1)⌋ − 1) / 2. The reference implementation approximates the same in floating point.

use crate::model::fingerprint::Fingerprint;
use crate::random::Random;
use crate::reconcile::MAX_SYMBOLS;

/// The indexes that are still to come, in rising order.
#[derive(Clone, Debug)]
pub struct Indexes {
    random: Random,
    next: usize,
}

impl Indexes {
    /// Those of a fingerprint. The first is 0.
    pub fn of(fingerprint: Fingerprint) -> Self {
        let front = u64::try_from(fingerprint.0 >> 64).expect("half of the bits are left");
        Self { random: Random::new(front), next: 0 }
    }

    /// The next index, if it is below `bound`; if not, it is kept for a higher bound. Indexes from [`MAX_SYMBOLS`] on
    /// do not exist.
    pub fn next_below(&mut self, bound: usize) -> Option<usize> {
        let index = self.next;
        if bound.min(MAX_SYMBOLS) <= index {
            return None;
        }
        self.next = successor(index, self.random.next_u64() >> 33);
        Some(index)
    }
}

/// The index after `index` for a draw from 0 to 2³¹ − 1; [`MAX_SYMBOLS`] if it is beyond all symbols.
fn successor(index: usize, draw: u64) -> usize {
    const { assert!((MAX_SYMBOLS as u64) * (MAX_SYMBOLS as u64 + 1) < 1 << 33, "no overflow") };
    let index = index as u64;
    let bound = (((index + 1) * (index + 2)) << 31) / (draw + 1);
    let end = MAX_SYMBOLS as u64;
    let next = if end * (end + 1) <= bound { end } else { ((4 * bound + 1).isqrt() - 1) / 2 };
    usize::try_from(next).expect("it is at most the number of symbols")
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::model;

    fn indexes(fingerprint: u128, bound: usize) -> Vec<usize> {
        let mut indexes = Indexes::of(Fingerprint(fingerprint));
        core::iter::from_fn(|| indexes.next_below(bound)).collect()
    }

    #[test]
    fn these_sequences_never_change() {
        assert_eq!(indexes(0, MAX_SYMBOLS), VECTOR_0);
        assert_eq!(indexes(u128::MAX, MAX_SYMBOLS), VECTOR_MAX);
        assert_eq!(indexes(0x0123_4567_89ab_cdef_0011_2233_4455_6677, MAX_SYMBOLS), VECTOR_MIXED);
    }
    const VECTOR_0: &[usize] = &[
        0, 1, 3, 27, 28, 89, 157, 379, 432, 874, 896, 1424, 1633, 2257, 3030, 3601, 5002, 7155,
        8182, 18087, 19687, 21286, 26198, 27173, 47358, 50915,
    ];
    const VECTOR_MAX: &[usize] =
        &[0, 1, 2, 6, 10, 13, 15, 16, 34, 39, 366, 3057, 3405, 40778, 43833];
    const VECTOR_MIXED: &[usize] =
        &[0, 4, 5, 14, 18, 278, 981, 1155, 1579, 1600, 4129, 4607, 7146, 9571, 12423, 26550, 28910];

    proptest! {
        #[test]
        fn a_sequence_is_what_the_definition_says(fingerprint: u128, bound in 0usize..2000) {
            let slow = model::indexes(Fingerprint(fingerprint), bound);
            prop_assert_eq!(indexes(fingerprint, bound), slow);
        }

        #[test]
        fn a_step_goes_forward(index in 0usize..MAX_SYMBOLS, draw in 0u64..1 << 31) {
            let next = successor(index, draw);
            prop_assert!(index < next && next <= MAX_SYMBOLS);
        }

        #[test]
        fn a_sequence_can_be_continued(fingerprint: u128, bound in 0usize..=MAX_SYMBOLS) {
            let mut indexes_to = Indexes::of(Fingerprint(fingerprint));
            let mut all = Vec::new();
            for bound in [bound, MAX_SYMBOLS, usize::MAX] {
                all.extend(core::iter::from_fn(|| indexes_to.next_below(bound)));
            }
            prop_assert_eq!(all, indexes(fingerprint, MAX_SYMBOLS));
        }
    }

    #[test]
    fn the_least_and_the_greatest_steps_are_exact() {
        const GREATEST: u64 = (1 << 31) - 1;
        for index in [0, 1, MAX_SYMBOLS - 2, MAX_SYMBOLS - 1] {
            assert_eq!(successor(index, GREATEST), index + 1);
        }
        assert_eq!(successor(0, 0), MAX_SYMBOLS - 1);
        assert_eq!(successor(1, 0), MAX_SYMBOLS);
        assert_eq!(successor(MAX_SYMBOLS - 1, 0), MAX_SYMBOLS);
        // 1 is left out with a probability of a third: r / 2³¹ ≤ 1/3.
        assert_eq!(successor(0, (1 << 31) / 3), 1);
        assert_eq!(successor(0, (1 << 31) / 3 - 1), 2);
    }

    #[test]
    fn an_index_is_hit_as_often_as_it_should_be() {
        const SAMPLES: u64 = 40_000;
        let mut random = Random::new(1);
        let mut hits = vec![0u64; 1024];
        for _ in 0..SAMPLES {
            for index in indexes(u128::from(random.next_u64()) << 64, hits.len()) {
                hits[index] += 1;
            }
        }
        assert_eq!(hits[0], SAMPLES);
        for (index, hits) in (0..).zip(hits) {
            let expected = 2 * SAMPLES / (index + 2);
            // Six standard deviations at the most; the seed is fixed.
            assert!(hits.abs_diff(expected) <= 6 * expected.isqrt(), "{index}: {hits}");
        }
    }
}
