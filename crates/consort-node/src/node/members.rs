//! Members: inviting, listing, revoking.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::cluster::{Facts, MemberFact, encode_revocation, revocation_key};
use crate::error::NodeError;
use crate::net::Role;
use crate::net::invites::CreateInviteError;
use crate::report::Member;
use crate::runtime::{Cause, eviction, wall_time};

use super::{Node, blocking, likeliest, new_gossip_key, reachable};

use consort_core::store::LocalWrite;
use consort_core::{NodeId, OnConflict};

/// Less than a second by as little as can be.
const LAST_SECOND: Duration = Duration::from_nanos(999_999_999);

impl Node {
    /// Makes a ticket by which `uses` machines may join as `role` until `expires` from now.
    pub async fn invite(
        &self,
        role: Role,
        expires: Duration,
        uses: u32,
    ) -> Result<String, NodeError> {
        let Some(desk) = self.shared.desk.clone() else {
            return Err(NodeError::not_allowed("this node cannot let others in").hint(
                "run `consort invite` on the cluster's first node, which holds its authority",
            ));
        };
        if expires.is_zero() {
            return Err(NodeError::usage("a ticket that expires at once lets nobody in")
                .hint("give it more time, such as --expires 24h"));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Tickets count in seconds; it is good for no less than was asked.
        let expires = now.saturating_add(expires).saturating_add(LAST_SECOND).as_secs();
        let addresses = reachable(self.listen_addr());
        blocking(move || {
            let ticket = desk.invite(&addresses, role, expires, uses);
            ticket.map(|ticket| ticket.to_string()).map_err(|error| {
                match error {
                    CreateInviteError::Useless => NodeError::usage(error.to_string()),
                    _ => NodeError::failed(error.to_string()),
                }
                .hint(error.hint())
            })
        })
        .await
    }

    /// The members of the cluster, ordered by name.
    pub async fn members(&self) -> Result<Vec<Member>, NodeError> {
        let peers = self.shared.peers();
        let learned = self.shared.learned();
        let views = self.ask(|reply| Cause::Members { reply }).await?;
        let own = self.shared.identity.node;
        let facts = self.shared.facts();
        let waited_for = facts.waited_for();
        let describe = |fact: &MemberFact| {
            let connected = peers.get(&fact.node).is_some_and(|peer| peer.connected);
            let addresses = if fact.node == own {
                likeliest(self.listen_addr()).into_iter().collect()
            } else {
                let learned = learned.get(&fact.node).map_or(&[][..], Vec::as_slice);
                let view = views.iter().find(|view| view.node == fact.node);
                let told = view.and_then(|view| view.news.as_ref()?.1.address);
                whereabouts(fact, connected, learned, told)
            };
            Member {
                node: fact.node,
                name: fact.name.clone(),
                role: fact.role,
                revoked: fact.revoked,
                addresses,
                connected,
                waited_for: waited_for.contains(&fact.node),
                this_node: fact.node == own,
            }
        };
        let mut members: Vec<Member> = facts.members.iter().map(describe).collect();
        members.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(members)
    }

    /// Stops waiting for a member, by its name or identity, before deletions are forgotten. When it returns, it takes
    /// the state of the others, keeps what it wrote itself meanwhile, and is waited for again.
    pub async fn evict(&self, node_or_name: &str) -> Result<(), NodeError> {
        self.require(&[Role::Admin], "evict members")?;
        self.require_store()?;
        let facts = self.shared.facts();
        let member = find(&facts.members, node_or_name)?;
        if member.node == self.shared.identity.node {
            return Err(NodeError::usage("a node cannot evict itself"));
        }
        if self.shared.peers().get(&member.node).is_some_and(|peer| peer.connected) {
            let error = format!("{} is there: it would be waited for again at once", member.name);
            return Err(NodeError::failed(error).hint(
                "only a member that is away is evicted; `consort member revoke` ends a membership",
            ));
        }
        let published = self.ask(|reply| Cause::Published { reply }).await?;
        let writes = eviction(&facts, member.node, &published, wall_time());
        if writes.is_empty() {
            return Ok(());
        }
        self.write(self.shared.cluster.id, OnConflict::KeepBoth, writes).await.map(drop)
    }

    /// Ends a membership for good, by the member's name or identity. What the member wrote before stays.
    pub async fn revoke(&self, node_or_name: &str) -> Result<(), NodeError> {
        self.require(&[Role::Admin], "revoke members")?;
        self.require_store()?;
        let facts = self.shared.facts();
        let member = find(&facts.members, node_or_name)?;
        if member.node == self.shared.identity.node {
            return Err(NodeError::usage("a node cannot revoke itself").hint(
                "`consort leave` ends its membership; or revoke it on another admin's node",
            ));
        }
        let node = member.node;
        let mut changed = self.shared.watch();
        let writes = revocation(&facts, node);
        self.write(self.shared.cluster.id, OnConflict::KeepBoth, writes).await?;
        while !self.shared.facts().revoked.contains(&node) {
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
        Ok(())
    }
}

/// What an admin writes to end a membership.
pub(crate) fn revocation(facts: &Facts, node: NodeId) -> Vec<LocalWrite> {
    let write = LocalWrite::new(revocation_key(node), encode_revocation());
    // It had the key for datagrams, which is another one from now on.
    vec![write, new_gossip_key(facts.gossip.as_ref())]
}

/// The member with this name or identity. Names may repeat: who is revoked does not count.
fn find<'m>(members: &'m [MemberFact], node_or_name: &str) -> Result<&'m MemberFact, NodeError> {
    let is_meant = |member: &&MemberFact| {
        member.name == node_or_name || member.node.to_string() == node_or_name
    };
    let (revoked, there): (Vec<_>, Vec<_>) =
        members.iter().filter(is_meant).partition(|member| member.revoked);
    there.first().copied().ok_or_else(|| {
        let message = match revoked.is_empty() {
            true => format!("no member is called {node_or_name:?}"),
            false => format!("{node_or_name} is revoked already"),
        };
        NodeError::failed(message).hint("`consort member list` shows the members")
    })
}

/// Where a member listens, as far as is known, the likeliest first. What it `told` since this node started, to everybody
/// or to this node itself, holds: what was known of another port before is old. `learned` begins with what a connected
/// member said of itself.
pub(super) fn whereabouts(
    fact: &MemberFact,
    connected: bool,
    learned: &[SocketAddr],
    told: Option<SocketAddr>,
) -> Vec<SocketAddr> {
    let said = learned.first().copied().filter(|_| connected);
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for addr in said.into_iter().chain(told).chain(learned.iter().chain(&fact.addresses).copied()) {
        if !addresses.contains(&addr) {
            addresses.push(addr);
        }
    }
    if let Some(current) = said.or(told) {
        addresses.retain(|addr| addr.port() == current.port());
    }
    addresses
}

#[cfg(test)]
mod tests {
    use consort_core::NodeId;

    use super::*;

    #[test]
    fn what_a_member_says_of_itself_replaces_what_was_known_of_another_port() {
        let at = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let (joined, moved) = (at("10.0.0.1:7440"), at("10.0.0.1:7441"));
        let fact = MemberFact {
            node: NodeId([1; 16]),
            name: "b".to_owned(),
            role: Role::Writer,
            revoked: false,
            addresses: vec![joined],
        };
        assert_eq!(whereabouts(&fact, false, &[], None), [joined]);
        assert_eq!(whereabouts(&fact, true, &[moved], None), [moved]);
        assert_eq!(whereabouts(&fact, false, &[], Some(moved)), [moved]);
        // It is away, and may be back at either.
        assert_eq!(whereabouts(&fact, false, &[moved], None), [moved, joined]);
        // It takes another of its machine's addresses for the likeliest.
        let other = at("192.168.0.1:7440");
        assert_eq!(whereabouts(&fact, false, &[], Some(other)), [other, joined]);
        assert_eq!(whereabouts(&fact, true, &[joined], Some(other)), [joined, other]);
    }
}
