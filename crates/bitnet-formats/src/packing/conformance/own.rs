//! What single packings promise beyond what all do: rows of zeros, joined groups, tilings, affine
//! packs, no zeros.
//!
//! Invariant: a fact of one packing stands here once, with the number that its page gives.

use super::*;

#[test]
fn rows_of_zeros_say_plus_one_and_read_as_zeros() {
    for (name, head, code) in [
        ("iq1_bn", 2, 0xff),
        ("iq2_bn", 4, 0xaa),
        ("iq2_bn_r4", 16, 0xaa),
    ] {
        let p = packing_by_name(name).unwrap();
        let zeros = matrix(4, 64, vec![0; 256], Scales::PerTensor(0.3));
        let bytes = p.pack(&zeros, ScaleRounding::Refuse).unwrap();
        assert!(bytes[..head].iter().all(|&b| b == 0) && bytes[head] == code);
        assert_eq!(
            p.unpack(&tensor(p, &zeros, &bytes)).unwrap().trits(),
            [0; 256]
        );
        // a scale of 0 would turn trits into zeros
        let mut trits = vec![0; 256];
        trits[200] = 1;
        let lost = matrix(
            4,
            64,
            trits.clone(),
            Scales::PerRow(vec![1.0, 1.0, 1.0, 0.0]),
        );
        let e = p.pack(&lost, ScaleRounding::Allow).unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
        assert!(e.message.starts_with("row 3:"), "{e}");
        // two groups of a row
        trits[192 + 40] = 1;
        let mut scales = vec![1.0; 8];
        scales[6] = 0.5;
        let two = matrix(4, 64, trits, Scales::PerGroup { group: 32, scales });
        let e = p.pack(&two, ScaleRounding::Allow).unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
    }
    let iq1 = packing_by_name("iq1_bn").unwrap();
    let one = matrix(1, 64, vec![1; 64], Scales::PerTensor(0.0123));
    let e = iq1.pack(&one, ScaleRounding::Refuse).unwrap_err();
    assert_eq!(e.code, ErrorCode::ScaleRounding);
    assert!(iq1.check_scales(&one, ScaleRounding::Allow).unwrap() > 1e-4);
}

#[test]
fn groups_come_back_as_coarse_as_they_were() {
    let p = packing_by_name("q2_0").unwrap();
    let back = |cols, scales| {
        let m = matrix(2, cols, vec![1; 2 * cols], scales);
        let bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
        p.scales(&tensor(p, &m, &bytes)).unwrap()
    };
    let groups = |group, scales: &[f32]| Scales::PerGroup {
        group,
        scales: scales.to_vec(),
    };
    for g in [
        groups(64, &[0.5, 0.25, 0.5, 2.0]),
        groups(128, &[0.5, 0.25, 2.0, 2.0]),
        groups(256, &[0.5, 0.25, 2.0, 2.0]),
    ] {
        let Scales::PerGroup { group, .. } = g else {
            unreachable!()
        };
        assert_eq!(back(2 * group, g.clone()), g);
    }
    // 192 columns are no whole groups of 128
    let odd = groups(64, &[0.5, 0.5, 0.25, 2.0, 2.0, 2.0]);
    assert_eq!(back(192, odd.clone()), odd);
}

#[test]
fn tilings_are_named_recorded_and_checked() {
    let ones = |rows, cols| matrix(rows, cols, sample(rows, cols, 3), ONE);
    for (stem, rows, cols, names) in [
        (
            "tl1",
            128,
            256,
            [
                "tl1-128-64-64",
                "tl1-64-32",
                "tl1-3200x8640=160-64-32,32-256",
            ],
        ),
        (
            "tl2",
            128,
            384,
            ["tl2-128-192", "tl2-32-24-32", "tl2-3b,64-384"],
        ),
    ] {
        let m = ones(rows, cols);
        let default = packing_by_name(stem).unwrap();
        let recorded = name_with_parameters(default, [(rows, cols), (rows, cols)]).unwrap();
        let same = packing_by_name(&recorded).unwrap();
        assert_eq!(encode(default, &m), encode(same, &m), "{recorded}");
        for name in names {
            let p = packing_by_name(name).unwrap();
            assert_eq!(p.name(), name);
            assert_eq!(p.gguf_type(), default.gguf_type());
            check(p, &m);
            assert_ne!(encode(p, &m), encode(default, &m), "{name}");
            // one packing per name
            assert!(std::ptr::addr_eq(p, packing_by_name(name).unwrap()));
        }
        for (rows, cols) in [(33, 256), (64, 250), (16, 256)] {
            let e = default.packed_len(rows, cols).unwrap_err();
            assert_eq!(e.code, ErrorCode::TargetCannotHold);
            assert!(e.hint.is_some());
        }
        for (bad, rows, cols) in [
            ("96-96", 128, 384),
            ("64-40-64", 64, 256),
            ("64-96-16", 64, 384),
        ] {
            let p = packing_by_name(&format!("{stem}-{bad}")).unwrap();
            assert_eq!(
                p.packed_len(rows, cols).unwrap_err().code,
                ErrorCode::TargetCannotHold
            );
            p.pack_units(&ones(rows, cols), 0, &mut [0; 64]); // no panic
        }
        let preset = packing_by_name(&format!("{stem}-3b")).unwrap();
        assert!(preset.packed_len(3200, 3200).is_ok());
        assert!(preset.packed_len(128, 384).is_err());
    }
    for bad in [
        "tl1-",
        "tl1-64",
        "tl1-0-64-32",
        "tl1-64-64-32-1",
        "tl1-64x=1-2",
        "tl3-64-64",
        "tl2-x",
        "i2_s-64-64",
    ] {
        assert!(packing_by_name(bad).is_none(), "{bad}");
    }
    assert!(packing_by_name(&format!("tl1-{}", "64-64-32,".repeat(200))).is_none());
}

#[test]
fn affine_packs_are_ternary_or_refused() {
    let codes = |list: [u8; 4]| [list[0] | list[1] << 2 | list[2] << 4 | list[3] << 6; 8];
    let read = |list, scale: f32, bias: f32| {
        ternary_of_affine(&Affine {
            codes: &codes(list),
            rows: 1,
            cols: 32,
            group: 32,
            scales: &[scale],
            biases: &[bias],
        })
        .map(|m| (m.trits()[..4].to_vec(), m.scales().as_slice()[0]))
        .map_err(|e| e.code)
    };
    assert_eq!(read([0, 1, 2, 1], 0.5, -0.5), Ok((vec![-1, 0, 1, 0], 0.5)));
    assert_eq!(read([0, 1, 2, 1], -0.5, 0.5), Ok((vec![1, 0, -1, 0], 0.5)));
    assert_eq!(read([0, 1, 1, 0], 1.0, -0.5), Ok((vec![-1, 1, 1, -1], 0.5))); // binary
    assert_eq!(read([1, 3, 1, 3], 0.25, -0.25), Ok((vec![0, 1, 0, 1], 0.5)));
    assert_eq!(read([0, 1, 2, 3], 0.5, -0.5), Err(ErrorCode::NotTernary));
    assert_eq!(read([0, 1, 2, 1], -0.25, 0.5), Err(ErrorCode::NotTernary)); // MLX's own
    assert_eq!(read([0, 1, 2, 1], 0.0, 0.0), Ok((vec![-1, 0, 1, 0], 0.0)));
    assert_eq!(read([0, 1, 2, 1], f32::NAN, 0.0), Err(ErrorCode::NonFinite));
    assert_eq!(
        read([0, 1, 2, 1], f32::MAX, f32::MAX),
        Err(ErrorCode::NotTernary)
    );
    let shape = Affine {
        codes: &[0x55; 8],
        rows: 1,
        cols: 32,
        group: 32,
        scales: &[1.0],
        biases: &[-1.0],
    };
    let code = |a: Affine<'_>| ternary_of_affine(&a).unwrap_err().code;
    assert_eq!(
        code(Affine {
            codes: &[0; 7],
            ..shape
        }),
        ErrorCode::Truncated
    );
    assert_eq!(code(Affine { group: 48, ..shape }), ErrorCode::Malformed);
    assert_eq!(code(Affine { group: 0, ..shape }), ErrorCode::Malformed);
    assert_eq!(
        code(Affine {
            biases: &[],
            ..shape
        }),
        ErrorCode::Malformed
    );
    assert!(
        ternary_of_affine(&Affine {
            rows: usize::MAX,
            ..shape
        })
        .is_err()
    );
    // writing: coarser scales are repeated, different ones in a group refused
    let m = |scales| matrix(2, 128, vec![1; 256], scales);
    let rows = m(Scales::PerRow(vec![0.5, 0.25]));
    assert_eq!(affine_scales(&rows, 64), Ok(vec![0.5, 0.5, 0.25, 0.25]));
    let scales = (0..8).map(|i| i as f32).collect();
    let fine = m(Scales::PerGroup { group: 32, scales });
    assert_eq!(affine_scales(&fine, 32).unwrap().len(), 8);
    assert_eq!(
        affine_scales(&fine, 64).unwrap_err().code,
        ErrorCode::TargetCannotHold
    );
    assert_eq!(
        affine_scales(&rows, 256).unwrap_err().code,
        ErrorCode::TargetCannotHold
    );
}

#[test]
fn q1_0_refuses_zeros() {
    let p = packing_by_name("q1_0").unwrap();
    let mut trits = vec![1; 512];
    trits[384 + 2] = 0;
    let refused = |trits: &[i8], scales| {
        let m = matrix(2, 256, trits.to_vec(), scales);
        let e = p.pack(&m, ScaleRounding::Allow).unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
        assert!(e.hint.is_some());
        e.message
    };
    assert_eq!(
        refused(&trits, ONE),
        "row 1, column 130: q1_0 holds no 0 beside other trits in a block (columns 128 to 255), found one"
    );
    // blocks of zeros have scale 0, and codes that say +1
    trits[384..].fill(0);
    trits[1] = -1;
    let m = matrix(2, 256, trits.clone(), Scales::PerTensor(0.375));
    let bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
    assert_eq!(bytes[..4], [0x00, 0x36, 0xfd, 0xff]);
    assert_eq!(bytes[54..56], [0, 0]);
    assert_eq!(bytes[56..], [0xff; 16]);
    assert_eq!(p.unpack(&tensor(p, &m, &bytes)).unwrap(), m);
    // so that other trits with scale 0 would be lost
    let zero = refused(&trits, Scales::PerRow(vec![0.5, 0.0]));
    assert!(
        zero.starts_with("row 1, columns from 0: q1_0 reads a block of scale 0"),
        "{zero}"
    );
    // two scales in a block, scales that are no f16
    let scales = [0.5, 0.25, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0].to_vec();
    let two = refused(&vec![1; 512], Scales::PerGroup { group: 64, scales });
    assert_eq!(
        two,
        "row 0, columns from 0: q1_0 holds one scale per 128, found 0.5 and 0.25"
    );
    for scale in [65520.0, 2.0e-8] {
        refused(&vec![1; 512], Scales::PerTensor(scale));
    }
    let m = |scale| matrix(1, 128, vec![-1; 128], Scales::PerTensor(scale));
    let code = |scale| p.pack(&m(scale), ScaleRounding::Refuse).map_err(|e| e.code);
    assert_eq!(code(0.1), Err(ErrorCode::ScaleRounding));
    assert_eq!(code(3e-8), Err(ErrorCode::ScaleRounding)); // 6e-8
    assert!(code(1.007_812_5).is_ok()); // a bf16
    assert_eq!(
        p.packed_len(1, 192).unwrap_err().code,
        ErrorCode::TargetCannotHold
    );
    assert!(p.packed_len(1, 192).unwrap_err().hint.is_some());
}

#[test]
fn stq1_0_names_the_first_group_without_exactly_one_zero() {
    let p = packing_by_name("stq1_0").unwrap();
    let legal = expressible(p, matrix(2, 512, vec![1; 1024], Scales::PerTensor(0.5)));
    let refused = |changes: &[(usize, i8)]| {
        let mut trits = legal.trits().to_vec();
        changes.iter().for_each(|&(at, trit)| trits[at] = trit);
        let m = matrix(2, 512, trits, Scales::PerTensor(0.5));
        let e = p.pack(&m, ScaleRounding::Allow).unwrap_err();
        assert_eq!(e.code, ErrorCode::TargetCannotHold);
        assert!(e.hint.is_some());
        e.message
    };
    // row 1, second block, group 19: columns 67, 83, 99 and 115 of it
    let group = [67, 83, 99, 115].map(|column| 512 + 256 + column);
    let place =
        "row 1, columns 323, 339, 355 and 371: stq1_0 holds exactly one 0 among these four, found";
    assert_eq!(refused(&group.map(|at| (at, 1))), format!("{place} 0"));
    assert_eq!(refused(&group.map(|at| (at, 0))), format!("{place} 4"));
    let two = refused(&[(group[0], 0), (group[1], 0), (group[2], 1), (group[3], -1)]);
    assert_eq!(two, format!("{place} 2"));
    // the first of several
    let first = refused(&[
        (0, 1),
        (16, 1),
        (32, 1),
        (48, 1),
        (group[0], 0),
        (group[1], 0),
    ]);
    assert!(
        first.starts_with("row 0, columns 0, 16, 32 and 48:"),
        "{first}"
    );
    // a negative scale turns the trits of its block round, scale 0 makes them zeros
    let mut bytes = p.pack(&legal, ScaleRounding::Refuse).unwrap();
    bytes[41] |= 0x80;
    bytes[83] = 0;
    bytes[82] = 0;
    let mut expected = legal.trits().to_vec();
    expected[..256].iter_mut().for_each(|t| *t = -*t);
    expected[256..512].fill(0);
    let back = p.unpack(&tensor(p, &legal, &bytes)).unwrap();
    assert_eq!(back.trits(), expected);
    assert_eq!(back.scales(), &Scales::PerTensor(0.5));
    let again = p.pack(&back, ScaleRounding::Refuse).unwrap();
    assert_eq!(again[42..84], [0; 42]);
    assert_eq!(p.unpack(&tensor(p, &legal, &again)).unwrap(), back);
}

#[test]
fn tiles_refuse_every_byte_that_no_trits_have_wherever_it_stands() {
    for (name, legal) in [("tile32-1.6bit", 243), ("tile32-2bit", 81)] {
        let p = packing_by_name(name).unwrap();
        let (rows, cols) = (40, 50);
        let m = matrix(rows, cols, sample(rows, cols, 3), ONE);
        let bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
        // a byte of the first row, one of the last, one of the rows and one of the columns behind it
        let per_tile = bytes.len() / 2;
        for (at, row) in [
            (0, 0),
            (per_tile + 31, 39),
            (per_tile + 32, 40),
            (per_tile - 1, 31),
        ] {
            let mut codes = 0;
            for byte in (0..=u8::MAX).step_by(every(17)) {
                let mut bytes = bytes.clone();
                bytes[at] = byte;
                match p.unpack(&tensor(p, &m, &bytes)) {
                    Ok(_) => codes += 1,
                    Err(e) => {
                        assert_eq!(e.code, ErrorCode::BadCode, "{name}");
                        assert!(e.message.starts_with(&format!("row {row}, column ")), "{e}");
                    }
                }
            }
            assert!(
                codes == legal || cfg!(miri) && codes > 0,
                "{name}, byte {at}: {codes}"
            );
        }
        // rows that are not asked for are not looked at
        let mut bad = bytes;
        bad[per_tile] = 0xff;
        let mut out = vec![0; 32 * cols];
        p.unpack_rows(&tensor(p, &m, &bad), 0, &mut out).unwrap();
        assert_eq!(out, m.trits()[..32 * cols]);
    }
}

#[test]
fn a_tile_lies_as_its_page_says() {
    for (name, fields, base) in [("tile32-1.6bit", 5, 3), ("tile32-2bit", 4, 4)] {
        let p = packing_by_name(name).unwrap();
        let (rows, cols) = (33, 45);
        let m = matrix(rows, cols, sample(rows, cols, 9), ONE);
        let bytes = p.pack(&m, ScaleRounding::Refuse).unwrap();
        let blocks = cols.div_ceil(4 * fields);
        assert_eq!(bytes.len(), 2 * blocks * 128);
        for (i, byte) in bytes.iter().enumerate() {
            let (tile, block, row, j) = (i / 128 / blocks, i / 128 % blocks, i / 4 % 32, i % 4);
            let trit = |f: usize| {
                let (r, c) = (tile * 32 + row, block * 4 * fields + 4 * f + j);
                if r < rows && c < cols { m.row(r)[c] } else { 0 }
            };
            let digits = (0..fields).rev().map(|f| (trit(f) + 1) as usize);
            assert_eq!(
                usize::from(*byte),
                digits.fold(0, |n, d| n * base + d),
                "{name} {i}"
            );
        }
    }
}
