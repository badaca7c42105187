//! `consort init`

use crate::command::{Context, path_text};
use crate::control::check_home;
use crate::error::Error;
use crate::json;
use crate::text::plain;

/// Make this machine the first node of a new cluster: identity, store and authority.
///
/// To become a member of a cluster that exists already, use `consort join` instead.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort init                      then: consort up
  consort init --name warehouse     a name for people; default: the machine's")]
pub(crate) struct Init {
    /// What people call this node
    #[arg(long, value_name = "N")]
    name: Option<String>,
}

impl Init {
    pub(crate) fn run(self, context: &Context) -> Result<(), Error> {
        check_home(&context.home)?;
        let made = consort_node::init(&context.home, self.name.as_deref())?;
        let home = path_text(&context.home)?;
        let message = format!(
            "This is now node {} of a new cluster ({}). Its home is {}.\nNext: {}",
            plain(&made.name),
            plain(&made.cluster),
            plain(&home),
            context.command("up")
        );
        let result = json::Membership {
            node: made.node.to_string(),
            name: made.name,
            cluster: made.cluster,
            role: json::Role::Admin,
            home,
        };
        context.ui.outcome(&result, message)
    }
}
