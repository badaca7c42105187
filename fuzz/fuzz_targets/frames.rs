//! Arbitrary bytes as frames of a control connection.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use consort_node::net::frame::{FrameReader, MAX_CONTROL_FRAME_BYTES};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reader = FrameReader::new(bytes, MAX_CONTROL_FRAME_BYTES);
    loop {
        // Bytes in memory are always ready.
        let frame = pin!(reader.read()).poll(&mut Context::from_waker(Waker::noop()));
        match frame {
            Poll::Ready(Ok(Some(frame))) => assert!((1..=bytes.len()).contains(&frame.len())),
            Poll::Ready(_) => return,
            Poll::Pending => unreachable!("a slice never makes its reader wait"),
        }
    }
});
