//! Models in the safetensors format: a stretch is the header, and then each tensor. The format's description is
//! `README.md` of huggingface/safetensors, "Format": the length of a JSON object (8 bytes, little-endian), the object,
//! which gives each tensor's begin and end as `data_offsets`, and the tensors without a gap.
//!
//! The header may be larger than what is seen of a content at a time, so it is read as it passes.

use alloc::vec::Vec;

use super::{Step, Stretch};

/// The longest header that readers of the format accept.
const MAX_JSON_BYTES: u64 = 100_000_000;

/// Tensors that are remembered: half a megabyte. The largest models have some thousand in a file.
const MAX_TENSORS: usize = 64 * 1024;

/// So many of its first bytes draw a tensor.
const DRAWN_BYTES: u64 = 64;

/// The length before the JSON.
const LENGTH_BYTES: usize = 8;

/// Where in a model we are.
#[derive(Debug)]
pub(super) enum Safetensors {
    /// Before the header, which has so many bytes.
    Start { header: u64 },
    /// In the header, so many bytes before the JSON begins.
    Header { before: usize, offsets: Offsets },
    /// At a tensor.
    Tensors {
        /// Where the tensors end that are still to come, the nearest last, from the end of the header.
        ends: Vec<u64>,
        /// Where this tensor begins.
        at: u64,
    },
}

impl Safetensors {
    pub(super) fn recognise(bytes: &[u8]) -> Option<Self> {
        let (length, json) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
        let length = u64::from_le_bytes(*length);
        let is_model = (2..=MAX_JSON_BYTES).contains(&length) && json.starts_with(b"{\"");
        is_model.then_some(Self::Start { header: LENGTH_BYTES as u64 + length })
    }

    pub(super) fn step(&mut self, bytes: &[u8]) -> Step {
        match self {
            Self::Start { header } => {
                let stretch = Stretch::new(*header, b"");
                *self = Self::Header { before: LENGTH_BYTES, offsets: Offsets::default() };
                Step::Stretch(stretch)
            }
            Self::Header { offsets, .. } => {
                let Some(mut ends) = core::mem::take(offsets).finish() else { return Step::End };
                ends.sort_unstable_by(|a, b| b.cmp(a));
                *self = Self::Tensors { ends, at: 0 };
                self.step(bytes)
            }
            Self::Tensors { ends, at } => {
                // Some tensors are empty.
                while ends.pop_if(|end| *end <= *at).is_some() {}
                let Some(end) = ends.last() else { return Step::End };
                let length = *end - *at;
                let drawn = usize::try_from(length.min(DRAWN_BYTES)).expect("a few bytes");
                let Some(beginning) = bytes.get(..drawn) else { return Step::More };
                *at = *end;
                Step::Stretch(Stretch::new(length, beginning))
            }
        }
    }

    pub(super) fn pass(&mut self, bytes: &[u8]) {
        if let Self::Header { before, offsets } = self {
            let (length, json) = bytes.split_at((*before).min(bytes.len()));
            *before -= length.len();
            offsets.read(json);
        }
    }
}

const NAME: &[u8] = b"data_offsets";

/// Finds the ends in a JSON text that comes in pieces. This knows no more of JSON than it takes: what is not JSON gives
/// boundaries where there are none, which does no harm.
#[derive(Debug, Default)]
pub(super) struct Offsets {
    ends: Vec<u64>,
    token: Token,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    /// Between others; whether there was nothing but a colon and spaces since a text that was [`NAME`].
    Between { named: bool },
    /// In a text, of which so many bytes are those of [`NAME`]; nothing if it is another.
    Text { same: Option<usize>, escaped: bool },
    /// In the array that has the name. The number that it stands at has this value so far.
    Array { number: u64 },
    /// This is not a header.
    Broken,
}

impl Default for Token {
    fn default() -> Self {
        Self::Between { named: false }
    }
}

impl Offsets {
    fn read(&mut self, json: &[u8]) {
        for byte in json {
            self.token = match (self.token, *byte) {
                (Token::Between { .. }, b'"') => Token::Text { same: Some(0), escaped: false },
                (Token::Between { named: true }, b'[') => Token::Array { number: 0 },
                (Token::Between { named }, b':' | b' ' | b'\n' | b'\r' | b'\t') => {
                    Token::Between { named }
                }
                (Token::Between { .. }, _) => Token::Between { named: false },
                (Token::Text { escaped: true, .. }, _) => {
                    Token::Text { same: None, escaped: false }
                }
                (Token::Text { .. }, b'\\') => Token::Text { same: None, escaped: true },
                (Token::Text { same, .. }, b'"') => {
                    Token::Between { named: same == Some(NAME.len()) }
                }
                (Token::Text { same, escaped }, byte) => {
                    let next = same.filter(|same| NAME.get(*same) == Some(&byte));
                    Token::Text { same: next.map(|same| same + 1), escaped }
                }
                (Token::Array { number }, b'0'..=b'9') => {
                    let longer = number.checked_mul(10);
                    let longer = longer.and_then(|n| n.checked_add(u64::from(byte - b'0')));
                    longer.map_or(Token::Broken, |number| Token::Array { number })
                }
                // What ends here is where a tensor begins, which is where another ends.
                (Token::Array { .. }, b',') => Token::Array { number: 0 },
                (Token::Array { number }, b']') if self.ends.len() < MAX_TENSORS => {
                    self.ends.push(number);
                    Token::Between { named: false }
                }
                (array @ Token::Array { .. }, b' ' | b'\n' | b'\r' | b'\t') => array,
                (Token::Array { .. } | Token::Broken, _) => Token::Broken,
            };
        }
    }

    /// Where tensors end; nothing if this was no header.
    fn finish(self) -> Option<Vec<u64>> {
        matches!(self.token, Token::Between { .. }).then_some(self.ends)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use alloc::string::String;
    use core::fmt::Write as _;

    use super::*;

    /// A model of these tensors.
    pub(in super::super) fn model(tensors: &[&[u8]]) -> Vec<u8> {
        let mut json = String::from("{\"__metadata__\":{\"data_offsets\":\"[\"}");
        let mut at = 0;
        for (n, tensor) in tensors.iter().enumerate() {
            let end = at + tensor.len();
            let shape = tensor.len();
            write!(
                json,
                ",\"\\\"layer.{n}\":{{\"dtype\":\"U8\",\"shape\":[{shape}],\"data_offsets\":[{at}, {end}]}}"
            )
            .expect("memory does not fail");
            at = end;
        }
        json.push('}');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        tensors.iter().for_each(|tensor| bytes.extend(*tensor));
        bytes
    }

    fn lengths(bytes: &[u8], piece: usize) -> Option<Vec<u64>> {
        let mut model = Safetensors::recognise(bytes).expect("a model");
        let mut lengths = Vec::new();
        let mut at = 0;
        while let Step::Stretch(stretch) = model.step(&bytes[at..]) {
            lengths.push(stretch.length);
            let end = bytes.len().min(at + usize::try_from(stretch.length).ok()?);
            bytes[at..end].chunks(piece).for_each(|piece| model.pass(piece));
            at = end;
        }
        (at == bytes.len()).then_some(lengths)
    }

    #[test]
    fn stretches_are_the_header_and_the_tensors_however_it_is_read() {
        let model = model(&[&[1; 100], &[], &[2; 3], &[3; 5_000]]);
        let header = model.len() as u64 - 5_103;
        for piece in [1, 7, 1_000] {
            assert_eq!(lengths(&model, piece), Some([header, 100, 3, 5_000].to_vec()));
        }
    }

    #[test]
    fn offsets_that_are_no_numbers_end_the_format() {
        for offsets in ["[0,-1]", "[[", "[0,99999999999999999999]", "[0"] {
            let json = alloc::format!("{{\"a\":{{\"data_offsets\":{offsets}");
            let mut offsets = Offsets::default();
            offsets.read(json.as_bytes());
            assert_eq!(offsets.finish(), None, "{json}");
        }
    }
}
