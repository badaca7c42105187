//! Waiting until this node holds what its peers hold.

use std::collections::BTreeMap;
use std::time::Duration;

use consort_core::NodeId;
use consort_core::protocol::link::Phase;
use consort_core::store::{Sequence, View};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use crate::error::{ErrorKind, NodeError};
use crate::report::Waited;
use crate::runtime::Cause;

use super::{Node, blocking};

/// After a start, peers that are known get so long to connect before they count as not reachable.
const CONNECT_GRACE: Duration = Duration::from_secs(3);
/// How often a wait looks, even if nothing told it to.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often a wait looks which key it waits for. That costs more than counting them.
const NAME_AGAIN: Duration = Duration::from_secs(2);

impl Node {
    /// Returns when this node holds everything that its reachable peers hold, and its directory shows it. Changes
    /// that were made to any of their linked directories before the call are included.
    pub async fn wait(&self, name: &str, timeout: Duration) -> Result<Waited, NodeError> {
        let deadline = Instant::now() + timeout;
        let mut missing = format!("the directory of {name} on this node is still being looked at");
        let waited = timeout_at(deadline, self.wait_for_all(name, &mut missing)).await;
        waited.unwrap_or_else(|_| {
            Err(NodeError::new(
                ErrorKind::TimedOut,
                format!("not in sync within {timeout:?}: {missing}"),
            )
            .hint("`consort status` shows what is going on; a longer --timeout waits longer"))
        })
    }

    async fn wait_for_all(&self, name: &str, missing: &mut String) -> Result<Waited, NodeError> {
        let dataset = self.fact(name)?.parameters.id;
        self.flush_own(dataset).await?;
        *missing = "peers that were seen before are not connected yet".to_owned();
        self.await_peers().await;

        let mut changed = self.shared.watch();
        let barrier = self.ask(|reply| Cause::Barrier { dataset, reply }).await?;
        let guard = BarrierGuard { node: self, id: barrier };
        let peers = loop {
            changed.borrow_and_update();
            let answers = self.ask(|reply| Cause::BarrierState { id: barrier, reply }).await?;
            let links = self.ask(|reply| Cause::Links { dataset, reply }).await?;
            let behind = |peer: NodeId, phase: Phase, applied: Sequence| match answers.get(&peer) {
                None => true,
                Some(head) => {
                    applied < *head || matches!(phase, Phase::Greeting | Phase::Reconciling)
                }
            };
            let waiting: BTreeMap<NodeId, Phase> = links
                .iter()
                .filter(|link| behind(link.peer, link.phase, link.applied))
                .map(|link| (link.peer, link.phase))
                .collect();
            if waiting.is_empty() {
                break links.len();
            }
            *missing = self.describe_waiting(&waiting);
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
        };
        drop(guard);
        self.await_directory(dataset, missing).await?;
        let versions = self.shared.store.view(dataset)?.summary().digest.count;
        Ok(Waited { versions, peers })
    }

    /// Takes in what was changed in this node's own directory.
    async fn flush_own(&self, dataset: consort_core::DatasetId) -> Result<(), NodeError> {
        let Some(folder) = self.shared.folder(dataset) else { return Ok(()) };
        let (done, flushed) = oneshot::channel();
        folder.flush(move || {
            let _ = done.send(());
        });
        flushed.await.map_err(|_| NodeError::failed("the directory was unlinked meanwhile"))
    }

    /// Gives known peers a moment to connect after a start.
    async fn await_peers(&self) {
        let mut changed = self.shared.watch();
        let end = Instant::from_std(self.started) + CONNECT_GRACE;
        while Instant::now() < end {
            changed.borrow_and_update();
            let (facts, peers) = (self.shared.facts(), self.shared.peers());
            let own = self.shared.identity.node;
            let known = facts.members.iter().filter(|m| m.node != own && !m.revoked);
            let all = known.into_iter().all(|m| peers.get(&m.node).is_some_and(|p| p.connected));
            // Before the first contact, a new member does not even know who there is.
            if all && facts.member(own).is_some() {
                return;
            }
            let _ = timeout_at(end, changed.changed()).await;
        }
    }

    async fn await_directory(
        &self,
        dataset: consort_core::DatasetId,
        missing: &mut String,
    ) -> Result<(), NodeError> {
        let mut changed = self.shared.watch();
        let (mut first, mut name_again) = (None, Instant::now());
        while self.shared.folder(dataset).is_some() {
            changed.borrow_and_update();
            let store = self.shared.store.clone();
            let name = name_again <= Instant::now();
            let (pending, key) = blocking(move || {
                let view = store.view(dataset)?;
                let key = if name { view.pending(None, 1)?.pop() } else { None };
                Ok((view.pending_count(), key))
            })
            .await?;
            if pending == 0 {
                break;
            }
            if name {
                first = key.map(|(key, _)| key);
                name_again = Instant::now() + NAME_AGAIN;
            }
            *missing = format!("{pending} changes are not in the directory yet");
            if let Some(key) = &first {
                missing.push_str(&format!(", among them that of {key}"));
            }
            if let Some(reason) = self.trouble(dataset) {
                missing.push_str(&format!(" ({reason})"));
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
        }
        match self.shared.broken_link(dataset) {
            Some(reason) => Err(NodeError::failed(reason)),
            None => Ok(()),
        }
    }

    fn describe_waiting(&self, waiting: &BTreeMap<NodeId, Phase>) -> String {
        let facts = self.shared.facts();
        let name = |node: &NodeId| {
            facts
                .member(*node)
                .map_or_else(|| node.short().to_string(), |member| member.name.clone())
        };
        let names: Vec<String> = waiting.keys().map(name).collect();
        format!("changes of {} are still on their way", names.join(", "))
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
