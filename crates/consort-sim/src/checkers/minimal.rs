//! What is sent is in proportion to what was written: to the lower limit, which is every version once to every other
//! node.

use super::{Checked, Checker};
use crate::scenario::Scenario;

/// What a few links may say in a run in which nothing was written.
const IN_ANY_CASE: u64 = 100_000;

/// So many bytes were sent over so many links, where every node had to get everything.
pub(crate) fn check(scenario: &Scenario, sent: u64, lower_limit: u64, links: u64) -> Checked {
    let most = lower_limit * scenario.traffic_percent / 100
        + links * scenario.traffic_per_link
        + IN_ANY_CASE;
    if sent <= most {
        return Ok(());
    }
    let what = format!("{sent} bytes were sent, over {most}, where {lower_limit} had to be");
    Err(Checker::Minimal.finds(what))
}
