//! Tensors under other names, so that a checkpoint with its authors' key names loads into a model that uses ours.

use super::gguf::Metadata;
use super::{Quantized, TensorInfo, TensorSource};
use crate::{DType, Device, Error, Result, Shape, Tensor};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

/// What is done to a stored tensor to get the wanted one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transform {
    /// Nothing.
    AsIs,
    /// These rows of dimension 0: one of the projections in a fused `in_proj`.
    Rows(Range<usize>),
    /// These columns of a matrix, turned into rows: one of the projections in a fused one that is stored as the matrix to
    /// multiply with from the right.
    ColumnsTransposed(Range<usize>),
    /// From each run of `parts * rows` rows of dimension 0, the `rows` of number `part`: one of the projections in a fused
    /// one that has q, k and v of one head after the other.
    Interleaved {
        /// Which of the parts.
        part: usize,
        /// How many parts take turns.
        parts: usize,
        /// Rows of a part before the next one's turn.
        rows: usize,
    },
    /// `(a, b)` to `(b, a)`: a projection that is stored as the matrix to multiply with from the right.
    Transpose,
    /// `(a, b, 1, ...)` to `(a, b)`: a linear layer that is stored as a convolution of size 1.
    Squeeze,
}

impl Transform {
    /// The shape after the transform, if it fits.
    fn apply_to_shape(&self, shape: &Shape) -> Option<Shape> {
        let dims = shape.dims();
        match self {
            Self::AsIs => Some(shape.clone()),
            Self::Rows(rows) => {
                let (&n, rest) = dims.split_first()?;
                (rows.start <= rows.end && rows.end <= n).then(|| Shape::from([&[rows.len()], rest].concat()))
            }
            Self::ColumnsTransposed(columns) => match dims {
                &[a, b] if columns.start <= columns.end && columns.end <= b => Some(Shape::from((columns.len(), a))),
                _ => None,
            },
            &Self::Interleaved { part, parts, rows } => {
                let (&n, rest) = dims.split_first()?;
                let run = parts.checked_mul(rows).filter(|run| *run > 0 && part < parts)?;
                n.is_multiple_of(run).then(|| Shape::from([&[n / parts], rest].concat()))
            }
            Self::Transpose => match dims {
                &[a, b] => Some(Shape::from((b, a))),
                _ => None,
            },
            Self::Squeeze => match dims {
                [a, b, rest @ ..] if rest.iter().all(|&n| n == 1) => Some(Shape::from((*a, *b))),
                _ => None,
            },
        }
    }
}

/// Where a wanted tensor comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Name in the underlying source.
    pub source_name: String,
    /// What is done to it.
    pub transform: Transform,
}

impl View {
    /// The stored tensor unchanged, under another name.
    pub fn as_is(source_name: impl Into<String>) -> Self {
        Self { source_name: source_name.into(), transform: Transform::AsIs }
    }
}

/// A source seen through a table of wanted names.
pub struct Renamed {
    inner: Arc<dyn TensorSource>,
    views: BTreeMap<String, View>,
    infos: BTreeMap<String, TensorInfo>,
}

impl Renamed {
    /// `inner` seen through `views`: wanted name to stored tensor. A view of a tensor that `inner` lacks is left out, so
    /// that the wanted name counts as missing, like any other.
    ///
    /// # Errors
    /// A transform that does not fit the stored tensor's shape.
    pub fn new(inner: Arc<dyn TensorSource>, views: impl IntoIterator<Item = (String, View)>) -> Result<Self> {
        let mut infos = BTreeMap::new();
        let mut kept = BTreeMap::new();
        for (name, view) in views {
            let Some(info) = inner.infos().get(&view.source_name) else { continue };
            let shape = view.transform.apply_to_shape(&info.shape).ok_or_else(|| {
                Error::request(format!(
                    "tensor {} has shape {:?}, which cannot become {name} ({:?})",
                    view.source_name,
                    info.shape.dims(),
                    view.transform
                ))
                .with_help("the checkpoint is of another model family than its key names say")
            })?;
            infos.insert(name.clone(), TensorInfo { shape, ..info.clone() });
            kept.insert(name, view);
        }
        Ok(Self { inner, views: kept, infos })
    }

    /// `inner` with every tensor under the name that `canonical` gives it; those without one are not seen.
    ///
    /// # Errors
    /// None: nothing is transformed.
    pub fn by(inner: Arc<dyn TensorSource>, canonical: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let views: Vec<_> =
            inner.infos().keys().filter_map(|stored| Some((canonical(stored)?, View::as_is(stored)))).collect();
        Self::new(inner, views)
    }

    /// Names of stored tensors that no view shows.
    pub fn unused(&self) -> Vec<String> {
        let used: BTreeSet<&str> = self.views.values().map(|view| view.source_name.as_str()).collect();
        self.inner.infos().keys().filter(|name| !used.contains(name.as_str())).cloned().collect()
    }
}

impl TensorSource for Renamed {
    fn infos(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn load(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        let view = self.views.get(name).ok_or_else(|| Error::request(format!("no tensor named {name}")))?;
        let stored = self.inner.load(&view.source_name, dtype, device)?;
        Ok(match &view.transform {
            Transform::AsIs => stored,
            // A copy, so that the rest of a fused tensor is not kept alive.
            Transform::Rows(rows) => stored.narrow(0, rows.start, rows.len())?.force_contiguous()?,
            Transform::ColumnsTransposed(columns) => {
                stored.narrow(1, columns.start, columns.len())?.t()?.force_contiguous()?
            }
            Transform::Interleaved { part, parts, rows } => {
                let wanted = &self.infos[name].shape;
                let (n, rest) = (stored.dims()[0], stored.dims()[1..].iter().product::<usize>());
                let turns = stored.reshape((n / (parts * rows), *parts, rows * rest))?;
                turns.narrow(1, *part, 1)?.force_contiguous()?.reshape(wanted.clone())?
            }
            Transform::Transpose => stored.t()?.contiguous()?,
            Transform::Squeeze => stored.reshape(self.infos[name].shape.clone())?,
        })
    }

    fn quantized(&self, name: &str) -> Option<Quantized> {
        let view = self.views.get(name)?;
        let stored = self.inner.quantized(&view.source_name)?;
        match &view.transform {
            Transform::AsIs => Some(stored),
            Transform::Rows(rows) => stored.slice(rows.clone()),
            // Rows that do not lie together, and columns, are not to be had without moving blocks or taking them apart.
            _ => None,
        }
    }

    fn gguf(&self) -> Option<&Metadata> {
        self.inner.gguf()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::MemorySource;

    fn source() -> Arc<dyn TensorSource> {
        let fused = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((6, 2)).unwrap();
        let pointwise = Tensor::arange(0f32, 6.0, &Device::Cpu).unwrap().reshape((2, 3, 1, 1)).unwrap();
        Arc::new(MemorySource::new([("in_proj".to_owned(), fused), ("conv".to_owned(), pointwise)]))
    }

    fn view(source_name: &str, transform: Transform) -> View {
        View { source_name: source_name.to_owned(), transform }
    }

    #[test]
    fn tensors_are_split_transposed_and_squeezed() {
        let views = [
            ("q".to_owned(), view("in_proj", Transform::Rows(0..2))),
            ("v".to_owned(), view("in_proj", Transform::Rows(4..6))),
            ("t".to_owned(), view("in_proj", Transform::Transpose)),
            ("c".to_owned(), view("in_proj", Transform::ColumnsTransposed(1..2))),
            ("i".to_owned(), view("in_proj", Transform::Interleaved { part: 1, parts: 3, rows: 1 })),
            ("lost".to_owned(), View::as_is("nowhere")),
        ];
        let renamed = Renamed::new(source(), views).unwrap();
        let load = |name: &str| renamed.load(name, DType::F32, &Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(load("q"), [[0.0, 1.0], [2.0, 3.0]]);
        assert_eq!(load("v"), [[8.0, 9.0], [10.0, 11.0]]);
        assert_eq!(load("t"), [[0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [1.0, 3.0, 5.0, 7.0, 9.0, 11.0]]);
        assert_eq!(load("c"), [[1.0, 3.0, 5.0, 7.0, 9.0, 11.0]]);
        assert_eq!(load("i"), [[2.0, 3.0], [8.0, 9.0]]);
        assert!(!renamed.infos().contains_key("lost"));
        assert_eq!(renamed.infos()["t"].shape.dims(), [2, 6]);
        assert_eq!(renamed.unused(), ["conv"]);

        let renamed = Renamed::new(source(), [("linear".to_owned(), view("conv", Transform::Squeeze))]).unwrap();
        let linear = renamed.load("linear", DType::F32, &Device::Cpu).unwrap();
        assert_eq!(linear.to_vec2::<f32>().unwrap(), [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]);
    }

    #[test]
    fn a_transform_that_does_not_fit_names_both_tensors() {
        let error = Renamed::new(source(), [("k".to_owned(), view("in_proj", Transform::Rows(4..8)))]).err().unwrap();
        assert_eq!(error.to_string(), "tensor in_proj has shape [6, 2], which cannot become k (Rows(4..8))");
        assert!(Renamed::new(source(), [("k".to_owned(), view("conv", Transform::Transpose))]).is_err());
        assert!(Renamed::new(source(), [("k".to_owned(), view("in_proj", Transform::Rows(3..3)))]).is_ok());
        let four_rows = Transform::Interleaved { part: 0, parts: 2, rows: 2 };
        assert!(Renamed::new(source(), [("k".to_owned(), view("in_proj", four_rows))]).is_err());
        let beyond = Transform::ColumnsTransposed(1..3);
        assert!(Renamed::new(source(), [("k".to_owned(), view("in_proj", beyond))]).is_err());
    }
}
