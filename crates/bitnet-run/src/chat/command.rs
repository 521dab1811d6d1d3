//! The commands of a chat: lines that begin with a slash.
//!
//! Invariant: a line with a slash in front is a command or an error, never a message to the model.

use crate::args::{ShowThoughts, Think};
use bitnet_cli::Failure;
use clap::ValueEnum;

/// Each command with what stands behind it, and what it does.
pub const COMMANDS: [(&str, &str, &str); 8] = [
    ("/help", "", "List the commands"),
    (
        "/clear",
        "",
        "Forget the conversation; the system message stays",
    ),
    ("/retry", "", "Answer the last message again"),
    (
        "/system",
        "[TEXT]",
        "Show or set the system message; \"\" removes it",
    ),
    (
        "/save",
        "FILE",
        "Write the conversation as JSON; FILE must not exist",
    ),
    ("/think", "on|off", "Turn thinking on or off, as --think"),
    (
        "/thoughts",
        "show|fold|hide",
        "Choose how thinking is shown, as --thoughts",
    ),
    ("/exit", "", "Leave, as Ctrl-D"),
];

/// What a line asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Command<'l> {
    Help,
    Clear,
    Retry,
    /// The system message: shown, or set.
    System(Option<&'l str>),
    Save(&'l str),
    Think(Think),
    Thoughts(ShowThoughts),
    Exit,
}

/// The command of a line; `None` for a message.
pub fn parse(line: &str) -> Option<Result<Command<'_>, Failure>> {
    // a pasted text of several lines is a message, whatever it begins with
    if !line.starts_with('/') || line.trim_end().contains('\n') {
        return None;
    }
    let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    Some(of_words(name.trim_end(), rest.trim()))
}

/// The command that a line begins with, if it is one.
pub fn name(line: &str) -> Option<&'static str> {
    let word = line.split_whitespace().next()?;
    let known = COMMANDS.iter().map(|(known, ..)| *known);
    known
        .filter(|_| line.starts_with('/'))
        .find(|known| *known == word)
}

fn of_words<'l>(name: &str, rest: &'l str) -> Result<Command<'l>, Failure> {
    let Some((name, value, _)) = COMMANDS.iter().find(|(known, ..)| *known == name) else {
        let failure = Failure::usage(format!("unknown command `{name}`"));
        let known = COMMANDS.iter().map(|(known, ..)| *known);
        let failure = bitnet_cli::did_you_mean(name, known)
            .into_iter()
            .fold(failure, Failure::hint);
        return Err(failure
            .hint("enter /help to list the commands")
            .hint("put a space in front of a message that begins with a slash"));
    };
    let expected = || {
        let found = match rest {
            "" => "nothing".to_owned(),
            rest => format!("`{rest}`"),
        };
        Failure::usage(format!(
            "expected {name} {value}, found {found} behind {name}"
        ))
    };
    Ok(match (*name, rest) {
        ("/help", "") => Command::Help,
        ("/clear", "") => Command::Clear,
        ("/retry", "") => Command::Retry,
        ("/exit", "") => Command::Exit,
        ("/system", "") => Command::System(None),
        ("/system", "\"\"") => Command::System(Some("")),
        ("/system", text) => Command::System(Some(text)),
        ("/save", "") => return Err(expected()),
        ("/save", file) => Command::Save(file),
        ("/think", word) => Command::Think(Think::from_str(word, true).map_err(|_| expected())?),
        ("/thoughts", word) => {
            Command::Thoughts(ShowThoughts::from_str(word, true).map_err(|_| expected())?)
        }
        (name, rest) => {
            return Err(Failure::usage(format!(
                "expected nothing behind {name}, found `{rest}`"
            )));
        }
    })
}

/// The commands as a table for people.
pub fn help() -> String {
    let mut table = bitnet_cli::Table::new(&["command", "what it does"]);
    for (name, value, does) in COMMANDS {
        table.row([
            format!("{name} {value}").trim_end().to_owned(),
            does.to_owned(),
        ]);
    }
    format!(
        "{table}\n\nEnter sends a message. Type \\ at the end of a line to continue on the next one, or paste several lines.\n\
         Ctrl-C stops an answer. At the prompt, Ctrl-C and Ctrl-D leave.\n\
         Put a space in front of a message that begins with a slash."
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands_or_errors() {
        let of = |line| parse(line).map(|parsed| parsed.map_err(|failure| failure.to_string()));
        for message in ["hello", " /exit", "", "a /help", "//! docs\nfn main() {}"] {
            assert!(of(message).is_none(), "{message}");
        }
        assert_eq!(of("/help"), Some(Ok(Command::Help)));
        assert_eq!(of("/exit "), Some(Ok(Command::Exit)));
        assert_eq!(of("/system"), Some(Ok(Command::System(None))));
        assert_eq!(
            of("/system Be  brief."),
            Some(Ok(Command::System(Some("Be  brief."))))
        );
        assert_eq!(of("/system \"\""), Some(Ok(Command::System(Some("")))));
        assert_eq!(
            of("/save my chat.json"),
            Some(Ok(Command::Save("my chat.json")))
        );
        assert_eq!(of("/think off"), Some(Ok(Command::Think(Think::Off))));
        assert_eq!(
            of("/thoughts fold"),
            Some(Ok(Command::Thoughts(ShowThoughts::Fold)))
        );
        for (line, error) in [
            ("/hlep", "unknown command `/hlep`"),
            ("/etc/passwd", "unknown command `/etc/passwd`"),
            ("/", "unknown command `/`"),
            ("/save", "expected /save FILE, found nothing behind /save"),
            (
                "/think maybe",
                "expected /think on|off, found `maybe` behind /think",
            ),
            ("/clear all", "expected nothing behind /clear, found `all`"),
        ] {
            assert_eq!(of(line), Some(Err(error.to_owned())), "{line}");
        }
        assert_eq!(
            (name("/clear"), name("/system Be brief.")),
            (Some("/clear"), Some("/system"))
        );
        assert!(
            [" /clear", "/hlep", "", "/etc/passwd", "a /help"]
                .iter()
                .all(|l| name(l).is_none())
        );
        let failure = parse("/hlep").unwrap().unwrap_err();
        assert_eq!(failure.hints[0], "did you mean /help?");
        assert!(COMMANDS.iter().all(|(name, ..)| help().contains(name)));
    }
}
