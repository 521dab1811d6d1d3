//! Rotations that are read in another way: the single changes, and what two declared rotations differ in.
//!
//! Invariant: a name is given to a difference of what two files declare, or to a change under which the oracle computes
//! what was recorded; lost keys are named by rows whose lengths are right, block by block, and whose values are not.

#![deny(clippy::indexing_slicing)]

use crate::diagnose::fault::{Fault, FaultName};
use crate::reference::oracle::RotatedAs;
use bitnet_checkpoint::{Config, LayerSlot, ROTATION_KEYS, Rotation, Slot, TiledHeads};

/// Blocks that are tried.
const BLOCKS: std::ops::RangeInclusive<u32> = 4..=13;

/// Whether outputs of recurrent layers are rotated before `out_proj`.
pub(super) fn turns_outputs(rotation: &Rotation) -> bool {
    let is_output = |slot: &Slot| matches!(slot, Slot::Layer(_, LayerSlot::OutProj));
    rotation.folded.iter().any(is_output)
}

/// Every change of a rotation that would change something: its name, what it says, what it does.
pub(super) fn changes(config: &Config, rotation: &Rotation) -> Vec<(FaultName, String, RotatedAs)> {
    let mut all = Vec::new();
    let mut row = |there: bool, name, expected: String, found: String, how| {
        if there {
            let says = format!("expected {expected}, found {found}");
            all.push((name, says, how));
        }
    };
    let is_signed = !rotation.signs.is_empty();
    let found = format!("blocks of {} features rotated", rotation.block_size);
    let nothing = "nothing rotated".to_owned();
    row(
        true,
        FaultName::RotationMissing,
        nothing,
        found,
        RotatedAs::Nothing,
    );
    let text = str::to_owned;
    let (without, with) = (
        text("the transform without signs"),
        text("signs in front of it"),
    );
    row(
        is_signed,
        FaultName::RotationSigns,
        without,
        with,
        RotatedAs::Unsigned,
    );
    for tables in [false, true] {
        let what = match tables {
            true => "signs behind the transform of inputs, and in front of that of embeddings",
            false => "signs behind the transform of inputs",
        };
        let there = is_signed && (rotation.embeddings || !tables);
        let how = RotatedAs::SignsBehind { tables };
        let found = text("signs on the other side of it");
        row(there, FaultName::RotationOrder, text(what), found, how);
    }
    let slots = || {
        config
            .slots()
            .into_iter()
            .filter(|slot| rotation.turns(*slot))
    };
    let width = |slot| config.shape(slot).last().copied().unwrap_or(0);
    for block in BLOCKS.map(|bits| 1usize << bits) {
        let fits = slots().all(|slot| width(slot).is_multiple_of(block));
        let there = fits && block != rotation.block_size;
        let (expected, found) = (
            format!("blocks of {block}"),
            rotation.block_size.to_string(),
        );
        let how = RotatedAs::Block(block);
        row(there, FaultName::RotationBlock, expected, found, how);
    }
    let hidden = config.hidden_size;
    let has_signs = !is_signed || rotation.signs.contains_key(&hidden);
    let fits = hidden.is_multiple_of(rotation.block_size) && has_signs;
    let say = |turned: bool| match turned {
        true => text("rows of the embeddings turned back"),
        false => text("rows of the embeddings as stored"),
    };
    let (expected, found) = (say(!rotation.embeddings), say(rotation.embeddings));
    let name = FaultName::RotationEmbeddings;
    row(fits, name, expected, found, RotatedAs::Embeddings);
    let head = match config.tie_word_embeddings {
        true => Slot::TokenEmbeddings,
        false => Slot::OutputHead,
    };
    let say = |turned: bool| match turned {
        true => text("the input of the output head rotated"),
        false => text("the input of the output head as it is"),
    };
    let turned = rotation.turns(head);
    row(
        fits,
        FaultName::RotationHead,
        say(!turned),
        say(turned),
        RotatedAs::Head,
    );
    let delta = config.hybrid.as_ref().map(|hybrid| hybrid.delta);
    let has_orders = delta.is_some_and(|d| TiledHeads::of(&d, 0, d.value_dim).is_some());
    let say = |tiled: bool| match tiled {
        true => text("out_proj rotated with value heads in GGUF's tiled order"),
        false => {
            text("out_proj rotated with value heads in the order of the checkpoint (gdn_v_grouped)")
        }
    };
    let there = has_orders && turns_outputs(rotation);
    let (expected, found) = (say(!rotation.tiled_values), say(rotation.tiled_values));
    let name = FaultName::RotationValueOrder;
    row(there, name, expected, found, RotatedAs::ValueOrder);
    all
}

/// Joins what a trace says of one rotation: that nothing is rotated shows in every place, and where keys or signs are lost,
/// every linear departs without a cause of its own.
pub(super) fn settle(config: &Config, faults: &mut Vec<Fault>) {
    let there = |faults: &[Fault], name| faults.iter().any(|fault| fault.name == name);
    let tables = [FaultName::RotationEmbeddings, FaultName::RotationHead];
    if config.rotation.is_some() && there(faults, FaultName::RotationMissing) {
        let parts = faults
            .iter_mut()
            .filter(|fault| tables.contains(&fault.name));
        parts.for_each(|fault| fault.name = FaultName::RotationMissing);
    }
    let is_lost = config.rotation.is_none() && there(faults, FaultName::RotationMissing);
    if is_lost || there(faults, FaultName::RotationSigns) {
        let consequences = [FaultName::Unexplained, FaultName::OutputHead];
        faults.retain(|fault| !consequences.contains(&fault.name));
    }
}

/// What two files declare differently, each with its name.
pub fn of_declared(
    check: &'static str,
    expected: Option<&Rotation>,
    found: Option<&Rotation>,
) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut fault = |name, key: &str, what: String| {
        let key = format!("{ROTATION_KEYS}{key}");
        faults.push(Fault::of_key(name, check, &key, what));
    };
    let (expected, found) = match (expected, found) {
        (Some(expected), Some(found)) => (expected, found),
        (None, None) => return faults,
        (expected, _) => {
            let what = match expected {
                Some(_) => "expected rotated weights, found no key of a rotation",
                None => "expected no key of a rotation, found rotated weights",
            };
            fault(FaultName::RotationMissing, "version", what.to_owned());
            return faults;
        }
    };
    if expected.block_size != found.block_size {
        let (expected, found) = (expected.block_size, found.block_size);
        let what = format!("expected blocks of {expected}, found {found}");
        fault(FaultName::RotationBlock, "block_size", what);
    }
    let widths = expected.signs.keys().chain(found.signs.keys());
    let mut widths: Vec<usize> = widths.copied().collect();
    widths.sort_unstable();
    widths.dedup();
    for width in widths {
        let sign = |signs: &[i8], at: usize| signs.get(at).copied().unwrap_or(1);
        let (e, f) = (expected.signs_of(width), found.signs_of(width));
        let differ = (0..width).filter(|at| sign(e, *at) != sign(f, *at));
        let what = match (differ.count(), e.is_empty() == f.is_empty()) {
            (0, true) => continue,
            (count, true) => format!("{count} of the {width} signs of that width differ"),
            (_, false) if f.is_empty() => format!("expected signs of width {width}, found none"),
            (_, false) => format!("expected no signs of width {width}, found some"),
        };
        fault(FaultName::RotationSigns, "sign_values", what);
    }
    if expected.embeddings != found.embeddings {
        let what = match expected.embeddings {
            true => "expected rotated embeddings, found embeddings that are not",
            false => "expected embeddings that are not rotated, found rotated ones",
        };
        let key = "inverse_weight_names";
        fault(FaultName::RotationEmbeddings, key, what.to_owned());
    }
    let mut differ = expected.folded.symmetric_difference(&found.folded);
    if let Some(first) = differ.next() {
        let name = match first {
            Slot::OutputHead => FaultName::RotationHead,
            _ => FaultName::RotationMissing,
        };
        let what = match expected.folded.contains(first) {
            true => format!("expected `{first}` among the rotated matrices, found it left out"),
            false => format!("expected `{first}` not rotated, found it among the rotated matrices"),
        };
        fault(name, "weight_names", what);
    }
    if expected.tiled_values != found.tiled_values {
        let what = match expected.tiled_values {
            true => {
                "expected value heads of out_proj in GGUF's tiled order, found the order of the checkpoint"
            }
            false => {
                "expected value heads of out_proj in the order of the checkpoint, found GGUF's tiled order"
            }
        };
        fault(
            FaultName::RotationValueOrder,
            "gdn_v_grouped",
            what.to_owned(),
        );
    }
    faults
}

/// Whether recorded rows of embeddings are the rows found with other signs in some columns, the same ones in every row:
/// how many.
pub(super) fn other_signs(expected: &[f32], found: &[f32], width: usize) -> Option<usize> {
    if width == 0 || expected.len() != found.len() {
        return None;
    }
    let mut turned: Vec<Option<bool>> = vec![None; width];
    let largest = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let near = SAME_LENGTH * f64::from(largest);
    for (at, (e, f)) in expected.iter().zip(found).enumerate() {
        let (e, f) = (*e, *f);
        if f64::from((e.abs() - f.abs()).abs()) > near {
            return None;
        }
        if f64::from(e.abs()) <= near {
            continue; // too small for its sign to mean something
        }
        let differs = (e < 0.0) != (f < 0.0);
        let column = turned.get_mut(at % width)?;
        if *column.get_or_insert(differs) != differs {
            return None;
        }
    }
    let count = turned
        .iter()
        .filter(|turned| **turned == Some(true))
        .count();
    (count > 0).then_some(count)
}

/// How far lengths of rows may be apart: what one rounding of each value makes.
const SAME_LENGTH: f64 = 1e-5;

/// Whether recorded rows of embeddings are rotated ones of the rows found, in a file that declares no rotation: of
/// the same length block by block, with other magnitudes. The size of the smallest such block.
pub(super) fn rotated_rows(expected: &[f32], found: &[f32], width: usize) -> Option<usize> {
    if width == 0 || expected.len() != found.len() || expected.is_empty() {
        return None;
    }
    let length = |values: &[f32]| -> f64 {
        let squares = values.iter().map(|x| f64::from(*x) * f64::from(*x));
        squares.sum::<f64>().sqrt()
    };
    let same = |block: usize| {
        let mut blocks = expected.chunks(block).zip(found.chunks(block));
        blocks.all(|(e, f)| {
            let (e, f) = (length(e), length(f));
            (e - f).abs() <= SAME_LENGTH * e.max(f)
        })
    };
    // values that only moved, or have other signs, are no rotation
    let sorted = |values: &[f32]| {
        let mut all: Vec<f32> = values.iter().map(|x| x.abs()).collect();
        all.sort_by(f32::total_cmp);
        all
    };
    let moved = |(e, f): (&[f32], &[f32])| {
        let (e, f) = (sorted(e), sorted(f));
        let mut pairs = e.iter().zip(&f);
        pairs.all(|(e, f)| f64::from((e - f).abs()) <= SAME_LENGTH * f64::from(e.max(*f)))
    };
    let rows = || expected.chunks(width).zip(found.chunks(width));
    let mut blocks = BLOCKS.map(|bits| 1usize << bits);
    let block = blocks.find(|block| width.is_multiple_of(*block) && same(*block))?;
    let zero = |row: &[f32]| row.iter().all(|x| *x == 0.0);
    let mut rows = rows().filter(|(e, _)| !zero(e)).peekable();
    (rows.peek().is_some() && !rows.any(moved)).then_some(block)
}
