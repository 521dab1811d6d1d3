//! The command line of `bitnet-run`.
//!
//! Invariant: every flag has help with an example; what is not a subcommand is a model to run.

mod origin;
mod wrong;

use origin::origin;
pub use wrong::{explain, in_order};

use bitnet_cli::{Documents, Failure, GlobalArgs};
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::OnceLock;

/// For the short help, which fits the screen.
const EXAMPLE: &str = "\
Examples:
  bitnet-run demo
  bitnet-run model.gguf --chat";

const EXAMPLES: &str = "\
Examples:
  bitnet-run demo
  bitnet-run model.gguf --chat
  bitnet-run model.gguf \"The capital of France is\" -n 32
  bitnet-run hf://microsoft/bitnet-b1.58-2B-4T-gguf --chat -p \"What is a trit?\"
  bitnet-run model.gguf --chat -f question.txt --json-schema answer.json
  bitnet-run serve model.gguf --port 8080";

/// What `--version` says: with the kernel that computes by default on this machine.
fn long_version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| bitnet_cli::long_version(bitnet_kernels::Backend::best().name()))
}

/// Run a ternary language model on the CPU, with the same bits on every kernel
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-run",
    version,
    long_version = long_version(),
    override_usage = "bitnet-run [OPTIONS] MODEL [TEXT]\n       bitnet-run MODEL --chat\n       bitnet-run COMMAND ...",
    after_help = EXAMPLE,
    after_long_help = EXAMPLES,
    max_term_width = 100,
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
    /// Ask the small model that ships with the programs; needs no network
    Demo(Demo),
    /// Compute the logits of every position of every prompt
    Logits(Logits),
    /// Compute embeddings (vectors of length 1) of texts
    Embed(Embed),
    /// Measure how well the model predicts a text
    Perplexity(Perplexity),
    /// Measure speed and the read bandwidth of this machine
    Bench(Bench),
    /// Serve the model over HTTP, with the API of OpenAI
    Serve(Serve),
    /// List the kernels, which of them run here, and the default
    #[command(after_help = "Examples:\n  bitnet-run kernels\n  bitnet-run kernels --json")]
    Kernels,
    #[command(flatten)]
    Documents(Documents),
}

impl Args {
    /// The models that the command line names.
    pub fn models(&mut self) -> Vec<&mut PathBuf> {
        match &mut self.command {
            Some(Command::Logits(a)) => vec![&mut a.model.model],
            Some(Command::Embed(a)) => vec![&mut a.model.model],
            Some(Command::Perplexity(a)) => vec![&mut a.model.model],
            Some(Command::Bench(a)) => vec![&mut a.model.model],
            Some(Command::Serve(a)) => vec![&mut a.model.model],
            Some(Command::Kernels | Command::Demo(_) | Command::Documents(_)) => Vec::new(),
            None => {
                let Generate { model, draft, .. } = &mut self.generate;
                model.iter_mut().chain(draft).collect()
            }
        }
    }
}

/// A model and how to compute with it.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Checkpoint directory, .safetensors, .index.json or .gguf file, or hf://OWNER/NAME, https://…, s3://…
    pub model: PathBuf,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// How to read a model and compute with it.
#[derive(Debug, Clone, clap::Args)]
pub struct ComputeArgs {
    /// Compute with this kernel [default: the fastest], for example --kernel scalar
    ///
    /// `bench` also takes a list (avx2,scalar) or all: every kernel that runs here, except scalar.
    #[arg(long, value_name = "NAME", help_heading = "Computation")]
    pub kernel: Option<String>,
    /// Set the type of the KV cache, for example --kv-type f16
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "f32",
        help_heading = "Computation",
        hide_short_help = true
    )]
    pub kv_type: KvTypeArg,
    /// Set the byte layout of I2_S tensors, for example --layout i2_s-arm64
    #[arg(long, value_name = "NAME", value_parser = bitnet_cli::layout, help_heading = "Computation", hide_short_help = true)]
    pub layout: Option<String>,
    /// Copy a `packed` model to memory, repacked for the kernel
    ///
    /// Without this flag, the kernel reads the weights of a `packed` model directly from the mapped file, which all
    /// processes share, and a layout of another kernel is refused. Example: --repack --kernel scalar
    #[arg(long, help_heading = "Computation", hide_short_help = true)]
    pub repack: bool,
    /// Confirm that float weights are master weights of a ternary-trained model
    ///
    /// Rounding weights that were not trained for it destroys a model. Therefore a float checkpoint is refused if nothing
    /// shows that it was trained ternary.
    #[arg(long, help_heading = "Computation", hide_short_help = true)]
    pub ternary_trained: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Think {
    /// The model may think before it answers
    On,
    /// The model answers at once
    Off,
}

/// How thinking is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShowThoughts {
    /// Dim, in front of the answer
    Show,
    /// As one line
    Fold,
    /// Not at all
    Hide,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvTypeArg {
    /// 4 bytes per value
    F32,
    /// 2 bytes per value, rounded to nearest even
    F16,
    /// 9 bits per value: 8-bit codes with a scale for every 32 values
    Q8,
}

#[derive(Debug, clap::Args)]
pub struct Generate {
    /// Checkpoint directory, .safetensors, .index.json or .gguf file, or hf://OWNER/NAME, https://…, s3://…
    #[arg(required = true)]
    pub model: Option<PathBuf>,
    /// Continue this text, as -p does, for example "Hello world"
    #[arg(value_name = "TEXT", conflicts_with_all = ["prompt", "tokens", "file"])]
    pub text: Option<String>,
    /// Answer every line of a JSONL file, for example --batch requests.jsonl -o answers.jsonl
    ///
    /// A line is a request of formats/serve.md (an object with `prompt`, `messages` or `input`) or a line of OpenAI's batches
    /// (`custom_id`, `url`, `body`). Requests run at once; the answers keep the order of the lines. Started again after an
    /// interruption, the same command continues.
    #[arg(
        long,
        value_name = "FILE",
        requires = "output",
        conflicts_with_all = ["prompt", "text", "file", "json_schema", "grammar", "tokens", "chat", "stream", "ignore_eos", "stop", "greedy", "temp", "top_k", "top_p", "min_p", "seed", "repetition_penalty", "presence_penalty", "frequency_penalty", "speculate", "draft"],
        help_heading = "Batches", hide_short_help = true)]
    pub batch: Option<PathBuf>,
    /// Write the answers of --batch, for example -o answers.jsonl
    #[arg(
        short,
        long,
        value_name = "FILE",
        requires = "batch",
        help_heading = "Batches",
        hide_short_help = true
    )]
    pub output: Option<PathBuf>,
    /// Replace the output of --batch if it exists, and start over
    #[arg(
        long,
        requires = "batch",
        help_heading = "Batches",
        hide_short_help = true
    )]
    pub force: bool,
    /// Compute N texts of --batch at once [default: 4], for example --parallel 8
    #[arg(long, value_name = "N", value_parser = parallel, requires = "batch", allow_hyphen_values = true, help_heading = "Batches", hide_short_help = true)]
    pub parallel: Option<NonZeroUsize>,
    /// Continue TEXT, or standard input with -p -, for example -p "Hello world"
    ///
    /// Standard input may have up to 64 MiB of UTF-8 text; one line break at its end is removed. TEXT may begin with a dash:
    /// -p "- item". If TEXT is a flag of this program, write -p=--greedy.
    #[arg(
        short,
        long,
        value_name = "TEXT",
        conflicts_with = "tokens",
        allow_hyphen_values = true
    )]
    pub prompt: Option<String>,
    /// Continue the text of a file, or standard input with -f -, for example -f prompt.txt
    ///
    /// The file may have up to 64 MiB of UTF-8 text; one line break at its end is removed.
    #[arg(short, long, value_name = "FILE", conflicts_with_all = ["prompt", "tokens"])]
    pub file: Option<PathBuf>,
    /// Continue these token ids, without tokenizer and stop tokens, for example --tokens 1,2,3
    #[arg(
        long,
        value_name = "IDS",
        value_delimiter = ',',
        value_parser = token_id,
        allow_hyphen_values = true, hide_short_help = true)]
    pub tokens: Option<Vec<u32>>,
    /// Generate at most N tokens, for example -n 64
    #[arg(
        short = 'n',
        long = "max-new-tokens",
        aliases = ["n-predict", "predict"],
        value_name = "N",
        default_value_t = 128,
        value_parser = any_count,
        allow_hyphen_values = true
    )]
    pub max_new_tokens: usize,
    /// Apply the chat template to the prompt; without -p, start an interactive chat
    ///
    /// On a terminal, /help lists the commands of a chat. If standard input is not a terminal, each of its lines is a message,
    /// and each answer ends with a line break. Example: bitnet-run model.gguf --chat
    #[arg(long, conflicts_with = "tokens")]
    pub chat: bool,
    /// Turn thinking of --chat on or off, for example --think off
    ///
    /// Sets the switch of the chat template (`enable_thinking`, or `thinking` in some). Without this flag, the template
    /// decides. A template without such a switch is refused.
    #[arg(long, value_name = "ON|OFF", requires = "chat", hide_short_help = true)]
    pub think: Option<Think>,
    /// Show thinking, fold it to one line or hide it, for example --thoughts fold
    ///
    /// On a terminal, thinking is shown dim [default: show]. In a file or a pipe, the text is written as the model wrote it,
    /// thinking between its tags included; --thoughts fold or hide leaves the thinking out.
    #[arg(
        long,
        value_name = "HOW",
        requires = "chat",
        hide_possible_values = true,
        hide_short_help = true
    )]
    pub thoughts: Option<ShowThoughts>,
    /// Remember messages typed in a chat in FILE, for example --history chat.history
    ///
    /// Without this flag, messages are remembered until the chat ends and stored nowhere.
    #[arg(long, value_name = "FILE", requires = "chat", conflicts_with_all = ["prompt", "text", "file"], hide_short_help = true)]
    pub history: Option<PathBuf>,
    /// Set the system message of --chat, for example --system "Answer briefly."
    #[arg(
        long,
        alias = "system-prompt",
        value_name = "TEXT",
        requires = "chat",
        allow_hyphen_values = true
    )]
    pub system: Option<String>,
    /// Print the text while it is generated, as on a terminal
    #[arg(long, hide_short_help = true)]
    pub stream: bool,
    /// Do not stop at stop tokens
    #[arg(long, hide_short_help = true)]
    pub ignore_eos: bool,
    /// End the text in front of this string; repeat for several, for example --stop "User:"
    #[arg(
        long,
        value_name = "TEXT",
        conflicts_with = "tokens",
        value_parser = some_text,
        allow_hyphen_values = true, hide_short_help = true)]
    pub stop: Vec<String>,
    /// Generate JSON of this schema, a file or the schema itself, for example --json-schema answer.json
    ///
    /// Tokens that cannot belong to the text are excluded before each draw, as the server does for `response_format`.
    /// If the prompt opens <think>, thinking comes before the JSON. Example: --json-schema '{"type": "object"}'
    #[arg(long, alias = "json-schema-file", value_name = "FILE|JSON", conflicts_with_all = ["tokens", "ignore_eos", "grammar"], allow_hyphen_values = true, help_heading = "Form")]
    pub json_schema: Option<String>,
    /// Generate a text of this grammar, for example --grammar answer.lark
    ///
    /// The file is in the Lark format of llguidance: rules such as `start: "yes" | "no"`.
    #[arg(long, alias = "grammar-file", value_name = "FILE", conflicts_with_all = ["tokens", "ignore_eos"], help_heading = "Form", hide_short_help = true)]
    pub grammar: Option<PathBuf>,
    /// Set the context length in tokens [default: prompt plus -n], for example --ctx 4096
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", value_parser = count, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
    /// Always take the most likely token (the default without sampling flags)
    #[arg(long, conflicts_with_all = ["temp", "top_k", "top_p", "min_p", "seed"], help_heading = "Sampling", hide_short_help = true)]
    pub greedy: bool,
    /// Set the temperature; 0 takes the most likely token; for example --temp 0.8
    #[arg(
        long,
        alias = "temperature",
        value_name = "T",
        value_parser = temperature,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub temp: Option<f32>,
    /// Sample from the K most likely tokens; 0 means all; for example --top-k 40
    #[arg(
        long,
        value_name = "K",
        value_parser = any_count,
        allow_hyphen_values = true,
        help_heading = "Sampling", hide_short_help = true)]
    pub top_k: Option<usize>,
    /// Sample from the most likely tokens with total probability P (0 to 1), for example --top-p 0.95
    #[arg(
        long,
        value_name = "P",
        value_parser = share,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub top_p: Option<f32>,
    /// Sample from tokens at least P times (0 to 1) as likely as the best, for example --min-p 0.05
    #[arg(
        long,
        value_name = "P",
        value_parser = share,
        allow_hyphen_values = true,
        help_heading = "Sampling", hide_short_help = true)]
    pub min_p: Option<f32>,
    /// Set the seed of the sampler [default: 0], for example --seed 42
    #[arg(
        long,
        short_alias = 's',
        value_name = "S",
        value_parser = seed,
        allow_hyphen_values = true,
        help_heading = "Sampling"
    )]
    pub seed: Option<u64>,
    /// Divide positive logits of tokens that came already, and multiply negative ones, for example --repetition-penalty 1.1
    #[arg(long, visible_alias = "repeat-penalty", value_name = "R", value_parser = repetition, allow_hyphen_values = true, help_heading = "Sampling", hide_short_help = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtract P from the logits of tokens that were generated, for example --presence-penalty 0.5
    #[arg(long, value_name = "P", value_parser = penalty, allow_hyphen_values = true, help_heading = "Sampling", hide_short_help = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract P for each time that a token was generated, for example --frequency-penalty 0.5
    #[arg(long, value_name = "P", value_parser = penalty, allow_hyphen_values = true, help_heading = "Sampling", hide_short_help = true)]
    pub frequency_penalty: Option<f32>,
    /// Guess tokens ahead and verify several per step [default: auto], for example --speculate prompt-lookup
    ///
    /// The generated tokens do not change, with any sampling flags: a guess is kept only if it equals the token that is drawn
    /// without guessing. The program finds the last tokens earlier in the prompt or text, and guesses the tokens that followed
    /// there.
    #[arg(
        long,
        value_name = "MODE",
        help_heading = "Speculation",
        hide_short_help = true
    )]
    pub speculate: Option<SpeculateArg>,
    /// Take the guesses from a smaller model with the same tokenizer, for example --draft small.gguf
    ///
    /// The draft model is opened with the flags of the model (--kernel, --kv-type, --layout and so on).
    #[arg(
        long,
        value_name = "MODEL",
        help_heading = "Speculation",
        hide_short_help = true
    )]
    pub draft: Option<PathBuf>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SpeculateArg {
    /// One token per step
    Off,
    /// Verify every guess
    PromptLookup,
    /// Verify guesses while they save time
    Auto,
}

impl Generate {
    /// The flags of a chat with a model, and no others.
    pub fn of_chat(model: PathBuf) -> Self {
        let words = [
            OsString::from("bitnet-run"),
            model.into_os_string(),
            OsString::from("--chat"),
        ];
        Args::parse_from(words).generate
    }

    /// Refuses flags of --batch and of --chat without these.
    ///
    /// Clap drops `requires` where what is required conflicts with another flag that is given.
    ///
    /// # Errors
    /// `usage`.
    pub fn check(&self) -> Result<(), Failure> {
        let batch = [
            ("-o", self.output.is_some()),
            ("--force", self.force),
            ("--parallel", self.parallel.is_some()),
        ];
        let chat = [
            ("--think", self.think.is_some()),
            ("--thoughts", self.thoughts.is_some()),
            ("--history", self.history.is_some()),
            ("--system", self.system.is_some()),
        ];
        let given = |flags: &[(&'static str, bool)]| {
            let found = flags.iter().find(|(_, given)| *given);
            found.map(|(name, _)| *name)
        };
        if let Some(flag) = given(&batch).filter(|_| self.batch.is_none()) {
            let failure = Failure::usage(format!(
                "expected --batch beside {flag}, which is a flag of batches, found none"
            ));
            return Err(match flag {
                "-o" => failure.hint(
                    "leave out -o: the text goes to standard output, which a shell can write to a file with >",
                ),
                _ => failure.hint(format!("leave out {flag}")),
            });
        }
        if let Some(flag) = given(&chat).filter(|_| !self.chat) {
            let failure = Failure::usage(format!(
                "expected --chat beside {flag}, which is a flag of chats, found none"
            ));
            return Err(match self.batch {
                Some(_) => failure.hint(format!(
                    "leave out {flag}: each line of --batch says it itself"
                )),
                None => failure.hint(format!(
                    "leave out {flag}, or give --chat and a text in place of --tokens"
                )),
            });
        }
        Ok(())
    }

    /// Whether a text to continue or to answer is given.
    pub fn has_prompt(&self) -> bool {
        self.prompt.is_some() || self.text.is_some() || self.file.is_some()
    }
}

/// The first command of a person who installed the programs.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bitnet-run demo\n  bitnet-run demo -p \"Sort these words: moon, nest, key\"\n  bitnet-run demo --chat"
)]
pub struct Demo {
    /// Ask this [default: an example], for example -p "What date is 5 days after March 29?"
    #[arg(short, long, value_name = "TEXT", value_parser = some_text, allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Go on with a chat, as on a terminal
    #[arg(long)]
    pub chat: bool,
    /// Compute with this kernel [default: the fastest], for example --kernel scalar
    #[arg(long, value_name = "NAME")]
    pub kernel: Option<String>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bitnet-run serve model.gguf\n  bitnet-run serve model.gguf --host 0.0.0.0 --port 8000 --api-key-file keys.txt"
)]
pub struct Serve {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Listen on this address, for example --host 0.0.0.0
    ///
    /// Without --api-key-file, everybody who reaches the address can use the model.
    #[arg(
        long,
        value_name = "HOST",
        default_value = "127.0.0.1",
        value_parser = some_text,
        help_heading = "Server"
    )]
    pub host: String,
    /// Listen on this port; 0 takes a free one; for example --port 8000
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 8080,
        value_parser = port,
        allow_hyphen_values = true,
        help_heading = "Server"
    )]
    pub port: u16,
    /// Name the model in the API [default: the name of its file or directory], for example --alias bitnet
    #[arg(long, value_name = "NAME", value_parser = some_text, help_heading = "Server")]
    pub alias: Option<String>,
    /// Require one of the keys in this file, one key per line without blanks and comments, for example --api-key-file keys.txt
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    pub api_key_file: Option<PathBuf>,
    /// Let pages of this origin use the server; repeat for several; for example --allow-origin https://chat.example
    ///
    /// `*` allows all origins. Without this flag, only the page of the server itself can use it from a browser.
    #[arg(long, value_name = "ORIGIN", value_parser = origin, help_heading = "Server")]
    pub allow_origin: Vec<String>,
    /// Serve no chat page at /
    #[arg(long, help_heading = "Server")]
    pub no_web: bool,
    /// Ignore unknown fields of requests: warn of each name once, and name them in the header x-ignored-fields
    #[arg(long, help_heading = "Server")]
    pub lenient: bool,
    /// Let running requests finish for this many seconds after SIGTERM or SIGINT, for example --grace 10
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = any_count, allow_hyphen_values = true, help_heading = "Server")]
    pub grace: usize,
    /// Compute N texts at once, for example --parallel 16; this changes no answer
    #[arg(long, value_name = "N", default_value = "4", value_parser = parallel, allow_hyphen_values = true, help_heading = "Scheduling")]
    pub parallel: NonZeroUsize,
    /// Set the context length of a text in tokens [default: the maximum of the model], for example --ctx 4096
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", value_parser = count, allow_hyphen_values = true, help_heading = "Scheduling")]
    pub ctx: Option<usize>,
    /// Let N requests wait; further ones are refused with status 429; for example --queue 64
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = any_count, allow_hyphen_values = true, help_heading = "Scheduling")]
    pub queue: usize,
    /// Limit the KV cache [default: what --parallel texts need, at most half of the free memory], for example --kv-memory 4GB
    #[arg(long, value_name = "SIZE", value_parser = bitnet_cli::parse_size, help_heading = "Scheduling")]
    pub kv_memory: Option<u64>,
    /// Compute every prompt from its first token
    ///
    /// Without this flag, texts that begin alike share their KV cache. This changes no answer.
    #[arg(long, help_heading = "Scheduling")]
    pub no_prefix_cache: bool,
    /// Limit the body of a request, for example --max-body 8MB
    #[arg(long, value_name = "SIZE", default_value = "32MB", value_parser = bitnet_cli::parse_size, help_heading = "Server")]
    pub max_body: u64,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  bitnet-run logits model.gguf --prompts prompts.json -o logits.safetensors"
)]
pub struct Logits {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Read prompts from JSON, {name: {"text": …, "ids": […]}} or [[ids], …]
    #[arg(long, value_name = "FILE")]
    pub prompts: PathBuf,
    /// Write tensors `<name>.logits`, f32 (tokens, vocabulary), for example -o logits.safetensors
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists; never a file that the run reads
    #[arg(long)]
    pub force: bool,
    /// Compute N tokens at once; this changes no bit of the result; for example --batch 1
    #[arg(long, value_name = "N", value_parser = some, allow_hyphen_values = true)]
    pub batch: Option<NonZeroUsize>,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bitnet-run embed ./embedding-model \"Hello world\" --json\n  bitnet-run embed ./embedding-model --file lines.txt -o vectors.safetensors"
)]
pub struct Embed {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Texts, for example "Hello world" "Good evening"
    #[arg(value_name = "TEXT")]
    pub texts: Vec<String>,
    /// Read one text per line, UTF-8; - reads standard input; for example --file lines.txt
    #[arg(long, value_name = "FILE", conflicts_with = "texts")]
    pub file: Option<PathBuf>,
    /// Read texts from JSON, {name: {"text": …, "ids": […]}} or [[ids], …]
    #[arg(long, value_name = "FILE", conflicts_with_all = ["texts", "file"])]
    pub prompts: Option<PathBuf>,
    /// Write tensors `<name>.embedding`, f32 (width), for example -o vectors.safetensors
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Replace the output if it exists; never a file that the run reads
    #[arg(long)]
    pub force: bool,
    /// Set the pooling [default: that of the model, otherwise last], for example --pooling mean
    ///
    /// mean: the mean of all tokens; cls: the first token; last: the last token. An embedding model was trained for one of
    /// these and names it.
    #[arg(long, value_name = "HOW")]
    pub pooling: Option<PoolingArg>,
    /// Use the prompt with this name, for example --prompt-name query
    ///
    /// An embedding model may want a text (its prompt) in front of every input. Without this option the default prompt of
    /// the model is used, if any.
    #[arg(long, value_name = "NAME", conflicts_with = "prompt_text")]
    pub prompt_name: Option<String>,
    /// Put this text in front of every input, for example --prompt-text "query: " or --prompt-text ""
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
#[command(after_help = "Example:\n  bitnet-run perplexity model.gguf wiki.test.raw --ctx 512")]
pub struct Perplexity {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Text file to predict, UTF-8; - reads standard input; for example wiki.test.raw
    pub file: PathBuf,
    /// Set the tokens per window [default: 512, or the maximum of the model], for example --ctx 512
    #[arg(short = 'c', long, alias = "ctx-size", value_name = "N", value_parser = count, allow_hyphen_values = true)]
    pub ctx: Option<usize>,
}

/// How `bench` finds the likeliest logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HeadArg {
    /// With the candidate filter, as generation does
    Auto,
    /// Compute all logits
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
#[command(
    after_help = "Examples:\n  bitnet-run bench model.gguf\n  bitnet-run bench model.gguf -p 128,512 -n 128 -t 1,2 -r 9 --json"
)]
pub struct Bench {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Measure prompts of these lengths, for example -p 128,512
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [512], value_parser = any_count, allow_hyphen_values = true)]
    pub prompt: Vec<usize>,
    /// Measure the generation of these numbers of tokens, for example -n 128
    #[arg(short = 'n', long = "new-tokens", value_name = "N", value_delimiter = ',', default_values_t = [128], value_parser = any_count, allow_hyphen_values = true)]
    pub new_tokens: Vec<usize>,
    /// Sequences to generate at once, for example --sequences 1,2,4,8
    ///
    /// The speed of a row counts the tokens of all its sequences. Each sequence gets the same bits as alone. Prompts are always
    /// measured one at a time.
    #[arg(long, value_name = "N", value_delimiter = ',', default_values_t = [NonZeroUsize::MIN], value_parser = sequences, allow_hyphen_values = true)]
    pub sequences: Vec<NonZeroUsize>,
    /// Measure only requests that run at once through the scheduler of the server, for example --concurrency 1,4,8
    ///
    /// Each request has the first length of -p as its prompt and the first length of -n as its answer.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = sequences, allow_hyphen_values = true, conflicts_with_all = ["sequences", "depth", "head", "profile", "energy"])]
    pub concurrency: Vec<NonZeroUsize>,
    /// Start each test with these numbers of tokens in the context, for example -d 0,1024,4096
    #[arg(short, long, value_name = "N", value_delimiter = ',', default_values_t = [0], value_parser = any_count, allow_hyphen_values = true)]
    pub depth: Vec<usize>,
    /// Choose how the most likely token is found: auto, full or both, for example --head auto,full
    ///
    /// auto is how generation works: an 8-bit copy of the output head excludes most tokens, and the logits of the remaining
    /// tokens are computed exactly, so that the result is always that of the full product. full computes every logit,
    /// as most other programs do. A prompt always computes one full row of logits.
    #[arg(long, value_name = "HOW", value_delimiter = ',', default_values_t = [HeadArg::Auto])]
    pub head: Vec<HeadArg>,
    /// Show the time of each part of the model
    #[arg(long)]
    pub profile: bool,
    /// Measure the energy of each token, where the counters of the processor can be read
    ///
    /// Linux shows the counters (RAPL) below /sys/class/powercap. They count the whole processor and its memory, so nothing
    /// else should run. Most systems let only the administrator read them.
    #[arg(long)]
    pub energy: bool,
    /// Read the energy counters below another directory
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/class/powercap",
        hide = true
    )]
    pub powercap: PathBuf,
    /// Measure with these thread counts [default: --threads], for example -t 1,2
    #[arg(
        short = 't',
        long = "thread-counts",
        value_name = "N",
        value_delimiter = ',',
        value_parser = bitnet_cli::threads,
        allow_hyphen_values = true
    )]
    pub thread_counts: Vec<NonZeroUsize>,
    /// Repeat each measurement R times and report the median, for example -r 9
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

/// Most sequences that `bench` runs at once.
const MOST_SEQUENCES: usize = 256;

fn sequences(text: &str) -> Result<NonZeroUsize, String> {
    let expected = || format!("expected a whole number from 1 to {MOST_SEQUENCES}");
    let count = some(text).map_err(|_| expected())?;
    match count.get() <= MOST_SEQUENCES {
        true => Ok(count),
        false => Err(expected()),
    }
}

/// Most texts that run at once.
const MOST_PARALLEL: usize = 1024;

fn parallel(text: &str) -> Result<NonZeroUsize, String> {
    let count = bitnet_cli::whole(text, 1..=MOST_PARALLEL)?;
    NonZeroUsize::new(count).ok_or_else(|| "expected a whole number from 1 on".to_owned())
}

fn penalty(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, -2.0..=2.0)
}

fn repetition(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, 0.01..=100.0)
}

fn some_text(text: &str) -> Result<String, String> {
    match text {
        "" => Err("expected a text that is not empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn token_id(text: &str) -> Result<u32, String> {
    let id = bitnet_cli::whole(text, 0..=u32::MAX);
    id.map_err(|expected| format!("{expected} for each token, as in --tokens 1,2,3"))
}

fn port(text: &str) -> Result<u16, String> {
    bitnet_cli::whole(text, 0..=u16::MAX)
}

fn seed(text: &str) -> Result<u64, String> {
    bitnet_cli::whole(text, 0..=u64::MAX)
}

pub fn temperature(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, 0.0..=f32::INFINITY)
}

pub fn share(text: &str) -> Result<f32, String> {
    bitnet_cli::number(text, 0.0..=1.0)
}
