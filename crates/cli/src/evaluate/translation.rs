//! `conjure evaluate bleu` and `conjure evaluate dictionary`.

use crate::args::{BleuArgs, DictionaryArgs};
use crate::lines::{lines, stdin_once};
use crate::report;
use conjure::Result;
use conjure::data::translation::Translations;
use conjure::evaluate::dictionary::Dictionary;
use conjure::evaluate::translation::{HeldOut, Tokenizer, bleu as measure_bleu, chrf, held_out};
use conjure::evaluate::translator::{Direction, directions};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Directions that are measured where none are named and the data has some of them.
const USUAL: [(&str, &str); 10] = [
    ("en", "de"),
    ("de", "en"),
    ("en", "fr"),
    ("fr", "en"),
    ("en", "es"),
    ("es", "en"),
    ("en", "ru"),
    ("en", "ja"),
    ("de", "fr"),
    ("zh", "en"),
];

/// Prints BLEU and chrF of a file of translations.
pub fn bleu(args: &BleuArgs) -> Result<ExitCode> {
    stdin_once(std::iter::once(&args.hypotheses).chain(&args.references).map(AsRef::as_ref))?;
    let hypotheses = lines(&args.hypotheses)?;
    let references = args.references.iter().map(|file| lines(file)).collect::<Result<Vec<_>>>()?;
    let tokenizer = Tokenizer::named(&args.tokenize).unwrap_or_default();
    let (bleu, chrf) = (measure_bleu(&hypotheses, &references, tokenizer)?, chrf(&hypotheses, &references)?);
    if args.report.json {
        report::result(&json!({ "lines": hypotheses.len(), "bleu": bleu, "chrf": chrf }).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let precisions = bleu.precisions.map(|precision| format!("{precision:.1}")).join("/");
    report::result(&format!("BLEU   {:>6.2}  {}", bleu.score, bleu.signature))?;
    report::result(&format!(
        "               precisions {precisions}, brevity penalty {:.3}, {} words for {}",
        bleu.brevity_penalty, bleu.words, bleu.reference_words
    ))?;
    report::result(&format!("chrF2  {:>6.2}  {}", chrf.score, chrf.signature))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints how well a dictionary and copying translate held-out names.
pub fn dictionary(args: &DictionaryArgs) -> Result<ExitCode> {
    let set = Translations::open(&args.data)?;
    let directions = if args.pairs.is_empty() { usual_directions(&set) } else { directions(&args.pairs, &set)? };
    let mut results = Vec::new();
    for (from, to) in &directions {
        let dictionary = Dictionary::learn(&set, from, to)?;
        let looked_up = held_out(&set, from, to, &mut |text| Ok(dictionary.translate(text)))?;
        results.push((looked_up, held_out(&set, from, to, &mut |text| Ok(text.to_owned()))?));
    }
    if args.report.json {
        let one = |(dictionary, copy): &(HeldOut, HeldOut)| json!({ "dictionary": dictionary, "copy": copy });
        report::result(&Value::from(results.iter().map(one).collect::<Vec<_>>()).to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    report::result("                      dictionary                copy")?;
    report::result("from     to       names   BLEU   chrF  exact   BLEU   chrF  exact")?;
    for (dictionary, copy) in &results {
        let one = |scores: &HeldOut| {
            format!("{:>6.1} {:>6.1} {:>4.0} %", scores.bleu.score, scores.chrf.score, 100.0 * scores.exact)
        };
        let HeldOut { from, to, names, .. } = dictionary;
        report::result(&format!("{from:<8} {to:<8} {names:>5} {} {}", one(dictionary), one(copy)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Those of the [`USUAL`] directions that the data holds something out of; else English, or the first language, into
/// and out of each other language.
fn usual_directions(set: &Translations) -> Vec<Direction> {
    let owned = |(from, to): (&str, &str)| (from.to_owned(), to.to_owned());
    let measurable = |(from, to): &Direction| !set.held_out(from, to).is_empty();
    let usual: Vec<Direction> = USUAL.map(owned).into_iter().filter(measurable).collect();
    if !usual.is_empty() {
        return usual;
    }
    let languages = || set.languages().iter().map(String::as_str);
    let Some(centre) = languages().find(|language| *language == "en").or_else(|| languages().next()) else {
        return Vec::new();
    };
    let others = languages().filter(|other| *other != centre);
    let mut all: Vec<Direction> = others.flat_map(|other| [(centre, other), (other, centre)]).map(owned).collect();
    // Where nothing can be measured, the first direction tells why.
    if all.iter().any(measurable) {
        all.retain(measurable);
    }
    all
}
