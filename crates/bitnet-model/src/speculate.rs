//! Speculative decoding: tokens guessed ahead, so that one step of the model verifies several of them.
//!
//! Invariant: a guess decides how many tokens a step reads, never which token comes. The token at a position is drawn
//! from the logits of that position, with the sampler's next number, and a guess is kept only if it equals that token.

mod draft_model;
mod lookup;
mod policy;

use crate::model::Model;
use bitnet_formats::FormatError;
use draft_model::DraftModel;
use lookup::{Found, Ngrams};
use policy::{Policy, Shadow};
use std::time::Duration;

pub(crate) use policy::MOST_DRAFT;

/// When tokens are guessed ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Speculation {
    /// Never: one step for each token.
    #[default]
    Off,
    /// Whenever there is a guess: the text came before, or a draft model is given.
    PromptLookup,
    /// Only while guesses save time, by their hits so far and by the measured time of steps.
    Auto,
}

impl Speculation {
    /// `off`, `prompt-lookup` or `auto`, the value of `--speculate`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::PromptLookup => "prompt-lookup",
            Self::Auto => "auto",
        }
    }
}

/// What speculation did for a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Speculated {
    /// Tokens that were guessed and verified.
    pub drafted: usize,
    /// Guesses that were right.
    pub accepted: usize,
    /// Steps of the model, the one that read the prompt included.
    pub steps: usize,
}

/// Where guesses come from.
#[derive(Debug)]
enum Source<'m> {
    Text(Ngrams),
    Model(Box<DraftModel<'m>>),
}

/// Guesses the next tokens of one text.
#[derive(Debug)]
pub(crate) struct Speculator<'m> {
    tokens: Vec<u32>, // of the text
    source: Source<'m>,
    policy: Policy,
    shadow: Option<Shadow>,
    kind: usize, // of the last draft
}

impl<'m> Speculator<'m> {
    /// Guesses what followed the last tokens where the text had them before.
    pub(crate) fn of_text(is_auto: bool) -> Self {
        Self::new(Source::Text(Ngrams::default()), is_auto)
    }

    /// Guesses what another model says.
    ///
    /// # Errors
    /// As [`Model::session`].
    pub(crate) fn of_model(
        draft: &'m Model,
        context: usize,
        is_auto: bool,
    ) -> Result<Self, FormatError> {
        let draft = DraftModel::new(draft, context)?;
        Ok(Self::new(Source::Model(Box::new(draft)), is_auto))
    }

    fn new(source: Source<'m>, is_auto: bool) -> Self {
        Self {
            tokens: Vec::new(),
            source,
            policy: Policy::new(is_auto),
            shadow: None,
            kind: 0,
        }
    }

    /// The text has only its first `position` tokens.
    pub(crate) fn truncate(&mut self, position: usize) {
        if position >= self.tokens.len() {
            return;
        }
        if let Source::Text(ngrams) = &mut self.source {
            ngrams.truncate(&self.tokens, position);
        }
        self.tokens.truncate(position);
        self.shadow = None;
    }

    /// The text goes on with these tokens, which nobody guessed.
    pub(crate) fn read(&mut self, tokens: &[u32]) {
        for token in tokens {
            self.tokens.push(*token);
            if let Source::Text(ngrams) = &mut self.source {
                ngrams.push(&self.tokens);
            }
        }
    }

    /// A token was drawn. A guess that was not verified shows what it would have been worth.
    pub(crate) fn drawn(&mut self, token: u32) {
        self.read(&[token]);
        if let Some(shadow) = &mut self.shadow
            && !shadow.compare(token, &mut self.policy)
        {
            self.shadow = None;
        }
    }

    /// At most `most` tokens to verify; none if there is no guess, or if none is worth its time.
    ///
    /// # Errors
    /// Those of the draft model.
    pub(crate) fn draft(&mut self, most: usize) -> Result<Vec<u32>, FormatError> {
        let most = most.min(MOST_DRAFT);
        if most == 0 {
            return Ok(Vec::new());
        }
        match &mut self.source {
            Source::Text(ngrams) => {
                let Some(Found { at, matched }) = ngrams.find(&self.tokens) else {
                    return Ok(Vec::new());
                };
                let kind = policy::kind(matched);
                let count = self.policy.length(kind, most);
                if count > 0 {
                    (self.shadow, self.kind) = (None, kind);
                    return Ok(lookup::continuation(&self.tokens, at, count));
                }
                if self.shadow.is_none() {
                    let tokens = lookup::continuation(&self.tokens, at, MOST_DRAFT);
                    self.shadow = Some(Shadow::new(tokens, kind));
                }
                Ok(Vec::new())
            }
            Source::Model(draft) => {
                self.kind = 0;
                let count = self.policy.length(0, most);
                draft.next(&self.tokens, count)
            }
        }
    }

    /// A step that read a token and `drafted` guesses, of which so many were right, took this time, guessing included.
    pub(crate) fn learn(&mut self, drafted: usize, accepted: usize, time: Duration) {
        self.policy.learn(self.kind, (drafted, accepted), time);
    }
}
