//! What a caller asks the store to change at once: the types of [`Transaction`]. What becomes of one stands in
//! `committer.rs`, what of it reaches the disk in `layout.rs`.

use std::sync::Arc;

use consort_core::limits::MAX_SEAL_BYTES;
use consort_core::model::commit::Commit;
use consort_core::store::{Cursor, Lesson, LocalWrite, Sealer, Sequence};
use consort_core::{ChunkHash, DatasetId, Dot, Entry, Key, Kind, NodeId, OnConflict, WallTime};

/// Changes of one dataset that become durable together or not at all.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// The dataset.
    pub dataset: DatasetId,
    /// The versions.
    pub body: Body,
    /// What the writers of a [`Body::Local`] were shown of concurrent versions, and so what their writes stand for.
    pub on_conflict: OnConflict,
    /// What vouches for those of a [`Body::Local`].
    pub sealer: Option<Arc<dyn Sealer>>,
    /// What the linked directory holds since.
    pub records: Vec<RecordChange>,
    /// Keys that are pending afterwards, though the directory shows what is written or recorded: it shows something else of
    /// them, too, such as a conflict copy of what is replaced, or shows what is not current any more.
    pub unsettled: Vec<Key>,
    /// Keys whose pending row goes, unless it is newer than this sequence: the directory shows them now.
    pub settled: Vec<(Key, Sequence)>,
    /// Where chunks are.
    pub places: Vec<(ChunkHash, Place)>,
    /// Where chunks no longer are. Applied before `places`.
    pub gone: Vec<(ChunkHash, Place)>,
}

/// The versions of a transaction.
#[derive(Clone, Debug)]
pub enum Body {
    /// None: only the rest of the transaction counts.
    Nothing,
    /// What a peer sent, and how far its feed has been applied with it.
    Remote {
        /// The peer.
        peer: NodeId,
        /// The versions, within the bounds of a commit.
        commit: Commit,
        /// The place in the peer's feed, if the versions came from there.
        cursor: Option<Cursor>,
    },
    /// What the replica learnt apart from versions.
    Learn(Lesson),
    /// Writes of this store's author.
    Local {
        /// The writes, within the bounds of a commit.
        writes: Vec<LocalWrite>,
        /// The time.
        now: WallTime,
    },
}

/// A change of what is known about a path of a linked directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordChange {
    /// It holds this.
    Put {
        /// The path.
        path: Key,
        /// What it holds. Its dot is filled in from `version`.
        record: Record,
        /// The version that it shows.
        version: Basis,
    },
    /// Nothing is there any more.
    Remove {
        /// The path.
        path: Key,
    },
}

/// The version that a record shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// This one.
    Dot(Dot),
    /// The one that this write of the transaction's own [`Body::Local`] became, or that stood for it. If the write
    /// became nothing, the record is removed.
    Write(usize),
}

/// What a linked directory held at a path when it was last looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The version that the path shows.
    pub dot: Dot,
    /// The key of that version if it is not the path: the path is a conflict copy.
    pub key: Option<Key>,
    /// What is there.
    pub kind: Kind,
    /// Its length in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u16,
    /// Its modification time, in nanoseconds since 1970-01-01 UTC.
    pub modified_ns: i64,
    /// Its change time (`ctime`), likewise.
    pub changed_ns: i64,
    /// Its inode number.
    pub inode: u64,
    /// What its bytes are: [`Content::id`](consort_core::Content::id) of the version.
    pub content: [u8; 16],
    /// It is a directory that exists only because something in it does.
    pub implicit: bool,
    /// It changed so shortly before it was read that its times would not show another change.
    pub racy: bool,
    /// This node has cut its content itself, and found no format in it: what it becomes can be cut
    /// [by following](consort_core::content::chunker::Follower) that.
    pub plain: bool,
}

/// Where the bytes of a chunk are. A hint: whoever reads there verifies the hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In a file of a linked directory.
    InFile {
        /// The dataset that the directory is linked to.
        dataset: DatasetId,
        /// The path in the directory.
        path: Key,
        /// Where the chunk begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
    /// In a pack of the store.
    Packed {
        /// The pack's number.
        pack: u64,
        /// Where the chunk begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        length: u32,
    },
}

impl Transaction {
    /// A transaction of a body alone, whose writers were shown all concurrent versions.
    pub fn new(dataset: DatasetId, body: Body) -> Self {
        let (records, unsettled, settled, places, gone) = Default::default();
        let (on_conflict, sealer) = (OnConflict::KeepBoth, None);
        Self { dataset, body, on_conflict, sealer, records, unsettled, settled, places, gone }
    }

    /// About how many bytes it takes in memory: what the queue's bound counts.
    pub(crate) fn weight(&self) -> usize {
        const ROW: usize = 256;
        const DOT: usize = 48;
        let seal = if self.sealer.is_some() { MAX_SEAL_BYTES } else { 0 };
        let write = |LocalWrite { key, content, attributes, .. }: &LocalWrite| {
            ROW + key.len() + content.weight() + attributes.weight() + seal
        };
        let body = match &self.body {
            Body::Nothing => 0,
            Body::Remote { commit, .. } => commit.entries.iter().map(Entry::weight).sum(),
            Body::Learn(Lesson { known, frontier, dead, .. }) => {
                DOT * (known.len() + frontier.len()) + ROW * dead.len()
            }
            Body::Local { writes, .. } => writes.iter().map(write).sum(),
        };
        let others = self.settled.len() + self.places.len() + self.gone.len();
        ROW + body + ROW * self.records.len() + ROW / 2 * others
    }

    /// Whether every [`Basis::Write`] names a write of the body.
    pub(crate) fn is_consistent(&self) -> bool {
        let writes = match &self.body {
            Body::Local { writes, .. } => writes.len(),
            Body::Nothing | Body::Remote { .. } | Body::Learn(_) => 0,
        };
        self.records.iter().all(|change| match change {
            RecordChange::Put { version: Basis::Write(write), .. } => *write < writes,
            RecordChange::Put { .. } | RecordChange::Remove { .. } => true,
        })
    }
}
