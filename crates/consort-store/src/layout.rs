//! The bytes of every row: the only file that knows them. `docs/storage.md` states them; what the rows are for stands
//! there and in `committer.rs`. The rows of chunks are in `layout/chunks.rs`, the bytes of packs in `packs.rs`.

mod chunks;
#[cfg(test)]
mod tests;

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::limits::MAX_KEY_BYTES;
use consort_core::model::Knowledge;
use consort_core::model::canonical::{
    decode_dot, decode_frontier, decode_version, encode_dot, encode_frontier, encode_version,
};
use consort_core::model::conflict::Losers;
use consort_core::model::frontier::Mark;
use consort_core::reconcile::Index;
use consort_core::store::{Cursor, Epoch, Sequence, Stored, Tombstones};
use consort_core::{
    AuthorId, DatasetId, Digest, Dot, Fingerprint, FingerprintKey, Key, Kind, NodeId, Timestamp,
};

use crate::transaction::Record;

pub(crate) use chunks::*;

/// The format that this program writes.
pub(crate) const FORMAT: u32 = 5;

/// A table of rows: a keyspace of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// What the node knows of itself and of its datasets.
    Node,
    /// Current versions by key.
    Versions,
    /// Places in the feed, by sequence.
    Feed,
    /// Places in the feed, by fingerprint.
    Fingerprints,
    /// What a linked directory holds, by path.
    Records,
    /// Keys that a linked directory may not show yet.
    Pending,
    /// Where chunks are.
    Chunks,
    /// How many losers keys have, for those that have any.
    Conflicts,
    /// Live indexes, and what changed since they were written.
    Index,
    /// Tombstones, by time.
    Tombstones,
}

impl Table {
    /// All tables, each at its own number.
    pub(crate) const ALL: [Self; 10] = [
        Self::Node,
        Self::Versions,
        Self::Feed,
        Self::Fingerprints,
        Self::Records,
        Self::Pending,
        Self::Chunks,
        Self::Conflicts,
        Self::Index,
        Self::Tombstones,
    ];

    /// The name on disk.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Versions => "versions",
            Self::Feed => "feed",
            Self::Fingerprints => "fingerprints",
            Self::Records => "records",
            Self::Pending => "pending",
            Self::Chunks => "chunks",
            Self::Conflicts => "conflicts",
            Self::Index => "index",
            Self::Tombstones => "tombstones",
        }
    }
}

/// A dataset's local number: four bytes where its identity has sixteen. Never used again after a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Number(pub(crate) u32);

/// What is going on with a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Plain,
    Linked,
    Linking,
    Unlinking,
    Dropping,
}

/// The row of a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DatasetRow {
    pub(crate) number: Number,
    pub(crate) state: State,
    pub(crate) fingerprint_key: FingerprintKey,
}

/// The row of a replica: what is counted instead of scanned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReplicaRow {
    pub(crate) digest: Digest,
    pub(crate) head: Sequence,
    pub(crate) records: u64,
    pub(crate) pending: u64,
    /// Of all pending rows, modulo 2⁶⁴: nobody's claim of a size may make it more than that.
    pub(crate) pending_bytes: u64,
    /// Of all keys.
    pub(crate) losers: Losers,
    /// Of all keys.
    pub(crate) tombstones: Tombstones,
    /// How far the replica has collected.
    pub(crate) frontier: Mark,
    /// Whether it may hold what is dead by that.
    pub(crate) unburied: bool,
}

/// A pending row: the newest change of a key that the linked directory may not show yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PendingRow {
    pub(crate) sequence: Sequence,
    /// Of the content of that version.
    pub(crate) bytes: u64,
}

/// The row of the store's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) author: AuthorId,
    pub(crate) epoch: Epoch,
    pub(crate) stamp: Stamp,
}

/// What tells a store's files from copies of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    pub(crate) changed_ns: i64,
}

/// A feed row without the version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FeedPlace {
    pub(crate) commit_end: Sequence,
    pub(crate) via: Option<NodeId>,
    pub(crate) key: Key,
}

/// How the fingerprints of a dataset changed from one place in its feed to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexChange {
    pub(crate) from: Sequence,
    pub(crate) through: Sequence,
    pub(crate) added: Vec<Fingerprint>,
    pub(crate) removed: Vec<Fingerprint>,
}

/// How far packs are durable and indexed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PackTail {
    pub(crate) pack: u64,
    pub(crate) length: u64,
}

pub(crate) const IDENTITY: [u8; 1] = [1];
pub(crate) const CLOCK: [u8; 1] = [2];
pub(crate) const NEXT_NUMBER: [u8; 1] = [3];
pub(crate) const PACK_TAIL: [u8; 1] = [4];
pub(crate) const DATASETS: [u8; 1] = [5];
pub(crate) const REPLICA: u8 = 6;
pub(crate) const CURSOR: u8 = 7;
pub(crate) const SETTING: u8 = 8;
pub(crate) const KNOWLEDGE: u8 = 9;

/// The key of a dataset's own row.
pub(crate) fn dataset_key(id: DatasetId) -> Vec<u8> {
    [&DATASETS[..], &id.0].concat()
}

/// Reads a dataset's identity back from its row's key.
pub(crate) fn dataset_of(key: &[u8]) -> Result<DatasetId, DecodeError> {
    let mut from = Reader::new(key);
    from.u8("tag")?;
    let id = DatasetId(from.array("dataset")?);
    from.finish().map(|()| id)
}

/// The key of a replica's row.
pub(crate) fn replica_key(number: Number) -> Vec<u8> {
    [&[REPLICA][..], &prefix(number)].concat()
}

/// Reads the dataset's number back from the key of a replica or a cursor.
pub(crate) fn replica_of(key: &[u8]) -> Result<Number, DecodeError> {
    number_of(key.get(1..).unwrap_or_default())
}

/// What the keys of a dataset's cursors begin with.
pub(crate) fn cursors_prefix(number: Number) -> Vec<u8> {
    [&[CURSOR][..], &prefix(number)].concat()
}

/// The key of the cursor of a peer's feed.
pub(crate) fn cursor_key(number: Number, peer: NodeId) -> Vec<u8> {
    [&cursors_prefix(number)[..], &peer.0].concat()
}

/// The key of what a replica knows.
pub(crate) fn knowledge_key(number: Number) -> Vec<u8> {
    [&[KNOWLEDGE][..], &prefix(number)].concat()
}

/// The key of a row in `Tombstones`. It says everything, so the row has no value.
pub(crate) fn tombstone_key(number: Number, dot: Dot, key: &Key) -> Vec<u8> {
    [&prefix(number)[..], &dot.time.0.to_be_bytes(), &dot.author.0, key.as_bytes()].concat()
}

/// Reads the dot and the key back from such a row's key.
pub(crate) fn tombstone_of(key: &[u8]) -> Result<(Dot, Key), DecodeError> {
    let mut from = Reader::new(key);
    from.raw(4, "dataset number")?;
    let time = Timestamp(u64::from_be_bytes(from.array("time")?));
    let author = AuthorId(from.array("author")?);
    rest_as_key(from).map(|key| (Dot { author, time }, key))
}

/// The value of the row of what a replica knows.
pub(crate) fn encode_knowledge(knowledge: &Knowledge) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_frontier(&knowledge.known, &mut bytes);
    encode_frontier(&knowledge.frontier, &mut bytes);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_knowledge(bytes: &[u8]) -> Result<Knowledge, DecodeError> {
    let mut from = Reader::new(bytes);
    let known = decode_frontier(&mut from, usize::MAX)?;
    let frontier = decode_frontier(&mut from, usize::MAX)?;
    if !frontier.is_within(&known) {
        return Err(DecodeError::Invalid { what: "frontier" });
    }
    from.finish().map(|()| Knowledge { known, frontier })
}

/// The key of a setting.
pub(crate) fn setting_key(name: &str) -> Vec<u8> {
    [&[SETTING][..], name.as_bytes()].concat()
}

/// What the keys of a dataset's rows begin with, in every table but `Node` and `Chunks`.
pub(crate) fn prefix(number: Number) -> [u8; 4] {
    number.0.to_be_bytes()
}

/// The first key after all that begin with `prefix`; `None` if there is none.
pub(crate) fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// The key of a row in `Versions`, `Records`, `Pending` or `Conflicts`; or of where keys with a prefix begin.
pub(crate) fn name_key(number: Number, name: &str) -> Vec<u8> {
    [&prefix(number)[..], name.as_bytes()].concat()
}

/// Reads the key or path back from such a row's key.
pub(crate) fn name_of(key: &[u8]) -> Result<Key, DecodeError> {
    let mut from = Reader::new(key);
    from.raw(4, "dataset number")?;
    rest_as_key(from)
}

/// The key of a row in `Feed`.
pub(crate) fn feed_key(number: Number, sequence: Sequence) -> Vec<u8> {
    [&prefix(number)[..], &sequence.0.to_be_bytes()].concat()
}

/// Reads the sequence back from such a row's key.
pub(crate) fn sequence_of(key: &[u8]) -> Result<Sequence, DecodeError> {
    let mut from = Reader::new(key);
    from.raw(4, "dataset number")?;
    let sequence = Sequence(u64::from_be_bytes(from.array("sequence")?));
    from.finish().map(|()| sequence)
}

/// The key of a row in `Fingerprints`.
pub(crate) fn fingerprint_key(number: Number, fingerprint: Fingerprint) -> Vec<u8> {
    [&prefix(number)[..], &fingerprint.0.to_be_bytes()].concat()
}

/// Reads the fingerprint back from such a row's key.
pub(crate) fn fingerprint_of(key: &[u8]) -> Result<Fingerprint, DecodeError> {
    let mut from = Reader::new(key);
    from.raw(4, "dataset number")?;
    let fingerprint = Fingerprint(u128::from_be_bytes(from.array("fingerprint")?));
    from.finish().map(|()| fingerprint)
}

/// The value of a row in `Versions`.
pub(crate) fn encode_siblings(siblings: &[Stored]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    for stored in siblings {
        Writer(&mut bytes).varint(stored.sequence.0);
        encode_version(&stored.version, &mut bytes);
    }
    bytes
}

/// Reads such a value.
pub(crate) fn decode_siblings(bytes: &[u8]) -> Result<Vec<Stored>, DecodeError> {
    let mut from = Reader::new(bytes);
    let mut siblings = Vec::with_capacity(1);
    while !from.is_empty() {
        let sequence = Sequence(from.varint("sequence")?);
        siblings.push(Stored { version: decode_version(&mut from)?, sequence });
    }
    Ok(siblings)
}

/// The value of a row in `Feed`, whose key holds `sequence`.
pub(crate) fn encode_feed(
    sequence: Sequence,
    commit_end: Sequence,
    via: Option<NodeId>,
    key: &Key,
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + key.len());
    let mut to = Writer(&mut bytes);
    to.varint(commit_end.0.saturating_sub(sequence.0));
    match via {
        None => to.u8(0),
        Some(peer) => {
            to.u8(1);
            to.raw(&peer.0);
        }
    }
    to.raw(key.as_bytes());
    bytes
}

/// Reads such a value.
pub(crate) fn decode_feed(sequence: Sequence, bytes: &[u8]) -> Result<FeedPlace, DecodeError> {
    let mut from = Reader::new(bytes);
    let more = from.varint("commit end")?;
    let end = sequence.0.checked_add(more).ok_or(DecodeError::Invalid { what: "commit end" })?;
    let via = match from.u8("via")? {
        0 => None,
        1 => Some(NodeId(from.array("via")?)),
        _ => return Err(DecodeError::Invalid { what: "via" }),
    };
    Ok(FeedPlace { commit_end: Sequence(end), via, key: rest_as_key(from)? })
}

/// The value of a row in `Fingerprints` or `Pending`, or of the next dataset number.
pub(crate) fn encode_varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5);
    Writer(&mut bytes).varint(value);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_varint(bytes: &[u8]) -> Result<u64, DecodeError> {
    let mut from = Reader::new(bytes);
    let value = from.varint("number")?;
    from.finish().map(|()| value)
}

/// Reads the next dataset number.
pub(crate) fn decode_number(bytes: &[u8]) -> Result<Number, DecodeError> {
    narrow(decode_varint(bytes)?, "dataset number").map(Number)
}

const IMPLICIT: u8 = 1 << 2;
const RACY: u8 = 1 << 3;
const OTHER_KEY: u8 = 1 << 4;
const PLAIN: u8 = 1 << 5;

/// The value of a row in `Records`.
pub(crate) fn encode_record(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    encode_dot(record.dot, &mut bytes);
    let kind = match record.kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
    };
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    let mut to = Writer(&mut bytes);
    to.u8(kind
        | flag(record.implicit, IMPLICIT)
        | flag(record.racy, RACY)
        | flag(record.plain, PLAIN)
        | flag(record.key.is_some(), OTHER_KEY));
    to.varint(record.size);
    to.varint(u64::from(record.mode));
    to.signed(record.modified_ns);
    to.signed(record.changed_ns);
    to.varint(record.inode);
    to.raw(&record.content);
    if let Some(key) = &record.key {
        to.raw(key.as_bytes());
    }
    bytes
}

/// Reads such a value.
pub(crate) fn decode_record(bytes: &[u8]) -> Result<Record, DecodeError> {
    let mut from = Reader::new(bytes);
    let dot = decode_dot(&mut from)?;
    let flags = from.u8("kind")?;
    let kind = match flags & 3 {
        0 => Kind::File,
        1 => Kind::Directory,
        2 => Kind::Symlink,
        _ => return Err(DecodeError::Invalid { what: "kind" }),
    };
    if flags & !(3 | IMPLICIT | RACY | OTHER_KEY | PLAIN) != 0 {
        return Err(DecodeError::Invalid { what: "flags" });
    }
    let mut record = Record {
        dot,
        key: None,
        kind,
        size: from.varint("size")?,
        mode: narrow(from.varint("mode")?, "mode")?,
        modified_ns: from.signed("modification time")?,
        changed_ns: from.signed("change time")?,
        inode: from.varint("inode")?,
        content: from.array("content")?,
        implicit: flags & IMPLICIT != 0,
        racy: flags & RACY != 0,
        plain: flags & PLAIN != 0,
    };
    if flags & OTHER_KEY != 0 {
        record.key = Some(rest_as_key(from)?);
    } else {
        from.finish()?;
    }
    Ok(record)
}

/// The value of a dataset's row.
pub(crate) fn encode_dataset(row: &DatasetRow) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(40);
    let mut to = Writer(&mut bytes);
    to.varint(u64::from(row.number.0));
    to.u8(match row.state {
        State::Plain => 0,
        State::Linked => 1,
        State::Linking => 2,
        State::Unlinking => 3,
        State::Dropping => 4,
    });
    to.raw(&row.fingerprint_key.0);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_dataset(bytes: &[u8]) -> Result<DatasetRow, DecodeError> {
    let mut from = Reader::new(bytes);
    let number = Number(narrow(from.varint("dataset number")?, "dataset number")?);
    let state = match from.u8("state")? {
        0 => State::Plain,
        1 => State::Linked,
        2 => State::Linking,
        3 => State::Unlinking,
        4 => State::Dropping,
        _ => return Err(DecodeError::Invalid { what: "state" }),
    };
    let fingerprint_key = FingerprintKey(from.array("fingerprint key")?);
    from.finish().map(|()| DatasetRow { number, state, fingerprint_key })
}

/// The value of a replica's row.
pub(crate) fn encode_replica(row: &ReplicaRow) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    let mut to = Writer(&mut bytes);
    to.u128(row.digest.sum);
    to.varint(row.digest.count);
    to.varint(row.head.0);
    to.varint(row.records);
    to.varint(row.pending);
    to.varint(row.pending_bytes);
    to.raw(&encode_losers(row.losers));
    to.varint(row.tombstones.count);
    to.varint(row.tombstones.latest.0);
    to.u64(row.frontier.0);
    to.u8(u8::from(row.unburied));
    bytes
}

/// Reads such a value.
pub(crate) fn decode_replica(bytes: &[u8]) -> Result<ReplicaRow, DecodeError> {
    let mut from = Reader::new(bytes);
    let digest = Digest { sum: from.u128("digest")?, count: from.varint("digest")? };
    let head = Sequence(from.varint("head")?);
    let records = from.varint("count of records")?;
    let pending = from.varint("count of pending keys")?;
    let pending_bytes = later(&mut from, "pending bytes")?;
    let keep_both = later(&mut from, "count of losers")?;
    let losers = Losers { keep_both, prefer_real: later(&mut from, "count of losers")? };
    let count = later(&mut from, "count of tombstones")?;
    let latest = Timestamp(later(&mut from, "latest tombstone")?);
    let tombstones = Tombstones { count, latest };
    let frontier = Mark(if from.is_empty() { 0 } else { from.u64("frontier")? });
    let unburied = !from.is_empty() && from.u8("unburied")? != 0;
    from.finish().map(|()| ReplicaRow {
        digest,
        head,
        records,
        pending,
        pending_bytes,
        losers,
        tombstones,
        frontier,
        unburied,
    })
}

/// The value of a row in `Conflicts`.
pub(crate) fn encode_losers(losers: Losers) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2);
    Writer(&mut bytes).varint(losers.keep_both);
    Writer(&mut bytes).varint(losers.prefer_real);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_losers(bytes: &[u8]) -> Result<Losers, DecodeError> {
    let mut from = Reader::new(bytes);
    let keep_both = from.varint("count of losers")?;
    let losers = Losers { keep_both, prefer_real: from.varint("count of losers")? };
    from.finish().map(|()| losers)
}

/// The value of a row in `Pending`.
pub(crate) fn encode_pending(row: &PendingRow) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(10);
    Writer(&mut bytes).varint(row.sequence.0);
    Writer(&mut bytes).varint(row.bytes);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_pending(bytes: &[u8]) -> Result<PendingRow, DecodeError> {
    let mut from = Reader::new(bytes);
    let sequence = Sequence(from.varint("sequence")?);
    let bytes = later(&mut from, "bytes")?;
    from.finish().map(|()| PendingRow { sequence, bytes })
}

/// A number at the end of a row that rows of earlier formats do not have.
fn later(from: &mut Reader<'_>, what: &'static str) -> Result<u64, DecodeError> {
    if from.is_empty() { Ok(0) } else { from.varint(what) }
}

const WHOLE_INDEX: u8 = 0;
const INDEX_CHANGE: u8 = 1;

/// The key of the row of a dataset's live index.
pub(crate) fn index_key(number: Number) -> Vec<u8> {
    [&prefix(number)[..], &[WHOLE_INDEX]].concat()
}

/// What the keys of its changes since begin with.
pub(crate) fn index_changes_prefix(number: Number) -> Vec<u8> {
    [&prefix(number)[..], &[INDEX_CHANGE]].concat()
}

/// The key of the row of one of them, counted from 0.
pub(crate) fn index_change_key(number: Number, place: u32) -> Vec<u8> {
    [&index_changes_prefix(number)[..], &place.to_be_bytes()].concat()
}

/// Reads back from a row's key in `Index` which of the changes it is; none if it is the index itself.
pub(crate) fn index_change_of(key: &[u8]) -> Result<Option<u32>, DecodeError> {
    let mut from = Reader::new(key);
    from.raw(4, "dataset number")?;
    let place = match from.u8("kind")? {
        WHOLE_INDEX => None,
        INDEX_CHANGE => Some(u32::from_be_bytes(from.array("place")?)),
        _ => return Err(DecodeError::Invalid { what: "kind" }),
    };
    from.finish().map(|()| place)
}

/// The value of the row of a live index, and the place in the feed that it is in step with.
pub(crate) fn encode_index(through: Sequence, index: &Index) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64 + 26 * index.symbols());
    Writer(&mut bytes).varint(through.0);
    index.encode(&mut bytes);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_index(bytes: &[u8]) -> Result<(Sequence, Index), DecodeError> {
    let mut from = Reader::new(bytes);
    let through = Sequence(from.varint("place in the feed")?);
    let index = Index::decode(from.raw(from.remaining(), "index")?);
    Ok((through, index.map_err(|_| DecodeError::Invalid { what: "index" })?))
}

/// The value of the row of a change of a live index.
pub(crate) fn encode_index_change(change: &IndexChange) -> Vec<u8> {
    let count = change.added.len() + change.removed.len();
    let mut bytes = Vec::with_capacity(24 + 16 * count);
    let mut to = Writer(&mut bytes);
    to.varint(change.from.0);
    to.varint(change.through.0);
    to.count(change.added.len());
    change.added.iter().chain(&change.removed).for_each(|fingerprint| to.u128(fingerprint.0));
    bytes
}

/// Reads such a value.
pub(crate) fn decode_index_change(bytes: &[u8]) -> Result<IndexChange, DecodeError> {
    let mut from = Reader::new(bytes);
    let [start, through] = [from.varint("place in the feed")?, from.varint("place in the feed")?];
    let added = from.count(16, usize::MAX, "fingerprints")?;
    let mut fingerprints = Vec::with_capacity(from.remaining() / 16);
    while !from.is_empty() {
        fingerprints.push(Fingerprint(from.u128("fingerprint")?));
    }
    let removed = fingerprints.split_off(added);
    let [start, through] = [start, through].map(Sequence);
    Ok(IndexChange { from: start, through, added: fingerprints, removed })
}

/// The value of a cursor's row.
pub(crate) fn encode_cursor(cursor: Cursor) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    Writer(&mut bytes).u64(cursor.epoch.0);
    Writer(&mut bytes).u64(cursor.sequence.0);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_cursor(bytes: &[u8]) -> Result<Cursor, DecodeError> {
    let mut from = Reader::new(bytes);
    let epoch = Epoch(from.u64("epoch")?);
    let cursor = Cursor { epoch, sequence: Sequence(from.u64("sequence")?) };
    from.finish().map(|()| cursor)
}

/// The value of the identity's row.
pub(crate) fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(48);
    let mut to = Writer(&mut bytes);
    to.raw(&identity.author.0);
    to.u64(identity.epoch.0);
    to.u64(identity.stamp.inode);
    to.signed(identity.stamp.changed_ns);
    bytes
}

/// Reads such a value.
pub(crate) fn decode_identity(bytes: &[u8]) -> Result<Identity, DecodeError> {
    let mut from = Reader::new(bytes);
    let author = AuthorId(from.array("author")?);
    let epoch = Epoch(from.u64("epoch")?);
    let inode = from.u64("inode")?;
    let stamp = Stamp { inode, changed_ns: from.signed("change time")? };
    from.finish().map(|()| Identity { author, epoch, stamp })
}

/// The value of the clock's row.
pub(crate) fn encode_clock(last: Timestamp) -> Vec<u8> {
    last.0.to_le_bytes().to_vec()
}

/// Reads such a value.
pub(crate) fn decode_clock(bytes: &[u8]) -> Result<Timestamp, DecodeError> {
    let mut from = Reader::new(bytes);
    let last = Timestamp(from.u64("clock")?);
    from.finish().map(|()| last)
}

/// The value of the row of the packs.
pub(crate) fn encode_pack_tail(tail: PackTail) -> Vec<u8> {
    [tail.pack.to_le_bytes(), tail.length.to_le_bytes()].concat()
}

/// Reads such a value.
pub(crate) fn decode_pack_tail(bytes: &[u8]) -> Result<PackTail, DecodeError> {
    let mut from = Reader::new(bytes);
    let tail = PackTail { pack: from.u64("pack")?, length: from.u64("length")? };
    from.finish().map(|()| tail)
}

fn rest_as_key(mut from: Reader<'_>) -> Result<Key, DecodeError> {
    let invalid = DecodeError::Invalid { what: "key" };
    if MAX_KEY_BYTES < from.remaining() {
        return Err(DecodeError::TooLarge { what: "key", limit: MAX_KEY_BYTES });
    }
    let text = core::str::from_utf8(from.raw(from.remaining(), "key")?).map_err(|_| invalid)?;
    Key::new(text).map_err(|_| invalid)
}

fn narrow<T: TryFrom<u64>>(value: u64, what: &'static str) -> Result<T, DecodeError> {
    T::try_from(value).map_err(|_| DecodeError::Invalid { what })
}

/// The number of the dataset that a row belongs to, in every table but `Node` and `Chunks`.
pub(crate) fn number_of(key: &[u8]) -> Result<Number, DecodeError> {
    Ok(Number(u32::from_be_bytes(Reader::new(key).array("dataset number")?)))
}
