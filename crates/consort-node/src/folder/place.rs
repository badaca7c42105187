//! Putting entries in place without destroying what nobody has seen.
//!
//! Content is staged in `.consort/tmp/`, synced, and only then given its name. Whoever replaces or
//! removes something says what is expected to be there. The old entry is not overwritten: it is
//! swapped out in one step, looked at where nobody else can reach it by name, and unlinked only if
//! it is what was expected. Otherwise it is swapped back.
//!
//! Content before it has a key is in `place/stage.rs`, and what is left of it after a stop in `place/partial.rs`; directories
//! are in `place/directories.rs`, moving a file from key to key in `place/moving.rs`, taking away in `place/removing.rs`, giving
//! back its room in `place/freeing.rs`, and what makes all that durable in `place/durable.rs`. Files that grow where they stand
//! are in `place/growing.rs`, and what tells after a crash what was put in place in `place/journal.rs`. The two looks, before
//! and after, are here.
//!
//! Two gaps no file system closes. A program that still holds the old file open writes to a file
//! that has lost its name: do not place over a file of which the watcher says that it is being
//! written. And a rename sets the ctime, so the look after the swap cannot compare it: a write
//! that forges its mtime is noticed by the look before the swap, unless it comes between the two.
//!
//! # What is durable after which call
//!
//! The engine calls, for one batch: stage all, [`Root::sync_staged`], [`Root::begin_placing`], place and remove all,
//! [`Root::sync_entries`], record. After `sync_staged` the contents are on stable storage, under
//! no name yet. After `sync_entries` so are names, removals and attributes. In between, a crash
//! leaves each key either as it was or complete, never empty or partial; but for a file that grows where it stands, which is
//! completed when the directory is next opened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, RenameFlags, chmodat, linkat, renameat, renameat_with, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::folder::place::directories::Parent;
use crate::folder::place::stage::{
    Form, Origin, STAGE_PREFIX, TempName, Whole, modified_at, permissions,
};
use crate::folder::root::{OUT_PREFIX, meta_at, meta_of, path_of_handle};
use crate::folder::{EntryKind, Meta, Root};

mod directories;
mod durable;
mod freeing;
pub(super) mod growing;
pub(super) mod journal;
// To take a lease is a system call for which no library that is used here has a safe one.
#[allow(unsafe_code)]
mod lease;
mod moving;
pub(super) mod partial;
mod removing;
mod stage;
#[cfg(test)]
mod tests;

pub use growing::{Becomes, Growing, Grown};
pub use journal::{Journal, Placing};
pub use removing::RemovedDirectory;
pub(super) use stage::share_of_open_files;
pub use stage::{Peek, Staged, Staging, Target, WriteOut};

/// What has to stand at a key for an operation to go ahead.
#[derive(Clone, Copy, Debug)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// Exactly this, see [`Meta::same_file_state`].
    Present(Meta),
}

/// What was placed.
#[derive(Debug)]
pub struct Placed {
    /// Its state, to be recorded: of what we placed, not of what the user may have made of it
    /// since.
    pub meta: Meta,
    /// The keys of parent directories that had to be made, outermost first.
    pub created: Vec<String>,
    /// If it is a file that has grown: by what, until that is durable.
    pub grown: Option<Grown>,
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
    /// The file cannot grow where it stands at the moment; it can be written anew.
    #[error("it cannot grow where it stands ({0}); it is written anew")]
    Ungrown(io::Error),
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

impl Root {
    /// Gives a staged file its key, with its parents if they are missing; or adds what it is to grow by to the file there.
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
        match staged.0 {
            Form::Whole(whole) => self.place(whole, key, expected),
            Form::Tail(tail) => self.grow(tail, key, expected),
        }
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
        self.place(Whole { origin: Origin::Named(temp), meta }, key, expected)
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

    fn place(&self, staged: Whole, key: &str, expected: Expected) -> Result<Placed, PlaceError> {
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
            Ok(meta) => Ok(Placed { meta, created, grown: None }),
            Err(error) => {
                self.unmake(&created);
                Err(error)
            }
        }
    }

    /// Swaps a staged entry with the old one, and drops the old one if it is as expected.
    fn replace(
        &self,
        staged: Whole,
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
            return Ok(self.drop_out(&out, old.size)?);
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
}

fn place_new(staged: Whole, parent: &OwnedFd, name: &str) -> Result<(), PlaceError> {
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
