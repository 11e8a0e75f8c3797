//! Rows of numbers in 8 bits, as a cache of keys and values keeps them.

use super::slices::{contiguous, on_cpu_in_f32};
use crate::{DType, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::eight_bits as kernel;
use conjure_kernels::fresh::zeros;

/// `x (.., features)` in rows of bytes, `(.., bytes)` of type u8: see [`kernel`]. No gradient flows through it.
///
/// # Errors
/// `x` is a scalar, or no f32 on a CPU.
pub fn to_eight_bits(x: &Tensor) -> Result<Tensor> {
    if !on_cpu_in_f32(&[x]) {
        return Err(Error::request(format!("{:?} on {:?} is not rounded to 8 bits", x.dtype(), x.device().location()))
            .with_help("keep the cache in f32 or f16"));
    }
    let features = x.dim(candle_core::D::Minus1)?;
    Ok(x.detach().contiguous()?.apply_op1_no_bwd(&Round { features })?)
}

/// The way back, exactly: rows of bytes `(.., bytes)` to `(.., features)` of type f32.
///
/// # Errors
/// `x` is no such rows.
pub fn from_eight_bits(x: &Tensor) -> Result<Tensor> {
    let features = row_features(x)?;
    Ok(x.contiguous()?.apply_op1_no_bwd(&Widen { features })?)
}

/// How many numbers a row of the bytes `x (.., bytes)` holds.
///
/// # Errors
/// It is no such row.
pub(super) fn row_features(x: &Tensor) -> Result<usize> {
    let bytes = x.dim(candle_core::D::Minus1)?;
    let features = if x.dtype() == DType::U8 { kernel::row_features(bytes) } else { None };
    features.ok_or_else(|| Error::request(format!("{bytes} of {:?} are no row of numbers in 8 bits", x.dtype())))
}

/// The shape with another last dimension.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.dims().to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

struct Round {
    features: usize,
}

impl CustomOp1 for Round {
    fn name(&self) -> &'static str {
        "to_eight_bits"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(x, layout)?;
        let bytes = kernel::row_bytes(self.features);
        let mut out = vec![0; x.len() / self.features.max(1) * bytes];
        kernel::from_f32(x, self.features, &mut out);
        Ok((CpuStorage::U8(out), with_last(layout.shape(), bytes)))
    }
}

struct Widen {
    features: usize,
}

impl CustomOp1 for Widen {
    fn name(&self) -> &'static str {
        "from_eight_bits"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let shape = with_last(layout.shape(), self.features);
        let (CpuStorage::U8(bytes), Some((from, to))) = (x, layout.contiguous_offsets()) else {
            return Err(candle_core::Error::Msg("from_eight_bits was given no contiguous bytes".into()).bt());
        };
        let mut out = zeros(shape.elem_count());
        kernel::to_f32(&bytes[from..to], self.features, &mut out);
        Ok((CpuStorage::F32(out), shape))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn rows_come_back_in_their_shape() {
        let x: Vec<f32> = (0..2 * 3 * 40).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Tensor::from_vec(x, (2, 3, 40), &Device::Cpu).unwrap();
        // Of a view as well.
        let view = x.narrow(1, 1, 2).unwrap();
        let rounded = to_eight_bits(&view).unwrap();
        assert_eq!((rounded.dims(), rounded.dtype()), (&[2, 2, 44][..], DType::U8));
        let back = from_eight_bits(&rounded).unwrap();
        let worst = (back - view).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(worst > 1e-4 && worst < 0.5 / 127.0 * 1.01, "{worst}");
    }

    #[test]
    fn what_cannot_be_rounded_is_refused() {
        let x = Tensor::zeros((2, 4), DType::F64, &Device::Cpu).unwrap();
        assert!(to_eight_bits(&x).unwrap_err().help().is_some());
        for bad in [Tensor::zeros((2, 35), DType::U8, &Device::Cpu), Tensor::zeros((2, 34), DType::F32, &Device::Cpu)] {
            assert!(from_eight_bits(&bad.unwrap()).is_err());
        }
    }
}
