//! Makes a failing run shorter: fewer nodes, fewer actions, as long as the same checker still finds something.

use crate::script::Script;
use crate::{Failure, Scenario, examine};

/// Runs that are tried at the most.
const TRIES: usize = 3_000;

/// The shortest script found that fails as `script` does, and how it does. `script` itself if none is shorter.
pub fn shrink(scenario: &Scenario, script: Script, failure: Failure) -> (Script, Failure) {
    let mut shrinking = Shrinking { scenario, best: (script, failure), tries: 0 };
    // Fewer actions may need fewer nodes, and the other way round.
    while shrinking.fewer_nodes() | shrinking.fewer_actions() {}
    shrinking.best
}

struct Shrinking<'s> {
    scenario: &'s Scenario,
    best: (Script, Failure),
    tries: usize,
}

impl Shrinking<'_> {
    fn fewer_nodes(&mut self) -> bool {
        let mut shrunk = false;
        for nodes in 1..self.best.0.nodes {
            let script = self.best.0.clone().with_nodes(nodes);
            if self.is_better(script) {
                shrunk = true;
                break;
            }
        }
        shrunk
    }

    /// Leaves out half of the actions, then a quarter, and so on down to single ones.
    fn fewer_actions(&mut self) -> bool {
        let mut shrunk = false;
        let mut length = self.best.0.actions.len().div_ceil(2);
        while 0 < length {
            let mut from = 0;
            while from < self.best.0.actions.len() {
                let mut script = self.best.0.clone();
                let to = script.actions.len().min(from + length);
                script.actions.drain(from..to);
                if self.is_better(script) {
                    shrunk = true;
                } else {
                    from += length;
                }
            }
            length /= 2;
        }
        shrunk
    }

    fn is_better(&mut self, script: Script) -> bool {
        self.tries += 1;
        if TRIES < self.tries {
            return false;
        }
        match examine(self.scenario, &script, crate::Trace::off()) {
            Err(failure) if failure.is_like(&self.best.1) => {
                self.best = (script, failure);
                true
            }
            _ => false,
        }
    }
}
