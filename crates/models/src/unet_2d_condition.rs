//! The U-Net that denoises latents under the guidance of a prompt.
//!
//! Robin Rombach, Andreas Blattmann, Dominik Lorenz, Patrick Esser, Björn Ommer: *High-Resolution Image Synthesis with
//! Latent Diffusion Models*, 2022, <https://arxiv.org/abs/2112.10752>, section 3.3. SDXL's added conditions: Dustin Podell
//! et al.: *SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis*, 2023,
//! <https://arxiv.org/abs/2307.01952>, section 2.2.
//!
//! | paper | here |
//! |---|---|
//! | `epsilon_theta(z_t, t, tau_theta(y))` | [`UNet2DConditionModel::forward`] |
//! | `z_t` | `sample` |
//! | `t` | `timesteps`, one per sample |
//! | `tau_theta(y)`, the embedded prompt | `encoder_hidden_states` |
//! | `Attention(Q, K, V)` | `attn1` (pixels to pixels), `attn2` (pixels to prompt) |
//! | `c_size`, `c_crop`, `c_ar` (SDXL) | [`AddedConditions::time_ids`] |
//!
//! What differs: the output is whatever the checkpoint was trained to predict, epsilon or v; this file does not care.
//! Parameter names are diffusers' (`UNet2DConditionModel`).

mod config;

pub use config::{PerBlock, UNet2DConditionConfig};

use config::Level;
use conjure_core::blocks::{
    Conv2d, Downsample, Embedding, GroupNorm, Linear, ResnetBlock, ResnetBlockConfig, TimeEmbeddingNorm,
    TimestepEmbedding, Timesteps, Transformer2d, Transformer2dConfig, Upsample,
};
use conjure_core::ops::Conv2dSpec;
use conjure_core::probe::{Probe, Quantity, offer};
use conjure_core::weights::Params;
use conjure_core::{D, DType, Error, Result, Tensor};

/// Conditions beside time and prompt; each needs a model that takes it, and a model that needs it refuses to go without.
#[derive(Clone, Debug, Default)]
pub struct AddedConditions {
    /// SDXL: the pooled prompt, `(batch, features)`.
    pub text_embeds: Option<Tensor>,
    /// SDXL: original size, crop, target size, `(batch, 6)`.
    pub time_ids: Option<Tensor>,
    /// Latent Consistency Models: the embedded guidance scale, `(batch, time_cond_proj_dim)`.
    pub timestep_cond: Option<Tensor>,
    /// Class ids of type u32 `(batch)` for a table; times `(batch)` for `timestep`; features `(batch, n)` otherwise.
    pub class_labels: Option<Tensor>,
    /// 1 where a token of the prompt may be attended to, 0 where not, `(batch, tokens)`.
    pub encoder_attention_mask: Option<Tensor>,
}

/// How a class condition becomes an addition to the time embedding.
#[derive(Clone, Debug)]
enum ClassEmbedding {
    Table(Embedding),
    Timestep(TimestepEmbedding),
    Identity,
    Projection(TimestepEmbedding),
    SimpleProjection(Linear),
}

impl ClassEmbedding {
    fn new(params: &Params, config: &UNet2DConditionConfig) -> Result<Option<Self>> {
        let features = config.time_features();
        let projected = config.projection_class_embeddings_input_dim.unwrap_or(0);
        Ok(match (config.class_embed_type.as_deref(), config.num_class_embeds) {
            (None, None) => None,
            (None, Some(classes)) => Some(Self::Table(Embedding::new(params, classes, features)?)),
            (Some("timestep"), _) => {
                Some(Self::Timestep(TimestepEmbedding::new(params, config.block_out_channels[0], features, None)?))
            }
            (Some("identity"), _) => Some(Self::Identity),
            (Some("projection"), _) => {
                Some(Self::Projection(TimestepEmbedding::new(params, projected, features, None)?))
            }
            (Some("simple_projection"), _) => {
                Some(Self::SimpleProjection(Linear::new(params, projected, features, true)?))
            }
            (Some(other), _) => return Err(Error::request(format!("unknown class_embed_type \"{other}\""))),
        })
    }
}

/// SDXL's `text_time` condition: the pooled prompt beside six embedded sizes, through an MLP.
#[derive(Clone, Debug)]
struct TextTimeEmbedding {
    add_time_proj: Timesteps,
    add_embedding: TimestepEmbedding,
    input_features: usize,
}

/// Residual blocks of one resolution on the way down, each followed by a transformer in `CrossAttnDownBlock2D`.
#[derive(Clone, Debug)]
struct DownBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2d>,
    downsampler: Option<Downsample>,
    path: String,
}

/// The coarsest point: residual block, transformer, residual block.
#[derive(Clone, Debug)]
struct MidBlock {
    resnets: [ResnetBlock; 2],
    attention: Transformer2d,
    path: String,
}

/// Residual blocks of one resolution on the way up, each on its input beside the skip connection of the same size.
#[derive(Clone, Debug)]
struct UpBlock {
    resnets: Vec<ResnetBlock>,
    attentions: Vec<Transformer2d>,
    upsampler: Option<Upsample>,
    path: String,
}

/// What every transformer of one forward pass is given.
struct Prompt<'a> {
    hidden_states: &'a Tensor,
    mask: Option<&'a Tensor>,
}

impl DownBlock {
    /// Appends every skip connection to `skips` and returns the input of the next block.
    fn forward(
        &self,
        x: Tensor,
        temb: &Tensor,
        prompt: &Prompt<'_>,
        skips: &mut Vec<Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let mut x = x;
        for (i, resnet) in self.resnets.iter().enumerate() {
            x = resnet.forward(&x, Some(temb))?; // (batch, channels, h, w)
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, prompt.hidden_states, prompt.mask, probe)?;
            }
            skips.push(x.clone());
        }
        if let Some(downsampler) = &self.downsampler {
            x = downsampler.forward(&x)?; // (batch, channels, ceil(h / 2), ceil(w / 2))
            skips.push(x.clone());
        }
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x)
    }
}

impl MidBlock {
    fn forward(&self, x: &Tensor, temb: &Tensor, prompt: &Prompt<'_>, probe: &mut dyn Probe) -> Result<Tensor> {
        let x = self.resnets[0].forward(x, Some(temb))?;
        let x = self.attention.forward(&x, prompt.hidden_states, prompt.mask, probe)?;
        let x = self.resnets[1].forward(&x, Some(temb))?; // (batch, channels, h, w)
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x)
    }
}

impl UpBlock {
    /// Takes its skip connections from the end of `skips`.
    fn forward(
        &self,
        x: Tensor,
        temb: &Tensor,
        prompt: &Prompt<'_>,
        skips: &mut Vec<Tensor>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let mut x = x;
        for (i, resnet) in self.resnets.iter().enumerate() {
            let skip = skips.pop().ok_or_else(|| Error::failure("the U-Net ran out of skip connections"))?;
            let joined = Tensor::cat(&[&x, &skip], 1)?; // (batch, in_channels + skip_channels, h, w)
            drop(skip);
            x = resnet.forward(&joined, Some(temb))?; // (batch, channels, h, w)
            if let Some(attention) = self.attentions.get(i) {
                x = attention.forward(&x, prompt.hidden_states, prompt.mask, probe)?;
            }
        }
        if let Some(upsampler) = &self.upsampler {
            // The size of the skip connection that comes next: the input's own size need not be a power of two.
            let size = skips.last().map(|skip| skip.dims4()).transpose()?.map(|(_, _, h, w)| (h, w));
            x = upsampler.forward(&x, size)?;
        }
        offer(probe, &self.path, Quantity::Activation, &x)?;
        Ok(x)
    }
}

/// The U-Net.
#[derive(Clone, Debug)]
pub struct UNet2DConditionModel {
    conv_in: Conv2d,
    time_proj: Timesteps,
    time_embedding: TimestepEmbedding,
    class_embedding: Option<ClassEmbedding>,
    text_time: Option<TextTimeEmbedding>,
    down_blocks: Vec<DownBlock>,
    mid_block: Option<MidBlock>,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
    config: UNet2DConditionConfig,
}

impl UNet2DConditionModel {
    /// The model below `params`.
    ///
    /// # Errors
    /// A config that cannot be built; parameters that are missing or of another shape.
    pub fn new(params: &Params, config: &UNet2DConditionConfig) -> Result<Self> {
        config.check()?;
        let levels = config.levels()?;
        let last = levels.len() - 1;
        let same = |kernel: usize| Conv2dSpec::new(1, kernel / 2);
        let (finest, coarsest) = (levels[0].channels, levels[last].channels);
        let features = config.time_features();
        let time_embedding_norm = TimeEmbeddingNorm::from_name(&config.resnet_time_scale_shift)?;
        let resnet = |params: &Params, i: usize, in_channels, out_channels, output_scale_factor| {
            let resnet = ResnetBlockConfig {
                temb_channels: Some(features),
                eps: config.norm_eps,
                time_embedding_norm,
                output_scale_factor,
                ..ResnetBlockConfig::new(in_channels, out_channels, config.norm_num_groups)
            };
            ResnetBlock::new(&params.sub("resnets").sub(i), resnet)
        };
        let attention = |params: &Params, i: usize, level: &Level| {
            let transformer = Transformer2dConfig {
                channels: level.channels,
                heads: level.heads,
                head_dim: level.channels / level.heads,
                layers: level.transformer_layers,
                cross_attention_dim: level.cross_attention_dim,
                norm_groups: config.norm_num_groups,
                use_linear_projection: config.use_linear_projection,
                only_cross_attention: level.only_cross_attention,
            };
            Transformer2d::new(&params.sub("attentions").sub(i), transformer)
        };

        let time_proj =
            Timesteps { dim: finest, flip_sin_to_cos: config.flip_sin_to_cos, downscale_freq_shift: config.freq_shift };
        let text_time = match (&config.addition_embed_type, config.projection_class_embeddings_input_dim) {
            (Some(_), Some(input_features)) => Some(TextTimeEmbedding {
                add_time_proj: Timesteps { dim: config.addition_time_embed_dim.unwrap_or(0), ..time_proj },
                add_embedding: TimestepEmbedding::new(&params.sub("add_embedding"), input_features, features, None)?,
                input_features,
            }),
            _ => None,
        };

        let mut down_blocks = Vec::with_capacity(levels.len());
        let mut skip_channels = vec![finest]; // of conv_in, then of every residual block and downsampler
        let mut channels = finest;
        for (i, level) in levels.iter().enumerate() {
            let params = params.sub("down_blocks").sub(i);
            let mut block = DownBlock {
                resnets: Vec::with_capacity(level.layers),
                attentions: Vec::new(),
                downsampler: None,
                path: params.path().to_owned(),
            };
            for j in 0..level.layers {
                block.resnets.push(resnet(&params, j, channels, level.channels, 1.0)?);
                if level.attends_down {
                    block.attentions.push(attention(&params, j, level)?);
                }
                channels = level.channels;
                skip_channels.push(channels);
            }
            if i < last {
                let params = params.sub("downsamplers").sub(0);
                block.downsampler = Some(Downsample::new(&params, channels, channels, config.downsample_padding)?);
                skip_channels.push(channels);
            }
            down_blocks.push(block);
        }

        let mid_block = match &config.mid_block_type {
            None => None,
            Some(_) => {
                let params = params.sub("mid_block");
                // The middle attends to pixels and prompt whatever `only_cross_attention` says of the other blocks.
                let level = Level { only_cross_attention: false, ..levels[last] };
                let scale = config.mid_block_scale_factor;
                Some(MidBlock {
                    resnets: [
                        resnet(&params, 0, coarsest, coarsest, scale)?,
                        resnet(&params, 1, coarsest, coarsest, scale)?,
                    ],
                    attention: attention(&params, 0, &level)?,
                    path: params.path().to_owned(),
                })
            }
        };

        let mut up_blocks = Vec::with_capacity(levels.len());
        for (i, level) in levels.iter().rev().enumerate() {
            let params = params.sub("up_blocks").sub(i);
            let mut block = UpBlock {
                resnets: Vec::with_capacity(level.layers + 1),
                attentions: Vec::new(),
                upsampler: None,
                path: params.path().to_owned(),
            };
            for j in 0..=level.layers {
                let skip = skip_channels.pop().ok_or_else(|| Error::failure("fewer skip connections than blocks"))?;
                block.resnets.push(resnet(&params, j, channels + skip, level.channels, 1.0)?);
                if level.attends_up {
                    block.attentions.push(attention(&params, j, level)?);
                }
                channels = level.channels;
            }
            if i < last {
                block.upsampler = Some(Upsample::new(&params.sub("upsamplers").sub(0), channels, channels)?);
            }
            up_blocks.push(block);
        }

        Ok(Self {
            conv_in: Conv2d::new(
                &params.sub("conv_in"),
                config.in_channels,
                finest,
                config.conv_in_kernel,
                same(config.conv_in_kernel),
            )?,
            time_proj,
            time_embedding: TimestepEmbedding::new(
                &params.sub("time_embedding"),
                finest,
                features,
                config.time_cond_proj_dim,
            )?,
            class_embedding: ClassEmbedding::new(&params.sub("class_embedding"), config)?,
            text_time,
            down_blocks,
            mid_block,
            up_blocks,
            conv_norm_out: GroupNorm::new(
                &params.sub("conv_norm_out"),
                config.norm_num_groups,
                finest,
                config.norm_eps,
            )?,
            conv_out: Conv2d::new(
                &params.sub("conv_out"),
                finest,
                config.out_channels,
                config.conv_out_kernel,
                same(config.conv_out_kernel),
            )?,
            config: config.clone(),
        })
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &UNet2DConditionConfig {
        &self.config
    }

    /// One evaluation.
    ///
    /// `sample (batch, in_channels, h, w)`, `timesteps (batch)` or `(1)`, possibly fractional,
    /// `encoder_hidden_states (batch, tokens, cross_attention_dim)`: `(batch, out_channels, h, w)`. A probe is offered the
    /// output of every block as [`Quantity::Activation`], and what each attention layer offers.
    ///
    /// # Errors
    /// Shapes that do not fit; a condition that the model does not take, or that it lacks.
    pub fn forward(
        &self,
        sample: &Tensor,
        timesteps: &Tensor,
        encoder_hidden_states: &Tensor,
        added: &AddedConditions,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (batch, channels, _, _) = sample.dims4()?;
        if channels != self.config.in_channels {
            return Err(Error::request(format!(
                "the U-Net takes {} channels, and was given {channels}",
                self.config.in_channels
            )));
        }
        if !matches!(timesteps.dims(), [n] if *n == batch || *n == 1) {
            return Err(Error::request(format!("timesteps {:?} do not fit a batch of {batch}", timesteps.dims())));
        }
        let dtype = sample.dtype();
        let centred = if self.config.center_input_sample { Some(sample.affine(2.0, -1.0)?) } else { None };
        let sample = centred.as_ref().unwrap_or(sample);

        // 1. Time and the other conditions of the whole picture: one vector per sample.
        let time = self.time_proj.forward(timesteps)?.to_dtype(dtype)?; // (batch or 1, finest)
        let mut temb = self.time_embedding.forward(&time, added.timestep_cond.as_ref())?; // (batch or 1, features)
        if let Some(class) = self.embed_class(added, dtype)? {
            temb = temb.broadcast_add(&class)?;
        }
        if let Some(text_time) = self.embed_text_time(added, dtype)? {
            temb = temb.broadcast_add(&text_time)?;
        }

        // 2. What every attention to the prompt is given.
        let mask = match &added.encoder_attention_mask {
            Some(mask) => {
                let bias = mask.to_dtype(dtype)?.affine(10_000.0, -10_000.0)?; // 0 to attend, -10000 to ignore
                Some(bias.unsqueeze(1)?.unsqueeze(1)?) // (batch, 1, 1, tokens)
            }
            None => None,
        };
        let prompt = Prompt { hidden_states: encoder_hidden_states, mask: mask.as_ref() };

        // 3. Down, keeping what the way up will need; through the middle; up.
        let mut x = self.conv_in.forward(sample)?; // (batch, finest, h, w)
        let mut skips = vec![x.clone()];
        for block in &self.down_blocks {
            x = block.forward(x, &temb, &prompt, &mut skips, probe)?; // (batch, channels, h / 2, w / 2)
        }
        if let Some(mid_block) = &self.mid_block {
            x = mid_block.forward(&x, &temb, &prompt, probe)?;
        }
        for block in &self.up_blocks {
            x = block.forward(x, &temb, &prompt, &mut skips, probe)?; // (batch, channels, 2 h, 2 w)
        }

        // 4. Back to latent channels.
        self.conv_out.forward(&self.conv_norm_out.forward_silu(&x)?) // (batch, out_channels, h, w)
    }

    fn embed_class(&self, added: &AddedConditions, dtype: DType) -> Result<Option<Tensor>> {
        let (embedding, labels) = match (&self.class_embedding, &added.class_labels) {
            (None, None) => return Ok(None),
            (Some(embedding), Some(labels)) => (embedding, labels),
            (Some(_), None) => return Err(Error::request("the U-Net needs class labels, and got none")),
            (None, Some(_)) => return Err(Error::request("the U-Net takes no class labels, and got some")),
        };
        Ok(Some(match embedding {
            ClassEmbedding::Table(table) => table.forward(labels)?,
            ClassEmbedding::Timestep(mlp) => mlp.forward(&self.time_proj.forward(labels)?.to_dtype(dtype)?, None)?,
            ClassEmbedding::Identity => labels.to_dtype(dtype)?,
            ClassEmbedding::Projection(mlp) => mlp.forward(&labels.to_dtype(dtype)?, None)?,
            ClassEmbedding::SimpleProjection(linear) => linear.forward(&labels.to_dtype(dtype)?)?,
        })) // (batch, features)
    }

    fn embed_text_time(&self, added: &AddedConditions, dtype: DType) -> Result<Option<Tensor>> {
        let (embedding, text_embeds, time_ids) = match (&self.text_time, &added.text_embeds, &added.time_ids) {
            (None, None, None) => return Ok(None),
            (Some(embedding), Some(text_embeds), Some(time_ids)) => (embedding, text_embeds, time_ids),
            (Some(_), _, _) => {
                return Err(Error::request("the U-Net needs the pooled prompt and the picture's sizes (text_time)"));
            }
            (None, _, _) => {
                return Err(Error::request("the U-Net takes no pooled prompt and no sizes (text_time)"));
            }
        };
        let batch = text_embeds.dim(0)?;
        let sizes = embedding.add_time_proj.forward(&time_ids.flatten_all()?)?; // (batch * 6, addition_time_embed_dim)
        let sizes = sizes.to_dtype(dtype)?.reshape((batch, ()))?; // (batch, 6 * addition_time_embed_dim)
        let joined = Tensor::cat(&[text_embeds, &sizes], D::Minus1)?;
        if joined.dim(1)? != embedding.input_features {
            return Err(Error::request(format!(
                "the U-Net takes a pooled prompt and sizes of {} features together, and was given {}",
                embedding.input_features,
                joined.dim(1)?
            )));
        }
        Ok(Some(embedding.add_embedding.forward(&joined, None)?)) // (batch, features)
    }
}
