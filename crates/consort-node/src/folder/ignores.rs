//! Which keys the user wants left alone: `.consortignore` at the top of the linked directory, in
//! the syntax of `.gitignore`. Files of that name in subdirectories are ordinary files: one place
//! to look is worth more than git's layering.
//!
//! The set is immutable once loaded. When the file changes, load a new one, start a new watcher
//! with it, and scan.

use std::io::{self, Read};
use std::sync::Arc;

use consort_core::DatasetId;
use consort_store::DiskStore;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

use crate::folder::{Meta, PRIVATE_DIR, Root};

/// The key of the file with the patterns.
pub(super) const IGNORE_FILE: &str = ".consortignore";

/// The largest file of patterns, in bytes. It arrives from peers like any other file, and each
/// pattern becomes part of an automaton: this bounds what they can make us build.
pub(super) const MAX_IGNORE_FILE_BYTES: u64 = 64 * 1024;

/// Braces that are opened in one line. Each may lie within the one before, and what is nested deeper than a regular
/// expression may be makes all patterns unusable; still deeper, it exhausts the stack.
const MAX_BRACES: usize = 64;

/// The patterns of one linked directory. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ignores {
    inner: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    patterns: Gitignore,
    /// The hash of the text; none for no patterns.
    hash: Option<Vec<u8>>,
    problems: Vec<PatternProblem>,
    file: Option<Meta>,
}

/// A line of `.consortignore` that is not a pattern. The other lines hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternProblem {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// Why the patterns cannot be used as a whole. Nothing was changed. Synchronizing without them
/// would spread what the user wanted left alone, so the directory has to wait.
#[derive(Debug, thiserror::Error)]
pub enum LoadIgnoresError {
    /// It is a directory, a symlink, or the system failed.
    #[error("{IGNORE_FILE} cannot be read ({0}); make it a readable plain file or remove it")]
    Unreadable(#[from] io::Error),
    /// The user's, or a peer's, file is too long.
    #[error("{IGNORE_FILE} is longer than {MAX_IGNORE_FILE_BYTES} bytes; shorten it")]
    TooLong,
    /// The user's, or a peer's, patterns are too complex together.
    #[error("the patterns in {IGNORE_FILE} are too complex together: {0}; simplify them")]
    TooComplex(ignore::Error),
}

impl Ignores {
    /// Reads the patterns as they are now; none, if there is no file.
    ///
    /// # Errors
    ///
    /// See [`LoadIgnoresError`]; a single bad pattern is not an error but in
    /// [`problems`](Self::problems).
    pub fn load(root: &Root) -> Result<Self, LoadIgnoresError> {
        let (text, file) = match root.open_file(IGNORE_FILE) {
            Ok((file, meta)) => {
                let mut text = Vec::new();
                file.take(MAX_IGNORE_FILE_BYTES + 1).read_to_end(&mut text)?;
                if MAX_IGNORE_FILE_BYTES < text.len() as u64 {
                    return Err(LoadIgnoresError::TooLong);
                }
                (text, Some(meta))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(error.into()),
        };
        let mut builder = GitignoreBuilder::new("");
        let mut problems = Vec::new();
        let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&text);
        for (index, line) in text.split(|&byte| byte == b'\n').enumerate() {
            let added = match std::str::from_utf8(line) {
                Ok(line) if MAX_BRACES < line.matches('{').count() => {
                    Some(format!("more than {MAX_BRACES} braces are opened"))
                }
                Ok(line) => builder.add_line(None, line).err().map(|error| error.to_string()),
                Err(_) => Some("not UTF-8".to_owned()),
            };
            if let Some(message) = added {
                problems.push(PatternProblem { line: index + 1, message });
            }
        }
        let patterns = builder.build().map_err(LoadIgnoresError::TooComplex)?;
        let hash = (!text.is_empty()).then(|| blake3::hash(text).as_bytes().to_vec());
        Ok(Self { inner: Arc::new(Loaded { patterns, hash, problems, file }) })
    }

    /// Notes that the directory shows what it has to with these patterns.
    pub(super) fn remember(&self, store: &DiskStore, dataset: DatasetId) {
        if !self.are_remembered(store, dataset)
            && let Err(error) = store.set_setting(&setting(dataset), self.inner.hash.clone())
        {
            tracing::warn!(%error, "the patterns are not remembered, and will be gone by again");
        }
    }

    /// Whether these are the patterns that were remembered last. If not, keys may have to appear that are not pending.
    pub(super) fn are_remembered(&self, store: &DiskStore, dataset: DatasetId) -> bool {
        store.setting(&setting(dataset)).is_ok_and(|hash| hash == self.inner.hash)
    }

    /// The lines that are not patterns.
    #[must_use]
    pub fn problems(&self) -> &[PatternProblem] {
        &self.inner.problems
    }

    /// Whether the file with the patterns is another one than was loaded.
    ///
    /// # Errors
    ///
    /// The file system failed.
    pub fn changed(&self, root: &Root) -> io::Result<bool> {
        Ok(match (root.stat(IGNORE_FILE)?, &self.inner.file) {
            (Some(now), Some(then)) => !now.same_file_state(then),
            (now, then) => now.is_some() != then.is_some(),
        })
    }

    /// Whether the entry at `key` is left alone, by itself or because a directory above it is. As
    /// in git, nothing beneath an ignored directory can be taken back in.
    #[must_use]
    pub fn is_ignored(&self, key: &str, is_dir: bool) -> bool {
        let parents = key.match_indices('/').map(|(end, _)| &key[..end]);
        parents.into_iter().any(|parent| self.is_ignored_itself(parent, true))
            || self.is_ignored_itself(key, is_dir)
    }

    /// [`is_ignored`](Self::is_ignored) for a key of whose parents none is ignored.
    pub(super) fn is_ignored_itself(&self, key: &str, is_dir: bool) -> bool {
        let name = key.rsplit('/').next().unwrap_or(key);
        name == PRIVATE_DIR || self.inner.patterns.matched(key, is_dir).is_ignore()
    }
}

/// The setting that holds the hash of the patterns that a directory was last brought in line with.
fn setting(dataset: DatasetId) -> String {
    let mut name = "ignores-".to_owned();
    dataset.0.iter().for_each(|byte| name.push_str(&format!("{byte:02x}")));
    name
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn load(text: &str) -> (tempfile::TempDir, Root, Ignores) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IGNORE_FILE), text).unwrap();
        let root = Root::open(dir.path()).unwrap();
        let ignores = Ignores::load(&root).unwrap();
        (dir, root, ignores)
    }

    #[test]
    fn patterns_mean_what_they_mean_to_git() {
        let (_dir, _root, ignores) = load("*.tmp\n/build/\n!keep.tmp\nlogs/*.log\n");
        assert!(ignores.is_ignored("a/b.tmp", false));
        assert!(!ignores.is_ignored("a/keep.tmp", false));
        assert!(ignores.is_ignored("build", true));
        assert!(!ignores.is_ignored("build", false));
        assert!(ignores.is_ignored("build/deep/keep.tmp", false));
        assert!(!ignores.is_ignored("a/build", true));
        assert!(ignores.is_ignored("logs/x.log", false));
        assert!(!ignores.is_ignored("a/logs/x.log", false));
        assert!(!ignores.is_ignored(IGNORE_FILE, false));
    }

    #[test]
    fn the_private_area_is_always_ignored_at_any_depth() {
        let (_dir, _root, ignores) = load("!.consort\n");
        assert!(ignores.is_ignored(".consort", true));
        assert!(ignores.is_ignored(".consort/id", false));
        assert!(ignores.is_ignored("copy/.consort/id", false));
        assert!(!ignores.is_ignored(".consorted", true));
    }

    #[test]
    fn a_broken_pattern_is_reported_and_the_others_hold() {
        let (_dir, _root, ignores) = load("*.a\n{b\n*.c\n");
        assert_eq!(ignores.problems().len(), 1);
        assert_eq!(ignores.problems()[0].line, 2);
        assert!(ignores.is_ignored("x.a", false));
        assert!(ignores.is_ignored("x.c", false));
    }

    #[test]
    fn braces_in_braces_in_braces_are_reported_and_the_other_patterns_hold() {
        for depth in [300, 16_000] {
            let deep = format!("{}b{}", "{a,".repeat(depth), "}".repeat(depth));
            let (_dir, _root, ignores) = load(&format!("*.{{a,b}}\n{deep}\n*.c\n"));
            assert_eq!(ignores.problems().len(), 1);
            assert_eq!(ignores.problems()[0].line, 2);
            assert!(["x.a", "x.b", "x.c"].iter().all(|key| ignores.is_ignored(key, false)));
        }
    }

    #[test]
    fn a_change_of_the_file_is_noticed() {
        let (dir, root, ignores) = load("*.a\n");
        assert!(!ignores.changed(&root).unwrap());
        fs::remove_file(dir.path().join(IGNORE_FILE)).unwrap();
        assert!(ignores.changed(&root).unwrap());
        let none = Ignores::load(&root).unwrap();
        assert!(!none.changed(&root).unwrap());
        assert!(!none.is_ignored("x.a", false));
    }

    #[test]
    fn a_file_that_is_too_long_or_no_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        let file = dir.path().join(IGNORE_FILE);
        fs::write(&file, "a\n".repeat(40_000)).unwrap();
        assert!(matches!(Ignores::load(&root), Err(LoadIgnoresError::TooLong)));
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(matches!(Ignores::load(&root), Err(LoadIgnoresError::Unreadable(_))));
    }
}
