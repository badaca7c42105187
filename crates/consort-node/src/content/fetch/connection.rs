//! One content connection to one provider, from being made to its end: requests out, answers in.
//! While one answer is being verified, the next one is received.

use std::sync::Arc;
use std::time::Duration;

use consort_core::ChunkRef;
use consort_core::content::exchange::{Request, Response};
use consort_core::content::transfer::MAX_REQUESTS;
use consort_core::encoding::DecodeError;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::{Outcome, Shared};
use crate::content::ChunkBytes;
use crate::content::bytes::Message;
use crate::net::frame::FrameError;
use crate::net::network::{ContentReader, ContentWriter};
use crate::net::{ContentConnection, NodeId, OpenError};

/// A connection on which nothing was asked for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers above this many bytes are verified on a thread of their own; it takes longer to get one
/// than to hash less.
const VERIFY_HERE_BYTES: usize = 64 << 10;

/// Messages whose memory is kept for the next ones, each of about a megabyte: as many as one
/// directory takes at a time.
const SPARE_MESSAGES: usize = 4 * MAX_REQUESTS;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum ConversationError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the connection failed: {0}")]
    Write(#[from] std::io::Error),
    #[error("it closed the connection")]
    Closed,
    #[error("it sent a bad answer: {0}")]
    BadAnswer(#[from] DecodeError),
    #[error("it answered something that it was not asked")]
    Unasked,
    #[error("verifying was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Sends `requests` and takes in the answers, until nothing is asked for a while. `number` tells the
/// connection from others with the same peer.
pub(super) async fn run(
    shared: Arc<Shared>,
    peer: NodeId,
    number: u64,
    requests: UnboundedReceiver<Request>,
) {
    let Err(error) = converse(&shared, peer, number, requests).await else { return };
    tracing::debug!(peer = %peer.short(), %error, "a content connection ended");
    shared.change(|state, now| {
        if state.is_current(peer, number) {
            state.transfer.failed(now, peer);
            state.connections.remove(&peer);
        }
    });
}

async fn converse(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    requests: UnboundedReceiver<Request>,
) -> Result<(), ConversationError> {
    let ContentConnection { reader, writer } = shared.network.open_content(peer).await?;
    // Bounded by what a provider may be asked at a time.
    let (asked, owed) = mpsc::unbounded_channel();
    tokio::select! {
        result = ask(shared, peer, number, requests, writer, asked) => result,
        result = take_answers(shared, peer, number, reader, owed) => result,
    }
}

async fn ask(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    mut requests: UnboundedReceiver<Request>,
    mut writer: ContentWriter,
    asked: UnboundedSender<Request>,
) -> Result<(), ConversationError> {
    let mut frame = Vec::new();
    loop {
        match timeout(IDLE_TIMEOUT, requests.recv()).await {
            Ok(Some(request)) => {
                frame.clear();
                request.encode(&mut frame);
                // Known before it is sent, and so before its answer comes.
                asked.send(request).map_err(|_| ConversationError::Closed)?;
                writer.write(&frame).await?;
                writer.flush().await?;
            }
            Ok(None) => return Ok(()),
            Err(_) => {
                let is_idle = shared.change(|state, _| {
                    let is_idle = state.is_current(peer, number) && !state.transfer.is_asked(peer);
                    if is_idle {
                        state.connections.remove(&peer);
                    }
                    is_idle
                });
                if is_idle {
                    return Ok(writer.shutdown().await?);
                }
            }
        }
    }
}

async fn take_answers(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    mut reader: ContentReader,
    mut owed: UnboundedReceiver<Request>,
) -> Result<(), ConversationError> {
    let mut verifying: Option<Verifying> = None;
    let (spare, mut spares) = mpsc::channel(SPARE_MESSAGES);
    loop {
        if let Ok(message) = spares.try_recv() {
            reader.reuse(message);
        }
        let frame = tokio::select! {
            frame = reader.read() => frame,
            result = finished(&mut verifying) => {
                result?;
                continue;
            }
        };
        let frame = frame?.ok_or(ConversationError::Closed)?;
        let request = owed.try_recv().map_err(|_| ConversationError::Unasked)?;
        if verifying.is_some() {
            finished(&mut verifying).await?;
        }
        let message = Message { bytes: frame, spare: Some(spare.clone()) };
        if message.bytes.len() <= VERIFY_HERE_BYTES {
            take_in(shared, peer, number, &request, message)?;
        } else {
            let shared = Arc::clone(shared);
            let verify = move || take_in(&shared, peer, number, &request, message);
            verifying = Some(spawn_blocking(verify));
        }
    }
}

type Verifying = JoinHandle<Result<(), ConversationError>>;

/// Waits for the answer that is being verified, forever if there is none.
async fn finished(verifying: &mut Option<Verifying>) -> Result<(), ConversationError> {
    match verifying {
        Some(task) => {
            let result = task.await;
            *verifying = None;
            result?
        }
        None => std::future::pending().await,
    }
}

/// Verifies an answer and delivers what is right in it.
fn take_in(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    request: &Request,
    message: Message,
) -> Result<(), ConversationError> {
    let message = Arc::new(message);
    let response = Response::decode(&message.bytes)?;
    if (response.id, response.answers.len()) != (request.id, request.chunks.len()) {
        return Err(ConversationError::Unasked);
    }
    let mut outcomes = Vec::with_capacity(request.chunks.len());
    let mut arrived = Vec::with_capacity(request.chunks.len());
    // The chunks fill the end of the message.
    let payload: usize = response.answers.iter().flatten().map(|bytes| bytes.len()).sum();
    let mut start = message.bytes.len() - payload;
    for (chunk, answer) in request.chunks.iter().zip(&response.answers) {
        let end = start + answer.map_or(0, <[u8]>::len);
        outcomes.push(match answer {
            None => Outcome::Missing,
            Some(bytes) if chunk.is(bytes) => {
                arrived.push((*chunk, ChunkBytes::part(&message, start..end)));
                Outcome::Arrived
            }
            Some(_) => Outcome::Wrong,
        });
        start = end;
    }
    deliver(shared, peer, number, request.id, &outcomes, arrived);
    Ok(())
}

fn deliver(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    id: u32,
    outcomes: &[Outcome],
    arrived: Vec<(ChunkRef, ChunkBytes)>,
) {
    shared.change(|state, now| {
        if !state.is_current(peer, number) {
            return;
        }
        for (chunk, bytes) in &arrived {
            state.deliver(peer, *chunk, bytes);
        }
        let wrong = outcomes.iter().filter(|outcome| **outcome == Outcome::Wrong).count() as u64;
        state.count(peer, |count| count.wrong += wrong);
        state.transfer.answered(now, peer, id, outcomes);
    });
}
