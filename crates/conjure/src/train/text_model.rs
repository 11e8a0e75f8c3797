//! What every training of a language model shares: the model with all its parameters or low-rank factors trained, the tokens
//! of a micro-batch, what is written.

use super::decoder_lora::{DecoderLora, LoraSettings};
use super::objective::Network;
use super::recipe::Recipe;
use crate::digest::{combined, model_digest};
use crate::generate::text::language_model::Parts;
use crate::generate::text::{LanguageModel, Prompt, TextRequest};
use crate::image_file::write_atomically;
use crate::model_folder::{self, TRANSFORMERS_FILE};
use crate::tokens::{Message, Tokenizer, learned};
use crate::{Error, Result};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{MemorySource, Params, TensorSource};
use conjure_core::{DType, Device, Tensor};
use conjure_models::decoder::{self, Decoder, DecoderConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Files of a folder that say how texts become tokens, and how answers are made.
const TOKENIZER_FILES: [&str; 13] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Most tokens of a text that is written to look at.
const SAMPLE_TOKENS: usize = 200;

/// Type of the numbers in the files that are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stored {
    /// As they were trained.
    #[default]
    F32,
    /// Rounded to 11 bits: half the size.
    F16,
    /// Rounded to 8 bits: half the size, and the range of f32.
    Bf16,
}

impl Stored {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// A tokenizer with its files, which are written beside the model.
pub(super) struct Words {
    pub tokenizer: Tokenizer,
    files: Vec<(String, Vec<u8>)>,
}

impl Words {
    /// The tokenizer of a folder.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        Self::with_files(Tokenizer::from_folder(folder)?, folder)
    }

    /// A tokenizer and the folder it came from.
    fn with_files(tokenizer: Tokenizer, folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for name in TOKENIZER_FILES {
            let path = folder.join(name);
            if path.is_file() {
                files.push((name.to_owned(), std::fs::read(&path).map_err(|e| Error::io(&path, e))?));
            }
        }
        Ok(Self { tokenizer, files })
    }

    /// One that was learned: the text of its `tokenizer.json`, and how many tokens its model reads at once.
    pub fn learned(text: String, context: usize) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("the folder for temporary files", e))?;
        let files = [("tokenizer.json", text), ("tokenizer_config.json", learned::settings(context))];
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::write(&path, text).map_err(|e| Error::io(&path, e))?;
        }
        Self::of_folder(folder.path())
    }

    /// The id that ends a document or an answer.
    pub fn end(&self) -> Result<u32> {
        self.tokenizer.eos().first().copied().ok_or_else(|| {
            Error::request("the tokenizer names no token that ends a text")
                .with_help("set eos_token in its tokenizer_config.json")
        })
    }

    /// A digest of the files.
    pub fn digest(&self) -> String {
        let parts: Vec<String> = self.files.iter().map(|(name, bytes)| format!("{name} {}", sha256(bytes))).collect();
        combined(&parts.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn write(&self, folder: &Path) -> Result<()> {
        self.files
            .iter()
            .try_for_each(|(name, bytes)| write_atomically(&folder.join(name), |file| file.write_all(bytes)))
    }
}

/// SHA-256 in hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    crate::digest::hex(&sha2::Sha256::digest(bytes))
}

/// A decoder that is trained, with its tokenizer.
pub(super) struct TextModel {
    pub decoder: Decoder,
    /// The model as it was, where it was asked for.
    pub reference: Option<Decoder>,
    pub words: Words,
    pub networks: Vec<Network>,
    params: Params,
    lora: Option<DecoderLora>,
    stored: Stored,
    /// Digest of the model that training began with; empty for random weights.
    pub digest: String,
    device: Device,
}

impl TextModel {
    /// A new model in the words of transformers' `config.json`, with random weights, for the vocabulary of `words` and
    /// windows of `context` tokens.
    pub fn new(recipe: &Recipe, words: Words, config: &Value, context: usize, stored: Stored) -> Result<Self> {
        let device = recipe.device.open()?;
        let config = completed(config, &words, context)?;
        let params = recipe.random_params(&device).trainable();
        let decoder = Decoder::new(&params, &config)?;
        let networks = vec![Network::new("decoder", &params)?];
        Ok(Self {
            decoder,
            reference: None,
            words,
            networks,
            params,
            lora: None,
            stored,
            digest: String::new(),
            device,
        })
    }

    /// The model in `start`, a folder or a GGUF file, trained whole or beside its weights; with `reference` also as it was.
    /// Quantised weights are read as f32, and only trained beside.
    pub fn open(
        recipe: &Recipe,
        start: &Path,
        lora: Option<&LoraSettings>,
        reference: bool,
        stored: Stored,
    ) -> Result<Self> {
        if start.as_os_str().is_empty() {
            return Err(Error::request("the recipe names no model to begin with")
                .with_help("set start to a folder with config.json, safetensors and a tokenizer, or to a .gguf file"));
        }
        let device = recipe.device.open()?;
        let Parts { config, source, tokenizer, .. } = Parts::open(start)?;
        let in_gguf = source.gguf().is_some();
        if in_gguf && lora.is_none() {
            return Err(Error::file(start, "holds GGUF weights, which are not trained themselves").with_help(
                "train an adapter beside them, with the table lora, or begin with a folder of safetensors",
            ));
        }
        let words = match tokenizer {
            Some(tokenizer) if in_gguf => Words { tokenizer, files: Vec::new() },
            Some(tokenizer) => Words::with_files(tokenizer, start)?,
            None => Words::of_folder(start)?,
        };
        if words.tokenizer.vocabulary_size() > config.vocab_size {
            let (tokens, rows) = (words.tokenizer.vocabulary_size(), config.vocab_size);
            let message = format!("its tokenizer has {tokens} tokens, its model {rows}");
            return Err(Error::file(start, message).with_help("the files do not belong together"));
        }
        // What is not trained is read once, however many models use it.
        let source: Arc<dyn TensorSource> = if lora.is_some() || reference {
            let load = |name: &String| Ok((name.clone(), source.load(name, DType::F32, &device)?));
            let asked = decoder::asked(&config)?;
            let tensors = asked.iter().map(|spec| load(&spec.name)).collect::<Result<Vec<_>>>()?;
            Arc::new(MemorySource::new(tensors))
        } else {
            source
        };
        let frozen = Params::load(source, DType::F32, &device);
        let reference = reference.then(|| Decoder::new(&frozen, &config)).transpose()?;
        let (decoder, params, lora) = match lora {
            None => {
                let params = frozen.trainable();
                (Decoder::new(&params, &config)?, params, None)
            }
            Some(settings) => {
                let (decoder, lora) = DecoderLora::beside(frozen, &config, settings, recipe.seed, start, &device)?;
                (decoder, lora.params().clone(), Some(lora))
            }
        };
        let name = if lora.is_some() { "lora" } else { "decoder" };
        let networks = vec![Network::new(name, &params)?];
        let digest = model_digest(start)?;
        Ok(Self { decoder, reference, words, networks, params, lora, stored, digest, device })
    }

    /// Refuses windows that the model cannot read.
    pub fn check_context(&self, context: usize) -> Result<()> {
        let most = self.decoder.config().context();
        if !(2..=most).contains(&context) {
            return Err(Error::request(format!("context is {context}; the model reads 2 to {most} tokens at once")));
        }
        Ok(())
    }

    /// Scores of the tokens that are to be learned.
    pub fn logits(&self, model: &Decoder, batch: &Tokens) -> Result<Tensor> {
        let width = batch.width();
        let rows = batch.rows.len();
        let ids: Vec<u32> = batch.rows.iter().flat_map(|row| padded(&row[..row.len() - 1], width)).collect();
        let ids = Tensor::from_vec(ids, (rows, width), &self.device)?; // (rows, width)
        let x = match &batch.texts {
            None => model.hidden_states(&ids, None, &mut NoProbe)?,
            Some(texts) => {
                let texts: Vec<u32> = texts.iter().flat_map(|row| padded(row, width)).collect();
                model.hidden_states_apart(&ids, &Tensor::from_vec(texts, (rows, width), &self.device)?)?
            }
        }; // (rows, width, hidden_size)
        let hidden = x.dim(2)?;
        let mut x = x.reshape((rows * width, hidden))?;
        if batch.places.len() < rows * width {
            // Nobody asks for the scores of other tokens: the head is the largest product of small models.
            x = x.index_select(&Tensor::new(batch.places.as_slice(), &self.device)?, 0)?;
        }
        Ok(model.logits(&x.unsqueeze(0)?)?.squeeze(0)?) // (places, vocab_size)
    }

    /// The targets as a tensor `(places)`.
    pub fn targets(&self, batch: &Tokens) -> Result<Tensor> {
        Ok(Tensor::new(batch.targets.as_slice(), &self.device)?)
    }

    /// What the model writes after each of `prompts`, or with `chat` answers to it, for people to read. Each has a seed of its
    /// own, the same in every report of a run. A prompt without tokens stands for the beginning of a text.
    pub fn written(&self, prompts: &[String], chat: bool) -> Result<Option<String>> {
        if prompts.is_empty() {
            return Ok(None);
        }
        let (tokenizer, end) = (&self.words.tokenizer, self.words.end()?);
        let model = LanguageModel::new(self.decoder.clone(), Some(tokenizer.clone()));
        let mut all = String::new();
        for (seed, prompt) in prompts.iter().enumerate() {
            let mut ids = match chat {
                true => tokenizer.encode_chat(&[Message::new("user", prompt)])?,
                false => tokenizer.encode(prompt, true)?,
            };
            // Some tokenizers end every text, also one that is to go on.
            while ids.last() == Some(&end) {
                ids.pop();
            }
            if ids.is_empty() {
                ids.push(end);
            }
            let room = model.context().saturating_sub(ids.len());
            let text = if room == 0 {
                "(the prompt fills the context)".to_owned()
            } else {
                let mut request = TextRequest::new(Prompt::Ids(ids));
                (request.seed, request.max_tokens) = (seed as u64, Some(room.min(SAMPLE_TOKENS)));
                model.generate(&request, &mut |_| true)?.text
            };
            all.push_str(&format!("--- {prompt}\n{text}\n\n"));
        }
        Ok(Some(all))
    }

    /// Writes what was trained: the whole model as a folder of transformers, or an adapter in PEFT's layout.
    pub fn export(&self, folder: &Path) -> Result<()> {
        if let Some(lora) = &self.lora {
            return lora.export(folder, self.decoder.config());
        }
        let config = self.decoder.config();
        let text = config.to_json()?;
        let value: Value =
            serde_json::from_str(&text).map_err(|e| Error::failure(format!("the config was not written: {e}")))?;
        let tensors: BTreeMap<String, Tensor> = self
            .params
            .variables()
            .into_iter()
            .map(|(name, variable)| Ok((name, variable.as_detached_tensor().to_dtype(self.stored.dtype())?)))
            .collect::<Result<_>>()?;
        model_folder::write(folder, TRANSFORMERS_FILE, &value, None, &decoder::stored(&tensors, config)?)?;
        self.words.write(folder)
    }
}

/// Token sequences of a micro-batch and which of their tokens are to be learned.
pub(super) struct Tokens {
    rows: Vec<Vec<u32>>,
    /// Places in `(rows, width)`, row by row, whose next token is to be learned.
    places: Vec<u32>,
    /// Those tokens.
    pub targets: Vec<u32>,
    /// The sequence of each of them.
    pub owners: Vec<usize>,
    /// Numbers of the texts that the tokens of each sequence belong to, where these shall not see each other.
    texts: Option<Vec<Vec<u32>>>,
}

impl Tokens {
    /// Sequences of at least two ids; `learned` says of which tokens the loss is taken (never of the first of a sequence,
    /// which nothing comes before).
    pub fn new(sequences: Vec<(Vec<u32>, Vec<bool>)>) -> Result<Self> {
        let width = sequences.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0).saturating_sub(1);
        let mut tokens =
            Self { rows: Vec::new(), places: Vec::new(), targets: Vec::new(), owners: Vec::new(), texts: None };
        for (row, (ids, learned)) in sequences.into_iter().enumerate() {
            if ids.len() < 2 || ids.len() != learned.len() {
                return Err(Error::failure(format!("sequence {row} of a batch has {} tokens", ids.len())));
            }
            for (place, (id, learned)) in ids.iter().zip(&learned).skip(1).enumerate() {
                if *learned {
                    tokens.places.push((row * width + place) as u32);
                    tokens.targets.push(*id);
                    tokens.owners.push(row);
                }
            }
            tokens.rows.push(ids);
        }
        if tokens.targets.is_empty() {
            return Err(Error::failure("no token of the batch is left to learn from"));
        }
        Ok(tokens)
    }

    /// The same, with attention within texts that `end` ends.
    pub fn apart(mut self, end: u32) -> Self {
        let numbers = |row: &Vec<u32>| {
            let mut number = 0;
            let number_of = |id: &u32| {
                let own = number;
                number += u32::from(*id == end);
                own
            };
            row[..row.len() - 1].iter().map(number_of).collect()
        };
        self.texts = Some(self.rows.iter().map(numbers).collect());
        self
    }

    /// Tokens of the longest sequence that are read.
    fn width(&self) -> usize {
        self.rows.iter().map(Vec::len).max().unwrap_or(1) - 1
    }
}

/// What comes after a sequence is seen by no token of it.
fn padded(ids: &[u32], width: usize) -> impl Iterator<Item = u32> + '_ {
    ids.iter().copied().chain(std::iter::repeat(0)).take(width)
}

/// The config of a new model: what the recipe says, with what follows from the vocabulary and the context.
fn completed(config: &Value, words: &Words, context: usize) -> Result<DecoderConfig> {
    let mut map = match config {
        Value::Object(map) if map.contains_key("model_type") => map.clone(),
        _ => {
            return Err(Error::request("the recipe describes no model").with_help(
                "set model = { model_type = \"llama\", hidden_size = ... } in the words of transformers' config.json, \
                 or start to a folder",
            ));
        }
    };
    let (size, end) = (words.tokenizer.vocabulary_size(), words.end()?);
    match map.get("vocab_size").and_then(Value::as_u64) {
        Some(given) if given < size as u64 => {
            return Err(Error::request(format!("model.vocab_size is {given}, but the vocabulary has {size} tokens"))
                .with_help("leave it out"));
        }
        Some(_) => {}
        None => _ = map.insert("vocab_size".to_owned(), size.into()),
    }
    let positions = match map.get("model_type").and_then(Value::as_str) {
        Some("gpt2") => "n_positions",
        Some("mpt") => "max_seq_len",
        _ => "max_position_embeddings",
    };
    map.entry(positions).or_insert_with(|| context.into());
    // transformers' defaults may be beyond the vocabulary.
    map.insert("bos_token_id".to_owned(), words.tokenizer.bos().unwrap_or(end).into());
    map.insert("eos_token_id".to_owned(), end.into());
    map.entry("pad_token_id").or_insert(Value::Null);
    let config = DecoderConfig::from_json(&Value::Object(map).to_string()).map_err(|error| match error {
        Error::Request { message, help } => Error::Request { message: format!("model: {message}"), help },
        other => other,
    })?;
    // Better now than after hours of training.
    config.to_json()?;
    Ok(config)
}

/// Refuses a share out of range.
pub(super) fn check_held_out(share: f64) -> Result<()> {
    if !(0.0..=0.9).contains(&share) {
        return Err(Error::request(format!("held_out is {share}, not 0 to 0.9")));
    }
    Ok(())
}

/// Paths in a recipe that must be there.
pub(super) fn check_paths(paths: &[PathBuf]) -> Result<()> {
    match paths.iter().find(|path| !path.exists()) {
        Some(path) => Err(Error::file(path, "not found").with_help("set texts to files that are there")),
        None if paths.is_empty() => Err(Error::request("no texts are named").with_help("set texts = [\"FILE.jsonl\"]")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_next_tokens_and_the_first_is_none() {
        let tokens = Tokens::new(vec![(vec![5, 6, 7, 8], vec![true; 4]), (vec![1, 2], vec![false, true])]).unwrap();
        assert_eq!(tokens.width(), 3);
        assert_eq!(
            (tokens.targets, tokens.places, tokens.owners),
            (vec![6, 7, 8, 2], vec![0, 1, 2, 3], vec![0, 0, 0, 1])
        );
        let apart = Tokens::new(vec![(vec![5, 9, 9, 6, 7], vec![true; 5])]).unwrap().apart(9);
        assert_eq!(apart.texts, Some(vec![vec![0, 0, 1, 2]]));
        assert!(Tokens::new(vec![(vec![1, 2], vec![true, false])]).is_err());
        assert_eq!(padded(&[4, 5], 4).collect::<Vec<_>>(), [4, 5, 0, 0]);
    }
}
