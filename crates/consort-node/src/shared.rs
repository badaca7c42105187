//! What the loop, the linked directories and the [`Node`](crate::Node) handle share: the store, the network, and a few
//! facts behind locks that are held for an assignment and no longer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::encoding::{DecodeError, Reader, Writer};
use consort_core::store::{DatasetParameters, Sealer, StoreError};
use consort_core::{DatasetId, NodeId, OnConflict};
use consort_store::DiskStore;
use tokio::sync::{RwLock, RwLockReadGuard, mpsc, watch};

use crate::cluster::{Facts, decode_addresses, encode_addresses};
use crate::content::Contents;
use crate::error::NodeError;
use crate::folder::{Folder, LinkContext, RootId};
use crate::net::{JoinDesk, Network, PeerIdentity};
use crate::runtime::Cause;

/// Addresses of nodes that were heard of and are remembered across restarts.
const MAX_LEARNED: usize = 512;
/// Addresses of one node that are remembered.
const MAX_LEARNED_ADDRESSES: usize = 3;
/// The setting that holds them.
pub(crate) const LEARNED: &str = "peers";
/// The setting that holds the number of the last process.
const STARTED: &str = "started";
/// The setting that holds the links.
const LINKS: &str = "links";
const LINK_READ_ONLY: u8 = 1;
/// The identity of the directory follows: earlier versions did not keep it.
const LINK_ROOT_KNOWN: u8 = 2;
/// Links of one node.
const MAX_LINKS: usize = 1024;
const MAX_PATH_BYTES: usize = 4096;

/// How a peer stands, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PeerState {
    /// Where it was dialed in vain.
    pub(crate) dialed: Option<SocketAddr>,
    pub(crate) connected: bool,
    pub(crate) reason: Option<String>,
}

/// A link as it is kept across restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkSetting {
    pub(crate) dataset: DatasetId,
    pub(crate) dir: PathBuf,
    /// Which directory that is. It is not known before it was opened for the first time.
    pub(crate) root: Option<RootId>,
    pub(crate) read_only: bool,
}

pub(crate) struct Shared {
    pub(crate) identity: PeerIdentity,
    pub(crate) cluster: DatasetParameters,
    pub(crate) home: PathBuf,
    pub(crate) store: DiskStore,
    /// What seals the facts that this node writes, if it may.
    pub(crate) sealer: Option<Arc<dyn Sealer>>,
    pub(crate) network: Arc<Network>,
    pub(crate) contents: Arc<Contents>,
    pub(crate) desk: Option<Arc<JoinDesk>>,
    pub(crate) causes: mpsc::UnboundedSender<Cause>,
    /// Higher than for every process of this node before.
    pub(crate) started: u32,
    changed: watch::Sender<u64>,
    /// Held while a directory is linked or unlinked, so that two of that never overlap.
    linking: Mutex<()>,
    /// Shared by writes from when they look whether this node is leaving until they are durable.
    writing: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    facts: Arc<Facts>,
    folders: BTreeMap<DatasetId, (Arc<Folder>, LinkSetting)>,
    peers: BTreeMap<NodeId, PeerState>,
    learned: BTreeMap<NodeId, Vec<SocketAddr>>,
    /// Links whose directory could not be opened at the start, and why.
    broken: BTreeMap<DatasetId, (LinkSetting, String)>,
    failure: Option<String>,
    /// The cluster's facts are as another member knows them, or were since the start.
    heard: bool,
    /// A peer does not take this node for a member any more.
    revoked: bool,
    /// This node is about to end its membership.
    leaving: bool,
    /// No directory is linked any more.
    ending: bool,
}

impl Shared {
    #[allow(clippy::too_many_arguments)] // The parts of a node, each made elsewhere.
    pub(crate) fn new(
        identity: PeerIdentity,
        cluster: DatasetParameters,
        home: PathBuf,
        store: DiskStore,
        sealer: Option<Arc<dyn Sealer>>,
        network: Arc<Network>,
        contents: Arc<Contents>,
        desk: Option<Arc<JoinDesk>>,
        causes: mpsc::UnboundedSender<Cause>,
    ) -> Result<Self, StoreError> {
        let learned = match store.setting(LEARNED)? {
            Some(bytes) => {
                decode_learned(&bytes).map_err(|e| StoreError::Damaged(e.to_string()))?
            }
            None => BTreeMap::new(),
        };
        let started = begin(&store)?;
        // Whoever holds the authority is not told by others which datasets there are.
        let state = Mutex::new(State { learned, heard: desk.is_some(), ..State::default() });
        let changed = watch::Sender::new(0);
        Ok(Self {
            identity,
            cluster,
            home,
            store,
            sealer,
            network,
            contents,
            desk,
            causes,
            started,
            changed,
            linking: Mutex::default(),
            writing: RwLock::default(),
            state,
        })
    }

    /// Nobody else links or unlinks a directory as long as this is held.
    pub(crate) fn linking(&self) -> MutexGuard<'_, ()> {
        self.linking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As long as this is held, who wants to leave waits.
    pub(crate) async fn writing(&self) -> RwLockReadGuard<'_, ()> {
        self.writing.read().await
    }

    /// Returns when no write is under way that began before.
    pub(crate) async fn written(&self) {
        drop(self.writing.write().await);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that people or waiters look at may be different now.
    pub(crate) fn notify(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Wakes at every [`notify`](Self::notify).
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(crate) fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.state().facts)
    }

    pub(crate) fn set_facts(&self, facts: Facts) {
        self.state().facts = Arc::new(facts);
        self.notify();
    }

    pub(crate) fn peers(&self) -> BTreeMap<NodeId, PeerState> {
        self.state().peers.clone()
    }

    pub(crate) fn set_peer(&self, peer: NodeId, state: PeerState) {
        self.state().peers.insert(peer, state);
        self.notify();
    }

    /// The connection with a peer was ended, since it is not needed.
    pub(crate) fn set_disconnected(&self, peer: NodeId) {
        self.state().peers.remove(&peer);
        self.notify();
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.state().failure.clone()
    }

    pub(crate) fn set_failure(&self, failure: String) {
        self.state().failure = Some(failure);
        self.notify();
    }

    pub(crate) fn has_heard(&self) -> bool {
        self.state().heard
    }

    pub(crate) fn set_heard(&self) {
        self.state().heard = true;
        self.notify();
    }

    pub(crate) fn is_revoked(&self) -> bool {
        let state = self.state();
        state.revoked || state.facts.revoked.contains(&self.identity.node)
    }

    /// Takes note that this node was refused as a former member. Whether that is news.
    pub(crate) fn set_revoked(&self) -> bool {
        !std::mem::replace(&mut self.state().revoked, true)
    }

    pub(crate) fn is_leaving(&self) -> bool {
        self.state().leaving
    }

    /// Whether that was so before.
    pub(crate) fn set_leaving(&self, leaving: bool) -> bool {
        std::mem::replace(&mut self.state().leaving, leaving)
    }

    /// Where nodes were heard to be reached: what a node said itself first.
    pub(crate) fn learned(&self) -> BTreeMap<NodeId, Vec<SocketAddr>> {
        self.state().learned.clone()
    }

    /// Remembers where a node can be reached. What it says itself replaces what was known; what others say is tried
    /// as well. Whether that is news.
    pub(crate) fn learn(&self, node: NodeId, addr: SocketAddr, firsthand: bool) -> bool {
        let learned = {
            let mut state = self.state();
            let State { learned, facts, peers, .. } = &mut *state;
            let knows_members = facts.member(self.identity.node).is_some();
            if !firsthand && knows_members && facts.member(node).is_none() {
                return false;
            }
            if MAX_LEARNED <= learned.len() && !learned.contains_key(&node) {
                // Nobody may crowd out the members with inventions.
                let is_known = |node: &NodeId| {
                    facts.member(*node).is_some() || peers.get(node).is_some_and(|p| p.connected)
                };
                let invented = learned.keys().copied().find(|node| !is_known(node));
                let Some(invented) = invented else { return false };
                learned.remove(&invented);
            }
            let known = learned.entry(node).or_default();
            let is_old = if firsthand { known[..] == [addr] } else { known.contains(&addr) };
            if is_old || node == self.identity.node {
                return false;
            }
            if firsthand {
                known.clear();
            }
            known.insert(known.len().min(1), addr);
            known.truncate(MAX_LEARNED_ADDRESSES);
            learned.clone()
        };
        // What others say comes again with the next greeting. It is not worth a write to the disk, least of all of those
        // who say much.
        if firsthand
            && let Err(error) = self.store.set_setting(LEARNED, Some(encode_learned(&learned)))
        {
            tracing::warn!(%error, "addresses of peers are not remembered");
        }
        true
    }

    // ---- Linked directories ----

    pub(crate) fn folder(&self, dataset: DatasetId) -> Option<Arc<Folder>> {
        self.state().folders.get(&dataset).map(|(folder, _)| Arc::clone(folder))
    }

    pub(crate) fn wake_folder(&self, dataset: DatasetId) {
        if let Some(folder) = self.folder(dataset) {
            folder.wake();
        }
    }

    pub(crate) fn wake_folders(&self) {
        self.state().folders.values().for_each(|(folder, _)| folder.wake());
    }

    /// All links, also those whose directory could not be opened.
    pub(crate) fn links(&self) -> Vec<LinkSetting> {
        let state = self.state();
        let open = state.folders.values().map(|(_, link)| link.clone());
        open.chain(state.broken.values().map(|(link, _)| link.clone())).collect()
    }

    pub(crate) fn link_of(&self, dataset: DatasetId) -> Option<LinkSetting> {
        self.links().into_iter().find(|link| link.dataset == dataset)
    }

    /// Why a link's directory could not be opened.
    pub(crate) fn broken_link(&self, dataset: DatasetId) -> Option<String> {
        self.state().broken.get(&dataset).map(|(_, reason)| reason.clone())
    }

    /// Starts the engine of a directory. The store knows of the link already.
    pub(crate) fn start_folder(
        self: &Arc<Self>,
        name: String,
        on_conflict: OnConflict,
        mut link: LinkSetting,
    ) -> Result<Arc<Folder>, NodeError> {
        let dataset = link.dataset;
        let (written, applied) = (Arc::downgrade(self), Arc::downgrade(self));
        let context = LinkContext {
            dataset,
            name,
            on_conflict,
            dir: link.dir.clone(),
            id: link.root,
            read_only: link.read_only,
            workers: std::thread::available_parallelism().map_or(2, usize::from).min(8),
            store: self.store.clone(),
            contents: Arc::clone(&self.contents),
            on_written: Box::new(move || {
                if let Some(shared) = written.upgrade() {
                    let _ = shared.causes.send(Cause::Grew { dataset });
                }
            }),
            on_applied: Box::new(move || {
                if let Some(shared) = applied.upgrade() {
                    shared.notify();
                }
            }),
        };
        match Folder::start(context) {
            Ok(folder) => {
                let folder = Arc::new(folder);
                link.root = Some(folder.id());
                let mut state = self.state();
                if state.ending {
                    drop(state);
                    folder.stop();
                    return Err(NodeError::ending());
                }
                state.broken.remove(&dataset);
                state.folders.insert(dataset, (Arc::clone(&folder), link));
                Ok(folder)
            }
            Err(error) => {
                let reason = format!("{error}: {}", error.hint());
                self.state().broken.insert(dataset, (link, reason));
                Err(error.into())
            }
        }
    }

    /// Ends the engine of a directory, if there is one, and waits for it. Blocks.
    pub(crate) fn stop_folder(&self, dataset: DatasetId) -> bool {
        let removed = {
            let mut state = self.state();
            let broken = state.broken.remove(&dataset).is_some();
            state.folders.remove(&dataset).map(|(folder, _)| folder).ok_or(broken)
        };
        match removed {
            Ok(folder) => {
                folder.stop();
                true
            }
            Err(broken) => broken,
        }
    }

    /// Ends all engines, and waits for them. Blocks.
    pub(crate) fn stop_folders(&self) {
        let folders = {
            let mut state = self.state();
            state.ending = true;
            std::mem::take(&mut state.folders)
        };
        // One may take its time, such as on a file system that does not answer: the others end meanwhile.
        folders.values().for_each(|(folder, _)| folder.begin_stop());
        folders.into_values().for_each(|(folder, _)| folder.stop());
    }

    /// Forgets a dataset that the cluster has dropped. Its linked directory stays as it is.
    pub(crate) fn close_dataset(self: &Arc<Self>, dataset: DatasetId) {
        let shared = Arc::clone(self);
        let dropped = std::thread::Builder::new().name("drop-dataset".into()).spawn(move || {
            let outcome = {
                let _linking = shared.linking();
                shared.stop_folder(dataset);
                shared.save_links()
            };
            let outcome = outcome.and_then(|()| shared.store.drop_dataset(dataset));
            if let Err(error) = outcome {
                tracing::error!(%error, "a dropped dataset is still in the store");
            }
            shared.notify();
        });
        if let Err(error) = dropped {
            tracing::error!(%error, "a dropped dataset is still in the store");
        }
    }

    /// Makes the links durable, as they are now.
    pub(crate) fn save_links(&self) -> Result<(), StoreError> {
        self.store.set_setting(LINKS, Some(encode_links(&self.links())))
    }

    /// The links that were made durable last.
    pub(crate) fn saved_links(&self) -> Result<Vec<LinkSetting>, StoreError> {
        match self.store.setting(LINKS)? {
            Some(bytes) => {
                decode_links(&bytes).map_err(|error| StoreError::Damaged(error.to_string()))
            }
            None => Ok(Vec::new()),
        }
    }
}

/// A number for this process: the time, unless that went back.
fn begin(store: &DiskStore) -> Result<u32, StoreError> {
    let last = store.setting(STARTED)?.and_then(|bytes| bytes.try_into().ok());
    let last = u32::from_le_bytes(last.unwrap_or_default());
    let now = u32::try_from(crate::runtime::wall_time().0 / 1000).unwrap_or(u32::MAX);
    let started = now.max(last.saturating_add(1));
    store.set_setting(STARTED, Some(started.to_le_bytes().to_vec()))?;
    Ok(started)
}

/// The value of [`LEARNED`].
pub(crate) fn encode_learned(learned: &BTreeMap<NodeId, Vec<SocketAddr>>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.count(learned.len());
    for (node, addresses) in learned {
        to.raw(&node.0);
        encode_addresses(&addresses[..addresses.len().min(MAX_LEARNED_ADDRESSES)], &mut to);
    }
    bytes
}

pub(crate) fn decode_learned(
    bytes: &[u8],
) -> Result<BTreeMap<NodeId, Vec<SocketAddr>>, DecodeError> {
    let mut from = Reader::new(bytes);
    let mut learned = BTreeMap::new();
    for _ in 0..from.count(16, MAX_LEARNED, "peers")? {
        let node = NodeId(from.array("peer")?);
        learned.insert(node, decode_addresses(&mut from)?);
    }
    from.finish()?;
    Ok(learned)
}

fn encode_links(links: &[LinkSetting]) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let mut bytes = Vec::new();
    let mut to = Writer(&mut bytes);
    to.count(links.len());
    for link in links {
        to.raw(&link.dataset.0);
        let known = if link.root.is_some() { LINK_ROOT_KNOWN } else { 0 };
        to.u8(known | if link.read_only { LINK_READ_ONLY } else { 0 });
        to.bytes(link.dir.as_os_str().as_bytes());
        if let Some(RootId(root)) = link.root {
            to.raw(&root);
        }
    }
    bytes
}

fn decode_links(bytes: &[u8]) -> Result<Vec<LinkSetting>, DecodeError> {
    use std::os::unix::ffi::OsStrExt;
    let mut from = Reader::new(bytes);
    let mut links = Vec::new();
    for _ in 0..from.count(18, MAX_LINKS, "links")? {
        let dataset = DatasetId(from.array("dataset")?);
        let flags = from.u8("flags")?;
        let dir = std::ffi::OsStr::from_bytes(from.bytes(MAX_PATH_BYTES, "directory")?).into();
        let root = match flags & LINK_ROOT_KNOWN {
            0 => None,
            _ => Some(RootId(from.array("root")?)),
        };
        links.push(LinkSetting { dataset, dir, root, read_only: flags & LINK_READ_ONLY != 0 });
    }
    from.finish()?;
    Ok(links)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// A store may have been damaged, or be of a later version.
        #[test]
        fn any_bytes_are_a_setting_or_refused(
            bytes in prop::collection::vec(prop_oneof![0u8..8, any::<u8>()], 0..120),
        ) {
            if let Ok(learned) = decode_learned(&bytes) {
                prop_assert_eq!(decode_learned(&encode_learned(&learned)), Ok(learned));
            }
            if let Ok(links) = decode_links(&bytes) {
                prop_assert_eq!(decode_links(&encode_links(&links)), Ok(links));
            }
        }
    }
}
