//! How fast something goes, and how long it will take at that: over a window of several seconds, since work is done in
//! bursts, and a time left that jumps with each tells nothing. Nothing here prints or looks at a clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A rate is that of so long.
const WINDOW: Duration = Duration::from_secs(8);
/// There is none before it has been watched for so long.
const ENOUGH: Duration = Duration::from_secs(3);
/// Nor after nothing was done for so long: longer than the pauses between bursts.
const STILL: Duration = Duration::from_secs(5);
/// The least time between two places that are kept, which bounds how many there are.
const STEP: Duration = Duration::from_millis(200);

/// Work that is watched as it goes on.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When how much was done; the first is about as old as the window is long.
    places: VecDeque<(Instant, u64)>,
    /// When something was done last.
    done_at: Option<Instant>,
}

impl Pace {
    /// So much is done by `now`: how much that is in a second, if that can be said.
    pub(crate) fn watch(&mut self, now: Instant, done: u64) -> Option<u64> {
        // What goes backwards is other work.
        let before = self.places.back().map(|(_, before)| *before);
        if before.is_some_and(|before| done < before) {
            self.places.clear();
        }
        if before != Some(done) {
            self.done_at = Some(now);
        }
        let age = |at: Instant| now.saturating_duration_since(at);
        if self.places.back().is_none_or(|(at, _)| STEP <= age(*at)) {
            self.places.push_back((now, done));
        }
        while self.places.get(1).is_some_and(|(at, _)| WINDOW <= age(*at)) {
            self.places.pop_front();
        }
        let (at, before) = *self.places.front()?;
        let ms = u64::try_from(age(at).as_millis()).unwrap_or(u64::MAX);
        let rate = (done - before).saturating_mul(1000).checked_div(ms)?;
        let is_still = self.done_at.is_none_or(|at| STILL <= age(at));
        (ENOUGH <= age(at) && rate != 0 && !is_still).then_some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of places a second apart.
    fn watched(places: &[u64]) -> Vec<Option<u64>> {
        let (mut pace, start) = (Pace::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        (0..).zip(places).map(|(second, done)| pace.watch(at(second), *done)).collect()
    }

    #[test]
    fn nothing_is_said_before_there_is_something_to_say() {
        assert_eq!(watched(&[0, 10, 20, 30, 40]), [None, None, None, Some(10), Some(10)]);
        assert_eq!(watched(&[5; 20]), [None; 20]);
    }

    #[test]
    fn bursts_do_not_make_it_jump() {
        // All that is done in four seconds comes at once.
        let places: Vec<u64> = (0..60).map(|second| second / 4 * 400).collect();
        for rate in watched(&places).into_iter().skip(9) {
            let rate = rate.expect("something is done all the time");
            assert!((75..=150).contains(&rate), "{rate}");
        }
    }

    #[test]
    fn what_stands_still_has_no_rate_after_a_while_and_other_work_begins_anew() {
        let mut places = vec![0, 100, 200, 300, 400];
        places.extend([400; 12]);
        places.push(0);
        let rates = watched(&places);
        assert_eq!(rates[4], Some(100));
        assert_eq!(rates[6], Some(66), "it falls");
        assert_eq!(rates[9..], [None; 9]);
    }

    #[test]
    fn it_keeps_few_places() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        for ms in 0..60_000 {
            pace.watch(start + Duration::from_millis(ms), ms);
        }
        assert!(pace.places.len() <= 50, "{}", pace.places.len());
    }
}
