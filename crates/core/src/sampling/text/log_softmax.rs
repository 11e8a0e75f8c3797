//! Probabilities in logarithms, ranks and the likeliest tokens.

use super::largest;
use std::cmp::Ordering;

/// `log p_i = l_i - log sum_j exp(l_j)` in natural logarithms, `(vocabulary)`. The sum is made in f64, so that the result
/// is exact to the rounding of f32 (1e-6 at -10) also for vocabularies of hundreds of thousands.
pub fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let max = f64::from(largest(logits));
    let log_total = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum::<f64>().ln() + max;
    logits.iter().map(|&l| (f64::from(l) - log_total) as f32).collect()
}

/// The place of token `id`, from 1, when tokens are ordered by `logits` and equal ones by their ids; 0 for an id beyond.
pub fn rank(logits: &[f32], id: u32) -> usize {
    let id = id as usize;
    let Some(&own) = logits.get(id) else { return 0 };
    1 + logits.iter().enumerate().filter(|&(other, &l)| l > own || (l == own && other < id)).count()
}

/// The ids of the `k` largest values, largest first, equal ones by their ids.
pub fn top(values: &[f32], k: usize) -> Vec<u32> {
    let order = |&a: &u32, &b: &u32| -> Ordering { values[b as usize].total_cmp(&values[a as usize]).then(a.cmp(&b)) };
    let mut ids: Vec<u32> = (0..values.len() as u32).collect();
    if k == 0 || ids.is_empty() {
        return Vec::new();
    }
    if k < ids.len() {
        ids.select_nth_unstable_by(k - 1, order);
        ids.truncate(k);
    }
    ids.sort_unstable_by(order);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_probabilities() {
        let lp = log_softmax(&[1.0, 1.0 + 3.0_f32.ln(), f32::NEG_INFINITY]);
        assert!((lp[0] - 0.25_f32.ln()).abs() < 1e-6 && (lp[1] - 0.75_f32.ln()).abs() < 1e-6);
        assert_eq!(lp[2], f32::NEG_INFINITY);
        // A large vocabulary of equal scores: -log n to the last digit of f32.
        let lp = log_softmax(&vec![80.0; 262_144]);
        assert!((f64::from(lp[77]) + 262_144_f64.ln()).abs() < 1e-6, "{}", lp[77]);
    }

    #[test]
    fn ranks_and_the_likeliest_go_together() {
        let values = [0.5, 2.0, -1.0, 2.0, 0.0];
        assert_eq!(top(&values, 3), [1, 3, 0]);
        assert_eq!(top(&values, 99), [1, 3, 0, 4, 2]);
        assert_eq!(top(&values, 0), [0; 0]);
        for (place, &id) in top(&values, 5).iter().enumerate() {
            assert_eq!(rank(&values, id), place + 1);
        }
        assert_eq!(rank(&values, 5), 0);
    }
}
