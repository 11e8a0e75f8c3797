//! Which model a LoRA was made for, as far as the file shows.

use super::TensorInfo;
use super::keys;
use std::collections::BTreeMap;

/// Parts of names that only one family of models has.
const SIGNS: [(&str, &str); 8] = [
    ("double_blocks", "Flux"),
    ("single_blocks", "Flux"),
    ("single_transformer_blocks", "Flux"),
    ("joint_blocks", "Stable Diffusion 3"),
    ("joint_transformer_blocks", "Stable Diffusion 3"),
    ("lora_te3", "Stable Diffusion 3"),
    ("lora_te2_", "Stable Diffusion XL"),
    ("text_encoder_2.", "Stable Diffusion XL"),
];

/// The family: as the file's own text says it, or else from its names and the width of the text embedding that
/// cross-attention reads.
pub(super) fn told(infos: &BTreeMap<String, TensorInfo>, metadata: &BTreeMap<String, String>) -> Option<String> {
    let said = ["modelspec.architecture", "ss_base_model_version"].iter().find_map(|key| metadata.get(*key));
    // Text from a stranger's file: shown only if it is a plain short word.
    if let Some(said) = said.filter(|said| said.len() <= 60 && said.chars().all(|c| c.is_ascii_graphic())) {
        return Some(said.clone());
    }
    if let Some((_, family)) = SIGNS.iter().find(|(sign, _)| infos.keys().any(|name| name.contains(sign))) {
        return Some((*family).to_owned());
    }
    let reads_text = |name: &str| matches!(keys::parse(name), keys::Key::Factor { layer, role: keys::Role::Down } if layer.ends_with("attn2_to_k"));
    let width = infos.iter().find(|(name, _)| reads_text(name)).and_then(|(_, info)| info.shape.dims().get(1).copied());
    Some(match width? {
        768 => "Stable Diffusion 1".to_owned(),
        1024 => "Stable Diffusion 2".to_owned(),
        2048 => "Stable Diffusion XL".to_owned(),
        width => format!("a model with text embeddings of width {width}"),
    })
}
