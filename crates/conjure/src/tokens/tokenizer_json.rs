//! Hugging Face's `tokenizer.json`, checked before the `tokenizers` crate gets it.
//!
//! The crate trusts its files: a short token where its `Strip` decoder cuts, a template that names a token which is not
//! declared, a merge longer than the vocabulary's longest token or a damaged character map end in a panic. What it takes for
//! granted is looked up here first, and named where it does not hold.

use super::tokenizer::PieceStyle;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use tokenizers::models::ModelWrapper;

/// Ids above this one are refused: a lying id would be a table of that size.
pub(super) const MAX_ID: u64 = (1 << 24) - 1;
/// Bytes of a token. The longest real ones are runs of 128 spaces.
const MAX_TOKEN_BYTES: usize = 4096;
/// Parts of one pipeline.
const MAX_PARTS: usize = 64;
/// How much longer a text may become by what replaces its characters.
const MAX_GROWTH: usize = 4096;
/// Bytes of a pattern.
const MAX_PATTERN_BYTES: usize = 1 << 16;
/// WordPiece tries every end of a word, so its time grows with the square of this.
const MAX_WORD: u64 = 10_000;

const NORMALIZERS: &[&str] = &[
    "BertNormalizer", "ByteLevel", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Prepend", "Replace",
    "Strip", "StripAccents",
];
const PRE_TOKENIZERS: &[&str] = &[
    "BertPreTokenizer", "ByteLevel", "CharDelimiterSplit", "Digits", "FixedLength", "Metaspace", "Punctuation", "Split",
    "UnicodeScripts", "Whitespace", "WhitespaceSplit",
];
const POST_PROCESSORS: &[&str] = &["BertProcessing", "ByteLevel", "RobertaProcessing", "TemplateProcessing"];
const DECODERS: &[&str] =
    &["BPEDecoder", "ByteFallback", "ByteLevel", "CTC", "Fuse", "Metaspace", "Replace", "Strip", "WordPiece"];

/// A tokenizer and what its file says about it.
pub(super) struct Loaded {
    pub(super) inner: tokenizers::Tokenizer,
    /// The largest id and one.
    pub(super) size: usize,
    pub(super) style: PieceStyle,
}

/// Reads the text of a `tokenizer.json`.
pub(super) fn load(text: &str) -> Result<Loaded, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("not readable as JSON: {e}"))?;
    let facts = check(&value)?;
    drop(value);
    let mut inner = guarded(|| text.parse::<tokenizers::Tokenizer>().map_err(|e| e.to_string()))?;
    // Padding and truncation are the callers' business: nothing is cut silently.
    inner.with_padding(None);
    inner.with_truncation(None).map_err(|e| e.to_string())?;
    if let ModelWrapper::BPE(bpe) = inner.get_model()
        && bpe.dropout.is_some()
    {
        // Dropout belongs to training; the same text has the same ids.
        let mut certain = bpe.clone();
        certain.dropout = None;
        inner.with_model(certain);
    }
    for (content, id) in &facts.added {
        match inner.token_to_id(content) {
            Some(other) if u64::from(other) != *id => {
                return Err(format!("the added token {content:?} is declared as {id}, but its place gives it the id {other}"));
            }
            None => return Err(format!("the added token {content:?} cannot be added")),
            _ => {}
        }
    }
    Ok(Loaded { inner, size: facts.largest as usize + 1, style: facts.style })
}

/// Runs the crate's code; a panic that the checks did not foresee becomes an error.
pub(super) fn guarded<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err("the tokenizers crate failed on this file".into()))
}

struct Facts {
    largest: u64,
    style: PieceStyle,
    added: Vec<(String, u64)>,
}

fn check(root: &Value) -> Result<Facts, String> {
    let model = root.get("model").and_then(Value::as_object).ok_or("it has no model")?;
    let mut ids: HashMap<u64, &str> = HashMap::new();
    let vocabulary = check_model(model, &mut ids)?;
    let known = |token: &str| vocabulary.contains_key(token);

    let mut added = Vec::new();
    let mut seen = HashSet::new();
    for token in list(root, "added_tokens")? {
        let content = token.get("content").and_then(Value::as_str).ok_or("an added token has no content")?;
        let id = token.get("id").and_then(Value::as_u64).ok_or_else(|| format!("the added token {content:?} has no id"))?;
        check_token(content, id)?;
        if !seen.insert(content) {
            return Err(format!("the token {content:?} is added twice"));
        }
        match ids.insert(id, content) {
            Some(other) if other != content => {
                return Err(format!("the tokens {other:?} and {content:?} have the same id {id}"));
            }
            _ => {}
        }
        let strips = ["lstrip", "rstrip"].iter().any(|key| token.get(*key).and_then(Value::as_bool).unwrap_or(false));
        if strips && content.trim().is_empty() {
            return Err(format!("the added token {content:?} takes the white space around it but is white space itself"));
        }
        added.push((content.to_owned(), id));
    }
    let largest = *ids.keys().max().ok_or("its vocabulary is empty")?;

    let mut growth = 1usize;
    for part in parts(root, "normalizer", "normalizers", NORMALIZERS)? {
        match part.get("type").and_then(Value::as_str) {
            Some("Precompiled") => check_charsmap(part)?,
            Some("Replace") => growth = growth.saturating_mul(length(part, "content").max(1)),
            Some("Prepend") => growth = growth.saturating_mul(length(part, "prepend").max(1)),
            _ => {}
        }
        check_pattern(part)?;
    }
    if growth > MAX_GROWTH {
        return Err(format!("its normalizer can make a text {growth} times as long; {MAX_GROWTH} times are allowed"));
    }
    for part in parts(root, "pre_tokenizer", "pretokenizers", PRE_TOKENIZERS)? {
        if part.get("length").and_then(Value::as_u64) == Some(0) {
            return Err("its pre-tokenizer FixedLength has the length 0".into());
        }
        check_pattern(part)?;
    }
    for part in parts(root, "post_processor", "processors", POST_PROCESSORS)? {
        check_post_processor(part, &|token| known(token) || seen.contains(token), largest)?;
    }
    let decoders = parts(root, "decoder", "decoders", DECODERS)?;
    let mut growth = 1usize;
    for part in &decoders {
        if part.get("type").and_then(Value::as_str) == Some("Strip") && part.get("stop").and_then(Value::as_u64) != Some(0) {
            return Err("its decoder Strip cuts the end of tokens, which is not supported".into());
        }
        growth = growth.saturating_mul(length(part, "content").max(1));
        check_pattern(part)?;
    }
    if growth > MAX_GROWTH {
        return Err(format!("its decoder can make a text {growth} times as long; {MAX_GROWTH} times are allowed"));
    }
    Ok(Facts { largest, style: style(&decoders), added })
}

/// How the decoder reads single tokens.
fn style(decoders: &[&Map<String, Value>]) -> PieceStyle {
    let named = |name: &str| decoders.iter().find(|part| part.get("type").and_then(Value::as_str) == Some(name));
    if named("ByteLevel").is_some() {
        PieceStyle::ByteLevel
    } else if let Some(part) = named("WordPiece") {
        PieceStyle::WordPiece(part.get("prefix").and_then(Value::as_str).unwrap_or("##").to_owned())
    } else if named("Metaspace").is_some() || named("ByteFallback").is_some() {
        PieceStyle::Spaced
    } else {
        PieceStyle::Plain
    }
}

fn list<'a>(value: &'a Value, key: &str) -> Result<&'a [Value], String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(format!("its {key} is not a list")),
    }
}

fn length(part: &Map<String, Value>, key: &str) -> usize {
    part.get(key).and_then(Value::as_str).map_or(0, str::len)
}

fn check_token(text: &str, id: u64) -> Result<(), String> {
    if text.len() > MAX_TOKEN_BYTES {
        return Err(format!("the token {id} has {} bytes, more than {MAX_TOKEN_BYTES}", text.len()));
    }
    if id > MAX_ID {
        return Err(format!("the token {text:?} has the id {id}, more than {MAX_ID}"));
    }
    Ok(())
}

/// The model's vocabulary by text; `ids` gets the same by id.
fn check_model<'a>(
    model: &'a Map<String, Value>,
    ids: &mut HashMap<u64, &'a str>,
) -> Result<HashMap<&'a str, u64>, String> {
    let vocab = model.get("vocab").ok_or("its model has no vocab")?;
    let mut vocabulary = HashMap::new();
    let mut add = |text: &'a str, id: u64| -> Result<(), String> {
        check_token(text, id)?;
        if vocabulary.insert(text, id).is_some() {
            return Err(format!("the token {text:?} is listed twice"));
        }
        match ids.insert(id, text) {
            Some(other) => Err(format!("the tokens {other:?} and {text:?} have the same id {id}")),
            None => Ok(()),
        }
    };
    match vocab {
        Value::Object(entries) => {
            for (text, id) in entries {
                add(text, id.as_u64().ok_or_else(|| format!("the token {text:?} has the id {id}"))?)?;
            }
        }
        Value::Array(entries) => {
            for (entry, id) in entries.iter().zip(0..) {
                let text = entry.get(0).and_then(Value::as_str);
                let score = entry.get(1).and_then(Value::as_f64).filter(|score| score.is_finite());
                let (Some(text), Some(_)) = (text, score) else {
                    return Err(format!("entry {id} of its vocab is no pair of a token and a score"));
                };
                add(text, id)?;
            }
        }
        _ => return Err("its model's vocab is neither an object nor a list".into()),
    }
    let unigram = vocab.is_array();
    let kind = match model.get("type").and_then(Value::as_str) {
        Some(kind) => kind,
        None if unigram => "Unigram",
        None if model.contains_key("merges") => "BPE",
        None => "WordPiece",
    };
    match kind {
        "BPE" if !unigram => check_merges(model, &vocabulary)?,
        "WordPiece" | "WordLevel" if !unigram => {
            let longest = model.get("max_input_chars_per_word").and_then(Value::as_u64).unwrap_or(0);
            if longest > MAX_WORD {
                return Err(format!("its words may have {longest} characters, more than {MAX_WORD}"));
            }
        }
        "Unigram" if unigram => {
            let unknown = model.get("unk_id").and_then(Value::as_u64);
            if let Some(unknown) = unknown.filter(|id| *id >= vocabulary.len() as u64) {
                return Err(format!("its unk_id is {unknown}, but it has {} tokens", vocabulary.len()));
            }
        }
        "BPE" | "WordPiece" | "WordLevel" | "Unigram" => return Err(format!("its vocab does not suit a {kind} model")),
        other => {
            return Err(format!("its model type {other:?} is unknown; BPE, WordPiece, WordLevel and Unigram are known"));
        }
    }
    Ok(vocabulary)
}

fn check_merges(model: &Map<String, Value>, vocabulary: &HashMap<&str, u64>) -> Result<(), String> {
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default();
    let Some(merges) = model.get("merges").and_then(Value::as_array) else {
        return Err("its BPE model has no merges".into());
    };
    for (n, merge) in merges.iter().enumerate() {
        let pair = match merge {
            Value::String(line) if line.starts_with("#version") => continue,
            Value::String(line) => line.split_once(' ').filter(|(_, right)| !right.contains(' ')),
            Value::Array(pair) if pair.len() == 2 => pair[0].as_str().zip(pair[1].as_str()),
            _ => None,
        };
        let (left, right) = pair.ok_or_else(|| format!("merge {n} is no pair of tokens"))?;
        let rest = right.strip_prefix(prefix);
        let rest = rest.ok_or_else(|| format!("merge {n} of {right:?} lacks the prefix {prefix:?}"))?;
        for token in [left, right, &format!("{left}{rest}")] {
            if !vocabulary.contains_key(token) {
                return Err(format!("merge {n}, \"{left} {right}\", needs the token {token:?}, which is missing"));
            }
        }
    }
    Ok(())
}

/// The parts of one stage, lists within lists opened.
fn parts<'a>(
    root: &'a Value,
    stage: &str,
    list_key: &str,
    known: &[&str],
) -> Result<Vec<&'a Map<String, Value>>, String> {
    let mut out = Vec::new();
    let mut waiting: Vec<&Value> = root.get(stage).filter(|value| !value.is_null()).into_iter().collect();
    while let Some(part) = waiting.pop() {
        let Some(part) = part.as_object() else { return Err(format!("a part of its {stage} is no object")) };
        let kind = part.get("type").and_then(Value::as_str).ok_or_else(|| format!("a part of its {stage} has no type"))?;
        if kind == "Sequence" {
            let inner = part.get(list_key).and_then(Value::as_array);
            let inner = inner.ok_or_else(|| format!("a Sequence in its {stage} has no {list_key}"))?;
            waiting.extend(inner.iter().rev());
        } else if known.contains(&kind) {
            out.push(part);
        } else {
            return Err(format!("its {stage} has a part of the unknown type {kind:?}; known are {}", known.join(", ")));
        }
        if out.len() + waiting.len() > MAX_PARTS {
            return Err(format!("its {stage} has more than {MAX_PARTS} parts"));
        }
    }
    Ok(out)
}

fn check_pattern(part: &Map<String, Value>) -> Result<(), String> {
    let Some(pattern) = part.get("pattern") else { return Ok(()) };
    let text = pattern.get("Regex").or_else(|| pattern.get("String")).unwrap_or(pattern).as_str().unwrap_or_default();
    if text.is_empty() {
        return Err("a pattern is empty".into());
    }
    if text.len() > MAX_PATTERN_BYTES {
        return Err(format!("a pattern has {} bytes, more than {MAX_PATTERN_BYTES}", text.len()));
    }
    Ok(())
}

fn check_post_processor(
    part: &Map<String, Value>,
    known: &dyn Fn(&str) -> bool,
    largest: u64,
) -> Result<(), String> {
    let in_range = |id: &Value| id.as_u64().is_some_and(|id| id <= largest);
    for key in ["cls", "sep"] {
        if let Some(pair) = part.get(key)
            && !(pair.get(0).and_then(Value::as_str).is_some_and(known) && pair.get(1).is_some_and(in_range))
        {
            return Err(format!("its post-processor's {key} is {pair}, which is no token"));
        }
    }
    if part.get("type").and_then(Value::as_str) != Some("TemplateProcessing") {
        return Ok(());
    }
    let tokens = part.get("special_tokens").and_then(Value::as_object).ok_or("its template has no special_tokens")?;
    for (name, token) in tokens {
        let ids = token.get("ids").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let texts = token.get("tokens").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        if token.get("id").and_then(Value::as_str) != Some(name) || ids.len() != texts.len() || !ids.iter().all(in_range) {
            return Err(format!("its template's token {name:?} is not one of the vocabulary"));
        }
    }
    for (key, sequences) in [("single", &["A"][..]), ("pair", &["A", "B"])] {
        let pieces = part.get(key).and_then(Value::as_array).ok_or_else(|| format!("its template has no {key}"))?;
        if pieces.len() > MAX_PARTS {
            return Err(format!("its template's {key} has {} pieces, more than {MAX_PARTS}", pieces.len()));
        }
        for piece in pieces {
            let sequence = piece.get("Sequence").and_then(|piece| piece.get("id")).and_then(Value::as_str);
            let special = piece.get("SpecialToken").and_then(|piece| piece.get("id")).and_then(Value::as_str);
            let sound = match (sequence, special) {
                (Some(id), None) => sequences.contains(&id),
                (None, Some(id)) => tokens.contains_key(id),
                _ => false,
            };
            if !sound {
                return Err(format!("its template's {key} has the piece {piece}, which is not declared"));
            }
        }
    }
    Ok(())
}

/// The double array that the `spm_precompiled` crate will walk without looking: every step that a text can make stays inside.
fn check_charsmap(part: &Map<String, Value>) -> Result<(), String> {
    let map = part.get("precompiled_charsmap").and_then(Value::as_str).ok_or("its character map is missing")?;
    let map = base64(map).ok_or("its character map is not base64")?;
    let damaged = || "its character map is damaged".to_owned();
    let (size, rest) = map.split_first_chunk::<4>().ok_or_else(damaged)?;
    let (array, texts) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4).ok_or_else(damaged)?;
    let texts = std::str::from_utf8(texts).map_err(|_| damaged())?;
    let units: Vec<u32> = array.as_chunks::<4>().0.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
    let target = |position: usize, unit: u32| position ^ ((unit >> 10) << ((unit & 0x200) >> 6)) as usize;
    let mut seen = vec![false; units.len()];
    let mut waiting = vec![target(0, *units.first().ok_or_else(damaged)?)];
    while let Some(base) = waiting.pop() {
        for byte in 1..=255u32 {
            let position = base ^ byte as usize;
            let unit = *units.get(position).ok_or_else(damaged)?;
            if unit & 0x8000_00ff != byte || std::mem::replace(&mut seen[position], true) {
                continue;
            }
            let base = target(position, unit);
            if unit & 0x100 != 0 {
                let value = (*units.get(base).ok_or_else(damaged)? & 0x7fff_ffff) as usize;
                if !texts.is_char_boundary(value) {
                    return Err(damaged());
                }
            }
            waiting.push(base);
        }
    }
    Ok(())
}

/// Standard base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (groups, []) = text.as_bytes().as_chunks::<4>() else { return None };
    let mut out = Vec::with_capacity(groups.len() * 3);
    for (n, group) in groups.iter().enumerate() {
        let padding = group.iter().rev().take_while(|c| **c == b'=').count();
        if padding > 2 || (padding > 0 && n + 1 != groups.len()) {
            return None;
        }
        let mut bits = 0u32;
        for c in &group[..4 - padding] {
            bits = bits << 6 | u32::from(digit(*c)?);
        }
        bits <<= 6 * padding;
        let bytes = bits.to_be_bytes();
        // Bits that no byte has are zero, or the crate's reader refuses them.
        if bytes[4 - padding..].iter().any(|byte| *byte != 0) {
            return None;
        }
        out.extend(&bytes[1..4 - padding]);
    }
    Some(out)
}
