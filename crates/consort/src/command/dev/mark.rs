//! The mark that `consort dev` leaves in a directory that it linked. What a `dev` that was killed has left, the next one
//! takes over; what a node keeps, running or not, is not `dev`'s to take: linking by hand removes the mark.

use std::fs::{self, File};
use std::path::Path;

use consort_node::DEV_MARK;
use consort_node::folder::PRIVATE_DIR;

use crate::error::{Error, Kind};

/// Refuses a directory that somebody else has linked.
pub(crate) fn refuse_foreign(dir: &Path) -> Result<(), Error> {
    let private = dir.join(PRIVATE_DIR);
    let has = |name: &str| fs::symlink_metadata(private.join(name)).is_ok();
    if !has("id") || has(DEV_MARK) {
        return Ok(());
    }
    let dir = dir.display();
    Err(Error::new(Kind::Conflict, format!("a node keeps {dir} already: it is linked to a dataset"))
        .hint(format!(
            "name another directory, or a copy; or `consort unlink` it there first (if no node links it any more, remove {dir}/{PRIVATE_DIR}/id)"
        )))
}

/// Marks a directory that was linked just now.
pub(crate) fn set(dir: &Path) -> Result<(), Error> {
    let path = dir.join(PRIVATE_DIR).join(DEV_MARK);
    File::create(&path).map_err(|error| Error::io("make", &path, &error))?;
    Ok(())
}
