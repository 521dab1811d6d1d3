//! MLX's affine checkpoints and those of bitnet.cpp's GPU program, written and read.
//!
//! Invariant: the bytes are those that `formats/packing/mlx_2bit.md` and `ms_gpu_int2.md` describe, unpacked here
//! by their formulas and not by the library; settings that mean something else are refused by name.

use bitnet_checkpoint::{Checkpoint, OpenOptions, Slot};
use bitnet_cli::ExitStatus;
use bitnet_formats::{Bytes, Limits, TensorFile, TensorInfo, open};
use bitnet_ternary::{bf16_to_f32, f32_to_f16};
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program::{self, Ran};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::path::Path;

fn convert(source: &Path, output: &Path, to: &str) -> Ran {
    let words = [
        "--json".as_ref(),
        source.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--to".as_ref(),
        to.as_ref(),
    ];
    program::run(bitnet_convert::run, words)
}

#[track_caller]
fn done(source: &Path, output: &Path, to: &str) -> Value {
    let ran = convert(source, output, to);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
    ran.json()
}

fn tensor<'a>(file: &'a TensorFile, name: &str) -> (&'a TensorInfo, Bytes) {
    let info = file.tensor(name).unwrap_or_else(|| panic!("no {name}"));
    (info, file.read(info).unwrap())
}

fn bf16(bytes: &[u8], at: usize) -> f32 {
    bf16_to_f32(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

fn linears(checkpoint: &Checkpoint) -> Vec<Slot> {
    let mut slots = checkpoint.slots();
    slots.retain(|slot| slot.is_ternary());
    slots
}

#[test]
fn the_affine_codes_stand_for_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("bitnet-2b4t-packed");
    let output = dir.path().join("mlx");
    done(&source, &output, "mlx-2bit");
    let config = read_json(&output.join("config.json"));
    assert_eq!(config["quantization"]["bits"], 2);
    assert_eq!(config["quantization"]["group_size"], 128);
    assert!(config["quantization_config"].is_null());
    let original = Checkpoint::open(&source, &OpenOptions::default()).unwrap();
    let file = open(&output, &Limits::default()).unwrap();
    for slot in linears(&original) {
        let matrix = original.ternary(slot).unwrap();
        let module = slot.to_string().replace(".weight", "");
        let (info, words) = tensor(&file, &slot.to_string());
        assert_eq!(info.shape, [matrix.rows(), matrix.cols() / 16]);
        let (_, scales) = tensor(&file, &format!("{module}.scales"));
        let (_, biases) = tensor(&file, &format!("{module}.biases"));
        for (at, &trit) in matrix.trits().iter().enumerate() {
            let (row, col) = (at / matrix.cols(), at % matrix.cols());
            let word = &words[4 * (at / 16)..4 * (at / 16) + 4];
            let word = u32::from_le_bytes(word.try_into().unwrap());
            let code = (word >> (2 * (at % 16))) & 3;
            let group = row * (matrix.cols() / 128) + col / 128;
            let value = bf16(&scales, group) * code as f32 + bf16(&biases, group);
            let expected = f32::from(trit) * matrix.scales().at(row, col, matrix.cols());
            assert_eq!(value, expected, "{slot} {row} {col}");
        }
    }
}

#[test]
fn the_fused_tiles_hold_the_matrices() {
    let dir = tempfile::tempdir().unwrap();
    let source = checkpoint("bitnet-2b4t-packed");
    let output = dir.path().join("gpu");
    let json = done(&source, &output, "ms-gpu-int2");
    assert_eq!(json["output"]["container"], "pytorch");
    let original = Checkpoint::open(&source, &OpenOptions::default()).unwrap();
    let config = &original.config;
    let file = open(&output.join("model_state_int2.pt"), &Limits::default()).unwrap();
    for slot in linears(&original) {
        let Slot::Layer(layer, role) = slot else {
            panic!("{slot}")
        };
        let (heads, key_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let (q, kv) = (heads * config.head_dim, key_heads * config.head_dim);
        // tensor, row of the first, number of the scale
        let (name, first, part) = match &*role.canonical() {
            "self_attn.q_proj" => ("attention.wqkv", 0, 0),
            "self_attn.k_proj" => ("attention.wqkv", q, 1),
            "self_attn.v_proj" => ("attention.wqkv", q + kv, 2),
            "self_attn.o_proj" => ("attention.wo", 0, 0),
            "mlp.gate_proj" => ("feed_forward.w13", 0, 0),
            "mlp.up_proj" => ("feed_forward.w13", config.intermediate_size, 1),
            _ => ("feed_forward.w2", 0, 0),
        };
        let rotary = part < 2 && name == "attention.wqkv";
        let matrix = original.ternary(slot).unwrap();
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let weight = format!("layers.{layer}.{name}.weight");
        let (info, bytes) = tensor(&file, &weight);
        assert_eq!(info.shape[1], cols / 4);
        let (_, scales) = tensor(&file, &format!("{weight}_scale"));
        assert_eq!(scales.len(), 8);
        assert_eq!(bf16(&scales, part), matrix.scales().at(0, 0, cols));
        for row in 0..rows {
            let d = config.head_dim;
            let (head, i) = (row / d, row % d);
            let paired = head * d + 2 * (i % (d / 2)) + i / (d / 2);
            let n = first + if rotary { paired } else { row };
            for k in 0..cols {
                let word = (n % 16 / 8) * 16 + (k % 32 / 16) * 8 + n % 8;
                let at = 128 * ((n / 16) * (cols / 32) + k / 32) + 4 * word + k % 16 % 4;
                let code = (bytes[at] >> (2 * (k % 16 / 4))) & 3;
                assert_eq!(code as i8 - 2, matrix.row(row)[k], "{slot} {row} {k}");
            }
        }
    }
    let (_, embeddings) = tensor(&file, "tok_embeddings.weight");
    let (_, head) = tensor(&file, "output.weight");
    assert!(embeddings == head && !head.is_empty());
}

#[test]
fn a_split_is_no_file_of_the_gpu_program() {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("gpu");
    let source = checkpoint("bitnet-2b4t-packed");
    let mut words: Vec<std::ffi::OsString> = vec!["--json".into(), source.into(), "-o".into()];
    words.push(output.clone().into());
    words.extend(["--to", "ms-gpu-int2", "--split-max-size", "100K"].map(Into::into));
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.json()["error"]["code"], "usage", "{}", ran.stdout);
    assert!(!output.exists());
}

/// An MLX checkpoint whose configuration was changed, converted again.
#[track_caller]
fn with_settings(change: impl Fn(&mut Value)) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let (mlx, output) = (dir.path().join("mlx"), dir.path().join("out.gguf"));
    done(&checkpoint("falcon-e-bfloat16"), &mlx, "mlx-2bit");
    let path = mlx.join("config.json");
    let mut config = read_json(&path);
    change(&mut config);
    std::fs::write(&path, config.to_string()).unwrap();
    convert(&mlx, &output, "gguf-f32").json()
}

#[test]
fn settings_of_mlx_are_understood_or_refused_by_name() {
    let q = "model.layers.0.self_attn.q_proj";
    let own = json!({"group_size": 128, "bits": 2});
    // a module's own settings, the settings twice, no word about activations
    for change in [
        &(|_: &mut Value| {}) as &dyn Fn(&mut Value),
        &|c: &mut Value| c["quantization"][q] = own.clone(),
        &|c: &mut Value| c["quantization"]["model.embed_tokens"] = json!(false),
        &|c: &mut Value| c["quantization_config"] = c["quantization"].clone(),
    ] {
        let json = with_settings(change);
        assert_eq!(json["status"], "converted", "{json}");
    }
    type Change<'a> = dyn Fn(&mut Value) + 'a;
    let refusals: [(&Change<'_>, &str, &str); 8] = [
        (
            &|c| c["quantization"]["bits"] = json!(4),
            "unknown-quantization",
            "quantization.bits",
        ),
        (
            &|c| c["quantization"]["group_size"] = json!(48),
            "unknown-quantization",
            "quantization.group_size",
        ),
        (
            &|c| c["quantization"]["mode"] = json!("mxfp4"),
            "unknown-quantization",
            "quantization.mode",
        ),
        (
            &|c| c["quantization"][q] = json!({"group_size": 64, "bits": 4}),
            "unknown-quantization",
            "q_proj.bits",
        ),
        (
            &|c| c["quantization"][q] = json!(7),
            "unknown-quantization",
            "q_proj",
        ),
        (
            &|c| c["quantization_config"] = json!({"quant_method": "bitnet"}),
            "unknown-quantization",
            "quantization_config",
        ),
        // other groups than the tensors have, and codes that are said to be none
        (
            &|c| c["quantization"][q] = json!({"group_size": 64, "bits": 2}),
            "wrong-shape",
            "q_proj.scales",
        ),
        (
            &|c| c["quantization"][q] = json!(false),
            "wrong-shape",
            "q_proj.weight",
        ),
    ];
    for (change, code, says) in refusals {
        let json = with_settings(change);
        assert_eq!(json["error"]["code"], code, "{json}");
        let message = json["error"]["message"].as_str().unwrap();
        assert!(message.contains(says), "{message} does not say {says}");
    }
}

/// Published MLX files pack the embeddings like any linear: three tensors in place of one.
#[test]
fn packed_embeddings_of_mlx_are_the_same_table() {
    const NAME: &str = "model.embed_tokens";
    let dir = tempfile::tempdir().unwrap();
    let (source, mlx) = (checkpoint("bonsai-1.7b"), dir.path().join("mlx"));
    done(&source, &mlx, "mlx-2bit");
    let original = Checkpoint::open(&source, &OpenOptions::default()).unwrap();
    let table = original.ternary(Slot::TokenEmbeddings).unwrap();
    let (rows, cols, group) = (table.rows(), table.cols(), 128);
    let codes = table.trits().chunks(16);
    let words: Vec<u8> = codes
        .map(|c| (0..16).fold(0, |word, j| word | ((c[j] + 1) as u32) << (2 * j)))
        .flat_map(u32::to_le_bytes)
        .collect();
    let scales: Vec<f32> = (0..rows)
        .flat_map(|row| (0..cols / group).map(move |g| (row, g * group)))
        .map(|(row, col)| table.scales().at(row, col, cols))
        .collect();
    let f16s = |sign: f32| -> Vec<u8> {
        let halves = scales.iter().map(|s| f32_to_f16(sign * s).to_le_bytes());
        halves.flatten().collect()
    };
    let groups = [rows, cols / group];
    let packed = [
        ("weight", Dtype::U32, [rows, cols / 16], words),
        ("scales", Dtype::F16, groups, f16s(1.0)),
        ("biases", Dtype::F16, groups, f16s(-1.0)),
    ];

    let path = mlx.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let dense = format!("{NAME}.weight");
    let mut tensors: Vec<_> = file.tensors();
    tensors.retain(|(name, _)| *name != dense);
    for (end, dtype, shape, data) in &packed {
        let view = TensorView::new(*dtype, shape.to_vec(), data).unwrap();
        tensors.push((format!("{NAME}.{end}"), view));
    }
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    std::fs::remove_file(mlx.join("certificate.json")).unwrap();

    let output = dir.path().join("back.gguf");
    let before = done(&source, &dir.path().join("direct.gguf"), "gguf-pq2_0");
    let after = done(&mlx, &output, "gguf-pq2_0");
    assert_eq!(after["ternary_sha256"], before["ternary_sha256"]);
    let words = [
        "--json".as_ref(),
        output.as_os_str(),
        "--against".as_ref(),
        source.as_os_str(),
    ];
    let ran = program::run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Done, "{}", ran.stdout);
}

/// A binary copy of a fixture: as f16 numbers in `numbers`, and as 1-bit codes of MLX in `codes`.
fn binary(source: &Path, numbers: &Path, codes: &Path) {
    let original = Checkpoint::open(source, &OpenOptions::default()).unwrap();
    let bytes = std::fs::read(source.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut plain: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    let mut packed = Vec::new();
    let slots = original.slots();
    for (name, view) in file.tensors() {
        let slot = slots.iter().find(|slot| slot.to_string() == name).unwrap();
        if !original.is_ternary(*slot) {
            let own = (
                name,
                view.dtype(),
                view.shape().to_vec(),
                view.data().to_vec(),
            );
            plain.push(own.clone());
            packed.push(own);
            continue;
        }
        let matrix = original.ternary(*slot).unwrap();
        let (rows, cols, group) = (matrix.rows(), matrix.cols(), 128);
        let sign = |trit: i8| if trit < 0 { -1.0f32 } else { 1.0 };
        let mut halves = Vec::new();
        for (at, trit) in matrix.trits().iter().enumerate() {
            let scale = matrix.scales().at(at / cols, at % cols, cols);
            halves.extend(f32_to_f16(sign(*trit) * scale).to_le_bytes());
        }
        let scales: Vec<f32> = (0..rows)
            .flat_map(|row| (0..cols / group).map(move |g| (row, g * group)))
            .map(|(row, col)| matrix.scales().at(row, col, cols))
            .collect();
        // every third group the other way round
        let turned = |group: usize| {
            if group.is_multiple_of(3) {
                -1.0f32
            } else {
                1.0
            }
        };
        let bits: Vec<u8> = (matrix.trits().chunks(8).enumerate())
            .map(|(n, eight)| {
                let flip = turned(n * 8 / group) < 0.0;
                let bit = |(i, t): (usize, &i8)| u8::from((*t >= 0) != flip) << i;
                eight.iter().enumerate().map(bit).sum()
            })
            .collect();
        let beside = |factor: f32| -> Vec<u8> {
            let numbers = scales.iter().enumerate();
            let numbers = numbers.map(|(n, s)| f32_to_f16(factor * turned(n) * s).to_le_bytes());
            numbers.flatten().collect()
        };
        let stem = name.strip_suffix(".weight").unwrap().to_owned();
        let groups = vec![rows, cols / group];
        plain.push((name.clone(), Dtype::F16, vec![rows, cols], halves));
        packed.push((name, Dtype::U32, vec![rows, cols / 32], bits));
        packed.push((
            format!("{stem}.scales"),
            Dtype::F16,
            groups.clone(),
            beside(2.0),
        ));
        packed.push((format!("{stem}.biases"), Dtype::F16, groups, beside(-1.0)));
    }
    for (dir, tensors) in [(numbers, &plain), (codes, &packed)] {
        std::fs::create_dir_all(dir).unwrap();
        for entry in std::fs::read_dir(source).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
        }
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
        let written = safetensors::serialize(views, metadata).unwrap();
        std::fs::write(dir.join("model.safetensors"), written).unwrap();
    }
    let path = codes.join("config.json");
    let mut config = bitnet_tests::fixtures::read_json(&path);
    config["quantization"] = json!({"group_size": 128, "bits": 1, "mode": "affine"});
    std::fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn binary_packs_of_mlx_convert_to_every_target_that_holds_them() {
    let dir = tempfile::tempdir().unwrap();
    let (numbers, codes) = (dir.path().join("numbers"), dir.path().join("codes"));
    binary(&checkpoint("bonsai-1.7b"), &numbers, &codes);
    for to in [
        "gguf-q1_0",
        "gguf-pq2_0",
        "gguf-ptq1_0",
        "gguf-q2_0",
        "mlx-2bit",
        "packed",
        "gguf-f32",
    ] {
        let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
        let output = |from: &str| dir.path().join(format!("{from}-{to}{suffix}"));
        let before = done(&numbers, &output("numbers"), to);
        let after = done(&codes, &output("codes"), to);
        assert_eq!(after["lossless"], true, "{to}");
        assert_eq!(after["ternary_sha256"], before["ternary_sha256"], "{to}");
        let words: [std::ffi::OsString; 4] = [
            "--json".into(),
            output("codes").into(),
            "--against".into(),
            codes.clone().into(),
        ];
        let ran = program::run(bitnet_verify::run, words);
        assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
    }
    // one bias that is not minus half of its scale
    let path = codes.join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let name = "model.layers.1.mlp.up_proj.biases";
    let mut data = file.tensor(name).unwrap().data().to_vec();
    data[6] ^= 1;
    let mut tensors = file.tensors();
    tensors.retain(|(other, _)| other != name);
    let shape = file.tensor(name).unwrap().shape().to_vec();
    let view = TensorView::new(Dtype::F16, shape, &data).unwrap();
    tensors.push((name.to_owned(), view));
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let output = dir.path().join("refused.gguf");
    let words = [
        codes.as_os_str(),
        "-o".as_ref(),
        output.as_os_str(),
        "--to".as_ref(),
        "gguf-q1_0".as_ref(),
        "--json".as_ref(),
    ];
    let ran = program::run(bitnet_convert::run, words);
    assert_eq!(ran.status, ExitStatus::CouldNot, "{}", ran.stdout);
    assert_eq!(ran.json()["error"]["code"], "not-ternary");
    assert!(!output.exists());
}
