//! Gives chunks to peers: answers the requests of content connections that they open. While one
//! answer is being written, the next ones are read from the disk, and compressed where that pays.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use consort_core::ChunkRef;
use consort_core::content::delta;
use consort_core::content::exchange::{
    Answer, Request, encode_late, encode_response, payload_bytes,
};
use consort_core::encoding::DecodeError;
use consort_core::limits::{
    MAX_CONTENT_MESSAGE_BYTES, MAX_CONTENT_OVERHEAD_BYTES, MAX_REQUEST_CHUNKS,
};
use consort_core::store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::content::compression::{Pace, Packed};
use crate::content::delta::give;
use crate::content::fetch::Fetcher;
use crate::content::local::{LocalContent, Reader};
use crate::content::parked::Seat;
use crate::content::staged::StagedChunks;
use crate::net::frame::{FrameError, MAX_CONTENT_FRAME_BYTES};
use crate::net::network::{ContentReader, ContentWriter};
use crate::net::{ContentConnection, NodeId, PeerIdentity};

/// Requests of all peers that are being read from the disk at a time: as many as a disk profits
/// from.
pub const MAX_READS: usize = 8;

/// Answers of one connection in memory: one that is written, one that is ready, one that is read.
pub const MAX_ANSWERS_PER_CONNECTION: usize = 3;

/// Answers of all connections in memory, of up to a megabyte each, or two where it is compressed. Further requests wait.
pub const MAX_ANSWERS: usize = 64;

/// Deltas that are given at a time: each keeps a core busy. Who asks for more fetches.
pub const MAX_DELTAS: usize = 2;

/// A connection on which nothing is asked for this long is closed. Peers close theirs sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A peer that does not take an answer within this time is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

const _: () =
    assert!(MAX_CONTENT_MESSAGE_BYTES + MAX_CONTENT_OVERHEAD_BYTES < MAX_CONTENT_FRAME_BYTES);

/// Serves what this machine has. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

struct Shared {
    local: Arc<LocalContent>,
    fetcher: OnceLock<Weak<Fetcher>>,
    reads: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    deltas: Arc<Semaphore>,
    bytes: AtomicU64,
    chunks: AtomicU64,
    delta_bytes: AtomicU64,
}

/// What was given to peers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes of chunks.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of deltas, by which peers make chunks themselves; as they were sent.
    pub delta_bytes: u64,
}

/// Why a connection ended before the peer closed it.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("it sent a bad request: {0}")]
    BadRequest(#[from] DecodeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("it does not take what it asked for")]
    Stalled,
    #[error("the connection failed: {0}")]
    Write(std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("reading was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// What is ready to be written.
struct Prepared {
    read: Read,
    packed: Packed,
}

/// What was read for an answer.
struct Read {
    buffers: Buffers,
    /// How much of the payload is meant.
    end: usize,
    chunks: u64,
    _permit: OwnedSemaphorePermit,
}

/// What is used again from answer to answer: fresh memory costs as much as reading into it.
#[derive(Default)]
struct Buffers {
    header: Vec<u8>,
    payload: Vec<u8>,
}

impl Read {
    fn pack(self, pace: Pace) -> Prepared {
        let Buffers { header, payload } = &self.buffers;
        let packed = Packed::of(header.len(), &payload[..self.end], pace);
        Prepared { read: self, packed }
    }
}

impl Server {
    /// Serves what `local` has.
    pub fn new(local: Arc<LocalContent>) -> Self {
        Self(Arc::new(Shared {
            local,
            fetcher: OnceLock::new(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
            deltas: Arc::new(Semaphore::new(MAX_DELTAS)),
            bytes: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
            delta_bytes: AtomicU64::new(0),
        }))
    }

    /// What this one fetches is promised to peers from now on, and sent to them when it has arrived.
    pub fn promise_what_comes(&self, fetcher: &Arc<Fetcher>) {
        // Later ones change nothing: a node has one.
        let _ = self.0.fetcher.set(Arc::downgrade(fetcher));
    }

    /// Serves a connection until it ends, on the current tokio runtime; returns at once. Made for
    /// [`OnContent`](crate::net::network::OnContent).
    pub fn serve(&self, peer: PeerIdentity, connection: ContentConnection) {
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let peer_name = &*peer.name;
            match shared.converse(connection, peer.node).await {
                Ok(()) => {}
                Err(error @ (ServeError::BadRequest(_) | ServeError::Stalled)) => {
                    tracing::warn!(peer = peer_name, %error, "a content connection was closed");
                }
                Err(error @ ServeError::Frame(FrameError::Oversize { .. } | FrameError::Empty)) => {
                    tracing::warn!(peer = peer_name, %error, "a content connection was closed");
                }
                Err(ServeError::Store(error)) => {
                    tracing::error!(%error, "chunks cannot be served");
                }
                Err(error) => {
                    tracing::debug!(peer = peer_name, %error, "a content connection ended");
                }
            }
        });
    }

    /// What was given to peers since the start.
    pub fn served(&self) -> Served {
        Served {
            bytes: self.0.bytes.load(Ordering::Relaxed),
            chunks: self.0.chunks.load(Ordering::Relaxed),
            delta_bytes: self.0.delta_bytes.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    async fn converse(
        self: &Arc<Self>,
        connection: ContentConnection,
        peer: NodeId,
    ) -> Result<(), ServeError> {
        let ContentConnection { mut reader, writer } = connection;
        let Ok(first) = timeout(IDLE_TIMEOUT, reader.read()).await else { return Ok(()) };
        let Some(first) = first? else { return Ok(()) };
        if delta::Request::is(&first) {
            let request = delta::Request::decode(&first)?;
            let Ok(permit) = Arc::clone(&self.deltas).try_acquire_owned() else { return Ok(()) };
            let sent = &self.delta_bytes;
            let served = give::serve(&self.local, request, reader, writer, permit, sent);
            return served.await.map_err(ServeError::Write);
        }
        let first = Request::decode(&first)?;
        let (ready, answers) = mpsc::channel(MAX_ANSWERS_PER_CONNECTION - 2);
        let (empty, spare) = mpsc::channel(MAX_ANSWERS_PER_CONNECTION);
        let pace = Arc::default();
        let prepare = self.prepare(first, reader, peer, Arc::clone(&pace), ready, spare);
        let write = self.write(writer, pace, answers, empty);
        tokio::try_join!(prepare, write).map(drop)
    }

    async fn prepare(
        self: &Arc<Self>,
        first: Request,
        mut reader: ContentReader,
        peer: NodeId,
        pace: Arc<Mutex<Pace>>,
        ready: mpsc::Sender<Prepared>,
        mut spare: mpsc::Receiver<Buffers>,
    ) -> Result<(), ServeError> {
        let (seat, arrived) = self.local.parked().seat();
        let (seat, mut arrived) = (Arc::new(seat), Arrived { chunks: arrived, next: None });
        let mut first = Some(first);
        loop {
            let request = match first.take() {
                Some(first) => Some(first),
                None => tokio::select! {
                    frame = timeout(IDLE_TIMEOUT, reader.read()) => {
                        let Ok(frame) = frame else { break };
                        let Some(frame) = frame? else { break };
                        Some(Request::decode(&frame)?)
                    }
                    () = arrived.some() => None,
                },
            };
            let permit = acquire(&self.answers).await;
            let reading = acquire(&self.reads).await;
            let buffers = spare.try_recv().unwrap_or_default();
            let (shared, seat, pace) = (Arc::clone(self), Arc::clone(&seat), *lock(&pace));
            let late = if request.is_none() { arrived.batch() } else { Vec::new() };
            let prepared = spawn_blocking(move || {
                let _reading = reading;
                let read = match request {
                    Some(request) => shared.answer(&request, peer, &seat, buffers, permit),
                    None => shared.read_late(&late, buffers, permit),
                }?;
                Ok::<_, StoreError>(read.pack(pace))
            });
            let prepared = prepared.await??;
            if ready.send(prepared).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        mut writer: ContentWriter,
        pace: Arc<Mutex<Pace>>,
        mut answers: mpsc::Receiver<Prepared>,
        empty: mpsc::Sender<Buffers>,
    ) -> Result<(), ServeError> {
        while let Some(Prepared { read, packed }) = answers.recv().await {
            if read.buffers.header.is_empty() {
                let _ = empty.try_send(read.buffers);
                continue;
            }
            let Read { buffers, end, chunks, .. } = read;
            let [packed, trailer] = packed.parts(&buffers.payload[..end]);
            let parts = [&*buffers.header, packed, trailer];
            let bytes = parts.iter().map(|part| part.len()).sum();
            let began = Instant::now();
            let sent = async {
                writer.write_parts(&parts).await?;
                writer.flush().await
            };
            timeout(WRITE_TIMEOUT, sent)
                .await
                .map_err(|_| ServeError::Stalled)?
                .map_err(ServeError::Write)?;
            lock(&pace).add(bytes, began.elapsed());
            self.bytes.fetch_add(end as u64, Ordering::Relaxed);
            self.chunks.fetch_add(chunks, Ordering::Relaxed);
            // There is room for as many as there can be.
            let _ = empty.try_send(buffers);
        }
        writer.shutdown().await.map_err(ServeError::Write)
    }

    /// Reads what is asked for, one chunk behind the other.
    fn answer(
        &self,
        request: &Request,
        peer: NodeId,
        seat: &Seat,
        mut buffers: Buffers,
        permit: OwnedSemaphorePermit,
    ) -> Result<Read, StoreError> {
        let fetcher = self.fetcher.get().and_then(Weak::upgrade);
        let promise =
            |chunk: &ChunkRef| fetcher.as_ref().and_then(|fetcher| fetcher.promise(chunk, peer));
        let mut answers = Vec::with_capacity(request.chunks.len());
        let mut reading = Reading::begin(&self.local, &mut buffers, &request.chunks);
        for chunk in &request.chunks {
            if reading.read(chunk)? {
                answers.push(Answer::Chunk(chunk.length));
                continue;
            }
            let promise = promise(chunk).filter(|_| seat.park(*chunk));
            answers.push(match promise {
                None => Answer::Missing,
                // It may have arrived before it was parked.
                Some(_) if reading.read(chunk)? => Answer::Chunk(chunk.length),
                Some(promise) => Answer::Coming(promise),
            });
        }
        let (end, chunks) = reading.finish();
        encode_response(request.id, answers.into_iter(), &mut buffers.header);
        Ok(Read { buffers, end, chunks, _permit: permit })
    }

    /// Reads chunks that a peer waited for. If one is gone again, the peer waits no longer than for any other.
    fn read_late(
        &self,
        late: &[ChunkRef],
        mut buffers: Buffers,
        permit: OwnedSemaphorePermit,
    ) -> Result<Read, StoreError> {
        let mut here = Vec::with_capacity(late.len());
        let mut reading = Reading::begin(&self.local, &mut buffers, late);
        for chunk in late {
            if reading.read(chunk)? {
                here.push(*chunk);
            }
        }
        let (end, chunks) = reading.finish();
        if !here.is_empty() {
            encode_late(&here, &mut buffers.header);
        }
        Ok(Read { buffers, end, chunks, _permit: permit })
    }
}

/// Chunks being read into the payload of a message.
struct Reading<'a> {
    reader: Reader<'a>,
    staged: &'a StagedChunks,
    payload: &'a mut [u8],
    end: usize,
    chunks: u64,
}

impl<'a> Reading<'a> {
    fn begin(local: &'a LocalContent, buffers: &'a mut Buffers, chunks: &[ChunkRef]) -> Self {
        let Buffers { header, payload } = buffers;
        header.clear();
        if payload.len() < payload_bytes(chunks) {
            payload.resize(payload_bytes(chunks), 0);
        }
        Self { reader: local.reader(), staged: local.staged(), payload, end: 0, chunks: 0 }
    }

    /// Reads a chunk, if it is here.
    fn read(&mut self, chunk: &ChunkRef) -> Result<bool, StoreError> {
        let to = self.end + chunk.length as usize;
        let payload = &mut self.payload[self.end..to];
        let is_here = self.reader.read(chunk, payload)? || self.staged.read(chunk, payload);
        if is_here {
            self.end = to;
            self.chunks += 1;
        }
        Ok(is_here)
    }

    /// How many bytes were read, of how many chunks.
    fn finish(self) -> (usize, u64) {
        (self.end, self.chunks)
    }
}

/// The chunks that a peer waited for, as they arrive.
struct Arrived {
    chunks: mpsc::UnboundedReceiver<ChunkRef>,
    next: Option<ChunkRef>,
}

impl Arrived {
    /// Returns when there is one.
    async fn some(&mut self) {
        if self.next.is_none() {
            self.next = self.chunks.recv().await;
        }
        if self.next.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// As many of those that are there as a message takes.
    fn batch(&mut self) -> Vec<ChunkRef> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(chunk) = self.next.take().or_else(|| self.chunks.try_recv().ok()) {
            bytes += chunk.length as usize;
            if MAX_CONTENT_MESSAGE_BYTES < bytes || batch.len() == MAX_REQUEST_CHUNKS {
                self.next = Some(chunk);
                break;
            }
            batch.push(chunk);
        }
        batch
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("local", &self.local).finish_non_exhaustive()
    }
}

fn lock(pace: &Mutex<Pace>) -> MutexGuard<'_, Pace> {
    pace.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("these semaphores are never closed")
}
