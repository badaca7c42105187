//! `consort ls`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{bytes, plain, time};
use crate::ui::json_line;

/// List the entries of a dataset whose keys begin with a prefix, in order of their keys.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort ls photos
  consort ls photos 2026/ --json")]
pub(crate) struct Ls {
    /// The dataset
    name: String,

    /// What the keys begin with
    #[arg(default_value = "", hide_default_value = true)]
    prefix: String,
}

impl Ls {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let Context { ui, .. } = context;
        let mut answers =
            context.node().ask(Request::List { name: self.name, prefix: self.prefix }).await?;
        // One document, but written as it comes: a dataset may have more entries than there is memory for. So a
        // failure before the first entry is an error, and one after it leaves the document open.
        let mut before = "[";
        while let Some(entry) = answers.next::<json::Entry>().await? {
            if ui.is_json() {
                ui.write(format!("{before}{}", json_line(&entry).trim_end()).as_bytes())?;
                before = ",\n";
            } else {
                ui.write(line(&entry).as_bytes())?;
            }
        }
        if ui.is_json() {
            ui.write(if before == "[" { b"[]\n" } else { b"]\n" })?;
        }
        ui.flush()
    }
}

fn line(entry: &json::Entry) -> String {
    let sign = match entry.kind {
        json::EntryKind::File => "",
        json::EntryKind::Directory => "/",
        json::EntryKind::Symlink => "@",
    };
    let conflicts = match entry.conflicts {
        0 => String::new(),
        more => format!("  (+{more} concurrent)"),
    };
    format!(
        "{:03o}  {:>10}  {}  {}{sign}{conflicts}\n",
        entry.mode,
        bytes(entry.size),
        time(entry.written_ms),
        plain(&entry.key)
    )
}
