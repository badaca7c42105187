//! What a change within a file of a known format moves: the bytes of the chunks that are new after it. In memory, without
//! processes, so that nothing but the boundaries is measured, beside those of plain content-defined chunking.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use consort_core::ChunkHash;
use consort_core::content::chunker::Chunker;
use consort_core::limits::{AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES, MIN_CHUNK_BYTES};
use fastcdc::v2020::FastCDC;

use crate::case::Bench;
use crate::failure::Failure;
use crate::table::{Cell, Table, median};
use crate::workload::Random;

/// The bytes of all parts of a file.
const FILE_BYTES: usize = 256 << 20;

/// So often the change is made; what it moves depends on where it is.
const CHANGES: usize = 16;

pub(crate) fn formats(bench: &Bench) -> Result<Table, Failure> {
    let runs = bench.runs.unwrap_or(3);
    let mut table = Table::new(
        format!("What a change within a file of {} MiB moves", FILE_BYTES >> 20),
        &[
            "file",
            "change",
            "changed",
            "new, plain",
            "new",
            "chunks, plain",
            "chunks",
            "cut, plain",
            "cut",
            "verified",
        ],
    );
    let formats: [(&str, Write, usize); 5] = [
        ("tar, short members", tar, 2 << 10),
        ("tar, long members", tar, 1 << 20),
        ("zip, stored", zip, 1 << 20),
        ("safetensors", safetensors, 4 << 20),
        ("lines of JSON", lines, 300),
    ];
    for (name, write, average) in formats {
        let parts = parts(average);
        let before = Cuts::of(&write(&parts), runs)?;
        for change in [Change::Replaced, Change::Longer, Change::Inserted, Change::Removed] {
            let (after, changed) = change.make(&parts, average);
            let after = Cuts::of(&write(&after), runs)?;
            table.row(vec![
                Cell::Text(name.to_string()),
                Cell::Text(change.name().to_string()),
                Cell::Bytes((changed / CHANGES) as u64),
                Cell::Bytes(after.plain.new_bytes(&before.plain) / CHANGES as u64),
                Cell::Bytes(after.ours.new_bytes(&before.ours) / CHANGES as u64),
                Cell::Count(after.plain.chunks.len()),
                Cell::Count(after.ours.chunks.len()),
                Cell::Milliseconds(after.plain.time),
                Cell::Milliseconds(after.ours.time),
                Cell::Verified(after.plain.verified && after.ours.verified),
            ]);
        }
    }
    table.note(
        "Means of 16 changes of a member, a tensor or a line, spread over the file. New: bytes of chunks that the file did \
         not have before. Cut: the time to find all boundaries, without hashing; the median of several. Verified: the \
         chunks put together are the file.",
    );
    Ok(table)
}

/// Makes a file of parts.
type Write = fn(&[Vec<u8>]) -> Vec<u8>;

/// Parts of half to one and a half the average length.
fn parts(average: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(1);
    (0..FILE_BYTES / average).map(|_| some_part(average, &mut random)).collect()
}

fn some_part(average: usize, random: &mut Random) -> Vec<u8> {
    let length = average / 2 + usize::try_from(random.next() % average as u64).unwrap_or(0);
    random.bytes(length)
}

#[derive(Clone, Copy, Debug)]
enum Change {
    Replaced,
    Longer,
    Inserted,
    Removed,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Longer => "replaced by a longer one",
            Self::Inserted => "inserted",
            Self::Removed => "removed",
        }
    }

    /// The parts after so many of these changes, far from each other, and how many bytes are new in them.
    fn make(self, parts: &[Vec<u8>], average: usize) -> (Vec<Vec<u8>>, usize) {
        let mut random = Random::new(2);
        let mut after = Vec::with_capacity(parts.len() + CHANGES);
        let mut changed = 0;
        let every = parts.len() / CHANGES;
        for (number, part) in parts.iter().enumerate() {
            if number % every != every / 2 {
                after.push(part.clone());
                continue;
            }
            let length = part.len();
            let new = match self {
                Self::Replaced => Some(random.bytes(length)),
                Self::Longer => Some(random.bytes(length + length / 8 + 1)),
                Self::Inserted => Some(some_part(average, &mut random)),
                Self::Removed => None,
            };
            changed += new.as_ref().map_or(0, Vec::len);
            after.extend(new);
            if matches!(self, Self::Inserted) {
                after.push(part.clone());
            }
        }
        (after, changed)
    }
}

/// One file, cut in both ways.
struct Cuts {
    plain: Cut,
    ours: Cut,
}

struct Cut {
    chunks: Vec<(ChunkHash, usize)>,
    time: Duration,
    verified: bool,
}

impl Cuts {
    fn of(file: &[u8], runs: usize) -> Result<Self, Failure> {
        let plain = |file: &[u8]| {
            let (min, average, max) = (MIN_CHUNK_BYTES, AVERAGE_CHUNK_BYTES, MAX_CHUNK_BYTES);
            FastCDC::new(file, min, average, max).map(|chunk| chunk.length).collect()
        };
        let ours =
            |file: &[u8]| Chunker::default().chunks(file).map(<[u8]>::len).collect::<Vec<_>>();
        Ok(Self { plain: Cut::by(plain, file, runs)?, ours: Cut::by(ours, file, runs)? })
    }
}

impl Cut {
    fn by(cut: impl Fn(&[u8]) -> Vec<usize>, file: &[u8], runs: usize) -> Result<Self, Failure> {
        let times = (0..runs).map(|_| {
            let started = Instant::now();
            std::hint::black_box(cut(file));
            started.elapsed()
        });
        let time = median(times).ok_or_else(|| Failure::new("nothing was measured"))?;
        let mut rest = file;
        let mut chunks = Vec::new();
        let mut verified = true;
        for length in cut(file) {
            let Some((chunk, behind)) = rest.split_at_checked(length) else {
                verified = false;
                break;
            };
            chunks.push((ChunkHash::of(chunk), length));
            rest = behind;
        }
        verified &= rest.is_empty();
        Ok(Self { chunks, time, verified })
    }

    fn new_bytes(&self, before: &Self) -> u64 {
        let known: BTreeSet<_> = before.chunks.iter().collect();
        let new: BTreeSet<_> = self.chunks.iter().filter(|chunk| !known.contains(chunk)).collect();
        new.into_iter().map(|(_, length)| *length as u64).sum()
    }
}

fn tar(members: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for member in members {
        let mut header = [0; 512];
        let name = format!("{}.bin", name_of(member));
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", member.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        file.extend(header);
        file.extend(member);
        file.resize(file.len().next_multiple_of(512), 0);
    }
    file.extend([0; 1024]);
    file
}

fn zip(members: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for member in members {
        let name = format!("{}.bin", name_of(member));
        let name_length = u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes();
        let length = u32::try_from(member.len()).unwrap_or(u32::MAX).to_le_bytes();
        // Version, flags, method and time; the checksum is not looked at.
        let mut common = [20, 0, 0, 0, 0, 0, 0, 0, 33, 84, 0, 0, 0, 0].to_vec();
        common.extend([length, length].concat());
        common.extend(name_length);
        common.extend([0, 0]);
        let at = u32::try_from(file.len()).unwrap_or(u32::MAX).to_le_bytes();
        directory
            .extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &at, name.as_bytes()].concat());
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), member].concat());
    }
    file.extend(directory);
    file
}

fn safetensors(tensors: &[Vec<u8>]) -> Vec<u8> {
    let mut at = 0;
    let headers = tensors.iter().map(|tensor| {
        let (name, length, begin) = (name_of(tensor), tensor.len(), at);
        at += length;
        format!(r#""{name}":{{"dtype":"U8","shape":[{length}],"data_offsets":[{begin},{at}]}}"#)
    });
    let json = format!("{{{}}}", headers.collect::<Vec<_>>().join(","));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    file.extend(tensors.concat());
    file
}

/// No format: to see that it needs none.
fn lines(lines: &[Vec<u8>]) -> Vec<u8> {
    let mut file = Vec::new();
    for line in lines {
        let name = name_of(line);
        let text = line.iter().map(|byte| char::from(b'a' + byte % 26)).collect::<String>();
        file.extend(format!("{{\"id\":\"{name}\",\"text\":\"{text}\"}}\n").as_bytes());
    }
    file
}

/// A name that a part keeps wherever it stands.
fn name_of(part: &[u8]) -> String {
    format!("{:.12}", ChunkHash::of(part))
}
