//! What files of a network that no family knows hold: container, types, and which tensors are ternary.
//!
//! Invariant: nothing is said of the network. A packing is named where the type or the tensors beside say so, and
//! what is said of its trits was read from them; a tensor that cannot be read is a finding, not a failure.

use super::{
    Collision, collisions_of, container, data, encodings_of, files_json, print_tensors,
    tensors_json,
};
use crate::args::InspectArgs;
use bitnet_checkpoint::{
    GPU_PACKING, GPU_SCALES, HF_PACKING, LayoutSample, MLX_PACKING, gguf_architecture,
    is_vocabulary_alone, layout_readings, records_layout,
};
use bitnet_cli::{Console, Failure, Table};
use bitnet_formats::{
    Affine, Encoding, ErrorCode, FormatError, PackedTensor, Packing, PlainType, TensorFile,
    TensorInfo, dense_to_f32, layouts_like, packing_by_name, ternary_of_affine,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use bitnet_text::GgufTokenizerKeys;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// How many ternary tensors are read, from both ends of the file.
const READ: usize = 14;

/// A tensor that is ternary by its type or by what lies beside it.
struct Ternary<'a> {
    info: &'a TensorInfo,
    packing: &'static dyn Packing,
    rows: usize,
    cols: usize,
    /// What says so.
    evidence: String,
    /// Packings of the same id and length that the data do not rule out, where they leave several.
    candidates: Vec<&'static str>,
    /// Scales and biases of MLX's codes.
    affine: Option<(&'a TensorInfo, &'a TensorInfo)>,
}

/// Says what there is; `reason` is why no family takes it.
pub(super) fn run(
    args: &InspectArgs,
    file: &TensorFile,
    reason: &Failure,
    console: &mut Console<'_>,
) -> Result<(), Failure> {
    let tensors = file.tensors().iter();
    let mut found: Vec<Ternary<'_>> = tensors.filter_map(|i| ternary(file, i)).collect();
    let left = decide_layouts(file, &mut found)?;
    let mut linears: BTreeMap<&str, u64> = BTreeMap::new();
    for one in &found {
        *linears.entry(one.packing.name()).or_insert(0) += 1;
    }
    let skip = found.len().saturating_sub(READ);
    let (head, tail) = (READ / 2, READ / 2 + skip);
    let read = found.iter().enumerate();
    let read = read.filter(|(n, _)| *n < head || *n >= tail);
    let read: Vec<Value> = read.map(|(_, one)| one.to_json(file)).collect();
    file.check()?;
    let encodings = encodings_of(file);
    let ruled_out = collisions_of(file, &left);
    let rotation = data::rotation(&file.metadata);
    let architecture = gguf_architecture(file);
    let bytes: u64 = file.parts.iter().map(|p| p.len()).sum();
    let is_vocabulary = is_vocabulary_alone(file);
    let vocabulary = vocabulary(file);
    let mut object = json!({
        "status": "inspected",
        "path": bitnet_formats::named(&args.model).display().to_string(),
        "container": file.container,
        "files": files_json(file),
        "family": null,
        "family_unknown": reason.message,
        "architecture": architecture,
        "linears": linears,
        "ternary": read,
        "ruled_out": ruled_out.iter().map(Collision::to_json).collect::<Value>(),
        "rotation": rotation,
        "encodings": encodings.iter().map(|(name, g)| g.to_json(name)).collect::<Value>(),
        "bytes": bytes,
    });
    if let Some((model, tokens)) = &vocabulary {
        object["tokenizer"] = json!({"model": model, "tokens": tokens});
    }
    if args.tensors {
        object["tensors"] = tensors_json(file);
    }
    console.json(&object)?;
    if console.is_json() {
        return Ok(());
    }
    console.line(console.bold(&bitnet_formats::named(&args.model).display().to_string()))?;
    let mut line = |key: &str, value: String| console.line(format_args!("  {key:<15} {value}"));
    line("container", container(file, bytes))?;
    if let Some(architecture) = architecture {
        line("architecture", architecture.to_owned())?;
    }
    match is_vocabulary {
        true => line(
            "family",
            "none: the file holds a vocabulary and no weights".to_owned(),
        )?,
        false => line("family", format!("unknown: {}", reason.message))?,
    }
    if let Some((model, tokens)) = &vocabulary {
        line("tokenizer", format!("{model}, {tokens} tokens"))?;
    }
    for (name, n) in &linears {
        line("ternary", format!("{n} x {name}"))?;
    }
    if linears.is_empty() {
        line(
            "ternary",
            "no tensor is, by its type or by what lies beside it".to_owned(),
        )?;
    }
    for one in &read {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let trits = match one["unreadable"].as_str() {
            Some(why) => format!("unreadable: {why}"),
            None => format!(
                "{} -1, {} 0, {} +1, scales per {}",
                one["minus"],
                one["zero"],
                one["plus"],
                text("scale_structure")
            ),
        };
        line(
            "",
            format!(
                "{}: {} ({}); {trits}",
                text("tensor"),
                text("packing"),
                evidence(one)
            ),
        )?;
    }
    for Collision { taken, others, .. } in &ruled_out {
        line(
            "ruled out",
            format!("{} (types of the same id as {taken})", others.join(", ")),
        )?;
    }
    if let Some(rotation) = &rotation {
        line("rotation", rotation.to_string())?;
    }
    console.line("")?;
    let mut table = Table::new(&["type", ">tensors", ">elements", ">bytes"]);
    for (name, g) in &encodings {
        table.row(g.row(name));
    }
    console.line(table)?;
    if args.tensors {
        print_tensors(file, console)?;
    }
    Ok(())
}

/// The kind of the tokenizer in a GGUF file, and how many tokens it has.
fn vocabulary(file: &TensorFile) -> Option<(String, usize)> {
    let keys = GgufTokenizerKeys::of(&file.metadata);
    Some((keys.model?.to_owned(), keys.tokens?.len()))
}

/// Whether a failure to open says that no family takes the network, or that a tensor of it has a type that is not
/// read, and not that something is wrong.
pub(super) fn is_about_the_family(path: &Path, failure: &Failure, file: &TensorFile) -> bool {
    match failure.code {
        // nothing is wrong with a vocabulary alone, or with weights that are quantized in another way
        _ if is_vocabulary_alone(file) => true,
        ErrorCode::NotTernary => {
            let is_block = |info: &TensorInfo| {
                matches!(info.encoding, Encoding::Foreign(_) | Encoding::Block(_))
            };
            file.tensors().iter().any(is_block)
        }
        ErrorCode::UnknownType => true,
        ErrorCode::UnsupportedConfig => !bitnet_checkpoint::has_known_family(path, file),
        _ => false,
    }
}

/// Why a tensor's packing was taken, and what else it may be.
fn evidence(one: &Value) -> String {
    let candidates = one["candidates"].as_array().into_iter().flatten();
    let candidates: Vec<_> = candidates.filter_map(Value::as_str).collect();
    let why = one["evidence"].as_str().unwrap_or_default();
    match candidates.is_empty() {
        true => why.to_owned(),
        false => format!("UNDECIDED: {why}: {}", candidates.join(", ")),
    }
}

/// The module of a weight.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}

/// The layouts of types whose id and length leave several, from the data of all tensors of the type: the
/// packing where they decide, else the candidates, which are returned.
fn decide_layouts(
    file: &TensorFile,
    found: &mut [Ternary<'_>],
) -> Result<Vec<&'static str>, FormatError> {
    let mut left = Vec::new();
    let mut types: Vec<&'static dyn Packing> = Vec::new();
    for one in found.iter().filter(|one| by_type(one.info)) {
        if types.iter().all(|p| p.name() != one.packing.name()) {
            types.push(one.packing);
        }
    }
    for taken in types {
        let is_of = |one: &Ternary<'_>| by_type(one.info) && one.packing.name() == taken.name();
        let of_type = || found.iter().filter(|one| is_of(one));
        let shapes: Vec<_> = of_type().map(|one| (one.rows, one.cols)).collect();
        let rivals = layouts_like(taken, &shapes);
        if rivals.is_empty() {
            continue;
        }
        let recorded = records_layout(file);
        let sample = |one: &Ternary<'_>| {
            Ok(LayoutSample {
                bytes: file.read(one.info)?,
                rows: one.rows,
                cols: one.cols,
                gains: None,
            })
        };
        let samples = of_type().take(READ).map(sample);
        let samples = samples.collect::<Result<Vec<_>, FormatError>>()?;
        let readings = layout_readings(&rivals, &samples);
        let fits: Vec<_> = readings.iter().filter(|r| !r.ruled_out).collect();
        let (packing, why, open) = match fits.as_slice() {
            _ if recorded => (taken, "type id, and the file records the layout", false),
            [one] if !one.is_tiling => {
                let decided = rivals.iter().find(|p| p.name() == one.packing);
                (
                    *decided.unwrap_or(&taken),
                    "type id, length, and what the data rule out",
                    false,
                )
            }
            several => {
                let is_left = |p: &&&dyn Packing| several.iter().any(|r| r.packing == p.name());
                let first = rivals.iter().find(is_left).unwrap_or(&taken);
                (
                    *first,
                    "type id and length; nothing decides between the candidates",
                    true,
                )
            }
        };
        let candidates: Vec<_> = fits.iter().map(|r| r.packing).collect();
        for one in found.iter_mut().filter(|one| is_of(one)) {
            one.packing = packing;
            one.evidence = why.to_owned();
            if open {
                one.candidates.clone_from(&candidates);
            }
        }
        if open {
            left.extend(candidates);
        }
    }
    Ok(left)
}

/// Whether a tensor's type says that it is ternary.
fn by_type(info: &TensorInfo) -> bool {
    matches!(info.encoding, Encoding::Ternary(_))
}

/// Whether a tensor is ternary by its type or by what lies beside it.
fn ternary<'a>(file: &'a TensorFile, info: &'a TensorInfo) -> Option<Ternary<'a>> {
    let one = |name: &str, rows, cols, evidence: String, affine| {
        packing_by_name(name).map(|packing| Ternary {
            info,
            packing,
            rows,
            cols,
            evidence,
            candidates: Vec::new(),
            affine,
        })
    };
    let beside = |role: &str| file.tensor(&format!("{}{role}", info.name));
    let (Encoding::Plain(plain), &[rows, cols]) = (info.encoding, info.shape.as_slice()) else {
        let Encoding::Ternary(packing) = info.encoding else {
            return None;
        };
        let (cols, rows) = info.shape.split_last()?;
        let rows = rows
            .iter()
            .try_fold(1usize, |n, size| n.checked_mul(*size))?;
        return one(
            packing.name(),
            rows,
            *cols,
            "type id and length".to_owned(),
            None,
        );
    };
    match plain {
        PlainType::U8
            if beside("_scale").is_some_and(|s| s.shape.iter().product::<usize>() == 1) =>
        {
            let evidence = "u8 with one scale beside it".to_owned();
            one(HF_PACKING, rows.checked_mul(4)?, cols, evidence, None)
        }
        PlainType::I8 if beside("_scale").is_some_and(|s| s.shape == [GPU_SCALES]) => {
            let evidence = format!("int8 with {GPU_SCALES} scales beside it");
            one(GPU_PACKING, rows, cols.checked_mul(4)?, evidence, None)
        }
        PlainType::U32 => {
            let role = |role: &str| file.tensor(&format!("{}.{role}", module(&info.name)));
            let (scales, biases) = (role("scales")?, role("biases")?);
            let cols = cols.checked_mul(16)?;
            let group = cols.checked_div(*scales.shape.get(1)?)?;
            let evidence = format!("u32 with scales and biases, {group} columns each at 2 bits");
            one(MLX_PACKING, rows, cols, evidence, Some((scales, biases)))
        }
        _ => None,
    }
}

impl Ternary<'_> {
    fn read(&self, file: &TensorFile) -> Result<TernaryMatrix, FormatError> {
        let bytes = file.read(self.info)?;
        if let Some((scales, biases)) = self.affine {
            let numbers = |info: &TensorInfo| -> Result<Vec<f32>, FormatError> {
                let mut out = vec![0.0; info.shape.iter().product()];
                dense_to_f32(info.encoding, &file.read(info)?, &mut out)?;
                Ok(out)
            };
            let per_row = scales.shape.get(1).copied().unwrap_or(0);
            return ternary_of_affine(&Affine {
                codes: &bytes,
                rows: self.rows,
                cols: self.cols,
                group: self.cols.checked_div(per_row).unwrap_or(0),
                scales: &numbers(scales)?,
                biases: &numbers(biases)?,
            });
        }
        let one = Scales::PerTensor(1.0);
        self.packing.unpack(&PackedTensor {
            bytes: &bytes,
            rows: self.rows,
            cols: self.cols,
            outside: (!self.packing.holds_scales()).then_some(&one),
        })
    }

    fn to_json(&self, file: &TensorFile) -> Value {
        let mut object = json!({
            "tensor": self.info.name,
            "packing": self.packing.name(),
            "shape": [self.rows, self.cols],
            "evidence": self.evidence,
            "decided": self.candidates.is_empty(),
            "candidates": self.candidates,
        });
        match self.read(file) {
            Err(error) => object["unreadable"] = json!(error.to_string()),
            Ok(matrix) => {
                let [minus, zero, plus] = matrix.counts();
                object["minus"] = json!(minus);
                object["zero"] = json!(zero);
                object["plus"] = json!(plus);
                object["scale_structure"] = json!(data::structure(&matrix.normal_scales()));
            }
        }
        object
    }
}
