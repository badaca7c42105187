//! `consort dataset create|list|show|drop`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{Table, count, counted, plain, time};

/// Create, show and drop datasets.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "\
Examples:
  consort dataset create photos
  consort dataset list
  consort dataset show photos")]
pub(crate) enum Dataset {
    /// Create a dataset, for all nodes of the cluster.
    ///
    /// Names have 3 to 63 lower-case letters, digits and hyphens.
    #[command(after_help = "\
Examples:
  consort dataset create photos
  consort dataset create photos --on-conflict prefer-real

What becomes of versions of an entry whose writers did not know of each other (--on-conflict):
  keep-both      the later one wins; the others stay beside it until somebody chooses
  latest         the later one wins, and the next write drops the others without asking
  prefer-real    a real one wins over synthetic and derived ones, which are dropped in the same way;
                 of several real ones, or if none is, as keep-both")]
    Create {
        /// What to call it
        name: String,
        /// Who decides the order of changes: every writer, or one authority
        #[arg(long, value_enum, default_value_t = json::Mode::Mesh, value_name = "MODE")]
        mode: json::Mode,
        /// The authority's object store, for a hub
        #[arg(long, value_name = "URL")]
        authority: Option<String>,
        /// What becomes of versions that were written at the same time
        #[arg(
            long,
            value_enum,
            default_value_t = json::OnConflict::KeepBoth,
            value_name = "POLICY"
        )]
        on_conflict: json::OnConflict,
    },
    /// Show all datasets that this node knows.
    #[command(after_help = "Example:\n  consort dataset list")]
    List,
    /// Show one dataset.
    #[command(after_help = "Example:\n  consort dataset show photos --json")]
    Show {
        /// The dataset
        name: String,
    },
    /// Drop a dataset on all nodes; linked directories keep their files.
    #[command(after_help = "Example:\n  consort dataset drop photos")]
    Drop {
        /// The dataset
        name: String,
    },
}

impl Dataset {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let node = context.node();
        match self {
            Self::Create { name, mode, authority, on_conflict } => {
                let request = Request::CreateDataset { name, mode, authority, on_conflict };
                let dataset: json::Dataset = node.one(request).await?;
                let name = plain(&dataset.name);
                let message = format!(
                    "Dataset {name} is there.\nNext: {}",
                    context.command(&format!("link {name} DIRECTORY"))
                );
                context.ui.outcome(&dataset, message)
            }
            Self::List => {
                let datasets: Vec<json::Dataset> = node.all(Request::Datasets).await?;
                context.ui.result(&datasets, |datasets, _| list(datasets))
            }
            Self::Show { name } => {
                let dataset: json::Dataset = node.one(Request::Dataset { name }).await?;
                context.ui.result(&dataset, |dataset, _| show(dataset))
            }
            Self::Drop { name } => {
                let message =
                    format!("Dataset {} is dropped. Directories keep their files.", plain(&name));
                node.tell(Request::DropDataset { name }).await?;
                context.ui.outcome(&json::Done { done: true }, message)
            }
        }
    }
}

fn list(datasets: &[json::Dataset]) -> String {
    let mut table = Table::default();
    for dataset in datasets {
        table.row([
            plain(&dataset.name),
            dataset.mode.as_str().to_string(),
            dataset.on_conflict.as_str().to_string(),
            counted(dataset.versions, "version", "versions"),
            dataset.link.as_ref().map_or_else(|| "not linked".into(), link),
        ]);
    }
    table.to_string()
}

fn show(dataset: &json::Dataset) -> String {
    let mut table = Table::default();
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("name", plain(&dataset.name));
    row("identity", dataset.id.clone());
    row("mode", dataset.mode.as_str().to_string());
    row("on conflict", dataset.on_conflict.as_str().to_string());
    row("created", time(dataset.created_ms));
    row("versions", count(dataset.versions));
    row("digest", plain(&dataset.digest));
    row("feed ends at", dataset.head.clone());
    row("directory", dataset.link.as_ref().map_or_else(|| "not linked".into(), link));
    table.to_string()
}

fn link(link: &json::Link) -> String {
    let note = if link.read_only { " (read only)" } else { "" };
    plain(&link.dir) + note
}
