//! The vocabulary inside a GGUF file: the keys `tokenizer.ggml.*` of
//! <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, read as llama.cpp reads them.
//!
//! | `tokenizer.ggml.model` | what it is |
//! |---|---|
//! | `gpt2` | byte-pair encoding by merges; `tokenizer.ggml.pre` names the split into words |
//! | `llama` | SentencePiece BPE by scores, no character map |
//! | `t5` | SentencePiece unigram with its character map |
//!
//! The splits are the patterns of the models' own `tokenizer.json`.

use super::chat_template::ChatTemplate;
use super::gguf_words::WORDS;
use super::sentencepiece::prefixes::Prefixes;
use super::sentencepiece::{Algorithm, Description, NormalizerOptions, Piece, PieceKind, SentencePiece};
use super::tokenizer::{Engine, PieceStyle, Pieces, Tokenizer};
use super::tokenizer_json::MAX_ID;
use crate::{Error, Result};
use conjure_core::weights::gguf::{Metadata, MetadataArray, MetadataValue};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior};

/// The vocabulary's lists, of one length.
struct Lists<'m> {
    tokens: &'m [String],
    kinds: Vec<PieceKind>,
    scores: Vec<f32>,
}

/// [`Tokenizer::from_gguf`].
pub(super) fn open(metadata: &Metadata) -> Result<Tokenizer> {
    let model = metadata.require("tokenizer.ggml.model", Metadata::string)?;
    let lists = Lists::read(metadata)?;
    let flag =
        |key: &str, default: bool| Ok::<_, Error>(metadata.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default));
    let bos = mark(metadata, "bos_token_id", lists.tokens.len())?;
    let eos = mark(metadata, "eos_token_id", lists.tokens.len())?;
    let (engine, begins, ends) = match model {
        "gpt2" => {
            let (engine, begins) = merging(metadata, &lists)?;
            (engine, begins, false)
        }
        "llama" => (pieces(metadata, &lists, Algorithm::Bpe, true)?, true, false),
        "t5" => (pieces(metadata, &lists, Algorithm::Unigram, false)?, false, true),
        other => {
            return Err(Error::file(
                metadata.path(),
                format!("the tokenizer model {other:?} is unknown; gpt2, llama and t5 are known"),
            )
            .with_help("put the model's own tokenizer.json into a folder beside the weights"));
        }
    };
    let before = bos.filter(|_| begins);
    let (before, after) = (
        if flag("add_bos_token", before.is_some())? { wanted(metadata, bos, "bos")? } else { Vec::new() },
        if flag("add_eos_token", ends && eos.is_some())? { wanted(metadata, eos, "eos")? } else { Vec::new() },
    );
    let special: BTreeSet<u32> = (0u32..)
        .zip(&lists.kinds)
        .filter(|(_, kind)| matches!(kind, PieceKind::Control | PieceKind::Unknown))
        .map(|(id, _)| id)
        .collect();
    let mut tokenizer = Tokenizer {
        engine,
        size: lists.tokens.len(),
        bos,
        eos: ends_of_answers(metadata, &lists, eos)?,
        special,
        around: Some((before, after)),
        chat_template: None,
    };
    if let Some(source) = metadata.string("tokenizer.chat_template")? {
        let text = |id: Option<u32>| id.map(|id| lists.tokens[id as usize].as_str());
        let unknown = text(mark(metadata, "unknown_token_id", lists.tokens.len())?);
        let padding = text(mark(metadata, "padding_token_id", lists.tokens.len())?);
        let marks: Vec<(&str, &str)> =
            [("bos_token", text(bos)), ("eos_token", text(eos)), ("unk_token", unknown), ("pad_token", padding)]
                .into_iter()
                .filter_map(|(name, text)| Some((name, text?)))
                .collect();
        let template = ChatTemplate::new(source, &marks).map_err(|error| {
            let help = error.help().unwrap_or_default().to_owned();
            Error::file(metadata.path(), error.to_string()).with_help(help)
        })?;
        tokenizer.chat_template = Some(template);
    }
    Ok(tokenizer)
}

impl<'m> Lists<'m> {
    fn read(metadata: &'m Metadata) -> Result<Self> {
        let tokens = metadata.require("tokenizer.ggml.tokens", Metadata::strings)?;
        let wrong = |message: String| {
            Error::file(metadata.path(), message).with_help("the file is damaged; get another conversion of this model")
        };
        if tokens.is_empty() || tokens.len() as u64 > MAX_ID + 1 {
            return Err(wrong(format!("the vocabulary has {} tokens", tokens.len())));
        }
        if let Some((id, token)) = tokens.iter().enumerate().find(|(_, token)| token.len() > 4096) {
            return Err(wrong(format!("the token {id} has {} bytes, more than 4096", token.len())));
        }
        let kinds = match metadata.i32s("tokenizer.ggml.token_type")? {
            None => vec![PieceKind::Normal; tokens.len()],
            Some(numbers) => {
                if numbers.len() != tokens.len() {
                    return Err(wrong(format!("{} tokens have {} types", tokens.len(), numbers.len())));
                }
                let kind = |(id, number): (usize, &i32)| match u64::try_from(*number).ok() {
                    // Older files leave types undefined.
                    Some(0) => Ok(PieceKind::Normal),
                    number_ => number_
                        .and_then(PieceKind::from_number)
                        .ok_or_else(|| wrong(format!("the token {id} has the unknown type {number}"))),
                };
                numbers.iter().enumerate().map(kind).collect::<Result<_>>()?
            }
        };
        let scores = match metadata.f32s("tokenizer.ggml.scores")? {
            None => vec![0.0; tokens.len()],
            Some(scores) if scores.len() == tokens.len() => scores,
            Some(scores) => return Err(wrong(format!("{} tokens have {} scores", tokens.len(), scores.len()))),
        };
        Ok(Self { tokens, kinds, scores })
    }
}

/// The id of a mark.
fn mark(metadata: &Metadata, key: &str, size: usize) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{key}");
    let id = metadata.u32(&key)?;
    if let Some(id) = id.filter(|id| *id as usize >= size) {
        return Err(Error::file(metadata.path(), format!("{key} is {id}, but the vocabulary has {size} tokens"))
            .with_help("the file is damaged; get another conversion of this model"));
    }
    Ok(id)
}

fn wanted(metadata: &Metadata, id: Option<u32>, name: &str) -> Result<Vec<u32>> {
    id.map(|id| vec![id]).ok_or_else(|| {
        Error::file(metadata.path(), format!("tokenizer.ggml.add_{name}_token is true, but {name}_token_id is missing"))
            .with_help("get another conversion of this model")
    })
}

/// The ids that end an answer: those that the file names, and the tokens that are known to end a turn.
fn ends_of_answers(metadata: &Metadata, lists: &Lists, eos: Option<u32>) -> Result<Vec<u32>> {
    const ENDS: [&str; 9] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<EOT>",
        "<｜end▁of▁sentence｜>",
    ];
    let mut ends: Vec<u32> = eos.into_iter().collect();
    for key in ["eot_token_id", "eom_token_id"] {
        ends.extend(mark(metadata, key, lists.tokens.len())?);
    }
    let known = (0u32..).zip(lists.tokens).zip(&lists.kinds);
    ends.extend(
        known
            .filter(|((_, token), kind)| **kind == PieceKind::Control && ENDS.contains(&token.as_str()))
            .map(|((id, _), _)| id),
    );
    let mut seen = BTreeSet::new();
    ends.retain(|id| seen.insert(*id));
    Ok(ends)
}

/// `gpt2`: the engine, and whether texts begin with the begin mark by default.
fn merging(metadata: &Metadata, lists: &Lists) -> Result<(Engine, bool)> {
    let wrong = |message: String| {
        Error::file(metadata.path(), message).with_help("the file is damaged; get another conversion of this model")
    };
    let name = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
    let Some(words) = WORDS.iter().find(|words| words.names.contains(&name)) else {
        let known: Vec<&str> = WORDS.iter().flat_map(|words| words.names).copied().collect();
        return Err(Error::file(
            metadata.path(),
            format!("the pre-tokenizer {name:?} is unknown; known are {}", known.join(", ")),
        )
        .with_help("put the model's own tokenizer.json into a folder beside the weights"));
    };
    let mut vocabulary: HashMap<&str, u32> = HashMap::with_capacity(lists.tokens.len());
    for (id, token) in (0u32..).zip(lists.tokens) {
        // Rows that fill the vocabulary up may be empty; nothing is encoded to them.
        if !token.is_empty()
            && let Some(other) = vocabulary.insert(token, id)
        {
            return Err(wrong(format!("the tokens {other} and {id} have the same text {token:?}")));
        }
    }
    let lines = metadata.require("tokenizer.ggml.merges", Metadata::strings)?;
    let mut merges = Vec::with_capacity(lines.len());
    for (n, line) in lines.iter().enumerate() {
        // A half may begin with a space in vocabularies that are not written in byte symbols.
        let space = line.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let (left, right) =
            space.map(|at| (&line[..at], &line[at + 1..])).ok_or_else(|| wrong(format!("merge {n} is {line:?}")))?;
        for token in [left, right, &format!("{left}{right}")] {
            if !vocabulary.contains_key(token) {
                return Err(wrong(format!("merge {n}, {line:?}, needs the token {token:?}, which is missing")));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    let broken = |e: tokenizers::Error| wrong(format!("the vocabulary cannot be used: {e}"));
    let model = BPE::builder()
        .vocab_and_merges(vocabulary.iter().map(|(token, id)| ((*token).to_owned(), *id)).collect::<Vocab>(), merges)
        .ignore_merges(words.whole)
        .build()
        .map_err(broken)?;
    let mut inner = tokenizers::Tokenizer::new(model);
    let mut stages: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in words.patterns {
        let split = Split::new(SplitPattern::Regex((*pattern).into()), SplitDelimiterBehavior::Isolated, false);
        stages.push(split.map_err(broken)?.into());
    }
    stages.push(ByteLevel::new(false, false, false).into());
    inner.with_pre_tokenizer(Some(Sequence::new(stages)));
    inner.with_decoder(Some(ByteLevel::default()));
    let found = lists.tokens.iter().zip(&lists.kinds).filter(|(token, _)| !token.is_empty());
    let found = found.filter_map(|(token, kind)| match kind {
        PieceKind::Control | PieceKind::Unknown => Some(AddedToken::from(token.as_str(), true)),
        PieceKind::UserDefined => Some(AddedToken::from(token.as_str(), false).normalized(false)),
        _ => None,
    });
    inner.add_tokens(found.collect::<Vec<_>>()).map_err(broken)?;
    Ok((Engine::Pipeline(Box::new(inner), PieceStyle::ByteLevel), words.begins))
}

/// `llama` and `t5`.
fn pieces(metadata: &Metadata, lists: &Lists, algorithm: Algorithm, prefix: bool) -> Result<Engine> {
    let flag =
        |key: &str, default: bool| Ok::<_, Error>(metadata.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(default));
    let map = "tokenizer.ggml.precompiled_charsmap";
    let charsmap = match metadata.get(map) {
        _ if algorithm == Algorithm::Bpe => Vec::new(),
        Some(MetadataValue::Array(MetadataArray::I8(bytes))) => bytes.iter().map(|byte| byte.cast_unsigned()).collect(),
        _ => metadata.bytes(map)?.unwrap_or_default().to_vec(),
    };
    let mut pieces: Vec<Piece> = Vec::with_capacity(lists.tokens.len());
    for (id, ((text, kind), score)) in lists.tokens.iter().zip(&lists.kinds).zip(&lists.scores).enumerate() {
        // Rows that fill the vocabulary up may be empty.
        let text = if text.is_empty() { format!("[EMPTY_{id}]") } else { text.clone() };
        pieces.push(Piece { text, score: *score, kind: *kind });
    }
    // llama.cpp takes the unknown token by its id; files of some converters have no piece of that type, or several.
    let unknown = mark(metadata, "unknown_token_id", pieces.len())?;
    let typed = pieces.iter().position(|piece| piece.kind == PieceKind::Unknown);
    let unknown = unknown.map(|id| id as usize).or(typed).unwrap_or(0);
    for (id, piece) in pieces.iter_mut().enumerate() {
        if piece.kind == PieceKind::Unknown && id != unknown {
            piece.kind = PieceKind::Control;
        }
    }
    pieces[unknown].kind = PieceKind::Unknown;
    let found = (0u32..)
        .zip(&pieces)
        .filter(|(_, piece)| matches!(piece.kind, PieceKind::Control | PieceKind::UserDefined | PieceKind::Unknown));
    let found = Prefixes::new(found.map(|(id, piece)| (piece.text.as_str(), id)));
    let byte_fallback = pieces.iter().filter(|piece| piece.kind == PieceKind::Byte).count() == 256;
    let model = SentencePiece::build(Description {
        algorithm,
        pieces,
        byte_fallback,
        unknown_surface: " \u{2047} ".into(),
        normalizer: NormalizerOptions {
            charsmap,
            add_dummy_prefix: flag("add_space_prefix", prefix)?,
            remove_extra_whitespaces: flag("remove_extra_whitespaces", false)?,
            escape_whitespaces: true,
            whitespace_as_suffix: false,
        },
        denormalizer: None,
        keep_user_defined: false,
    });
    let model = model.map_err(|message| {
        Error::file(metadata.path(), format!("the vocabulary cannot be used: {message}"))
            .with_help("the file is damaged; get another conversion of this model")
    })?;
    Ok(Engine::Pieces(Box::new(Pieces { model, found, added: BTreeMap::new(), space_after_mark: true })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::sentencepiece::model_file;
    use std::path::Path;

    fn fixture(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/text_tokenizers");
        std::fs::read(folder.join(name)).unwrap()
    }

    /// A GGUF header that says what a SentencePiece model says.
    fn header(model: &str, description: &Description) -> Metadata {
        let mut metadata = Metadata::new("toy.gguf");
        metadata.insert("tokenizer.ggml.model", model);
        let pieces = &description.pieces;
        metadata.insert("tokenizer.ggml.tokens", pieces.iter().map(|piece| piece.text.clone()).collect::<Vec<_>>());
        metadata.insert("tokenizer.ggml.scores", pieces.iter().map(|piece| piece.score).collect::<Vec<_>>());
        metadata
            .insert("tokenizer.ggml.token_type", pieces.iter().map(|piece| piece.kind as i32 + 1).collect::<Vec<_>>());
        let bytes = description.normalizer.charsmap.iter().map(|byte| byte.cast_signed()).collect();
        metadata.insert("tokenizer.ggml.precompiled_charsmap", MetadataValue::Array(MetadataArray::I8(bytes)));
        metadata.insert("tokenizer.ggml.add_space_prefix", description.normalizer.add_dummy_prefix);
        metadata.insert("tokenizer.ggml.remove_extra_whitespaces", description.normalizer.remove_extra_whitespaces);
        metadata.insert("tokenizer.ggml.bos_token_id", 1_u32);
        metadata.insert("tokenizer.ggml.eos_token_id", 2_u32);
        metadata
    }

    #[test]
    fn sentencepiece_vocabularies_give_the_ids_of_the_model_file() {
        let cases: serde_json::Value = serde_json::from_slice(&fixture("cases.json")).unwrap();
        for (file, model, around) in [("bpe.model", "llama", [true, false]), ("unigram.model", "t5", [false, true])] {
            let bytes = fixture(file);
            let description = model_file::parse(&bytes).unwrap();
            let tokenizer = open(&header(model, &description)).unwrap();
            let reference = SentencePiece::from_bytes(&bytes, file).unwrap();
            let own = description.pieces.iter().filter(|piece| piece.kind == PieceKind::UserDefined);
            let own: Vec<&str> = own.map(|piece| piece.text.as_str()).collect();
            let mut compared = 0;
            for line in cases["lines"].as_array().unwrap() {
                let line = line.as_str().unwrap();
                // Marks and the pieces that users defined are taken out of the text before the model sees it.
                if line.contains(['<', '▁'])
                    || own.iter().any(|piece| line.contains(piece))
                    || line.contains("e\u{301}")
                {
                    continue;
                }
                compared += 1;
                let ids = reference.encode(line);
                assert_eq!(tokenizer.encode(line, false).unwrap(), ids, "{model}: {line:?}");
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), reference.decode(&ids), "{model}: {line:?}");
                let mut expected = ids;
                if around[0] {
                    expected.insert(0, 1);
                }
                if around[1] {
                    expected.push(2);
                }
                assert_eq!(tokenizer.encode(line, true).unwrap(), expected, "{model}: {line:?}");
            }
            assert!(compared > 120, "{compared}");
            // A mark inside a text is the mark, and the text after it starts anew.
            let marked = tokenizer.encode("the lamp</s>the lamp", false).unwrap();
            let plain = reference.encode("the lamp");
            assert_eq!(marked, [plain.as_slice(), &[2], plain.as_slice()].concat());
        }
    }

    #[test]
    fn every_known_split_can_be_built_and_loses_nothing() {
        let symbols = ('!'..='~').chain('¡'..='¬').chain('®'..='ÿ').chain((256..324).filter_map(char::from_u32));
        let tokens: Vec<String> = symbols.map(String::from).chain(["he".to_owned()]).collect();
        for words in WORDS {
            for name in words.names {
                let mut metadata = Metadata::new("toy.gguf");
                metadata.insert("tokenizer.ggml.model", "gpt2");
                metadata.insert("tokenizer.ggml.pre", *name);
                metadata.insert("tokenizer.ggml.tokens", tokens.clone());
                metadata.insert("tokenizer.ggml.merges", vec!["h e".to_owned()]);
                let tokenizer = open(&metadata).unwrap_or_else(|e| panic!("{name}: {e:?}"));
                let text = "Hello, the  12345 夜 café! don't\r\n\n x_y ABCdef";
                let ids = tokenizer.encode(text, true).unwrap();
                assert_eq!(tokenizer.decode(&ids, true).unwrap(), text, "{name}");
                assert!(ids.contains(&256), "{name}");
            }
        }
    }

    #[test]
    fn damaged_pieces_are_refused() {
        let description = model_file::parse(&fixture("bpe.model")).unwrap();
        let header = header("llama", &description);
        let mut doubled = header.clone();
        let mut tokens = doubled.strings("tokenizer.ggml.tokens").unwrap().unwrap().to_vec();
        let last = tokens.len() - 1;
        tokens[last] = tokens[last - 1].clone();
        doubled.insert("tokenizer.ggml.tokens", tokens);
        let error = open(&doubled).unwrap_err().to_string();
        assert!(error.contains("toy.gguf: the vocabulary cannot be used: the pieces"), "{error}");
        let mut infinite = header.clone();
        infinite.insert("tokenizer.ggml.scores", vec![f32::INFINITY; last + 1]);
        let error = open(&infinite).unwrap_err().to_string();
        assert!(error.contains("has the score inf"), "{error}");
    }
}
