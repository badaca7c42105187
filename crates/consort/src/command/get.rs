//! `consort get`

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use consort_node::Dot;
use tokio::fs::OpenOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::command::interrupt::Interrupt;
use crate::command::{Context, path_text};
use crate::control::client::{Answers, broken};
use crate::control::wire::{self, Request};
use crate::error::Error;
use crate::json;
use crate::text::{bytes, plain};
use crate::ui::Unit;

/// When nothing has come for so long, that is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fetch one entry, to stdout or into a file; its bytes are verified on the way.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort get photos 2026/cat.jpg -o cat.jpg
  consort get photos labels.csv | head
  consort get photos labels.csv --version VERSION     one that lost: see `consort conflicts`")]
pub(crate) struct Get {
    /// The dataset
    name: String,

    /// The entry
    key: String,

    /// One of its concurrent versions, instead of the one that won
    #[arg(long = "version", value_name = "VERSION")]
    of_version: Option<Dot>,

    /// Write to this file, which is there whole or not at all
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Get {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        if context.ui.is_json() && self.output.is_none() {
            return Err(Error::usage("raw bytes and JSON cannot both go to stdout")
                .hint("with --json, name a file: -o FILE"));
        }
        let name = self.name.clone();
        let version = self.of_version.map(|version| version.to_string());
        let request = Request::Get { name: self.name, key: self.key, version };
        let mut answers = context.node().ask(request).await?;
        let entry: json::Entry = answers.first().await?;
        match self.output {
            None if entry.kind == json::EntryKind::Directory => {
                let key = plain(&entry.key);
                Err(Error::usage(format!("{key} is a directory, which has no bytes"))
                    .hint(format!("`consort ls {} {key}/` shows what is in it", plain(&name))))
            }
            None => {
                receive(&mut answers, context, &entry, async |chunk| context.ui.write(chunk))
                    .await?;
                context.ui.flush()
            }
            Some(path) => {
                save(&mut answers, context, &entry, &path).await?;
                let file = path_text(&path)?;
                let message = format!(
                    "Fetched {} into {}: {}.",
                    plain(&entry.key),
                    plain(&file),
                    bytes(entry.size)
                );
                context.ui.outcome(&json::Got { file, entry }, message)
            }
        }
    }
}

/// Takes in the body and the end of the answer.
async fn receive(
    answers: &mut Answers,
    context: &Context,
    entry: &json::Entry,
    mut write: impl AsyncFnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut progress = context.ui.progress("fetching");
    let mut buffer = vec![0; wire::MAX_FRAME_BYTES];
    let mut body = answers.body();
    let (mut received, mut is_told) = (0, false);
    loop {
        let Ok(length) = timeout(PATIENCE, body.read(&mut buffer)).await else {
            progress.set(Unit::Bytes, received, Some(entry.size), "");
            if !std::mem::replace(&mut is_told, true) {
                progress.say(format_args!(
                    "Nothing has come for {} s: the link is slow, or nobody who is there has what is missing, which \
                     `consort doctor` tells. After a minute it is given up.",
                    PATIENCE.as_secs()
                ));
            }
            continue;
        };
        let length = length.map_err(|error| broken(&error))?;
        if length == 0 {
            break;
        }
        write(&buffer[..length]).await?;
        received += length as u64;
        progress.set(Unit::Bytes, received, Some(entry.size), "");
    }
    answers.end().await
}

/// Writes beside `path` and then takes its place, so that nobody ever sees half of it.
async fn save(
    answers: &mut Answers,
    context: &Context,
    entry: &json::Entry,
    path: &Path,
) -> Result<(), Error> {
    if entry.kind != json::EntryKind::File {
        let message = format!("{} is a {}", plain(&entry.key), entry.kind.as_str());
        return Err(Error::usage(message).hint(
            "only files can be fetched into a file; without -o a symlink's target is shown",
        ));
    }
    let name = path.file_name().filter(|_| !path.is_dir()).ok_or_else(|| {
        let in_it = path.join(entry.key.rsplit('/').next().unwrap_or_default());
        Error::usage(format!("{} is a directory", path.display())).hint(format!(
            "name the file that is to be written: -o {}",
            plain(&in_it.display().to_string())
        ))
    })?;
    let mut beside = OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}.part", std::process::id()));
    let beside = path.with_file_name(beside);
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::NotFound => "make the directory that it is to be in first",
            _ => "name another file, or make room for it; what was there before is as it was",
        };
        Error::io("write", path, &error).hint(hint)
    };

    // Whoever may read it in the end is decided when it is whole.
    let mut options = OpenOptions::new();
    let mut interrupt = Interrupt::new()?;
    let mut file =
        options.write(true).create_new(true).mode(0o600).open(&beside).await.map_err(failed)?;
    let written = async {
        receive(answers, context, entry, async |chunk| file.write_all(chunk).await.map_err(failed))
            .await?;
        file.flush().await.map_err(failed)?;
        file.set_permissions(Permissions::from_mode(entry.mode.into())).await.map_err(failed)?;
        file.sync_all().await.map_err(failed)?;
        tokio::fs::rename(&beside, path).await.map_err(failed)
    };
    let written = tokio::select! {
        written = written => written,
        () = interrupt.next() => Err(Error::failed("interrupted; nothing was written")
            .hint("call it again to begin anew")),
    };
    if written.is_err() {
        // What is there is of no use; that it could not be removed is less important than why it is there.
        let _ = tokio::fs::remove_file(&beside).await;
    }
    written
}
