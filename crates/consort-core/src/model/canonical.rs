//! The one encoding of an entry. The fingerprint hashes it, links send it and stores keep it, so the same version has
//! the same bytes everywhere and for ever; `docs/protocol.md` states them. Every value has exactly one encoding, and
//! decoding refuses every other.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::content::{ChunkHash, ChunkRef, Content, NodeRef};
use crate::encoding::{DecodeError, Reader, Writer};
use crate::limits::*;
use crate::model::attributes::{Attributes, Kind, MODE_MASK, Origin};
use crate::model::frontier::Frontier;
use crate::model::hlc::Timestamp;
use crate::model::id::AuthorId;
use crate::model::key::Key;
use crate::model::vector::{Dot, VersionVector};
use crate::model::version::{Entry, Version};

/// The fewest bytes that an entry can take: for checking counts before allocating.
pub const LEAST_ENTRY_BYTES: usize = 2 + LEAST_VERSION_BYTES;
const LEAST_VERSION_BYTES: usize = 16 + 8 + 2 + 1 + 4;

/// Appends the canonical bytes of an entry.
pub fn encode_entry(entry: &Entry, to: &mut Vec<u8>) {
    Writer(to).bytes(entry.key.as_bytes());
    encode_version(&entry.version, to);
}

/// Reads an entry.
pub fn decode_entry(from: &mut Reader<'_>) -> Result<Entry, DecodeError> {
    let key = from.text(MAX_KEY_BYTES, "key")?;
    let key = Key::new(key).map_err(|_| DecodeError::Invalid { what: "key" })?;
    Ok(Entry { key, version: decode_version(from)? })
}

/// Appends the canonical bytes of a version without its key.
pub fn encode_version(version: &Version, to: &mut Vec<u8>) {
    encode_dot(version.dot, to);
    encode_vector(&version.seen, to);
    encode_content(&version.content, to);
    encode_attributes(&version.attributes, to);
}

/// Reads a version without its key.
pub fn decode_version(from: &mut Reader<'_>) -> Result<Version, DecodeError> {
    let dot = decode_dot(from)?;
    // No clock gives it out, and no frontier holds it.
    if dot.time == Timestamp(0) {
        return Err(DecodeError::Invalid { what: "time" });
    }
    let seen = decode_vector(from)?;
    if seen.contains(dot) {
        return Err(DecodeError::Invalid { what: "seen vector" });
    }
    Ok(Version { dot, seen, content: decode_content(from)?, attributes: decode_attributes(from)? })
}

/// Appends a dot: 24 bytes.
pub fn encode_dot(dot: Dot, to: &mut Vec<u8>) {
    let mut to = Writer(to);
    to.raw(&dot.author.0);
    to.u64(dot.time.0);
}

/// Reads a dot.
pub fn decode_dot(from: &mut Reader<'_>) -> Result<Dot, DecodeError> {
    let author = AuthorId(from.array("author")?);
    Ok(Dot { author, time: Timestamp(from.u64("time")?) })
}

/// Appends a frontier: 24 bytes for each author, by rising author.
pub fn encode_frontier(frontier: &Frontier, to: &mut Vec<u8>) {
    Writer(to).count(frontier.len());
    frontier.times().for_each(|(author, time)| encode_dot(Dot { author, time }, to));
}

/// Reads a frontier of at most `limit` authors.
pub fn decode_frontier(from: &mut Reader<'_>, limit: usize) -> Result<Frontier, DecodeError> {
    const WHAT: DecodeError = DecodeError::Invalid { what: "frontier" };
    let count = from.count(24, limit, "frontier")?;
    let (mut frontier, mut last) = (Frontier::new(), None);
    for _ in 0..count {
        let Dot { author, time } = decode_dot(from)?;
        if Some(author) <= last || time == Timestamp(0) {
            return Err(WHAT);
        }
        last = Some(author);
        frontier.raise(author, time);
    }
    Ok(frontier)
}

fn encode_vector(vector: &VersionVector, to: &mut Vec<u8>) {
    Writer(to).count(vector.authors().len());
    for &(author, time) in vector.authors() {
        encode_dot(Dot { author, time }, to);
    }
    Writer(to).count(vector.exceptions().len());
    for &dot in vector.exceptions() {
        encode_dot(dot, to);
    }
}

fn decode_vector(from: &mut Reader<'_>) -> Result<VersionVector, DecodeError> {
    let authors = from.count(24, MAX_VECTOR_AUTHORS, "authors of a vector")?;
    let upto = (0..authors)
        .map(|_| decode_dot(from).map(|dot| (dot.author, dot.time)))
        .collect::<Result<_, _>>()?;
    let exceptions = from.count(24, MAX_VECTOR_EXCEPTIONS, "exceptions of a vector")?;
    let except = (0..exceptions).map(|_| decode_dot(from)).collect::<Result<_, _>>()?;
    VersionVector::from_parts(upto, except).ok_or(DecodeError::Invalid { what: "seen vector" })
}

const DELETED: u8 = 0;
const INLINE: u8 = 1;
const CHUNKS: u8 = 2;
const TREE: u8 = 3;

/// Appends a content.
pub(crate) fn encode_content(content: &Content, to: &mut Vec<u8>) {
    let mut to = Writer(to);
    match content {
        Content::Deleted => to.u8(DELETED),
        Content::Inline(bytes) => {
            to.u8(INLINE);
            to.bytes(bytes);
        }
        Content::Chunks(chunks) => {
            to.u8(CHUNKS);
            to.count(chunks.len());
            chunks.iter().for_each(|chunk| encode_chunk(chunk, &mut to));
        }
        Content::Tree { level, nodes } => {
            to.u8(TREE);
            to.u8(*level);
            to.count(nodes.len());
            nodes.iter().for_each(|node| encode_node(node, &mut to));
        }
    }
}

pub(crate) fn decode_content(from: &mut Reader<'_>) -> Result<Content, DecodeError> {
    match from.u8("content")? {
        DELETED => Ok(Content::Deleted),
        INLINE => Ok(Content::Inline(from.bytes(MAX_INLINE_BYTES, "inline content")?.into())),
        CHUNKS => {
            let count = from.count(33, MAX_TOP_REFS, "chunks of a content")?;
            let chunks = (0..count).map(|_| decode_chunk(from)).collect::<Result<Box<[_]>, _>>()?;
            if chunks.is_empty() {
                return Err(DecodeError::Invalid { what: "chunks of a content" });
            }
            Ok(Content::Chunks(chunks))
        }
        TREE => {
            let level = from.u8("manifest level")?;
            let count = from.count(34, MAX_TOP_REFS, "nodes of a manifest")?;
            let nodes = (0..count).map(|_| decode_node(from)).collect::<Result<Box<[_]>, _>>()?;
            if nodes.is_empty() || !(1..=MAX_MANIFEST_LEVELS).contains(&level) {
                return Err(DecodeError::Invalid { what: "manifest" });
            }
            Ok(Content::Tree { level, nodes })
        }
        _ => Err(DecodeError::Invalid { what: "content" }),
    }
}

/// Appends a reference to a chunk.
pub(crate) fn encode_chunk(chunk: &ChunkRef, to: &mut Writer<'_>) {
    to.raw(&chunk.hash.0);
    to.varint(u64::from(chunk.length));
}

/// Reads a reference to a chunk.
pub(crate) fn decode_chunk(from: &mut Reader<'_>) -> Result<ChunkRef, DecodeError> {
    let hash = ChunkHash(from.array("chunk hash")?);
    let length = from.varint("chunk length")?;
    match u32::try_from(length) {
        Ok(length) if (1..=MAX_CHUNK_BYTES).contains(&(length as usize)) => {
            Ok(ChunkRef { hash, length })
        }
        _ => Err(DecodeError::Invalid { what: "chunk length" }),
    }
}

/// Appends a reference to a manifest node.
pub(crate) fn encode_node(node: &NodeRef, to: &mut Writer<'_>) {
    encode_chunk(&node.chunk, to);
    to.varint(node.span);
}

/// Reads a reference to a manifest node.
pub(crate) fn decode_node(from: &mut Reader<'_>) -> Result<NodeRef, DecodeError> {
    let chunk = decode_chunk(from)?;
    if MAX_NODE_BYTES < chunk.length as usize {
        return Err(DecodeError::Invalid { what: "manifest node length" });
    }
    let span = from.varint("manifest span")?;
    // A content is no longer than a file can be, so that sums of spans cannot overflow.
    if span == 0 || i64::MAX as u64 / MAX_NODE_REFS as u64 <= span {
        return Err(DecodeError::Invalid { what: "manifest span" });
    }
    Ok(NodeRef { chunk, span })
}

const ORIGIN: u64 = 1;
const MEDIA_TYPE: u64 = 2;
const METADATA: u64 = 3;
const SEAL: u64 = 4;
/// How many tags this version knows.
const KNOWN_ATTRIBUTES: usize = 4;

fn encode_attributes(attributes: &Attributes, to: &mut Vec<u8>) {
    let mut to = Writer(to);
    to.u8(match attributes.kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
    });
    to.varint(u64::from(attributes.mode & MODE_MASK));
    to.signed(attributes.modified_ns);
    // Defaults are left out; the rest is tagged, so that a later version can add to it.
    let mut extra: Vec<(u64, Vec<u8>)> = Vec::new();
    match attributes.origin {
        Origin::Real => {}
        Origin::Synthetic => extra.push((ORIGIN, [1].to_vec())),
        Origin::Derived => extra.push((ORIGIN, [2].to_vec())),
    }
    if let Some(media_type) = &attributes.media_type {
        extra.push((MEDIA_TYPE, media_type.as_bytes().to_vec()));
    }
    if !attributes.metadata.is_empty() {
        let mut bytes = Vec::new();
        for (name, value) in &attributes.metadata {
            Writer(&mut bytes).bytes(name.as_bytes());
            Writer(&mut bytes).bytes(value.as_bytes());
        }
        extra.push((METADATA, bytes));
    }
    if let Some(seal) = &attributes.seal {
        extra.push((SEAL, seal.to_vec()));
    }
    extra.extend(attributes.unknown.iter().map(|(tag, bytes)| (*tag, bytes.to_vec())));
    to.count(extra.len());
    for (tag, bytes) in extra {
        to.varint(tag);
        to.bytes(&bytes);
    }
}

fn decode_attributes(from: &mut Reader<'_>) -> Result<Attributes, DecodeError> {
    let kind = match from.u8("kind")? {
        0 => Kind::File,
        1 => Kind::Directory,
        2 => Kind::Symlink,
        _ => return Err(DecodeError::Invalid { what: "kind" }),
    };
    let mode = u16::try_from(from.varint("mode")?).ok().filter(|mode| mode & !MODE_MASK == 0);
    let mode = mode.ok_or(DecodeError::Invalid { what: "mode" })?;
    let modified_ns = from.signed("modification time")?;
    let mut attributes = Attributes { kind, mode, modified_ns, ..Attributes::default() };
    let limit = MAX_UNKNOWN_ATTRIBUTES + KNOWN_ATTRIBUTES;
    let mut last_tag = 0;
    for _ in 0..from.count(2, limit, "attributes")? {
        let tag = from.varint("attribute")?;
        if tag <= last_tag {
            return Err(DecodeError::Invalid { what: "order of the attributes" });
        }
        last_tag = tag;
        decode_attribute(tag, from, &mut attributes)?;
    }
    if MAX_UNKNOWN_ATTRIBUTES < attributes.unknown.len() {
        return Err(DecodeError::TooLarge { what: "attributes", limit: MAX_UNKNOWN_ATTRIBUTES });
    }
    Ok(attributes)
}

fn decode_attribute(
    tag: u64,
    from: &mut Reader<'_>,
    attributes: &mut Attributes,
) -> Result<(), DecodeError> {
    match tag {
        ORIGIN => {
            attributes.origin = match from.bytes(1, "origin")? {
                [1] => Origin::Synthetic,
                [2] => Origin::Derived,
                _ => return Err(DecodeError::Invalid { what: "origin" }),
            };
        }
        MEDIA_TYPE => {
            attributes.media_type = Some(from.text(MAX_MEDIA_TYPE_BYTES, "media type")?.into());
        }
        METADATA => {
            let mut pairs = Reader::new(from.bytes(MAX_METADATA_BYTES, "metadata")?);
            while !pairs.is_empty() {
                let name = pairs.text(MAX_METADATA_BYTES, "metadata name")?;
                let value = pairs.text(MAX_METADATA_BYTES, "metadata value")?;
                attributes.metadata.push((name.into(), value.into()));
            }
            let ordered = attributes.metadata.is_sorted_by(|a, b| a.0 < b.0);
            if !ordered || attributes.metadata.is_empty() {
                return Err(DecodeError::Invalid { what: "metadata" });
            }
        }
        SEAL => attributes.seal = Some(from.bytes(MAX_SEAL_BYTES, "seal")?.into()),
        _ => {
            let bytes = from.bytes(MAX_UNKNOWN_ATTRIBUTE_BYTES, "attribute")?;
            attributes.unknown.push((tag, bytes.into()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::generators::any_entry;

    fn encoded(entry: &Entry) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode_entry(entry, &mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn an_entry_comes_back_from_its_bytes(entry in any_entry()) {
            let bytes = encoded(&entry);
            prop_assert!((LEAST_ENTRY_BYTES..=MAX_ENTRY_BYTES).contains(&bytes.len()));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(decode_entry(&mut reader), Ok(entry));
            prop_assert!(reader.is_empty());
        }

        #[test]
        fn what_decodes_encodes_to_the_same_bytes(
            entry in any_entry(),
            place in any::<prop::sample::Index>(),
            value: u8,
        ) {
            let mut bytes = encoded(&entry);
            let place = place.index(bytes.len());
            bytes[place] = value;
            let mut reader = Reader::new(&bytes);
            if let Ok(other) = decode_entry(&mut reader) {
                let used = bytes.len() - reader.remaining();
                prop_assert_eq!(encoded(&other), &bytes[..used]);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode_entry(&mut Reader::new(&bytes));
        }
    }

    #[test]
    fn a_manifest_node_that_is_longer_than_any_can_be_is_refused() {
        let longest = u32::try_from(MAX_NODE_BYTES).unwrap();
        let decoded = |length| {
            let chunk = ChunkRef { hash: ChunkHash([1; 32]), length };
            let mut bytes = Vec::new();
            encode_node(&NodeRef { chunk, span: 1 }, &mut Writer(&mut bytes));
            decode_node(&mut Reader::new(&bytes)).is_ok()
        };
        assert!(decoded(longest) && !decoded(longest + 1));
    }

    #[test]
    fn the_time_zero_is_refused_wherever_a_version_has_a_time() {
        const TIME: usize = 16;
        let dot = |author, time| Dot { author: AuthorId([author; 16]), time: Timestamp(time) };
        let mut seen = VersionVector::new();
        seen.advance(dot(1, 9));
        seen.exclude(dot(1, 3));
        let (content, attributes) = (Content::Deleted, Attributes::default());
        let mut bytes = Vec::new();
        encode_version(&Version { dot: dot(2, 5), seen, content, attributes }, &mut bytes);
        assert!(decode_version(&mut Reader::new(&bytes)).is_ok());
        // Its own dot, and after a count each, an author's time and an exception.
        for (place, what) in [(0, "time"), (25, "seen vector"), (50, "seen vector")] {
            let mut zero = bytes.clone();
            zero[place + TIME..][..8].fill(0);
            let decoded = decode_version(&mut Reader::new(&zero));
            assert_eq!(decoded, Err(DecodeError::Invalid { what }));
        }
    }
}
