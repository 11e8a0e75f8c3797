//! Which texts mean nearly the same.

/// A text that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Its place in the list, from 0.
    pub text: usize,
    /// [`cosine`] of its vector and the query's.
    pub score: f32,
}

/// The cosine of the angle between two vectors of equal length, -1 to 1; 0 where one of them is zero.
pub fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { (dot(a, b) / lengths) as f32 } else { 0.0 }
}

/// The `top` of `vectors` that are nearest to `query`, the nearest first; of equals, the earlier first.
pub fn most_similar(query: &[f32], vectors: &[Vec<f32>], top: usize) -> Vec<Match> {
    let score = |(text, vector): (usize, &Vec<f32>)| Match { text, score: cosine(query, vector) };
    let mut found: Vec<Match> = vectors.iter().enumerate().map(score).collect();
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.text.cmp(&b.text)));
    found.truncate(top);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_come_first() {
        let vectors = [vec![0.0, 1.0], vec![2.0, 0.0], vec![1.0, 1.0], vec![3.0, 3.0], vec![0.0, 0.0], vec![-1.0, 0.0]];
        let found: Vec<usize> = most_similar(&[1.0, 0.0], &vectors, 5).iter().map(|m| m.text).collect();
        assert_eq!(found, [1, 2, 3, 0, 4]);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5f32.sqrt()).abs() < 1e-6);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
