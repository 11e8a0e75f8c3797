//! Bigger pictures: the generator of "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", Wang et al. 2018,
//! <https://arxiv.org/abs/1809.00219>, section 3.1, with the sub-pixel convolution of Shi et al. 2016,
//! <https://arxiv.org/abs/1609.05158>.
//!
//! | in the paper | here |
//! |---|---|
//! | RRDB, figure 4 right | `ResidualInResidual` |
//! | dense block, figure 4 right | `DenseBlock` |
//! | `beta`, residual scaling | [`BETA`] |
//! | `PS`, Shi et al. equation 4 | [`ops::pixel_shuffle`] |
//! | `L_1`, equation 3 | [`loss`] |
//!
//! What differs: the network predicts what is missing in the bicubically enlarged picture instead of the whole of it, so
//! that a small one spends nothing on what is known; pictures grow by sub-pixel convolutions instead of by copying pixels.
//! Names of layers are those of the authors' program.

use conjure_core::blocks::Conv2d;
use conjure_core::config::{self, MAX_FEATURES, MAX_LAYERS};
use conjure_core::ops::{self, Conv2dSpec};
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::Params;
use conjure_core::{Error, Result, Tensor};
use serde::{Deserialize, Serialize};

/// The network's `config.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SuperResolutionConfig {
    /// `super_resolution`.
    pub model_type: String,
    /// Channels of a picture.
    pub in_channels: usize,
    /// Channels between the blocks.
    pub num_feat: usize,
    /// Channels that each layer of a dense block adds.
    pub num_grow_ch: usize,
    /// Residual-in-residual blocks.
    pub num_block: usize,
    /// How many times higher and wider pictures become: 2 or 4.
    pub scale: usize,
}

impl SuperResolutionConfig {
    /// Small enough to travel with a model: 0.6 million parameters.
    pub fn small(scale: usize) -> Self {
        Self {
            model_type: "super_resolution".to_owned(),
            in_channels: 3,
            num_feat: 32,
            num_grow_ch: 16,
            num_block: 3,
            scale,
        }
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Not JSON, unknown or missing entries, a value of the wrong type, or a network that cannot be built.
    pub fn from_json(text: &str) -> Result<Self> {
        let config: Self =
            serde_json::from_str(text).map_err(|e| Error::request(format!("not a super-resolution config: {e}")))?;
        config.check()?;
        Ok(config)
    }

    /// Whether a network can be built.
    ///
    /// # Errors
    /// Says which entries do not fit.
    pub fn check(&self) -> Result<()> {
        if self.model_type != "super_resolution" {
            return Err(Error::request(format!("model_type is \"{}\", not \"super_resolution\"", self.model_type)));
        }
        for (name, value, most) in [
            ("in_channels", self.in_channels, MAX_FEATURES),
            ("num_feat", self.num_feat, MAX_FEATURES),
            ("num_grow_ch", self.num_grow_ch, MAX_FEATURES),
            ("num_block", self.num_block, MAX_LAYERS),
        ] {
            config::check_size(name, value, most)?;
        }
        if ![2, 4].contains(&self.scale) {
            return Err(Error::request(format!("scale is {}, not 2 or 4", self.scale)));
        }
        Ok(())
    }
}

/// Factor on what a dense block and a block of blocks add (ESRGAN, section 3.1).
pub const BETA: f64 = 0.2;

fn conv(params: &Params, in_channels: usize, out_channels: usize) -> Result<Conv2d> {
    Conv2d::new(params, in_channels, out_channels, 3, Conv2dSpec::new(1, 1))
}

/// `x + beta y`.
fn residual(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    ops::add(x, &(y * BETA)?)
}

/// Five convolutions, each of which sees the block's input and what all before it made.
#[derive(Clone, Debug)]
struct DenseBlock {
    convs: Vec<Conv2d>,
}

impl DenseBlock {
    fn new(params: &Params, config: &SuperResolutionConfig) -> Result<Self> {
        let SuperResolutionConfig { num_feat, num_grow_ch, .. } = *config;
        let convs = (0..5)
            .map(|n| {
                let out_channels = if n == 4 { num_feat } else { num_grow_ch };
                conv(&params.sub(format!("conv{}", n + 1)), num_feat + n * num_grow_ch, out_channels)
            })
            .collect::<Result<_>>()?;
        Ok(Self { convs })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut all = x.clone(); // (batch, num_feat + n * num_grow_ch, h, w)
        let mut y = x.clone();
        for (n, conv) in self.convs.iter().enumerate() {
            y = conv.forward(&all)?;
            if n + 1 < self.convs.len() {
                y = ops::leaky_relu(&y)?; // (batch, num_grow_ch, h, w)
                all = Tensor::cat(&[&all, &y], 1)?;
            }
        }
        residual(x, &y) // (batch, num_feat, h, w)
    }
}

/// Three dense blocks with a residual connection around them.
#[derive(Clone, Debug)]
struct ResidualInResidual {
    rdb1: DenseBlock,
    rdb2: DenseBlock,
    rdb3: DenseBlock,
    path: String,
}

impl ResidualInResidual {
    fn new(params: &Params, config: &SuperResolutionConfig) -> Result<Self> {
        Ok(Self {
            rdb1: DenseBlock::new(&params.sub("rdb1"), config)?,
            rdb2: DenseBlock::new(&params.sub("rdb2"), config)?,
            rdb3: DenseBlock::new(&params.sub("rdb3"), config)?,
            path: params.path().to_owned(),
        })
    }

    fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let y = self.rdb3.forward(&self.rdb2.forward(&self.rdb1.forward(x)?)?)?;
        let y = residual(x, &y)?;
        offer(probe, &self.path, Quantity::Activation, &y)?;
        Ok(y) // (batch, num_feat, h, w)
    }
}

/// The network that makes pictures bigger.
#[derive(Clone, Debug)]
pub struct SuperResolution {
    conv_first: Conv2d,
    body: Vec<ResidualInResidual>,
    conv_body: Conv2d,
    conv_up: Vec<Conv2d>,
    conv_hr: Conv2d,
    conv_last: Conv2d,
    config: SuperResolutionConfig,
}

impl SuperResolution {
    /// The network below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &SuperResolutionConfig) -> Result<Self> {
        config.check()?;
        let SuperResolutionConfig { in_channels, num_feat, num_block, scale, .. } = *config;
        let body = params.sub("body");
        Ok(Self {
            conv_first: conv(&params.sub("conv_first"), in_channels, num_feat)?,
            body: (0..num_block).map(|n| ResidualInResidual::new(&body.sub(n), config)).collect::<Result<_>>()?,
            conv_body: conv(&params.sub("conv_body"), num_feat, num_feat)?,
            conv_up: (1..=scale.ilog2())
                .map(|n| conv(&params.sub(format!("conv_up{n}")), num_feat, 4 * num_feat))
                .collect::<Result<_>>()?,
            conv_hr: conv(&params.sub("conv_hr"), num_feat, num_feat)?,
            conv_last: conv(&params.sub("conv_last"), num_feat, in_channels)?,
            config: config.clone(),
        })
    }

    /// The config that the network was built from.
    pub fn config(&self) -> &SuperResolutionConfig {
        &self.config
    }

    /// `pixels (batch, in_channels, h, w)` in `[-1, 1]`: `(batch, in_channels, scale * h, scale * w)`, which may overshoot
    /// that range a little. The probe sees the blocks at `body.N`.
    ///
    /// # Errors
    /// Another number of channels, no pixels.
    pub fn forward(&self, pixels: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let (_, _, h, w) = pixels.dims4()?;
        // 1. What is known without the network.
        let plain = ops::resize_bicubic(pixels, self.config.scale * h, self.config.scale * w)?;
        // 2. What the small picture shows.
        let first = self.conv_first.forward(pixels)?; // (batch, num_feat, h, w)
        let mut x = first.clone();
        for block in &self.body {
            x = block.forward(&x, probe)?;
        }
        x = ops::add(&first, &self.conv_body.forward(&x)?)?;
        // 3. Twice as large, once or twice.
        for conv in &self.conv_up {
            let shared = conv.forward(&x)?; // (batch, 4 * num_feat, h_n, w_n)
            x = ops::leaky_relu(&ops::pixel_shuffle(&shared, 2)?)?; // (batch, num_feat, 2 * h_n, 2 * w_n)
        }
        // 4. What is missing, as a picture.
        let missing = self.conv_last.forward(&ops::leaky_relu(&self.conv_hr.forward(&x)?)?)?; // (batch, in_channels, scale * h, scale * w)
        ops::add(&plain, &missing)
    }
}

/// Mean absolute difference of what the network made and what it should have made, of equal shapes (equation 3, its last
/// term). Returns a scalar.
///
/// # Errors
/// The shapes differ.
pub fn loss(made: &Tensor, target: &Tensor) -> Result<Tensor> {
    Ok((made - target)?.abs()?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configs_are_written_and_read() {
        for scale in [2, 4] {
            let config = SuperResolutionConfig::small(scale);
            let text = serde_json::to_string(&config).unwrap();
            assert_eq!(SuperResolutionConfig::from_json(&text).unwrap(), config);
        }
    }

    #[test]
    fn what_cannot_be_built_is_refused() {
        let text = serde_json::to_string(&SuperResolutionConfig::small(2)).unwrap();
        for (from, to, said) in [
            ("\"scale\":2", "\"scale\":3", "scale is 3, not 2 or 4"),
            ("\"num_block\":3", "\"num_block\":0", "num_block is 0"),
            ("\"num_block\":3", "\"num_block\":1000000", "num_block is 1000000; at most 128"),
            ("num_feat", "features", "not a super-resolution config: unknown field `features`"),
            ("\"super_resolution\"", "\"clip\"", "model_type is \"clip\""),
        ] {
            let spoilt = text.replace(from, to);
            assert_ne!(spoilt, text);
            let error = SuperResolutionConfig::from_json(&spoilt).unwrap_err().to_string();
            assert!(error.starts_with(said), "{error}");
        }
    }

    #[test]
    fn parameters_of_the_presets_are_counted() {
        for (scale, parameters) in [(2, 597_251), (4, 634_243)] {
            let params = Params::outline();
            SuperResolution::new(&params, &SuperResolutionConfig::small(scale)).unwrap();
            let count: usize = params.asked().iter().map(|p| p.shape.elem_count()).sum();
            assert_eq!(count, parameters);
        }
    }
}
