//! What was written and what was taken away, and the proof that nothing was lost.
//!
//! # What is proved
//!
//! A value (the bytes of a file, or the target of a symlink) that was written at a path has to be there in the end, as
//! that path's winner or as one of its conflict copies, **unless somebody took it away knowingly**: replaced it, edited
//! it, renamed it or deleted it *where it was at that moment*, after it was written.
//!
//! So of concurrent writes each one has to survive: a writer who never had the other's value in front of him cannot
//! have taken it away. And what one writer wrote in sequence leaves the last value only, also when he continued from
//! what others had written meanwhile.
//!
//! # How it is known what somebody had in front of him
//!
//! Reading a file just before replacing it is not enough: the engine may put a newer version there in between, and
//! then a loss of it would be ours. So [`crate::operations`] never overwrites or deletes anything. What goes is *moved
//! away in one step* (exchanged with its replacement, or renamed out of the directory) into an **attic** beside the
//! directory, and what is in the attic in the end is exactly what was taken away. Even what the engine manages to put
//! into a directory that was just moved there counts as taken away, as it does for every user who moves one out.
//!
//! What cannot be done so is an edit in place. Its base is read through the file that is then written, whose content
//! the engine never changes; whether the result counts as written at the path is decided after: only if the path still
//! leads to that very file. If it does not, the engine may have moved the file, as when somebody else renamed it: what it
//! was is taken then from wherever it is. A rename inside the directory is read where it arrives, at a name that nobody else uses.
//!
//! # Where the rule is less strict than it could be
//!
//! - Below a directory that was renamed at any time, a value may be anywhere: what the engine had placed there under the
//!   old name in the same moment moved along, and was then renamed or removed under its new name.
//! - A value that was written in place, while the engine replaced the file, is not demanded: no file system tells who
//!   was first.
//! - Equal values at the same path are one value. All that are written here differ, except truncated ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::tree::{self, Entry};

/// All that was done, in order.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    records: Vec<Record>,
    /// The operations in words, for whoever has to find out how something was lost.
    journal: Vec<String>,
}

/// Something that happened to a value.
#[derive(Debug)]
struct Record {
    time: usize,
    what: What,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum What {
    /// The value was written at the path.
    Written(PathBuf, Value),
    /// Somebody who had this value in front of him took it from the path.
    Taken(PathBuf, Value),
    /// Somebody who had the file of this value open edited it, at whatever path it stood.
    Edited(Value),
    /// All that was at the path, and below it, went into the attic in one step.
    MovedAway(PathBuf, PathBuf),
    /// All that was below the path went to another path of the directory in one step.
    Renamed(PathBuf),
}

/// What is compared of a file or a symlink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Bytes([u8; 32]),
    Target(PathBuf),
}

impl Ledger {
    /// Notes what operation `time` did.
    pub(crate) fn record(&mut self, time: usize, what: What) {
        self.records.push(Record { time, what });
    }

    /// Notes an operation in words, its paths in quotation marks.
    pub(crate) fn note(&mut self, line: String) {
        self.journal.push(line);
    }

    pub(crate) fn records(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn journal(&self) -> &[String] {
        &self.journal
    }

    /// Checks that `directory`, with which all others are equal now, holds all that it has to.
    ///
    /// `elsewhere` is asked for a value that no path shows; it may know of versions that a directory cannot show.
    pub(crate) fn check(&self, directory: &Path, elsewhere: impl Fn(&Path) -> Vec<Vec<u8>>) {
        let mut present: BTreeMap<PathBuf, BTreeSet<Value>> = BTreeMap::new();
        for (path, value) in values_below(directory) {
            present.entry(original(&path)).or_default().insert(value);
        }
        let everywhere: BTreeSet<&Value> = present.values().flatten().collect();

        let mut taken: BTreeMap<(PathBuf, Value), usize> = BTreeMap::new();
        let mut written: BTreeMap<(PathBuf, Value), usize> = BTreeMap::new();
        let mut renamed = BTreeSet::new();
        let mut edited: BTreeMap<&Value, usize> = BTreeMap::new();
        for Record { time, what } in &self.records {
            match what {
                What::Written(path, value) => {
                    written.insert((original(path), value.clone()), *time);
                }
                What::Taken(path, value) => {
                    taken.insert((original(path), value.clone()), *time);
                }
                What::Edited(value) => {
                    edited.insert(value, *time);
                }
                What::MovedAway(path, attic) => {
                    for (below, value) in values_below(attic) {
                        taken.insert((original(&join(path, &below)), value), *time);
                    }
                }
                What::Renamed(path) => {
                    renamed.insert(path.clone());
                }
            }
        }
        let mut taken_anywhere: BTreeMap<&Value, usize> = BTreeMap::new();
        for ((_, value), time) in &taken {
            let latest = taken_anywhere.entry(value).or_default();
            *latest = (*latest).max(*time);
        }

        let mut missing = Vec::new();
        for ((path, value), time) in &written {
            let at = (path.clone(), value.clone());
            let is_moved = path.ancestors().any(|above| renamed.contains(above));
            // What is taken in the same operation was taken first: an operation takes, then writes.
            let is_taken = taken.get(&at).is_some_and(|taken| taken > time)
                || edited.get(value).is_some_and(|taken| taken > time)
                || is_moved && taken_anywhere.get(value).is_some_and(|taken| taken > time);
            let is_present = present.get(path).is_some_and(|values| values.contains(value))
                || is_moved && everywhere.contains(value);
            if is_taken || is_present {
                continue;
            }
            let is_known = elsewhere(path).iter().any(|bytes| match value {
                Value::Bytes(hash) => blake3::hash(bytes) == *hash,
                Value::Target(target) => target.as_os_str().as_encoded_bytes() == bytes,
            });
            if !is_known {
                missing.push(format!(
                    "{path:?}, written by operation {time}:\n{}",
                    self.story_of(path)
                ));
            }
        }
        assert!(
            missing.is_empty(),
            "{} values are lost that nobody took away knowingly:\n{}",
            missing.len(),
            missing.join("\n")
        );
    }

    /// How many values have been written, for a summary.
    pub(crate) fn written(&self) -> usize {
        self.records.iter().filter(|record| matches!(record.what, What::Written(..))).count()
    }

    /// The operations that name `path` or a directory above it.
    fn story_of(&self, path: &Path) -> String {
        let path = path.to_string_lossy();
        let names: Vec<String> = self
            .journal
            .iter()
            .filter(|line| {
                let named = line.split('"').skip(1).step_by(2);
                named.into_iter().any(|name| {
                    let name = original(Path::new(name));
                    path.starts_with(&*name.to_string_lossy())
                })
            })
            .cloned()
            .collect();
        names.join("\n")
    }
}

impl Value {
    pub(crate) fn of_bytes(bytes: &[u8]) -> Self {
        Self::Bytes(*blake3::hash(bytes).as_bytes())
    }

    /// The value of the file or symlink at `path`.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        Ok(if fs::symlink_metadata(path)?.is_symlink() {
            Self::Target(fs::read_link(path)?)
        } else {
            Self::Bytes(*tree::hash_of(path)?.as_bytes())
        })
    }
}

/// The values of all files and symlinks below a directory, or of the one file that it is.
pub(crate) fn values_below(path: &Path) -> Vec<(PathBuf, Value)> {
    if let Ok(meta) = fs::symlink_metadata(path)
        && !meta.is_dir()
    {
        return Value::at(path).into_iter().map(|value| (PathBuf::new(), value)).collect();
    }
    let tree = tree::read(path).into_iter();
    let values = tree.filter_map(|(path, entry)| match entry {
        Entry::File { hash, .. } => Some((path, Value::Bytes(*hash.as_bytes()))),
        Entry::Symlink { target, .. } => Some((path, Value::Target(target))),
        Entry::Directory { .. } | Entry::Other => None,
    });
    values.collect()
}

/// `path` itself for an empty `below`, without the slash that `join` would add.
fn join(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_path_buf() } else { path.join(below) }
}

/// What a conflict copy's name has between the name and the extension: this, eight digits of the author, a time such as
/// `20261123T021530.123`, and perhaps a number.
const MARK: &str = ".conflict-";

/// The path of which this one may be a conflict copy: `name.conflict-AUTHOR-TIME.ext` is one of `name.ext`, in every
/// component, as a conflict copy may have been replaced by a directory since.
fn original(path: &Path) -> PathBuf {
    path.components()
        .map(|component| {
            let name = component.as_os_str().to_string_lossy();
            let mut name = name.into_owned();
            let mut from = 0;
            while let Some(found) = name[from..].find(MARK) {
                let at = from + found;
                match mark_length(&name[at..]) {
                    // A copy of a copy has its mark within the other's.
                    Some(length) => {
                        name.replace_range(at..at + length, "");
                        from = 0;
                    }
                    None => from = at + MARK.len(),
                }
            }
            name
        })
        .collect()
}

/// The length of the mark that `text` begins with, if it is whole.
fn mark_length(text: &str) -> Option<usize> {
    let is_digits = |part: &str, length: usize, also: &str| {
        part.len() == length && part.chars().all(|c| c.is_ascii_hexdigit() || also.contains(c))
    };
    let (author, time) = (MARK.len(), MARK.len() + 9);
    let end = time + "20261123T021530.123".len();
    let is_mark = is_digits(text.get(author..time - 1)?, 8, "")
        && text.get(time - 1..time)? == "-"
        && is_digits(text.get(time..end)?, end - time, "T.");
    let number = text.get(end..)?.strip_prefix('-').unwrap_or_default();
    let digits = number.bytes().take_while(u8::is_ascii_digit).count();
    is_mark.then_some(if digits == 0 { end } else { end + 1 + digits })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_was_edited_where_it_had_moved_to_is_not_missed() {
        let (directory, value) = (tempfile::tempdir().unwrap(), Value::of_bytes(b"value"));
        let mut ledger = Ledger::default();
        ledger.record(1, What::Written("moved".into(), value.clone()));
        let is_missed = |ledger: &Ledger| {
            let check = || ledger.check(directory.path(), |_| Vec::new());
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(check)).is_err()
        };
        assert!(is_missed(&ledger));
        ledger.record(2, What::Edited(value));
        assert!(!is_missed(&ledger));
    }

    #[test]
    fn conflict_copies_count_for_their_original() {
        for (copy, of) in [
            ("a/b.conflict-01234567-20261123T021530.123.txt", "a/b.txt"),
            ("b.conflict-89abcdef-20261123T021530.123", "b"),
            ("b.conflict-89abcdef-20261123T021530.123-7", "b"),
            (
                "b.conflict-89abcdef-20261123T021530.123-7.conflict-01234567-20261123T021530.123.txt",
                "b.txt",
            ),
            (
                "b.conflict-89abcdef-20261123T021530.conflict-01234567-20261123T021530.123.123-7",
                "b",
            ),
            ("plain.txt", "plain.txt"),
            ("my.conflict-notes.txt", "my.conflict-notes.txt"),
        ] {
            assert_eq!(original(Path::new(copy)), Path::new(of));
        }
    }
}
