//! Whether every trit of every linear is the source's.
//!
//! Invariant: exact; there is no tolerance here.

use super::check::{Check, Pair, Running, Subject};
use super::report::Report;
use super::side::{self, Side};
use crate::diagnose::fault::{Fault, FaultName};
use crate::diagnose::naming::{of_heads, of_trits};
use crate::reference::golden::codes_sha256;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::{LayerSlot, Slot, TensorDigest};
use bitnet_ternary::TernaryMatrix;
use std::collections::{BTreeMap, HashMap};

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
    /// Experts that differ: their place, and the hashes of what was expected and found.
    experts: Vec<(Slot, String, String)>,
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
        if matches!(pair.slot, Slot::Layer(_, LayerSlot::Expert(..))) {
            let hash = |m: &TernaryMatrix| codes_sha256(m.trits());
            self.experts.push((pair.slot, hash(source), hash(artifact)));
        }
        let head_dim = rotated(pair.slot, subject);
        let order = subject
            .models()
            .and_then(|(source, _)| source.family.gguf_order(&source.config, pair.slot));
        let (kind, what) = of_heads(source, artifact, order)
            .unwrap_or_else(|| of_trits(source, artifact, head_dim));
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
        let moved = moved_experts(&self.experts);
        let is_moved = |fault: &Fault| fault.slot.is_some_and(|slot| moved.contains_key(&slot));
        self.faults
            .into_iter()
            .filter(|fault| !is_moved(fault))
            .for_each(|fault| report.fault(fault));
        for (slot, what) in moved {
            report.fault(Fault::at(
                FaultName::PermutedExperts,
                CHECK.name,
                slot,
                what,
            ));
        }
        let compared = format!("{} trits of {} linears", self.trits, self.tensors);
        report
            .checks
            .push(self.findings.into_verdict(CHECK.name, compared));
    }
}

/// Experts that are others of their layer, in the order of the network.
fn moved_experts(experts: &[(Slot, String, String)]) -> BTreeMap<Slot, String> {
    let kind = |slot: Slot| match slot {
        Slot::Layer(layer, LayerSlot::Expert(expert, linear)) => Some((layer, linear, expert)),
        _ => None,
    };
    let mut expected = HashMap::new();
    for (slot, hash, _) in experts {
        if let Some((layer, linear, expert)) = kind(*slot) {
            expected.insert((layer, linear, hash.as_str()), expert);
        }
    }
    let moved = experts.iter().filter_map(|(slot, _, found)| {
        let (layer, linear, own) = kind(*slot)?;
        let other = expected.get(&(layer, linear, found.as_str()))?;
        Some((
            *slot,
            format!("expected expert {own}, found expert {other}"),
        ))
    });
    moved.collect()
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
