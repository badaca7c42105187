//! Packs: append-only files of chunks, for what has no place of its own in a directory. Their bytes are stated in
//! `docs/storage.md`. A pack does not know who needs its chunks; the rows that point into it are written by the committer.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use consort_core::ChunkHash;
use consort_core::limits::MAX_CHUNK_BYTES;
use consort_core::store::StoreError;
use thiserror::Error;

use crate::layout::PackTail;
use crate::lsm::describe;
use crate::transaction::Place;

/// The length in bytes after which the next pack begins: a file that is quickly copied or rewritten, and not so many of
/// them that listing the directory takes time.
const PACK_BYTES: u64 = 64 << 20;
/// Chunks that are appended and not indexed yet, at most; each takes about 100 bytes of memory.
const MAX_FRESH: usize = 8192;

const MAGIC: &[u8; 12] = b"consort pack";
const PACK_FORMAT: u32 = 1;
/// The bytes before the first frame.
pub(crate) const HEADER_BYTES: u64 = HEADER as u64;
const HEADER: usize = 16;
/// The bytes of a frame before its chunk: length and hash.
pub(crate) const FRAME_BYTES: u64 = FRAME_HEAD as u64;
const FRAME_HEAD: usize = 36;

/// Why a packed chunk could not be read. Nothing was changed; the chunk can be had from another place or peer.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The caller's fault: the place is in a file, not in a pack.
    #[error("this place is in a file, not in a pack")]
    NotPacked,
    /// The pack is gone, or shorter than it was.
    #[error("pack {pack} ends before the chunk at {offset}; run `consort doctor`")]
    Missing {
        /// The pack.
        pack: u64,
        /// Where the chunk should begin.
        offset: u64,
    },
    /// The bytes are not those of the chunk.
    #[error("pack {pack} is damaged at {offset}; run `consort doctor`")]
    Damaged {
        /// The pack.
        pack: u64,
        /// Where the chunk should begin.
        offset: u64,
    },
    /// The medium failed.
    #[error("pack {pack} cannot be read: {source}")]
    Io {
        /// The pack.
        pack: u64,
        /// How.
        source: io::Error,
    },
}

/// The packs of a store.
pub(crate) struct Packs {
    directory: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// The last pack. `None` until the first chunk comes, and when it must not be continued.
    current: Option<Pack>,
    /// The number that the next pack gets.
    next: u64,
    /// What was appended and has no row yet.
    fresh: BTreeMap<ChunkHash, Packed>,
    /// A failed sync leaves unknown what is on the disk: nothing is appended any more.
    failed: bool,
}

#[derive(Clone)]
struct Pack {
    number: u64,
    length: u64,
    file: Arc<File>,
}

/// Where a chunk is in the packs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    pub(crate) pack: u64,
    pub(crate) offset: u64,
    pub(crate) length: u32,
}

/// Chunks that are on stable storage and need rows.
#[derive(Debug)]
pub(crate) struct Synced {
    pub(crate) chunks: Vec<(ChunkHash, Packed)>,
    pub(crate) tail: PackTail,
}

/// A frame that a scan met.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) hash: ChunkHash,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    /// Whether the bytes have the hash.
    pub(crate) intact: bool,
}

impl From<Packed> for Place {
    fn from(extent: Packed) -> Self {
        let Packed { pack, offset, length } = extent;
        Self::Packed { pack, offset, length }
    }
}

impl Packs {
    /// Opens the packs in `directory`, cuts off what a crash left torn behind `tail`, and returns what it left whole
    /// there: those chunks need rows.
    pub(crate) fn open(directory: PathBuf, tail: PackTail) -> io::Result<(Self, Synced)> {
        fs::create_dir_all(&directory)?;
        let mut synced = Synced { chunks: Vec::new(), tail };
        let mut state = State { current: None, next: 0, fresh: BTreeMap::new(), failed: false };
        for number in numbers(&directory)? {
            state.next = number + 1;
            state.current = None;
            let known = if number == tail.pack { tail.length } else { 0 };
            if number < tail.pack {
                continue;
            }
            let file = OpenOptions::new().read(true).write(true).open(path(&directory, number))?;
            let length = file.metadata()?.len();
            if length < known {
                // What was durable is gone. `check` reports it; nothing may be appended where rows point already.
                continue;
            }
            let from = known.max(HEADER_BYTES);
            if known == 0 && !has_header(&file)? {
                write_header(&file)?;
            }
            let mut end = from;
            scan(&file, from, |frame| {
                if !frame.intact {
                    return ControlFlow::Break(());
                }
                let Frame { hash, offset, length, .. } = frame;
                synced.chunks.push((hash, Packed { pack: number, offset, length }));
                end = offset + u64::from(length);
                ControlFlow::Continue(())
            })?;
            file.set_len(end)?;
            file.sync_all()?;
            synced.tail = PackTail { pack: number, length: end };
            state.current = Some(Pack { number, length: end, file: Arc::new(file) });
        }
        // Rows point into the last pack also if it is gone.
        if tail != PackTail::default() {
            state.next = state.next.max(tail.pack + 1);
        }
        sync_directory(&directory)?;
        Ok((Self { directory, state: Mutex::new(state) }, synced))
    }

    /// Appends a chunk. It is durable after the next [`sync`](Self::sync).
    pub(crate) fn append(&self, hash: ChunkHash, bytes: &[u8]) -> Result<Packed, StoreError> {
        let mut state = self.lock();
        if let Some(extent) = state.fresh.get(&hash) {
            return Ok(*extent);
        }
        if state.failed {
            return Err(StoreError::Failed("an earlier write to a pack failed".to_owned()));
        }
        let io = |error: io::Error| StoreError::Failed(describe(&error));
        if state.current.as_ref().is_none_or(|pack| PACK_BYTES <= pack.length) {
            self.begin(&mut state).map_err(io)?;
        }
        let pack = state.current.as_mut().expect("one was begun if there was none");
        let length = u32::try_from(bytes.len()).expect("the caller checked the length");
        let mut frame = Vec::with_capacity(bytes.len() + FRAME_HEAD);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&hash.0);
        frame.extend_from_slice(bytes);
        // At a fixed place, so that what a failed write left is overwritten.
        pack.file.write_all_at(&frame, pack.length).map_err(io)?;
        let extent = Packed { pack: pack.number, offset: pack.length + FRAME_BYTES, length };
        pack.length += frame.len() as u64;
        state.fresh.insert(hash, extent);
        Ok(extent)
    }

    /// Whether so many chunks wait for rows that no more should be appended before a commit.
    pub(crate) fn is_full(&self) -> bool {
        MAX_FRESH <= self.lock().fresh.len()
    }

    /// Makes everything durable that was appended before, and says what it is. `None` if there is nothing new.
    pub(crate) fn sync(&self) -> Result<Option<Synced>, StoreError> {
        let (chunks, pack) = {
            let state = self.lock();
            let Some(pack) = state.current.clone().filter(|_| !state.fresh.is_empty()) else {
                return Ok(None);
            };
            (state.fresh.iter().map(|(hash, extent)| (*hash, *extent)).collect(), pack)
        };
        if let Err(error) = pack.file.sync_data() {
            self.lock().failed = true;
            return Err(StoreError::Failed(describe(&error)));
        }
        let tail = PackTail { pack: pack.number, length: pack.length };
        Ok(Some(Synced { chunks, tail }))
    }

    /// Forgets what has rows now.
    pub(crate) fn indexed(&self, synced: &Synced) {
        let mut state = self.lock();
        for (hash, _) in &synced.chunks {
            state.fresh.remove(hash);
        }
    }

    /// Reads a chunk and verifies it.
    pub(crate) fn read(&self, extent: Packed, hash: ChunkHash) -> Result<Vec<u8>, ReadError> {
        let Packed { pack, offset, length } = extent;
        let told = |source: io::Error| match is_missing(&source) {
            true => ReadError::Missing { pack, offset },
            false => ReadError::Io { pack, source },
        };
        if MAX_CHUNK_BYTES < length as usize {
            return Err(ReadError::Damaged { pack, offset });
        }
        let file = File::open(path(&self.directory, pack)).map_err(told)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset).map_err(told)?;
        if ChunkHash::of(&bytes) == hash {
            Ok(bytes)
        } else {
            Err(ReadError::Damaged { pack, offset })
        }
    }

    /// Whether a frame with this hash and length is there, whatever its bytes are.
    pub(crate) fn holds(&self, packed: Packed, hash: ChunkHash) -> io::Result<bool> {
        let Some(at) = packed.offset.checked_sub(FRAME_BYTES) else { return Ok(false) };
        let mut head = [0; FRAME_HEAD];
        let read = File::open(path(&self.directory, packed.pack))
            .and_then(|file| file.read_exact_at(&mut head, at));
        match read {
            Ok(()) => Ok(head[..4] == packed.length.to_le_bytes() && head[4..] == hash.0),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The numbers of all packs, in order.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u64>> {
        numbers(&self.directory)
    }

    /// Shows all frames of a pack to `visit`; returns the pack's length and where the last frame ends.
    pub(crate) fn scan(&self, number: u64, mut visit: impl FnMut(Frame)) -> io::Result<(u64, u64)> {
        let file = File::open(path(&self.directory, number))?;
        let length = file.metadata()?.len();
        let mut end = HEADER_BYTES.min(length);
        if has_header(&file)? {
            scan(&file, HEADER_BYTES, |frame| {
                end = frame.offset + u64::from(frame.length);
                visit(frame);
                ControlFlow::Continue(())
            })?;
        } else {
            end = 0;
        }
        Ok((length, end))
    }

    fn begin(&self, state: &mut State) -> io::Result<()> {
        if let Some(full) = &state.current
            && let Err(error) = full.file.sync_all()
        {
            state.failed = true;
            return Err(error);
        }
        let number = state.next;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path(&self.directory, number))?;
        write_header(&file)?;
        sync_directory(&self.directory)?;
        state.next += 1;
        state.current = Some(Pack { number, length: HEADER_BYTES, file: Arc::new(file) });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between two changes leaves at most bytes behind the end, which the next append overwrites.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Whether an error says that a pack, or what should be in it, is not there.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

fn path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.pack"))
}

fn numbers(directory: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for file in fs::read_dir(directory)? {
        let name = file?.file_name();
        let digits = name.to_str().and_then(|name| name.strip_suffix(".pack"));
        numbers.extend(digits.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

fn write_header(file: &File) -> io::Result<()> {
    file.set_len(0)?;
    file.write_all_at(MAGIC, 0)?;
    file.write_all_at(&PACK_FORMAT.to_le_bytes(), MAGIC.len() as u64)?;
    file.sync_all()
}

fn has_header(file: &File) -> io::Result<bool> {
    let mut header = [0; HEADER];
    match file.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(header[..12] == MAGIC[..] && header[12..] == PACK_FORMAT.to_le_bytes()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Shows the frames from `from` on to `visit`, until it breaks or what follows has no frame's form.
fn scan(file: &File, from: u64, mut visit: impl FnMut(Frame) -> ControlFlow<()>) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut at = from;
    let mut bytes = Vec::new();
    while at + FRAME_BYTES < length {
        let mut head = [0; FRAME_HEAD];
        file.read_exact_at(&mut head, at)?;
        let (size, hash) = head.split_first_chunk::<4>().expect("a frame's head has 36 bytes");
        let size = u32::from_le_bytes(*size);
        let offset = at + FRAME_BYTES;
        let fits = offset + u64::from(size) <= length;
        if size == 0 || MAX_CHUNK_BYTES < size as usize || !fits {
            break;
        }
        bytes.resize(size as usize, 0);
        file.read_exact_at(&mut bytes, offset)?;
        let hash = ChunkHash(hash.try_into().expect("32 bytes follow the length"));
        let intact = hash == ChunkHash::of(&bytes);
        if visit(Frame { hash, offset, length: size, intact }).is_break() {
            break;
        }
        at = offset + u64::from(size);
    }
    Ok(())
}
