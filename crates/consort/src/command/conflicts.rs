//! `consort conflicts`

use consort_node::Dot;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{Table, bytes, counted, plain, time};
use crate::ui::json_line;

/// Show the entries with concurrent versions to choose from, or choose one.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    after_help = "\
Examples:
  consort conflicts photos
  consort conflicts photos --json | jq '.[].key'
  consort conflicts resolve photos 2026/cat.jpg --keep VERSION"
)]
pub(crate) struct Conflicts {
    #[command(subcommand)]
    action: Option<Action>,

    /// The dataset
    #[arg(required = true)]
    name: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Resolve(Resolve),
}

/// Make one version of an entry the only one, on all nodes.
///
/// It replaces what you have seen. What came meanwhile stays beside it: exit code 4.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort conflicts resolve photos 2026/cat.jpg --keep VERSION
  consort conflicts resolve photos 2026/cat.jpg --keep VERSION --seen VERSION --seen VERSION")]
struct Resolve {
    /// The dataset
    name: String,

    /// The entry
    key: String,

    /// The version that stays
    #[arg(long, value_name = "VERSION")]
    keep: Dot,

    /// A version that you chose between; may be given several times [default: all that are there]
    #[arg(long, value_name = "VERSION")]
    seen: Vec<Dot>,
}

impl Conflicts {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        match (self.action, self.name) {
            (Some(Action::Resolve(resolve)), _) => resolve.run(context).await,
            (None, Some(name)) => list(name, context).await,
            (None, None) => Err(Error::usage("which dataset?")),
        }
    }
}

async fn list(name: String, context: &Context) -> Result<(), Error> {
    let Context { ui, .. } = context;
    let shown = plain(&name);
    let mut answers = context.node().ask(Request::Conflicts { name }).await?;
    // One document, written as it comes, like the list of entries.
    let mut keys = 0;
    while let Some(conflict) = answers.next::<json::Conflict>().await? {
        if ui.is_json() {
            let before = if keys == 0 { "[" } else { ",\n" };
            ui.write(format!("{before}{}", json_line(&conflict).trim_end()).as_bytes())?;
        } else {
            ui.write(render(&conflict).as_bytes())?;
        }
        keys += 1;
    }
    if ui.is_json() {
        ui.write(if keys == 0 { b"[]\n" } else { b"]\n" })?;
    }
    ui.flush()?;
    ui.say(match keys {
        0 => format!("No conflicts in {shown}."),
        keys => format!(
            "{} to choose for: consort conflicts resolve {shown} ENTRY --keep VERSION",
            counted(keys, "entry", "entries")
        ),
    });
    Ok(())
}

impl Resolve {
    async fn run(self, context: &Context) -> Result<(), Error> {
        let (name, key) = (plain(&self.name), plain(&self.key));
        let request = Request::Resolve {
            name: self.name,
            key: self.key,
            keep: self.keep.to_string(),
            seen: self.seen.iter().map(Dot::to_string).collect(),
        };
        let resolved: json::Resolved = context.node().one(request).await?;
        let others = counted(resolved.replaced as u64, "other", "others");
        let message = format!("Resolved {key} in {name}: {} replaces {others}.", resolved.version);
        context.ui.outcome(&resolved, message)
    }
}

fn render(conflict: &json::Conflict) -> String {
    let mut table = Table::default();
    let mut row = |what: &str, candidate: &json::Candidate| {
        let path = candidate.path.as_ref().map_or_else(String::new, |path| plain(path));
        table.row([
            format!("  {what}"),
            time(candidate.written_ms),
            format!("by {}", plain(&candidate.author)),
            bytes(candidate.size),
            candidate.origin.as_str().to_string(),
            candidate.media_type.as_ref().map_or_else(String::new, |text| plain(text)),
            candidate.version.clone(),
            path,
        ]);
    };
    row("won", &conflict.winner);
    conflict.losers.iter().for_each(|loser| row("lost", loser));
    let more = match conflict.more {
        0 => String::new(),
        more => format!("  and {} more\n", counted(more as u64, "version", "versions")),
    };
    format!("{}\n{table}{more}", plain(&conflict.key))
}
