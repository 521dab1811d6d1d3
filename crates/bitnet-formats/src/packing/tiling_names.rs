//! Names of packings that give a tiling.
//!
//! Invariant: `tl1-128-64-32` (BM, BK, bm), `tl1-1536x4096=256-128-32,64-64-32` (per shape, first match) and
//! `tl1-3b` (a preset) say the tiling. Names that are given are kept for the life of the program, each once and at
//! most [`MOST_NAMES`], so that a packing stays a `&'static`.

use super::Packing;
use super::tilings::{Preset, Rule, Tiling, Tilings};
use super::tl1::{self, Tl1};
use super::tl2::{self, Tl2};
use std::collections::BTreeMap;
use std::sync::{LazyLock, Mutex, PoisonError};

/// Distinct names with tilings that one run may use.
const MOST_NAMES: usize = 256;
/// Longest such name.
const LONGEST_NAME: usize = 1024;

/// The packing that a name with a tiling means, whether or not that fits any shape.
pub(super) fn by_name(name: &str) -> Option<&'static dyn Packing> {
    static NAMES: LazyLock<Mutex<BTreeMap<&'static str, &'static dyn Packing>>> =
        LazyLock::new(Mutex::default);
    if name.len() > LONGEST_NAME {
        return None;
    }
    let (stem, given) = name.split_once('-')?;
    let presets = match stem {
        "tl1" => tl1::PRESETS,
        "tl2" => tl2::PRESETS,
        _ => return None,
    };
    let rules = parse(given, presets)?;
    // a poisoned map is whole: entries are inserted in one step
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(packing) = names.get(name) {
        return Some(*packing);
    }
    if names.len() >= MOST_NAMES {
        return None;
    }
    let name: &'static str = Box::leak(name.to_owned().into_boxed_str());
    let tilings = Tilings::Given(name, rules);
    let packing: &'static dyn Packing = match stem {
        "tl1" => Box::leak(Box::new(Tl1 { tilings })),
        _ => Box::leak(Box::new(Tl2 { tilings })),
    };
    names.insert(name, packing);
    Some(packing)
}

/// The shipped tilings that fit all of `shapes` and put trits elsewhere than `packing`,
/// which chooses by shape: presets, and each of their tilings for every shape.
pub(super) fn shipped(
    packing: &dyn Packing,
    shapes: &[(usize, usize)],
) -> Vec<&'static dyn Packing> {
    let stem = packing.name();
    let presets = match stem {
        "tl1" => tl1::PRESETS,
        "tl2" => tl2::PRESETS,
        _ => return Vec::new(),
    };
    let given = |[_, _, rows, cols, block]: [usize; 5]| format!("{stem}-{rows}-{cols}-{block}");
    let lists = presets.iter().map(|(name, _)| format!("{stem}-{name}"));
    let tilings = presets
        .iter()
        .flat_map(|(_, list)| list.iter().copied().map(given));
    let parameters = |packing: &dyn Packing| -> Option<Vec<String>> {
        let shapes = shapes.iter();
        shapes
            .map(|&(rows, cols)| packing.parameters(rows, cols))
            .collect()
    };
    let mut met: Vec<_> = parameters(packing).into_iter().collect();
    let mut found = Vec::new();
    for name in lists.chain(tilings) {
        let Some(candidate) = by_name(&name) else {
            continue;
        };
        if let Some(own) = parameters(candidate).filter(|own| !met.contains(own)) {
            met.push(own);
            found.push(candidate);
        }
    }
    found
}

/// `[MxK=]BM-BK[-bm]` or a preset, separated by commas; `bm` is 32 if absent.
fn parse(given: &str, presets: &[Preset]) -> Option<Vec<Rule>> {
    let number = |s: &str| s.parse().ok().filter(|&n: &usize| n > 0 && n < 1 << 31);
    let mut rules = Vec::new();
    for item in given.split(',') {
        if let Some((_, list)) = presets.iter().find(|(name, _)| *name == item) {
            rules
                .extend(list.iter().map(|&[m, k, rows, cols, block]| {
                    (Some((m, k)), Tiling { rows, cols, block })
                }));
            continue;
        }
        let (shape, tiling) = match item.split_once('=') {
            Some((shape, tiling)) => {
                let (m, k) = shape.split_once('x')?;
                (Some((number(m)?, number(k)?)), tiling)
            }
            None => (None, item),
        };
        let mut numbers = tiling.split('-').map(number);
        let (rows, cols) = (numbers.next()??, numbers.next()??);
        let block = numbers.next().unwrap_or(Some(32))?;
        if numbers.next().is_some() {
            return None;
        }
        rules.push((shape, Tiling { rows, cols, block }));
    }
    Some(rules)
}
