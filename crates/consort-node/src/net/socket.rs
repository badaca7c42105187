//! The sockets of this process: counted, bounded in number, and closable from outside whoever is
//! using them. Encryption is above, in [`super::tls`].

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsStream;

use super::identity::NodeId;
use super::lock;

/// The most connections at a time, of all kinds and in both directions. A node keeps a few links
/// and a few content connections to each; half of the usual limit on open files remains for files.
pub const MAX_CONNECTIONS: usize = 512;

/// The most content connections that a peer may open at a time: it needs one, and may not have noticed yet that an
/// earlier one has ended. So no member can take all connections, or all memory for answers, from the others.
pub const MAX_CONNECTIONS_PER_PEER: usize = 16;

/// What a connection reads from the system at a time: a few TLS records. It is kept for as long as the connection.
const READ_AHEAD_BYTES: usize = 64 << 10;

const _: () = assert!(8 * MAX_CONNECTIONS_PER_PEER <= MAX_CONNECTIONS);

/// An encrypted connection.
pub type Stream = TlsStream<Tap>;

/// Bytes on the wire, below encryption, since the network was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes given to the system to send.
    pub sent: u64,
    /// Bytes received from the system.
    pub received: u64,
}

/// All sockets of one network.
#[derive(Debug)]
pub(super) struct Sockets {
    counters: Arc<Counters>,
    open: Mutex<Vec<Weak<Socket>>>,
    permits: Arc<Semaphore>,
}

#[derive(Debug, Default)]
struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Sockets {
    pub(super) fn new() -> Self {
        Self {
            counters: Arc::default(),
            open: Mutex::default(),
            permits: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        }
    }

    /// Takes a socket in, or drops it (`None`) when there are too many.
    pub(super) fn adopt(&self, tcp: TcpStream) -> Option<Tap> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        // Frames are flushed when they are complete; waiting for more would only delay them. A
        // socket that refuses the option is one that is closed already, which the first read tells.
        let _ = tcp.set_nodelay(true);
        let counters = Arc::clone(&self.counters);
        let socket = Arc::new(Socket { tcp, counters, node: OnceLock::new(), _permit: permit });
        let mut open = lock(&self.open);
        open.retain(|socket| socket.strong_count() > 0);
        open.push(Arc::downgrade(&socket));
        Some(Tap { socket, ahead: Vec::new(), filled: 0, taken: 0 })
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.counters.sent.load(Ordering::Relaxed),
            received: self.counters.received.load(Ordering::Relaxed),
        }
    }

    /// How many connections with a peer there are.
    pub(super) fn count(&self, node: NodeId) -> usize {
        let open = lock(&self.open);
        let open = open.iter().filter_map(Weak::upgrade);
        open.filter(|socket| socket.node.get() == Some(&node)).count()
    }

    /// Ends all connections with a peer.
    pub(super) fn close(&self, node: NodeId) {
        self.close_where(|socket| socket.node.get() == Some(&node));
    }

    pub(super) fn close_all(&self) {
        self.close_where(|_| true);
    }

    fn close_where(&self, condition: impl Fn(&Socket) -> bool) {
        for socket in lock(&self.open).iter().filter_map(Weak::upgrade).filter(|s| condition(s)) {
            // Fails only for a connection that has ended.
            let _ = rustix::net::shutdown(&socket.tcp, rustix::net::Shutdown::Both);
        }
    }
}

/// Where a peer can be reached that says it listens on `claimed`, and was seen at `seen`.
pub(super) fn reachable(claimed: SocketAddr, seen: IpAddr) -> SocketAddr {
    let ip = if claimed.ip().is_unspecified() { seen.to_canonical() } else { claimed.ip() };
    SocketAddr::new(ip, claimed.port())
}

#[derive(Debug)]
struct Socket {
    tcp: TcpStream,
    counters: Arc<Counters>,
    node: OnceLock<NodeId>,
    _permit: OwnedSemaphorePermit,
}

/// A TCP connection that counts the bytes that pass. It reads ahead: encryption asks for a few kilobytes at a time.
#[derive(Debug)]
pub struct Tap {
    socket: Arc<Socket>,
    /// Made when something is read first.
    ahead: Vec<u8>,
    /// How much of it was read, and how much of that was asked for.
    filled: usize,
    taken: usize,
}

impl Tap {
    /// Says whose connection this is, now that it is known.
    pub(super) fn belongs_to(&self, node: NodeId) {
        self.socket.node.get_or_init(|| node);
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.tcp.poll_write_ready(cx))?;
            match write(&self.socket.tcp) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(written) => {
                    self.socket.counters.sent.fetch_add(written as u64, Ordering::Relaxed);
                    return Poll::Ready(Ok(written));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { socket, ahead, filled, taken } = &mut *self;
        if filled == taken {
            ahead.resize(READ_AHEAD_BYTES, 0);
            let read = loop {
                ready!(socket.tcp.poll_read_ready(cx))?;
                match socket.tcp.try_read(ahead) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read?,
                }
            };
            socket.counters.received.fetch_add(read as u64, Ordering::Relaxed);
            (*filled, *taken) = (read, 0);
        }
        let end = (*filled).min(*taken + buf.remaining());
        buf.put_slice(&ahead[*taken..end]);
        *taken = end;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tap {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp| tcp.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp| tcp.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(rustix::net::shutdown(&self.socket.tcp, rustix::net::Shutdown::Write)?))
    }
}
