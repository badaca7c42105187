//! The program from outside, without a network: what it prints, and how it ends.
//!
//! - [`help`]: the texts that `--help` prints, compared with `help.txt` beside this file
//! - [`exits`]: exit codes and the shape of errors, as people and as programs get them
//! - [`plan`]: what a small plan prints and draws
//!
//! The parsing of arguments is tested in `args.rs`, the control socket in `control.rs`; what needs running nodes is
//! tested with the engine.

mod exits;
mod help;
mod plan;

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program with a clean environment and nothing to read.
fn consort<S: AsRef<OsStr>>(home: &Path, args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_consort"))
        .args(args)
        .env_clear()
        .env("CONSORT_HOME", home)
        .stdin(Stdio::null())
        .output()
        .expect("the program was built for this test")
}

/// What the program wrote to stdout.
fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("UTF-8")
}

/// What the program wrote to stderr.
fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("UTF-8")
}
