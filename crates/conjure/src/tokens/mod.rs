//! From text to token ids.
//!
//! | module | question it answers |
//! |---|---|
//! | [`tokenizer`] | which ids does a language model read for this text, and what do its ids say? |
//! | [`sentencepiece`] | the same by a SentencePiece model |
//! | [`gguf_vocabulary`] | the same by the vocabulary inside a GGUF file |
//! | [`chat_template`] | which text stands for a conversation? |
//! | [`stream`] | which text is certain while ids are still coming? |
//! | [`clip_tokenizer`] | which ids does CLIP's text encoder read for these words? |
//! | [`clip_vocabulary`] | where does CLIP's vocabulary come from when a checkpoint carries none? |
//! | [`textual_inversion`] | what is in a file of learned tokens? |
//! | [`prompt`] | which words weigh more, and how is a prompt longer than the encoder's window read? |
//! | [`learned`] | how is a language model's vocabulary learned from texts? |
//! | [`train_bpe`] | how is a vocabulary learned from captions? |
//! | [`bpe_dropout`] | which other pieces can a word be read in? |
//! | [`train_translation`] | how is a vocabulary learned from texts in several languages? |

pub mod bpe_dropout;
mod charsmap;
pub mod chat_template;
pub mod clip_tokenizer;
pub mod clip_vocabulary;
mod files;
mod folder;
pub mod gguf_vocabulary;
mod gguf_words;
pub mod learned;
mod marian;
pub mod prompt;
pub mod sentencepiece;
pub mod stream;
pub mod textual_inversion;
pub mod tokenizer;
mod tokenizer_json;
pub mod train_bpe;
pub mod train_translation;

pub use chat_template::{ChatTemplate, Date, Message};
pub use clip_tokenizer::ClipTokenizer;
pub use prompt::{Chunk, Prompt};
pub use sentencepiece::SentencePiece;
pub use stream::DecodeStream;
pub use textual_inversion::LearnedToken;
pub use tokenizer::Tokenizer;
