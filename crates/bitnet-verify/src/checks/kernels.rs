//! Whether every kernel of this machine computes the exact integers on this model's matrices.
//!
//! Invariant: compared with a plain loop over trits and activations, with `==`; the scaled products
//! of a batch are compared with the scalar kernel's, bit for bit.

use super::check::{Check, Pair, Running, Subject};
use super::report::Report;
use crate::verdict::{Findings, Verdict};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{ActivationBatch, Backend, Output};
use bitnet_ternary::{Scales, TernaryMatrix};

/// Tokens of the batch: more than one panel of no kernel, but more than one.
const TOKENS: usize = 5;

pub(super) const CHECK: Check = Check {
    name: "kernels",
    what: "every kernel against a plain loop on each matrix (exact integers); with --logits",
    start: |subject| {
        subject
            .logits
            .then(|| Box::<Kernels>::default() as Box<dyn Running>)
    },
};

#[derive(Default)]
struct Kernels {
    findings: Findings,
    tensors: usize,
}

impl Running for Kernels {
    fn wants_ternary(&self) -> bool {
        true
    }

    fn ternary(&mut self, pair: &Pair<'_>, _: &Subject<'_>) {
        let place = pair.slot.to_string();
        let matrix = match pair.artifact {
            Ok(matrix) => matrix,
            Err(error) => return self.findings.unreadable(place, error),
        };
        self.tensors += 1;
        let x = activations(matrix, self.tensors as u64);
        let expected: Vec<Vec<i32>> = x
            .chunks_exact(matrix.cols())
            .map(|x| dots(matrix, x))
            .collect();
        let mut scalar: Option<Vec<f32>> = None;
        let mut backends: Vec<Backend> = Backend::available().collect();
        backends.reverse(); // scalar comes last in the table, and is the reference of the batch
        for backend in backends {
            let mut batch = ActivationBatch::default();
            if let Err((token, error)) = backend.quantize(&x, matrix.cols(), &mut batch) {
                let text = format!("{}: token {token}: {error}", backend.name());
                self.findings
                    .unreadable(&place, &FormatError::new(ErrorCode::NonFinite, text));
                continue;
            }
            let packed = backend.pack(matrix);
            for (token, expected) in expected.iter().enumerate() {
                let found = packed.dots(&batch, token);
                if let Some(at) = (0..expected.len()).find(|&i| found.get(i) != Some(&expected[i]))
                {
                    let (group, row) = (at / matrix.rows(), at % matrix.rows());
                    let text = format!(
                        "{}: token {token}, row {row}, group {group}: expected {}, found {:?}",
                        backend.name(),
                        expected[at],
                        found.get(at)
                    );
                    self.findings.different(&place, text);
                    break;
                }
            }
            let mut products = vec![0.0; TOKENS * matrix.rows()];
            packed.multiply(
                &batch,
                &mut Output::new(&mut products, TOKENS, matrix.rows()),
            );
            let scalar = scalar.get_or_insert_with(|| products.clone());
            if let Some(at) =
                (0..products.len()).find(|&i| products[i].to_bits() != scalar[i].to_bits())
            {
                let (token, row) = (at / matrix.rows(), at % matrix.rows());
                let (name, expected, found) = (backend.name(), scalar[at], products[at]);
                let text = format!(
                    "{name}: batch, token {token}, row {row}: expected {expected:e}, found {found:e}"
                );
                self.findings.different(&place, text);
            }
        }
    }

    fn finish(self: Box<Self>, _: &Subject<'_>, report: &mut Report) {
        let names: Vec<&str> = Backend::available().map(|b| b.name()).collect();
        if self.tensors == 0 && self.findings.is_empty() {
            report
                .checks
                .push(Verdict::skipped(CHECK.name, "no linears"));
            return;
        }
        let compared = format!(
            "{} on {} linears, {TOKENS} tokens each",
            names.join(", "),
            self.tensors
        );
        report
            .checks
            .push(self.findings.into_verdict(CHECK.name, compared));
    }
}

/// `(TOKENS, cols)` activations that quantise to themselves: whole numbers whose largest magnitude
/// is 127. The first tokens agree with the signs of the first and last row, which makes their dots
/// as large as they get; the others are random.
fn activations(matrix: &TernaryMatrix, seed: u64) -> Vec<f32> {
    let (rows, cols) = (matrix.rows(), matrix.cols());
    let mut x = Vec::with_capacity(TOKENS * cols);
    let signed = |row: usize, sign: f32| -> Vec<f32> {
        let trits = matrix.row(row).iter();
        trits
            .map(|&t| {
                if t == 0 {
                    127.0
                } else {
                    sign * 127.0 * f32::from(t)
                }
            })
            .collect()
    };
    x.extend(signed(0, 1.0));
    x.extend(signed(rows - 1, -1.0));
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while x.len() < TOKENS * cols {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let first = x.len().is_multiple_of(cols);
        x.push(if first {
            -127.0
        } else {
            (state >> 32) as f32 % 255.0 - 127.0
        });
    }
    // whole numbers only: the remainder of a float above 2^24 is exact but the float is not
    x.iter_mut()
        .for_each(|v| *v = v.round().clamp(-127.0, 127.0));
    x
}

/// `(groups, rows)` by the definition.
fn dots(matrix: &TernaryMatrix, x: &[f32]) -> Vec<i32> {
    let group = match matrix.scales() {
        Scales::PerGroup { group, .. } => *group,
        Scales::PerTensor(_) | Scales::PerRow(_) => matrix.cols(),
    };
    let x: Vec<i32> = x.iter().map(|&v| v as i32).collect();
    let (rows, groups) = (matrix.rows(), matrix.cols() / group);
    let mut dots = vec![0; groups * rows];
    for row in 0..rows {
        for (g, (trits, x)) in matrix
            .row(row)
            .chunks_exact(group)
            .zip(x.chunks_exact(group))
            .enumerate()
        {
            dots[g * rows + row] = trits.iter().zip(x).map(|(&t, &x)| i32::from(t) * x).sum();
        }
    }
    dots
}
