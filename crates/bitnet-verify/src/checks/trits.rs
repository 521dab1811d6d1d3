//! Whether every trit of every linear is the source's.
//!
//! Invariant: exact; there is no tolerance here.

use super::check::{Check, Pair, Running, Subject};
use super::report::Report;
use super::side::{self, Side};
use crate::diagnose::fault::Fault;
use crate::diagnose::naming::of_trits;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::{LayerSlot, Slot, TensorDigest};

pub(super) const CHECK: Check = Check {
    name: "trits",
    what: "every trit of every linear",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::<Trits>::default() as Box<dyn Running>)
    },
};

#[derive(Default)]
struct Trits {
    findings: Findings,
    faults: Vec<Fault>,
    tensors: usize,
    trits: usize,
    /// Trits that differ and trits, of each linear that was compared.
    compared: Vec<(usize, usize)>,
}

impl Running for Trits {
    fn wants_ternary(&self) -> bool {
        true
    }

    fn ternary(&mut self, pair: &Pair<'_>, subject: &Subject<'_>) {
        let place = pair.slot.to_string();
        self.tensors += 1;
        // this check speaks for all others about what cannot be read
        if let Err(error) = pair.artifact {
            self.findings.unreadable(&place, error);
        }
        if let Some(Err(error)) = pair.source {
            self.findings.unreadable(&place, error);
        }
        let Some((source, artifact)) = pair.both() else {
            return;
        };
        self.trits += source.trits().len();
        let (expected, found) = (
            [source.rows(), source.cols()],
            [artifact.rows(), artifact.cols()],
        );
        if expected != found {
            self.findings.different(
                place,
                format!("expected shape {expected:?}, found {found:?}"),
            );
            return;
        }
        if source.trits() == artifact.trits() {
            self.compared.push((0, source.trits().len()));
            return;
        }
        let pairs = || source.trits().iter().zip(artifact.trits());
        let count = pairs().filter(|(s, a)| s != a).count();
        self.compared.push((count, source.trits().len()));
        if let Some((i, (s, a))) = pairs().enumerate().find(|(_, (s, a))| s != a) {
            let (row, column) = (i / source.cols(), i % source.cols());
            let text = format!(
                "row {row}, column {column}: expected {s}, found {a}; {count} of {} differ",
                source.trits().len()
            );
            self.findings.different(place, text);
        }
        let head_dim = rotated(pair.slot, subject);
        let (kind, what) = of_trits(source, artifact, head_dim);
        self.faults
            .push(Fault::at(kind, CHECK.name, pair.slot, what));
    }

    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        if let Some(sides) = subject.sides().filter(|_| subject.models().is_none()) {
            let note = |differs| report.unlike.linear(usize::from(differs), 1);
            let verdict = by_hash(CHECK.name, sides, differ_by_hash, note);
            report.checks.push(verdict);
            return;
        }
        for (differing, trits) in &self.compared {
            report.unlike.linear(*differing, *trits);
        }
        self.faults
            .into_iter()
            .for_each(|fault| report.fault(fault));
        let compared = format!("{} trits of {} linears", self.trits, self.tensors);
        report
            .checks
            .push(self.findings.into_verdict(CHECK.name, compared));
    }
}

/// The width of a head, for linears whose rows are rotated in pairs.
pub(super) fn rotated(slot: Slot, subject: &Subject<'_>) -> Option<usize> {
    let is_rotated = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    is_rotated.then_some(subject.artifact.config().head_dim)
}

/// How the trits of two linears differ; their shape counts.
pub(super) fn differ_by_hash(expected: &TensorDigest, found: &TensorDigest) -> Option<String> {
    let (e, f) = ((expected.rows, expected.cols), (found.rows, found.cols));
    if e != f {
        return Some(format!("expected shape {e:?}, found {f:?}"));
    }
    let (e, f) = (&expected.trits_sha256, &found.trits_sha256);
    (e != f).then(|| format!("expected trits of sha256 {e}, found {f}"))
}

/// One comparison of what hashes say of the linears that both sides have, each told to `note`; those that only one
/// side has are the business of `structure`.
pub(super) fn by_hash(
    name: &'static str,
    sides: (Side<'_>, Side<'_>),
    differ: fn(&TensorDigest, &TensorDigest) -> Option<String>,
    mut note: impl FnMut(bool),
) -> Verdict {
    let mut findings = Findings::default();
    let pairs = side::pairs(sides, Side::linears).both;
    let compared = format!("hashes of {} linears", pairs.len());
    for (tensor, expected, found) in pairs {
        let differs = match (expected, found) {
            (Ok(expected), Ok(found)) => differ(&expected, &found),
            (Err(error), _) | (_, Err(error)) => {
                findings.unreadable(tensor, &error);
                continue;
            }
        };
        note(differs.is_some());
        if let Some(what) = differs {
            findings.different(tensor, what);
        }
    }
    findings.into_verdict(name, compared)
}
