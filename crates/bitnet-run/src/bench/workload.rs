//! What `bitnet-run bench` runs: prompts and generated texts, in an empty context or behind others.
//!
//! Invariant: the clock runs only while tokens of the test are computed; tokens before them are read
//! outside of it.

use crate::args::HeadArg;
use bitnet_cli::{Failure, Table};
use bitnet_model::{Logits, Model, Part, Profile, Sampler, Session};
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

/// `n` tokens behind `depth` others.
#[derive(Debug, Clone, Copy)]
pub struct Test {
    pub kind: Kind,
    /// How the likeliest token is found; prompts compute all logits of their last token.
    pub head: HeadArg,
    pub n: usize,
    pub depth: usize,
}

/// The tokens that a test finds, read once for all tests.
pub struct Context<'a> {
    pub model: &'a Model,
    depth: usize,
    session: Option<Session>,
}

impl<'a> Context<'a> {
    pub fn new(model: &'a Model, depth: usize) -> Self {
        Self {
            model,
            depth,
            session: None,
        }
    }

    /// A session of `depth` tokens. Without any it is a new one, as the first prompt of a user has: then
    /// its memory is part of the time.
    fn session(&mut self) -> Result<&mut Session, Failure> {
        let session = match self.session.take() {
            Some(mut session) if self.depth > 0 => {
                session.truncate(self.depth);
                session
            }
            _ => {
                let most = self.model.config().max_position_embeddings;
                let mut session = self.model.session(most)?;
                let ids = ids(self.model, self.depth);
                self.model.forward(&mut session, &ids, Logits::None)?;
                session
            }
        };
        Ok(self.session.insert(session))
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
    /// `pp512`, `tg128`, `tg128 @ d1024`.
    pub fn name(&self) -> String {
        let prefix = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generate => "tg",
        };
        match self.depth {
            0 => format!("{prefix}{}", self.n),
            depth => format!("{prefix}{} @ d{depth}", self.n),
        }
    }

    /// Bytes of memory that a token needs on average, if it is generated: the weights once, the keys and
    /// values of the positions before it, and its own, written and read. Prompts reuse what they read.
    pub fn bytes_per_token(&self, weights: usize, position: usize) -> Option<f64> {
        match self.kind {
            Kind::Prompt => None,
            Kind::Generate => {
                let positions = self.depth as f64 + (self.n as f64 + 3.0) / 2.0;
                Some(weights as f64 + position as f64 * positions)
            }
        }
    }

    /// Runs it once.
    pub fn run(&self, context: &mut Context<'_>, profiled: bool) -> Result<Run, Failure> {
        let model = context.model;
        let session = context.session()?;
        if profiled {
            session.begin_profile();
        }
        let mut sampling = 0.0;
        let started = Instant::now();
        match self.kind {
            Kind::Prompt => {
                let ids = ids(model, self.n);
                black_box(model.forward(session, &ids, Logits::Last)?);
            }
            Kind::Generate => {
                let mut sampler = Sampler::greedy();
                let last = model.config().vocab_size as u32 - 1;
                let mut token = model.config().bos_token_id.unwrap_or(0).min(last);
                for _ in 0..self.n {
                    let sampled;
                    token = match self.head {
                        HeadArg::Auto => {
                            let top = model.forward_top_k(session, &[token], 1)?;
                            sampled = profiled.then(Instant::now);
                            sampler.sample_top(&top)
                        }
                        HeadArg::Full => {
                            let logits = model.forward(session, &[token], Logits::Last)?;
                            sampled = profiled.then(Instant::now);
                            sampler.sample(&logits)
                        }
                    };
                    sampling += sampled.map_or(0.0, |at| at.elapsed().as_secs_f64());
                }
            }
        }
        Ok(Run {
            seconds: started.elapsed().as_secs_f64(),
            sampling,
            profile: session.end_profile(),
        })
    }
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
        let per_token = |seconds: f64| 1e3 * seconds / test.n as f64;
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
                format!("{ms:.3}"),
                format!("{:.1} %", 100.0 * ms / whole),
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
        let head = HeadArg::Auto;
        let test = |kind, depth| Test {
            kind,
            head,
            n: 4,
            depth,
        };
        let bytes = |test: Test| test.bytes_per_token(1000, 10);
        // positions read: 1, 2, 3, 4; written: 1 each
        let expected = 1000.0 + 10.0 * (1.0 + 2.0 + 3.0 + 4.0) / 4.0 + 10.0;
        assert_eq!(bytes(test(Kind::Generate, 0)), Some(expected));
        assert_eq!(bytes(test(Kind::Generate, 7)), Some(expected + 70.0));
        assert_eq!(bytes(test(Kind::Prompt, 0)), None);
    }
}
