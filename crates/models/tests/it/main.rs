//! Models against recorded outputs of diffusers and transformers, see `tools/reference/`.

mod clip_text;
mod fixture;
mod unet_2d_condition;
