//! What the stager hands to the engine: for each key what is to be done about it, and what the engine answers.

use std::collections::BTreeSet;
use std::sync::Arc;

use consort_core::store::Sequence;
use consort_core::{Key, Version};

use crate::content::staged::StagedFile;
use crate::folder::Staged;
use crate::folder::status::Underway;

/// Something that has to be done to one path.
#[derive(Debug)]
pub(in crate::folder) enum Op {
    /// Put a staged file there.
    Place {
        path: Key,
        /// Taken out when it is synced.
        staged: Option<Staged>,
        version: Arc<Version>,
    },
    /// Give the file that is to go at `from`, and is what belongs here, this path instead.
    Move { from: Key, path: Key, version: Arc<Version> },
    /// Make it a symlink.
    Symlink { path: Key, version: Arc<Version> },
    /// Make it a directory.
    Directory { path: Key, version: Arc<Version> },
    /// The bytes are right; only mode or modification time may not be.
    Attributes { path: Key, version: Arc<Version> },
    /// Nothing of this key is to be shown there any more.
    Remove { path: Key },
    /// What is there is not what is recorded, so nothing can be done before it was looked at.
    Look { path: Key },
    /// A directory is there that has to be emptied first.
    Wait { path: Key },
}

impl Op {
    pub(in crate::folder) fn path(&self) -> &Key {
        match self {
            Self::Place { path, .. }
            | Self::Move { path, .. }
            | Self::Symlink { path, .. }
            | Self::Directory { path, .. }
            | Self::Attributes { path, .. }
            | Self::Remove { path }
            | Self::Look { path }
            | Self::Wait { path } => path,
        }
    }

    /// The version that is to stand there.
    pub(in crate::folder) fn version(&self) -> Option<&Version> {
        match self {
            Self::Place { version, .. }
            | Self::Move { version, .. }
            | Self::Symlink { version, .. }
            | Self::Directory { version, .. }
            | Self::Attributes { version, .. } => Some(version),
            Self::Remove { .. } | Self::Look { .. } | Self::Wait { .. } => None,
        }
    }

    /// The path of the file that moves.
    pub(in crate::folder) fn moves_from(&self) -> Option<&Key> {
        match self {
            Self::Move { from, .. } => Some(from),
            _ => None,
        }
    }
}

/// What a key needs, losers first.
#[derive(Debug)]
pub(in crate::folder) struct Work {
    /// The key.
    pub(in crate::folder) key: Key,
    /// How new the pending change is that this does.
    pub(in crate::folder) sequence: Sequence,
    /// How new the newest version was that this was worked out from. If there is a newer one, this is not to be done.
    pub(in crate::folder) newest: Sequence,
    /// What to do.
    pub(in crate::folder) ops: Vec<Op>,
    /// Afterwards the directory shows all of the key, and nothing else of it.
    pub(in crate::folder) complete: bool,
    /// What was written for it.
    pub(in crate::folder) written: Underway,
    /// Its files with chunks of which nothing else knows before they are recorded.
    pub(in crate::folder) fresh: Vec<StagedFile>,
}

/// What became of a batch.
#[derive(Debug)]
pub(in crate::folder) struct Outcome {
    /// Its keys.
    pub(in crate::folder) keys: Vec<Key>,
    /// Something is different now, so that another pass may find more to do.
    pub(in crate::folder) changed: bool,
    /// Something could not be done now.
    pub(in crate::folder) left: bool,
    /// Files that were to move and stand where they were, for now.
    pub(in crate::folder) unmoved: BTreeSet<Key>,
    /// Directories out of which a file could not be moved, and cannot be later.
    pub(in crate::folder) unmovable: Vec<String>,
    /// Files that could not grow where they stand.
    pub(in crate::folder) ungrown: Vec<Key>,
}
