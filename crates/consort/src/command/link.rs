//! `consort link`

use std::path::PathBuf;
use std::time::Duration;

use crate::command::{Context, path_text};
use crate::control::wire::Request;
use crate::error::Error;
use crate::json::{self, DatasetState};
use crate::text::plain;

/// How long a pause may take to end that this very link has lifted.
const LIFT_TIME: Duration = Duration::from_secs(2);

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

    /// Take over a deletion of at least 10 entries and more than half of the directory
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
        let request = Request::Link { name: name.clone(), dir, read_only, allow_mass_delete };
        let linked: json::Linked = context.node().one(request).await?;
        let dir = plain(&linked.link.dir);
        if linked.created {
            context.ui.say(format_args!("{dir} was not there; it was made, and is empty yet."));
        }
        if let Some(why) = pause(context, name, allow_mass_delete).await {
            let message = format!("{dir} is linked to dataset {dataset}, which is paused: {why}");
            return context.ui.outcome(&linked, message);
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

/// Why the dataset is paused, if it is. A pause that was `lifted` is given a moment to end.
async fn pause(context: &Context, name: String, lifted: bool) -> Option<String> {
    let request = Request::Status { name: Some(name), watch: lifted };
    // The directory is linked, whatever becomes of this question.
    let mut answers = context.node().ask(request).await.ok()?;
    let mut reason = None;
    let ended = async {
        while let Ok(Some(mut status)) = answers.next::<json::Status>().await {
            let paused =
                status.datasets.pop().filter(|dataset| dataset.state == DatasetState::Paused);
            reason = paused.map(|dataset| plain(&dataset.reason.unwrap_or_default()));
            if reason.is_none() {
                break;
            }
        }
    };
    // What it was at last is told, then.
    let _ = tokio::time::timeout(LIFT_TIME, ended).await;
    reason
}
