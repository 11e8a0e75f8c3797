//! The library as its users see it, against the reference implementations' results.

mod clip_tokenizer;
mod hostile_files;
mod stable_diffusion;
