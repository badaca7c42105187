//! What opening a store takes: the lock, the stamp, what the rows say, and why it may fail.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort_core::store::{Epoch, StoreError};
use consort_core::{AuthorId, DatasetId, Timestamp};
use rustix::fs::{FlockOperation, flock};
use thiserror::Error;

use crate::layout::{self, DatasetRow, Identity, PackTail, Stamp, Table};
use crate::lsm::{Tables, damaged};
use crate::packs::sync_directory;
use crate::view::decoded;

/// Why a store could not be opened. Nothing in it was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store in {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// A later version of this program wrote it.
    #[error(
        "the store has format {found}, newer than {known}, which this version of consort knows"
    )]
    NewerFormat {
        /// The format of the store.
        found: u32,
        /// The latest that is known.
        known: u32,
    },
    /// Its files are not what they must be.
    #[error("the store is damaged ({0})")]
    Damaged(String),
    /// The medium failed.
    #[error("cannot use {}: {source}", path.display())]
    Io {
        /// What was opened.
        path: PathBuf,
        /// How it failed.
        source: io::Error,
    },
}

impl OpenError {
    /// What to do about it. The store is called by its place in a node's home.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Locked(_) => "stop that node first, or use another --home",
            Self::NewerFormat { .. } => {
                "install the version of consort that wrote it, or a later one"
            }
            Self::Damaged(_) => DAMAGED_HINT,
            Self::Io { .. } => {
                "see that the disk has room, and that the user who runs the node may read and write there"
            }
        }
    }
}

/// What to do about a store that is damaged. It is all that is: who the node is, and the authority of its cluster, are
/// elsewhere in the home.
pub const DAMAGED_HINT: &str = "move `store` out of the home, keep it, and start the node: its peers give back what they have; then link its directories again";

/// What the rows say when a store is opened.
pub(super) struct Found {
    pub(super) identity: Option<Identity>,
    pub(super) clock: Timestamp,
    pub(super) pack_tail: PackTail,
    pub(super) datasets: BTreeMap<DatasetId, DatasetRow>,
}

impl Found {
    pub(super) fn read(tables: &Arc<Tables>) -> Result<Self, StoreError> {
        let moment = tables.moment();
        let get = |key: &[u8]| moment.get(Table::Node, key);
        let node = Table::Node;
        let identity =
            decoded(node, get(&layout::IDENTITY)?.map(|row| layout::decode_identity(&row)))?;
        let clock = decoded(node, get(&layout::CLOCK)?.map(|row| layout::decode_clock(&row)))?;
        let tail =
            decoded(node, get(&layout::PACK_TAIL)?.map(|row| layout::decode_pack_tail(&row)))?;
        let mut datasets = BTreeMap::new();
        for row in moment.rows(node, &layout::DATASETS, layout::DATASETS.to_vec()) {
            let (key, value) = row?;
            let wrong = |error| damaged(node, error);
            let id = layout::dataset_of(&key).map_err(wrong)?;
            datasets.insert(id, layout::decode_dataset(&value).map_err(wrong)?);
        }
        Ok(Self {
            identity,
            clock: clock.unwrap_or_default(),
            pack_tail: tail.unwrap_or_default(),
            datasets,
        })
    }
}

/// An author and an epoch that nobody had before. The rest of an author is long enough to be unique by itself.
pub(crate) fn draw_identity(
    stamp: Stamp,
    author_begins: Option<[u8; 8]>,
) -> Result<Identity, StoreError> {
    let mut random = [0; 24];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut random))
        .map_err(|error| StoreError::Failed(format!("no random numbers: {error}")))?;
    if let Some(begins) = author_begins {
        random[..8].copy_from_slice(&begins);
    }
    let (author, epoch) = random.split_first_chunk::<16>().expect("24 bytes");
    let epoch = epoch.try_into().expect("8 bytes are left of 24");
    Ok(Identity { author: AuthorId(*author), epoch: Epoch(u64::from_le_bytes(epoch)), stamp })
}

/// The first half of an identity.
pub(crate) fn half(id: [u8; 16]) -> [u8; 8] {
    *id.first_chunk().expect("8 of 16 bytes")
}

pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(path).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(OpenError::Locked(path.parent().unwrap_or(path).to_owned()))
        }
        Err(error) => Err(failed(error.into())),
    }
}

/// Whether somebody has the lock. What does not exist nobody has.
pub(super) fn is_locked(path: &Path) -> bool {
    let Ok(file) = File::open(path) else { return false };
    flock(&file, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// What the stamp file is, which is made if it is missing.
pub(super) fn stamp(directory: &Path) -> io::Result<Stamp> {
    let path = directory.join("STAMP");
    if !path.try_exists()? {
        File::create(&path)?.sync_all()?;
        sync_directory(directory)?;
    }
    let metadata = fs::metadata(&path)?;
    let changed_ns =
        metadata.ctime().saturating_mul(1_000_000_000).saturating_add(metadata.ctime_nsec());
    Ok(Stamp { inode: metadata.ino(), changed_ns })
}

pub(super) fn unreadable(error: StoreError) -> OpenError {
    OpenError::Damaged(error.to_string())
}
