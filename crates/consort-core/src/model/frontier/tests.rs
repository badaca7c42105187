//! The laws: frontiers are a lattice; and replicas that collect show, once all have heard of each other, what replicas
//! show that never forget a deletion. Whenever, and however far up to what they know, each of them collects.

use alloc::vec;
use alloc::vec::Vec;
use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::content::Content;
use crate::model::attributes::Attributes;
use crate::model::conflict::OnConflict;
use crate::model::merge::{self, Merged, Saw};

const AUTHORS: u8 = 3;

fn author(number: usize) -> AuthorId {
    AuthorId([u8::try_from(number).expect("a few authors"); 16])
}

fn any_frontier() -> impl Strategy<Value = Frontier> {
    prop::collection::vec((0..AUTHORS, 0u64..5), 0..4).prop_map(|times| {
        times.into_iter().map(|(a, time)| (AuthorId([a; 16]), Timestamp(time))).collect()
    })
}

fn dots() -> impl Iterator<Item = Dot> {
    let times =
        |a| (1..5).map(move |time| Dot { author: AuthorId([a; 16]), time: Timestamp(time) });
    (0..AUTHORS).flat_map(times)
}

fn members(frontier: &Frontier) -> BTreeSet<Dot> {
    dots().filter(|dot| frontier.contains(*dot)).collect()
}

proptest! {
    #[test]
    fn joining_and_meeting_are_union_and_intersection(a in any_frontier(), b in any_frontier()) {
        let mut join = a.clone();
        join.join(&b);
        prop_assert_eq!(members(&join), &members(&a) | &members(&b));
        prop_assert_eq!(members(&a.meet(&b)), &members(&a) & &members(&b));
        prop_assert_eq!(a.is_within(&b), members(&a).is_subset(&members(&b)));
        prop_assert!(a.is_within(&join) && b.is_within(&join));
        // Not only the same sets but the same frontier, whoever joins whom: marks are compared.
        let mut other = b.clone();
        other.join(&a);
        prop_assert_eq!(other.mark(), join.mark());
        prop_assert_eq!(a == b, a.mark() == b.mark());
    }

    #[test]
    fn news_are_what_has_to_be_joined(a in any_frontier(), b in any_frontier()) {
        let mut news = b.clone();
        news.join(&a.news_for(&b));
        let mut join = b.clone();
        join.join(&a);
        prop_assert_eq!(news, join);
    }

    #[test]
    fn a_frontier_until_a_time_has_nothing_later(a in any_frontier(), time in 0u64..6) {
        let until = a.until(Timestamp(time));
        let expected: BTreeSet<Dot> =
            members(&a).into_iter().filter(|dot| dot.time <= Timestamp(time)).collect();
        prop_assert_eq!(members(&until), expected);
    }
}

/// One key of one replica, with the two rules; or, if it never collects, without.
#[derive(Clone, Debug, Default)]
struct Replica {
    held: Vec<Version>,
    knowledge: Knowledge,
}

impl Replica {
    /// Rule (b): what lies within the frontier and is not held is dead.
    fn take(&mut self, version: &Version) {
        let Merged::Added { replaced } = merge::merge(&self.held, version) else { return };
        if self.knowledge.frontier.contains(version.dot) {
            return;
        }
        let gone: Vec<Dot> = replaced.into_iter().map(|place| self.held[place].dot).collect();
        self.held.retain(|held| !gone.contains(&held.dot));
        self.held.push(version.clone());
    }

    /// Moves the frontier, not beyond what is known. Rule (a): tombstones within it go.
    fn collect(&mut self, upto: &Frontier) {
        let Knowledge { known, frontier } = &mut self.knowledge;
        frontier.join(&upto.meet(known));
        self.held.retain(|version| !frontier.collects(version));
    }

    /// Takes all that a peer has, as a link does that has come to its end.
    fn sync(&mut self, from: &Self) {
        let Knowledge { known, frontier } = &from.knowledge;
        if !frontier.is_within(&self.knowledge.known) {
            // The peer has collected what this one may not have heard of: what it does not hold any more is dead.
            let lives = |version: &Version| {
                !frontier.contains(version.dot)
                    || from.held.iter().any(|held| held.dot == version.dot)
            };
            self.held.retain(lives);
        }
        from.held.iter().for_each(|version| self.take(version));
        self.knowledge.known.join(known);
        self.collect(frontier);
    }

    fn live(&self) -> BTreeSet<Dot> {
        self.held
            .iter()
            .filter(|version| !version.is_deleted())
            .map(|version| version.dot)
            .collect()
    }
}

/// What happens to a few replicas.
#[derive(Clone, Debug)]
enum Step {
    Write {
        replica: usize,
        sees: usize,
        delete: bool,
    },
    /// One version arrives, in whatever order.
    Send {
        from: usize,
        to: usize,
        which: usize,
    },
    Sync {
        from: usize,
        to: usize,
    },
    Collect {
        replica: usize,
        latest: u64,
    },
    Save {
        replica: usize,
    },
    /// The store is replaced by the one that was saved, which writes as another author from then on.
    Restore {
        replica: usize,
    },
}

const REPLICAS: usize = 4;

fn any_history() -> impl Strategy<Value = Vec<Step>> {
    let write = (0..REPLICAS, 0usize..4, any::<bool>())
        .prop_map(|(replica, sees, delete)| Step::Write { replica, sees, delete });
    let send = (0..REPLICAS, 0..REPLICAS, 0usize..4).prop_map(|(from, to, which)| Step::Send {
        from,
        to,
        which,
    });
    let sync = (0..REPLICAS, 0..REPLICAS).prop_map(|(from, to)| Step::Sync { from, to });
    let collect =
        (0..REPLICAS, 0u64..70).prop_map(|(replica, latest)| Step::Collect { replica, latest });
    let save = (0..REPLICAS).prop_map(|replica| Step::Save { replica });
    let restore = (0..REPLICAS).prop_map(|replica| Step::Restore { replica });
    let step = prop_oneof![5 => write, 2 => send, 4 => sync, 3 => collect, 1 => save, 1 => restore];
    prop::collection::vec(step, 1..60)
}

/// Replicas that collect beside replicas that do not, to which the same happens.
struct Worlds {
    collecting: Vec<Replica>,
    keeping: Vec<Replica>,
    saved: Vec<(Replica, Replica)>,
    authors: Vec<AuthorId>,
    /// How far stores had collected that were lost.
    lost: Vec<Frontier>,
}

impl Worlds {
    fn new() -> Self {
        let replicas = || vec![Replica::default(); REPLICAS];
        let saved = vec![<(Replica, Replica)>::default(); REPLICAS];
        let authors = (0..REPLICAS).map(author).collect();
        Self { collecting: replicas(), keeping: replicas(), saved, authors, lost: Vec::new() }
    }

    fn step(&mut self, time: u64, step: &Step) {
        match *step {
            Step::Write { replica, sees, delete } => {
                let saw = match self.collecting[replica].held.get(sees) {
                    Some(version) => Saw::Version(version.dot),
                    None => Saw::Nothing,
                };
                let dot = Dot { author: self.authors[replica], time: Timestamp(time) };
                for world in [&mut self.collecting, &mut self.keeping] {
                    let Replica { held, .. } = &world[replica];
                    let replaced = merge::replaced_by_writer(held, &saw, OnConflict::KeepBoth);
                    let seen = merge::seen_by_successor(held, &replaced, dot.author);
                    // No two look the same: what does is replaced together, and a writer may see one of them in one
                    // world only, where nobody has brought it what replaced that.
                    let content = match delete {
                        true => Content::Deleted,
                        false => Content::Inline(time.to_le_bytes().into()),
                    };
                    let version = Version { dot, seen, content, attributes: Attributes::default() };
                    world[replica].take(&version);
                    // The author's clock: nothing up to it will ever be written again.
                    world[replica].knowledge.known.raise(dot.author, dot.time);
                }
            }
            Step::Send { from, to, which } => {
                let Some(dot) = self.collecting[from].held.get(which).map(|version| version.dot)
                else {
                    return;
                };
                for world in [&mut self.collecting, &mut self.keeping] {
                    let version = world[from].held.iter().find(|version| version.dot == dot);
                    if let Some(version) = version.cloned() {
                        world[to].take(&version);
                    }
                }
            }
            Step::Sync { from, to } => {
                for world in [&mut self.collecting, &mut self.keeping] {
                    let peer = world[from].clone();
                    world[to].sync(&peer);
                }
            }
            Step::Collect { replica, latest } => {
                let this = &mut self.collecting[replica];
                this.collect(&this.knowledge.known.until(Timestamp(latest)));
            }
            Step::Save { replica } => {
                self.saved[replica] =
                    (self.collecting[replica].clone(), self.keeping[replica].clone());
            }
            Step::Restore { replica } => {
                self.lost.push(self.collecting[replica].knowledge.frontier.clone());
                if !self.would_know_what_is_lost(replica) {
                    self.lost.pop();
                    return;
                }
                (self.collecting[replica], self.keeping[replica]) = self.saved[replica].clone();
                self.authors[replica] = author(REPLICAS + usize::try_from(time).expect("short"));
            }
        }
    }

    /// Whether, if this replica were restored, somebody would account for all that was ever collected anywhere. A deletion
    /// that only the lost stores knew of can be lost with them. If they had kept it, its vector might have been passed on
    /// in that of a later version; if it was collected, there is nothing left of it.
    fn would_know_what_is_lost(&self, restored: usize) -> bool {
        let left = (0..REPLICAS).map(|replica| match replica == restored {
            true => &self.saved[replica].0,
            false => &self.collecting[replica],
        });
        let is_known = |frontier: &Frontier| {
            left.clone().any(|replica| frontier.is_within(&replica.knowledge.known))
        };
        self.lost.iter().all(is_known)
    }

    fn all_hear_of_each_other(&mut self) {
        for _ in 0..2 {
            for (from, to) in (0..REPLICAS).flat_map(|a| (0..REPLICAS).map(move |b| (a, b))) {
                self.step(0, &Step::Sync { from, to });
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn replicas_that_collect_show_what_those_show_that_never_forget(history in any_history()) {
        shows_the_same(&history)?;
    }
}

#[test]
fn a_deletion_does_not_give_way_to_what_was_written_when_it_was_forgotten() {
    let write = |replica, sees, delete| Step::Write { replica, sees, delete };
    let sync = |from, to| Step::Sync { from, to };
    let nothing = 9;
    let history = [
        write(1, nothing, false),
        sync(1, 3),
        Step::Save { replica: 3 },
        sync(1, 0),
        write(0, 0, true),
        sync(0, 2),
        Step::Collect { replica: 0, latest: 69 },
        write(0, nothing, false),
        // It has seen all that its author wrote: the deletion as well, but not what that replaced.
        write(0, 0, false),
        Step::Send { from: 0, to: 2, which: 0 },
        Step::Restore { replica: 3 },
        Step::Send { from: 3, to: 2, which: 0 },
    ];
    assert!(shows_the_same(&history).is_ok());
}

/// Whether replicas that collect show in the end what those show that never forget.
fn shows_the_same(history: &[Step]) -> Result<(), TestCaseError> {
    let mut worlds = Worlds::new();
    for (time, step) in (1..).zip(history) {
        worlds.step(time, step);
        for replica in &worlds.collecting {
            let Knowledge { known, frontier } = &replica.knowledge;
            prop_assert!(frontier.is_within(known));
        }
    }
    worlds.all_hear_of_each_other();
    for (collecting, keeping) in worlds.collecting.iter().zip(&worlds.keeping) {
        prop_assert_eq!(collecting.live(), keeping.live());
    }
    // They hold the same to the last tombstone, so that digests can be compared.
    let dots = |replica: &Replica| -> BTreeSet<Dot> {
        replica.held.iter().map(|version| version.dot).collect()
    };
    let mark = |replica: &Replica| replica.knowledge.frontier.mark();
    for replica in &worlds.collecting {
        prop_assert_eq!(mark(replica), mark(&worlds.collecting[0]));
        prop_assert_eq!(dots(replica), dots(&worlds.collecting[0]));
    }
    // And then everything that was deleted can be forgotten.
    for replica in &mut worlds.collecting {
        replica.collect(&replica.knowledge.known.clone());
    }
    let first = &worlds.collecting[0];
    let known = &first.knowledge.known;
    for tombstone in first.held.iter().filter(|version| version.is_deleted()) {
        prop_assert!(!known.contains(tombstone.dot) || !known.contains_all(&tombstone.seen));
    }
    Ok(())
}
