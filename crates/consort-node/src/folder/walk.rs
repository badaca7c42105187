//! A walk over a linked directory in key order: the truth about what is there.
//!
//! Key order is the byte order of full keys. A directory's own entry stands at its name, its
//! children at its name followed by `/`, so a file `a.txt` comes between the directory `a` and the
//! entry `a/b` (`.` sorts before `/`). Listing each directory once and sorting two items per
//! subdirectory, the entry and the descent, gives this order with memory for the directories on
//! the current path only.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, StatxAttributes, StatxFlags, statx};
use rustix::io::Errno;

use crate::folder::root::{
    LIST_BUFFER_BYTES, for_each_name, meta_at, meta_of, open_child_directory,
};
use crate::folder::{EntryKind, Ignores, MAX_KEY_BYTES, Meta, Root, join_key};

/// An iterator over the entries in key order. Holds one open handle per level of the current path.
///
/// A problem never ends the walk. What appears or vanishes while the walk goes on may or may not
/// be seen: the watcher tells of it.
#[derive(Debug)]
pub struct Walk<'a> {
    ignores: &'a Ignores,
    device: u64,
    /// Told before anything else, about where to start; two at most.
    first: VecDeque<Result<WalkEntry, WalkProblem>>,
    levels: Vec<Level>,
    /// Levels that were left, kept for their allocations.
    spare: Vec<Level>,
    buffer: Vec<u8>,
    /// The key of the innermost directory, with a `/` at its end unless it is the top.
    prefix: String,
}

/// An entry that can be synchronized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WalkEntry {
    /// Its key.
    pub key: String,
    /// Its state; the kind is never [`EntryKind::Other`].
    pub meta: Meta,
}

/// Something that cannot be synchronized, to be shown to the user.
#[derive(Debug)]
pub struct WalkProblem {
    /// Where: the exact key for [`WalkProblemKind::Unreadable`] and
    /// [`WalkProblemKind::OtherDevice`] (the empty string is the top directory). It may be lossy
    /// for the kinds that say that there can be no key, and is for display only then.
    pub path: String,
    /// What is the matter.
    pub kind: WalkProblemKind,
}

/// What can be the matter with an entry.
#[derive(Debug, thiserror::Error)]
pub enum WalkProblemKind {
    /// The name is not UTF-8; if it is a directory, nothing in it can have a key either.
    #[error("the name is not UTF-8; rename it")]
    NotUtf8,
    /// The name has a control character; if it is a directory, nothing in it can have a key.
    #[error("the name has a control character; rename it")]
    ControlCharacter,
    /// The key would be longer than 1,024 bytes.
    #[error("the path is longer than {MAX_KEY_BYTES} bytes; shorten it")]
    TooLong,
    /// It cannot be looked at: **nothing is known** of this key and of any key beneath it, so none
    /// of them may be taken for deleted.
    #[error("it cannot be read ({0}); check its permissions")]
    Unreadable(io::Error),
    /// It is a fifo, a socket or a device.
    #[error("it is not a file, directory or symlink; it is left alone")]
    SpecialFile,
    /// Another file system is mounted here: nothing is known of the keys beneath it.
    #[error("another file system is mounted there; it is left alone")]
    OtherDevice,
}

#[derive(Debug)]
struct Level {
    dir: OwnedFd,
    listing: Listing,
    next: usize,
    /// How much of the walk's prefix names this directory's parent.
    parent_prefix: usize,
}

/// The sorted names of one directory: two allocations, whatever the number of names.
#[derive(Debug, Default)]
struct Listing {
    names: Vec<u8>,
    items: Vec<Item>,
}

/// A name, or the descent into the directory of that name. Eight bytes each: a directory may hold
/// millions.
#[derive(Clone, Copy, Debug)]
struct Item {
    start: u32,
    len: u16,
    listed_as_directory: bool,
    /// Sorts as the name with a `/` after it.
    descent: bool,
}

impl<'a> Walk<'a> {
    /// Walks everything, or with `start` only the entry of that key and what is beneath it.
    /// Nothing is yielded for a start that does not exist or is ignored.
    #[must_use]
    pub fn new(root: &Root, ignores: &'a Ignores, start: Option<&str>) -> Self {
        let mut walk = Self {
            ignores,
            device: root.device(),
            first: VecDeque::new(),
            levels: Vec::new(),
            spare: Vec::new(),
            buffer: Vec::with_capacity(LIST_BUFFER_BYTES),
            prefix: String::new(),
        };
        walk.begin(root, start.unwrap_or(""));
        walk
    }

    fn begin(&mut self, root: &Root, start: &str) {
        let problem = |kind| Err(WalkProblem { path: start.to_owned(), kind });
        if !start.is_empty() {
            let meta = match root.stat(start) {
                Ok(Some(meta)) => meta,
                Ok(None) => return,
                Err(error) => {
                    let kind = match Errno::from_io_error(&error) {
                        Some(Errno::XDEV) => WalkProblemKind::OtherDevice,
                        _ => WalkProblemKind::Unreadable(error),
                    };
                    return self.first.push_back(problem(kind));
                }
            };
            let is_directory = meta.kind == EntryKind::Directory;
            if self.ignores.is_ignored(start, is_directory) {
                return;
            }
            self.first.push_back(match meta.kind {
                EntryKind::Other => problem(WalkProblemKind::SpecialFile),
                _ => Ok(WalkEntry { key: start.to_owned(), meta }),
            });
            if !is_directory {
                return;
            }
        }
        if let Err(errno) = root.open_directory(start).and_then(|dir| self.enter(dir, start)) {
            self.first.push_back(problem(unreadable(errno)));
        }
    }

    /// Lists `dir`, which is named by the last part of the new prefix, and goes on in it.
    fn enter(&mut self, dir: OwnedFd, name: &str) -> Result<(), Errno> {
        let mut listing = self.spare.pop().map(|level| level.listing).unwrap_or_default();
        listing.fill(&dir, &mut self.buffer)?;
        let parent_prefix = self.prefix.len();
        if !name.is_empty() {
            self.prefix.push_str(name);
            self.prefix.push('/');
        }
        self.levels.push(Level { dir, listing, next: 0, parent_prefix });
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(level) = self.levels.pop() {
            self.prefix.truncate(level.parent_prefix);
            self.spare.push(level);
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Result<WalkEntry, WalkProblem>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(first) = self.first.pop_front() {
            return Some(first);
        }
        loop {
            let level = self.levels.last_mut()?;
            let Some(&item) = level.listing.items.get(level.next) else {
                self.leave();
                continue;
            };
            level.next += 1;
            let told = if item.descent { self.descend(item) } else { self.look(item) };
            if told.is_some() {
                return told;
            }
        }
    }
}

impl Walk<'_> {
    /// The entry of a name, or what is the matter with it, or `None` if there is nothing to tell.
    fn look(&self, item: Item) -> Option<Result<WalkEntry, WalkProblem>> {
        let level = self.levels.last()?;
        let name = level.listing.name(item);
        let problem = |kind| {
            let path = format!("{}{}", self.prefix, String::from_utf8_lossy(name));
            Some(Err(WalkProblem { path, kind }))
        };
        let Ok(name) = std::str::from_utf8(name) else {
            return problem(WalkProblemKind::NotUtf8);
        };
        let mut key = String::with_capacity(self.prefix.len() + name.len());
        key.push_str(&self.prefix);
        key.push_str(name);
        if self.ignores.is_ignored_itself(&key, item.listed_as_directory) {
            return None;
        }
        if name.chars().any(char::is_control) {
            return problem(WalkProblemKind::ControlCharacter);
        }
        if MAX_KEY_BYTES < key.len() {
            return problem(WalkProblemKind::TooLong);
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = match statx(&level.dir, name, flags, StatxFlags::BASIC_STATS) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return None,
            Err(errno) => return problem(unreadable(errno)),
        };
        let meta = Meta::from(&stat);
        let is_directory = meta.kind == EntryKind::Directory;
        // Only a directory's device number is to be trusted: an overlay shows those of its layers
        // for files.
        if stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
            || (is_directory && meta.device != self.device)
        {
            return problem(WalkProblemKind::OtherDevice);
        }
        if meta.kind == EntryKind::Other {
            return problem(WalkProblemKind::SpecialFile);
        }
        if is_directory && !item.listed_as_directory {
            // It was something else when it was listed, so nobody will descend into it.
            let error = io::Error::other("it changed while it was looked at");
            return problem(WalkProblemKind::Unreadable(error));
        }
        Some(Ok(WalkEntry { key, meta }))
    }

    /// Goes on with the children of a directory; a problem if they cannot be known.
    fn descend(&mut self, item: Item) -> Option<Result<WalkEntry, WalkProblem>> {
        let level = self.levels.last()?;
        // A directory that cannot have a key was reported at its name.
        let name = std::str::from_utf8(level.listing.name(item)).ok()?;
        let key = join_key(self.prefix.trim_end_matches('/'), name);
        if name.chars().any(char::is_control)
            || MAX_KEY_BYTES < key.len()
            || self.ignores.is_ignored_itself(&key, true)
        {
            return None;
        }
        let name = name.to_owned();
        let opened =
            open_child_directory(&level.dir, name.as_bytes()).and_then(|dir| {
                match meta_of(&dir)?.device == self.device {
                    true => Ok(dir),
                    false => Err(Errno::XDEV),
                }
            });
        match opened.and_then(|dir| self.enter(dir, &name)) {
            Ok(()) => None,
            // It vanished, is another thing by now, or was told to be on another device.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => None,
            Err(errno) => Some(Err(WalkProblem { path: key, kind: unreadable(errno) })),
        }
    }
}

fn unreadable(errno: Errno) -> WalkProblemKind {
    WalkProblemKind::Unreadable(errno.into())
}

impl Listing {
    fn fill(&mut self, dir: &OwnedFd, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        self.names.clear();
        self.items.clear();
        for_each_name(dir, buffer, |name, file_type| {
            let bytes = name.to_bytes();
            let listed_as_directory = match file_type {
                FileType::Directory => true,
                // Some file systems do not say.
                FileType::Unknown => name.to_str().is_ok_and(|name| {
                    meta_at(dir, name).is_ok_and(|m| m.kind == EntryKind::Directory)
                }),
                _ => false,
            };
            let start = u32::try_from(self.names.len()).map_err(|_| Errno::OVERFLOW)?;
            let len = u16::try_from(bytes.len()).map_err(|_| Errno::NAMETOOLONG)?;
            self.names.extend_from_slice(bytes);
            let item = Item { start, len, listed_as_directory, descent: false };
            self.items.push(item);
            if listed_as_directory {
                self.items.push(Item { descent: true, ..item });
            }
            Ok(())
        })?;
        let names = &self.names;
        self.items.sort_unstable_by(|&left, &right| {
            let key = |item: Item| {
                let slash: &[u8] = if item.descent { b"/" } else { b"" };
                (&names[item.range()], slash)
            };
            let ((left, left_slash), (right, right_slash)) = (key(left), key(right));
            let common = left.len().min(right.len());
            left[..common].cmp(&right[..common]).then_with(|| {
                let rest = left[common..].iter().chain(left_slash);
                rest.cmp(right[common..].iter().chain(right_slash))
            })
        });
        Ok(())
    }

    fn name(&self, item: Item) -> &[u8] {
        &self.names[item.range()]
    }
}

impl Item {
    fn range(self) -> std::ops::Range<usize> {
        let start = self.start as usize;
        start..start + usize::from(self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn linked(dir: &Path) -> (Root, Ignores) {
        let root = Root::open(dir).unwrap();
        let ignores = Ignores::load(&root).unwrap();
        (root, ignores)
    }

    fn keys(root: &Root, ignores: &Ignores, start: Option<&str>) -> Vec<String> {
        Walk::new(root, ignores, start).map(|entry| entry.unwrap().key).collect()
    }

    #[test]
    fn children_come_where_their_full_keys_sort() {
        let dir = tempfile::tempdir().unwrap();
        let (root, ignores) = linked(dir.path());
        fs::create_dir(dir.path().join("a")).unwrap();
        for name in ["a/b", "a.txt", "a0", "ä"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        assert_eq!(keys(&root, &ignores, None), ["a", "a.txt", "a/b", "a0", "ä"]);
        assert_eq!(keys(&root, &ignores, Some("a")), ["a", "a/b"]);
        assert_eq!(keys(&root, &ignores, Some("a/b")), ["a/b"]);
        assert_eq!(keys(&root, &ignores, Some("a/c")), Vec::<String>::new());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn the_order_is_that_of_all_sorted_keys(
            paths in prop::collection::vec(prop::collection::vec("[-./0a!é]{1,3}", 1..5), 0..30)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (root, ignores) = linked(dir.path());
            let mut expected = BTreeSet::new();
            for path in paths {
                let parts: Vec<_> = path
                    .iter()
                    .flat_map(|part| part.split('/'))
                    .filter(|part| !matches!(*part, "" | "." | ".."))
                    .collect();
                let mut key = String::new();
                for (index, part) in parts.iter().enumerate() {
                    key = join_key(&key, part);
                    let at = dir.path().join(&key);
                    let made = if index + 1 == parts.len() {
                        fs::File::create_new(&at).map(drop)
                    } else {
                        fs::create_dir(&at)
                    };
                    if made.is_err() && !at.is_dir() {
                        break;
                    }
                    expected.insert(key.clone());
                }
            }
            let walked = keys(&root, &ignores, None);
            prop_assert_eq!(walked, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_cannot_be_synchronized_is_reported_and_the_walk_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let (root, ignores) = linked(dir.path());
        fs::create_dir(dir.path().join(OsStr::from_bytes(b"bad\xff"))).unwrap();
        fs::write(dir.path().join(OsStr::from_bytes(b"bad\xff/inside")), "").unwrap();
        fs::create_dir(dir.path().join("bell\u{7}")).unwrap();
        fs::write(dir.path().join("bell\u{7}/inside"), "").unwrap();
        rustix::fs::mknodat(root.dir(), "pipe", FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        fs::write(dir.path().join("z"), "").unwrap();
        let told: Vec<_> = Walk::new(&root, &ignores, None).collect();
        assert!(
            matches!(
                &told[..],
                [
                    Err(WalkProblem { kind: WalkProblemKind::NotUtf8, .. }),
                    Err(WalkProblem { kind: WalkProblemKind::ControlCharacter, .. }),
                    Err(WalkProblem { kind: WalkProblemKind::SpecialFile, .. }),
                    Ok(WalkEntry { key, .. }),
                ] if key == "z"
            ),
            "{told:?}"
        );
    }

    #[test]
    fn a_path_beyond_the_longest_key_is_a_problem_and_one_at_the_limit_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (root, ignores) = linked(dir.path());
        let name = "x".repeat(255);
        let deep = dir.path().join(&name).join(&name).join(&name);
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("y".repeat(255)), "").unwrap();
        fs::create_dir(deep.join("d".repeat(255))).unwrap();
        fs::write(deep.join("d".repeat(255)).join("z"), "").unwrap();
        let mut entries = 0;
        let mut problems = Vec::new();
        for told in Walk::new(&root, &ignores, None) {
            match told {
                Ok(entry) => entries += usize::from(entry.key.len() <= 1023),
                Err(problem) => problems.push(problem),
            }
        }
        assert_eq!(entries, 5);
        assert!(matches!(problems[..], [WalkProblem { kind: WalkProblemKind::TooLong, .. }]));
    }

    #[test]
    fn ignored_directories_are_not_entered_and_symlinks_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "").unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".consortignore"), "skip/\n").unwrap();
        fs::create_dir_all(dir.path().join("skip/deep")).unwrap();
        fs::create_dir_all(dir.path().join("keep/.consort")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("link")).unwrap();
        let (root, ignores) = linked(dir.path());
        assert_eq!(keys(&root, &ignores, None), [".consortignore", "keep", "link"]);
        assert_eq!(keys(&root, &ignores, Some("skip/deep")), Vec::<String>::new());
    }

    #[test]
    fn an_unreadable_directory_is_an_entry_and_a_problem_that_stands_for_its_children() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let (root, ignores) = linked(dir.path());
        let closed = dir.path().join("closed");
        fs::create_dir_all(closed.join("inside")).unwrap();
        fs::write(dir.path().join("z"), "").unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        if fs::read_dir(&closed).is_ok() {
            // The superuser reads everything.
            return;
        }
        for start in [None, Some("closed")] {
            let told: Vec<_> = Walk::new(&root, &ignores, start).collect();
            assert!(
                matches!(
                    &told[..2],
                    [
                        Ok(WalkEntry { key, .. }),
                        Err(WalkProblem { path, kind: WalkProblemKind::Unreadable(_) }),
                    ] if key == "closed" && path == "closed"
                ),
                "{told:?}"
            );
            assert_eq!(told.len(), if start.is_none() { 3 } else { 2 });
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    }
}
