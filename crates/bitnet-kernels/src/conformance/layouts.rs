//! The layout for float activations beside the layout for int8: the same bits, whatever is multiplied.
//!
//! Invariant: as in the module above, nothing here knows a kernel by name.

use super::*;

/// The same scales as numbers of a shorter type.
fn rounded(scales: &Scales, round: impl Fn(f32) -> f32) -> Scales {
    let all = |scales: &[f32]| scales.iter().map(|x| round(*x)).collect();
    match scales {
        Scales::PerTensor(x) => Scales::PerTensor(round(*x)),
        Scales::PerRow(s) => Scales::PerRow(all(s)),
        Scales::PerGroup { group, scales } => Scales::PerGroup {
            group: *group,
            scales: all(scales),
        },
    }
}

/// Rows of several blocks of tiles, of a part of one, and of a tile alone; whole segments and parts.
#[test]
fn layouts_for_float_activations_give_the_same_bits() {
    let mut noise = Noise(21);
    for (rows, cols) in [
        (1, 128),
        (33, 256),
        (545, 384),
        (1100, 640),
        (40, 1000),
        (70, 130),
    ]
    .into_iter()
    .filter(|(rows, cols)| is_quick(rows * cols))
    {
        for scales in structures(&mut noise, rows, cols) {
            for round in [
                |x: f32| x,
                |x| f16_to_f32(f32_to_f16(x)),
                |x| bf16_to_f32(f32_to_bf16(x)),
            ] {
                let trits = noise.trits(rows * cols);
                let m = matrix(rows, cols, trits, rounded(&scales, round));
                let x = noise.floats(3 * cols);
                let want: Vec<f32> = x
                    .chunks_exact(cols)
                    .flat_map(|x| fixed_by_the_rules(&m, x))
                    .collect();
                for backend in Backend::available() {
                    let what = (backend, rows, cols, m.scales().structure());
                    let (float, int8) = (backend.pack_for(Inputs::Float, &m), backend.pack(&m));
                    assert_eq!(float.unpack(), m, "{what:?}");
                    let fixed = fixed(backend, &x, cols);
                    assert_bits(&multiply(&float, &fixed), &want, &what);
                    let mut parts = vec![f32::NAN; 3 * rows];
                    let cut = (rows / 3).next_multiple_of(float.tile_rows()).min(rows);
                    let (mut low, mut high) = Output::new(&mut parts, 3, rows).split_at(cut);
                    if high.rows().start.is_multiple_of(float.tile_rows()) {
                        float.multiply(&fixed, &mut high);
                        float.multiply(&fixed, &mut low);
                        assert_bits(&parts, &want, &what);
                    }
                    let mut quantized = ActivationBatch::default();
                    backend.quantize(&x, cols, &mut quantized).unwrap();
                    let (found, expected) =
                        (multiply(&float, &quantized), multiply(&int8, &quantized));
                    assert_bits(&found, &expected, &what);
                }
            }
        }
    }
}
