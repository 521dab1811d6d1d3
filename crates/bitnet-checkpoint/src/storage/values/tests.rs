#![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

#[test]
fn scale_structures_are_found_coarsest_first() {
    let mut w = vec![0f32; 2 * 64];
    (w[0], w[40], w[64], w[127]) = (0.5, -0.5, 0.5, -0.0);
    let (trits, scales) = dequantized(PlainType::F32, &f32s(&w), 64).unwrap();
    assert_eq!(scales, Scales::PerTensor(0.5));
    assert_eq!((trits[0], trits[40], trits[64], trits[127]), (1, -1, 1, 0));
    w[64] = 0.25;
    let (_, scales) = dequantized(PlainType::F32, &f32s(&w), 64).unwrap();
    assert_eq!(scales, Scales::PerRow(vec![0.5, 0.25]));
    w[40] = -0.125;
    let (_, scales) = dequantized(PlainType::F32, &f32s(&w), 64).unwrap();
    let want = Scales::PerGroup {
        group: 32,
        scales: vec![0.5, 0.125, 0.25, 0.0],
    };
    assert_eq!(scales, want);
    assert_eq!(
        evidence(PlainType::F32, &f32s(&w), 64),
        Ok(Evidence::Ternary)
    );
    w[41] = 0.25;
    let error = dequantized(PlainType::F32, &f32s(&w), 64).unwrap_err();
    assert_eq!(error.code, ErrorCode::NotTernary);
    assert!(
        error
            .message
            .starts_with("row 0, column 41: expected 0 or 0.125"),
        "{error}"
    );
    assert_eq!(
        evidence(PlainType::F32, &f32s(&w), 64),
        Ok(Evidence::Master)
    );
    w[41] = f32::NAN;
    assert_eq!(
        dequantized(PlainType::F32, &f32s(&w), 64).unwrap_err().code,
        ErrorCode::NonFinite
    );
}

#[test]
fn an_all_zero_tensor_has_scale_zero() {
    let (_, scales) = dequantized(PlainType::F32, &f32s(&[0.0; 64]), 64).unwrap();
    assert_eq!(scales, Scales::PerTensor(0.0));
    assert_eq!(
        evidence(PlainType::F32, &f32s(&[0.0; 64]), 64),
        Ok(Evidence::Zeros)
    );
}

#[test]
fn absmean_does_not_depend_on_threads() {
    let w: Vec<f32> = (0..3 * BLOCK + 77)
        .map(|i| ((i * 7919) % 1009) as f32 / 500.0 - 1.0)
        .collect();
    let bytes = f32s(&w);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| absmean(PlainType::F32, &bytes, 77).unwrap())
    };
    assert_eq!(run(1), run(3));
    let (sum, _) = bitnet_ternary::mean_magnitude::<F32>(&bytes);
    assert_eq!(
        run(2).1,
        Scales::PerTensor(absmean_scale(sum, w.len()).scale)
    );
}

#[test]
fn codes_in_wider_types_are_taken_by_value() {
    let wide: Vec<u8> = [0i32, 152, 255]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(
        bytes_by_value(PlainType::I32, &wide, 3).unwrap(),
        [0, 152, 255]
    );
    let half: Vec<u8> = [0x0000u16, 0x4318, 0x437f]
        .iter()
        .flat_map(|v| v.to_le_bytes())
        .collect();
    assert_eq!(
        bytes_by_value(PlainType::Bf16, &half, 3).unwrap(),
        [0, 152, 255]
    );
    for bad in [256i32, -1] {
        let bytes = bad.to_le_bytes();
        assert_eq!(
            bytes_by_value(PlainType::I32, &bytes, 1).unwrap_err().code,
            ErrorCode::Malformed
        );
    }
    assert!(bytes_by_value(PlainType::F32, &f32s(&[0.5]), 1).is_err());
    assert!(bytes_by_value(PlainType::F32, &f32s(&[f32::NAN]), 1).is_err());
    assert_eq!(
        trits_by_value(PlainType::I8, &[0xff, 0, 1], 3).unwrap(),
        [-1, 0, 1]
    );
    assert!(trits_by_value(PlainType::I8, &[2], 1).is_err());
}
