//! What a model file holds, from its headers.
//!
//! Invariant: nothing is read but headers, configuration and the scales that lie outside the
//! weights, so it takes no time on any size of model.

use crate::args::InspectArgs;
use crate::plan::describe;
use crate::scales;
use bitnet_cli::{Console, Failure, Table, human_bytes};
use bitnet_formats::{Container, Gguf, MetaArray, MetaValue};
use bitnet_model::{ActivationQuantization, Checkpoint, LinearRule, Slot};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Inspects a model.
pub fn run(args: &InspectArgs, console: &mut Console<'_>) -> Result<(), Failure> {
    let checkpoint = crate::open(&args.model, &args.how)?;
    let facts = Facts::collect(&checkpoint)?;
    console.json(&facts.to_json(&checkpoint, args.tensors))?;
    if !console.is_json() {
        facts.print(&checkpoint, args.tensors, console)?;
    }
    Ok(())
}

/// Tensors of one type.
#[derive(Default)]
struct Group {
    tensors: u64,
    elements: u64,
    bytes: u64,
}

struct Facts {
    /// By what people call the type.
    encodings: BTreeMap<String, Group>,
    linears: BTreeMap<String, u64>,
    scale_direction: Option<&'static str>,
    /// `tensor`, or nothing when only the weights tell.
    scale_structure: Option<&'static str>,
    parameters: u64,
    ternary_parameters: u64,
    bytes: u64,
    ternary_bits: f64,
    tokenizer: Option<String>,
    tokens: Option<u64>,
    /// An `lm_head` in a file whose configuration ties it to the embeddings.
    tied_head_in_file: bool,
}

impl Facts {
    fn collect(checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let file = &checkpoint.file;
        let mut encodings: BTreeMap<String, Group> = BTreeMap::new();
        for info in file.tensors() {
            let group = encodings.entry(info.encoding.name()).or_default();
            group.tensors += 1;
            group.elements += info.shape.iter().product::<usize>() as u64;
            group.bytes += info.len;
        }
        let (mut linears, mut ternary_bytes) = (BTreeMap::new(), 0);
        let (mut parameters, mut ternary_parameters) = (0u64, 0u64);
        let mut one_scale = true;
        for slot in checkpoint.slots() {
            let elements = checkpoint.config.shape(slot).iter().product::<usize>() as u64;
            parameters += elements;
            if slot.is_ternary() {
                let source = checkpoint.linear(slot)?;
                *linears.entry(describe(source)).or_insert(0) += 1;
                ternary_bytes += source.info.len;
                ternary_bytes += source.rule.outside().map_or(0, |(info, _)| info.len);
                ternary_parameters += elements;
                one_scale &= matches!(source.rule, LinearRule::Absmean)
                    || scales::probe(checkpoint, slot, source).is_some();
            }
        }
        let head = (checkpoint.family.tensor_name)(Slot::OutputHead);
        let gguf_head = (checkpoint.family.gguf_tensor_name)(Slot::OutputHead);
        let (tokenizer, tokens) = tokenizer(checkpoint)?;
        Ok(Self {
            encodings,
            linears,
            scale_direction: checkpoint.scale_direction().map(|d| match d {
                bitnet_model::ScaleDirection::Multiply => "multiply",
                bitnet_model::ScaleDirection::Divide => "divide",
            }),
            scale_structure: one_scale.then_some("tensor"),
            parameters,
            ternary_parameters,
            bytes: file.parts.iter().map(|p| p.bytes().len() as u64).sum(),
            ternary_bits: ternary_bytes as f64 * 8.0 / ternary_parameters.max(1) as f64,
            tokenizer,
            tokens,
            tied_head_in_file: checkpoint.config.tie_word_embeddings
                && (file.tensor(&head).is_some() || file.tensor(&gguf_head).is_some()),
        })
    }

    fn to_json(&self, checkpoint: &Checkpoint, tensors: bool) -> Value {
        let Checkpoint {
            file,
            config,
            family,
            ..
        } = checkpoint;
        let mut object = json!({
            "status": "inspected",
            "path": checkpoint.path.display().to_string(),
            "container": file.container,
            "files": file.parts.iter().map(|p| json!({
                "path": p.path().display().to_string(),
                "bytes": p.bytes().len(),
            })).collect::<Value>(),
            "family": family.name,
            "architecture": architecture(checkpoint),
            "wiring": {
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "num_hidden_layers": config.num_hidden_layers,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "vocab_size": config.vocab_size,
                "max_position_embeddings": config.max_position_embeddings,
                "rms_norm_eps": config.rms_norm_eps,
                "rope_theta": config.rope.theta,
                "hidden_act": config.hidden_act.as_str(),
                "attn_sub_norm": config.attn_sub_norm,
                "ffn_sub_norm": config.ffn_sub_norm,
                "tie_word_embeddings": config.tie_word_embeddings,
                "activation_quantization": activations(config.activation_quantization),
                "bos_token_id": config.bos_token_id,
                "eos_token_ids": config.eos_token_ids,
            },
            "linears": self.linears,
            "scales": {"direction": self.scale_direction, "structure": self.scale_structure},
            "encodings": self.encodings.iter().map(|(name, g)| json!({
                "name": name, "tensors": g.tensors, "elements": g.elements, "bytes": g.bytes,
            })).collect::<Value>(),
            "parameters": self.parameters,
            "ternary_parameters": self.ternary_parameters,
            "bits_per_weight": self.ternary_bits,
            "bytes": self.bytes,
            "tokenizer": {"model": self.tokenizer, "tokens": self.tokens},
            "tied_head_in_file": self.tied_head_in_file,
        });
        if tensors {
            object["tensors"] = file
                .tensors()
                .iter()
                .map(|info| {
                    json!({
                        "name": info.name,
                        "encoding": info.encoding.name(),
                        "shape": info.shape,
                        "part": info.part,
                        "offset": info.offset,
                        "bytes": info.len,
                    })
                })
                .collect();
        }
        object
    }

    fn print(
        &self,
        checkpoint: &Checkpoint,
        tensors: bool,
        console: &mut Console<'_>,
    ) -> Result<(), Failure> {
        let Checkpoint {
            file,
            config,
            family,
            ..
        } = checkpoint;
        console.line(console.bold(&checkpoint.path.display().to_string()))?;
        let mut line = |key: &str, value: String| console.line(format_args!("  {key:<15} {value}"));
        let parts = match file.parts.len() {
            1 => String::new(),
            n => format!(" in {n} files"),
        };
        line(
            "container",
            format!("{}{parts}, {}", file.container, human_bytes(self.bytes)),
        )?;
        line(
            "architecture",
            format!("{} (family {})", architecture(checkpoint), family.name),
        )?;
        line(
            "layers",
            format!(
                "{} of width {}, MLP {}, heads {} / {} of {}",
                config.num_hidden_layers,
                config.hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
            ),
        )?;
        let sub_norms = match (config.attn_sub_norm, config.ffn_sub_norm) {
            (true, true) => "sub-norms",
            (false, false) => "no sub-norms",
            (true, false) => "attention sub-norm",
            (false, true) => "MLP sub-norm",
        };
        line(
            "wiring",
            format!(
                "{}, {sub_norms}, rope {}, eps {:e}, activations {}",
                config.hidden_act.as_str(),
                config.rope.theta,
                config.rms_norm_eps,
                activations(config.activation_quantization),
            ),
        )?;
        let head = match (config.tie_word_embeddings, self.tied_head_in_file) {
            (true, false) => "tied to the embeddings",
            (true, true) => "tied to the embeddings; the file has one nevertheless",
            (false, _) => "its own",
        };
        line("output head", head.to_owned())?;
        let linears: Vec<_> = self
            .linears
            .iter()
            .map(|(k, n)| format!("{n} x {k}"))
            .collect();
        line(
            "linears",
            format!(
                "{}, {:.2} bits per weight",
                linears.join(", "),
                self.ternary_bits
            ),
        )?;
        let structure = self
            .scale_structure
            .map_or("told by the weights only".to_owned(), |s| {
                format!("one per {s}")
            });
        let direction = self
            .scale_direction
            .map_or(String::new(), |d| format!(", weight_scale: {d}"));
        line("scales", format!("{structure}{direction}"))?;
        line(
            "parameters",
            format!("{} ({} ternary)", self.parameters, self.ternary_parameters),
        )?;
        let tokenizer = self.tokenizer.as_deref().unwrap_or("none");
        let tokens = self
            .tokens
            .map_or(String::new(), |n| format!(", {n} tokens"));
        line(
            "tokenizer",
            format!("{tokenizer}{tokens}, {} embedding rows", config.vocab_size),
        )?;
        console.line("")?;
        let mut table = Table::new(&["type", ">tensors", ">elements", ">bytes"]);
        for (name, g) in &self.encodings {
            table.row([
                name.clone(),
                g.tensors.to_string(),
                g.elements.to_string(),
                g.bytes.to_string(),
            ]);
        }
        console.line(table)?;
        if tensors {
            console.line("")?;
            let mut table = Table::new(&["tensor", "type", ">shape", ">file", ">offset", ">bytes"]);
            for info in file.tensors() {
                let shape: Vec<_> = info.shape.iter().map(usize::to_string).collect();
                table.row([
                    info.name.clone(),
                    info.encoding.name(),
                    shape.join(" x "),
                    info.part.to_string(),
                    info.offset.to_string(),
                    info.len.to_string(),
                ]);
            }
            console.line(table)?;
        }
        Ok(())
    }
}

fn activations(quantization: ActivationQuantization) -> &'static str {
    match quantization {
        ActivationQuantization::Int8PerToken => "int8 per token",
        ActivationQuantization::None => "not quantised",
    }
}

fn architecture(checkpoint: &Checkpoint) -> String {
    let named = checkpoint
        .file
        .metadata
        .get("general.architecture")
        .and_then(MetaValue::as_str);
    named.unwrap_or(checkpoint.family.hf_identity.1).to_owned()
}

/// The kind of tokenizer and how many tokens it has.
fn tokenizer(checkpoint: &Checkpoint) -> Result<(Option<String>, Option<u64>), Failure> {
    let metadata = &checkpoint.file.metadata;
    if checkpoint.file.container == Gguf.name() {
        let model = metadata
            .get("tokenizer.ggml.model")
            .and_then(MetaValue::as_str);
        let pre = metadata
            .get("tokenizer.ggml.pre")
            .and_then(MetaValue::as_str);
        let tokens = match metadata.get("tokenizer.ggml.tokens") {
            Some(MetaValue::Array(MetaArray::String(tokens))) => Some(tokens.len() as u64),
            _ => None,
        };
        let name = model.map(|m| pre.map_or(m.to_owned(), |p| format!("{m} ({p})")));
        return Ok((name, tokens));
    }
    let Some(directory) = &checkpoint.directory else {
        return Ok((None, None));
    };
    for name in ["tokenizer.json", "tokenizer.model"] {
        if directory.join(name).is_file() {
            // a tokenizer that does not load is worth knowing, but not a reason to say nothing
            let tokens = match bitnet_model::Tokenizer::from_directory(directory) {
                Ok(Some(tokenizer)) => Some(tokenizer.vocab_size() as u64),
                _ => None,
            };
            return Ok((Some(name.to_owned()), tokens));
        }
    }
    Ok((None, None))
}
