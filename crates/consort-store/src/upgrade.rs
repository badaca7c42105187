//! The format of a store: read before anything else, and brought up to date one step at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::mem;
use std::path::Path;
use std::sync::Arc;

use consort_core::Key;
use consort_core::model::conflict::Losers;
use consort_core::store::{StoreError, Stored, Tombstones};

use crate::layout::{self, FORMAT, Number, ReplicaRow, Table};
use crate::lsm::{Moment, Rows, Tables, damaged};
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
    // made when a dataset has none. No record of a format before 5 says that its content is plain.
    let steps = [(3, count_losers as fn(&Arc<Tables>) -> _), (4, index_tombstones)];
    for (_, step) in steps.into_iter().filter(|(since, _)| found < *since) {
        step(tables).map_err(|error| OpenError::Damaged(error.to_string()))?;
    }
    let path = directory.join(NAME);
    write(directory).map_err(|source| OpenError::Io { path, source })
}

/// Since format 3 losers are counted.
fn count_losers(tables: &Arc<Tables>) -> Result<(), StoreError> {
    let mut steps = Steps::begin(Table::Conflicts, tables)?;
    let mut totals: BTreeMap<Number, Losers> = BTreeMap::new();
    steps.each_key(|number, key, siblings| {
        let losers = Losers::of(siblings.iter().map(|stored| &stored.version));
        if losers.are_none() {
            return Vec::new();
        }
        let total = totals.entry(number).or_default();
        *total = *total + losers;
        vec![(layout::name_key(number, key), layout::encode_losers(losers))]
    })?;
    steps.end(totals, |replica, losers| replica.losers = losers)
}

/// Since format 4 tombstones are indexed and counted.
fn index_tombstones(tables: &Arc<Tables>) -> Result<(), StoreError> {
    let mut steps = Steps::begin(Table::Tombstones, tables)?;
    let mut totals: BTreeMap<Number, Tombstones> = BTreeMap::new();
    steps.each_key(|number, key, siblings| {
        let versions = siblings.iter().map(|stored| &stored.version);
        let tombstones = versions.filter(|version| version.is_deleted());
        tombstones
            .map(|version| {
                totals.entry(number).or_default().add(version);
                (layout::tombstone_key(number, version.dot, key), Vec::new())
            })
            .collect()
    })?;
    steps.end(totals, |replica, tombstones| replica.tombstones = tombstones)
}

/// What follows from all versions, written anew into one table.
struct Steps<'t> {
    tables: &'t Arc<Tables>,
    moment: Moment,
    table: Table,
    rows: Rows,
    changed: usize,
}

impl<'t> Steps<'t> {
    /// Begins without any row: an upgrade that a crash ended may have left some, which an older version has not kept up.
    fn begin(table: Table, tables: &'t Arc<Tables>) -> Result<Self, StoreError> {
        let (moment, rows) = (tables.moment(), Rows::default());
        let mut steps = Self { tables, moment, table, rows, changed: 0 };
        for row in steps.moment.rows(table, &[], Vec::new()) {
            steps.rows.remove(table, row?.0);
            steps.changed += 1;
            steps.write()?;
        }
        Ok(steps)
    }

    /// Writes the rows that follow from each key's versions.
    fn each_key(
        &mut self,
        mut follow: impl FnMut(Number, &Key, Vec<Stored>) -> Vec<(Vec<u8>, Vec<u8>)>,
    ) -> Result<(), StoreError> {
        let wrong = |error| damaged(Table::Versions, error);
        for row in self.moment.rows(Table::Versions, &[], Vec::new()) {
            let (row, value) = row?;
            let number = layout::number_of(&row).map_err(wrong)?;
            let key = layout::name_of(&row).map_err(wrong)?;
            let siblings = layout::decode_siblings(&value).map_err(wrong)?;
            for (key, value) in follow(number, &key, siblings) {
                self.rows.put(self.table, key, value);
                self.changed += 1;
                self.write()?;
            }
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.changed.is_multiple_of(STEP_ROWS) {
            mem::take(&mut self.rows).commit(self.tables)
        } else {
            Ok(())
        }
    }

    /// Writes what is counted about each dataset.
    fn end<T>(
        mut self,
        totals: BTreeMap<Number, T>,
        set: impl Fn(&mut ReplicaRow, T),
    ) -> Result<(), StoreError> {
        for (number, total) in totals {
            // Another step may have changed it.
            let mut replica = replica_row(&self.tables.moment(), number)?;
            set(&mut replica, total);
            let row = layout::encode_replica(&replica);
            self.rows.put(Table::Node, layout::replica_key(number), row);
        }
        self.rows.commit(self.tables)
    }
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
