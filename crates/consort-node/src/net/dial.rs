//! Making connections to others: one task for each known peer that keeps a control connection to
//! it, and content connections on demand.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsConnector, TlsStream};

use super::connection::{Established, GreetError, Handshaken};
use super::frame::FrameError;
use super::identity::{NodeId, PeerIdentity};
use super::network::{HANDSHAKE_TIMEOUT, Refusal, Shared};
use super::peers::Plan;
use super::socket::Stream;
use super::{lock, random, tls};

/// The wait before a peer is dialed again; it doubles with every failure.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// The longest wait between two attempts. A connection that lasted longer than this was a good one.
const LAST_BACKOFF: Duration = Duration::from_secs(15);

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// There is no connection to be had at the address, or it broke.
    #[error("cannot connect: {0}")]
    Unreachable(#[from] io::Error),
    /// The handshake took too long.
    #[error("it did not answer within {HANDSHAKE_TIMEOUT:?}")]
    TimedOut,
    /// Who answered is not a member of our cluster, or does not take us for one.
    #[error("the handshake failed: {0}")]
    Handshake(io::Error),
    /// Another member answered; the address is out of date.
    #[error("node {found} answered there")]
    AnotherNode {
        /// Who answered.
        found: NodeId,
    },
    /// The peer, or we, do not want the connection.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl DialError {
    fn is_rejection(&self) -> bool {
        matches!(self, Self::Handshake(error) if tls::is_rejection(error))
    }
}

/// Keeps one control connection to `node`, until it is aborted.
pub(super) async fn keep(shared: Arc<Shared>, node: NodeId, wake: Arc<Notify>) {
    let mut failures = 0;
    let mut connected_at: Option<Instant> = None;
    loop {
        let Plan::Dial(addresses) = lock(&shared.peers).plan(node) else {
            wake.notified().await;
            continue;
        };
        if connected_at.take().is_some_and(|since| since.elapsed() > LAST_BACKOFF) {
            failures = 0;
        }
        if failures > 0 {
            tokio::select! {
                () = sleep(backoff(failures)) => {}
                () = wake.notified() => {}
            }
            if !matches!(lock(&shared.peers).plan(node), Plan::Dial(_)) {
                continue;
            }
        }
        failures += 1;
        for address in addresses {
            match control(&shared, node, address).await {
                Ok(established) => {
                    connected_at = Some(Instant::now());
                    shared.spawn(established.run(Arc::clone(&shared)));
                    break;
                }
                Err(DialError::Refused(reason)) => {
                    shared.refused_by(address, node, reason);
                    if reason == Refusal::Duplicate {
                        break;
                    }
                }
                Err(error) => {
                    if error.is_rejection() {
                        shared.refused_by(address, node, Refusal::Handshake);
                    } else {
                        shared.unreachable(node, address, error.to_string());
                    }
                }
            }
        }
    }
}

/// A content connection to `node`.
pub(super) async fn content(
    shared: &Shared,
    node: NodeId,
    address: SocketAddr,
) -> Result<Stream, DialError> {
    on_demand(shared, node, address, &shared.content).await
}

/// A connection to ask `node` for the end of the own membership.
pub(super) async fn leave(
    shared: &Shared,
    node: NodeId,
    address: SocketAddr,
) -> Result<Stream, DialError> {
    on_demand(shared, node, address, &shared.leave).await
}

async fn on_demand(
    shared: &Shared,
    node: NodeId,
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<Stream, DialError> {
    let handshake = connect(shared, node, address, config);
    let (stream, _) =
        timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(DialError::TimedOut))?;
    Ok(stream)
}

async fn control(
    shared: &Shared,
    node: NodeId,
    address: SocketAddr,
) -> Result<Established, DialError> {
    let handshake = async {
        let (stream, peer) = connect(shared, node, address, &shared.control).await?;
        match Handshaken::new(stream, peer, address).greet_first(shared).await {
            Ok(established) => Ok(established),
            Err(GreetError::Refused(refusal)) => Err(refusal.into()),
            Err(GreetError::Lost(FrameError::Io(error))) => Err(DialError::Handshake(error)),
            Err(GreetError::Lost(error)) => Err(DialError::Handshake(io::Error::other(error))),
        }
    };
    timeout(HANDSHAKE_TIMEOUT, handshake).await.unwrap_or(Err(DialError::TimedOut))
}

/// Nothing is sent before it is certain that it is `node` who answers.
async fn connect(
    shared: &Shared,
    node: NodeId,
    address: SocketAddr,
    config: &Arc<ClientConfig>,
) -> Result<(Stream, PeerIdentity), DialError> {
    if lock(&shared.peers).is_revoked(node) {
        return Err(Refusal::Revoked.into());
    }
    let tcp = TcpStream::connect(address).await?;
    let tap = shared.sockets.adopt(tcp).ok_or(Refusal::TooManyConnections)?;
    tap.belongs_to(node);
    let connector = TlsConnector::from(Arc::clone(config));
    let stream = connector.connect(tls::server_name(), tap).await.map_err(DialError::Handshake)?;
    match tls::peer(stream.get_ref().1) {
        Some(peer) if peer.node == node => Ok((TlsStream::Client(stream), peer)),
        Some(peer) => Err(DialError::AnotherNode { found: peer.node }),
        None => Err(Refusal::Malformed.into()),
    }
}

/// Between half and all of the doubled wait, so that nodes that lost the same peer do not return in
/// step.
fn backoff(failures: u32) -> Duration {
    let full = FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(16)).min(LAST_BACKOFF);
    let [jitter] = random::<1>();
    full / 2 + full / 2 * u32::from(jitter) / 255
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        for (failures, full) in [(1, 100), (2, 200), (5, 1600), (9, 15_000), (u32::MAX, 15_000)] {
            let wait = backoff(failures).as_millis();
            assert!((full / 2..=full).contains(&wait), "{failures}: {wait}");
        }
    }
}
