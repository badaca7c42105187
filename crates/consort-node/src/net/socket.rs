//! The sockets of this process: counted, bounded in number and in speed, and closable from outside whoever is
//! using them. Encryption is above, in [`super::tls`]; how a limit of speed is kept is in `pace.rs`.

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
use super::pace::{Lane, Limits, Pacer, Place};

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
    shared: Arc<Shared>,
    open: Mutex<Vec<Weak<Socket>>>,
    permits: Arc<Semaphore>,
}

/// What all sockets have together.
#[derive(Debug)]
struct Shared {
    sent: AtomicU64,
    received: AtomicU64,
    up: Pacer,
    down: Pacer,
}

impl Sockets {
    pub(super) fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                sent: AtomicU64::new(0),
                received: AtomicU64::new(0),
                up: Pacer::new(),
                down: Pacer::new(),
            }),
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
        let shared = Arc::clone(&self.shared);
        let socket = Arc::new(Socket { tcp, shared, node: OnceLock::new(), _permit: permit });
        let mut open = lock(&self.open);
        open.retain(|socket| socket.strong_count() > 0);
        open.push(Arc::downgrade(&socket));
        Some(Tap {
            socket,
            lane: Lane::Control,
            place_to_write: Place::default(),
            place_to_read: Place::default(),
            ahead: Vec::new(),
            filled: 0,
            taken: 0,
        })
    }

    pub(super) fn limits(&self) -> Limits {
        Limits { up: self.shared.up.limit(), down: self.shared.down.limit() }
    }

    pub(super) fn set_limits(&self, limits: Limits) {
        self.shared.up.set(limits.up);
        self.shared.down.set(limits.down);
    }

    /// Has to run for as long as there are limits.
    pub(super) async fn keep_limits(&self) {
        tokio::select! {
            never = self.shared.up.keep() => match never {},
            never = self.shared.down.keep() => match never {},
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        Traffic {
            sent: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
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

    /// Ends all connections. Whoever waits to use one goes on, and finds that out.
    pub(super) fn close_all(&self) {
        self.close_where(|_| true);
        self.set_limits(Limits::default());
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
    shared: Arc<Shared>,
    node: OnceLock<NodeId>,
    _permit: OwnedSemaphorePermit,
}

/// A TCP connection that counts the bytes that pass, and lets them pass no faster than they may. It reads ahead:
/// encryption asks for a few kilobytes at a time.
#[derive(Debug)]
pub struct Tap {
    socket: Arc<Socket>,
    lane: Lane,
    place_to_write: Place,
    place_to_read: Place,
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

    /// Says that contents pass here from now on, which wait for one another when there is a limit. Before, and on
    /// all other connections, only what control itself used up is waited for.
    pub(super) fn carries_content(&mut self) {
        self.lane = Lane::Content;
    }

    /// Writes with a function that is told how many bytes that may be.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        write: impl Fn(&TcpStream, usize) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let Socket { tcp, shared, .. } = &*self.socket;
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            let place = &mut self.place_to_write;
            match ready!(shared.up.poll_pass(self.lane, place, cx, |most| write(tcp, most))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(written) => {
                    shared.sent.fetch_add(written as u64, Ordering::Relaxed);
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
        let Self { socket, lane, place_to_read, ahead, filled, taken, .. } = &mut *self;
        let Socket { tcp, shared, .. } = &**socket;
        if filled == taken {
            ahead.resize(READ_AHEAD_BYTES, 0);
            let mut read = |most| {
                let most = ahead.len().min(most);
                tcp.try_read(&mut ahead[..most])
            };
            let read = loop {
                ready!(tcp.poll_read_ready(cx))?;
                match ready!(shared.down.poll_pass(*lane, place_to_read, cx, &mut read)) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => break read?,
                }
            };
            shared.received.fetch_add(read as u64, Ordering::Relaxed);
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
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp, most| tcp.try_write(&buf[..buf.len().min(most)]))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(cx, |tcp, most| match within(bufs, most) {
            Ok(bufs) => tcp.try_write_vectored(bufs),
            Err(buf) => tcp.try_write(buf),
        })
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

/// The first of `bufs`, as many as have at most so many bytes together; or so many bytes of the first, if that one alone
/// has more.
fn within<'a, 'b>(bufs: &'b [IoSlice<'a>], most: usize) -> Result<&'b [IoSlice<'a>], &'b [u8]> {
    let mut bytes = 0usize;
    let fitting = bufs.iter().take_while(|buf| {
        bytes = bytes.saturating_add(buf.len());
        bytes <= most
    });
    let number = fitting.count();
    match bufs.first() {
        Some(first) if number == 0 => Err(&first[..most]),
        _ => Ok(&bufs[..number]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written_at_a_time_is_whole_buffers_or_a_part_of_one() {
        let bufs = [&[1; 3][..], &[], &[2; 4]].map(IoSlice::new);
        let lengths = |most| {
            let within = within(&bufs, most);
            within.map(|bufs| bufs.iter().map(|buf| buf.len()).collect()).map_err(<[u8]>::len)
        };
        assert_eq!(lengths(usize::MAX), Ok(vec![3, 0, 4]));
        assert_eq!(lengths(7), Ok(vec![3, 0, 4]));
        assert_eq!(lengths(6), Ok(vec![3, 0]));
        assert_eq!(lengths(2), Err(2));
        assert!(within(&[], 5).is_ok_and(<[_]>::is_empty));
    }
}
