//! `consort put`

use std::fs::Metadata;
use std::io::IsTerminal as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::io::AsyncRead;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{bytes, plain};
use crate::ui::Unit;

/// Permission bits that are kept.
const MODE_MASK: u32 = 0o777;

/// Store one entry from a file or from stdin; returns when it is on stable storage here.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort put photos 2026/cat.jpg ./cat.jpg --type image/jpeg
  date | consort put photos log/last-run
  consort put photos a.png a.png --origin synthetic --meta generator=flux --meta seed=7")]
pub(crate) struct Put {
    /// The dataset
    name: String,

    /// What to call the entry
    key: String,

    /// What to store; - or nothing reads stdin
    file: Option<PathBuf>,

    /// The media type, as in HTTP
    #[arg(long = "type", value_name = "TYPE")]
    media_type: Option<String>,

    /// Where the content came from
    #[arg(long, value_enum, default_value_t = json::Origin::Real, value_name = "ORIGIN")]
    origin: json::Origin,

    /// A name and a value of your own; may be given several times
    #[arg(long = "meta", value_parser = name_and_value, value_name = "K=V")]
    metadata: Vec<(String, String)>,
}

impl Put {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let file = self.file.filter(|file| file != Path::new("-"));
        let (mut body, facts) = match &file {
            Some(file) => open(file).await?,
            None => {
                if std::io::stdin().is_terminal() {
                    context.ui.say("Reading from the terminal; Ctrl-D ends it.");
                }
                (Box::new(tokio::io::stdin()) as Box<dyn AsyncRead + Unpin>, None)
            }
        };
        let mode = facts
            .as_ref()
            .and_then(|facts| u16::try_from(facts.permissions().mode() & MODE_MASK).ok());
        let size = facts.as_ref().map(Metadata::len);
        let message = format!("Stored {} in {}", plain(&self.key), plain(&self.name));
        let request = Request::Put {
            name: self.name,
            key: self.key,
            media_type: self.media_type,
            origin: self.origin,
            metadata: self.metadata,
            mode,
        };
        let mut progress = context.ui.progress("storing");
        let put: json::Put = context
            .node()
            .one_with_body(request, &mut body, |sent| progress.set(Unit::Bytes, sent, size, ""))
            .await?;
        drop(progress);
        let message = format!("{message}: {}.", bytes(put.size));
        context.ui.outcome(&put, message)
    }
}

async fn open(path: &Path) -> Result<(Box<dyn AsyncRead + Unpin>, Option<Metadata>), Error> {
    let failed = |error| {
        Error::io("read", path, &error).hint("name a file that you may read, or - for stdin")
    };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let facts = file.metadata().await.map_err(failed)?;
    if facts.is_dir() {
        return Err(Error::usage(format!("{} is a directory", path.display()))
            .hint("`consort link` keeps a whole directory; `consort put` stores one file"));
    }
    let facts = facts.is_file().then_some(facts);
    Ok((Box::new(file), facts))
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err("write it as NAME=VALUE".to_string()),
    }
}
