//! Making directories: those that are entries themselves, and those that what is placed has to be in.

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, chmodat, mkdirat};
use rustix::io::Errno;

use super::stage::permissions;
use super::{PlaceError, Placed};
use crate::folder::root::{look_at_child_directory, meta_of, open_beneath, path_of_handle};
use crate::folder::{EntryKind, Root, join_key, split_key};

/// A parent directory that was opened for a change, and those that had to be made for it.
pub(super) struct Parent<'k> {
    pub(super) dir: OwnedFd,
    pub(super) name: &'k str,
    pub(super) created: Vec<String>,
}

impl Root {
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
            return Ok(Placed { meta, created, grown: None });
        }
        // By its handle: a symlink that takes its name meanwhile must not be followed.
        chmodat(CWD, path_of_handle(&opened), permissions(mode), AtFlags::empty())?;
        created.push(key.to_owned());
        Ok(Placed { meta: meta_of(&opened)?, created, grown: None })
    }

    /// Opens the parent of `key`, and makes the directories that are missing.
    pub(super) fn parent_of<'k>(&self, key: &'k str) -> Result<Parent<'k>, PlaceError> {
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
    pub(super) fn unmake(&self, created: &[String]) {
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
