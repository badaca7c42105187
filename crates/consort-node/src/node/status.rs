//! How things stand, and what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use consort_core::protocol::garbage::Holdup;
use consort_core::protocol::link::Phase;
use consort_core::protocol::membership::{Liveness, MAX_FULL_MESH, News};
use consort_core::protocol::replica::LinkReport;
use consort_core::store::View;
use consort_core::{DatasetId, NodeId};
use consort_store::{DAMAGED_HINT, DiskStore};

use crate::cluster::{DatasetFact, Facts, MemberFact};
use crate::error::NodeError;
use crate::folder::{MAX_PROBLEMS, Trouble};
use crate::net::Identity;
use crate::report::{
    DatasetState, DatasetStatus, Finding, LinkStatus, PeerDataset, PeerStatus, Presence, Severity,
    Status,
};
use crate::runtime::{Cause, MemberView, short_digest, short_id};
use crate::words::counted;

use super::keepers::complete_peers;
use super::members::whereabouts;
use super::{Node, REVOKED, blocking};

/// The shortest time between two calls of a status that is watched.
const STATUS_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// Why a dataset waits, when there is nobody to hear from.
pub(super) const NOBODY: &str = "no other node can be reached";

/// Why a dataset waits, when those that are there do not have what its directory lacks.
pub(super) const LACKING: &str = "content is missing that no reachable node has";

/// Datagrams that were sent in vain before something is wrong.
const SENT_ENOUGH: u64 = 100;

/// The longest: rates fall without anything happening.
const STATUS_AT_LEAST_EVERY: std::time::Duration = std::time::Duration::from_secs(1);

impl Node {
    /// How the node, its peers and its datasets stand.
    pub async fn status(&self) -> Result<Status, NodeError> {
        let facts = self.shared.facts();
        let mut datasets = Vec::new();
        for fact in &facts.datasets {
            match self.dataset_status(fact).await {
                Ok(status) => datasets.push(status),
                // Perhaps it was dropped since.
                Err(_) if self.shared.facts().dataset(&fact.name).is_none() => {}
                Err(error) => return Err(error),
            }
        }
        let peers = self.peer_status(&datasets).await?;
        for dataset in &mut datasets {
            dataset.complete_peers = complete_peers(&dataset.name, &peers);
        }
        let (node, listen, traffic) = (self.identity(), self.listen_addr(), self.traffic());
        let network = &self.shared.network;
        let (datagrams, limits) = (network.datagrams(), network.limits());
        Ok(Status { node, listen, peers, datasets, traffic, limits, datagrams })
    }

    /// How the other members stand, as they told, compared with this node.
    async fn peer_status(&self, here: &[DatasetStatus]) -> Result<Vec<PeerStatus>, NodeError> {
        let views = self.ask(|reply| Cause::Members { reply }).await?;
        let views: BTreeMap<NodeId, MemberView> =
            views.into_iter().map(|view| (view.node, view)).collect();
        let (facts, states) = (self.shared.facts(), self.shared.peers());
        let learned = self.shared.learned();
        let own = self.shared.identity.node;
        let others = facts.members.iter().filter(|member| member.node != own && !member.revoked);
        let describe = |member: &MemberFact| {
            let state = states.get(&member.node).cloned().unwrap_or_default();
            let view = views.get(&member.node);
            let news = view.and_then(|view| view.news.as_ref());
            let told = news.and_then(|(_, news)| news.address);
            let presence = match view.map_or(Liveness::Unheard, |view| view.liveness) {
                Liveness::Alive => Presence::Alive,
                Liveness::Suspected => Presence::Suspected,
                Liveness::Gone => Presence::Gone,
                Liveness::Unheard => Presence::Unheard,
            };
            let is_there = matches!(presence, Presence::Alive | Presence::Suspected);
            let learned = learned.get(&member.node).map_or(&[][..], Vec::as_slice);
            let listens = whereabouts(member, state.connected, learned, told).first().copied();
            PeerStatus {
                node: member.node,
                name: member.name.clone(),
                role: member.role,
                addr: state.dialed.or(listens),
                connected: state.connected,
                reason: state.reason.filter(|_| !state.connected),
                presence,
                for_seconds: view.map_or(0, |view| view.for_how_long.as_secs()),
                neighbour: view.is_some_and(|view| view.neighbour),
                told_seconds_ago: news.map(|(ago, _)| ago.as_secs()),
                neighbours: news.map_or(0, |(_, news)| news.links.into()),
                rate_bytes: news.filter(|_| is_there).map_or(0, |(_, news)| news.rate),
                datasets: news
                    .map_or_else(Vec::new, |(_, news)| compare(&facts, here, news, is_there)),
            }
        };
        Ok(others.map(describe).collect())
    }

    /// How many of those that are there told that a directory of theirs is linked to the dataset, if that is known.
    pub(super) async fn complete_peers(
        &self,
        fact: &DatasetFact,
    ) -> Result<Option<u64>, NodeError> {
        let here = [self.dataset_status(fact).await?];
        Ok(complete_peers(&fact.name, &self.peer_status(&here).await?))
    }

    async fn dataset_status(&self, fact: &DatasetFact) -> Result<DatasetStatus, NodeError> {
        let dataset = fact.parameters.id;
        let links = self.ask(|reply| Cause::Links { dataset, reply }).await?;
        let store = self.shared.store.clone();
        let (summary, tombstones, pending, pending_bytes, losers) = blocking(move || {
            let view = store.view(dataset)?;
            let (tombstones, losers) = (view.tombstones().count, view.losers());
            let (pending, bytes) = (view.pending_count(), view.pending_bytes());
            Ok((view.summary(), tombstones, pending, bytes, losers))
        })
        .await?;
        let holdup = self.ask(|reply| Cause::Forgetting { dataset, reply }).await?;
        let name = |holdup: Holdup| {
            let node = holdup.node.or_else(|| {
                let facts = self.shared.facts();
                let fact = facts.replicas.iter().find(|fact| fact.author == holdup.author)?;
                Some(fact.node)
            });
            node.map_or_else(|| holdup.author.short().to_string(), |node| self.name_of(node))
        };
        let tombstones_wait_for = holdup.filter(|_| 0 < tombstones).map(name);
        let folder = self.shared.folder(dataset);
        let link = self.shared.link_of(dataset);
        let progress = folder.as_ref().map(|folder| folder.progress());
        let scan = progress.and_then(|progress| progress.scan());
        let underway = progress.map_or(0, |progress| progress.underway());
        let unsettled = progress.map_or(0, |progress| progress.unsettled());
        let blocked = if 0 < pending { self.blocked(dataset).await? } else { None };
        let busy = 0 < pending || 0 < unsettled || !links.iter().all(is_quiet);
        let trouble = self.shared.is_revoked().then(|| Trouble::Paused(REVOKED.to_owned()));
        let trouble = trouble.or_else(|| self.shared.broken_link(dataset).map(Trouble::Paused));
        let trouble = trouble.or_else(|| self.shared.failure().map(Trouble::Paused));
        let trouble = trouble.or_else(|| progress.and_then(|progress| progress.trouble()));
        let held_back = progress.is_some_and(|progress| progress.is_waiting()) && 0 < pending;
        let (state, reason) = match trouble {
            Some(Trouble::Paused(reason)) => (DatasetState::Paused, Some(reason)),
            Some(Trouble::Degraded(reason)) => (DatasetState::Degraded, Some(reason)),
            None if scan.is_some() => (DatasetState::Scanning, None),
            None if links.is_empty() && self.has_others() => {
                (DatasetState::Waiting, Some(format!("{NOBODY}; `consort doctor` says more")))
            }
            None if held_back => (DatasetState::Waiting, Some(LACKING.to_owned())),
            None if links.iter().any(|link| link.phase == Phase::Waiting) => {
                let names: Vec<String> = links
                    .iter()
                    .filter(|link| link.phase == Phase::Waiting)
                    .map(|link| self.name_of(link.peer))
                    .collect();
                let reason = format!(
                    "versions that come from {} lie in the future of this machine's clock: set the clocks right; if they are, give that node a new --home and join it again, as its versions keep their time",
                    names.join(", ")
                );
                (DatasetState::Waiting, Some(reason))
            }
            None if blocked.is_some() => (DatasetState::Degraded, blocked),
            None if busy => (DatasetState::Syncing, None),
            None => match progress.and_then(|progress| progress.difference()) {
                Some(difference) => (DatasetState::Degraded, Some(difference)),
                None => (DatasetState::InSync, None),
            },
        };
        // What came before it paused, or before the last peer went, says nothing of what comes.
        let is_still =
            matches!(state, DatasetState::Paused | DatasetState::Waiting | DatasetState::InSync);
        let comes = !links.is_empty() && !is_still;
        let rate_bytes = progress.filter(|_| comes).map_or(0, |progress| progress.rate());
        Ok(DatasetStatus {
            name: fact.name.clone(),
            versions: summary.digest.count,
            tombstones,
            tombstones_wait_for,
            digest: format!("{:032x}", summary.digest.sum),
            dir: link.as_ref().map(|link| link.dir.clone()),
            metadata_only: link.is_none(),
            // Who is there is looked at once for all datasets.
            complete_peers: None,
            read_only: link.is_some_and(|link| link.read_only),
            state,
            reason,
            pending,
            pending_bytes: pending_bytes.saturating_sub(underway),
            indexed: scan.map_or(0, |scan| scan.done),
            to_index: scan.and_then(|scan| scan.total),
            on_conflict: fact.on_conflict,
            conflicts: losers.under(fact.on_conflict),
            conflict_copies: progress.map_or(0, |progress| progress.conflicts()),
            problems: progress.map(|progress| progress.problems()).unwrap_or_default(),
            rate_bytes,
            links: links.iter().map(|link| self.link_status(link)).collect(),
        })
    }

    fn link_status(&self, link: &LinkReport) -> LinkStatus {
        let phase = match link.phase {
            Phase::Greeting => "connecting",
            Phase::Reconciling => "reconciling",
            Phase::CatchingUp => "catching up",
            Phase::Live => "live",
            Phase::Waiting => "waiting for a clock that is ahead",
        };
        LinkStatus {
            peer: link.peer,
            name: self.name_of(link.peer),
            phase: phase.to_owned(),
            method: link.method.map(|method| method.name().to_owned()),
            behind: link.behind,
        }
    }

    /// Whether this node is not the only member.
    pub(super) fn has_others(&self) -> bool {
        1 < self.shared.facts().members.iter().filter(|member| !member.revoked).count()
    }

    /// A peer's name, or what is known instead.
    pub(super) fn name_of(&self, peer: NodeId) -> String {
        let facts = self.shared.facts();
        let name = facts.member(peer).map(|member| member.name.clone());
        name.unwrap_or_else(|| peer.short().to_string())
    }

    /// Why nothing of what the directory does not show yet can be shown.
    pub(super) async fn blocked(&self, dataset: DatasetId) -> Result<Option<String>, NodeError> {
        let Some(folder) = self.shared.folder(dataset) else { return Ok(None) };
        let Some(reason) = folder.progress().difference() else { return Ok(None) };
        let store = self.shared.store.clone();
        let pending =
            blocking(move || Ok(store.view(dataset)?.pending(None, MAX_PROBLEMS + 1)?)).await?;
        let are_problems =
            folder.progress().are_problems(pending.iter().map(|(key, _)| key.as_str()));
        Ok(Some(reason).filter(|_| are_problems))
    }

    /// What stands in the way of a dataset's directory, in words.
    pub(super) fn trouble(&self, dataset: DatasetId) -> Option<String> {
        let trouble = self.shared.folder(dataset)?.progress().trouble()?;
        let (Trouble::Paused(reason) | Trouble::Degraded(reason)) = trouble;
        Some(reason)
    }

    /// Returns when the status may have changed, at most a few times a second.
    pub async fn status_changed(&self) {
        let mut changed = self.shared.watch();
        let changed = tokio::time::timeout(STATUS_AT_LEAST_EVERY, changed.changed());
        let _ = tokio::join!(changed, tokio::time::sleep(STATUS_EVERY));
    }

    /// Looks at everything that can be wrong with a running node.
    pub async fn doctor(&self) -> Result<Vec<Finding>, NodeError> {
        let status = self.status().await?;
        let mut findings = Vec::new();
        if self.shared.is_revoked() {
            findings.push(Finding {
                severity: Severity::Problem,
                what: "this node's membership was revoked".to_owned(),
                todo: Some("ask for a new ticket, and join with a new --home".to_owned()),
            });
        }
        if !self.shared.has_heard() {
            findings.push(Finding {
                severity: Severity::Warning,
                what: "this node has not heard from its cluster since it started".to_owned(),
                todo: Some("start another member, or see why none can be reached".to_owned()),
            });
        }
        findings.extend(peer_findings(&status.peers));
        findings.extend(self.datagram_finding(&status));
        // What the node as a whole suffers from is a finding of its own, and what to do is not said again of each dataset.
        let failure = self.shared.failure();
        let is_of_node = |reason: &String| reason == REVOKED || failure.as_ref() == Some(reason);
        for dataset in &status.datasets {
            let name = &dataset.name;
            let severity = match dataset.state {
                DatasetState::Paused => Severity::Problem,
                DatasetState::Degraded | DatasetState::Waiting => Severity::Warning,
                _ => Severity::Ok,
            };
            let (why, todo) = match dataset.reason.clone() {
                Some(reason) if reason.starts_with(NOBODY) => (format!(": {NOBODY}"), None),
                Some(reason) if reason == LACKING => {
                    let todo = format!(
                        "start a node that has it, or link a directory that has the files on any node: `consort link {name} DIR`"
                    );
                    (format!(": {LACKING}"), Some(todo))
                }
                // Whether contents can be had, a finding of its own says.
                None if dataset.metadata_only && dataset.state == DatasetState::InSync => {
                    (" as far as metadata goes: it has no directory here".to_owned(), None)
                }
                // What is wrong with single entries follows.
                reason => {
                    let is_of_entry = |reason: &str| {
                        dataset.problems.iter().any(|problem| reason.starts_with(problem.as_str()))
                    };
                    let is_new = |reason: &String| !is_of_node(reason) && !is_of_entry(reason);
                    (String::new(), reason.filter(is_new))
                }
            };
            let what = format!("{name} is {}{why}", dataset.state);
            findings.push(Finding { severity, what, todo });
            findings.extend(conflicts(dataset));
            let away = |name: &&String| {
                status.peers.iter().any(|peer| peer.name == **name && !peer.connected)
            };
            if let Some(away) = dataset.tombstones_wait_for.as_ref().filter(away) {
                findings.push(Finding {
                    severity: Severity::Ok,
                    what: format!(
                        "{name} remembers {} deletions until {away} has heard of them",
                        dataset.tombstones
                    ),
                    todo: Some(format!(
                        "start it; if it stays away, on an admin's node: consort member evict {away}"
                    )),
                });
            }
            findings.extend(dataset.problems.iter().map(|problem| Finding {
                severity: Severity::Warning,
                what: format!("{name}: {problem}"),
                todo: None,
            }));
        }
        let facts = self.shared.facts();
        for (name, policy) in
            facts.datasets.iter().filter_map(|d| Some((&d.name, d.unknown_policy.as_ref()?)))
        {
            findings.push(Finding {
                severity: Severity::Warning,
                what: format!("{name} has the conflict policy {policy:?}, which this version does not know: it keeps both here"),
                todo: Some("update consort on this node".to_owned()),
            });
        }
        findings.extend(match self.contents_that_nobody_gives(&status).await {
            Ok(findings) => findings,
            // A store that cannot be read through is a finding, too.
            Err(NodeError { message: what, hint: todo, .. }) => {
                vec![Finding { severity: Severity::Problem, what, todo }]
            }
        });
        findings.extend(self.rescued().await?);
        if let Some(failure) = failure {
            let todo = Some("mend the cause, and start the node again".to_owned());
            findings.push(Finding { severity: Severity::Problem, what: failure, todo });
        }
        Ok(findings)
    }

    /// Members beyond the neighbours are known by datagrams only.
    fn datagram_finding(&self, status: &Status) -> Option<Finding> {
        let port = status.listen.port();
        let todo = if !self.shared.network.has_datagrams() {
            format!(
                "free UDP port {port}, and start this node again; or choose another port with --listen"
            )
        } else if SENT_ENOUGH < status.datagrams.sent && status.datagrams.received == 0 {
            format!("open UDP port {port} beside TCP port {port} in firewalls")
        } else {
            return None;
        };
        let what = "no datagrams of other members arrive: nodes work without, but whether a member is there that is no neighbour is not known";
        Some(Finding { severity: Severity::Warning, what: what.to_owned(), todo: Some(todo) })
    }

    /// Files that an interrupted operation could not put back.
    async fn rescued(&self) -> Result<Vec<Finding>, NodeError> {
        let shared = std::sync::Arc::clone(&self.shared);
        blocking(move || {
            let mut findings = Vec::new();
            for link in shared.links() {
                let Some(root) = shared.contents.local().roots().get(link.dataset) else {
                    continue;
                };
                let names = root.rescued().unwrap_or_default();
                if !names.is_empty() {
                    let area = link.dir.join(".consort/rescued");
                    let files = counted(names.len() as u64, "file was", "files were");
                    findings.push(Finding {
                        severity: Severity::Warning,
                        what: format!("{files} rescued into {}", area.display()),
                        todo: Some(
                            "look at them, move what you need, and remove the rest".to_owned(),
                        ),
                    });
                }
            }
            Ok(findings)
        })
        .await
    }
}

/// Which members this node is connected with. In a cluster that is small enough for all to be, whoever is not is a warning, also if
/// it is known to be there; in a larger one, that is as it should be.
fn peer_findings(peers: &[PeerStatus]) -> Vec<Finding> {
    let is_small = peers.len() < MAX_FULL_MESH;
    let is_elsewhere =
        |peer: &PeerStatus| !is_small && !peer.connected && peer.presence == Presence::Alive;
    let mut findings = Vec::new();
    let elsewhere = peers.iter().filter(|peer| is_elsewhere(peer)).count() as u64;
    if elsewhere != 0 {
        let members = counted(elsewhere, "member is", "members are");
        findings.push(ok(format!(
            "{members} there and not connected with this node: changes go over its neighbours"
        )));
    }
    for peer in peers.iter().filter(|peer| !is_elsewhere(peer)) {
        if peer.connected {
            findings.push(ok(format!("{} is connected", peer.name)));
            continue;
        }
        let there = if peer.presence == Presence::Alive { "there, but " } else { "" };
        let reason = peer.reason.as_deref().unwrap_or("it was not reached yet");
        findings.push(Finding {
            severity: Severity::Warning,
            what: format!("{} is {there}not connected: {reason}", peer.name),
            todo: Some(match peer.addr {
                Some(addr) => format!(
                    "check that `consort up` runs there and that {addr} can be reached by TCP"
                ),
                None => "its address is not known here: let it connect to this node, or to one that both know".to_owned(),
            }),
        });
    }
    findings
}

fn is_quiet(link: &LinkReport) -> bool {
    link.phase == Phase::Live && link.behind == 0 && link.lacks == 0
}

/// That somebody has to choose.
fn conflicts(dataset: &DatasetStatus) -> Option<Finding> {
    let DatasetStatus { name, conflicts, conflict_copies, dir, pending, .. } = dataset;
    if *conflicts == 0 {
        return None;
    }
    let number = counted(*conflicts, "conflict", "conflicts");
    let mut what = format!("{name} has {number} that nobody has dealt with");
    let not_shown = conflicts.saturating_sub(*conflict_copies);
    if dir.is_some() && *pending == 0 && not_shown != 0 {
        what.push_str(&format!(", {not_shown} without a copy in the directory"));
    }
    let todo = format!("`consort conflicts {name}` shows what to choose from");
    Some(Finding { severity: Severity::Warning, what, todo: Some(todo) })
}

fn ok(what: String) -> Finding {
    Finding { severity: Severity::Ok, what, todo: None }
}

/// Reads the whole store of a node that does not run, and trusts nothing in it. `progress` is told how many rows were
/// read.
///
/// # Errors
/// The store cannot be opened, or its node runs.
pub fn check_store(home: &Path, mut progress: impl FnMut(u64)) -> Result<Vec<Finding>, NodeError> {
    // A damaged identity is no reason not to look.
    let node = Identity::load(&home.join("identity")).ok().map(|identity| identity.node());
    let store = DiskStore::open_for(&home.join("store"), node)?;
    let report = store.check(|step| progress(step.done));
    let mut findings: Vec<Finding> = report
        .findings
        .iter()
        .map(|finding| Finding {
            severity: Severity::Problem,
            what: finding.to_string(),
            todo: Some(DAMAGED_HINT.to_owned()),
        })
        .collect();
    if findings.is_empty() {
        findings.push(ok("the store is whole".to_owned()));
    }
    Ok(findings)
}

/// How a member stood with the datasets that are known here. What one that is not there holds by now, nobody knows.
fn compare(facts: &Facts, here: &[DatasetStatus], news: &News, is_there: bool) -> Vec<PeerDataset> {
    let mut compared = Vec::new();
    for dataset in here {
        let Some(fact) = facts.dataset(&dataset.name) else { continue };
        let short = short_id(fact.parameters.id);
        let Some(there) = news.datasets.iter().find(|there| there.dataset == short) else {
            continue;
        };
        let sum = u128::from_str_radix(&dataset.digest, 16).unwrap_or_default();
        let is_same = there.digest == short_digest(sum) && there.versions == dataset.versions;
        compared.push(PeerDataset {
            name: dataset.name.clone(),
            in_sync: is_there && is_same && (there.pending == 0 || !there.linked),
            versions: there.versions,
            behind: dataset.versions.saturating_sub(there.versions),
            pending: if there.linked { there.pending } else { 0 },
            linked: there.linked,
        });
    }
    compared
}

#[cfg(test)]
mod tests {
    use crate::net::Role;

    use super::*;

    fn peer(number: usize, presence: Presence, connected: bool) -> PeerStatus {
        PeerStatus {
            node: NodeId([1; 16]),
            name: format!("n{number}"),
            role: Role::Writer,
            addr: None,
            connected,
            reason: (!connected).then(|| "refused".to_owned()),
            presence,
            for_seconds: 0,
            neighbour: connected,
            told_seconds_ago: None,
            neighbours: 0,
            rate_bytes: 0,
            datasets: Vec::new(),
        }
    }

    #[test]
    fn who_is_not_connected_is_well_only_where_not_all_can_be() {
        let few = [
            peer(0, Presence::Alive, true),
            peer(1, Presence::Alive, false),
            peer(2, Presence::Gone, false),
        ];
        let found = peer_findings(&few);
        let severities: Vec<_> = found.iter().map(|found| found.severity).collect();
        assert_eq!(severities, [Severity::Ok, Severity::Warning, Severity::Warning]);
        assert_eq!(found[1].what, "n1 is there, but not connected: refused");
        assert_eq!(found[2].what, "n2 is not connected: refused");
        assert!(found[1..].iter().all(|found| found.todo.is_some()));

        let many: Vec<_> =
            (0..MAX_FULL_MESH).map(|number| peer(number, Presence::Alive, number < 8)).collect();
        let found = peer_findings(&many);
        assert!(found.iter().all(|found| found.severity == Severity::Ok), "{found:?}");
        assert!(found[0].what.contains("1 member is there and not connected"), "{found:?}");
        let gone = [many, vec![peer(9, Presence::Gone, false)]].concat();
        let found = peer_findings(&gone);
        assert_eq!(found.last().map(|found| found.severity), Some(Severity::Warning));
    }
}
