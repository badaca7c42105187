//! What a replica must remember: the contract of a store.
//!
//! A store keeps, for each dataset, the current versions of every key, a *feed* (its own order of what it applied),
//! the fingerprints of the current versions, a cursor for each peer's feed, and what it [knows](Knowledge) of deletions
//! that may be forgotten. It is read through a [`View`] of one
//! moment and changed by commits, each applied whole or not at all. How a commit changes these is decided here, in
//! [`apply`], once for all stores; a store only keeps rows. [`memory`] is the reference that others are compared
//! with, and `conformance` the suite that every store passes.

pub mod apply;
#[cfg(any(test, feature = "test-utils"))]
pub mod conformance;
pub mod memory;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Debug;

use thiserror::Error;

use crate::content::Content;
use crate::encoding::{DecodeError, Reader};
use crate::model::attributes::Attributes;
use crate::model::canonical;
use crate::model::commit::Commit;
use crate::model::conflict::Losers;
use crate::model::fingerprint::{Digest, Fingerprint, FingerprintKey};
use crate::model::frontier::{Frontier, Knowledge, Mark};
use crate::model::hlc::Timestamp;
use crate::model::id::{AuthorId, DatasetId, NodeId};
use crate::model::key::Key;
use crate::model::merge::Saw;
use crate::model::vector::{Dot, VersionVector};
use crate::model::version::{Entry, Version};
use crate::reconcile::Index;
use crate::time::WallTime;

/// A place in a feed: how many versions had been applied when it was passed. The first version gets 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

/// Tells one feed from another of the same node: a store that is made anew, or restored from a backup, begins a new
/// epoch, so that no cursor of the old one is taken for a place in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// A place in a certain feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The feed.
    pub epoch: Epoch,
    /// The place.
    pub sequence: Sequence,
}

/// A replica at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// What it holds.
    pub digest: Digest,
    /// The end of its feed.
    pub head: Cursor,
    /// How far it has collected: only between equal marks do equal contents have equal digests.
    pub frontier: Mark,
    /// It may hold what is dead by its frontier, since it took that from a peer, and has not compared since with somebody
    /// that does not.
    pub unburied: bool,
}

/// The tombstones of a replica, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tombstones {
    /// How many it holds.
    pub count: u64,
    /// The latest time of any that it ever held, and of what these replace: what has to be known for all of them to go.
    pub latest: Timestamp,
}

impl Tombstones {
    /// Counts a version, if it is one.
    pub fn add(&mut self, version: &Version) {
        if version.is_deleted() {
            let seen = version.seen.authors().iter().map(|(_, time)| *time);
            let latest = seen.fold(version.dot.time, Timestamp::max);
            self.count += 1;
            self.latest = self.latest.max(latest);
        }
    }
}

/// A current version as a store keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The version.
    pub version: Version,
    /// Its place in the feed.
    pub sequence: Sequence,
}

/// One row of a feed. Versions that were replaced since have no row any more, so a feed is never longer than what
/// its replica holds, and reading it from the start yields the whole replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedRow {
    /// The version's place.
    pub sequence: Sequence,
    /// The place of the last version that was applied together with it: where its commit ends.
    pub commit_end: Sequence,
    /// The peer that it came from; `None` if it was written here.
    pub via: Option<NodeId>,
    /// The version.
    pub entry: Entry,
}

/// A store could not do its work. Nothing was changed, or nothing can be said about what was.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// The medium failed or is full. Commits are refused until the store is opened again.
    #[error("the store failed: {0}; the disk may be full or broken")]
    Failed(String),
    /// Something that was stored cannot be read as what it must be.
    #[error(
        "the store is damaged ({0}); run `consort doctor`, and restore this node from its peers"
    )]
    Damaged(String),
    /// The dataset is not known here.
    #[error("this node has no dataset {0}")]
    UnknownDataset(DatasetId),
    /// A write cannot be a version: something of it is over its bound. The writer's fault; nothing was changed.
    #[error("`{key}` cannot be written: {reason}")]
    Refused {
        /// The key.
        key: Key,
        /// What is wrong with it.
        reason: DecodeError,
    },
    /// A key has more concurrent versions than a write can leave beside it. Nobody's fault; nothing was changed.
    #[error(
        "`{key}` has {versions} concurrent versions, more than a write can leave beside it; choose one of them first, with `consort conflicts resolve`"
    )]
    Crowded {
        /// The key.
        key: Key,
        /// How many current versions it has.
        versions: usize,
    },
}

/// A replica of one dataset as it was at one moment. Everything read from the same view is consistent.
pub trait View {
    /// What the replica holds, and where its feed ends.
    fn summary(&self) -> Summary;

    /// The current versions of a key, ordered by dot. None for a key that was never written.
    fn siblings(&self, key: &Key) -> Result<Vec<Stored>, StoreError>;

    /// The feed's rows after `after`, in order: as many as fit in `limit_bytes` of canonical bytes, at least one if
    /// there is any. Rows of one commit may be split; `commit_end` tells.
    fn feed(&self, after: Sequence, limit_bytes: usize) -> Result<Vec<FeedRow>, StoreError>;

    /// The current version with this fingerprint.
    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError>;

    /// Whether a current version has this fingerprint: like [`by_fingerprint`](Self::by_fingerprint), but cheaper.
    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError>;

    /// The live index of the fingerprints of all current versions. Its digest is that of the [summary](Self::summary).
    fn index(&self) -> &Index;

    /// The fingerprints of all current versions above `after`, in rising order, at most `limit`.
    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError>;

    /// What the replica accounts for, and how far it has collected.
    fn knowledge(&self) -> Result<Arc<Knowledge>, StoreError>;

    /// How many tombstones there are.
    fn tombstones(&self) -> Tombstones;

    /// The tombstones after `after`, ordered by time, author, and key (forged ones may share a dot); at most `limit`.
    fn tombstones_after(
        &self,
        after: Option<&(Dot, Key)>,
        limit: usize,
    ) -> Result<Vec<(Dot, Key)>, StoreError>;

    /// Who writes here, and the latest reading of its clock: what it wrote to this dataset up to that is in this view,
    /// or was replaced, and it will never write anything with a time that is not later.
    fn own(&self) -> Result<(AuthorId, Timestamp), StoreError>;

    /// The keys above `after` that have losers under some policy, in order, at most `limit`.
    fn contested(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError>;

    /// How many losers there are.
    fn losers(&self) -> Losers;

    /// How far this replica has applied a peer's feed.
    fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, StoreError>;

    /// The keys above `after` that begin with `prefix`, in order, with their current versions, at most `limit` keys.
    fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError>;
}

/// A write by this node's own author, before it has a dot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalWrite {
    /// The key.
    pub key: Key,
    /// What the writer had in front of it.
    pub saw: Saw,
    /// The bytes, or that they are deleted.
    pub content: Content,
    /// The attributes. A seal among them is left out, since it can only be another version's.
    pub attributes: Attributes,
}

impl LocalWrite {
    /// Replaces what a reader of `key` gets now with `content`, as a plain file.
    pub fn new(key: Key, content: Content) -> Self {
        Self { key, saw: Saw::Winner, content, attributes: Attributes::default() }
    }

    /// Whether a version that has seen `seen` can be made of this: everything within its bounds, metadata in order.
    /// What is not could be written, and then read by nobody, this store included.
    pub fn check(&self, seen: VersionVector) -> Result<(), DecodeError> {
        let (content, attributes) = (self.content.clone(), self.attributes.clone());
        // A dot that no vector can hold, since this one will be new.
        let dot = Dot { author: AuthorId::default(), time: Timestamp(u64::MAX) };
        let version = Version { dot, seen, content, attributes };
        let mut bytes = Vec::new();
        canonical::encode_version(&version, &mut bytes);
        canonical::decode_version(&mut Reader::new(&bytes)).map(drop)
    }
}

/// Vouches for versions that are written here, so that peers which have them from somebody else can believe them: what
/// it makes becomes their [`seal`](Attributes::seal).
pub trait Sealer: Debug + Send + Sync {
    /// The seal of an entry that is finished but for it: at most [`MAX_SEAL_BYTES`](crate::limits::MAX_SEAL_BYTES),
    /// always the same of the same entry.
    fn seal(&self, entry: &Entry) -> Box<[u8]>;
}

/// What a replica learns apart from versions: what it accounts for, how far it may collect, what is dead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lesson {
    /// What it accounts for as well from now on.
    pub known: Frontier,
    /// How far it may collect. It does so up to what it knows, and no more in one step than takes a moment: until the
    /// frontier is there, the lesson has to be repeated.
    pub frontier: Frontier,
    /// Versions within its frontier that are dead, since a peer with the same frontier does not hold them: they go, where
    /// they are still current.
    pub dead: Vec<(Key, Dot)>,
    /// It may hold such from now on: its frontier is a peer's.
    pub unburied: bool,
    /// It holds none, if its frontier is still this one.
    pub buried: Option<Mark>,
    /// What it accounted for beyond its frontier counts no more, nor how far it has applied its peers' feeds: it is about
    /// to take a peer's state by difference.
    pub anew: bool,
    /// It promises to write nothing any more with a time that is not after this.
    pub promise: Option<WallTime>,
}

/// What became of a [`LocalWrite`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is a version now.
    New(Dot),
    /// A current version is like it already, and writing again would replace nothing else: that one stands for it.
    Same(Dot),
    /// A deletion of what is not there. Nothing was written.
    Nothing,
}

/// What a commit changed, in the order of its versions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// For local commits: what became of each write, in order.
    pub written: Vec<Written>,
    /// The versions that became current, with their places in the feed.
    pub added: Vec<(Entry, Sequence)>,
    /// How many versions were known already or covered by others.
    pub stale: usize,
    /// The replica after the commit. Commits that are made durable together may share it.
    pub summary: Summary,
}

/// A dataset as a store needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatasetParameters {
    /// Its identity.
    pub id: DatasetId,
    /// What its fingerprints are keyed with.
    pub fingerprint_key: FingerprintKey,
}

/// A store of replicas.
///
/// # Contract
/// - When a commit returns, it is on stable storage, whole; after a crash it is there whole or not at all.
/// - Commits of one dataset take effect one after the other; a view never sees half of one.
/// - What a commit changes is what [`apply`] says.
/// - A dataset that was opened before keeps its rows and its epoch.
pub trait Store {
    /// A view of one dataset.
    type View: View;

    /// Who writes here.
    fn author(&self) -> AuthorId;

    /// Makes a dataset known; does nothing for one that is.
    fn open_dataset(&mut self, dataset: DatasetParameters) -> Result<(), StoreError>;

    /// The dataset as it is now.
    fn view(&self, dataset: DatasetId) -> Result<Self::View, StoreError>;

    /// Applies what a peer sent, and remembers how far its feed has been applied.
    fn apply_remote(
        &mut self,
        dataset: DatasetId,
        peer: NodeId,
        commit: Commit,
        cursor: Option<Cursor>,
    ) -> Result<Applied, StoreError>;

    /// Takes note of what the replica learnt. Durable like a commit, and ordered among commits.
    fn learn(&mut self, dataset: DatasetId, lesson: Lesson) -> Result<Applied, StoreError>;

    /// Applies this node's own writes under fresh dots.
    fn apply_local(
        &mut self,
        dataset: DatasetId,
        writes: Vec<LocalWrite>,
        now: WallTime,
    ) -> Result<Applied, StoreError> {
        self.apply_sealed(dataset, writes, now, None)
    }

    /// The same, and seals what becomes a version.
    fn apply_sealed(
        &mut self,
        dataset: DatasetId,
        writes: Vec<LocalWrite>,
        now: WallTime,
        sealer: Option<Arc<dyn Sealer>>,
    ) -> Result<Applied, StoreError>;
}
