//! The live index of each dataset: in memory, in step with every batch, and part of what a view sees; and on disk, so that
//! no store has to go through all its fingerprints when it is opened.
//!
//! On disk an index is one row, and for each batch since then a small row of what the batch added and removed. When these
//! hold as many changes as the index has symbols, the next batch writes the index anew, and their places are used again:
//! a row that does not go on where the one before it ended is left from earlier. Whatever is not as it should be
//! is no loss, since an index can be made of the fingerprints. What it is for stands in `docs/reconciliation.md`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use consort_core::DatasetId;
use consort_core::reconcile::Index;
use consort_core::store::apply::Batch;
use consort_core::store::{Sequence, StoreError, View};

use crate::layout::{self, DatasetRow, IndexChange, Number, ReplicaRow, State, Table};
use crate::lsm::{Moment, Rows};
use crate::view::{DiskView, fingerprints, replica_row};

/// The live indexes of all datasets that are there.
#[derive(Default)]
pub(crate) struct LiveIndexes(RwLock<BTreeMap<Number, Live>>);

/// The indexes, while no batch is announced or settled: a moment that is taken meanwhile is one that they know.
pub(crate) struct Known<'l>(RwLockReadGuard<'l, BTreeMap<Number, Live>>);

#[derive(Default)]
struct Live {
    /// The end of the feed that the index is in step with.
    head: Sequence,
    index: Arc<Index>,
    /// Of a batch that is on its way to the disk: a moment is before or after it.
    next: Option<Next>,
    since: Since,
}

/// What follows the row of an index on disk: rows, and changes in them.
#[derive(Clone, Copy, Default)]
struct Since {
    rows: u32,
    changes: usize,
}

struct Next {
    change: IndexChange,
    since: Since,
}

impl LiveIndexes {
    /// Reads the indexes when the store is opened. Those that are missing or damaged are made anew, and put into `rows`.
    pub(crate) fn open(
        moment: &Moment,
        datasets: &BTreeMap<DatasetId, DatasetRow>,
        rows: &mut Rows,
    ) -> Result<Self, StoreError> {
        let mut indexes = BTreeMap::new();
        for (id, row) in datasets.iter().filter(|(_, row)| row.state != State::Dropping) {
            let replica = replica_row(moment, row.number)?;
            let live = match Live::read(moment, row.number, &replica)? {
                Ok(live) => live,
                Err(reason) => {
                    tracing::info!(dataset = %id, reason, "the live index is made anew");
                    let index = whole(moment, row.number, replica.digest.count)?;
                    let value = layout::encode_index(replica.head, &index);
                    rows.put(Table::Index, layout::index_key(row.number), value);
                    let prefix = layout::index_changes_prefix(row.number);
                    for left in moment.rows(Table::Index, &prefix, prefix.clone()) {
                        rows.remove(Table::Index, left?.0);
                    }
                    let (head, index) = (replica.head, Arc::new(index));
                    Live { head, index, ..Live::default() }
                }
            };
            indexes.insert(row.number, live);
        }
        Ok(Self(RwLock::new(indexes)))
    }

    /// For a dataset that is new; does nothing for one that is known.
    pub(crate) fn insert(&self, number: Number) {
        self.write().entry(number).or_default();
    }

    /// For a dataset that is gone.
    pub(crate) fn remove(&self, number: Number) {
        self.write().remove(&number);
    }

    /// For taking a moment. Commits wait meanwhile.
    pub(crate) fn known(&self) -> Known<'_> {
        Known(self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Announces that a batch on top of `view` is about to be written, and adds the rows that keep the index on disk in
    /// step with it. Whether it changes the index: then it is to be [settled](Self::settle) if the batch is written.
    pub(crate) fn announce(
        &self,
        view: &DiskView,
        batch: &Batch,
        rows: &mut Rows,
    ) -> Result<bool, StoreError> {
        let number = view.number();
        let change = IndexChange {
            from: view.summary().head.sequence,
            through: batch.summary.head.sequence,
            added: batch.added.iter().map(|added| added.fingerprint).collect(),
            removed: batch.removed.iter().map(|removed| removed.fingerprint).collect(),
        };
        if change.from == change.through {
            return Ok(false);
        }
        let outgrown = view.index().is_short();
        let count = view.summary().digest.count;
        let grown =
            outgrown.then(|| whole(view.moment(), number, count)).transpose()?.map(Arc::new);
        let mut indexes = self.write();
        let Some(live) = indexes.get_mut(&number) else { return Ok(false) };
        if let Some(grown) = grown {
            live.index = grown;
        }
        let mut since = live.since;
        if outgrown || live.index.symbols() <= since.changes {
            let value = layout::encode_index(live.head, &live.index);
            rows.put(Table::Index, layout::index_key(number), value);
            since = Since::default();
        }
        let key = layout::index_change_key(number, since.rows);
        rows.put(Table::Index, key, layout::encode_index_change(&change));
        since.add(&change);
        live.next = Some(Next { change, since });
        Ok(true)
    }

    /// Takes over what was announced of these datasets: it is durable.
    pub(crate) fn settle(&self, datasets: impl Iterator<Item = Number>) {
        let mut indexes = self.write();
        for number in datasets {
            let Some(live) = indexes.get_mut(&number) else { continue };
            if let Some(Next { change, since }) = live.next.take() {
                change.apply(Arc::make_mut(&mut live.index));
                live.head = change.through;
                live.since = since;
            }
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Number, Live>> {
        // Nothing panics half way through a change.
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known<'_> {
    /// The index of a dataset whose feed ends at `head`, at a moment that was taken while this is held.
    pub(crate) fn at(&self, number: Number, head: Sequence) -> Arc<Index> {
        // Somebody may have dropped the dataset just now.
        let Some(live) = self.0.get(&number) else { return Arc::default() };
        match &live.next {
            Some(next) if live.head != head && next.change.through == head => {
                let mut index = Index::clone(&live.index);
                next.change.apply(&mut index);
                Arc::new(index)
            }
            _ => Arc::clone(&live.index),
        }
    }
}

impl Live {
    /// Reads an index as it is on disk, or says why it cannot be used.
    fn read(
        moment: &Moment,
        number: Number,
        replica: &ReplicaRow,
    ) -> Result<Result<Self, &'static str>, StoreError> {
        let (mut head, mut index) = match moment.get(Table::Index, &layout::index_key(number))? {
            // It began empty.
            None => (Sequence(0), Index::new()),
            Some(row) => match layout::decode_index(&row) {
                Ok(read) => read,
                Err(_) => return Ok(Err("its row is damaged")),
            },
        };
        let mut since = Since::default();
        let prefix = layout::index_changes_prefix(number);
        for row in moment.rows(Table::Index, &prefix, prefix.clone()) {
            let (key, value) = row?;
            let place = layout::index_change_of(&key);
            let change = layout::decode_index_change(&value);
            match (place, change) {
                (Ok(Some(place)), Ok(change)) if place == since.rows && change.from == head => {
                    change.apply(&mut index);
                    head = change.through;
                    since.add(&change);
                }
                // Here end those that follow the row of the index, if they lead to where the feed ends.
                _ => break,
            }
        }
        Ok(if head != replica.head {
            Err("its rows do not lead to the end of the feed")
        } else if index.digest() != replica.digest {
            Err("it is that of other versions")
        } else {
            Ok(Self { head, index: Arc::new(index), next: None, since })
        })
    }
}

impl Since {
    fn add(&mut self, change: &IndexChange) {
        self.rows += 1;
        self.changes += change.added.len() + change.removed.len();
    }
}

impl IndexChange {
    fn apply(&self, index: &mut Index) {
        self.removed.iter().for_each(|fingerprint| index.remove(*fingerprint));
        self.added.iter().for_each(|fingerprint| index.add(*fingerprint));
    }
}

/// The index of a dataset as it is on disk, if it is that of its fingerprints.
pub(crate) fn verify(
    moment: &Moment,
    number: Number,
    replica: &ReplicaRow,
) -> Result<Result<(), &'static str>, StoreError> {
    let live = match Live::read(moment, number, replica)? {
        Ok(live) => live,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut expected = Index::with_symbols(live.index.symbols());
    for fingerprint in fingerprints(moment, number, None) {
        expected.add(fingerprint?);
    }
    Ok(if *live.index == expected { Ok(()) } else { Err("it is that of other versions") })
}

/// The index of about `count` fingerprints, from all of them.
fn whole(moment: &Moment, number: Number, count: u64) -> Result<Index, StoreError> {
    let mut index = Index::with_symbols(Index::length_for(count));
    for fingerprint in fingerprints(moment, number, None) {
        index.add(fingerprint?);
    }
    Ok(index)
}
