//! Who keeps the contents of a dataset: members whose directories show them, as they told; this machine; and peers, who
//! are asked for some of those that are not here.
//!
//! What follows from that is decided by those who ask: [`leave`](super::leave) waits, [`datasets`](super::datasets) tells
//! whoever lets a directory go, `doctor` says what cannot be had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use consort_core::content::manifest::{Step, Walk};
use consort_core::content::transfer::Urgency;
use consort_core::store::{Stored, View};
use consort_core::{ChunkRef, Content, DatasetId, Key, Version};
use consort_store::{DiskStore, Place};
use crossbeam_channel::bounded;

use crate::cluster::DatasetFact;
use crate::content::{ChunkBytes, Contents, Fetched, Fetcher, LocalContent, Unavailable, Want};
use crate::error::NodeError;
use crate::report::{DatasetStatus, Finding, PeerStatus, Presence, Severity, Status};
use crate::words::counted;

use super::{Node, blocking};

/// Keys whose contents are looked for at once.
const PAGE: usize = 256;

/// How long peers are given to send contents that only show that they can be had.
const ASK_FOR: Duration = Duration::from_secs(3);

/// Contents of a dataset that are asked for. Of several, some may be put on a node and others only in a directory.
const SAMPLES: usize = 4;

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

/// How many of the members that are there told that nothing of what they know of the dataset is missing in a directory of
/// theirs. None if it is not known yet whether there is one.
pub(super) fn complete_peers(name: &str, peers: &[PeerStatus]) -> Option<u64> {
    let (mut complete, mut have_all_told) = (0, true);
    for peer in peers.iter().filter(|peer| is_there(peer)) {
        match peer.datasets.iter().find(|told| told.name == name) {
            Some(told) => complete += u64::from(told.linked && told.pending == 0),
            None => have_all_told = false,
        }
    }
    (complete != 0 || have_all_told).then_some(complete)
}

fn is_there(peer: &PeerStatus) -> bool {
    matches!(peer.presence, Presence::Alive | Presence::Suspected)
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
            let mut walk = Walk::new(&stored.version.content);
            let Some((chunk, _)) = next_chunk(local, &mut walk)? else { continue };
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

/// The first few contents of a dataset that are not on this machine.
fn contents_elsewhere(local: &LocalContent, fact: &DatasetFact) -> Result<Vec<Sample>, NodeError> {
    let mut elsewhere = Vec::new();
    each_key(local.store(), fact.parameters.id, |key, held| {
        let siblings: Vec<Version> = held.into_iter().map(|stored| stored.version).collect();
        // Of those that lost, whoever reads the dataset may need none.
        let Some(winner) = fact.on_conflict.winner(&siblings) else { return Ok(None) };
        let mut walk = Walk::new(&winner.content);
        let next = next_chunk(local, &mut walk)?;
        if let Some((chunk, is_node)) = next.filter(|(chunk, _)| !local.may_have(chunk)) {
            let (name, key) = (fact.name.clone(), key.to_string());
            elsewhere.push(Sample { name, key, walk, chunk, is_node });
        }
        Ok((elsewhere.len() == SAMPLES).then_some(()))
    })?;
    Ok(elsewhere)
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

/// The next chunk of a content, or the node of its manifest without which nobody here knows which that is, and whether it
/// is such a node. None if there are no more chunks, or the manifest is wrong: then it is so with everybody.
fn next_chunk(
    local: &LocalContent,
    walk: &mut Walk,
) -> Result<Option<(ChunkRef, bool)>, NodeError> {
    loop {
        match walk.step() {
            Step::Chunk(_, chunk) => return Ok(Some((chunk, false))),
            Step::End => return Ok(None),
            Step::Needs(node) => match local.read(&node)? {
                None => return Ok(Some((node, true))),
                Some(bytes) if walk.enter(&bytes).is_ok() => {}
                Some(_) => return Ok(None),
            },
        }
    }
}

/// A content that is asked for to see whether it can be had.
struct Sample {
    name: String,
    key: String,
    walk: Walk,
    chunk: ChunkRef,
    /// The chunk is a node of the manifest. Whoever wrote the version has that also without the content.
    is_node: bool,
}

/// Asks all peers for the first chunk of each content, and returns those that nobody gives, with how many said that they
/// lack it. Of what takes longer than [`ASK_FOR`] nothing is known. Blocks.
fn not_given(
    contents: &Contents,
    mut samples: Vec<Sample>,
    there: usize,
) -> Result<Vec<(Sample, usize)>, NodeError> {
    let (local, deadline) = (contents.local(), Instant::now() + ASK_FOR);
    let mut lacking = Vec::new();
    while !samples.is_empty() {
        let chunks: BTreeSet<ChunkRef> = samples.iter().map(|sample| sample.chunk).collect();
        let answers = ask(contents.fetcher(), chunks, there, deadline);
        let mut entered = Vec::new();
        for mut sample in samples {
            match answers.get(&sample.chunk) {
                Some(Err(peers)) => lacking.push((sample, *peers)),
                Some(Ok(bytes)) if sample.is_node && sample.walk.enter(bytes).is_ok() => {
                    let next = next_chunk(local, &mut sample.walk)?;
                    if let Some((chunk, is_node)) = next.filter(|(next, _)| !local.may_have(next)) {
                        entered.push(Sample { chunk, is_node, ..sample });
                    }
                }
                Some(Ok(_)) | None => {}
            }
        }
        samples = entered;
    }
    Ok(lacking)
}

/// Asks all peers for chunks: the bytes, or how many peers said that they lack it. It is over when `there` have said so.
fn ask(
    fetcher: &Fetcher,
    chunks: BTreeSet<ChunkRef>,
    there: usize,
    deadline: Instant,
) -> BTreeMap<ChunkRef, Result<ChunkBytes, usize>> {
    let chunks: Vec<ChunkRef> = chunks.into_iter().collect();
    let wants: Vec<Want> = chunks.iter().copied().map(Want::from).collect();
    let (sink, source) = bounded(2 * chunks.len());
    let mut answers = BTreeMap::new();
    // While so much is fetched, nothing is known either.
    if fetcher.want(&wants, Urgency::Now, &sink).is_err() {
        return answers;
    }
    let is_known = |answer: &Result<ChunkBytes, usize>| match answer {
        Ok(_) => true,
        Err(lacking) => there <= *lacking,
    };
    while answers.values().filter(|answer| is_known(answer)).count() < chunks.len() {
        let Ok(Fetched { chunk, bytes, .. }) = source.recv_deadline(deadline) else { break };
        let answer = bytes.map_err(|reason| match reason {
            Unavailable::NobodyThere => 0,
            Unavailable::Lacking { peers } => peers,
        });
        answers.insert(chunk, answer);
    }
    fetcher.cancel(&chunks, &sink);
    answers
}

impl Node {
    /// What cannot be had of the datasets that have no directory here. Where a member that is there told that its directory
    /// shows all of one, that is believed; of others, some contents are asked for.
    pub(super) async fn contents_that_nobody_gives(
        &self,
        status: &Status,
    ) -> Result<Vec<Finding>, NodeError> {
        let peers: Vec<&PeerStatus> = status.peers.iter().collect();
        let is_in_doubt = |dataset: &&DatasetStatus| {
            dataset.metadata_only && lacks_contents(&dataset.name, ANYBODY, &peers).is_some()
        };
        let doubtful = status.datasets.iter().filter(is_in_doubt);
        let doubtful: Vec<String> = doubtful.map(|dataset| dataset.name.clone()).collect();
        let there = status.peers.iter().filter(|peer| is_there(peer)).count();
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut elsewhere = Vec::new();
            for name in &doubtful {
                let Some(fact) = shared.facts().dataset(name).cloned() else { continue };
                match contents_elsewhere(shared.contents.local(), &fact) {
                    Ok(found) => elsewhere.extend(found),
                    // Perhaps it was dropped since.
                    Err(_) if shared.facts().dataset(name).is_none() => {}
                    Err(error) => return Err(error),
                }
            }
            let lacking = not_given(&shared.contents, elsewhere, there)?;
            let of_each = |name: &String| lacking.iter().find(|(sample, _)| sample.name == *name);
            let findings = doubtful
                .iter()
                .filter_map(of_each)
                .map(|(sample, lacking)| not_to_be_had(sample, there <= *lacking));
            Ok(findings.collect())
        })
        .await
    }
}

/// That contents of a dataset cannot be had now. If all that are there were asked, that is so for certain.
fn not_to_be_had(sample: &Sample, were_all_asked: bool) -> Finding {
    let Sample { name, key, .. } = sample;
    let what = if were_all_asked {
        format!("no node that is there has contents of {name}, such as that of {key}")
    } else {
        let seconds = ASK_FOR.as_secs();
        format!("no node gave contents of {name} within {seconds} s, such as that of {key}")
    };
    let todo = format!(
        "start the node that has them, or link the directory that has the files again: `consort link {name} DIR`"
    );
    Finding { severity: Severity::Warning, what, todo: Some(todo) }
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
            assert_eq!(complete_peers("photos", &nobody), Some(0));
        }
        let pending = PeerDataset { in_sync: false, pending: 1, ..shows.clone() };
        let differs = PeerDataset { in_sync: false, ..shows.clone() };
        for soon in [alive(&pending), alive(&differs), peer(Presence::Alive, None)] {
            assert!(matches!(lack(&[alive(&names_only), soon]), Some(Lack::ForNow(_))));
        }
        assert_eq!(lack(&[alive(&pending), alive(&shows)]), None);
        assert_eq!(complete_peers("photos", &[alive(&pending), alive(&shows)]), Some(1));
        assert_eq!(complete_peers("photos", &[alive(&pending)]), Some(0));
        // Whoever has not told yet may have one.
        let silent = peer(Presence::Alive, None);
        assert_eq!(complete_peers("photos", &[alive(&names_only), silent.clone()]), None);
        assert_eq!(complete_peers("photos", &[alive(&shows), silent]), Some(1));
    }
}
