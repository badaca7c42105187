//! Manifests: lists of chunks that are too long for a version, as trees whose nodes are chunks themselves.
//!
//! A node ends where the hash of its last reference says so, as chunks end where their bytes say so. A change of one
//! chunk therefore changes one node of each level, about `AVERAGE_NODE_REFS` references each, and leaves the others
//! to be shared. [`ManifestBuilder`] is fed one chunk at a time and holds one open node per level, so the memory of
//! indexing does not depend on the size of a file. [`Walk`] is the way back, from the content to its chunks.

mod walk;

pub use self::walk::{Step, Walk};

use alloc::vec::Vec;

use thiserror::Error;

use crate::content::{ChunkRef, Content, NodeRef};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::{
    AVERAGE_NODE_REFS, MAX_MANIFEST_LEVELS, MAX_NODE_REFS, MAX_TOP_REFS, MIN_NODE_REFS,
};
use crate::model::canonical::{decode_chunk, decode_node, encode_chunk, encode_node};

/// One manifest node, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// Of level 1: references to chunks of content.
    Chunks(Vec<ChunkRef>),
    /// Of a higher level: references to nodes of the level beneath.
    Nodes(Vec<NodeRef>),
}

/// Why a manifest node was refused, although its bytes have the hash that was asked for: its author made it wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NodeError {
    /// The bytes are no node.
    #[error("a manifest node is damaged: {0}")]
    Malformed(#[from] DecodeError),
    /// What lies beneath is not as long as the reference to the node says.
    #[error("a manifest node does not have the length that its reference gives")]
    WrongSpan,
}

/// Why a list of chunks cannot be made a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the content is too long: a manifest has at most {MAX_MANIFEST_LEVELS} levels")]
pub struct TooLong;

/// Decodes the node of `level` whose bytes `reference` names; the bytes' hash was checked before.
pub fn decode(bytes: &[u8], level: u8, reference: &NodeRef) -> Result<Node, NodeError> {
    let mut from = Reader::new(bytes);
    let least_bytes = if level == 1 { 33 } else { 34 };
    let count = from.count(least_bytes, MAX_NODE_REFS, "manifest node")?;
    let (node, span) = if level == 1 {
        let chunks = (0..count).map(|_| decode_chunk(&mut from)).collect::<Result<Vec<_>, _>>()?;
        let span = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
        (Node::Chunks(chunks), span)
    } else {
        let nodes = (0..count).map(|_| decode_node(&mut from)).collect::<Result<Vec<_>, _>>()?;
        let span = nodes.iter().map(|node| node.span).sum::<u64>();
        (Node::Nodes(nodes), span)
    };
    from.finish()?;
    if span == reference.span { Ok(node) } else { Err(NodeError::WrongSpan) }
}

/// Turns a content's chunks, in order, into the [`Content`] that names them all.
#[derive(Debug, Default)]
pub struct ManifestBuilder {
    /// The chunks, then each level of nodes above them.
    levels: Vec<Level>,
}

/// One level's references that are not in a node yet.
#[derive(Debug, Default)]
struct Level {
    open: Vec<NodeRef>,
    /// Whether nodes were made of this level, so that it cannot be the top any more.
    split: bool,
}

impl ManifestBuilder {
    /// Takes the next chunk. `emit` is given each manifest node that is complete, to be stored like any chunk.
    pub fn push(&mut self, chunk: ChunkRef, emit: &mut impl FnMut(ChunkRef, &[u8])) {
        self.add(0, NodeRef { chunk, span: u64::from(chunk.length) }, emit);
    }

    /// The content of all chunks that were pushed. No chunks are the empty content.
    pub fn finish(mut self, emit: &mut impl FnMut(ChunkRef, &[u8])) -> Result<Content, TooLong> {
        let mut at = 0;
        while self.levels.get(at).is_some_and(|level| level.split) {
            if !self.levels[at].open.is_empty() {
                self.close(at, emit);
            }
            at += 1;
        }
        let top = self.levels.pop().unwrap_or_default().open;
        match u8::try_from(at) {
            Ok(0) if top.is_empty() => Ok(Content::Inline([].into())),
            Ok(0) => Ok(Content::Chunks(top.iter().map(|node| node.chunk).collect())),
            Ok(level) if level <= MAX_MANIFEST_LEVELS => {
                Ok(Content::Tree { level, nodes: top.into() })
            }
            _ => Err(TooLong),
        }
    }

    fn add(&mut self, at: usize, node: NodeRef, emit: &mut impl FnMut(ChunkRef, &[u8])) {
        if self.levels.len() <= at {
            self.levels.push(Level::default());
        }
        let level = &mut self.levels[at];
        level.open.push(node);
        if level.split {
            self.close_if_ended(at, emit);
        } else if MAX_TOP_REFS < level.open.len() {
            // Too long for a top: cut what has gathered as if it had been cut from the start.
            level.split = true;
            for node in core::mem::take(&mut level.open) {
                self.levels[at].open.push(node);
                self.close_if_ended(at, emit);
            }
        }
    }

    fn close_if_ended(&mut self, at: usize, emit: &mut impl FnMut(ChunkRef, &[u8])) {
        let open = &self.levels[at].open;
        let chosen = |node: &NodeRef| usize::from(node.chunk.hash.0[0]) % AVERAGE_NODE_REFS == 0;
        let ended = MIN_NODE_REFS <= open.len() && open.last().is_some_and(chosen);
        if ended || MAX_NODE_REFS <= open.len() {
            self.close(at, emit);
        }
    }

    fn close(&mut self, at: usize, emit: &mut impl FnMut(ChunkRef, &[u8])) {
        let refs = core::mem::take(&mut self.levels[at].open);
        let mut bytes = Vec::with_capacity(refs.len() * 48 + 2);
        let mut writer = Writer(&mut bytes);
        writer.count(refs.len());
        for node in &refs {
            match at {
                0 => encode_chunk(&node.chunk, &mut writer),
                _ => encode_node(node, &mut writer),
            }
        }
        let chunk = ChunkRef::to(&bytes);
        emit(chunk, &bytes);
        let span = refs.iter().map(|node| node.span).sum();
        self.add(at + 1, NodeRef { chunk, span }, emit);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::content::ChunkHash;

    type Nodes = BTreeMap<ChunkHash, Vec<u8>>;

    fn chunk(seed: u64) -> ChunkRef {
        ChunkRef { hash: ChunkHash::of(&seed.to_le_bytes()), length: 1 + (seed % 60_000) as u32 }
    }

    fn build(chunks: &[ChunkRef]) -> (Content, Nodes) {
        let mut nodes = Nodes::new();
        let mut emit = |chunk: ChunkRef, bytes: &[u8]| {
            assert!(chunk.is(bytes));
            nodes.insert(chunk.hash, bytes.to_vec());
        };
        let mut builder = ManifestBuilder::default();
        chunks.iter().for_each(|chunk| builder.push(*chunk, &mut emit));
        let content = builder.finish(&mut emit).expect("short enough");
        (content, nodes)
    }

    fn flatten(content: &Content, nodes: &Nodes) -> Vec<ChunkRef> {
        let (mut walk, mut chunks, mut at) = (Walk::new(content), Vec::new(), 0);
        loop {
            match walk.step() {
                Step::Chunk(offset, chunk) => {
                    assert_eq!(offset, at);
                    at += u64::from(chunk.length);
                    chunks.push(chunk);
                }
                Step::Needs(node) => {
                    assert_eq!(walk.nodes_ahead().next(), Some(node));
                    assert!(walk.enter(b"no node").is_err());
                    assert_eq!(walk.step(), Step::Needs(node), "what was refused is still needed");
                    walk.enter(&nodes[&node.hash]).expect("a good node");
                }
                Step::End => return chunks,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_manifest_names_the_chunks_it_was_built_from(count in 0usize..5_000, seed: u32) {
            let chunks: Vec<_> = (0..count as u64).map(|n| chunk(u64::from(seed) << 20 | n)).collect();
            let (content, nodes) = build(&chunks);
            prop_assert_eq!(flatten(&content, &nodes), &chunks[..]);
            let size: u64 = chunks.iter().map(|chunk| u64::from(chunk.length)).sum();
            prop_assert_eq!(content.size(), size);
        }

        #[test]
        fn a_manifest_does_not_depend_on_how_its_chunks_arrived(
            count in 0u64..2_000,
            pauses in prop::collection::vec(0usize..2_000, 0..5),
        ) {
            let chunks: Vec<_> = (0..count).map(chunk).collect();
            let (expected, nodes) = build(&chunks);
            let mut emitted = Nodes::new();
            let mut emit = |chunk: ChunkRef, bytes: &[u8]| {
                emitted.insert(chunk.hash, bytes.to_vec());
            };
            let mut builder = ManifestBuilder::default();
            let mut rest = &chunks[..];
            for pause in pauses {
                let (batch, later) = rest.split_at(pause.min(rest.len()));
                batch.iter().for_each(|chunk| builder.push(*chunk, &mut emit));
                rest = later;
            }
            rest.iter().for_each(|chunk| builder.push(*chunk, &mut emit));
            prop_assert_eq!(builder.finish(&mut emit), Ok(expected));
            prop_assert_eq!(emitted, nodes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, level in 1u8..5) {
            let reference = NodeRef { chunk: chunk(1), span: 1 };
            let _ = decode(&bytes, level, &reference);
        }
    }

    #[test]
    fn a_changed_chunk_changes_about_one_node_a_level() {
        let mut chunks: Vec<_> = (0..100_000).map(chunk).collect();
        let (before, old) = build(&chunks);
        chunks.splice(40_000..40_001, [chunk(900_001), chunk(900_002)]);
        let (after, new) = build(&chunks);
        assert_ne!(before, after);
        let fresh = new.keys().collect::<BTreeSet<_>>().difference(&old.keys().collect()).count();
        assert!(fresh <= 2 * 3, "{fresh} nodes of {} are new", new.len());
    }

    #[test]
    fn a_node_that_lies_about_its_length_is_refused() {
        let (content, nodes) = build(&(0..1_000).map(chunk).collect::<Vec<_>>());
        let Content::Tree { level: 1, nodes: top } = content else { panic!("one level is enough") };
        let lie = NodeRef { span: top[0].span + 1, ..top[0] };
        let bytes = &nodes[&top[0].chunk.hash];
        assert_eq!(decode(bytes, 1, &lie), Err(NodeError::WrongSpan));
    }
}
