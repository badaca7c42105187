//! What a version says about its content, apart from the bytes.

use alloc::boxed::Box;
use alloc::vec::Vec;

/// What an entry is in a directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A file, or a record: the content is its bytes.
    #[default]
    File,
    /// A directory: the content is empty. Its entries are entries of their own.
    Directory,
    /// A symbolic link: the content is its target, which is never followed.
    Symlink,
}

/// Where the content came from, as the writer declared it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// Observed or recorded.
    #[default]
    Real,
    /// Generated.
    Synthetic,
    /// Computed from other content.
    Derived,
}

/// A version's attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// What the entry is.
    pub kind: Kind,
    /// Permission bits, `0o777` at most. Set-id and sticky bits are not replicated.
    pub mode: u16,
    /// Modification time in nanoseconds since 1970-01-01 UTC. Not replicated for directories (then zero), since
    /// writing into a directory changes it.
    pub modified_ns: i64,
    /// Where the content came from.
    pub origin: Origin,
    /// The media type, as in HTTP.
    pub media_type: Option<Box<str>>,
    /// The user's own names and values, ordered by name, no name twice.
    pub metadata: Vec<(Box<str>, Box<str>)>,
    /// What vouches for the whole version with its key, made by a [`Sealer`](crate::store::Sealer) where it was
    /// written. What it says is not known here: whoever does not trust those who pass the version on asks it.
    pub seal: Option<Box<[u8]>>,
    /// Attributes of a later program version, kept as they came so that they reach those who know them: tag and
    /// bytes, ordered by tag.
    pub unknown: Vec<(u64, Box<[u8]>)>,
}

/// The permission bits that are replicated.
pub const MODE_MASK: u16 = 0o777;

impl Default for Attributes {
    fn default() -> Self {
        Self {
            kind: Kind::File,
            mode: 0o644,
            modified_ns: 0,
            origin: Origin::Real,
            media_type: None,
            metadata: Vec::new(),
            seal: None,
            unknown: Vec::new(),
        }
    }
}

impl Attributes {
    /// Whether two versions with equal bytes and these attributes are equal to a person: nobody would want to be
    /// asked which one to keep. Modification times may differ, and so may seals: each belongs to one version only.
    pub fn alike(&self, other: &Self) -> bool {
        let same_to_the_letter = self.media_type == other.media_type
            && self.metadata == other.metadata
            && self.unknown == other.unknown
            && self.origin == other.origin;
        self.kind == other.kind && self.mode == other.mode && same_to_the_letter
    }
}
