//! `consort member list|evict|revoke`

use crate::command::{Context, NOTHING_HEARD};
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{Table, plain};

/// Show who belongs to the cluster, stop waiting for a member, or end a membership.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  consort member list
  consort member revoke trainer-7")]
pub(crate) enum Member {
    /// Show the members of the cluster.
    #[command(after_help = "Example:\n  consort member list")]
    List,
    /// Stop waiting for a member that is away, before deletions are forgotten
    #[command(after_help = "\
Example:
  consort member evict laptop-3

It stays a member. When it returns, nothing that was deleted comes back, what was written on it
meanwhile is kept, and it is waited for again.")]
    Evict {
        /// The member's name or identity
        member: String,
    },
    /// End a membership: the node can neither connect nor write any more.
    #[command(after_help = "\
Examples:
  consort member revoke trainer-7
  consort member revoke 5f3a90c2d1e84b7796a0c3de12f48b60     by identity, if names repeat")]
    Revoke {
        /// The member's name or identity
        member: String,
    },
}

impl Member {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::List => {
                let members: Vec<json::Member> = context.node().all(Request::Members).await?;
                if members.is_empty() {
                    context.ui.say(NOTHING_HEARD);
                }
                context.ui.result(&members, |members, _| table(members))
            }
            Self::Evict { member } => {
                let message = format!("Nobody waits for {} any more.", plain(&member));
                context.node().tell(Request::Evict { member }).await?;
                context.ui.outcome(&json::Done { done: true }, message)
            }
            Self::Revoke { member } => {
                let message = format!("{} is no member any more.", plain(&member));
                context.node().tell(Request::Revoke { member }).await?;
                context.ui.outcome(&json::Done { done: true }, message)
            }
        }
    }
}

fn table(members: &[json::Member]) -> String {
    let mut table = Table::default();
    for member in members {
        let presence = match member {
            json::Member { revoked: true, .. } => "revoked",
            json::Member { this_node: true, .. } => "this node",
            json::Member { connected: true, .. } => "connected",
            json::Member { waited_for: false, .. } => "not connected, not waited for",
            _ => "not connected",
        };
        let addresses: Vec<String> = member.addresses.iter().map(ToString::to_string).collect();
        table.row([
            plain(&member.peer.name),
            member.peer.node.clone(),
            member.role.as_str().to_string(),
            presence.to_string(),
            addresses.join(" "),
        ]);
    }
    table.to_string()
}
