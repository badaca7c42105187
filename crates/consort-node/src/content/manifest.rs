//! The chunks of a content, one after another: walks the tree of its manifest with one node of each
//! level in memory.

use std::time::Duration;
use std::vec;

use consort_core::content::manifest::{self, Node};
use consort_core::{ChunkRef, Content, NodeRef};

use super::{ContentError, Contents};

/// The chunks of a content with the places where they begin, in bytes. Ends after the first error.
#[derive(Debug)]
pub struct Chunks {
    contents: Contents,
    timeout: Duration,
    /// The nodes that are still to be entered, by level; the lowest level is last.
    nodes: Vec<(u8, vec::IntoIter<NodeRef>)>,
    chunks: vec::IntoIter<ChunkRef>,
    offset: u64,
}

impl Chunks {
    pub(super) fn new(contents: &Contents, content: &Content, timeout: Duration) -> Self {
        let (nodes, chunks) = match content {
            Content::Deleted | Content::Inline(_) => (Vec::new(), Vec::new()),
            Content::Chunks(chunks) => (Vec::new(), chunks.to_vec()),
            Content::Tree { level, nodes } => {
                (vec![(*level, nodes.clone().into_iter())], Vec::new())
            }
        };
        Self { contents: contents.clone(), timeout, nodes, chunks: chunks.into_iter(), offset: 0 }
    }

    /// Whether the next one may have to be waited for, because a node has to be entered first.
    pub fn may_wait(&self) -> bool {
        self.chunks.as_slice().is_empty() && !self.nodes.is_empty()
    }

    /// The next chunk, after entering as many nodes as it takes.
    fn advance(&mut self) -> Result<Option<ChunkRef>, ContentError> {
        loop {
            if let Some(chunk) = self.chunks.next() {
                return Ok(Some(chunk));
            }
            let Some((level, nodes)) = self.nodes.last_mut() else { return Ok(None) };
            let level = *level;
            match nodes.next() {
                None => drop(self.nodes.pop()),
                Some(node) => match self.load(level, &node)? {
                    Node::Chunks(chunks) => self.chunks = chunks.into_iter(),
                    Node::Nodes(nodes) => self.nodes.push((level - 1, nodes.into_iter())),
                },
            }
        }
    }

    fn load(&self, level: u8, node: &NodeRef) -> Result<Node, ContentError> {
        let Contents { local, fetcher } = &self.contents;
        if let Some(bytes) = local.read(&node.chunk)? {
            return Ok(manifest::decode(&bytes, level, node)?);
        }
        let bytes = fetcher.fetch_all(&[node.chunk], self.timeout)?;
        let bytes = bytes.first().expect("one chunk was asked for, and one came");
        let decoded = manifest::decode(bytes, level, node)?;
        local.store().pack(bytes)?;
        Ok(decoded)
    }
}

impl Iterator for Chunks {
    type Item = Result<(u64, ChunkRef), ContentError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(chunk) => chunk.map(|chunk| {
                let offset = self.offset;
                self.offset += u64::from(chunk.length);
                Ok((offset, chunk))
            }),
            Err(error) => {
                self.nodes.clear();
                Some(Err(error))
            }
        }
    }
}
