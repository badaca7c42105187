//! The format of a store: read before anything else, and brought up to date one step at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use consort_core::model::conflict::Losers;
use consort_core::store::StoreError;

use crate::layout::{self, FORMAT, Number, Table};
use crate::lsm::{Rows, Tables, damaged};
use crate::packs::sync_directory;
use crate::store::OpenError;
use crate::view::replica_row;

const NAME: &str = "FORMAT";
const PREFIX: &str = "consort store ";
/// Rows that are written at once.
const STEP_ROWS: usize = 4096;

/// Reads the format of the store in `directory`; one that is new gets the current one. What is older can be read when
/// its rows were [upgraded](upgrade).
pub(crate) fn read(directory: &Path) -> Result<u32, OpenError> {
    let path = directory.join(NAME);
    let found = match fs::read_to_string(&path) {
        Ok(text) => {
            let number = text.strip_prefix(PREFIX).and_then(|rest| rest.trim_end().parse().ok());
            let says_none = || OpenError::Damaged(format!("{} says no format", path.display()));
            number.ok_or_else(says_none)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(directory).map_err(|source| OpenError::Io { path, source })?;
            FORMAT
        }
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    match found {
        0 => Err(OpenError::Damaged("format 0 was never written".to_owned())),
        1..=FORMAT => Ok(found),
        _ => Err(OpenError::NewerFormat { found, known: FORMAT }),
    }
}

/// Brings the rows of a store of format `found` up to date. Each step can be repeated, so that a crash between the last
/// one and the new format does no harm.
pub(crate) fn upgrade(directory: &Path, found: u32, tables: &Arc<Tables>) -> Result<(), OpenError> {
    if found == FORMAT {
        return Ok(());
    }
    // Rows of format 1 are read as they are: the bytes that it did not count are none. Live indexes, since format 3, are
    // made when a dataset has none.
    if found < 3 {
        count_losers(tables).map_err(|error| OpenError::Damaged(error.to_string()))?;
    }
    let path = directory.join(NAME);
    write(directory).map_err(|source| OpenError::Io { path, source })
}

/// Since format 3 losers are counted.
fn count_losers(tables: &Arc<Tables>) -> Result<(), StoreError> {
    let moment = tables.moment();
    let wrong = |error| damaged(Table::Versions, error);
    let mut rows = Rows::default();
    let mut changed = 0;
    let mut write = |rows: &mut Rows| {
        changed += 1;
        if changed % STEP_ROWS == 0 { std::mem::take(rows).commit(tables) } else { Ok(()) }
    };
    // An upgrade that a crash ended may have left some, which an older version has not kept up.
    for row in moment.rows(Table::Conflicts, &[], Vec::new()) {
        rows.remove(Table::Conflicts, row?.0);
        write(&mut rows)?;
    }
    let mut totals: BTreeMap<Number, Losers> = BTreeMap::new();
    for row in moment.rows(Table::Versions, &[], Vec::new()) {
        let (key, value) = row?;
        let siblings = layout::decode_siblings(&value).map_err(wrong)?;
        let losers = Losers::of(siblings.iter().map(|stored| &stored.version));
        if !losers.are_none() {
            let total = totals.entry(layout::number_of(&key).map_err(wrong)?).or_default();
            *total = *total + losers;
            rows.put(Table::Conflicts, key, layout::encode_losers(losers));
            write(&mut rows)?;
        }
    }
    for (number, losers) in totals {
        let replica = layout::ReplicaRow { losers, ..replica_row(&moment, number)? };
        rows.put(Table::Node, layout::replica_key(number), layout::encode_replica(&replica));
    }
    rows.commit(tables)
}

/// Writes the current format, beside the old one first.
fn write(directory: &Path) -> io::Result<()> {
    let path = directory.join(NAME);
    let new = directory.join("FORMAT.new");
    let mut file = File::create(&new)?;
    file.write_all(format!("{PREFIX}{FORMAT}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    sync_directory(directory)
}
