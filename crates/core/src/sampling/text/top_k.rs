//! Top-k: only the k likeliest tokens.

use super::{History, LogitFilter};
use crate::{Error, Result};

/// Keeps the `k` largest logits (Fan, Lewis, Dauphin 2018, "Hierarchical Neural Story Generation", section 5.4). Tokens
/// as likely as the `k`-th stay too, as in transformers.
#[derive(Clone, Copy, Debug)]
pub struct TopK(usize);

impl TopK {
    /// # Errors
    /// `k` is 0.
    pub fn new(k: usize) -> Result<Self> {
        if k == 0 {
            return Err(
                Error::request("top-k 0 leaves no token").with_help("40 is usual; 1 always takes the likeliest token")
            );
        }
        Ok(Self(k))
    }
}

impl LogitFilter for TopK {
    fn apply(&self, logits: &mut [f32], _: History<'_>) {
        let k = self.0;
        if k >= logits.len() {
            return;
        }
        // A selection, not a sort: linear in the vocabulary.
        let mut copy = logits.to_vec();
        let (_, threshold, _) = copy.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        logits.iter_mut().filter(|l| **l < threshold).for_each(|l| *l = f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kept;
    use super::*;

    #[test]
    fn the_k_likeliest_stay_and_ties_with_the_last() {
        let p = [0.1, 0.4, 0.2, 0.2, 0.1];
        let top = |k| kept(&TopK::new(k).unwrap(), &p);
        assert_eq!(top(1), [1]);
        assert_eq!(top(2), [1, 2, 3]);
        assert_eq!(top(3), [1, 2, 3]);
        assert_eq!(top(5), [0, 1, 2, 3, 4]);
        assert_eq!(top(99), [0, 1, 2, 3, 4]);
    }
}
