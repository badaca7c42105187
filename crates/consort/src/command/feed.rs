//! `consort feed`

use consort_node::FeedCursor;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{bytes, plain, time};
use crate::ui::json_line;

/// Print the changes of a dataset, in the order in which this node applied them.
///
/// One change a line: cursor, time, size, kind or `deleted`, key.
///
/// The last cursor that you have seen is where to go on with --since. Cursors belong to this node.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort feed photos
  consort feed photos --follow --json
  consort feed photos --since 1:4711 --follow")]
pub(crate) struct Feed {
    /// The dataset
    name: String,

    /// Begin after this cursor [default: at the beginning]
    #[arg(long, value_parser = cursor, value_name = "CURSOR")]
    since: Option<FeedCursor>,

    /// Go on with what changes from now on, until Ctrl-C
    #[arg(long)]
    follow: bool,
}

impl Feed {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let Context { ui, .. } = context;
        let since = self.since.map(|cursor| cursor.to_string());
        let request = Request::Feed { name: self.name, since, follow: self.follow };
        let mut answers = context.node().ask(request).await?;
        while let Some(change) = answers.next::<json::Change>().await? {
            let line = if ui.is_json() { json_line(&change) } else { line(&change) };
            ui.write(line.as_bytes())?;
            if self.follow {
                ui.flush()?;
            }
        }
        ui.flush()
    }
}

fn cursor(text: &str) -> Result<FeedCursor, String> {
    text.parse().map_err(|_| "a cursor is EPOCH:SEQUENCE, as `consort feed` prints it".to_string())
}

fn line(change: &json::Change) -> String {
    let entry = &change.entry;
    let what = if entry.deleted { "deleted" } else { entry.kind.as_str() };
    format!(
        "{:<10}  {}  {:>10}  {what:<9}  {}\n",
        change.cursor,
        time(entry.written_ms),
        bytes(entry.size),
        plain(&entry.key)
    )
}
