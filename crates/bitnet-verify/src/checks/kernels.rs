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
                let sums = (&expected[..], &found[..]);
                if let Some(what) = other_sum(backend.name(), token, matrix.rows(), sums) {
                    self.findings.different(&place, what);
                    break;
                }
            }
            let mut products = vec![0.0; TOKENS * matrix.rows()];
            packed.multiply(
                &batch,
                &mut Output::new(&mut products, TOKENS, matrix.rows()),
            );
            let scalar = scalar.get_or_insert_with(|| products.clone());
            let pair = (&scalar[..], &products[..]);
            if let Some(what) = other_product(backend.name(), matrix.rows(), pair) {
                self.findings.different(&place, what);
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

/// The first sum of a token that is another one; `(groups, rows)`.
fn other_sum(
    kernel: &str,
    token: usize,
    rows: usize,
    (expected, found): (&[i32], &[i32]),
) -> Option<String> {
    let at = (0..expected.len()).find(|&i| found.get(i) != expected.get(i))?;
    let (group, row) = (at / rows, at % rows);
    Some(format!(
        "{kernel}: token {token}, row {row}, group {group}: expected {}, found {:?}",
        expected[at],
        found.get(at)
    ))
}

/// The first product of a batch that has other bits; `(tokens, rows)`.
fn other_product(kernel: &str, rows: usize, (expected, found): (&[f32], &[f32])) -> Option<String> {
    let mut pairs = expected.iter().zip(found).enumerate();
    let (at, (e, f)) = pairs.find(|(_, (e, f))| e.to_bits() != f.to_bits())?;
    let (token, row) = (at / rows, at % rows);
    Some(format!(
        "{kernel}: batch, token {token}, row {row}: expected {e:e}, found {f:e}"
    ))
}

/// `(TOKENS, cols)` activations that quantize to themselves: whole numbers whose largest magnitude
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_sum_is_found() {
        let (rows, cols) = (3, 32);
        let trits = (0..rows * cols).map(|i| (i % 3) as i8 - 1).collect();
        let matrix = TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(0.5)).unwrap();
        let x = activations(&matrix, 1);
        let right = dots(&matrix, &x[..cols]);
        assert_eq!(other_sum("k", 0, rows, (&right, &right)), None);
        let mut wrong = right.clone();
        wrong[1] += 1;
        let text = other_sum("k", 4, rows, (&right, &wrong)).expect("found");
        assert!(text.starts_with("k: token 4, row 1, group 0: "), "{text}");
        assert!(
            other_sum("k", 0, rows, (&right, &right[..2])).is_some(),
            "one is missing"
        );
        let products = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let mut other = products;
        other[4] = f32::from_bits(4.0f32.to_bits() + 1);
        assert_eq!(other_product("k", rows, (&products, &products)), None);
        let text = other_product("k", rows, (&products, &other)).expect("found");
        assert!(text.starts_with("k: batch, token 1, row 1: "), "{text}");
        other = products;
        other[0] = -0.0;
        assert!(
            other_product("k", rows, (&products, &other)).is_some(),
            "other bits"
        );
    }
}
