//! Marian's translators, as transformers keeps them: two SentencePiece models, one for each language, and `vocab.json`, whose
//! ids are the translator's. Junczys-Dowmunt et al. 2018, <https://arxiv.org/abs/1804.00344>.

use super::files::read_json;
use super::sentencepiece::SentencePiece;
use super::sentencepiece::prefixes::Prefixes;
use super::tokenizer::{Engine, Tokenizer};
use super::tokenizer_json::MAX_ID;
use crate::{Error, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

const MAX_VOCABULARY_BYTES: u64 = 64 << 20;
/// Ends every text.
const END: &str = "</s>";
/// Stands for what the vocabulary lacks.
const UNKNOWN: &str = "<unk>";

/// Text of the source language to ids, ids to text of the target language.
#[derive(Clone)]
pub(super) struct Marian {
    source: SentencePiece,
    target: SentencePiece,
    ids: HashMap<String, u32>,
    tokens: BTreeMap<u32, String>,
    /// `</s>`, `<unk>`, `<pad>`.
    marks: Prefixes,
    special: BTreeSet<u32>,
    unknown: u32,
}

impl Marian {
    /// Opens a folder with `source.spm`, `target.spm` and `vocab.json`.
    pub(super) fn open(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("vocab.json");
        if !path.is_file() {
            return Err(Error::file(&path, "it is missing beside source.spm")
                .with_help("the folder looks like an incomplete download; a Marian model has vocab.json, source.spm and target.spm"));
        }
        let (source, target) =
            (SentencePiece::open(folder.join("source.spm"))?, SentencePiece::open(folder.join("target.spm"))?);
        let vocabulary = read_json(&path, MAX_VOCABULARY_BYTES)?;
        let marian = Self::new(source, target, &vocabulary).map_err(|message| {
            Error::file(&path, message).with_help("the file is damaged or belongs to another model; download it again")
        })?;
        let end = marian.ids.get(END).copied();
        Ok(Tokenizer {
            size: marian.tokens.keys().next_back().map_or(0, |id| *id as usize + 1),
            bos: None,
            eos: end.into_iter().collect(),
            special: marian.special.clone(),
            around: Some((Vec::new(), end.into_iter().collect())),
            chat_template: None,
            engine: Engine::Marian(Box::new(marian)),
        })
    }

    fn new(source: SentencePiece, target: SentencePiece, vocabulary: &Value) -> std::result::Result<Self, String> {
        let mut ids = HashMap::new();
        let mut tokens: BTreeMap<u32, String> = BTreeMap::new();
        for (token, id) in vocabulary.as_object().into_iter().flatten() {
            let number =
                id.as_u64().filter(|id| *id <= MAX_ID).ok_or_else(|| format!("the token {token:?} has the id {id}"))?;
            if let Some(other) = tokens.insert(number as u32, token.clone()) {
                return Err(format!("the tokens {other:?} and {token:?} have the same id {id}"));
            }
            ids.insert(token.clone(), number as u32);
        }
        let mark = |token: &str| ids.get(token).copied().ok_or_else(|| format!("the token {token:?} is missing"));
        let (unknown, end) = (mark(UNKNOWN)?, mark(END)?);
        let marks: Vec<(&str, u32)> =
            [(UNKNOWN, Some(unknown)), (END, Some(end)), ("<pad>", ids.get("<pad>").copied())]
                .into_iter()
                .filter_map(|(token, id)| Some((token, id?)))
                .collect();
        let special = marks.iter().map(|(_, id)| *id).collect();
        Ok(Self { source, target, marks: Prefixes::new(marks), special, unknown, ids, tokens })
    }

    pub(super) fn encode(&self, text: &str) -> Vec<u32> {
        self.encode_by(&self.source, text)
    }

    /// As a text of the target language.
    pub(super) fn encode_target(&self, text: &str) -> Vec<u32> {
        self.encode_by(&self.target, text)
    }

    fn encode_by(&self, pieces: &SentencePiece, text: &str) -> Vec<u32> {
        let id = |token: &str| self.ids.get(token).copied().unwrap_or(self.unknown);
        let mut ids = Vec::new();
        for (part, mark) in self.marks.split(text) {
            if let Some(mark) = mark {
                ids.push(mark);
                continue;
            }
            // A language code such as >>fra<<, which says what to translate to, stands first or is text like any other.
            let mut rest = part;
            if part.starts_with(">>")
                && let Some(end) = part.find("<<")
            {
                ids.push(id(&part[..end + 2]));
                rest = &part[end + 2..];
            }
            ids.extend(pieces.encode_as_pieces(rest).iter().map(|piece| id(piece)));
        }
        ids
    }

    pub(super) fn decode(&self, ids: &[u32], shown: impl Fn(u32) -> bool) -> String {
        let mut text = String::new();
        let mut run: Vec<&str> = Vec::new();
        for id in ids {
            let Some(token) = self.token(*id) else { continue };
            if !self.special.contains(id) {
                run.push(token);
            } else if shown(*id) {
                text.push_str(&self.target.decode_pieces(&run));
                run.clear();
                text.push_str(token);
                text.push(' ');
            }
        }
        text.push_str(&self.target.decode_pieces(&run));
        text.replace('\u{2581}', " ").trim().to_owned()
    }

    pub(super) fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(&id).map(String::as_str)
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }
}
