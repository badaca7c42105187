//! Arbitrary bytes as a request for chunks, as a response, and as a delta. The bodies are shared with a test that runs
//! everywhere.
#![no_main]

// Each target runs one of the bodies.
#[allow(dead_code)]
#[path = "../../crates/consort-core/tests/it/fuzz_bodies.rs"]
mod fuzz_bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz_bodies::exchange(bytes);
    fuzz_bodies::delta(bytes);
});
