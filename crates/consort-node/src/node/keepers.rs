//! Who keeps the contents of a dataset: members whose directories show them, as they told, and this machine.
//!
//! What follows from that is decided by those who ask: [`leave`](super::leave) waits, [`datasets`](super::datasets) warns
//! before a directory is let go.

use consort_core::content::manifest::{Step, Walk};
use consort_core::store::{Stored, View};
use consort_core::{ChunkRef, Content, DatasetId, Key};
use consort_store::{DiskStore, Place};

use crate::content::LocalContent;
use crate::error::NodeError;
use crate::report::{PeerStatus, Presence};
use crate::words::counted;

/// Keys whose contents are looked for at once.
const PAGE: usize = 256;

/// Members that can give contents: readers, too, since a chunk proves itself.
pub(super) const ANYBODY: &str = "that is there";

/// What no other member has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// Somebody will, or may.
    ForNow(String),
    /// Nobody will before somebody does something.
    ForGood {
        /// What is lacking.
        what: String,
        /// What to do.
        hint: String,
    },
}

/// What is missing before the contents of a dataset are in the directory of one of those, who are `whoever`.
pub(super) fn lacks_contents(name: &str, whoever: &str, keepers: &[&PeerStatus]) -> Option<Lack> {
    let mut lack = Lack::ForGood {
        what: format!("no other member {whoever} has the contents of {name} in a directory"),
        hint: format!("`consort link {name} DIR` on another node"),
    };
    for peer in keepers.iter().filter(|peer| peer.presence == Presence::Alive) {
        let keeper = &peer.name;
        match peer.datasets.iter().find(|dataset| dataset.name == name) {
            None => {
                lack = Lack::ForNow(format!("{keeper} has not told yet how it stands with {name}"));
            }
            Some(told) if told.linked && told.in_sync => return None,
            Some(told) if told.linked && 0 < told.pending => {
                let pending = counted(told.pending, "entry is", "entries are");
                lack = Lack::ForNow(format!(
                    "{pending} not in the directory of {name} on {keeper} yet"
                ));
            }
            Some(told) if told.linked => {
                lack = Lack::ForNow(format!(
                    "{keeper} has not told yet that it holds the same of {name}"
                ));
            }
            Some(_) => {}
        }
    }
    Some(lack)
}

/// A key of the dataset of whose content something is on this node. What is inline is in the version.
pub(super) fn first_content_here(
    store: &DiskStore,
    dataset: DatasetId,
) -> Result<Option<String>, NodeError> {
    each_key(store, dataset, |key, held| {
        for stored in held {
            let hashes = match &stored.version.content {
                Content::Deleted | Content::Inline(_) => Vec::new(),
                Content::Chunks(chunks) => chunks.iter().map(|chunk| chunk.hash).collect(),
                Content::Tree { nodes, .. } => nodes.iter().map(|node| node.chunk.hash).collect(),
            };
            for hash in hashes {
                if !store.locate(hash)?.is_empty() {
                    return Ok(Some(key.to_string()));
                }
            }
        }
        Ok(None)
    })
}

/// A key of the dataset whose content this node has in the directory of the dataset, and nowhere else.
pub(super) fn first_content_only_in_directory(
    local: &LocalContent,
    dataset: DatasetId,
) -> Result<Option<String>, NodeError> {
    let store = local.store();
    each_key(store, dataset, |key, held| {
        for stored in held {
            let Some(chunk) = first_chunk(local, &stored.version.content)? else { continue };
            let mut places = store.locate(chunk.hash)?;
            places.extend(store.locate_further(chunk.hash)?);
            let is_in_it = |place: &Place| matches!(place, Place::InFile { dataset: of, .. } if *of == dataset);
            if !places.is_empty() && places.iter().all(is_in_it) {
                return Ok(Some(key.to_string()));
            }
        }
        Ok(None)
    })
}

/// Looks at all keys of a dataset in their order, until something is found.
fn each_key<T>(
    store: &DiskStore,
    dataset: DatasetId,
    mut look: impl FnMut(&Key, Vec<Stored>) -> Result<Option<T>, NodeError>,
) -> Result<Option<T>, NodeError> {
    let view = store.view(dataset)?;
    let mut after = None;
    loop {
        let page = view.scan("", after.as_ref(), PAGE)?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        after = Some(last.clone());
        for (key, held) in page {
            if let Some(found) = look(&key, held)? {
                return Ok(Some(found));
            }
        }
    }
}

/// The first chunk of a content, or the part of its manifest without which nobody here knows which that is. None if it has
/// no chunks, or its manifest is wrong: then it is with nobody.
fn first_chunk(local: &LocalContent, content: &Content) -> Result<Option<ChunkRef>, NodeError> {
    let mut walk = Walk::new(content);
    loop {
        match walk.step() {
            Step::Chunk(_, chunk) => return Ok(Some(chunk)),
            Step::End => return Ok(None),
            Step::Needs(node) => match local.read(&node)? {
                None => return Ok(Some(node)),
                Some(bytes) if walk.enter(&bytes).is_ok() => {}
                Some(_) => return Ok(None),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use consort_core::NodeId;

    use super::*;
    use crate::net::Role;
    use crate::report::PeerDataset;

    fn peer(presence: Presence, dataset: Option<PeerDataset>) -> PeerStatus {
        PeerStatus {
            node: NodeId([1; 16]),
            name: "b".to_owned(),
            role: Role::Writer,
            addr: None,
            connected: true,
            reason: None,
            presence,
            for_seconds: 0,
            neighbour: true,
            told_seconds_ago: None,
            neighbours: 0,
            rate_bytes: 0,
            datasets: dataset.into_iter().collect(),
        }
    }

    #[test]
    fn contents_are_kept_when_the_directory_of_somebody_who_is_there_shows_the_same() {
        let name = "photos".to_owned();
        let shows =
            PeerDataset { name, in_sync: true, versions: 1, behind: 0, pending: 0, linked: true };
        let lack = |peers: &[PeerStatus]| {
            lacks_contents("photos", ANYBODY, &peers.iter().collect::<Vec<_>>())
        };
        let alive = |dataset: &PeerDataset| peer(Presence::Alive, Some(dataset.clone()));
        assert_eq!(lack(&[alive(&shows)]), None);
        let names_only = PeerDataset { linked: false, ..shows.clone() };
        for nobody in
            [vec![], vec![peer(Presence::Gone, Some(shows.clone()))], vec![alive(&names_only)]]
        {
            assert!(matches!(lack(&nobody), Some(Lack::ForGood { .. })), "{nobody:?}");
        }
        let pending = PeerDataset { in_sync: false, pending: 1, ..shows.clone() };
        let differs = PeerDataset { in_sync: false, ..shows.clone() };
        for soon in [alive(&pending), alive(&differs), peer(Presence::Alive, None)] {
            assert!(matches!(lack(&[alive(&names_only), soon]), Some(Lack::ForNow(_))));
        }
        assert_eq!(lack(&[alive(&pending), alive(&shows)]), None);
    }
}
