//! What the names of tensors in LoRA files say: which layer, which of its factors.
//!
//! | written by | the factor that reads, of a query projection |
//! |---|---|
//! | diffusers with PEFT | `unet.mid_block.attentions.0.….attn1.to_q.lora_A.weight` |
//! | diffusers before PEFT | `unet.mid_block.attentions.0.….attn1.to_q.lora.down.weight` |
//! | diffusers' first scripts | `mid_block.attentions.0.….attn1.processor.to_q_lora.down.weight` |
//! | diffusers, text encoder | `text_encoder.….q_proj.lora_linear_layer.down.weight` |
//! | PEFT itself | `base_model.model.mid_block.….to_q.lora_A.default.weight` |
//! | kohya's scripts, LyCORIS | `lora_unet_mid_block_attentions_0_…_attn1_to_q.lora_down.weight` |
//!
//! kohya's names have lost their dots, so layers are compared by names in which every dot is an underscore.

/// Which part of a layer's change a tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// From the layer's input to the rank.
    Down,
    /// From the rank to the layer's output.
    Up,
    /// Between the two, for convolutions in LyCORIS's Tucker form.
    Mid,
    /// The numerator of the scale.
    Alpha,
}

/// What a name says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// A factor of a layer, by its name without dots.
    Factor { layer: String, role: Role },
    /// A part of another kind of adapter, by the name of that kind.
    Other(&'static str),
    /// Nothing that is known.
    Unknown,
}

/// Marks of adapters that are no product of two factors, and their names.
const OTHERS: [(&str, &str); 15] = [
    ("hada_w", "LoHa"),
    ("hada_t", "LoHa"),
    ("lokr_w", "LoKr"),
    ("lokr_t", "LoKr"),
    ("dora_scale", "DoRA"),
    ("lora_magnitude_vector", "DoRA"),
    (".oft_", "OFT"),
    ("on_input", "IA3"),
    ("ia3_l", "IA3"),
    (".a1.weight", "GLoRA"),
    (".b1.weight", "GLoRA"),
    ("lora_embedding_", "LoRA of an embedding table"),
    (".lora_A.bias", "LoRA with biases"),
    (".lora_B.bias", "LoRA with biases"),
    ("vera_lambda", "VeRA"),
];

const ENDINGS: [(&str, Role); 10] = [
    (".lora_down.weight", Role::Down),
    (".lora_up.weight", Role::Up),
    (".lora_mid.weight", Role::Mid),
    (".lora_A.weight", Role::Down),
    (".lora_B.weight", Role::Up),
    (".lora.down.weight", Role::Down),
    (".lora.up.weight", Role::Up),
    (".lora_linear_layer.down.weight", Role::Down),
    (".lora_linear_layer.up.weight", Role::Up),
    (".alpha", Role::Alpha),
];

/// Reads a name.
pub(super) fn parse(name: &str) -> Key {
    if let Some((_, kind)) = OTHERS.iter().find(|(mark, _)| name.contains(mark)) {
        return Key::Other(kind);
    }
    if name.ends_with(".diff") || name.ends_with(".diff_b") {
        return Key::Other("full difference");
    }
    let factor = |layer: &str, role| Key::Factor { layer: flat(layer), role };
    for (ending, role) in ENDINGS {
        if let Some(layer) = name.strip_suffix(ending) {
            return factor(layer, role);
        }
    }
    // PEFT with the adapter's name in between.
    for (letter, role) in [(".lora_A.", Role::Down), (".lora_B.", Role::Up)] {
        if let Some((layer, rest)) = name.rsplit_once(letter)
            && rest.strip_suffix(".weight").is_some_and(|adapter| !adapter.contains('.'))
        {
            return factor(layer, role);
        }
    }
    // `attn1.processor.to_q_lora.down.weight`, and the same in the text encoder's attention without `processor`.
    for (ending, role) in [("_lora.down.weight", Role::Down), ("_lora.up.weight", Role::Up)] {
        if let Some((attention, projection)) = name.strip_suffix(ending).and_then(|layer| layer.rsplit_once('.')) {
            let text = attention.ends_with("self_attn");
            let attention = attention.strip_suffix(".processor").unwrap_or(attention);
            let projection = match (projection, text) {
                ("to_q", true) => "q_proj",
                ("to_k", true) => "k_proj",
                ("to_v", true) => "v_proj",
                ("to_out", true) => "out_proj",
                ("to_out", false) => "to_out.0",
                (other, _) => other,
            };
            return factor(&format!("{attention}.{projection}"), role);
        }
    }
    Key::Unknown
}

/// A layer's name as all layouts can spell it.
pub(super) fn flat(name: &str) -> String {
    let name = name.replace('.', "_");
    name.strip_prefix("lora_").map(str::to_owned).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_names_the_same_layer() {
        let to_q = "unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
        for (name, layer, role) in [
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", to_q, Role::Down),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.default_0.weight", to_q, Role::Up),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight", to_q, Role::Down),
            ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.up.weight", to_q, Role::Up),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight", to_q, Role::Up),
            ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.alpha", to_q, Role::Alpha),
            ("lora_unet_conv_in.lora_mid.weight", "unet_conv_in", Role::Mid),
            ("unet.a.attn2.processor.to_out_lora.down.weight", "unet_a_attn2_to_out_0", Role::Down),
            ("text_encoder.l.self_attn.to_out_lora.down.weight", "text_encoder_l_self_attn_out_proj", Role::Down),
            ("text_encoder.l.mlp.fc1.lora_linear_layer.up.weight", "text_encoder_l_mlp_fc1", Role::Up),
        ] {
            assert_eq!(parse(name), Key::Factor { layer: layer.to_owned(), role }, "{name}");
        }
    }

    #[test]
    fn other_adapters_are_recognised() {
        for (name, kind) in [
            ("lora_unet_conv_in.hada_w1_a", "LoHa"),
            ("lora_unet_conv_in.lokr_w2", "LoKr"),
            ("lora_unet_conv_in.dora_scale", "DoRA"),
            ("unet.conv_in.lora_magnitude_vector", "DoRA"),
            ("unet.conv_in.lora_B.bias", "LoRA with biases"),
            ("lora_unet_conv_in.diff", "full difference"),
        ] {
            assert_eq!(parse(name), Key::Other(kind), "{name}");
        }
        assert_eq!(parse("conv_in.weight"), Key::Unknown);
    }
}
