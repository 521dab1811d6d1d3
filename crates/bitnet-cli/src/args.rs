//! How a command line is parsed, and what is said of a wrong one.
//!
//! Invariant: `--json` gets its one object even when the rest of the command line does not parse.

use crate::console::{self, Stream};
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::generate::named;
use crate::global::{ColorWhen, GlobalArgs};
use bitnet_formats::ErrorCode;
use clap::Parser;
use clap::error::ErrorKind;
use std::ffi::OsString;
use std::io::Write;

/// Parses a command line; help and version go to `out`, errors to `err` (under `--json`: to `out`).
///
/// # Errors
/// The status to return when there is nothing left to do.
pub fn parse<P: Parser>(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<P, ExitStatus> {
    parse_with(args, out, err, |_, _| None)
}

/// As [`parse`]; `explain` is given the words behind the program's name and, of a command line that clap does not take,
/// clap's error, and may know better what is wrong.
///
/// # Errors
/// As [`parse`].
pub fn parse_with<P: Parser>(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
    explain: impl Fn(&[OsString], Option<&clap::Error>) -> Option<Failure>,
) -> Result<P, ExitStatus> {
    let args: Vec<OsString> = args.collect();
    let words = args.get(1..).unwrap_or_default();
    let mut command = named(P::command());
    let parsed = command
        .try_get_matches_from_mut(&args)
        .and_then(|matches| P::from_arg_matches(&matches))
        .map_err(|error| error.format(&mut command));
    let (error, explained) = match parsed {
        Ok(parsed) => match explain(words, None) {
            None => return Ok(parsed),
            Some(failure) => (None, Some(failure)),
        },
        Err(error) => {
            let explained = explain(words, Some(&error));
            (Some(error), explained)
        }
    };
    // the command line did not parse, so these two are looked for by hand
    let flags = || args.iter().skip(1).take_while(|a| *a != "--");
    let json = flags().any(|a| a == "--json");
    let color = color_flag(flags());
    match error {
        Some(error)
            if explained.is_none()
                && matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
                ) =>
        {
            let text = error.render();
            let written = if console::colored(color, Stream::Out) {
                write!(out, "{}", text.ansi())
            } else {
                write!(out, "{text}")
            };
            let global = GlobalArgs {
                json,
                color,
                ..GlobalArgs::default()
            };
            let written = written.map(|()| ExitStatus::Done).map_err(Failure::from);
            Err(console::Console::new(&global, out, err).finish(written))
        }
        error => {
            let of_clap = || {
                let rendered = error.map(|e| e.render().to_string());
                usage_failure(&rendered.unwrap_or_default())
            };
            let failure = explained.unwrap_or_else(of_clap);
            let global = GlobalArgs {
                json,
                color,
                ..GlobalArgs::default()
            };
            Err(console::Console::new(&global, out, err).finish(Err(failure)))
        }
    }
}

fn color_flag<'a>(args: impl Iterator<Item = &'a OsString>) -> ColorWhen {
    let mut found = ColorWhen::Auto;
    let mut next_is_value = false;
    for arg in args.filter_map(|a| a.to_str()) {
        let value = if next_is_value {
            Some(arg)
        } else {
            arg.strip_prefix("--color=")
        };
        next_is_value = arg == "--color";
        match value {
            Some("always") => found = ColorWhen::Always,
            Some("never") => found = ColorWhen::Never,
            _ => {}
        }
    }
    found
}

/// "a similar argument exists: '--embeddings'" as a question; other tips as they are.
fn tip_in_our_words(tip: &str) -> String {
    let similar = tip
        .strip_prefix("a similar ")
        .or_else(|| tip.strip_prefix("some similar "))
        .and_then(|tip| tip.split_once(": "));
    match similar {
        Some((_, names)) => format!("did you mean {}?", names.replace('\'', "")),
        None => tip.to_owned(),
    }
}

/// clap's several lines in our one line and hints.
fn usage_failure(rendered: &str) -> Failure {
    let mut message = String::new();
    let mut hints: Vec<String> = Vec::new();
    for line in rendered.lines() {
        let text = line.trim();
        if let Some(tip) = text.strip_prefix("tip: ") {
            // clap offers `-- --flag` for every word with a dash, where no command takes such a word
            if tip.starts_with("to pass '") {
                continue;
            }
            hints.push(tip_in_our_words(tip));
        } else if let Some(usage) = text.strip_prefix("Usage: ") {
            hints.push(format!("usage: {usage}"));
        } else if text.starts_with("For more information") {
            hints.push("--help explains every flag".to_owned());
        } else if !text.is_empty() && hints.is_empty() {
            let text = text.strip_prefix("error: ").unwrap_or(text);
            if !message.is_empty() {
                message.push(' ');
            }
            message.push_str(text);
        }
    }
    // a program called without arguments: clap renders its help as the error
    if message.is_empty() {
        message.push_str("arguments are missing");
    }
    hints
        .into_iter()
        .fold(Failure::new(ErrorCode::Usage, message), Failure::hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    #[command(name = "t", version)]
    struct T {
        /// A file
        file: String,
        #[command(flatten)]
        global: GlobalArgs,
    }

    fn parse_text(args: &[&str]) -> (Result<T, ExitStatus>, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let args = args.iter().map(OsString::from);
        let result = parse(
            std::iter::once(OsString::from("t")).chain(args),
            &mut out,
            &mut err,
        );
        (
            result,
            String::from_utf8(out).unwrap(),
            String::from_utf8(err).unwrap(),
        )
    }

    #[test]
    fn usage_errors_are_one_line_with_hints_or_one_object() {
        let (result, out, err) = parse_text(&["a", "--thread", "2"]);
        assert_eq!(result.unwrap_err(), ExitStatus::CouldNot);
        assert!(out.is_empty());
        let mut lines = err.lines();
        assert!(
            lines
                .next()
                .unwrap()
                .starts_with("error: unexpected argument '--thread'"),
            "{err}"
        );
        assert!(lines.all(|l| l.starts_with("hint: ")), "{err}");

        let (_, out, err) = parse_text(&["--json"]);
        assert!(err.is_empty());
        let json: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(json["error"]["code"], "usage");
        assert!(
            json["error"]["message"]
                .as_str()
                .unwrap()
                .contains("<FILE>"),
            "{json}"
        );
    }

    #[test]
    fn help_is_data_and_threads_are_bounded() {
        let (result, out, _) = parse_text(&["--help"]);
        assert_eq!(result.unwrap_err(), ExitStatus::Done);
        assert!(out.contains("--threads"));
        for bad in ["0", "-1", "1025", "x"] {
            assert!(parse_text(&["a", "--threads", bad]).0.is_err(), "{bad}");
        }
        assert_eq!(
            parse_text(&["a", "-j", "3"])
                .0
                .unwrap()
                .global
                .thread_count(),
            3
        );
    }
}
