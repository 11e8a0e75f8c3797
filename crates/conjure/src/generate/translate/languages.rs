//! How a model is told the target language: by a first token `>>de<<`, as multilingual Marian models are; by words before the
//! text, as T5 is; or not at all, where it knows one pair of languages.

use super::SequenceModel;
use super::defaults::Defaults;
use crate::model_folder::read_text;
use crate::tokens::Tokenizer;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What T5 calls languages (Raffel et al. 2020, section 2.4, and mT5's first).
const NAMES: [(&str, &str); 40] = [
    ("ar", "Arabic"),
    ("bg", "Bulgarian"),
    ("bn", "Bengali"),
    ("cs", "Czech"),
    ("da", "Danish"),
    ("de", "German"),
    ("el", "Greek"),
    ("en", "English"),
    ("es", "Spanish"),
    ("et", "Estonian"),
    ("fa", "Persian"),
    ("fi", "Finnish"),
    ("fr", "French"),
    ("he", "Hebrew"),
    ("hi", "Hindi"),
    ("hr", "Croatian"),
    ("hu", "Hungarian"),
    ("id", "Indonesian"),
    ("it", "Italian"),
    ("ja", "Japanese"),
    ("ko", "Korean"),
    ("lt", "Lithuanian"),
    ("lv", "Latvian"),
    ("ms", "Malay"),
    ("nb", "Norwegian"),
    ("nl", "Dutch"),
    ("pl", "Polish"),
    ("pt", "Portuguese"),
    ("ro", "Romanian"),
    ("ru", "Russian"),
    ("sk", "Slovak"),
    ("sl", "Slovenian"),
    ("sr", "Serbian"),
    ("sv", "Swedish"),
    ("sw", "Swahili"),
    ("th", "Thai"),
    ("tr", "Turkish"),
    ("uk", "Ukrainian"),
    ("vi", "Vietnamese"),
    ("zh", "Chinese"),
];

/// What the encoder is to read beside the text.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told<'a> {
    /// A token before the text's.
    pub token: Option<u32>,
    /// Words before the text.
    pub prefix: &'a str,
    /// What `config.json` says about writing for this task.
    pub settings: Option<&'a Value>,
}

/// A pair of languages that a model has words for.
#[derive(Clone, Debug, PartialEq)]
struct Task {
    from: String,
    to: String,
    prefix: String,
    settings: Option<Value>,
}

/// Which target languages a model can be told, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Languages {
    tokens: BTreeMap<String, u32>,
    tasks: Vec<Task>,
    /// Source and target that the folder says the model has, where it has one pair.
    only: [Option<String>; 2],
}

impl Languages {
    /// Those that the tokenizer has tokens `>>xx<<` for.
    pub fn of_tokens(tokenizer: &Tokenizer) -> Self {
        let language = |id: u32| {
            let token = tokenizer.token(id)?;
            let name = token.strip_prefix(">>")?.strip_suffix("<<")?;
            (!name.is_empty()).then(|| (name.to_owned(), id))
        };
        let tokens = (0..tokenizer.vocabulary_size() as u32).filter_map(language).collect();
        Self { tokens, tasks: Vec::new(), only: [None, None] }
    }

    /// What vocabulary, `config.json` and `tokenizer_config.json` say.
    ///
    /// # Errors
    /// A task whose entries cannot be read.
    pub fn read(folder: &Path, model: &SequenceModel, tokenizer: &Tokenizer) -> Result<Self> {
        let mut languages = Self::of_tokens(tokenizer);
        let json = |name: &str| -> Result<Value> {
            let text = read_text(&folder.join(name))?;
            Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
        };
        let path = folder.join("config.json");
        let config = json("config.json")?;
        for (name, task) in config.get("task_specific_params").and_then(Value::as_object).into_iter().flatten() {
            let Some((from, to)) = name.strip_prefix("translation_").and_then(|pair| pair.split_once("_to_")) else {
                continue;
            };
            Defaults::new(model)
                .take(task)
                .map_err(|message| Error::file(&path, format!("task_specific_params, {name}: {message}")))?;
            let prefix = task.get("prefix").and_then(Value::as_str).unwrap_or_default().to_owned();
            languages.tasks.push(Task {
                from: from.to_owned(),
                to: to.to_owned(),
                prefix,
                settings: Some(task.clone()),
            });
        }
        if model.name() == "t5" {
            languages.add_named();
        }
        let settings = json("tokenizer_config.json")?;
        languages.only = ["source_lang", "target_lang"].map(|key| Some(settings.get(key)?.as_str()?.to_owned()));
        Ok(languages)
    }

    /// Words for every pair of languages that has a name and no words yet.
    fn add_named(&mut self) {
        for (from, source) in NAMES {
            for (to, target) in NAMES.iter().filter(|(to, _)| *to != from) {
                if self.task(from, to).is_none() {
                    let prefix = format!("translate {source} to {target}: ");
                    self.tasks.push(Task { from: from.to_owned(), to: (*to).to_owned(), prefix, settings: None });
                }
            }
        }
    }

    fn task(&self, from: &str, to: &str) -> Option<&Task> {
        let same = |task: &&Task| task.from.eq_ignore_ascii_case(from) && task.to.eq_ignore_ascii_case(to);
        self.tasks.iter().find(same)
    }

    /// The target languages that can be named, sorted; none where the model knows one pair.
    pub fn targets(&self) -> Vec<&str> {
        let mut names: Vec<&str> = if self.tokens.is_empty() {
            self.tasks.iter().map(|task| task.to.as_str()).collect()
        } else {
            self.tokens.keys().map(String::as_str).collect()
        };
        names.sort_unstable();
        names.dedup();
        names
    }

    /// What to tell the model.
    ///
    /// # Errors
    /// A language that is not known, or none where one is needed; says which are.
    pub fn told(&self, from: Option<&str>, to: Option<&str>) -> Result<Told<'_>> {
        if !self.tokens.is_empty() {
            return self.by_token(to);
        }
        if !self.tasks.is_empty() {
            return self.by_words(from, to);
        }
        for ((said, known), which) in [from, to].into_iter().zip(&self.only).zip(["source", "target"]) {
            if let (Some(said), Some(known)) = (said, known)
                && !same_language(said, known)
            {
                return Err(Error::request(format!("the {which} language is {said}, but this model's is {known}"))
                    .with_help("choose a model for this pair of languages"));
            }
        }
        Ok(Told::default())
    }

    /// Which of the languages that are said the model is neither told nor known to have.
    pub fn unheard<'a>(&self, from: Option<&'a str>, to: Option<&'a str>) -> Option<&'a str> {
        if !self.tasks.is_empty() {
            return None;
        }
        let target = to.filter(|_| self.tokens.is_empty() && self.only[1].is_none());
        // Without tokens another source than the folder's is refused.
        let only = |from: &str| self.only[0].as_ref().is_some_and(|o| self.tokens.is_empty() || same_language(from, o));
        let known = |from: &str| self.tokens.keys().any(|name| name.eq_ignore_ascii_case(from)) || only(from);
        target.or(from.filter(|from| !known(from)))
    }

    fn by_token(&self, to: Option<&str>) -> Result<Told<'_>> {
        let to = match (to, self.tokens.keys().next()) {
            (Some(to), _) => to,
            (None, Some(only)) if self.tokens.len() == 1 => only,
            _ => return Err(self.unnamed()),
        };
        match self.tokens.iter().find(|(name, _)| name.eq_ignore_ascii_case(to)) {
            Some((_, id)) => Ok(Told { token: Some(*id), ..Told::default() }),
            None => Err(self.unknown("target", to)),
        }
    }

    fn by_words(&self, from: Option<&str>, to: Option<&str>) -> Result<Told<'_>> {
        let Some(to) = to else { return if from.is_some() { Err(self.unnamed()) } else { Ok(Told::default()) } };
        if !self.tasks.iter().any(|task| task.to.eq_ignore_ascii_case(to)) {
            return Err(self.unknown("target", to));
        }
        let task = match from {
            Some(from) if !self.tasks.iter().any(|task| task.from.eq_ignore_ascii_case(from)) => {
                return Err(self.unknown("source", from));
            }
            Some(from) => self.task(from, to).ok_or_else(|| {
                let pairs =
                    self.tasks.iter().filter(|task| task.to.eq_ignore_ascii_case(to)).map(|task| task.from.as_str());
                Error::request(format!("the model has no words for a translation from {from} to {to}"))
                    .with_help(format!("to {to} it translates from {}", pairs.collect::<Vec<_>>().join(", ")))
            })?,
            None => {
                // Tasks of the config come first; what was added by name does not decide.
                let mut known =
                    self.tasks.iter().filter(|task| task.to.eq_ignore_ascii_case(to) && task.settings.is_some());
                match (known.next(), known.next()) {
                    (Some(task), None) => task,
                    _ => {
                        return Err(Error::request(format!("to {to}, but from which language?"))
                            .with_help("this model is told both: name the text's language with --from"));
                    }
                }
            }
        };
        Ok(Told { token: None, prefix: &task.prefix, settings: task.settings.as_ref() })
    }

    fn unnamed(&self) -> Error {
        Error::request("no target language is named")
            .with_help(format!("name one with --to; the model knows {}", self.targets().join(", ")))
    }

    fn unknown(&self, which: &str, language: &str) -> Error {
        Error::request(format!("the model does not know the {which} language \"{language}\""))
            .with_help(format!("it knows {}", self.targets().join(", ")))
    }
}

/// Whether a code of two letters and one of three can be of the same language: `de` and `deu` or `ger`, `es` and `spa`. Others
/// are compared whole.
fn same_language(a: &str, b: &str) -> bool {
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    let english = || NAMES.iter().find(|(code, _)| *code == short).map(|(_, name)| name.to_lowercase());
    let like = || long.chars().next() == short.chars().next() || english().is_some_and(|name| name.starts_with(long));
    short == long || (short.len() == 2 && long.len() == 3 && like())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refusal(languages: &Languages, from: Option<&str>, to: Option<&str>) -> (String, String) {
        let error = languages.told(from, to).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        (error.to_string(), error.help().unwrap().to_owned())
    }

    #[test]
    fn tokens_are_told_and_listed() {
        let tokens = [("de".to_owned(), 7), ("fr".to_owned(), 9)].into();
        let languages = Languages { tokens, tasks: Vec::new(), only: [None, None] };
        assert_eq!(languages.told(Some("en"), Some("fr")).unwrap().token, Some(9));
        assert_eq!(languages.told(None, Some("FR")).unwrap().token, Some(9));
        let (message, help) = refusal(&languages, None, Some("xx"));
        assert_eq!(message, "the model does not know the target language \"xx\"");
        assert_eq!(help, "it knows de, fr");
        assert_eq!(refusal(&languages, None, None).1, "name one with --to; the model knows de, fr");
        let one = Languages { tokens: [("de".to_owned(), 7)].into(), ..languages };
        assert_eq!(one.told(None, None).unwrap().token, Some(7));
    }

    #[test]
    fn words_come_from_the_config_first() {
        let settings = json!({ "num_beams": 4, "prefix": "translate English to German: " });
        let task = |to: &str, prefix: &str| Task {
            from: "en".into(),
            to: to.into(),
            prefix: prefix.into(),
            settings: Some(settings.clone()),
        };
        let tasks = vec![task("de", "say in German: ")];
        let mut languages = Languages { tokens: BTreeMap::new(), tasks, only: [None, None] };
        languages.add_named();
        let told = languages.told(None, Some("de")).unwrap();
        assert_eq!((told.prefix, told.settings), ("say in German: ", Some(&settings)));
        assert_eq!(languages.told(Some("EN"), Some("De")).unwrap().prefix, "say in German: ");
        let told = languages.told(Some("fr"), Some("ro")).unwrap();
        assert_eq!((told.prefix, told.settings), ("translate French to Romanian: ", None));
        assert_eq!(languages.told(None, None).unwrap(), Told::default());
        assert_eq!(refusal(&languages, None, Some("fr")).0, "to fr, but from which language?");
        assert!(refusal(&languages, None, Some("tlh")).1.starts_with("it knows ar, bg, "));
        assert!(refusal(&languages, Some("tlh"), Some("de")).0.contains("source language \"tlh\""));
    }

    #[test]
    fn a_pair_that_the_folder_names_is_held_to() {
        let only = [Some("eng".to_owned()), Some("deu".to_owned())];
        let languages = Languages { tokens: BTreeMap::new(), tasks: Vec::new(), only };
        assert_eq!(languages.told(None, None).unwrap(), Told::default());
        assert_eq!(languages.told(Some("en"), Some("de")).unwrap(), Told::default());
        assert_eq!(refusal(&languages, None, Some("fr")).0, "the target language is fr, but this model's is deu");
        assert_eq!(languages.unheard(Some("en"), Some("de")), None);
        let languages = Languages { only: [Some("eng".to_owned()), None], ..languages };
        assert_eq!(languages.unheard(Some("en"), Some("de")), Some("de"));
        assert_eq!(languages.unheard(Some("en"), None), None);
        let tokens = [("de".to_owned(), 7)].into();
        let languages = Languages { tokens, only: [None, None], ..languages };
        assert_eq!(languages.unheard(Some("de"), Some("de")), None);
        assert_eq!(languages.unheard(Some("xx"), Some("de")), Some("xx"));
        let languages = Languages { only: [Some("eng".to_owned()), None], ..languages };
        assert_eq!(languages.unheard(Some("en"), Some("de")), None);
        assert_eq!(languages.unheard(Some("xx"), Some("de")), Some("xx"));
    }
}
