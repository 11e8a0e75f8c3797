//! One paper, one file. Models do not import models; the assembly [`stable_diffusion`] is the exception.

pub mod autoencoder_kl;
pub mod clip_text;
pub mod clip_vision;
pub mod decoder;
pub mod encoder;
pub mod encoder_decoder;
pub mod image_classifier;
pub mod lstm_attention;
pub mod patch_discriminator;
pub mod stable_diffusion;
pub mod super_resolution;
pub mod unet_2d_condition;
