//! [`Node`]: a running node, and all that can be asked of it. The methods stand in the files below, by subject.

mod conflicts;
mod datasets;
mod entries;
mod keepers;
mod leave;
mod members;
mod status;
mod wait;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use consort_core::model::merge::Saw;
use consort_core::store::{Applied, LocalWrite, Sealer, StoreError};
use consort_core::{Attributes, Content, DatasetId, Key, OnConflict};
use consort_store::{Body, DiskStore, OpenError, Transaction};
use tokio::sync::{mpsc, oneshot};

use crate::cluster::seals::{self, Seals};
use crate::cluster::{
    Facts, GossipFact, MemberFact, cluster_dataset, encode_gossip, encode_member, gossip_key,
    member_key,
};
use crate::content::{Contents, Fetcher, LocalContent, Roots, Server};
use crate::error::NodeError;
use crate::net::{
    self, GossipKey, Identity, IdentityError, Invites, JoinDesk, JoinRefusal, Joiner, Limits,
    Network, NetworkConfig, Role, Ticket,
};
use crate::release::when_released;
use crate::report::{Config, Initialized, Joined, NodeIdentity};
use crate::runtime::{Cause, Runtime, wall_time};
pub use datasets::DEV_MARK;
pub use entries::GetBody;
pub(crate) use members::revocation;
pub use status::check_store;

use crate::shared::{LEARNED, Shared, encode_learned};

/// The port of a node that was told none.
pub const DEFAULT_PORT: u16 = 7440;

/// Events of the network that may wait for the loop. While they do, peers are not read from.
const MAX_NETWORK_EVENTS: usize = 64;

/// What the user of a node is told that is a member no more.
pub(crate) const REVOKED: &str =
    "this node's membership was revoked: ask for a new ticket, and join with a new --home";

/// The most addresses that others are told of this node.
const MAX_REACHABLE: usize = 8;

/// How long a node that ends waits for those who still read its store.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The setting that holds where the node listened last.
const LISTEN: &str = "listen";

/// A running node. Cheap to clone; all clones are the same node. It runs until [`shutdown`](Self::shutdown).
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    started: std::time::Instant,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("identity", &self.shared.identity).finish_non_exhaustive()
    }
}

/// Makes this machine the first node of a new cluster: an identity, the cluster's authority, a store.
///
/// # Errors
/// The home is a node's already, or cannot be written. An attempt that failed halfway can be repeated.
pub fn init(home: &Path, name: Option<&str>) -> Result<Initialized, NodeError> {
    make_home(home)?;
    let name = name.map_or_else(host_name, str::to_owned);
    let identity = Identity::create_cluster(&home.join("identity"), &name)?;
    let peer = identity.peer();
    DiskStore::open_for(&home.join("store"), Some(peer.node))?;
    Ok(Initialized { node: peer.node, name: peer.name.clone(), cluster: peer.cluster.clone() })
}

/// Whether the home belongs to a member of a cluster, running or not: after [`init`], or a [`join`] that succeeded.
pub fn is_member(home: &Path) -> bool {
    !matches!(Identity::load(&home.join("identity")), Err(IdentityError::NotInitialized { .. }))
}

/// Whether some process works with the home's store: the node that runs, starts or stops, or `doctor --deep`.
pub fn is_in_use(home: &Path) -> bool {
    DiskStore::is_open(&home.join("store"))
}

/// Makes this machine a member of the cluster that `ticket` was made in.
///
/// # Errors
/// The ticket is not good, nobody answers, or the home is a node's already. The same call can be repeated.
pub async fn join(
    home: &Path,
    ticket: &str,
    name: Option<&str>,
    listen: Option<SocketAddr>,
) -> Result<Joined, NodeError> {
    let ticket: Ticket =
        ticket.trim().parse().map_err(|error: net::ticket::ParseTicketError| {
            NodeError::usage(error.to_string()).hint(error.hint())
        })?;
    make_home(home)?;
    let name = name.map_or_else(host_name, str::to_owned);
    let node = Identity::prepare(&home.join("identity"), &name)?;
    // A store that is of no use has to show before the ticket is used up.
    drop(DiskStore::open_for(&home.join("store"), Some(node))?);
    let joined = net::join(&ticket, &home.join("identity"), &name, listen).await?;
    let store = DiskStore::open_for(&home.join("store"), Some(node))?;
    store.set_setting(LEARNED, Some(joined.welcome))?;
    if let Some(listen) = listen {
        store.set_setting(LISTEN, Some(listen.to_string().into_bytes()))?;
    }
    let peer = joined.identity.peer();
    let (name, cluster) = (peer.name.clone(), peer.cluster.clone());
    Ok(Joined { node, name, cluster, role: peer.role })
}

impl Node {
    /// Starts the node whose home this is. Its tasks run on the current tokio runtime.
    ///
    /// # Errors
    /// The home is no node's, its store is in use, damaged or of a newer version, or the port is taken.
    pub async fn start(home: &Path, config: Config) -> Result<Self, NodeError> {
        let identity = Arc::new(Identity::load(&home.join("identity"))?);
        let (directory, node) = (home.join("store"), identity.node());
        let open = move || DiskStore::open_for(&directory, Some(node));
        let is_held = |error: &OpenError| matches!(error, OpenError::Locked(_));
        let store = blocking(move || Ok(when_released(open, is_held)?)).await?;
        let cluster = cluster_dataset(&identity.authority_fingerprint());
        store.open_dataset(cluster)?;
        let sealer = seals::sealer(cluster.id, &identity);
        let Config { evict_after, limits, .. } = config;
        let listen = listen_address(&store, config)?;

        let (causes, inbox) = mpsc::unbounded_channel();
        let (events, network_events) = mpsc::channel(MAX_NETWORK_EVENTS);
        let local = Arc::new(LocalContent::new(store.clone(), Arc::new(Roots::default())));
        let server = Server::new(Arc::clone(&local));
        let own_address = Arc::new(OnceLock::new());
        let desk = if identity.is_authority() {
            let invites = Invites::open(&home.join("identity/invites"))
                .map_err(|error| NodeError::failed(error.to_string()).hint(error.hint()))?;
            let recorder = Recorder {
                store: store.clone(),
                cluster: cluster.id,
                sealer: sealer.clone(),
                causes: causes.clone(),
                own: identity.node(),
                own_address: Arc::clone(&own_address),
                recording: Mutex::default(),
            };
            let on_join = Box::new(move |joiner| recorder.record(joiner));
            Some(Arc::new(JoinDesk::new(Arc::clone(&identity), invites, on_join)))
        } else {
            None
        };
        let serving = server.clone();
        let on_content = Arc::new(move |peer, connection| serving.serve(peer, connection));
        let config = NetworkConfig { listen, on_content, join: desk.clone() };
        let network = Arc::new(Network::start(config, &identity, events).await?);
        network.set_limits(limits);
        let listen = network.local_addr();
        let _ = own_address.set(listen);
        store.set_setting(LISTEN, Some(listen.to_string().into_bytes()))?;
        if identity.is_authority() {
            record_self(&store, cluster.id, sealer.clone(), &identity, listen)?;
            record_gossip_key(&store, cluster.id, sealer.clone())?;
        }

        let fetcher = Arc::new(Fetcher::start(Arc::clone(&network)));
        server.promise_what_comes(&fetcher);
        drop(server);
        let contents = Arc::new(Contents::new(local, fetcher));
        let shared = Arc::new(Shared::new(
            identity.peer().clone(),
            cluster,
            home.to_owned(),
            store,
            sealer,
            network,
            contents,
            desk,
            causes,
        )?);
        shared.set_facts(Facts::read(&shared.store.view(cluster.id)?)?);
        let seals = Seals::new(cluster.id, identity.authority().clone());
        let runtime = Runtime::new(Arc::clone(&shared), seals, evict_after);
        let failed = |error| {
            NodeError::failed(format!("a thread cannot be started: {error}"))
                .hint("see how many processes and how much memory this user may have (`ulimit -a`)")
        };
        let (thread, started) = (Arc::default(), std::time::Instant::now());
        let node = Self { shared, thread, started };
        // Directories first: what they show is compared with the store as it was left, before others change it.
        if let Err(error) = node.restore_links().await {
            // It holds the store.
            drop(runtime);
            node.shutdown().await;
            return Err(error);
        }
        // The loop reads the store, which may block, so it has a thread of its own.
        let executor = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let spawned = executor.and_then(|executor| {
            let run = move || executor.block_on(runtime.run(inbox, network_events));
            std::thread::Builder::new().name("node".into()).spawn(run)
        });
        match spawned {
            Ok(thread) => {
                *node.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
                Ok(node)
            }
            Err(error) => {
                node.shutdown().await;
                Err(failed(error))
            }
        }
    }

    /// Ends the node: first the directories, then the loop, the network and the store. Whatever was acknowledged is
    /// durable before and after; what was begun is ended in order. When this returns the port is free, and the store
    /// as well unless other handles of the node are still around.
    pub async fn shutdown(self) {
        let Self { shared, thread, .. } = self;
        let thread = thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        let ended = blocking(move || {
            shared.stop_folders();
            let _ = shared.causes.send(Cause::Stop);
            if let Some(thread) = thread {
                // Its panic was reported where it happened.
                let _ = thread.join();
            }
            Ok(shared)
        })
        .await;
        let Ok(shared) = ended else { return };
        shared.network.shutdown().await;
        let store = shared.store.clone();
        drop(shared);
        let closed = blocking(move || Ok(store.close(CLOSE_PATIENCE))).await;
        if closed != Ok(true) {
            tracing::warn!("the store is still in use by something in this process");
        }
    }

    /// Who this node is.
    pub fn identity(&self) -> NodeIdentity {
        let identity = &self.shared.identity;
        NodeIdentity {
            node: identity.node,
            name: identity.name.clone(),
            role: identity.role,
            cluster: identity.cluster.clone(),
        }
    }

    /// Where it listens.
    pub fn listen_addr(&self) -> SocketAddr {
        self.shared.network.local_addr()
    }

    /// Bytes at the sockets since the start.
    pub fn traffic(&self) -> net::Traffic {
        self.shared.network.traffic()
    }

    /// Replaces how fast it may send and receive, at once and for all connections.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.network.set_limits(limits);
    }

    /// Makes writes of this node durable and lets the loop spread them. Their writers saw what the dataset's policy
    /// shows.
    async fn write(
        &self,
        dataset: DatasetId,
        on_conflict: OnConflict,
        writes: Vec<LocalWrite>,
    ) -> Result<Applied, NodeError> {
        let _writing = self.shared.writing().await;
        // It may have begun to leave while a body came in.
        self.require_member()?;
        self.record(dataset, on_conflict, writes).await
    }

    /// The same for a node that is about to leave: nobody looks any more whether others have it.
    async fn record(
        &self,
        dataset: DatasetId,
        on_conflict: OnConflict,
        writes: Vec<LocalWrite>,
    ) -> Result<Applied, NodeError> {
        let sealer = self.shared.sealer.clone().filter(|_| dataset == self.shared.cluster.id);
        let applied = commit(&self.shared.store, dataset, on_conflict, writes, sealer).await??;
        let _ = self.shared.causes.send(Cause::Grew { dataset });
        Ok(applied)
    }

    /// Asks the loop something.
    async fn ask<T>(
        &self,
        cause: impl FnOnce(oneshot::Sender<T>) -> Cause,
    ) -> Result<T, NodeError> {
        let (reply, answer) = oneshot::channel();
        self.shared.causes.send(cause(reply)).map_err(|_| NodeError::ending())?;
        answer.await.map_err(|_| NodeError::ending())
    }

    /// Refuses what changes something if the node is no member any more, or is about to be none.
    fn require_member(&self) -> Result<(), NodeError> {
        // What is written now would never leave this node.
        if self.shared.is_revoked() {
            return Err(NodeError::not_allowed("this node's membership was revoked")
                .hint("ask an admin for a new ticket, and join with a new --home"));
        }
        if self.shared.is_leaving() {
            return Err(NodeError::not_allowed("this node is leaving the cluster")
                .hint("do it on another node"));
        }
        Ok(())
    }

    /// The same, and if the node's role does not allow it.
    fn require(&self, allowed: &[Role], what: &str) -> Result<(), NodeError> {
        self.require_member()?;
        let role = self.shared.identity.role;
        if allowed.contains(&role) {
            return Ok(());
        }
        let hint =
            "do it on another node, or join this machine anew with a ticket for another role";
        Err(NodeError::not_allowed(format!("this node is a {role}, and may not {what}")).hint(hint))
    }

    fn require_store(&self) -> Result<(), NodeError> {
        match self.shared.failure() {
            None => Ok(()),
            Some(failure) => {
                Err(NodeError::failed(failure)
                    .hint("start the node again when the cause is mended"))
            }
        }
    }
}

/// Runs something that blocks, off the threads of the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NodeError> + Send + 'static,
) -> Result<T, NodeError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(NodeError::ending()))
}

/// Commits writes without blocking a thread of the runtime.
async fn commit(
    store: &DiskStore,
    dataset: DatasetId,
    on_conflict: OnConflict,
    writes: Vec<LocalWrite>,
    sealer: Option<Arc<dyn Sealer>>,
) -> Result<Result<Applied, StoreError>, NodeError> {
    let (done, answer) = oneshot::channel();
    let store = store.clone();
    blocking(move || {
        let body = Body::Local { writes, now: wall_time() };
        let transaction = Transaction { on_conflict, sealer, ..Transaction::new(dataset, body) };
        store.submit(transaction, move |result| {
            let _ = done.send(result);
        });
        Ok(())
    })
    .await?;
    answer.await.map_err(|_| NodeError::ending())
}

/// Writes new members into the cluster's dataset.
struct Recorder {
    store: DiskStore,
    cluster: DatasetId,
    sealer: Option<Arc<dyn Sealer>>,
    causes: mpsc::UnboundedSender<Cause>,
    own: consort_core::NodeId,
    own_address: Arc<OnceLock<SocketAddr>>,
    /// Two that ask for one name at the same time are not both let in.
    recording: Mutex<()>,
}

impl Recorder {
    /// Called by the network on a thread that may block. The same member may come again.
    fn record(&self, joiner: Joiner) -> Result<Vec<u8>, JoinRefusal> {
        let _one_at_a_time = self.recording.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = |error: StoreError| {
            tracing::error!(%error, "a member cannot be recorded");
            JoinRefusal::Failed
        };
        let view = self.store.view(self.cluster).map_err(failed)?;
        let facts = Facts::read(&view).map_err(failed)?;
        let taken = |member: &&MemberFact| {
            member.name == joiner.name && member.node != joiner.node && !member.revoked
        };
        if facts.members.iter().any(|member| taken(&member)) {
            return Err(JoinRefusal::NameTaken);
        }
        // Its ticket would still be good for the key that it has.
        if facts.revoked.contains(&joiner.node) {
            return Err(JoinRefusal::Revoked);
        }
        let usable = |addr: &std::net::SocketAddr| !addr.ip().is_unspecified() && addr.port() != 0;
        let member = MemberFact {
            node: joiner.node,
            name: joiner.name,
            role: joiner.role,
            revoked: false,
            addresses: joiner.listen.into_iter().filter(usable).collect(),
        };
        let sealer = self.sealer.clone();
        record_member(&self.store, self.cluster, sealer, &member).map_err(failed)?;
        let _ = self.causes.send(Cause::Grew { dataset: self.cluster });
        let own =
            self.own_address.get().map(|addr| (self.own, likeliest(*addr).into_iter().collect()));
        let others =
            facts.members.iter().filter(|member| !member.revoked && member.node != self.own);
        let others = others.map(|m| (m.node, m.addresses.clone()));
        Ok(encode_learned(&own.into_iter().chain(others).take(512).collect()))
    }
}

fn record_member(
    store: &DiskStore,
    cluster: DatasetId,
    sealer: Option<Arc<dyn Sealer>>,
    member: &MemberFact,
) -> Result<(), StoreError> {
    let write = LocalWrite::new(member_key(member.node), encode_member(member));
    let body = Body::Local { writes: vec![write], now: wall_time() };
    store.commit(Transaction { sealer, ..Transaction::new(cluster, body) }).map(drop)
}

/// The holder of the authority is a member too, and says where it can be reached.
fn record_self(
    store: &DiskStore,
    cluster: DatasetId,
    sealer: Option<Arc<dyn Sealer>>,
    identity: &Identity,
    listen: SocketAddr,
) -> Result<(), StoreError> {
    let facts = Facts::read(&store.view(cluster)?)?;
    let peer = identity.peer();
    let member = MemberFact {
        node: peer.node,
        name: peer.name.clone(),
        role: peer.role,
        revoked: facts.revoked.contains(&peer.node),
        addresses: likeliest(listen).into_iter().collect(),
    };
    if facts.member(peer.node) == Some(&member) {
        Ok(())
    } else {
        record_member(store, cluster, sealer, &member)
    }
}

/// A cluster has a key for datagrams from its start.
fn record_gossip_key(
    store: &DiskStore,
    cluster: DatasetId,
    sealer: Option<Arc<dyn Sealer>>,
) -> Result<(), StoreError> {
    if Facts::read(&store.view(cluster)?)?.gossip.is_some() {
        return Ok(());
    }
    let writes = vec![new_gossip_key(None)];
    let body = Body::Local { writes, now: wall_time() };
    store.commit(Transaction { sealer, ..Transaction::new(cluster, body) }).map(drop)
}

/// Replaces the key for datagrams; the last one is accepted for a while.
fn new_gossip_key(last: Option<&GossipFact>) -> LocalWrite {
    let key = GossipKey(net::random());
    LocalWrite::new(gossip_key(), encode_gossip(key, last.map(|gossip| gossip.current)))
}

/// The addresses at which others may reach one that listens here, the likeliest first. Of one that listens on all
/// interfaces: that of the interface by which this machine reaches others, then the other ones, then loopback, which
/// is good for nodes on the same machine. Nothing is sent to find them.
fn reachable(listen: SocketAddr) -> Vec<SocketAddr> {
    if !listen.ip().is_unspecified() {
        return vec![listen];
    }
    let outward = || -> std::io::Result<IpAddr> {
        let socket = std::net::UdpSocket::bind(("0.0.0.0", 0))?;
        // A documentation address: connecting a datagram socket only chooses a route.
        socket.connect(("192.0.2.1", 9))?;
        Ok(socket.local_addr()?.ip())
    };
    // A machine without this file has the other two.
    let local = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let mut addresses: Vec<IpAddr> = Vec::new();
    let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
    for ip in outward().ok().into_iter().chain(local_addresses(&local)) {
        if !ip.is_loopback() && !addresses.contains(&ip) && addresses.len() < MAX_REACHABLE - 1 {
            addresses.push(ip);
        }
    }
    addresses.push(loopback);
    addresses.into_iter().map(|ip| SocketAddr::new(ip, listen.port())).collect()
}

/// The one of them that members are told: the others would lead most of them to themselves.
pub(crate) fn likeliest(listen: SocketAddr) -> Option<SocketAddr> {
    reachable(listen).first().copied()
}

/// The addresses of this machine in the kernel's routing table: each stands above a line that says that it is one.
fn local_addresses(fib_trie: &str) -> impl Iterator<Item = IpAddr> {
    let lines = fib_trie.lines().zip(fib_trie.lines().skip(1));
    let local = lines.filter(|(_, below)| below.contains("/32 host LOCAL"));
    local.filter_map(|(line, _)| line.rsplit(' ').next()?.parse().ok())
}

fn listen_address(store: &DiskStore, config: Config) -> Result<SocketAddr, NodeError> {
    if let Some(listen) = config.listen {
        return Ok(listen);
    }
    let saved = store.setting(LISTEN)?.and_then(|bytes| String::from_utf8(bytes).ok());
    let default = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT));
    Ok(saved.and_then(|text| text.parse().ok()).unwrap_or(default))
}

fn make_home(home: &Path) -> Result<(), NodeError> {
    use std::os::unix::fs::DirBuilderExt;
    // The home may be there already, and open to others; what is in the store is not for them.
    let store = home.join("store");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&store).map_err(|error| {
        NodeError::failed(format!("cannot make {}: {error}", store.display()))
            .hint("choose another --home, or make it writable")
    })
}

/// The machine's name, as far as it can be a node's name.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(net::identity::MAX_NAME_BYTES)
        .collect();
    if net::identity::valid_name(&name) { name } else { "node".to_owned() }
}

/// A key from what a caller gave.
fn parse_key(key: &str) -> Result<Key, NodeError> {
    Ok(Key::new(key)?)
}

/// A deletion of what a reader sees.
fn removal(key: Key) -> LocalWrite {
    LocalWrite {
        key,
        saw: Saw::Winner,
        content: Content::Deleted,
        attributes: Attributes::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_tells_this_machines_addresses() {
        let table = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n     |-- 10.0.0.7\n        /32 host LOCAL\n     |-- 10.0.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let found: Vec<String> = local_addresses(table).map(|ip| ip.to_string()).collect();
        assert_eq!(found, ["10.0.0.7", "127.0.0.1"]);
    }
}
