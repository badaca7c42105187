//! What commands do: one file each. A command parses nothing and prints nothing by itself; it asks the node through
//! [`Client`] and shows the answer through [`Ui`].

pub(crate) mod completions;
pub(crate) mod conflicts;
pub(crate) mod dataset;
pub(crate) mod dev;
pub(crate) mod doctor;
pub(crate) mod feed;
pub(crate) mod get;
pub(crate) mod init;
mod interrupt;
pub(crate) mod invite;
pub(crate) mod join;
pub(crate) mod leave;
pub(crate) mod link;
pub(crate) mod ls;
pub(crate) mod member;
pub(crate) mod plan;
pub(crate) mod put;
pub(crate) mod rm;
pub(crate) mod stat;
pub(crate) mod status;
pub(crate) mod unlink;
pub(crate) mod up;
pub(crate) mod wait;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};
use crate::control::Client;
use crate::error::Error;
use crate::text;
use crate::ui::{self, Ui};

/// What a new member tells that knows nothing of its cluster yet.
const NOTHING_HEARD: &str = "This node has not heard from its cluster yet: start another member (`consort up` there), and see that this node can reach it; `consort doctor` says more.";

/// What every command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// Where to write.
    pub(crate) ui: Ui,
    /// The node's home, absolute.
    pub(crate) home: PathBuf,
    /// Whether the user named the home.
    pub(crate) home_is_chosen: bool,
}

impl Context {
    /// The node of this home.
    pub(crate) fn node(&self) -> Client {
        Client::new(&self.home)
    }

    /// A command for the same node, as a user would type it.
    pub(crate) fn command(&self, words: &str) -> String {
        if self.home_is_chosen {
            text::command(&self.home, words)
        } else {
            format!("consort {words}")
        }
    }
}

/// Parses, runs, and says how it went.
pub(crate) fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) => {
            let wants_json = std::env::args_os().any(|arg| arg == OsStr::new("--json"));
            Ui::new(wants_json).usage(&error);
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let ui = Ui::new(args.global.json);
    match start(args, ui) {
        Ok(()) => ExitCode::SUCCESS,
        Err((error, ui)) => {
            ui.error(&error);
            error.exit_code()
        }
    }
}

fn start(args: Args, ui: Ui) -> Result<(), (Error, Ui)> {
    let prepared = ui::start_log(&args.global.log, args.global.log_format)
        .and_then(|()| args.global.home())
        .and_then(|home| {
            let runtime = tokio::runtime::Runtime::new();
            let runtime = runtime.map_err(|error| {
                Error::failed(format!("cannot start: {error}"))
                    .hint("see how many processes and open files this user may have (`ulimit -a`)")
            })?;
            Ok((home, runtime))
        });
    let (home, runtime) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return Err((error, ui)),
    };
    let context = Context { ui, home, home_is_chosen: args.global.chosen_home().is_some() };
    let result = runtime.block_on(run(args.command, &context));
    // A read from a terminal may be under way; nobody waits for it.
    runtime.shutdown_background();
    result.map_err(|error| (error, context.ui))
}

async fn run(command: Command, context: &Context) -> Result<(), Error> {
    match command {
        Command::Init(command) => command.run(context),
        Command::Up(command) => command.run(context).await,
        Command::Invite(command) => command.run(context).await,
        Command::Join(command) => command.run(context).await,
        Command::Leave(command) => command.run(context).await,
        Command::Member(command) => command.run(context).await,
        Command::Dataset(command) => command.run(context).await,
        Command::Link(command) => command.run(context).await,
        Command::Unlink(command) => command.run(context).await,
        Command::Put(command) => command.run(context).await,
        Command::Get(command) => command.run(context).await,
        Command::Ls(command) => command.run(context).await,
        Command::Stat(command) => command.run(context).await,
        Command::Rm(command) => command.run(context).await,
        Command::Conflicts(command) => command.run(context).await,
        Command::Feed(command) => command.run(context).await,
        Command::Wait(command) => command.run(context).await,
        Command::Status(command) => command.run(context).await,
        Command::Doctor(command) => command.run(context).await,
        Command::Plan(command) => command.run(context),
        Command::Dev(command) => command.run(context).await,
        Command::Completions(command) => command.run(context),
    }
}

/// A path as text, for the control socket and for JSON.
fn path_text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| {
        Error::usage(format!("the path {} is not UTF-8", path.display()))
            .hint("rename it, or reach it through a symbolic link")
    })?;
    Ok(text.to_string())
}
