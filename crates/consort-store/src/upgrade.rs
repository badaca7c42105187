//! The format of a store: read before anything else, and brought up to date one step at a time.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use crate::layout::FORMAT;
use crate::packs::sync_directory;
use crate::store::OpenError;

const NAME: &str = "FORMAT";
const PREFIX: &str = "consort store ";

/// Reads the format of the store in `directory` and brings it up to date; a store that is new gets the current one.
pub(crate) fn upgrade(directory: &Path) -> Result<(), OpenError> {
    let path = directory.join(NAME);
    let found = match fs::read_to_string(&path) {
        Ok(text) => {
            let number = text.strip_prefix(PREFIX).and_then(|rest| rest.trim_end().parse().ok());
            let says_none = || OpenError::Damaged(format!("{} says no format", path.display()));
            Some(number.ok_or_else(says_none)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    match found {
        Some(FORMAT) => return Ok(()),
        None => {}
        // Earlier formats get an arm each, with a function that makes the next format of it.
        Some(0) => return Err(OpenError::Damaged("format 0 was never written".to_owned())),
        // Their rows are read as they are: the bytes that format 1 did not count are none, and the tombstones that format 2
        // did not index are indexed when the dataset is opened.
        Some(1 | 2) => {}
        Some(found) => return Err(OpenError::NewerFormat { found, known: FORMAT }),
    }
    write(directory).map_err(|source| OpenError::Io { path, source })
}

/// Writes the current format, beside the old one first.
fn write(directory: &Path) -> io::Result<()> {
    let path = directory.join(NAME);
    let new = directory.join("FORMAT.new");
    let mut file = File::create(&new)?;
    file.write_all(format!("{PREFIX}{FORMAT}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, &path)?;
    sync_directory(directory)
}
