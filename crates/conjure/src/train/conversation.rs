//! Conversations as token ids, and which of them the assistant says.
//!
//! Where an answer begins and ends is found by rendering the conversation up to it: with the words that ask for an answer, as
//! a model sees it when it is to answer, and with the answer. Both must be beginnings of the whole, as text and as tokens.

use crate::data::texts::JsonLines;
use crate::data::texts::json_lines::{self, kind, lacks};
use crate::tokens::{ChatTemplate, Message, Tokenizer};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// Places that a warning names.
const NAMED: usize = 3;

/// Token ids, and for each whether it is learned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Learned {
    pub ids: Vec<u32>,
    pub learned: Vec<bool>,
    /// File and line.
    pub place: String,
}

/// A prompt with a better and a worse answer.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub chosen: Learned,
    pub rejected: Learned,
}

/// Reads files for one model.
pub(super) struct Conversations<'a> {
    tokenizer: &'a Tokenizer,
    context: usize,
    /// Places of what was left out, by the reason.
    too_long: Vec<String>,
    unclear: Vec<String>,
}

/// What a conversation became.
enum Outcome {
    Learned(Learned),
    TooLong,
    /// Tokens reach over the border of an answer.
    Unclear,
}

impl<'a> Conversations<'a> {
    /// For a tokenizer, and conversations of at most `context` tokens.
    pub fn new(tokenizer: &'a Tokenizer, context: usize) -> Result<Self> {
        Ok(Self { tokenizer, context, too_long: Vec::new(), unclear: Vec::new() })
    }

    /// The conversations of a file with `{"messages": [...]}` on each line, with a text by which each is known.
    pub fn read_chats(&mut self, path: &Path, take: &mut dyn FnMut(&str, Learned)) -> Result<()> {
        let template = self.template()?;
        for line in JsonLines::open(path)? {
            let (line, object) = line?;
            let place = format!("{}: line {line}", path.display());
            let messages = messages(path, line, &object, "messages")?;
            if !messages.iter().any(|message| message.role == "assistant") {
                return Err(Error::file(path, format!("line {line}: no message has the role \"assistant\""))
                    .with_help("there is nothing to learn from a conversation without an answer"));
            }
            let outcome = answers(self.tokenizer, template, &messages, self.context, false, &place)
                .map_err(|error| in_line(&place, error))?;
            if let Some(learned) = self.sorted(outcome, &place) {
                take(&identity(&messages), learned);
            }
        }
        Ok(())
    }

    /// The pairs of a file with `"prompt"` (a text that the answer goes on) or `"messages"` (a conversation that it answers),
    /// `"chosen"` and `"rejected"` on each line, with the text by which each pair's prompt is known.
    pub fn read_pairs(&mut self, path: &Path, end: u32, take: &mut dyn FnMut(&str, Pair)) -> Result<()> {
        for line in JsonLines::open(path)? {
            let (line, object) = line?;
            let place = format!("{}: line {line}", path.display());
            let text = |key: &str| json_lines::text(path, line, &object, key);
            let (chosen, rejected) = (text("chosen")?, text("rejected")?);
            if chosen == rejected {
                return Err(Error::file(path, format!("line {line}: \"chosen\" and \"rejected\" are the same")));
            }
            let (known, outcomes) = if object.contains_key("prompt") {
                let prompt = text("prompt")?;
                (prompt.to_owned(), [chosen, rejected].map(|answer| self.continued(prompt, answer, end, &place)))
            } else if object.contains_key("messages") {
                let messages = messages(path, line, &object, "messages")?;
                let template = self.template()?;
                let answered = |answer: &str| {
                    let all = [messages.as_slice(), &[Message::new("assistant", answer)]].concat();
                    answers(self.tokenizer, template, &all, self.context, true, &place)
                };
                (identity(&messages), [chosen, rejected].map(answered))
            } else {
                return Err(lacks(path, line, &object, "prompt"));
            };
            let [chosen, rejected] = outcomes.map(|outcome| outcome.map_err(|error| in_line(&place, error)));
            let (chosen, rejected) = (chosen?, rejected?);
            // What is left out is left out once.
            let pair = match (chosen, rejected) {
                (Outcome::Learned(chosen), Outcome::Learned(rejected)) => Some(Pair { chosen, rejected }),
                (Outcome::Learned(_), other) | (other, _) => {
                    self.sorted(other, &place);
                    None
                }
            };
            if let Some(pair) = pair {
                take(&known, pair);
            }
        }
        Ok(())
    }

    /// What the user should know about what was left out.
    pub fn warnings(&self) -> Vec<String> {
        let reasons = [
            (&self.too_long, format!("have more than {} tokens", self.context)),
            (&self.unclear, "have an answer that shares a token with what is around it".to_owned()),
        ];
        let told = |(places, reason): (&Vec<String>, String)| {
            let named = places.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            let more = if places.len() > NAMED { ", ..." } else { "" };
            (!places.is_empty()).then(|| format!("{} left out: they {reason} ({named}{more})", places.len()))
        };
        reasons.into_iter().filter_map(told).collect()
    }

    fn template(&self) -> Result<&'a ChatTemplate> {
        self.tokenizer.chat_template().ok_or_else(|| {
            Error::request("the model has no chat template")
                .with_help("put one into its folder as chat_template.jinja, or begin with an instruction-tuned model")
        })
    }

    fn sorted(&mut self, outcome: Outcome, place: &str) -> Option<Learned> {
        match outcome {
            Outcome::Learned(learned) => return Some(learned),
            Outcome::TooLong => self.too_long.push(place.to_owned()),
            Outcome::Unclear => self.unclear.push(place.to_owned()),
        }
        None
    }

    /// A text and how it goes on, each turned into tokens by itself, as when the model is asked; then the end.
    fn continued(&self, prompt: &str, answer: &str, end: u32, place: &str) -> Result<Outcome> {
        let mut ids = self.tokenizer.encode(prompt, true)?;
        if ids.last() == Some(&end) && ids.len() > 1 {
            ids.pop();
        }
        if ids.is_empty() {
            ids.push(self.tokenizer.bos().unwrap_or(end));
        }
        let before = ids.len();
        ids.extend(self.tokenizer.encode(answer, false)?);
        ids.push(end);
        if ids.len() > self.context {
            return Ok(Outcome::TooLong);
        }
        let learned = (0..ids.len()).map(|i| i >= before).collect();
        Ok(Outcome::Learned(Learned { ids, learned, place: place.to_owned() }))
    }
}

/// The text by which a conversation is known.
fn identity(messages: &[Message]) -> String {
    messages.iter().map(|message| format!("{}\0{}\0", message.role, message.content)).collect()
}

fn in_line(place: &str, error: Error) -> Error {
    match error {
        Error::Request { message, help } | Error::Failure { message, help } => {
            Error::File { path: place.into(), message, help }
        }
        other => other,
    }
}

/// The messages under `key`.
fn messages(path: &Path, line: usize, object: &Map<String, Value>, key: &str) -> Result<Vec<Message>> {
    let wrong = |message: String| {
        Error::file(path, format!("line {line}: {message}"))
            .with_help("messages are a list of {\"role\": \"user\", \"content\": \"...\"}")
    };
    let list = match object.get(key) {
        None => return Err(lacks(path, line, object, key)),
        Some(Value::Array(list)) if !list.is_empty() => list,
        Some(Value::Array(_)) => return Err(wrong(format!("\"{key}\" is empty"))),
        Some(other) => return Err(wrong(format!("\"{key}\" is {} instead of a list", kind(other)))),
    };
    let read = |(n, value): (usize, &Value)| {
        let text = |key: &str| match value.get(key) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(other) => Err(wrong(format!("\"{key}\" of message {} is {} instead of a text", n + 1, kind(other)))),
            None => Err(wrong(format!("message {} lacks \"{key}\"", n + 1))),
        };
        Ok(Message { role: text("role")?, content: text("content")? })
    };
    list.iter().enumerate().map(read).collect()
}

/// The conversation's ids with those of the assistant's answers marked, or of its last answer alone.
fn answers(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
    context: usize,
    last_only: bool,
    place: &str,
) -> Result<Outcome> {
    let whole = template.render(messages, false)?;
    let ids = tokenizer.encode(&whole, false)?;
    let mut learned = vec![false; ids.len()];
    let spoken = messages.iter().enumerate().filter(|(_, message)| message.role == "assistant");
    for (n, message) in spoken {
        if last_only && n + 1 < messages.len() {
            continue;
        }
        let before = template.render(&messages[..n], true)?;
        let after = template.render(&messages[..=n], false)?;
        let said = after.strip_prefix(before.as_str()).filter(|_| whole.starts_with(after.as_str()));
        let Some(said) = said else {
            return Err(Error::request(format!(
                "the model's chat template writes the beginning of a conversation, up to message {}, in another way than \
                 the whole",
                n + 1
            ))
            .with_help("use conversations with one answer each, or a template that only adds"));
        };
        if !said.contains(message.content.trim()) {
            return Err(Error::request(format!("the model's chat template does not write out message {}", n + 1))
                .with_help("it changes what the assistant says, so that it cannot be learned"));
        }
        let (first, mut last) = match (tokenizer.encode(&before, false)?, tokenizer.encode(&after, false)?) {
            (before, after) if ids.starts_with(&before) && ids.starts_with(&after) => (before.len(), after.len()),
            _ => return Ok(Outcome::Unclear),
        };
        // The ids say what the text does, or another token took a part of it.
        if tokenizer.decode(&ids[first..last], false)?.trim() != decoded(tokenizer, said)?.trim() {
            return Ok(Outcome::Unclear);
        }
        // After the mark that ends the answer nobody asks the model.
        if let Some(mark) = (first..last).rev().find(|at| tokenizer.is_special(ids[*at])) {
            last = mark + 1;
        }
        learned[first..last].fill(true);
    }
    if ids.len() > context {
        return Ok(Outcome::TooLong);
    }
    Ok(Outcome::Learned(Learned { ids, learned, place: place.to_owned() }))
}

/// A text as it comes back from the tokenizer.
fn decoded(tokenizer: &Tokenizer, text: &str) -> Result<String> {
    tokenizer.decode(&tokenizer.encode(text, false)?, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language_model/llama");
        Tokenizer::from_folder(folder).unwrap()
    }

    fn with_template(source: &str) -> Tokenizer {
        tokenizer().with_chat_template(ChatTemplate::new(source, &[]).unwrap())
    }

    /// What is learned of these lines, decoded; and the warnings.
    fn read(tokenizer: &Tokenizer, lines: &str, context: usize) -> Result<(Vec<String>, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, lines).unwrap();
        let mut conversations = Conversations::new(tokenizer, context)?;
        let mut all = Vec::new();
        conversations.read_chats(&path, &mut |_, learned| {
            let ids: Vec<u32> =
                learned.ids.iter().zip(&learned.learned).filter(|(_, learned)| **learned).map(|(id, _)| *id).collect();
            all.push(tokenizer.decode(&ids, false).unwrap());
        })?;
        let warnings = conversations.warnings();
        Ok((all, warnings.into_iter().map(|w| w.replace(&path.display().to_string(), "x.jsonl")).collect()))
    }

    const TWO: &str = r#"{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Boats?"},
        {"role": "assistant", "content": "Eleven \u2014 or ten."}, {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "No light."}]}"#;

    #[test]
    fn the_answers_are_learned_with_the_marks_that_end_them_and_nothing_else() {
        let line = TWO.replace('\n', "");
        let (learned, warnings) = read(&tokenizer(), &line, 200).unwrap();
        assert_eq!(learned, ["Eleven \u{2014} or ten.<|im_end|>No light.<|im_end|>"]);
        assert!(warnings.is_empty());
    }

    #[test]
    fn conversations_that_are_too_long_are_left_out_and_told_of() {
        let lines =
            format!("{0}\n{0}\n{1}", TWO.replace('\n', ""), r#"{"messages": [{"role": "assistant", "content": "a"}]}"#);
        let (learned, warnings) = read(&tokenizer(), &lines, 20).unwrap();
        assert_eq!(learned, ["a<|im_end|>"]);
        assert_eq!(warnings, ["2 left out: they have more than 20 tokens (x.jsonl: line 1, x.jsonl: line 2)"]);
    }

    #[test]
    fn an_answer_that_shares_a_token_with_the_prompt_is_left_out() {
        let plain = with_template("{% for message in messages %}{{ message['content'] }}{% endfor %}");
        let line = |answer: &str| {
            format!(
                r#"{{"messages": [{{"role": "user", "content": " t"}}, {{"role": "assistant", "content": "{answer}"}}]}}"#
            )
        };
        // " the" is one token.
        let (learned, warnings) = read(&plain, &format!("{}\n{}", line("he"), line("!")), 20).unwrap();
        assert_eq!(learned, ["!"]);
        assert!(warnings[0].starts_with("1 left out: they have an answer that shares a token"), "{warnings:?}");
    }

    #[test]
    fn templates_that_write_a_beginning_otherwise_than_the_whole_are_refused() {
        let refused = |template: &str| {
            let error = read(&with_template(template), &TWO.replace('\n', ""), 200).unwrap_err();
            error.to_string().split_once("x.jsonl: ").unwrap().1.to_owned()
        };
        let counts = "{{ messages | length }}{% for message in messages %}{{ message['content'] }}{% endfor %}";
        let error = refused(counts);
        assert!(
            error.starts_with("line 1: the model's chat template writes the beginning of a conversation"),
            "{error}"
        );
        let shouts = "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}";
        let error = refused(shouts);
        assert!(error.contains("does not write out message 3"), "{error}");
        let error = refused("{{ raise_exception('roles must alternate') }}");
        assert!(error.contains("line 1: the model's chat template refuses the conversation: roles must"), "{error}");
    }

    #[test]
    fn pairs_share_their_prompt_and_learn_their_answers() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/language_model/pairs.jsonl");
        let tokenizer = tokenizer();
        let mut all = Vec::new();
        let mut conversations = Conversations::new(&tokenizer, 200).unwrap();
        conversations.read_pairs(&path, 2, &mut |_, pair| all.push(pair)).unwrap();
        let said = |learned: &Learned| {
            let first = learned.learned.iter().position(|learned| *learned).unwrap();
            let of = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
            [of(&learned.ids[..first]), of(&learned.ids[first..])]
        };
        let asked = "<|im_start|>user\nHow many boats?<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(said(&all[0].chosen), [asked, "Eleven.<|im_end|>\n"]);
        assert_eq!(said(&all[0].rejected), [asked, "I do not count boats.<|im_end|>\n"]);
        // An answer of the prompt is no answer of the pair.
        assert_eq!(said(&all[1].rejected)[1], "Yes<|im_end|>\n");
        assert_eq!(said(&all[2].chosen), ["The tide went", " out before dawn<|im_end|>"]);
        assert!(!all[0].chosen.learned.last().unwrap(), "the line's end after the mark is not learned");
    }
}
