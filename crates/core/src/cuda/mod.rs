//! Kernels for NVIDIA GPUs, forwards and backwards: what the operations of [`crate::ops`] and the optimizers do there in f32,
//! where no product of the vendor's library does it.

mod launch;
mod operations;

pub(crate) use launch::takes;
pub(crate) use operations::{
    Activation, activate, adamw, add_channels, attends, attention, conv2d, convolves, dropout, ema, embedding, geglu,
    group_norm, layer_norm, linear, looks_up, softmax, sum_of_squares,
};
