//! Content that no neighbour has. Changes flow between neighbours, and a neighbour may know of a version without having its
//! content: nobody there looks at it. So members that are no neighbours are asked for it, a few at a time, until one has it:
//! first those who wrote what a directory here lacks, then those whose directories show what they know of.
//!
//! A directory does not go on wanting what it was told that nobody has; it tries again later. So the search goes by what
//! was found to be lacking, not by what is wanted at the moment, and directories are woken when there is somebody new to ask.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as StdInstant};

use consort_core::NodeId;
use consort_core::protocol::membership::Liveness;
use consort_core::store::{StoreError, View};

use super::Runtime;

/// Members that are asked at a time.
const MAX_HELPERS: usize = 4;
/// How long one is given to have something that is wanted.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long one that had nothing is not asked again; doubled each time.
const AVOID_FIRST: Duration = Duration::from_secs(2);
/// The longest such time.
const AVOID_LAST: Duration = Duration::from_secs(300);
/// The same for one who wrote what is lacking.
const AVOID_WRITER_LAST: Duration = Duration::from_secs(15);
/// Nothing was lacking for so long: whatever was found out by then says nothing about what is lacking next.
const FORGET_AFTER: Duration = Duration::from_secs(60);
/// Keys of a directory that are looked at for who wrote what it lacks.
const MAX_KEYS: usize = 64;

/// Who is asked for content, although it is no neighbour.
#[derive(Debug, Default)]
pub(super) struct Helpers {
    asked: BTreeMap<NodeId, Helper>,
    /// Those who had nothing.
    avoided: BTreeMap<NodeId, Avoided>,
    look_at: Option<StdInstant>,
    lacked_at: Option<StdInstant>,
}

#[derive(Clone, Copy, Debug)]
struct Helper {
    /// When it was asked, or sent something last.
    since: StdInstant,
    /// What it has sent until then.
    chunks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Avoided {
    since: StdInstant,
    times: u32,
}

impl Helpers {
    /// It has become a neighbour, or is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.remove(&node);
    }

    fn avoid(&mut self, node: NodeId, now: StdInstant) {
        let times = self.avoided.get(&node).map_or(0, |avoided| avoided.times.saturating_add(1));
        self.avoided.insert(node, Avoided { since: now, times });
    }

    fn is_avoided(&self, node: NodeId, is_writer: bool, now: StdInstant) -> bool {
        let last = if is_writer { AVOID_WRITER_LAST } else { AVOID_LAST };
        self.avoided.get(&node).is_some_and(|avoided| {
            let pause = AVOID_FIRST.saturating_mul(1 << avoided.times.min(16)).min(last);
            now < avoided.since + pause
        })
    }
}

impl Runtime {
    /// Asks others for what no neighbour has, and lets go of those who have nothing of it.
    pub(super) fn look_for_content(&mut self) {
        let now = StdInstant::now();
        if self.helpers.look_at.is_some_and(|at| now < at) {
            return;
        }
        self.helpers.look_at = Some(now + LOOK_EVERY);
        // What is reported is lacking at all who could be asked then, the helpers among them.
        let was_reported = self.shared.contents.fetcher().take_reported();
        let is_lacking = was_reported || self.shared.contents.fetcher().is_lacking();
        if is_lacking {
            self.helpers.lacked_at = Some(now);
        } else if self.helpers.lacked_at.is_some_and(|at| at + FORGET_AFTER < now) {
            self.helpers.avoided.clear();
        }
        self.let_go_of_helpers(was_reported, now);
        if is_lacking {
            self.ask_helpers(now);
        }
    }

    fn let_go_of_helpers(&mut self, was_reported: bool, now: StdInstant) {
        if self.helpers.asked.is_empty() {
            return;
        }
        let fetcher = self.shared.contents.fetcher();
        let status = fetcher.status();
        let mut useless = Vec::new();
        for (&node, helper) in &mut self.helpers.asked {
            let chunks = status.peers.get(&node).map_or(0, |count| count.chunks);
            if helper.chunks < chunks {
                *helper = Helper { since: now, chunks };
                continue;
            }
            let has_nothing = was_reported || fetcher.is_lacked_by(node);
            if has_nothing || helper.since + PATIENCE <= now {
                useless.push(node);
            }
        }
        for node in useless {
            fetcher.peer_down(node);
            self.helpers.asked.remove(&node);
            self.helpers.avoid(node, now);
        }
    }

    fn ask_helpers(&mut self, now: StdInstant) {
        // A store that fails says so when it is written to.
        let writers = self.writers_of_pending().unwrap_or_default();
        let mut possible: Vec<(bool, bool, u64, NodeId)> = self
            .members
            .view(self.now().instant)
            .into_iter()
            .filter(|view| view.liveness != Liveness::Gone)
            .filter(|view| !self.connections.get(&view.node).is_some_and(|known| known.open))
            .map(|view| {
                let wrote = writers.contains(&view.node);
                let news = view.news.as_ref();
                let shows = news.is_some_and(|(_, news)| news.datasets.iter().any(|d| d.linked));
                (!wrote, !shows, crate::net::random_u64(), view.node)
            })
            .collect();
        possible.sort_unstable();
        let before = self.helpers.asked.len();
        for (wrote_nothing, .., node) in possible {
            let helpers = &mut self.helpers;
            if helpers.asked.len() < MAX_HELPERS
                && !helpers.asked.contains_key(&node)
                && !helpers.is_avoided(node, !wrote_nothing, now)
            {
                helpers.asked.insert(node, Helper { since: now, chunks: 0 });
                self.shared.contents.fetcher().peer_up(node);
            }
        }
        if before < self.helpers.asked.len() {
            self.shared.wake_folders();
        }
    }

    /// The members who wrote something that a directory here lacks: they have it, if anybody does.
    fn writers_of_pending(&self) -> Result<BTreeSet<NodeId>, StoreError> {
        let facts = self.shared.facts();
        let mut writers = BTreeSet::new();
        for dataset in self.linked_datasets() {
            if self.shared.folder(dataset).is_none() {
                continue;
            }
            let view = self.shared.store.view(dataset)?;
            for (key, _) in view.pending(None, MAX_KEYS)? {
                for stored in view.siblings(&key)? {
                    let writer = facts.writer(stored.version.dot.author);
                    writers.extend(writer.map(|member| member.node));
                }
            }
        }
        Ok(writers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_had_nothing_is_asked_ever_more_seldom_and_who_wrote_it_not_so_seldom() {
        let (node, start) = (NodeId([1; 16]), StdInstant::now());
        let mut helpers = Helpers::default();
        assert!(!helpers.is_avoided(node, false, start));
        let avoided_for = |helpers: &Helpers, is_writer| {
            let is_avoided =
                |s: &u64| helpers.is_avoided(node, is_writer, start + Duration::from_secs(*s));
            (0..1000).take_while(is_avoided).count()
        };
        for (times, (other, writer)) in
            [(2, 2), (4, 4), (8, 8), (16, 15), (32, 15)].iter().enumerate()
        {
            helpers.avoid(node, start);
            assert_eq!(avoided_for(&helpers, false), *other, "{times}");
            assert_eq!(avoided_for(&helpers, true), *writer, "{times}");
        }
        (0..40).for_each(|_| helpers.avoid(node, start));
        assert_eq!(avoided_for(&helpers, false), 300);
    }
}
