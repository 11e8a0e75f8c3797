//! Does a query find what it asks for? Recall at k, as Radford et al. 2021 report it in table 13.

use std::cmp::Ordering;

/// For each `k`, the share of queries of which a true answer is among the `k` most similar candidates. `scores[q][c]` is the
/// similarity of query `q` and candidate `c`; a wrong candidate as similar as the best true one counts as more similar, so
/// that a model to which all is alike finds nothing. 0 without queries.
pub fn recall<const N: usize>(scores: &[Vec<f32>], is_true: impl Fn(usize, usize) -> bool, ks: [usize; N]) -> [f64; N] {
    let mut found = [0usize; N];
    for (q, row) in scores.iter().enumerate() {
        let (right, wrong): (Vec<usize>, Vec<usize>) = (0..row.len()).partition(|&c| is_true(q, c));
        let Some(best) = right.iter().map(|&c| row[c]).max_by(f32::total_cmp) else { continue };
        // A score that is no number is not less than any.
        let before = wrong.iter().filter(|&&c| row[c].partial_cmp(&best) != Some(Ordering::Less)).count();
        for (found, k) in found.iter_mut().zip(ks) {
            *found += usize::from(before < k);
        }
    }
    found.map(|found| found as f64 / scores.len().max(1) as f64)
}

/// Rows for columns and columns for rows.
pub fn transposed(scores: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let columns = scores.first().map_or(0, Vec::len);
    (0..columns).map(|c| scores.iter().map(|row| row[c]).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn true_answers_are_counted_by_rank() {
        let scores = vec![
            vec![0.9, 0.1, 0.2],      // first
            vec![0.5, 0.4, 0.3],      // second
            vec![0.5, 0.4, 0.3],      // third
            vec![0.5, 0.5, 0.5],      // as good as both wrong ones: third
            vec![f32::NAN, 0.5, 0.1], // the wrong one is no number: second
        ];
        let answers = [0, 1, 2, 0, 1];
        assert_eq!(recall(&scores, |q, c| answers[q] == c, [1, 2, 3]), [0.2, 0.6, 1.0]);
        // Of several true answers the best counts; without one nothing is found.
        assert_eq!(recall(&scores[1..3], |q, c| q == 0 && c < 2, [1, 3]), [0.5, 0.5]);
        assert_eq!(recall(&[], |_, _| true, [1]), [0.0]);
    }

    #[test]
    fn transposing_exchanges_queries_and_candidates() {
        assert_eq!(transposed(&[vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0]]), [[1.0, 3.0, 5.0], [2.0, 4.0, 6.0]]);
    }
}
