//! What a content is, from bytes to chunks and back.
//!
//! Bytes are cut into chunks by [`chunker`], and each chunk is named by its hash. The list of a large content's
//! chunks is content itself, cut the same way into the nodes of a [`manifest`], so two versions of a large file share
//! most of their manifests as they share most of their bytes.
//!
//! How chunks get from one node to another is in [`transfer`] (which chunk from whom, next) and [`exchange`] (the
//! messages by which they are asked for and given). What [`delta`] has messages for is how to make them from another version of
//! the same content.

pub mod chunker;
pub mod delta;
pub mod exchange;
pub mod manifest;
pub mod parquet;
pub mod transfer;

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

/// The BLAKE3 hash of a chunk's bytes: its name everywhere.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkHash(pub [u8; 32]);

impl ChunkHash {
    /// The name of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "chunk {:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// A chunk by name and length in bytes, 1 to [`MAX_CHUNK_BYTES`](crate::limits::MAX_CHUNK_BYTES).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkRef {
    /// The name.
    pub hash: ChunkHash,
    /// The length in bytes.
    pub length: u32,
}

impl ChunkRef {
    /// The reference to these bytes, which must be no more than a chunk can hold.
    pub fn to(bytes: &[u8]) -> Self {
        let length = u32::try_from(bytes.len()).expect("a chunk is shorter than 4 GiB");
        Self { hash: ChunkHash::of(bytes), length }
    }

    /// Whether these are the bytes that are meant.
    pub fn is(&self, bytes: &[u8]) -> bool {
        self.length as usize == bytes.len() && self.hash == ChunkHash::of(bytes)
    }
}

/// A manifest node: the chunk that holds its references, and how many bytes of content lie beneath it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeRef {
    /// The node itself, which is stored and sent like any chunk.
    pub chunk: ChunkRef,
    /// The bytes of content beneath it.
    pub span: u64,
}

/// The bytes of a version, or where to find them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// The key was deleted.
    Deleted,
    /// The bytes themselves; at most [`MAX_INLINE_BYTES`](crate::limits::MAX_INLINE_BYTES). Empty content is always
    /// inline. Shared, since a version is copied often on its way.
    Inline(Arc<[u8]>),
    /// One or more chunks, at most [`MAX_TOP_REFS`](crate::limits::MAX_TOP_REFS), in order.
    Chunks(Box<[ChunkRef]>),
    /// The top of a manifest.
    Tree {
        /// How many levels of nodes lie between the top and the chunks: at least one.
        level: u8,
        /// The nodes of the uppermost level, at most [`MAX_TOP_REFS`](crate::limits::MAX_TOP_REFS), in order.
        nodes: Box<[NodeRef]>,
    },
}

impl Content {
    /// The length in bytes; zero for a deletion.
    pub fn size(&self) -> u64 {
        match self {
            Self::Deleted => 0,
            Self::Inline(bytes) => bytes.len() as u64,
            Self::Chunks(chunks) => chunks.iter().map(|chunk| u64::from(chunk.length)).sum(),
            Self::Tree { nodes, .. } => nodes.iter().map(|node| node.span).sum(),
        }
    }

    /// Sixteen bytes that stand for the content's bytes: equal for equal bytes, so that a change of attributes can be
    /// told from a change of content without reading either.
    pub fn id(&self) -> [u8; 16] {
        let mut bytes = alloc::vec::Vec::new();
        match self {
            Self::Inline(inline) if !inline.is_empty() => {
                let chunks = Self::Chunks([ChunkRef::to(inline)].into());
                crate::model::canonical::encode_content(&chunks, &mut bytes);
            }
            _ => crate::model::canonical::encode_content(self, &mut bytes),
        }
        let hash = blake3::hash(&bytes);
        *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
    }

    /// Whether two contents are the same bytes. Chunks are cut alike everywhere, so equal bytes have equal names.
    pub fn same_bytes(&self, other: &Self) -> bool {
        let one_chunk_is = |chunks: &[ChunkRef], bytes: &[u8]| match chunks {
            [chunk] => chunk.is(bytes),
            _ => false,
        };
        match (self, other) {
            (Self::Inline(bytes), Self::Chunks(chunks))
            | (Self::Chunks(chunks), Self::Inline(bytes)) => one_chunk_is(chunks, bytes),
            _ => self == other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_content_equals_the_chunk_of_the_same_bytes() {
        let inline = Content::Inline((*b"hello").into());
        let chunk = Content::Chunks([ChunkRef::to(b"hello")].into());
        assert!(inline.same_bytes(&chunk) && chunk.same_bytes(&inline));
        assert!(!inline.same_bytes(&Content::Chunks([ChunkRef::to(b"other")].into())));
        assert_eq!(inline.id(), chunk.id());
        assert!(!Content::Deleted.same_bytes(&Content::Inline([].into())));
    }
}
