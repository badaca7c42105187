//! How fast content comes, worked out from when it came. It reads no clock: what comes and what is asked says when. Which
//! content counts is decided in `status.rs`, and how long the rest takes is for whoever shows it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A rate is that of so long a time: the time that is left should not jump with each burst.
const RATE_OVER: Duration = Duration::from_secs(5);
/// A stretch of what came is at least so long.
const LEAST_STRETCH: Duration = Duration::from_secs(1);
/// The chunks of one message are taken one after another, and came together.
const BURSTS_APART: Duration = Duration::from_millis(100);
/// After so long a silence nothing comes any more, however slow the link was before.
const SILENCE: Duration = Duration::from_secs(60);

/// Bytes per second, from when they came. Over a slow link contents come in bursts that are many seconds apart, and each was on
/// its way since the one before.
#[derive(Debug, Default)]
pub(super) struct Rate {
    /// The last stretches, each from one arrival to another and at least a second long: how long, and what came in it. They
    /// make up [`RATE_OVER`] or a little more.
    past: VecDeque<(Duration, u64)>,
    now: Option<Stretch>,
}

/// The stretch that is not over.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    since: Instant,
    bytes: u64,
    /// When the burst began that came last, and its end so far.
    burst: Instant,
    last: Instant,
}

impl Rate {
    pub(super) fn add(&mut self, bytes: u64, now: Instant) {
        self.close(now);
        let Some(mut stretch) = self.now.filter(|_| !self.is_over(now)) else {
            *self = Self::default();
            self.now = Some(Stretch { since: now, bytes: 0, burst: now, last: now });
            return;
        };
        if BURSTS_APART <= now.saturating_duration_since(stretch.last) {
            // Since when the first one was on its way nobody knows.
            if self.past.is_empty() && stretch.burst == stretch.since {
                (stretch.since, stretch.bytes) = (stretch.last, 0);
            }
            stretch.burst = now;
        }
        stretch.bytes += bytes;
        stretch.last = now;
        self.now = Some(stretch);
    }

    /// Ends the stretch if it is long enough, and not in the middle of a burst.
    fn close(&mut self, now: Instant) {
        let Some(Stretch { since, bytes, burst, last }) = self.now else { return };
        let took = last.saturating_duration_since(since);
        let is_flow = LEAST_STRETCH <= last.saturating_duration_since(burst);
        let is_burst_over = BURSTS_APART <= now.saturating_duration_since(last);
        if took < LEAST_STRETCH || !(is_flow || is_burst_over) {
            return;
        }
        self.past.push_back((took, bytes));
        while let Some((first, _)) = self.past.front()
            && RATE_OVER + *first <= self.past.iter().map(|(took, _)| *took).sum::<Duration>()
        {
            self.past.pop_front();
        }
        self.now = Some(Stretch { since: last, bytes: 0, burst: last, last });
    }

    /// Zero until it is known, and when nothing has come for a while.
    pub(super) fn bytes_per_second(&mut self, now: Instant) -> u64 {
        self.close(now);
        let Some(stretch) = self.now.filter(|_| !self.is_over(now)) else { return 0 };
        let (mut took, mut bytes) = (Duration::ZERO, 0);
        for (stretch, came) in &self.past {
            took += *stretch;
            bytes += came;
        }
        // It has become slower.
        let lasts = now.saturating_duration_since(stretch.since);
        if let Some(late) = self.longest().and_then(|longest| lasts.checked_sub(longest)) {
            took += late;
            bytes += stretch.bytes;
        }
        let rate = u128::from(bytes) * 1000 / took.as_millis().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }

    fn longest(&self) -> Option<Duration> {
        self.past.iter().map(|(took, _)| *took).max()
    }

    /// Whether nothing more comes, judging by how far apart it came.
    fn is_over(&self, now: Instant) -> bool {
        let silence = self.longest().map_or(SILENCE, |longest| 3 * longest);
        let silence = silence.clamp(RATE_OVER, SILENCE);
        self.now.is_some_and(|stretch| silence < now.saturating_duration_since(stretch.last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_that_of_the_last_seconds_and_falls_to_zero_in_silence() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut rate = Rate::default();
        assert_eq!(rate.bytes_per_second(at(0)), 0);
        // A hundred a tenth of a second, and then twice that.
        (0..100).for_each(|tenth| rate.add(100, at(100 * tenth)));
        assert_eq!(rate.bytes_per_second(at(9_900)), 1_000);
        (100..200).for_each(|tenth| rate.add(200, at(100 * tenth)));
        assert_eq!(rate.bytes_per_second(at(19_900)), 2_000);
        let falling = [21_000, 22_000, 23_000].map(|ms| rate.bytes_per_second(at(ms)));
        assert!(falling.is_sorted_by(|before, after| after < before), "{falling:?}");
        assert!(falling.iter().all(|rate| (1_000..2_000).contains(rate)), "{falling:?}");
        assert_eq!(rate.bytes_per_second(at(26_000)), 0);
        // What was before does not count any more.
        (0..100).for_each(|tenth| rate.add(100, at(60_000 + 100 * tenth)));
        assert_eq!(rate.bytes_per_second(at(69_900)), 1_000);
    }

    #[test]
    fn bursts_that_are_far_apart_were_on_their_way_all_the_time() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut rate = Rate::default();
        // A few bytes, and then a mebibyte every 16 seconds, in chunks that are taken one after another.
        rate.add(20_000, at(1));
        for burst in 1..=3 {
            let known = rate.bytes_per_second(at(16 * burst));
            let is_right = (60 << 10..70 << 10).contains(&known);
            assert!(if burst == 1 { known == 0 } else { is_right }, "{known} before {burst}");
            let chunk = |number| at(16 * burst) + Duration::from_millis(number);
            (0..16).for_each(|number| rate.add(64 << 10, chunk(number)));
        }
        for seconds in 49..=64 {
            assert_eq!(rate.bytes_per_second(at(seconds)), 64 << 10, "after {seconds} seconds");
        }
        assert!(rate.bytes_per_second(at(72)) < 64 << 10, "it is late");
        assert_eq!(rate.bytes_per_second(at(120)), 0);
    }
}
