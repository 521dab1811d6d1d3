//! A text continued: the loop of feeding and drawing, and token ids on their way to text.
//!
//! Invariant: the tokens follow from the prompt, the model and the sampler alone. No text that belongs to a stop
//! string is handed out, however the tokens cut it.

use crate::constrain::Constrain;
use crate::logit_rules::{LogitOptions, LogitRules};
use crate::model::Model;
use crate::sampler::Sampler;
use crate::session::Session;
use crate::speculate::{Speculated, Speculation, Speculator};
use crate::step::{StepLogits, Want};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_text::{DecodeStream, Tokenizer};
use std::mem;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The model drew a token that ends a text.
    StopToken,
    /// A stop string came.
    StopString,
    /// It is complete by its [`Constrain`] rule: nothing can follow.
    Complete,
    /// It has as many tokens as were asked for.
    Length,
}

impl Stopped {
    /// `stop-token`, `stop-string`, `complete` or `length`, as reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::StopToken => "stop-token",
            Self::StopString => "stop-string",
            Self::Complete => "complete",
            Self::Length => "length",
        }
    }
}

/// New tokens, and how long they took.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The tokens, without the stop token.
    pub tokens: Vec<u32>,
    /// Why there are no more.
    pub stopped: Stopped,
    /// From the prompt to the first token.
    pub prompt_time: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// Steps of the model, and what guesses did for them.
    pub speculated: Speculated,
}

impl Generated {
    /// Tokens after the first, by the time they took.
    pub fn tokens_per_second(&self) -> f64 {
        let seconds = self.decode_time.as_secs_f64();
        match seconds > 0.0 {
            true => self.tokens.len().saturating_sub(1) as f64 / seconds,
            false => 0.0,
        }
    }

    /// Those of the tokens that the session has read: all before a stop token, else all but the last.
    pub fn read(&self) -> &[u32] {
        match (self.stopped, self.tokens.split_last()) {
            (Stopped::StopToken, _) | (_, None) => &self.tokens,
            (_, Some((_, read))) => read,
        }
    }
}

/// A model in the middle of a text.
#[derive(Debug)]
pub struct Generation<'m> {
    model: &'m Model,
    session: Session,
    sampler: Sampler,
    rules: LogitRules,
    constraint: Option<Box<dyn Constrain>>,
    stop_tokens: Vec<u32>,
    speculator: Option<Speculator<'m>>,
}

/// The logits of the last tokens that a step read: all of each, or the largest.
enum Rows {
    All(Vec<f32>), // (tokens, vocab)
    Top(Vec<Vec<(u32, f32)>>),
}

impl<'m> Generation<'m> {
    /// An empty text of at most `context` tokens, which the tokens in `stop_tokens` end.
    ///
    /// # Errors
    /// As [`Model::session`].
    pub fn new(
        model: &'m Model,
        context: usize,
        sampler: Sampler,
        stop_tokens: Vec<u32>,
    ) -> Result<Self, FormatError> {
        Ok(Self {
            model,
            session: model.session(context)?,
            sampler,
            rules: LogitRules::default(),
            constraint: None,
            stop_tokens,
            speculator: None,
        })
    }

    /// Changes logits before each draw.
    #[must_use]
    pub fn with_logit_options(mut self, options: LogitOptions) -> Self {
        self.rules = LogitRules::new(options);
        self
    }

    /// Guesses tokens from what the text has said before and verifies several in one step. The tokens are those of
    /// [`Speculation::Off`], whatever the sampler, the penalties and the guesses.
    #[must_use]
    pub fn with_speculation(mut self, speculation: Speculation) -> Self {
        self.speculator = match speculation {
            Speculation::Off => None,
            Speculation::PromptLookup => Some(Speculator::of_text(false)),
            Speculation::Auto => Some(Speculator::of_text(true)),
        };
        self
    }

    /// As [`with_speculation`](Self::with_speculation), with the guesses of a smaller model.
    ///
    /// # Errors
    /// `usage` for a draft model of another vocabulary size. Whether the tokens mean the same is the caller's to check.
    pub fn with_draft_model(
        mut self,
        draft: &'m Model,
        speculation: Speculation,
    ) -> Result<Self, FormatError> {
        let (expected, found) = (self.model.config().vocab_size, draft.config().vocab_size);
        if expected != found {
            return Err(FormatError::new(
                ErrorCode::Usage,
                format!("expected a draft model of {expected} tokens, found {found}"),
            ));
        }
        let context = self.session.context();
        self.speculator = match speculation {
            Speculation::Off => None,
            other => {
                let is_auto = other == Speculation::Auto;
                Some(Speculator::of_model(draft, context, is_auto)?)
            }
        };
        Ok(self)
    }

    /// Excludes tokens before each draw; the rule is that of the next text alone.
    pub fn constrain(&mut self, constraint: Option<Box<dyn Constrain>>) {
        self.constraint = constraint;
    }

    /// Begins another text behind `prompt`, which may be read already: penalties forget the texts before.
    pub fn begin(&mut self, prompt: &[u32]) {
        self.rules.restart();
        self.rules.see_prompt(prompt);
    }

    /// Tokens that end a text by what model and tokenizer say.
    pub fn stop_tokens(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut stop = model.config().eos_token_ids.clone();
        stop.extend_from_slice(tokenizer.stop_tokens());
        stop
    }

    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.session.position()
    }

    /// Forgets all tokens from `position` on, if there are any.
    pub fn truncate(&mut self, position: usize) {
        self.session.truncate(position);
        if let Some(speculator) = &mut self.speculator {
            speculator.truncate(self.session.position());
        }
    }

    /// Feeds `ids` and draws nothing: the beginning of a prompt, so that a caller can stop in the middle of one.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn feed(&mut self, ids: &[u32]) -> Result<(), FormatError> {
        if let Some(speculator) = &mut self.speculator {
            speculator.truncate(self.session.position());
            speculator.read(ids);
        }
        self.model.pass(&mut self.session, ids, Want::Nothing)?;
        Ok(())
    }

    /// Reads `ids`, then `guesses`; returns the logits behind the last of `ids` and behind every guess: only the largest
    /// where the sampler needs no others, which reads half of the head.
    fn read(&mut self, ids: &[u32], guesses: &[u32]) -> Result<Rows, FormatError> {
        let is_free = self.rules.is_empty() && self.constraint.is_none();
        let top = self.sampler.top_k().filter(|_| is_free);
        // only the logits of a prompt's last token are wanted
        let want = match (top, guesses.is_empty()) {
            (Some(k), true) => Want::Top(k),
            (None, true) => Want::Last,
            (Some(k), false) => Want::TopOfEach(k),
            (None, false) => Want::All,
        };
        let tokens = [ids, guesses].concat();
        Ok(match self.model.pass(&mut self.session, &tokens, want)? {
            StepLogits::Rows(rows) => Rows::All(rows),
            StepLogits::Top(top) => Rows::Top(vec![top]),
            StepLogits::TopOfEach(top) => Rows::Top(top),
            StepLogits::Nothing => Rows::Top(Vec::new()),
        })
    }

    /// Draws a token from the logits behind the last of the tokens fed, or behind a guess.
    fn draw(&mut self, rows: &mut Rows, guess: usize) -> Result<u32, FormatError> {
        Ok(match rows {
            Rows::Top(top) => {
                let top = top.get(guess).map_or(&[][..], |top| top);
                self.sampler.sample_top(top)
            }
            Rows::All(rows) => {
                let vocab = self.model.weights.output_head.rows();
                let row = rows.chunks_exact_mut(vocab).nth(guess).unwrap_or_default();
                self.rules.apply(row);
                if let Some(constraint) = &mut self.constraint {
                    constraint.mask(row)?;
                }
                self.sampler.sample(row)
            }
        })
    }

    /// Feeds `ids` and draws the next token.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn next(&mut self, ids: &[u32]) -> Result<u32, FormatError> {
        let mut rows = self.read(ids, &[])?;
        self.draw(&mut rows, 0)
    }

    /// Guesses at most `most` of the tokens that follow, and no token behind the end of the context.
    fn guess(&mut self, most: usize) -> Result<Vec<u32>, FormatError> {
        let room = self.session.context() - self.session.position();
        match &mut self.speculator {
            None => Ok(Vec::new()),
            Some(speculator) => speculator.draft(most.min(room.saturating_sub(1))),
        }
    }

    /// Feeds `ids`, then makes up to `most` tokens; `each` sees every one but the stop token, and may end the
    /// text.
    ///
    /// # Errors
    /// As [`Model::forward`], and those of `each`.
    pub fn run<E: From<FormatError>>(
        &mut self,
        ids: &[u32],
        most: usize,
        mut each: impl FnMut(u32) -> Result<ControlFlow<()>, E>,
    ) -> Result<Generated, E> {
        let mut generated = Generated {
            tokens: Vec::new(),
            stopped: Stopped::Length,
            prompt_time: Duration::ZERO,
            decode_time: Duration::ZERO,
            speculated: Speculated::default(),
        };
        self.rules.see_prompt(ids);
        let position = self.session.position();
        if let Some(speculator) = &mut self.speculator {
            speculator.truncate(position);
            speculator.read(ids);
        }
        let started = Instant::now();
        let mut first = None; // when the first token came
        let mut fed = ids.to_vec();
        let mut is_over = false;
        while !is_over && generated.tokens.len() < most {
            let begun = Instant::now();
            let before = self.session.position() + fed.len();
            let guesses = match fed.len() {
                // a draft model that fails guesses nothing
                1 => self
                    .guess(most - generated.tokens.len() - 1)
                    .unwrap_or_default(),
                _ => Vec::new(),
            };
            let (mut rows, guesses) = match self.read(&fed, &guesses) {
                Ok(rows) => (rows, guesses),
                // a guess that is wrong may overflow what the text does not
                Err(_) if !guesses.is_empty() => (self.read(&fed, &[])?, Vec::new()),
                Err(error) => return Err(error.into()),
            };
            let step_time = begun.elapsed();
            let mut accepted = 0;
            let ended = loop {
                // an error leaves the session without the guesses that were not taken
                let token = match self.draw(&mut rows, accepted) {
                    Ok(token) => token,
                    Err(error) => break Err(error.into()),
                };
                first.get_or_insert_with(|| started.elapsed());
                if self.stop_tokens.contains(&token) {
                    break Ok(Some(Stopped::StopToken));
                }
                generated.tokens.push(token);
                self.rules.see(token);
                if let Some(speculator) = &mut self.speculator {
                    speculator.drawn(token);
                }
                let accepts = self.constraint.as_mut();
                let is_complete = match accepts.map(|constraint| constraint.accept(token)) {
                    Some(Ok(is_complete)) => is_complete,
                    Some(Err(error)) => break Err(error.into()),
                    None => false,
                };
                match each(token) {
                    Ok(ControlFlow::Continue(())) if is_complete => {
                        break Ok(Some(Stopped::Complete));
                    }
                    Ok(ControlFlow::Continue(())) => {}
                    Ok(ControlFlow::Break(())) => break Ok(Some(Stopped::StopString)),
                    Err(error) => break Err(error),
                }
                match guesses.get(accepted) {
                    Some(guess) if *guess == token && generated.tokens.len() < most => {
                        accepted += 1;
                    }
                    _ => {
                        fed = vec![token];
                        break Ok(None);
                    }
                }
            };
            self.session.truncate(before + accepted);
            let Speculated { drafted, steps, .. } = &mut generated.speculated;
            (*drafted, *steps) = (*drafted + guesses.len(), *steps + 1);
            generated.speculated.accepted += accepted;
            if let (Some(speculator), true) = (&mut self.speculator, before > position + ids.len())
            {
                speculator.learn(guesses.len(), accepted, step_time);
            }
            if let Some(stopped) = ended? {
                generated.stopped = stopped;
                is_over = true;
            }
        }
        if let Some(first) = first {
            generated.prompt_time = first;
            generated.decode_time = started.elapsed().saturating_sub(first);
        }
        Ok(generated)
    }

    /// As [`run`](Self::run), with text: `each` sees every piece as soon as it is certain. The last one comes
    /// after the last token.
    ///
    /// # Errors
    /// As [`run`](Self::run), and those of the tokenizer.
    pub fn run_text<E: From<FormatError>>(
        &mut self,
        mut text: TextStream<'_>,
        ids: &[u32],
        most: usize,
        mut each: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<Generated, E> {
        let generated = self.run::<E>(ids, most, |token| {
            each(&text.push(token)?)?;
            Ok(match text.is_stopped() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        each(&text.finish()?)?;
        Ok(generated)
    }
}

/// Token ids on their way to text, up to a stop string.
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    decoder: DecodeStream<'t>,
    stops: StopStrings,
    kept: Vec<u32>,
    /// Of the text so far, with what is held back and with a stop string.
    characters: usize,
}

impl<'t> TextStream<'t> {
    /// The text of a tokenizer, which ends in front of the first of `stops`; empty ones do not count.
    pub fn new(tokenizer: &'t Tokenizer, stops: &[String]) -> Self {
        Self {
            tokenizer,
            decoder: tokenizer.stream(),
            stops: StopStrings::new(stops),
            kept: Vec::new(),
            characters: 0,
        }
    }

    /// The text with these special tokens in it, as [`push_kept`](Self::push_kept).
    #[must_use]
    pub fn keeping(mut self, kept: &[u32]) -> Self {
        self.kept = kept.to_vec();
        self
    }

    /// The text behind a prompt of these tokens: a tokenizer that drops the space in front of a text keeps it then.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn behind(mut self, prompt: &[u32]) -> Result<Self, FormatError> {
        for token in prompt {
            self.decoder.push(*token)?;
        }
        Ok(self)
    }

    /// As [`push`](Self::push), for a special token, which gives its text all the same.
    pub fn push_kept(&mut self, token: u32) -> String {
        let text = self.tokenizer.token(token).unwrap_or_default();
        self.characters += text.chars().count();
        self.stops.push(&text)
    }

    /// The text that is certain with one token more: without what may become a stop string.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn push(&mut self, token: u32) -> Result<String, FormatError> {
        if self.kept.contains(&token) {
            return Ok(self.push_kept(token));
        }
        let piece = self.decoder.push(token)?;
        self.characters += piece.chars().count();
        Ok(self.stops.push(&piece))
    }

    /// Characters of the text in front of a token that comes next; a character that the token goes on with is not in
    /// front. The text may end earlier, in front of a stop string.
    pub fn characters_before(&self, token: u32) -> usize {
        self.characters + self.decoder.broken_before(token)
    }

    /// Whether a stop string came: no text follows.
    pub fn is_stopped(&self) -> bool {
        self.stops.stopped
    }

    /// The rest of the text.
    ///
    /// # Errors
    /// Those of the tokenizer.
    pub fn finish(self) -> Result<String, FormatError> {
        let Self {
            decoder, mut stops, ..
        } = self;
        let mut text = stops.push(&decoder.finish()?);
        text.push_str(&stops.held);
        Ok(text)
    }
}

/// Holds text back that may be the beginning of a stop string.
#[derive(Debug)]
struct StopStrings {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopStrings {
    fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty());
        Self {
            stops: stops.cloned().collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// The text that is certain with `piece` behind it.
    fn push(&mut self, piece: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(piece);
        let found = |stop: &String| self.held.find(stop.as_str());
        if let Some(at) = self.stops.iter().filter_map(found).min() {
            self.stopped = true;
            self.held.truncate(at);
            return mem::take(&mut self.held);
        }
        let kept = self.stops.iter().map(|stop| beginning(&self.held, stop));
        let certain = self.held.len() - kept.max().unwrap_or(0);
        let rest = self.held.split_off(certain);
        mem::replace(&mut self.held, rest)
    }
}

/// Bytes at the end of `text` that are the beginning of `stop`, as many as can be.
fn beginning(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len().saturating_sub(1));
    let begins = |n: &usize| stop.is_char_boundary(*n) && text.ends_with(&stop[..*n]);
    (1..=most).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pieces that come of the text cut after every `step` characters, the rest last.
    fn pieces(text: &str, step: usize, stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|s| (*s).to_owned()).collect();
        let mut filter = StopStrings::new(&stops);
        let characters: Vec<char> = text.chars().collect();
        let mut pieces: Vec<String> = characters
            .chunks(step)
            .map(|piece| filter.push(&piece.iter().collect::<String>()))
            .collect();
        pieces.push(filter.held);
        (pieces, filter.stopped)
    }

    #[test]
    fn text_ends_in_front_of_the_first_stop_string_however_it_is_cut() {
        for (text, stops, want, stopped) in [
            ("one two three", &["two"][..], "one ", true),
            ("one two three", &["three", "two"], "one ", true),
            ("one two three", &["four"], "one two three", false),
            ("aab", &["ab"], "a", true),
            ("aaab", &["aab", "ab"], "a", true),
            (
                "ends with the begi",
                &["beginning"],
                "ends with the begi",
                false,
            ),
            ("ä€ö\u{1f600}!", &["€ö\u{1f600}"], "ä", true),
            ("ä€ö", &["€\u{1f600}"], "ä€ö", false),
            ("stop", &["stop"], "", true),
            ("all of it", &[""], "all of it", false),
            ("all of it", &[], "all of it", false),
            ("", &["x"], "", false),
        ] {
            for step in 1..=text.chars().count().max(1) {
                let (pieces, ended) = pieces(text, step, stops);
                assert_eq!(pieces.concat(), want, "{text:?} by {step}, {stops:?}");
                assert_eq!(ended, stopped, "{text:?} by {step}, {stops:?}");
            }
        }
        // nothing is held back longer than it may belong to a stop string
        assert_eq!(
            pieces("a\n\nb", 1, &["\n\nUser:"]).0,
            ["a", "", "", "\n\nb", ""]
        );
    }
}
