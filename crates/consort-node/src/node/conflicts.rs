//! Keys with concurrent versions that nobody chose between yet, and choosing.

use consort_core::model::merge::Saw;
use consort_core::store::{LocalWrite, View, Written};
use consort_core::{AuthorId, Dot, Key, OnConflict, Version};
use consort_store::DiskView;

use crate::cluster::Facts;
use crate::error::{ErrorKind, NodeError};
use crate::folder::conflict_path;
use crate::net::Role;
use crate::report::{Candidate, Conflict, Resolved};

use super::entries::{MAX_PAGE, entry, find};
use super::{Node, blocking, parse_key};

/// Losers that are listed at once, and those of one key that are listed at all. A key that has more has been left alone
/// for long; how many more is told.
const MAX_LISTED: usize = 1000;

impl Node {
    /// The keys above `after` with concurrent versions that somebody may want to choose between, in key order, at most
    /// `limit`. None are the last ones. What this costs follows the number of such keys, not of all.
    pub async fn conflicts(
        &self,
        name: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Conflict>, NodeError> {
        let fact = self.fact(name).await?;
        let mut after = after.map(parse_key).transpose()?;
        let (store, facts) = (self.shared.store.clone(), self.shared.facts());
        let limit = limit.min(MAX_PAGE);
        blocking(move || {
            let view = store.view(fact.parameters.id)?;
            let mut found: Vec<Conflict> = Vec::new();
            let mut listed = 0;
            if view.losers().under(fact.on_conflict) == 0 {
                return Ok(found);
            }
            loop {
                let page = view.contested(after.as_ref(), MAX_PAGE)?;
                let Some(last) = page.last() else { return Ok(found) };
                after = Some(last.clone());
                for key in page {
                    let conflict = conflict(&view, &facts, &key, fact.on_conflict)?;
                    listed += conflict.as_ref().map_or(0, |conflict| conflict.losers.len());
                    found.extend(conflict);
                    if found.len() == limit || MAX_LISTED <= listed {
                        return Ok(found);
                    }
                }
            }
        })
        .await
    }

    /// Makes `keep` the only version of a key: a new one of its content replaces those that are `seen`, or if that is
    /// empty, all that are current now. When this returns, that is durable here.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) if `keep` is no current version, and nothing was changed; or if other versions
    /// came that nobody has seen: then these stay beside the new one, and it was written.
    pub async fn resolve(
        &self,
        name: &str,
        key: &str,
        keep: Dot,
        seen: &[Dot],
    ) -> Result<Resolved, NodeError> {
        self.require(&[Role::Writer, Role::Admin], "resolve conflicts")?;
        self.require_store()?;
        let fact = self.fact(name).await?;
        let (policy, siblings) = self.siblings(name, key).await?;
        let kept = find(policy, &siblings, Some(keep), (name, key))?;
        let seen: Vec<Dot> = match seen {
            [] => siblings.iter().map(|version| version.dot).collect(),
            seen => seen.iter().copied().chain([keep]).collect(),
        };
        let is_replaced = |v: &&Version| v.dot != keep && !v.is_deleted() && seen.contains(&v.dot);
        let replaced = siblings.iter().filter(is_replaced).count();
        let write = LocalWrite {
            key: parse_key(key)?,
            saw: Saw::Versions(seen),
            content: kept.content.clone(),
            attributes: kept.attributes.clone(),
        };
        let applied = self.write(fact.parameters.id, policy, vec![write]).await?;
        let dot = match applied.written.first() {
            Some(Written::New(dot) | Written::Same(dot)) => *dot,
            _ => {
                return Err(NodeError::failed("the store did not write the version")
                    .hint("try again; if that does not help, report it as a defect"));
            }
        };
        let (_, siblings) = self.siblings(name, key).await?;
        let unseen = beside(policy, &siblings, dot);
        if unseen.is_empty() {
            return Ok(Resolved { dot, replaced });
        }
        let unseen: Vec<String> = unseen
            .into_iter()
            .take(3)
            .map(|version| {
                let author = author(&self.shared.facts(), version.dot.author).1;
                format!("{} by {author}", version.dot)
            })
            .collect();
        let message = format!(
            "{key:?} in {name} is resolved as {dot}, but another version came that you had not seen, and stays beside it: {}",
            unseen.join(", ")
        );
        let hint = format!("look at it (`consort conflicts {name}`), and choose again");
        Err(NodeError::new(ErrorKind::Conflict, message).hint(hint))
    }
}

/// What is shown beside a version that was just written. Nothing, if somebody has replaced that since: who did has seen
/// it.
fn beside(policy: OnConflict, siblings: &[Version], dot: Dot) -> Vec<&Version> {
    let Some(written) = siblings.iter().find(|version| version.dot == dot) else {
        return Vec::new();
    };
    let shown = policy.winner(siblings).into_iter().chain(policy.losers(siblings));
    shown.filter(|other| !policy.hides(written, other)).collect()
}

fn conflict(
    view: &DiskView,
    facts: &Facts,
    key: &Key,
    policy: OnConflict,
) -> Result<Option<Conflict>, NodeError> {
    let siblings: Vec<Version> = view.siblings(key)?.into_iter().map(|s| s.version).collect();
    let losers = policy.losers(&siblings);
    let Some(winner) = policy.winner(&siblings).filter(|_| !losers.is_empty()) else {
        return Ok(None);
    };
    let candidate = |version: &Version| {
        let (node, author) = author(facts, version.dot.author);
        let path = path_of(view, key, version.dot)?;
        Ok::<_, NodeError>(Candidate {
            entry: entry(key, version, &siblings, policy),
            node,
            author,
            path: path.map(|path| path.to_string()),
        })
    };
    let more = losers.len().saturating_sub(MAX_LISTED);
    let winner = candidate(winner)?;
    let losers = losers.into_iter().take(MAX_LISTED).map(candidate).collect::<Result<_, _>>()?;
    Ok(Some(Conflict { key: key.to_string(), winner, losers, more }))
}

/// Where the linked directory shows a version.
fn path_of(view: &DiskView, key: &Key, dot: Dot) -> Result<Option<Key>, NodeError> {
    for path in [Some(key.clone()), conflict_path(key, dot)].into_iter().flatten() {
        let shows = |record: &consort_store::Record| record.dot == dot && !record.implicit;
        if view.record(&path)?.is_some_and(|record| shows(&record)) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Who an author is. Of a node that is not known, how it begins.
fn author(facts: &Facts, author: AuthorId) -> (Option<consort_core::NodeId>, String) {
    match facts.writer(author) {
        Some(member) => (Some(member.node), member.name.clone()),
        None => (None, author.short().to_string()),
    }
}
