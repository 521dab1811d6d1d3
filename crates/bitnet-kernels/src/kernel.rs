//! One row of the table of kernels.
//!
//! Invariant: a row is data: making one runs nothing, and callers check the CPU before they call what it holds.

use crate::contract::{ByTables, TernaryOps};
use crate::fixed_point::{GROUP, Segment};
use crate::float_table::FloatOps;
use crate::peak::Peak;
use bitnet_ternary::Scales;

/// The features of this list that the machine lacks, by the names that people use.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! lacking {
    (x86: $($feature:tt = $name:literal),+ $(,)?) => {
        lacking!(is_x86_feature_detected: $($feature = $name),+)
    };
    (aarch64: $($feature:tt = $name:literal),+ $(,)?) => {
        lacking!(is_aarch64_feature_detected: $($feature = $name),+)
    };
    ($detected:ident: $($feature:tt = $name:literal),+) => {{
        let all: Vec<(bool, &'static str)> = vec![$((std::arch::$detected!($feature), $name)),+];
        let missing = all.into_iter().filter(|(is_there, _)| !is_there);
        missing.map(|(_, name)| name).collect::<Vec<&'static str>>()
    }};
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use lacking;

/// What a matrix will be multiplied with, mostly: its layout is chosen for that, and serves both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Int8 activations.
    Int8,
    /// Float activations, in fixed point.
    Float,
}

/// One way of computing ternary x int8 products: the integers
/// `dot[g][r] = sum over k in group g of trit[r][k] * a[k]`, and everything beside them.
pub struct Kernel {
    /// Instruction set features: also the file's name and the value of `--kernel`.
    pub name: &'static str,
    /// What the CPU must have, for people: `AVX-512 F, BW, VNNI`.
    pub requires: &'static str,
    /// Whether this CPU has it.
    pub is_available: fn() -> bool,
    /// What of that this machine lacks, by name; empty where the kernel runs.
    pub missing: fn() -> Vec<&'static str>,
    pub(crate) ternary: TernaryOps,
    /// For matrices with group scales, if their groups do not fit the blocks of `ternary`. Its panels
    /// are as wide.
    pub(crate) grouped: Option<TernaryOps>,
    /// For matrices that are multiplied with float activations in segments of 128 columns, if by tables. Its panels
    /// are as wide.
    pub(crate) tabled: Option<TernaryOps>,
    pub(crate) float: FloatOps,
    /// The multiply instruction of its products, if one is known: what they are measured against.
    pub(crate) peak: Option<Peak>,
}

impl Kernel {
    /// The layout of a matrix with these scales and inputs.
    pub(crate) fn ternary_for(&self, scales: &Scales, inputs: Inputs) -> &TernaryOps {
        let group = match scales {
            Scales::PerGroup { group, .. } => Some(*group),
            _ => None,
        };
        if let (Some(tabled), Inputs::Float) = (&self.tabled, inputs)
            && Segment::width(group) == GROUP
        {
            return tabled;
        }
        match (scales, inputs, &self.grouped) {
            (Scales::PerGroup { .. }, _, Some(grouped)) | (_, Inputs::Float, Some(grouped)) => {
                grouped
            }
            _ => &self.ternary,
        }
    }

    /// What reads tiles of two bits a trit.
    pub(crate) fn two_bits(&self) -> &TernaryOps {
        self.grouped.as_ref().unwrap_or(&self.ternary)
    }

    /// Products of fixed-point activations by tables, if any.
    pub(crate) fn by_tables(&self) -> Option<&ByTables> {
        self.tabled.as_ref()?.by_tables.as_ref()
    }
}
