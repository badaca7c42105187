//! The bytes of one chunk, where they arrived.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The bytes of a chunk: shared, and without a copy a part of the message that they came in. Keeping
/// one keeps the whole message, up to a megabyte, so use it soon or copy it.
#[derive(Clone)]
pub struct ChunkBytes {
    whole: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl ChunkBytes {
    /// The part of `whole` in `range`, which lies in it.
    pub(super) fn part(whole: &Arc<Vec<u8>>, range: Range<usize>) -> Self {
        Self { whole: Arc::clone(whole), range }
    }
}

impl From<Vec<u8>> for ChunkBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { whole: Arc::new(bytes), range }
    }
}

impl Deref for ChunkBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole[self.range.clone()]
    }
}

impl fmt::Debug for ChunkBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of a chunk", self.range.len())
    }
}
