//! An admin's part in not waiting for ever: which members were away for so long that nobody waits for them any more
//! before deletions are forgotten.
//!
//! Eviction is safe whenever it happens: who returns takes the state of the others, and keeps what it wrote. So this only
//! has to be sensible. Time is what this process has seen of it, by a clock that nobody sets: after a restart everybody
//! has all the time again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use consort_core::NodeId;

/// Since when members are away, as far as this process has seen.
#[derive(Debug)]
pub(super) struct Absence {
    own: NodeId,
    /// For how long before a member is evicted; none if none ever is.
    evict_after: Option<Duration>,
    /// When each that is waited for was there last, or was first looked for.
    seen: BTreeMap<NodeId, Instant>,
}

impl Absence {
    pub(super) fn new(own: NodeId, evict_after: Option<Duration>) -> Self {
        Self { own, evict_after, seen: BTreeMap::new() }
    }

    /// Those of the members that are `waited_for` who were away for too long. Nobody, as long as this node and those that
    /// are `present` are not the majority of these: then it may be this side that is cut off. Nor if this node is not
    /// waited for itself: the others may have given it up because they are on the other side.
    pub(super) fn overdue(
        &mut self,
        waited_for: &BTreeSet<NodeId>,
        present: &BTreeSet<NodeId>,
        now: Instant,
    ) -> Vec<NodeId> {
        let Some(evict_after) = self.evict_after else { return Vec::new() };
        let is_there = |node: &NodeId| *node == self.own || present.contains(node);
        self.seen.retain(|node, _| waited_for.contains(node));
        for node in waited_for {
            let seen = self.seen.entry(*node).or_insert(now);
            if is_there(node) {
                *seen = now;
            }
        }
        let there = waited_for.iter().filter(|node| is_there(node)).count();
        let may_evict = waited_for.contains(&self.own) && waited_for.len() < 2 * there;
        let is_overdue = |(node, seen): (&NodeId, &Instant)| {
            let is_away = !is_there(node) && evict_after <= now.duration_since(*seen);
            is_away.then_some(*node)
        };
        if may_evict { self.seen.iter().filter_map(is_overdue).collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    const OWN: NodeId = NodeId([0; 16]);

    fn nodes(numbers: impl IntoIterator<Item = u8>) -> BTreeSet<NodeId> {
        numbers.into_iter().map(|number| NodeId([number; 16])).collect()
    }

    fn after_days(evict_after: u32) -> Absence {
        Absence::new(OWN, Some(evict_after * DAY))
    }

    #[test]
    fn who_is_away_for_long_enough_is_overdue_and_who_shows_up_begins_anew() {
        let (mut absence, begin) = (after_days(30), Instant::now());
        let (all, others, two) = (nodes([0, 1, 2, 3]), nodes([1, 2, 3]), nodes([1, 2]));
        let mut overdue = |present, day| absence.overdue(&all, present, begin + day * DAY);
        assert!(overdue(&two, 0).is_empty(), "it was not looked for before");
        assert!(overdue(&two, 29).is_empty());
        assert!(overdue(&others, 29).is_empty());
        assert!(overdue(&two, 58).is_empty());
        assert_eq!(overdue(&two, 59), [NodeId([3; 16])]);
    }

    #[test]
    fn nobody_is_evicted_by_a_side_that_is_not_the_majority() {
        for (others, present, may) in [
            (1, 0, false),
            (2, 0, false),
            (2, 1, true),
            (3, 1, false),
            (3, 2, true),
            (4, 2, true),
            (5, 2, false),
        ] {
            let (mut absence, begin) = (after_days(1), Instant::now());
            let (waited_for, there) = (nodes(0..=others), nodes(1..=present));
            assert!(absence.overdue(&waited_for, &there, begin).is_empty());
            let overdue = absence.overdue(&waited_for, &there, begin + 9 * DAY);
            let expected = if may { usize::from(others - present) } else { 0 };
            assert_eq!(overdue.len(), expected, "{present} of {others} others");
        }
    }

    #[test]
    fn those_who_are_there_and_not_waited_for_make_no_majority() {
        let (mut absence, begin) = (after_days(1), Instant::now());
        let (waited_for, there) = (nodes([0, 1, 2]), nodes([7, 8, 9]));
        assert!(absence.overdue(&waited_for, &there, begin).is_empty());
        assert!(absence.overdue(&waited_for, &there, begin + 9 * DAY).is_empty());
    }

    #[test]
    fn who_is_waited_for_again_has_all_the_time_again() {
        let (mut absence, begin) = (after_days(2), Instant::now());
        let (all, two) = (nodes([0, 1, 2, 3]), nodes([0, 1, 2]));
        assert!(absence.overdue(&all, &two, begin).is_empty());
        assert_eq!(absence.overdue(&all, &two, begin + 2 * DAY).len(), 1);
        assert!(absence.overdue(&two, &two, begin + 2 * DAY).is_empty(), "it is evicted");
        assert!(absence.overdue(&all, &two, begin + 3 * DAY).is_empty());
        assert_eq!(absence.overdue(&all, &two, begin + 5 * DAY).len(), 1);
    }

    #[test]
    fn who_is_not_waited_for_evicts_nobody_and_still_sees_who_is_there() {
        let (mut absence, begin) = (after_days(1), Instant::now());
        let (all, others, two) = (nodes([0, 1, 2, 3]), nodes([1, 2, 3]), nodes([1, 2]));
        assert!(absence.overdue(&others, &two, begin).is_empty());
        assert!(absence.overdue(&others, &two, begin + 9 * DAY).is_empty());
        assert!(absence.overdue(&others, &others, begin + 10 * DAY).is_empty());
        assert!(absence.overdue(&all, &two, begin + 10 * DAY).is_empty());
        assert_eq!(absence.overdue(&all, &two, begin + 11 * DAY), [NodeId([3; 16])]);
    }

    #[test]
    fn who_never_evicts_does_not() {
        let (mut absence, begin) = (Absence::new(OWN, None), Instant::now());
        let (all, present) = (nodes([0, 1, 2, 3]), nodes([1, 2]));
        assert!(absence.overdue(&all, &present, begin).is_empty());
        assert!(absence.overdue(&all, &present, begin + 10_000 * DAY).is_empty());
    }
}
