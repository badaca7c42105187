//! The simulator itself: that its runs can be repeated, that nothing is found in a few of each scenario, and that a
//! run which fails becomes shorter. That the checkers can fail at all is shown by `mutations/run`.

use std::time::Duration;

use consort_sim::plan::{Deployment, MAX_SIZE, PlanError, simulate};
use consort_sim::shrink::shrink;
use consort_sim::{Checker, Failure, Scenario, Script, Trace, examine, examine_members, scenario};

fn traced(scenario: &Scenario, seed: u64) -> String {
    let script = Script::draw(seed, scenario);
    let mut lines = Vec::new();
    let result = examine(scenario, &script, Trace::to(&mut lines));
    String::from_utf8(lines).expect("it is text") + &format!("{result:?}")
}

#[test]
fn two_runs_of_a_seed_are_the_same_to_the_letter() {
    for name in ["all", "churn", "clocks", "splits"] {
        let scenario = scenario::named(name).expect("it is in the table");
        for seed in 0..3 {
            assert_eq!(traced(scenario, seed), traced(scenario, seed), "{name} {seed}");
        }
    }
    let all = scenario::named("all").expect("it is in the table");
    assert_ne!(traced(all, 1), traced(all, 2));
}

#[test]
fn nothing_is_found_in_a_few_runs_of_each_scenario() {
    for scenario in scenario::ALL {
        let seeds = if matches!(scenario.name, "mesh" | "flood" | "flaky") { 1 } else { 6 };
        for seed in 100..100 + seeds {
            let result = examine(scenario, &Script::draw(seed, scenario), Trace::off());
            assert!(result.is_ok(), "{} {seed}: {result:?}", scenario.name);
        }
    }
}

#[test]
fn a_plan_is_the_same_each_time_and_costs_each_node_about_what_was_written() {
    let deployment = Deployment { nodes: 60, ..Deployment::default() };
    let forecast = simulate(&deployment, &mut |_| {}).expect("every node converges");
    assert_eq!(simulate(&deployment, &mut |_| {}).as_ref(), Ok(&forecast));
    assert!((1.0..1.2).contains(&forecast.copies), "{} copies of each version", forecast.copies);
    let bytes = forecast.received.mean_bytes / forecast.version_bytes as f64;
    assert!(bytes < 1.3, "{bytes} times what was written");
    assert!(forecast.hops.p99 < 20, "{:?}", forecast.hops);
}

#[test]
fn a_plan_that_makes_no_sense_says_so() {
    for unfit in [
        Deployment { nodes: 1, ..Deployment::default() },
        Deployment { writes_per_second: 0.0, ..Deployment::default() },
        Deployment { size: MAX_SIZE + 1, ..Deployment::default() },
        Deployment { degree: (4, 3), ..Deployment::default() },
    ] {
        let refused = simulate(&unfit, &mut |_| {});
        assert!(matches!(refused, Err(PlanError::Unfit(_))), "{refused:?}");
    }
}

#[test]
fn members_find_each_other_again_after_whatever_happened() {
    for (seed, nodes) in [(0, 3), (1, 8), (2, 14), (3, 25)] {
        let result = examine_members(seed, Some(nodes), Trace::off());
        assert!(result.is_ok(), "{seed}: {result:?}");
        if nodes < 10 {
            assert_eq!(result, examine_members(seed, Some(nodes), Trace::off()));
        }
    }
}

#[test]
fn a_run_that_fails_is_made_shorter_and_still_fails() {
    // Nothing can be the same at once, so whatever is not yet everywhere in the end is a failure.
    let all = scenario::named("crashes").expect("it is in the table");
    let scenario = Scenario { converges_within: Duration::ZERO, ..*all };
    let failing = (0..).find_map(|seed| {
        let script = Script::draw(seed, &scenario);
        examine(&scenario, &script, Trace::off()).err().map(|failure| (script, failure))
    });
    let (script, failure) = failing.expect("one of all seeds fails");
    let before = script.size();
    let (script, failure) = shrink(&scenario, script, failure);
    let Failure::Violated(violation) = failure else { panic!("it does not crash: {failure}") };
    assert_eq!(violation.checker, Checker::Live);
    assert!(script.size().0 <= before.0 && script.size().1 < before.1 / 2, "{:?}", script.size());
}

#[test]
fn scenarios_have_names_of_their_own() {
    for (place, scenario) in scenario::ALL.iter().enumerate() {
        let first = scenario::ALL.iter().position(|other| other.name == scenario.name);
        assert_eq!(first, Some(place));
    }
}
