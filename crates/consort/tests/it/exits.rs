//! Exit codes, and the shape of errors.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{consort, stderr, stdout};

/// What a test waits for takes milliseconds; this is for a machine that is busy with other things.
const BOUND: Duration = Duration::from_secs(60);

fn error_of(output: &std::process::Output) -> Value {
    let mut document: Value = serde_json::from_str(stdout(output)).expect("one JSON document");
    let error = document.get_mut("error").expect("an error").take();
    for field in ["kind", "message", "hint"] {
        assert!(error[field].is_string(), "{field} is missing: {error}");
    }
    error
}

#[test]
fn wrong_usage_ends_with_2_and_changes_nothing() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = place.path().join("home");
    for args in [
        &["fly"][..],
        &[],
        &["join"],
        &["wait", "photos", "--timeout", "soon"],
        &["invite", "--role", "king"],
        &["get", "photos", "a", "--json"],
        &["put", "photos", "a", "/"],
        &["conflicts", "resolve", "photos", "a", "--keep", "the latest"],
        &["status", "--log", "a=b=c"],
    ] {
        let output = consort(&home, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
    assert!(!home.exists());
}

#[test]
fn a_home_without_a_node_is_told_apart_from_a_node_that_does_not_run() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = place.path().join("home");
    let output = consort(&home, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).is_empty());
    assert!(stderr(&output).contains("there is no node"), "{}", stderr(&output));
    assert!(stderr(&output).contains("consort init"), "{}", stderr(&output));

    assert!(consort(&home, &["init", "--name", "a"]).status.success());
    let output = consort(&home, &["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is not running"), "{}", stderr(&output));
    assert!(stderr(&output).contains(" up"), "{}", stderr(&output));

    // What a crash leaves behind: a socket at which nobody listens.
    drop(UnixListener::bind(home.join("control.sock")).expect("bound"));
    let output = consort(&home, &["ls", "photos"]);
    assert!(stderr(&output).contains("is not running"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_get_leaves_nothing_behind() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = place.path().join("home");
    let target = place.path().join("target");
    fs::create_dir_all(&home).and_then(|()| fs::create_dir(&target)).expect("made");
    // A node that sends half of a body, and no more.
    let listener = UnixListener::bind(home.join("control.sock")).expect("bound");
    let mut get = Command::new(env!("CARGO_BIN_EXE_consort"));
    get.arg("--home").arg(&home).args(["get", "photos", "key", "-o"]).arg(target.join("file"));
    let mut get = get.stderr(Stdio::piped()).spawn().expect("it was built for this test");
    let (mut stream, _) = listener.accept().expect("it asks");
    BufReader::new(&stream).read_line(&mut String::new()).expect("a request");
    let entry = br#"{"item":{"key":"key","kind":"file","size":8,"mode":384,"modified_ns":0,"version":"v",
        "written_ms":0,"media_type":null,"origin":"real","metadata":{},"conflicts":0,"deleted":false}}"#;
    let entry: Vec<u8> = entry.iter().copied().filter(|byte| *byte != b'\n').collect();
    stream.write_all(&[&entry[..], b"\n\0\0\0\x04half"].concat()).expect("it reads");
    let end = Instant::now() + BOUND;
    let files = || fs::read_dir(&target).expect("it is there").count();
    while files() == 0 {
        assert!(Instant::now() < end && get.try_wait().expect("a child").is_none());
        std::thread::yield_now();
    }
    let pid = Pid::from_raw(get.id().try_into().expect("small")).expect("not zero");
    kill_process(pid, Signal::INT).expect("it runs");
    assert_eq!(get.wait().expect("it ends").code(), Some(1));
    assert_eq!(files(), 0);
}

#[test]
fn with_json_errors_are_documents_too() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = place.path().join("home");
    for args in [
        &["status", "--json"][..],
        &["--json", "put", "photos", "a"],
        &["--json", "feed", "photos", "--follow"],
        &["--json", "ls", "photos"],
    ] {
        let output = consort(&home, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert_eq!(error_of(&output)["kind"], "failed", "{args:?}");
    }
    for args in [&["--json", "fly"][..], &["--json"], &["get", "photos", "a", "--json"]] {
        let output = consort(&home, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = error_of(&output);
        assert_eq!(error["kind"], "usage", "{args:?}");
        assert!(!error["message"].as_str().expect("text").is_empty(), "{args:?}");
    }
}

#[test]
fn doctor_finds_that_the_node_does_not_run() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let output = consort(&place.path().join("home"), &["doctor", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let findings: Value = serde_json::from_str(stdout(&output)).expect("one JSON document");
    assert_eq!(findings[0]["severity"], "problem");
    assert!(findings[0]["todo"].is_string());
}

#[test]
fn messages_cannot_steer_a_terminal() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let home = place.path().join("a\u{1b}[2J");
    let output = consort(&home, &["status"]);
    assert!(!output.stderr.contains(&0x1b), "{}", stderr(&output));
    let output = consort(&home, &["status", "--json"]);
    assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
}

#[test]
fn a_socket_of_another_kind_of_program_is_an_error_and_no_hang() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let listener = UnixListener::bind(place.path().join("control.sock")).expect("bound");
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a command comes");
        std::io::Write::write_all(&mut stream, b"220 mail.example.org\r\n").expect("written");
    });
    let output = consort(place.path(), &["status"]);
    stranger.join().expect("it wrote");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("makes no sense"), "{}", stderr(&output));
}

#[test]
fn completions_need_no_node() {
    let place = tempfile::tempdir().expect("a temporary directory");
    for shell in ["bash", "zsh", "fish"] {
        let output = consort(place.path(), &["completions", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("consort"));
    }
}

#[test]
fn dev_refuses_what_is_no_directory_and_leaves_nothing() {
    let place = tempfile::tempdir().expect("a temporary directory");
    let file = place.path().join("file");
    fs::write(&file, "").expect("written");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("set");
    let home = place.path().join("home");
    let output = consort(&home, &["dev".as_ref(), file.as_os_str(), "--once".as_ref()]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    let inside = place.path().join("inside");
    let output = consort(&inside, &["dev".as_ref(), place.path().as_os_str(), "--once".as_ref()]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(!home.exists() && !inside.exists());
}
