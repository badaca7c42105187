//! An admin's part in forgetting deletions: which replicas are waited for, by what they publish.
//!
//! What is published travels unsigned, from neighbour to neighbour. Whoever passes on what is not true holds forgetting
//! up; it must not make admins write facts without end as well.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use consort_core::protocol::garbage::Published;
use consort_core::store::LocalWrite;
use consort_core::{AuthorId, Content, NodeId, Timestamp, WallTime};

use crate::cluster::{Facts, ReplicaFact, begins_as, encode_replica, replica_key};

/// How many facts of replicas are written at once at the most, each of less than 1 KiB: they fit into a commit.
const REGISTER_AT_ONCE: usize = 512;
/// A node is given another replica once in so long: it has a new one when it lost its store, or was restored.
const REGISTER_NODE_EVERY: Duration = Duration::from_secs(3600);

/// What an admin remembers of what it registered.
#[derive(Debug, Default)]
pub(super) struct Registrar {
    /// The nodes that were given a replica lately, and when.
    given: HashMap<NodeId, Instant>,
}

/// What each member published last, in any dataset. Only that node's store can write as the author.
pub(super) fn latest<'p>(
    facts: &Facts,
    published: impl Iterator<Item = &'p Published>,
) -> BTreeMap<NodeId, Published> {
    let members: HashSet<NodeId> =
        facts.members.iter().filter(|member| !member.revoked).map(|member| member.node).collect();
    let mut latest: BTreeMap<NodeId, Published> = BTreeMap::new();
    for said in published {
        if members.contains(&said.node) && begins_as(said.author, said.node) {
            let known = latest.entry(said.node).or_insert(*said);
            if known.serial < said.serial {
                *known = *said;
            }
        }
    }
    latest
}

/// What an admin writes so that nobody waits for a node any more, until it publishes something new.
pub(crate) fn eviction(
    facts: &Facts,
    node: NodeId,
    published: &BTreeMap<NodeId, Published>,
    now: WallTime,
) -> Vec<LocalWrite> {
    // What others still tell of it was said before.
    let said = published.get(&node).map(|said| said.serial).unwrap_or_default();
    let evicted = Some(said.max(Timestamp::at(now)));
    let waited_for =
        facts.replicas.iter().filter(|fact| fact.node == node && fact.evicted.is_none());
    let evict = |fact: &ReplicaFact| {
        LocalWrite::new(replica_key(fact.author), encode_replica(&ReplicaFact { evicted, ..*fact }))
    };
    waited_for.map(evict).collect()
}

impl Registrar {
    /// Registers replicas that were heard of; those that a node writes to no more are registered no more, and those that
    /// were evicted are again once they say something new.
    pub(super) fn writes(
        &mut self,
        facts: &Facts,
        published: &BTreeMap<NodeId, Published>,
        now: Instant,
    ) -> Vec<LocalWrite> {
        self.given.retain(|_, at| now.duration_since(*at) < REGISTER_NODE_EVERY);
        let known: BTreeMap<AuthorId, &ReplicaFact> =
            facts.replicas.iter().map(|fact| (fact.author, fact)).collect();
        let (mut writes, mut waiting) = (Vec::new(), HashSet::new());
        for (&node, said) in published {
            let fact = known.get(&said.author);
            let returns = fact.is_some_and(|fact| fact.evicted.is_some_and(|at| at < said.serial));
            // The rest comes next time.
            if fact.is_none()
                && (self.given.contains_key(&node) || writes.len() == REGISTER_AT_ONCE)
            {
                waiting.insert(node);
            } else if (fact.is_none() || returns) && writes.len() < REGISTER_AT_ONCE {
                if fact.is_none() {
                    self.given.insert(node, now);
                }
                let fact = ReplicaFact { author: said.author, node, evicted: None };
                writes.push(LocalWrite::new(replica_key(said.author), encode_replica(&fact)));
            }
        }
        let is_old = |fact: &&ReplicaFact| {
            let said = published.get(&fact.node).filter(|_| !waiting.contains(&fact.node));
            said.is_some_and(|said| said.author != fact.author)
        };
        for old in facts.replicas.iter().filter(is_old) {
            writes.push(LocalWrite::new(replica_key(old.author), Content::Deleted));
        }
        writes.truncate(REGISTER_AT_ONCE);
        writes
    }
}

#[cfg(test)]
mod tests {
    use consort_core::model::frontier::Mark;

    use super::*;
    use crate::cluster::MemberFact;
    use crate::net::Role;

    const NODE: NodeId = NodeId([1; 16]);

    fn facts() -> Facts {
        let member = MemberFact {
            node: NODE,
            name: "a".to_owned(),
            role: Role::Writer,
            revoked: false,
            addresses: Vec::new(),
        };
        Facts { members: vec![member], ..Facts::default() }
    }

    /// The author number `number` of the node's store.
    fn author(number: u8) -> AuthorId {
        let mut author = NODE.0;
        author[15] = number;
        AuthorId(author)
    }

    fn says(author: AuthorId, node: NodeId, serial: u64) -> Published {
        let (serial, known) = (Timestamp(serial), Timestamp(0));
        Published { author, node, serial, set: 0, known, others: Mark(0) }
    }

    #[test]
    fn what_is_said_of_strangers_and_of_other_stores_is_not_heard() {
        let true_one = says(author(1), NODE, 1);
        let said = [
            true_one,
            says(AuthorId([2; 16]), NODE, 9),
            says(AuthorId([2; 16]), NodeId([2; 16]), 9),
        ];
        let heard = latest(&facts(), said.iter());
        assert_eq!(heard, BTreeMap::from([(NODE, true_one)]));
    }

    #[test]
    fn a_node_is_given_another_replica_once_an_hour() {
        let (mut registrar, mut facts, begin) = (Registrar::default(), facts(), Instant::now());
        let mut writes = |facts: &Facts, number, at| {
            let said = says(author(number), NODE, u64::from(number));
            registrar.writes(facts, &BTreeMap::from([(NODE, said)]), at).len()
        };
        assert_eq!(writes(&facts, 1, begin), 1);
        facts.replicas = vec![ReplicaFact { author: author(1), node: NODE, evicted: None }];
        assert_eq!(writes(&facts, 1, begin), 0);
        assert_eq!(writes(&facts, 2, begin), 0, "the one before is waited for until then");
        assert_eq!(writes(&facts, 2, begin + REGISTER_NODE_EVERY), 2);
        // Whom somebody evicted returns at any time.
        let evicted = Some(Timestamp(2));
        facts.replicas = vec![ReplicaFact { author: author(2), node: NODE, evicted }];
        assert_eq!(writes(&facts, 2, begin + REGISTER_NODE_EVERY), 0);
        facts.replicas[0].evicted = Some(Timestamp(1));
        assert_eq!(writes(&facts, 2, begin + REGISTER_NODE_EVERY), 1);
    }
}
