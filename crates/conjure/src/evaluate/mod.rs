//! Measures of what models make.

pub mod clip;
pub mod dictionary;
pub mod fit;
mod judge;
mod kernel_distance;
pub mod perplexity;
mod picture_model;
mod pixels;
pub mod reconstruction;
pub mod retrieval;
pub mod translation;
pub mod translator;

pub use judge::{CONCEPT, Judge, Opinion, STYLE, open_classifier};
pub use kernel_distance::{KernelDistance, kernel_distance};
pub use perplexity::{Perplexity, perplexity};
pub use picture_model::{COPY, Memorisation, Obedience, Outcome, Report, Settings, Verdict, picture_model};
pub use pixels::{psnr, ssim};
pub use reconstruction::{Fidelity, Restorer};
