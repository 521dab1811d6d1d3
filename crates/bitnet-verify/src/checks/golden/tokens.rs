//! Whether the texts of the prompts become the recorded tokens.
//!
//! Invariant: a pre-tokenizer is named only if the file's own vocabulary and merges, cut by it, give every recorded
//! id of every text.

use super::super::report::Report;
use crate::diagnose::fault::{Fault, FaultName};
use crate::reference::golden::Golden;
use crate::verdict::{Findings, Verdict};
use bitnet_checkpoint::Checkpoint;
use bitnet_formats::{FormatError, MetaValue, Metadata};
use bitnet_text::{
    GGUF_PRE_TOKENIZER as PRE, Tokenizer, is_gguf_tokenizer_key, pre_tokenizer_names,
};

const NAME: &str = "golden-tokens";

/// A prompt: its name, its text, and the ids recorded for it.
type Text<'a> = (&'a str, &'a str, &'a [u32]);

/// Adds its row, and the fault if there is one, to the report.
pub(super) fn compare(checkpoint: &Checkpoint, golden: &Golden, report: &mut Report) {
    let mut texts: Vec<Text<'_>> = Vec::new();
    for prompt in &golden.prompts {
        let text = golden.texts.get(&prompt.name);
        texts.extend(text.map(|text| (&*prompt.name, text.as_str(), &prompt.ids[..])));
    }
    let result = match checkpoint.tokenizer() {
        _ if texts.is_empty() => Verdict::skipped(NAME, "prompts.json has ids only"),
        Err(error) => Verdict::error(NAME, &error),
        Ok(None) => Verdict::skipped(NAME, "the model has no tokenizer"),
        Ok(Some(tokenizer)) => {
            let mut findings = Findings::default();
            match differing(&tokenizer, &texts, &mut findings) {
                Err(error) => findings.unreadable("tokenizer", &error),
                Ok(None) => {}
                Ok(Some(first)) => report.fault(name(checkpoint, &tokenizer, &texts, &first)),
            }
            findings.into_verdict(NAME, format!("{} texts", texts.len()))
        }
    };
    report.checks.push(result);
}

/// Expected and found ids of the first text that becomes others.
type Differing = (Vec<u32>, Vec<u32>);

/// Whether a text became the recorded tokens. Of an empty text without tokens there is nothing to compute: the record
/// has some token in its place.
fn is_right(text: &str, found: &[u32], expected: &[u32]) -> bool {
    found == expected || (text.is_empty() && found.is_empty())
}

fn differing(
    tokenizer: &Tokenizer,
    texts: &[Text<'_>],
    findings: &mut Findings,
) -> Result<Option<Differing>, FormatError> {
    let mut first = None;
    for (prompt, text, expected) in texts {
        let found = tokenizer.encode(text, true)?;
        if is_right(text, &found, expected) {
            continue;
        }
        let at = expected
            .iter()
            .zip(&found)
            .take_while(|(e, f)| e == f)
            .count();
        let show = |ids: &[u32]| {
            ids.get(at)
                .map_or("the end".to_owned(), |id| format!("token {id}"))
        };
        let (e, f) = (show(expected), show(&found));
        findings.different(*prompt, format!("position {at}: expected {e}, found {f}"));
        first = first.or(Some((expected.to_vec(), found)));
    }
    Ok(first)
}

/// What makes other tokens of the texts.
fn name(
    checkpoint: &Checkpoint,
    tokenizer: &Tokenizer,
    texts: &[Text<'_>],
    (expected, found): &Differing,
) -> Fault {
    let mut named = Vec::new();
    // the tokenizer in GGUF's terms, where a word says how text is cut
    if let Ok(Some(pairs)) = checkpoint.gguf_tokenizer() {
        let keys = pairs
            .into_iter()
            .filter(|(key, _)| is_gguf_tokenizer_key(key));
        let mut metadata = Metadata(keys.collect());
        let stated = metadata
            .get(PRE)
            .and_then(MetaValue::as_str)
            .unwrap_or("none")
            .to_owned();
        for word in pre_tokenizer_names() {
            metadata.set(PRE, MetaValue::text(word));
            let Ok(Some(other)) = Tokenizer::from_gguf(&metadata) else {
                continue;
            };
            let fits = |(_, text, ids): &Text<'_>| {
                other
                    .encode(text, true)
                    .is_ok_and(|found| is_right(text, &found, ids))
            };
            if texts.iter().all(fits) {
                named.push(word);
            }
        }
        if !named.is_empty() {
            let what = format!("expected `{}`, found `{stated}`", named.join("` or `"));
            return Fault::of_key(FaultName::PreTokenizer, NAME, PRE, what);
        }
    }
    let id = |id: Option<&u32>| match id {
        Some(id) => format!("token {id} `{}`", tokenizer.token(*id).unwrap_or_default()),
        None => "none".to_owned(),
    };
    let fault = |kind, what| Fault::of_key(kind, NAME, "tokenizer", what);
    let missing = expected.get(1..) == Some(&found[..]);
    let added = found.get(1..) == Some(&expected[..]);
    let other = expected.get(1..) == found.get(1..);
    if missing {
        fault(
            FaultName::LeadingToken,
            format!("expected {} in front, found none", id(expected.first())),
        )
    } else if added {
        fault(
            FaultName::LeadingToken,
            format!("expected no token in front, found {}", id(found.first())),
        )
    } else if other {
        let (expected, found) = (id(expected.first()), id(found.first()));
        fault(
            FaultName::LeadingToken,
            format!("expected {expected} in front, found {found}"),
        )
    } else {
        let what = "text becomes other tokens, cut in any of the known ways".to_owned();
        fault(FaultName::Tokenizer, what)
    }
}
