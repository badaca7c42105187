//! The engine, running: network, directories, and the loop between them and the core.

pub mod content;
pub mod folder;
pub mod net;
