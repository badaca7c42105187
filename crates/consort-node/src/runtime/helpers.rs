//! Content that no neighbour has. Changes flow between neighbours, and a neighbour may know of a version without having its
//! content: nobody there looks at it. So members that are no neighbours are asked for it, a few at a time, until one has it;
//! those first whose directories show what they know of.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant as StdInstant};

use consort_core::NodeId;
use consort_core::protocol::membership::Liveness;

use super::Runtime;

/// Members that are asked at a time.
const MAX_HELPERS: usize = 4;
/// How long one is given to have something that is wanted.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Who is asked for content, although it is no neighbour.
#[derive(Debug, Default)]
pub(super) struct Helpers {
    asked: BTreeMap<NodeId, Helper>,
    /// Those who had nothing, until all were asked.
    had_nothing: BTreeSet<NodeId>,
    look_at: Option<StdInstant>,
}

#[derive(Clone, Copy, Debug)]
struct Helper {
    /// When it was asked, or sent something last.
    since: StdInstant,
    /// What it has sent until then.
    chunks: u64,
}

impl Helpers {
    /// It has become a neighbour, or is gone.
    pub(super) fn forget(&mut self, node: NodeId) {
        self.asked.remove(&node);
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
        let fetcher = self.shared.contents.fetcher();
        let is_lacking = fetcher.take_lacking();
        if !is_lacking && self.helpers.asked.is_empty() {
            return;
        }
        let status = fetcher.status();
        let Helpers { asked, had_nothing, .. } = &mut self.helpers;
        asked.retain(|node, helper| {
            let chunks = status.peers.get(node).map_or(0, |count| count.chunks);
            if helper.chunks < chunks {
                *helper = Helper { since: now, chunks };
            }
            let is_of_use = status.wanted != 0 && now < helper.since + PATIENCE;
            if !is_of_use {
                fetcher.peer_down(*node);
                had_nothing.insert(*node);
            }
            is_of_use
        });
        if status.wanted == 0 {
            had_nothing.clear();
            return;
        }
        if !is_lacking {
            return;
        }
        let connections = &self.connections;
        let mut possible: Vec<(bool, u64, NodeId)> = self
            .members
            .view(self.now().instant)
            .into_iter()
            .filter(|view| view.liveness != Liveness::Gone)
            .filter(|view| !connections.get(&view.node).is_some_and(|known| known.open))
            .map(|view| {
                let news = view.news.as_ref();
                let shows = news.is_some_and(|(_, news)| news.datasets.iter().any(|d| d.linked));
                (!shows, crate::net::random_u64(), view.node)
            })
            .collect();
        possible.sort_unstable();
        let Helpers { asked, had_nothing, .. } = &mut self.helpers;
        if possible.iter().all(|(.., node)| had_nothing.contains(node)) {
            had_nothing.clear();
        }
        for (.., node) in possible {
            if asked.len() < MAX_HELPERS
                && !asked.contains_key(&node)
                && !had_nothing.contains(&node)
            {
                asked.insert(node, Helper { since: now, chunks: 0 });
                fetcher.peer_up(node);
            }
        }
    }
}
