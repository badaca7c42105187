//! The chunks of a content, one after another: a walk through the tree of its manifest, with one node of each level in
//! memory. It does not get the nodes; it says which one it needs.

use alloc::vec::{self, Vec};

use super::{Node, NodeError, decode};
use crate::content::{ChunkRef, Content, NodeRef};

/// What comes next in a content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A chunk, and where in the content it begins, in bytes.
    Chunk(u64, ChunkRef),
    /// A node has to be [entered](Walk::enter) first. Until then, this is what comes next.
    Needs(ChunkRef),
    /// Nothing.
    End,
}

/// A place in the list of a content's chunks.
#[derive(Clone, Debug)]
pub struct Walk {
    /// The nodes that are still to be entered, by level; the lowest level is last.
    nodes: Vec<(u8, vec::IntoIter<NodeRef>)>,
    chunks: vec::IntoIter<ChunkRef>,
    offset: u64,
}

impl Walk {
    /// Begins at the first chunk. Inline and deleted content has none.
    pub fn new(content: &Content) -> Self {
        let (nodes, chunks) = match content {
            Content::Deleted | Content::Inline(_) => (Vec::new(), Vec::new()),
            Content::Chunks(chunks) => (Vec::new(), chunks.to_vec()),
            Content::Tree { level, nodes } => {
                (Vec::from([(*level, nodes.clone().into_iter())]), Vec::new())
            }
        };
        Self { nodes, chunks: chunks.into_iter(), offset: 0 }
    }

    /// Goes on to what comes next.
    pub fn step(&mut self) -> Step {
        if let Some(chunk) = self.chunks.next() {
            let offset = self.offset;
            self.offset += u64::from(chunk.length);
            return Step::Chunk(offset, chunk);
        }
        while let Some((_, nodes)) = self.nodes.last() {
            match nodes.as_slice().first() {
                Some(node) => return Step::Needs(node.chunk),
                None => drop(self.nodes.pop()),
            }
        }
        Step::End
    }

    /// Enters the node that is needed. `bytes` are those that it names; should they be no good node, nothing changes.
    ///
    /// # Panics
    /// If no node is needed.
    pub fn enter(&mut self, bytes: &[u8]) -> Result<(), NodeError> {
        let (level, nodes) = self.nodes.last_mut().expect("a node is needed");
        let (level, node) = (*level, nodes.as_slice().first().expect("a node is needed"));
        let entered = decode(bytes, level, node)?;
        nodes.next();
        match entered {
            Node::Chunks(chunks) => self.chunks = chunks.into_iter(),
            Node::Nodes(below) => self.nodes.push((level - 1, below.into_iter())),
        }
        Ok(())
    }

    /// The nodes that will be needed, as far as they are known: the rest of the lowest level.
    pub fn nodes_ahead(&self) -> impl Iterator<Item = ChunkRef> {
        self.nodes.last().into_iter().flat_map(|(_, nodes)| nodes.as_slice()).map(|node| node.chunk)
    }
}
