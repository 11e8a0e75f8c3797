//! From text to token ids.
//!
//! | module | question it answers |
//! |---|---|
//! | [`clip_tokenizer`] | which ids does CLIP's text encoder read for these words? |
//! | [`prompt`] | which words weigh more, and how is a prompt longer than the encoder's window read? |

pub mod clip_tokenizer;
pub mod prompt;

pub use clip_tokenizer::ClipTokenizer;
pub use prompt::{Chunk, Prompt};
