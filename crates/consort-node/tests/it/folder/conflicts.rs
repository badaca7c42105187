//! Conflict copies: what a directory shows of concurrent versions under each policy, and what it means to touch a copy.

use consort_core::limits::MAX_VECTOR_EXCEPTIONS;
use consort_core::{ChunkHash, Origin};

use super::*;

#[test]
fn a_conflict_copy_that_is_deleted_is_a_conflict_no_more() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    fs::remove_file(site.at(&site.copies()[0])).unwrap();
    site.settle();
    assert_eq!(site.live("f"), 1);
    assert_eq!(site.read("f").as_deref(), Some("theirs"));
    site.check();
}

#[test]
fn a_conflict_copy_that_is_edited_is_a_file_of_its_own() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    let copy = site.copies().remove(0);
    site.write(&copy, "mine, and more");
    site.settle();
    assert_eq!(site.live("f"), 1);
    assert!(site.winner(&copy).is_some());
    assert_eq!(site.read(&copy).as_deref(), Some("mine, and more"));
    site.check();
}

#[test]
fn a_conflict_copy_that_is_renamed_over_the_winner_wins() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    fs::rename(site.at(&site.copies()[0]), site.at("f")).unwrap();
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("mine"));
    assert_eq!((site.live("f"), site.copies().len()), (1, 0));
    site.check();
}

#[test]
fn a_copy_that_somebody_resolved_before_it_moved_to_the_key_goes() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    // The winner goes here while somebody who saw both decides.
    site.stop();
    fs::remove_file(site.at("f")).unwrap();
    site.start();
    site.flush();
    site.remote("f", Stands::After, b"decided");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("decided"));
    assert_eq!(site.copies(), Vec::<String>::new());
    site.check();
}

#[test]
fn losers_beyond_those_that_are_shown_stay_readable() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    let mine = site.winner("f").unwrap();
    for number in 0..12 {
        site.remote("f", Stands::Over, format!("theirs {number}").as_bytes());
    }
    site.settle();
    assert_eq!(site.copies().len(), 8);
    let Content::Chunks(chunks) = &mine.content else { panic!("a file has chunks") };
    let bytes = site.contents.local().read(&chunks[0]).unwrap();
    assert_eq!(bytes.as_deref(), Some(&b"mine"[..]));
    site.check();
}

#[test]
fn a_loser_that_somebody_chose_takes_the_place_of_the_winner_and_its_copy_goes() {
    let mut site = Site::new();
    site.write("f", "mine");
    site.settle();
    let mine = site.winner("f").unwrap();
    site.remote("f", Stands::Over, b"theirs");
    site.settle();
    assert_eq!(site.copies().len(), 1);
    // Its bytes are nowhere but in the copy.
    site.remote_version("f", Stands::After, mine.content, mine.attributes);
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("mine"));
    assert_eq!((site.live("f"), site.copies().len()), (1, 0));
    site.check();
}

#[test]
fn the_latest_stands_alone_and_the_next_edit_replaces_what_it_hides() {
    let mut site = Site::under(OnConflict::Latest);
    site.write("f", "mine");
    site.settle();
    site.remote("f", Stands::Over, b"theirs");
    site.remote("f", Stands::Beside, b"older");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("theirs"));
    assert_eq!((site.live("f"), site.copies().len()), (3, 0));
    site.check();
    site.write("f", "mine again");
    site.settle();
    assert_eq!((site.live("f"), site.copies().len()), (1, 0));
    site.check();
}

#[test]
fn an_observation_stays_in_place_whatever_is_generated_later() {
    let mut site = Site::under(OnConflict::PreferReal);
    site.write("f", "seen");
    site.settle();
    let generated = Attributes { origin: Origin::Synthetic, ..file_attributes() };
    site.keep(b"made up");
    site.remote_version("f", Stands::Over, content_of(b"made up"), generated);
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("seen"));
    assert_eq!((site.live("f"), site.copies().len()), (2, 0));
    site.check();
    // Two observations are for somebody to choose from.
    site.remote("f", Stands::Over, b"seen by others");
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("seen by others"));
    assert_eq!(site.copies().len(), 1);
    site.check();
    fs::remove_file(site.at(&site.copies()[0])).unwrap();
    site.settle();
    site.write("f", "seen again");
    site.settle();
    assert_eq!((site.live("f"), site.copies().len()), (1, 0));
    site.check();
}

/// More conflicts than a version can name: nothing of them is lost, the change is told, and goes on when somebody has
/// chosen.
#[test]
fn a_change_beside_too_many_conflicts_waits_for_somebody_to_choose() {
    let mut site = Site::new();
    let versions = MAX_VECTOR_EXCEPTIONS as u64 + 2;
    let entry = |number: u64| {
        let dot = Dot { author: AuthorId([9; 16]), time: Timestamp::at(WallTime(number)) };
        let content = content_of(&number.to_le_bytes());
        let seen = VersionVector::new();
        let version = Version { dot, seen, content, attributes: file_attributes() };
        Entry { key: key("f"), version }
    };
    (1..=versions).for_each(|number| site.keep(&number.to_le_bytes()));
    let commit = consort_core::Commit { entries: (1..=versions).map(entry).collect() };
    let body = Body::Remote { peer: NodeId([7; 16]), commit, cursor: None };
    site.store.commit(Transaction::new(DATASET, body)).unwrap();
    site.folder().wake();
    site.settle();
    assert_eq!(site.copies().len(), 8);
    site.check();

    site.write("f", "mine");
    site.until("it is told", |site| {
        let problems = site.folder().progress().problems();
        problems.iter().any(|problem| problem.contains("consort conflicts resolve"))
    });
    assert_eq!(site.live("f") as u64, versions);
    site.remote("f", Stands::After, b"decided");
    site.settle();
    site.until("the change is taken in", |site| site.live("f") == 2);
    site.settle();
    assert_eq!(site.read("f").as_deref(), Some("mine"));
    assert_eq!(site.copies().len(), 1);
    site.check();
}

#[test]
fn a_version_without_a_copy_stays_readable_when_one_of_the_same_bytes_is_edited() {
    let mut site = Site::new();
    site.write("f", "the same");
    site.settle();
    let attributes = Attributes { mode: 0o755, ..file_attributes() };
    let content = content_of(b"the same");
    let winner = site.remote_version("f", Stands::Over, content, attributes);
    site.settle();
    let mine = site.copies().remove(0);
    // Where its copy would be, when it has to make way, stands something else.
    site.remote("f/beneath", Stands::After, b"beneath");
    site.settle();
    let theirs = site.copies().into_iter().find(|copy| *copy != mine).unwrap();
    site.remote_deletion("f/beneath");
    site.settle();
    site.remote(&theirs, Stands::After, b"another file");
    site.remote("f/beneath", Stands::After, b"beneath again");
    site.settle();
    assert!(site.siblings("f").contains(&winner));
    site.write(&mine, "edited");
    site.settle();
    let chunk = ChunkRef { hash: ChunkHash::of(b"the same"), length: 8 };
    assert!(site.contents.local().read(&chunk).unwrap().is_some());
}
