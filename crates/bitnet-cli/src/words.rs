//! Which words of a command line are neither flags nor their values.
//!
//! Invariant: follows the definition of the command line; only used to say what is wrong with one.

use crate::failure::Failure;
use crate::suggest::did_you_mean;
use clap::Command;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use std::ffi::OsString;
use std::path::Path;

/// The words of a command line that belong to no flag, up to a subcommand.
pub fn positionals(command: &Command, words: &[OsString]) -> Vec<String> {
    let mut found = Vec::new();
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word == "--" {
            found.extend(words.map(|word| word.into_owned()));
            break;
        }
        let is_flag = word.len() > 1 && word.starts_with('-');
        if !is_flag {
            found.push(word.into_owned());
            continue;
        }
        if takes_value(command, &word) {
            words.next();
        }
    }
    found
}

/// Whether the word behind this flag is its value.
fn takes_value(command: &Command, word: &str) -> bool {
    if word.contains('=') {
        return false;
    }
    let arg = match word.strip_prefix("--") {
        Some(long) => command.get_arguments().find(|a| a.get_long() == Some(long)),
        None => {
            // `-n5` has its value with it
            let mut letters = word.chars().skip(1);
            let (letter, more) = (letters.next(), letters.next());
            let named = command.get_arguments().find(|a| a.get_short() == letter);
            named.filter(|_| more.is_none())
        }
    };
    arg.is_some_and(|arg| arg.get_action().takes_values())
}

/// The words of a command line, without the program's name, with its subcommand first, where only flags that every
/// command has were in front of it.
///
/// Clap looks for no subcommand behind a flag of a program whose own arguments exclude one.
pub fn command_first(command: &Command, mut words: Vec<OsString>) -> Vec<OsString> {
    let mut at = 0;
    while let Some(word) = words.get(at).map(|word| word.to_string_lossy()) {
        let is_command = |sub: &Command| word == sub.get_name();
        if word == "help" || command.get_subcommands().any(is_command) {
            let name = words.remove(at);
            words.insert(0, name);
            break;
        }
        match global_words(command, &word) {
            Some(count) => at += count,
            None => break,
        }
    }
    words
}

/// How many words a flag is that every command has: with its value. `None` for any other word.
fn global_words(command: &Command, word: &str) -> Option<usize> {
    let globals = || command.get_arguments().filter(|arg| arg.is_global_set());
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, _)) => (name, true),
            None => (long, false),
        };
        let arg = globals().find(|arg| arg.get_long() == Some(name))?;
        return Some(1 + usize::from(arg.get_action().takes_values() && !value));
    }
    let letters = word.strip_prefix('-').filter(|l| !l.is_empty())?;
    let mut letters = letters.chars();
    while let Some(letter) = letters.next() {
        let arg = globals().find(|arg| arg.get_short() == Some(letter))?;
        if arg.get_action().takes_values() {
            // `-j2` has its value with it
            return Some(1 + usize::from(letters.next().is_none()));
        }
    }
    Some(1)
}

/// Whether this word is a flag of the command.
pub fn is_flag(command: &Command, word: &str) -> bool {
    command.get_arguments().any(|arg| {
        let long = arg.get_long().map(|long| format!("--{long}"));
        let short = arg.get_short().map(|short| format!("-{short}"));
        long.as_deref() == Some(word) || short.as_deref() == Some(word)
    })
}

/// Whether clap's error already says all there is: help, a version, or a flag that is not known.
pub fn is_told_by_clap(error: &clap::Error) -> bool {
    let invalid = error.get(ContextKind::InvalidArg);
    let is_unknown_flag =
        matches!(invalid, Some(ContextValue::String(arg)) if arg.starts_with('-'));
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::UnknownArgument => is_unknown_flag,
        _ => false,
    }
}

/// The subcommands that people may use.
pub fn subcommands(command: &Command) -> Vec<&str> {
    let all = command.get_subcommands().filter(|c| !c.is_hide_set());
    all.map(Command::get_name).collect()
}

/// The first word of a command line that belongs to no flag, and the rest of them: `None` if there is no such word or
/// the first one is a subcommand.
///
/// # Errors
/// The first word is neither a file nor a subcommand, but close to one.
pub fn words_without_command(
    command: &Command,
    words: &[OsString],
) -> Option<Result<(String, Vec<String>), Failure>> {
    let commands = subcommands(command);
    let mut positionals = positionals(command, words).into_iter();
    let first = positionals.next()?;
    if commands.contains(&first.as_str()) {
        return None;
    }
    if !Path::new(&first).exists()
        && let Some(meant) = did_you_mean(&first, commands)
    {
        let failure = Failure::usage(format!("unknown command `{first}`"));
        return Some(Err(failure.hint(meant)));
    }
    Some(Ok((first, positionals.collect())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct T {
        _model: String,
        #[arg(short, long)]
        prompt: Option<String>,
        #[arg(long)]
        greedy: bool,
    }

    #[test]
    fn values_of_flags_are_no_positionals() {
        use clap::CommandFactory;
        let command = T::command();
        let of = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            positionals(&command, &words)
        };
        assert_eq!(of(&["m", "-p", "a", "--greedy", "b"]), ["m", "b"]);
        assert_eq!(of(&["--prompt=a", "m", "-pa", "-"]), ["m", "-"]);
        assert_eq!(of(&["m", "--", "-p", "b"]), ["m", "-p", "b"]);
        assert!(is_flag(&command, "-p") && is_flag(&command, "--greedy"));
        assert!(!is_flag(&command, "- item") && !is_flag(&command, "--item"));
    }

    #[test]
    fn global_flags_may_stand_in_front_of_a_command() {
        use clap::CommandFactory;
        #[derive(Parser)]
        struct G {
            #[command(flatten)]
            _global: crate::GlobalArgs,
            #[arg(long)]
            _own: bool,
        }
        let command = G::command().subcommand(Command::new("bench"));
        for (given, put) in [
            ("--json bench m", "bench --json m"),
            ("-j1 bench m", "bench -j1 m"),
            ("-j 1 bench m", "bench -j 1 m"),
            ("-qj 1 bench m", "bench -qj 1 m"),
            ("-qj1 --json bench", "bench -qj1 --json"),
            (
                "--threads 1 --color never bench",
                "bench --threads 1 --color never",
            ),
            (
                "--threads=1 --color=never bench",
                "bench --threads=1 --color=never",
            ),
            ("--json help bench", "help --json bench"),
            // the value of a flag, a text, words behind `--` and flags of its own stay
            ("-j bench", "-j bench"),
            ("--json m bench", "--json m bench"),
            ("--json -- bench", "--json -- bench"),
            ("--own bench", "--own bench"),
            ("--json", "--json"),
            ("bench --json", "bench --json"),
            ("", ""),
        ] {
            let words = given.split(' ').filter(|w| !w.is_empty());
            let words = command_first(&command, words.map(OsString::from).collect());
            let words: Vec<&str> = words.iter().filter_map(|w| w.to_str()).collect();
            assert_eq!(words.join(" "), put, "{given}");
        }
    }

    #[test]
    fn a_mistyped_command_is_named() {
        let command = Command::new("t").subcommand(Command::new("inspect"));
        let of = |words: &[&str]| {
            let words: Vec<OsString> = words.iter().map(OsString::from).collect();
            words_without_command(&command, &words)
        };
        assert!(of(&[]).is_none() && of(&["inspect", "m"]).is_none());
        let failure = of(&["isnpect", "m"]).unwrap().unwrap_err();
        assert_eq!(failure.to_string(), "unknown command `isnpect`");
        assert_eq!(failure.hints, ["did you mean inspect?"]);
        let (first, rest) = of(&["model.gguf", "a", "b"]).unwrap().unwrap();
        assert_eq!((first.as_str(), rest.len()), ("model.gguf", 2));
    }
}
