//! Requests to calls of the node's handle, and its values to items of an answer. No decisions are made here.

use std::path::Path;
use std::time::Duration;

use consort_node::{
    DatasetOptions, DatasetStatus, Dot, FeedCursor, LinkOptions, Node, PutOptions, Status,
};

use crate::config::Mistake;
use crate::control::server::{Reply, RequestBody, Service};
use crate::control::wire::Request;
use crate::error::Error;
use crate::json;

/// Entries or changes that are asked from the node at once.
const PAGE: usize = 1000;

/// Answers for a running node.
#[derive(Clone)]
pub(crate) struct NodeService {
    node: Node,
    mistake: Mistake,
}

impl NodeService {
    /// Answers for `node`, and says what was wrong with its `config.toml`.
    pub(crate) fn new(node: Node, mistake: Mistake) -> Self {
        Self { node, mistake }
    }
}

impl Service for NodeService {
    async fn answer(
        &self,
        request: Request,
        body: Option<RequestBody>,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let node = &self.node;
        match request {
            Request::Invite { role, expires_ms, uses } => {
                let expires = Duration::from_millis(expires_ms);
                let ticket = node.invite(role.into(), expires, uses).await?;
                reply.item(&json::Ticket { ticket }).await
            }
            Request::Members => {
                for member in node.members().await? {
                    reply.item(&json::Member::from(member)).await?;
                }
                Ok(())
            }
            Request::Leave { timeout_ms, force } => {
                let left = node.leave(Duration::from_millis(timeout_ms), force).await?;
                reply.item(&json::Left::from(left)).await
            }
            Request::Revoke { member } => Ok(node.revoke(&member).await?),
            Request::Evict { member } => Ok(node.evict(&member).await?),
            Request::CreateDataset { name, mode, authority, on_conflict } => {
                let options = DatasetOptions {
                    mode: mode.into(),
                    on_conflict: on_conflict.into(),
                    authority,
                };
                let dataset = node.create_dataset(&name, options).await?;
                reply.item(&json::Dataset::from(dataset)).await
            }
            Request::Datasets => {
                for dataset in node.datasets().await? {
                    reply.item(&json::Dataset::from(dataset)).await?;
                }
                Ok(())
            }
            Request::Dataset { name } => {
                reply.item(&json::Dataset::from(node.dataset(&name).await?)).await
            }
            Request::DropDataset { name } => Ok(node.drop_dataset(&name).await?),
            Request::Link { name, dir, read_only, allow_mass_delete } => {
                let options = LinkOptions { read_only, allow_mass_delete };
                let linked = node.link(&name, Path::new(&dir), options).await?;
                reply.item(&json::Linked::from(linked)).await
            }
            Request::Unlink { name } => {
                reply.item(&json::Unlinked::from(node.unlink(&name).await?)).await
            }
            Request::Put { name, key, media_type, origin, metadata, mode } => {
                let Some(body) = body else {
                    return Err(Error::usage("a put needs a body").hint("put with `consort put`"));
                };
                let options = PutOptions { media_type, origin: origin.into(), metadata, mode };
                let put = node.put(&name, &key, body, options).await?;
                reply.item(&json::Put::from(put)).await
            }
            Request::Get { name, key, version } => {
                let (entry, content) = match version {
                    None => node.get(&name, &key).await?,
                    Some(version) => node.get_version(&name, &key, dot(&version)?).await?,
                };
                reply.item(&json::Entry::from(entry)).await?;
                reply.body(content).await
            }
            Request::Stat { name, key, version } => {
                let entry = match version {
                    None => node.stat(&name, &key).await?,
                    Some(version) => node.stat_version(&name, &key, dot(&version)?).await?,
                };
                reply.item(&json::Entry::from(entry)).await
            }
            Request::List { name, prefix } => self.list(&name, &prefix, reply).await,
            Request::Remove { name, key } => Ok(node.remove(&name, &key).await?),
            Request::Conflicts { name } => self.conflicts(&name, reply).await,
            Request::Resolve { name, key, keep, seen } => {
                let seen =
                    seen.iter().map(|version| dot(version)).collect::<Result<Vec<_>, _>>()?;
                let resolved = node.resolve(&name, &key, dot(&keep)?, &seen).await?;
                reply.item(&json::Resolved::from(resolved)).await
            }
            Request::Feed { name, since, follow } => self.feed(&name, since, follow, reply).await,
            Request::Wait { name, timeout_ms } => {
                let waited = node.wait(&name, Duration::from_millis(timeout_ms)).await?;
                reply.item(&json::Waited::from(waited)).await
            }
            Request::Status { name, watch } => self.status(name.as_deref(), watch, reply).await,
            Request::Doctor => {
                for finding in node.doctor().await? {
                    reply.item(&json::Finding::from(finding)).await?;
                }
                if let Some(mistake) = self.mistake.get() {
                    reply.item(&json::Finding::of_config(&mistake)).await?;
                }
                Ok(())
            }
        }
    }
}

impl NodeService {
    async fn list(&self, name: &str, prefix: &str, reply: &mut Reply) -> Result<(), Error> {
        let mut after: Option<String> = None;
        loop {
            let page = self.node.list(name, prefix, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for entry in page {
                reply.item(&json::Entry::from(entry)).await?;
            }
        }
    }

    async fn conflicts(&self, name: &str, reply: &mut Reply) -> Result<(), Error> {
        let mut after: Option<String> = None;
        loop {
            let page = self.node.conflicts(name, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for conflict in page {
                reply.item(&json::Conflict::from(conflict)).await?;
            }
        }
    }

    async fn feed(
        &self,
        name: &str,
        since: Option<String>,
        follow: bool,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        let mut cursor = match since {
            None => FeedCursor::START,
            Some(text) => text.parse().map_err(|error| {
                Error::usage(format!("`{text}` is no cursor: {error}"))
                    .hint("take one from an earlier `consort feed`, or leave out --since")
            })?,
        };
        loop {
            let page = self.node.feed(name, cursor, PAGE).await?;
            if let Some(last) = page.last() {
                cursor = last.cursor;
                for change in page {
                    reply.item(&json::Change::from(change)).await?;
                }
            } else if follow {
                reply.flush().await?;
                self.node.feed_grows(name, cursor).await?;
            } else {
                return Ok(());
            }
        }
    }

    async fn status(
        &self,
        name: Option<&str>,
        watch: bool,
        reply: &mut Reply,
    ) -> Result<(), Error> {
        loop {
            let mut status: Status = self.node.status().await?;
            if let Some(name) = name {
                if !status.datasets.iter().any(|dataset| dataset.name == name) {
                    // The node says best why not.
                    self.node.dataset(name).await?;
                }
                status.datasets.retain(|dataset: &DatasetStatus| dataset.name == name);
            }
            let config_error = self.mistake.get();
            reply.item(&json::Status { config_error, ..status.into() }).await?;
            if !watch {
                return Ok(());
            }
            reply.flush().await?;
            self.node.status_changed().await;
        }
    }
}

fn dot(text: &str) -> Result<Dot, Error> {
    text.parse().map_err(|error| {
        Error::usage(format!("`{text}` is no version: {error}"))
            .hint("take one from `consort conflicts` or `consort stat`")
    })
}

impl std::fmt::Debug for NodeService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeService").finish_non_exhaustive()
    }
}
