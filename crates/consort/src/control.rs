//! How commands talk to the node that `consort up` runs: over a Unix socket in the node's home directory, which only
//! its owner may use.
//!
//! [`wire`] is the language, [`server`] speaks it for the node, [`client`] for the commands, and [`service`] is the
//! one place that turns requests into calls of [`consort_node::Node`].

pub(crate) mod client;
pub(crate) mod server;
pub(crate) mod service;
pub(crate) mod wire;

use std::path::{Path, PathBuf};

pub(crate) use client::Client;

/// Where the socket of the node with this home is.
pub(crate) fn socket_path(home: &Path) -> PathBuf {
    home.join("control.sock")
}
