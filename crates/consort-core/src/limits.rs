//! Every bound of the core, each with its reason. The relations between them are checked when this compiles.

/// A key's length in bytes. S3 allows keys of 1,024 bytes, and our keys are S3 keys.
pub const MAX_KEY_BYTES: usize = 1024;

/// Content up to this length may travel and be stored inside its version, in bytes.
/// It equals the shortest chunk, so that inline content is always one chunk when it is not inline.
pub const MAX_INLINE_BYTES: usize = 16 * 1024;

/// Chunks are cut by content, between these lengths, in bytes. Longer chunks cost more when a little changes, shorter
/// ones cost more index rows; 64 KiB on average is what content-addressed stores have settled on.
pub const MIN_CHUNK_BYTES: usize = 16 * 1024;
/// See [`MIN_CHUNK_BYTES`].
pub const AVERAGE_CHUNK_BYTES: usize = 64 * 1024;
/// See [`MIN_CHUNK_BYTES`].
pub const MAX_CHUNK_BYTES: usize = 256 * 1024;

/// References that a version or a manifest's top holds itself; a longer list becomes a level of manifest nodes.
/// 64 references of 36 bytes keep a version's row below 3 KiB.
pub const MAX_TOP_REFS: usize = 64;
/// The references of one manifest node: at least, about, at most. A change of one chunk rewrites one node a level.
pub const MIN_NODE_REFS: usize = 32;
/// See [`MIN_NODE_REFS`].
pub const AVERAGE_NODE_REFS: usize = 128;
/// See [`MIN_NODE_REFS`].
pub const MAX_NODE_REFS: usize = 512;
/// The bytes of one manifest node at the most: a reference takes 32 for the hash, 3 for the length and up to 8 for the
/// span, and the count 2. Nodes are kept until they are needed, so this bounds what that takes.
pub const MAX_NODE_BYTES: usize = MAX_NODE_REFS * 48;
/// Levels of manifest nodes above the chunks. At the least fill of each, four levels hold 64 × 32⁴ chunks of
/// 16 KiB: a terabyte; at the average fill a million times that.
pub const MAX_MANIFEST_LEVELS: u8 = 4;

/// Authors in one version vector. A key that more authors than this have written is refused to the next one.
pub const MAX_VECTOR_AUTHORS: usize = 4096;
/// Concurrent versions of one key that a version may name as not seen.
pub const MAX_VECTOR_EXCEPTIONS: usize = 256;

/// Bytes of a version's media type, of all its user metadata, and of one attribute that this program does not know.
pub const MAX_MEDIA_TYPE_BYTES: usize = 256;
/// See [`MAX_MEDIA_TYPE_BYTES`]. S3 has the same bound on user metadata.
pub const MAX_METADATA_BYTES: usize = 2048;
/// See [`MAX_MEDIA_TYPE_BYTES`].
pub const MAX_UNKNOWN_ATTRIBUTE_BYTES: usize = 2048;
/// Attributes that this program does not know, in one version.
pub const MAX_UNKNOWN_ATTRIBUTES: usize = 16;
/// Bytes of a version's seal: a signature and a certificate that names a node take about half of it.
pub const MAX_SEAL_BYTES: usize = 1024;
/// The length of a symlink's target in bytes: Linux' `PATH_MAX`.
pub const MAX_SYMLINK_BYTES: usize = 4096;

/// The versions of one commit, and their encoded bytes. A commit is held in memory whole on its way.
pub const MAX_COMMIT_VERSIONS: usize = 1024;
/// See [`MAX_COMMIT_VERSIONS`].
pub const MAX_COMMIT_BYTES: usize = 512 * 1024;

/// The encoded bytes of one message on a control connection.
pub const MAX_MESSAGE_BYTES: usize = 1024 * 1024;

/// The payload bytes of one content message: a batch of chunks.
pub const MAX_CONTENT_MESSAGE_BYTES: usize = 1024 * 1024;

/// The chunks of one content message. At the average length sixteen fill it; small files make chunks of any length.
pub const MAX_REQUEST_CHUNKS: usize = 1024;

/// The bytes of a content message beside its payload, at the most: an id, a count, and for each chunk the reference
/// of a request (the length in an answer is shorter).
pub const MAX_CONTENT_OVERHEAD_BYTES: usize = 4 + 2 + MAX_REQUEST_CHUNKS * (32 + 3);

/// The stretches of a content that are asked for in one delta. Those that are close are asked for as one.
pub const MAX_DELTA_STRETCHES: usize = 1024;

/// The pieces that are known to whoever asks for a delta, of each stream: at 4 KiB on average, those of 4 GiB that are not
/// compressed. A hash and a place take 16 bytes on one side, a hash and its number about 42 on the other.
pub const MAX_DELTA_PIECES: usize = 1 << 20;

/// The longest piece, in bytes. Either side cuts pieces of 4 KiB on average.
pub const MAX_PIECE_BYTES: usize = 16 * 1024;

/// The bytes before the compressed ones of a page, its header above all.
pub const MAX_PAGE_HEAD_BYTES: usize = 64 * 1024;

/// What a page may hold in plain form. Writers make pages of one megabyte; either side holds a few.
pub const MAX_PLAIN_PAGE_BYTES: usize = 8 * 1024 * 1024;

/// The values of a dictionary by which pages are taken apart: 20 bytes of memory each.
pub const MAX_DICTIONARY_VALUES: usize = 1 << 20;

/// Pages that may wait for the rest of their bytes: short ones, since a piece is found only when it is complete.
pub const MAX_WAITING_PAGES: usize = 256;

/// Tombstones that are collected in one step: some milliseconds of work, and a batch of about a megabyte.
pub const MAX_COLLECTED: usize = 4096;

/// What a comparison finds to be dead is dropped when it has ended. So many bytes of that are remembered until then; the rest
/// is found by the next comparison.
pub const MAX_DEAD_BYTES: usize = 4 * 1024 * 1024;

/// The authors that one message about frontiers names. What does not fit follows in the next.
pub const MAX_FRONTIER_AUTHORS: usize = 8192;

/// How far a remote clock may be ahead of ours, in milliseconds, before its versions wait.
pub const MAX_CLOCK_SKEW_MS: u64 = 5 * 60 * 1000;

// One entry always fits in a commit, and a commit in a message, or a large key could never be sent.
const _: () = assert!(MAX_ENTRY_BYTES <= MAX_COMMIT_BYTES);
const _: () = assert!(MAX_COMMIT_BYTES + 1024 <= MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_INLINE_BYTES <= MIN_CHUNK_BYTES);
const _: () = assert!(MAX_CHUNK_BYTES <= MAX_CONTENT_MESSAGE_BYTES);
// A manifest node travels as a chunk.
const _: () = assert!(MAX_NODE_BYTES <= MAX_CHUNK_BYTES);

/// The most bytes that one entry can take when it is encoded: the sum of its parts' bounds.
pub const MAX_ENTRY_BYTES: usize = MAX_KEY_BYTES
    + MAX_INLINE_BYTES
    + MAX_TOP_REFS * 48
    + MAX_VECTOR_AUTHORS * 24
    + MAX_VECTOR_EXCEPTIONS * 24
    + MAX_MEDIA_TYPE_BYTES
    + MAX_METADATA_BYTES
    + MAX_SEAL_BYTES
    + MAX_UNKNOWN_ATTRIBUTES * (MAX_UNKNOWN_ATTRIBUTE_BYTES + 8)
    + 256;

/// Bytes of versions that may be on their way to a peer without an acknowledgement: enough to keep a link of 1 Gbit/s
/// and 50 ms busy. The peer holds as much at the most.
pub const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// Bytes that a link reads or sends in one turn of the loop that drives it. A peer that loads a million versions gets them
/// in so many turns, and between two of them everything else has one.
pub const TURN_BYTES: usize = 1024 * 1024;

/// Messages that may be on their way to a peer without an acknowledgement.
pub const WINDOW_MESSAGES: usize = 4096;

/// Fingerprints of one message.
pub const MAX_BATCH_FINGERPRINTS: usize = 32 * 1024;

/// Bytes of the reason that a peer gives for ending a link.
pub const MAX_REASON_BYTES: usize = 256;

const _: () = assert!(MAX_BATCH_FINGERPRINTS * 16 + 1024 <= MAX_MESSAGE_BYTES);
const _: () = assert!(MAX_FRONTIER_AUTHORS * (24 + 72) + 1024 <= MAX_MESSAGE_BYTES);
const _: () = assert!(2 * MAX_COMMIT_BYTES <= WINDOW_BYTES);
const _: () = assert!(MAX_PIECE_BYTES + MAX_PAGE_HEAD_BYTES + 1024 <= MAX_CONTENT_MESSAGE_BYTES);
