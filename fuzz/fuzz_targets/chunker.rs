//! Arbitrary bytes as a content that is cut into chunks. The body is shared with a test that runs everywhere.
#![no_main]

// Each target runs one of the bodies.
#[allow(dead_code)]
#[path = "../../crates/consort-core/tests/it/fuzz_bodies.rs"]
mod fuzz_bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_bodies::chunker(bytes));
