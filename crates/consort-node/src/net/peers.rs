//! The table of peers: where each can be reached, which connection is the one with it, who is
//! revoked. It decides which of two connections stays; it does no I/O.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use consort_core::limits::WINDOW_BYTES;

use super::greeting::MAX_KNOWN;
use super::identity::NodeId;
use super::lock;
use super::network::{KnownPeer, Refusal};

/// The most bytes that wait to be sent to one peer. The core fills up to two windows a dataset
/// before it waits for acknowledgements, so this has room for several datasets that catch up at
/// once; only a peer that stalls gets there.
pub const MAX_QUEUED_BYTES: usize = 64 << 20;

const _: () = assert!(4 * WINDOW_BYTES <= MAX_QUEUED_BYTES);

/// What a queued frame costs beside its bytes, so that tiny frames cannot fill the memory either.
const QUEUED_FRAME_OVERHEAD: usize = 64;

/// The most addresses that are tried for one peer.
pub(super) const MAX_ADDRESSES: usize = 8;

#[derive(Debug)]
pub(super) struct Peers {
    own: NodeId,
    entries: HashMap<NodeId, Entry>,
    revoked: HashSet<NodeId>,
    /// Where all members may be reached, also those that we are not to be connected with.
    book: HashMap<NodeId, Vec<SocketAddr>>,
    connections: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// Set for a peer that we are to be connected with.
    dialer: Option<Dialer>,
    addresses: Vec<SocketAddr>,
    /// What the peer itself said last; it may know better than who told us.
    listen: Option<SocketAddr>,
    live: Option<Arc<Live>>,
}

#[derive(Debug)]
struct Dialer {
    wake: Arc<Notify>,
    task: Option<AbortHandle>,
}

/// What a dialer is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Dial(Vec<SocketAddr>),
    Wait,
}

/// A connection that has taken its place in the table.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) live: Arc<Live>,
    pub(super) outgoing: mpsc::UnboundedReceiver<(u8, Vec<u8>)>,
    /// The connection that had the place. Its end is to be reported first.
    pub(super) replaced: Option<Arc<Live>>,
}

impl Peers {
    pub(super) fn new(own: NodeId) -> Self {
        Self {
            own,
            entries: HashMap::new(),
            revoked: HashSet::new(),
            book: HashMap::new(),
            connections: 0,
        }
    }

    /// Replaces what is known of where members may be reached.
    pub(super) fn set_book(&mut self, book: HashMap<NodeId, Vec<SocketAddr>>) {
        self.book = book;
    }

    /// Whether datagrams of this node are listened to.
    pub(super) fn is_member(&self, node: NodeId) -> bool {
        let is_known = self.book.contains_key(&node)
            || self.entries.get(&node).is_some_and(|entry| entry.live.is_some());
        is_known && !self.revoked.contains(&node)
    }

    /// Replaces the list of peers to be connected with, and returns those that need a dialer.
    /// Connections with others stay, but are not made again.
    pub(super) fn set_known(&mut self, known: Vec<KnownPeer>) -> Vec<(NodeId, Arc<Notify>)> {
        let wanted: HashSet<NodeId> = known.iter().map(|peer| peer.node).collect();
        for (node, entry) in &mut self.entries {
            if !wanted.contains(node) {
                entry.stop_dialing();
            }
        }
        let mut new = Vec::new();
        for mut peer in known {
            if peer.node == self.own {
                continue;
            }
            let entry = self.entries.entry(peer.node).or_default();
            peer.addresses.truncate(MAX_ADDRESSES);
            let changed = entry.addresses != peer.addresses;
            entry.addresses = peer.addresses;
            match &entry.dialer {
                Some(dialer) if changed => dialer.wake.notify_one(),
                Some(_) => {}
                None => {
                    let wake = Arc::new(Notify::new());
                    entry.dialer = Some(Dialer { wake: Arc::clone(&wake), task: None });
                    new.push((peer.node, wake));
                }
            }
        }
        self.prune();
        new
    }

    /// Gives the peer's dialer its task, so that it ends with the peer.
    pub(super) fn set_dialer(&mut self, node: NodeId, task: AbortHandle) {
        match self.entries.get_mut(&node).and_then(|entry| entry.dialer.as_mut()) {
            Some(dialer) => dialer.task = Some(task),
            None => task.abort(),
        }
    }

    pub(super) fn plan(&self, node: NodeId) -> Plan {
        match self.entries.get(&node) {
            Some(entry) if entry.live.is_none() && !self.revoked.contains(&node) => {
                let addresses = entry.reachable_at();
                if addresses.is_empty() { Plan::Wait } else { Plan::Dial(addresses) }
            }
            _ => Plan::Wait,
        }
    }

    /// Where a peer can be reached; `None` for one that we know nothing of.
    pub(super) fn addresses(&self, node: NodeId) -> Option<Vec<SocketAddr>> {
        let book = self.book.get(&node);
        let Some(entry) = self.entries.get(&node) else {
            return book.map(|addresses| addresses.iter().take(MAX_ADDRESSES).copied().collect());
        };
        let mut addresses = entry.reachable_at();
        addresses.extend(book.into_iter().flatten().filter(|addr| !entry.is_at(**addr)));
        addresses.truncate(MAX_ADDRESSES);
        Some(addresses)
    }

    /// For greetings: addresses of peers other than `to`.
    pub(super) fn known_addresses(&self, to: NodeId) -> Vec<(NodeId, SocketAddr)> {
        let others = self.entries.iter().filter(|(node, _)| **node != to);
        let known = others
            .filter_map(|(node, entry)| Some((*node, entry.reachable_at().first().copied()?)));
        let book = self.book.iter().filter(|(node, _)| {
            **node != to && **node != self.own && !self.entries.contains_key(node)
        });
        let book = book.filter_map(|(node, addresses)| Some((*node, *addresses.first()?)));
        known.chain(book).take(MAX_KNOWN).collect()
    }

    pub(super) fn is_revoked(&self, node: NodeId) -> bool {
        self.revoked.contains(&node)
    }

    /// Replaces the set of revoked nodes, closes their connections, and returns them.
    pub(super) fn set_revoked(&mut self, revoked: HashSet<NodeId>) -> Vec<NodeId> {
        // Whoever is no longer revoked is dialed again at once.
        for node in self.revoked.difference(&revoked) {
            if let Some(dialer) = self.entries.get(node).and_then(|entry| entry.dialer.as_ref()) {
                dialer.wake.notify_one();
            }
        }
        self.revoked = revoked;
        let connected = self.entries.iter().filter(|(node, _)| self.revoked.contains(node));
        for (_, entry) in connected {
            entry.close("its membership was revoked");
        }
        self.revoked.iter().copied().collect()
    }

    pub(super) fn forget(&mut self, node: NodeId) {
        if let Some(entry) = self.entries.get_mut(&node) {
            entry.stop_dialing();
            entry.close("it was forgotten");
            entry.addresses.clear();
            entry.listen = None;
        }
        self.prune();
    }

    /// Takes a connection with `node` in, or says why it has to go. Both sides decide alike: a
    /// connection replaces an older one by the same dialer (who must have given that up), and of
    /// two by different dialers, the one that the lower id dialed stays.
    pub(super) fn register(
        &mut self,
        node: NodeId,
        dialed_by: NodeId,
        listen: Option<SocketAddr>,
    ) -> Result<Registered, Refusal> {
        if node == self.own {
            return Err(Refusal::SameIdentity);
        }
        if self.revoked.contains(&node) {
            return Err(Refusal::Revoked);
        }
        let entry = self.entries.entry(node).or_default();
        if let Some(old) = entry.live.as_ref().filter(|old| !old.is_closed())
            && old.dialed_by < dialed_by
        {
            return Err(Refusal::Duplicate);
        }
        self.connections += 1;
        let (queue, outgoing) = mpsc::unbounded_channel();
        let live = Arc::new(Live {
            connection: self.connections,
            dialed_by,
            queue,
            queued: AtomicUsize::new(0),
            reason: Mutex::new(None),
            closing: Notify::new(),
            ended: watch::channel(false).0,
        });
        entry.listen = listen.or(entry.listen);
        let replaced = entry.live.replace(Arc::clone(&live));
        if let Some(old) = &replaced {
            old.close("another connection with it took its place");
        }
        Ok(Registered { live, outgoing, replaced })
    }

    /// Takes an ended connection out, unless another has its place already.
    pub(super) fn unregister(&mut self, node: NodeId, connection: u64) {
        if let Some(entry) = self.entries.get_mut(&node)
            && entry.live.as_ref().is_some_and(|live| live.connection == connection)
        {
            entry.live = None;
            if let Some(dialer) = &entry.dialer {
                dialer.wake.notify_one();
            }
        }
        self.prune();
    }

    pub(super) fn live(&self, node: NodeId) -> Option<Arc<Live>> {
        self.entries.get(&node)?.live.clone()
    }

    /// Forgets whom we neither want nor have, so that the table is bounded by the known and the
    /// connected.
    fn prune(&mut self) {
        self.entries.retain(|_, entry| entry.dialer.is_some() || entry.live.is_some());
    }
}

impl Entry {
    fn reachable_at(&self) -> Vec<SocketAddr> {
        let mut addresses = self.addresses.clone();
        addresses.extend(self.listen.filter(|listen| !self.addresses.contains(listen)));
        addresses
    }

    fn is_at(&self, addr: SocketAddr) -> bool {
        self.addresses.contains(&addr) || self.listen == Some(addr)
    }

    fn stop_dialing(&mut self) {
        if let Some(task) = self.dialer.take().and_then(|dialer| dialer.task) {
            task.abort();
        }
    }

    fn close(&self, reason: &str) {
        if let Some(live) = &self.live {
            live.close(reason);
        }
    }
}

/// The part of a control connection that others see: its queue, and the way to end it.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) connection: u64,
    pub(super) dialed_by: NodeId,
    queue: mpsc::UnboundedSender<(u8, Vec<u8>)>,
    queued: AtomicUsize,
    reason: Mutex<Option<String>>,
    closing: Notify,
    ended: watch::Sender<bool>,
}

impl Live {
    /// Queues a frame. When the queue is full the connection closes, since a stream with a hole is
    /// of no use.
    pub(super) fn push(&self, kind: u8, frame: Vec<u8>) -> bool {
        let cost = frame.len() + QUEUED_FRAME_OVERHEAD;
        if self.queued.fetch_add(cost, Ordering::Relaxed) + cost > MAX_QUEUED_BYTES {
            self.close("it stalled: too much was waiting to be sent to it");
            return false;
        }
        !self.is_closed() && self.queue.send((kind, frame)).is_ok()
    }

    /// Says that a frame has left the queue and reached the socket.
    pub(super) fn sent(&self, frame: &[u8]) {
        self.queued.fetch_sub(frame.len() + QUEUED_FRAME_OVERHEAD, Ordering::Relaxed);
    }

    /// Ends the connection; the first reason counts.
    pub(super) fn close(&self, reason: &str) {
        lock(&self.reason).get_or_insert_with(|| reason.to_owned());
        self.closing.notify_one();
    }

    pub(super) fn is_closed(&self) -> bool {
        lock(&self.reason).is_some()
    }

    /// Why the connection was closed, once it is. Only the connection itself waits here.
    pub(super) async fn closed(&self) -> String {
        loop {
            if let Some(reason) = lock(&self.reason).clone() {
                return reason;
            }
            self.closing.notified().await;
        }
    }

    /// Says that the end has been reported.
    pub(super) fn end(&self) {
        self.ended.send_replace(true);
    }

    pub(super) async fn ended(&self) {
        // The sender is in `self`, so the channel stays open.
        let _ = self.ended.subscribe().wait_for(|ended| *ended).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: NodeId = NodeId([5; 16]);
    const LOW: NodeId = NodeId([1; 16]);
    const HIGH: NodeId = NodeId([9; 16]);

    #[test]
    fn of_two_connections_the_one_dialed_by_the_lower_id_stays_whichever_came_first() {
        for (peer, winner, loser) in [(HIGH, OWN, HIGH), (LOW, LOW, OWN)] {
            let mut peers = Peers::new(OWN);
            let first = peers.register(peer, loser, None).unwrap();
            let second = peers.register(peer, winner, None).unwrap();
            assert!(first.live.is_closed() && !second.live.is_closed());
            assert_eq!(peers.register(peer, loser, None).unwrap_err(), Refusal::Duplicate);
            assert_eq!(peers.live(peer).unwrap().connection, second.live.connection);
        }
    }

    #[test]
    fn a_second_connection_by_the_same_dialer_replaces_the_first() {
        let mut peers = Peers::new(OWN);
        let first = peers.register(LOW, LOW, None).unwrap();
        let second = peers.register(LOW, LOW, None).unwrap();
        assert_eq!(second.replaced.unwrap().connection, first.live.connection);
        peers.unregister(LOW, first.live.connection);
        assert!(peers.live(LOW).is_some());
    }

    #[test]
    fn a_connection_that_is_ending_keeps_nobody_out() {
        let mut peers = Peers::new(OWN);
        peers.register(LOW, LOW, None).unwrap().live.close("test");
        assert!(peers.register(LOW, OWN, None).is_ok());
    }

    #[test]
    fn a_copy_of_ourselves_is_refused() {
        let refused = Peers::new(OWN).register(OWN, OWN, None).unwrap_err();
        assert_eq!(refused, Refusal::SameIdentity);
    }

    #[test]
    fn a_peer_is_dialed_where_we_were_told_and_where_it_said_until_it_is_connected() {
        let (told, said) =
            (SocketAddr::from(([1, 1, 1, 1], 1)), SocketAddr::from(([2, 2, 2, 2], 2)));
        let mut peers = Peers::new(OWN);
        let known = |addresses| {
            vec![KnownPeer { node: LOW, addresses }, KnownPeer { node: OWN, addresses: vec![] }]
        };
        assert_eq!(peers.set_known(known(vec![])).len(), 1);
        assert_eq!(peers.plan(LOW), Plan::Wait);
        assert!(peers.set_known(known(vec![told])).is_empty());
        assert_eq!(peers.plan(LOW), Plan::Dial(vec![told]));
        let live = peers.register(LOW, LOW, Some(said)).unwrap().live;
        assert_eq!(peers.plan(LOW), Plan::Wait);
        peers.unregister(LOW, live.connection);
        assert_eq!(peers.plan(LOW), Plan::Dial(vec![told, said]));
        peers.set_revoked(HashSet::from([LOW]));
        assert_eq!(peers.plan(LOW), Plan::Wait);
        peers.forget(LOW);
        assert_eq!(peers.addresses(LOW), None);
    }

    #[test]
    fn a_queue_that_overflows_closes_the_connection_with_a_reason() {
        let mut peers = Peers::new(OWN);
        let registered = peers.register(LOW, LOW, None).unwrap();
        let live = registered.live;
        let frame = vec![0; 1 << 20];
        let fit = MAX_QUEUED_BYTES / frame.len() - 1;
        assert_eq!((0..fit + 2).filter(|_| live.push(3, frame.clone())).count(), fit);
        assert!(live.is_closed());
        assert!(!live.push(3, vec![1]));
    }
}
