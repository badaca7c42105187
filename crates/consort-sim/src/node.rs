//! One machine: a disk with a store on it, clocks, and the process that runs there, if one does. What it does is in
//! [`driver`](crate::driver).

use std::collections::BTreeMap;
use std::time::Duration;

use consort_core::protocol::Replica;
use consort_core::protocol::event::Access;
use consort_core::protocol::garbage::Registered;
use consort_core::random::Random;
use consort_core::store::memory::{MemoryStore, MemoryView};
use consort_core::store::{
    Applied, Cursor, DatasetParameters, Epoch, Lesson, LocalWrite, Sequence, Store, StoreError,
};
use consort_core::{
    AuthorId, Commit, Content, DatasetId, Entry, FingerprintKey, Instant, NodeId, WallTime,
};

use crate::clock::Clock;
use crate::disk::Disk;

/// The one dataset of a run.
pub(crate) const DATASET: DatasetParameters =
    DatasetParameters { id: DatasetId([7; 16]), fingerprint_key: FingerprintKey([3; 32]) };

/// A machine, by the order in which it came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NodeIndex(pub(crate) u32);

/// A machine.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) access: Access,
    pub(crate) clock: Clock,
    /// What is on the disk: a commit gets in when it is durable.
    pub(crate) store: MemoryStore,
    /// What is on its way there.
    pub(crate) disk: Disk<Job>,
    /// How long a sync takes, in microseconds: at least, at most.
    pub(crate) sync_us: (u64, u64),
    pub(crate) process: Option<Process>,
    /// How many processes ran here.
    pub(crate) processes: u32,
    /// It has not left.
    pub(crate) is_member: bool,
    /// Deletions are not forgotten before it has heard of them.
    pub(crate) is_registered: bool,
    /// The registered replicas, as this node has heard.
    pub(crate) heard: Vec<Registered>,
    /// The store as it was once.
    pub(crate) backup: Option<MemoryStore>,
}

/// What a crash takes.
#[derive(Debug)]
pub(crate) struct Process {
    /// Which of the machine's it is.
    pub(crate) number: u32,
    pub(crate) replica: Replica,
    /// Whether the dataset is open. Until then what arrives for it concerns nobody.
    pub(crate) is_open: bool,
    /// The number of the connection with each peer.
    pub(crate) connections: BTreeMap<NodeIndex, u32>,
    /// When it will be woken, in the world's time.
    pub(crate) wake_at: Option<Instant>,
    /// Who waits here until everything that peers hold is here.
    pub(crate) waits: Vec<Wait>,
}

/// Somebody waits until everything that one peer held when it was asked is here.
#[derive(Debug)]
pub(crate) struct Wait {
    pub(crate) id: u64,
    pub(crate) peer: NodeIndex,
    pub(crate) connection: u32,
    /// The peer's replica as it was when it was asked.
    pub(crate) promised: MemoryView,
    /// How far the peer's feed must be applied, once it has answered.
    pub(crate) head: Option<Sequence>,
}

/// A commit on its way to the disk.
#[derive(Debug)]
pub(crate) enum Job {
    Remote { peer: NodeId, entries: Vec<Entry>, cursor: Option<Cursor> },
    Local { writes: Vec<LocalWrite>, now: WallTime },
    Learn { peer: Option<NodeId>, lesson: Lesson },
}

impl Job {
    /// Who sent it, if it was not written here.
    pub(crate) fn peer(&self) -> Option<NodeId> {
        match self {
            Self::Remote { peer, .. } => Some(*peer),
            Self::Local { .. } | Self::Learn { .. } => None,
        }
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        const EACH: usize = 100;
        let content = |content: &Content| match content {
            Content::Inline(bytes) => EACH + bytes.len(),
            _ => EACH,
        };
        let bytes: usize = match self {
            Self::Remote { entries, .. } => {
                entries.iter().map(|entry| content(&entry.version.content)).sum()
            }
            Self::Learn { lesson, .. } => EACH * lesson.dead.len(),
            Self::Local { writes, .. } => writes.iter().map(|write| content(&write.content)).sum(),
        };
        EACH + bytes
    }
}

impl Node {
    pub(crate) fn new(
        index: NodeIndex,
        access: Access,
        sync_us: (u64, u64),
        random: &mut Random,
    ) -> Self {
        Self {
            id: id(index),
            access,
            clock: Clock::default(),
            store: new_store(random),
            disk: Disk::default(),
            sync_us,
            process: None,
            processes: 0,
            is_member: true,
            is_registered: true,
            heard: Vec::new(),
            backup: None,
        }
    }

    /// Starts a process. Its dataset is not open yet.
    pub(crate) fn start(&mut self, now: Instant, random: &mut Random) {
        self.processes += 1;
        self.clock.started = now;
        self.process = Some(Process {
            number: self.processes,
            replica: Replica::new(DATASET.fingerprint_key, self.access, random.next_u64()),
            is_open: false,
            connections: BTreeMap::new(),
            wake_at: None,
            waits: Vec::new(),
        });
    }

    /// Puts in an empty disk.
    pub(crate) fn wipe(&mut self, random: &mut Random) {
        self.store = new_store(random);
        self.disk = Disk::default();
    }

    /// Puts the backup in place of the store, if there is one.
    pub(crate) fn restore(&mut self, random: &mut Random) {
        if let Some(backup) = self.backup.clone() {
            let (author, epoch) = draw_identity(random);
            self.store = backup.restored(author, epoch);
            self.disk = Disk::default();
        }
    }

    /// A commit gets into the store.
    pub(crate) fn apply(&mut self, job: Job) -> Result<Applied, StoreError> {
        match job {
            Job::Remote { peer, entries, cursor } => {
                self.store.apply_remote(DATASET.id, peer, Commit { entries }, cursor)
            }
            Job::Local { writes, now } => self.store.apply_local(DATASET.id, writes, now),
            Job::Learn { lesson, .. } => self.store.learn(DATASET.id, lesson),
        }
    }

    pub(crate) fn view(&self) -> MemoryView {
        self.store.view(DATASET.id).expect("every store has it open")
    }

    pub(crate) fn sync_time(&self, random: &mut Random) -> Duration {
        let (least, most) = self.sync_us;
        Duration::from_micros(least + random.below(most - least + 1))
    }
}

fn new_store(random: &mut Random) -> MemoryStore {
    let (author, epoch) = draw_identity(random);
    let mut store = MemoryStore::new(author, epoch);
    store.open_dataset(DATASET).expect("memory does not fail");
    store
}

fn draw_identity(random: &mut Random) -> (AuthorId, Epoch) {
    let mut author = [0; 16];
    author[..8].copy_from_slice(&random.next_u64().to_le_bytes());
    author[8..].copy_from_slice(&random.next_u64().to_le_bytes());
    (AuthorId(author), Epoch(random.next_u64()))
}

/// The identity of a machine: nothing about its order says which machine came first.
pub(crate) fn id(index: NodeIndex) -> NodeId {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&Random::new(u64::from(index.0)).next_u64().to_le_bytes());
    id[12..].copy_from_slice(&index.0.to_le_bytes());
    NodeId(id)
}

/// The machine that has this identity.
pub(crate) fn index_of(id: NodeId) -> NodeIndex {
    let [.., a, b, c, d] = id.0;
    NodeIndex(u32::from_le_bytes([a, b, c, d]))
}
