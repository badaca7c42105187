//! Virtual time, and what will happen when. Whatever happens at the same time happens in the order in which it was
//! scheduled, so a run has one order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use consort_core::{Instant, NodeId};

use crate::network::{Pair, Side};
use crate::node::NodeIndex;

/// Something that will happen. What it concerns may be gone by then: whoever handles it looks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Happening {
    /// The next of the run's actions is due.
    Act,
    /// A node tries to connect to another.
    Dial(Pair),
    /// A connection stands, at one of its ends.
    Connected { pair: Pair, number: u32, side: Side },
    /// What is at the front of a pipe reaches its end.
    Arrived { pair: Pair, number: u32, to: Side },
    /// If an end still hears nothing, it gives the connection up.
    Silent { pair: Pair, number: u32, side: Side },
    /// A process opens its dataset.
    Opened { node: NodeIndex, process: u32 },
    /// A node's disk has synced what it was given.
    Synced { node: NodeIndex, process: u32 },
    /// A deadline of a node's replica.
    Wake { node: NodeIndex, process: u32 },
    /// A node hears which replicas are registered by now.
    Heard { node: NodeIndex },
    /// A node has taken in its directory, for a peer.
    Flushed { node: NodeIndex, process: u32, peer: NodeId, id: u64 },
    /// Whoever waits at a node asks again those who have not answered; and once more after twice the time.
    AskAgain { node: NodeIndex, process: u32, id: u64, after: Duration },
}

#[derive(Debug)]
struct Due {
    at: Instant,
    number: u64,
    what: Happening,
}

/// The clock of the world, and what is due.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    now: Instant,
    due: BinaryHeap<Reverse<Due>>,
    scheduled: u64,
}

impl Schedule {
    /// What time it is.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// How much was ever scheduled.
    pub(crate) fn scheduled(&self) -> u64 {
        self.scheduled
    }

    pub(crate) fn after(&mut self, delay: Duration, what: Happening) {
        self.at(self.now + delay, what);
    }

    /// What should have happened before now happens now.
    pub(crate) fn at(&mut self, at: Instant, what: Happening) {
        let at = at.max(self.now);
        self.due.push(Reverse(Due { at, number: self.scheduled, what }));
        self.scheduled += 1;
    }

    /// What happens next, if that is before `until`; if nothing does, it is `until` now.
    pub(crate) fn next(&mut self, until: Instant) -> Option<Happening> {
        if self.due.peek().is_none_or(|Reverse(due)| until <= due.at) {
            self.now = self.now.max(until);
            return None;
        }
        let Reverse(due) = self.due.pop()?;
        self.now = due.at;
        Some(due.what)
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}
