//! The node's side of the control socket. What a request means is the business of a [`Service`].

use std::fs::Permissions;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader, BufWriter};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::control::wire::{self, Answer, Body, Envelope, EnvelopeVersion, Request};
use crate::error::Error;

/// Commands that are served at the same time. One more is told so and sent away.
const MAX_CONNECTIONS: usize = 128;

/// How long a command may take to send its request, and to take in the last line of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that is read and forgotten from a command that was answered before it had sent everything.
const MAX_IGNORED_BYTES: u64 = 1024 * 1024;

/// How long to wait before accepting again, when the system has no file handle left for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The body of a request.
pub(crate) type RequestBody = Body<BufReader<OwnedReadHalf>>;

/// What answers requests.
pub(crate) trait Service: Clone + Send + Sync + 'static {
    /// Answers `request` through `reply`. Only a [`Request::Put`] comes with a body. When the command goes away, the
    /// future is dropped; with a body, reading it fails instead. When the node stops, the future is dropped.
    fn answer(
        &self,
        request: Request,
        body: Option<RequestBody>,
        reply: &mut Reply,
    ) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Where an answer goes.
#[derive(Debug)]
pub(crate) struct Reply {
    writer: BufWriter<OwnedWriteHalf>,
}

impl Reply {
    /// Sends an item. It may wait in a buffer until [`Self::flush`] or the end of the answer.
    pub(crate) async fn item<T: Serialize + Sync>(&mut self, item: &T) -> Result<(), Error> {
        self.line(&Answer::Item(item)).await.map_err(gone)
    }

    /// Sends on what waits.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        self.writer.flush().await.map_err(gone)
    }

    /// Sends a body after its item. If it cannot be read to its end, it ends here, and the error that this returns
    /// has to become the last line of the answer.
    pub(crate) async fn body<R: AsyncRead + Unpin>(&mut self, mut body: R) -> Result<(), Error> {
        // Its first byte may be long in coming.
        self.writer.flush().await.map_err(gone)?;
        match wire::write_body(&mut self.writer, &mut body, |_| {}).await {
            Ok(()) => Ok(()),
            Err(wire::BodyError::Peer(error)) => Err(gone(error)),
            Err(wire::BodyError::Source(error)) => {
                wire::end_body(&mut self.writer).await.map_err(gone)?;
                Err(Error::failed(format!("the content could not be read to its end: {error}"))
                    .hint("`consort stat` shows who wrote it, `consort status` which nodes are connected; try again when one that has it is"))
            }
        }
    }

    async fn line<T: Serialize>(&mut self, answer: &Answer<&T>) -> io::Result<()> {
        let mut line = serde_json::to_vec(answer)?;
        line.push(b'\n');
        self.writer.write_all(&line).await
    }

    /// Sends the last line.
    async fn finish(&mut self, result: Result<(), Error>) -> io::Result<()> {
        let answer: Answer<&()> = match result {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Error(error.into()),
        };
        self.line(&answer).await?;
        self.writer.shutdown().await
    }
}

fn gone(error: io::Error) -> Error {
    Error::failed(format!("the command went away: {error}"))
}

/// The socket of a running node. Removed when dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Listens at `path`, in place of a socket that a crash left there. The caller holds the node's store, so that
    /// no other node can listen there.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        // Made under another name and then moved: nobody can connect before the permissions are set.
        let unready = path.with_extension("new");
        match std::fs::remove_file(&unready) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&unready)?;
        std::fs::set_permissions(&unready, Permissions::from_mode(0o600))?;
        std::fs::rename(&unready, path)?;
        Ok(Self { listener, path: path.to_path_buf() })
    }

    /// Answers commands until `stop` becomes true or its sender is gone; then ends those under way.
    pub(crate) async fn serve(self, service: impl Service, stop: watch::Receiver<bool>) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        let mut stopping = stop.clone();
        let stopped = stopping.wait_for(|stop| *stop);
        tokio::pin!(stopped);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = &mut stopped => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    let permit = Arc::clone(&permits).try_acquire_owned();
                    let (service, stop) = (service.clone(), stop.clone());
                    match permit {
                        Ok(permit) => {
                            connections.spawn(async move {
                                serve_one(stream, service, stop).await;
                                drop(permit);
                            });
                        }
                        Err(_) => turn_away(stream),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a command");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // From here on nobody new gets in; who is in hears `stop` too.
        while connections.join_next().await.is_some() {}
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A socket that stays is recognised as stale by the next node.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Tells one command too many to come back later, as far as that goes without waiting for it.
fn turn_away(stream: UnixStream) {
    let error = Error::failed(format!("the node is serving {MAX_CONNECTIONS} commands already"))
        .hint("end some that follow or watch, or try again later");
    let answer: Answer<()> = Answer::Error(error.into());
    let line = serde_json::to_string(&answer).unwrap_or_default() + "\n";
    let _ = stream.try_write(line.as_bytes());
}

async fn serve_one(stream: UnixStream, service: impl Service, mut stop: watch::Receiver<bool>) {
    let (reader, writer) = stream.into_split();
    let mut reply = Reply { writer: BufWriter::new(writer) };
    let stopped = async move {
        // An error means that the node itself is gone, which is as good a reason to stop.
        let _ = stop.wait_for(|stop| *stop).await;
    };
    let result = tokio::select! {
        result = converse(reader, &service, &mut reply) => result,
        () = stopped => Some(Err(Error::failed("the node is stopping").hint(
            "start it again with `consort up`",
        ))),
    };
    let Some(result) = result else { return };
    if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, reply.finish(result)).await {
        tracing::debug!(%error, "a command went away before its answer");
    }
}

/// One request and its answer but for the last line, or `None` if the command has gone away.
async fn converse(
    reader: OwnedReadHalf,
    service: &impl Service,
    reply: &mut Reply,
) -> Option<Result<(), Error>> {
    let mut reader = BufReader::new(reader);
    let request = match tokio::time::timeout(PATIENCE, read_request(&mut reader)).await {
        Ok(Ok(request)) => request?,
        Ok(Err(error)) => return Some(Err(error)),
        Err(_) => {
            return Some(Err(Error::usage("no request arrived in time")
                .hint("talk to the node with the `consort` command")));
        }
    };
    if matches!(request, Request::Put { .. }) {
        return Some(service.answer(request, Some(Body::new(reader)), reply).await);
    }
    tokio::select! {
        result = service.answer(request, None, reply) => Some(result),
        () = gone_away(&mut reader) => None,
    }
}

/// The request, or `None` if the connection closes without one.
async fn read_request(reader: &mut BufReader<OwnedReadHalf>) -> Result<Option<Request>, Error> {
    let refused = |what: &dyn std::fmt::Display| {
        Error::usage(format!("not a request: {what}"))
            .hint("talk to the node with the `consort` command")
    };
    let mut line = Vec::new();
    match wire::read_line(reader, &mut line, wire::MAX_REQUEST_BYTES).await {
        Ok(true) => {}
        Ok(false) => return Ok(None),
        Err(error) => return Err(refused(&error)),
    }
    let envelope: EnvelopeVersion =
        serde_json::from_slice(&line).map_err(|error| refused(&error))?;
    if envelope.version != wire::VERSION {
        let (theirs, ours) = (envelope.version, wire::VERSION);
        let message = format!("the command speaks version {theirs}, the node version {ours}");
        return Err(Error::usage(message).hint("restart the node with the program you call"));
    }
    let envelope: Envelope = serde_json::from_slice(&line).map_err(|error| refused(&error))?;
    Ok(Some(envelope.request))
}

/// Returns when the command closes its connection, or sends far more than it was asked for.
async fn gone_away(reader: &mut BufReader<OwnedReadHalf>) {
    let mut ignored = reader.take(MAX_IGNORED_BYTES);
    // An error means the same as the end: nobody is there.
    let _ = tokio::io::copy(&mut ignored, &mut tokio::io::sink()).await;
}
