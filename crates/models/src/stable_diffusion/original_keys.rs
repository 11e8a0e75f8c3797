//! The names that the authors' own single-file checkpoints give to what we call by diffusers' names, as rules.
//!
//! Latent diffusion (Rombach et al. 2022) numbers a U-Net's layers in one row, `input_blocks.0` to `output_blocks.11`,
//! where diffusers groups them by resolution. OpenCLIP fuses the three projections of attention and stores the text
//! projection as the matrix to multiply with from the right.

use conjure_core::weights::{ParameterSpec, Transform, View};

/// Where a component's tensors lie in a single file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part<'a> {
    /// The U-Net, with this many residual blocks on the way down in each resolution, and these blocks on the way up.
    UNet { layers_per_block: usize, up_block_types: &'a [String] },
    /// The autoencoder, with this many resolutions.
    Vae { levels: usize },
    /// A text encoder in transformers' layout, below this prefix; `level` is `text_model.` or lost.
    ClipText { prefix: &'static str, level: &'static str },
    /// A text encoder in OpenCLIP's layout, below this prefix.
    OpenClip { prefix: &'static str },
}

pub(super) const UNET: &str = "model.diffusion_model.";
pub(super) const VAE: &str = "first_stage_model.";
/// CLIP ViT-L/14 in SD 1.x.
pub(super) const CLIP_L: &str = "cond_stage_model.transformer.";
/// CLIP ViT-L/14 in SDXL.
pub(super) const CLIP_L_XL: &str = "conditioner.embedders.0.transformer.";
/// OpenCLIP ViT-H/14 in SD 2.x.
pub(super) const OPEN_CLIP_H: &str = "cond_stage_model.model.";
/// OpenCLIP ViT-bigG/14 in SDXL.
pub(super) const OPEN_CLIP_G: &str = "conditioner.embedders.1.model.";

/// Where the wanted parameter lies. A name that follows no rule maps to itself below the part's prefix, so that it counts as
/// missing under a name that can be understood.
pub(super) fn view(part: Part<'_>, wanted: &ParameterSpec) -> View {
    let name = wanted.name.as_str();
    match part {
        Part::UNet { layers_per_block, up_block_types } => {
            View::as_is(format!("{UNET}{}", unet(name, layers_per_block, up_block_types)))
        }
        Part::Vae { levels } => {
            let source_name = format!("{VAE}{}", vae(name, levels));
            let pointwise = name.contains(".attentions.") && wanted.shape.rank() == 2;
            let transform = if pointwise { Transform::Squeeze } else { Transform::AsIs };
            View { source_name, transform }
        }
        Part::ClipText { prefix, level } => {
            View::as_is(format!("{prefix}{}", replace_start(name, &[("text_model.", level)])))
        }
        Part::OpenClip { prefix } => {
            let (stored, transform) = open_clip(name, wanted.shape.dims().first().copied().unwrap_or(0));
            View { source_name: format!("{prefix}{stored}"), transform }
        }
    }
}

/// Replaces the first of the prefixes `(ours, theirs)` that fits.
fn replace_start(name: &str, rules: &[(&str, &str)]) -> String {
    for (ours, theirs) in rules {
        if let Some(rest) = name.strip_prefix(ours) {
            return format!("{theirs}{rest}");
        }
    }
    name.to_owned()
}

/// `i.rest` as number and rest.
fn indexed(name: &str) -> Option<(usize, &str)> {
    let (index, rest) = name.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

fn unet(name: &str, layers: usize, up_block_types: &[String]) -> String {
    const WHOLE: [(&str, &str); 9] = [
        ("conv_in.", "input_blocks.0.0."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("time_embedding.cond_proj.", "time_embed.cond_proj."),
        ("add_embedding.linear_1.", "label_emb.0.0."),
        ("add_embedding.linear_2.", "label_emb.0.2."),
        ("class_embedding.", "label_emb."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ];
    const RESNET: [(&str, &str); 6] = [
        ("norm1.", "in_layers.0."),
        ("conv1.", "in_layers.2."),
        ("time_emb_proj.", "emb_layers.1."),
        ("norm2.", "out_layers.0."),
        ("conv2.", "out_layers.3."),
        ("conv_shortcut.", "skip_connection."),
    ];
    let block = |rest: &str| -> Option<String> {
        // Each resolution takes one place more than it has layers: for the downsampler on the way down, and for the
        // additional residual block on the way up. The first place on the way down is conv_in's.
        let place = layers + 1;
        if let Some(rest) = rest.strip_prefix("mid_block.") {
            return Some(match rest.split_once('.')? {
                ("resnets", rest) => {
                    let (j, rest) = indexed(rest)?;
                    format!("middle_block.{}.{}", 2 * j, replace_start(rest, &RESNET))
                }
                ("attentions", rest) => format!("middle_block.1.{}", indexed(rest)?.1),
                _ => return None,
            });
        }
        let (down, rest) = match rest.strip_prefix("down_blocks.") {
            Some(rest) => (true, rest),
            None => (false, rest.strip_prefix("up_blocks.")?),
        };
        let (i, rest) = indexed(rest)?;
        let (kind, rest) = rest.split_once('.')?;
        let (j, rest) = indexed(rest)?;
        let base = if down {
            format!("input_blocks.{}", 1 + i * place + j)
        } else {
            format!("output_blocks.{}", i * place + j)
        };
        Some(match kind {
            "resnets" => format!("{base}.0.{}", replace_start(rest, &RESNET)),
            "attentions" => format!("{base}.1.{rest}"),
            "downsamplers" => {
                format!("input_blocks.{}.0.{}", (i + 1) * place, replace_start(rest, &[("conv.", "op.")]))
            }
            // After the transformer, where this resolution has one.
            "upsamplers" => {
                let after = if up_block_types.get(i)? == "CrossAttnUpBlock2D" { 2 } else { 1 };
                format!("output_blocks.{}.{after}.{rest}", i * place + layers)
            }
            _ => return None,
        })
    };
    block(name).unwrap_or_else(|| replace_start(name, &WHOLE))
}

fn vae(name: &str, levels: usize) -> String {
    const INNER: [(&str, &str); 7] = [
        ("conv_shortcut.", "nin_shortcut."),
        ("group_norm.", "norm."),
        ("to_q.", "q."),
        ("to_k.", "k."),
        ("to_v.", "v."),
        ("to_out.0.", "proj_out."),
        ("conv_norm_out.", "norm_out."),
    ];
    let side = |side: &str, rest: &str| -> Option<String> {
        if let Some(rest) = rest.strip_prefix("mid_block.") {
            let (kind, rest) = rest.split_once('.')?;
            let (j, rest) = indexed(rest)?;
            let kind = if kind == "resnets" { "block" } else { "attn" };
            return Some(format!("{side}.mid.{kind}_{}.{}", j + 1, replace_start(rest, &INNER)));
        }
        let (down, rest) = match rest.strip_prefix("down_blocks.") {
            Some(rest) => (true, rest),
            None => match rest.strip_prefix("up_blocks.") {
                Some(rest) => (false, rest),
                None => return Some(format!("{side}.{}", replace_start(rest, &INNER))),
            },
        };
        let (i, rest) = indexed(rest)?;
        let (kind, rest) = rest.split_once('.')?;
        let (j, rest) = indexed(rest)?;
        let level = if down { format!("down.{i}") } else { format!("up.{}", levels.checked_sub(i + 1)?) };
        Some(match kind {
            "resnets" => format!("{side}.{level}.block.{j}.{}", replace_start(rest, &INNER)),
            "downsamplers" => format!("{side}.{level}.downsample.{rest}"),
            "upsamplers" => format!("{side}.{level}.upsample.{rest}"),
            _ => return None,
        })
    };
    match name.split_once('.') {
        Some((part @ ("encoder" | "decoder"), rest)) => side(part, rest).unwrap_or_else(|| name.to_owned()),
        _ => name.to_owned(),
    }
}

/// `rows` is the first dimension of the wanted tensor: the size of each of the three fused projections.
fn open_clip(name: &str, rows: usize) -> (String, Transform) {
    const WHOLE: [(&str, &str); 3] = [
        ("text_model.embeddings.token_embedding.", "token_embedding."),
        ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
        ("text_model.final_layer_norm.", "ln_final."),
    ];
    const LAYER: [(&str, &str); 5] = [
        ("layer_norm1.", "ln_1."),
        ("layer_norm2.", "ln_2."),
        ("mlp.fc1.", "mlp.c_fc."),
        ("mlp.fc2.", "mlp.c_proj."),
        ("self_attn.", "attn."),
    ];
    if name == "text_projection.weight" {
        return ("text_projection".to_owned(), Transform::Transpose);
    }
    let Some((i, rest)) = name.strip_prefix("text_model.encoder.layers.").and_then(indexed) else {
        return (replace_start(name, &WHOLE), Transform::AsIs);
    };
    for (third, projection) in ["q_proj.", "k_proj.", "v_proj."].into_iter().enumerate() {
        if let Some(kind) = rest.strip_prefix("self_attn.").and_then(|rest| rest.strip_prefix(projection)) {
            let stored = format!("transformer.resblocks.{i}.attn.in_proj_{kind}");
            return (stored, Transform::Rows(third * rows..(third + 1) * rows));
        }
    }
    (format!("transformer.resblocks.{i}.{}", replace_start(rest, &LAYER)), Transform::AsIs)
}
