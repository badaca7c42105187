//! Frames: a length in four little-endian bytes, then that many bytes. What is in them is the
//! caller's business.
//!
//! The length is a claim: a reader's memory grows with what has arrived, not with what was
//! announced.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The largest frame on a control connection, in bytes. A message of the core is a part of this; it
/// also is how long a small message can wait behind a large one.
pub const MAX_CONTROL_FRAME_BYTES: usize = 1 << 20;

/// The largest frame on a content connection, in bytes. Content is fetched in batches of about 1
/// MiB, which may go over that by their last chunk (256 KiB) and by their headers.
pub const MAX_CONTENT_FRAME_BYTES: usize = 2 << 20;

/// A reader's first allocation for a frame; it doubles while bytes keep coming.
const FIRST_ALLOCATION: usize = 64 << 10;

/// How much a writer gathers before it writes: one TLS record.
const WRITE_BUFFER_BYTES: usize = 16 << 10;

const _: () = assert!(MAX_CONTROL_FRAME_BYTES <= MAX_CONTENT_FRAME_BYTES);
const _: () = assert!(MAX_CONTENT_FRAME_BYTES <= u32::MAX as usize);

/// Why no frame was read. The connection is of no further use.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The peer announced more than it may send.
    #[error("the peer announced a frame of {length} bytes; at most {max} are allowed")]
    Oversize {
        /// What it announced.
        length: usize,
        /// What is allowed.
        max: usize,
    },
    /// The peer announced a frame with nothing in it, which means nothing.
    #[error("the peer sent an empty frame")]
    Empty,
    /// The connection ended inside a frame.
    #[error("the connection ended in the middle of a frame")]
    Truncated,
    /// The connection failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: R,
    max: usize,
    header: Header,
    body: Vec<u8>,
    received: u64,
}

/// How much of a frame's length is known.
#[derive(Debug)]
enum Header {
    Partial { bytes: [u8; 4], filled: usize },
    Complete { length: usize },
}

impl Header {
    const NONE: Self = Self::Partial { bytes: [0; 4], filled: 0 };
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from `inner`; frames above `max` bytes are errors.
    pub fn new(inner: R, max: usize) -> Self {
        Self { inner, max, header: Header::NONE, body: Vec::new(), received: 0 }
    }

    /// The next frame, or `None` when the peer has closed the connection between two frames. Cancel
    /// safe: what has arrived of a frame is kept for the next call.
    pub async fn read(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        let Some(length) = self.read_header().await? else { return Ok(None) };
        while self.body.len() < length {
            let missing = length - self.body.len();
            if self.body.len() == self.body.capacity() {
                self.body.reserve_exact(missing.min(self.body.len().max(FIRST_ALLOCATION)));
            }
            let mut rest = (&mut self.inner).take(missing as u64);
            match rest.read_buf(&mut self.body).await? {
                0 => return Err(FrameError::Truncated),
                arrived => self.received += arrived as u64,
            }
        }
        self.header = Header::NONE;
        Ok(Some(std::mem::take(&mut self.body)))
    }

    /// Gives back the memory of a frame that is not needed any more, for the next one: the system clears fresh memory,
    /// which costs more than to copy a frame into it.
    pub fn reuse(&mut self, frame: Vec<u8>) {
        if self.body.is_empty() && self.body.capacity() < frame.capacity() {
            self.body = frame;
            self.body.clear();
        }
    }

    /// Bytes that have arrived so far: whether the peer is alive while a long frame is on its way.
    pub fn received(&self) -> u64 {
        self.received
    }

    async fn read_header(&mut self) -> Result<Option<usize>, FrameError> {
        loop {
            match &mut self.header {
                Header::Complete { length } => return Ok(Some(*length)),
                Header::Partial { bytes, filled: 4 } => {
                    let length = u32::from_le_bytes(*bytes) as usize;
                    if length == 0 {
                        return Err(FrameError::Empty);
                    }
                    if length > self.max {
                        return Err(FrameError::Oversize { length, max: self.max });
                    }
                    self.header = Header::Complete { length };
                }
                Header::Partial { bytes, filled } => {
                    match self.inner.read(&mut bytes[*filled..]).await? {
                        0 if *filled == 0 => return Ok(None),
                        0 => return Err(FrameError::Truncated),
                        arrived => {
                            *filled += arrived;
                            self.received += arrived as u64;
                        }
                    }
                }
            }
        }
    }
}

/// Writes frames. Nothing is certain to be on its way before [`flush`](Self::flush).
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    max: usize,
    buffer: Vec<u8>,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes to `inner`; frames above `max` bytes are errors.
    pub fn new(inner: W, max: usize) -> Self {
        Self { inner, max, buffer: Vec::with_capacity(WRITE_BUFFER_BYTES) }
    }

    /// Writes one frame. Not cancel safe: a call that was dropped leaves half a frame on the wire.
    ///
    /// An empty frame or one that is too large is [`io::ErrorKind::InvalidInput`], and nothing was
    /// written.
    pub async fn write(&mut self, frame: &[u8]) -> io::Result<()> {
        self.write_parts(&[frame]).await
    }

    /// Writes one frame that consists of `parts` in this order, so that a large part need not be
    /// copied behind its header. Otherwise like [`write`](Self::write).
    pub async fn write_parts(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let header = match u32::try_from(length) {
            Ok(header) if (1..=self.max).contains(&length) => header,
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "a frame has 1 to max bytes",
                ));
            }
        };
        self.put(&header.to_le_bytes()).await?;
        for part in parts {
            self.put(part).await?;
        }
        Ok(())
    }

    /// Sends what was gathered.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.drain().await?;
        self.inner.flush().await
    }

    /// Sends what was gathered and tells the peer that nothing more will come.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        self.drain().await?;
        self.inner.shutdown().await
    }

    /// Fills the buffer up to one TLS record, and lets whole records of a large part pass it by.
    async fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        let room = WRITE_BUFFER_BYTES - self.buffer.len();
        let (head, rest) = bytes.split_at(room.min(bytes.len()));
        self.buffer.extend_from_slice(head);
        if self.buffer.len() < WRITE_BUFFER_BYTES {
            return Ok(());
        }
        self.drain().await?;
        let (whole, tail) = rest.split_at(rest.len() - rest.len() % WRITE_BUFFER_BYTES);
        self.inner.write_all(whole).await?;
        self.buffer.extend_from_slice(tail);
        Ok(())
    }

    async fn drain(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    fn read_all(mut bytes: &[u8], max: usize) -> (Vec<Vec<u8>>, Option<FrameError>) {
        block_on(async {
            let mut reader = FrameReader::new(&mut bytes, max);
            let mut frames = Vec::new();
            loop {
                match reader.read().await {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => return (frames, None),
                    Err(error) => return (frames, Some(error)),
                }
            }
        })
    }

    #[test]
    fn frames_with_nothing_in_them_are_refused() {
        let (frames, error) = read_all(&[0, 0, 0, 0], 10);
        assert!(frames.is_empty() && matches!(error, Some(FrameError::Empty)));
    }

    #[test]
    fn frames_above_the_limit_are_refused_before_anything_is_allocated() {
        let (frames, error) = read_all(&[11, 0, 0, 0, 1], 10);
        assert!(frames.is_empty());
        assert!(matches!(error, Some(FrameError::Oversize { length: 11, max: 10 })));
    }

    #[test]
    fn a_connection_that_ends_inside_a_frame_is_not_a_clean_end() {
        for cut in [&[3, 0][..], &[3, 0, 0, 0], &[3, 0, 0, 0, 1, 2]] {
            assert!(matches!(read_all(cut, 10).1, Some(FrameError::Truncated)), "{cut:?}");
        }
    }

    #[test]
    fn memory_follows_what_arrived_and_not_what_was_announced() {
        block_on(async {
            let (mut peer, end) = tokio::io::duplex(1024);
            let mut reader = FrameReader::new(end, MAX_CONTENT_FRAME_BYTES);
            peer.write_all(&(2u32 << 20).to_le_bytes()).await.unwrap();
            peer.write_all(&[7; 100]).await.unwrap();
            tokio::select! {
                biased;
                _ = reader.read() => panic!("the frame is not complete"),
                () = std::future::ready(()) => {}
            }
            assert_eq!((reader.body.len(), reader.received()), (100, 104));
            assert!(reader.body.capacity() <= FIRST_ALLOCATION);
        });
    }

    #[test]
    fn the_memory_of_a_frame_that_is_given_back_is_used_again() {
        let mut wire: &[u8] = &[[1, 0, 0, 0, 7], [1, 0, 0, 0, 8]].concat();
        block_on(async {
            let mut reader = FrameReader::new(&mut wire, 10);
            let first = reader.read().await.unwrap().unwrap();
            let memory = first.as_ptr();
            reader.reuse(first);
            let second = reader.read().await.unwrap().unwrap();
            assert_eq!((second.as_slice(), second.as_ptr()), (&[8][..], memory));
        });
    }

    #[test]
    fn frames_that_may_not_be_sent_are_not_written() {
        block_on(async {
            let mut writer = FrameWriter::new(Vec::new(), 10);
            assert!(writer.write(&[]).await.is_err());
            assert!(writer.write(&[0; 11]).await.is_err());
            writer.flush().await.unwrap();
            assert!(writer.inner.is_empty());
        });
    }

    proptest! {
        #[test]
        fn frames_arrive_as_they_were_written(
            sizes in proptest::collection::vec((0usize..40_000, 1usize..40_000), 0..6),
        ) {
            let frames: Vec<[Vec<u8>; 2]> =
                sizes.iter().map(|&(a, b)| [vec![1; a], (0..=250).cycle().take(b).collect()]).collect();
            let wire = block_on(async {
                let mut writer = FrameWriter::new(Vec::new(), 1 << 20);
                for [header, payload] in &frames {
                    writer.write_parts(&[header, payload]).await.unwrap();
                }
                writer.flush().await.unwrap();
                writer.inner
            });
            let (read, error) = read_all(&wire, 1 << 20);
            prop_assert!(error.is_none());
            prop_assert_eq!(read, frames.iter().map(|parts| parts.concat()).collect::<Vec<_>>());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            read_all(&bytes, 64);
        }
    }
}
