//! The clocks of one machine: a monotonic one, which may run fast or slow and begins anew with each process, and a wall
//! clock, which may be anything.

use std::time::Duration;

use consort_core::protocol::Now;
use consort_core::{Instant, WallTime};

/// The wall time at which a run begins, for those whose clock is right: 2023-11-14.
const BEGINNING_MS: i64 = 1_700_000_000_000;
const MILLION: i128 = 1_000_000;

/// The clocks of one machine.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Clock {
    /// How much faster than the world's time it runs, in millionths.
    pub(crate) drift_ppm: i32,
    /// How far the wall clock is ahead, in milliseconds, apart from drift.
    pub(crate) ahead_ms: i64,
    /// When the process started: zero to its monotonic clock.
    pub(crate) started: Instant,
}

impl Clock {
    /// What the machine's clocks show at a moment of the world's time.
    pub(crate) fn read(&self, world: Instant) -> Now {
        let instant = Instant(self.local(world.since(self.started)));
        let passed = i64::try_from(self.local(Duration::from_micros(world.0)) / 1000);
        let wall = BEGINNING_MS + passed.expect("runs last hours") + self.ahead_ms;
        Now { instant, wall: WallTime(u64::try_from(wall).expect("clocks are wrong by hours")) }
    }

    /// The moment of the world's time at which the monotonic clock has reached `local`.
    pub(crate) fn world_time_of(&self, local: Instant) -> Instant {
        let rate = MILLION + i128::from(self.drift_ppm);
        let passed = (i128::from(local.0) * MILLION + rate - 1) / rate;
        self.started + Duration::from_micros(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    fn local(&self, passed: Duration) -> u64 {
        let passed = i128::try_from(passed.as_micros()).expect("runs last hours");
        let local = passed * (MILLION + i128::from(self.drift_ppm)) / MILLION;
        u64::try_from(local).expect("it runs forwards")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_has_passed_when_its_world_time_has_come() {
        for drift_ppm in [-50_000, -1, 0, 7, 50_000] {
            let clock = Clock { drift_ppm, ahead_ms: -3, started: Instant(123_456) };
            for local in (0..2_000_000).step_by(7_919).map(Instant) {
                let at = clock.world_time_of(local);
                assert!(local <= clock.read(at).instant, "{drift_ppm} {local:?}");
            }
        }
    }
}
