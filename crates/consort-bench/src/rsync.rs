//! rsync as a daemon on loopback, and its client, which copies from it.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::process::{self, PeakMemory};
use crate::verify::PRIVATE;

const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// A daemon that serves one directory. Its process ends with this.
#[derive(Debug)]
pub(crate) struct Daemon {
    process: Child,
    address: SocketAddr,
}

/// What a copy took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    /// Until the client ended.
    pub(crate) wall: Duration,
    /// Until what it wrote was on the disk, as it is when Consort says so.
    pub(crate) wall_synced: Duration,
    /// Of the client and the daemon.
    pub(crate) cpu: Duration,
    /// Both ways, as the client counts them.
    pub(crate) wire: u64,
    /// Peaks of the daemon's side and the client's, each the sum of its processes.
    pub(crate) memory: (u64, u64),
}

/// Says how to get it, if it is not there.
pub(crate) fn expect_installed() -> Result<(), Failure> {
    let version = Command::new("rsync").arg("--version").stdout(Stdio::null()).status();
    match version {
        Ok(status) if status.success() => Ok(()),
        _ => Err(Failure::new("rsync is missing; install it (apt-get install -y rsync)")),
    }
}

impl Daemon {
    /// Serves `source` on a free port of loopback, and keeps its files in `place`.
    pub(crate) fn start(source: &Path, place: &Path) -> Result<Self, Failure> {
        fs::create_dir_all(place).map_err(|error| Failure::io("make a directory", error))?;
        let config = place.join("rsyncd.conf");
        let address = free_address()?;
        fs::write(&config, configuration(source, &address))
            .map_err(|error| Failure::io("write the configuration of rsync", error))?;
        let mut argument = std::ffi::OsString::from("--config=");
        argument.push(&config);
        let process = Command::new("rsync")
            .args(["--daemon", "--no-detach"])
            .arg(argument)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| Failure::io("start rsync", error))?;
        let mut daemon = Self { process, address };
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            let ended = daemon.process.try_wait().map_err(|error| Failure::io("wait", error))?;
            if ended.is_some() || started.elapsed() > PATIENCE {
                return Err(Failure::new("the rsync daemon does not start"));
            }
            thread::sleep(POLL);
        }
        daemon.until_idle()?;
        Ok(daemon)
    }

    /// Makes `target` equal to what is served; what is there only is deleted.
    pub(crate) fn copy_to(&self, target: &Path) -> Result<Copied, Failure> {
        fs::create_dir_all(target).map_err(|error| Failure::io("make a directory", error))?;
        let before = (process::children_cpu()?, process::cpu_with_children(self.process.id())?);
        let started = Instant::now();
        let child = Command::new("rsync")
            .args(["-a", "--delete", "--stats", "--no-human-readable"])
            .arg(format!("--exclude=/{PRIVATE}"))
            .arg(format!("rsync://{}/source/", self.address))
            .arg(target)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::io("run rsync", error))?;
        let memory = (PeakMemory::of_tree(self.process.id()), PeakMemory::of_tree(child.id()));
        let output = child.wait_with_output().map_err(|error| Failure::io("wait", error))?;
        let wall = started.elapsed();
        sync(target)?;
        let wall_synced = started.elapsed();
        let memory = (memory.0.finish(), memory.1.finish());
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(Failure::new(format!("rsync failed: {errors}")));
        }
        self.until_idle()?;
        let after = (process::children_cpu()?, process::cpu_with_children(self.process.id())?);
        let stats = String::from_utf8_lossy(&output.stdout);
        Ok(Copied {
            wall,
            wall_synced,
            cpu: (after.0 - before.0) + (after.1 - before.1),
            wire: statistic(&stats, "Total bytes sent: ")?
                + statistic(&stats, "Total bytes received: ")?,
            memory,
        })
    }

    /// Waits until the daemon has waited for the process that it made for us, so that its time is known.
    fn until_idle(&self) -> Result<(), Failure> {
        let started = Instant::now();
        while !process::children(self.process.id()).is_empty() {
            if started.elapsed() > PATIENCE {
                return Err(Failure::new("the rsync daemon does not finish"));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Writes out what is not on the disk yet of the file system of `path`.
fn sync(path: &Path) -> Result<(), Failure> {
    let dir = fs::File::open(path).map_err(|error| Failure::io("open the target", error))?;
    rustix::fs::syncfs(dir).map_err(|error| Failure::io("sync", error))
}

fn configuration(source: &Path, address: &SocketAddr) -> String {
    // A daemon of root would otherwise serve as nobody, who may not read everything.
    let user = if rustix::process::geteuid().is_root() { "uid = 0\ngid = 0\n" } else { "" };
    format!(
        "address = {}\nport = {}\nuse chroot = no\nreverse lookup = no\nlog file = /dev/null\n{user}\
         [source]\npath = {}\nread only = yes\n",
        address.ip(),
        address.port(),
        source.display()
    )
}

fn free_address() -> Result<SocketAddr, Failure> {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .map_err(|error| Failure::io("find a free port", error))
}

fn statistic(stats: &str, name: &str) -> Result<u64, Failure> {
    let number = stats.lines().find_map(|line| line.strip_prefix(name));
    number
        .and_then(|number| number.replace(',', "").trim().parse().ok())
        .ok_or_else(|| Failure::new(format!("rsync does not say {name:?}: {stats}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify;
    use crate::workload::Files;

    #[test]
    fn a_copy_is_equal_and_measured() {
        if expect_installed().is_err() {
            println!("skipped: rsync is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        let files = Files { count: 20, size: 100_000 };
        files.make(&source, 1).unwrap();
        let daemon = Daemon::start(&source, &dir.path().join("daemon")).unwrap();
        let first = daemon.copy_to(&target).unwrap();
        assert_eq!(verify::difference(&source, &target).unwrap(), None);
        assert!(first.wire > files.bytes() && first.wall_synced >= first.wall, "{first:?}");
        let second = daemon.copy_to(&target).unwrap();
        assert!(second.wire < 10_000, "{second:?}");
    }
}
