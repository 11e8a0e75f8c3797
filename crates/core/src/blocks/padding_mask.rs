//! Which positions of a batch are padding, as attention takes it.

use crate::{DType, Error, Result, Tensor};

/// What is added to the scores so that nothing attends to padding: `mask (batch, source)` of type u32, 1 at a token and 0 at
/// padding, becomes `(batch, 1, 1, source)`, 0 at a token and negative infinity at padding, of type `dtype`. `None` where
/// nothing is padding.
///
/// # Errors
/// A row without any token; values other than 0 and 1.
pub fn padding_mask(mask: &Tensor, dtype: DType) -> Result<Option<Tensor>> {
    let rows = mask.to_vec2::<u32>()?;
    if let Some(value) = rows.iter().flatten().find(|value| **value > 1) {
        return Err(Error::request(format!("a mask of padding holds {value}, not only 0 and 1")));
    }
    if let Some(row) = rows.iter().position(|row| !row.contains(&1)) {
        return Err(Error::request(format!("the mask of text {row} marks no token")));
    }
    if rows.iter().flatten().all(|value| *value == 1) {
        return Ok(None);
    }
    let (batch, source) = mask.dims2()?;
    let added: Vec<f32> = rows.iter().flatten().map(|&v| if v == 1 { 0.0 } else { f32::NEG_INFINITY }).collect();
    Ok(Some(Tensor::from_vec(added, (batch, 1, 1, source), mask.device())?.to_dtype(dtype)?))
}
