//! Having a file to oneself: whoever opens it meanwhile waits (fcntl(2), `F_SETLEASE`). The kernel grants that only while
//! nobody else has it open, for reading or writing or as a mapping, and to its owner.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;

/// What says by which signal its holder is told that somebody waits (linux/asm-generic/fcntl.h).
const F_SETSIG: libc::c_int = 10;

/// A write lease on an open file. It ends when this is dropped.
///
/// Whoever waits longer than `/proc/sys/fs/lease-break-time` (45 s by default) is let in all the same: do little.
#[derive(Debug)]
pub(super) struct Lease<'f> {
    fd: libc::c_int,
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
        Ok(Self { fd, file: PhantomData })
    }

    /// Whether it holds, and nobody waits.
    pub(super) fn is_undisturbed(&self) -> bool {
        fcntl(self.fd, libc::F_GETLEASE, 0).is_ok_and(|lease| lease == libc::F_WRLCK)
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
        assert!(lease.is_undisturbed());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| std::fs::read_to_string(&path));
            while lease.is_undisturbed() {
                std::thread::yield_now();
            }
            std::io::Write::write_all(&mut &file, b" and after").unwrap();
            drop(lease);
            assert_eq!(reader.join().unwrap().unwrap(), "before and after");
        });
    }
}
