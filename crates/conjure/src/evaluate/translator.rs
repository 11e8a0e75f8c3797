//! How well a model translates: BLEU, chrF and perplexity on names that it has not seen, or on those that it has.

use super::dictionary::Dictionary;
use super::translation::{Tokenizer, bleu, chrf};
use crate::data::spread;
use crate::data::translation::{Pair, Translations};
use crate::generate::translate::{TranslateRequest, Translator};
use crate::{Error, Result};
use serde::Serialize;

/// A direction of translation: source and target language.
pub type Direction = (String, String);

/// What came of one direction.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Scores {
    /// Source language.
    pub from: String,
    /// Target language.
    pub to: String,
    /// Pairs that were translated.
    pub pairs: usize,
    /// Corpus BLEU, 0 to 100.
    pub bleu: f64,
    /// Corpus chrF, 0 to 100.
    pub chrf: f64,
    /// `exp` of the mean of `-log p` over the references' tokens, their ends among them. It depends on the vocabulary: only models
    /// with the same one can be compared by it. Nothing of what is no model.
    pub perplexity: Option<f64>,
}

/// Reads `en-de`, `zh-hant-en` or `en:de` as pairs of languages that the data have.
///
/// # Errors
/// A pair that is none; says which languages there are.
pub fn directions(pairs: &[String], data: &Translations) -> Result<Vec<Direction>> {
    let known = |language: &str| data.languages().iter().any(|known| known == language);
    let read = |pair: &String| {
        // A language's code may have a hyphen itself.
        let mut cuts = pair.match_indices(['-', ':']).map(|(at, _)| (&pair[..at], &pair[at + 1..]));
        if cuts.clone().any(|(from, to)| from == to) {
            return Err(Error::request(format!("\"{pair}\": a language is not translated into itself"))
                .with_help("name two languages, such as en-de"));
        }
        let found = cuts.find(|(from, to)| known(from) && known(to));
        found.map(|(from, to)| (from.to_owned(), to.to_owned())).ok_or_else(|| {
            Error::request(format!("\"{pair}\" is no pair of two of the data's languages"))
                .with_help(format!("write FROM-TO with two of {}", data.languages().join(", ")))
        })
    };
    pairs.iter().map(read).collect()
}

/// The held-out pairs of a direction, or those that are trained on, at most `limit` of them, evenly.
///
/// # Errors
/// There are none.
pub fn pairs(data: &Translations, (from, to): &Direction, trained: bool, limit: Option<usize>) -> Result<Vec<Pair>> {
    let all = if trained { data.trained_on(from, to) } else { data.held_out(from, to) };
    if all.is_empty() {
        return Err(Error::request(format!("the data hold no pair out of {from} and {to}"))
            .with_help("held out is a part of the data that is fixed by their concepts; give more data"));
    }
    Ok(spread(&all, limit.unwrap_or(all.len()).max(1)).cloned().collect())
}

/// Measures a model in one direction. `on_line` is told how many lines are translated, and ends the work by returning `false`.
///
/// # Errors
/// A language that the model does not know, a text that is too long for it; [`Error::Cancelled`].
pub fn of_model(
    translator: &Translator,
    pairs: &[Pair],
    direction: &Direction,
    beams: Option<usize>,
    on_line: &mut dyn FnMut(usize) -> bool,
) -> Result<Scores> {
    let (from, to) = direction;
    let request =
        TranslateRequest { from: Some(from.clone()), to: Some(to.clone()), beams, ..TranslateRequest::default() };
    let sources: Vec<&str> = pairs.iter().map(|pair| pair.source.as_str()).collect();
    let (mut done, mut cancelled) = (0, false);
    let made = translator.translate(&sources, &request, &mut |event| {
        if let crate::generate::translate::Event::Line { .. } = event {
            done += 1;
        }
        cancelled |= !on_line(done);
        !cancelled
    })?;
    if cancelled {
        return Err(Error::Cancelled);
    }
    let written: Vec<String> = made.into_iter().map(|made| made.text).collect();
    let both: Vec<(&str, &str)> = pairs.iter().map(|pair| (pair.source.as_str(), pair.target.as_str())).collect();
    let (sum, count) = translator.log_probability(&both, &request)?;
    Ok(Scores { perplexity: Some((-sum / count.max(1) as f64).exp()), ..of_texts(&written, pairs, direction)? })
}

/// Measures translations that were made by whatever, one for each pair. What a word is to BLEU depends on the target language.
///
/// # Errors
/// Not as many translations as pairs, or none.
pub fn of_texts(written: &[String], pairs: &[Pair], (from, to): &Direction) -> Result<Scores> {
    let references: Vec<String> = pairs.iter().map(|pair| pair.target.clone()).collect();
    let references = [references];
    Ok(Scores {
        from: from.clone(),
        to: to.clone(),
        pairs: pairs.len(),
        bleu: bleu(written, &references, Tokenizer::for_language(to))?.score,
        chrf: chrf(written, &references)?.score,
        perplexity: None,
    })
}

/// Measures the baseline: a dictionary of the texts that are trained on.
///
/// # Errors
/// No text that is trained on has both languages.
pub fn of_dictionary(data: &Translations, pairs: &[Pair], direction: &Direction) -> Result<Scores> {
    let dictionary = Dictionary::learn(data, &direction.0, &direction.1)?;
    let written: Vec<String> = pairs.iter().map(|pair| dictionary.translate(&pair.source)).collect();
    of_texts(&written, pairs, direction)
}
