//! The library as its users see it, against the reference implementations' results.

mod adapters;
mod clip_tokenizer;
mod data_sets;
mod devices;
mod explain_attention;
mod fine_tuning;
#[path = "../../../../fuzz/bodies/words_and_pictures.rs"]
mod fuzz_bodies;
#[path = "../../../../fuzz/bodies/text_tokenizers.rs"]
mod fuzz_bodies_text;
#[path = "../../../../fuzz/bodies/training_files.rs"]
mod fuzz_training;
mod hostile_files;
mod language_models;
mod language_training;
mod odds;
mod stable_diffusion;
mod text_tokenizers;
mod train;
mod train_bpe;
mod train_networks;
mod train_translation;
mod translate;
mod translation;
