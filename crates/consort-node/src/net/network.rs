//! The network of one node: exactly one control connection to each peer that it is to be connected
//! with, content connections on demand, datagrams, and everything that happens as events. What the bytes mean is nobody's business here.
//!
//! For each connection, events come in this order: `Connected`, any number of `Learned` and
//! `Frame`, `Disconnected`. When a connection replaces another with the same peer, the end of the
//! old one is reported before the new one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsStream;

use crate::release::Release;

use super::connection::{NobodyListens, kind};
use super::datagram::{DatagramCounts, Datagrams, GossipKey, MAX_SEALED_BYTES};
use super::frame::{FrameReader, FrameWriter, MAX_CONTENT_FRAME_BYTES, MAX_CONTROL_FRAME_BYTES};
use super::greeting::{self, Greeting};
use super::identity::{Identity, NodeId, PeerIdentity};
use super::join::JoinDesk;
use super::leave::{self, LeaveAnswer};
use super::pace::Limits;
use super::peers::Peers;
use super::socket::{Sockets, Stream, Traffic};
use super::tls::{self, Protocol};
use super::{dial, listen, lock};

pub use super::dial::DialError;
pub use super::listen::MAX_HANDSHAKES;
pub use super::peers::MAX_QUEUED_BYTES;

/// How long connecting, the TLS handshake and the greeting may take together.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The most bytes that [`Network::send`] takes at once; the last byte of a frame is the network's
/// own.
pub const MAX_SEND_BYTES: usize = MAX_CONTROL_FRAME_BYTES - 1;

/// Takes content connections that peers open. Called on the network's runtime; must not block.
pub type OnContent = dyn Fn(PeerIdentity, ContentConnection) + Send + Sync;

/// How a network is to run.
pub struct NetworkConfig {
    /// Where to listen. Port 0 takes any free one.
    pub listen: SocketAddr,
    /// What to do with content connections.
    pub on_content: Arc<OnContent>,
    /// Where machines become members; none on nodes that do not let others in.
    pub join: Option<Arc<JoinDesk>>,
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetworkConfig")
            .field("listen", &self.listen)
            .field("join", &self.join)
            .finish_non_exhaustive()
    }
}

/// A peer to be connected with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownPeer {
    /// Its id.
    pub node: NodeId,
    /// Where it may be reached; the first 8 are tried in this order. May be empty when the peer is
    /// expected to dial.
    pub addresses: Vec<SocketAddr>,
}

/// What happened.
#[derive(Debug)]
pub enum NetEvent {
    /// There is a control connection with a peer.
    Connected {
        /// Who it is.
        peer: PeerIdentity,
        /// The other end of the socket.
        addr: SocketAddr,
        /// The number of the connection, never used again by this process.
        connection: u64,
        /// Whether this side made it.
        dialed: bool,
    },
    /// A datagram came from a member, or what would be one, over its connection. Dropped when the
    /// receiver is busy.
    Datagram {
        /// Who sent it.
        from: NodeId,
        /// What it sent.
        bytes: Vec<u8>,
    },
    /// A peer said something about being neighbours.
    Word {
        /// Who.
        peer: NodeId,
        /// On which connection.
        connection: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// A peer sent a frame.
    Frame {
        /// Who sent it.
        peer: NodeId,
        /// On which connection.
        connection: u64,
        /// What it sent.
        bytes: Vec<u8>,
    },
    /// A control connection ended. Frames that were sent may or may not have arrived.
    Disconnected {
        /// With whom.
        peer: NodeId,
        /// Which one.
        connection: u64,
        /// Why, in words that complete "the peer is disconnected: ...".
        reason: String,
    },
    /// Somebody said where a node can be reached. A hint: only a handshake proves it.
    Learned {
        /// Which node.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
        /// The node itself said so, rather than another one.
        firsthand: bool,
    },
    /// A peer could not be reached at one of its addresses. Dropped when the receiver is busy.
    Unreachable {
        /// Who was dialed.
        peer: NodeId,
        /// Where.
        addr: SocketAddr,
        /// Why not, in words.
        reason: String,
    },
    /// A connection came to nothing, because one of the two did not want it. Dropped when the
    /// receiver is busy.
    Refused {
        /// The other end.
        addr: SocketAddr,
        /// Who it is, if it came so far.
        peer: Option<PeerIdentity>,
        /// Whom we dialed there; none if the connection came to us.
        dialed: Option<NodeId>,
        /// Why.
        reason: Refusal,
    },
    /// A member asks this node, as an admin, to end its membership.
    Leaves {
        /// Who: whoever has the certificate.
        peer: NodeId,
        /// Takes the answer, which is good news only once that is durable.
        reply: oneshot::Sender<LeaveAnswer>,
    },
}

/// Why a connection was refused, by us or by the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The peer is no longer a member, or we are no longer one to it.
    #[error("the membership was revoked")]
    Revoked,
    /// There is another connection between the two, which stays.
    #[error("there is a connection already")]
    Duplicate,
    /// The two do not understand each other.
    #[error(
        "it speaks version {theirs} of the protocol, this node {}: upgrade the older one",
        greeting::VERSION
    )]
    Version {
        /// What the peer speaks.
        theirs: u16,
    },
    /// It is not a member of this cluster, or not even a node.
    #[error("the handshake failed: it is not a node of this cluster")]
    Handshake,
    /// It showed no certificate.
    #[error("it showed no certificate: only members of the cluster may connect")]
    NoCertificate,
    /// Two machines use one identity, so that their writes could not be told apart.
    #[error(
        "it has this node's identity: was the home directory copied? make it a node of its own"
    )]
    SameIdentity,
    /// It does not behave like a node.
    #[error("it does not follow the protocol")]
    Malformed,
    /// This node has as many connections as it can.
    #[error("there are too many connections")]
    TooManyConnections,
}

impl Refusal {
    /// What the other side is told.
    pub(super) fn code(self) -> u8 {
        match self {
            Self::Revoked => 1,
            Self::Duplicate => 2,
            Self::TooManyConnections => 3,
            Self::SameIdentity => 4,
            Self::Version { .. } | Self::Handshake | Self::NoCertificate | Self::Malformed => 0,
        }
    }

    pub(super) fn from_code(message: &[u8]) -> Self {
        match message {
            [1] => Self::Revoked,
            [2] => Self::Duplicate,
            [3] => Self::TooManyConnections,
            [4] => Self::SameIdentity,
            _ => Self::Malformed,
        }
    }
}

/// Why there is no network. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process listens there.
    #[error("port {} on {} is in use, perhaps by another consort", addr.port(), addr.ip())]
    PortInUse {
        /// Where we were to listen.
        addr: SocketAddr,
    },
    /// The system does not let us listen there.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// Where we were to listen.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The identity is of no use for TLS.
    #[error("the identity of this node cannot be used: {0}")]
    Identity(#[from] rustls::Error),
}

impl StartError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::PortInUse { .. } => "stop that, or choose another port with --listen",
            Self::Listen { .. } => "choose another address with --listen",
            Self::Identity(_) => "restore the home from a backup, or join again with a new --home",
        }
    }
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection has ended, or its end is being reported.
    #[error("there is no such connection with the peer")]
    NotConnected,
    /// The peer did not take what was sent before; the connection is being closed.
    #[error("the peer stalled, and the connection with it is being closed")]
    Stalled,
    /// The frame is larger than [`MAX_SEND_BYTES`]; our own fault.
    #[error("the frame is larger than {MAX_SEND_BYTES} bytes")]
    TooLarge,
}

/// Why there is no connection with a peer for what only one side wants.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Nobody named this peer, and it is not connected.
    #[error("nothing is known of this peer")]
    UnknownPeer,
    /// The peer dialed us, and did not say where it listens.
    #[error("it is not known where the peer listens")]
    NoAddress,
    /// The peer could not be reached at any of its addresses; this is what happened at the last.
    #[error("{addr}: {source}")]
    Dial {
        /// Where it was tried.
        addr: SocketAddr,
        /// What happened.
        source: DialError,
    },
}

/// Reads frames of a content connection.
pub type ContentReader = FrameReader<ReadHalf<Stream>>;

/// Writes frames of a content connection.
pub type ContentWriter = FrameWriter<WriteHalf<Stream>>;

/// What a content connection encrypts before it hands it to the system, in bytes: the more, the less often the other
/// side is woken.
const WRITE_AT_ONCE: Option<usize> = Some(256 << 10);

/// A connection for content: frames both ways, up to [`MAX_CONTENT_FRAME_BYTES`] each. Ends when
/// both halves are dropped, and when the peer is revoked or the network shuts down.
#[derive(Debug)]
pub struct ContentConnection {
    /// What the peer sends.
    pub reader: ContentReader,
    /// What it is sent.
    pub writer: ContentWriter,
}

impl ContentConnection {
    pub(super) fn new(mut stream: Stream) -> Self {
        let tap = match &mut stream {
            TlsStream::Client(stream) => {
                let (tap, tls) = stream.get_mut();
                tls.set_buffer_limit(WRITE_AT_ONCE);
                tap
            }
            TlsStream::Server(stream) => {
                let (tap, tls) = stream.get_mut();
                tls.set_buffer_limit(WRITE_AT_ONCE);
                tap
            }
        };
        tap.carries_content();
        let (read, write) = tokio::io::split(stream);
        Self {
            reader: FrameReader::new(read, MAX_CONTENT_FRAME_BYTES),
            writer: FrameWriter::new(write, MAX_CONTENT_FRAME_BYTES),
        }
    }
}

/// A running network. Methods may be called from any thread; dropping it ends it.
#[derive(Debug)]
pub struct Network {
    shared: Arc<Shared>,
}

impl Network {
    /// Starts to listen. Tasks run on the current tokio runtime. `events` is what paces the peers:
    /// while it is full, nothing is read from them.
    pub async fn start(
        config: NetworkConfig,
        identity: &Identity,
        events: mpsc::Sender<NetEvent>,
    ) -> Result<Self, StartError> {
        let addr = config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => StartError::PortInUse { addr },
            _ => StartError::Listen { addr, source },
        };
        let (listener, socket) = bind(addr).await.map_err(failed)?;
        let shared = Arc::new(Shared {
            node: identity.node(),
            listen: listener.local_addr().map_err(failed)?,
            datagrams: Datagrams::new(socket),
            server: tls::server_config(identity)?,
            control: tls::client_config(identity, Protocol::Control)?,
            content: tls::client_config(identity, Protocol::Content)?,
            leave: tls::client_config(identity, Protocol::Leave)?,
            join: config.join,
            on_content: config.on_content,
            events,
            peers: Mutex::new(Peers::new(identity.node())),
            sockets: Sockets::new(),
            runtime: Handle::current(),
            tasks: Mutex::new(Some(JoinSet::new())),
        });
        shared.spawn(listen::listen(Arc::clone(&shared), listener));
        shared.spawn(take_datagrams(Arc::clone(&shared)));
        shared.spawn({
            let shared = Arc::clone(&shared);
            async move { shared.sockets.keep_limits().await }
        });
        Ok(Self { shared })
    }

    /// Whose network it is.
    pub fn node(&self) -> NodeId {
        self.shared.node()
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.listen
    }

    /// Replaces the list of peers to be connected with. Connections with others stay until they
    /// end.
    pub fn set_peers(&self, peers: Vec<KnownPeer>) {
        let new = lock(&self.shared.peers).set_known(peers);
        for (node, wake) in new {
            let task =
                self.shared.spawn_abortable(dial::keep(Arc::clone(&self.shared), node, wake));
            if let Some(task) = task {
                lock(&self.shared.peers).set_dialer(node, task);
            }
        }
    }

    /// Replaces what is known of where members may be reached: for content connections, and for
    /// datagrams, which are taken from nobody else.
    pub fn set_addresses(&self, addresses: HashMap<NodeId, Vec<SocketAddr>>) {
        lock(&self.shared.peers).set_book(addresses);
    }

    /// Begins to seal datagrams with the first key, and to open them with all of them. `started` is
    /// higher than for all processes of this node before, and stays.
    pub fn set_gossip_keys(&self, started: u32, keys: &[GossipKey]) {
        self.shared.datagrams.set_keys(self.shared.node, started, keys);
    }

    /// Sends a datagram; it may be lost. While none was heard from the peer lately, it goes over the
    /// connection as well, if there is one.
    pub fn send_datagram(&self, to: NodeId, bytes: Vec<u8>) {
        let (live, addresses) = {
            let peers = lock(&self.shared.peers);
            (peers.live(to), peers.addresses(to).unwrap_or_default())
        };
        let is_heard = self.shared.datagrams.hears(to);
        self.shared.datagrams.send(to, &addresses, &bytes);
        if let Some(live) = live.filter(|live| !is_heard && !live.is_closed()) {
            live.push(kind::DATAGRAM, bytes);
        }
    }

    /// Says something about being neighbours, in order with what [`send`](Self::send) sends.
    pub fn send_word(&self, peer: NodeId, connection: u64, bytes: Vec<u8>) {
        let live = lock(&self.shared.peers).live(peer);
        let live = live.filter(|live| live.connection == connection && !live.is_closed());
        if let Some(live) = live {
            live.push(kind::WORD, bytes);
        }
    }

    /// What became of datagrams since the start.
    pub fn datagrams(&self) -> DatagramCounts {
        self.shared.datagrams.counts()
    }

    /// Whether datagrams can be sent at all.
    pub fn has_datagrams(&self) -> bool {
        self.shared.datagrams.socket.is_some()
    }

    /// Replaces the set of nodes that are refused although they have certificates, and disconnects
    /// them.
    pub fn set_revoked(&self, revoked: HashSet<NodeId>) {
        let revoked = lock(&self.shared.peers).set_revoked(revoked);
        revoked.into_iter().for_each(|node| self.shared.sockets.close(node));
    }

    /// Disconnects a peer, and does not dial it again before it is named in
    /// [`set_peers`](Self::set_peers).
    pub fn forget(&self, peer: NodeId) {
        lock(&self.shared.peers).forget(peer);
        self.shared.sockets.close(peer);
    }

    /// Ends the control connection with a peer, and does not dial it again before it is named in
    /// [`set_peers`](Self::set_peers). What is fetched from it, or by it, goes on.
    pub fn hang_up(&self, peer: NodeId) {
        lock(&self.shared.peers).forget(peer);
    }

    /// Queues a frame for a connection; never blocks. An answer to what came on one connection
    /// cannot end up on its successor, which knows nothing of the question.
    pub fn send(&self, peer: NodeId, connection: u64, bytes: Vec<u8>) -> Result<(), SendError> {
        if bytes.len() > MAX_SEND_BYTES {
            return Err(SendError::TooLarge);
        }
        let live = lock(&self.shared.peers).live(peer);
        let live = live.filter(|live| live.connection == connection && !live.is_closed());
        if live.ok_or(SendError::NotConnected)?.push(kind::FRAME, bytes) {
            Ok(())
        } else {
            Err(SendError::Stalled)
        }
    }

    /// Opens a content connection to a peer that is known or connected.
    pub async fn open_content(&self, peer: NodeId) -> Result<ContentConnection, OpenError> {
        let addresses = lock(&self.shared.peers).addresses(peer).ok_or(OpenError::UnknownPeer)?;
        let mut last = OpenError::NoAddress;
        for addr in addresses {
            match dial::content(&self.shared, peer, addr).await {
                Ok(stream) => return Ok(ContentConnection::new(stream)),
                Err(source) => last = OpenError::Dial { addr, source },
            }
        }
        Err(last)
    }

    /// Asks an admin that is known or connected to end the membership of this node.
    pub async fn ask_to_leave(&self, admin: NodeId) -> Result<LeaveAnswer, OpenError> {
        let addresses = lock(&self.shared.peers).addresses(admin).ok_or(OpenError::UnknownPeer)?;
        let mut last = OpenError::NoAddress;
        for addr in addresses {
            let asked = async {
                let stream = dial::leave(&self.shared, admin, addr).await?;
                leave::ask(stream)
                    .await
                    .map_err(|error| DialError::Unreachable(io::Error::other(error)))
            };
            let asked = timeout(leave::ASK_TIMEOUT, asked).await;
            match asked.unwrap_or(Err(DialError::TimedOut)) {
                Ok(answer) => return Ok(answer),
                Err(source) => last = OpenError::Dial { addr, source },
            }
        }
        Err(last)
    }

    /// Bytes on the wire since the start.
    pub fn traffic(&self) -> Traffic {
        self.shared.sockets.traffic()
    }

    /// How fast this node may send and receive.
    pub fn limits(&self) -> Limits {
        self.shared.sockets.limits()
    }

    /// Replaces how fast this node may send and receive, for connections that are there as well. At first there is no
    /// limit.
    pub fn set_limits(&self, limits: Limits) {
        self.shared.sockets.set_limits(limits);
    }

    /// Ends all connections and tasks, and waits until they have ended. No event comes after.
    pub async fn shutdown(&self) {
        let tasks = lock(&self.shared.tasks).take();
        self.shared.sockets.close_all();
        if let Some(mut tasks) = tasks {
            tasks.shutdown().await;
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The tasks hold what they are held by, so they have to be taken out.
        drop(lock(&self.shared.tasks).take());
        self.shared.sockets.close_all();
    }
}

/// How many ports are tried when any will do, since one has to be free for connections and
/// datagrams.
const PORT_ATTEMPTS: usize = 16;

/// Both sockets on one port. A port on which only connections can be had has to do, but not because a process that was
/// killed just now still holds the other half.
async fn bind(addr: SocketAddr) -> io::Result<(TcpListener, Option<UdpSocket>)> {
    let (mut attempt, release) = (1, Release::begin());
    let rest = |error: &io::Error| {
        release.rest().filter(|_| addr.port() != 0 && error.kind() == io::ErrorKind::AddrInUse)
    };
    loop {
        let listener = match TcpListener::bind(addr).await {
            Ok(listener) => listener,
            Err(error) => match rest(&error) {
                Some(rest) => {
                    tokio::time::sleep(rest).await;
                    continue;
                }
                None => return Err(error),
            },
        };
        let bound = SocketAddr::new(addr.ip(), listener.local_addr()?.port());
        match UdpSocket::bind(bound).await {
            Ok(socket) => return Ok((listener, Some(socket))),
            Err(_) if addr.port() == 0 && attempt < PORT_ATTEMPTS => attempt += 1,
            Err(error) if rest(&error).is_some() => {
                drop(listener);
                tokio::time::sleep(rest(&error).unwrap_or_default()).await;
            }
            Err(error) => {
                tracing::warn!(%bound, %error, "there will be no datagrams, only connections");
                return Ok((listener, None));
            }
        }
    }
}

/// Opens what arrives, until it is aborted.
async fn take_datagrams(shared: Arc<Shared>) {
    let Some(socket) = &shared.datagrams.socket else { return };
    // One byte more shows that a datagram is too long.
    let mut buffer = [0; MAX_SEALED_BYTES + 1];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, from)) => {
                let is_member = |node| lock(&shared.peers).is_member(node);
                if let Some((from, bytes)) =
                    shared.datagrams.open(&buffer[..length], from, is_member)
                {
                    shared.hint(NetEvent::Datagram { from, bytes });
                }
            }
            // An earlier datagram found nobody; that says nothing of the next one.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => {
                tracing::warn!(%error, "datagrams cannot be received");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// What all tasks of a network share.
pub(super) struct Shared {
    node: NodeId,
    listen: SocketAddr,
    pub(super) server: Arc<ServerConfig>,
    pub(super) control: Arc<ClientConfig>,
    pub(super) content: Arc<ClientConfig>,
    pub(super) leave: Arc<ClientConfig>,
    pub(super) join: Option<Arc<JoinDesk>>,
    pub(super) on_content: Arc<OnContent>,
    datagrams: Datagrams,
    events: mpsc::Sender<NetEvent>,
    pub(super) peers: Mutex<Peers>,
    pub(super) sockets: Sockets,
    runtime: Handle,
    /// None after the shutdown.
    tasks: Mutex<Option<JoinSet<()>>>,
}

impl Shared {
    pub(super) fn node(&self) -> NodeId {
        self.node
    }

    pub(super) fn greeting(&self, to: NodeId) -> Greeting {
        let known = lock(&self.peers).known_addresses(to);
        Greeting { features: 0, listen: Some(self.listen), known }
    }

    pub(super) async fn report(&self, event: NetEvent) -> Result<(), NobodyListens> {
        self.events.send(event).await.map_err(|_| NobodyListens)
    }

    /// Reports the refusal of a connection that came to us, if there is room: strangers must not be able to fill
    /// the queue.
    pub(super) fn refused(&self, addr: SocketAddr, peer: Option<PeerIdentity>, reason: Refusal) {
        self.report_refusal(addr, peer, None, reason);
    }

    /// Reports the refusal of a connection that we wanted.
    pub(super) fn refused_by(&self, addr: SocketAddr, dialed: NodeId, reason: Refusal) {
        self.report_refusal(addr, None, Some(dialed), reason);
    }

    fn report_refusal(
        &self,
        addr: SocketAddr,
        peer: Option<PeerIdentity>,
        dialed: Option<NodeId>,
        reason: Refusal,
    ) {
        if reason == Refusal::Duplicate {
            // Two nodes dialed each other at once; the connection that stays is reported.
            return;
        }
        tracing::info!(%addr, peer = peer.as_ref().map(|peer| &*peer.name), %reason, "refused");
        let _ = self.events.try_send(NetEvent::Refused { addr, peer, dialed, reason });
    }

    /// Reports that a peer could not be reached, if there is room.
    pub(super) fn unreachable(&self, peer: NodeId, addr: SocketAddr, reason: String) {
        tracing::debug!(peer = %peer.short(), %addr, reason, "cannot connect");
        let _ = self.events.try_send(NetEvent::Unreachable { peer, addr, reason });
    }

    /// Reports what may be lost.
    pub(super) fn hint(&self, event: NetEvent) {
        if self.events.try_send(event).is_err() {
            self.datagrams.on_overflow();
        }
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_abortable(task);
    }

    fn spawn_abortable(
        &self,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Option<AbortHandle> {
        let mut tasks = lock(&self.tasks);
        let tasks = tasks.as_mut()?;
        while tasks.try_join_next().is_some() {}
        Some(tasks.spawn_on(task, &self.runtime))
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.node)
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}
