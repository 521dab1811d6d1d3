//! The command line.
//!
//! Invariant: every flag has help with an example or a default; what the program prints is
//! `formats/report.md`.

use crate::settings::Bounds;
use crate::share::Share;
use bitnet_cli::{Documents, Failure, GlobalArgs, shell_word};
use clap::{Args as ClapArgs, CommandFactory, Parser, Subcommand};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const EXAMPLES: &str = "\
Examples:
  bitnet-verify model.gguf --against ./checkpoint
  bitnet-verify model.gguf --certificate model.gguf.certificate.json --junit report.xml
  bitnet-verify model.gguf --logits --against hf://OWNER/NAME --html report.html
  bitnet-verify doctor model.gguf";

/// What `--version` says: with the kernel that computes by default on this machine.
fn long_version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| bitnet_cli::long_version(bitnet_kernels::Backend::best().name()))
}

/// Prove that a converted model has the weights and the results of its source
///
/// A model is a Hugging Face checkpoint directory, a .safetensors file or its index, or a .gguf
/// file (any part of a split file). Exit status: 0 the same, 1 a difference was found, 2 could not
/// compare.
#[derive(Debug, Parser)]
#[command(
    name = "bitnet-verify",
    version,
    long_version = long_version(),
    after_help = EXAMPLES,
    max_term_width = 100,
    about = "Prove that a converted model has the weights and the results of its source",
    subcommand_negates_reqs = true,
    override_usage = "bitnet-verify ARTIFACT --against SRC [--junit FILE]\n       \
                      bitnet-verify ARTIFACT --certificate FILE\n       \
                      bitnet-verify ARTIFACT --logits [--against SRC] [--golden DIR] [--prompts FILE]\n       \
                      bitnet-verify doctor MODEL [--fix -o OUT]\n       \
                      bitnet-verify merge REPORT..."
)]
pub struct Args {
    /// What is done instead of a comparison.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The comparison.
    #[command(flatten)]
    pub compare: CompareArgs,

    #[command(flatten)]
    pub(crate) global: GlobalArgs,
}

/// What is done instead of a comparison.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Find faults in a model without a source
    Doctor(DoctorArgs),
    /// Join the reports of all shares of a comparison
    Merge(MergeArgs),
    /// Documents of the program itself.
    #[command(flatten)]
    Documents(Documents),
}

/// The reports of all shares.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  bitnet-verify merge share-1.json share-2.json share-3.json")]
pub struct MergeArgs {
    /// What `bitnet-verify ARTIFACT --against SRC --shard I/N --json` printed, one file for each share
    #[arg(value_name = "REPORT", required = true)]
    pub reports: Vec<PathBuf>,
}

/// An examination.
#[derive(Debug, Clone, ClapArgs)]
#[command(
    after_help = "Examples:\n  bitnet-verify doctor model.gguf\n  bitnet-verify doctor model.gguf --fix -o fixed.gguf\n  \
                  bitnet-verify doctor model.gguf --bundle report.zip"
)]
pub struct DoctorArgs {
    /// The model, for example ./model-i2_s.gguf or hf://OWNER/NAME
    #[arg(value_name = "MODEL")]
    pub model: PathBuf,

    /// Check the model against FILE [default: the certificate beside the model, if any]
    ///
    /// Only a certificate or a source shows that a weight was changed. Example: --certificate
    /// model.gguf.certificate.json
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,

    /// Write a corrected copy, for example --fix -o fixed.gguf
    ///
    /// Repairs metadata of GGUF files: the file type, the pre-tokenizer of a published vocabulary, the architecture, and
    /// output heads that the model does not use. Weights are copied byte for byte.
    #[arg(long, requires = "output")]
    pub fix: bool,

    /// Write the copy of --fix to OUT
    #[arg(short, long, value_name = "OUT", requires = "fix")]
    pub output: Option<PathBuf>,

    /// Write a zip file for a report of a fault, for example --bundle report.zip
    ///
    /// FILE holds the headers, the settings, chat templates, hashes and what doctor found, also of a model that cannot be
    /// read. It holds no weights, no whole vocabulary, no local paths and no secrets. Its README.txt says what is in it.
    #[arg(long, value_name = "FILE", conflicts_with = "fix")]
    pub bundle: Option<PathBuf>,

    /// Replace OUT or FILE if it exists; never the model itself
    #[arg(long)]
    pub force: bool,

    /// Exit with 1 also for warnings
    #[arg(long)]
    pub strict: bool,

    /// Read the files only, do not run the model
    #[arg(long)]
    pub no_run: bool,

    /// Set the layout of I2_S tensors, for example --layout i2_s-arm64
    #[arg(long, value_name = "NAME", value_parser = bitnet_cli::layout)]
    pub layout: Option<String>,

    /// Confirm that float weights are master weights of a ternary-trained model
    #[arg(long)]
    pub ternary_trained: bool,
}

/// A comparison.
#[derive(Debug, Clone, ClapArgs)]
pub struct CompareArgs {
    /// The model to verify, for example ./model-i2_s.gguf or hf://OWNER/NAME/model.gguf
    #[arg(value_name = "ARTIFACT", required = true)]
    pub artifact: Option<PathBuf>,

    /// Compare with the source of the model, for example --against ./checkpoint
    ///
    /// Compares the tensors and their sizes, the settings that change results (activation function, norms, rope, tokenizer,
    /// special tokens, chat template), every trit, every bit of every scale and every dense value. Reports the first
    /// difference of each tensor: row, column, expected, found.
    #[arg(long, value_name = "SRC")]
    pub against: Option<PathBuf>,

    /// Compare only part I of N of the tensors, for example --shard 2/8
    ///
    /// Each tensor is in one share, so N machines share the work. Save what --json prints of each share, and join the
    /// reports with `bitnet-verify merge REPORT...`. Every share compares the structure and the settings.
    #[arg(long, value_name = "I/N", value_parser = Share::parse, requires = "against", hide_short_help = true,
        conflicts_with_all = ["certificate", "trusted_keys", "logits", "golden", "logits_from", "prompts", "kernel", "junit", "html", "markdown", "baseline"])]
    pub shard: Option<Share>,
    /// Read remote models in ranges and store nothing, for example --stream hf://OWNER/NAME --against ./checkpoint
    ///
    /// Without this flag, models of the Hub are downloaded into the cache of huggingface_hub.
    #[arg(long, hide_short_help = true)]
    pub stream: bool,

    /// Compare with a certificate, for example --certificate m.certificate.json
    ///
    /// Every lossless conversion of the certified model passes. If the certificate lists the files of the artifact, their
    /// hashes are compared, too.
    #[arg(long, value_name = "FILE")]
    pub certificate: Option<PathBuf>,

    /// Check who signed the certificate and the files, for example --trusted-keys allowed_signers
    ///
    /// FILE has one OpenSSH ed25519 public key in each line, with or without a name before the key. `bitnet-convert --sign`
    /// writes the signed statement beside the certificate. `ssh-keygen -Y verify -n bitnet-conversion` checks the same
    /// signature.
    #[arg(
        long,
        value_name = "FILE",
        requires = "certificate",
        hide_short_help = true
    )]
    pub trusted_keys: Option<PathBuf>,

    /// Run the model: against --golden, --against, or the built-in oracle
    ///
    /// Without --golden, an independent dense implementation (the oracle) computes the same logits: first each layer from
    /// the hidden state of the runtime, then the whole model. With --against, the logits of both models must be equal bit
    /// for bit.
    #[arg(long)]
    pub logits: bool,

    /// Check against outputs of transformers, for example --golden ./golden
    ///
    /// Reads prompts.json and logits_f32.safetensors, and if present logits_bf16.safetensors, greedy.json,
    /// perplexity.json, ternary.json and trace_short_f32.safetensors. A difference is reported by its cause
    /// (rope-theta, permuted-rows, pre-tokenizer, ...) with the layer and tensor where it begins. Implies --logits.
    #[arg(long, value_name = "DIR")]
    pub golden: Option<PathBuf>,

    /// Compare with another runtime, for example --logits-from l.safetensors
    ///
    /// FILE has the tensors `<prompt>.logits` and `<prompt>.ids`. scripts/other_logits.py writes them for llama-cpp-python
    /// and transformers. If the ids are absent, --prompts or a prompts.json beside FILE must have them.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub logits_from: Option<PathBuf>,

    /// Compute the token sequences of FILE, a JSON file
    ///
    /// The file holds {"name": {"ids": [1, 2, 3]}} or [[1, 2, 3]]. Default: a few sequences of tokens from the whole
    /// vocabulary. Implies --logits.
    #[arg(long, value_name = "FILE")]
    pub prompts: Option<PathBuf>,

    /// Compute with this kernel, or with all [default: the fastest]
    ///
    /// Example: --kernel scalar
    ///
    /// With all, the logits of all kernels of this machine must be equal bit for bit.
    #[arg(long, value_name = "NAME|all")]
    pub kernel: Option<String>,

    /// Write the report as JUnit XML, for example --junit report.xml
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,

    /// Write the report as one HTML page, for example --html report.html
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,

    /// Write the report as Markdown for a model card, for example --markdown report.md
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub markdown: Option<PathBuf>,

    /// Replace the files of --junit, --html and --markdown; never a file that the run reads
    #[arg(long, hide_short_help = true)]
    pub force: bool,

    /// Fail if this run is worse than an earlier run
    ///
    /// Example: --baseline report.json
    ///
    /// FILE is the output of `bitnet-verify --json` of the earlier run. A run is worse if a check was `same` and is not
    /// any more, or if a figure of logits or layers grew by more than --baseline-slack.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub baseline: Option<PathBuf>,

    /// Read thresholds from FILE [default: bitnet-verify.toml in the current directory, if any]
    ///
    /// FILE has a table [thresholds] with the flags below as keys, for example max_kl = 2e-3. Flags override it.
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    pub config: Option<PathBuf>,

    /// Set the layout of I2_S tensors in SRC, for example --layout i2_s-arm64
    ///
    /// Without --against, the layout is that of ARTIFACT. A GGUF file does not name its I2_S layout. The default is i2_s.
    #[arg(long, value_name = "NAME", value_parser = bitnet_cli::layout, help_heading = "How models are read")]
    pub layout: Option<String>,

    /// Set the layout of I2_S tensors in ARTIFACT, for example --artifact-layout i2_s-arm64
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "How models are read",
        hide_short_help = true
    )]
    pub artifact_layout: Option<String>,

    /// Confirm that SRC has master weights of a ternary-trained model
    ///
    /// Without --against, the flag is about ARTIFACT. Needed for float checkpoints whose configuration does not say so.
    #[arg(long, help_heading = "How models are read")]
    pub ternary_trained: bool,

    #[command(flatten)]
    pub(crate) thresholds: Bounds,
}

/// What is wrong with a command line, where that is more than clap says.
pub(crate) fn explain(words: &[OsString], error: Option<&clap::Error>) -> Option<Failure> {
    let error = error?;
    if bitnet_cli::is_told_by_clap(error) {
        return None;
    }
    let (first, rest) = match bitnet_cli::words_without_command(&Args::command(), words)? {
        Ok(words) => words,
        Err(failure) => return Some(failure),
    };
    let second = rest.first()?;
    let failure = Failure::usage(format!(
        "unexpected argument `{second}` behind the artifact"
    ));
    Some(failure.hint(format!(
        "give what the artifact is compared with: bitnet-verify {} --against {}, or --certificate FILE",
        shell_word(&first),
        shell_word(second)
    )))
}

impl CompareArgs {
    /// The model in question; the command line does not parse without it.
    pub(crate) fn artifact(&self) -> &Path {
        self.artifact.as_deref().unwrap_or(Path::new(""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::thresholds::Thresholds;
    use crate::report::baseline::SLACK;

    #[test]
    fn the_definition_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn help_names_the_defaults_that_hold() {
        let help = Args::command().render_long_help().to_string();
        let usual = Thresholds::default();
        for default in [
            usual.linear_error,
            usual.typical_layer_error,
            usual.layer_error,
            usual.embedding_distance,
            usual.kl_mean,
            usual.top1,
            usual.flip_margin,
            usual.nll_shift,
            SLACK,
        ] {
            let (plain, scientific) = (
                format!("[default: {default}]"),
                format!("[default: {default:e}]"),
            );
            assert!(
                help.contains(&plain) || help.contains(&scientific),
                "{default}"
            );
        }
    }

    #[test]
    fn short_help_fits_the_screen() {
        let help = Args::command().render_help().to_string();
        assert!(help.lines().count() <= 45, "{help}");
    }
}
