//! Measures of what models make.

mod kernel_distance;
mod pixels;

pub use kernel_distance::{KernelDistance, kernel_distance};
pub use pixels::{psnr, ssim};
