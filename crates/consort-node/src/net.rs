//! Everything between this process and others: who a node is, how a machine becomes a member, and
//! connections that carry frames of opaque bytes. Nothing here knows a dataset, a store or the
//! protocol core.
//!
//! In reading order: [`identity`] (keys, certificates, roles), [`ticket`] and [`invites`] (what
//! lets a machine in), [`mod@join`] (how it comes in), [`leave`] (how it goes), [`tls`] (what is checked before a byte is
//! believed), [`frame`] (how bytes are cut into frames), `datagram` (small messages beside
//! connections), [`network`] (at most one control connection to each peer, content connections
//! on demand), and beneath all of them [`socket`] with `pace` (what passes: counted, and no faster than it may).
//!
//! One port serves all these conversations; which one a connection is for is agreed inside the TLS
//! handshake.
//!
//! ```text
//!   consort-join/1      no client certificate; the joiner checks the server by its ticket
//!   consort-control/1   mutual TLS; greeting, then frames both ways and pings
//!   consort-content/1   mutual TLS; frames both ways, nothing of our own
//!   consort-leave/1     mutual TLS; a member asks an admin to end its membership
//! ```

mod certificate;
mod connection;
mod datagram;
mod dial;
mod durable;
mod greeting;
mod listen;
mod pace;
mod peers;
mod wire;

pub mod frame;
pub mod identity;
pub mod invites;
pub mod join;
pub mod leave;
pub mod network;
pub mod socket;
pub mod ticket;
pub mod tls;

pub(crate) use certificate::issued_to;
pub use datagram::{DatagramCounts, GossipKey};
pub use identity::{Identity, IdentityError, NodeId, PeerIdentity, Role};
pub use invites::Invites;
pub use join::{JoinDesk, JoinError, JoinRefusal, Joined, Joiner, join};
pub use leave::{LeaveAnswer, LeaveRefusal};
pub use network::{
    ContentConnection, DialError, KnownPeer, NetEvent, Network, NetworkConfig, OpenError, Refusal,
    SendError, StartError,
};
pub use pace::{Limits, Rate};
pub use socket::Traffic;
pub use ticket::Ticket;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Seconds since 1970 by this machine's clock; only for expiry dates, never for order.
fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Random bytes for secrets and jitter.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .expect("the system's random source answers once it is seeded");
    bytes
}

/// A random number, to seed what needs no secrets.
pub(crate) fn random_u64() -> u64 {
    u64::from_le_bytes(random())
}

/// Locks a mutex whose holders only assign and cannot leave anything half done, so that poison
/// means nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
