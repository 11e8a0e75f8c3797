//! Doubling of the picture by repetition and a convolution, with the parameter names of diffusers' `Upsample2D`.

use super::Conv2d;
use crate::ops::{self, Conv2dSpec};
use crate::weights::Params;
use crate::{Result, Tensor};

/// Nearest-neighbour upsampling, then a 3x3 convolution: no checkerboard as a transposed convolution leaves (Odena et al.
/// 2016).
#[derive(Clone, Debug)]
pub struct Upsample {
    conv: Conv2d,
}

impl Upsample {
    /// The layer below `params`.
    pub fn new(params: &Params, in_channels: usize, out_channels: usize) -> Result<Self> {
        Ok(Self { conv: Conv2d::new(&params.sub("conv"), in_channels, out_channels, 3, Conv2dSpec::new(1, 1))? })
    }

    /// `x (batch, in_channels, h, w)`: `(batch, out_channels, height, width)` with `size = Some((height, width))`, twice
    /// `h` and `w` without. A U-Net asks for the size of the skip connection that it joins, which is odd where
    /// [`super::Downsample`] rounded up.
    pub fn forward(&self, x: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let (height, width) = size.unwrap_or((2 * h, 2 * w));
        self.conv.forward(&ops::upsample_nearest2d(x, height, width)?)
    }
}
