//! Which watch stands for which directory: an arena of names, about 100 bytes per directory.
//!
//! It follows what the kernel tells, so it lags behind the truth by the events not yet read.

use std::collections::HashMap;

use crate::folder::join_key;

/// A directory in the tree. Valid until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(u32);

const NONE: u32 = u32::MAX;

#[derive(Debug)]
struct Node {
    name: Box<str>,
    watch: i32,
    parent: u32,
    first_child: u32,
    next: u32,
    previous: u32,
}

/// The watched directories. The first that is inserted is the top.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    free: Vec<u32>,
    by_watch: HashMap<i32, u32>,
}

impl Tree {
    /// How many directories are watched.
    pub(super) fn len(&self) -> usize {
        self.by_watch.len()
    }

    /// The directory that a watch stands for.
    pub(super) fn find(&self, watch: i32) -> Option<NodeId> {
        self.by_watch.get(&watch).copied().map(NodeId)
    }

    /// The directory `name` in `parent`. Looks at one sibling after the other: only renamed
    /// directories are sought by name.
    pub(super) fn child(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        let mut at = self.node(parent.0).first_child;
        while at != NONE {
            let node = self.node(at);
            if &*node.name == name {
                return Some(NodeId(at));
            }
            at = node.next;
        }
        None
    }

    /// Whether it is the top.
    pub(super) fn is_top(&self, node: NodeId) -> bool {
        self.node(node.0).parent == NONE
    }

    /// The key of a directory; the top's is empty.
    pub(super) fn key(&self, node: NodeId) -> String {
        let mut names = Vec::new();
        let mut at = self.node(node.0);
        while at.parent != NONE {
            names.push(&*at.name);
            at = self.node(at.parent);
        }
        names.iter().rev().fold(String::new(), |key, name| join_key(&key, name))
    }

    /// Adds a directory with a watch that no other has; `parent` is `None` for the top only.
    pub(super) fn insert(&mut self, parent: Option<NodeId>, name: &str, watch: i32) -> NodeId {
        let node = Node {
            name: name.into(),
            watch,
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
        };
        let id = if let Some(id) = self.free.pop() {
            *self.node_mut(id) = node;
            id
        } else {
            self.nodes.push(node);
            u32::try_from(self.nodes.len() - 1).expect("the kernel has fewer watches than 2^31")
        };
        self.by_watch.insert(watch, id);
        if let Some(parent) = parent {
            self.attach(id, parent.0);
        }
        NodeId(id)
    }

    /// Says that a directory stands at `name` in `parent` now. False, and nothing is changed, if
    /// `parent` is beneath it as far as we know: then we have lost track.
    #[must_use]
    pub(super) fn move_to(&mut self, node: NodeId, parent: NodeId, name: &str) -> bool {
        let mut above = parent.0;
        while above != NONE {
            if above == node.0 {
                return false;
            }
            above = self.node(above).parent;
        }
        self.detach(node.0);
        if &*self.node(node.0).name != name {
            self.node_mut(node.0).name = name.into();
        }
        self.attach(node.0, parent.0);
        true
    }

    /// Forgets a directory and all beneath it. Calls `each` with every one and its watch.
    pub(super) fn remove(&mut self, node: NodeId, mut each: impl FnMut(NodeId, i32)) {
        self.detach(node.0);
        let mut doomed = vec![node.0];
        while let Some(id) = doomed.pop() {
            let mut child = self.node(id).first_child;
            while child != NONE {
                doomed.push(child);
                child = self.node(child).next;
            }
            let watch = self.node(id).watch;
            self.node_mut(id).name = "".into();
            self.by_watch.remove(&watch);
            self.free.push(id);
            each(NodeId(id), watch);
        }
    }

    fn attach(&mut self, id: u32, parent: u32) {
        let first = std::mem::replace(&mut self.node_mut(parent).first_child, id);
        if first != NONE {
            self.node_mut(first).previous = id;
        }
        let node = self.node_mut(id);
        (node.parent, node.next, node.previous) = (parent, first, NONE);
    }

    fn detach(&mut self, id: u32) {
        let node = self.node(id);
        let (parent, next, previous) = (node.parent, node.next, node.previous);
        if previous != NONE {
            self.node_mut(previous).next = next;
        } else if parent != NONE {
            self.node_mut(parent).first_child = next;
        }
        if next != NONE {
            self.node_mut(next).previous = previous;
        }
        let node = self.node_mut(id);
        (node.parent, node.next, node.previous) = (NONE, NONE, NONE);
    }

    fn node(&self, id: u32) -> &Node {
        &self.nodes[id as usize]
    }

    fn node_mut(&mut self, id: u32) -> &mut Node {
        &mut self.nodes[id as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_moves_and_a_removed_subtree_is_forgotten() {
        let mut tree = Tree::default();
        let top = tree.insert(None, "", 1);
        let a = tree.insert(Some(top), "a", 2);
        let b = tree.insert(Some(a), "b", 3);
        let c = tree.insert(Some(b), "c", 4);
        assert_eq!(tree.key(c), "a/b/c");
        assert!(tree.move_to(b, top, "x"));
        assert_eq!(tree.key(c), "x/c");
        assert_eq!(tree.child(a, "b"), None);
        assert_eq!(tree.child(top, "x"), Some(b));
        assert!(!tree.move_to(b, c, "loop"));
        let mut watches = Vec::new();
        tree.remove(b, |_, watch| watches.push(watch));
        assert_eq!(watches, [3, 4]);
        assert_eq!((tree.len(), tree.find(4)), (2, None));
        let d = tree.insert(Some(a), "d", 5);
        assert_eq!(tree.key(d), "a/d");
        assert_eq!(tree.key(top), "");
    }
}
