//! `consort leave`

use std::time::Duration;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{self, plain};

/// End this node's own membership in good order.
///
/// It is for good. Directories stay as they are, with all files.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort leave
  consort leave --timeout 15m
  consort leave --force          what only this node has is lost to the others

First it takes in the linked directories and sees to it that others have what this node has: for
each dataset, a member that writes has confirmed all versions, and one has them in a linked
directory, if there are contents here. Otherwise it says what is missing and ends with 1, or with
3 if that takes too long. Then it has an admin end the membership.")]
pub(crate) struct Leave {
    /// How long to wait until others have everything, such as 60s, 15m or 24h
    #[arg(long, value_parser = text::parse_duration, default_value = "60s", value_name = "TIME")]
    timeout: Duration,

    /// Leave without looking whether others have what this node has
    #[arg(long)]
    force: bool,
}

impl Leave {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let request = Request::Leave { timeout_ms, force: self.force };
        let left: json::Left = context.node().one(request).await?;
        context.ui.outcome(&left, message(&left, context))
    }
}

fn message(left: &json::Left, context: &Context) -> String {
    let mut text = match &left.ended_by {
        None => "This node is no member any more. It was the only one.\n".to_owned(),
        Some(admin) => {
            let checked = if left.checked {
                "Another member that writes has confirmed all versions; contents are in a linked directory of\n\
                 one, as it told: they were not compared piece by piece.\n"
            } else {
                "Whether others have what this node has was not looked at (--force).\n"
            };
            format!(
                "This node is no member any more: {} ended its membership.\n{checked}",
                plain(admin)
            )
        }
    };
    for dir in &left.dirs {
        text.push_str(&format!("{} stays as it is, with all files.\n", plain(dir)));
    }
    let home = plain(&context.home.display().to_string());
    text.push_str(&format!("Next: stop it (Ctrl-C where `consort up` runs), and remove {home}."));
    text
}
