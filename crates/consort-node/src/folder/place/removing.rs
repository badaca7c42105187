//! Taking entries away: files and symlinks if they are what was expected, directories if they are empty. What is looked at before
//! and after is in `place.rs`.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;

use super::{PlaceError, absent_is_changed, check, rename_new};
use crate::folder::root::OUT_PREFIX;
use crate::folder::{Meta, Root};

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

impl Root {
    /// Removes the file or symlink at `key`, if it is still the expected one.
    ///
    /// # Errors
    ///
    /// See [`PlaceError`]; `Changed` also if nothing is there any more.
    pub fn remove_file(&self, key: &str, expected: &Meta) -> Result<(), PlaceError> {
        let (parent, name) = self.open_parent(key).map_err(absent_is_changed)?;
        self.remove_from(&parent, name, key, expected)
    }

    pub(super) fn remove_from(
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
            return Ok(self.drop_out(&out, expected.size)?);
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
}
