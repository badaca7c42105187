//! The committer: the one thread that writes rows. It takes all transactions that wait, runs them on top of the last
//! committed state, and makes them durable with one batch. How versions merge is decided in
//! `consort_core::store::apply`; what else a transaction changes is decided here.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use consort_core::model::Clock;
use consort_core::store::apply::{Application, Batch};
use consort_core::store::{
    Applied, Lesson, LocalWrite, Sealer, Sequence, StoreError, Stored, Summary, Written,
};
use consort_core::{AuthorId, ChunkHash, DatasetId, Dot, Entry, Key, OnConflict, WallTime};

use crate::chunks::Chunks;
use crate::edit::{Edit, Outcome};
use crate::layout::{
    self, DatasetRow, Extent, Identity, Number, PendingRow, ReplicaRow, Site, State, Table,
};
use crate::lsm::{Moment, Rows};
use crate::packs::Synced;
use crate::store::{Shared, draw_identity, half};
use crate::transaction::{Basis, Body, Place, RecordChange, Transaction};
use crate::view::{DiskView, knowledge_row};

/// What the committer is asked to do.
pub(crate) enum Job {
    /// Commit a transaction.
    Commit(Box<Transaction>, Done<Applied>),
    /// Change something else. Goes alone.
    Edit(Edit, Done<Outcome>),
}

/// What is called when a job is durable, or has failed.
pub(crate) type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

impl Job {
    /// Whether two jobs can share a batch.
    fn goes_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Commit(..), Self::Commit(..)))
    }

    /// Tells who waits that nothing comes of it.
    pub(crate) fn refuse(self, error: StoreError) {
        match self {
            Self::Commit(_, done) => call(done, Err(error)),
            Self::Edit(_, done) => call(done, Err(error)),
        }
    }
}

/// Runs until the queue is closed and empty.
pub(crate) fn run(shared: &Shared, clock: Clock) {
    let mut committer = Committer { shared, clock, failed: None };
    loop {
        let jobs = shared.queue.take(Job::goes_with);
        if jobs.is_empty() {
            break;
        }
        committer.run(jobs);
    }
}

struct Committer<'s> {
    shared: &'s Shared,
    clock: Clock,
    /// What failed once. Nobody knows what is on the disk since, so nothing more is written.
    failed: Option<StoreError>,
}

/// One dataset's part of a batch.
struct Work<'v> {
    view: &'v DiskView,
    application: Application<'v, DiskView>,
    /// The cursors that were moved.
    cursors: Vec<Vec<u8>>,
    linked: bool,
    /// Records that were put (true) or removed, and how many there are now.
    records: BTreeMap<Key, bool>,
    record_count: u64,
    /// Pending rows that were looked at or changed.
    pending: BTreeMap<Key, Pending>,
}

/// A pending row: as it is on disk, and as it will be.
#[derive(Clone, Copy, Default)]
struct Pending {
    before: Option<PendingRow>,
    after: Option<PendingRow>,
}

/// A transaction's effect beyond its dataset's rows.
struct Writer<'w, 'm> {
    rows: &'w mut Rows,
    chunks: &'w mut Chunks<'m>,
    author: AuthorId,
    clock: &'w mut Clock,
    datasets: &'w BTreeMap<DatasetId, DatasetRow>,
}

impl Committer<'_> {
    fn run(&mut self, jobs: Vec<Job>) {
        let mut transactions = Vec::with_capacity(jobs.len());
        for job in jobs {
            match (&self.failed, job) {
                (Some(error), job) => job.refuse(error.clone()),
                (None, Job::Commit(transaction, done)) => transactions.push((*transaction, done)),
                (None, Job::Edit(edit, done)) => {
                    let outcome = self.edit(edit);
                    call(done, outcome);
                }
            }
        }
        if !transactions.is_empty() {
            self.commit(transactions);
        }
    }

    fn edit(&mut self, edit: Edit) -> Result<Outcome, StoreError> {
        let mut rows = Rows::default();
        let moment = self.shared.tables.moment();
        let mut chunks = Chunks::new(&moment);
        let outcome = edit.apply(&moment, &mut chunks, &mut rows)?;
        self.write(chunks, rows)?;
        if let Some((id, row)) = outcome.dataset {
            match row {
                Some(row) => {
                    self.shared.indexes.insert(row.number);
                    self.shared.datasets_mut().insert(id, row);
                }
                None => {
                    let gone = self.shared.datasets_mut().remove(&id);
                    gone.into_iter().for_each(|row| self.shared.indexes.remove(row.number));
                }
            }
        }
        Ok(outcome)
    }

    fn commit(&mut self, transactions: Vec<(Transaction, Done<Applied>)>) {
        let mut waiting = Vec::with_capacity(transactions.len());
        let mut outcomes = Vec::with_capacity(transactions.len());
        let mut given = Vec::with_capacity(transactions.len());
        for (transaction, done) in transactions {
            waiting.push(done);
            given.push(transaction);
        }
        let (mut clock, mut identity) = (self.clock, self.shared.identity());
        let moment = self.shared.tables.moment();
        let mut chunks = Chunks::new(&moment);
        let mut announced = Vec::new();
        let written = self
            .prepare(given, &moment, &mut chunks, (&mut clock, &mut identity), &mut outcomes)
            .and_then(|(rows, numbers)| {
                announced = numbers;
                self.write(chunks, rows)
            });
        match written {
            Ok(()) => {
                self.shared.indexes.settle(announced.into_iter());
                self.clock = clock;
                self.shared.set_identity(identity);
            }
            Err(error) => {
                outcomes.clear();
                outcomes.resize(waiting.len(), Err(error));
            }
        }
        for (done, outcome) in waiting.into_iter().zip(outcomes) {
            call(done, outcome);
        }
    }

    /// The rows of all transactions, the datasets whose indexes they change, and what each will be told. A transaction that cannot
    /// be done leaves none.
    fn prepare(
        &self,
        transactions: Vec<Transaction>,
        moment: &Moment,
        chunks: &mut Chunks<'_>,
        (clock, identity): (&mut Clock, &mut Identity),
        outcomes: &mut Vec<Result<Applied, StoreError>>,
    ) -> Result<(Rows, Vec<Number>), StoreError> {
        let datasets = self.shared.datasets().clone();
        let mut views = BTreeMap::new();
        for transaction in &transactions {
            let id = transaction.dataset;
            if let Some(row) = datasets.get(&id).filter(|_| !views.contains_key(&id)) {
                let known = self.shared.indexes.known();
                let view = DiskView::new(moment.clone(), row.number, identity.epoch, &known);
                views.insert(id, view);
            }
        }
        let mut works: BTreeMap<DatasetId, Work<'_>> = BTreeMap::new();
        for (id, view) in views.iter().filter_map(|(id, view)| Some((id, view.as_ref().ok()?))) {
            works.insert(*id, Work::new(view, &datasets[id])?);
        }
        let mut rows = Rows::default();
        let author = identity.author;
        for transaction in transactions {
            let id = transaction.dataset;
            let Some(work) = works.get_mut(&id) else {
                let error = views.get(&id).and_then(|view| view.as_ref().err().cloned());
                outcomes.push(Err(error.unwrap_or(StoreError::UnknownDataset(id))));
                continue;
            };
            if shows_a_lost_past(&transaction.body, identity.author, clock) {
                *identity = draw_identity(identity.stamp, Some(half(identity.author.0)))?;
                rows.put(Table::Node, layout::IDENTITY, layout::encode_identity(identity));
            }
            let author = identity.author;
            let writer = Writer { rows: &mut rows, chunks, author, clock, datasets: &datasets };
            outcomes.push(work.apply(transaction, writer));
        }
        if identity.author != author {
            begin_anew(moment, datasets.values(), &mut rows)?;
            for work in works.values_mut() {
                work.begin_anew(identity.author, clock, &mut rows)?;
            }
        }
        let mut announced = Vec::with_capacity(works.len());
        for work in works.into_values() {
            let view = work.view;
            let batch = work.finish(&mut rows);
            if self.shared.indexes.announce(view, &batch, &mut rows)? {
                announced.push(view.number());
            }
        }
        if clock.last() != self.clock.last() {
            rows.put(Table::Node, layout::CLOCK, layout::encode_clock(clock.last()));
        }
        Ok((rows, announced))
    }

    /// Makes packs and then rows durable.
    fn write(&mut self, mut chunks: Chunks<'_>, mut rows: Rows) -> Result<(), StoreError> {
        let write = || {
            let synced = self.shared.packs.sync()?;
            if let Some(synced) = &synced {
                index(synced, &mut chunks, &mut rows)?;
            }
            rows.commit(&self.shared.tables)?;
            if let Some(synced) = &synced {
                self.shared.packs.indexed(synced);
            }
            Ok(())
        };
        let written: Result<(), StoreError> = write();
        if let Err(error) = &written {
            tracing::error!(%error, "the store takes no more writes");
            self.failed = Some(error.clone());
        }
        written
    }
}

/// Writes the rows of chunks that became durable.
pub(crate) fn index(
    synced: &Synced,
    chunks: &mut Chunks<'_>,
    rows: &mut Rows,
) -> Result<(), StoreError> {
    for (hash, packed) in &synced.chunks {
        chunks.look(*hash)?;
        let extent = Extent { offset: packed.offset, length: packed.length };
        chunks.put(*hash, Site::Pack(packed.pack), extent, rows);
    }
    rows.put(Table::Node, layout::PACK_TAIL, layout::encode_pack_tail(synced.tail));
    Ok(())
}

impl<'v> Work<'v> {
    fn new(view: &'v DiskView, row: &DatasetRow) -> Result<Self, StoreError> {
        Ok(Self {
            view,
            application: Application::new(view, row.fingerprint_key)?,
            cursors: Vec::new(),
            linked: matches!(row.state, State::Linked | State::Linking),
            records: BTreeMap::new(),
            record_count: view.record_count(),
            pending: BTreeMap::new(),
        })
    }

    /// The store was rolled back: what it accounts for beyond its frontier is not certain any more, nor are the cursors
    /// that were moved in this batch.
    fn begin_anew(
        &mut self,
        author: AuthorId,
        clock: &mut Clock,
        rows: &mut Rows,
    ) -> Result<(), StoreError> {
        self.cursors.drain(..).for_each(|key| rows.remove(Table::Node, key));
        self.application.learn(Lesson { anew: true, ..Lesson::default() }, author, clock).map(drop)
    }

    fn apply(
        &mut self,
        transaction: Transaction,
        mut writer: Writer<'_, '_>,
    ) -> Result<Applied, StoreError> {
        let Transaction {
            body,
            on_conflict,
            sealer,
            records,
            unsettled,
            settled,
            places,
            gone,
            ..
        } = transaction;
        // All that can fail comes first, so that a transaction that fails has changed nothing.
        let had = self.recorded(&records)?;
        self.read_pending(&body, settled.iter().map(|(key, _)| key).chain(&unsettled))?;
        places.iter().chain(&gone).try_for_each(|(hash, _)| writer.chunks.look(*hash))?;
        let number = self.view.number();
        let mut own = Vec::new();
        let applied = match body {
            Body::Nothing => self.local(Vec::new(), on_conflict, WallTime(0), None, &mut writer)?,
            Body::Remote { peer, commit, cursor } => {
                let applied = self.application.remote(commit.entries, peer)?;
                if let Some(cursor) = cursor {
                    let key = layout::cursor_key(number, peer);
                    writer.rows.put(Table::Node, &key, layout::encode_cursor(cursor));
                    self.cursors.push(key);
                }
                applied
            }
            Body::Learn(lesson) => {
                let dead: Vec<Key> = lesson.dead.iter().map(|(key, _)| key.clone()).collect();
                let mut cursors = Vec::new();
                if lesson.anew {
                    cursors = self.view.cursors()?;
                    cursors.extend_from_slice(&self.cursors);
                }
                let learnt = self.application.learn(lesson, writer.author, writer.clock)?;
                cursors.into_iter().for_each(|key| writer.rows.remove(Table::Node, key));
                if self.linked {
                    let sequence = learnt.summary.head.sequence;
                    for key in dead {
                        let pending = self.pending.entry(key).or_default();
                        pending.after = Some(PendingRow { sequence, bytes: 0 });
                    }
                }
                learnt
            }
            Body::Local { writes, now } => {
                own = shown(&records, &writes);
                own.retain(|write| !unsettled.contains(&writes[*write].key));
                self.local(writes, on_conflict, now, sealer.as_deref(), &mut writer)?
            }
        };
        if self.linked {
            let dot = |write: &usize| match applied.written[*write] {
                Written::New(dot) => Some(dot),
                Written::Same(_) | Written::Nothing => None,
            };
            let mut shown: Vec<Dot> = own.iter().filter_map(dot).collect();
            shown.sort_unstable();
            self.mark(&applied.added, &shown);
            let sequence = applied.summary.head.sequence;
            for key in unsettled {
                let pending = self.pending.entry(key).or_default();
                pending.after.get_or_insert(PendingRow { sequence, bytes: 0 });
            }
        }
        for (change, had) in records.into_iter().zip(had) {
            self.record(change, had, &applied.written, writer.rows);
        }
        for (key, sequence) in &settled {
            let pending = self.pending.get_mut(key).expect("it was looked at above");
            if pending.after.is_some_and(|row| row.sequence <= *sequence) {
                pending.after = None;
            }
        }
        writer.places(places, gone);
        Ok(applied)
    }

    /// Which of the paths have a record on disk.
    fn recorded(&self, records: &[RecordChange]) -> Result<Vec<bool>, StoreError> {
        let has = |change: &RecordChange| {
            let (RecordChange::Put { path, .. } | RecordChange::Remove { path }) = change;
            self.view.has_record(path)
        };
        records.iter().map(has).collect()
    }

    /// Reads the pending rows that marking and settling will change.
    fn read_pending<'k>(
        &mut self,
        body: &Body,
        mut named: impl Iterator<Item = &'k Key>,
    ) -> Result<(), StoreError> {
        named.try_for_each(|key| self.look_at_pending(key))?;
        if !self.linked {
            return Ok(());
        }
        // A key without versions may be pending as well: what is dead goes before the directory shows it.
        let mut look = |key: &Key| self.look_at_pending(key);
        match body {
            Body::Nothing => Ok(()),
            Body::Remote { commit, .. } => {
                commit.entries.iter().try_for_each(|entry| look(&entry.key))
            }
            Body::Learn(lesson) => lesson.dead.iter().try_for_each(|(key, _)| look(key)),
            Body::Local { writes, .. } => writes.iter().try_for_each(|write| look(&write.key)),
        }
    }

    fn look_at_pending(&mut self, key: &Key) -> Result<(), StoreError> {
        if !self.pending.contains_key(key) {
            let before = self.view.pending_of(key)?;
            self.pending.insert(key.clone(), Pending { before, after: before });
        }
        Ok(())
    }

    fn local(
        &mut self,
        writes: Vec<LocalWrite>,
        policy: OnConflict,
        now: WallTime,
        sealer: Option<&dyn Sealer>,
        writer: &mut Writer<'_, '_>,
    ) -> Result<Applied, StoreError> {
        self.application.local(writes, policy, writer.author, writer.clock, now, sealer)
    }

    /// Marks what changed, unless the directory shows it already: the versions with the dots `shown`, in order.
    fn mark(&mut self, added: &[(Entry, Sequence)], shown: &[Dot]) {
        for (entry, sequence) in added {
            let dot = entry.version.dot;
            let alone = |siblings: &[Stored]| siblings.len() == 1 && siblings[0].version.dot == dot;
            let is_shown = shown.binary_search(&dot).is_ok();
            if !(is_shown && alone(self.application.touched(&entry.key))) {
                let pending = self.pending.entry(entry.key.clone()).or_default();
                let bytes = entry.version.content.size();
                pending.after = Some(PendingRow { sequence: *sequence, bytes });
            }
        }
    }

    /// Changes a record; `had` says whether there is one on disk.
    fn record(&mut self, change: RecordChange, had: bool, written: &[Written], rows: &mut Rows) {
        let (path, record) = match change {
            RecordChange::Remove { path } => (path, None),
            RecordChange::Put { path, mut record, version } => {
                let dot = match version {
                    Basis::Dot(dot) => Some(dot),
                    Basis::Write(write) => match written[write] {
                        Written::New(dot) | Written::Same(dot) => Some(dot),
                        Written::Nothing => None,
                    },
                };
                let record = dot.map(|dot| {
                    record.dot = dot;
                    record
                });
                (path, record)
            }
        };
        let key = layout::name_key(self.view.number(), &path);
        let had = self.records.insert(path, record.is_some()).unwrap_or(had);
        match record {
            Some(record) => {
                self.record_count += u64::from(!had);
                rows.put(Table::Records, key, layout::encode_record(&record));
            }
            None => {
                self.record_count = self.record_count.saturating_sub(u64::from(had));
                rows.remove(Table::Records, key);
            }
        }
    }

    fn finish(self, rows: &mut Rows) -> Batch {
        let number = self.view.number();
        let mut pending_count = self.view.pending_count();
        let mut pending_bytes = self.view.pending_bytes();
        for (key, Pending { before, after }) in &self.pending {
            if before == after {
                continue;
            }
            let bytes = |row: &Option<PendingRow>| row.map_or(0, |row| row.bytes);
            pending_bytes = pending_bytes.wrapping_sub(bytes(before)).wrapping_add(bytes(after));
            let row = layout::name_key(number, key);
            match after {
                Some(after) => {
                    pending_count += u64::from(before.is_none());
                    rows.put(Table::Pending, row, layout::encode_pending(after));
                }
                None => {
                    pending_count = pending_count.saturating_sub(1);
                    rows.remove(Table::Pending, row);
                }
            }
        }
        let batch = self.application.finish();
        let Summary { digest, head, frontier, unburied } = batch.summary;
        let (head, records, pending) = (head.sequence, self.record_count, pending_count);
        let (losers, tombstones) = (batch.losers, batch.tombstones);
        let replica = ReplicaRow {
            digest,
            head,
            records,
            pending,
            pending_bytes,
            losers,
            tombstones,
            frontier,
            unburied,
        };
        rows.put(Table::Node, layout::replica_key(number), layout::encode_replica(&replica));
        put_batch(number, &batch, rows);
        batch
    }
}

impl Writer<'_, '_> {
    fn places(&mut self, places: Vec<(ChunkHash, Place)>, gone: Vec<(ChunkHash, Place)>) {
        let number_of = |id| Some(self.datasets.get(&id)?.number);
        for (hash, place) in gone {
            if let Some(site) = layout::site_of(&place, number_of) {
                self.chunks.remove(hash, &site, self.rows);
            }
        }
        for (hash, place) in places {
            let (Place::InFile { offset, length, .. } | Place::Packed { offset, length, .. }) =
                place;
            if let Some(site) = layout::site_of(&place, number_of) {
                self.chunks.put(hash, site, Extent { offset, length }, self.rows);
            }
        }
    }
}

/// Writes what commits changed in a dataset's versions.
fn put_batch(number: Number, batch: &Batch, rows: &mut Rows) {
    for removed in &batch.removed {
        rows.remove(Table::Feed, layout::feed_key(number, removed.sequence));
        rows.remove(Table::Fingerprints, layout::fingerprint_key(number, removed.fingerprint));
        if removed.deleted {
            let row = layout::tombstone_key(number, removed.dot, &removed.key);
            rows.remove(Table::Tombstones, row);
        }
    }
    for added in &batch.added {
        let sequence = added.sequence;
        let place = layout::encode_feed(sequence, added.commit_end, added.via, &added.key);
        rows.put(Table::Feed, layout::feed_key(number, sequence), place);
        let key = layout::fingerprint_key(number, added.fingerprint);
        rows.put(Table::Fingerprints, key, layout::encode_varint(sequence.0));
        if added.deleted {
            rows.put(Table::Tombstones, layout::tombstone_key(number, added.dot, &added.key), []);
        }
    }
    for (key, siblings) in &batch.keys {
        let key = layout::name_key(number, key);
        if siblings.is_empty() {
            rows.remove(Table::Versions, key);
        } else {
            rows.put(Table::Versions, key, layout::encode_siblings(siblings));
        }
    }
    for (key, losers) in &batch.contested {
        let key = layout::name_key(number, key);
        if losers.are_none() {
            rows.remove(Table::Conflicts, key);
        } else {
            rows.put(Table::Conflicts, key, layout::encode_losers(*losers));
        }
    }
    if let Some(knowledge) = &batch.knowledge {
        let row = layout::encode_knowledge(knowledge);
        rows.put(Table::Node, layout::knowledge_key(number), row);
    }
}

/// The store is another author from now on, since it has lost what it was: what its replicas account for beyond their
/// frontiers is not certain any more, nor how far they have applied their peers' feeds.
pub(crate) fn begin_anew<'d>(
    moment: &Moment,
    datasets: impl Iterator<Item = &'d DatasetRow>,
    rows: &mut Rows,
) -> Result<(), StoreError> {
    for row in moment.rows(Table::Node, &[layout::CURSOR], vec![layout::CURSOR]) {
        rows.remove(Table::Node, row?.0);
    }
    for DatasetRow { number, .. } in datasets {
        let mut knowledge = knowledge_row(moment, *number)?;
        knowledge.known = knowledge.frontier.clone();
        let row = layout::encode_knowledge(&knowledge);
        rows.put(Table::Node, layout::knowledge_key(*number), row);
    }
    Ok(())
}

/// The writes that the directory shows by itself: those whose own path is recorded to show them.
fn shown(records: &[RecordChange], writes: &[LocalWrite]) -> Vec<usize> {
    let shown = records.iter().filter_map(|change| match change {
        RecordChange::Put { path, record, version: Basis::Write(write) }
            if record.key.is_none() && writes[*write].key == *path =>
        {
            Some(*write)
        }
        _ => None,
    });
    shown.collect()
}

/// Whether a peer knows versions of this store's author that the store never wrote: then it was rolled back to an
/// earlier state, and must not go on as if it had not.
fn shows_a_lost_past(body: &Body, author: AuthorId, clock: &Clock) -> bool {
    let of_entry = |entry: &Entry| {
        let version = &entry.version;
        let own = (version.dot.author == author).then_some(version.dot.time);
        let seen = version.seen.authors().iter().find(|(other, _)| *other == author);
        own.max(seen.map(|(_, time)| *time))
    };
    let known = match body {
        Body::Remote { commit, .. } => commit.entries.iter().filter_map(of_entry).max(),
        Body::Learn(lesson) => Some(lesson.known.of(author).max(lesson.frontier.of(author))),
        Body::Nothing | Body::Local { .. } => None,
    };
    known > Some(clock.last())
}

/// A callback that panics must not take the committer with it.
fn call<T>(done: Done<T>, outcome: Result<T, StoreError>) {
    if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
        tracing::error!("a callback of a commit panicked");
    }
}

/// Starts the committer's thread.
pub(crate) fn spawn(
    shared: Arc<Shared>,
    clock: Clock,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("consort-commit".to_owned()).spawn(move || {
        // Whatever ends this thread, nobody may wait for it for ever.
        struct Close<'s>(&'s Shared);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.queue.close();
                for job in self.0.queue.take(|_, _| true) {
                    job.refuse(StoreError::Failed("the store was closed".to_owned()));
                }
            }
        }
        let _close = Close(&shared);
        run(&shared, clock);
    })
}
