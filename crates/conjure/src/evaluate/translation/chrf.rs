//! chrF over a corpus.

use super::{VERSION, check, counts, is_space};
use crate::Result;
use serde::Serialize;

/// Longest run of characters that is compared.
const ORDER: usize = 6;
/// Recall counts twice as much as precision.
const BETA: f64 = 2.0;

/// A corpus's score.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chrf {
    /// From 0 to 100: the F-score of runs of 1 to 6 characters.
    pub score: f64,
    /// How it was computed, in sacreBLEU's form.
    pub signature: String,
}

/// Runs of characters of one length.
#[derive(Clone, Copy, Default)]
struct Runs {
    hypothesis: usize,
    reference: usize,
    matches: usize,
}

/// chrF2 as sacreBLEU computes it: case counts, spaces do not, no runs of words. Of several references the one with the best
/// score counts, line by line. `references` as for [`bleu`](super::bleu()).
///
/// # Errors
/// No translations, no references, or lists of different lengths.
pub fn chrf(hypotheses: &[String], references: &[Vec<String>]) -> Result<Chrf> {
    check(hypotheses, references)?;
    let mut total = [Runs::default(); ORDER];
    for (n, hypothesis) in hypotheses.iter().enumerate() {
        let hypothesis = characters(hypothesis);
        let mut best: Option<(f64, [Runs; ORDER])> = None;
        for lines in references {
            let runs = compare(&hypothesis, &characters(&lines[n]));
            let score = score(&runs);
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, runs));
            }
        }
        for (sum, runs) in total.iter_mut().zip(best.map_or([Runs::default(); ORDER], |(_, runs)| runs)) {
            sum.hypothesis += runs.hypothesis;
            sum.reference += runs.reference;
            sum.matches += runs.matches;
        }
    }
    let signature = format!("nrefs:{}|case:mixed|eff:yes|nc:{ORDER}|nw:0|space:no|version:{VERSION}", references.len());
    Ok(Chrf { score: score(&total), signature })
}

fn characters(line: &str) -> Vec<char> {
    line.chars().filter(|c| !is_space(*c)).collect()
}

fn compare(hypothesis: &[char], reference: &[char]) -> [Runs; ORDER] {
    std::array::from_fn(|n| {
        let wanted = counts(reference.windows(n + 1));
        let mut runs = Runs { reference: wanted.values().sum(), ..Runs::default() };
        for (run, count) in counts(hypothesis.windows(n + 1)) {
            // Where the reference has no run of this length, none was wanted.
            runs.hypothesis += if wanted.is_empty() { 0 } else { count };
            runs.matches += count.min(wanted.get(run).copied().unwrap_or(0));
        }
        runs
    })
}

/// The F-score in percent of the mean precision and the mean recall over the lengths that both sides have.
fn score(runs: &[Runs; ORDER]) -> f64 {
    let (mut precision, mut recall, mut lengths) = (0.0, 0.0, 0.0);
    for runs in runs.iter().filter(|runs| runs.hypothesis > 0 && runs.reference > 0) {
        precision += runs.matches as f64 / runs.hypothesis as f64;
        recall += runs.matches as f64 / runs.reference as f64;
        lengths += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    let (precision, recall) = (precision / lengths, recall / lengths);
    100.0 * (1.0 + BETA * BETA) * precision * recall / (BETA * BETA * precision + recall)
}
