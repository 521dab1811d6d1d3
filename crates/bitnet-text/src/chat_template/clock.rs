//! `strftime_now`: the local time as Python's `strftime` writes it in the C locale.
//!
//! Invariant: a letter that is not known is an error.

use super::meter::{R, fail, spend_bytes};
use jiff::civil::DateTime;
use std::fmt::Write as _;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

pub(super) fn strftime_now(format: &str) -> R<String> {
    let now = jiff::Zoned::now();
    let seconds = now.timestamp().as_second();
    strftime(format, now.datetime(), seconds)
}

/// A number with the padding of its letter or of a flag before it.
fn padded(value: i64, width: usize, fill: char, flag: Option<char>) -> String {
    match flag {
        Some('-') => value.to_string(),
        Some('_') => format!("{value:width$}"),
        Some('0') => format!("{value:0width$}"),
        _ if fill == '0' => format!("{value:0width$}"),
        _ => format!("{value:width$}"),
    }
}

fn strftime(format: &str, at: DateTime, seconds: i64) -> R<String> {
    spend_bytes(format.len().saturating_mul(8))?;
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let mut letter = letters.next();
        let flag = letter.filter(|c| matches!(c, '-' | '_' | '0' | '^'));
        if flag.is_some() {
            letter = letters.next();
        }
        let Some(letter) = letter else {
            return fail("strftime_now: the format ends in '%'");
        };
        let text = one(letter, flag, at, seconds)?;
        match flag {
            Some('^') => out.push_str(&text.to_uppercase()),
            _ => out.push_str(&text),
        }
    }
    Ok(out)
}

fn one(letter: char, flag: Option<char>, at: DateTime, seconds: i64) -> R<String> {
    let name = |names: &[&'static str], at: i64| {
        let at = usize::try_from(at).unwrap_or(0);
        names.get(at).copied().unwrap_or_default()
    };
    let number = |value: i64, width: usize| Ok(padded(value, width, '0', flag));
    let spaced = |value: i64, width: usize| Ok(padded(value, width, ' ', flag));
    let year = i64::from(at.year());
    let (month, day) = (i64::from(at.month()), i64::from(at.day()));
    let (hour, minute) = (i64::from(at.hour()), i64::from(at.minute()));
    let second = i64::from(at.second());
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let weekday = i64::from(at.weekday().to_sunday_zero_offset());
    let day_of_year = i64::from(at.day_of_year());
    let week = at.date().iso_week_date();
    let half = if hour < 12 { "AM" } else { "PM" };
    let all = |format: &str| strftime(format, at, seconds);
    match letter {
        '%' => Ok("%".to_owned()),
        'n' => Ok("\n".to_owned()),
        't' => Ok("\t".to_owned()),
        'a' => Ok(name(&DAYS, weekday).chars().take(3).collect()),
        'A' => Ok(name(&DAYS, weekday).to_owned()),
        'b' | 'h' => Ok(name(&MONTHS, month.saturating_sub(1))
            .chars()
            .take(3)
            .collect()),
        'B' => Ok(name(&MONTHS, month.saturating_sub(1)).to_owned()),
        'Y' => Ok(year.to_string()),
        'y' => number(year.rem_euclid(100), 2),
        'C' => number(year / 100, 2),
        'G' => Ok(week.year().to_string()),
        'g' => number(i64::from(week.year()).rem_euclid(100), 2),
        'm' => number(month, 2),
        'd' => number(day, 2),
        'e' => spaced(day, 2),
        'H' => number(hour, 2),
        'k' => spaced(hour, 2),
        'I' => number(hour12, 2),
        'l' => spaced(hour12, 2),
        'M' => number(minute, 2),
        'S' => number(second, 2),
        'f' => {
            let mut text = String::new();
            let micros = at.subsec_nanosecond() / 1000;
            match write!(text, "{micros:06}") {
                Ok(()) => Ok(text),
                Err(_) => fail("strftime_now: no microseconds"),
            }
        }
        'j' => number(day_of_year, 3),
        'p' => Ok(half.to_owned()),
        'P' => Ok(half.to_lowercase()),
        'u' => number(if weekday == 0 { 7 } else { weekday }, 1),
        'w' => number(weekday, 1),
        'U' => number(day_of_year.saturating_add(6).saturating_sub(weekday) / 7, 2),
        'W' => number(
            day_of_year
                .saturating_add(6)
                .saturating_sub(weekday.saturating_add(6) % 7)
                / 7,
            2,
        ),
        'V' => number(i64::from(week.week()), 2),
        's' => Ok(seconds.to_string()),
        // a time without a zone
        'z' | 'Z' => Ok(String::new()),
        'D' | 'x' => all("%m/%d/%y"),
        'F' => all("%Y-%m-%d"),
        'R' => all("%H:%M"),
        'T' | 'X' => all("%H:%M:%S"),
        'r' => all("%I:%M:%S %p"),
        'c' => all("%a %b %e %H:%M:%S %Y"),
        other => fail(format!(
            "strftime_now: the letter %{other} is not supported"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat_template::meter::Limits;

    #[test]
    fn letters_are_those_of_python() {
        Limits::of_context(0).start();
        let at = jiff::civil::date(2024, 2, 9).at(0, 4, 6, 7_000);
        // python: datetime(2024, 2, 9, 0, 4, 6, 7).strftime(...)
        let cases = [
            (
                "%a %A %b %B %d %e %-d|%_d",
                "Fri Friday Feb February 09  9 9| 9",
            ),
            (
                "%H %I %k %l %M %S %f %p %P",
                "00 12  0 12 04 06 000007 AM am",
            ),
            (
                "%j %U %W %V %G %g %u %w %C %y",
                "040 05 06 06 2024 24 5 5 20 24",
            ),
            (
                "%F %T %D %R %r",
                "2024-02-09 00:04:06 02/09/24 00:04 12:04:06 AM",
            ),
            (
                "%c|%x|%X|%z%Z%%",
                "Fri Feb  9 00:04:06 2024|02/09/24|00:04:06|%",
            ),
            ("%^a %^B %-m %-H %-j", "FRI FEBRUARY 2 0 40"),
        ];
        for (format, expected) in cases {
            let found = strftime(format, at, 0);
            assert_eq!(found.as_deref().ok(), Some(expected), "{format}");
        }
        assert!(strftime("%Q", at, 0).is_err());
        assert!(strftime("100%", at, 0).is_err());
    }
}
