//! Why a server was not reached, and what to check.
//!
//! Invariant: only the kind of an error and its first words are looked at; nothing of it is repeated here.

use std::error::Error;
use std::io;

/// What to check when a server is not reached, or stops to answer.
pub(crate) const NETWORK: &str = "check the network and the proxy variables (HTTPS_PROXY, NO_PROXY), then run the command again: finished bytes are kept";

/// Why no connection to a server came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreached {
    /// Its name has no address.
    UnknownHost,
    /// It has, and nobody listens there.
    Refused,
}

impl Unreached {
    /// The reason in an error or below it, if it is one of these.
    pub(crate) fn of(error: &(dyn Error + 'static)) -> Option<Self> {
        let mut next = Some(error);
        while let Some(error) = next {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind == Some(io::ErrorKind::ConnectionRefused) {
                return Some(Self::Refused);
            }
            // how the connector of the HTTP library begins what the resolver of the system says
            if error.to_string().starts_with("dns error") {
                return Some(Self::UnknownHost);
            }
            next = error.source();
        }
        None
    }

    /// In words.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::UnknownHost => "no server of this name is known",
            Self::Refused => "the connection is refused",
        }
    }

    /// What to check; `name` is what the user can have written wrong.
    pub(crate) fn hint(self, name: &str) -> String {
        let first = match self {
            Self::UnknownHost => format!("check {name}"),
            Self::Refused => format!("check {name} and that a server runs there"),
        };
        format!("{first}, then the network and the proxy variables (HTTPS_PROXY, NO_PROXY)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Outer(&'static str, io::Error);

    impl std::fmt::Display for Outer {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Outer {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.1)
        }
    }

    #[test]
    fn the_reason_is_found_below_the_words_of_a_library() {
        let of = |words, kind: io::ErrorKind| Unreached::of(&Outer(words, kind.into()));
        let refused = of("tcp connect error", io::ErrorKind::ConnectionRefused);
        assert_eq!(refused, Some(Unreached::Refused));
        let unknown = of("dns error", io::ErrorKind::Other);
        assert_eq!(unknown, Some(Unreached::UnknownHost));
        assert_eq!(of("tcp connect error", io::ErrorKind::TimedOut), None);
        assert_eq!(
            Unreached::Refused.hint("h:9"),
            "check h:9 and that a server runs there, then the network and the proxy variables (HTTPS_PROXY, NO_PROXY)"
        );
    }
}
