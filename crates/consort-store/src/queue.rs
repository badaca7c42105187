//! The queue before the committer: bounded in jobs and in bytes; who puts into a full one waits.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs that may wait.
const MAX_JOBS: usize = 1024;
/// Bytes that the waiting jobs may take: a few of the largest commits. All of them share one batch, which takes
/// several times as much while it is made. A larger job waits until it is alone.
const MAX_BYTES: usize = 2 << 20;

/// A queue of jobs with their weights in bytes.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    jobs: VecDeque<(T, usize)>,
    bytes: usize,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State { jobs: VecDeque::new(), bytes: 0, closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<T> Queue<T> {
    /// Puts a job at the end, when there is room. Gives it back if the queue is closed.
    pub(crate) fn put(&self, job: T, weight: usize) -> Result<(), T> {
        let mut state = self.lock();
        while !state.closed && state.is_full(weight) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return Err(job);
        }
        state.jobs.push_back((job, weight));
        state.bytes += weight;
        self.changed.notify_all();
        Ok(())
    }

    /// Takes jobs from the front, as soon as there are any: as many as may go `together` with the first, in order.
    /// Empty when the queue is closed and all jobs were taken.
    pub(crate) fn take(&self, together: impl Fn(&T, &T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        while state.jobs.is_empty() && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let mut taken: Vec<T> = Vec::new();
        while let Some((job, _)) = state.jobs.front() {
            if taken.first().is_some_and(|first| !together(first, job)) {
                break;
            }
            let (job, weight) = state.jobs.pop_front().expect("there is a first one");
            state.bytes -= weight;
            taken.push(job);
        }
        self.changed.notify_all();
        taken
    }

    /// Lets nothing more in. What waits can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No code of others runs under this lock, and every change of the state is complete.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn is_full(&self, weight: usize) -> bool {
        let over = MAX_JOBS <= self.jobs.len() || MAX_BYTES < self.bytes + weight;
        over && !self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn who_puts_into_a_full_queue_waits_for_room() {
        let queue = Arc::new(Queue::default());
        queue.put(1, MAX_BYTES).expect("open");
        let putter = thread::spawn({
            let queue = Arc::clone(&queue);
            move || queue.put(2, 1)
        });
        let mut taken = Vec::new();
        while taken.len() < 2 {
            taken.extend(queue.take(|_, _| true));
        }
        assert_eq!(taken, [1, 2]);
        assert_eq!(putter.join().expect("no panic"), Ok(()));
    }

    #[test]
    fn a_closed_queue_gives_out_what_waits_and_takes_nothing() {
        let queue = Queue::default();
        queue.put(1, 1).expect("open");
        queue.close();
        assert_eq!(queue.put(2, 1), Err(2));
        assert_eq!(queue.take(|_, _| true), [1]);
        assert!(queue.take(|_, _| true).is_empty());
    }

    #[test]
    fn only_what_may_go_together_is_taken_together() {
        let queue = Queue::default();
        for job in [1, 1, 2, 1] {
            queue.put(job, 1).expect("open");
        }
        assert_eq!(queue.take(|a, b| a == b), [1, 1]);
        assert_eq!(queue.take(|a, b| a == b), [2]);
    }
}
