//! Tickets, members, ports and stores that are not in order: each gets a clear error, and changes nothing else.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::cluster::{Cluster, DATASET, Node, array, process_id, text, until};
use crate::random::Random;

#[test]
fn a_home_that_is_not_initialized_says_how_to_begin() {
    let mut cluster = Cluster::new(1);
    let node = cluster.add_node();
    node.run(["up"]).expect_failure(1, &["consort init", "consort join"]);
    node.run(["status"]).expect_failure(1, &[]);
    assert!(!node.home.join("store").exists(), "a failed command made a store");
}

#[test]
fn a_second_init_changes_nothing() {
    let mut cluster = Cluster::new(1);
    let before = cluster.nodes[0].status()["node"].clone();
    cluster.nodes[0].stop();
    cluster.nodes[0].run(["init"]).expect_failure(4, &["already"]);
    cluster.nodes[0].start();
    assert_eq!(cluster.nodes[0].status()["node"], before);
}

#[test]
fn a_used_ticket_is_refused() {
    let mut cluster = Cluster::new(1);
    let ticket = cluster.nodes[0].invite(&[]);
    let node = cluster.add_node();
    node.run(["join", &ticket, "--name", "b"]).expect_done();
    let late = cluster.add_node();
    let refused = late.run(["join", &ticket, "--name", "c"]);
    expect_refused(&refused, &["ticket"]);
    // What is true from then on, and how to go on.
    for command in ["status", "up"] {
        let told = late.run([command]);
        let told =
            told.expect_failure(1, &["not part of a cluster yet", "join ticket", "consort init"]);
        assert!(!told.stderr.contains("not running"), "{told}");
    }
    let finding = late.run(["doctor"]).expect_failure(1, &[]);
    assert!(finding.text().contains("not part of a cluster yet"), "{finding}");
}

#[test]
fn a_member_that_has_heard_of_nobody_yet_says_so_and_what_to_do() {
    let mut cluster = Cluster::new(1);
    let alone = cluster.nodes[0].run(["status"]).expect_done();
    assert!(alone.text().contains("no peers yet: consort invite"), "{alone}");
    assert!(alone.text().contains("consort dataset create NAME"), "{alone}");
    let ticket = cluster.nodes[0].invite(&[]);
    let node = cluster.add_node();
    node.run(["join", &ticket, "--name", "b"]).expect_done();
    cluster.nodes[0].stop();
    let node = &mut cluster.nodes[1];
    node.start();
    let status = node.run(["status"]).expect_done();
    assert!(status.text().contains("has not heard from its cluster yet"), "{status}");
    for words in ["consort invite", "dataset create", "no peers", "no datasets"] {
        assert!(!status.text().contains(words), "{status}");
    }
    let members = node.run(["member", "list"]).expect_done();
    assert!(members.stderr.contains("has not heard from its cluster yet"), "{members}");
    assert!(members.text().is_empty(), "{members}");

    cluster.nodes[0].start();
    cluster.expect_connected();
    let heard = cluster.nodes[1].run(["status"]).expect_done();
    assert!(heard.text().contains("no datasets yet: an admin makes them"), "{heard}");
}

#[test]
fn an_expired_ticket_is_refused() {
    let mut cluster = Cluster::new(1);
    let ticket = cluster.nodes[0].invite(&["--expires", "1s"]);
    let made = Instant::now();
    let node = cluster.add_node();
    until("the ticket to expire", || made.elapsed() > Duration::from_secs(2));
    expect_refused(&node.run(["join", &ticket]), &["expired"]);
}

#[test]
fn mistyped_and_forged_tickets_are_refused() {
    let mut cluster = Cluster::new(1);
    let ticket = cluster.nodes[0].invite(&[]);
    let foreign = Cluster::new(1);
    let other = foreign.nodes[0].invite(&[]);
    let node = cluster.add_node();
    let changed_at = |place: usize| {
        let mut bytes = ticket.clone().into_bytes();
        bytes[place] = if bytes[place] == b'a' { b'b' } else { b'a' };
        String::from_utf8(bytes).expect("ASCII")
    };
    for wrong in [
        String::new(),
        "hello".to_string(),
        ticket[..ticket.len() - 1].to_string(),
        changed_at(ticket.len() / 2),
        changed_at(ticket.len() - 2),
        format!("{}{}", &ticket[..ticket.len() / 2], &other[other.len().min(ticket.len() / 2)..]),
        "x".repeat(100_000),
    ] {
        expect_refused(&node.run(["join", &wrong]), &["ticket"]);
    }
    // The right one still is: nothing was changed, here or there.
    node.run(["join", &ticket, "--name", "b"]).expect_done();
    node.start();
    cluster.expect_connected();
}

#[test]
fn a_revoked_member_is_shut_out_and_told() {
    let mut cluster = Cluster::linked(2);
    cluster.nodes[0].run(["member", "revoke", "b"]).expect_done();
    until("the revoked member to be disconnected", || {
        let status = cluster.nodes[0].status();
        array(&status, "peers").iter().all(|peer| peer["connected"] == false)
    });
    fs::write(cluster.nodes[1].path("too-late"), "from b").expect("a new file");
    fs::write(cluster.nodes[0].path("not-for-b"), "from a").expect("a new file");
    cluster.nodes[0].wait();
    cluster.nodes[1].stop();
    cluster.nodes[1].start();
    until("the revoked member to be told", || {
        let status = cluster.nodes[1].status();
        let told = |text: &str| text.to_lowercase().contains("revoked");
        array(&status, "peers").iter().any(|peer| peer["reason"].as_str().is_some_and(told))
    });
    assert!(!cluster.nodes[0].path("too-late").exists());
    assert!(!cluster.nodes[1].path("not-for-b").exists());
    // What would never leave it is not acknowledged.
    cluster.nodes[1].put("never", b"from b").expect_failure(5, &["revoked"]);
    let again = cluster.nodes[0].run(["member", "revoke", "b"]);
    again.expect_failure(1, &["b is revoked already"]);
}

#[test]
fn a_reader_gets_everything_and_writes_nothing() {
    let mut cluster = Cluster::linked(1);
    fs::write(cluster.nodes[0].path("given"), "from a").expect("a new file");
    let reader = cluster.join_another("reader");
    cluster.expect_connected();
    let reader = &cluster.nodes[reader];
    until("the reader to know the dataset", || {
        reader.run(["dataset", "show", DATASET]).status.success()
    });
    until("the entry to arrive", || reader.get("given").status.success());
    assert_eq!(reader.get("given").stdout, b"from a");
    reader.put("forbidden", b"x").expect_failure(5, &["reader"]);
    reader.run(["invite"]).expect_failure(5, &[]);
    cluster.nodes[0].wait();
    assert!(!cluster.nodes[0].path("forbidden").exists());
}

#[test]
fn a_port_in_use_is_named() {
    let mut cluster = Cluster::new(1);
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound");
    let (address, port) = (address.to_string(), address.port().to_string());
    cluster.nodes[0].stop();
    cluster.nodes[0].run(["up", "--listen", &address]).expect_failure(1, &[&port, "in use"]);
    cluster.nodes[0].start();
}

#[test]
fn a_home_whose_socket_would_have_too_long_a_path_is_refused_at_once() {
    let mut cluster = Cluster::new(1);
    let ticket = cluster.nodes[0].invite(&[]);
    let node = cluster.add_node();
    node.home = node.home.join("x".repeat(100));
    for args in [&["init"][..], &["join", &ticket], &["up"]] {
        node.run(args).expect_failure(2, &["too long", "--home"]);
    }
    assert!(!node.home.exists());
    node.home = node.home.with_file_name("short");
    node.run(["join", &ticket]).expect_done();
}

#[test]
fn a_home_in_use_by_a_running_node_is_refused() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    node.run(["up", "--listen", "127.0.0.1:0"]).expect_failure(1, &["already"]);
    node.run(["doctor", "--deep"]).expect_failure(1, &["stop"]);
    node.status();
    // Also if the socket does not tell: the store itself is locked.
    fs::remove_file(node.home.join("control.sock")).expect("it is there");
    let second = node.run(["up", "--listen", "127.0.0.1:0"]);
    assert_eq!(second.status.code(), Some(1), "{second}");
}

#[test]
fn a_command_waits_for_a_node_that_was_started_just_before() {
    let mut cluster = Cluster::linked(1);
    let node = &mut cluster.nodes[0];
    for round in ["after it stopped", "after it was killed"] {
        match round {
            "after it stopped" => node.stop(),
            _ => node.kill(),
        }
        node.launch();
        node.run(["ls", DATASET]).expect_done();
    }
}

#[test]
fn a_node_starts_right_after_it_was_killed() {
    let mut cluster = Cluster::linked(2);
    for number in 0..5 {
        fs::write(cluster.nodes[1].path(&format!("file-{number}")), vec![7; 1 << 20]).expect("new");
        cluster.nodes[0].kill_and_start();
        cluster.settle();
    }
}

#[test]
fn a_store_of_a_newer_format_is_left_alone() {
    let mut cluster = Cluster::linked(1);
    cluster.nodes[0].stop();
    let format = find(&cluster.nodes[0].home, "FORMAT");
    let old = fs::read_to_string(&format).expect("text");
    let number = old.trim_end().rsplit(' ').next().expect("a number");
    let new = old.replace(number, "9999");
    fs::write(&format, &new).expect("writable");
    let node = &mut cluster.nodes[0];
    node.run(["up", "--listen", "127.0.0.1:0"]).expect_failure(1, &["format", "9999", "newer"]);
    assert_eq!(fs::read_to_string(&format).expect("text"), new);
    fs::write(&format, &old).expect("writable");
    node.start();
}

#[test]
fn a_damaged_home_is_told_and_left_alone() {
    let mut cluster = Cluster::linked(1);
    let node = &mut cluster.nodes[0];
    node.put("key", b"value").expect_done();
    node.stop();
    for name in ["FORMAT", "node.key"] {
        let file = find(&node.home, name);
        let old = fs::read(&file).expect("it is there");
        fs::write(&file, b"nonsense").expect("writable");
        node.run(["up", "--listen", "127.0.0.1:0"]).expect_failure(1, &["damaged"]);
        assert_eq!(fs::read(&file).expect("it is there"), b"nonsense");
        fs::write(&file, old).expect("writable");
    }
    node.start();
    assert_eq!(node.get("key").stdout, b"value");
}

#[test]
fn a_node_whose_store_was_damaged_begins_anew_as_the_member_that_it_was() {
    let mut cluster = Cluster::linked(3);
    let ticket = cluster.nodes[0].invite(&["--role", "writer"]);
    fs::write(cluster.nodes[1].path("shared"), [7; 300_000]).expect("a new file");
    fs::write(cluster.nodes[0].path("deleted"), "old").expect("a new file");
    cluster.settle();
    fs::remove_file(cluster.nodes[0].path("deleted")).expect("it is there");
    cluster.settle();
    cluster.nodes[2].stop();
    cluster.nodes[0].run(["member", "revoke", "c"]).expect_done();
    cluster.nodes[0].put("by-a", b"value").expect_done();
    let author = |node: &Node, key| {
        let stat = node.run(["stat", DATASET, key, "--json"]).expect_done().json();
        let version = text(&stat["version"]);
        version[..version.len() - 16].to_owned()
    };
    let before = author(&cluster.nodes[0], "by-a");
    cluster.nodes[1].wait();
    cluster.nodes[0].stop();

    // The first node is the one that holds the authority, so joining anew is no way out.
    let (store, kept) = (cluster.nodes[0].home.join("store"), cluster.beside("kept"));
    fs::write(store.join("FORMAT"), b"nonsense").expect("writable");
    let refused = cluster.nodes[0].run(["up", "--listen", "127.0.0.1:0"]);
    refused.expect_failure(1, &["damaged", "move `store` out of the home"]);
    fs::rename(&store, kept).expect("on one file system");
    cluster.nodes[0].start();
    cluster.nodes[0].link();
    let node = &cluster.nodes[0];
    node.wait();
    assert_eq!(fs::read(node.path("shared")).expect("it is there"), [7; 300_000]);
    assert!(!node.path("deleted").exists());
    assert_eq!(node.get("by-a").stdout, b"value");
    let members = node.run(["member", "list", "--json"]).expect_done().json();
    let revoked = |member: &&serde_json::Value| member["revoked"] == true;
    let revoked: Vec<_> = members.as_array().expect("a list").iter().filter(revoked).collect();
    assert!(matches!(revoked[..], [member] if member["name"] == "c"), "{members}");

    // It may write under its old name, and let others in.
    node.put("later", b"new").expect_done();
    assert_ne!(author(node, "later"), before);
    cluster.nodes[1].wait();
    assert_eq!(cluster.nodes[1].get("later").stdout, b"new");
    let joiner = cluster.add_node();
    joiner.run(["join", &ticket, "--name", &joiner.name]).expect_done();
    joiner.start();
    joiner.link();
    joiner.wait();
    assert_eq!(joiner.get("later").stdout, b"new");
}

#[test]
fn keys_that_cannot_be_are_refused_and_change_nothing() {
    let cluster = Cluster::linked(1);
    let node = &cluster.nodes[0];
    let longest = "x".repeat(250) + &"/x".repeat(387);
    let too_long = longest.clone() + "x";
    assert_eq!((longest.len(), too_long.len()), (1024, 1025));
    node.put(&longest, b"the longest").expect_done();
    let before = node.dataset()["digest"].clone();
    let wrong = [
        "",
        "..",
        ".",
        "../up",
        "a/../b",
        "/a",
        "a/",
        "a//b",
        "line\nbreak",
        "bell\u{7}",
        "\u{7f}",
    ];
    for key in wrong.into_iter().chain([&*too_long]) {
        node.put(key, b"x").expect_failure(2, &["key"]);
        for command in ["get", "stat", "rm"] {
            node.run([command, DATASET, key]).expect_failure(2, &["key"]);
        }
    }
    // A program cannot be given NUL as an argument; the socket can.
    let request = format!(
        "{{\"version\":1,\"request\":{{\"op\":\"stat\",\"name\":\"{DATASET}\",\"key\":\"a\\u0000b\"}}}}\n"
    );
    let mut socket = UnixStream::connect(node.home.join("control.sock")).expect("it listens");
    socket.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("usage") && answer.contains("control characters"), "{answer}");
    let strange = OsStr::from_bytes(b"caf\xe9");
    let outcome = node.run([OsStr::new("stat"), OsStr::new(DATASET), strange]);
    assert_eq!(outcome.status.code(), Some(2), "{outcome}");
    assert_eq!(node.dataset()["digest"], before);
}

#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let cluster = Cluster::linked(2);
    let [a, b] = &cluster.nodes[..] else { unreachable!("two nodes") };
    let mut random = Random::new(1);
    let before = memory(a.pid());
    for round in 0..40 {
        let mut stream = TcpStream::connect(a.listen).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("not zero");
        let garbage = match round % 5 {
            0 => random.bytes(70_000),
            1 => b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
            2 => vec![0xff; 64],
            // The beginning of a TLS record that promises the most there can be, and little of it.
            3 => [&[0x16, 3, 1, 0x3f, 0xff, 1, 0xff, 0xff, 0xff][..], &random.bytes(100)].concat(),
            _ => Vec::new(),
        };
        // The node may hang up before all of it is written.
        let _ = stream.write_all(&garbage);
        let _ = stream.shutdown(Shutdown::Write);
        fs::write(b.path(&format!("file-{round}")), random.bytes(3000)).expect("a new file");
        let mut answer = Vec::new();
        let _ = stream.take(1 << 20).read_to_end(&mut answer);
        assert!(answer.len() < 4096, "{} bytes for garbage", answer.len());
    }
    cluster.settle();
    assert!(a.path("file-39").exists());
    let grown = memory(a.pid()).saturating_sub(before);
    assert!(grown < 64 * 1024 * 1024, "{grown} bytes more for garbage");
}

/// The command failed for a reason that the user can do something about, and says all of `words`.
fn expect_refused(outcome: &crate::cluster::Outcome, words: &[&str]) {
    let code = outcome.status.code();
    assert!(matches!(code, Some(1 | 2 | 5)), "{outcome}");
    for word in words {
        let is_told = outcome.stderr.to_lowercase().contains(word);
        assert!(is_told, "it does not say {word:?}: {outcome}");
    }
}

/// Bytes of memory that a process uses.
fn memory(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).expect("our own child");
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux says so");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes * 1024
}

/// The one file of this name below `dir`.
fn find(dir: &std::path::Path, name: &str) -> std::path::PathBuf {
    let found = crate::tree::read(dir).into_keys().find(|path| path.ends_with(name));
    dir.join(found.unwrap_or_else(|| panic!("there is no {name} below {}", dir.display())))
}

#[test]
fn a_config_with_a_mistake_that_is_read_again_is_told_of_until_it_is_mended() {
    let cluster = Cluster::new(1);
    let node = &cluster.nodes[0];
    let read_again = |config: &[u8]| {
        fs::write(node.home.join("config.toml"), config).expect("it may be written");
        kill_process(process_id(node.pid()), Signal::HUP).expect("it runs");
    };
    let error = || node.status()["config_error"].as_str().map(str::to_owned);
    assert_eq!(error(), None);
    read_again(b"[limits]\nup = \"1MB/s\"\n");
    until("the limit to hold", || node.status()["limit_up_bytes"] == 1_000_000);

    for (config, told) in
        [(&b"[limits]\nupp = \"2MB/s\"\n"[..], "line 2, `upp"), (b"# f\xfcr\n", "no UTF-8")]
    {
        read_again(config);
        until("the mistake to be told", || error().is_some_and(|error| error.contains(told)));
        let shown = node.run(["status"]).expect_done();
        assert!(shown.text().contains(told) && shown.text().contains("holds on"), "{shown}");
        let found = node.run(["doctor"]).expect_done();
        assert!(found.text().contains(told) && found.text().contains("reload"), "{found}");
        assert_eq!(node.status()["limit_up_bytes"], 1_000_000);
    }
    read_again(b"");
    until("nothing to be wrong", || error().is_none());
    let found = node.run(["doctor"]).expect_done();
    assert!(!found.text().contains("config.toml"), "{found}");
}
