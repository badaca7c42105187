//! A version replaces exactly what its writer saw, on every replica that it reaches: no more, whatever the clocks say,
//! and no less.

use consort_core::model::{Frontier, canonical};
use consort_core::store::memory::MemoryView;
use consort_core::store::{Applied, LocalWrite, View, Written};
use consort_core::{Dot, Key};

use super::{Checked, Checker, Held};
use crate::history::{Expected, History, VersionIndex};

/// What a key holds.
pub(crate) fn held(history: &History, view: &MemoryView, key: &Key) -> Checked<Vec<VersionIndex>> {
    let siblings = view.siblings(key).map_err(|error| Checker::Causal.finds(error.to_string()))?;
    siblings.iter().map(|stored| find(history, key, stored.version.dot)).collect()
}

/// What these keys hold.
pub(crate) fn held_by<'k>(
    history: &History,
    view: &MemoryView,
    keys: impl Iterator<Item = &'k Key>,
) -> Checked<Held> {
    keys.map(|key| Ok((key.clone(), held(history, view, key)?))).collect()
}

/// A commit of the node's own was applied where `before` was held: every write became what it must, and saw what was
/// there. Takes down the new versions; returns them, and those that stand for a write.
pub(crate) fn local(
    history: &mut History,
    before: &Held,
    writes: &[LocalWrite],
    applied: &Applied,
    after: &MemoryView,
) -> Checked<Vec<VersionIndex>> {
    let mut expected = before.clone();
    let mut acknowledged = Vec::new();
    let mut added = applied.added.iter();
    for (write, written) in writes.iter().zip(&applied.written) {
        let held = expected.get_mut(&write.key).expect("every written key was looked at");
        match (history.foresee(held, write), *written) {
            (Expected::Nothing, Written::Nothing) => {}
            (Expected::Same(like), Written::Same(dot)) => {
                let same = find(history, &write.key, dot)?;
                if !like.contains(&same) {
                    return wrong(
                        &write.key,
                        format!("{dot:?} stands for a write that is not like it"),
                    );
                }
                acknowledged.push(same);
            }
            (Expected::New { mut beside, past }, Written::New(dot)) => {
                let new = added.next().map(|(entry, _)| entry);
                let Some(entry) = new.filter(|entry| entry.version.dot == dot) else {
                    return wrong(&write.key, format!("{dot:?} was written and not added"));
                };
                let mut bytes = Vec::new();
                canonical::encode_entry(entry, &mut bytes);
                let Some(index) = history.write(entry, bytes.len(), past) else {
                    return wrong(&write.key, format!("{dot:?} was written before"));
                };
                let claimed = |other: &&VersionIndex| {
                    let claims = entry.version.seen.contains(history.known(**other).dot);
                    let has_forgotten = history.has_forgotten(index, **other);
                    claims != (history.covers(index, **other) || has_forgotten)
                };
                if let Some(other) = history.of_key(&write.key).iter().find(claimed) {
                    let other = history.known(*other).dot;
                    let seen = &entry.version.seen;
                    return wrong(
                        &write.key,
                        format!("{dot:?} has {seen:?}: wrong about {other:?}"),
                    );
                }
                beside.push(index);
                *held = beside;
                acknowledged.push(index);
            }
            (expected, written) => {
                return wrong(
                    &write.key,
                    format!("{expected:?} must come of a write, but {written:?} did"),
                );
            }
        }
    }
    compare(history, &expected, after)?;
    Ok(acknowledged)
}

/// A commit from a peer was applied where `before` was held: what is there now is what no other version replaced. What
/// lies within the frontier was replaced by something that may be forgotten.
pub(crate) fn remote(
    history: &History,
    before: &Held,
    frontier: &Frontier,
    dots: &[(Key, Dot)],
    applied: &Applied,
    after: &MemoryView,
) -> Checked {
    let mut expected = before.clone();
    let mut stale = 0;
    for (key, dot) in dots {
        let incoming = find(history, key, *dot)?;
        let held = expected.get_mut(key).expect("every key was looked at");
        if frontier.contains(*dot) && !held.contains(&incoming) {
            if !history.accounts_for(held, incoming)
                && !history.may_be_forgotten(frontier, incoming)
            {
                return wrong(key, format!("{dot:?} is taken for dead, and nobody replaced it"));
            }
            stale += 1;
            continue;
        }
        stale += usize::from(!history.merge(held, incoming));
    }
    for (entry, _) in &applied.added {
        let known = history.known(find(history, &entry.key, entry.version.dot)?);
        if history.fingerprint(entry) != known.fingerprint {
            return wrong(&entry.key, format!("{:?} is not what was written", known.dot));
        }
    }
    if stale != applied.stale {
        let said = applied.stale;
        return Err(Checker::Causal.finds(format!("{stale} versions were known, not {said}")));
    }
    compare(history, &expected, after)
}

fn compare(history: &History, expected: &Held, view: &MemoryView) -> Checked {
    for (key, expected) in expected {
        let (mut held, mut expected) = (held(history, view, key)?, expected.clone());
        held.sort_unstable();
        expected.sort_unstable();
        if held != expected {
            let dots = |versions: &[VersionIndex]| -> Vec<Dot> {
                versions.iter().map(|version| history.known(*version).dot).collect()
            };
            let (held, expected) = (dots(&held), dots(&expected));
            return wrong(key, format!("holds {held:?} where {expected:?} must be"));
        }
    }
    Ok(())
}

fn find(history: &History, key: &Key, dot: Dot) -> Checked<VersionIndex> {
    let found = history.find(dot).filter(|version| history.known(*version).key == *key);
    found.ok_or_else(|| Checker::Causal.finds(format!("{key}: nobody wrote {dot:?}")))
}

fn wrong<T>(key: &Key, what: String) -> Checked<T> {
    Err(Checker::Causal.finds(format!("{key}: {what}")))
}
