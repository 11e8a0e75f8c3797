//! Stable Diffusion: text encoder, U-Net and autoencoder put together.
//!
//! Rombach et al.: *High-Resolution Image Synthesis with Latent Diffusion Models*, 2022, <https://arxiv.org/abs/2112.10752>;
//! Podell et al.: *SDXL*, 2023, <https://arxiv.org/abs/2307.01952>; guidance embedding: Luo et al.: *Latent Consistency
//! Models*, 2023, <https://arxiv.org/abs/2310.04378>.
//!
//! | paper | here |
//! |---|---|
//! | `tau_theta(y)` | [`StableDiffusion::encode_prompt`] |
//! | `epsilon_theta(z_t, t, tau_theta(y))` | [`StableDiffusion::predict`] |
//! | `E(x)`, `D(z)` | [`StableDiffusion::encode`], [`StableDiffusion::decode`] |
//!
//! Token ids go in and pictures come out as tensors: tokenizer, sampler and files are the caller's. What a checkpoint's
//! U-Net predicts, epsilon or v, is for the sampler to know; see [`StableDiffusionConfig::scheduler`].

mod config;
mod detect;
mod lora;
mod original_keys;
mod sources;

pub use config::{Family, StableDiffusionConfig};
pub use sources::Sources;

use crate::autoencoder_kl::AutoencoderKl;
use crate::clip_text::ClipText;
use crate::unet_2d_condition::{AddedConditions, UNet2DConditionModel};
use conjure_core::blocks::Timesteps;
use conjure_core::probe::Probe;
use conjure_core::weights::{ParameterSpec, Params};
use conjure_core::{D, DType, Device, Error, Result, Tensor};

/// An embedded prompt, or a batch of them.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// What the U-Net attends to, `(batch, tokens, cross_attention_dim)`.
    pub hidden_states: Tensor,
    /// SDXL: the whole prompt as one vector, `(batch, features)`.
    pub pooled: Option<Tensor>,
}

impl Prompt {
    /// The prompts of both, one batch after the other: the two halves of classifier-free guidance.
    ///
    /// # Errors
    /// They have different numbers of tokens, or only one is pooled.
    pub fn cat(&self, other: &Self) -> Result<Self> {
        let pooled = match (&self.pooled, &other.pooled) {
            (Some(a), Some(b)) => Some(Tensor::cat(&[a, b], 0)?),
            (None, None) => None,
            _ => return Err(Error::request("only one of two prompts has a pooled embedding")),
        };
        Ok(Self { hidden_states: Tensor::cat(&[&self.hidden_states, &other.hidden_states], 0)?, pooled })
    }

    /// Zeros in the shape of this prompt: SDXL's unconditional prompt, see
    /// [`StableDiffusionConfig::force_zeros_for_empty_prompt`].
    pub fn zeros_like(&self) -> Result<Self> {
        let pooled = self.pooled.as_ref().map(Tensor::zeros_like).transpose()?;
        Ok(Self { hidden_states: self.hidden_states.zeros_like()?, pooled })
    }
}

/// What the U-Net is told beside the latents and the time.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The prompts: a batch of the latents' size, or several such batches one after the other.
    pub prompt: Prompt,
    /// SDXL: original height and width, top and left of the crop, target height and width in pixels.
    pub sizes: Option<[f32; 6]>,
    /// The guidance scale for models that take it as an input (Latent Consistency Models); others ignore it.
    pub guidance: Option<f64>,
    /// For a U-Net of 9 channels: mask (1 is painted) and encoded masked picture, `(batch, 1 + 4, h, w)`.
    pub inpainting: Option<Tensor>,
}

/// Text encoders, U-Net and autoencoder.
#[derive(Clone, Debug)]
pub struct StableDiffusion {
    text_encoder: ClipText,
    text_encoder_2: Option<ClipText>,
    unet: UNet2DConditionModel,
    vae: AutoencoderKl,
    config: StableDiffusionConfig,
    device: Device,
}

impl StableDiffusion {
    /// What each component asks for, by the component's folder name. Takes no memory for tensors.
    ///
    /// # Errors
    /// Configs that cannot be built or do not fit each other.
    pub fn outline(config: &StableDiffusionConfig) -> Result<Vec<(&'static str, Vec<ParameterSpec>)>> {
        let mut outlines = Vec::new();
        Self::build(
            config,
            |component| {
                let params = Params::outline();
                outlines.push((component, params.clone()));
                params
            },
            &Device::Cpu,
        )?;
        Ok(outlines.into_iter().map(|(component, params)| (component, params.asked())).collect())
    }

    /// Loads the weights, after [`Sources::check`].
    ///
    /// # Errors
    /// Configs that do not fit each other; missing or misshapen tensors; unreadable files.
    pub fn load(config: &StableDiffusionConfig, sources: &Sources, dtype: DType, device: &Device) -> Result<Self> {
        Self::load_with(config, sources, dtype, device, &mut |_, params| params)
    }

    /// As [`StableDiffusion::load`], with each component's parameters handed through `prepare` before the component is
    /// built: to train them, or something beside them.
    ///
    /// # Errors
    /// As [`StableDiffusion::load`].
    pub fn load_with(
        config: &StableDiffusionConfig,
        sources: &Sources,
        dtype: DType,
        device: &Device,
        prepare: &mut dyn FnMut(&'static str, Params) -> Params,
    ) -> Result<Self> {
        sources.check(config)?;
        Self::build(
            config,
            |component| match sources.get(component) {
                Some(source) => prepare(component, Params::load(source, dtype, device)),
                None => Params::outline(), // cannot happen after the check, which names every component of the config
            },
            device,
        )
    }

    /// Random weights.
    ///
    /// # Errors
    /// Configs that cannot be built or do not fit each other.
    pub fn seeded(config: &StableDiffusionConfig, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        // The components' names keep equal keys of the two text encoders apart.
        Self::build(
            config,
            |component| {
                let seed = component.bytes().fold(seed, |seed, byte| seed.wrapping_mul(257).wrapping_add(byte.into()));
                Params::seeded(seed, dtype, device)
            },
            device,
        )
    }

    fn build(
        config: &StableDiffusionConfig,
        mut params: impl FnMut(&'static str) -> Params,
        device: &Device,
    ) -> Result<Self> {
        config.check()?;
        Ok(Self {
            text_encoder: ClipText::new(&params("text_encoder"), &config.text_encoder)?,
            text_encoder_2: match &config.text_encoder_2 {
                Some(text) => Some(ClipText::new(&params("text_encoder_2"), text)?),
                None => None,
            },
            unet: UNet2DConditionModel::new(&params("unet"), &config.unet)?,
            vae: AutoencoderKl::new(&params("vae"), &config.vae)?,
            config: config.clone(),
            device: device.clone(),
        })
    }

    /// Where the weights are, and what is computed with them.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The configs of the components.
    pub fn config(&self) -> &StableDiffusionConfig {
        &self.config
    }

    /// The U-Net, for training and for conditions that [`StableDiffusion::predict`] does not have.
    pub fn unet(&self) -> &UNet2DConditionModel {
        &self.unet
    }

    /// The autoencoder, for what is beyond [`StableDiffusion::encode`] and [`StableDiffusion::decode`].
    pub fn vae(&self) -> &AutoencoderKl {
        &self.vae
    }

    /// Embeds token ids `(batch, tokens)` of type u32, for SDXL also those of its second tokenizer. `clip_skip` layers of
    /// the text encoders are left out at the end, beside the one that SDXL leaves out itself. The probe is offered the
    /// encoders' values with the prefix `text_encoder` or `text_encoder_2` left out.
    ///
    /// # Errors
    /// Ids for a second encoder that is not there, or the other way round; what [`ClipText::forward`] refuses.
    pub fn encode_prompt(
        &self,
        ids: &Tensor,
        ids_2: Option<&Tensor>,
        clip_skip: usize,
        probe: &mut dyn Probe,
    ) -> Result<Prompt> {
        let first = self.text_encoder.forward(ids, probe)?;
        match (&self.text_encoder_2, ids_2) {
            (None, None) => {
                let hidden_states = self.text_encoder.features(&first, clip_skip, true)?; // (batch, tokens, hidden_size)
                Ok(Prompt { hidden_states, pooled: None })
            }
            (Some(encoder_2), Some(ids_2)) => {
                let second = encoder_2.forward(ids_2, probe)?;
                let a = self.text_encoder.features(&first, clip_skip + 1, false)?; // (batch, tokens, hidden_size)
                let b = encoder_2.features(&second, clip_skip + 1, false)?; // (batch, tokens, hidden_size_2)
                Ok(Prompt { hidden_states: Tensor::cat(&[a, b], D::Minus1)?, pooled: second.text_embeds })
            }
            (Some(_), None) => Err(Error::request("the model has a second text encoder, and got no token ids for it")),
            (None, Some(_)) => Err(Error::request("the model has no second text encoder, and got token ids for one")),
        }
    }

    /// The U-Net's prediction for `latents (batch, 4, h, w)` at `timestep`, which a sampler may put between the training's
    /// whole numbers: `(n * batch, 4, h, w)` in one evaluation, where `conditions` hold `n` prompts for each sample.
    ///
    /// # Errors
    /// Shapes that do not fit; conditions that the model lacks or does not take.
    pub fn predict(
        &self,
        latents: &Tensor,
        timestep: f64,
        conditions: &Conditions,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let prompts = conditions.prompt.hidden_states.dim(0)?;
        let batch = latents.dim(0)?;
        if batch == 0 || !prompts.is_multiple_of(batch) {
            return Err(Error::request(format!("{prompts} prompts do not fit {batch} latents")));
        }
        let device = latents.device();
        let wanted = self.config.unet.in_channels;
        let sample = match &conditions.inpainting {
            Some(picture) if wanted > latents.dim(1)? => Tensor::cat(&[latents, picture], 1)?, // (batch, 9, h, w)
            Some(_) => return Err(Error::request("the U-Net takes no mask: it is not an inpainting model")),
            None if wanted > latents.dim(1)? => {
                return Err(Error::request("the U-Net is an inpainting model and needs a mask and a masked picture"));
            }
            None => latents.clone(),
        };
        let copies = prompts / batch;
        let sample = if copies == 1 { sample } else { Tensor::cat(&vec![&sample; copies], 0)? };
        let mut added = AddedConditions { text_embeds: conditions.prompt.pooled.clone(), ..AddedConditions::default() };
        if let Some(sizes) = conditions.sizes {
            added.time_ids = Some(Tensor::new(&sizes, device)?.broadcast_as((prompts, 6))?.contiguous()?);
        }
        if let (Some(dim), Some(scale)) = (self.config.unet.time_cond_proj_dim, conditions.guidance) {
            // Luo et al. 2023, section 4.2: the scale is embedded like a timestep, from 0 and in thousandths.
            let sinusoids = Timesteps { dim, flip_sin_to_cos: false, downscale_freq_shift: 1.0 };
            let scale = Tensor::new(&[((scale - 1.0) * 1000.0) as f32], device)?;
            let embedded = sinusoids.forward(&scale)?.to_dtype(latents.dtype())?; // (1, dim)
            added.timestep_cond = Some(embedded.broadcast_as((prompts, dim))?.contiguous()?);
        }
        let timesteps = Tensor::new(&[timestep as f32], device)?;
        self.unet.forward(&sample, &timesteps, &conditions.prompt.hidden_states, &added, probe)
    }

    /// The picture of `latents (batch, 4, h, w)`: `(batch, 3, 8 h, 8 w)`, about in `[-1, 1]`. In tiles if `tiled`: less
    /// memory, seams blended.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn decode(&self, latents: &Tensor, tiled: bool, probe: &mut dyn Probe) -> Result<Tensor> {
        let z = self.vae.unscale_latents(latents)?;
        if tiled { self.vae.decode_tiled(&z, self.vae.tiling()) } else { self.vae.decode(&z, probe) }
    }

    /// Latents `(batch, 4, h, w)` of `pixels (batch, 3, 8 h, 8 w)` in `[-1, 1]`: the encoder's mean, and with `noise` of
    /// the latents' shape a sample of its distribution. In tiles if `tiled`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn encode(
        &self,
        pixels: &Tensor,
        noise: Option<&Tensor>,
        tiled: bool,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let posterior =
            if tiled { self.vae.encode_tiled(pixels, self.vae.tiling())? } else { self.vae.encode(pixels, probe)? };
        let z = match noise {
            Some(noise) => posterior.sample(noise)?,
            None => posterior.mode().clone(),
        };
        self.vae.scale_latents(&z)
    }
}
