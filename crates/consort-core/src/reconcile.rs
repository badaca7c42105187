//! How two replicas find their difference when no cursor tells it, at a cost that follows the difference.
//!
//! # The idea
//!
//! After "Practical Rateless Set Reconciliation" (Yang, Gilad, Alizadeh, SIGCOMM 2024). A set of fingerprints is
//! described by an endless sequence of [coded symbols](Symbol). Symbol 0 sums up every fingerprint, symbol *i* each
//! one with a probability of 2/(i+2), chosen by the fingerprint itself ([`mapping`]). Symbols are sums, so subtracting
//! one side's from the other's leaves the symbols of the difference: what both have cancels out, however much it is.
//! Among about 1.35 to 1.72 times as many symbols as there are differences, one always holds a single fingerprint; it
//! gives that away, is subtracted from the other symbols, and so on until nothing is left ([`Decoder`]). Nobody
//! needs to know beforehand how many differences there are: if it does not come out yet, more symbols follow.
//!
//! # Who does what
//!
//! The side that compares ([`Finder`]) asks, the side that describes its set ([`Describer`]) answers. Each side keeps
//! the first symbols of its set as a live [`Index`], in step with every commit, so that usually nobody scans anything.
//!
//! # How the method is chosen
//!
//! [`Method::choose`] is a pure function of what both sides hold and how many differences there are, as far as that is
//! known: at first by the counts alone, later by what the symbols so far let [estimate](Decoder::estimate).
//!
//! - [`Method::Equal`]: the digests are equal. One message, no symbol.
//! - [`Method::Everything`]: one side has nothing, so everything is the difference.
//! - [`Method::Sorted`]: the sets are small or share little. All fingerprints in order are the shortest description.
//! - [`Method::Prefix`]: the difference is within reach of the live indexes.
//! - [`Method::Ranges`]: it is not. The fingerprints are cut into ranges, each with few enough differences for symbols
//!   that one pass over the range makes. All ranges together are one scan, and memory does not depend on the set.
//!
//! The bytes stand in `docs/reconciliation.md`. This module knows nothing of messages, windows or commits; the link
//! carries [`Request`]s and [`Answer`]s to and fro.

pub mod decoder;
pub mod describer;
pub mod encoder;
pub mod finder;
#[cfg(test)]
pub(crate) mod generators;
pub mod index;
pub mod mapping;
pub mod method;
#[cfg(test)]
mod model;
pub mod sorted;
pub mod symbol;
#[cfg(test)]
mod tests;
pub mod wire;

use alloc::vec::Vec;

pub use decoder::Decoder;
pub use describer::Describer;
pub use encoder::Block;
pub use finder::{Finder, Step};
pub use index::Index;
pub use method::Method;
pub use sorted::{Batch, Comparison, Differences, OutOfOrder};
pub use symbol::{Run, Symbol};

use crate::model::fingerprint::Fingerprint;
use crate::store::{StoreError, View};

/// The symbols that a set ever gets. A larger difference is cut into ranges that each do with fewer. It bounds what a
/// live index takes in memory (2 MiB), what a comparison takes (a few MiB), and it lets 64 bits do for the mapping.
pub const MAX_SYMBOLS: usize = 1 << 16;

/// The symbols of one answer.
pub const MAX_RUN_SYMBOLS: usize = 1 << 14;

/// The fingerprints that one request makes the other side go through. At some hundred nanoseconds each, nothing else on
/// that machine waits for long.
pub const MAX_RANGE_FINGERPRINTS: usize = 1 << 17;

/// The fingerprints that are read at once on a way through a range: 64 KiB.
const SCAN_FINGERPRINTS: usize = 4096;

/// The fingerprints that a set is believed to hold at the most.
pub const MAX_SET_FINGERPRINTS: u64 = 1 << 48;

/// A set of fingerprints that can be read in order.
pub trait Fingerprints {
    /// The fingerprints above `after`, in rising order, at most `limit`.
    fn above(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError>;
}

impl<V: View> Fingerprints for V {
    fn above(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        self.fingerprints(after, limit)
    }
}

/// What the comparing side asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first symbols of the whole set, from the live index as it is now.
    Prefix {
        /// How many, 1 to [`MAX_RUN_SYMBOLS`].
        symbols: usize,
    },
    /// The first symbols of a range of the set as it is now.
    Range {
        /// The range is what lies above this,
        after: Option<Fingerprint>,
        /// at most so many fingerprints, 1 to [`MAX_RANGE_FINGERPRINTS`].
        width: usize,
        /// How many symbols, 1 to [`MAX_RUN_SYMBOLS`].
        symbols: usize,
    },
    /// The symbols that follow those of the last answer, of the same set.
    Further {
        /// How many, 1 to [`MAX_RUN_SYMBOLS`].
        symbols: usize,
    },
    /// Fingerprints themselves.
    Sorted {
        /// Those above this.
        after: Option<Fingerprint>,
    },
}

/// What the describing side answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Request::Prefix`], [`Request::Range`] and [`Request::Further`].
    Symbols {
        /// The symbols: as many as were asked for, or fewer if there are no more.
        run: Run,
        /// The last fingerprint of the range; none if there is nothing of the set above the range.
        end: Option<Fingerprint>,
    },
    /// To [`Request::Sorted`].
    Sorted(Batch),
}
