//! Rotary position embedding (Su et al. 2021).

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
use crate::{Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp3, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::rope as kernel;

/// Which elements of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Element `i` with `i + dim / 2` (GPT-NeoX, Llama in transformers' layout).
    Halves,
    /// Element `2 i` with `2 i + 1` (GPT-J, the paper).
    Interleaved,
}

/// Rotates `x (batch, heads, time, dim)` by the angles whose cosines and sines are `cos`, `sin (time, dim / 2)`.
/// No gradient flows into the angles.
///
/// # Errors
/// `dim` is odd, or `cos` or `sin` does not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
    let (_, _, time, dim) = x.dims4()?;
    if dim == 0 || !dim.is_multiple_of(2) {
        return Err(Error::request(format!("rope: heads of {dim} elements cannot be rotated in pairs")));
    }
    for (name, angles) in [("cos", cos), ("sin", sin)] {
        if angles.dims() != [time, dim / 2] {
            let (shape, half) = (angles.shape(), dim / 2);
            return Err(Error::request(format!("rope: {name} has shape {shape:?} but x needs [{time}, {half}]")));
        }
    }
    if !on_cpu_in_f32(&[x, cos, sin]) {
        return plain::rope(x, &cos.detach(), &sin.detach(), layout);
    }
    Ok(x.contiguous()?.apply_op3(&cos.contiguous()?.detach(), &sin.contiguous()?.detach(), Rope { dim, layout })?)
}

struct Rope {
    dim: usize,
    layout: RopeLayout,
}

impl Rope {
    fn rotate(&self, x: &[f32], cos: &[f32], sin: &[f32], inverse: bool) -> Vec<f32> {
        let pairs = match self.layout {
            RopeLayout::Halves => kernel::Pairs::Halves,
            RopeLayout::Interleaved => kernel::Pairs::Interleaved,
        };
        let mut out = zeros(x.len());
        kernel::rotate(x, cos, sin, self.dim, pairs, inverse, &mut out);
        out
    }
}

impl CustomOp3 for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        cos: &CpuStorage,
        cos_layout: &Layout,
        sin: &CpuStorage,
        sin_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let (cos, sin) = (contiguous(cos, cos_layout)?, contiguous(sin, sin_layout)?);
        let out = self.rotate(contiguous(x, x_layout)?, cos, sin, false);
        Ok((CpuStorage::F32(out), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        cos: &Tensor,
        sin: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        // A rotation's transpose is the rotation back.
        let dx =
            with_slice(cos, |cos| with_slice(sin, |sin| with_slice(dy, |dy| Ok(self.rotate(dy, cos, sin, true)))))?;
        Ok((Some(Tensor::from_vec(dx, x.shape(), x.device())?), None, None))
    }
}

/// Plain twins.
pub mod plain {
    use super::RopeLayout;
    use crate::{D, Result, Tensor};

    /// Plain twin of [`super::rope`].
    pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor, layout: RopeLayout) -> Result<Tensor> {
        let (batch, heads, time, dim) = x.dims4()?;
        let half = dim / 2;
        let (a, b) = match layout {
            RopeLayout::Halves => (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?),
            RopeLayout::Interleaved => {
                let pairs = x.reshape((batch, heads, time, half, 2))?;
                (pairs.narrow(4, 0, 1)?.squeeze(4)?, pairs.narrow(4, 1, 1)?.squeeze(4)?)
            }
        };
        let rotated_a = (a.broadcast_mul(cos)? - b.broadcast_mul(sin)?)?;
        let rotated_b = (a.broadcast_mul(sin)? + b.broadcast_mul(cos)?)?;
        Ok(match layout {
            RopeLayout::Halves => Tensor::cat(&[rotated_a, rotated_b], D::Minus1)?,
            RopeLayout::Interleaved => Tensor::stack(&[rotated_a, rotated_b], 4)?.reshape((batch, heads, time, dim))?,
        })
    }
}
