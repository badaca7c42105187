//! The node's loop: one thread that drives all replicas. Every cause of work comes in through one of two channels,
//! and every effect of the core goes out through one `match`. Nothing here decides about the protocol; what is
//! decided here is which datasets and peers there are, and that follows from the cluster's facts.

mod absence;
mod helpers;
mod members;
mod registrar;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant, SystemTime, UNIX_EPOCH};

use consort_core::model::commit::Commit;
use consort_core::protocol::event::Access;
use consort_core::protocol::garbage::{Holdup, Published, Registered};
use consort_core::protocol::link::Phase;
use consort_core::protocol::membership;
use consort_core::protocol::replica::LinkReport;
use consort_core::protocol::{Effect, Envelope, Event, Message, Now, Replica, codec};
use consort_core::store::{Applied, DatasetParameters, LocalWrite, Sequence, StoreError, View};
use consort_core::{DatasetId, Instant, NodeId, WallTime};
use consort_store::{Body, Transaction};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::Facts;
use crate::cluster::seals::{CheckError, Seals};
use crate::net::{LeaveAnswer, LeaveRefusal, NetEvent, Refusal, Role};
use crate::node::revocation;
use crate::shared::{PeerState, Shared};

use absence::Absence;
use helpers::Helpers;
use members::Members;
pub(crate) use members::{MemberView, short_digest, short_id};
use registrar::Registrar;
pub(crate) use registrar::eviction;

/// How soon a peer that was disconnected for what it sent is dialed again.
const REDIAL_AFTER: Duration = Duration::from_secs(5);
/// How often an admin looks whether replicas are to be registered.
const REGISTER_EVERY: Duration = Duration::from_secs(2);
/// For how long after it has ended a membership on request an admin ends no other one so. Who leaves counts on what others
/// told of themselves, and may count on the one that has just left until it has heard of that. Members tell how they stand
/// every 10 seconds; this is three times that, so that one lost message does no harm.
const LEAVE_APART: Duration = Duration::from_secs(30);
/// How soon a peer that has not answered a barrier is asked again: it may not have been able to.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What makes the loop do something, apart from the network.
#[derive(Debug)]
pub(crate) enum Cause {
    /// A commit that a replica asked for is durable, or has failed.
    Committed { dataset: DatasetId, peer: NodeId, result: Result<Applied, StoreError> },
    /// What a replica was to learn is durable, or has failed.
    Learned { dataset: DatasetId, peer: Option<NodeId>, result: Result<Applied, StoreError> },
    /// The dataset's feed grew by something that was written here.
    Grew { dataset: DatasetId },
    /// A directory was flushed for a peer, or, if not `done`, could not be.
    DirectoryFlushed { dataset: DatasetId, peer: NodeId, done: bool },
    /// From now on, ask all peers of a dataset how far they are.
    Barrier { dataset: DatasetId, reply: oneshot::Sender<u64> },
    /// What of a barrier has been answered.
    BarrierState { id: u64, reply: oneshot::Sender<Vec<Answer>> },
    /// A barrier is not waited for any more.
    BarrierOver { id: u64 },
    /// What each node's replicas published last.
    Published { reply: oneshot::Sender<BTreeMap<NodeId, Published>> },
    /// What a dataset's replica has not forgotten, and whom that waits for.
    Forgetting { dataset: DatasetId, reply: oneshot::Sender<Option<Holdup>> },
    /// How the links of a dataset stand.
    Links { dataset: DatasetId, reply: oneshot::Sender<Vec<LinkReport>> },
    /// What is known of the members.
    Members { reply: oneshot::Sender<Vec<MemberView>> },
    /// Whether this node has the neighbours that it can have now.
    IsSettled { reply: oneshot::Sender<bool> },
    /// End.
    Stop,
}

/// What a peer has answered to a barrier.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// How the link with it stands.
    pub(crate) link: LinkReport,
    /// How far its feed must be applied here; none if it has not answered yet.
    pub(crate) head: Option<Sequence>,
}

/// Somebody here waits until every change made anywhere before is here.
struct Barrier {
    dataset: DatasetId,
    /// On which connection each peer was asked, and when.
    asked: BTreeMap<NodeId, (u64, StdInstant)>,
    heads: BTreeMap<NodeId, Sequence>,
}

/// The directory is being flushed for a peer. However often it asks meanwhile, it is flushed once more after.
struct Flushing {
    id: u64,
    next: Option<u64>,
}

/// Says that a flush is over, also if nobody will ever call for its end.
struct FlushEnd {
    causes: mpsc::UnboundedSender<Cause>,
    dataset: DatasetId,
    peer: NodeId,
    done: bool,
}

impl FlushEnd {
    fn reach(mut self) {
        self.done = true;
    }
}

impl Drop for FlushEnd {
    fn drop(&mut self) {
        let Self { dataset, peer, done, .. } = *self;
        let _ = self.causes.send(Cause::DirectoryFlushed { dataset, peer, done });
    }
}

struct Open {
    replica: Replica,
}

struct Connection {
    number: u64,
    role: Role,
    /// The peer is a neighbour: all datasets have links on it, not only the cluster's own.
    open: bool,
}

/// The loop and what it alone knows.
pub(crate) struct Runtime {
    shared: Arc<Shared>,
    seals: Seals,
    replicas: HashMap<DatasetId, Open>,
    connections: BTreeMap<NodeId, Connection>,
    members: Members,
    helpers: Helpers,
    /// By number, which rises: an answer to a later one answers the earlier ones too.
    barriers: BTreeMap<u64, Barrier>,
    flushing: HashMap<(DatasetId, NodeId), Flushing>,
    next_barrier: u64,
    epoch: StdInstant,
    redial_at: Option<StdInstant>,
    /// The replicas that are waited for before a deletion is forgotten.
    registered: Vec<Registered>,
    /// When an admin looks next whether there are others.
    register_at: Option<StdInstant>,
    registrar: Registrar,
    absence: Absence,
    /// Whose membership this admin ended on request last, and when.
    left_last: Option<(NodeId, StdInstant)>,
    /// The store failed: nothing more is taken from peers.
    failed: bool,
}

impl Runtime {
    /// A loop for a node that has no connection yet. An admin's evicts members that were away for so long.
    pub(crate) fn new(shared: Arc<Shared>, seals: Seals, evict_after: Option<Duration>) -> Self {
        let members = Members::new(&shared, Instant::default());
        let absence = Absence::new(shared.identity.node, evict_after);
        Self {
            shared,
            seals,
            replicas: HashMap::new(),
            connections: BTreeMap::new(),
            members,
            helpers: Helpers::default(),
            barriers: BTreeMap::new(),
            flushing: HashMap::new(),
            // Not one that a peer may still be answering since this node ran last.
            next_barrier: crate::net::random_u64() >> 1,
            epoch: StdInstant::now(),
            redial_at: None,
            registered: Vec::new(),
            register_at: None,
            registrar: Registrar::default(),
            absence,
            left_last: None,
            failed: false,
        }
    }

    /// Opens the datasets that the cluster has; then does whatever comes until it is told to stop.
    pub(crate) async fn run(
        mut self,
        mut causes: mpsc::UnboundedReceiver<Cause>,
        mut network: mpsc::Receiver<NetEvent>,
    ) {
        self.open(self.shared.cluster);
        self.refresh();
        self.register_at = self.shared.sealer.is_some().then(StdInstant::now);
        loop {
            let deadlines = self.replicas.values().filter_map(|open| open.replica.deadline());
            let members = (!self.failed).then(|| self.members.deadline());
            let deadline = deadlines.chain(members).min();
            let deadline = deadline.map(|at| self.epoch + Duration::from_micros(at.0));
            let next = [deadline, self.redial_at, self.register_at].into_iter().flatten().min();
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                cause = causes.recv() => match cause {
                    None | Some(Cause::Stop) => break,
                    Some(cause) => self.on_cause(cause),
                },
                event = network.recv() => match event {
                    None => break,
                    Some(event) => self.on_net(event),
                },
                () = sleep => {}
            }
            // However much comes in: a peer that sends without end does not stop the clock.
            if next.is_some_and(|at| at <= StdInstant::now()) {
                self.on_time();
            }
            self.look_for_news();
        }
    }

    fn on_cause(&mut self, cause: Cause) {
        match cause {
            Cause::Committed { dataset, peer, result } => match result {
                Ok(applied) => {
                    self.event(dataset, Event::Committed { peer, stale: applied.stale });
                    if !applied.added.is_empty() {
                        self.grew(dataset);
                    }
                }
                Err(StoreError::UnknownDataset(_)) => {}
                Err(error) => self.fail(&error),
            },
            Cause::Learned { dataset, peer, result } => match result {
                Ok(_) => {
                    self.event(dataset, Event::Learned { peer });
                    // A directory may show what is dead.
                    self.shared.wake_folder(dataset);
                    self.shared.notify();
                }
                Err(StoreError::UnknownDataset(_)) => {}
                Err(error) => self.fail(&error),
            },
            Cause::Grew { dataset } => self.grew(dataset),
            Cause::DirectoryFlushed { dataset, peer, done } => {
                let Some(Flushing { id, next }) = self.flushing.remove(&(dataset, peer)) else {
                    return;
                };
                if done {
                    self.event(dataset, Event::DirectoryFlushed { peer, id });
                }
                if let Some(next) = next {
                    self.flush_directory(dataset, peer, next);
                }
            }
            Cause::Barrier { dataset, reply } => {
                let id = self.next_barrier;
                self.next_barrier += 1;
                let barrier = Barrier { dataset, asked: BTreeMap::new(), heads: BTreeMap::new() };
                // Whoever wanted it may be gone already.
                if reply.send(id).is_ok() {
                    self.barriers.insert(id, barrier);
                }
            }
            Cause::BarrierState { id, reply } => {
                let _ = reply.send(self.barrier_state(id));
            }
            Cause::BarrierOver { id } => drop(self.barriers.remove(&id)),
            Cause::Published { reply } => {
                let _ = reply.send(self.published());
            }
            Cause::Forgetting { dataset, reply } => {
                let view = self.shared.store.view(dataset).ok();
                let holdup = self.replicas.get(&dataset).zip(view);
                let _ = reply.send(holdup.and_then(|(open, view)| open.replica.holdup(&view)));
            }
            Cause::Links { dataset, reply } => {
                let _ = reply.send(self.links(dataset));
            }
            Cause::Members { reply } => {
                let _ = reply.send(self.members.view(self.now().instant));
            }
            Cause::IsSettled { reply } => {
                let _ = reply.send(self.members.is_settled());
            }
            Cause::Stop => {}
        }
    }

    fn links(&self, dataset: DatasetId) -> Vec<LinkReport> {
        let Some(open) = self.replicas.get(&dataset) else { return Vec::new() };
        let head = self.shared.store.view(dataset).map(|view| view.summary().head.sequence);
        open.replica.links(head.unwrap_or_default()).collect()
    }

    /// Asks those who can answer a barrier and were not asked, and says what the others answered.
    fn barrier_state(&mut self, id: u64) -> Vec<Answer> {
        let Some(barrier) = self.barriers.get_mut(&id) else { return Vec::new() };
        let (dataset, now) = (barrier.dataset, StdInstant::now());
        let links = self.links(dataset);
        let Some(barrier) = self.barriers.get_mut(&id) else { return Vec::new() };
        let mut to_ask = Vec::new();
        let mut answers = Vec::with_capacity(links.len());
        for link in links {
            let peer = link.peer;
            let connection = self.connections.get(&peer).map_or(0, |connection| connection.number);
            let asked = barrier.asked.get(&peer);
            if asked.is_some_and(|(on, _)| *on != connection) {
                barrier.heads.remove(&peer);
            }
            let head = barrier.heads.get(&peer).copied();
            let waits =
                asked.is_some_and(|(on, at)| *on == connection && now < *at + ASK_AGAIN_AFTER);
            // Before the greeting the peer may not know the dataset, and would not answer.
            if head.is_none() && !waits && link.phase != Phase::Greeting {
                barrier.asked.insert(peer, (connection, now));
                to_ask.push(peer);
            }
            answers.push(Answer { link, head });
        }
        for peer in to_ask {
            self.event(dataset, Event::BarrierWanted { peer, id });
        }
        answers
    }

    /// Takes in everything that was changed in the linked directory so far, for a peer. Of a read-only one nothing is
    /// taken in: there is nothing to wait for, however much its owner has to do.
    fn flush_directory(&mut self, dataset: DatasetId, peer: NodeId, id: u64) {
        if let Some(flushing) = self.flushing.get_mut(&(dataset, peer)) {
            flushing.next = flushing.next.max(Some(id));
            return;
        }
        self.flushing.insert((dataset, peer), Flushing { id, next: None });
        let causes = self.shared.causes.clone();
        let end = FlushEnd { causes, dataset, peer, done: false };
        let read_only = self.shared.link_of(dataset).is_some_and(|link| link.read_only);
        match self.shared.folder(dataset) {
            Some(folder) if !read_only => folder.flush(move || end.reach()),
            _ => end.reach(),
        }
    }

    /// Takes note when the cluster's facts have come, at last.
    fn look_for_news(&self) {
        // Whoever does not know this node yet has not heard anything either.
        let is_known = || self.shared.facts().member(self.shared.identity.node).is_some();
        if self.shared.has_heard() || !is_known() {
            return;
        }
        let mut links = self.links(self.shared.cluster.id).into_iter();
        if links.any(|link| link.phase == Phase::Live && link.lacks == 0) {
            self.shared.set_heard();
        }
    }

    fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connected { peer, addr, connection, dialed } => {
                let node = peer.node;
                if self.failed {
                    return self.shared.network.forget(node);
                }
                tracing::info!(peer = peer.name, %addr, "connected");
                let role = peer.role;
                self.connections.insert(node, Connection { number: connection, role, open: false });
                let state = PeerState { connected: true, ..PeerState::default() };
                self.shared.set_peer(node, state);
                self.connect(self.shared.cluster.id, node, role, false);
                self.on_member_connected(&peer, dialed);
            }
            NetEvent::Datagram { from, bytes } => {
                return self.membership(membership::Event::Received { from, datagram: bytes });
            }
            NetEvent::Word { peer, connection, bytes } => self.on_word(peer, connection, &bytes),
            NetEvent::Frame { peer, connection, bytes } => {
                if self.connections.get(&peer).is_none_or(|known| known.number != connection) {
                    return;
                }
                match codec::decode(&bytes) {
                    Ok(Envelope { dataset, message }) => self.receive(peer, dataset, message),
                    Err(error) => {
                        self.disconnect(peer, &format!("it sent a broken message: {error}"));
                    }
                }
            }
            NetEvent::Disconnected { peer, connection, reason } => {
                if self.connections.get(&peer).is_some_and(|known| known.number == connection) {
                    tracing::info!(peer = %peer.short(), reason, "disconnected");
                    let state = PeerState { reason: Some(reason), ..PeerState::default() };
                    self.shared.set_peer(peer, state);
                    self.forget(peer);
                }
            }
            NetEvent::Learned { node, addr, firsthand } => {
                // Where a connected peer is, it knows best itself.
                let hearsay = !firsthand && self.connections.contains_key(&node);
                if !hearsay && self.shared.learn(node, addr, firsthand) {
                    self.set_members(&self.shared.facts());
                }
            }
            NetEvent::Unreachable { peer, addr, reason } => {
                self.not_connected(peer, Some(addr), reason);
            }
            NetEvent::Leaves { peer, reply } => self.end_membership(peer, reply),
            NetEvent::Refused { addr, peer, dialed, reason } => {
                if dialed.is_some() && reason == Refusal::Revoked && self.shared.set_revoked() {
                    tracing::error!(%addr, "{}", crate::node::REVOKED);
                }
                let name = peer.as_ref().map_or("a stranger", |peer| peer.name.as_str());
                tracing::debug!(%addr, peer = name, %reason, "a connection was refused");
                if let Some(node) = peer.map(|peer| peer.node).or(dialed)
                    && reason != Refusal::Duplicate
                {
                    // Who came by itself did so from a port that means nothing.
                    self.not_connected(node, dialed.map(|_| addr), reason.to_string());
                }
            }
        }
        self.shared.notify();
    }

    /// Hands a message to its replica. Anybody may bring facts of the cluster, so each is an admin's word, or nothing
    /// of the message is looked at.
    fn receive(&mut self, peer: NodeId, dataset: DatasetId, message: Message) {
        let entries = message.entries();
        if dataset == self.shared.cluster.id && !entries.is_empty() {
            let view = self.shared.store.view(dataset).map_err(CheckError::Store);
            match view.and_then(|view| self.seals.check(entries, &view)) {
                Ok(()) => {}
                Err(CheckError::Store(error)) => return self.fail(&error),
                Err(refused) => {
                    let reason = refused.to_string();
                    let todo = "an admin can end its membership: `consort member revoke NAME`";
                    let told = format!("{reason}; {todo}");
                    let message = Message::Reject { reason };
                    self.carry_out(dataset, Effect::Send { peer, message });
                    return self.disconnect(peer, &told);
                }
            }
        }
        self.event(dataset, Event::Received { peer, message });
    }

    fn not_connected(&mut self, peer: NodeId, dialed: Option<SocketAddr>, reason: String) {
        if !self.connections.contains_key(&peer) {
            let state = PeerState { dialed, connected: false, reason: Some(reason) };
            self.shared.set_peer(peer, state);
            self.membership(membership::Event::Unreachable { peer });
        }
    }

    fn on_time(&mut self) {
        if self.redial_at.is_some_and(|at| at <= StdInstant::now()) {
            self.redial_at = None;
            self.dial_again();
        }
        if self.register_at.is_some_and(|at| at <= StdInstant::now()) {
            self.register_at = Some(StdInstant::now() + REGISTER_EVERY);
            self.register();
        }
        let now = self.now().instant;
        if !self.failed && self.members.deadline() <= now {
            self.membership(membership::Event::DeadlinePassed);
            self.look_for_content();
        }
        let due = |open: &Open| open.replica.deadline().is_some_and(|at| at <= now);
        let datasets: Vec<DatasetId> =
            self.replicas.iter().filter(|(_, open)| due(open)).map(|(&id, _)| id).collect();
        for dataset in datasets {
            self.event(dataset, Event::DeadlinePassed);
        }
    }

    fn grew(&mut self, dataset: DatasetId) {
        // Whoever was revoked by what came is not told of it, nor of the key that came with it.
        if dataset == self.shared.cluster.id {
            self.refresh();
        }
        self.event(dataset, Event::Grew);
        self.shared.wake_folder(dataset);
        self.shared.notify();
    }

    /// Passes an event to a replica and carries out what it asks for.
    fn event(&mut self, dataset: DatasetId, event: Event) {
        // What arrives for a dataset that is not known here (yet) concerns nobody: when it is opened, it says so.
        let now = self.now();
        let Some(open) = self.replicas.get_mut(&dataset) else { return };
        let mut effects = Vec::new();
        let outcome = self
            .shared
            .store
            .view(dataset)
            .and_then(|view| open.replica.handle(event, now, &view, &mut effects));
        for effect in effects {
            self.carry_out(dataset, effect);
        }
        if let Err(error) = outcome {
            self.fail(&error);
        }
    }

    fn carry_out(&mut self, dataset: DatasetId, effect: Effect) {
        match effect {
            Effect::Send { peer, message } => {
                let Some(connection) = self.connections.get(&peer) else { return };
                let mut bytes = Vec::new();
                codec::encode(&Envelope { dataset, message }, &mut bytes);
                if let Err(error) = self.shared.network.send(peer, connection.number, bytes) {
                    tracing::debug!(peer = %peer.short(), %error, "a message was not sent");
                }
            }
            Effect::Commit { peer, entries, cursor } => {
                let body = Body::Remote { peer, commit: Commit { entries }, cursor };
                let causes = self.shared.causes.clone();
                self.shared.store.submit(Transaction::new(dataset, body), move |result| {
                    // The loop may have ended meanwhile.
                    let _ = causes.send(Cause::Committed { dataset, peer, result });
                });
            }
            Effect::Learn { peer, lesson } => {
                let causes = self.shared.causes.clone();
                let transaction = Transaction::new(dataset, Body::Learn(lesson));
                self.shared.store.submit(transaction, move |result| {
                    let _ = causes.send(Cause::Learned { dataset, peer, result });
                });
            }
            Effect::FlushDirectory { peer, id } => self.flush_directory(dataset, peer, id),
            Effect::BarrierReached { id, peer, head } => {
                for barrier in self.barriers.range_mut(..=id).map(|(_, barrier)| barrier) {
                    if barrier.dataset == dataset {
                        barrier.heads.entry(peer).or_insert(head);
                    }
                }
                self.shared.notify();
            }
            Effect::Disconnect { peer, reason } => self.disconnect(peer, &reason),
        }
    }

    // ---- Datasets and peers ----

    /// Brings the open datasets and the known peers in line with the cluster's facts.
    fn refresh(&mut self) {
        let facts =
            match self.shared.store.view(self.shared.cluster.id).and_then(|v| Facts::read(&v)) {
                Ok(facts) => facts,
                Err(error) => return self.fail(&error),
            };
        let registered = facts.registered();
        let is_news = registered != self.registered;
        self.registered = registered;
        for dataset in &facts.datasets {
            self.open(dataset.parameters);
        }
        if is_news {
            self.replicas.keys().copied().collect::<Vec<_>>().into_iter().for_each(|dataset| {
                self.tell_registered(dataset);
            });
        }
        self.set_members(&facts);
        let wanted: HashSet<DatasetId> = facts.datasets.iter().map(|d| d.parameters.id).collect();
        let is_gone = |id: &DatasetId| *id != self.shared.cluster.id && !wanted.contains(id);
        // What cannot be understood is not gone.
        let may_drop = !facts.incomplete;
        let gone: Vec<DatasetId> =
            self.replicas.keys().copied().filter(|id| may_drop && is_gone(id)).collect();
        self.shared.set_facts(facts);
        for dataset in gone {
            self.replicas.remove(&dataset);
            self.shared.close_dataset(dataset);
        }
    }

    fn open(&mut self, parameters: DatasetParameters) {
        if self.replicas.contains_key(&parameters.id) {
            return;
        }
        if let Err(error) = self.shared.store.open_dataset(parameters) {
            return self.fail(&error);
        }
        let access = self.access(parameters.id, self.shared.identity.role);
        let replica = Replica::new(parameters.fingerprint_key, access, crate::net::random_u64());
        self.replicas.insert(parameters.id, Open { replica });
        self.tell_registered(parameters.id);
        let is_linked =
            |connection: &&Connection| connection.open || parameters.id == self.shared.cluster.id;
        let linked = self.connections.iter().filter(|(_, connection)| is_linked(connection));
        let peers: Vec<(NodeId, Role)> =
            linked.map(|(&peer, connection)| (peer, connection.role)).collect();
        for (peer, role) in peers {
            self.connect(parameters.id, peer, role, true);
        }
    }

    /// Tells a replica which others are registered. The cluster's own dataset forgets nothing: its few deletions are
    /// dropped datasets, and nobody may call its facts dead.
    fn tell_registered(&mut self, dataset: DatasetId) {
        if dataset != self.shared.cluster.id {
            let (node, replicas) = (self.shared.identity.node, self.registered.clone());
            self.event(dataset, Event::Registered { node, replicas });
        }
    }

    /// What each member published last, in any dataset.
    fn published(&self) -> BTreeMap<NodeId, Published> {
        let published = self.replicas.values().flat_map(|open| open.replica.published());
        registrar::latest(&self.shared.facts(), published)
    }

    /// An admin's part: registers replicas, and evicts members that were away for too long.
    fn register(&mut self) {
        if self.failed {
            return;
        }
        let published = self.published();
        let facts = self.shared.facts();
        let mut writes = self.registrar.writes(&facts, &published, StdInstant::now());
        for node in self.overdue(&facts) {
            let name = facts.member(node).map_or("", |member| &member.name);
            tracing::warn!(
                member = name,
                "was away for so long that it is not waited for any more"
            );
            writes.extend(eviction(&facts, node, &published, wall_time()));
        }
        if !writes.is_empty() {
            self.write_facts(writes, |_| {});
        }
    }

    /// The members that were away for too long.
    fn overdue(&mut self, facts: &Facts) -> Vec<NodeId> {
        let present = self.members.present().chain(self.connections.keys().copied()).collect();
        self.absence.overdue(&facts.waited_for(), &present, StdInstant::now())
    }

    /// An admin's part when a member leaves. That one waits for the answer until it is durable.
    fn end_membership(&mut self, node: NodeId, reply: oneshot::Sender<LeaveAnswer>) {
        if reply.is_closed() {
            // It was told that nobody answered, and may have gone on as a member.
            return;
        }
        let is_too_soon =
            |(other, at): (NodeId, StdInstant)| other != node && at.elapsed() < LEAVE_APART;
        let facts = self.shared.facts();
        let refusal = if self.shared.sealer.is_none() || self.shared.is_revoked() {
            Some(LeaveRefusal::NotAdmin)
        } else if self.shared.is_leaving() {
            // If that were granted on both sides at a time, no admin might be left.
            Some(LeaveRefusal::Leaving)
        } else {
            self.failed.then_some(LeaveRefusal::Failed)
        };
        if let Some(refusal) = refusal {
            let _ = reply.send(Err(refusal));
        } else if facts.revoked.contains(&node) {
            // It has lost the answer.
            let _ = reply.send(Ok(()));
        } else if self.left_last.is_some_and(is_too_soon) {
            let _ = reply.send(Err(LeaveRefusal::AnotherLeaves));
        } else {
            self.left_last = Some((node, StdInstant::now()));
            let name = facts.member(node).map_or_else(String::new, |member| member.name.clone());
            tracing::info!(member = name, peer = %node.short(), "a member leaves the cluster");
            self.write_facts(revocation(&facts, node), |is_durable| {
                let _ = reply.send(if is_durable { Ok(()) } else { Err(LeaveRefusal::Failed) });
            });
        }
    }

    /// Writes facts of the cluster, as an admin may; says whether they are durable.
    fn write_facts(&self, writes: Vec<LocalWrite>, done: impl FnOnce(bool) + Send + 'static) {
        let (dataset, sealer) = (self.shared.cluster.id, self.shared.sealer.clone());
        let body = Body::Local { writes, now: wall_time() };
        let causes = self.shared.causes.clone();
        let transaction = Transaction { sealer, ..Transaction::new(dataset, body) };
        self.shared.store.submit(transaction, move |result| {
            done(result.is_ok());
            if result.is_ok() {
                let _ = causes.send(Cause::Grew { dataset });
            }
        });
    }

    fn connect(&mut self, dataset: DatasetId, peer: NodeId, role: Role, standing: bool) {
        let access = self.access(dataset, role);
        let opener = self.shared.identity.node < peer;
        self.event(dataset, Event::Connected { peer, access, opener, standing });
    }

    /// What a member of this role may do to a dataset. The cluster's facts are believed by their seals, whoever has them.
    fn access(&self, dataset: DatasetId, role: Role) -> Access {
        let is_believed = dataset == self.shared.cluster.id || role != Role::Reader;
        if is_believed { Access::Write } else { Access::Read }
    }

    fn disconnect(&mut self, peer: NodeId, reason: &str) {
        tracing::warn!(peer = %peer.short(), reason, "a peer is disconnected");
        let state = PeerState { reason: Some(reason.to_owned()), ..PeerState::default() };
        self.shared.set_peer(peer, state);
        self.members.rest(peer);
        self.shared.network.forget(peer);
        self.forget(peer);
        self.redial_at.get_or_insert(StdInstant::now() + REDIAL_AFTER);
    }

    /// A connection is gone.
    fn forget(&mut self, peer: NodeId) {
        if self.leave(peer) {
            self.membership(membership::Event::Disconnected { peer });
        }
    }

    /// Closes the links of a connection, if there is one.
    fn leave(&mut self, peer: NodeId) -> bool {
        if self.connections.remove(&peer).is_none() {
            return false;
        }
        self.shared.contents.fetcher().peer_down(peer);
        for dataset in self.replicas.keys().copied().collect::<Vec<_>>() {
            self.event(dataset, Event::Disconnected { peer });
        }
        true
    }

    /// The store cannot go on. Peers are left, so that nothing is acknowledged that is not kept.
    fn fail(&mut self, error: &StoreError) {
        if self.failed {
            return;
        }
        self.failed = true;
        tracing::error!(%error, "the store failed; start the node again when the cause is mended");
        self.shared.set_failure(error.to_string());
        self.shared.network.set_peers(Vec::new());
        for peer in self.connections.keys().copied().collect::<Vec<_>>() {
            self.forget(peer);
            self.shared.network.forget(peer);
            let reason = Some("this node's store failed".to_owned());
            self.shared.set_peer(peer, PeerState { reason, ..PeerState::default() });
        }
        // Of a store that cannot be read, they would ask for ever.
        self.replicas.clear();
    }

    fn now(&self) -> Now {
        let micros = u64::try_from(self.epoch.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now { instant: Instant(micros), wall: wall_time() }
    }
}

/// The wall clock.
pub(crate) fn wall_time() -> WallTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallTime(u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
