//! What Linux says about processes, from `/proc`: processor time, memory, bytes read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::{Add, AddAssign};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::failure::Failure;

/// The unit of times in `/proc`, on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// How often processes are looked at that may end at any time. Their peak is kept by the system, so that only what they
/// take in the last moments may be missed.
const SAMPLING: Duration = Duration::from_millis(20);

/// What processes have used since they began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// In user mode and in the system.
    pub(crate) cpu: Duration,
    /// Bytes read from anywhere: files, pipes and sockets, also from the cache.
    pub(crate) read: u64,
}

/// What a process has used, and all that it started: whether those run, or have ended and it knows. It may itself have
/// ended, as long as nobody has waited for it.
pub(crate) fn usage(root: u32) -> Result<Usage, Failure> {
    loop {
        let tree = tree(root);
        let used: Result<Usage, Failure> =
            tree.iter().try_fold(Usage::default(), |sum, pid| Ok(sum + of_one(*pid)?));
        // What ended meanwhile is counted twice, or not at all.
        if tree == self::tree(root) {
            return used;
        }
    }
}

/// The processes of one side, as they come and go.
pub(crate) type Roots = Arc<Mutex<BTreeSet<u32>>>;

/// Looks at processes and their descendants until it is asked for their peaks.
#[derive(Debug)]
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    sampler: JoinHandle<u64>,
}

impl PeakMemory {
    pub(crate) fn of(roots: &Roots) -> Self {
        let (roots, stop) = (Arc::clone(roots), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let sampler = thread::spawn(move || {
            let mut peaks = BTreeMap::new();
            loop {
                let is_last = stopped.load(Ordering::Relaxed);
                let roots = roots.lock().unwrap_or_else(PoisonError::into_inner).clone();
                for pid in roots.into_iter().flat_map(tree) {
                    // The last one counts, not the largest: before a new process runs its program it has our memory.
                    if let Some(peak) = peak_memory(pid) {
                        peaks.insert(pid, peak);
                    }
                }
                if is_last {
                    return peaks.values().sum();
                }
                thread::sleep(SAMPLING);
            }
        });
        Self { stop, sampler }
    }

    /// The sum of the peaks of all processes that were seen, in bytes.
    pub(crate) fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.sampler.join().expect("it only reads /proc")
    }
}

impl Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { cpu: self.cpu + other.cpu, read: self.read + other.read }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Of a process and of its children that it has waited for.
fn of_one(pid: u32) -> Result<Usage, Failure> {
    let stat = read(pid, "stat")?;
    // The name, in parentheses, may hold anything; the third field comes after it.
    let fields: Vec<&str> =
        stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = (14..=17).map(|place: usize| fields.get(place - 3)?.parse::<u32>().ok());
    let ticks = ticks.sum::<Option<u32>>();
    let ticks =
        ticks.ok_or_else(|| Failure::new(format!("/proc/{pid}/stat is not as expected")))?;
    let read = field(&read(pid, "io")?, "rchar:").ok_or_else(|| gone(pid))?;
    Ok(Usage { cpu: TICK * ticks, read })
}

/// A process and all its descendants.
fn tree(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    let mut pending = vec![root];
    while let Some(pid) = pending.pop() {
        pending.extend(children(pid).into_iter().filter(|child| found.insert(*child)));
    }
    found
}

/// The children that a process has at the moment, whichever of its threads started them.
fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let children = |list: String| -> Vec<u32> {
        list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    lists.flat_map(|list| children(list.unwrap_or_default())).collect()
}

fn peak_memory(pid: u32) -> Option<u64> {
    Some(field(&read(pid, "status").ok()?, "VmHWM:")? * 1024)
}

fn read(pid: u32, file: &str) -> Result<String, Failure> {
    fs::read_to_string(format!("/proc/{pid}/{file}")).map_err(|_| gone(pid))
}

fn gone(pid: u32) -> Failure {
    Failure::new(format!("process {pid} has ended, so it cannot be measured"))
}

fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_process_can_be_measured() {
        let before = of_one(std::process::id()).unwrap();
        let bytes = std::hint::black_box(vec![1_u8; 64 << 20]);
        fs::read("/proc/self/exe").unwrap();
        let after = of_one(std::process::id()).unwrap();
        assert!(peak_memory(std::process::id()).unwrap() >= bytes.len() as u64);
        assert!(after.read > before.read + 100_000);
        assert!(after.cpu >= before.cpu);
        assert!(usage(u32::MAX).is_err());
    }

    #[test]
    fn what_has_ended_still_counts() {
        let mut shell = Command::new("sh")
            .args(["-c", "head -c 3000000 /dev/zero >/dev/null; echo done; read line; exit 0"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let done = &mut [0; 4];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), done).unwrap();
        let roots = Roots::default();
        roots.lock().unwrap().insert(shell.id());
        let memory = PeakMemory::of(&roots);
        let used = usage(shell.id()).unwrap();
        assert!(memory.finish() > 0);
        assert!((3_000_000..4_000_000).contains(&used.read), "{used:?}");
        drop(shell.stdin.take());
        while peak_memory(shell.id()).is_some() {
            thread::yield_now();
        }
        assert!(usage(shell.id()).unwrap().read >= used.read);
        shell.wait().unwrap();
    }
}
