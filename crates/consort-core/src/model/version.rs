//! A version: what one writer once wrote to one key.

use crate::content::Content;
use crate::model::attributes::Attributes;
use crate::model::key::Key;
use crate::model::vector::{Dot, VersionVector};

/// What one writer once wrote to one key. Two versions with the same dot are the same version.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version {
    /// Its identity.
    pub dot: Dot,
    /// The versions of the key that are over where it is: those that it replaces, whatever those had seen, and all that
    /// its author wrote to the key before, but for the exceptions. Of what its author wrote and then forgot it does not
    /// hold what that had seen, so it does not [cover](Self::covers) it. It never holds its own dot.
    pub seen: VersionVector,
    /// The bytes, or that they were deleted.
    pub content: Content,
    /// What else there is to know about them.
    pub attributes: Attributes,
}

/// A version with its key: what feeds, commits and links are made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The version.
    pub version: Version,
}

/// What an entry counts apart from what varies, in bytes; and each of its vector's dots, attributes, references.
const ENTRY: usize = 256;
const DOT: usize = 24;
const ATTRIBUTE: usize = 48;
const REFERENCE: usize = 48;
const _: () = assert!(size_of::<Entry>() <= ENTRY && size_of::<Dot>() <= DOT);

impl Entry {
    /// About how many bytes it takes in memory: what buffers of entries are bounded by. The same everywhere, since both
    /// ends of a link count by it.
    pub fn weight(&self) -> usize {
        let Version { seen, content, attributes, .. } = &self.version;
        let dots = seen.authors().len() + seen.exceptions().len();
        ENTRY + self.key.len() + dots * DOT + content.weight() + attributes.weight()
    }
}

impl Content {
    /// Its part of [`Entry::weight`].
    pub fn weight(&self) -> usize {
        match self {
            Self::Deleted => 0,
            Self::Inline(bytes) => bytes.len(),
            Self::Chunks(chunks) => chunks.len() * REFERENCE,
            Self::Tree { nodes, .. } => nodes.len() * REFERENCE,
        }
    }
}

impl Attributes {
    /// Its part of [`Entry::weight`].
    pub fn weight(&self) -> usize {
        let media_type = self.media_type.as_ref().map_or(0, |text| text.len());
        let metadata: usize =
            self.metadata.iter().map(|(name, value)| ATTRIBUTE + name.len() + value.len()).sum();
        let unknown: usize = self.unknown.iter().map(|(_, bytes)| ATTRIBUTE + bytes.len()).sum();
        let seal = self.seal.as_ref().map_or(0, |bytes| bytes.len());
        media_type + metadata + seal + unknown
    }
}

impl Version {
    /// Whether this version replaces `other`, directly or through others: it has seen the other's dot, and all that the
    /// other has seen. Two versions of a key of which neither covers the other are *concurrent*.
    ///
    /// Where nothing was forgotten, the second follows from the first. But an author has seen all that it wrote before,
    /// and may have forgotten what that replaced: it wrote a deletion, say. Then the deletion must not give way to this
    /// version where it is still remembered, or what it replaced could come back there.
    pub fn covers(&self, other: &Self) -> bool {
        self.seen.contains(other.dot) && self.seen.contains_all(&other.seen)
    }

    /// Whether this is a deletion.
    pub fn is_deleted(&self) -> bool {
        matches!(self.content, Content::Deleted)
    }

    /// Everything that this version has seen, and itself.
    pub fn closure(&self) -> VersionVector {
        let mut closure = self.seen.clone();
        closure.advance(self.dot);
        closure
    }

    /// Whether nobody would want to be asked which of the two to keep: the same bytes with like attributes, or two
    /// deletions.
    pub fn alike(&self, other: &Self) -> bool {
        match (self.is_deleted(), other.is_deleted()) {
            (true, true) => true,
            (false, false) => {
                self.content.same_bytes(&other.content) && self.attributes.alike(&other.attributes)
            }
            _ => false,
        }
    }
}
