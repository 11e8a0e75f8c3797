//! Measures of what models make.

mod pixels;

pub use pixels::{psnr, ssim};
