//! What others read while the store writes, and while its tables are written out and merged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use consort_core::store::{Sequence, View};

use crate::support::{DATASET, local, store, write};

/// Enough to fill the memory of the tables that they go to a few times.
const COMMITS: u64 = 150;
const VERSIONS: u64 = 400;

/// Tells that the writer has ended, however it did.
struct Ends<'d>(&'d AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_view_shows_all_of_a_commit_or_nothing_of_it() {
    let (_directory, store) = store();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ends = Ends(&done);
            for commit in 0..COMMITS {
                let writes = (0..VERSIONS).map(|number| {
                    write(&format!("a directory/of {commit}/file {number:06}"), &[7; 200])
                });
                store.commit(local(writes.collect())).expect("commits");
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut seen = 0;
                while !done.load(Ordering::Relaxed) {
                    let view = store.view(DATASET).expect("views");
                    let head = view.summary().head.sequence.0;
                    let rows = view.feed(Sequence(seen), usize::MAX).expect("reads");
                    let sequences: Vec<u64> = rows.iter().map(|row| row.sequence.0).collect();
                    assert_eq!(sequences, (seen + 1..=head).collect::<Vec<_>>());
                    seen = head;
                }
            });
        }
    });
}
