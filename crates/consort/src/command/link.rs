//! `consort link`

use std::path::PathBuf;

use crate::command::{Context, path_text};
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::plain;

/// Keep a directory and a dataset identical, both ways.
///
/// A directory that is not empty is merged: what differs is kept beside, nothing is overwritten.
///
/// Returns at once; `consort wait` waits until everything is there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort link photos ./photos
  consort link photos /data/photos --read-only      only into the directory
  consort link photos ./photos --allow-mass-delete  go on after a pause")]
pub(crate) struct Link {
    /// The dataset
    name: String,

    /// The directory
    dir: PathBuf,

    /// Only write into the directory; what is changed there is not taken over
    #[arg(long)]
    read_only: bool,

    /// Take over the deletion of more than half of the directory, at which the link has paused
    #[arg(long)]
    allow_mass_delete: bool,
}

impl Link {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        // The node has another working directory than we have.
        let dir =
            std::path::absolute(&self.dir).map_err(|error| Error::io("use", &self.dir, &error))?;
        let Self { name, read_only, allow_mass_delete, .. } = self;
        let dir = path_text(&dir)?;
        let dataset = plain(&name);
        let request = Request::Link { name, dir, read_only, allow_mass_delete };
        let link: json::Link = context.node().one(request).await?;
        let message = format!(
            "{} and dataset {dataset} are kept identical from now on. To wait for it: consort wait {dataset}",
            plain(&link.dir)
        );
        context.ui.outcome(&link, message)
    }
}
