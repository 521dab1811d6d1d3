//! One text in progress: its sequence, and how tokens become events.
//!
//! Invariant: the events follow from the prompt, the continuation and the model alone; they are those of
//! [`bitnet_model::Generation`] with the same sampler.

use super::metrics::Metrics;
use super::request::{Continuation, Event, TokenLogprob};
use crate::constraint::Constraint;
use bitnet_formats::FormatError;
use bitnet_model::{
    Constrain, Likelihoods, LogitRules, Sampler, Sequence, StepLogits, Stopped, TextStream, Want,
};
use bitnet_text::Tokenizer;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc::UnboundedSender;

/// Bytes of logits that a step may hold for the tokens of one prompt.
const LOGIT_BYTES: usize = 64 << 20;

/// One text in progress.
#[derive(Debug)]
pub(crate) struct Job<'t> {
    /// The request that it belongs to.
    pub request: u64,
    /// Whose request.
    pub client: u64,
    choice: usize,
    prompt: Arc<[u32]>,
    how: Arc<Continuation>,
    pub sequence: Sequence,
    /// Bytes of keys and values that it may need.
    pub reserved: usize,
    events: UnboundedSender<Event>,
    tokens: Vec<u32>,
    most: usize,
    sampler: Sampler,
    rules: LogitRules,
    constraint: Option<Constraint>,
    text: Option<TextStream<'t>>,
    echoed: Vec<TokenLogprob>,
}

/// What one text of a request needs.
pub(crate) struct Start<'a> {
    pub request: u64,
    pub client: u64,
    pub choice: usize,
    /// Which of the texts of its prompt.
    pub number: usize,
    pub prompt: &'a Arc<[u32]>,
    pub how: &'a Arc<Continuation>,
    pub sequence: Sequence,
    pub reserved: usize,
    pub events: &'a UnboundedSender<Event>,
}

impl<'t> Job<'t> {
    /// A text whose sequence has read some of the prompt already.
    pub(crate) fn new(start: Start<'_>, tokenizer: &'t Tokenizer) -> Result<Self, FormatError> {
        let Start { how, prompt, .. } = start;
        let sampler = match how.sampler {
            None => Sampler::greedy(),
            Some(mut options) => {
                options.seed = options.seed.wrapping_add(start.number as u64);
                Sampler::new(options)
            }
        };
        let mut rules = LogitRules::new(how.logits.clone());
        rules.see_prompt(prompt);
        let mut text = TextStream::new(tokenizer, &how.stops);
        let mut echoed = Vec::new();
        if how.echo {
            text = text.behind(prompt)?;
            echoed.extend(prompt.first().map(|first| TokenLogprob {
                token: *first,
                logprob: None,
                top: Vec::new(),
            }));
        }
        // the last new token is never read
        let room = start.sequence.context().saturating_sub(prompt.len()) + 1;
        Ok(Self {
            request: start.request,
            client: start.client,
            choice: start.choice,
            prompt: Arc::clone(prompt),
            how: Arc::clone(how),
            sequence: start.sequence,
            reserved: start.reserved,
            events: start.events.clone(),
            tokens: Vec::new(),
            most: how.most.min(room),
            sampler,
            rules,
            constraint: how.constraint.clone(),
            text: Some(text),
            echoed,
        })
    }

    /// Whether nobody waits for it.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether tokens of the prompt are to be read.
    pub(crate) fn is_reading(&self) -> bool {
        self.sequence.position() < self.prompt.len()
    }

    /// The prompt, and the tokens behind it.
    pub(crate) fn all_tokens(&self) -> impl Iterator<Item = u32> {
        self.prompt.iter().chain(&self.tokens).copied()
    }

    /// The prompt.
    pub(crate) fn prompt(&self) -> &[u32] {
        &self.prompt
    }

    /// The tokens of its next step, at most `most` of the prompt.
    pub(crate) fn next_tokens(&self, most: usize, vocab: usize) -> Vec<u32> {
        if !self.is_reading() {
            return self.tokens.last().copied().into_iter().collect();
        }
        let rows = match self.echoes() {
            true => (LOGIT_BYTES / (4 * vocab.max(1))).max(1),
            false => usize::MAX,
        };
        let from = self.sequence.position();
        let count = (self.prompt.len() - from).min(most.max(1)).min(rows);
        self.prompt[from..from + count].to_vec()
    }

    /// Whether the prompt's own log-probabilities are wanted.
    fn echoes(&self) -> bool {
        self.how.echo && self.how.logprobs.is_some()
    }

    /// What a step that reads so many tokens is to say.
    pub(crate) fn want(&self, tokens: usize) -> Want {
        let reads_all = self.sequence.position() + tokens >= self.prompt.len();
        match () {
            () if self.is_reading() && self.echoes() => Want::All,
            () if !reads_all || self.most == 0 => Want::Nothing,
            () if self.needs_all() => Want::Last,
            () => self.sampler.top_k().map_or(Want::Last, Want::Top),
        }
    }

    fn needs_all(&self) -> bool {
        self.how.logprobs.is_some() || !self.rules.is_empty() || self.constraint.is_some()
    }

    /// What a step said of the tokens that the sequence has read by now; whether the text goes on.
    ///
    /// # Errors
    /// Those of the tokenizer and the constraint.
    pub(crate) fn take(
        &mut self,
        read: Range<usize>,
        logits: StepLogits,
        vocab: usize,
        metrics: &Metrics,
    ) -> Result<bool, FormatError> {
        let ends_prompt = read.contains(&(self.prompt.len() - 1));
        let rows;
        let drawn = match logits {
            StepLogits::Nothing if !ends_prompt => return Ok(true),
            StepLogits::Nothing | StepLogits::TopOfEach(_) => &[][..],
            StepLogits::Top(top) => {
                let token = self.sampler.sample_top(&top);
                return self.append(token, None, metrics);
            }
            StepLogits::Rows(all) => {
                rows = all;
                if self.echoes() && read.start < self.prompt.len() {
                    self.echo(&read, &rows, vocab);
                }
                if read.end < self.prompt.len() {
                    return Ok(true);
                }
                &rows[rows.len().saturating_sub(vocab)..]
            }
        };
        if ends_prompt && self.echoes() {
            let tokens = std::mem::take(&mut self.echoed);
            self.send(Event::Prompt {
                choice: self.choice,
                tokens,
            });
        }
        if self.most == 0 || drawn.is_empty() {
            return self.end(Stopped::Length, None);
        }
        self.draw(drawn.to_vec(), metrics)
    }

    /// The log-probabilities of the tokens behind those that were read.
    fn echo(&mut self, read: &Range<usize>, rows: &[f32], vocab: usize) {
        let top = self.how.logprobs.unwrap_or(0);
        for (at, row) in read.clone().zip(rows.chunks_exact(vocab)) {
            let Some(&token) = self.prompt.get(at + 1) else {
                return;
            };
            let likelihoods = Likelihoods::new(row);
            self.echoed.push(TokenLogprob {
                token,
                logprob: Some(likelihoods.ln(token)),
                top: likelihoods.top(top),
            });
        }
    }

    /// Draws from logits of shape `(vocab,)`.
    fn draw(&mut self, logits: Vec<f32>, metrics: &Metrics) -> Result<bool, FormatError> {
        let mut changed = logits.clone();
        self.rules.apply(&mut changed);
        if let Some(constraint) = &mut self.constraint {
            constraint.mask(&mut changed)?;
        }
        let token = self.sampler.sample(&changed);
        let logprob = self.how.logprobs.map(|top| {
            let likelihoods = Likelihoods::new(&logits);
            TokenLogprob {
                token,
                logprob: Some(likelihoods.ln(token)),
                top: likelihoods.top(top),
            }
        });
        self.append(token, logprob, metrics)
    }

    /// A token more; whether the text goes on.
    fn append(
        &mut self,
        token: u32,
        logprob: Option<TokenLogprob>,
        metrics: &Metrics,
    ) -> Result<bool, FormatError> {
        if self.how.stop_tokens.contains(&token) {
            return self.end(Stopped::StopToken, logprob);
        }
        Metrics::add(&metrics.generated_tokens, 1);
        self.tokens.push(token);
        self.rules.see(token);
        let complete = match &mut self.constraint {
            Some(constraint) => constraint.accept(token)?,
            None => false,
        };
        let Some(stream) = &mut self.text else {
            return Ok(false);
        };
        let offset = stream.characters_before(token);
        let text = match self.how.kept.contains(&token) {
            true => stream.push_kept(token),
            false => stream.push(token)?,
        };
        let stopped = stream.is_stopped();
        self.send(Event::Token {
            choice: self.choice,
            token,
            text,
            offset,
            logprob,
        });
        match () {
            () if stopped => self.end(Stopped::StopString, None),
            () if complete => self.end(Stopped::StopToken, None),
            () if self.tokens.len() >= self.most => self.end(Stopped::Length, None),
            () => Ok(true),
        }
    }

    fn end(&mut self, stopped: Stopped, ending: Option<TokenLogprob>) -> Result<bool, FormatError> {
        let rest = self.text.take().map(TextStream::finish).transpose()?;
        self.send(Event::Done {
            choice: self.choice,
            text: rest.unwrap_or_default(),
            stopped,
            ending,
        });
        Ok(false)
    }

    /// Says that the request failed.
    pub(crate) fn fail(&self, error: FormatError) {
        self.send(Event::Failed(error));
    }

    /// A client that is gone is noticed before the next step.
    fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}
