//! Waiting until this node holds what its peers hold.

use std::collections::BTreeMap;
use std::time::Duration;

use consort_core::protocol::link::Phase;
use consort_core::protocol::replica::LinkReport;
use consort_core::store::{Sequence, View};
use consort_core::{DatasetId, NodeId};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::error::{ErrorKind, NodeError};
use crate::folder::Trouble;
use crate::report::Waited;
use crate::runtime::{Answer, Cause};
use crate::words::counted;

use super::status::{LACKING, NOBODY};
use super::{Node, blocking};

/// After a start, peers that are known get so long to connect before they count as not reachable.
const CONNECT_GRACE: Duration = Duration::from_secs(3);
/// How long a wait rests between two looks: while much arrives, something changes all the time.
const SETTLE: Duration = Duration::from_millis(5);
/// How often a wait looks, even if nothing told it to.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a wait looks which key it waits for. That costs more than counting them.
const NAME_AGAIN: Duration = Duration::from_secs(2);

/// What looks stuck for so long is.
const STUCK_AFTER: Duration = Duration::from_secs(3);

impl Node {
    /// Returns when this node holds everything that its reachable peers hold, and its directory shows it. Changes
    /// that were made to any of their linked directories before the call are included. Fails if the directory is paused,
    /// or an entry of it is not what the dataset holds and nothing is to come: then it shows something else, and nobody is at
    /// work.
    pub async fn wait(&self, name: &str, timeout: Duration) -> Result<Waited, NodeError> {
        let deadline = Instant::now() + timeout;
        let mut missing = format!("the directory of {name} on this node is still being looked at");
        let waited = timeout_at(deadline, self.wait_for_all(name, &mut missing)).await;
        waited.unwrap_or_else(|_| {
            let mut message = format!("not in sync within {timeout:?}: {missing}");
            let mut hint =
                "`consort status` shows what is going on; a longer --timeout waits longer";
            let is_alone = !self.is_connected() && self.has_others();
            if is_alone {
                message.push_str(&format!("; {NOBODY}"));
            }
            if is_alone || missing.ends_with(&format!("({LACKING})")) {
                hint = "`consort doctor` says why, and what to do";
            }
            Err(NodeError::new(ErrorKind::TimedOut, message).hint(hint))
        })
    }

    async fn wait_for_all(&self, name: &str, missing: &mut String) -> Result<Waited, NodeError> {
        if self.shared.is_revoked() {
            return Err(NodeError::not_allowed(super::REVOKED)
                .hint("ask an admin for a new ticket, and join with a new --home"));
        }
        let dataset = self.fact(name).await?.parameters.id;
        self.flush_own(name, dataset, missing).await?;
        *missing = "peers that were seen before are not connected yet".to_owned();
        self.await_peers().await;

        let mut reached = self.await_changes(dataset, missing).await?;
        // A dataset that was dropped meanwhile has nothing to show.
        let fact = self.fact(name).await?;
        self.await_directory(name, dataset, missing).await?;
        // What the directory waited for may have come with a peer that was not there before.
        if reached == 0 && self.is_connected() {
            reached = self.await_changes(dataset, missing).await?;
            self.await_directory(name, dataset, missing).await?;
        }
        let versions = self.shared.store.view(dataset)?.summary().digest.count;
        let metadata_only = self.shared.link_of(dataset).is_none();
        let complete_peers = if metadata_only { self.complete_peers(&fact).await? } else { None };
        Ok(Waited { versions, peers: reached, metadata_only, complete_peers })
    }

    /// Returns when everything that reachable peers hold of a dataset by now is here, and how many peers that were; or
    /// when there is no such dataset any more.
    pub(super) async fn await_changes(
        &self,
        dataset: DatasetId,
        missing: &mut String,
    ) -> Result<usize, NodeError> {
        let mut changed = self.shared.watch();
        let barrier = self.ask(|reply| Cause::Barrier { dataset, reply }).await?;
        let _guard = BarrierGuard { node: self, id: barrier };
        let mut peers = BTreeMap::new();
        loop {
            changed.borrow_and_update();
            self.require_store()?;
            // A dataset that is dropped meanwhile has nobody to wait for.
            if !self.has_dataset(dataset) {
                return Ok(peers.len());
            }
            let answers = self.ask(|reply| Cause::BarrierState { id: barrier, reply }).await?;
            let now = Instant::now();
            for Answer { link, head } in answers {
                peers.insert(link.peer, Seen { at: now, standing: Standing::of(&link, head) });
            }
            peers.retain(|_, seen| seen.is_reachable(now));
            let waiting: Vec<_> = peers.iter().filter(|(_, seen)| seen.is_missing()).collect();
            if waiting.is_empty() {
                return Ok(peers.len());
            }
            *missing = self.describe_waiting(&waiting, now);
            pause(&mut changed).await;
        }
    }

    fn is_connected(&self) -> bool {
        self.shared.peers().values().any(|peer| peer.connected)
    }

    fn has_dataset(&self, dataset: DatasetId) -> bool {
        let facts = self.shared.facts();
        dataset == self.shared.cluster.id
            || facts.datasets.iter().any(|fact| fact.parameters.id == dataset)
    }

    /// Takes in what was changed in this node's own directory.
    pub(super) async fn flush_own(
        &self,
        name: &str,
        dataset: DatasetId,
        missing: &mut String,
    ) -> Result<(), NodeError> {
        let (mut changed, mut stuck) = (self.shared.watch(), Stuck::default());
        while let Some(folder) = self.shared.folder(dataset) {
            let (done, mut flushed) = oneshot::channel();
            folder.flush(move || {
                let _ = done.send(());
            });
            // While it is away, nobody can look into it.
            let outcome = loop {
                tokio::select! {
                    outcome = &mut flushed => break outcome,
                    () = pause(&mut changed) => stuck.look(self.paused(name, dataset))?,
                }
            };
            if outcome.is_ok() {
                break;
            }
            // It is being unlinked.
            if let Some(reason) = self.trouble(dataset) {
                *missing = reason;
            }
            pause(&mut changed).await;
        }
        Ok(())
    }

    /// Whether what is pending in the directory cannot be had at the moment.
    fn is_lacking(&self, dataset: DatasetId) -> bool {
        self.shared.folder(dataset).is_some_and(|folder| folder.progress().is_waiting())
    }

    /// Why nothing goes on in the directory before somebody does something.
    fn paused(&self, name: &str, dataset: DatasetId) -> Option<NodeError> {
        match self.shared.folder(dataset)?.progress().trouble() {
            Some(Trouble::Paused(reason)) => {
                let error = format!("the directory of {name} is paused: {reason}");
                Some(
                    NodeError::failed(error)
                        .hint("when that is mended, it goes on by itself: call it again then"),
                )
            }
            _ => None,
        }
    }

    /// Gives known peers a moment to connect after a start.
    pub(super) async fn await_peers(&self) {
        let mut changed = self.shared.watch();
        let end = Instant::from_std(self.started) + CONNECT_GRACE;
        while Instant::now() < end {
            changed.borrow_and_update();
            let settled = self.ask(|reply| Cause::IsSettled { reply }).await;
            // Before the first contact, a new member does not even know who there is.
            let own = self.shared.identity.node;
            let is_known = self.shared.facts().member(own).is_some();
            if is_known && settled != Ok(false) {
                return;
            }
            let _ = timeout_at(end, changed.changed()).await;
        }
    }

    async fn await_directory(
        &self,
        name: &str,
        dataset: DatasetId,
        missing: &mut String,
    ) -> Result<(), NodeError> {
        let mut changed = self.shared.watch();
        let (mut first, mut name_again, mut stuck) = (None, Instant::now(), Stuck::default());
        while self.shared.folder(dataset).is_some() {
            changed.borrow_and_update();
            let store = self.shared.store.clone();
            let names = name_again <= Instant::now();
            let (pending, key) = blocking(move || {
                let view = store.view(dataset)?;
                let key = if names { view.pending(None, 1)?.pop() } else { None };
                Ok((view.pending_count(), key))
            })
            .await?;
            if pending == 0 {
                break;
            }
            if names {
                let blocked = self.blocked(dataset).await?.map(|reason| differs(name, &reason));
                stuck.look(blocked.or_else(|| self.paused(name, dataset)))?;
                first = key.map(|(key, _)| key);
                name_again = Instant::now() + NAME_AGAIN;
            }
            let number = counted(pending, "change is", "changes are");
            *missing = format!("{number} not in the directory yet");
            if let Some(key) = &first {
                missing.push_str(&format!(", among them that of {key}"));
            }
            let reason = match self.paused(name, dataset) {
                None if self.is_lacking(dataset) => Some(LACKING.to_owned()),
                _ => self.trouble(dataset),
            };
            if let Some(reason) = reason {
                missing.push_str(&format!(" ({reason})"));
            }
            pause(&mut changed).await;
        }
        // Nothing is to come, but what is there is not what this node holds, and nobody works on it.
        let folder = self.shared.folder(dataset);
        if let Some(paused) = self.paused(name, dataset) {
            return Err(paused);
        }
        if let Some(reason) = folder.and_then(|folder| folder.progress().difference()) {
            return Err(differs(name, &reason));
        }
        match self.shared.broken_link(dataset) {
            Some(reason) => {
                Err(NodeError::failed(format!("the directory of {name} is not there: {reason}"))
                    .hint(
                        "mend that and restart the node, or unlink the directory and link it anew",
                    ))
            }
            None => Ok(()),
        }
    }

    fn describe_waiting(&self, waiting: &[(&NodeId, &Seen)], now: Instant) -> String {
        let each = waiting.iter().map(|(node, seen)| {
            let name = self.name_of(**node);
            match seen.standing {
                _ if seen.at < now => format!("{name} went away before its changes were here"),
                Standing::Unanswered => format!("{name} has not looked through its directory yet"),
                Standing::Strange => format!("{name} says nothing of this dataset"),
                Standing::Ahead => {
                    format!("versions that {name} has lie in the future of this machine's clock")
                }
                Standing::Behind | Standing::Here => {
                    format!("changes of {name} are still on their way")
                }
            }
        });
        each.collect::<Vec<_>>().join("; ")
    }
}

fn differs(name: &str, reason: &str) -> NodeError {
    let error = format!("the directory of {name} is not what the dataset is: {reason}");
    NodeError::failed(error).hint(format!(
        "`consort status {name}` shows all of them; mend, move away or ignore them (.consortignore)"
    ))
}

/// What does not go on by itself, and whether it has been so for long enough to say so: after a start, or while something is
/// tried again, it may look so for a moment.
#[derive(Default)]
pub(super) struct Stuck {
    since: Option<Instant>,
}

impl Stuck {
    pub(super) fn look(&mut self, error: Option<NodeError>) -> Result<(), NodeError> {
        let Some(error) = error else {
            self.since = None;
            return Ok(());
        };
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() < STUCK_AFTER { Ok(()) } else { Err(error) }
    }
}

/// Returns when something has changed, or after a while; not at every frame that arrives.
pub(super) async fn pause(changed: &mut watch::Receiver<u64>) {
    tokio::time::sleep(SETTLE).await;
    let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
}

/// How a peer stood when it was looked at last.
#[derive(Clone, Copy)]
struct Seen {
    at: Instant,
    standing: Standing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Everything that it had is here.
    Here,
    /// Something of that is not.
    Behind,
    /// The same, because of a clock.
    Ahead,
    /// It has not said how far it is.
    Unanswered,
    /// It has not greeted.
    Strange,
}

impl Standing {
    fn of(link: &LinkReport, head: Option<Sequence>) -> Self {
        match (link.phase, head) {
            (Phase::Greeting, _) => Self::Strange,
            (_, None) => Self::Unanswered,
            (Phase::Waiting, Some(head)) if link.applied < head => Self::Ahead,
            (Phase::Reconciling, _) => Self::Behind,
            (_, Some(head)) if link.applied < head => Self::Behind,
            _ => Self::Here,
        }
    }
}

impl Seen {
    /// A peer that went away may come back soon. What is known to be missing is missing for longer than that.
    fn is_reachable(&self, now: Instant) -> bool {
        let is_known = matches!(self.standing, Standing::Behind | Standing::Ahead);
        is_known || now < self.at + CONNECT_GRACE
    }

    /// Whether there is something to wait for. What was here when a peer went away still is.
    fn is_missing(&self) -> bool {
        self.standing != Standing::Here
    }
}

/// Forgets a barrier when nobody waits for it any more.
struct BarrierGuard<'n> {
    node: &'n Node,
    id: u64,
}

impl Drop for BarrierGuard<'_> {
    fn drop(&mut self) {
        let _ = self.node.shared.causes.send(Cause::BarrierOver { id: self.id });
    }
}
