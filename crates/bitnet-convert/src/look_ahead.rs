//! A look at the tensors that a target may not hold, before the output is begun.
//!
//! Invariant: what is refused here was refused before a byte of output was written. Tensors whose plan proves that the
//! target holds them are not read twice, and the first tensor that fails ends the look.

use crate::plan::{Action, Item, Plan, Request};
use crate::scales;
use crate::stored::Stored;
use bitnet_checkpoint::{Checkpoint, Slot};
use bitnet_cli::Progress;
use bitnet_formats::{
    Encoding, ErrorCode, FormatError, Packing, PlainType, ScaleRounding, encode_dense,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;

/// Values that are looked at as one piece of parallel work.
const PIECE: usize = 1 << 18;
/// Pieces that are read at once.
const PIECES: usize = 16;

/// Looks at the tensors at risk.
///
/// # Errors
/// What converting the tensor would end with; the message says how many were not looked at.
pub fn run(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    threads: usize,
    progress: &Progress,
) -> Result<(), FormatError> {
    let look = Look {
        checkpoint,
        plan,
        rounding: request.rounding,
    };
    let at_risk: Vec<(&Item, Slot)> = plan
        .items
        .iter()
        .filter_map(|item| Some((item, item.slot?)))
        .filter(|(item, slot)| look.is_at_risk(item, *slot))
        .collect();
    if at_risk.is_empty() {
        return Ok(());
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| {
            FormatError::new(ErrorCode::Io, format!("cannot start threads: {e}")).because(e)
        })?;
    for (n, (item, slot)) in at_risk.iter().enumerate() {
        progress.check()?;
        let found = pool.install(|| look.at(item, *slot));
        found.map_err(|mut error| {
            let rest = at_risk.len() - n - 1;
            if rest > 0 {
                error.message =
                    format!("{}; {rest} more tensors were not looked at", error.message);
            }
            error.in_tensor(&item.tensor.name)
        })?;
    }
    Ok(())
}

struct Look<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    rounding: ScaleRounding,
}

impl Look<'_> {
    /// Whether neither the plan nor the type of the target proves that the target holds a tensor.
    fn is_at_risk(&self, item: &Item, slot: Slot) -> bool {
        match &item.action {
            Action::Pack(_) if self.may_misfit(item, slot) => true,
            Action::Pack(_) | Action::Dequantise(_) => {
                // rounding that is allowed ends nothing
                self.rounding == ScaleRounding::Refuse
                    && self.is_unknown(slot)
                    && !self.holds_any(item, slot)
            }
            Action::Recode(to) => is_vector(item) || *to != Encoding::Plain(PlainType::F32),
            Action::Copy => is_vector(item),
            Action::Shape(_) => true,
            Action::CopyPacked(_)
            | Action::CopyMaster
            | Action::Unfold(_)
            | Action::Ready(_)
            | Action::Scale(_)
            | Action::Carry(_) => false,
        }
    }

    /// Whether the codes that a linear is packed with have no room for some trits, and it does not come from such codes.
    fn may_misfit(&self, item: &Item, slot: Slot) -> bool {
        let Action::Pack(packing) = item.action else {
            return false;
        };
        let same = |stored: &dyn Packing| stored.name() == packing.name();
        let source = self.checkpoint.linear(slot);
        !packing.holds_any_trits() && !source.is_ok_and(|source| source.packing.is_some_and(same))
    }

    /// Whether only its values tell the scales of a linear: the plan has judged all others.
    fn is_unknown(&self, slot: Slot) -> bool {
        self.checkpoint.linear(slot).is_ok_and(|source| {
            source.packing.is_none() && scales::probe(self.checkpoint, slot).is_none()
        })
    }

    /// Whether the target holds every scale that this linear may turn out to have.
    fn holds_any(&self, item: &Item, slot: Slot) -> bool {
        let Ok(source) = self.checkpoint.linear(slot) else {
            return false;
        };
        // master weights have one scale; numbers may have one for each group
        let scales = match source.is_master() {
            true => Scales::PerTensor(0.1),
            false => Scales::PerGroup {
                group: 32,
                scales: vec![0.1, 0.7],
            },
        };
        let sample = TernaryMatrix::new(1, 64, vec![1; 64], scales);
        sample.is_ok_and(|sample| self.check(item, slot, &sample).is_ok())
    }

    /// What the conversion checks of a linear.
    fn check(&self, item: &Item, slot: Slot, matrix: &TernaryMatrix) -> Result<(), FormatError> {
        match item.action {
            Action::Pack(packing) => {
                packing.check_trits(matrix)?;
                packing.check_scales(matrix, self.rounding)?;
                let beside = self.plan.scale_tensor(slot);
                let plain = beside.map_or(PlainType::F32, |form| form.plain);
                scales::check_float(matrix, plain, self.rounding)?;
            }
            Action::Dequantise(plain) => {
                scales::check_float(matrix, plain, self.rounding)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads a tensor as the conversion will.
    fn at(&self, item: &Item, slot: Slot) -> Result<(), FormatError> {
        match item.action {
            Action::Pack(_) | Action::Dequantise(_) => {
                self.check(item, slot, &self.checkpoint.ternary(slot)?)
            }
            Action::Recode(to) => self.recode(item, slot, to),
            _ => self.checkpoint.dense(slot).map(|_| ()),
        }
    }

    fn recode(&self, item: &Item, slot: Slot, to: Encoding) -> Result<(), FormatError> {
        let reader = self.checkpoint.dense_reader(slot)?;
        let stored = Stored::of(self.plan, self.checkpoint, slot)?;
        let cols = item.tensor.shape.last().copied().unwrap_or(1).max(1);
        let rows = item.tensor.shape.iter().product::<usize>() / cols;
        let len = reader.len();
        let row = len as usize / rows.max(1);
        let rows_per_piece = (PIECE / cols).max(1);
        let piece = (rows_per_piece * row).max(1);
        let step = piece * PIECES;
        for start in (0..len).step_by(step) {
            let dense = reader.read(start..len.min(start + step as u64))?;
            dense.bytes.par_chunks(piece).try_for_each(|bytes| {
                let mut values = vec![0.0; bytes.len() / row.max(1) * cols];
                dense.widen(bytes, &mut values)?;
                let values = match stored {
                    Some(stored) => stored.numbers(&values, self.rounding)?,
                    None => values,
                };
                encode_dense(&values, to, &mut Vec::new()).map(|_| ())
            })?;
        }
        Ok(())
    }
}

/// Whether a tensor is so small that looking at it costs nothing.
fn is_vector(item: &Item) -> bool {
    item.tensor.shape.len() < 2
}
