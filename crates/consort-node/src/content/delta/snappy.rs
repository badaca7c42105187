//! Google's Snappy, whose bytes other writers' files hold: the only place where this crate calls what the compiler cannot check.
//! Rust's own gives other bytes for the same values.

use std::ffi::c_char;

use snappy_src::{
    snappy_compress, snappy_max_compressed_length, snappy_status_SNAPPY_OK, snappy_uncompress,
    snappy_uncompressed_length,
};

/// Compresses.
pub(super) fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    // SAFETY: it computes with a number.
    let mut length = unsafe { snappy_max_compressed_length(plain.len()) };
    let mut compressed = vec![0; length];
    // SAFETY: it reads `plain.len()` bytes of `plain`, and writes no more than `length` bytes, which are there.
    let status = unsafe {
        snappy_compress(
            plain.as_ptr().cast::<c_char>(),
            plain.len(),
            compressed.as_mut_ptr().cast::<c_char>(),
            &raw mut length,
        )
    };
    compressed.truncate(length);
    (status == snappy_status_SNAPPY_OK).then_some(compressed)
}

/// Decompresses what has this length then. Nothing if it has another one, or is damaged.
pub(super) fn decompress(compressed: &[u8], length: usize) -> Option<Vec<u8>> {
    let mut claimed = 0;
    // SAFETY: it reads no more than `compressed.len()` bytes of `compressed`, and writes one number.
    let status = unsafe {
        snappy_uncompressed_length(
            compressed.as_ptr().cast::<c_char>(),
            compressed.len(),
            &raw mut claimed,
        )
    };
    if status != snappy_status_SNAPPY_OK || claimed != length {
        return None;
    }
    let mut plain = vec![0; length];
    // SAFETY: it reads no more than `compressed.len()` bytes of `compressed`, and writes no more than `claimed` bytes, which
    // are there.
    let status = unsafe {
        snappy_uncompress(
            compressed.as_ptr().cast::<c_char>(),
            compressed.len(),
            plain.as_mut_ptr().cast::<c_char>(),
            &raw mut claimed,
        )
    };
    (status == snappy_status_SNAPPY_OK && claimed == length).then_some(plain)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bytes_come_back(bytes: Vec<u8>, times in 1_usize..20) {
            let plain = bytes.repeat(times);
            let compressed = compress(&plain).expect("short");
            prop_assert_eq!(decompress(&compressed, plain.len()), Some(plain.clone()));
            prop_assert_eq!(decompress(&compressed, plain.len() + 1), None);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, length in 0_usize..100_000) {
            let _ = decompress(&bytes, length);
        }
    }
}
