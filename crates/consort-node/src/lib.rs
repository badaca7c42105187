//! The engine, running: a [`Node`] keeps datasets identical with other nodes, and linked directories with datasets.
//!
//! ```text
//!   Node (node.rs, node/)     what can be asked of a running node
//!     runtime.rs              one loop, one match: drives the pure core
//!     folder/                 a linked directory, both ways
//!     content/                chunks: read here, served, fetched
//!     net/                    identities, TLS, frames, dialing
//!     cluster.rs              members and datasets, as entries of a dataset that admins seal
//! ```
//!
//! What versions are, how they merge and what links say is decided in `consort-core`; what survives a crash stands
//! in `consort-store`. Nothing above this crate sees a link, a connection or a table.

mod cluster;
pub mod content;
mod error;
pub mod folder;
pub mod net;
mod node;
mod release;
mod report;
mod runtime;
mod shared;
mod words;

pub use consort_core::{DatasetId, Dot, Key, Kind, NodeId, OnConflict, Origin};
pub use error::{ErrorKind, NodeError};
pub use net::{DatagramCounts, Limits, Rate, Role, Traffic};
pub use node::{
    DEFAULT_PORT, DEV_MARK, GetBody, Node, check_store, init, is_in_use, is_member, join,
};
pub use report::*;
