//! Nearest-neighbour upsampling.

use super::slices::{contiguous, on_cpu_in_f32};
use crate::{Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::upsample as kernel;

/// `x (batch, channels, h, w)` to `(batch, channels, height, width)`; output row `i` shows input row `i * h / height`
/// (rounded down), as in PyTorch's `nearest` mode.
///
/// # Errors
/// `x` has no pixels to show.
pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (_, _, h, w) = x.dims4()?;
    if h == 0 || w == 0 {
        return Err(Error::request(format!("upsample_nearest2d: a picture of {h}x{w} has nothing to show")));
    }
    if !on_cpu_in_f32(&[x]) {
        return plain::upsample_nearest2d(x, height, width);
    }
    Ok(x.contiguous()?.apply_op1(Upsample { from: [h, w], to: [height, width] })?)
}

#[derive(Clone, Copy)]
struct Upsample {
    from: [usize; 2],
    to: [usize; 2],
}

/// The transpose of [`Upsample`]: outputs that show the same input are added.
struct Gather(Upsample);

impl CustomOp1 for Upsample {
    fn name(&self) -> &'static str {
        "upsample_nearest2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = layout.shape().dims4()?;
        let mut y = zeros(batch * channels * self.to[0] * self.to[1]);
        kernel::nearest(batch * channels, self.from, self.to, contiguous(x, layout)?, &mut y);
        Ok((CpuStorage::F32(y), (batch, channels, self.to[0], self.to[1]).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.apply_op1(Gather(*self))?))
    }
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "upsample_nearest2d gradient"
    }

    fn cpu_fwd(&self, gy: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (batch, channels, _, _) = layout.shape().dims4()?;
        let Upsample { from, to } = self.0;
        let mut gx = zeros(batch * channels * from[0] * from[1]);
        kernel::nearest_gradient(batch * channels, from, to, contiguous(gy, layout)?, &mut gx);
        Ok((CpuStorage::F32(gx), (batch, channels, from[0], from[1]).into()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(g.contiguous()?.apply_op1(self.0)?))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{Result, Tensor};

    /// Plain twin of [`super::upsample_nearest2d`]. `index_select`, because the gradient of the tensor library's own
    /// upsampling overwrites where it should add.
    pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
        let (_, _, h, w) = x.dims4()?;
        let rows: Vec<u32> = (0..height).map(|i| (i * h / height) as u32).collect();
        let columns: Vec<u32> = (0..width).map(|j| (j * w / width) as u32).collect();
        let rows = Tensor::new(rows, x.device())?;
        let columns = Tensor::new(columns, x.device())?;
        Ok(x.contiguous()?.index_select(&rows, 2)?.index_select(&columns, 3)?)
    }
}
