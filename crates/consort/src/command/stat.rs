//! `consort stat`

use consort_node::Dot;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{Table, bytes, counted, plain, time};

/// Show what is known about one entry.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort stat photos 2026/cat.jpg
  consort stat photos 2026/cat.jpg --version VERSION     one that lost: see `consort conflicts`")]
pub(crate) struct Stat {
    /// The dataset
    name: String,

    /// The entry
    key: String,

    /// One of its concurrent versions, instead of the one that won
    #[arg(long = "version", value_name = "VERSION")]
    of_version: Option<Dot>,
}

impl Stat {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let version = self.of_version.map(|version| version.to_string());
        let request = Request::Stat { name: self.name, key: self.key, version };
        let entry: json::Entry = context.node().one(request).await?;
        context.ui.result(&entry, |entry, _| show(entry))
    }
}

fn show(entry: &json::Entry) -> String {
    let mut table = Table::default();
    let mut row = |name: &str, value: String| table.row([name.to_string(), value]);
    row("key", plain(&entry.key));
    row("kind", entry.kind.as_str().to_string());
    let exactly = counted(entry.size, "byte", "bytes");
    row(
        "size",
        if entry.size < 1024 { exactly } else { format!("{} ({exactly})", bytes(entry.size)) },
    );
    row("mode", format!("{:03o}", entry.mode));
    let modified_ms = entry.modified_ns.div_euclid(1_000_000);
    row("modified", u64::try_from(modified_ms).map_or_else(|_| "before 1970".into(), time));
    row("written", time(entry.written_ms));
    row("version", entry.version.clone());
    row("origin", entry.origin.as_str().to_string());
    if let Some(media_type) = &entry.media_type {
        row("type", plain(media_type));
    }
    for (name, value) in &entry.metadata {
        row("meta", format!("{}={}", plain(name), plain(value)));
    }
    if entry.conflicts != 0 {
        let beside = counted(entry.conflicts as u64, "concurrent version", "concurrent versions");
        row("conflicts", format!("{beside} beside this one: see `consort conflicts`"));
    }
    table.to_string()
}
