//! A store in memory: the reference that every other store is compared with, and the one of tests and simulations.
//! Nothing in it survives the process.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Bound::{Excluded, Included, Unbounded};

use crate::model::canonical;
use crate::model::commit::Commit;
use crate::model::conflict::{Losers, OnConflict};
use crate::model::fingerprint::Fingerprint;
use crate::model::frontier::Knowledge;
use crate::model::hlc::{Clock, Timestamp};
use crate::model::id::{AuthorId, DatasetId, NodeId};
use crate::model::key::Key;
use crate::model::vector::Dot;
use crate::model::version::Entry;
use crate::reconcile::Index;
use crate::store::apply::{Application, Batch};
use crate::store::{
    Applied, Cursor, DatasetParameters, Epoch, FeedRow, Lesson, LocalWrite, Sealer, Sequence,
    Store, StoreError, Stored, Summary, Tombstones, View,
};
use crate::time::WallTime;

/// A store in memory.
#[derive(Clone, Debug)]
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
    /// Of most keys one, so nothing is kept for more to come.
    versions: BTreeMap<Key, Box<[Stored]>>,
    feed: BTreeMap<Sequence, (Key, Dot, Sequence, Option<NodeId>)>,
    fingerprints: BTreeMap<Fingerprint, (Key, Dot)>,
    contested: BTreeSet<Key>,
    losers: Losers,
    index: Index,
    tombstones: BTreeSet<(Timestamp, AuthorId, Key)>,
    counted: Tombstones,
    knowledge: Arc<Knowledge>,
    cursors: BTreeMap<NodeId, Cursor>,
}

/// A [`MemoryStore`]'s dataset at one moment.
#[derive(Clone, Debug)]
pub struct MemoryView {
    rows: Arc<Rows>,
    author: AuthorId,
    reading: Timestamp,
}

impl MemoryStore {
    /// An empty store of `author`, whose feeds are of `epoch`.
    pub fn new(author: AuthorId, epoch: Epoch) -> Self {
        Self { author, epoch, clock: Clock::default(), datasets: BTreeMap::new() }
    }

    /// This store as one that was restored from a backup: another author, whose feeds are of another epoch. It has lost
    /// what came after the backup, so its feeds' places mean nothing, and neither do those that it knows in others'.
    pub fn restored(mut self, author: AuthorId, epoch: Epoch) -> Self {
        (self.author, self.epoch) = (author, epoch);
        for (_, rows) in self.datasets.values_mut() {
            let rows = Arc::make_mut(rows);
            rows.summary.head.epoch = epoch;
            rows.cursors.clear();
            let knowledge = Arc::make_mut(&mut rows.knowledge);
            knowledge.known = knowledge.frontier.clone();
        }
        self
    }

    fn apply(
        &mut self,
        dataset: DatasetId,
        act: impl FnOnce(
            &mut Application<'_, MemoryView>,
            AuthorId,
            &mut Clock,
        ) -> Result<Applied, StoreError>,
    ) -> Result<Applied, StoreError> {
        let view = self.view(dataset)?;
        let (author, mut clock) = (self.author, self.clock);
        let (parameters, rows) = self.dataset(dataset)?;
        let mut application = Application::new(&view, parameters.fingerprint_key)?;
        let applied = act(&mut application, author, &mut clock)?;
        let batch = application.finish();
        drop(view);
        Arc::make_mut(rows).apply(batch);
        self.clock = clock;
        Ok(applied)
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
        let (_, rows) = self.datasets.get(&dataset).ok_or(StoreError::UnknownDataset(dataset))?;
        Ok(MemoryView { rows: Arc::clone(rows), author: self.author, reading: self.clock.last() })
    }

    fn apply_remote(
        &mut self,
        dataset: DatasetId,
        peer: NodeId,
        commit: Commit,
        cursor: Option<Cursor>,
    ) -> Result<Applied, StoreError> {
        let applied =
            self.apply(dataset, |application, _, _| application.remote(commit.entries, peer))?;
        if let Some(cursor) = cursor {
            let (_, rows) = self.dataset(dataset)?;
            Arc::make_mut(rows).cursors.insert(peer, cursor);
        }
        Ok(applied)
    }

    fn learn(&mut self, dataset: DatasetId, lesson: Lesson) -> Result<Applied, StoreError> {
        self.apply(dataset, |application, author, clock| application.learn(lesson, author, clock))
    }

    fn apply_sealed(
        &mut self,
        dataset: DatasetId,
        writes: Vec<LocalWrite>,
        now: WallTime,
        sealer: Option<Arc<dyn Sealer>>,
    ) -> Result<Applied, StoreError> {
        self.apply(dataset, |application, author, clock| {
            let policy = OnConflict::KeepBoth;
            application.local(writes, policy, author, clock, now, sealer.as_deref())
        })
    }
}

impl Rows {
    fn apply(&mut self, batch: Batch) {
        for removed in batch.removed {
            self.feed.remove(&removed.sequence);
            self.fingerprints.remove(&removed.fingerprint);
            self.index.remove(removed.fingerprint);
            if removed.deleted {
                self.tombstones.remove(&(removed.dot.time, removed.dot.author, removed.key));
            }
        }
        for added in batch.added {
            let (key, dot) = (added.key, added.dot);
            if added.deleted {
                self.tombstones.insert((dot.time, dot.author, key.clone()));
            }
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
        for (key, held) in batch.keys {
            if held.is_empty() {
                self.versions.remove(&key);
            } else {
                self.versions.insert(key, held.into_boxed_slice());
            }
        }
        if let Some(knowledge) = batch.knowledge {
            self.knowledge = knowledge;
        }
        if batch.anew {
            self.cursors.clear();
        }
        self.counted = batch.tombstones;
        self.summary = batch.summary;
    }

    fn entry(&self, key: &Key, dot: Dot) -> Result<Entry, StoreError> {
        let siblings = self.versions.get(key).into_iter().flat_map(|held| held.iter());
        siblings
            .map(|stored| &stored.version)
            .find(|version| version.dot == dot)
            .map(|version| Entry { key: key.clone(), version: version.clone() })
            .ok_or_else(|| StoreError::Damaged("an index names a version that is gone".to_string()))
    }
}

impl View for MemoryView {
    fn summary(&self) -> Summary {
        self.rows.summary
    }

    fn siblings(&self, key: &Key) -> Result<Vec<Stored>, StoreError> {
        Ok(self.rows.versions.get(key).map_or_else(Vec::new, |held| held.to_vec()))
    }

    fn feed(&self, after: Sequence, limit_bytes: usize) -> Result<Vec<FeedRow>, StoreError> {
        let mut rows = Vec::new();
        let mut bytes = Vec::new();
        for (&sequence, (key, dot, commit_end, via)) in
            self.rows.feed.range((Excluded(after), Unbounded))
        {
            let entry = self.rows.entry(key, *dot)?;
            canonical::encode_entry(&entry, &mut bytes);
            if limit_bytes < bytes.len() && !rows.is_empty() {
                break;
            }
            rows.push(FeedRow { sequence, commit_end: *commit_end, via: *via, entry });
        }
        Ok(rows)
    }

    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError> {
        let found = self.rows.fingerprints.get(&fingerprint);
        found.map(|(key, dot)| self.rows.entry(key, *dot)).transpose()
    }

    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError> {
        Ok(self.rows.fingerprints.contains_key(&fingerprint))
    }

    fn index(&self) -> &Index {
        &self.rows.index
    }

    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let above = |fingerprint: &&Fingerprint| after < Some(**fingerprint);
        let from = after.unwrap_or(Fingerprint(0));
        Ok(self
            .rows
            .fingerprints
            .range(from..)
            .map(|(f, _)| f)
            .filter(above)
            .take(limit)
            .copied()
            .collect())
    }

    fn knowledge(&self) -> Result<Arc<Knowledge>, StoreError> {
        Ok(Arc::clone(&self.rows.knowledge))
    }

    fn tombstones(&self) -> Tombstones {
        self.rows.counted
    }

    fn tombstones_after(
        &self,
        after: Option<&(Dot, Key)>,
        limit: usize,
    ) -> Result<Vec<(Dot, Key)>, StoreError> {
        let from =
            after.map_or(Unbounded, |(dot, key)| Excluded((dot.time, dot.author, key.clone())));
        let rows = self.rows.tombstones.range((from, Unbounded)).take(limit);
        Ok(rows.map(|&(time, author, ref key)| (Dot { author, time }, key.clone())).collect())
    }

    fn own(&self) -> Result<(AuthorId, Timestamp), StoreError> {
        Ok((self.author, self.reading))
    }

    fn contested(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
        let from = after.map_or(Unbounded, Excluded);
        Ok(self.rows.contested.range::<Key, _>((from, Unbounded)).take(limit).cloned().collect())
    }

    fn losers(&self) -> Losers {
        self.rows.losers
    }

    fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, StoreError> {
        Ok(self.rows.cursors.get(&peer).copied())
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError> {
        let from = after.map_or(prefix, |after| after.as_str().max(prefix));
        let range = self.rows.versions.range::<str, _>((Included(from), Unbounded));
        let matching = range
            .take_while(|(key, _)| key.as_str() <= from || key.starts_with(prefix))
            .filter(|(key, _)| key.starts_with(prefix) && after < Some(*key));
        Ok(matching.take(limit).map(|(key, held)| (key.clone(), held.to_vec())).collect())
    }
}
