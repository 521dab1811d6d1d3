//! Whether every trit of every linear is the source's.
//!
//! Invariant: exact; there is no tolerance here.

use super::{Check, Pair, Running, Subject};
use crate::diagnose::fault::{Fault, of_trits};
use crate::report::{Findings, Report};
use bitnet_checkpoint::{LayerSlot, Slot};

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

    fn finish(self: Box<Self>, _: &Subject<'_>, report: &mut Report) {
        for (differing, trits) in &self.compared {
            report.unlike.linear(*differing, *trits);
        }
        self.faults
            .into_iter()
            .for_each(|fault| report.fault(fault));
        let compared = format!("{} trits of {} linears", self.trits, self.tensors);
        report
            .checks
            .push(self.findings.into_result(CHECK.name, compared));
    }
}

/// The width of a head, for linears whose rows are rotated in pairs.
pub(super) fn rotated(slot: Slot, subject: &Subject<'_>) -> Option<usize> {
    let is_rotated = matches!(slot, Slot::Layer(_, LayerSlot::QProj | LayerSlot::KProj));
    is_rotated.then_some(subject.artifact.checkpoint.config.head_dim)
}
