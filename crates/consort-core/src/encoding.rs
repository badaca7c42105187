//! Bytes out and bytes in: the primitives of every format of ours. Little-endian, LEB128 variable-length integers in
//! their shortest form, lengths before contents. [`Reader`] believes nothing: a count is checked against the bytes
//! that are left before anything is allocated for it, so no input makes us allocate more than its own size.
//!
//! What the bytes mean stands elsewhere: `model/canonical.rs` for entries, `protocol/codec.rs` for messages.

use alloc::vec::Vec;

use thiserror::Error;

/// Why bytes were refused. Always the fault of whoever made them; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end inside a field.
    #[error("{what} is cut off")]
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// A count or length is over its bound.
    #[error("{what} is over its bound of {limit}")]
    TooLarge {
        /// The field.
        what: &'static str,
        /// Its bound.
        limit: usize,
    },
    /// A field has a value that its type does not allow.
    #[error("{what} is not valid")]
    Invalid {
        /// The field.
        what: &'static str,
    },
    /// Bytes follow after the last field.
    #[error("something follows after the end: {count} B")]
    Trailing {
        /// How many.
        count: usize,
    },
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub struct Writer<'a>(pub &'a mut Vec<u8>);

impl Writer<'_> {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Sixteen bytes, little-endian.
    pub fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A variable-length integer: seven bits a byte, the lowest first.
    pub fn varint(&mut self, mut value: u64) {
        while 0x80 <= value {
            self.0.push(value.to_le_bytes()[0] | 0x80);
            value >>= 7;
        }
        self.0.push(value.to_le_bytes()[0]);
    }

    /// A length or count.
    pub fn count(&mut self, value: usize) {
        self.varint(value as u64);
    }

    /// A signed integer, zigzag-coded so that small magnitudes are short.
    pub fn signed(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Bytes whose length the reader knows.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// A length, then that many bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.raw(bytes);
    }
}

/// Takes fields off the front of a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The bytes that are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether all bytes were read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Refuses bytes that follow.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { count }),
        }
    }

    /// Bytes whose length is known.
    pub fn raw(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) =
            self.rest.split_at_checked(length).ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(head)
    }

    /// Bytes whose length is known when this compiles.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) =
            self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated { what })?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.array::<1>(what)?[0])
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Sixteen bytes, little-endian.
    pub fn u128(&mut self, what: &'static str) -> Result<u128, DecodeError> {
        Ok(u128::from_le_bytes(self.array(what)?))
    }

    /// A variable-length integer in its shortest form.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            let bits = u64::from(byte & 0x7f);
            let overflows = shift == 63 && 1 < bits;
            let padded = byte == 0 && shift != 0;
            if overflows || padded {
                return Err(DecodeError::Invalid { what });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid { what })
    }

    /// A signed integer; see [`Writer::signed`].
    pub fn signed(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let value = self.varint(what)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A count of elements that take at least `least_bytes` each: at most `limit`, and no more than can follow.
    pub fn count(
        &mut self,
        least_bytes: usize,
        limit: usize,
        what: &'static str,
    ) -> Result<usize, DecodeError> {
        let count = self.varint(what)?;
        let count = usize::try_from(count).map_err(|_| DecodeError::TooLarge { what, limit })?;
        if limit < count {
            return Err(DecodeError::TooLarge { what, limit });
        }
        match count.checked_mul(least_bytes) {
            Some(bytes) if bytes <= self.rest.len() => Ok(count),
            _ => Err(DecodeError::Truncated { what }),
        }
    }

    /// A length of at most `limit`, then that many bytes.
    pub fn bytes(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.count(1, limit, what)?;
        self.raw(length, what)
    }

    /// Like [`bytes`](Self::bytes), and the bytes must be UTF-8.
    pub fn text(&mut self, limit: usize, what: &'static str) -> Result<&'a str, DecodeError> {
        core::str::from_utf8(self.bytes(limit, what)?).map_err(|_| DecodeError::Invalid { what })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_come_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            Writer(&mut bytes).varint(value);
            Writer(&mut bytes).signed(signed);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint("value"), Ok(value));
            prop_assert_eq!(reader.signed("signed"), Ok(signed));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn a_count_never_exceeds_what_can_follow(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            if let Ok(count) = reader.count(4, usize::MAX, "count") {
                prop_assert!(count * 4 <= bytes.len());
            }
        }
    }

    #[test]
    fn a_padded_integer_is_refused() {
        assert_eq!(
            Reader::new(&[0x80, 0x00]).varint("value"),
            Err(DecodeError::Invalid { what: "value" })
        );
    }
}
