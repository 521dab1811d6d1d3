//! What kind of change takes the right trits and scales to those that were found.
//!
//! Invariant: a name is given only if the change it stands for makes the one exactly the other, at every place.

use super::fault::FaultName;
use crate::reference::oracle::{RowOrder, ScaleAs};
use bitnet_checkpoint::StoredOrder;
use bitnet_ternary::TernaryMatrix;

/// How far the product of a scale and its inverse is from 1, where both were stored in 16 bits.
const INVERSE_SLACK: f64 = 8e-3;

/// The one change that makes every `found` of its `expected`; `None` if none differs.
pub fn of_scales(pairs: impl Iterator<Item = (f32, f32)>) -> Option<(FaultName, String)> {
    let pairs: Vec<(f32, f32)> = pairs.filter(|(e, f)| e.to_bits() != f.to_bits()).collect();
    let &(expected, found) = pairs.first()?;
    let all = |is: &dyn Fn(f32, f32) -> bool| pairs.iter().all(|&(e, f)| is(e, f));
    let rounded =
        |how: ScaleAs| move |e: f32, f: f32| e.is_finite() && f.to_bits() == how.of(e).to_bits();
    let inverse = |e: f32, f: f32| {
        let (e, f) = (f64::from(e), f64::from(f));
        // near 1 a scale and its inverse are too close to tell
        (e * f - 1.0).abs() < INVERSE_SLACK && (e / f - 1.0).abs() > 4.0 * INVERSE_SLACK
    };
    let of = pairs.len();
    let values = format!("expected {expected:e}, found {found:e}");
    Some(if all(&rounded(ScaleAs::F16)) {
        (FaultName::F16Scale, format!("{values}, which is f16 of it"))
    } else if all(&rounded(ScaleAs::Bf16)) {
        (
            FaultName::Bf16Scale,
            format!("{values}, which is bf16 of it"),
        )
    } else if all(&inverse) {
        (FaultName::InverseScale, format!("{values}, its inverse"))
    } else {
        let ratio = f64::from(found) / f64::from(expected);
        let same = all(&|e, f| (f64::from(f) / f64::from(e) / ratio - 1.0).abs() < 1e-6);
        match same {
            true => (
                FaultName::ChangedScale,
                format!("{values}: {ratio} times as large"),
            ),
            false => (FaultName::ChangedScale, format!("{values}; {of} differ")),
        }
    })
}

/// Value heads in the order of the other container, where that makes the trits of `found` those of `expected`.
pub fn of_heads(
    expected: &TernaryMatrix,
    found: &TernaryMatrix,
    order: Option<StoredOrder>,
) -> Option<(FaultName, String)> {
    let (rows, cols) = (expected.rows(), expected.cols());
    let (heads, columns) = match order? {
        StoredOrder::TiledRows(heads) => (heads, false),
        StoredOrder::TiledColumns(heads) => (heads, true),
        StoredOrder::PairedRows { .. } => return None,
    };
    for (tiled, what) in [
        (
            true,
            "the value heads found are the expected ones tiled over the key heads, as GGUF keeps them",
        ),
        (
            false,
            "the value heads expected are the found ones tiled over the key heads, as GGUF keeps them",
        ),
    ] {
        let place = |at: usize| match tiled {
            true => heads.grouped(at),
            false => heads.tiled(at),
        };
        let fits = match columns {
            false => (0..rows).all(|row| found.row(row) == expected.row(place(row))),
            true => (0..rows).all(|row| {
                let (e, f) = (expected.row(row), found.row(row));
                (0..cols).all(|col| f[col] == e[place(col)])
            }),
        };
        if fits {
            let name = match columns {
                true => FaultName::TiledColumns,
                false => FaultName::HeadPairing,
            };
            return Some((name, what.to_owned()));
        }
    }
    None
}

/// The one change that makes the trits of `found` those of `expected`, of the same shape, which differ;
/// `head_dim` for linears whose rows are rotated.
pub fn of_trits(
    expected: &TernaryMatrix,
    found: &TernaryMatrix,
    head_dim: Option<usize>,
) -> (FaultName, String) {
    let (rows, cols) = (expected.rows(), expected.cols());
    if let Some(head_dim) = head_dim {
        for order in RowOrder::ALL {
            let source = |row| expected.row(order.source(row, head_dim));
            if (0..rows).all(|row| found.row(row) == source(row)) {
                return (FaultName::PermutedRows, permuted(order));
            }
        }
    }
    let (e, f) = (expected.trits(), found.trits());
    if e.iter().zip(f).all(|(e, f)| *e == -*f) {
        return (
            FaultName::NegatedTrits,
            "every trit has the other sign".to_owned(),
        );
    }
    if let Some((block, first, second)) = swapped(e, f, cols) {
        let place = |at: usize| {
            let (row, col) = (at * block / cols, at * block % cols);
            format!("row {row}, column {col}")
        };
        let (first, second) = (place(first), place(second));
        let what =
            format!("the {block} trits from {first} have changed places with those from {second}");
        return (FaultName::SwappedTrits, what);
    }
    let differ = e.iter().zip(f).filter(|(e, f)| e != f).count();
    match expected.counts() == found.counts() {
        true => (
            FaultName::MovedTrits,
            format!("{differ} differ, as many of each kind as expected"),
        ),
        false => (
            FaultName::ChangedTrits,
            format!("{differ} of {} differ", e.len()),
        ),
    }
}

/// The change that makes the trits of `found` those of which `is_right` knows the hash, if it is one that keeps every
/// trit.
pub fn of_digest(
    found: &TernaryMatrix,
    head_dim: Option<usize>,
    is_right: impl Fn(&TernaryMatrix) -> bool,
) -> Option<(FaultName, String)> {
    for order in RowOrder::ALL.into_iter().filter(|_| head_dim.is_some()) {
        let head_dim = head_dim.unwrap_or(1);
        // what undoes one order is the other
        let undo = |row| order.undone(row, head_dim);
        if is_right(&found.permute_rows(undo)) {
            return Some((FaultName::PermutedRows, permuted(order)));
        }
    }
    let negated: Vec<i8> = found.trits().iter().map(|t| -t).collect();
    let scales = found.scales().clone();
    let negated = TernaryMatrix::new(found.rows(), found.cols(), negated, scales).ok()?;
    is_right(&negated).then(|| {
        (
            FaultName::NegatedTrits,
            "every trit has the other sign".to_owned(),
        )
    })
}

/// The sentence of rows that stand in another order.
pub(crate) fn permuted(order: RowOrder) -> String {
    match order {
        RowOrder::Gguf => {
            "the rows found are the expected ones in the paired order of GGUF's llama"
        }
        RowOrder::FromGguf => {
            "the rows expected are the found ones in the paired order of GGUF's llama"
        }
    }
    .to_owned()
}

/// The smallest size of aligned blocks of which exactly two differ, and each is what the other should be; and
/// which.
fn swapped(expected: &[i8], found: &[i8], cols: usize) -> Option<(usize, usize, usize)> {
    let mut sizes: Vec<usize> = (2..=8)
        .map(|n| 1 << n)
        .filter(|n| cols.is_multiple_of(*n))
        .collect();
    sizes.push(cols); // a whole row
    sizes.into_iter().find_map(|block| {
        let blocks = || expected.chunks(block).zip(found.chunks(block)).enumerate();
        let mut differing = blocks().filter(|(_, (e, f))| e != f);
        let (Some((a, (ea, fa))), Some((b, (eb, fb))), None) =
            (differing.next(), differing.next(), differing.next())
        else {
            return None;
        };
        (ea == fb && eb == fa).then_some((block, a, b))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_ternary::Scales;

    fn matrix(trits: Vec<i8>, cols: usize) -> TernaryMatrix {
        TernaryMatrix::new(trits.len() / cols, cols, trits, Scales::PerTensor(1.0)).unwrap()
    }

    #[test]
    fn scales_are_named_by_what_all_of_them_have_in_common() {
        let f16 = |x: f32| ScaleAs::F16.of(x);
        let name = |pairs: &[(f32, f32)]| of_scales(pairs.iter().copied()).map(|(k, _)| k.as_str());
        assert_eq!(name(&[(0.3, 0.3)]), None);
        assert_eq!(
            name(&[(0.3, 1.0 / 0.3), (0.7, 1.0 / 0.7)]),
            Some("inverse-scale")
        );
        assert_eq!(name(&[(0.3, f16(0.3)), (0.1, f16(0.1))]), Some("f16-scale"));
        assert_eq!(name(&[(0.3, ScaleAs::Bf16.of(0.3))]), Some("bf16-scale"));
        assert_eq!(name(&[(0.3, f16(0.3)), (0.1, 10.0)]), Some("changed-scale"));
        assert_eq!(
            name(&[(1.0, 1.001)]),
            Some("changed-scale"),
            "near 1 nothing is an inverse"
        );
        let (_, what) = of_scales([(0.25, 0.5), (0.5, 1.0)].into_iter()).unwrap();
        assert!(what.ends_with("2 times as large"), "{what}");
    }

    #[test]
    fn trits_are_named_by_the_change_that_explains_all() {
        let cols = 64;
        let trits: Vec<i8> = (0..16 * cols)
            .map(|i| ((i * i / 7 + i / 5) % 3) as i8 - 1)
            .collect();
        let right = matrix(trits.clone(), cols);
        let name = |trits: Vec<i8>, head_dim| of_trits(&right, &matrix(trits, cols), head_dim);
        for order in RowOrder::ALL {
            let permuted = right.permute_rows(|row| order.source(row, 8));
            let (kind, what) = name(permuted.into_trits(), Some(8));
            assert_eq!(kind.as_str(), "permuted-rows", "{what}");
        }
        assert_eq!(
            name(trits.iter().map(|t| -t).collect(), None).0.as_str(),
            "negated-trits"
        );
        for block in [4, 32, 64] {
            let mut swapped = trits.clone();
            let (a, b) = (2 * block, 5 * block);
            for i in 0..block {
                swapped.swap(a + i, b + i);
            }
            let (kind, what) = name(swapped, None);
            assert_eq!(kind.as_str(), "swapped-trits", "{what}");
        }
        let mut one = trits.clone();
        one[70] = if one[70] == 1 { -1 } else { one[70] + 1 };
        assert_eq!(name(one, Some(8)).0.as_str(), "changed-trits");
        let mut moved = trits;
        moved.rotate_left(1);
        assert_eq!(name(moved, None).0.as_str(), "moved-trits");
    }
}
