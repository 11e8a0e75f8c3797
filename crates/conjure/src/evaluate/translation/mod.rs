//! How near translations are to what people wrote: BLEU and chrF over a whole corpus, equal to sacreBLEU's.
//!
//! | module | paper |
//! |---|---|
//! | [`bleu`](mod@bleu) | Papineni, Roukos, Ward, Zhu, "BLEU: a Method for Automatic Evaluation of Machine Translation", 2002 |
//! | [`chrf`](mod@chrf) | Popović, "chrF: character n-gram F-score for automatic MT evaluation", 2015 |
//! | [`tokenizer`] | Post, "A Call for Clarity in Reporting BLEU Scores", 2018: what a word is, and the signature that says so |

pub mod bleu;
pub mod chrf;
pub mod tokenizer;

pub use bleu::{Bleu, bleu};
pub use chrf::{Chrf, chrf};
pub use tokenizer::Tokenizer;

use crate::data::translation::Translations;
use crate::{Error, Result};
use serde::Serialize;

/// How well held-out names are translated from one language to another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOut {
    /// The source's language.
    pub from: String,
    /// The target's.
    pub to: String,
    /// Names.
    pub names: usize,
    /// Share of them that are translated exactly, by case and all.
    pub exact: f64,
    /// With the tokenizer for the target's language.
    pub bleu: Bleu,
    /// Of characters.
    pub chrf: Chrf,
}

/// Has all held-out names of one direction translated and measures the outcome.
///
/// # Errors
/// No held-out entry has both languages; an error of `translate`.
pub fn held_out(
    set: &Translations,
    from: &str,
    to: &str,
    translate: &mut dyn FnMut(&str) -> Result<String>,
) -> Result<HeldOut> {
    let pairs = set.held_out(from, to);
    if pairs.is_empty() {
        return Err(Error::request(format!("nothing that is held out is said in {from} and in {to}"))
            .with_help(format!("the languages are: {}", set.languages().join(", "))));
    }
    let hypotheses = pairs.iter().map(|pair| translate(&pair.source)).collect::<Result<Vec<String>>>()?;
    let exact = pairs.iter().zip(&hypotheses).filter(|(pair, hypothesis)| pair.target == **hypothesis).count();
    let references = [pairs.iter().map(|pair| pair.target.clone()).collect()];
    Ok(HeldOut {
        from: from.to_owned(),
        to: to.to_owned(),
        names: pairs.len(),
        exact: exact as f64 / pairs.len() as f64,
        bleu: bleu(&hypotheses, &references, Tokenizer::for_language(to))?,
        chrf: chrf(&hypotheses, &references)?,
    })
}

/// Our name in signatures, where sacreBLEU puts its version.
const VERSION: &str = concat!("conjure-", env!("CARGO_PKG_VERSION"));

/// Checks that there is something to measure, and as much of it on every side.
fn check(hypotheses: &[String], references: &[Vec<String>]) -> Result<()> {
    if hypotheses.is_empty() {
        return Err(Error::request("there are no translations to measure").with_help("give one in each line"));
    }
    if references.is_empty() {
        return Err(Error::request("there are no references to measure translations by"));
    }
    for (n, reference) in references.iter().enumerate() {
        if reference.len() != hypotheses.len() {
            let message =
                format!("{} translations, and {} lines in reference {}", hypotheses.len(), reference.len(), n + 1);
            return Err(Error::request(message).with_help("give the same lines in the same order on both sides"));
        }
    }
    Ok(())
}

/// What Python's `str.split` parts words at: more than Unicode's white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// How often each item occurs.
fn counts<T: Eq + std::hash::Hash>(items: impl Iterator<Item = T>) -> std::collections::HashMap<T, usize> {
    let mut counts = std::collections::HashMap::new();
    for item in items {
        *counts.entry(item).or_insert(0) += 1;
    }
    counts
}
