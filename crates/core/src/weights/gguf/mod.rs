//! The GGUF format of ggml and llama.cpp, <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod metadata;

pub use metadata::{Metadata, MetadataArray, MetadataValue};
