//! Every available kernel beside the machine's limits, measured in turn in the same run.
//!
//! `cargo bench -p bitnet-kernels --bench limits -- [ROUNDS] [stack|matvec|matmul|float] [KERNEL]`. The limits: a plain streaming read of the packed
//! bytes, and the peak of the multiply instruction (`vpdpbusd` on zmm, `vpmaddubsw` on ymm). A machine
//! shared with others flips between speeds, so a share of a limit says more than a speed.

#![allow(unsafe_code, clippy::print_stdout)]

use bitnet_kernels::{ActivationBatch, Backend, Output, PackedMatrix, Scales, TernaryMatrix};
use std::hint::black_box;

/// Packed bytes of the DRAM run: far beyond any share of L3 that one gets.
const STREAM: usize = 600 << 20;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = words.iter().find_map(|w| w.parse().ok()).unwrap_or(9);
    // no word of a kind named means all of that kind
    let kinds = ["stack", "matvec", "matmul", "float"];
    let wanted = |word: &str, all: &[&str]| {
        words.iter().any(|w| w == word) || !words.iter().any(|w| all.contains(&w.as_str()))
    };
    let names: Vec<&str> = Backend::available().map(|b| b.name()).collect();
    let backends: Vec<Backend> = Backend::available()
        .filter(|b| wanted(b.name(), &names))
        .collect();
    println!("multiply-add peak, GMAC/s:");
    for (name, _) in PEAKS {
        println!(
            "  {name:<24} {:8.1}",
            (0..5).map(|_| peak(name)).fold(0.0, f64::max)
        );
    }
    if wanted("stack", &kinds) {
        stack(&backends, rounds);
    }
    if wanted("matvec", &kinds) {
        println!("matvec: GB/s best (median), share of the probe in the same round, best (median)");
        for backend in &backends {
            for (shape, total) in [
                ((6912, 2560), STREAM),
                ((2560, 6912), STREAM),
                ((2560, 2560), 1),
                ((640, 2560), 1),
            ] {
                matvec(*backend, shape, total, rounds);
            }
        }
    }
    if wanted("matmul", &kinds) {
        println!(
            "matmul: GMAC/s best (median), share of the peak of its instruction, best (median)"
        );
        for backend in &backends {
            for (shape, tokens) in [
                ((2560, 2560), 512),
                ((6912, 2560), 512),
                ((2560, 6912), 512),
                ((640, 2560), 512),
                ((2560, 2560), 128),
                ((2560, 2560), 16),
                ((2560, 2560), 4),
            ] {
                matmul(*backend, shape, tokens, rounds);
            }
        }
    }
    if wanted("float", &kinds) {
        println!("activations that are not quantised: GMAC/s best (median)");
        for backend in &backends {
            for (scales, tokens) in [(None, 1), (None, 64), (Some(128), 1), (Some(128), 64)] {
                float(*backend, scales, tokens, rounds);
            }
        }
    }
}

fn pack(backend: Backend, (rows, cols): (usize, usize)) -> PackedMatrix {
    let trits = (0..rows * cols)
        .map(|i| (i * i % 7 % 3) as i8 - 1)
        .collect();
    let matrix = TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(0.5)).unwrap();
    backend.pack(&matrix)
}

/// One token through all linear layers of the 2B model from DRAM, the kernels and the probe in turn.
fn stack(backends: &[Backend], rounds: usize) {
    const LAYER: [(usize, usize); 7] = [
        (2560, 2560),
        (640, 2560),
        (640, 2560),
        (2560, 2560),
        (6912, 2560),
        (6912, 2560),
        (2560, 6912),
    ];
    println!(
        "stack of 30 layers: ms best (median), GB/s median, share of the probe, best (median)"
    );
    let shapes = || (0..30).flat_map(|_| LAYER);
    let mut all = Vec::new();
    for backend in backends.iter().filter(|b| b.name() != "scalar") {
        let one = LAYER.map(|shape| pack(*backend, shape));
        let matrices: Vec<PackedMatrix> = (0..30).flat_map(|_| one.clone()).collect();
        let bytes: usize = matrices.iter().map(PackedMatrix::byte_len).sum();
        let x = [2560, 6912].map(|cols| quantize(*backend, 1, cols));
        all.push((backend, matrices, bytes, x, vec![], vec![]));
    }
    let plain = system::words(all.iter().map(|a| a.2).max().unwrap_or(0) / 8);
    let mut y = vec![0.0; 6912];
    for _ in 0..rounds {
        for (_, matrices, bytes, x, times, shares) in &mut all {
            let probe = seconds(|| stream(black_box(&plain[..*bytes / 8])));
            let ours = seconds(|| {
                for (m, (rows, cols)) in matrices.iter().zip(shapes()) {
                    let x = &x[usize::from(cols == 6912)];
                    m.multiply(black_box(x), &mut Output::new(&mut y[..rows], 1, rows));
                }
            });
            times.push(-1e3 * ours);
            shares.push(100.0 * probe / ours);
        }
    }
    for (backend, _, bytes, _, times, shares) in all {
        let ((a, b), (c, d)) = (best_median(times), best_median(shares));
        println!(
            "  {:<12} {:>4} MB: {:6.2} ({:6.2}), {:5.1} GB/s, {c:3.0} % ({d:3.0} %)",
            backend.name(),
            bytes / 1_000_000,
            -a,
            -b,
            bytes as f64 / -b / 1e6,
        );
    }
}

fn float(backend: Backend, group: Option<usize>, tokens: usize, rounds: usize) {
    let shape = (2560, 2560);
    let trits = (0..shape.0 * shape.1)
        .map(|i| (i * i % 7 % 3) as i8 - 1)
        .collect();
    let scales = group.map_or(Scales::PerTensor(0.5), |group| Scales::PerGroup {
        group,
        scales: vec![0.5; shape.0 * (shape.1 / group)],
    });
    let packed = backend.pack(&TernaryMatrix::new(shape.0, shape.1, trits, scales).unwrap());
    let x: Vec<f32> = (0..tokens * shape.1).map(|i| (i % 251) as f32).collect();
    let mut y = vec![0.0; tokens * shape.0];
    let macs = (shape.0 * shape.1 * tokens) as f64 / 1e9;
    let speeds = (0..rounds)
        .map(|_| {
            let out = &mut Output::new(&mut y, tokens, shape.0);
            macs / seconds(|| packed.multiply_float(black_box(&x), out))
        })
        .collect();
    let (a, b) = best_median(speeds);
    println!(
        "  {:<12} {tokens:>4} tokens, {}: {a:6.1} ({b:6.1})",
        backend.name(),
        packed.scales().structure(),
    );
}

fn quantize(backend: Backend, tokens: usize, cols: usize) -> ActivationBatch {
    let x: Vec<f32> = (0..tokens * cols)
        .map(|i| (i % 251) as f32 - 125.0)
        .collect();
    let mut batch = ActivationBatch::default();
    backend.quantize(&x, cols, &mut batch).unwrap();
    batch
}

/// Seconds of this thread's processor: builds beside this run take turns with it.
fn seconds(run: impl FnOnce()) -> f64 {
    let start = system::now();
    run();
    system::now() - start
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_long, c_void};

    unsafe extern "C" {
        fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }

    /// Processor time of this thread in seconds.
    pub fn now() -> f64 {
        const CLOCK_THREAD_CPUTIME_ID: c_int = 3;
        let mut time = [0; 2];
        // SAFETY: a timespec is two longs on every 64-bit Linux, and the pointer is to one.
        let status = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(status, 0);
        time[0] as f64 + time[1] as f64 * 1e-9
    }

    /// Words of ones on huge pages, as packed weights lie.
    pub fn words(count: usize) -> Vec<u64> {
        const MADV_HUGEPAGE: c_int = 14;
        let mut words: Vec<u64> = Vec::with_capacity(count);
        let page = words.as_mut_ptr().map_addr(|a| a.next_multiple_of(4096));
        if count * 8 > 2 << 20 {
            // SAFETY: whole pages inside one live allocation; the advice changes no contents.
            unsafe { madvise(page.cast(), count * 8 - 8192, MADV_HUGEPAGE) };
        }
        words.resize(count, 1);
        words
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn now() -> f64 {
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        START.elapsed().as_secs_f64()
    }

    pub fn words(count: usize) -> Vec<u64> {
        vec![1; count]
    }
}

/// `(best, median)` of speeds.
fn best_median(mut all: Vec<f64>) -> (f64, f64) {
    all.sort_by(f64::total_cmp);
    (all[all.len() - 1], all[all.len() / 2])
}

fn matvec(backend: Backend, shape: (usize, usize), total: usize, rounds: usize) {
    let one = pack(backend, shape);
    let count = total.div_ceil(one.byte_len());
    if backend.name() == "scalar" && count > 1 {
        return;
    }
    let matrices: Vec<PackedMatrix> = (0..count).map(|_| one.clone()).collect();
    let x = quantize(backend, 1, shape.1);
    let mut y = vec![0.0; shape.0];
    let bytes = (count * one.byte_len()) as f64;
    // as much memory as the matrices, read plainly
    let plain = system::words(count * one.byte_len() / 8);
    let repeat = if count == 1 { 200 } else { 1 };
    let (mut speeds, mut probes, mut shares) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let probe = seconds(|| (0..repeat).for_each(|_| stream(black_box(&plain))));
        let ours = seconds(|| {
            for m in (0..repeat).flat_map(|_| &matrices) {
                m.multiply(black_box(&x), &mut Output::new(&mut y, 1, shape.0));
            }
        });
        let scale = repeat as f64 * bytes / 1e9;
        speeds.push(scale / ours);
        probes.push(scale / probe);
        shares.push(100.0 * probe / ours);
    }
    let ((a, b), (c, d), (e, f)) = (
        best_median(speeds),
        best_median(probes),
        best_median(shares),
    );
    let weights = a * 1e9 / one.byte_len() as f64 * (shape.0 * shape.1) as f64 / 1e9;
    println!(
        "  {:<12} {:>4} x {:<4} {:>4} MB: {a:6.1} ({b:6.1}), probe {c:6.1} ({d:6.1}), share {e:3.0} % ({f:3.0} %), {weights:6.1} Gweights/s",
        backend.name(),
        shape.0,
        shape.1,
        (count * one.byte_len()) >> 20,
    );
}

fn matmul(backend: Backend, shape: (usize, usize), tokens: usize, rounds: usize) {
    let packed = pack(backend, shape);
    let x = quantize(backend, tokens, shape.1);
    let mut y = vec![0.0; tokens * shape.0];
    let macs = (shape.0 * shape.1 * tokens) as f64 / 1e9;
    let instruction = PEAKS
        .iter()
        .find(|(_, kernel)| backend.name().starts_with(kernel));
    let (mut speeds, mut shares) = (vec![], vec![]);
    for _ in 0..rounds {
        let peak = || instruction.map_or(f64::NAN, |(name, _)| peak(name));
        let before = peak();
        let speed = macs
            / seconds(|| packed.multiply(black_box(&x), &mut Output::new(&mut y, tokens, shape.0)));
        speeds.push(speed);
        shares.push(200.0 * speed / (before + peak()));
    }
    let ((a, b), (c, d)) = (best_median(speeds), best_median(shares));
    println!(
        "  {:<12} {:>4} x {:<4} {tokens:>4} tokens: {a:6.1} ({b:6.1}), {c:3.0} % ({d:3.0} %)",
        backend.name(),
        shape.0,
        shape.1,
    );
}

#[cfg(not(target_arch = "x86_64"))]
use portable::{PEAKS, peak, stream};
#[cfg(target_arch = "x86_64")]
use x86_64::{PEAKS, peak, stream};

#[cfg(not(target_arch = "x86_64"))]
mod portable {
    pub fn stream(words: &[u64]) {
        std::hint::black_box(words.iter().fold(0, |a, w| a ^ w));
    }

    pub const PEAKS: [(&str, &str); 0] = [];

    pub fn peak(_: &str) -> f64 {
        f64::NAN
    }
}

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// Reads every byte.
    pub fn stream(words: &[u64]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512 F was detected.
            unsafe { stream_avx512(words) }
        } else {
            black_box(words.iter().fold(0, |a, w| a ^ w));
        }
    }

    #[target_feature(enable = "avx512f")]
    fn stream_avx512(words: &[u64]) {
        let mut acc = [_mm512_setzero_si512(); 4];
        for lines in words.as_chunks::<32>().0 {
            for (acc, line) in acc.iter_mut().zip(lines.as_chunks::<8>().0) {
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_add(256).cast());
                // SAFETY: the reference covers 64 bytes; the load is unaligned.
                *acc = _mm512_xor_si512(*acc, unsafe { _mm512_loadu_si512(line.as_ptr().cast()) });
            }
        }
        black_box(acc);
    }

    /// Instructions whose peak is measured, and the start of the names of the kernels that live on them.
    pub const PEAKS: [(&str, &str); 2] = [
        ("vpdpbusd zmm", "avx512"),
        ("vpmaddubsw + vpaddw ymm", "avx2"),
    ];

    /// GMAC/s of an instruction alone, over some 20 ms: sustained, because the clock falls under load.
    pub fn peak(name: &str) -> f64 {
        const STEPS: usize = 8_000_000;
        let (macs, time) = if name == "vpdpbusd zmm" {
            if !is_x86_feature_detected!("avx512vnni") {
                return f64::NAN;
            }
            // SAFETY: AVX-512 VNNI was detected, and implies F.
            (STEPS * 16 * 64, super::seconds(|| unsafe { dpbusd(STEPS) }))
        } else {
            if !is_x86_feature_detected!("avx2") {
                return f64::NAN;
            }
            // SAFETY: AVX2 was detected.
            (
                STEPS * 12 * 32,
                super::seconds(|| unsafe { maddubs(STEPS) }),
            )
        };
        macs as f64 / time / 1e9
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dpbusd(steps: usize) {
        let (u, a) = (
            black_box(_mm512_set1_epi8(1)),
            black_box(_mm512_set1_epi8(2)),
        );
        let mut acc = [_mm512_setzero_si512(); 16];
        for _ in 0..steps {
            for acc in &mut acc {
                *acc = _mm512_dpbusd_epi32(*acc, u, a);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avx2")]
    fn maddubs(steps: usize) {
        let (u, mut a) = (
            black_box(_mm256_set1_epi8(1)),
            black_box(_mm256_set1_epi8(2)),
        );
        let mut acc = [_mm256_setzero_si256(); 12];
        for _ in 0..steps {
            a = black_box(a); // or the product would be hoisted
            for acc in &mut acc {
                *acc = _mm256_add_epi16(*acc, _mm256_maddubs_epi16(u, a));
            }
        }
        black_box(acc);
    }
}
