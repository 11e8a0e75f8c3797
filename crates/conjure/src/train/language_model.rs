//! Training of a language model on texts: the likelihood of each token after those before it ("Improving Language
//! Understanding by Generative Pre-Training", Radford et al. 2018, equation 1).
//!
//! Documents are turned into tokens, each followed by the token that ends a text, and put in a row, which is cut into windows
//! of `context` tokens: no window is padded, and a document may begin in the middle of one. The model then sees the end of
//! the document before, as GPT-2 and its successors did; the end token tells it that this does not matter. With `separate` it
//! does not see it.
//!
//! Which documents are held out is decided by a hash of their text.

use super::decoder_lora::LoraSettings;
use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use super::text_model::{Stored, TextModel, Tokens, Words, check_held_out, sha256};
use crate::data::texts::{Document, Documents, Packed, is_held_out};
use crate::digest::combined;
use crate::tokens::{Tokenizer, learned};
use crate::{Error, Result};
use conjure_core::ops;
use conjure_core::rng::Generator as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Held-out windows that a validation looks at.
const VALIDATION: usize = 128;
/// Held-out windows that are looked at at once.
const CHUNK: usize = 8;
/// Bytes of a text that is certainly two tokens.
const LONG: usize = 1 << 16;

/// Where a vocabulary comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vocabulary {
    /// Learned from the texts: bytes, and frequent sequences of them.
    #[default]
    BytePairs,
    /// The characters of the texts.
    Characters,
}

/// The table `[language_model]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folders and files: texts (`.txt`, `.md`, code), and `.jsonl` with a `"text"` on each line.
    pub texts: Vec<PathBuf>,
    /// Tokens of a window.
    pub context: usize,
    /// Whether a window begins at a place drawn anew each time instead of where the one before ends.
    pub shift: bool,
    /// Whether a token sees only tokens of its own document.
    pub separate: bool,
    /// Share of documents that are held out.
    pub held_out: f64,
    /// Text files longer than so many bytes are several documents, cut at ends of lines.
    pub document_bytes: usize,
    /// What is learned from the texts where neither `tokenizer` nor `start` brings a vocabulary.
    pub vocabulary: Vocabulary,
    /// Tokens of a vocabulary of byte pairs.
    pub vocabulary_size: usize,
    /// Folder of a tokenizer to use.
    pub tokenizer: Option<PathBuf>,
    /// A new model, in the words of transformers' `config.json`; the size of the vocabulary and the marks' ids follow.
    pub model: Value,
    /// Folder of a model to go on with instead.
    pub start: Option<PathBuf>,
    /// Train low-rank adapters beside the model of `start` instead of its weights.
    pub lora: Option<LoraSettings>,
    /// Beginnings of texts that are written to look at; an empty one stands for the beginning of any text.
    pub prompts: Vec<String>,
    /// Type of the numbers that are written.
    pub stored: Stored,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            texts: Vec::new(),
            context: 256,
            shift: true,
            separate: false,
            held_out: 0.05,
            document_bytes: 1 << 20,
            vocabulary: Vocabulary::default(),
            vocabulary_size: 4096,
            tokenizer: None,
            model: Value::Null,
            start: None,
            lora: None,
            prompts: vec![String::new()],
            stored: Stored::default(),
        }
    }
}

/// A language model with the texts that it is trained on.
pub struct LanguageModelling {
    settings: Settings,
    model: TextModel,
    train: Packed,
    held_out: Packed,
    warnings: Vec<String>,
    digest: String,
}

impl LanguageModelling {
    /// What the recipe describes, with all texts read and turned into tokens.
    ///
    /// # Errors
    /// Settings, a model or texts that cannot be used; a document of fewer than two tokens.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        check_held_out(settings.held_out)?;
        let documents = Documents::open(&settings.texts, settings.document_bytes)?;
        let model = open(recipe, &settings, &documents)?;
        model.check_context(settings.context)?;
        let (mut train, mut held_out) = (Packed::default(), Packed::default());
        let end = model.words.end()?;
        let mut digests = Vec::new();
        let (mut count, mut short, mut first_short) = (0usize, 0usize, None);
        for document in documents.iter() {
            let document = document?;
            let Some(ids) = encoded(&document, &model.words.tokenizer, end)? else {
                short += 1;
                first_short.get_or_insert(document.place);
                continue;
            };
            digests.push(sha256(document.text.as_bytes()));
            count += 1;
            if digests.len() == 4096 {
                digests = vec![combined(&digests.iter().map(String::as_str).collect::<Vec<_>>())];
            }
            if is_held_out(&document.text, settings.held_out) { held_out.push(&ids)? } else { train.push(&ids)? }
        }
        if train.len() <= settings.context {
            let (tokens, context) = (train.len(), settings.context);
            return Err(Error::request(format!(
                "the texts to train on have {tokens} tokens, a window {context} and one"
            ))
            .with_help("give more texts, or set a smaller context or held_out"));
        }
        let mut warnings = Vec::new();
        if documents.left_out() > 0 {
            warnings.push(format!("{} files that are no texts were left out", documents.left_out()));
        }
        if let Some(place) = first_short {
            warnings.push(match short {
                1 => format!("{place} was left out, as it has fewer than 2 tokens"),
                _ => format!("{short} documents were left out, as they have fewer than 2 tokens; the first is {place}"),
            });
        }
        let (asked, got) = (settings.vocabulary_size, model.words.tokenizer.vocabulary_size());
        let learned = settings.start.is_none() && settings.tokenizer.is_none();
        if learned && matches!(settings.vocabulary, Vocabulary::BytePairs) && got < asked {
            warnings.push(format!("the vocabulary has {got} tokens and not {asked}: no other pair occurs twice"));
        }
        if held_out.len() < 2 && settings.held_out > 0.0 {
            warnings.push(format!(
                "none of the {count} documents is held out: there will be no validation; a smaller document_bytes makes \
                 more documents of long files"
            ));
        }
        digests.extend([model.words.digest(), model.digest.clone()]);
        let digest = combined(&digests.iter().map(String::as_str).collect::<Vec<_>>());
        Ok(Self { settings, model, train, held_out, warnings, digest })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.model.words.tokenizer
    }

    /// Tokens to train on, and tokens held out.
    pub fn tokens(&self) -> (usize, usize) {
        (self.train.len(), self.held_out.len())
    }

    fn windows(&self) -> usize {
        (self.train.len() - 1) / self.settings.context
    }

    /// Windows of which every token is learned.
    fn batch(&self, windows: Vec<Vec<u32>>) -> Result<Tokens> {
        let learned = |ids: Vec<u32>| {
            let learned = vec![true; ids.len()];
            (ids, learned)
        };
        let tokens = Tokens::new(windows.into_iter().map(learned).collect())?;
        Ok(if self.settings.separate { tokens.apart(self.model.words.end()?) } else { tokens })
    }
}

/// The model and its tokenizer.
fn open(recipe: &Recipe, settings: &Settings, documents: &Documents) -> Result<TextModel> {
    let Settings { context, stored, .. } = *settings;
    if let Some(start) = &settings.start {
        if !settings.model.is_null() || settings.tokenizer.is_some() {
            return Err(Error::request("start brings its own model and tokenizer")
                .with_help("leave out model and tokenizer, or leave out start"));
        }
        return TextModel::open(recipe, start, settings.lora.as_ref(), false, stored);
    }
    if settings.lora.is_some() {
        return Err(Error::request("lora is trained beside a finished model").with_help("set start to its folder"));
    }
    let words = match &settings.tokenizer {
        Some(folder) => Words::of_folder(folder)?,
        None => {
            let texts = documents.iter().filter_map(|document| match document {
                Ok(document) if is_held_out(&document.text, settings.held_out) => None,
                other => Some(other.map(|document| document.text)),
            });
            let text = match settings.vocabulary {
                Vocabulary::BytePairs => learned::byte_pairs(texts, settings.vocabulary_size)?,
                Vocabulary::Characters => learned::characters(texts)?,
            };
            Words::learned(text, context)?
        }
    };
    TextModel::new(recipe, words, &settings.model, context, stored)
}

/// The ids of a document and the one that ends it. None where it is too short to learn from, such as an empty file.
fn encoded(document: &Document, tokenizer: &Tokenizer, end: u32) -> Result<Option<Vec<u32>>> {
    // A long text is never so short.
    let own = if document.text.len() > LONG { 2 } else { tokenizer.encode(&document.text, false)?.len() };
    if own < 2 {
        return Ok(None);
    }
    let mut ids = tokenizer.encode(&document.text, true)?;
    if ids.last() != Some(&end) {
        ids.push(end);
    }
    Ok(Some(ids))
}

impl Objective for LanguageModelling {
    fn networks(&self) -> &[Network] {
        &self.model.networks
    }

    fn examples(&self) -> usize {
        self.windows()
    }

    fn data_digest(&self) -> String {
        self.digest.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn describe(&self, index: usize) -> String {
        let ids = self.train.window(index * self.settings.context, 16).unwrap_or_default();
        format!("window {index}: {:?}", self.tokenizer().decode(&ids, false).unwrap_or_default())
    }

    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let context = self.settings.context;
        let most = self.train.len() - context - 1;
        let draws = batch.generator("shift").uniform(batch.indices.len());
        let mut windows = Vec::new();
        for (&index, draw) in batch.indices.iter().zip(draws) {
            let shift = if self.settings.shift { (f64::from(draw) * context as f64) as usize } else { 0 };
            windows.push(self.train.window((index * context + shift).min(most), context + 1)?);
        }
        let tokens = self.batch(windows)?;
        let logits = self.model.logits(&self.model.decoder, &tokens)?; // (tokens, vocab_size)
        Ok(Losses::one(ops::cross_entropy(&logits, &self.model.targets(&tokens)?, 0.0)?))
    }

    /// `loss`: the mean over held-out tokens, in nats; `perplexity`; `bits_per_byte` of the texts, by which models with
    /// different vocabularies can be compared (a mark has no bytes).
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        let context = self.settings.context;
        if self.held_out.len() < 2 {
            return Ok(Vec::new());
        }
        // The last window may be shorter.
        let all = (self.held_out.len() - 1).div_ceil(context);
        let count = all.min(VALIDATION);
        let (mut sum, mut scored, mut bytes) = (0.0, 0usize, 0usize);
        let places: Vec<usize> = (0..count).map(|i| i * all / count).collect();
        for chunk in places.chunks(CHUNK) {
            let windows = chunk.iter().map(|place| self.held_out.window(place * context, context + 1));
            let tokens = self.batch(windows.collect::<Result<_>>()?)?;
            let logits = self.model.logits(&self.model.decoder, &tokens)?.detach();
            let loss = ops::cross_entropy(&logits, &self.model.targets(&tokens)?, 0.0)?.to_scalar::<f32>()?;
            sum += f64::from(loss) * tokens.targets.len() as f64;
            scored += tokens.targets.len();
            bytes += tokens.targets.iter().map(|id| text_bytes(self.tokenizer(), *id)).sum::<usize>();
        }
        let loss = sum / scored as f64;
        let bits = sum / std::f64::consts::LN_2 / bytes.max(1) as f64;
        let figures = [("loss", loss), ("perplexity", loss.exp()), ("bits_per_byte", bits)];
        Ok(figures.map(|(name, value)| (name.to_owned(), value)).to_vec())
    }

    fn sample_texts(&mut self) -> Result<Option<String>> {
        self.model.written(&self.settings.prompts, false)
    }

    /// A folder that transformers and `conjure text` open; or an adapter that PEFT and `conjure text --lora` open.
    fn export(&mut self, folder: &Path) -> Result<()> {
        self.model.export(folder)
    }
}

/// Bytes of text that a token stands for.
fn text_bytes(tokenizer: &Tokenizer, id: u32) -> usize {
    if tokenizer.is_special(id) { 0 } else { tokenizer.token_bytes(id).map_or(0, |bytes| bytes.len()) }
}
