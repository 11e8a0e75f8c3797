//! Training a translator: the Transformer of "Attention Is All You Need", Vaswani et al. 2017,
//! <https://arxiv.org/abs/1706.03762>, in Marian's layout, or LSTMs with attention (Luong et al. 2015,
//! <https://arxiv.org/abs/1508.04025>) on the same data. One model translates between all languages: the source begins with a
//! token `>>de<<` that says into which (Johnson et al. 2017, <https://arxiv.org/abs/1611.04558>). The loss is the cross-entropy
//! of the target's tokens with smoothed labels (Vaswani et al., section 5.4).

use super::objective::{Batch, Losses, Network, Objective};
use super::recipe::Recipe;
use super::text_model::sha256;
use crate::data::translation::{Pair, Translations};
use crate::data::{Split, spread};
use crate::digest::combined;
use crate::evaluate::translator::of_texts;
use crate::generate::translate::{SequenceModel, TranslateRequest, Translator};
use crate::image_file::write_atomically;
use crate::model_folder::{self, TRANSFORMERS_FILE, half};
use crate::tokens::bpe_dropout::BpeDropout;
use crate::tokens::{Tokenizer, train_translation};
use crate::{Error, Result};
use conjure_core::dropout;
use conjure_core::rng::Generator;
use conjure_core::weights::Params;
use conjure_models::encoder_decoder::{EncoderDecoderConfig, MarianConfig};
use conjure_models::lstm_attention::LstmAttentionConfig;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// Draws for an example whose pair is too long, before it is left out of the batch.
const DRAWS: usize = 4;
/// Held-out pairs that are written down beside what is made of them.
const SAMPLES: usize = 24;
/// Pairs whose loss is computed at once in a validation.
const CHUNK: usize = 64;

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// The Transformer.
    #[default]
    Transformer,
    /// LSTMs with attention.
    Lstm,
}

/// The table `[translation]` of a recipe.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Folder of a translator, as [`Objective::export`] writes it, to begin with: it brings architecture, vocabulary and weights,
    /// in place of the settings `architecture`, `model` and `vocabulary`.
    pub start: Option<PathBuf>,
    /// What is trained.
    pub architecture: Architecture,
    /// Its sizes, by the names of its `config.json`: Marian's, or those of
    /// [`LstmAttentionConfig`]. What is left out is that of a model of 10 million parameters. Vocabulary and marks
    /// come of the data.
    pub model: toml::Table,
    /// Most tokens of the vocabulary, which is learned from the training texts.
    pub vocabulary: usize,
    /// Share of a label's probability that is spread over all tokens.
    pub label_smoothing: f64,
    /// Share of values that are dropped, 0 to below 1 (Vaswani et al., section 5.4).
    pub dropout: f64,
    /// Share of merges that are left out where training texts become tokens, 0 to below 1, so that words are seen in other
    /// pieces each time ([`BpeDropout`]).
    pub bpe_dropout: f64,
    /// Share of pairs whose source is their target, 0 to below 1, so that what the model does not know it learns to leave as it
    /// is (Currey, Miceli Barone, Heafield 2017, <https://aclanthology.org/W17-4715>).
    pub copied: f64,
    /// Most tokens of a source or a target; longer pairs are passed over.
    pub max_tokens: usize,
    /// Held-out pairs by which a validation looks, spread over the directions.
    pub validation: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            start: None,
            architecture: Architecture::Transformer,
            model: toml::Table::new(),
            vocabulary: 12_000,
            label_smoothing: 0.1,
            dropout: 0.1,
            bpe_dropout: 0.0,
            copied: 0.0,
            max_tokens: 64,
            validation: 200,
        }
    }
}

/// A translator with its data.
pub struct Translation {
    settings: Settings,
    data: Translations,
    /// Entries that are trained on.
    train: Vec<usize>,
    /// Pairs of a validation.
    held_out: Vec<Pair>,
    translator: Translator,
    /// The ids of the texts to learn from, with the mark at their end: they are drawn again and again. What is drawn joined from
    /// several has its own.
    encodings: HashMap<String, Vec<u32>>,
    bpe_dropout: BpeDropout,
    /// The text of `tokenizer.json`.
    vocabulary: String,
    config: Value,
    params: Params,
    networks: Vec<Network>,
    digest: String,
    warnings: Vec<String>,
}

impl Translation {
    /// What the recipe describes.
    ///
    /// # Errors
    /// Settings or data that cannot be used.
    pub fn new(recipe: &Recipe) -> Result<Self> {
        let settings: Settings = recipe.own()?;
        if let (Some(_), Some(key)) =
            (&settings.start, ["architecture", "model", "vocabulary"].iter().find(|key| recipe.own.contains_key(**key)))
        {
            return Err(Error::request(format!("translation.start brings its own {key}"))
                .with_help(format!("leave out translation.{key}, or leave out translation.start")));
        }
        let Settings { label_smoothing, dropout, bpe_dropout, copied, .. } = settings;
        let shares = [
            ("label_smoothing", label_smoothing),
            ("dropout", dropout),
            ("bpe_dropout", bpe_dropout),
            ("copied", copied),
        ];
        for (name, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err(Error::request(format!("{name} is {value}, not from 0 to below 1")));
            }
        }
        if !(4..=4096).contains(&settings.max_tokens) {
            return Err(Error::request(format!("max_tokens is {}, not 4 to 4096", settings.max_tokens)));
        }
        let file = recipe.data.file.as_deref().ok_or_else(|| {
            Error::request("the recipe names no data").with_help(
                "set data.file to the file that conjure data translation writes, or to a .tsv or .jsonl of your own",
            )
        })?;
        let data = Translations::open(file)?;
        let is_trained =
            |&entry: &usize| data.entries()[entry].split == Split::Train && data.entries()[entry].texts.len() > 1;
        let train: Vec<usize> = (0..data.entries().len()).filter(is_trained).collect();
        let texts: Vec<&str> = train
            .iter()
            .flat_map(|&entry| data.entries()[entry].texts.values().flatten())
            .map(String::as_str)
            .collect();
        let vocabulary = match &settings.start {
            Some(folder) => vocabulary_of(folder)?,
            None => train_translation::train(&texts, data.languages(), settings.vocabulary)?,
        };
        let tokenizer = Tokenizer::from_json(&vocabulary, "tokenizer.json")?;
        let bpe_dropout = BpeDropout::from_json(&vocabulary)?;
        let mut encodings = HashMap::with_capacity(texts.len());
        for &text in &texts {
            if !encodings.contains_key(text) {
                encodings.insert(text.to_owned(), tokenizer.encode(text, true)?);
            }
        }
        // With the language's token.
        let long = texts.iter().filter(|&&text| encodings[text].len() >= settings.max_tokens).count();
        let mut warnings = Vec::new();
        if long > 0 {
            warnings.push(format!(
                "{long} of {} texts have {} tokens or more and are passed over; translation.max_tokens sets another limit",
                texts.len(),
                settings.max_tokens
            ));
        }
        let device = recipe.device.open()?;
        let (config, params) = match &settings.start {
            Some(folder) => model_folder::open(folder, model_folder::as_json, &device)?,
            None => (planned(&settings, &tokenizer)?, recipe.random_params(&device)),
        };
        let params = params.trainable();
        let model = SequenceModel::from_json(&params, &config.to_string())?;
        if model.max_tokens().is_some_and(|most| most < settings.max_tokens) {
            return Err(Error::request(format!(
                "max_tokens is {}, but max_position_embeddings {}",
                settings.max_tokens,
                model.max_tokens().unwrap_or_default()
            ))
            .with_help("the model must take as many tokens as it is trained on"));
        }
        let networks = vec![Network::new("translator", &params)?];
        let translator = Translator::new(model, tokenizer);
        for language in data.languages() {
            // A model to begin with may not know all languages of the data.
            translator.languages().told(None, Some(language))?;
        }
        let held_out = held_out(&data, &translator, &settings)?;
        let digest = match &settings.start {
            // The words are read again when the run is taken up: they must be the same.
            Some(_) => combined(&[data.digest(), &sha256(vocabulary.as_bytes())]),
            None => combined(&[data.digest()]),
        };
        Ok(Self {
            settings,
            data,
            train,
            held_out,
            translator,
            encodings,
            bpe_dropout,
            vocabulary,
            config,
            params,
            networks,
            digest,
            warnings,
        })
    }

    /// The translator as it is now.
    pub fn translator(&self) -> &Translator {
        &self.translator
    }

    /// What is written for these sources by the likeliest token each time.
    fn written(&self, sources: Vec<Vec<u32>>) -> Result<Vec<String>> {
        let request = TranslateRequest {
            // For the settings only: the sources name their languages.
            to: self.data.languages().first().cloned(),
            beams: Some(1),
            max_tokens: Some(self.settings.max_tokens),
            ..TranslateRequest::default()
        };
        let written = self.translator.translate_ids(&sources, &request, &mut |_| true)?;
        Ok(written.into_iter().map(|written| written.text).collect())
    }

    /// Source and target ids of a pair, if it is not too long.
    fn encoded(&self, pair: &Pair) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
        let ids = |text: &str| match self.encodings.get(text) {
            Some(ids) => Ok(ids.clone()),
            None => self.translator.tokenizer().encode(text, true),
        };
        encoded(&self.translator, pair, self.settings.max_tokens, ids)
    }

    /// The same text in other pieces, if these are not too many.
    fn in_pieces(&self, ids: Vec<u32>, generator: &mut dyn Generator) -> Vec<u32> {
        let Settings { bpe_dropout: rate, max_tokens, .. } = self.settings;
        if rate == 0.0 {
            return ids;
        }
        let pieces = self.bpe_dropout.apply(&ids, rate, generator);
        if pieces.len() <= max_tokens { pieces } else { ids }
    }
}

/// Source and target ids of a pair, if it has no more tokens than `most`; `ids` are those of a text in either language.
fn encoded(
    translator: &Translator,
    pair: &Pair,
    most: usize,
    ids: impl Fn(&str) -> Result<Vec<u32>>,
) -> Result<Option<(Vec<u32>, Vec<u32>)>> {
    let told = translator.languages().told(Some(&pair.from), Some(&pair.to))?;
    let source: Vec<u32> = told.token.into_iter().chain(ids(&pair.source)?).collect();
    let target = ids(&pair.target)?;
    Ok((source.len() <= most && target.len() <= most).then_some((source, target)))
}

/// The text of `tokenizer.json` in a folder to begin with.
fn vocabulary_of(folder: &Path) -> Result<String> {
    let path = folder.join("tokenizer.json");
    model_folder::read_text(&path)?.ok_or_else(|| {
        Error::file(&path, "not found").with_help("translation.start names a folder that conjure train exported")
    })
}

/// The `config.json` of a new model of the settings' sizes for this vocabulary.
fn planned(settings: &Settings, tokenizer: &Tokenizer) -> Result<Value> {
    let id = |token: &str| {
        tokenizer.token_id(token).ok_or_else(|| Error::failure(format!("the vocabulary has no token {token}")))
    };
    let (end, padding) = (id(train_translation::END)?, id(train_translation::PADDING)?);
    let mut config = match settings.architecture {
        Architecture::Transformer => json!({
            "architectures": ["MarianMTModel"],
            "model_type": "marian",
            "d_model": 256,
            "encoder_layers": 4,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 1024,
            "decoder_layers": 4,
            "decoder_attention_heads": 4,
            "decoder_ffn_dim": 1024,
            "activation_function": "relu",
            "max_position_embeddings": 256,
            "scale_embedding": true,
            "share_encoder_decoder_embeddings": true,
            "tie_word_embeddings": true,
            "is_encoder_decoder": true,
            "dropout": 0.0,
        }),
        Architecture::Lstm => json!({ "max_position_embeddings": 256 }),
    };
    let own = [
        ("vocab_size", Value::from(tokenizer.vocabulary_size())),
        ("pad_token_id", padding.into()),
        ("decoder_start_token_id", padding.into()),
        ("eos_token_id", end.into()),
    ];
    let mut set = |key: &str, value: Value| {
        if let Some(entries) = config.as_object_mut() {
            entries.insert(key.to_owned(), value);
        }
    };
    for (key, value) in &settings.model {
        if own.iter().any(|(name, _)| name == key) {
            return Err(Error::request(format!("translation.model.{key} comes of the data's vocabulary"))
                .with_help("leave it out; translation.vocabulary sets the size"));
        }
        let value = serde_json::to_value(value).map_err(|e| Error::request(format!("translation.model.{key}: {e}")))?;
        set(key, value);
    }
    own.into_iter().for_each(|(key, value)| set(key, value));
    let text = config.to_string();
    match settings.architecture {
        Architecture::Transformer => match EncoderDecoderConfig::from_json(&text)? {
            EncoderDecoderConfig::Marian(MarianConfig { share_encoder_decoder_embeddings: true, .. }) => Ok(config),
            _ => Err(Error::request("translation.model is no Marian model with one table of embeddings")
                .with_help("leave out model_type and share_encoder_decoder_embeddings")),
        },
        // With what was left out.
        Architecture::Lstm => serde_json::to_value(&LstmAttentionConfig::from_json(&text)?)
            .map_err(|e| Error::failure(format!("cannot write JSON: {e}"))),
    }
}

/// Held-out pairs from English into each language and back, or between neighbours in the list where there is no English;
/// `settings.validation` of them, evenly.
fn held_out(data: &Translations, translator: &Translator, settings: &Settings) -> Result<Vec<Pair>> {
    let languages = data.languages();
    let mut directions: Vec<(&str, &str)> = Vec::new();
    if languages.iter().any(|language| language == "en") {
        for other in languages.iter().filter(|language| *language != "en") {
            directions.extend([("en", other.as_str()), (other.as_str(), "en")]);
        }
    } else {
        directions.extend(languages.windows(2).flat_map(|two| [(&*two[0], &*two[1]), (&*two[1], &*two[0])]));
    }
    let ids = |text: &str| translator.tokenizer().encode(text, true);
    let mut pairs = Vec::new();
    for (from, to) in directions {
        for pair in data.held_out(from, to) {
            if encoded(translator, &pair, settings.max_tokens, ids)?.is_some() {
                pairs.push(pair);
            }
        }
    }
    Ok(spread(&pairs, settings.validation).cloned().collect())
}

impl Objective for Translation {
    fn networks(&self) -> &[Network] {
        &self.networks
    }

    fn examples(&self) -> usize {
        self.train.len()
    }

    fn data_digest(&self) -> String {
        self.digest.clone()
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn describe(&self, index: usize) -> String {
        let entry = &self.data.entries()[self.train[index]];
        let name = entry.texts.get("en").or_else(|| entry.texts.values().next()).and_then(|texts| texts.first());
        format!("{} ({})", entry.concept, name.map_or("", String::as_str))
    }

    /// Cross-entropy of the targets' tokens. A pair that is too long is drawn again, and passed over after a few times.
    fn losses(&self, batch: &Batch) -> Result<Losses> {
        let (mut generator, mut merges) = (batch.generator("pairs"), batch.generator("merges"));
        let mut pairs = Vec::with_capacity(batch.indices.len());
        for &i in batch.indices {
            for _ in 0..DRAWS {
                if let Some((source, target)) =
                    self.encoded(&self.data.draw(self.train[i], self.settings.copied, &mut generator))?
                {
                    pairs.push((self.in_pieces(source, &mut merges), self.in_pieces(target, &mut merges)));
                    break;
                }
            }
        }
        if pairs.is_empty() {
            return Err(Error::request(format!(
                "no pair of the batch has {} tokens or fewer",
                self.settings.max_tokens
            ))
            .with_help("set translation.max_tokens higher, or take larger batches"));
        }
        let Settings { dropout: rate, label_smoothing, .. } = self.settings;
        let loss = || self.translator.model().loss(&pairs, label_smoothing);
        Ok(Losses::one(dropout::with(rate, batch.generator("dropout"), loss)?))
    }

    /// On held-out pairs: `loss`, the mean of `-log p` of the targets' tokens; `bleu` and `chrf` of what is written by the
    /// likeliest token each time.
    fn validate(&mut self) -> Result<Vec<(String, f64)>> {
        if self.held_out.is_empty() {
            return Ok(Vec::new());
        }
        let mut ids = Vec::with_capacity(self.held_out.len());
        for pair in &self.held_out {
            ids.extend(self.encoded(pair)?);
        }
        let (mut sum, mut count) = (0.0, 0);
        for chunk in ids.chunks(CHUNK) {
            let (chunk_sum, chunk_count) = self.translator.model().log_probability(chunk)?;
            sum += chunk_sum;
            count += chunk_count;
        }
        let written = self.written(ids.into_iter().map(|(source, _)| source).collect())?;
        // What a word is to BLEU depends on the language: each target language for itself, then their mean by numbers of pairs.
        let mut by_target: BTreeMap<&str, (Vec<String>, Vec<Pair>)> = BTreeMap::new();
        for (translation, pair) in written.into_iter().zip(&self.held_out) {
            let (written, pairs) = by_target.entry(&pair.to).or_default();
            written.push(translation);
            pairs.push(pair.clone());
        }
        let (mut bleu, mut chrf) = (0.0, 0.0);
        for (to, (written, pairs)) in &by_target {
            let scores = of_texts(written, pairs, &(String::new(), (*to).to_owned()))?;
            let share = pairs.len() as f64 / self.held_out.len() as f64;
            bleu += share * scores.bleu;
            chrf += share * scores.chrf;
        }
        Ok(vec![("loss".to_owned(), -sum / count.max(1) as f64), ("bleu".to_owned(), bleu), ("chrf".to_owned(), chrf)])
    }

    /// Held-out pairs, each with what is written for it.
    fn sample_texts(&mut self) -> Result<Option<String>> {
        if self.held_out.is_empty() {
            return Ok(None);
        }
        let some: Vec<&Pair> = spread(&self.held_out, SAMPLES).collect();
        let mut sources = Vec::with_capacity(some.len());
        for pair in &some {
            sources.extend(self.encoded(pair)?.map(|(source, _)| source));
        }
        let told = |(pair, written): (&&Pair, String)| {
            format!("{} > {}: {}\n  written: {written}\n  wanted:  {}\n", pair.from, pair.to, pair.source, pair.target)
        };
        Ok(Some(some.iter().zip(self.written(sources)?).map(told).collect()))
    }

    /// A folder that `conjure translate` opens, and transformers too where it is a Transformer: `MarianMTModel` and
    /// `PreTrainedTokenizerFast`.
    fn export(&mut self, folder: &Path) -> Result<()> {
        model_folder::write(folder, TRANSFORMERS_FILE, &self.config, None, &half(&self.params.variables())?)?;
        let model = self.translator.model();
        let (padding, end) = (model.pad_token_id(), model.eos_token_id());
        let longest = model.max_tokens().unwrap_or(self.settings.max_tokens);
        let generation = json!({
            "bad_words_ids": [[padding]],
            "decoder_start_token_id": padding,
            "eos_token_id": end,
            "forced_eos_token_id": end,
            "max_length": longest,
            "num_beams": 4,
            "pad_token_id": padding,
        });
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": train_translation::END,
            "unk_token": train_translation::UNKNOWN,
            "pad_token": train_translation::PADDING,
            "model_max_length": longest,
            "clean_up_tokenization_spaces": false,
        });
        write_atomically(&folder.join("tokenizer.json"), |file| file.write_all(self.vocabulary.as_bytes()))?;
        for (name, value) in [("generation_config.json", generation), ("tokenizer_config.json", settings)] {
            write_atomically(&folder.join(name), |file| writeln!(file, "{value:#}"))?;
        }
        Ok(())
    }
}
