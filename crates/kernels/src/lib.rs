//! CPU kernels: plain slices in, plain slices out, f32, row-major. Knows no tensor library.
//!
//! Every kernel gives bit-identical results whatever the number of threads: work is split over outputs, and a sum that
//! must be split is split into chunks of a fixed size and added in a fixed order.

pub mod activation;
pub mod attention;
pub mod conv;
mod disjoint;
pub mod eight_bits;
pub mod elementwise;
pub mod embedding;
mod exp;
pub mod fresh;
pub mod gemm;
pub mod group_norm;
pub mod half;
pub mod isa;
pub mod lstm;
mod moments;
pub mod norm;
pub mod optimizer;
pub mod precision;
pub mod quantized;
pub mod rope;
mod scratch;
mod simd;
pub mod softmax;
pub mod threads;
pub mod upsample;
