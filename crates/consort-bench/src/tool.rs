//! The tools that are measured: one file each says how it is configured, and why so. Here is what a case sees of them:
//! two machines with a directory each, and three things to ask of whatever tool it is.
//!
//! What a tool spends is not asked of it, but measured at its processes and at the link between its machines.

mod consort;
mod lsyncd;
mod rclone;
mod rsync;
mod syncthing;
mod unison;

use std::fmt;
use std::path::Path;
use std::process::Command;

use clap::ValueEnum;

use crate::case::{Bench, Case};
use crate::failure::Failure;
use crate::machine::{Machines, ask};

pub(crate) use self::consort::{Consort, binary};

/// A tool that keeps directories equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    /// Always measured, so that nobody asks for it
    #[value(skip)]
    Consort,
    /// A daemon, as in rsync://, and its client
    Rsync,
    /// `rclone sync` to `rclone serve sftp`
    Rclone,
    /// Two instances, as they are installed but without any foreign host
    Syncthing,
    /// A server on a socket, and its client
    Unison,
    /// Watches, and calls rsync; for single changes
    Lsyncd,
}

/// How one tool is driven. One value of it drives one pair of machines.
pub(crate) trait Driver: fmt::Debug {
    /// Starts what runs before there is any work. The machines know each other then, but not what directories they have,
    /// unless the tool cannot run without.
    fn start(&mut self, machines: &mut Machines) -> Result<(), Failure>;

    /// Tells both sides which directories they have. Nothing to do for those that are told with each call.
    fn link(&mut self, _: &mut Machines) -> Result<(), Failure> {
        Ok(())
    }

    /// Returns when the tool says that the target is equal to what the source was when this was called: it makes it so,
    /// or waits for it.
    fn until_equal(&mut self, machines: &mut Machines) -> Result<(), Failure>;

    /// Ends what remembers the directories while it runs. Nothing to do for those that look anew with each call.
    fn stop(&mut self, _: &mut Machines) -> Result<(), Failure> {
        Ok(())
    }

    /// Starts again what was stopped.
    fn start_again(&mut self, _: &mut Machines) -> Result<(), Failure> {
        Ok(())
    }
}

/// A tool at work on two directories. Its processes end with this.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) machines: Machines,
    driver: Box<dyn Driver>,
}

impl Pair {
    /// Everything runs, and nothing is done yet. What the tool keeps for itself goes below `place`.
    pub(crate) fn start(
        bench: &Bench,
        tool: Tool,
        place: &Path,
        directories: [&Path; 2],
    ) -> Result<Self, Failure> {
        let mut machines = Machines::new(place, directories, bench.rate)?;
        let mut driver: Box<dyn Driver> = match tool {
            Tool::Consort => Box::new(Consort::new(&bench.binary)),
            Tool::Rsync => Box::new(rsync::Rsync),
            Tool::Rclone => Box::new(rclone::Rclone),
            Tool::Syncthing => Box::new(syncthing::Syncthing::default()),
            Tool::Unison => Box::new(unison::Unison),
            Tool::Lsyncd => Box::new(lsyncd::Lsyncd),
        };
        driver.start(&mut machines)?;
        Ok(Self { machines, driver })
    }

    pub(crate) fn link(&mut self) -> Result<(), Failure> {
        self.driver.link(&mut self.machines)
    }

    pub(crate) fn until_equal(&mut self) -> Result<(), Failure> {
        self.driver.until_equal(&mut self.machines)
    }

    pub(crate) fn stop(&mut self) -> Result<(), Failure> {
        self.driver.stop(&mut self.machines)
    }

    pub(crate) fn start_again(&mut self) -> Result<(), Failure> {
        self.driver.start_again(&mut self.machines)
    }
}

impl Tool {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Consort => "consort",
            Self::Rsync => "rsync",
            Self::Rclone => "rclone",
            Self::Syncthing => "syncthing",
            Self::Unison => "unison",
            Self::Lsyncd => "lsyncd",
        }
    }

    /// Why a case says nothing about it, if so.
    pub(crate) fn unfit(self, case: Case) -> Option<&'static str> {
        match (self, case) {
            (_, Case::Reconcile | Case::Formats) => Some("has nothing to set beside this case"),
            (_, Case::FanOut) => {
                Some("serves each target alone, which takes as many times as long")
            }
            (Self::Rsync | Self::Rclone | Self::Unison, Case::Latency) => {
                Some("does not watch, so that it has no such time")
            }
            (Self::Lsyncd, case) if case != Case::Latency => {
                Some("is rsync here, and is measured by single changes only (latency)")
            }
            _ => None,
        }
    }

    /// Which version is installed; how to get it, if none is.
    pub(crate) fn version(self, consort: &Path) -> Result<String, Failure> {
        let name = self.name();
        let (program, argument) = match self {
            Self::Consort => (consort, "--version"),
            Self::Rclone => (Path::new(name), "version"),
            Self::Unison => (Path::new(name), "-version"),
            Self::Rsync | Self::Syncthing | Self::Lsyncd => (Path::new(name), "--version"),
        };
        let mut command = Command::new(program);
        // Some write down that they were called.
        command.arg(argument).env("HOME", "/nonexistent");
        let said = ask(command).map_err(|_| {
            Failure::new(format!("{name} is missing; install it (apt-get install -y {name})"))
        })?;
        let version = said.split_whitespace().find(|word| {
            let word = word.trim_start_matches('v');
            word.starts_with(|first: char| first.is_ascii_digit()) && word.contains('.')
        });
        let version = version.unwrap_or("of unknown version").trim_start_matches('v');
        Ok(format!("{name} {version}"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::verify;
    use crate::workload::Files;

    /// Copies, changes and starts again, if this machine can do that with the tool.
    fn try_out(tool: Tool) {
        let place = tempfile::tempdir().unwrap();
        // Cargo puts tests one directory below programs.
        let own = std::env::current_exe().unwrap();
        let bench = Bench {
            binary: own.ancestors().nth(2).unwrap().join("consort"),
            place: place.path().to_path_buf(),
            versions: Vec::new(),
            against: Vec::new(),
            runs: None,
            files: None,
            rate: None,
        };
        if let Err(failure) = tool.version(&bench.binary) {
            return println!("skipped: {failure}");
        }
        if let Err(failure) = crate::network::pair(None) {
            return println!("skipped: {failure}");
        }
        let at = |name: &str| -> PathBuf {
            let dir = place.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let (source, target) = (at("source"), at("target"));
        let files = Files { count: 20, size: 100_000 };
        files.make(&source, 1).unwrap();
        let mut pair =
            Pair::start(&bench, tool, &place.path().join("homes"), [&source, &target]).unwrap();
        let expect_equal = |pair: &mut Pair| {
            let before = pair.machines.spent().unwrap();
            pair.until_equal().unwrap();
            assert_eq!(verify::difference(&source, &target).unwrap(), None);
            pair.machines.spent().unwrap().since(before).wire
        };
        pair.link().unwrap();
        let before = pair.machines.spent().unwrap();
        assert!(before.wire < files.bytes());
        expect_equal(&mut pair);
        assert!(pair.machines.spent().unwrap().wire > files.bytes());

        if tool.unfit(Case::Changed).is_some() {
            return;
        }
        fs::rename(source.join("0000/0000007.bin"), source.join("new")).unwrap();
        fs::remove_file(source.join("0000/0000011.bin")).unwrap();
        expect_equal(&mut pair);

        pair.stop().unwrap();
        pair.start_again().unwrap();
        assert!(expect_equal(&mut pair) < files.bytes() / 10);
    }

    #[test]
    fn consort_can_be_driven() {
        try_out(Tool::Consort);
    }

    #[test]
    fn rsync_can_be_driven() {
        try_out(Tool::Rsync);
    }

    #[test]
    fn rclone_can_be_driven() {
        try_out(Tool::Rclone);
    }

    #[test]
    fn syncthing_can_be_driven() {
        try_out(Tool::Syncthing);
    }

    #[test]
    fn unison_can_be_driven() {
        try_out(Tool::Unison);
    }

    #[test]
    fn lsyncd_can_be_driven() {
        try_out(Tool::Lsyncd);
    }
}
