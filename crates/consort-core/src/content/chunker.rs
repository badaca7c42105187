//! Cuts bytes into chunks where the content says so, so that an insertion moves the boundaries around it and no
//! others: FastCDC in its 2020 form (Xia et al., "The Design of Fast Content-Defined Chunking for Data
//! Deduplication Based Storage Systems", 2020), normalization level 1.
//!
//! A content whose first bytes show a format that is known here is seen as a row of *stretches*: the members of an
//! archive, the tensors of a model. FastCDC begins anew with each, and short ones share a chunk. What a format is made
//! of, the file of that format knows (`tar`, `safetensors`, `zip`, `parquet`); which of its boundaries become
//! boundaries of chunks is decided here, by one rule for all.
//!
//! Everything in here is part of the format: the same bytes must give the same chunks on every node. The rules are
//! stated in `docs/protocol.md`, "Chunks". `follow.rs` finds the same boundaries with the help of those that are known.

mod follow;
mod parquet;
mod safetensors;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

pub use self::follow::Follower;

use fastcdc::v2020::{self, Normalization};

use self::parquet::Parquet;
use self::safetensors::Safetensors;
use self::tar::Tar;
use self::zip::Zip;
use crate::content::ChunkHash;
use crate::limits::{AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};

/// From this length on, a stretch shares no chunk with others: its chunks are those that its bytes have as a file of
/// their own, and a change of its neighbours is none of its. The short chunks that this leaves beside it are few, since it has
/// about two chunks itself.
const LONG_STRETCH_BYTES: u64 = 128 * 1024;

/// Short stretches are gathered into chunks of the shortest length and so many bytes more, on average.
const GATHERED_BYTES: u64 = 32 * 1024;

/// The longest header of a stretch. It is seen as a whole whatever is in the chunk before it.
const MAX_HEADER_BYTES: usize = 64 * 1024;
const _: () = assert!(MIN_CHUNK_BYTES + MAX_HEADER_BYTES <= MAX_CHUNK_BYTES);

/// The longest body of a stretch. Nothing is as long; sums of what headers say cannot overflow.
const MAX_BODY_BYTES: u64 = 1 << 60;

/// Finds the boundaries of one content's chunks, from its first byte to its last.
#[derive(Debug)]
pub struct Chunker {
    fast: FastCdc,
    /// Whether the first bytes show a format; nothing before they have been seen.
    has_format: Option<bool>,
    /// What says where stretches end; nothing if that is unknown, or is not known any more.
    format: Option<Format>,
    /// The length of the current stretch, as far as it is known.
    length: u64,
    /// The bytes of it that are still to come.
    left: u64,
}

impl Default for Chunker {
    fn default() -> Self {
        // Without a format, everything is one stretch.
        Self {
            fast: FastCdc::default(),
            has_format: None,
            format: None,
            length: u64::MAX,
            left: u64::MAX,
        }
    }
}

impl Chunker {
    /// The length of the next chunk, with which `bytes` begin. These are what follows the chunks before: either all that is
    /// left of the content or at least [`MAX_CHUNK_BYTES`] of it. Zero only for no bytes.
    pub fn next(&mut self, bytes: &[u8]) -> usize {
        // Nothing beyond this is looked at, so it does not matter how much more there is.
        let window = &bytes[..bytes.len().min(MAX_CHUNK_BYTES)];
        if self.has_format.is_none() {
            // What may be inline in a version is one chunk, or the two would not be recognised as the same.
            if MIN_CHUNK_BYTES < window.len() {
                self.format = Format::recognise(window);
            }
            self.has_format = Some(self.format.is_some());
            if self.format.is_some() {
                (self.length, self.left) = (0, 0);
            } else if window.len() <= MIN_CHUNK_BYTES {
                return window.len();
            }
        }
        let mut at = 0;
        while at < window.len() {
            let rest = &window[at..];
            if self.left == 0 && self.begin_stretch(rest, at) {
                return at;
            }
            self.lengthen(rest);
            let in_window = usize::try_from(self.left).unwrap_or(usize::MAX).min(rest.len());
            let is_whole = self.left == in_window as u64;
            let stretch = &rest[..in_window];
            let length = self.fast.first(stretch);
            if !is_whole && length == rest.len() && MIN_CHUNK_BYTES <= at {
                // It does not fit behind what is in the chunk already.
                return at;
            }
            if let Some(format) = &mut self.format {
                format.pass(&stretch[..length]);
            }
            self.left -= length as u64;
            at += length;
            if self.left != 0 {
                return at;
            }
        }
        at
    }

    /// Whether the first bytes have been seen and show no format: each boundary follows from the bytes since the one before
    /// it and the first byte behind it, and from nothing else.
    pub fn is_plain(&self) -> bool {
        self.has_format == Some(false)
    }

    /// Goes on behind a chunk of a plain content whose end was found another way.
    fn pass(&mut self, length: usize) {
        self.left -= length as u64;
    }

    /// Begins the stretch with which `rest` begins, after `at` bytes in the same chunk; true if it is better in a new one.
    fn begin_stretch(&mut self, rest: &[u8], at: usize) -> bool {
        let after_long = LONG_STRETCH_BYTES <= self.length;
        let is_enough = MIN_CHUNK_BYTES <= at;
        let step = self.format.as_mut().map_or(Step::End, |format| format.step(rest));
        let wants_new = match step {
            Step::Stretch(stretch) => {
                (self.length, self.left) = (stretch.length, stretch.length);
                LONG_STRETCH_BYTES <= stretch.length || (is_enough && stretch.is_chosen())
            }
            // In a new chunk, more of it can be seen. If that does not help, the content is not what it seemed to be.
            Step::More if is_enough => return true,
            Step::More | Step::End => {
                self.format = None;
                (self.length, self.left) = (u64::MAX, u64::MAX);
                is_enough
            }
        };
        at != 0 && (wants_new || after_long)
    }

    /// Adds to the current stretch what else belongs to it, as far as `rest` shows.
    fn lengthen(&mut self, rest: &[u8]) {
        let Some(format) = &mut self.format else { return };
        while let Some(behind) = usize::try_from(self.left).ok().and_then(|left| rest.get(left..))
            && let Some(more) = format.more(behind)
        {
            self.left += more;
            self.length += more;
        }
    }

    /// The chunks of a whole content that is at hand.
    pub fn chunks(mut self, mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
        core::iter::from_fn(move || {
            let (chunk, rest) = bytes.split_at(self.next(bytes));
            bytes = rest;
            (!chunk.is_empty()).then_some(chunk)
        })
    }
}

/// A format that is known, and where in it we are.
#[derive(Debug)]
enum Format {
    Tar(Tar),
    Safetensors(Safetensors),
    Zip(Zip),
    Parquet(Parquet),
}

impl Format {
    /// What begins like this. The first bytes of the formats differ, so the order does not matter.
    fn recognise(bytes: &[u8]) -> Option<Self> {
        Tar::recognise(bytes)
            .map(Self::Tar)
            .or_else(|| Safetensors::recognise(bytes).map(Self::Safetensors))
            .or_else(|| Zip::recognise(bytes).map(Self::Zip))
            .or_else(|| Parquet::recognise(bytes).map(Self::Parquet))
    }

    /// The stretch with which `bytes` begin, where the one before has ended.
    fn step(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Tar(tar) => tar.step(bytes),
            Self::Safetensors(safetensors) => safetensors.step(bytes),
            Self::Zip(zip) => zip.step(bytes),
            Self::Parquet(parquet) => parquet.step(bytes),
        }
    }

    /// The length of what belongs to the stretch that ends before `bytes`, although `step` did not say so.
    fn more(&mut self, bytes: &[u8]) -> Option<u64> {
        match self {
            Self::Parquet(parquet) => parquet.more(bytes),
            Self::Tar(_) | Self::Safetensors(_) | Self::Zip(_) => None,
        }
    }

    /// Takes note of the bytes of a stretch: each once, in order.
    fn pass(&mut self, bytes: &[u8]) {
        match self {
            Self::Safetensors(safetensors) => safetensors.pass(bytes),
            // Their headers are short, and seen as a whole in `step`.
            Self::Tar(_) | Self::Zip(_) | Self::Parquet(_) => {}
        }
    }
}

/// What a format says of the bytes that come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Stretch(Stretch),
    /// The stretch cannot be told from so few bytes.
    More,
    /// What comes is not, or not any more, made of stretches.
    End,
}

/// Bytes that belong together. What changes, comes or goes is usually one or several of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    /// In bytes; never 0.
    length: u64,
    /// A number that depends on nothing but the stretch's first bytes.
    draw: u16,
}

impl Stretch {
    /// A stretch of so many bytes that begins with `beginning`.
    fn new(length: u64, beginning: &[u8]) -> Self {
        let [first, second, ..] = ChunkHash::of(beginning).0;
        Self { length, draw: u16::from_le_bytes([first, second]) }
    }

    /// Whether a chunk that is long enough ends before this stretch. It is the stretch that decides, not what came before, so
    /// boundaries fall back into step after a change; and the longer it is, the likelier, so that a mass of tiny members
    /// does not become a mass of chunks.
    fn is_chosen(&self) -> bool {
        u64::from(self.draw) % GATHERED_BYTES < self.length
    }
}

/// The stretches of something with a header and a body: together if the body is short.
fn header_and_body(header: &[u8], body: u64) -> (Stretch, Option<Stretch>) {
    let length = header.len() as u64;
    if LONG_STRETCH_BYTES <= body {
        // The body is cut before anyway.
        (Stretch::new(length, header), Some(Stretch { length: body, draw: 0 }))
    } else {
        (Stretch::new(length + body, header), None)
    }
}

/// Cuts bytes of which nothing is known.
#[derive(Clone, Copy, Debug)]
struct FastCdc {
    mask_small: u64,
    mask_large: u64,
}

impl Default for FastCdc {
    fn default() -> Self {
        let (mask_small, mask_large) =
            v2020::select_masks(AVERAGE_CHUNK_BYTES, Normalization::Level1);
        Self { mask_small, mask_large }
    }
}

impl FastCdc {
    /// The length of the first chunk of `bytes`: all of them if there is no boundary in them.
    fn first(&self, bytes: &[u8]) -> usize {
        if bytes.len() <= MIN_CHUNK_BYTES {
            return bytes.len();
        }
        let (_, length) = v2020::cut(
            bytes,
            MIN_CHUNK_BYTES,
            AVERAGE_CHUNK_BYTES,
            MAX_CHUNK_BYTES,
            self.mask_small,
            self.mask_large,
            self.mask_small << 1,
            self.mask_large << 1,
        );
        length
    }
}
