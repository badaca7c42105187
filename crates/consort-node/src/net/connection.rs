//! One control connection, from the greeting to its end. Which connections there are is decided in
//! `peers.rs`; who makes them is in `dial.rs` and `listen.rs`.
//!
//! The kind of a frame is its last byte, so that it comes off without moving the rest.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::frame::{FrameError, FrameReader, FrameWriter, MAX_CONTROL_FRAME_BYTES};
use super::greeting::{Greeting, GreetingError};
use super::identity::{NodeId, PeerIdentity};
use super::lock;
use super::network::{NetEvent, Refusal, Shared};
use super::peers::{Live, Registered};
use super::socket::{Stream, reachable};

/// How long we say nothing before we say that we are still there.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a peer may say nothing. Three pings, so that one that is late does no harm.
const SILENCE_LIMIT: Duration = Duration::from_secs(15);

const _: () = assert!(SILENCE_LIMIT.as_secs() >= 3 * PING_INTERVAL.as_secs());

pub(super) mod kind {
    pub(in super::super) const GREETING: u8 = 1;
    pub(in super::super) const REFUSAL: u8 = 2;
    pub(in super::super) const FRAME: u8 = 3;
    pub(in super::super) const PING: u8 = 4;
    /// What would be a datagram, where none gets through.
    pub(in super::super) const DATAGRAM: u8 = 5;
    /// What the two ends say about being neighbours.
    pub(in super::super) const WORD: u8 = 6;
}

/// A connection whose other end is known, before it is anything more.
pub(super) struct Handshaken {
    pub(super) peer: PeerIdentity,
    pub(super) addr: SocketAddr,
    reader: FrameReader<ReadHalf<Stream>>,
    writer: FrameWriter<WriteHalf<Stream>>,
}

/// A connection that is the one with its peer.
pub(super) struct Established {
    handshaken: Handshaken,
    registered: Registered,
    greeting: Greeting,
    /// Our greeting, as the first frame to be written, where the peer still waits for it.
    answer: Option<Vec<u8>>,
}

/// Why a greeting did not lead to a connection.
#[derive(Debug)]
pub(super) enum GreetError {
    /// One of the two does not want it.
    Refused(Refusal),
    /// The connection failed.
    Lost(FrameError),
}

impl From<FrameError> for GreetError {
    fn from(error: FrameError) -> Self {
        Self::Lost(error)
    }
}

impl From<io::Error> for GreetError {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.into())
    }
}

impl From<Refusal> for GreetError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Handshaken {
    pub(super) fn new(stream: Stream, peer: PeerIdentity, addr: SocketAddr) -> Self {
        let (read, write) = tokio::io::split(stream);
        let reader = FrameReader::new(read, MAX_CONTROL_FRAME_BYTES);
        let writer = FrameWriter::new(write, MAX_CONTROL_FRAME_BYTES);
        Self { peer, addr, reader, writer }
    }

    /// The dialer greets, and waits for the other's decision.
    pub(super) async fn greet_first(mut self, shared: &Shared) -> Result<Established, GreetError> {
        self.send(kind::GREETING, &shared.greeting(self.peer.node).encode()).await?;
        let greeting = self.read_greeting().await?;
        let registered = self.register(shared, shared.node(), &greeting)?;
        Ok(Established { handshaken: self, registered, greeting, answer: None })
    }

    /// The other side decides, and answers with its greeting or a refusal.
    pub(super) async fn greet_second(mut self, shared: &Shared) -> Result<Established, GreetError> {
        let greeting = match self.read_greeting().await {
            Ok(greeting) => greeting,
            Err(GreetError::Refused(refusal)) => {
                // Our greeting tells a peer of another version which one we speak.
                self.send(kind::GREETING, &shared.greeting(self.peer.node).encode()).await?;
                return Err(refusal.into());
            }
            Err(error) => return Err(error),
        };
        match self.register(shared, self.peer.node, &greeting) {
            Ok(registered) => {
                // Nothing may wait between the registration and the run, which takes it back at the
                // end.
                let mut answer = shared.greeting(self.peer.node).encode();
                answer.push(kind::GREETING);
                Ok(Established { handshaken: self, registered, greeting, answer: Some(answer) })
            }
            Err(refusal) => {
                self.refuse(refusal).await?;
                Err(refusal.into())
            }
        }
    }

    async fn refuse(&mut self, refusal: Refusal) -> io::Result<()> {
        self.send(kind::REFUSAL, &[refusal.code()]).await?;
        self.writer.shutdown().await
    }

    async fn send(&mut self, kind: u8, message: &[u8]) -> io::Result<()> {
        self.writer.write_parts(&[message, &[kind]]).await?;
        self.writer.flush().await
    }

    async fn read_greeting(&mut self) -> Result<Greeting, GreetError> {
        let mut frame = self.reader.read().await?.ok_or(FrameError::Truncated)?;
        match frame.pop() {
            Some(kind::GREETING) => Greeting::decode(&frame).map_err(|error| match error {
                GreetingError::Version(theirs) => Refusal::Version { theirs }.into(),
                GreetingError::Malformed => Refusal::Malformed.into(),
            }),
            Some(kind::REFUSAL) => Err(Refusal::from_code(&frame).into()),
            _ => Err(Refusal::Malformed.into()),
        }
    }

    fn register(
        &self,
        shared: &Shared,
        dialed_by: NodeId,
        greeting: &Greeting,
    ) -> Result<Registered, Refusal> {
        let listen = greeting.listen.map(|claimed| reachable(claimed, self.addr.ip()));
        lock(&shared.peers).register(self.peer.node, dialed_by, listen)
    }
}

impl Established {
    /// Carries frames until the connection ends, for whatever reason. Everything that is reported
    /// of a connection is reported from here, in order.
    pub(super) async fn run(self, shared: Arc<Shared>) {
        let Handshaken { peer, addr, mut reader, writer } = self.handshaken;
        let Registered { live, outgoing, replaced } = self.registered;
        let (node, connection) = (peer.node, live.connection);
        let dialed = live.dialed_by == shared.node();
        let announced = AtomicBool::new(false);
        let predecessor_ended = async || {
            if let Some(replaced) = &replaced {
                replaced.ended().await;
            }
        };
        let read = async {
            predecessor_ended().await;
            shared.report(NetEvent::Connected { peer, addr, connection, dialed }).await?;
            announced.store(true, Ordering::Relaxed);
            for learned in learned(node, self.greeting, addr.ip(), shared.node()) {
                shared.report(learned).await?;
            }
            read_frames(&mut reader, &shared, node, connection).await
        };
        let reason = tokio::select! {
            reason = live.closed() => reason,
            reason = read => reason.unwrap_or_else(|NobodyListens| "the node is stopping".to_owned()),
            error = write_frames(writer, self.answer, outgoing, &live) => describe(&error.into()),
        };
        live.close(&reason);
        // Closing from our side also breaks the socket; why it was closed is the better reason.
        let reason = live.closed().await;
        tracing::info!(peer = %node.short(), connection, reason, "disconnected");
        if announced.into_inner() {
            // Without a receiver nobody is left to be told.
            let _ = shared.report(NetEvent::Disconnected { peer: node, connection, reason }).await;
        } else {
            predecessor_ended().await;
        }
        live.end();
        lock(&shared.peers).unregister(node, connection);
    }
}

/// The receiver of the events is gone.
#[derive(Debug)]
pub(super) struct NobodyListens;

/// What a greeting teaches: hints, since only a handshake proves where a node is.
fn learned(
    peer: NodeId,
    greeting: Greeting,
    seen: IpAddr,
    own: NodeId,
) -> impl Iterator<Item = NetEvent> {
    let listen = greeting.listen.map(|claimed| (peer, reachable(claimed, seen)));
    let others = greeting.known.into_iter().filter(move |(node, addr)| {
        *node != own && *node != peer && !addr.ip().is_unspecified() && addr.port() != 0
    });
    let learned = listen.into_iter().chain(others);
    learned.map(move |(node, addr)| NetEvent::Learned { node, addr, firsthand: node == peer })
}

/// Reads until the end, and says why it ended. While the receiver of the events is busy nothing is
/// read, and the peer is not blamed for it.
async fn read_frames(
    reader: &mut FrameReader<ReadHalf<Stream>>,
    shared: &Shared,
    peer: NodeId,
    connection: u64,
) -> Result<String, NobodyListens> {
    loop {
        let mut frame = match unless_silent(reader, SILENCE_LIMIT).await {
            Some(Ok(Some(frame))) => frame,
            Some(Ok(None)) => return Ok("it closed the connection".to_owned()),
            Some(Err(error)) => return Ok(describe(&error)),
            None => return Ok(format!("nothing was heard from it for {SILENCE_LIMIT:?}")),
        };
        match frame.pop() {
            Some(kind::FRAME) => {
                shared.report(NetEvent::Frame { peer, connection, bytes: frame }).await?;
            }
            Some(kind::PING) => {}
            Some(kind::DATAGRAM) => shared.hint(NetEvent::Datagram { from: peer, bytes: frame }),
            Some(kind::WORD) => {
                shared.report(NetEvent::Word { peer, connection, bytes: frame }).await?;
            }
            _ => return Ok("it sent a frame of an unknown kind".to_owned()),
        }
    }
}

/// The next frame; `None` if nothing at all was heard for `limit`. A frame can be so long, and a connection so slow, that
/// it takes longer to arrive.
async fn unless_silent<R: AsyncRead + Unpin>(
    reader: &mut FrameReader<R>,
    limit: Duration,
) -> Option<Result<Option<Vec<u8>>, FrameError>> {
    loop {
        let before = reader.received();
        if let Ok(read) = timeout(limit, reader.read()).await {
            return Some(read);
        }
        if reader.received() == before {
            return None;
        }
    }
}

/// Writes `first`, then what is queued, and pings when nothing is. Returns only with an error.
async fn write_frames(
    mut writer: FrameWriter<WriteHalf<Stream>>,
    first: Option<Vec<u8>>,
    mut outgoing: mpsc::UnboundedReceiver<(u8, Vec<u8>)>,
    live: &Live,
) -> io::Error {
    let failed = async {
        if let Some(first) = first {
            writer.write(&first).await?;
            writer.flush().await?;
        }
        loop {
            match timeout(PING_INTERVAL, outgoing.recv()).await {
                Ok(Some(frame)) => {
                    let mut next = Some(frame);
                    while let Some((kind, frame)) = next {
                        writer.write_parts(&[&frame, &[kind]]).await?;
                        live.sent(&frame);
                        next = outgoing.try_recv().ok();
                    }
                }
                Ok(None) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(_) => writer.write(&[kind::PING]).await?,
            }
            writer.flush().await?;
        }
    };
    let Err(error) = failed.await as io::Result<Infallible>;
    error
}

/// A connection that breaks off without TLS's farewell was closed too, for our purposes.
fn describe(error: &FrameError) -> String {
    match error {
        FrameError::Io(error) if is_gone(error) => "it closed the connection".to_owned(),
        error => error.to_string(),
    }
}

fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_counts_from_the_last_byte_whatever_was_heard_before_and_a_slow_frame_is_none()
    {
        let limit = SILENCE_LIMIT;
        let (mut peer, own) = tokio::io::duplex(64);
        let mut reader = FrameReader::new(own, 64);
        peer.write_all(b"\x05\0\0\0hello\x05\0\0\0wo").await.unwrap();
        let frame = unless_silent(&mut reader, limit).await;
        assert_eq!(frame.unwrap().unwrap().unwrap(), b"hello");
        let rest = async {
            tokio::time::sleep(limit + limit / 2).await;
            peer.write_all(b"rld").await.unwrap();
        };
        let (frame, ()) = tokio::join!(unless_silent(&mut reader, limit), rest);
        assert_eq!(frame.unwrap().unwrap().unwrap(), b"world");
        let since = Instant::now();
        assert!(unless_silent(&mut reader, limit).await.is_none());
        assert_eq!(since.elapsed(), limit);
    }
}
