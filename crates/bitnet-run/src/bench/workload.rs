//! What `bitnet-run bench` runs: prompts and generated texts, one or several at once, in an empty context or behind
//! others.
//!
//! Invariant: the clock runs only while tokens of the test are computed; tokens before them are read
//! outside of it.

use crate::args::HeadArg;
use bitnet_cli::{Failure, Table, fixed, percent};
use bitnet_model::{Model, Part, Profile, Sampler, Sequence, Slice, StepLogits, Want, Workspace};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// All tokens at once.
    Prompt,
    /// One token after the other.
    Generate,
}

/// `n` tokens of each of some sequences, behind `depth` others.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    pub kind: Kind,
    /// Sequences that go through the network together.
    pub sequences: usize,
    /// How the likeliest token is found; prompts compute all logits of their last token.
    pub head: HeadArg,
    pub n: usize,
    pub depth: usize,
}

/// The tokens that a test finds, read once for all tests.
pub struct Context<'a> {
    pub model: &'a Model,
    depth: usize,
    sequences: Vec<Sequence>,
    workspace: Workspace,
}

impl<'a> Context<'a> {
    pub fn new(model: &'a Model, depth: usize) -> Self {
        Self {
            model,
            depth,
            sequences: Vec::new(),
            workspace: model.workspace(),
        }
    }

    /// Some sequences of `depth` tokens. Without any they are new ones, as the first prompt of a user is: then
    /// their memory is part of the time.
    fn sequences(&mut self, count: usize) -> Result<(&mut [Sequence], &mut Workspace), Failure> {
        if self.depth == 0 {
            self.sequences.clear();
        }
        let most = self.model.config().max_position_embeddings;
        let ids = ids(self.model, self.depth);
        while self.sequences.len() < count {
            let mut sequence = self.model.sequence(most)?;
            let slice = Slice {
                sequence: &mut sequence,
                tokens: &ids,
                want: Want::Nothing,
            };
            self.model.step(&mut [slice], &mut self.workspace)?;
            self.sequences.push(sequence);
        }
        let sequences = &mut self.sequences[..count];
        for sequence in &mut *sequences {
            sequence.truncate(self.depth);
        }
        Ok((sequences, &mut self.workspace))
    }
}

/// Ids spread over the vocabulary; which ones does not matter for the time.
fn ids(model: &Model, n: usize) -> Vec<u32> {
    let vocab = model.config().vocab_size as u32;
    (0..n as u32)
        .map(|i| i.wrapping_mul(2_654_435_761) % vocab)
        .collect()
}

impl Test {
    /// `pp512`, `tg128`, `tg128 @ d1024`, `tg128 x8`.
    pub fn name(&self) -> String {
        let prefix = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generate => "tg",
        };
        let depth = match self.depth {
            0 => String::new(),
            depth => format!(" @ d{depth}"),
        };
        let sequences = match self.sequences {
            1 => String::new(),
            sequences => format!(" x{sequences}"),
        };
        format!("{prefix}{}{depth}{sequences}", self.n)
    }

    /// Tokens of all sequences.
    pub fn tokens(&self) -> usize {
        self.n * self.sequences
    }

    /// Bytes of memory that a token needs on average, if it is generated: its share of the `shared` weights that a
    /// step reads once for all sequences, the weights that it reads for itself, the keys and values of the positions
    /// before it, and its own, written and read. Prompts reuse what they read.
    pub fn bytes_per_token(&self, shared: usize, own: usize, position: usize) -> Option<f64> {
        match self.kind {
            Kind::Prompt => None,
            Kind::Generate => {
                let positions = self.depth as f64 + (self.n as f64 + 3.0) / 2.0;
                let weights = shared as f64 / self.sequences as f64 + own as f64;
                Some(weights + position as f64 * positions)
            }
        }
    }

    /// Runs it once, on the threads of `model`, which is that of the context.
    pub fn run(
        &self,
        model: &Model,
        context: &mut Context<'_>,
        profiled: bool,
    ) -> Result<Run, Failure> {
        let (sequences, workspace) = context.sequences(self.sequences)?;
        if profiled {
            workspace.begin_profile();
        }
        let mut sampling = 0.0;
        let started = Instant::now();
        match self.kind {
            Kind::Prompt => {
                let tokens = ids(model, self.n);
                let mut batch = slices(sequences, |_| &tokens, Want::Last);
                black_box(model.step(&mut batch, workspace)?);
            }
            Kind::Generate => {
                let want = match self.head {
                    HeadArg::Auto => Want::Top(1),
                    HeadArg::Full => Want::Last,
                };
                let mut sampler = Sampler::greedy();
                let last = model.config().vocab_size as u32 - 1;
                let mut tokens = ids(model, self.sequences);
                tokens[0] = model.config().bos_token_id.unwrap_or(0).min(last);
                for _ in 0..self.n {
                    let mut batch = slices(sequences, |i| &tokens[i..=i], want);
                    let found = model.step(&mut batch, workspace)?;
                    let at = profiled.then(Instant::now);
                    for (token, found) in tokens.iter_mut().zip(&found) {
                        *token = match found {
                            StepLogits::Top(top) => sampler.sample_top(top),
                            StepLogits::Rows(logits) => sampler.sample(logits),
                            StepLogits::Nothing | StepLogits::TopOfEach(_) => 0,
                        };
                    }
                    sampling += at.map_or(0.0, |at| at.elapsed().as_secs_f64());
                }
            }
        }
        Ok(Run {
            seconds: started.elapsed().as_secs_f64(),
            sampling,
            profile: workspace.end_profile(),
        })
    }
}

/// A slice of every sequence.
fn slices<'a>(
    sequences: &'a mut [Sequence],
    tokens: impl Fn(usize) -> &'a [u32],
    want: Want,
) -> Vec<Slice<'a>> {
    sequences
        .iter_mut()
        .enumerate()
        .map(|(number, sequence)| Slice {
            sequence,
            tokens: tokens(number),
            want,
        })
        .collect()
}

/// What a test took.
pub struct Run {
    pub seconds: f64,
    sampling: f64, // seconds, as the profile measured only if asked to
    profile: Profile,
}

impl Run {
    /// Milliseconds per token by part, as a row of the table and as JSON. The parts add up to the whole:
    /// the last one is what lies between the passes.
    pub fn describe(&self, test: &Test, threads: usize, kernel: &str, table: &mut Table) -> Value {
        let per_token = |seconds: f64| 1e3 * seconds / test.tokens() as f64;
        let whole = per_token(self.seconds);
        let mut parts: Vec<(&str, f64)> = Part::ALL
            .iter()
            .map(|part| (part.name(), self.profile.time(*part).as_secs_f64()))
            .chain([("sampling", self.sampling)])
            .map(|(name, seconds)| (name, per_token(seconds)))
            .collect();
        let known: f64 = parts.iter().map(|(_, ms)| ms).sum();
        parts.push(("other", whole - known));
        for (name, ms) in &parts {
            table.row([
                test.name(),
                threads.to_string(),
                kernel.to_owned(),
                (*name).to_owned(),
                fixed(*ms, 3),
                percent(ms / whole, 1),
            ]);
        }
        parts
            .into_iter()
            .map(|(name, ms)| (name.to_owned(), json!(ms)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_counted() {
        let test = |kind, depth, sequences| Test {
            kind,
            sequences,
            head: HeadArg::Auto,
            n: 4,
            depth,
        };
        let bytes = |test: Test| test.bytes_per_token(1000, 200, 10);
        // positions read: 1, 2, 3, 4; written: 1 each
        let keys = 10.0 * (1.0 + 2.0 + 3.0 + 4.0) / 4.0 + 10.0;
        assert_eq!(bytes(test(Kind::Generate, 0, 1)), Some(1200.0 + keys));
        assert_eq!(bytes(test(Kind::Generate, 7, 1)), Some(1270.0 + keys));
        // four sequences share what a step reads once
        assert_eq!(bytes(test(Kind::Generate, 0, 4)), Some(450.0 + keys));
        assert_eq!(bytes(test(Kind::Prompt, 0, 1)), None);
        assert_eq!(test(Kind::Generate, 7, 4).name(), "tg4 @ d7 x4");
        assert_eq!(test(Kind::Prompt, 0, 1).name(), "pp4");
    }
}
