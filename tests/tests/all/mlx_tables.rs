//! MLX packs whose embeddings and output head have wider codes than their linears.
//!
//! Invariant: a table in codes is the table of the numbers `scale * code + bias`, bit for bit in every logit, and in
//! every file that is made of it; wider codes of a linear are refused by name.

use bitnet_checkpoint::{Checkpoint, OpenOptions, Slot};
use bitnet_cli::ExitStatus;
use bitnet_formats::{Encoding, PlainType};
use bitnet_model::{LoadOptions, Logits, Model};
use bitnet_ternary::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use bitnet_tests::experts_model::{Layout, Shape};
use bitnet_tests::fixtures::{checkpoint, read_json};
use bitnet_tests::program::{self, Ran};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn convert(source: &Path, output: &Path, to: &str) -> Ran {
    let (source, output) = (source.to_str().unwrap(), output.to_str().unwrap());
    let words = [source, "-o", output, "--to", to, "--json"];
    program::run(bitnet_convert::run, words)
}

#[track_caller]
fn done(source: &Path, output: &Path, to: &str) -> Value {
    let ran = convert(source, output, to);
    assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
    ran.json()
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &OpenOptions::default())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn logits(path: &Path) -> Vec<u32> {
    let model = Model::load(&open(path), &LoadOptions::default()).unwrap();
    let vocab = model.config().vocab_size;
    let tokens: Vec<u32> = (0..12).map(|i| (i * 37 % vocab) as u32).collect();
    let mut session = model.session(tokens.len()).unwrap();
    let logits = model.forward(&mut session, &tokens, Logits::All).unwrap();
    logits.iter().map(|l| l.to_bits()).collect()
}

type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// A table in codes and as the numbers that these stand for.
fn coded(
    module: &str,
    dense: &[f32],
    cols: usize,
    bits: usize,
    group: usize,
    plain: Dtype,
) -> (Vec<Tensor>, Tensor) {
    let narrow = |x: f32| -> (f32, Vec<u8>) {
        match plain {
            Dtype::BF16 => {
                let half = f32_to_bf16(x);
                (bf16_to_f32(half), half.to_le_bytes().to_vec())
            }
            Dtype::F16 => {
                let half = f32_to_f16(x);
                (f16_to_f32(half), half.to_le_bytes().to_vec())
            }
            _ => (x, x.to_le_bytes().to_vec()),
        }
    };
    let rows = dense.len() / cols;
    let most = (1u32 << bits) - 1;
    let mut words = vec![0u8; dense.len() * bits / 8];
    let (mut scales, mut biases, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
    for (at, values) in dense.chunks(group).enumerate() {
        let low = values.iter().copied().fold(f32::INFINITY, f32::min);
        let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // some groups from above, as MLX has them
        let (start, step) = match at % 3 {
            0 => (high, (low - high) / most as f32),
            _ => (low, (high - low) / most as f32),
        };
        let ((scale, scale_bytes), (bias, bias_bytes)) = (narrow(step), narrow(start));
        scales.extend(scale_bytes);
        biases.extend(bias_bytes);
        for (i, value) in values.iter().enumerate() {
            let code = match scale == 0.0 {
                true => 0,
                false => ((value - bias) / scale).round().clamp(0.0, most as f32) as u32,
            };
            let number: f32 = scale * code as f32 + bias;
            numbers.extend(number.to_le_bytes());
            for bit in 0..bits {
                let place = (at * group + i) * bits + bit;
                words[place / 8] |= ((code >> bit & 1) as u8) << (place % 8);
            }
        }
    }
    let groups = vec![rows, cols / group];
    let name = |role: &str| format!("{module}.{role}");
    let tensors = vec![
        (
            name("weight"),
            Dtype::U32,
            vec![rows, cols * bits / 32],
            words,
        ),
        (name("scales"), plain, groups.clone(), scales),
        (name("biases"), plain, groups, biases),
    ];
    let twin = (name("weight"), Dtype::F32, vec![rows, cols], numbers);
    (tensors, twin)
}

fn write(from: &Path, to: &Path, tensors: &[Tensor], config: &Value) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "certificate.json" {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let written = safetensors::serialize(views, None).unwrap();
    std::fs::write(to.join("model.safetensors"), written).unwrap();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
}

/// Copies of a pack: its tables in codes, and as numbers.
fn pair(pack: &Path, dir: &Path, bits: usize, group: usize, plain: Dtype) -> (PathBuf, PathBuf) {
    let model = open(pack);
    let mut tables = Vec::new();
    for slot in [Slot::TokenEmbeddings, Slot::OutputHead] {
        if !model.slots().contains(&slot) {
            continue;
        }
        let cols = model.config.hidden_size;
        let (name, dense) = match model.is_ternary(slot) {
            true => {
                let matrix = model.ternary(slot).unwrap();
                let at = |(i, trit): (usize, &i8)| {
                    f32::from(*trit) * matrix.scales().at(i / cols, i % cols, cols)
                        + i as f32 * 1e-6
                };
                let dense: Vec<f32> = matrix.trits().iter().enumerate().map(at).collect();
                (model.tensor_range(slot).unwrap().name.clone(), dense)
            }
            false => {
                let tensor = model.dense(slot).unwrap();
                let mut dense = vec![0.0; tensor.shape.iter().product()];
                tensor.widen(&tensor.bytes, &mut dense).unwrap();
                (tensor.info.name.clone(), dense)
            }
        };
        let module = name.strip_suffix(".weight").unwrap().to_owned();
        let (codes, numbers) = coded(&module, &dense, cols, bits, group, plain);
        tables.push((module, codes, numbers));
    }
    let bytes = std::fs::read(pack.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let is_table = |name: &str| {
        tables
            .iter()
            .any(|(m, ..)| name.starts_with(&format!("{m}.")))
    };
    let rest: Vec<Tensor> = (file.tensors().into_iter())
        .filter(|(name, _)| !is_table(name))
        .map(|(name, v)| (name, v.dtype(), v.shape().to_vec(), v.data().to_vec()))
        .collect();
    let (mut codes, mut numbers) = (rest.clone(), rest);
    let config = read_json(&pack.join("config.json"));
    let mut coded_config = config.clone();
    for (module, tensors, twin) in tables {
        codes.extend(tensors);
        numbers.push(twin);
        coded_config["quantization"][module] = json!({"bits": bits, "group_size": group});
    }
    let (a, b) = (dir.join("codes"), dir.join("numbers"));
    write(pack, &a, &codes, &coded_config);
    write(pack, &b, &numbers, &config);
    (a, b)
}

fn packs(dir: &Path) -> [PathBuf; 2] {
    let source = dir.join("maple");
    let maple = Shape {
        hidden: 512,
        inter: 256,
        head_dim: 128,
        layers: 1,
        ..Shape::small(true, 11)
    };
    maple.write(&source, Layout::Each);
    [source, checkpoint("bonsai-1.7b")].map(|source| {
        let pack = dir.join(format!("pack-{}", source.ancestors().count()));
        done(&source, &pack, "mlx-2bit");
        pack
    })
}

#[test]
fn a_table_in_wider_codes_is_the_table_of_its_numbers() {
    let scratch = tempfile::tempdir().unwrap();
    for (n, pack) in packs(scratch.path()).iter().enumerate() {
        let forms = [
            (4, 64, Dtype::BF16),
            (4, 32, Dtype::F32),
            (8, 64, Dtype::F16),
            (6, 128, Dtype::BF16),
            (3, 64, Dtype::F16),
        ];
        for (bits, group, plain) in forms {
            let dir = scratch.path().join(format!("{n}-{bits}-{group}"));
            let (codes, numbers) = pair(pack, &dir, bits, group, plain);
            let want = logits(&numbers);
            assert_eq!(logits(&codes), want, "{bits} bits");
            let slot = Slot::TokenEmbeddings;
            let (a, b) = (open(&codes), open(&numbers));
            let (a, b) = (a.dense(slot).unwrap(), b.dense(slot).unwrap());
            assert_eq!(a.encoding, Encoding::Plain(PlainType::F32));
            assert_eq!(*a.bytes, *b.bytes);
            if (bits, group) != (4, 64) {
                continue;
            }
            for to in ["gguf-pq2_0", "mlx-2bit", "packed"] {
                let suffix = if to.starts_with("gguf") { ".gguf" } else { "" };
                let output = |from: &str| dir.join(format!("{from}-{to}{suffix}"));
                let expected = done(&numbers, &output("from-numbers"), to);
                let found = done(&codes, &output("from-codes"), to);
                assert_eq!(found["ternary_sha256"], expected["ternary_sha256"]);
                assert_eq!(logits(&output("from-codes")), want, "{to}");
                let artifact = output("from-codes");
                for against in [&codes, &numbers] {
                    let words = [
                        artifact.to_str().unwrap(),
                        "--against",
                        against.to_str().unwrap(),
                        "--json",
                    ];
                    let ran = program::run(bitnet_verify::run, words);
                    assert_eq!(ran.status, ExitStatus::Done, "{to}: {}", ran.stdout);
                }
            }
        }
    }
}

#[test]
fn a_changed_code_changes_the_table() {
    let scratch = tempfile::tempdir().unwrap();
    let [_, pack] = packs(scratch.path());
    let (codes, numbers) = pair(&pack, scratch.path(), 4, 64, Dtype::BF16);
    let path = codes.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let info = open(&codes)
        .tensor_range(Slot::TokenEmbeddings)
        .unwrap()
        .clone();
    bytes[info.offset as usize + 5] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();
    let words = [
        codes.to_str().unwrap(),
        "--against",
        numbers.to_str().unwrap(),
        "--json",
    ];
    let ran = program::run(bitnet_verify::run, words);
    assert_eq!(ran.status, ExitStatus::Different, "{}", ran.stdout);
}

#[test]
fn what_a_table_does_not_fit_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    let [_, pack] = packs(scratch.path());
    let (codes, _) = pair(&pack, scratch.path(), 4, 64, Dtype::BF16);
    let path = codes.join("config.json");
    let config = read_json(&path);
    let table = "model.embed_tokens";
    let linear = "model.layers.0.self_attn.q_proj";
    for (module, form, code, says) in [
        (
            table,
            json!({"bits": 7, "group_size": 64}),
            "unknown-quantization",
            "bits`: expected 1 to 6, or 8",
        ),
        (
            table,
            json!({"bits": 8, "group_size": 64}),
            "wrong-shape",
            "8 bits",
        ),
        (
            table,
            json!({"bits": 4, "group_size": 128}),
            "wrong-shape",
            "scales",
        ),
        (
            linear,
            json!({"bits": 4, "group_size": 64}),
            "unknown-quantization",
            "q_proj.bits`: expected 1 or 2",
        ),
    ] {
        let mut changed = config.clone();
        changed["quantization"][module] = form.clone();
        std::fs::write(&path, changed.to_string()).unwrap();
        let json = convert(&codes, &scratch.path().join("out.gguf"), "gguf-f32").json();
        assert_eq!(json["error"]["code"], code, "{form}: {json}");
        let error = json["error"].to_string();
        assert!(error.contains(says), "{error} does not say {says}");
    }
}
