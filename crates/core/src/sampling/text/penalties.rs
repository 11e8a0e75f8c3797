//! Penalties: tokens that were said before become less likely.

use super::{History, LogitFilter};
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Divides the positive logits of tokens that occurred, in prompt or answer, by the penalty, and multiplies negative ones
/// (Keskar et al. 2019, "CTRL", section 4.1, in the form for logits of both signs that became usual).
#[derive(Clone, Copy, Debug)]
pub struct RepetitionPenalty(f32);

impl RepetitionPenalty {
    /// # Errors
    /// A penalty that is not over 0, or so far from 1 that scores could become infinite.
    pub fn new(penalty: f32) -> Result<Self> {
        if (1.0 / MOST..=MOST).contains(&penalty) {
            return Ok(Self(penalty));
        }
        let least = 1.0 / MOST;
        Err(Error::request(format!("repetition penalty {penalty} is outside {least} to {MOST}"))
            .with_help("1.1 is usual; 1 changes nothing"))
    }
}

impl LogitFilter for RepetitionPenalty {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        let said: BTreeSet<u32> = history.prompt.iter().chain(history.answer).copied().collect();
        for id in said {
            if let Some(l) = logits.get_mut(id as usize) {
                *l = if *l < 0.0 { *l * self.0 } else { *l / self.0 };
            }
        }
    }
}

/// Scores are some tens: a larger penalty does not do more, and one near the largest float would make them infinite.
const MOST: f32 = 100.0;

fn within(what: &str, value: f32) -> Result<f32> {
    if value.abs() <= MOST {
        return Ok(value);
    }
    Err(Error::request(format!("{what} penalty {value} is outside -{MOST} to {MOST}"))
        .with_help("0 to 2 are usual; 0 changes nothing"))
}

/// Lowers the logits of tokens that occur in the answer by the penalty, once, as in OpenAI's interface: `l_i -= penalty`
/// where token `i` was generated. Negative penalties favour what was said.
#[derive(Clone, Copy, Debug)]
pub struct PresencePenalty(f32);

impl PresencePenalty {
    /// # Errors
    /// The penalty is outside -100 to 100.
    pub fn new(penalty: f32) -> Result<Self> {
        within("presence", penalty).map(Self)
    }
}

impl LogitFilter for PresencePenalty {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        for id in history.answer.iter().copied().collect::<BTreeSet<_>>() {
            if let Some(l) = logits.get_mut(id as usize) {
                *l -= self.0;
            }
        }
    }
}

/// Lowers the logits of tokens that occur in the answer by the penalty for each time, as in OpenAI's interface:
/// `l_i -= penalty * count_i`.
#[derive(Clone, Copy, Debug)]
pub struct FrequencyPenalty(f32);

impl FrequencyPenalty {
    /// # Errors
    /// The penalty is outside -100 to 100.
    pub fn new(penalty: f32) -> Result<Self> {
        within("frequency", penalty).map(Self)
    }
}

impl LogitFilter for FrequencyPenalty {
    fn apply(&self, logits: &mut [f32], history: History<'_>) {
        let mut counts = BTreeMap::new();
        history.answer.iter().for_each(|&id| *counts.entry(id).or_insert(0_u32) += 1);
        for (id, count) in counts {
            if let Some(l) = logits.get_mut(id as usize) {
                *l -= self.0 * count as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HISTORY: History<'_> = History { prompt: &[0, 9], answer: &[1, 2, 2, 1, 2] };

    fn after(filter: &dyn LogitFilter) -> [f32; 4] {
        let mut logits = [1.0, -1.0, 3.0, 4.0];
        filter.apply(&mut logits, HISTORY);
        logits
    }

    #[test]
    fn repetition_counts_prompt_and_answer_once_each() {
        assert_eq!(after(&RepetitionPenalty::new(2.0).unwrap()), [0.5, -2.0, 1.5, 4.0]);
        assert_eq!(after(&RepetitionPenalty::new(1.0).unwrap()), [1.0, -1.0, 3.0, 4.0]);
    }

    #[test]
    fn presence_counts_the_answer_once_and_frequency_each_time() {
        assert_eq!(after(&PresencePenalty::new(0.5).unwrap()), [1.0, -1.5, 2.5, 4.0]);
        assert_eq!(after(&FrequencyPenalty::new(0.5).unwrap()), [1.0, -2.0, 1.5, 4.0]);
    }
}
