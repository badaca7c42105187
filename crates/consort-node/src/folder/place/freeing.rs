//! Giving back the room of large files that were replaced or removed. To give back a gigabyte takes a disk up to a
//! quarter of a second, for which nothing else has to wait.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crossbeam_channel::{Sender, bounded};
use rustix::fs::{AtFlags, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::folder::Root;

/// Below this, giving back the room takes no longer than having it done.
const LARGE_BYTES: u64 = 4 << 20;
/// Files that have lost their names and still take room. With more of them, whoever removes one waits.
const MAX_FREEING: u32 = 16;

impl Root {
    /// Removes the entry that was taken out under this name, which is of so many bytes. If it is large, its room is free
    /// soon after; where room is scarce, at once.
    pub(super) fn drop_out(&self, out: &str, size: u64) -> Result<(), Errno> {
        // A file exists for as long as somebody has it open.
        let open = || {
            openat(
                self.temp(),
                out,
                OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let is_large =
            LARGE_BYTES <= size && size.saturating_mul(MAX_FREEING.into()) <= self.room();
        let file = if is_large { open().ok() } else { None };
        unlinkat(self.temp(), out, AtFlags::empty())?;
        if let Some(file) = file {
            free(file);
        }
        Ok(())
    }
}

/// Closes a file on a thread for that, or here, if that has enough to do.
fn free(file: OwnedFd) {
    static FREEING: OnceLock<Option<Sender<OwnedFd>>> = OnceLock::new();
    let freeing = FREEING.get_or_init(|| {
        let (freeing, files) = bounded::<OwnedFd>(MAX_FREEING as usize);
        let thread = std::thread::Builder::new().name("free".into());
        thread.spawn(move || files.into_iter().for_each(drop)).ok().map(|_| freeing)
    });
    if let Some(freeing) = freeing {
        let _ = freeing.try_send(file);
    }
}
