//! The directory that `consort dev` makes when it is given none.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

/// Fills `dir` with a few files of different kinds.
pub(crate) fn make(dir: &Path) -> io::Result<()> {
    fs::create_dir(dir.join("images"))?;
    for (name, color) in [("red", "255 40 40"), ("green", "40 200 80"), ("blue", "40 80 255")] {
        let pixels = format!("{color}\n").repeat(16);
        fs::write(dir.join(format!("images/{name}.ppm")), format!("P3 4 4 255\n{pixels}"))?;
    }
    fs::write(dir.join("captions.jsonl"), CAPTIONS)?;
    fs::write(dir.join("README.txt"), README)?;
    fs::write(dir.join("count.sh"), "#!/bin/sh\nwc -l < captions.jsonl\n")?;
    fs::set_permissions(dir.join("count.sh"), Permissions::from_mode(0o755))?;
    symlink("images/red.ppm", dir.join("cover.ppm"))
}

const CAPTIONS: &str = r#"{"image": "images/red.ppm", "caption": "a red square", "origin": "synthetic"}
{"image": "images/green.ppm", "caption": "a green square", "origin": "synthetic"}
{"image": "images/blue.ppm", "caption": "a blue square", "origin": "synthetic"}
"#;

const README: &str = "\
Edit, add, rename or delete anything here, or in the directory of another node:
all of them stay the same.
";
