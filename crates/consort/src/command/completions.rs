//! `consort completions`

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::Args;
use crate::command::Context;
use crate::error::Error;
use crate::json;

/// Print a script that teaches a shell to complete consort's commands.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort completions bash > ~/.local/share/bash-completion/completions/consort
  consort completions zsh > ~/.zfunc/_consort
  consort completions fish > ~/.config/fish/completions/consort.fish")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self, context: &Context) -> Result<(), Error> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Args::command(), "consort", &mut script);
        let script = String::from_utf8_lossy(&script).into_owned();
        let result = json::Completions { shell: self.shell.to_string(), script };
        context.ui.result(&result, |result, _| result.script.clone())
    }
}
