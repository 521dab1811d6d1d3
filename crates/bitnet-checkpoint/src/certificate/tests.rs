use super::*;
use crate::config::{Activation, ActivationQuantization, Rope, RopeScaling};
use crate::slot::{LayerSlot, Slot};
use bitnet_formats::{PlainType, TensorInfo};

fn matrices() -> [(String, TernaryMatrix); 2] {
    let q = TernaryMatrix::new(
        2,
        5,
        vec![1, 0, -1, 1, 0, 0, 0, 0, -1, 1],
        Scales::PerTensor(0.5),
    );
    let down = TernaryMatrix::new(
        2,
        4,
        vec![0, 0, 1, 0, -1, -1, -1, -1],
        Scales::PerRow(vec![0.25, 2.0]),
    );
    [
        (Slot::Layer(0, LayerSlot::QProj).to_string(), q.unwrap()),
        (
            Slot::Layer(0, LayerSlot::DownProj).to_string(),
            down.unwrap(),
        ),
    ]
}

#[test]
fn the_worked_example_of_the_page() {
    let [(q_name, q), (down_name, down)] = matrices();
    let mut hasher = TernaryHasher::default();
    let digest = hasher.add(&q_name, &q);
    assert_eq!(
        digest.trits_sha256,
        "c2e04688090ebcab665516a0f1e3024cf79999d7277e1ee4481808ec0d7a88fd"
    );
    assert_eq!(digest.scale_bits, Some(0x3f00_0000));
    let digest = hasher.add(&down_name, &down);
    assert_eq!(
        digest.line(),
        "model.layers.0.mlp.down_proj.weight 2 4 \
         6b672b9a7e4feb4fd38386f90405bc0ae261413a758dd8eb2786be61df8dc27d row \
         53ea3a655e73fdc25966e4d39d287bff0a0b30944e3df5bae190efeae6951f1a\n"
    );
    assert_eq!(
        hasher.finish(),
        "8e68a976a41480d1032990535c29e263a99b1c83ddc7b798cf1c1e2c92dc248a"
    );
    // the order of adding does not matter
    let mut other = TernaryHasher::default();
    other.add(&down_name, &down);
    other.add(&q_name, &q);
    assert_eq!(other.finish(), hasher.finish());
}

#[test]
fn the_structure_of_scales_does_not_matter_where_they_say_the_same() {
    let [(name, q), _] = matrices();
    let rows = Scales::PerRow(vec![0.5, 0.5]);
    let same = TernaryMatrix::new(2, 5, q.trits().to_vec(), rows).unwrap();
    assert_eq!(TensorDigest::of(&name, &q), TensorDigest::of(&name, &same));
    let zero = |s| TernaryMatrix::new(1, 1, vec![0], Scales::PerTensor(s)).unwrap();
    assert_eq!(
        TensorDigest::of("z", &zero(1e-5)),
        TensorDigest::of("z", &zero(-0.0))
    );
}

#[test]
fn long_matrices_hash_like_one_stream() {
    // more rows than are packed at a time, and a last byte that is not full
    let (rows, cols) = (20_000, 13);
    let trits: Vec<i8> = (0..rows * cols)
        .map(|i| (i * 31 % 7 % 3) as i8 - 1)
        .collect();
    let bytes: Vec<u8> = trits
        .chunks(cols)
        .flat_map(|row| {
            row.chunks(4)
                .map(|c| c.iter().rev().fold(0, |b, t| b << 2 | (t + 1) as u8))
        })
        .collect();
    let matrix = TernaryMatrix::new(rows, cols, trits, Scales::PerTensor(1.0)).unwrap();
    assert_eq!(trit_sha256(&matrix), hex(&Sha256::digest(&bytes)));
}

#[test]
fn dense_digests_depend_on_values_only() {
    let values = [1.0f32, -2.0, 0.5];
    let digest = |plain: PlainType, bytes: Vec<u8>| {
        let info = TensorInfo {
            name: "norm".to_owned(),
            encoding: Encoding::Plain(plain),
            shape: vec![3],
            part: 0,
            offset: 0,
            len: bytes.len() as u64,
        };
        dense_sha256(&DenseTensor {
            encoding: info.encoding,
            shape: &info.shape,
            bytes: bytes.into(),
            meaning: crate::DenseMeaning::AsStored,
            is_shaped: false,
            info: &info,
        })
        .unwrap()
    };
    let f32s = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    let bf16s = values
        .iter()
        .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    assert_eq!(
        digest(PlainType::F32, f32s),
        "652c68feb04b96ae54eacc12e0e802a01796e508e25a12a01744c61f66dd486b"
    );
    assert_eq!(
        digest(PlainType::Bf16, bf16s),
        "652c68feb04b96ae54eacc12e0e802a01796e508e25a12a01744c61f66dd486b"
    );
}

#[test]
fn a_certificate_reads_back_as_written() {
    let [(name, q), (other, down)] = matrices();
    let mut hasher = TernaryHasher::default();
    let ternary = vec![
        TernaryRecord {
            digest: hasher.add(&other, &down),
            verdict: Verdict::Rounded(1.25e-4),
        },
        TernaryRecord {
            digest: hasher.add(&name, &q),
            verdict: Verdict::Exact,
        },
    ];
    let file = |name: &str| FileRecord {
        name: name.to_owned(),
        bytes: 7,
        sha256: hex(&[0xab; 32]),
    };
    let certificate = Certificate {
        tool: "bitnet-convert 0.1.0".to_owned(),
        family: "llama_b1_58".to_owned(),
        target: "gguf-tq2_0".to_owned(),
        config: Config {
            rotation: None,
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            head_dim: 4,
            vocab_size: 3,
            max_position_embeddings: 16,
            rms_norm_eps: 1e-6,
            rope: Rope {
                theta: 1_000_042.0,
                scaling: RopeScaling::Llama3 {
                    factor: 8.0,
                    low_freq_factor: 1.0,
                    high_freq_factor: 4.0,
                    original_max_position_embeddings: 8192,
                },
            },
            rotary_dim: 4,
            hidden_act: Activation::Silu,
            attn_sub_norm: false,
            ffn_sub_norm: false,
            norms: Default::default(),
            factors: Default::default(),
            sliding: None,
            biases: false,
            long_rope: None,
            hybrid: None,
            experts: None,
            pooling: None,
            embedding: Default::default(),
            tie_word_embeddings: false,
            activation_quantization: ActivationQuantization::Int8PerToken,
            bos_token_id: None,
            eos_token_ids: vec![1, 2],
        },
        source: vec![file("model.safetensors")],
        origin: None,
        output: vec![file("model.gguf")],
        ternary,
        dense: vec![DenseRecord {
            name: "model.norm.weight".to_owned(),
            shape: vec![8],
            values_sha256: hex(&[1; 32]),
            verdict: Verdict::Exact,
        }],
        source_ternary_sha256: hex(&[2; 32]),
        ternary_sha256: hasher.finish(),
        lossless: false,
        text: TextDigest {
            tokenizer: Certified::Refused("a `Unigram`".to_owned()),
            chat_template_sha256: Certified::Said(Some(hex(&[3; 32]))),
            additional_chat_templates: [("tool_use".to_owned(), hex(&[4; 32]))].into(),
        },
        seal: Seal::Whole,
    };
    let text = certificate.to_json().unwrap().to_string();
    let read = Certificate::from_json(&serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(read, certificate);

    let mut broken = certificate.to_json().unwrap();
    broken["ternary"][0]["trits_sha256"] = json!("xyz");
    let error = Certificate::from_json(&broken).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`ternary[0].trits_sha256`: expected a sha256 in lower-case hex, found \"xyz\""
    );
    assert!(Certificate::from_json(&json!({"certificate": 2})).is_err());
    assert!(Certificate::from_json(&json!([])).is_err());
}
