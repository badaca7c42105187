//! Replicas in memory, connected by queues. One seed decides the order of everything. Every message goes through the
//! codec, so what the queues hold is what a network would carry.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use consort_core::model::Knowledge;
use consort_core::model::attributes::Attributes;
use consort_core::model::conflict::Losers;
use consort_core::model::merge::Saw;
use consort_core::protocol::event::Access;
use consort_core::protocol::garbage::Registered;
use consort_core::protocol::replica::LinkReport;
use consort_core::protocol::{Effect, Envelope, Event, Message, Now, Replica, codec};
use consort_core::random::Random;
use consort_core::reconcile::Index;
use consort_core::store::memory::{MemoryStore, MemoryView};
use consort_core::store::{
    Cursor, DatasetParameters, Epoch, FeedRow, Lesson, LocalWrite, Sequence, Store, StoreError,
    Stored, Summary, Tombstones, View, Written,
};
use consort_core::{
    AuthorId, Commit, Content, DatasetId, Dot, Entry, Fingerprint, FingerprintKey, Instant, Key,
    NodeId, OnConflict, Timestamp, WallTime,
};

pub(crate) const DATASET: DatasetId = DatasetId([7; 16]);
pub(crate) const PARAMETERS: DatasetParameters =
    DatasetParameters { id: DATASET, fingerprint_key: FingerprintKey([3; 32]) };

/// How long things may take that happen by themselves.
const MOMENT: Duration = Duration::from_millis(800);

/// One node: a store, a replica, and commits on their way to the disk.
pub(crate) struct Node {
    pub(crate) store: MemoryStore,
    pub(crate) replica: Replica,
    access: Access,
    /// How far this node's wall clock is ahead of the others'.
    pub(crate) clock_ahead_ms: u64,
    /// The epoch of its feed, if it is another one than at first: its store noticed that it had been rolled back.
    pub(crate) epoch: Option<Epoch>,
    /// How many reads of its store succeed before one fails; then the next ones succeed again.
    pub(crate) reads_before_a_failure: Option<u64>,
    pub(crate) committing: VecDeque<Job>,
    /// Barriers that peers answered.
    pub(crate) reached: Vec<Effect>,
    pub(crate) disconnected: Vec<String>,
}

/// Something on its way to a disk.
pub(crate) enum Job {
    Commit { peer: NodeId, entries: Vec<Entry>, cursor: Option<Cursor> },
    Learn { peer: Option<NodeId>, lesson: Lesson },
}

/// The bytes on their way from one node to another.
type Pipe = VecDeque<Vec<u8>>;

pub(crate) struct World {
    pub(crate) nodes: Vec<Node>,
    pipes: BTreeMap<(usize, usize), Pipe>,
    pub(crate) random: Random,
    pub(crate) now: Now,
    /// What was sent, by kind, for counting.
    pub(crate) sent: Vec<Message>,
    pub(crate) sent_bytes: usize,
    /// Every version ever acknowledged to a writer.
    pub(crate) written: BTreeMap<Dot, (Key, Content)>,
    registered: Vec<Registered>,
}

/// Long enough for links to be checked.
const CHECKS: Duration = Duration::from_secs(90);

pub(crate) fn id(node: usize) -> NodeId {
    NodeId([u8::try_from(node).expect("few nodes") + 1; 16])
}

pub(crate) fn key(name: &str) -> Key {
    Key::new(name).expect("a valid key")
}

impl World {
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        Self::with_access(&vec![Access::Write; nodes], seed)
    }

    pub(crate) fn with_access(access: &[Access], seed: u64) -> Self {
        let mut random = Random::new(seed);
        let nodes = access.iter().enumerate().map(|(n, &access)| {
            let mut store = MemoryStore::new(AuthorId(id(n).0), Epoch(random.next_u64()));
            store.open_dataset(PARAMETERS).expect("memory does not fail");
            let replica = Replica::new(PARAMETERS.fingerprint_key, access, random.next_u64());
            let (committing, reached, disconnected) = Default::default();
            Node {
                store,
                replica,
                access,
                clock_ahead_ms: 0,
                epoch: None,
                reads_before_a_failure: None,
                committing,
                reached,
                disconnected,
            }
        });
        let nodes = nodes.collect();
        let now = Now { instant: Instant(0), wall: WallTime(1_700_000_000_000) };
        let (pipes, sent, written, registered) = Default::default();
        Self { nodes, pipes, random, now, sent, sent_bytes: 0, written, registered }
    }

    pub(crate) fn summary(&self, node: usize) -> Summary {
        self.nodes[node].store.view(DATASET).expect("it is open").summary()
    }

    /// How a node's first link stands.
    pub(crate) fn link(&self, node: usize) -> LinkReport {
        let head = self.summary(node).head.sequence;
        self.nodes[node].replica.links(head).next().expect("it has a link")
    }

    pub(crate) fn write(&mut self, node: usize, name: &str, saw: Saw, content: Content) -> Written {
        let write = LocalWrite {
            key: key(name),
            saw,
            content: content.clone(),
            attributes: Attributes::default(),
        };
        let wall = WallTime(self.now.wall.0 + self.nodes[node].clock_ahead_ms);
        let applied = self.nodes[node]
            .store
            .apply_local(DATASET, vec![write], wall)
            .expect("memory does not fail");
        if let Written::New(dot) = applied.written[0] {
            self.written.insert(dot, (key(name), content));
        }
        self.event(node, Event::Grew);
        applied.written[0]
    }

    pub(crate) fn put(&mut self, node: usize, name: &str, value: &str) {
        self.write(node, name, Saw::Winner, Content::Inline(value.as_bytes().into()));
    }

    pub(crate) fn connect(&mut self, a: usize, b: usize) {
        self.disconnect(a, b);
        self.pipes.insert((a, b), Pipe::new());
        self.pipes.insert((b, a), Pipe::new());
        for (this, other) in [(a, b), (b, a)] {
            let (peer, access) = (id(other), self.nodes[other].access);
            let opener = this < other;
            self.event(this, Event::Connected { peer, access, opener, standing: false });
        }
    }

    pub(crate) fn disconnect(&mut self, a: usize, b: usize) {
        if self.pipes.remove(&(a, b)).is_some() {
            self.pipes.remove(&(b, a));
            self.event(a, Event::Disconnected { peer: id(b) });
            self.event(b, Event::Disconnected { peer: id(a) });
        }
    }

    pub(crate) fn connected(&self, a: usize, b: usize) -> bool {
        self.pipes.contains_key(&(a, b))
    }

    pub(crate) fn barrier(&mut self, node: usize, barrier: u64) {
        let peers: Vec<usize> =
            self.pipes.keys().filter(|(from, _)| *from == node).map(|(_, to)| *to).collect();
        for peer in peers {
            self.event(node, Event::BarrierWanted { peer: id(peer), id: barrier });
        }
    }

    /// Makes a node believe that it has applied all of another's feed: what it lacks then shows in no cursor.
    pub(crate) fn pretend_to_have_applied(&mut self, node: usize, of: usize) {
        let cursor = Some(self.summary(of).head);
        let store = &mut self.nodes[node].store;
        let applied = store.apply_remote(DATASET, id(of), Commit::default(), cursor);
        applied.expect("memory does not fail");
    }

    /// Injects bytes as if `from` had sent them.
    pub(crate) fn inject(&mut self, from: usize, to: usize, message: Message) {
        self.event(to, Event::Received { peer: id(from), message });
    }

    /// Does one of the things that could happen next; false if nothing is left but time.
    pub(crate) fn step(&mut self) -> bool {
        let pipes =
            self.pipes.iter().filter(|(_, pipe)| !pipe.is_empty()).map(|(&ends, _)| Ok(ends));
        let commits =
            (0..self.nodes.len()).filter(|&n| !self.nodes[n].committing.is_empty()).map(Err);
        let choices: Vec<Result<(usize, usize), usize>> = pipes.chain(commits).collect();
        if choices.is_empty() {
            return false;
        }
        let chosen = usize::try_from(self.random.below(choices.len() as u64)).expect("few choices");
        match choices[chosen] {
            Ok(ends) => self.deliver(ends),
            Err(node) => self.commit(node),
        }
        true
    }

    /// Delivers a message, while all disks stand still; false if none is on its way.
    pub(crate) fn deliver_one(&mut self) -> bool {
        let waiting = self.pipes.iter().find(|(_, pipe)| !pipe.is_empty()).map(|(&ends, _)| ends);
        waiting.map(|ends| self.deliver(ends)).is_some()
    }

    /// Lets things happen until nothing is left to do, and checks of the quiet links have passed.
    pub(crate) fn settle(&mut self) {
        let until = self.now.instant + CHECKS;
        while self.now.instant < until {
            self.run();
            let before = self.now.instant;
            self.pass_deadlines();
            if self.now.instant == before {
                break;
            }
        }
        self.run();
    }

    /// Lets things happen until nothing is left but time: more of it than links take to say something together, or to
    /// find out that something does not come.
    pub(crate) fn run(&mut self) {
        let end = self.now.instant + MOMENT;
        let mut steps = 0;
        while self.go_on(end) {
            steps += 1;
            assert!(steps < 200_000, "the nodes never come to rest");
        }
    }

    /// Does the next thing, if there is one before `end`.
    pub(crate) fn go_on(&mut self, end: Instant) -> bool {
        if self.step() {
            return true;
        }
        let next = self.nodes.iter().filter_map(|node| node.replica.deadline()).min();
        next.filter(|at| *at < end).map(|at| self.pass_until(at)).is_some()
    }

    /// Lets time pass, and whatever it brings happen.
    pub(crate) fn pass(&mut self, time: Duration) {
        self.now.instant = self.now.instant + time;
        self.now.wall.0 += u64::try_from(time.as_millis()).expect("not that long");
        for node in 0..self.nodes.len() {
            self.event(node, Event::DeadlinePassed);
        }
        self.run();
    }

    /// Lets time pass, and messages arrive, while all disks stand still.
    pub(crate) fn pass_while_disks_stand_still(&mut self, time: Duration) {
        const STEP: Duration = Duration::from_millis(100);
        let end = self.now.instant + time;
        while self.now.instant < end {
            self.pass_until(self.now.instant + STEP);
            while self.deliver_one() {}
        }
    }

    /// Takes everything from a node that is not durable: its process was killed, and begins anew.
    pub(crate) fn crash(&mut self, node: usize) {
        for other in 0..self.nodes.len() {
            self.disconnect(node, other);
        }
        let this = &mut self.nodes[node];
        let seed = self.random.next_u64();
        this.replica = Replica::new(PARAMETERS.fingerprint_key, this.access, seed);
        this.committing.clear();
        self.tell_registered(node);
    }

    /// Says to all nodes that the replicas of these are registered.
    pub(crate) fn register(&mut self, registered: &[usize]) {
        let replicas = registered.iter().map(|&n| {
            let Node { store, access, .. } = &self.nodes[n];
            Registered { author: store.author(), writes: *access == Access::Write }
        });
        self.registered = replicas.collect();
        (0..self.nodes.len()).for_each(|node| self.tell_registered(node));
    }

    fn tell_registered(&mut self, node: usize) {
        if !self.registered.is_empty() {
            let replicas = self.registered.clone();
            self.event(node, Event::Registered { node: id(node), replicas });
        }
    }

    /// Replaces a node's store by what it was once, as a restored backup.
    pub(crate) fn restore(&mut self, node: usize, backup: MemoryStore) {
        self.crash(node);
        let author = AuthorId(self.random.next_u64().to_le_bytes().repeat(2).try_into().unwrap());
        let epoch = Epoch(self.random.next_u64());
        self.nodes[node].store = backup.restored(author, epoch);
    }

    /// Takes everything from a node but its name: its disk was replaced.
    pub(crate) fn wipe(&mut self, node: usize) {
        self.crash(node);
        let author = AuthorId(self.random.next_u64().to_le_bytes().repeat(2).try_into().unwrap());
        let this = &mut self.nodes[node];
        this.store = MemoryStore::new(author, Epoch(self.random.next_u64()));
        this.store.open_dataset(PARAMETERS).expect("memory does not fail");
    }

    fn pass_deadlines(&mut self) {
        let latest = self.nodes.iter().filter_map(|node| node.replica.deadline()).max();
        if let Some(latest) = latest {
            self.pass_until(latest);
        }
    }

    fn pass_until(&mut self, at: Instant) {
        let passed = at.since(self.now.instant);
        self.now.instant = self.now.instant.max(at);
        self.now.wall.0 += u64::try_from(passed.as_millis()).expect("not that long");
        for node in 0..self.nodes.len() {
            self.event(node, Event::DeadlinePassed);
        }
    }

    fn deliver(&mut self, (from, to): (usize, usize)) {
        let bytes = self.pipes.get_mut(&(from, to)).and_then(Pipe::pop_front).expect("not empty");
        let envelope = codec::decode(&bytes).expect("we encoded it");
        assert_eq!(envelope.dataset, DATASET);
        self.event(to, Event::Received { peer: id(from), message: envelope.message });
    }

    fn commit(&mut self, node: usize) {
        let this = &mut self.nodes[node];
        match this.committing.pop_front().expect("not empty") {
            Job::Commit { peer, entries, cursor } => {
                let applied = this.store.apply_remote(DATASET, peer, Commit { entries }, cursor);
                let stale = applied.expect("memory does not fail").stale;
                self.event(node, Event::Committed { peer, stale });
                self.event(node, Event::Grew);
            }
            Job::Learn { peer, lesson } => {
                this.store.learn(DATASET, lesson).expect("memory does not fail");
                self.event(node, Event::Learned { peer });
            }
        }
    }

    pub(crate) fn event(&mut self, node: usize, event: Event) {
        let mut effects = Vec::new();
        let this = &mut self.nodes[node];
        let view = this.store.view(DATASET).expect("it is open");
        let view =
            WorldView { view, epoch: this.epoch, reads: Cell::new(this.reads_before_a_failure) };
        let outcome = this.replica.handle(event, self.now, &view, &mut effects);
        let may_fail = this.reads_before_a_failure.is_some();
        this.reads_before_a_failure = view.reads.into_inner();
        if let Err(error) = outcome {
            assert!(may_fail, "memory does not fail");
            let ends = |effect: &Effect| matches!(effect, Effect::Disconnect { reason, .. } if *reason == error.to_string());
            assert!(effects.iter().any(ends), "a link that could not read is not ended");
        }
        for effect in effects {
            self.carry_out(node, effect);
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Send { peer, message } => {
                let to = (0..self.nodes.len()).find(|&n| id(n) == peer).expect("a node of ours");
                self.sent.push(message.clone());
                let mut bytes = Vec::new();
                codec::encode(&Envelope { dataset: DATASET, message }, &mut bytes);
                self.sent_bytes += bytes.len();
                if let Some(pipe) = self.pipes.get_mut(&(node, to)) {
                    pipe.push_back(bytes);
                }
            }
            Effect::Commit { peer, entries, cursor } => {
                self.nodes[node].committing.push_back(Job::Commit { peer, entries, cursor });
            }
            Effect::Learn { peer, lesson } => {
                self.nodes[node].committing.push_back(Job::Learn { peer, lesson });
            }
            Effect::FlushDirectory { peer, id } => {
                self.event(node, Event::DirectoryFlushed { peer, id });
            }
            Effect::BarrierReached { .. } => self.nodes[node].reached.push(effect),
            Effect::Disconnect { peer, reason } => {
                self.nodes[node].disconnected.push(reason);
                let to = (0..self.nodes.len()).find(|&n| id(n) == peer).expect("a node of ours");
                self.disconnect(node, to);
            }
        }
    }

    /// All replicas hold the same, to the byte, and whatever was written and not replaced is in them.
    pub(crate) fn assert_converged(&self) {
        let all: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let view = node.store.view(DATASET).expect("it is open");
                let rows = view.scan("", None, usize::MAX).expect("memory does not fail");
                let versions = rows.into_iter().flat_map(|(key, held)| {
                    held.into_iter()
                        .map(move |stored| Entry { key: key.clone(), version: stored.version })
                });
                versions.collect::<Vec<Entry>>()
            })
            .collect();
        for (node, entries) in all.iter().enumerate() {
            assert_eq!(entries, &all[0], "node {node} differs from node 0");
            assert_eq!(self.summary(node).digest, self.summary(0).digest);
            let losers = |node: usize| self.nodes[node].store.view(DATASET).unwrap().losers();
            assert_eq!(losers(node), losers(0));
        }
        let held: BTreeSet<Dot> = all[0].iter().map(|entry| entry.version.dot).collect();
        for (dot, (key, content)) in &self.written {
            let replaced = all[0].iter().any(|e| e.key == *key && e.version.seen.contains(*dot));
            assert!(replaced || held.contains(dot), "{key}: {dot:?} {content:?} is lost");
        }
        for key in all[0].iter().map(|entry| &entry.key) {
            let siblings: Vec<_> =
                all[0].iter().filter(|e| e.key == *key).map(|e| e.version.clone()).collect();
            for policy in OnConflict::ALL {
                assert!(policy.winner(&siblings).is_some());
            }
        }
    }
}

/// A view of which one read may fail.
struct WorldView {
    view: MemoryView,
    epoch: Option<Epoch>,
    reads: Cell<Option<u64>>,
}

impl WorldView {
    fn read(&self) -> Result<&MemoryView, StoreError> {
        match self.reads.get() {
            Some(0) => {
                self.reads.set(None);
                Err(StoreError::Failed("a fault".into()))
            }
            reads => {
                self.reads.set(reads.map(|reads| reads - 1));
                Ok(&self.view)
            }
        }
    }
}

impl View for WorldView {
    fn summary(&self) -> Summary {
        let mut summary = self.view.summary();
        summary.head.epoch = self.epoch.unwrap_or(summary.head.epoch);
        summary
    }

    fn siblings(&self, key: &Key) -> Result<Vec<Stored>, StoreError> {
        self.read()?.siblings(key)
    }

    fn feed(&self, after: Sequence, limit_bytes: usize) -> Result<Vec<FeedRow>, StoreError> {
        self.read()?.feed(after, limit_bytes)
    }

    fn by_fingerprint(&self, fingerprint: Fingerprint) -> Result<Option<Entry>, StoreError> {
        self.read()?.by_fingerprint(fingerprint)
    }

    fn has(&self, fingerprint: Fingerprint) -> Result<bool, StoreError> {
        self.read()?.has(fingerprint)
    }

    fn index(&self) -> &Index {
        self.view.index()
    }

    fn fingerprints(
        &self,
        after: Option<Fingerprint>,
        limit: usize,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        self.read()?.fingerprints(after, limit)
    }

    fn knowledge(&self) -> Result<Arc<Knowledge>, StoreError> {
        self.read()?.knowledge()
    }

    fn tombstones(&self) -> Tombstones {
        self.view.tombstones()
    }

    fn tombstones_after(
        &self,
        after: Option<&(Dot, Key)>,
        limit: usize,
    ) -> Result<Vec<(Dot, Key)>, StoreError> {
        self.read()?.tombstones_after(after, limit)
    }

    fn own(&self) -> Result<(AuthorId, Timestamp), StoreError> {
        self.read()?.own()
    }

    fn contested(&self, after: Option<&Key>, limit: usize) -> Result<Vec<Key>, StoreError> {
        self.read()?.contested(after, limit)
    }

    fn losers(&self) -> Losers {
        self.view.losers()
    }

    fn cursor(&self, peer: NodeId) -> Result<Option<Cursor>, StoreError> {
        self.read()?.cursor(peer)
    }

    fn scan(
        &self,
        prefix: &str,
        after: Option<&Key>,
        limit: usize,
    ) -> Result<Vec<(Key, Vec<Stored>)>, StoreError> {
        self.read()?.scan(prefix, after, limit)
    }
}
