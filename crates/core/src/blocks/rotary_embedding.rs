//! The angles of rotary position embedding (Su et al. 2021, <https://arxiv.org/abs/2104.09864>, equation 15), and the ways in
//! which models stretch them to texts longer than those they were trained on first.

use crate::config::{self, MAX_FEATURES};
use crate::ops::{self, RopeLayout};
use crate::{D, Device, Error, Result, Tensor};

/// Most positions that any config may name.
pub const MAX_POSITIONS: usize = 1 << 28;

/// How the angles of a model are stretched; numbers are named as in transformers' `rope_scaling`.
#[derive(Clone, Debug, PartialEq, Default)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// Positions divided by `factor`: "Extending Context Window of Large Language Models via Position Interpolation", Chen et
    /// al. 2023.
    Linear {
        /// How much longer than in training texts may be.
        factor: f64,
    },
    /// Beyond `original` positions the base grows with the length ("NTK-aware"), so that slow angles stretch and fast ones
    /// stay; the same angles for all positions of one call.
    Dynamic {
        /// The stretch at which the base is recomputed.
        factor: f64,
        /// Positions in training.
        original: usize,
    },
    /// Llama 3.1: slow angles divided by `factor`, fast ones kept, a ramp between.
    Llama3 {
        /// Divisor of the slow angles.
        factor: f64,
        /// Turns over `original` positions below which an angle is slow.
        low_freq_factor: f64,
        /// Turns above which an angle is fast.
        high_freq_factor: f64,
        /// Positions in training.
        original: usize,
    },
    /// "YaRN: Efficient Context Window Extension of Large Language Models", Peng et al. 2023,
    /// <https://arxiv.org/abs/2309.00071>.
    Yarn {
        /// Divisor of the slow angles.
        factor: f64,
        /// Positions in training.
        original: usize,
        /// Turns above which an angle is kept.
        beta_fast: f64,
        /// Turns below which an angle is divided.
        beta_slow: f64,
        /// Factor on cosines and sines.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded to whole angles.
        truncate: bool,
    },
    /// "LongRoPE: Extending LLM Context Window Beyond 2 Million Tokens", Ding et al. 2024,
    /// <https://arxiv.org/abs/2402.13753>: a divisor per angle, one set for texts of at most `original` positions and one for
    /// longer ones.
    LongRope {
        /// Divisors for short texts, `dim / 2`.
        short_factor: Vec<f64>,
        /// Divisors for long texts, `dim / 2`.
        long_factor: Vec<f64>,
        /// Positions in training.
        original: usize,
        /// Factor on cosines and sines.
        attention_factor: f64,
    },
    /// A divisor per angle, `dim / 2`, as GGUF files store Llama 3.1's.
    Divisors(Vec<f64>),
}

/// What the angles depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Features of a head that are rotated, even; those after them stay.
    pub dim: usize,
    /// The base of the angles, 10000 in the paper.
    pub theta: f64,
    /// Which features are rotated together.
    pub layout: RopeLayout,
    /// How the angles are stretched.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// The paper's angles for `dim` features, in the layout of transformers' checkpoints.
    pub fn new(dim: usize, theta: f64) -> Self {
        Self { dim, theta, layout: RopeLayout::Halves, scaling: RopeScaling::None }
    }

    /// Whether angles can be made of this.
    ///
    /// # Errors
    /// Says which number is out of its range.
    pub fn check(&self) -> Result<()> {
        if !self.dim.is_multiple_of(2) {
            return Err(Error::request(format!("{} features of a head cannot be rotated in pairs", self.dim)));
        }
        config::check_size("the number of rotated features", self.dim, MAX_FEATURES)?;
        let above = |name: &str, value: f64, least: f64| {
            if value.is_finite() && value > least {
                return Ok(());
            }
            Err(Error::request(format!("{name} is {value}; it must be more than {least}")))
        };
        let positions = |original| config::check_size("original_max_position_embeddings", original, MAX_POSITIONS);
        let divisors = |name: &str, divisors: &[f64]| {
            if divisors.len() != self.dim / 2 {
                let (n, angles) = (divisors.len(), self.dim / 2);
                return Err(Error::request(format!("{name} has {n} entries but there are {angles} angles")));
            }
            divisors.iter().try_for_each(|divisor| above(name, *divisor, 0.0))
        };
        above("rope_theta", self.theta, 1.0)?;
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } => above("factor", *factor, 0.0),
            RopeScaling::Dynamic { factor, original } => {
                above("factor", *factor, 0.0)?;
                // At twice the features the exponent dim / (dim - 2) would be infinite.
                above("the number of rotated features", self.dim as f64, 2.0)?;
                positions(*original)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                above("factor", *factor, 0.0)?;
                above("low_freq_factor", *low_freq_factor, 0.0)?;
                above("high_freq_factor", *high_freq_factor, *low_freq_factor)?;
                positions(*original)
            }
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention_factor, .. } => {
                above("factor", *factor, 0.0)?;
                above("beta_slow", *beta_slow, 0.0)?;
                above("beta_fast", *beta_fast, 0.0)?;
                above("attention_factor", *attention_factor, 0.0)?;
                positions(*original)
            }
            RopeScaling::LongRope { short_factor, long_factor, original, attention_factor } => {
                divisors("short_factor", short_factor)?;
                divisors("long_factor", long_factor)?;
                above("attention_factor", *attention_factor, 0.0)?;
                positions(*original)
            }
            RopeScaling::Divisors(all) => divisors("the divisors of the angles", all),
        }
    }

    /// Angle per position of each pair, for a text of `length` positions: `dim / 2`.
    fn frequencies(&self, length: usize) -> Vec<f32> {
        let (dim, half) = (self.dim as f64, self.dim / 2);
        let plain = |theta: f64| (0..half).map(move |i| 1.0 / theta.powf(2.0 * i as f64 / dim));
        let frequencies: Vec<f64> = match &self.scaling {
            RopeScaling::None => plain(self.theta).collect(),
            RopeScaling::Linear { factor } => plain(self.theta).map(|f| f / factor).collect(),
            RopeScaling::Dynamic { factor, original } => {
                let stretch = factor * length.max(*original) as f64 / *original as f64 - (factor - 1.0);
                plain(self.theta * stretch.powf(dim / (dim - 2.0))).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => plain(self.theta)
                .map(|f| {
                    let turns = *original as f64 * f / std::f64::consts::TAU;
                    let fast = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - fast) * f / factor + fast * f
                })
                .collect(),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate, .. } => {
                // The angle that makes this many turns over the original positions.
                let at = |turns: f64| {
                    dim * (*original as f64 / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
                };
                let (mut low, mut high) = (at(*beta_fast), at(*beta_slow));
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if high == low { 0.001 } else { high - low };
                plain(self.theta)
                    .enumerate()
                    .map(|(i, f)| {
                        let slow = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        slow * f / factor + (1.0 - slow) * f
                    })
                    .collect()
            }
            RopeScaling::LongRope { short_factor, long_factor, original, .. } => {
                let divisors = if length > *original { long_factor } else { short_factor };
                plain(self.theta).zip(divisors).map(|(f, divisor)| f / divisor).collect()
            }
            RopeScaling::Divisors(divisors) => plain(self.theta).zip(divisors).map(|(f, d)| f / d).collect(),
        };
        frequencies.into_iter().map(|f| f as f32).collect()
    }

    fn attention_factor(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor as f32
            }
            _ => 1.0,
        }
    }
}

/// Cosines and sines for consecutive positions, made once and used by every layer.
#[derive(Clone, Debug)]
pub struct RotaryEmbedding {
    /// `(time, dim / 2)`.
    cos: Tensor,
    /// `(time, dim / 2)`.
    sin: Tensor,
    dim: usize,
    layout: RopeLayout,
}

impl RotaryEmbedding {
    /// For the positions from `first` to `first + time - 1` of a text of `length` positions, which matters only to angles
    /// that depend on it ([`RopeScaling::Dynamic`], [`RopeScaling::LongRope`]).
    pub fn new(config: &RopeConfig, first: usize, time: usize, length: usize, device: &Device) -> Result<Self> {
        let (frequencies, factor) = (config.frequencies(length), config.attention_factor());
        // The product is rounded to f32, as in transformers: at large positions that is part of the model.
        let angles = (first..first + time).flat_map(|at| frequencies.iter().map(move |f| f64::from(at as f32 * f)));
        let (cos, sin): (Vec<f32>, Vec<f32>) =
            angles.map(|angle| (angle.cos() as f32 * factor, angle.sin() as f32 * factor)).unzip();
        let shape = (time, config.dim / 2);
        Ok(Self {
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
            dim: config.dim,
            layout: config.layout,
        })
    }

    /// `x (batch, heads, time, head_dim)` with the first `dim` features of each head rotated; shape unchanged.
    pub fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let head_dim = x.dim(D::Minus1)?;
        let (cos, sin) = (self.cos.to_dtype(x.dtype())?, self.sin.to_dtype(x.dtype())?);
        if head_dim == self.dim {
            return ops::rope(x, &cos, &sin, self.layout);
        }
        if head_dim < self.dim {
            return Err(Error::request(format!("{} of a head's {head_dim} features cannot be rotated", self.dim)));
        }
        let rotated = ops::rope(&x.narrow(D::Minus1, 0, self.dim)?, &cos, &sin, self.layout)?;
        let rest = x.narrow(D::Minus1, self.dim, head_dim - self.dim)?;
        Ok(Tensor::cat(&[&rotated, &rest.contiguous()?], D::Minus1)?) // (batch, heads, time, head_dim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_start_gives_the_same_angles() {
        let config = RopeConfig::new(8, 10000.0);
        let all = RotaryEmbedding::new(&config, 0, 9, 9, &Device::Cpu).unwrap();
        let tail = RotaryEmbedding::new(&config, 5, 4, 9, &Device::Cpu).unwrap();
        let values = |t: &Tensor| t.to_vec2::<f32>().unwrap();
        assert_eq!(values(&all.cos)[5..], values(&tail.cos)[..]);
        assert_eq!(values(&all.sin)[5..], values(&tail.sin)[..]);
        assert_eq!(values(&all.cos)[3][0], 3f32.cos());
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        let refused = |config: RopeConfig| config.check().unwrap_err().to_string();
        let with = |scaling| RopeConfig { scaling, ..RopeConfig::new(8, 1e4) };
        assert_eq!(refused(RopeConfig::new(7, 1e4)), "7 features of a head cannot be rotated in pairs");
        assert_eq!(refused(RopeConfig::new(8, f64::NAN)), "rope_theta is NaN; it must be more than 1");
        assert_eq!(refused(with(RopeScaling::Linear { factor: 0.0 })), "factor is 0; it must be more than 0");
        let divisors = RopeScaling::Divisors(vec![1.0; 3]);
        assert_eq!(refused(with(divisors)), "the divisors of the angles has 3 entries but there are 4 angles");
        let dynamic = RopeScaling::Dynamic { factor: 2.0, original: 0 };
        assert_eq!(refused(with(dynamic)), "original_max_position_embeddings is 0");
    }
}
