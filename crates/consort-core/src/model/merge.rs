//! The algebra by which replicas agree: what a key holds is the set of versions that nothing covers.
//!
//! `covers` is a strict partial order, so the maximal versions of a union do not depend on the order or the number of
//! times in which versions arrive: merging is commutative, associative and idempotent. That is all that convergence
//! rests on, and the property tests below check it against histories of writers that see each other's work at random.
//! Which of the maximal versions a reader sees is not decided here but in [`conflict`](crate::model::conflict).

use alloc::vec::Vec;

use crate::model::conflict::OnConflict;
use crate::model::id::AuthorId;
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

/// What the writer of a new version had in front of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Saw {
    /// What a reader gets: the winner.
    Winner,
    /// Exactly this version, be it current or not (what a file held when it was edited).
    Version(Dot),
    /// Exactly these versions, be they current or not (what somebody chose between).
    Versions(Vec<Dot>),
    /// No version of the key.
    Nothing,
}

/// The dots of the current versions that a new one replaces: what its writer saw; and what is hidden by that under
/// `policy`, since its writer is not asked about it. Deletions have nothing to lose and are always hidden.
pub fn replaced_by_writer(siblings: &[Version], saw: &Saw, policy: OnConflict) -> Vec<Dot> {
    let seen: Vec<&Version> = match saw {
        Saw::Winner => policy.winner(siblings).into_iter().collect(),
        Saw::Version(dot) => siblings.iter().filter(|version| version.dot == *dot).collect(),
        Saw::Versions(dots) => siblings.iter().filter(|v| dots.contains(&v.dot)).collect(),
        Saw::Nothing => Vec::new(),
    };
    let is_seen = |version: &Version| {
        seen.iter().any(|seen| seen.dot == version.dot || policy.hides(seen, version))
    };
    let replaced = siblings.iter().filter(|version| version.is_deleted() || is_seen(version));
    replaced.map(|version| version.dot).collect()
}

/// What a new version of `author` has seen if it replaces just the versions with the dots `replaced` among the current
/// ones: everything that any current version knows of, but for those that it leaves beside it.
///
/// A version that is left beside adds what it has seen itself, and nothing else, so that it has to be excepted only
/// where something that is replaced knows more of its author. The new version's own author is such a one: that it knows
/// all that it wrote is taken for granted.
///
/// What is replaced may have seen one that it does not [cover](Version::covers), since its writer had forgotten what
/// became of that. Somebody replaced it then, so it is not left beside.
pub fn seen_by_successor(
    siblings: &[Version],
    replaced: &[Dot],
    author: AuthorId,
) -> VersionVector {
    let mut seen = VersionVector::new();
    let is_replaced = |version: &&Version| replaced.contains(&version.dot);
    for version in siblings {
        if is_replaced(&version) || version.dot.author == author {
            seen.union(&version.closure());
        } else {
            seen.union(&version.seen);
        }
    }
    let is_over =
        |dot| siblings.iter().filter(is_replaced).any(|version| version.seen.contains(dot));
    for version in siblings.iter().filter(|version| !is_replaced(version)) {
        if !is_over(version.dot) {
            seen.exclude(version.dot);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use alloc::collections::{BTreeMap, BTreeSet};
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::content::Content;
    use crate::model::attributes::{Attributes, Origin};
    use crate::model::conflict::OnConflict::KeepBoth;
    use crate::model::hlc::Timestamp;

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
        Write { replica: usize, sees: usize, value: u8, delete: bool, made: bool },
        Sync { from: usize, to: usize },
    }

    fn any_history() -> impl Strategy<Value = Vec<Step>> {
        let write = (0usize..4, 0usize..5, 0u8..3, any::<bool>(), any::<bool>()).prop_map(
            |(replica, sees, value, delete, made)| Step::Write {
                replica,
                sees,
                value,
                delete,
                made,
            },
        );
        let sync = (0usize..4, 0usize..4).prop_map(|(from, to)| Step::Sync { from, to });
        prop::collection::vec(prop_oneof![2 => write, 1 => sync], 1..40)
    }

    fn any_policy() -> impl Strategy<Value = OnConflict> {
        prop::sample::select(&OnConflict::ALL[..])
    }

    /// Plays a history on four replicas; returns all versions ever written and the replicas.
    fn play(history: &[Step], policy: OnConflict) -> (Vec<Version>, Vec<Siblings>) {
        let mut replicas = vec![Siblings::new(); 4];
        let mut written: Vec<Version> = Vec::new();
        // What each version has seen, as plain sets: what vectors have to say.
        let mut pasts: BTreeMap<Dot, BTreeSet<Dot>> = BTreeMap::new();
        for (time, step) in (1..).zip(history) {
            match *step {
                Step::Write { replica, sees, value, delete, made } => {
                    let held = &replicas[replica];
                    let saw = match held.get(sees) {
                        Some(version) => Saw::Version(version.dot),
                        None if sees == 4 => Saw::Winner,
                        None => Saw::Nothing,
                    };
                    let replaced = replaced_by_writer(held, &saw, policy);
                    let content =
                        if delete { Content::Deleted } else { Content::Inline([value].into()) };
                    let author = u8::try_from(replica).expect("four replicas");
                    let seen = seen_by_successor(held, &replaced, AuthorId([author; 16]));
                    let mut new = version(author, time, seen, content);
                    if made {
                        new.attributes.origin = Origin::Synthetic;
                    }
                    let mut past: BTreeSet<Dot> = replaced.iter().copied().collect();
                    past.extend(held.iter().flat_map(|sibling| &pasts[&sibling.dot]));
                    for other in &written {
                        assert_eq!(new.covers(other), past.contains(&other.dot));
                    }
                    pasts.insert(new.dot, past);
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
        fn covering_is_a_strict_partial_order(history in any_history(), policy in any_policy()) {
            let (written, _) = play(&history, policy);
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
            policy in any_policy(),
        ) {
            let (written, replicas) = play(&history, policy);
            let expected = merged(&written);
            // Any order, with repetitions, as long as each arrives once at least.
            let shuffled = order.iter().filter(|_| !written.is_empty()).map(|index| index.get(&written));
            prop_assert_eq!(&merged(shuffled.chain(written.iter().rev())), &expected);
            // In groups: what replicas hold, merged with each other, is what the versions give one by one.
            prop_assert_eq!(&merged(replicas.iter().flatten()), &expected);
            prop_assert_eq!(&merged(expected.iter().chain(&expected)), &expected);
        }

        #[test]
        fn a_covered_version_never_wins(history in any_history(), policy in any_policy()) {
            let (written, _) = play(&history, policy);
            let siblings = merged(&written);
            if let Some(winner) = policy.winner(&siblings) {
                prop_assert!(written.iter().all(|version| !version.covers(winner)));
            }
        }

        #[test]
        fn all_readers_see_the_same_in_the_end(
            history in any_history(),
            written_under in any_policy(),
            policy in any_policy(),
        ) {
            let (written, replicas) = play(&history, written_under);
            let all = merged(&written);
            for first in 0..replicas.len() {
                // Each hears of the others in an order of its own.
                let order = (0..replicas.len()).map(|step| &replicas[(first + step) % replicas.len()]);
                let held = merged(order.flatten());
                prop_assert_eq!(policy.winner(&held), policy.winner(&all));
                prop_assert_eq!(policy.losers(&held), policy.losers(&all));
            }
        }

        #[test]
        fn no_value_that_nobody_replaced_is_out_of_reach(history in any_history()) {
            let (written, _) = play(&history, KeepBoth);
            let siblings = merged(&written);
            let mut shown = KeepBoth.losers(&siblings);
            shown.extend(KeepBoth.winner(&siblings));
            for version in &written {
                let replaced = written.iter().any(|other| other.covers(version));
                prop_assert!(replaced || version.is_deleted() || shown.iter().any(|s| s.alike(version)));
            }
        }

        #[test]
        fn a_write_replaces_no_loser_that_its_writer_was_shown_and_did_not_mean(
            history in any_history(),
            policy in any_policy(),
        ) {
            let (written, _) = play(&history, policy);
            let siblings = merged(&written);
            let replaced = replaced_by_writer(&siblings, &Saw::Winner, policy);
            for loser in policy.losers(&siblings) {
                prop_assert!(!replaced.contains(&loser.dot));
            }
            // And what was hidden does not come up again by it.
            let seen = seen_by_successor(&siblings, &replaced, AuthorId([9; 16]));
            let next = version(9, u64::MAX, seen, Content::Inline([9].into()));
            let before: Vec<Version> = policy.losers(&siblings).into_iter().cloned().collect();
            let mut after = siblings;
            merge_into(&mut after, &next);
            prop_assert!(policy.losers(&after).into_iter().all(|loser| before.contains(loser)));
        }

        #[test]
        fn who_chooses_between_all_leaves_one_and_nothing_that_came_meanwhile(
            history in any_history(),
            policy in any_policy(),
            seen in 0usize..5,
        ) {
            let (written, _) = play(&history, policy);
            let siblings = merged(&written);
            let seen = &siblings[..seen.min(siblings.len())];
            let saw = Saw::Versions(seen.iter().map(|version| version.dot).collect());
            let replaced = replaced_by_writer(&siblings, &saw, KeepBoth);
            for version in &siblings {
                let meant = version.is_deleted() || seen.iter().any(|seen| seen.alike(version));
                prop_assert_eq!(replaced.contains(&version.dot), meant);
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
            let replaced = replaced_by_writer(siblings, &Saw::Winner, KeepBoth);
            let seen = seen_by_successor(siblings, &replaced, AuthorId([author; 16]));
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
        for policy in OnConflict::ALL {
            assert!(policy.losers(&siblings).is_empty());
            assert_eq!(replaced_by_writer(&siblings, &Saw::Version(a.dot), policy).len(), 2);
        }
    }

    /// However many authors wrote without knowing of each other, one more can write beside them.
    #[test]
    fn what_is_left_beside_needs_no_exception_unless_more_is_known_of_its_author() {
        let siblings: Siblings = (1..=100)
            .map(|author| {
                version(author, 1, VersionVector::new(), Content::Inline([author].into()))
            })
            .collect();
        let replaced = replaced_by_writer(&siblings, &Saw::Winner, KeepBoth);
        let seen = seen_by_successor(&siblings, &replaced, AuthorId([101; 16]));
        assert_eq!((seen.authors().len(), seen.exceptions().len()), (1, 0));
        let seen = seen_by_successor(&siblings, &replaced, AuthorId([7; 16]));
        assert_eq!((seen.authors().len(), seen.exceptions().len()), (2, 1));
    }
}
