//! What travels over the control socket. One connection carries one request.
//!
//! ```text
//! command                                     node
//!   {"version":1,"request":{"op":"stat",..}}\n  →
//!   body, if the request has one (put)          →
//!                                               ←  {"item":..}\n     any number
//!                                               ←  body, if the answer has one (get), after its item
//!                                               ←  "done"\n  or  {"error":{..}}\n
//! ```
//!
//! A body is a sequence of frames, each a length (four bytes, big-endian, not zero) and as many bytes; a length of
//! zero ends it. So a peer that dies is never mistaken for the end of a body, and an answer without its last line is
//! never mistaken for a whole one. A command that closes its connection cancels its request.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite,
    AsyncWriteExt as _, ReadBuf, Take,
};

use crate::json;

/// The version of this protocol. Command and node come from one binary, so there is no need to speak older ones.
pub(crate) const VERSION: u32 = 1;

/// The length of a request line: a key, a directory's path and user metadata, several times over.
pub(crate) const MAX_REQUEST_BYTES: usize = 64 * 1024;

/// The length of a line of an answer. The longest is a status with its datasets, links and problems.
pub(crate) const MAX_ANSWER_BYTES: usize = 8 * 1024 * 1024;

/// The length of one frame of a body.
pub(crate) const MAX_FRAME_BYTES: usize = 256 * 1024;

/// The first line from a command.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) version: u32,
    pub(crate) request: Request,
}

/// The part of the first line that stays the same in all versions of the protocol.
#[derive(Debug, Deserialize)]
pub(crate) struct EnvelopeVersion {
    pub(crate) version: u32,
}

/// What a command may ask of the node. The items of the answer are named with each.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Request {
    /// One [`json::Ticket`].
    Invite { role: json::Role, expires_ms: u64, uses: u32 },
    /// Any number of [`json::Member`].
    Members,
    /// Nothing.
    Revoke { member: String },
    /// One [`json::Left`].
    Leave { timeout_ms: u64, force: bool },
    /// Stop waiting for a member.
    Evict { member: String },
    /// One [`json::Dataset`].
    CreateDataset {
        name: String,
        mode: json::Mode,
        authority: Option<String>,
        on_conflict: json::OnConflict,
    },
    /// Any number of [`json::Dataset`].
    Datasets,
    /// One [`json::Dataset`].
    Dataset { name: String },
    /// Nothing.
    DropDataset { name: String },
    /// One [`json::Linked`]. The directory is absolute.
    Link { name: String, dir: String, read_only: bool, allow_mass_delete: bool },
    /// One [`json::Unlinked`].
    Unlink { name: String },
    /// A body follows; one [`json::Put`].
    Put {
        name: String,
        key: String,
        media_type: Option<String>,
        origin: json::Origin,
        metadata: Vec<(String, String)>,
        mode: Option<u16>,
    },
    /// One [`json::Entry`], then a body. Of a certain version if there is one.
    Get { name: String, key: String, version: Option<String> },
    /// One [`json::Entry`]. Of a certain version if there is one.
    Stat { name: String, key: String, version: Option<String> },
    /// Any number of [`json::Entry`], by key.
    List { name: String, prefix: String },
    /// Nothing.
    Remove { name: String, key: String },
    /// Any number of [`json::Conflict`], by key.
    Conflicts { name: String },
    /// One [`json::Resolved`].
    Resolve { name: String, key: String, keep: String, seen: Vec<String> },
    /// Any number of [`json::Change`]; with `follow` it never ends by itself.
    Feed { name: String, since: Option<String>, follow: bool },
    /// One [`json::Waited`].
    Wait { name: String, timeout_ms: u64 },
    /// One [`json::Status`]; with `watch` another at every change. With a name, only of that dataset.
    Status { name: Option<String>, watch: bool },
    /// Any number of [`json::Finding`].
    Doctor,
}

/// A line of an answer.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer<T> {
    Item(T),
    Done,
    Error(json::Error),
}

/// Reads a line of at most `max` bytes into `line`, which keeps what has arrived when the future is dropped, so that
/// another call goes on from there. False at the end of the connection.
pub(crate) async fn read_line<R: AsyncBufRead + Unpin>(
    reader: &mut R,
    line: &mut Vec<u8>,
    max: usize,
) -> io::Result<bool> {
    let room = (max + 1).saturating_sub(line.len());
    reader.take(room as u64).read_until(b'\n', line).await?;
    match line.last() {
        Some(b'\n') => Ok(true),
        _ if max < line.len() => {
            let message = format!("a line of more than {max} bytes");
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
        None => Ok(false),
        Some(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Writes one frame of a body. `bytes` are not empty and at most [`MAX_FRAME_BYTES`].
pub(crate) async fn write_frame<W: AsyncWrite + Unpin>(
    writer: &mut W,
    bytes: &[u8],
) -> io::Result<()> {
    debug_assert!(!bytes.is_empty() && bytes.len() <= MAX_FRAME_BYTES, "checked by the caller");
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    writer.write_all(&length.to_be_bytes()).await?;
    writer.write_all(bytes).await
}

/// Writes all of `body` as frames, and its end. `progress` hears how many bytes have gone.
pub(crate) async fn write_body<W: AsyncWrite + Unpin, R: AsyncRead + Unpin>(
    writer: &mut W,
    body: &mut R,
    mut progress: impl FnMut(u64),
) -> Result<(), BodyError> {
    let mut buffer = vec![0; MAX_FRAME_BYTES];
    let mut written = 0;
    loop {
        let length = body.read(&mut buffer).await.map_err(BodyError::Source)?;
        if length == 0 {
            break;
        }
        write_frame(writer, &buffer[..length]).await.map_err(BodyError::Peer)?;
        written += length as u64;
        progress(written);
    }
    end_body(writer).await.map_err(BodyError::Peer)
}

/// Writes the end of a body.
pub(crate) async fn end_body<W: AsyncWrite + Unpin>(writer: &mut W) -> io::Result<()> {
    writer.write_all(&0u32.to_be_bytes()).await?;
    writer.flush().await
}

/// Why a body could not be sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// What should be sent cannot be read. The body has not ended for the receiver.
    #[error("{0}")]
    Source(io::Error),
    /// The receiver does not take it.
    #[error("{0}")]
    Peer(io::Error),
}

/// A body as it arrives. Reading fails if the sender goes away before the body's end.
#[derive(Debug)]
pub(crate) struct Body<R> {
    inner: Take<R>,
    state: BodyState,
}

#[derive(Debug)]
enum BodyState {
    /// Reading a length, of which so many bytes have arrived.
    Length([u8; 4], usize),
    /// Reading a frame; the limit of `inner` is what is left of it.
    Frame,
    Ended,
}

impl<R: AsyncRead + Unpin> Body<R> {
    /// The body that comes next from `reader`.
    pub(crate) fn new(reader: R) -> Self {
        Self { inner: reader.take(4), state: BodyState::Length([0; 4], 0) }
    }

    /// Takes in the length of the next frame. `Ok` when there is one, or the body has ended.
    fn poll_length(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let BodyState::Length(length, have) = &mut self.state {
            let mut rest = ReadBuf::new(&mut length[*have..]);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut rest))?;
            match rest.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                more => *have += more,
            }
            if *have < length.len() {
                continue;
            }
            let length = u32::from_be_bytes(*length);
            if MAX_FRAME_BYTES < length as usize {
                let message = format!("a frame of {length} bytes; the most is {MAX_FRAME_BYTES}");
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, message)));
            }
            self.inner.set_limit(length.into());
            self.state = if length == 0 { BodyState::Ended } else { BodyState::Frame };
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Body<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_length(cx))?;
        if matches!(self.state, BodyState::Ended) || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if buf.filled().len() == before {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        if self.inner.limit() == 0 {
            self.inner.set_limit(4);
            self.state = BodyState::Length([0; 4], 0);
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
    }

    #[test]
    fn a_body_comes_out_as_it_went_in_and_leaves_what_follows() {
        runtime().block_on(async {
            let sent: Vec<u8> = (0..=250).cycle().take(MAX_FRAME_BYTES * 2 + 77).collect();
            let mut wire = Vec::new();
            write_body(&mut wire, &mut &sent[..], |_| {}).await.expect("memory takes all");
            wire.extend(b"\"done\"\n");

            let mut reader = &wire[..];
            let mut received = Vec::new();
            Body::new(&mut reader).read_to_end(&mut received).await.expect("a whole body");
            assert_eq!(received, sent);
            assert_eq!(reader, b"\"done\"\n");
        });
    }

    #[test]
    fn a_body_that_breaks_off_anywhere_is_an_error() {
        runtime().block_on(async {
            let mut wire = Vec::new();
            write_body(&mut wire, &mut &b"hello"[..], |_| {}).await.expect("memory takes all");
            for end in 0..wire.len() {
                let error = Body::new(&wire[..end]).read_to_end(&mut Vec::new()).await;
                let error = error.expect_err("cut short");
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{end}");
            }
        });
    }

    #[test]
    fn a_frame_longer_than_the_bound_is_refused() {
        runtime().block_on(async {
            let wire = u32::MAX.to_be_bytes();
            let error = Body::new(&wire[..]).read_to_end(&mut Vec::new()).await;
            assert_eq!(error.expect_err("too long").kind(), io::ErrorKind::InvalidData);
        });
    }

    #[test]
    fn lines_are_bounded_and_whole() {
        runtime().block_on(async {
            let mut reader = &b"one\ntoo long\n"[..];
            let mut line = Vec::new();
            assert!(read_line(&mut reader, &mut line, 5).await.expect("fits"));
            assert_eq!(line, b"one\n");
            line.clear();
            let error = read_line(&mut reader, &mut line, 5).await.expect_err("too long");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);

            assert!(!read_line(&mut &b""[..], &mut Vec::new(), 5).await.expect("an end"));
            let error = read_line(&mut &b"hal"[..], &mut Vec::new(), 5).await.expect_err("cut");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        });
    }

    #[test]
    fn requests_are_read_back_and_unknown_ones_are_refused() {
        let request = Request::Put {
            name: "photos".into(),
            key: "a/b".into(),
            media_type: Some("image/png".into()),
            origin: json::Origin::Synthetic,
            metadata: vec![("k".into(), "v".into())],
            mode: Some(0o644),
        };
        let envelope = Envelope { version: VERSION, request };
        let text = serde_json::to_string(&envelope).expect("plain data");
        let back: Envelope = serde_json::from_str(&text).expect("what we wrote");
        assert_eq!(back.request, envelope.request);

        for wrong in [
            r#"{"version":1,"request":{"op":"format_disk"}}"#,
            r#"{"version":1,"request":{"op":"stat","name":"a"}}"#,
            r#"{"version":1,"request":{"op":"stat","name":"a","key":"b","more":1}}"#,
            r#"{"version":1}"#,
        ] {
            assert!(serde_json::from_str::<Envelope>(wrong).is_err(), "{wrong}");
        }
    }
}
