//! Kernel inception distance: how far two sets of pictures lie apart in a network's features.

use crate::{Error, Result};

/// An estimate with its uncertainty.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct KernelDistance {
    /// Squared maximum mean discrepancy; unbiased, so it may be slightly negative for equal distributions.
    pub value: f64,
    /// Standard deviation of the estimate over subsets.
    pub deviation: f64,
}

/// Subsets over which an estimate is averaged.
const SUBSETS: usize = 50;

/// The kernel inception distance of "Demystifying MMD GANs", Binkowski et al. 2018, <https://arxiv.org/abs/1801.01401>,
/// section 4: the unbiased estimator of the squared maximum mean discrepancy with the kernel `(x . y / d + 1)^3` on features,
/// averaged over subsets of `subset` rows of each set.
///
/// `seed` chooses the subsets. The figure is comparable only between sets of features of one network.
///
/// # Errors
/// Fewer than `subset` rows in a set, `subset` below 2, features of different lengths.
pub fn kernel_distance(a: &[Vec<f32>], b: &[Vec<f32>], subset: usize, seed: u64) -> Result<KernelDistance> {
    if subset < 2 || a.len() < subset || b.len() < subset {
        return Err(Error::request(format!(
            "sets of {} and {} pictures are too few for subsets of {subset}",
            a.len(),
            b.len()
        )));
    }
    let length = a[0].len();
    if length == 0 || a.iter().chain(b).any(|row| row.len() != length) {
        return Err(Error::failure("features differ in length"));
    }
    let mut order_a = crate::train::order::Order::new(seed, a.len());
    let mut order_b = crate::train::order::Order::new(seed ^ 1, b.len());
    let values: Vec<f64> = (0..SUBSETS as u64)
        .map(|i| {
            let chosen = |order: &mut crate::train::order::Order, all: usize| order.take(i * all as u64, subset);
            discrepancy(a, &chosen(&mut order_a, a.len()), b, &chosen(&mut order_b, b.len()))
        })
        .collect();
    let mean = values.iter().sum::<f64>() / SUBSETS as f64;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (SUBSETS - 1) as f64;
    Ok(KernelDistance { value: mean, deviation: variance.sqrt() })
}

/// The unbiased estimator on the chosen rows (Binkowski et al. 2018, equation 4).
fn discrepancy(a: &[Vec<f32>], rows_a: &[usize], b: &[Vec<f32>], rows_b: &[usize]) -> f64 {
    let kernel = |x: &[f32], y: &[f32]| {
        let product: f64 = x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
        (product / x.len() as f64 + 1.0).powi(3)
    };
    let within = |set: &[Vec<f32>], rows: &[usize]| {
        let mut sum = 0.0;
        for (i, &row) in rows.iter().enumerate() {
            for &other in &rows[..i] {
                sum += 2.0 * kernel(&set[row], &set[other]);
            }
        }
        sum / (rows.len() * (rows.len() - 1)) as f64
    };
    let mut across = 0.0;
    for &row in rows_a {
        for &other in rows_b {
            across += kernel(&a[row], &b[other]);
        }
    }
    within(a, rows_a) + within(b, rows_b) - 2.0 * across / (rows_a.len() * rows_b.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::rng::{self, Generator};

    fn normal(name: &str, rows: usize, shift: f32) -> Vec<Vec<f32>> {
        let values = rng::keyed(4, name).normal(rows * 8);
        values.chunks_exact(8).map(|row| row.iter().map(|v| v + shift).collect()).collect()
    }

    /// With one feature, rows 0 and 2 against 1 and 1: within the first set k(0, 2) = 1; within the second k(1, 1) = 8; across
    /// k(0, 1) = 1 twice and k(2, 1) = 27 twice, on average 14.
    #[test]
    fn the_estimator_is_that_of_the_paper() {
        let value = discrepancy(&[vec![0.0], vec![2.0]], &[0, 1], &[vec![1.0], vec![1.0]], &[0, 1]);
        assert!((value - (1.0 + 8.0 - 28.0)).abs() < 1e-12, "{value}");
    }

    #[test]
    fn equal_distributions_are_near_and_others_far() {
        let (a, b, far) = (normal("a", 400, 0.0), normal("b", 400, 0.0), normal("c", 400, 1.0));
        let same = kernel_distance(&a, &b, 100, 1).unwrap();
        assert!(same.value.abs() < 3.0 * same.deviation, "{same:?}");
        let apart = kernel_distance(&a, &far, 100, 1).unwrap();
        assert!(apart.value > 5.0 * apart.deviation && apart.value > 1.0, "{apart:?}");
        assert_eq!(apart, kernel_distance(&a, &far, 100, 1).unwrap());
    }

    #[test]
    fn too_few_pictures_are_refused() {
        let a = normal("a", 5, 0.0);
        assert!(kernel_distance(&a, &a, 6, 1).unwrap_err().to_string().contains("5 and 5 pictures are too few"));
    }
}
