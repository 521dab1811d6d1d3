//! Every available kernel beside the machine's limits, measured in turn in the same run.
//!
//! `cargo bench -p bitnet-kernels --bench limits -- [ROUNDS] [stack|fixed-stack|matvec|matmul|fixed|regions] [KERNEL]`. The limits: a plain streaming read of the packed
//! bytes, and the peak of the kernel's multiply instruction. A machine
//! shared with others flips between speeds, so a share of a limit says more than a speed.

#![allow(unsafe_code, clippy::print_stdout)]

use bitnet_kernels::{
    ActivationBatch, Backend, MemoryProbe, Output, PackedMatrix, Pool, Scales, TernaryMatrix,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Packed bytes of the DRAM run: far beyond any share of L3 that one gets.
const STREAM: usize = 600 << 20;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rounds = words.iter().find_map(|w| w.parse().ok()).unwrap_or(9);
    // no word of a kind named means all of that kind
    let kinds = [
        "stack",
        "fixed-stack",
        "matvec",
        "matmul",
        "fixed",
        "regions",
    ];
    let wanted = |word: &str, all: &[&str]| {
        words.iter().any(|w| w == word) || !words.iter().any(|w| all.contains(&w.as_str()))
    };
    let names: Vec<&str> = Backend::available().map(|b| b.name()).collect();
    let backends: Vec<Backend> = Backend::available()
        .filter(|b| wanted(b.name(), &names))
        .collect();
    println!("multiply-add peak, GMAC/s:");
    let mut shown = Vec::new();
    for backend in Backend::available() {
        let Some(instruction) = backend.peak_instruction() else {
            continue;
        };
        if !shown.contains(&instruction) {
            shown.push(instruction);
            let best = (0..5).map(|_| peak(backend)).fold(0.0, f64::max);
            println!("  {instruction:<24} {best:8.1}");
        }
    }
    if wanted("stack", &kinds) {
        stack(&backends, rounds, &INT8);
    }
    if wanted("fixed-stack", &kinds) {
        stack(&backends, rounds, &FIXED);
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
    if wanted("regions", &kinds) {
        regions(rounds);
    }
    if wanted("fixed", &kinds) {
        println!("fixed-point activations, scales per 128 columns: GMAC/s best (median)");
        for backend in &backends {
            for (shape, tokens) in [
                ((2048, 2048), 1),
                ((2048, 2048), 4),
                ((2048, 2048), 8),
                ((2048, 2048), 12),
                ((2048, 2048), 16),
                ((2048, 2048), 32),
                ((2048, 2048), 128),
                ((6144, 2048), 256),
                ((2048, 6144), 256),
            ] {
                fixed(*backend, shape, tokens, rounds);
            }
        }
    }
}

/// What the pool costs a token: its parallel regions, with nothing but waiting in and between them.
fn regions(rounds: usize) {
    /// Regions of a token: seven linears of 30 layers.
    const REGIONS: u32 = 210;
    const WORK: Duration = Duration::from_micros(20);
    const GAP: Duration = Duration::from_micros(5);
    fn wait(time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time {
            std::hint::spin_loop();
        }
    }
    println!("{REGIONS} regions of {WORK:?}, {GAP:?} apart: us beyond that, best (median)");
    for threads in [1, 2] {
        let mut pool = Pool::new(threads);
        let spent = (0..rounds.max(21)).map(|_| {
            let spent = seconds(|| {
                for _ in 0..REGIONS {
                    pool.run(threads, &|_| wait(WORK));
                    wait(GAP);
                }
            });
            -1e6 * (spent - ((WORK + GAP) * REGIONS).as_secs_f64())
        });
        let (best, median) = best_median(spent.collect());
        println!("  {threads} threads: {:6.1} ({:6.1})", -best, -median);
    }
}

fn pack(backend: Backend, shape: (usize, usize)) -> PackedMatrix {
    pack_scaled(backend, shape, Scales::PerTensor(0.5))
}

/// With scales of 16 bits per 128 columns.
fn pack_grouped(backend: Backend, shape: (usize, usize)) -> PackedMatrix {
    let scales = (0..shape.0 * shape.1 / 128).map(|i| 0.5 + (i % 8) as f32);
    let scales = scales.collect();
    pack_scaled(backend, shape, Scales::PerGroup { group: 128, scales })
}

fn pack_scaled(backend: Backend, (rows, cols): (usize, usize), scales: Scales) -> PackedMatrix {
    let trits = (0..rows * cols)
        .map(|i| (i * i % 7 % 3) as i8 - 1)
        .collect();
    backend.pack(&TernaryMatrix::new(rows, cols, trits, scales).unwrap())
}

/// Matrices that read the same input: the rows of each, and the columns.
type Group = (&'static [usize], usize);

/// The linears of a model.
struct Stack {
    layers: usize,
    layer: [Group; 4],
    head: Option<(usize, usize)>,
    pack: fn(Backend, (usize, usize)) -> PackedMatrix,
    activations: fn(Backend, usize, usize) -> ActivationBatch,
}

/// A model of 2 billion weights.
static INT8: Stack = Stack {
    layers: 30,
    layer: [
        (&[2560, 640, 640], 2560),
        (&[2560], 2560),
        (&[6912, 6912], 2560),
        (&[2560], 6912),
    ],
    head: None,
    pack,
    activations: quantize,
};

/// A model of 1.7 billion weights, whose activations are not quantized, and its head.
static FIXED: Stack = Stack {
    layers: 28,
    layer: [
        (&[2048, 1024, 1024], 2048),
        (&[2048], 2048),
        (&[6144, 6144], 2048),
        (&[2048], 6144),
    ],
    head: Some((151_680, 2048)),
    pack: pack_grouped,
    activations: fix,
};

/// Products of one token with matrices that read the same input, of the first layer's columns or the last's: whole, or in
/// pieces of rows for threads to take.
fn multiply(
    pool: &mut Pool,
    group: &[PackedMatrix],
    x: &[ActivationBatch; 2],
    y: &mut [Vec<f32>; 3],
) {
    let total: usize = group.iter().map(PackedMatrix::rows).sum();
    let share = match pool.threads() {
        1 => total,
        threads => total.div_ceil(4 * threads),
    };
    let mut items = Vec::new();
    for (matrix, y) in group.iter().zip(y) {
        let rows = matrix.rows();
        let share = share.next_multiple_of(matrix.tile_rows());
        let mut rest = Output::new(&mut y[..rows], 1, rows);
        while rest.rows().len() > share {
            let at = rest.rows().start + share;
            let (piece, others) = rest.split_at(at);
            items.push((matrix, piece));
            rest = others;
        }
        items.push((matrix, rest));
    }
    pool.run_each(items, |(matrix, mut out)| {
        let last = matrix.cols() != x[0].cols();
        matrix.multiply(&x[usize::from(last)], &mut out);
    });
}

/// One token through all linears of a model from DRAM, on one thread and on two, the kernels and
/// the probe in turn.
fn stack(backends: &[Backend], rounds: usize, shape: &Stack) {
    const THREADS: [usize; 2] = [1, 2];
    println!(
        "stack of {} layers: ms best (median), GB/s median, share of the probe, best (median)",
        shape.layers
    );
    let mut all = Vec::new();
    for backend in backends.iter().filter(|b| b.name() != "scalar") {
        let one = shape.layer.map(|(rows, cols)| {
            let packed = rows
                .iter()
                .map(|rows| (shape.pack)(*backend, (*rows, cols)));
            packed.collect::<Vec<_>>()
        });
        let layers = (0..shape.layers).flat_map(|_| one.clone());
        let head = shape.head.map(|head| vec![(shape.pack)(*backend, head)]);
        let groups: Vec<Vec<PackedMatrix>> = layers.chain(head).collect();
        let bytes: usize = groups.iter().flatten().map(PackedMatrix::byte_len).sum();
        let x = [0, 3].map(|group| (shape.activations)(*backend, 1, shape.layer[group].1));
        let figures = THREADS.map(|_| (vec![], vec![]));
        all.push((backend, groups, bytes, x, figures));
    }
    let plain = MemoryProbe::new(all.iter().map(|a| a.2).max().unwrap_or(0));
    let mut pools = THREADS.map(Pool::new);
    let most = shape.head.map_or(0, |head| head.0).max(8192);
    let mut y = [(); 3].map(|()| vec![0.0; most]);
    for _ in 0..rounds {
        for (_, groups, bytes, x, figures) in &mut all {
            for (pool, (times, shares)) in pools.iter_mut().zip(figures) {
                let threads = pool.threads();
                let probe = match threads {
                    1 => seconds(|| plain.read(*bytes)),
                    _ => *bytes as f64 / plain.gb_s(threads) / 1e9,
                };
                let run = || {
                    for group in groups.iter() {
                        multiply(pool, group, black_box(x), &mut y);
                    }
                };
                let ours = match threads {
                    1 => seconds(run),
                    _ => wall_seconds(run),
                };
                times.push(-1e3 * ours);
                shares.push(100.0 * probe / ours);
            }
        }
    }
    for (backend, _, bytes, _, figures) in all {
        for (threads, (times, shares)) in THREADS.iter().zip(figures) {
            let ((a, b), (c, d)) = (best_median(times), best_median(shares));
            println!(
                "  {:<12} {threads} threads, {:>4} MB: {:6.2} ({:6.2}), {:5.1} GB/s, {c:3.0} % ({d:3.0} %)",
                backend.name(),
                bytes / 1_000_000,
                -a,
                -b,
                bytes as f64 / -b / 1e6,
            );
        }
    }
}

fn fixed(backend: Backend, shape: (usize, usize), tokens: usize, rounds: usize) {
    let packed = pack_grouped(backend, shape);
    let x = fix(backend, tokens, shape.1);
    let mut y = vec![0.0; tokens * shape.0];
    let macs = (shape.0 * shape.1 * tokens) as f64 / 1e9;
    let speeds = (0..rounds)
        .map(|_| {
            let out = &mut Output::new(&mut y, tokens, shape.0);
            macs / seconds(|| packed.multiply(black_box(&x), out))
        })
        .collect();
    let (a, b) = best_median(speeds);
    println!(
        "  {:<12} {:>4} x {:<4} {tokens:>4} tokens: {a:6.1} ({b:6.1})",
        backend.name(),
        shape.0,
        shape.1,
    );
}

fn fix(backend: Backend, tokens: usize, cols: usize) -> ActivationBatch {
    let x: Vec<f32> = (0..tokens * cols)
        .map(|i| (i % 251) as f32 - 125.5)
        .collect();
    let mut batch = ActivationBatch::default();
    backend.fix(&x, cols, &mut batch).unwrap();
    batch
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

/// Seconds that pass: what threads do together takes.
fn wall_seconds(run: impl FnOnce()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

#[cfg(target_os = "linux")]
mod system {
    use std::ffi::{c_int, c_long};

    unsafe extern "C" {
        fn clock_gettime(clock: c_int, time: *mut [c_long; 2]) -> c_int;
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
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn now() -> f64 {
        static START: std::sync::LazyLock<std::time::Instant> =
            std::sync::LazyLock::new(std::time::Instant::now);
        START.elapsed().as_secs_f64()
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
    let plain = MemoryProbe::new(count * one.byte_len());
    let repeat = if count == 1 { 200 } else { 1 };
    let (mut speeds, mut probes, mut shares) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let probe = seconds(|| (0..repeat).for_each(|_| plain.read(usize::MAX)));
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

/// GMAC/s of the kernel's multiply instruction alone, on this thread.
fn peak(backend: Backend) -> f64 {
    let mut macs = None;
    let seconds = seconds(|| macs = backend.run_peak());
    macs.map_or(f64::NAN, |macs| macs as f64 / seconds / 1e9)
}

fn matmul(backend: Backend, shape: (usize, usize), tokens: usize, rounds: usize) {
    let packed = pack(backend, shape);
    let x = quantize(backend, tokens, shape.1);
    let mut y = vec![0.0; tokens * shape.0];
    let macs = (shape.0 * shape.1 * tokens) as f64 / 1e9;
    let (mut speeds, mut shares) = (vec![], vec![]);
    for _ in 0..rounds {
        let before = peak(backend);
        let speed = macs
            / seconds(|| packed.multiply(black_box(&x), &mut Output::new(&mut y, tokens, shape.0)));
        speeds.push(speed);
        shares.push(200.0 * speed / (before + peak(backend)));
    }
    let ((a, b), (c, d)) = (best_median(speeds), best_median(shares));
    println!(
        "  {:<12} {:>4} x {:<4} {tokens:>4} tokens: {a:6.1} ({b:6.1}), {c:3.0} % ({d:3.0} %)",
        backend.name(),
        shape.0,
        shape.1,
    );
}
