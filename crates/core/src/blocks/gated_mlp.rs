//! The MLP of today's decoders: "GLU Variants Improve Transformer", Shazeer 2020, <https://arxiv.org/abs/2002.05202>.

use super::{Activation, Linear};
use crate::weights::Params;
use crate::{Result, Tensor};

/// `down_proj(act(gate_proj(x)) * up_proj(x))`: SwiGLU or GEGLU, by the activation.
#[derive(Clone, Debug)]
pub struct GatedMlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    act: Activation,
}

impl GatedMlp {
    /// From `hidden_size` to `intermediate_size` and back.
    pub fn new(
        params: &Params,
        hidden_size: usize,
        intermediate_size: usize,
        bias: bool,
        act: Activation,
    ) -> Result<Self> {
        Ok(Self {
            gate_proj: Linear::new(&params.sub("gate_proj"), hidden_size, intermediate_size, bias)?,
            up_proj: Linear::new(&params.sub("up_proj"), hidden_size, intermediate_size, bias)?,
            down_proj: Linear::new(&params.sub("down_proj"), intermediate_size, hidden_size, bias)?,
            act,
        })
    }

    /// `x (..., hidden_size)`, shape unchanged.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.act.forward(&self.gate_proj.forward(x)?)?; // (..., intermediate_size)
        let up = self.up_proj.forward(x)?; // (..., intermediate_size)
        self.down_proj.forward(&(gate * up)?)
    }
}
