//! What headers and configuration say that the tensors contradict.
//!
//! Invariant: no weight is read.

use super::finding::{Examination, Finding, Patient};
use super::repair::Repair;
use crate::diagnose::fault::FaultName;
use bitnet_checkpoint::{
    Activation, Checkpoint, Config, GGUF_ARCHITECTURE_KEY as ARCHITECTURE,
    GGUF_FILE_TYPE_KEY as FILE_TYPE, ROTATION_KEYS, Slot, gguf_architecture,
};
use bitnet_formats::{Container, Encoding, Gguf, MetaValue};
use std::collections::BTreeSet;

pub(super) const EXAMINATION: Examination = Examination {
    name: "headers",
    what: "file type, architecture, duplicate heads, unknown keys",
    examine: |patient, findings| {
        if let Some(checkpoint) = patient.checkpoint {
            head(patient, checkpoint, findings);
            unread(checkpoint, findings);
            rotation(checkpoint, findings);
            unusual_rotation(checkpoint, findings);
        }
        if patient.file.container == Gguf.name() {
            file_type(patient, findings);
            keys(patient, findings);
            wrong_activation(patient, findings);
        }
    },
};

/// A published network whose GGUF files are known to name an architecture that computes something else.
struct Published {
    name: &'static str,
    architecture: &'static str,
    activation: Activation,
    is: fn(&Config) -> bool,
}

/// `formats/model-families.md`.
const PUBLISHED: [Published; 1] = [Published {
    name: "BitNet b1.58 2B4T",
    architecture: "bitnet-b1.58",
    activation: Activation::Relu2,
    is: |c| {
        (c.hidden_size, c.intermediate_size, c.num_hidden_layers) == (2560, 6912, 30)
            && (c.num_attention_heads, c.num_key_value_heads, c.vocab_size) == (20, 5, 128_256)
    },
}];

fn head(patient: &Patient<'_>, checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    let config = &checkpoint.config;
    let family = checkpoint.family;
    let gguf = patient.file.container == Gguf.name();
    let name = |slot| {
        if gguf {
            (family.gguf_tensor_name)(slot)
        } else {
            family.hf_name(checkpoint.config_json.as_ref(), slot)
        }
    };
    let Some(head) = patient.file.tensor(&name(Slot::OutputHead)) else {
        return;
    };
    if config.tie_word_embeddings {
        let what = format!(
            "the output head is the embedding, and the file holds another {} bytes that nothing reads",
            head.len
        );
        let finding = Finding::warning("unused-head", &head.name, what, "drop the tensor");
        findings.push(match gguf {
            true => finding.mended_by(Repair::DropTensor(head.name.clone())),
            false => finding,
        });
        return;
    }
    let embeddings = patient.file.tensor(&name(Slot::TokenEmbeddings));
    if let Some(embeddings) = embeddings
        && embeddings.encoding == head.encoding
        && let (Ok(embeddings), Ok(own)) = (patient.file.read(embeddings), patient.file.read(head))
        && embeddings == own
    {
        let what = format!(
            "the output head is a copy of the embedding: {} bytes twice",
            head.len
        );
        let remedy = "drop the tensor; readers then take the embedding (in config.json: tie_word_embeddings true)";
        let finding = Finding::warning("duplicate-head", &head.name, what, remedy);
        findings.push(match gguf {
            true => finding.mended_by(Repair::DropTensor(head.name.clone())),
            false => finding,
        });
    }
}

/// Keys that nothing here reads, and an index that was not read.
fn unread(checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    for key in &checkpoint.unknown_keys {
        let what = format!("the key is unknown and ignored; its value is {}", key.value);
        let remedy = "make sure that the network does not depend on it";
        let code = "unknown-key";
        findings.push(match checkpoint.directory.is_none() {
            true => Finding::note(code, &key.key, what, remedy),
            false => Finding::warning(code, &key.key, what, remedy),
        });
    }
    if let Some(first) = checkpoint.carried.first() {
        let count = checkpoint.carried.len();
        let what = format!("{count} tensors from here on belong to parts that are not computed");
        let remedy = "none is needed: they change nothing in a text";
        findings.push(Finding::note("not-computed", &first.name, what, remedy));
    }
    if let Some(index) = &checkpoint.stale_index {
        let what = "none of its shards exist, and a model in one file lies beside it";
        let place = index.display().to_string();
        findings.push(Finding::warning(
            "stale-index",
            place,
            what,
            "remove the index",
        ));
    }
}

/// Which programs rotate the inputs of rotated weights.
fn rotation(checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    let Some(rotation) = checkpoint.config.rotation.as_deref() else {
        return;
    };
    let (noise, remedy) = match checkpoint.directory {
        None => (
            "llama.cpp, ik_llama.cpp, bitnet.cpp and transformers",
            "run it with bitnet-run or PrismML's llama.cpp (prism-v7 or newer)",
        ),
        Some(_) if checkpoint.is_pack() => (
            "programs for MLX that do not know packs of rotated weights",
            "run it with bitnet-run, or mlx-lm where the blocks have 512 to 8192 features",
        ),
        Some(_) => (
            "transformers, and mlx-lm unless the checkpoint is a pack of its own kind,",
            "run it with bitnet-run",
        ),
    };
    let what = format!(
        "{} matrices are rotated in blocks of {}; {noise} load such weights and print noise (mean KL 7 to 9)",
        rotation.matrices(),
        rotation.block_size
    );
    findings.push(Finding::warning(
        "rotated-weights",
        ROTATION_KEYS,
        what,
        remedy,
    ));
}

/// What published files of rotated weights all declare, and this one does not.
fn unusual_rotation(checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    let Some(rotation) = checkpoint.config.rotation.as_deref() else {
        return;
    };
    let remedy = "compare with the published file: a lost key gives noise; nothing is needed if the weights were made so";
    for (is_unusual, name, key, what) in [
        (
            rotation.tiled_values,
            FaultName::RotationValueOrder,
            "gdn_v_grouped",
            "the key is absent, so out_proj is rotated with value heads in GGUF's tiled order; published files have them grouped",
        ),
        (
            !rotation.embeddings,
            FaultName::RotationEmbeddings,
            "inverse_weight_names",
            "the embeddings are not declared rotated; those of published files are",
        ),
        (
            rotation.signs.is_empty(),
            FaultName::RotationSigns,
            "sign_values",
            "every sign is +1 (sign_mode identity); published files have signs",
        ),
        (
            !checkpoint.config.tie_word_embeddings && !rotation.turns(Slot::OutputHead),
            FaultName::RotationHead,
            "weight_names",
            "the output head is not declared rotated; those of published files are",
        ),
    ] {
        if is_unusual {
            let place = format!("{ROTATION_KEYS}{key}");
            findings.push(Finding::note(name.as_str(), place, what, remedy));
        }
    }
}

/// Whether `general.file_type` is that of the linears.
fn file_type(patient: &Patient<'_>, findings: &mut Vec<Finding>) {
    let packings: BTreeSet<(&str, Option<u32>)> = patient
        .file
        .tensors()
        .iter()
        .filter_map(|info| match info.encoding {
            Encoding::Ternary(packing) => Some((packing.name(), packing.gguf_file_type())),
            _ => None,
        })
        .collect();
    let stated = patient
        .file
        .metadata
        .get(FILE_TYPE)
        .and_then(MetaValue::as_u64);
    let mut types: BTreeSet<u32> = packings.iter().filter_map(|(_, t)| *t).collect();
    let only = match (types.pop_first(), types.is_empty()) {
        (Some(only), true) => only,
        // files of several packings have no type of their own
        _ => return,
    };
    let names: Vec<&str> = packings.iter().map(|(name, _)| *name).collect();
    let found = match stated {
        Some(stated) if stated == u64::from(only) => return,
        Some(stated) => format!("{stated}"),
        None => "nothing".to_owned(),
    };
    let what = format!(
        "the tensors are {}, which is file type {only}; the header says {found}",
        names.join(", ")
    );
    findings.push(
        Finding::warning("file-type", FILE_TYPE, what, format!("set it to {only}"))
            .mended_by(Repair::Set(FILE_TYPE.to_owned(), MetaValue::U32(only))),
    );
}

fn keys(patient: &Patient<'_>, findings: &mut Vec<Finding>) {
    let metadata = &patient.file.metadata;
    let Some(architecture) = gguf_architecture(patient.file) else {
        let what = "readers cannot tell which network it is";
        let remedy = "write the file again with a converter that knows the model";
        findings.push(Finding::error(
            "no-architecture",
            ARCHITECTURE,
            what,
            remedy,
        ));
        return;
    };
    let own = format!("{architecture}.");
    let theta = format!("{own}rope.freq_base");
    if metadata.get(&theta).is_none() {
        let what = "absent: every reader takes 10000";
        let remedy = "add it if the model was trained with another base";
        findings.push(Finding::note("default-rope", theta, what, remedy));
    }
}

fn wrong_activation(patient: &Patient<'_>, findings: &mut Vec<Finding>) {
    let Some(checkpoint) = patient.checkpoint else {
        return;
    };
    let architecture = gguf_architecture(patient.file).unwrap_or_default();
    let config = &checkpoint.config;
    for published in &PUBLISHED {
        if (published.is)(config) && config.hidden_act != published.activation {
            let what = format!(
                "readers of `{architecture}` compute {}, and the sizes are those of {}, which was trained with {}",
                config.hidden_act.as_str(),
                published.name,
                published.activation.as_str()
            );
            let remedy = format!("name the architecture `{}`", published.architecture);
            findings.push(
                Finding::error("wrong-activation", ARCHITECTURE, what, remedy)
                    .mended_by(Repair::Architecture(published.architecture)),
            );
        }
    }
}
