//! Vectors of rotated weights: the transform of inputs and of embedding rows, folded weights, and the order of value
//! heads.
//!
//! Invariant: every kernel computes them, and every file of a case is compared.

use super::folder::{Checked, Outcome, Vectors, ensure, f32s, same, usize_of};
use bitnet_checkpoint::Rotation;
use bitnet_kernels::Backend;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What the manifest allows f32 results at unit variance.
const TOLERANCE: f64 = 1e-5;

fn f64s(bytes: &[u8]) -> Vec<f64> {
    let numbers = bytes.as_chunks::<8>().0.iter();
    numbers.map(|b| f64::from_le_bytes(*b)).collect()
}

fn wide(numbers: Vec<f32>) -> Vec<f64> {
    numbers.into_iter().map(f64::from).collect()
}

fn near(what: &str, found: &[f64], expected: &[f64], tolerance: f64) -> Result<(), String> {
    ensure(found.len() == expected.len(), || {
        format!(
            "{what}: expected {} numbers, found {}",
            expected.len(),
            found.len()
        )
    })?;
    let far = |(f, e): (&f64, &f64)| (f - e).abs() > tolerance || f.is_nan();
    match found.iter().zip(expected).position(far) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{what} {at}: expected {}, found {}",
            expected[at], found[at]
        )),
    }
}

/// A case of the transform, or of the order of value heads.
pub fn check_rotation(vectors: &Vectors, folder: &str, case: &Value) -> Checked {
    if !case["files"]["gather_i32"].is_null() {
        return check_order(vectors, folder, case);
    }
    let file = |key: &str| vectors.bytes(folder, &case["files"], key);
    let (block, width) = (usize_of(case, "block_size")?, usize_of(case, "width")?);
    ensure(block.is_power_of_two() && width % block == 0, || {
        format!("blocks of {block} in {width}")
    })?;
    let signs: Vec<i8> = file("signs_i8")?.into_iter().map(|b| b as i8).collect();
    let factors: Vec<f32> = signs.iter().map(|sign| f32::from(*sign)).collect();
    let (x, z) = (f32s(&file("x_f32")?), f32s(&file("z_f32")?));
    let (dense, folded) = (
        wide(f32s(&file("dense_weight_f32")?)),
        f64s(&file("folded_weight_f64")?),
    );
    for backend in Backend::available() {
        let name = |what: &str| format!("{} {what}", backend.name());
        let (mut forward, mut inverse) = (x.clone(), z.clone());
        for row in forward.chunks_exact_mut(width) {
            backend.hadamard(row, &factors, block);
        }
        for row in inverse.chunks_exact_mut(width) {
            backend.hadamard_inverse(row, &factors, block);
        }
        let (forward, inverse) = (wide(forward), wide(inverse));
        for (found, stem) in [(&forward, "forward"), (&inverse, "inverse")] {
            let peer = wide(f32s(&file(&format!("{stem}_f32_mlx"))?));
            near(&name(stem), found, &peer, TOLERANCE)?;
            let exact = f64s(&file(&format!("{stem}_f64"))?);
            near(&name(stem), found, &exact, TOLERANCE)?;
        }
        // a rotated input and folded weights give the product of what they stand for
        let product = f64s(&file("product_f64")?);
        let found: Vec<f64> = forward
            .chunks_exact(width)
            .flat_map(|x| {
                let rows = folded.chunks_exact(width);
                rows.map(move |w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>())
            })
            .collect();
        let size = product.iter().fold(1.0f64, |m, p| m.max(p.abs()));
        near(&name("product"), &found, &product, TOLERANCE * size)?;
    }
    let rotation = Rotation {
        block_size: block,
        signs: BTreeMap::from([(width, signs)]),
        folded: BTreeSet::new(),
        embeddings: false,
        tiled_values: false,
    };
    let mut unfolded = folded;
    for row in unfolded.chunks_exact_mut(width) {
        rotation.unfold(row);
    }
    near("unfolded weight", &unfolded, &dense, 1e-12)?;
    Ok(Outcome::Passed)
}

/// `x_grouped[i] = x_tiled[gather[i]]`
fn check_order(vectors: &Vectors, folder: &str, case: &Value) -> Checked {
    let bytes = vectors.bytes(folder, &case["files"], "gather_i32")?;
    let gather: Vec<i32> = bytes
        .as_chunks::<4>()
        .0
        .iter()
        .map(|b| i32::from_le_bytes(*b))
        .collect();
    let (width, keys, rep) = (
        usize_of(case, "hd")?,
        usize_of(case, "nk")?,
        usize_of(case, "rep")?,
    );
    let tiled = |at: usize| {
        let (head, i) = (at / width, at % width);
        let (key, r) = (head / rep, head % rep);
        ((r * keys + key) * width + i) as i32
    };
    let found: Vec<i32> = (0..width * keys * rep).map(tiled).collect();
    same("feature", &found, &gather)?;
    Ok(Outcome::Passed)
}
