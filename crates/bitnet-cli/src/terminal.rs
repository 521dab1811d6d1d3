//! The state of the terminal, which an editor of lines changes and a signal would leave changed.
//!
//! Invariant: restoring does nothing unless the state is another one than at the start.

/// Notes how the terminal is before anything changes it.
pub(crate) fn remember() {
    #[cfg(unix)]
    unix::remember();
}

/// Gives the terminal back as it was.
pub(crate) fn restore() {
    #[cfg(unix)]
    unix::restore();
}

#[cfg(unix)]
mod unix {
    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
    use std::io::{self, Write};
    use std::sync::OnceLock;

    /// Ends the mode in which a terminal marks what is pasted, and the line that was edited.
    const END_OF_EDITING: &[u8] = b"\x1b[?2004l\r\n";

    static BEFORE: OnceLock<Termios> = OnceLock::new();

    pub(super) fn remember() {
        if let Ok(state) = tcgetattr(io::stdin()) {
            let _ = BEFORE.set(state);
        }
    }

    pub(super) fn restore() {
        let now = tcgetattr(io::stdin()).ok();
        let (Some(before), Some(now)) = (BEFORE.get(), now) else {
            return;
        };
        if now.local_modes == before.local_modes && now.input_modes == before.input_modes {
            return;
        }
        let _ = io::stderr().write_all(END_OF_EDITING);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
}
