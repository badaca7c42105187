//! One file that is being staged: how far it is. What is done with it next is decided in `apply/files.rs`.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use consort_core::content::manifest::Walk;
use consort_core::{ChunkHash, ChunkRef, Key, Version};

use super::copies::Sources;
use crate::content::LocalContent;
use crate::content::delta;
use crate::content::staged::StagedFile;
use crate::folder::status::{Progress, Underway};
use crate::folder::{Growing, Meta, PlaceError, Root, Staged, Staging};

/// A content of at most so many bytes is small: it is fetched before what is larger.
const SMALL_BYTES: u64 = 1 << 20;

/// A file that is staged, or could not be.
#[derive(Debug)]
pub(super) struct Ended {
    /// As given to [`Files::begin`](super::files::Files::begin).
    pub(super) job: u64,
    pub(super) slot: usize,
    pub(super) path: Key,
    pub(super) version: Arc<Version>,
    /// The file; or that it cannot be had now, and whether that is because the disk is full.
    pub(super) staged: Result<Staged, bool>,
    /// Its bytes.
    pub(super) written: Underway,
    /// Its chunks that were recorded nowhere before.
    pub(super) fresh: Option<StagedFile>,
}

/// A file that is being staged.
#[derive(Debug)]
pub(super) struct File {
    pub(super) job: u64,
    pub(super) slot: usize,
    pub(super) path: Key,
    pub(super) version: Arc<Version>,
    pub(super) is_large: bool,
    pub(super) staging: Option<Staging>,
    pub(super) written: Underway,
    /// Its chunks that are recorded nowhere: they came from peers, for this file or another one, now or before. Others may
    /// want them before it is recorded.
    pub(super) fresh: Option<StagedFile>,
    /// The chunks that were not looked for yet.
    pub(super) chunks: Option<Walk>,
    /// The manifest node without which no more can be looked for.
    pub(super) needs: Option<ChunkRef>,
    /// What is recorded of the file that it replaces, until it is known whether that can grow into it.
    pub(super) replaces: Option<Meta>,
    /// The file that is to grow into it.
    pub(super) growing: Option<Growing>,
    /// Up to where that was looked at, and is the same.
    pub(super) same_to: u64,
    /// The version that it replaces, as long as chunks may be made from that.
    pub(super) base: Option<std::fs::File>,
    /// What had arrived of it when it was given up, or when the process before this one ended.
    pub(super) arrived: Option<Arc<std::fs::File>>,
    /// Chunks that are not here and not wanted yet, in order: with a base, those that may be made from it.
    pub(super) lacking: VecDeque<(u64, ChunkRef)>,
    /// Goes with the file, and with it whoever makes chunks for it.
    pub(super) rebuilding: Option<Arc<()>>,
    /// Chunks that are looked for or made, or are wanted and have not arrived.
    pub(super) outstanding: usize,
    /// Bytes that were written and not written out.
    pub(super) written_since: u64,
    /// When something was written out last, or the file was begun.
    pub(super) written_out: Instant,
}

impl File {
    /// None of it is there yet.
    pub(super) fn new(
        job: u64,
        slot: usize,
        path: Key,
        version: Arc<Version>,
        replaces: Option<Meta>,
        progress: &Arc<Progress>,
    ) -> Self {
        Self {
            job,
            slot,
            path,
            is_large: is_large(&version),
            staging: None,
            written: Underway::new(progress),
            fresh: None,
            chunks: Some(Walk::new(&version.content)),
            needs: None,
            replaces,
            growing: None,
            same_to: 0,
            base: None,
            arrived: None,
            lacking: VecDeque::new(),
            rebuilding: None,
            outstanding: 0,
            written_since: 0,
            written_out: Instant::now(),
            version,
        }
    }

    /// Begins to stage it: if the file that it replaces can grow, only what comes behind that.
    pub(super) fn stage(&mut self, root: &Root) -> Result<&Staging, PlaceError> {
        let (content, size) = (self.version.content.id(), self.version.content.size());
        self.arrived = root.arrived(content).map(Arc::new);
        let replaced = root.open_file(&self.path).ok().map(|(replaced, _)| replaced);
        self.base = replaced.filter(|base| delta::is_base(base, &self.version.content));
        let old = self.replaces.take().filter(|_| self.base.is_none());
        self.growing = old.and_then(|old| root.growing(&self.path, &old, size));
        let tail = self.growing.as_ref().and_then(|_| root.stage_tail(content).ok());
        let staging = match tail {
            Some(tail) => tail,
            None => {
                self.growing = None;
                root.stage_large(content, u32::from(self.version.attributes.mode))?
            }
        };
        Ok(self.staging.insert(staging))
    }

    /// Where its chunks are looked for first.
    pub(super) fn sources(&self) -> Sources {
        let growing = self.growing.as_ref();
        let growing = growing.map(|growing| (Arc::clone(&growing.file), growing.old.size));
        Sources { arrived: self.arrived.clone(), growing }
    }

    /// Whether it may be a file that grows: its chunks are looked for there first, whoever else wants them.
    pub(super) fn may_grow(&self) -> bool {
        self.replaces.is_some() || self.growing.is_some()
    }

    /// Whether all its chunks were looked for, and none is under way.
    pub(super) fn is_looked_for(&self) -> bool {
        self.chunks.is_none() && self.outstanding == 0
    }

    /// Until the file is recorded, nobody else knows that a chunk is in it.
    pub(super) fn keep_in_mind(
        &mut self,
        root: &Arc<Root>,
        local: &LocalContent,
        hash: ChunkHash,
        offset: u64,
    ) {
        let Some(staging) = &self.staging else { return };
        let begin = || local.staged().begin(staging.peek(root, &self.path));
        self.fresh.get_or_insert_with(begin).add(hash, offset);
    }

    /// It is staged, or cannot be had now.
    pub(super) fn end(self, staged: Result<Staged, bool>) -> Ended {
        let Self { job, slot, path, version, written, fresh, .. } = self;
        Ended { job, slot, path, version, staged, written, fresh }
    }
}

/// Whether the content of a version is fetched after small ones.
pub(super) fn is_large(version: &Version) -> bool {
    SMALL_BYTES < version.content.size()
}
