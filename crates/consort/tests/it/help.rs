//! The texts that `--help` prints. `UPDATE_HELP=1` writes them anew; read the difference before you commit it.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::{consort, stdout};

const COMMANDS: [&str; 31] = [
    "",
    "init",
    "up",
    "invite",
    "join",
    "leave",
    "member",
    "member list",
    "member evict",
    "member revoke",
    "dataset",
    "dataset create",
    "dataset list",
    "dataset show",
    "dataset drop",
    "link",
    "unlink",
    "put",
    "get",
    "ls",
    "stat",
    "rm",
    "conflicts",
    "conflicts resolve",
    "feed",
    "wait",
    "status",
    "doctor",
    "plan",
    "dev",
    "completions",
];

/// What fits beside other things on a screen.
const MAX_COLUMNS: usize = 100;

fn help(command: &str) -> String {
    let args: Vec<&str> = command.split_whitespace().chain(["--help"]).collect();
    let output = consort(Path::new("/nowhere"), &args);
    assert!(output.status.success(), "{command}");
    assert!(output.stderr.is_empty(), "{command}");
    stdout(&output).to_string()
}

#[test]
fn help_reads_as_it_was_last_approved() {
    let mut all = String::new();
    for command in COMMANDS {
        let _ = writeln!(all, "$ consort {command}\n{}", help(command));
    }
    let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/help.txt");
    if std::env::var_os("UPDATE_HELP").is_some() {
        fs::write(&golden, &all).expect("the source tree is writable");
    }
    let approved = fs::read_to_string(&golden).unwrap_or_default();
    assert!(all == approved, "help differs from {golden:?}; if it should, set UPDATE_HELP=1");
}

#[test]
fn every_command_has_an_example_and_fits_on_a_screen() {
    for command in COMMANDS {
        let text = help(command);
        assert!(text.contains("\nExample"), "{command}: no example");
        assert!(text.contains(&format!("  consort {}", command)), "{command}: not its own example");
        for line in text.lines() {
            assert!(line.chars().count() <= MAX_COLUMNS, "{command}: too wide: {line}");
        }
    }
}

#[test]
fn every_command_begins_with_one_clear_sentence() {
    for command in COMMANDS {
        let text = help(command);
        let first = text.lines().next().unwrap_or_default();
        assert!(first.starts_with(char::is_uppercase), "{command}: {first}");
    }
}

#[test]
fn no_command_is_missing_here() {
    let text = help("");
    let listed = text.lines().skip_while(|line| *line != "Commands:").skip(1);
    for line in listed.take_while(|line| !line.is_empty()) {
        let name = line.split_whitespace().next().expect("a line with a command");
        assert!(name == "help" || COMMANDS.contains(&name), "{name}");
    }
}
