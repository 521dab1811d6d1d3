//! The command line of `bitnet-run`.
//!
//! Invariant: every flag has help with an example; what is not a subcommand is a model to run.

use bitnet_cli::{Failure, GlobalArgs};
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

/// Runs ternary language models on a CPU: the same bits on every kernel and thread count
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-run",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub generate: Generate,
    #[command(flatten)]
    pub global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the logits of every position of every prompt
    Logits(Logits),
    /// Turn texts into vectors of length 1, for embedding models
    Embed(Embed),
    /// Measure how well the model predicts a text
    Perplexity(Perplexity),
    /// Measure speed beside this machine's read bandwidth
    Bench(Bench),
    /// List the kernels of this build, which run here and which is chosen
    Kernels,
}

/// A model and how to compute with it.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Checkpoint directory, .safetensors, .index.json or .gguf, for example ./model.gguf
    pub model: PathBuf,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How to read a model and compute with it.
#[derive(Debug, Clone, clap::Args)]
pub struct ComputeArgs {
    /// Force one kernel [default: the fastest here], for example --kernel scalar
    ///
    /// `bench` also takes several, avx2,scalar, or all: those that run here, without the scalar definition.
    #[arg(long, value_name = "NAME", help_heading = "Computation")]
    pub kernel: Option<String>,
    /// Type of the KV cache, for example --kv-type f16
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f32",
        help_heading = "Computation"
    )]
    pub kv_type: KvTypeArg,
    /// Byte layout of ternary tensors that the file cannot tell, for example --layout i2_s-arm64
    #[arg(long, value_name = "NAME", help_heading = "Computation")]
    pub layout: Option<String>,
    /// Lay a `packed` model out in memory for any kernel instead of reading it where it lies in the file
    ///
    /// Tiles that the kernel reads as they are stay in the mapped file, shared by all processes that run
    /// it. With this flag they are copied, and tiles of another layout, otherwise refused, are packed
    /// again. Example: --repack --kernel scalar
    #[arg(long, help_heading = "Computation")]
    pub repack: bool,
    /// Take unmarked float weights as master weights of a ternary-trained model
    ///
    /// A checkpoint whose configuration does not say that it was trained with ternary weights is
    /// refused, because rounding ordinary weights to ternary destroys them. This flag is your word
    /// that it was.
    #[arg(long, help_heading = "Computation")]
    pub ternary_trained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArg {
    /// 4 bytes per value
    F32,
    /// 2 bytes per value, rounded to nearest even
    F16,
}

#[derive(Debug, clap::Args)]
pub struct Generate {
    /// Checkpoint directory, .safetensors, .index.json or .gguf, for example ./model.gguf
    #[arg(required = true)]
    pub model: Option<PathBuf>,
    /// Text to continue; - reads standard input, for example -p "Hello world"
    ///
    /// Of standard input at most 64 MiB of UTF-8 are read, and one line break at its end is dropped. A text may begin with a
    /// dash, -p "- item"; a text that is a flag of this program is given as -p=--greedy.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        conflicts_with = "tokens",
        allow_hyphen_values = true
    )]
    pub prompt: Option<String>,
    /// Token ids to continue; no tokenizer involved, no stop token, for example --tokens 1,2,3
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        value_parser = token_id,
        allow_hyphen_values = true
    )]
    pub tokens: Option<Vec<u32>>,
    /// New tokens at most, for example -n 64
    #[arg(
        short = 'n',
        long = "max-new-tokens",
        value_name = "N",
        default_value_t = 128,
        value_parser = any_count,
        allow_hyphen_values = true
    )]
    pub max_new_tokens: usize,
    /// Talk: the prompt is a user's message in the model's chat template; without -p, asks for messages
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// System message for --chat, for example --system "Answer briefly."
    #[arg(
        long,
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    pub system: Option<String>,
    /// Print text as it is made
    #[arg(long)]
    pub stream: bool,
    /// Go on after a stop token
    #[arg(long)]
    pub ignore_eos: bool,
    /// Context length in tokens [default: what prompt and -n need], for example --ctx 4096
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
    /// Always the most likely token (the default unless a sampling flag is given)
    #[arg(long, conflicts_with_all = ["temp", "top_k", "top_p", "min_p", "seed"], help_heading = "Sampling")]
    pub greedy: bool,
    /// Temperature from 0 (the most likely token) on, for example --temp 0.8
    #[arg(
        long,
        value_name = "T",
        value_parser = temperature,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub temp: Option<f32>,
    /// Keep the K most likely tokens, 0 for all, for example --top-k 40
    #[arg(
        long,
        value_name = "K",
        value_parser = any_count,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub top_k: Option<usize>,
    /// Keep the most likely tokens that make up P, from 0 to 1, for example --top-p 0.95
    #[arg(
        long,
        value_name = "P",
        value_parser = share,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub top_p: Option<f32>,
    /// Keep tokens at least P times as likely as the best, from 0 to 1, for example --min-p 0.05
    #[arg(
        long,
        value_name = "P",
        value_parser = share,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub min_p: Option<f32>,
    /// Seed of the sampler [default: 0], for example --seed 42
    #[arg(
        long,
        value_name = "S",
        value_parser = seed,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, clap::Args)]
pub struct Logits {
    #[command(flatten)]
    pub model: ModelArgs,
    /// JSON: {name: {"text": …, "ids": […]}} or [[ids], …], for example --prompts prompts.json
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Safetensors file to write, `<name>.logits` (tokens, vocabulary) f32, for example -o logits.safetensors
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists; never a file that the run reads
    #[arg(long)]
    pub force: bool,
    /// Tokens given to the model at once [default: its own batch]; changes no bit, for example --batch 1
    #[arg(long, value_name = "N", value_parser = some, allow_hyphen_values = true)]
    pub batch: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Args)]
pub struct Embed {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts, for example "Hello world" "Good evening"
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// A text on every line, UTF-8; - reads standard input, for example --file lines.txt
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    pub file: Option<PathBuf>,
    /// JSON: {name: {"text": …, "ids": […]}} or [[ids], …], for example --prompts prompts.json
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "file"])]
    pub prompts: Option<PathBuf>,
    /// Safetensors file to write, `<name>.embedding` (width) f32, for example -o vectors.safetensors
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists; never a file that the run reads
    #[arg(long)]
    pub force: bool,
    /// How hidden states become one vector [default: the model's own, else last], for example --pooling mean
    ///
    /// mean: of all tokens; cls: that of the first; last: that of the last. An embedding model was trained
    /// for one of them and says which.
    #[arg(long, value_name = "HOW")]
    pub pooling: Option<PoolingArg>,
    /// Use the model's prompt of this name, for example --prompt-name query
    ///
    /// The prompt is the text that the model wants before every input. Without this option the model's own
    /// default prompt is used, if it has one.
    #[arg(long, value_name = "NAME", conflicts_with = "prompt_text")]
    pub prompt_name: Option<String>,
    /// Put this text before every input instead, for example --prompt-text "query: " or --prompt-text ""
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt_text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    /// The mean of all tokens
    Mean,
    /// The first token
    Cls,
    /// The last token
    Last,
}

#[derive(Debug, clap::Args)]
pub struct Perplexity {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text to predict, UTF-8, for example wiki.test.raw
    pub file: PathBuf,
    /// Tokens per window [default: 512, or the model's maximum], for example --ctx 512
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
}

/// How `bench` finds the likeliest logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    /// By candidates where the model has them, as generation does
    Auto,
    /// All logits
    Full,
}

impl HeadArg {
    /// As reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Full => "full",
        }
    }
}

impl std::fmt::Display for HeadArg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, clap::Args)]
pub struct Bench {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt lengths to measure, for example -p 128,512
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [512], value_parser = any_count, allow_hyphen_values = true)]
    pub prompt: Vec<usize>,
    /// Generated lengths to measure, for example -n 128
    #[arg(short = 'n', long = "new-tokens", value_name = "N", value_delimiter = ',', default_values_t = [128], value_parser = any_count, allow_hyphen_values = true)]
    pub new_tokens: Vec<usize>,
    /// Tokens already in the context of a test, for example -d 0,1024,4096
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [0], value_parser = any_count, allow_hyphen_values = true)]
    pub depth: Vec<usize>,
    /// How generated tokens find the likeliest logits: auto, full or both, for example --head auto,full
    ///
    /// auto is what generation does: an 8-bit copy of the output head rules most rows out, and the logits of the rest are
    /// computed exactly; the tokens are those of the full product. full computes every logit, as most other programs do.
    /// Prompts compute one full row of logits either way.
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_values_t = [HeadArg::Auto])]
    pub head: Vec<HeadArg>,
    /// Also show where the time goes, for the model and for every row
    #[arg(long)]
    pub profile: bool,
    /// Thread counts to measure [default: --threads], for example -t 1,2
    #[arg(
        short = 't',
        long = "thread-counts",
        value_name = "N",
        value_delimiter = ',',
        value_parser = bitnet_cli::threads,
        allow_hyphen_values = true
    )]
    pub thread_counts: Vec<NonZeroUsize>,
    /// Measurements per row, of which the median counts, for example -r 9
    #[arg(short, long, value_name = "R", default_value = "5", value_parser = some, allow_hyphen_values = true)]
    pub repetitions: NonZeroUsize,
}

fn any_count(text: &str) -> Result<usize, String> {
    bitnet_cli::whole_from(text, 0)
}

fn count(text: &str) -> Result<usize, String> {
    bitnet_cli::whole_from(text, 1)
}

fn some(text: &str) -> Result<NonZeroUsize, String> {
    let count = bitnet_cli::whole_from(text, 1)?;
    NonZeroUsize::new(count).ok_or_else(|| "expected a whole number from 1 on".to_owned())
}

fn token_id(text: &str) -> Result<u32, String> {
    let id = bitnet_cli::whole(text, 0..=u32::MAX);
    id.map_err(|expected| format!("{expected} for each token, as in --tokens 1,2,3"))
}

fn seed(text: &str) -> Result<u64, String> {
    bitnet_cli::whole(text, 0..=u64::MAX)
}

fn temperature(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, 0.0..=f32::INFINITY)
}

fn share(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, 0.0..=1.0)
}

/// Flags whose value is any text.
const TEXTS: [&str; 3] = ["-p", "--prompt", "--system"];

/// What is wrong with a command line, where that is more than clap says.
pub fn explain(words: &[OsString], error: Option<&clap::Error>) -> Option<Failure> {
    if error.is_some_and(bitnet_cli::is_told_by_clap) {
        return None;
    }
    let command = Args::command();
    let commands = bitnet_cli::subcommands(&command);
    let positionals = bitnet_cli::positionals(&command, words);
    let (first, rest) = positionals.split_first()?;
    if commands.contains(&first.as_str()) {
        return None;
    }
    if !Path::new(first).exists()
        && let Some(meant) = bitnet_cli::did_you_mean(first, commands)
    {
        let failure = Failure::usage(format!("unknown command `{first}`"));
        return Some(failure.hint(meant));
    }
    if !rest.is_empty() && error.is_some() {
        let text = rest.join(" ");
        return Some(
            Failure::usage(format!("unexpected text `{text}` behind the model")).hint(format!(
                "give the prompt with -p: bitnet-run {first} -p \"{text}\""
            )),
        );
    }
    // a text that is a flag was forgotten
    let pairs = words.iter().zip(words.iter().skip(1));
    let mut pairs = pairs.filter_map(|(flag, text)| Some((flag.to_str()?, text.to_str()?)));
    let (flag, text) =
        pairs.find(|(flag, text)| TEXTS.contains(flag) && bitnet_cli::is_flag(&command, text))?;
    Some(
        Failure::usage(format!(
            "expected a text behind {flag}, found the flag {text}"
        ))
        .hint(format!(
            "give the text, or {flag}={text} for this very text"
        )),
    )
}
