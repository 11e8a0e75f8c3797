//! Models against recorded outputs of diffusers and transformers, see `tools/reference/`.

mod fixture;
mod unet_2d_condition;
