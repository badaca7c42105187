//! Leaving the cluster: this node sees to it that nothing which only it has goes with it, and has an admin end its
//! membership.
//!
//! Of versions it is certain that others have them: a member acknowledges what is on its disk. Of contents it is not
//! asked chunk by chunk; a member whose directory shows the same versions has what is in them.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use consort_core::protocol::link::Phase;
use consort_core::protocol::membership::Liveness;
use consort_core::protocol::replica::LinkReport;
use consort_core::{DatasetId, NodeId, OnConflict};
use tokio::time::{Instant, timeout_at};

use crate::cluster::{Facts, MemberFact};
use crate::error::{ErrorKind, NodeError};
use crate::net::{LeaveRefusal, Role};
use crate::report::{Left, PeerStatus};
use crate::runtime::{Cause, MemberView};
use crate::shared::Shared;
use crate::words::counted;

use super::keepers::{Lack, first_content_here, lacks_contents};
use super::wait::{Stuck, pause};
use super::{Node, REVOKED, blocking, revocation};

/// Who takes over what this node has.
const WHOEVER: &str = "that writes and is there";

impl Node {
    /// Ends this node's membership, with the help of an admin. Before that, the linked directories are taken in, and
    /// every dataset's versions and contents have to be with another member, unless `force` is set. If this fails, nothing
    /// was ended, unless an admin's answer was lost: then others refuse this node soon, and it says so.
    pub async fn leave(&self, timeout: Duration, force: bool) -> Result<Left, NodeError> {
        if self.shared.is_revoked() {
            let hint = "if it has left, stop it, and its home can be removed; if somebody revoked it, first take \
                        what only it holds (`consort ls`, `consort get`)";
            return Err(NodeError::not_allowed(REVOKED).hint(hint));
        }
        self.require_store()?;
        let leaving = Leaving::begin(&self.shared)?;
        let deadline = Instant::now() + timeout;
        self.await_peers().await;
        let facts = self.shared.facts();
        let others: Vec<&MemberFact> =
            facts.members.iter().filter(|member| self.is_other(member)).collect();
        // Before the first contact, a new admin does not know of any other.
        let is_alone = others.is_empty()
            && self.shared.identity.role == Role::Admin
            && facts.member(self.shared.identity.node).is_some();
        if !is_alone {
            self.may_be_missed(&others, force)?;
            // It would be in vain to wait for anything.
            self.admins_there(&facts).await?;
        }
        if !force {
            let mut missing = "the directories are still being looked at".to_owned();
            let kept = timeout_at(deadline, self.await_keepers(&mut missing)).await;
            kept.unwrap_or_else(|_| {
                let message = format!("did not leave within {timeout:?}: {missing}");
                Err(NodeError::new(ErrorKind::TimedOut, message)
                    .hint("call it again, with a longer --timeout; --force leaves all the same"))
            })?;
        }
        // Once an admin is asked, this node has to learn how that ends, also if its caller has gone.
        let node = self.clone();
        let ended = tokio::spawn(async move {
            let _leaving = leaving;
            node.end_own_membership(is_alone).await
        });
        let ended_by = ended.await.unwrap_or_else(|_| Err(NodeError::ending()))?;
        let dirs = self.shared.links().into_iter().map(|link| link.dir).collect();
        Ok(Left { ended_by, checked: !force, dirs })
    }

    /// Has the membership ended by an admin, and says by whom. An admin that is the only member does it itself.
    async fn end_own_membership(&self, is_alone: bool) -> Result<Option<String>, NodeError> {
        let facts = self.shared.facts();
        let ended_by = if is_alone {
            let writes = revocation(&facts, self.shared.identity.node);
            self.record(self.shared.cluster.id, OnConflict::KeepBoth, writes).await?;
            None
        } else {
            Some(self.ask_an_admin(&facts).await?)
        };
        self.shared.set_revoked();
        self.shared.notify();
        Ok(ended_by)
    }

    fn is_other(&self, member: &MemberFact) -> bool {
        member.node != self.shared.identity.node && !member.revoked
    }

    /// Whether the others can do without what this node is to the cluster.
    fn may_be_missed(&self, others: &[&MemberFact], force: bool) -> Result<(), NodeError> {
        let is_last_admin = self.shared.identity.role == Role::Admin
            && !others.is_empty()
            && others.iter().all(|member| member.role != Role::Admin);
        if is_last_admin {
            return Err(NodeError::not_allowed(
                "this node is the cluster's only admin, and nobody could change the cluster after it",
            )
            .hint("make another admin first: `consort invite --role admin`, and join with that"));
        }
        if self.shared.desk.is_some() && !force {
            return Err(NodeError::not_allowed(
                "this node holds the cluster's authority: nobody could join the cluster after it",
            )
            .hint("if nobody is to join any more, add --force"));
        }
        Ok(())
    }

    /// The admins that seem to be there, in an order that is the same for all: of members that leave at once, one admin
    /// lets only one go.
    async fn admins_there<'f>(&self, facts: &'f Facts) -> Result<Vec<&'f MemberFact>, NodeError> {
        let views = self.ask(|reply| Cause::Members { reply }).await?;
        let peers = self.shared.peers();
        let is_connected = |node: &NodeId| peers.get(node).is_some_and(|peer| peer.connected);
        let is_there = |node: NodeId| {
            let there = |view: &MemberView| {
                view.node == node && matches!(view.liveness, Liveness::Alive | Liveness::Suspected)
            };
            is_connected(&node) || views.iter().any(there)
        };
        let is_admin = |member: &&MemberFact| self.is_other(member) && member.role == Role::Admin;
        let mut admins: Vec<_> = facts.members.iter().filter(is_admin).collect();
        let names: Vec<&str> = admins.iter().map(|admin| admin.name.as_str()).collect();
        let error = || self.no_admin("no admin of the cluster can be reached", &names);
        admins.retain(|admin| is_there(admin.node));
        admins.sort_by_key(|admin| admin.node);
        if admins.is_empty() { Err(error()) } else { Ok(admins) }
    }

    fn no_admin(&self, what: &str, admins: &[&str]) -> NodeError {
        let name = &self.shared.identity.name;
        let admins = match admins {
            [] => "an admin's node".to_owned(),
            names => format!("an admin's node ({})", names.join(", ")),
        };
        NodeError::failed(format!("{what}, and only an admin can end a membership"))
            .hint(format!("start one, or call `consort member revoke {name}` on {admins}"))
    }

    /// Asks one admin after the other, and says who ended the membership.
    async fn ask_an_admin(&self, facts: &Facts) -> Result<String, NodeError> {
        let (mut answers, mut all_leave) = (Vec::new(), true);
        for admin in self.admins_there(facts).await? {
            let answer = self.shared.network.ask_to_leave(admin.node).await;
            all_leave &= matches!(answer, Ok(Err(LeaveRefusal::Leaving)));
            let answer = match answer {
                Ok(Ok(())) => return Ok(admin.name.clone()),
                // Another admin may not know of the one that leaves.
                Ok(Err(refusal @ LeaveRefusal::AnotherLeaves)) => {
                    let refusal = format!("{}: {refusal}", admin.name);
                    return Err(NodeError::failed(refusal)
                        .hint("by then this node does not count on that one any more"));
                }
                Ok(Err(refusal)) => format!("{}: {refusal}", admin.name),
                Err(error) => format!("{}: {error}", admin.name),
            };
            answers.push(answer);
        }
        let name = &self.shared.identity.name;
        let answers = answers.join("; ");
        let hint = if all_leave {
            "one of those that are leaving has to stay until the others have left".to_owned()
        } else {
            // The answer may have been lost.
            format!(
                "if others refuse this node soon, one did; if not, call it again, or `consort member revoke {name}` on an admin's node"
            )
        };
        let message = format!("no admin confirmed the end of the membership ({answers})");
        Err(NodeError::failed(message).hint(hint))
    }

    /// Returns when others have everything that this node has.
    async fn await_keepers(&self, missing: &mut String) -> Result<(), NodeError> {
        // Those that come later are refused.
        self.shared.written().await;
        let facts = self.shared.facts();
        for fact in &facts.datasets {
            self.flush_own(&fact.name, fact.parameters.id, missing).await?;
            if let Some(reason) = self.shared.broken_link(fact.parameters.id) {
                let error = format!("the directory of {} is not there: {reason}", fact.name);
                return Err(NodeError::failed(error)
                    .hint("mend that and restart the node, or `consort unlink` the directory"));
            }
        }
        let (mut changed, mut stuck) = (self.shared.watch(), Stuck::default());
        let mut here = BTreeMap::new();
        loop {
            changed.borrow_and_update();
            self.require_store()?;
            match self.lack(&mut here).await? {
                None => return Ok(()),
                Some(Lack::ForNow(what)) => {
                    stuck.look(None)?;
                    *missing = what;
                }
                Some(Lack::ForGood { what, hint }) => {
                    missing.clone_from(&what);
                    let hint = format!("{hint}; --force leaves all the same");
                    stuck.look(Some(NodeError::failed(what).hint(hint)))?;
                }
            }
            pause(&mut changed).await;
        }
    }

    /// What no other member has, as far as is known. `here` remembers in which datasets this node has contents.
    async fn lack(
        &self,
        here: &mut BTreeMap<DatasetId, Option<String>>,
    ) -> Result<Option<Lack>, NodeError> {
        if self.shared.identity.role == Role::Admin {
            // Each member passes on what an admin said, a reader, too.
            let links = self.links(self.shared.cluster.id).await?;
            let has_others = self.shared.facts().members.iter().any(|m| self.is_other(m));
            if has_others && !links.iter().any(has_everything) {
                return Ok(Some(Lack::ForNow("what this admin wrote is on its way".to_owned())));
            }
        }
        let status = self.status().await?;
        let keepers: Vec<&PeerStatus> =
            status.peers.iter().filter(|peer| peer.role != Role::Reader).collect();
        for dataset in status.datasets.iter().filter(|dataset| 0 < dataset.versions) {
            let name = &dataset.name;
            let facts = self.shared.facts();
            let Some(fact) = facts.dataset(name) else { continue };
            let id = fact.parameters.id;
            // Nobody takes versions from a reader: all that it has came from others.
            if self.shared.identity.role != Role::Reader {
                let mut links = self.links(id).await?;
                links.retain(|link| keepers.iter().any(|keeper| keeper.node == link.peer));
                if let Some(lack) = lacks_versions(name, &links) {
                    return Ok(Some(lack));
                }
            }
            let Some(mut lack) = lacks_contents(name, WHOEVER, &keepers) else { continue };
            let key = match here.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let store = self.shared.store.clone();
                    unknown.insert(blocking(move || first_content_here(&store, id)).await?)
                }
            };
            // Somebody else has the contents of what is here in name only.
            let Some(key) = key else { continue };
            let (Lack::ForNow(what) | Lack::ForGood { what, .. }) = &mut lack;
            what.push_str(&format!(" (contents are here, such as that of {key})"));
            return Ok(Some(lack));
        }
        Ok(None)
    }

    async fn links(&self, dataset: DatasetId) -> Result<Vec<LinkReport>, NodeError> {
        self.ask(|reply| Cause::Links { dataset, reply }).await
    }
}

/// The two have compared what they hold, and each reads the other's feed.
fn is_under_way(link: &LinkReport) -> bool {
    matches!(link.phase, Phase::Live | Phase::CatchingUp)
}

/// The other end has acknowledged all that is here.
fn has_everything(link: &LinkReport) -> bool {
    is_under_way(link) && link.behind == 0
}

/// What is missing before the versions of a dataset are with one of those that pass them on.
fn lacks_versions(name: &str, links: &[LinkReport]) -> Option<Lack> {
    if links.iter().any(has_everything) {
        return None;
    }
    let least = links.iter().filter(|link| is_under_way(link)).map(|link| link.behind).min();
    Some(match least {
        Some(behind) => {
            let versions = counted(behind, "change", "changes");
            Lack::ForNow(format!("{versions} of {name} are confirmed by no other writer yet"))
        }
        None if !links.is_empty() => {
            Lack::ForNow(format!("this node and the others still compare what they hold of {name}"))
        }
        None => Lack::ForGood {
            what: format!("no other member that writes is connected to take over {name}"),
            hint: "start one (`consort status` shows why none is reached)".to_owned(),
        },
    })
}

/// As long as this is there, the node is about to leave.
struct Leaving(Arc<Shared>);

impl Leaving {
    fn begin(shared: &Arc<Shared>) -> Result<Self, NodeError> {
        if shared.set_leaving(true) {
            return Err(NodeError::new(ErrorKind::Conflict, "this node is leaving already")
                .hint("wait for the other `consort leave`"));
        }
        Ok(Self(Arc::clone(shared)))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.set_leaving(false);
    }
}

#[cfg(test)]
mod tests {
    use consort_core::store::Sequence;

    use super::*;

    fn link(phase: Phase, behind: u64) -> LinkReport {
        let (peer, method, lacks, applied) = (NodeId([1; 16]), None, 0, Sequence(0));
        LinkReport { peer, phase, method, behind, lacks, applied }
    }

    #[test]
    fn versions_are_kept_when_one_writer_has_confirmed_all_of_them() {
        let for_now =
            |links: &[LinkReport]| matches!(lacks_versions("photos", links), Some(Lack::ForNow(_)));
        assert!(matches!(lacks_versions("photos", &[]), Some(Lack::ForGood { .. })));
        for phase in [Phase::Greeting, Phase::Reconciling, Phase::Waiting] {
            assert!(for_now(&[link(phase, 0)]), "{phase:?}");
        }
        assert!(for_now(&[link(Phase::CatchingUp, 1)]));
        // What the other has more than this node is not lost with it.
        assert_eq!(lacks_versions("photos", &[link(Phase::CatchingUp, 0)]), None);
        let links = [link(Phase::CatchingUp, 1), link(Phase::Live, 0)];
        assert_eq!(lacks_versions("photos", &links), None);
    }
}
