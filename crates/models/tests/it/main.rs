//! Models against recorded outputs of diffusers and transformers, see `tools/reference/`.

mod autoencoder_kl;
mod clip_text;
mod clip_vision;
mod fixture;
mod single_file;
mod stable_diffusion;
mod unet_2d_condition;
