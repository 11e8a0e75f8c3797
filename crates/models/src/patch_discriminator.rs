//! A judge of patches: the PatchGAN of "Image-to-Image Translation with Conditional Adversarial Networks", Isola et al. 2017,
//! <https://arxiv.org/abs/1611.07004>, section 3.2.2, as "Taming Transformers", Esser et al. 2021,
//! <https://arxiv.org/abs/2012.09841>, set it against an autoencoder.
//!
//! | in the paper | here |
//! |---|---|
//! | `D`, `C64-C128-...` (Isola et al., appendix 6.1.2) | [`PatchDiscriminator::forward`] |
//! | hinge loss of both sides (Lim & Ye 2017, as in Esser et al.'s program) | [`discriminator_loss`], [`generator_loss`] |
//!
//! What differs: groups instead of the batch are normed, or nothing is, so that real and made pictures may come in batches
//! of their own; the loss is the hinge of Esser et al. instead of cross-entropy; the discriminator sees the picture alone.

use conjure_core::blocks::{Conv2d, GroupNorm};
use conjure_core::config::{self, MAX_FEATURES};
use conjure_core::ops::{self, Conv2dSpec};
use conjure_core::weights::Params;
use conjure_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The network's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PatchDiscriminatorConfig {
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels of the first layer; they double up to eight times as many.
    pub ndf: usize,
    /// Layers that halve the picture. With 1, 2, 3 a patch is 16, 34, 70 pixels high and wide.
    pub n_layers: usize,
    /// Groups of the norms after all convolutions but the first and the last; no norms without.
    pub norm_num_groups: Option<usize>,
}

impl PatchDiscriminatorConfig {
    /// Patches of 34x34, for pictures of 64x64; 32 channels at first, in groups of 4 and more.
    pub fn small_64() -> Self {
        Self { in_channels: 3, ndf: 32, n_layers: 2, norm_num_groups: Some(8) }
    }

    /// Whether a network can be built.
    ///
    /// # Errors
    /// Says which entries do not fit.
    pub fn check(&self) -> Result<()> {
        config::check_size("in_channels", self.in_channels, MAX_FEATURES)?;
        config::check_size("ndf", self.ndf, MAX_FEATURES / 8)?;
        // Deeper ones leave nothing of any picture.
        config::check_size("n_layers", self.n_layers, 12)?;
        match self.norm_num_groups {
            Some(groups) if groups == 0 || !self.ndf.is_multiple_of(groups) => {
                Err(Error::request(format!("ndf {} is not a multiple of norm_num_groups {groups}", self.ndf)))
            }
            _ => Ok(()),
        }
    }

    /// Channels after `n` of the convolutions but the last.
    fn channels(&self, n: usize) -> usize {
        self.ndf << n.min(3)
    }
}

/// Convolution, norm, leaky ReLU.
#[derive(Clone, Debug)]
struct Layer {
    conv: Conv2d,
    norm: Option<GroupNorm>,
}

/// The discriminator.
#[derive(Clone, Debug)]
pub struct PatchDiscriminator {
    layers: Vec<Layer>,
    conv_out: Conv2d,
    config: PatchDiscriminatorConfig,
}

impl PatchDiscriminator {
    /// The network below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &PatchDiscriminatorConfig) -> Result<Self> {
        config.check()?;
        let layers = (0..=config.n_layers)
            .map(|n| {
                let params = params.sub("layers").sub(n);
                let in_channels = if n == 0 { config.in_channels } else { config.channels(n - 1) };
                let out_channels = config.channels(n);
                // The first n_layers halve the picture.
                let stride = if n < config.n_layers { 2 } else { 1 };
                let norm = match config.norm_num_groups {
                    Some(groups) if n > 0 => Some(GroupNorm::new(&params.sub("norm"), groups, out_channels, 1e-5)?),
                    _ => None,
                };
                let spec = Conv2dSpec::new(stride, 1);
                Ok(Layer { conv: Conv2d::new(&params.sub("conv"), in_channels, out_channels, 4, spec)?, norm })
            })
            .collect::<Result<_>>()?;
        let last = config.channels(config.n_layers);
        let conv_out = Conv2d::new(&params.sub("conv_out"), last, 1, 4, Conv2dSpec::new(1, 1))?;
        Ok(Self { layers, conv_out, config: config.clone() })
    }

    /// The config that the network was built from.
    pub fn config(&self) -> &PatchDiscriminatorConfig {
        &self.config
    }

    /// How real each patch of `pixels (batch, in_channels, h, w)` in `[-1, 1]` looks: `(batch, 1, rows, columns)`, positive
    /// for real; `rows = h / 2^n_layers - 2`, rounded down, and columns alike.
    ///
    /// # Errors
    /// Another number of channels; pictures too small for a patch.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (_, _, h, w) = pixels.dims4()?;
        let least = 3 << self.config.n_layers;
        if h < least || w < least {
            return Err(Error::request(format!(
                "a discriminator of {} layers cannot judge {h}x{w} pixels",
                self.config.n_layers
            ))
            .with_help(format!("give it pictures of {least}x{least} or more, or fewer layers")));
        }
        let mut x = pixels.clone();
        for layer in &self.layers {
            x = layer.conv.forward(&x)?; // (batch, channels, h_n, w_n)
            if let Some(norm) = &layer.norm {
                x = norm.forward(&x)?;
            }
            x = ops::leaky_relu(&x)?;
        }
        self.conv_out.forward(&x) // (batch, 1, rows, columns)
    }
}

/// The discriminator's hinge loss, from its results for real pictures and for made ones, of any shapes:
/// `(mean(max(0, 1 - real)) + mean(max(0, 1 + made))) / 2`. Returns a scalar.
pub fn discriminator_loss(real: &Tensor, made: &Tensor) -> Result<Tensor> {
    let real = (1.0 - real)?.relu()?.mean_all()?;
    let made = (made + 1.0)?.relu()?.mean_all()?;
    Ok(((real + made)? / 2.0)?)
}

/// The other side's loss, from the discriminator's results for made pictures, of any shape: `-mean(made)`. Returns a scalar.
pub fn generator_loss(made: &Tensor) -> Result<Tensor> {
    Ok(made.mean_all()?.neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_built_is_refused() {
        let small = PatchDiscriminatorConfig::small_64();
        for (config, said) in [
            (PatchDiscriminatorConfig { ndf: 12, ..small.clone() }, "ndf 12 is not a multiple of norm_num_groups 8"),
            (PatchDiscriminatorConfig { norm_num_groups: Some(0), ..small.clone() }, "ndf 32 is not a multiple"),
            (PatchDiscriminatorConfig { n_layers: 0, ..small.clone() }, "n_layers is 0"),
            (PatchDiscriminatorConfig { n_layers: 64, ..small.clone() }, "n_layers is 64; at most 12"),
            (PatchDiscriminatorConfig { ndf: usize::MAX, ..small }, "ndf is 18446744073709551615; at most"),
        ] {
            let error = config.check().unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }
}
