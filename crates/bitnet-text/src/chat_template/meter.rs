//! What a template may spend: steps, live memory, depth, output; and the error that says what ended it.
//!
//! Invariant: every value that a template makes is charged before it is made, so that a template in a
//! few bytes cannot take more memory or time than the limits say. The counters are those of the
//! thread that renders.

use std::cell::Cell;

/// Longest template source in bytes. The longest of some hundred published templates has 43 kB.
pub(super) const SOURCE: usize = 128 << 10;
/// Deepest nesting of an expression. Python refuses 200 parentheses within each other, and Jinja
/// writes one for most operators.
pub(super) const EXPRESSION_DEPTH: usize = 120;
/// Deepest nesting of statements.
pub(super) const STATEMENT_DEPTH: usize = 60;
/// Most `for` loops within each other; Python has the same limit.
pub(super) const LOOP_DEPTH: usize = 20;
/// Most calls of macros and recursive loops within each other.
pub(super) const CALL_DEPTH: usize = 160;
/// Most nodes of the syntax tree under evaluation at once.
pub(super) const DEPTH: usize = 4_000;
/// Deepest value: a list in a list and so on.
pub(super) const VALUE_DEPTH: usize = 100;
/// Steps that any template may take.
const STEPS: u64 = 3_000_000;
/// Bytes of memory that any template may hold at once.
const MEMORY: usize = 20 << 20;
/// Bytes of output that any template may write.
const OUTPUT: usize = 2 << 20;

/// Why a template gave no text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Error {
    pub(super) message: String,
    /// The line of the template's source.
    pub(super) line: Option<u32>,
    pub(super) kind: Ended,
}

/// What ended a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// An error of the template, or something that is not supported where it is reached.
    Failed,
    /// The source has something that is not supported.
    Unsupported,
    /// `raise_exception`: the template refuses the conversation.
    Raised,
    /// A limit was passed.
    Limit,
}

/// The result of anything that a template does.
pub(super) type R<T> = Result<T, Box<Error>>;

/// An error at a place that is not known yet.
pub(super) fn fail<T>(message: impl Into<String>) -> R<T> {
    Err(error(message))
}

pub(super) fn error(message: impl Into<String>) -> Box<Error> {
    Box::new(Error {
        message: message.into(),
        line: None,
        kind: Ended::Failed,
    })
}

/// A limit that was passed.
pub(super) fn over<T>(message: impl Into<String>) -> R<T> {
    Err(Box::new(Error {
        message: message.into(),
        line: None,
        kind: Ended::Limit,
    }))
}

/// Puts the line where there is none.
pub(super) fn at<T>(line: u32, result: R<T>) -> R<T> {
    result.map_err(|mut e| {
        e.line.get_or_insert(line);
        e
    })
}

/// The limits of one rendering; they grow with the conversation, which is not the template's doing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    steps: u64,
    memory: usize,
    output: usize,
}

impl Limits {
    /// For a context of `bytes` bytes.
    pub(super) fn of_context(bytes: usize) -> Self {
        Self {
            steps: STEPS.saturating_add((bytes as u64).saturating_mul(2)),
            memory: MEMORY.saturating_add(bytes.saturating_mul(8)),
            output: OUTPUT.saturating_add(bytes.saturating_mul(4)),
        }
    }

    /// Starts the counters of this thread.
    pub(super) fn start(self) {
        LEFT.set(self.steps);
        STEP_LIMIT.set(self.steps);
        LIVE.set(0);
        MEMORY_LIMIT.set(self.memory);
        OUTPUT_LIMIT.set(self.output);
    }
}

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    static STEP_LIMIT: Cell<u64> = const { Cell::new(0) };
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static MEMORY_LIMIT: Cell<usize> = const { Cell::new(0) };
    static OUTPUT_LIMIT: Cell<usize> = const { Cell::new(0) };
}

/// Takes steps.
pub(super) fn spend(steps: usize) -> R<()> {
    match LEFT.get().checked_sub(steps as u64) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => over(format!(
            "the step limit: the template takes more than {} steps",
            STEP_LIMIT.get()
        )),
    }
}

/// Takes the steps of work on so many bytes.
pub(super) fn spend_bytes(bytes: usize) -> R<()> {
    spend((bytes / 32).saturating_add(1))
}

/// Memory that a value holds, given back when the value goes.
#[derive(Debug, Default)]
pub(super) struct Charge(usize);

impl Charge {
    pub(super) fn new(bytes: usize) -> R<Self> {
        let mut charge = Self(0);
        charge.grow(bytes)?;
        Ok(charge)
    }

    pub(super) fn grow(&mut self, bytes: usize) -> R<()> {
        let live = LIVE.get().saturating_add(bytes);
        if live > MEMORY_LIMIT.get() {
            return over(format!(
                "the memory limit: the template needs more than {} bytes",
                MEMORY_LIMIT.get()
            ));
        }
        LIVE.set(live);
        self.0 = self.0.saturating_add(bytes);
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        LIVE.set(LIVE.get().saturating_sub(self.0));
    }
}

/// A text that grows within the limits.
#[derive(Debug, Default)]
pub(super) struct Buf {
    text: String,
    charge: Charge,
    /// Work that is not spent yet.
    work: usize,
}

impl Buf {
    pub(super) fn push(&mut self, c: char) -> R<()> {
        self.reserve(c.len_utf8(), 4)?;
        self.text.push(c);
        Ok(())
    }

    pub(super) fn push_str(&mut self, text: &str) -> R<()> {
        self.reserve(text.len(), 1)?;
        self.text.push_str(text);
        Ok(())
    }

    /// The same text many times.
    pub(super) fn push_times(&mut self, text: &str, times: usize) -> R<()> {
        let bytes = text.len().saturating_mul(times);
        spend_bytes(bytes)?;
        self.reserve(bytes, 1)?;
        for _ in 0..times.min(bytes) {
            self.text.push_str(text);
        }
        Ok(())
    }

    /// Makes room; each byte is `cost` work.
    fn reserve(&mut self, more: usize, cost: usize) -> R<()> {
        self.work = self
            .work
            .saturating_add(more.saturating_mul(cost).saturating_add(4));
        if self.work >= 64 {
            spend(self.work / 64)?;
            self.work %= 64;
        }
        let wanted = self.text.len().saturating_add(more);
        let charged = self.charge.0;
        if wanted > charged {
            // as a vector grows, and never past what the limit leaves
            let grown = wanted.max(charged.saturating_mul(2)).max(64);
            if self.charge.grow(grown.saturating_sub(charged)).is_err() {
                self.charge.grow(wanted.saturating_sub(charged))?;
            }
            let capacity = self.charge.0;
            self.text
                .reserve_exact(capacity.saturating_sub(self.text.len()));
        }
        Ok(())
    }

    /// Checks the limit of the output.
    pub(super) fn check_output(&self) -> R<()> {
        if self.text.len() > OUTPUT_LIMIT.get() {
            return over(format!(
                "the output limit: the template writes more than {} bytes",
                OUTPUT_LIMIT.get()
            ));
        }
        Ok(())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// The text and what it holds; the charge is that of its length.
    pub(super) fn into_parts(mut self) -> (Box<str>, Charge) {
        let text = std::mem::take(&mut self.text).into_boxed_str();
        let mut charge = std::mem::take(&mut self.charge);
        let spare = charge.0.saturating_sub(text.len());
        LIVE.set(LIVE.get().saturating_sub(spare));
        charge.0 = charge.0.saturating_sub(spare);
        (text, charge)
    }
}

impl std::fmt::Write for Buf {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.push_str(text).map_err(|_| std::fmt::Error)
    }
}
