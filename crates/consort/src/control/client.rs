//! A command's side of the control socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::control::socket_path;
use crate::control::wire::{self, Answer, Body, BodyError, Envelope, Request};
use crate::error::Error;
use crate::text;

/// How long a node may take to begin to start: it may have been called just before the command.
const BEGIN_TIME: Duration = Duration::from_millis(500);

/// How long a node that has its store open may take to listen to commands.
const START_TIME: Duration = Duration::from_secs(10);

/// How long to rest between two attempts to reach a node that does not listen.
const REST: Duration = Duration::from_millis(20);

/// A way to the node with a certain home. Every request opens a connection of its own.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    home: PathBuf,
}

/// An answer as it arrives. Dropping it cancels the request.
#[derive(Debug)]
pub(crate) struct Answers {
    reader: BufReader<OwnedReadHalf>,
    line: Vec<u8>,
    ended: bool,
    /// Held, since closing it would tell the node that we have gone. Nobody's if a body is being sent through it.
    writer: Option<OwnedWriteHalf>,
}

impl Client {
    /// The node with this home, running or not.
    pub(crate) fn new(home: &Path) -> Self {
        Self { home: home.to_path_buf() }
    }

    /// Whether the node runs.
    pub(crate) async fn is_up(&self) -> bool {
        UnixStream::connect(socket_path(&self.home)).await.is_ok()
    }

    /// Asks for what has nothing to answer.
    pub(crate) async fn tell(&self, request: Request) -> Result<(), Error> {
        self.ask(request).await?.end().await
    }

    /// Asks for one item.
    pub(crate) async fn one<T: DeserializeOwned>(&self, request: Request) -> Result<T, Error> {
        let mut answers = self.ask(request).await?;
        let item = answers.first().await?;
        answers.end().await?;
        Ok(item)
    }

    /// Asks for a list that fits into memory.
    pub(crate) async fn all<T: DeserializeOwned>(&self, request: Request) -> Result<Vec<T>, Error> {
        let mut answers = self.ask(request).await?;
        let mut items = Vec::new();
        while let Some(item) = answers.next().await? {
            items.push(item);
        }
        Ok(items)
    }

    /// Asks, and leaves the answer to the caller.
    pub(crate) async fn ask(&self, request: Request) -> Result<Answers, Error> {
        let stream = self.connect().await.map_err(|error| self.not_reached(&error))?;
        let (reader, mut writer) = stream.into_split();
        let envelope = Envelope { version: wire::VERSION, request };
        let mut line = serde_json::to_vec(&envelope).map_err(|error| {
            Error::usage(format!("this cannot be asked: {error}")).hint("report this as a defect")
        })?;
        line.push(b'\n');
        if wire::MAX_REQUEST_BYTES < line.len() {
            return Err(Error::usage("the names and values of this request are too long")
                .hint("a key has at most 1,024 bytes, metadata at most 2,048 in all"));
        }
        // A node that does not want to listen says why in its answer.
        let _ = writer.write_all(&line).await;
        let reader = BufReader::with_capacity(wire::MAX_FRAME_BYTES, reader);
        Ok(Answers { reader, line: Vec::new(), ended: false, writer: Some(writer) })
    }

    /// Asks with a body and for one item. `progress` hears how many bytes have gone.
    pub(crate) async fn one_with_body<T: DeserializeOwned>(
        &self,
        request: Request,
        body: &mut (impl AsyncRead + Unpin),
        progress: impl FnMut(u64),
    ) -> Result<T, Error> {
        let mut answers = self.ask(request).await?;
        let writer = answers.writer.take();
        let send = async move {
            let mut writer =
                writer.expect("a connection has a writing half until somebody takes it");
            match wire::write_body(&mut writer, body, progress).await {
                Err(BodyError::Source(error)) => error,
                // All is sent, or the node does not take it: either way the answer tells. Until it has come, the
                // connection stays open.
                Ok(()) | Err(BodyError::Peer(_)) => std::future::pending().await,
            }
        };
        let answer = async {
            let item = answers.first().await?;
            answers.end().await.map(|()| item)
        };
        tokio::select! {
            biased;
            item = answer => item,
            // The connection closes before the body's end, so the node keeps nothing of it.
            error = send => {
                Err(Error::failed(format!("cannot read what should be stored: {error}"))
                    .hint("nothing was stored; see that it can be read, and put it again"))
            }
        }
    }

    /// Connects. A node that was called just before the command, or that is starting, is waited for.
    async fn connect(&self) -> io::Result<UnixStream> {
        let (socket, began) = (socket_path(&self.home), Instant::now());
        loop {
            let error = match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) => error,
            };
            let is_away =
                matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
            if !is_away || !consort_node::is_member(&self.home) {
                return Err(error);
            }
            let in_use = consort_node::is_in_use(&self.home);
            if (if in_use { START_TIME } else { BEGIN_TIME }) <= began.elapsed() {
                return Err(error);
            }
            tokio::time::sleep(REST).await;
        }
    }

    fn not_reached(&self, error: &io::Error) -> Error {
        let home = text::plain(&self.home.display().to_string());
        match error.kind() {
            io::ErrorKind::NotFound if is_empty(&self.home) => {
                Error::failed(format!("there is no node in {home}"))
                    .hint("make one with `consort init` or `consort join TICKET`, or name another home with --home")
            }
            io::ErrorKind::NotFound if !consort_node::is_member(&self.home) => {
                let again = text::command(&self.home, "join TICKET");
                Error::failed(format!("the node in {home} is not part of a cluster yet"))
                    .hint(format!("a `join` that failed can be repeated: `{again}`; `consort init` begins a new cluster"))
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                if consort_node::is_in_use(&self.home) =>
            {
                Error::failed(format!("the node in {home} does not answer yet"))
                    .hint("it is still starting or stopping, or `consort doctor --deep` reads its store: try again later")
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::failed(format!("the node in {home} is not running"))
                    .hint(format!("start it with `{}`", text::command(&self.home, "up")))
            }
            io::ErrorKind::PermissionDenied => Error::new(
                crate::error::Kind::NotAllowed,
                format!("the node in {home} belongs to another user"),
            )
            .hint("call this as the user that runs the node"),
            _ => Error::failed(format!("cannot reach the node in {home}: {error}"))
                .hint("look at the home's path, and at the log of the node"),
        }
    }
}

impl Answers {
    /// The next item, or `None` when the answer is complete. May be dropped and called again.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        if self.ended {
            return Ok(None);
        }
        match wire::read_line(&mut self.reader, &mut self.line, wire::MAX_ANSWER_BYTES).await {
            Ok(true) => {}
            Ok(false) => return Err(broken(&"it ended early")),
            Err(error) => return Err(broken(&error)),
        }
        let answer = serde_json::from_slice(&self.line).map_err(|error| broken(&error))?;
        self.line.clear();
        self.ended = !matches!(answer, Answer::Item(_));
        match answer {
            Answer::Item(item) => Ok(Some(item)),
            Answer::Done => Ok(None),
            Answer::Error(error) => Err(error.into()),
        }
    }

    /// The first item, which there has to be.
    pub(crate) async fn first<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        self.next().await?.ok_or_else(|| broken(&"it is empty"))
    }

    /// The body that comes next. It has to be read to its end before anything else.
    pub(crate) fn body(&mut self) -> Body<&mut BufReader<OwnedReadHalf>> {
        Body::new(&mut self.reader)
    }

    /// Waits for the last line.
    pub(crate) async fn end(&mut self) -> Result<(), Error> {
        match self.next::<serde::de::IgnoredAny>().await? {
            None => Ok(()),
            Some(_) => Err(broken(&"it is longer than expected")),
        }
    }
}

/// The error for an answer that is not whole.
pub(crate) fn broken(why: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("the node's answer broke off or makes no sense: {why}"))
        .hint("see whether the node still runs: `consort status`, and its log")
}

/// Whether there is nothing at `path`, so that no node can have its home there.
fn is_empty(path: &Path) -> bool {
    std::fs::read_dir(path).map_or(true, |mut entries| entries.next().is_none())
}
