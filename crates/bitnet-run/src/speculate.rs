//! `--speculate` and `--draft`: guesses ahead of the text.
//!
//! Invariant: a draft model has the tokens of the model: the same ids with the same texts.

use crate::args::{Generate, SpeculateArg};
use crate::open::{self, Loaded};
use bitnet_cli::{ErrorCode, Failure};
use bitnet_model::{Generation, Model, Speculation};
use bitnet_text::Tokenizer;

/// What the flags ask for.
pub fn mode(args: &Generate) -> Speculation {
    match args.speculate {
        Some(SpeculateArg::Off) => Speculation::Off,
        Some(SpeculateArg::PromptLookup) => Speculation::PromptLookup,
        Some(SpeculateArg::Auto) | None => Speculation::Auto,
    }
}

/// Loads the draft model that the flags name, if any, for a model with this tokenizer, if it has one.
pub fn draft(
    args: &Generate,
    model: &Model,
    tokenizer: Option<&Tokenizer>,
) -> Result<Option<Loaded>, Failure> {
    let Some(path) = &args.draft else {
        return Ok(None);
    };
    if mode(args) == Speculation::Off {
        let what = "--speculate off cannot be combined with --draft";
        return Err(Failure::usage(what).hint("leave out --draft, or pass --speculate auto"));
    }
    let draft = open::predictor(path, &args.compute, model.threads())?;
    let refused = |what: String| {
        Failure::new(
            ErrorCode::Tokenizer,
            format!(
                "{}: the tokenizer of the draft model differs from that of the model: {what}",
                path.display()
            ),
        )
        .hint("pass a draft model with the tokenizer of the model: --draft MODEL")
    };
    let (expected, found) = (model.config().vocab_size, draft.model.config().vocab_size);
    if expected != found {
        return Err(refused(format!(
            "expected a vocabulary of {expected} tokens, found {found}"
        )));
    }
    if let Some(tokenizer) = tokenizer {
        let other = open::tokenizer(&draft.checkpoint)?;
        for id in 0..u32::try_from(expected).unwrap_or(u32::MAX) {
            let (expected, found) = (tokenizer.token(id), other.token(id));
            if expected != found {
                let text = |token: Option<String>| match token {
                    Some(token) => format!("{token:?}"),
                    None => "no token".to_owned(),
                };
                return Err(refused(format!(
                    "expected {} as token {id}, found {}",
                    text(expected),
                    text(found)
                )));
            }
        }
    }
    Ok(Some(draft))
}

/// A generation that speculates as the flags say.
pub fn speculating<'m>(
    generation: Generation<'m>,
    args: &Generate,
    draft: Option<&'m Loaded>,
) -> Result<Generation<'m>, Failure> {
    Ok(match draft {
        None => generation.with_speculation(mode(args)),
        Some(draft) => generation.with_draft_model(&draft.model, mode(args))?,
    })
}
