//! One coded symbol, and the bytes of a run of them.
//!
//! # Why these three fields
//!
//! - **`sum`** adds fingerprints modulo 2¹²⁸, as [`Digest`] does: symbol 0 *is* the digest. The paper uses exclusive or,
//!   which does as well between friends. But among 193 versions there always are some whose fingerprints and hashes have an
//!   exclusive or of zero, and linear algebra finds them at once; for sums nothing so cheap is known.
//! - **`check`** adds a 64-bit hash of each fingerprint, to tell a symbol that holds one fingerprint from a mixture whose
//!   count happens to be one. A comparison looks at no more than some million candidates, so one in 2⁴⁰ comparisons
//!   or fewer is misled; it would ask for a version that nobody has, and the next check would heal it. The hash has no key
//!   of its own: fingerprints are keyed already, and who knows that key, a member, would know this one too. It must
//!   not be linear, and is not.
//! - **`count`** is signed, since symbols are subtracted from each other.

use alloc::vec::Vec;
use core::ops::{AddAssign, Neg, SubAssign};

use crate::encoding::{DecodeError, Reader, Writer};
use crate::model::fingerprint::{Digest, Fingerprint};
use crate::random::Random;
use crate::reconcile::{MAX_RUN_SYMBOLS, MAX_SET_FINGERPRINTS, MAX_SYMBOLS};

/// The sum of some fingerprints of a set, or the difference of two such sums. All arithmetic wraps around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// The sum of the fingerprints.
    pub sum: u128,
    /// The sum of their hashes.
    pub check: u64,
    /// How many they are.
    pub count: i64,
}

/// On which side a fingerprint of a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that describes its set. Its symbols count as positive.
    Theirs,
    /// The side that compares.
    Ours,
}

impl Symbol {
    /// What nothing adds up to.
    pub const ZERO: Self = Self { sum: 0, check: 0, count: 0 };

    /// That of one fingerprint.
    pub fn of(fingerprint: Fingerprint) -> Self {
        Self { sum: fingerprint.0, check: hash(fingerprint), count: 1 }
    }

    /// The only fingerprint that this difference holds, if it is one.
    pub fn only(&self) -> Option<(Fingerprint, Side)> {
        let (positive, side) = match self.count {
            1 => (*self, Side::Theirs),
            -1 => (-*self, Side::Ours),
            _ => return None,
        };
        let fingerprint = Fingerprint(positive.sum);
        (hash(fingerprint) == positive.check).then_some((fingerprint, side))
    }

    /// The digest of a set whose symbol 0 this is.
    pub(crate) fn digest(&self) -> Digest {
        Digest { sum: self.sum, count: self.count.unsigned_abs() }
    }
}

impl Side {
    /// `symbol`, on this side of a difference.
    pub(crate) fn of(self, symbol: Symbol) -> Symbol {
        match self {
            Self::Theirs => symbol,
            Self::Ours => -symbol,
        }
    }
}

impl AddAssign for Symbol {
    fn add_assign(&mut self, other: Self) {
        self.sum = self.sum.wrapping_add(other.sum);
        self.check = self.check.wrapping_add(other.check);
        self.count = self.count.wrapping_add(other.count);
    }
}

impl SubAssign for Symbol {
    fn sub_assign(&mut self, other: Self) {
        *self += -other;
    }
}

impl Neg for Symbol {
    type Output = Self;

    fn neg(self) -> Self {
        Self {
            sum: self.sum.wrapping_neg(),
            check: self.check.wrapping_neg(),
            count: self.count.wrapping_neg(),
        }
    }
}

/// Mixes the two halves. Each step of SplitMix64's output is a bijection that is far from linear.
fn hash(fingerprint: Fingerprint) -> u64 {
    let half = |shift| (fingerprint.0 >> shift) & u128::from(u64::MAX);
    let half = |shift| u64::try_from(half(shift)).expect("no more than 64 bits are left");
    Random::new(Random::new(half(0)).next_u64() ^ half(64)).next_u64()
}

/// Consecutive symbols of a set, as they are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// How many fingerprints the set has.
    pub total: u64,
    /// The index of the first symbol.
    pub start: usize,
    /// The symbols.
    pub symbols: Vec<Symbol>,
}

impl Run {
    /// The index after the last symbol.
    pub fn end(&self) -> usize {
        self.start + self.symbols.len()
    }

    /// Appends the bytes: `total`, `start`, how many symbols, then each: sum (16), check (8), the count as a signed
    /// difference from what is to be expected of a set of `total`. That is one byte, seldom two.
    pub fn encode(&self, to: &mut Vec<u8>) {
        encode_run(self.total, self.start, self.symbols.iter(), to);
    }

    /// Reads them back. Nothing in it can be what no set has; whether a set has it all is for the decoder to find.
    pub fn decode(from: &mut Reader<'_>) -> Result<Self, DecodeError> {
        decode_run(from, MAX_RUN_SYMBOLS)
    }
}

/// Appends the bytes of a run.
pub(crate) fn encode_run<'a>(
    total: u64,
    start: usize,
    symbols: impl ExactSizeIterator<Item = &'a Symbol>,
    to: &mut Vec<u8>,
) {
    let mut to = Writer(to);
    to.varint(total);
    to.count(start);
    to.count(symbols.len());
    for (index, symbol) in (start..).zip(symbols) {
        to.u128(symbol.sum);
        to.u64(symbol.check);
        to.signed(symbol.count - expected_count(index, total));
    }
}

/// Reads a run of at most `limit` symbols.
pub(crate) fn decode_run(from: &mut Reader<'_>, limit: usize) -> Result<Run, DecodeError> {
    let total = from.varint("fingerprints of a set")?;
    if MAX_SET_FINGERPRINTS < total {
        return Err(DecodeError::Invalid { what: "fingerprints of a set" });
    }
    let start = from.varint("index of a symbol")?;
    let start = usize::try_from(start).ok().filter(|start| *start <= MAX_SYMBOLS);
    let start = start.ok_or(DecodeError::Invalid { what: "index of a symbol" })?;
    let limit = limit.min(MAX_SYMBOLS - start);
    let count = from.count(LEAST_SYMBOL_BYTES, limit, "symbols")?;
    let symbols = (start..start + count).map(|index| {
        let (sum, check) = (from.u128("symbol")?, from.u64("symbol")?);
        let beyond = from.signed("count of a symbol")?;
        let count = expected_count(index, total).checked_add(beyond);
        let possible = |count: &i64| u64::try_from(*count).is_ok_and(|count| count <= total);
        let count = count.filter(possible);
        Ok(Symbol { sum, check, count: count.ok_or(DecodeError::Invalid { what: "symbol" })? })
    });
    Ok(Run { total, start, symbols: symbols.collect::<Result<_, _>>()? })
}

/// What a symbol takes at least.
const LEAST_SYMBOL_BYTES: usize = 16 + 8 + 1;

/// How many of `total` fingerprints are in the symbol at `index`, on average, rounded down.
fn expected_count(index: usize, total: u64) -> i64 {
    let expected = 2 * total / (index as u64 + 2);
    i64::try_from(expected).expect("no set is believed to hold so many")
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn any_run() -> impl Strategy<Value = Run> {
        let symbol = any::<(u128, u64, prop::sample::Index)>();
        let symbols = prop::collection::vec(symbol, 0..20);
        (0..=MAX_SET_FINGERPRINTS, 0..MAX_SYMBOLS - 20, symbols).prop_map(
            |(total, start, symbols)| {
                let end = usize::try_from(total).unwrap() + 1;
                let symbols = symbols.into_iter().map(|(sum, check, count)| Symbol {
                    sum,
                    check,
                    count: count.index(end) as i64,
                });
                Run { total, start, symbols: symbols.collect() }
            },
        )
    }

    fn encoded(run: &Run) -> Vec<u8> {
        let mut bytes = Vec::new();
        run.encode(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn a_run_comes_back_from_its_bytes(run in any_run()) {
            let bytes = encoded(&run);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(Run::decode(&mut reader), Ok(run));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            run in any_run(),
            place in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let mut bytes = encoded(&run);
            let place = place.index(bytes.len());
            bytes[place] = value;
            let mut reader = Reader::new(&bytes);
            if let Ok(run) = Run::decode(&mut reader) {
                prop_assert_eq!(&encoded(&run), &bytes[..bytes.len() - reader.remaining()]);
            }
        }

        #[test]
        fn symbols_add_up_in_any_order(a: u128, b: u128) {
            let [a, b] = [a, b].map(|value| Symbol::of(Fingerprint(value)));
            let (mut ab, mut ba) = (a, b);
            ab += b;
            ba += a;
            prop_assert_eq!(ab, ba);
            ab -= a;
            prop_assert_eq!(ab, b);
        }

        #[test]
        fn one_fingerprint_shows_and_a_mixture_does_not(a: u128, b: u128, c: u128) {
            let [a, b, c] = [a, b, c].map(Fingerprint);
            prop_assert_eq!(Symbol::of(a).only(), Some((a, Side::Theirs)));
            prop_assert_eq!((-Symbol::of(a)).only(), Some((a, Side::Ours)));
            let mut mixture = Symbol::of(a);
            mixture -= Symbol::of(b);
            mixture += Symbol::of(c);
            let trivial = a == b || b == c;
            prop_assert!(mixture.only().is_none() || trivial);
        }
    }

    #[test]
    fn the_bytes_of_a_run_never_change() {
        let one = Symbol::of(Fingerprint(0x0123_4567_89ab_cdef_0011_2233_4455_6677));
        let mut two = one;
        two += Symbol::of(Fingerprint(1));
        let bytes = encoded(&Run { total: 2, start: 0, symbols: vec![two, one, Symbol::ZERO] });
        assert_eq!(bytes, BYTES_OF_A_RUN);
    }
    #[rustfmt::skip]
    const BYTES_OF_A_RUN: &[u8] = &[
        // total, start, count
        0x02, 0x00, 0x03,
        // sum of both
        0x78, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
        // check of both
        0x9b, 0x05, 0xb7, 0x7c, 0x81, 0xde, 0xc9, 0x6e,
        // two, and two expected
        0x00,
        // sum of one
        0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
        // check of one
        0x7d, 0xa4, 0x7d, 0x08, 0x79, 0x33, 0x88, 0x10,
        // one, and one expected
        0x00,
        // sum of none
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        // check of none
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        // none, and one expected
        0x01,
    ];

    #[test]
    fn counts_that_no_set_has_are_refused() {
        let refused = |total, start, beyond: i64| {
            let mut bytes = Vec::new();
            let mut to = Writer(&mut bytes);
            to.varint(total);
            to.varint(start);
            to.count(1);
            to.raw(&[0; 24]);
            to.signed(beyond);
            Run::decode(&mut Reader::new(&bytes)).is_err()
        };
        assert!(!refused(10, 0, 0));
        assert!(!refused(10, 0, -10));
        assert!(refused(10, 0, -11));
        assert!(refused(10, 0, 1));
        assert!(refused(10, 5, i64::MAX));
        assert!(refused(10, 5, i64::MIN));
        assert!(refused(MAX_SET_FINGERPRINTS + 1, 0, 0));
        assert!(!refused(10, MAX_SYMBOLS as u64 - 1, 0));
        assert!(refused(10, MAX_SYMBOLS as u64, 0));
        assert!(refused(10, u64::MAX, 0));
    }
}
