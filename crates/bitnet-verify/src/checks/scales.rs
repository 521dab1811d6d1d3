//! Whether every scale of every linear has the source's bits.
//!
//! Invariant: compared in normal form (`formats/certificate.md`): repeated scales count as one, and
//! a scale that multiplies no non-zero trit does not vote.

use super::check::{Check, Pair, Running, Subject};
use super::report::Report;
use super::trits::by_hash;
use crate::diagnose::fault::Fault;
use crate::diagnose::naming::of_scales;
use crate::verdict::Findings;
use bitnet_checkpoint::{TensorDigest, scale_normal_form};
use bitnet_ternary::Scales;

pub(super) const CHECK: Check = Check {
    name: "scales",
    what: "every bit of every scale, in normal form",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::<Compared>::default() as Box<dyn Running>)
    },
};

#[derive(Default)]
struct Compared {
    findings: Findings,
    faults: Vec<Fault>,
    tensors: usize,
    scales: usize,
}

impl Running for Compared {
    fn wants_ternary(&self) -> bool {
        true
    }

    fn ternary(&mut self, pair: &Pair<'_>, _: &Subject<'_>) {
        self.tensors += 1;
        let place = pair.slot.to_string();
        let Some((source, artifact)) = pair.both() else {
            self.findings.not_compared(place);
            return;
        };
        if [source.rows(), source.cols()] != [artifact.rows(), artifact.cols()] {
            self.findings.not_compared(place);
            return;
        }
        let (s, a) = (scale_normal_form(source), scale_normal_form(artifact));
        self.scales += s.as_slice().len();
        if let Some(text) = first_divergence(&s, &a, source.rows(), source.cols()) {
            self.findings.different(place, text);
            let pairs = values(&s, &a, source.rows(), source.cols());
            if let Some((kind, what)) = of_scales(pairs) {
                self.faults
                    .push(Fault::at(kind, CHECK.name, pair.slot, what));
            }
        }
    }

    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        if let Some(sides) = subject.sides().filter(|_| subject.models().is_none()) {
            let verdict = by_hash(CHECK.name, sides, differ_by_hash, |_| ());
            report.checks.push(verdict);
            return;
        }
        self.faults
            .into_iter()
            .for_each(|fault| report.fault(fault));
        let compared = format!("{} scales of {} linears", self.scales, self.tensors);
        report
            .checks
            .push(self.findings.into_verdict(CHECK.name, compared));
    }
}

/// How the scales of two linears differ.
pub(super) fn differ_by_hash(expected: &TensorDigest, found: &TensorDigest) -> Option<String> {
    let says = |d: &TensorDigest| match d.scale_bits {
        Some(bits) => format!("one scale {:e} (0x{bits:08x})", f32::from_bits(bits)),
        None => format!(
            "scales per {} of sha256 {}",
            d.scale_structure, d.scales_sha256
        ),
    };
    let key = |d: &TensorDigest| {
        let (structure, sha256) = (d.scale_structure.clone(), d.scales_sha256.clone());
        (structure, sha256, d.scale_bits)
    };
    (key(expected) != key(found))
        .then(|| format!("expected {}, found {}", says(expected), says(found)))
}

/// Expected and found of every place that either says something of: scales that multiply no trit do not take part.
fn values<'a>(
    expected: &'a Scales,
    found: &'a Scales,
    rows: usize,
    cols: usize,
) -> impl Iterator<Item = (f32, f32)> + 'a {
    // the coarsest steps that no scale of either side changes within
    let step = |scales: &Scales| match scales {
        Scales::PerTensor(_) => (rows, cols),
        Scales::PerRow(_) => (1, cols),
        Scales::PerGroup { group, .. } => (1, *group),
    };
    let ((e_rows, e_cols), (f_rows, f_cols)) = (step(expected), step(found));
    let columns = (0..cols).step_by(e_cols.min(f_cols).max(1));
    let places = (0..rows).step_by(e_rows.min(f_rows).max(1));
    let places = places.flat_map(move |row| columns.clone().map(move |col| (row, col)));
    let pairs =
        places.map(move |(row, col)| (expected.at(row, col, cols), found.at(row, col, cols)));
    pairs.filter(|(e, f)| *e != 0.0 && *f != 0.0)
}

/// Where and how two normal forms differ.
fn first_divergence(expected: &Scales, found: &Scales, rows: usize, cols: usize) -> Option<String> {
    let show = |s: f32| format!("{s:e} (0x{:08x})", s.to_bits());
    if expected.structure() == found.structure() {
        let pairs = || expected.as_slice().iter().zip(found.as_slice());
        let count = pairs().filter(|(s, a)| s.to_bits() != a.to_bits()).count();
        let (at, (s, a)) = pairs()
            .enumerate()
            .find(|(_, (s, a))| s.to_bits() != a.to_bits())?;
        let per_row = expected.as_slice().len() / rows.max(1);
        let place = match expected {
            Scales::PerTensor(_) => String::new(),
            Scales::PerRow(_) => format!("row {at}: "),
            Scales::PerGroup { group, .. } => {
                format!(
                    "row {}, columns from {}: ",
                    at / per_row.max(1),
                    at % per_row.max(1) * group
                )
            }
        };
        let mut text = format!("{place}expected {}, found {}", show(*s), show(*a));
        if *s != 0.0 && (a * s - 1.0).abs() < 1e-3 {
            text.push_str(", its inverse");
        }
        if expected.as_slice().len() > 1 {
            text.push_str(&format!(
                "; {count} of {} differ",
                expected.as_slice().len()
            ));
        }
        return Some(text);
    }
    // other structure: the first place where the values themselves differ
    let at = (0..rows * cols).find(|i| {
        expected.at(i / cols, i % cols, cols).to_bits()
            != found.at(i / cols, i % cols, cols).to_bits()
    });
    let (e, f) = (expected.structure(), found.structure());
    let place = at.map_or(String::new(), |i| {
        let (row, col) = (i / cols, i % cols);
        let (s, a) = (expected.at(row, col, cols), found.at(row, col, cols));
        format!(
            "; row {row}, column {col}: expected {}, found {}",
            show(s),
            show(a)
        )
    });
    Some(format!("expected scales per {e}, found per {f}{place}"))
}
