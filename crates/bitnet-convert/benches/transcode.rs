//! Packed bytes to packed bytes, and each half of that, beside copying as many bytes.
//!
//! `cargo bench -p bitnet-convert --bench transcode [-- NAME]`. Bytes are those of 2-bit codes (weights / 4),
//! whatever the packings take, so that rates compare; `copy` copies as many. One thread unless a case says
//! otherwise. `model` reads every packed linear of the checkpoint that `BITNET_TRANSCODE` names, straight from
//! the page cache, without digests and without writing.

use bitnet_checkpoint::{Checkpoint, OpenOptions, TernaryRows, code_row_len};
use bitnet_convert::transcode;
use bitnet_formats::{PACKINGS, PackedTensor, Packing, packing_by_name};
use bitnet_ternary::{Scales, TernaryMatrix};
use divan::Bencher;
use divan::counter::BytesCount;
use std::path::PathBuf;

fn main() {
    divan::main();
}

const ONE: Scales = Scales::PerTensor(1.0);

/// The largest linears of the 2B model.
const SHAPE: (usize, usize) = (6912, 2560);

const PAIRS: [(&str, &str); 14] = [
    ("hf_u8", "i2_s"),
    ("i2_s", "hf_u8"),
    ("hf_u8", "tq2_0"),
    ("hf_u8", "tq1_0"),
    ("hf_u8", "iq2_bn"),
    ("hf_u8", "tl1"),
    ("hf_u8", "tile32-1.6bit"),
    ("hf_u8", "tile32-2bit"),
    ("i2_s", "tq2_0"),
    ("i2_s", "tile32-1.6bit"),
    ("tq1_0", "i2_s"),
    ("tl1", "i2_s"),
    ("tl2", "i2_s"),
    ("tile32-1.6bit", "i2_s"),
];

fn sample() -> TernaryMatrix {
    let (rows, cols) = SHAPE;
    let mut state = 1u64;
    let mut trit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005) + 1;
        (state >> 33) as i8 % 3 - 1
    };
    let trits = (0..rows * cols).map(|_| trit().clamp(-1, 1)).collect();
    TernaryMatrix::new(rows, cols, trits, ONE).unwrap()
}

fn encode(packing: &dyn Packing, matrix: &TernaryMatrix) -> Vec<u8> {
    let (rows, cols) = SHAPE;
    let trailer = packing.trailer(matrix);
    let mut bytes = vec![0; packing.stored_len(rows, cols).unwrap() as usize - trailer.len()];
    packing.pack_units(matrix, 0, &mut bytes);
    bytes.extend(trailer);
    bytes
}

fn tensor(bytes: &[u8]) -> PackedTensor<'_> {
    let (rows, cols) = SHAPE;
    PackedTensor {
        bytes,
        rows,
        cols,
        outside: Some(&ONE),
    }
}

fn codes() -> BytesCount {
    BytesCount::new(SHAPE.0 * SHAPE.1 / 4)
}

fn pool(threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap()
}

#[divan::bench]
fn copy(bencher: Bencher) {
    let from = vec![1u8; SHAPE.0 * SHAPE.1 / 4];
    let mut to = from.clone();
    bencher
        .counter(codes())
        .bench_local(|| divan::black_box(&mut to).copy_from_slice(divan::black_box(&from)));
}

fn matrix(bencher: Bencher, (from, to): (&str, &str), digested: bool) {
    let (from, to) = [from, to].map(|name| packing_by_name(name).unwrap()).into();
    let sample = sample();
    let bytes = encode(from, &sample);
    let units = to.packed_len(SHAPE.0, SHAPE.1).unwrap() as usize - to.trailer(&sample).len();
    drop(sample);
    let mut out = vec![0; units];
    let mut codes_out = vec![
        0;
        if digested {
            SHAPE.0 * code_row_len(SHAPE.1)
        } else {
            0
        }
    ];
    let pool = pool(1);
    bencher.counter(codes()).bench_local(|| {
        let source = (from, tensor(&bytes));
        let done = pool.install(|| transcode(&source, to, 1.0, &mut out, &mut codes_out));
        done.unwrap().unwrap()
    });
}

#[divan::bench(args = PAIRS)]
fn pairs(bencher: Bencher, pair: (&str, &str)) {
    matrix(bencher, pair, false);
}

/// With the codes that the certificate hashes.
#[divan::bench(args = [("hf_u8", "i2_s"), ("i2_s", "hf_u8")])]
fn pairs_and_codes(bencher: Bencher, pair: (&str, &str)) {
    matrix(bencher, pair, true);
}

fn names() -> Vec<&'static str> {
    let fits = |p: &&&dyn Packing| p.stored_len(SHAPE.0, SHAPE.1).is_ok();
    PACKINGS.iter().filter(fits).map(|p| p.name()).collect()
}

#[divan::bench(args = names())]
fn pack(bencher: Bencher, name: &str) {
    let (packing, matrix) = (packing_by_name(name).unwrap(), sample());
    let mut out = encode(packing, &matrix);
    let units = out.len() - packing.trailer(&matrix).len();
    bencher
        .counter(codes())
        .bench_local(|| packing.pack_units(&matrix, 0, &mut out[..units]));
}

#[divan::bench(args = names())]
fn unpack(bencher: Bencher, name: &str) {
    let packing = packing_by_name(name).unwrap();
    let bytes = encode(packing, &sample());
    let mut trits = vec![0; SHAPE.0 * SHAPE.1];
    bencher
        .counter(codes())
        .bench_local(|| packing.unpack_rows(&tensor(&bytes), 0, &mut trits).unwrap());
}

/// `(target, threads)`
fn model_cases() -> Vec<(&'static str, usize)> {
    let all = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if all > 1 { vec![1, all] } else { vec![1] };
    let targets = ["i2_s", "hf_u8", "tile32-1.6bit"];
    let cases = targets
        .iter()
        .flat_map(|t| threads.iter().map(|n| (*t, *n)));
    cases
        .filter(|_| std::env::var_os("BITNET_TRANSCODE").is_some())
        .collect()
}

#[divan::bench(args = model_cases(), sample_count = 5, sample_size = 1)]
fn model(bencher: Bencher, (target, threads): (&str, usize)) {
    let path = PathBuf::from(std::env::var_os("BITNET_TRANSCODE").unwrap());
    let checkpoint = Checkpoint::open(&path, &OpenOptions::default()).unwrap();
    let slots = checkpoint.slots().into_iter().filter(|s| s.is_ternary());
    let linears: Vec<TernaryRows<'_>> = slots
        .map(|slot| checkpoint.ternary_rows(slot).unwrap().unwrap())
        .collect();
    let to = packing_by_name(target).unwrap();
    let weights: usize = linears.iter().map(|l| l.shape().0 * l.shape().1).sum();
    let trailer = to.trailer(&TernaryMatrix::new(1, 1, vec![1], ONE).unwrap());
    let mut out = Vec::new();
    let pool = pool(threads);
    bencher
        .counter(BytesCount::new(weights / 4))
        .bench_local(|| {
            for rows in &linears {
                let (m, k) = rows.shape();
                let units = to.packed_len(m, k).unwrap() as usize - trailer.len();
                out.resize(units, 0);
                let done = pool.install(|| transcode(rows, to, 1.0, &mut out, &mut []));
                assert!(done.unwrap().is_some());
            }
        });
}
