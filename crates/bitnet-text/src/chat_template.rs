//! Chat templates: the Jinja source of `tokenizer_config.json` rendered as transformers renders it.
//!
//! Invariant: a template gets what transformers gives it and nothing of the machine but the date;
//! whatever fails, `raise_exception` included, is an error that names the template's line.
//!
//! As in transformers (`utils/chat_template_utils.py`): `trim_blocks` and `lstrip_blocks` are on,
//! `break` and `continue` exist, `tojson` is Python's `json.dumps` without HTML escapes, and
//! `none`, `true`, `false` print as Python prints them. There are no tools and no documents. The
//! `{% generation %}` block (a training aid) is not supported. `strftime_now` is in UTC.

use bitnet_formats::{ErrorCode, FormatError};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, context};
use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// Longest template source, bytes; published ones have up to some 20 kB.
const SOURCE: usize = 1 << 20;
/// Deepest value that `tojson` prints.
const DEPTH: usize = 64;
const NAME: &str = "chat_template";

/// One turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`; what else is allowed the template decides.
    pub role: String,
    /// What was said.
    pub content: String,
}

impl ChatMessage {
    /// A turn of the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self {
            role: "user".into(),
            content: content.into(),
        }
    }

    /// The instruction before the first turn.
    pub fn system(content: impl Into<String>) -> Self {
        Self {
            role: "system".into(),
            content: content.into(),
        }
    }
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

fn failed(error: &Error) -> FormatError {
    let what = match error.detail() {
        Some(detail) => detail.to_owned(),
        None => error.kind().to_string(),
    };
    let place = error
        .line()
        .map(|line| format!(" (line {line})"))
        .unwrap_or_default();
    FormatError::new(
        ErrorCode::ChatTemplate,
        format!("chat template: {what}{place}"),
    )
}

impl ChatTemplate {
    /// Compiles a template; `bos` and `eos` are what it prints as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, FormatError> {
        if source.len() > SOURCE {
            return Err(FormatError::new(
                ErrorCode::LimitExceeded,
                format!(
                    "chat template of {} bytes, at most {SOURCE} are read",
                    source.len()
                ),
            ));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .map_err(|e| failed(&e))?;
        environment.set_syntax(syntax);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_formatter(print);
        environment.add_filter("tojson", to_json);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, Error> {
                Err(Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function("strftime_now", |format: String| strftime(&format, now()));
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| failed(&e))?;
        Ok(Self {
            environment,
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// The prompt of a conversation; with `add_generation_prompt` it ends where the assistant speaks.
    /// Encode it without adding special tokens: the template has written them.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, FormatError> {
        let messages: Value = messages
            .iter()
            .map(|m| context! { role => m.role.as_str(), content => m.content.as_str() })
            .collect();
        let template = self
            .environment
            .get_template(NAME)
            .map_err(|e| failed(&e))?;
        template
            .render(context! {
                messages,
                add_generation_prompt,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
                tools => (),
                documents => (),
            })
            .map_err(|e| failed(&e))
    }
}

/// Prints `None`, `True` and `False` as Python does.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    let word = match value.kind() {
        ValueKind::None => "None",
        ValueKind::Bool if value.is_true() => "True",
        ValueKind::Bool => "False",
        _ => return minijinja::escape_formatter(out, state, value),
    };
    out.write_str(word).map_err(Error::from)
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut text = String::new();
    json(value, indent.map(|n| n.min(16)), 0, &mut text)?;
    Ok(Value::from(text))
}

fn json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEPTH {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "a value nested too deeply for tojson",
        ));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(n) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', n.saturating_mul(depth)));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::Map => {
            out.push('{');
            let mut any = false;
            for key in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                json_text(&key.to_string(), out);
                out.push_str(": ");
                json(&value.get_item(&key)?, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut any = false;
            for item in value.try_iter()? {
                out.push_str(if any { comma } else { "" });
                any = true;
                line(out, depth + 1);
                json(&item, indent, depth + 1, out)?;
            }
            if any {
                line(out, depth);
            }
            out.push(']');
        }
        _ => json_text(&value.to_string(), out),
    }
    Ok(())
}

fn json_text(text: &str, out: &mut String) {
    // serde_json escapes what JSON requires and nothing else, as Python does
    out.push_str(&serde_json::Value::from(text).to_string());
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map(|d| d.as_secs())
        .unwrap_or(0)
}

/// The common letters of `strftime`, in UTC; others stay as they are.
fn strftime(format: &str, seconds: u64) -> String {
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
        "Thursday",
        "Friday",
        "Saturday",
        "Sunday",
        "Monday",
        "Tuesday",
        "Wednesday",
    ];
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // the proleptic Gregorian calendar in cycles of 400 years that begin on 1 March
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = cycle * 400 + year + u64::from(month <= 2);
    let name = |list: &[&'static str], i: u64| {
        usize::try_from(i)
            .ok()
            .and_then(|i| list.get(i).copied())
            .unwrap_or_default()
    };
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        let wrote = match letters.next() {
            Some('Y') => write!(out, "{year:04}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('H') => write!(out, "{:02}", second / 3_600),
            Some('M') => write!(out, "{:02}", second / 60 % 60),
            Some('S') => write!(out, "{:02}", second % 60),
            Some('B') => write!(out, "{}", name(&MONTHS, month - 1)),
            Some('b') => write!(out, "{:.3}", name(&MONTHS, month - 1)),
            Some('A') => write!(out, "{}", name(&DAYS, days % 7)),
            Some('a') => write!(out, "{:.3}", name(&DAYS, days % 7)),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
        if wrote.is_err() {
            break;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_python_s() {
        // python: datetime.fromtimestamp(1709210096, timezone.utc)
        assert_eq!(
            strftime("%d %b %Y, %A %H:%M:%S %y%%", 1_709_210_096),
            "29 Feb 2024, Thursday 12:34:56 24%"
        );
        assert_eq!(strftime("%Y-%m-%d %B %a", 0), "1970-01-01 January Thu");
    }

    #[test]
    fn python_prints() {
        let render = |source: &str| {
            ChatTemplate::new(source, "<s>", "</s>")
                .and_then(|t| t.render(&[ChatMessage::user("hé <&>\n")], true))
        };
        assert_eq!(
            render("{{ none }} {{ true }} {{ add_generation_prompt }} {{ nothing }}|").as_deref(),
            Ok("None True True |")
        );
        assert_eq!(
            render("{{ messages | tojson }}").as_deref(),
            Ok("[{\"role\": \"user\", \"content\": \"hé <&>\\n\"}]")
        );
        assert_eq!(
            render("{{ messages[0] | tojson(indent=2) }}").as_deref(),
            Ok("{\n  \"role\": \"user\",\n  \"content\": \"hé <&>\\n\"\n}")
        );
        assert_eq!(render("{%- for m in messages %}\n  {%- if m.role.startswith('u') %}\n{{ m['content'].strip() }}\n  {% endif %}\n{% endfor %}").as_deref(), Ok("hé <&>\n"));
        let error = render("\n{{ raise_exception('roles must alternate') }}");
        assert_eq!(
            error.err().map(|e| e.to_string()).as_deref(),
            Some("chat template: roles must alternate (line 2)")
        );
    }
}
