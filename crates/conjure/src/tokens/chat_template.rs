//! From a conversation to the text that a model continues, by the Jinja template that comes with the model.
//!
//! Templates are programs from strangers. They are run by the `minijinja` crate in the dialect that transformers uses
//! (<https://huggingface.co/docs/transformers/chat_templating>): blocks trimmed, loop controls, Python's string and list
//! methods, `raise_exception`, `strftime_now` and a `tojson` that leaves characters as they are. They cannot read files, they
//! stop when they have taken too many steps, and their variables hold no more than memory and stack have room for.

mod date;
mod tags;
mod values;

pub use date::Date;

use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tags::{KEPT, KEPT_IN_NAMESPACE, prepared};
use values::{MAX_LOOKED_AT, kept, write_json};

/// Steps of a template, a step for every 64 bytes that it makes included. Real conversations take a few thousand.
const FUEL: u64 = 4_000_000;
/// Templates above this size are refused; the longest known ones have 20 kB.
pub(super) const MAX_TEMPLATE_BYTES: usize = 1 << 20;

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
        let source = prepared(source);
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
        let left = Arc::new(AtomicU64::new(MAX_LOOKED_AT));
        for (name, in_namespace) in [(KEPT, false), (KEPT_IN_NAMESPACE, true)] {
            let left = Arc::clone(&left);
            environment.add_filter(name, move |value: &Value| kept(value, in_namespace, &left));
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
