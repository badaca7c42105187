//! Changes that are no commits: datasets come and go, directories are linked and unlinked, settings are set. What
//! touches many rows goes in steps of bounded size, so that commits in between need not wait long; the dataset's state
//! tells a store that is opened after a crash to go on.

use consort_core::store::{DatasetParameters, StoreError};
use consort_core::{DatasetId, Key};

use crate::chunks::Chunks;
use crate::layout::{self, DatasetRow, Number, PendingRow, ReplicaRow, State, Table};
use crate::lsm::{Moment, Rows, damaged};
use crate::view::{decoded, replica_row};

/// Rows that one step looks at: a few milliseconds of work, and a batch of less than a megabyte.
const STEP_ROWS: usize = 4096;

/// A change that is no commit.
#[derive(Debug)]
pub(crate) enum Edit {
    /// Makes what was packed durable.
    Nothing,
    /// Sets or removes a setting.
    Setting { name: String, value: Option<Vec<u8>> },
    /// Makes a dataset known.
    Open(DatasetParameters),
    /// Changes a dataset's state.
    Enter { dataset: DatasetId, state: State },
    /// Marks the next keys of a dataset pending.
    Mark { number: Number, from: Option<Vec<u8>> },
    /// Removes the next rows of a dataset from a table.
    Clear { number: Number, table: Table, from: Option<Vec<u8>> },
    /// Removes what is left of a dataset whose other rows are gone.
    Forget { dataset: DatasetId },
}

/// What an edit did.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// The dataset whose row changed, and the row if it is still there.
    pub(crate) dataset: Option<(DatasetId, Option<DatasetRow>)>,
    /// Where the next step goes on, if there is one.
    pub(crate) next: Option<Vec<u8>>,
}

impl Edit {
    /// Adds the changes to `rows`.
    pub(crate) fn apply(
        self,
        moment: &Moment,
        chunks: &mut Chunks<'_>,
        rows: &mut Rows,
    ) -> Result<Outcome, StoreError> {
        match self {
            Self::Nothing => {}
            Self::Setting { name, value } => {
                let key = layout::setting_key(&name);
                match value {
                    Some(value) => rows.put(Table::Node, key, value),
                    None => rows.remove(Table::Node, key),
                }
            }
            Self::Open(parameters) => return open(parameters, moment, rows),
            Self::Enter { dataset, state } => return enter(dataset, state, moment, rows),
            Self::Mark { number, from } => return mark(number, from, moment, rows),
            Self::Clear { number, table: Table::Chunks, from } => {
                // Chunks are ordered by hash, so those of one dataset have to be looked for.
                return step(Table::Chunks, &[], from, moment, |row, value| {
                    chunks.clear(number, row, value, rows)
                });
            }
            Self::Clear { number, table, from } => {
                return clear(number, table, from, moment, rows);
            }
            Self::Forget { dataset } => {
                let number = dataset_row(dataset, moment)?.number;
                rows.remove(Table::Node, layout::replica_key(number));
                rows.remove(Table::Node, layout::knowledge_key(number));
                rows.remove(Table::Node, layout::dataset_key(dataset));
                return Ok(Outcome { dataset: Some((dataset, None)), next: None });
            }
        }
        Ok(Outcome::default())
    }
}

/// The row of a dataset.
fn dataset_row(dataset: DatasetId, moment: &Moment) -> Result<DatasetRow, StoreError> {
    let row = moment.get(Table::Node, &layout::dataset_key(dataset))?;
    decoded(Table::Node, row.map(|row| layout::decode_dataset(&row)))?
        .ok_or(StoreError::UnknownDataset(dataset))
}

fn open(
    parameters: DatasetParameters,
    moment: &Moment,
    rows: &mut Rows,
) -> Result<Outcome, StoreError> {
    let DatasetParameters { id, fingerprint_key } = parameters;
    match dataset_row(id, moment) {
        Ok(DatasetRow { state: State::Dropping, .. }) => {
            let what = "the dataset is still being dropped; try again in a moment";
            return Err(StoreError::Failed(what.to_owned()));
        }
        Ok(_) => return Ok(Outcome::default()),
        Err(StoreError::UnknownDataset(_)) => {}
        Err(error) => return Err(error),
    }
    let next = moment.get(Table::Node, &layout::NEXT_NUMBER)?;
    let number = decoded(Table::Node, next.map(|next| layout::decode_number(&next)))?;
    let number = number.unwrap_or(Number(0));
    let row = DatasetRow { number, state: State::Plain, fingerprint_key };
    rows.put(Table::Node, layout::dataset_key(id), layout::encode_dataset(&row));
    let next = layout::encode_varint(u64::from(number.0) + 1);
    rows.put(Table::Node, layout::NEXT_NUMBER, next);
    put_replica(number, &ReplicaRow::default(), rows);
    Ok(Outcome { dataset: Some((id, Some(row))), next: None })
}

fn enter(
    dataset: DatasetId,
    state: State,
    moment: &Moment,
    rows: &mut Rows,
) -> Result<Outcome, StoreError> {
    let before = dataset_row(dataset, moment)?;
    let row = DatasetRow { state, ..before };
    rows.put(Table::Node, layout::dataset_key(dataset), layout::encode_dataset(&row));
    // A dataset that is being dropped is not there any more for anybody.
    let known = (state != State::Dropping).then_some(row);
    Ok(Outcome { dataset: Some((dataset, known)), next: None })
}

fn mark(
    number: Number,
    from: Option<Vec<u8>>,
    moment: &Moment,
    rows: &mut Rows,
) -> Result<Outcome, StoreError> {
    let mut replica = replica_row(moment, number)?;
    let outcome = step(Table::Versions, &layout::prefix(number), from, moment, |row, value| {
        let wrong = |error| damaged(Table::Versions, error);
        let key: Key = layout::name_of(row).map_err(wrong)?;
        let siblings = layout::decode_siblings(value).map_err(wrong)?;
        if let Some(newest) = siblings.iter().max_by_key(|stored| stored.sequence) {
            let row = layout::name_key(number, &key);
            // A commit in between, or the step that a crash interrupted, may have marked it already.
            let before = moment.get(Table::Pending, &row)?;
            let before =
                before.map(|row| layout::decode_pending(&row)).transpose().map_err(wrong)?;
            let (sequence, bytes) = (newest.sequence, newest.version.content.size());
            replica.pending += u64::from(before.is_none());
            let counted = before.map_or(0, |row| row.bytes);
            replica.pending_bytes = replica.pending_bytes.wrapping_sub(counted).wrapping_add(bytes);
            let pending = PendingRow { sequence, bytes };
            rows.put(Table::Pending, row, layout::encode_pending(&pending));
        }
        Ok(())
    })?;
    put_replica(number, &replica, rows);
    Ok(outcome)
}

fn clear(
    number: Number,
    table: Table,
    from: Option<Vec<u8>>,
    moment: &Moment,
    rows: &mut Rows,
) -> Result<Outcome, StoreError> {
    let prefix = match table {
        Table::Node => layout::cursors_prefix(number),
        _ => layout::prefix(number).to_vec(),
    };
    let (mut removed, mut bytes) = (0, 0_u64);
    let outcome = step(table, &prefix, from, moment, |row, value| {
        if table == Table::Pending {
            let pending = layout::decode_pending(value).map_err(|error| damaged(table, error))?;
            bytes = bytes.wrapping_add(pending.bytes);
        }
        rows.remove(table, row);
        removed += 1;
        Ok(())
    })?;
    let mut replica = replica_row(moment, number)?;
    match table {
        Table::Records => replica.records = replica.records.saturating_sub(removed),
        Table::Pending => {
            replica.pending = replica.pending.saturating_sub(removed);
            replica.pending_bytes = replica.pending_bytes.wrapping_sub(bytes);
        }
        _ => return Ok(outcome),
    }
    put_replica(number, &replica, rows);
    Ok(outcome)
}

fn put_replica(number: Number, replica: &ReplicaRow, rows: &mut Rows) {
    rows.put(Table::Node, layout::replica_key(number), layout::encode_replica(replica));
}

/// Shows the next rows to `visit`.
fn step(
    table: Table,
    prefix: &[u8],
    from: Option<Vec<u8>>,
    moment: &Moment,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>,
) -> Result<Outcome, StoreError> {
    let from = from.unwrap_or_else(|| prefix.to_vec());
    for (count, row) in moment.rows(table, prefix, from).enumerate() {
        let (key, value) = row?;
        if count == STEP_ROWS {
            return Ok(Outcome { dataset: None, next: Some(key.to_vec()) });
        }
        visit(&key, &value)?;
    }
    Ok(Outcome::default())
}
