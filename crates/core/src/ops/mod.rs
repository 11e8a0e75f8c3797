//! Differentiable operations. Each has a plain twin in ordinary tensor operations (module [`plain`] of its file): the
//! reference in tests, and the path in a type other than f32. On a CPU in f32 a fused kernel of `conjure-kernels` does the work,
//! forwards and backwards, on a GPU those of `cuda`, where there are any.
//!
//! [`with_plain`] chooses the plain twins on a CPU too.

mod activation;
mod attention;
mod conv2d;
mod cross_entropy;
mod eight_bits;
mod embedding;
mod group_norm;
mod lstm;
mod matmul;
mod norm;
mod quantized;
mod repeated_linear;
mod residual;
mod resize;
mod rope;
pub(crate) mod slices;
mod softmax;
mod upsample;

pub use activation::{geglu, gelu, gelu_tanh, leaky_relu, quick_gelu, silu};
pub use attention::{AttentionSpec, attention, attention_probabilities, widened};
pub use conv2d::{Conv2dSpec, conv_transpose2d, conv2d};
pub use cross_entropy::{cross_entropy, log_softmax};
pub use eight_bits::{from_eight_bits, to_eight_bits};
pub use embedding::embedding;
pub use group_norm::{group_norm, group_norm_silu};
pub use lstm::lstm_step;
pub use matmul::{linear, matmul};
pub use norm::{layer_norm, rms_norm};
pub use quantized::{quantized_embedding, quantized_linear};
pub use repeated_linear::RepeatedLinear;
pub use residual::{add, add_channels};
pub use resize::{pixel_shuffle, resize_bicubic};
pub use rope::{RopeLayout, rope};
pub use slices::with_plain;
pub use softmax::softmax;
pub use upsample::upsample_nearest2d;

/// The plain twins.
pub mod plain {
    pub use super::activation::plain::*;
    pub use super::attention::plain::*;
    pub use super::conv2d::plain::*;
    pub use super::cross_entropy::plain::*;
    pub use super::embedding::plain::*;
    pub use super::group_norm::plain::*;
    pub use super::lstm::plain::*;
    pub use super::matmul::plain::*;
    pub use super::norm::plain::*;
    pub use super::quantized::plain::*;
    pub use super::residual::plain::*;
    pub use super::rope::plain::*;
    pub use super::softmax::plain::*;
    pub use super::upsample::plain::*;
}
