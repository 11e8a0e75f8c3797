//! The autoencoder of latent diffusion: "High-Resolution Image Synthesis with Latent Diffusion Models", Rombach et al. 2022,
//! <https://arxiv.org/abs/2112.10752>, section 3.1 and appendix G; a variational autoencoder after "Auto-Encoding
//! Variational Bayes", Kingma & Welling 2013, <https://arxiv.org/abs/1312.6114>.
//!
//! | in the papers | here |
//! |---|---|
//! | picture `x`, latent `z`, reconstruction `x~` | `x`, `z`, `reconstruction` |
//! | encoder `E` / `q(z \| x)` | [`AutoencoderKl::encode`], [`DiagonalGaussian`] |
//! | decoder `D` | [`AutoencoderKl::decode`] |
//! | `mu`, `log sigma^2` | `mean`, `logvar` |
//! | `f`, downsampling factor | [`AutoencoderKlConfig::downscale`] |
//!
//! What differs: the papers' perceptual and adversarial losses need networks of their own and are not here. Variances are
//! kept within `exp(-30)` and `exp(20)`, as in the authors' code.

mod config;
mod tiled;

pub use config::AutoencoderKlConfig;
pub use tiled::Tiling;

use conjure_core::blocks::{
    Attention, AttentionConfig, Conv2d, Downsample, GroupNorm, ResnetBlock, ResnetBlockConfig, Upsample,
};
use conjure_core::ops::{self, Conv2dSpec};
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::Params;
use conjure_core::{Result, Tensor};

/// The name by which the model asks for what a file calls `stored`: files of diffusers before 0.18 name the attention's
/// projections `query`, `key`, `value` and `proj_attn`.
pub fn canonical_key(stored: &str) -> String {
    const OLD: [(&str, &str); 4] = [("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")];
    for (old, new) in OLD {
        for kind in ["weight", "bias"] {
            if let Some(path) = stored.strip_suffix(&format!(".{old}.{kind}"))
                && path.contains("mid_block.attentions.")
            {
                return format!("{path}.{new}.{kind}");
            }
        }
    }
    stored.to_owned()
}

const EPS: f64 = 1e-6;

fn conv3x3(params: &Params, in_channels: usize, out_channels: usize) -> Result<Conv2d> {
    Conv2d::new(params, in_channels, out_channels, 3, Conv2dSpec::new(1, 1))
}

/// Residual blocks below `params.resnets`; the first takes `in_channels`.
fn resnets(params: &Params, count: usize, channels: [usize; 2], groups: usize) -> Result<Vec<ResnetBlock>> {
    let [in_channels, out_channels] = channels;
    let params = params.sub("resnets");
    (0..count)
        .map(|i| {
            let from = if i == 0 { in_channels } else { out_channels };
            ResnetBlock::new(&params.sub(i), ResnetBlockConfig::new(from, out_channels, groups))
        })
        .collect()
}

/// Self-attention over the positions of the feature map, with one head, beside an identity.
#[derive(Clone, Debug)]
struct MapAttention {
    group_norm: GroupNorm,
    attention: Attention,
}

impl MapAttention {
    fn new(params: &Params, channels: usize, groups: usize) -> Result<Self> {
        let config =
            AttentionConfig { query_dim: channels, context_dim: channels, heads: 1, head_dim: channels, bias: true };
        Ok(Self {
            group_norm: GroupNorm::new(&params.sub("group_norm"), groups, channels, EPS)?,
            attention: Attention::new(params, config)?,
        })
    }

    fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let (batch, channels, h, w) = x.dims4()?;
        let tokens = self.group_norm.forward(x)?.reshape((batch, channels, h * w))?;
        let tokens = tokens.transpose(1, 2)?.contiguous()?; // (batch, h * w, channels)
        let y = self.attention.forward(&tokens, None, None, probe)?;
        let y = y.transpose(1, 2)?.reshape((batch, channels, h, w))?;
        ops::add(x, &y)
    }
}

/// The middle of encoder and decoder, at the coarsest resolution.
#[derive(Clone, Debug)]
struct MidBlock {
    resnets: Vec<ResnetBlock>,
    attention: Option<MapAttention>,
}

impl MidBlock {
    fn new(params: &Params, config: &AutoencoderKlConfig, channels: usize) -> Result<Self> {
        let groups = config.norm_num_groups;
        let attention = if config.mid_block_add_attention {
            Some(MapAttention::new(&params.sub("attentions").sub(0), channels, groups)?)
        } else {
            None
        };
        Ok(Self { resnets: resnets(params, 2, [channels; 2], groups)?, attention })
    }

    fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let mut x = self.resnets[0].forward(x, None)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x, probe)?;
        }
        self.resnets[1].forward(&x, None)
    }
}

#[derive(Clone, Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    downsampler: Option<Downsample>,
    path: String,
}

impl DownBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x, None)?;
        }
        match &self.downsampler {
            Some(downsampler) => downsampler.forward(&x),
            None => Ok(x),
        }
    }
}

#[derive(Clone, Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Upsample>,
    path: String,
}

impl UpBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x, None)?;
        }
        match &self.upsampler {
            Some(upsampler) => upsampler.forward(&x, None),
            None => Ok(x),
        }
    }
}

#[derive(Clone, Debug)]
struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(params: &Params, config: &AutoencoderKlConfig) -> Result<Self> {
        let (channels, groups) = (&config.block_out_channels, config.norm_num_groups);
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut down_blocks = Vec::new();
        for (i, &out) in channels.iter().enumerate() {
            let params = params.sub("down_blocks").sub(i);
            let downsampler = if i + 1 < channels.len() {
                Some(Downsample::new(&params.sub("downsamplers").sub(0), out, out, 0)?)
            } else {
                None
            };
            let from = channels[i.saturating_sub(1)];
            let resnets = resnets(&params, config.layers_per_block, [from, out], groups)?;
            down_blocks.push(DownBlock { resnets, downsampler, path: params.path().to_owned() });
        }
        Ok(Self {
            conv_in: conv3x3(&params.sub("conv_in"), config.in_channels, first)?,
            down_blocks,
            mid_block: MidBlock::new(&params.sub("mid_block"), config, last)?,
            conv_norm_out: GroupNorm::new(&params.sub("conv_norm_out"), groups, last, EPS)?,
            conv_out: conv3x3(&params.sub("conv_out"), last, 2 * config.latent_channels)?,
        })
    }

    fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let mut x = self.conv_in.forward(x)?; // (batch, block_out_channels[0], height, width)
        for block in &self.down_blocks {
            x = block.forward(&x)?; // half the height and width, but in the last block
            offer(probe, &block.path, Quantity::Activation, &x)?;
        }
        x = self.mid_block.forward(&x, probe)?; // (batch, block_out_channels[-1], h, w)
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?) // (batch, 2 * latent_channels, h, w)
    }
}

#[derive(Clone, Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(params: &Params, config: &AutoencoderKlConfig) -> Result<Self> {
        let groups = config.norm_num_groups;
        let channels: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let mut up_blocks = Vec::new();
        for (i, &out) in channels.iter().enumerate() {
            let params = params.sub("up_blocks").sub(i);
            let upsampler = if i + 1 < channels.len() {
                Some(Upsample::new(&params.sub("upsamplers").sub(0), out, out)?)
            } else {
                None
            };
            let from = channels[i.saturating_sub(1)];
            let resnets = resnets(&params, config.layers_per_block + 1, [from, out], groups)?;
            up_blocks.push(UpBlock { resnets, upsampler, path: params.path().to_owned() });
        }
        Ok(Self {
            conv_in: conv3x3(&params.sub("conv_in"), config.latent_channels, first)?,
            mid_block: MidBlock::new(&params.sub("mid_block"), config, first)?,
            up_blocks,
            conv_norm_out: GroupNorm::new(&params.sub("conv_norm_out"), groups, last, EPS)?,
            conv_out: conv3x3(&params.sub("conv_out"), last, config.out_channels)?,
        })
    }

    fn forward(&self, z: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let mut x = self.conv_in.forward(z)?; // (batch, block_out_channels[-1], h, w)
        x = self.mid_block.forward(&x, probe)?;
        for block in &self.up_blocks {
            x = block.forward(&x)?; // twice the height and width, but in the last block
            offer(probe, &block.path, Quantity::Activation, &x)?;
        }
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?) // (batch, out_channels, height, width)
    }
}

/// The autoencoder.
#[derive(Clone, Debug)]
pub struct AutoencoderKl {
    encoder: Encoder,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    decoder: Decoder,
    config: AutoencoderKlConfig,
}

impl AutoencoderKl {
    /// The model below `params`.
    ///
    /// # Errors
    /// A config that cannot be built, a missing or misshapen parameter.
    pub fn new(params: &Params, config: &AutoencoderKlConfig) -> Result<Self> {
        config.check()?;
        let conv1x1 = |name: &str, present: bool, channels: usize| -> Result<Option<Conv2d>> {
            present.then(|| Conv2d::new(&params.sub(name), channels, channels, 1, Conv2dSpec::new(1, 0))).transpose()
        };
        Ok(Self {
            encoder: Encoder::new(&params.sub("encoder"), config)?,
            quant_conv: conv1x1("quant_conv", config.use_quant_conv, 2 * config.latent_channels)?,
            post_quant_conv: conv1x1("post_quant_conv", config.use_post_quant_conv, config.latent_channels)?,
            decoder: Decoder::new(&params.sub("decoder"), config)?,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &AutoencoderKlConfig {
        &self.config
    }

    /// The distribution of the latents of `x (batch, in_channels, height, width)`, whose values lie in `[-1, 1]`. Sides that
    /// are no multiple of [`AutoencoderKlConfig::downscale`] are rounded down.
    pub fn encode(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<DiagonalGaussian> {
        DiagonalGaussian::new(&self.moments(x, probe)?)
    }

    /// Mean and logarithm of the variance, one after the other: `(batch, 2 * latent_channels, h, w)`.
    fn moments(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let moments = self.encoder.forward(x, probe)?;
        match &self.quant_conv {
            Some(conv) => conv.forward(&moments),
            None => Ok(moments),
        }
    }

    /// The picture of `z (batch, latent_channels, h, w)`: `(batch, out_channels, h * downscale, w * downscale)`, about in
    /// `[-1, 1]`.
    pub fn decode(&self, z: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        match &self.post_quant_conv {
            Some(conv) => self.decoder.forward(&conv.forward(z)?, probe),
            None => self.decoder.forward(z, probe),
        }
    }

    /// Latents `z (batch, latent_channels, h, w)` as the diffusion model takes them: of about unit variance.
    pub fn scale_latents(&self, z: &Tensor) -> Result<Tensor> {
        let z = match self.config.shift_factor {
            Some(shift) => (z - shift)?,
            None => z.clone(),
        };
        let z = match per_channel(&self.config.latents_mean, &z)? {
            Some(mean) => z.broadcast_sub(&mean)?,
            None => z,
        };
        let z = (z * self.config.scaling_factor)?;
        match per_channel(&self.config.latents_std, &z)? {
            Some(std) => Ok(z.broadcast_div(&std)?),
            None => Ok(z),
        }
    }

    /// The inverse of [`AutoencoderKl::scale_latents`]: what the decoder takes.
    pub fn unscale_latents(&self, z: &Tensor) -> Result<Tensor> {
        let z = match per_channel(&self.config.latents_std, z)? {
            Some(std) => z.broadcast_mul(&std)?,
            None => z.clone(),
        };
        let z = (z / self.config.scaling_factor)?;
        let z = match per_channel(&self.config.latents_mean, &z)? {
            Some(mean) => z.broadcast_add(&mean)?,
            None => z,
        };
        match self.config.shift_factor {
            Some(shift) => Ok((z + shift)?),
            None => Ok(z),
        }
    }
}

/// One number per channel as `(1, channels, 1, 1)`, of the type of `like`.
fn per_channel(values: &Option<Vec<f64>>, like: &Tensor) -> Result<Option<Tensor>> {
    let Some(values) = values else { return Ok(None) };
    let shape = (1, values.len(), 1, 1);
    Ok(Some(Tensor::from_vec(values.clone(), shape, like.device())?.to_dtype(like.dtype())?))
}

/// A normal distribution of latents, each independent of the others.
#[derive(Clone, Debug)]
pub struct DiagonalGaussian {
    /// `(batch, latent_channels, h, w)`.
    pub mean: Tensor,
    /// Logarithm of the variance, `(batch, latent_channels, h, w)`, within `[-30, 20]`.
    pub logvar: Tensor,
}

impl DiagonalGaussian {
    /// From `moments (batch, 2 * latent_channels, h, w)`: mean, then logarithm of the variance.
    pub fn new(moments: &Tensor) -> Result<Self> {
        let parts = moments.chunk(2, 1)?;
        Ok(Self { mean: parts[0].contiguous()?, logvar: parts[1].contiguous()?.clamp(-30f32, 20f32)? })
    }

    /// The likeliest latent: the mean.
    pub fn mode(&self) -> &Tensor {
        &self.mean
    }

    /// `mean + sigma * noise`, with `noise` standard normal of the mean's shape (Kingma & Welling 2013, section 2.4).
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        Ok((&self.mean + ((&self.logvar * 0.5)?.exp()? * noise)?)?)
    }

    /// Divergence from the standard normal, summed over the latents of each picture: `(batch)` (Kingma & Welling 2013,
    /// appendix B: `-1/2 sum(1 + log sigma^2 - mu^2 - sigma^2)`).
    pub fn kl(&self) -> Result<Tensor> {
        let terms = ((self.mean.sqr()? + self.logvar.exp()?)? - (&self.logvar + 1.0)?)?;
        Ok((terms.flatten_from(1)?.sum(1)? * 0.5)?)
    }
}

/// Absolute error of `reconstruction` against `x`, both `(batch, channels, height, width)`, summed over each picture and
/// averaged over the batch, a scalar: `L_rec` of Rombach et al. 2022, equation 25, without its perceptual part.
pub fn reconstruction_loss(x: &Tensor, reconstruction: &Tensor) -> Result<Tensor> {
    let batch = x.dim(0)?;
    Ok(((x - reconstruction)?.abs()?.sum_all()? / batch as f64)?)
}

/// `L_rec + kl_weight * L_reg` of Rombach et al. 2022, equation 25, a scalar; their `kl_weight` is `1e-6`. With weight 1
/// and a Laplace distribution of pixels it is the negative of the bound in Kingma & Welling 2013, equation 7.
pub fn loss(x: &Tensor, reconstruction: &Tensor, posterior: &DiagonalGaussian, kl_weight: f64) -> Result<Tensor> {
    Ok((reconstruction_loss(x, reconstruction)? + (posterior.kl()?.mean_all()? * kl_weight)?)?)
}
