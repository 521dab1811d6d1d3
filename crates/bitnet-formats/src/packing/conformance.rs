//! One suite over every row of `PACKINGS`: what a packing promises, whatever its layout.
//!
//! Invariant: nothing here names a packing except where the fact tested is that packing's own.

mod own;

use super::*;
use crate::every;
use proptest::prelude::*;

const ONE: Scales = Scales::PerTensor(1.0);

fn matrix(rows: usize, cols: usize, trits: Vec<i8>, scales: Scales) -> TernaryMatrix {
    TernaryMatrix::new(rows, cols, trits, scales).unwrap()
}

/// A matrix of pseudo-random trits, zeros in whole blocks included.
fn sample(rows: usize, cols: usize, seed: u64) -> Vec<i8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) as usize
    };
    let mut trits: Vec<i8> = (0..rows * cols).map(|_| (next() % 3) as i8 - 1).collect();
    for block in trits.chunks_mut(256) {
        if next() % 5 == 0 {
            block.fill(0);
        }
    }
    trits
}

/// Packs by units, as convert does, also what `pack` refuses to write.
fn encode(p: &dyn Packing, m: &TernaryMatrix) -> Vec<u8> {
    let trailer = p.trailer(m);
    let len = p.stored_len(m.rows(), m.cols()).unwrap() as usize - trailer.len();
    let mut out = vec![0; len];
    let unit = p.unit_len(m.rows(), m.cols());
    assert!(
        unit > 0 && len.is_multiple_of(unit),
        "{}: {len} bytes in units of {unit}",
        p.name()
    );
    // in two parts, to see that units are independent
    let cut = len / unit / 2;
    let (head, tail) = out.split_at_mut(cut * unit);
    p.pack_units(m, cut, tail);
    p.pack_units(m, 0, head);
    out.extend(trailer);
    out
}

fn tensor<'a>(p: &dyn Packing, m: &'a TernaryMatrix, bytes: &'a [u8]) -> PackedTensor<'a> {
    let outside = (!p.holds_scales()).then_some(m.scales());
    PackedTensor {
        bytes,
        rows: m.rows(),
        cols: m.cols(),
        outside,
    }
}

/// A matrix with the trits of `m` that this packing can express.
fn expressible(p: &dyn Packing, m: TernaryMatrix) -> TernaryMatrix {
    let sign = |t: i8| if t < 0 { -1 } else { 1 };
    let (block, is_zero): (usize, fn(usize) -> bool) = match p.name() {
        "q1_0" => (128, |_| false),
        // one in four that stand 16 columns apart
        "stq1_0" => (256, |column| column / 16 % 4 == column % 16 * 7 / 3 % 4),
        _ => return m,
    };
    let (rows, cols, scales) = (m.rows(), m.cols(), m.scales().clone());
    let mut trits = m.into_trits();
    for block in trits
        .chunks_mut(cols.max(1))
        .flat_map(|row| row.chunks_mut(block))
    {
        if block.iter().any(|&t| t != 0) {
            for (column, trit) in block.iter_mut().enumerate() {
                *trit = if is_zero(column) { 0 } else { sign(*trit) };
            }
        }
    }
    matrix(rows, cols, trits, scales)
}

/// Every non-zero trit with its scale: what the weights are, whatever the structure of the scales.
fn weights(m: &TernaryMatrix) -> Vec<u32> {
    let at = |i: usize| m.scales().at(i / m.cols(), i % m.cols(), m.cols());
    let voters = (0..m.trits().len()).filter(|&i| m.trits()[i] != 0);
    voters.map(|i| at(i).to_bits()).collect()
}

/// Everything that holds for a matrix whose shape and scales can be stored.
fn check(p: &dyn Packing, m: &TernaryMatrix) {
    let bytes = encode(p, m);
    match p.pack(m, ScaleRounding::Refuse) {
        Ok(packed) => assert_eq!(packed, bytes, "{}", p.name()),
        Err(e) => assert!(
            matches!(e.code, ErrorCode::TargetCannotHold) && e.hint.is_some(),
            "{}: {e}",
            p.name()
        ),
    }
    let t = tensor(p, m, &bytes);
    let back = p.unpack(&t).unwrap();
    assert_eq!(
        back.trits(),
        m.trits(),
        "{} {}x{}",
        p.name(),
        m.rows(),
        m.cols()
    );
    assert_eq!(weights(&back), weights(m), "{}", p.name());
    if !matches!(m.scales(), Scales::PerGroup { .. }) {
        assert_eq!(back.normal_scales(), m.normal_scales(), "{}", p.name());
    }
    // any run of rows by itself
    for first in [0, m.rows() / 3, m.rows().saturating_sub(1)] {
        for n in [1, 2, m.rows()].map(|n| n.min(m.rows() - first)) {
            let mut out = vec![9; n * m.cols()];
            p.unpack_rows(&t, first, &mut out).unwrap();
            assert_eq!(out, m.trits()[first * m.cols()..(first + n) * m.cols()]);
        }
    }
}

#[test]
fn names_and_ids_are_unique_as_far_as_they_are_written() {
    for (i, a) in PACKINGS.iter().enumerate() {
        assert_eq!(packing_by_name(a.name()).unwrap().name(), a.name());
        for b in &PACKINGS[i + 1..] {
            assert_ne!(a.name(), b.name());
            let both_written = a.is_writable() && b.is_writable();
            assert!(!(both_written && a.gguf_type().is_some() && a.gguf_type() == b.gguf_type()));
        }
    }
    assert!(packing_by_name("i2_s ").is_none());
}

#[test]
fn round_trips_at_every_edge_of_a_block() {
    for p in PACKINGS {
        let mut met = 0;
        for rows in [1, 2, 3, 4, 5, 7, 8, 12, 13, 32, 64] {
            for cols in [
                1, 3, 16, 32, 63, 64, 65, 96, 127, 128, 129, 256, 320, 384, 512, 768,
            ] {
                if p.stored_len(rows, cols).is_ok() {
                    met += 1;
                    if !(met - 1usize).is_multiple_of(every(43)) {
                        continue;
                    }
                    let trits = sample(rows, cols, (rows * 1000 + cols) as u64);
                    let m = matrix(rows, cols, trits, Scales::PerTensor(0.375));
                    check(*p, &expressible(*p, m));
                }
            }
        }
        assert!(met >= 9, "{}: {met} shapes", p.name());
    }
}

#[test]
fn empty_matrices_neither_panic_nor_grow() {
    for p in PACKINGS {
        for (rows, cols) in [(0, 0), (0, 256), (4, 0)] {
            let m = matrix(rows, cols, vec![], ONE);
            let bytes = encode(*p, &m);
            let t = tensor(*p, &m, &bytes);
            assert_eq!(p.unpack(&t).unwrap().trits(), [] as [i8; 0], "{}", p.name());
            p.unpack_rows(&t, 0, &mut []).unwrap();
        }
        // a file may claim any number of empty rows
        let bytes = vec![0; p.trailer(&matrix(0, 0, vec![], ONE)).len()];
        let t = PackedTensor {
            bytes: &bytes,
            rows: usize::MAX & !3,
            cols: 0,
            outside: Some(&ONE),
        };
        assert_eq!(p.unpack(&t).unwrap().trits(), [] as [i8; 0], "{}", p.name());
    }
}

#[test]
fn wrong_lengths_and_rows_are_errors() {
    for p in PACKINGS {
        // a shape that all of them have
        let m = matrix(64, 256, sample(64, 256, 5), ONE);
        let bytes = encode(*p, &m);
        let mut out = vec![0; 256];
        let longer = [&bytes[..], &[0]].concat();
        for (bytes, code) in [
            (&bytes[..bytes.len() - 1], ErrorCode::Truncated),
            (&[], ErrorCode::Truncated),
            (&longer[..], ErrorCode::Malformed),
        ] {
            let t = tensor(*p, &m, bytes);
            assert_eq!(p.unpack(&t).unwrap_err().code, code, "{}", p.name());
            assert_eq!(p.unpack_rows(&t, 0, &mut out).unwrap_err().code, code);
            if p.holds_scales() {
                assert_eq!(p.scales(&t).unwrap_err().code, code);
            }
        }
        let t = tensor(*p, &m, &bytes);
        for (first, len) in [(64, 256), (usize::MAX, 256), (0, 255), (63, 512)] {
            let mut out = vec![0; len];
            let e = p.unpack_rows(&t, first, &mut out).unwrap_err();
            assert_eq!(e.code, ErrorCode::Usage, "{}", p.name());
        }
        for (rows, cols) in [
            (usize::MAX, 256),
            (1 << (usize::BITS / 2 + 8), 1 << (usize::BITS / 2 + 8)),
        ] {
            assert!(p.stored_len(rows, cols).is_err());
            assert!(p.unpack(&PackedTensor { rows, cols, ..t }).is_err());
        }
    }
}

/// Packings whose every byte is the code of trits.
const ALL_BYTES_DECODE: [&str; 5] = ["tq1_0", "ptq1_0", "iq1_bn", "q1_0", "stq1_0"];

#[test]
fn bad_codes_are_named_with_their_row_and_column() {
    for p in PACKINGS {
        // a byte of a tile is named as a whole (`own`)
        if ALL_BYTES_DECODE.contains(&p.name()) || p.name().starts_with("tile32") {
            continue;
        }
        let shapes = [(8, 256), (16, 256), (32, 256)];
        let fits = |&(rows, cols): &(usize, usize)| p.stored_len(rows, cols).is_ok();
        let (rows, cols) = shapes.into_iter().find(fits).unwrap();
        let mut seen = vec![0; rows * cols];
        // one step from the code of +1, or of -1, is the invalid code
        for trit in [1, -1] {
            let same = matrix(rows, cols, vec![trit; rows * cols], ONE);
            let mut bytes = encode(*p, &same);
            for byte in (0..bytes.len()).step_by(every(61)) {
                for bit in 0..8 {
                    bytes[byte] ^= 1 << bit;
                    let result = p.unpack(&tensor(*p, &same, &bytes));
                    bytes[byte] ^= 1 << bit;
                    let Err(e) = result else { continue };
                    if e.code != ErrorCode::BadCode {
                        // a scale was hit
                        assert!(matches!(
                            e.code,
                            ErrorCode::NonFinite | ErrorCode::Malformed
                        ));
                        continue;
                    }
                    assert!(e.hint.is_some());
                    let at: Vec<usize> = e
                        .message
                        .split([' ', ',', ':'])
                        .filter_map(|w| w.parse().ok())
                        .collect();
                    seen[at[0] * cols + at[1]] += 1;
                }
            }
        }
        if cfg!(miri) {
            assert!(seen.iter().all(|&n| n <= 1) && seen.contains(&1));
        } else if p.name().starts_with("tl") {
            // a code of two or three trits is named by the first of them
            let rows = seen.chunks(cols);
            assert!(rows.clone().all(|row| row[0] > 0 && row[cols - 2] > 0));
            assert!(rows.flatten().filter(|&&n| n > 0).count() * 3 >= seen.len());
        } else {
            assert!(
                seen.iter().all(|&n| n == 1),
                "{}: every place once",
                p.name()
            );
        }
    }
}

#[test]
fn padding_rows_of_hf_u8_are_written_as_code_0_and_never_read() {
    let p = packing_by_name("hf_u8").unwrap();
    let m = matrix(5, 1, vec![1; 5], ONE);
    let mut bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
    assert_eq!(bytes, [0b0010_1010, 0b0000_1010]); // rows 0 2 4 -, 1 3 - -
    bytes[0] |= 0b1100_0000;
    assert_eq!(p.unpack(&tensor(p, &m, &bytes)).unwrap(), m);
    let e = p
        .unpack(&PackedTensor {
            outside: None,
            ..tensor(p, &m, &bytes)
        })
        .unwrap_err();
    assert_eq!(e.code, ErrorCode::MissingTensor);
}

#[test]
fn scales_beside_the_codes_are_checked() {
    let p = packing_by_name("hf_u8").unwrap();
    let m = matrix(4, 64, vec![1; 256], ONE);
    let bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
    let read = |outside: &Scales| {
        p.scales(&PackedTensor {
            outside: Some(outside),
            ..tensor(p, &m, &bytes)
        })
    };
    for good in [
        Scales::PerTensor(0.0),
        Scales::PerRow(vec![0.5; 4]),
        Scales::PerGroup {
            group: 32,
            scales: vec![0.5; 8],
        },
    ] {
        assert_eq!(read(&good), Ok(good));
    }
    let code = |outside: Scales| read(&outside).unwrap_err().code;
    assert_eq!(code(Scales::PerTensor(f32::NAN)), ErrorCode::NonFinite);
    assert_eq!(code(Scales::PerTensor(-1.0)), ErrorCode::Malformed);
    assert_eq!(code(Scales::PerRow(vec![0.5; 3])), ErrorCode::Malformed);
    for group in [0, 48] {
        assert_eq!(
            code(Scales::PerGroup {
                group,
                scales: vec![]
            }),
            ErrorCode::Malformed
        );
    }
}

#[test]
fn read_only_layouts_and_awkward_shapes_are_refused_with_a_hint() {
    let refused = |name: &str, rows, cols| {
        let e = packing_by_name(name)
            .unwrap()
            .packed_len(rows, cols)
            .unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
        assert!(e.hint.is_some());
    };
    refused("i2_s", 6, 320);
    refused("i2_s", 128, 100);
    refused("i2_s-arm64", 4, 256);
    refused("i2_s-rows4", 4, 256);
    refused("tq1_0", 4, 320);
    refused("tq2_0", 4, 128);
    // legal to read all the same: whole blocks, if not whole rows
    let i2_s = packing_by_name("i2_s").unwrap();
    assert_eq!(i2_s.stored_len(6, 320), Ok(512));
    assert!(i2_s.stored_len(3, 100).is_err());
}

#[test]
fn i2_s_holds_what_normalises_to_one_scale() {
    let p = packing_by_name("i2_s").unwrap();
    let mut trits = vec![0; 2 * 128];
    trits[0] = 1;
    let rows = |a, b| matrix(2, 128, trits.clone(), Scales::PerRow(vec![a, b]));
    let bytes = p.pack(&rows(0.3, 9.0), ScaleRounding::Refuse).unwrap(); // row 1 does not vote
    assert_eq!(bytes[64..68], 0.3f32.to_le_bytes());
    assert_eq!(bytes[68..], [0; 28]);
    trits[128] = 1;
    let m = matrix(2, 128, trits, Scales::PerRow(vec![0.3, 9.0]));
    assert_eq!(
        p.pack(&m, ScaleRounding::Allow).unwrap_err().code,
        ErrorCode::TargetCannotHold
    );
    // the 28 bytes are not read; the scale is
    let m = matrix(1, 128, vec![0; 128], Scales::PerTensor(1e-5));
    let mut bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
    bytes[36..].fill(0xa5);
    assert_eq!(p.unpack(&tensor(p, &m, &bytes)).unwrap(), m);
    for (bad, code) in [
        (f32::NAN, ErrorCode::NonFinite),
        (f32::INFINITY, ErrorCode::NonFinite),
        (-0.5, ErrorCode::Malformed),
    ] {
        bytes[32..36].copy_from_slice(&bad.to_le_bytes());
        let e = p.scales(&tensor(p, &m, &bytes)).unwrap_err();
        assert_eq!(e.code, code);
        assert!(e.message.contains("byte 32"), "{e}");
    }
}

#[test]
fn f16_scales_are_exact_or_refused_with_their_error() {
    for p in ["tq1_0", "tq2_0"].map(|n| packing_by_name(n).unwrap()) {
        let one = |s| matrix(1, 256, vec![1; 256], Scales::PerTensor(s));
        let check = |s, rounding| p.check_scales(&one(s), rounding);
        assert_eq!(check(3.0 / 256.0, ScaleRounding::Refuse), Ok(0.0));
        assert_eq!(check(0.0, ScaleRounding::Refuse), Ok(0.0));
        let e = check(0.0123, ScaleRounding::Refuse).unwrap_err();
        assert_eq!(e.code, ErrorCode::ScaleRounding);
        assert_eq!(
            e.message,
            "scale 0.0123 (0x3c4985f0) becomes 0.012298584 (0x224c) in f16, relative error 1.2e-4"
        );
        assert_eq!(e.hint.as_deref(), Some("--allow-scale-rounding"));
        let error = check(0.0123, ScaleRounding::Allow).unwrap();
        assert!((error - 1.15e-4).abs() < 1e-6, "{error}");
        for s in [2.9e-8, 2f32.powi(-25), 65520.0, 1e9] {
            for rounding in [ScaleRounding::Refuse, ScaleRounding::Allow] {
                assert_eq!(
                    check(s, rounding).unwrap_err().code,
                    ErrorCode::TargetCannotHold
                );
            }
        }
        assert!(check(65519.0, ScaleRounding::Allow).is_ok());
        // a scale that multiplies nothing is not stored, so it cannot be lost
        let silent = matrix(1, 256, vec![0; 256], Scales::PerTensor(0.0123));
        assert_eq!(p.check_scales(&silent, ScaleRounding::Refuse), Ok(0.0));
        let bytes = p.pack(&silent, ScaleRounding::Refuse).unwrap();
        let at = bytes.len() - 2;
        assert_eq!(bytes[at..], [0, 0]);
        assert_eq!(
            p.scales(&tensor(p, &silent, &bytes)),
            Ok(Scales::PerTensor(0.0))
        );
        for (bad, code) in [
            (0x7e00u16, ErrorCode::NonFinite),
            (0x7c00, ErrorCode::NonFinite),
            (0xbc00, ErrorCode::Malformed),
        ] {
            let mut bytes = bytes.clone();
            bytes[at..].copy_from_slice(&bad.to_le_bytes());
            assert_eq!(
                p.scales(&tensor(p, &silent, &bytes)).unwrap_err().code,
                code
            );
        }
    }
}

#[test]
fn a_negative_block_scale_turns_its_trits_round() {
    let trits = sample(2, 512, 11);
    let scales: Vec<f32> = (1..=8).map(|i| i as f32 / 16.0).collect();
    let (group, flipped) = (128, [1, 2, 6]);
    let m = matrix(2, 512, trits, Scales::PerGroup { group, scales });
    for name in [
        "pq2_0",
        "q2_0-g128",
        "q2_0-g128-last",
        "ptq1_0",
        "q2_0",
        "q1_0",
    ] {
        let p = packing_by_name(name).unwrap();
        let m = expressible(p, m.clone());
        let mut bytes = encode(p, &m);
        let block = bytes.len() / 8;
        // where the scale stands in a block of 128 weights
        let signs: &[usize] = match name {
            "ptq1_0" => &[27],
            "q2_0" => &[1, 19],
            "q2_0-g128-last" => &[33],
            _ => &[1],
        };
        let mut expected = m.trits().to_vec();
        for i in flipped {
            for sign in signs {
                bytes[i * block + sign] |= 0x80;
            }
            expected[i * group..(i + 1) * group]
                .iter_mut()
                .for_each(|t| *t = -*t);
        }
        let found = p.unpack(&tensor(p, &m, &bytes)).unwrap();
        assert_eq!(found.trits(), expected, "{name}");
        assert_eq!(found.normal_scales(), m.normal_scales(), "{name}");
        // among scales of 2 and more it is a code that was taken for one
        for (i, block) in bytes.chunks_exact_mut(block).enumerate() {
            for sign in signs.iter().filter(|_| i % 2 == 0) {
                block[*sign] = block[*sign] & 0x80 | 0x42;
            }
        }
        let error = p.scales(&tensor(p, &m, &bytes)).unwrap_err();
        assert_eq!(error.code, ErrorCode::Malformed, "{name}");
    }
    // elsewhere it is refused
    let one = matrix(1, 256, sample(1, 256, 3), Scales::PerTensor(0.5));
    for (name, sign) in [("tq2_0", 65), ("tq1_0", 53)] {
        let p = packing_by_name(name).unwrap();
        let mut bytes = encode(p, &one);
        bytes[sign] |= 0x80;
        assert!(p.scales(&tensor(p, &one, &bytes)).is_err(), "{name}");
    }
}

#[test]
fn block_scales_come_out_as_coarse_as_they_agree() {
    for p in ["tq1_0", "tq2_0"].map(|n| packing_by_name(n).unwrap()) {
        let mut trits = vec![1i8; 3 * 512];
        trits[256..512].fill(0); // row 0, second block is silent
        trits[1024..1056].fill(0); // row 2, first group of 32
        let back = |scales: Scales| {
            let m = matrix(3, 512, trits.clone(), scales);
            let bytes = p.pack(&m, ScaleRounding::Refuse)?;
            p.scales(&tensor(p, &m, &bytes))
        };
        assert_eq!(back(Scales::PerTensor(0.5)), Ok(Scales::PerTensor(0.5)));
        assert_eq!(
            back(Scales::PerRow(vec![0.5; 3])),
            Ok(Scales::PerTensor(0.5))
        );
        let rows = Scales::PerRow(vec![0.5, 0.25, 2.0]);
        assert_eq!(back(rows.clone()), Ok(rows));
        let groups = |group, scales: &[f32]| Scales::PerGroup {
            group,
            scales: scales.to_vec(),
        };
        assert_eq!(
            back(groups(256, &[0.5, 9.0, 0.25, 1.0, 2.0, 2.0])),
            Ok(groups(256, &[0.5, 0.0, 0.25, 1.0, 2.0, 2.0]))
        );
        // groups of 32: equal inside a block, except one that does not vote
        let mut fine = vec![0.5; 48];
        fine[32] = 3.0;
        assert_eq!(back(groups(32, &fine)), Ok(Scales::PerTensor(0.5)));
        fine[33] = 3.0;
        let e = back(groups(32, &fine)).unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
        assert!(
            e.message.starts_with("row 2, columns from 0:")
                && e.message.ends_with("found 3 and 0.5"),
            "{e}"
        );
    }
}

/// `cargo test --release -p bitnet-formats throughput -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
fn throughput() {
    let (rows, cols) = (2560, 2560);
    let m = matrix(rows, cols, sample(rows, cols, 1), ONE);
    for p in PACKINGS {
        let mut best = [f64::MAX; 2];
        let bytes = encode(*p, &m);
        let mut out = vec![0; rows * cols];
        for _ in 0..9 {
            let start = std::time::Instant::now();
            let _ = std::hint::black_box(encode(*p, &m));
            best[0] = best[0].min(start.elapsed().as_secs_f64());
            let start = std::time::Instant::now();
            p.unpack_rows(&tensor(*p, &m, &bytes), 0, &mut out).unwrap();
            best[1] = best[1].min(start.elapsed().as_secs_f64());
        }
        // of 2-bit codes, whatever the packing takes
        let [pack, unpack] = best.map(|t| (rows * cols) as f64 / 4.0 / t / 1e9);
        println!(
            "{:<12} pack {pack:5.2} GB/s, unpack {unpack:5.2} GB/s",
            p.name()
        );
    }
}

#[test]
fn tq1_0_decodes_every_byte_as_the_page_says() {
    let p = packing_by_name("tq1_0").unwrap();
    for byte in (0..=255u8).step_by(every(5)) {
        let mut block = [byte; 54];
        block[52..].copy_from_slice(&[0, 0x3c]);
        let t = PackedTensor {
            bytes: &block,
            rows: 1,
            cols: 256,
            outside: None,
        };
        let m = p.unpack(&t).unwrap();
        let digit = |n: u32| ((3 * u32::from(byte.wrapping_mul(3u8.pow(n)))) >> 8) as i8 - 1;
        for (e, &trit) in m.trits().iter().enumerate() {
            let n = match e {
                0..160 => e / 32,
                160..240 => (e - 160) / 16,
                _ => (e - 240) / 4,
            };
            assert_eq!(trit, digit(n as u32), "byte {byte}, element {e}");
        }
        let silent = m.trits().iter().all(|&t| t == 0);
        assert_eq!(
            p.scales(&t),
            Ok(Scales::PerTensor(if silent { 0.0 } else { 1.0 }))
        );
    }
}

/// Scales of every structure that fit the shape, f16 values so that every packing may hold them.
fn any_scales(rows: usize, cols: usize) -> BoxedStrategy<Scales> {
    let value = (1u16..0x7c00).prop_map(bitnet_ternary::f16_to_f32);
    let row = prop::collection::vec(value.clone(), rows).prop_map(Scales::PerRow);
    let tensor = value.clone().prop_map(Scales::PerTensor);
    if !cols.is_multiple_of(32) {
        return prop_oneof![tensor, row].boxed();
    }
    let group = prop::sample::select(vec![32, 64, 128, 256])
        .prop_filter("fits", move |g| cols.is_multiple_of(*g))
        .prop_flat_map(move |group| {
            prop::collection::vec(value.clone(), rows * cols / group)
                .prop_map(move |scales| Scales::PerGroup { group, scales })
        });
    prop_oneof![tensor, row, group].boxed()
}

fn any_matrix() -> impl Strategy<Value = TernaryMatrix> {
    let cols = prop_oneof![
        1usize..70,
        prop::sample::select(vec![64, 128, 192, 256, 320, 512])
    ];
    let rows = prop_oneof![1usize..10, Just(32), Just(48), Just(64)];
    let shape = (rows, cols).prop_filter("small", |(rows, cols)| rows * cols <= MOST_TRITS);
    shape.prop_flat_map(|(rows, cols)| {
        (any_scales(rows, cols), any::<u64>())
            .prop_map(move |(scales, seed)| matrix(rows, cols, sample(rows, cols, seed), scales))
    })
}

/// Shapes of so many trits are tried: Miri takes seconds for a small matrix in every packing.
const MOST_TRITS: usize = if cfg!(miri) { 3000 } else { 1 << 24 };

fn cases() -> ProptestConfig {
    match cfg!(miri) {
        // failures are kept in a file
        true => ProptestConfig {
            cases: 3,
            failure_persistence: None,
            ..ProptestConfig::default()
        },
        false => ProptestConfig::default(),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_packed_comes_back(m in any_matrix()) {
        for p in PACKINGS {
            let m = expressible(*p, m.clone());
            if p.stored_len(m.rows(), m.cols()).is_err() {
                prop_assert!(p.pack(&m, ScaleRounding::Refuse).is_err());
            } else if p.check_scales(&m, ScaleRounding::Refuse).is_ok() {
                check(*p, &m);
            } else {
                let e = p.pack(&m, ScaleRounding::Allow).unwrap_err();
                prop_assert_eq!(e.code, ErrorCode::TargetCannotHold);
            }
        }
    }

    #[test]
    fn hostile_bytes_are_an_error_or_a_matrix(
        bytes in prop::collection::vec(any::<u8>(), 0..700),
        rows in 0usize..9,
        cols in prop_oneof![0usize..70, Just(128), Just(256), Just(512)],
    ) {
        // tiles have 32 rows
        for rows in [rows, 32 * rows].into_iter().filter(|rows| rows * cols <= MOST_TRITS) {
        for p in PACKINGS {
            let mut bytes = bytes.clone();
            for fit in [false, true] {
                if let (true, Ok(len)) = (fit, p.stored_len(rows, cols)) {
                    bytes.resize(len as usize, 0x29);
                }
                let t = PackedTensor { bytes: &bytes, rows, cols, outside: Some(&ONE) };
                if let Ok(m) = p.unpack(&t) {
                    prop_assert!(m.trits().iter().all(|t| (-1..=1).contains(t)));
                    // and it is stable: what was read can be stored and read again
                    if p.check_scales(&m, ScaleRounding::Refuse).is_ok() {
                        check(*p, &m);
                    }
                }
            }
        }
        }
    }
}
