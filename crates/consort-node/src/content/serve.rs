//! Gives chunks to peers: answers the requests of content connections that they open. While one
//! answer is being written, the next ones are read from the disk.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use consort_core::content::exchange::{Request, Response};
use consort_core::encoding::DecodeError;
use consort_core::limits::{MAX_CONTENT_MESSAGE_BYTES, MAX_CONTENT_OVERHEAD_BYTES};
use consort_core::store::StoreError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::content::local::LocalContent;
use crate::net::frame::{FrameError, MAX_CONTENT_FRAME_BYTES};
use crate::net::network::{ContentReader, ContentWriter};
use crate::net::{ContentConnection, PeerIdentity};

/// Requests of all peers that are being read from the disk at a time: as many as a disk profits
/// from.
pub const MAX_READS: usize = 8;

/// Answers of one connection in memory: one that is written, one that is ready, one that is read.
pub const MAX_ANSWERS_PER_CONNECTION: usize = 3;

/// Answers of all connections in memory, of up to a megabyte each. Further requests wait.
pub const MAX_ANSWERS: usize = 64;

/// A connection on which nothing is asked for this long is closed. Peers close theirs sooner.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// A peer that does not take an answer within this time is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

const _: () =
    assert!(MAX_CONTENT_MESSAGE_BYTES + MAX_CONTENT_OVERHEAD_BYTES <= MAX_CONTENT_FRAME_BYTES);

/// Serves what this machine has. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Server(Arc<Shared>);

struct Shared {
    local: Arc<LocalContent>,
    reads: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    bytes: AtomicU64,
    chunks: AtomicU64,
}

/// What was given to peers since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// Bytes of chunks.
    pub bytes: u64,
    /// Chunks.
    pub chunks: u64,
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

/// An answer that is ready to be written.
struct Answer {
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

impl Server {
    /// Serves what `local` has.
    pub fn new(local: Arc<LocalContent>) -> Self {
        Self(Arc::new(Shared {
            local,
            reads: Arc::new(Semaphore::new(MAX_READS)),
            answers: Arc::new(Semaphore::new(MAX_ANSWERS)),
            bytes: AtomicU64::new(0),
            chunks: AtomicU64::new(0),
        }))
    }

    /// Serves a connection until it ends, on the current tokio runtime; returns at once. Made for
    /// [`OnContent`](crate::net::network::OnContent).
    pub fn serve(&self, peer: PeerIdentity, connection: ContentConnection) {
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            let peer_name = &*peer.name;
            match shared.converse(connection).await {
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
        }
    }
}

impl Shared {
    async fn converse(self: &Arc<Self>, connection: ContentConnection) -> Result<(), ServeError> {
        let ContentConnection { reader, writer } = connection;
        let (ready, answers) = mpsc::channel(MAX_ANSWERS_PER_CONNECTION - 2);
        let (empty, spare) = mpsc::channel(MAX_ANSWERS_PER_CONNECTION);
        let prepare = self.prepare(reader, ready, spare);
        let write = self.write(writer, answers, empty);
        tokio::try_join!(prepare, write).map(drop)
    }

    async fn prepare(
        self: &Arc<Self>,
        mut reader: ContentReader,
        ready: mpsc::Sender<Answer>,
        mut spare: mpsc::Receiver<Buffers>,
    ) -> Result<(), ServeError> {
        while let Ok(frame) = timeout(IDLE_TIMEOUT, reader.read()).await {
            let Some(frame) = frame? else { break };
            let request = Request::decode(&frame)?;
            let permit = acquire(&self.answers).await;
            let reading = acquire(&self.reads).await;
            let buffers = spare.try_recv().unwrap_or_default();
            let shared = Arc::clone(self);
            let answer = spawn_blocking(move || {
                let _reading = reading;
                shared.read(&request, buffers, permit)
            });
            if ready.send(answer.await??).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        mut writer: ContentWriter,
        mut answers: mpsc::Receiver<Answer>,
        empty: mpsc::Sender<Buffers>,
    ) -> Result<(), ServeError> {
        while let Some(answer) = answers.recv().await {
            let Answer { buffers, end, chunks, .. } = answer;
            let sent = async {
                writer.write_parts(&[&buffers.header, &buffers.payload[..end]]).await?;
                writer.flush().await
            };
            timeout(WRITE_TIMEOUT, sent)
                .await
                .map_err(|_| ServeError::Stalled)?
                .map_err(ServeError::Write)?;
            self.bytes.fetch_add(end as u64, Ordering::Relaxed);
            self.chunks.fetch_add(chunks, Ordering::Relaxed);
            // There is room for as many as there can be.
            let _ = empty.try_send(buffers);
        }
        writer.shutdown().await.map_err(ServeError::Write)
    }

    /// Reads what is asked for, one chunk behind the other.
    fn read(
        &self,
        request: &Request,
        mut buffers: Buffers,
        permit: OwnedSemaphorePermit,
    ) -> Result<Answer, StoreError> {
        let Buffers { header, payload } = &mut buffers;
        header.clear();
        if payload.len() < request.payload_bytes() {
            payload.resize(request.payload_bytes(), 0);
        }
        let mut reader = self.local.reader();
        let mut lengths = Vec::with_capacity(request.chunks.len());
        let (mut end, mut chunks) = (0, 0);
        for chunk in &request.chunks {
            let to = end + chunk.length as usize;
            let payload = &mut payload[end..to];
            let is_here = reader.read(chunk, payload)? || self.local.staged().read(chunk, payload);
            lengths.push(is_here.then_some(chunk.length));
            if is_here {
                end = to;
                chunks += 1;
            }
        }
        Response::encode_header(request.id, lengths.into_iter(), header);
        Ok(Answer { buffers, end, chunks, _permit: permit })
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("local", &self.local).finish_non_exhaustive()
    }
}

async fn acquire(semaphore: &Arc<Semaphore>) -> OwnedSemaphorePermit {
    Arc::clone(semaphore).acquire_owned().await.expect("these semaphores are never closed")
}
