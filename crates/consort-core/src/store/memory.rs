//! A store in memory: the reference that every other store is compared with, and the one of tests and simulations.
//! Nothing in it survives the process.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound::{Excluded, Included, Unbounded};

use crate::model::canonical;
use crate::model::commit::Commit;
use crate::model::conflict::{Losers, OnConflict};
use crate::model::fingerprint::Fingerprint;
use crate::model::hlc::Clock;
use crate::model::id::{AuthorId, DatasetId, NodeId};
use crate::model::key::Key;
use crate::model::vector::Dot;
use crate::model::version::Entry;
use crate::reconcile::Index;
use crate::store::apply::{Application, Batch};
use crate::store::{
    Applied, Cursor, DatasetParameters, Epoch, FeedRow, LocalWrite, Sealer, Sequence, Store,
    StoreError, Stored, Summary, View,
};
use crate::time::WallTime;

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    author: AuthorId,
    epoch: Epoch,
    clock: Clock,
    datasets: BTreeMap<DatasetId, (DatasetParameters, Arc<Rows>)>,
}

/// The rows of one dataset: a view is a shared copy of them.
#[derive(Clone, Debug, Default)]
struct Rows {
    summary: Summary,
    versions: BTreeMap<Key, Vec<Stored>>,
    feed: BTreeMap<Sequence, (Key, Dot, Sequence, Option<NodeId>)>,
    fingerprints: BTreeMap<Fingerprint, (Key, Dot)>,
    contested: BTreeSet<Key>,
    losers: Losers,
    index: Index,
    cursors: BTreeMap<NodeId, Cursor>,
}

/// A [`MemoryStore`]'s dataset at one moment.
#[derive(Clone, Debug)]
pub struct MemoryView(Arc<Rows>);

impl MemoryStore {
    /// An empty store of `author`, whose feeds are of `epoch`.
    pub fn new(author: AuthorId, epoch: Epoch) -> Self {
        Self { author, epoch, clock: Clock::default(), datasets: BTreeMap::new() }
    }

    fn dataset(
        &mut self,
        dataset: DatasetId,
    ) -> Result<&mut (DatasetParameters, Arc<Rows>), StoreError> {
        self.datasets.get_mut(&dataset).ok_or(StoreError::UnknownDataset(dataset))
    }
}

impl Store for MemoryStore {
    type View = MemoryView;

    fn author(&self) -> AuthorId {
        self.author
    }

    fn open_dataset(&mut self, dataset: DatasetParameters) -> Result<(), StoreError> {
        let epoch = self.epoch;
        self.datasets.entry(dataset.id).or_insert_with(|| {
            let mut rows = Rows::default();
            rows.summary.head.epoch = epoch;
            (dataset, Arc::new(rows))
        });
        Ok(())
    }

    fn view(&self, dataset: DatasetId) -> Result<MemoryView, StoreError> {
        let rows = self.datasets.get(&dataset).map(|(_, rows)| MemoryView(Arc::clone(rows)));
        rows.ok_or(StoreError::UnknownDataset(dataset))
    }

    fn apply_remote(
        &mut self,
        dataset: DatasetId,
        peer: NodeId,
        commit: Commit,
        cursor: Option<Cursor>,
    ) -> Result<Applied, StoreError> {
        let (parameters, rows) = self.dataset(dataset)?;
        let view = MemoryView(Arc::clone(rows));
        let mut application = Application::new(&view, parameters.fingerprint_key);
        let applied = application.remote(commit.entries, peer)?;
        let batch = application.finish();
        drop(view);
        let rows = Arc::make_mut(rows);
        rows.apply(batch);
        if let Some(cursor) = cursor {
            rows.cursors.insert(peer, cursor);
        }
        Ok(applied)
    }

    fn apply_sealed(
        &mut self,
        dataset: DatasetId,
        writes: Vec<LocalWrite>,
        now: WallTime,
        sealer: Option<Arc<dyn Sealer>>,
    ) -> Result<Applied, StoreError> {
        let (author, mut clock) = (self.author, self.clock);
        let (parameters, rows) = self.dataset(dataset)?;
        let view = MemoryView(Arc::clone(rows));
        let mut application = Application::new(&view, parameters.fingerprint_key);
        let policy = OnConflict::KeepBoth;
        let sealer = sealer.as_deref();
        let applied = application.local(writes, policy, author, &mut clock, now, sealer)?;
        let batch = application.finish();
        drop(view);
        Arc::make_mut(rows).apply(batch);
        self.clock = clock;
        Ok(applied)
    }
}

impl Rows {
    fn apply(&mut self, batch: Batch) {
        for removed in batch.removed {
            self.feed.remove(&removed.sequence);
            self.fingerprints.remove(&removed.fingerprint);
            self.index.remove(removed.fingerprint);
        }
        for added in batch.added {
            let (key, dot) = (added.key, added.dot);
            self.feed.insert(added.sequence, (key.clone(), dot, added.commit_end, added.via));
            self.fingerprints.insert(added.fingerprint, (key, dot));
            self.index.add(added.fingerprint);
        }
        if self.index.is_short() {
            let count = batch.summary.digest.count;
            self.index = Index::of_set(count, self.fingerprints.keys().copied());
        }
        for (key, losers) in batch.contested {
            if losers.are_none() {
                self.contested.remove(&key);
            } else {
                self.contested.insert(key);
            }
        }
        self.losers = batch.losers;
        self.versions.extend(batch.keys);
        self.summary = batch.summary;
    }

    fn entry(&self, key: &Key, dot: Dot) -> Result<Entry, StoreError> {
        let siblings = self.versions.get(key).into_iter().flatten();
        siblings
            .map(|stored| &stored.version)
            .find(|version| version.dot == dot)
            .map(|version| Entry { key: key.clone(), version: version.clone() })
            .ok_or_else(|| StoreError::Damaged("an index names a version that is gone".to_string()))
    }
}

impl View for MemoryView {
    fn summary(&self) -> Summary {
        self.0.summary
    }

    fn siblings(&self, key: &Key) -> Result<Vec<Stored>, StoreError> {
        Ok(self.0.versions.get(key).cloned().unwrap_or_default())
    }

    fn feed(&self, after: Sequence, limit_bytes: usize) -> Result<Vec<FeedRow>, StoreError> {
        let mut rows = Vec::new();
        let mut bytes = Vec::new();
        for (&sequence, (key, dot, commit_end, via)) in
            self.0.feed.range((Excluded(after), Unbounded))
        {
            let entry = self.0.entry(key, *dot)?;
            canonical::encode_entry(&entry, &mut bytes);
            if limit_bytes < bytes.len() && !rows.is_empty() {
                break;
            }
            rows.push(FeedRow { sequence, commit_end: *commit_end, via: *via, entry });
        }
        Ok(rows)
    }

    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError> {
        let found = self.0.fingerprints.get(&fingerprint);
        found.map(|(key, dot)| self.0.entry(key, *dot)).transpose()
    }

    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError> {
        Ok(self.0.fingerprints.contains_key(&fingerprint))
    }

    fn index(&self) -> &Index {
        &self.0.index
    }

    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let above = |fingerprint: &&Fingerprint| after < Some(**fingerprint);
        let from = after.unwrap_or(Fingerprint(0));
        Ok(self
            .0
            .fingerprints
            .range(from..)
            .map(|(f, _)| f)
            .filter(above)
            .take(limit)
            .copied()
            .collect())
    }

    fn contested(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.0.contested.range::<Key, _>((from, Unbounded)).take(limit).cloned().collect())
    }

    fn losers(&self) -> Losers {
        self.0.losers
    }

    fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, StoreError> {
        Ok(self.0.cursors.get(&peer).copied())
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError> {
        let from = after.map_or(prefix, |after| after.as_str().max(prefix));
        let range = self.0.versions.range::<str, _>((Included(from), Unbounded));
        let matching = range
            .take_while(|(key, _)| key.as_str() <= from || key.starts_with(prefix))
            .filter(|(key, _)| key.starts_with(prefix) && after < Some(*key));
        Ok(matching.take(limit).map(|(key, held)| (key.clone(), held.clone())).collect())
    }
}
