//! The two streams of a program and who may speak on them when.
//!
//! Invariant: under `--json` stdout gets exactly one object; notes go to stderr and are silent
//! under `--quiet` and `--json`; what is said of a written file is no result and is silent under
//! `--quiet`; errors are never silent. Whether a stream is a terminal is asked
//! only when the writers are the process's own (see [`crate::main`]).

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::global::{ColorWhen, GlobalArgs};
use crate::process::{STANDARD_STREAMS, interrupted};
use serde_json::Value;
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::Ordering;

#[derive(Clone, Copy)]
pub(crate) enum Stream {
    In,
    Out,
    Err,
}

fn is_terminal(stream: Stream) -> bool {
    STANDARD_STREAMS.load(Ordering::Relaxed)
        && match stream {
            Stream::In => io::stdin().is_terminal(),
            Stream::Out => io::stdout().is_terminal(),
            Stream::Err => io::stderr().is_terminal(),
        }
}

pub(crate) fn colored(when: ColorWhen, stream: Stream) -> bool {
    match when {
        ColorWhen::Always => true,
        ColorWhen::Never => false,
        ColorWhen::Auto => {
            // https://no-color.org: set and not empty
            std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
                && std::env::var_os("TERM").is_none_or(|v| v != "dumb")
                && is_terminal(stream)
        }
    }
}

/// The streams of a program, with its global flags applied.
pub struct Console<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    json: bool,
    quiet: bool,
    color_out: bool,
    color_err: bool,
    shows_progress: bool,
}

impl<'a> Console<'a> {
    /// The streams of a program.
    pub fn new(global: &GlobalArgs, out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self {
            out,
            err,
            json: global.json,
            quiet: global.quiet,
            color_out: colored(global.color, Stream::Out),
            color_err: colored(global.color, Stream::Err),
            shows_progress: !global.json && !global.quiet && is_terminal(Stream::Err),
        }
    }

    /// Whether `--json` was given.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether stderr is a terminal that may show progress.
    pub fn shows_progress(&self) -> bool {
        self.shows_progress
    }

    /// Whether `--quiet` was given.
    pub fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether stdout is a terminal.
    pub fn writes_to_terminal(&self) -> bool {
        is_terminal(Stream::Out)
    }

    /// Whether a person sits in front of the program: stdin and stdout are terminals, and `--json` was not given.
    pub fn is_interactive(&self) -> bool {
        !self.json && is_terminal(Stream::In) && is_terminal(Stream::Out)
    }

    /// Whether stdout is colored.
    pub fn is_colored(&self) -> bool {
        self.color_out
    }

    /// Data for people, one line on stdout; nothing under `--json`.
    ///
    /// # Errors
    /// A closed pipe or a full disk.
    pub fn line(&mut self, text: impl Display) -> Result<(), Failure> {
        if !self.json {
            writeln!(self.out, "{text}")?;
        }
        Ok(())
    }

    /// What is said of a file that was written, one line on stdout; nothing under `--quiet` and `--json`.
    ///
    /// # Errors
    /// A closed pipe or a full disk.
    pub fn summary(&mut self, text: impl Display) -> Result<(), Failure> {
        match self.quiet {
            true => Ok(()),
            false => self.line(text),
        }
    }

    /// Data without a line break (streamed text), flushed; nothing under `--json`.
    ///
    /// # Errors
    /// A closed pipe or a full disk.
    pub fn text(&mut self, text: impl Display) -> Result<(), Failure> {
        if !self.json {
            write!(self.out, "{text}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// Talk, one line on stderr; nothing under `--quiet` and `--json`.
    ///
    /// # Errors
    /// A full disk.
    pub fn note(&mut self, text: impl Display) -> Result<(), Failure> {
        if !self.json && !self.quiet {
            writeln!(self.err, "{text}")?;
        }
        Ok(())
    }

    /// Talk of little weight, one dim line on stderr; nothing under `--quiet` and `--json`.
    ///
    /// # Errors
    /// A full disk.
    pub fn aside(&mut self, text: impl Display) -> Result<(), Failure> {
        let line = paint(self.color_err, "2", &text.to_string());
        self.note(line)
    }

    /// What went wrong in a program that goes on, as the error of a program that ends.
    ///
    /// # Errors
    /// A full disk.
    pub fn complain(&mut self, failure: &Failure) -> Result<(), Failure> {
        self.out.flush()?;
        Ok(self.report_on_stderr(failure)?)
    }

    /// A warning, one line on stderr; nothing under `--quiet`, and nothing under `--json` (put it into the object instead).
    ///
    /// # Errors
    /// A full disk.
    pub fn warn(&mut self, text: impl Display) -> Result<(), Failure> {
        if !self.json && !self.quiet {
            let label = paint(self.color_err, "33", "warning:");
            writeln!(self.err, "{label} {text}")?;
        }
        Ok(())
    }

    /// The one object, on stdout, only under `--json`, flushed. Call it once.
    ///
    /// # Errors
    /// A closed pipe or a full disk.
    pub fn json(&mut self, object: &Value) -> Result<(), Failure> {
        if self.json {
            writeln!(self.out, "{object}")?;
            self.out.flush()?;
        }
        Ok(())
    }

    /// `text` in bold on a coloured stdout.
    pub fn bold(&self, text: &str) -> String {
        paint(self.color_out, "1", text)
    }

    /// `text` dim on a coloured stdout.
    pub fn dim(&self, text: &str) -> String {
        paint(self.color_out, "2", text)
    }

    /// `text` in green (`good`) or red on a coloured stdout: verdicts.
    pub fn verdict(&self, good: bool, text: &str) -> String {
        paint(self.color_out, if good { "32" } else { "31" }, text)
    }

    /// Reports a failure, if there is one, and says how the program ended.
    pub fn finish(mut self, result: Result<ExitStatus, Failure>) -> ExitStatus {
        let written = match result {
            Ok(status) => self.out.flush().map(|()| status),
            Err(failure) if failure.is_closed_pipe() => return ExitStatus::Done,
            // a writer that fails because partial outputs were taken away from it: the handler that did
            // so is about to end the process, and its exit status is the one that counts
            Err(_) if interrupted() => loop {
                std::thread::park();
            },
            Err(failure) => self.report(&failure).map(|()| ExitStatus::CouldNot),
        };
        match written {
            Ok(status) => status,
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitStatus::Done,
            Err(e) => {
                // stdout is gone; under --json too stderr is what is left
                let _ = self.report_on_stderr(&Failure::from(e));
                ExitStatus::CouldNot
            }
        }
    }

    fn report(&mut self, failure: &Failure) -> io::Result<()> {
        if self.json {
            let written = writeln!(self.out, "{}", failure.to_json());
            return match written.and_then(|()| self.out.flush()) {
                Err(e) if e.kind() != io::ErrorKind::BrokenPipe => self.report_on_stderr(failure),
                done => done,
            };
        }
        // the failure is worth more than what stdout could not take
        let _ = self.out.flush();
        self.report_on_stderr(failure)
    }

    fn report_on_stderr(&mut self, failure: &Failure) -> io::Result<()> {
        let label = paint(self.color_err, "1;31", "error:");
        writeln!(self.err, "{label} {}", failure.message)?;
        let label = paint(self.color_err, "36", "hint:");
        for hint in &failure.hints {
            writeln!(self.err, "{label} {hint}")?;
        }
        self.err.flush()
    }
}

fn paint(colored: bool, style: &str, text: &str) -> String {
    if colored {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitnet_formats::ErrorCode;

    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn json_is_alone_on_stdout() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let global = GlobalArgs {
            json: true,
            ..GlobalArgs::default()
        };
        let mut console = Console::new(&global, &mut out, &mut err);
        console.line("talk").unwrap();
        console.note("talk").unwrap();
        assert_eq!(
            console.finish(Err(Failure::new(ErrorCode::Io, "no").hint("try"))),
            ExitStatus::CouldNot
        );
        assert!(err.is_empty());
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "{\"status\":\"error\",\"error\":{\"code\":\"io\",\"message\":\"no\",\"hint\":\"try\"}}\n"
        );
    }

    #[test]
    fn a_closed_pipe_is_success() {
        let mut err = Vec::new();
        let mut closed = Closed;
        let mut console = Console::new(&GlobalArgs::default(), &mut closed, &mut err);
        let result = console.line("data").map(|()| ExitStatus::Different);
        assert_eq!(console.finish(result), ExitStatus::Done);
        assert!(err.is_empty());
    }

    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn a_full_stdout_is_told_on_stderr() {
        for json in [false, true] {
            let global = GlobalArgs {
                json,
                ..GlobalArgs::default()
            };
            for (result, expected) in [
                (Ok(ExitStatus::Done), "error: cannot write the output: "),
                (Err(Failure::usage("no")), "error: no\n"),
            ] {
                let (mut full, mut err) = (Full, Vec::new());
                let console = Console::new(&global, &mut full, &mut err);
                assert_eq!(console.finish(result), ExitStatus::CouldNot);
                let err = String::from_utf8(err).unwrap();
                assert!(
                    err.starts_with(expected) && err.lines().count() == 1,
                    "{err}"
                );
            }
        }
    }

    #[test]
    fn errors_speak_under_quiet_and_notes_do_not() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let global = GlobalArgs {
            quiet: true,
            color: ColorWhen::Always,
            ..GlobalArgs::default()
        };
        let mut console = Console::new(&global, &mut out, &mut err);
        console.note("talk").unwrap();
        console.summary("out.gguf was written").unwrap();
        console.line("a result").unwrap();
        let _ = console.finish(Err(Failure::usage("no")));
        assert_eq!(
            String::from_utf8(err).unwrap(),
            "\x1b[1;31merror:\x1b[0m no\n"
        );
        assert_eq!(String::from_utf8(out).unwrap(), "a result\n");
    }
}
