//! Whether norms, embeddings and head hold the source's values.
//!
//! Invariant: compared as the bits of the values widened to `f32`, so a container may store them in
//! another type as long as no value changes. Blocks of rows stream.

use super::check::{Check, Running, Subject};
use super::report::Report;
use super::side::{self, Paired, Side};
use super::unlike::Unlike;
use crate::blocks::{block_rows, read_rows, widen};
use crate::diagnose::fault::{Fault, FaultName};
use crate::share::Share;
use crate::verdict::{Difference, Findings};
use bitnet_checkpoint::{Checkpoint, LayerSlot, Slot};
use bitnet_formats::{FormatError, TensorInfo};
use rayon::prelude::*;

pub(super) const CHECK: Check = Check {
    name: "dense",
    what: "every bit of norms, embeddings and output head, widened to f32",
    start: |subject| {
        subject
            .source
            .is_some()
            .then(|| Box::new(Dense) as Box<dyn Running>)
    },
};

struct Dense;

impl Running for Dense {
    fn finish(self: Box<Self>, subject: &Subject<'_>, report: &mut Report) {
        let mut findings = Findings::default();
        let Some((source, artifact)) = subject.models() else {
            let Some(sides) = subject.sides() else { return };
            let (tensors, _) = by_hash(sides, &mut findings, &mut report.unlike);
            let compared = format!("hashes of {tensors} tensors");
            report
                .checks
                .push(findings.into_verdict(CHECK.name, compared));
            return;
        };
        let (mut tensors, mut values) = (0, 0);
        let mut slots = artifact.slots();
        slots.retain(|slot| !artifact.is_ternary(*slot));
        for slot in subject.shared(slots) {
            tensors += 1;
            match compare(source, artifact, slot) {
                Ok((compared, differing, text)) => {
                    values += compared;
                    if compared > 0 {
                        report.unlike.dense(differing, compared);
                    }
                    if let Some(text) = text {
                        let kind = match slot {
                            Slot::OutputHead => FaultName::OutputHead,
                            _ if is_offset(source, artifact, slot) => match slot {
                                Slot::Layer(_, LayerSlot::GatedNorm) => FaultName::GatedNormOffset,
                                _ => FaultName::NormOffset,
                            },
                            _ => FaultName::ChangedValues,
                        };
                        report.fault(Fault::at(kind, CHECK.name, slot, text.clone()));
                        findings.different(slot.to_string(), text);
                    }
                }
                Err(error) => findings.unreadable(slot.to_string(), &error),
            }
        }
        tensors += compare_carried((source, artifact), subject.share, &mut findings);
        let compared = format!("{values} values of {tensors} tensors");
        report
            .checks
            .push(findings.into_verdict(CHECK.name, compared));
    }
}

/// Compares the bytes of the tensors that no computation uses and that both sides have; returns how many these are.
fn compare_carried(
    (source, artifact): (&Checkpoint, &Checkpoint),
    share: Option<Share>,
    findings: &mut Findings,
) -> usize {
    let mut count = 0;
    for (position, info) in artifact.carried.iter().enumerate() {
        if share.is_some_and(|share| !share.contains(position)) {
            continue;
        }
        count += 1;
        let is_other = source.directory.is_none() != artifact.directory.is_none();
        let other = artifact.carried_as(info);
        let name = match &other {
            Some(other) if is_other => &other.name,
            _ => &info.name,
        };
        let mut all = source.carried.iter();
        let is_named = |of: &&TensorInfo| {
            of.name == *name || is_other && of.name.ends_with(&format!(".{name}"))
        };
        let Some(of) = all.find(is_named) else {
            findings.different(&info.name, "expected no tensor of this name, found one");
            continue;
        };
        if other.is_some_and(|other| other.is_norm) {
            match (source.carried_gains(of), artifact.carried_gains(info)) {
                (Ok(expected), Ok(found)) if of.shape == info.shape && expected == found => {}
                (Ok(_), Ok(_)) => {
                    findings.different(&info.name, "expected the source's gains, found others")
                }
                (Err(error), _) | (_, Err(error)) => findings.unreadable(&info.name, &error),
            }
            continue;
        }
        let same = (of.encoding, &of.shape) == (info.encoding, &info.shape);
        match (source.file.read(of), artifact.file.read(info)) {
            (Ok(expected), Ok(found)) if same && expected == found => {}
            (Ok(_), Ok(_)) => {
                findings.different(&info.name, "expected the source's bytes, found others")
            }
            (Err(error), _) | (_, Err(error)) => findings.unreadable(&info.name, &error),
        }
    }
    count
}

/// Whether a vector of one side is that of the other with 1 added or taken away everywhere.
fn is_offset(source: &Checkpoint, artifact: &Checkpoint, slot: Slot) -> bool {
    let values = |checkpoint: &Checkpoint| -> Option<Vec<f32>> {
        let tensor = checkpoint.dense(slot).ok()?;
        let [len] = *tensor.shape else { return None };
        widen(&tensor, &tensor.bytes, len).ok()
    };
    let (Some(e), Some(f)) = (values(source), values(artifact)) else {
        return false;
    };
    let by = |offset: f32| {
        let mut pairs = e.iter().zip(&f);
        e.len() == f.len() && pairs.all(|(e, f)| (f - e - offset).abs() <= 1e-6)
    };
    by(1.0) || by(-1.0)
}

/// Blocks that are read at the same time: sources in a network read ahead of one place, not of one for each thread.
const TOGETHER: usize = 16;

/// How many values of a block differ, and the first: index, expected, found.
type Block = (usize, Option<(usize, f32, f32)>);

/// Values compared, how many of them differ, and where the first difference is.
fn compare(
    source: &Checkpoint,
    artifact: &Checkpoint,
    slot: Slot,
) -> Result<(usize, usize, Option<String>), FormatError> {
    let (s_reader, a_reader) = (source.dense_reader(slot)?, artifact.dense_reader(slot)?);
    let (s, a) = (s_reader.tensor(), a_reader.tensor());
    if s.shape != a.shape {
        return Ok((
            0,
            0,
            Some(format!("expected shape {:?}, found {:?}", s.shape, a.shape)),
        ));
    }
    let width = s.shape.last().copied().unwrap_or(1).max(1);
    let rows = s.shape.iter().product::<usize>() / width;
    let step = block_rows(width);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let block = |&start: &usize| {
        let end = rows.min(start + step);
        let s = read_rows(&s_reader, rows, start..end)?;
        let a = read_rows(&a_reader, rows, start..end)?;
        let same_meaning = (s.encoding, s.meaning) == (a.encoding, a.meaning);
        if same_meaning && s.bytes == a.bytes {
            return Ok((0, None));
        }
        let expected = widen(&s, &s.bytes, (end - start) * width)?;
        let found = widen(&a, &a.bytes, (end - start) * width)?;
        let differ = |(e, f): (&f32, &f32)| e.to_bits() != f.to_bits();
        let pairs = || expected.iter().zip(&found);
        let at = pairs().position(differ);
        let count = pairs().filter(|(e, f)| differ((e, f))).count();
        Ok((
            count,
            at.map(|i| (start * width + i, expected[i], found[i])),
        ))
    };
    let mut blocks: Vec<Block> = Vec::with_capacity(starts.len());
    for some in starts.chunks(TOGETHER) {
        let some = some.par_iter().map(block);
        blocks.extend(some.collect::<Result<Vec<Block>, FormatError>>()?);
    }
    let count: usize = blocks.iter().map(|(count, _)| count).sum();
    let first = blocks.into_iter().find_map(|(_, first)| first);
    let text = first.map(|(at, e, f)| {
        let place = match rows {
            1 => format!("index {at}"),
            _ => format!("row {}, column {}", at / width, at % width),
        };
        let bits = |x: f32| format!("{x:e} (0x{:08x})", x.to_bits());
        format!(
            "{place}: expected {}, found {}; {count} of {} differ",
            bits(e),
            bits(f),
            rows * width
        )
    });
    Ok((rows * width, count, text))
}

/// Compares what hashes say of the dense tensors that both sides have; how many, and which only one side has: those
/// are the business of `structure`, where it looks.
pub(super) fn by_hash(
    sides: (Side<'_>, Side<'_>),
    findings: &mut Findings,
    unlike: &mut Unlike,
) -> (usize, Vec<Difference>) {
    let Paired { both, alone } = side::pairs(sides, Side::dense);
    let tensors = both.len();
    for (name, expected, found) in both {
        match (expected, found) {
            (Err(error), _) | (_, Err(error)) => findings.unreadable(name, &error),
            (Ok(e), Ok(f)) if e.shape != f.shape => {
                let what = format!("expected shape {:?}, found {:?}", e.shape, f.shape);
                findings.different(name, what);
            }
            (Ok(e), Ok(f)) => {
                unlike.dense(usize::from(e.sha256 != f.sha256), 1);
                findings.expect(&name, &e.sha256, &f.sha256);
            }
        }
    }
    (tensors, alone)
}
