//! A table with more rows than its file has.

use super::{Quantized, TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A source in which one table has further rows at its end: vectors of tokens that were learned later.
pub struct Extended {
    inner: Arc<dyn TensorSource>,
    name: String,
    rows: Tensor,
    infos: BTreeMap<String, TensorInfo>,
}

impl Extended {
    /// `inner` with `rows (n, features)` after those of the table `name (vocabulary, features)`.
    ///
    /// # Errors
    /// No such table, or one of another width.
    pub fn new(inner: Arc<dyn TensorSource>, name: &str, rows: Tensor) -> Result<Self> {
        let mut infos = inner.infos().clone();
        let info = infos.get_mut(name).ok_or_else(|| Error::request(format!("the weights lack the tensor {name}")))?;
        match (info.shape.dims(), rows.dims()) {
            (&[vocabulary, features], &[n, wanted]) if features == wanted => {
                info.shape = Shape::from((vocabulary + n, features));
            }
            (table, more) => {
                return Err(Error::request(format!("rows {more:?} cannot be added to {name} {table:?}")));
            }
        }
        Ok(Self { inner, name: name.to_owned(), rows, infos })
    }
}

impl TensorSource for Extended {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let table = self.inner.load(name, dtype, device)?;
        if name != self.name {
            return Ok(table);
        }
        Ok(Tensor::cat(&[table, self.rows.to_dtype(dtype)?.to_device(device)?], 0)?)
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        if name == self.name { None } else { self.inner.quantized(name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::MemorySource;

    #[test]
    fn rows_are_added_to_one_table() {
        let table = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let both = [("t".to_owned(), table.clone()), ("u".to_owned(), table)];
        let inner: Arc<dyn TensorSource> = Arc::new(MemorySource::new(both));
        let rows = Tensor::new(&[[5f32, 6.0]], &Device::Cpu).unwrap();
        let longer = Extended::new(inner.clone(), "t", rows).unwrap();
        assert_eq!(longer.infos()["t"].shape.dims(), [3, 2]);
        let load = |name: &str| longer.load(name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(load("t"), [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]);
        assert_eq!(load("u"), [[1.0, 2.0], [3.0, 4.0]]);
        let wide = Tensor::new(&[[5f32, 6.0, 7.0]], &Device::Cpu).unwrap();
        let error = Extended::new(inner, "t", wide).err().unwrap().to_string();
        assert_eq!(error, "rows [1, 3] cannot be added to t [2, 2]");
    }
}
