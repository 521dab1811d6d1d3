//! The command line of `bitnet-convert`, as `formats/report.md` and the help texts word it.
//!
//! Invariant: nothing is decided here that `--help` does not say.

use crate::targets::{self, Target};
use bitnet_cli::{Documents, Failure, GlobalArgs, parse_size, shell_word};
use bitnet_formats::{BlockType, Encoding, PlainType};
use clap::builder::PossibleValue;
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;

/// What `--version` says.
fn long_version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| bitnet_cli::long_version("none, because converting computes no model"))
}

/// For the short help, which fits the screen.
const EXAMPLE: &str = "\
Example:
  bitnet-convert hf://microsoft/bitnet-b1.58-2B-4T-bf16 -o model.gguf";

const EXAMPLES: &str = "\
Examples:
  bitnet-convert ./bitnet-b1.58-2B-4T-bf16 -o model.gguf
  bitnet-convert model.gguf -o ./packed --to hf-packed
  bitnet-convert hf://microsoft/bitnet-b1.58-2B-4T-bf16 -o model.gguf
  bitnet-convert inspect model.gguf";

const PLAN_EXAMPLES: &str = "\
Examples:
  bitnet-convert plan ./checkpoint -o model.gguf --to gguf-tq2_0 --split-max-size 4G --plan plan.json
  bitnet-convert job plan.json --index 0      # one for each job, on any machine that sees both paths
  bitnet-convert finish plan.json
  bitnet-convert plan ./checkpoint -o s3://bucket/m.gguf --to gguf-i2_s --plan s3://bucket/plan.json";

const JOB_EXAMPLES: &str = "\
Examples:
  bitnet-convert job plan.json --index 3
  sbatch --array=0-7 --wrap 'bitnet-convert job plan.json'";

const FINISH_EXAMPLES: &str = "\
Example:
  bitnet-convert finish plan.json --remove-parts";

/// Convert a ternary checkpoint to a packed format, or one packed format to another
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-convert",
    version,
    long_version = long_version(),
    subcommand_negates_reqs = true,
    override_usage = "bitnet-convert [OPTIONS] SRC -o OUT\n       bitnet-convert inspect|push|list|plan|job|finish ...",
    after_help = EXAMPLE,
    after_long_help = EXAMPLES,
    max_term_width = 100
)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub convert: ConvertArgs,
    #[command(flatten)]
    pub global: GlobalArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what a model file holds and which programs read it
    Inspect(InspectArgs),
    /// List targets, sources, exact pairs and model families
    #[command(after_help = "Examples:\n  bitnet-convert list\n  bitnet-convert list --json")]
    List,
    /// Plan a conversion as jobs for many machines
    Plan(PlanArgs),
    /// Run one job of a plan, for example: bitnet-convert job plan.json --index 3
    Job(JobArgs),
    /// Join the parts that the jobs of a plan wrote
    Finish(FinishArgs),
    /// Upload an output with its certificate and a model card to a Hub
    Push(PushArgs),
    #[command(flatten)]
    Documents(Documents),
}

/// Flags that say how a source is to be read; `inspect` has them as well.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct SourceArgs {
    /// Set the I2_S layout of a GGUF source, for example --layout i2_s-arm64
    ///
    /// Three layouts share one GGUF type id: i2_s (blocks of 128, used by every published file), i2_s-arm64 and
    /// i2_s-rows4. Without this flag the program decides by the weights (`inspect` shows the evidence). If the weights
    /// do not decide, the program assumes i2_s and prints a warning. Layouts of other ids (q2_0-g128, tl2) are recognized
    /// by the sizes of their tensors.
    #[arg(long, value_name = "NAME", value_parser = bitnet_cli::layout, help_heading = "Source")]
    pub layout: Option<String>,

    /// Find the layout with another copy of the model, for example --against ./bitnet-2b-4t
    ///
    /// The program takes the layout with which every trit equals the trit of the copy. If no layout matches, it
    /// stops with an error.
    #[arg(
        long,
        value_name = "MODEL",
        help_heading = "Source",
        conflicts_with = "layout",
        hide_short_help = true
    )]
    pub against: Option<PathBuf>,

    /// Read a remote model in ranges and store nothing, for example --stream hf://OWNER/NAME
    ///
    /// Without this flag a model of the Hub is downloaded into the cache of huggingface_hub, and the next run finds it
    /// there. Models of web servers and object stores are always read in ranges. `inspect` and --dry-run read headers only.
    #[arg(long, help_heading = "Source", hide_short_help = true)]
    pub stream: bool,

    /// Confirm that float weights are master weights of a ternary-trained model
    ///
    /// Rounding weights that were not trained for it destroys a model. Therefore float weights are refused (not-ternary),
    /// except if they are trits times scales already, or if config.json or a norm in front of every linear shows that the
    /// model was trained ternary. Example: the prequantized revision of Falcon-E needs this flag.
    #[arg(long, help_heading = "Source")]
    pub ternary_trained: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct ConvertArgs {
    #[command(flatten)]
    pub conversion: ConversionArgs,

    /// Print the plan (tensors, types, bytes, memory, losses) and write nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Replace an output that exists
    ///
    /// Replaces the file that -o names, and the parts of an earlier output with this name, or a directory that
    /// holds only files that this program wrote or is about to write. A directory with other files is refused. An
    /// output that is or contains an input of the same run is refused, too. Example: --force
    #[arg(long)]
    pub force: bool,

    /// Sign the output with an OpenSSH ed25519 key, for example --sign ~/.ssh/id_ed25519
    ///
    /// Writes a statement (in-toto, SLSA provenance) and its signature beside the certificate. The statement lists the source
    /// files, the output files and the version of the program. `bitnet-verify OUT --certificate FILE --trusted-keys KEYS` checks
    /// both. The key must have no password: make one with `ssh-keygen -t ed25519 -N '' -f KEY`.
    #[arg(long, value_name = "KEY", hide_short_help = true)]
    pub sign: Option<PathBuf>,
}

/// What to convert, and to what.
#[derive(Debug, Clone, ClapArgs)]
pub struct ConversionArgs {
    /// Checkpoint directory, .safetensors, .bin, .pt, index or .gguf file, or hf://OWNER/NAME, https://…, s3://…
    #[arg(required = true, value_name = "SRC")]
    pub source: Option<PathBuf>,

    /// File or directory to write, for example -o model.gguf, -o ./model-packed or -o s3://bucket/model.gguf
    #[arg(short, long, alias = "outfile", required = true, value_name = "OUT")]
    pub output: Option<PathBuf>,

    /// Choose the target format, for example --to gguf-tq2_0; `list` shows all
    ///
    /// Without this option the name of the output decides. For `.gguf` the program takes the first of i2_s, tq2_0, tq1_0,
    /// q1_0, q2_0, pq2_0, ptq1_0, iq2_bn and f32 that holds the source exactly, for a directory hf-packed. It prints the
    /// choice to stderr.
    #[arg(long, value_name = "TARGET", value_parser = target, hide_possible_values = true)]
    pub to: Option<&'static Target>,

    /// Store embeddings and output head as keep|f32|f16|bf16|q8_0|q6_k [default: keep]
    ///
    /// `keep` changes no value. The other types round values that they cannot hold; the report then says
    /// lossless: false and how much changed. q8_0 and q6_k exist in GGUF only. Other block types of a GGUF source (q4_k, q5_k)
    /// are kept and cannot be chosen. Example: --embeddings q6_k
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "keep",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub embeddings: Embeddings,

    /// Round scales that the target cannot hold exactly, and report how much they change
    ///
    /// For example, TQ1_0 and TQ2_0 hold f16 scales, and quantized master weights have f32 scales. Without this flag
    /// such a conversion is refused (scale-rounding).
    #[arg(long)]
    pub allow_scale_rounding: bool,

    /// Write the unrotated dense model of rotated weights, for example --unfold --to gguf-f16
    ///
    /// Programs that do not rotate activations run the output. Its weights are not ternary any more: they are floats, and
    /// the report says how much rounding to the type of the target changed (largest error, also in relation to the largest
    /// weight of the row).
    #[arg(long, hide_short_help = true)]
    pub unfold: bool,

    /// Split the output into files with at most SIZE of tensors, for example 2GB
    ///
    /// GGUF files are named OUT-00001-of-0000N.gguf. Hugging Face files are named model-00001-of-0000N.safetensors and
    /// have an index; their default is 5GB. A tensor that is larger than SIZE gets its own file.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    pub split_max_size: Option<u64>,

    #[command(flatten)]
    pub how: SourceArgs,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = PLAN_EXAMPLES)]
pub struct PlanArgs {
    #[command(flatten)]
    pub conversion: ConversionArgs,

    /// File or object to write the plan to, for example --plan plan.json or --plan s3://bucket/plan.json
    #[arg(long, value_name = "PLAN.json")]
    pub plan: PathBuf,

    /// Replace an older plan
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = JOB_EXAMPLES)]
pub struct JobArgs {
    /// Plan that `bitnet-convert plan` wrote: a file, or an object (s3://…)
    #[arg(value_name = "PLAN.json")]
    pub plan: PathBuf,

    /// Run this job; give it again for more jobs, for example --index 0 --index 5
    ///
    /// Jobs count from 0. Without this flag the number is the value of SLURM_ARRAY_TASK_ID, or else of
    /// JOB_COMPLETION_INDEX: Slurm sets the first for the tasks of an array, Kubernetes the second for the pods of an
    /// indexed Job.
    #[arg(long, value_name = "I", value_parser = job_number, allow_hyphen_values = true)]
    pub index: Vec<usize>,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = FINISH_EXAMPLES)]
pub struct FinishArgs {
    /// Plan that `bitnet-convert plan` wrote: a file, or an object (s3://…)
    #[arg(value_name = "PLAN.json")]
    pub plan: PathBuf,

    /// Remove the parts and partial certificates of the jobs when the output is complete
    #[arg(long)]
    pub remove_parts: bool,

    /// Replace an output that exists, as in a conversion
    #[arg(long)]
    pub force: bool,

    /// Sign the output as a conversion does, for example --sign ~/.ssh/id_ed25519
    ///
    /// Writes a statement (in-toto, SLSA provenance) and its signature beside the certificate. The statement lists the source
    /// files, the output files and the version of the program. `bitnet-verify OUT --certificate FILE --trusted-keys KEYS` checks
    /// both. The key must have no password: make one with `ssh-keygen -t ed25519 -N '' -f KEY`.
    #[arg(long, value_name = "KEY", hide_short_help = true)]
    pub sign: Option<PathBuf>,
}

#[derive(Debug, Clone, ClapArgs)]
#[command(
    after_help = "Examples:\n  bitnet-convert inspect model.gguf --tensors\n  bitnet-convert inspect hf://OWNER/NAME --readers"
)]
pub struct InspectArgs {
    /// Checkpoint directory, .safetensors, .bin, .pt, index or .gguf file, or hf://OWNER/NAME, https://…, s3://…
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Show which programs can load the file and which compute something else with it
    ///
    /// Each line has the reason and the page of formats/ with the facts. `--dry-run --json` of a conversion shows the same
    /// for the planned output.
    #[arg(long)]
    pub readers: bool,

    #[command(flatten)]
    pub how: SourceArgs,
}

/// An upload.
#[derive(Debug, Clone, ClapArgs)]
#[command(after_help = "\
Example:
  bitnet-convert push model.gguf hf://me/my-model-gguf --private
  bitnet-convert push ./packed hf://me/my-model --dry-run")]
pub struct PushArgs {
    /// File or directory that bitnet-convert wrote, for example model.gguf
    #[arg(value_name = "OUT")]
    pub output: PathBuf,

    /// Repository to upload to: hf://OWNER/NAME[@REVISION][/DIRECTORY]
    ///
    /// The repository and the branch are created if they do not exist. The token is HF_TOKEN, or the token of `hf auth
    /// login`. An upload that was interrupted continues: files that the server has are not sent again.
    #[arg(value_name = "REPOSITORY")]
    pub repository: PathBuf,

    /// Commit to this branch [default: main], for example --revision v2
    #[arg(long, value_name = "BRANCH")]
    pub revision: Option<String>,

    /// Make the repository private if it is created
    #[arg(long)]
    pub private: bool,

    /// Set the message of the commit, for example --message "Add TQ2_0"
    #[arg(long, value_name = "TEXT")]
    pub message: Option<String>,

    /// Print the files and the model card, and upload nothing
    #[arg(long)]
    pub dry_run: bool,
}

fn target(name: &str) -> Result<&'static Target, String> {
    targets::by_name(name).ok_or_else(|| {
        let names: Vec<_> = targets::TARGETS.iter().map(|t| t.name).collect();
        let meant = bitnet_cli::did_you_mean(name, names.iter().copied());
        // a tip becomes a hint
        let tip = meant.unwrap_or_else(|| {
            "run `bitnet-convert list` to see what each target holds".to_owned()
        });
        format!("expected one of {}\n\n  tip: {tip}", names.join(", "))
    })
}

/// What is wrong with a command line, where that is more than clap says.
pub fn explain(words: &[OsString], error: Option<&clap::Error>) -> Option<Failure> {
    let error = error?;
    if bitnet_cli::is_told_by_clap(error) {
        return None;
    }
    let (first, rest) = match bitnet_cli::words_without_command(&Args::command(), words)? {
        Ok(words) => words,
        Err(failure) => return Some(failure),
    };
    let (second, more) = rest.split_first()?;
    let has_output = words.iter().any(|word| {
        let word = word.to_string_lossy();
        ["--output", "--outfile"].iter().any(|flag| {
            word.strip_prefix(flag)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        }) || word.starts_with("-o")
    });
    let failure = Failure::usage(format!("unexpected argument `{second}` behind the source"));
    let [first, output] = [&first, second].map(shell_word);
    // llama-quantize takes the source, the output and the type
    let type_name = more.first().and_then(|name| {
        let names = targets::TARGETS.iter().map(|target| target.name);
        bitnet_cli::nearest(name, names).first().copied()
    });
    if let (Some(target), false) = (type_name, has_output) {
        return Some(failure.hint(format!(
            "give output and target with their flags: bitnet-convert {first} -o {output} --to {target}"
        )));
    }
    Some(match has_output || !more.is_empty() {
        true => failure.hint("convert one source at a time: bitnet-convert SRC -o OUT"),
        false => failure.hint(format!(
            "give the output with -o: bitnet-convert {first} -o {output}"
        )),
    })
}

/// How embeddings and output head are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Embeddings {
    /// As in the source.
    #[default]
    Keep,
    /// As this type.
    As(Embedded),
}

/// The types embeddings can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Embedded {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q6K,
}

impl Embedded {
    pub fn encoding(self) -> Encoding {
        match self {
            Self::F32 => Encoding::Plain(PlainType::F32),
            Self::F16 => Encoding::Plain(PlainType::F16),
            Self::Bf16 => Encoding::Plain(PlainType::Bf16),
            Self::Q8_0 => Encoding::Block(BlockType::Q8_0),
            Self::Q6K => Encoding::Block(BlockType::Q6_K),
        }
    }
}

impl ValueEnum for Embeddings {
    fn value_variants<'a>() -> &'a [Self] {
        use Embedded::*;
        &[
            Self::Keep,
            Self::As(F32),
            Self::As(F16),
            Self::As(Bf16),
            Self::As(Q8_0),
            Self::As(Q6K),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Keep => "keep",
            Self::As(Embedded::F32) => "f32",
            Self::As(Embedded::F16) => "f16",
            Self::As(Embedded::Bf16) => "bf16",
            Self::As(Embedded::Q8_0) => "q8_0",
            Self::As(Embedded::Q6K) => "q6_k",
        }))
    }
}

/// The number of one job.
fn job_number(text: &str) -> Result<usize, String> {
    let number = bitnet_cli::whole_from(text, 0);
    number
        .map_err(|e| format!("{e}, the number of one job; give --index again for each further job"))
}
