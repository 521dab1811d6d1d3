//! `value[start:stop:step]` as Python has it.
//!
//! Invariant: places are clipped before anything is copied.

use super::meter::{Buf, R, fail, spend_bytes};
use super::value::{Grow, Range, Text, Value};

fn part(value: Option<Value>) -> R<Option<i128>> {
    match value {
        None | Some(Value::None) => Ok(None),
        Some(Value::Undefined(what)) => fail(what.as_str()),
        Some(value) => match value.as_int() {
            Some(value) => Ok(Some(value)),
            None => fail("slice indices must be integers or None or have an __index__ method"),
        },
    }
}

/// The places of a slice of `count` items: first, step, how many.
fn places(count: usize, parts: [Option<i128>; 3]) -> R<(i128, i128, usize)> {
    let [start, stop, step] = parts;
    let step = step.unwrap_or(1);
    if step == 0 {
        return fail("slice step cannot be zero");
    }
    let count = count as i128;
    let (low, high) = if step > 0 {
        (0, count)
    } else {
        (-1, count.saturating_sub(1))
    };
    let clip = |place: Option<i128>, otherwise: i128| match place {
        None => otherwise,
        Some(place) if place < 0 => place.saturating_add(count).clamp(low, high),
        Some(place) => place.clamp(low, high),
    };
    let first = clip(start, if step > 0 { low } else { high });
    let end = clip(stop, if step > 0 { high } else { low });
    let span = if step > 0 {
        end.saturating_sub(first)
    } else {
        first.saturating_sub(end)
    };
    let stride = step.checked_abs().unwrap_or(i128::MAX);
    let taken = match span > 0 {
        true => span
            .saturating_sub(1)
            .checked_div(stride)
            .unwrap_or(0)
            .saturating_add(1),
        false => 0,
    };
    Ok((first, step, usize::try_from(taken).unwrap_or(0)))
}

pub(super) fn slice(of: &Value, [start, stop, step]: [Option<Value>; 3]) -> R<Value> {
    if let Value::Undefined(what) = of {
        return fail(what.as_str());
    }
    let parts = [part(start)?, part(stop)?, part(step)?];
    match of {
        Value::Str(text) => slice_text(text, parts).map(Value::Str),
        Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
            let (first, step, taken) = places(items.items.len(), parts)?;
            let mut out = Grow::default();
            for i in 0..taken as i128 {
                let at = usize::try_from(first.saturating_add(step.saturating_mul(i)))
                    .unwrap_or(usize::MAX);
                out.push(items.items.get(at).cloned().unwrap_or(Value::None))?;
            }
            match of {
                Value::List(_) => out.into_list(),
                _ => out.into_tuple(),
            }
        }
        Value::Range(range) => {
            let (first, step, taken) = places(range.len(), parts)?;
            let base = i128::from(range.step);
            let fit = |value: Option<i128>| match value.map(i64::try_from) {
                Some(Ok(value)) => Ok(value),
                _ => fail("a range of numbers beyond 64 bits"),
            };
            let at = |place: i128| {
                let offset = base.checked_mul(place);
                offset.and_then(|o| o.checked_add(i128::from(range.start)))
            };
            let _ = taken;
            let stop = match parts {
                [_, None, _] if step > 0 => range.len() as i128,
                [_, None, _] => -1,
                [_, Some(stop), _] => {
                    let count = range.len() as i128;
                    let (low, high) = if step > 0 {
                        (0, count)
                    } else {
                        (-1, count.saturating_sub(1))
                    };
                    let stop = if stop < 0 {
                        stop.saturating_add(count)
                    } else {
                        stop
                    };
                    stop.clamp(low, high)
                }
            };
            Ok(Value::Range(Range {
                start: fit(at(first))?,
                stop: fit(at(stop))?,
                step: fit(base.checked_mul(step))?,
            }))
        }
        other => fail(format!("'{}' object cannot be sliced", other.type_name())),
    }
}

fn slice_text(text: &Text, parts: [Option<i128>; 3]) -> R<Text> {
    let (first, step, taken) = places(text.chars(), parts)?;
    let first = usize::try_from(first).unwrap_or(0);
    let keep = |out: Buf| match text.is_markup() {
        true => Text::markup(out.as_str()),
        false => Text::from_buf(out),
    };
    let mut out = Buf::default();
    if taken == 0 {
        return keep(out);
    }
    if step == 1 {
        let from = text.offset(first)?;
        let to = text.offset(first.saturating_add(taken))?;
        out.push_str(&text.as_str()[from..to])?;
        return keep(out);
    }
    spend_bytes(text.as_str().len())?;
    let stride = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    if step > 0 {
        let from = text.offset(first)?;
        let chars = text.as_str()[from..].chars().step_by(stride);
        for c in chars.take(taken) {
            out.push(c)?;
        }
    } else {
        let to = text.offset(first.saturating_add(1))?;
        let chars = text.as_str()[..to].chars().rev().step_by(stride);
        for c in chars.take(taken) {
            out.push(c)?;
        }
    }
    keep(out)
}
