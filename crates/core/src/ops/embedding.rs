//! Table look-up.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::{DType, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::embedding as kernel;
use conjure_kernels::fresh::zeros;

/// Rows of `table (vocabulary, features)` for `ids (...)` of type u32: `(..., features)`.
///
/// # Errors
/// An id beyond the table. A GPU does not check that: its ids must be known to lie in the table.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    let (vocabulary, features) = table.dims2()?;
    #[cfg(feature = "cuda")]
    if cuda::looks_up(ids, table) {
        return cuda::embedding(ids, table);
    }
    if !on_cpu_in_f32(&[table]) || ids.dtype() != DType::U32 || !ids.device().is_cpu() {
        return plain::embedding(ids, table);
    }
    let mut shape = ids.dims().to_vec();
    shape.push(features);
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
        return Err(Error::request(format!("embedding: id {id} is beyond the table of {vocabulary} rows")));
    }
    Ok(table.contiguous()?.apply_op1(Embedding { ids, features })?.reshape(shape)?)
}

struct Embedding {
    ids: Vec<u32>,
    features: usize,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut out = zeros(self.ids.len() * self.features);
        kernel::gather(contiguous(table, layout)?, &self.ids, self.features, &mut out);
        Ok((CpuStorage::F32(out), Shape::from((self.ids.len(), self.features))))
    }

    fn bwd(&self, table: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let mut d_table = zeros(table.elem_count());
        with_slice(dy, |dy| {
            kernel::scatter_add(dy, &self.ids, self.features, &mut d_table);
            Ok(())
        })?;
        Ok(Some(Tensor::from_vec(d_table, table.shape(), table.device())?))
    }
}

/// Plain twins.
pub mod plain {
    use crate::{Result, Tensor};

    /// Plain twin of [`super::embedding`].
    pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
        let mut shape = ids.dims().to_vec();
        shape.push(table.dim(1)?);
        Ok(table.index_select(&ids.flatten_all()?, 0)?.reshape(shape)?)
    }
}
