//! What an exact head is made of, for every available kernel: the product of all rows with one state, and
//! the pass over a screen's upper bits, both beside a plain read of as many bytes in the same round.
//!
//! `cargo bench -p bitnet-kernels --bench head -- [ROUNDS] [KERNEL...]`: 128256 x 2560 bf16, 1 and 2 threads,
//! milliseconds (median), share of the probe (median). The rows lie on huge pages, and on pages of 4 KB as a
//! mapped file does. What the whole search for the largest logits costs, `bitnet-model`'s `head` measures.

#![allow(unsafe_code, clippy::print_stdout, clippy::needless_range_loop)]

use bitnet_kernels::{Backend, DenseType, Output, Pool, ScreenBounds, ScreenQuery, ScreenRows};
use std::hint::black_box;
use std::time::Instant;

const ROWS: usize = 128_256;
const COLS: usize = 2560;

/// Rows of one item of work.
const PART: usize = 1024;

/// Rows whose codes stay in L2.
const CACHED: usize = 256;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = words.iter().find_map(|w| w.parse().ok()).unwrap_or(7);
    let named: Vec<Backend> = words
        .iter()
        .filter_map(|w| Backend::by_name(w).ok())
        .collect();
    let backends = match named.is_empty() {
        true => Backend::available().collect(),
        false => named,
    };
    let values = normal();
    let x = &values[..COLS];
    let [huge, small] = [true, false].map(|huge| {
        let mut bytes = memory(ROWS * COLS * 2, huge);
        for (row, to) in bytes.chunks_exact_mut(2 * COLS).enumerate() {
            for (to, w) in to.as_chunks_mut().0.iter_mut().zip(row_of(&values, row)) {
                *to = ((w.to_bits() >> 16) as u16).to_le_bytes();
            }
        }
        bytes
    });
    for backend in backends {
        let mut screen: Vec<ScreenRows> = (0..ROWS.div_ceil(PART))
            .map(|part| ScreenRows::new(backend, PART.min(ROWS - part * PART), COLS).unwrap())
            .collect();
        for (part, screen) in screen.iter_mut().enumerate() {
            (0..screen.rows()).for_each(|r| screen.set(r, row_of(&values, part * PART + r)));
        }
        let making = median(
            (0..rounds)
                .map(|_| seconds(|| (0..PART).for_each(|r| screen[0].set(r, row_of(&values, r))))),
        );
        println!(
            "{}: makes a screen of {:.1} GB/s of bf16 (widened in cache)",
            backend.name(),
            (PART * COLS * 2) as f64 / making / 1e9
        );
        let query = ScreenQuery::new(x);
        let mut few = ScreenRows::new(backend, CACHED, COLS).unwrap();
        (0..CACHED).for_each(|r| few.set(r, row_of(&values, r)));
        let (mut sums, mut estimates, mut upper) = ([0; CACHED], [0.0; CACHED], [0.0; CACHED]);
        let cached = median((0..20 * rounds).map(|_| {
            seconds(|| {
                let to = ScreenBounds {
                    sums: &mut sums,
                    estimates: &mut estimates,
                    upper: &mut upper,
                };
                few.bounds(black_box(&query), to);
            })
        }));
        println!(
            "  upper bits from L2: {:.1} GB/s",
            few.byte_len() as f64 / cached / 1e9
        );
        for threads in [1, 2] {
            let mut pool = Pool::new(threads);
            let mut out = vec![0.0; ROWS];
            let (mut sums, mut estimates, mut upper) =
                (vec![0; ROWS], vec![0.0; ROWS], vec![0.0; ROWS]);
            let mut times: [Vec<f64>; 3] = Default::default();
            let mut shares: [Vec<f64>; 3] = Default::default();
            let screened = screen.iter().map(ScreenRows::byte_len).sum();
            let bytes = [huge.len(), huge.len(), screened];
            for round in 0..=rounds {
                for what in 0..3 {
                    let probe = seconds(|| stream(&mut pool, &huge[..bytes[what]]));
                    let ours = seconds(|| match what {
                        0 | 1 => {
                            let rows = if what == 0 { &huge } else { &small };
                            let parts = out.chunks_mut(PART).enumerate().collect();
                            pool.run_each(parts, |(part, out): (usize, &mut [f32])| {
                                let rows = &rows[part * PART * COLS * 2..];
                                let n = out.len();
                                let out = &mut Output::new(out, 1, n);
                                backend.dense_rows(DenseType::Bf16, rows, COLS, black_box(x), out);
                            });
                        }
                        _ => {
                            let parts = screen
                                .iter()
                                .zip(sums.chunks_mut(PART))
                                .zip(estimates.chunks_mut(PART))
                                .zip(upper.chunks_mut(PART))
                                .collect();
                            pool.run_each(parts, |(((screen, sums), estimates), upper)| {
                                let to = ScreenBounds {
                                    sums,
                                    estimates,
                                    upper,
                                };
                                screen.bounds(black_box(&query), to);
                            });
                        }
                    });
                    if round > 0 {
                        times[what].push(ours);
                        shares[what].push(probe / ours);
                    }
                }
            }
            let [full, small_full, pass] = times.map(median);
            let [a, b, c] = shares.map(median).map(|share| 100.0 * share);
            println!(
                "  {threads} threads: full {:.2} ms ({a:.0} %), from 4 KB pages {:.2} ms ({b:.0} %), upper bits {:.2} ms \
                 ({c:.0} %), {:.1} % of full, {:.1} % of 4 KB",
                1e3 * full,
                1e3 * small_full,
                1e3 * pass,
                100.0 * pass / full,
                100.0 * pass / small_full,
            );
        }
    }
}

/// Numbers that are normal enough; rows are windows of them.
fn normal() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..1 << 20)
        .map(|_| (0..12).map(|_| uniform()).sum())
        .collect()
}

fn row_of(values: &[f32], row: usize) -> &[f32] {
    let at = row * 7919 % (values.len() - COLS);
    &values[at..at + COLS]
}

/// Bytes on huge pages, or not.
fn memory(bytes: usize, huge: bool) -> Vec<u8> {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        const MADV_NOHUGEPAGE: c_int = 15;
        let mut memory: Vec<u8> = Vec::with_capacity(bytes);
        let page = memory.as_mut_ptr().map_addr(|a| a.next_multiple_of(4096));
        let advice = if huge { MADV_HUGEPAGE } else { MADV_NOHUGEPAGE };
        // SAFETY: whole pages inside one live allocation; the advice changes no contents.
        unsafe { madvise(page.cast(), bytes - 8192, advice) };
        memory.resize(bytes, 1);
        memory
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = huge;
        vec![1; bytes]
    }
}

/// Reads every byte.
fn stream(pool: &mut Pool, bytes: &[u8]) {
    pool.run_each(bytes.chunks(PART * COLS * 2).collect(), |bytes: &[u8]| {
        let mut sums = [0u64; 32];
        for words in bytes.as_chunks::<256>().0 {
            for (sum, word) in sums.iter_mut().zip(words.as_chunks().0) {
                *sum ^= u64::from_ne_bytes(*word);
            }
        }
        black_box(sums);
    });
}

fn seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(all: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = all.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}
