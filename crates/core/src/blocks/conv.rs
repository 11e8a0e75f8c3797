//! The convolution layer.

use crate::ops::{self, Conv2dSpec};
use crate::weights::{Init, Params};
use crate::{Result, Tensor};

/// A two-dimensional convolution with bias.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Tensor,
    spec: Conv2dSpec,
}

impl Conv2d {
    /// `weight (out_channels, in_channels / groups, kernel, kernel)` and `bias (out_channels)`.
    pub fn new(
        params: &Params,
        in_channels: usize,
        out_channels: usize,
        kernel: usize,
        spec: Conv2dSpec,
    ) -> Result<Self> {
        let group_in = in_channels / spec.groups.max(1);
        let init = Init::Uniform { bound: 1.0 / ((group_in * kernel * kernel).max(1) as f64).sqrt() };
        let weight = params.get("weight", (out_channels, group_in, kernel, kernel), init)?;
        let bias = params.get("bias", out_channels, init)?;
        Ok(Self { weight, bias, spec })
    }

    /// `x (batch, in_channels, h, w)`: `(batch, out_channels, out_h, out_w)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::conv2d(x, &self.weight, Some(&self.bias), self.spec)
    }
}
