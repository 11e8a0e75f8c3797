//! A text in another language: an encoder-decoder reads it and writes its translation.
//!
//! ```text
//! lines -> >>de<< and tokens -> batches -> encoder -> [ decoder -> suppressed, forced -> greedy or beams ] ... -> Translation
//! ```
//!
//! | file | question it answers |
//! |---|---|
//! | [`request`] | what can be asked for? |
//! | [`sequence_model`] | what reads and writes: a Transformer, or LSTMs with attention? |
//! | [`languages`] | how is a model told the target language? |
//! | [`defaults`] | what does the model's folder say about writing? |
//! | [`write`] | how are several translations written at once? |

pub mod defaults;
pub mod languages;
pub mod request;
pub mod sequence_model;
pub mod write;

pub use defaults::Defaults;
pub use languages::Languages;
pub use request::{Event, TranslateRequest, Translation};
pub use sequence_model::{SequenceModel, Writing};

use crate::generate::image::find;
use crate::generate::text::Finish;
use crate::generate::text::generation::check_ids;
use crate::tokens::{DecodeStream, Tokenizer};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use write::{Plan, Way, Written};

/// The model that is used when none is named.
pub const DEFAULT_MODEL: &str = "translator";
/// Most tokens of a translation where neither the request nor the model's folder says a number, and the model has no limit.
const MAX_TOKENS: usize = 512;
/// Source tokens, padding included, that are read at once.
const TOKENS_AT_ONCE: usize = 2048;
/// Texts that are followed at once: lines times beams.
const ROWS_AT_ONCE: usize = 64;

/// The folder of the translator that comes with Conjure.
///
/// # Errors
/// It is not there; says how to train one. `CONJURE_MODELS` leads nowhere.
pub fn default_model() -> Result<PathBuf> {
    find(DEFAULT_MODEL)?.ok_or_else(|| {
        Error::request("no model is named, and none called models/translator is found").with_help(
            "name the folder of a Marian or T5 model with --model; or train one: conjure train recipes/translator.toml, and \
             copy its export to models/translator",
        )
    })
}

/// A model that translates, with its tokenizer and what its folder says.
pub struct Translator {
    model: SequenceModel,
    tokenizer: Tokenizer,
    languages: Languages,
    defaults: Defaults,
}

impl Translator {
    /// Opens a folder of a Marian or T5 model as transformers saves it (`config.json`, safetensors, tokenizer), or of our own
    /// LSTMs with attention.
    ///
    /// # Errors
    /// Nothing there, or something else; files that are damaged or do not belong together.
    pub fn open(folder: &Path) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::file(folder, "is not a folder")
                .with_help("name the folder of a Marian or T5 model: config.json, safetensors and a tokenizer"));
        }
        let model = SequenceModel::open(folder)?;
        let tokenizer = Tokenizer::from_folder(folder)?;
        let most = model.source_vocabulary().max(model.target_vocabulary());
        // T5's tables are longer than its vocabulary; the other way round an id would have no row.
        if tokenizer.vocabulary_size() > most {
            return Err(Error::file(
                folder,
                format!("the tokenizer has {} tokens, the model knows {most}", tokenizer.vocabulary_size()),
            )
            .with_help("tokenizer and weights are of different models"));
        }
        let languages = Languages::read(folder, &model, &tokenizer)?;
        let defaults = Defaults::read(folder, &model)?;
        Ok(Self { model, tokenizer, languages, defaults })
    }

    /// Of parts, with the languages that the tokenizer has tokens for, and the likeliest token each time.
    pub fn new(model: SequenceModel, tokenizer: Tokenizer) -> Self {
        let languages = Languages::of_tokens(&tokenizer);
        let defaults = Defaults::new(&model);
        Self { model, tokenizer, languages, defaults }
    }

    /// What reads and writes.
    pub fn model(&self) -> &SequenceModel {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The target languages that it can be told.
    pub fn languages(&self) -> &Languages {
        &self.languages
    }

    /// What the user should know: settings of the folder that have no effect here.
    pub fn notes(&self) -> &[String] {
        &self.defaults.notes
    }

    /// The ids that the encoder reads for a text to be translated as the request says.
    ///
    /// # Errors
    /// A language that is not known, or none where one is needed, with those that are; a text that is longer than the model
    /// reads: nothing is cut off.
    pub fn encode(&self, text: &str, request: &TranslateRequest) -> Result<Vec<u32>> {
        let told = self.languages.told(request.from.as_deref(), request.to.as_deref())?;
        let ids = if told.prefix.is_empty() {
            self.tokenizer.encode(text, true)?
        } else {
            self.tokenizer.encode(&format!("{}{text}", told.prefix), true)?
        };
        self.checked_source(told.token.into_iter().chain(ids).collect())
    }

    /// The ids that the encoder reads for a text that says itself what is to be done, as `>>de<< a cat` does.
    ///
    /// # Errors
    /// A text that is longer than the model reads.
    pub fn encode_source(&self, text: &str) -> Result<Vec<u32>> {
        self.checked_source(self.tokenizer.encode(text, true)?)
    }

    fn checked_source(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        self.check(&ids, "the text", self.model.source_vocabulary())?;
        Ok(ids)
    }

    /// The ids of a translation that is there already, the end among them.
    ///
    /// # Errors
    /// It is longer than the model writes.
    pub fn encode_target(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode_target(text, true)?;
        self.check(&ids, "the translation", self.model.target_vocabulary())?;
        Ok(ids)
    }

    fn check(&self, ids: &[u32], what: &str, vocabulary: usize) -> Result<()> {
        check_ids(ids, vocabulary)?;
        match self.model.max_tokens() {
            Some(most) if ids.len() > most => {
                Err(Error::request(format!("{what} has {} tokens, the model reads {most} at once", ids.len()))
                    .with_help("give it sentence by sentence; conjure translate --file reads one a line"))
            }
            _ => Ok(()),
        }
    }

    /// Translates lines, several at once; an empty line has an empty translation. `on_event` sees every event, and ends the
    /// work by returning `false`: what is written by then is the translation.
    ///
    /// # Errors
    /// What the request or a line has wrong, before work, with the line's number; failures of the model.
    pub fn translate<T: AsRef<str>>(
        &self,
        lines: &[T],
        request: &TranslateRequest,
        on_event: &mut dyn FnMut(&Event<'_>) -> bool,
    ) -> Result<Vec<Translation>> {
        request.validate()?;
        let mut sources = Vec::with_capacity(lines.len());
        for (n, line) in lines.iter().enumerate() {
            let line = line.as_ref();
            let ids = if line.trim().is_empty() { Ok(Vec::new()) } else { self.encode(line, request) };
            sources.push(ids.map_err(|error| if lines.len() > 1 { in_line(n + 1, error) } else { error })?);
        }
        self.translate_ids(&sources, request, on_event)
    }

    /// As [`Translator::translate`], from what the encoder reads, as [`Translator::encode`] makes it; the sources may be for
    /// different target languages.
    ///
    /// # Errors
    /// Ids beyond the vocabulary, sources that are too long; failures of the model.
    pub fn translate_ids(
        &self,
        sources: &[Vec<u32>],
        request: &TranslateRequest,
        on_event: &mut dyn FnMut(&Event<'_>) -> bool,
    ) -> Result<Vec<Translation>> {
        request.validate()?;
        let plan = self.plan(request)?;
        for ids in sources {
            self.check(ids, "the text", self.model.source_vocabulary())?;
        }
        let mut made: Vec<Option<Translation>> = vec![None; sources.len()];
        let mut going = true;
        let mut order: Vec<usize> = Vec::new();
        for (line, ids) in sources.iter().enumerate() {
            if !ids.is_empty() {
                order.push(line);
                continue;
            }
            let empty = Translation::empty();
            going &= on_event(&Event::Line { line, translation: &empty });
            made[line] = Some(empty);
        }
        // Lines of like length fill a batch with little padding.
        order.sort_by_key(|&line| sources[line].len());
        for chunk in chunks(&order, sources, plan.beams.map_or(1, |beams| beams.width)) {
            if !going {
                break;
            }
            let batch: Vec<&[u32]> = chunk.iter().map(|&line| sources[line].as_slice()).collect();
            let mut streams: Vec<DecodeStream<'_>> = chunk.iter().map(|_| self.tokenizer.stream(true)).collect();
            let mut finished: Vec<Option<Translation>> = vec![None; chunk.len()];
            let ways = write::write(&self.model, &batch, &plan, &mut |row, way| {
                let line = chunk[row];
                if going {
                    going = match way {
                        Way::Greedy(_) => match way.last().filter(|id| !plan.ends.contains(id)) {
                            Some(id) => match streams[row].push(id)? {
                                text if text.is_empty() => on_event(&Event::Step { line, tokens: way.tokens() }),
                                text => on_event(&Event::Piece { line, text: &text }),
                            },
                            None => true,
                        },
                        Way::Beams(_) => on_event(&Event::Step { line, tokens: way.tokens() }),
                    };
                }
                if way.is_over() {
                    let translation = self.translation(&sources[line], way.best()?, &plan)?;
                    going &= on_event(&Event::Line { line, translation: &translation });
                    finished[row] = Some(translation);
                }
                Ok(going)
            })?;
            // Of what was stopped, the beginning.
            for ((way, made), &line) in ways.iter().zip(&mut finished).zip(chunk) {
                if made.is_none() && way.tokens() > 0 {
                    *made = Some(self.translation(&sources[line], way.best()?, &plan)?);
                }
            }
            for (&line, translation) in chunk.iter().zip(finished) {
                made[line] = translation;
            }
        }
        let stopped = || Translation { finish: Finish::Cancelled, ..Translation::empty() };
        Ok(made.into_iter().map(|translation| translation.unwrap_or_else(stopped)).collect())
    }

    /// How a request is written down.
    fn plan(&self, request: &TranslateRequest) -> Result<Plan> {
        let told = self.languages.told(request.from.as_deref(), request.to.as_deref())?;
        let defaults = self.defaults.with(told.settings);
        let width = request.beams.unwrap_or(defaults.num_beams);
        let length_penalty = request.length_penalty.unwrap_or(defaults.length_penalty);
        let context = self.model.max_tokens();
        let max_tokens = match (request.max_tokens, context) {
            (Some(asked), Some(context)) if asked > context => {
                return Err(Error::request(format!(
                    "{asked} tokens are asked for, the model writes {context} at most"
                ))
                .with_help(format!("ask for {context} or fewer with --max-tokens")));
            }
            (Some(asked), _) => asked,
            (None, context) => defaults.max_tokens.unwrap_or(MAX_TOKENS).min(context.unwrap_or(usize::MAX)).max(1),
        };
        Ok(Plan {
            start: self.model.decoder_start_token_id(),
            ends: defaults.ends,
            suppressed: defaults.suppressed,
            forced_end: defaults.forced_end,
            max_tokens,
            length_penalty,
            beams: (width > 1).then_some(write::Beams { width, early_stopping: defaults.early_stopping }),
        })
    }

    fn translation(&self, source: &[u32], written: Written, plan: &Plan) -> Result<Translation> {
        let shown: Vec<u32> = written.ids.iter().copied().filter(|id| !plan.ends.contains(id)).collect();
        Ok(Translation {
            source_ids: source.to_vec(),
            text: self.tokenizer.decode(&shown, true)?,
            ids: written.ids,
            score: written.score,
            finish: written.finish,
        })
    }

    /// The sum of `log p(target | source)` over the targets' tokens, the ends among them, and their number: the perplexity is
    /// `exp(-sum / number)`.
    ///
    /// # Errors
    /// A text that is too long or of an unknown language.
    pub fn log_probability<T: AsRef<str>>(&self, pairs: &[(T, T)], request: &TranslateRequest) -> Result<(f64, usize)> {
        let mut ids = Vec::with_capacity(pairs.len());
        for (source, target) in pairs {
            ids.push((self.encode(source.as_ref(), request)?, self.encode_target(target.as_ref())?));
        }
        ids.sort_by_key(|(source, target)| source.len() + target.len());
        let (mut sum, mut count) = (0.0, 0);
        for chunk in ids.chunks(ROWS_AT_ONCE) {
            let (chunk_sum, chunk_count) = self.model.log_probability(chunk)?;
            sum += chunk_sum;
            count += chunk_count;
        }
        Ok((sum, count))
    }
}

/// Lines, sorted by length, in batches.
fn chunks<'a>(order: &'a [usize], sources: &[Vec<u32>], width: usize) -> Vec<&'a [usize]> {
    let mut out = Vec::new();
    let mut rest = order;
    while !rest.is_empty() {
        let fits = |count: usize| {
            let longest = sources[rest[count - 1]].len();
            count * longest <= TOKENS_AT_ONCE && count * width <= ROWS_AT_ONCE
        };
        let count = (2..=rest.len()).take_while(|&count| fits(count)).last().unwrap_or(1);
        let (chunk, others) = rest.split_at(count);
        out.push(chunk);
        rest = others;
    }
    out
}

fn in_line(line: usize, error: Error) -> Error {
    match error {
        Error::Request { message, help } => Error::Request { message: format!("line {line}: {message}"), help },
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_line_once_and_are_bounded() {
        let sources: Vec<Vec<u32>> = (1..200).map(|n| vec![0; n * 9 % 700]).collect();
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|&line| sources[line].len());
        for width in [1, 4, 64] {
            let chunks = chunks(&order, &sources, width);
            assert_eq!(chunks.concat(), order);
            for chunk in chunks {
                let tokens = chunk.len() * sources[chunk[chunk.len() - 1]].len();
                assert!(chunk.len() == 1 || (tokens <= TOKENS_AT_ONCE && chunk.len() * width <= ROWS_AT_ONCE));
            }
        }
    }
}
