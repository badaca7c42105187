//! Having a file to oneself: whoever opens it meanwhile waits (fcntl(2), `F_SETLEASE`). The kernel grants that only while
//! nobody else has it open, for reading or writing or as a mapping, and to its owner.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// What says by which signal its holder is told that somebody waits (linux/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// How soon it is tried again to take a lease on a file that somebody has open, and how often.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(5);
const TRIES: u32 = 10;
/// For how long nobody is let in who waits, whatever the system's setting is, which is in whole seconds.
const SURE_FOR: Duration = Duration::from_millis(900);

/// A write lease on an open file. It ends when this is dropped.
///
/// Whoever waits longer than `/proc/sys/fs/lease-break-time` (45 s by default) is let in all the same: do little, and ask
/// afterwards whether it [is sure](Self::is_sure).
#[derive(Debug)]
pub(super) struct Lease<'f> {
    fd: libc::c_int,
    taken: Instant,
    file: PhantomData<&'f File>,
}

impl<'f> Lease<'f> {
    /// Takes one.
    ///
    /// # Errors
    ///
    /// Somebody else has the file open (`WouldBlock`), it is somebody else's, or its file system has no leases.
    pub(super) fn take(file: &'f File) -> io::Result<Self> {
        let fd = file.as_raw_fd();
        // The one by default would end this process. This one does nothing.
        fcntl(fd, F_SETSIG, libc::SIGURG)?;
        fcntl(fd, libc::F_SETLEASE, libc::F_WRLCK)?;
        Ok(Self { fd, taken: Instant::now(), file: PhantomData })
    }

    /// The same; whoever has the file open for a moment only is waited for.
    ///
    /// # Errors
    ///
    /// See [`take`](Self::take).
    pub(super) fn take_soon(file: &'f File) -> io::Result<Self> {
        for _ in 0..TRIES {
            match Self::take(file) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(TRY_AGAIN_AFTER);
                }
                taken => return taken,
            }
        }
        Self::take(file)
    }

    /// Whether nobody can have been let in: nobody waits, or not for long.
    pub(super) fn is_sure(&self) -> bool {
        self.taken.elapsed() < SURE_FOR || self.is_whole()
    }

    /// Whether it is held, and nobody waits.
    pub(super) fn is_whole(&self) -> bool {
        fcntl(self.fd, libc::F_GETLEASE, 0).is_ok_and(|held| held == libc::F_WRLCK)
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        // Where it is gone already, there is nothing to give back.
        let _ = fcntl(self.fd, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

fn fcntl(fd: libc::c_int, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: these commands take a number, and touch no memory of this process.
    match unsafe { libc::fcntl(fd, command, argument) } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::OpenOptionsExt;

    use super::*;

    #[test]
    fn nobody_has_it_open_and_whoever_opens_it_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "before").unwrap();
        let open = || File::options().read(true).append(true).open(&path).unwrap();
        let (file, reader) = (open(), File::open(&path).unwrap());
        assert_eq!(Lease::take(&file).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(reader);
        let lease = Lease::take(&file).unwrap();
        assert!(lease.is_sure());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| std::fs::read_to_string(&path));
            while lease.is_whole() {
                std::thread::yield_now();
            }
            let hasty = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
            assert_eq!(hasty.unwrap_err().kind(), io::ErrorKind::WouldBlock);
            std::io::Write::write_all(&mut &file, b" and after").unwrap();
            drop(lease);
            assert_eq!(reader.join().unwrap().unwrap(), "before and after");
        });
    }
}
