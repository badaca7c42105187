//! Facts of the cluster: they reach every node over whichever member it knows, and no member but an admin makes or
//! alters one. An impostor here is a member whose conversation is faultless, and whose store holds what it likes.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::model::canonical;
use consort_core::protocol::event::Access;
use consort_core::protocol::link::Phase;
use consort_core::protocol::{Effect, Envelope, Event, Message, Now, Replica, codec};
use consort_core::store::memory::MemoryStore;
use consort_core::store::{DatasetParameters, Epoch, LocalWrite, Sealer, Sequence, Store, View};
use consort_core::{
    AuthorId, Commit, Content, DatasetId, Entry, FingerprintKey, Instant as CoreInstant, Key,
    WallTime,
};
use consort_node::net::{Identity, KnownPeer, NetEvent, Network, NetworkConfig};
use consort_node::{DatasetOptions, Member, Node, NodeId, Role, join};
use rcgen::{KeyPair, SigningKey};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::node::{BOUND, DAY, Machine, connected, until};

/// What a node knows of its cluster: its datasets by name, and its members with whether they are members no more.
async fn facts(node: &Node) -> (Vec<String>, Vec<(String, bool)>) {
    let datasets = node.datasets().await.expect("datasets");
    let members = node.members().await.expect("members");
    let member = |member: Member| (member.name, member.revoked);
    (
        datasets.into_iter().map(|dataset| dataset.name).collect(),
        members.into_iter().map(member).collect(),
    )
}

/// The same, once the node knows of so many members.
async fn facts_of(node: &Node, members: usize) -> (Vec<String>, Vec<(String, bool)>) {
    until("the members", async || facts(node).await.1.len() == members).await;
    facts(node).await
}

async fn knows_the_same(node: &Node, expected: &(Vec<String>, Vec<(String, bool)>)) {
    until("the news", async || facts(node).await == *expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn news_of_the_cluster_reach_nodes_that_no_admin_reaches() {
    let mut admin = Machine::first().await;
    let mut writer = admin.joined("writer", Role::Writer).await;
    let mut reader = admin.joined("reader", Role::Reader).await;
    let mut last = admin.joined("last", Role::Reader).await;
    let known = facts_of(&admin, 4).await;
    for node in [&reader, &last] {
        knows_the_same(node, &known).await;
    }
    // So that each can find the one that it will be left with.
    connected(&reader, &writer).await;
    connected(&last, &reader).await;
    reader.stop().await;
    last.stop().await;
    admin.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    admin.joined("gone", Role::Writer).await.stop().await;
    admin.revoke("gone").await.expect("it is revoked");
    let news = facts(&admin).await;
    assert_ne!(news, known);
    knows_the_same(&writer, &news).await;

    // From here on each node has only the one before it.
    admin.stop().await;
    reader.start().await;
    knows_the_same(&reader, &news).await;
    until("the news to be all there is", async || {
        let findings = reader.doctor().await.expect("findings");
        findings.iter().all(|finding| !finding.what.contains("not heard"))
    })
    .await;
    writer.stop().await;
    last.start().await;
    knows_the_same(&last, &news).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_makes_up_facts_is_disconnected_and_changes_nothing() {
    let admin = Machine::first().await;
    admin.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let reader = admin.joined("reader", Role::Reader).await;
    let mut impostor = Impostor::joined(&admin, Role::Writer).await;
    let known = facts_of(&admin, 3).await;
    knows_the_same(&reader, &known).await;
    impostor.meet(&admin).await;
    let genuine = impostor.entries();
    let of = |prefix: &str| {
        let found = genuine.iter().find(|entry| entry.key.as_str().starts_with(prefix));
        found.expect("the admin has sent it").clone()
    };
    let made_up = || {
        LocalWrite::new(
            Key::new("datasets/made-up").expect("a key"),
            of("datasets/").version.content,
        )
    };
    let altered = |of: Entry| LocalWrite::new(of.key, Content::Inline([1, 2, 3].into()));
    let removed = |of: Entry| LocalWrite::new(of.key, Content::Deleted);
    let own: Arc<dyn Sealer> = Arc::new(impostor.seal());
    let stolen: Arc<dyn Sealer> =
        Arc::new(StolenSeal(of("members/").version.attributes.seal.expect("sealed")));
    let attempts = [
        (made_up(), None, "no admin has sealed"),
        (made_up(), Some(&own), "is a writer"),
        (made_up(), Some(&stolen), "not what its admin has sealed"),
        (altered(of("members/")), None, "no admin has sealed"),
        (altered(of("members/")), Some(&own), "is a writer"),
        (altered(of("datasets/")), Some(&stolen), "not what its admin has sealed"),
        (removed(of("datasets/")), None, "no admin has sealed"),
        (removed(of("members/")), Some(&own), "is a writer"),
    ];
    for (write, sealer, reason) in attempts {
        for victim in [&admin, &reader] {
            impostor.forget_everything();
            impostor.meet(victim).await;
            impostor.write(write.clone(), sealer.cloned());
            impostor.is_told(victim, reason).await;
            assert_eq!(facts(victim).await, known);
        }
    }

    // A genuine fact without its seal, in place of the one with it.
    let mut bare = of("datasets/");
    bare.version.attributes.seal = None;
    impostor.forget_everything();
    impostor.meet(&reader).await;
    impostor.say(Message::Versions { entries: vec![bare], through: None });
    impostor.is_told(&reader, "no admin has sealed").await;

    // Nobody else was disturbed.
    admin.create_dataset("later", DatasetOptions::default()).await.expect("it is made");
    let known = facts(&admin).await;
    assert_eq!(known.0, ["later", "photos"]);
    knows_the_same(&reader, &known).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_genuine_fact_that_is_said_again_changes_nothing() {
    let admin = Machine::first().await;
    admin.create_dataset("photos", DatasetOptions::default()).await.expect("it is made");
    let reader = admin.joined("reader", Role::Reader).await;
    let mut impostor = Impostor::joined(&admin, Role::Writer).await;
    impostor.meet(&admin).await;
    let old = impostor.entries();
    admin.drop_dataset("photos").await.expect("it is dropped");
    admin.joined("gone", Role::Writer).await.stop().await;
    admin.revoke("gone").await.expect("it is revoked");
    let known = facts(&admin).await;
    for victim in [&admin, &reader] {
        knows_the_same(victim, &known).await;
        impostor.meet(victim).await;
        impostor.say(Message::Versions { entries: old.clone(), through: None });
        // It is taken for what it is, and the conversation goes on.
        let before = impostor.acknowledged;
        impostor.until("its acknowledgement", |impostor| before < impostor.acknowledged).await;
        assert_eq!(facts(victim).await, known);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_admin_cannot_take_its_revocation_back_whoever_helps_it() {
    let admin = Machine::first().await;
    let former = Impostor::joined(&admin, Role::Admin).await;
    let mut helper = Impostor::joined(&admin, Role::Writer).await;
    let name = former.identity.peer().name.clone();
    admin.revoke(&name).await.expect("it is revoked");
    let known = facts(&admin).await;
    helper.meet(&admin).await;
    let of = |prefix: &str| {
        let key = format!("{prefix}/{}", former.identity.node());
        let entries = helper.entries();
        entries.into_iter().find(|entry| entry.key.as_str() == key).expect("the admin has sent it")
    };
    let (member, revocation) = (of("members"), of("revoked"));
    let writes = [
        LocalWrite::new(revocation.key, Content::Deleted),
        LocalWrite::new(member.key, member.version.content),
    ];
    // Its seal is an admin's, and what it seals is a version as any other.
    let sealer: Arc<dyn Sealer> = Arc::new(former.seal());
    for mut write in writes {
        write.attributes.mode = 0o600;
        helper.write(write, Some(Arc::clone(&sealer)));
    }
    helper.until("the acknowledgements", |helper| helper.is_live_with(&admin)).await;
    assert_eq!(facts(&admin).await, known);
    assert!(known.1.contains(&(name, true)));
}

/// A member that speaks the protocol about facts of the cluster as it should, and holds what it likes.
struct Impostor {
    home: TempDir,
    identity: Arc<Identity>,
    network: Network,
    events: mpsc::Receiver<NetEvent>,
    cluster: DatasetParameters,
    store: MemoryStore,
    replica: Replica,
    /// With whom it wants to talk, and with whom it does, on which connection.
    wanted: Option<NodeId>,
    peer: Option<(NodeId, u64)>,
    /// How many of its messages were acknowledged in this conversation.
    acknowledged: u64,
    /// Why the other side ended the conversation.
    rejected: Option<String>,
    /// It has said nothing in this conversation but what its replica asked for.
    is_proper: bool,
    stores: u64,
    started: Instant,
}

impl Impostor {
    async fn joined(admin: &Machine, role: Role) -> Self {
        let home = tempfile::tempdir().expect("a directory");
        let ticket = admin.invite(role, DAY, 1).await.expect("a ticket");
        let name = format!("impostor-{role}");
        join(home.path(), &ticket, Some(&name), None).await.expect("it is let in");
        let identity = Identity::load(&home.path().join("identity")).expect("it is a member");
        let (sender, events) = mpsc::channel(16);
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = NetworkConfig { listen, on_content: Arc::new(|_, _| {}), join: None };
        let network = Network::start(config, &identity, sender).await.expect("it starts");
        let cluster = cluster_dataset(&identity.authority_fingerprint());
        let mut impostor = Self {
            home,
            identity: Arc::new(identity),
            network,
            events,
            cluster,
            store: MemoryStore::new(AuthorId::default(), Epoch(0)),
            replica: Replica::new(cluster.fingerprint_key, Access::Write, 7),
            wanted: None,
            peer: None,
            acknowledged: 0,
            rejected: None,
            is_proper: true,
            stores: 0,
            started: Instant::now(),
        };
        impostor.forget_everything();
        impostor
    }

    fn forget_everything(&mut self) {
        self.stores += 1;
        let mut store = MemoryStore::new(AuthorId([0xee; 16]), Epoch(self.stores));
        store.open_dataset(self.cluster).expect("opens");
        self.store = store;
    }

    /// Connects with a node, and takes in all that it says about the cluster.
    async fn meet(&mut self, node: &Machine) {
        if let Some((peer, _)) = self.peer {
            self.end(peer);
        }
        self.rejected = None;
        let id = node.identity().node;
        self.wanted = Some(id);
        self.network.set_peers(vec![KnownPeer { node: id, addresses: vec![node.listen_addr()] }]);
        self.until("the conversation", |impostor| impostor.is_live_with(node)).await;
    }

    /// Whether each has all that the other had.
    fn is_live_with(&self, node: &Machine) -> bool {
        let (id, view) = (node.identity().node, self.store.view(self.cluster.id));
        let head = view.expect("opened").summary().head.sequence;
        self.replica.links(head).any(|link| link.peer == id && link.phase == Phase::Live)
    }

    /// Writes into its own store, and spreads that.
    fn write(&mut self, write: LocalWrite, sealer: Option<Arc<dyn Sealer>>) {
        let now = self.now().wall;
        let applied = self.store.apply_sealed(self.cluster.id, vec![write], now, sealer);
        assert_eq!(applied.expect("it is written").added.len(), 1);
        self.handle(Event::Grew);
    }

    /// Sends a message that its replica did not ask for.
    fn say(&mut self, message: Message) {
        self.is_proper = false;
        self.send(message);
    }

    fn send(&self, message: Message) {
        let (peer, connection) = self.peer.expect("it is connected");
        let mut bytes = Vec::new();
        codec::encode(&Envelope { dataset: self.cluster.id, message }, &mut bytes);
        // If the connection is gone, that is the next event.
        let _ = self.network.send(peer, connection, bytes);
    }

    /// Talks until the node has ended the connection for this reason: it says so, if it comes to that, and shows it.
    async fn is_told(&mut self, node: &Machine, reason: &str) {
        let is_it = |told: &str| told.contains("fact of the cluster") && told.contains(reason);
        let (id, end) = (self.identity.node(), Instant::now() + BOUND);
        while !self.rejected.as_deref().is_some_and(is_it) {
            let status = node.status().await.expect("a status");
            let peer = status.peers.into_iter().find(|peer| peer.node == id);
            if peer.and_then(|peer| peer.reason).is_some_and(|told| is_it(&told)) {
                break;
            }
            assert!(Instant::now() < end, "it is not told: {reason}");
            if let Ok(event) = timeout(Duration::from_millis(10), self.events.recv()).await {
                self.on_net(event.expect("the network runs"));
            }
        }
    }

    /// What it holds.
    fn entries(&self) -> Vec<Entry> {
        let view = self.store.view(self.cluster.id).expect("opened");
        let rows = view.feed(Sequence(0), usize::MAX).expect("reads");
        rows.into_iter().map(|row| row.entry).collect()
    }

    /// What it seals with its own key.
    fn seal(&self) -> OwnSeal {
        let identity = self.home.path().join("identity");
        let key = std::fs::read_to_string(identity.join("node.key")).expect("its key");
        OwnSeal {
            dataset: self.cluster.id,
            key: KeyPair::from_pem(&key).expect("a key"),
            certificate: std::fs::read(identity.join("node.crt")).expect("its certificate"),
        }
    }

    fn now(&self) -> Now {
        let micros = u64::try_from(self.started.elapsed().as_micros()).expect("not that long");
        let since = std::time::UNIX_EPOCH.elapsed().expect("it is later");
        let wall = WallTime(u64::try_from(since.as_millis()).expect("not that late"));
        Now { instant: CoreInstant(micros), wall }
    }

    /// Talks until it is so.
    async fn until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let talk = async {
            while !is_so(self) {
                let event = self.events.recv().await.expect("the network runs");
                self.on_net(event);
            }
        };
        timeout(BOUND, talk).await.unwrap_or_else(|_| panic!("no sign of {what}"));
    }

    fn on_net(&mut self, event: NetEvent) {
        match event {
            NetEvent::Connected { peer, connection, .. } if self.wanted == Some(peer.node) => {
                let (peer, opener) = (peer.node, self.identity.node() < peer.node);
                self.peer = Some((peer, connection));
                (self.acknowledged, self.is_proper) = (0, true);
                let access = Access::Write;
                self.handle(Event::Connected { peer, access, opener, standing: false });
            }
            NetEvent::Frame { peer, connection, bytes }
                if self.peer == Some((peer, connection)) =>
            {
                let Envelope { dataset, message } = codec::decode(&bytes).expect("it is a node");
                if dataset != self.cluster.id {
                    return;
                }
                match &message {
                    Message::Ack { count } => self.acknowledged = *count,
                    Message::Reject { reason } => self.rejected = Some(reason.clone()),
                    _ => {}
                }
                if self.is_proper || !matches!(message, Message::Ack { .. }) {
                    self.handle(Event::Received { peer, message });
                }
            }
            NetEvent::Disconnected { peer, connection, .. }
                if self.peer == Some((peer, connection)) =>
            {
                // Both may have dialed; another connection comes then.
                self.peer = None;
                self.handle(Event::Disconnected { peer });
            }
            _ => {}
        }
    }

    fn end(&mut self, peer: NodeId) {
        self.peer = None;
        self.network.forget(peer);
        self.handle(Event::Disconnected { peer });
    }

    fn handle(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let (now, mut effects) = (self.now(), Vec::new());
            let view = self.store.view(self.cluster.id).expect("opened");
            self.replica.handle(event, now, &view, &mut effects).expect("memory can be read");
            drop(view);
            for effect in effects {
                match effect {
                    Effect::Send { message, .. } if self.peer.is_some() => self.send(message),
                    Effect::Commit { peer, entries, cursor } => {
                        let commit = Commit { entries };
                        let applied =
                            self.store.apply_remote(self.cluster.id, peer, commit, cursor);
                        let stale = applied.expect("applies").stale;
                        events.push_back(Event::Committed { peer, stale });
                        events.push_back(Event::Grew);
                    }
                    Effect::Disconnect { peer, .. } => self.end(peer),
                    _ => {}
                }
            }
        }
    }
}

/// The seal that a member makes with its own key, as `docs/protocol.md` says.
#[derive(Debug)]
struct OwnSeal {
    dataset: DatasetId,
    key: KeyPair,
    certificate: Vec<u8>,
}

impl Sealer for OwnSeal {
    fn seal(&self, entry: &Entry) -> Box<[u8]> {
        let mut bytes = b"consort 2026 seal of a cluster's fact".to_vec();
        bytes.extend_from_slice(&self.dataset.0);
        bytes.extend_from_slice(blake3::hash(&self.certificate).as_bytes());
        canonical::encode_entry(entry, &mut bytes);
        let signature = self.key.sign(&bytes).expect("it signs");
        [signature, self.certificate.clone()].concat().into()
    }
}

/// A seal that was taken from something else.
#[derive(Debug)]
struct StolenSeal(Box<[u8]>);

impl Sealer for StolenSeal {
    fn seal(&self, _: &Entry) -> Box<[u8]> {
        self.0.clone()
    }
}

/// The dataset of a cluster's facts, as `docs/protocol.md` says.
fn cluster_dataset(authority: &[u8; 32]) -> DatasetParameters {
    let id = blake3::derive_key("consort 2026 identity of the cluster's dataset", authority);
    let key = blake3::derive_key("consort 2026 fingerprints of the cluster's dataset", authority);
    let id = DatasetId(*id.first_chunk().expect("it is longer"));
    DatasetParameters { id, fingerprint_key: FingerprintKey(key) }
}
