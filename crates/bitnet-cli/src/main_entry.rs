//! What `main` does around `run`: signals, the real streams, the exit code.
//!
//! Invariant: an interrupted program leaves no partial output behind and exits 130, at once, from
//! whatever it was doing, on a terminal as it was before. A file that reaches a size limit is an error of the write, never a signal.

use crate::exit_status::ExitStatus;
#[cfg(unix)]
use crate::process::TERMINATED;
use crate::process::{INTERRUPTED, STANDARD_STREAMS, run_hook};
use crate::terminal;
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGTERM, SIGXFSZ};
use std::env::ArgsOs;
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How a process ends that a signal interrupts.
const INTERRUPTED_STATUS: i32 = 130;

/// A write beyond `ulimit -f` sends SIGXFSZ, which ends a process that does not handle it. Handled, the write
/// fails with an error.
fn fail_writes_beyond_the_size_limit() {
    #[cfg(unix)]
    {
        let seen = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        // without a handler such a write ends the program, as it ends others
        let _ = signal_hook::flag::register(SIGXFSZ, seen);
    }
}

/// Notes SIGTERM and SIGHUP, beside the handler of all signals that is installed already.
fn tell_termination_apart() {
    #[cfg(unix)]
    for signal in [SIGTERM, SIGHUP] {
        // without it these signals do what Ctrl-C does
        let _ = signal_hook::flag::register(signal, std::sync::Arc::clone(&TERMINATED));
    }
}

/// The whole `main` of a program.
pub fn main(run: impl FnOnce(ArgsOs, &mut dyn Write, &mut dyn Write) -> ExitStatus) -> ExitCode {
    main_of(std::env::args_os(), run).into()
}

/// As [`main`], for a process whose own arguments are others: `args` includes the name of the program.
pub fn main_of<A: Iterator<Item = OsString>>(
    args: A,
    run: impl FnOnce(A, &mut dyn Write, &mut dyn Write) -> ExitStatus,
) -> ExitStatus {
    STANDARD_STREAMS.store(true, Ordering::Relaxed);
    terminal::remember(INTERRUPTED_STATUS);
    let installed = ctrlc::set_handler(|| {
        // this thread may be awake before the flag of the same signal is set
        std::thread::sleep(Duration::from_millis(2));
        if run_hook() {
            return;
        }
        INTERRUPTED.store(true, Ordering::Relaxed);
        bitnet_formats::remove_partial_outputs();
        terminal::restore();
        std::process::exit(INTERRUPTED_STATUS);
    });
    tell_termination_apart();
    let mut err = io::stderr();
    fail_writes_beyond_the_size_limit();
    if let Err(e) = installed {
        // outputs are still whole or absent, but an interrupted directory may leave its partial
        let _ = writeln!(err, "warning: no signal handler: {e}");
    }
    // a table or a listing is many small writes; Console flushes at the end
    let mut out = BufWriter::new(io::stdout());
    let status = run(args, &mut out, &mut err);
    let _ = out.flush();
    status
}
