//! Barriers that are passed on: who is asked whether everything that was changed so far is on its way asks its other neighbours the
//! same, and answers when what they answer has been applied here. So an answer speaks for all that can be reached through who
//! gives it, however far away.
//!
//! A barrier has a number that nobody else uses. Whoever hears of it first makes the asker its parent, and passes it on;
//! to everybody else it answers as soon as its own directory is flushed, since what is behind it goes to its parent. So the
//! barrier spreads as a tree over all nodes. A reader passes nothing on, and nobody waits for one.
//!
//! A barrier whose parent is gone, or asks no more, concerns nobody. It is remembered until those to whom it was passed on
//! have lost interest as well: else one of them, which asks everybody, would become the parent, and nodes would ask each
//! other in a circle for ever.
//!
//! Here stands only which barriers are under way; [`Replica`](super::Replica) knows the links.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::time::Duration;

use crate::model::id::NodeId;
use crate::store::Sequence;
use crate::time::Instant;

/// Barriers under way at one replica. One that comes while there are so many is not answered; it is asked for again.
const MAX_WAVES: usize = 256;
/// Numbers of barriers that were answered and are remembered, so that none goes in circles.
const MAX_REMEMBERED: usize = 1024;
/// How soon one that has not answered is asked again; then after twice that, and so on.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The longest such time.
const ASK_AGAIN_AT_LEAST_EVERY: Duration = Duration::from_secs(8);
/// A barrier that nobody has asked about for so long is over.
const FORGET_AFTER: Duration = Duration::from_secs(15);

/// The barriers that were passed on, or answered.
#[derive(Debug, Default)]
pub(super) struct Waves {
    waves: BTreeMap<u64, Wave>,
    remembered: VecDeque<u64>,
    flushes: u64,
}

/// A barrier that is under way.
#[derive(Debug)]
pub(super) struct Wave {
    /// Who asked first; none if it is gone, or asks no more.
    pub(super) parent: Option<NodeId>,
    /// Others who asked, and who are told only of this replica.
    pub(super) others: Vec<NodeId>,
    /// The number of the last flush of the directory that was asked for on its behalf.
    flush: u64,
    pub(super) flushed: bool,
    /// Whom it was passed on to, and what they answered.
    pub(super) passed: BTreeMap<NodeId, Option<Sequence>>,
    asked_at: Instant,
    again_at: Instant,
    again_after: Duration,
}

impl Wave {
    /// Whether those who have not answered are to be asked again now.
    pub(super) fn asks_again(&mut self, now: Instant) -> bool {
        let due = self.again_at <= now && self.parent.is_some();
        if due {
            self.again_after = (2 * self.again_after).min(ASK_AGAIN_AT_LEAST_EVERY);
            self.again_at = now + self.again_after;
        }
        due
    }
}

/// What to do about a barrier that a peer asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Flush the directory under this number, and pass the barrier on.
    Spread { flush: u64 },
    /// Flush the directory under this number.
    Flush { flush: u64 },
    /// Answer.
    Answer,
    /// Nothing: an answer will come, or it will be asked for again.
    Wait,
}

impl Waves {
    /// A peer asks.
    pub(super) fn on_asked(&mut self, peer: NodeId, id: u64, now: Instant) -> Asked {
        if let Some(wave) = self.waves.get_mut(&id) {
            if wave.parent.is_none() {
                wave.asked_at = now;
                // Another way by which it comes, or the same again.
                wave.parent = Some(peer).filter(|peer| !wave.passed.contains_key(peer));
            }
            if wave.parent == Some(peer) {
                wave.asked_at = now;
            } else if wave.flushed {
                return Asked::Answer;
            } else if !wave.others.contains(&peer) {
                wave.others.push(peer);
                return Asked::Wait;
            }
            if wave.flushed {
                return Asked::Wait;
            }
            self.flushes += 1;
            wave.flush = self.flushes;
            return Asked::Flush { flush: wave.flush };
        }
        if self.remembered.contains(&id) {
            return Asked::Answer;
        }
        if MAX_WAVES <= self.waves.len() {
            return Asked::Wait;
        }
        self.flushes += 1;
        let wave = Wave {
            parent: Some(peer),
            others: Vec::new(),
            flush: self.flushes,
            flushed: false,
            passed: BTreeMap::new(),
            asked_at: now,
            again_at: now + ASK_AGAIN_AFTER,
            again_after: ASK_AGAIN_AFTER,
        };
        self.waves.insert(id, wave);
        Asked::Spread { flush: self.flushes }
    }

    /// This replica asks its peers itself. When they pass it on, it comes back.
    pub(super) fn begin(&mut self, id: u64) {
        self.remember(id);
    }

    /// The directory was flushed under this number, and so for all that asked before. Returns the barriers and whom else
    /// to answer.
    pub(super) fn on_flushed(&mut self, flush: u64) -> Vec<(u64, Vec<NodeId>)> {
        let mut answers = Vec::new();
        for (&id, wave) in &mut self.waves {
            if !wave.flushed && wave.flush <= flush {
                wave.flushed = true;
                answers.push((id, core::mem::take(&mut wave.others)));
            }
        }
        answers
    }

    /// A peer answers. Whether it was asked on somebody else's behalf.
    pub(super) fn on_answered(&mut self, peer: NodeId, id: u64, head: Sequence) -> bool {
        let slot = self.waves.get_mut(&id).and_then(|wave| wave.passed.get_mut(&peer));
        slot.map(|slot| *slot = Some(head)).is_some()
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Wave> {
        self.waves.get_mut(&id)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Wave)> {
        self.waves.iter_mut().map(|(&id, wave)| (id, wave))
    }

    /// Forgets the barriers that nobody has asked about for long.
    pub(super) fn forget_old(&mut self, now: Instant) {
        self.waves.retain(|_, wave| {
            let is_wanted = now < wave.asked_at + FORGET_AFTER;
            let had_parent = wave.parent.is_some();
            if !is_wanted && had_parent {
                (wave.parent, wave.asked_at) = (None, now);
            }
            is_wanted || had_parent
        });
    }

    /// The barrier is answered.
    pub(super) fn end(&mut self, id: u64) {
        self.waves.remove(&id);
        self.remember(id);
    }

    /// A peer is gone: nobody waits for its answer, nor it for ours.
    pub(super) fn on_gone(&mut self, peer: NodeId) {
        for wave in self.waves.values_mut() {
            wave.parent.take_if(|parent| *parent == peer);
            wave.passed.remove(&peer);
            wave.others.retain(|other| *other != peer);
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let due = |wave: &Wave| match wave.parent {
            Some(_) => wave.again_at,
            None => wave.asked_at + FORGET_AFTER,
        };
        self.waves.values().map(due).min()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waves.is_empty()
    }

    fn remember(&mut self, id: u64) {
        if self.remembered.contains(&id) {
            return;
        }
        if MAX_REMEMBERED <= self.remembered.len() {
            self.remembered.pop_front();
        }
        self.remembered.push_back(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKER: NodeId = NodeId([1; 16]);
    const BEHIND: NodeId = NodeId([2; 16]);
    const ANOTHER: NodeId = NodeId([3; 16]);

    fn at(seconds: u64) -> Instant {
        Instant(seconds * 1_000_000)
    }

    /// A barrier that came from `ASKER` and was passed on to `BEHIND`.
    fn passed_on() -> Waves {
        let mut waves = Waves::default();
        assert_eq!(waves.on_asked(ASKER, 7, at(0)), Asked::Spread { flush: 1 });
        waves.get_mut(7).expect("it is under way").passed.insert(BEHIND, None);
        assert_eq!(waves.on_flushed(1), [(7, Vec::new())]);
        waves
    }

    #[test]
    fn who_is_behind_never_becomes_the_one_who_asked() {
        let mut gone = passed_on();
        gone.on_gone(ASKER);
        let mut silent = passed_on();
        silent.forget_old(at(15));
        for waves in [&mut gone, &mut silent] {
            assert_eq!(waves.on_asked(BEHIND, 7, at(16)), Asked::Answer);
            assert!(!waves.get_mut(7).expect("it is remembered").asks_again(at(16)));
            // But by another way the barrier may come again.
            assert_eq!(waves.on_asked(ANOTHER, 7, at(17)), Asked::Wait);
            assert!(waves.get_mut(7).expect("it is under way").asks_again(at(17)));
        }
    }

    #[test]
    fn a_barrier_that_nobody_asks_about_is_forgotten() {
        let mut waves = passed_on();
        (1..=2).for_each(|times| waves.forget_old(at(15 * times)));
        assert!(waves.is_empty());
    }
}
