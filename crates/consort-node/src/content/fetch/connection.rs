//! One content connection to one provider, from being made to its end: requests out, answers in. While the chunks of a few
//! answers are verified and written, each by one thread without a pause, so that it stays in the cache of one core, the
//! next answer is received. What became of them is told in the order in which they came.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use consort_core::ChunkRef;
use consort_core::content::exchange::{Answer, Reply, Request};
use consort_core::content::transfer::{MAX_REQUESTS, QUIET_AFTER};
use consort_core::encoding::DecodeError;
use crossbeam_channel::{Receiver, bounded};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::{Claimed, Outcome, Shared};
use crate::content::ChunkBytes;
use crate::content::bytes::Message;
use crate::content::compression::{BadMessage, is_compressed, unpack};
use crate::net::frame::FrameError;
use crate::net::network::{ContentReader, ContentWriter};
use crate::net::{ContentConnection, NodeId, OpenError};

/// A connection on which nothing was asked for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// How often a long answer that is still coming is reported: twice before its provider would be taken for quiet.
const HEARD_AFTER: Duration = Duration::from_millis(900);
const _: () = assert!(2 * HEARD_AFTER.as_millis() < QUIET_AFTER.as_millis());

/// Answers above this many bytes, and those that are compressed, are taken in on a thread of their own: the disk may be slow.
const TAKE_IN_HERE_BYTES: usize = 4 << 10;

/// Answers that are taken in at a time. With one, its thread and the one that receives wait for each other.
const MAX_TAKING: usize = 2;

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
    #[error("it sent a bad message: {0}")]
    BadMessage(#[from] BadMessage),
    #[error("it answered something that it was not asked")]
    Unasked,
    #[error("taking it in was interrupted: {0}")]
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
    let mut taking = VecDeque::new();
    // Closed when the last answer was delivered.
    let mut before = never_sent();
    let (spare, mut spares) = mpsc::channel(SPARE_MESSAGES);
    let mut heard = 0;
    loop {
        if let Ok(message) = spares.try_recv() {
            reader.reuse(message);
        }
        let frame = tokio::select! {
            frame = timeout(HEARD_AFTER, reader.read()) => frame,
            result = finished(&mut taking) => {
                result?;
                continue;
            }
        };
        let Ok(frame) = frame else {
            // As long as this node is busy with what came, the peer is not to blame.
            if heard != reader.received() || !taking.is_empty() {
                heard = reader.received();
                shared.change(|state, now| state.heard(now, peer, number));
            }
            continue;
        };
        let frame = frame?.ok_or(ConversationError::Closed)?;
        let request = match Reply::is_late(&frame) {
            true => None,
            false => Some(owed.try_recv().map_err(|_| ConversationError::Unasked)?),
        };
        let is_short = frame.len() <= TAKE_IN_HERE_BYTES && !is_compressed(&frame);
        let room = if is_short { 0 } else { MAX_TAKING - 1 };
        while room < taking.len() {
            match timeout(HEARD_AFTER, finished(&mut taking)).await {
                Ok(result) => result?,
                Err(_) => shared.change(|state, now| state.heard(now, peer, number)),
            }
        }
        let spare = spare.clone();
        let owned = Arc::clone(shared);
        let (delivered, next) = bounded::<Never>(0);
        let before = std::mem::replace(&mut before, next);
        let take_in = move || {
            let _delivered = delivered;
            let message = Message { bytes: unpack(frame)?, spare: Some(spare) };
            take_in(&owned, peer, number, request, message, &before)
        };
        if is_short { take_in()? } else { taking.push_back(spawn_blocking(take_in)) }
    }
}

type Taking = JoinHandle<Result<(), ConversationError>>;

/// Nothing is sent: that the channel closes is what tells.
enum Never {}

/// What was delivered before the first answer.
fn never_sent() -> Receiver<Never> {
    bounded(0).1
}

/// Waits for the first answer that is being taken in, forever if there is none.
async fn finished(taking: &mut VecDeque<Taking>) -> Result<(), ConversationError> {
    match taking.front_mut() {
        Some(task) => {
            let result = task.await;
            taking.pop_front();
            result?
        }
        None => std::future::pending().await,
    }
}

/// Verifies what came, writes what is right in it where it is wanted, and delivers it, when what came before was. It is a
/// response to `request`, or late.
fn take_in(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    request: Option<Request>,
    message: Message,
    before: &Receiver<Never>,
) -> Result<(), ConversationError> {
    let message = Arc::new(message);
    match (Reply::decode(&message.bytes)?, request) {
        (Reply::Response(response), Some(request)) => {
            if (response.id, response.answers.len()) != (request.id, request.chunks.len()) {
                return Err(ConversationError::Unasked);
            }
            let answers = request.chunks.iter().copied().zip(response.answers);
            let (outcomes, arrived) = verify(shared, &message, answers);
            let _ = before.recv();
            deliver(shared, peer, number, Some(request.id), &outcomes, arrived);
        }
        (Reply::Late(chunks), None) => {
            let answers = chunks.into_iter().map(|(chunk, bytes)| (chunk, Answer::Chunk(bytes)));
            let (outcomes, arrived) = verify(shared, &message, answers);
            let _ = before.recv();
            deliver(shared, peer, number, None, &outcomes, arrived);
        }
        _ => return Err(ConversationError::Unasked),
    }
    Ok(())
}

/// What became of each chunk, and those that are right, written where they are wanted. The chunks fill the end of the
/// message.
fn verify<'m>(
    shared: &Arc<Shared>,
    message: &'m Arc<Message>,
    answers: impl Iterator<Item = (ChunkRef, Answer<&'m [u8]>)>,
) -> (Vec<Outcome>, Vec<Claimed>) {
    let answers: Vec<_> = answers.collect();
    let length = |answer: &Answer<&[u8]>| match answer {
        Answer::Chunk(bytes) => bytes.len(),
        Answer::Missing | Answer::Coming(_) => 0,
    };
    let payload: usize = answers.iter().map(|(_, answer)| length(answer)).sum();
    let mut start = message.bytes.len() - payload;
    let (mut outcomes, mut arrived) = (Vec::with_capacity(answers.len()), Vec::new());
    for (chunk, answer) in answers {
        let end = start + length(&answer);
        outcomes.push(match answer {
            Answer::Missing => Outcome::Missing,
            Answer::Coming(promise) => Outcome::Coming(promise),
            Answer::Chunk(bytes) if chunk.is(bytes) => {
                let bytes = ChunkBytes::part(message, start..end);
                arrived.push(shared.lock().claim(chunk, bytes));
                Outcome::Arrived
            }
            Answer::Chunk(_) => Outcome::Wrong,
        });
        start = end;
    }
    Claimed::write_all(&mut arrived, &message.bytes);
    (outcomes, arrived)
}

/// Delivers what came: for a request, or late.
fn deliver(
    shared: &Arc<Shared>,
    peer: NodeId,
    number: u64,
    request: Option<u32>,
    outcomes: &[Outcome],
    arrived: Vec<Claimed>,
) {
    shared.change(|state, now| {
        let chunks: Vec<_> = arrived.iter().map(|claimed| claimed.chunk).collect();
        // Also if the connection is given up meanwhile: nobody else gives them what was claimed.
        arrived.into_iter().for_each(|claimed| state.deliver(peer, claimed));
        if !state.is_current(peer, number) {
            return;
        }
        let wrong = outcomes.iter().filter(|outcome| **outcome == Outcome::Wrong).count() as u64;
        state.count(peer, |count| count.wrong += wrong);
        if let Some(id) = request {
            state.transfer.answered(now, peer, id, outcomes);
            return;
        }
        for chunk in chunks {
            state.transfer.arrived_late(now, peer, chunk);
        }
        if wrong != 0 {
            state.transfer.wrong_late(now, peer);
        }
    });
}
