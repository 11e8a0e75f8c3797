//! The quantile function of the symmetric beta distribution, which spaces the noise levels of the `beta` schedule.

/// The `x` in `[0, 1]` below which a Beta(`a`, `a`) variable falls with probability `p`; absolute error below 1e-14.
pub(super) fn quantile(p: f64, a: f64) -> f64 {
    if p <= 0.0 || p >= 1.0 {
        return p.clamp(0.0, 1.0);
    }
    if p > 0.5 {
        return 1.0 - quantile(1.0 - p, a);
    }
    let (mut low, mut high) = (0.0, 0.5);
    // Bisection: the distribution function is monotone, and this runs once for each sampling step.
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if cumulative_below_half(middle, a) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

/// P(X < x) for x in `[0, 1/2]`, from the series of the incomplete beta integral,
/// `B_x(a, a) = x^a * sum_n (1 - a)_n / (n! (a + n)) x^n` (DLMF 8.17.7), normalised by its own value at 1/2.
fn cumulative_below_half(x: f64, a: f64) -> f64 {
    let incomplete = |x: f64| {
        let (mut coefficient, mut sum) = (1.0, 0.0);
        for n in 0..200 {
            let n = f64::from(n);
            let term = coefficient / (a + n);
            sum += term;
            if term.abs() < 1e-17 * sum.abs() {
                break;
            }
            coefficient *= (1.0 - a + n) / (n + 1.0) * x;
        }
        x.powf(a) * sum
    };
    0.5 * incomplete(x) / incomplete(0.5)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    /// Recorded from `scipy.stats.beta.ppf(p, 0.6, 0.6)`.
    #[test]
    fn quantiles_equal_scipy() {
        for (p, expected) in SCIPY {
            assert!((quantile(p, 0.6) - expected).abs() < 1e-12, "{p}: {} != {expected}", quantile(p, 0.6));
        }
        // Uniform: the identity.
        assert!((quantile(0.3, 1.0) - 0.3).abs() < 1e-14);
        assert_eq!((quantile(0.0, 0.6), quantile(1.0, 0.6)), (0.0, 1.0));
    }

    const SCIPY: [(f64, f64); 5] = [
        (0.001, 1.855873851745199e-05),
        (0.1, 0.03958440558878085),
        (0.25, 0.17568037865269498),
        (0.6, 0.6372990092467856),
        (0.95, 0.9874455431263885),
    ];
}
