//! The files of a network.
//!
//! Invariant: the order of tensors and keys, the number of files and the space in `config.json` are the caller's; the bytes of a tensor
//! are not.

use super::{Dense, Form, Linear, Network, Plain};
use crate::random::Random;
use bitnet_ternary::{Scales, f32_to_bf16, f32_to_f16};
use serde_json::{Map, Value, json};
use std::path::Path;

/// How the files of a checkpoint are written.
#[derive(Debug, Clone, Copy, Default)]
pub struct Files {
    /// Files of weights, if there are several.
    pub shards: usize,
    /// Decides the order of tensors and keys.
    pub order: Option<u64>,
    /// Whether `config.json` has a key a line.
    pub pretty: bool,
}

/// A tensor of a file.
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Plain {
    fn name(self) -> &'static str {
        match self {
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::F32 => "F32",
        }
    }

    fn push(self, x: f32, bytes: &mut Vec<u8>) {
        match self {
            Self::Bf16 => bytes.extend(f32_to_bf16(x).to_le_bytes()),
            Self::F16 => bytes.extend(f32_to_f16(x).to_le_bytes()),
            Self::F32 => bytes.extend(x.to_le_bytes()),
        }
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 * values.len());
        values.iter().for_each(|x| self.push(*x, &mut bytes));
        bytes
    }
}

impl Network {
    /// Writes the checkpoint into a new directory.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, directory: &Path, files: Files) {
        std::fs::create_dir_all(directory).expect("a directory");
        let mut tensors = self.tensors();
        let mut config = self.config.clone();
        if let Some(order) = files.order {
            let random = &mut Random(order);
            shuffle(&mut tensors, random);
            reorder(&mut config, random);
        }
        let config = match files.pretty {
            true => format!("\n{config:#}\n"),
            false => config.to_string(),
        };
        std::fs::write(directory.join("config.json"), config).expect("written");
        let shards = files.shards.max(1);
        let mut map = Map::new();
        for shard in 0..shards {
            let name = match shards {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{shards:05}.safetensors", shard + 1),
            };
            let own: Vec<&Tensor> = tensors.iter().skip(shard).step_by(shards).collect();
            map.extend(own.iter().map(|t| (t.name.clone(), json!(name))));
            std::fs::write(directory.join(&name), safetensors(&own)).expect("written");
        }
        if shards > 1 {
            let index = json!({"metadata": {}, "weight_map": map}).to_string();
            std::fs::write(directory.join("model.safetensors.index.json"), index).expect("written");
        }
    }

    fn tensors(&self) -> Vec<Tensor> {
        let dense = self.dense.iter().map(|dense| self.numbers_of(dense));
        let mut tensors: Vec<Tensor> = dense.collect();
        for linear in &self.linears {
            self.push_linear(linear, &mut tensors);
        }
        tensors
    }

    fn numbers_of(&self, dense: &Dense) -> Tensor {
        Tensor {
            name: self.name(dense.slot),
            dtype: dense.plain.name(),
            shape: dense.shape.clone(),
            bytes: dense.plain.bytes(&dense.values),
        }
    }

    fn push_linear(&self, linear: &Linear, tensors: &mut Vec<Tensor>) {
        let Linear {
            slot,
            shape: (rows, cols),
            trits,
            scales,
        } = linear;
        let (rows, cols, name) = (*rows, *cols, self.name(*slot));
        let random = &mut Random(self.unread ^ name.len() as u64);
        let code = |row: usize, col: usize| (trits[row * cols + col] + 1) as u8;
        let module = name.strip_suffix(".weight").unwrap_or(&name);
        let tensor = |name: String, dtype, shape, bytes| Tensor {
            name,
            dtype,
            shape,
            bytes,
        };
        match self.form {
            Form::Values(plain) => {
                let mut bytes = Vec::new();
                for (at, trit) in trits.iter().enumerate() {
                    let scale = scales.at(at / cols, at % cols, cols);
                    let zero = if random.below(2) == 0 { 0.0 } else { -0.0 };
                    let value = match trit {
                        0 => zero,
                        trit => f32::from(*trit) * scale,
                    };
                    plain.push(value, &mut bytes);
                }
                tensors.push(tensor(name, plain.name(), vec![rows, cols], bytes));
            }
            Form::Packed(plain, _) => {
                // four rows in a byte, a quarter of the rows apart
                let quarter = rows.div_ceil(4);
                let mut bytes = Vec::with_capacity(quarter * cols);
                for row in 0..quarter {
                    for col in 0..cols {
                        let mut byte = 0;
                        for part in 0..4 {
                            let row = row + part * quarter;
                            // rows that do not exist have the code 0
                            let code = match row < rows {
                                true => code(row, col),
                                false => 0,
                            };
                            byte |= code << (2 * part);
                        }
                        bytes.push(byte);
                    }
                }
                let scale = plain.bytes(scales.as_slice());
                let of_scale = format!("{module}.weight_scale");
                tensors.push(tensor(name, "U8", vec![quarter, cols], bytes));
                tensors.push(tensor(of_scale, plain.name(), vec![1], scale));
            }
            Form::Affine(plain, group) => {
                let codes = trits.chunks(4).map(|codes| {
                    let byte = |byte, (n, trit): (usize, &i8)| byte | ((trit + 1) as u8) << (2 * n);
                    codes.iter().enumerate().fold(0, byte)
                });
                let codes = codes.collect();
                let scales: &[f32] = match scales {
                    Scales::PerGroup { scales, .. } => scales,
                    _ => unreachable!("scales of groups"),
                };
                let biases: Vec<f32> = scales.iter().map(|scale| -scale).collect();
                let shape = vec![rows, cols / group];
                for (role, values) in [("scales", scales), ("biases", &biases)] {
                    let bytes = plain.bytes(values);
                    let name = format!("{module}.{role}");
                    tensors.push(tensor(name, plain.name(), shape.clone(), bytes));
                }
                tensors.push(tensor(name, "U32", vec![rows, cols / 16], codes));
            }
        }
    }
}

fn shuffle<T>(list: &mut [T], random: &mut Random) {
    for last in (1..list.len()).rev() {
        list.swap(last, random.below(last + 1));
    }
}

/// Brings the keys of all objects into another order.
fn reorder(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(object) => {
            let mut keys: Vec<(String, Value)> = std::mem::take(object).into_iter().collect();
            shuffle(&mut keys, random);
            keys.iter_mut()
                .for_each(|(_, value)| reorder(value, random));
            object.extend(keys);
        }
        Value::Array(list) => list.iter_mut().for_each(|value| reorder(value, random)),
        _ => {}
    }
}

fn safetensors(tensors: &[&Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes.len();
        let entry =
            json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    tensors.iter().for_each(|tensor| file.extend(&tensor.bytes));
    file
}
