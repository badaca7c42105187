//! Content on the move: chunks that are read here, given to others and had from others, always
//! verified. Which chunk to ask whom for is decided in [`consort_core::content::transfer`]; nothing
//! here knows a version or a link.
//!
//! In reading order: [`local`] (what this machine has), [`staged`] (what it has nearly), [`serve`] (gives it to
//! peers), [`fetch`] (gets the rest from them), [`delta`] (makes chunks from what is here in other bytes, for which peers say
//! how). [`Contents`] is all of it for a reader who does not care where the
//! bytes are.

pub mod delta;
pub mod fetch;
pub mod local;
pub mod parked;
pub mod serve;
pub mod staged;

mod bytes;
mod compression;
mod manifest;

pub use bytes::ChunkBytes;
pub use fetch::{
    FetchError, FetchStatus, Fetched, Fetcher, TooManyWants, Unavailable, Want, Written,
};
pub use local::{LocalContent, Roots};
pub use manifest::Chunks;
pub use serve::Server;

use std::sync::Arc;
use std::time::Duration;

use consort_core::content::manifest::NodeError;
use consort_core::store::StoreError;
use consort_core::{ChunkRef, Content};

/// Why content could not be read. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The store of this node failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not here, and no peer gave it.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// Whoever wrote the version made its manifest wrong; no other copy will be better.
    #[error(transparent)]
    Manifest(#[from] NodeError),
}

/// All chunks that can be had: from this machine, or else from peers. Cheap to clone. Its methods
/// block, so they must not be called on the threads of an async runtime.
#[derive(Clone, Debug)]
pub struct Contents {
    local: Arc<LocalContent>,
    fetcher: Arc<Fetcher>,
}

impl Contents {
    /// Reads from `local` first, then by `fetcher`.
    pub fn new(local: Arc<LocalContent>, fetcher: Arc<Fetcher>) -> Self {
        Self { local, fetcher }
    }

    /// What this machine has.
    pub fn local(&self) -> &Arc<LocalContent> {
        &self.local
    }

    /// What gets the rest.
    pub fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// The verified bytes of a chunk. If it has to be fetched, waits for up to `timeout`. What was
    /// fetched is not kept.
    pub fn read_or_fetch(
        &self,
        chunk: &ChunkRef,
        timeout: Duration,
    ) -> Result<ChunkBytes, ContentError> {
        match self.local.read_early(chunk)? {
            Some(bytes) => Ok(bytes.into()),
            None => {
                let mut fetched = self.fetcher.fetch_all(&[*chunk], timeout)?;
                Ok(fetched.pop().expect("one chunk was asked for, and one came"))
            }
        }
    }

    /// The chunks of a content, in order, with the places where they begin. Nodes of its manifest
    /// that are not here are fetched, waiting for up to `timeout` for each, and kept in a pack.
    /// Inline and deleted content has no chunks.
    pub fn chunks_of(&self, content: &Content, timeout: Duration) -> Chunks {
        Chunks::new(self, content, timeout)
    }
}
