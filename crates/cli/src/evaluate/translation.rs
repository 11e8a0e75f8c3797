//! `conjure evaluate bleu` and `conjure evaluate dictionary`.

use crate::args::{BleuArgs, DictionaryArgs};
use crate::lines::lines;
use crate::report;
use conjure::data::translation::Translations;
use conjure::evaluate::dictionary::Dictionary;
use conjure::evaluate::translation::{HeldOut, Tokenizer, bleu as measure_bleu, chrf, held_out};
use conjure::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::process::ExitCode;

/// Prints BLEU and chrF of a file of translations.
pub fn bleu(args: &BleuArgs) -> Result<ExitCode> {
    let files = std::iter::once(&args.hypotheses).chain(&args.references);
    if files.filter(|file| *file == Path::new("-")).count() > 1 {
        return Err(
            Error::request("- is given twice, and stdin can be read once").with_help("name a file for all but one")
        );
    }
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
    let directions = args.pairs.iter().map(|pair| {
        pair.split_once(':').filter(|(from, to)| !from.is_empty() && !to.is_empty()).ok_or_else(|| {
            Error::request(format!("--pairs {pair:?} is no direction"))
                .with_help("write languages as from:to, such as en:de")
        })
    });
    let directions: Vec<(&str, &str)> = directions.collect::<Result<_>>()?;
    let set = Translations::open(&args.data)?;
    let mut results = Vec::new();
    for (from, to) in directions {
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
