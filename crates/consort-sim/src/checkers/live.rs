//! Once everything is mended, all that was written arrives everywhere within a bound, every link says so, and then
//! there is rest: what links still say is that they have nothing to say.

use std::time::Duration;

use consort_core::protocol::link::Phase;
use consort_core::protocol::replica::LinkReport;

use super::{Checked, Checker};
use crate::node::NodeIndex;

/// How long the links are listened to when all is done.
pub(crate) const REST: Duration = Duration::from_secs(60);
/// How long before that they may still say something.
pub(crate) const CALMING: Duration = Duration::from_secs(5);
/// Messages of one link in that time: each end checks every 15 to 45 seconds.
const MESSAGES_AT_REST: u64 = 10;

/// What a run may consist of at the most: far more than any that goes well.
const EVENTS: u64 = 2_000_000;
const EVENTS_PER_NODE: u64 = 50_000;

/// So much was scheduled until now.
pub(crate) fn has_an_end(events: u64, nodes: usize) -> Checked {
    if events <= EVENTS + EVENTS_PER_NODE * nodes as u64 {
        return Ok(());
    }
    Err(Checker::Live.finds(format!("{events} events, and no end")))
}

/// Everything is not the same, and there was time enough.
pub(crate) fn stuck(within: Duration, what: &str) -> Checked {
    Err(Checker::Live.finds(format!("{} s after everything is mended, {what}", within.as_secs())))
}

/// Whether a link says that it has nothing to do.
pub(crate) fn is_done(report: LinkReport) -> bool {
    report.phase == Phase::Live && report.behind == 0 && report.lacks == 0
}

/// How a link stands when all is done.
pub(crate) fn link(node: NodeIndex, report: LinkReport) -> Checked {
    if is_done(report) {
        return Ok(());
    }
    Err(Checker::Live.finds(format!("all is done, and {node} has {report:?}")))
}

/// How much was said when all was done.
pub(crate) fn at_rest(messages: u64, links: u64) -> Checked {
    if messages <= MESSAGES_AT_REST * links {
        return Ok(());
    }
    let what =
        format!("all is done, and {links} links exchange {messages} messages within {REST:?}");
    Err(Checker::Live.finds(what))
}
