//! What the files that are being staged want from peers: chunks, with the places that each goes to, and manifest nodes,
//! with the files that enter them; and how much of it may be wanted. What a file does with what comes, or when nothing
//! does, is decided in `apply/files.rs`; files are numbers here.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use consort_core::ChunkRef;
use consort_core::content::transfer::Urgency;
use consort_core::store::StoreError;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::files::MAX_OPEN_FILES;
use crate::content::{ChunkBytes, Contents, Fetched, Want};
use crate::folder::Target;

/// Chunks that are wanted from peers at a time, for one directory, and their bytes. This bounds the memory of a
/// transfer; it covers 100 ms at 5 Gbit/s.
const MAX_WANTED_CHUNKS: usize = 4096;
const MAX_WANTED_BYTES: usize = 64 << 20;
/// Places that wanted chunks go to: a chunk that repeats is wanted once and written often.
const MAX_TAKERS: usize = 64 * 1024;
/// Wants that are gathered before the fetcher is told: a request for each of many small files would cost more than their
/// bytes.
const WANTS_AT_ONCE: usize = 128;
/// Manifest nodes that are fetched before the file needs them, for each file: with the average of their size, half a
/// gigabyte of content.
const NODES_AHEAD: usize = 64;
/// Manifest nodes, each of a few kilobytes and no longer than `MAX_NODE_BYTES`, that are wanted or kept. Above this, only what a file needs at once is
/// wanted, and no file is begun.
const MAX_NODES: usize = 1024;

/// All that is wanted.
#[derive(Debug)]
pub(super) struct Wants {
    contents: Arc<Contents>,
    sink: Sender<Fetched>,
    /// Which files want a chunk, and where it goes. By its length too: a version that claims a wrong one asks for
    /// something that nobody has, and is not to keep what others need from them.
    chunks: HashMap<ChunkRef, Vec<Taker>>,
    bytes: u64,
    takers: usize,
    /// How many of the takers are of each file that has some.
    of_files: HashMap<u64, usize>,
    /// Of these the fetcher was not told yet, by urgency.
    gathered: BTreeMap<Urgency, Vec<Want>>,
    /// Manifest nodes that are not on this machine, and the files that will enter them.
    nodes: HashMap<ChunkRef, Awaited>,
}

/// A file that wants a chunk, and where it goes.
pub(super) type Taker = (u64, u64);

/// A chunk that a file wants no longer, while it wants others.
#[derive(Debug)]
pub(super) struct PutOff {
    /// The places that it was to go to.
    pub(super) offsets: Vec<u64>,
    /// No other file wants it.
    pub(super) is_unwanted: bool,
}

/// The fetcher has no room for what is wanted.
#[derive(Debug)]
pub(super) struct NoRoom;

/// A manifest node that is wanted from peers, or came.
#[derive(Debug, Default)]
struct Awaited {
    by: Vec<u64>,
    bytes: Option<ChunkBytes>,
}

impl Wants {
    /// Nothing yet. What comes arrives at the receiver, and is to be [taken](Self::take).
    pub(super) fn new(contents: Arc<Contents>) -> (Self, Receiver<Fetched>) {
        // Half of it is for news of what nobody has. Each file whose manifest is not all entered waits for a node,
        // for a chunk with its staging open, or in the queue: there are few more of these than may be begun.
        let (sink, fetched) = bounded(2 * (MAX_WANTED_CHUNKS + 2 * MAX_NODES + MAX_OPEN_FILES));
        let wants = Self {
            contents,
            sink,
            chunks: HashMap::new(),
            bytes: 0,
            takers: 0,
            of_files: HashMap::new(),
            gathered: BTreeMap::new(),
            nodes: HashMap::new(),
        };
        (wants, fetched)
    }

    /// Whether no more is wanted. For large files, some room is left to small ones.
    pub(super) fn are_enough(&self, large: bool) -> bool {
        let of = |most: usize| if large { most / 4 * 3 } else { most };
        of(MAX_WANTED_CHUNKS) <= self.chunks.len()
            || of(MAX_WANTED_BYTES) as u64 <= self.bytes
            || of(MAX_TAKERS) <= self.takers
    }

    /// Whether others have room for what they want, if all that is wanted now stays so.
    pub(super) fn leave_room(&self) -> bool {
        let bytes = usize::try_from(self.bytes).unwrap_or(usize::MAX);
        leaves_room(self.chunks.len(), MAX_WANTED_CHUNKS)
            && leaves_room(bytes, MAX_WANTED_BYTES)
            && leaves_room(self.takers, MAX_TAKERS)
    }

    /// Whether a chunk is wanted.
    pub(super) fn has(&self, chunk: &ChunkRef) -> bool {
        self.chunks.contains_key(chunk)
    }

    /// The files that want a chunk, each as often as it does.
    pub(super) fn files_for(&self, chunk: &ChunkRef) -> impl Iterator<Item = u64> {
        self.chunks.get(chunk).into_iter().flatten().map(|(id, _)| *id)
    }

    /// Chunks that these files want, one for each that wants any.
    pub(super) fn one_for_each(&self, files: &BTreeSet<u64>) -> BTreeMap<u64, ChunkRef> {
        let mut wanted = BTreeMap::new();
        for (chunk, takers) in &self.chunks {
            let takers = takers.iter().filter(|(id, _)| files.contains(id));
            wanted.extend(takers.map(|(id, _)| (*id, *chunk)));
        }
        wanted
    }

    /// Wants a chunk for a file. It will be written `into` that place, if there is one. Whether so much was gathered that
    /// it is to be [asked](Self::ask) for.
    pub(super) fn want(
        &mut self,
        (id, offset): Taker,
        chunk: ChunkRef,
        urgency: Urgency,
        into: impl FnOnce() -> Option<Target>,
    ) -> bool {
        self.takers += 1;
        *self.of_files.entry(id).or_default() += 1;
        match self.chunks.entry(chunk) {
            Entry::Occupied(mut takers) => takers.get_mut().push((id, offset)),
            Entry::Vacant(entry) => {
                entry.insert(vec![(id, offset)]);
                self.bytes += u64::from(chunk.length);
                self.gathered.entry(urgency).or_default().push(Want { chunk, into: into() });
            }
        }
        self.gathered.get(&urgency).is_some_and(|chunks| WANTS_AT_ONCE <= chunks.len())
    }

    /// Asks for what was gathered. To be called before anything is waited for. These files cannot have what they want now.
    #[must_use]
    pub(super) fn ask(&mut self) -> Vec<u64> {
        let mut refused = Vec::new();
        for (urgency, wants) in std::mem::take(&mut self.gathered) {
            if self.contents.fetcher().want(&wants, urgency, &self.sink).is_err() {
                // Others fetch so much that there is no room.
                refused.extend(wants.iter().flat_map(|want| self.files_for(&want.chunk)));
            }
        }
        refused
    }

    /// A chunk is here. Who wanted it, if somebody did.
    pub(super) fn take(&mut self, chunk: &ChunkRef) -> Option<Vec<Taker>> {
        let takers = self.chunks.remove(chunk)?;
        self.bytes -= u64::from(chunk.length);
        self.takers -= takers.len();
        takers.iter().for_each(|(id, _)| self.wants_less(*id, 1));
        Some(takers)
    }

    /// A chunk came that was wanted once more meanwhile, for a file that is large: that want would keep it open.
    pub(super) fn want_no_more(&mut self, chunk: &ChunkRef) {
        let Some(wants) = self.gathered.get_mut(&Urgency::Later) else { return };
        wants.retain(|want| want.chunk != *chunk);
        if !self.lacks_node(chunk) {
            self.contents.fetcher().cancel(&[*chunk], &self.sink);
        }
    }

    /// Wants a chunk no longer for a file, before something else has come for it. `None` if it is all that the file wants.
    /// What is unwanted is to be [given up](Self::give_up).
    pub(super) fn put_off(&mut self, id: u64, chunk: &ChunkRef) -> Option<PutOff> {
        let takers = self.chunks.get_mut(chunk)?;
        let offsets: Vec<u64> =
            takers.iter().filter(|(taker, _)| *taker == id).map(|(_, offset)| *offset).collect();
        if offsets.is_empty() || self.of_files.get(&id) == Some(&offsets.len()) {
            return None;
        }
        takers.retain(|(taker, _)| *taker != id);
        let is_unwanted = takers.is_empty();
        self.takers -= offsets.len();
        self.wants_less(id, offsets.len());
        if is_unwanted {
            self.chunks.remove(chunk);
            self.bytes -= u64::from(chunk.length);
        }
        Some(PutOff { offsets, is_unwanted })
    }

    /// No file wants these any more.
    pub(super) fn give_up(&mut self, mut unwanted: Vec<ChunkRef>) {
        for wants in self.gathered.values_mut() {
            wants.retain(|want| self.chunks.contains_key(&want.chunk));
        }
        unwanted.retain(|chunk| !self.lacks_node(chunk));
        self.contents.fetcher().cancel(&unwanted, &self.sink);
        unwanted.iter().for_each(|chunk| self.contents.local().parked().give_up(chunk));
    }

    /// A file wants no chunks any more.
    pub(super) fn leave(&mut self, id: u64) {
        let mut unwanted = Vec::new();
        self.chunks.retain(|chunk, takers| {
            takers.retain(|&(other, _)| other != id);
            if takers.is_empty() {
                self.bytes -= u64::from(chunk.length);
                unwanted.push(*chunk);
            }
            !takers.is_empty()
        });
        self.takers -= self.of_files.remove(&id).unwrap_or_default();
        self.give_up(unwanted);
    }

    /// All files are given up. Nothing of it is to be used after this.
    pub(super) fn leave_all(&mut self) {
        let wanted: Vec<ChunkRef> = self.chunks.keys().chain(self.nodes.keys()).copied().collect();
        self.contents.fetcher().cancel(&wanted, &self.sink);
    }

    fn wants_less(&mut self, id: u64, by: usize) {
        if let Entry::Occupied(mut wanted) = self.of_files.entry(id) {
            *wanted.get_mut() -= by;
            if *wanted.get() == 0 {
                wanted.remove();
            }
        }
    }
}

/// The manifest nodes.
impl Wants {
    /// Whether so many are wanted or kept that no file is to be begun.
    pub(super) fn are_nodes_enough(&self) -> bool {
        MAX_NODES <= self.nodes.len()
    }

    /// Whether others have room for the nodes that they want.
    pub(super) fn nodes_leave_room(&self) -> bool {
        leaves_room(self.nodes.len(), MAX_NODES)
    }

    /// Whether a node was wanted, and not by files that have left it.
    pub(super) fn has_node(&self, node: &ChunkRef) -> bool {
        self.nodes.contains_key(node)
    }

    /// The bytes of a node that was wanted, if they came.
    pub(super) fn node(&self, node: &ChunkRef) -> Option<ChunkBytes> {
        self.nodes.get(node).and_then(|awaited| awaited.bytes.clone())
    }

    /// The files that will enter a node.
    pub(super) fn files_for_node(&self, node: &ChunkRef) -> impl Iterator<Item = u64> {
        self.nodes.get(node).into_iter().flat_map(|awaited| &awaited.by).copied()
    }

    /// Wants a node that a file needs, and some of those `ahead` of it, the first of which it is: those that are not on this
    /// machine.
    pub(super) fn want_nodes(
        &mut self,
        id: u64,
        needed: ChunkRef,
        ahead: impl Iterator<Item = ChunkRef>,
    ) -> Result<Result<(), NoRoom>, StoreError> {
        let mut unknown = Vec::new();
        for ahead in ahead.take(NODES_AHEAD) {
            let is_needed = ahead == needed;
            if !is_needed && MAX_NODES <= self.nodes.len() {
                break;
            }
            match self.nodes.get_mut(&ahead) {
                Some(awaited) if awaited.by.contains(&id) => {}
                Some(awaited) => awaited.by.push(id),
                None if is_needed || self.contents.local().read(&ahead)?.is_none() => {
                    self.nodes.insert(ahead, Awaited { by: vec![id], bytes: None });
                    unknown.push(ahead);
                }
                None => {}
            }
        }
        let wants: Vec<Want> = unknown.into_iter().map(Want::from).collect();
        let wanted = self.contents.fetcher().want(&wants, Urgency::Now, &self.sink);
        Ok(wanted.map_err(|_| NoRoom))
    }

    /// Keeps a node until it is entered. The files that will enter it, if it was wanted.
    pub(super) fn take_node(&mut self, node: &ChunkRef, bytes: &ChunkBytes) -> Vec<u64> {
        let Some(awaited) = self.nodes.get_mut(node) else { return Vec::new() };
        // It came in a message with others, and is not to keep these in memory.
        awaited.bytes = Some(bytes.to_vec().into());
        awaited.by.clone()
    }

    /// A file does not need a node any more. If no other does, it is forgotten.
    pub(super) fn leave_node(&mut self, id: u64, node: &ChunkRef) {
        let Some(awaited) = self.nodes.get_mut(node) else { return };
        awaited.by.retain(|&other| other != id);
        if awaited.by.is_empty() {
            let is_wanted = awaited.bytes.is_none() && !self.chunks.contains_key(node);
            self.nodes.remove(node);
            if is_wanted {
                self.contents.fetcher().cancel(&[*node], &self.sink);
            }
        }
    }

    /// A file needs no nodes any more.
    pub(super) fn leave_nodes(&mut self, id: u64) {
        let awaited = self.nodes.iter().filter(|(_, node)| node.by.contains(&id));
        let awaited: Vec<ChunkRef> = awaited.map(|(node, _)| *node).collect();
        awaited.iter().for_each(|node| self.leave_node(id, node));
    }

    /// Whether this is a node that is wanted and did not come.
    fn lacks_node(&self, chunk: &ChunkRef) -> bool {
        self.nodes.get(chunk).is_some_and(|node| node.bytes.is_none())
    }
}

/// Whether at least half of the room is left.
pub(super) fn leaves_room(used: usize, most: usize) -> bool {
    used < most / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_wait_for_what_nobody_has_leave_room_for_others() {
        for most in [MAX_OPEN_FILES, MAX_WANTED_CHUNKS, MAX_WANTED_BYTES, MAX_TAKERS, MAX_NODES] {
            assert!(leaves_room(10, most));
            assert!(!leaves_room(most / 2, most));
        }
    }
}
