//! Min-p: no token that is much less likely than the likeliest.

use super::{History, LogitFilter, largest};
use crate::{Error, Result};

/// Keeps tokens whose probability is `min_p` times that of the likeliest or more (Nguyen et al. 2024, "Turning Up the
/// Heat: Min-p Sampling for Creative and Coherent LLM Outputs", equations 2 and 3).
#[derive(Clone, Copy, Debug)]
pub struct MinP(f32);

impl MinP {
    /// # Errors
    /// The share is not within 0 to 1.
    pub fn new(min_p: f32) -> Result<Self> {
        if (0.0..=1.0).contains(&min_p) {
            return Ok(Self(min_p));
        }
        Err(Error::request(format!("min-p {min_p} is outside 0 to 1"))
            .with_help("0.05 leaves out tokens that are twenty times less likely than the likeliest; 0 none"))
    }
}

impl LogitFilter for MinP {
    fn apply(&self, logits: &mut [f32], _: History<'_>) {
        // p_i >= min_p * p_max, in logarithms: the softmax's denominator is on both sides.
        let threshold = f64::from(largest(logits)) + f64::from(self.0).ln();
        logits.iter_mut().filter(|l| f64::from(**l) < threshold).for_each(|l| *l = f32::NEG_INFINITY);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kept;
    use super::*;

    #[test]
    fn tokens_below_a_share_of_the_likeliest_go() {
        let p = [0.1, 0.5, 0.26, 0.14];
        let min = |share| kept(&MinP::new(share).unwrap(), &p);
        assert_eq!(min(0.0), [0, 1, 2, 3]);
        assert_eq!(min(0.25), [1, 2, 3]);
        assert_eq!(min(0.5), [1, 2]);
        assert_eq!(min(1.0), [1]);
    }
}
