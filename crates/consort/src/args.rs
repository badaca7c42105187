//! What can be asked on the command line. The names, flags and meanings are a contract: they do not change, more may
//! come. The arguments of a command are beside what it does, in [`crate::command`].

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::command;
use crate::error::Error;

/// Keeps datasets identical on many machines.
#[derive(Debug, Parser)]
#[command(
    name = "consort",
    version,
    propagate_version = false,
    disable_help_subcommand = false,
    max_term_width = 100,
    after_help = "\
Examples:
  consort dev ./photos              try it: three nodes on this machine, kept identical
  consort init && consort up        make this machine a node, and run it
  consort status                    how things stand

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 timed out, 4 conflict, 5 not allowed."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Global {
    /// The node's home directory [default: consort in the user's data directory]
    #[arg(long, global = true, env = "CONSORT_HOME", hide_env_values = true, value_name = "DIR")]
    home: Option<PathBuf>,

    /// Print results as JSON: one document, or one a line for streams
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// What to log to stderr, such as debug or warn,consort_node=trace
    #[arg(
        long,
        global = true,
        env = "CONSORT_LOG",
        hide_env_values = true,
        default_value = "warn",
        hide_default_value = true,
        value_name = "FILTER"
    )]
    pub(crate) log: String,

    /// How log lines look
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t = LogFormat::Text,
        value_name = "FORMAT"
    )]
    pub(crate) log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// One command.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Init(command::init::Init),
    Up(command::up::Up),
    Invite(command::invite::Invite),
    Join(command::join::Join),
    Leave(command::leave::Leave),
    #[command(subcommand)]
    Member(command::member::Member),
    #[command(subcommand)]
    Dataset(command::dataset::Dataset),
    Link(command::link::Link),
    Unlink(command::unlink::Unlink),
    Put(command::put::Put),
    Get(command::get::Get),
    Ls(command::ls::Ls),
    Stat(command::stat::Stat),
    Rm(command::rm::Rm),
    Conflicts(command::conflicts::Conflicts),
    Feed(command::feed::Feed),
    Wait(command::wait::Wait),
    Status(command::status::Status),
    Doctor(command::doctor::Doctor),
    Plan(command::plan::Plan),
    Dev(command::dev::Dev),
    Completions(command::completions::Completions),
}

impl Global {
    /// The node's home, absolute.
    pub(crate) fn home(&self) -> Result<PathBuf, Error> {
        let home = match &self.home {
            Some(home) => home.clone(),
            None => default_home(&|name| std::env::var_os(name).map(PathBuf::from)).ok_or_else(
                || {
                    Error::usage("there is no home directory to keep the node in")
                        .hint("name one with --home DIR or CONSORT_HOME")
                },
            )?,
        };
        std::path::absolute(&home).map_err(|error| Error::io("use", &home, &error))
    }

    /// The home that was asked for, if any was.
    pub(crate) fn chosen_home(&self) -> Option<&PathBuf> {
        self.home.as_ref()
    }
}

/// The home of a user who names none. Relative paths in the environment do not count, as the XDG rules have it.
fn default_home(variable: &dyn Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("consort"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_was_promised_is_understood() {
        for line in [
            "init",
            "init --name a",
            "up",
            "up --listen 127.0.0.1:0",
            "up --evict-after 7d",
            "up --evict-after never",
            "up --limit-up 10MB/s --limit-down 80Mbit/s",
            "up --limit-up unlimited",
            "invite",
            "invite --role writer --expires 24h --uses 1",
            "invite --role reader",
            "invite --role relay",
            "invite --role admin",
            "join TICKET",
            "join TICKET --name b --listen 0.0.0.0:7440",
            "leave",
            "leave --timeout 15m",
            "leave --force --json",
            "member list",
            "member evict b",
            "member revoke b",
            "dataset create photos",
            "dataset create photos --mode mesh --on-conflict keep-both",
            "dataset create photos --mode hub --authority file:///x --on-conflict latest",
            "dataset create photos --on-conflict prefer-real",
            "dataset list",
            "dataset show photos",
            "dataset drop photos",
            "link photos ./photos",
            "link photos ./photos --read-only",
            "link photos ./photos --allow-mass-delete",
            "unlink photos",
            "put photos a.jpg",
            "put photos a.jpg -",
            "put photos a.jpg FILE --type image/jpeg --origin synthetic --meta k=v --meta l=a=b",
            "get photos a.jpg",
            "get photos a.jpg -o FILE",
            "ls photos",
            "ls photos PREFIX",
            "stat photos a.jpg",
            "rm photos a.jpg",
            "get photos a.jpg --version 00112233445566778899aabbccddeeff-0123456789abcdef",
            "stat photos a.jpg --version 00112233445566778899aabbccddeeff-0123456789abcdef",
            "conflicts photos",
            "conflicts help",
            "conflicts photos --json",
            "conflicts resolve photos a.jpg --keep 00112233445566778899aabbccddeeff-0123456789abcdef",
            "conflicts resolve photos a.jpg --keep 00112233445566778899aabbccddeeff-0123456789abcdef --seen 00112233445566778899aabbccddeeff-0123456789abcdee --seen 00112233445566778899aabbccddeeff-0123456789abcded",
            "feed photos",
            "feed photos --since 1:7 --follow",
            "wait photos",
            "wait photos --timeout 60s",
            "status",
            "status photos --watch",
            "doctor",
            "doctor --deep",
            "dev",
            "dev DIR --nodes 3 --once",
            "completions bash",
            "--home /h --json --log debug --log-format json status",
            "status --home /h --json --log debug --log-format json",
        ] {
            let words = std::iter::once("consort").chain(line.split(' '));
            if let Err(error) = Args::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "",
            "fly",
            "join",
            "up --listen here",
            "up --evict-after soon",
            "up --evict-after 0s",
            "up --limit-up 10",
            "up --limit-down 10Mb/s",
            "invite --role king",
            "invite --expires 24",
            "invite --uses 0",
            "link photos",
            "put photos",
            "put photos a --origin fake",
            "put photos a --meta novalue",
            "get photos",
            "feed photos --since yesterday",
            "wait photos --timeout soon",
            "leave photos",
            "leave --timeout soon",
            "dev --nodes 0",
            "dev --nodes 1000",
            "completions klingon",
            "dataset create photos --mode ring",
            "dataset create photos --on-conflict toss-a-coin",
            "conflicts",
            "conflicts resolve photos a",
            "conflicts resolve photos a --keep latest",
            "get photos a --version 1",
        ] {
            let words = std::iter::once("consort").chain(line.split_whitespace());
            assert!(Args::try_parse_from(words).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_default_home_is_in_the_users_data_directory() {
        let with = |pairs: &'static [(&str, &str)]| {
            default_home(&move |name| {
                let found = pairs.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| PathBuf::from(value))
            })
        };
        assert_eq!(with(&[("HOME", "/u")]), Some("/u/.local/share/consort".into()));
        assert_eq!(with(&[("HOME", "/u"), ("XDG_DATA_HOME", "/d")]), Some("/d/consort".into()));
        assert_eq!(
            with(&[("HOME", "/u"), ("XDG_DATA_HOME", "relative")]),
            Some("/u/.local/share/consort".into())
        );
        assert_eq!(with(&[]), None);
    }
}
