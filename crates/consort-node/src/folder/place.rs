//! Putting entries in place, and taking them away, without destroying what nobody has seen.
//!
//! Content is staged in `.consort/tmp/`, synced, and only then given its name. Whoever replaces or
//! removes something says what is expected to be there. The old entry is not overwritten: it is
//! swapped out in one step, looked at where nobody else can reach it by name, and unlinked only if
//! it is what was expected. Otherwise it is swapped back. Moving a file from key to key is in
//! `place/moving.rs`, content before it has a key in `place/stage.rs`.
//!
//! Two gaps no file system closes. A program that still holds the old file open writes to a file
//! that has lost its name: do not place over a file of which the watcher says that it is being
//! written. And a rename sets the ctime, so the look after the swap cannot compare it: a write
//! that forges its mtime is noticed by the look before the swap, unless it comes between the two.
//!
//! # What is durable after which call
//!
//! The engine calls, for one batch: stage all, [`Root::sync_staged`], place and remove all,
//! [`Root::sync_entries`], record. After `sync_staged` the contents are on stable storage, under
//! no name yet. After `sync_entries` so are names, removals and attributes. In between, a crash
//! leaves each key either as it was or complete, never empty or partial.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RenameFlags, chmodat, fsync, linkat, mkdirat, openat, renameat,
    renameat_with, symlinkat, syncfs, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::folder::place::stage::{Origin, TempName, modified_at, permissions};
use crate::folder::root::{
    OUT_PREFIX, look_at_child_directory, meta_at, meta_of, open_beneath, path_of_handle,
};
use crate::folder::{EntryKind, Meta, Root, join_key, split_key};

mod moving;
pub(super) mod partial;
mod stage;

pub(super) use stage::share_of_open_files;
pub use stage::{Peek, Staged, Staging, Target, WriteOut};

/// Up to so many files or directories are synced one by one; for more, one sync of the whole file
/// system is faster, although it also writes what others left unsynced there.
const SYNC_ONE_BY_ONE: usize = 16;

const STAGE_PREFIX: &str = "stage-";

/// What has to stand at a key for an operation to go ahead.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// Exactly this, see [`Meta::same_file_state`].
    Present(Meta),
}

/// What was placed.
#[derive(Clone, Debug)]
pub struct Placed {
    /// Its state, to be recorded: of what we placed, not of what the user may have made of it
    /// since.
    pub meta: Meta,
    /// The keys of parent directories that had to be made, outermost first.
    pub created: Vec<String>,
}

/// What came of removing a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovedDirectory {
    /// It is gone.
    Removed,
    /// It has entries, perhaps ignored ones, and stays.
    NotEmpty,
    /// There was none.
    Absent,
    /// Something else stands there and stays.
    NotADirectory,
}

/// Why an entry was not placed, changed or removed. Whatever stood at its key still stands there.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Something else than expected stands there, untouched. Scan the key first.
    #[error("the entry changed in the directory; it is scanned first")]
    Changed,
    /// A parent of the key, or the key itself, is something that cannot be replaced.
    #[error("{at} is in the way; rename or remove it")]
    Blocked {
        /// The key of what is in the way.
        at: String,
    },
    /// No room, or the quota is used up. Pause until there is room.
    #[error("the disk is full; make room")]
    DiskFull,
    /// This file system cannot hold such an entry. Trying again does not help.
    #[error("this file system cannot hold it ({0}); rename the entry, or use another file system")]
    Unrepresentable(io::Error),
    /// The node's user may not write there.
    #[error("not permitted ({0}); give the user who runs this node write permission")]
    NotPermitted(io::Error),
    /// The file cannot be moved there, now or later; it can still be copied.
    #[error("it cannot be moved ({0}); it is copied")]
    Unmovable(io::Error),
    /// The file system failed.
    #[error("the file system failed: {0}")]
    Io(io::Error),
}

impl From<Errno> for PlaceError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::DiskFull,
            Errno::NAMETOOLONG | Errno::ILSEQ | Errno::INVAL | Errno::FBIG => {
                Self::Unrepresentable(errno.into())
            }
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::NotPermitted(errno.into()),
            errno => Self::Io(errno.into()),
        }
    }
}

impl From<io::Error> for PlaceError {
    fn from(error: io::Error) -> Self {
        Errno::from_io_error(&error).map_or_else(|| Self::Io(error), Self::from)
    }
}

/// A parent directory that was opened for a change, and those that had to be made for it.
struct Parent<'k> {
    dir: OwnedFd,
    name: &'k str,
    created: Vec<String>,
}

impl Root {
    /// Begins a file with no content, under no key yet, which is meant to get these permissions.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed.
    pub fn stage(&self, mode: u32) -> Result<Staging, PlaceError> {
        // Not in a directory that is watched: the watcher would be told of each step of it.
        match Staging::unnamed(self.temp(), mode) {
            Some(staging) => Ok(staging),
            None => self.stage_named(),
        }
    }

    /// Until it is finished, only its owner may read it.
    fn stage_named(&self) -> Result<Staging, PlaceError> {
        loop {
            let name = self.temp_name(STAGE_PREFIX);
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            match openat(self.temp(), &name, flags, Mode::RUSR | Mode::WUSR) {
                Ok(file) => {
                    let temp = TempName { dir: Arc::clone(self.temp()), name, owned: true };
                    return Ok(Staging::named(file.into(), temp));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Gives a staged file its key, with its parents if they are missing.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; the staged file is removed.
    pub fn place_file(
        &self,
        staged: Staged,
        key: &str,
        expected: Expected,
    ) -> Result<Placed, PlaceError> {
        self.place(staged, key, expected)
    }

    /// Makes a symlink at `key`. The target is data: it may point anywhere, or nowhere.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`].
    pub fn place_symlink(
        &self,
        target: &[u8],
        key: &str,
        expected: Expected,
        mtime_ns: i64,
    ) -> Result<Placed, PlaceError> {
        let name = self.temp_name(STAGE_PREFIX);
        if target.is_empty() || target.contains(&0) {
            return Err(PlaceError::Unrepresentable(Errno::INVAL.into()));
        }
        symlinkat(target, self.temp(), &name)?;
        let temp = TempName { dir: Arc::clone(self.temp()), name, owned: true };
        let times = modified_at(mtime_ns);
        utimensat(self.temp(), &temp.name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        let meta = meta_at(self.temp(), &temp.name)?;
        self.place(Staged { origin: Origin::Named(temp), meta }, key, expected)
    }

    /// Makes a directory at `key`. One that is there already is left as it is, and its state is
    /// returned; a new one is the last of [`Placed::created`].
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; `Changed` if something else stands there.
    pub fn place_directory(&self, key: &str, mode: u32) -> Result<Placed, PlaceError> {
        let Parent { dir, name, mut created } = self.parent_of(key)?;
        let made = match mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(errno) => {
                self.unmake(&created);
                return Err(errno.into());
            }
        };
        let opened = open_beneath(&dir, name, OFlags::PATH | OFlags::NOFOLLOW)?;
        let meta = meta_of(&opened)?;
        if meta.kind != EntryKind::Directory {
            self.unmake(&created);
            return Err(PlaceError::Changed);
        }
        if !made {
            return Ok(Placed { meta, created });
        }
        // By its handle: a symlink that takes its name meanwhile must not be followed.
        chmodat(CWD, path_of_handle(&opened), permissions(mode), AtFlags::empty())?;
        created.push(key.to_owned());
        Ok(Placed { meta: meta_of(&opened)?, created })
    }

    /// Sets permissions (not of symlinks, which have none) and, but for directories, whose times
    /// follow from their entries, the modification time. A write that comes in the moment before the time is set does
    /// not show in it: where it is another time than before, the bytes have to be looked at once more.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; the attributes may be set in part if the file system failed, or somebody wrote meanwhile.
    pub fn set_attributes(
        &self,
        key: &str,
        expected: &Meta,
        mode: u32,
        mtime_ns: i64,
    ) -> Result<Meta, PlaceError> {
        let entry = self.open_entry(key).map_err(absent_is_changed)?;
        let before = meta_of(&entry)?;
        if !before.same_file_state(expected) {
            return Err(PlaceError::Changed);
        }
        if before.kind != EntryKind::Symlink {
            chmodat(CWD, path_of_handle(&entry), permissions(mode), AtFlags::empty())?;
        }
        let now = meta_of(&entry)?;
        let is_written = now.size != before.size || now.mtime_ns != before.mtime_ns;
        if before.kind != EntryKind::Directory && is_written {
            return Err(PlaceError::Changed);
        }
        if before.kind == EntryKind::Directory || before.mtime_ns == mtime_ns {
            return Ok(now);
        }
        utimensat(&entry, "", &modified_at(mtime_ns), AtFlags::EMPTY_PATH)?;
        let after = meta_of(&entry)?;
        if after.size != before.size {
            return Err(PlaceError::Changed);
        }
        Ok(after)
    }

    /// Removes the file or symlink at `key`, if it is still the expected one.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; `Changed` also if nothing is there any more.
    pub fn remove_file(&self, key: &str, expected: &Meta) -> Result<(), PlaceError> {
        let (parent, name) = self.open_parent(key).map_err(absent_is_changed)?;
        self.remove_from(&parent, name, key, expected)
    }

    fn remove_from(
        &self,
        parent: &OwnedFd,
        name: &str,
        key: &str,
        expected: &Meta,
    ) -> Result<(), PlaceError> {
        check(parent, name, expected, key)?;
        let out = self.temp_name(OUT_PREFIX);
        rename_new(parent, name, self.temp(), &out).map_err(absent_is_changed)?;
        if self.came_from(&out, expected, parent, key)? {
            return Ok(unlinkat(self.temp(), &out, AtFlags::empty())?);
        }
        if rename_new(self.temp(), &out, parent, name).is_err() {
            // The user made a new entry in its place meanwhile, or took the directory away.
            self.rescue(&out)?;
        }
        Err(PlaceError::Changed)
    }

    /// Removes the directory at `key` if it is empty; never what is in it.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`].
    pub fn remove_directory(&self, key: &str) -> Result<RemovedDirectory, PlaceError> {
        let removed = self
            .open_parent(key)
            .and_then(|(parent, name)| unlinkat(&parent, name, AtFlags::REMOVEDIR));
        match removed {
            Ok(()) => Ok(RemovedDirectory::Removed),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(RemovedDirectory::NotEmpty),
            Err(Errno::NOENT | Errno::NAMETOOLONG) => Ok(RemovedDirectory::Absent),
            Err(Errno::NOTDIR | Errno::LOOP) => Ok(RemovedDirectory::NotADirectory),
            Err(Errno::BUSY | Errno::XDEV) => Err(PlaceError::Blocked { at: key.to_owned() }),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes the contents and attributes of staged files durable. Call before placing them.
    ///
    /// # Errors
    ///
    /// The file system failed: nothing of the batch may be placed.
    pub fn sync_staged(&self, staged: &[Staged]) -> io::Result<()> {
        let one_by_one = staged.len() <= SYNC_ONE_BY_ONE
            && staged
                .iter()
                .try_fold(true, |all, staged| Ok::<_, io::Error>(all && self.sync_one(staged)?))?;
        if !one_by_one {
            syncfs(self.dir())?;
        }
        Ok(())
    }

    /// Syncs a staged file. False if that cannot be done by itself.
    fn sync_one(&self, staged: &Staged) -> io::Result<bool> {
        match &staged.origin {
            Origin::Unnamed(file, _) => {
                fsync(file)?;
                Ok(true)
            }
            Origin::Named(temp) => sync_by_name(self.temp().as_fd(), &temp.name),
        }
    }

    /// Makes all changes durable that were made at `keys`: names, removals and attributes. The keys
    /// of directories that were made on the way ([`Placed::created`]) have to be among them.
    ///
    /// # Errors
    ///
    /// The file system failed: nothing of the batch may be recorded.
    pub fn sync_entries<'k>(&self, keys: impl IntoIterator<Item = &'k str>) -> io::Result<()> {
        let mut touched = BTreeSet::new();
        for key in keys {
            touched.insert(key);
            touched.insert(split_key(key).0);
            if SYNC_ONE_BY_ONE < touched.len() {
                return Ok(syncfs(self.dir())?);
            }
        }
        for key in touched {
            let path = if key.is_empty() { "." } else { key };
            if !sync_by_name(self.dir(), path)? {
                return Ok(syncfs(self.dir())?);
            }
        }
        Ok(())
    }

    fn place(&self, staged: Staged, key: &str, expected: Expected) -> Result<Placed, PlaceError> {
        let Parent { dir, name, created } = self.parent_of(key)?;
        let meta = staged.meta;
        let handle = staged.handle();
        let placed = match expected {
            Expected::Absent => place_new(staged, &dir, name),
            Expected::Present(old) => self.replace(staged, &dir, name, key, &old),
        };
        // Whatever became of it in the meantime, this is what was there, and what it replaced is gone: a record of
        // anything else would take the next change for one of that.
        let placed = placed.map(|()| {
            // It is in place, also if it cannot be looked at.
            let now = match handle {
                Some(handle) => meta_of(&handle).ok(),
                None => self.stat(key).ok().flatten(),
            };
            now.filter(|now| now.same_after_rename(&meta)).unwrap_or(meta)
        });
        match placed {
            Ok(meta) => Ok(Placed { meta, created }),
            Err(error) => {
                self.unmake(&created);
                Err(error)
            }
        }
    }

    /// Swaps a staged entry with the old one, and drops the old one if it is as expected.
    fn replace(
        &self,
        staged: Staged,
        parent: &OwnedFd,
        name: &str,
        key: &str,
        old: &Meta,
    ) -> Result<(), PlaceError> {
        check(parent, name, old, key)?;
        // From here on the temporary name may hold the user's bytes, also after a crash.
        let out = self.temp_name(OUT_PREFIX);
        let mut temp = match staged.origin {
            Origin::Unnamed(file, _) => {
                link(&file, self.temp(), &out)?;
                TempName { dir: Arc::clone(self.temp()), name: out.clone(), owned: true }
            }
            Origin::Named(mut temp) => {
                renameat(self.temp(), &temp.name, self.temp(), &out)?;
                temp.name.clone_from(&out);
                temp
            }
        };
        match renameat_with(self.temp(), &out, parent, name, RenameFlags::EXCHANGE) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                return replace_unswapped(temp, parent, name, key, old);
            }
            Err(errno) => return Err(absent_is_changed(errno)),
        }
        temp.owned = false;
        if self.came_from(&out, old, parent, key)? {
            return Ok(unlinkat(self.temp(), &out, AtFlags::empty())?);
        }
        self.put_back(&out, parent, name, &staged.meta)?;
        Err(PlaceError::Changed)
    }

    /// Whether what was taken out of `parent` is what was expected, and was taken from under `key`: a directory that
    /// was renamed while it was open took its entries along to other keys, and of those nothing is known.
    fn came_from(
        &self,
        out: &str,
        expected: &Meta,
        parent: &OwnedFd,
        key: &str,
    ) -> Result<bool, PlaceError> {
        let is_expected = meta_at(self.temp(), out)?.same_after_rename(expected);
        Ok(is_expected && self.is_parent_of(parent, key))
    }

    /// Whether the path of `key` leads through this directory at this moment. If that cannot be told, it does not.
    fn is_parent_of(&self, dir: &OwnedFd, key: &str) -> bool {
        let Ok((now, _)) = self.open_parent(key) else { return false };
        let (Ok(now), Ok(then)) = (meta_of(&now), meta_of(dir)) else { return false };
        (now.device, now.inode) == (then.device, then.inode)
    }

    /// Gives the user's entry, which was swapped out, its place back. Should the user have put
    /// another one there in this very moment, then that one is newer and stays.
    fn put_back(
        &self,
        out: &str,
        parent: &OwnedFd,
        name: &str,
        ours: &Meta,
    ) -> Result<(), PlaceError> {
        let swapped = renameat_with(self.temp(), out, parent, name, RenameFlags::EXCHANGE);
        if swapped.is_ok() && meta_at(self.temp(), out)?.same_after_rename(ours) {
            return Ok(unlinkat(self.temp(), out, AtFlags::empty())?);
        }
        if swapped.is_ok() {
            // What came out is the newest: back with it, and keep the one that lost its place.
            renameat_with(self.temp(), out, parent, name, RenameFlags::EXCHANGE)?;
        } else if rename_new(self.temp(), out, parent, name).is_ok() {
            return Ok(());
        }
        Ok(self.rescue(out)?)
    }

    /// Opens the parent of `key`, and makes the directories that are missing.
    fn parent_of<'k>(&self, key: &'k str) -> Result<Parent<'k>, PlaceError> {
        match self.open_parent(key) {
            Ok((dir, name)) => return Ok(Parent { dir, name, created: Vec::new() }),
            // Something is missing or in the way; step by step it shows what.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {}
            Err(errno) => return Err(errno.into()),
        }
        let (parent, name) = split_key(key);
        let mut dir = look_at_child_directory(self.dir(), ".")?;
        let mut at = String::new();
        let mut created = Vec::new();
        for component in parent.split('/') {
            at = join_key(&at, component);
            match step_into(&dir, component) {
                Ok((next, made)) => {
                    dir = next;
                    if made {
                        created.push(at.clone());
                    }
                }
                Err(errno) => {
                    self.unmake(&created);
                    return Err(match errno {
                        Errno::NOTDIR | Errno::LOOP | Errno::XDEV => PlaceError::Blocked { at },
                        errno => errno.into(),
                    });
                }
            }
        }
        Ok(Parent { dir, name, created })
    }

    /// Takes away directories that were made for an entry that could not be placed. What the user
    /// has put in them meanwhile keeps them.
    fn unmake(&self, created: &[String]) {
        for key in created.iter().rev() {
            let _ = self.remove_directory(key);
        }
    }
}

/// Opens the directory `name`, making it if it is missing, and tells whether it was made.
fn step_into(dir: &OwnedFd, name: &str) -> Result<(OwnedFd, bool), Errno> {
    match look_at_child_directory(dir, name) {
        Err(Errno::NOENT) => {
            let mode = Mode::RWXU | Mode::RGRP | Mode::XGRP | Mode::ROTH | Mode::XOTH;
            let made = match mkdirat(dir, name, mode) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(errno),
            };
            Ok((look_at_child_directory(dir, name)?, made))
        }
        opened => Ok((opened?, false)),
    }
}

fn place_new(staged: Staged, parent: &OwnedFd, name: &str) -> Result<(), PlaceError> {
    let placed = match staged.origin {
        Origin::Unnamed(file, _) => link(&file, parent, name),
        Origin::Named(mut temp) => rename_new(&temp.dir, &temp.name, parent, name).map(|()| {
            temp.owned = false;
        }),
    };
    match placed {
        Ok(()) => Ok(()),
        Err(Errno::EXIST) => Err(PlaceError::Changed),
        // The parent was removed after it was opened.
        Err(Errno::NOENT) => Err(PlaceError::Changed),
        Err(errno) => Err(errno.into()),
    }
}

/// Gives a file that has no name its first one, if that is free.
fn link(file: &File, dir: impl AsFd, name: &str) -> Result<(), Errno> {
    match linkat(file, "", &dir, name, AtFlags::EMPTY_PATH) {
        // Before Linux 6.10 only the privileged may do that.
        Err(Errno::NOENT) => linkat(CWD, path_of_handle(file), dir, name, AtFlags::SYMLINK_FOLLOW),
        linked => linked,
    }
}

/// Renames only if the new name is free. Where the file system cannot do that in one step, it
/// looks first, which leaves a gap between the look and the rename.
fn rename_new(from_dir: impl AsFd, from: &str, to_dir: impl AsFd, to: &str) -> Result<(), Errno> {
    match renameat_with(&from_dir, from, &to_dir, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match meta_at(&to_dir, to) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => renameat(from_dir, from, to_dir, to),
            Err(errno) => Err(errno),
        },
        renamed => renamed,
    }
}

/// Where the file system cannot swap: look once more, and replace.
fn replace_unswapped(
    mut temp: TempName,
    parent: &OwnedFd,
    name: &str,
    key: &str,
    old: &Meta,
) -> Result<(), PlaceError> {
    check(parent, name, old, key)?;
    renameat(&temp.dir, &temp.name, parent, name)?;
    temp.owned = false;
    Ok(())
}

/// Whether what stands there is what is expected, and can be replaced at all.
fn check(parent: &OwnedFd, name: &str, expected: &Meta, key: &str) -> Result<(), PlaceError> {
    let now = meta_at(parent, name).map_err(absent_is_changed)?;
    if !now.same_file_state(expected) {
        return Err(PlaceError::Changed);
    }
    match now.kind {
        EntryKind::File | EntryKind::Symlink => Ok(()),
        EntryKind::Directory | EntryKind::Other => Err(PlaceError::Blocked { at: key.to_owned() }),
    }
}

/// The error of an operation on something that was expected to exist.
fn absent_is_changed(errno: Errno) -> PlaceError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP => PlaceError::Changed,
        errno => errno.into(),
    }
}

/// Syncs one file or directory. What is gone or is a symlink needs no sync of its own: its
/// directory's covers it. False if it cannot be opened, so that only a sync of the whole file
/// system would cover it.
fn sync_by_name(dir: impl AsFd, path: &str) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    match open_beneath(dir, path, flags) {
        Ok(file) => {
            fsync(file)?;
            Ok(true)
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(true),
        Err(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::path::{Path, PathBuf};

    use super::*;

    const MTIME: i64 = 1_234_567_890_123_456_789;

    pub(super) struct Fixture {
        dir: tempfile::TempDir,
        pub(super) root: Root,
    }

    impl Fixture {
        pub(super) fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let root = Root::open(dir.path()).unwrap();
            Self { dir, root }
        }

        pub(super) fn at(&self, key: &str) -> PathBuf {
            self.dir.path().join(key)
        }

        fn staged(&self, content: &str) -> Staged {
            let staging = self.root.stage(0o640).unwrap();
            staging.target(0).write(content.as_bytes()).unwrap();
            staging.finish(content.len() as u64, 0o640, MTIME).unwrap()
        }

        /// As where files without a name cannot be had.
        fn named(&self, content: &str) -> TempName {
            let staging = self.root.stage_named().unwrap();
            staging.target(0).write(content.as_bytes()).unwrap();
            let staged = staging.finish(content.len() as u64, 0o640, MTIME).unwrap();
            let Origin::Named(temp) = staged.origin else { panic!("it was given a name") };
            temp
        }

        pub(super) fn place(
            &self,
            content: &str,
            key: &str,
            expected: Expected,
        ) -> Result<Placed, PlaceError> {
            self.root.place_file(self.staged(content), key, expected)
        }

        pub(super) fn stat(&self, key: &str) -> Meta {
            self.root.stat(key).unwrap().unwrap()
        }

        fn temp_is_empty(&self) -> bool {
            fs::read_dir(self.at(".consort/tmp")).unwrap().next().is_none()
        }
    }

    pub(super) fn read(path: impl AsRef<Path>) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn what_is_staged_can_be_read_on_its_whole_way_to_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let stagings = [root.stage(0o640).unwrap(), root.stage_named().unwrap()];
        for (staging, key) in stagings.into_iter().zip(["unnamed", "named"]) {
            staging.target(0).write(b"content").unwrap();
            let peek = staging.peek(&root, key);
            let reads = |expected: bool| {
                let mut bytes = [0; 4];
                let read = peek.read_at(&mut bytes, 3);
                assert_eq!(read.is_ok() && bytes == *b"tent", expected, "{key}");
            };
            reads(true);
            let staged = staging.finish(7, 0o640, MTIME).unwrap();
            reads(true);
            root.place_file(staged, key, Expected::Absent).unwrap();
            reads(true);
            fs::remove_file(dir.path().join(key)).unwrap();
            reads(false);
        }
    }

    #[test]
    fn a_file_is_not_finished_while_somebody_may_still_write_to_it() {
        let fixture = Fixture::new();
        let staging = fixture.root.stage(0o640).unwrap();
        let target = staging.target(0);
        target.write(b"content").unwrap();
        assert!(staging.is_held());
        assert!(matches!(staging.finish(7, 0o640, MTIME), Err(PlaceError::Io(_))));

        let staging = fixture.root.stage(0o640).unwrap();
        staging.target(0).write(b"content").unwrap();
        assert!(!staging.is_held());
        assert!(staging.finish(7, 0o640, MTIME).is_ok());
    }

    #[test]
    fn a_placed_file_has_its_content_mode_and_time_to_the_nanosecond() {
        let fixture = Fixture::new();
        let key = format!("Ünïcode/目录/{}", "x".repeat(255));
        let staged = [fixture.staged("content")];
        fixture.root.sync_staged(&staged).unwrap();
        let [staged] = staged;
        let placed = fixture.root.place_file(staged, &key, Expected::Absent).unwrap();
        assert_eq!(placed.created, ["Ünïcode", "Ünïcode/目录"]);
        assert_eq!(read(fixture.at(&key)), "content");
        assert_eq!((placed.meta.mode, placed.meta.mtime_ns), (0o640, MTIME));
        assert!(placed.meta.same_file_state(&fixture.stat(&key)));
        let keys = placed.created.iter().map(String::as_str).chain([&*key]);
        fixture.root.sync_entries(keys).unwrap();
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_file_replaces_exactly_what_was_expected() {
        let fixture = Fixture::new();
        let first = fixture.place("one", "f", Expected::Absent).unwrap().meta;
        let second = fixture.place("two", "f", Expected::Present(first)).unwrap().meta;
        assert_eq!(read(fixture.at("f")), "two");
        let stale = fixture.place("three", "f", Expected::Present(first));
        assert!(matches!(stale, Err(PlaceError::Changed)), "{stale:?}");
        assert_eq!(fixture.stat("f"), second);
        let taken = fixture.place("three", "f", Expected::Absent);
        assert!(matches!(taken, Err(PlaceError::Changed)), "{taken:?}");
        fs::remove_file(fixture.at("f")).unwrap();
        let gone = fixture.place("three", "f", Expected::Present(second));
        assert!(matches!(gone, Err(PlaceError::Changed)), "{gone:?}");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn bytes_that_the_user_wrote_meanwhile_stay_where_they_are() {
        let fixture = Fixture::new();
        let known = fixture.place("known", "f", Expected::Absent).unwrap().meta;
        fs::write(fixture.at("f"), "users").unwrap();
        let placed = fixture.place("remote", "f", Expected::Present(known));
        assert!(matches!(placed, Err(PlaceError::Changed)), "{placed:?}");
        let removed = fixture.root.remove_file("f", &known);
        assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
        let touched = fixture.root.set_attributes("f", &known, 0o600, 1);
        assert!(matches!(touched, Err(PlaceError::Changed)), "{touched:?}");
        assert_eq!(read(fixture.at("f")), "users");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn what_was_swapped_out_goes_back_and_a_newer_entry_keeps_its_place() {
        let fixture = Fixture::new();
        let (parent, name) = fixture.root.open_parent("f").unwrap();
        let temp = fixture.at(".consort/tmp/out-x");
        // The ordinary case: ours is in place, the user's is out.
        fixture.place("ours", "f", Expected::Absent).unwrap();
        fs::write(&temp, "users").unwrap();
        fixture.root.put_back("out-x", &parent, name, &fixture.stat("f")).unwrap();
        assert_eq!(read(fixture.at("f")), "users");
        assert!(fixture.temp_is_empty());
        // The user has put another file in place of ours since.
        let ours = fixture.place("ours", "g", Expected::Absent).unwrap().meta;
        fs::write(&temp, "swapped out").unwrap();
        fixture.root.put_back("out-x", &parent, name, &ours).unwrap();
        assert_eq!(read(fixture.at("f")), "users");
        assert_eq!(read(fixture.at(".consort/rescued/file-0")), "swapped out");
        // The user has removed ours since.
        fs::remove_file(fixture.at("f")).unwrap();
        fs::write(&temp, "swapped out").unwrap();
        fixture.root.put_back("out-x", &parent, name, &ours).unwrap();
        assert_eq!(read(fixture.at("f")), "swapped out");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_directory_that_is_renamed_while_it_is_open_keeps_what_is_in_it() {
        let fixture = Fixture::new();
        let known = fixture.place("known", "old/f", Expected::Absent).unwrap().meta;
        let (parent, name) = fixture.root.open_parent("old/f").unwrap();
        fs::rename(fixture.at("old"), fixture.at("new")).unwrap();
        let removed = fixture.root.remove_from(&parent, name, "old/f", &known);
        assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
        let staged = fixture.staged("remote");
        let replaced = fixture.root.replace(staged, &parent, name, "old/f", &known);
        assert!(matches!(replaced, Err(PlaceError::Changed)), "{replaced:?}");
        assert_eq!(read(fixture.at("new/f")), "known");
        // Another directory under the old name is another one.
        fs::create_dir(fixture.at("old")).unwrap();
        let removed = fixture.root.remove_from(&parent, name, "old/f", &known);
        assert!(matches!(removed, Err(PlaceError::Changed)), "{removed:?}");
        assert_eq!(read(fixture.at("new/f")), "known");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_file_system_that_cannot_swap_is_still_checked() {
        let fixture = Fixture::new();
        let old = fixture.place("old", "f", Expected::Absent).unwrap().meta;
        let (parent, name) = fixture.root.open_parent("f").unwrap();
        replace_unswapped(fixture.named("new"), &parent, name, "f", &old).unwrap();
        assert_eq!(read(fixture.at("f")), "new");
        let stale = replace_unswapped(fixture.named("newer"), &parent, name, "f", &old);
        assert!(matches!(stale, Err(PlaceError::Changed)), "{stale:?}");
        assert_eq!(read(fixture.at("f")), "new");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_staged_file_with_a_name_is_placed_like_one_without() {
        let fixture = Fixture::new();
        let stage = |content: &str| {
            let staging = fixture.root.stage_named().unwrap();
            staging.target(0).write(content.as_bytes()).unwrap();
            staging.finish(content.len() as u64, 0o640, MTIME).unwrap()
        };
        let first = fixture.root.place_file(stage("one"), "f", Expected::Absent).unwrap();
        let second = fixture.root.place_file(stage("two"), "f", Expected::Absent);
        assert!(matches!(second, Err(PlaceError::Changed)), "{second:?}");
        fixture.root.place_file(stage("three"), "f", Expected::Present(first.meta)).unwrap();
        assert_eq!(read(fixture.at("f")), "three");
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_parent_that_became_a_symlink_never_leads_outside() {
        let fixture = Fixture::new();
        let outside = tempfile::tempdir().unwrap();
        let known = fixture.place("inside", "a/f", Expected::Absent).unwrap().meta;
        fs::write(outside.path().join("f"), "outside").unwrap();
        fs::rename(fixture.at("a"), fixture.at("moved")).unwrap();
        symlink(outside.path(), fixture.at("a")).unwrap();
        for (key, expected) in [
            ("a/new", Expected::Absent),
            ("a/b/c", Expected::Absent),
            ("a/f", Expected::Present(known)),
        ] {
            let placed = fixture.place("remote", key, expected);
            assert!(matches!(&placed, Err(PlaceError::Blocked { at }) if at == "a"), "{placed:?}");
        }
        let made = fixture.root.place_directory("a/d", 0o755);
        assert!(matches!(made, Err(PlaceError::Blocked { .. })), "{made:?}");
        assert!(fixture.root.remove_file("a/f", &known).is_err());
        assert!(fixture.root.set_attributes("a/f", &known, 0o777, 0).is_err());
        let removed = fixture.root.remove_directory("a/f").unwrap();
        assert_eq!(removed, RemovedDirectory::NotADirectory);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
        assert_eq!(read(outside.path().join("f")), "outside");
    }

    #[test]
    fn a_target_that_became_a_symlink_is_not_written_through() {
        let fixture = Fixture::new();
        let outside = tempfile::tempdir().unwrap();
        let victim = outside.path().join("victim");
        fs::write(&victim, "outside").unwrap();
        let known = fixture.place("inside", "f", Expected::Absent).unwrap().meta;
        fs::remove_file(fixture.at("f")).unwrap();
        symlink(&victim, fixture.at("f")).unwrap();
        assert!(fixture.place("remote", "f", Expected::Present(known)).is_err());
        assert!(fixture.place("remote", "f", Expected::Absent).is_err());
        assert!(fixture.root.place_directory("f", 0o777).is_err());
        let link = fixture.stat("f");
        fixture.root.set_attributes("f", &link, 0o777, MTIME).unwrap();
        assert_eq!(fixture.stat("f").mtime_ns, MTIME);
        fixture.place("remote", "f", Expected::Present(fixture.stat("f"))).unwrap();
        assert_eq!(read(fixture.at("f")), "remote");
        assert_eq!(read(&victim), "outside");
        assert!(fs::metadata(&victim).unwrap().mtime() > MTIME / 1_000_000_000);
    }

    #[test]
    fn holes_stay_holes_and_blocks_written_again_as_zeroes_are_zero() {
        let fixture = Fixture::new();
        let staging = fixture.root.stage(0o640).unwrap();
        let size = 8 << 20;
        staging.target(0).write(&vec![0; 4 << 20]).unwrap();
        staging.target(5_000_000).write(b"data").unwrap();
        staging.target(100).write(&[7; 20_000]).unwrap();
        staging.target(10).write(&[0; 19_000]).unwrap();
        let staged = staging.finish(size, 0o644, 0).unwrap();
        let meta = fixture.root.place_file(staged, "sparse", Expected::Absent).unwrap().meta;
        assert!(meta.blocks * 512 < 256 * 1024, "{meta:?}");
        let mut model = vec![0; usize::try_from(size).unwrap()];
        model[5_000_000..5_000_004].copy_from_slice(b"data");
        model[19_010..20_100].fill(7);
        assert!(fs::read(fixture.at("sparse")).unwrap() == model);
    }

    #[test]
    fn a_failed_place_leaves_no_directories_behind() {
        let fixture = Fixture::new();
        let key = format!("a/b/{}", "x".repeat(256));
        let placed = fixture.place("content", &key, Expected::Absent);
        assert!(matches!(placed, Err(PlaceError::Unrepresentable(_))), "{placed:?}");
        assert_eq!(fixture.root.list("").unwrap(), Vec::<std::ffi::OsString>::new());
        fixture.place("file", "a", Expected::Absent).unwrap();
        let below = fixture.place("content", "a/b/c", Expected::Absent);
        assert!(matches!(&below, Err(PlaceError::Blocked { at }) if at == "a"), "{below:?}");
    }

    #[test]
    fn symlinks_and_directories_are_placed_and_removed() {
        let fixture = Fixture::new();
        let link =
            fixture.root.place_symlink(b"../any/where", "d/l", Expected::Absent, MTIME).unwrap();
        assert_eq!((link.meta.kind, link.meta.mtime_ns), (EntryKind::Symlink, MTIME));
        assert_eq!(fixture.root.read_link("d/l").unwrap(), "../any/where");
        let made = fixture.root.place_directory("d/e", 0o700).unwrap();
        assert_eq!((made.meta.mode, made.created), (0o700, vec!["d/e".to_owned()]));
        let again = fixture.root.place_directory("d/e", 0o755).unwrap();
        assert_eq!((again.meta.mode, again.created), (0o700, vec![]));
        let changed = fixture.root.set_attributes("d/e", &again.meta, 0o750, 0).unwrap();
        assert_eq!(changed.mode, 0o750);
        assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::NotEmpty);
        fixture.root.remove_file("d/l", &link.meta).unwrap();
        assert_eq!(fixture.root.remove_directory("d/e").unwrap(), RemovedDirectory::Removed);
        assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::Removed);
        assert_eq!(fixture.root.remove_directory("d").unwrap(), RemovedDirectory::Absent);
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn a_staged_file_that_is_not_placed_is_removed() {
        let fixture = Fixture::new();
        let named = fixture.named("never placed");
        assert!(!fixture.temp_is_empty());
        drop(named);
        assert!(fixture.temp_is_empty());
        drop(fixture.root.stage_named().unwrap());
        assert!(fixture.temp_is_empty());
    }

    #[test]
    fn large_batches_are_synced_too() {
        let fixture = Fixture::new();
        let staged: Vec<_> = (0..20).map(|number| fixture.staged(&number.to_string())).collect();
        fixture.root.sync_staged(&staged).unwrap();
        let keys: Vec<_> = (0..20).map(|number| format!("f{number}")).collect();
        for (staged, key) in staged.into_iter().zip(&keys) {
            fixture.root.place_file(staged, key, Expected::Absent).unwrap();
        }
        fixture.root.sync_entries(keys.iter().map(String::as_str)).unwrap();
        assert_eq!(fixture.root.list("").unwrap().len(), 20);
    }
}
