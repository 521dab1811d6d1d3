//! The one error of this crate: what went wrong, where, what was expected, what was found.
//!
//! Invariant: `Display` is one line in lower case without a full stop; the remedy is the separate
//! `hint`, which programs print on a line of its own.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Stable words for scripts; listed in `formats/report.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The operating system refused.
    Io,
    /// A file changed while it was read.
    InputChanged,
    /// Jobs of a plan have not left their parts.
    MissingPart,
    /// A side file of a model is a link to a file outside of the model's repository.
    OutsideLink,
    /// The file ends before what its header promises.
    Truncated,
    /// The bytes contradict their own format.
    Malformed,
    /// A size beyond [`crate::Limits`].
    LimitExceeded,
    /// No container recognizes the file.
    UnknownContainer,
    /// An adapter (LoRA) beside a model or instead of one.
    Adapter,
    /// A tensor type this program cannot read.
    UnknownType,
    /// A tensor the model needs is absent.
    MissingTensor,
    /// A tensor the model has no place for.
    ExtraTensor,
    /// A tensor of another shape than the configuration says.
    WrongShape,
    /// A tensor of a type that its role cannot have.
    WrongType,
    /// A configuration key is absent or has a value that this program does not know.
    UnsupportedConfig,
    /// A quantization method other than BitNet's.
    UnknownQuantization,
    /// Float weights that no ternary training made.
    NotTernary,
    /// Code 3 in packed data, which decoders disagree about.
    BadCode,
    /// NaN or infinity in weights or scales.
    NonFinite,
    /// A scale that the target cannot hold exactly.
    ScaleRounding,
    /// A shape or scale structure that the target cannot hold.
    TargetCannotHold,
    /// The output exists and `--force` was not given, or does not replace what is there.
    Exists,
    /// Another process is writing the output.
    Busy,
    /// More tokens than the model or the cache has places for.
    ContextExceeded,
    /// A tokenizer that cannot be built or cannot encode.
    Tokenizer,
    /// A chat template that is absent or fails.
    ChatTemplate,
    /// A kernel that is unknown or that this CPU cannot run.
    Kernel,
    /// The network or a server failed, and kept failing.
    Network,
    /// A server refuses access: no token, a wrong one, or a gated repository.
    AccessDenied,
    /// A repository, revision, object or file that a server does not have.
    NotFound,
    /// A server answered with something else than its protocol says.
    BadResponse,
    /// Offline mode, and the cache does not have it.
    Offline,
    /// What was fetched has another size or hash than the server promised.
    Checksum,
    /// The disk has not enough room for what is to be fetched.
    NoSpace,
    /// The caller of a library function stopped the run.
    Interrupted,
    /// A request that makes no sense.
    Usage,
}

impl ErrorCode {
    /// The word as reports spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::InputChanged => "input-changed",
            Self::MissingPart => "missing-part",
            Self::OutsideLink => "outside-link",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::LimitExceeded => "limit-exceeded",
            Self::UnknownContainer => "unknown-container",
            Self::Adapter => "adapter",
            Self::UnknownType => "unknown-type",
            Self::MissingTensor => "missing-tensor",
            Self::ExtraTensor => "extra-tensor",
            Self::WrongShape => "wrong-shape",
            Self::WrongType => "wrong-type",
            Self::UnsupportedConfig => "unsupported-config",
            Self::UnknownQuantization => "unknown-quantization",
            Self::NotTernary => "not-ternary",
            Self::BadCode => "bad-code",
            Self::NonFinite => "non-finite",
            Self::ScaleRounding => "scale-rounding",
            Self::TargetCannotHold => "target-cannot-hold",
            Self::Exists => "exists",
            Self::Busy => "busy",
            Self::ContextExceeded => "context-exceeded",
            Self::Tokenizer => "tokenizer",
            Self::ChatTemplate => "chat-template",
            Self::Kernel => "kernel",
            Self::Network => "network",
            Self::AccessDenied => "access-denied",
            Self::NotFound => "not-found",
            Self::BadResponse => "bad-response",
            Self::Offline => "offline",
            Self::Checksum => "checksum",
            Self::NoSpace => "no-space",
            Self::Interrupted => "interrupted",
            Self::Usage => "usage",
        }
    }
}

/// An error with its place. Build with [`FormatError::new`], add places on the way up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    /// Stable word.
    pub code: ErrorCode,
    /// What was expected and what was found.
    pub message: String,
    /// File it happened in.
    pub file: Option<Box<Path>>,
    /// Tensor or metadata key it happened in.
    pub tensor: Option<String>,
    /// Byte offset in the file.
    pub offset: Option<u64>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The error that this one says in its own words.
    cause: Option<Box<Cause>>,
}

/// What is missing of a path.
pub(crate) fn missing(path: &Path) -> String {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    match parent {
        Some(parent) if !parent.exists() => {
            // the first directory that is not there
            let first = parent
                .ancestors()
                .take_while(|p| !p.as_os_str().is_empty() && !p.exists())
                .last();
            let first = first
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(parent);
            format!("the directory `{}` does not exist", first.display())
        }
        _ => "no such file or directory".to_owned(),
    }
}

/// An error below one of ours, kept for [`Error::source`]. Two are equal if they say the same.
#[derive(Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl Cause {
    /// Keeps an error.
    pub fn new(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }

    /// The error.
    pub fn error(&self) -> &(dyn Error + 'static) {
        &*self.0
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl PartialEq for Cause {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_string() == other.0.to_string()
    }
}

impl Eq for Cause {}

impl FormatError {
    /// An error that does not know its place yet.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            file: None,
            tensor: None,
            offset: None,
            hint: None,
            cause: None,
        }
    }

    /// Wraps an operating-system error.
    pub fn io(path: &Path, error: &io::Error) -> Self {
        use io::ErrorKind;
        let message = match error.kind() {
            ErrorKind::NotFound => missing(path),
            ErrorKind::IsADirectory => "expected a file, found a directory".to_owned(),
            ErrorKind::NotADirectory => "a part of the path is a file, not a directory".to_owned(),
            ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        // an operating-system error is its number; others are what they say
        let cause = match error.raw_os_error() {
            Some(number) => io::Error::from_raw_os_error(number),
            None => io::Error::new(error.kind(), error.to_string()),
        };
        Self::new(ErrorCode::Io, message)
            .in_file(path)
            .because(cause)
    }

    /// Keeps the error that this one says in its own words, unless one is kept already.
    #[must_use]
    pub fn because(mut self, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause
            .get_or_insert_with(|| Box::new(Cause::new(error)));
        self
    }

    /// The error that this one says in its own words.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_deref()
    }

    /// The same place and remedy with another message.
    #[must_use]
    pub fn saying(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Adds the file, unless an inner place is known already.
    #[must_use]
    pub fn in_file(mut self, path: &Path) -> Self {
        self.file.get_or_insert_with(|| path.into());
        self
    }

    /// Adds the tensor (or key), unless an inner place is known already.
    #[must_use]
    pub fn in_tensor(mut self, name: &str) -> Self {
        self.tensor.get_or_insert_with(|| name.to_owned());
        self
    }

    /// Adds the byte offset, unless known already.
    #[must_use]
    pub fn at(mut self, offset: u64) -> Self {
        self.offset.get_or_insert(offset);
        self
    }

    /// Adds what to do about it, unless known already.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            let file = crate::origin::shown(file);
            write!(f, "{}: ", OneLine(&file.display().to_string()))?;
        }
        if let Some(tensor) = &self.tensor {
            write!(f, "`{}`: ", OneLine(tensor))?;
        }
        write!(f, "{}", OneLine(&self.message))?;
        if let Some(offset) = self.offset {
            write!(f, " (at byte {offset})")?;
        }
        Ok(())
    }
}

impl Error for FormatError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause().map(Cause::error)
    }
}

/// Text that may come from a hostile file: line breaks and terminal escapes are spelled out, and a
/// name of a megabyte does not fill the screen.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const LONGEST: usize = 500;
        for (i, c) in self.0.chars().enumerate() {
            if i == LONGEST {
                return f.write_str("…");
            }
            if c.is_control() {
                write!(f, "{}", c.escape_default())?;
            } else {
                fmt::Write::write_char(f, c)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_what_it_was_made_from() {
        let denied = io::Error::from_raw_os_error(13);
        let error = FormatError::io(Path::new("a/b"), &denied);
        let source = error.source().and_then(|e| e.downcast_ref::<io::Error>());
        assert_eq!(source.and_then(io::Error::raw_os_error), Some(13));
        let broken = serde_json::from_str::<u8>("{").unwrap_err();
        let (line, text) = (broken.line(), broken.to_string());
        let error = FormatError::new(ErrorCode::Malformed, "expected JSON").because(broken);
        assert_eq!(error.to_string(), "expected JSON");
        let source = error
            .source()
            .and_then(|e| e.downcast_ref::<serde_json::Error>());
        assert_eq!(source.map(serde_json::Error::line), Some(line));
        assert_eq!(error.clone().source().unwrap().to_string(), text);
        assert!(
            FormatError::new(ErrorCode::Malformed, "x")
                .source()
                .is_none()
        );
    }
}
