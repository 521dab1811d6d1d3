//! Whether text becomes the right tokens, and whether generation can stop.
//!
//! Invariant: a pre-tokenizer is called wrong only where the vocabulary is a published one whose pre-tokenizer is
//! known.

use super::finding::{Examination, Finding, Patient};
use super::repair::Repair;
use bitnet_checkpoint::Checkpoint;
use bitnet_formats::{Container, Gguf, MetaValue};
use bitnet_text::{
    ChatMessage, GGUF_END_OF_TURN as EOT, GGUF_PRE_TOKENIZER as PRE, GgufTokenizerKeys, Tokenizer,
    gguf_ends_of_turn, pre_tokenizer_of_vocabulary, pre_tokenizer_of_word,
};
use std::collections::HashSet;

pub(super) const EXAMINATION: Examination = Examination {
    name: "tokenizer",
    what: "pre-tokenizer, vocabulary size, end of text, chat template",
    examine: |patient, findings| {
        if patient.file.container == Gguf.name() {
            pre_tokenizer(patient, findings);
        }
        let Some(checkpoint) = patient.checkpoint else {
            return;
        };
        match checkpoint.tokenizer() {
            Err(error) => findings.push(Finding::unreadable("tokenizer", &error)),
            Ok(None) => findings.push(Finding::note(
                "no-tokenizer",
                "tokenizer",
                "the model has no tokenizer: it takes token ids only, and llama.cpp does not load a GGUF file without one",
                "put tokenizer.json (or tokenizer.model, or vocab.json and merges.txt) beside the weights of the source and convert again",
            )),
            Ok(Some(tokenizer)) => words(patient, checkpoint, &tokenizer, findings),
        }
        class(checkpoint, findings);
    },
};

/// What an assistant says in the conversation that is rendered.
const SAID: &str = "bitnet";

/// Whether transformers reads the tokenizer otherwise than this program.
fn class(checkpoint: &Checkpoint, findings: &mut Vec<Finding>) {
    // a file that cannot be read was reported already
    if let Ok(Some(note)) = checkpoint.tokenizer_class_note() {
        let remedy = "set tokenizer_class to TokenizersBackend in tokenizer_config.json if tokenizer.json is right";
        findings.push(Finding::note(
            note.code,
            "tokenizer_config.json",
            note.message,
            remedy,
        ));
    }
}

fn pre_tokenizer(patient: &Patient<'_>, findings: &mut Vec<Finding>) {
    let keys = GgufTokenizerKeys::of(&patient.file.metadata);
    if !keys.is_byte_level() {
        return;
    }
    let known = keys.tokens.and_then(|tokens| {
        let all: HashSet<&[u8]> = tokens.iter().collect();
        let first = String::from_utf8_lossy(tokens.iter().next().unwrap_or_default());
        pre_tokenizer_of_vocabulary(|token| all.contains(token.as_bytes()), &first)
    });
    let stated = keys.pre_tokenizer;
    let finding = match (stated, known) {
        (None | Some("default"), known) => {
            let what = "missing: readers fall back to a default that splits text otherwise than the model was trained";
            let remedy = match known {
                Some(pre) => format!("the vocabulary is that of `{pre}`: set it"),
                None => "set the one of the model's tokenizer.json; converting from the Hugging Face checkpoint does".to_owned(),
            };
            Finding::error("missing-pre-tokenizer", PRE, what, remedy)
        }
        (Some(stated), Some(known)) if pre_tokenizer_of_word(stated) != Some(known) => {
            let what = format!("`{stated}`, but the vocabulary is the published one of `{known}`");
            Finding::error("wrong-pre-tokenizer", PRE, what, format!("set `{known}`"))
        }
        _ => return,
    };
    findings.push(match known {
        Some(pre) => finding.mended_by(Repair::Set(PRE.to_owned(), MetaValue::text(pre))),
        None => finding,
    });
}

fn words(
    patient: &Patient<'_>,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    findings: &mut Vec<Finding>,
) {
    let (tokens, rows) = (tokenizer.vocab_size(), checkpoint.config.vocab_size);
    let beyond = tokenizer.added_beyond(rows);
    if tokens > rows && tokens - rows <= beyond.len() {
        let what = format!(
            "{rows} embedding rows; added tokens without a row: {}. A text with one of them cannot be computed",
            beyond.join(", ")
        );
        let remedy = "usual for text-only checkpoints of models that also read images; a GGUF file leaves these tokens out";
        findings.push(Finding::note(
            "token-without-row",
            "tokenizer",
            what,
            remedy,
        ));
    } else if tokens > rows {
        let what = format!(
            "{tokens} tokens, but the embedding has {rows} rows: some texts cannot be computed"
        );
        let remedy = "take the tokenizer that belongs to the model";
        findings.push(Finding::error(
            "vocabulary-mismatch",
            "tokenizer",
            what,
            remedy,
        ));
    } else if tokens < rows {
        let what = format!(
            "{rows} embedding rows for {tokens} tokens: {} cannot be spelt",
            rows - tokens
        );
        let remedy = "usual for padded vocabularies; make sure that the tokenizer is the model's";
        findings.push(Finding::note(
            "padded-vocabulary",
            "tokenizer",
            what,
            remedy,
        ));
    }
    let stops = &checkpoint.config.eos_token_ids;
    if stops.is_empty() && checkpoint.config.pooling.is_none() {
        let what = "no token ends a text: generation cannot stop";
        let remedy = "set eos_token_id in generation_config.json, or tokenizer.ggml.eos_token_id";
        findings.push(Finding::error("no-eos", "eos_token_id", what, remedy));
    }
    for id in stops.iter().filter(|id| **id as usize >= rows) {
        let what =
            format!("token {id} is beyond the {rows} rows of the embedding: it is never chosen");
        let remedy = "set an id of the vocabulary";
        findings.push(Finding::error("no-eos", "eos_token_id", what, remedy));
    }
    chat(patient, checkpoint, tokenizer, findings);
}

/// Whether what the template puts behind an answer is a token that ends generation.
fn chat(
    patient: &Patient<'_>,
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    findings: &mut Vec<Finding>,
) {
    if tokenizer.chat_template().is_none() {
        // the user of a chat names a template
        return;
    }
    let template = match tokenizer.chat() {
        Ok(Some(template)) => template,
        Ok(None) => return,
        Err(error) => {
            findings.push(Finding::unreadable("chat_template", &error));
            return;
        }
    };
    let answer = ChatMessage {
        role: "assistant".to_owned(),
        content: SAID.to_owned(),
    };
    let talk = [ChatMessage::user("hello"), answer];
    let rendered = match template.render(&talk, false) {
        Ok(rendered) => rendered,
        Err(error) => {
            findings.push(Finding::unreadable("chat_template", &error));
            return;
        }
    };
    let behind = rendered
        .rfind(SAID)
        .map_or("", |at| &rendered[at + SAID.len()..]);
    let ids = match tokenizer.encode(behind.trim_start(), false) {
        Ok(ids) => ids,
        Err(error) => {
            findings.push(Finding::unreadable("chat_template", &error));
            return;
        }
    };
    let mut stops = checkpoint.config.eos_token_ids.clone();
    if patient.file.container == Gguf.name() {
        stops.extend(gguf_ends_of_turn(&patient.file.metadata));
    }
    if ids.first().is_some_and(|id| stops.contains(id)) {
        return;
    }
    let (what, repair) = match ids.first() {
        None => (
            "the template puts nothing behind an answer: nothing tells the model to stop"
                .to_owned(),
            None,
        ),
        Some(&id) => {
            let token = tokenizer.token(id).unwrap_or_default();
            let is_one_token = ids.len() == 1 || behind.trim_start().starts_with(&token);
            let what = format!(
                "the template ends an answer with `{}` (token {id}), which is not among the tokens that end generation ({stops:?})",
                if is_one_token {
                    token.as_str()
                } else {
                    behind.trim()
                }
            );
            let special = token.starts_with('<') && token.ends_with('>') && is_one_token;
            (
                what,
                special.then(|| Repair::Set(EOT.to_owned(), MetaValue::U32(id))),
            )
        }
    };
    let remedy =
        "add it to eos_token_id of generation_config.json, or set tokenizer.ggml.eot_token_id";
    let finding = Finding::warning("chat-cannot-stop", "chat_template", what, remedy);
    let gguf = patient.file.container == Gguf.name();
    findings.push(match repair {
        Some(repair) if gguf => finding.mended_by(repair),
        _ => finding,
    });
}
