//! A stack of transformer blocks over the pixels of a feature map, as latent diffusion puts it into its U-Net (Rombach et
//! al. 2022, appendix E.2.1): self-attention, cross-attention to the prompt, a gated feed-forward layer.

use super::{Attention, AttentionConfig, Conv2d, GroupNorm, LayerNorm, Linear};
use crate::ops::{self, Conv2dSpec};
use crate::probe::{NoProbe, Probe};
use crate::weights::Params;
use crate::{Result, Tensor, recompute};

/// The feed-forward layer with GEGLU (Shazeer 2020): `net.0.proj`, `net.2`. (`net.1` is dropout.)
#[derive(Clone, Debug)]
pub struct FeedForward {
    proj: Linear,
    out: Linear,
}

impl FeedForward {
    /// From `features` to four times as many, and back.
    pub fn new(params: &Params, features: usize) -> Result<Self> {
        let net = params.sub("net");
        Ok(Self {
            proj: Linear::new(&net.sub(0).sub("proj"), features, 8 * features, true)?,
            out: Linear::new(&net.sub(2), 4 * features, features, true)?,
        })
    }

    /// `x (..., features)`, shape unchanged.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.out.forward(&ops::geglu(&self.proj.forward(x)?)?)
    }
}

/// Shape of a [`Transformer2d`] and of its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transformer2dConfig {
    /// Channels of the feature map.
    pub channels: usize,
    /// Attention heads.
    pub heads: usize,
    /// Features per head; `heads * head_dim` is the width of the blocks.
    pub head_dim: usize,
    /// Blocks.
    pub layers: usize,
    /// Features of the prompt.
    pub cross_attention_dim: usize,
    /// Groups of the GroupNorm before the blocks.
    pub norm_groups: usize,
    /// Whether the projections around the blocks are stored as linear layers and not as 1x1 convolutions.
    pub use_linear_projection: bool,
    /// Whether `attn1` attends to the prompt as well.
    pub only_cross_attention: bool,
}

/// `x + attn1(norm1(x))`, then `attn2` to the prompt, then the feed-forward layer.
#[derive(Clone, Debug)]
pub struct BasicTransformerBlock {
    norm1: LayerNorm,
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    ff: FeedForward,
    only_cross_attention: bool,
}

impl BasicTransformerBlock {
    /// The block below `params`.
    pub fn new(params: &Params, config: Transformer2dConfig) -> Result<Self> {
        let width = config.heads * config.head_dim;
        let attention = |name, context_dim| {
            let config = AttentionConfig {
                query_dim: width,
                context_dim,
                heads: config.heads,
                head_dim: config.head_dim,
                bias: false,
            };
            Attention::new(&params.sub(name), config)
        };
        let norm = |name| LayerNorm::new(&params.sub(name), width, 1e-5);
        Ok(Self {
            norm1: norm("norm1")?,
            attn1: attention("attn1", if config.only_cross_attention { config.cross_attention_dim } else { width })?,
            norm2: norm("norm2")?,
            attn2: attention("attn2", config.cross_attention_dim)?,
            norm3: norm("norm3")?,
            ff: FeedForward::new(&params.sub("ff"), width)?,
            only_cross_attention: config.only_cross_attention,
        })
    }

    /// `x (batch, pixels, width)`, `context (batch, tokens, cross_attention_dim)`, `mask` additive and broadcastable to
    /// `(batch, heads, pixels, tokens)`, for `attn2` only: shape of `x`.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        if !recompute::active() {
            return self.compute(&recompute::entry(x)?, context, mask, probe);
        }
        let block = self.clone();
        let inputs: Vec<&Tensor> = [Some(x), Some(context), mask].into_iter().flatten().collect();
        recompute::segment(&inputs, move |inputs| block.compute(&inputs[0], &inputs[1], inputs.get(2), &mut NoProbe))
    }

    fn compute(&self, x: &Tensor, context: &Tensor, mask: Option<&Tensor>, probe: &mut dyn Probe) -> Result<Tensor> {
        let own_context = self.only_cross_attention.then_some(context);
        let x = ops::add(x, &self.attn1.forward(&self.norm1.forward(x)?, own_context, None, probe)?)?;
        let x = ops::add(&x, &self.attn2.forward(&self.norm2.forward(&x)?, Some(context), mask, probe)?)?;
        ops::add(&x, &self.ff.forward(&self.norm3.forward(&x)?)?)
    }
}

/// A projection that checkpoints store as a linear layer or as a 1x1 convolution; the same numbers either way.
#[derive(Clone, Debug)]
enum Projection {
    Linear(Linear),
    Conv(Conv2d),
}

impl Projection {
    fn new(params: &Params, from: usize, to: usize, linear: bool) -> Result<Self> {
        Ok(if linear {
            Self::Linear(Linear::new(params, from, to, true)?)
        } else {
            Self::Conv(Conv2d::new(params, from, to, 1, Conv2dSpec::new(1, 0))?)
        })
    }
}

/// The blocks between two projections, around them a residual connection.
#[derive(Clone, Debug)]
pub struct Transformer2d {
    norm: GroupNorm,
    proj_in: Projection,
    transformer_blocks: Vec<BasicTransformerBlock>,
    proj_out: Projection,
}

impl Transformer2d {
    /// The layer below `params`.
    pub fn new(params: &Params, config: Transformer2dConfig) -> Result<Self> {
        let width = config.heads * config.head_dim;
        let linear = config.use_linear_projection;
        let blocks = params.sub("transformer_blocks");
        Ok(Self {
            norm: GroupNorm::new(&params.sub("norm"), config.norm_groups, config.channels, 1e-6)?,
            proj_in: Projection::new(&params.sub("proj_in"), config.channels, width, linear)?,
            transformer_blocks: (0..config.layers)
                .map(|i| BasicTransformerBlock::new(&blocks.sub(i), config))
                .collect::<Result<_>>()?,
            proj_out: Projection::new(&params.sub("proj_out"), width, config.channels, linear)?,
        })
    }

    /// `x (batch, channels, h, w)`, `context (batch, tokens, cross_attention_dim)`, `mask` additive and broadcastable to
    /// `(batch, heads, h * w, tokens)`: shape of `x`.
    pub fn forward(
        &self,
        x: &Tensor,
        context: &Tensor,
        mask: Option<&Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (batch, _, h, w) = x.dims4()?;
        let y = self.norm.forward(x)?;
        let mut y = match &self.proj_in {
            Projection::Linear(linear) => linear.forward(&y.flatten_from(2)?.transpose(1, 2)?)?,
            Projection::Conv(conv) => conv.forward(&y)?.flatten_from(2)?.transpose(1, 2)?.contiguous()?,
        }; // (batch, h * w, width)
        for block in &self.transformer_blocks {
            y = block.forward(&y, context, mask, probe)?; // (batch, h * w, width)
        }
        let y = match &self.proj_out {
            Projection::Linear(linear) => {
                let y = linear.forward(&y)?.transpose(1, 2)?; // (batch, channels, h * w), a view
                y.reshape((batch, (), h, w))?
            }
            Projection::Conv(conv) => conv.forward(&y.transpose(1, 2)?.reshape((batch, (), h, w))?)?,
        }; // (batch, channels, h, w)
        ops::add(&y, x)
    }
}
