//! Gets chunks from peers: keeps content connections to those that are asked for something, and
//! hands verified bytes to whoever wants them. Whom to ask for what is decided by
//! [`Transfer`]; this is its driver. The connections themselves are in `fetch/connection.rs`.

mod connection;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use consort_core::ChunkRef;
use consort_core::content::exchange::{Promise, Request};
use consort_core::content::transfer::{Effect, Fault, MAX_WANTS, Outcome, Transfer, Urgency};
use crossbeam_channel::{RecvTimeoutError, Sender, TrySendError, bounded};
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc};
use tokio::task::AbortHandle;

use crate::content::ChunkBytes;
use crate::folder::{PlaceError, Target};
use crate::net::{Network, NodeId};
use crate::words::counted;

/// How long [`Fetcher::fetch_all`] waits before it tries again to enter its wants, when others have
/// entered as many as there may be.
const WAIT_FOR_ROOM: Duration = Duration::from_millis(10);

/// A chunk that is wanted.
#[derive(Clone, Debug)]
pub struct Want {
    /// Which chunk.
    pub chunk: ChunkRef,
    /// Where its bytes are written, before it is told that it is there, by the thread that has just verified them: they
    /// are in the cache of its core.
    pub into: Option<Target>,
}

impl From<ChunkRef> for Want {
    fn from(chunk: ChunkRef) -> Self {
        Self { chunk, into: None }
    }
}

/// News of a chunk that is wanted.
#[derive(Debug)]
pub struct Fetched {
    /// Which chunk.
    pub chunk: ChunkRef,
    /// Its verified bytes, with which the want ends; or why they do not come now, while the want
    /// goes on.
    pub bytes: Result<ChunkBytes, Unavailable>,
    /// What became of writing them, if a place was given.
    pub written: Option<Written>,
    _landing: Option<Landing>,
}

/// A chunk was written where it was wanted, or could not be.
#[derive(Debug)]
pub struct Written {
    /// Where.
    pub into: Target,
    /// If it failed, what stands there is undefined.
    pub result: Result<(), PlaceError>,
}

/// Why a chunk does not come now. It is asked for again after a while, and when a peer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is nobody to ask: no peer is connected, or none of them answers well.
    #[error("no peer can be asked for it")]
    NobodyThere,
    /// Those that can be asked do not have it.
    #[error("{} asked for it, and none has it now", counted(*peers as u64, "peer was", "peers were"))]
    Lacking {
        /// How many were asked.
        peers: usize,
    },
}

/// So much is wanted that more cannot be kept in mind; nothing was entered. Take what has arrived, or
/// wait until others have, and try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_WANTS} chunks are being fetched")]
pub struct TooManyWants;

/// Why chunks were not fetched in time. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// Nobody gave this one.
    #[error("chunk {} could not be fetched: {reason}; connect a node that has it", chunk.hash)]
    Unavailable {
        /// One of the chunks that are missing.
        chunk: ChunkRef,
        /// Why.
        reason: Unavailable,
    },
    /// The peers are too slow for the time that was given.
    #[error("fetching took longer than it may; try again, or allow more time")]
    TimedOut,
}

/// How fetching goes, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FetchStatus {
    /// Chunks that are wanted and have not arrived.
    pub wanted: usize,
    /// What arrived since the start, from all peers together.
    pub total: FetchCount,
    /// The same for each peer that is there.
    pub peers: BTreeMap<NodeId, FetchCount>,
}

/// What arrived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchCount {
    /// Bytes of verified chunks.
    pub bytes: u64,
    /// Verified chunks.
    pub chunks: u64,
    /// Bytes of deltas, from which chunks are made here; as they were sent.
    pub delta_bytes: u64,
    /// Chunks whose bytes were wrong: the peer's disk is damaged, or worse.
    pub wrong: u64,
    /// Times that an answer did not come in time.
    pub timed_out: u64,
}

/// Fetches chunks. Dropping it ends all its connections.
#[derive(Debug)]
pub struct Fetcher {
    shared: Arc<Shared>,
    timer: AbortHandle,
}

impl Fetcher {
    /// Starts with no peer; tasks run on the current tokio runtime.
    pub fn start(network: Arc<Network>) -> Self {
        let [a, b, c, d, e, f, g, h] = crate::net::random();
        let node = network.node();
        let shared = Arc::new(Shared {
            network,
            runtime: Handle::current(),
            epoch: Instant::now(),
            alarm: Notify::new(),
            state: Mutex::new(State {
                transfer: Transfer::new(node, u64::from_le_bytes([a, b, c, d, e, f, g, h])),
                sinks: BTreeMap::new(),
                landing: Arc::default(),
                connections: BTreeMap::new(),
                next_connection: 0,
                alarm: None,
                reported: false,
                status: FetchStatus::default(),
            }),
        });
        let timer = tokio::spawn(keep_time(Arc::clone(&shared))).abort_handle();
        Self { shared, timer }
    }

    /// A peer can be asked from now on.
    pub fn peer_up(&self, peer: NodeId) {
        self.shared.change(|state, now| {
            state.status.peers.entry(peer).or_default();
            state.transfer.provider_up(now, peer);
        });
    }

    /// A peer is gone. What it was asked for is asked of others.
    pub fn peer_down(&self, peer: NodeId) {
        self.shared.change(|state, now| {
            state.status.peers.remove(&peer);
            state.connections.remove(&peer);
            state.transfer.provider_down(now, peer);
        });
    }

    /// Whether a chunk was found to be one that none of the peers has, since this was asked last.
    pub fn take_reported(&self) -> bool {
        std::mem::take(&mut self.shared.lock().reported)
    }

    /// Whether there is a chunk that is wanted and that none of the peers has.
    pub fn is_lacking(&self) -> bool {
        self.shared.lock().transfer.is_lacking()
    }

    /// Whether there are such, and this peer said so of each of them.
    pub fn is_lacked_by(&self, peer: NodeId) -> bool {
        self.shared.lock().transfer.is_lacked_by(peer)
    }

    /// What can be promised of a chunk that a peer asks for, and that is not here.
    pub fn promise(&self, chunk: &ChunkRef, asker: NodeId) -> Option<Promise> {
        let state = self.shared.lock();
        if landing(&state.landing).contains_key(chunk) {
            return Some(Promise::Direct);
        }
        let is_kept = state.sinks.get(chunk)?.iter().any(|sink| sink.keeps);
        state.transfer.promise(chunk, asker).filter(|_| is_kept)
    }

    /// Wants chunks; never blocks. Each arrives in `sink` once, in any order, as verified bytes;
    /// before that, there may be news that it is unavailable.
    ///
    /// The capacity of `sink` must be at least twice the number of chunks that are wanted through
    /// it and were not taken out of it yet, or what arrives is lost. (Half of it is for
    /// news of unavailable chunks, which is dropped when that half is full.) When the other end is
    /// dropped, what is still wanted is fetched in vain; [`cancel`](Self::cancel) it.
    ///
    /// Whoever takes them out keeps them where peers can have them before he drops the news, since they may have been
    /// promised to peers; but not those that are wanted [now](Urgency::Now).
    pub fn want(
        &self,
        wants: &[Want],
        urgency: Urgency,
        sink: &Sender<Fetched>,
    ) -> Result<(), TooManyWants> {
        self.shared.change(|state, now| {
            if MAX_WANTS < state.transfer.wanted() + wants.len() {
                return Err(TooManyWants);
            }
            for Want { chunk, into } in wants.iter().cloned() {
                let sink = Sink { sender: sink.clone(), into, keeps: urgency != Urgency::Now };
                state.sinks.entry(chunk).or_default().push(sink);
                state.transfer.want(now, chunk, urgency);
            }
            Ok(())
        })
    }

    /// Wants chunks no longer through this sink. They may have arrived in it meanwhile.
    pub fn cancel(&self, chunks: &[ChunkRef], sink: &Sender<Fetched>) {
        self.shared.change(|state, _| {
            for chunk in chunks {
                let Some(sinks) = state.sinks.get_mut(chunk) else { continue };
                sinks.retain(|other| !other.sender.same_channel(sink));
                if sinks.is_empty() {
                    state.sinks.remove(chunk);
                    state.transfer.cancel(*chunk);
                }
            }
        });
    }

    /// Fetches chunks and waits until all have arrived, or for `timeout`. Holds all of them in
    /// memory: meant for a few. Blocks, so not for the threads of an async runtime.
    pub fn fetch_all(
        &self,
        chunks: &[ChunkRef],
        timeout: Duration,
    ) -> Result<Vec<ChunkBytes>, FetchError> {
        let deadline = Instant::now() + timeout;
        let wanted: Vec<_> = chunks.iter().copied().collect::<BTreeSet<_>>().into_iter().collect();
        let (sink, source) = bounded(2 * wanted.len());
        let wants: Vec<_> = wanted.iter().copied().map(Want::from).collect();
        while self.want(&wants, Urgency::Now, &sink).is_err() {
            if deadline <= Instant::now() {
                return Err(FetchError::TimedOut);
            }
            std::thread::sleep(WAIT_FOR_ROOM);
        }
        let mut arrived = BTreeMap::new();
        let mut unavailable = BTreeMap::new();
        while arrived.len() < wanted.len() {
            match source.recv_deadline(deadline) {
                Ok(Fetched { chunk, bytes: Ok(bytes), .. }) => {
                    unavailable.remove(&chunk);
                    arrived.insert(chunk, bytes);
                }
                Ok(Fetched { chunk, bytes: Err(reason), .. }) => {
                    unavailable.insert(chunk, reason);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.cancel(&wanted, &sink);
                    let missing = unavailable.pop_first();
                    return Err(missing.map_or(FetchError::TimedOut, |(chunk, reason)| {
                        FetchError::Unavailable { chunk, reason }
                    }));
                }
            }
        }
        Ok(chunks.iter().map(|chunk| arrived[chunk].clone()).collect())
    }

    /// The peers that can be asked, those first that gave most.
    pub(super) fn peers(&self) -> Vec<NodeId> {
        let state = self.shared.lock();
        let mut peers: Vec<_> = state.status.peers.iter().collect();
        peers.sort_by_key(|(_, count)| std::cmp::Reverse(count.bytes));
        peers.into_iter().map(|(peer, _)| *peer).collect()
    }

    /// A peer sent so many bytes of a delta.
    pub(super) fn count_delta(&self, peer: NodeId, bytes: usize) {
        self.shared.lock().count(peer, |count| count.delta_bytes += bytes as u64);
    }

    /// By what they are asked.
    pub(super) fn network(&self) -> &Arc<Network> {
        &self.shared.network
    }

    /// Where that is done.
    pub(super) fn runtime(&self) -> &Handle {
        &self.shared.runtime
    }

    /// How it goes.
    pub fn status(&self) -> FetchStatus {
        let state = self.shared.lock();
        FetchStatus { wanted: state.transfer.wanted(), ..state.status.clone() }
    }
}

impl Drop for Fetcher {
    fn drop(&mut self) {
        self.timer.abort();
        self.shared.lock().connections.clear();
    }
}

/// What the tasks and the handle share.
struct Shared {
    network: Arc<Network>,
    runtime: Handle,
    /// Zero of the transfer's time.
    epoch: Instant,
    /// Told when the next deadline is sooner than it was.
    alarm: Notify,
    state: Mutex<State>,
}

struct State {
    transfer: Transfer,
    /// Who wants a chunk, for each that the transfer wants.
    sinks: BTreeMap<ChunkRef, Vec<Sink>>,
    /// The chunks that have come and are not yet where peers can have them, and how many hold them.
    landing: AllLanding,
    connections: BTreeMap<NodeId, Connection>,
    next_connection: u64,
    /// What the timer waits for.
    alarm: Option<consort_core::Instant>,
    status: FetchStatus,
    /// A chunk was found to be unavailable.
    reported: bool,
}

/// Who wants a chunk.
struct Sink {
    sender: Sender<Fetched>,
    into: Option<Target>,
    /// The chunk stays on this machine.
    keeps: bool,
}

/// A chunk that has come and is wanted.
struct Claimed {
    chunk: ChunkRef,
    bytes: ChunkBytes,
    sinks: Vec<Sink>,
    /// What became of writing it, for those of the sinks that gave a place.
    written: Vec<Option<Written>>,
    landing: Option<Landing>,
}

/// Bounded by the room in all sinks.
type AllLanding = Arc<Mutex<HashMap<ChunkRef, usize>>>;

/// While this is there, a chunk is promised to peers who ask for it.
struct Landing {
    chunk: ChunkRef,
    all: AllLanding,
}

/// A connection that exists or is being made; it ends when this is dropped.
struct Connection {
    /// Tells it from its predecessors with the same peer.
    number: u64,
    /// Bounded by the requests that a provider may owe.
    requests: mpsc::UnboundedSender<Request>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Changes the state, and does what follows from it.
    fn change<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, consort_core::Instant) -> T,
    ) -> T {
        let mut state = self.lock();
        let state = &mut *state;
        let now = self.now();
        let result = change(state, now);
        while let Some(effect) = state.transfer.poll(now) {
            match effect {
                Effect::Request { peer, id, chunks } => {
                    self.send(state, peer, Request { id, chunks });
                }
                Effect::Drop { peer, fault } => state.on_fault(peer, fault),
                Effect::Unavailable { chunk, lacking } => state.on_unavailable(chunk, lacking),
            }
        }
        let deadline = state.transfer.deadline();
        if deadline.is_some_and(|next| state.alarm.is_none_or(|alarm| next < alarm)) {
            state.alarm = deadline;
            self.alarm.notify_one();
        }
        result
    }

    fn send(self: &Arc<Self>, state: &mut State, peer: NodeId, request: Request) {
        if let Some(connection) = state.connections.get(&peer) {
            // A task that has just failed says so itself.
            let _ = connection.requests.send(request);
            return;
        }
        let number = state.next_connection;
        state.next_connection += 1;
        let (requests, received) = mpsc::unbounded_channel();
        let _ = requests.send(request);
        let run = connection::run(Arc::clone(self), peer, number, received);
        let task = self.runtime.spawn(run).abort_handle();
        state.connections.insert(peer, Connection { number, requests, task });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a broken invariant of the transfer; going on would hide it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> consort_core::Instant {
        consort_core::Instant::default() + self.epoch.elapsed()
    }
}

impl State {
    fn is_current(&self, peer: NodeId, number: u64) -> bool {
        self.connections.get(&peer).is_some_and(|connection| connection.number == number)
    }

    fn heard(&mut self, now: consort_core::Instant, peer: NodeId, number: u64) {
        if self.is_current(peer, number) {
            self.transfer.heard(now, peer);
        }
    }

    /// Takes out who wants a chunk: it has come, and nobody else gives it to them. What is claimed has to be
    /// [delivered](Self::deliver).
    fn claim(&mut self, chunk: ChunkRef, bytes: ChunkBytes) -> Claimed {
        let sinks = self.sinks.remove(&chunk).unwrap_or_default();
        let is_kept = sinks.iter().any(|sink| sink.keeps);
        let landing = is_kept.then(|| Landing::of(chunk, &self.landing));
        Claimed { chunk, bytes, sinks, written: Vec::new(), landing }
    }

    /// Gives a chunk to all who want it. With this the wants end.
    fn deliver(&mut self, peer: NodeId, claimed: Claimed) {
        let Claimed { chunk, bytes, mut sinks, mut written, landing: _landing } = claimed;
        self.count(peer, |count| {
            count.bytes += u64::from(chunk.length);
            count.chunks += 1;
        });
        sinks.extend(self.sinks.remove(&chunk).unwrap_or_default());
        written.resize_with(sinks.len(), || None);
        for (sink, written) in sinks.into_iter().zip(written) {
            let _landing = sink.keeps.then(|| Landing::of(chunk, &self.landing));
            // Who hears of the last chunk of a file must find no place in it still held.
            let Sink { sender, into, .. } = sink;
            drop(into);
            let fetched = Fetched { chunk, bytes: Ok(bytes.clone()), written, _landing };
            if let Err(TrySendError::Full(_)) = sender.try_send(fetched) {
                tracing::error!(?chunk, "a chunk was lost: its sink has too little room");
            }
        }
        self.transfer.cancel(chunk);
    }

    fn on_unavailable(&mut self, chunk: ChunkRef, lacking: usize) {
        self.reported = true;
        let reason = match lacking {
            0 => Unavailable::NobodyThere,
            peers => Unavailable::Lacking { peers },
        };
        for Sink { sender: sink, .. } in self.sinks.get(&chunk).into_iter().flatten() {
            if sink.capacity().is_none_or(|capacity| sink.len() < capacity / 2) {
                let fetched = Fetched { chunk, bytes: Err(reason), written: None, _landing: None };
                let _ = sink.try_send(fetched);
            }
        }
    }

    fn on_fault(&mut self, peer: NodeId, fault: Fault) {
        self.connections.remove(&peer);
        let peer_id = peer.short();
        match fault {
            Fault::WrongBytes => {
                tracing::warn!(
                    peer = %peer_id,
                    "a peer sent wrong bytes for a chunk, and is not asked for a while; run `consort doctor` there"
                );
            }
            Fault::TimedOut => {
                tracing::info!(peer = %peer_id, "a peer did not answer in time");
                self.count(peer, |count| count.timed_out += 1);
            }
        }
    }

    fn count(&mut self, peer: NodeId, add: impl Fn(&mut FetchCount)) {
        add(&mut self.status.total);
        self.status.peers.get_mut(&peer).into_iter().for_each(add);
    }
}

impl Claimed {
    /// Writes chunks where they are wanted. They are in the order in which they are in `message`.
    fn write_all(arrived: &mut [Self], message: &[u8]) {
        for run in arrived.chunk_by_mut(|before, after| before.is_before(after)) {
            // A few large writes cost the kernel a third less than many small ones.
            if let [first, .., last] = &*run
                && let Some(into) = first.only_place()
                && into.write(&message[first.bytes.range().start..last.bytes.range().end]).is_ok()
            {
                run.iter_mut().for_each(|claimed| claimed.write(|_, _| Ok(())));
            } else {
                run.iter_mut().for_each(|claimed| claimed.write(Target::write));
            }
        }
    }

    /// Writes the chunk wherever it is wanted.
    fn write(&mut self, write: impl Fn(&Target, &[u8]) -> Result<(), PlaceError>) {
        for sink in &mut self.sinks {
            self.written.push(sink.into.take().map(|into| {
                let result = write(&into, &self.bytes);
                Written { into, result }
            }));
        }
    }

    /// Where it is wanted, if that is one place.
    fn only_place(&self) -> Option<&Target> {
        if let [Sink { into, .. }] = &self.sinks[..] { into.as_ref() } else { None }
    }

    /// Whether `next` follows this one in their message and in a file.
    fn is_before(&self, next: &Self) -> bool {
        let places = self.only_place().zip(next.only_place());
        self.bytes.range().end == next.bytes.range().start
            && places.is_some_and(|(place, next)| place.is_before(self.bytes.len(), next))
    }
}

impl Landing {
    fn of(chunk: ChunkRef, all: &AllLanding) -> Self {
        *landing(all).entry(chunk).or_default() += 1;
        Self { chunk, all: Arc::clone(all) }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut all = landing(&self.all);
        if let Some(count) = all.get_mut(&self.chunk) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.chunk);
            }
        }
    }
}

fn landing(all: &AllLanding) -> MutexGuard<'_, HashMap<ChunkRef, usize>> {
    all.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Landing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is landing", self.chunk)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Wakes the transfer when a deadline has passed.
async fn keep_time(shared: Arc<Shared>) {
    loop {
        let alarm = shared.lock().alarm;
        let passed = async {
            match alarm {
                Some(at) => {
                    tokio::time::sleep(at.since(shared.now())).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shared.alarm.notified() => continue,
            () = passed => {}
        }
        shared.change(|state, now| {
            if alarm.is_some_and(|at| at <= now) {
                state.alarm = None;
                state.transfer.on_deadline(now);
            }
        });
    }
}
