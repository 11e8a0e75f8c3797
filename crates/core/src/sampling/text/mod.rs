//! How scores become a token: filters on logits, one after the other, and then a choice.
//!
//! | file | question it answers |
//! |---|---|
//! | [`penalties`] | how are tokens that were said before made less likely? |
//! | [`temperature`] | how bold is the choice? |
//! | [`top_k`], [`top_p`], [`min_p`], [`typical`] | which tokens may be chosen at all? |
//! | [`choose`] | which token is it? |
//! | [`log_softmax`] | how likely is each token, in logarithms? |
//!
//! A filter changes `logits (vocabulary)` in place; an excluded token gets minus infinity. At least one token always
//! stays. Every filter equals transformers' logits processor of the same name, see `tests/it/logit_filters.rs`.

pub mod choose;
pub mod log_softmax;
pub mod min_p;
pub mod penalties;
pub mod temperature;
pub mod top_k;
pub mod top_p;
pub mod typical;

pub use choose::{argmax, draw, uniform};
pub use log_softmax::{log_softmax, rank, top};
pub use min_p::MinP;
pub use penalties::{FrequencyPenalty, PresencePenalty, RepetitionPenalty};
pub use temperature::Temperature;
pub use top_k::TopK;
pub use top_p::TopP;
pub use typical::Typical;

use crate::{Error, Result};

/// What was said before the token that is chosen now.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// The ids that the user gave.
    pub prompt: &'a [u32],
    /// The ids that were generated since.
    pub answer: &'a [u32],
}

/// One change of the scores of all tokens.
pub trait LogitFilter: Send {
    /// Changes `logits (vocabulary)` in place.
    fn apply(&self, logits: &mut [f32], history: History<'_>);
}

/// Filters that are applied in the order in which they were added.
#[derive(Default)]
pub struct Chain(Vec<Box<dyn LogitFilter>>);

impl Chain {
    /// The chain with one more filter at its end.
    #[must_use]
    pub fn then(mut self, filter: impl LogitFilter + 'static) -> Self {
        self.0.push(Box::new(filter));
        self
    }
}

impl LogitFilter for Chain {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        self.0.iter().for_each(|filter| filter.apply(logits, history));
    }
}

/// The largest logit; minus infinity if there is none.
fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// Refuses a share of probability that is not over 0 and up to 1.
fn share(what: &str, value: f32, help: &str) -> Result<f32> {
    if value > 0.0 && value <= 1.0 {
        return Ok(value);
    }
    Err(Error::request(format!("{what} {value} is not over 0 and up to 1")).with_help(help))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Logits whose softmax are these probabilities.
    pub(super) fn logits(probabilities: &[f32]) -> Vec<f32> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    /// The ids that a filter leaves.
    pub(super) fn kept(filter: &dyn LogitFilter, probabilities: &[f32]) -> Vec<usize> {
        let mut logits = logits(probabilities);
        filter.apply(&mut logits, History::default());
        (0..logits.len()).filter(|&id| logits[id] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn a_chain_applies_its_filters_in_order() {
        // Top-p alone keeps 0.5 and 0.3; at temperature 0.5 the squares 25 : 9 : 4 leave 25 / 38 = 0.66 to the first.
        let p = [0.5, 0.3, 0.2];
        let top_p = || TopP::new(0.6).unwrap();
        assert_eq!(kept(&top_p(), &p), [0, 1]);
        assert_eq!(kept(&Chain::default().then(Temperature::new(0.5).unwrap()).then(top_p()), &p), [0]);
        assert_eq!(kept(&Chain::default().then(top_p()).then(Temperature::new(0.5).unwrap()), &p), [0, 1]);
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        let refused = |error: Error| {
            assert_eq!(error.exit_code(), 2);
            assert!(error.help().is_some());
            error.to_string()
        };
        assert_eq!(refused(TopP::new(0.0).err().unwrap()), "top-p 0 is not over 0 and up to 1");
        assert_eq!(refused(TopP::new(f32::NAN).err().unwrap()), "top-p NaN is not over 0 and up to 1");
        assert_eq!(refused(Typical::new(1.5).err().unwrap()), "typical 1.5 is not over 0 and up to 1");
        assert_eq!(refused(MinP::new(-0.1).err().unwrap()), "min-p -0.1 is outside 0 to 1");
        assert_eq!(refused(TopK::new(0).err().unwrap()), "top-k 0 leaves no token");
        assert_eq!(refused(Temperature::new(-1.0).err().unwrap()), "temperature -1 is no positive number");
        assert_eq!(refused(RepetitionPenalty::new(0.0).err().unwrap()), "repetition penalty 0 is outside 0.01 to 100");
        let outside = |what: &str| format!("{what} is outside -100 to 100");
        assert_eq!(refused(PresencePenalty::new(f32::INFINITY).err().unwrap()), outside("presence penalty inf"));
        assert_eq!(refused(FrequencyPenalty::new(-100.5).err().unwrap()), outside("frequency penalty -100.5"));
        assert_eq!(refused(FrequencyPenalty::new(f32::NAN).err().unwrap()), outside("frequency penalty NaN"));
    }
}
