//! Cross-entropy of classes, in plain tensor operations: it is a vanishing part of the work of a network with such a loss.

use crate::{D, Error, Result, Tensor};

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
    if let Some(target) = targets.to_vec1::<u32>()?.into_iter().find(|target| *target as usize >= classes) {
        return Err(Error::request(format!("cross_entropy: target {target} is none of {classes} classes")));
    }
    let log_p = log_softmax(logits)?; // (batch, classes)
    let right = log_p.gather(&targets.unsqueeze(1)?, 1)?.mean_all()?;
    Ok(((right * (label_smoothing - 1.0))? - (log_p.mean_all()? * label_smoothing)?)?)
}
