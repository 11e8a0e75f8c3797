//! How a U-Net is told the time: sinusoids (Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B), then a small MLP.

use super::Linear;
use crate::weights::Params;
use crate::{DType, Device, Error, Result, Tensor, ops};

/// The sinusoids: `dim / 2` frequencies from 1 down to almost `1 / 10000`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timesteps {
    /// Features of the embedding; an odd last one is zero.
    pub dim: usize,
    /// Whether the cosines come first, as in Stable Diffusion, and not the sines, as in the papers.
    pub flip_sin_to_cos: bool,
    /// Frequency `i` is `10000^(-i / (dim / 2 - downscale_freq_shift))`: 0 in Stable Diffusion, 1 in DDPM.
    pub downscale_freq_shift: f64,
}

impl Timesteps {
    /// `timesteps (n)`, which may be fractional: `(n, dim)` in f32. Computed in f32 throughout, because the rounding of
    /// `t * frequency` is visible in the result and the published models were trained with it. No gradient flows back.
    pub fn forward(&self, timesteps: &Tensor) -> Result<Tensor> {
        let half = self.dim / 2;
        let span = half as f32 - self.downscale_freq_shift as f32;
        if half > 1 && span <= 0.0 {
            return Err(Error::request(format!(
                "timestep embedding: {} features leave no frequencies with a shift of {}",
                self.dim, self.downscale_freq_shift
            )));
        }
        let log_period = -(10_000f64.ln()) as f32;
        let frequencies: Vec<f32> = (0..half).map(|i| (log_period * i as f32 / span).exp()).collect();
        let times = timesteps.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.to_vec1::<f32>()?;
        let mut rows = Vec::with_capacity(times.len() * self.dim);
        for &t in &times {
            let sines = frequencies.iter().map(|f| (t * f).sin());
            let cosines = frequencies.iter().map(|f| (t * f).cos());
            if self.flip_sin_to_cos {
                rows.extend(cosines.chain(sines));
            } else {
                rows.extend(sines.chain(cosines));
            }
            rows.resize(rows.len() + self.dim % 2, 0.0);
        }
        Ok(Tensor::from_vec(rows, (times.len(), self.dim), timesteps.device())?)
    }
}

/// Two linear layers with SiLU between: `linear_1`, `linear_2`, and `cond_proj` where a second condition is added to the
/// input (the guidance scale of Latent Consistency Models, Luo et al. 2023).
#[derive(Clone, Debug)]
pub struct TimestepEmbedding {
    linear_1: Linear,
    cond_proj: Option<Linear>,
    linear_2: Linear,
}

impl TimestepEmbedding {
    /// From `in_features` to `features`; `condition_features` are those of the second condition.
    pub fn new(
        params: &Params,
        in_features: usize,
        features: usize,
        condition_features: Option<usize>,
    ) -> Result<Self> {
        Ok(Self {
            linear_1: Linear::new(&params.sub("linear_1"), in_features, features, true)?,
            cond_proj: condition_features
                .map(|n| Linear::new(&params.sub("cond_proj"), n, in_features, false))
                .transpose()?,
            linear_2: Linear::new(&params.sub("linear_2"), features, features, true)?,
        })
    }

    /// `x (batch, in_features)`, `condition (batch, condition_features)`: `(batch, features)`. Without a condition the
    /// projection of the condition is left out.
    ///
    /// # Errors
    /// A condition for a layer that takes none.
    pub fn forward(&self, x: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        let x = match (&self.cond_proj, condition) {
            (Some(proj), Some(condition)) => (x + proj.forward(condition)?)?,
            (None, Some(_)) => {
                return Err(Error::request("a timestep condition was given to a model that takes none"));
            }
            (_, None) => x.clone(),
        };
        self.linear_2.forward(&ops::silu(&self.linear_1.forward(&x)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sinusoids(flip_sin_to_cos: bool, downscale_freq_shift: f64, dim: usize) -> Vec<f32> {
        let t = Tensor::new(&[2.5f32], &Device::Cpu).unwrap();
        let y = Timesteps { dim, flip_sin_to_cos, downscale_freq_shift }.forward(&t).unwrap();
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn sinusoids_follow_the_formula() {
        // Two frequencies: 1 and 10000^(-1/2) = 0.01 with shift 0, 1 and 10000^(-1) with shift 1.
        let close = |got: Vec<f32>, want: [f64; 5]| {
            assert_eq!(got.len(), 5);
            for (g, w) in got.iter().zip(want) {
                assert!((f64::from(*g) - w).abs() < 1e-6, "{got:?} is not {want:?}");
            }
        };
        let (a, b, c) = (2.5f64, 0.025f64, 0.00025f64);
        close(sinusoids(true, 0.0, 5), [a.cos(), b.cos(), a.sin(), b.sin(), 0.0]);
        close(sinusoids(false, 1.0, 5), [a.sin(), c.sin(), a.cos(), c.cos(), 0.0]);
    }

    #[test]
    fn a_condition_needs_a_layer_that_takes_it() {
        let x = Tensor::zeros((1, 2), DType::F32, &Device::Cpu).unwrap();
        let params = Params::seeded(1, DType::F32, &Device::Cpu);
        let without = TimestepEmbedding::new(&params.sub("a"), 2, 4, None).unwrap();
        assert!(without.forward(&x, Some(&x)).unwrap_err().to_string().contains("takes none"));
        let with = TimestepEmbedding::new(&params.sub("b"), 2, 4, Some(2)).unwrap();
        assert_eq!(with.forward(&x, Some(&x)).unwrap().dims(), [1, 4]);
    }
}
