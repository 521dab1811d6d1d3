//! First inputs of every target, from the fixtures, the vectors and a small network.
//!
//! Invariant: the same repository gives the same seeds.

use crate::models::{FAMILIES, fixture};
use crate::scratch;
use crate::zip;
use bitnet_convert::TARGETS;
use bitnet_formats::{
    BlockType, Container, Encoding, Gguf, MetaArray, MetaValue, Metadata, PACKINGS, PlainType,
    PlannedTensor, WritePlan,
};
use serde_json::{Map, Value, json};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

/// A target, a name, and the bytes.
type Seed = (&'static str, String, Vec<u8>);

/// Every seed.
pub fn seeds() -> Vec<Seed> {
    let mut all = Vec::new();
    for number in 0..PACKINGS.len() + 4 {
        packed(number as u8, &mut all);
    }
    small_containers(&mut all);
    texts(&mut all);
    models(&mut all);
    records(&mut all);
    server(&mut all);
    all
}

fn read(path: &Path) -> Option<Vec<u8>> {
    fs::read(path).ok()
}

fn packed(number: u8, all: &mut Vec<Seed>) {
    // 64 x 128, 4 x 256, 96 x 192, 32 x 64, 3 x 5
    let shapes: [[u8; 4]; 6] = [
        [1, 0x60, 1, 0xa0],
        [4, 0, 1, 0xe0],
        [1, 0x80, 1, 0xc0],
        [1, 0x40, 1, 0x60],
        [3, 0, 5, 0],
        [2, 0xe0, 2, 0xe0],
    ];
    for (at, shape) in shapes.iter().enumerate() {
        for scales in [&[0][..], &[1, 0, 0, 128, 63]] {
            for bytes in [
                &[0][..],
                &[0x55, 0xaa, 0x12],
                &[0, 60, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
            ] {
                let mut seed = vec![0, number];
                seed.extend_from_slice(shape);
                seed.extend_from_slice(scales);
                seed.extend_from_slice(bytes);
                let name = format!("{number}-{at}-{}-{}", scales.len(), bytes.len());
                for to in [4u8, 5, number] {
                    let mut both = vec![to, 1];
                    both.extend_from_slice(&seed);
                    all.push(("transcode", format!("{name}-{to}"), both));
                }
                all.push(("unpack", name, seed));
            }
        }
    }
    for to in 0..6 {
        all.push((
            "dense",
            format!("{number}-{to}"),
            vec![number % 6, to, 1, 0xe0, 1, 2, 3, 60],
        ));
    }
}

/// A file whose tensors are all zeros.
fn file_of(container: &dyn Container, plan: &WritePlan) -> Option<Vec<u8>> {
    let header = container.header(plan).ok()?;
    let mut bytes = header.bytes;
    bytes.resize(usize::try_from(header.total).ok()?, 0);
    Some(bytes)
}

fn every_value() -> Vec<(String, MetaValue)> {
    let strings = [&b"a"[..], b"bc"].into_iter().collect();
    let values = [
        MetaValue::U8(1),
        MetaValue::I8(-1),
        MetaValue::U16(2),
        MetaValue::I16(-2),
        MetaValue::U32(3),
        MetaValue::I32(-3),
        MetaValue::F32(0.5),
        MetaValue::Bool(true),
        MetaValue::text("text"),
        MetaValue::U64(4),
        MetaValue::I64(-4),
        MetaValue::F64(0.25),
        MetaValue::Array(MetaArray::U8(vec![1, 2])),
        MetaValue::Array(MetaArray::I32(vec![1, 2])),
        MetaValue::Array(MetaArray::F32(vec![1.0])),
        MetaValue::Array(MetaArray::Bool(vec![true])),
        MetaValue::Array(MetaArray::String(strings)),
    ];
    let named = values.into_iter().enumerate();
    named.map(|(n, value)| (format!("a.b{n}"), value)).collect()
}

fn small_containers(all: &mut Vec<Seed>) {
    let mut encodings: Vec<Encoding> = PACKINGS.iter().map(|p| Encoding::Ternary(*p)).collect();
    encodings.extend([
        Encoding::Plain(PlainType::F32),
        Encoding::Plain(PlainType::Bf16),
        Encoding::Block(BlockType::Q8_0),
        Encoding::Block(BlockType::Q6_K),
        Encoding::Block(BlockType::Q4_K),
    ]);
    for (number, encoding) in encodings.into_iter().enumerate() {
        let (rows, cols) = (4, 256);
        let len = match encoding {
            Encoding::Ternary(packing) => packing.packed_len(rows, cols).ok(),
            other => bitnet_formats::dense_len(other, rows * cols, cols).ok(),
        };
        let Some(len) = len else { continue };
        let tensor = |name: &str| PlannedTensor {
            name: name.to_owned(),
            encoding,
            shape: vec![rows, cols],
            len,
        };
        let mut metadata = Metadata(Vec::new());
        if number % 4 == 0 {
            metadata.add_missing(every_value());
        }
        let plan = WritePlan {
            metadata,
            tensors: vec![tensor("a.weight"), tensor("b.weight")],
        };
        let gguf = file_of(&Gguf, &plan);
        all.extend(gguf.map(|bytes| ("gguf", format!("small-{number}"), bytes)));
    }
    for (number, types) in [["F32", "BF16"], ["U8", "I8"], ["F16", "U32"]]
        .iter()
        .enumerate()
    {
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
        let mut at = 0;
        for dtype in types {
            let size = match *dtype {
                "F32" | "U32" => 4,
                "U8" | "I8" => 1,
                _ => 2,
            };
            let end = at + 6 * size;
            let entry = json!({"dtype": dtype, "shape": [2, 3], "data_offsets": [at, end]});
            header.insert(format!("{dtype}.weight"), entry);
            at = end;
        }
        let bytes = safetensors(&Value::Object(header), &vec![1; at]);
        all.push(("safetensors", format!("small-{number}"), bytes));
    }
    let tests = crate::directory();
    let pytorch = tests.with_file_name("files").join("pytorch");
    for name in ["legacy", "module", "object", "state_dict", "strided"] {
        let Some(bytes) = read(&pytorch.join(format!("{name}.pt"))) else {
            continue;
        };
        if let Some(pickle) = zip::record_of(&bytes, "data.pkl") {
            all.push(("pickle", name.to_owned(), pickle.to_vec()));
        }
        all.push(("pytorch", name.to_owned(), bytes));
    }
    for names in [vec!["a", "b"], vec!["a-00001-of-00002", "a-00002-of-00002"]] {
        let map: Map<String, Value> = names
            .iter()
            .map(|name| ((*name).to_owned(), json!(format!("{name}.safetensors"))))
            .collect();
        let index = json!({"metadata": {"total_size": 4}, "weight_map": map});
        all.push((
            "shard_index",
            names[0].to_owned(),
            index.to_string().into_bytes(),
        ));
    }
    for (number, text) in [
        r#"{"a": [1, -2.5e3, "x\u00e9\n", true, false, null, {}], "a": {"b": [[]]}}"#,
        "\u{feff}[1,2]",
        r#""😀""#,
    ]
    .into_iter()
    .enumerate()
    {
        all.push(("json", number.to_string(), text.as_bytes().to_vec()));
    }
}

fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let text = header.to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(text.as_bytes());
    bytes.extend_from_slice(data);
    bytes
}

/// A file of the metadata of a tokenizer, with one small tensor.
fn gguf_of_metadata(entries: Vec<(String, MetaValue)>) -> Option<Vec<u8>> {
    let tensor = PlannedTensor {
        name: "t".to_owned(),
        encoding: Encoding::Plain(PlainType::F32),
        shape: vec![8],
        len: 32,
    };
    let plan = WritePlan {
        metadata: Metadata(entries),
        tensors: vec![tensor],
    };
    file_of(&Gguf, &plan)
}

fn texts(all: &mut Vec<Seed>) {
    for name in FAMILIES {
        let dir = fixture(name);
        for (target, file) in [
            ("tokenizer_json", "tokenizer.json"),
            ("sentencepiece", "tokenizer.model"),
        ] {
            if let Some(bytes) = read(&dir.join(file)) {
                all.push((target, name.to_owned(), bytes));
            }
        }
        let settings = read(&dir.join("tokenizer_config.json"));
        let settings = settings.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        if let Some(template) = settings
            .as_ref()
            .and_then(|s| s.get("chat_template")?.as_str())
        {
            all.push((
                "chat_template",
                name.to_owned(),
                template.as_bytes().to_vec(),
            ));
        }
        let Ok(entries) = bitnet_text::tokenizer_to_gguf(&dir, 1 << 12) else {
            continue;
        };
        let shown: Vec<_> = entries
            .iter()
            .filter(|(key, _)| key != "tokenizer.huggingface.json")
            .map(|(key, value)| (key.clone(), shorter(value)))
            .collect();
        for (kind, entries) in [("whole", entries), ("keys", shown)] {
            let file = gguf_of_metadata(entries);
            all.extend(file.map(|bytes| ("gguf_tokenizer", format!("{name}-{kind}"), bytes)));
        }
    }
    let templates = crate::directory()
        .with_file_name("fixtures")
        .join("chat_templates");
    for file in ["expressions.json", "tools.json"] {
        let Some(text) = read(&templates.join(file)) else {
            continue;
        };
        let table: Value = serde_json::from_slice(&text).unwrap_or_default();
        let mut found = Vec::new();
        sources(&table, &mut found);
        let numbered = found.into_iter().enumerate();
        all.extend(numbered.map(|(n, source)| ("chat_template", format!("{file}-{n}"), source)));
    }
}

/// Lists of tokens cut short, so that a seed is small.
fn shorter(value: &MetaValue) -> MetaValue {
    const MOST: usize = 300;
    match value {
        MetaValue::Array(MetaArray::String(list)) => {
            MetaValue::Array(MetaArray::String(list.iter().take(MOST).collect()))
        }
        MetaValue::Array(MetaArray::I32(list)) => {
            MetaValue::Array(MetaArray::I32(list.iter().copied().take(MOST).collect()))
        }
        MetaValue::Array(MetaArray::F32(list)) => {
            MetaValue::Array(MetaArray::F32(list.iter().copied().take(MOST).collect()))
        }
        other => other.clone(),
    }
}

/// Texts that look like templates, anywhere in a table.
fn sources(value: &Value, found: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) if text.contains("{{") || text.contains("{%") => {
            found.push(text.as_bytes().to_vec());
        }
        Value::Array(list) => list.iter().for_each(|v| sources(v, found)),
        Value::Object(map) => map.values().for_each(|v| sources(v, found)),
        _ => {}
    }
}

/// A network of one layer: `config.json` and the weights.
fn network(hidden: usize, heads: usize) -> (Vec<u8>, Vec<u8>) {
    const VOCABULARY: usize = 8;
    let head = hidden / heads;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": hidden, "max_position_embeddings": 64,
        "num_attention_heads": heads, "num_hidden_layers": 1, "num_key_value_heads": 1, "head_dim": head,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2,
    });
    let mut tensors: Vec<(String, &str, Vec<usize>, Vec<u8>)> = Vec::new();
    let linears = [
        ("self_attn.q_proj", hidden, hidden),
        ("self_attn.k_proj", head, hidden),
        ("self_attn.v_proj", head, hidden),
        ("self_attn.o_proj", hidden, hidden),
        ("mlp.gate_proj", hidden, hidden),
        ("mlp.up_proj", hidden, hidden),
        ("mlp.down_proj", hidden, hidden),
    ];
    for (name, rows, cols) in linears {
        let name = format!("model.layers.0.{name}.weight");
        let codes = (0..rows / 4 * cols).map(|i| [0x24, 0x92, 0x08, 0x16][i % 4]);
        tensors.push((name.clone(), "U8", vec![rows / 4, cols], codes.collect()));
        tensors.push((format!("{name}_scale"), "BF16", vec![1], vec![0, 0x40]));
    }
    for name in [
        "layers.0.input_layernorm",
        "layers.0.post_attention_layernorm",
        "norm",
    ] {
        let gains = [0x80, 0x3f].repeat(hidden);
        tensors.push((format!("model.{name}.weight"), "BF16", vec![hidden], gains));
    }
    for name in ["model.embed_tokens.weight", "lm_head.weight"] {
        let values = (0..VOCABULARY * hidden).flat_map(|i| [(i % 127) as u8, 0x3f + (i % 2) as u8]);
        tensors.push((
            name.to_owned(),
            "BF16",
            vec![VOCABULARY, hidden],
            values.collect(),
        ));
    }
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let at = data.len();
        data.extend_from_slice(&bytes);
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [at, data.len()]});
        header.insert(name, entry);
    }
    (
        config.to_string().into_bytes(),
        safetensors(&Value::Object(header), &data),
    )
}

fn model_seed(config: &[u8], weights: &[u8]) -> Vec<u8> {
    let mut seed = vec![0];
    seed.extend_from_slice(&(config.len() as u16).to_le_bytes());
    seed.extend_from_slice(config);
    seed.extend_from_slice(weights);
    seed
}

fn models(all: &mut Vec<Seed>) {
    for (number, name) in FAMILIES.iter().enumerate() {
        if let Some(text) = read(&fixture(name).join("config.json")) {
            let mut seed = vec![number as u8];
            seed.extend_from_slice(&text);
            all.push(("config", (*name).to_owned(), seed));
        }
    }
    for (hidden, heads) in [(32, 2), (128, 2)] {
        let (config, weights) = network(hidden, heads);
        let source = scratch::below(&format!("network-{hidden}"));
        scratch::write(&source.join("config.json"), &config);
        scratch::write(&source.join("model.safetensors"), &weights);
        let seed = model_seed(&config, &weights);
        all.push(("checkpoint", format!("hf-{hidden}"), seed.clone()));
        let mut both = vec![1];
        both.extend_from_slice(&seed);
        all.push(("agreement", format!("hf-{hidden}"), both));
        for (number, target) in TARGETS.iter().enumerate() {
            let Some(output) = converted(&source, target.name) else {
                continue;
            };
            let name = format!("{}-{hidden}", target.name);
            if output.is_file() {
                let bytes = read(&output).unwrap_or_default();
                let mut both = vec![(number * 3) as u8];
                both.extend_from_slice(&bytes);
                all.push(("agreement", name.clone(), both));
                if hidden == 32 || number == 0 {
                    all.push(("gguf", name.clone(), bytes.clone()));
                }
                all.push(("checkpoint_gguf", name.clone(), bytes));
                let beside = format!("{}.certificate.json", output.display());
                let text = read(Path::new(&beside));
                all.extend(text.map(|text| ("certificate", name, text)));
            } else {
                let config = read(&output.join("config.json")).unwrap_or_default();
                let weights = read(&output.join("model.safetensors")).unwrap_or_default();
                all.push(("checkpoint", name, model_seed(&config, &weights)));
            }
        }
    }
}

fn converted(source: &Path, target: &str) -> Option<PathBuf> {
    let stem = source.file_name()?.to_string_lossy().into_owned();
    let ending = if target.starts_with("gguf") {
        ".gguf"
    } else {
        ""
    };
    let output = scratch::path().join(format!("{stem}-{target}{ending}"));
    let (from, to) = (source.to_string_lossy(), output.to_string_lossy());
    let words = [
        "bitnet-convert",
        &from,
        "-o",
        &to,
        "--to",
        target,
        "--allow-scale-rounding",
        "--quiet",
        "--threads",
        "1",
    ];
    let words = words.into_iter().map(OsString::from);
    let _ = bitnet_convert::run(words, &mut Vec::new(), &mut Vec::new());
    output.exists().then_some(output)
}

fn records(all: &mut Vec<Seed>) {
    let tests = crate::directory();
    let certificates = tests.with_file_name("certificates");
    for name in ["qwen2", "maple", "bitnet-embedding-270m"] {
        if let Some(text) = read(&certificates.join(format!("{name}.certificate.json"))) {
            all.push(("certificate", name.to_owned(), text));
        }
    }
    for (number, text) in [
        r#"{"b": {"text": "x", "ids": [1, 2], "more": [{}]}, "a": "y", "c": [3], "d": {"ids": null, "text": null}}"#,
        r#"[[7], "z", [4294967295]]"#,
    ]
    .into_iter()
    .enumerate()
    {
        all.push(("prompts", number.to_string(), text.as_bytes().to_vec()));
    }
    let plan = json!({
        "plan": 1, "tool": "bitnet-convert 0.1.0", "plan_sha256": "00", "source": "a", "output": "b", "target": "gguf-i2_s",
        "embeddings": "keep", "allow_scale_rounding": false, "split_max_size": 4096, "layout": null, "ternary_trained": true,
    });
    all.push(("plan", "plan".to_owned(), plan.to_string().into_bytes()));
    let mut header = Map::new();
    for (name, dtype, rows, cols, at) in [
        ("a.logits", "F32", 2, 4, 0),
        ("b.logits", "F32", 1, 4, 32),
        ("short.layer0.expert_ids", "I32", 3, 2, 48),
        ("short.layer0.expert_weights", "F32", 3, 2, 72),
    ] {
        let entry = json!({"dtype": dtype, "shape": [rows, cols], "data_offsets": [at, at + rows * cols * 4]});
        header.insert(name.to_owned(), entry);
    }
    all.push((
        "logits",
        "all".to_owned(),
        safetensors(&Value::Object(header), &[0; 96]),
    ));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let revision = json!({"sha": commit, "siblings": [{"rfilename": "a.gguf"}, {"rfilename": "b/config.json"}]});
    for (kind, text) in [
        (0, "hf://owner/name@main/path/a.gguf".to_owned()),
        (0, "https://user:password@host:80/a%20b/c.gguf?x=y#z".to_owned()),
        (0, "s3://bucket/prefix/".to_owned()),
        (0, "file:///tmp/a".to_owned()),
        (1, "HF_ENDPOINT=http://h/\nHF_HUB_CACHE=~/a/${HOME}/$X\nHF_HUB_OFFLINE=yes\nHOME=/h\nHF_TOKEN=t".to_owned()),
        (2, revision.to_string()),
        (3, "bytes 5-9/10".to_owned()),
        (3, "W/\"abc\"".to_owned()),
    ] {
        let mut seed = vec![kind];
        seed.extend_from_slice(text.as_bytes());
        all.push(("hub", format!("{kind}-{}", seed.len()), seed));
    }
}

fn server(all: &mut Vec<Seed>) {
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Add 1 and 2."},
        {"role": "assistant", "content": [{"type": "text", "text": "3"}]}, {"role": "user", "content": "And 3?"}]);
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "strict": true,
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}});
    let bodies = [
        (
            0,
            json!({"model": "demo", "messages": messages, "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 5,
            "min_p": 0.1, "seed": 1, "n": 2, "stop": ["x"], "logit_bias": {"5": -100}, "logprobs": true, "top_logprobs": 2,
            "stream": true, "stream_options": {"include_usage": true}, "presence_penalty": 0.1, "frequency_penalty": 0.1}),
        ),
        (
            0,
            json!({"messages": messages, "tools": [tool], "tool_choice": "auto", "parallel_tool_calls": false}),
        ),
        (
            0,
            json!({"messages": messages, "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema":
            {"type": "object", "properties": {"a": {"enum": [1, 2]}}}}}, "chat_template_kwargs": {"enable_thinking": false}}),
        ),
        (
            1,
            json!({"prompt": ["Add 1", "Add 2"], "max_tokens": 0, "echo": true, "logprobs": 1, "suffix": null, "user": "u"}),
        ),
        (
            1,
            json!({"prompt": [[1, 2], [3]], "max_tokens": 1, "stop": "\n", "best_of": 1}),
        ),
        (
            2,
            json!({"input": ["a", "b"], "encoding_format": "base64", "dimensions": 8}),
        ),
        (
            3,
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}], "instructions": "x",
            "max_output_tokens": 3, "text": {"format": {"type": "text"}}, "store": false}),
        ),
        (
            4,
            json!({"content": "Add 1 and 2.", "add_special": true, "with_pieces": true}),
        ),
        (5, json!({"tokens": [1, 2, 3]})),
        (
            6,
            json!({"messages": messages, "tools": [tool], "add_generation_prompt": true}),
        ),
    ];
    for (number, (endpoint, body)) in bodies.into_iter().enumerate() {
        let mut seed = vec![endpoint];
        seed.extend_from_slice(body.to_string().as_bytes());
        all.push(("server", number.to_string(), seed));
    }
}
