//! Normalizers and pre-tokenizers: the `tokenizers` crate's, with bounds on what they cost.
//!
//! Invariant: text is changed and cut exactly as the crate does it. Regular expressions run in the
//! crate's own engine (Oniguruma) with a limit on retries and on time, and a normalizer may make a
//! text at most [`MOST_GROWTH`] times as long; what goes beyond is an error.

use super::json::{exceeded, refuse};
use super::pre_tokenizer::short;
use bitnet_formats::FormatError;
use onig::{MatchParam, Regex, Region, SearchOptions};
use serde_json::Value;
use std::cell::RefCell;
use std::time::{Duration, Instant};
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::{
    NormalizedString, Normalizer, NormalizerWrapper, Offsets, PreTokenizedString, PreTokenizer,
    PreTokenizerWrapper, SplitDelimiterBehavior,
};

/// How many times as long a normalizer may make a text. The longest published growth is 11 (NFKC of
/// U+FDFA).
pub(super) const MOST_GROWTH: usize = 16;
/// Longest text that `Prepend` may put in front, bytes. The published ones put three.
const LONGEST_PREFIX: usize = 32;
/// Bytes that a part of a text may grow by, whatever its length.
const SMALL_GROWTH: usize = 64;
/// Most steps of a normalizer or a pre-tokenizer, those of nested sequences included.
const MOST_STEPS: usize = 32;
/// Deepest nesting of sequences.
const DEEPEST: usize = 4;
/// Longest regular expression, bytes. The longest published one has about 3,000.
const LONGEST_EXPRESSION: usize = 16 << 10;
/// Retries of one match that any text may need, and retries per byte of the text.
const RETRIES: usize = 100_000;
const RETRIES_PER_BYTE: usize = 4;
/// More retries than Oniguruma's own limit are never given.
const MOST_RETRIES: usize = 10_000_000;
/// Entries of the stack of one match, about 40 bytes each, that any text may need; entries per byte of the text, of which
/// a captured alternative takes four; and the most.
const STACK: usize = 100_000;
const STACK_PER_BYTE: usize = 8;
const MOST_STACK: usize = 10_000_000;
/// Oniguruma's error for a match that passes the limit of its stack (`ONIGERR_MATCH_STACK_LIMIT_OVER`).
const STACK_LIMIT_OVER: i32 = -15;
/// Time that regular expressions may take for one text, and more per byte: fifty times what the
/// published ones need.
const TIME: Duration = Duration::from_secs(1);
const TIME_PER_BYTE: Duration = Duration::from_micros(5);
/// Bytes that are searched between two looks at the clock.
const WINDOW: usize = 256;

/// What one call may take, and what stopped it.
struct Watch {
    end: Instant,
    stopped: Option<FormatError>,
}

thread_local! {
    /// Of the call that runs on this thread. Normalizers cannot return errors through the crate.
    static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
}

/// Runs `work` on a text of `bytes` with the limits on time and growth.
pub(super) fn watched<T>(
    bytes: usize,
    work: impl FnOnce() -> Result<T, FormatError>,
) -> Result<T, FormatError> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    let allowed = TIME.saturating_add(TIME_PER_BYTE.saturating_mul(bytes));
    let now = Instant::now();
    let end = now.checked_add(allowed).unwrap_or(now);
    WATCH.set(Some(Watch { end, stopped: None }));
    let done = work();
    match WATCH.take().and_then(|watch| watch.stopped) {
        Some(error) => Err(error),
        None => done,
    }
}

/// Notes why the call has to end.
fn stop(error: FormatError) -> tokenizers::Error {
    let text = error.message.clone();
    WATCH.with_borrow_mut(|watch| {
        if let Some(watch) = watch {
            watch.stopped.get_or_insert(error);
        }
    });
    text.into()
}

fn is_late() -> bool {
    WATCH.with_borrow(|watch| {
        let watch = watch.as_ref();
        watch.is_some_and(|watch| watch.stopped.is_some() || Instant::now() > watch.end)
    })
}

/// A regular expression of a rule.
#[derive(Debug)]
struct Expression {
    regex: Regex,
    text: String,
    key: &'static str,
}

impl Expression {
    fn new(text: &str, key: &'static str) -> Result<Self, FormatError> {
        if text.len() > LONGEST_EXPRESSION {
            return Err(exceeded(
                key,
                format!(
                    "a regular expression of {} bytes, at most {LONGEST_EXPRESSION} are read",
                    text.len()
                ),
            ));
        }
        // where a search began is not where the text begins
        if text.contains(r"\G") {
            return Err(refuse(
                key,
                format!("`{}` uses \\G, which is not supported", short(text)),
            ));
        }
        let regex = Regex::new(text).map_err(|e| {
            let what = format!("`{}` is no regular expression: {e}", short(text));
            refuse(key, what.replace(['\n', '\r'], " ")).because(e)
        })?;
        Ok(Self {
            regex,
            text: text.to_owned(),
            key,
        })
    }

    fn too_slow(&self, text: &str) -> tokenizers::Error {
        self.costs("takes too long", text)
    }

    fn costs(&self, what: &str, text: &str) -> tokenizers::Error {
        stop(exceeded(
            self.key,
            format!(
                "the regular expression `{}` {what} on a text of {} bytes",
                short(&self.text),
                text.len()
            ),
        ))
    }

    /// The next match that begins at or behind `from`.
    fn search(
        &self,
        text: &str,
        mut from: usize,
        region: &mut Region,
    ) -> tokenizers::Result<Option<Offsets>> {
        let retries = text
            .len()
            .saturating_mul(RETRIES_PER_BYTE)
            .saturating_add(RETRIES);
        let stack = text.len().saturating_mul(STACK_PER_BYTE);
        let stack = stack.saturating_add(STACK);
        loop {
            let to = text.ceil_char_boundary(from.saturating_add(WINDOW).min(text.len()));
            let mut limits = MatchParam::default();
            limits.set_retry_limit_in_match(retries.min(MOST_RETRIES) as u32);
            limits.set_match_stack_limit(stack.min(MOST_STACK) as u32);
            region.clear();
            let found = self.regex.search_with_param(
                text,
                from,
                to,
                SearchOptions::SEARCH_OPTION_NONE,
                Some(&mut *region),
                limits,
            );
            match found {
                Err(e) if e.code() == STACK_LIMIT_OVER => {
                    return Err(self.costs("needs too much memory", text));
                }
                Err(_) => return Err(self.too_slow(text)),
                Ok(Some(_)) => return Ok(region.pos(0)),
                Ok(None) if to >= text.len() => return Ok(None),
                Ok(None) => from = to,
            }
            if is_late() {
                return Err(self.too_slow(text));
            }
        }
    }
}

impl Pattern for &Expression {
    /// As the crate's: matches and what lies between them, in order.
    fn find_matches(&self, text: &str) -> tokenizers::Result<Vec<(Offsets, bool)>> {
        if text.is_empty() {
            return Ok(vec![((0, 0), false)]);
        }
        let (mut parts, mut region) = (Vec::new(), Region::new());
        let (mut from, mut covered, mut last) = (0, 0, None);
        while from <= text.len() {
            let Some((start, end)) = self.search(text, from, &mut region)? else {
                break;
            };
            if parts.len() % 64 == 63 && is_late() {
                return Err(self.too_slow(text));
            }
            // an empty match right behind a match is none
            if start == end && last == Some(end) {
                let next = text.get(from..).and_then(|rest| rest.chars().next());
                from = from.saturating_add(next.map_or(1, char::len_utf8));
                continue;
            }
            (from, last) = (end, Some(end));
            if covered != start {
                parts.push(((covered, start), false));
            }
            parts.push(((start, end), true));
            covered = end;
        }
        if covered != text.len() {
            parts.push(((covered, text.len()), false));
        }
        Ok(parts)
    }
}

fn kind(value: &Value) -> &str {
    value
        .get("type")
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The steps of a rule, nested sequences unfolded.
fn steps<'v>(value: &'v Value, list: &str, key: &str) -> Result<Vec<&'v Value>, FormatError> {
    fn unfold<'v>(
        value: &'v Value,
        list: &str,
        key: &str,
        depth: usize,
        into: &mut Vec<&'v Value>,
    ) -> Result<(), FormatError> {
        if kind(value) != "Sequence" {
            if kind(value).is_empty() {
                return Err(refuse(key, "has no `type`"));
            }
            if into.len() >= MOST_STEPS {
                return Err(exceeded(key, format!("more than {MOST_STEPS} steps")));
            }
            into.push(value);
            return Ok(());
        }
        if depth >= DEEPEST {
            return Err(exceeded(
                key,
                format!("`Sequence` nested more than {DEEPEST} deep"),
            ));
        }
        let inner = value
            .get(list)
            .and_then(Value::as_array)
            .ok_or_else(|| refuse(key, format!("`Sequence` without a list `{list}`")))?;
        inner
            .iter()
            .try_for_each(|step| unfold(step, list, key, depth.saturating_add(1), into))
    }
    let mut all = Vec::new();
    if !value.is_null() {
        unfold(value, list, key, 0, &mut all)?;
    }
    Ok(all)
}

/// A pattern as rules spell it: the text, and whether it is a regular expression.
fn pattern<'v>(step: &'v Value, key: &str) -> Result<(&'v str, bool), FormatError> {
    let pattern = step.get("pattern");
    let text = |name: &str| pattern?.get(name)?.as_str();
    match (text("Regex"), text("String")) {
        (Some(regex), None) => Ok((regex, true)),
        (None, Some(text)) => Ok((text, false)),
        _ => Err(refuse(
            key,
            format!(
                "`{}` without a pattern; expected `Regex` or `String`",
                kind(step)
            ),
        )),
    }
}

/// A normalizer.
#[derive(Debug)]
pub(super) struct Steps(Vec<Step>);

#[derive(Debug)]
enum Step {
    Replace(Expression, String),
    Library(NormalizerWrapper),
}

const NORMALIZER: &str = "normalizer";

impl Steps {
    /// Of the `normalizer` of a `tokenizer.json`; `None` if there is none.
    pub(super) fn new(rule: &Value) -> Result<Option<Self>, FormatError> {
        let key = NORMALIZER;
        if rule.is_null() {
            return Ok(None);
        }
        let (mut all, mut growth) = (Vec::new(), 1usize);
        for step in steps(rule, "normalizers", key)? {
            let text = |name: &str| step.get(name).and_then(Value::as_str).unwrap_or_default();
            match kind(step) {
                "Precompiled" => {
                    return Err(refuse(
                        key,
                        "`Precompiled` (a compiled character map) is not supported",
                    )
                    .hint("give token ids instead: --tokens 1,2,3"));
                }
                "Prepend" if text("prepend").len() > LONGEST_PREFIX => {
                    return Err(exceeded(
                        key,
                        format!(
                            "`Prepend` puts {} bytes in front, at most {LONGEST_PREFIX} are supported",
                            text("prepend").len()
                        ),
                    ));
                }
                "Replace" => {
                    let (found, is_regex) = pattern(step, key)?;
                    let shortest = if is_regex { 1 } else { found.len().max(1) };
                    let by = text("content").len().div_ceil(shortest).max(1);
                    growth = growth.saturating_mul(by);
                    if growth > MOST_GROWTH {
                        return Err(exceeded(
                            key,
                            format!(
                                "`Replace` may make a text {growth} times as long, at most {MOST_GROWTH} times is supported"
                            ),
                        ));
                    }
                    if is_regex {
                        let expression = Expression::new(found, key)?;
                        all.push(Step::Replace(expression, text("content").to_owned()));
                        // the crate checks the other fields
                        let _: NormalizerWrapper = library(step, key)?;
                        continue;
                    }
                }
                _ => {}
            }
            all.push(Step::Library(library(step, key)?));
        }
        Ok(Some(Self(all)))
    }
}

/// A rule as the crate reads it.
pub(super) fn library<T: serde::de::DeserializeOwned>(
    rule: &Value,
    key: &str,
) -> Result<T, FormatError> {
    serde_json::from_value(rule.clone()).map_err(|e| {
        let name = kind(rule);
        refuse(key, format!("`{}`: {e}", short(name))).because(e)
    })
}

impl Normalizer for Steps {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let most = text
            .len()
            .saturating_mul(MOST_GROWTH)
            .saturating_add(SMALL_GROWTH);
        for step in &self.0 {
            let done = match step {
                Step::Replace(expression, content) => text.replace(expression, content),
                Step::Library(step) => step.normalize(text),
            };
            let done = done.and_then(|()| match text.len() > most {
                true => Err(stop(exceeded(
                    NORMALIZER,
                    format!(
                        "a text of {} bytes became {} bytes, at most {MOST_GROWTH} times as long is supported",
                        text.len_original(),
                        text.len()
                    ),
                ))),
                false => Ok(()),
            });
            if let Err(error) = done {
                // the crate drops the error: nothing that follows may be mistaken for the text
                let stopped = refuse(NORMALIZER, error.to_string());
                text.clear();
                return Err(stop(stopped));
            }
        }
        Ok(())
    }
}

/// A pre-tokenizer.
#[derive(Debug)]
pub(super) struct Cuts(Vec<Cut>);

#[derive(Debug)]
enum Cut {
    Split(Expression, SplitDelimiterBehavior, bool),
    Library(PreTokenizerWrapper),
}

impl Cuts {
    /// Of the `pre_tokenizer` of a `tokenizer.json`; `None` if there is none.
    pub(super) fn new(rule: &Value) -> Result<Option<Self>, FormatError> {
        let key = "pre_tokenizer";
        if rule.is_null() {
            return Ok(None);
        }
        let mut all = Vec::new();
        for step in steps(rule, "pretokenizers", key)? {
            if kind(step) == "Split"
                && let (found, true) = pattern(step, key)?
            {
                let expression = Expression::new(found, key)?;
                let PreTokenizerWrapper::Split(split) = library(step, key)? else {
                    return Err(refuse(key, "`Split` is something else to the library"));
                };
                all.push(Cut::Split(expression, split.behavior, split.invert));
                continue;
            }
            all.push(Cut::Library(library(step, key)?));
        }
        Ok(Some(Self(all)))
    }
}

impl PreTokenizer for Cuts {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        self.0.iter().try_for_each(|cut| match cut {
            Cut::Split(expression, behavior, true) => {
                text.split(|_, part| part.split(Invert(expression), *behavior))
            }
            Cut::Split(expression, behavior, false) => {
                text.split(|_, part| part.split(expression, *behavior))
            }
            Cut::Library(cut) => cut.pre_tokenize(text),
        })
    }
}
