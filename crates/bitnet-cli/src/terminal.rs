//! The state of the terminal, which an editor of lines changes and a signal would leave changed.
//!
//! Invariant: restoring does nothing unless the state is another one than at the start and the terminal is this process's:
//! that of a background process belongs to another, and to change it would stop the process.

/// Notes how the terminal is before anything changes it. From now on a process that SIGTERM or SIGHUP ends with a status is
/// not stopped because it reads or changes the terminal of others meanwhile.
pub(crate) fn remember(status: i32) {
    #[cfg(unix)]
    unix::remember(status);
    #[cfg(not(unix))]
    let _ = status;
}

/// Gives the terminal back as it was.
pub(crate) fn restore() {
    #[cfg(unix)]
    unix::restore();
}

#[cfg(unix)]
mod unix {
    use crate::process::TERMINATED;
    use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
    use signal_hook::consts::{SIGTTIN, SIGTTOU};
    use signal_hook::flag::{register_conditional_default, register_conditional_shutdown};
    use signal_hook::low_level::unregister;
    use std::io::{self, Write};
    use std::sync::atomic::AtomicBool;
    use std::sync::{Arc, OnceLock};

    /// Ends the mode in which a terminal marks what is pasted, and the line that was edited.
    const END_OF_EDITING: &[u8] = b"\x1b[?2004l\r\n";

    static BEFORE: OnceLock<Termios> = OnceLock::new();

    pub(super) fn remember(status: i32) {
        let Ok(state) = tcgetattr(io::stdin()) else {
            return;
        };
        let _ = BEFORE.set(state);
        for signal in [SIGTTIN, SIGTTOU] {
            // these run in this order: a process that is to end ends here, any other one stops
            let ended = register_conditional_shutdown(signal, status, Arc::clone(&TERMINATED));
            if let Ok(action) = ended {
                let always = Arc::new(AtomicBool::new(true));
                if register_conditional_default(signal, always).is_err() {
                    // a read that neither stops nor fails would be tried for ever
                    unregister(action);
                }
            }
        }
    }

    /// Whether the terminal belongs to another group of processes, if the system says so.
    fn is_in_background() -> Option<bool> {
        let text = std::fs::read_to_string("/proc/self/stat").ok()?;
        // the name of the program may hold blanks and parentheses
        let (_, behind) = text.rsplit_once(')')?;
        // state, parent, group, session, terminal, group of the terminal
        let mut numbers = behind.split_whitespace();
        let group: i64 = numbers.nth(2)?.parse().ok()?;
        let of_terminal: i64 = numbers.nth(2)?.parse().ok()?;
        // a process without a terminal of its own is stopped by none
        Some(of_terminal > 0 && group != of_terminal)
    }

    pub(super) fn restore() {
        let now = tcgetattr(io::stdin()).ok();
        let (Some(before), Some(now)) = (BEFORE.get(), now) else {
            return;
        };
        if now.local_modes == before.local_modes && now.input_modes == before.input_modes {
            return;
        }
        if is_in_background() == Some(true) {
            return;
        }
        let _ = io::stderr().write_all(END_OF_EDITING);
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
    }
}
