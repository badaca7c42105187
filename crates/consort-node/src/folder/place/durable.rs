//! Making durable what was staged, placed and removed. When the engine calls which of these, and what holds then, is in
//! `place.rs`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{OFlags, fsync, syncfs};
use rustix::io::Errno;

use super::Staged;
use super::stage::{Form, Origin, Whole};
use crate::folder::root::open_beneath;
use crate::folder::{Root, split_key};

/// Up to so many files or directories are synced one by one; for more, one sync of the whole file
/// system is faster, although it also writes what others left unsynced there.
const SYNC_ONE_BY_ONE: usize = 16;

impl Root {
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
        match &staged.0 {
            Form::Whole(Whole { origin: Origin::Unnamed(file, _), .. }) => {
                fsync(file)?;
                Ok(true)
            }
            Form::Whole(Whole { origin: Origin::Named(temp), .. }) => {
                sync_by_name(self.temp().as_fd(), &temp.name)
            }
            Form::Tail(tail) => {
                tail.sync()?;
                Ok(true)
            }
        }
    }

    /// Makes all changes durable that were made at `keys`: names, removals and attributes. The keys
    /// of directories that were made on the way ([`Placed::created`](super::Placed::created)) have to be among them.
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
