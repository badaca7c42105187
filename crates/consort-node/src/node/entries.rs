//! Single entries, and the feed.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use consort_core::content::chunker::Chunker;
use consort_core::content::manifest::ManifestBuilder;
use consort_core::limits::{
    MAX_CHUNK_BYTES, MAX_INLINE_BYTES, MAX_MEDIA_TYPE_BYTES, MAX_METADATA_BYTES,
};
use consort_core::model::attributes::MODE_MASK;
use consort_core::model::merge::Saw;
use consort_core::store::{LocalWrite, Sequence, View, Written};
use consort_core::{Attributes, ChunkRef, Content, Dot, Kind, OnConflict, Version};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::sync::mpsc;

use crate::content::Contents;
use crate::error::{ErrorKind, NodeError};
use crate::folder::{PRIVATE_DIR, is_private};
use crate::net::Role;
use crate::report::{Change, Entry, FeedCursor, Put, PutOptions};
use crate::runtime::wall_time;

use super::{Node, blocking, parse_key, removal};

/// Bytes of a body that are cut into chunks at once: several chunks, so that the chunker always sees a whole one.
const BODY_BUFFER_BYTES: usize = 4 * MAX_CHUNK_BYTES;
/// Pieces of a body that may wait for their reader.
const BODY_PIECES: usize = 16;
/// How long the chunks that are fetched at a time may take.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// Chunks that are fetched at a time for one body.
const FETCH_AHEAD: usize = 16;
/// The longest page of a listing or of a feed, in entries.
pub(super) const MAX_PAGE: usize = 1000;
/// The longest page of a feed, in bytes.
const FEED_PAGE_BYTES: usize = 1 << 20;

impl Node {
    /// Writes an entry. When this returns, it is durable here; if it fails, nothing was written.
    pub async fn put(
        &self,
        name: &str,
        key: &str,
        body: impl AsyncRead + Send + Unpin + 'static,
        options: PutOptions,
    ) -> Result<Put, NodeError> {
        self.require(&[Role::Writer, Role::Admin], "write")?;
        self.require_store()?;
        let fact = self.fact(name).await?;
        let key = parse_key(key)?;
        if is_private(&key) {
            let message = format!("{PRIVATE_DIR} is reserved, and cannot be part of a key");
            return Err(NodeError::usage(message).hint(
                "choose another key: no linked directory could show this one, as Consort keeps its own files there",
            ));
        }
        let attributes = attributes(options)?;
        let content = self.take_in(body).await?;
        let size = content.size();
        let write = LocalWrite { key, saw: Saw::Winner, content, attributes };
        let applied = self.write(fact.parameters.id, fact.on_conflict, vec![write]).await?;
        match applied.written.first() {
            Some(Written::New(dot) | Written::Same(dot)) => Ok(Put { dot: *dot, size }),
            _ => Err(NodeError::failed("the store did not write the entry")
                .hint("try again; if that does not help, report it as a defect")),
        }
    }

    /// Cuts a body into chunks and keeps them, or makes it inline if it is short.
    async fn take_in(&self, mut body: impl AsyncRead + Unpin) -> Result<Content, NodeError> {
        let broken = |error: io::Error| {
            NodeError::failed(format!(
                "the content could not be read: {error}; nothing was written"
            ))
            .hint("see that it can be read to its end, and put it again")
        };
        let mut buffer = Vec::with_capacity(BODY_BUFFER_BYTES);
        let mut manifest = ManifestBuilder::default();
        let mut chunker = Chunker::default();
        let mut first = true;
        loop {
            while buffer.len() < BODY_BUFFER_BYTES {
                let room = (BODY_BUFFER_BYTES - buffer.len()) as u64;
                if (&mut body).take(room).read_buf(&mut buffer).await.map_err(broken)? == 0 {
                    break;
                }
            }
            let at_end = buffer.len() < BODY_BUFFER_BYTES;
            if first && at_end && buffer.len() <= MAX_INLINE_BYTES {
                return Ok(Content::Inline(buffer.into()));
            }
            first = false;
            let store = self.shared.store.clone();
            (buffer, chunker, manifest) = blocking(move || {
                let mut failed = None;
                let mut keep = |bytes: &[u8]| match store.pack(bytes) {
                    Ok(_) => {}
                    Err(error) => failed = Some(error),
                };
                let mut used = 0;
                while used < buffer.len() && (at_end || MAX_CHUNK_BYTES <= buffer.len() - used) {
                    let rest = &buffer[used..];
                    let chunk = &rest[..chunker.next(rest)];
                    keep(chunk);
                    used += chunk.len();
                    manifest.push(ChunkRef::to(chunk), &mut |_, node| keep(node));
                }
                match failed {
                    Some(error) => Err(error.into()),
                    None => {
                        buffer.drain(..used);
                        Ok((buffer, chunker, manifest))
                    }
                }
            })
            .await?;
            if at_end {
                break;
            }
        }
        let store = self.shared.store.clone();
        blocking(move || {
            let mut failed = Ok(());
            let content = manifest.finish(&mut |_, node| {
                if failed.is_ok() {
                    failed = store.pack(node).map(drop);
                }
            });
            failed?;
            content.map_err(|error| {
                NodeError::usage(error.to_string()).hint("store it as several entries")
            })
        })
        .await
    }

    /// Reads an entry. What of it is not here is fetched from peers; every byte is verified.
    pub async fn get(&self, name: &str, key: &str) -> Result<(Entry, GetBody), NodeError> {
        self.read(name, key, None).await
    }

    /// Reads one of the concurrent versions of an entry, also one that lost.
    pub async fn get_version(
        &self,
        name: &str,
        key: &str,
        version: Dot,
    ) -> Result<(Entry, GetBody), NodeError> {
        self.read(name, key, Some(version)).await
    }

    async fn read(
        &self,
        name: &str,
        key: &str,
        version: Option<Dot>,
    ) -> Result<(Entry, GetBody), NodeError> {
        let (policy, siblings) = self.siblings(name, key).await?;
        let found = find(policy, &siblings, version, (name, key))?;
        let body = GetBody::start(Arc::clone(&self.shared.contents), found.content.clone());
        Ok((entry(key, found, &siblings, policy), body))
    }

    /// What is known of an entry.
    pub async fn stat(&self, name: &str, key: &str) -> Result<Entry, NodeError> {
        let (policy, siblings) = self.siblings(name, key).await?;
        Ok(entry(key, find(policy, &siblings, None, (name, key))?, &siblings, policy))
    }

    /// What is known of one of the concurrent versions of an entry, also of one that lost.
    pub async fn stat_version(
        &self,
        name: &str,
        key: &str,
        version: Dot,
    ) -> Result<Entry, NodeError> {
        let (policy, siblings) = self.siblings(name, key).await?;
        Ok(entry(key, find(policy, &siblings, Some(version), (name, key))?, &siblings, policy))
    }

    /// The live entries above `after` whose keys begin with `prefix`, in key order, at most `limit`. Fewer than that
    /// are the last ones.
    pub async fn list(
        &self,
        name: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Entry>, NodeError> {
        let fact = self.fact(name).await?;
        let (dataset, policy) = (fact.parameters.id, fact.on_conflict);
        let mut after = after.map(parse_key).transpose()?;
        let (store, prefix) = (self.shared.store.clone(), prefix.to_owned());
        let limit = limit.min(MAX_PAGE);
        blocking(move || {
            let view = store.view(dataset)?;
            let mut entries = Vec::new();
            loop {
                let page = view.scan(&prefix, after.as_ref(), MAX_PAGE)?;
                let Some((last, _)) = page.last() else { return Ok(entries) };
                after = Some(last.clone());
                for (key, held) in page {
                    let siblings: Vec<Version> = held.into_iter().map(|s| s.version).collect();
                    match policy.winner(&siblings) {
                        Some(winner) if !winner.is_deleted() => {
                            entries.push(entry(&key, winner, &siblings, policy));
                        }
                        _ => continue,
                    }
                    if entries.len() == limit {
                        return Ok(entries);
                    }
                }
            }
        })
        .await
    }

    /// Deletes an entry.
    pub async fn remove(&self, name: &str, key: &str) -> Result<(), NodeError> {
        self.require(&[Role::Writer, Role::Admin], "delete")?;
        self.require_store()?;
        let fact = self.fact(name).await?;
        let removal = removal(parse_key(key)?);
        let applied = self.write(fact.parameters.id, fact.on_conflict, vec![removal]).await?;
        match applied.written.first() {
            Some(Written::New(_)) => Ok(()),
            _ => Err(not_there(name, key)),
        }
    }

    /// The changes after `since`, in the order in which this node applied them, at most `limit`. None at the end.
    pub async fn feed(
        &self,
        name: &str,
        since: FeedCursor,
        limit: usize,
    ) -> Result<Vec<Change>, NodeError> {
        let fact = self.fact(name).await?;
        let (dataset, policy) = (fact.parameters.id, fact.on_conflict);
        let (store, limit) = (self.shared.store.clone(), limit.min(MAX_PAGE));
        blocking(move || {
            let view = store.view(dataset)?;
            let head = view.summary().head;
            let epoch = head.epoch.0;
            let is_here = since.epoch == epoch && since.sequence <= head.sequence.0;
            if since != FeedCursor::START && !is_here {
                let message = "this place is not in this node's feed: it is another node's, or the store was made anew";
                return Err(NodeError::new(ErrorKind::Conflict, message)
                    .hint("start over without --since; entries that you know come again"));
            }
            let rows = view.feed(Sequence(since.sequence), FEED_PAGE_BYTES)?;
            let change = |row: consort_core::store::FeedRow| {
                let siblings: Vec<Version> =
                    view.siblings(&row.entry.key)?.into_iter().map(|s| s.version).collect();
                let cursor = FeedCursor { epoch, sequence: row.sequence.0 };
                let entry = entry(&row.entry.key, &row.entry.version, &siblings, policy);
                Ok(Change { cursor, entry })
            };
            rows.into_iter().take(limit).map(change).collect()
        })
        .await
    }

    /// Returns when the feed has something after `after`.
    pub async fn feed_grows(&self, name: &str, after: FeedCursor) -> Result<(), NodeError> {
        let mut changed = self.shared.watch();
        loop {
            changed.borrow_and_update();
            let dataset = self.fact(name).await?.parameters.id;
            let view = self.shared.store.view(dataset)?;
            // The end of the feed may be further although every change on the way there was replaced since.
            if !view.feed(Sequence(after.sequence), 1)?.is_empty() {
                return Ok(());
            }
            drop(view);
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
    }

    /// The current versions of a key, and the policy that they are shown by.
    pub(super) async fn siblings(
        &self,
        name: &str,
        key: &str,
    ) -> Result<(OnConflict, Vec<Version>), NodeError> {
        let fact = self.fact(name).await?;
        let key = parse_key(key)?;
        let store = self.shared.store.clone();
        let dataset = fact.parameters.id;
        let siblings = blocking(move || {
            let held = store.view(dataset)?.siblings(&key)?;
            Ok(held.into_iter().map(|stored| stored.version).collect())
        });
        Ok((fact.on_conflict, siblings.await?))
    }
}

/// The bytes of an entry, as they are read or arrive. Ends with an error if they cannot all be had.
#[derive(Debug)]
pub struct GetBody {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    used: usize,
}

impl GetBody {
    fn start(contents: Arc<Contents>, content: Content) -> Self {
        let (sender, pieces) = mpsc::channel(BODY_PIECES);
        // Ends when the reader is gone: then sending fails.
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send_pieces(&contents, &content, &sender) {
                let _ = sender.blocking_send(Err(io::Error::other(error.message)));
            }
        });
        Self { pieces, current: Vec::new(), used: 0 }
    }
}

fn send_pieces(
    contents: &Contents,
    content: &Content,
    to: &mpsc::Sender<io::Result<Vec<u8>>>,
) -> Result<(), NodeError> {
    if let Content::Inline(bytes) = content {
        let _ = to.blocking_send(Ok(bytes.to_vec()));
        return Ok(());
    }
    let mut chunks = contents.chunks_of(content, FETCH_TIMEOUT);
    loop {
        let mut missing: Vec<ChunkRef> = Vec::new();
        let mut ended = false;
        while missing.len() < FETCH_AHEAD {
            let Some((_, chunk)) = chunks.next().transpose()? else {
                ended = true;
                break;
            };
            match contents.local().read_early(&chunk)? {
                Some(bytes) if missing.is_empty() => {
                    if to.blocking_send(Ok(bytes)).is_err() {
                        return Ok(());
                    }
                }
                // In order: what is here has to wait for what is not.
                _ => missing.push(chunk),
            }
        }
        let here: Vec<Option<Vec<u8>>> = missing
            .iter()
            .map(|chunk| contents.local().read_early(chunk))
            .collect::<Result<_, _>>()?;
        let wanted: Vec<ChunkRef> = missing
            .iter()
            .zip(&here)
            .filter(|(_, here)| here.is_none())
            .map(|(chunk, _)| *chunk)
            .collect();
        let fetched = contents
            .fetcher()
            .fetch_all(&wanted, FETCH_TIMEOUT)
            .map_err(crate::content::ContentError::from)?;
        let mut fetched = fetched.into_iter();
        for here in here {
            let bytes = here.or_else(|| fetched.next().map(|bytes| bytes.to_vec()));
            let bytes = bytes.expect("what was not here was fetched, one for one");
            if to.blocking_send(Ok(bytes)).is_err() {
                return Ok(());
            }
        }
        if ended {
            return Ok(());
        }
    }
}

impl AsyncRead for GetBody {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.used == self.current.len() {
            match self.pieces.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(piece))) => (self.current, self.used) = (piece, 0),
            }
        }
        let length = to.remaining().min(self.current.len() - self.used);
        to.put_slice(&self.current[self.used..self.used + length]);
        self.used += length;
        Poll::Ready(Ok(()))
    }
}

fn attributes(options: PutOptions) -> Result<Attributes, NodeError> {
    let PutOptions { media_type, origin, mut metadata, mode } = options;
    if media_type.as_ref().is_some_and(|text| MAX_MEDIA_TYPE_BYTES < text.len()) {
        return Err(NodeError::usage(format!(
            "a media type has at most {MAX_MEDIA_TYPE_BYTES} bytes"
        ))
        .hint("shorten what is after --type"));
    }
    metadata.sort();
    // Each name and value has a length of up to two bytes before it.
    let bytes: usize = metadata.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    if MAX_METADATA_BYTES < bytes {
        return Err(NodeError::usage(format!(
            "metadata has at most {MAX_METADATA_BYTES} bytes in all"
        ))
        .hint("keep what is longer in an entry of its own"));
    }
    if metadata.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(
            NodeError::usage("a name of metadata is given twice").hint("give each name one value")
        );
    }
    Ok(Attributes {
        kind: Kind::File,
        mode: mode.unwrap_or(0o644) & MODE_MASK,
        modified_ns: i64::try_from(wall_time().0.saturating_mul(1_000_000)).unwrap_or(i64::MAX),
        origin,
        media_type: media_type.map(String::into_boxed_str),
        metadata: metadata.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        ..Attributes::default()
    })
}

/// The version that was asked for: the winner, if it was none in particular.
pub(super) fn find<'v>(
    policy: OnConflict,
    siblings: &'v [Version],
    version: Option<Dot>,
    (name, key): (&str, &str),
) -> Result<&'v Version, NodeError> {
    let winner = policy.winner(siblings).filter(|winner| !winner.is_deleted());
    let winner = winner.ok_or_else(|| not_there(name, key))?;
    let Some(dot) = version else { return Ok(winner) };
    let found = siblings.iter().find(|version| version.dot == dot && !version.is_deleted());
    found.ok_or_else(|| {
        let message = format!("{key:?} in {name} has no version {dot}, or it was replaced");
        let hint = format!("`consort stat {name} KEY` shows the current one, `consort conflicts {name}` those beside it");
        NodeError::new(ErrorKind::Conflict, message).hint(hint)
    })
}

fn not_there(name: &str, key: &str) -> NodeError {
    NodeError::failed(format!("there is no entry {key:?} in {name}"))
        .hint(format!("`consort ls {name}` shows the entries"))
}

pub(super) fn entry(
    key: &str,
    version: &Version,
    siblings: &[Version],
    policy: OnConflict,
) -> Entry {
    let attributes = &version.attributes;
    Entry {
        key: key.to_owned(),
        kind: attributes.kind,
        size: version.content.size(),
        mode: attributes.mode,
        modified_ns: attributes.modified_ns,
        dot: version.dot,
        media_type: attributes.media_type.as_deref().map(str::to_owned),
        origin: attributes.origin,
        metadata: attributes
            .metadata
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect(),
        conflicts: policy.losers(siblings).len(),
        deleted: version.is_deleted(),
    }
}
