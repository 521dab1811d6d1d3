//! The support table: targets, sources, families.
//!
//! Invariant: every line comes from a registry; the README's table is tested against it.

use crate::targets::TARGETS;
use bitnet_cli::{Console, Failure, Table};
use bitnet_formats::{CONTAINERS, PACKINGS, Packing};
use bitnet_model::{FAMILIES, HF_PACKING, is_tiles};
use serde_json::{Value, json};

/// What the linears of a source may be, besides the packings.
const FLOAT_SOURCES: [(&str, &str); 2] = [
    (
        "master",
        "f32, f16 or bf16 master weights, quantised by the absmean rule",
    ),
    (
        "dequantised",
        "f32, f16 or bf16 that already are trit * scale",
    ),
];

/// Lists them.
pub fn run(console: &mut Console<'_>) -> Result<(), Failure> {
    let sources = || {
        // a packing that no container's checkpoints are read from is no source
        let read =
            |p: &&&dyn Packing| p.gguf_type().is_some() || p.name() == HF_PACKING || is_tiles(**p);
        let packings = PACKINGS.iter().filter(read).map(|p| {
            let kind = if p.is_writable() {
                "packed"
            } else {
                "packed, read only"
            };
            (p.name(), kind)
        });
        FLOAT_SOURCES.into_iter().chain(packings)
    };
    console.json(&json!({
        "status": "listed",
        "targets": TARGETS.iter().map(|t| json!({"name": t.name, "container": t.container(), "about": t.about})).collect::<Value>(),
        "containers": CONTAINERS.iter().map(|c| c.name()).collect::<Value>(),
        "sources": sources().map(|(name, about)| json!({"name": name, "about": about})).collect::<Value>(),
        "families": FAMILIES.iter().map(|f| {
            json!({"name": f.name, "model_type": f.hf_identity.0, "architecture": f.hf_identity.1, "gguf_architectures": f.gguf_architectures})
        }).collect::<Value>(),
    }))?;
    let mut table = Table::new(&["target (--to)", "container", "what"]);
    for target in TARGETS {
        table.row([
            target.name.into(),
            target.container().into(),
            target.about.into(),
        ]);
    }
    console.line(table)?;
    console.line("")?;
    let mut table = Table::new(&["linears of a source", "what"]);
    for (name, about) in sources() {
        table.row([name.into(), about.into()]);
    }
    console.line(table)?;
    console.line("")?;
    let mut table = Table::new(&["family", "Hugging Face", "GGUF"]);
    for family in FAMILIES {
        let (model_type, architecture) = family.hf_identity;
        table.row([
            family.name.into(),
            format!("{architecture} ({model_type})"),
            family.gguf_architectures.join(", "),
        ]);
    }
    console.line(table)
}
