//! A commit: the versions that are applied together or not at all.

use alloc::vec::Vec;

use crate::model::version::Entry;

/// Versions that one author wrote together. At most [`MAX_COMMIT_VERSIONS`](crate::limits::MAX_COMMIT_VERSIONS) and
/// [`MAX_COMMIT_BYTES`](crate::limits::MAX_COMMIT_BYTES); a larger change is several commits, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// The versions, no key twice.
    pub entries: Vec<Entry>,
}
