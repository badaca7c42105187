//! Datagrams: small messages that may be lost, on the same port as connections. What is in them is membership's.
//!
//! They are sealed with a key that all members have from the cluster's facts, so whoever has it is believed to be who it says;
//! it is replaced when a member is revoked. Under it, each process of a sender has a key of its own, and counts. Everything that
//! does not fit is dropped, and counted. `docs/protocol.md` has the bytes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use consort_core::protocol::membership::MAX_DATAGRAM_BYTES;
use tokio::net::UdpSocket;

use super::identity::NodeId;
use super::{lock, random};

/// A secret that all members have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct GossipKey(pub [u8; 32]);

impl std::fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GossipKey(..)")
    }
}

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + 4 + 16 + 4 + 8 + 8;
const TAG_BYTES: usize = 16;

/// The longest datagram on the wire.
pub(super) const MAX_SEALED_BYTES: usize = HEADER_BYTES + MAX_DATAGRAM_BYTES + TAG_BYTES;

// With 48 bytes of IPv6 and UDP it passes wherever IPv6 does.
const _: () = assert!(MAX_SEALED_BYTES + 48 <= 1280);

/// After a datagram came from there, an address is good for so long, and for the time being better than a connection.
const HEARD_LATELY: Duration = Duration::from_secs(30);

/// How many datagrams were dropped, and why; and how many were not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// Given to the system.
    pub sent: u64,
    /// Opened and passed on.
    pub received: u64,
    /// Too short, too long, or of another version.
    pub malformed: u64,
    /// From somebody who is no member.
    pub stranger: u64,
    /// Sealed with a key that is not used any more, or not known yet.
    pub unknown_key: u64,
    /// Not sealed by who it says, or not for this node.
    pub forged: u64,
    /// Seen before, or older than what can be told from that.
    pub replayed: u64,
    /// This node was too busy.
    pub overflowed: u64,
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Malformed,
    Stranger,
    UnknownKey,
    Forged,
    Replayed,
}

/// The datagrams of a node: a socket, and what opens and seals.
#[derive(Debug)]
pub(super) struct Datagrams {
    /// None where the port is not to be had: then connections have to do.
    pub(super) socket: Option<UdpSocket>,
    vault: Mutex<Option<Vault>>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    received: AtomicU64,
    malformed: AtomicU64,
    stranger: AtomicU64,
    unknown_key: AtomicU64,
    forged: AtomicU64,
    replayed: AtomicU64,
    overflowed: AtomicU64,
}

impl Datagrams {
    pub(super) fn new(socket: Option<UdpSocket>) -> Self {
        Self { socket, vault: Mutex::new(None), counts: Counts::default() }
    }

    /// Begins to seal with the first key, and to open with all of them. `started` is higher than for all processes before.
    pub(super) fn set_keys(&self, own: NodeId, started: u32, keys: &[GossipKey]) {
        let mut vault = lock(&self.vault);
        match &mut *vault {
            Some(vault) => vault.set_keys(keys),
            None => *vault = Some(Vault::new(own, started, keys)),
        }
    }

    /// Whether datagrams came from a node lately, so that those to it need no other way.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        lock(&self.vault).as_ref().is_some_and(|vault| vault.heard_at(node).is_some())
    }

    /// Sends a datagram, if that is possible: to where the node was heard, or to one of `addresses`.
    pub(super) fn send(&self, to: NodeId, addresses: &[SocketAddr], message: &[u8]) {
        let Some(socket) = &self.socket else { return };
        let (sealed, address) = {
            let mut vault = lock(&self.vault);
            let Some(vault) = &mut *vault else { return };
            let fallback = || {
                let nth = vault.counter % addresses.len().max(1) as u64;
                addresses.get(usize::try_from(nth).unwrap_or(0)).copied()
            };
            let Some(address) = vault.heard_at(to).or_else(fallback) else { return };
            let Some(sealed) = vault.seal(to, message) else { return };
            (sealed, address)
        };
        // A datagram that the system does not take now is lost, as any may be.
        if socket.try_send_to(&sealed, address).is_ok() {
            self.counts.sent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Opens what arrived, or drops it.
    pub(super) fn open(
        &self,
        sealed: &[u8],
        from: SocketAddr,
        is_member: impl Fn(NodeId) -> bool,
    ) -> Option<(NodeId, Vec<u8>)> {
        let opened = match &mut *lock(&self.vault) {
            Some(vault) => vault.open(sealed, from, is_member),
            None => Err(Fault::UnknownKey),
        };
        let count = match &opened {
            Ok(_) => &self.counts.received,
            Err(Fault::Malformed) => &self.counts.malformed,
            Err(Fault::Stranger) => &self.counts.stranger,
            Err(Fault::UnknownKey) => &self.counts.unknown_key,
            Err(Fault::Forged) => &self.counts.forged,
            Err(Fault::Replayed) => &self.counts.replayed,
        };
        count.fetch_add(1, Ordering::Relaxed);
        opened.ok()
    }

    pub(super) fn on_overflow(&self) {
        self.counts.overflowed.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn counts(&self) -> DatagramCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        DatagramCounts {
            sent: read(&self.counts.sent),
            received: read(&self.counts.received),
            malformed: read(&self.counts.malformed),
            stranger: read(&self.counts.stranger),
            unknown_key: read(&self.counts.unknown_key),
            forged: read(&self.counts.forged),
            replayed: read(&self.counts.replayed),
            overflowed: read(&self.counts.overflowed),
        }
    }
}

/// Keys, counters and windows.
struct Vault {
    own: NodeId,
    started: u32,
    salt: [u8; 8],
    counter: u64,
    /// With the front of its name.
    keys: Vec<([u8; 4], GossipKey)>,
    sealing: Option<LessSafeKey>,
    /// Bounded by the members: nothing is kept for what was not opened.
    senders: HashMap<NodeId, Sender>,
}

/// A process that sends.
struct Sender {
    process: Process,
    opening: LessSafeKey,
    window: Window,
    address: SocketAddr,
    heard: Instant,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Process {
    key: [u8; 4],
    started: u32,
    salt: [u8; 8],
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl Vault {
    fn new(own: NodeId, started: u32, keys: &[GossipKey]) -> Self {
        let mut vault = Self {
            own,
            started,
            salt: random(),
            counter: 0,
            keys: Vec::new(),
            sealing: None,
            senders: HashMap::new(),
        };
        vault.set_keys(keys);
        vault
    }

    fn set_keys(&mut self, keys: &[GossipKey]) {
        let named: Vec<_> = keys.iter().map(|key| (name_of(key), *key)).collect();
        if named == self.keys {
            return;
        }
        self.sealing = keys.first().map(|key| process_key(key, self.own, self.started, &self.salt));
        self.keys = named;
        let keys = &self.keys;
        self.senders.retain(|_, sender| keys.iter().any(|(name, _)| *name == sender.process.key));
    }

    fn heard_at(&self, node: NodeId) -> Option<SocketAddr> {
        let sender = self.senders.get(&node)?;
        (sender.heard.elapsed() < HEARD_LATELY).then_some(sender.address)
    }

    fn seal(&mut self, to: NodeId, message: &[u8]) -> Option<Vec<u8>> {
        if MAX_DATAGRAM_BYTES < message.len() {
            return None;
        }
        let (key, (name, _)) = (self.sealing.as_ref()?, self.keys.first()?);
        self.counter += 1;
        let mut bytes = Vec::with_capacity(MAX_SEALED_BYTES);
        bytes.push(VERSION);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&self.own.0);
        bytes.extend_from_slice(&self.started.to_le_bytes());
        bytes.extend_from_slice(&self.salt);
        bytes.extend_from_slice(&self.counter.to_le_bytes());
        let aad = Aad::from(associated(&bytes, to));
        let mut body = message.to_vec();
        let tag = key.seal_in_place_separate_tag(nonce(self.counter), aad, &mut body).ok()?;
        bytes.extend_from_slice(&body);
        bytes.extend_from_slice(tag.as_ref());
        Some(bytes)
    }

    fn open(
        &mut self,
        sealed: &[u8],
        from: SocketAddr,
        is_member: impl Fn(NodeId) -> bool,
    ) -> Result<(NodeId, Vec<u8>), Fault> {
        if MAX_SEALED_BYTES < sealed.len() {
            return Err(Fault::Malformed);
        }
        let (header, body) = sealed.split_first_chunk::<HEADER_BYTES>().ok_or(Fault::Malformed)?;
        if header[0] != VERSION || body.len() < TAG_BYTES {
            return Err(Fault::Malformed);
        }
        let field = |at: usize| &header[at..];
        let key = *field(1).first_chunk().ok_or(Fault::Malformed)?;
        let node = NodeId(*field(5).first_chunk().ok_or(Fault::Malformed)?);
        let started = u32::from_le_bytes(*field(21).first_chunk().ok_or(Fault::Malformed)?);
        let salt = *field(25).first_chunk().ok_or(Fault::Malformed)?;
        let counter = u64::from_le_bytes(*field(33).first_chunk().ok_or(Fault::Malformed)?);
        if node == self.own || !is_member(node) {
            return Err(Fault::Stranger);
        }
        let process = Process { key, started, salt };
        let known = self.senders.get(&node);
        // Of a process before the one that was heard of last, only replays can come.
        if known.is_some_and(|known| started < known.process.started) {
            return Err(Fault::Replayed);
        }
        let current = known.filter(|known| known.process == process);
        if current.is_some_and(|current| !current.window.takes(counter)) {
            return Err(Fault::Replayed);
        }
        let derived = match current {
            Some(_) => None,
            None => {
                let key = self.keys.iter().find(|(name, _)| *name == key);
                let (_, key) = key.ok_or(Fault::UnknownKey)?;
                Some(process_key(key, node, started, &salt))
            }
        };
        let opening = derived.as_ref().or(current.map(|current| &current.opening));
        let opening = opening.ok_or(Fault::UnknownKey)?;
        let mut message = body.to_vec();
        let aad = Aad::from(associated(header, self.own));
        let length = opening
            .open_in_place(nonce(counter), aad, &mut message)
            .map_err(|_| Fault::Forged)?
            .len();
        message.truncate(length);
        let now = Instant::now();
        if let Some(opening) = derived {
            let window = Window::default();
            let sender = Sender { process, opening, window, address: from, heard: now };
            self.senders.insert(node, sender);
        }
        if let Some(sender) = self.senders.get_mut(&node) {
            sender.window.take(counter);
            (sender.address, sender.heard) = (from, now);
        }
        Ok((node, message))
    }
}

/// Which counters were seen: all up to `highest`, as far as bits go back.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    highest: u64,
    /// Bit n: `highest - n` was seen.
    seen: u128,
}

impl Window {
    fn takes(&self, counter: u64) -> bool {
        match self.highest.checked_sub(counter) {
            None => true,
            Some(back) => back < 128 && self.seen & (1 << back) == 0 && counter != 0,
        }
    }

    fn take(&mut self, counter: u64) {
        match counter.checked_sub(self.highest) {
            Some(ahead @ 1..) => {
                self.seen = if ahead < 128 { self.seen << ahead | 1 } else { 1 };
                self.highest = counter;
            }
            _ => {
                let back = u32::try_from(self.highest - counter).unwrap_or(u32::MAX);
                self.seen |= 1u128.checked_shl(back).unwrap_or(0);
            }
        }
    }
}

/// What is authenticated beside the message: the header, and for whom it is.
fn associated(header: &[u8], to: NodeId) -> [u8; HEADER_BYTES + 16] {
    let mut bytes = [0; HEADER_BYTES + 16];
    bytes[..HEADER_BYTES].copy_from_slice(header);
    bytes[HEADER_BYTES..].copy_from_slice(&to.0);
    bytes
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[..8].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

fn name_of(key: &GossipKey) -> [u8; 4] {
    let name = blake3::derive_key("consort 2026 name of a gossip key", &key.0);
    *name.first_chunk().expect("a key has 32 bytes")
}

/// The key of one process: two never count under the same one.
fn process_key(key: &GossipKey, node: NodeId, started: u32, salt: &[u8; 8]) -> LessSafeKey {
    let mut hasher = blake3::Hasher::new_derive_key("consort 2026 datagrams of one process");
    hasher.update(&key.0).update(&node.0).update(&started.to_le_bytes()).update(salt);
    let key = UnboundKey::new(&AES_256_GCM, hasher.finalize().as_bytes());
    LessSafeKey::new(key.expect("a hash has the length of a key"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);
    const OLD: GossipKey = GossipKey([3; 32]);
    const NEW: GossipKey = GossipKey([4; 32]);

    fn from() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 9))
    }

    fn open(vault: &mut Vault, sealed: &[u8]) -> Result<(NodeId, Vec<u8>), Fault> {
        vault.open(sealed, from(), |node| node == A)
    }

    #[test]
    fn what_is_sealed_is_opened_by_whom_it_is_for_and_once() {
        let (mut a, mut b) = (Vault::new(A, 1, &[NEW]), Vault::new(B, 1, &[NEW]));
        let sealed = a.seal(B, b"hello").unwrap();
        assert_eq!(open(&mut b, &sealed), Ok((A, b"hello".to_vec())));
        assert_eq!(open(&mut b, &sealed), Err(Fault::Replayed));
        assert_eq!(b.heard_at(A), Some(from()));
        let other = a.seal(NodeId([9; 16]), b"hello").unwrap();
        assert_eq!(open(&mut b, &other), Err(Fault::Forged));
        assert_eq!(a.seal(B, &[0; MAX_DATAGRAM_BYTES + 1]), None);
        let longest = a.seal(B, &[0; MAX_DATAGRAM_BYTES]).unwrap();
        assert_eq!(longest.len(), MAX_SEALED_BYTES);
        assert!(open(&mut b, &longest).is_ok());
    }

    #[test]
    fn datagrams_that_overtake_each_other_are_taken_within_the_window() {
        let (mut a, mut b) = (Vault::new(A, 1, &[NEW]), Vault::new(B, 1, &[NEW]));
        let sealed: Vec<_> = (0..300).map(|_| a.seal(B, b"x").unwrap()).collect();
        assert!(open(&mut b, &sealed[200]).is_ok());
        assert!(open(&mut b, &sealed[100]).is_ok());
        assert_eq!(open(&mut b, &sealed[100]), Err(Fault::Replayed));
        assert_eq!(open(&mut b, &sealed[72]), Err(Fault::Replayed));
        assert!(open(&mut b, &sealed[73]).is_ok());
        assert!(open(&mut b, &sealed[299]).is_ok());
    }

    #[test]
    fn a_new_process_replaces_the_old_one_which_is_not_heard_again() {
        let mut b = Vault::new(B, 1, &[NEW]);
        let (mut first, mut second) = (Vault::new(A, 1, &[NEW]), Vault::new(A, 2, &[NEW]));
        assert!(open(&mut b, &first.seal(B, b"x").unwrap()).is_ok());
        assert!(open(&mut b, &second.seal(B, b"x").unwrap()).is_ok());
        assert_eq!(open(&mut b, &first.seal(B, b"x").unwrap()), Err(Fault::Replayed));
        assert_eq!(b.senders.len(), 1);
    }

    #[test]
    fn a_key_that_was_replaced_is_good_as_long_as_it_is_accepted() {
        let mut old = Vault::new(A, 1, &[OLD]);
        let mut b = Vault::new(B, 1, &[NEW, OLD]);
        assert!(open(&mut b, &old.seal(B, b"x").unwrap()).is_ok());
        b.set_keys(&[NEW]);
        assert_eq!(open(&mut b, &old.seal(B, b"x").unwrap()), Err(Fault::UnknownKey));
        old.set_keys(&[NEW, OLD]);
        assert!(open(&mut b, &old.seal(B, b"x").unwrap()).is_ok());
    }

    #[test]
    fn who_is_no_member_is_not_listened_to() {
        let (mut a, mut b) = (Vault::new(A, 1, &[NEW]), Vault::new(B, 1, &[NEW]));
        let sealed = a.seal(B, b"x").unwrap();
        assert_eq!(b.open(&sealed, from(), |_| false), Err(Fault::Stranger));
        assert!(b.senders.is_empty());
    }

    proptest! {
        #[test]
        fn a_datagram_that_was_changed_or_cut_is_dropped(
            at: prop::sample::Index,
            bits in 1u8..,
            length: prop::sample::Index,
        ) {
            let (mut a, mut b) = (Vault::new(A, 1, &[NEW]), Vault::new(B, 1, &[NEW]));
            let sealed = a.seal(B, b"some message").unwrap();
            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= bits;
            prop_assert!(open(&mut b, &changed).is_err());
            prop_assert!(open(&mut b, &sealed[..length.index(sealed.len())]).is_err());
            prop_assert!(b.senders.is_empty());
            prop_assert!(open(&mut b, &sealed).is_ok());
        }

        #[test]
        fn garbage_is_dropped(bytes: Vec<u8>) {
            let mut b = Vault::new(B, 1, &[NEW]);
            prop_assert!(b.open(&bytes, from(), |_| true).is_err());
            let versioned = [&[VERSION][..], &name_of(&NEW), &bytes].concat();
            prop_assert!(b.open(&versioned, from(), |_| true).is_err());
            prop_assert!(b.senders.is_empty());
        }

        /// Against a set of what was seen.
        #[test]
        fn the_window_takes_each_counter_once(counters in prop::collection::vec(1u64..400, 0..400)) {
            let (mut window, mut seen) = (Window::default(), HashSet::new());
            for counter in counters {
                let is_old = window.highest.saturating_sub(counter) >= 128;
                prop_assert_eq!(window.takes(counter), !is_old && !seen.contains(&counter));
                if window.takes(counter) {
                    window.take(counter);
                    seen.insert(counter);
                }
            }
        }
    }
}
