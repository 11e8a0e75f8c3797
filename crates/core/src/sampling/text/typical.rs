//! Typical sampling: tokens that carry about as much information as is expected here.

use super::{History, LogitFilter, largest, share};
use crate::Result;

/// Locally typical sampling (Meister, Pimentel, Wiher, Cotterell 2022, "Locally Typical Sampling", equation 11): tokens in
/// the order of `|-log p_i - H|`, their distance from the distribution's entropy `H`; kept are the first whose
/// probabilities add up to the mass or more.
#[derive(Clone, Copy, Debug)]
pub struct Typical(f32);

impl Typical {
    /// # Errors
    /// The mass is not over 0 and up to 1.
    pub fn new(mass: f32) -> Result<Self> {
        share("typical", mass, "0.95 is usual; 1 leaves out nothing").map(Self)
    }
}

impl LogitFilter for Typical {
    fn apply(&self, logits: &mut [f32], _: History<'_>) {
        if self.0 >= 1.0 {
            return;
        }
        let max = f64::from(largest(logits));
        let log_total = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln() + max;
        // (log-probability, id) of what was not excluded before.
        let mut tokens: Vec<(f64, usize)> = logits
            .iter()
            .enumerate()
            .filter(|(_, l)| **l > f32::NEG_INFINITY)
            .map(|(id, &l)| (f64::from(l) - log_total, id))
            .collect();
        let entropy = -tokens.iter().map(|(lp, _)| lp.exp() * lp).sum::<f64>();
        let distance = |lp: f64| (-lp - entropy).abs();
        tokens.sort_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
        let mut mass = 0.0;
        let last = tokens.iter().position(|(lp, _)| {
            mass += lp.exp();
            mass >= f64::from(self.0)
        });
        let Some(limit) = last.map(|at| distance(tokens[at].0)) else { return };
        for (lp, id) in tokens {
            if distance(lp) > limit {
                logits[id] = f32::NEG_INFINITY;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::kept;
    use super::*;

    #[test]
    fn tokens_near_the_entropy_stay() {
        // H = 1.2799 nats; -log p = 0.916, 1.204, 1.609, 2.303; distances 0.364, 0.076, 0.329, 1.023:
        // the order is 1, 2, 0, 3 with sums 0.3, 0.5, 0.9, 1.
        let p = [0.4, 0.3, 0.2, 0.1];
        let typical = |mass| kept(&Typical::new(mass).unwrap(), &p);
        assert_eq!(typical(0.2), [1]);
        assert_eq!(typical(0.45), [1, 2]);
        assert_eq!(typical(0.7), [0, 1, 2]);
        assert_eq!(typical(0.95), [0, 1, 2, 3]);
        assert_eq!(typical(1.0), [0, 1, 2, 3]);
    }

    #[test]
    fn the_likeliest_token_may_go() {
        // 0.3 and fourteen at 0.05: H = 0.361 + 2.097 = 2.458; distances 1.254 and 0.538.
        let mut p = vec![0.3];
        p.extend([0.05; 14]);
        assert_eq!(kept(&Typical::new(0.5).unwrap(), &p), (1..15).collect::<Vec<_>>());
    }
}
