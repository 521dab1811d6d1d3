//! One suite over every available kernel: the same bits as `scalar`, and `scalar` the same as the
//! rules written out here once more.
//!
//! Invariant: nothing here knows a kernel by name, so a new row of [`KERNELS`] is tested at once.

use crate::lanes::{LANES, Lanes, add_lanes};
use crate::{ActivationBatch, Backend, DenseType, KERNELS, KernelError, Output, PackedMatrix};
use bitnet_ternary::{
    ActivationError, GROUP_SIZES, Scales, TernaryMatrix, bf16_to_f32, f16_to_f32, f32_to_bf16,
    f32_to_f16, quantize_row,
};

/// Numbers that look like noise and are the same everywhere.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// In -1..1.
    fn float(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn trits(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| (self.next() % 3) as i8 - 1).collect()
    }

    fn scales(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float().abs() + 0.01).collect()
    }
}

/// Every structure of scales that `cols` allows.
fn structures(noise: &mut Noise, rows: usize, cols: usize) -> Vec<Scales> {
    let mut all = vec![
        Scales::PerTensor(noise.float().abs()),
        Scales::PerRow(noise.scales(rows)),
    ];
    for group in GROUP_SIZES.into_iter().filter(|g| cols.is_multiple_of(*g)) {
        let scales = noise.scales(rows * (cols / group));
        all.push(Scales::PerGroup { group, scales });
    }
    all
}

fn matrix(rows: usize, cols: usize, trits: Vec<i8>, scales: Scales) -> TernaryMatrix {
    TernaryMatrix::new(rows, cols, trits, scales).unwrap()
}

/// A batch whose int8 values are exactly `values`, -128 included, with scales that differ.
fn batch(backend: Backend, values: &[i8], cols: usize) -> ActivationBatch {
    let mut batch = ActivationBatch::default();
    refill(&mut batch, backend, values, cols);
    batch
}

fn refill(batch: &mut ActivationBatch, backend: Backend, values: &[i8], cols: usize) {
    let copy = |token: usize, out: &mut [i8]| {
        out.copy_from_slice(&values[token * cols..(token + 1) * cols]);
        let sum = out.iter().map(|&v| i32::from(v)).sum();
        Ok::<_, ()>((3.7 + out[0] as f32 / 256.0, sum))
    };
    let shape = (values.len() / cols, cols);
    batch.fill(backend, shape, copy).unwrap();
}

fn multiply(packed: &PackedMatrix, x: &ActivationBatch) -> Vec<f32> {
    let mut y = vec![f32::NAN; x.tokens() * packed.rows()];
    packed.multiply(x, &mut Output::new(&mut y, x.tokens(), packed.rows()));
    y
}

fn multiply_float(packed: &PackedMatrix, x: &[f32]) -> Vec<f32> {
    let tokens = x.len() / packed.cols();
    let mut y = vec![f32::NAN; tokens * packed.rows()];
    packed.multiply_float(x, &mut Output::new(&mut y, tokens, packed.rows()));
    y
}

#[track_caller]
fn assert_bits(got: &[f32], want: &[f32], what: impl std::fmt::Debug) {
    assert_eq!(got.len(), want.len(), "{what:?}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert_eq!(
            g.to_bits(),
            w.to_bits(),
            "{what:?}: element {i}: {g} for {w}"
        );
    }
}

/// Rule 3 as written.
fn canonical(terms: impl Iterator<Item = (f32, f32)>) -> f32 {
    let mut lanes: Lanes = [0.0; LANES];
    for (k, (a, b)) in terms.enumerate() {
        lanes[k % LANES] = a.mul_add(b, lanes[k % LANES]);
    }
    add_lanes(lanes)
}

fn columns_per_group(m: &TernaryMatrix) -> usize {
    match m.scales() {
        Scales::PerGroup { group, .. } => *group,
        _ => m.cols(),
    }
}

/// The contract and rule 2 as written, one token: `(dots (groups, rows), y (rows,))`.
fn by_the_rules(m: &TernaryMatrix, a: &[i8], s: f32) -> (Vec<i32>, Vec<f32>) {
    let (rows, cols, group) = (m.rows(), m.cols(), columns_per_group(m));
    let dot = |g: usize, r: usize| -> i32 {
        (g * group..(g + 1) * group)
            .map(|k| i32::from(m.row(r)[k]) * i32::from(a[k]))
            .sum()
    };
    let groups = cols / group;
    let dots: Vec<i32> = (0..groups * rows)
        .map(|i| dot(i / rows, i % rows))
        .collect();
    let y = (0..rows)
        .map(|r| match m.scales() {
            Scales::PerGroup { .. } => {
                let terms = (0..groups)
                    .map(|g| (dots[g * rows + r] as f32, m.scales().at(r, g * group, cols)));
                canonical(terms) * (1.0 / s)
            }
            scales => dots[r] as f32 * (scales.at(r, 0, cols) / s),
        })
        .collect();
    (dots, y)
}

/// Everything a backend computes from this matrix and these int8 tokens.
#[track_caller]
fn check(m: &TernaryMatrix, values: &[i8]) {
    let cols = m.cols();
    let scalar = Backend::by_name("scalar").unwrap();
    let reference = batch(scalar, values, cols);
    let want: Vec<_> = values
        .chunks_exact(cols)
        .enumerate()
        .map(|(t, a)| by_the_rules(m, a, reference.scale(t)))
        .collect();
    let want_y: Vec<f32> = want.iter().flat_map(|(_, y)| y.iter().copied()).collect();
    for backend in Backend::available() {
        let what = (backend, m.rows(), cols, m.scales().structure(), want.len());
        let packed = backend.pack(m);
        assert_eq!(&packed.unpack(), m, "{what:?}");
        let x = batch(backend, values, cols);
        for (t, (dots, _)) in want.iter().enumerate() {
            assert_eq!(&packed.dots(&x, t), dots, "{what:?}: token {t}");
        }
        assert_bits(&multiply(&packed, &x), &want_y, what);
    }
}

#[test]
fn shapes_around_every_tile_edge() {
    let mut noise = Noise(1);
    let rows = [1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65];
    let cols = [
        1, 3, 4, 5, 15, 16, 17, 19, 20, 21, 31, 32, 33, 39, 40, 41, 63, 64, 65, 255, 256, 257, 319,
        320, 321, 499, 500, 501, 511, 512, 513, 1025,
    ];
    for rows in rows {
        for cols in cols {
            let scales = Scales::PerTensor(0.37);
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            for tokens in [1, 2, 5] {
                let values: Vec<i8> = (0..tokens * cols).map(|_| noise.next() as i8).collect();
                check(&m, &values);
            }
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    for cols in [4, 16, 64, 255, 256, 257, 512, 1024, 4100, 30_000] {
        for trit in [1i8, -1, 0] {
            for a in [-128i8, -127, 127, 0] {
                let rows = 33;
                let m = matrix(rows, cols, vec![trit; rows * cols], Scales::PerTensor(1.0));
                check(&m, &vec![a; cols]);
                check(&m, &vec![a; 3 * cols]);
            }
        }
    }
}

#[test]
fn extremes_of_whole_panels_do_not_overflow() {
    let mut noise = Noise(12);
    for cols in [32, 224, 252, 256, 512, 2560] {
        for trit in [1i8, -1] {
            let m = |scales| matrix(34, cols, vec![trit; 34 * cols], scales);
            for scales in structures(&mut noise, 34, cols) {
                for (a, tokens) in [(-128i8, 16), (127, 17), (-128, 24)] {
                    check(&m(scales.clone()), &vec![a; tokens * cols]);
                }
            }
        }
    }
}

#[test]
fn more_rows_and_tokens_than_share_a_block() {
    let mut noise = Noise(13);
    for (rows, cols, tokens) in [(2600, 36, 5), (1090, 64, 37), (40, 100, 150)] {
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            let values: Vec<i8> = (0..tokens * cols).map(|_| noise.next() as i8).collect();
            check(&m, &values);
        }
    }
}

#[test]
fn the_widest_matrix_is_exact() {
    let cols = bitnet_ternary::MAX_COLS - 1;
    let m = matrix(2, cols, vec![1; 2 * cols], Scales::PerTensor(1.0));
    check(&m, &vec![-127; 2 * cols]);
    check(&m, &vec![127; cols]);
}

#[test]
fn every_structure_of_scales() {
    let mut noise = Noise(2);
    for (rows, cols) in [
        (1, 256),
        (40, 32),
        (70, 64),
        (33, 768),
        (64, 5120),
        (31, 96),
    ] {
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            for tokens in [1, 3, 13] {
                let values: Vec<i8> = (0..tokens * cols).map(|_| noise.next() as i8).collect();
                check(&m, &values);
            }
        }
    }
}

#[test]
fn a_batch_is_its_tokens_bit_for_bit() {
    let mut noise = Noise(3);
    for (rows, cols, most) in [
        (67, 336, 40),
        (33, 6912, 40),
        (33, 40_000, 27),
        (2 * 33, 1024, 260),
    ] {
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            let values: Vec<i8> = (0..most * cols).map(|_| noise.next() as i8).collect();
            for backend in Backend::available() {
                let packed = backend.pack(&m);
                let one_by_one: Vec<f32> = values
                    .chunks_exact(cols)
                    .flat_map(|a| multiply(&packed, &batch(backend, a, cols)))
                    .collect();
                let mut x = ActivationBatch::default();
                let counts: Vec<usize> = if most > 40 {
                    vec![most, 251, 64]
                } else {
                    (1..=most).collect()
                };
                for tokens in counts.into_iter().filter(|t| cols < 1000 || t % 5 < 3) {
                    refill(&mut x, backend, &values[..tokens * cols], cols);
                    assert_bits(
                        &multiply(&packed, &x),
                        &one_by_one[..tokens * rows],
                        (backend, tokens),
                    );
                }
            }
        }
    }
}

#[test]
fn a_reused_batch_forgets_what_it_held() {
    let mut noise = Noise(4);
    for backend in Backend::available() {
        let mut x = ActivationBatch::default();
        for (cols, tokens) in [(100, 20), (35, 3), (35, 14), (64, 1), (33, 2), (100, 13)] {
            let m = matrix(20, cols, noise.trits(20 * cols), Scales::PerTensor(0.5));
            let values: Vec<i8> = (0..tokens * cols).map(|_| noise.next() as i8).collect();
            refill(&mut x, backend, &values, cols);
            assert_eq!((x.tokens(), x.cols()), (tokens, cols));
            let want: Vec<f32> = values
                .chunks_exact(cols)
                .enumerate()
                .flat_map(|(t, a)| by_the_rules(&m, a, x.scale(t)).1)
                .collect();
            assert_bits(
                &multiply(&backend.pack(&m), &x),
                &want,
                (backend, cols, tokens),
            );
        }
    }
}

#[test]
fn parts_of_the_rows_give_the_whole() {
    let mut noise = Noise(5);
    let (rows, cols) = (200, 256);
    for scales in structures(&mut noise, rows, cols) {
        let m = matrix(rows, cols, noise.trits(rows * cols), scales);
        let x = noise.floats(14 * cols);
        for backend in Backend::available() {
            let packed = backend.pack(&m);
            for tokens in [1, 14] {
                let x = &x[..tokens * cols];
                let mut quantized = ActivationBatch::default();
                backend.quantize(x, cols, &mut quantized).unwrap();
                let whole = multiply(&packed, &quantized);
                let whole_float = multiply_float(&packed, x);
                for cut in (0..=rows)
                    .step_by(packed.tile_rows())
                    .step_by(if tokens == 1 { 1 } else { 3 })
                {
                    let (mut y, mut z) =
                        (vec![f32::NAN; tokens * rows], vec![f32::NAN; tokens * rows]);
                    let (mut low, mut high) = Output::new(&mut y, tokens, rows).split_at(cut);
                    packed.multiply(&quantized, &mut high);
                    packed.multiply(&quantized, &mut low);
                    let (mut low, mut high) = Output::new(&mut z, tokens, rows).split_at(cut);
                    packed.multiply_float(x, &mut high);
                    packed.multiply_float(x, &mut low);
                    assert_bits(&y, &whole, (backend, tokens, cut));
                    assert_bits(&z, &whole_float, (backend, tokens, cut));
                }
                // the end of a part may lie inside a tile
                let mut y = vec![f32::NAN; tokens * rows];
                let (mut low, _) = Output::new(&mut y, tokens, rows).split_at(77);
                packed.multiply(&quantized, &mut low);
                for (y, whole) in y.chunks_exact(rows).zip(whole.chunks_exact(rows)) {
                    assert_bits(&y[..77], &whole[..77], backend);
                    assert!(y[77..].iter().all(|y| y.is_nan()));
                }
            }
        }
    }
}

#[test]
fn float_activations_follow_the_rules() {
    let mut noise = Noise(6);
    for (rows, cols) in [
        (1, 1),
        (5, 17),
        (33, 64),
        (70, 768),
        (31, 1000),
        (34, 20),
        (33, 321),
        (40, 5120),
        (65, 33),
    ] {
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            let group = columns_per_group(&m);
            for tokens in [1, 2, 7, 14] {
                let x = noise.floats(tokens * cols);
                let mut want = Vec::new();
                for x in x.chunks_exact(cols) {
                    for r in 0..rows {
                        let sum = |g: usize| {
                            canonical(
                                (g * group..(g + 1) * group)
                                    .map(|k| (f32::from(m.row(r)[k]), x[k])),
                            )
                        };
                        want.push(match m.scales() {
                            Scales::PerGroup { .. } => canonical(
                                (0..cols / group)
                                    .map(|g| (sum(g), m.scales().at(r, g * group, cols))),
                            ),
                            scales => sum(0) * scales.at(r, 0, cols),
                        });
                    }
                }
                for backend in Backend::available() {
                    let what = (backend, rows, cols, m.scales().structure(), tokens);
                    assert_bits(&multiply_float(&backend.pack(&m), &x), &want, what);
                }
            }
        }
    }
}

#[test]
fn quantisation_equals_the_definition() {
    let mut noise = Noise(7);
    for cols in [1, 2, 15, 16, 17, 63, 64, 65, 333, 2560] {
        for magnitude in [0.0, 1e-38, 1e-6, 1.0, 777.0, 3e38] {
            let x: Vec<f32> = noise
                .floats(3 * cols)
                .iter()
                .map(|x| x * magnitude)
                .collect();
            for backend in Backend::available() {
                let mut got = ActivationBatch::default();
                backend.quantize(&x, cols, &mut got).unwrap();
                assert_eq!((got.tokens(), got.cols()), (3, cols));
                let mut made = ActivationBatch::default();
                let make = |token: usize, row: &mut [f32]| {
                    row.copy_from_slice(&x[token * cols..(token + 1) * cols]);
                };
                backend.quantize_made((3, cols), &mut made, make).unwrap();
                for t in 0..3 {
                    assert_eq!(made.values(t), got.values(t), "{backend:?}");
                    assert_eq!((made.scale(t), made.sum(t)), (got.scale(t), got.sum(t)));
                }
                for (t, x) in x.chunks_exact(cols).enumerate() {
                    let mut values = vec![0; cols];
                    let (scale, sum) = quantize_row(x, &mut values).unwrap();
                    assert_eq!(got.values(t), values, "{backend:?}");
                    assert_eq!((got.scale(t), got.sum(t)), (scale, sum), "{backend:?}");
                }
            }
        }
    }
}

#[test]
fn quantisation_refuses_what_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for index in [0, 16, 39] {
            let mut x = vec![1.0; 3 * 40];
            x[2 * 40 + index] = bad;
            for backend in Backend::available() {
                let got = backend.quantize(&x, 40, &mut ActivationBatch::default());
                assert_eq!(got, Err((2, ActivationError { index })), "{backend:?}");
            }
        }
    }
}

const LENGTHS: [usize; 16] = [
    1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 127, 128, 129, 2560,
];

#[test]
fn reductions_follow_rule_3_on_every_kernel() {
    let mut noise = Noise(8);
    for n in LENGTHS {
        let (a, b) = (noise.floats(n), noise.floats(n));
        let dot = canonical(a.iter().copied().zip(b.iter().copied()));
        let squares = canonical(a.iter().copied().zip(a.iter().copied()));
        let sum = canonical(a.iter().copied().zip(std::iter::repeat(1.0)));
        let max = a.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        for backend in Backend::available() {
            let got = [
                backend.dot(&a, &b),
                backend.sum_squares(&a),
                backend.sum(&a),
                backend.max(&a),
            ];
            assert_bits(&got, &[dot, squares, sum, max], (backend, n));
        }
    }
    for backend in Backend::available() {
        assert_eq!(backend.max(&[]), f32::NEG_INFINITY);
        assert_eq!(backend.max(&[-3.0, f32::NEG_INFINITY]), -3.0);
        assert_eq!(backend.sum(&[]).to_bits(), 0);
        assert_eq!(backend.dot(&[], &[]).to_bits(), 0);
    }
}

/// Runs an operation `x = op(x, y)` everywhere: close to `want` in f64, and the same bits.
#[track_caller]
fn check_elementwise(
    (x, y): (&[f32], &[f32]),
    tolerance: f64,
    run: impl Fn(Backend, &mut [f32], &[f32]),
    want: impl Fn(f64, f64) -> f64,
) {
    let run = |backend| {
        let mut x = x.to_vec();
        run(backend, &mut x, y);
        x
    };
    let first = run(Backend::by_name("scalar").unwrap());
    for ((got, x), y) in first.iter().zip(x).zip(y) {
        let want = want(f64::from(*x), f64::from(*y));
        let error = (f64::from(*got) - want).abs();
        assert!(
            error <= tolerance * want.abs(),
            "at {x}, {y}: {got} for {want}"
        );
    }
    for backend in Backend::available() {
        assert_bits(&run(backend), &first, backend);
    }
}

#[test]
fn elementwise_operations_agree_and_mean_what_they_say() {
    let mut noise = Noise(9);
    let gelu = |x: f64| {
        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        x / (1.0 + (-2.0 * z).exp())
    };
    let factor = 0.3f32;
    for n in LENGTHS {
        let x: Vec<f32> = noise.floats(n).iter().map(|x| x * 9.0).collect();
        let y: Vec<f32> = noise.floats(n).iter().map(|x| x + 1.5).collect();
        let xy = (&x[..], &y[..]);
        let f = f64::from(factor);
        check_elementwise(xy, 1e-5, |b, x, y| b.axpy(factor, y, x), |x, y| f * y + x);
        check_elementwise(xy, 1e-7, |b, x, _| b.scale(factor, x), |x, _| f * x);
        check_elementwise(xy, 1e-5, |b, x, y| b.add(y, x), |x, y| x + y);
        check_elementwise(xy, 2e-7, |b, x, _| b.exp(x), |x, _| x.exp());
        let silu = |x: f64| x / (1.0 + (-x).exp());
        check_elementwise(xy, 5e-7, |b, x, y| b.silu_mul(x, y), |x, y| silu(x) * y);
        check_elementwise(
            xy,
            3e-7,
            |b, x, y| b.relu2_mul(x, y),
            |x, y| x.max(0.0).powi(2) * y,
        );
        check_elementwise(
            xy,
            5e-5,
            |b, x, y| b.gelu_tanh_mul(x, y),
            |x, y| gelu(x) * y,
        );
        let mean = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / n as f64;
        let norm = |b: Backend, x: &mut [f32], y: &[f32]| {
            let input = x.to_vec();
            b.rms_norm(&input, y, 1e-5, x);
        };
        check_elementwise(xy, 1e-6, norm, |x, y| y * x / (mean + 1e-5).sqrt());
    }
}

#[test]
fn rotation_rounds_every_product_and_sum() {
    let mut noise = Noise(10);
    for half in [1, 7, 16, 33, 64, 128] {
        let (x, cos, sin) = (
            noise.floats(2 * half),
            noise.floats(half),
            noise.floats(half),
        );
        let want: Vec<f32> = (0..2 * half)
            .map(|i| {
                let j = i % half;
                let (low, high) = (x[j], x[j + half]);
                if i < half {
                    low * cos[j] - high * sin[j]
                } else {
                    high * cos[j] + low * sin[j]
                }
            })
            .collect();
        for backend in Backend::available() {
            let mut got = x.clone();
            backend.rotate_halves(&mut got, &cos, &sin);
            assert_bits(&got, &want, (backend, half));
        }
    }
}

#[test]
fn dense_rows_are_canonical_dots_at_any_alignment() {
    let mut noise = Noise(11);
    for (rows, cols) in [(1, 1), (3, 5), (8, 16), (17, 33), (9, 100), (20, 256)] {
        for dtype in [DenseType::F32, DenseType::F16, DenseType::Bf16] {
            let (mut bytes, mut numbers) = (vec![0xffu8], Vec::new()); // the matrix starts at an odd byte
            for x in noise.floats(rows * cols) {
                match dtype {
                    DenseType::F32 => {
                        bytes.extend(x.to_le_bytes());
                        numbers.push(x);
                    }
                    DenseType::F16 => {
                        bytes.extend(f32_to_f16(x).to_le_bytes());
                        numbers.push(f16_to_f32(f32_to_f16(x)));
                    }
                    DenseType::Bf16 => {
                        bytes.extend(f32_to_bf16(x).to_le_bytes());
                        numbers.push(bf16_to_f32(f32_to_bf16(x)));
                    }
                }
            }
            for tokens in [1, 2, 3, 5, 8] {
                let x = noise.floats(tokens * cols);
                let want: Vec<f32> = x
                    .chunks_exact(cols)
                    .flat_map(|x| {
                        numbers
                            .chunks_exact(cols)
                            .map(|w| canonical(w.iter().copied().zip(x.iter().copied())))
                    })
                    .collect();
                for backend in Backend::available() {
                    let mut y = vec![f32::NAN; tokens * rows];
                    let (mut low, mut high) = Output::new(&mut y, tokens, rows).split_at(rows / 3);
                    backend.dense_rows(dtype, &bytes[1..], cols, &x, &mut low);
                    backend.dense_rows(dtype, &bytes[1..], cols, &x, &mut high);
                    assert_bits(&y, &want, (backend, dtype, rows, cols, tokens));
                }
            }
        }
    }
}

#[test]
fn names_are_unique_and_unknown_ones_are_errors() {
    for (i, kernel) in KERNELS.iter().enumerate() {
        assert!(KERNELS[..i].iter().all(|k| k.name != kernel.name));
        assert_eq!((kernel.missing)().is_empty(), (kernel.is_available)());
        match Backend::by_name(kernel.name) {
            Ok(backend) => {
                assert!((kernel.is_available)());
                assert_eq!(backend.name(), kernel.name);
            }
            Err(error) => {
                assert!(!(kernel.is_available)());
                let (name, requires) = (kernel.name, kernel.requires);
                assert_eq!(
                    error,
                    KernelError::Unavailable {
                        name,
                        requires,
                        missing: (kernel.missing)()
                    }
                );
            }
        }
    }
    assert_eq!(Backend::best(), Backend::available().next().unwrap());
    assert_eq!(Backend::available().last().unwrap().name(), "scalar");
    let error = Backend::by_name("sse9").unwrap_err();
    assert!(matches!(&error, KernelError::Unknown { name, .. } if name == "sse9"));
    assert!(
        error
            .to_string()
            .starts_with("unknown kernel `sse9`, known are "),
        "{error}"
    );
    let error = KernelError::Unavailable {
        name: "abacus",
        requires: "beads, wire",
        missing: vec!["beads"],
    };
    assert_eq!(
        error.to_string(),
        "kernel `abacus` needs beads, wire; this machine lacks beads"
    );
}

#[test]
#[should_panic(expected = "prepared for another backend")]
fn activations_of_another_backend_are_refused() {
    let m = matrix(1, 1, vec![1], Scales::PerTensor(1.0));
    let packed = Backend::by_name("scalar").unwrap().pack(&m);
    multiply(&packed, &ActivationBatch::default());
}
