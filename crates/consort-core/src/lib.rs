//! What is true about a dataset and its replicas, without touching the world.
//!
//! This crate has no clock, socket, file, thread, future or randomly ordered map; it is `no_std`, so the compiler
//! holds it to that. Time is an argument, randomness is an argument, reads are an argument ([`store::View`]), and
//! everything that should happen outside comes back as an [`protocol::Effect`].
//!
//! Read in this order: [`model`] (what a dataset is, and how two replicas of it merge), [`content`] (how bytes become
//! chunks), [`store`] (what a replica must remember), [`reconcile`] (how two replicas find their difference) and
//! [`protocol`] (how changes flow between them).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod content;
pub mod encoding;
pub mod limits;
pub mod model;
pub mod protocol;
pub mod random;
pub mod reconcile;

pub mod store;
pub mod time;

pub use content::{ChunkHash, ChunkRef, Content, NodeRef};
pub use model::{
    Attributes, AuthorId, Commit, DatasetId, Digest, Dot, Entry, Fingerprint, FingerprintKey, Key,
    Kind, NodeId, Origin, Timestamp, Version, VersionVector,
};
pub use time::{Instant, WallTime};
