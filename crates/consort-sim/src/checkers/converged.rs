//! All replicas hold the same, to the byte; each one's digest says what it holds; and each reader gets the same version.

use std::collections::BTreeMap;

use consort_core::model::merge;
use consort_core::store::View;
use consort_core::store::memory::MemoryView;
use consort_core::{Digest, Dot, Fingerprint, Key, Version};

use super::causal::held;
use super::{Checked, Checker};
use crate::history::History;
use crate::node::NodeIndex;

/// Whether all summaries say the same.
pub(crate) fn say_the_same(mut views: impl Iterator<Item = MemoryView>) -> bool {
    let said = |view: MemoryView| (view.summary().digest, view.summary().frontier);
    let first = views.next().map(said);
    views.all(|view| Some(said(view)) == first)
}

/// Everything that a replica holds, by key, with what stands for the bytes; and what a reader of each key gets.
type Contents = BTreeMap<Key, (Vec<Fingerprint>, Option<Dot>)>;

/// Reads all replicas.
pub(crate) fn check(
    history: &History,
    replicas: impl Iterator<Item = (NodeIndex, MemoryView)>,
) -> Checked {
    let mut first: Option<(NodeIndex, Contents)> = None;
    for (node, view) in replicas {
        let contents = read(history, node, &view)?;
        match &first {
            None => first = Some((node, contents)),
            Some((_, other)) if *other == contents => {}
            Some((other, _)) => {
                let what = format!("{node} and {other} have the same digest, and differ");
                return Err(Checker::Converged.finds(what));
            }
        }
    }
    Ok(())
}

fn read(history: &History, node: NodeIndex, view: &MemoryView) -> Checked<Contents> {
    let wrong = |what: String| Err(Checker::Converged.finds(format!("{node}: {what}")));
    let rows = match view.scan("", None, usize::MAX) {
        Ok(rows) => rows,
        Err(error) => return wrong(error.to_string()),
    };
    let mut digest = Digest::default();
    let mut contents = Contents::new();
    for (key, stored) in rows {
        let held = held(history, view, &key)?;
        let versions: Vec<Version> = stored.into_iter().map(|stored| stored.version).collect();
        let winner = merge::winner(&versions).map(|version| version.dot);
        let expected = history.winner(&held).map(|version| history.known(version).dot);
        if winner != expected {
            return wrong(format!("a reader of {key} gets {winner:?}, not {expected:?}"));
        }
        let entry = |version| consort_core::Entry { key: key.clone(), version };
        let fingerprints: Vec<Fingerprint> =
            versions.into_iter().map(|version| history.fingerprint(&entry(version))).collect();
        fingerprints.iter().for_each(|fingerprint| digest.add(*fingerprint));
        contents.insert(key, (fingerprints, winner));
    }
    let said = view.summary().digest;
    if said != digest {
        return wrong(format!("it says to hold {said:?}, and holds {digest:?}"));
    }
    Ok(contents)
}
