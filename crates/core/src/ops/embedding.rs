//! Table look-up.

use crate::{Result, Tensor};

/// Rows of `table (vocabulary, features)` for `ids (...)` of type u32: `(..., features)`.
///
/// # Errors
/// An id beyond the table.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    plain::embedding(ids, table)
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
