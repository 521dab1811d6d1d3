//! One suite over every available kernel: the same bits as `scalar`, and `scalar` the same as the
//! rules written out here once more.
//!
//! Invariant: nothing here knows a kernel by name, so a new row of [`KERNELS`] is tested at once.

mod layouts;

use crate::lanes::{LANES, Lanes, add_lanes};
use crate::{
    ActivationBatch, Backend, DeltaHead, DenseType, Inputs, KERNELS, KernelError, MatrixType,
    Output, PackedMatrix, every, is_quick,
};
use bitnet_ternary::{
    ActivationError, BlockType, GROUP_SIZES, Scales, TernaryMatrix, bf16_to_f32, f16_to_f32,
    f32_to_bf16, f32_to_f16, quantize_row,
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

fn fixed(backend: Backend, x: &[f32], cols: usize) -> ActivationBatch {
    let mut batch = ActivationBatch::default();
    backend.fix(x, cols, &mut batch).unwrap();
    batch
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
    for rows in rows.into_iter().step_by(every(2)) {
        for cols in cols.into_iter().step_by(every(4)) {
            if !is_quick(rows * cols * 4) {
                continue;
            }
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
    let cols = [4, 16, 64, 255, 256, 257, 512, 1024, 4100, 30_000];
    for cols in cols.into_iter().filter(|c| is_quick(c * 400)) {
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
#[cfg_attr(miri, ignore = "the scalar kernel has no panels")]
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
    for (rows, cols, tokens) in [(2600usize, 36, 5), (1090, 64, 37), (40, 100, 150)] {
        let rows = rows.div_ceil(every(100));
        if !is_quick(rows * cols * tokens) {
            continue;
        }
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            let values: Vec<i8> = (0..tokens * cols).map(|_| noise.next() as i8).collect();
            check(&m, &values);
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "a wide matrix")]
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
    ]
    .into_iter()
    .filter(|(rows, cols)| is_quick(5 * rows * cols))
    {
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
        // under Miri a small matrix, with as many tokens as share a block
        let (rows, cols, most) = match (cfg!(miri), cols) {
            (false, _) => (rows, cols, most),
            (true, 336) => (5, 32, 18),
            (true, _) => continue,
        };
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
            let rows = if cfg!(miri) { 3 } else { 20 };
            let m = matrix(rows, cols, noise.trits(rows * cols), Scales::PerTensor(0.5));
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
    let (rows, cols) = if cfg!(miri) { (80, 32) } else { (200, 256) };
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
                let fixed = fixed(backend, x, cols);
                let whole_fixed = multiply(&packed, &fixed);
                for cut in (0..=rows)
                    .step_by(packed.tile_rows())
                    .step_by(if tokens == 1 { 1 } else { 3 })
                    .step_by(every(40))
                {
                    let (mut y, mut z) =
                        (vec![f32::NAN; tokens * rows], vec![f32::NAN; tokens * rows]);
                    let (mut low, mut high) = Output::new(&mut y, tokens, rows).split_at(cut);
                    packed.multiply(&quantized, &mut high);
                    packed.multiply(&quantized, &mut low);
                    let (mut low, mut high) = Output::new(&mut z, tokens, rows).split_at(cut);
                    packed.multiply(&fixed, &mut high);
                    packed.multiply(&fixed, &mut low);
                    assert_bits(&y, &whole, (backend, tokens, cut));
                    assert_bits(&z, &whole_fixed, (backend, tokens, cut));
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

/// The rule of fixed-point activations as written: the integers and steps of one token.
fn integers(x: &[f32]) -> (Vec<i64>, Vec<f32>) {
    let (mut integers, mut steps) = (Vec::new(), Vec::new());
    for group in x.chunks(128) {
        let max = group.iter().fold(0f32, |m, x| m.max(x.abs()));
        let step = (max / 8_355_711.0).max(2f32.powi(-126));
        let round = |x: &f32| f64::from(x / step).round_ties_even() as i64;
        integers.extend(group.iter().map(|x| round(x).clamp(-8_355_711, 8_355_711)));
        steps.push(step);
    }
    (integers, steps)
}

/// The rule as written, one token: `(rows,)`.
fn fixed_by_the_rules(m: &TernaryMatrix, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (m.rows(), m.cols());
    let (integers, steps) = integers(x);
    let width = columns_per_group(m).min(128);
    let row = |r: usize| {
        let mut sum = 0f32;
        for start in (0..cols).step_by(width) {
            let dot: i64 = (start..cols.min(start + width))
                .map(|k| i64::from(m.row(r)[k]) * integers[k])
                .sum();
            let (dot, step) = (dot as f32, steps[start / 128]);
            sum = match m.scales() {
                Scales::PerGroup { .. } => (dot * step).mul_add(m.scales().at(r, start, cols), sum),
                _ => dot.mul_add(step, sum),
            };
        }
        match m.scales() {
            Scales::PerGroup { .. } => sum,
            scales => sum * scales.at(r, 0, cols),
        }
    };
    (0..rows).map(row).collect()
}

#[test]
fn fixed_point_activations_follow_the_rules() {
    let mut noise = Noise(6);
    for (rows, cols, most) in [
        (1, 1, 20),
        (5, 17, 20),
        (33, 64, 20),
        (70, 768, 33),
        (31, 1000, 20),
        (34, 20, 20),
        (33, 321, 20),
        (40, 5120, 17),
        (65, 33, 20),
        (2100, 96, 40),
        (32, 160, 65),
    ] {
        if !is_quick(rows * cols * 4) {
            continue;
        }
        for scales in structures(&mut noise, rows, cols) {
            let m = matrix(rows, cols, noise.trits(rows * cols), scales);
            // groups of columns of very different size
            let x: Vec<f32> = (0..most * cols)
                .map(|i| noise.float() * [1.0, 1e-6, 300.0, 0.0, 1e-33][i / 100 % 5])
                .collect();
            let want: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| fixed_by_the_rules(&m, x))
                .collect();
            for backend in Backend::available() {
                // the layout for int8 serves, too
                for inputs in [Inputs::Float, Inputs::Int8] {
                    let packed = backend.pack_for(inputs, &m);
                    assert_eq!(packed.unpack(), m);
                    for tokens in [1, 2, 7, 14, 16, 17, most].into_iter().step_by(every(3)) {
                        let what = (backend, rows, cols, m.scales().structure(), tokens);
                        let got = multiply(&packed, &fixed(backend, &x[..tokens * cols], cols));
                        assert_bits(&got, &want[..tokens * rows], what);
                    }
                }
            }
        }
    }
}

#[test]
fn fixed_point_extremes_do_not_overflow() {
    let mut noise = Noise(14);
    for cols in [1, 16, 127, 128, 129, 256, 640] {
        if !is_quick(cols * 400) {
            continue;
        }
        for trit in [1i8, -1, 0] {
            let magnitudes = [1.0, f32::MAX, f32::MIN_POSITIVE, 1e-31, 1e-40, 1e-45, 0.0];
            for magnitude in magnitudes.into_iter().step_by(every(3)) {
                for scales in structures(&mut noise, 33, cols) {
                    // products of the largest numbers are none
                    let scales = match scales {
                        Scales::PerTensor(_) => Scales::PerTensor(1e-3),
                        Scales::PerRow(s) => Scales::PerRow(vec![1e-3; s.len()]),
                        Scales::PerGroup { group, scales } => Scales::PerGroup {
                            group,
                            scales: vec![1e-3; scales.len()],
                        },
                    };
                    let m = matrix(33, cols, vec![trit; 33 * cols], scales);
                    let signs = (0..20 * cols).map(|i| match i % 7 == 6 && i / cols % 2 == 1 {
                        true => -magnitude,
                        false => magnitude,
                    });
                    let x: Vec<f32> = signs.collect();
                    let want: Vec<f32> = x
                        .chunks_exact(cols)
                        .flat_map(|x| fixed_by_the_rules(&m, x))
                        .collect();
                    for backend in Backend::available() {
                        let got = multiply(&backend.pack(&m), &fixed(backend, &x, cols));
                        let what = (backend, cols, trit, magnitude, m.scales().structure());
                        assert_bits(&got, &want, what);
                    }
                }
            }
        }
    }
}

#[test]
fn a_reused_batch_changes_its_form() {
    let mut noise = Noise(15);
    for backend in Backend::available() {
        let mut batch = ActivationBatch::default();
        for (cols, tokens) in [(100, 20), (35, 3), (35, 18), (64, 1), (33, 20), (100, 13)] {
            let rows = if cfg!(miri) { 3 } else { 20 };
            let m = matrix(rows, cols, noise.trits(rows * cols), Scales::PerTensor(0.5));
            let packed = backend.pack(&m);
            let x = noise.floats(tokens * cols);
            backend.quantize(&x, cols, &mut batch).unwrap();
            let int8 = multiply(&packed, &batch);
            backend.fix(&x, cols, &mut batch).unwrap();
            assert_eq!((batch.tokens(), batch.cols()), (tokens, cols));
            let want: Vec<f32> = x
                .chunks_exact(cols)
                .flat_map(|x| fixed_by_the_rules(&m, x))
                .collect();
            let got = multiply(&packed, &batch);
            assert_bits(&got, &want, (backend, cols, tokens));
            assert_ne!(got, int8);
        }
    }
}

/// Against f64, relative to the norm of the products: what the rule of `formats/numerics.md` costs.
#[test]
#[cfg_attr(miri, ignore = "a large matrix")]
fn fixed_point_products_are_as_exact_as_floats() {
    let mut noise = Noise(16);
    let (rows, cols) = (64, 6144);
    let (group, scales) = (128, noise.scales(rows * cols / 128));
    let m = matrix(
        rows,
        cols,
        noise.trits(rows * cols),
        Scales::PerGroup { group, scales },
    );
    let normal = |noise: &mut Noise| (0..6).map(|_| noise.float()).sum::<f32>();
    let inputs: [(&str, f64, Vec<f32>); 3] = [
        (
            "normal",
            1.5e-7,
            (0..cols).map(|_| normal(&mut noise)).collect(),
        ),
        (
            "cubed",
            5e-7,
            (0..cols).map(|_| normal(&mut noise).powi(9)).collect(),
        ),
        (
            "outliers",
            5e-7,
            (0..cols)
                .map(|k| normal(&mut noise) * if k % 500 == 7 { 2000.0 } else { 1.0 })
                .collect(),
        ),
    ];
    for (name, most, x) in inputs {
        let got = multiply(&Backend::best().pack(&m), &fixed(Backend::best(), &x, cols));
        let (mut error, mut norm) = (0.0, 0.0);
        for (r, got) in got.iter().enumerate() {
            let exact: f64 = (0..cols)
                .map(|k| {
                    let scale = f64::from(m.scales().at(r, k, cols));
                    f64::from(m.row(r)[k]) * f64::from(x[k]) * scale
                })
                .sum();
            error += (f64::from(*got) - exact).powi(2);
            norm += exact.powi(2);
        }
        let relative = (error / norm).sqrt();
        assert!(relative <= most, "{name}: {relative:.2e}");
    }
}

#[test]
fn quantisation_equals_the_definition() {
    let mut noise = Noise(7);
    for cols in [1, 2, 15, 16, 17, 63, 64, 65, 333, 2560] {
        if !is_quick(cols * 20) {
            continue;
        }
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
                let got = backend.fix(&x, 40, &mut ActivationBatch::default());
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
    for n in LENGTHS.into_iter().filter(|n| is_quick(n * 60)) {
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
    for n in LENGTHS.into_iter().filter(|n| is_quick(n * 60)) {
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
        check_elementwise(
            xy,
            5e-7,
            |b, x, y| b.sigmoid_mul(x, y),
            |x, y| x / (1.0 + (-y).exp()),
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
fn a_convolution_runs_over_the_taps_in_order() {
    let mut noise = Noise(21);
    for (channels, taps) in [(1, 1), (5, 4), (16, 4), (47, 3), (256, 7)] {
        let (window, kernel) = (noise.floats(taps * channels), noise.floats(taps * channels));
        let want: Vec<f32> = (0..channels)
            .map(|c| {
                let products =
                    (0..taps).map(|t| (kernel[t * channels + c], window[t * channels + c]));
                products.fold(0.0, |sum, (w, x)| w.mul_add(x, sum))
            })
            .collect();
        let mut silu = want;
        let ones = vec![1.0; channels];
        Backend::by_name("scalar")
            .unwrap()
            .silu_mul(&mut silu, &ones);
        for backend in Backend::available() {
            let mut out = vec![f32::NAN; channels];
            backend.conv_silu(&window, &kernel, &mut out);
            assert_bits(&out, &silu, (backend, channels, taps));
        }
    }
}

#[test]
fn the_delta_rule_is_the_recurrence_as_written_whatever_came_together() {
    let mut noise = Noise(22);
    for (keys, values, tokens) in [
        (1, 1, 1),
        (3, 5, 2),
        (16, 16, 9),
        (32, 80, 3),
        (128, 128, 5),
    ] {
        if !is_quick(keys * values * tokens) {
            continue;
        }
        // one head behind another one, with something between them
        let (width, gate_width) = (2 * keys + values + 3, 5);
        let rows = noise.floats(tokens * width);
        let gates: Vec<f32> = noise
            .floats(tokens * gate_width)
            .iter()
            .map(|g| g.abs())
            .collect();
        let (places, gate_places) = ([1, keys + 1, 2 * keys + 2], [3, 1]);
        let begin = noise.floats(keys * values);
        let mut state = begin.clone();
        let mut want = Vec::new();
        for (row, gates) in rows.chunks(width).zip(gates.chunks(gate_width)) {
            let [q, k, v] = places.map(|place| &row[place..]);
            let (decay, beta) = (gates[3], gates[1]);
            let mut d = vec![0.0f32; values];
            for j in 0..values {
                let seen = (0..keys).fold(0.0f32, |sum, i| {
                    (state[i * values + j] * decay).mul_add(k[i], sum)
                });
                d[j] = (v[j] - seen) * beta;
            }
            for i in 0..keys {
                for j in 0..values {
                    let old = state[i * values + j] * decay;
                    state[i * values + j] = k[i].mul_add(d[j], old);
                }
            }
            for j in 0..values {
                want.push(
                    (0..keys).fold(0.0f32, |sum, i| state[i * values + j].mul_add(q[i], sum)),
                );
            }
        }
        for backend in Backend::available() {
            for together in [1, 2, tokens] {
                let (mut now, mut out) = (begin.clone(), vec![f32::NAN; tokens * values]);
                let parts = rows
                    .chunks(together * width)
                    .zip(gates.chunks(together * gate_width));
                for ((rows, gates), out) in parts.zip(out.chunks_mut(together * values)) {
                    let head = DeltaHead {
                        rows,
                        width,
                        places,
                        gates,
                        gate_width,
                        gate_places,
                        key_dim: keys,
                        value_dim: values,
                    };
                    backend.delta_rule(&head, &mut now, out);
                }
                assert_bits(&out, &want, (backend, keys, values, together));
                assert_bits(&now, &state, (backend, keys, values, together));
            }
        }
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
fn the_walsh_hadamard_transform_has_one_order_on_every_kernel() {
    let mut noise = Noise(12);
    for block in (0..=13).map(|n| 1usize << n).filter(|b| is_quick(b * 16)) {
        for blocks in [1, 3] {
            let x = noise.floats(blocks * block);
            let signs: Vec<f32> = x
                .iter()
                .map(|_| (noise.next() % 2) as f32 * 2.0 - 1.0)
                .collect();
            let ones = vec![1.0; x.len()];
            // the definition: strides 1, 2, 4, ..., then the factor
            let transformed = |mut x: Vec<f32>| {
                for x in x.chunks_exact_mut(block) {
                    let mut stride = 1;
                    while stride < block {
                        for i in (0..block).filter(|i| i & stride == 0) {
                            let (a, b) = (x[i], x[i + stride]);
                            (x[i], x[i + stride]) = (a + b, a - b);
                        }
                        stride *= 2;
                    }
                    let factor = (1.0 / (block as f64).sqrt()) as f32;
                    x.iter_mut().for_each(|x| *x *= factor);
                }
                x
            };
            let times = |x: &[f32], signs: &[f32]| -> Vec<f32> {
                x.iter().zip(signs).map(|(x, s)| x * s).collect()
            };
            for own in [&signs, &ones] {
                let forward = transformed(times(&x, own));
                let inverse = times(&transformed(x.clone()), own);
                for backend in Backend::available() {
                    let given = if own == &ones { &[][..] } else { own };
                    let mut got = x.clone();
                    backend.hadamard(&mut got, given, block);
                    assert_bits(&got, &forward, (backend, block, blocks));
                    let mut got = x.clone();
                    backend.hadamard_inverse(&mut got, given, block);
                    assert_bits(&got, &inverse, (backend, block, blocks));
                    // there and back
                    backend.hadamard(&mut got, given, block);
                    for (got, x) in got.iter().zip(&x) {
                        assert!((got - x).abs() < 2e-6, "{backend:?} {block}");
                    }
                }
                // some elements against the matrix, in f64
                for i in (0..x.len()).step_by(97) {
                    let start = i / block * block;
                    let sum: f64 = (start..start + block)
                        .map(|j| {
                            let parity = ((i - start) & (j - start)).count_ones() % 2;
                            let sign = if parity == 0 { 1.0 } else { -1.0 };
                            sign * f64::from(x[j] * own[j])
                        })
                        .sum();
                    let want = sum / (block as f64).sqrt();
                    assert!((f64::from(forward[i]) - want).abs() < 2e-6, "{block}: {i}");
                }
            }
        }
    }
}

/// Compares the product of every kernel, in two parts, with the canonical dots of the numbers that `rows` mean.
fn assert_canonical_rows(dtype: MatrixType, rows: &[u8], numbers: &[f32], cols: usize, x: &[f32]) {
    let (count, tokens) = (numbers.len() / cols, x.len() / cols);
    let want: Vec<f32> = x
        .chunks_exact(cols)
        .flat_map(|x| {
            numbers
                .chunks_exact(cols)
                .map(|w| canonical(w.iter().copied().zip(x.iter().copied())))
        })
        .collect();
    for backend in Backend::available() {
        let mut y = vec![f32::NAN; tokens * count];
        let (mut low, mut high) = Output::new(&mut y, tokens, count).split_at(count / 3);
        backend.dense_rows(dtype, rows, cols, x, &mut low);
        backend.dense_rows(dtype, rows, cols, x, &mut high);
        assert_bits(&y, &want, (backend, dtype, count, cols, tokens));
    }
}

#[test]
fn dense_rows_are_canonical_dots_at_any_alignment() {
    let mut noise = Noise(11);
    for (rows, cols) in [(1, 1), (3, 5), (8, 16), (17, 33), (9, 100), (20, 256)] {
        if !is_quick(rows * cols * 10) {
            continue;
        }
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
                assert_canonical_rows(dtype.into(), &bytes[1..], &numbers, cols, &x);
            }
        }
    }
}

#[test]
fn rows_of_blocks_are_canonical_dots_at_any_alignment() {
    let mut noise = Noise(12);
    let mut bytes = |count: usize| -> Vec<u8> {
        let floats = noise.floats(count).into_iter();
        floats.map(|x| (x.to_bits() >> 9) as u8).collect()
    };
    for (rows, blocks) in [(1, 1), (3, 2), (4, 1), (9, 10), (20, 3)] {
        if !is_quick(rows * blocks * 4000) {
            continue;
        }
        for block_type in BlockType::ALL {
            let dtype = MatrixType::from(block_type);
            let cols = blocks * dtype.block();
            let row_bytes = blocks * dtype.block_bytes();
            let mut matrix = bytes(1 + rows * row_bytes); // starts at an odd byte
            let mut numbers = Vec::new();
            for block in matrix[1..].chunks_exact_mut(dtype.block_bytes()) {
                for upper in block_type.exponents() {
                    let factor = f32_to_f16(f32::from(block[*upper]) / 4096.0 - 0.03);
                    block[upper - 1..=*upper].copy_from_slice(&factor.to_le_bytes());
                }
                let mut wide = vec![0.0; dtype.block()];
                block_type.widen(block, &mut wide);
                assert!(wide.iter().any(|x| *x != wide[0]), "{dtype:?}");
                numbers.extend(wide);
            }
            for tokens in [1, 2, 3, 5, 8] {
                let x: Vec<f32> = bytes(tokens * cols)
                    .into_iter()
                    .map(|b| f32::from(b) / 37.0 - 3.0)
                    .collect();
                assert_canonical_rows(dtype, &matrix[1..], &numbers, cols, &x);
            }
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "asks the CPU in assembly")]
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
