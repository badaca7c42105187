//! The data model: a dataset is a map from [`Key`] to the versions that nobody has replaced.
//!
//! In reading order: [`key`] and [`id`] name things; [`hlc`] stamps what an author writes; [`vector`] says what a
//! version replaces; [`attributes`] and [`version`] are what is stored; [`merge`] is the algebra by which replicas
//! agree; [`conflict`] is what a reader sees of concurrent versions; [`commit`] is what is applied together; [`canonical`]
//! is an entry's one encoding, and [`fingerprint`] what replicas compare; [`frontier`] says which deletions may be
//! forgotten.

pub mod attributes;
pub mod canonical;
pub mod commit;
pub mod conflict;
pub mod fingerprint;
pub mod frontier;
#[cfg(test)]
pub(crate) mod generators;
pub mod hlc;
pub mod id;
pub mod key;
pub mod merge;
pub mod vector;
pub mod version;

pub use attributes::{Attributes, Kind, Origin};
pub use commit::Commit;
pub use conflict::OnConflict;
pub use fingerprint::{Digest, Fingerprint, FingerprintKey};
pub use frontier::{Frontier, Knowledge};
pub use hlc::{Clock, Timestamp};
pub use id::{AuthorId, DatasetId, NodeId};
pub use key::{Key, KeyError};
pub use vector::{Dot, VersionVector};
pub use version::{Entry, Version};
