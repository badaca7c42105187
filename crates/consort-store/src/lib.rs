//! What survives a crash: versions, feeds, the chunk index and packs of one node, in one directory.
//!
//! The guarantees, which `docs/storage.md` argues for byte by byte:
//! - A [`Transaction`] is on stable storage, whole, before [`DiskStore::submit`] calls back or [`DiskStore::commit`]
//!   returns. After a crash it is there whole or not at all.
//! - A [`DiskView`] shows one moment, and only what is durable.
//! - No dot is ever given out twice: a store that was copied or rolled back writes under a new author.
//! - A chunk that is read from a pack has the hash that was asked for.
//! - After a failed write nothing more is written until the store is opened again.
//!
//! ```
//! use consort_core::model::id::DatasetId;
//! use consort_core::model::merge::Saw;
//! use consort_core::store::{DatasetParameters, LocalWrite, View};
//! use consort_core::{Attributes, Content, FingerprintKey, Key, WallTime};
//! use consort_store::{Body, DiskStore, Transaction};
//!
//! let directory = tempfile::tempdir()?;
//! let store = DiskStore::open(directory.path())?;
//! let photos = DatasetId([7; 16]);
//! store.open_dataset(DatasetParameters { id: photos, fingerprint_key: FingerprintKey([0; 32]) })?;
//! let write = LocalWrite {
//!     key: Key::new("a/b.txt")?,
//!     saw: Saw::Winner,
//!     content: Content::Inline((*b"hello").into()),
//!     attributes: Attributes::default(),
//! };
//! let body = Body::Local { writes: vec![write], now: WallTime(1_700_000_000_000) };
//! store.commit(Transaction::new(photos, body))?;
//! assert_eq!(store.view(photos)?.summary().digest.count, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Nothing here knows what a peer is, and nothing prints. Read [`DiskStore`] first, then `committer.rs`.

mod check;
mod chunks;
mod committer;
mod edit;
mod layout;
mod live;
mod lsm;
mod packs;
mod pending;
mod queue;
mod store;
mod transaction;
mod upgrade;
mod view;

pub use check::{CheckProgress, CheckReport, Finding, MAX_FINDINGS};
pub use packs::ReadError;
pub use store::{
    DAMAGED_HINT, DiskStore, MAX_FURTHER_PLACES, MAX_PLACES, MAX_SETTING_BYTES, OpenError,
};
pub use transaction::{Basis, Body, Place, Record, RecordChange, Transaction};
pub use view::DiskView;
