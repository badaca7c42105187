//! The chunks of a content, one after another, for a reader who waits for the nodes of its manifest.

use std::time::Duration;

use consort_core::content::manifest::{Step, Walk};
use consort_core::{ChunkRef, Content};

use super::{ContentError, Contents};

/// The chunks of a content with the places where they begin, in bytes. Ends after the first error.
#[derive(Debug)]
pub struct Chunks {
    contents: Contents,
    timeout: Duration,
    walk: Walk,
}

impl Chunks {
    pub(super) fn new(contents: &Contents, content: &Content, timeout: Duration) -> Self {
        Self { contents: contents.clone(), timeout, walk: Walk::new(content) }
    }

    /// The next chunk, after entering as many nodes as it takes.
    fn advance(&mut self) -> Result<Option<(u64, ChunkRef)>, ContentError> {
        let Contents { local, fetcher } = &self.contents;
        loop {
            match self.walk.step() {
                Step::Chunk(offset, chunk) => return Ok(Some((offset, chunk))),
                Step::End => return Ok(None),
                Step::Needs(node) => match local.read(&node)? {
                    Some(bytes) => self.walk.enter(&bytes)?,
                    None => {
                        let bytes = fetcher.fetch_all(&[node], self.timeout)?;
                        let bytes = bytes.first().expect("one chunk was asked for, and one came");
                        self.walk.enter(bytes)?;
                        local.store().pack(bytes)?;
                    }
                },
            }
        }
    }
}

impl Iterator for Chunks {
    type Item = Result<(u64, ChunkRef), ContentError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.walk = Walk::new(&Content::Deleted);
        }
        next.transpose()
    }
}
