//! Several GGUF files joined into one, as `cat` joins the parts of a split model.
//!
//! Invariant: a file is refused when another GGUF file begins where its own data ends; readers that stop at the last
//! tensor would run the first of them and lose the rest in silence.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::read::{Parsed, read_header, split_key};
use super::{Gguf, MAGIC, malformed};
use crate::bytes::Cursor;
use crate::error::FormatError;
use crate::limits::Limits;
use crate::packing::Packing;
use crate::source::{Source, as_opened};
use std::path::PathBuf;

/// Files that are counted; more are not told apart.
const MOST: usize = 64;
/// Commands that a hint spells out.
const MOST_SPELLED: usize = 8;

/// One of the files.
struct Member {
    start: u64,
    end: u64,
    /// `split.no` and `split.count`, where it is a part of a split model.
    part: Option<(u64, u64)>,
}

impl Member {
    fn of(start: u64, end: u64, parsed: &Parsed) -> Self {
        let key = |key: &str| split_key(&parsed.metadata, key).ok().flatten();
        let part = key("split.no").zip(key("split.count"));
        Self {
            start,
            end,
            part: part.filter(|(_, count)| *count > 1),
        }
    }
}

/// Where another file begins behind this one, if one does.
fn next(file: &dyn Source, start: u64, parsed: &Parsed) -> Result<Option<u64>, FormatError> {
    let padded = parsed.end.checked_next_multiple_of(parsed.alignment);
    let places = [Some(parsed.end), padded].into_iter().flatten();
    let places = places.filter_map(|end| start.checked_add(end));
    for at in places.filter(|at| *at > start) {
        let end = at.checked_add(MAGIC.len() as u64);
        if let Some(end) = end.filter(|end| *end <= file.len())
            && file.read(at..end)? == MAGIC
        {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The header of one file, which must be one.
pub(super) fn read_part(
    file: &dyn Source,
    part: usize,
    limits: &Limits,
    layout: Option<&'static dyn Packing>,
) -> Result<Parsed, FormatError> {
    as_opened(file, || {
        let parsed = read_header(Cursor::over(file), part, limits, layout)?;
        refuse(file, &parsed, limits)?;
        Ok(parsed)
    })
}

/// Refuses a file behind whose data another one begins.
fn refuse(file: &dyn Source, first: &Parsed, limits: &Limits) -> Result<(), FormatError> {
    let Some(second) = next(file, 0, first)? else {
        return Ok(());
    };
    let mut members = vec![Member::of(0, second, first)];
    let (mut start, mut is_all) = (second, true);
    while members.len() < MOST {
        let Ok(parsed) = read_header(Cursor::behind(file, start), 0, limits, None) else {
            is_all = false;
            break;
        };
        let next = next(file, start, &parsed)?;
        let end = next.unwrap_or(file.len());
        members.push(Member::of(start, end, &parsed));
        match next {
            Some(next) => start = next,
            None => break,
        }
    }
    is_all &= members.last().is_some_and(|m| m.end == file.len());
    let count = match is_all {
        true => members.len().to_string(),
        false => format!("at least {}", members.len().max(2)),
    };
    let error = malformed(format!(
        "expected one GGUF file, found {count} joined one behind the other, as `cat` joins the parts of a split model; the \
         second begins here"
    ))
    .at(second);
    Err(match is_all && members.len() <= MOST_SPELLED {
        true => error.hint(format!("cut it apart: {}", commands(file, &members))),
        false => error.hint("get the parts again, keep their names, and give any one of them"),
    })
}

/// Shell commands that write each member under the name that readers find it by.
fn commands(file: &dyn Source, members: &[Member]) -> String {
    let whole = file.path();
    let name = |number: usize, member: &Member| -> PathBuf {
        let split = member.part.and_then(|(no, count)| {
            Some((usize::try_from(no).ok()?, usize::try_from(count).ok()?))
        });
        match split {
            Some((no, count)) => Gguf::split_name(whole, no, count),
            None => {
                let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
                whole.with_file_name(format!("{stem}.{}.gguf", number.saturating_add(1)))
            }
        }
    };
    let quoted =
        |path: &PathBuf| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
    let all = members.iter().enumerate().map(|(number, member)| {
        format!(
            "tail -c +{} {} | head -c {} > {}",
            member.start.saturating_add(1),
            quoted(&whole.to_owned()),
            member.end.saturating_sub(member.start),
            quoted(&name(number, member))
        )
    });
    let all: Vec<String> = all.collect();
    let first = members.first().map(|member| quoted(&name(0, member)));
    format!(
        "{}; then give {}",
        all.join("; "),
        first.unwrap_or_default()
    )
}
