//! `bitnet-run bench`: speed, beside what this machine can do.
//!
//! Invariant: no bare numbers. Every row stands beside limits measured in the same run, with the same
//! threads, between its own repetitions: how fast memory is read, which bounds generating, and how fast
//! the kernel's multiply instruction runs, which bounds prompts. A profile is a run of its own. The report names the CPU, its
//! instruction sets, how generated tokens found the likeliest logits, and the tokenizer, which is loaded once for its cost.

mod concurrency;
mod energy;
mod noise;
mod workload;

use crate::args::{Bench as BenchArgs, ComputeArgs, HeadArg, ModelArgs};
use crate::open;
use bitnet_checkpoint::Checkpoint;
use bitnet_cli::{
    Console, ErrorCode, ExitStatus, Failure, GlobalArgs, Table, human_bytes, peak_rss_bytes,
    resident_bytes,
};
use bitnet_kernels::{Backend, MemoryProbe};
use bitnet_model::{HeadPasses, Model};
use energy::Counters;
use noise::Noise;
use serde_json::{Value, json};
use std::time::Instant;
use workload::{Context, Kind, Test};

/// Bytes from which on a model's own memory is what the probe reads: fewer may stay in a cache, and then say
/// nothing of memory.
const LEAST_PROBED: usize = 256 << 20;

/// Bytes of the probe beside a smaller model: beyond every cache of one socket's share.
const PROBE_BYTES: usize = 1 << 30;

pub fn run(
    args: &BenchArgs,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    if !args.concurrency.is_empty() {
        return concurrency::run(args, global, console);
    }
    let threads: Vec<usize> = if args.thread_counts.is_empty() {
        vec![global.thread_count()]
    } else {
        args.thread_counts.iter().map(|t| t.get()).collect()
    };
    // the full product first: from the first filtered head on, there is a copy of the head in memory
    let mut heads = args.head.clone();
    heads.sort_by_key(|head| *head != HeadArg::Full);
    heads.dedup();
    let prompts = args
        .prompt
        .iter()
        .map(|&n| (Kind::Prompt, HeadArg::Full, n, 1));
    let generated = heads.iter().flat_map(|&head| {
        let lengths = args.new_tokens.iter();
        lengths.flat_map(move |&n| {
            let counts = args.sequences.iter();
            counts.map(move |count| (Kind::Generate, head, n, count.get()))
        })
    });
    let tests: Vec<_> = prompts
        .chain(generated)
        .filter(|&(_, _, n, _)| n > 0)
        .collect();
    if tests.is_empty() {
        return Err(
            Failure::usage("expected at least one length above 0, found none").hint(
                "give prompt lengths with -p, generated lengths with -n, for example -p 512 -n 128",
            ),
        );
    }
    let tokenizer =
        TokenizerCost::measure(&open::checkpoint(&args.model.model, &args.model.compute)?);
    let (cpu, features) = (bitnet_kernels::cpu_model(), bitnet_kernels::cpu_features());
    let cpu_name = cpu.as_deref().unwrap_or("unknown CPU");
    console.note(format!("cpu: {cpu_name}; {}", features.join(", ")))?;
    if let Some(cost) = &tokenizer {
        console.note(cost.to_string())?;
    }
    let counters = args.energy.then(|| Counters::open(&args.powercap));
    match &counters {
        Some(Err(why)) => console.warn(format!("energy is not measured: {why}"))?,
        Some(Ok(counters)) => {
            let names: Vec<&str> = counters.names().collect();
            console.note(format!("energy of {}", names.join(", ")))?;
        }
        None => {}
    }
    let usable = counters
        .as_ref()
        .and_then(|counters| counters.as_ref().ok());
    let noise = Noise::start();
    let mut rows: Vec<Row> = Vec::new();
    let mut parts = Table::new(&["test", ">threads", "kernel", "part", ">ms/token", ">share"]);
    let mut passes = HeadPasses::default();
    let mut path = args.model.model.clone();
    let (mut bytes_per_token, mut vocab_size) = (0, 0);
    for kernel in kernels(&args.model)? {
        let compute = ComputeArgs {
            kernel: Some(kernel.name().to_owned()),
            ..args.model.compute.clone()
        };
        let most = threads.iter().copied().max().unwrap_or(1);
        let open::Loaded { checkpoint, model } = open::model(&args.model.model, &compute, most)?;
        check_lengths(&model, args)?;
        for &depth in &args.depth {
            // one for all: it is read once, and its keys and values are memory. Prompts come first, on all
            // threads: from the first generated texts on there is the screen of the head beside them
            let mut context = Context::new(&model, depth);
            for &(kind, head, n, sequences) in &tests {
                let test = Test {
                    kind,
                    sequences,
                    head,
                    n,
                    depth,
                };
                for &threads in &threads {
                    rows.push(measure(
                        test,
                        threads,
                        &mut context,
                        args,
                        usable,
                        &mut parts,
                    )?);
                }
            }
        }
        checkpoint.check_inputs()?;
        path.clone_from(&checkpoint.path);
        bytes_per_token = model.bytes_per_token();
        vocab_size = model.config().vocab_size;
        passes.screened += model.head_passes().screened;
        passes.full += model.head_passes().full;
    }
    console.line(table(&rows))?;
    if usable.is_some() {
        console.line("")?;
        console.line(energy_table(&rows))?;
    }
    if args.profile {
        console.line("")?;
        console.line(&parts)?;
    }
    console.note(format!(
        "head auto: {} tokens by candidates, {} by the full product",
        passes.screened, passes.full
    ))?;
    let spreads = rows.iter().map(|row| row.speed.relative());
    let seen = noise.end(spreads.fold(0.0, f64::max));
    console.note(format!("machine: {}", seen.describe()))?;
    let energy = counters.map(|counters| match counters {
        Ok(counters) => json!({"measured": true, "counters": counters.names().collect::<Vec<_>>()}),
        Err(why) => json!({"measured": false, "reason": why}),
    });
    let resident = rows.iter().filter_map(|row| row.resident).max();
    let peak_resident = peak_rss_bytes();
    if let (Some(resident), Some(peak)) = (resident, peak_resident) {
        console.note(format!(
            "memory: {} resident, {} at most",
            human_bytes(resident),
            human_bytes(peak)
        ))?;
    }
    console.json(&json!({
        "status": "measured",
        "model": path,
        "cpu": cpu,
        "features": features,
        "vocab_size": vocab_size,
        "tokenizer": tokenizer.as_ref().map(TokenizerCost::json),
        "bytes_per_token": bytes_per_token,
        "read_bandwidth_gb_s": rows.last().map(|row| row.bandwidth.median),
        "peak_resident_bytes": peak_resident,
        "head": {"screened": passes.screened, "full": passes.full},
        "noise": seen.json(),
        "energy": energy,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    }))?;
    Ok(ExitStatus::Done)
}

/// The kernels that `--kernel` asks for: the fastest, some by name, or all but the scalar definition.
fn kernels(model: &ModelArgs) -> Result<Vec<Backend>, Failure> {
    if let Some(names) = &model.compute.kernel {
        return named(names);
    }
    let checkpoint = open::checkpoint(&model.model, &model.compute)?;
    Ok(vec![open::backend(&model.compute, &checkpoint)?])
}

fn named(names: &str) -> Result<Vec<Backend>, Failure> {
    match names {
        "all" => {
            let best = Backend::best();
            let others = Backend::available().filter(|b| *b != best && b.name() != "scalar");
            Ok(std::iter::once(best).chain(others).collect())
        }
        names => names.split(',').map(open::kernel).collect(),
    }
}

fn check_lengths(model: &Model, args: &BenchArgs) -> Result<(), Failure> {
    let longest = |lengths: &[usize]| lengths.iter().copied().max().unwrap_or(0);
    let found = longest(&args.prompt).max(longest(&args.new_tokens)) + longest(&args.depth);
    let most = model.config().max_position_embeddings;
    if found > most {
        return Err(Failure::new(
            ErrorCode::ContextExceeded,
            format!(
                "expected lengths up to {most} tokens, found {found} with the context before them"
            ),
        ));
    }
    Ok(())
}

fn measure(
    test: Test,
    threads: usize,
    context: &mut Context<'_>,
    args: &BenchArgs,
    counters: Option<&Counters>,
    parts: &mut Table,
) -> Result<Row, Failure> {
    let model = &context.model.with_threads(threads);
    let kernel = model.backend();
    let own = own_probe(model);
    let (mut speeds, mut bandwidths, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    let mut joules = Vec::new();
    let read = || counters.map(Counters::read).transpose().map_err(unreadable);
    // the first, not counted, warms caches and threads
    for repetition in 0..=args.repetitions.get() {
        // made anew: the model's memory grows by the screen of its head
        let bandwidth = match &own {
            Some(probe) => probe.gb_s(threads),
            None => MemoryProbe::over(model.packed_bytes()).gb_s(threads),
        };
        let peak = kernel.peak_gmacs(threads);
        let before = read()?;
        let run = test.run(model, context, false)?;
        if repetition > 0 {
            if let (Some(counters), Some(before), Some(after)) = (counters, before, read()?) {
                joules.push(counters.joules(&before, &after) / test.tokens() as f64);
            }
            bandwidths.push(bandwidth);
            peaks.extend(peak);
            speeds.push(test.tokens() as f64 / run.seconds);
        }
    }
    let profile = if args.profile {
        // in a run of its own: the figures above are without the clock
        let run = test.run(model, context, true)?;
        Some(run.describe(&test, threads, kernel.name(), parts))
    } else {
        None
    };
    drop(own);
    let resident = resident_bytes();
    Ok(Row {
        test,
        threads,
        kernel,
        speed: Spread::of(speeds),
        bandwidth: Spread::of(bandwidths),
        peak: (!peaks.is_empty()).then(|| Spread::of(peaks)),
        macs: model.ternary_weights() as f64,
        bytes: bytes(&test, model)?,
        resident,
        joules: (!joules.is_empty()).then(|| Spread::of(joules)),
        profile,
    })
}

fn unreadable(why: String) -> Failure {
    Failure::new(ErrorCode::Io, format!("energy: {why}"))
}

/// Bytes that a token of a test needs: all sequences of a step share the linears, and the full product the head, but each
/// has candidates of its own.
fn bytes(test: &Test, model: &Model) -> Result<Option<f64>, Failure> {
    let (linears, all) = (model.ternary_bytes(), model.full_bytes_per_token());
    let (shared, own) = match test.head {
        HeadArg::Auto => (linears, model.bytes_per_token() - linears),
        HeadArg::Full => (all, 0),
    };
    let position = model.sequence(1)?.cache().position_bytes();
    Ok(test.bytes_per_token(shared, own, position))
}

/// A probe beside a model that is too small to be one.
fn own_probe(model: &Model) -> Option<MemoryProbe<'static>> {
    let bytes: usize = model.packed_bytes().iter().map(|part| part.len()).sum();
    (bytes < LEAST_PROBED).then(|| MemoryProbe::new(PROBE_BYTES))
}

/// What loading the model's tokenizer costs: beside a model of a test's size, most of a start.
struct TokenizerCost {
    vocab_size: usize,
    seconds: f64,
    resident: Option<u64>, // bytes by which the process grew
}

impl TokenizerCost {
    /// Loads it once; `None` for a model without one.
    fn measure(checkpoint: &Checkpoint) -> Option<Self> {
        let before = resident_bytes();
        let started = Instant::now();
        let tokenizer = open::tokenizer(checkpoint).ok()?;
        let seconds = started.elapsed().as_secs_f64();
        let grown = before.zip(resident_bytes());
        Some(Self {
            vocab_size: tokenizer.vocab_size(),
            seconds,
            resident: grown.map(|(before, after)| after.saturating_sub(before)),
        })
    }

    fn json(&self) -> Value {
        json!({
            "vocab_size": self.vocab_size,
            "load_seconds": self.seconds,
            "resident_bytes": self.resident,
        })
    }
}

impl std::fmt::Display for TokenizerCost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            vocab_size,
            seconds,
            resident,
        } = self;
        write!(
            f,
            "tokenizer: {vocab_size} tokens, loaded in {seconds:.3} s"
        )?;
        match resident {
            Some(bytes) => write!(f, ", {} of memory", human_bytes(*bytes)),
            None => Ok(()),
        }
    }
}

/// What some repetitions gave.
#[derive(Debug, Clone, Copy, Default)]
struct Spread {
    median: f64, // of an even count: the mean of the two in the middle
    min: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let n = values.len();
        Self {
            median: (values[(n - 1) / 2] + values[n / 2]) / 2.0,
            min,
            max,
        }
    }
}

impl Spread {
    /// Distance between the extremes in relation to the median.
    fn relative(&self) -> f64 {
        match self.median > 0.0 {
            true => (self.max - self.min) / self.median,
            false => 0.0,
        }
    }
}

/// One line of the table.
struct Row {
    test: Test,
    threads: usize,
    kernel: Backend,
    speed: Spread,          // tokens/s
    bandwidth: Spread,      // GB/s of the memory probe
    peak: Option<Spread>,   // GMAC/s of the kernel's multiply instruction
    macs: f64,              // of the linear layers, per token
    bytes: Option<f64>,     // per token, for tests that memory bounds
    resident: Option<u64>,  // bytes of the process, keys and values included
    joules: Option<Spread>, // per token
    profile: Option<Value>, // ms per token by part
}

impl Row {
    fn gb_s(&self) -> Option<f64> {
        self.bytes.map(|bytes| self.speed.median * bytes / 1e9)
    }

    /// Products of the linear layers alone: attention and the head are on top.
    fn gmac_s(&self) -> f64 {
        self.speed.median * self.macs / 1e9
    }

    fn peak_share(&self) -> Option<f64> {
        self.peak.map(|peak| self.gmac_s() / peak.median)
    }

    fn cells(&self) -> [String; 13] {
        let prompt = self.bytes.is_none();
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let share = |share: f64| bitnet_cli::percent(share, 0);
        [
            self.test.name(),
            self.threads.to_string(),
            self.kernel.name().to_owned(),
            self.test.head.to_string(),
            format!("{:.2}", self.speed.median),
            format!("{:.2}", self.speed.min),
            format!("{:.2}", self.speed.max),
            or_dash(self.gb_s().map(|v| format!("{v:.1}"))),
            format!("{:.1}", self.bandwidth.median),
            or_dash(self.gb_s().map(|v| share(v / self.bandwidth.median))),
            format!("{:.0}", self.gmac_s()),
            or_dash(self.peak.map(|peak| format!("{:.0}", peak.median))),
            or_dash(self.peak_share().filter(|_| prompt).map(share)),
        ]
    }

    fn json(&self) -> Value {
        let gb_s = self.gb_s().unwrap_or(0.0);
        let mut row = json!({
            "test": self.test.name(),
            "depth": self.test.depth,
            "sequences": self.test.sequences,
            "threads": self.threads,
            "kernel": self.kernel.name(),
            "head": self.test.head.as_str(),
            "tokens_per_s": self.speed.median,
            "median": self.speed.median,
            "min": self.speed.min,
            "max": self.speed.max,
            "bytes_per_token": self.bytes,
            "gb_s": gb_s,
            "bandwidth_share": gb_s / self.bandwidth.median,
            "read_bandwidth_gb_s": self.bandwidth.median,
            "gmac_s": self.gmac_s(),
            "peak_instruction": self.kernel.peak_instruction(),
            "peak_gmac_s": self.peak.map(|peak| peak.median),
            "peak_share": self.peak_share(),
            "resident_bytes": self.resident,
        });
        if let Some(joules) = &self.joules {
            row["joules_per_token"] = json!(joules.median);
            row["joules_per_token_min"] = json!(joules.min);
            row["joules_per_token_max"] = json!(joules.max);
        }
        if let Some(profile) = &self.profile {
            row["profile_ms_per_token"] = profile.clone();
        }
        row
    }
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "test", ">threads", "kernel", "head", ">tok/s", ">min", ">max", ">GB/s", ">probe",
        ">share", ">GMAC/s", ">peak", ">share",
    ]);
    for row in rows {
        table.row(row.cells());
    }
    table
}

fn energy_table(rows: &[Row]) -> Table {
    let mut table = Table::new(&[
        "test", ">threads", "kernel", "head", ">J/token", ">min", ">max",
    ]);
    for row in rows {
        let Some(joules) = row.joules else { continue };
        table.row([
            row.test.name(),
            row.threads.to_string(),
            row.kernel.name().to_owned(),
            row.test.head.to_string(),
            format!("{:.4}", joules.median),
            format!("{:.4}", joules.min),
            format!("{:.4}", joules.max),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of(vec![4.0, 1.0, 3.0, 2.0]);
        assert_eq!((spread.median, spread.min, spread.max), (2.5, 1.0, 4.0));
        assert_eq!(Spread::of(vec![5.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of(Vec::new()).median, 0.0);
    }

    #[test]
    fn kernels_are_named_one_by_one_or_all() {
        fn names(text: &str) -> Result<Vec<&'static str>, Failure> {
            Ok(named(text)?.iter().map(Backend::name).collect())
        }
        let best = Backend::best().name();
        let both = &format!("scalar,{best}");
        assert_eq!(names(both).unwrap(), ["scalar", best]);
        assert_eq!(names("all").unwrap()[0], best);
        assert!(names("scalar,").is_err());
    }
}
