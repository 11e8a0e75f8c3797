//! Generative AI on your own hardware: pictures, text and code from words.

pub mod data;
pub mod digest;
pub mod evaluate;
pub mod explain;
pub mod generate;
pub mod image_file;
pub mod inspect;
mod memory;
mod model_folder;
pub mod registry;
mod threads;
pub mod tokens;
pub mod train;

pub use conjure_core::{Device, DeviceName, Error, Result};
pub use threads::set_threads;
