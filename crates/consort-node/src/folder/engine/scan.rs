//! Looking at everything: the directory and the records side by side, in key order.

use std::sync::Arc;

use consort_core::store::StoreError;
use consort_core::{Key, Kind};
use consort_store::{DiskStore, Record};

use super::look::Look;
use super::{Engine, Exit};
use crate::folder::context::LinkContext;
use crate::folder::ignores::IGNORE_FILE;
use crate::folder::{Walk, WalkEntry, WalkProblem, WalkProblemKind};

/// Entries of a scan between two looks at everything else.
const SCAN_SLICE: usize = 512;
/// Records that are read from the store at once.
const RECORDS_PAGE: usize = 1024;

impl Engine<'_> {
    /// Goes through the directory, or what is at and beneath `start`, side by side with the records.
    pub(super) fn scan(&mut self, start: Option<&Key>) -> Result<(), StoreError> {
        self.scanning = true;
        if !self.root.is_present() {
            self.end(Exit::RootGone);
            return Ok(());
        }
        if start.is_none() {
            // They may have come before the watcher began, or while it was overrun.
            self.check_ignores(IGNORE_FILE);
            if self.exit.is_some() {
                return Ok(());
            }
            let known = self.view()?.record_count().max(std::mem::take(&mut self.listed));
            self.progress.begin_scan(Some(known));
            self.progress.clear_problems();
            for problem in self.ignores.problems() {
                // Not under the path itself: as an entry, the file is all right.
                let line = format!("{IGNORE_FILE}, line {}", problem.line);
                let text = format!("it is not a pattern: {}", problem.message);
                self.progress.set_note(&line, text);
            }
        }
        // What was taken in just now and is gone again may stand on no page, also if it is durable by the end.
        let mut unlisted = self.commits.on_their_way(start);
        if let Some(start) = start {
            self.progress.clear_problems_beneath(start);
        }
        let (root, ignores) = (Arc::clone(&self.root), self.ignores.clone());
        let mut records = Records::new(start);
        let mut unknown: Vec<String> = Vec::new();
        let mut walked = 0;
        for entry in Walk::new(&root, &ignores, start.map(Key::as_str)) {
            match entry {
                Ok(WalkEntry { key, meta }) => {
                    let Ok(key) = Key::new(key) else { continue };
                    let mut record = self.missing_before(&mut records, Some(&key), &unknown)?;
                    // The page that it stands on may be older than what was taken in since.
                    if record.is_some() && !self.commits.are_as_of(records.as_of) {
                        self.settle_path(&key)?;
                        record = self.view()?.record(&key)?;
                    }
                    self.compare(key, meta, record, Look::SCAN)?;
                    if self.exit.is_some() {
                        break;
                    }
                }
                Err(problem) => self.on_walk_problem(problem, &mut unknown)?,
            }
            walked += 1;
            if walked % SCAN_SLICE == 0 {
                self.progress.add_scanned(SCAN_SLICE as u64);
                self.serve(false)?;
                if self.exit.is_some() {
                    break;
                }
            }
        }
        if self.exit.is_none() {
            self.missing_before(&mut records, None, &unknown)?;
            unlisted.extend(self.commits.on_their_way(start));
            for path in unlisted {
                if matches!(self.root.stat(&path), Ok(None)) {
                    self.on_missing(path)?;
                }
            }
        }
        self.progress.add_scanned((walked % SCAN_SLICE) as u64);
        // One that was cut short has not seen everything.
        self.scanning = self.exit.is_some();
        if start.is_none() && self.exit.is_none() {
            *self.left = None;
            self.progress.end_scan();
            self.progress.set_conflicts(records.conflicts);
            self.progress.set_trouble("overflow", None);
        }
        Ok(())
    }

    /// Passes the records before `key` (all, if none): what they name was not found. Returns the record of `key`.
    fn missing_before(
        &mut self,
        records: &mut Records,
        key: Option<&Key>,
        unknown: &[String],
    ) -> Result<Option<Record>, StoreError> {
        loop {
            let as_of = self.commits.as_of();
            let next = records.next_upto(&self.context.store, self.context, key, as_of)?;
            let Some((path, record)) = next else {
                return Ok(None);
            };
            if key == Some(&path) {
                return Ok(Some(record));
            }
            if self.is_ignored(&path, record.kind == Kind::Directory) {
                self.let_alone(path)?;
                continue;
            }
            let is_unknown = unknown.iter().any(|top| {
                top.is_empty()
                    || path.as_str() == top
                    || path.strip_prefix(top.as_str()).is_some_and(|rest| rest.starts_with('/'))
            });
            // It may have appeared after the walk had passed it.
            if !is_unknown && matches!(self.root.stat(&path), Ok(None)) {
                self.on_missing(path)?;
            }
        }
    }

    fn on_walk_problem(
        &mut self,
        problem: WalkProblem,
        unknown: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        if matches!(problem.kind, WalkProblemKind::Unreadable(_) | WalkProblemKind::OtherDevice) {
            unknown.push(problem.path.clone());
        }
        let text = problem.kind.to_string();
        let is_special = matches!(problem.kind, WalkProblemKind::SpecialFile);
        match Key::new(problem.path.as_str()) {
            Ok(key) if is_special && self.view()?.record(&key)?.is_none() => {
                self.progress.set_note(&problem.path, text);
            }
            _ => self.progress.set_problem(&problem.path, Some(text)),
        }
        Ok(())
    }
}

/// The records in key order, page by page, as of when each page is read.
struct Records {
    prefix: String,
    /// The record of the start itself comes before those beneath it.
    first: Option<Key>,
    after: Option<Key>,
    page: std::vec::IntoIter<(Key, Record)>,
    next: Option<(Key, Record)>,
    ended: bool,
    /// Which commits were done when the page was read.
    as_of: Option<u64>,
    /// Conflict copies among those that were passed.
    conflicts: u64,
}

impl Records {
    fn new(start: Option<&Key>) -> Self {
        let prefix = start.map_or_else(String::new, |start| format!("{start}/"));
        let (after, next, page) = (None, None, Vec::new().into_iter());
        let (ended, as_of, conflicts) = (false, None, 0);
        Self { prefix, first: start.cloned(), after, page, next, ended, as_of, conflicts }
    }

    /// The next record if it is not after `limit`.
    fn next_upto(
        &mut self,
        store: &DiskStore,
        context: &LinkContext,
        limit: Option<&Key>,
        as_of: Option<u64>,
    ) -> Result<Option<(Key, Record)>, StoreError> {
        if let Some(first) = self.first.take()
            && let Some(record) = store.view(context.dataset)?.record(&first)?
        {
            self.next = Some((first, record));
        }
        if self.next.is_none() {
            self.next = self.page.next();
        }
        if self.next.is_none() && !self.ended {
            let view = store.view(context.dataset)?;
            let page = view.records(&self.prefix, self.after.as_ref(), RECORDS_PAGE)?;
            self.as_of = as_of;
            self.ended = page.len() < RECORDS_PAGE;
            self.after = page.last().map(|(path, _)| path.clone()).or(self.after.take());
            self.page = page.into_iter();
            self.next = self.page.next();
        }
        let within = |(path, _): &mut (Key, Record)| limit.is_none_or(|limit| &*path <= limit);
        let next = self.next.take_if(within);
        self.conflicts += u64::from(next.as_ref().is_some_and(|(_, record)| record.key.is_some()));
        Ok(next)
    }
}
