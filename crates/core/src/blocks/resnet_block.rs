//! The residual block of the diffusion U-Net and of its autoencoder (Ho et al. 2020, appendix B; He et al. 2016), with
//! the parameter names of diffusers' `ResnetBlock2D`.

use super::{Conv2d, GroupNorm, Linear};
use crate::ops::{self, Conv2dSpec};
use crate::weights::Params;
use crate::{D, Error, Result, Tensor, recompute};

/// How the time embedding enters the block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeEmbeddingNorm {
    /// Added to the features before the second norm (`default`; Ho et al. 2020).
    #[default]
    Add,
    /// Scales and shifts the features after the second norm (`scale_shift`; Dhariwal & Nichol 2021, equation 8).
    ScaleShift,
}

impl TimeEmbeddingNorm {
    /// Reads diffusers' `resnet_time_scale_shift`.
    ///
    /// # Errors
    /// A name other than `default` and `scale_shift`.
    pub fn from_name(name: &str) -> Result<Self> {
        match name {
            "default" => Ok(Self::Add),
            "scale_shift" => Ok(Self::ScaleShift),
            _ => Err(Error::request(format!("unknown time embedding norm `{name}`"))
                .with_help("known are `default` and `scale_shift`")),
        }
    }
}

/// Shape of a residual block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResnetBlockConfig {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output. Where they differ from the input's, a 1x1 convolution `conv_shortcut` joins the two.
    pub out_channels: usize,
    /// Features of the time embedding; `None` for a block without time, as in an autoencoder.
    pub temb_channels: Option<usize>,
    /// Groups of both norms.
    pub groups: usize,
    /// Added to the variance in both norms.
    pub eps: f64,
    /// How the time embedding enters.
    pub time_embedding_norm: TimeEmbeddingNorm,
    /// Divides the output.
    pub output_scale_factor: f64,
}

impl ResnetBlockConfig {
    /// A block without time, with diffusers' defaults: `eps` 1e-6, output not scaled.
    pub fn new(in_channels: usize, out_channels: usize, groups: usize) -> Self {
        Self {
            in_channels,
            out_channels,
            temb_channels: None,
            groups,
            eps: 1e-6,
            time_embedding_norm: TimeEmbeddingNorm::Add,
            output_scale_factor: 1.0,
        }
    }
}

/// Norm, SiLU, convolution, twice, beside a shortcut.
#[derive(Clone, Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    config: ResnetBlockConfig,
}

impl ResnetBlock {
    /// The block below `params`.
    pub fn new(params: &Params, config: ResnetBlockConfig) -> Result<Self> {
        let ResnetBlockConfig { in_channels, out_channels, groups, eps, .. } = config;
        if config.time_embedding_norm == TimeEmbeddingNorm::ScaleShift && config.temb_channels.is_none() {
            return Err(Error::request(format!("{}: scale and shift need a time embedding", params.path())));
        }
        let same = Conv2dSpec::new(1, 1);
        let projected = match config.time_embedding_norm {
            TimeEmbeddingNorm::Add => out_channels,
            TimeEmbeddingNorm::ScaleShift => 2 * out_channels,
        };
        let conv_shortcut = if in_channels == out_channels {
            None
        } else {
            Some(Conv2d::new(&params.sub("conv_shortcut"), in_channels, out_channels, 1, Conv2dSpec::new(1, 0))?)
        };
        Ok(Self {
            norm1: GroupNorm::new(&params.sub("norm1"), groups, in_channels, eps)?,
            conv1: Conv2d::new(&params.sub("conv1"), in_channels, out_channels, 3, same)?,
            time_emb_proj: config
                .temb_channels
                .map(|features| Linear::new(&params.sub("time_emb_proj"), features, projected, true))
                .transpose()?,
            norm2: GroupNorm::new(&params.sub("norm2"), groups, out_channels, eps)?,
            conv2: Conv2d::new(&params.sub("conv2"), out_channels, out_channels, 3, same)?,
            conv_shortcut,
            config,
        })
    }

    /// `x (batch, in_channels, h, w)` and, where the block has time, `temb (batch or 1, temb_channels)`, before its SiLU:
    /// `(batch, out_channels, h, w)`.
    ///
    /// # Errors
    /// A time embedding that is missing, or that a block without time cannot take.
    pub fn forward(&self, x: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        if !recompute::active() {
            return self.compute(&recompute::entry(x)?, temb);
        }
        let block = self.clone();
        match temb {
            Some(temb) => recompute::segment(&[x, temb], move |inputs| block.compute(&inputs[0], Some(&inputs[1]))),
            None => recompute::segment(&[x], move |inputs| block.compute(&inputs[0], None)),
        }
    }

    fn compute(&self, x: &Tensor, temb: Option<&Tensor>) -> Result<Tensor> {
        let time = match (&self.time_emb_proj, temb) {
            (Some(project), Some(temb)) => {
                let time = project.forward(&ops::silu(temb)?)?; // (batch or 1, projected)
                Some(time.broadcast_as((x.dim(0)?, time.dim(1)?))?) // (batch, projected)
            }
            (None, None) => None,
            (Some(_), None) => return Err(Error::request("resnet block: it needs a time embedding, and got none")),
            (None, Some(_)) => return Err(Error::request("resnet block: it takes no time embedding, and got one")),
        };
        let h = self.conv1.forward(&self.norm1.forward_silu(x)?)?; // (batch, out_channels, h, w)
        let h = match (time, self.config.time_embedding_norm) {
            (None, _) => self.norm2.forward_silu(&h)?,
            (Some(time), TimeEmbeddingNorm::Add) => self.norm2.forward_silu(&ops::add_channels(&h, &time)?)?,
            (Some(time), TimeEmbeddingNorm::ScaleShift) => {
                let parts = time.unsqueeze(D::Minus1)?.unsqueeze(D::Minus1)?.chunk(2, 1)?; // scale and shift, each (batch, out_channels, 1, 1)
                let h = self.norm2.forward(&h)?.broadcast_mul(&(&parts[0] + 1.0)?)?.broadcast_add(&parts[1])?;
                ops::silu(&h)?
            }
        };
        let h = self.conv2.forward(&h)?;
        let y = match &self.conv_shortcut {
            Some(shortcut) => ops::add(&shortcut.forward(x)?, &h)?,
            None => ops::add(x, &h)?,
        };
        let scale = self.config.output_scale_factor;
        if scale == 1.0 { Ok(y) } else { Ok((y / scale)?) }
    }
}
