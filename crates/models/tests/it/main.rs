//! Models against recorded outputs of diffusers and transformers, see `tools/reference/`.

mod autoencoder_kl;
mod clip_text;
mod clip_vision;
mod decoder;
mod decoder_config;
mod decoder_gguf;
mod encoder;
mod encoder_decoder;
mod fixture;
mod image_classifier;
mod lstm_attention;
mod patch_discriminator;
mod single_file;
mod stable_diffusion;
mod super_resolution;
mod training;
mod unet_2d_condition;
