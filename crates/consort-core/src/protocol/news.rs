//! What the links of a replica know of each other, so that none asks for what another one brings: the links by which new
//! versions are pushed form a tree over the nodes, and on all others they are only announced.
//!
//! It is lent to the link that handles an event ([`Link::lend`](super::link::Link)). Nothing rests on it but what is sent
//! twice: whatever is announced and does not come from elsewhere in time is asked for.

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::model::fingerprint::Fingerprint;
use crate::model::id::{AuthorId, NodeId};
use crate::model::vector::Dot;
use crate::time::Instant;

/// How long a peer has for what it was asked for before another one may be asked.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long after the loss of a link that pushed nothing is waited for.
const MENDING: Duration = Duration::from_secs(1);

/// How long an author who writes nothing more still decides about links.
const DECIDES_FOR: Duration = Duration::from_secs(10);

/// How long an author's clock runs between two decisions, as its timestamps count: about two seconds, and half of that at
/// the least. And how long one must have been here before another author decides.
const DECISION_SPAN: u64 = 2048 << 16;
const DECISION_AFTER: Duration = Duration::from_secs(1);

/// One in so many spans has a decision that makes the tree anew.
const FLOOD_EVERY: u64 = 4;

/// What a replica's other links do for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Elsewhere {
    /// There is none by which anything could come.
    #[default]
    Nobody,
    /// There are some.
    Somebody,
    /// One pushes what is new.
    Pushing,
    /// One is about to bring all that its peer holds.
    CatchingUp,
}

/// Whose versions decide which links push.
#[derive(Debug)]
struct Root {
    /// The least author who has written lately.
    author: AuthorId,
    /// When that was last heard of.
    heard: Instant,
    /// The version that decided last, and when it came.
    decision: Option<(Dot, Instant)>,
}

/// What the links of a replica share.
#[derive(Debug, Default)]
pub(crate) struct News {
    asked: BTreeMap<Fingerprint, (NodeId, Instant)>,
    root: Option<Root>,
    mending_until: Option<Instant>,
}

impl News {
    /// A peer is asked for versions.
    pub(crate) fn ask(&mut self, peer: NodeId, fingerprints: &[Fingerprint], now: Instant) {
        self.asked.retain(|_, (_, until)| now < *until);
        let asked = (peer, now + ANSWERS_WITHIN);
        // Whoever is asked pushes from now on.
        self.mending_until = None;
        self.asked.extend(fingerprints.iter().map(|fingerprint| (*fingerprint, asked)));
    }

    /// Until when another peer has time to answer, if it was asked for this version.
    pub(crate) fn asked_elsewhere(
        &self,
        fingerprint: Fingerprint,
        peer: NodeId,
        now: Instant,
    ) -> Option<Instant> {
        let asked = self.asked.get(&fingerprint);
        asked.filter(|(other, until)| *other != peer && now < *until).map(|(_, until)| *until)
    }

    /// A peer will not answer any more, or not with all that it was asked for.
    pub(crate) fn forget(&mut self, peer: NodeId) {
        self.asked.retain(|_, (other, _)| *other != peer);
    }

    /// This version was pushed. Returns whether it decides which links push: if it is known already, the one it came by does
    /// not any more.
    ///
    /// The ways that one version takes, each node keeping the link by which it came first, are a tree. Those of two are two
    /// trees, and what both leave over connects nobody. So one version decides for all nodes, and the next one when the
    /// first has been everywhere: the first that the least author writes in each span of its clock. Nodes need not agree
    /// about it; they do when they have heard the same.
    pub(crate) fn decides(&mut self, dot: Dot, now: Instant) -> bool {
        let root = self.root.get_or_insert(Root { author: dot.author, heard: now, decision: None });
        if dot.author < root.author || DECIDES_FOR <= now.since(root.heard) {
            root.author = dot.author;
        }
        if dot.author != root.author {
            return false;
        }
        root.heard = now;
        let span = |dot: Dot| dot.time.0 / DECISION_SPAN;
        // By its author's clock alone, so that all who heard the same of him decide the same.
        let follows = |(last, at): (Dot, Instant)| match last.author == dot.author {
            true => span(last) < span(dot) && last.time.0 + DECISION_SPAN / 2 <= dot.time.0,
            false => DECISION_AFTER <= now.since(at),
        };
        if root.decision.is_none_or(follows) {
            root.decision = Some((dot, now));
        }
        root.decision.is_some_and(|(decision, _)| decision == dot)
    }

    /// The version that decided last, if all links push it, lazy ones as well: then the tree is made anew of the ways that
    /// are the fastest now. What decides in between only mends the one that there is.
    pub(crate) fn flood(&self) -> Option<Dot> {
        let (decision, _) = self.root.as_ref()?.decision?;
        (decision.time.0 / DECISION_SPAN).is_multiple_of(FLOOD_EVERY).then_some(decision)
    }

    /// A link that pushed is gone: what it would have brought comes from nowhere.
    pub(crate) fn lost_a_link(&mut self, now: Instant) {
        self.mending_until = Some(now + MENDING);
    }

    /// Whether what others bring is not to be relied on.
    pub(crate) fn is_mending(&self, now: Instant) -> bool {
        self.mending_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::hlc::Timestamp;

    fn dot(author: u8, ms: u64) -> Dot {
        Dot { author: AuthorId([author; 16]), time: Timestamp(ms << 16) }
    }

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    #[test]
    fn one_version_in_a_while_decides_and_the_least_author_writes_it() {
        let mut news = News::default();
        assert!(news.decides(dot(5, 0), at(0)));
        assert!(!news.decides(dot(6, 0), at(0)) && !news.decides(dot(5, 10), at(0)));
        // The same one again, by another link.
        assert!(news.decides(dot(5, 0), at(1)));
        // The next one is of another span of its author's clock.
        assert!(!news.decides(dot(5, 2000), at(2)) && news.decides(dot(5, 2100), at(2)));
        // Somebody less writes; but the last decision may still be under way.
        assert!(!news.decides(dot(4, 0), at(2)) && !news.decides(dot(5, 9000), at(9)));
        assert!(news.decides(dot(4, 1), at(9)));
        // When nothing more is heard of him, others decide.
        assert!(!news.decides(dot(5, 20_000), at(18)) && news.decides(dot(5, 20_001), at(19)));
    }

    #[test]
    fn what_was_asked_of_a_peer_may_be_asked_of_another_after_a_while() {
        let (mut news, version) = (News::default(), Fingerprint(1));
        let peers = [NodeId([1; 16]), NodeId([2; 16])];
        news.ask(peers[0], &[version], at(0));
        assert_eq!(news.asked_elsewhere(version, peers[0], at(1)), None);
        assert_eq!(news.asked_elsewhere(version, peers[1], at(1)), Some(at(3)));
        assert_eq!(news.asked_elsewhere(version, peers[1], at(3)), None);
        news.forget(peers[0]);
        assert_eq!(news.asked_elsewhere(version, peers[1], at(1)), None);
    }
}
