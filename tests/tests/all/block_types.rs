//! Embeddings and output heads in the block types of GGUF: their values, models that have them, and what conversions make
//! of them.
//!
//! Invariant: the values of blocks were made by the Python package `gguf` 0.19 (`gguf.quants.dequantize`), which shares no
//! code with this project.

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::ExitStatus;
use bitnet_formats::{
    BlockType, DENSE_NAMES, Encoding, ErrorCode, Limits, PlainType, TensorFile, dense_len,
    dense_to_f32, encode_dense,
};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_ternary::f32_to_f16;
use bitnet_tests::fixtures::checkpoint;
use bitnet_tests::gguf::retyped;
use bitnet_tests::program::{Ran, run};
use std::path::{Path, PathBuf};

/// What the peer reads from the bytes of [`block`].
struct Peer {
    block: BlockType,
    /// With the factors 1 and -2.
    whole: &'static [i16],
    /// With the factors 0.01234 and 0.00777: the sum of `(i + 1) * bits` over all values.
    digest: u64,
}

const PEERS: [Peer; 8] = [
    Peer {
        block: BlockType::Q4_0,
        whole: &[
            0, 4, -1, 1, -6, -6, 1, -1, 4, 0, 3, -3, -2, 6, 5, -5, -5, -3, 0, 3, 7, -5, -1, 4, -7,
            -1, 5, -4, 3, -6, 2, -5,
        ],
        digest: 0x0000010507ff8800,
    },
    Peer {
        block: BlockType::Q4_1,
        whole: &[
            5, 7, 0, 0, 7, 5, 10, 6, 9, 3, 4, 12, 11, 1, -2, 2, 6, 9, 13, 1, 5, 10, -1, 5, 11, 2,
            9, 0, 8, 1, 10, 3,
        ],
        digest: 0x0000007f28bc6400,
    },
    Peer {
        block: BlockType::Q5_0,
        whole: &[
            -14, -14, -7, 7, 12, 8, -5, -11, -10, -2, 13, 3, 0, -12, 15, -15, 15, 3, 7, -4, -15,
            -9, -3, 4, 11, -14, -6, 3, 12, 5, -2, 9,
        ],
        digest: 0x000000f40fa1b600,
    },
    Peer {
        block: BlockType::Q5_1,
        whole: &[
            23, 21, 26, 6, 9, 3, 4, 28, 27, 1, -2, 18, 29, 15, 8, 24, 5, 26, -1, 5, 27, 18, 25, 16,
            8, 17, 10, 3, 28, 23, 1, 12,
        ],
        digest: 0x000000802722dc80,
    },
    Peer {
        block: BlockType::Q2_K,
        whole: &[
            5, 15, 0, 0, 15, 5, 10, 10, 5, 15, 0, 0, 15, 5, 10, 10, 13, 35, 2, 2, 35, 13, 24, 24,
            13, 35, 2, 2, 35, 13, 24, 24, 30, 6, 6, 14, 30, 6, 22, 22, 6, 30, 14, 6, 6, 30, 30, 14,
            22, 34, 34, 46, 22, 34, 10, 10, 34, 22, 46, 34, 34, 22, 22, 46, 30, 37, 16, 23, 30, 23,
            37, 30, 30, 23, 30, 37, 16, 23, 37, 30, 31, 22, 22, 22, 31, 40, 22, 40, 22, 49, 40, 40,
            40, 49, 22, 31, 34, 30, 36, 32, 36, 34, 30, 36, 34, 32, 30, 36, 36, 34, 32, 32, 8, 8,
            8, 8, 8, 8, 10, 10, 12, 12, 6, 8, 10, 12, 8, 10, 23, 41, 14, 14, 41, 23, 32, 32, 23,
            41, 14, 14, 41, 23, 32, 32, 31, 45, 24, 24, 45, 31, 38, 38, 31, 45, 24, 24, 45, 31, 38,
            38, 38, 2, 2, 14, 38, 2, 26, 26, 2, 38, 14, 2, 2, 38, 38, 14, 22, 30, 30, 38, 22, 30,
            14, 14, 30, 22, 38, 30, 30, 22, 22, 38, 59, 48, 37, 26, 59, 26, 26, 37, 59, 26, 59, 48,
            37, 26, 26, 37, 18, 23, 13, 23, 18, 13, 13, 13, 13, 18, 23, 13, 23, 18, 13, 8, 40, 28,
            40, 28, 34, 28, 40, 28, 40, 34, 22, 40, 34, 28, 22, 40, 32, 18, 18, 4, 4, 4, 4, 4, 4,
            4, 4, 18, 18, 32, 46, 4,
        ],
        digest: 0x000034f40cb1ed00,
    },
    Peer {
        block: BlockType::Q3_K,
        whole: &[
            -11, -33, 44, 44, -33, -11, 22, 22, -11, -33, 44, 44, -33, -11, 22, 22, 27, 81, -108,
            -108, 81, 27, -54, -54, 27, 81, -108, -108, 81, 27, -54, -54, 72, -48, 48, 24, -24, 48,
            0, 0, 48, -24, 24, 48, -48, 72, -24, -72, 20, 0, 80, 60, -60, 80, -40, -40, 80, -60,
            60, 80, 0, 20, -60, -20, 7, -28, -28, 0, 7, -14, -28, -14, -28, 21, 14, -14, -14, 21,
            0, 7, -21, 14, 21, 0, -21, 28, 28, 21, 7, 0, -21, 14, 21, 0, 0, -7, -54, 18, 18, 18,
            -54, 18, -36, -36, 54, -18, 0, 18, 36, -18, -54, 36, 6, -6, -2, -6, 4, -6, 6, 2, -2, 4,
            -8, -2, -4, 2, 0, -2, -45, 45, 0, 0, -15, 15, 30, 30, 15, -15, 0, 0, 45, -45, 30, -30,
            18, -18, 24, 0, 6, -6, -12, 12, 18, -18, 24, 0, 6, -6, -12, 12, 78, 52, -52, 26, 78,
            -52, 0, 0, -52, 78, 26, -52, 52, 78, -26, -78, -90, 0, 120, 90, -90, 120, -60, -60, 0,
            30, -30, 0, 120, 30, -90, -30, 2, 1, 3, -3, 2, 3, -1, 3, -1, -2, 1, -1, -3, -2, 3, 4,
            16, 12, -8, -12, 0, 4, 12, 0, 16, -12, 16, -4, -8, 4, -4, 0, 12, 18, 18, 24, 0, 0, 0,
            24, 24, 0, 24, 18, -6, 12, -18, 24, -8, 16, -24, 32, -16, -24, 24, -24, -8, 16, 24,
            -24, -8, -24, 16, 24,
        ],
        digest: 0x00003b0158d99580,
    },
    Peer {
        block: BlockType::Q4_K,
        whole: &[
            205, 135, 114, 142, 219, 121, 184, 184, 121, 219, 142, 114, 135, 205, 212, 156, 149,
            191, 170, 198, 163, 177, 128, 128, 177, 163, 198, 170, 191, 149, 156, 212, 584, 185,
            698, 299, 812, 527, 185, 812, 584, 299, 128, 869, 698, 527, 413, 356, 299, 242, 242,
            242, 299, 356, 470, 584, 698, 869, 128, 356, 584, 869, 242, 527, 706, 206, 56, 256,
            806, 106, 556, 556, 106, 806, 256, 56, 206, 706, 756, 356, 306, 606, 456, 656, 406,
            506, 156, 156, 506, 406, 656, 456, 606, 306, 356, 756, 862, 412, 762, 312, 662, 312,
            712, 362, 862, 512, 262, 812, 562, 312, 112, 762, 612, 462, 362, 262, 212, 162, 162,
            162, 162, 212, 262, 362, 462, 612, 762, 112, 617, 187, 58, 230, 703, 101, 488, 488,
            101, 703, 230, 58, 187, 617, 660, 316, 273, 531, 402, 574, 359, 445, 144, 144, 445,
            359, 574, 402, 531, 273, 316, 660, 252, 437, 622, 215, 400, 659, 289, 548, 252, 511,
            252, 585, 326, 659, 437, 252, 659, 474, 326, 178, 659, 548, 474, 400, 326, 289, 252,
            252, 252, 289, 326, 363, 724, 184, 22, 238, 832, 76, 562, 562, 76, 832, 238, 22, 184,
            724, 778, 346, 292, 616, 454, 670, 400, 508, 130, 130, 508, 400, 670, 454, 616, 292,
            346, 778, 162, 204, 246, 64, 106, 176, 232, 78, 162, 232, 106, 204, 78, 176, 64, 190,
            92, 218, 134, 50, 204, 134, 78, 246, 190, 148, 106, 78, 50, 36, 246, 232,
        ],
        digest: 0x000022f87d35a104,
    },
    Peer {
        block: BlockType::Q5_K,
        whole: &[
            317, 247, 114, 142, 331, 233, 184, 184, 233, 331, 142, 114, 247, 317, 212, 156, 261,
            303, 170, 198, 275, 289, 128, 128, 289, 275, 198, 170, 303, 261, 156, 212, 869, 1268,
            755, 242, 1553, 242, 1610, 1211, 869, 1382, 185, 812, 1439, 242, 926, 1667, 584, 1325,
            299, 185, 1040, 71, 983, 983, 71, 1040, 185, 299, 1325, 584, 1667, 926, 1506, 206, 56,
            1056, 1606, 106, 556, 556, 106, 1606, 1056, 56, 206, 1506, 1556, 1156, 1106, 606, 456,
            1456, 1206, 506, 156, 156, 506, 1206, 1456, 456, 606, 1106, 1156, 1556, 1112, 562, 812,
            262, 1312, 862, 1162, 1512, 312, 1462, 312, 762, 412, 1662, 1362, 312, 862, 1412, 1212,
            1012, 862, 1512, 612, 512, 1212, 362, 1112, 1112, 1112, 362, 412, 1262, 617, 875, 58,
            918, 703, 789, 1176, 488, 101, 1391, 230, 746, 187, 1305, 1348, 316, 961, 531, 402,
            574, 1047, 445, 144, 144, 445, 1047, 574, 402, 531, 961, 316, 1348, 1029, 1140, 659,
            178, 881, 474, 1214, 807, 1029, 622, 881, 1140, 215, 474, 770, 1103, 252, 585, 363,
            141, 548, 955, 215, 1251, 511, 992, 881, 807, 733, 696, 659, 622, 724, 184, 886, 1102,
            1696, 76, 562, 1426, 76, 1696, 238, 886, 1048, 724, 1642, 1210, 1156, 1480, 1318, 1534,
            1264, 1372, 130, 130, 1372, 1264, 670, 1318, 616, 1156, 1210, 778, 456, 246, 260, 50,
            288, 330, 134, 400, 456, 50, 120, 414, 260, 330, 190, 64, 162, 36, 148, 36, 162, 64,
            428, 344, 260, 414, 120, 64, 456, 414, 148, 330,
        ],
        digest: 0x00002203d68c4210,
    },
];

/// A block whose bytes follow from their places, with these factors.
fn block(of: BlockType, factors: [f32; 2]) -> Vec<u8> {
    let byte = |i: usize| ((i * i * 7 + i * 37 + 11) >> 1) as u8;
    let mut bytes: Vec<u8> = (0..of.block_bytes()).map(byte).collect();
    for (upper, factor) in of.exponents().iter().zip(factors) {
        bytes[upper - 1..=*upper].copy_from_slice(&f32_to_f16(factor).to_le_bytes());
    }
    bytes
}

fn widened(of: BlockType, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; bytes.len() / of.block_bytes() * of.block()];
    dense_to_f32(Encoding::Block(of), bytes, &mut values).unwrap();
    values
}

#[test]
fn values_are_those_of_the_peer() {
    for Peer {
        block: of,
        whole,
        digest,
    } in PEERS
    {
        let values = widened(of, &block(of, [1.0, -2.0]));
        let expected: Vec<f32> = whole.iter().map(|x| f32::from(*x)).collect();
        assert_eq!(values, expected, "{of:?}");
        let values = widened(of, &block(of, [0.01234, 0.00777]));
        let found = (1u64..).zip(values).fold(0u64, |sum, (n, x)| {
            sum.wrapping_add(n.wrapping_mul(u64::from(x.to_bits())))
        });
        assert_eq!(found, digest, "{of:?}");
    }
    let others = BlockType::ALL.iter().filter(|of| !of.is_writable());
    assert_eq!(others.count(), PEERS.len());
}

#[test]
fn types_that_are_not_written_are_refused_by_name() {
    for of in BlockType::ALL {
        assert!(DENSE_NAMES.contains(of.name()), "{of:?}");
        let mut out = vec![1];
        let result = encode_dense(&[0.5; 256], Encoding::Block(of), &mut out);
        if of.is_writable() {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold);
        assert!(error.message.contains(of.name()), "{error}");
        assert_eq!(out, [1]);
        let words = [
            "m.gguf",
            "-o",
            "o.gguf",
            "--embeddings",
            of.name(),
            "--json",
        ];
        let ran = run(bitnet_convert::run, words);
        assert_eq!(ran.status, ExitStatus::CouldNot);
        assert!(format!("{}{}", ran.stdout, ran.stderr).contains(of.name()));
    }
}

fn is_table(name: &str) -> bool {
    ["token_embd.weight", "output.weight"].contains(&name)
}

fn convert(source: &Path, output: &Path, more: &[&str]) -> Ran {
    let mut words = vec![
        source.to_str().unwrap(),
        "-o",
        output.to_str().unwrap(),
        "--json",
    ];
    words.extend(more);
    run(bitnet_convert::run, words)
}

/// A GGUF file of a fixture, packed.
fn packed(fixture: &str, dir: &Path) -> PathBuf {
    let output = dir.join(format!("{fixture}.gguf"));
    let ran = convert(&checkpoint(fixture), &output, &["--to", "gguf-i2_s"]);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    output
}

/// Blocks that look like noise, of numbers about as large as embeddings.
fn noise(of: BlockType, blocks: usize, seed: &str) -> Vec<u8> {
    let mut state = seed
        .bytes()
        .fold(7u64, |s, b| s.wrapping_mul(31) ^ u64::from(b));
    let mut byte = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let mut bytes: Vec<u8> = (0..blocks * of.block_bytes()).map(|_| byte()).collect();
    for block in bytes.chunks_exact_mut(of.block_bytes()) {
        for upper in of.exponents() {
            let factor = f32_to_f16(0.001 + f32::from(block[*upper]) / 65536.0);
            block[upper - 1..=*upper].copy_from_slice(&factor.to_le_bytes());
        }
    }
    bytes
}

/// The model with tables of this type, and with the same values in f32.
fn with_tables(model: &Path, of: BlockType, dir: &Path) -> (PathBuf, PathBuf) {
    let blocks =
        |shape: &[usize], name: &str| noise(of, shape.iter().product::<usize>() / of.block(), name);
    let in_blocks = retyped(model, dir.join(format!("{}.gguf", of.name())), |t| {
        is_table(&t.name).then(|| (Encoding::Block(of), blocks(&t.shape, &t.name)))
    });
    let in_f32 = retyped(model, dir.join(format!("{}-f32.gguf", of.name())), |t| {
        is_table(&t.name).then(|| {
            let values = widened(of, &blocks(&t.shape, &t.name));
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (Encoding::Plain(PlainType::F32), bytes)
        })
    });
    (in_blocks, in_f32)
}

fn logits(model: &Path, backend: Backend, ids: &[u32]) -> Vec<u32> {
    let checkpoint = Checkpoint::open(model, &OpenOptions::default()).unwrap();
    let options = LoadOptions {
        backend,
        threads: 2,
        ..LoadOptions::default()
    };
    let model = Model::load(&checkpoint, &options).unwrap();
    let mut session = model.session(64).unwrap();
    let logits = model.forward(&mut session, ids, Logits::All).unwrap();
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn models_compute_as_with_the_same_values_in_f32() {
    let dir = tempfile::tempdir().unwrap();
    // a head of its own, and one that is the embeddings
    for fixture in ["falcon-e", "bitnet-2b4t-packed"] {
        let model = packed(fixture, dir.path());
        for of in BlockType::ALL {
            let (in_blocks, in_f32) = with_tables(&model, of, dir.path());
            let backends: Vec<Backend> = match of {
                BlockType::Q4_K | BlockType::Q5_K => Backend::available().collect(),
                _ => vec![Backend::by_name("scalar").unwrap()],
            };
            for backend in backends {
                let found = logits(&in_blocks, backend, &[1, 5, 9, 200]);
                let expected = logits(&in_f32, backend, &[1, 5, 9, 200]);
                assert!(found.iter().any(|x| *x != found[0]));
                assert_eq!(found, expected, "{fixture}, {of:?}, {backend:?}");
            }
            let words = [
                in_blocks.to_str().unwrap(),
                "--against",
                in_f32.to_str().unwrap(),
                "--json",
            ];
            let ran = run(bitnet_verify::run, words);
            assert_eq!(ran.status, ExitStatus::Done, "{of:?}: {}", ran.stdout);

            let words = ["inspect", in_blocks.to_str().unwrap(), "--json"];
            let ran = run(bitnet_convert::run, words);
            assert_eq!(ran.status, ExitStatus::Done, "{of:?}: {}", ran.stderr);
            let seen = ran.json();
            let types = seen["encodings"].as_array().unwrap();
            assert!(types.iter().any(|t| t["name"] == of.name()), "{seen}");
            assert!(seen["family"].is_string(), "{seen}");
        }
    }
}

fn table(path: &Path) -> (String, Vec<u8>) {
    let file: TensorFile = bitnet_formats::open(path, &Limits::default()).unwrap();
    let info = file.tensor("token_embd.weight").unwrap();
    (info.encoding.name(), file.read(info).unwrap().to_vec())
}

#[test]
fn conversions_copy_the_blocks_or_say_what_changes() {
    let dir = tempfile::tempdir().unwrap();
    let model = packed("falcon-e", dir.path());
    for of in BlockType::ALL {
        let (source, _) = with_tables(&model, of, dir.path());
        let output = |name: &str| dir.path().join(format!("{}-{name}", of.name()));
        let same = output("same.gguf");
        let ran = convert(&source, &same, &["--to", "gguf-f32"]);
        assert_eq!(ran.status, ExitStatus::Done, "{of:?}: {}", ran.stdout);
        assert_eq!(ran.json()["lossless"], true, "{of:?}");
        assert_eq!(table(&same), table(&source));
        assert_eq!(table(&same).0, of.name());

        let hf = output("hf");
        let ran = convert(&source, &hf, &["--to", "hf-packed"]);
        assert_eq!(ran.status, ExitStatus::CouldNot);
        let error = &ran.json()["error"];
        assert_eq!(error["code"], "target-cannot-hold", "{error}");
        assert!(error["message"].as_str().unwrap().contains(of.name()));
        let more = ["--to", "hf-packed", "--embeddings", "f32"];
        let ran = convert(&source, &hf, &more);
        assert_eq!(ran.json()["lossless"], true, "{of:?}: {}", ran.stdout);
        let words = [
            hf.to_str().unwrap(),
            "--against",
            source.to_str().unwrap(),
            "--json",
        ];
        let ran = run(bitnet_verify::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{of:?}: {}", ran.stdout);

        let rounded = output("bf16.gguf");
        let more = ["--to", "gguf-i2_s", "--embeddings", "bf16"];
        let ran = convert(&source, &rounded, &more);
        let json = ran.json();
        assert_eq!(json["lossless"], false, "{of:?}: {json}");
        let loss = &json["losses"][0];
        assert_eq!(loss["kind"], "dense-rounding");
        assert!(loss["max_absolute"].as_f64().unwrap() > 0.0, "{loss}");
    }
}

#[test]
fn factors_that_are_not_finite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = packed("falcon-e", dir.path());
    for of in BlockType::ALL {
        for upper in of.exponents() {
            let bad = retyped(&model, dir.path().join("bad.gguf"), |t| {
                is_table(&t.name).then(|| {
                    let blocks = t.shape.iter().product::<usize>() / of.block();
                    let mut bytes = noise(of, blocks, &t.name);
                    bytes[3 * of.block_bytes() + upper] = 0x7c;
                    (Encoding::Block(of), bytes)
                })
            });
            let ran = convert(&bad, &dir.path().join("o.gguf"), &["--to", "gguf-i2_s"]);
            assert_eq!(ran.status, ExitStatus::CouldNot, "{of:?}");
            let error = &ran.json()["error"];
            assert_eq!(error["code"], "non-finite", "{error}");
            assert!(error["message"].as_str().unwrap().contains("block 3"));
        }
    }
}

#[test]
fn a_table_of_a_type_that_is_not_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = packed("falcon-e", dir.path());
    let (path, _) = with_tables(&model, BlockType::Q4_K, dir.path());
    let mut bytes = std::fs::read(&path).unwrap();
    // iq4_k of ik_llama.cpp: another type with 144 bytes per 256 numbers
    let name = b"token_embd.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap();
    let id = at + name.len() + 4 + 2 * 8;
    assert_eq!(bytes[id..id + 4], 12u32.to_le_bytes());
    bytes[id..id + 4].copy_from_slice(&139u32.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let path = path.to_str().unwrap();

    let seen = run(bitnet_convert::run, ["inspect", path, "--json"]);
    assert_eq!(seen.status, ExitStatus::Done, "{}", seen.stderr);
    let seen = seen.json();
    let why = seen["family_unknown"].as_str().unwrap();
    assert!(why.contains("token_embd.weight") && why.contains("iq4_k"));
    let ran = run(bitnet_verify::run, ["doctor", path, "--json"]);
    let report = ran.json();
    assert_eq!(ran.status, ExitStatus::Done, "{report}");
    assert_eq!(report["status"], "sound", "{report}");
    let findings = report["findings"].as_array().unwrap();
    let finding = findings.iter().find(|f| f["code"] == "unknown-type");
    let finding = finding.unwrap_or_else(|| panic!("{report}"));
    assert_eq!(finding["severity"], "warning");
    assert_eq!(finding["place"], "token_embd.weight");
    assert!(finding["what"].as_str().unwrap().contains("iq4_k"));
    let ran = run(bitnet_run::run, [path, "--tokens", "1", "--json"]);
    assert_eq!(ran.status, ExitStatus::CouldNot);
    assert_eq!(ran.json()["error"]["code"], "unknown-type");
}

#[test]
fn rows_are_whole_blocks() {
    for of in BlockType::ALL {
        let (encoding, block) = (Encoding::Block(of), of.block());
        let bytes = of.block_bytes() as u64;
        assert_eq!(dense_len(encoding, 4 * block, 2 * block), Ok(4 * bytes));
        let error = dense_len(encoding, 4 * block, block / 2).unwrap_err();
        assert_eq!(error.code, ErrorCode::TargetCannotHold);
        assert!(error.message.contains(&block.to_string()), "{error}");
    }
}
