//! What a model file really is: from its headers, its configuration, and some of its weights.
//!
//! Invariant: at most a few linears are read, so it takes seconds on any size of model; what only the data
//! can tell is said with its evidence, or said to be undecided.

mod data;
mod unknown;

use self::data::Data;
use crate::args::{InspectArgs, SourceArgs};
use crate::readers::{self, FileFacts};
use crate::scales;
use bitnet_checkpoint::{
    ActivationQuantization, Checkpoint, LayoutEvidence, LayoutReason, MixtureOfExperts, Slot,
};
use bitnet_cli::{Console, Failure, Reads, Table, human_bytes};
use bitnet_formats::{ErrorCode, Limits, TensorFile, TensorInfo, gguf_type_rivals};
use bitnet_text::ChatTemplates;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Inspects a model.
pub fn run(args: &InspectArgs, console: &mut Console<'_>) -> Result<(), Failure> {
    let (held, how) = crate::locate(&args.model, &args.how, Reads::Headers, console)?;
    let model = held
        .first()
        .map_or(args.model.clone(), |located| located.path().to_owned());
    let args = &InspectArgs {
        model,
        how,
        ..args.clone()
    };
    let mut not_ternary = None;
    let opened = match crate::open(&args.model, &args.how) {
        // to look at float weights is not to quantize them
        Err(failure) if failure.code == ErrorCode::NotTernary && !args.how.ternary_trained => {
            let how = SourceArgs {
                ternary_trained: true,
                ..args.how.clone()
            };
            let opened = crate::open(&args.model, &how);
            not_ternary = opened.is_ok().then(|| failure.message.clone());
            opened.map_err(|_| failure)
        }
        opened => opened,
    };
    let checkpoint = match opened {
        Ok(checkpoint) => checkpoint,
        Err(failure) => {
            // a file that no family knows is still a file
            return match bitnet_formats::open(&args.model, &Limits::default()) {
                Ok(file) if unknown::is_about_the_family(&args.model, &failure, &file) => {
                    unknown::run(args, &file, &failure, console)
                }
                _ => Err(failure),
            };
        }
    };
    crate::warn_of_the_source(&checkpoint, console)?;
    let facts = Facts::collect(&checkpoint);
    // if a file changed, what was found in it proves nothing, and every error is a consequence
    checkpoint.check_inputs()?;
    let facts = facts?;
    let mut object = facts.to_json(&checkpoint, args.tensors);
    if let Some(why) = &not_ternary {
        object["not_ternary"] = json!(why);
        console.warn(format_args!("the weights are not ternary: {why}"))?;
    }
    let findings = match args.readers {
        true => Some(readers::judge(&FileFacts::of(&checkpoint)?)?),
        false => None,
    };
    if let Some(findings) = &findings {
        object["readers"] = readers::to_json(findings);
    }
    checkpoint.check_inputs()?;
    console.json(&object)?;
    if !console.is_json() {
        facts.print(&checkpoint, args.tensors, console)?;
        if let Some(findings) = &findings {
            console.line("")?;
            console.line(readers::table(findings))?;
        }
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
    /// Names of the chat templates, or why they are refused.
    chat_templates: Result<Vec<String>, String>,
    /// An `lm_head` in a file whose configuration ties it to the embeddings.
    tied_head_in_file: bool,
    /// An output head of its own that is the embeddings once more.
    head_is_a_copy: bool,
    rotation: Option<Value>,
    /// Meanings of the type ids in the file that its tensors rule out.
    ruled_out: Vec<Collision>,
    data: Data,
    /// Whether any weights were read.
    reads_data: bool,
}

/// A type id that programs gave to several types.
struct Collision {
    id: u32,
    taken: String,
    others: Vec<&'static str>,
}

impl Facts {
    fn collect(checkpoint: &Checkpoint) -> Result<Self, Failure> {
        let file = &checkpoint.file;
        // of a remote model nothing is fetched but headers
        let origin = bitnet_formats::origin_of(&checkpoint.path);
        let reads_data = !origin.is_some_and(|origin| origin.headers_only);
        let encodings = encodings_of(file);
        let (mut linears, mut ternary_bytes) = (BTreeMap::new(), 0);
        let (mut parameters, mut ternary_parameters) = (0u64, 0u64);
        let mut one_scale = true;
        for slot in checkpoint.slots() {
            let elements = checkpoint.config.shape(slot).iter().product::<usize>() as u64;
            parameters += elements;
            if checkpoint.is_ternary(slot) {
                let source = checkpoint.linear(slot)?;
                *linears.entry(source.describe()).or_insert(0) += 1;
                ternary_bytes += source.info.len;
                ternary_bytes += source.scale_tensor().map_or(0, |info| info.len);
                ternary_parameters += elements;
                one_scale &=
                    source.is_master() || reads_data && scales::probe(checkpoint, slot).is_some();
            }
        }
        let head = checkpoint
            .family
            .hf_name(checkpoint.config_json.as_ref(), Slot::OutputHead);
        let gguf_head = (checkpoint.family.gguf_tensor_name)(Slot::OutputHead);
        let tokenizer = checkpoint.tokenizer_summary()?;
        let layout = checkpoint.layout.as_ref();
        let candidates = layout.map_or_else(Vec::new, LayoutEvidence::candidates);
        Ok(Self {
            encodings,
            linears,
            scale_direction: checkpoint.scale_direction().map(|d| match d {
                bitnet_checkpoint::ScaleDirection::Multiply => "multiply",
                bitnet_checkpoint::ScaleDirection::Divide => "divide",
            }),
            scale_structure: one_scale.then_some("tensor"),
            parameters,
            ternary_parameters,
            bytes: file.parts.iter().map(|p| p.len()).sum(),
            ternary_bits: ternary_bytes as f64 * 8.0 / ternary_parameters.max(1) as f64,
            tokenizer: tokenizer.name,
            tokens: tokenizer.tokens,
            chat_templates: chat_templates(checkpoint),
            tied_head_in_file: checkpoint.config.tie_word_embeddings
                && (file.tensor(&head).is_some() || file.tensor(&gguf_head).is_some()),
            head_is_a_copy: reads_data && data::head_is_a_copy(checkpoint)?,
            rotation: data::rotation(&checkpoint.rotation_keys()),
            ruled_out: collisions_of(file, &candidates),
            data: match reads_data {
                true => Data::collect(checkpoint),
                false => Data::default(),
            },
            reads_data,
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
            "path": bitnet_formats::named(&checkpoint.path).display().to_string(),
            "container": file.container,
            "files": files_json(file),
            "family": family.name,
            "architecture": checkpoint.architecture(),
            "wiring": {
                "hidden_size": config.hidden_size,
                "intermediate_size": config.intermediate_size,
                "num_hidden_layers": config.num_hidden_layers,
                "num_attention_heads": config.num_attention_heads,
                "num_key_value_heads": config.num_key_value_heads,
                "head_dim": config.head_dim,
                "rotary_dim": config.rotary_dim,
                "experts": config.experts.as_ref().map(experts_json),
                "vocab_size": config.vocab_size,
                "declared_vocab_size": checkpoint.declared_vocab_size,
                "max_position_embeddings": config.max_position_embeddings,
                "rms_norm_eps": config.rms_norm_eps,
                "rope_theta": config.rope.theta,
                "hidden_act": config.hidden_act.as_str(),
                "attn_sub_norm": config.attn_sub_norm,
                "ffn_sub_norm": config.ffn_sub_norm,
                "qkv_biases": config.biases,
                "tie_word_embeddings": config.tie_word_embeddings,
                "activation_quantization": activations(config.activation_quantization),
                "bos_token_id": config.bos_token_id,
                "eos_token_ids": config.eos_token_ids,
            },
            "linears": self.linears,
            "scales": {
                "direction": self.scale_direction,
                "structure": self.scale_structure.or(self.data.structure()),
            },
            "layout": checkpoint.layout.as_ref().map(layout_json),
            "ruled_out": self.ruled_out.iter().map(Collision::to_json).collect::<Value>(),
            "data": self.data.to_json(),
            "rotation": self.rotation,
            "encodings": self.encodings.iter().map(|(name, g)| g.to_json(name)).collect::<Value>(),
            "parameters": self.parameters,
            "ternary_parameters": self.ternary_parameters,
            "bits_per_weight": self.ternary_bits,
            "bytes": self.bytes,
            "tokenizer": {
                "model": self.tokenizer,
                "tokens": self.tokens,
                "fits_embeddings": self.tokens.map(|n| n <= config.vocab_size as u64),
                "chat_templates": match &self.chat_templates {
                    Ok(names) => json!(names),
                    Err(why) => json!({"refused": why}),
                },
            },
            "tied_head_in_file": self.tied_head_in_file,
            "head_is_a_copy": self.head_is_a_copy,
            "unknown_keys": crate::unknown_keys_json(checkpoint),
            "not_computed": checkpoint.carried.iter().map(|info| info.name.as_str()).collect::<Vec<_>>(),
        "skipped_parts": crate::skipped_parts(checkpoint),
        });
        if let Some(hybrid) = &config.hybrid {
            let delta = hybrid.delta;
            object["wiring"]["linear_attention"] = json!({
                "layers": hybrid.recurrent,
                "key_heads": delta.key_heads,
                "value_heads": delta.value_heads,
                "key_dim": delta.key_dim,
                "value_dim": delta.value_dim,
                "conv_kernel": delta.conv_kernel,
            });
            object["wiring"]["rotary_dim"] = json!(hybrid.rotary_dim);
        }
        if tensors {
            object["tensors"] = tensors_json(file);
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
        console.line(
            console.bold(
                &bitnet_formats::named(&checkpoint.path)
                    .display()
                    .to_string(),
            ),
        )?;
        let mut line = |key: &str, value: String| console.line(format_args!("  {key:<15} {value}"));
        line("container", container(file, self.bytes))?;
        line(
            "architecture",
            format!("{} (family {})", checkpoint.architecture(), family.name),
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
        if let Some(hybrid) = &config.hybrid {
            let (delta, recurrent) = (hybrid.delta, hybrid.recurrent.iter().filter(|r| **r));
            line(
                "linear layers",
                format!(
                    "{} Gated DeltaNet, heads {} / {} of {} / {}, {} taps; {} of {} dimensions rotated in the others",
                    recurrent.count(),
                    delta.value_heads,
                    delta.key_heads,
                    delta.value_dim,
                    delta.key_dim,
                    delta.conv_kernel,
                    hybrid.rotary_dim,
                    config.head_dim,
                ),
            )?;
        }
        if let Some(experts) = &config.experts {
            let with = experts.layers.iter().filter(|has| **has).count();
            line(
                "experts",
                format!(
                    "{} of width {} in {with} layers, {} for each token",
                    experts.count, experts.intermediate_size, experts.used
                ),
            )?;
        }
        let sub_norms = match (config.attn_sub_norm, config.ffn_sub_norm) {
            (true, true) => "sub-norms",
            (false, false) => "no sub-norms",
            (true, false) => "attention sub-norm",
            (false, true) => "MLP sub-norm",
        };
        let biases = match config.biases {
            true => ", biases of q, k and v",
            false => "",
        };
        line(
            "wiring",
            format!(
                "{}, {sub_norms}{biases}, rope {}, eps {:e}, activations {}",
                config.hidden_act.as_str(),
                config.rope.theta,
                config.rms_norm_eps,
                activations(config.activation_quantization),
            ),
        )?;
        let head = match (config.tie_word_embeddings, self.tied_head_in_file) {
            (true, false) => "tied to the embeddings",
            (true, true) => "tied to the embeddings; the file has one nevertheless",
            (false, _) if self.head_is_a_copy => "its own, a copy of the embeddings",
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
        let structure = self.scale_structure.or(self.data.structure());
        let unknown = match self.reads_data {
            true => "several structures",
            false => "not read",
        };
        let structure = structure.map_or(unknown.to_owned(), |s| format!("one per {s}"));
        let direction = self
            .scale_direction
            .map_or(String::new(), |d| format!(", weight_scale: {d}"));
        line("scales", format!("{structure}{direction}"))?;
        for (key, value) in self.data.lines() {
            line(key, value)?;
        }
        for value in checkpoint.layout.iter().flat_map(layout_lines) {
            line("layout", value)?;
        }
        for Collision { taken, others, .. } in &self.ruled_out {
            line(
                "ruled out",
                format!("{} (types of the same id as {taken})", others.join(", ")),
            )?;
        }
        if let Some(first) = checkpoint.carried.first() {
            let count = checkpoint.carried.len();
            line(
                "not computed",
                format!("{count} tensors, the first is `{}`", first.name),
            )?;
        }
        if let Some(rotation) = &self.rotation {
            line("rotation", rotation.to_string())?;
        }
        line(
            "parameters",
            format!("{} ({} ternary)", self.parameters, self.ternary_parameters),
        )?;
        let tokenizer = self.tokenizer.as_deref().unwrap_or("none");
        let tokens = self.tokens.map_or(String::new(), |n| {
            let more = if n > config.vocab_size as u64 {
                ", MORE than embeddings"
            } else {
                ""
            };
            format!(", {n} tokens{more}")
        });
        line(
            "tokenizer",
            format!("{tokenizer}{tokens}, {} embedding rows", config.vocab_size),
        )?;
        match &self.chat_templates {
            Ok(names) if names.is_empty() => {}
            Ok(names) => line("chat templates", names.join(", "))?,
            Err(why) => line("chat templates", format!("refused: {why}"))?,
        }
        if let Some(declared) = checkpoint.declared_vocab_size {
            let rows = config.vocab_size;
            line(
                "vocabulary",
                format!(
                    "{rows} rows by the tensors, {declared} by the configuration: the tensors decide"
                ),
            )?;
        }
        if !checkpoint.unknown_keys.is_empty() {
            let keys = checkpoint.unknown_keys.iter().take(8);
            let keys: Vec<_> = keys.map(|k| k.key.escape_debug().to_string()).collect();
            line("unknown keys", keys.join(", "))?;
        }
        console.line("")?;
        let mut table = Table::new(&["type", ">tensors", ">elements", ">bytes"]);
        for (name, g) in &self.encodings {
            table.row(g.row(name));
        }
        console.line(table)?;
        if tensors {
            print_tensors(file, console)?;
        }
        Ok(())
    }
}

impl Group {
    fn to_json(&self, name: &str) -> Value {
        json!({
            "name": name, "tensors": self.tensors, "elements": self.elements, "bytes": self.bytes,
        })
    }

    fn row(&self, name: &str) -> [String; 4] {
        let numbers = [self.tensors, self.elements, self.bytes].map(|n| n.to_string());
        let [tensors, elements, bytes] = numbers;
        [name.to_owned(), tensors, elements, bytes]
    }
}

impl Collision {
    fn to_json(&self) -> Value {
        json!({"gguf_type": self.id, "taken": self.taken, "others": self.others})
    }
}

/// The tensors of a file by type.
fn encodings_of(file: &TensorFile) -> BTreeMap<String, Group> {
    let mut encodings: BTreeMap<String, Group> = BTreeMap::new();
    for info in file.tensors() {
        let group = encodings.entry(info.encoding.name()).or_default();
        group.tensors += 1;
        group.elements += info.shape.iter().product::<usize>() as u64;
        group.bytes += info.len;
    }
    encodings
}

/// Container, number of files and size, for people.
fn container(file: &TensorFile, bytes: u64) -> String {
    let parts = match file.parts.len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    format!("{}{parts}, {}", file.container, human_bytes(bytes))
}

fn files_json(file: &TensorFile) -> Value {
    let parts = file.parts.iter();
    parts
        .map(|p| json!({"path": bitnet_formats::named(p.path()).display().to_string(), "bytes": p.len()}))
        .collect()
}

/// The experts of a network.
fn experts_json(experts: &MixtureOfExperts) -> Value {
    json!({
        "count": experts.count,
        "used": experts.used,
        "intermediate_size": experts.intermediate_size,
        "normalize": experts.normalize,
        "clamp": experts.clamp,
        "layers": experts.layers,
    })
}

fn tensors_json(file: &TensorFile) -> Value {
    let tensor = |info: &TensorInfo| {
        json!({
            "name": info.name,
            "encoding": info.encoding.name(),
            "shape": info.shape,
            "part": info.part,
            "offset": info.offset,
            "bytes": info.len,
        })
    };
    file.tensors().iter().map(tensor).collect()
}

fn print_tensors(file: &TensorFile, console: &mut Console<'_>) -> Result<(), Failure> {
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
    console.line(table)
}

/// Types that share an id with one in the file, and that its tensors rule out; `left` is what they do not.
fn collisions_of(file: &TensorFile, left: &[&str]) -> Vec<Collision> {
    let mut found: Vec<Collision> = Vec::new();
    for info in file.tensors() {
        let taken = info.encoding.name();
        if found.iter().any(|c| c.taken == taken) {
            continue;
        }
        if let Some((id, mut others)) = gguf_type_rivals(info) {
            others.retain(|other| !left.contains(other));
            if !others.is_empty() {
                found.push(Collision { id, taken, others });
            }
        }
    }
    found
}

fn layout_json(evidence: &LayoutEvidence) -> Value {
    json!({
        "packing": evidence.packing,
        "reason": evidence.reason.as_str(),
        "decided": evidence.reason != LayoutReason::Assumed,
        "candidates": evidence.candidates(),
        "readings": evidence.readings.iter().map(|r| json!({
            "packing": r.packing,
            "bits_per_weight": r.bits_per_weight,
            "structure": r.model,
            "ruled_out": r.ruled_out,
        })).collect::<Value>(),
    })
}

fn layout_lines(evidence: &LayoutEvidence) -> Vec<String> {
    let candidates = evidence.candidates().join(", ");
    let packing = evidence.packing;
    let mut lines = vec![match evidence.reason {
        LayoutReason::Forced => format!("{packing}, as asked; the data allow {candidates}"),
        LayoutReason::Recorded => format!("{packing}, as the file records"),
        LayoutReason::Source => format!("{packing}: the trits are those of the other copy"),
        LayoutReason::Evidence => format!("{packing}, by the data"),
        LayoutReason::Assumed if evidence.readings.iter().any(|r| r.is_tiling) => format!(
            "undecided: no file records its tiling; {packing} is assumed (--layout, --against)"
        ),
        LayoutReason::Assumed => {
            format!("undecided between {candidates}; {packing} is assumed (--layout, --against)")
        }
    }];
    for reading in &evidence.readings {
        lines.push(match reading.bits_per_weight {
            Some(bits) => format!(
                "  {:<12} {bits:.5} bits per weight, by {}",
                reading.packing, reading.model
            ),
            None => format!("  {:<12} invalid codes or scales", reading.packing),
        });
    }
    lines
}

fn activations(quantization: ActivationQuantization) -> &'static str {
    match quantization {
        ActivationQuantization::Int8PerToken => "int8 per token",
        ActivationQuantization::None => "not quantized",
    }
}

/// The names of the chat templates.
fn chat_templates(checkpoint: &Checkpoint) -> Result<Vec<String>, String> {
    let names =
        |templates: ChatTemplates| templates.names().into_iter().map(str::to_owned).collect();
    checkpoint
        .chat_templates()
        .map(names)
        .map_err(|error| error.to_string())
}
