//! What must hold, each in a file of its own. A checker sees replicas only as anybody can read them, and compares them
//! with the [`history`](crate::history) of what really happened.

pub(crate) mod bounded;
pub(crate) mod causal;
pub(crate) mod converged;
pub(crate) mod cursors;
pub(crate) mod durable;
pub(crate) mod forgotten;
pub(crate) mod live;
pub(crate) mod minimal;
pub(crate) mod no_resurrection;

use std::collections::BTreeMap;
use std::fmt;

use consort_core::Key;

use crate::history::VersionIndex;

/// What some keys hold.
pub(crate) type Held = BTreeMap<Key, Vec<VersionIndex>>;

/// What a step of a run comes to.
pub(crate) type Checked<T = ()> = Result<T, Violation>;

/// Something that must never be, and is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which checker found it.
    pub checker: Checker,
    /// What it found.
    pub what: String,
}

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Checker {
    /// Nobody who is there is taken for gone for long.
    Believed,
    /// Nodes do not stop for the others' mistakes: there are none here. A link that is ended is a wrong accusation.
    Blameless,
    /// Queues and buffers keep to their bounds.
    Bounded,
    /// A version replaces exactly what its writer saw.
    Causal,
    /// All replicas hold the same, and readers get the same.
    Converged,
    /// What a cursor says was applied is there.
    Cursors,
    /// What was acknowledged is there, or was replaced by somebody who saw it.
    Durable,
    /// Neighbours agree that they are, have not too many, and nobody is cut off once everything is mended.
    Linked,
    /// Once everything is mended, all that was written arrives everywhere, and then there is rest.
    Live,
    /// What is sent is in proportion to what was written.
    Minimal,
    /// What was replaced stays so.
    NoResurrection,
}

impl Checker {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Believed => "believed",
            Self::Blameless => "blameless",
            Self::Bounded => "bounded",
            Self::Causal => "causal",
            Self::Converged => "converged",
            Self::Cursors => "cursors",
            Self::Durable => "durable",
            Self::Linked => "linked",
            Self::Live => "live",
            Self::Minimal => "minimal",
            Self::NoResurrection => "no-resurrection",
        }
    }

    /// A violation.
    pub(crate) fn finds(self, what: impl Into<String>) -> Violation {
        Violation { checker: self, what: what.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker.name(), self.what)
    }
}
