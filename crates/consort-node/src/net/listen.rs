//! Taking connections from others. A connection costs little until it has proved whose it is:
//! handshakes are bounded in number and in time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsStream};

use super::connection::{GreetError, Handshaken};
use super::identity::PeerIdentity;
use super::network::{ContentConnection, HANDSHAKE_TIMEOUT, Refusal, Shared};
use super::socket::{MAX_CONNECTIONS_PER_PEER, Stream, Tap};
use super::tls::{self, AcceptError, Accepted, Protocol};
use super::{join, leave, lock};

/// The most connections that have not proved yet whose they are. Each costs about 40 KiB; further
/// ones wait in the system's queue.
pub const MAX_HANDSHAKES: usize = 64;

/// The wait after the system could not give us a connection, which mostly means that there are too
/// many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the conversation with who joins or leaves may take; it includes a write to the disk.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Takes connections until it is aborted.
pub(super) async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let permit = Arc::clone(&handshakes).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        match listener.accept().await {
            Ok((tcp, addr)) => accept(&shared, tcp, addr, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn accept(shared: &Arc<Shared>, tcp: TcpStream, addr: SocketAddr, permit: OwnedSemaphorePermit) {
    match shared.sockets.adopt(tcp) {
        Some(tap) => shared.spawn(serve(Arc::clone(shared), tap, addr, permit)),
        None => shared.refused(addr, None, Refusal::TooManyConnections),
    }
}

async fn serve(shared: Arc<Shared>, tap: Tap, addr: SocketAddr, permit: OwnedSemaphorePermit) {
    let acceptor = TlsAcceptor::from(Arc::clone(&shared.server));
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(tap)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "a handshake failed");
            // Who went away in the middle of it, as one that stops does, said nothing about who it is.
            if tls::is_rejection(&error) {
                shared.refused(addr, None, Refusal::Handshake);
            }
            return;
        }
        Err(_) => return shared.refused(addr, None, Refusal::Handshake),
    };
    let accepted = tls::accepted(stream.get_ref().1);
    let stream = TlsStream::Server(stream);
    match accepted {
        Ok(Accepted::Joiner) => {
            let served = timeout(JOIN_TIMEOUT, join::serve(shared.join.clone(), stream, addr.ip()));
            if let Ok(Err(error)) = served.await {
                tracing::debug!(%addr, %error, "a joiner was lost");
            }
        }
        Ok(Accepted::Member(protocol, peer)) => match protocol {
            // It does not belong to the member: what does ends together with its membership. It is served although it
            // was revoked: it may have lost the answer.
            Protocol::Leave => {
                let served = timeout(JOIN_TIMEOUT, leave::serve(&shared, stream, peer.node));
                if let Ok(Err(error)) = served.await {
                    tracing::debug!(%addr, %error, "a member that leaves was lost");
                }
            }
            Protocol::Content => content(&shared, stream, peer, addr),
            Protocol::Control | Protocol::Join => {
                control(shared, stream, peer, addr, permit).await;
            }
        },
        Err(AcceptError::NoCertificate) => shared.refused(addr, None, Refusal::NoCertificate),
        Err(AcceptError::NoProtocol | AcceptError::NotAMember) => {
            shared.refused(addr, None, Refusal::Malformed);
        }
    }
}

async fn control(
    shared: Arc<Shared>,
    stream: Stream,
    peer: PeerIdentity,
    addr: SocketAddr,
    permit: OwnedSemaphorePermit,
) {
    stream.get_ref().0.belongs_to(peer.node);
    let greeting = Handshaken::new(stream, peer.clone(), addr);
    match timeout(HANDSHAKE_TIMEOUT, greeting.greet_second(&shared)).await {
        Ok(Ok(established)) => {
            drop(permit);
            established.run(Arc::clone(&shared)).await;
        }
        Ok(Err(GreetError::Refused(reason))) => shared.refused(addr, Some(peer), reason),
        Ok(Err(GreetError::Lost(error))) => {
            tracing::debug!(peer = %peer.node.short(), %error, "a connection was lost while greeting");
        }
        Err(_) => shared.refused(addr, Some(peer), Refusal::Handshake),
    }
}

fn content(shared: &Arc<Shared>, stream: Stream, peer: PeerIdentity, addr: SocketAddr) {
    stream.get_ref().0.belongs_to(peer.node);
    if lock(&shared.peers).is_revoked(peer.node) {
        return shared.refused(addr, Some(peer), Refusal::Revoked);
    }
    if MAX_CONNECTIONS_PER_PEER < shared.sockets.count(peer.node) {
        return shared.refused(addr, Some(peer), Refusal::TooManyConnections);
    }
    (shared.on_content)(peer, ContentConnection::new(stream));
}
