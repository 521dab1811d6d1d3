//! Files with one bit flipped.
//!
//! Invariant: one bit at a time, and nothing here knows what a flip should do.

use bitnet_formats::{FormatError, TensorFile};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Opens `whole` with each of these bits flipped, one at a time; how many of these files were accepted and
/// refused. The tensors of one that is accepted are as long as it says.
///
/// # Panics
/// If they are not.
pub fn open_flipped(
    whole: &[u8],
    bits: impl IntoIterator<Item = usize>,
    mut open: impl FnMut(&[u8]) -> Result<TensorFile, FormatError>,
) -> (usize, usize) {
    let mut flipped = whole.to_vec();
    let (mut accepted, mut refused) = (0, 0);
    for bit in bits {
        flipped[bit / 8] ^= 1 << (bit % 8);
        match open(&flipped) {
            Ok(file) => {
                accepted += 1;
                for tensor in file.tensors() {
                    assert_eq!(
                        file.read(tensor).unwrap().len() as u64,
                        tensor.len,
                        "bit {bit}"
                    );
                }
            }
            Err(_) => refused += 1,
        }
        flipped[bit / 8] ^= 1 << (bit % 8);
    }
    (accepted, refused)
}

/// Flips one bit of a file in place, for as long as the guard lives.
///
/// # Panics
/// If the file cannot be read or written there.
pub fn flip(path: &Path, at: u64, bit: usize) -> Flipped {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let mut flipped = Flipped {
        file: file.unwrap_or_else(|e| panic!("{}: {e}", path.display())),
        at,
        bit,
    };
    flipped.invert();
    flipped
}

/// A bit that is flipped back when this is dropped.
pub struct Flipped {
    file: File,
    at: u64,
    bit: usize,
}

impl Flipped {
    fn invert(&mut self) {
        let mut byte = [0];
        let start = SeekFrom::Start(self.at);
        let mut turn = || {
            self.file.seek(start)?;
            self.file.read_exact(&mut byte)?;
            byte[0] ^= 1 << self.bit;
            self.file.seek(start)?;
            self.file.write_all(&byte)
        };
        turn().unwrap_or_else(|e: std::io::Error| panic!("byte {}: {e}", self.at));
    }
}

impl Drop for Flipped {
    fn drop(&mut self) {
        self.invert();
    }
}
