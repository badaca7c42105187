//! Datasets and the directories that they are linked to.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use consort_core::model::merge::Saw;
use consort_core::store::{DatasetParameters, LocalWrite, View};
use consort_core::{Attributes, DatasetId, FingerprintKey};

use crate::cluster::{DatasetFact, dataset_key, encode_dataset, valid_dataset_name};
use crate::error::{ErrorKind, NodeError};
use crate::net::{self, Role};
use crate::report::{Dataset, DatasetOptions, FeedCursor, Link, LinkOptions, Mode, OnConflict};
use crate::runtime::wall_time;
use crate::shared::LinkSetting;

use super::{Node, blocking, removal};

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
        if options.on_conflict != OnConflict::KeepBoth {
            return Err(NodeError::usage("this version keeps both versions of a conflict")
                .hint("leave out --on-conflict"));
        }
        if self.shared.facts().dataset(name).is_some() {
            return Err(NodeError::new(
                ErrorKind::Conflict,
                format!("there is a dataset {name} already"),
            ));
        }
        let id = DatasetId(net::random());
        let parameters = DatasetParameters { id, fingerprint_key: FingerprintKey(net::random()) };
        let fact = DatasetFact { name: name.to_owned(), parameters, created_ms: wall_time().0 };
        // It has to be in the store before anybody can ask for it.
        self.shared.store.open_dataset(parameters)?;
        let write = LocalWrite {
            key: dataset_key(name),
            saw: Saw::Winner,
            content: encode_dataset(&fact),
            attributes: Attributes::default(),
        };
        let mut changed = self.shared.watch();
        self.write(self.shared.cluster.id, vec![write]).await?;
        while self.shared.facts().dataset(name).is_none() {
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
        self.describe(&fact)
    }

    /// All datasets, ordered by name.
    pub async fn datasets(&self) -> Result<Vec<Dataset>, NodeError> {
        let facts = self.shared.facts();
        facts.datasets.iter().map(|fact| self.describe(fact)).collect()
    }

    /// One dataset.
    pub async fn dataset(&self, name: &str) -> Result<Dataset, NodeError> {
        self.describe(&self.fact(name)?)
    }

    /// Drops a dataset on all nodes. Linked directories stay as they are.
    pub async fn drop_dataset(&self, name: &str) -> Result<(), NodeError> {
        self.require(&[Role::Admin], "drop datasets")?;
        let fact = self.fact(name)?;
        self.write(self.shared.cluster.id, vec![removal(dataset_key(&fact.name))]).await?;
        let mut changed = self.shared.watch();
        while self.shared.facts().dataset(name).is_some() {
            changed.changed().await.map_err(|_| NodeError::ending())?;
        }
        Ok(())
    }

    /// Keeps a directory and a dataset identical. A directory that is missing is made; one that is not empty is
    /// merged: what is the same stays, what differs is kept beside, nothing is overwritten.
    pub async fn link(
        &self,
        name: &str,
        dir: &Path,
        options: LinkOptions,
    ) -> Result<Link, NodeError> {
        self.require_store()?;
        let fact = self.fact(name)?;
        if !options.read_only && self.shared.identity.role == Role::Reader {
            return Err(NodeError::not_allowed(
                "this node is a reader, and may not change datasets",
            )
            .hint("link with --read-only"));
        }
        let dir = prepare_directory(dir)?;
        let dataset = fact.parameters.id;
        if let Some(link) = self.shared.link_of(dataset) {
            return self.link_again(&link, &dir, options);
        }
        self.refuse_overlaps(&dir)?;
        let link = LinkSetting { dataset, dir, read_only: options.read_only };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let folder = shared.start_folder(fact.name.clone(), link.clone())?;
            let kept = shared.store.set_linked(dataset, true).and_then(|()| shared.save_links());
            if let Err(error) = kept {
                shared.stop_folder(dataset);
                return Err(error.into());
            }
            if options.allow_mass_delete {
                folder.allow_mass_delete();
            }
            folder.wake();
            Ok(Link { dir: link.dir, read_only: link.read_only })
        })
        .await
    }

    fn link_again(
        &self,
        link: &LinkSetting,
        dir: &Path,
        options: LinkOptions,
    ) -> Result<Link, NodeError> {
        if link.dir != dir || link.read_only != options.read_only {
            let linked = link.dir.display();
            return Err(NodeError::new(
                ErrorKind::Conflict,
                format!("the dataset is linked to {linked} already"),
            )
            .hint("a dataset has one directory on a node; unlink it first"));
        }
        if options.allow_mass_delete
            && let Some(folder) = self.shared.folder(link.dataset)
        {
            folder.allow_mass_delete();
        }
        Ok(Link { dir: link.dir.clone(), read_only: link.read_only })
    }

    /// Ends a link. The directory stays as it is, without our private area.
    pub async fn unlink(&self, name: &str) -> Result<(), NodeError> {
        let fact = self.fact(name)?;
        let dataset = fact.parameters.id;
        let Some(link) = self.shared.link_of(dataset) else {
            return Err(NodeError::failed(format!("{name} is not linked to a directory here")));
        };
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            shared.stop_folder(dataset);
            shared.save_links()?;
            shared.store.set_linked(dataset, false)?;
            crate::folder::remove_private_area(&link.dir);
            Ok(())
        })
        .await
    }

    /// Starts the engines of the directories that were linked when the node ran last.
    pub(super) async fn restore_links(&self) -> Result<(), NodeError> {
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let facts = shared.facts();
            for link in shared.saved_links()? {
                let Some(fact) = facts.datasets.iter().find(|d| d.parameters.id == link.dataset)
                else {
                    continue;
                };
                // A link that was saved halfway is completed.
                shared.store.set_linked(link.dataset, true)?;
                if let Err(error) = shared.start_folder(fact.name.clone(), link) {
                    tracing::error!(dataset = fact.name, %error, "a directory cannot be linked");
                }
            }
            Ok(())
        })
        .await
    }

    pub(super) fn fact(&self, name: &str) -> Result<DatasetFact, NodeError> {
        self.shared.facts().dataset(name).cloned().ok_or_else(|| {
            NodeError::failed(format!("there is no dataset {name}"))
                .hint("`consort dataset list` shows those there are; a new one takes a moment to reach every node")
        })
    }

    fn describe(&self, fact: &DatasetFact) -> Result<Dataset, NodeError> {
        let summary = self.shared.store.view(fact.parameters.id)?.summary();
        let link = self.shared.link_of(fact.parameters.id);
        let head = summary.head;
        Ok(Dataset {
            name: fact.name.clone(),
            id: fact.parameters.id,
            mode: Mode::Mesh,
            on_conflict: OnConflict::KeepBoth,
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
            None => Ok(()),
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

/// The directory, made if it is missing, without symlinks in its path.
fn prepare_directory(dir: &Path) -> Result<PathBuf, NodeError> {
    let failed = |error: std::io::Error| {
        NodeError::failed(format!("{} cannot be linked: {error}", dir.display()))
    };
    std::fs::create_dir_all(dir).map_err(failed)?;
    dir.canonicalize().map_err(failed)
}
