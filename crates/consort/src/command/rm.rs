//! `consort rm`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::plain;

/// Delete one entry, on all nodes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  consort rm photos 2026/cat.jpg")]
pub(crate) struct Rm {
    /// The dataset
    name: String,

    /// The entry
    key: String,
}

impl Rm {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let message = format!("Deleted {} from {}.", plain(&self.key), plain(&self.name));
        context.node().tell(Request::Remove { name: self.name, key: self.key }).await?;
        context.ui.outcome(&json::Done { done: true }, message)
    }
}
