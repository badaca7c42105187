//! Deltas as a whole, without a network: what one side says makes the other's bytes.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

use consort_core::ChunkRef;
use consort_core::content::chunker::Chunker;
use consort_core::content::delta::{Codec, Stream};
use proptest::prelude::*;

use super::base::Base;
use super::give::{Giver, Known};
use super::page::tests::{codecs, writer};
use super::take::{Failed, Taker};
use super::Source;

impl Source for &[u8] {
    fn read_at(&mut self, offset: u64, to: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.get(from..).and_then(|rest| rest.get(..to.len()));
        to.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.len() as u64
    }
}

fn on_disk(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("it is written");
    file
}

fn known(base: Option<&Base<'_>>) -> Known {
    let hashes = |stream| base.map_or(Vec::new(), |base| base.hashes(stream).to_vec());
    Known::new([hashes(Stream::Levels), hashes(Stream::Values)])
}

/// What is said of `wanted` of a content.
fn instructions(content: &[u8], known: &Known, wanted: &[Range<u64>]) -> Vec<Vec<u8>> {
    let mut messages = Vec::new();
    let mut send = |message| {
        messages.push(message);
        Ok(())
    };
    Giver::new(&mut &*content, wanted, known, &mut send).give().expect("it can be read");
    messages
}

fn chunks(content: &[u8]) -> Vec<(u64, ChunkRef)> {
    let mut offset = 0;
    let chunks = Chunker::default().chunks(content).map(|chunk| {
        offset += chunk.len() as u64;
        (offset - chunk.len() as u64, ChunkRef::to(chunk))
    });
    chunks.collect()
}

/// How many chunks are made of how many, and whether all went well.
fn take(base: Base<'_>, wanted: Vec<(u64, ChunkRef)>, messages: &[Vec<u8>]) -> (usize, usize, Result<(), Failed>) {
    let (mut made, mut told) = (0, 0);
    let mut taker = Taker::new(base, wanted, |_, chunk, bytes: Option<&[u8]>| {
        told += 1;
        made += usize::from(bytes.is_some_and(|bytes| chunk.is(bytes)));
    });
    let mut result = Ok(());
    for message in messages {
        result = taker.follow(message);
        if result.is_err() {
            break;
        }
    }
    taker.finish();
    (made, told, result)
}

#[test]
#[ignore]
fn measure() {
    let dir = std::env::var("PQ").unwrap();
    let old = File::open(format!("{dir}/old.parquet")).unwrap();
    for name in std::env::var("PQ_NAMES").unwrap().split(',') {
        let content = std::fs::read(format!("{dir}/{name}.parquet")).unwrap();
        let began = std::time::Instant::now();
        let base = Base::of(&old).unwrap().unwrap();
        let indexed = began.elapsed();
        let known = known(Some(&base));
        let wanted = chunks(&content);
        let began = std::time::Instant::now();
        let messages = instructions(&content, &known, &[0..content.len() as u64]);
        let given = began.elapsed();
        let bytes: usize = messages.iter().map(Vec::len).sum();
        let packed: usize = messages.iter().map(|m| zstd::bulk::compress(m, 1).unwrap().len()).sum();
        let hashes = base.hashes(Stream::Levels).len() + base.hashes(Stream::Values).len();
        let began = std::time::Instant::now();
        let (made, told, result) = take(base, wanted, &messages);
        println!("{name}: {} bytes, hashes {}, said {bytes}, packed {packed}; made {made} of {told} {result:?}; index {indexed:?} give {given:?} take {:?}", content.len(), hashes * 8, began.elapsed());
        let mut by = std::collections::BTreeMap::<&str, (usize, usize)>::new();
        let mut column = String::new();
        for m in &messages {
            let mut from = consort_core::encoding::Reader::new(m);
            while !from.is_empty() {
                use consort_core::content::delta::Instruction::*;
                let before = from.remaining();
                let (kind, n) = match consort_core::content::delta::Instruction::decode(&mut from).unwrap() {
                    End => ("end", 0), Skip(n) => ("skip", n as usize), Raw(b) => ("raw", b.len()),
                    Page(_) | Dictionary(_) => ("page", 0), Copy(_, _, n) => ("copy", n as usize), Add(Stream::Levels, b) => ("add levels", b.len()), Add(_, b) => ("add", b.len()) };
                let e = by.entry(kind).or_default();
                e.0 += before - from.remaining();
                e.1 += n;
            }
            column.push('.');
        }
        println!("{by:?}");
    }
}
