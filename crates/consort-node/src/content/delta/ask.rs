//! Asks peers for deltas: one thread for a directory, which does one after another. Whom it asks has to have all of the
//! content; of those that are connected, a few are tried.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use consort_core::content::delta::{PIECE_HASH_BYTES, Request, Stream};
use consort_core::content::parquet::MAGIC;
use consort_core::limits::{MAX_CONTENT_MESSAGE_BYTES, MAX_DELTA_STRETCHES};
use consort_core::{ChunkRef, Content};
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout, timeout_at};

use super::base::Base;
use super::take::Taker;
use crate::content::compression::unpack;
use crate::content::fetch::Fetcher;
use crate::folder::{PlaceError, Target};
use crate::net::{ContentConnection, Network, NodeId};

/// Shorter contents are not worth it, and neither is what lacks less than this, or less than one part of so many: to fetch
/// it takes no longer than to take the file apart.
const LEAST_BYTES: u64 = 1 << 20;
const LEAST_SHARE: u64 = 16;

/// Chunks that can be made at a time: 4 GiB at their average length. A place for each is kept, of 80 bytes.
pub const MAX_LACKING: usize = 64 * 1024;

/// Contents that wait for their turn. Those beyond that are fetched.
const MAX_WAITING: usize = 16;

/// What was made and not taken note of.
const MAX_REBUILT: usize = 64;

/// Peers that are asked for one content: who does not have all of it says so at once.
const MAX_ASKED: usize = 8;

/// How long a peer may be quiet. Its disk may be slow; but meanwhile nothing of the content comes.
const QUIET: Duration = Duration::from_secs(5);

/// A delta may take as long as it takes to go through the content with so many bytes a second, after a start: however it
/// trickles, the rest is fetched then.
const LEAST_BYTES_PER_SECOND: u64 = 2 << 20;

/// How soon it is noticed that nobody wants a content any more, while nothing comes of it.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Messages with instructions that wait to be followed.
const MAX_MESSAGES: usize = 4;

/// Stretches that are so close are asked for as one.
const CLOSE_BYTES: u64 = 64 << 10;

/// A content of which chunks are lacking, and what they may be made from.
#[derive(Debug)]
pub struct Rebuild {
    /// The caller's number for it.
    pub file: u64,
    /// What is to be made.
    pub content: Content,
    /// The version that is here.
    pub base: File,
    /// What is lacking, in order: its place in the content, and where its bytes are written. No more than [`MAX_LACKING`].
    pub lacking: Vec<(u64, ChunkRef, Target)>,
    /// When nobody else holds this any more, nobody wants the content.
    pub wanted: Weak<()>,
}

/// What became of a chunk.
#[derive(Debug)]
pub struct Rebuilt {
    /// The caller's number for the content.
    pub file: u64,
    /// The place of the chunk.
    pub offset: u64,
    /// The chunk.
    pub chunk: ChunkRef,
    /// What became of writing it. None: it could not be made, and has to be fetched.
    pub written: Option<Result<(), PlaceError>>,
}

/// Whether chunks of a content may be made from a file: it is of the format that is known here, and not short.
pub fn is_base(file: &File, content: &Content) -> bool {
    let mut first = [0; MAGIC.len()];
    LEAST_BYTES <= content.size()
        && file.metadata().is_ok_and(|meta| LEAST_BYTES <= meta.len())
        && file.read_exact_at(&mut first, 0).is_ok()
        && first == MAGIC
}

/// Whether it is worth it to make so many bytes of a content.
pub fn pays(lacking: u64, content: &Content) -> bool {
    LEAST_BYTES.max(content.size() / LEAST_SHARE) <= lacking
}

/// Makes chunks, on a thread of its own. That ends when this is dropped and what it is at is over.
#[derive(Debug)]
pub struct Rebuilder(Sender<Rebuild>);

impl Rebuilder {
    /// Starts it. Each chunk that is lacking is told of once at the receiver.
    pub fn start(fetcher: &Arc<Fetcher>) -> io::Result<(Self, Receiver<Rebuilt>)> {
        let (queue, rebuilds) = bounded(MAX_WAITING);
        let (done, rebuilt) = bounded(MAX_REBUILT);
        // It is not what keeps a node alive that is about to end.
        let fetcher = Arc::downgrade(fetcher);
        let work = move || rebuilds.into_iter().try_for_each(|job| run(&fetcher, job, &done));
        std::thread::Builder::new().name("rebuild".into()).spawn(move || drop(work()))?;
        Ok((Self(queue), rebuilt))
    }

    /// Begins, or gives it back if there is no room.
    pub fn begin(&self, rebuild: Rebuild) -> Result<(), Rebuild> {
        self.0.try_send(rebuild).map_err(TrySendError::into_inner)
    }
}

/// Nobody waits for what is made any more.
struct Gone;

fn run(fetcher: &Weak<Fetcher>, job: Rebuild, done: &Sender<Rebuilt>) -> Result<(), Gone> {
    let Rebuild { file, content, base, lacking, wanted } = job;
    let (mut chunks, mut targets) = (Vec::with_capacity(lacking.len()), lacking.into_iter());
    for (offset, chunk, _) in targets.as_slice() {
        chunks.push((*offset, *chunk));
    }
    let mut gone = false;
    // Chunks are told of in their order, so their targets are at hand.
    let tell = |offset, chunk, bytes: Option<&[u8]>| {
        let into = targets.next().map(|(_, _, into)| into);
        let written = bytes.zip(into.as_ref()).map(|(bytes, into)| into.write(bytes));
        // Before it is told: with the last of these the file is complete.
        drop(into);
        gone |= done.send(Rebuilt { file, offset, chunk, written }).is_err();
    };
    // Whatever becomes of it, nobody is to wait for a chunk for ever. A panic was reported.
    let rebuild = AssertUnwindSafe(|| rebuild(fetcher, content, &base, chunks, &wanted, tell));
    let _ = catch_unwind(rebuild);
    for (offset, chunk, into) in targets {
        drop(into);
        gone |= done.send(Rebuilt { file, offset, chunk, written: None }).is_err();
    }
    if gone { Err(Gone) } else { Ok(()) }
}

/// Makes what can be made of `chunks`, in their order, and tells of it.
fn rebuild(
    asker: &Weak<Fetcher>,
    content: Content,
    base: &File,
    chunks: Vec<(u64, ChunkRef)>,
    wanted: &Weak<()>,
    tell: impl FnMut(u64, ChunkRef, Option<&[u8]>),
) {
    let is_wanted = || wanted.strong_count() != 0;
    let Some(fetcher) = asker.upgrade().filter(|_| is_wanted()) else { return };
    let (network, peers) = (Arc::clone(fetcher.network()), fetcher.peers());
    if peers.is_empty() {
        return;
    }
    let base = match Base::of(base).map(|base| base.filter(|_| is_wanted())) {
        Ok(Some(base)) => base,
        nothing => return tracing::debug!(error = ?nothing.err(), "a file is not taken apart"),
    };
    let least = Duration::from_secs(content.size() / LEAST_BYTES_PER_SECOND);
    let until = Instant::now() + QUIET + least;
    let question = Question::new(content, &chunks, &base);
    let (to, mut messages) = mpsc::channel(MAX_MESSAGES);
    let ask = ask(network, peers, question, to);
    fetcher.runtime().spawn(while_wanted(wanted.clone(), until, ask));
    drop(fetcher);
    let mut taker = Taker::new(base, chunks, until, tell);
    while !taker.is_ended()
        && let Some((peer, message)) = messages.blocking_recv()
    {
        if let Some(fetcher) = asker.upgrade() {
            fetcher.count_delta(peer, message.len());
        }
        if !is_wanted() {
            break;
        }
        let Ok(message) = unpack(message) else { break };
        if let Err(error) = taker.follow(&message) {
            tracing::info!(%error, "a content is not made from its other version, but fetched");
            break;
        }
    }
}

/// Goes on with this as long as there is time, and somebody wants what comes of it.
async fn while_wanted(wanted: Weak<()>, until: Instant, work: impl Future) {
    let unwanted = async {
        while wanted.strong_count() != 0 {
            sleep(LOOK_AGAIN).await;
        }
    };
    tokio::select! {
        _ = timeout_at(until.into(), work) => {}
        () = unwanted => {}
    }
}

/// What a peer is asked: the request, and the hashes that follow.
struct Question {
    request: Vec<u8>,
    hashes: Vec<Vec<u8>>,
}

impl Question {
    fn new(content: Content, chunks: &[(u64, ChunkRef)], base: &Base<'_>) -> Self {
        let known = [Stream::Levels, Stream::Values].map(|stream| base.hashes(stream));
        let wanted = stretches(chunks);
        let request = Request { content, wanted, known: known.map(<[_]>::len) };
        let all: Vec<u8> =
            known.into_iter().flatten().flat_map(|hash| hash.to_le_bytes()).collect();
        let at_once = MAX_CONTENT_MESSAGE_BYTES / PIECE_HASH_BYTES * PIECE_HASH_BYTES;
        let hashes = all.chunks(at_once).map(<[u8]>::to_vec).collect();
        let mut bytes = Vec::new();
        request.encode(&mut bytes);
        Self { request: bytes, hashes }
    }
}

/// The stretches that these chunks make up, in order and not too many.
fn stretches(chunks: &[(u64, ChunkRef)]) -> Vec<std::ops::Range<u64>> {
    let mut close = CLOSE_BYTES;
    loop {
        let mut stretches = Vec::<std::ops::Range<u64>>::new();
        for &(offset, chunk) in chunks {
            let end = offset + u64::from(chunk.length);
            match stretches.last_mut() {
                Some(last) if offset <= last.end + close => last.end = end,
                _ => stretches.push(offset..end),
            }
        }
        if stretches.len() <= MAX_DELTA_STRETCHES {
            return stretches;
        }
        close *= 2;
    }
}

/// Asks one peer after another until one answers, and passes on what it says.
async fn ask(
    network: Arc<Network>,
    peers: Vec<NodeId>,
    question: Question,
    to: mpsc::Sender<(NodeId, Vec<u8>)>,
) {
    for peer in peers.into_iter().take(MAX_ASKED) {
        match converse(&network, peer, &question, &to).await {
            Ok(Answered::Something) => return,
            Ok(Answered::Nothing) => {
                tracing::debug!(peer = %peer.short(), "a peer gives no delta");
            }
            Err(error) => {
                tracing::debug!(peer = %peer.short(), %error, "a peer gives no delta");
                if to.is_closed() {
                    return;
                }
            }
        }
    }
}

enum Answered {
    Nothing,
    /// It may not have been all. Nobody else is asked: what is made goes on from its beginning to its end.
    Something,
}

async fn converse(
    network: &Network,
    peer: NodeId,
    question: &Question,
    to: &mpsc::Sender<(NodeId, Vec<u8>)>,
) -> io::Result<Answered> {
    let opened = timeout(QUIET, network.open_content(peer)).await;
    let ContentConnection { mut reader, mut writer } =
        opened.map_err(|_| io::ErrorKind::TimedOut)?.map_err(io::Error::other)?;
    for message in std::iter::once(&question.request).chain(&question.hashes) {
        let written = async {
            writer.write(message).await?;
            writer.flush().await
        };
        timeout(QUIET, written).await.map_err(|_| io::ErrorKind::TimedOut)??;
    }
    let (mut answered, mut heard) = (Answered::Nothing, 0);
    loop {
        match timeout(QUIET, reader.read()).await {
            Ok(Ok(Some(message))) => {
                answered = Answered::Something;
                if to.send((peer, message)).await.is_err() {
                    return Ok(answered);
                }
            }
            Ok(Ok(None)) => return Ok(answered),
            // What came is good as far as it goes.
            Ok(Err(_)) if matches!(answered, Answered::Something) => return Ok(answered),
            Ok(Err(error)) => return Err(io::Error::other(error)),
            Err(_) if heard != reader.received() => heard = reader.received(),
            Err(_) => match answered {
                Answered::Something => return Ok(answered),
                Answered::Nothing => return Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}
