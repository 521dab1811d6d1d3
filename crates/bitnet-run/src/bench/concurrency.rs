//! Requests at once, through the scheduler of the server.
//!
//! Invariant: all requests of a row begin together, have prompts that share no beginning and answers of the same length; the
//! prefix cache is off. What is measured is the engine: there is no network.

use super::Spread;
use crate::args::Bench;
use crate::open;
use bitnet_cli::{Console, ExitStatus, Failure, GlobalArgs, Table};
use bitnet_formats::ErrorCode;
use bitnet_serve::{Continuation, Engine, EngineOptions, Event, Events, Generate};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// The shortest time that tokens per second are computed of: events of less are taken together.
const LEAST_SECONDS: f64 = 0.01;

struct Row {
    concurrency: usize,
    aggregate: Spread, // new tokens/s of all requests, prompts included in the time
    decode: Spread,    // new tokens/s of all requests behind the last first token
    first: Spread,     // seconds to the first token, the mean of the requests
}

/// What one run gave.
struct Run {
    aggregate: f64,
    decode: Option<f64>,
    first: f64,
}

pub fn run(
    args: &Bench,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let prompt = args.prompt.first().copied().unwrap_or(512).max(1);
    let new = args.new_tokens.first().copied().unwrap_or(128).max(1);
    if args.thread_counts.len() > 1 {
        let message = "--concurrency: expected one number of threads, found several";
        return Err(
            Failure::usage(message).hint("give one -t, and run the command again for the next")
        );
    }
    let threads = args.thread_counts.first();
    let threads = threads.map_or_else(|| global.thread_count(), |threads| threads.get());
    let loaded = open::model(&args.model.model, &args.model.compute, threads)?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;
    let most = model.config().max_position_embeddings;
    let context = prompt.checked_add(new).filter(|tokens| *tokens <= most);
    let context = context.ok_or_else(|| {
        let message = format!(
            "expected at most {most} tokens of prompt and answer, found {prompt} and {new}"
        );
        Failure::new(ErrorCode::ContextExceeded, message).hint("set smaller -p and -n")
    })?;
    let (model, tokenizer) = (Arc::new(model), Arc::new(open::tokenizer(&checkpoint)?));
    let mut rows = Vec::new();
    for concurrency in &args.concurrency {
        let concurrency = concurrency.get();
        let options = EngineOptions {
            parallel: concurrency,
            context: Some(context),
            prefix_cache: false,
            ..EngineOptions::default()
        };
        let engine = Engine::start(Arc::clone(&model), Arc::clone(&tokenizer), options)?;
        let mut runs = Vec::new();
        // the first, not counted, warms caches and threads
        for repetition in 0..=args.repetitions.get() {
            let run = measure(&engine, concurrency, prompt, new)?;
            if repetition > 0 {
                runs.push(run);
            }
        }
        rows.push(Row {
            concurrency,
            aggregate: Spread::of(runs.iter().map(|run| run.aggregate).collect()),
            decode: Spread::of(runs.iter().filter_map(|run| run.decode).collect()),
            first: Spread::of(runs.iter().map(|run| run.first).collect()),
        });
    }
    checkpoint.check_inputs()?;
    let mut table = Table::new(&[
        ">concurrency",
        ">tok/s",
        ">min",
        ">max",
        ">decode tok/s",
        ">first token s",
    ]);
    for row in &rows {
        table.row([
            row.concurrency.to_string(),
            format!("{:.2}", row.aggregate.median),
            format!("{:.2}", row.aggregate.min),
            format!("{:.2}", row.aggregate.max),
            format!("{:.2}", row.decode.median),
            format!("{:.3}", row.first.median),
        ]);
    }
    console.line(table)?;
    console.json(&json!({
        "status": "measured",
        "model": checkpoint.path,
        "cpu": bitnet_kernels::cpu_model(),
        "kernel": model.backend().name(),
        "threads": threads,
        "prompt_tokens": prompt,
        "new_tokens": new,
        "rows": rows.iter().map(|row| row.json(prompt, new)).collect::<Vec<_>>(),
    }))?;
    Ok(ExitStatus::Done)
}

impl Row {
    fn json(&self, prompt: usize, new: usize) -> Value {
        json!({
            "test": format!("serve pp{prompt} tg{new}"),
            "concurrency": self.concurrency,
            "tokens_per_s": self.aggregate.median,
            "median": self.aggregate.median,
            "min": self.aggregate.min,
            "max": self.aggregate.max,
            "decode_tokens_per_s": self.decode.median,
            "first_token_s": self.first.median,
        })
    }
}

/// One run of so many requests at once.
fn measure(engine: &Engine, requests: usize, prompt: usize, new: usize) -> Result<Run, Failure> {
    let vocab = engine.model().config().vocab_size;
    let started = Instant::now();
    let mut running = Vec::new();
    for number in 0..requests {
        let token = |at: usize| ((number * 7919 + at * 131 + at * at * 17 + 1) % vocab) as u32;
        let tokens: Arc<[u32]> = (0..prompt).map(token).collect();
        running.push(engine.generate(Generate {
            client: 0,
            prompts: vec![tokens],
            choices: 1,
            how: Continuation {
                sampler: None,
                logits: Default::default(),
                most: new,
                stops: Vec::new(),
                stop_tokens: Vec::new(),
                kept: Vec::new(),
                logprobs: None,
                echo: false,
                constraint: None,
            },
        })?);
    }
    // a thread each: when a token comes is when its event is taken
    let times: Vec<Result<Vec<f64>, Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> = running
            .into_iter()
            .map(|events| scope.spawn(move || follow(events, started)))
            .collect();
        let joined = threads.into_iter().map(|thread| thread.join());
        joined
            .map(|result| result.unwrap_or_else(|_| Err(Failure::usage("a thread ended early"))))
            .collect()
    });
    let times: Vec<Vec<f64>> = times.into_iter().collect::<Result<_, _>>()?;
    let all = || times.iter().flatten().copied();
    let firsts = || times.iter().filter_map(|times| times.first().copied());
    let (last, last_first) = (all().fold(0.0, f64::max), firsts().fold(0.0, f64::max));
    let behind = all().filter(|time| *time > last_first).count();
    Ok(Run {
        aggregate: all().count() as f64 / last,
        decode: (last - last_first >= LEAST_SECONDS).then(|| behind as f64 / (last - last_first)),
        first: firsts().sum::<f64>() / requests as f64,
    })
}

/// When each token came.
fn follow(mut events: Events, started: Instant) -> Result<Vec<f64>, Failure> {
    let mut times = Vec::new();
    while let Some(event) = events.wait() {
        match event {
            Event::Token { .. } => times.push(started.elapsed().as_secs_f64()),
            Event::Failed(error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(times)
}
