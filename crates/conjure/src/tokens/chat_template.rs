//! From a conversation to the text that a model continues, by the Jinja template that comes with the model.
//!
//! Templates are programs from strangers. They are run by the `minijinja` crate in the dialect that transformers uses
//! (<https://huggingface.co/docs/transformers/chat_templating>): blocks trimmed, loop controls, Python's string and list
//! methods, `raise_exception`, `strftime_now` and a `tojson` that leaves characters as they are. They cannot read files, and
//! they stop when they have taken too many steps.

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;

/// Steps of a template, a step for every 64 bytes that it makes included. Real conversations take a few thousand.
const FUEL: u64 = 4_000_000;
/// Templates above this size are refused; the longest known ones have 20 kB.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// What `tojson` may write.
const MAX_JSON_BYTES: usize = 16 << 20;
/// Lists within lists that `tojson` follows.
const MAX_JSON_DEPTH: usize = 64;

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// The day that a template may tell the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Date {
    /// Such as 2026.
    pub year: i32,
    /// From 1 to 12.
    pub month: u32,
    /// From 1.
    pub day: u32,
}

impl Date {
    /// Today, in Coordinated Universal Time. A result that should be made again keeps the date beside the seed.
    pub fn today() -> Self {
        let seconds =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        Self::from_days(i64::try_from(seconds / 86_400).unwrap_or_default())
    }

    /// By days since 1970-01-01, after <https://howardhinnant.github.io/date_algorithms.html>.
    fn from_days(days: i64) -> Self {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        Self {
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as i32,
            month: month as u32,
            day: (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32,
        }
    }

    /// 0 for Sunday, by Sakamoto's method.
    fn weekday(self) -> usize {
        const SHIFT: [i32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = if self.month < 3 { self.year - 1 } else { self.year };
        let shift = SHIFT[(self.month as usize).clamp(1, 12) - 1];
        (year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + shift + self.day as i32)
            .rem_euclid(7) as usize
    }

    /// Python's `strftime` at midnight.
    fn format(self, pattern: &str) -> std::result::Result<String, String> {
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
        const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
        let month = MONTHS[(self.month as usize).clamp(1, 12) - 1];
        let weekday = DAYS[self.weekday()];
        let mut out = String::new();
        let mut rest = pattern.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut directive = rest.next();
            let padded = directive != Some('-');
            if !padded {
                directive = rest.next();
            }
            let two = |value: u32| if padded { format!("{value:02}") } else { value.to_string() };
            match directive {
                Some('Y') => out.push_str(&format!("{:04}", self.year)),
                Some('y') => out.push_str(&two(self.year.rem_euclid(100) as u32)),
                Some('m') => out.push_str(&two(self.month)),
                Some('d') => out.push_str(&two(self.day)),
                Some('e') => out.push_str(&format!("{:2}", self.day)),
                Some('B') => out.push_str(month),
                Some('b' | 'h') => out.push_str(&month[..3]),
                Some('A') => out.push_str(weekday),
                Some('a') => out.push_str(&weekday[..3]),
                Some('F') => out.push_str(&format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)),
                Some('H' | 'M' | 'S') => out.push_str(&two(0)),
                Some('I') => out.push_str("12"),
                Some('p') => out.push_str("AM"),
                Some('T') => out.push_str("00:00:00"),
                Some('%') => out.push('%'),
                Some(other) => return Err(format!("strftime_now does not know %{other}")),
                None => out.push('%'),
            }
        }
        Ok(out)
    }
}

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
    /// Names such as `bos_token` and the tokens' texts.
    tokens: Vec<(String, String)>,
    date: Option<Date>,
}

/// What a template said when it refused a conversation.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

impl ChatTemplate {
    /// The template `source`. `tokens` are the variables that it sees beside the messages, such as
    /// `("bos_token", "<s>")` and `("eos_token", "</s>")`.
    ///
    /// # Errors
    /// A template that is larger than 1 MiB or no Jinja.
    pub fn new(source: &str, tokens: &[(&str, &str)]) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::request(format!("the chat template has {} bytes, more than 1 MiB", source.len())));
        }
        let source = without_generation_tags(source);
        let template = Self {
            source,
            tokens: tokens.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect(),
            date: None,
        };
        template.environment(None).template_from_str(&template.source).map_err(|e| {
            Error::request(format!("the chat template is not readable: {}", describe(&e)))
                .with_help("the template is no Jinja or is damaged; take the one from the model's own page")
        })?;
        Ok(template)
    }

    /// The same, and the day that `strftime_now` tells. Without it templates that know a day of their own take that, so that
    /// they say the same on every day, and others are told today's.
    #[must_use]
    pub fn with_date(mut self, date: Date) -> Self {
        self.date = Some(date);
        self
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the assistant's answer begins.
    ///
    /// The text carries its own begin mark where the model wants one: encode it without special tokens.
    ///
    /// # Errors
    /// A conversation that the template refuses, for example because roles do not alternate; a template that fails or does not
    /// end.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let turn = |message: &Message| context! { role => message.role.as_str(), content => message.content.as_str() };
        let given = context! {
            messages => messages.iter().map(turn).collect::<Vec<_>>(),
            add_generation_prompt,
            tools => (),
            documents => (),
        };
        let tokens: BTreeMap<String, String> = self.tokens.iter().cloned().collect();
        let given = context! { ..given, ..Value::from(tokens) };
        let rendered =
            |date| self.environment(date).template_from_str(&self.source).and_then(|template| template.render(&given));
        let rendered = match rendered(self.date) {
            Err(error)
                if error.kind() == ErrorKind::UnknownFunction
                    && self.date.is_none()
                    && self.source.contains("strftime_now") =>
            {
                rendered(Some(Date::today()))
            }
            other => other,
        };
        rendered.map_err(|error| {
            let mut source = std::error::Error::source(&error);
            while let Some(inner) = source {
                if let Some(refused) = inner.downcast_ref::<Refused>() {
                    return Error::request(format!("the model's chat template refuses the conversation: {refused}"))
                        .with_help("change the messages' roles and order to what the template asks for");
                }
                source = inner.source();
            }
            if error.kind() == ErrorKind::OutOfFuel {
                return Error::failure(format!("the chat template does not end: stopped after {FUEL} steps"))
                    .with_help("use another template: this one loops");
            }
            Error::failure(format!("the chat template failed: {}", describe(&error)))
                .with_help("the template may need more than messages with a role and a content")
        })
    }

    fn environment(&self, date: Option<Date>) -> Environment<'_> {
        let mut environment = Environment::new();
        if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
            environment.set_syntax(syntax);
        }
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> std::result::Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Refused(message)))
            },
        );
        if let Some(date) = date {
            environment.add_function("strftime_now", move |pattern: String| {
                date.format(&pattern).map_err(|message| minijinja::Error::new(ErrorKind::InvalidOperation, message))
            });
        }
        environment.add_filter("tojson", |value: &Value, options: Kwargs| {
            let indent = options.get::<Option<usize>>("indent").unwrap_or_default();
            // What else transformers' filter accepts does not change what templates make of messages.
            let _ = (options.get::<Option<bool>>("ensure_ascii"), options.get::<Option<bool>>("sort_keys"));
            let mut out = String::new();
            write_json(value, indent.map(|n| n.min(16)), 0, &mut out)?;
            Ok::<_, minijinja::Error>(out)
        });
        environment
    }
}

/// The message with the line that it is about.
fn describe(error: &minijinja::Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), |detail| format!("{}: {detail}", error.kind()));
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

/// transformers marks the assistant's words by `{% generation %}`, a tag of its own that writes nothing.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        // The tag's own "{%" may be followed by no more than "}", which closes nothing.
        let Some(length) = rest[start + 2..].find("%}").map(|length| length + 2) else { break };
        let (tag, inner) = (&rest[start..start + length], &rest[start + 2..start + length]);
        out.push_str(&rest[..start]);
        match inner.trim_matches(['-', '+']).trim() {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length..];
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps(value, ensure_ascii=False)`.
fn write_json(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    out: &mut String,
) -> std::result::Result<(), minijinja::Error> {
    let wrong = |message: &str| Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()));
    if depth > MAX_JSON_DEPTH || out.len() > MAX_JSON_BYTES {
        return wrong("tojson: the value is too deep or too long");
    }
    let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let between = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined => return wrong("tojson: the value is not defined"),
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => {
            let _ = write!(out, "{value}");
        }
        ValueKind::Map => {
            out.push('{');
            let mut empty = true;
            for key in value.try_iter()? {
                out.push_str(if empty { "" } else { between });
                line(out, depth + 1);
                let name = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                out.push_str(&quoted(&name));
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for item in value.try_iter()? {
                out.push_str(if empty { "" } else { between });
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push(']');
        }
        _ => match value.as_str() {
            Some(text) => out.push_str(&quoted(text)),
            None => out.push_str(&quoted(&value.to_string())),
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::without_generation_tags;

    #[test]
    fn generation_tags_become_conditions_that_hold() {
        for (source, read) in [
            ("{% generation %}a{%- endgeneration -%}", "{% if true %}a{%- endif -%}"),
            ("{% set generation = 1 %}", "{% set generation = 1 %}"),
            ("{%%}x", "{%%}x"),
            // A tag that is not closed, and one whose end another might take for its own.
            ("{% generation", "{% generation"),
            ("{%}{% generation %}", "{%}{% generation %}"),
            ("a{%}", "a{%}"),
        ] {
            assert_eq!(without_generation_tags(source), read);
        }
    }
}
