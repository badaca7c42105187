//! What Linux says about processes, from `/proc`: processor time, memory, bytes read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::failure::Failure;

/// The unit of times in `/proc`, on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// How often processes are looked at that may end at any time. Their peak is kept by the system, so that only what they
/// take in the last moments may be missed.
const SAMPLING: Duration = Duration::from_millis(20);

/// What a process has used since it began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// In user mode and in the system.
    pub(crate) cpu: Duration,
    /// The most memory that it ever had resident, in bytes.
    pub(crate) peak_memory: u64,
    /// Bytes read from anywhere: files, pipes and sockets, also from the cache.
    pub(crate) read: u64,
}

/// What a running process has used.
pub(crate) fn usage(pid: u32) -> Result<Usage, Failure> {
    let times = times(&pid.to_string())?;
    Ok(Usage {
        cpu: times.own,
        peak_memory: peak_memory(pid).ok_or_else(|| gone(pid))?,
        read: field(&read(pid, "io")?, "rchar:").ok_or_else(|| gone(pid))?,
    })
}

/// The processor time of all children of this process that have ended and were waited for, and of theirs.
pub(crate) fn children_cpu() -> Result<Duration, Failure> {
    Ok(times("self")?.children)
}

/// The processor time of a running process and of its children that have ended.
pub(crate) fn cpu_with_children(pid: u32) -> Result<Duration, Failure> {
    let Times { own, children } = times(&pid.to_string())?;
    Ok(own + children)
}

/// The children that a process has at the moment, whichever of its threads started them.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")));
    let children = |list: String| -> Vec<u32> {
        list.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    lists.flat_map(|list| children(list.unwrap_or_default())).collect()
}

/// Looks at a process and its descendants until it is asked for their peaks.
#[derive(Debug)]
pub(crate) struct PeakMemory {
    stop: Arc<AtomicBool>,
    sampler: JoinHandle<u64>,
}

impl PeakMemory {
    pub(crate) fn of_tree(root: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sampler = thread::spawn(move || {
            let mut peaks = BTreeMap::new();
            loop {
                for pid in descendants(root) {
                    // The last one counts, not the largest: before a new process runs its program it has our memory.
                    if let Some(peak) = peak_memory(pid) {
                        peaks.insert(pid, peak);
                    }
                }
                if stopped.load(Ordering::Relaxed) {
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

struct Times {
    own: Duration,
    children: Duration,
}

fn times(process: &str) -> Result<Times, Failure> {
    let path = format!("/proc/{process}/stat");
    let text =
        fs::read_to_string(&path).map_err(|error| Failure::io(format!("read {path}"), error))?;
    // The name, in parentheses, may hold anything; the third field comes after it.
    let fields: Vec<&str> =
        text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks = |place: usize| -> Result<Duration, Failure> {
        let number = fields.get(place - 3).and_then(|field| field.parse::<u32>().ok());
        Ok(TICK * number.ok_or_else(|| Failure::new(format!("{path} is not as expected")))?)
    };
    Ok(Times { own: ticks(14)? + ticks(15)?, children: ticks(16)? + ticks(17)? })
}

fn descendants(root: u32) -> BTreeSet<u32> {
    let mut found = BTreeSet::from([root]);
    let mut pending = vec![root];
    while let Some(pid) = pending.pop() {
        pending.extend(children(pid).into_iter().filter(|child| found.insert(*child)));
    }
    found
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
    use super::*;

    #[test]
    fn a_process_can_be_measured() {
        let before = usage(std::process::id()).unwrap();
        let bytes = std::hint::black_box(vec![1_u8; 64 << 20]);
        fs::read("/proc/self/exe").unwrap();
        let after = usage(std::process::id()).unwrap();
        assert!(after.peak_memory >= bytes.len() as u64);
        assert!(after.read > before.read + 100_000);
        assert!(after.cpu >= before.cpu);
        assert!(usage(u32::MAX).is_err());
    }

    #[test]
    fn children_are_found_with_their_memory() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(children(std::process::id()).contains(&child.id()));
        let memory = PeakMemory::of_tree(child.id());
        while peak_memory(child.id()).is_none_or(|peak| peak == 0) {
            thread::yield_now();
        }
        let peak = memory.finish();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(peak > 0);
        assert!(cpu_with_children(std::process::id()).unwrap() >= children_cpu().unwrap());
    }
}
