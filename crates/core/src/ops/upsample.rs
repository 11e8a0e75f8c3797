//! Nearest-neighbour upsampling.

use crate::{Result, Tensor};

/// `x (batch, channels, h, w)` to `(batch, channels, height, width)`; output row `i` shows input row `i * h / height`
/// (rounded down), as in PyTorch's `nearest` mode.
pub fn upsample_nearest2d(x: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    plain::upsample_nearest2d(x, height, width)
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
