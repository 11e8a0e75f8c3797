//! Dropout: "Dropout: A Simple Way to Prevent Neural Networks from Overfitting", Srivastava et al. 2014, JMLR 15. In training
//! a share of a layer's outputs is zero, and the others are larger by as much, so that nothing changes in the mean.
//!
//! Models say where values may be dropped, by [`apply`]; only inside [`with`] any are. So one `forward` serves training and
//! use. Not inside [`crate::recompute`]'s segments, which must give the same when they are computed again.

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::rng::{Generator as _, Philox};
use crate::{Result, Tensor};
use std::cell::RefCell;

thread_local! {
    static ACTIVE: RefCell<Option<(f64, Philox)>> = const { RefCell::new(None) };
}

/// Runs `work`, on this thread, with the share `rate`, 0 to below 1, of values dropped as `generator` draws; 0 drops none.
pub fn with<T>(rate: f64, generator: Philox, work: impl FnOnce() -> T) -> T {
    /// Also restores after a panic.
    struct Restore(Option<(f64, Philox)>);
    impl Drop for Restore {
        fn drop(&mut self) {
            ACTIVE.set(self.0.take());
        }
    }
    let _restore = Restore(ACTIVE.replace((rate > 0.0).then_some((rate, generator))));
    work()
}

/// `x` with values dropped inside [`with`]; elsewhere `x` itself. Shape unchanged.
///
/// # Errors
/// A tensor operation fails.
pub fn apply(x: &Tensor) -> Result<Tensor> {
    ACTIVE.with_borrow_mut(|active| {
        let Some((rate, generator)) = active else { return Ok(x.clone()) };
        let kept = (1.0 / (1.0 - *rate)) as f32;
        #[cfg(feature = "cuda")]
        if cuda::takes(&[x]) {
            return cuda::dropout(x, *rate, kept, generator);
        }
        let factor = |draw: f32| if f64::from(draw) < *rate { 0.0 } else { kept };
        let factors: Vec<f32> = generator.uniform(x.elem_count()).into_iter().map(factor).collect();
        Ok((x * Tensor::from_vec(factors, x.shape(), x.device())?.to_dtype(x.dtype())?)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::keyed;
    use crate::{Device, Var};

    fn dropped(rate: f64, key: &str) -> Vec<f32> {
        let x = Tensor::full(2f32, (8, 1000), &Device::Cpu).unwrap();
        let y = with(rate, keyed(3, key), || apply(&x)).unwrap();
        y.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn a_share_is_zero_and_the_mean_stays() {
        let y = dropped(0.25, "a");
        let zeros = y.iter().filter(|v| **v == 0.0).count() as f64 / y.len() as f64;
        assert!((zeros - 0.25).abs() < 0.02, "{zeros}");
        assert!(y.iter().all(|v| *v == 0.0 || (*v - 8.0 / 3.0).abs() < 1e-6));
        assert_eq!(y, dropped(0.25, "a"));
        assert_ne!(y, dropped(0.25, "b"));
    }

    #[test]
    fn outside_and_at_rate_0_nothing_is_dropped() {
        assert_eq!(dropped(0.0, "a"), vec![2.0; 8000]);
        let x = Tensor::full(2f32, 8, &Device::Cpu).unwrap();
        with(0.5, keyed(3, "a"), || ());
        assert_eq!(apply(&x).unwrap().to_vec1::<f32>().unwrap(), vec![2.0; 8]);
    }

    #[test]
    fn gradients_flow_where_values_did() {
        let x = Var::ones(64, crate::DType::F32, &Device::Cpu).unwrap();
        let y = with(0.5, keyed(3, "a"), || apply(&x)).unwrap();
        let dx = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(dx, y.to_vec1::<f32>().unwrap());
        assert!(dx.contains(&0.0) && dx.contains(&2.0));
    }
}
