//! `consort stat`

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{Table, bytes, counted, plain, time};

/// Show what is known about one entry.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  consort stat photos 2026/cat.jpg")]
pub(crate) struct Stat {
    /// The dataset
    name: String,

    /// The entry
    key: String,
}

impl Stat {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let request = Request::Stat { name: self.name, key: self.key };
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
        row(
            "conflicts",
            format!(
                "{} beside this one",
                counted(entry.conflicts as u64, "concurrent version", "concurrent versions")
            ),
        );
    }
    table.to_string()
}
