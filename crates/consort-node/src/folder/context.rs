//! What an engine is given by whoever starts it: what it works on, and what it is told while it runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use consort_core::{DatasetId, OnConflict};
use consort_store::DiskStore;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::RootId;
use crate::content::Contents;

/// What an engine needs to know and to reach.
pub struct LinkContext {
    /// The dataset.
    pub dataset: DatasetId,
    /// Its name, for messages.
    pub name: String,
    /// What is shown of concurrent versions.
    pub on_conflict: OnConflict,
    /// The directory.
    pub dir: PathBuf,
    /// Which directory that is, if it was linked before: nothing is done in another one.
    pub id: Option<RootId>,
    /// Changes made in the directory are not taken in.
    pub read_only: bool,
    /// Threads that read files.
    pub workers: usize,
    /// Where versions and records are kept.
    pub store: DiskStore,
    /// Where bytes are had from.
    pub contents: Arc<Contents>,
    /// Called when changes of the directory are durable in the store.
    pub on_written: Box<dyn Fn() + Send + Sync>,
    /// Called when changes of others were put in place.
    pub on_applied: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for LinkContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LinkContext")
            .field("name", &self.name)
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

/// What is called when a flush is done.
pub(super) type OnFlushed = Box<dyn FnOnce() + Send>;

/// What is said to an engine.
pub(super) enum Input {
    /// Something is pending, or can be had now.
    Wake,
    /// Take in everything that was changed so far, then call this.
    Flush(OnFlushed),
    /// Let the deletions go that are held back.
    AllowMassDelete,
    /// End.
    Stop,
}

/// What is said to an engine, by whoever has it run. One wake at a time, and as many flushes as there are callers who wait for
/// one.
#[derive(Debug)]
pub(super) struct Inputs {
    sender: Sender<Input>,
    woken: Arc<AtomicBool>,
}

/// What is said to an engine, from its side.
pub(super) struct Inbox {
    /// Whoever takes a wake out calls [`on_wake`](Self::on_wake).
    pub(super) receiver: Receiver<Input>,
    woken: Arc<AtomicBool>,
}

impl Inputs {
    /// Both sides.
    pub(super) fn channel() -> (Self, Inbox) {
        let (sender, receiver) = unbounded();
        let woken = Arc::new(AtomicBool::new(false));
        (Self { sender, woken: Arc::clone(&woken) }, Inbox { receiver, woken })
    }

    /// Something is pending, or can be had now.
    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.send(Input::Wake);
        }
    }

    /// Says it, if anybody is still there.
    pub(super) fn send(&self, input: Input) {
        let _ = self.sender.send(input);
    }
}

impl Inbox {
    /// A wake was taken out; from now on another one is news.
    pub(super) fn on_wake(&self) {
        self.woken.store(false, Ordering::Release);
    }
}
