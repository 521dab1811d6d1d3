//! What files of a network that no family knows hold: container, types, and which tensors are ternary.
//!
//! Invariant: nothing is said of the network. A packing is named where the type or the tensors beside say so, and
//! what is said of its trits was read from them; a tensor that cannot be read is a finding, not a failure.

use super::{
    Collision, collisions_of, data, encodings_of, files_json, print_tensors, tensors_json,
};
use crate::args::InspectArgs;
use bitnet_cli::{Console, Failure, Table, human_bytes};
use bitnet_formats::{
    Affine, Encoding, ErrorCode, FormatError, MetaValue, PackedTensor, Packing, PlainType,
    TensorFile, TensorInfo, dense_to_f32, packing_by_name, ternary_of_affine,
};
use bitnet_model::{GPU_PACKING, GPU_SCALES, HF_PACKING, MLX_PACKING};
use bitnet_ternary::{Scales, TernaryMatrix};
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
    let found: Vec<Ternary<'_>> = file
        .tensors()
        .iter()
        .filter_map(|i| ternary(file, i))
        .collect();
    let mut linears: BTreeMap<&str, u64> = BTreeMap::new();
    for one in &found {
        *linears.entry(one.packing.name()).or_insert(0) += 1;
    }
    let skip = found.len().saturating_sub(READ);
    let (head, tail) = (READ / 2, READ / 2 + skip);
    let read = found.iter().enumerate();
    let read = read.filter(|(n, _)| *n < head || *n >= tail);
    let read: Vec<Value> = read.map(|(_, one)| one.to_json(file)).collect();
    let encodings = encodings_of(file);
    let ruled_out = collisions_of(file, None);
    let rotation = data::rotation(&file.metadata);
    let architecture = file
        .metadata
        .get("general.architecture")
        .and_then(MetaValue::as_str);
    let bytes: u64 = file.parts.iter().map(|p| p.bytes().len() as u64).sum();
    let mut object = json!({
        "status": "inspected",
        "path": args.model.display().to_string(),
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
    if args.tensors {
        object["tensors"] = tensors_json(file);
    }
    console.json(&object)?;
    if console.is_json() {
        return Ok(());
    }
    console.line(console.bold(&args.model.display().to_string()))?;
    let mut line = |key: &str, value: String| console.line(format_args!("  {key:<15} {value}"));
    let parts = match file.parts.len() {
        1 => String::new(),
        n => format!(" in {n} files"),
    };
    line(
        "container",
        format!("{}{parts}, {}", file.container, human_bytes(bytes)),
    )?;
    line("family", format!("unknown: {}", reason.message))?;
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
                text("evidence")
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

/// Whether a failure to open says that no family takes the network, and not that something is wrong.
pub(super) fn is_about_the_family(path: &Path, failure: &Failure, file: &TensorFile) -> bool {
    failure.code == ErrorCode::UnsupportedConfig && !bitnet_model::has_known_family(path, file)
}

/// The module of a weight.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
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
        let bytes = file.bytes(self.info);
        if let Some((scales, biases)) = self.affine {
            let numbers = |info: &TensorInfo| -> Result<Vec<f32>, FormatError> {
                let mut out = vec![0.0; info.shape.iter().product()];
                dense_to_f32(info.encoding, file.bytes(info), &mut out)?;
                Ok(out)
            };
            let per_row = scales.shape.get(1).copied().unwrap_or(0);
            return ternary_of_affine(&Affine {
                codes: bytes,
                rows: self.rows,
                cols: self.cols,
                group: self.cols.checked_div(per_row).unwrap_or(0),
                scales: &numbers(scales)?,
                biases: &numbers(biases)?,
            });
        }
        let one = Scales::PerTensor(1.0);
        self.packing.unpack(&PackedTensor {
            bytes,
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
