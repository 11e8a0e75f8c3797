//! What is trained beside parameters that stay as they are.
//!
//! Layers ask [`Params`] for additions at their path when they are built, as they ask for their weights. So one hook in
//! `Linear` and one in `Embedding` serve every model, and no model knows of it. The additions' own parameters come from a
//! second [`Params`], which the caller keeps: its [`Params::variables`] are what is trained.

use super::{Init, Params};
use crate::blocks::LowRank;
use crate::{Error, Result, Tensor};
use std::sync::Arc;

/// Size of low-rank adapters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRankConfig {
    /// Rank of the product, the paper's `r`.
    pub rank: usize,
    /// The product is multiplied by `alpha / r`.
    pub alpha: f64,
}

/// Whether a layer is meant, by its path.
type Chosen = dyn Fn(&str) -> bool + Send + Sync;

/// What [`Params`] hand out beside the parameters.
pub(super) enum Additions {
    LowRank { factors: Params, config: LowRankConfig, chosen: Box<Chosen> },
    Rows { rows: Params, path: String, first: usize },
}

impl Params {
    /// The same parameters, with low-rank factors beside the linear layers whose path `chosen` accepts (Hu et al. 2021). The
    /// factors are asked of `factors` as `PATH.lora_A.weight (rank, in)`, by default drawn as PyTorch draws a linear
    /// layer's, and `PATH.lora_B.weight (out, rank)`, by default zero: at first the model computes what it computed before.
    pub fn with_low_rank(
        mut self,
        factors: &Self,
        config: LowRankConfig,
        chosen: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.additions =
            Some(Arc::new(Additions::LowRank { factors: factors.clone(), config, chosen: Box::new(chosen) }));
        self
    }

    /// The same parameters, in which the rows from `first` on of the table at `path` are those of `rows`, asked as
    /// `PATH.weight (n, features)`: textual inversion trains these and nothing else.
    pub fn with_rows(mut self, rows: &Self, path: &str, first: usize) -> Self {
        self.additions = Some(Arc::new(Additions::Rows { rows: rows.clone(), path: path.to_owned(), first }));
        self
    }

    /// The factors beside the linear layer at this path, if there are any.
    ///
    /// # Errors
    /// A rank of 0; factors that are missing or of another shape.
    pub fn low_rank(&self, in_features: usize, out_features: usize) -> Result<Option<LowRank>> {
        let Some(Additions::LowRank { factors, config, chosen }) = self.additions.as_deref() else { return Ok(None) };
        if !chosen(self.path()) {
            return Ok(None);
        }
        let LowRankConfig { rank, alpha } = *config;
        if rank == 0 {
            return Err(Error::request("a low-rank adapter of rank 0 changes nothing").with_help("choose 1 or more"));
        }
        let factors = factors.sub(self.path());
        let bound = 1.0 / (in_features.max(1) as f64).sqrt();
        let down = factors.sub("lora_A").get("weight", (rank, in_features), Init::Uniform { bound })?;
        let up = factors.sub("lora_B").get("weight", (out_features, rank), Init::Constant(0.0))?;
        Ok(Some(LowRank::new(down, up, alpha / rank as f64)))
    }

    /// The rows that replace those of the table `(vocabulary, features)` at this path, and which is the first of them.
    ///
    /// # Errors
    /// The rows are missing or of another shape.
    pub fn rows(&self, vocabulary: usize, features: usize) -> Result<Option<(usize, Tensor)>> {
        let Some(Additions::Rows { rows, path, first }) = self.additions.as_deref() else { return Ok(None) };
        if path != self.path() {
            return Ok(None);
        }
        let count = vocabulary.saturating_sub(*first);
        let rows = rows.sub(path).get("weight", (count, features), Init::Normal { std: 0.02 })?;
        Ok(Some((*first, rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blocks::{Embedding, Linear};
    use crate::weights::{MemorySource, TensorSource};
    use crate::{DType, Device, Var};
    use std::collections::BTreeMap;

    fn frozen(seed: u64) -> Params {
        Params::seeded(seed, DType::F32, &Device::Cpu)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Draws every variable anew, so that no factor is zero.
    fn shake(variables: &BTreeMap<String, Var>) {
        let drawn = frozen(9);
        for (name, var) in variables {
            var.set(&drawn.get(name, var.shape(), Init::Normal { std: 0.5 }).unwrap()).unwrap();
        }
    }

    #[test]
    fn a_linear_layer_computes_what_its_merged_weight_computes() {
        let x = frozen(1).get("x", (2, 3, 4), Init::Normal { std: 1.0 }).unwrap();
        let plain = Linear::new(&frozen(0).sub("a.to_q"), 4, 5, true).unwrap();
        let factors = frozen(2).trainable();
        let config = LowRankConfig { rank: 2, alpha: 3.0 };
        let params = frozen(0).with_low_rank(&factors, config, |path| path.ends_with("to_q"));
        let adapted = Linear::new(&params.sub("a.to_q"), 4, 5, true).unwrap();
        let other = Linear::new(&params.sub("a.to_k"), 4, 5, true).unwrap();
        let names: Vec<String> = factors.variables().into_keys().collect();
        assert_eq!(names, ["a.to_q.lora_A.weight", "a.to_q.lora_B.weight"]);
        // At first nothing changes.
        assert_eq!(values(&adapted.forward(&x).unwrap()), values(&plain.forward(&x).unwrap()));
        shake(&factors.variables());
        let vars = factors.variables();
        let product = vars[&names[1]].matmul(&vars[&names[0]]).unwrap();
        let merged = (plain.weight() + (product * 1.5).unwrap()).unwrap().detach();
        let bias = frozen(0).get("a.to_q.bias", 5, Init::Uniform { bound: 0.5 }).unwrap();
        let expected = values(&crate::ops::linear(&x, &merged, Some(&bias)).unwrap());
        for (got, expected) in values(&adapted.forward(&x).unwrap()).iter().zip(expected) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
        assert!(other.forward(&x).is_ok());
    }

    #[test]
    fn factors_get_the_gradient_of_finite_differences_and_the_weight_none() {
        let x = frozen(1).get("x", (3, 4), Init::Normal { std: 1.0 }).unwrap();
        let factors = frozen(2).trainable();
        let params = frozen(0).with_low_rank(&factors, LowRankConfig { rank: 2, alpha: 1.0 }, |_| true);
        let layer = Linear::new(&params, 4, 5, false).unwrap();
        shake(&factors.variables());
        let loss = || layer.forward(&x).unwrap().sqr().unwrap().sum_all().unwrap();
        let gradients = loss().backward().unwrap();
        assert!(gradients.get(layer.weight()).is_none());
        for (name, var) in factors.variables() {
            let analytic = values(gradients.get(var.as_tensor()).unwrap());
            let before = values(var.as_tensor());
            for i in 0..before.len() {
                let at = |shift: f32| {
                    let mut moved = before.clone();
                    moved[i] += shift;
                    var.set(&Tensor::from_vec(moved, var.shape(), &Device::Cpu).unwrap()).unwrap();
                    f64::from(loss().to_scalar::<f32>().unwrap())
                };
                let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
                let allowed = 2e-3 * (1.0 + numeric.abs());
                assert!((numeric - f64::from(analytic[i])).abs() < allowed, "{name} {i}: {numeric} {}", analytic[i]);
            }
            var.set(&Tensor::from_vec(before, var.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }

    #[test]
    fn only_the_chosen_rows_of_a_table_are_trained() {
        let initial = Tensor::new(&[[5f32, 6.0], [7.0, 8.0]], &Device::Cpu).unwrap();
        let source: Arc<dyn TensorSource> = Arc::new(MemorySource::new([("t.weight".to_owned(), initial)]));
        let rows = Params::load(source, DType::F32, &Device::Cpu).trainable();
        let table = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
        let source: Arc<dyn TensorSource> = Arc::new(MemorySource::new([("t.weight".to_owned(), table)]));
        let params = Params::load(source, DType::F32, &Device::Cpu).with_rows(&rows, "t", 2);
        let embedding = Embedding::new(&params.sub("t"), 4, 2).unwrap();
        let ids = Tensor::new(&[[0u32, 2, 1], [3, 3, 0]], &Device::Cpu).unwrap();
        let got = embedding.forward(&ids).unwrap();
        assert_eq!(values(&got), [1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 7.0, 8.0, 7.0, 8.0, 1.0, 2.0]);
        let vars = rows.variables();
        let gradients = got.sum_all().unwrap().backward().unwrap();
        assert_eq!(values(gradients.get(vars["t.weight"].as_tensor()).unwrap()), [1.0, 1.0, 2.0, 2.0]);
        assert!(gradients.get(embedding.weight()).is_none());
        let none = Tensor::new(&[0u32, 1], &Device::Cpu).unwrap();
        assert_eq!(values(&embedding.forward(&none).unwrap()), [1.0, 2.0, 3.0, 4.0]);
    }
}
