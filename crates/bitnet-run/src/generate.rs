//! `bitnet-run MODEL`: a prompt, continued.
//!
//! Invariant: with token ids given, no tokenizer is touched and exactly `-n` tokens come out; with
//! text, generation ends at a stop token of the model or after `-n` tokens.

use crate::args::Generate;
use crate::{chat, open, prompts};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, GlobalArgs};
use bitnet_model::{Logits, Model, Sampler, SamplerOptions, Session};
use bitnet_text::Tokenizer;
use serde_json::json;
use std::time::Instant;

pub fn run(
    args: &Generate,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let Some(path) = &args.model else {
        return Err(Failure::usage("no model given"));
    };
    if args.chat && args.prompt.is_none() {
        if console.is_json() {
            return Err(Failure::usage("--json needs a prompt").hint("give one: -p TEXT"));
        }
    } else if args.prompt.is_none() && args.tokens.is_none() {
        return Err(Failure::usage("no prompt given").hint(
            "give a text with -p TEXT, token ids with --tokens 1,2,3, or start a chat with --chat",
        ));
    }
    let sampler = sampler(args)?;
    // a prompt that cannot be read is refused before the model is
    let prompt = args.prompt.as_deref().map(prompts::text).transpose()?;
    let pool = open::pool(global.thread_count())?;
    let started = Instant::now();
    let model = pool.install(|| open::predictor(path, &args.compute))?;
    let load_seconds = started.elapsed().as_secs_f64();
    open::announce(console, &model, global)?;
    if args.chat && args.prompt.is_none() {
        return chat::interactive(args, &model, &pool, sampler, console);
    }

    let tokenizer = if args.tokens.is_some() {
        None
    } else {
        Some(open::tokenizer(model.checkpoint())?)
    };
    let ids = match (&args.tokens, &prompt, &tokenizer) {
        (Some(ids), _, _) => ids.clone(),
        (None, Some(text), Some(tokenizer)) if args.chat => {
            chat::first_turn(tokenizer, args.system.as_deref(), text)?
        }
        (None, Some(text), Some(tokenizer)) => tokenizer.encode(text, true)?,
        _ => Vec::new(),
    };
    if ids.is_empty() {
        return Err(Failure::new(
            ErrorCode::Tokenizer,
            "the prompt has no tokens, and this model has no token to begin with",
        )
        .hint("give a text that is not empty: -p TEXT"));
    }
    let mut generation = Generation {
        model: &model,
        session: model.session(context(args, &model, ids.len())?)?,
        sampler,
        stop: stop_tokens(&model, tokenizer.as_ref(), args.ignore_eos),
    };
    let live = args.stream && !console.is_json();
    let mut text = String::new();
    let mut decoder = tokenizer.as_ref().map(Tokenizer::stream);
    let outcome = generation.run(&pool, &ids, args.max_new_tokens, |token| {
        if let Some(decoder) = &mut decoder {
            let piece = decoder.push(token)?;
            if live {
                console.text(&piece)?;
            }
            text.push_str(&piece);
        } else if live {
            console.line(token)?;
        }
        Ok(())
    })?;
    if let Some(decoder) = decoder {
        let rest = decoder.finish()?;
        if live {
            console.text(&rest)?;
        }
        text.push_str(&rest);
    }
    match (&tokenizer, live) {
        (Some(_), true) => console.line("")?,
        (Some(_), false) => console.line(&text)?,
        (None, true) => {}
        (None, false) => {
            console.line(
                outcome
                    .tokens
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
            )?;
        }
    }
    model.checkpoint().check_inputs()?;
    console.note(format!(
        "{} prompt tokens in {:.2} s, {} new in {:.2} s ({:.1} tokens/s)",
        ids.len(),
        outcome.prompt_seconds,
        outcome.tokens.len(),
        outcome.decode_seconds,
        outcome.tokens_per_second()
    ))?;
    console.json(&json!({
        "status": "generated",
        "prompt_tokens": ids,
        "tokens": outcome.tokens,
        "text": tokenizer.is_some().then_some(text),
        "stopped": if outcome.stopped { "stop-token" } else { "length" },
        "kernel": model.backend().name(),
        "threads": global.thread_count(),
        "load_seconds": load_seconds,
        "prompt_seconds": outcome.prompt_seconds,
        "decode_seconds": outcome.decode_seconds,
        "tokens_per_second": outcome.tokens_per_second(),
    }))?;
    Ok(ExitStatus::Done)
}

/// Greedy unless a sampling flag was given.
fn sampler(args: &Generate) -> Result<Sampler, Failure> {
    let sampled = args.temp.is_some()
        || args.top_k.is_some()
        || args.top_p.is_some()
        || args.min_p.is_some()
        || args.seed.is_some();
    if !sampled {
        return Ok(Sampler::greedy());
    }
    let defaults = SamplerOptions::default();
    let options = SamplerOptions {
        temperature: args.temp.unwrap_or(defaults.temperature),
        top_k: args.top_k.unwrap_or(defaults.top_k),
        top_p: args.top_p.unwrap_or(defaults.top_p),
        min_p: args.min_p.unwrap_or(defaults.min_p),
        seed: args.seed.unwrap_or(defaults.seed),
    };
    Ok(Sampler::new(options))
}

/// `--ctx`, or what this run needs, up to what the model was made for.
fn context(args: &Generate, model: &Model, prompt: usize) -> Result<usize, Failure> {
    let most = model.config().max_position_embeddings;
    // the last new token is never fed back
    let needed = prompt
        .saturating_add(args.max_new_tokens)
        .saturating_sub(1)
        .max(prompt);
    let context = args.ctx.unwrap_or(needed.min(most));
    if context > most {
        return Err(Failure::new(
            ErrorCode::ContextExceeded,
            format!("--ctx {context}: the model was made for at most {most} tokens"),
        ));
    }
    if prompt > context {
        return Err(Failure::new(
            ErrorCode::ContextExceeded,
            format!("a prompt of {prompt} tokens does not fit a context of {context}"),
        ));
    }
    Ok(context)
}

/// Tokens that end a text; none for raw token ids.
pub fn stop_tokens(model: &Model, tokenizer: Option<&Tokenizer>, ignore: bool) -> Vec<u32> {
    match tokenizer {
        Some(tokenizer) if !ignore => {
            let mut stop = model.config().eos_token_ids.clone();
            stop.extend_from_slice(tokenizer.stop_tokens());
            stop
        }
        _ => Vec::new(),
    }
}

/// A model in the middle of a text.
pub struct Generation<'m> {
    pub model: &'m Model,
    pub session: Session,
    pub sampler: Sampler,
    pub stop: Vec<u32>,
}

/// What came out, and how long it took.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tokens: Vec<u32>,
    pub stopped: bool,
    /// Prompt to first token.
    pub prompt_seconds: f64,
    /// First token to last.
    pub decode_seconds: f64,
}

impl Outcome {
    /// Tokens after the first, by the time they took.
    pub fn tokens_per_second(&self) -> f64 {
        if self.decode_seconds > 0.0 {
            self.tokens.len().saturating_sub(1) as f64 / self.decode_seconds
        } else {
            0.0
        }
    }
}

impl Generation<'_> {
    /// Feeds `ids` and draws the next token: from the largest logits alone where the sampler needs no
    /// others, which reads half of the head.
    fn next(&mut self, ids: &[u32]) -> Result<u32, Failure> {
        Ok(match self.sampler.top_k() {
            Some(k) => {
                let top = self.model.forward_top_k(&mut self.session, ids, k)?;
                self.sampler.sample_top(&top)
            }
            None => {
                let logits = self.model.forward(&mut self.session, ids, Logits::Last)?;
                self.sampler.sample(&logits)
            }
        })
    }

    /// Feeds `ids`, then makes up to `most` tokens; `each` sees every one but the stop token.
    pub fn run(
        &mut self,
        pool: &rayon::ThreadPool,
        ids: &[u32],
        most: usize,
        mut each: impl FnMut(u32) -> Result<(), Failure>,
    ) -> Result<Outcome, Failure> {
        let mut outcome = Outcome::default();
        if most == 0 {
            return Ok(outcome);
        }
        let started = Instant::now();
        let mut first = None;
        let mut fed = ids;
        let mut last;
        loop {
            let token = pool.install(|| self.next(fed))?;
            outcome.prompt_seconds = first.get_or_insert_with(|| started.elapsed()).as_secs_f64();
            if self.stop.contains(&token) {
                outcome.stopped = true;
                break;
            }
            outcome.tokens.push(token);
            each(token)?;
            if outcome.tokens.len() == most {
                break;
            }
            last = [token];
            fed = &last;
        }
        outcome.decode_seconds = started.elapsed().as_secs_f64() - outcome.prompt_seconds;
        Ok(outcome)
    }
}
