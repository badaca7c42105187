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
/// One that is not there is made, if the directory that it is to be in is there.
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
        let linked: json::Linked = context.node().one(request).await?;
        let dir = plain(&linked.link.dir);
        if linked.created {
            context.ui.say(format_args!("{dir} was not there; it was made, and is empty yet."));
        }
        let what = if linked.link.read_only {
            format!(
                "{dir} follows dataset {dataset} from now on; what is changed there is not taken over."
            )
        } else {
            format!("{dir} and dataset {dataset} are kept identical from now on.")
        };
        let next = context.command(&format!("wait {dataset}"));
        context.ui.outcome(&linked, format!("{what}\nTo wait until all is there: {next}"))
    }
}
