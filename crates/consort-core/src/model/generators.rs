//! Random values of the model, for property tests.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use proptest::prelude::*;

use crate::content::{ChunkHash, ChunkRef, Content, NodeRef};
use crate::limits::{MAX_CHUNK_BYTES, MAX_MANIFEST_LEVELS, MAX_NODE_BYTES};
use crate::model::attributes::{Attributes, Kind, Origin};
use crate::model::hlc::Timestamp;
use crate::model::id::AuthorId;
use crate::model::key::Key;
use crate::model::vector::{Dot, VersionVector};
use crate::model::version::{Entry, Version};

/// Any key.
pub(crate) fn any_key() -> impl Strategy<Value = Key> {
    prop::collection::vec("[a-zé日.]{1,8}", 1..5)
        .prop_map(|parts| parts.join("/"))
        .prop_filter_map("dots alone are no component", |text| Key::new(text).ok())
}

/// Any entry.
pub(crate) fn any_entry() -> impl Strategy<Value = Entry> {
    (any_key(), any_version()).prop_map(|(key, version)| Entry { key, version })
}

/// Any version that could come from a writer.
pub(crate) fn any_version() -> impl Strategy<Value = Version> {
    (
        any_dot(),
        prop::collection::vec((any_dot(), any::<bool>()), 0..5),
        any_content(),
        any_attributes(),
    )
        .prop_map(|(dot, others, content, attributes)| {
            let mut seen = VersionVector::new();
            for (other, _) in &others {
                seen.advance(*other);
            }
            for (other, _) in others.iter().filter(|(_, excluded)| *excluded) {
                seen.exclude(*other);
            }
            seen.exclude(dot);
            Version { dot, seen, content, attributes }
        })
}

fn any_dot() -> impl Strategy<Value = Dot> {
    (0u8..4, 1..=u64::MAX)
        .prop_map(|(author, time)| Dot { author: AuthorId([author; 16]), time: Timestamp(time) })
}

fn any_chunk(longest: usize) -> impl Strategy<Value = ChunkRef> {
    let longest = u32::try_from(longest).expect("a chunk is shorter than 4 GiB");
    (any::<[u8; 32]>(), 1..=longest)
        .prop_map(|(hash, length)| ChunkRef { hash: ChunkHash(hash), length })
}

fn any_content() -> impl Strategy<Value = Content> {
    let node = (any_chunk(MAX_NODE_BYTES), 1u64..1 << 40);
    let node = node.prop_map(|(chunk, span)| NodeRef { chunk, span });
    prop_oneof![
        Just(Content::Deleted),
        prop::collection::vec(any::<u8>(), 0..64).prop_map(|bytes| Content::Inline(bytes.into())),
        prop::collection::vec(any_chunk(MAX_CHUNK_BYTES), 1..6)
            .prop_map(|chunks| Content::Chunks(chunks.into())),
        (1..=MAX_MANIFEST_LEVELS, prop::collection::vec(node, 1..6))
            .prop_map(|(level, nodes)| Content::Tree { level, nodes: nodes.into() }),
    ]
}

fn any_attributes() -> impl Strategy<Value = Attributes> {
    let kind = prop_oneof![Just(Kind::File), Just(Kind::Directory), Just(Kind::Symlink)];
    let origin = prop_oneof![Just(Origin::Real), Just(Origin::Synthetic), Just(Origin::Derived)];
    let metadata = prop::collection::btree_map("[a-z]{1,6}", ".{0,6}", 0..3);
    let unknown = prop::collection::btree_map(5u64..1000, any::<Vec<u8>>(), 0..3);
    let media_type = prop::option::of("[a-z/]{1,9}");
    let seal = prop::option::of(any::<Vec<u8>>());
    (kind, 0u16..=0o777, any::<i64>(), origin, media_type, metadata, seal, unknown).prop_map(
        |(kind, mode, modified_ns, origin, media_type, metadata, seal, unknown)| Attributes {
            kind,
            mode,
            modified_ns,
            origin,
            media_type: media_type.map(String::into_boxed_str),
            metadata: metadata.into_iter().map(|(k, v)| (Box::from(k), Box::from(v))).collect(),
            seal: seal.map(Vec::into_boxed_slice),
            unknown: unknown.into_iter().map(|(k, v)| (k, v.into())).collect(),
        },
    )
}
