//! What goes wrong. Each fault and its end are actions of their own, so that a script can be shortened by either; what
//! has not ended by the end of the eventful part is ended then.

use std::time::Duration;

use consort_core::Instant;
use consort_core::random::Random;

use crate::network::Stops;
use crate::scenario::Scenario;
use crate::script::{Action, moment_after, up_to};

/// Draws all faults.
pub(crate) fn draw(scenario: &Scenario, random: &mut Random, actions: &mut Vec<(Instant, Action)>) {
    let mut several = |most: u32, act: &mut dyn FnMut(&mut Random, Instant)| {
        for _ in 0..up_to(random, most) {
            let at = moment_after(scenario.calm, scenario, random);
            act(random, at);
        }
    };
    several(scenario.crashes, &mut |random, at| {
        let node = any(random);
        actions.push((at, Action::Crash { node, power: random.below(2) == 0 }));
        actions.push((later(at, random), Action::Start { node }));
    });
    several(scenario.wipes, &mut |random, at| {
        let node = any(random);
        actions.push((at, Action::Wipe { node }));
        actions.push((later(at, random), Action::Start { node }));
    });
    several(scenario.cuts, &mut |random, at| {
        actions.push((at, Action::Cut { neighbours: any(random) }));
    });
    several(scenario.splits, &mut |random, at| {
        let (id, inside) = (any(random), random.next_u64());
        let stops = match random.below(4) {
            0 => Stops::Into,
            1 => Stops::OutOf,
            _ => Stops::Both,
        };
        actions.push((at, Action::Split { id, inside, stops }));
        actions.push((later(at, random), Action::Mend { id }));
    });
    several(scenario.jumps, &mut |random, at| {
        let ms = wrong_by(scenario, random);
        actions.push((at, Action::Jump { node: any(random), ms }));
    });
    several(scenario.slow_disks, &mut |random, at| {
        let node = any(random);
        actions.push((at, Action::SlowDisk { node, times: 10 + random.below(190) }));
        actions.push((later(at, random), Action::UsualDisk { node }));
    });
    several(scenario.evictions, &mut |random, at| {
        let node = any(random);
        actions.push((at, Action::Evict { node }));
        // Most are given up since they are away.
        if random.below(3) != 0 {
            actions.push((at, Action::Crash { node, power: random.below(2) == 0 }));
        }
        let back = at + Duration::from_micros(random.below(120_000_000));
        actions.push((back, Action::Start { node }));
        actions.push((later(back, random), Action::Return { node }));
    });
    several(scenario.restores, &mut |random, at| {
        let node = any(random);
        actions.push((at, Action::Save { node }));
        let restored = at + Duration::from_micros(random.below(120_000_000));
        actions.push((restored, Action::Restore { node }));
        actions.push((later(restored, random), Action::Start { node }));
    });
    several(scenario.joins, &mut |random, at| {
        let reads_only =
            scenario.reader_in != 0 && random.below(u64::from(scenario.reader_in)) == 0;
        actions.push((at, Action::Join { reads_only }));
    });
    several(scenario.leaves, &mut |random, at| {
        actions.push((at, Action::Leave { node: any(random) }));
    });
}

/// By how much a wall clock is wrong, in milliseconds.
pub(crate) fn wrong_by(scenario: &Scenario, random: &mut Random) -> i64 {
    let most = scenario.clock_ms.unsigned_abs();
    let wrong = i64::try_from(random.below(2 * most + 1)).expect("hours at the most");
    wrong - scenario.clock_ms
}

fn any(random: &mut Random) -> u32 {
    u32::try_from(random.below(1 << 20)).expect("it is below a u32")
}

/// A while after: sometimes milliseconds, sometimes longer than peers wait for a sign of life.
fn later(at: Instant, random: &mut Random) -> Instant {
    let most = [20_000, 400_000, 4_000_000, 20_000_000]
        [usize::try_from(random.below(4)).expect("below 4")];
    at + Duration::from_micros(1 + random.below(most))
}
