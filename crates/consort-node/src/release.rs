//! What a process that was killed still holds for a moment: the lock of a store or of a directory, a port. Whoever starts
//! right after it waits for that; not for long, since it may as well be held by somebody who stays.

use std::time::{Duration, Instant};

/// How long the system may take to close the files of a process that was killed: all its memory is freed before.
pub(crate) const RELEASE_TIME: Duration = Duration::from_secs(2);

/// How long to rest between two attempts.
const REST: Duration = Duration::from_millis(20);

/// Attempts to get what may be held for a moment.
#[derive(Debug)]
pub(crate) struct Release {
    until: Instant,
}

impl Release {
    /// The time begins now.
    pub(crate) fn begin() -> Self {
        Self { until: Instant::now() + RELEASE_TIME }
    }

    /// How long to rest before the next attempt; none if whoever holds it is to stay.
    pub(crate) fn rest(&self) -> Option<Duration> {
        (Instant::now() < self.until).then_some(REST)
    }
}

/// Does `attempt` again for a moment as long as it fails since something `is_held`. Blocks.
pub(crate) fn when_released<T, E>(
    mut attempt: impl FnMut() -> Result<T, E>,
    is_held: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let release = Release::begin();
    loop {
        match (attempt(), release.rest()) {
            (Err(error), Some(rest)) if is_held(&error) => std::thread::sleep(rest),
            (result, _) => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_for_a_moment_is_had_and_other_failures_are_told_at_once() {
        let mut attempts = 0;
        let mut after_two = |error: &'static str| {
            attempts += 1;
            if attempts < 3 { Err(error) } else { Ok(attempts) }
        };
        assert_eq!(when_released(|| after_two("held"), |error| *error == "held"), Ok(3));
        attempts = 0;
        let mut never = || {
            attempts += 1;
            Err::<(), _>("broken")
        };
        assert_eq!(when_released(&mut never, |error| *error == "held"), Err("broken"));
        assert_eq!(attempts, 1);
        let held = when_released(|| Err::<(), _>("held"), |error| *error == "held");
        assert_eq!(held, Err("held"), "who stays is told of");
    }
}
