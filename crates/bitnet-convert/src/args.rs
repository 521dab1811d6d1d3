//! The command line of `bitnet-convert`, as `formats/report.md` and the help texts word it.
//!
//! Invariant: nothing is decided here that `--help` does not say.

use crate::targets::{self, Target};
use bitnet_cli::{Failure, GlobalArgs, Shell, parse_size};
use bitnet_formats::{BlockType, Encoding, PlainType};
use clap::builder::PossibleValue;
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  bitnet-convert ./bitnet-b1.58-2B-4T-bf16 -o model.gguf
  bitnet-convert model.gguf -o ./packed --to hf-packed
  bitnet-convert inspect model.gguf
  bitnet-convert list";

/// Converts BitNet b1.58 checkpoints between containers and packings, one tensor at a time
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-convert",
    version,
    subcommand_negates_reqs = true,
    override_usage = "bitnet-convert [OPTIONS] SRC -o OUT\n       bitnet-convert inspect MODEL [--tensors]\n       bitnet-convert list",
    after_help = EXAMPLES,
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
    /// Says what a model file holds
    Inspect(InspectArgs),
    /// Lists targets, sources and families
    List,
    /// Prints a completion script, for example: bitnet-convert completions bash
    #[command(hide = true)]
    Completions { shell: Shell },
    /// Prints the man page (roff)
    #[command(hide = true)]
    Man,
}

/// Flags that say how a source is to be read; `inspect` has them as well.
#[derive(Debug, Clone, Default, ClapArgs)]
pub struct SourceArgs {
    /// I2_S layout of a GGUF source whose type id does not say it: --layout i2_s-arm64
    ///
    /// Three layouts share one GGUF type id and nothing in a file tells them apart: i2_s (blocks of
    /// 128; every published file), i2_s-arm64, i2_s-rows4. Without this flag the data decide where they
    /// can (`inspect` shows the evidence); where they cannot, i2_s is assumed, with a warning. Types of
    /// one id but different lengths (q2_0-g128, tl2) are told apart by the distances between tensors.
    #[arg(long, value_name = "NAME", help_heading = "Source")]
    pub layout: Option<String>,

    /// Another copy of the same model, to tell the layout by its trits: --against ./bitnet-2b-4t
    ///
    /// Decides between layouts of one type id: the one under which every trit is that of the copy. An
    /// error when none is.
    #[arg(
        long,
        value_name = "MODEL",
        help_heading = "Source",
        conflicts_with = "layout"
    )]
    pub against: Option<PathBuf>,

    /// Float weights are master weights of a ternary-trained model, though nothing says so
    ///
    /// Float weights that are not trits times scales are refused (not-ternary) unless config.json
    /// or norms in front of every linear say that the model is ternary-trained: rounding weights
    /// that were not trained for it destroys the model. Example: the prequantized revision of
    /// Falcon-E needs the flag.
    #[arg(long, help_heading = "Source")]
    pub ternary_trained: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct ConvertArgs {
    /// A checkpoint directory, a .safetensors, .bin or .pt file or its index, a .gguf file (or a part of one)
    #[arg(required = true, value_name = "SRC")]
    pub source: Option<PathBuf>,

    /// File or directory to write, for example -o model.gguf or -o ./model-packed
    #[arg(short, long, required = true, value_name = "OUT")]
    pub output: Option<PathBuf>,

    /// Container and packing, for example --to gguf-tq2_0; `list` explains them
    ///
    /// Without it the output decides: `.gguf` takes the first of i2_s, tq2_0, tq1_0, f32 that holds
    /// the source without loss, a directory takes hf-packed. stderr says which.
    #[arg(long, value_name = "TARGET", value_parser = target, hide_possible_values = true)]
    pub to: Option<&'static Target>,

    /// Print the plan and write nothing: tensors, types, bytes, memory, losses
    #[arg(long)]
    pub dry_run: bool,

    /// Replace an output that exists
    ///
    /// Replaces the file that -o names and the parts of an earlier output of this name, or a directory that
    /// holds only files this program wrote or is about to write. A directory with other files is refused, and
    /// so is every output that is, or holds, an input of the same run. Example: --force
    #[arg(long)]
    pub force: bool,

    /// Store embeddings and output head as keep|f32|f16|bf16|q8_0|q6_k [default: keep]
    ///
    /// `keep` changes no value. q8_0 and q6_k (GGUF only) and narrower floats do where they cannot
    /// hold one; the report then says lossless: false and by how much. Example: --embeddings q6_k
    #[arg(
        long,
        value_name = "TYPE",
        default_value = "keep",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub embeddings: Embeddings,

    /// Round scales that the target cannot hold exactly, and say by how much
    ///
    /// TQ1_0 and TQ2_0 hold f16 scales; quantised master weights have f32 scales. Without this flag
    /// such a conversion is refused (scale-rounding).
    #[arg(long)]
    pub allow_scale_rounding: bool,

    /// Split the output into files of at most SIZE of tensors, for example 2GB
    ///
    /// GGUF: OUT-00001-of-0000N.gguf. Hugging Face: model-00001-of-0000N.safetensors with an index;
    /// the default there is 5GB. A larger tensor has a file of its own.
    #[arg(long, value_name = "SIZE", value_parser = parse_size, allow_hyphen_values = true)]
    pub split_max_size: Option<u64>,

    #[command(flatten)]
    pub how: SourceArgs,
}

#[derive(Debug, Clone, ClapArgs)]
pub struct InspectArgs {
    /// A checkpoint directory, a .safetensors, .bin or .pt file or its index, a .gguf file (or a part of one)
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// List every tensor
    #[arg(long)]
    pub tensors: bool,

    /// Which programs can load the file, and which will load it and compute something else
    ///
    /// Each with the reason and the page of formats/ that says so; `--dry-run --json` says the same of
    /// an output that is only planned.
    #[arg(long)]
    pub readers: bool,

    #[command(flatten)]
    pub how: SourceArgs,
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
    let (second, more) = rest.split_first()?;
    let has_output = words.iter().any(|word| {
        let word = word.to_string_lossy();
        word == "--output" || word.starts_with("--output=") || word.starts_with("-o")
    });
    let failure = Failure::usage(format!("unexpected argument `{second}` behind the source"));
    Some(match has_output || !more.is_empty() {
        true => failure.hint("convert one source at a time: bitnet-convert SRC -o OUT"),
        false => failure.hint(format!(
            "give the output with -o: bitnet-convert {first} -o {second}"
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
