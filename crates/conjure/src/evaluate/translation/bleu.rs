//! BLEU over a corpus.

use super::{Tokenizer, VERSION, check, counts};
use crate::Result;
use serde::Serialize;

/// Longest run of words that is compared.
const ORDER: usize = 4;

/// A corpus's score and what it is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bleu {
    /// From 0 to 100: the brevity penalty times the geometric mean of the precisions.
    pub score: f64,
    /// Of runs of 1 to 4 words, in percent. One without a single match is smoothed: 1/2, 1/4, ... of a match are counted.
    pub precisions: [f64; ORDER],
    /// 1, or less where the translations have fewer words than the references.
    pub brevity_penalty: f64,
    /// Words in the translations.
    pub words: usize,
    /// Words in the references; of several the one nearest in length counts.
    pub reference_words: usize,
    /// How it was computed, in sacreBLEU's form.
    pub signature: String,
}

/// BLEU as sacreBLEU computes it: case counts, exponential smoothing, no effective order. `references` are one or more lists,
/// each with a line for every translation.
///
/// # Errors
/// No translations, no references, or lists of different lengths.
pub fn bleu(hypotheses: &[String], references: &[Vec<String>], tokenizer: Tokenizer) -> Result<Bleu> {
    check(hypotheses, references)?;
    let (mut correct, mut total) = ([0_usize; ORDER], [0_usize; ORDER]);
    let (mut words, mut reference_words) = (0, 0);
    for (n, hypothesis) in hypotheses.iter().enumerate() {
        let hypothesis = tokenizer.words(hypothesis);
        let references: Vec<Vec<String>> = references.iter().map(|lines| tokenizer.words(&lines[n])).collect();
        words += hypothesis.len();
        // Of references that are alike near the shorter one.
        let nearest = references.iter().map(Vec::len).min_by_key(|length| (length.abs_diff(hypothesis.len()), *length));
        reference_words += nearest.unwrap_or(0);
        for order in 1..=ORDER {
            let allowed: Vec<_> = references.iter().map(|reference| counts(reference.windows(order))).collect();
            for (run, count) in counts(hypothesis.windows(order)) {
                let most = allowed.iter().filter_map(|counts| counts.get(run)).max().copied().unwrap_or(0);
                correct[order - 1] += count.min(most);
                total[order - 1] += count;
            }
        }
    }
    let (precisions, score) = score(&correct, &total);
    let brevity_penalty = match words {
        0 if reference_words > 0 => 0.0,
        _ if words < reference_words => (1.0 - reference_words as f64 / words as f64).exp(),
        _ => 1.0,
    };
    let (sets, name) = (references.len(), tokenizer.name());
    let signature = format!("nrefs:{sets}|case:mixed|eff:no|tok:{name}|smooth:exp|version:{VERSION}");
    Ok(Bleu { score: brevity_penalty * score, precisions, brevity_penalty, words, reference_words, signature })
}

/// The precisions in percent and their geometric mean, which is 0 where nothing is right or no line has four words.
fn score(correct: &[usize; ORDER], total: &[usize; ORDER]) -> ([f64; ORDER], f64) {
    let mut precisions = [0.0; ORDER];
    if correct.iter().all(|count| *count == 0) {
        return (precisions, 0.0);
    }
    let mut smoothing = 1.0;
    for ((precision, &correct), &total) in precisions.iter_mut().zip(correct).zip(total) {
        if total == 0 {
            break;
        }
        *precision = if correct == 0 {
            smoothing *= 2.0;
            100.0 / (smoothing * total as f64)
        } else {
            100.0 * correct as f64 / total as f64
        };
    }
    let mean = (precisions.iter().map(|precision| precision.ln()).sum::<f64>() / ORDER as f64).exp();
    (precisions, mean)
}
