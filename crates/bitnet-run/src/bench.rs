//! `bitnet-run bench`: speed, beside what this machine can read.
//!
//! Invariant: no bare numbers. Every row stands beside the read bandwidth measured in the same run,
//! with the same threads, between its own repetitions.

use crate::args::Bench as BenchArgs;
use crate::open;
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, GlobalArgs, Table};
use bitnet_model::{Logits, Model, Sampler};
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
        .unwrap_or(0);
    let most = model.config().max_position_embeddings;
    if longest > most {
        return Err(Failure::new(
            ErrorCode::ContextExceeded,
            format!("expected lengths up to {most} tokens, found {longest}"),
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
    let mut rows: Vec<Value> = Vec::new();
    let mut bandwidth_of_most_threads = 0.0;
    for &threads in &threads {
        let pool = open::pool(threads)?;
        let prompts = args.prompt.iter().map(|&n| (Test::Prompt, n));
        let generated = args.new_tokens.iter().map(|&n| (Test::Generate, n));
        for (test, n) in prompts.chain(generated).filter(|&(_, n)| n > 0) {
            let (mut speeds, mut bandwidths) = (Vec::new(), Vec::new());
            // the first, not counted, warms caches and the pool
            for repetition in 0..=args.repetitions.get() {
                let bandwidth = pool.install(|| probe.measure());
                let seconds = pool.install(|| test.run(&model, n))?;
                if repetition > 0 {
                    bandwidths.push(bandwidth);
                    speeds.push(n as f64 / seconds);
                }
            }
            let bandwidth = median(&mut bandwidths);
            let speed = median(&mut speeds);
            // bytes of weights streamed: once per token when generating; prompts reuse them
            let gb_s = match test {
                Test::Generate => speed * model.bytes_per_token() as f64 / 1e9,
                Test::Prompt => 0.0,
            };
            let (min, max) = (speeds[0], speeds[speeds.len() - 1]);
            let name = format!("{}{n}", test.prefix());
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
            rows.push(json!({
                "test": name, "threads": threads, "kernel": model.backend().name(), "tokens_per_s": speed,
                "median": speed, "min": min, "max": max, "gb_s": gb_s, "bandwidth_share": share,
                "read_bandwidth_gb_s": bandwidth,
            }));
        }
    }
    console.line(&table)?;
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
enum Test {
    Prompt,
    Generate,
}

impl Test {
    fn prefix(self) -> &'static str {
        match self {
            Self::Prompt => "pp",
            Self::Generate => "tg",
        }
    }

    /// Seconds for `n` tokens of an empty context.
    fn run(self, model: &Model, n: usize) -> Result<f64, Failure> {
        let vocab = model.config().vocab_size as u32;
        let mut session = model.session(n)?;
        match self {
            Self::Prompt => {
                // ids spread over the vocabulary; which ones does not matter for the time
                let ids: Vec<u32> = (0..n as u32)
                    .map(|i| i.wrapping_mul(2_654_435_761) % vocab)
                    .collect();
                let started = Instant::now();
                black_box(model.forward(&mut session, &ids, Logits::Last)?);
                Ok(started.elapsed().as_secs_f64())
            }
            Self::Generate => {
                let mut sampler = Sampler::greedy();
                let mut token = model.config().bos_token_id.unwrap_or(0).min(vocab - 1);
                let started = Instant::now();
                for _ in 0..n {
                    let top = model.forward_top_k(&mut session, &[token], 1)?;
                    token = sampler.sample_top(&top);
                }
                Ok(started.elapsed().as_secs_f64())
            }
        }
    }
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
