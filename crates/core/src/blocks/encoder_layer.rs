//! The layer of a transformer encoder with the norms before what they norm (Vaswani et al. 2017, section 3.1; Xiong et al.
//! 2020, figure 1 (b)), with the parameter names of transformers' CLIP.

use super::{Attention, AttentionConfig, AttentionNames, LayerNorm, Linear};
use crate::probe::{Probe, Quantity, offer};
use crate::weights::Params;
use crate::{Result, Tensor, ops};
use serde::{Deserialize, Serialize};

/// The activation between the two layers of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HiddenAct {
    /// `x * sigmoid(1.702 x)`: OpenAI's CLIP.
    QuickGelu,
    /// Exact GELU: OpenCLIP.
    Gelu,
}

/// Shape of an encoder layer, in transformers' words.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EncoderLayerConfig {
    /// Features of the residual stream.
    pub hidden_size: usize,
    /// Features between the two layers of the MLP.
    pub intermediate_size: usize,
    /// Heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Added to the variance in both norms.
    pub layer_norm_eps: f64,
    /// Whether a position sees only itself and the earlier ones.
    pub causal: bool,
}

#[derive(Clone, Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    act: HiddenAct,
}

impl Mlp {
    fn new(params: &Params, config: EncoderLayerConfig) -> Result<Self> {
        let EncoderLayerConfig { hidden_size, intermediate_size, hidden_act: act, .. } = config;
        Ok(Self {
            fc1: Linear::new(&params.sub("fc1"), hidden_size, intermediate_size, true)?,
            fc2: Linear::new(&params.sub("fc2"), intermediate_size, hidden_size, true)?,
            act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.fc1.forward(x)?; // (batch, time, intermediate_size)
        let h = match self.act {
            HiddenAct::QuickGelu => ops::quick_gelu(&h)?,
            HiddenAct::Gelu => ops::gelu(&h)?,
        };
        self.fc2.forward(&h) // (batch, time, hidden_size)
    }
}

/// Norm, self-attention, norm, MLP, with a residual connection around each pair.
#[derive(Clone, Debug)]
pub struct EncoderLayer {
    layer_norm1: LayerNorm,
    self_attn: Attention,
    layer_norm2: LayerNorm,
    mlp: Mlp,
    path: String,
}

impl EncoderLayer {
    /// The layer below `params`.
    pub fn new(params: &Params, config: EncoderLayerConfig) -> Result<Self> {
        let EncoderLayerConfig { hidden_size, num_attention_heads: heads, layer_norm_eps: eps, .. } = config;
        let head_dim = hidden_size / heads.max(1);
        let attention =
            AttentionConfig { query_dim: hidden_size, context_dim: hidden_size, heads, head_dim, bias: true };
        let self_attn = Attention::with_names(&params.sub("self_attn"), attention, AttentionNames::TRANSFORMERS)?;
        Ok(Self {
            layer_norm1: LayerNorm::new(&params.sub("layer_norm1"), hidden_size, eps)?,
            self_attn: if config.causal { self_attn.causal() } else { self_attn },
            layer_norm2: LayerNorm::new(&params.sub("layer_norm2"), hidden_size, eps)?,
            mlp: Mlp::new(&params.sub("mlp"), config)?,
            path: params.path().to_owned(),
        })
    }

    /// `x (batch, time, hidden_size)`, shape unchanged. The probe sees the attention at `self_attn` below the layer's path
    /// and the output at the path itself.
    pub fn forward(&self, x: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let x = ops::add(x, &self.self_attn.forward(&self.layer_norm1.forward(x)?, None, None, probe)?)?;
        let x = ops::add(&x, &self.mlp.forward(&self.layer_norm2.forward(&x)?)?)?;
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x) // (batch, time, hidden_size)
    }
}
