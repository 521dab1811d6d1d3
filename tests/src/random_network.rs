//! Random small networks of every family, written as Hugging Face checkpoints.
//!
//! Invariant: everything follows from a seed. Trits, scales and numbers are known here before any file is written, and only
//! names and shapes of tensors come from the families; no reader and no packing of the project has a part in the bytes.

mod configs;
mod files;

pub use files::Files;

use crate::random::Random;
use bitnet_checkpoint::{FAMILIES, Family, LayerSlot, ScaleDirection, Slot};
use bitnet_ternary::{Scales, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use serde_json::{Value, json};

/// A type of numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain {
    /// 8 bits of precision.
    Bf16,
    /// 11 bits of precision.
    F16,
    /// 24 bits of precision.
    F32,
}

impl Plain {
    const ALL: [Self; 3] = [Self::Bf16, Self::F16, Self::F32];

    /// The nearest number of this type.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::Bf16 => bf16_to_f32(f32_to_bf16(x)),
            Self::F16 => f16_to_f32(f32_to_f16(x)),
            Self::F32 => x,
        }
    }

    /// The next number of this type, away from zero.
    pub fn next(self, x: f32) -> f32 {
        match self {
            Self::Bf16 => bf16_to_f32(f32_to_bf16(x) + 1),
            Self::F16 => f16_to_f32(f32_to_f16(x) + 1),
            Self::F32 => f32::from_bits(x.to_bits() + 1),
        }
    }
}

/// How linears are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `trit * scale` as numbers of this type.
    Values(Plain),
    /// Bytes of four codes with a `weight_scale` of this type and direction.
    Packed(Plain, ScaleDirection),
    /// MLX's codes, with scales and biases of this type for so many columns.
    Affine(Plain, usize),
}

/// A matrix of trits and scales.
#[derive(Debug, Clone)]
pub struct Linear {
    /// Its place.
    pub slot: Slot,
    /// Rows and columns.
    pub shape: (usize, usize),
    /// `(rows, cols)`
    pub trits: Vec<i8>,
    /// As they are stored: of a scale that divides, the divisor.
    pub scales: Scales,
}

/// A tensor of numbers.
#[derive(Debug, Clone)]
pub struct Dense {
    /// Its place.
    pub slot: Slot,
    /// Sizes in the file.
    pub shape: Vec<usize>,
    /// Its type.
    pub plain: Plain,
    /// As they are stored.
    pub values: Vec<f32>,
}

/// A network and how its checkpoint is written.
#[derive(Debug, Clone)]
pub struct Network {
    /// Its family.
    pub family: &'static Family,
    /// `config.json`
    pub config: Value,
    /// How linears are stored.
    pub form: Form,
    /// Matrices of trits.
    pub linears: Vec<Linear>,
    /// Other tensors.
    pub dense: Vec<Dense>,
    /// Decides the signs of zeros, which no reader uses.
    pub unread: u64,
}

/// One of a list.
pub fn pick<T: Clone>(random: &mut Random, list: &[T]) -> T {
    list[random.below(list.len())].clone()
}

/// Whether something happens that happens once in so many times.
pub fn once_in(random: &mut Random, times: usize) -> bool {
    random.below(times) == 0
}

/// A number between -1 and 1.
fn unit(random: &mut Random) -> f32 {
    random.below(1 << 20) as f32 / (1 << 19) as f32 - 1.0
}

impl Network {
    /// The network of a seed.
    ///
    /// # Panics
    /// If a configuration is refused that this module takes for a right one.
    pub fn random(seed: u64) -> Self {
        let random = &mut Random(seed.wrapping_mul(0xd134_2543_de82_ef95));
        // every family in turn
        let family = FAMILIES[seed as usize % FAMILIES.len()];
        let mut config = configs::random(family, random);
        let form = form(family, &mut config, random);
        let mut sizes =
            (family.config)(&config).unwrap_or_else(|e| panic!("{}: {e}: {config:#}", family.name));
        if family.gguf_wiring.projection_norms && once_in(random, 4) {
            // the names of the tensors say it
            sizes.norms.projections = true;
            sizes.attn_sub_norm = true;
            sizes.ffn_sub_norm = true;
        }
        let plain = match form {
            Form::Values(plain) | Form::Affine(plain, _) => plain,
            Form::Packed(..) => pick(random, &Plain::ALL),
        };
        let mut network = Self {
            family,
            config,
            form,
            linears: Vec::new(),
            dense: Vec::new(),
            unread: seed,
        };
        let has_ternary_tables = matches!(form, Form::Values(_)) && once_in(random, 4);
        for slot in sizes.slots() {
            let shape = sizes.shape(slot);
            let is_table = matches!(slot, Slot::TokenEmbeddings | Slot::OutputHead);
            match shape[..] {
                // a table of fewer columns counts as numbers
                [rows, cols]
                    if slot.is_ternary()
                        || is_table && has_ternary_tables && cols.is_multiple_of(32) =>
                {
                    let linear = network.linear(slot, rows, cols, random);
                    network.linears.push(linear);
                }
                _ => {
                    let dense = network.numbers(slot, shape, plain, random);
                    network.dense.push(dense);
                }
            }
        }
        network
    }

    /// Random trits, some rows and groups of them zero.
    fn linear(&self, slot: Slot, rows: usize, cols: usize, random: &mut Random) -> Linear {
        let mut trits: Vec<i8> = (0..rows * cols)
            .map(|_| random.below(3) as i8 - 1)
            .collect();
        let is_table = !slot.is_ternary();
        if once_in(random, 4) {
            trits[..cols].fill(0);
        }
        if once_in(random, 4) && cols.is_multiple_of(32) {
            let group = random.below(rows * cols / 32);
            trits[32 * group..][..32].fill(0);
        }
        if once_in(random, 24) && !is_table {
            trits.fill(0);
        }
        let plain = match self.form {
            Form::Values(plain) | Form::Packed(plain, _) | Form::Affine(plain, _) => plain,
        };
        let divides = matches!(self.form, Form::Packed(_, ScaleDirection::Divide));
        let mut scale = || {
            let scale = 1.5 / (cols as f32).sqrt() * (1.0 + 0.5 * unit(random));
            plain.round(if divides { 1.0 / scale } else { scale })
        };
        let mut scales = |count: usize| (0..count).map(|_| scale()).collect::<Vec<f32>>();
        let scales = match self.form {
            Form::Packed(..) => Scales::PerTensor(scales(1)[0]),
            Form::Affine(_, group) => Scales::PerGroup {
                group,
                scales: scales(rows * cols / group),
            },
            Form::Values(_) => {
                let groups = [32, 64, 128, 256].into_iter();
                let groups: Vec<usize> = groups.filter(|g| cols.is_multiple_of(*g)).collect();
                let many = scales(rows * cols.div_ceil(32));
                match Random(self.unread ^ rows as u64 ^ (cols as u64) << 20).below(4) {
                    0 | 1 => Scales::PerTensor(many[0]),
                    2 if !groups.is_empty() => {
                        let group = groups[many.len() % groups.len()];
                        let scales = many[..rows * cols / group].to_vec();
                        Scales::PerGroup { group, scales }
                    }
                    _ => Scales::PerRow(many[..rows].to_vec()),
                }
            }
        };
        Linear {
            slot,
            shape: (rows, cols),
            trits,
            scales,
        }
    }

    /// Random numbers of a size that fits their place.
    fn numbers(&self, slot: Slot, shape: Vec<usize>, plain: Plain, random: &mut Random) -> Dense {
        use LayerSlot::*;
        let mut shape = shape;
        let (mean, size) = match slot {
            Slot::TokenEmbeddings => (0.0, 0.5),
            Slot::OutputHead | Slot::Layer(_, Router) => (0.0, 0.4),
            Slot::Layer(_, InProjA | InProjB | QBias | KBias | VBias) => (0.0, 0.3),
            Slot::Layer(_, Conv1d) => (0.0, 0.6),
            Slot::Layer(_, ALog) => (0.0, 1.5),
            Slot::Layer(_, DtBias) => (0.0, 1.0),
            _ if (self.family.stores_gain_minus_one)(slot) => (0.0, 0.2),
            _ => (1.0, 0.2),
        };
        if matches!(slot, Slot::Layer(_, Conv1d)) {
            shape.insert(1, 1);
        }
        let is_vector = shape.len() == 1;
        // vectors are often kept in f32
        let plain = match is_vector && once_in(random, 3) {
            true => Plain::F32,
            false => plain,
        };
        let count = shape.iter().product();
        let values = (0..count).map(|_| plain.round(mean + size * unit(random)));
        Dense {
            slot,
            shape,
            plain,
            values: values.collect(),
        }
    }

    /// The name of a tensor in the checkpoint.
    pub fn name(&self, slot: Slot) -> String {
        self.family.hf_name(Some(&self.config), slot)
    }

    /// The first value of a key of `config.json`, however deep it lies.
    pub fn key(&mut self, key: &str) -> Option<&mut Value> {
        fn find<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
            let object = value.as_object_mut()?;
            if object.contains_key(key) {
                return object.get_mut(key);
            }
            object.values_mut().find_map(|value| find(value, key))
        }
        find(&mut self.config, key)
    }

    /// One line for reports.
    pub fn describe(&self) -> String {
        let config = self.config.get("text_config").unwrap_or(&self.config);
        let size = |key: &str| config[key].as_u64().unwrap_or(0);
        format!(
            "{} {:?}, {} layers, hidden {}, inter {}, heads {}/{} of {}, vocabulary {}",
            self.family.name,
            self.form,
            size("num_hidden_layers"),
            size("hidden_size"),
            size("intermediate_size"),
            size("num_attention_heads"),
            size("num_key_value_heads"),
            size("head_dim"),
            size("vocab_size"),
        )
    }
}

/// A form that the sizes allow, and what `config.json` says of it.
fn form(family: &Family, config: &mut Value, random: &mut Random) -> Form {
    let sizes = (family.config)(config).unwrap_or_else(|e| panic!("{}: {e}", family.name));
    let linears = sizes.slots().into_iter().filter(|slot| slot.is_ternary());
    let columns: Vec<usize> = linears.map(|slot| sizes.shape(slot)[1]).collect();
    let groups = [32, 64, 128].into_iter();
    let groups: Vec<usize> = groups
        .filter(|group| columns.iter().all(|cols| cols.is_multiple_of(*group)))
        .collect();
    match random.below(5) {
        0 | 1 if sizes.experts.is_none() => {
            let plain = pick(random, &Plain::ALL);
            let (class, direction) = match once_in(random, 2) {
                true => ("autobitlinear", ScaleDirection::Multiply),
                false => ("bitlinear", ScaleDirection::Divide),
            };
            config["quantization_config"] = json!({
                "quant_method": "bitnet",
                "linear_class": class,
                "quantization_mode": "offline",
            });
            if once_in(random, 3) {
                let activations = pick(random, &["none", "int8_per_token"]);
                config["quantization_config"]["activation_quantization"] = json!(activations);
            }
            Form::Packed(plain, direction)
        }
        2 if !groups.is_empty() => {
            let group = pick(random, &groups);
            config["quantization"] = json!({"group_size": group, "bits": 2});
            if once_in(random, 3) {
                let activations = pick(random, &["none", "int8_per_token"]);
                config["quantization"]["activation_quantization"] = json!(activations);
            }
            let plain = pick(random, &[Plain::Bf16, Plain::F16]);
            Form::Affine(plain, group)
        }
        _ => Form::Values(pick(random, &Plain::ALL)),
    }
}
