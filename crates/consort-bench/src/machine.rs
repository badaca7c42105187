//! One side of a tool as if it were a machine: a network address, a home, a directory to keep equal, and processes,
//! whose use of the real machine is added up.
//!
//! A program that runs here sees no environment but a path, a language and its home, so that nothing of whoever
//! measures changes what is measured, and nothing is written outside of the bench's place.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::failure::Failure;
use crate::network::{self, Namespace};
use crate::process::{self, PeakMemory, Roots, Usage};

/// How long processes may take to start, to meet and to stop.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at that is not part of what is measured.
const POLL: Duration = Duration::from_millis(2);

/// Both sides.
#[derive(Debug)]
pub(crate) struct Machines {
    /// It has the data.
    pub(crate) a: Machine,
    /// It gets the data.
    pub(crate) b: Machine,
}

/// One side.
#[derive(Debug)]
pub(crate) struct Machine {
    /// A name for people.
    pub(crate) name: String,
    /// Where its tool keeps what it needs.
    pub(crate) home: PathBuf,
    /// The directory that is made equal to the other's.
    pub(crate) dir: PathBuf,
    processes: Vec<Process>,
    roots: Roots,
    /// What was used by those that have ended by themselves.
    ended: Usage,
    namespace: Namespace,
}

#[derive(Debug)]
struct Process {
    name: &'static str,
    child: Child,
}

/// What both sides have used, or used in between.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    pub(crate) cpu: Duration,
    pub(crate) read: u64,
    /// Bytes that have passed the link, both ways.
    pub(crate) wire: u64,
}

impl Spent {
    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            read: self.read.saturating_sub(before.read),
            wire: self.wire - before.wire,
        }
    }
}

impl Machines {
    /// Two machines with homes below `place`, joined by a link of `rate` Mbit/s, or of what the system can.
    pub(crate) fn new(
        place: &Path,
        [source, target]: [&Path; 2],
        rate: Option<u32>,
    ) -> Result<Self, Failure> {
        let [a, b] = network::pair(rate)?;
        Ok(Self {
            a: Machine::new("a", place, source, a)?,
            b: Machine::new("b", place, target, b)?,
        })
    }

    pub(crate) fn spent(&self) -> Result<Spent, Failure> {
        let used = self.a.used()? + self.b.used()?;
        Ok(Spent { cpu: used.cpu, read: used.read, wire: self.a.namespace.passed()? })
    }

    /// Ends all processes in good order.
    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        self.a.stop()?;
        self.b.stop()
    }
}

/// One that has the data, then those that get it: below `place`, at one switch. They are gone when the last is dropped.
pub(crate) fn many(
    place: &Path,
    count: usize,
    rate: Option<u32>,
) -> Result<(Vec<Machine>, Namespace), Failure> {
    let (namespaces, switch) = network::star(count, rate)?;
    let machine = |(number, namespace): (usize, Namespace)| {
        let name = format!("node-{number}");
        let dir = place.join("data").join(&name);
        fs::create_dir_all(&dir).map_err(|error| Failure::io("make a directory", error))?;
        Machine::new(&name, place, &dir, namespace)
    };
    Ok((namespaces.into_iter().enumerate().map(machine).collect::<Result<_, _>>()?, switch))
}

impl Machine {
    fn new(name: &str, place: &Path, dir: &Path, namespace: Namespace) -> Result<Self, Failure> {
        let (name, home) = (name.to_string(), place.join(name));
        fs::create_dir_all(home.join("tmp")).map_err(|error| Failure::io("make a home", error))?;
        let (dir, processes) = (dir.to_path_buf(), Vec::new());
        let (roots, ended) = (Roots::default(), Usage::default());
        Ok(Self { name, home, dir, processes, roots, ended, namespace })
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        self.namespace.address
    }

    /// Bytes that it has sent over its link.
    pub(crate) fn sent(&self) -> Result<u64, Failure> {
        self.namespace.sent()
    }

    /// Ends all its processes at once, as if its power had failed.
    pub(crate) fn kill(&mut self) {
        for Process { child, .. } in &mut self.processes {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// The directory, for programs that take text.
    pub(crate) fn dir_text(&self) -> Result<&str, Failure> {
        self.dir.to_str().ok_or_else(|| Failure::new("the path of --dir is not UTF-8"))
    }

    /// A program on this machine.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.namespace.command(program);
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.env("LANG", "C.UTF-8").env("HOME", &self.home).current_dir(&self.home);
        command.env("TMPDIR", self.home.join("tmp"));
        for (variable, dir) in [
            ("XDG_CONFIG_HOME", ".config"),
            ("XDG_CACHE_HOME", ".cache"),
            ("XDG_DATA_HOME", ".local/share"),
            ("XDG_STATE_HOME", ".local/state"),
        ] {
            command.env(variable, self.home.join(dir));
        }
        command.stdin(Stdio::null());
        command
    }

    /// Writes a file in the home.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<PathBuf, Failure> {
        let path = self.home.join(name);
        fs::write(&path, text)
            .map_err(|error| Failure::io(format!("write {}", path.display()), error))?;
        Ok(path)
    }

    /// Starts a program that runs until the machine stops.
    pub(crate) fn start(&mut self, name: &'static str, command: Command) -> Result<(), Failure> {
        let child = self.spawn(name, command)?;
        self.processes.push(Process { name, child });
        Ok(())
    }

    /// Runs a program to its end; what it uses is used by this machine.
    pub(crate) fn run(&mut self, name: &'static str, command: Command) -> Result<(), Failure> {
        let mut child = self.spawn(name, command)?;
        let failed = |error| Failure::io(format!("wait for {name}"), error);
        // Nobody has waited for it yet, so that the system still knows what it used.
        waitid(WaitId::Pid(pid(&child)?), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT)
            .map_err(|error| failed(error.into()))?;
        self.ended += process::usage(child.id())?;
        self.forget(&child);
        let status = child.wait().map_err(failed)?;
        if status.success() {
            return Ok(());
        }
        Err(Failure::new(format!("{name} ended with {status}: {}", self.said(name))))
    }

    /// Everything that a program has said, on both of its outputs.
    pub(crate) fn said(&self, name: &str) -> String {
        fs::read_to_string(log(&self.home, name)).unwrap_or_default()
    }

    /// Returns when a condition holds that one of our programs brings about.
    pub(crate) fn until(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&Self) -> Result<bool, Failure>,
    ) -> Result<(), Failure> {
        let started = Instant::now();
        while !condition(self)? {
            self.expect_running()?;
            if started.elapsed() > PATIENCE {
                return Err(Failure::new(format!("waited too long for {what}")));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// Returns when a program listens on a port of this machine. Nobody connects to it, which some programs mind.
    pub(crate) fn until_listening(&mut self, port: u16) -> Result<(), Failure> {
        self.until("a program to listen", |machine| Ok(machine.namespace.is_listening(port)))
    }

    /// Begins to look at how much memory the processes of this machine have.
    pub(crate) fn peak_memory(&self) -> PeakMemory {
        PeakMemory::of(&self.roots)
    }

    /// Fails if a program has ended that was to run until it is stopped, and tells what it said.
    pub(crate) fn expect_running(&mut self) -> Result<(), Failure> {
        for Process { name, child } in &mut self.processes {
            let ended = child.try_wait().map_err(|error| Failure::io("wait", error))?;
            if let Some(status) = ended {
                let said = fs::read_to_string(log(&self.home, name)).unwrap_or_default();
                return Err(Failure::new(format!("{name} ended with {status}: {said}")));
            }
        }
        Ok(())
    }

    fn used(&self) -> Result<Usage, Failure> {
        self.processes
            .iter()
            .try_fold(self.ended, |sum, process| Ok(sum + process::usage(process.child.id())?))
    }

    fn spawn(&self, name: &str, mut command: Command) -> Result<Child, Failure> {
        let log = File::create(log(&self.home, name)).and_then(|log| Ok((log.try_clone()?, log)));
        let (out, err) = log.map_err(|error| Failure::io("make a log", error))?;
        let child = command
            .stdout(out)
            .stderr(err)
            .spawn()
            .map_err(|error| Failure::io(format!("start {name}"), error))?;
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).insert(child.id());
        Ok(child)
    }

    fn stop(&mut self) -> Result<(), Failure> {
        for Process { name, child } in &self.processes {
            kill_process(pid(child)?, Signal::TERM)
                .map_err(|error| Failure::io(format!("stop {name}"), error))?;
        }
        let started = Instant::now();
        while let Some(Process { name, child }) = self.processes.last_mut() {
            if child.try_wait().map_err(|error| Failure::io("wait", error))?.is_some() {
                let process = self.processes.pop().expect("it was the last");
                self.forget(&process.child);
                continue;
            }
            if started.elapsed() > PATIENCE {
                return Err(Failure::new(format!("{name} does not stop")));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    fn forget(&self, child: &Child) {
        self.roots.lock().unwrap_or_else(PoisonError::into_inner).remove(&child.id());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Where a program writes what it says.
fn log(home: &Path, name: &str) -> PathBuf {
    home.join(format!("{name}.log"))
}

/// Runs a program that only asks or prepares something, and whose use therefore does not count; returns what it wrote.
pub(crate) fn ask(mut command: Command) -> Result<String, Failure> {
    let output = command.output().map_err(|error| Failure::io("run a program", error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(format!("{command:?} failed: {errors}")))
}

fn pid(child: &Child) -> Result<Pid, Failure> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| Failure::new("a process without an id"))
}
