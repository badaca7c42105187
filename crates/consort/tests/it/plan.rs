//! `consort plan`: a table, a document and a picture of the same forecasts.

use std::fs;

use serde_json::Value;

use crate::{consort, stderr, stdout};

#[test]
fn a_plan_is_a_table_a_document_and_a_picture() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let svg = place.path().join("plan.svg");
    let svg = svg.to_str().expect("UTF-8");
    let args = ["plan", "--nodes", "4,12", "--duration", "2s", "--failures", "10%", "--svg", svg];

    let output = consort(place.path(), &args);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    // How many writes there are depends on which node fails.
    assert!(text.contains("4 nodes: all have the 40 writes"), "{text}");
    assert!(text.contains("12 nodes: all have the "), "{text}");

    let picture = fs::read_to_string(svg).expect("it was drawn");
    assert!(picture.starts_with("<svg ") && picture.trim_end().ends_with("</svg>"));
    assert!(picture.contains(">12 nodes<") && !picture.contains("NaN"), "{picture}");

    let output = consort(place.path(), &[&args[..], &["--json"]].concat());
    let document: Value = serde_json::from_str(stdout(&output)).expect("one JSON document");
    let forecasts = document["forecasts"].as_array().expect("a list");
    assert_eq!(forecasts.len(), 2);
    for forecast in forecasts {
        assert_eq!(forecast["converged"], true);
        assert!(1.0 <= forecast["copies"].as_f64().expect("a number"), "{forecast}");
    }
}

#[test]
fn a_plan_that_makes_no_sense_is_wrong_usage() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for wrong in [
        &["--nodes", "1"][..],
        &["--size", "1MiB"],
        &["--link-speed", "fast"],
        &["--loss", "200%"],
        &["--degree", "5..3"],
        &["--duration", "1ms"],
    ] {
        let output = consort(place.path(), &[&["plan"][..], wrong].concat());
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", stderr(&output));
    }
}
