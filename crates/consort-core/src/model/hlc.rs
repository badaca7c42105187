//! Hybrid logical clocks (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014): close to the wall clock when that
//! behaves, strictly increasing for an author even when it does not.

use core::fmt;

use crate::limits::MAX_CLOCK_SKEW_MS;
use crate::time::WallTime;

/// A reading: 48 bits of milliseconds since 1970-01-01 UTC, then 16 bits of counter.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The first reading of a millisecond.
    pub const fn at(wall: WallTime) -> Self {
        Self(wall.0 << 16)
    }

    /// The wall-clock part.
    pub const fn wall(self) -> WallTime {
        WallTime(self.0 >> 16)
    }

    /// The counter within the millisecond.
    pub const fn counter(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// The latest reading that is not [ahead](Self::is_ahead_of) of `now`.
    pub const fn latest(now: WallTime) -> Self {
        let wall = now.0.saturating_add(MAX_CLOCK_SKEW_MS);
        Self(if wall < 1 << 48 { wall << 16 | 0xffff } else { u64::MAX })
    }

    /// Whether this lies further ahead of `now` than clocks may differ.
    pub const fn is_ahead_of(self, now: WallTime) -> bool {
        now.0.saturating_add(MAX_CLOCK_SKEW_MS) < self.wall().0
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.wall(), self.counter())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The clock of one author.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock {
    last: Timestamp,
}

impl Clock {
    /// A clock whose next reading comes after `last`, which must be the latest that this author ever gave out.
    pub const fn after(last: Timestamp) -> Self {
        Self { last }
    }

    /// A new reading, later than every one before it and than every one [observed](Self::observe); never zero.
    pub fn tick(&mut self, now: WallTime) -> Timestamp {
        self.last = Timestamp(self.last.0.saturating_add(1)).max(Timestamp::at(now));
        self.last
    }

    /// Takes note of another author's reading, so that ours come after it. A reading too far ahead is not followed:
    /// one wrong clock must not drag all others along.
    pub fn observe(&mut self, remote: Timestamp, now: WallTime) {
        if !remote.is_ahead_of(now) {
            self.last = self.last.max(remote);
        }
    }

    /// The latest reading.
    pub const fn last(&self) -> Timestamp {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_increase_when_the_wall_clock_stands_or_goes_back() {
        let mut clock = Clock::default();
        let first = clock.tick(WallTime(1000));
        let second = clock.tick(WallTime(1000));
        let third = clock.tick(WallTime(10));
        assert!(first < second && second < third);
        assert_eq!(third.wall(), WallTime(1000));
    }

    #[test]
    fn the_first_reading_is_not_zero_even_if_the_wall_clock_is() {
        assert_eq!(Clock::default().tick(WallTime(0)), Timestamp(1));
    }

    #[test]
    fn a_clock_follows_others_but_not_one_that_is_far_ahead() {
        let mut clock = Clock::default();
        let now = WallTime(1_000_000);
        clock.observe(Timestamp::at(WallTime(1_000_500)), now);
        assert_eq!(clock.tick(now).wall(), WallTime(1_000_500));
        clock.observe(Timestamp::at(WallTime(now.0 + MAX_CLOCK_SKEW_MS + 1)), now);
        assert_eq!(clock.tick(now).wall(), WallTime(1_000_500));
    }
}
