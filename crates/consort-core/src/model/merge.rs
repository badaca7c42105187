//! The algebra by which replicas agree: what a key holds is the set of versions that nothing covers.
//!
//! `covers` is a strict partial order, so the maximal versions of a union do not depend on the order or the number of
//! times in which versions arrive: merging is commutative, associative and idempotent. That is all that convergence
//! rests on, and the property tests below check it against histories of writers that see each other's work at random.
//! Among the maximal versions there is one *winner*, chosen alike everywhere.

use alloc::vec::Vec;

use crate::model::vector::{Dot, VersionVector};
use crate::model::version::Version;

/// What became of a version that was merged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// It is current now, and replaced those at these places of the siblings as they were, in rising order.
    Added {
        /// Places in the slice that was merged into.
        replaced: Vec<usize>,
    },
    /// It was known already, or something that covers it was. Nothing changes.
    Stale,
}

/// What merging `incoming` into a key's current versions changes.
pub fn merge<'s, S>(siblings: S, incoming: &Version) -> Merged
where
    S: IntoIterator<Item = &'s Version> + Clone,
{
    let known = |held: &Version| held.dot == incoming.dot || held.covers(incoming);
    if siblings.clone().into_iter().any(known) {
        return Merged::Stale;
    }
    let covered = siblings.into_iter().enumerate().filter(|(_, held)| incoming.covers(held));
    Merged::Added { replaced: covered.map(|(place, _)| place).collect() }
}

/// The version that a reader gets: an edit rather than a deletion, then the later one, then the one of the greater
/// author. Clocks choose only between versions that are concurrent anyway. `None` if there is none at all.
pub fn winner(siblings: &[Version]) -> Option<&Version> {
    siblings
        .iter()
        .max_by_key(|version| (!version.is_deleted(), version.dot.time, version.dot.author))
}

/// The versions that lost and that somebody may want back: neither deleted, nor like the winner, nor like one
/// another. In the order in which they would have won.
pub fn losers(siblings: &[Version]) -> Vec<&Version> {
    let Some(winner) = winner(siblings) else { return Vec::new() };
    let mut rest: Vec<&Version> = siblings.iter().filter(|version| !version.is_deleted()).collect();
    rest.sort_unstable_by_key(|version| core::cmp::Reverse((version.dot.time, version.dot.author)));
    let mut losers: Vec<&Version> = Vec::new();
    for version in rest {
        let known = core::iter::once(winner).chain(losers.iter().copied());
        if known.into_iter().all(|other| !other.alike(version)) {
            losers.push(version);
        }
    }
    losers
}

/// What the writer of a new version had in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saw {
    /// What a reader gets: the winner.
    Winner,
    /// Exactly this version, be it current or not (what a file held when it was edited).
    Version(Dot),
    /// No version of the key.
    Nothing,
}

/// The dots of the current versions that a new one replaces: what its writer saw; whatever is like that, since it
/// saw the same; and deletions, which have nothing to lose.
pub fn replaced_by_writer(siblings: &[Version], saw: &Saw) -> Vec<Dot> {
    let seen = match saw {
        Saw::Winner => winner(siblings),
        Saw::Version(dot) => siblings.iter().find(|version| version.dot == *dot),
        Saw::Nothing => None,
    };
    let replaced = siblings
        .iter()
        .filter(|version| version.is_deleted() || seen.is_some_and(|seen| seen.alike(version)));
    replaced.map(|version| version.dot).collect()
}

/// What a new version has seen if it replaces just the versions with the dots `replaced` among the current ones:
/// everything that any current version knows of, but for those that it leaves beside it.
pub fn seen_by_successor(siblings: &[Version], replaced: &[Dot]) -> VersionVector {
    let mut seen = VersionVector::new();
    for version in siblings {
        seen.union(&version.closure());
    }
    for version in siblings.iter().filter(|version| !replaced.contains(&version.dot)) {
        seen.exclude(version.dot);
    }
    seen
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::content::Content;
    use crate::model::attributes::Attributes;
    use crate::model::hlc::Timestamp;
    use crate::model::id::AuthorId;

    type Siblings = Vec<Version>;

    fn merge_into(siblings: &mut Siblings, incoming: &Version) {
        if let Merged::Added { replaced } = merge(&*siblings, incoming) {
            let mut place = 0;
            siblings.retain(|_| {
                place += 1;
                !replaced.contains(&(place - 1))
            });
            siblings.push(incoming.clone());
        }
        siblings.sort_unstable_by_key(|version| version.dot);
    }

    fn version(author: u8, time: u64, seen: VersionVector, content: Content) -> Version {
        let dot = Dot { author: AuthorId([author; 16]), time: Timestamp(time) };
        Version { dot, seen, content, attributes: Attributes::default() }
    }

    /// One step of a random history: a writer edits or deletes what it sees, or a replica hears from another.
    #[derive(Clone, Debug)]
    enum Step {
        Write { replica: usize, sees: usize, value: u8, delete: bool },
        Sync { from: usize, to: usize },
    }

    fn any_history() -> impl Strategy<Value = Vec<Step>> {
        let write = (0usize..4, 0usize..4, 0u8..3, any::<bool>()).prop_map(
            |(replica, sees, value, delete)| Step::Write { replica, sees, value, delete },
        );
        let sync = (0usize..4, 0usize..4).prop_map(|(from, to)| Step::Sync { from, to });
        prop::collection::vec(prop_oneof![2 => write, 1 => sync], 1..40)
    }

    /// Plays a history on four replicas; returns all versions ever written and the replicas.
    fn play(history: &[Step]) -> (Vec<Version>, Vec<Siblings>) {
        let mut replicas = vec![Siblings::new(); 4];
        let mut written: Vec<Version> = Vec::new();
        for (time, step) in (1..).zip(history) {
            match *step {
                Step::Write { replica, sees, value, delete } => {
                    let held = &replicas[replica];
                    let saw = match held.get(sees) {
                        Some(version) => Saw::Version(version.dot),
                        None => Saw::Nothing,
                    };
                    let replaced = replaced_by_writer(held, &saw);
                    let seen = seen_by_successor(held, &replaced);
                    let content =
                        if delete { Content::Deleted } else { Content::Inline([value].into()) };
                    let author = u8::try_from(replica).expect("four replicas");
                    let new = version(author, time, seen, content);
                    for sibling in held {
                        assert_eq!(new.covers(sibling), replaced.contains(&sibling.dot));
                    }
                    merge_into(&mut replicas[replica], &new);
                    written.push(new);
                }
                Step::Sync { from, to } => {
                    for version in replicas[from].clone() {
                        merge_into(&mut replicas[to], &version);
                    }
                }
            }
        }
        (written, replicas)
    }

    fn merged<'a>(versions: impl IntoIterator<Item = &'a Version>) -> Siblings {
        let mut siblings = Siblings::new();
        for version in versions {
            merge_into(&mut siblings, version);
        }
        siblings
    }

    proptest! {
        #[test]
        fn covering_is_a_strict_partial_order(history in any_history()) {
            let (written, _) = play(&history);
            for a in &written {
                prop_assert!(!a.covers(a));
                for b in written.iter().filter(|b| a.covers(b)) {
                    prop_assert!(!b.covers(a));
                    for c in written.iter().filter(|c| b.covers(c)) {
                        prop_assert!(a.covers(c), "{a:?} covers {b:?} covers {c:?}");
                    }
                }
            }
        }

        #[test]
        fn merging_is_commutative_associative_and_idempotent(
            history in any_history(),
            order in prop::collection::vec(any::<prop::sample::Index>(), 0..80),
        ) {
            let (written, replicas) = play(&history);
            let expected = merged(&written);
            // Any order, with repetitions, as long as each arrives once at least.
            let shuffled = order.iter().filter(|_| !written.is_empty()).map(|index| index.get(&written));
            prop_assert_eq!(&merged(shuffled.chain(written.iter().rev())), &expected);
            // In groups: what replicas hold, merged with each other, is what the versions give one by one.
            prop_assert_eq!(&merged(replicas.iter().flatten()), &expected);
            prop_assert_eq!(&merged(expected.iter().chain(&expected)), &expected);
        }

        #[test]
        fn a_covered_version_never_wins(history in any_history()) {
            let (written, _) = play(&history);
            let siblings = merged(&written);
            if let Some(winner) = winner(&siblings) {
                prop_assert!(written.iter().all(|version| !version.covers(winner)));
            }
        }

        #[test]
        fn an_edit_wins_over_a_concurrent_deletion(history in any_history()) {
            let (written, _) = play(&history);
            let siblings = merged(&written);
            if siblings.iter().any(|version| !version.is_deleted()) {
                prop_assert!(!winner(&siblings).expect("there is one").is_deleted());
            }
        }

        #[test]
        fn no_value_that_nobody_replaced_is_out_of_reach(history in any_history()) {
            let (written, _) = play(&history);
            let siblings = merged(&written);
            let mut shown = losers(&siblings);
            shown.extend(winner(&siblings));
            for version in &written {
                let replaced = written.iter().any(|other| other.covers(version));
                prop_assert!(replaced || version.is_deleted() || shown.iter().any(|s| s.alike(version)));
            }
        }
    }

    /// The trap that plain version vectors fall into.
    #[test]
    fn replacing_a_winner_leaves_an_earlier_loser_of_the_same_author() {
        let loser = version(2, 4, VersionVector::new(), Content::Inline([1].into()));
        let first = version(1, 5, VersionVector::new(), Content::Inline([2].into()));
        let mut siblings = merged([&loser, &first]);
        let edit = |siblings: &Siblings, author, time| {
            let replaced = replaced_by_writer(siblings, &Saw::Winner);
            let seen = seen_by_successor(siblings, &replaced);
            version(author, time, seen, Content::Inline([9, author].into()))
        };
        for (author, time) in [(2, 9), (3, 12), (2, 20)] {
            let next = edit(&siblings, author, time);
            merge_into(&mut siblings, &next);
            assert!(siblings.contains(&loser), "{next:?} replaced a version that nobody looked at");
            assert_eq!(siblings.len(), 2);
        }
    }

    #[test]
    fn identical_content_is_not_a_conflict() {
        let a = version(1, 1, VersionVector::new(), Content::Inline([7].into()));
        let b = version(2, 2, VersionVector::new(), Content::Inline([7].into()));
        let siblings = merged([&a, &b]);
        assert_eq!(siblings.len(), 2);
        assert!(losers(&siblings).is_empty());
        assert_eq!(replaced_by_writer(&siblings, &Saw::Version(a.dot)).len(), 2);
    }
}
