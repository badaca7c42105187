//! What is true about a dataset and its replicas, without touching the world.
//!
//! This crate has no clock, socket, file, thread, future or randomly ordered map; it is `no_std`, so the compiler
//! holds it to that. Time is an argument, randomness is an argument, reads are an argument ([`store::View`]), and
//! everything that should happen outside comes back as an [`protocol::Effect`].
//!
//! # Two peers converse
//!
//! A driver has no decisions to make: it hands events to a [`protocol::Replica`] with a view of its store, and carries
//! out the effects. Here two replicas that each hold something the other lacks talk until they are equal:
//!
//! ```
//! use std::collections::VecDeque;
//!
//! use consort_core::protocol::event::Access;
//! use consort_core::protocol::{Effect, Event, Now, Replica};
//! use consort_core::store::memory::MemoryStore;
//! use consort_core::store::{DatasetParameters, Epoch, LocalWrite, Store, View};
//! use consort_core::{
//!     AuthorId, Commit, Content, DatasetId, FingerprintKey, Instant, Key, NodeId, WallTime,
//! };
//!
//! let photos = DatasetParameters { id: DatasetId([1; 16]), fingerprint_key: FingerprintKey([2; 32]) };
//! let now = Now { instant: Instant(0), wall: WallTime(1_700_000_000_000) };
//! let id = |n: usize| NodeId([n as u8; 16]);
//! let mut nodes: Vec<(MemoryStore, Replica)> = (0..2)
//!     .map(|n| {
//!         let mut store = MemoryStore::new(AuthorId([n as u8; 16]), Epoch(n as u64));
//!         store.open_dataset(photos)?;
//!         let write = LocalWrite::new(Key::new(format!("from-{n}"))?, Content::Inline([7; 9].into()));
//!         store.apply_local(photos.id, vec![write], now.wall)?;
//!         Ok((store, Replica::new(photos.fingerprint_key, Access::Write, n as u64)))
//!     })
//!     .collect::<Result<_, Box<dyn std::error::Error>>>()?;
//!
//! let connected = |n: usize| Event::Connected {
//!     peer: id(1 - n),
//!     access: Access::Write,
//!     opener: n == 0,
//!     standing: false,
//! };
//! let mut events: VecDeque<(usize, Event)> = (0..2).map(|n| (n, connected(n))).collect();
//! while let Some((n, event)) = events.pop_front() {
//!     let (store, replica) = &mut nodes[n];
//!     let mut effects = Vec::new();
//!     replica.handle(event, now, &store.view(photos.id)?, &mut effects)?;
//!     for effect in effects {
//!         match effect {
//!             Effect::Send { message, .. } => {
//!                 events.push_back((1 - n, Event::Received { peer: id(n), message }));
//!             }
//!             Effect::Commit { peer, entries, cursor } => {
//!                 let applied = store.apply_remote(photos.id, peer, Commit { entries }, cursor)?;
//!                 events.push_back((n, Event::Committed { peer, stale: applied.stale }));
//!                 events.push_back((n, Event::Grew));
//!             }
//!             Effect::Learn { peer, lesson } => {
//!                 store.learn(photos.id, lesson)?;
//!                 events.push_back((n, Event::Learned { peer }));
//!             }
//!             other => unreachable!("two well-behaved peers do not cause {other:?}"),
//!         }
//!     }
//! }
//!
//! let digest = |n: usize| nodes[n].0.view(photos.id).map(|view| view.summary().digest);
//! assert_eq!(digest(0)?, digest(1)?);
//! assert_eq!(digest(0)?.count, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A real driver differs in that messages go over a network (through [`protocol::codec`]), commits to a disk, and
//! that it wakes at [`protocol::Replica::deadline`].
//!
//! # Where to read on
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
    Kind, NodeId, OnConflict, Origin, Timestamp, Version, VersionVector,
};
pub use time::{Instant, WallTime};
