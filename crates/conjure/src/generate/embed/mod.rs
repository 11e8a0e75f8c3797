//! What texts mean, as vectors to compare.
//!
//! A [`SentenceEncoder`] is opened from a folder of sentence-transformers, or from that of a bare encoder. Texts that are
//! alike in meaning have vectors with a high [`cosine`].

mod modules;
mod similar;
#[cfg(test)]
mod tests;

pub use similar::{Match, cosine, most_similar};

use crate::tokens::Tokenizer;
use crate::{Error, Result, model_folder};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Params, TensorSource as _};
use conjure_core::{DType, Device, Tensor};
use conjure_models::encoder::{self, Encoder, EncoderConfig, Pooling, normalised};
use modules::Modules;
use std::path::Path;
use std::sync::Arc;

/// Tokens, padding included, that are encoded at once.
const TOKENS_AT_ONCE: usize = 4096;
/// Texts that are encoded at once.
const TEXTS_AT_ONCE: usize = 64;

/// The encoder in a folder and its tokenizer, of BERT, RoBERTa or XLM-R as transformers saves them.
///
/// # Errors
/// A file that is missing or damaged, an architecture that is not known, weights that do not fit the config.
pub fn open_encoder(folder: &Path) -> Result<(Encoder, Tokenizer)> {
    let config = model_folder::config(folder, EncoderConfig::from_json)?;
    let file = weights::locate(folder)?;
    let source = Arc::new(encoder::renamed(weights::open(&file)?)?);
    let outline = Params::outline();
    Encoder::new(&outline, &config)?;
    let mut asked = outline.asked();
    // The pooler may be left out.
    asked.retain(|asked| !asked.name.starts_with("pooler.") || source.infos().contains_key(&asked.name));
    weights::check(&asked, source.as_ref()).require(&file)?;
    let encoder = Encoder::new(&Params::load(source, DType::F32, &Device::Cpu), &config)?;
    let tokenizer = Tokenizer::from_folder(folder)?;
    if tokenizer.vocabulary_size() > config.vocab_size {
        return Err(Error::file(
            folder,
            format!(
                "the tokenizer has {} tokens, the encoder knows {}",
                tokenizer.vocabulary_size(),
                config.vocab_size
            ),
        )
        .with_help("tokenizer and weights are of different models"));
    }
    Ok((encoder, tokenizer))
}

/// An encoder of whole texts: Reimers & Gurevych 2019, <https://arxiv.org/abs/1908.10084>.
#[derive(Debug)]
pub struct SentenceEncoder {
    encoder: Encoder,
    tokenizer: Tokenizer,
    pooling: Pooling,
    normalise: bool,
    lower_case: bool,
    max_tokens: usize,
}

/// Vectors of texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Embeddings {
    /// One for each text, in order, each of [`SentenceEncoder::dimension`] numbers.
    pub vectors: Vec<Vec<f32>>,
    /// The texts of which only the beginning was read.
    pub cut: Vec<Cut>,
}

/// A text that was longer than the model reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The text's place in the list, from 0.
    pub text: usize,
    /// Its tokens, marks included.
    pub tokens: usize,
    /// How many of these were read.
    pub read: usize,
}

impl SentenceEncoder {
    /// Opens a folder of sentence-transformers: `modules.json` says how token vectors become a text's, and
    /// `sentence_bert_config.json` how many tokens are read. A folder without `modules.json` is a bare encoder: then the mean
    /// over the tokens is taken, and not normalised, as sentence-transformers does.
    ///
    /// # Errors
    /// A file that is missing or damaged, a module or an architecture that is not known, weights that do not fit.
    pub fn open(folder: &Path) -> Result<Self> {
        let modules = Modules::read(folder)?;
        let (encoder, tokenizer) = open_encoder(&modules.transformer)?;
        let most = encoder.config().max_tokens();
        let max_tokens = modules.max_tokens.map_or(most, |wanted| wanted.min(most));
        let marks = tokenizer.encode("", true)?.len();
        if max_tokens <= marks {
            return Err(Error::file(
                folder,
                format!("the model reads {max_tokens} tokens, which the {marks} marks around a text take already"),
            ));
        }
        let Modules { pooling, normalise, lower_case, .. } = modules;
        Ok(Self { encoder, tokenizer, pooling, normalise, lower_case, max_tokens })
    }

    /// Numbers of a vector.
    pub fn dimension(&self) -> usize {
        self.encoder.config().hidden_size
    }

    /// Tokens that are read of a text, marks included.
    pub fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    /// The vectors of these texts. Of a text that is longer than the model reads only the beginning counts;
    /// [`Embeddings::cut`] says so.
    ///
    /// # Errors
    /// A text that the tokenizer cannot spell; vectors that are no numbers; a tensor operation fails.
    pub fn embed<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings> {
        self.embed_while(texts, &mut |_, _| true)
    }

    /// The same; `go_on(done, all)` is asked between batches, in texts.
    ///
    /// # Errors
    /// Those of [`SentenceEncoder::embed`]; [`Error::Cancelled`] where `go_on` says no.
    pub fn embed_while<T: AsRef<str>>(
        &self,
        texts: &[T],
        go_on: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<Embeddings> {
        let mut cut = Vec::new();
        let mut rows = Vec::with_capacity(texts.len());
        for (n, text) in texts.iter().enumerate() {
            let (ids, tokens) = self.encode(text.as_ref())?;
            if ids.len() < tokens {
                cut.push(Cut { text: n, tokens, read: ids.len() });
            }
            rows.push(ids);
            if n % 1024 == 1023 && !go_on(0, texts.len()) {
                return Err(Error::Cancelled);
            }
        }
        // Texts of like length together, the longest first: little padding, and the most memory is taken at once.
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&n| std::cmp::Reverse(rows[n].len()));
        let mut vectors = vec![Vec::new(); rows.len()];
        let mut done = 0;
        while done < order.len() {
            let longest = rows[order[done]].len();
            let count = (TOKENS_AT_ONCE / longest.max(1)).clamp(1, TEXTS_AT_ONCE).min(order.len() - done);
            let batch = &order[done..done + count];
            let embedded = self.embed_batch(&batch.iter().map(|&n| rows[n].as_slice()).collect::<Vec<_>>(), longest)?;
            batch.iter().zip(embedded).for_each(|(&n, vector)| vectors[n] = vector);
            done += count;
            if !go_on(done, texts.len()) {
                return Err(Error::Cancelled);
            }
        }
        Ok(Embeddings { vectors, cut })
    }

    /// The ids of a text that are read, and how many it has.
    fn encode(&self, text: &str) -> Result<(Vec<u32>, usize)> {
        let text = text.trim();
        let text = if self.lower_case { text.to_lowercase() } else { text.to_owned() };
        let ids = self.tokenizer.encode(&text, true)?;
        let tokens = ids.len();
        if tokens <= self.max_tokens {
            return Ok((ids, tokens));
        }
        // The marks stay, and the words between them are cut.
        let words = self.tokenizer.encode(&text, false)?;
        let marks = tokens.saturating_sub(words.len());
        let start = (0..=marks).find(|&start| ids[start..].starts_with(&words)).ok_or_else(|| {
            Error::request(format!("a text of {tokens} tokens cannot be cut to {}", self.max_tokens))
                .with_help("this tokenizer marks texts in a way that is not known; give shorter texts")
        })?;
        let kept = self.max_tokens.saturating_sub(marks);
        Ok(([&ids[..start], &words[..kept], &ids[start + words.len()..]].concat(), tokens))
    }

    /// Vectors of texts of at most `time` tokens.
    fn embed_batch(&self, rows: &[&[u32]], time: usize) -> Result<Vec<Vec<f32>>> {
        let padding = self.encoder.config().padding();
        let filled = |value: &dyn Fn(&u32) -> u32, rest: u32| -> Result<Tensor> {
            let values = rows.iter().flat_map(|row| {
                row.iter().map(value).chain(std::iter::repeat_n(rest, time - row.len())).collect::<Vec<_>>()
            });
            Ok(Tensor::from_vec(values.collect::<Vec<u32>>(), (rows.len(), time), &Device::Cpu)?)
        };
        let ids = filled(&|id| *id, padding)?; // (batch, time)
        let mask = filled(&|_| 1, 0)?; // (batch, time)
        let states = self.encoder.forward(&ids, None, Some(&mask), &mut NoProbe)?.last_hidden_state; // (batch, time, hidden_size)
        let vectors = self.pooling.pool(&states, &mask)?; // (batch, hidden_size)
        let vectors = if self.normalise { normalised(&vectors)? } else { vectors };
        let vectors = vectors.to_vec2::<f32>()?;
        if !vectors.iter().flatten().all(|number| number.is_finite()) {
            return Err(Error::failure("the model's vectors are no numbers")
                .with_help("the weights are damaged, or of a kind that the model was not made for"));
        }
        Ok(vectors)
    }
}
