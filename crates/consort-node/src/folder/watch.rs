//! Where to look, soon after something happened: a recursive inotify watcher.
//!
//! It is our own because three things must be ours. The order: a directory is watched first and
//! listed after, and only then reported, so that what is made in it meanwhile is never missed. The
//! memory: about 100 bytes per directory (`tree.rs`). And the failures: an overflow of the queue
//! and exhausted watches are events, not log lines.
//!
//! Events say that a key is worth a look, never what happened to it; keys may already be out of
//! date when they arrive. How they wait for a slow engine is in `outbox.rs`.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, bounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::folder::root::{LIST_BUFFER_BYTES, for_each_name, open_beneath, path_of_handle};
use crate::folder::watch::outbox::{Closed, Outbox};
use crate::folder::watch::tree::{NodeId, Tree};
use crate::folder::{EntryKind, Ignores, MAX_KEY_BYTES, Root, WalkProblemKind, join_key};

mod outbox;
mod tree;

/// How many events may wait for the engine, about 100 bytes each and a key. Beyond that it is told
/// to scan, which costs less than so many looks.
const MAX_WAITING_EVENTS: usize = 64 * 1024;

/// How many bytes of events are read at once: a few thousand events.
const READ_BUFFER_BYTES: usize = 64 * 1024;

/// How many directories may be between two names before watches are given up and set anew.
const MAX_MOVING: usize = 1024;

/// A renamed directory shows up at its new name within one system call. One that has not, this
/// long after the last event, has left for good. Also how soon a full channel is tried again.
const QUIET: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

const MASK: WatchFlags = WatchFlags::ATTRIB
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MODIFY)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::EXCL_UNLINK)
    .union(WatchFlags::ONLYDIR);

const TOP_MASK: WatchFlags = MASK.union(WatchFlags::DELETE_SELF).union(WatchFlags::MOVE_SELF);

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WatchEvent {
    /// Look at this key now: it was written and closed, made, removed or renamed, or its
    /// attributes changed.
    Changed {
        /// The key.
        key: String,
    },
    /// This file is open and being written, or was just made. A `Changed` follows when it is
    /// closed; look also when it has been quiet for a while, for not every way to make a file ends
    /// with an event.
    Writing {
        /// The key.
        key: String,
    },
    /// Something appeared, or changed, that cannot be an entry because of its name; or it is gone.
    Unfit {
        /// How it is shown, as a scan shows it.
        path: String,
        /// What is the matter; `None` if it is gone.
        problem: Option<String>,
    },
    /// Look at everything at and beneath this key: a directory appeared there (it is watched by
    /// now) or was renamed away.
    Subtree {
        /// The key of the directory.
        key: String,
    },
    /// Events were lost. Scan everything; all directories are watched by now.
    Overflow,
    /// Not everything is watched from now on. Scan from time to time, and tell the user why.
    Exhausted {
        /// How many directories are watched.
        watched: usize,
        /// Why not more are, and what to do about it.
        reason: String,
    },
    /// Everything is watched again.
    Complete,
    /// The linked directory was removed, renamed or unmounted. Nothing more comes.
    RootGone,
    /// All events of changes made before [`Watcher::cookie`] made this cookie have been sent. May
    /// come twice after an overflow.
    Cookie {
        /// Which cookie.
        name: CookieName,
    },
}

/// Names one cookie, unique as long as the directory is held open.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CookieName(String);

/// Why a directory cannot be watched. Nothing was changed; scanning from time to time still works.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The user runs too many programs that watch.
    #[error("too many watchers run; raise fs.inotify.max_user_instances")]
    TooManyInstances,
    /// The system failed.
    #[error("the directory cannot be watched: {0}")]
    Io(io::Error),
}

impl From<Errno> for WatchError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::MFILE => Self::TooManyInstances,
            errno => Self::Io(errno.into()),
        }
    }
}

/// Watches a linked directory until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    root: Arc<Root>,
    stop: Arc<OwnedFd>,
    listed: u64,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches everything that is not ignored. What changes after this call returned is reported;
    /// so scan after it. When the patterns change, start another watcher.
    ///
    /// # Errors
    ///
    /// See [`WatchError`]. Too few watches are no error but an event.
    pub fn start(
        root: &Arc<Root>,
        ignores: Ignores,
    ) -> Result<(Self, Receiver<WatchEvent>), WatchError> {
        Self::start_bounded(root, ignores, MAX_WAITING_EVENTS)
    }

    fn start_bounded(
        root: &Arc<Root>,
        ignores: Ignores,
        max_waiting: usize,
    ) -> Result<(Self, Receiver<WatchEvent>), WatchError> {
        let (sender, receiver) = bounded(max_waiting);
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let mut worker = Worker {
            root: Arc::clone(root),
            ignores,
            inotify: Arc::new(new_inotify()?),
            stop: Arc::clone(&stop),
            tree: Tree::default(),
            cookie_watch: -1,
            moving: Vec::new(),
            exhausted: false,
            listed: 0,
            outbox: Outbox::new(sender),
        };
        worker.watch_all()?;
        let listed = worker.listed;
        let thread = thread::Builder::new()
            .name("consort-watch".to_owned())
            .spawn(move || worker.run())
            .map_err(WatchError::Io)?;
        Ok((Self { root: Arc::clone(root), stop, listed, thread: Some(thread) }, receiver))
    }

    /// How many entries were seen in the directories that were watched at the start.
    #[must_use]
    pub fn listed(&self) -> u64 {
        self.listed
    }

    /// Asks for a [`WatchEvent::Cookie`] behind the events of everything that was changed before
    /// this call.
    ///
    /// # Errors
    ///
    /// The file system failed; no event will come.
    pub fn cookie(&self) -> io::Result<CookieName> {
        let name = self.root.temp_name("cookie-");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        openat(self.root.cookies(), &name, flags, Mode::RUSR | Mode::WUSR)?;
        Ok(CookieName(name))
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // It cannot fail: the counter is far from its end.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    root: Arc<Root>,
    ignores: Ignores,
    inotify: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
    tree: Tree,
    cookie_watch: i32,
    /// Directories that left their name and have not been found at another one yet.
    moving: Vec<NodeId>,
    exhausted: bool,
    /// Entries that were seen in directories that came to be watched.
    listed: u64,
    outbox: Outbox,
}

/// What to do after an event.
#[derive(PartialEq, Eq)]
enum Next {
    Continue,
    /// Events or our idea of the tree were lost: watch everything anew.
    Rebuild,
    /// The top directory is gone.
    End,
}

/// Why a wait ended.
enum Woken {
    Events,
    Quiet,
    Stopped,
}

impl Worker {
    fn run(mut self) {
        let mut buffer = vec![MaybeUninit::uninit(); READ_BUFFER_BYTES];
        loop {
            match self.read_events(&mut buffer) {
                Ok(Next::Continue) => return,
                Ok(Next::Rebuild) if self.rebuild().is_ok() => {}
                Ok(Next::Rebuild) => {
                    self.outbox.push(WatchEvent::Overflow);
                    self.exhausted = true;
                    self.outbox.push(self.exhaustion(None));
                }
                Ok(Next::End) => {
                    self.outbox.push(WatchEvent::RootGone);
                    return self.deliver_the_rest();
                }
                Err(Closed) => return,
            }
        }
    }

    /// Reads until told to stop (`Continue`) or until events alone do not help any more.
    fn read_events(&mut self, buffer: &mut [MaybeUninit<u8>]) -> Result<Next, Closed> {
        let inotify = Arc::clone(&self.inotify);
        let mut reader = Reader::new(&*inotify, buffer);
        loop {
            if reader.is_buffer_empty() {
                self.outbox.flush()?;
            }
            match reader.next() {
                Ok(event) => match self.on_event(&event) {
                    Next::Continue => {}
                    next => return Ok(next),
                },
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match self.wait() {
                    Woken::Events => {}
                    Woken::Quiet => self.forget_moving(),
                    Woken::Stopped => return Ok(Next::Continue),
                },
                Err(_) => return Ok(Next::Rebuild),
            }
        }
    }

    fn wait(&self) -> Woken {
        let hurry = self.outbox.is_late() || !self.moving.is_empty();
        let mut fds =
            [PollFd::new(&*self.stop, PollFlags::IN), PollFd::new(&*self.inotify, PollFlags::IN)];
        match poll(&mut fds, hurry.then_some(&QUIET)) {
            Ok(0) => Woken::Quiet,
            Ok(_) if !fds[0].revents().is_empty() => Woken::Stopped,
            Ok(_) | Err(_) => Woken::Events,
        }
    }

    fn deliver_the_rest(&mut self) {
        while self.outbox.flush().is_ok() && self.outbox.is_late() {
            let mut stop = [PollFd::new(&*self.stop, PollFlags::IN)];
            if poll(&mut stop, Some(&QUIET)) != Ok(0) {
                return;
            }
        }
    }

    fn on_event(&mut self, event: &inotify::Event<'_>) -> Next {
        let flags = event.events();
        if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
            return Next::Rebuild;
        }
        if event.wd() == self.cookie_watch {
            if let Some(Ok(name)) = event.file_name().map(|name| name.to_str()) {
                self.on_cookie(name);
            }
            return Next::Continue;
        }
        let Some(parent) = self.tree.find(event.wd()) else {
            return Next::Continue;
        };
        let gone =
            ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
        if flags.intersects(gone) {
            if self.tree.is_top(parent) {
                return Next::End;
            }
            self.forget(parent);
            return Next::Continue;
        }
        // No name: it is about the directory itself, of which its own parent tells.
        let Some(name) = event.file_name() else { return Next::Continue };
        let is_dir = flags.contains(ReadFlags::ISDIR);
        let (name, key) = match self.key_of(parent, name) {
            Ok(known) => known,
            Err((path, kind)) => {
                if !self.ignores.is_ignored(&path, is_dir) {
                    let gone = flags.intersects(ReadFlags::DELETE | ReadFlags::MOVED_FROM);
                    let problem = (!gone).then(|| kind.to_string());
                    self.outbox.push(WatchEvent::Unfit { path, problem });
                }
                return Next::Continue;
            }
        };
        if self.ignores.is_ignored(&key, is_dir) {
            return Next::Continue;
        }
        if is_dir { self.on_directory(flags, parent, name, key) } else { self.on_file(flags, key) }
    }

    /// The key of a name in a watched directory; or, if it can have none, how it is shown and why.
    fn key_of<'n>(
        &self,
        parent: NodeId,
        name: &'n CStr,
    ) -> Result<(&'n str, String), (String, WalkProblemKind)> {
        let directory = self.tree.key(parent);
        let shown = || join_key(&directory, &name.to_string_lossy());
        let Ok(name) = name.to_str() else { return Err((shown(), WalkProblemKind::NotUtf8)) };
        if !is_possible_name(name) {
            return Err((shown(), WalkProblemKind::ControlCharacter));
        }
        let key = join_key(&directory, name);
        if MAX_KEY_BYTES < key.len() {
            return Err((key, WalkProblemKind::TooLong));
        }
        Ok((name, key))
    }

    fn on_file(&mut self, flags: ReadFlags, key: String) -> Next {
        let unfinished = flags.contains(ReadFlags::MODIFY)
            || (flags.contains(ReadFlags::CREATE)
                && matches!(self.root.stat(&key), Ok(Some(meta)) if meta.kind == EntryKind::File));
        self.outbox.push(match unfinished {
            true => WatchEvent::Writing { key },
            false => WatchEvent::Changed { key },
        });
        Next::Continue
    }

    fn on_directory(&mut self, flags: ReadFlags, parent: NodeId, name: &str, key: String) -> Next {
        if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
            if let Err(LostTrack) = self.watch_tree(Some(parent), name, &key, Known::LookAgain) {
                return Next::Rebuild;
            }
            self.outbox.push(WatchEvent::Subtree { key });
        } else if flags.contains(ReadFlags::MOVED_FROM) {
            if let Some(node) = self.tree.child(parent, name) {
                if self.moving.len() == MAX_MOVING {
                    self.forget_moving();
                }
                self.moving.push(node);
            }
            self.outbox.push(WatchEvent::Subtree { key });
        } else if flags.contains(ReadFlags::ATTRIB) {
            // It may have become readable just now.
            match self.watch_tree(Some(parent), name, &key, Known::Skip) {
                Ok(true) => self.outbox.push(WatchEvent::Subtree { key }),
                Ok(false) => self.outbox.push(WatchEvent::Changed { key }),
                Err(LostTrack) => return Next::Rebuild,
            }
        } else {
            self.outbox.push(WatchEvent::Changed { key });
        }
        Next::Continue
    }

    fn on_cookie(&mut self, name: &str) {
        // It may be gone if it was seen before, in the listing after an overflow.
        let _ = unlinkat(self.root.cookies(), name, AtFlags::empty());
        self.outbox.push(WatchEvent::Cookie { name: CookieName(name.to_owned()) });
    }

    /// Gives up the watches of directories that have left, and of all beneath them.
    fn forget_moving(&mut self) {
        while let Some(node) = self.moving.pop() {
            self.forget(node);
        }
    }

    fn forget(&mut self, node: NodeId) {
        let (inotify, moving) = (&self.inotify, &mut self.moving);
        self.tree.remove(node, |node, watch| {
            // The kernel has already dropped the watch of a directory that was deleted.
            let _ = inotify::remove_watch(inotify, watch);
            moving.retain(|&other| other != node);
        });
    }

    /// Starts anew with nothing known, then lets the engine scan. The old watches go first, or both
    /// would count towards the limit.
    fn rebuild(&mut self) -> Result<(), Errno> {
        self.tree = Tree::default();
        self.moving.clear();
        let was_exhausted = std::mem::take(&mut self.exhausted);
        self.inotify = Arc::new(new_inotify()?);
        self.watch_all()?;
        if was_exhausted && !self.exhausted {
            self.outbox.push(WatchEvent::Complete);
        }
        self.outbox.push(WatchEvent::Overflow);
        let mut names = Vec::new();
        let cookies = open_beneath(self.root.cookies(), ".", OFlags::RDONLY | OFlags::DIRECTORY)?;
        for_each_name(&cookies, &mut Vec::with_capacity(LIST_BUFFER_BYTES), |name, _| {
            names.extend(name.to_str().ok().map(str::to_owned));
            Ok(())
        })?;
        names.iter().for_each(|name| self.on_cookie(name));
        Ok(())
    }

    fn watch_all(&mut self) -> Result<(), Errno> {
        let cookies = path_of_handle(self.root.cookies());
        self.cookie_watch = inotify::add_watch(&self.inotify, cookies, WatchFlags::CREATE)?;
        // The top has no place to be found at, so track of it cannot be lost.
        let _ = self.watch_tree(None, "", "", Known::LookAgain);
        Ok(())
    }

    /// Watches the directory `name` in `parent`, whose key is `key`, and all beneath it: each one
    /// first watched, then listed. A watch that exists already is moved to where its directory was
    /// found, so whatever we had wrong is put right. Whether the directory was unknown.
    fn watch_tree(
        &mut self,
        parent: Option<NodeId>,
        name: &str,
        key: &str,
        known: Known,
    ) -> Result<bool, LostTrack> {
        let mut buffer = Vec::with_capacity(LIST_BUFFER_BYTES);
        let mut todo = vec![(parent, name.to_owned(), key.to_owned())];
        let mut top_is_new = None;
        while let Some((parent, name, key)) = todo.pop() {
            // What is gone again, or may not be read, cannot be watched; the scan sees to it.
            let dir = match self.root.open_directory(&key) {
                Ok(dir) => dir,
                Err(errno) => {
                    self.on_unwatched(errno);
                    continue;
                }
            };
            let (node, is_new) = match self.watch(&dir, parent, &name)? {
                Ok(watched) => watched,
                Err(errno) => {
                    self.on_unwatched(errno);
                    if matches!(errno, Errno::NOSPC | Errno::NOMEM) {
                        break;
                    }
                    continue;
                }
            };
            if !*top_is_new.get_or_insert(is_new) && known == Known::Skip {
                break;
            }
            let listed = for_each_name(&dir, &mut buffer, |name, file_type| {
                let Ok(name) = name.to_str() else { return Ok(()) };
                let is_dir = matches!(file_type, FileType::Directory | FileType::Unknown);
                let key = join_key(&key, name);
                if is_possible_name(name)
                    && key.len() <= MAX_KEY_BYTES
                    && !self.ignores.is_ignored_itself(&key, is_dir)
                {
                    self.listed += 1;
                    if is_dir {
                        todo.push((Some(node), name.to_owned(), key));
                    }
                }
                Ok(())
            });
            if let Err(errno) = listed {
                self.on_unwatched(errno);
            }
        }
        Ok(top_is_new == Some(true))
    }

    fn watch(
        &mut self,
        dir: &OwnedFd,
        parent: Option<NodeId>,
        name: &str,
    ) -> Result<Result<(NodeId, bool), Errno>, LostTrack> {
        let mask = if parent.is_none() { TOP_MASK } else { MASK };
        let watch = match inotify::add_watch(&self.inotify, path_of_handle(dir), mask) {
            Ok(watch) => watch,
            Err(errno) => return Ok(Err(errno)),
        };
        let Some(node) = self.tree.find(watch) else {
            return Ok(Ok((self.tree.insert(parent, name, watch), true)));
        };
        if let Some(parent) = parent
            && !self.tree.move_to(node, parent, name)
        {
            return Err(LostTrack);
        }
        self.moving.retain(|&other| other != node);
        Ok(Ok((node, false)))
    }

    /// A directory could not be watched, or not all that is in it.
    fn on_unwatched(&mut self, errno: Errno) {
        if is_passing(errno) && !std::mem::replace(&mut self.exhausted, true) {
            self.outbox.push(self.exhaustion(Some(errno)));
        }
    }

    fn exhaustion(&self, errno: Option<Errno>) -> WatchEvent {
        let reason = match errno {
            Some(Errno::NOSPC) => "raise fs.inotify.max_user_watches".to_owned(),
            Some(Errno::MFILE) => "raise the number of open files (ulimit -n)".to_owned(),
            Some(errno) => format!("{errno}; look at the system's log"),
            None => "raise fs.inotify.max_user_instances".to_owned(),
        };
        WatchEvent::Exhausted { watched: self.tree.len(), reason }
    }
}

/// What to do about a directory that is watched already.
#[derive(PartialEq, Eq)]
enum Known {
    /// Look at everything beneath it again: it was renamed, or something else was.
    LookAgain,
    /// Leave it.
    Skip,
}

/// Directories were moved about faster than we could follow.
struct LostTrack;

fn new_inotify() -> Result<OwnedFd, Errno> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
}

/// Whether it is not for what the directory is that it cannot be watched, but for how the system is at the moment: then
/// nothing tells when it can be. A directory that is gone, is none any more or may not be read is left to the scan, and
/// to the events of the one that it is in.
fn is_passing(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::NOENT
            | Errno::NOTDIR
            | Errno::LOOP
            | Errno::XDEV
            | Errno::ACCESS
            | Errno::PERM
            | Errno::NAMETOOLONG
    )
}

fn is_possible_name(name: &str) -> bool {
    !name.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::folder::Expected;

    struct Fixture {
        dir: tempfile::TempDir,
        watcher: Watcher,
        events: Receiver<WatchEvent>,
    }

    impl Fixture {
        fn new(max_waiting: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(".consortignore"), "skip/\n").unwrap();
            let root = Arc::new(Root::open(dir.path()).unwrap());
            let ignores = Ignores::load(&root).unwrap();
            let (watcher, events) = Watcher::start_bounded(&root, ignores, max_waiting).unwrap();
            Self { dir, watcher, events }
        }

        fn at(&self, key: &str) -> std::path::PathBuf {
            self.dir.path().join(key)
        }

        /// Everything reported about what happened before this call.
        fn events(&self) -> Vec<WatchEvent> {
            let cookie = self.watcher.cookie().unwrap();
            let mut events = Vec::new();
            loop {
                let event = self.events.recv_timeout(Duration::from_secs(60)).unwrap();
                if event == (WatchEvent::Cookie { name: cookie.clone() }) {
                    return events;
                }
                events.push(event);
            }
        }
    }

    fn changed(key: &str) -> WatchEvent {
        WatchEvent::Changed { key: key.to_owned() }
    }

    fn subtree(key: &str) -> WatchEvent {
        WatchEvent::Subtree { key: key.to_owned() }
    }

    fn writing(key: &str) -> WatchEvent {
        WatchEvent::Writing { key: key.to_owned() }
    }

    #[test]
    fn what_there_is_to_scan_is_known_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".consortignore"), "skip/\n*.tmp\n").unwrap();
        for directory in ["a/b", "skip/c"] {
            fs::create_dir_all(dir.path().join(directory)).unwrap();
        }
        for file in ["f", "f.tmp", "a/f", "a/b/f", "a/b/f.tmp", "skip/f", "skip/c/f"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let ignores = Ignores::load(&root).unwrap();
        let (watcher, _events) = Watcher::start(&root, ignores.clone()).unwrap();
        let walked = crate::folder::Walk::new(&root, &ignores, None).count();
        assert_eq!(watcher.listed(), walked as u64);
    }

    #[test]
    fn files_are_reported_when_made_written_renamed_and_removed_before_the_cookie() {
        let fixture = Fixture::new(1000);
        fs::write(fixture.at("a"), "1").unwrap();
        assert!(fixture.events().contains(&changed("a")));
        let mut file = fs::File::options().append(true).open(fixture.at("a")).unwrap();
        io::Write::write_all(&mut file, b"2").unwrap();
        assert_eq!(fixture.events(), [writing("a")]);
        drop(file);
        assert_eq!(fixture.events(), [changed("a")]);
        fs::rename(fixture.at("a"), fixture.at("b")).unwrap();
        assert_eq!(fixture.events(), [changed("a"), changed("b")]);
        fs::remove_file(fixture.at("b")).unwrap();
        assert_eq!(fixture.events(), [changed("b")]);
        std::os::unix::fs::symlink("nowhere", fixture.at("l")).unwrap();
        assert_eq!(fixture.events(), [changed("l")]);
        assert!(fs::read_dir(fixture.at(".consort/cookies")).unwrap().next().is_none());
    }

    #[test]
    fn a_file_that_is_staged_is_not_reported_before_it_has_a_key() {
        let fixture = Fixture::new(1000);
        let root = &fixture.watcher.root;
        let staging = root.stage(0o600).unwrap();
        staging.target(0).write(b"content").unwrap();
        let staged = staging.finish(7, 0o640, 1_000_000_000).unwrap();
        assert_eq!(fixture.events(), []);
        root.place_file(staged, "f", Expected::Absent).unwrap();
        assert_eq!(fixture.events(), [writing("f")]);
    }

    #[test]
    fn files_in_directories_made_that_moment_are_never_missed() {
        let fixture = Fixture::new(MAX_WAITING_EVENTS);
        for round in 0..200 {
            let mut made = BTreeSet::new();
            let mut key = format!("round{round}");
            for depth in 0..8 {
                fs::create_dir(fixture.at(&key)).unwrap();
                for name in ["x", "y"] {
                    let file = join_key(&key, name);
                    fs::write(fixture.at(&file), "").unwrap();
                    made.insert(file);
                }
                key = join_key(&key, &format!("d{depth}"));
            }
            for event in fixture.events() {
                match event {
                    WatchEvent::Changed { key } => {
                        made.remove(&key);
                    }
                    WatchEvent::Subtree { key } => {
                        let inside = key + "/";
                        made.retain(|file| !file.starts_with(&inside));
                    }
                    _ => {}
                }
            }
            assert_eq!(made, BTreeSet::new(), "missed in round {round}");
        }
    }

    #[test]
    fn events_after_a_directory_was_renamed_have_the_new_key() {
        let fixture = Fixture::new(1000);
        fs::create_dir_all(fixture.at("a/b/c")).unwrap();
        fixture.events();
        fs::rename(fixture.at("a"), fixture.at("z")).unwrap();
        assert_eq!(fixture.events(), [subtree("a"), subtree("z")]);
        fs::write(fixture.at("z/b/c/f"), "").unwrap();
        assert!(fixture.events().contains(&changed("z/b/c/f")));
        fs::rename(fixture.at("z/b"), fixture.at("b")).unwrap();
        fs::rename(fixture.at("z"), fixture.at("b/c/z")).unwrap();
        fs::write(fixture.at("b/c/z/f"), "").unwrap();
        let events = fixture.events();
        assert!(
            events.contains(&changed("b/c/z/f")) || events.contains(&subtree("b/c/z")),
            "{events:?}"
        );
        fs::write(fixture.at("b/c/z/f"), "1").unwrap();
        assert!(fixture.events().contains(&changed("b/c/z/f")));
    }

    #[test]
    fn directories_that_left_or_are_ignored_report_nothing_and_those_that_come_in_do() {
        let outside = tempfile::tempdir().unwrap();
        let fixture = Fixture::new(1000);
        fs::create_dir_all(fixture.at("a/b")).unwrap();
        fs::create_dir(fixture.at("skip")).unwrap();
        fixture.events();
        fs::rename(fixture.at("a"), outside.path().join("a")).unwrap();
        assert_eq!(fixture.events(), [subtree("a")]);
        fs::write(fixture.at("skip/f"), "").unwrap();
        assert_eq!(fixture.events(), []);
        fs::rename(outside.path().join("a"), fixture.at("back")).unwrap();
        assert_eq!(fixture.events(), [subtree("back")]);
        fs::write(fixture.at("back/b/f"), "").unwrap();
        assert!(fixture.events().contains(&changed("back/b/f")));
        fs::remove_dir_all(fixture.at("back")).unwrap();
        assert!(fixture.events().contains(&changed("back")));
    }

    #[test]
    fn what_does_not_fit_becomes_an_overflow_and_the_cookie_still_comes_after() {
        let fixture = Fixture::new(2);
        for number in 0..50 {
            fs::write(fixture.at(&format!("f{number}")), "").unwrap();
        }
        // Whatever the two places hold, somewhere after them comes the overflow.
        assert!(fixture.events().contains(&WatchEvent::Overflow));
        fs::write(fixture.at("later"), "").unwrap();
        assert!(fixture.events().contains(&changed("later")));
    }

    /// A worker that watches everything, without a thread, and what it tells.
    fn worker_at_rest(root: Arc<Root>) -> (Worker, Receiver<WatchEvent>) {
        let ignores = Ignores::load(&root).unwrap();
        let (sender, receiver) = bounded(16);
        let mut worker = Worker {
            root,
            ignores,
            inotify: Arc::new(new_inotify().unwrap()),
            stop: Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap()),
            tree: Tree::default(),
            cookie_watch: -1,
            moving: Vec::new(),
            exhausted: false,
            listed: 0,
            outbox: Outbox::new(sender),
        };
        worker.watch_all().unwrap();
        (worker, receiver)
    }

    #[test]
    fn after_the_kernel_lost_events_everything_is_watched_again() {
        let fixture = Fixture::new(MAX_WAITING_EVENTS);
        let queue = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let root = Arc::clone(&fixture.watcher.root);
        // Its thread does not run while the queue fills.
        let (worker, receiver) = worker_at_rest(root);
        let stop = Arc::clone(&worker.stop);
        for number in 0..=queue.trim().parse::<u32>().unwrap() {
            // Two names in turn, or the kernel would merge the events.
            let key = if number % 2 == 0 { "a" } else { "b" };
            fs::write(fixture.at(key), "").unwrap();
        }
        fs::create_dir(fixture.at("new")).unwrap();
        let worker = thread::spawn(move || worker.run());
        while receiver.recv_timeout(Duration::from_secs(60)).unwrap() != WatchEvent::Overflow {}
        fs::write(fixture.at("new/f"), "").unwrap();
        while receiver.recv_timeout(Duration::from_secs(60)).unwrap() != changed("new/f") {}
        rustix::io::write(&stop, &1_u64.to_ne_bytes()).unwrap();
        worker.join().unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_opened_at_the_moment_counts_as_unwatched_until_all_are_watched() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(Root::open(dir.path()).unwrap());
        let (mut worker, receiver) = worker_at_rest(root);
        // What is no directory any more, or may not be read, is known not to be watched.
        for errno in [Errno::NOENT, Errno::NOTDIR, Errno::LOOP, Errno::XDEV, Errno::ACCESS] {
            worker.on_unwatched(errno);
        }
        worker.outbox.flush().unwrap();
        assert!(receiver.is_empty());
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::IO] {
            worker.exhausted = false;
            worker.on_unwatched(errno);
            worker.outbox.flush().unwrap();
            assert!(matches!(receiver.recv().unwrap(), WatchEvent::Exhausted { .. }));
        }
        worker.rebuild().unwrap();
        worker.outbox.flush().unwrap();
        assert_eq!(
            receiver.try_iter().collect::<Vec<_>>(),
            [WatchEvent::Complete, WatchEvent::Overflow]
        );
    }

    #[test]
    fn the_end_of_the_directory_is_the_last_event() {
        let outer = tempfile::tempdir().unwrap();
        let path = outer.path().join("linked");
        fs::create_dir(&path).unwrap();
        let root = Arc::new(Root::open(&path).unwrap());
        let ignores = Ignores::load(&root).unwrap();
        let (_watcher, events) = Watcher::start(&root, ignores).unwrap();
        fs::rename(&path, outer.path().join("elsewhere")).unwrap();
        let told: Vec<_> = events.iter().collect();
        assert_eq!(told, [WatchEvent::RootGone]);
    }
}
