//! What writers do: single writes and batches, edits of what they see and of what they no longer see, deletions, the
//! same keys at the same time, the same bytes at the same time.

use consort_core::Instant;
use consort_core::random::Random;

use crate::scenario::Scenario;
use crate::script::{Action, Sees, Write, below, moment, up_to};

/// Writes of one preloading commit.
const PRELOADED_AT_ONCE: u32 = 500;

/// Draws everything that is written, and who waits.
pub(crate) fn draw(
    scenario: &Scenario,
    nodes: u32,
    random: &mut Random,
    actions: &mut Vec<(Instant, Action)>,
) {
    preload(scenario, random, actions);
    // Some runs have one busy writer, some many; some have bursts.
    let writers = 1 + below(random, nodes);
    let in_bursts = random.below(3) == 0;
    let writes = scenario.writes / 4 + up_to(random, scenario.writes - scenario.writes / 4);
    let mut at = moment(scenario, random);
    for _ in 0..writes {
        if !in_bursts || random.below(12) == 0 {
            at = moment(scenario, random);
        }
        let batch = if random.below(3) == 0 { 1 + below(random, scenario.batch) } else { 1 };
        let writes = (0..batch).map(|_| write(scenario, random)).collect();
        actions.push((at, Action::Write { node: below(random, writers), writes }));
    }
    for _ in 0..up_to(random, scenario.waits) {
        actions.push((moment(scenario, random), Action::Wait { node: below(random, nodes) }));
    }
}

fn preload(scenario: &Scenario, random: &mut Random, actions: &mut Vec<(Instant, Action)>) {
    let keys: Vec<u32> = (0..scenario.preloaded).map(|key| scenario.keys + key).collect();
    for (place, keys) in (0..).zip(keys.chunks(PRELOADED_AT_ONCE as usize)) {
        let put = |key: &u32| {
            let content = Some((random.next_u64(), scenario.content_bytes));
            Write { key: *key, sees: Sees::Winner, content }
        };
        let writes = keys.iter().map(put).collect();
        actions.push((Instant(place), Action::Write { node: 0, writes }));
    }
}

fn write(scenario: &Scenario, random: &mut Random) -> Write {
    let sees = match random.below(20) {
        0..14 => Sees::Winner,
        14..16 => Sees::Nothing,
        16..19 => Sees::Current(below(random, 4)),
        _ => Sees::Any(below(random, 1 << 16)),
    };
    let content = match random.below(10) {
        0..2 => None,
        // The same bytes as somebody else may write.
        2 => Some((random.below(2), 8)),
        _ => Some((random.next_u64(), 8 + up_to(random, scenario.content_bytes.saturating_sub(8)))),
    };
    Write { key: below(random, scenario.keys), sees, content }
}
