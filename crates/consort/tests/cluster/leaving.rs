//! A node ends its own membership: not before others have what it has, and only with the help of an admin.

use std::fs;

use crate::cluster::{Cluster, Node, number, patience, until, within};
use crate::tree;

/// Entries beside which a deletion is nothing to ask about.
const OTHERS: usize = 12;

#[test]
fn who_leaves_takes_nothing_along_and_is_waited_for_no_more() {
    let mut cluster = Cluster::linked(3);
    for n in 0..OTHERS {
        fs::write(cluster.nodes[0].path(&format!("kept-{n}")), "kept").expect("a new file");
    }
    cluster.settle();
    let is_waited_for = |node: &Node| member(node, "c")["waited_for"] == true;
    until("it to be waited for", || cluster.nodes.iter().all(is_waited_for));

    // Written just before, so that only it has them yet.
    let leaver = &cluster.nodes[2];
    fs::write(leaver.path("large"), vec![7; 3_000_000]).expect("a new file");
    fs::write(leaver.path("small"), "from c").expect("a new file");
    let expected = tree::read(&leaver.dir);
    let left = leaver.run(["leave", "--json"]).expect_done();
    let said = left.json();
    assert_eq!(said["ended_by"], "a", "{left}");
    assert_eq!(said["checked"], true, "{left}");
    assert_eq!(said["dirs"][0], leaver.dir.to_str().expect("UTF-8"), "{left}");
    assert!(left.stderr.contains("stays as it is"), "{left}");

    // Its process is not needed any more; its files stay.
    leaver.put("late", b"from c").expect_failure(5, &["revoked"]);
    leaver.run(["leave"]).expect_failure(5, &["revoked"]);
    cluster.nodes[2].stop();
    assert!(tree::differences(&expected, &tree::read(&cluster.nodes[2].dir)).is_empty());
    let others = &cluster.nodes[..2];
    for node in others {
        node.wait();
        until("it to be shown as revoked", || member(node, "c")["revoked"] == true);
        assert_eq!(fs::read(node.path("large")).expect("it is there"), vec![7; 3_000_000]);
        assert_eq!(fs::read(node.path("small")).expect("it is there"), b"from c");
        assert!(!is_waited_for(node));
    }
    fs::remove_file(others[0].path("kept-0")).expect("it is there");
    others[0].wait();
    within(3 * patience(), "the deletion to be forgotten without it", || {
        others
            .iter()
            .all(|node| !node.path("kept-0").exists() && number(&node.dataset()["tombstones"]) == 0)
    });
}

#[test]
fn who_reaches_nobody_is_told_whom_to_ask_and_stays_a_member() {
    let mut cluster = Cluster::linked(2);
    cluster.nodes[0].stop();
    until("the other one to be gone", || {
        cluster.nodes[1].status()["peers"][0]["presence"] == "gone"
    });
    let leaver = &cluster.nodes[1];
    let told = ["no admin", "can be reached", "consort member revoke b"];
    leaver.run(["leave"]).expect_failure(1, &told);
    leaver.run(["leave", "--force"]).expect_failure(1, &told);
    leaver.put("key", b"value").expect_done();

    cluster.nodes[0].start();
    cluster.settle();
    assert_eq!(cluster.nodes[0].get("key").expect_done().stdout, b"value");
    cluster.nodes[1].run(["leave"]).expect_done();
}

#[test]
fn what_only_one_node_has_keeps_it_from_leaving_unless_it_is_forced() {
    let mut cluster = Cluster::new(2);
    cluster.nodes[0].run(["dataset", "create", crate::cluster::DATASET]).expect_done();
    cluster.nodes[1].link();
    fs::write(cluster.nodes[1].path("precious"), vec![7; 300_000]).expect("a new file");
    let refused = cluster.nodes[1].run(["leave"]);
    refused.expect_failure(1, &["contents of photos", "precious", "link photos", "--force"]);
    assert_eq!(member(&cluster.nodes[0], "b")["revoked"], false);

    let forced = cluster.nodes[1].run(["leave", "--force"]).expect_done();
    assert!(forced.stderr.contains("not looked at"), "{forced}");
    until("it to be shown as revoked", || member(&cluster.nodes[0], "b")["revoked"] == true);
    assert_eq!(fs::read(cluster.nodes[1].path("precious")).expect("it stays"), vec![7; 300_000]);
    cluster.stop_and_check();
}

#[test]
fn the_last_admin_and_the_authority_stay_as_long_as_they_are_needed() {
    let mut cluster = Cluster::linked(2);
    let admin = ["only admin", "invite --role admin"];
    cluster.nodes[0].run(["leave"]).expect_failure(5, &admin);
    cluster.nodes[0].run(["leave", "--force"]).expect_failure(5, &admin);

    let second = cluster.join_another("admin");
    cluster.nodes[second].link();
    cluster.settle();
    cluster.nodes[0].run(["leave"]).expect_failure(5, &["authority", "--force"]);
    let left = cluster.nodes[0].run(["leave", "--force", "--json"]).expect_done();
    assert_eq!(left.json()["ended_by"], "c", "{left}");
    until("it to be shown as revoked", || member(&cluster.nodes[1], "a")["revoked"] == true);
    // Whoever counted on what has just left would be wrong.
    cluster.nodes[1].run(["leave"]).expect_failure(1, &["just leaving", "half a minute"]);
    cluster.nodes[second].run(["member", "revoke", "b"]).expect_done();

    // It is alone now, and nobody else needs to be asked.
    let alone = &cluster.nodes[second];
    alone.put("key", b"value").expect_done();
    alone.run(["leave"]).expect_failure(1, &["no other member", "--force"]);
    let left = alone.run(["leave", "--force", "--json"]).expect_done();
    assert!(left.json()["ended_by"].is_null(), "{left}");
}

/// What a node says of the member with this name.
fn member(node: &Node, name: &str) -> serde_json::Value {
    let members = node.run(["member", "list", "--json"]).expect_done().json();
    let found = members.as_array().expect("a list").iter().find(|member| member["name"] == name);
    found.unwrap_or_else(|| panic!("{} does not know {name}: {members}", node.name)).clone()
}
