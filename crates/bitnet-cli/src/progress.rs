//! Progress bars with rate and ETA, for people at a terminal.
//!
//! Invariant: a bar never changes what a program does or prints elsewhere; without a terminal it
//! costs nothing but counting. Bars may be advanced from any thread. A bar fits 60 columns, has one unit, and is drawn
//! once something is done.

use crate::console::Console;
use crate::observer::{Watched, Whole};
use bitnet_formats::FormatError;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often the time that is left is told, also while nothing arrives.
const TICK: Duration = Duration::from_millis(500);
/// Columns of a bar's name.
const NAME: usize = 20;
/// Longest time that is worth telling.
const MOST_SECONDS: u64 = 99 * 3600;

/// The bars of one program run.
#[derive(Debug, Clone)]
pub struct Progress {
    bars: MultiProgress,
    visible: bool,
    watched: Watched,
}

/// One bar; cheap to clone, the clones are the same bar. It disappears when finished.
#[derive(Debug, Clone)]
pub struct Bar {
    bar: ProgressBar,
    /// Where it is drawn when something is done; `None` where no bar is visible.
    bars: Option<MultiProgress>,
    drawn: Arc<AtomicBool>,
}

/// What a bar counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    Bytes,
    Things,
}

impl Progress {
    /// Visible bars if the console shows progress. The observer of this thread, if any, hears of [`whole`](Self::whole).
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
            watched: Watched::here(),
        }
    }

    /// No bars, for callers without a console.
    pub fn hidden() -> Self {
        Self {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            visible: false,
            watched: Watched::default(),
        }
    }

    /// How far the whole run is, for the observer of the run; terminals show the bars instead.
    pub fn whole(&self, total: u64) -> Whole {
        Whole::new(&self.watched, total)
    }

    /// Whether the run may go on.
    ///
    /// # Errors
    /// `interrupted` if the observer ends the run.
    pub fn check(&self) -> Result<(), FormatError> {
        self.watched.check()
    }

    /// A bar over bytes: name, bar, done and total in the unit of the total, time that is left.
    pub fn bytes(&self, name: impl Into<String>, total: u64) -> Bar {
        self.add(Unit::Bytes, &name.into(), total)
    }

    /// A bar over things: name, bar, done and total, time that is left.
    pub fn steps(&self, name: impl Into<String>, total: u64) -> Bar {
        self.add(Unit::Things, &name.into(), total)
    }

    fn add(&self, unit: Unit, name: &str, total: u64) -> Bar {
        let bar = match self.visible {
            true => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden()),
            false => ProgressBar::hidden(),
        };
        if let (true, Some(style)) = (self.visible, style(unit)) {
            bar.set_style(style);
            bar.set_message(shortened(name));
        }
        Bar {
            bar,
            bars: self.visible.then(|| self.bars.clone()),
            drawn: Arc::default(),
        }
    }

    /// Removes all bars, so that what is printed next stands on its own line.
    pub fn clear(&self) {
        if self.visible {
            // fails only when the terminal is gone
            let _ = self.bars.clear();
        }
    }
}

fn style(unit: Unit) -> Option<ProgressStyle> {
    let style = ProgressStyle::with_template("{msg:20!} {wide_bar} {done} {left}").ok()?;
    let done = move |state: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{}", done(unit, state.pos(), state.len().unwrap_or(0)));
    };
    let left = |state: &ProgressState, out: &mut dyn Write| {
        let _ = write!(out, "{}", left(state.eta(), state.pos()));
    };
    let style = style.with_key("done", done).with_key("left", left);
    Some(style.progress_chars("━╸ "))
}

/// `  118/1187 MB`: at most 13 columns up to 9999 TB, as wide at the end as at the beginning.
fn done(unit: Unit, done: u64, total: u64) -> String {
    const UNITS: [(&str, u64); 5] = [
        ("B", 1),
        ("kB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("TB", 1_000_000_000_000),
    ];
    let (suffix, one) = match unit {
        Unit::Things => ("", 1),
        Unit::Bytes => {
            let fits = |(_, one): &&(&str, u64)| total / one < 10_000;
            let (name, one) = UNITS.iter().find(fits).unwrap_or(&UNITS[4]);
            (*name, *one)
        }
    };
    let total = (total / one).to_string();
    let width = total.len();
    format!("{:>width$}/{total} {suffix}", done / one)
        .trim_end()
        .to_owned()
}

/// `ETA 1m05s`, 10 columns.
fn left(eta: Duration, done: u64) -> String {
    let seconds = eta.as_secs();
    let text = match seconds {
        _ if done == 0 || seconds > MOST_SECONDS => String::new(),
        0..60 => format!("ETA {seconds}s"),
        60..3600 => format!("ETA {}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("ETA {}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    };
    format!("{text:>10}")
}

/// The end of a long name, which tells tensors and files apart.
fn shortened(name: &str) -> String {
    let count = name.chars().count();
    match count > NAME {
        true => std::iter::once('…')
            .chain(name.chars().skip(count - NAME + 1))
            .collect(),
        false => name.to_owned(),
    }
}

impl Bar {
    /// Adds to what is done.
    pub fn advance(&self, by: u64) {
        self.bar.inc(by);
        if by > 0 {
            self.draw();
        }
    }

    /// Shows the bar from now on: an empty one says nothing.
    fn draw(&self) {
        let Some(bars) = &self.bars else {
            return;
        };
        let is_empty = self.bar.length().is_none_or(|total| total == 0);
        if !is_empty && !self.drawn.swap(true, Ordering::Relaxed) {
            bars.add(self.bar.clone());
            self.bar.enable_steady_tick(TICK);
        }
    }

    /// Renames the bar (the tensor at work).
    pub fn name(&self, name: impl Into<String>) {
        if self.bars.is_some() {
            self.bar.set_message(shortened(&name.into()));
        }
    }

    /// Starts over with another name and total (the next tensor).
    pub fn restart(&self, name: impl Into<String>, total: u64) {
        if self.bars.is_some() {
            self.bar.set_length(total);
            self.bar.reset();
            self.bar.set_message(shortened(&name.into()));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::global::GlobalArgs;

    #[test]
    fn hidden_bars_count_and_visible_ones_are_not_printed_elsewhere() {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let console = Console::new(&GlobalArgs::default(), &mut out, &mut err);
        let mut progress = Progress::new(&console);
        progress.visible = true;
        for bar in [progress.bytes("a", 10), progress.steps("b", 10)] {
            assert!(!bar.drawn.load(Ordering::Relaxed));
            bar.advance(3);
            assert!(bar.drawn.load(Ordering::Relaxed));
            bar.name("c");
            bar.restart("d", 4);
            bar.finish();
        }
        let empty = progress.bytes("nothing", 0);
        empty.advance(0);
        assert!(!empty.drawn.load(Ordering::Relaxed));
        progress.clear();
        assert!(err.is_empty());
    }

    #[test]
    fn a_bar_has_one_unit_and_fits_60_columns() {
        for (unit, at, total, text) in [
            (Unit::Bytes, 118_000_000, 1_187_801_280, " 118/1187 MB"),
            (Unit::Bytes, 0, 999, "  0/999 B"),
            (Unit::Bytes, 9_999, 9_999, "9999/9999 B"),
            (Unit::Bytes, 5_000, 10_000, " 5/10 kB"),
            (
                Unit::Bytes,
                4_000_000_000,
                5_000_000_000_000,
                "   4/5000 GB",
            ),
            (Unit::Things, 3, 210, "  3/210"),
        ] {
            assert_eq!(done(unit, at, total), text);
        }
        for (seconds, text) in [
            (0, "    ETA 0s"),
            (65, " ETA 1m05s"),
            (3599, "ETA 59m59s"),
            (356_000, "ETA 98h53m"),
            (400_000, "          "),
        ] {
            assert_eq!(left(Duration::from_secs(seconds), 1), text);
        }
        assert_eq!(left(Duration::ZERO, 0), "          ");
        let name = shortened("model.layers.21.mlp.down_proj.weight");
        assert_eq!(name, "…lp.down_proj.weight");
        // name, at least ten columns of bar, amounts and time with blanks between them
        const { assert!(NAME + 1 + 10 + 1 + 13 + 1 + 10 < 60) };
        assert!(style(Unit::Bytes).is_some() && style(Unit::Things).is_some());
    }
}
