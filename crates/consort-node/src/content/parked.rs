//! Who asked for chunks that this node is just getting: it is told when they are here, and they are sent then without
//! being asked for again. So what is fetched by many flows from one to the next while it still arrives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::ChunkRef;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

/// Chunks that one connection may wait for: as many as a directory wants at a time. Each takes about 100 bytes.
const MAX_PARKED: usize = 4096;

/// All that connections wait for.
#[derive(Debug, Default)]
pub struct Parked(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    askers: HashMap<ChunkRef, Vec<Asker>>,
    /// How many chunks each seat waits for.
    counts: HashMap<u64, usize>,
    next_seat: u64,
}

#[derive(Debug)]
struct Asker {
    seat: u64,
    arrived: UnboundedSender<ChunkRef>,
}

/// What one connection waits for. It waits no more when this is dropped.
#[derive(Debug)]
pub struct Seat {
    all: Arc<Parked>,
    number: u64,
    arrived: UnboundedSender<ChunkRef>,
}

impl Parked {
    /// A connection, and what it is told: each chunk that it waited for and that has arrived.
    pub fn seat(self: &Arc<Self>) -> (Seat, UnboundedReceiver<ChunkRef>) {
        // Bounded by what may be parked.
        let (arrived, receiver) = mpsc::unbounded_channel();
        let number = {
            let mut state = self.lock();
            state.next_seat += 1;
            let number = state.next_seat;
            state.counts.insert(number, 0);
            number
        };
        (Seat { all: Arc::clone(self), number, arrived }, receiver)
    }

    /// A chunk can be read here from now on.
    pub fn arrived(&self, chunk: &ChunkRef) {
        for asker in self.take(chunk) {
            // The connection may have ended.
            let _ = asker.arrived.send(*chunk);
        }
    }

    /// A chunk does not come after all. Whoever waits for it is told nothing, and asks others in time.
    pub fn give_up(&self, chunk: &ChunkRef) {
        self.take(chunk);
    }

    fn take(&self, chunk: &ChunkRef) -> Vec<Asker> {
        let mut state = self.lock();
        let askers = state.askers.remove(chunk).unwrap_or_default();
        for asker in &askers {
            if let Some(count) = state.counts.get_mut(&asker.seat) {
                *count -= 1;
            }
        }
        askers
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// Waits for a chunk. False if it waits for as many as it may.
    pub fn park(&self, chunk: ChunkRef) -> bool {
        let mut state = self.all.lock();
        let State { askers, counts, .. } = &mut *state;
        let Some(count) = counts.get_mut(&self.number) else { return false };
        let is_mine = |asker: &Asker| asker.seat == self.number;
        if askers.get(&chunk).is_some_and(|askers| askers.iter().any(is_mine)) {
            return true;
        }
        if *count == MAX_PARKED {
            return false;
        }
        *count += 1;
        let asker = Asker { seat: self.number, arrived: self.arrived.clone() };
        askers.entry(chunk).or_default().push(asker);
        true
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.counts.remove(&self.number);
        state.askers.retain(|_, askers| {
            askers.retain(|asker| asker.seat != self.number);
            !askers.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(number: u32) -> ChunkRef {
        ChunkRef::to(&number.to_le_bytes())
    }

    #[test]
    fn who_waits_is_told_once_and_who_is_gone_is_forgotten() {
        let all = Arc::new(Parked::default());
        let ((a, mut told_a), (b, mut told_b)) = (all.seat(), all.seat());
        assert!(a.park(chunk(1)) && a.park(chunk(1)) && b.park(chunk(1)) && b.park(chunk(2)));
        drop(b);
        all.arrived(&chunk(1));
        all.arrived(&chunk(2));
        assert_eq!(told_a.try_recv(), Ok(chunk(1)));
        assert!(told_a.try_recv().is_err() && told_b.try_recv().is_err());
        assert!(all.lock().askers.is_empty());
    }

    #[test]
    fn nobody_waits_for_more_than_he_may() {
        let all = Arc::new(Parked::default());
        let (seat, _told) = all.seat();
        let most = u32::try_from(MAX_PARKED).unwrap();
        assert!((0..most).all(|number| seat.park(chunk(number))));
        assert!(!seat.park(chunk(most)));
        all.give_up(&chunk(0));
        assert!(seat.park(chunk(most)));
    }
}
