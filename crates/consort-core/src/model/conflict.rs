//! What a reader sees of a key whose current versions are concurrent: one winner, and the losers that somebody may
//! want back. A dataset's policy decides both.
//!
//! All of this is about showing. What replicas hold does not depend on a policy: they merge by the algebra in
//! [`merge`](crate::model::merge), so digests do not either, and nodes that know different policies still converge. A
//! policy matters once more when somebody writes: whoever sees a winner is not asked about what it hides, so the write
//! replaces that as well.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::ops::{Add, Sub};

use crate::model::attributes::{Kind, Origin};
use crate::model::hlc::Timestamp;
use crate::model::id::AuthorId;
use crate::model::version::Version;

/// What becomes of concurrent versions of a key: the policy of a dataset. Under each, an edit wins over a concurrent
/// deletion, and versions that are alike are no conflict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OnConflict {
    /// The later one wins, and every loser is shown beside it until somebody decides. Consequence: nothing that was
    /// written is out of sight before somebody has looked at it; conflicts are left to people. What a node does that
    /// does not know a dataset's policy, since it loses nothing.
    #[default]
    KeepBoth,
    /// The later one wins, and there are no losers: the next write of the key replaces them. Consequence: of two
    /// writers who do not know of each other, one loses its work without being told, and their clocks decide which. For
    /// what is derived, cached, or written again anyway. "Later" is when a version was written to the dataset, not
    /// when its file was modified.
    Latest,
    /// A real version wins over concurrent synthetic or derived ones, whatever the clocks say, and these are no losers:
    /// the next write of the real one replaces them. Consequence: a generator can never put its output in the place of
    /// an observation that it did not know of, and its output is gone without a word when both were written. Among
    /// versions that are all real, or of which none is, everything is as under [`KeepBoth`](Self::KeepBoth).
    PreferReal,
}

/// What decides between concurrent versions; the greatest wins.
type Rank = (bool, bool, Timestamp, AuthorId);

impl OnConflict {
    /// All policies.
    pub const ALL: [Self; 3] = [Self::KeepBoth, Self::Latest, Self::PreferReal];

    /// The name that people and formats know it by.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KeepBoth => "keep-both",
            Self::Latest => "latest",
            Self::PreferReal => "prefer-real",
        }
    }

    /// The policy of this name; `None` for one of a later version of this program.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }

    /// The version that a reader gets: an edit rather than a deletion, then a real one if those are preferred, then the
    /// later one, then the one of the greater author. Clocks choose only between versions that are concurrent anyway.
    /// `None` if there is none at all.
    pub fn winner(self, siblings: &[Version]) -> Option<&Version> {
        siblings.iter().max_by_key(|version| self.rank(version))
    }

    /// The versions that lost and that somebody may want back: with bytes of their own, unlike the winner and one
    /// another, and not hidden by what won. In the order in which they would have won.
    pub fn losers(self, siblings: &[Version]) -> Vec<&Version> {
        self.losers_among(siblings.iter())
    }

    /// Whether nobody who sees `shown` is asked about the concurrent version `other`: it has no bytes to lose, is the
    /// same to a person, or is what the policy gives up for `shown`.
    pub fn hides(self, shown: &Version, other: &Version) -> bool {
        let gives_up = match self {
            Self::KeepBoth => false,
            Self::Latest => self.rank(other) < self.rank(shown),
            Self::PreferReal => !shown.is_deleted() && is_real(shown) && !is_real(other),
        };
        other.is_deleted() || gives_up || shown.alike(other)
    }

    fn rank(self, version: &Version) -> Rank {
        let live = !version.is_deleted();
        let preferred = self == Self::PreferReal && live && is_real(version);
        (live, preferred, version.dot.time, version.dot.author)
    }

    fn losers_among<'v>(self, siblings: impl Iterator<Item = &'v Version>) -> Vec<&'v Version> {
        let mut live: Vec<&Version> = siblings.filter(|version| !version.is_deleted()).collect();
        live.sort_unstable_by_key(|version| Reverse(self.rank(version)));
        let Some(&winner) = live.first() else { return Vec::new() };
        // Many may have lost, so that each is compared with those of the same bytes only.
        let mut shown: BTreeMap<[u8; 16], Vec<&Version>> = BTreeMap::new();
        shown.insert(winner.content.id(), [winner].into());
        let mut losers = Vec::new();
        for version in live.into_iter().skip(1) {
            // A directory has no bytes that somebody could want back.
            if version.attributes.kind == Kind::Directory || self.hides(winner, version) {
                continue;
            }
            let like = shown.entry(version.content.id()).or_default();
            if like.iter().all(|other| !other.alike(version)) {
                like.push(version);
                losers.push(version);
            }
        }
        losers
    }
}

fn is_real(version: &Version) -> bool {
    version.attributes.origin == Origin::Real
}

/// How many losers there are under each policy that has any: of one key, or of a dataset. Stores keep count of them, so
/// that nobody has to look through all keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losers {
    /// Under [`OnConflict::KeepBoth`]. Under no policy are there more.
    pub keep_both: u64,
    /// Under [`OnConflict::PreferReal`].
    pub prefer_real: u64,
}

impl Losers {
    /// Those of a key with these current versions.
    pub fn of<'v>(siblings: impl IntoIterator<Item = &'v Version, IntoIter: Clone>) -> Self {
        let siblings = siblings.into_iter();
        // Nearly all keys have one version, and this is asked of each that changes.
        if siblings.clone().filter(|version| !version.is_deleted()).nth(1).is_none() {
            return Self::default();
        }
        let count = |policy: OnConflict| policy.losers_among(siblings.clone()).len() as u64;
        let keep_both = count(OnConflict::KeepBoth);
        let prefer_real = if keep_both == 0 { 0 } else { count(OnConflict::PreferReal) };
        Self { keep_both, prefer_real }
    }

    /// Those under a policy.
    pub const fn under(self, policy: OnConflict) -> u64 {
        match policy {
            OnConflict::KeepBoth => self.keep_both,
            OnConflict::Latest => 0,
            OnConflict::PreferReal => self.prefer_real,
        }
    }

    /// Whether there are none under any policy.
    pub const fn are_none(self) -> bool {
        self.keep_both == 0
    }
}

/// Modulo 2⁶⁴, so that a count which was wrong once stays only that wrong.
impl Add for Losers {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let keep_both = self.keep_both.wrapping_add(other.keep_both);
        Self { keep_both, prefer_real: self.prefer_real.wrapping_add(other.prefer_real) }
    }
}

impl Sub for Losers {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let keep_both = self.keep_both.wrapping_sub(other.keep_both);
        Self { keep_both, prefer_real: self.prefer_real.wrapping_sub(other.prefer_real) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::content::Content;
    use crate::model::attributes::Attributes;
    use crate::model::vector::{Dot, VersionVector};

    use OnConflict::{KeepBoth, Latest, PreferReal};

    fn version(author: u8, time: u64, value: Option<u8>, origin: Origin) -> Version {
        let dot = Dot { author: AuthorId([author; 16]), time: Timestamp(time) };
        let content = value.map_or(Content::Deleted, |value| Content::Inline([value].into()));
        let attributes = Attributes { origin, ..Attributes::default() };
        Version { dot, seen: VersionVector::new(), content, attributes }
    }

    /// Versions that do not know of each other, each with a dot of its own.
    fn any_siblings() -> impl Strategy<Value = Vec<Version>> {
        let origin =
            prop_oneof![Just(Origin::Real), Just(Origin::Synthetic), Just(Origin::Derived)];
        let value = prop_oneof![1 => Just(None), 4 => (0u8..3).prop_map(Some)];
        let kind = prop_oneof![5 => Just(Kind::File), 1 => Just(Kind::Directory)];
        prop::collection::vec((0u64..4, value, origin, kind), 0..8).prop_map(|drawn| {
            let versions = (1..).zip(drawn).map(|(author, (time, value, origin, kind))| {
                let mut version = version(author, time, value, origin);
                version.attributes.kind = kind;
                version
            });
            versions.collect()
        })
    }

    fn any_policy() -> impl Strategy<Value = OnConflict> {
        prop::sample::select(&OnConflict::ALL[..])
    }

    fn is_shown(policy: OnConflict, siblings: &[Version], version: &Version) -> bool {
        let winner = policy.winner(siblings);
        winner.into_iter().chain(policy.losers(siblings)).any(|shown| shown.alike(version))
    }

    proptest! {
        #[test]
        fn what_is_shown_does_not_depend_on_the_order_of_arrival(
            (siblings, shuffled) in any_siblings()
                .prop_flat_map(|siblings| (Just(siblings.clone()), Just(siblings).prop_shuffle())),
            policy in any_policy(),
        ) {
            prop_assert_eq!(policy.winner(&siblings), policy.winner(&shuffled));
            prop_assert_eq!(policy.losers(&siblings), policy.losers(&shuffled));
            prop_assert_eq!(Losers::of(&siblings), Losers::of(&shuffled));
        }

        #[test]
        fn an_edit_wins_over_a_concurrent_deletion(siblings in any_siblings(), policy in any_policy()) {
            let any_live = siblings.iter().any(|version| !version.is_deleted());
            let winner = policy.winner(&siblings);
            prop_assert_eq!(winner.is_some(), !siblings.is_empty());
            prop_assert_eq!(winner.is_some_and(|winner| !winner.is_deleted()), any_live);
        }

        #[test]
        fn what_is_alike_or_deleted_is_no_conflict(siblings in any_siblings(), policy in any_policy()) {
            let winner = policy.winner(&siblings);
            let losers = policy.losers(&siblings);
            for (place, loser) in losers.iter().enumerate() {
                prop_assert!(!loser.is_deleted() && loser.attributes.kind != Kind::Directory);
                let before = winner.into_iter().chain(losers[..place].iter().copied());
                prop_assert!(before.into_iter().all(|other| !other.alike(loser)));
            }
        }

        #[test]
        fn no_bytes_are_out_of_sight_where_both_are_kept(siblings in any_siblings()) {
            let has_bytes = |v: &&Version| !v.is_deleted() && v.attributes.kind != Kind::Directory;
            for version in siblings.iter().filter(has_bytes) {
                prop_assert!(is_shown(KeepBoth, &siblings, version));
            }
        }

        #[test]
        fn the_latest_wins_alone_where_that_is_the_policy(siblings in any_siblings()) {
            prop_assert_eq!(Latest.winner(&siblings), KeepBoth.winner(&siblings));
            prop_assert!(Latest.losers(&siblings).is_empty());
        }

        #[test]
        fn real_ones_are_only_in_conflict_with_each_other_where_they_are_preferred(
            siblings in any_siblings(),
        ) {
            let real = |v: &&Version| !v.is_deleted() && is_real(v);
            let only_real: Vec<Version> = siblings.iter().filter(real).cloned().collect();
            let counts = if only_real.is_empty() { &siblings } else { &only_real };
            prop_assert_eq!(PreferReal.winner(&siblings), KeepBoth.winner(counts));
            prop_assert_eq!(PreferReal.losers(&siblings), KeepBoth.losers(counts));
        }

        #[test]
        fn losers_are_counted_as_they_are_shown(siblings in any_siblings(), policy in any_policy()) {
            let losers = Losers::of(&siblings);
            prop_assert_eq!(losers.under(policy), policy.losers(&siblings).len() as u64);
            prop_assert!(losers.under(policy) <= losers.keep_both);
        }
    }

    #[test]
    fn an_observation_wins_over_later_output_of_a_generator() {
        let real = version(1, 5, Some(1), Origin::Real);
        let made = version(2, 9, Some(2), Origin::Synthetic);
        let derived = version(3, 7, Some(3), Origin::Derived);
        let siblings = [made.clone(), real.clone(), derived.clone()];
        assert_eq!(PreferReal.winner(&siblings), Some(&real));
        assert!(PreferReal.losers(&siblings).is_empty());
        assert_eq!(KeepBoth.winner(&siblings), Some(&made));
        assert_eq!(KeepBoth.losers(&siblings), [&derived, &real]);
        // Neither of these is an observation.
        assert_eq!(PreferReal.losers(&siblings[..1]), Vec::<&Version>::new());
        assert_eq!(PreferReal.losers(&[made, derived.clone()]), [&derived]);
    }

    #[test]
    fn a_policy_is_known_by_its_name() {
        for policy in OnConflict::ALL {
            assert_eq!(OnConflict::by_name(policy.name()), Some(policy));
        }
        assert_eq!(OnConflict::by_name("toss-a-coin"), None);
    }
}
