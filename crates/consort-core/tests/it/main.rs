//! The core as a whole, in one binary: replicas in a small world without a real clock or network.
//!
//! - `world`: the world: stores in memory, queues for connections, a seed that decides what happens next.
//! - `barriers`: who has waited for one holds what anybody held who can be reached.
//! - `checking`: two sides find out when they do not hold the same, and say little otherwise.
//! - `comparing`: two sides find what only one of them holds, whatever happens meanwhile.
//! - `convergence`: whatever happens, all replicas end up the same and nothing is lost.
//! - `conversation`: what a link says in the common cases, and how little it is.
//! - `fuzz_bodies`: what the fuzz targets do, with a bounded number of random inputs.
//! - `forgetting`: deletions are forgotten in the end, and nothing comes back for that.
//! - `hostile`: a peer that says anything at all.
//! - `members`: who is there is found out, and everybody has a few neighbours.
//! - `progress`: no link waits for ever, and what has to wait is not lost.
//! - `recorded`: the bytes of a conversation, which never change unnoticed.
//! - `stores`: what a store must make of any commits.

mod barriers;
mod checking;
mod comparing;
mod convergence;
mod conversation;
mod forgetting;
mod fuzz_bodies;
mod hostile;
mod members;
mod progress;
mod recorded;
mod stores;
mod world;
