//! From text to token ids.
//!
//! | module | question it answers |
//! |---|---|
//! | [`clip_tokenizer`] | which ids does CLIP's text encoder read for these words? |
//! | [`clip_vocabulary`] | where does CLIP's vocabulary come from when a checkpoint carries none? |
//! | [`textual_inversion`] | what is in a file of learned tokens? |
//! | [`prompt`] | which words weigh more, and how is a prompt longer than the encoder's window read? |
//! | [`train_bpe`] | how is a vocabulary learned from captions? |

pub mod clip_tokenizer;
pub mod clip_vocabulary;
pub mod prompt;
pub mod textual_inversion;
pub mod train_bpe;

pub use clip_tokenizer::ClipTokenizer;
pub use prompt::{Chunk, Prompt};
pub use textual_inversion::LearnedToken;
