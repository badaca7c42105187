//! Bytes before versions: what was found in the directory is put on stable storage before a version that names it is.
//! A program that writes a file need not sync it. Were its version durable first, a power failure could leave the file
//! torn beside it, and what is torn would be taken for the next change, here and everywhere.
//!
//! A thread does that, in the order of the transactions, while the engine goes on. What waits is synced together.

use std::io;
use std::thread::JoinHandle;

use consort_core::Key;
use consort_core::store::{Applied, StoreError};
use consort_store::{DiskStore, Transaction};
use crossbeam_channel::{Receiver, Sender, unbounded};

/// Why a transaction was not made. Nothing of it was.
#[derive(Debug)]
pub(super) enum CommitError {
    /// The store did not take it.
    Store(StoreError),
    /// What it names cannot be made durable.
    Unsynced(String),
}

/// Told what became of a transaction, on another thread.
pub(super) type OnDone = Box<dyn FnOnce(Result<Applied, CommitError>) + Send>;

/// A transaction that is on its way to the store.
struct Order {
    /// Paths whose entries have to be durable first, there or gone.
    unsynced: Vec<Key>,
    transaction: Transaction,
    done: OnDone,
}

/// The thread, from outside. It ends when this is dropped, after everything that was submitted.
#[derive(Debug)]
pub(super) struct Syncer {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts the thread. `sync` makes entries durable.
    pub(super) fn start(
        store: DiskStore,
        sync: impl Fn(&[Key]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        // The engine bounds how many are on their way.
        let (orders, queue) = unbounded();
        let thread = std::thread::Builder::new()
            .name("sync".into())
            .spawn(move || run(&store, sync, &queue))?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Hands a transaction to the store as soon as these entries are durable.
    pub(super) fn submit(&self, unsynced: Vec<Key>, transaction: Transaction, done: OnDone) {
        // If the thread has ended, it was because of a panic, which was reported.
        let order = Order { unsynced, transaction, done };
        if let Some(orders) = &self.orders {
            let _ = orders.send(order);
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(store: &DiskStore, sync: impl Fn(&[Key]) -> io::Result<()>, queue: &Receiver<Order>) {
    while let Ok(first) = queue.recv() {
        let mut orders = vec![first];
        orders.extend(queue.try_iter());
        let unsynced: Vec<Key> =
            orders.iter().flat_map(|order| order.unsynced.iter().cloned()).collect();
        let synced = if unsynced.is_empty() { Ok(()) } else { sync(&unsynced) };
        for Order { unsynced, transaction, done } in orders {
            match &synced {
                Err(error) if !unsynced.is_empty() => {
                    done(Err(CommitError::Unsynced(error.to_string())));
                }
                _ => store.submit(transaction, |result| done(result.map_err(CommitError::Store))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use consort_core::model::merge::Saw;
    use consort_core::store::{DatasetParameters, LocalWrite, View};
    use consort_core::{Attributes, Content, DatasetId, FingerprintKey, WallTime};
    use consort_store::Body;

    use super::*;

    const DATASET: DatasetId = DatasetId([1; 16]);

    fn store() -> (tempfile::TempDir, DiskStore) {
        let home = tempfile::tempdir().unwrap();
        let store = DiskStore::open(&home.path().join("store")).unwrap();
        let fingerprint_key = FingerprintKey([0; 32]);
        store.open_dataset(DatasetParameters { id: DATASET, fingerprint_key }).unwrap();
        (home, store)
    }

    fn key(name: &str) -> Key {
        Key::new(name).unwrap()
    }

    fn write(name: &str) -> Transaction {
        let content = Content::Inline(name.as_bytes().into());
        let attributes = Attributes::default();
        let write = LocalWrite { key: key(name), saw: Saw::Nothing, content, attributes };
        Transaction::new(DATASET, Body::Local { writes: vec![write], now: WallTime(1) })
    }

    fn holds(store: &DiskStore, name: &str) -> bool {
        !store.view(DATASET).unwrap().siblings(&key(name)).unwrap().is_empty()
    }

    #[test]
    fn no_version_is_in_the_store_before_its_file_is_synced() {
        let (_home, store) = store();
        let (begun, is_begun) = unbounded();
        let (go, may_go) = unbounded::<()>();
        let synced = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&synced);
        let syncer = Syncer::start(store.clone(), move |paths| {
            begun.send(()).unwrap();
            may_go.recv().unwrap();
            log.lock().unwrap().extend_from_slice(paths);
            Ok(())
        })
        .unwrap();
        let (done, results) = unbounded();
        let submit = |name: &str| {
            let done = done.clone();
            let done = Box::new(move |result| done.send(result).unwrap());
            syncer.submit(vec![key(name)], write(name), done);
        };
        submit("a");
        is_begun.recv().unwrap();
        // These come while the first is synced, and are synced together.
        submit("b");
        submit("c");
        assert!(!holds(&store, "a"));
        go.send(()).unwrap();
        assert!(results.recv().unwrap().is_ok() && holds(&store, "a"));
        is_begun.recv().unwrap();
        assert!(!holds(&store, "b") && !holds(&store, "c"));
        go.send(()).unwrap();
        assert!(results.recv().unwrap().is_ok() && results.recv().unwrap().is_ok());
        assert_eq!(*synced.lock().unwrap(), [key("a"), key("b"), key("c")]);
        assert!(is_begun.is_empty());
    }

    #[test]
    fn what_cannot_be_synced_is_not_written() {
        let (_home, store) = store();
        let failing = |_: &[Key]| Err(io::Error::other("a broken disk"));
        let syncer = Syncer::start(store.clone(), failing).unwrap();
        let (done, results) = unbounded();
        syncer.submit(vec![key("a")], write("a"), Box::new(move |r| done.send(r).unwrap()));
        assert!(matches!(results.recv().unwrap(), Err(CommitError::Unsynced(_))));
        assert!(!holds(&store, "a"));
    }
}
