//! The support table: targets, sources, families.
//!
//! Invariant: every line comes from a registry; the README's table is tested against it.

use crate::pairs::{LEGEND, Pair, Source, pairs};
use crate::targets::TARGETS;
use bitnet_checkpoint::FAMILIES;
use bitnet_cli::{Console, Failure, Table};
use bitnet_formats::CONTAINERS;
use serde_json::{Value, json};

/// Lists them.
pub fn run(console: &mut Console<'_>) -> Result<(), Failure> {
    let pairs = pairs();
    console.json(&json!({
        "status": "listed",
        "targets": TARGETS.iter().map(|t| json!({"name": t.name, "container": t.container(), "about": t.about})).collect::<Value>(),
        "containers": CONTAINERS.iter().map(|c| c.name()).collect::<Value>(),
        "sources": Source::all().map(|s| json!({"name": s.name(), "about": s.about()})).collect::<Value>(),
        "pairs": pairs.iter().map(Pair::to_json).collect::<Value>(),
        "families": FAMILIES.iter().map(|f| {
            json!({"name": f.name, "model_type": f.hf_identity.0, "architecture": f.hf_identity.1, "gguf_architectures": f.gguf_architectures, "verified": f.is_verified})
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
    let kinds = kinds(&pairs);
    let mut table = Table::new(&["linears of a source", "column", "what"]);
    for source in Source::all() {
        let of = kinds.iter().position(|k| k.names.contains(&source.name()));
        let column = of.map_or(String::new(), letter);
        table.row([source.name().into(), column, source.about().into()]);
    }
    console.line(table)?;
    console.line("")?;
    let letters: Vec<String> = (0..kinds.len()).map(letter).collect();
    let width = |(kind, letter): (&Kind, &String)| {
        let cells = kind.cells.iter().map(|cell| cell.len());
        cells.max().unwrap_or(0).max(letter.len())
    };
    let widths: Vec<usize> = kinds.iter().zip(&letters).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &String>| {
        let padded = cells.zip(&widths).map(|(c, w)| format!("{c:w$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let heading = line(&mut letters.iter());
    let mut table = Table::new(&["target", &heading]);
    for (n, target) in TARGETS.iter().enumerate() {
        let cells = line(&mut kinds.iter().filter_map(|k| k.cells.get(n)));
        table.row([target.name.into(), cells]);
    }
    console.line(table)?;
    for text in LEGEND {
        console.line(text)?;
    }
    console.line("")?;
    let mut table = Table::new(&["family", "Hugging Face", "GGUF"]);
    for family in FAMILIES {
        let (model_type, architecture) = family.hf_identity;
        table.row([
            family.name.into(),
            format!("{architecture} ({model_type})"),
            match family.is_verified {
                true => family.gguf_architectures.join(", "),
                false => format!("{}; UNVERIFIED", family.gguf_architectures.join(", ")),
            },
        ]);
    }
    console.line(table)
}

/// Sources that every target says the same of: a column of the table.
struct Kind {
    names: Vec<&'static str>,
    /// In the order of [`TARGETS`].
    cells: Vec<String>,
}

fn kinds(pairs: &[Pair]) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = Vec::new();
    for name in Source::all().map(|s| s.name()) {
        let own = pairs.iter().filter(|p| p.source.name() == name);
        let cells: Vec<String> = own.map(Pair::cell).collect();
        match kinds.iter_mut().find(|k| k.cells == cells) {
            Some(kind) => kind.names.push(name),
            None => kinds.push(Kind {
                names: vec![name],
                cells,
            }),
        }
    }
    kinds
}

/// `A`, `B`, ...
fn letter(column: usize) -> String {
    (b'A'..=b'Z')
        .nth(column)
        .map_or_else(|| column.to_string(), |c| char::from(c).to_string())
}
