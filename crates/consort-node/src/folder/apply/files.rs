//! Getting the content of files into staging: chunk by chunk, from this machine or from peers, many files at a time. Chunks
//! that are not here are first made from the version that is replaced, where that is possible. What one file is on its way is
//! in `file.rs`, what is wanted from peers in `wants.rs`, which files wait for what nobody has in `stalled.rs`, what is left of
//! those that are given up in `leftovers.rs`. Which files are begun, and what becomes of them, is decided in `apply.rs`.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::content::manifest::{Step, Walk};
use consort_core::content::transfer::Urgency;
use consort_core::{ChunkHash, ChunkRef, Content, Key, Version};
use crossbeam_channel::Receiver;

use super::copies::{Copied, Copier, Copy, Found, MAX_LOOKED_FOR};
use super::file::{Ended, File, is_large};
use super::leftovers::Leftovers;
use super::stalled::Stalled;
use super::wants::{PutOff, Taker, Wants, leaves_room};
use crate::content::delta::{self, Rebuild, Rebuilder, Rebuilt};
use crate::content::staged::StagedFile;
use crate::content::{ChunkBytes, ContentError, Contents, Fetched, Written};
use crate::folder::place::share_of_open_files;
use crate::folder::status::Progress;
use crate::folder::{Becomes, Growing, Meta, PlaceError, Root, Staging};

/// Files that are open for writing, if the process may open so many. More would only wait for their chunks.
pub(super) const MAX_OPEN_FILES: usize = 512;
/// Large files that are begun at a time. Further ones have to wait where they cost nothing, so that small ones pass them.
pub(super) const MAX_LARGE: usize = 1024;
/// Large files that wait for a manifest node at a time. Those after them are not looked into yet.
const MAX_WAITING_FOR_NODES: usize = 64;
/// Files that are known to be unable to grow. What goes beyond that is found out once more.
const MAX_WHOLE: usize = MAX_LARGE;
/// When so much was written of a file, it is written out; over a slow link less, so that little is left when it is complete.
const WRITE_OUT_BYTES: u64 = 64 << 20;
const WRITE_OUT_SLOW_BYTES: u64 = 8 << 20;
const WRITE_OUT_AFTER: Duration = Duration::from_millis(500);

/// The files that are being staged.
#[derive(Debug)]
pub(super) struct Files {
    root: Arc<Root>,
    contents: Arc<Contents>,
    progress: Arc<Progress>,
    wants: Wants,
    stalled: Stalled,
    files: HashMap<u64, File>,
    /// How many of them are large.
    large: usize,
    open: usize,
    /// How many may be, as things are in this pass.
    max_open: usize,
    next_id: u64,
    /// The files whose chunks are being looked for: the small ones first, then in the order in which they were begun, so
    /// that nodes that fetch the same fetch it in the same order and can give it to each other.
    searching: BTreeSet<(bool, u64)>,
    /// Files that are complete, and that somebody else could still write to.
    held: BTreeSet<u64>,
    ended: Vec<Ended>,
    /// Files that could not grow where they stand: the next time, they are written anew.
    whole: BTreeSet<Key>,
    leftovers: Leftovers,
    rebuilder: Rebuilder,
    copier: Copier,
    /// Chunks that are looked for.
    looked_for: usize,
    /// Those of them of which the copier was not told yet.
    to_copy: Option<Copy>,
}

/// Where it is told what became of chunks.
#[derive(Debug)]
pub(super) struct News {
    pub(super) fetched: Receiver<Fetched>,
    pub(super) copied: Receiver<Copied>,
    pub(super) rebuilt: Receiver<Rebuilt>,
}

impl Files {
    /// None yet. What the fetcher, the copier and the rebuilder send arrives at the receivers, and belongs to
    /// [`on_fetched`](Self::on_fetched), [`on_copied`](Self::on_copied) and [`on_rebuilt`](Self::on_rebuilt).
    pub(super) fn new(
        root: Arc<Root>,
        contents: Arc<Contents>,
        progress: Arc<Progress>,
    ) -> std::io::Result<(Self, News)> {
        let (copier, copied) = Copier::start(contents.local())?;
        let (rebuilder, rebuilt) = Rebuilder::start(contents.fetcher())?;
        let leftovers = Leftovers::new(Arc::clone(&root));
        let (wants, fetched) = Wants::new(Arc::clone(&contents));
        let files = Self {
            root,
            contents,
            progress,
            wants,
            stalled: Stalled::default(),
            files: HashMap::new(),
            large: 0,
            open: 0,
            max_open: MAX_OPEN_FILES,
            next_id: 0,
            searching: BTreeSet::new(),
            held: BTreeSet::new(),
            ended: Vec::new(),
            whole: BTreeSet::new(),
            leftovers,
            rebuilder,
            copier,
            looked_for: 0,
            to_copy: None,
        };
        Ok((files, News { fetched, copied, rebuilt }))
    }

    /// Whatever could not be had may be there now.
    pub(super) fn begin_pass(&mut self) {
        self.max_open = MAX_OPEN_FILES.min(share_of_open_files());
        self.stalled.begin_pass();
        self.look_again();
    }

    /// Something has changed. What a file waits for and nobody has may be here now.
    pub(super) fn look_again(&mut self) {
        let waiting = self.wants.one_for_each(self.stalled.files());
        for chunk in waiting.into_values() {
            self.take_if_here(chunk);
        }
    }

    /// Takes a chunk that is wanted and came here another way. The file goes on then, and finds what else came.
    fn take_if_here(&mut self, chunk: ChunkRef) -> bool {
        let Ok(Some(bytes)) = self.contents.local().read_early(&chunk) else { return false };
        self.take(chunk, &bytes.into(), None);
        self.wants.give_up(vec![chunk]);
        true
    }

    /// Whether something cannot be had, or could not be since [`begin_pass`](Self::begin_pass).
    pub(super) fn are_missing(&self) -> bool {
        self.stalled.are_missing()
    }

    /// Files that were to grow and cannot.
    pub(super) fn replace_whole(&mut self, ungrown: Vec<Key>) {
        let room = MAX_WHOLE.saturating_sub(self.whole.len());
        self.whole.extend(ungrown.into_iter().take(room));
    }

    /// Whether no more files should be begun now. As long as that can be, further ones are begun before the chunks of large
    /// ones are looked for: they may be small.
    pub(super) fn is_full(&self) -> bool {
        self.wants.are_enough(false) || self.max_open <= self.open || self.wants.are_nodes_enough()
    }

    /// Whether another large file may be begun.
    pub(super) fn takes_large(&self) -> bool {
        self.large < MAX_LARGE
    }

    /// Whether so many large files have ended that it is worth looking for more of them.
    pub(super) fn has_room_for_large(&self) -> bool {
        self.large <= MAX_LARGE / 2
    }

    /// Begins with a file. It will be among the [ended](Self::take_ended), unless it is canceled. If it is known which file it
    /// replaces, that may grow.
    pub(super) fn begin(
        &mut self,
        job: u64,
        slot: usize,
        path: Key,
        version: Arc<Version>,
        replaces: Option<Meta>,
    ) {
        let could_not_grow = self.whole.remove(&path);
        let replaces = replaces.filter(|_| is_large(&version) && !could_not_grow);
        if is_large(&version) {
            self.leftovers.begin(&path, version.content.id());
        }
        if self.files.is_empty() {
            self.progress.begins();
        }
        let file = File::new(job, slot, path, version, replaces, &self.progress);
        let is_large = file.is_large;
        self.large += usize::from(is_large);
        self.files.insert(self.next_id, file);
        self.searching.insert((is_large, self.next_id));
        self.next_id += 1;
    }

    /// What ended since it was asked last.
    pub(super) fn take_ended(&mut self) -> Vec<Ended> {
        for id in std::mem::take(&mut self.held) {
            self.end_if_complete(id);
        }
        std::mem::take(&mut self.ended)
    }

    /// Forgets the files of a job. If they will be begun again, what arrived of large ones is left for that.
    pub(super) fn cancel(&mut self, job: u64, again: bool) {
        let files = self.files.iter().filter(|(_, file)| file.job == job);
        for id in files.map(|(&id, _)| id).collect::<Vec<_>>() {
            if let Some(mut file) = self.remove(id)
                && again
            {
                self.leave(&mut file);
            }
        }
    }

    /// What is left of files that were given up.
    pub(super) fn leftovers(&mut self) -> &mut Leftovers {
        &mut self.leftovers
    }

    /// Whether there are files of which not all chunks were looked for.
    pub(super) fn are_searching(&self) -> bool {
        !self.searching.is_empty() || self.looked_for != 0
    }

    /// Whether files are complete but for somebody who may still write to them, and does not tell when he does no more.
    pub(super) fn are_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether a small file is next.
    pub(super) fn is_small_next(&self) -> bool {
        self.searching.first().is_some_and(|(is_large, _)| !is_large)
    }

    /// Looks for the next chunk of the first file: here first, then at peers. False if there is nothing to look for,
    /// or no room for it.
    pub(super) fn advance(&mut self) -> bool {
        let Some(&(is_large, id)) = self.searching.first() else { return false };
        if self.wants.are_enough(is_large) || (is_large && MAX_LOOKED_FOR <= self.looked_for) {
            return false;
        }
        let waits = |file: &File| self.stalled.has(id) || file.needs.is_some();
        let Some(file) = self.files.get_mut(&id).filter(|file| !waits(file)) else {
            self.searching.pop_first();
            return true;
        };
        if file.base.is_none()
            && let Some((offset, chunk)) = file.lacking.pop_front()
        {
            self.want(id, chunk, offset);
            return true;
        }
        let may_grow = file.may_grow();
        match file.chunks.as_mut().map_or(Step::End, Walk::step) {
            Step::End => {
                self.searching.pop_first();
                file.chunks = None;
                let version = Arc::clone(&file.version);
                if let Content::Inline(bytes) = &version.content
                    && !bytes.is_empty()
                {
                    self.write(id, 0, bytes);
                }
                self.end_if_complete(id);
            }
            // Those that wait were begun before this one, and go on before it.
            Step::Needs(_) if is_large && self.wait_enough_for_nodes() => return false,
            Step::Needs(node) => {
                if let Err(error) = self.enter(id, node) {
                    tracing::warn!(%error, "a manifest cannot be read");
                    self.fail(id);
                }
            }
            Step::Chunk(offset, chunk) if !may_grow && self.wants.has(&chunk) => {
                self.want(id, chunk, offset);
            }
            Step::Chunk(offset, chunk) if is_large => self.look_for(id, chunk, offset),
            Step::Chunk(offset, chunk) => match self.contents.local().read_early(&chunk) {
                Ok(Some(bytes)) => self.write(id, offset, &bytes),
                Ok(None) => self.want(id, chunk, offset),
                Err(error) => {
                    tracing::warn!(%error, "chunks cannot be read");
                    self.fail(id);
                }
            },
        }
        true
    }

    /// Whether no more large files are to wait for manifest nodes.
    fn wait_enough_for_nodes(&self) -> bool {
        let waiting = self.files.values().filter(|file| file.is_large && file.needs.is_some());
        MAX_WAITING_FOR_NODES <= waiting.count()
    }

    /// Goes on in the manifest of a file, or wants the node that it needs from peers, and some of those after it.
    fn enter(&mut self, id: u64, node: ChunkRef) -> Result<(), ContentError> {
        let local = self.contents.local();
        let bytes = match self.wants.node(&node) {
            Some(bytes) => Some(bytes),
            None if self.wants.has_node(&node) => None,
            None => local.read(&node)?.map(ChunkBytes::from),
        };
        let Some(file) = self.files.get_mut(&id) else { return Ok(()) };
        let Some(walk) = &mut file.chunks else { return Ok(()) };
        if let Some(bytes) = bytes {
            walk.enter(&bytes)?;
            // The same may come again.
            let is_over = walk.nodes_ahead().all(|ahead| ahead != node);
            if self.wants.has_node(&node) {
                local.store().pack(&bytes)?;
                if is_over {
                    self.wants.leave_node(id, &node);
                }
            }
            return Ok(());
        }
        file.needs = Some(node);
        if self.wants.want_nodes(id, node, walk.nodes_ahead())?.is_err() {
            self.fail(id);
        }
        Ok(())
    }

    /// Has a chunk copied, if it is here.
    fn look_for(&mut self, id: u64, chunk: ChunkRef, offset: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.staging.is_none() {
            if let Err(error) = file.stage(&self.root) {
                return self.on_error(id, &error);
            }
            self.open += 1;
        }
        let Some(staging) = &file.staging else { return };
        file.outstanding += 1;
        self.looked_for += 1;
        let new = || Copy::new(id, offset, staging.target(offset), file.sources());
        let mut copy = match self.to_copy.take() {
            Some(copy) if copy.is_before(id, offset) => copy,
            Some(copy) => {
                self.copier.copy(copy);
                new()
            }
            None => new(),
        };
        copy.add(chunk);
        if copy.is_full() {
            self.copier.copy(copy);
        } else {
            self.to_copy = Some(copy);
        }
    }

    /// Takes what became of chunks that were looked for. Those that are not here are wanted from peers.
    pub(super) fn on_copied(&mut self, copied: Copied) {
        for (offset, chunk, found) in copied.chunks {
            self.looked_for -= 1;
            self.on_looked_for(copied.file, offset, chunk, found);
        }
    }

    fn on_looked_for(&mut self, id: u64, offset: u64, chunk: ChunkRef, found: Found) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.outstanding -= 1;
        match found {
            Found::Standing => {
                file.same_to = file.same_to.max(offset + u64::from(chunk.length));
                file.written.add(chunk.length as usize);
                self.end_if_complete(id);
            }
            Found::Different => self.begin_whole(id),
            Found::Absent if file.base.is_some() => {
                file.lacking.push_back((offset, chunk));
                if delta::MAX_LACKING < file.lacking.len() {
                    self.fetch_lacking(id);
                }
                self.end_if_complete(id);
            }
            Found::Absent => self.want(id, chunk, offset),
            Found::Written { was_staged } => {
                self.on_written(id, chunk.length as usize, Ok(()));
                if was_staged {
                    self.keep_in_mind(id, chunk.hash, offset);
                }
                self.end_if_complete(id);
            }
            Found::Unwritten(error) => self.on_error(id, &error),
            Found::Unknown(error) => {
                tracing::warn!(%error, "chunks cannot be read");
                self.fail(id);
            }
        }
    }

    /// Begins to make what a file lacks from the version that it replaces. If that is not worth it, or there is no room, it
    /// is fetched.
    fn rebuild_lacking(&mut self, id: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let (Some(base), Some(staging)) = (file.base.take(), &file.staging) else { return };
        let bytes = file.lacking.iter().map(|(_, chunk)| u64::from(chunk.length)).sum();
        if !delta::pays(bytes, &file.version.content) {
            return self.fetch_lacking(id);
        }
        file.lacking.make_contiguous().sort_unstable_by_key(|(offset, _)| *offset);
        let place = |&(offset, chunk): &(u64, ChunkRef)| (offset, chunk, staging.target(offset));
        let lacking: Vec<_> = file.lacking.iter().map(place).collect();
        let (wanted, count) = (Arc::new(()), lacking.len());
        let rebuild = Rebuild {
            file: id,
            content: file.version.content.clone(),
            base,
            lacking,
            wanted: Arc::downgrade(&wanted),
        };
        if self.rebuilder.begin(rebuild).is_err() {
            return self.fetch_lacking(id);
        }
        file.lacking.clear();
        file.outstanding += count;
        file.rebuilding = Some(wanted);
    }

    /// What a file lacks is fetched, as there is room.
    fn fetch_lacking(&mut self, id: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.base = None;
        if !self.stalled.has(id) {
            self.searching.insert((file.is_large, id));
        }
    }

    /// Takes what became of a chunk that was to be made. If it was not, it is fetched.
    pub(super) fn on_rebuilt(&mut self, rebuilt: Rebuilt) {
        let Rebuilt { file: id, offset, chunk, written } = rebuilt;
        let Some(file) = self.files.get_mut(&id) else { return };
        file.outstanding -= 1;
        match written {
            Some(written) => {
                self.on_written(id, chunk.length as usize, written);
                self.keep_in_mind(id, chunk.hash, offset);
                self.contents.local().parked().arrived(&chunk);
                self.end_if_complete(id);
            }
            None => {
                file.lacking.push_back((offset, chunk));
                self.fetch_lacking(id);
            }
        }
    }

    /// Takes what a fetcher has to say.
    pub(super) fn on_fetched(&mut self, fetched: Fetched) {
        let chunk = fetched.chunk;
        // Until this is dropped, peers are told that the chunk is about to be here.
        let Fetched { bytes, written, .. } = fetched;
        match &bytes {
            Ok(bytes) => {
                if self.wants.has(&chunk) {
                    self.progress.came(bytes.len());
                }
                self.take(chunk, bytes, written);
            }
            Err(_) if self.take_if_here(chunk) => {}
            Err(reason) => {
                tracing::debug!(chunk = %chunk.hash, %reason, "a chunk cannot be had");
                let enter = self.wants.files_for_node(&chunk);
                let needs = |id: &u64| self.files.get(id).and_then(|file| file.needs);
                let enter = enter.filter(|id| needs(id) == Some(chunk));
                for id in self.wants.files_for(&chunk).chain(enter).collect::<BTreeSet<_>>() {
                    if !self.waits_for(id, &chunk) {
                        self.stalled.give_up();
                        self.fail(id);
                    }
                }
                if self.are_missing() {
                    self.progress.set_waiting(true);
                }
            }
        }
    }

    /// Takes a chunk that is wanted, or has just been written where it was wanted.
    fn take(&mut self, chunk: ChunkRef, bytes: &ChunkBytes, mut written: Option<Written>) {
        self.take_node(&chunk, bytes);
        let Some(takers) = self.wants.take(&chunk) else { return };
        if !written.as_ref().is_some_and(|written| self.is_for(written, &takers)) {
            self.wants.want_no_more(&chunk);
        }
        for (id, offset) in takers {
            let Some(file) = self.files.get_mut(&id) else { continue };
            file.outstanding -= 1;
            self.go_on(id);
            let Some(file) = self.files.get_mut(&id) else { continue };
            let is_there = |written: &mut Written| {
                file.staging.as_ref().is_some_and(|file| file.is_at(offset, &written.into))
            };
            match written.take_if(is_there) {
                Some(Written { result, .. }) => self.on_written(id, bytes.len(), result),
                None => self.write(id, offset, bytes),
            }
            self.keep_in_mind(id, chunk.hash, offset);
            self.contents.local().parked().arrived(&chunk);
            self.end_if_complete(id);
        }
    }

    /// Something came that a file waited for: the rest may be had now, too.
    fn go_on(&mut self, id: u64) {
        if !self.stalled.go_on(id) {
            return;
        }
        let Some(file) = self.files.get(&id) else { return };
        if file.chunks.is_some() || !file.lacking.is_empty() {
            self.searching.insert((file.is_large, id));
        }
        if !self.are_missing() {
            self.progress.set_waiting(false);
        }
    }

    /// Whether a file waits for a chunk that nobody has: what it has from peers would have to be fetched again. It stays
    /// open, as long as that leaves room to others. So does what it wants; where it does not, it wants less, and all of it
    /// again when something comes.
    fn waits_for(&mut self, id: u64, chunk: &ChunkRef) -> bool {
        let is_room = self.wants.nodes_leave_room() && leaves_room(self.open, self.max_open);
        let waits = self.files.get(&id).is_some_and(|file| file.fresh.is_some())
            && is_room
            && (self.wants.leave_room() || self.put_off(id, chunk) || self.stalled.have_room());
        if waits {
            self.stalled.wait(id);
        }
        waits
    }

    /// Wants a chunk no longer for a file, before something else has come for it. False if it is all that the file wants.
    fn put_off(&mut self, id: u64, chunk: &ChunkRef) -> bool {
        let Some(file) = self.files.get_mut(&id) else { return false };
        let Some(PutOff { offsets, is_unwanted }) = self.wants.put_off(id, chunk) else {
            return false;
        };
        file.outstanding -= offsets.len();
        file.lacking.extend(offsets.into_iter().map(|offset| (offset, *chunk)));
        let too_many = file.base.is_some() && delta::MAX_LACKING < file.lacking.len();
        if is_unwanted {
            self.wants.give_up(vec![*chunk]);
        }
        if too_many {
            self.fetch_lacking(id);
        }
        true
    }

    /// Whether a chunk was written for one of these.
    fn is_for(&self, written: &Written, takers: &[Taker]) -> bool {
        takers.iter().any(|(id, offset)| {
            let staging = self.files.get(id).and_then(|file| file.staging.as_ref());
            staging.is_some_and(|file| file.is_at(*offset, &written.into))
        })
    }

    /// Takes a manifest node, if it is wanted. Files that need it go on.
    fn take_node(&mut self, node: &ChunkRef, bytes: &ChunkBytes) {
        for id in self.wants.take_node(node, bytes) {
            if let Some(file) = self.files.get_mut(&id).filter(|file| file.needs == Some(*node)) {
                file.needs = None;
                self.searching.insert((file.is_large, id));
                self.go_on(id);
            }
        }
    }

    /// Wants a chunk from peers.
    fn want(&mut self, id: u64, chunk: ChunkRef, offset: u64) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.outstanding += 1;
        let urgency = if file.is_large { Urgency::Later } else { Urgency::Soon };
        // A small file is not open before there is something to write to it: so many may be wanted.
        let into = || file.staging.as_ref().map(|staging| staging.target(offset));
        if self.wants.want((id, offset), chunk, urgency, into) {
            self.ask();
        }
    }

    /// Asks, and has looked for, what was gathered. To be called before anything is waited for.
    pub(super) fn ask(&mut self) {
        if let Some(copy) = self.to_copy.take() {
            self.copier.copy(copy);
        }
        for id in self.wants.ask() {
            self.fail(id);
        }
    }

    /// Writes to a file. If that fails, the file is given up.
    fn write(&mut self, id: u64, offset: u64, bytes: &[u8]) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let mode = u32::from(file.version.attributes.mode);
        let written = match &file.staging {
            Some(staging) => staging.target(offset).write(bytes),
            None => self.root.stage(mode).and_then(|staging| {
                staging.target(offset).write(bytes)?;
                file.staging = Some(staging);
                self.open += 1;
                Ok(())
            }),
        };
        self.on_written(id, bytes.len(), written);
    }

    /// So many bytes were written to a file. If that failed, the file is given up.
    fn on_written(&mut self, id: u64, bytes: usize, written: Result<(), PlaceError>) {
        let Some(file) = self.files.get_mut(&id) else { return };
        match written {
            Ok(()) => {
                file.written.add(bytes);
                file.written_since += bytes as u64;
                let is_due = WRITE_OUT_BYTES <= file.written_since
                    || (WRITE_OUT_SLOW_BYTES <= file.written_since
                        && WRITE_OUT_AFTER <= file.written_out.elapsed());
                if is_due
                    && let Some(staging) = &file.staging
                    && self.copier.write_out(staging.written())
                {
                    (file.written_since, file.written_out) = (0, Instant::now());
                }
            }
            Err(error) => self.on_error(id, &error),
        }
    }

    /// Until the file is recorded, nobody else knows that a chunk is in it.
    fn keep_in_mind(&mut self, id: u64, hash: ChunkHash, offset: u64) {
        if let Some(file) = self.files.get_mut(&id) {
            file.keep_in_mind(&self.root, self.contents.local(), hash, offset);
        }
    }

    fn end_if_complete(&mut self, id: u64) {
        let Some(file) = self.files.get(&id).filter(|file| file.is_looked_for()) else { return };
        if !file.lacking.is_empty() {
            return self.rebuild_lacking(id);
        }
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.staging.as_ref().is_some_and(Staging::is_held) {
            self.held.insert(id);
            return;
        }
        let goes_on =
            |(growing, staging): (&Growing, &Staging)| staging.goes_on(growing, file.same_to);
        let goes_on = file.growing.as_ref().zip(file.staging.as_ref()).map(goes_on);
        if goes_on.is_some_and(|goes_on| !goes_on.unwrap_or_default()) {
            return self.begin_whole(id);
        }
        let growing = file.growing.take();
        let attributes = &file.version.attributes;
        let (size, mode) = (file.version.content.size(), u32::from(attributes.mode));
        let staging = match file.staging.take() {
            Some(staging) => {
                self.open -= 1;
                Ok(staging)
            }
            None => self.root.stage(mode),
        };
        let modified = attributes.modified_ns;
        let becomes = || Becomes { key: file.path.to_string(), size, mode, mtime_ns: modified };
        let staged = staging.and_then(|staging| match growing {
            Some(growing) => staging.finish_tail(growing, becomes()),
            None => staging.finish(size, mode, modified),
        });
        match staged {
            Ok(staged) => {
                let Some(file) = self.remove(id) else { return };
                self.leftovers.complete(&file.path, file.version.content.id());
                // Some of it may have been known only where it was left.
                file.fresh.iter().for_each(StagedFile::tell_again);
                self.ended.push(file.end(Ok(staged)));
            }
            Err(error) => self.on_error(id, &error),
        }
    }

    fn on_error(&mut self, id: u64, error: &PlaceError) {
        self.progress.report_place_error(error);
        if let Some(file) = self.files.get(&id) {
            tracing::debug!(path = %file.path, %error, "a file is not staged");
            if !matches!(error, PlaceError::DiskFull) {
                self.progress.set_problem(&file.path, Some(error.to_string()));
            }
        }
        if let Some(file) = self.remove(id) {
            self.ended.push(file.end(Err(matches!(error, PlaceError::DiskFull))));
        }
    }

    /// The file that was to grow is another one, or cannot: all of the new one is staged. What arrived of it is left for that.
    fn begin_whole(&mut self, id: u64) {
        let Some(mut file) = self.remove(id) else { return };
        self.leave(&mut file);
        self.begin(file.job, file.slot, file.path, file.version, None);
    }

    /// Gives a file up for now. What arrived of it is left.
    fn fail(&mut self, id: u64) {
        let Some(mut file) = self.remove(id) else { return };
        self.leave(&mut file);
        self.ended.push(file.end(Err(false)));
    }

    /// What arrived of a large file that was taken out is left on the disk: the next attempt looks for it there first. What
    /// is on this machine anyway is not left a second time.
    fn leave(&mut self, file: &mut File) {
        if let (Some(fresh), Some(staging)) = (file.fresh.take(), file.staging.take()) {
            let content = file.version.content.id();
            self.leftovers.leave(&file.path, content, staging, fresh, Instant::now());
        }
    }

    /// Takes a file out, and with it what only it wanted.
    fn remove(&mut self, id: u64) -> Option<File> {
        let file = self.files.remove(&id)?;
        self.large -= usize::from(file.is_large);
        self.open -= usize::from(file.staging.is_some());
        self.searching.remove(&(file.is_large, id));
        self.stalled.go_on(id);
        if file.chunks.is_some() {
            self.wants.leave_nodes(id);
        }
        if file.outstanding != 0 {
            self.wants.leave(id);
        }
        Some(file)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.wants.leave_all();
        // What arrived is worth keeping, as after a crash.
        self.files.values_mut().filter_map(|file| file.staging.take()).for_each(Staging::leave);
    }
}
