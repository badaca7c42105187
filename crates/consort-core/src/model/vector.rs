//! Version vectors with exceptions: exactly which versions of a key one version has seen.
//!
//! A plain vector ("everything of author a up to time t") says too much as soon as an author writes beside a version
//! that it leaves alone: whoever then replaces the later one would silently replace the earlier one too, and a
//! conflict copy would vanish that nobody looked at. So a vector names such versions as exceptions. Unions of these
//! sets are exact, and their size is that of the concurrent versions, not of the history (Malkhi and Terry, "Concise
//! Version Vectors in WinFS", 2005).

use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use thiserror::Error;

use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, parse_hex};

/// A version's identity: who wrote it, and when by the author's own clock, which never repeats.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    /// Who wrote it.
    pub author: AuthorId,
    /// When, strictly increasing per author, and never zero: where a time is listed for an author, zero is none.
    pub time: Timestamp,
}

impl fmt::Display for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:016x}", self.author, self.time.0)
    }
}

/// The text is no version's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a version is written as 32 hexadecimal digits, a hyphen and 16 more")]
pub struct ParseDotError;

impl FromStr for Dot {
    type Err = ParseDotError;

    fn from_str(text: &str) -> Result<Self, ParseDotError> {
        let (author, time) = text.split_once('-').ok_or(ParseDotError)?;
        let author = author.parse().map_err(|_| ParseDotError)?;
        let time = u64::from_be_bytes(parse_hex(time).map_err(|_| ParseDotError)?);
        Ok(Self { author, time: Timestamp(time) })
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.author.short(), self.time)
    }
}

/// A set of versions of one key. What its members have seen is in it as well, unless its author had forgotten that
/// when it took for granted that it has seen all that it wrote (see [`covers`](crate::model::version::Version::covers)).
///
/// It holds a dot if the dot's author is listed with a time not before it, and the dot is no exception.
/// Both lists are sorted, hold no element twice and no time zero, and every exception lies within its author's time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionVector {
    upto: Vec<(AuthorId, Timestamp)>,
    except: Vec<Dot>,
}

impl VersionVector {
    /// The empty set.
    pub const fn new() -> Self {
        Self { upto: Vec::new(), except: Vec::new() }
    }

    /// Builds a vector from its parts; `None` if they break an invariant.
    pub fn from_parts(upto: Vec<(AuthorId, Timestamp)>, except: Vec<Dot>) -> Option<Self> {
        let vector = Self { upto, except };
        let sorted =
            vector.upto.is_sorted_by(|a, b| a.0 < b.0) && vector.except.is_sorted_by(|a, b| a < b);
        let within = vector.except.iter().all(|dot| vector.time_of(dot.author) >= Some(dot.time));
        let times = vector.upto.iter().map(|(_, time)| *time);
        let mut times = times.chain(vector.except.iter().map(|dot| dot.time));
        let is_never_zero = times.all(|time| time != Timestamp(0));
        (sorted && within && is_never_zero).then_some(vector)
    }

    /// The latest time listed for each author, ordered by author.
    pub fn authors(&self) -> &[(AuthorId, Timestamp)] {
        &self.upto
    }

    /// The dots that are not in the set although their author's time covers them, in order.
    pub fn exceptions(&self) -> &[Dot] {
        &self.except
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.upto.is_empty()
    }

    /// Whether the set holds `dot`.
    pub fn contains(&self, dot: Dot) -> bool {
        self.time_of(dot.author) >= Some(dot.time) && self.except.binary_search(&dot).is_err()
    }

    /// Whether the set holds everything that `other` holds.
    pub fn contains_all(&self, other: &Self) -> bool {
        let last_of = |(author, time): (AuthorId, Timestamp)| {
            let times = (1..=time.0).rev().map(|time| Dot { author, time: Timestamp(time) });
            times.into_iter().find(|dot| other.contains(*dot))
        };
        let goes_as_far = |dot: Dot| self.time_of(dot.author) >= Some(dot.time);
        other.upto.iter().copied().filter_map(last_of).all(goes_as_far)
            && !self.except.iter().any(|dot| other.contains(*dot))
    }

    /// Adds everything that `other` holds.
    pub fn union(&mut self, other: &Self) {
        // An exception of either side stays one unless the other side holds it. Decided before the times grow.
        let mut except: Vec<Dot> = self
            .except
            .iter()
            .chain(&other.except)
            .copied()
            .filter(|dot| !self.contains(*dot) && !other.contains(*dot))
            .collect();
        except.sort_unstable();
        except.dedup();
        for &(author, time) in &other.upto {
            self.raise(author, time);
        }
        self.except = except;
    }

    /// Adds `dot` and every dot of its author before it that is not an exception. Right for the dot of a version
    /// whose own seen set is already in here: an author has seen all that it wrote itself, but for the exceptions.
    pub fn advance(&mut self, dot: Dot) {
        self.raise(dot.author, dot.time);
        if let Ok(place) = self.except.binary_search(&dot) {
            self.except.remove(place);
        }
    }

    /// Takes `dot` out again.
    pub fn exclude(&mut self, dot: Dot) {
        if self.time_of(dot.author) >= Some(dot.time)
            && let Err(place) = self.except.binary_search(&dot)
        {
            self.except.insert(place, dot);
        }
    }

    fn time_of(&self, author: AuthorId) -> Option<Timestamp> {
        let place = self.upto.binary_search_by_key(&author, |(author, _)| *author).ok()?;
        Some(self.upto[place].1)
    }

    fn raise(&mut self, author: AuthorId, time: Timestamp) {
        match self.upto.binary_search_by_key(&author, |(author, _)| *author) {
            Ok(place) => self.upto[place].1 = self.upto[place].1.max(time),
            Err(place) => self.upto.insert(place, (author, time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    fn dot(author: u8, time: u64) -> Dot {
        Dot { author: AuthorId([author; 16]), time: Timestamp(time) }
    }

    /// All dots of three authors with times 1 to 6: small enough to compare sets by enumeration.
    fn universe() -> impl Iterator<Item = Dot> {
        (0..3).flat_map(|author| (1..=6).map(move |time| dot(author, time)))
    }

    fn members(vector: &VersionVector) -> BTreeSet<Dot> {
        universe().filter(|dot| vector.contains(*dot)).collect()
    }

    fn any_vector() -> impl Strategy<Value = VersionVector> {
        (prop::array::uniform3(0u64..=6), prop::collection::vec((0u8..3, 1u64..=6), 0..5)).prop_map(
            |(times, except)| {
                let mut vector = VersionVector::new();
                for (author, time) in (0..3).zip(times).filter(|(_, time)| *time != 0) {
                    vector.advance(dot(author, time));
                }
                for (author, time) in except {
                    vector.exclude(dot(author, time));
                }
                vector
            },
        )
    }

    proptest! {
        #[test]
        fn what_one_set_holds_of_another_is_known(a in any_vector(), b in any_vector()) {
            let mut both = a.clone();
            both.union(&b);
            prop_assert_eq!(a.contains_all(&b), members(&b).is_subset(&members(&a)));
            prop_assert!(both.contains_all(&a) && both.contains_all(&b));
        }

        #[test]
        fn a_union_holds_what_either_held(a in any_vector(), b in any_vector()) {
            let mut both = a.clone();
            both.union(&b);
            prop_assert_eq!(members(&both), &members(&a) | &members(&b));
            prop_assert!(VersionVector::from_parts(both.upto, both.except).is_some());
        }

        #[test]
        fn unions_are_commutative_associative_and_idempotent(
            a in any_vector(),
            b in any_vector(),
            c in any_vector(),
        ) {
            let union = |a: &VersionVector, b: &VersionVector| {
                let mut both = a.clone();
                both.union(b);
                both
            };
            // Not only the same sets but the same lists: a version's bytes must not depend on who made it.
            prop_assert_eq!(union(&a, &b), union(&b, &a));
            prop_assert_eq!(union(&union(&a, &b), &c), union(&a, &union(&b, &c)));
            prop_assert_eq!(union(&a, &a), a);
        }

        #[test]
        fn what_is_excluded_is_gone_and_nothing_else(a in any_vector(), author in 0u8..3, time in 1u64..=6) {
            let mut less = a.clone();
            less.exclude(dot(author, time));
            let mut expected = members(&a);
            expected.remove(&dot(author, time));
            prop_assert_eq!(members(&less), expected);
        }
    }

    #[test]
    fn a_dot_is_read_back_from_its_text() {
        let dot = dot(0xab, 0x0123_4567_89ab_cdef);
        assert_eq!(dot.to_string().parse(), Ok(dot));
        for wrong in ["", "-", "ab-cd", &"a".repeat(49), &dot.to_string()[1..]] {
            assert_eq!(wrong.parse::<Dot>(), Err(ParseDotError));
        }
    }

    #[test]
    fn parts_that_break_an_invariant_are_refused() {
        let (low, high) = (AuthorId([1; 16]), AuthorId([2; 16]));
        let time = Timestamp(5);
        assert!(
            VersionVector::from_parts(vec_of(&[(high, time), (low, time)]), Vec::new()).is_none()
        );
        assert!(
            VersionVector::from_parts(vec_of(&[(low, time), (low, time)]), Vec::new()).is_none()
        );
        let beyond = Dot { author: low, time: Timestamp(6) };
        assert!(VersionVector::from_parts(vec_of(&[(low, time)]), vec_of(&[beyond])).is_none());
        let never = Timestamp(0);
        assert!(VersionVector::from_parts(vec_of(&[(low, never)]), Vec::new()).is_none());
        let never = Dot { author: low, time: never };
        assert!(VersionVector::from_parts(vec_of(&[(low, time)]), vec_of(&[never])).is_none());
    }

    fn vec_of<T: Clone>(items: &[T]) -> Vec<T> {
        items.to_vec()
    }
}
