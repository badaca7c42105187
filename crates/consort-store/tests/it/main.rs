//! The store from outside, on a real disk.
//!
//! - `conformance`: the core's suite, with the store closed and opened again between commits
//! - `crash`: a process that is killed while it writes
//! - `damage`: rows and packs that were tampered with, and what `check` says
//! - `fixture`: a store of each format, as the first version that had it wrote it
//! - `full`: a disk that is full, and one that has room again
//! - `linked`: records, pending keys, places, linking and unlinking
//! - `moments`: what others read meanwhile
//! - `open`: locks, formats, copies, rollbacks, settings, datasets
//! - `packs`: chunks, torn tails
//! - `support`: what the others share

mod conformance;
mod crash;
mod damage;
mod fixture;
mod full;
mod linked;
mod moments;
mod open;
mod packs;
mod support;
