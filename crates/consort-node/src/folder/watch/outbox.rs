//! The way of events to the engine, bounded: what does not fit becomes one `Overflow`.

use std::collections::{HashSet, VecDeque};

use crossbeam_channel::{Sender, TrySendError};

use crate::folder::watch::WatchEvent;

/// Events on their way out. Nothing in here ever blocks.
#[derive(Debug)]
pub(super) struct Outbox {
    sender: Sender<WatchEvent>,
    /// Not yet offered to the channel: those of one read from the kernel.
    batch: Vec<WatchEvent>,
    seen: HashSet<WatchEvent>,
    /// Waits until the channel has room: at most one `Overflow`, and what may not be dropped.
    late: VecDeque<WatchEvent>,
}

/// Nobody receives any more.
#[derive(Debug)]
pub(super) struct Closed;

impl Outbox {
    pub(super) fn new(sender: Sender<WatchEvent>) -> Self {
        Self { sender, batch: Vec::new(), seen: HashSet::new(), late: VecDeque::new() }
    }

    /// Takes an event. One that is already in the unsent batch is dropped: whoever receives the
    /// first one looks after both have happened.
    pub(super) fn push(&mut self, event: WatchEvent) {
        if self.seen.insert(event.clone()) {
            self.batch.push(event);
        }
    }

    /// Whether something waits for room; flush again soon.
    pub(super) fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Sends what fits.
    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        self.seen.clear();
        while let Some(event) = self.late.pop_front() {
            match self.sender.try_send(event) {
                Ok(()) => {}
                Err(TrySendError::Full(event)) => {
                    self.late.push_front(event);
                    break;
                }
                Err(TrySendError::Disconnected(_)) => return Err(Closed),
            }
        }
        for event in std::mem::take(&mut self.batch) {
            if self.late.is_empty() {
                match self.sender.try_send(event) {
                    Ok(()) => {}
                    Err(TrySendError::Full(event)) => self.keep(event),
                    Err(TrySendError::Disconnected(_)) => return Err(Closed),
                }
            } else {
                self.keep(event);
            }
        }
        Ok(())
    }

    /// An `Overflow` that was not sent yet stands for every event that is dropped before it is
    /// received. The events that nothing can stand for come after it.
    fn keep(&mut self, event: WatchEvent) {
        let stands_for_itself = matches!(
            event,
            WatchEvent::Cookie { .. }
                | WatchEvent::Exhausted { .. }
                | WatchEvent::Complete
                | WatchEvent::RootGone
        );
        if stands_for_itself {
            self.late.push_back(event);
        } else if !self.late.contains(&WatchEvent::Overflow) {
            self.late.push_back(WatchEvent::Overflow);
        }
    }
}
