//! What a model's folder says about writing: transformers' `generation_config.json`, or in older folders `config.json`.

use super::SequenceModel;
use crate::generate::text::search::EarlyStopping;
use crate::model_folder::read_text;
use crate::{Error, Result};
use serde_json::Value;
use std::path::Path;

/// Entries that change what transformers writes, and the value at which they do not. They have no effect here, and it is said.
const WITHOUT_EFFECT: [(&str, f64); 7] = [
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("diversity_penalty", 0.0),
    ("min_length", 0.0),
    ("num_beam_groups", 1.0),
];

/// How translations are written where a request does not say otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct Defaults {
    /// Texts that are followed at once.
    pub num_beams: usize,
    /// Texts compete by `log p / length ^ penalty`.
    pub length_penalty: f64,
    /// When a search is over.
    pub early_stopping: EarlyStopping,
    /// Most tokens of a translation.
    pub max_tokens: Option<usize>,
    /// Ids that are never written: `bad_words_ids`, and Marian's padding.
    pub suppressed: Vec<u32>,
    /// What the last possible token has to be.
    pub forced_end: Option<u32>,
    /// Ids that end a translation.
    pub ends: Vec<u32>,
    /// Entries of the folder that have no effect here.
    pub notes: Vec<String>,
}

impl Defaults {
    /// The likeliest token each time, until the model ends the text.
    pub fn new(model: &SequenceModel) -> Self {
        // What a translator that never saw padding as a label says of it means nothing.
        let suppressed = if model.name() == "t5" { Vec::new() } else { vec![model.pad_token_id()] };
        Self {
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            max_tokens: None,
            suppressed,
            forced_end: None,
            ends: vec![model.eos_token_id()],
            notes: Vec::new(),
        }
    }

    /// What the folder says.
    ///
    /// # Errors
    /// A file that cannot be read, an entry of the wrong type or outside its range.
    pub fn read(folder: &Path, model: &SequenceModel) -> Result<Self> {
        let mut path = folder.join("generation_config.json");
        if !path.is_file() {
            path = folder.join("config.json");
        }
        let Some(text) = read_text(&path)? else { return Ok(Self::new(model)) };
        let value: Value =
            serde_json::from_str(&text).map_err(|e| Error::file(&path, format!("not readable as JSON: {e}")))?;
        let mut defaults = Self::new(model);
        defaults.take(&value).map_err(|message| {
            Error::file(&path, message).with_help("correct the entry, or remove it for transformers' default")
        })?;
        let vocabulary = model.target_vocabulary();
        let ids = defaults.suppressed.iter().chain(&defaults.ends).chain(&defaults.forced_end);
        if let Some(id) = ids.into_iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::file(
                &path,
                format!("names the token {id}, beyond the {vocabulary} that the model writes"),
            )
            .with_help("the file belongs to another model"));
        }
        Ok(defaults)
    }

    /// The same with what a task says, such as T5's entries in `task_specific_params`.
    #[must_use]
    pub fn with(&self, task: Option<&Value>) -> Self {
        let mut defaults = self.clone();
        match task.map(|task| defaults.take(task)) {
            // A task that cannot be read was refused when the folder was opened.
            None | Some(Ok(())) => defaults,
            Some(Err(_)) => self.clone(),
        }
    }

    /// Takes the entries that are there.
    ///
    /// # Errors
    /// Names an entry of the wrong type or outside its range.
    pub fn take(&mut self, value: &Value) -> std::result::Result<(), String> {
        let entry = |name: &str| value.get(name).filter(|value| !value.is_null());
        let number = |name: &str| match entry(name) {
            None => Ok(None),
            Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("{name} is {value}, not a whole number")),
        };
        if let Some(beams) = number("num_beams")? {
            if !(1..=64).contains(&beams) {
                return Err(format!("num_beams is {beams}, not 1 to 64"));
            }
            self.num_beams = beams as usize;
        }
        if let Some(value) = entry("length_penalty") {
            let penalty = value.as_f64().filter(|penalty| penalty.is_finite());
            self.length_penalty = penalty.ok_or_else(|| format!("length_penalty is {value}, not a number"))?;
        }
        if let Some(value) = entry("early_stopping") {
            self.early_stopping = match value {
                Value::Bool(false) => EarlyStopping::Heuristic,
                Value::Bool(true) => EarlyStopping::First,
                Value::String(word) if word == "never" => EarlyStopping::Never,
                other => return Err(format!("early_stopping is {other}, not true, false or \"never\"")),
            };
        }
        // max_length counts the token that begins the target.
        let most = number("max_new_tokens")?.or(number("max_length")?.map(|all| all.saturating_sub(1)));
        if let Some(most) = most {
            if !(1..=1 << 20).contains(&most) {
                return Err(format!("a translation may have {most} tokens by max_length or max_new_tokens"));
            }
            self.max_tokens = Some(most as usize);
        }
        self.forced_end =
            number("forced_eos_token_id")?.map(|id| token("forced_eos_token_id", id)).transpose()?.or(self.forced_end);
        if let Some(value) = entry("eos_token_id") {
            let ids = match value {
                Value::Array(ids) => ids.iter().map(Value::as_u64).collect::<Option<Vec<_>>>(),
                one => one.as_u64().map(|id| vec![id]),
            };
            let ids = ids.filter(|ids| !ids.is_empty()).ok_or_else(|| format!("eos_token_id is {value}"))?;
            self.ends =
                ids.into_iter().map(|id| token("eos_token_id", id)).collect::<std::result::Result<_, String>>()?;
        }
        if let Some(value) = entry("bad_words_ids") {
            let words = value.as_array().ok_or_else(|| format!("bad_words_ids is {value}, not a list of lists"))?;
            for word in words {
                let ids = word.as_array().map(Vec::as_slice).unwrap_or_default();
                match ids {
                    [id] => {
                        let id = id.as_u64().ok_or_else(|| format!("bad_words_ids has the entry {word}"))?;
                        let id = token("bad_words_ids", id)?;
                        if !self.suppressed.contains(&id) {
                            self.suppressed.push(id);
                        }
                    }
                    [] => return Err(format!("bad_words_ids has the entry {word}")),
                    _ => self.note(&format!("bad_words_ids {word}: only single tokens are suppressed")),
                }
            }
        }
        for (name, usual) in WITHOUT_EFFECT {
            if let Some(set) = entry(name).and_then(Value::as_f64).filter(|set| *set != usual) {
                self.note(&format!("{name} {set} has no effect here"));
            }
        }
        if entry("do_sample") == Some(&Value::Bool(true)) {
            self.note("do_sample true has no effect here: the likeliest text is written");
        }
        Ok(())
    }

    fn note(&mut self, note: &str) {
        if !self.notes.iter().any(|known| known == note) {
            self.notes.push(note.to_owned());
        }
    }
}

fn token(name: &str, id: u64) -> std::result::Result<u32, String> {
    u32::try_from(id).map_err(|_| format!("{name} holds {id}, which is no token"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plain() -> Defaults {
        Defaults {
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Heuristic,
            max_tokens: None,
            suppressed: vec![9],
            forced_end: None,
            ends: vec![0],
            notes: Vec::new(),
        }
    }

    #[test]
    fn entries_are_those_of_transformers() {
        let mut defaults = plain();
        let file = json!({
            "num_beams": 4, "length_penalty": 0.6, "early_stopping": true, "max_length": 512, "forced_eos_token_id": 0,
            "eos_token_id": [0, 3], "bad_words_ids": [[9], [7]], "no_repeat_ngram_size": 3, "do_sample": false,
        });
        defaults.take(&file).unwrap();
        let expected = Defaults {
            num_beams: 4,
            length_penalty: 0.6,
            early_stopping: EarlyStopping::First,
            max_tokens: Some(511),
            suppressed: vec![9, 7],
            forced_end: Some(0),
            ends: vec![0, 3],
            notes: vec!["no_repeat_ngram_size 3 has no effect here".to_owned()],
        };
        assert_eq!(defaults, expected);
        // A task's entries stand over the file's.
        let task = json!({ "num_beams": 2, "early_stopping": "never", "max_length": 300, "prefix": "x: " });
        let with = defaults.with(Some(&task));
        assert_eq!((with.num_beams, with.max_tokens, with.early_stopping), (2, Some(299), EarlyStopping::Never));
        assert_eq!((with.length_penalty, defaults.with(None)), (0.6, expected));
    }

    #[test]
    fn bad_entries_are_refused_by_name_and_value() {
        let refusal = |value: Value| plain().take(&value).unwrap_err();
        assert_eq!(refusal(json!({ "num_beams": 0 })), "num_beams is 0, not 1 to 64");
        assert_eq!(refusal(json!({ "num_beams": "4" })), "num_beams is \"4\", not a whole number");
        assert_eq!(refusal(json!({ "early_stopping": 3 })), "early_stopping is 3, not true, false or \"never\"");
        assert_eq!(refusal(json!({ "bad_words_ids": [[]] })), "bad_words_ids has the entry []");
        assert_eq!(refusal(json!({ "eos_token_id": [] })), "eos_token_id is []");
        assert!(refusal(json!({ "max_length": 1 })).contains("0 tokens"));
    }
}
