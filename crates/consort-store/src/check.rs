//! Reads everything, trusts nothing, reports problems. Every table is read once, in order, so the memory that this takes
//! does not depend on the size of the store. What the rows should be stands in `docs/storage.md`.

use std::collections::BTreeMap;
use std::fmt;

use consort_core::encoding::DecodeError;
use consort_core::store::{Sequence, StoreError, Stored};
use consort_core::{DatasetId, Digest, Entry, Fingerprint, Key};
use thiserror::Error;

use crate::layout::{
    self, ChunkRow, DatasetRow, Extent, Number, PackTail, ReplicaRow, Site, Table,
};
use crate::lsm::Moment;
use crate::packs::Packs;
use crate::store::Shared;
use crate::view::decoded;

/// The findings that are reported one by one; more are only counted. A damaged disk can damage every row.
pub const MAX_FINDINGS: usize = 1000;
/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 16 * 1024;

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
    #[error("{dataset} has {versions} versions, but {rows} rows in `{table}`")]
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
    /// The stored count of records is wrong.
    #[error("{dataset} has {found} records, but counts {counted}")]
    RecordCount {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// The stored count of the bytes of pending keys is wrong.
    #[error("{dataset} has {found} bytes of pending keys, but counts {counted}")]
    PendingBytes {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// The stored count of pending keys is wrong.
    #[error("{dataset} has {found} pending keys, but counts {counted}")]
    PendingCount {
        /// The dataset.
        dataset: DatasetId,
        /// What is stored.
        counted: u64,
        /// What is there.
        found: u64,
    },
    /// A row says that a chunk is where no pack is.
    #[error("a chunk should be at {offset} of pack {pack}, which is not there or shorter")]
    NoSuchPlace {
        /// The pack.
        pack: u64,
        /// Where the chunk should begin.
        offset: u64,
    },
    /// A place of a chunk is not found, since the chunk's own row does not say that there are more.
    #[error("a row of `chunks` is a place that nobody finds")]
    HiddenPlace,
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

/// Checks the store.
pub(crate) fn check(shared: &Shared, progress: impl FnMut(CheckProgress)) -> CheckReport {
    let moment = shared.tables.moment();
    let mut check =
        Check { moment, datasets: BTreeMap::new(), progress, report: CheckReport::default() };
    check.part("node", Check::node);
    check.part("versions", Check::versions);
    check.part("feed", Check::feed);
    check.part("fingerprints", Check::fingerprints);
    check.part("records", Check::records);
    check.part("pending", Check::pending);
    check.totals();
    let lengths = check.packs(&shared.packs);
    check.part("chunks", |check| check.chunks(&lengths));
    check.report
}

struct Check<P> {
    moment: Moment,
    datasets: BTreeMap<Number, Dataset>,
    progress: P,
    report: CheckReport,
}

/// A dataset: what is stored about it, and what was counted.
struct Dataset {
    id: DatasetId,
    row: DatasetRow,
    replica: ReplicaRow,
    digest: Digest,
    feed: u64,
    fingerprints: u64,
    records: u64,
    pending: u64,
    pending_bytes: u64,
}

impl<P: FnMut(CheckProgress)> Check<P> {
    /// Runs one part; if the rows cannot be read there, the others still can.
    fn part(&mut self, part: &'static str, run: impl FnOnce(&mut Self) -> Result<(), StoreError>) {
        if let Err(error) = run(self) {
            self.found(Finding::Unreadable { part, error: error.to_string() });
        }
    }

    fn found(&mut self, finding: Finding) {
        self.report.problems += 1;
        if self.report.findings.len() < MAX_FINDINGS {
            self.report.findings.push(finding);
        }
    }

    /// Shows every row of a table to `visit`.
    fn rows(
        &mut self,
        table: Table,
        mut visit: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), Trouble>,
    ) -> Result<(), StoreError> {
        let rows = self.moment.rows(table, &[], Vec::new());
        for (done, row) in (1..).zip(rows) {
            let (key, value) = row?;
            self.report.rows += 1;
            if done % PROGRESS_ROWS == 0 {
                (self.progress)(CheckProgress { reading: table.name(), done });
            }
            match visit(self, &key, &value) {
                Ok(()) => {}
                Err(Trouble::Finding(finding)) => self.found(finding),
                Err(Trouble::Malformed(error)) => {
                    self.found(Finding::Malformed { table: table.name(), error });
                }
                Err(Trouble::Store(error)) => return Err(error),
            }
        }
        Ok(())
    }

    fn node(&mut self) -> Result<(), StoreError> {
        let begin = layout::DATASETS.to_vec();
        for row in self.moment.rows(Table::Node, &layout::DATASETS, begin) {
            let (key, value) = row?;
            self.report.rows += 1;
            match layout::dataset_of(&key).and_then(|id| Ok((id, layout::decode_dataset(&value)?)))
            {
                Ok((id, row)) => self.dataset(id, row)?,
                Err(error) => self.found(Finding::Malformed { table: "node", error }),
            }
        }
        Ok(())
    }

    fn dataset(&mut self, id: DatasetId, row: DatasetRow) -> Result<(), StoreError> {
        let replica = self.moment.get(Table::Node, &layout::replica_key(row.number))?;
        let replica = match replica.map(|row| layout::decode_replica(&row)) {
            Some(Ok(replica)) => replica,
            Some(Err(error)) => {
                self.found(Finding::Malformed { table: "node", error });
                ReplicaRow::default()
            }
            None => ReplicaRow::default(),
        };
        let begin = layout::cursors_prefix(row.number);
        for cursor in self.moment.rows(Table::Node, &begin, begin.clone()) {
            self.report.rows += 1;
            if let Err(error) = layout::decode_cursor(&cursor?.1) {
                self.found(Finding::Malformed { table: "node", error });
            }
        }
        let digest = Digest::default();
        let (feed, fingerprints, records, pending, pending_bytes) = (0, 0, 0, 0, 0);
        let dataset = Dataset {
            id,
            row,
            replica,
            digest,
            feed,
            fingerprints,
            records,
            pending,
            pending_bytes,
        };
        self.datasets.insert(row.number, dataset);
        Ok(())
    }

    fn versions(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Versions, |check, row, value| {
            let number = layout::number_of(row)?;
            let key = layout::name_of(row)?;
            let siblings = layout::decode_siblings(value)?;
            let dataset = owner(&mut check.datasets, Table::Versions, number)?;
            let wrong = |what| Finding::Versions { dataset: dataset.id, key: key.clone(), what };
            if siblings.is_empty() {
                return Err(wrong("are none").into());
            }
            if layout::encode_siblings(&siblings) != value {
                return Err(wrong("are not in canonical form").into());
            }
            if let Some(what) = misfit(&siblings, dataset.replica.head) {
                return Err(wrong(what).into());
            }
            for Stored { version, sequence } in siblings {
                let entry = Entry { key: key.clone(), version };
                let fingerprint = Fingerprint::of(&entry, &dataset.row.fingerprint_key);
                dataset.digest.add(fingerprint);
                let named = layout::fingerprint_key(number, fingerprint);
                let named = check.moment.get(Table::Fingerprints, &named)?;
                let named = decoded(Table::Fingerprints, named.map(|v| layout::decode_varint(&v)))?;
                if named != Some(sequence.0) {
                    return Err(wrong("are not among the fingerprints").into());
                }
                let place = check.moment.get(Table::Feed, &layout::feed_key(number, sequence))?;
                let place = decoded(Table::Feed, place.map(|v| layout::decode_feed(sequence, &v)))?;
                if place.is_none_or(|place| place.key != key) {
                    return Err(wrong("are not in the feed").into());
                }
            }
            Ok(())
        })
    }

    fn feed(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Feed, |check, row, value| {
            let sequence = layout::sequence_of(row)?;
            let dataset = owner(&mut check.datasets, Table::Feed, layout::number_of(row)?)?;
            dataset.feed += 1;
            dataset.within(Table::Feed, layout::decode_feed(sequence, value)?.commit_end)
        })
    }

    fn fingerprints(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Fingerprints, |check, row, value| {
            layout::fingerprint_of(row)?;
            let dataset = owner(&mut check.datasets, Table::Fingerprints, layout::number_of(row)?)?;
            dataset.fingerprints += 1;
            dataset.within(Table::Fingerprints, Sequence(layout::decode_varint(value)?))
        })
    }

    fn records(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Records, |check, row, value| {
            layout::name_of(row)?;
            let dataset = owner(&mut check.datasets, Table::Records, layout::number_of(row)?)?;
            dataset.records += 1;
            layout::decode_record(value)?;
            Ok(())
        })
    }

    fn pending(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Pending, |check, row, value| {
            layout::name_of(row)?;
            let dataset = owner(&mut check.datasets, Table::Pending, layout::number_of(row)?)?;
            let row = layout::decode_pending(value)?;
            dataset.pending += 1;
            dataset.pending_bytes = dataset.pending_bytes.wrapping_add(row.bytes);
            dataset.within(Table::Pending, row.sequence)
        })
    }

    /// Compares what was counted with what is stored. Every version was found in the two indexes, so equal counts
    /// mean that they hold nothing else.
    fn totals(&mut self) {
        let mut findings = Vec::new();
        for dataset in self.datasets.values() {
            // Half of its rows are gone.
            if dataset.row.state == layout::State::Dropping {
                continue;
            }
            let (id, versions) = (dataset.id, dataset.digest.count);
            for (table, rows) in
                [(Table::Feed, dataset.feed), (Table::Fingerprints, dataset.fingerprints)]
            {
                if rows != versions {
                    let table = table.name();
                    findings.push(Finding::Unequal { dataset: id, versions, table, rows });
                }
            }
            if dataset.digest != dataset.replica.digest {
                findings.push(Finding::Digest { dataset: id });
            }
            let (counted, found) = (dataset.replica.records, dataset.records);
            if found != counted {
                findings.push(Finding::RecordCount { dataset: id, counted, found });
            }
            let (counted, found) = (dataset.replica.pending, dataset.pending);
            if found != counted {
                findings.push(Finding::PendingCount { dataset: id, counted, found });
                continue;
            }
            let (counted, found) = (dataset.replica.pending_bytes, dataset.pending_bytes);
            if found != counted {
                findings.push(Finding::PendingBytes { dataset: id, counted, found });
            }
        }
        findings.into_iter().for_each(|finding| self.found(finding));
    }

    /// Reads the packs; returns how long each is.
    fn packs(&mut self, packs: &Packs) -> BTreeMap<u64, u64> {
        let mut lengths = BTreeMap::new();
        self.part("packs", |check| {
            let failed = |error: std::io::Error| StoreError::Failed(error.to_string());
            let tail = check.moment.get(Table::Node, &layout::PACK_TAIL)?;
            let tail = decoded(Table::Node, tail.map(|row| layout::decode_pack_tail(&row)))?;
            let tail = tail.unwrap_or_default();
            for pack in packs.numbers().map_err(failed)? {
                let (length, end) =
                    packs.scan(pack, |frame| check.frame(pack, tail, frame)).map_err(failed)?;
                lengths.insert(pack, length);
                // Behind the tail somebody may be writing just now.
                let due = if pack == tail.pack { tail.length } else { length };
                if pack <= tail.pack && end < due {
                    check.found(Finding::Pack { pack, offset: end });
                }
            }
            if tail.length != 0 && !lengths.contains_key(&tail.pack) {
                check.found(Finding::Pack { pack: tail.pack, offset: 0 });
            }
            Ok(())
        });
        lengths
    }

    fn frame(&mut self, pack: u64, tail: PackTail, frame: crate::packs::Frame) {
        self.report.chunks += 1;
        if self.report.chunks.is_multiple_of(PROGRESS_ROWS) {
            (self.progress)(CheckProgress { reading: "packs", done: self.report.chunks });
        }
        let durable = (pack, frame.offset) < (tail.pack, tail.length);
        if durable && !frame.intact {
            self.found(Finding::Chunk { pack, offset: frame.offset });
        }
    }

    fn chunks(&mut self, lengths: &BTreeMap<u64, u64>) -> Result<(), StoreError> {
        // The chunk whose further places may follow.
        let mut with_more = None;
        self.rows(Table::Chunks, |check, row, value| {
            let (hash, further) = layout::chunk_of(row)?;
            let place = match further {
                None => {
                    let ChunkRow { place, more } = layout::decode_chunk(value)?;
                    with_more = more.then_some(hash);
                    place
                }
                Some(_) if with_more != Some(hash) => return Err(Finding::HiddenPlace.into()),
                Some(site) => Some((site, layout::decode_extent(value)?)),
            };
            match place {
                Some((Site::Pack(pack), Extent { offset, length })) => {
                    let end = offset.saturating_add(u64::from(length));
                    if lengths.get(&pack).is_none_or(|length| *length < end) {
                        return Err(Finding::NoSuchPlace { pack, offset }.into());
                    }
                }
                Some((Site::File(number, _), _)) => {
                    owner(&mut check.datasets, Table::Chunks, number)?;
                }
                None => {}
            }
            Ok(())
        })
    }
}

impl Dataset {
    fn within(&self, table: Table, sequence: Sequence) -> Result<(), Trouble> {
        if self.replica.head < sequence {
            let table = table.name();
            return Err(Finding::BeyondHead { dataset: self.id, table }.into());
        }
        Ok(())
    }
}

fn owner(
    datasets: &mut BTreeMap<Number, Dataset>,
    table: Table,
    number: Number,
) -> Result<&mut Dataset, Trouble> {
    datasets.get_mut(&number).ok_or(Trouble::Finding(Finding::Stray { table: table.name() }))
}

/// What is wrong with the versions of a key among each other.
fn misfit(siblings: &[Stored], head: Sequence) -> Option<&'static str> {
    if !siblings.is_sorted_by(|a, b| a.version.dot < b.version.dot) {
        return Some("are not ordered by dot");
    }
    if siblings.iter().any(|stored| head < stored.sequence || stored.sequence == Sequence(0)) {
        return Some("have a place beyond the end of the feed");
    }
    for (place, a) in siblings.iter().enumerate() {
        for b in &siblings[place + 1..] {
            if a.sequence == b.sequence {
                return Some("share a place in the feed");
            }
            if a.version.covers(&b.version) || b.version.covers(&a.version) {
                return Some("cover each other");
            }
        }
    }
    None
}

/// Why a row does not pass.
enum Trouble {
    Finding(Finding),
    Malformed(DecodeError),
    Store(StoreError),
}

impl From<Finding> for Trouble {
    fn from(finding: Finding) -> Self {
        Self::Finding(finding)
    }
}

impl From<DecodeError> for Trouble {
    fn from(error: DecodeError) -> Self {
        Self::Malformed(error)
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
