//! `consort join`

use std::net::SocketAddr;

use crate::command::{Context, path_text};
use crate::control::check_home;
use crate::error::Error;
use crate::json;
use crate::text::plain;

/// Make this machine a member of the cluster that a ticket invites it to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort join TICKET                         then: consort up
  consort join TICKET --name trainer-7 --listen 10.0.0.7:7440

A member prints the ticket: consort invite")]
pub(crate) struct Join {
    /// The line that `consort invite` printed on a member
    ticket: String,

    /// What people call this node [default: the machine's name]
    #[arg(long, value_name = "N")]
    name: Option<String>,

    /// Where this node will listen for others [default: 0.0.0.0:7440]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
}

impl Join {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        check_home(&context.home)?;
        let ticket = self.ticket.trim();
        let joined =
            consort_node::join(&context.home, ticket, self.name.as_deref(), self.listen).await?;
        let home = path_text(&context.home)?;
        let role = json::Role::from(joined.role);
        let message = format!(
            "This is now node {} of cluster {}, as {}. Its home is {}.\nNext: {}",
            plain(&joined.name),
            plain(&joined.cluster),
            role.as_str(),
            plain(&home),
            context.command("up")
        );
        let result = json::Membership {
            node: joined.node.to_string(),
            name: joined.name,
            cluster: joined.cluster,
            role,
            home,
        };
        context.ui.outcome(&result, message)
    }
}
