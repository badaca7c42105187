//! The node from outside, over loopback.
//!
//! - `content`: chunks that flow between two and three nodes, some of which lie, stop or have nothing.
//! - `folder`: one linked directory, its store, and what others wrote.
//! - `net`: networks that find, refuse and lose each other; joining; hostile bytes on the port.
//! - `node`: whole nodes that put, wait, restart, drop and revoke.
//! - `seals`: facts of the cluster that travel over any member, and members that make them up.

mod content;
mod folder;
mod net;
mod node;
mod seals;
