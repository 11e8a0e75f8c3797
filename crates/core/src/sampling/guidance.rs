//! Classifier-free guidance: the prompt's prediction is pushed away from the prediction without it.

use crate::{Error, Result, Tensor};

/// Classifier-free guidance (Ho and Salimans 2022) in the space of the model's output, with the rescale of
/// Lin et al. 2023 (Common Diffusion Noise Schedules and Sample Steps are Flawed, section 3.4).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guidance {
    scale: f64,
    rescale: f64,
}

impl Guidance {
    /// `scale` as diffusers counts it: 1 is no guidance. `rescale` in `[0, 1]`: 0 leaves the prediction as it is, 1 gives it
    /// the standard deviation of the prompt's prediction.
    ///
    /// # Errors
    /// A scale that is negative or not finite; a rescale outside `[0, 1]`.
    pub fn new(scale: f64, rescale: f64) -> Result<Self> {
        if !scale.is_finite() || scale < 0.0 {
            return Err(Error::request(format!("guidance {scale} is not a number from 0 on"))
                .with_help("1 turns guidance off; 7.5 is usual"));
        }
        if !(0.0..=1.0).contains(&rescale) {
            return Err(Error::request(format!("guidance rescale {rescale} is outside 0 to 1"))
                .with_help("0 turns it off; 0.7 is usual"));
        }
        Ok(Self { scale, rescale })
    }

    /// Whether the model must also be run without the prompt. Up to scale 1 it is run once, with the prompt.
    pub fn needs_unconditional(self) -> bool {
        self.scale > 1.0
    }

    /// The guided model output, of the shape of `conditional (batch, ...)`. Where [`Self::needs_unconditional`] says no, the
    /// conditional output is the answer and this need not be called.
    ///
    /// # Errors
    /// Shapes that differ.
    pub fn combine(self, unconditional: &Tensor, conditional: &Tensor) -> Result<Tensor> {
        let guided = (unconditional + ((conditional - unconditional)? * self.scale)?)?;
        if self.rescale == 0.0 {
            return Ok(guided);
        }
        let ratio = standard_deviation(conditional)?.div(&standard_deviation(&guided)?)?;
        let factor = ratio.affine(self.rescale, 1.0 - self.rescale)?;
        Ok(guided.broadcast_mul(&factor)?)
    }
}

/// The unbiased standard deviation of each sample, `(batch, 1, ...)`.
fn standard_deviation(x: &Tensor) -> Result<Tensor> {
    let mut shape = vec![1; x.rank()];
    shape[0] = x.dim(0)?;
    Ok(x.flatten_from(1)?.var_keepdim(1)?.sqrt()?.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn one_run_up_to_scale_one_and_two_above() {
        assert!(!Guidance::new(0.0, 0.0).unwrap().needs_unconditional());
        assert!(!Guidance::new(1.0, 0.0).unwrap().needs_unconditional());
        assert!(Guidance::new(1.01, 0.0).unwrap().needs_unconditional());
    }

    #[test]
    fn refuses_what_is_out_of_range() {
        assert!(Guidance::new(-1.0, 0.0).is_err());
        assert!(Guidance::new(f64::NAN, 0.0).is_err());
        assert!(Guidance::new(7.5, 1.5).is_err());
    }

    #[test]
    fn guides_and_rescales_each_sample_by_itself() {
        let tensor = |v: &[f32]| Tensor::from_slice(v, (2, 3), &Device::Cpu).unwrap();
        let (u, c) = (tensor(&[0., 1., 2., 0., 0., 3.]), tensor(&[1., 1., 4., 0., 2., 1.]));
        let plain = Guidance::new(3.0, 0.0).unwrap().combine(&u, &c).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(plain, [[3., 1., 8.], [0., 6., -3.]]);
        // std of c: sqrt(3), 1; of the guided: sqrt(13), sqrt(21).
        let full = Guidance::new(3.0, 1.0).unwrap().combine(&u, &c).unwrap().to_vec2::<f32>().unwrap();
        for (row, ratio) in [(0, (3f32 / 13.0).sqrt()), (1, (1f32 / 21.0).sqrt())] {
            for (full, plain) in full[row].iter().zip(&plain[row]) {
                assert!((full - plain * ratio).abs() < 1e-6, "{full} != {plain} * {ratio}");
            }
        }
        let half = Guidance::new(3.0, 0.5).unwrap().combine(&u, &c).unwrap().to_vec2::<f32>().unwrap();
        assert!((half[0][2] - 0.5 * (plain[0][2] + full[0][2])).abs() < 1e-5);
    }
}
