//! `consort invite`

use std::time::Duration;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text;

/// Print a ticket with which another machine can join this cluster.
///
/// A ticket is a secret: whoever has it can join. It is alone on stdout.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort invite
  consort invite --role reader --expires 7d --uses 20
  ssh b consort join $(consort invite)")]
pub(crate) struct Invite {
    /// What the new member may do
    #[arg(long, value_enum, default_value_t = json::Role::Writer, value_name = "ROLE")]
    role: json::Role,

    /// How long the ticket is good for, such as 24h or 7d
    #[arg(long, value_parser = text::parse_duration, default_value = "24h", value_name = "TIME")]
    expires: Duration,

    /// How many machines can join with it
    #[arg(
        long,
        value_parser = clap::value_parser!(u32).range(1..),
        default_value_t = 1,
        value_name = "N"
    )]
    uses: u32,
}

impl Invite {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let expires_ms = u64::try_from(self.expires.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Invite { role: self.role, expires_ms, uses: self.uses };
        let ticket: json::Ticket = context.node().one(request).await?;
        context.ui.say(format_args!(
            "A ticket for {} as {}, good for {}. On the other machine: consort join TICKET",
            text::counted(self.uses.into(), "machine", "machines"),
            self.role.as_str(),
            text::duration(self.expires)
        ));
        context.ui.result(&ticket, |ticket, _| text::plain(&ticket.ticket) + "\n")
    }
}
