//! Reads one ternary tensor of a GGUF file and prints its shape, its trits and its scales.
//!
//! `cargo run --release --example read_linear -- MODEL.gguf [TENSOR]`. Without TENSOR: the first ternary one.

#![allow(clippy::print_stdout)] // an example prints what it finds

use bitnet_formats::{Encoding, Limits, PackedTensor, open};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args
        .next()
        .ok_or("usage: read_linear MODEL.gguf [TENSOR]")?;
    let file = open(Path::new(&path), &Limits::default())?;

    let is_ternary = |encoding| matches!(encoding, Encoding::Ternary(_));
    let tensor = match args.next() {
        Some(name) => file.tensor(&name),
        None => file.tensors().iter().find(|t| is_ternary(t.encoding)),
    };
    let tensor = tensor.ok_or("the file has no such tensor")?;
    let (Encoding::Ternary(packing), &[rows, cols]) = (tensor.encoding, &tensor.shape[..]) else {
        return Err(format!("{} is no ternary matrix", tensor.name).into());
    };

    let bytes = file.read(tensor)?;
    let packed = PackedTensor {
        bytes: &bytes,
        rows,
        cols,
        outside: None,
    };
    let matrix = packing.unpack(&packed)?;
    let [minus, zero, plus] = matrix.counts();
    println!("{}: {rows} x {cols}, {}", tensor.name, packing.name());
    println!("trits: {minus} are -1, {zero} are 0, {plus} are +1");
    println!("scales per {}", matrix.scales().structure());
    Ok(())
}
