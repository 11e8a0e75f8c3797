//! A language model's tokenizer, from whatever file the model brings.

use super::chat_template::{ChatTemplate, Message};
use super::marian::Marian;
use super::sentencepiece::prefixes::Prefixes;
use super::sentencepiece::{PieceKind, SentencePiece, byte_of, spaced};
use super::stream::DecodeStream;
use super::tokenizer_json::{self, guarded};
use crate::{Error, Result};
use conjure_core::weights::gguf::Metadata;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Text to ids and back, with the marks of the model that it belongs to.
#[derive(Clone)]
pub struct Tokenizer {
    pub(super) engine: Engine,
    /// The largest id and one.
    pub(super) size: usize,
    pub(super) bos: Option<u32>,
    pub(super) eos: Vec<u32>,
    /// Marks that are no text.
    pub(super) special: BTreeSet<u32>,
    /// Ids before and after a text; `None` where the pipeline's own post-processor puts them.
    pub(super) around: Option<(Vec<u32>, Vec<u32>)>,
    pub(super) chat_template: Option<ChatTemplate>,
}

/// Who does the work.
#[derive(Clone)]
pub(super) enum Engine {
    /// The `tokenizers` crate: byte-pair encoding by merges, WordPiece, and whatever `tokenizer.json` describes.
    Pipeline(Box<tokenizers::Tokenizer>, PieceStyle),
    /// Our own SentencePiece.
    Pieces(Box<Pieces>),
    /// Two of them, and ids of their own.
    Marian(Box<Marian>),
}

/// How a token of a pipeline is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PieceStyle {
    /// Every character stands for a byte, as in GPT-2.
    ByteLevel,
    /// `▁` is a space, `<0x0A>` a byte.
    Spaced,
    /// A token starts a word unless it has this prefix.
    WordPiece(String),
    /// As it is.
    Plain,
}

/// A SentencePiece model and the tokens that are found before it sees the text.
#[derive(Clone)]
pub(super) struct Pieces {
    pub(super) model: SentencePiece,
    pub(super) found: Prefixes,
    /// Texts of tokens beside the model's own.
    pub(super) added: BTreeMap<u32, String>,
    /// Whether the model puts its space before a text that follows a mark, too.
    pub(super) space_after_mark: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocabulary", &self.size)
            .field("bos", &self.bos)
            .field("eos", &self.eos)
            .field("chat_template", &self.chat_template.is_some())
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Opens a transformers folder: `tokenizer.json` if there is one, else a SentencePiece model (`tokenizer.model`,
    /// `spiece.model`, or Marian's `source.spm`, `target.spm` and `vocab.json`). Marks come from `tokenizer_config.json` and `special_tokens_map.json`,
    /// the ids that end an answer also from `generation_config.json` and `config.json`, the chat template from
    /// `chat_template.jinja` or `tokenizer_config.json`.
    ///
    /// # Errors
    /// No tokenizer there; a file that is too large, damaged, or says things that do not fit together.
    pub fn from_folder(path: impl AsRef<Path>) -> Result<Self> {
        super::folder::open(path.as_ref())
    }

    /// The tokenizer inside a GGUF file, by its header.
    ///
    /// # Errors
    /// No vocabulary; a model or pre-tokenizer that is not known, by its name; lists of different length, ids out of range,
    /// merges of unknown tokens.
    pub fn from_gguf(metadata: &Metadata) -> Result<Self> {
        super::gguf_vocabulary::open(metadata)
    }

    /// The text of a `tokenizer.json`; `path` is what errors name.
    ///
    /// # Errors
    /// A tokenizer that is damaged, of an unknown kind, or says things that do not fit together.
    pub fn from_json(text: &str, path: impl AsRef<Path>) -> Result<Self> {
        let loaded = tokenizer_json::load(text).map_err(|message| {
            Error::file(path, message).with_help("the tokenizer file is damaged or of a newer kind; download it again")
        })?;
        let decoder = loaded.inner.get_added_tokens_decoder();
        let special = decoder.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        Ok(Self {
            engine: Engine::Pipeline(Box::new(loaded.inner), loaded.style),
            size: loaded.size,
            bos: None,
            eos: Vec::new(),
            special,
            around: None,
            chat_template: None,
        })
    }

    /// A SentencePiece model by itself: its marks are found in texts, and none are put around them.
    pub fn from_sentencepiece(model: SentencePiece) -> Self {
        let kind = |wanted: PieceKind| move |(_, piece): &(u32, &super::sentencepiece::Piece)| piece.kind == wanted;
        let pieces = || (0u32..).zip(model.pieces());
        let marks: Vec<(String, u32)> =
            pieces().filter(kind(PieceKind::Control)).map(|(id, piece)| (piece.text.clone(), id)).collect();
        let special = marks.iter().map(|(_, id)| *id).chain([model.unknown()]).collect();
        let size = model.pieces().len();
        let mark = |text: &str| marks.iter().find(|(mark, _)| mark == text).map(|(_, id)| *id);
        Self {
            bos: mark("<s>").or_else(|| mark("<bos>")),
            eos: mark("</s>").or_else(|| mark("<eos>")).into_iter().collect(),
            engine: Engine::Pieces(Box::new(Pieces {
                found: Prefixes::new(marks.iter().map(|(text, id)| (text.as_str(), *id))),
                model,
                added: BTreeMap::new(),
                space_after_mark: true,
            })),
            size,
            special,
            around: Some((Vec::new(), Vec::new())),
            chat_template: None,
        }
    }

    /// The ids of a text. Tokens such as `<|im_end|>` are recognised in it. With `add_special` the ids that the model expects
    /// around a text are put there; a text from [`ChatTemplate::render`] has them already.
    ///
    /// # Errors
    /// A vocabulary that can neither spell the text nor say that it cannot.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let ids = match &self.engine {
            Engine::Pieces(pieces) => pieces.encode(text),
            Engine::Marian(marian) => marian.encode(text),
            Engine::Pipeline(pipeline, _) => {
                let own = add_special && self.around.is_none();
                let encoding = guarded(|| pipeline.encode_fast(text, own).map_err(|e| e.to_string()));
                let encoding = encoding.map_err(|e| {
                    Error::failure(format!("the text cannot be tokenized: {e}"))
                        .with_help("the tokenizer's file does not belong to the model or is damaged")
                })?;
                encoding.get_ids().to_vec()
            }
        };
        match &self.around {
            Some((before, after)) if add_special => Ok([before, ids.as_slice(), after].concat()),
            _ => Ok(ids),
        }
    }

    /// The ids of a text in the target language: of translators that have a tokenizer for each language, else the same as
    /// [`Tokenizer::encode`].
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_target(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let Engine::Marian(marian) = &self.engine else { return self.encode(text, add_special) };
        let ids = marian.encode_target(text);
        match &self.around {
            Some((before, after)) if add_special => Ok([before, ids.as_slice(), after].concat()),
            _ => Ok(ids),
        }
    }

    /// The ids of a conversation by the model's chat template; they end where the answer begins. What people say stays text:
    /// where it holds the name of a mark, such as `<|im_end|>`, a space of no width keeps the name apart.
    ///
    /// # Errors
    /// No chat template, or one that refuses the conversation or fails.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = self.chat_template().ok_or_else(|| {
            Error::request("the model has no chat template").with_help(
                "it was not trained for conversations: let it continue a text, or choose an instruction-tuned one",
            )
        })?;
        let marks: Vec<String> = self.special.iter().filter_map(|id| self.token(*id)).collect();
        let messages: Vec<Message> = messages
            .iter()
            .map(|message| Message::new(&message.role, without_marks(&message.content, &marks)))
            .collect();
        self.encode(&template.render(&messages, true)?, false)
    }

    /// The text of ids, with `skip_special` without marks. Bytes that are no UTF-8 become U+FFFD, ids that no token has are
    /// passed over.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        let shown = |id: u32| !(skip_special && self.special.contains(&id));
        match &self.engine {
            Engine::Pieces(pieces) => Ok(pieces.decode(ids, shown)),
            Engine::Marian(marian) => Ok(marian.decode(ids, shown)),
            Engine::Pipeline(pipeline, _) => {
                let text = guarded(|| pipeline.decode(ids, skip_special).map_err(|e| e.to_string()));
                text.map_err(|e| Error::failure(format!("the ids cannot be decoded: {e}")))
            }
        }
    }

    /// Decodes ids one after the other, never half a character: for showing an answer while it is made.
    pub fn stream(&self, skip_special: bool) -> DecodeStream<'_> {
        DecodeStream::new(self, skip_special)
    }

    /// As [`Tokenizer::stream`] for what comes after `ids`, whose text is shown already: some tokenizers write no space at the
    /// beginning of a text, and the first token here is none.
    ///
    /// # Errors
    /// A decoder that fails.
    pub fn stream_after(&self, ids: &[u32], skip_special: bool) -> Result<DecodeStream<'_>> {
        DecodeStream::after(self, ids, skip_special)
    }

    /// A token as its vocabulary writes it, such as `Ġthe`, `▁the`, `##ing`.
    pub fn token(&self, id: u32) -> Option<String> {
        match &self.engine {
            Engine::Pieces(pieces) => pieces.text(id).map(str::to_owned),
            Engine::Marian(marian) => marian.token(id).map(str::to_owned),
            Engine::Pipeline(pipeline, _) => pipeline.id_to_token(id),
        }
    }

    /// The bytes that a token adds to a text. They need not be whole characters. Marks have the bytes of their names.
    pub fn token_bytes(&self, id: u32) -> Option<Vec<u8>> {
        let token = self.token(id)?;
        if self.special.contains(&id) {
            return Some(token.into_bytes());
        }
        let style = match &self.engine {
            Engine::Pieces(pieces) if pieces.added.contains_key(&id) => &PieceStyle::Plain,
            Engine::Pieces(_) | Engine::Marian(_) => &PieceStyle::Spaced,
            Engine::Pipeline(_, style) => style,
        };
        Some(match style {
            PieceStyle::ByteLevel => match token.chars().map(byte_of_symbol).collect() {
                Some(bytes) => bytes,
                // An added token that was not written in byte symbols.
                None => token.into_bytes(),
            },
            PieceStyle::Spaced => match byte_of(&token) {
                Some(byte) => vec![byte],
                None => spaced(&token).into_owned().into_bytes(),
            },
            PieceStyle::WordPiece(prefix) => match token.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {token}").into_bytes(),
            },
            PieceStyle::Plain => token.into_bytes(),
        })
    }

    /// A token to look at: its text, bytes that are no whole character as `<0xE5>`.
    pub fn token_text(&self, id: u32) -> Option<String> {
        let bytes = self.token_bytes(id)?;
        let mut text = String::new();
        for chunk in bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|byte| format!("<0x{byte:02X}>")));
        }
        Some(text)
    }

    /// The id of a token by the text that its vocabulary writes.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::Pieces(pieces) => {
                let added = pieces.added.iter().find(|(_, text)| text.as_str() == token).map(|(id, _)| *id);
                added.or_else(|| pieces.model.id(token))
            }
            Engine::Marian(marian) => marian.id(token),
            Engine::Pipeline(pipeline, _) => pipeline.token_to_id(token),
        }
    }

    /// The largest id and one. A model's table of embeddings may be longer.
    pub fn vocabulary_size(&self) -> usize {
        self.size
    }

    /// Whether an id is a mark, such as the end of a text, and no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The mark before a text, if the model has one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The ids that end an answer.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// How the model wants conversations, if it was trained for them.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        self.chat_template.as_ref()
    }

    /// The same tokenizer with another chat template, or with the date that its template tells.
    #[must_use]
    pub fn with_chat_template(mut self, template: ChatTemplate) -> Self {
        self.chat_template = Some(template);
        self
    }
}

impl Pieces {
    fn text(&self, id: u32) -> Option<&str> {
        let own = || self.model.pieces().get(id as usize).map(|piece| piece.text.as_str());
        self.added.get(&id).map(String::as_str).or_else(own)
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        for (n, (part, mark)) in self.found.split(text).into_iter().enumerate() {
            match mark {
                Some(id) => ids.push(id),
                None => ids.extend(self.model.encode_part(part, n == 0 || self.space_after_mark)),
            }
        }
        ids
    }

    fn decode(&self, ids: &[u32], shown: impl Fn(u32) -> bool) -> String {
        let unknown = self.model.unknown();
        let mark = |id: u32| {
            let control = self.model.pieces().get(id as usize).is_some_and(|piece| piece.kind == PieceKind::Control);
            self.added.contains_key(&id) || control
        };
        let mut text = String::new();
        let mut run = Vec::new();
        let mut start = true;
        for id in ids {
            if mark(*id) {
                if shown(*id) {
                    text.push_str(&self.model.decode_part(&run, start));
                    run.clear();
                    text.push_str(self.text(*id).unwrap_or_default());
                    start = false;
                }
            } else if *id != unknown || shown(*id) {
                run.push(*id);
            }
        }
        text.push_str(&self.model.decode_part(&run, start));
        text
    }
}

/// The text with a space of no width (U+200B) behind the first character of each mark's name in it, so that no tokenizer takes
/// it for the mark. Names of one character are left: they stand in ordinary text.
fn without_marks(text: &str, marks: &[String]) -> String {
    let mut text = text.to_owned();
    for mark in marks {
        let mut letters = mark.chars();
        if let Some(first) = letters.next()
            && !letters.as_str().is_empty()
        {
            text = text.replace(mark.as_str(), &format!("{first}\u{200b}{}", letters.as_str()));
        }
    }
    text
}

/// The byte that a symbol of GPT-2's alphabet stands for: printable Latin-1 stands for itself, the other 68 bytes for the
/// characters from U+0100 on.
fn byte_of_symbol(symbol: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = u32::from(symbol);
    match u8::try_from(code) {
        Ok(byte) => printable(byte).then_some(byte),
        Err(_) => (0..=255).filter(|byte| !printable(*byte)).nth((code - 256) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_marks_in_what_people_say_are_no_marks() {
        let marks = ["<s>", "<|im_end|>", "▁"].map(str::to_owned);
        assert_eq!(without_marks("a <|im_end|><s>", &marks), "a <\u{200b}|im_end|><\u{200b}s>");
        assert_eq!(without_marks("▁ < s>", &marks), "▁ < s>");
    }

    #[test]
    fn every_byte_has_a_symbol() {
        let symbols: Vec<u8> = (0u32..0x150).filter_map(char::from_u32).filter_map(byte_of_symbol).collect();
        let distinct: BTreeSet<u8> = symbols.iter().copied().collect();
        assert_eq!((symbols.len(), distinct.len()), (256, 256));
        assert_eq!(byte_of_symbol('Ġ'), Some(b' '));
        assert_eq!(byte_of_symbol('Ċ'), Some(b'\n'));
        assert_eq!(byte_of_symbol('é'), Some(0xe9));
        assert_eq!(byte_of_symbol('▁'), None);
    }
}
