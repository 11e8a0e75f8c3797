//! `conjure evaluate translation`: translators side by side.

use crate::args::EvaluateTranslationArgs;
use crate::progress::Progress;
use crate::{image, interrupt, language, report};
use conjure::data::translation::Translations;
use conjure::evaluate::translator::{self, Scores};
use conjure::generate::translate::Translator;
use conjure::{Error, Result};
use serde_json::{Value, json};
use std::process::ExitCode;

/// A model's name and what came of each direction.
type Column = (String, Vec<Scores>);

pub fn run(args: &EvaluateTranslationArgs) -> Result<ExitCode> {
    if args.limit == Some(0) {
        return Err(Error::request("--limit 0 leaves nothing to do").with_help("100 texts or more tell something"));
    }
    image::set_threads(&args.machine)?;
    let data = Translations::open(&args.data)?;
    let directions = translator::directions(&args.pairs, &data)?;
    let pairs = directions
        .iter()
        .map(|direction| translator::pairs(&data, direction, args.trained, args.limit))
        .collect::<Result<Vec<_>>>()?;
    // All are opened before hours of work go into the first.
    let models = args
        .models
        .iter()
        .map(|folder| Ok((language::name(folder), Translator::open(folder)?)))
        .collect::<Result<Vec<_>>>()?;
    for (name, model) in &models {
        for (from, to) in &directions {
            model.languages().told(Some(from), Some(to)).map_err(|error| match error {
                Error::Request { message, help } => Error::Request { message: format!("{name}: {message}"), help },
                other => other,
            })?;
        }
    }
    let all: usize = pairs.iter().map(Vec::len).sum::<usize>() * models.len();
    let mut progress = Progress::new();
    let (mut columns, mut before): (Vec<Column>, usize) = (Vec::new(), 0);
    for (name, model) in &models {
        let mut scores = Vec::with_capacity(directions.len());
        for (direction, pairs) in directions.iter().zip(&pairs) {
            scores.push(translator::of_model(model, pairs, direction, args.beams, &mut |done| {
                progress.step(before + done, all);
                !interrupt::requested()
            })?);
            before += pairs.len();
        }
        columns.push((name.clone(), scores));
    }
    if args.dictionary {
        let mut scores = Vec::with_capacity(directions.len());
        for (direction, pairs) in directions.iter().zip(&pairs) {
            scores.push(translator::of_dictionary(&data, pairs, direction)?);
        }
        columns.push(("dictionary".to_owned(), scores));
    }
    drop(progress);
    report::result(&if args.machine.json { in_json(&columns).to_string() } else { table(&columns) })?;
    Ok(ExitCode::SUCCESS)
}

fn in_json(columns: &[Column]) -> Value {
    let one = |(name, scores): &Column| json!({ "model": name, "directions": scores });
    json!({ "models": columns.iter().map(one).collect::<Vec<_>>() })
}

/// A row for each direction and one for their mean; BLEU, chrF and perplexity of each model.
fn table(columns: &[Column]) -> String {
    let cell = |bleu: f64, chrf: f64, perplexity: Option<f64>| {
        let perplexity = perplexity.map_or_else(|| "-".to_owned(), |p| format!("{p:.1}"));
        format!("{bleu:>6.1} {chrf:>6.1} {perplexity:>9}")
    };
    let (mut names, mut heads) = (format!("{:<17}", ""), format!("{:<17}", "direction (texts)"));
    for (name, _) in columns {
        names += &format!("  {:>23}", name.chars().take(23).collect::<String>());
        heads += &format!("  {:>6} {:>6} {:>9}", "BLEU", "chrF", "ppl");
    }
    let rows = columns.first().map_or(0, |(_, scores)| scores.len());
    let mut lines = vec![names, heads];
    for row in 0..rows {
        let first = &columns[0].1[row];
        let mut line = format!("{:<17}", format!("{}-{} ({})", first.from, first.to, first.pairs));
        for (_, scores) in columns {
            let scores = &scores[row];
            line += &format!("  {}", cell(scores.bleu, scores.chrf, scores.perplexity));
        }
        lines.push(line);
    }
    let mut line = format!("{:<17}", "mean");
    for (_, scores) in columns {
        let mean = |value: &dyn Fn(&Scores) -> f64| scores.iter().map(value).sum::<f64>() / scores.len().max(1) as f64;
        let perplexity = scores.iter().all(|s| s.perplexity.is_some());
        // Of perplexities the geometric mean: that of the losses.
        let perplexity = perplexity.then(|| mean(&|s| s.perplexity.unwrap_or(1.0).ln()).exp());
        line += &format!("  {}", cell(mean(&|s| s.bleu), mean(&|s| s.chrf), perplexity));
    }
    lines.push(line);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_stand_side_by_side_with_their_means() {
        let scores = |to: &str, bleu: f64, perplexity: Option<f64>| Scores {
            from: "en".into(),
            to: to.into(),
            pairs: 100,
            bleu,
            chrf: 2.0 * bleu,
            perplexity,
        };
        let columns = [
            ("transformer".to_owned(), vec![scores("de", 20.0, Some(2.0)), scores("fr", 30.0, Some(8.0))]),
            ("dictionary".to_owned(), vec![scores("de", 5.0, None), scores("fr", 6.0, None)]),
        ];
        let table = table(&columns);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["transformer", "dictionary"]);
        assert_eq!(rows[2], ["en-de", "(100)", "20.0", "40.0", "2.0", "5.0", "10.0", "-"]);
        assert_eq!(rows[4], ["mean", "25.0", "50.0", "4.0", "5.5", "11.0", "-"]);
        let widths: Vec<usize> = table.lines().skip(1).map(str::len).collect();
        assert!(widths.windows(2).all(|two| two[0] == two[1]), "{table}");
    }
}
