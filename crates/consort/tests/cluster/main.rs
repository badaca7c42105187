//! Several real nodes, seen from outside: processes with their own homes, ports and directories, driven through the
//! command line and through the file system, as a user would. `README.md` beside this file tells how to run more of it.
//!
//! What the tests stand on:
//!
//! - [`cluster`]: nodes as child processes that always end, and waiting with a bound.
//! - [`network`]: a network of the test's own, which can be split.
//! - [`random`]: the one source of chance, so that a seed repeats a run.
//! - [`tree`]: a directory that looks like a real one, and the comparison of directories.
//! - [`operations`]: random changes of directories.
//! - [`ledger`]: what those wrote and took away, and the proof that nothing was lost.
//!
//! The tests:
//!
//! - [`syncing`]: a tree, an edit, a rename, a restart: what arrives, and what it costs on the wire.
//! - [`storm`]: thousands of random operations on three nodes at once, also while nodes are killed.
//! - [`apart`]: nodes that are down, a chain of availability, concurrent writes.
//! - [`forgetting`]: deletions that are not remembered any more, and a node that was away too long.
//! - [`leaving`]: a node that ends its own membership, and what it must not take with it.
//! - [`keeping`]: contents that are in one directory only, or in none, and what nodes say of that.
//! - [`conflicts`]: concurrent writes under each policy, and choosing.
//! - [`dev`]: a cluster on one machine, on a directory that somebody named.
//! - [`directories`]: what can happen to a linked directory: mass deletion, ignored and impossible names, a full disk.
//! - [`neighbours`]: more nodes than can all be linked with each other.
//! - [`thirty`]: a network that is split and heals, nodes that are killed, and what a node costs that has nothing to do.
//! - [`access`]: tickets, members, ports and stores that are not in order.

mod access;
mod apart;
mod cluster;
mod conflicts;
mod dev;
mod directories;
mod forgetting;
mod keeping;
mod leaving;
mod ledger;
mod neighbours;
mod network;
mod operations;
mod random;
mod storm;
mod syncing;
mod thirty;
mod tree;
