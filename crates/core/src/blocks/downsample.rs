//! Halving of the picture by a strided convolution, with the parameter names of diffusers' `Downsample2D`.

use super::Conv2d;
use crate::ops::Conv2dSpec;
use crate::weights::Params;
use crate::{Result, Tensor};

/// A 3x3 convolution with stride 2.
#[derive(Clone, Debug)]
pub struct Downsample {
    conv: Conv2d,
}

impl Downsample {
    /// `padding` zeros on every side; 0 means one row below and one column to the right, as the autoencoder of
    /// Rombach et al. (2022) pads.
    pub fn new(params: &Params, in_channels: usize, out_channels: usize, padding: usize) -> Result<Self> {
        let mut spec = Conv2dSpec::new(2, padding);
        if padding == 0 {
            spec.padding = [0, 1, 0, 1];
        }
        Ok(Self { conv: Conv2d::new(&params.sub("conv"), in_channels, out_channels, 3, spec)? })
    }

    /// `x (batch, in_channels, h, w)`: with padding 1 `(batch, out_channels, ceil(h / 2), ceil(w / 2))`, with padding 0
    /// rounded down.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.conv.forward(x)
    }
}
