//! One change of a network, and what has to be said of it.
//!
//! Invariant: what a change means is known from the formats alone; no function that is tested decides it.

use bitnet_checkpoint::{LayerSlot, ScaleDirection, Slot};
use bitnet_ternary::Scales;
use bitnet_tests::random::Random;
use bitnet_tests::random_network::{Files, Form, Network, Plain, once_in, pick};
use serde_json::{Value, json};

/// What a change is.
#[derive(Debug, Clone, PartialEq)]
pub enum Means {
    /// Nothing: another spelling of the same network.
    Nothing,
    /// Other trits or scales of a matrix.
    Ternary(Slot),
    /// Other numbers of a tensor.
    Dense(Slot),
    /// Another network of the same weights: the setting.
    Wiring(&'static str),
}

/// A changed network.
pub struct Mutant {
    /// The change, for reports.
    pub what: String,
    /// What has to be said.
    pub means: Means,
    /// The network.
    pub network: Network,
    /// How it is written.
    pub files: Files,
}

impl Mutant {
    fn new(what: impl Into<String>, means: Means, network: Network) -> Self {
        Self {
            what: what.into(),
            means,
            network,
            files: Files::default(),
        }
    }
}

/// The type of the scales.
fn scale_type(network: &Network) -> Plain {
    match network.form {
        Form::Values(plain) | Form::Packed(plain, _) | Form::Affine(plain, _) => plain,
    }
}

/// The number of the scale of a trit.
fn scale_at(scales: &Scales, at: usize, cols: usize) -> usize {
    match scales {
        Scales::PerTensor(_) => 0,
        Scales::PerRow(_) => at / cols,
        Scales::PerGroup { group, .. } => at / group,
    }
}

fn scales_mut(scales: &mut Scales) -> &mut [f32] {
    match scales {
        Scales::PerTensor(scale) => std::slice::from_mut(scale),
        Scales::PerRow(scales) | Scales::PerGroup { scales, .. } => scales,
    }
}

/// One trit.
pub fn trit(network: &Network, random: &mut Random) -> Mutant {
    let mut network = network.clone();
    let number = random.below(network.linears.len());
    let linear = &mut network.linears[number];
    let at = random.below(linear.trits.len());
    let old = linear.trits[at];
    let new = (old + 2 + random.below(2) as i8) % 3 - 1;
    linear.trits[at] = new;
    let slot = linear.slot;
    let what = format!("trit {at} of {slot} from {old} to {new}");
    Mutant::new(what, Means::Ternary(slot), network)
}

/// The next number for a scale: a change if it multiplies a trit that is not 0.
pub fn scale(network: &Network, random: &mut Random) -> Mutant {
    let mut network = network.clone();
    let plain = scale_type(&network);
    let number = random.below(network.linears.len());
    let linear = &mut network.linears[number];
    let (cols, slot) = (linear.shape.1, linear.slot);
    let scale = random.below(linear.scales.as_slice().len());
    let mut trits = linear.trits.iter().enumerate();
    let votes = trits.any(|(at, t)| *t != 0 && scale_at(&linear.scales, at, cols) == scale);
    let stored = &mut scales_mut(&mut linear.scales)[scale];
    // the inverse of a neighbor may be the same f32
    (0..4).for_each(|_| *stored = plain.next(*stored));
    let means = match votes {
        true => Means::Ternary(slot),
        false => Means::Nothing,
    };
    let what = format!("scale {scale} of {slot}");
    Mutant::new(what, means, network)
}

/// One number of a dense tensor.
pub fn number(network: &Network, random: &mut Random) -> Mutant {
    let mut network = network.clone();
    let is_gain_less_one = network.family.stores_gain_minus_one;
    let number = random.below(network.dense.len());
    let dense = &mut network.dense[number];
    let (slot, plain) = (dense.slot, dense.plain);
    let at = random.below(dense.values.len());
    let value = &mut dense.values[at];
    let old = *value;
    // sums with 1 and exponentials round
    let is_shaped = is_gain_less_one(slot) || matches!(slot, Slot::Layer(_, LayerSlot::ALog));
    *value = match is_shaped {
        false => plain.next(old),
        true => plain.round(old + 0.125),
    };
    let what = format!("number {at} of {slot} from {old:e} to {:e}", *value);
    Mutant::new(what, Means::Dense(slot), network)
}

/// A number a little larger, as f32 has it.
fn larger(value: &Value) -> Value {
    let number = value.as_f64().unwrap_or(0.0) as f32;
    json!(f64::from(number.next_up()))
}

/// Keys whose numbers are taken as they are, and the settings that change with them.
const NUMBERS: [(&str, &str); 18] = [
    ("rms_norm_eps", "rms_norm_eps"),
    ("rope_theta", "rope_theta"),
    ("rope_local_base_freq", "sliding_window"),
    ("query_pre_attn_scalar", "query_pre_attn_scalar"),
    ("scale_emb", "embedding_factor"),
    ("factor", "rope_scaling"),
    ("low_freq_factor", "rope_scaling"),
    ("high_freq_factor", "rope_scaling"),
    ("beta_fast", "rope_scaling"),
    ("beta_slow", "rope_scaling"),
    ("attention_factor", "rope_scaling"),
    ("scale_depth", "residual_factor"),
    ("dim_model_base", "head_divisor"),
    ("alpha", "rope_theta"),
    ("max_position_embeddings", "max_position_embeddings"),
    ("sliding_window", "sliding_window"),
    ("original_max_position_embeddings", "rope_scaling"),
    ("bos_token_id", "bos_token_id"),
];

/// Every change of a setting that a network has.
pub fn settings(network: &Network) -> Vec<Mutant> {
    let mut all = Vec::new();
    let mut add = |what: &str, setting, change: &dyn Fn(&mut Network) -> bool| {
        let mut network = network.clone();
        if change(&mut network) {
            all.push(Mutant::new(what, Means::Wiring(setting), network));
        }
    };
    let has_alpha = network.clone().key("alpha").is_some();
    let has_lists = network.clone().key("long_factor").is_some();
    for (key, setting) in NUMBERS {
        let setting = match key {
            "original_max_position_embeddings" if has_lists => "long_rope",
            _ => setting,
        };
        add(key, setting, &|network| {
            let Some(value) = network.key(key) else {
                return false;
            };
            let old = value.clone();
            *value = match (key, old.as_u64()) {
                // quotients and powers of these round
                ("scale_depth" | "dim_model_base" | "alpha", _) => {
                    json!(old.as_f64().unwrap_or(0.0) * 1.5)
                }
                ("rope_theta", _) if has_alpha => json!(old.as_f64().unwrap_or(0.0) * 1.5),
                ("rope_theta" | "rms_norm_eps" | "rope_local_base_freq", _) => larger(&old),
                (_, Some(number)) => json!(number + 1),
                _ => larger(&old),
            };
            true
        });
    }
    for (key, from, to, setting) in [
        ("hidden_act", json!("silu"), json!("relu2"), "hidden_act"),
        (
            "hidden_act",
            json!("relu2"),
            json!("gelu_pytorch_tanh"),
            "hidden_act",
        ),
        (
            "hidden_activation",
            json!("gelu_pytorch_tanh"),
            json!("silu"),
            "hidden_act",
        ),
        ("eos_token_id", json!(2), json!(3), "eos_token_id"),
        ("eos_token_id", json!([2, 5]), json!([2]), "eos_token_id"),
        (
            "activation_quantization",
            json!("none"),
            json!("int8_per_token"),
            "activation_quantization",
        ),
        (
            "activation_quantization",
            json!("int8_per_token"),
            json!("none"),
            "activation_quantization",
        ),
    ] {
        add(key, setting, &|network| {
            let value = network.key(key).filter(|value| **value == from);
            value.map(|value| *value = to.clone()).is_some()
        });
    }
    let is_moe = network.family.name == "qwen3_moe";
    add("norm_topk_prob", "experts", &|network| {
        let has_experts = has_experts(network);
        let value = network.key("norm_topk_prob");
        let value = value.filter(|_| is_moe && has_experts);
        let flag = value.as_deref().and_then(Value::as_bool);
        value.zip(flag).map(|(v, flag)| *v = json!(!flag)).is_some()
    });
    add("num_experts_per_tok", "experts", &|network| {
        let has_experts = has_experts(network);
        let count = network.key("num_experts").and_then(|n| n.as_u64());
        let used = network.key("num_experts_per_tok");
        let used = used.filter(|used| has_experts && used.as_u64() < count);
        used.map(|used| *used = json!(used.as_u64().unwrap_or(0) + 1))
            .is_some()
    });
    add("partial_rotary_factor", "rotary_dim", &|network| {
        let head_dim = network.key("head_dim").and_then(|n| n.as_f64());
        let factor = network.key("partial_rotary_factor");
        let Some((factor, head_dim)) = factor.zip(head_dim) else {
            return false;
        };
        let rotated = (factor.as_f64().unwrap_or(0.0) * head_dim) as u64;
        let other = if rotated > 2 {
            rotated - 2
        } else {
            rotated + 2
        };
        *factor = json!((other as f64 / head_dim).next_up());
        rotated != other && other as f64 <= head_dim - 1.0
    });
    add("an entry of long_factor", "long_rope", &|network| {
        let list = network.key("long_factor").and_then(Value::as_array_mut);
        let entry = list.and_then(|list| list.last_mut());
        entry.map(|entry| *entry = larger(entry)).is_some()
    });
    add("the last of layer_types", "sliding_window", &|network| {
        let has_windows = matches!(network.family.name, "gemma3" | "maple");
        let list = network.key("layer_types").and_then(Value::as_array_mut);
        let last = list.filter(|list| list.len() > 1);
        let last = last.and_then(|list| list.last_mut());
        let to = match last.as_deref().and_then(Value::as_str) {
            Some("sliding_attention") => "full_attention",
            Some("full_attention") => "sliding_attention",
            _ => return false,
        };
        let last = last.filter(|_| has_windows);
        last.map(|last| *last = json!(to)).is_some()
    });
    // the same rows as other heads
    add("heads of half the number", "head_dim", &|network| {
        let is_plain = ["llama_b1_58", "bitnet_2b_4t", "bitnet_b1_58", "qwen2"];
        let mut size = |key: &str| network.key(key).and_then(|n| n.as_u64()).unwrap_or(0);
        let (heads, kv, dim) = (
            size("num_attention_heads"),
            size("num_key_value_heads"),
            size("head_dim"),
        );
        if !is_plain.contains(&network.family.name) || kv % 2 != 0 || has_lists {
            return false;
        }
        for (key, value) in [
            ("num_attention_heads", heads / 2),
            ("num_key_value_heads", kv / 2),
            ("head_dim", 2 * dim),
        ] {
            if let Some(old) = network.key(key) {
                *old = json!(value);
            }
        }
        true
    });
    add(
        "key heads of half the number",
        "linear_attention",
        &|network| {
            let mut size = |key: &str| network.key(key).and_then(|n| n.as_u64()).unwrap_or(0);
            let (heads, dim) = (size("linear_num_key_heads"), size("linear_key_head_dim"));
            if heads != 2 {
                return false;
            }
            for (key, value) in [
                ("linear_num_key_heads", 1),
                ("linear_key_head_dim", 2 * dim),
            ] {
                if let Some(old) = network.key(key) {
                    *old = json!(value);
                }
            }
            true
        },
    );
    all
}

fn has_experts(network: &Network) -> bool {
    let slots = network.dense.iter().map(|dense| dense.slot);
    slots
        .into_iter()
        .any(|slot| matches!(slot, Slot::Layer(_, LayerSlot::Router)))
}

/// Everything at once that changes nothing: order, files, space, harmless keys, bits that no reader uses, wider numbers.
pub fn spelling(network: &Network, random: &mut Random) -> Mutant {
    let mut network = network.clone();
    let files = Files {
        shards: 1 + random.below(4),
        order: Some(random.below(1 << 30) as u64),
        pretty: once_in(random, 2),
    };
    let mut what = format!("{files:?}");
    network.unread = random.below(1 << 30) as u64;
    if once_in(random, 2) {
        what += ", other harmless keys";
        for (key, value) in [
            ("torch_dtype", json!("float32")),
            ("transformers_version", json!("4.99.0")),
            ("use_cache", json!(true)),
            ("initializer_range", json!(0.5)),
            ("pad_token_id", json!(0)),
        ] {
            network.config[key] = value;
        }
    }
    if once_in(random, 2) {
        what += ", numbers in f32";
        network.dense.iter_mut().for_each(|d| d.plain = Plain::F32);
        if let Form::Values(plain) = &mut network.form {
            *plain = Plain::F32;
        }
    }
    if let Form::Packed(_, ScaleDirection::Multiply) = network.form
        && once_in(random, 2)
    {
        what += ", the early key of the mode";
        if let Some(keys) = network.config["quantization_config"].as_object_mut() {
            keys.shift_remove("linear_class");
            keys.shift_remove("quantization_mode");
            keys.insert("offline_quantization".to_owned(), json!(true));
        }
    }
    Mutant {
        files,
        ..Mutant::new(what, Means::Nothing, network)
    }
}

/// Some of the changes of settings.
pub fn some_settings(network: &Network, count: usize, random: &mut Random) -> Vec<Mutant> {
    let mut all = settings(network);
    let mut some = Vec::new();
    while some.len() < count && !all.is_empty() {
        some.push(all.swap_remove(random.below(all.len())));
    }
    some
}

/// A word for the kind of a change.
pub fn kind(means: &Means) -> &'static str {
    match means {
        Means::Nothing => "spellings",
        Means::Ternary(_) => "trits and scales",
        Means::Dense(_) => "numbers",
        Means::Wiring(_) => "settings",
    }
}

/// A target of a list.
pub fn target(random: &mut Random) -> &'static bitnet_convert::Target {
    let all: Vec<_> = bitnet_convert::TARGETS.iter().collect();
    pick(random, &all)
}
