//! Reading a dataset as it was at one moment.

use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use consort_core::encoding::DecodeError;
use consort_core::model::conflict::Losers;
use consort_core::model::{Knowledge, canonical};
use consort_core::reconcile::Index;
use consort_core::store::{
    Cursor, Epoch, FeedRow, Sequence, StoreError, Stored, Summary, Tombstones, View,
};
use consort_core::{AuthorId, Dot, Entry, Fingerprint, Key, NodeId, Timestamp};

use crate::layout::{self, FeedPlace, Identity, Number, PendingRow, ReplicaRow, Table};
use crate::live::Known;
use crate::lsm::{Moment, damaged};
use crate::pending;
use crate::transaction::Record;

/// A dataset as it was at one moment, however long it is kept. Keeping one keeps the rows that were replaced since.
pub struct DiskView {
    moment: Moment,
    number: Number,
    epoch: Epoch,
    replica: ReplicaRow,
    index: Arc<Index>,
}

impl DiskView {
    /// The dataset with this number; `epoch` is the store's. The moment was taken while the indexes were `known`.
    pub(crate) fn new(
        moment: Moment,
        number: Number,
        epoch: Epoch,
        known: &Known<'_>,
    ) -> Result<Self, StoreError> {
        let replica = replica_row(&moment, number)?;
        let epoch = Epoch(epoch.0.wrapping_add(u64::from(number.0)));
        let index = known.at(number, replica.head);
        Ok(Self { moment, number, epoch, replica, index })
    }

    /// What the linked directory held at a path.
    pub fn record(&self, path: &Key) -> Result<Option<Record>, StoreError> {
        let row = self.moment.get(Table::Records, &layout::name_key(self.number, path))?;
        decoded(Table::Records, row.map(|row| layout::decode_record(&row)))
    }

    /// What the linked directory held at the paths above `after` that begin with `prefix`, in the order of the
    /// paths, at most `limit` of them. The paths below a directory are those that begin with its path and a slash.
    pub fn records(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Record)>, StoreError> {
        self.named(Table::Records, prefix, after, limit, layout::decode_record)
    }

    /// How many paths of the linked directory have a record.
    pub fn record_count(&self) -> u64 {
        self.replica.records
    }

    /// How many keys the linked directory may not show yet.
    pub fn pending_count(&self) -> u64 {
        self.replica.pending
    }

    /// The bytes of their newest versions, as far as they were counted: not of what was pending before format 2.
    pub fn pending_bytes(&self) -> u64 {
        self.replica.pending_bytes
    }

    /// The keys above `after` that the linked directory may not show yet, in order, at most `limit`, each with its
    /// newest change; where there are few, perhaps as they are a commit later. Whether there is any and how many there
    /// are is cheaper to learn from [`pending_count`](Self::pending_count).
    pub fn pending(
        &self,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Sequence)>, StoreError> {
        // There are no more than were counted: looking for another would step over all that was settled behind them.
        let count = usize::try_from(self.replica.pending).unwrap_or(usize::MAX);
        let limit = limit.min(count);
        let few = if count <= pending::MAX_ROWS { self.moment.few_pending()? } else { None };
        let Some(few) = few else {
            return self.named(Table::Pending, "", after, limit, |row| {
                layout::decode_pending(row).map(|row| row.sequence)
            });
        };
        let from = layout::name_key(self.number, after.map_or("", Key::as_str));
        let prefix = layout::prefix(self.number);
        let rows = few.range::<[u8], _>((Bound::Excluded(&from[..]), Bound::Unbounded));
        let rows = rows.take_while(|(key, _)| key.starts_with(&prefix)).take(limit);
        rows.map(|(key, row)| Ok((layout::name_of(key)?, layout::decode_pending(row)?.sequence)))
            .collect::<Result<_, _>>()
            .map_err(|error| damaged(Table::Pending, error))
    }

    /// Whether the linked directory may not show all of a key yet.
    pub fn is_pending(&self, key: &Key) -> Result<bool, StoreError> {
        Ok(self.pending_of(key)?.is_some())
    }

    /// The newest change of a key that the linked directory may not show yet.
    pub(crate) fn pending_of(&self, key: &Key) -> Result<Option<PendingRow>, StoreError> {
        if self.replica.pending == 0 {
            return Ok(None);
        }
        let row = self.moment.get(Table::Pending, &layout::name_key(self.number, key))?;
        decoded(Table::Pending, row.map(|row| layout::decode_pending(&row)))
    }

    /// Whether a path of the linked directory has a record.
    pub(crate) fn has_record(&self, path: &Key) -> Result<bool, StoreError> {
        if self.replica.records == 0 {
            return Ok(false);
        }
        self.moment.has(Table::Records, &layout::name_key(self.number, path))
    }

    /// The keys of the cursors that it has.
    pub(crate) fn cursors(&self) -> Result<Vec<Vec<u8>>, StoreError> {
        let prefix = layout::cursors_prefix(self.number);
        let rows = self.moment.rows(Table::Node, &prefix, prefix.clone());
        rows.map(|row| row.map(|(key, _)| key.to_vec())).collect()
    }

    /// What is counted about the dataset.
    #[cfg(test)]
    pub(crate) fn replica(&self) -> &ReplicaRow {
        &self.replica
    }

    /// The dataset's number.
    pub(crate) fn number(&self) -> Number {
        self.number
    }

    /// The moment.
    pub(crate) fn moment(&self) -> &Moment {
        &self.moment
    }

    fn named<T>(
        &self,
        table: Table,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
        decode: impl Fn(&[u8]) -> Result<T, DecodeError>,
    ) -> Result<Vec<(Key, T)>, StoreError> {
        let from = after.map_or(prefix, |after| after.as_str().max(prefix));
        let from = layout::name_key(self.number, from);
        let mut rows = self.moment.rows(table, &layout::name_key(self.number, prefix), from);
        let mut found = Vec::new();
        // Looking for a row takes as long as there are removed ones before it, so none is looked for in vain.
        while found.len() < limit {
            let Some(row) = rows.next() else { break };
            let (key, value) = row?;
            let key = layout::name_of(&key).map_err(|error| damaged(table, error))?;
            if after != Some(&key) {
                found.push((key, decode(&value).map_err(|error| damaged(table, error))?));
            }
        }
        Ok(found)
    }

    /// The version at a place of the feed.
    fn entry(&self, key: Key, sequence: Sequence) -> Result<Entry, StoreError> {
        let held = self.siblings(&key)?.into_iter().find(|stored| stored.sequence == sequence);
        let Some(stored) = held else {
            return Err(StoreError::Damaged("the feed names a version that is gone".to_owned()));
        };
        Ok(Entry { key, version: stored.version })
    }

    fn feed_place(&self, sequence: Sequence) -> Result<Option<FeedPlace>, StoreError> {
        let row = self.moment.get(Table::Feed, &layout::feed_key(self.number, sequence))?;
        decoded(Table::Feed, row.map(|row| layout::decode_feed(sequence, &row)))
    }
}

impl View for DiskView {
    fn summary(&self) -> Summary {
        let head = Cursor { epoch: self.epoch, sequence: self.replica.head };
        let ReplicaRow { digest, frontier, unburied, .. } = self.replica;
        Summary { digest, head, frontier, unburied }
    }

    fn siblings(&self, key: &Key) -> Result<Vec<Stored>, StoreError> {
        let row = self.moment.get(Table::Versions, &layout::name_key(self.number, key))?;
        let siblings = decoded(Table::Versions, row.map(|row| layout::decode_siblings(&row)))?;
        Ok(siblings.unwrap_or_default())
    }

    fn feed(&self, after: Sequence, limit_bytes: usize) -> Result<Vec<FeedRow>, StoreError> {
        let Some(from) = after.0.checked_add(1) else { return Ok(Vec::new()) };
        let from = layout::feed_key(self.number, Sequence(from));
        let mut found = Vec::new();
        let mut bytes = Vec::new();
        for row in self.moment.rows(Table::Feed, &layout::prefix(self.number), from) {
            let (key, value) = row?;
            let wrong = |error| damaged(Table::Feed, error);
            let sequence = layout::sequence_of(&key).map_err(wrong)?;
            let place = layout::decode_feed(sequence, &value).map_err(wrong)?;
            let FeedPlace { commit_end, via, key } = place;
            let entry = self.entry(key, sequence)?;
            canonical::encode_entry(&entry, &mut bytes);
            if limit_bytes < bytes.len() && !found.is_empty() {
                break;
            }
            found.push(FeedRow { sequence, commit_end, via, entry });
        }
        Ok(found)
    }

    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError> {
        let key = layout::fingerprint_key(self.number, fingerprint);
        let row = self.moment.get(Table::Fingerprints, &key)?;
        let sequence = decoded(Table::Fingerprints, row.map(|row| layout::decode_varint(&row)))?;
        let Some(sequence) = sequence.map(Sequence) else { return Ok(None) };
        let Some(place) = self.feed_place(sequence)? else {
            let what = "a fingerprint names a place that the feed does not have";
            return Err(StoreError::Damaged(what.to_owned()));
        };
        self.entry(place.key, sequence).map(Some)
    }

    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError> {
        self.moment.has(Table::Fingerprints, &layout::fingerprint_key(self.number, fingerprint))
    }

    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        fingerprints(&self.moment, self.number, after).take(limit).collect()
    }

    fn index(&self) -> &Index {
        &self.index
    }

    fn contested(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
        // Nearly all datasets have none, and looking for some would step over all that were resolved.
        if self.replica.losers.are_none() {
            return Ok(Vec::new());
        }
        let found = self.named(Table::Conflicts, "", after, limit, layout::decode_losers)?;
        Ok(found.into_iter().map(|(key, _)| key).collect())
    }

    fn losers(&self) -> Losers {
        self.replica.losers
    }

    fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, StoreError> {
        let row = self.moment.get(Table::Node, &layout::cursor_key(self.number, peer))?;
        decoded(Table::Node, row.map(|row| layout::decode_cursor(&row)))
    }

    fn knowledge(&self) -> Result<Arc<Knowledge>, StoreError> {
        knowledge_row(&self.moment, self.number).map(Arc::new)
    }

    fn tombstones(&self) -> Tombstones {
        self.replica.tombstones
    }

    fn tombstones_after(
        &self,
        after: Option<&(Dot, Key)>,
        limit: usize,
    ) -> Result<Vec<(Dot, Key)>, StoreError> {
        let prefix = layout::prefix(self.number);
        let row = |(dot, key): &(Dot, Key)| layout::tombstone_key(self.number, *dot, key);
        let from = after.map_or(prefix.to_vec(), row);
        let mut rows = self.moment.rows(Table::Tombstones, &prefix, from);
        let wrong = |error| damaged(Table::Tombstones, error);
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(row) = rows.next() else { break };
            let tombstone = layout::tombstone_of(&row?.0).map_err(wrong)?;
            if Some(&tombstone) != after {
                found.push(tombstone);
            }
        }
        Ok(found)
    }

    fn own(&self) -> Result<(AuthorId, Timestamp), StoreError> {
        // Both of one moment: what an author before this one wrote may have been lost.
        let identity = self.moment.get(Table::Node, &layout::IDENTITY)?;
        let identity = decoded(Table::Node, identity.map(|row| layout::decode_identity(&row)))?;
        let Identity { author, .. } =
            identity.ok_or_else(|| StoreError::Damaged("the store has no identity".to_owned()))?;
        let clock = self.moment.get(Table::Node, &layout::CLOCK)?;
        let clock = decoded(Table::Node, clock.map(|row| layout::decode_clock(&row)))?;
        Ok((author, clock.unwrap_or_default()))
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError> {
        self.named(Table::Versions, prefix, after, limit, layout::decode_siblings)
    }
}

impl fmt::Debug for DiskView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskView")
            .field("number", &self.number.0)
            .field("head", &self.replica.head)
            .finish_non_exhaustive()
    }
}

/// The fingerprints of a dataset above `after`, in order.
pub(crate) fn fingerprints(
    moment: &Moment,
    number: Number,
    after: Option<Fingerprint>,
) -> impl Iterator<Item = Result<Fingerprint, StoreError>> + use<> {
    let from = match after {
        None => Some(0),
        Some(Fingerprint(after)) => after.checked_add(1),
    };
    let rows = from.map(|from| {
        let from = layout::fingerprint_key(number, Fingerprint(from));
        moment.rows(Table::Fingerprints, &layout::prefix(number), from)
    });
    rows.into_iter().flatten().map(|row| {
        layout::fingerprint_of(&row?.0).map_err(|error| damaged(Table::Fingerprints, error))
    })
}

/// What is counted about a dataset.
pub(crate) fn replica_row(moment: &Moment, number: Number) -> Result<ReplicaRow, StoreError> {
    let row = moment.get(Table::Node, &layout::replica_key(number))?;
    let row = decoded(Table::Node, row.map(|row| layout::decode_replica(&row)))?;
    Ok(row.unwrap_or_default())
}

/// What a replica knows.
pub(crate) fn knowledge_row(moment: &Moment, number: Number) -> Result<Knowledge, StoreError> {
    let row = moment.get(Table::Node, &layout::knowledge_key(number))?;
    let row = decoded(Table::Node, row.map(|row| layout::decode_knowledge(&row)))?;
    Ok(row.unwrap_or_default())
}

/// Turns a row that may be missing, and may not decode, into what a reader says of it.
pub(crate) fn decoded<T>(
    table: Table,
    row: Option<Result<T, DecodeError>>,
) -> Result<Option<T>, StoreError> {
    row.transpose().map_err(|error| damaged(table, error))
}
