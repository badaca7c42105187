//! Large files that are not complete when their node stops or crashes, or when they cannot be had at the moment: what has
//! arrived of them is kept under the name of their
//! content, and is where bytes are looked for first when the same content is staged again. Nothing of it is believed: each chunk is
//! verified as if it had come from a peer, and goes into a new file. What is kept for how long is decided in
//! `apply/leftovers.rs`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

use super::growing::TAIL_PREFIX;
use super::stage::TempName;
use crate::folder::root::{meta_at, names, open_beneath};
use crate::folder::{Peek, PlaceError, Root, Staging};

/// A file that is being staged.
const PARTIAL_PREFIX: &str = "partial-";

/// What is left of it when it is not staged any more.
const ARRIVED_PREFIX: &str = "arrived-";

impl Root {
    /// Like [`stage`](Self::stage), for the whole of a content that may take long to arrive.
    ///
    /// # Errors
    ///
    /// The disk is full, or the file system failed.
    pub fn stage_large(&self, content: [u8; 16], mode: u32) -> Result<Staging, PlaceError> {
        let name = name(PARTIAL_PREFIX, content);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(self.temp(), &name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => {
                let temp = TempName { dir: Arc::clone(self.temp()), name, owned: true };
                Ok(Staging::named(file.into(), temp))
            }
            // The same content is on its way to another key.
            Err(Errno::EXIST) => self.stage(mode),
            Err(errno) => Err(errno.into()),
        }
    }

    /// What was written of a file that is given up for now is what has arrived of its content, unless there is more of that
    /// already. Whether it is.
    pub fn keep_arrived(&self, staging: Staging) -> bool {
        staging.leave_if(|name| keep(self.temp(), name.as_ref()).unwrap_or(false))
    }

    /// What whoever staged before did not complete is what has arrived from now on.
    pub fn keep_partial(&self) {
        for name in names(self.temp()).unwrap_or_default() {
            let is_partial = [PARTIAL_PREFIX, TAIL_PREFIX]
                .iter()
                .any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()));
            if is_partial && !keep(self.temp(), &name).unwrap_or(true) {
                let _ = unlinkat(self.temp(), &name, AtFlags::empty());
            }
        }
    }

    /// What had arrived of a content when it was last staged and not completed.
    #[must_use]
    pub fn arrived(&self, content: [u8; 16]) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW;
        open_beneath(self.temp(), &name(ARRIVED_PREFIX, content), flags).ok().map(File::from)
    }

    /// A look into that, whenever it is read.
    #[must_use]
    pub fn peek_arrived(self: &Arc<Self>, content: [u8; 16]) -> Peek {
        let temp = Some(name(ARRIVED_PREFIX, content));
        Peek { root: Arc::clone(self), key: None, file: Weak::new(), temp }
    }

    /// How much of the disk that takes, in blocks of 512 bytes. Zero if there is nothing of it.
    #[must_use]
    pub fn arrived_blocks(&self, content: [u8; 16]) -> u64 {
        blocks(self.temp(), &name(ARRIVED_PREFIX, content))
    }

    /// The contents of which something had arrived. What has such a name and was not left by this is taken away.
    #[must_use]
    pub fn all_arrived(&self) -> Vec<[u8; 16]> {
        let mut contents = Vec::new();
        for leftover in names(self.temp()).unwrap_or_default() {
            let Some(hex) = leftover.as_bytes().strip_prefix(ARRIVED_PREFIX.as_bytes()) else {
                continue;
            };
            match content_of(hex) {
                Some(content) => contents.push(content),
                None => {
                    let _ = unlinkat(self.temp(), &leftover, AtFlags::empty());
                }
            }
        }
        contents
    }

    /// That is not needed any more.
    pub fn forget_arrived(&self, content: [u8; 16]) {
        // If it stays, it goes with the rest of them.
        let _ = unlinkat(self.temp(), name(ARRIVED_PREFIX, content), AtFlags::empty());
    }

    /// Nothing of that is needed any more, whatever it is.
    pub fn forget_all_arrived(&self) {
        for name in names(self.temp()).unwrap_or_default() {
            if name.as_bytes().starts_with(ARRIVED_PREFIX.as_bytes()) {
                let _ = unlinkat(self.temp(), &name, AtFlags::empty());
            }
        }
    }
}

/// Whether a leftover in the temporary directory is of this kind; it is kept then. Of two of the same content, the longer one.
pub(in crate::folder) fn keep(temp: &OwnedFd, leftover: &OsStr) -> io::Result<bool> {
    let leftover = leftover.to_str().unwrap_or_default();
    let content =
        leftover.strip_prefix(PARTIAL_PREFIX).or_else(|| leftover.strip_prefix(TAIL_PREFIX));
    let Some(content) = content else {
        return Ok(leftover.starts_with(ARRIVED_PREFIX));
    };
    let arrived = format!("{ARRIVED_PREFIX}{content}");
    if blocks(temp, leftover) <= blocks(temp, &arrived) {
        return Ok(false);
    }
    renameat(temp, leftover, temp, &arrived)?;
    Ok(true)
}

fn blocks(temp: &OwnedFd, name: &str) -> u64 {
    meta_at(temp, name).map_or(0, |meta| meta.blocks)
}

fn name(prefix: &str, content: [u8; 16]) -> String {
    let hex = content.iter().map(|byte| format!("{byte:02x}"));
    std::iter::once(prefix.to_owned()).chain(hex).collect()
}

/// The content of such a name, without its prefix.
fn content_of(hex: &[u8]) -> Option<[u8; 16]> {
    let hex = std::str::from_utf8(hex).ok()?;
    let content = u128::from_str_radix(hex, 16).ok()?.to_be_bytes();
    (name("", content) == hex).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_of_a_file_outlives_its_process_and_the_longest_of_it_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let stage = |bytes: &[u8]| {
            let root = Root::open(dir.path()).unwrap();
            let staging = root.stage_large([7; 16], 0o644).unwrap();
            staging.target(0).write(bytes).unwrap();
            // As after a crash.
            staging.leave();
        };
        let again = || {
            let root = Root::open(dir.path()).unwrap();
            root.stage_large([7; 16], 0o644).unwrap().leave();
            root.keep_partial();
            root.arrived([7; 16]).map(|file| file.metadata().unwrap().len())
        };
        let read = || {
            let root = Root::open(dir.path()).unwrap();
            root.arrived([7; 16]).map(|file| file.metadata().unwrap().len())
        };
        stage(&[1; 50_000]);
        stage(&[1; 10_000]);
        assert_eq!(read(), Some(50_000));
        stage(&[1; 90_000]);
        assert_eq!((read(), again()), (Some(90_000), Some(90_000)));
        // As when it is given up for now, with less and with more of it.
        let give_up = |bytes: &[u8]| {
            let root = Root::open(dir.path()).unwrap();
            let staging = root.stage_large([7; 16], 0o644).unwrap();
            staging.target(0).write(bytes).unwrap();
            let is_kept = root.keep_arrived(staging);
            drop(root);
            (is_kept, read())
        };
        assert_eq!(give_up(&[1; 10_000]), (false, Some(90_000)));
        assert_eq!(give_up(&[1; 120_000]), (true, Some(120_000)));
        let root = Root::open(dir.path()).unwrap();
        assert!(!root.keep_arrived(root.stage(0o644).unwrap()), "it had no name");
        std::fs::write(dir.path().join(".consort/tmp/arrived-7"), "not ours").unwrap();
        assert_eq!(root.all_arrived(), [[7; 16]]);
        assert!(root.arrived_blocks([8; 16]) < root.arrived_blocks([7; 16]));
        drop(root.stage_large([8; 16], 0o644).unwrap());
        root.forget_arrived([7; 16]);
        assert_eq!(std::fs::read_dir(dir.path().join(".consort/tmp")).unwrap().count(), 0);
    }
}
