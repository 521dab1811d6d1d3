//! What is wrong with a command line, where that is more than clap says, and spellings of llama.cpp.
//!
//! Invariant: a flag of llama.cpp is understood, or answered with the flag of this program; nothing is ignored silently.

use super::Args;
use bitnet_cli::{Failure, shell_word};
use clap::CommandFactory;
use clap::error::ErrorKind;
use std::ffi::OsString;

/// Flags whose value is any text.
const TEXTS: [&str; 5] = ["-p", "--prompt", "--system", "--stop", "--json-schema"];

/// Flags of llama.cpp that have another form here, and what to do instead.
const SPELLINGS: [(&[&str], &str); 17] = [
    (
        &[
            "-ngl",
            "--gpu-layers",
            "--n-gpu-layers",
            "-dev",
            "--device",
            "-sm",
            "--split-mode",
            "-ts",
            "--tensor-split",
            "-mg",
            "--main-gpu",
            "-nkvo",
            "--no-kv-offload",
            "-ot",
            "--override-tensor",
            "-ncmoe",
            "--n-cpu-moe",
        ],
        "leave out the flag: this program computes on the CPU",
    ),
    (
        &[
            "-cnv",
            "--conversation",
            "-i",
            "--interactive",
            "-if",
            "--interactive-first",
            "-ins",
            "--instruct",
        ],
        "start a chat with --chat",
    ),
    (
        &["-st", "--single-turn"],
        "answer one message with --chat -p TEXT",
    ),
    (
        &["-no-cnv", "--no-conversation"],
        "leave out the flag: without --chat a text is continued",
    ),
    (
        &["-sys", "-sysf", "--system-prompt-file"],
        "set the system message with --system TEXT",
    ),
    (
        &["-t", "-tb", "--threads-batch"],
        "set the number of threads with -j N",
    ),
    (
        &[
            "-b",
            "-ub",
            "--batch-size",
            "--ubatch-size",
            "-fa",
            "--flash-attn",
            "-nocb",
            "-cb",
            "--cont-batching",
        ],
        "leave out the flag: how the program computes changes no result",
    ),
    (
        &["-ctk", "-ctv", "--cache-type-k", "--cache-type-v"],
        "set the type of the KV cache with --kv-type f32, f16 or q8",
    ),
    (
        &[
            "--mlock",
            "--no-mmap",
            "--mmap",
            "--numa",
            "--no-warmup",
            "--warmup",
            "--log-disable",
            "--no-display-prompt",
            "--display-prompt",
            "--simple-io",
            "--no-perf",
            "--perf",
            "--jinja",
            "--no-jinja",
            "-co",
            "-v",
            "--verbose",
            "-lv",
            "--verbosity",
            "--verbose-prompt",
            "-e",
            "--escape",
            "--no-escape",
            "--keep",
            "--no-context-shift",
            "--context-shift",
            "--repeat-last-n",
            "-sp",
            "--special",
        ],
        "leave out the flag",
    ),
    (
        &["-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"],
        "name the model by its repository: bitnet-run hf://OWNER/NAME",
    ),
    (
        &["-mu", "--model-url"],
        "name the model by its address: bitnet-run https://HOST/model.gguf",
    ),
    (
        &["-r", "--reverse-prompt"],
        "end the text in front of a string with --stop TEXT",
    ),
    (
        &["-rea", "--reasoning", "--reasoning-budget"],
        "turn thinking on or off with --think on or --think off",
    ),
    (
        &["--reasoning-format"],
        "choose how thinking is shown with --thoughts show, fold or hide",
    ),
    (
        &[
            "--rope-scaling",
            "--rope-scale",
            "--rope-freq-base",
            "--rope-freq-scale",
            "--yarn-orig-ctx",
            "--chat-template",
            "--chat-template-file",
            "--override-kv",
            "-gan",
            "-gaw",
        ],
        "leave out the flag: the settings of the model are used",
    ),
    (
        &[
            "--typical",
            "--mirostat",
            "--dynatemp-range",
            "--xtc-probability",
            "--dry-multiplier",
            "--top-nsigma",
            "--samplers",
            "--sampling-seq",
        ],
        "sample with --temp, --top-k, --top-p and --min-p",
    ),
    (
        &["-l", "--logit-bias"],
        "start `bitnet-run serve`, whose requests take logit_bias",
    ),
];

/// The command line as clap takes it: the command in front of the flags that all commands have, and the model in its place
/// where it was given as llama.cpp takes it, `-m MODEL`.
pub fn in_order(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words = with_model_in_place(words);
    let behind = words.split_off(words.len().min(1));
    words.extend(bitnet_cli::command_first(&Args::command(), behind));
    words
}

fn with_model_in_place(words: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut words: Vec<OsString> = words.collect();
    let is_text = |at: usize| {
        words
            .get(at)
            .is_some_and(|word| TEXTS.iter().any(|flag| word == flag))
    };
    let is_flag = |at: usize| words[at] == "-m" || words[at] == "--model";
    let Some(at) = (1..words.len().saturating_sub(1)).find(|at| is_flag(*at) && !is_text(at - 1))
    else {
        return words;
    };
    let model = words.remove(at + 1);
    words.remove(at);
    let command = Args::command();
    let is_command = |word: &OsString| command.get_subcommands().any(|sub| word == sub.get_name());
    let is_value = |at: usize| TEXTS.iter().any(|flag| words[at - 1] == *flag);
    let place = (1..words.len())
        .find(|&at| is_command(&words[at]) && !is_value(at))
        .map_or(1, |at| at + 1);
    words.insert(place.min(words.len()), model);
    words
}

/// What is wrong with a command line, where that is more than clap says.
pub fn explain(words: &[OsString], error: Option<&clap::Error>) -> Option<Failure> {
    let is_shown =
        |e: &clap::Error| matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    // clap takes `-hf` for `-h` and shows the help
    let is_repository = |word: &OsString| ["-hf", "-hfr", "-hff"].iter().any(|flag| word == flag);
    if error.is_some_and(is_shown) && !words.iter().any(is_repository) {
        return None;
    }
    if words.is_empty() {
        let failure = Failure::usage("no model given");
        return Some(
            failure
                .hint("run `bitnet-run demo` to try the model that ships with the program")
                .hint(
                    "run a model of your own: bitnet-run MODEL --chat; --help explains every flag",
                ),
        );
    }
    let command = Args::command();
    if let Some(failure) = of_llama(&command, words, error.is_some()) {
        return Some(failure);
    }
    if error.is_some_and(bitnet_cli::is_told_by_clap) {
        return None;
    }
    let (first, rest) = match bitnet_cli::words_without_command(&command, words)? {
        Ok(words) => words,
        Err(failure) => return Some(failure),
    };
    if rest.len() > 1 && error.is_some() {
        let text = rest.join(" ");
        return Some(
            Failure::usage(format!(
                "expected one text behind the model, found `{text}`"
            ))
            .hint(format!(
                "put the prompt in quotes: bitnet-run {} -p {}",
                shell_word(&first),
                shell_word(&text)
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

/// The first flag of llama.cpp that the command does not have. Of a command line that parses, only those count that clap
/// takes for a letter with its value: `-fa` is no file named `a`.
fn of_llama(program: &clap::Command, words: &[OsString], failed: bool) -> Option<Failure> {
    let first = words.first()?;
    let command = program
        .get_subcommands()
        .find(|sub| first == sub.get_name())
        .unwrap_or(program);
    let mut before = "";
    for word in words
        .iter()
        .filter_map(|word| word.to_str())
        .take_while(|word| *word != "--")
    {
        let name = word.split('=').next().unwrap_or(word);
        let is_value = TEXTS.contains(&before);
        before = word;
        let known = || {
            SPELLINGS
                .iter()
                .find(|(spellings, _)| spellings.contains(&name))
        };
        if is_value
            || !word.starts_with('-')
            || bitnet_cli::is_flag(command, name)
            || !(failed || name == "-fa")
        {
            continue;
        }
        if let Some((_, instead)) = known() {
            let failure = Failure::usage(format!("unexpected flag {name}, which llama.cpp has"));
            return Some(failure.hint(*instead));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(text: &str) -> String {
        let words = with_model_in_place(text.split(' ').map(OsString::from));
        let words: Vec<String> = words
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        words.join(" ")
    }

    #[test]
    fn a_model_behind_its_flag_is_put_in_its_place() {
        for (given, placed_) in [
            ("run -m a.gguf -p hi", "run a.gguf -p hi"),
            ("run -p hi -m a.gguf -n 3", "run a.gguf -p hi -n 3"),
            (
                "run serve --port 1 --model a.gguf",
                "run serve a.gguf --port 1",
            ),
            ("run --quiet serve -m a.gguf", "run --quiet serve a.gguf"),
            ("run -p serve -m a.gguf", "run a.gguf -p serve"),
            ("run a.gguf -p -m x", "run a.gguf -p -m x"),
            ("run -m", "run -m"),
            ("run a.gguf", "run a.gguf"),
            ("run", "run"),
        ] {
            assert_eq!(placed(given), placed_);
        }
    }

    #[test]
    fn no_spelling_is_listed_twice() {
        let mut all: Vec<&str> = SPELLINGS
            .iter()
            .flat_map(|(spellings, _)| *spellings)
            .copied()
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }
}
