//! The bookkeeping of a beam search: which beginnings are followed, which texts are finished, when it is over. It knows no
//! model, so that one text and a batch of translations are searched alike.

use conjure_core::sampling::text::{log_softmax, top};
use conjure_core::{Error, Result};

/// A text that is followed, or finished.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Beam {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Sum of the logarithms of their probabilities.
    pub sum: f64,
}

impl Beam {
    /// `log p / length ^ penalty`; the length counts generated tokens, the end among them.
    pub fn score(&self, length_penalty: f64) -> f64 {
        self.sum / (self.ids.len() as f64).powf(length_penalty)
    }
}

/// When a search has seen enough, in transformers' words `early_stopping`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `false`: as many texts are finished as are followed, and no beginning, as long as it is now, beats the worst of them.
    #[default]
    Heuristic,
    /// `true`: as many texts are finished as are followed.
    First,
    /// `"never"`: as `false`, but a beginning is given the length that is best for it.
    Never,
}

/// What a search is told.
#[derive(Clone, Copy, Debug)]
pub struct Rules<'a> {
    /// Beginnings that are followed at once, at least one.
    pub width: usize,
    /// See [`Beam::score`].
    pub length_penalty: f64,
    /// Ids that end a text.
    pub ends: &'a [u32],
    /// The most tokens of a text, at least one.
    pub max_tokens: usize,
    /// When it is over.
    pub early_stopping: EarlyStopping,
}

/// Changes log-probabilities, given the tokens so far.
pub type Adjust<'a> = dyn FnMut(&mut [f32], &[u32]) -> Result<()> + 'a;

/// The `width` likeliest beginnings and the finished texts, as transformers keeps them.
#[derive(Clone, Debug)]
pub struct Search<'a> {
    rules: Rules<'a>,
    open: Vec<Beam>,
    finished: Vec<Beam>,
    steps: usize,
    over: bool,
}

impl<'a> Search<'a> {
    /// Follows one beginning: no token at all.
    pub fn new(rules: Rules<'a>) -> Self {
        Self { rules, open: vec![Beam::default()], finished: Vec::new(), steps: 0, over: false }
    }

    /// The beginnings that are followed, the likeliest first.
    pub fn open(&self) -> &[Beam] {
        &self.open
    }

    /// Steps made.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Whether nothing is left to do.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// One token more. `logits` holds the scores `(vocabulary)` after each open beginning; `adjust` may change their
    /// log-probabilities, given the tokens so far: what it excludes is negative infinity, and the others do not become likelier
    /// by it. For each beginning that is followed from now on: the place of the one that it continues.
    ///
    /// # Errors
    /// Scores that are no numbers.
    pub fn step(&mut self, logits: &[Vec<f32>], adjust: &mut Adjust<'_>) -> Result<Vec<usize>> {
        let Rules { width, length_penalty: penalty, ends, max_tokens, early_stopping } = self.rules;
        let mut candidates: Vec<(usize, Beam)> = Vec::new();
        for (parent, (beam, logits)) in self.open.iter().zip(logits).enumerate() {
            if logits.iter().any(|l| l.is_nan()) {
                return Err(Error::failure("the model's scores are no numbers").with_help("the weights are damaged"));
            }
            let mut logprobs = log_softmax(logits);
            adjust(&mut logprobs, &beam.ids)?;
            for id in top(&logprobs, width + ends.len().max(width)) {
                let logprob = f64::from(logprobs[id as usize]);
                if logprob > f64::NEG_INFINITY {
                    let ids = beam.ids.iter().copied().chain([id]).collect();
                    candidates.push((parent, Beam { ids, sum: beam.sum + logprob }));
                }
            }
        }
        candidates.sort_by(|(_, a), (_, b)| b.sum.total_cmp(&a.sum).then_with(|| a.ids.cmp(&b.ids)));
        let (mut parents, mut open) = (Vec::new(), Vec::new());
        for (place, (parent, beam)) in candidates.into_iter().enumerate() {
            if beam.ids.last().is_some_and(|id| ends.contains(id)) {
                // An end counts only where it is among the best.
                if place < width {
                    self.finished.push(beam);
                }
            } else if open.len() < width {
                parents.push(parent);
                open.push(beam);
            }
        }
        self.finished.sort_by(|a, b| b.score(penalty).total_cmp(&a.score(penalty)));
        self.finished.truncate(width);
        let hoped = |beam: &Beam| match early_stopping {
            EarlyStopping::Never if penalty > 0.0 => beam.sum / (max_tokens as f64).powf(penalty),
            _ => beam.score(penalty),
        };
        let best_open = open.iter().map(hoped).fold(f64::NEG_INFINITY, f64::max);
        let enough = match early_stopping {
            EarlyStopping::First => true,
            _ => self.finished.iter().all(|beam| beam.score(penalty) >= best_open),
        };
        self.open = open;
        self.steps += 1;
        self.over = (self.finished.len() == width && enough) || self.open.is_empty() || self.steps == max_tokens;
        Ok(parents)
    }

    /// The text with the best score, and whether the model ended it. Where the search was stopped or came to the last token, or
    /// has no finished text, beginnings compete too.
    ///
    /// # Errors
    /// There is no text at all, as every token was excluded.
    pub fn best(self) -> Result<(Beam, bool)> {
        let penalty = self.rules.length_penalty;
        let ended = self.finished.len();
        let mut all = self.finished;
        if !self.over || ended == 0 || self.steps == self.rules.max_tokens {
            all.extend(self.open);
        }
        let order = |&a: &usize, &b: &usize| all[a].score(penalty).total_cmp(&all[b].score(penalty)).then(b.cmp(&a));
        match (0..all.len()).max_by(order) {
            Some(best) => Ok((all.swap_remove(best), best < ended)),
            None => Err(Error::failure("beam search found no text")),
        }
    }
}
