//! Headers of pages as writers make them, to be read again in tests: of this crate, and of others (feature `test-utils`).

use alloc::vec::Vec;

/// The header of a data page (of its first version) or of a dictionary's: how long the page is when it is not compressed and when
/// it is, how many values it holds, and in which encoding.
#[must_use]
pub fn header(dictionary: bool, plain: u64, packed: u64, values: u64, encoding: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    number(if dictionary { 2 } else { 0 }, &mut bytes);
    number(plain, &mut bytes);
    number(packed, &mut bytes);
    // The structure of its kind.
    bytes.push(if dictionary { 0x4c } else { 0x2c });
    number(values, &mut bytes);
    number(encoding.into(), &mut bytes);
    if !dictionary {
        // Levels of both sorts in runs.
        number(3, &mut bytes);
        number(3, &mut bytes);
    }
    bytes.extend([0, 0]);
    bytes
}

/// The next field of a structure: a number of 32 bits, which is not negative.
fn number(value: u64, to: &mut Vec<u8>) {
    to.push(0x15);
    let mut value = value << 1;
    while 0x80 <= value {
        to.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    to.push(value.to_le_bytes()[0]);
}
