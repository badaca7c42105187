//! Datasets and the directories that they are linked to.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use consort_core::model::merge::Saw;
use consort_core::store::{DatasetParameters, LocalWrite, View};
use consort_core::{Attributes, DatasetId, FingerprintKey, OnConflict};

use crate::cluster::{DatasetFact, dataset_key, encode_dataset, valid_dataset_name};
use crate::error::{ErrorKind, NodeError};
use crate::folder::PRIVATE_DIR;
use crate::net::{self, Role};
use crate::release::when_released;
use crate::report::{
    Dataset, DatasetOptions, FeedCursor, Lacking, Link, LinkOptions, Linked, Mode, Unlinked,
};
use crate::runtime::wall_time;
use crate::shared::LinkSetting;

use super::keepers::{ANYBODY, Lack, first_content_only_in_directory, lacks_contents};
use super::{Node, blocking, removal};

/// How long a node is given to hear of a dataset that it does not know: from its cluster at all, if it has not yet, and
/// otherwise of what was done on other nodes just now.
const HEAR_GRACE: Duration = Duration::from_secs(5);

/// A file that `consort dev` leaves in the private area of a directory that it has linked: what a killed one has left
/// may be taken over. Linking a directory removes it, since whoever does that keeps the directory from then on.
pub const DEV_MARK: &str = "dev";

impl Node {
    /// Makes a dataset, on all nodes.
    pub async fn create_dataset(
        &self,
        name: &str,
        options: DatasetOptions,
    ) -> Result<Dataset, NodeError> {
        self.require(&[Role::Admin], "create datasets")?;
        self.require_store()?;
        if !valid_dataset_name(name) {
            return Err(NodeError::usage(format!("{name:?} cannot be a dataset's name"))
                .hint("use 3 to 63 of a-z, 0-9 and -"));
        }
        if options.mode == Mode::Hub || options.authority.is_some() {
            return Err(NodeError::usage("this version has mesh datasets only")
                .hint("leave out --mode hub and --authority"));
        }
        if self.look_up(name).await.is_some() {
            let message = format!("there is a dataset {name} already");
            return Err(NodeError::new(ErrorKind::Conflict, message).hint(format!(
                "use that one, or choose another name; `consort dataset show {name}` describes it"
            )));
        }
        let id = DatasetId(net::random());
        let parameters = DatasetParameters { id, fingerprint_key: FingerprintKey(net::random()) };
        // It has to be in the store before anybody can ask for it.
        self.shared.store.open_dataset(parameters)?;
        let write = LocalWrite {
            key: dataset_key(name),
            saw: Saw::Winner,
            content: encode_dataset(parameters, wall_time().0, options.on_conflict),
            attributes: Attributes::default(),
        };
        let mut changed = self.shared.watch();
        self.write(self.shared.cluster.id, OnConflict::KeepBoth, vec![write]).await?;
        loop {
            let facts = self.shared.facts();
            if let Some(fact) = facts.datasets.iter().find(|fact| fact.parameters.id == id) {
                return self.describe(fact);
            }
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
    }

    /// All datasets, ordered by name.
    pub async fn datasets(&self) -> Result<Vec<Dataset>, NodeError> {
        let facts = self.shared.facts();
        facts.datasets.iter().map(|fact| self.describe(fact)).collect()
    }

    /// One dataset.
    pub async fn dataset(&self, name: &str) -> Result<Dataset, NodeError> {
        self.describe(&self.fact(name).await?)
    }

    /// Drops a dataset on all nodes. Linked directories stay as they are.
    pub async fn drop_dataset(&self, name: &str) -> Result<(), NodeError> {
        self.require(&[Role::Admin], "drop datasets")?;
        self.require_store()?;
        let fact = self.fact(name).await?;
        let id = fact.parameters.id;
        let removal = LocalWrite { saw: Saw::Version(fact.dot), ..removal(fact.key) };
        let mut changed = self.shared.watch();
        self.write(self.shared.cluster.id, OnConflict::KeepBoth, vec![removal]).await?;
        while self.shared.facts().datasets.iter().any(|fact| fact.parameters.id == id) {
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
        Ok(())
    }

    /// Keeps a directory and a dataset identical. A directory that is missing is made, if what it is to be in is there;
    /// one that is not empty is merged: what is the same stays, what differs is kept beside, nothing is overwritten.
    pub async fn link(
        &self,
        name: &str,
        dir: &Path,
        options: LinkOptions,
    ) -> Result<Linked, NodeError> {
        self.require_store()?;
        let fact = self.fact(name).await?;
        if !options.read_only {
            self.require(&[Role::Writer, Role::Admin], "change datasets")
                .map_err(|error| error.hint("link with --read-only"))?;
        }
        let dataset = fact.parameters.id;
        let (node, dir) = (self.clone(), dir.to_owned());
        blocking(move || {
            let _linking = node.shared.linking();
            let dir = resolve_directory(&dir)?;
            if let Some(link) = node.shared.link_of(dataset) {
                let link = node.link_again(fact, link, &dir, options)?;
                return Ok(Linked { link, created: false });
            }
            node.refuse_overlaps(&dir)?;
            let created = make_directory(&dir)?;
            let link = LinkSetting { dataset, dir, root: None, read_only: options.read_only };
            let shared = &node.shared;
            shared.store.set_linked(dataset, true)?;
            let kept = shared
                .start_folder(fact.name, fact.on_conflict, link.clone())
                .and_then(|folder| Ok(shared.save_links().map(|()| folder)?));
            match kept {
                Ok(folder) => {
                    remove_dev_mark(&link.dir);
                    if options.allow_mass_delete {
                        folder.allow_mass_delete();
                    }
                    folder.wake();
                    shared.notify();
                    let link = Link { dir: link.dir, read_only: link.read_only };
                    Ok(Linked { link, created })
                }
                Err(error) => {
                    shared.stop_folder(dataset);
                    shared.store.set_linked(dataset, false)?;
                    if created {
                        // An empty directory that stays is less bad than another error than the one that matters.
                        crate::folder::remove_private_area(&link.dir, None);
                        let _ = std::fs::remove_dir(&link.dir);
                    }
                    Err(error)
                }
            }
        })
        .await
    }

    fn link_again(
        &self,
        fact: DatasetFact,
        link: LinkSetting,
        dir: &Path,
        options: LinkOptions,
    ) -> Result<Link, NodeError> {
        let DatasetFact { name, on_conflict, .. } = fact;
        if link.dir != dir || link.read_only != options.read_only {
            let linked = link.dir.display();
            let how = match (link.dir == dir, link.read_only) {
                (true, true) => ", read only",
                (true, false) => ", both ways",
                (false, _) => "",
            };
            return Err(NodeError::new(
                ErrorKind::Conflict,
                format!("{name} is linked to {linked} already{how}"),
            )
            .hint(format!(
                "a dataset has one directory on a node: `consort unlink {name}` first"
            )));
        }
        let folder = match self.shared.folder(link.dataset) {
            Some(folder) => folder,
            // It could not be opened when the node started.
            None => self.shared.start_folder(name, on_conflict, link.clone())?,
        };
        if options.allow_mass_delete {
            folder.allow_mass_delete();
        }
        Ok(Link { dir: link.dir, read_only: link.read_only })
    }

    /// Ends a link. The directory stays as it is, without our private area; what it was the only one to show is told.
    pub async fn unlink(&self, name: &str) -> Result<Unlinked, NodeError> {
        let fact = self.fact(name).await?;
        // What is told of it is advice: should it not be known, the link ends all the same.
        let status = self.status().await;
        let peers =
            status.as_ref().map_or(&[][..], |status| &status.peers).iter().collect::<Vec<_>>();
        let lack = lacks_contents(name, ANYBODY, &peers);
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let _linking = shared.linking();
            let dataset = fact.parameters.id;
            let Some(link) = shared.link_of(dataset) else {
                let message = format!("{} is not linked to a directory here", fact.name);
                let hint = "`consort dataset list` shows which datasets are";
                return Err(NodeError::failed(message).hint(hint));
            };
            // Afterwards nobody knows what was in the directory.
            let lacking = match lack {
                None => None,
                Some(Lack::ForNow(why) | Lack::ForGood { what: why, .. }) => {
                    let key = first_content_only_in_directory(shared.contents.local(), dataset);
                    key.ok().flatten().map(|key| Lacking { key, why })
                }
            };
            shared.stop_folder(dataset);
            let pending = shared.store.view(dataset).map_or(0, |view| view.pending_count());
            shared.save_links()?;
            shared.store.set_linked(dataset, false)?;
            crate::folder::remove_private_area(&link.dir, link.root);
            shared.notify();
            Ok(Unlinked { dir: link.dir, pending, lacking })
        })
        .await
    }

    /// Starts the engines of the directories that were linked when the node ran last.
    pub(super) async fn restore_links(&self) -> Result<(), NodeError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let facts = shared.facts();
            let mut learned = false;
            for link in shared.saved_links()? {
                let Some(fact) = facts.datasets.iter().find(|d| d.parameters.id == link.dataset)
                else {
                    continue;
                };
                // A link that was saved halfway is completed.
                shared.store.set_linked(link.dataset, true)?;
                let (name, policy) = (fact.name.clone(), fact.on_conflict);
                let known = link.root.is_some();
                let start = || shared.start_folder(name.clone(), policy, link.clone());
                match when_released(start, |error| error.kind == ErrorKind::Conflict) {
                    Ok(_) => learned |= !known,
                    Err(error) => {
                        tracing::error!(dataset = fact.name, %error, "a directory cannot be linked");
                    }
                }
            }
            if learned {
                shared.save_links()?;
            }
            Ok(())
        })
        .await
    }

    /// A dataset by its name. One that was made before the call on a node that can be reached is found, too.
    pub(super) async fn fact(&self, name: &str) -> Result<DatasetFact, NodeError> {
        if let Some(fact) = self.look_up(name).await {
            return Ok(fact);
        }
        if self.shared.has_heard() {
            let mut missing = String::new();
            let news = self.await_changes(self.shared.cluster.id, &mut missing);
            // What has not come by then may come at any time, or never.
            let _ = tokio::time::timeout(HEAR_GRACE, news).await;
            if let Some(fact) = self.shared.facts().dataset(name) {
                return Ok(fact.clone());
            }
        }
        let error = NodeError::failed(format!("there is no dataset {name}"));
        Err(if self.shared.has_heard() {
            error.hint("`consort dataset list` shows those there are; a new one takes a moment to reach every node")
        } else {
            error.hint("this node has not heard from its cluster yet; `consort doctor` says why")
        })
    }

    async fn look_up(&self, name: &str) -> Option<DatasetFact> {
        let mut changed = self.shared.watch();
        let found = async {
            loop {
                // In this order: what was heard is among the facts.
                let has_heard = self.shared.has_heard();
                let fact = self.shared.facts().dataset(name).cloned();
                if fact.is_some() || has_heard || changed.changed().await.is_err() {
                    return fact;
                }
            }
        };
        tokio::time::timeout(HEAR_GRACE, found).await.unwrap_or_default()
    }

    fn describe(&self, fact: &DatasetFact) -> Result<Dataset, NodeError> {
        let summary = self.shared.store.view(fact.parameters.id)?.summary();
        let link = self.shared.link_of(fact.parameters.id);
        let head = summary.head;
        Ok(Dataset {
            name: fact.name.clone(),
            id: fact.parameters.id,
            mode: Mode::Mesh,
            on_conflict: fact.on_conflict,
            created_ms: fact.created_ms,
            versions: summary.digest.count,
            digest: format!("{:032x}", summary.digest.sum),
            head: FeedCursor { epoch: head.epoch.0, sequence: head.sequence.0 },
            link: link.map(|link| Link { dir: link.dir, read_only: link.read_only }),
        })
    }

    /// Two links that show each other's files would copy them for ever.
    fn refuse_overlaps(&self, dir: &Path) -> Result<(), NodeError> {
        let overlaps = |other: &Path| dir.starts_with(other) || other.starts_with(dir);
        let home = self.shared.home.canonicalize().unwrap_or_else(|_| self.shared.home.clone());
        if overlaps(&home) {
            return Err(NodeError::usage(format!(
                "{} and this node's home overlap",
                dir.display()
            ))
            .hint("link a directory outside of the home"));
        }
        match self.shared.links().into_iter().find(|link| overlaps(&link.dir)) {
            None => refuse_nested(dir),
            Some(link) if link.dir == dir => Err(NodeError::new(
                ErrorKind::Conflict,
                format!("{} is linked already, to another dataset", dir.display()),
            )
            .hint("`consort status` shows which; a directory belongs to one dataset")),
            Some(link) => Err(NodeError::new(
                ErrorKind::Conflict,
                format!(
                    "{} and {} overlap, and the latter is linked",
                    dir.display(),
                    link.dir.display()
                ),
            )
            .hint("link directories that do not contain each other")),
        }
    }
}

/// Nor may a directory lie within one that another node on this machine keeps.
fn refuse_nested(dir: &Path) -> Result<(), NodeError> {
    let mark = Path::new(PRIVATE_DIR).join("id");
    let is_linked = |above: &&Path| std::fs::symlink_metadata(above.join(&mark)).is_ok();
    let Some(above) = dir.ancestors().skip(1).find(is_linked) else { return Ok(()) };
    let (dir, above) = (dir.display(), above.display());
    let message = format!("{dir} cannot be linked: it is in {above}, which is linked already");
    Err(NodeError::new(ErrorKind::Conflict, message).hint(format!(
        "link a directory outside of it, or `consort unlink` that one there (if no node links it any more, remove {above}/{})",
        mark.display()
    )))
}

/// The path of the directory without symlinks. It may not be there yet; what it is to be in has to be: a path that is
/// mistyped further up, or on a disk that is not mounted, is not made in passing.
fn resolve_directory(dir: &Path) -> Result<PathBuf, NodeError> {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    match dir.canonicalize() {
        Ok(path) if path.is_dir() => return Ok(path),
        Ok(_) => return Err(not_a_directory(dir, dir)),
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => {}
        Err(error) => return Err(cannot_link(dir, &error)),
    }
    let mut above: Vec<&Path> = dir.ancestors().skip(1).collect();
    above.reverse();
    match above.into_iter().find(|path| !path.is_dir()) {
        Some(path) if path.exists() => return Err(not_a_directory(dir, path)),
        Some(path) => {
            let (dir, path) = (dir.display(), path.display());
            let message = format!("{dir} cannot be linked: {path} does not exist");
            return Err(NodeError::usage(message).hint(
                "mend the path, mount the disk it is on, or make what is missing (`mkdir -p`)",
            ));
        }
        None => {}
    }
    match (dir.parent().map(Path::canonicalize), dir.file_name()) {
        (Some(Ok(parent)), Some(name)) => Ok(parent.join(name)),
        (Some(Err(error)), _) => Err(cannot_link(dir, &error)),
        _ => Err(not_a_directory(dir, dir)),
    }
}

/// Makes the directory, unless it is there. Whether it did.
fn make_directory(dir: &Path) -> Result<bool, NodeError> {
    match std::fs::create_dir(dir) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && dir.is_dir() => {
            Ok(false)
        }
        Err(error) => Err(cannot_link(dir, &error)),
    }
}

fn remove_dev_mark(dir: &Path) {
    match std::fs::remove_file(dir.join(PRIVATE_DIR).join(DEV_MARK)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "`consort dev` may take this directory for its own");
        }
        _ => {}
    }
}

fn not_a_directory(dir: &Path, what: &Path) -> NodeError {
    let what = if what == dir { "it".to_owned() } else { what.display().to_string() };
    NodeError::usage(format!("{} cannot be linked: {what} is not a directory", dir.display()))
        .hint("name a directory; it may be new")
}

fn cannot_link(dir: &Path, error: &std::io::Error) -> NodeError {
    NodeError::failed(format!("{} cannot be linked: {error}", dir.display()))
        .hint("name a directory that the user who runs the node may write to")
}
