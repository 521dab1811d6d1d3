//! Every available kernel: one token and 512 tokens, from cache, per shape of a linear layer.
//!
//! `cargo bench -p bitnet-kernels --bench matvec [-- NAME]`. Bytes are those a matvec reads (packed weights),
//! items are multiply-adds; `peak` is the kernel's multiply instruction alone, so `matmul_512` over `peak` is
//! the share of it. For figures taken in turn with the machine's limits see `limits.rs`.

use bitnet_kernels::{ActivationBatch, Backend, Output, PackedMatrix, Scales, TernaryMatrix};
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};

fn main() {
    divan::main();
}

/// `(rows, cols)` of the linear layers of the 2B model, and a small one.
const SHAPES: [(usize, usize); 4] = [(2560, 2560), (6912, 2560), (2560, 6912), (640, 2560)];

/// A kernel's name and a shape.
fn cases() -> Vec<(&'static str, (usize, usize))> {
    Backend::available()
        .flat_map(|b| SHAPES.into_iter().map(move |s| (b.name(), s)))
        .collect()
}

fn prepare(
    name: &str,
    (rows, cols): (usize, usize),
    tokens: usize,
) -> (PackedMatrix, ActivationBatch) {
    let backend = Backend::by_name(name).unwrap();
    let trits = (0..rows * cols)
        .map(|i| (i * i % 7 % 3) as i8 - 1)
        .collect();
    let matrix = TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(0.5)).unwrap();
    let x: Vec<f32> = (0..tokens * cols)
        .map(|i| (i % 251) as f32 - 125.0)
        .collect();
    let mut batch = ActivationBatch::default();
    backend.quantize(&x, cols, &mut batch).unwrap();
    (backend.pack(&matrix), batch)
}

fn bench(bencher: Bencher, name: &str, shape: (usize, usize), tokens: usize) {
    let (packed, x) = prepare(name, shape, tokens);
    let mut y = vec![0.0; tokens * shape.0];
    bencher
        .counter(BytesCount::new(packed.byte_len()))
        .counter(ItemsCount::new(tokens * shape.0 * shape.1))
        .bench_local(|| packed.multiply(&x, &mut Output::new(&mut y, tokens, shape.0)));
}

#[divan::bench(args = cases())]
fn matvec(bencher: Bencher, case: &(&'static str, (usize, usize))) {
    bench(bencher, case.0, case.1, 1);
}

#[divan::bench(args = cases(), max_time = 2)]
fn matmul_512(bencher: Bencher, case: &(&'static str, (usize, usize))) {
    bench(bencher, case.0, case.1, 512);
}

/// Kernels whose multiply instruction is known.
fn peaks() -> impl Iterator<Item = &'static str> {
    Backend::available()
        .filter(|b| b.peak_instruction().is_some())
        .map(|b| b.name())
}

#[divan::bench(args = peaks(), sample_count = 10, sample_size = 1)]
fn peak(bencher: Bencher, name: &str) {
    let backend = Backend::by_name(name).unwrap();
    let macs = backend.run_peak().unwrap_or(0);
    bencher
        .counter(ItemsCount::new(macs))
        .bench_local(|| backend.run_peak());
}
