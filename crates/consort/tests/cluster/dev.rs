//! `consort dev` on a directory that somebody names: it takes none that belongs to another node.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::cluster::{Cluster, DATASET, Node, Outcome, text, until};

/// `consort dev DIR`, running. The process is killed with the test, and its node ends when it notices that.
struct Dev {
    process: Child,
    private: PathBuf,
}

impl Dev {
    /// Returns when it says that its nodes are ready.
    fn start(home: &Path, dir: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_consort"))
            .arg("--home")
            .arg(home)
            .args(["--json", "dev", "--nodes", "1"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let mut dev = Self { process: child, private: dir.join(".consort") };
        let mut line = String::new();
        let stdout = dev.process.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let event: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(text(&event["event"]), "ready");
        dev
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Dev {
    /// Kills it, and waits until its node has let go of the directory.
    fn kill(self) {
        let private = File::open(&self.private).expect("a directory that is linked");
        drop(self);
        until("the node of a killed dev to end", || private.try_lock().is_ok());
    }
}

/// Runs `consort dev` on the directory of `node`, once, in the place `home`.
fn dev(node: &Node, home: &Path) -> Outcome {
    let args = [OsStr::new("dev"), node.dir.as_os_str(), OsStr::new("--once")];
    let nodes = ["--nodes", "1", "--home"].map(OsStr::new);
    node.run(args.into_iter().chain(nodes).chain([home.as_os_str()]))
}

#[test]
fn dev_takes_no_directory_that_another_node_keeps_running_or_not() {
    let mut cluster = Cluster::linked(1);
    let place = cluster.beside("dev");
    let node = &mut cluster.nodes[0];
    fs::write(node.path("kept"), "kept").expect("a new file");
    node.wait();
    let mark = node.path(".consort/id");
    let id = fs::read(&mark).expect("an identity");
    let refuse = |node: &Node| {
        let refused = dev(node, &place).expect_failure(4, &["linked", "unlink", ".consort/id"]);
        assert!(!refused.stderr.contains("WARN"), "{refused}");
        assert_eq!(fs::read(&mark).expect("an identity"), id);
    };
    refuse(node);
    node.stop();
    refuse(node);
    node.start();
    node.until_state("in-sync");
}

#[test]
fn dev_takes_over_what_a_killed_dev_left_unless_a_node_has_it_by_now() {
    let cluster = Cluster::new(1);
    let place = cluster.beside("dev");
    let node = &cluster.nodes[0];
    fs::write(node.path("kept"), "kept").expect("a new file");

    let running = Dev::start(&place, &node.dir);
    let refused = dev(node, &place).expect_failure(4, &["in use"]);
    assert!(!refused.stderr.contains("still marked"), "{refused}");
    running.kill();
    assert!(node.path(".consort/id").exists(), "it was killed");
    dev(node, &place).expect_done();
    assert!(!node.path(".consort").exists());

    Dev::start(&place, &node.dir).kill();
    node.run(["dataset", "create", DATASET]).expect_done();
    node.link();
    node.wait();
    dev(node, &place).expect_failure(4, &["linked"]);
    node.until_state("in-sync");
}
