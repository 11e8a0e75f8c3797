//! Cross-entropy of classes. With the vocabulary of a language model for classes the scores are by far the largest tensor of
//! the network: the fused operation keeps them once and their gradient once, the plain one seven times.

use super::slices::{contiguous, on_cpu_in_f32, with_slice};
use crate::{D, Error, Result, Tensor};
use candle_core::{CpuStorage, CustomOp1, Layout, Shape};
use conjure_kernels::fresh::zeros;
use conjure_kernels::softmax as kernel;

/// Logarithm of the softmax over the last dimension. Shape unchanged.
pub fn log_softmax(x: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?;
    Ok(x.broadcast_sub(&x.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}

/// Mean cross-entropy of `logits (batch, classes)` and the right classes `targets (batch)` of type u32, a scalar. With
/// `label_smoothing` in `[0, 1)`, that share of each target is spread evenly over all classes (Szegedy et al. 2016, section
/// 7), as in PyTorch.
///
/// # Errors
/// Shapes do not fit, an empty batch, a target that is no class, `label_smoothing` outside its range.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
    let (batch, classes) = logits.dims2()?;
    if batch == 0 || targets.dims() != [batch] {
        return Err(Error::request(format!(
            "cross_entropy: targets {:?} do not fit logits {:?}",
            targets.dims(),
            logits.dims()
        )));
    }
    if !(0.0..1.0).contains(&label_smoothing) {
        return Err(Error::request(format!("cross_entropy: label smoothing is {label_smoothing}, not 0 to below 1")));
    }
    let own = targets.to_vec1::<u32>()?;
    if let Some(target) = own.iter().find(|target| **target as usize >= classes) {
        return Err(Error::request(format!("cross_entropy: target {target} is none of {classes} classes")));
    }
    if !on_cpu_in_f32(&[logits]) {
        return plain::cross_entropy(logits, targets, label_smoothing);
    }
    Ok(logits.contiguous()?.apply_op1(CrossEntropy { targets: own, classes, label_smoothing })?)
}

struct CrossEntropy {
    targets: Vec<u32>,
    classes: usize,
    label_smoothing: f64,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let x = contiguous(storage, layout)?;
        let mut p = zeros(x.len());
        kernel::forward(x, self.classes, &mut p);
        let mut sum = 0.0;
        for ((x, p), target) in x.chunks_exact(self.classes).zip(p.chunks_exact(self.classes)).zip(&self.targets) {
            // The largest probability is at least 1 / classes: its logarithm is safe, and tells the sum of all.
            let mut largest = 0;
            for (at, value) in p.iter().enumerate() {
                if *value > p[largest] {
                    largest = at;
                }
            }
            let log_sum = f64::from(x[largest]) - f64::from(p[largest]).ln();
            let mut wanted = f64::from(x[*target as usize]) * (1.0 - self.label_smoothing);
            if self.label_smoothing > 0.0 {
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / self.classes as f64;
                wanted += mean * self.label_smoothing;
            }
            sum += log_sum - wanted;
        }
        let mean = sum / self.targets.len() as f64;
        Ok((CpuStorage::F32(vec![mean as f32]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let factor = dy.to_scalar::<f32>()? / self.targets.len() as f32;
        let spread = (self.label_smoothing / self.classes as f64) as f32;
        let mut dx = zeros(x.elem_count());
        with_slice(x, |x| {
            kernel::forward(x, self.classes, &mut dx);
            Ok(())
        })?;
        for (row, target) in dx.chunks_exact_mut(self.classes).zip(&self.targets) {
            row.iter_mut().for_each(|p| *p = (*p - spread) * factor);
            row[*target as usize] -= (1.0 - self.label_smoothing) as f32 * factor;
        }
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

/// Plain twins.
pub mod plain {
    use super::log_softmax;
    use crate::{Result, Tensor};

    /// Plain twin of [`super::cross_entropy`], of checked targets.
    pub fn cross_entropy(logits: &Tensor, targets: &Tensor, label_smoothing: f64) -> Result<Tensor> {
        let log_p = log_softmax(logits)?; // (batch, classes)
        let right = log_p.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?;
        Ok(((right * (label_smoothing - 1.0))? - (log_p.mean_all()? * label_smoothing)?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::with_plain;
    use crate::rng::{self, Generator as _};
    use crate::{Device, Var};

    /// Values and gradients of the fused operation and of its twin, for scores of all sizes.
    #[test]
    fn the_fused_operation_computes_what_its_twin_does() {
        for (batch, classes, size) in [(1, 1, 1.0), (3, 7, 0.1), (5, 300, 8.0), (2, 17, 90.0)] {
            let scores: Vec<f32> =
                rng::keyed(4, "scores").normal(batch * classes).into_iter().map(|x| x * size).collect();
            let scores = Tensor::from_vec(scores, (batch, classes), &Device::Cpu).unwrap();
            let targets: Vec<u32> = (0..batch).map(|row| ((row * 5 + 3) % classes) as u32).collect();
            let targets = Tensor::new(targets, &Device::Cpu).unwrap();
            for smoothing in [0.0, 0.1] {
                let both = || {
                    let scores = Var::from_tensor(&scores).unwrap();
                    let loss = cross_entropy(scores.as_tensor(), &targets, smoothing).unwrap();
                    let gradient = (&loss * 3.0).unwrap().backward().unwrap().remove(scores.as_tensor()).unwrap();
                    (loss.to_scalar::<f32>().unwrap(), gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap())
                };
                let ((loss, gradient), (twin, twin_gradient)) = (both(), with_plain(both));
                assert!((loss - twin).abs() < 1e-5 * (1.0 + twin.abs()), "{classes} {smoothing}: {loss} {twin}");
                let worst = gradient.iter().zip(&twin_gradient).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 1e-5, "{classes} {smoothing}: {worst}");
            }
        }
    }
}
