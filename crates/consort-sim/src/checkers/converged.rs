//! All replicas hold the same, to the byte; each one's digest and live index say what it holds; and each reader gets the
//! same version.

use std::collections::BTreeMap;

use consort_core::reconcile::Index;
use consort_core::store::View;
use consort_core::store::memory::MemoryView;
use consort_core::{Digest, Dot, Fingerprint, Key, OnConflict, Version};

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

/// Everything that a replica holds, by key, with what stands for the bytes; and what a reader of each key gets under
/// each policy, the winner first.
type Contents = BTreeMap<Key, (Vec<Fingerprint>, [Vec<Dot>; OnConflict::ALL.len()])>;

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
        let shown = OnConflict::ALL.map(|policy| shown(policy, &versions));
        // Nothing in a run is synthetic, so the winner is the same under all of them.
        let winner = shown[0].first().copied();
        let expected = history.winner(&held).map(|version| history.known(version).dot);
        if shown.iter().any(|shown| shown.first().copied() != expected) {
            return wrong(format!("a reader of {key} gets {winner:?}, not {expected:?}"));
        }
        let entry = |version| consort_core::Entry { key: key.clone(), version };
        let fingerprints: Vec<Fingerprint> =
            versions.into_iter().map(|version| history.fingerprint(&entry(version))).collect();
        fingerprints.iter().for_each(|fingerprint| digest.add(*fingerprint));
        contents.insert(key, (fingerprints, shown));
    }
    let said = view.summary().digest;
    if said != digest {
        return wrong(format!("it says to hold {said:?}, and holds {digest:?}"));
    }
    let mut index = Index::with_symbols(view.index().symbols());
    let all = contents.values().flat_map(|(fingerprints, _)| fingerprints);
    all.for_each(|fingerprint| index.add(*fingerprint));
    if *view.index() != index || index.is_short() {
        return wrong("its live index is not that of what it holds".to_owned());
    }
    Ok(contents)
}

fn shown(policy: OnConflict, versions: &[Version]) -> Vec<Dot> {
    let losers = policy.losers(versions);
    policy.winner(versions).into_iter().chain(losers).map(|version| version.dot).collect()
}
