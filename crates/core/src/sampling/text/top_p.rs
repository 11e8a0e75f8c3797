//! Top-p: the smallest set of tokens that together are likely enough.

use super::{History, LogitFilter, largest, share};
use crate::Result;

/// Nucleus sampling (Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration", equation 2): keeps the fewest
/// of the likeliest tokens whose probabilities add up to `p` or more.
#[derive(Clone, Copy, Debug)]
pub struct TopP(f32);

impl TopP {
    /// # Errors
    /// `p` is not over 0 and up to 1.
    pub fn new(p: f32) -> Result<Self> {
        share("top-p", p, "0.9 leaves out the unlikely tenth; 1 leaves out nothing").map(Self)
    }
}

impl LogitFilter for TopP {
    fn apply(&self, logits: &mut [f32], _: History<'_>) {
        if self.0 >= 1.0 {
            return;
        }
        let max = f64::from(largest(logits));
        let weight = |l: f32| (f64::from(l) - max).exp();
        let total: f64 = logits.iter().map(|&l| weight(l)).sum();
        // As transformers does, from the unlikeliest up: what goes adds up to 1 - p or less.
        let tail = (1.0 - f64::from(self.0)) * total;
        // Tokens that are lighter than the tail divided by their number go in any case, as all of them together fit into
        // it: only the few others need to be sorted.
        let light = tail / logits.len() as f64;
        let mut gone = 0.0;
        let mut others = Vec::new();
        for (id, l) in logits.iter_mut().enumerate() {
            let w = weight(*l);
            if w <= light && f64::from(*l) < max {
                gone += w;
                *l = f32::NEG_INFINITY;
            } else {
                others.push((w, id));
            }
        }
        // Of equally likely tokens the one with the lowest id stays longest.
        others.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
        others.pop();
        for (w, id) in others {
            gone += w;
            if gone > tail {
                break;
            }
            logits[id] = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kept;
    use super::*;

    #[test]
    fn the_fewest_tokens_that_reach_p_stay() {
        let p = [0.1, 0.4, 0.3, 0.15, 0.05];
        let top = |share| kept(&TopP::new(share).unwrap(), &p);
        assert_eq!(top(0.3), [1]);
        assert_eq!(top(0.6), [1, 2]);
        assert_eq!(top(0.8), [1, 2, 3]);
        assert_eq!(top(0.94), [0, 1, 2, 3]);
        assert_eq!(top(1.0), [0, 1, 2, 3, 4]);
        assert_eq!(top(1e-6), [1]);
    }

    #[test]
    fn one_token_stays_where_all_are_equally_likely() {
        assert_eq!(kept(&TopP::new(0.2).unwrap(), &[0.25; 4]), [0]);
        assert_eq!(kept(&TopP::new(0.6).unwrap(), &[0.25; 4]), [0, 1, 2]);
    }

    #[test]
    fn what_was_excluded_before_stays_excluded() {
        let mut logits = [f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY];
        TopP::new(0.7).unwrap().apply(&mut logits, History::default());
        assert_eq!(logits, [f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY]);
    }
}
