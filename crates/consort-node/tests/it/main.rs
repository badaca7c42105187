//! The node from outside, over loopback.
//!
//! - `content`: chunks that flow between two and three nodes, some of which lie, stop or have nothing.
//! - `net`: networks that find, refuse and lose each other; joining; hostile bytes on the port.
//! - `node`: whole nodes that put, wait, restart, drop and revoke.

mod content;
mod net;
mod node;
