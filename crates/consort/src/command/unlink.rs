//! `consort unlink`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::plain;

/// Stop keeping a directory and a dataset identical; both keep what they have.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  consort unlink photos")]
pub(crate) struct Unlink {
    /// The dataset
    name: String,
}

impl Unlink {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let message = format!("Dataset {} has no directory here any more.", plain(&self.name));
        context.node().tell(Request::Unlink { name: self.name }).await?;
        context.ui.outcome(&json::Done { done: true }, message)
    }
}
