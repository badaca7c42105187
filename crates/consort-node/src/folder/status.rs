//! What people are told about a linked directory: numbers that its threads keep, and problems in words. How fast
//! content comes is worked out in `status/rate.rs`.

mod rate;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use self::rate::Rate;
use super::PlaceError;

/// Problems that are kept for showing.
pub(crate) const MAX_PROBLEMS: usize = 100;

/// What stands in the way of a directory, the gravest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The node can do nothing for the directory until somebody does something.
    Paused(String),
    /// It works, but not as it should.
    Degraded(String),
}

/// The numbers and problems of one linked directory. Until its first scan is over, one is on.
#[derive(Debug)]
pub struct Progress {
    scanning: AtomicBool,
    scanned: AtomicU64,
    /// Zero if it is not known.
    to_scan: AtomicU64,
    waiting: AtomicBool,
    underway: AtomicU64,
    unsettled: AtomicU64,
    conflicts: AtomicU64,
    texts: Mutex<Texts>,
}

#[derive(Debug, Default)]
struct Texts {
    /// By what caused it, so that each cause can be taken back.
    troubles: BTreeMap<&'static str, Trouble>,
    /// By path.
    problems: BTreeMap<String, Problem>,
    /// There were more problems than are kept: only a scan finds out which are left.
    more: bool,
    rate: Rate,
}

/// What is to be said of an entry.
#[derive(Debug)]
struct Problem {
    text: String,
    /// The directory and the dataset are not the same because of it.
    differs: bool,
}

/// A scan that is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Entries that it has looked at.
    pub done: u64,
    /// About how many there are, if that is known.
    pub total: Option<u64>,
}

/// Bytes that were written for versions that are not in place yet. They count until this is dropped.
#[derive(Debug)]
pub(super) struct Underway {
    progress: Arc<Progress>,
    bytes: u64,
}

impl Underway {
    /// None yet.
    pub(super) fn new(progress: &Arc<Progress>) -> Self {
        Self { progress: Arc::clone(progress), bytes: 0 }
    }

    /// More were written.
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.progress.underway.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Those of another version come to it.
    pub(super) fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// How many.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.progress.underway.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Default for Progress {
    fn default() -> Self {
        let (scanning, scanned, to_scan) = (AtomicBool::new(true), 0.into(), 0.into());
        let (waiting, underway) = (AtomicBool::new(false), 0.into());
        let (unsettled, conflicts, texts) = (0.into(), 0.into(), Mutex::default());
        Self { scanning, scanned, to_scan, waiting, underway, unsettled, conflicts, texts }
    }
}

impl Progress {
    /// A scan begins, of about so many entries if that is known.
    pub fn begin_scan(&self, total: Option<u64>) {
        self.scanned.store(0, Ordering::Relaxed);
        self.to_scan.store(total.unwrap_or_default(), Ordering::Relaxed);
        self.scanning.store(true, Ordering::Relaxed);
    }

    /// The scan is over.
    pub fn end_scan(&self) {
        self.scanning.store(false, Ordering::Relaxed);
    }

    /// The scan that is on.
    pub fn scan(&self) -> Option<Scan> {
        let done = self.scanned.load(Ordering::Relaxed);
        let total = Some(self.to_scan.load(Ordering::Relaxed)).filter(|total| *total != 0);
        let scan = Scan { done, total: total.map(|total| total.max(done)) };
        self.scanning.load(Ordering::Relaxed).then_some(scan)
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

    /// Bytes of pending versions that were written already, though the directory does not show them yet.
    pub fn underway(&self) -> u64 {
        self.underway.load(Ordering::Relaxed)
    }

    /// Content came from a peer. What is copied on this machine does not count: it goes so much faster that it says nothing of
    /// when the rest will be here.
    pub fn came(&self, bytes: usize) {
        self.texts().rate.add(bytes as u64, Instant::now());
    }

    /// Something is to come after nothing was: the silence before is none of its time.
    pub fn begins(&self) {
        self.texts().rate = Rate::default();
    }

    /// Content that comes from peers, in bytes per second lately; zero if nothing does, or it is not known yet.
    pub fn rate(&self) -> u64 {
        self.texts().rate.bytes_per_second(Instant::now())
    }

    /// Something stands in the way, for this cause; `None` takes it back.
    pub fn set_trouble(&self, cause: &'static str, trouble: Option<Trouble>) {
        let mut texts = self.texts();
        let known = texts.troubles.get(cause) == trouble.as_ref();
        if let Some(trouble) = trouble {
            if !known {
                let (Trouble::Paused(reason) | Trouble::Degraded(reason)) = &trouble;
                tracing::warn!(cause, reason, "a linked directory is in trouble");
            }
            texts.troubles.insert(cause, trouble);
        } else if texts.troubles.remove(cause).is_some() {
            tracing::info!(cause, "the trouble is over");
        }
    }

    /// Nothing goes on until somebody does something about this.
    pub fn pause(&self, cause: &'static str, reason: &str) {
        self.set_trouble(cause, Some(Trouble::Paused(reason.to_owned())));
    }

    /// The same for what is over in a moment as a rule: it is told, but not logged.
    pub(super) fn pause_quietly(&self, cause: &'static str, reason: &str) {
        self.texts().troubles.insert(cause, Trouble::Paused(reason.to_owned()));
    }

    /// The store failed: nothing goes on until the node is started again.
    pub fn fail(&self, reason: String) {
        self.pause("store", &reason);
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
            self.pause("disk", text);
        }
    }

    /// An entry that cannot be shown, or not be taken in, and why; `None` takes it back.
    pub fn set_problem(&self, path: &str, problem: Option<String>) {
        match problem {
            Some(text) => self.add_problem(path, Problem { text, differs: true }),
            None => drop(self.texts().problems.remove(path)),
        }
    }

    /// Something is left alone, and nothing is missing anywhere because of that.
    pub fn set_note(&self, path: &str, text: String) {
        self.add_problem(path, Problem { text, differs: false });
    }

    fn add_problem(&self, path: &str, problem: Problem) {
        let Texts { problems, more, .. } = &mut *self.texts();
        let is_full = MAX_PROBLEMS <= problems.len() && !problems.contains_key(path);
        let note =
            problems.iter().find(|(_, problem)| !problem.differs).map(|(path, _)| path.clone());
        match note {
            Some(note) if is_full && problem.differs => drop(problems.remove(&note)),
            _ if is_full => {
                *more |= problem.differs;
                return;
            }
            _ => {}
        }
        problems.insert(path.to_owned(), problem);
    }

    /// Forgets the problems: a scan will find those that are left.
    pub fn clear_problems(&self) {
        let mut texts = self.texts();
        (texts.more, texts.problems) = (false, BTreeMap::new());
    }

    /// The same for what is at and beneath a path.
    pub fn clear_problems_beneath(&self, start: &str) {
        let is_beneath = |path: &str| {
            path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.texts().problems.retain(|path, _| !is_beneath(path));
    }

    /// Whether a scan has to find out what is left of more problems than are kept.
    pub fn lost_sight(&self) -> bool {
        let texts = self.texts();
        texts.more && !texts.problems.values().any(|problem| problem.differs)
    }

    /// The problems and notes, each as `path: what it is`.
    pub fn problems(&self) -> Vec<String> {
        self.texts().problems.iter().map(described).collect()
    }

    /// Whether all these entries are problems.
    pub fn are_problems<'k>(&self, mut paths: impl Iterator<Item = &'k str>) -> bool {
        let texts = self.texts();
        paths.all(|path| texts.problems.get(path).is_some_and(|problem| problem.differs))
    }

    /// What keeps the directory from being what the dataset is, though nothing more is to come; in words.
    pub fn difference(&self) -> Option<String> {
        let texts = self.texts();
        let mut differing = texts.problems.iter().filter(|(_, problem)| problem.differs);
        let first = described(differing.next()?);
        Some(match differing.count() {
            0 => first,
            others => {
                let than = if texts.more { "more than " } else { "" };
                format!("{first} (and {than}{others} more)")
            }
        })
    }

    fn texts(&self) -> MutexGuard<'_, Texts> {
        self.texts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn described((path, problem): (&String, &Problem)) -> String {
    // A name may hold anything.
    let mut described = String::new();
    for c in path.chars() {
        if c.is_control() {
            described.extend(c.escape_unicode());
        } else {
            described.push(c);
        }
    }
    described + ": " + &problem.text
}
