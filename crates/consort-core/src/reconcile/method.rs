//! Which way to the difference is the shortest: a pure function of what both sides hold.

use crate::model::fingerprint::Digest;

/// A way to the difference of two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// There is none: the digests are equal.
    Equal,
    /// One side has nothing; the other sends everything it has.
    Everything,
    /// Symbols of the whole set, from the live index.
    Prefix,
    /// Symbols of one range after the other, from one scan.
    Ranges,
    /// All fingerprints of the side that describes its set, in rising order.
    Sorted,
}

/// The bytes of a fingerprint, and of a symbol with what its count takes on average.
const FINGERPRINT_BYTES: u64 = 16;
const SYMBOL_BYTES: u64 = 26;

/// The symbols that are asked for first: below a kilobyte, and enough for some 18 differences.
pub const FIRST_SYMBOLS: usize = 32;

impl Method {
    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Equal => "equal",
            Self::Everything => "everything",
            Self::Prefix => "symbols",
            Self::Ranges => "ranges",
            Self::Sorted => "fingerprints",
        }
    }

    /// The method to begin with: `theirs` is what the describing side holds, `ours` what the comparing side holds, and
    /// `prefix` how many symbols both live indexes have. That the counts differ tells the least number of differences.
    pub fn choose(theirs: Digest, ours: Digest, prefix: usize) -> Self {
        if theirs == ours {
            Self::Equal
        } else if theirs.count == 0 || ours.count == 0 {
            Self::Everything
        } else {
            Self::cheapest(theirs.count, theirs.count.abs_diff(ours.count), 0, prefix)
        }
    }

    /// The method that takes the fewest bytes from here on, if about so many differences are to be found, the
    /// describing side holds `described` fingerprints and has sent `sent` of at most `prefix` symbols.
    pub fn cheapest(described: u64, differences: u64, sent: usize, prefix: usize) -> Self {
        let symbols = symbols_for(differences).max(FIRST_SYMBOLS);
        let ahead = symbols.saturating_sub(sent) as u64;
        if described.saturating_mul(FINGERPRINT_BYTES) <= ahead.saturating_mul(SYMBOL_BYTES) {
            Self::Sorted
        } else if symbols <= prefix {
            Self::Prefix
        } else {
            Self::Ranges
        }
    }
}

/// How many symbols a difference usually takes: measured, and near the published 1.35 d for large ones.
pub fn symbols_for(differences: u64) -> usize {
    let symbols = differences.saturating_mul(136) / 100 + 3 * differences.isqrt() / 2;
    usize::try_from(symbols).unwrap_or(usize::MAX)
}

/// How many symbols to have next, with `taken` of them taken, if there are about so many differences.
///
/// As many as that usually takes. If it is far, somewhat less, since the estimate is the better the more symbols it is
/// from; and a sixteenth more if those were not enough. A request too many costs less than symbols in vain.
pub fn symbols_next(taken: usize, differences: u64) -> usize {
    let target = symbols_for(differences).max(FIRST_SYMBOLS);
    if taken == 0 {
        target
    } else if 4 * taken < target {
        (target - target / 8).min(16 * taken)
    } else if taken < target {
        target
    } else {
        taken + taken / 16 + 8
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first(theirs: u64, ours: u64) -> Method {
        let digest = |count, sum| Digest { sum, count };
        Method::choose(digest(theirs, 1), digest(ours, 2), 4096)
    }

    #[test]
    fn equal_digests_need_no_comparison() {
        let digest = Digest { sum: 7, count: 1_000_000 };
        assert_eq!(Method::choose(digest, digest, 4096), Method::Equal);
        assert_eq!(Method::choose(Digest::default(), Digest::default(), 4096), Method::Equal);
    }

    #[test]
    fn whoever_has_nothing_gets_everything() {
        assert_eq!(first(0, 1_000_000), Method::Everything);
        assert_eq!(first(1, 0), Method::Everything);
    }

    #[test]
    fn small_sets_are_sorted() {
        assert_eq!(first(52, 50), Method::Sorted);
        assert_eq!(first(53, 50), Method::Prefix);
    }

    #[test]
    fn sets_whose_sizes_say_that_they_share_little_are_sorted() {
        assert_eq!(first(100_000, 200_000), Method::Sorted);
        assert_eq!(first(1_000_000, 500_000), Method::Sorted);
        assert_eq!(first(1_000_000, 600_000), Method::Ranges);
    }

    #[test]
    fn sets_of_about_the_same_size_begin_with_the_live_index() {
        assert_eq!(first(1_000_000, 1_000_000), Method::Prefix);
        assert_eq!(first(1_000_000, 1_002_900), Method::Prefix);
        assert_eq!(first(1_000_000, 1_003_000), Method::Ranges);
    }

    #[test]
    fn symbols_that_were_sent_are_not_paid_for_again() {
        assert_eq!(Method::cheapest(1_000, 500, 0, 4096), Method::Sorted);
        assert_eq!(Method::cheapest(1_000, 500, 200, 4096), Method::Prefix);
    }

    proptest! {
        #[test]
        fn what_is_asked_for_next_is_more(taken in 0usize..1 << 16, differences: u64) {
            prop_assert!(taken < symbols_next(taken, differences));
        }
    }
}
