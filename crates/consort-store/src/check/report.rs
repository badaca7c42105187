//! What a check says: how far it has come, and what it found.

use std::fmt;

use consort_core::encoding::DecodeError;
use consort_core::{DatasetId, Key};
use thiserror::Error;

/// The findings that are reported one by one; more are only counted. A damaged disk can damage every row.
pub const MAX_FINDINGS: usize = 1000;

/// How far a check has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckProgress {
    /// What is being read: a table, or `packs`.
    pub reading: &'static str,
    /// How many rows or chunks of it were read.
    pub done: u64,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Rows that were read.
    pub rows: u64,
    /// Packed chunks that were read.
    pub chunks: u64,
    /// The first [`MAX_FINDINGS`] problems.
    pub findings: Vec<Finding>,
    /// All problems.
    pub problems: u64,
}

/// One problem of a store.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Finding {
    /// A part of the store could not be read at all; what follows there was not looked at.
    #[error("`{part}` cannot be read: {error}")]
    Unreadable {
        /// A table, or `packs`.
        part: &'static str,
        /// Why.
        error: String,
    },
    /// A row is not what the format says.
    #[error("a row of `{table}` does not decode: {error}")]
    Malformed {
        /// Its table.
        table: &'static str,
        /// What is wrong with it.
        error: DecodeError,
    },
    /// A row belongs to no dataset.
    #[error("a row of `{table}` belongs to no dataset")]
    Stray {
        /// Its table.
        table: &'static str,
    },
    /// A key's versions are not as they must be.
    #[error("the versions of {key:?} in {dataset} {what}")]
    Versions {
        /// The dataset.
        dataset: DatasetId,
        /// The key.
        key: Key,
        /// What is wrong with them.
        what: &'static str,
    },
    /// Two tables that must agree one to one do not.
    #[error(
        "in {dataset}, `{table}` has another number of rows ({rows}) than there are versions ({versions})"
    )]
    Unequal {
        /// The dataset.
        dataset: DatasetId,
        /// The versions that were counted.
        versions: u64,
        /// The table that should have as many rows.
        table: &'static str,
        /// The rows that were counted.
        rows: u64,
    },
    /// A row of the feed says that its commit ends where another does not.
    #[error("the feed of {dataset} does not know where a commit ends")]
    CommitEnd {
        /// The dataset.
        dataset: DatasetId,
    },
    /// Two datasets have the same number, or a later one would get it.
    #[error("the number of {dataset} is not its own")]
    Number {
        /// The dataset.
        dataset: DatasetId,
    },
    /// A row names a place beyond the end of the feed.
    #[error("a row of `{table}` in {dataset} names a place beyond the end of the feed")]
    BeyondHead {
        /// The dataset.
        dataset: DatasetId,
        /// The row's table.
        table: &'static str,
    },
    /// The stored digest is not the digest of the versions.
    #[error("the digest of {dataset} is not that of its versions")]
    Digest {
        /// The dataset.
        dataset: DatasetId,
    },
    /// The keys with losers, or the count of those, are not what the versions say.
    #[error("the conflicts of {dataset} are not those of its versions")]
    Conflicts {
        /// The dataset.
        dataset: DatasetId,
    },
    /// The live index on disk is not that of the versions.
    #[error("the live index of {dataset} is wrong ({what}): comparing with peers takes longer")]
    Index {
        /// The dataset.
        dataset: DatasetId,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The index of tombstones is not that of the versions, or their count is wrong.
    #[error("{dataset} has {deleted} tombstones, but indexes or counts others")]
    Tombstones {
        /// The dataset.
        dataset: DatasetId,
        /// The tombstones among the versions.
        deleted: u64,
    },
    /// What stands for the frontier is not the frontier's.
    #[error("{dataset} has collected up to another frontier than it says")]
    Frontier {
        /// The dataset.
        dataset: DatasetId,
    },
    /// The stored count of records is wrong.
    #[error("the number of records in {dataset} is {found}, but {counted} is stored")]
    RecordCount {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// The stored count of the bytes of pending keys is wrong.
    #[error("the bytes of pending keys in {dataset} are {found}, but {counted} is stored")]
    PendingBytes {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// The stored count of pending keys is wrong.
    #[error("the number of pending keys in {dataset} is {found}, but {counted} is stored")]
    PendingCount {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// A row says that a chunk is where it is not.
    #[error("a chunk should be at {offset} of pack {pack}, and is not")]
    NoSuchPlace {
        /// The pack.
        pack: u64,
        /// Where the chunk should begin.
        offset: u64,
    },
    /// A place of a chunk is not found, since the chunk's own row does not say that there are more.
    #[error("a row of `chunks` is a place that nobody finds")]
    HiddenPlace,
    /// A packed chunk has no row, so nobody finds it.
    #[error("the chunk at {offset} of pack {pack} is not in the index")]
    Unindexed {
        /// The pack.
        pack: u64,
        /// Where the chunk begins.
        offset: u64,
    },
    /// A packed chunk does not have its hash.
    #[error("the chunk at {offset} of pack {pack} is damaged")]
    Chunk {
        /// The pack.
        pack: u64,
        /// Where the chunk begins.
        offset: u64,
    },
    /// A pack cannot be read on from here, although it should go on.
    #[error("pack {pack} is damaged at {offset}: no chunk begins there")]
    Pack {
        /// The pack.
        pack: u64,
        /// Where it stops making sense.
        offset: u64,
    },
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems == 0
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rows, chunks, findings, problems } = self;
        writeln!(f, "{rows} rows and {chunks} packed chunks read; {problems} problems")?;
        findings.iter().try_for_each(|finding| writeln!(f, "- {finding}"))
    }
}
