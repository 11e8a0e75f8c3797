//! The choice of one token.

use super::largest;
use crate::rng::Generator;

/// The id of the largest logit, the lowest of equal ones; `None` where all are minus infinity or one is no number.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let mut best = None;
    let mut at = f32::NEG_INFINITY;
    for (id, &l) in logits.iter().enumerate() {
        if l.is_nan() {
            return None;
        }
        if l > at {
            (at, best) = (l, Some(id as u32));
        }
    }
    best
}

/// A number uniform on `[0, 1)` with 48 bits: 24, which one f32 holds, would make tokens of probability `1e-7` impossible.
pub fn uniform(generator: &mut dyn Generator) -> f64 {
    let drawn = generator.uniform(2);
    f64::from(drawn[0]) + f64::from(drawn[1]) / f64::from(1 << 24)
}

/// The id at which the cumulative softmax of `logits`, in the order of ids, first exceeds `u`, uniform on `[0, 1)`: a draw
/// from the softmax. `None` where all are minus infinity or one is no number.
pub fn draw(logits: &[f32], u: f64) -> Option<u32> {
    let max = f64::from(largest(logits));
    let weight = |l: f32| (f64::from(l) - max).exp();
    let total: f64 = logits.iter().map(|&l| weight(l)).sum();
    if !(total.is_finite() && max.is_finite()) {
        return None;
    }
    let mut left = u * total;
    let mut last = None;
    for (id, &l) in logits.iter().enumerate() {
        let w = weight(l);
        if w > 0.0 {
            last = Some(id as u32);
            if left < w {
                break;
            }
            left -= w;
        }
    }
    // Rounding may leave a rest behind the last token: it is the last one's.
    last
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::keyed;

    #[test]
    fn the_largest_and_of_equals_the_first() {
        assert_eq!(argmax(&[0.0, 2.0, 2.0, 1.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY, -9.0]), Some(1));
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), None);
        assert_eq!(argmax(&[0.0, f32::NAN]), None);
        assert_eq!(argmax(&[]), None);
    }

    #[test]
    fn a_draw_inverts_the_cumulative_distribution() {
        let logits: Vec<f32> = [0.25_f32, 0.0, 0.5, 0.25].iter().map(|p| p.ln()).collect();
        let ids = [0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.999_999].map(|u| draw(&logits, u).unwrap());
        assert_eq!(ids, [0, 0, 2, 2, 3, 3]);
        assert_eq!(draw(&[f32::NEG_INFINITY; 2], 0.5), None);
        assert_eq!(draw(&[0.0, f32::NAN], 0.5), None);
        assert_eq!(draw(&[f32::INFINITY, 0.0], 0.5), None);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let p = [0.1_f32, 0.2, 0.3, 0.4];
        let logits = p.map(f32::ln);
        let ids = |seed| {
            let mut generator = keyed(seed, "text");
            (0..20_000).map(|_| draw(&logits, uniform(&mut generator)).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(ids(1), ids(1));
        assert_ne!(ids(1), ids(2));
        for (id, p) in p.iter().enumerate() {
            let share = ids(3).iter().filter(|&&drawn| drawn == id as u32).count() as f32 / 20_000.0;
            // Four standard deviations of a share of 20,000.
            assert!((share - p).abs() < 4.0 * (p * (1.0 - p) / 20_000.0).sqrt(), "{id}: {share}");
        }
    }
}
