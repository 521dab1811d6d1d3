//! `bitnet-run MODEL`: a prompt, continued.
//!
//! Invariant: with token ids given, no tokenizer is touched and exactly `-n` tokens come out; with
//! text, generation ends at a stop token of the model, in front of a `--stop` string or after `-n` tokens.

use crate::args::Generate;
use crate::chat::AnswerView;
use crate::form::Form;
use crate::sampling::Drawing;
use crate::{chat, open, prompts, speculate};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, GlobalArgs};
use bitnet_model::{
    Generated, Generation, LogitOptions, Model, Sampler, Speculation, Stopped, TextStream,
};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::time::Instant;

pub fn run(
    args: &Generate,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let Some(path) = &args.model else {
        return Err(Failure::usage("no model given"));
    };
    let is_open_chat = args.chat && !args.has_prompt();
    if is_open_chat {
        if console.is_json() {
            return Err(Failure::usage("--json needs a prompt").hint("give one: -p TEXT"));
        }
    } else if !args.has_prompt() && args.tokens.is_none() {
        return Err(Failure::usage("no prompt given").hint(
            "give a text with -p TEXT, token ids with --tokens 1,2,3, or start a chat with --chat",
        ));
    }
    let sampler = sampler(args);
    // a prompt or a schema that cannot be read is refused before the model is
    let prompt = prompt(args)?;
    let form = Form::of(args)?;
    let started = Instant::now();
    let loaded = open::predictor(path, &args.compute, global.thread_count())?;
    let load_seconds = started.elapsed().as_secs_f64();
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;

    let tokenizer = if args.tokens.is_some() {
        None
    } else {
        Some(open::tokenizer(&checkpoint)?)
    };
    let stop_tokens = open::stop_tokens(args, &model, tokenizer.as_ref());
    let rule = match (form, &tokenizer) {
        (Some(form), Some(tokenizer)) => Some(form.rule(&model, tokenizer, &stop_tokens)?),
        _ => None,
    };
    if let (true, Some(tokenizer)) = (is_open_chat, &tokenizer) {
        let setup = chat::Setup {
            args,
            model: &model,
            tokenizer,
            sampler,
            logits: logit_options(args),
            rule,
            other_command: None,
        };
        return chat::interactive(setup, console);
    }
    let mut reasoning = None;
    let ids = match (&args.tokens, &prompt, &tokenizer) {
        (Some(ids), _, _) => ids.clone(),
        (None, Some(text), Some(tokenizer)) if args.chat => {
            let prompt = chat::first_turn(tokenizer, args, text)?;
            reasoning = prompt.reasoning;
            prompt.ids
        }
        (None, Some(text), Some(tokenizer)) => {
            if tokenizer.chat_template().is_some() {
                console.note("the text is continued; pass --chat for an answer, this model has a chat template")?;
            }
            tokenizer.encode(text, true)?
        }
        _ => Vec::new(),
    };
    if ids.is_empty() {
        return Err(Failure::new(
            ErrorCode::Tokenizer,
            "the prompt has no tokens, and this model has no token to begin with",
        )
        .hint("give a text that is not empty: -p TEXT"));
    }
    let context = context(&model, ids.len(), args.max_new_tokens, args.ctx)?;
    let draft = speculate::draft(args, &model, tokenizer.as_ref())?;
    let generation = Generation::new(&model, context, sampler, stop_tokens)?
        .with_logit_options(logit_options(args));
    let mut generation = speculate::speculating(generation, args, draft.as_ref())?;
    let rule = rule.map(|rule| rule.begin(reasoning == Some(true)));
    generation.constrain(rule.transpose()?);
    let mut view = AnswerView::new(reasoning, args.thoughts, console);
    let live = (args.stream || view.splits() || console.writes_to_terminal()) && !console.is_json();
    // a full context ends a text like -n does
    let most = args.max_new_tokens.min(context + 1 - ids.len());
    let mut text = String::new();
    let generated = match &tokenizer {
        Some(tokenizer) => {
            let mut stream = TextStream::new(tokenizer, &args.stop);
            if args.chat {
                stream = stream.keeping(&chat::tags(tokenizer));
            }
            generation.run_text::<Failure>(stream, &ids, most, |piece| {
                if live {
                    view.push(piece, console)?;
                }
                text.push_str(piece);
                Ok(())
            })?
        }
        None => generation.run::<Failure>(&ids, most, |token| {
            if live {
                console.line(token)?;
            }
            Ok(ControlFlow::Continue(()))
        })?,
    };
    checkpoint.check_inputs()?;
    if let Some(draft) = &draft {
        draft.checkpoint.check_inputs()?;
    }
    match (&tokenizer, live) {
        (Some(_), true) => {
            view.finish(console)?;
            // notes follow on the other stream
            console.text("\n")?;
        }
        (Some(_), false) => {
            view.push(&text, console)?;
            view.finish(console)?;
            // notes follow on the other stream
            console.text("\n")?;
        }
        (None, true) => {}
        (None, false) => {
            console.line(
                generated
                    .tokens
                    .iter()
                    .map(u32::to_string)
                    .collect::<Vec<_>>()
                    .join(","),
            )?;
        }
    }
    if tokenizer.is_some() && generated.stopped == Stopped::Length {
        console.aside(chat::stopped_after(generated.tokens.len(), "-n"))?;
    }
    console.note(format!(
        "{} prompt tokens in {:.2} s, {} new in {:.2} s ({:.1} tokens/s)",
        ids.len(),
        generated.prompt_time.as_secs_f64(),
        generated.tokens.len(),
        generated.decode_time.as_secs_f64(),
        generated.tokens_per_second()
    ))?;
    let facts = Facts {
        model: &model,
        mode: speculate::mode(args),
        threads: global.thread_count(),
        load_seconds,
        prompt: &ids,
        generated: &generated,
        text: tokenizer.is_some().then_some(text.as_str()),
    };
    console.json(&facts.to_json())?;
    Ok(ExitStatus::Done)
}

/// What a report says of a text.
pub struct Facts<'a> {
    pub model: &'a Model,
    pub mode: Speculation,
    pub threads: usize,
    pub load_seconds: f64,
    pub prompt: &'a [u32],
    pub generated: &'a Generated,
    pub text: Option<&'a str>,
}

impl Facts<'_> {
    /// The object that `--json` prints.
    pub fn to_json(&self) -> Value {
        let generated = self.generated;
        json!({
            "status": "generated",
            "prompt_tokens": self.prompt,
            "tokens": generated.tokens,
            "text": self.text,
            "stopped": generated.stopped.as_str(),
            "kernel": self.model.backend().name(),
            "threads": self.threads,
            "load_seconds": self.load_seconds,
            "prompt_seconds": generated.prompt_time.as_secs_f64(),
            "decode_seconds": generated.decode_time.as_secs_f64(),
            "tokens_per_second": generated.tokens_per_second(),
            "speculation": {
                "mode": self.mode.as_str(),
                "drafted": generated.speculated.drafted,
                "accepted": generated.speculated.accepted,
                "steps": generated.speculated.steps,
            },
        })
    }
}

/// The text that the flags give.
fn prompt(args: &Generate) -> Result<Option<String>, Failure> {
    match (&args.prompt, &args.text, &args.file) {
        (Some(prompt), ..) => prompts::text(prompt).map(Some),
        (_, Some(text), _) => Ok(Some(text.clone())),
        (.., Some(file)) => prompts::file(file).map(Some),
        _ => Ok(None),
    }
}

/// Greedy unless a sampling flag was given.
fn sampler(args: &Generate) -> Sampler {
    Drawing {
        temperature: args.temp,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.seed,
    }
    .sampler()
}

/// Penalties, which change nothing unless they are given.
pub fn logit_options(args: &Generate) -> LogitOptions {
    let defaults = LogitOptions::default();
    LogitOptions {
        repetition_penalty: args
            .repetition_penalty
            .unwrap_or(defaults.repetition_penalty),
        presence_penalty: args.presence_penalty.unwrap_or(defaults.presence_penalty),
        frequency_penalty: args.frequency_penalty.unwrap_or(defaults.frequency_penalty),
        bias: Vec::new(),
    }
}

/// The context that was asked for, or what this run needs, up to what the model was made for.
///
/// # Errors
/// `context-exceeded` for more than the model was made for, and for a prompt that does not fit.
pub fn context(
    model: &Model,
    prompt: usize,
    max_new_tokens: usize,
    asked: Option<usize>,
) -> Result<usize, Failure> {
    let most = model.config().max_position_embeddings;
    // the last new token is never fed back
    let needed = prompt
        .saturating_add(max_new_tokens)
        .saturating_sub(1)
        .max(prompt);
    let context = asked.unwrap_or(needed.min(most));
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
