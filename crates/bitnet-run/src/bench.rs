//! `bitnet-run bench`: speed, beside what this machine can read.
//!
//! Invariant: no bare numbers. Every row stands beside the read bandwidth measured in the same run,
//! with the same threads, between its own repetitions. A profile is a run of its own.

use crate::args::Bench as BenchArgs;
use crate::open;
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, GlobalArgs, Table};
use bitnet_model::{Logits, Model, Part, Profile, Sampler, Session};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

/// Bytes of the stream probe: beyond every cache of one socket's share.
const PROBE_BYTES: usize = 1 << 30;

pub fn run(
    args: &BenchArgs,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let threads: Vec<usize> = if args.thread_counts.is_empty() {
        vec![global.thread_count()]
    } else {
        args.thread_counts.iter().map(|t| t.get()).collect()
    };
    let pool = open::pool(threads.iter().copied().max().unwrap_or(1))?;
    let model = pool.install(|| open::model(&args.model.model, &args.model.compute))?;
    drop(pool);
    let longest = args
        .prompt
        .iter()
        .chain(&args.new_tokens)
        .copied()
        .max()
        .unwrap_or(0)
        + args.depth.iter().copied().max().unwrap_or(0);
    let most = model.config().max_position_embeddings;
    if longest > most {
        return Err(Failure::new(
            ErrorCode::ContextExceeded,
            format!(
                "expected lengths up to {most} tokens, found {longest} with the context before them"
            ),
        ));
    }
    let probe = Probe::new();
    let mut table = Table::new(&[
        "test",
        ">threads",
        "kernel",
        ">tok/s",
        ">min",
        ">max",
        ">GB/s",
        ">probe GB/s",
        ">share",
    ]);
    let mut parts = profile_table();
    let mut rows: Vec<Value> = Vec::new();
    let mut bandwidth_of_most_threads = 0.0;
    for (&depth, &threads) in args
        .depth
        .iter()
        .flat_map(|depth| threads.iter().map(move |threads| (depth, threads)))
    {
        let pool = open::pool(threads)?;
        let prompts = args.prompt.iter().map(|&n| (Kind::Prompt, n));
        let generated = args.new_tokens.iter().map(|&n| (Kind::Generate, n));
        let tests = prompts.chain(generated).filter(|&(_, n)| n > 0);
        let mut context = Context::new(&model, depth);
        for (kind, n) in tests {
            let test = Test { kind, n, depth };
            let (mut speeds, mut bandwidths) = (Vec::new(), Vec::new());
            // the first, not counted, warms caches and the pool
            for repetition in 0..=args.repetitions.get() {
                let bandwidth = pool.install(|| probe.measure());
                let run = pool.install(|| test.run(&mut context, false))?;
                if repetition > 0 {
                    bandwidths.push(bandwidth);
                    speeds.push(n as f64 / run.seconds);
                }
            }
            let bandwidth = median(&mut bandwidths);
            let speed = median(&mut speeds);
            // bytes of weights streamed: once per token when generating; prompts reuse them
            let gb_s = match kind {
                Kind::Generate => speed * model.bytes_per_token() as f64 / 1e9,
                Kind::Prompt => 0.0,
            };
            let (min, max) = (speeds[0], speeds[speeds.len() - 1]);
            let name = test.name();
            let share = gb_s / bandwidth;
            table.row([
                name.clone(),
                threads.to_string(),
                model.backend().name().to_owned(),
                format!("{speed:.2}"),
                format!("{min:.2}"),
                format!("{max:.2}"),
                if gb_s > 0.0 {
                    format!("{gb_s:.1}")
                } else {
                    "-".to_owned()
                },
                format!("{bandwidth:.1}"),
                if gb_s > 0.0 {
                    format!("{:.0} %", share * 100.0)
                } else {
                    "-".to_owned()
                },
            ]);
            bandwidth_of_most_threads = bandwidth;
            let mut row = json!({
                "test": name, "threads": threads, "kernel": model.backend().name(), "tokens_per_s": speed,
                "median": speed, "min": min, "max": max, "gb_s": gb_s, "bandwidth_share": share,
                "read_bandwidth_gb_s": bandwidth, "depth": depth,
            });
            if args.profile {
                // in a run of its own: the figures above are without the clock
                let run = pool.install(|| test.run(&mut context, true))?;
                row["profile_ms_per_token"] = run.describe(&test, threads, &mut parts);
            }
            rows.push(row);
        }
    }
    console.line(&table)?;
    if args.profile {
        console.line("")?;
        console.line(&parts)?;
    }
    let passes = model.head_passes();
    console.note(format!(
        "head: {} tokens screened, {} by the full product",
        passes.screened, passes.full
    ))?;
    console.json(&json!({
        "status": "measured",
        "model": model.checkpoint().path,
        "bytes_per_token": model.bytes_per_token(),
        "read_bandwidth_gb_s": bandwidth_of_most_threads,
        "head": {"screened": passes.screened, "full": passes.full},
        "rows": rows,
    }))?;
    Ok(ExitStatus::Done)
}

/// Sorts; the middle value (of an even count: the mean of the two).
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        _ if n % 2 == 1 => values[n / 2],
        _ => (values[n / 2 - 1] + values[n / 2]) / 2.0,
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Prompt,
    Generate,
}

/// `n` tokens behind `depth` others.
#[derive(Debug, Clone, Copy)]
struct Test {
    kind: Kind,
    n: usize,
    depth: usize,
}

/// The tokens that a test finds, read once for all tests.
struct Context<'a> {
    model: &'a Model,
    depth: usize,
    session: Option<Session>,
}

impl<'a> Context<'a> {
    fn new(model: &'a Model, depth: usize) -> Self {
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
    fn name(&self) -> String {
        let prefix = match self.kind {
            Kind::Prompt => "pp",
            Kind::Generate => "tg",
        };
        match self.depth {
            0 => format!("{prefix}{}", self.n),
            depth => format!("{prefix}{} @ d{depth}", self.n),
        }
    }

    /// Runs it once.
    fn run(&self, context: &mut Context<'_>, profiled: bool) -> Result<Run, Failure> {
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
                    let top = model.forward_top_k(session, &[token], 1)?;
                    let sampled = profiled.then(Instant::now);
                    token = sampler.sample_top(&top);
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
struct Run {
    seconds: f64,
    sampling: f64, // seconds, as the profile measured only if asked to
    profile: Profile,
}

impl Run {
    /// Milliseconds per token by part, as a row of the table and as JSON. The parts add up to the whole:
    /// the last one is what lies between the passes.
    fn describe(&self, test: &Test, threads: usize, table: &mut Table) -> Value {
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

fn profile_table() -> Table {
    Table::new(&["test", ">threads", "part", ">ms/token", ">share"])
}

/// A plain sequential read of memory, by all threads of the pool at once.
struct Probe(Vec<u64>);

impl Probe {
    fn new() -> Self {
        Self((0..PROBE_BYTES as u64 / 8).collect())
    }

    /// GB/s of one pass.
    fn measure(&self) -> f64 {
        let started = Instant::now();
        let part = self.0.len().div_ceil(rayon::current_num_threads());
        let sum: u64 = self
            .0
            .par_chunks(part)
            .map(|words| {
                // eight independent sums: one would wait for itself
                let mut lanes = [0u64; 8];
                for chunk in words.chunks_exact(8) {
                    for (lane, word) in lanes.iter_mut().zip(chunk) {
                        *lane = lane.wrapping_add(*word);
                    }
                }
                lanes.iter().fold(0u64, |a, b| a.wrapping_add(*b))
            })
            .reduce(|| 0, u64::wrapping_add);
        black_box(sum);
        PROBE_BYTES as f64 / started.elapsed().as_secs_f64() / 1e9
    }
}
