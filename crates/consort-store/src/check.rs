//! Reads everything, trusts nothing, reports problems. Every table is read in order, so the memory that this takes does not
//! depend on the size of the store. What the rows should be stands in `docs/storage.md`.

mod report;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;

use consort_core::encoding::{DecodeError, Reader};
use consort_core::model::conflict::Losers;
use consort_core::model::frontier::Mark;
use consort_core::store::{Sequence, StoreError, Stored};
use consort_core::{AuthorId, DatasetId, Digest, Entry, Fingerprint, Timestamp};

use crate::chunks;
use crate::layout::{
    self, ChunkRow, DatasetRow, Extent, Number, PackTail, ReplicaRow, Site, Table,
};
use crate::live;
use crate::lsm::Moment;
use crate::packs::{Frame, Packed, Packs};
use crate::store::Shared;
use crate::view::decoded;

pub use report::{CheckProgress, CheckReport, Finding, MAX_FINDINGS};

/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 16 * 1024;

/// Checks the store.
pub(crate) fn check(shared: &Shared, progress: impl FnMut(CheckProgress)) -> CheckReport {
    let moment = shared.tables.moment();
    let mut check = Check {
        moment,
        author: AuthorId::default(),
        clock: Timestamp::default(),
        next_number: 0,
        tail: PackTail::default(),
        datasets: BTreeMap::new(),
        progress,
        report: CheckReport::default(),
    };
    check.part("node", Check::node);
    check.part("versions", Check::versions);
    check.part("feed", Check::feed);
    check.part("fingerprints", Check::fingerprints);
    check.part("tombstones", Check::tombstones);
    check.part("records", Check::records);
    check.part("pending", Check::pending);
    check.part("conflicts", Check::conflicts);
    check.totals();
    check.part("index", Check::indexes);
    check.part("packs", |check| check.packs(&shared.packs));
    check.part("chunks", |check| check.chunks(&shared.packs));
    check.report
}

struct Check<P> {
    moment: Moment,
    /// Who writes here, and the latest reading of its clock.
    author: AuthorId,
    clock: Timestamp,
    /// What the next dataset gets.
    next_number: u64,
    /// How far packs are durable.
    tail: PackTail,
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
    frontier: Mark,
    feed: u64,
    fingerprints: u64,
    deleted: u64,
    tombstones: u64,
    records: u64,
    pending: u64,
    pending_bytes: u64,
    /// Keys with losers, losers, and rows that say so.
    contested: u64,
    losers: Losers,
    conflicts: u64,
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

    /// Reads what the node knows of itself. The rows come in the order of their tags: datasets before what is theirs.
    fn node(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Node, |check, row, value| {
            let tag = row.first().copied().unwrap_or_default();
            match [tag] {
                layout::IDENTITY => check.author = layout::decode_identity(value)?.author,
                layout::CLOCK => check.clock = layout::decode_clock(value)?,
                layout::NEXT_NUMBER => {
                    check.next_number = layout::decode_number(value)?.0.into();
                }
                layout::PACK_TAIL => check.tail = layout::decode_pack_tail(value)?,
                layout::DATASETS => {
                    let id = layout::dataset_of(row)?;
                    check.dataset(id, layout::decode_dataset(value)?)?;
                }
                [layout::REPLICA] => {
                    let number = layout::replica_of(row)?;
                    let dataset = owner(&mut check.datasets, Table::Node, number)?;
                    dataset.replica = layout::decode_replica(value)?;
                }
                [layout::CURSOR] => {
                    owner(&mut check.datasets, Table::Node, layout::replica_of(row)?)?;
                    layout::decode_cursor(value)?;
                }
                [layout::KNOWLEDGE] => {
                    let number = layout::replica_of(row)?;
                    let mark = layout::decode_knowledge(value)?.frontier.mark();
                    owner(&mut check.datasets, Table::Node, number)?.frontier = mark;
                }
                [layout::SETTING] => {}
                _ => return Err(Finding::Stray { table: Table::Node.name() }.into()),
            }
            Ok(())
        })
    }

    fn dataset(&mut self, id: DatasetId, row: DatasetRow) -> Result<(), Trouble> {
        let (replica, digest) = (ReplicaRow::default(), Digest::default());
        let (feed, fingerprints, records, pending, pending_bytes) = (0, 0, 0, 0, 0);
        let (contested, losers, conflicts) = (0, Losers::default(), 0);
        let (deleted, tombstones, frontier) = (0, 0, Mark::default());
        let dataset = Dataset {
            id,
            row,
            replica,
            digest,
            frontier,
            feed,
            fingerprints,
            deleted,
            tombstones,
            records,
            pending,
            pending_bytes,
            contested,
            losers,
            conflicts,
        };
        let other = self.datasets.insert(row.number, dataset);
        if other.is_some() || self.next_number <= row.number.0.into() {
            return Err(Finding::Number { dataset: id }.into());
        }
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
            if let Some(what) = misfit(&siblings, dataset.replica.head) {
                return Err(wrong(what).into());
            }
            // Or the next write could get the identity of one that is there.
            let own = |stored: &&Stored| stored.version.dot.author == check.author;
            if siblings.iter().filter(own).any(|stored| check.clock < stored.version.dot.time) {
                return Err(wrong("are later than the clock that gave them out").into());
            }
            let losers = Losers::of(siblings.iter().map(|stored| &stored.version));
            if !losers.are_none() {
                dataset.losers = dataset.losers + losers;
                dataset.contested += 1;
                let counted = check.moment.get(Table::Conflicts, row)?;
                let counted = counted.map(|value| layout::decode_losers(&value));
                if decoded(Table::Conflicts, counted)? != Some(losers) {
                    return Err(wrong("are not counted among the conflicts").into());
                }
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
                if entry.version.is_deleted() {
                    let row = layout::tombstone_key(number, entry.version.dot, &key);
                    if !check.moment.has(Table::Tombstones, &row)? {
                        return Err(wrong("are not among the tombstones").into());
                    }
                    dataset.deleted += 1;
                }
            }
            Ok(())
        })
    }

    fn feed(&mut self) -> Result<(), StoreError> {
        // Of the row before: whose it is, and where its commit ends.
        let mut before = None;
        self.rows(Table::Feed, |check, row, value| {
            let (number, sequence) = (layout::number_of(row)?, layout::sequence_of(row)?);
            let dataset = owner(&mut check.datasets, Table::Feed, number)?;
            dataset.feed += 1;
            let end = layout::decode_feed(sequence, value)?.commit_end;
            let same = |(of, its): (Number, Sequence)| of == number && sequence <= its;
            if before.replace((number, end)).is_some_and(|b| same(b) && b.1 != end) {
                return Err(Finding::CommitEnd { dataset: dataset.id }.into());
            }
            dataset.within(Table::Feed, end)
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

    fn tombstones(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Tombstones, |check, row, value| {
            layout::tombstone_of(row)?;
            Reader::new(value).finish()?;
            owner(&mut check.datasets, Table::Tombstones, layout::number_of(row)?)?.tombstones += 1;
            Ok(())
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

    fn conflicts(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Conflicts, |check, row, value| {
            layout::name_of(row)?;
            let dataset = owner(&mut check.datasets, Table::Conflicts, layout::number_of(row)?)?;
            dataset.conflicts += 1;
            layout::decode_losers(value)?;
            Ok(())
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
            // Every tombstone was found in the index, so equal counts mean that it names nothing else.
            let counted = dataset.replica.tombstones.count;
            let (tombstones, deleted) = (dataset.tombstones, dataset.deleted);
            if (tombstones, counted) != (deleted, deleted) {
                findings.push(Finding::Tombstones { dataset: id, deleted });
            }
            if dataset.frontier != dataset.replica.frontier {
                findings.push(Finding::Frontier { dataset: id });
            }
            if dataset.digest != dataset.replica.digest {
                findings.push(Finding::Digest { dataset: id });
            }
            let counted = (dataset.contested, dataset.replica.losers);
            if counted != (dataset.conflicts, dataset.losers) {
                findings.push(Finding::Conflicts { dataset: id });
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

    /// Live indexes are compared with what the fingerprints make.
    fn indexes(&mut self) -> Result<(), StoreError> {
        self.rows(Table::Index, |check, row, value| {
            owner(&mut check.datasets, Table::Index, layout::number_of(row)?)?;
            match layout::index_change_of(row)? {
                None => layout::decode_index(value).map(drop)?,
                Some(_) => layout::decode_index_change(value).map(drop)?,
            }
            Ok(())
        })?;
        let mut findings = Vec::new();
        for (&number, dataset) in &self.datasets {
            // If these do not agree, that was told already.
            let whole = dataset.digest == dataset.replica.digest
                && dataset.fingerprints == dataset.digest.count;
            if whole
                && dataset.row.state != layout::State::Dropping
                && let Err(what) = live::verify(&self.moment, number, &dataset.replica)?
            {
                findings.push(Finding::Index { dataset: dataset.id, what });
            }
        }
        findings.into_iter().for_each(|finding| self.found(finding));
        Ok(())
    }

    fn packs(&mut self, packs: &Packs) -> Result<(), StoreError> {
        let failed = |error: io::Error| StoreError::Failed(error.to_string());
        let tail = self.tail;
        let numbers = packs.numbers().map_err(failed)?;
        for &pack in &numbers {
            let (length, end) =
                packs.scan(pack, |frame| self.frame(pack, &frame)).map_err(failed)?;
            // Behind the tail somebody may be writing just now.
            let due = if pack == tail.pack { tail.length } else { length };
            if pack <= tail.pack && end < due {
                self.found(Finding::Pack { pack, offset: end });
            }
        }
        if tail.length != 0 && !numbers.contains(&tail.pack) {
            self.found(Finding::Pack { pack: tail.pack, offset: 0 });
        }
        Ok(())
    }

    fn frame(&mut self, pack: u64, &Frame { hash, offset, intact, .. }: &Frame) {
        self.report.chunks += 1;
        if self.report.chunks.is_multiple_of(PROGRESS_ROWS) {
            (self.progress)(CheckProgress { reading: "packs", done: self.report.chunks });
        }
        if (self.tail.pack, self.tail.length) <= (pack, offset) {
            return;
        }
        // Packs come before files among the further places. A row that cannot be read is found with the rows.
        let places = chunks::places(&self.moment, hash, 2);
        let in_pack = |(site, _): &(Site, Extent)| matches!(site, Site::Pack(_));
        if !intact {
            self.found(Finding::Chunk { pack, offset });
        } else if places.is_ok_and(|places| !places.iter().any(in_pack)) {
            self.found(Finding::Unindexed { pack, offset });
        }
    }

    fn chunks(&mut self, packs: &Packs) -> Result<(), StoreError> {
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
                    let held = packs.holds(Packed { pack, offset, length }, hash);
                    if !held.map_err(|error| StoreError::Failed(error.to_string()))? {
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
