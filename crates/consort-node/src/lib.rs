//! Placeholder.

pub mod folder;
