//! Which source fits into which target, as `list` prints it.
//!
//! Invariant: nothing is known here, everything is tried: a cell of the table is what a target said to
//! matrices that the source can hold. A packing that is added to its registry is in the table.

use crate::targets::{TARGETS, Target};
use bitnet_checkpoint::{GPU_PACKING, HF_PACKING, MLX_PACKING, is_tiles};
use bitnet_formats::{FormatError, PACKINGS, Packing, ScaleRounding};
use bitnet_ternary::{GROUP_SIZES, Scales, TernaryMatrix};
use serde_json::{Value, json};

/// What the linears of a source may be.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// Float weights that the absmean rule makes ternary.
    Master,
    /// Floats that already are `trit * scale`.
    Dequantised,
    /// A packing.
    Packed(&'static dyn Packing),
}

impl Source {
    /// Every kind that some container's checkpoints are read from.
    pub fn all() -> impl Iterator<Item = Self> {
        let read = |p: &&&dyn Packing| {
            let directory = [HF_PACKING, MLX_PACKING, GPU_PACKING].contains(&p.name());
            p.gguf_type().is_some() || directory || is_tiles(**p)
        };
        let packed = PACKINGS.iter().filter(read).map(|p| Self::Packed(*p));
        [Self::Master, Self::Dequantised].into_iter().chain(packed)
    }

    /// A word for it: of packings their name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Dequantised => "dequantized",
            Self::Packed(packing) => packing.name(),
        }
    }

    /// One line for `list`.
    pub fn about(&self) -> &'static str {
        match self {
            Self::Master => "f32, f16 or bf16 master weights, quantized by the absmean rule",
            Self::Dequantised => "f32, f16 or bf16 values that already equal trit * scale",
            Self::Packed(packing) if packing.is_writable() => "packed",
            Self::Packed(_) => "packed, read only",
        }
    }

    /// Whether a file of this kind may hold a matrix.
    pub fn holds(&self, matrix: &TernaryMatrix) -> bool {
        match self {
            Self::Master => matches!(matrix.scales(), Scales::PerTensor(_)),
            Self::Dequantised => true,
            Self::Packed(packing) => {
                packing.stored_len(matrix.rows(), matrix.cols()).is_ok()
                    && packing.check_trits(matrix).is_ok()
                    && packing.check_scales(matrix, ScaleRounding::Refuse) == Ok(0.0)
            }
        }
    }
}

/// Whether a target holds a matrix: the relative error that storing its scales causes.
///
/// # Errors
/// `target-cannot-hold` and `scale-rounding`, as converting it would say.
pub fn fits(
    target: &Target,
    matrix: &TernaryMatrix,
    rounding: ScaleRounding,
) -> Result<f64, FormatError> {
    target.form.writer.fits(&target.form, matrix, rounding)
}

/// What has to be true of a source for a target to hold it exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Zeros where the codes of the target have some, and nowhere else.
    Zeros,
    /// One scale for the whole matrix.
    OneScale,
    /// One scale per row.
    RowScales,
    /// One scale per so many columns of a row.
    GroupScales(usize),
    /// Scales that are numbers of the type in which the target stores them.
    ScaleBits,
    /// Rows and columns that are whole blocks or tiles.
    Shape,
}

impl Condition {
    /// As the table writes it.
    pub fn symbol(&self) -> String {
        match self {
            Self::Zeros => "z".to_owned(),
            Self::OneScale => "1".to_owned(),
            Self::RowScales => "r".to_owned(),
            Self::GroupScales(columns) => format!("g{columns}"),
            Self::ScaleBits => "s".to_owned(),
            Self::Shape => "k".to_owned(),
        }
    }
}

/// What the symbols of the table mean.
pub const LEGEND: [&str; 5] = [
    "=  exact, whatever the source holds; otherwise exact when all of these are true, and else refused:",
    "1  the matrix has one scale    r  a row has one    gN  N columns of a row have one",
    "z  blocks are zeros throughout, or have no zero (q1_0), or one in four trits 16 columns apart (stq1_0)",
    "s  scales are numbers of the type that the target stores (--allow-scale-rounding rounds them)",
    "k  rows and columns are whole blocks or tiles      -  never",
];

/// A source and a target.
#[derive(Debug, Clone)]
pub struct Pair {
    /// From.
    pub source: Source,
    /// To.
    pub target: &'static Target,
    /// What has to be true, each with what the target says otherwise.
    pub conditions: Vec<(Condition, FormatError)>,
    /// Why it never holds anything.
    pub refused: Option<FormatError>,
}

impl Pair {
    /// A cell of the table.
    pub fn cell(&self) -> String {
        if self.refused.is_some() {
            return "-".to_owned();
        }
        let symbols: Vec<String> = self.conditions.iter().map(|(c, _)| c.symbol()).collect();
        match symbols.is_empty() {
            true => "=".to_owned(),
            false => symbols.join(" "),
        }
    }

    /// For `list --json`.
    pub fn to_json(&self) -> Value {
        let verdict = match (&self.refused, self.conditions.is_empty()) {
            (Some(_), _) => "refused",
            (None, true) => "exact",
            (None, false) => "conditional",
        };
        let conditions = self.conditions.iter().map(|(condition, otherwise)| {
            json!({"condition": condition.symbol(), "code": otherwise.code.as_str(), "otherwise": otherwise.message})
        });
        json!({
            "source": self.source.name(),
            "target": self.target.name,
            "verdict": verdict,
            "conditions": conditions.collect::<Value>(),
            "reason": self.refused.as_ref().map(|e| e.message.clone()),
        })
    }
}

/// Every source with every target, target by target.
pub fn pairs() -> Vec<Pair> {
    let of = |target| Source::all().map(move |source| try_pair(source, target));
    TARGETS.iter().flat_map(of).collect()
}

/// A shape that every target can hold.
const WHOLE: (usize, usize) = (32, 768);
/// Shapes that some cannot: columns of other blocks, rows of no tile, nothing even.
const OTHERS: [(usize, usize); 8] = [
    (32, 640),
    (32, 576),
    (32, 672),
    (32, 96),
    (8, 768),
    (4, 96),
    (5, 768),
    (7, 100),
];
/// A scale that every type holds, and some that f16, bf16, or neither holds.
const EVERYWHERE: f32 = 0.5;
const SOMEWHERE: [f32; 3] = [1.000_976_6, 9.094_947e-13, 0.1];

/// Where a probe has zeros.
#[derive(Clone, Copy)]
enum Zeros {
    /// Anywhere, whole rows among them.
    Anywhere,
    /// One in four trits that stand 16 columns apart.
    OneInFour,
    /// Nowhere.
    Nowhere,
}

fn probe((rows, cols): (usize, usize), zeros: Zeros, scales: Scales) -> Option<TernaryMatrix> {
    let sign = |i: usize| (i * i / 7 % 5 / 3 * 2) as i8 - 1;
    let trit = |i: usize| match (zeros, i / cols % 4, i % cols) {
        (Zeros::Nowhere, _, _) => sign(i),
        (Zeros::OneInFour, row, col) if col / 16 % 4 == (col + row) % 4 => 0,
        (Zeros::OneInFour, _, _) => sign(i),
        (Zeros::Anywhere, 1, _) => 0,
        (Zeros::Anywhere, _, _) => (i * i / 5 % 3) as i8 - 1,
    };
    let trits = (0..rows * cols).map(trit).collect();
    TernaryMatrix::new(rows, cols, trits, scales).ok()
}

/// Scales of which no neighbors agree.
fn different(n: usize) -> Vec<f32> {
    (0..n).map(|i| EVERYWHERE * (1 + i % 7) as f32).collect()
}

fn try_pair(source: Source, target: &'static Target) -> Pair {
    let one = Scales::PerTensor;
    let mut pair = Pair {
        source,
        target,
        conditions: Vec::new(),
        refused: None,
    };
    if matches!(source, Source::Master) && target.form.writer.row().is_master() {
        return pair; // copied
    }
    let refusal_of = |zeros, shape, scales| {
        let matrix = probe(shape, zeros, scales).filter(|m| source.holds(m))?;
        Some(fits(target, &matrix, ScaleRounding::Refuse).err())
    };
    // a packing may have codes for some zeros only
    let kinds = [Zeros::Anywhere, Zeros::OneInFour, Zeros::Nowhere];
    let (mut held, mut misfit) = (None, None);
    for zeros in kinds {
        match refusal_of(zeros, WHOLE, one(EVERYWHERE)) {
            Some(None) => held = held.or(Some(zeros)),
            Some(Some(error)) => misfit = misfit.or(Some(error)),
            None => {}
        }
    }
    let Some(zeros) = held else {
        pair.refused = misfit;
        return pair;
    };
    pair.conditions
        .extend(misfit.map(|error| (Condition::Zeros, error)));
    let refusal = |shape, scales| refusal_of(zeros, shape, scales);
    let (rows, cols) = WHOLE;
    // from coarse to fine
    let mut needed = Condition::OneScale;
    let by_row = (Condition::RowScales, Scales::PerRow(different(rows)));
    let groups = GROUP_SIZES.into_iter().rev().map(|group| {
        let scales = different(rows * cols / group);
        (
            Condition::GroupScales(group),
            Scales::PerGroup { group, scales },
        )
    });
    for (finer, scales) in std::iter::once(by_row).chain(groups) {
        match refusal(WHOLE, scales) {
            None => {}
            Some(None) => needed = finer,
            Some(Some(error)) => {
                pair.conditions.push((needed, error));
                break;
            }
        }
    }
    let bits = SOMEWHERE.into_iter().map(|scale| (WHOLE, scale));
    let shapes = OTHERS.into_iter().map(|shape| (shape, EVERYWHERE));
    for (condition, (shape, scale)) in (bits.map(|probe| (Condition::ScaleBits, probe)))
        .chain(shapes.map(|probe| (Condition::Shape, probe)))
    {
        let known = pair.conditions.iter().any(|(c, _)| *c == condition);
        if let (false, Some(Some(error))) = (known, refusal(shape, one(scale))) {
            pair.conditions.push((condition, error));
        }
    }
    pair
}
