//! The pending rows once more, in memory, while they are few.
//!
//! These rows come and go, and those that are gone stay in the database as marks until they are compacted: whoever
//! looked there for the few that are left, after a directory of a million files has arrived, would step over a million
//! marks. What a pending row means stands in `layout.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::store::StoreError;

/// Rows that are kept in memory, of all datasets together: beyond that, their own number outweighs the marks.
pub(crate) const MAX_ROWS: usize = 1024;

/// Rows by their keys.
pub(crate) type PendingRows = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// All pending rows that are committed, or nothing while they are many or were not read yet.
#[derive(Default)]
pub(crate) struct FewPending(Mutex<Option<Arc<PendingRows>>>);

impl FewPending {
    /// The rows, if there are few. `read` gives the first ones of them in the database, at most as many as are asked for;
    /// it is called when they are not known.
    pub(crate) fn rows(
        &self,
        read: impl FnOnce(usize) -> Result<PendingRows, StoreError>,
    ) -> Result<Option<Arc<PendingRows>>, StoreError> {
        // What is committed while they are read waits for the lock, and is then told to `follow`: at worst once more.
        let mut known = self.lock();
        if known.is_none() {
            let rows = read(MAX_ROWS + 1)?;
            *known = (rows.len() <= MAX_ROWS).then(|| Arc::new(rows));
        }
        Ok(known.clone())
    }

    /// Takes over changes that are committed, in the order of their commits. `settle` shows the commit to others: whoever sees
    /// it finds these rows.
    pub(crate) fn follow<'a>(
        &self,
        changes: impl ExactSizeIterator<Item = (&'a [u8], Option<&'a [u8]>)>,
        settle: impl FnOnce(),
    ) {
        if changes.len() == 0 {
            return settle();
        }
        let mut known = self.lock();
        settle();
        let Some(rows) = known.as_mut().map(Arc::make_mut) else { return };
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key.into(), value.into()),
                None => rows.remove(key),
            };
            if MAX_ROWS < rows.len() {
                *known = None;
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<PendingRows>>> {
        // Nothing panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [(&[u8], Option<&[u8]>); 0] = [];

    fn read_nothing(_: usize) -> Result<PendingRows, StoreError> {
        Ok(PendingRows::new())
    }

    #[test]
    fn changes_are_followed_and_too_many_rows_are_forgotten() {
        let few = FewPending::default();
        // Nothing is known before the rows were read.
        few.follow([(&b"a"[..], Some(&b"1"[..]))].into_iter(), || ());
        let read = |_| Ok(PendingRows::from([(b"a"[..].into(), b"1"[..].into())]));
        assert_eq!(few.rows(read).unwrap().unwrap().len(), 1);
        let changes: [(&[u8], Option<&[u8]>); 3] =
            [(b"a", None), (b"b", Some(b"2")), (b"b", Some(b"3"))];
        few.follow(changes.into_iter(), || ());
        few.follow(NONE.into_iter(), || ());
        let rows = few.rows(|_| unreachable!("they are known")).unwrap().unwrap();
        assert_eq!(*rows, PendingRows::from([(b"b"[..].into(), b"3"[..].into())]));
        let keys: Vec<_> = (0_u32..).map(u32::to_be_bytes).take(MAX_ROWS).collect();
        few.follow(keys.iter().map(|key| (&key[..], Some(&b""[..]))), || ());
        assert_eq!(few.rows(read_nothing).unwrap().unwrap().len(), 0);
    }

    #[test]
    fn many_rows_are_not_kept() {
        let few = FewPending::default();
        let read = |most: usize| {
            let keys = (0_u32..).map(u32::to_be_bytes).take(most);
            Ok(keys.map(|key| (key[..].into(), [][..].into())).collect())
        };
        assert!(few.rows(read).unwrap().is_none());
    }
}
