//! `consort wait`

use std::time::Duration;

use crate::command::Context;
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;
use crate::text::{self, counted, plain};
use crate::ui::{Progress, Unit};

/// Wait until this node and its directory hold all that its reachable peers hold.
///
/// Changes made to linked directories before the call are included. Exit code 3 if it takes too long.
///
/// Nodes that are away are not waited for. With nobody reachable it says so (`"peers": 0` in JSON).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  consort wait photos
  consort wait photos --timeout 15m && python train.py ./photos")]
pub(crate) struct Wait {
    /// The dataset
    name: String,

    /// How long to wait, such as 500ms, 60s, 15m or 24h
    #[arg(long, value_parser = text::parse_duration, default_value = "60s", value_name = "TIME")]
    timeout: Duration,
}

impl Wait {
    pub(crate) async fn run(self, context: &Context) -> Result<(), Error> {
        let timeout_ms = u64::try_from(self.timeout.as_millis()).unwrap_or(u64::MAX);
        let node = context.node();
        let name = plain(&self.name);
        let waiting =
            node.one::<json::Waited>(Request::Wait { name: self.name.clone(), timeout_ms });
        let watching = async {
            let mut progress = context.ui.progress("waiting");
            // That there is no progress to show is no reason to stop waiting.
            let _ = watch(context, self.name.clone(), &mut progress).await;
            std::future::pending::<()>().await;
        };
        let waited = tokio::select! {
            waited = waiting => waited?,
            () = watching => unreachable!("watching never ends by itself"),
        };
        let peers = match waited.peers {
            0 => "; no other node is reachable, so what others hold is not known".to_string(),
            1 => ", all that the one reachable peer holds".to_string(),
            peers => format!(", all that {peers} reachable peers hold"),
        };
        let versions = counted(waited.versions, "version", "versions");
        let contents = contents(&waited);
        let message = format!("{name}: this node holds {versions}{peers}.{contents}");
        context.ui.outcome(&waited, message)
    }
}

/// What is known of the contents, where that is less than of the versions.
fn contents(waited: &json::Waited) -> &'static str {
    match waited.complete_peers {
        _ if !waited.metadata_only => "",
        Some(0) if waited.versions != 0 => {
            " It has no directory here, and on no other node that is there one with all of it: whether \
             contents can be had, `consort doctor` finds out."
        }
        Some(_) => " It has no directory here: contents are fetched when they are read.",
        None => " It has no directory here: that is metadata, without contents.",
    }
}

async fn watch(context: &Context, name: String, progress: &mut Progress) -> Result<(), Error> {
    let request = Request::Status { name: Some(name), watch: true };
    let mut answers = context.node().ask(request).await?;
    while let Some(status) = answers.next::<json::Status>().await? {
        let Some(dataset) = status.datasets.first() else { continue };
        match dataset.state {
            json::DatasetState::Scanning => {
                progress.set(Unit::Entries, dataset.indexed, dataset.to_index, "looked at");
            }
            state => {
                let state = state.as_str().replace('-', " ");
                let remark = if dataset.pending == 0 {
                    // What is still to be heard of is not known yet.
                    let versions = counted(dataset.versions, "version", "versions");
                    format!("{versions} so far ({state})")
                } else {
                    format!("({state})")
                };
                progress.set_left(dataset.pending, dataset.pending_bytes, &remark);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_promised_only_if_somebody_has_a_directory() {
        let told = |versions, complete_peers| {
            let waited = json::Waited { versions, peers: 1, metadata_only: true, complete_peers };
            contents(&waited)
        };
        for fetched in [told(1, Some(1)), told(0, Some(0))] {
            assert!(fetched.contains("fetched when they are read"), "{fetched}");
        }
        for in_doubt in [told(1, Some(0)), told(1, None)] {
            assert!(!in_doubt.contains("are fetched"), "{in_doubt}");
        }
        assert!(told(1, Some(0)).contains("consort doctor"));
        let linked =
            json::Waited { versions: 1, peers: 1, metadata_only: false, complete_peers: None };
        assert_eq!(contents(&linked), "");
    }
}
