//! Progress bars with rate and ETA, for people at a terminal.
//!
//! Invariant: a bar never changes what a program does or prints elsewhere; without a terminal it
//! costs nothing but counting. Bars may be advanced from any thread.

use crate::console::Console;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The bars of one program run.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    visible: bool,
}

/// One bar; cheap to clone, the clones are the same bar. It disappears when finished.
#[derive(Debug, Clone)]
pub struct Bar(ProgressBar);

impl Progress {
    /// Visible bars if the console shows progress.
    pub fn new(console: &Console<'_>) -> Self {
        let visible = console.shows_progress();
        let target = if visible {
            ProgressDrawTarget::stderr_with_hz(8)
        } else {
            ProgressDrawTarget::hidden()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            visible,
        }
    }

    /// No bars, for callers without a console.
    pub fn hidden() -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            visible: false,
        }
    }

    /// A bar over bytes: name, bar, done and total, MB/s, ETA.
    pub fn bytes(&self, name: impl Into<String>, total: u64) -> Bar {
        self.add(
            "{msg:32!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} ETA {eta:>4}",
            name.into(),
            total,
        )
    }

    /// A bar over things: name, bar, done and total, ETA.
    pub fn steps(&self, name: impl Into<String>, total: u64) -> Bar {
        self.add(
            "{msg:32!} {wide_bar} {pos:>6}/{len:6} ETA {eta:>4}",
            name.into(),
            total,
        )
    }

    fn add(&self, template: &str, name: String, total: u64) -> Bar {
        if !self.visible {
            return Bar(ProgressBar::hidden());
        }
        let bar = self.bars.add(ProgressBar::new(total));
        // the templates are constants of this file, tested below
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸ "));
        }
        bar.set_message(name);
        Bar(bar)
    }

    /// Removes all bars, so that what is printed next stands on its own line.
    pub fn clear(&self) {
        if self.visible {
            // fails only when the terminal is gone
            let _ = self.bars.clear();
        }
    }
}

impl Bar {
    /// Adds to what is done.
    pub fn advance(&self, by: u64) {
        self.0.inc(by);
    }

    /// Renames the bar (the tensor at work).
    pub fn name(&self, name: impl Into<String>) {
        if !self.0.is_hidden() {
            self.0.set_message(name.into());
        }
    }

    /// Starts over with another name and total (the next tensor).
    pub fn restart(&self, name: impl Into<String>, total: u64) {
        if !self.0.is_hidden() {
            self.0.set_length(total);
            self.0.reset();
            self.0.set_message(name.into());
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::global::GlobalArgs;

    #[test]
    fn templates_parse_and_hidden_bars_count() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let console = Console::new(&GlobalArgs::default(), &mut out, &mut err);
        let mut progress = Progress::new(&console);
        progress.visible = true;
        for bar in [progress.bytes("a", 10), progress.steps("b", 10)] {
            bar.advance(3);
            bar.name("c");
            bar.restart("d", 4);
            bar.finish();
        }
        progress.clear();
        assert!(err.is_empty());
    }
}
