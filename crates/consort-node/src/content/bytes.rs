//! The bytes of one chunk, where they arrived.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use tokio::sync::mpsc;

/// The bytes of a chunk: shared, and without a copy a part of the message that they came in. Keeping
/// one keeps the whole message, up to a megabyte, so use it soon or copy it.
#[derive(Clone)]
pub struct ChunkBytes {
    whole: Arc<Message>,
    range: Range<usize>,
}

/// A message with chunks in it. When the last of them is not needed any more, its memory goes back to whoever reads the
/// next one.
pub(super) struct Message {
    pub(super) bytes: Vec<u8>,
    pub(super) spare: Option<mpsc::Sender<Vec<u8>>>,
}

impl Drop for Message {
    fn drop(&mut self) {
        if let Some(spare) = &self.spare {
            // There may be enough already, or nobody who reads.
            let _ = spare.try_send(std::mem::take(&mut self.bytes));
        }
    }
}

impl ChunkBytes {
    /// Where they are in what they are a part of.
    pub(super) fn range(&self) -> &Range<usize> {
        &self.range
    }

    /// The part of `whole` in `range`, which lies in it.
    pub(super) fn part(whole: &Arc<Message>, range: Range<usize>) -> Self {
        Self { whole: Arc::clone(whole), range }
    }
}

impl From<Vec<u8>> for ChunkBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { whole: Arc::new(Message { bytes, spare: None }), range }
    }
}

impl Deref for ChunkBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.whole.bytes[self.range.clone()]
    }
}

impl fmt::Debug for ChunkBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of a chunk", self.range.len())
    }
}
