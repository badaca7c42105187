//! Tells the program which commit it was built from: a seed means something only together with that.

use std::process::Command;

fn main() {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
    };
    let commit = git(&["describe", "--always", "--dirty", "--exclude", "*"]);
    println!("cargo::rustc-env=CONSORT_COMMIT={}", commit.as_deref().unwrap_or("unknown"));
    // What the head is changes this file, in a worktree too.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=../consort-core/src");
}
