//! How wrong a U-Net is about noisy latents: Ho et al. 2020, equation 14, <https://arxiv.org/abs/2006.11239>, for whatever the
//! model predicts, with the weighting of Hang et al. 2023, <https://arxiv.org/abs/2303.09556>.

use crate::{Error, Result};
use conjure_core::Tensor;
use conjure_core::sampling::{NoiseSchedule, PredictionType, SchedulerConfig, betas};

/// The noise process that a model was trained with, and how its errors are weighed.
pub struct DenoisingLoss {
    noise: NoiseSchedule,
    prediction: PredictionType,
    min_snr: f64,
}

impl DenoisingLoss {
    /// As a model's scheduler states it. Errors at noise levels with a signal-to-noise ratio over `min_snr` (gamma in Hang et
    /// al. 2023) weigh less; 0 weighs all the same.
    ///
    /// # Errors
    /// A scheduler that does not state the whole process; a `min_snr` below 0.
    pub fn new(scheduler: &SchedulerConfig, min_snr: f64) -> Result<Self> {
        if !(min_snr.is_finite() && min_snr >= 0.0) {
            return Err(Error::request(format!("min_snr is {min_snr}, not 0 or more")));
        }
        let missing = |key: &str| {
            Error::request(format!("the scheduler lacks {key}")).with_help("training needs the whole noise process")
        };
        let betas = match &scheduler.trained_betas {
            Some(betas) => betas.clone(),
            None => betas(
                scheduler.beta_schedule.ok_or_else(|| missing("beta_schedule"))?,
                scheduler.beta_start.ok_or_else(|| missing("beta_start"))?,
                scheduler.beta_end.ok_or_else(|| missing("beta_end"))?,
                scheduler.num_train_timesteps.unwrap_or(1000),
            ),
        };
        let noise = NoiseSchedule::new(&betas, scheduler.rescale_betas_zero_snr.unwrap_or(false), false)?;
        Ok(Self { noise, prediction: scheduler.prediction_type.unwrap_or(PredictionType::Epsilon), min_snr })
    }

    /// Number of training timesteps.
    pub fn levels(&self) -> usize {
        self.noise.alphas_cumprod().len()
    }

    /// `n` timesteps, spread evenly from a random `start` in 0 to 1: fewer chance clusters than independent draws
    /// (Kingma et al. 2021, *Variational Diffusion Models*, appendix I.1).
    pub fn timesteps(&self, n: usize, start: f64) -> Vec<usize> {
        let levels = self.levels();
        let place = |i: usize| ((start + i as f64 / n as f64) % 1.0) * levels as f64;
        (0..n).map(|i| (place(i) as usize).min(levels - 1)).collect()
    }

    /// The weighted error for latents `z (batch, channels, h, w)` with `noise` of their shape at whole `timesteps`, for each
    /// sample: `(batch)`. `predict` is the model: noisy latents and timesteps `(batch)` to its prediction.
    ///
    /// # Errors
    /// What `predict` says.
    pub fn errors(
        &self,
        z: &Tensor,
        noise: &Tensor,
        timesteps: &[usize],
        predict: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let n = timesteps.len();
        let column = |of: &dyn Fn(f64) -> f64| -> Result<Tensor> {
            let values: Vec<f32> = timesteps.iter().map(|&t| of(self.noise.alphas_cumprod()[t]) as f32).collect();
            Ok(Tensor::from_vec(values, (n, 1, 1, 1), z.device())?)
        };
        let (alpha, sigma) = (column(&f64::sqrt)?, column(&|a| (1.0 - a).sqrt())?); // (batch, 1, 1, 1)
        let noisy = (z.broadcast_mul(&alpha)? + noise.broadcast_mul(&sigma)?)?; // (batch, channels, h, w)
        let target = match self.prediction {
            PredictionType::Epsilon => noise.clone(),
            PredictionType::VPrediction => (noise.broadcast_mul(&alpha)? - z.broadcast_mul(&sigma)?)?,
            PredictionType::Sample => z.clone(),
        };
        let times: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let output = predict(&noisy, &Tensor::from_vec(times, n, z.device())?)?; // (batch, channels, h, w)
        let errors = (output - target)?.sqr()?.flatten_from(1)?.mean(1)?; // (batch)
        let weights: Vec<f32> = timesteps.iter().map(|&t| self.weight(t) as f32).collect();
        Ok((errors * Tensor::from_vec(weights, n, z.device())?)?)
    }

    /// Min-SNR's weight of a timestep for what the model predicts (Hang et al. 2023, section 3.4).
    fn weight(&self, timestep: usize) -> f64 {
        if self.min_snr == 0.0 {
            return 1.0;
        }
        let alpha_bar = self.noise.alphas_cumprod()[timestep];
        let snr = alpha_bar / (1.0 - alpha_bar).max(1e-12);
        let clipped = snr.min(self.min_snr);
        match self.prediction {
            PredictionType::Epsilon => clipped / snr.max(1e-12),
            PredictionType::VPrediction => clipped / (snr + 1.0),
            PredictionType::Sample => clipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conjure_core::Device;

    fn loss(prediction: &str, min_snr: f64) -> DenoisingLoss {
        let text = format!(
            r#"{{"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02,
            "num_train_timesteps": 1000, "prediction_type": "{prediction}"}}"#
        );
        DenoisingLoss::new(&SchedulerConfig::from_json(&text).unwrap(), min_snr).unwrap()
    }

    #[test]
    fn a_model_that_knows_the_answer_has_no_error() {
        let z = Tensor::new(&[[[[0.5f32, -1.0]]]], &Device::Cpu).unwrap();
        let noise = Tensor::new(&[[[[2.0f32, 0.25]]]], &Device::Cpu).unwrap();
        let error = |kind: &str, answer: &dyn Fn(&Tensor) -> Tensor| {
            let errors = loss(kind, 0.0).errors(&z, &noise, &[300], |noisy, _| Ok(answer(noisy))).unwrap();
            errors.to_vec1::<f32>().unwrap()[0]
        };
        assert_eq!(error("epsilon", &|_| noise.clone()), 0.0);
        assert_eq!(error("sample", &|_| z.clone()), 0.0);
        // z = alpha noisy - sigma v, so the error of v = 0 is the mean of v squared.
        assert!(error("v_prediction", &|noisy| noisy.zeros_like().unwrap()) > 0.1);
        assert_eq!(error("epsilon", &|noisy| noisy.zeros_like().unwrap()), (4.0 + 0.0625) / 2.0);
    }

    #[test]
    fn weights_are_those_of_the_paper() {
        for t in [5, 500] {
            let alpha_bar = loss("epsilon", 0.0).noise.alphas_cumprod()[t];
            let snr = alpha_bar / (1.0 - alpha_bar);
            assert_eq!(loss("epsilon", 0.0).weight(t), 1.0);
            assert!((loss("epsilon", 5.0).weight(t) - (5.0 / snr).min(1.0)).abs() < 1e-9);
            assert!((loss("v_prediction", 5.0).weight(t) - snr.min(5.0) / (snr + 1.0)).abs() < 1e-9);
        }
        assert!(DenoisingLoss::new(&SchedulerConfig::from_json("{}").unwrap(), 5.0).is_err());
    }

    #[test]
    fn timesteps_are_spread_evenly() {
        assert_eq!(loss("epsilon", 0.0).timesteps(4, 0.875), [875, 125, 375, 625]);
    }
}
