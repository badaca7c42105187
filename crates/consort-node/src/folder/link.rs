//! A linked directory, from outside: the handle by which the node starts, wakes, flushes and ends its engine, and the
//! thread that keeps an engine running while the directory is there.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use consort_store::DiskView;
use crossbeam_channel::RecvTimeoutError;

use super::context::{Inbox, Input, Inputs, LinkContext, OnFlushed};
use super::engine::{Engine, Exit};
use super::status::Progress;
use super::{Ignores, LoadIgnoresError, OpenRootError, Root, RootId};

/// How often a directory that is gone, or whose ignore patterns cannot be read, is looked for again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is said of a directory that is known and was not opened yet.
const OPENING: &str =
    "it is still being opened; if that lasts, the file system that it is on does not answer";

/// How long the store as it was left is held for a directory that is away: while it is, nothing of the store goes that was
/// replaced since.
const HOLD_LEFT_FOR: Duration = Duration::from_secs(3600);

/// A linked directory.
#[derive(Debug)]
pub struct Folder {
    inputs: Inputs,
    progress: Arc<Progress>,
    id: RootId,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Folder {
    /// Opens the directory and starts its engine. One that is known is opened by the thread that keeps the engine running, and
    /// waited for if it is not there.
    ///
    /// # Errors
    /// See [`OpenRootError`]; nothing was started.
    pub fn start(context: LinkContext) -> Result<Self, OpenRootError> {
        let progress = Arc::new(Progress::default());
        let (id, root) = match context.id {
            None => {
                let root = Arc::new(Root::open(&context.dir)?);
                // What was put in place for another link is nothing that this one knows of.
                let left = root.left_placing();
                let path = || context.dir.clone();
                left.map_err(|source| OpenRootError::Io { path: path(), source })?.0.forget();
                (root.id(), Some(root))
            }
            // The thread opens it: a network file system that does not answer keeps nobody else waiting.
            Some(id) => {
                progress.pause_quietly("directory", OPENING);
                (id, None)
            }
        };
        let (inputs, inbox) = Inputs::channel();
        // If the store cannot be read, the first scan says so.
        let left = context.store.view(context.dataset).ok();
        let left = left.filter(|view| view.pending_count() != 0);
        let away_since = None;
        let supervisor =
            Supervisor { context, id, progress: Arc::clone(&progress), inbox, left, away_since };
        let thread = std::thread::Builder::new()
            .name("folder".into())
            .spawn(move || supervisor.run(root))
            .map_err(|source| OpenRootError::Io { path: PathBuf::new(), source })?;
        Ok(Self { inputs, progress, id, thread: Mutex::new(Some(thread)) })
    }

    /// Something is pending, or can be had now.
    pub fn wake(&self) {
        self.inputs.wake();
    }

    /// Calls `done` when everything that was changed in the directory before this call is durable in the store. While
    /// the directory is away, that has to wait until it is back. When the link ends before, `done` is dropped.
    pub fn flush(&self, done: impl FnOnce() + Send + 'static) {
        self.inputs.send(Input::Flush(Box::new(done)));
    }

    /// Lets the deletions go that are held back because they are so many.
    pub fn allow_mass_delete(&self) {
        self.inputs.send(Input::AllowMassDelete);
    }

    /// The numbers and problems of the directory.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The directory's own identity.
    pub fn id(&self) -> RootId {
        self.id
    }

    /// Tells the engine to end.
    pub fn begin_stop(&self) {
        self.inputs.send(Input::Stop);
    }

    /// Ends the engine, and waits until what it had begun is durable.
    pub fn stop(&self) {
        self.begin_stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there was reported by the panic hook; there is nothing left to clean up here.
            let _ = thread.join();
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Supervisor {
    context: LinkContext,
    id: RootId,
    progress: Arc<Progress>,
    inbox: Inbox,
    /// The store as whoever ran before left it, until a first scan has found what of it is in place and not recorded. `None` if
    /// there can be nothing, or the directory was away for too long: then that is taken for a new write.
    left: Option<DiskView>,
    /// Since when no engine could run.
    away_since: Option<Instant>,
}

impl Supervisor {
    fn run(mut self, mut root: Option<Arc<Root>>) {
        // Those who wait for a flush wait on while no engine runs.
        let mut flushes = Vec::new();
        loop {
            let held = match root.take().map_or_else(|| reopen(&self.context, self.id), Ok) {
                Ok(held) => held,
                Err(reason) => {
                    self.progress.pause("directory", &reason);
                    if self.pause(&mut flushes) { continue } else { break }
                }
            };
            self.progress.set_trouble("directory", None);
            let ignores = match Ignores::load(&held) {
                Ok(ignores) => ignores,
                Err(error) => {
                    self.on_ignores_error(&error);
                    root = held.is_present().then_some(held);
                    if self.pause(&mut flushes) { continue } else { break }
                }
            };
            self.progress.set_trouble("ignores", None);
            self.context.contents.local().roots().insert(self.context.dataset, Arc::clone(&held));
            let engine = Engine::new(
                &self.context,
                Arc::clone(&held),
                ignores,
                Arc::clone(&self.progress),
                &self.inbox,
                &mut flushes,
                &mut self.left,
            );
            let exit = match engine {
                Ok(engine) => {
                    self.away_since = None;
                    self.progress.set_trouble("threads", None);
                    let (exit, left) = engine.run();
                    flushes = left;
                    exit
                }
                Err(error) => {
                    self.progress.pause("threads", &format!("work on it cannot begin: {error}"));
                    if self.pause(&mut flushes) { Exit::RootGone } else { Exit::Stopped }
                }
            };
            self.context.contents.local().roots().remove(self.context.dataset);
            if let Exit::IgnoresChanged = exit {
                root = Some(held);
                continue;
            }
            // Whoever reads chunks there at this moment still holds it, and must not keep it from being linked again.
            held.unlock();
            if let Exit::Stopped = exit {
                break;
            }
        }
    }

    fn on_ignores_error(&self, error: &LoadIgnoresError) {
        self.progress.pause("ignores", &error.to_string());
    }

    /// Waits a little. False if the engine shall end.
    fn pause(&mut self, flushes: &mut Vec<OnFlushed>) -> bool {
        if HOLD_LEFT_FOR < self.away_since.get_or_insert_with(Instant::now).elapsed() {
            self.left = None;
        }
        let end = Instant::now() + LOOK_AGAIN_AFTER;
        loop {
            match self.inbox.receiver.recv_deadline(end) {
                Ok(Input::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => return true,
                Ok(Input::Flush(done)) => flushes.push(done),
                Ok(Input::Wake) => self.inbox.on_wake(),
                // What was deleted is not known before the directory is back.
                Ok(Input::AllowMassDelete) => {}
            }
        }
    }
}

/// Opens the directory that was linked, and no other one.
fn reopen(context: &LinkContext, id: RootId) -> Result<Arc<Root>, String> {
    Root::open_known(&context.dir, id).map(Arc::new).map_err(|error| {
        let todo = error.hint();
        let anew = match error {
            OpenRootError::Another(_) | OpenRootError::DamagedMarker(_) => format!(
                " (to go on with what is there, `consort unlink {}` and link it anew)",
                context.name
            ),
            _ => String::new(),
        };
        format!(
            "{error}: {todo}{anew}; nothing was deleted elsewhere, and work goes on when it is back"
        )
    })
}
