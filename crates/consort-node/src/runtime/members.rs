//! How the loop drives membership: its effects become dialing, datagrams and links. The decisions are the core's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant as StdInstant};

use consort_core::protocol::Event;
use consort_core::protocol::membership::{
    self, DatasetNews, Liveness, MAX_NEWS_DATASETS, Member, Membership, News, Word,
};
use consort_core::store::View;
use consort_core::{DatasetId, Instant, NodeId};

use super::{Runtime, wall_time};
use crate::cluster::Facts;
use crate::net::{KnownPeer, PeerIdentity, Role};
use crate::shared::Shared;

/// What the loop knows of the others.
pub(super) struct Members {
    machine: Membership,
    started: u32,
    /// With whom membership wants a connection.
    wanted: BTreeSet<NodeId>,
    /// Those of them that are not dialed for a while, since they were disconnected for what they sent.
    resting: BTreeSet<NodeId>,
    /// What certificates said, for those that the facts do not name yet.
    roles: BTreeMap<NodeId, Role>,
    /// Where each can be reached.
    book: HashMap<NodeId, Vec<SocketAddr>>,
    /// Bytes at the sockets when they were looked at last.
    traffic: (StdInstant, u64),
    /// Where others are told that this node can be reached.
    address: Option<SocketAddr>,
}

/// What is known of a member, for people.
#[derive(Clone, Debug)]
pub(crate) struct MemberView {
    /// Who.
    pub(crate) node: NodeId,
    /// Whether it is there.
    pub(crate) liveness: Liveness,
    /// For how long that has been so, as far as this node knows.
    pub(crate) for_how_long: Duration,
    /// It is a neighbour.
    pub(crate) neighbour: bool,
    /// What it told of itself, and how long ago.
    pub(crate) news: Option<(Duration, News)>,
}

impl Members {
    pub(super) fn new(shared: &Shared, now: Instant) -> Self {
        let own = &shared.identity;
        let seed = crate::net::random_u64();
        Self {
            machine: Membership::new(member(own.node, own.role, true), shared.started, seed, now),
            started: shared.started,
            wanted: BTreeSet::new(),
            resting: BTreeSet::new(),
            roles: BTreeMap::new(),
            book: HashMap::new(),
            traffic: (StdInstant::now(), 0),
            address: crate::node::likeliest(shared.network.local_addr()),
        }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.machine.deadline()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.machine.is_settled()
    }

    pub(super) fn rest(&mut self, peer: NodeId) {
        self.resting.insert(peer);
    }

    /// Where members told that they can be reached.
    fn told_addresses(&self) -> impl Iterator<Item = (NodeId, SocketAddr)> {
        self.machine.members().filter_map(|report| Some((report.node, report.news?.1.address?)))
    }

    /// Those that are not known to be gone.
    pub(super) fn present(&self) -> impl Iterator<Item = NodeId> {
        let members = self.machine.members();
        let present = members
            .filter(|report| matches!(report.liveness, Liveness::Alive | Liveness::Suspected));
        present.map(|report| report.node)
    }

    pub(super) fn view(&self, now: Instant) -> Vec<MemberView> {
        let view = |report: membership::MemberReport<'_>| MemberView {
            node: report.node,
            liveness: report.liveness,
            for_how_long: now.since(report.since),
            neighbour: report.neighbour,
            news: report.news.map(|(at, news)| (now.since(at), news.clone())),
        };
        self.machine.members().map(view).collect()
    }
}

impl Runtime {
    /// Brings what the network and membership know of the members in line with the cluster's facts.
    pub(super) fn set_members(&mut self, facts: &Facts) {
        if self.failed {
            return;
        }
        let own = self.shared.identity.node;
        self.shared.network.set_revoked(facts.revoked.iter().copied().collect());
        let mut book: HashMap<NodeId, Vec<SocketAddr>> =
            self.shared.learned().into_iter().collect();
        for fact in &facts.members {
            let addresses = book.entry(fact.node).or_default();
            for &addr in &fact.addresses {
                if !addresses.contains(&addr) {
                    addresses.push(addr);
                }
            }
        }
        // Before the first contact, a new member does not know who is one.
        let is_new = facts.member(own).is_none();
        let is_member = |node: &NodeId| {
            let is_member = is_new || facts.member(*node).is_some();
            *node != own && is_member && !facts.revoked.contains(node)
        };
        // What a member tells all others comes last: it may not know it itself.
        for (node, told) in self.members.told_addresses() {
            let addresses = book.entry(node).or_default();
            if !addresses.contains(&told) {
                addresses.push(told);
            }
        }
        book.retain(|node, _| is_member(node));
        let role = |node: NodeId| {
            let told = facts.member(node).map(|member| member.role);
            let shown = || self.members.roles.get(&node).copied();
            // Whoever it is, it knows more.
            told.or_else(shown).unwrap_or(Role::Writer)
        };
        let member = |(&node, addresses): (&NodeId, &Vec<SocketAddr>)| {
            member(node, role(node), !addresses.is_empty())
        };
        let members: Vec<Member> = book.iter().map(member).collect();
        self.shared.network.set_addresses(book.clone());
        if let Some(gossip) = &facts.gossip {
            let keys = gossip.keys(wall_time());
            self.shared.network.set_gossip_keys(self.members.started, &keys);
        }
        self.members.book = book;
        self.membership(membership::Event::Members { members });
        self.dial();
    }

    /// Tells the network whom to dial.
    pub(super) fn dial(&mut self) {
        if self.failed {
            return;
        }
        let Members { wanted, resting, book, .. } = &self.members;
        let known = wanted.difference(resting).map(|&node| KnownPeer {
            node,
            addresses: book.get(&node).cloned().unwrap_or_default(),
        });
        self.shared.network.set_peers(known.collect());
    }

    /// Those who rested are dialed again.
    pub(super) fn dial_again(&mut self) {
        self.members.resting.clear();
        self.dial();
    }

    pub(super) fn on_member_connected(&mut self, peer: &PeerIdentity, dialed: bool) {
        self.members.roles.insert(peer.node, peer.role);
        let is_dialable = self.members.book.get(&peer.node).is_some_and(|book| !book.is_empty());
        let peer = member(peer.node, peer.role, is_dialable);
        self.membership(membership::Event::Connected { peer, dialed });
    }

    pub(super) fn on_word(&mut self, peer: NodeId, connection: u64, bytes: &[u8]) {
        if self.connections.get(&peer).is_none_or(|known| known.number != connection) {
            return;
        }
        match Word::decode(bytes) {
            Ok(word) => self.membership(membership::Event::Told { peer, word }),
            Err(error) => self.disconnect(peer, &format!("it sent a broken message: {error}")),
        }
    }

    /// Passes an event to membership and carries out what it asks for.
    pub(super) fn membership(&mut self, event: membership::Event) {
        let mut effects = Vec::new();
        self.members.machine.handle(event, self.now().instant, &mut effects);
        for effect in effects {
            self.carry_out_membership(effect);
        }
    }

    fn carry_out_membership(&mut self, effect: membership::Effect) {
        if self.failed {
            return;
        }
        match effect {
            membership::Effect::Send { to, datagram } => {
                self.shared.network.send_datagram(to, datagram);
            }
            membership::Effect::Tell { peer, word } => {
                if let Some(connection) = self.connections.get(&peer) {
                    let bytes = vec![word.encode()];
                    self.shared.network.send_word(peer, connection.number, bytes);
                }
            }
            membership::Effect::Connect { peer } => {
                self.members.wanted.insert(peer);
                self.dial();
            }
            membership::Effect::Disconnect { peer } => {
                self.members.wanted.remove(&peer);
                self.leave(peer);
                self.shared.network.hang_up(peer);
                self.shared.set_disconnected(peer);
                self.dial();
            }
            membership::Effect::Open { peer } => self.open_links(peer),
            membership::Effect::Close { peer } => self.close_links(peer),
            membership::Effect::Report => {
                let book = &self.members.book;
                let is_new = |(node, told): (NodeId, SocketAddr)| {
                    book.get(&node).is_some_and(|addresses| !addresses.contains(&told))
                };
                if self.members.told_addresses().any(is_new) {
                    self.set_members(&self.shared.facts());
                }
                let news = self.news();
                self.membership(membership::Event::Standing { news });
            }
        }
    }

    /// From here on, a peer is a neighbour.
    fn open_links(&mut self, peer: NodeId) {
        let Some(connection) = self.connections.get_mut(&peer) else { return };
        connection.open = true;
        let role = connection.role;
        self.helpers.forget(peer);
        self.shared.contents.fetcher().peer_up(peer);
        for dataset in self.linked_datasets() {
            self.connect(dataset, peer, role, false);
        }
        self.shared.wake_folders();
        self.shared.notify();
    }

    /// It is a neighbour no more.
    fn close_links(&mut self, peer: NodeId) {
        if let Some(connection) = self.connections.get_mut(&peer) {
            connection.open = false;
            self.shared.contents.fetcher().peer_down(peer);
            for dataset in self.linked_datasets() {
                self.event(dataset, Event::Disconnected { peer });
            }
        }
        self.shared.notify();
    }

    /// The datasets that only neighbours have links for: all but the cluster's own.
    pub(super) fn linked_datasets(&self) -> Vec<DatasetId> {
        let cluster = self.shared.cluster.id;
        self.replicas.keys().copied().filter(|dataset| *dataset != cluster).collect()
    }

    /// How this node stands.
    fn news(&mut self) -> News {
        let traffic = self.shared.network.traffic();
        let bytes = traffic.sent + traffic.received;
        let (since, before) =
            std::mem::replace(&mut self.members.traffic, (StdInstant::now(), bytes));
        let millis = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = bytes.saturating_sub(before).saturating_mul(1000) / millis;
        let facts = self.shared.facts();
        let news = |fact: &crate::cluster::DatasetFact| {
            let view = self.shared.store.view(fact.parameters.id).ok()?;
            let summary = view.summary();
            Some(DatasetNews {
                dataset: short_id(fact.parameters.id),
                digest: short_digest(summary.digest.sum),
                versions: summary.digest.count,
                head: summary.head.sequence.0,
                pending: view.pending_count(),
                linked: self.shared.folder(fact.parameters.id).is_some(),
            })
        };
        let datasets = facts.datasets.iter().take(MAX_NEWS_DATASETS).filter_map(news).collect();
        News { rate, datasets, address: self.members.address, ..News::default() }
    }
}

/// The front of a dataset's identity, as members tell it each other.
pub(crate) fn short_id(dataset: DatasetId) -> u64 {
    u64::from_le_bytes(*dataset.0.first_chunk().expect("an identity has 16 bytes"))
}

/// The front of a digest.
pub(crate) fn short_digest(sum: u128) -> u64 {
    u64::try_from(sum >> 64).expect("64 bits are left")
}

fn member(node: NodeId, role: Role, dialable: bool) -> Member {
    Member { node, passes_on: role != Role::Reader, dialable }
}
