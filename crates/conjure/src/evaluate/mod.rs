//! Measures of what models make.

pub mod clip;
pub mod dictionary;
mod judge;
mod kernel_distance;
pub mod perplexity;
mod picture_model;
mod pixels;
pub mod retrieval;
pub mod translation;
pub mod translator;

pub use judge::{Judge, Opinion, open_classifier};
pub use kernel_distance::{KernelDistance, kernel_distance};
pub use perplexity::{Perplexity, perplexity};
pub use picture_model::{COPY, Memorisation, Obedience, Outcome, Report, Settings, Verdict, picture_model};
pub use pixels::{psnr, ssim};
