//! Matrices whose numbers are stored in few bits each, in the block formats of GGUF files.

mod dequantize;
mod format;

pub use dequantize::dequantize;
pub use format::Format;
