//! Who is to be connected to whom: a few random neighbours each, so that a node's cost does not grow with the cluster.
//! The simulator decides this until membership does.

use std::collections::{BTreeMap, BTreeSet};

use consort_core::random::Random;

use crate::node::NodeIndex;

/// Neighbours that a node is given at least, and at most, unless somebody says otherwise.
pub(crate) const DEGREE: (usize, usize) = (3, 8);

/// An undirected graph.
#[derive(Debug)]
pub(crate) struct Topology {
    degree: (usize, usize),
    neighbours: BTreeMap<NodeIndex, BTreeSet<NodeIndex>>,
    /// Those that pass on what they receive.
    writers: BTreeSet<NodeIndex>,
}

impl Topology {
    /// An empty graph whose nodes will have at least and at most so many neighbours, if there are so many others, and
    /// if all can still be reached.
    pub(crate) fn new(degree: (usize, usize)) -> Self {
        Self { degree, neighbours: BTreeMap::new(), writers: BTreeSet::new() }
    }

    /// Takes in a member without neighbours.
    pub(crate) fn join(&mut self, node: NodeIndex, writes: bool) {
        self.neighbours.insert(node, BTreeSet::new());
        if writes {
            self.writers.insert(node);
        }
    }

    /// Takes out a member.
    pub(crate) fn leave(&mut self, node: NodeIndex) {
        for neighbour in self.neighbours.remove(&node).into_iter().flatten() {
            if let Some(back) = self.neighbours.get_mut(&neighbour) {
                back.remove(&node);
            }
        }
        self.writers.remove(&node);
    }

    pub(crate) fn are_neighbours(&self, a: NodeIndex, b: NodeIndex) -> bool {
        self.neighbours.get(&a).is_some_and(|neighbours| neighbours.contains(&b))
    }

    pub(crate) fn neighbours(&self, node: NodeIndex) -> impl Iterator<Item = NodeIndex> {
        self.neighbours.get(&node).into_iter().flatten().copied()
    }

    /// Every two neighbours, the lower one first.
    pub(crate) fn edges(&self) -> Vec<(NodeIndex, NodeIndex)> {
        let all = self.neighbours.iter().flat_map(|(a, others)| others.iter().map(|b| (*a, *b)));
        all.filter(|(a, b)| a < b).collect()
    }

    /// Adds neighbours until everybody has enough of them, and whatever a writer writes can reach everybody. Returns
    /// the new ones.
    pub(crate) fn mend(&mut self, random: &mut Random) -> Vec<(NodeIndex, NodeIndex)> {
        let mut added = Vec::new();
        let members: Vec<NodeIndex> = self.neighbours.keys().copied().collect();
        let wanted = self.degree.0.min(members.len().saturating_sub(1));
        for &node in &members {
            while self.degree(node) < wanted {
                let others =
                    |other: &NodeIndex| *other != node && !self.are_neighbours(node, *other);
                let other = self.choose(&members, others, random);
                self.connect(node, other, &mut added);
            }
        }
        let (mut reached, mut order) = (BTreeSet::new(), Vec::new());
        for writer in self.writers.iter().copied().collect::<Vec<_>>() {
            if !reached.contains(&writer) {
                if !order.is_empty() {
                    let other = self.choose(&order, |_| true, random);
                    self.connect(writer, other, &mut added);
                }
                self.reach(writer, &mut reached, &mut order);
            }
        }
        for &node in &members {
            let hears = self.neighbours(node).any(|other| reached.contains(&other));
            if !hears && !reached.contains(&node) && !order.is_empty() {
                let other = self.choose(&order, |_| true, random);
                self.connect(node, other, &mut added);
            }
        }
        added
    }

    fn degree(&self, node: NodeIndex) -> usize {
        self.neighbours.get(&node).map_or(0, BTreeSet::len)
    }

    /// One of those that are `fit`, of whom there is at least one; one that has room, if that can be.
    fn choose(
        &self,
        among: &[NodeIndex],
        fit: impl Fn(&NodeIndex) -> bool,
        random: &mut Random,
    ) -> NodeIndex {
        let mut draw = || {
            let place = random.below(among.len() as u64);
            among[usize::try_from(place).expect("a place in a slice")]
        };
        for attempt in 0.. {
            let drawn = draw();
            let has_room = self.degree(drawn) < self.degree.1 || 64 < attempt;
            if has_room && fit(&drawn) {
                return drawn;
            }
        }
        unreachable!("it tries until it finds one")
    }

    fn connect(&mut self, a: NodeIndex, b: NodeIndex, added: &mut Vec<(NodeIndex, NodeIndex)>) {
        self.neighbours.entry(a).or_default().insert(b);
        self.neighbours.entry(b).or_default().insert(a);
        added.push((a, b));
    }

    /// Adds the writers that hear what `from` writes.
    fn reach(
        &self,
        from: NodeIndex,
        reached: &mut BTreeSet<NodeIndex>,
        order: &mut Vec<NodeIndex>,
    ) {
        let mut next = vec![from];
        while let Some(node) = next.pop() {
            if self.writers.contains(&node) && reached.insert(node) {
                order.push(node);
                next.extend(self.neighbours(node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_joins_and_leaves_everybody_hears_every_writer_from_a_few_neighbours() {
        for seed in 0..50 {
            let random = &mut Random::new(seed);
            let mut topology = Topology::new(DEGREE);
            for node in (0..60).map(NodeIndex) {
                topology.join(node, !node.0.is_multiple_of(5) || node.0 == 0);
            }
            topology.mend(random);
            for gone in (1..60).filter(|node| node % 3 == 0).map(NodeIndex) {
                topology.leave(gone);
                topology.mend(random);
            }
            let (mut reached, mut order) = Default::default();
            topology.reach(NodeIndex(0), &mut reached, &mut order);
            assert_eq!(reached.len(), topology.writers.len());
            for (node, neighbours) in &topology.neighbours {
                let (least, greatest) = DEGREE;
                assert!(least <= neighbours.len() && neighbours.len() <= greatest + 4);
                assert!(neighbours.iter().any(|n| reached.contains(n)), "{node:?} hears nobody");
            }
        }
    }
}
