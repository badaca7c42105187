//! What people are told of a linked directory: how much is left to do, and never that nothing is when something is.

use std::fs;

use consort_node::folder::{Progress, Scan};

use super::{DATASET, Site, Stands, content_of, file_attributes, noise};

#[test]
fn before_the_first_scan_is_over_one_is_on() {
    assert_eq!(Progress::default().scan(), Some(Scan { done: 0, total: None }));
    let site = Site::new();
    site.flush();
    assert_eq!(site.folder().progress().scan(), None);
}

#[test]
fn what_is_still_to_come_is_counted_in_bytes() {
    let mut site = Site::new();
    let bytes = noise(500_000, 2);
    site.remote_version("late", Stands::After, content_of(&bytes), file_attributes());
    site.remote("soon", Stands::After, b"soon");
    site.until("the other file is there", |site| site.at("soon").exists());
    site.until("something is missing", |site| site.folder().progress().is_waiting());
    site.until("that is all", |site| site.view().pending_bytes() == 500_000);
    site.keep(&bytes);
    site.settle();
    let progress = site.folder().progress();
    assert_eq!((site.view().pending_bytes(), progress.underway()), (0, 0));
}

#[test]
fn what_was_deleted_here_and_not_elsewhere_is_unsettled() {
    let site = Site::new();
    for number in 0..100 {
        site.write(&format!("dir/f{number}"), format!("{number}"));
    }
    site.settle();
    site.until("nothing is left to do", |site| site.folder().progress().unsettled() == 0);
    fs::remove_dir_all(site.at("dir")).unwrap();
    site.until("it asks", |site| site.folder().progress().trouble().is_some());
    assert!(50 <= site.folder().progress().unsettled());
}

#[test]
fn a_directory_can_be_linked_again_while_somebody_still_reads_from_it() {
    let mut site = Site::new();
    site.flush();
    let reading = site.contents.local().roots().get(DATASET).expect("it is linked");
    site.stop();
    site.start();
    site.write("f", "new");
    site.settle();
    drop(reading);
}
