//! What people are told about a linked directory: numbers that its threads keep, and problems in words.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::PlaceError;

/// Problems that are kept for showing.
const MAX_PROBLEMS: usize = 100;

/// What stands in the way of a directory, the gravest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The node can do nothing for the directory until somebody does something.
    Paused(String),
    /// It works, but not as it should.
    Degraded(String),
}

/// The numbers and problems of one linked directory.
#[derive(Debug, Default)]
pub struct Progress {
    scanning: AtomicBool,
    scanned: AtomicU64,
    waiting: AtomicBool,
    received: AtomicU64,
    unsettled: AtomicU64,
    conflicts: AtomicU64,
    texts: Mutex<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    /// By what caused it, so that each cause can be taken back.
    troubles: BTreeMap<&'static str, Trouble>,
    /// By path.
    problems: BTreeMap<String, String>,
    rate: Rate,
}

/// Bytes per second over the last few seconds.
#[derive(Debug, Default)]
struct Rate {
    since: Option<(Instant, u64)>,
    bytes_per_second: u64,
}

impl Progress {
    /// A scan began or ended.
    pub fn set_scanning(&self, scanning: bool) {
        if scanning {
            self.scanned.store(0, Ordering::Relaxed);
        }
        self.scanning.store(scanning, Ordering::Relaxed);
    }

    /// Whether a scan is on, and how many entries it has looked at.
    pub fn scan(&self) -> (bool, u64) {
        (self.scanning.load(Ordering::Relaxed), self.scanned.load(Ordering::Relaxed))
    }

    /// The scan has looked at more entries.
    pub fn add_scanned(&self, entries: u64) {
        self.scanned.fetch_add(entries, Ordering::Relaxed);
    }

    /// Something pending cannot be had at the moment.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// Whether something pending cannot be had at the moment.
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Entries that changed in the directory and are not in the store yet.
    pub fn set_unsettled(&self, entries: u64) {
        self.unsettled.store(entries, Ordering::Relaxed);
    }

    /// See [`set_unsettled`](Self::set_unsettled).
    pub fn unsettled(&self) -> u64 {
        self.unsettled.load(Ordering::Relaxed)
    }

    /// Conflict copies that are in the directory, as a scan has counted them.
    pub fn set_conflicts(&self, copies: u64) {
        self.conflicts.store(copies, Ordering::Relaxed);
    }

    /// A conflict copy came, or went.
    pub fn count_conflict(&self, came: bool) {
        let _ = self.conflicts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |copies| {
            if came { Some(copies + 1) } else { copies.checked_sub(1) }
        });
    }

    /// See [`set_conflicts`](Self::set_conflicts).
    pub fn conflicts(&self) -> u64 {
        self.conflicts.load(Ordering::Relaxed)
    }

    /// Content arrived.
    pub fn add_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Content that arrived, in bytes per second lately.
    pub fn rate(&self) -> u64 {
        let (now, received) = (Instant::now(), self.received.load(Ordering::Relaxed));
        let rate = &mut self.texts().rate;
        match rate.since {
            Some((since, before)) if 1 <= now.duration_since(since).as_secs() => {
                let ms = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX);
                rate.bytes_per_second = (received - before).saturating_mul(1000) / ms;
                rate.since = Some((now, received));
            }
            Some(_) => {}
            None => rate.since = Some((now, received)),
        }
        rate.bytes_per_second
    }

    /// Something stands in the way, for this cause; `None` takes it back.
    pub fn set_trouble(&self, cause: &'static str, trouble: Option<Trouble>) {
        let mut texts = self.texts();
        let known = texts.troubles.get(cause) == trouble.as_ref();
        if let Some(trouble) = trouble {
            if !known {
                tracing::warn!(cause, ?trouble, "a linked directory is in trouble");
            }
            texts.troubles.insert(cause, trouble);
        } else if texts.troubles.remove(cause).is_some() {
            tracing::info!(cause, "the trouble is over");
        }
    }

    /// The store failed: nothing goes on until the node is started again.
    pub fn fail(&self, reason: String) {
        self.set_trouble("store", Some(Trouble::Paused(reason)));
    }

    /// The gravest trouble.
    pub fn trouble(&self) -> Option<Trouble> {
        self.texts().troubles.values().min().cloned()
    }

    /// Takes note of an error that concerns the directory as a whole, if it does.
    pub fn report_place_error(&self, error: &PlaceError) {
        if matches!(error, PlaceError::DiskFull) {
            let text =
                "the disk of the linked directory is full; make room, the rest follows by itself";
            self.set_trouble("disk", Some(Trouble::Paused(text.to_owned())));
        }
    }

    /// An entry that cannot be shown, or not be taken in, and why; `None` takes it back.
    pub fn set_problem(&self, path: &str, problem: Option<String>) {
        let mut texts = self.texts();
        match problem {
            Some(problem) if texts.problems.len() < MAX_PROBLEMS => {
                texts.problems.insert(path.to_owned(), problem);
            }
            Some(_) => {}
            None => {
                texts.problems.remove(path);
            }
        }
    }

    /// Forgets the problems: a scan will find those that are left.
    pub fn clear_problems(&self) {
        self.texts().problems.clear();
    }

    /// The problems, each as `path: what it is`.
    pub fn problems(&self) -> Vec<String> {
        self.texts().problems.iter().map(|(path, problem)| format!("{path}: {problem}")).collect()
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
