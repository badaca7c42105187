//! Networks on loopback. Every wait is for an event, with a bound that only a failure reaches.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use consort_node::net::frame::{FrameReader, FrameWriter, MAX_CONTROL_FRAME_BYTES};
use consort_node::net::socket::MAX_CONNECTIONS_PER_PEER;
use consort_node::net::tls::{self, Protocol};
use consort_node::net::{
    ContentConnection, Identity, Invites, JoinDesk, JoinError, JoinRefusal, Joined, Joiner,
    KnownPeer, Limits, NetEvent, Network, NetworkConfig, NodeId, OpenError, PeerIdentity, Rate,
    Refusal, Role, SendError, StartError, Ticket, join,
};
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(30);

/// Forever, for tickets.
const NEVER: u64 = u64::MAX;

struct Node {
    identity: Arc<Identity>,
    net: Network,
    events: mpsc::Receiver<NetEvent>,
    content: mpsc::UnboundedReceiver<(PeerIdentity, ContentConnection)>,
}

impl Node {
    async fn start(identity: Identity) -> Self {
        let identity = Arc::new(identity);
        Self::listen(Arc::clone(&identity), "127.0.0.1:0".parse().unwrap(), None).await.unwrap()
    }

    async fn listen(
        identity: Arc<Identity>,
        listen: SocketAddr,
        join: Option<Arc<JoinDesk>>,
    ) -> Result<Self, StartError> {
        let (sender, events) = mpsc::channel(16);
        let (on_content, content) = mpsc::unbounded_channel();
        let on_content = Arc::new(move |peer, connection| {
            let _ = on_content.send((peer, connection));
        });
        let config = NetworkConfig { listen, on_content, join };
        let net = Network::start(config, &identity, sender).await?;
        Ok(Self { identity, net, events, content })
    }

    fn known(&self) -> KnownPeer {
        KnownPeer { node: self.id(), addresses: vec![self.net.local_addr()] }
    }

    fn id(&self) -> NodeId {
        self.identity.node()
    }

    /// The first event that `choose` wants; others are passed over.
    async fn until<T>(&mut self, mut choose: impl FnMut(NetEvent) -> Option<T>) -> T {
        let chosen = async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(chosen) = choose(event) {
                    return chosen;
                }
            }
        };
        timeout(BOUND, chosen).await.expect("the event comes")
    }

    async fn connected(&mut self, with: NodeId) -> u64 {
        self.until(|event| match event {
            NetEvent::Connected { peer, connection, .. } if peer.node == with => Some(connection),
            _ => None,
        })
        .await
    }

    async fn disconnected(&mut self, from: NodeId) -> String {
        self.until(|event| match event {
            NetEvent::Disconnected { peer, reason, .. } if peer == from => Some(reason),
            _ => None,
        })
        .await
    }

    async fn frame(&mut self) -> Vec<u8> {
        self.until(|event| match event {
            NetEvent::Frame { bytes, .. } => Some(bytes),
            _ => None,
        })
        .await
    }

    async fn refused(&mut self) -> Refusal {
        self.until(|event| match event {
            NetEvent::Refused { reason, .. } => Some(reason),
            _ => None,
        })
        .await
    }
}

/// A cluster's first node, whose desk lets others in and remembers whom.
pub(crate) struct Cluster {
    home: TempDir,
    first: Node,
    desk: Arc<JoinDesk>,
    joiners: Arc<Mutex<Vec<Joiner>>>,
    /// The secret of an invitation that has expired.
    expired: [u8; 16],
}

impl Cluster {
    pub(crate) async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let identity =
            Arc::new(Identity::create_cluster(&home.path().join("first"), "first").unwrap());
        let mut invites = Invites::open(&home.path().join("invites")).unwrap();
        // Made an hour ago, for a minute: recent enough to be remembered, and nobody waits in a
        // test.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let expired = invites.create(Role::Writer, now - 3540, 1, now - 3600).unwrap();
        let joiners: Arc<Mutex<Vec<Joiner>>> = Arc::default();
        let members = Arc::clone(&joiners);
        let on_join = move |joiner: Joiner| {
            let mut members = members.lock().unwrap();
            if members.iter().any(|m| m.name == joiner.name && m.node != joiner.node) {
                return Err(JoinRefusal::NameTaken);
            }
            members.push(joiner);
            Ok(b"welcome".to_vec())
        };
        let desk = Arc::new(JoinDesk::new(Arc::clone(&identity), invites, Box::new(on_join)));
        let any = "127.0.0.1:0".parse().unwrap();
        let first = Node::listen(identity, any, Some(Arc::clone(&desk))).await.unwrap();
        Self { home, first, desk, joiners, expired }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn ticket(&self, expires: u64) -> Ticket {
        self.desk.invite(&[self.first.net.local_addr()], Role::Writer, expires, 1).unwrap()
    }

    async fn join(&self, ticket: &Ticket, name: &str) -> Result<Joined, JoinError> {
        join(ticket, &self.dir(name), name, Some("0.0.0.0:7".parse().unwrap())).await
    }

    pub(crate) async fn member(&self, name: &str) -> Identity {
        self.join(&self.ticket(NEVER), name).await.unwrap().identity
    }

    async fn node(&self, name: &str) -> Node {
        Node::start(self.member(name).await).await
    }
}

async fn connect(a: &mut Node, b: &mut Node) -> (u64, u64) {
    a.net.set_peers(vec![b.known()]);
    let connections = (a.connected(b.id()).await, b.connected(a.id()).await);
    assert_exchange(a, b, connections.0).await;
    connections
}

async fn assert_exchange(a: &Node, b: &mut Node, connection: u64) {
    a.net.send(b.id(), connection, b"still here".to_vec()).unwrap();
    assert_eq!(b.frame().await, b"still here");
}

/// A connection without a network behind it, to misbehave on.
async fn raw(config: Arc<ClientConfig>, to: &Node) -> std::io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(to.net.local_addr()).await?;
    TlsConnector::from(config).connect(ServerName::try_from("x").unwrap(), tcp).await
}

/// A client that believes any server, and shows the certificate in `own`, if any.
fn stranger(own: Option<&Path>) -> Arc<ClientConfig> {
    #[derive(Debug)]
    struct Anybody(Arc<rustls::crypto::CryptoProvider>);
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};
    impl ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(Error::General("not spoken".into()))
        }
        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }
        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let certificate =
        |dir: &Path, file| CertificateDer::from(std::fs::read(dir.join(file)).unwrap());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(dir) => {
            let key = PrivateKeyDer::from_pem_file(dir.join("node.key")).unwrap();
            builder.with_client_auth_cert(vec![certificate(dir, "node.crt")], key).unwrap()
        }
    };
    config.alpn_protocols = vec![Protocol::Control.alpn().to_vec()];
    Arc::new(config)
}

/// A greeting with nothing in it but the version.
fn greeting(version: u8) -> Vec<u8> {
    let mut greeting = vec![version, 0];
    greeting.extend_from_slice(&[0; 8 + 1 + 2]);
    greeting.push(1);
    greeting
}

async fn raw_member(identity: &Identity, to: &Node) -> TlsStream<TcpStream> {
    raw(tls::client_config(identity, Protocol::Control).unwrap(), to).await.unwrap()
}

#[tokio::test]
async fn two_networks_connect_and_exchange_frames_both_ways_in_order() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    let (at_a, at_b) = connect(&mut a, &mut b).await;
    for size in [0usize, 1, 1000, MAX_CONTROL_FRAME_BYTES - 1] {
        let frame: Vec<u8> = (0..=250).cycle().take(size).collect();
        a.net.send(b.id(), at_a, frame.clone()).unwrap();
        b.net.send(a.id(), at_b, frame.clone()).unwrap();
        assert!(b.frame().await == frame && a.frame().await == frame, "{size}");
    }
    let too_large = vec![0; MAX_CONTROL_FRAME_BYTES];
    assert_eq!(a.net.send(b.id(), at_a, too_large), Err(SendError::TooLarge));
    assert_eq!(a.net.send(b.id(), at_a + 1, vec![1]), Err(SendError::NotConnected));
    let (sent, received) = (a.net.traffic().sent, b.net.traffic().received);
    assert!(sent > MAX_CONTROL_FRAME_BYTES as u64 && received > MAX_CONTROL_FRAME_BYTES as u64);
}

#[tokio::test]
async fn a_third_network_is_learned_of_from_the_second() {
    let cluster = Cluster::new().await;
    let (mut b, mut c) = (cluster.node("b").await, cluster.node("c").await);
    let mut a = cluster.first;
    connect(&mut a, &mut b).await;
    c.net.set_peers(vec![b.known()]);
    c.connected(b.id()).await;
    let (third, its_addr) = (a.id(), a.net.local_addr());
    let learned = c
        .until(|event| match event {
            NetEvent::Learned { node, addr, .. } if node == third => Some(addr),
            _ => None,
        })
        .await;
    assert_eq!(learned, its_addr);
    c.net.set_peers(vec![b.known(), KnownPeer { node: third, addresses: vec![learned] }]);
    let connection = c.connected(third).await;
    a.connected(c.id()).await;
    assert_exchange(&c, &mut a, connection).await;
}

#[tokio::test]
async fn simultaneous_dials_leave_one_connection() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    for _ in 0..10 {
        a.net.set_peers(vec![b.known()]);
        b.net.set_peers(vec![a.known()]);
        // Whichever connections come and go, in the end a frame sent on the current one arrives.
        let (mut at_a, mut at_b) = (a.connected(b.id()).await, b.connected(a.id()).await);
        let (mut frames_a, mut frames_b) = (0, 0);
        a.net.send(b.id(), at_a, vec![1]).ok();
        b.net.send(a.id(), at_b, vec![1]).ok();
        let settled = async {
            while frames_a == 0 || frames_b == 0 {
                tokio::select! {
                    event = a.events.recv() => match event.unwrap() {
                        NetEvent::Connected { connection, .. } => {
                            assert!(connection > at_a);
                            at_a = connection;
                            frames_a = 0;
                            a.net.send(b.id(), at_a, vec![1]).ok();
                        }
                        NetEvent::Disconnected { connection, .. } => assert_eq!(connection, at_a),
                        NetEvent::Frame { connection, .. } if connection == at_a => frames_a += 1,
                        _ => {}
                    },
                    event = b.events.recv() => match event.unwrap() {
                        NetEvent::Connected { connection, .. } => {
                            assert!(connection > at_b);
                            at_b = connection;
                            frames_b = 0;
                            b.net.send(a.id(), at_b, vec![1]).ok();
                        }
                        NetEvent::Disconnected { connection, .. } => assert_eq!(connection, at_b),
                        NetEvent::Frame { connection, .. } if connection == at_b => frames_b += 1,
                        _ => {}
                    },
                }
            }
        };
        timeout(BOUND, settled).await.expect("one connection stays");
        b.net.set_peers(vec![]);
        a.net.forget(b.id());
        a.disconnected(b.id()).await;
        b.disconnected(a.id()).await;
    }
}

#[tokio::test]
async fn a_peer_that_restarts_on_its_port_is_connected_again() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    connect(&mut a, &mut b).await;
    let (identity, addr) = (Arc::clone(&b.identity), b.net.local_addr());
    b.net.shutdown().await;
    a.disconnected(identity.node()).await;
    let mut b = Node::listen(identity, addr, None).await.unwrap();
    let connection = a.connected(b.id()).await;
    assert_exchange(&a, &mut b, connection).await;
}

#[tokio::test]
async fn content_goes_over_its_own_connection() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    assert!(matches!(a.net.open_content(b.id()).await, Err(OpenError::UnknownPeer)));
    connect(&mut a, &mut b).await;
    // B did not dial; it knows A's address from the greeting.
    let mut opened = b.net.open_content(a.id()).await.unwrap();
    let payload = vec![7; 1 << 20];
    opened.writer.write_parts(&[b"header", &payload]).await.unwrap();
    opened.writer.flush().await.unwrap();
    let (peer, mut accepted) = timeout(BOUND, a.content.recv()).await.unwrap().unwrap();
    assert_eq!((peer.node, peer.name.as_str(), peer.role), (b.id(), "b", Role::Writer));
    let frame = accepted.reader.read().await.unwrap().unwrap();
    assert!(frame[..6] == *b"header" && frame[6..] == payload);
    a.net.set_revoked(HashSet::from([b.id()]));
    assert!(!matches!(timeout(BOUND, opened.reader.read()).await.unwrap(), Ok(Some(_))));
}

#[tokio::test]
async fn control_passes_while_limited_content_is_under_way_and_the_end_of_the_limit_lets_it_go() {
    let limit = Rate::new(Rate::MIN_BYTES);
    for limits in [Limits { up: limit, down: None }, Limits { up: None, down: limit }] {
        let cluster = Cluster::new().await;
        let mut b = cluster.node("b").await;
        let mut a = cluster.first;
        let (_, connection) = connect(&mut a, &mut b).await;
        let limited = if limits.up.is_some() { &b.net } else { &a.net };
        limited.set_limits(limits);
        assert_eq!(limited.limits(), limits);
        let mut opened = b.net.open_content(a.id()).await.unwrap();
        let payload = vec![7; 2 << 20];
        let sending = tokio::spawn(async move {
            opened.writer.write(&payload).await.unwrap();
            opened.writer.flush().await.unwrap();
            opened
        });
        let (_, mut accepted) = timeout(BOUND, a.content.recv()).await.unwrap().unwrap();
        let mut receiving = tokio::spawn(async move { accepted.reader.read().await });
        // Contents are under way by now, and take longer than any test.
        for number in 0..20 {
            b.net.send(a.id(), connection, vec![number]).unwrap();
            assert_eq!(a.frame().await, [number]);
        }
        assert!(!receiving.is_finished());
        let limited = if limits.up.is_some() { &b.net } else { &a.net };
        limited.set_limits(Limits::default());
        let frame = timeout(BOUND, &mut receiving).await.unwrap().unwrap().unwrap().unwrap();
        assert!(frame.len() == 2 << 20 && frame.iter().all(|byte| *byte == 7));
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn a_network_that_ends_keeps_nobody_waiting_for_a_limit() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    connect(&mut a, &mut b).await;
    b.net.set_limits(Limits { up: Rate::new(Rate::MIN_BYTES), down: None });
    let mut opened = b.net.open_content(a.id()).await.unwrap();
    let sending = tokio::spawn(async move { opened.writer.write(&vec![7; 2 << 20]).await });
    let _accepted = timeout(BOUND, a.content.recv()).await.unwrap().unwrap();
    b.net.shutdown().await;
    assert!(timeout(BOUND, sending).await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn no_member_takes_all_connections() {
    let mut cluster = Cluster::new().await;
    let greedy = cluster.member("b").await;
    let config = tls::client_config(&greedy, Protocol::Content).unwrap();
    let mut open = Vec::new();
    for _ in 0..=MAX_CONNECTIONS_PER_PEER {
        open.push(raw(Arc::clone(&config), &cluster.first).await.unwrap());
    }
    assert_eq!(cluster.first.refused().await, Refusal::TooManyConnections);
    let mut accepted = Vec::new();
    for _ in 0..MAX_CONNECTIONS_PER_PEER {
        accepted.push(timeout(BOUND, cluster.first.content.recv()).await.unwrap().unwrap());
    }
    assert!(cluster.first.content.try_recv().is_err());
    // Others are let in.
    let other = tls::client_config(&cluster.member("c").await, Protocol::Content).unwrap();
    open.push(raw(other, &cluster.first).await.unwrap());
    let (peer, _) = timeout(BOUND, cluster.first.content.recv()).await.unwrap().unwrap();
    assert_eq!(peer.name, "c");
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_by_both_sides() {
    let (mut ours, mut theirs) = (Cluster::new().await, Cluster::new().await);
    theirs.first.net.set_peers(vec![ours.first.known()]);
    assert_eq!(theirs.first.refused().await, Refusal::Handshake);
    assert_eq!(ours.first.refused().await, Refusal::Handshake);
    // Also one that does not care who we are.
    let config = stranger(Some(&theirs.dir("first")));
    if let Ok(mut stream) = raw(config, &ours.first).await {
        assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)));
    }
    assert_eq!(ours.first.refused().await, Refusal::Handshake);
}

#[tokio::test]
async fn a_client_without_certificate_can_only_join() {
    let mut cluster = Cluster::new().await;
    let config = stranger(None);
    let mut stream = raw(config, &cluster.first).await.unwrap();
    assert!(!matches!(stream.read(&mut [0; 1]).await, Ok(1..)));
    assert_eq!(cluster.first.refused().await, Refusal::NoCertificate);
}

#[tokio::test]
async fn a_revoked_member_is_disconnected_and_refused_and_may_return_when_it_is_not() {
    let cluster = Cluster::new().await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    b.net.set_peers(vec![a.known()]);
    a.connected(b.id()).await;
    a.net.set_revoked(HashSet::from([b.id()]));
    assert!(a.disconnected(b.id()).await.contains("revoked"));
    assert_eq!(a.refused().await, Refusal::Revoked);
    assert_eq!(b.refused().await, Refusal::Revoked);
    a.net.set_revoked(HashSet::new());
    let connection = a.connected(b.id()).await;
    assert_exchange(&a, &mut b, connection).await;
}

#[tokio::test]
async fn a_joiner_becomes_a_member_with_the_role_of_its_invitation() {
    let cluster = Cluster::new().await;
    let ticket: Ticket = cluster.ticket(NEVER).to_string().parse().unwrap();
    let joined = cluster.join(&ticket, "b").await.unwrap();
    assert_eq!(joined.welcome, b"welcome");
    let loaded = Identity::load(&cluster.dir("b")).unwrap();
    assert_eq!(loaded.peer(), joined.identity.peer());
    assert_eq!(loaded.peer().cluster, cluster.first.identity.peer().cluster);
    assert!(!loaded.is_authority());
    let joiner = cluster.joiners.lock().unwrap()[0].clone();
    let listen = Some("127.0.0.1:7".parse().unwrap());
    assert_eq!(
        joiner,
        Joiner { node: loaded.node(), name: "b".into(), role: Role::Writer, listen }
    );
    let again = cluster.join(&ticket, "b").await;
    assert!(matches!(again, Err(JoinError::Identity(_))), "it is a member already");
}

#[tokio::test]
async fn a_joiner_that_lost_its_answer_gets_it_again_and_nobody_else_does() {
    let cluster = Cluster::new().await;
    let ticket = cluster.ticket(NEVER);
    let first = cluster.join(&ticket, "b").await.unwrap().identity;
    std::fs::remove_file(cluster.dir("b").join("node.crt")).unwrap();
    let second = cluster.join(&ticket, "b").await.unwrap().identity;
    assert_eq!(first.peer(), second.peer());
    let other = cluster.join(&ticket, "c").await;
    assert!(matches!(other, Err(JoinError::Refused(JoinRefusal::Used))));
}

#[tokio::test]
async fn tickets_that_let_nobody_in_say_why() {
    let cluster = Cluster::new().await;
    let refusal = async |ticket: Ticket, name: &str| match cluster.join(&ticket, name).await {
        Err(JoinError::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    };
    let mut forged = cluster.ticket(NEVER);
    forged.secret = [9; 16];
    assert_eq!(refusal(forged, "b").await, JoinRefusal::Unknown);

    let mut expired = cluster.ticket(NEVER);
    expired.secret = cluster.expired;
    assert_eq!(refusal(expired, "b").await, JoinRefusal::Expired);

    cluster.member("taken").await;
    let clash = join(&cluster.ticket(NEVER), &cluster.dir("elsewhere"), "taken", None).await;
    assert!(matches!(clash, Err(JoinError::Refused(JoinRefusal::NameTaken))));

    let mut another_cluster = cluster.ticket(NEVER);
    another_cluster.ca_fingerprint = [1; 32];
    let refused = cluster.join(&another_cluster, "b").await;
    assert!(matches!(refused, Err(JoinError::NotTheCluster { .. })));

    let mut nobody = cluster.ticket(NEVER);
    nobody.addresses = vec!["127.0.0.1:1".parse().unwrap()];
    assert!(matches!(cluster.join(&nobody, "b").await, Err(JoinError::Unreachable { .. })));
}

#[tokio::test]
async fn a_member_that_is_no_admin_is_not_shown_a_ticket() {
    let cluster = Cluster::new().await;
    let b = cluster.node("b").await;
    let mut ticket = cluster.ticket(NEVER);
    ticket.addresses = vec![b.net.local_addr()];
    assert!(matches!(cluster.join(&ticket, "c").await, Err(JoinError::NotTheCluster { .. })));
    // The right address further down the list is still found.
    ticket.addresses.push(cluster.first.net.local_addr());
    cluster.join(&ticket, "c").await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = Cluster::new().await;
    let addr = cluster.first.net.local_addr();
    let error = Node::listen(Arc::clone(&cluster.first.identity), addr, None).await.err().unwrap();
    assert!(matches!(error, StartError::PortInUse { addr: at } if at == addr));
    assert!(error.to_string().contains(&addr.port().to_string()), "{error}");
}

#[tokio::test]
async fn another_version_is_told_ours_and_reported() {
    let mut cluster = Cluster::new().await;
    let stream = raw_member(&cluster.member("b").await, &cluster.first).await;
    let (read, write) = tokio::io::split(stream);
    let mut writer = FrameWriter::new(write, MAX_CONTROL_FRAME_BYTES);
    writer.write(&greeting(4)).await.unwrap();
    writer.flush().await.unwrap();
    assert_eq!(cluster.first.refused().await, Refusal::Version { theirs: 4 });
    let answer = FrameReader::new(read, MAX_CONTROL_FRAME_BYTES).read().await.unwrap().unwrap();
    assert_eq!(answer[..2], [3, 0]);
}

#[tokio::test]
async fn a_peer_that_stalls_is_disconnected_before_its_queue_grows_further() {
    let mut cluster = Cluster::new().await;
    let stalling = cluster.member("b").await;
    let mut stream = raw_member(&stalling, &cluster.first).await;
    let mut writer = FrameWriter::new(&mut stream, MAX_CONTROL_FRAME_BYTES);
    writer.write(&greeting(3)).await.unwrap();
    writer.flush().await.unwrap();
    let a = &mut cluster.first;
    let connection = a.connected(stalling.node()).await;
    let refused =
        (0..1024).find_map(|_| a.net.send(stalling.node(), connection, vec![0; 1 << 19]).err());
    assert_eq!(refused, Some(SendError::Stalled));
    assert!(a.disconnected(stalling.node()).await.contains("stalled"));
}

#[tokio::test]
async fn hostile_bytes_on_the_port_harm_nobody_else() {
    let cluster = Cluster::new().await;
    let hostile = cluster.member("hostile").await;
    let mut b = cluster.node("b").await;
    let mut a = cluster.first;
    let (at_a, _) = connect(&mut a, &mut b).await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = |length: usize| -> Vec<u8> {
        (0..length)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                (seed & 0xff) as u8
            })
            .collect()
    };
    let frame =
        |body: Vec<u8>| [&u32::try_from(body.len()).unwrap().to_le_bytes()[..], &body].concat();
    for round in 0..20 {
        // Without TLS.
        let mut tcp = TcpStream::connect(a.net.local_addr()).await.unwrap();
        let _ = tcp.write_all(&noise(round * 50)).await;
        drop(tcp);
        // As a member, before and after the greeting: noise, too much, nothing, and half a frame.
        let bodies = [
            noise(100),
            u32::MAX.to_le_bytes().to_vec(),
            vec![0; 4],
            frame(noise(60)),
            vec![9, 0, 0, 0, 1],
        ];
        for bad in bodies {
            for greet in [false, true] {
                let mut stream = raw_member(&hostile, &a).await;
                let head = if greet { frame(greeting(3)) } else { Vec::new() };
                let _ = stream.write_all(&[head, bad.clone()].concat()).await;
                let _ = stream.shutdown().await;
            }
        }
        while a.events.try_recv().is_ok() {}
    }
    let drained = async {
        a.net.send(b.id(), at_a, b"unharmed".to_vec()).unwrap();
        loop {
            tokio::select! {
                frame = b.frame() => return frame,
                event = a.events.recv() => assert!(
                    !matches!(event, Some(NetEvent::Disconnected { peer, .. }) if peer == b.identity.node())
                ),
            }
        }
    };
    assert_eq!(timeout(BOUND, drained).await.unwrap(), b"unharmed");
}
