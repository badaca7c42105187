//! What stood at a path before, as far as it helps to cut what stands there now. How it helps is in the core's
//! [`Follower`](consort_core::content::chunker::Follower).

use consort_core::content::manifest::{Step, Walk};
use consort_core::store::View as _;
use consort_core::{ChunkRef, Key};
use consort_store::DiskStore;

use super::Meta;
use super::index::{IndexError, Reading};

/// A file of so many bytes is cut by following its version before, if it has one: less is cut sooner than that is read.
const FOLLOW_BYTES: u64 = 1 << 20;

/// The chunks of what is recorded at the path of a file, if that may be followed and is worth it.
pub(super) fn earlier<'r>(
    reading: &Reading<'r>,
    path: &Key,
    meta: &Meta,
) -> Result<Option<Earlier<'r>>, IndexError> {
    if meta.size < FOLLOW_BYTES {
        return Ok(None);
    }
    let view = reading.store.view(reading.dataset).map_err(IndexError::Store)?;
    let record = view.record(path).map_err(IndexError::Store)?;
    let Some(record) = record.filter(|record| record.plain && FOLLOW_BYTES <= record.size) else {
        return Ok(None);
    };
    let siblings = view.siblings(record.key.as_ref().unwrap_or(path)).map_err(IndexError::Store)?;
    let shown = siblings.iter().find(|stored| stored.version.dot == record.dot);
    let walk = shown.map(|stored| Walk::new(&stored.version.content));
    Ok(walk.map(|walk| Earlier { store: reading.store, walk }))
}

/// The chunks of an earlier content, as far as its manifest is here.
pub(super) struct Earlier<'r> {
    store: &'r DiskStore,
    walk: Walk,
}

impl Iterator for Earlier<'_> {
    type Item = ChunkRef;

    fn next(&mut self) -> Option<ChunkRef> {
        loop {
            match self.walk.step() {
                Step::Chunk(_, chunk) => return Some(chunk),
                Step::Needs(node) => {
                    let places = self.store.locate(node.hash).ok()?;
                    let mut nodes = places
                        .iter()
                        .filter_map(|place| self.store.read_packed(place, node.hash).ok());
                    self.walk.enter(&nodes.next()?).ok()?;
                }
                Step::End => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use consort_core::ChunkHash;
    use consort_core::content::chunker::Chunker;
    use consort_core::store::LocalWrite;
    use consort_store::{Basis, Body, Record, RecordChange, Transaction};

    use super::super::index::tests::{DATASET, linked, noise};
    use super::super::index::{Cut, index};
    use super::super::record::record_of;
    use super::*;

    #[test]
    fn what_is_recorded_at_a_path_is_followed_if_this_node_has_cut_it_plainly() {
        let before = noise(2 << 20, 1);
        let after = [noise(1024, 2), before.clone()].concat();
        let (dir, root, store) = linked();
        let (file, key) = (dir.path().join("root/f"), Key::new("f").unwrap());
        std::fs::write(&file, &before).unwrap();
        let stopped = AtomicBool::new(false);
        let reading = Reading {
            root: &root,
            store: &store,
            dataset: DATASET,
            stopped: &stopped,
            is_alone: false,
        };
        let read =
            || index(&reading, key.clone(), root.stat("f").unwrap().unwrap(), &mut Cut::default());
        let chunks = || {
            let meta = root.stat("f").unwrap().unwrap();
            earlier(&reading, &key, &meta).unwrap().map(Iterator::collect::<Vec<_>>)
        };
        let first = read();
        assert!(first.plain);
        let content = first.outcome.unwrap();
        let found: Vec<_> = first.places.iter().map(|(hash, _)| *hash).collect();
        for plain in [false, true] {
            let mut transaction = Transaction::new(
                DATASET,
                Body::Local {
                    writes: vec![LocalWrite::new(key.clone(), content.clone())],
                    now: consort_core::WallTime(1),
                },
            );
            transaction.records.push(RecordChange::Put {
                path: key.clone(),
                record: Record { plain, ..record_of(&first.meta, &content, false) },
                version: Basis::Write(0),
            });
            store.commit(transaction).unwrap();
            let followed = chunks().map(|chunks| chunks.iter().map(|chunk| chunk.hash).collect());
            assert_eq!(followed, plain.then(|| found.clone()));
        }
        std::fs::write(&file, &after).unwrap();
        let followed = read();
        let found: Vec<_> = followed.places.iter().map(|(hash, _)| *hash).collect();
        let expected: Vec<_> = Chunker::default().chunks(&after).map(ChunkHash::of).collect();
        assert_eq!(found, expected);
        // What shows a format is not to be followed later.
        std::fs::write(&file, [b"PAR1", &before[..]].concat()).unwrap();
        assert!(!read().plain);
    }
}
